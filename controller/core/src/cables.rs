//! Cables that lose packets: what one end sends the other must receive.
//!
//! What is estimated: for each cable between two switches and each direction, the share of packets (of bytes, where packets
//! are not counted) that left and did not arrive, over up to [`WINDOWS`] windows. Only cables between switches: a host's
//! network interface does not count what its adapter sends past the kernel.
//!
//! The two ends are read at different moments: by the agents' clocks, set by the frame that came soonest. What may have been on its way in between is known, since the moments
//! are: traffic at the highest rate seen, for as long as they lie apart, and a [`BURST`] where intervals are long. What vendors count differently (checksums, pause
//! frames) is the same on most cables: a share is compared with the median of all of them.
//!
//! Trip condition: [`LOSS_PACKETS`] or [`LOSS_BYTES`] above the median *and* more than may have been on its way, in each of
//! the last two looks. Cold start: two windows. Recovery: [`crate::incident`]. Cost: two additions a sample; a look
//! over all cables once a window.

use crate::ids::PortId;
use crate::io::PortSample;
use crate::keep::keep;
use crate::topology::{LinkIx, Topology};
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Windows looked back on.
const WINDOWS: usize = 12;
/// Least share of packets lost that is worth a verdict: ten times what pause frames that one end counts may be.
const LOSS_PACKETS: f64 = 0.003;
/// Of bytes: one end may count four bytes of checksum in each packet.
const LOSS_BYTES: f64 = 0.01;
/// Bytes are compared where packets are as large as this on average.
const PACKET_BYTES_MIN: f64 = 512.0;
/// Moments of reading are known no better.
const JITTER: Duration = Duration::from_millis(50);
/// A job sends all that an interval shows in a part of it: where that is longer than a second, up to so much more than its
/// mean rate says passes between two readings. Three seconds: longer than most training steps.
const BURST: Duration = Duration::from_secs(3);
/// One part of so many may a clock be off.
const DRIFT: u32 = 10_000;
/// Less traffic over a cable says nothing.
const PACKETS_MIN: u64 = 10_000;

/// What a port had counted at the end of a window, since it is counted without a gap.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    window: u64,
    /// Time of the agent's clock since the port is counted without a gap.
    clock: Duration,
    sums: Sums,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sums {
    tx_packets: u64,
    rx_packets: u64,
    tx_bytes: u64,
    rx_bytes: u64,
}

#[derive(Debug, Clone, Default)]
struct Port {
    sums: Sums,
    /// Highest bytes a second sent in one interval.
    peak: f64,
    /// The newest interval, and the shorter of the last two: the longer may be that of a lost sample.
    elapsed: Duration,
    interval: Duration,
    clock: Duration,
    /// Least that arrival was after `clock`: that of a frame which nothing delayed.
    lag: Duration,
    marks: VecDeque<Mark>,
}

keep!(struct Mark { window, clock, sums });
keep!(struct Sums { tx_packets, rx_packets, tx_bytes, rx_bytes });
keep!(struct Port { sums, peak, elapsed, interval, clock, lag, marks });

/// What all ports of switches count.
#[derive(Debug, Clone)]
pub struct Cables {
    window: Duration,
    ports: Vec<Port>,
    looks: Looks,
}

/// What the last looks found.
#[derive(Debug, Clone, Default)]
struct Looks {
    next: Duration,
    suspects: BTreeSet<PortId>,
    standing: Vec<Verdict>,
}

keep!(struct Looks { next, suspects, standing });

/// What a replay has to know: the ports of cables that are looked at, and what was found.
#[derive(Debug, Clone)]
pub struct Memory {
    ports: Vec<(PortId, Port)>,
    looks: Looks,
}

keep!(struct Memory { ports, looks });

/// A cable's direction over the windows that both ends have.
struct Account {
    link: LinkIx,
    sent: u64,
    arrived: u64,
    /// Share lost, of packets or bytes.
    share: f64,
    /// Share that may have been on its way.
    doubt: f64,
    by_packets: bool,
    seconds: f64,
}

impl Cables {
    /// Windows of this length.
    #[must_use]
    pub fn new(window: Duration) -> Cables {
        Cables {
            window: window.max(Duration::from_secs(1)),
            ports: Vec::new(),
            looks: Looks::default(),
        }
    }

    #[must_use]
    pub fn memory(&self, topology: &Topology) -> Memory {
        let switches = topology
            .nodes()
            .filter(|(node, _)| topology.is_switch(node));
        let links = switches.flat_map(|(_, links)| links).map(|(_, link)| *link);
        let ports = links.filter_map(|link| {
            let port = topology.port(link);
            let peer = topology.peer(port);
            let counted = self.ports.get(link.index())?;
            let is_looked_at = peer.is_none_or(|peer| topology.is_switch(&peer.node));
            is_looked_at.then(|| (port.clone(), counted.clone()))
        });
        Memory {
            ports: ports.collect(),
            looks: self.looks.clone(),
        }
    }

