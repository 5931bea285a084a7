//! Training jobs from flows alone, for where nothing sees their collectives.
//!
//! What is estimated: which servers work together, along which rings, and how long their iterations are.
//! Servers that exchange data in both directions are one job (a union-find over pairs, merged by server,
//! as LLMPrism does for RoCE flow records); who mostly sends or mostly receives is storage and ties no
//! jobs together. A ring is found where each address sends to one and hears from one. Iterations come
//! from the bytes that each server sends in each sample ([`rhythm`]): an all-reduce is on and off.
//!
//! Trip condition: [`EDGE_BYTES_MIN`] over [`WINDOW`] in both directions of a server; a rhythm that half of the
//! servers share. Cold start: groups with the first look, a rhythm after [`rhythm::SAMPLES_MIN`] samples. What the
//! sample interval cannot resolve is `None`, not an alias of it. Recovery: a group that falls silent keeps its
//! number for [`KEEP`]. Two jobs are one group only if they share a server. Cost: O(flows log flows) a sample,
//! 0.4 us a flow as measured; a look O(edges), and samples times lags for each server: 31 ms for 1,000 servers.

pub mod rhythm;
#[cfg(test)]
mod tests;

use crate::ids::NodeId;
use crate::io::NodeSample;
use crate::jobs::Iteration;
use crate::topology::Topology;
use rhythm::{Beat, SAMPLES_MAX};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Time over which traffic is summed: some iterations of most jobs.
pub const WINDOW: Duration = Duration::from_secs(30);
/// Less than this between two addresses over the window is control traffic.
pub const EDGE_BYTES_MIN: u64 = 1_000_000;
/// Of a server that trains, the smaller of what it sends and receives is at least this share of the larger.
pub const BALANCE_MIN: f64 = 0.1;
/// A flow this much smaller than the largest of its address is no edge of a ring.
const RING_SHARE_MIN: f64 = 0.1;
/// How long a silent group keeps its number: a checkpoint, an evaluation.
pub const KEEP: Duration = Duration::from_secs(120);
/// Pairs of addresses, and servers with a series, held at once: as many as the core holds flows.
pub const EDGES_MAX: usize = 65_536;
pub const SERVERS_MAX: usize = 16_384;
/// An interval that differs by more from the series' starts a new one.
const INTERVAL_TOLERANCE: f64 = 0.25;
/// Periods of servers of one job agree within this share.
const PERIOD_TOLERANCE: f64 = 0.1;

/// Traffic from one address to another, over the half window that runs and the one before.
#[derive(Debug, Clone)]
struct Edge {
    from: NodeId,
    to: NodeId,
    half: u128,
    bytes: [u64; 2],
}

impl Edge {
    fn turn(&mut self, half: u128) {
        if half > self.half {
            self.bytes = [
                0,
                if half == self.half + 1 {
                    self.bytes[0]
                } else {
                    0
                },
            ];
            self.half = half;
        }
    }
}

/// What a server sent, sample by sample.
#[derive(Debug, Clone, Default)]
struct Series {
    bytes: VecDeque<f64>,
    /// Length of a sample, the mean of the series.
    interval_s: f64,
    /// End of the newest sample.
    end: Duration,
}

/// How a group's traffic goes on and off.
#[derive(Debug, Clone, PartialEq)]
pub struct Rhythm {
    /// From one iteration's burst to the next.
    pub period: Duration,
    /// Share of the period in which there is traffic, in 0..=1, from bytes: mean over level while on.
    pub duty: f64,
    /// When the newest burst started, to about a sample interval.
    pub started: Duration,
    /// Autocorrelation at the period, in 0..=1.
    pub strength: f64,
    /// The iterations of one server, oldest first, as [`crate::jobs`] holds them; `seconds` from start to start.
    pub iterations: Vec<Iteration>,
}

/// Servers that work together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Stays the same while more than half of the servers do.
    pub id: u64,
    pub servers: BTreeSet<NodeId>,
    /// Rings of addresses, each from its lowest on; empty where traffic has another shape.
    pub rings: Vec<Vec<Ipv4Addr>>,
    /// `None`: no iterations, too few of them, or too short for the sample interval.
    pub rhythm: Option<Rhythm>,
    pub first_seen: Duration,
    pub last_seen: Duration,
}

