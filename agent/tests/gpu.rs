//! The GPU source against a stand-in for NVIDIA's library with eight GPUs, and against trees of
//! amdgpu's sysfs.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use weir_agent::gpu::{Gpu, Options, pci_address};
use weir_agent::kmsg::limiter::Shared;
use weir_agent::kmsg::{From, Kmsg};
use weir_agent::source::{ColumnKey, Event, Gathered, Severity};
use weir_wire::signal::{Entity, Signal};

/// Within this time an event arrives.
const DEADLINE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

fn meaning(code: u32) -> (Severity, String, String) {
    (
        Severity::Critical,
        format!("meaning of {code}"),
        "do it".to_owned(),
    )
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// A built stand-in and its directory of state.
struct Fake {
    dir: TempDir,
}

impl Fake {
    /// `None`, said aloud, without a C compiler.
    fn build(defines: &[&str]) -> Option<Fake> {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake { dir };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake-nvml/nvml.c");
        let compiler = Command::new("cc")
            .args([
                "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o",
            ])
            .args([fake.library(), source])
            .args(defines)
            .arg("-ldl")
            .output();
        let Ok(compiler) = compiler else {
            skipped("no C compiler (cc)");
            return None;
        };
        let said = String::from_utf8_lossy(&compiler.stderr);
        assert!(compiler.status.success(), "{said}");
        fs::create_dir(fake.state("")).unwrap();
        Some(fake)
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so")
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.d").join(name)
    }

    fn set(&self, name: &str) {
        fs::write(self.state(name), "").unwrap();
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.state(name)).unwrap();
    }

    /// Appends events, all at once for a reader.
    fn raise(&self, lines: &str) {
        let path = self.state("events");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let next = self.state("events.next");
        fs::write(&next, before + lines).unwrap();
        fs::rename(next, path).unwrap();
    }

    fn open(&self) -> Gpu {
        self.open_with(&Shared::default())
    }

    fn open_with(&self, limits: &Shared) -> Gpu {
        Gpu::open(Options {
            nvml_library: Some(self.library()),
            sysfs: self.dir.path().join("sys"),
            meaning,
            limits: limits.clone(),
        })
    }
}

fn address(gpu: u64) -> String {
    format!("0000:{:02x}:00.0", 0x1a + 0x10 * gpu)
}

fn poll(gpu: &mut Gpu, now: Duration) -> Gathered {
    let mut out = Gathered::default();
    gpu.poll(now, &mut out).unwrap();
    out
}

fn value(out: &Gathered, gpu: &str, signal: Signal, index: Option<u8>) -> Option<u64> {
    let key = ColumnKey {
        kind: Entity::Gpu,
        entity: gpu.to_owned(),
        signal,
        index,
    };
    out.columns.get(&key).map(|reading| reading.value)
}

/// Values of a GPU of the stand-in that have no index.
fn of(out: &Gathered, gpu: u64, signal: Signal) -> Option<u64> {
    value(out, &address(gpu), signal, None)
}

fn raw(out: &Gathered, gpu: &str, name: &str) -> Option<u64> {
    out.raw
        .iter()
        .find(|r| r.device == gpu && r.name == name)
        .map(|r| r.value)
}

fn columns(out: &Gathered, gpu: &str) -> usize {
    let read = |key: &&ColumnKey| key.entity == gpu && key.signal != Signal::Xids;
    out.columns.keys().filter(read).count()
}

/// Polls until the condition holds, and returns all events until then.
fn until(
    gpu: &mut Gpu,
    now: Duration,
    mut done: impl FnMut(&Gathered, &[Event]) -> bool,
) -> Vec<Event> {
    let start = Instant::now();
    let mut events = Vec::new();
    loop {
        let out = poll(gpu, now);
        events.extend(out.events.iter().cloned());
        if done(&out, &events) {
            return events;
        }
        assert!(start.elapsed() < DEADLINE, "seen only {events:?}");
        std::thread::yield_now();
    }
}

fn registered(out: &Gathered) -> bool {
    of(out, 0, Signal::Xids).is_some()
}

