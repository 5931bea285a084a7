//! Silent loss: what the ends of flows lost, and which link or switch is to blame though no counter of it says so.
//!
//! What is estimated: [`crate::localise`], every [`LOOK`] over what was sent and sent again in the last two windows of
//! [`WINDOW`]. A TCP flow counts its own retransmissions. A verbs device counts losses for all its queue pairs together:
//! they are shared out among those that count their retransmissions themselves (mlx5's counters of queue pairs);
//! otherwise the paths of all are candidates. Nothing lost on a device is nothing lost on each of its paths.
//!
//! A RoCE flow with losses is enough ([`OUTLIERS_ROCE`]): a fabric that pauses does not drop, so that loss which no queue
//! on the way counts and no receiver discards is a fault of something on the way. Jobs that are placed well have one flow
//! on a link; waiting for a second would find nothing. But one flow alone does not show a second fault beside one that it
//! crosses and others show, too. A TCP flow loses packets of itself, it takes two.
//!
//! Trip condition: looks that lie [`LOOK`] apart, at most [`REMEMBERED`], name the same place with confidence
//! [`CONFIDENCE`] at least, its own switch reports it (so that what a queue dropped in these windows is known, and taken
//! as given, as is what the port at the far end counts as damaged: [`damage`]), and it is not pressed: congestion
//! is no fault. What lost nothing for two looks is over. A look waits until the paths are known, or asked for
//! [`ASK_MAX`] times. Cold start: two looks. Recovery: [`crate::incident`]. Cost: nothing while nothing is lost,
//! otherwise that of localising.

mod damage;
mod tally;
mod ways;

use crate::flows::{Flows, RATE_AGE_MAX};
use crate::ids::{FlowKey, NodeId, PortId};
use crate::io::Column;
use crate::keep::keep;
use crate::links::{LinkSample, Links};
use crate::localise::{Element, Fault, Model, Observations};
use crate::topology::{LinkIx, Topology};
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use damage::Damage;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
pub use tally::Tally;
use tally::WINDOW;
use ways::{Sent, Way, drop_uneven, leaves, share, ways};
use weir_signal::{Entity, Signal};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// A verdict needs to be as sure.
const CONFIDENCE: f64 = 0.95;
/// Loss below is not worth a verdict: RoCE at 400 Gb/s with a timeout a minute.
const LOSS_MIN: f64 = 1e-4;
/// A suspect that some looks miss stays one for so long.
const REMEMBERED: Duration = Duration::from_secs(20);
/// Time between two questions for the next hop of paths.
const ASK: Duration = Duration::from_millis(500);
/// As many hops are asked for at most: five switches, and repetitions.
const ASK_MAX: u32 = 10;
/// Share of RoCE flows that lose packets for reasons of their own although no receiver discards any: errors in counting.
const OUTLIERS_ROCE: f64 = 1e-6;
/// Port of RoCE version 2.
const ROCE_PORT: u16 = 4791;
/// Bytes of a packet where only bytes are counted; between an MTU of 1,024 and one of 4,096.
pub const PACKET_BYTES: u64 = 2048;
/// Packets that a queue pair sends again for one that was damaged, at most: what is under way on 400 Gb/s in 10 us.
const AGAIN_MAX: u64 = 128;
/// A verdict stands for as long after the look that made it.
const STANDS: Duration = Duration::from_secs(7);

/// Columns of a node that tell of its verbs devices' packets.
#[derive(Debug, Clone, Default)]
struct Device {
    sent: Vec<usize>,
    bad: Vec<usize>,
    discards: Vec<usize>,
    tally: Tally,
    discarded: Tally,
    /// Of the newest sample.
    elapsed: Duration,
}

keep!(struct Device { sent, bad, discards, tally, discarded, elapsed });

/// What was lost, and whom two looks blame.
#[derive(Debug, Clone, Default)]
pub struct Silent {
    devices: BTreeMap<NodeId, Device>,
    damage: Damage,
    next_look: Duration,
    /// Looks in a row that did not know all paths.
    asked: u32,
    /// Links and switches that no flow tells apart: since when, and when last.
    suspects: BTreeMap<Vec<Subject>, (Duration, Duration)>,
    standing: (Duration, Vec<Verdict>),
}

keep!(struct Silent { devices, damage, next_look, asked, suspects, standing });

/// What a column says of a node's verbs devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Sent,
    /// Events of loss as the sender sees them.
    Bad,
    /// Packets sent again: with go-back-N a window for each loss.
    Again,
    Discarded,
}

