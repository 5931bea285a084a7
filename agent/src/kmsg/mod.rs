//! Source *kmsg*: what the kernel's log says of GPUs, NICs and PCI Express.

pub mod catalogue;
mod limiter;
pub mod other;
pub mod record;
pub mod xid;

use crate::source::{Event, Gathered};
use limiter::Limiter;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

/// The kernel's longest record, with its properties (CONSOLE_EXT_LOG_MAX).
const RECORD_BYTES: usize = 8192;
/// Records read in one go: a flood waits in the kernel's ring, or is overwritten there and counted.
const RECORDS_MAX: usize = 2000;
/// Records of the first reading from boot on: more than any kernel's ring holds.
const RECORDS_SINCE_BOOT_MAX: usize = 1_000_000;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// What is written from now on.
    Now,
    /// The oldest record that the kernel still has.
    Boot,
}

/// Lines to events: rules, and the limits that keep a flood from becoming one of events.
#[derive(Debug, Default)]
pub struct Lines {
    xids: xid::Parser,
    limiter: Limiter,
}

impl Lines {
    /// The event of a line, if it has one that is to be told.
    pub fn line(&mut self, message: &str, now: Duration) -> Option<Event> {
        let event = self.xids.line(message).or_else(|| other::line(message))?;
        self.limiter.admit(&event, now).then_some(event)
    }
}

/// The source.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    lines: Lines,
    next_seq: Option<u64>,
    /// Records that the next reading may take.
    budget: usize,
    /// Records that were overwritten before they were read.
    pub lost: u64,
}

