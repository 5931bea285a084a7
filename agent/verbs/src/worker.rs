//! One thread for each device: its asynchronous events and the pings of its ports. A device whose
//! library hangs keeps no other waiting.

use crate::budget::Budget;
use crate::device::{Device, Port, choose};
use crate::events::{Scope, scope};
use crate::input::Checked;
use crate::out::Out;
use crate::port::UdPort;
use crate::system::{self, Bell, now};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use weir_verbs_protocol::{Counters, Endpoint, Line, Place};

/// IBV_EVENT_DEVICE_FATAL.
const DEVICE_FATAL: u32 = 8;
/// Reports are made so often, and the thread shows that it lives.
const WINDOW: Duration = Duration::from_secs(1);
/// A port that could not be opened, or lacks a GID, is looked at again after this.
const AGAIN: Duration = Duration::from_secs(15);
/// Ports of one device; more than any NIC has.
const PORTS_MAX: u8 = 16;

/// What is open, and how to tell it something.
#[derive(Debug)]
pub struct Worker {
    orders: SyncSender<Arc<Checked>>,
    bell: Bell,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    closing: AtomicBool,
    /// It told its own end.
    fatal: AtomicBool,
    /// A neighbour has another address.
    neighbours_changed: AtomicBool,
    /// Milliseconds of the clock at the last turn of its loop.
    turned_ms: AtomicU64,
    counters: Mutex<Counters>,
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

impl Worker {
    /// # Errors
    /// No thread can be had. That the device cannot be opened is said by a line.
    pub fn start(name: &str, budget: Budget, orders: Arc<Checked>, out: Out) -> io::Result<Worker> {
        let shared = Arc::new(Shared::default());
        shared.turned_ms.store(millis(now()), Ordering::Relaxed);
        let bell = Bell::new()?;
        let (sender, inbox) = sync_channel(4);
        let (its, rings, device) = (Arc::clone(&shared), bell.clone(), name.to_owned());
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || {
                let run = Open::new(&device, budget, &out).and_then(|mut open| {
                    open.orders = orders;
                    open.run(&rings, &inbox, &its)
                });
                if let Err(error) = run
                    && !its.fatal.load(Ordering::Relaxed)
                {
                    out.fail(Some(&device), format!("{device}: {error}"));
                }
            })?;
        Ok(Worker {
            orders: sender,
            bell,
            shared,
            thread,
        })
    }

    /// False if it does not listen: it is to be told again.
    #[must_use]
    pub fn order(&self, orders: &Arc<Checked>) -> bool {
        let told = self.orders.try_send(Arc::clone(orders)).is_ok();
        self.bell.ring();
        told
    }

