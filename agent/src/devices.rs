//! The sources that ask devices: NICs, verbs devices, GPUs, the kernel's log.
//!
//! Each has a thread of its own. A device that is sick may keep whoever asks it waiting for a minute
//! (that is how long a command of mlx5's firmware takes to time out; NVML can take longer), and
//! meanwhile leases have to end in time. The main loop asks all, waits a little for the answers, and
//! takes what comes later with the next sample. Verbs devices have a thread each (`per_device.rs`).

mod per_device;

use crate::config::Config;
use crate::cost::{self, Meter};
use crate::ethtool::EthtoolSource;
use crate::gpu::{self, Gpu};
use crate::kmsg::limiter::Shared;
use crate::kmsg::{From, Kmsg, catalogue};
use crate::rdma::text::Filter;
use crate::rdma::{self, Rdma};
use crate::source::{Event, Gathered, RawCounter, RawKind, Source};
use crate::verbs::{self, Verbs};
use per_device::{List, Open, PerDevice};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// The kernel's log.
pub const KMSG: &str = "/dev/kmsg";
/// A source that has not answered for this long is down.
const STUCK: Duration = Duration::from_secs(5);

/// What a source is asked.
#[derive(Debug, Clone)]
struct Question {
    now: Duration,
    /// Network interfaces that are not left alone.
    interfaces: Arc<BTreeSet<String>>,
}

struct Answer {
    result: Result<(), String>,
    gathered: Gathered,
    cost: cost::Reading,
}

type Read = Box<dyn FnMut(&Question, &mut Gathered) -> Result<(), String> + Send>;

/// One source: its thread, and how it answered last.
struct Device {
    source: Source,
    /// What of the source it is, for the log; empty for the whole of it.
    part: String,
    ask: SyncSender<Question>,
    answers: Receiver<Answer>,
    asked: Option<Instant>,
    /// What it read last, which stands until it has read again or hangs: one that takes longer
    /// than a sample waits is not away every other second.
    last: Gathered,
    /// Seen since the last sample.
    events: Vec<Event>,
}

impl Device {
    fn start(name: &'static str, part: String, mut read: Read) -> Device {
        let (ask, questions) = sync_channel::<Question>(1);
        let (answer, answers) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // Ends when either end of the main loop's is gone.
                for question in questions {
                    let mut meter = Meter::start();
                    let mut gathered = Gathered::default();
                    let result = read(&question, &mut gathered);
                    let answered = Answer {
                        cost: meter.lap(name, result.is_ok()),
                        result,
                        gathered,
                    };
                    if answer.send(answered).is_err() {
                        return;
                    }
                }
            });
        let reason = thread.err().map(|error| format!("no thread: {error}"));
        Device {
            source: Source {
                name,
                up: reason.is_none(),
                reason: reason.unwrap_or_default(),
            },
            part,
            ask,
            answers,
            asked: None,
            last: Gathered::default(),
            events: Vec::new(),
        }
    }

    /// Asks, unless it is still at the last question; gives what a late answer to that cost.
    fn ask(&mut self, question: &Question) -> Option<cost::Reading> {
        let late = self.answers.try_recv().ok().map(|answer| self.take(answer));
        if self.asked.is_none() && self.ask.try_send(question.clone()).is_ok() {
            self.asked = Some(Instant::now());
        }
        late
    }

    /// Whether its thread waits for a question, or has ended.
    fn is_idle(&mut self) -> bool {
        match self.answers.try_recv() {
            Ok(answer) => {
                self.take(answer);
                true
            }
            Err(TryRecvError::Empty) => self.asked.is_none(),
            Err(TryRecvError::Disconnected) => true,
        }
    }

    fn take(&mut self, mut answer: Answer) -> cost::Reading {
        self.asked = None;
        self.state(answer.result.err().unwrap_or_default());
        self.events.append(&mut answer.gathered.events);
        self.last = answer.gathered;
        answer.cost
    }

    /// Takes the answer, if it comes within `patience`; gives what the reading cost.
    fn answer(
        &mut self,
        patience: Duration,
        stuck: Duration,
        out: &mut Gathered,
    ) -> Option<cost::Reading> {
        let mut cost = None;
        match self.answers.recv_timeout(patience) {
            Ok(answer) => cost = Some(self.take(answer)),
            Err(RecvTimeoutError::Timeout) => {
                if self.asked.is_some_and(|asked| asked.elapsed() >= stuck) {
                    let reason = format!("no answer for {stuck:?}: a device or its driver hangs");
                    self.state(reason);
                    self.last = Gathered::default();
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.state("its thread has ended".into());
                self.last = Gathered::default();
            }
        }
        out.append(self.last.clone());
        out.events.append(&mut self.events);
        cost
    }

    fn state(&mut self, reason: String) {
        let up = reason.is_empty();
        if !up && reason != self.source.reason {
            tracing::warn!("source {}{} is down: {reason}", self.source.name, self.part);
        }
        (self.source.up, self.source.reason) = (up, reason);
    }
}

