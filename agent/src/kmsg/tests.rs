//! Captures of real machines, and the kernel's own log.

use super::{From, Gathered, Kmsg, Rules, Shared, record};
use crate::source::{Event, Severity};
use proptest::prelude::*;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// The directory of captures; `None`, said aloud, where there is none.
fn captures() -> Option<PathBuf> {
    crate::testing::fixtures("kernel-log")
}

fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").unwrap();
}

/// Every event of a capture, before the limits.
fn events(path: &Path) -> Vec<Event> {
    let log = fs::read(path).unwrap();
    let mut rules = Rules::default();
    record::messages(&String::from_utf8_lossy(&log))
        .iter()
        .filter_map(|m| rules.read(m))
        .collect()
}

/// The events as `name[:code] subject severity`.
fn summary(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|e| {
            let code = e.code.map(|c| format!(":{c}")).unwrap_or_default();
            format!("{}{code} {} {:?}", e.name, e.subject, e.severity)
        })
        .collect()
}

fn expect(file: &str, expected: &[&str]) {
    if let Some(captures) = captures() {
        assert_eq!(summary(&events(&captures.join(file))), expected, "{file}");
    }
}

#[test]
fn one_memory_fault_gives_a_chain_of_three() {
    expect(
        "snippets/xid-48-63-94-chain-a100.log",
        &[
            "xid:48 0000:52:00.0 Critical",
            "xid:63 0000:52:00.0 Info",
            "xid:94 0000:52:00.0 Warning",
        ],
    );
}

#[test]
fn rare_spellings() {
    expect(
        "snippets/xid-rare.log",
        &[
            "xid:119 000f:01:00.0 Critical",
            "xid:120 000f:01:00.0 Critical",
            "xid:95 0000:37:00.0 Critical",
            "xid:94 0000:01:00.0 Warning",
            "xid:95 0000:01:00.0 Critical",
            "xid:32 0000:01:00.0 Warning",
            "xid:32 0000:01:00.0 Warning",
            "gpu_lost 0000:b3:00.0 Critical",
            "xid:74 0003:00:00.0 Critical",
            "xid:62 0000:01:00.0 Critical",
            "xid:45 0000:01:00.0 Info",
            "xid:45 0000:02:00.0 Info",
            "xid:45 0000:02:00.0 Info",
            "xid:63 0000:10:1c.0 Info",
            "xid:63 0000:52:00.0 Info",
            "xid:94 0000:52:00.0 Warning",
        ],
    );
}

#[test]
fn gsp_timeouts() {
    let line = "xid:119 0000:9b:00.0 Critical";
    expect("gpud/xid__dmesg-with-xid-119.log", &[line; 5]);
}

#[test]
fn graphics_exceptions_of_one_process() {
    let mut expected = vec!["xid:13 0000:38:00.0 Warning"; 16];
    expected.push("xid:43 0000:38:00.0 Warning");
    expect("gpud/memory__dmesg.decode.iso.log", &expected);
}

#[test]
fn a_nic_whose_pci_is_gone() {
    expect(
        "snippets/mlx5-health-pci-gone-s390.log",
        &[
            "nic_health 0000:00:00.0 Critical",
            "nic_health 0000:00:00.0 Critical",
            "nic_health 0000:00:00.0 Critical",
            "nic_health:255 0000:00:00.0 Critical",
            "nic_health 0000:00:00.0 Critical",
            "nic_health 0000:00:00.0 Warning",
            "nic_health 0000:00:00.0 Warning",
            "nic_health 0000:00:00.0 Warning",
        ],
    );
}

#[test]
fn modules_and_ports_of_mlx5() {
    expect(
        "snippets/mlx5-port-module.log",
        &[
            "module_error 0000:81:00.0 Critical",
            "nic_health 0002:01:00.0 Warning",
            "module_removed 0000:41:00.1 Warning",
            "link_up enp65s0f0np0 Info",
            "link_up mlx5_5/1 Info",
        ],
    );
}

#[test]
fn corrected_errors_name_the_device() {
    expect(
        "snippets/aer-corrected.log",
        &[
            "aer_corrected 0000:00:06.0 Info",
            "aer_corrected 0000:00:06.0 Info",
            "aer_corrected 0000:02:00.0 Info",
            "aer_corrected 0000:02:00.0 Info",
            "aer_corrected 0000:00:1c.5 Info",
        ],
    );
}

