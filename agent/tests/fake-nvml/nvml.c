/* A stand-in for libnvidia-ml with eight GPUs, for tests of the agent.
 *
 * FAKE_NVML_STATE names a file that is read on each call, so that a test can change the world:
 *   lost N        GPU N is lost
 *   xid N CODE    the next wait for events gives XID CODE of GPU N (each line once)
 *   nodriver      nvmlInit fails: the driver is not loaded
 * -DWITHOUT_POWER leaves nvmlDeviceGetPowerUsage out, as an old library would.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret;
enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, LOST = 15 };
enum { GPUS = 8, LINKS = 4 };
typedef struct { int index; } gpu;
static gpu gpus[GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static int xids_told;

/* Calls f for each line of the state file. */
static int in_state(const char *format, int index) {
    char line[128], wanted[64];
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    int found = 0;
    snprintf(wanted, sizeof wanted, format, index);
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found |= !strcmp(line, wanted);
    }
    fclose(file);
    return found;
}

static ret check(gpu *g) { return in_state("lost %d", g->index) ? LOST : SUCCESS; }
#define ALIVE(g) do { ret r = check(g); if (r) return r; } while (0)

ret nvmlInit_v2(void) { return in_state("nodriver", 0) ? DRIVER_NOT_LOADED : SUCCESS; }
ret nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
ret nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(ret r) { (void)r; return "fake"; }
ret nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "570.86.15"); return SUCCESS; }
ret nvmlSystemGetNVMLVersion(char *out, unsigned n) { snprintf(out, n, "12.570.86.15"); return SUCCESS; }
ret nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12080; return SUCCESS; }
ret nvmlSystemGetCudaDriverVersion(int *v) { *v = 12080; return SUCCESS; }
ret nvmlDeviceGetCount_v2(unsigned *n) { *n = GPUS; return SUCCESS; }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, gpu **out) {
    if (i >= GPUS) return NOT_FOUND;
    *out = &gpus[i];
    return check(*out);
}
static void bus_id(gpu *g, char *out, size_t n) { snprintf(out, n, "00000000:%02X:00.0", 0x18 + g->index); }
ret nvmlDeviceGetHandleByPciBusId_v2(const char *id, gpu **out) {
    for (int i = 0; i < GPUS; i++) {
        char mine[32];
        bus_id(&gpus[i], mine, sizeof mine);
        if (!strcmp(mine, id)) { *out = &gpus[i]; return check(*out); }
    }
    return NOT_FOUND;
}
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;
ret nvmlDeviceGetPciInfo_v3(gpu *g, pci *out) {
    ALIVE(g);
    memset(out, 0, sizeof *out);
    out->bus = 0x18 + g->index;
    bus_id(g, out->bus_id, sizeof out->bus_id);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    return SUCCESS;
}
ret nvmlDeviceGetName(gpu *g, char *out, unsigned n) { ALIVE(g); snprintf(out, n, "NVIDIA H100 80GB HBM3"); return SUCCESS; }
ret nvmlDeviceGetUUID(gpu *g, char *out, unsigned n) { ALIVE(g); snprintf(out, n, "GPU-%08d", g->index); return SUCCESS; }
ret nvmlDeviceGetVbiosVersion(gpu *g, char *out, unsigned n) { ALIVE(g); snprintf(out, n, "96.00.99.00.01"); return SUCCESS; }
ret nvmlDeviceGetSerial(gpu *g, char *out, unsigned n) { (void)out; (void)n; ALIVE(g); return NOT_SUPPORTED; }
ret nvmlDeviceGetTemperature(gpu *g, int sensor, unsigned *out) { (void)sensor; ALIVE(g); *out = 60 + g->index; return SUCCESS; }
#ifndef WITHOUT_POWER
ret nvmlDeviceGetPowerUsage(gpu *g, unsigned *out) { ALIVE(g); *out = 650000; return SUCCESS; }
#endif
typedef struct { unsigned gpu, memory; } utilisation;
ret nvmlDeviceGetUtilizationRates(gpu *g, utilisation *out) { ALIVE(g); out->gpu = 99; out->memory = 40; return SUCCESS; }
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
ret nvmlDeviceGetMemoryInfo_v2(gpu *g, memory *out) {
    ALIVE(g);
    out->total = 80ull << 30; out->used = 70ull << 30; out->free = 10ull << 30;
    return SUCCESS;
}
ret nvmlDeviceGetCurrentClocksThrottleReasons(gpu *g, unsigned long long *out) { ALIVE(g); *out = 4; return SUCCESS; }
ret nvmlDeviceGetCurrPcieLinkGeneration(gpu *g, unsigned *out) { ALIVE(g); *out = 5; return SUCCESS; }
ret nvmlDeviceGetCurrPcieLinkWidth(gpu *g, unsigned *out) { ALIVE(g); *out = g->index == 2 ? 8 : 16; return SUCCESS; }
typedef struct { unsigned id, scope; long long at, latency; int type; ret result; union { double d; unsigned u; unsigned long long ull; } value; } field;
ret nvmlDeviceGetFieldValues(gpu *g, int n, field *fields) {
    ALIVE(g);
    for (int i = 0; i < n; i++) {
        field *f = &fields[i];
        f->result = SUCCESS;
        f->type = 3; /* unsigned long long */
        f->value.ull = 0;
        switch (f->id) {
        case 82: f->type = 1; f->value.ull = 0; f->value.u = 55; break; /* memory temperature */
        case 3: f->value.ull = 12; break;                              /* corrected, volatile */
        case 4: f->value.ull = 0; break;
        case 144: f->type = 1; f->value.u = g->index == 5; break;       /* remap pending */
        case 138: f->value.ull = 1000 + f->scope; break;                /* KiB sent over a link */
        case 139: f->value.ull = 2000 + f->scope; break;
        case 142: case 143: case 145: f->type = 1; break;
        default: f->result = NOT_SUPPORTED;
        }
    }
    return SUCCESS;
}
ret nvmlDeviceGetNvLinkState(gpu *g, unsigned link, int *out) {
    ALIVE(g);
    if (link >= LINKS) return NOT_SUPPORTED;
    *out = 1;
    return SUCCESS;
}
ret nvmlDeviceGetNvLinkErrorCounter(gpu *g, unsigned link, int counter, unsigned long long *out) {
    ALIVE(g);
    *out = link == 1 && counter == 0 ? 7 : 0;
    return SUCCESS;
}
ret nvmlDeviceGetSupportedEventTypes(gpu *g, unsigned long long *out) { ALIVE(g); *out = 0x1b; return SUCCESS; }
ret nvmlEventSetCreate(void **out) { *out = &xids_told; return SUCCESS; }
ret nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
ret nvmlDeviceRegisterEvents(gpu *g, unsigned long long types, void *set) { (void)types; (void)set; return check(g); }
typedef struct { gpu *device; unsigned long long type, data; unsigned instance, compute; } event;
ret nvmlEventSetWait_v2(void *set, event *out, unsigned timeout_ms) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[128];
    int seen = 0, index;
    unsigned code;
    (void)set;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "xid %d %u", &index, &code) == 2 && ++seen > xids_told) {
            xids_told++;
            fclose(file);
            memset(out, 0, sizeof *out);
            out->device = &gpus[index];
            out->type = 8;
            out->data = code;
            return SUCCESS;
        }
    }
    if (file) fclose(file);
    /* With a state to watch, often enough for a test; without one, as long as asked. */
    usleep(path ? 5000 : timeout_ms * 1000);
    return TIMEOUT;
}
