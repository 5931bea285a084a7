//! Training jobs from flows alone, for where nothing sees their collectives.
//!
//! What is estimated: which servers work together, along which rings, and how long their iterations are.
//! Servers that exchange data in both directions are one job (a union-find over pairs, merged by server,
//! as LLMPrism does for RoCE flow records); who mostly sends or mostly receives is storage and ties no
//! jobs together. A ring is found where each address sends to one and hears from one. Iterations come
//! from the bytes that each server sends in each sample ([`rhythm`]): an all-reduce is on and off.
//!
//! An inferred job stands in for a reported one wherever jobs are used: its name is put on the flows among its
//! servers before anything else looks at their samples. A server of which a job is reported, by a call or with a
//! flow, is in none, nor is whoever sends to it: half of a job is no job.
//!
//! Trip condition: [`EDGE_BYTES_MIN`] over [`WINDOW`] in both directions of a server; a rhythm that half of the
//! servers looked at share. Cold start: groups with the first look, a rhythm after [`rhythm::SAMPLES_MIN`] samples. What the
//! sample interval cannot resolve is `None`, not an alias of it. Recovery: a group that falls silent keeps its
//! name for [`KEEP`]; one of whose servers a job is reported is gone with the next look, which is due at once. Two
//! jobs are one group only if they share a server. Cost: O(flows log flows) a sample; a look, each [`LOOK`], O(edges
//! log edges), and samples times lags for [`RHYTHM_SERVERS`] of each group.

mod graph;
pub mod rhythm;
#[cfg(test)]
mod tests;

use crate::ids::{JobId, NodeId};
use crate::io::NodeSample;
use crate::jobs::Iteration;
use crate::keep::keep;
use crate::topology::Topology;
use graph::{Edge, Pair, components, rings};
use rhythm::{Beat, SAMPLES_MAX};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Time over which traffic is summed: some iterations of most jobs.
pub const WINDOW: Duration = Duration::from_secs(30);
/// Time between looks: a sixth of what is looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// Less than this between two addresses over the window is control traffic.
pub const EDGE_BYTES_MIN: u64 = 1_000_000;
/// Of a server that trains, the smaller of what it sends and receives is at least this share of the larger.
pub const BALANCE_MIN: f64 = 0.1;
/// How long a silent group keeps its name, and a server its reported job: a checkpoint, an evaluation.
pub const KEEP: Duration = Duration::from_secs(120);
/// Pairs of addresses, and servers with a series, held at once: as many as the core holds flows and nodes.
pub const EDGES_MAX: usize = 65_536;
pub const SERVERS_MAX: usize = 16_384;
/// Groups held at once: as many as the core holds jobs.
pub const GROUPS_MAX: usize = 4096;
/// Servers of a group whose rhythm is looked at: all have the same, or the group has none.
pub const RHYTHM_SERVERS: usize = 8;
/// An interval that differs by more from the series' starts a new one.
const INTERVAL_TOLERANCE: f64 = 0.25;
/// Periods of servers of one job agree within this share.
const PERIOD_TOLERANCE: f64 = 0.1;

/// What a server sent, sample by sample.
#[derive(Debug, Clone, Default)]
struct Series {
    bytes: VecDeque<f32>,
    /// Length of a sample, the mean of the series.
    interval_s: f64,
    /// End of the newest sample.
    end: Duration,
}

keep!(struct Series { bytes, interval_s, end });

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

keep!(struct Rhythm { period, duty, started, strength, iterations });

/// Servers that work together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Stays the same while more than half of the servers do.
    pub job: JobId,
    pub servers: BTreeSet<NodeId>,
    /// Rings of addresses, each from its lowest on; empty where traffic has another shape.
    pub rings: Vec<Vec<Ipv4Addr>>,
    /// `None`: no iterations, too few of them, or too short for the sample interval.
    pub rhythm: Option<Rhythm>,
    pub first_seen: Duration,
    pub last_seen: Duration,
}

keep!(struct Group { job, servers, rings, rhythm, first_seen, last_seen });

/// Jobs as seen through their flows.
#[derive(Debug, Clone, Default)]
pub struct Inference {
    edges: BTreeMap<Pair, Edge>,
    series: BTreeMap<NodeId, Series>,
    /// When a server's job was last reported.
    reported: BTreeMap<NodeId, Duration>,
    groups: Vec<Group>,
    last_number: u64,
    refused: u64,
    next_look: Duration,
}