    /// Goes on from there.
    pub fn remember(&mut self, memory: Memory, topology: &Topology) {
        let Memory { ports, looks } = memory;
        (self.ports, self.looks) = (Vec::new(), looks);
        for (port, counted) in ports {
            if let Some(link) = topology.number_of(&port) {
                *self.port(link) = counted;
            }
        }
    }

    /// What a port counts, from now on if it was not counted before.
    fn port(&mut self, link: LinkIx) -> &mut Port {
        if self.ports.len() <= link.index() {
            self.ports.resize_with(link.index() + 1, Port::default);
        }
        &mut self.ports[link.index()]
    }

    /// Takes an interval of a switch's port; `None` for a gap, after which counting starts anew.
    pub fn sampled(
        &mut self,
        link: LinkIx,
        sample: &PortSample,
        elapsed: Option<Duration>,
        at: Duration,
    ) {
        let window_length = self.window.as_micros();
        let port = self.port(link);
        let (Some(elapsed), Some(tx), Some(rx)) = (elapsed, sample.tx_bytes, sample.rx_bytes)
        else {
            *port = Port::default();
            return;
        };
        let sums = &mut port.sums;
        let add = |sum: &mut u64, rise: u64| *sum = sum.saturating_add(rise);
        add(&mut sums.tx_bytes, tx);
        add(&mut sums.rx_bytes, rx);
        add(&mut sums.tx_packets, sample.tx_packets.unwrap_or(0));
        add(&mut sums.rx_packets, sample.rx_packets.unwrap_or(0));
        // The first frame says nothing of the second's delay; clocks may drift apart by as much as is added.
        let first = port.clock == Duration::ZERO;
        port.clock += elapsed;
        port.interval = if first {
            elapsed
        } else {
            port.elapsed.min(elapsed)
        };
        port.elapsed = elapsed;
        let lag = at.saturating_sub(port.clock);
        let drifted = port.lag + elapsed / DRIFT;
        port.lag = if first { lag } else { lag.min(drifted) };
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 {
            port.peak = port.peak.max(tx as f64 / seconds);
        }
        let window = u64::try_from(at.as_micros() / window_length).unwrap_or(u64::MAX);
        if port.marks.back().is_none_or(|m| m.window < window) {
            if port.marks.is_empty() {
                port.marks.reserve_exact(WINDOWS);
            }
            if port.marks.len() == WINDOWS {
                port.marks.pop_front();
            }
            let (clock, sums) = (port.clock, port.sums);
            port.marks.push_back(Mark {
                window,
                clock,
                sums,
            });
        }
    }

    /// What is to blame now.
    pub fn verdicts(&mut self, topology: &Topology, now: Duration) -> &[Verdict] {
        if now >= self.looks.next {
            self.looks.next = now + self.window;
            let accounts: Vec<Account> = topology
                .links()
                .filter(|(a, b)| topology.is_switch(&a.node) && topology.is_switch(&b.node))
                .filter_map(|(port, peer)| self.account(topology.link(port)?, topology.link(peer)?))
                .collect();
            let usual = |by_packets: bool| {
                let shares = accounts.iter().filter(|a| a.by_packets == by_packets);
                let mut shares: Vec<f64> = shares.map(|a| a.share).collect();
                shares.sort_by(f64::total_cmp);
                shares
                    .get(shares.len() / 2)
                    .copied()
                    .unwrap_or(0.0)
                    .max(0.0)
            };
            let (packets, bytes) = (usual(true), usual(false));
            let lossy = accounts.into_iter().filter(|a| {
                let (usual, least) = if a.by_packets {
                    (packets, LOSS_PACKETS)
                } else {
                    (bytes, LOSS_BYTES)
                };
                a.share - usual >= least.max(a.doubt)
            });
            let lossy: Vec<Account> = lossy.collect();
            let port = |a: &Account| topology.port(a.link).clone();
            let again = |a: &&Account| self.looks.suspects.contains(topology.port(a.link));
            let again = lossy.iter().filter(again);
            self.looks.standing = again.filter_map(|a| verdict(a, topology)).collect();
            self.looks.suspects = lossy.iter().map(port).collect();
        }
        &self.looks.standing
    }