impl Kmsg {
    /// Opens `/dev/kmsg` or what stands in for it.
    ///
    /// # Errors
    /// No such file, or no right to read the kernel's log (`kernel.dmesg_restrict`, CAP_SYSLOG).
    pub fn open(path: &Path, from: From) -> io::Result<Kmsg> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if from == From::Now {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Kmsg {
            file,
            lines: Lines::default(),
            next_seq: None,
            budget: match from {
                From::Now => RECORDS_MAX,
                From::Boot => RECORDS_SINCE_BOOT_MAX,
            },
            lost: 0,
        })
    }

    /// Events that were not told because there were too many.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.lines.limiter.suppressed
    }

    /// Reads what has been written since the last time.
    ///
    /// # Errors
    /// The kernel refuses to go on.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> io::Result<()> {
        let mut buffer = [0; RECORD_BYTES];
        for _ in 0..std::mem::replace(&mut self.budget, RECORDS_MAX) {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => self.record(buffer.get(..length).unwrap_or_default(), now, out),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Overwritten: the next read begins at the oldest that is left, and its number
                // tells how many are lost. EINVAL: a record longer than the buffer is passed over.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EINVAL))
                        || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn record(&mut self, bytes: &[u8], now: Duration, out: &mut Gathered) {
        let Some(record) = record::parse(bytes) else {
            return;
        };
        if let Some(expected) = self.next_seq {
            self.lost += record.seq.saturating_sub(expected);
        }
        self.next_seq = Some(record.seq + 1);
        out.events.extend(self.lines.line(record.text, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Severity;
    use std::io::Write as _;

    /// Events of a capture, as if it had been read in one go.
    fn events(file: &str) -> Option<Vec<Event>> {
        let root = crate::testing::fixtures("kernel-log")?;
        let text = std::fs::read(root.join(file)).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines = Lines::default();
        let mut events = Vec::new();
        for line in text.lines() {
            events.extend(lines.line(record::message(line), Duration::from_secs(1)));
        }
        Some(events)
    }

    fn codes(events: &[Event]) -> Vec<u32> {
        events.iter().filter_map(|e| e.code).collect()
    }

    #[test]
    fn one_fault_gives_its_chain_of_three() {
        let Some(events) = events("snippets/xid-48-63-94-chain-a100.log") else {
            return;
        };
        assert_eq!(codes(&events), [48, 63, 94]);
        assert!(events.iter().all(|e| e.subject == "0000:52:00.0"));
    }

    #[test]
    fn captures_of_xids_give_the_events_that_stand_in_them() {
        for (file, expected) in [
            ("gpud/xid__dmesg-with-xid-119.log", vec![119]),
            ("gpud/memory__dmesg.decode.iso.log", vec![13, 43]),
        ] {
            let Some(events) = events(file) else { return };
            assert_eq!(codes(&events), expected, "{file}");
        }
        let Some(rare) = events("snippets/xid-rare.log") else {
            return;
        };
        for code in [119, 120, 95, 94, 32, 74, 62, 45, 63] {
            assert!(codes(&rare).contains(&code), "{code}");
        }
        let lost: Vec<&Event> = rare.iter().filter(|e| e.name == "gpu_lost").collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].subject, "0000:b3:00.0");
    }

    #[test]
    fn captures_of_nics_and_pcie_give_theirs() {
        let names = |file: &str| {
            let events = events(file)?;
            let mut names: Vec<&str> = events.iter().map(|e| e.name).collect();
            names.dedup();
            Some(names.join(" "))
        };
        let Some(gone) = names("snippets/mlx5-health-pci-gone-s390.log") else {
            return;
        };
        assert_eq!(gone, "nic_health nic_command_timeout");
        let module = names("snippets/mlx5-port-module.log").unwrap();
        assert_eq!(
            module,
            "module_error nic_power module_removed link_up link_down link_up"
        );
        let aer = names("snippets/aer-corrected.log").unwrap();
        assert_eq!(aer, "aer_corrected");
    }

    #[test]
    fn every_capture_is_read_to_its_end() {
        let Some(root) = crate::testing::fixtures("kernel-log") else {
            return;
        };
        for folder in ["gpud", "snippets"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap().flatten() {
                if entry.path().is_file() {
                    let name = entry.file_name().into_string().unwrap();
                    assert!(events(&format!("{folder}/{name}")).is_some(), "{name}");
                }
            }
        }
    }

    #[test]
    fn records_that_were_overwritten_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsg");
        std::fs::write(&path, "").unwrap();
        let mut kmsg = Kmsg::open(&path, From::Boot).unwrap();
        let mut out = Gathered::default();
        for seq in [7, 8, 12] {
            let record = format!("4,{seq},1,-;NVRM: Xid (PCI:0000:52:00): 79, pid=1, gone");
            kmsg.record(record.as_bytes(), Duration::ZERO, &mut out);
        }
        assert_eq!(kmsg.lost, 3);
        assert_eq!((out.events.len(), kmsg.suppressed()), (1, 2));
        assert_eq!(out.events[0].severity, Severity::Critical);
    }

    #[test]
    fn a_line_written_to_the_real_log_is_read_from_it() {
        let Ok(mut kmsg) = Kmsg::open(Path::new("/dev/kmsg"), From::Now) else {
            io::stderr()
                .write_all(b"SKIPPED: no right to read /dev/kmsg\n")
                .ok();
            return;
        };
        let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") else {
            io::stderr()
                .write_all(b"SKIPPED: no right to write /dev/kmsg\n")
                .ok();
            return;
        };
        let mark = std::process::id();
        let line = format!("NVRM: Xid (PCI:00ff:1f:00): 79, pid={mark}, test {mark}\n");
        if log.write_all(line.as_bytes()).is_err() {
            io::stderr()
                .write_all(b"SKIPPED: /dev/kmsg takes no lines here\n")
                .ok();
            return;
        }
        let mut out = Gathered::default();
        kmsg.poll(Duration::ZERO, &mut out).unwrap();
        let mine = out
            .events
            .iter()
            .find(|e| e.text.ends_with(&format!("test {mark}")));
        assert_eq!(mine.map(|e| e.subject.as_str()), Some("00ff:1f:00.0"));
    }
}
