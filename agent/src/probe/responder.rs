//! Answers probes, in a thread of its own. Never more bytes than were asked with, never more often than
//! its gate allows, and never an error that ends it.

use super::local::Local;
use super::socket::{self, BUFFER_BYTES, Message, Socket, wall_ns};
use super::wake::Sleeper;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use weir_agent_core::probe::budget::Purpose;
use weir_agent_core::probe::gate::{Gate, Refusal};
use weir_agent_core::probe::packet::{Kind, Malformed, Packet};

/// A port that is taken is tried again after this long.
const BIND_AGAIN: Duration = Duration::from_secs(10);
/// Packets taken of one socket before the other gets its turn.
const BATCH: usize = 64;

/// How often each thing happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub answered: u64,
    pub not_listed: u64,
    pub too_fast: u64,
    pub no_room: u64,
    /// No requests of ours.
    pub strays: u64,
    pub corrupt: u64,
    pub other_version: u64,
    pub failed: u64,
}

/// What the main loop sees.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Port that is answered on.
    pub port: Option<u16>,
    /// Why it is not; empty if it is.
    pub reason: String,
    pub counters: Counters,
}

/// What the main loop tells.
#[derive(Debug)]
pub enum Told {
    Probers(BTreeSet<IpAddr>),
    Locals(Vec<Local>),
}

/// Binds both families to one port; a kernel without IPv6 is no error.
pub fn bind(port: u16) -> Result<Vec<Socket>, String> {
    let text = |error: io::Error| {
        format!(
            "cannot answer probes on port {port}: {error}; set probe.port to a free one, or to 0 to answer none"
        )
    };
    let v4 = Socket::bind((Ipv4Addr::UNSPECIFIED, port).into(), false).map_err(text)?;
    let same = v4.local.port();
    let v6 = Socket::bind((Ipv6Addr::UNSPECIFIED, same).into(), false);
    match v6 {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(text(error)),
        Err(error) => {
            tracing::debug!("no probes over IPv6: {error}");
            Ok(vec![v4])
        }
    }
}

/// The thread.
pub struct Responder {
    pub port: u16,
    pub sockets: Vec<Socket>,
    pub told: Receiver<Told>,
    pub sleeper: Sleeper,
    pub state: Arc<Mutex<State>>,
}

impl Responder {
    /// Runs until the other end of the sleeper is dropped.
    pub fn run(mut self) {
        let start = Instant::now();
        let mut gate = Gate::new(Purpose::UdpReply, WIRE_BYTES_MAX, Duration::ZERO);
        let mut counters = Counters::default();
        let mut told = true;
        let mut ready = Vec::new();
        while !told || self.sleeper.goes_on() {
            let now = start.elapsed();
            while let Ok(told) = self.told.try_recv() {
                match told {
                    Told::Probers(probers) => gate.list(probers, now),
                    Told::Locals(locals) => {
                        let rates = locals.iter().map(|l| (l.address, l.rate_bps));
                        gate.limit(rates, now);
                    }
                }
            }
            if self.sockets.is_empty() {
                self.bind_again();
            }
            let of_ready = self.sockets.iter().zip(&ready).filter(|(_, ready)| **ready);
            for (socket, _) in of_ready {
                answer_all(socket, &mut gate, &mut counters, start);
            }
            if ready.contains(&true) {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.counters = counters;
            }
            (told, ready) = self.wait();
        }
    }

    /// Whether the main loop said something, and which sockets have packets.
    fn wait(&self) -> (bool, Vec<bool>) {
        let mut fds = vec![self.sleeper.as_fd()];
        fds.extend(self.sockets.iter().map(Socket::as_fd));
        let timeout = self.sockets.is_empty().then_some(BIND_AGAIN);
        match socket::poll(&fds, timeout) {
            Ok(mut ready) => (ready.remove(0), ready),
            Err(error) => {
                tracing::warn!("probes cannot be waited for: {error}");
                std::thread::sleep(BIND_AGAIN);
                (true, Vec::new())
            }
        }
    }

    fn bind_again(&mut self) {
        let bound = bind(self.port);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match bound {
            Ok(sockets) => {
                state.port = sockets.first().map(|socket| socket.local.port());
                state.reason.clear();
                drop(state);
                self.sockets = sockets;
            }
            Err(reason) => state.reason = reason,
        }
    }
}

fn answer_all(socket: &Socket, gate: &mut Gate<IpAddr>, counters: &mut Counters, start: Instant) {
    for _ in 0..BATCH {
        let mut buffer = [0; BUFFER_BYTES];
        match socket.receive(&mut buffer, false) {
            Ok(Some(message)) => {
                let bytes = buffer.get(..message.length).unwrap_or_default();
                answer(socket, bytes, &message, gate, counters, start);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!("a probe could not be read: {error}");
                return;
            }
        }
    }
}

fn answer(
    socket: &Socket,
    bytes: &[u8],
    message: &Message,
    gate: &mut Gate<IpAddr>,
    counters: &mut Counters,
    start: Instant,
) {
    let packet = match Packet::decode(bytes) {
        Ok(packet) if packet.kind == Kind::Request => packet,
        Ok(_) | Err(Malformed::Foreign) => {
            counters.strays += 1;
            return;
        }
        Err(Malformed::Corrupt) => {
            counters.corrupt += 1;
            return;
        }
        Err(Malformed::Version(_)) => {
            counters.other_version += 1;
            return;
        }
    };
    let (Some(from), Some(to)) = (message.from, message.control.to) else {
        counters.strays += 1;
        return;
    };
    match gate.admit(from.ip(), to, wire_bytes(from), start.elapsed()) {
        Ok(()) => {}
        Err(Refusal::NotListed) => {
            counters.not_listed += 1;
            return;
        }
        Err(Refusal::TooFast) => {
            counters.too_fast += 1;
            return;
        }
        Err(Refusal::NoRoom) => {
            counters.no_room += 1;
            return;
        }
    }
    let held = message
        .control
        .kernel
        .and_then(|came| wall_ns().checked_sub(came));
    let reply = packet.reply(held.map(Duration::from_nanos)).encode();
    match socket.send(&reply, from, Some(to)) {
        Ok(()) => counters.answered += 1,
        Err(error) => {
            tracing::debug!("no answer to {from}: {error}");
            counters.failed += 1;
        }
    }
}

/// Of any probe: over IPv6.
const WIRE_BYTES_MAX: u32 = 8 + 14 + 40 + 8 + 64 + 4 + 12;

/// Length of a probe on an Ethernet wire: preamble, headers, 64 bytes, checksum, gap.
#[must_use]
pub fn wire_bytes(peer: SocketAddr) -> u32 {
    match peer {
        SocketAddr::V4(_) => 8 + 14 + 20 + 8 + 64 + 4 + 12,
        SocketAddr::V6(_) => WIRE_BYTES_MAX,
    }
}