    /// What left by `link` and what came in at its other end, whose link back is `back`; over the windows of both.
    fn account(&self, link: LinkIx, back: LinkIx) -> Option<Account> {
        let (near, far) = (self.ports.get(link.index())?, self.ports.get(back.index())?);
        let pairs = near.marks.iter().filter_map(|a| {
            let b = far.marks.iter().find(|b| b.window == a.window)?;
            Some((a, b))
        });
        let pairs: Vec<(&Mark, &Mark)> = pairs.collect();
        let ((a0, b0), (a1, b1)) = (pairs.first()?, pairs.last()?);
        if pairs.len() < 2 {
            return None;
        }
        let rise = |to: u64, from: u64| to.saturating_sub(from);
        let bytes = rise(a1.sums.tx_bytes, a0.sums.tx_bytes);
        let packets = rise(a1.sums.tx_packets, a0.sums.tx_packets);
        let arrived = rise(b1.sums.rx_packets, b0.sums.rx_packets);
        if packets < PACKETS_MIN {
            return None;
        }
        let by_packets = arrived > 0;
        if !by_packets && (bytes as f64) < PACKET_BYTES_MIN * packets as f64 {
            return None;
        }
        let (sent, arrived) = if by_packets {
            (packets, arrived)
        } else {
            (bytes, rise(b1.sums.rx_bytes, b0.sums.rx_bytes))
        };
        // When they were read, not when the frames came: those may be late.
        let apart = |a: &Mark, b: &Mark| (a.clock + near.lag).abs_diff(b.clock + far.lag);
        let apart = apart(a0, b0) + apart(a1, b1) + 2 * JITTER;
        let burst = near
            .interval
            .saturating_sub(Duration::from_secs(1))
            .min(BURST);
        let on_its_way = near.peak * (apart + 2 * burst).as_secs_f64();
        Some(Account {
            link,
            sent,
            arrived,
            share: 1.0 - arrived as f64 / sent as f64,
            doubt: on_its_way / bytes.max(1) as f64,
            by_packets,
            seconds: a1.clock.saturating_sub(a0.clock).as_secs_f64(),
        })
    }
}