#[test]
fn what_a_crash_left_behind() {
    let removed = "module_removed 0000:41:00.1 Warning";
    let up = "link_up enp65s0f0np0 Info";
    expect("gpud/pstore/dmesg-erst-7530486857247752194", &[removed]);
    expect("gpud/pstore/dmesg-erst-7530486857247752193", &[up]);
    expect("gpud/pstore/dmesg.txt", &[removed, up]);
}

#[test]
fn healthy_logs_and_other_files_have_no_event() {
    for file in [
        "gpud/kmsg__kmsg.1.log",
        "gpud/kmsg__kmsg.2.peermem.log",
        "gpud/pstore__dmesg-erst.txt",
        "gpud/nccl__dmesg.decode.iso.log",
        "gpud/fabric-manager__fabricmanager.log",
        "gpud/fabric-manager__nvidia-smi.nvlink.status.a100",
        "gpud/fabric-manager__lspci.nn.a100",
        "gpud/lspci-vvv.txt",
    ] {
        expect(file, &[]);
    }
}

/// No capture is left out of the tests above by being new.
#[test]
fn every_capture_is_read() {
    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        entries
            .flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] })
            .collect()
    }
    if let Some(captures) = captures() {
        let files = files(&captures);
        assert!(files.len() >= 16);
        for event in files.iter().flat_map(|f| events(f)) {
            assert!(!event.text.is_empty() && event.source == "kmsg");
        }
    }
}

/// A capture of raw records through the whole path: read, classified, limited.
#[test]
fn a_recording_is_polled_and_limited() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for n in 0..5_000 {
        let line = "NVRM: Xid (PCI:0000:3b:00): 13, pid=9, name=a, Graphics Exception";
        writeln!(file, "4,{n},{n},-;{line}").unwrap();
    }
    writeln!(
        file,
        "3,5000,5000,-;NVRM: Xid (PCI:0000:5e:00): 79, GPU has fallen off the bus."
    )
    .unwrap();
    writeln!(file, "nonsense").unwrap();

    let mut kmsg = Kmsg::open(file.path(), From::Boot, Shared::default()).unwrap();
    let mut out = Gathered::default();
    let mut calls = 1;
    while kmsg.poll(Duration::from_secs(5), &mut out).unwrap() {
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert_eq!(
        summary(&out.events),
        [
            "xid:13 0000:3b:00.0 Warning",
            "xid:79 0000:5e:00.0 Critical"
        ]
    );
    assert_eq!((kmsg.lines, kmsg.held_back.suppressed), (5_001, 4_999));
    assert_eq!((kmsg.lost, kmsg.malformed), (0, 1));
}

#[test]
fn what_repeats_says_how_often() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut kmsg = Kmsg::open(file.path(), From::Now, Shared::default()).unwrap();
    let mut texts = Vec::new();
    for second in [0, 1, 2, 100] {
        writeln!(file, "4,1,1,-;mlx5_core 0000:41:00.0 eth2: Link down").unwrap();
        let mut out = Gathered::default();
        kmsg.poll(Duration::from_secs(second), &mut out).unwrap();
        texts.extend(out.events.into_iter().map(|e| e.text));
    }
    assert_eq!(
        texts,
        [
            "link went down",
            "link went down (and 2 times since the last report)"
        ]
    );
}

#[test]
fn the_kernels_tag_names_the_device_that_the_message_does_not() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(
        file,
        "3,1,1,-;NVRM: GPU has fallen off the bus.\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0"
    )
    .unwrap();
    let mut out = Gathered::default();
    Kmsg::open(file.path(), From::Boot, Shared::default())
        .unwrap()
        .poll(Duration::ZERO, &mut out)
        .unwrap();
    assert_eq!(summary(&out.events), ["gpu_lost 0000:3b:00.0 Critical"]);
}

#[test]
fn a_message_of_several_lines_is_one_record() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, r"3,1,1,-;NVRM: The NVIDIA GPU 0000:5e:00.0\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\x0aNVRM: fallen off the bus and is not responding to commands.").unwrap();
    let mut out = Gathered::default();
    Kmsg::open(file.path(), From::Boot, Shared::default())
        .unwrap()
        .poll(Duration::ZERO, &mut out)
        .unwrap();
    assert_eq!(summary(&out.events), ["gpu_lost 0000:5e:00.0 Critical"]);
}