#[test]
fn eight_gpus_are_read() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    let out = poll(&mut gpu, SECOND);
    let expected = [
        (Signal::GpuTemperature, 33_000),
        (Signal::GpuMemoryTemperature, 40_000),
        (Signal::GpuPower, 300_003),
        (Signal::GpuUtilisation, 30),
        (Signal::GpuMemoryUsed, 3 << 30),
        (Signal::GpuMemoryTotal, 80 << 30),
        (Signal::EccCorrected, 13),
        (Signal::EccUncorrected, 2),
        (Signal::EccCorrectedLifetime, 103),
        (Signal::EccUncorrectedLifetime, 4),
        (Signal::RowsRemappedCorrected, 3),
        (Signal::RowsRemappedUncorrected, 1),
        (Signal::RowRemapPending, 0),
        (Signal::RowRemapFailure, 0),
        (Signal::PcieGeneration, 5),
        (Signal::PcieWidth, 16),
        (Signal::PcieReplays, 153),
        (Signal::ClockReasons, 1),
        (Signal::FabricState, 3),
        (Signal::PcieMaxGeneration, 5),
        (Signal::PcieMaxWidth, 16),
        (Signal::GpuTemperatureLimit, 92_000),
        (Signal::GpuMemoryTemperatureLimit, 105_000),
        (Signal::RecoveryAction, 0),
    ];
    for (signal, expected) in expected {
        assert_eq!(of(&out, 3, signal), Some(expected), "{signal:?}");
    }
    assert_eq!(of(&out, 4, Signal::RowRemapPending), Some(1));
    assert_eq!(of(&out, 0, Signal::ClockReasons), Some(0x44));
    assert_eq!(of(&out, 2, Signal::PcieWidth), Some(8));
    assert_eq!(of(&out, 4, Signal::RecoveryAction), Some(1));
    assert_eq!(raw(&out, &address(2), "fabric_health_mask"), Some(2));
    assert_eq!(raw(&out, &address(2), "fabric_status"), Some(0));
    assert_eq!(out.events, []);

    assert_eq!(out.info.len(), 8);
    let labels: BTreeMap<&str, String> = [
        ("name", "NVIDIA H100 80GB HBM3"),
        ("uuid", "GPU-00000000-0000-0000-0000-000000000003"),
        ("serial", "1650000000003"),
        ("vbios", "96.00.99.00.01"),
        ("driver", "580.105.08"),
        ("pci_address", "0000:4a:00.0"),
        ("vendor", "nvidia"),
    ]
    .into_iter()
    .map(|(key, label)| (key, label.to_owned()))
    .collect();
    assert_eq!(out.info[3].entity, "0000:4a:00.0");
    assert_eq!(out.info[3].labels, labels);

    let processes = gpu.processes();
    assert_eq!(processes.len(), 8);
    assert_eq!(processes[&address(0)], [4242, 4243]);
    assert_eq!(processes[&address(1)], [0; 0]);
}

#[test]
fn nvlinks_of_three_generations() {
    let Some(fake) = Fake::build(&[]) else { return };
    let out = poll(&mut fake.open(), SECOND);
    let link = |gpu, signal, link| value(&out, &address(gpu), signal, Some(link));

    assert_eq!(link(1, Signal::NvlinkUp, 3), Some(0));
    assert_eq!(link(1, Signal::NvlinkUp, 17), Some(1));
    assert_eq!(link(1, Signal::NvlinkUp, 18), None);
    assert_eq!(link(0, Signal::NvlinkTxBytes, 5), Some(1005 * 1024));
    assert_eq!(link(0, Signal::NvlinkRxBytes, 5), Some(2005 * 1024));
    assert_eq!(link(0, Signal::NvlinkErrors, 5), Some(6));
    assert_eq!(of(&out, 0, Signal::NvlinkTxBytes), None);
    let crc: u64 = (0..18).sum();
    assert_eq!(raw(&out, &address(0), "nvlink_receive_errors"), Some(crc));
    assert_eq!(raw(&out, &address(0), "nvlink_replays"), Some(18));
    assert_eq!(raw(&out, &address(0), "nvlink_recoveries"), Some(0));

    assert_eq!(link(5, Signal::NvlinkTxBytes, 2), Some(70_002));
    assert_eq!(link(5, Signal::NvlinkErrors, 2), Some(8));
    assert_eq!(raw(&out, &address(5), "nvlink_replays"), None);

    assert_eq!(link(6, Signal::NvlinkErrors, 7), Some(10));
    assert_eq!(link(6, Signal::NvlinkUp, 10), Some(1));
    assert_eq!(link(6, Signal::NvlinkUp, 11), Some(0));
    assert_eq!(of(&out, 6, Signal::NvlinkTxBytes), Some(5000 * 1024));
    assert_eq!(link(6, Signal::NvlinkTxBytes, 0), None);
}

