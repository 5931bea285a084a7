//! GPUs as NVML shows them, on a stand-in library with eight of them (fake-nvml/nvml.c): what is
//! read, XIDs as events, one GPU that is lost, a library that lacks a function, no driver.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use weir_agent::gpu::GpuSource;
use weir_agent::kmsg::catalogue::meaning;
use weir_agent::source::{Event, Gathered, Severity};
use weir_wire::signal::{Entity, Signal};

/// The third GPU of the stand-in.
const GPU2: &str = "0000:1a:00.0";
const DEADLINE: Duration = Duration::from_secs(20);

/// The stand-in and its state. Each test is a process of its own, so the state is the process's.
struct Fake {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Fake {
    /// Builds it; `None`, and a word, without a C compiler.
    fn build(flags: &[&str]) -> Option<Fake> {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libnvidia-ml.so.1");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-nvml/nvml.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, Path::new(source)])
            .args(flags)
            .status();
        if !built.is_ok_and(|status| status.success()) {
            std::io::stderr()
                .write_all(b"SKIPPED: no C compiler that works\n")
                .ok();
            return None;
        }
        let fake = Fake { dir, library };
        fake.state("");
        Some(fake)
    }

    #[expect(
        unsafe_code,
        reason = "the stand-in reads where its state is from the environment"
    )]
    fn state(&self, text: &str) {
        let path = self.dir.path().join("state");
        let next = self.dir.path().join("next");
        std::fs::write(&next, text).unwrap();
        // At once, or a reader would find half of it.
        std::fs::rename(next, &path).unwrap();
        // SAFETY: set to the same value every time, before another thread reads it.
        unsafe { std::env::set_var("FAKE_NVML_STATE", &path) };
    }

    fn source(&self) -> GpuSource {
        GpuSource::new(Some(&self.library), self.dir.path(), meaning)
    }
}

fn poll(source: &mut GpuSource, second: u64) -> Gathered {
    let mut out = Gathered::default();
    source.poll(Duration::from_secs(second), &mut out).unwrap();
    out
}

fn gpus(out: &Gathered) -> usize {
    out.info
        .iter()
        .filter(|info| info.kind == Entity::Gpu)
        .count()
}

#[test]
fn eight_gpus_are_read_and_what_they_lack_is_absent() {
    let Some(fake) = Fake::build(&[]) else { return };
    let out = poll(&mut fake.source(), 1);
    assert_eq!(gpus(&out), 8);
    let value = |signal| out.get(Entity::Gpu, GPU2, signal);
    for (signal, expected) in [
        (Signal::GpuTemperature, 62_000),
        (Signal::GpuMemoryTemperature, 55_000),
        (Signal::GpuPower, 650_000),
        (Signal::GpuUtilisation, 99),
        (Signal::GpuMemoryUsed, 70 << 30),
        (Signal::ClockReasons, 4),
        (Signal::EccCorrected, 12),
        (Signal::EccUncorrected, 0),
        (Signal::PcieGeneration, 5),
        (Signal::PcieWidth, 8),
        (Signal::RowRemapPending, 0),
    ] {
        assert_eq!(value(signal), Some(expected), "{signal:?}");
    }
    for absent in [
        Signal::PcieReplays,
        Signal::EccCorrectedLifetime,
        Signal::FabricState,
    ] {
        assert_eq!(value(absent), None, "{absent:?}");
    }
    let info = out.info.iter().find(|info| info.entity == GPU2).unwrap();
    assert_eq!(info.labels["name"], "NVIDIA H100 80GB HBM3");
    assert_eq!(info.labels["driver"], "570.86.15");
    assert!(!info.labels.contains_key("serial"));
}

#[test]
fn each_link_has_its_state_its_errors_and_its_bytes() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut source = fake.source();
    // The links are known after the first look, their bytes are read from the next on.
    poll(&mut source, 1);
    let out = poll(&mut source, 2);
    let link = |signal, index| {
        let key = out.columns.keys().find(|key| {
            (key.entity.as_str(), key.signal, key.index) == (GPU2, signal, Some(index))
        })?;
        Some(out.columns[key].value)
    };
    assert_eq!(link(Signal::NvlinkUp, 3), Some(1));
    assert_eq!(link(Signal::NvlinkUp, 4), None, "it has four links");
    assert_eq!(link(Signal::NvlinkErrors, 1), Some(7));
    assert_eq!(link(Signal::NvlinkTxBytes, 3), Some(1003 * 1024));
    assert_eq!(link(Signal::NvlinkRxBytes, 0), Some(2000 * 1024));
}

#[test]
fn an_xid_is_an_event_with_its_meaning() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut source = fake.source();
    poll(&mut source, 1);
    fake.state("xid 2 79\n");
    let started = Instant::now();
    let event: Event = loop {
        let events = poll(&mut source, 2).events;
        if let Some(event) = events.into_iter().find(|event| event.name == "xid") {
            break event;
        }
        assert!(started.elapsed() < DEADLINE, "no event");
        std::thread::yield_now();
    };
    assert_eq!((event.subject.as_str(), event.code), (GPU2, Some(79)));
    assert_eq!(event.severity, Severity::Critical);
    assert!(
        event.text.contains("PCIe") && event.action.contains("reboot"),
        "{event:?}"
    );
}

#[test]
fn a_gpu_that_is_lost_is_told_once_and_leaves_the_others() {
    let Some(fake) = Fake::build(&[]) else { return };
    let mut source = fake.source();
    assert_eq!(gpus(&poll(&mut source, 1)), 8);
    fake.state("lost 2\n");
    let out = poll(&mut source, 2);
    assert_eq!(gpus(&out), 7);
    let lost: Vec<&Event> = out.events.iter().filter(|e| e.name == "gpu_lost").collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].subject, GPU2);
    for second in 3..40 {
        let out = poll(&mut source, second);
        assert_eq!((gpus(&out), out.events.len()), (7, 0), "{second}");
    }
    fake.state("");
    assert_eq!(gpus(&poll(&mut source, 200)), 8, "it is back");
}

#[test]
fn a_library_without_a_function_costs_one_value() {
    let Some(fake) = Fake::build(&["-DWITHOUT_POWER"]) else {
        return;
    };
    let out = poll(&mut fake.source(), 1);
    assert_eq!(out.get(Entity::Gpu, GPU2, Signal::GpuPower), None);
    assert_eq!(
        out.get(Entity::Gpu, GPU2, Signal::GpuTemperature),
        Some(62_000)
    );
}

#[test]
fn without_a_driver_the_source_is_down_and_comes_back() {
    let Some(fake) = Fake::build(&[]) else { return };
    fake.state("nodriver\n");
    let mut source = fake.source();
    let mut out = Gathered::default();
    let reason = source.poll(Duration::ZERO, &mut out).unwrap_err();
    assert!(
        reason.contains("driver") && !reason.contains('\n'),
        "{reason}"
    );
    fake.state("");
    assert!(
        source.poll(Duration::from_secs(30), &mut out).is_err(),
        "not asked again so soon"
    );
    source.poll(Duration::from_secs(61), &mut out).unwrap();
    assert_eq!(gpus(&out), 8);
}