#[test]
fn control_characters_and_length_of_a_text_are_bounded() {
    let name = "x\u{1b}[31m".repeat(1_000);
    let line = format!("NVRM: Xid (PCI:0000:3b:00): 43, pid=9, name=a, {name}");
    let event = super::classify_line(&line).unwrap();
    assert!(event.text.chars().count() <= super::TEXT_CHARS_MAX);
    assert!(!event.text.contains(char::is_control));
}

/// A line that root writes to the real log is found among whatever else is logged.
#[test]
fn the_real_log_is_read() {
    let path = Path::new("/dev/kmsg");
    let opened = Kmsg::open(path, From::Now, Shared::default())
        .and_then(|kmsg| Ok((kmsg, fs::OpenOptions::new().write(true).open(path)?)));
    let (mut kmsg, mut log) = match opened {
        Ok(opened) => opened,
        Err(error) => return say(&format!("skipped: /dev/kmsg: {error}")),
    };
    // A domain of its own, as others may be writing such lines too.
    let place = format!("{:04x}:ff:1f", std::process::id());
    // XID 106 is NVIDIA's own test message: nobody who watches this machine is alarmed. Without the
    // end of the line the kernel waits for more of it.
    let line = format!("NVRM: Xid (PCI:{place}): 106, pid=1, name=weir-test, only a test\n");
    if let Err(error) = log.write_all(line.as_bytes()) {
        return say(&format!("skipped: /dev/kmsg: {error}"));
    }
    let mut out = Gathered::default();
    // Bounded, as others may be logging all the time.
    for _ in 0..100 {
        if !kmsg.poll(Duration::ZERO, &mut out).unwrap() {
            break;
        }
    }
    let subject = format!("{place}.0");
    let found = out.events.iter().find(|e| e.subject == subject).unwrap();
    assert_eq!((found.name, found.code), ("xid", Some(106)));
    assert_eq!(found.severity, Severity::Info);
    assert!(found.text.contains("only a test (process weir-test, 1)"));
    assert!(kmsg.lines >= 1);
}

/// `scan` reads what the kernel remembers; every record of a real kernel is understood.
#[test]
fn the_real_log_from_boot_is_understood() {
    match Kmsg::open(Path::new("/dev/kmsg"), From::Boot, Shared::default()) {
        Err(error) => say(&format!("skipped: /dev/kmsg: {error}")),
        Ok(mut kmsg) => {
            let mut out = Gathered::default();
            for _ in 0..100 {
                if !kmsg.poll(Duration::ZERO, &mut out).unwrap() {
                    break;
                }
            }
            assert_eq!(kmsg.malformed, 0);
        }
    }
}

/// Beginnings that lead into every rule.
const BEGINNINGS: &[&str] = &[
    "",
    "NVRM: ",
    "NVRM: Xid (PCI:0000:3b:00): ",
    "NVRM: Xid (PCI:0000:3b:00): 149, NETIR Fatal ",
    "NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from ",
    "NVRM: Xid (",
    "nvidia-nvswitch1: SXid (PCI:0000:c1:00.0): ",
    "NVRM: The NVIDIA GPU ",
    "mlx5_core 0000:41:00.0: ",
    "mlx5_core 0000:41:00.0: Port module event",
    "mlx5_core 0000:41:00.0: f:1:(pid ",
    "mlx5_core 0000:41:00.0: synd 0x",
    "mlx5_core 0000:41:00.0: Health issue observed, ",
    "mlx5_core 0000:41:00.0 mlx5_5: Port: ",
    "eth0: Link ",
    "pcieport 0000:00:06.0: AER: ",
    "pcieport 0000:00:06.0: PCIe Bus Error: severity=",
    "pci 0000:05:00.0: 4 Gb/s available PCIe bandwidth, limited by ",
];

proptest! {
    #[test]
    fn any_message_is_read(begin in prop::sample::select(BEGINNINGS), rest in "[\\PC\n\t(){}\\[\\]:;,=x0-9]{0,120}") {
        let message = format!("{begin}{rest}");
        if let Some(event) = super::classify_line(&message) {
            prop_assert!(!event.text.contains(char::is_control));
            prop_assert!(event.text.chars().count() <= super::TEXT_CHARS_MAX);
        }
    }

    #[test]
    fn any_bytes_in_the_log_are_read(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let mut kmsg = Kmsg::open(file.path(), From::Boot, Shared::default()).unwrap();
        prop_assert!(!kmsg.poll(Duration::ZERO, &mut Gathered::default()).unwrap() || kmsg.lines > 0);
    }
}