    /// Tells it that a neighbour of this host has another address.
    pub fn neighbours_changed(&self) {
        self.shared
            .neighbours_changed
            .store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Asks it to close its device and end.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether the device told its own end.
    #[must_use]
    pub fn told_fatal(&self) -> bool {
        self.shared.fatal.load(Ordering::Relaxed)
    }

    /// How long its thread has not come around.
    #[must_use]
    pub fn silent_for(&self, now: Duration) -> Duration {
        let turned = Duration::from_millis(self.shared.turned_ms.load(Ordering::Relaxed));
        now.saturating_sub(turned)
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        *self
            .shared
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device, in its thread. Ports go before the device.
struct Open<'a> {
    ports: BTreeMap<u8, OpenPort>,
    orders: Arc<Checked>,
    budget: Budget,
    out: &'a Out,
    device: Arc<Device>,
}

#[derive(Default)]
struct OpenPort {
    ud: Option<UdPort>,
    /// As it was announced last.
    told: Option<Endpoint>,
    /// What its former queue pairs counted.
    before: Counters,
    again: Option<Duration>,
    /// What kept it from opening, as it was said last.
    said: String,
}

impl<'a> Open<'a> {
    fn new(name: &str, budget: Budget, out: &'a Out) -> io::Result<Open<'a>> {
        let device = Arc::new(Device::open(name)?);
        let count = device.attributes()?.ports.min(PORTS_MAX);
        Ok(Open {
            ports: (1..=count)
                .map(|port| (port, OpenPort::default()))
                .collect(),
            orders: Arc::default(),
            budget,
            out,
            device,
        })
    }

    fn run(
        &mut self,
        bell: &Bell,
        inbox: &Receiver<Arc<Checked>>,
        shared: &Shared,
    ) -> io::Result<()> {
        for port in self.port_numbers() {
            self.refresh(port);
        }
        let mut window_ends = now() + WINDOW;
        let ended = loop {
            let at = now();
            shared.turned_ms.store(millis(at), Ordering::Relaxed);
            self.wait(bell, window_ends.saturating_sub(at))?;
            bell.silence();
            if shared.closing.load(Ordering::Relaxed) {
                break Ok(());
            }
            if let Err(error) = self.take_events(shared) {
                break Err(error);
            }
            self.take_orders(inbox);
            if shared.neighbours_changed.swap(false, Ordering::Relaxed) {
                let uds = self.ports.values_mut().filter_map(|port| port.ud.as_mut());
                uds.for_each(UdPort::neighbours_changed);
            }
            for port in self.port_numbers() {
                self.step(port);
            }
            let at = now();
            if at >= window_ends {
                window_ends = at + WINDOW;
                self.end_window(at, shared);
            }
        };
        for port in self.port_numbers() {
            self.shut(port);
        }
        ended
    }

    fn port_numbers(&self) -> Vec<u8> {
        self.ports.keys().copied().collect()
    }

    fn wait(&self, bell: &Bell, window: Duration) -> io::Result<()> {
        let mut fds = vec![bell.fd(), self.device.async_fd()];
        let uds = self.ports.values().filter_map(|port| port.ud.as_ref());
        fds.extend(uds.clone().flat_map(UdPort::fds));
        let at = now();
        let due = uds
            .filter_map(UdPort::wake)
            .map(|wake| wake.saturating_sub(at));
        let timeout = due.min().map_or(window, |due| due.min(window));
        system::wait(&fds, timeout)?;
        Ok(())
    }

    /// # Errors
    /// The device is gone.
    fn take_events(&mut self, shared: &Shared) -> io::Result<()> {
        let mut changed = Vec::new();
        let mut fatal = false;
        while let Some((number, event)) = self.device.next_event()? {
            let port = event.port;
            match scope(number) {
                Some(Scope::Port) => changed.extend(port),
                Some(Scope::Device) if number == DEVICE_FATAL => {
                    fatal = true;
                    shared.fatal.store(true, Ordering::Relaxed);
                }
                Some(_) | None => {}
            }
            self.out.say(Line::Event(event));
        }
        if fatal {
            return Err(io::Error::other("the device failed fatally"));
        }
        changed.sort_unstable();
        changed.dedup();
        for port in changed {
            self.refresh(port);
        }
        Ok(())
    }

    fn take_orders(&mut self, inbox: &Receiver<Arc<Checked>>) {
        let mut new = None;
        while let Ok(orders) = inbox.try_recv() {
            new = Some(orders);
        }
        if let Some(orders) = new {
            self.orders = orders;
            for port in self.port_numbers() {
                self.aim(port);
            }
        }
    }

    /// Gives a port its targets, and whom to answer.
    fn aim(&mut self, port: u8) {
        let place = self.place(port);
        let aims = self.orders.aims.get(&place).cloned().unwrap_or_default();
        let share = self.orders.share(&place);
        if let Some(ud) = self.ports.get_mut(&port).and_then(|port| port.ud.as_mut()) {
            ud.set_aims(aims, share, now());
            ud.set_probers(self.orders.probers.as_ref(), now());
        }
    }

    fn place(&self, port: u8) -> Place {
        Place {
            device: self.device.name.clone(),
            port,
        }
    }

    /// Looks at a port anew: opens, announces or closes it.
    fn refresh(&mut self, number: u8) {
        if !self.ports.contains_key(&number) {
            return;
        }
        let opened = self.device.port(number).and_then(|seen| {
            self.open_port(number, &seen)?;
            Ok(seen)
        });
        let Some(port) = self.ports.get_mut(&number) else {
            return;
        };
        match opened {
            Ok(seen) => {
                port.again = port.ud.is_none().then(|| now() + AGAIN);
                if let Some(ud) = &mut port.ud {
                    ud.set_rate(seen.rate_bps, now());
                    let endpoint = ud.endpoint(&seen);
                    if port.told.as_ref() != Some(&endpoint) {
                        port.told = Some(endpoint.clone());
                        self.out.say(Line::Endpoint(endpoint));
                    }
                }
                self.aim(number);
            }
            Err(error) => {
                port.again = Some(now() + AGAIN);
                let text = format!("no pings on port {number}: {error}");
                if port.said != text {
                    self.out.fail(Some(&self.device.name), text.clone());
                    port.said = text;
                }
                self.shut(number);
            }
        }
    }

    fn open_port(&mut self, number: u8, seen: &Port) -> io::Result<()> {
        let gid = choose(&seen.gids);
        let fits = self
            .ports
            .get(&number)
            .and_then(|port| port.ud.as_ref())
            .is_some_and(|ud| gid.is_some_and(|gid| ud.fits(gid)));
        if fits {
            return Ok(());
        }
        self.shut(number);
        // A port without a GID of RoCE v2, such as InfiniBand's, does not ping.
        let Some(gid) = gid else { return Ok(()) };
        let ud = UdPort::open(&self.device, seen, gid, &self.budget, now())?;
        if let Some(port) = self.ports.get_mut(&number) {
            port.ud = Some(ud);
            port.said.clear();
        }
        Ok(())
    }

    fn shut(&mut self, number: u8) {
        let place = self.place(number);
        let Some(port) = self.ports.get_mut(&number) else {
            return;
        };
        if let Some(ud) = port.ud.take() {
            add(&mut port.before, &ud.counters);
        }
        if port.told.take().is_some() {
            self.out.say(Line::EndpointGone(place));
        }
    }

    fn step(&mut self, number: u8) {
        let Some(port) = self.ports.get_mut(&number) else {
            return;
        };
        if port.again.is_some_and(|again| now() >= again) {
            self.refresh(number);
            return;
        }
        let Some(ud) = &mut port.ud else { return };
        if let Err(error) = ud.step(now) {
            let text = format!("the pings of port {number} start anew: {error}");
            self.out.fail(Some(&self.device.name), text);
            // Not at once: a device that goes away fails again and again.
            port.again = Some(now() + WINDOW);
            self.shut(number);
        }
    }

    fn end_window(&mut self, at: Duration, shared: &Shared) {
        let mut sum = Counters::default();
        for port in self.ports.values_mut() {
            add(&mut sum, &port.before);
            if let Some(ud) = &mut port.ud {
                add(&mut sum, &ud.counters);
                for report in ud.reports(at) {
                    self.out.say(Line::Report(report));
                }
            }
        }
        *shared
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = sum;
    }
}

fn add(sum: &mut Counters, more: &Counters) {
    sum.pings_sent += more.pings_sent;
    sum.pings_answered += more.pings_answered;
    sum.pings_refused += more.pings_refused;
    sum.pings_not_listed += more.pings_not_listed;
    sum.pings_too_fast += more.pings_too_fast;
    sum.foreign_packets += more.foreign_packets;
    sum.pings_held_back += more.pings_held_back;
    sum.pings_unknown += more.pings_unknown;
    sum.completions_failed += more.completions_failed;
}