/// All of them.
pub struct Devices {
    devices: Vec<Device>,
    rdma: Option<PerDevice>,
    links: rdma::Judge,
    verbs: Option<verbs::Handle>,
}

impl Devices {
    /// Starts what the configuration asks for; `steady`: for as long as the agent runs, with the
    /// sources that tell what happens from now on.
    #[must_use]
    pub fn start(config: &Config, steady: bool) -> Devices {
        let limits = Shared::default();
        let mut devices = Vec::new();
        let mut start = |wanted: bool, name, read: Read| {
            if wanted {
                devices.push(Device::start(name, String::new(), read));
            }
        };
        let on = config.collectors;
        start(on.ethtool, "ethtool", ethtool(config));
        start(on.gpu, "gpu", gpu(config, limits.clone()));
        start(on.kmsg && steady, "kmsg", kmsg(limits));
        // A single look sees no events, and pings nobody.
        let verbs = (on.verbs && steady).then(|| Verbs::new(verbs_options(config)));
        let handle = verbs.as_ref().map(Verbs::handle);
        if let Some(mut verbs) = verbs {
            let read: Read = Box::new(move |question, out| verbs.poll(question.now, out));
            start(true, "verbs", read);
        }
        Devices {
            devices,
            rdma: on.rdma.then(|| rdma(config)),
            links: rdma::Judge::default(),
            verbs: handle,
        }
    }

    /// Pings over verbs devices; `None` where that source is off.
    #[must_use]
    pub fn verbs(&self) -> Option<&verbs::Handle> {
        self.verbs.as_ref()
    }

    /// State of each after the last reading.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let others = self.devices.iter().map(|device| &device.source);
        others.chain(self.rdma.iter().map(|rdma| &rdma.source))
    }

    /// Reads all at once, and waits at most `patience`; gives what each cost.
    pub fn poll(
        &mut self,
        now: Duration,
        interfaces: BTreeSet<String>,
        patience: Duration,
        out: &mut Gathered,
    ) -> Vec<cost::Reading> {
        let interfaces = Arc::new(interfaces);
        let question = Question { now, interfaces };
        let mut costs: Vec<cost::Reading> = self
            .devices
            .iter_mut()
            .filter_map(|device| device.ask(&question))
            .collect();
        costs.extend(self.rdma.as_mut().and_then(|rdma| rdma.ask(&question)));
        let deadline = Instant::now() + patience;
        let left = || deadline.saturating_duration_since(Instant::now());
        for device in &mut self.devices {
            costs.extend(device.answer(left(), STUCK, out));
        }
        if let Some(rdma) = &mut self.rdma {
            costs.extend(rdma.answer(left, STUCK, out));
            self.links.take(out);
        }
        costs
    }
}

