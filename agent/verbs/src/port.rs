//! One port that pings and answers: the prober's wishes carried out on queue pairs.

use crate::bucket::Bucket;
use crate::device::{Device, Gid, Port};
use crate::packet::{self, Kind, Packet};
use crate::prober::{Aim, Prober, Shot};
use crate::queues::{Address, Completion, Plan, Queues, Received, Route, SEND_DEPTH, Sent};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weir_verbs_protocol::{Counters, Endpoint, PINGS_PER_SECOND_MAX, Report};

/// Ways that are kept: those of all targets of a node and of as many who ping it.
const ROUTES_MAX: usize = 2 * weir_verbs_protocol::TARGETS_MAX;
/// A way on which nothing was sent for this long is forgotten when there are too many; no packet takes as long to leave.
const ROUTE_IDLE: Duration = Duration::from_secs(30);
/// A target whose address was not found is not looked for again before: a look can take a second.
const ROUTE_AGAIN: Duration = Duration::from_secs(10);
/// A packet on the wire: preamble, Ethernet, IPv6, UDP, BTH, DETH, the packet, ICRC, FCS, gap.
const WIRE_BITS: u64 = 8 * (8 + 14 + 40 + 8 + 12 + 8 + packet::SIZE as u64 + 4 + 4 + 12);
/// Share of a link that pings may take: one in so many.
const LINK_SHARE: u64 = 1000;
/// Assumed of a port that does not tell its rate.
const RATE_UNKNOWN_BPS: u64 = 1_000_000_000;
/// Queue pairs that send, where the UDP source port is made of their number. Eight paths can be
/// told apart well enough on links that a soft-RoCE host has.
const QUEUE_PAIRS_SOFTWARE: u16 = 8;

/// Pings a second that a link may carry.
#[must_use]
pub fn allowance(rate_bps: Option<u64>) -> u32 {
    let bits = rate_bps.unwrap_or(RATE_UNKNOWN_BPS) / LINK_SHARE;
    // An answer is two packets; a ping and what it brings forth leave no more than that on either side.
    let packets = bits / (2 * WIRE_BITS);
    u32::try_from(packets)
        .unwrap_or(u32::MAX)
        .min(PINGS_PER_SECOND_MAX)
}

/// What all ports of this process share.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Own pings.
    pub pings: Arc<Mutex<Bucket>>,
    /// Answers to pings of others.
    pub answers: Arc<Mutex<Bucket>>,
}

impl Budget {
    /// At most [`PINGS_PER_SECOND_MAX`] of each.
    #[must_use]
    pub fn new(now: Duration) -> Budget {
        let full = || Arc::new(Mutex::new(Bucket::new(PINGS_PER_SECOND_MAX, now)));
        Budget {
            pings: full(),
            answers: full(),
        }
    }
}

fn take(bucket: &Mutex<Bucket>, now: Duration) -> bool {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.take(now)
}

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
    /// By the host's clock, what lay between the poll and the post.
    host_delay_ns: u64,
}

enum Way {
    Known { address: Address, used: Duration },
    Missing { until: Duration },
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
            queues,
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

    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.queues.channel_fd()
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
        if !self.answers.take(polled) || !take(&self.budget.answers, polled) {
            self.counters.pings_refused += 1;
            return Ok(());
        }
        // The way is looked for before the clock is read: it can take long the first time.
        let now = clock();
        self.way(route, now);
        let to = (received.from_qpn, packet.qkey);
        let mut reply = Reply {
            route,
            qpn: received.from_qpn,
            packet: *packet,
            came: received.at,
            host_delay_ns: 0,
        };
        let answer = Packet {
            kind: Kind::Answer,
            ..*packet
        };
        let posted = clock();
        let delay = posted.saturating_sub(polled).as_nanos();
        reply.host_delay_ns = u64::try_from(delay).unwrap_or(u64::MAX);
        if self.post(Use::Answer(reply), &answer, route, to, posted)? {
            self.counters.pings_answered += 1;
        } else {
            self.counters.pings_refused += 1;
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
        if self.way(route, clock()).is_none() {
            self.prober.unreachable(shot);
            return Ok(());
        }
        let now = clock();
        if self.free.is_empty() || !take(&self.budget.pings, now) {
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
        let Some(address) = self.way(route, now) else {
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

    fn way(&mut self, route: Route, now: Duration) -> Option<Address> {
        match self.ways.get_mut(&route) {
            Some(Way::Known { address, used }) => {
                *used = now;
                return Some(*address);
            }
            Some(Way::Missing { until }) if now < *until => return None,
            Some(Way::Missing { .. }) | None => {}
        }
        self.make_room(now);
        if self.ways.len() >= ROUTES_MAX {
            return None;
        }
        let found = self.queues.address(route, self.gid.index);
        let way = match &found {
            Ok(address) => Way::Known {
                address: *address,
                used: now,
            },
            Err(_) => Way::Missing {
                until: now.saturating_add(ROUTE_AGAIN),
            },
        };
        self.ways.insert(route, way);
        found.ok()
    }

    fn make_room(&mut self, now: Duration) {
        if self.ways.len() < ROUTES_MAX {
            return;
        }
        let queues = &mut self.queues;
        self.ways.retain(|_, way| match way {
            Way::Known { address, used } => {
                let keep = now.saturating_sub(*used) < ROUTE_IDLE;
                if !keep {
                    queues.forget(*address);
                }
                keep
            }
            Way::Missing { until } => now < *until,
        });
    }
}

impl Drop for UdPort {
    fn drop(&mut self) {
        // Before the queue pairs go, which wait for nothing.
        for way in std::mem::take(&mut self.ways).into_values() {
            if let Way::Known { address, .. } = way {
                self.queues.forget(address);
            }
        }
    }
}

/// Of the kernel, so that no one can guess the key or the session.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_carries_more_than_a_thousandth_in_pings() {
        for rate in [1_000_000, 2_500_000_000, 10_000_000_000, 400_000_000_000] {
            let packets = u64::from(allowance(Some(rate)));
            assert!(packets * 2 * WIRE_BITS <= rate / 1000, "{rate}");
            assert!(packets <= 10_000);
        }
        assert_eq!(allowance(Some(400_000_000_000)), 10_000);
        assert!(allowance(None) > 100);
    }
}