fn role(column: &Column) -> Option<Role> {
    let role = match (column.entity, column.signal) {
        (Entity::Rdma, Signal::TxPackets) => Role::Sent,
        (Entity::Rdma, Signal::SequenceNaks | Signal::AckTimeouts) => Role::Bad,
        (Entity::Rdma, Signal::Retransmits) => Role::Again,
        (Entity::Rdma | Entity::Port, Signal::RxDiscards) => Role::Discarded,
        _ => return None,
    };
    column.index.is_none().then_some(role)
}

impl Silent {
    /// Notes where a node's values tell of its verbs devices, and of damage.
    pub fn declared(&mut self, node: &NodeId, columns: &[Column]) {
        self.damage.declared(node, columns);
        let places = |wanted: Role| -> Vec<usize> {
            let columns = columns.iter().enumerate();
            let ours = columns.filter(|(_, c)| role(c) == Some(wanted));
            ours.map(|(n, _)| n).collect()
        };
        let mut bad = places(Role::Bad);
        // Adapters without NAKs (EFA, rxe) send again what was lost and little else.
        if !columns.iter().any(|c| c.signal == Signal::SequenceNaks) {
            bad.extend(places(Role::Again));
        }
        if bad.is_empty() {
            self.devices.remove(node);
            return;
        }
        let device = self.devices.entry(node.clone()).or_default();
        device.bad = bad;
        (device.sent, device.discards) = (places(Role::Sent), places(Role::Discarded));
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.damage.forget(node);
        self.devices.remove(node);
    }

    /// Takes a node's values; `bytes` are those of its RoCE flows, for devices that count no packets.
    /// `elapsed` is the sample's interval, if it is known.
    pub fn sampled(
        &mut self,
        node: &NodeId,
        values: &[Option<u64>],
        bytes: u64,
        elapsed: Option<Duration>,
        at: Duration,
    ) {
        self.damage.sampled(node, values, elapsed, at);
        let Some(device) = self.devices.get_mut(node) else {
            return;
        };
        let sum = |places: &[usize]| {
            let known = places.iter().filter_map(|n| values.get(*n).copied()?);
            known.fold(0u64, u64::saturating_add)
        };
        let sent = match sum(&device.sent) {
            0 => bytes / PACKET_BYTES,
            packets => packets,
        };
        let bad = sum(&device.bad);
        let discards = sum(&device.discards);
        // A longer interval than the one before may be that of a lost sample.
        let elapsed = elapsed.unwrap_or(device.elapsed);
        let interval = std::mem::replace(&mut device.elapsed, elapsed).min(elapsed);
        device.tally.add((sent.max(bad), bad), interval, at);
        device.discarded.add((discards, 0), interval, at);
    }

    /// What is to blame now.
    pub fn verdicts(
        &mut self,
        flows: &mut Flows,
        links: &Links,
        topology: &Topology,
        now: Duration,
    ) -> Vec<Verdict> {
        if now >= self.next_look {
            let sent = self.sent(flows, topology, now);
            let lossy = sent.iter().any(|s| s.bad > 0);
            let (ways, unknown) = ways(if lossy { sent } else { Vec::new() }, flows, topology);
            // Each look asks for the next hop of a path.
            let waits = unknown && self.asked < ASK_MAX;
            self.asked = if unknown {
                (self.asked + 1).min(ASK_MAX)
            } else {
                0
            };
            if waits {
                self.next_look = now + ASK;
            } else {
                self.next_look = now + LOOK;
                let found = self.look(&ways, links, topology, now);
                self.suspects
                    .retain(|_, (_, last)| now.saturating_sub(*last) <= REMEMBERED);
                for fault in &found {
                    let suspect = self.suspects.entry(places(fault, topology));
                    suspect.or_insert((now, now)).1 = now;
                }
                let stood = |f: &&Fault| {
                    let since = self.suspects.get(&places(f, topology));
                    since.is_some_and(|(s, _)| now.saturating_sub(*s) >= LOOK)
                };
                let sure = found.iter().filter(stood);
                let verdicts: Vec<Verdict> = sure.filter_map(|f| verdict(f, topology)).collect();
                self.standing = (now, verdicts);
            }
        }
        let (at, verdicts) = &self.standing;
        if now.saturating_sub(*at) > STANDS {
            return Vec::new();
        }
        verdicts.clone()
    }