fn ethtool(config: &Config) -> Read {
    let verbatim = config.compat_node_exporter;
    let mut source = EthtoolSource::open(&config.path_sysfs, verbatim).map_err(|e| e.to_string());
    Box::new(move |question, out| {
        let source = source.as_mut().map_err(|reason| reason.clone())?;
        let interfaces = question.interfaces.iter().map(String::as_str).collect();
        source.poll(question.now, &interfaces, out);
        Ok(())
    })
}

fn rdma(config: &Config) -> PerDevice {
    let sysfs = config.path_sysfs.clone();
    let filter = Filter {
        include: Vec::new(),
        exclude: config.devices_exclude.clone(),
    };
    let list: List = Box::new({
        let sysfs = sysfs.clone();
        move || {
            let names = rdma::sysfs::names(&sysfs, &filter).unwrap_or_default();
            let class = rdma::sysfs::class(&sysfs);
            // A node without verbs devices lacks nothing.
            if names.is_empty() && has_entries(&class) {
                let class = class.display();
                return Err(format!(
                    "no RDMA device in {class} that the filter lets through"
                ));
            }
            Ok(names)
        }
    });
    let verbatim = config.compat_node_exporter;
    let expect = config.rdma_expect.clone();
    let files = rdma::Files::default();
    let open: Open = Box::new(move |name| {
        let mut source = Rdma::open(rdma::Options {
            sysfs: sysfs.clone(),
            include: vec![name.to_owned()],
            exclude: Vec::new(),
            netlink: true,
            verbatim,
            expect: expect.clone(),
            files: files.clone(),
        });
        Box::new(move |question, out| {
            let result = source.poll(question.now, out);
            result.map_err(|error| match source.failing().next() {
                Some((_, reason)) => reason.to_owned(),
                None => error,
            })
        })
    });
    PerDevice::new("rdma", list, open)
}

fn verbs_options(config: &Config) -> verbs::Options {
    verbs::Options {
        program: config.verbs_program.clone().unwrap_or_else(verbs::program),
        exclude: config.devices_exclude.clone(),
        sysfs: config.path_sysfs.clone(),
    }
}

fn gpu(config: &Config, limits: Shared) -> Read {
    let sysfs = config.path_sysfs.clone();
    let named = config.nvml_library.is_some();
    let mut source = Gpu::open(gpu::Options {
        nvml_library: config.nvml_library.clone(),
        sysfs: sysfs.clone(),
        meaning: catalogue::meaning,
        limits,
    });
    Box::new(move |question, out| {
        let result = source.poll(question.now, out);
        out.gpu_processes = source.processes();
        match result {
            // A node without GPUs lacks nothing.
            Err(_) if !named && !has_nvidia(&sysfs) => Ok(()),
            other => other,
        }
    })
}

