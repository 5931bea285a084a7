//! Asynchronous events of verbs devices, and pings between them, by the child `weir-verbs`.
//!
//! The library that knows them is not on every node, and what it loads is the vendors': it may hang
//! or crash, so it does so in a process of its own. Events of the names in
//! [`weir_verbs_protocol::EVENT_NAMES`] become the agent's; whom to ping and to answer is told by [`Handle::order`].

mod child;
mod restart;
#[cfg(test)]
mod tests;

use crate::source::{Event, Gathered, RawCounter, RawKind, Severity};
use child::Child;
use restart::Restart;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use weir_verbs_protocol::{self as protocol, EVENT_NAMES, Failure, Line, Place, Status};
pub use weir_verbs_protocol::{
    Endpoint, Orders, PROBERS_MAX, Report, Spread, TARGETS_MAX, Target, Timestamps,
};

/// A child that has said nothing for this long hangs; it says something every second.
const SILENT: Duration = Duration::from_secs(15);
/// Events that wait to be taken: a sample has room for fewer.
const EVENTS_MAX: usize = 256;
/// Reports that wait: two windows of every target.
const REPORTS_MAX: usize = 2 * protocol::TARGETS_MAX;
/// Endpoints of one node: ports of as many devices as are opened.
const ENDPOINTS_MAX: usize = 256;
const TEXT_CHARS_MAX: usize = 400;
const LOADER: i32 = 127;

/// How the child is run.
#[derive(Debug, Clone)]
pub struct Options {
    pub program: PathBuf,
    /// Devices that are not opened; a trailing `*` stands for anything.
    pub exclude: Vec<String>,
    /// Root of the sysfs, which shows whether there is any device.
    pub sysfs: PathBuf,
}

/// `weir-verbs` beside the agent's own program.
#[must_use]
pub fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("weir-verbs")
}

/// What the child said, and what it is to be told.
#[derive(Debug, Default)]
struct Heard {
    endpoints: BTreeMap<Place, Endpoint>,
    events: VecDeque<protocol::Event>,
    reports: VecDeque<Report>,
    status: Option<Status>,
    /// When it said anything.
    at: Option<Instant>,
    /// What it complained of last.
    failure: Option<Failure>,
    /// Counts the children: what a dead one still says of the present is not heard.
    life: u64,
    orders: Option<Orders>,
    orders_number: u64,
    events_dropped: u64,
    reports_dropped: u64,
    malformed: u64,
}

#[derive(Debug, Default)]
struct Shared(Mutex<Heard>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> Option<Orders> {
        self.lock().orders.clone()
    }

    fn malformed(&self) {
        self.lock().malformed += 1;
    }

    fn heard(&self, line: Line, life: u64) {
        let mut heard = self.lock();
        let happened = matches!(line, Line::Event(_) | Line::Report(_));
        if heard.life != life && !happened {
            return;
        }
        heard.at = Some(Instant::now());
        match line {
            Line::Event(event) if heard.events.len() < EVENTS_MAX => heard.events.push_back(event),
            Line::Event(_) => heard.events_dropped += 1,
            Line::Endpoint(endpoint) => {
                let place = Place {
                    device: endpoint.device.clone(),
                    port: endpoint.port,
                };
                if heard.endpoints.len() < ENDPOINTS_MAX || heard.endpoints.contains_key(&place) {
                    heard.endpoints.insert(place, endpoint);
                }
            }
            Line::EndpointGone(place) => {
                heard.endpoints.remove(&place);
            }
            Line::Report(report) => {
                // The newest say most.
                if heard.reports.len() >= REPORTS_MAX {
                    heard.reports.pop_front();
                    heard.reports_dropped += 1;
                }
                heard.reports.push_back(report);
            }
            Line::Status(status) => {
                // A device that could not say goodbye.
                heard
                    .endpoints
                    .retain(|place, _| status.devices.contains(&place.device));
                heard.status = Some(status);
            }
            Line::Error(failure) => {
                if heard.failure.as_ref() != Some(&failure) {
                    tracing::info!("weir-verbs: {}", failure.text);
                }
                heard.failure = Some(failure);
            }
        }
    }

    /// The child is another, or none: its number.
    fn new_life(&self) -> u64 {
        let mut heard = self.lock();
        heard.life += 1;
        heard.endpoints.clear();
        heard.status = None;
        heard.at = None;
        heard.failure = None;
        heard.life
    }
}

/// Pings, from whatever thread: endpoints, targets, reports.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Where others can ping this node's ports. Empty while the child is not running.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.0.lock().endpoints.values().cloned().collect()
    }

    /// Whom to ping and whom to answer, these and no others, and how many pings a second in all, of
    /// which the child sends no more than its ceilings let it. A child that starts anew is told again.
    pub fn order(&self, orders: Orders) {
        let mut heard = self.0.lock();
        if heard.orders.as_ref() != Some(&orders) {
            heard.orders = Some(orders);
            heard.orders_number += 1;
        }
    }

    /// The reports since the last call, oldest first.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut self.0.lock().reports).into()
    }
}