#[test]
fn what_a_gpu_does_not_support_is_absent() {
    let Some(fake) = Fake::build(&[]) else { return };
    let out = poll(&mut fake.open(), SECOND);
    for signal in [
        Signal::EccCorrected,
        Signal::EccUncorrectedLifetime,
        Signal::GpuMemoryTemperature,
        Signal::GpuUtilisation,
        Signal::FabricState,
        Signal::NvlinkTxBytes,
        Signal::GpuTemperatureLimit,
    ] {
        assert_eq!(of(&out, 7, signal), None, "{signal:?}");
    }
    assert_eq!(value(&out, &address(7), Signal::NvlinkUp, Some(0)), None);
    assert_eq!(of(&out, 7, Signal::GpuTemperature), Some(37_000));
    assert_eq!(out.info[7].labels.get("serial"), None);
    // Ampere has no averaged power among its fields and the first version of the fabric's state.
    assert_eq!(of(&out, 6, Signal::GpuPower), Some(200_006));
    assert_eq!(of(&out, 6, Signal::FabricState), Some(2));
    assert_eq!(raw(&out, &address(6), "fabric_health_mask"), None);
}

#[test]
fn a_sample_costs_few_calls() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    poll(&mut gpu, SECOND);
    let mut calls = |now| {
        fake.set("calls");
        poll(&mut gpu, now);
        let text = fs::read_to_string(fake.state("calls")).unwrap();
        let mut count: BTreeMap<String, u32> = BTreeMap::new();
        for line in text.lines() {
            *count.entry(line.to_owned()).or_default() += 1;
        }
        count
    };
    let fast = calls(2 * SECOND);
    let expected = [
        // 18 links of 6 fields and 12 fields of the device are one batch.
        ("fields", 8),
        ("handle", 8),
        ("memory", 8),
        // Of the one GPU that has no field for it.
        ("power", 1),
        ("reasons", 8),
        ("temperature", 8),
        // The one that refused it is not asked again.
        ("utilisation", 7),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(fast, BTreeMap::from(expected));

    let slow = calls(12 * SECOND);
    assert_eq!(slow["link"], 16);
    assert_eq!((slow.get("name"), slow.get("threshold")), (None, None));
}

#[test]
fn parts_of_a_split_gpu_are_listed_and_counted_once() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    let out = poll(&mut gpu, SECOND);
    let parts: Vec<_> = out
        .gpu_parts
        .iter()
        .map(|part| (part.gpu.as_str(), part.index, part.uuid.as_str()))
        .collect();
    let split = address(7);
    let expected = [
        (
            split.as_str(),
            0,
            "MIG-00000000-0000-0000-0000-000000000100",
        ),
        (
            split.as_str(),
            2,
            "MIG-00000000-0000-0000-0000-000000000102",
        ),
    ];
    assert_eq!(parts, expected);
    assert_eq!(raw(&out, &split, "mig_mode"), Some(1));
    assert_eq!(raw(&out, &address(0), "mig_mode"), Some(0));
    assert_eq!(raw(&out, &address(6), "mig_mode"), None, "not supported");
    // The parts are no GPUs: neither in the list nor in any sum.
    assert_eq!(out.info.len(), 8);
    let with_memory = |key: &&ColumnKey| key.signal == Signal::GpuMemoryTotal;
    assert_eq!(out.columns.keys().filter(with_memory).count(), 8);
    // Between two slow readings they stand.
    assert_eq!(poll(&mut gpu, 2 * SECOND).gpu_parts, out.gpu_parts);
    fake.set("lost.7");
    assert_eq!(poll(&mut gpu, 20 * SECOND).gpu_parts, []);
    let processes = gpu.processes();
    assert_eq!(processes.get(&split), None, "a lost GPU does not tell");
    assert_eq!(processes.len(), 7);
}