fn has_entries(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether PCI shows an NVIDIA GPU, driver or not.
fn has_nvidia(sysfs: &Path) -> bool {
    let devices = fs::read_dir(sysfs.join("bus/pci/devices"));
    devices.into_iter().flatten().flatten().any(|device| {
        let is = |file: &str, prefix: &str| {
            let text = fs::read_to_string(device.path().join(file));
            text.is_ok_and(|text| text.starts_with(prefix))
        };
        is("vendor", "0x10de") && is("class", "0x03")
    })
}

fn kmsg(limits: Shared) -> Read {
    let path = Path::new(KMSG);
    let opened = Kmsg::open(path, From::Now, limits);
    let mut source = opened.map_err(|e| format!("cannot read {}: {e}", path.display()));
    Box::new(move |question, out| {
        let source = source.as_mut().map_err(|reason| reason.clone())?;
        // Where there is more, the next sample goes on.
        let polled = source.poll(question.now, out);
        polled.map_err(|e| e.to_string())?;
        for (name, value) in [
            ("lines", source.lines),
            ("lost", source.lost),
            ("malformed", source.malformed),
        ] {
            let counter = RawCounter::new(RawKind::Counter, "kmsg", "kmsg", name, value);
            out.raw.push(counter);
        }
        out.raw.extend(source.held_back.raw("kmsg", "kmsg"));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for a thread to answer on a busy machine.
    pub(super) const LONG: Duration = Duration::from_secs(20);

    pub(super) fn question() -> Question {
        Question {
            now: Duration::ZERO,
            interfaces: Arc::default(),
        }
    }

    pub(super) fn counted(value: u64) -> RawCounter {
        RawCounter::new(RawKind::Counter, "test", "d", "n", value)
    }

    #[test]
    fn a_source_that_hangs_is_down_and_its_late_answer_is_taken() {
        let (release, wait) = sync_channel::<()>(0);
        let read = move |_: &Question, out: &mut Gathered| {
            wait.recv().map_err(|_| "released by the test's end")?;
            out.raw.push(counted(1));
            Ok(())
        };
        let mut device = Device::start("test", String::new(), Box::new(read));
        let mut out = Gathered::default();
        device.ask(&question());
        assert!(device.answer(Duration::ZERO, LONG, &mut out).is_none());
        assert!(device.source.up, "not so soon");
        let late = device.answer(Duration::ZERO, Duration::ZERO, &mut out);
        assert!(late.is_none());
        assert!(!device.source.up && device.source.reason.contains("hangs"));
        // It is not asked again while it hangs.
        device.ask(&question());
        release.send(()).unwrap();
        assert!(device.answer(LONG, LONG, &mut out).is_some());
        assert!(device.source.up && out.raw.len() == 1);
    }

    #[test]
    fn what_a_slow_source_read_stands_until_it_has_read_again() {
        let (release, wait) = sync_channel::<u64>(0);
        let read = move |_: &Question, out: &mut Gathered| {
            out.raw.push(counted(wait.recv().map_err(|_| "over")?));
            Ok(())
        };
        let mut device = Device::start("test", String::new(), Box::new(read));
        let mut poll = |patience, released: Option<u64>| {
            let mut out = Gathered::default();
            let late = device.ask(&question()).is_some();
            if let Some(value) = released {
                release.send(value).unwrap();
            }
            device.answer(patience, LONG, &mut out);
            let values: Vec<u64> = out.raw.iter().map(|raw| raw.value).collect();
            (late, values)
        };
        assert_eq!(poll(LONG, Some(1)), (false, vec![1]));
        assert_eq!(poll(Duration::ZERO, None), (false, vec![1]));
        // It answers between two samples, and is asked again with the next.
        assert_eq!(poll(LONG, Some(2)), (false, vec![2]));
        assert_eq!(poll(LONG, Some(3)), (false, vec![3]));
    }

    #[test]
    fn a_source_whose_thread_ended_is_down() {
        let read = |_: &Question, _: &mut Gathered| -> Result<(), String> { panic!("in a test") };
        let mut device = Device::start("test", String::new(), Box::new(read));
        device.ask(&question());
        let mut out = Gathered::default();
        assert!(device.answer(LONG, LONG, &mut out).is_none());
        assert_eq!(device.source.reason, "its thread has ended");
    }

    #[test]
    fn a_gpu_of_nvidia_is_seen_without_its_driver() {
        let root = tempfile::tempdir().unwrap();
        assert!(!has_nvidia(root.path()));
        let device = root.path().join("bus/pci/devices/0000:18:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), "0x10de\n").unwrap();
        fs::write(device.join("class"), "0x030200\n").unwrap();
        assert!(has_nvidia(root.path()));
    }

    #[test]
    fn what_an_error_was_read_with_is_kept() {
        let read = |_: &Question, out: &mut Gathered| {
            out.raw.push(counted(7));
            Err("half of it is away".to_owned())
        };
        let mut device = Device::start("test", String::new(), Box::new(read));
        device.ask(&question());
        let mut out = Gathered::default();
        let cost = device.answer(LONG, LONG, &mut out);
        assert!(cost.is_some_and(|c| c.source == "test" && !c.ok));
        assert_eq!(device.source.reason, "half of it is away");
        assert_eq!(out.raw.len(), 1);
    }
}
