//! One port that pings and answers: the prober's wishes carried out on queue pairs.

use crate::address::Address;
use crate::budget::{self, ANSWER_BYTES, Budget};
use crate::device::{Device, Gid, Port};
use crate::packet::{self, Kind, Packet};
use crate::prober::{Aim, Prober, Shot};
use crate::queues::{Completion, Plan, Queues, Received, SEND_DEPTH, Sent};
use crate::resolver::Resolver;
use crate::ways::{Look, Route, Ways};
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use weir_agent_core::probe::budget::Purpose;
use weir_agent_core::probe::gate::{Gate, Refusal};
use weir_verbs_protocol::{Counters, Endpoint, Report};

/// Pings whose answer waits for the way back, on which no answer went before.
const WAITING_MAX: usize = 256;
/// Queue pairs that send, where the UDP source port is made of their number. Eight paths can be
/// told apart well enough on links that a soft-RoCE host has.
const QUEUE_PAIRS_SOFTWARE: u16 = 8;

/// What a send buffer holds.
#[derive(Debug, Clone, Copy)]
enum Use {
    Ping { sequence: u64 },
    Answer(Reply),
    Delay,
}

/// Whom an answer goes to, and when the ping came.
#[derive(Debug, Clone, Copy)]
struct Reply {
    route: Route,
    qpn: u32,
    packet: Packet,
    /// By the device's clock; unused by the host's.
    came: u64,
    /// By the host's clock: when the ping was polled, and what lay between that and the post.
    polled: Duration,
    host_delay_ns: u64,
}

pub struct UdPort {
    queues: Queues,
    gid: Gid,
    device: String,
    port: u8,
    queue_pairs: u16,
    qkey: u32,
    session: u64,
    prober: Prober,
    budget: Budget,
    /// Whom it answers, within what its link allows.
    gate: Gate<Ipv6Addr>,
    probers: Option<BTreeSet<Ipv6Addr>>,
    rate_bps: Option<u64>,
    ways: Ways<Address>,
    resolver: Resolver,
    waiting: Vec<Reply>,
    uses: Vec<Option<Use>>,
    free: Vec<usize>,
    completions: Vec<Completion>,
    pub counters: Counters,
}

