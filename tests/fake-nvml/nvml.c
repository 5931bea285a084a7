/* A stand-in for libnvidia-ml.so.1 with eight GPUs, built by agent/tests/gpu.rs.
 *
 * The functions and structures have the names, numbers and layout of NVIDIA's documented interface.
 * State is the directory beside the library, named like it with ".d" appended, looked at in each
 * call:
 *   unloaded       the driver is not loaded
 *   lost.N         GPU N has fallen off the bus: what the driver remembers still reads
 *   gone.N         GPU N has no handle, for an unknown reason
 *   invalid.N      GPU N has no handle: the driver does not know the index any more
 *   absent.N       GPU N has no handle: the driver does not find it
 *   stale.N        GPU N has a handle that no call takes
 *   ecc_unknown.N  the error counts of GPU N give an unknown error
 *   events         one line "GPU TYPE DATA" per event, appended by the test
 *   calls          where it exists, gets the name of each call but those of the thread for events
 *   drained        made when every line of "events" was handed out
 *   shut           made when the library is shut down
 *
 * Built with -DSTILL it looks at none of this.
 *
 * GPUs 0 to 4 count like Hopper, 5 like Blackwell, 6 like Ampere; 7 has no NVLink, ECC off and MIG on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
    OK = 0,
    INVALID = 2,
    UNSUPPORTED = 3,
    INSUFFICIENT = 7,
    NOT_FOUND = 6,
    NOT_LOADED = 9,
    TIMEOUT = 10,
    LOST = 15,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999,
};
enum { GPUS = 8, BLACKWELL = 5, AMPERE = 6, PLAIN = 7 };

struct gpu { int index; };
static struct gpu gpus[GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
/* Parts of the one with MIG on: of three places the second is not taken. */
enum { PART = 100, PLACES = 3 };
static struct gpu parts[PLACES] = {{PART}, {PART + 1}, {PART + 2}};

static void path_of(char *path, size_t size, const char *format, va_list arguments)
{
    Dl_info self;
    dladdr((void *)path_of, &self);
    int used = snprintf(path, size, "%s.d/", self.dli_fname);
    vsnprintf(path + used, size - used, format, arguments);
}

static void file(char *path, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    path_of(path, size, format, arguments);
    va_end(arguments);
}

#ifdef STILL
/* For measuring who calls it: nothing ever happens, and no call costs anything. */
static int is(const char *format, ...)
{
    (void)format;
    return 0;
}

static void called(const char *name) { (void)name; }
static void make(const char *name) { (void)name; }
#else
static int is(const char *format, ...)
{
    char path[4096];
    va_list arguments;
    va_start(arguments, format);
    path_of(path, sizeof path, format, arguments);
    va_end(arguments);
    return access(path, F_OK) == 0;
}

static void called(const char *name)
{
    char path[4096], line[128], thread[16] = "";
    prctl(PR_GET_NAME, thread);
    if (strcmp(thread, "gpu-events") == 0)
        return;
    file(path, sizeof path, "calls");
    int log = open(path, O_WRONLY | O_APPEND);
    if (log < 0)
        return;
    int length = snprintf(line, sizeof line, "%s\n", name);
    if (write(log, line, length) != length)
        abort();
    close(log);
}

static void make(const char *name)
{
    char path[4096];
    file(path, sizeof path, "%s", name);
    close(open(path, O_CREAT | O_WRONLY, 0600));
}

#endif

/* What a call that reaches the hardware returns. */
static int live(const struct gpu *gpu)
{
    if (is("unloaded"))
        return NOT_LOADED;
    if (is("stale.%d", gpu->index))
        return INVALID;
    return is("lost.%d", gpu->index) ? LOST : OK;
}

int nvmlInit_v2(void) { return is("unloaded") ? NOT_LOADED : OK; }

int nvmlShutdown(void)
{
    make("shut");
    return OK;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    snprintf(text, size, "580.105.08");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = GPUS;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **gpu)
{
    called("handle");
    if (is("unloaded"))
        return NOT_LOADED;
    if (index >= GPUS)
        return INVALID;
    if (is("gone.%u", index))
        return UNKNOWN;
    if (is("invalid.%u", index))
        return INVALID;
    if (is("absent.%u", index))
        return NOT_FOUND;
    *gpu = &gpus[index];
    return OK;
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char text[32];
};

int nvmlDeviceGetPciInfo_v3(struct gpu *gpu, struct pci *pci)
{
    called("pci");
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x1a + 0x10 * gpu->index;
    snprintf(pci->text, sizeof pci->text, "%08X:%02X:00.0", 0, pci->bus);
    return OK;
}

int nvmlDeviceGetName(struct gpu *gpu, char *text, unsigned size)
{
    (void)gpu;
    called("name");
    snprintf(text, size, "NVIDIA H100 80GB HBM3");
    return OK;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *text, unsigned size)
{
    const char *kind = gpu->index >= PART ? "MIG" : "GPU";
    snprintf(text, size, "%s-00000000-0000-0000-0000-%012d", kind, gpu->index);
    return OK;
}