keep!(struct Inference { edges, series, reported, groups, last_number, refused, next_look });

impl Inference {
    /// Takes a node's sample, and puts the inferred jobs' names on its flows.
    pub fn sampled(
        &mut self,
        node: &NodeId,
        sample: &mut NodeSample,
        topology: &Topology,
        at: Duration,
    ) {
        let reported = sample.job().is_some();
        if reported {
            self.reported(node, at);
        }
        let mut sent = 0.0;
        for flow in sample.flows.iter_mut().filter(|f| f.job.is_none()) {
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
            let edge = self.edges.entry(pair);
            let edge = edge.or_insert_with(|| Edge::new(node.clone(), to.clone()));
            edge.add(flow.bytes, at);
            flow.job.clone_from(&edge.job);
        }
        if !reported {
            self.extend(node, sent, sample.elapsed, at);
        }
    }

    /// A server's job is known: whatever was inferred of it gives way.
    fn reported(&mut self, node: &NodeId, at: Duration) {
        if let Some(known) = self.reported.get_mut(node) {
            *known = at;
            return;
        }
        if self.reported.len() >= SERVERS_MAX {
            self.refused += 1;
            return;
        }
        self.reported.insert(node.clone(), at);
        self.series.remove(node);
        if self.groups.iter().any(|g| g.servers.contains(node)) {
            self.next_look = Duration::ZERO;
        }
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
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a sum of bytes to seven digits is more than a rhythm needs"
        )]
        series.bytes.push_back(sent as f32);
        if series.bytes.len() > SAMPLES_MAX {
            series.bytes.pop_front();
        }
    }

    /// Whether it is time for [`Inference::look`].
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.next_look
    }

    /// Looks at everything once; returns the jobs that are none any more.
    pub fn look(&mut self, now: Duration) -> BTreeSet<JobId> {
        self.next_look = now + LOOK;
        let before: BTreeSet<JobId> = self.groups.iter().map(|g| g.job.clone()).collect();
        self.forget(now);
        let found = self.found();
        let current: Vec<Group> = found
            .into_iter()
            .map(|(s, n)| self.group(s, n, now))
            .collect();
        let jobs: BTreeMap<NodeId, usize> = (0..)
            .zip(&current)
            .flat_map(|(n, group)| group.servers.iter().map(move |s| (s.clone(), n)))
            .collect();
        let mut current = current;
        for ring in rings(&self.edges) {
            let edge = ring.first().zip(ring.get(1)).map(|(a, b)| (*a, *b));
            let from = edge.and_then(|pair| self.edges.get(&pair)).map(|e| &e.from);
            if let Some(n) = from.and_then(|server| jobs.get(server)) {
                current[*n].rings.push(ring);
            }
        }
        for edge in self.edges.values_mut() {
            let (from, to) = (jobs.get(&edge.from), jobs.get(&edge.to));
            edge.job = from
                .filter(|n| to == Some(*n))
                .map(|n| current[*n].job.clone());
        }
        let continued: BTreeSet<&JobId> = current.iter().map(|g| &g.job).collect();
        self.groups.retain(|g| !continued.contains(&g.job));
        self.groups.append(&mut current);
        self.groups
            .sort_by(|a, b| (b.last_seen, &a.job).cmp(&(a.last_seen, &b.job)));
        self.refused += self.groups.len().saturating_sub(GROUPS_MAX) as u64;
        self.groups.truncate(GROUPS_MAX);
        self.groups.sort_by(|a, b| a.job.cmp(&b.job));
        let left: BTreeSet<&JobId> = self.groups.iter().map(|g| &g.job).collect();
        before.into_iter().filter(|j| !left.contains(j)).collect()
    }

    /// Drops what is silent, and groups of whose servers a job is reported.
    fn forget(&mut self, now: Duration) {
        for edge in self.edges.values_mut() {
            edge.turn(now);
        }
        self.edges.retain(|_, e| !e.is_silent());
        let is_kept = |at: Duration| now.saturating_sub(at) < KEEP;
        self.series.retain(|_, s| is_kept(s.end));
        self.reported.retain(|_, at| is_kept(*at));
        let reported = &self.reported;
        let is_known = |g: &Group| g.servers.iter().any(|s| reported.contains_key(s));
        self.groups.retain(|g| is_kept(g.last_seen) && !is_known(g));
    }

    /// Sets of servers that work together, each with the place of the group that it continues.
    fn found(&self) -> Vec<(BTreeSet<NodeId>, Option<usize>)> {
        // Who is known, and who sends to one who is.
        let of_reported = |e: &&Edge| self.reported.contains_key(&e.to) && e.is_large();
        let senders = self.edges.values().filter(of_reported).map(|e| &e.from);
        let tied: BTreeSet<&NodeId> = senders.chain(self.reported.keys()).collect();
        let mut places: BTreeMap<&NodeId, Vec<usize>> = BTreeMap::new();
        for (n, group) in self.groups.iter().enumerate() {
            for server in &group.servers {
                places.entry(server).or_default().push(n);
            }
        }
        let mut found = components(&self.edges);
        found.retain(|servers| !servers.iter().any(|s| tied.contains(s)));
        let continues = |servers: &BTreeSet<NodeId>| {
            let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
            for n in servers.iter().filter_map(|s| places.get(s)).flatten() {
                *shared.entry(*n).or_default() += 1;
            }
            // More than half of both: so no two sets continue one group, and none continues two.
            let larger = |n: usize| self.groups[n].servers.len().max(servers.len());
            let mut shared = shared.into_iter();
            shared
                .find(|(n, both)| both * 2 > larger(*n))
                .map(|(n, _)| n)
        };
        let found = found.into_iter().map(|servers| {
            let known = continues(&servers);
            (servers, known)
        });
        found.collect()
    }

    /// The group of some servers, under the name of the one that it continues or a new one.
    fn group(&mut self, servers: BTreeSet<NodeId>, known: Option<usize>, now: Duration) -> Group {
        let (job, first_seen) = match known.and_then(|n| self.groups.get(n)) {
            Some(known) => (known.job.clone(), known.first_seen),
            None => {
                self.last_number += 1;
                (JobId::inferred(self.last_number), now)
            }
        };
        Group {
            rhythm: self.rhythm(&servers),
            job,
            servers,
            rings: Vec::new(),
            first_seen,
            last_seen: now,
        }
    }

    /// The rhythm that at least half of some servers share.
    fn rhythm(&self, servers: &BTreeSet<NodeId>) -> Option<Rhythm> {
        let looked_at = servers
            .iter()
            .step_by(servers.len().div_ceil(RHYTHM_SERVERS).max(1));
        let looked_at: Vec<&NodeId> = looked_at.collect();
        let mut beats: Vec<(&Series, Beat, f64)> = looked_at
            .iter()
            .filter_map(|s| self.series.get(s))
            .filter_map(|s| {
                let bytes: Vec<f64> = s.bytes.iter().map(|b| f64::from(*b)).collect();
                let beat = rhythm::find(&bytes)?;
                let period_s = beat.period * s.interval_s;
                Some((s, beat, period_s))
            })
            .collect();
        let mut periods: Vec<f64> = beats.iter().map(|(_, _, p)| *p).collect();
        periods.sort_by(f64::total_cmp);
        let middle = *periods.get(periods.len() / 2)?;
        beats.retain(|(_, _, p)| (p / middle - 1.0).abs() <= PERIOD_TOLERANCE);
        if beats.len() * 2 < looked_at.len() {
            return None;
        }
        let (series, beat, _) = beats.first()?;
        let time = |start: f64| {
            let before = (series.bytes.len() as f64 - start) * series.interval_s;
            let before = Duration::try_from_secs_f64(before).unwrap_or_default();
            series.end.saturating_sub(before)
        };
        let iterations = beat.periods.iter().map(|(start, end)| Iteration {
            started: time(*start),
            ended: time(*end),
            seconds: (end - start) * series.interval_s,
        });
        let iterations: Vec<Iteration> = iterations.collect();
        Some(Rhythm {
            period: Duration::try_from_secs_f64(middle).ok()?,
            duty: beat.duty,
            started: iterations.last()?.ended,
            strength: beat.strength,
            iterations,
        })
    }

    /// Groups seen not longer than [`KEEP`] ago, by name.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group of an inferred job.
    #[must_use]
    pub fn get(&self, job: &JobId) -> Option<&Group> {
        self.groups.iter().find(|g| g.job == *job)
    }

    /// Pairs of addresses, servers and groups refused because a table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 4] {
        [
            ("pairs without a job", self.edges.len(), EDGES_MAX),
            ("servers without a job", self.series.len(), SERVERS_MAX),
            ("servers with a job", self.reported.len(), SERVERS_MAX),
            ("inferred jobs", self.groups.len(), GROUPS_MAX),
        ]
    }
}
