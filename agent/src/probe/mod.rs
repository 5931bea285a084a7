//! Active probes over UDP: how long it takes to other nodes and back, and what gets lost, path by path.
//!
//! Two threads beside the main loop, which only looks at what they last saw:
//!
//! - [`worker`] sends probes from a few source ports, so that ECMP spreads them over the paths, and
//!   takes the replies and the kernel's stamps, some ten times a second: stamps do not age;
//! - [`responder`] answers those of others and says how long it held them.
//!
//! Where there are verbs devices their ports are probed as well, by `weir-verbs` ([`ud`]).
//!
//! What a probe means and what it may cost is decided in `weir_agent_core::probe`. Targets come from
//! the controller ([`list`]), or from the configuration where there is none.

pub mod config;
pub mod list;
pub mod local;
pub mod ready;
pub mod report;
pub mod responder;
pub mod socket;
pub mod ud;
pub mod wake;
pub mod worker;

pub use report::{labels, worst_paths};

use crate::source::{Gathered, Source};
use list::List;
use responder::{Responder, Told};
use std::io::Read as _;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use wake::Waker;
use weir_agent_core::probe::prober::Settings;
use weir_wire::v1;
use worker::{Sockets, Worker};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// UDP port of the responder; 0 takes a free one. `None`: nobody is answered.
    pub port: Option<u16>,
    /// Source ports, which are the paths to each target.
    pub paths: u8,
    /// Probes in a second, whatever the controller asks for.
    pub packets_per_s: u32,
    pub settings: Settings,
    /// Interfaces that are left alone.
    pub exclude: Vec<String>,
    /// Targets for as long as no controller gives others.
    pub list: List,
}

/// The running threads; they end when it is dropped.
pub struct Probe {
    worker: Arc<Mutex<worker::State>>,
    responder: Arc<Mutex<responder::State>>,
    lists: Sender<List>,
    told: Option<(Sender<Told>, Waker)>,
    waker: Option<Waker>,
    threads: Vec<JoinHandle<()>>,
    ports_v4: Vec<u16>,
    ports_v6: Vec<u16>,
    answers: bool,
}

impl Probe {
    /// Starts both threads. A responder's port that is taken leaves the prober running.
    ///
    /// # Errors
    /// No sockets or threads can be had: nothing can be probed.
    pub fn start(options: Options) -> Result<Probe, String> {
        let text = |what: &str, error: std::io::Error| format!("{what}: {error}");
        let sockets =
            Sockets::bind(options.paths).map_err(|e| text("no sockets to send probes from", e))?;
        let (waker, sleeper) = wake::pair().map_err(|e| text("no pipe", e))?;
        let (lists, to_worker) = channel();
        let mut threads = Vec::new();
        let responder = Arc::new(Mutex::new(responder::State::default()));
        let (mut told, mut told_by_worker) = (None, None);
        if let Some(port) = options.port {
            let (bound, reason) = match responder::bind(port) {
                Ok(bound) => (bound, String::new()),
                Err(reason) => (Vec::new(), reason),
            };
            if let Ok(mut state) = responder.lock() {
                state.port = bound.first().map(|socket| socket.local.port());
                state.reason = reason;
            }
            let (sender, receiver) = channel();
            let (waker, sleeper) = wake::pair().map_err(|e| text("no pipe", e))?;
            let second = waker.again().map_err(|e| text("no pipe", e))?;
            let thread = Responder {
                port,
                sockets: bound,
                told: receiver,
                sleeper,
                state: Arc::clone(&responder),
            };
            threads.push(spawn("probe-responder", move || thread.run())?);
            told = Some((sender.clone(), waker));
            told_by_worker = Some((sender, second));
        }
        let worker = Arc::new(Mutex::new(worker::State::default()));
        let ports_v4 = sockets.ports(std::net::Ipv4Addr::UNSPECIFIED.into());
        let ports_v6 = sockets.ports(std::net::Ipv6Addr::UNSPECIFIED.into());
        let thread = Worker {
            sockets,
            settings: options.settings,
            packets_per_s: options.packets_per_s,
            exclude: options.exclude,
            seed: seed(),
            lists: to_worker,
            sleeper,
            responder: told_by_worker,
            state: Arc::clone(&worker),
        };
        threads.push(spawn("prober", move || thread.run())?);
        let probe = Probe {
            worker,
            responder,
            lists,
            told,
            waker: Some(waker),
            threads,
            ports_v4,
            ports_v6,
            answers: options.port.is_some(),
        };
        if !options.list.targets.is_empty() {
            probe.set_list(options.list);
        }
        Ok(probe)
    }

