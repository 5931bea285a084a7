//! What the kernel's log tells since the node started: each fault once, how often, how long ago, and
//! whether it still stands.
//!
//! A fault is told as it is while it is younger than [`RECENT`], and for as long as it asks for a
//! reset, a reboot or hands on the machine and no sign says that it got them. Signs are: the driver
//! was loaded again, which resets its GPUs but brings back none that needs a reboot; an XID 154 that
//! says that nothing is left to do; the driver's own answer that it asks for nothing (NVML's recovery
//! action). What is only old is told one level milder, what was mended is ok. A reboot empties the log.

use super::{Finding, Level};
use crate::kmsg::reader::{From, Reader};
use crate::kmsg::record::Record;
use crate::kmsg::{Rules, outlasts_reset};
use crate::source::{Event, Gathered, Severity};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// Who looks at a node each day sees each fault once as it is. No data yet on a better value.
const RECENT: Duration = Duration::from_hours(24);
/// Faults told apart: more than the devices of a node have kinds of error. Beyond is counted.
const FAULTS_MAX: usize = 1024;
/// Read at once.
const BATCH: usize = 10_000;
/// A log of 16 MiB, larger than kernels are configured with, holds some 150,000 records; a program
/// that writes all the time does not keep the look from its end.
const RECORDS_MAX: usize = 500_000;

/// Faults that ask for a reset, a reboot or hands on the machine, where they are critical.
const LASTING: [&str; 4] = ["xid", "sxid", "gpu_lost", "nic_health"];
/// Of those, what a new start of NVIDIA's driver mends.
const OF_GPUS: [&str; 3] = ["xid", "sxid", "gpu_lost"];
/// Events that undo another of the same subject: links go down at every start.
const UNDONE: [(&str, &str); 2] = [
    ("link_up", "link_down"),
    ("module_inserted", "module_removed"),
];

