//! One port that pings and answers: the prober's wishes carried out on queue pairs.

use crate::address::{Address, Route};
use crate::bucket::Bucket;
use crate::budget::{Budget, allowance};
use crate::device::{Device, Gid, Port};
use crate::packet::{self, Kind, Packet};
use crate::prober::{Aim, Prober, Shot};
use crate::queues::{Completion, Plan, Queues, Received, SEND_DEPTH, Sent};
use crate::resolver::Resolver;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use weir_verbs_protocol::{Counters, Endpoint, Report};

/// Ways that are kept: those of all targets of a node and of as many who ping it.
const ROUTES_MAX: usize = 2 * weir_verbs_protocol::TARGETS_MAX;
/// A way on which nothing was sent for this long is forgotten when there are too many; no packet takes as long to leave.
const ROUTE_IDLE: Duration = Duration::from_secs(30);
/// Pings whose answer waits for the way back, on which no answer went before.
const WAITING_MAX: usize = 256;
/// A target whose address was not found is not looked for again before: a look can take a second.
const ROUTE_AGAIN: Duration = Duration::from_secs(10);
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

enum Way {
    Known {
        address: Address,
        used: Duration,
    },
    /// It is looked for.
    Sought,
    Missing {
        until: Duration,
    },
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
    /// Answers of this port alone: what its link allows.
    answers: Bucket,
    rate: u32,
    ways: BTreeMap<Route, Way>,
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
        let rate = allowance(port.rate_bps);
        Ok(UdPort {
            prober: Prober::new(queues.clock, now),
            gid: gid.clone(),
            device: device.name.clone(),
            port: port.port,
            queue_pairs,
            qkey,
            session: random()?,
            budget: budget.clone(),
            answers: Bucket::new(rate, now),
            rate,
            ways: BTreeMap::new(),
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

    /// The port's rate has changed.
    pub fn set_rate(&mut self, rate_bps: Option<u64>, now: Duration) {
        self.rate = allowance(rate_bps);
        self.answers.set_rate(self.rate, now);
    }

    /// Pings these, at most at this rate and at what the link allows.
    pub fn set_aims(&mut self, aims: Vec<Aim>, per_second: u32, now: Duration) {
        self.prober.set_aims(aims, per_second.min(self.rate), now);
    }

    /// Sends only this many pings from now on.
    pub fn set_limit(&mut self, pings: u64) {
        self.prober.set_limit(pings);
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
        self.prober.expire(clock());
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
        if !self.answers.take(polled) || !self.budget.take_answer(polled) {
            self.counters.pings_refused += 1;
            return Ok(());
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
        let found = self.way(reply.route, now);
        if matches!(found, Found::Sought) && self.waiting.len() < WAITING_MAX {
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
            let way = match address {
                Ok(address) => Way::Known { address, used: now },
                Err(_) => Way::Missing {
                    until: now.saturating_add(ROUTE_AGAIN),
                },
            };
            self.ways.insert(route, way);
        }
        for reply in std::mem::take(&mut self.waiting) {
            self.reply(reply, clock)?;
        }
        Ok(())
    }

    fn ping(&mut self, shot: &Shot, clock: fn() -> Duration) -> io::Result<()> {
        let target = &shot.aim.target;
        let route = Route {
            gid: shot.aim.gid,
            flow_label: target.flow_label,
            hop_limit: target.hop_limit,
        };
        let now = clock();
        match self.way(route, now) {
            Found::Known => {}
            Found::Missing => {
                self.prober.unreachable(shot);
                return Ok(());
            }
            Found::Sought => {
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
        let Some(Way::Known {
            address,
            used: last,
        }) = self.ways.get_mut(&route)
        else {
            return Ok(false);
        };
        *last = now;
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
    fn way(&mut self, route: Route, now: Duration) -> Found {
        match self.ways.get(&route) {
            Some(Way::Known { .. }) => return Found::Known,
            Some(Way::Sought) => return Found::Sought,
            Some(Way::Missing { until }) if now < *until => return Found::Missing,
            Some(Way::Missing { .. }) | None => {}
        }
        self.make_room(now);
        if self.ways.len() >= ROUTES_MAX {
            return Found::Missing;
        }
        if self.resolver.ask(route) {
            self.ways.insert(route, Way::Sought);
        }
        Found::Sought
    }

    fn make_room(&mut self, now: Duration) {
        if self.ways.len() < ROUTES_MAX {
            return;
        }
        self.ways.retain(|_, way| match way {
            Way::Known { used, .. } => now.saturating_sub(*used) < ROUTE_IDLE,
            Way::Sought => true,
            Way::Missing { until } => now < *until,
        });
    }
}

enum Found {
    Known,
    Sought,
    Missing,
}

/// Of the kernel, so that no one can guess the key or the session.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