/// Jobs as seen through their flows.
#[derive(Debug, Clone, Default)]
pub struct Inference {
    edges: BTreeMap<(Ipv4Addr, Ipv4Addr), Edge>,
    series: BTreeMap<NodeId, Series>,
    groups: Vec<Group>,
    last_id: u64,
    refused: u64,
}

impl Inference {
    /// Takes the flows of a node's sample, but those whose job is known.
    pub fn sampled(
        &mut self,
        node: &NodeId,
        sample: &NodeSample,
        topology: &Topology,
        at: Duration,
    ) {
        let half = half(at);
        let mut sent = 0.0;
        for flow in sample.flows.iter().filter(|f| f.job.is_none()) {
            let Some(to) = topology.port_of(flow.key.dst).map(|p| &p.node) else {
                continue;
            };
            if to == node {
                continue;
            }
            sent += flow.bytes as f64;
            let pair = (flow.key.src, flow.key.dst);
            if !self.edges.contains_key(&pair) && self.edges.len() >= EDGES_MAX {
                self.refused += 1;
                continue;
            }
            let edge = self.edges.entry(pair).or_insert_with(|| Edge {
                from: node.clone(),
                to: to.clone(),
                half,
                bytes: [0; 2],
            });
            edge.turn(half);
            edge.bytes[0] = edge.bytes[0].saturating_add(flow.bytes);
        }
        self.extend(node, sent, sample.elapsed, at);
    }

    /// Adds a sample to a server's series, or starts a new one after a gap.
    fn extend(&mut self, node: &NodeId, sent: f64, elapsed: Option<Duration>, at: Duration) {
        let Some(elapsed) = elapsed.map(|e| e.as_secs_f64()).filter(|e| *e > 0.0) else {
            self.series.remove(node);
            return;
        };
        if !self.series.contains_key(node) {
            if sent <= 0.0 {
                return;
            }
            if self.series.len() >= SERVERS_MAX {
                self.refused += 1;
                return;
            }
        }
        let series = self.series.entry(node.clone()).or_default();
        let held = series.bytes.len() as f64;
        if held > 0.0 && (elapsed / series.interval_s - 1.0).abs() > INTERVAL_TOLERANCE {
            *series = Series::default();
        }
        let held = series.bytes.len() as f64;
        series.interval_s = (series.interval_s * held + elapsed) / (held + 1.0);
        series.end = at;
        series.bytes.push_back(sent);
        if series.bytes.len() > SAMPLES_MAX {
            series.bytes.pop_front();
        }
    }

    /// Looks at everything once.
    pub fn look(&mut self, now: Duration) {
        let half = half(now);
        for edge in self.edges.values_mut() {
            edge.turn(half);
        }
        self.edges.retain(|_, e| e.bytes != [0; 2]);
        self.series.retain(|_, s| now.saturating_sub(s.end) < KEEP);
        let found = components(&self.edges);
        let mut rings = rings(&self.edges);
        self.groups
            .retain(|g| now.saturating_sub(g.last_seen) < KEEP);
        for (servers, id) in self.numbered(found) {
            let of_group = |ring: &Vec<Ipv4Addr>, edges: &BTreeMap<_, Edge>| {
                let edge = ring
                    .first()
                    .zip(ring.get(1))
                    .and_then(|(a, b)| edges.get(&(*a, *b)));
                edge.is_some_and(|e| servers.contains(&e.from))
            };
            let (ours, others) = rings
                .into_iter()
                .partition(|ring| of_group(ring, &self.edges));
            rings = others;
            let rhythm = self.rhythm(&servers);
            let known = self.groups.iter().position(|g| g.id == id);
            let first_seen = known.map_or(now, |n| self.groups.swap_remove(n).first_seen);
            self.groups.push(Group {
                id,
                servers,
                rings: ours,
                rhythm,
                first_seen,
                last_seen: now,
            });
        }
        self.groups.sort_by_key(|g| g.id);
    }