fn verdict(account: &Account, topology: &Topology) -> Option<Verdict> {
    let port: &PortId = topology.port(account.link);
    let peer = topology.peer(port)?;
    let unit = if account.by_packets {
        "packets"
    } else {
        "bytes"
    };
    let evidence = vec![
        Evidence::new(
            format!("{unit} that left {port} and did not arrive at {peer}"),
            format!(
                "{} of {} in {:.0} s ({:.2} %)",
                account.sent.saturating_sub(account.arrived),
                account.sent,
                account.seconds,
                account.share * 100.0
            ),
        ),
        Evidence::new(
            "may have been on their way",
            format!("{:.2} %", account.doubt * 100.0),
        ),
    ];
    Some(Verdict {
        links: vec![port.clone()],
        evidence,
        action: format!(
            "drain the cable between {port} and {peer}, then clean or change the module, the cable, the port"
        ),
        ..Verdict::new(
            Class::SilentLoss,
            Severity::Warning,
            Subject::Link(port.clone()),
            (1.0 - account.doubt / account.share).clamp(0.5, 1.0),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::io::Role;
    use crate::topology::{Cable, Plan};

    fn port(text: &str) -> PortId {
        PortId::parse(text).unwrap()
    }

    /// Three cables between two switches, the second of which loses `lost` of what `a` sends; `late` after `a`, by cable and second, `b` is read.
    fn run(
        lost: f64,
        late: fn(usize, u64) -> Duration,
        counts_packets: bool,
        seconds: u64,
    ) -> Vec<String> {
        let names = ["a:1", "a:2", "a:3"].map(port);
        let cables = names.clone().map(|a| Cable {
            b: PortId::new(&NodeId::new("b"), &a.port),
            a,
            rate_bps: None,
        });
        let topology = Topology::new(Plan {
            nodes: ["a", "b"].map(|n| (NodeId::new(n), Role::Switch)).into(),
            cables: cables.to_vec(),
            ..Plan::default()
        });
        let mut cables = Cables::new(Duration::from_secs(10));
        let mut verdicts = Vec::new();
        for second in 1..=seconds {
            for (n, name) in names.iter().enumerate() {
                // Busy every other second.
                let packets = 1_000_000 * (second % 2);
                let share = if n == 1 { lost } else { 0.0 };
                let arrives: u64 = format!("{:.0}", packets as f64 * (1.0 - share))
                    .parse()
                    .unwrap();
                let near = PortSample {
                    tx_bytes: Some(packets * 1000),
                    rx_bytes: Some(packets * 64),
                    tx_packets: Some(packets),
                    rx_packets: counts_packets.then_some(packets),
                    ..PortSample::default()
                };
                // One end counts checksums.
                let far = PortSample {
                    tx_bytes: Some(packets * 68),
                    rx_bytes: Some(arrives * 1004),
                    tx_packets: Some(packets),
                    rx_packets: counts_packets.then_some(arrives),
                    ..PortSample::default()
                };
                let at = Duration::from_secs(second);
                let elapsed = Some(Duration::from_secs(1));
                let peer = topology.peer(name).unwrap();
                cables.sampled(topology.link(name).unwrap(), &near, elapsed, at);
                cables.sampled(
                    topology.link(peer).unwrap(),
                    &far,
                    elapsed,
                    at + late(n, second),
                );
            }
            let now = Duration::from_secs(second) + Duration::from_millis(950);
            verdicts = cables.verdicts(&topology, now).to_vec();
        }
        verdicts.iter().map(|v| v.entity.to_string()).collect()
    }

    #[test]
    fn the_cable_that_loses_is_named_by_packets_and_by_bytes() {
        let at_once = |_, _| Duration::ZERO;
        assert_eq!(run(0.02, at_once, true, 60), ["a:2"]);
        assert_eq!(run(0.02, at_once, false, 60), ["a:2"]);
        assert_eq!(run(0.02, at_once, true, 19), [""; 0], "one look is none");
        assert_eq!(run(0.0, at_once, true, 600), [""; 0]);
    }

    #[test]
    fn what_may_be_on_its_way_is_not_lost() {
        let late = |_, _| Duration::from_millis(900);
        assert_eq!(run(0.0, late, true, 600), [""; 0]);
        assert_eq!(run(0.02, late, true, 60), [""; 0]);
        assert_eq!(run(0.05, late, true, 600), ["a:2"]);
    }

    #[test]
    fn a_frame_that_comes_late_is_no_loss() {
        let late = |n, second| Duration::from_secs(if n == 1 && second >= 25 { 4 } else { 0 });
        assert_eq!(run(0.0, late, true, 55), [""; 0]);
        assert_eq!(run(0.5, late, true, 55), ["a:2"]);
    }

    #[test]
    fn bursts_that_a_long_interval_hides_are_no_loss() {
        let names = ["a:1", "a:2", "a:3"].map(port);
        let cable = |a: &PortId| Cable {
            b: PortId::new(&NodeId::new("b"), &a.port),
            a: a.clone(),
            rate_bps: None,
        };
        let topology = Topology::new(Plan {
            nodes: ["a", "b"].map(|n| (NodeId::new(n), Role::Switch)).into(),
            cables: names.iter().map(cable).collect(),
            ..Plan::default()
        });
        let mut cables = Cables::new(Duration::from_secs(60));
        // A million packets in each of two seconds out of seven.
        let counted = |at: u64| at / 7 * 2 + (at % 7).min(2);
        let mut read = BTreeSet::new();
        for second in 20..1800u64 {
            for (n, name) in names.iter().enumerate() {
                let ends = [
                    (name, 0),
                    (topology.peer(name).unwrap(), if n == 1 { 3 } else { 0 }),
                ];
                for (end, late) in ends {
                    let Some(at) = second.checked_sub(late).filter(|at| at % 10 == 0) else {
                        continue;
                    };
                    let packets = (counted(second) - counted(second - 10)) * 1_000_000;
                    let sample = PortSample {
                        tx_bytes: Some(packets * 1000),
                        rx_bytes: Some(packets * 1000),
                        tx_packets: Some(packets),
                        rx_packets: Some(packets),
                        ..PortSample::default()
                    };
                    let elapsed = Some(Duration::from_secs(10));
                    let link = topology.link(end).unwrap();
                    cables.sampled(link, &sample, elapsed, Duration::from_secs(second));
                    read.insert(at);
                }
            }
            let verdicts = cables.verdicts(&topology, Duration::from_secs(second));
            assert!(verdicts.is_empty(), "{second} s: {verdicts:?}");
        }
        assert!(read.len() > 170);
    }

    #[test]
    fn after_a_gap_it_starts_anew() {
        let mut cables = Cables::new(Duration::from_secs(10));
        let topology = Topology::new(Plan {
            cables: vec![Cable {
                a: port("a:1"),
                b: port("b:1"),
                rate_bps: None,
            }],
            ..Plan::default()
        });
        let link = topology.link(&port("a:1")).unwrap();
        let sample = PortSample {
            tx_bytes: Some(1),
            rx_bytes: Some(1),
            ..PortSample::default()
        };
        for second in 0..100 {
            let elapsed = (second != 70).then_some(Duration::from_secs(1));
            cables.sampled(link, &sample, elapsed, Duration::from_secs(second));
        }
        let windows: Vec<u64> = cables.ports[link.index()]
            .marks
            .iter()
            .map(|m| m.window)
            .collect();
        assert_eq!(windows, [7, 8, 9]);
    }
}
