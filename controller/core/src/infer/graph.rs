//! Who exchanges data with whom, and the shapes in it.

use super::{BALANCE_MIN, EDGE_BYTES_MIN, WINDOW};
use crate::ids::{JobId, NodeId};
use crate::keep::keep;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// A flow this much smaller than the largest of its address is no edge of a ring.
const RING_SHARE_MIN: f64 = 0.1;

/// Sender and receiver.
pub(super) type Pair = (Ipv4Addr, Ipv4Addr);

/// Traffic from one address to another, over the half window that runs and the one before.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub from: NodeId,
    pub to: NodeId,
    half: u64,
    bytes: [u64; 2],
    /// Of both ends, as of the last look.
    pub job: Option<JobId>,
}

keep!(struct Edge { from, to, half, bytes, job });

impl Edge {
    pub fn new(from: NodeId, to: NodeId) -> Edge {
        Edge {
            from,
            to,
            half: 0,
            bytes: [0; 2],
            job: None,
        }
    }

    pub fn add(&mut self, bytes: u64, at: Duration) {
        self.turn(at);
        self.bytes[0] = self.bytes[0].saturating_add(bytes);
    }

    /// Goes on to the half window that runs.
    pub fn turn(&mut self, at: Duration) {
        let half = at.as_secs() / (WINDOW.as_secs() / 2);
        if half > self.half {
            let last = if half == self.half + 1 {
                self.bytes[0]
            } else {
                0
            };
            (self.half, self.bytes) = (half, [0, last]);
        }
    }

    /// Whether nothing was sent over the window.
    pub fn is_silent(&self) -> bool {
        self.bytes == [0; 2]
    }

    fn bytes(&self) -> u64 {
        self.bytes[0].saturating_add(self.bytes[1])
    }

    /// More than control traffic.
    pub fn is_large(&self) -> bool {
        self.bytes() >= EDGE_BYTES_MIN
    }
}

/// Servers tied together by traffic between those that both send and receive.
pub(super) fn components(edges: &BTreeMap<Pair, Edge>) -> Vec<BTreeSet<NodeId>> {
    let mut sums: BTreeMap<&NodeId, [f64; 2]> = BTreeMap::new();
    let large = || edges.values().filter(|e| e.is_large());
    for edge in large() {
        sums.entry(&edge.from).or_default()[0] += edge.bytes() as f64;
        sums.entry(&edge.to).or_default()[1] += edge.bytes() as f64;
    }
    let numbers: BTreeMap<&NodeId, usize> = sums
        .iter()
        .filter(|(_, [a, b])| a.min(*b) >= BALANCE_MIN * a.max(*b))
        .zip(0..)
        .map(|((node, _), n)| (*node, n))
        .collect();
    let mut parents: Vec<usize> = (0..numbers.len()).collect();
    for edge in large() {
        if let (Some(a), Some(b)) = (numbers.get(&edge.from), numbers.get(&edge.to)) {
            let (a, b) = (root(&mut parents, *a), root(&mut parents, *b));
            parents[a.max(b)] = a.min(b);
        }
    }
    let mut components: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
    for (node, n) in numbers {
        let servers = components.entry(root(&mut parents, n)).or_default();
        servers.insert(node.clone());
    }
    components
        .into_values()
        .filter(|servers| servers.len() > 1)
        .collect()
}

/// Root of a tree, which it flattens by half on the way.
fn root(parents: &mut [usize], mut n: usize) -> usize {
    while parents[n] != n {
        parents[n] = parents[parents[n]];
        n = parents[n];
    }
    n
}

/// Cycles of addresses each of which sends to one and hears from one.
pub(super) fn rings(edges: &BTreeMap<Pair, Edge>) -> Vec<Vec<Ipv4Addr>> {
    let mut most: BTreeMap<Ipv4Addr, u64> = BTreeMap::new();
    for ((from, to), edge) in edges {
        for end in [from, to] {
            let most = most.entry(*end).or_default();
            *most = edge.bytes().max(*most);
        }
    }
    let mut next: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> = BTreeMap::new();
    let mut heard: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
    for ((from, to), edge) in edges {
        let floor = most[from].max(most[to]) as f64 * RING_SHARE_MIN;
        if edge.is_large() && edge.bytes() as f64 >= floor {
            next.entry(*from).or_default().push(*to);
            *heard.entry(*to).or_default() += 1;
        }
    }
    let only = |from: Ipv4Addr| match next.get(&from).map(Vec::as_slice) {
        Some([to]) if heard.get(&from) == Some(&1) => Some(*to),
        Some(_) | None => None,
    };
    let (mut rings, mut seen) = (Vec::new(), BTreeSet::new());
    for start in next.keys().copied() {
        let mut ring = Vec::new();
        let mut at = start;
        while let Some(to) = only(at).filter(|_| seen.insert(at)) {
            ring.push(at);
            at = to;
        }
        if at == start && ring.len() > 1 {
            rings.push(ring);
        }
    }
    rings
}