/// The source: keeps the child running and takes what it says.
#[derive(Debug)]
pub struct Verbs {
    options: Options,
    shared: Arc<Shared>,
    child: Option<Child>,
    restart: Restart,
    /// Why there is no child at present.
    reason: String,
    told: u64,
}

impl Verbs {
    /// Starts nothing before the first poll.
    #[must_use]
    pub fn new(options: Options) -> Verbs {
        Verbs {
            options,
            shared: Arc::default(),
            child: None,
            restart: Restart::default(),
            reason: String::new(),
            told: 0,
        }
    }

    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Starts the child if it is time, and takes what it said. `now` is any clock that does not go back.
    ///
    /// # Errors
    /// The source is down. The text says why, and what to install if that is it.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        let state = self.keep_running(now);
        self.take(out);
        state
    }

    fn keep_running(&mut self, now: Duration) -> Result<(), String> {
        if let Some(child) = &mut self.child {
            let lived = child.started.elapsed();
            if let Some(status) = child.ended() {
                self.reason = ending(status, &child.complaint());
                self.child = None;
                self.shared.new_life();
                self.restart.ended(now, lived, chance());
            } else {
                return self.check_running();
            }
        }
        // A node without verbs devices lacks nothing, and needs no program.
        let devices = self.options.sysfs.join("class/infiniband");
        if !std::fs::read_dir(devices).is_ok_and(|mut entries| entries.next().is_some()) {
            return Ok(());
        }
        if now < self.restart.at {
            return Err(self.reason.clone());
        }
        match Child::start(&self.options.program, &self.options.exclude, &self.shared) {
            Ok(child) => {
                self.child = Some(child);
                Ok(())
            }
            Err(error) => {
                self.reason = refusal(&self.options.program, &error);
                self.restart.ended(now, Duration::ZERO, chance());
                Err(self.reason.clone())
            }
        }
    }

    fn check_running(&mut self) -> Result<(), String> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        let heard = self.shared.lock();
        if heard.orders_number != self.told {
            self.told = heard.orders_number;
            child.new_orders();
        }
        if heard.at.unwrap_or(child.started).elapsed() >= SILENT {
            // Where it hangs in the kernel it stays, and no other is started meanwhile.
            child.kill();
            return Err("weir-verbs hangs, and is killed: a device or its driver hangs".to_owned());
        }
        let stuck = heard.status.iter().flat_map(|status| &status.stuck);
        let stuck: Vec<&str> = stuck.map(String::as_str).collect();
        if stuck.is_empty() {
            return Ok(());
        }
        Err(format!("the library of {} hangs", stuck.join(", ")))
    }

    fn take(&self, out: &mut Gathered) {
        let mut heard = self.shared.lock();
        out.events.extend(heard.events.drain(..).map(event));
        let mut raw = |device: &str, name: &str, value| {
            let counter = RawCounter::new(RawKind::Counter, "verbs", device, name, value);
            out.raw.push(counter);
        };
        let Some(status) = &heard.status else { return };
        for (device, counters) in &status.counters {
            for (name, value) in counters.named() {
                raw(device, name, value);
            }
        }
        for (name, value) in [
            ("lines_dropped", status.lines_dropped),
            ("lines_malformed", heard.malformed),
            ("events_dropped", heard.events_dropped),
            ("reports_dropped", heard.reports_dropped),
        ] {
            raw("weir-verbs", name, value);
        }
    }
}

/// The agent's form of an event.
fn event(event: protocol::Event) -> Event {
    let name = EVENT_NAMES.iter().find(|name| **name == event.name);
    Event {
        source: "verbs",
        name: name.copied().unwrap_or("unknown_verbs_event"),
        subject: match event.port {
            Some(port) => format!("{}/{port}", event.device),
            None => event.device,
        },
        code: None,
        severity: match event.severity {
            protocol::Severity::Info => Severity::Info,
            protocol::Severity::Warning => Severity::Warning,
            protocol::Severity::Critical => Severity::Critical,
        },
        text: event.text.chars().take(TEXT_CHARS_MAX).collect(),
        action: event.action.chars().take(TEXT_CHARS_MAX).collect(),
    }
}

/// Why the child ended, in words.
fn ending(status: ExitStatus, complaint: &str) -> String {
    let library = complaint
        .split_once("loading shared libraries: ")
        .and_then(|(_, rest)| rest.split_once(':'));
    match (status.code(), library) {
        (Some(LOADER), Some((library, _))) => format!(
            "weir-verbs needs {library}: apt-get install libibverbs1 ibverbs-providers (or switch the collector verbs off)"
        ),
        _ if complaint.is_empty() => format!("weir-verbs ended: {status}"),
        _ => format!("weir-verbs ended: {status}: {complaint}"),
    }
}

fn refusal(program: &Path, error: &io::Error) -> String {
    let program = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        return format!(
            "{program} is not there: install weir-verbs beside weir-agent (or switch the collector verbs off)"
        );
    }
    format!("{program} cannot be started: {error}")
}

/// Any number: another on each node and each time.
fn chance() -> u64 {
    std::collections::hash_map::RandomState::new().hash_one(())
}