    /// What each flow sent and lost lately. What a device counts for all its queue pairs is shared out to them as
    /// they count themselves; where they do not, what was lost stays with the device.
    fn sent(&self, flows: &Flows, topology: &Topology, now: Duration) -> Vec<Sent> {
        let mut all = Vec::new();
        let mut of_host: BTreeMap<NodeId, Vec<(FlowKey, Tally)>> = BTreeMap::new();
        for (key, tally) in flows.tallies(now) {
            if key.dst_port != ROCE_PORT {
                let (sent, bad) = tally.total(now);
                all.push(Sent {
                    keys: vec![key],
                    sent,
                    bad,
                    lasts: tally.is_lossy(now),
                    outlier: None,
                });
            } else if let Some(port) = topology.port_of(key.src) {
                let host = of_host.entry(port.node.clone()).or_default();
                host.push((key, tally));
            }
        }
        let outlier = Some(OUTLIERS_ROCE);
        for (node, rows) in of_host {
            let device = self.devices.get(&node).map(|d| d.tally);
            let totals = rows.iter().map(|(_, tally)| tally.total(now));
            let sum = totals.fold((0u64, 0u64), |sum, row| {
                (sum.0.saturating_add(row.0), sum.1.saturating_add(row.1))
            });
            let counted = device.map(|d| d.total(now)).filter(|c| c.0 > 0);
            let (sent, bad) = counted.unwrap_or(sum);
            if bad > 0 && sum.1 == 0 {
                all.push(Sent {
                    keys: rows.into_iter().map(|(key, _)| key).collect(),
                    sent,
                    bad,
                    lasts: device.is_some_and(|d| d.is_lossy(now)),
                    outlier,
                });
                continue;
            }
            for (key, own) in rows {
                let total = own.total(now);
                let sent = share(sent, total.0, sum.0);
                all.push(Sent {
                    keys: vec![key],
                    sent,
                    bad: share(bad, total.1, sum.1).min(sent),
                    lasts: own.is_lossy(now),
                    outlier,
                });
            }
        }
        all
    }

    fn look(&self, ways: &[Way], links: &Links, topology: &Topology, now: Duration) -> Vec<Fault> {
        if !ways.iter().any(|w| w.bad > 0) {
            return Vec::new();
        }
        let leaves = leaves(topology);
        let mut seen = Observations::new(leaves.clone());
        let mut crossed: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        let mut lost_at: BTreeMap<&NodeId, u64> = BTreeMap::new();
        for way in ways {
            let counts = (way.sent, way.bad);
            match &way.paths[..] {
                [path] => seen.flow_with_outlier(path, None, counts, way.outlier),
                paths => {
                    let paths: Vec<&[usize]> = paths.iter().map(Vec::as_slice).collect();
                    let stage = seen.stage(&paths);
                    if stage.is_some() {
                        seen.flow_with_outlier(&[], stage, counts, way.outlier);
                    }
                }
            }
            if way.bad > 0 {
                let links: BTreeSet<usize> = way.paths.iter().flatten().copied().collect();
                for link in links {
                    let (sent, bad) = crossed.entry(link).or_default();
                    (*sent, *bad) = (sent.saturating_add(way.sent), bad.saturating_add(way.bad));
                }
                for last in way.paths.iter().filter_map(|p| p.last()) {
                    let peer = topology.port_at(*last).and_then(|p| topology.peer(p));
                    if let Some(peer) = peer {
                        let lost = lost_at.entry(&peer.node).or_default();
                        *lost = lost.saturating_add(way.bad);
                    }
                }
            }
        }
        for (n, crossed) in crossed {
            let Some(link) = topology.link_at(n) else {
                continue;
            };
            let lately = links.history(link).rev();
            let lately = lately.take_while(|s| now.saturating_sub(s.at) <= 2 * WINDOW);
            let counted = lately.filter_map(counted_loss).fold(0.0, f64::max);
            let known = counted
                .max(self.discarded(link, &lost_at, topology, now))
                .max(self.damaged(link, crossed, topology, now));
            seen.counted(n, known);
        }
        let lossy = ways.iter().filter(|w| w.lasts);
        let lossy = lossy.flat_map(|w| w.paths.iter().flatten().copied());
        let lossy: BTreeSet<usize> = lossy.collect();
        let lasts = |element: &Element| match element {
            Element::Link(n) => lossy.contains(n),
            Element::Device(n) => lossy.iter().any(|link| leaves[*link] == Some(*n)),
        };
        let mut faults = seen.explain(&Model::default()).faults;
        faults.retain(|f| {
            f.confidence >= CONFIDENCE
                && f.loss >= LOSS_MIN
                && f.elements.iter().any(lasts)
                && f.elements.iter().all(|e| {
                    // An agent that restarts takes nothing back.
                    let known = || self.suspects.contains_key(&places(f, topology));
                    is_quiet(*e, links, topology, now).unwrap_or_else(known)
                })
        });
        drop_uneven(&mut faults, ways, &leaves);
        faults
    }