#[test]
fn a_lost_gpu_leaves_the_others_and_comes_back() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    let healthy = poll(&mut gpu, SECOND);
    for how in ["lost.3", "gone.3", "invalid.3", "absent.3", "stale.3"] {
        fake.set(how);
        let out = poll(&mut gpu, 100 * SECOND);
        let [event] = out.events.as_slice() else {
            panic!("{:?}", out.events)
        };
        assert_eq!(
            (event.name, event.subject.as_str(), event.severity),
            ("gpu_lost", "0000:4a:00.0", Severity::Critical)
        );
        assert_eq!(columns(&out, &address(3)), 0, "{how}");
        assert_eq!(out.info.len(), 7);
        for other in [0, 1, 2, 4, 5, 6, 7] {
            let other = address(other);
            assert_eq!(columns(&out, &other), columns(&healthy, &other));
        }
        // Told once, and asked again with growing pauses: after 1, 2 and 4 seconds.
        let mut asked = Vec::new();
        for second in 100..=107 {
            fake.set("calls");
            let out = poll(&mut gpu, second * SECOND);
            assert_eq!(out.events, []);
            let calls = fs::read_to_string(fake.state("calls")).unwrap();
            if calls.lines().filter(|l| *l == "handle").count() == 8 {
                asked.push(second);
            }
        }
        assert_eq!(asked, [101, 103, 107], "{how}");
        fake.unset("calls");
        fake.unset(how);
        let out = poll(&mut gpu, 115 * SECOND);
        assert_eq!(out.events[0].name, "gpu_back", "{how}");
        assert_eq!(out.events[0].subject, address(3));
        assert_eq!(
            columns(&out, &address(3)),
            columns(&healthy, &address(3)),
            "{how}"
        );
    }
}

#[test]
fn a_gpu_lost_from_the_start_is_told_without_its_address() {
    let Some(fake) = Fake::build(&[]) else { return };
    fake.set("gone.5");
    let mut gpu = fake.open();
    let out = poll(&mut gpu, SECOND);
    assert_eq!(out.events.len(), 1);
    assert_eq!(out.events[0].subject, "");
    assert!(out.events[0].text.starts_with("GPU 5 "), "{:?}", out.events);
    fake.unset("gone.5");
    let out = poll(&mut gpu, 2 * SECOND);
    assert_eq!(out.events[0].subject, address(5));
    assert!(columns(&out, &address(5)) > 0);
}

#[test]
fn an_unknown_error_of_one_value_is_not_a_lost_gpu() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    poll(&mut gpu, SECOND);
    fake.set("ecc_unknown.2");
    let out = poll(&mut gpu, 2 * SECOND);
    assert_eq!(out.events, []);
    assert_eq!(of(&out, 2, Signal::EccCorrected), None);
    assert_eq!(of(&out, 2, Signal::RowsRemappedUncorrected), Some(1));
    fake.unset("ecc_unknown.2");
    let out = poll(&mut gpu, 3 * SECOND);
    assert_eq!(of(&out, 2, Signal::EccCorrected), Some(12));
}

#[test]
fn events_are_delivered() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    until(&mut gpu, SECOND, |out, _| registered(out));
    fake.raise("2 8 79\n6 8 999\n1 1 0\n4 2 0\n2 8 48\n");
    let events = until(&mut gpu, SECOND, |_, events| events.len() >= 5);
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e.source, e.name, e.subject.clone(), e.code, e.severity))
        .collect();
    let critical = Severity::Critical;
    assert_eq!(
        seen,
        [
            ("gpu", "xid", address(2), Some(79), critical),
            ("gpu", "xid", address(6), None, critical),
            ("gpu", "ecc_corrected", address(1), None, Severity::Info),
            ("gpu", "ecc_uncorrected", address(4), None, critical),
            ("gpu", "xid", address(2), Some(48), critical),
        ]
    );
    assert_eq!(
        (events[0].text.as_str(), events[0].action.as_str()),
        ("meaning of 79", "do it")
    );
    // The count outlives the GPU.
    fake.set("lost.2");
    let out = poll(&mut gpu, 2 * SECOND);
    assert_eq!(columns(&out, &address(2)), 0);
    assert_eq!(of(&out, 2, Signal::Xids), Some(2));
    assert_eq!(of(&out, 3, Signal::Xids), Some(0));
}

#[test]
fn a_returned_gpu_is_heard_again() {
    let Some(fake) = Fake::build(&[]) else { return };
    fake.set("lost.2");
    let mut gpu = fake.open();
    until(&mut gpu, SECOND, |out, _| registered(out));
    assert_eq!(of(&poll(&mut gpu, SECOND), 2, Signal::Xids), None);
    fake.unset("lost.2");
    until(&mut gpu, 3 * SECOND, |out, _| {
        of(out, 2, Signal::Xids) == Some(0)
    });
    fake.raise("2 8 63\n");
    let events = until(&mut gpu, 3 * SECOND, |_, events| !events.is_empty());
    assert_eq!(events[0].code, Some(63));
}

