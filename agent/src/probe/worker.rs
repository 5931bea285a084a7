//! Sends probes and takes their replies, in a thread of its own.

use super::list::{List, Way};
use super::local::{self, Local};
use super::ready::Set;
use super::responder::{Told, wire_bytes};
use super::socket::{self, BUFFER_BYTES, Cause, Socket, wall_ns};
use super::wake::{Sleeper, Waker};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use weir_agent_core::probe::budget::{PACKETS_PER_S_MAX, Purpose};
use weir_agent_core::probe::packet::{LENGTH, Malformed, Packet};
use weir_agent_core::probe::prober::{
    Counters, Order, Prober, Settings, Stamps, Target, TargetReport,
};

/// Results are shown this often.
const PUBLISH: Duration = Duration::from_secs(1);
/// Own addresses and rates are looked at again after this long.
const REFRESH: Duration = Duration::from_secs(10);
/// Packets taken of each socket before probes are given up and sent: more than come of ours meanwhile.
const ROUNDS: usize = 256;

/// Where a target is, and which address of ours its probes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    to: SocketAddr,
    from: Option<IpAddr>,
}

/// What the main loop sees.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub reports: Vec<TargetReport>,
    pub counters: Counters,
    pub locals: Vec<Local>,
    /// Rate of the slowest link that probes leave by; `None`: no driver tells one.
    pub rate_bps: Option<u64>,
    /// Targets that are reached by verbs only, or are beyond the limits.
    pub left_out: usize,
    /// Why it does not go on; empty if it does.
    pub reason: String,
}

/// The thread.
pub struct Worker {
    pub sockets: Sockets,
    pub settings: Settings,
    pub packets_per_s: u32,
    pub exclude: Vec<String>,
    pub seed: u64,
    pub lists: Receiver<List>,
    pub sleeper: Sleeper,
    pub responder: Option<(Sender<Told>, Waker)>,
    pub state: Arc<Mutex<State>>,
}

/// One socket for each path, in each address family that the kernel has.
#[derive(Debug, Default)]
pub struct Sockets {
    v4: Vec<Socket>,
    v6: Vec<Socket>,
}

impl Sockets {
    /// # Errors
    /// Neither family can be had.
    pub fn bind(paths: u8) -> io::Result<Sockets> {
        let bind = |any: IpAddr| -> io::Result<Vec<Socket>> {
            let one = |_| Socket::bind(SocketAddr::new(any, 0), true);
            (0..paths).map(one).collect()
        };
        let v4 = bind(Ipv4Addr::UNSPECIFIED.into());
        let v6 = bind(Ipv6Addr::UNSPECIFIED.into());
        if let (Err(error), Err(_)) = (&v4, &v6) {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        Ok(Sockets {
            v4: v4.unwrap_or_default(),
            v6: v6.unwrap_or_default(),
        })
    }

    fn of(&self, address: SocketAddr) -> &[Socket] {
        match address {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => &self.v6,
        }
    }

    /// Source ports by path, for probes from such an address.
    #[must_use]
    pub fn ports(&self, address: IpAddr) -> Vec<u16> {
        let sockets = self.of(SocketAddr::new(address, 0));
        sockets.iter().map(|socket| socket.local.port()).collect()
    }

    /// Every socket.
    fn all(&self) -> impl Iterator<Item = &Socket> {
        self.v4.iter().chain(&self.v6)
    }

    /// A socket by its place in [`Self::all`], with the number of its path.
    fn at(&self, index: usize) -> Option<(u8, &Socket)> {
        let v6 = || self.v6.get(index - self.v4.len());
        let path = index.checked_sub(self.v4.len()).unwrap_or(index);
        let socket = self.v4.get(index).or_else(v6)?;
        Some((u8::try_from(path).ok()?, socket))
    }
}

impl Worker {
    /// Runs until the other end of the sleeper is dropped.
    pub fn run(mut self) {
        if let Err(error) = self.work() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.reason = format!("probes cannot be waited for: {error}");
        }
    }

    fn work(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let set = Set::of(self.sockets.all())?;
        let mut prober = Prober::new(self.settings, self.seed, Duration::ZERO);
        let mut list = None;
        let (mut published, mut refreshed) = (Duration::ZERO, None::<Duration>);
        let mut told = true;
        while !told || self.sleeper.goes_on() {
            let newest = self.lists.try_iter().last();
            let is_new = newest.is_some();
            list = newest.or(list);
            let now = start.elapsed();
            if is_new || refreshed.is_none_or(|at| now.saturating_sub(at) >= REFRESH) {
                self.refresh(&mut prober, list.as_ref(), now);
                refreshed = Some(now);
            }
            self.take(&set, &mut prober, start)?;
            prober.handle_timeout(start.elapsed());
            while let Some(order) = prober.poll_order(wall_ns(), start.elapsed()) {
                self.send(&order, &mut prober, start);
            }
            let now = start.elapsed();
            let due = prober.poll_timeout();
            if is_new || now.saturating_sub(published) >= PUBLISH {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.reports = prober.report();
                state.counters = prober.counters;
                published = now;
            }
            let others = if due.is_none() { REFRESH } else { PUBLISH };
            let next = due.map_or(others, |at| at.saturating_sub(now));
            let next = next.max(prober.pause()).min(others);
            told = self.wait(prober.is_watching(now).then_some(&set), next)?;
        }
        Ok(())
    }

    /// Waits for the main loop or the time, and for packets only if there is a set; true if the main
    /// loop said something.
    fn wait(&self, set: Option<&Set>, timeout: Duration) -> io::Result<bool> {
        let mut fds = vec![self.sleeper.as_fd()];
        fds.extend(set.map(Set::as_fd));
        let ready = socket::poll(&fds, Some(timeout))?;
        Ok(ready.first() == Some(&true))
    }