    /// Share of what crossed a link (packets sent, and sent again) that arrived damaged, where that may be all of its loss.
    fn damaged(
        &self,
        link: LinkIx,
        (sent, bad): (u64, u64),
        topology: &Topology,
        now: Duration,
    ) -> f64 {
        let peer = topology.peer(topology.port(link));
        let damaged = peer.map_or(0, |port| self.damage.at(port, now));
        if damaged.saturating_mul(AGAIN_MAX) < bad {
            return 0.0;
        }
        (damaged as f64 / sent.max(1) as f64).min(1.0)
    }

    /// Share of what was `lost` on the way to a link's far end that the adapter there says it discarded, where it is most
    /// of it: then the host cannot keep up.
    fn discarded(
        &self,
        link: LinkIx,
        lost: &BTreeMap<&NodeId, u64>,
        topology: &Topology,
        now: Duration,
    ) -> f64 {
        let Some(peer) = topology.peer(topology.port(link)) else {
            return 0.0;
        };
        let device = self.devices.get(&peer.node);
        let (discards, _) = device.map_or((0, 0), |d| d.discarded.total(now));
        let lost = lost.get(&peer.node).copied().unwrap_or(0).max(1);
        let share = discards as f64 / lost as f64;
        if share >= 0.5 { share.min(1.0) } else { 0.0 }
    }
}

/// Share of packets that a queue says it dropped.
fn counted_loss(sample: &LinkSample) -> Option<f64> {
    let drops = sample.drops_per_s().filter(|d| *d > 0.0)?;
    let packets = f64::from(sample.tx_bps) / 8.0 / PACKET_BYTES as f64;
    Some((drops / (drops + packets)).clamp(0.0, 1.0))
}

/// Whether the queue of the link, or one of the switch at least, is not pressed; `None` while those who should know do not
/// report.
fn is_quiet(element: Element, links: &Links, topology: &Topology, now: Duration) -> Option<bool> {
    let quiet = |link: LinkIx| Some(!links.newest(link, now, RATE_AGE_MAX)?.pressed);
    match element {
        Element::Link(n) => quiet(topology.link_at(n)?),
        Element::Device(n) => {
            let (_, ports) = topology.nodes().nth(n)?;
            let told = ports.iter().filter_map(|(_, link)| quiet(*link));
            told.max()
        }
    }
}

/// What a fault's elements are: their numbers may mean something else when the graph has changed.
fn places(fault: &Fault, topology: &Topology) -> Vec<Subject> {
    let place = |element: &Element| match element {
        Element::Link(n) => topology.port_at(*n).cloned().map(Subject::Link),
        Element::Device(n) => topology
            .nodes()
            .nth(*n)
            .map(|(node, _)| Subject::Node(node.clone())),
    };
    fault.elements.iter().filter_map(place).collect()
}

fn verdict(fault: &Fault, topology: &Topology) -> Option<Verdict> {
    let port = |element: &Element| match element {
        Element::Link(n) => topology.link_at(*n).map(|l| topology.port(l).clone()),
        Element::Device(_) => None,
    };
    let links: Vec<PortId> = fault.elements.iter().filter_map(port).collect();
    let entity = match fault.elements.first()? {
        Element::Link(_) => Subject::Link(links.first()?.clone()),
        Element::Device(n) => Subject::Node(topology.nodes().nth(*n)?.0.clone()),
    };
    let percent = |share: f64| share * 100.0;
    let mut evidence = vec![Evidence::new(
        "packets sent again",
        format!(
            "{:.0} of {:.0} by {:.0} flows that cross it ({:.2} %)",
            fault.bad,
            fault.sent,
            fault.flows,
            percent(fault.loss)
        ),
    )];
    if links.len() > 1 {
        let names: Vec<String> = links.iter().map(ToString::to_string).collect();
        evidence.push(Evidence::new(
            "one of these, no flow tells which",
            names.join(", "),
        ));
    }
    let next = fault.next.as_ref().and_then(port);
    let odds = format!("e^{:.0} times less likely", fault.log_odds);
    evidence.push(match next {
        Some(next) => Evidence::new(format!("rejected: {next}"), odds),
        None => Evidence::new("rejected: no fault", odds),
    });
    Some(Verdict {
        action: format!(
            "drain {entity}, then clean or change the module, the cable, the port, in this order"
        ),
        links,
        evidence,
        ..Verdict::new(
            Class::SilentLoss,
            Severity::Warning,
            entity,
            fault.confidence,
        )
    })
}