#[test]
fn a_flood_of_one_gpu_is_counted_and_leaves_the_others_theirs() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    until(&mut gpu, SECOND, |out, _| registered(out));
    fake.raise(&("0 8 31\n".repeat(2000) + "3 8 79\n"));
    let start = Instant::now();
    while !fake.state("drained").exists() {
        assert!(start.elapsed() < DEADLINE, "the events were not taken");
        std::thread::yield_now();
    }
    let out = poll(&mut gpu, SECOND);
    let codes: Vec<_> = out.events.iter().map(|e| e.code).collect();
    assert_eq!(codes, [Some(31), Some(79)]);
    assert!(out.events[0].text.ends_with("(2000 times at once)"));
    assert_eq!(raw(&out, "node", "suppressed"), Some(1999));
    assert_eq!(raw(&out, "node", "events_dropped"), Some(0));
    assert_eq!(of(&out, 0, Signal::Xids), Some(2000));
}

#[test]
fn a_fault_that_nvml_and_the_kernel_log_tell_is_one_event() {
    let Some(fake) = Fake::build(&[]) else { return };
    let limits = Shared::default();
    let log = fake.dir.path().join("kmsg");
    let write = |line: String| {
        let before = fs::read_to_string(&log).unwrap_or_default();
        fs::write(&log, before + &line).unwrap();
    };
    write(String::new());
    let mut kmsg = Kmsg::open(&log, From::Now, limits.clone()).unwrap();
    let mut gpu = fake.open_with(&limits);
    until(&mut gpu, SECOND, |out, _| registered(out));
    let line = |gpu: u64, rest: &str| {
        let bus = 0x1a + 0x10 * gpu;
        format!("3,1,1,-;NVRM: Xid (PCI:0000:{bus:02x}:00): {rest}\n")
    };
    // The log first, then NVML.
    write(line(2, "48, pid=1, Double Bit ECC Error"));
    let mut out = Gathered::default();
    kmsg.poll(SECOND, &mut out).unwrap();
    assert_eq!((out.events.len(), out.events[0].code), (1, Some(48)));
    fake.raise("2 8 48\n");
    let mut counted = Some(0);
    let events = until(&mut gpu, 2 * SECOND, |out, _| {
        counted = raw(out, "node", "deduplicated");
        counted == Some(1)
    });
    assert_eq!(events, []);
    // It is counted as what it is: an XID of this GPU.
    let seen = poll(&mut gpu, 2 * SECOND);
    assert_eq!(of(&seen, 2, Signal::Xids), Some(1));
    // NVML first, then the log.
    fake.raise("5 8 79\n");
    let events = until(&mut gpu, 3 * SECOND, |_, events| !events.is_empty());
    assert_eq!((events.len(), events[0].code), (1, Some(79)));
    write(line(5, "79, pid=1, GPU has fallen off the bus."));
    let mut out = Gathered::default();
    kmsg.poll(4 * SECOND, &mut out).unwrap();
    assert_eq!(out.events, []);
    assert_eq!(kmsg.held_back.deduplicated, 1);
}

#[test]
fn dropping_the_source_ends_the_thread_and_the_library() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut gpu = fake.open();
    until(&mut gpu, SECOND, |out, _| registered(out));
    drop(gpu);
    assert!(fake.state("shut").exists());
}

#[test]
fn a_missing_function_costs_its_values_only() {
    let Some(fake) = Fake::build(&["-DWITHOUT_FABRIC", "-DWITHOUT_EVENTS"]) else {
        return;
    };
    let out = poll(&mut fake.open(), SECOND);
    assert_eq!(of(&out, 0, Signal::FabricState), None);
    assert_eq!(of(&out, 0, Signal::Xids), None);
    assert_eq!(of(&out, 0, Signal::PcieWidth), Some(16));
    assert_eq!(of(&out, 0, Signal::EccCorrected), Some(10));
    assert_eq!(out.events, []);

    let fake = Fake::build(&["-DWITHOUT_FIELD_VALUES"]).unwrap();
    let out = poll(&mut fake.open(), SECOND);
    assert_eq!(of(&out, 0, Signal::EccCorrected), None);
    assert_eq!(value(&out, &address(0), Signal::NvlinkUp, Some(0)), None);
    assert_eq!(of(&out, 0, Signal::GpuPower), Some(200_000));
    assert_eq!(of(&out, 0, Signal::FabricState), Some(3));
    assert_eq!(out.events, []);
}