int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned *current, unsigned *pending)
{
    if (gpu->index == AMPERE)
        return UNSUPPORTED;
    *current = *pending = gpu->index == PLAIN;
    return live(gpu);
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *gpu, unsigned *count)
{
    *count = gpu->index == PLAIN ? PLACES : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *gpu, unsigned index, struct gpu **part)
{
    if (gpu->index != PLAIN || index >= PLACES)
        return INVALID;
    if (index == 1)
        return NOT_FOUND;
    *part = &parts[index];
    return OK;
}

int nvmlDeviceGetSerial(struct gpu *gpu, char *text, unsigned size)
{
    if (gpu->index == PLAIN)
        return UNSUPPORTED;
    snprintf(text, size, "165000000%04d", gpu->index);
    return OK;
}

int nvmlDeviceGetVbiosVersion(struct gpu *gpu, char *text, unsigned size)
{
    (void)gpu;
    snprintf(text, size, "96.00.99.00.01");
    return OK;
}

int nvmlDeviceGetMaxPcieLinkGeneration(struct gpu *gpu, unsigned *value)
{
    (void)gpu;
    *value = 5;
    return OK;
}

int nvmlDeviceGetMaxPcieLinkWidth(struct gpu *gpu, unsigned *value)
{
    (void)gpu;
    *value = 16;
    return OK;
}

int nvmlDeviceGetCurrPcieLinkGeneration(struct gpu *gpu, unsigned *value)
{
    called("link");
    *value = 5;
    return live(gpu);
}

int nvmlDeviceGetCurrPcieLinkWidth(struct gpu *gpu, unsigned *value)
{
    called("link");
    *value = gpu->index == 2 ? 8 : 16;
    return live(gpu);
}

int nvmlDeviceGetTemperature(struct gpu *gpu, int sensor, unsigned *value)
{
    (void)sensor;
    called("temperature");
    *value = 30 + gpu->index;
    return live(gpu);
}

int nvmlDeviceGetTemperatureThreshold(struct gpu *gpu, int threshold, unsigned *value)
{
    called("threshold");
    if (gpu->index == PLAIN)
        return UNSUPPORTED;
    /* Slowdown and the memory's highest; newer boards give a margin instead, which is not here. */
    if (threshold != 1 && threshold != 2)
        return INVALID;
    *value = threshold == 1 ? 92 : 105;
    return OK;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned *value)
{
    called("power");
    *value = 200000 + gpu->index;
    return live(gpu);
}

struct utilisation { unsigned gpu, memory; };

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilisation *value)
{
    called("utilisation");
    if (gpu->index == PLAIN)
        return UNSUPPORTED;
    value->gpu = 10 * gpu->index;
    value->memory = 1;
    return live(gpu);
}

struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, struct memory *value)
{
    called("memory");
    if (value->version != (sizeof *value | 2u << 24))
        return VERSION_MISMATCH;
    value->total = 80ull << 30;
    value->used = (unsigned long long)gpu->index << 30;
    return live(gpu);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct gpu *gpu, unsigned long long *bits)
{
    called("reasons");
    *bits = gpu->index == 0 ? 0x44 : 0x1;
    return live(gpu);
}

struct process {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned *count, struct process *list)
{
    called("processes");
    if (live(gpu) != OK)
        return live(gpu);
    unsigned found = gpu->index == 0 ? 2 : 0, room = *count;
    *count = found;
    if (room < found)
        return INSUFFICIENT;
    for (unsigned at = 0; at < found; at++) {
        memset(&list[at], 0, sizeof list[at]);
        list[at].pid = 4243 - at;
    }
    return OK;
}

int nvmlDeviceGetNvLinkState(struct gpu *gpu, unsigned link, unsigned *active)
{
    called("nvlink");
    if (gpu->index != AMPERE)
        return UNSUPPORTED;
    *active = link != 11;
    return live(gpu);
}

#ifndef WITHOUT_FABRIC
struct fabric {
    unsigned char cluster[16];
    unsigned status, clique;
    unsigned char state;
};

struct fabric_v2 {
    unsigned version;
    unsigned char cluster[16];
    unsigned status, clique;
    unsigned char state;
    unsigned health;
};

int nvmlDeviceGetGpuFabricInfo(struct gpu *gpu, struct fabric *value)
{
    called("fabric");
    if (gpu->index == PLAIN)
        return UNSUPPORTED;
    value->state = 2;
    return live(gpu);
}

int nvmlDeviceGetGpuFabricInfoV(struct gpu *gpu, struct fabric_v2 *value)
{
    called("fabric");
    if (gpu->index >= AMPERE || value->version != (sizeof *value | 2u << 24))
        return VERSION_MISMATCH;
    value->state = 3;
    value->status = 0;
    value->health = 0x2;
    return live(gpu);
}
#endif

#ifndef WITHOUT_FIELD_VALUES
struct field {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int outcome;
    union {
        unsigned narrow;
        unsigned long long wide;
    } value;
};

static int narrow(struct field *field, unsigned value)
{
    field->type = 1;
    field->value.narrow = value;
    return OK;
}

static int wide(struct field *field, unsigned long long value)
{
    field->type = 3;
    field->value.wide = value;
    return OK;
}