    /// Gives each set of servers the number of the group that it continues, or a new one.
    fn numbered(&mut self, found: Vec<BTreeSet<NodeId>>) -> Vec<(BTreeSet<NodeId>, u64)> {
        let mut numbered = Vec::new();
        for servers in found {
            // More than half of both: so no two groups continue one, and none continues two.
            let continues = self.groups.iter().find(|g| {
                let both = g.servers.intersection(&servers).count();
                both * 2 > g.servers.len().max(servers.len())
            });
            let id = continues.map(|g| g.id).unwrap_or_else(|| {
                self.last_id += 1;
                self.last_id
            });
            numbered.push((servers, id));
        }
        numbered
    }

    /// The rhythm that at least half of some servers share.
    fn rhythm(&self, servers: &BTreeSet<NodeId>) -> Option<Rhythm> {
        let mut beats: Vec<(&Series, Beat, f64)> = servers
            .iter()
            .filter_map(|s| self.series.get(s))
            .filter_map(|s| {
                let beat = rhythm::find(&s.bytes.iter().copied().collect::<Vec<_>>())?;
                let period_s = beat.period * s.interval_s;
                Some((s, beat, period_s))
            })
            .collect();
        let mut periods: Vec<f64> = beats.iter().map(|(_, _, p)| *p).collect();
        periods.sort_by(f64::total_cmp);
        let middle = *periods.get(periods.len() / 2)?;
        beats.retain(|(_, _, p)| (p / middle - 1.0).abs() <= PERIOD_TOLERANCE);
        if beats.len() * 2 < servers.len() {
            return None;
        }
        let (series, beat, _) = beats.first()?;
        let time = |start: f64| {
            let before = (series.bytes.len() as f64 - start) * series.interval_s;
            series
                .end
                .saturating_sub(Duration::from_secs_f64(before.max(0.0)))
        };
        let iterations = beat.periods.iter().map(|(start, end)| Iteration {
            started: time(*start),
            ended: time(*end),
            seconds: (end - start) * series.interval_s,
        });
        let iterations: Vec<Iteration> = iterations.collect();
        Some(Rhythm {
            period: Duration::from_secs_f64(middle),
            duty: beat.duty,
            started: iterations.last()?.ended,
            strength: beat.strength,
            iterations,
        })
    }

    /// Groups seen not longer than [`KEEP`] ago, by number.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Pairs of addresses and servers refused because a table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// Number of the half window.
fn half(at: Duration) -> u128 {
    at.as_millis() / (WINDOW.as_millis() / 2)
}

fn bytes(edge: &Edge) -> u64 {
    edge.bytes[0].saturating_add(edge.bytes[1])
}

/// Servers tied together by traffic between those that both send and receive.
fn components(edges: &BTreeMap<(Ipv4Addr, Ipv4Addr), Edge>) -> Vec<BTreeSet<NodeId>> {
    let mut sums: BTreeMap<&NodeId, [f64; 2]> = BTreeMap::new();
    let large = || edges.values().filter(|e| bytes(e) >= EDGE_BYTES_MIN);
    for edge in large() {
        sums.entry(&edge.from).or_default()[0] += bytes(edge) as f64;
        sums.entry(&edge.to).or_default()[1] += bytes(edge) as f64;
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
fn rings(edges: &BTreeMap<(Ipv4Addr, Ipv4Addr), Edge>) -> Vec<Vec<Ipv4Addr>> {
    let mut most: BTreeMap<Ipv4Addr, u64> = BTreeMap::new();
    for ((from, to), edge) in edges {
        for end in [from, to] {
            let most = most.entry(*end).or_default();
            *most = bytes(edge).max(*most);
        }
    }
    let mut next: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> = BTreeMap::new();
    let mut heard: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
    for ((from, to), edge) in edges {
        let floor = most[from].max(most[to]) as f64 * RING_SHARE_MIN;
        if bytes(edge) >= EDGE_BYTES_MIN && bytes(edge) as f64 >= floor {
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