#[test]
fn without_a_driver_the_source_is_down_and_looks_again() {
    let Some(fake) = Fake::build(&[]) else { return };
    fake.set("unloaded");
    let mut gpu = fake.open();
    let mut out = Gathered::default();
    let why = gpu.poll(SECOND, &mut out).unwrap_err();
    assert_eq!(why, "NVML: NVIDIA driver is not loaded");
    fake.unset("unloaded");
    assert_eq!(gpu.poll(60 * SECOND, &mut out), Err(why));
    assert!(out.columns.is_empty() && out.info.is_empty() && out.events.is_empty());
    assert_eq!(poll(&mut gpu, 61 * SECOND).info.len(), 8);

    // Unloaded while it runs, it is down again; the GPUs are not lost.
    fake.set("unloaded");
    let why = gpu.poll(62 * SECOND, &mut out).unwrap_err();
    assert!(!why.contains('\n'), "{why}");
    assert_eq!(out.events, []);
    assert!(gpu.processes().is_empty());
    fake.unset("unloaded");
    assert_eq!(poll(&mut gpu, 122 * SECOND).info.len(), 8);
}

#[test]
fn without_a_library_the_source_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut gpu = Gpu::open(Options {
        nvml_library: Some(dir.path().join("libnvidia-ml.so.1")),
        sysfs: dir.path().to_owned(),
        meaning,
        limits: Shared::default(),
    });
    let mut out = Gathered::default();
    let why = gpu.poll(SECOND, &mut out).unwrap_err();
    assert!(why.starts_with("no NVIDIA driver library: "), "{why}");
    assert!(!why.contains('\n'), "{why}");
    assert!(out.columns.is_empty() && out.events.is_empty());
}

/// A tree of sysfs with eight MI300X and what else is found among the cards.
struct Sys {
    dir: TempDir,
}

fn amd_address(card: u64) -> String {
    format!("0000:{:02x}:00.0", 0x05 + 0x10 * card)
}

impl Sys {
    fn new() -> Sys {
        let sys = Sys {
            dir: tempfile::tempdir().unwrap(),
        };
        for card in 0..8 {
            sys.add(card);
        }
        let drm = sys.dir.path().join("class/drm");
        // A connector, a render node, a display card of the same vendor, a partition without a vendor.
        for (name, vendor, class) in [
            ("card0-DP-1", "0x1002", "0x120000"),
            ("renderD128", "0x1002", "0x120000"),
            ("card8", "0x1002", "0x030000"),
            ("card9", "0x1a03", "0x030200"),
        ] {
            let device = drm.join(name).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
            fs::write(device.join("class"), class).unwrap();
            fs::write(device.join("uevent"), "PCI_SLOT_NAME=0000:ff:00.0\n").unwrap();
        }
        fs::create_dir_all(drm.join("card10/device")).unwrap();
        sys
    }

    fn device(&self, card: u64) -> PathBuf {
        self.dir
            .path()
            .join(format!("devices/pci0000:00/{}", amd_address(card)))
    }

    fn write(&self, card: u64, file: &str, text: &str) {
        let path = self.device(card).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, card: u64, file: &str) {
        fs::remove_file(self.device(card).join(file)).unwrap();
    }

    fn add(&self, card: u64) {
        let slot = amd_address(card).to_uppercase();
        let files = [
            ("vendor", "0x1002\n".to_owned()),
            ("class", "0x120000\n".to_owned()),
            ("uevent", format!("DRIVER=amdgpu\nPCI_SLOT_NAME={slot}\n")),
            ("unique_id", format!("7a9b0c1d2e3f400{card}\n")),
            ("serial_number", "N/A\n".to_owned()),
            ("vbios_version", "113-M3000100-102\n".to_owned()),
            ("hwmon/hwmon4/name", "amdgpu\n".to_owned()),
            ("hwmon/hwmon4/temp2_label", "junction\n".to_owned()),
            ("hwmon/hwmon4/temp2_input", format!("{}\n", 41_000 + card)),
            ("hwmon/hwmon4/temp2_crit", "100000\n".to_owned()),
            ("hwmon/hwmon4/temp3_label", "mem\n".to_owned()),
            ("hwmon/hwmon4/temp3_input", format!("{}\n", 35_000 + card)),
            (
                "hwmon/hwmon4/power1_input",
                format!("{}\n", 132_000_000 + card * 1000),
            ),
            ("gpu_busy_percent", format!("{}\n", 90 + card)),
            ("mem_info_vram_used", format!("{}\n", card << 30)),
            ("mem_info_vram_total", format!("{}\n", 192_u64 << 30)),
            ("current_link_speed", "32.0 GT/s PCIe\n".to_owned()),
            ("max_link_speed", "32.0 GT/s PCIe\n".to_owned()),
            (
                "current_link_width",
                if card == 6 { "8\n" } else { "16\n" }.to_owned(),
            ),
            ("max_link_width", "16\n".to_owned()),
            ("pcie_replay_count", "3\n".to_owned()),
            (
                "ras/umc_err_count",
                format!("ue: {}\nce: {}\n", u64::from(card == 5), 2 * card),
            ),
            ("ras/gfx_err_count", "ue: 1\nce: 4\n".to_owned()),
            ("ras/sdma_err_count", "query not supported\n".to_owned()),
            ("ras/features", "feature mask: 0x7\n".to_owned()),
        ];
        for (file, text) in files {
            self.write(card, file, &text);
        }
        let node = self.dir.path().join(format!("class/drm/card{card}"));
        fs::create_dir_all(&node).unwrap();
        symlink(self.device(card), node.join("device")).unwrap();
    }