static int ecc(const struct gpu *gpu, struct field *field, unsigned long long value)
{
    if (gpu->index == PLAIN)
        return UNSUPPORTED;
    return is("ecc_unknown.%d", gpu->index) ? UNKNOWN : wide(field, value);
}

static int link_field(const struct gpu *gpu, struct field *field)
{
    unsigned link = field->scope;
    if (gpu->index == AMPERE) {
        /* CRC of flits is the link's number, of data 0, replays 1, recoveries 2. */
        static const unsigned first[][3] = {{32, 96, 0}, {39, 102, 0}, {46, 108, 1}, {53, 114, 2}};
        for (unsigned run = 0; run < 4; run++)
            for (unsigned number = 0; number < 12; number++)
                if (field->id == (number < 6 ? first[run][0] + number : first[run][1] + number - 6))
                    return wide(field, run == 0 ? number : first[run][2]);
        if (link == 0xffffffff && (field->id == 138 || field->id == 139))
            return wide(field, field->id == 138 ? 5000 : 6000);
        return UNSUPPORTED;
    }
    if (gpu->index == PLAIN || link >= 18)
        return UNSUPPORTED;
    if (gpu->index == BLACKWELL) {
        switch (field->id) {
        case 165: return narrow(field, 1);
        case 202: return wide(field, 70000 + link);
        case 204: return wide(field, 80000 + link);
        case 208: return wide(field, 5);
        case 215: return wide(field, 3);
        default: return UNSUPPORTED;
        }
    }
    switch (field->id) {
    case 138: return wide(field, 1000 + link);
    case 139: return wide(field, 2000 + link);
    case 161: return narrow(field, 1);
    case 162: return narrow(field, 0);
    case 163: return narrow(field, link);
    case 165: return narrow(field, !(gpu->index == 1 && link == 3));
    default: return UNSUPPORTED;
    }
}

static int answer(const struct gpu *gpu, struct field *field)
{
    unsigned index = gpu->index;
    if (live(gpu) != OK)
        return live(gpu);
    switch (field->id) {
    case 3: return ecc(gpu, field, 10 + index);
    case 4: return ecc(gpu, field, index == 3 ? 2 : 0);
    case 5: return ecc(gpu, field, 100 + index);
    case 6: return ecc(gpu, field, 1 + index);
    case 82: return index == PLAIN ? UNSUPPORTED : narrow(field, 37 + index);
    case 91: return narrow(field, index == PLAIN ? 0 : index == AMPERE ? 12 : 18);
    case 94: return narrow(field, 150 + index);
    case 142: return narrow(field, index);
    case 143: return narrow(field, 1);
    case 144: return narrow(field, index == 4);
    case 145: return narrow(field, 0);
    case 230: return index == AMPERE ? UNSUPPORTED : narrow(field, index == 4);
    case 185: return index == AMPERE ? UNSUPPORTED : narrow(field, 300000 + index);
    default: return link_field(gpu, field);
    }
}

int nvmlDeviceGetFieldValues(struct gpu *gpu, int count, struct field *fields)
{
    called("fields");
    for (int at = 0; at < count; at++)
        fields[at].outcome = answer(gpu, &fields[at]);
    return OK;
}
#endif

#ifndef WITHOUT_EVENTS
struct event {
    struct gpu *gpu;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

/* How much of the file of events was handed out. */
static long taken;

int nvmlDeviceGetSupportedEventTypes(struct gpu *gpu, unsigned long long *types)
{
    *types = 0x1 | 0x2 | 0x4 | 0x8;
    return live(gpu);
}

int nvmlDeviceRegisterEvents(struct gpu *gpu, unsigned long long types, void *set)
{
    (void)set;
    return types & 0x4 ? INVALID : live(gpu);
}

int nvmlEventSetCreate(void **set)
{
    *set = malloc(1);
    return OK;
}

int nvmlEventSetFree(void *set)
{
    free(set);
    return OK;
}

#ifdef STILL
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms)
{
    (void)set;
    const struct timespec pause = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
    memset(event, 0, sizeof *event);
    nanosleep(&pause, NULL);
    return TIMEOUT;
}
#else
static int next(struct event *event)
{
    char path[4096], line[64];
    unsigned index;
    file(path, sizeof path, "events");
    FILE *events = fopen(path, "r");
    if (!events)
        return 0;
    int found = fseek(events, taken, SEEK_SET) == 0 && fgets(line, sizeof line, events)
        && strchr(line, '\n')
        && sscanf(line, "%u %llu %llu", &index, &event->type, &event->data) == 3 && index < GPUS;
    if (found) {
        taken += strlen(line);
        event->gpu = &gpus[index];
    } else if (taken > 0) {
        make("drained");
    }
    fclose(events);
    return found;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms)
{
    (void)set;
    const struct timespec pause = {0, 2000000};
    memset(event, 0, sizeof *event);
    for (unsigned waited = 0; !next(event); waited += 2) {
        if (waited >= timeout_ms)
            return TIMEOUT;
        nanosleep(&pause, NULL);
    }
    return OK;
}
#endif
#endif