impl UdPort {
    /// Opens queue pairs on a port, with the GID to send from.
    ///
    /// # Errors
    /// What the device or the kernel refuses.
    pub fn open(
        device: &Arc<Device>,
        port: &Port,
        gid: &Gid,
        budget: &Budget,
        now: Duration,
    ) -> io::Result<UdPort> {
        let attributes = device.attributes()?;
        let queue_pairs = if attributes.software {
            QUEUE_PAIRS_SOFTWARE
        } else {
            1
        };
        // A key with its highest bit set is for the kernel alone.
        let qkey = u32::try_from(random()? >> 33).map_err(io::Error::other)?;
        let plan = Plan {
            port: port.port,
            queue_pairs,
            qkey,
            clock: attributes.clock,
        };
        let queues = Queues::open(device, plan)?;
        let mut gate = Gate::new(Purpose::UdAnswer, ANSWER_BYTES, now);
        gate.limit([(gid.gid, budget::rate(port.rate_bps))], now);
        Ok(UdPort {
            prober: Prober::new(queues.clock, now),
            gid: gid.clone(),
            device: device.name.clone(),
            port: port.port,
            queue_pairs,
            qkey,
            session: random()?,
            budget: budget.clone(),
            gate,
            probers: None,
            rate_bps: port.rate_bps,
            ways: Ways::default(),
            resolver: Resolver::start(queues.domain(), port.port, gid.index)?,
            queues,
            waiting: Vec::new(),
            uses: vec![None; SEND_DEPTH],
            free: (0..SEND_DEPTH).collect(),
            completions: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// Where others reach it, with the state of the port as given.
    #[must_use]
    pub fn endpoint(&self, port: &Port) -> Endpoint {
        Endpoint {
            device: self.device.clone(),
            port: self.port,
            gid: self.gid.gid.to_string(),
            gid_index: self.gid.index,
            qpn: self.queues.qpn(),
            qkey: self.qkey,
            queue_pairs: self.queue_pairs,
            active: port.is_active(),
            rate_bps: port.rate_bps,
            timestamps: self.queues.clock.timestamps(),
        }
    }

    /// Whether its queue pairs can go on with this GID.
    #[must_use]
    pub fn fits(&self, gid: &Gid) -> bool {
        self.gid.index == gid.index && self.gid.gid == gid.gid
    }

    /// The port's rate may have changed.
    pub fn set_rate(&mut self, rate_bps: Option<u64>, now: Duration) {
        self.rate_bps = rate_bps;
        let link = (self.gid.gid, budget::rate(rate_bps));
        self.gate.limit([link], now);
    }

    /// Pings these, at most at this rate and at what the link allows.
    pub fn set_aims(&mut self, aims: Vec<Aim>, per_second: u32, now: Duration) {
        let bytes_per_s = Purpose::UdPing.bytes_per_s(budget::rate(self.rate_bps));
        self.prober.set_aims(aims, per_second, bytes_per_s, now);
    }

    /// Answers these and no others; `None`: as before.
    pub fn set_probers(&mut self, probers: Option<&BTreeSet<Ipv6Addr>>, now: Duration) {
        if let Some(probers) = probers
            && self.probers.as_ref() != Some(probers)
        {
            self.probers = Some(probers.clone());
            self.gate.list(probers.clone(), now);
        }
    }

    /// A neighbour has another address: all handles are in doubt.
    pub fn neighbours_changed(&mut self) {
        self.ways.neighbours_changed();
    }

    /// Sends only this many pings from now on, to a target that must know of us: each one without an
    /// answer is lost.
    pub fn set_limit(&mut self, pings: u64) {
        self.prober.set_grace(Duration::ZERO);
        self.prober.set_limit(pings);
    }

    /// So many bytes follow each packet from now on, which makes it nobody's.
    pub fn set_padding(&mut self, bytes: u16) {
        self.queues.set_padding(bytes);
    }

    /// As many more.
    pub fn add_to_limit(&mut self, pings: u64) {
        self.prober.add_to_limit(pings);
    }

    /// Readable when there is something to do.
    #[must_use]
    pub fn fds(&self) -> [RawFd; 2] {
        [self.queues.channel_fd(), self.resolver.fd()]
    }

    #[must_use]
    pub fn wake(&self) -> Option<Duration> {
        self.prober.wake()
    }

    pub fn reports(&mut self, now: Duration) -> Vec<Report> {
        self.counters.pings_unknown = self.prober.unknown;
        self.prober.reports(now)
    }

    /// Handles what came, gives up what is late, sends what is due. `clock` is read anew for each packet.
    ///
    /// # Errors
    /// The queue pairs have failed: the port is to be opened anew.
    pub fn step(&mut self, clock: fn() -> Duration) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        let drained = self.queues.drain(&mut completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Sent(sent) => self.sent(sent, clock())?,
                Completion::Received(received) => {
                    self.received(&received, clock)?;
                    self.queues.recycle(&received)?;
                }
            }
        }
        self.completions = completions;
        drained?;
        self.take_ways(clock)?;
        let now = clock();
        self.ways.tidy(now);
        for route in self.prober.expire(now) {
            self.ways
                .doubt(route, now, |route| self.resolver.ask(route));
        }
        while let Some(shot) = self.prober.shoot(clock()) {
            self.ping(&shot, clock)?;
        }
        Ok(())
    }

    fn sent(&mut self, sent: Sent, now: Duration) -> io::Result<()> {
        let Some(used) = self.uses.get_mut(sent.slot).and_then(Option::take) else {
            return Err(io::Error::other("a completion of no packet"));
        };
        self.free.push(sent.slot);
        if !sent.ok {
            // The queue pair is in an error state.
            self.counters.completions_failed += 1;
            return Err(io::Error::other("a packet could not be sent"));
        }
        match used {
            Use::Ping { sequence } => self.prober.departed(sequence, sent.at),
            Use::Delay => {}
            Use::Answer(reply) => {
                let delay = match self.queues.clock {
                    crate::prober::Clock::Host => reply.host_delay_ns,
                    device @ crate::prober::Clock::Device { .. } => {
                        device.between(reply.came, sent.at)
                    }
                };
                let packet = Packet {
                    kind: Kind::Delay(delay),
                    ..reply.packet
                };
                if !self.post(
                    Use::Delay,
                    &packet,
                    reply.route,
                    (reply.qpn, reply.packet.qkey),
                    now,
                )? {
                    self.counters.pings_refused += 1;
                }
            }
        }
        Ok(())
    }

    fn received(&mut self, received: &Received, clock: fn() -> Duration) -> io::Result<()> {
        let polled = clock();
        if !received.ok {
            self.counters.completions_failed += 1;
            return Err(io::Error::other("a packet could not be received"));
        }
        let read = Packet::parse(&received.bytes).zip(packet::source(&received.grh));
        let Some((packet, from)) = read else {
            self.counters.foreign_packets += 1;
            return Ok(());
        };
        let own = packet.session == self.session;
        let known = match packet.kind {
            Kind::Ping => {
                let route = Route {
                    gid: from,
                    flow_label: packet.flow_label,
                    hop_limit: packet.hop_limit,
                };
                return self.answer(&packet, route, received, polled, clock);
            }
            Kind::Answer => {
                own && self
                    .prober
                    .answered(packet.sequence, from, received.at, polled)
            }
            Kind::Delay(ns) => own && self.prober.delayed(packet.sequence, from, ns),
        };
        self.counters.foreign_packets += u64::from(!known);
        Ok(())
    }

    fn answer(
        &mut self,
        packet: &Packet,
        route: Route,
        received: &Received,
        polled: Duration,
        clock: fn() -> Duration,
    ) -> io::Result<()> {
        match self
            .gate
            .admit(route.gid, self.gid.gid, ANSWER_BYTES, polled)
        {
            Ok(()) => {}
            Err(Refusal::NotListed) => {
                self.counters.pings_not_listed += 1;
                return Ok(());
            }
            Err(Refusal::TooFast | Refusal::NoRoom) => {
                self.counters.pings_too_fast += 1;
                return Ok(());
            }
        }
        let reply = Reply {
            route,
            qpn: received.from_qpn,
            packet: *packet,
            came: received.at,
            polled,
            host_delay_ns: 0,
        };
        self.reply(reply, clock)
    }

    /// Answers, now or when the way is known.
    fn reply(&mut self, mut reply: Reply, clock: fn() -> Duration) -> io::Result<()> {
        let now = clock();
        let look = self.look(reply.route, now);
        if look == Look::Sought && self.waiting.len() < WAITING_MAX {
            self.waiting.push(reply);
            return Ok(());
        }
        let delay = now.saturating_sub(reply.polled).as_nanos();
        reply.host_delay_ns = u64::try_from(delay).unwrap_or(u64::MAX);
        let answer = Packet {
            kind: Kind::Answer,
            ..reply.packet
        };
        let to = (reply.qpn, reply.packet.qkey);
        if self.post(Use::Answer(reply), &answer, reply.route, to, now)? {
            self.counters.pings_answered += 1;
        } else {
            self.counters.pings_refused += 1;
        }
        Ok(())
    }

    /// Takes the ways that were found, and answers who waited for them.
    fn take_ways(&mut self, clock: fn() -> Duration) -> io::Result<()> {
        let found = self.resolver.found();
        if found.is_empty() {
            return Ok(());
        }
        let now = clock();
        for (route, address) in found {
            self.ways.found(route, address, now);
        }
        for reply in std::mem::take(&mut self.waiting) {
            self.reply(reply, clock)?;
        }
        Ok(())
    }

    fn ping(&mut self, shot: &Shot, clock: fn() -> Duration) -> io::Result<()> {
        let target = &shot.aim.target;
        let route = shot.aim.route();
        let now = clock();
        match self.look(route, now) {
            Look::Known => {}
            Look::Unreachable => {
                self.prober.unreachable(shot, now);
                return Ok(());
            }
            // Not sent, so not lost.
            Look::Sought | Look::NoRoom => {
                self.counters.pings_held_back += 1;
                return Ok(());
            }
        }
        if self.free.is_empty() || !self.budget.take_ping(now) {
            self.counters.pings_held_back += 1;
            return Ok(());
        }
        let packet = Packet {
            kind: Kind::Ping,
            session: self.session,
            sequence: shot.sequence,
            flow_label: target.flow_label,
            hop_limit: target.hop_limit,
            qkey: self.qkey,
        };
        let to = (target.qpn, target.qkey);
        let sequence = shot.sequence;
        self.prober.posted(shot, now);
        if self.post(Use::Ping { sequence }, &packet, route, to, now)? {
            self.counters.pings_sent += 1;
        } else {
            self.prober.held_back(sequence);
            self.counters.pings_held_back += 1;
        }
        Ok(())
    }

    /// False if there is no way or no buffer.
    fn post(
        &mut self,
        used: Use,
        packet: &Packet,
        route: Route,
        to: (u32, u32),
        now: Duration,
    ) -> io::Result<bool> {
        let Some(address) = self.ways.take(route, now) else {
            return Ok(false);
        };
        let Some(slot) = self.free.pop() else {
            return Ok(false);
        };
        // An answer goes back on the path that the ping names, under the answering port's key.
        let packet = match packet.kind {
            Kind::Ping => *packet,
            Kind::Answer | Kind::Delay(_) => Packet {
                qkey: self.qkey,
                ..*packet
            },
        };
        let bytes = packet.write();
        if let Err(error) = self
            .queues
            .send(slot, &bytes, address, route.flow_label, to)
        {
            self.free.push(slot);
            // A full queue is no failure.
            return if error.raw_os_error() == Some(libc::ENOMEM) {
                Ok(false)
            } else {
                Err(error)
            };
        }
        if let Some(entry) = self.uses.get_mut(slot) {
            *entry = Some(used);
        }
        Ok(true)
    }

    /// Whether there is a way; looks for it if that is not known.
    fn look(&mut self, route: Route, now: Duration) -> Look {
        let resolver = &self.resolver;
        self.ways.look(route, now, |route| resolver.ask(route))
    }
}

/// Of the kernel, so that no one can guess the key or the session.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
