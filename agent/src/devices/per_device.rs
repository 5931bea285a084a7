//! A source whose devices have a thread each, such as RDMA netlink with a socket of its own for each
//! verbs device.
//!
//! The kernel answers a request of RDMA netlink inside of the caller's `send()`, in the driver
//! (nldev.c): a socket's time-out does not end that. A device whose firmware hangs keeps whoever
//! asked it, and here that is a thread that asks nobody else.

use super::{Device, Question, Read};
use crate::cost;
use crate::source::{Event, Gathered, Severity, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Names of the devices that are there; touches none of them.
pub(super) type List = Box<dyn FnMut() -> Result<Vec<String>, String> + Send>;
/// What reads one device.
pub(super) type Open = Box<dyn Fn(&str) -> Read + Send>;

/// Failing devices that the reason names; the rest is a number.
const NAMED_MAX: usize = 4;

pub(super) struct PerDevice {
    pub source: Source,
    list: List,
    open: Open,
    listed: Result<BTreeSet<String>, String>,
    /// Those listed, and those that are gone and still keep their threads.
    devices: BTreeMap<String, Device>,
}

impl PerDevice {
    pub fn new(name: &'static str, list: List, open: Open) -> PerDevice {
        PerDevice {
            source: Source {
                name,
                up: true,
                reason: String::new(),
            },
            list,
            open,
            listed: Ok(BTreeSet::new()),
            devices: BTreeMap::new(),
        }
    }

    /// Asks every device that is not still at its last question; gives what late answers cost.
    pub fn ask(&mut self, question: &Question) -> Option<cost::Reading> {
        self.listed = (self.list)().map(BTreeSet::from_iter);
        let names = self.listed.clone().unwrap_or_default();
        // One that hangs keeps its place: no second thread is started beside its own.
        self.devices
            .retain(|name, device| names.contains(name) || !device.is_idle());
        let mut late = None;
        for name in names {
            let start =
                || Device::start(self.source.name, format!(" of {name}"), (self.open)(&name));
            let device = self.devices.entry(name.clone()).or_insert_with(start);
            late = sum(late, device.ask(question));
        }
        late
    }

    /// Takes the answers that come within what `left` gives each; gives what the readings cost.
    pub fn answer(
        &mut self,
        mut left: impl FnMut() -> Duration,
        stuck: Duration,
        out: &mut Gathered,
    ) -> Option<cost::Reading> {
        let listed = self.listed.as_ref().ok();
        let mut costs = None;
        let mut failing = Vec::new();
        for (name, device) in &mut self.devices {
            if !listed.is_some_and(|listed| listed.contains(name)) {
                continue;
            }
            let was_up = device.source.up;
            let answer = device.answer(left(), stuck, out);
            let Source { up, reason, .. } = &device.source;
            if !up {
                failing.push(format!("{name}: {reason}"));
            }
            if was_up && !up && answer.is_none() {
                out.events
                    .push(unresponsive(self.source.name, name, reason));
            }
            costs = sum(costs, answer);
        }
        let devices = listed.map_or(0, BTreeSet::len);
        self.source.up = self.listed.is_ok() && (failing.len() < devices || devices == 0);
        let more = failing.len().saturating_sub(NAMED_MAX);
        failing.truncate(NAMED_MAX);
        if more > 0 {
            failing.push(format!("and {more} more"));
        }
        self.source.reason = match &self.listed {
            Ok(_) => failing.join("; "),
            Err(reason) => reason.clone(),
        };
        costs
    }
}

fn unresponsive(source: &'static str, device: &str, reason: &str) -> Event {
    Event {
        source,
        name: "device_unresponsive",
        subject: device.to_owned(),
        code: None,
        severity: Severity::Warning,
        text: format!("{device} does not answer: {reason}"),
        action:
            "See the kernel log for the device's firmware; reset the device or reload its driver."
                .to_owned(),
    }
}

/// One account for all devices: their CPU time together, the longest of their wall times.
fn sum(a: Option<cost::Reading>, b: Option<cost::Reading>) -> Option<cost::Reading> {
    a.into_iter().chain(b).reduce(|a, b| cost::Reading {
        source: a.source,
        ok: a.ok || b.ok,
        cpu: a.cpu + b.cpu,
        took: a.took.max(b.took),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LONG, counted, question};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    /// Three devices, of which the last hangs while it is not released.
    struct Fakes {
        devices: PerDevice,
        listed: Arc<Mutex<Vec<&'static str>>>,
        release: Sender<()>,
        opened: Arc<AtomicUsize>,
    }

    impl Fakes {
        fn new() -> Fakes {
            let listed = Arc::new(Mutex::new(vec!["a", "b", "z"]));
            let opened = Arc::new(AtomicUsize::new(0));
            let (release, wait) = channel();
            let wait = Arc::new(Mutex::new(wait));
            let list: List = Box::new({
                let listed = Arc::clone(&listed);
                move || {
                    Ok(listed
                        .lock()
                        .unwrap()
                        .iter()
                        .map(ToString::to_string)
                        .collect())
                }
            });
            let open: Open = Box::new({
                let opened = Arc::clone(&opened);
                move |name| {
                    opened.fetch_add(1, Relaxed);
                    read(name.to_owned(), Arc::clone(&wait))
                }
            });
            Fakes {
                devices: PerDevice::new("test", list, open),
                listed,
                release,
                opened,
            }
        }

        /// Devices whose values are there, and events; waits for the healthy, and for `z` if that is released.
        fn poll(&mut self, release_z: bool, stuck: Duration) -> (String, Vec<Event>) {
            let mut out = Gathered::default();
            self.devices.ask(&question());
            // Not before: it would be asked anew if it had answered by then.
            if release_z {
                self.release.send(()).unwrap();
            }
            let mut waits = 0;
            let left = || {
                waits += 1;
                if waits < 3 || release_z {
                    LONG
                } else {
                    Duration::ZERO
                }
            };
            self.devices.answer(left, stuck, &mut out);
            let read = out.raw.iter().map(|raw| raw.device.as_str());
            (read.collect(), out.events)
        }
    }

    fn read(name: String, wait: Arc<Mutex<Receiver<()>>>) -> Read {
        Box::new(move |_, out| {
            if name == "z" {
                let released = wait.lock().unwrap().recv();
                released.map_err(|_| "the test is over")?;
            }
            out.raw.push(crate::source::RawCounter {
                device: name.clone(),
                ..counted(1)
            });
            Ok(())
        })
    }

    #[test]
    fn a_device_that_hangs_costs_itself() {
        let mut fakes = Fakes::new();
        assert_eq!(fakes.poll(true, LONG), ("abz".into(), vec![]));
        // It may only be slow: what it read last stands.
        assert_eq!(fakes.poll(false, LONG).0, "abz");
        assert_eq!(fakes.devices.source.reason, "");

        let (read, events) = fakes.poll(false, Duration::ZERO);
        assert_eq!(read, "ab");
        let [event] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(
            (event.name, event.subject.as_str()),
            ("device_unresponsive", "z")
        );
        let source = &fakes.devices.source;
        assert!(
            source.up && source.reason.starts_with("z: no answer"),
            "{source:?}"
        );
        assert_eq!(fakes.poll(false, Duration::ZERO), ("ab".into(), vec![]));

        assert_eq!(fakes.poll(true, LONG).0, "abz");
        assert_eq!(fakes.devices.source.reason, "");
    }

    #[test]
    fn one_that_hangs_while_it_is_away_gets_no_second_thread() {
        let mut fakes = Fakes::new();
        assert_eq!(fakes.poll(false, Duration::ZERO).0, "ab");
        *fakes.listed.lock().unwrap() = vec!["a", "b"];
        assert_eq!(fakes.poll(false, Duration::ZERO).0, "ab");
        assert_eq!(
            fakes.devices.source.reason, "",
            "what is away does not fail"
        );
        *fakes.listed.lock().unwrap() = vec!["a", "b", "z"];
        assert_eq!(fakes.poll(false, Duration::ZERO).0, "ab");
        assert_eq!(fakes.opened.load(Relaxed), 3);
        assert_eq!(fakes.poll(true, LONG).0, "abz");
        *fakes.listed.lock().unwrap() = vec!["a"];
        assert_eq!(fakes.poll(false, LONG).0, "a");
        assert_eq!(fakes.devices.devices.len(), 1);
    }

    #[test]
    fn a_source_without_any_answer_is_down_and_one_without_devices_is_not() {
        let mut fakes = Fakes::new();
        *fakes.listed.lock().unwrap() = vec![];
        fakes.poll(false, LONG);
        assert!(fakes.devices.source.up);
        *fakes.listed.lock().unwrap() = vec!["z"];
        fakes.devices.ask(&question());
        let mut out = Gathered::default();
        let costs = fakes
            .devices
            .answer(|| Duration::ZERO, Duration::ZERO, &mut out);
        assert!(costs.is_none() && !fakes.devices.source.up);
        fakes.devices.list = Box::new(|| Err("no right to look".into()));
        fakes.poll(false, LONG);
        assert_eq!(fakes.devices.source.reason, "no right to look");
        assert!(!fakes.devices.source.up);
    }

    #[test]
    fn many_that_fail_are_a_number() {
        let names = || Ok((0..9).map(|n| format!("d{n}")).collect());
        let open: Open = Box::new(|_| Box::new(|_, _| Err("gone".into())));
        let mut devices = PerDevice::new("test", Box::new(names), open);
        devices.ask(&question());
        let costs = devices.answer(|| LONG, LONG, &mut Gathered::default());
        assert!(costs.is_some_and(|cost| !cost.ok && cost.source == "test"));
        let expected = "d0: gone; d1: gone; d2: gone; d3: gone; and 5 more";
        assert_eq!(devices.source.reason, expected);
    }
}
