//! Silent loss: what the ends of flows lost, and which link or switch is to blame though no counter of it says so.
//!
//! What is estimated: [`crate::localise`], every [`LOOK`] over what was sent and sent again in the last two windows of
//! [`WINDOW`]. A TCP flow counts its own retransmissions. A verbs device counts them for all its queue pairs together:
//! then the paths of all its flows are candidates.
//!
//! Trip condition: two looks in a row name the same place with confidence [`CONFIDENCE`] at least, its own switch reports
//! it (so that what a queue drops is known, and taken as given), and it is not pressed: congestion is no fault. Cold
//! start: two looks. Recovery: [`crate::incident`]. Cost: nothing while nothing is lost, otherwise that of localising.

use crate::flows::{Flows, RATE_AGE_MAX};
use crate::ids::{FlowKey, NodeId, PortId};
use crate::io::Column;
use crate::links::{LinkSample, Links};
use crate::localise::{Element, Fault, Model, Observations};
use crate::topology::{LinkIx, Topology};
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_signal::{Entity, Signal};

/// Retransmissions are added up over two of these, the newer one unfinished.
const WINDOW: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// A verdict needs to be as sure.
const CONFIDENCE: f64 = 0.95;
/// Loss below is not worth a verdict: RoCE at 400 Gb/s with a timeout a minute.
const LOSS_MIN: f64 = 1e-4;
/// Port of RoCE version 2: its flows do not count their own retransmissions.
const ROCE_PORT: u16 = 4791;
/// Bytes of a packet where only bytes are counted; between an MTU of 1,024 and one of 4,096.
pub const PACKET_BYTES: u64 = 2048;
/// A verdict stands for as long after the look that made it.
const STANDS: Duration = Duration::from_secs(7);

/// Packets sent, and sent again, in the finished window and in the one under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    window: u64,
    now: (u64, u64),
    before: (u64, u64),
}

impl Tally {
    pub fn add(&mut self, sent: u64, bad: u64, at: Duration) {
        let window = at.as_secs() / WINDOW.as_secs();
        if window != self.window {
            let next = window == self.window + 1;
            self.before = if next { self.now } else { (0, 0) };
            (self.window, self.now) = (window, (0, 0));
        }
        self.now.0 = self.now.0.saturating_add(sent);
        self.now.1 = self.now.1.saturating_add(bad);
    }

    /// Of both windows; nothing if it is older than they are.
    #[must_use]
    pub fn total(&self, at: Duration) -> (u64, u64) {
        let window = at.as_secs() / WINDOW.as_secs();
        if window > self.window + 1 {
            return (0, 0);
        }
        let sum = (self.now.0 + self.before.0, self.now.1 + self.before.1);
        (sum.0.max(sum.1), sum.1)
    }
}

/// Columns of a node that tell of its verbs devices' packets.
#[derive(Debug, Clone, Default)]
struct Device {
    sent: Vec<usize>,
    bad: Vec<usize>,
    tally: Tally,
}

/// What was lost, and whom two looks blame.
#[derive(Debug, Clone, Default)]
pub struct Silent {
    devices: BTreeMap<NodeId, Device>,
    next_look: Duration,
    /// By the last look.
    suspects: BTreeSet<Vec<Element>>,
    standing: (Duration, Vec<Verdict>),
}

/// Whether the column counts what a verbs device sent, or had to send again.
fn role(column: &Column) -> (bool, bool) {
    let rdma = column.entity == Entity::Rdma && column.index.is_none();
    let sent = matches!(column.signal, Signal::TxPackets);
    // Events of loss as the sender sees them; packets sent again would count a window for each.
    let bad = matches!(column.signal, Signal::SequenceNaks | Signal::AckTimeouts);
    (rdma && sent, rdma && bad)
}

impl Silent {
    /// Notes where a node's values tell of its verbs devices.
    pub fn declared(&mut self, node: &NodeId, columns: &[Column]) {
        let places = |is: fn((bool, bool)) -> bool| {
            let columns = columns.iter().enumerate();
            let ours = columns.filter(move |(_, c)| is(role(c)));
            ours.map(|(n, _)| n).collect::<Vec<_>>()
        };
        let (sent, bad) = (places(|r| r.0), places(|r| r.1));
        if bad.is_empty() {
            self.devices.remove(node);
            return;
        }
        let device = self.devices.entry(node.clone()).or_default();
        (device.sent, device.bad) = (sent, bad);
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.devices.remove(node);
    }