    fn open(&self) -> Gpu {
        Gpu::open(Options {
            nvml_library: Some(self.dir.path().join("none.so")),
            sysfs: self.dir.path().to_owned(),
            meaning,
            limits: Shared::default(),
        })
    }
}

#[test]
fn eight_amd_gpus_are_read() {
    let sys = Sys::new();
    let out = poll(&mut sys.open(), SECOND);
    let gpu = amd_address(5);
    let expected = [
        (Signal::GpuTemperature, 41_005),
        (Signal::GpuMemoryTemperature, 35_005),
        (Signal::GpuPower, 132_005),
        (Signal::GpuUtilisation, 95),
        (Signal::GpuMemoryUsed, 5 << 30),
        (Signal::GpuMemoryTotal, 192 << 30),
        (Signal::EccCorrected, 14),
        (Signal::EccUncorrected, 2),
        (Signal::PcieGeneration, 5),
        (Signal::PcieWidth, 16),
        (Signal::PcieReplays, 3),
        (Signal::PcieMaxGeneration, 5),
        (Signal::PcieMaxWidth, 16),
        (Signal::GpuTemperatureLimit, 100_000),
    ];
    for (signal, expected) in expected {
        assert_eq!(
            value(&out, &gpu, signal, None),
            Some(expected),
            "{signal:?}"
        );
    }
    assert_eq!(columns(&out, &gpu), expected.len());
    assert_eq!(
        value(&out, &amd_address(6), Signal::PcieWidth, None),
        Some(8)
    );
    for (name, expected) in [
        ("ras_umc_corrected", Some(10)),
        ("ras_gfx_uncorrected", Some(1)),
        ("ras_sdma_corrected", None),
    ] {
        assert_eq!(raw(&out, &gpu, name), expected, "{name}");
    }
    assert_eq!(out.info.len(), 8);
    let labels = &out.info[5].labels;
    assert_eq!(out.info[5].entity, gpu);
    assert_eq!(labels["uuid"], "7a9b0c1d2e3f4005");
    assert_eq!(labels["vbios"], "113-M3000100-102");
    assert_eq!(labels["pci_address"], gpu);
    assert_eq!(labels["vendor"], "amd");
    assert_eq!((labels.get("serial"), labels.get("name")), (None, None));
    assert_eq!(out.events, []);
}

#[test]
fn a_file_of_amdgpu_that_does_not_read_is_absent() {
    let sys = Sys::new();
    sys.write(0, "gpu_busy_percent", "\n");
    sys.write(0, "hwmon/hwmon4/temp2_input", "-1\n");
    sys.write(0, "current_link_speed", "Unknown\n");
    sys.write(0, "current_link_width", "255\n");
    sys.remove(0, "hwmon/hwmon4/power1_input");
    let out = poll(&mut sys.open(), SECOND);
    for signal in [
        Signal::GpuUtilisation,
        Signal::GpuTemperature,
        Signal::PcieGeneration,
        Signal::PcieWidth,
        Signal::GpuPower,
    ] {
        assert_eq!(
            value(&out, &amd_address(0), signal, None),
            None,
            "{signal:?}"
        );
    }
    let memory = value(&out, &amd_address(0), Signal::GpuMemoryTemperature, None);
    assert_eq!(memory, Some(35_000));
    assert_eq!(out.events, []);
}