    /// Takes all that has come: stamps of what was sent before replies to it.
    fn take(&self, set: &Set, prober: &mut Prober<Peer>, start: Instant) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let ready = set.take()?;
            if ready.is_empty() {
                break;
            }
            let sockets = ready
                .iter()
                .filter_map(|r| Some((r, self.sockets.at(r.index)?)));
            for (ready, (path, socket)) in sockets {
                let stamp = ready.error && take_error(socket, prober);
                // An error that is not on the queue goes with the next packet.
                if ready.packet || (ready.error && !stamp) {
                    take_reply(socket, path, prober, start);
                }
            }
        }
        Ok(())
    }

    /// Looks up own addresses and rates, and makes targets of the list.
    fn refresh(&mut self, prober: &mut Prober<Peer>, list: Option<&List>, now: Duration) {
        let locals = local::read(&self.exclude).unwrap_or_else(|error| {
            tracing::debug!("own addresses: {error}");
            Vec::new()
        });
        if let Some((told, waker)) = &self.responder
            && told.send(Told::Locals(locals.clone())).is_ok()
        {
            waker.wake();
        }
        let (mut rate_bps, mut left_out) = (None, 0);
        if let Some(list) = list {
            let mut targets = Vec::new();
            for ping in &list.targets {
                let Way::Udp(to) = ping.way else {
                    continue;
                };
                let own = locals.iter().find(|l| l.port == ping.from);
                let leaves_by = own.or_else(|| local::leaves_by(&locals, to));
                let rate = leaves_by.and_then(|l| l.rate_bps);
                rate_bps = match (rate_bps, rate) {
                    (Some(a), Some(b)) => Some(std::cmp::min::<u64>(a, b)),
                    (a, b) => a.or(b),
                };
                let sockets = u8::try_from(self.sockets.of(to).len()).unwrap_or(u8::MAX);
                if sockets == 0 || (!ping.from.is_empty() && own.is_none()) {
                    continue;
                }
                targets.push(Target {
                    name: ping.name(),
                    address: Peer {
                        to,
                        from: own.map(|l| l.address),
                    },
                    paths: ping.paths.min(sockets),
                    wire_bytes: wire_bytes(to),
                });
            }
            let others = list
                .targets
                .iter()
                .filter(|p| matches!(p.way, Way::Ud { .. }));
            let others = others.count();
            left_out = list.unusable + list.targets.len() - targets.len() - others;
            let packets_per_s = list
                .share(list.targets.len() - others, self.packets_per_s)
                .min(PACKETS_PER_S_MAX);
            let bytes = Purpose::UdpProbe.bytes_per_s(rate_bps);
            left_out += prober.set_targets(targets, packets_per_s, bytes, now);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.locals, state.rate_bps, state.left_out) = (locals, rate_bps, left_out);
    }

    fn send(&self, order: &Order<Peer>, prober: &mut Prober<Peer>, start: Instant) {
        let Peer { to, from } = order.address;
        let sequence = order.packet.sequence;
        let Some(socket) = self.sockets.of(to).get(usize::from(order.path)) else {
            prober.failed(sequence);
            return;
        };
        let bytes = order.packet.encode();
        // An error of an earlier probe, such as a refusal, is told by the next call, once.
        let sent = socket.send(&bytes, to, from);
        if let Err(error) = sent.or_else(|_| socket.send(&bytes, to, from)) {
            tracing::debug!("no probe to {to}: {error}");
            prober.failed(sequence);
            return;
        }
        // It is there at once, and would wake whoever waits for the answer.
        if prober.is_watching(start.elapsed()) {
            take_error(socket, prober);
        }
    }
}

/// Takes the stamp of what was sent, or what came back undelivered; false if there is nothing.
fn take_error(socket: &Socket, prober: &mut Prober<Peer>) -> bool {
    let mut buffer = [0; BUFFER_BYTES];
    let Ok(Some(message)) = socket.receive(&mut buffer, true) else {
        return false;
    };
    let start = message.length.saturating_sub(LENGTH);
    let Ok(packet) = Packet::decode(buffer.get(start..message.length).unwrap_or_default()) else {
        return true;
    };
    let control = message.control;
    match control.error {
        Some(Cause::Stamped) => prober.stamped(&packet, control.kernel, control.nic),
        Some(Cause::Refused) => prober.refused(&packet),
        // The path's fault: it is lost when its time is over.
        Some(Cause::Undelivered) | None => {}
    }
    true
}

fn take_reply(socket: &Socket, path: u8, prober: &mut Prober<Peer>, start: Instant) {
    let mut buffer = [0; BUFFER_BYTES];
    // An error is what a former probe met; the next call has the packets.
    let Ok(Some(message)) = socket.receive(&mut buffer, false) else {
        return;
    };
    let stamps = Stamps {
        user: wall_ns(),
        kernel: message.control.kernel,
        nic: message.control.nic,
    };
    let bytes = buffer.get(..message.length).unwrap_or_default();
    match (Packet::decode(bytes), message.from) {
        (Ok(packet), Some(from)) => {
            let expected = prober.address_of(packet.sequence);
            let is_it = expected.filter(|peer| {
                peer.to == from && peer.from.is_none_or(|own| Some(own) == message.control.to)
            });
            // An address that is not the target's is nobody's.
            let from = is_it.unwrap_or(Peer {
                to: from,
                from: None,
            });
            prober.replied(&packet, from, path, stamps, start.elapsed());
        }
        (Err(Malformed::Corrupt), _) => prober.counters.corrupt += 1,
        (Ok(_) | Err(Malformed::Foreign | Malformed::Version(_)), _) => prober.counters.strays += 1,
    }
}