/// Name, subject and code of an event, whichever source tells it.
type Key = (&'static str, String, Option<u32>);

/// One fault.
#[derive(Debug)]
struct Fault {
    /// The gravest, and of those the last.
    event: Event,
    times: u64,
    /// When it was last told; monotonic, since boot.
    at: Duration,
    /// What mended it after that.
    mended: Option<&'static str>,
}

/// What happened since the node started.
#[derive(Debug, Default)]
pub struct History {
    faults: BTreeMap<Key, Fault>,
    rules: Rules,
    /// Events that found no room.
    dropped: u64,
    records: u64,
    /// The oldest record was not the kernel's first: what was before is overwritten.
    since: Option<Duration>,
}

impl History {
    /// Reads the log from its beginning.
    ///
    /// # Errors
    /// It cannot be read: it is not there, or restricted (`kernel.dmesg_restrict`).
    pub fn read(path: &Path) -> io::Result<History> {
        let mut reader = Reader::open(path, From::Boot)?;
        let mut history = History::default();
        for _ in 0..RECORDS_MAX / BATCH {
            let drained = reader.drain(BATCH)?;
            for record in &drained.records {
                history.record(record);
            }
            if !drained.more {
                break;
            }
        }
        Ok(history)
    }

    fn record(&mut self, record: &Record) {
        if self.records == 0 && record.sequence > 0 {
            self.since = Some(record.at);
        }
        self.records += 1;
        if record.text.starts_with("NVRM: loading NVIDIA UNIX") {
            self.mend("the driver was loaded again", |event| {
                OF_GPUS.contains(&event.name) && !outlasts_reset(event)
            });
        } else if let Some(device) = mlx5_start(&record.text) {
            self.mend("its driver was started again", |event| {
                event.name.starts_with("nic_") && event.subject == device
            });
        }
        if let Some(event) = self.rules.event(record) {
            self.take(event, record.at);
        }
    }

    /// Takes an event that was told at the monotonic time `at`. Order is that of their times.
    pub fn take(&mut self, event: Event, at: Duration) {
        if (event.name, event.code, event.severity) == ("xid", Some(154), Severity::Info) {
            return self.mend("the driver asks for nothing more", |fault| {
                OF_GPUS.contains(&fault.name) && fault.subject == event.subject
            });
        }
        if let Some((_, undone)) = UNDONE.iter().find(|(by, _)| *by == event.name) {
            self.faults
                .retain(|(name, subject, _), _| name != undone || *subject != event.subject);
        }
        if event.severity == Severity::Info {
            return;
        }
        let key = (event.name, event.subject.clone(), event.code);
        if let Some(fault) = self.faults.get_mut(&key) {
            // What another source tells of the same is no second time.
            fault.times += u64::from(fault.event.source == event.source);
            fault.at = at;
            if fault.mended.take().is_some() || event.severity >= fault.event.severity {
                fault.event = event;
            }
        } else if self.faults.len() < FAULTS_MAX {
            let fault = Fault {
                event,
                times: 1,
                at,
                mended: None,
            };
            self.faults.insert(key, fault);
        } else {
            self.dropped += 1;
        }
    }

    fn mend(&mut self, how: &'static str, mended: impl Fn(&Event) -> bool) {
        for fault in self.faults.values_mut().filter(|f| mended(&f.event)) {
            fault.mended = Some(how);
        }
    }

    /// How much there was to read, at the monotonic time `now`.
    #[must_use]
    pub fn extent(&self, now: Duration) -> String {
        match self.since {
            None => format!("{} records since boot", self.records),
            Some(since) => format!(
                "{} records, the oldest {}: what was before is overwritten (log_buf_len)",
                self.records,
                ago(now.saturating_sub(since))
            ),
        }
    }

    /// One line for each fault, at the monotonic time `now`.
    #[must_use]
    pub fn findings(&self, now: Duration, gathered: &Gathered) -> Vec<Finding> {
        let faults = self.faults.values();
        let mut found: Vec<Finding> = faults.map(|f| f.finding(now, gathered)).collect();
        if self.dropped > 0 {
            found.push(Finding {
                subject: "kmsg".into(),
                level: Level::Warning,
                finding: format!("{} more events of other kinds or devices", self.dropped),
                action: "read the kernel log".into(),
            });
        }
        found
    }
}

impl Fault {
    fn finding(&self, now: Duration, gathered: &Gathered) -> Finding {
        let event = &self.event;
        let age = now.saturating_sub(self.at);
        let asks = gathered.get(Entity::Gpu, &event.subject, Signal::RecoveryAction);
        let critical = event.severity == Severity::Critical;
        let stands = critical && LASTING.contains(&event.name) && asks != Some(0);
        let (level, mended) = match (self.mended, event.severity) {
            (Some(how), _) => (Level::Ok, format!("; since then {how}")),
            (None, Severity::Critical) if stands || age < RECENT => {
                (Level::Critical, String::new())
            }
            (None, Severity::Critical) => (Level::Warning, String::new()),
            (None, Severity::Warning) if age < RECENT => (Level::Warning, String::new()),
            (None, Severity::Warning | Severity::Info) => (Level::Ok, String::new()),
        };
        let ago = ago(age);
        let times = match self.times {
            1 => ago,
            times => format!("{times} times, the last {ago}"),
        };
        Finding {
            subject: format!("{} {}", event.source, event.subject),
            level,
            finding: format!("{} ({times}{mended})", event.text),
            action: match level {
                Level::Ok => String::new(),
                Level::Warning | Level::Critical => event.action.clone(),
            },
        }
    }
}

/// The function of a NIC that mlx5's driver has started: it logs its firmware then
/// (drivers/net/ethernet/mellanox/mlx5/core/main.c).
fn mlx5_start(text: &str) -> Option<&str> {
    let (device, rest) = text.strip_prefix("mlx5_core ")?.split_once(": ")?;
    rest.starts_with("firmware version: ").then_some(device)
}

/// `5 min ago`, in the largest unit that fits.
fn ago(age: Duration) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let seconds = age.as_secs();
    match units.iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => format!("{} {name} ago", seconds / unit),
        None => format!("{seconds} s ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Reading;
    use proptest::prelude::*;

    const DAY: u64 = 86_400;
    const LOADED: &str =
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.144.03  Mon Dec 30 17:44:08 UTC 2024";

    fn xid(number: u32, rest: &str) -> String {
        format!("NVRM: Xid (PCI:0000:3b:00): {number}, pid=7, name=python, {rest}")
    }

    /// What is found on day 10 after these lines at these seconds.
    fn found_with(lines: &[(u64, String)], gathered: &Gathered) -> Vec<(Level, String)> {
        let log: String = lines
            .iter()
            .enumerate()
            .map(|(n, (second, text))| format!("4,{n},{second}000000,-;{text}\n"))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), log).unwrap();
        let history = History::read(file.path()).unwrap();
        let extent = history.extent(Duration::ZERO);
        assert_eq!(extent, format!("{} records since boot", lines.len()));
        let findings = history.findings(Duration::from_secs(10 * DAY), gathered);
        let mut found: Vec<_> = findings
            .into_iter()
            .map(|f| {
                assert_eq!(f.level == Level::Ok, f.action.is_empty(), "{f:?}");
                (f.level, f.finding)
            })
            .collect();
        found.sort();
        found
    }

    fn found(lines: &[(u64, String)]) -> Vec<(Level, String)> {
        found_with(lines, &Gathered::default())
    }

    fn levels(lines: &[(u64, String)]) -> Vec<Level> {
        found(lines).into_iter().map(|(level, _)| level).collect()
    }

    #[test]
    fn an_application_s_error_of_days_ago_is_history() {
        let line = |day| (day * DAY + 60, xid(31, "MMU Fault"));
        assert_eq!(levels(&[line(7)]), [Level::Ok]);
        assert_eq!(levels(&[line(9)]), [Level::Warning]);
    }

    #[test]
    fn what_asks_for_a_reset_stands_until_the_driver_was_loaded_again() {
        let fault = (
            DAY,
            xid(119, "Timeout after 6s of waiting for RPC response"),
        );
        assert_eq!(levels(std::slice::from_ref(&fault)), [Level::Critical]);
        let mended = found(&[fault.clone(), (2 * DAY, LOADED.into())]);
        assert_eq!(mended[0].0, Level::Ok);
        assert!(
            mended[0]
                .1
                .ends_with("(9 d ago; since then the driver was loaded again)")
        );
        // Loaded before it, or come back since: it stands.
        assert_eq!(
            levels(&[(1, LOADED.into()), fault.clone()]),
            [Level::Critical]
        );
        let again = (3 * DAY, fault.1.clone());
        assert_eq!(
            levels(&[fault, (2 * DAY, LOADED.into()), again]),
            [Level::Critical]
        );
    }

    #[test]
    fn what_asks_for_a_reboot_outlasts_a_new_start_of_the_driver() {
        for line in [
            xid(79, "GPU has fallen off the bus."),
            "NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.".into(),
            xid(
                154,
                "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
            ),
        ] {
            let lines = [(DAY, line.clone()), (2 * DAY, LOADED.into())];
            assert_eq!(levels(&lines), [Level::Critical], "{line}");
        }
    }

    #[test]
    fn xid_154_says_when_nothing_is_left_to_do() {
        let change = |second, from: &str, to: &str| {
            let text = format!("GPU recovery action changed from {from} to {to}");
            (second, xid(154, &text))
        };
        let (none, reset) = ("0x0 (None)", "0x1 (GPU Reset Required)");
        let lines = [
            (DAY, xid(79, "GPU has fallen off the bus.")),
            change(DAY, none, reset),
            change(2 * DAY, reset, none),
        ];
        assert_eq!(levels(&lines), [Level::Ok, Level::Ok]);
        let lines = [
            change(DAY, none, reset),
            change(2 * DAY, reset, none),
            change(3 * DAY, none, reset),
        ];
        assert_eq!(levels(&lines), [Level::Critical]);
    }

    #[test]
    fn the_driver_s_own_answer_ends_what_is_old() {
        let mut gathered = Gathered::default();
        let mut answer = |action| {
            let reading = Reading::wide(action);
            gathered.put(
                Entity::Gpu,
                "0000:3b:00.0",
                Signal::RecoveryAction,
                None,
                reading,
            );
            gathered.clone()
        };
        let old = [(DAY, xid(95, "Uncontained ECC error"))];
        assert_eq!(found_with(&old, &answer(0))[0].0, Level::Warning);
        assert_eq!(found_with(&old, &answer(1))[0].0, Level::Critical);
        let new = [(10 * DAY - 60, xid(95, "Uncontained ECC error"))];
        assert_eq!(found_with(&new, &answer(0))[0].0, Level::Critical);
    }

    #[test]
    fn a_log_that_was_overwritten_does_not_claim_to_reach_back_to_the_start() {
        let mut history = History::default();
        for line in ["6,812,3600000000,-;one", "6,813,3700000000,-;two"] {
            history.record(&Record::parse(line.as_bytes()).unwrap());
        }
        let said = history.extent(Duration::from_secs(3 * 3_600));
        assert!(said.starts_with("2 records, the oldest 2 h ago"), "{said}");
    }

    #[test]
    fn every_repetition_counts() {
        let lines: Vec<_> = (0..5_000)
            .map(|n| (9 * DAY + 3_600 + n, xid(13, "Graphics Exception")))
            .collect();
        let found = found(&lines);
        assert_eq!(found.len(), 1);
        let words = "(5000 times, the last 21 h ago)";
        assert!(found[0].1.ends_with(words), "{}", found[0].1);
    }

    #[test]
    fn a_link_that_came_back_is_no_finding_and_a_nic_that_was_restarted_is_mended() {
        let down = |second| (second, "mlx5_core 0000:41:00.0 eth2: Link down".to_owned());
        let up = (
            9 * DAY + 1,
            "mlx5_core 0000:41:00.0 eth2: Link up".to_owned(),
        );
        assert_eq!(levels(&[down(9 * DAY + 1), up.clone()]), []);
        assert_eq!(
            levels(&[down(9 * DAY + 1), up, down(9 * DAY + 2)]),
            [Level::Warning]
        );
        let fatal = (
            DAY,
            "mlx5_core 0000:41:00.0: health recovery failed".to_owned(),
        );
        let started = |place| {
            (
                2 * DAY,
                format!("mlx5_core {place}: firmware version: 28.43.2026"),
            )
        };
        assert_eq!(levels(std::slice::from_ref(&fatal)), [Level::Critical]);
        assert_eq!(
            levels(&[fatal.clone(), started("0000:42:00.0")]),
            [Level::Critical]
        );
        assert_eq!(levels(&[fatal, started("0000:41:00.0")]), [Level::Ok]);
    }

    #[test]
    fn what_another_source_tells_of_the_same_is_the_same_line() {
        let mut history = History::default();
        let line = "3,1,5,-;NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.";
        history.record(&Record::parse(line.as_bytes()).unwrap());
        let (_, fault) = history.faults.first_key_value().unwrap();
        let mut event = fault.event.clone();
        (event.source, event.text) = ("gpu", "NVIDIA H100 no longer answers".into());
        history.take(event, Duration::from_secs(60));
        let found = history.findings(Duration::from_secs(60), &Gathered::default());
        let texts: Vec<&str> = found.iter().map(|f| f.finding.as_str()).collect();
        assert_eq!(texts, ["NVIDIA H100 no longer answers (0 s ago)"]);
    }

    #[test]
    fn more_faults_than_there_is_room_for_are_counted() {
        let lines: Vec<_> = (0..FAULTS_MAX + 10)
            .map(|n| {
                (
                    9 * DAY + 3_600,
                    format!("NVRM: Xid (PCI:{n:04x}:3b:00): 31, x"),
                )
            })
            .collect();
        let found = found(&lines);
        assert_eq!(found.len(), FAULTS_MAX + 1);
        assert!(found.iter().any(|(_, text)| text.starts_with("10 more")));
    }

    proptest! {
        /// Time only makes findings milder.
        #[test]
        fn a_finding_never_becomes_graver_with_time(number in 1u32..177, days in prop::collection::vec(0u64..40, 2)) {
            let mut history = History::default();
            let record = format!("4,1,0,-;{}", xid(number, "x"));
            history.record(&Record::parse(record.as_bytes()).unwrap());
            let level = |day: u64| {
                let now = Duration::from_secs(day * DAY);
                history.findings(now, &Gathered::default()).first().map(|f| f.level)
            };
            let (early, late) = (days[0].min(days[1]), days[0].max(days[1]));
            prop_assert!(level(early) >= level(late));
        }

        #[test]
        fn any_lines_are_taken(lines in prop::collection::vec(("(NVRM: |mlx5_core 0000:41:00.0: |)(Xid \\(PCI:0000:3b:00\\): 154, |loading NVIDIA UNIX|firmware version: |Link up|)[a-z (),0-9]{0,40}", 0u64..9_999_999), 0..40)) {
            let mut history = History::default();
            for (text, at) in &lines {
                let record = format!("4,1,{at},-;{text}");
                history.record(&Record::parse(record.as_bytes()).unwrap());
            }
            let found = history.findings(Duration::from_secs(10), &Gathered::default());
            prop_assert!(found.len() <= lines.len());
        }
    }
}