#[test]
fn other_names_of_amdgpu_sensors() {
    let sys = Sys::new();
    sys.write(0, "hwmon/hwmon4/power1_average", "200000000\n");
    sys.write(0, "hwmon/hwmon4/temp2_label", "edge\n");
    sys.write(1, "hwmon/hwmon4/temp1_label", "edge\n");
    sys.write(1, "hwmon/hwmon4/temp1_input", "1\n");
    let out = poll(&mut sys.open(), SECOND);
    let of = |card, signal| value(&out, &amd_address(card), signal, None);
    assert_eq!(of(0, Signal::GpuPower), Some(200_000));
    assert_eq!(of(0, Signal::GpuTemperature), Some(41_000));
    assert_eq!(of(1, Signal::GpuTemperature), Some(41_001));
}

#[test]
fn a_block_that_fails_for_once_does_not_make_its_sum_fall() {
    let sys = Sys::new();
    let mut gpu = sys.open();
    poll(&mut gpu, SECOND);
    sys.write(2, "ras/umc_err_count", "");
    let out = poll(&mut gpu, 11 * SECOND);
    let of = |signal| value(&out, &amd_address(2), signal, None);
    assert_eq!(of(Signal::EccCorrected), None);
    assert_eq!(raw(&out, &amd_address(2), "ras_gfx_corrected"), Some(4));
    assert_eq!(out.events, []);
}

#[test]
fn a_lost_amd_gpu_leaves_the_others_and_comes_back() {
    let sys = Sys::new();
    let mut gpu = sys.open();
    let healthy = poll(&mut gpu, SECOND);
    fs::rename(sys.device(3), sys.dir.path().join("away")).unwrap();
    let out = poll(&mut gpu, 2 * SECOND);
    assert_eq!(out.events.len(), 1);
    assert_eq!(
        (out.events[0].name, out.events[0].subject.as_str()),
        ("gpu_lost", amd_address(3).as_str())
    );
    assert_eq!(columns(&out, &amd_address(3)), 0);
    assert_eq!(out.info.len(), 7);
    assert_eq!(
        columns(&out, &amd_address(4)),
        columns(&healthy, &amd_address(4))
    );
    assert_eq!(poll(&mut gpu, 3 * SECOND).events, []);

    fs::rename(sys.dir.path().join("away"), sys.device(3)).unwrap();
    fs::rename(
        sys.device(3).join("hwmon/hwmon4"),
        sys.device(3).join("hwmon/hwmon9"),
    )
    .unwrap();
    let out = poll(&mut gpu, 5 * SECOND);
    assert_eq!(out.events[0].name, "gpu_back");
    assert_eq!(
        columns(&out, &amd_address(3)),
        columns(&healthy, &amd_address(3))
    );
}

#[test]
fn an_amd_gpu_whose_sensors_are_silent_is_lost() {
    let sys = Sys::new();
    let mut gpu = sys.open();
    poll(&mut gpu, SECOND);
    for file in [
        "hwmon/hwmon4/temp2_input",
        "hwmon/hwmon4/temp3_input",
        "hwmon/hwmon4/power1_input",
        "gpu_busy_percent",
    ] {
        sys.write(1, file, "");
    }
    let out = poll(&mut gpu, 2 * SECOND);
    assert_eq!(out.events[0].name, "gpu_lost");
    assert_eq!(columns(&out, &amd_address(1)), 0);
}

#[test]
fn both_vendors_side_by_side() {
    let Some(fake) = Fake::build(&[]) else { return };
    let sys = Sys::new();
    let mut gpu = Gpu::open(Options {
        nvml_library: Some(fake.library()),
        sysfs: sys.dir.path().to_owned(),
        meaning,
        limits: Shared::default(),
    });
    assert_eq!(poll(&mut gpu, SECOND).info.len(), 16);
}

/// Captures of real machines; `WEIR_FIXTURES` or beside the checkout.
fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let dir = std::env::var_os("WEIR_FIXTURES").map_or(beside, PathBuf::from);
    let found = dir.join("nvidia-smi").is_dir();
    if !found {
        skipped("no captures of real machines");
    }
    found.then_some(dir)
}

#[test]
fn addresses_as_nvidia_prints_them() {
    let Some(fixtures) = fixtures() else { return };
    let boards = fixtures.join("nvidia-smi/k8s-test-infra/hardware");
    let mut seen = 0;
    for entry in fs::read_dir(boards).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        for printed in text.lines().filter_map(|l| {
            let value = l.trim().strip_prefix("<pci_bus_id>")?;
            value.strip_suffix("</pci_bus_id>")
        }) {
            // Eight digits of domain in capitals, of which the kernel prints at least four.
            let digits = printed.to_lowercase();
            let expected = digits.strip_prefix("0000").unwrap_or(&digits);
            assert_eq!(pci_address(printed).as_deref(), Some(expected));
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} addresses");
}