    /// Takes a node's values; `bytes` are those of its RoCE flows, for devices that count no packets.
    pub fn sampled(&mut self, node: &NodeId, values: &[Option<u64>], bytes: u64, at: Duration) {
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
        device.tally.add(sent.max(bad), bad, at);
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
            self.next_look = now + LOOK;
            let found = self.look(flows, links, topology, now);
            let again = |fault: &&Fault| self.suspects.contains(&fault.elements);
            let sure = found.iter().filter(again);
            let verdicts: Vec<Verdict> = sure.filter_map(|f| verdict(f, topology)).collect();
            self.suspects = found.into_iter().map(|f| f.elements).collect();
            self.standing = (now, verdicts);
        }
        let (at, verdicts) = &self.standing;
        if now.saturating_sub(*at) > STANDS {
            return Vec::new();
        }
        verdicts.clone()
    }

    fn look(
        &self,
        flows: &mut Flows,
        links: &Links,
        topology: &Topology,
        now: Duration,
    ) -> Vec<Fault> {
        let tallies = flows.tallies(now);
        let lossy = |total: &(u64, u64)| total.1 > 0;
        let devices = self.devices.iter().map(|(n, d)| (n, d.tally.total(now)));
        let devices: Vec<(&NodeId, (u64, u64))> = devices.filter(|(_, t)| t.0 > 0).collect();
        if !tallies.iter().any(|(_, t)| lossy(t)) && !devices.iter().any(|(_, t)| lossy(t)) {
            return Vec::new();
        }
        let mut seen = Observations::new(leaves(topology));
        let mut of_host: BTreeMap<NodeId, BTreeSet<Vec<usize>>> = BTreeMap::new();
        for (key, (sent, bad)) in tallies {
            let Some(path) = path_of(&key, flows, topology) else {
                continue;
            };
            if key.dst_port != ROCE_PORT {
                seen.flow(&path, None, sent, bad);
            } else if let Some(port) = topology.port_of(key.src) {
                of_host.entry(port.node.clone()).or_default().insert(path);
            }
        }
        for (node, (sent, bad)) in devices {
            let Some(paths) = of_host.get(node) else {
                continue;
            };
            let paths: Vec<&[usize]> = paths.iter().map(Vec::as_slice).collect();
            let stage = seen.stage(&paths);
            if stage.is_some() {
                seen.flow(&[], stage, sent, bad);
            }
        }
        for link in links.pressed(now, RATE_AGE_MAX) {
            let sample = links.newest(link, now, RATE_AGE_MAX);
            if let Some(loss) = sample.and_then(counted_loss) {
                seen.counted(link.index(), loss);
            }
        }
        let mut faults = seen.explain(&Model::default()).faults;
        faults.retain(|f| {
            f.confidence >= CONFIDENCE
                && f.loss >= LOSS_MIN
                && f.elements
                    .iter()
                    .all(|e| is_quiet(*e, links, topology, now))
        });
        faults
    }
}

/// Share of packets that a queue says it dropped.
fn counted_loss(sample: &LinkSample) -> Option<f64> {
    let drops = sample.drops_per_s().filter(|d| *d > 0.0)?;
    let packets = f64::from(sample.tx_bps) / 8.0 / PACKET_BYTES as f64;
    Some((drops / (drops + packets)).clamp(0.0, 1.0))
}

/// By link: the number of the switch that it leaves, `None` for a host's.
fn leaves(topology: &Topology) -> Vec<Option<usize>> {
    let mut leaves = vec![None; topology.links_held()];
    for (number, (node, links)) in topology.nodes().enumerate() {
        if topology.is_switch(node) {
            for (_, link) in links {
                leaves[link.index()] = Some(number);
            }
        }
    }
    leaves
}

fn path_of(key: &FlowKey, flows: &mut Flows, topology: &Topology) -> Option<Vec<usize>> {
    let path = flows.path(key, topology)?;
    let links = path
        .ports
        .iter()
        .map(|p| topology.link(p).map(LinkIx::index));
    links.collect()
}

/// Whether those who should know report the place, and no queue there is pressed.
fn is_quiet(element: Element, links: &Links, topology: &Topology, now: Duration) -> bool {
    let quiet = |link: LinkIx| {
        let sample = links.newest(link, now, RATE_AGE_MAX);
        sample.is_some_and(|s| !s.pressed)
    };
    match element {
        Element::Link(n) => topology.link_at(n).is_some_and(quiet),
        Element::Device(n) => {
            let mut nodes = topology.nodes();
            let links = nodes.nth(n).map(|(_, links)| links);
            links.is_some_and(|links| links.iter().any(|(_, link)| quiet(*link)))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_holds_two_windows() {
        let at = Duration::from_secs;
        let mut tally = Tally::default();
        tally.add(100, 1, at(1));
        tally.add(100, 2, at(16));
        assert_eq!(tally.total(at(17)), (200, 3));
        assert_eq!(tally.total(at(31)), (200, 3));
        assert_eq!(tally.total(at(46)), (0, 0));
        tally.add(7, 0, at(31));
        assert_eq!(tally.total(at(31)), (107, 2));
        tally.add(5, 9, at(300));
        assert_eq!(
            tally.total(at(300)),
            (9, 9),
            "more sent again than sent is all of it"
        );
    }
}