    /// Probes these from now on, and answers whom they name.
    pub fn set_list(&self, list: List) {
        if let (Some((told, waker)), Some(probers)) = (&self.told, &list.probers)
            && told.send(Told::Probers(probers.clone())).is_ok()
        {
            waker.wake();
        }
        if self.lists.send(list).is_ok()
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }

    /// Port that is answered on at this moment.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        lock(&self.responder).port
    }

    /// Source ports by path, of probes to such an address.
    #[must_use]
    pub fn source_ports(&self, to: std::net::IpAddr) -> &[u16] {
        if to.is_ipv4() {
            &self.ports_v4
        } else {
            &self.ports_v6
        }
    }

    /// What the prober saw last.
    #[must_use]
    pub fn state(&self) -> worker::State {
        lock(&self.worker).clone()
    }

    /// How the responder does.
    #[must_use]
    pub fn responder(&self) -> responder::State {
        lock(&self.responder).clone()
    }

    /// Adds what is known.
    pub fn gather(&self, out: &mut Gathered) {
        let worker = lock(&self.worker);
        report::columns(&worker.reports, out);
        let counters = lock(&self.responder).counters;
        report::counters(&worker.counters, &counters, out);
    }

    /// State as a source: what is answered, and whose clocks measure.
    #[must_use]
    pub fn source(&self) -> Source {
        let worker = lock(&self.worker);
        let responder = lock(&self.responder);
        let down = [&worker.reason, &responder.reason];
        let up = down.iter().all(|reason| reason.is_empty());
        let reason = if up {
            let c = &worker.counters;
            let clock = match (c.by_nic, c.by_kernel, c.by_user) {
                (0, 0, 0) => "",
                (0, 0, _) => "time stamps of its own calls only",
                (0, _, _) => "time stamps of the kernel",
                (_, _, _) => "time stamps of the NIC",
            };
            let left_out = match worker.left_out {
                0 => String::new(),
                n => format!("{n} targets left out"),
            };
            let words = [clock, &left_out];
            let words: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
            words.join(", ")
        } else {
            let words = down.into_iter().filter(|w| !w.is_empty());
            words.map(String::as_str).collect::<Vec<_>>().join("; ")
        };
        Source {
            name: "probe",
            up,
            reason,
        }
    }

    /// Where this node answers, for the controller's lists.
    #[must_use]
    pub fn endpoints(&self) -> Vec<v1::Endpoint> {
        let Some(port) = self.port().filter(|_| self.answers) else {
            return Vec::new();
        };
        let worker = lock(&self.worker);
        let endpoint = |local: &local::Local| {
            let ports = self.source_ports(local.address);
            v1::Endpoint {
                port: local.port.clone(),
                kind: Some(v1::endpoint::Kind::Udp(v1::UdpEndpoint {
                    address: local.address.to_string(),
                    port: port.into(),
                    source_ports: ports.iter().map(|port| u32::from(*port)).collect(),
                })),
            }
        };
        worker.locals.iter().map(endpoint).collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The threads see that our ends are gone. The prober holds one of the responder's.
        drop(self.waker.take());
        drop(self.told.take());
        for thread in self.threads.drain(..).rev() {
            if thread.join().is_err() {
                tracing::error!("a thread of the probes had ended by itself");
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map_err(|error| format!("no thread: {error}"))
}

/// What nobody else knows: a reply cannot be forged by who has not seen its probe.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    if let Err(error) = read {
        tracing::warn!("/dev/urandom: {error}: probes are numbered by the clock");
        return socket::wall_ns();
    }
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests;
