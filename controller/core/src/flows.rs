//! Which flows are on the wire, how fast, and by which links.
//!
//! Paths are asked of the switches hop by hop (their kernels answer with the route they would
//! take) and remembered until the switch says that its routes changed.

use crate::ids::{FlowKey, JobId, NodeId, PortId};
use crate::io::{FlowSample, ResolvedHop, age_max};
use crate::keep::keep;
use crate::silent::{self, Tally};
use crate::topology::{NODES_MAX, Topology};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// Flows held at once: 8 NICs x 8 channels x 1,000 hosts. The rest is counted, not kept.
pub const FLOWS_MAX: usize = 65_536;
/// Hops remembered: a flow crosses at most five switches, and as many are asked for alternatives.
pub const HOPS_MAX: usize = FLOWS_MAX * 10;
/// Longest path: host, three tiers up and down, with room for a detour.
const PATH_MAX: usize = 8;
/// A question without an answer is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A rate older than this is no longer current where samples come once a second; [`age_max`] otherwise.
pub const RATE_AGE_MAX: Duration = Duration::from_millis(2500);
/// TCP doubles the time between its retransmissions: a flow without any for longer is at rest.
const RETRANSMITS_AGE_MAX: Duration = Duration::from_secs(5);
/// A flow that was not reported for so long is gone, or its agent is.
const HELD: Duration = Duration::from_secs(60);
/// One that was closed is held for so long after its last sample: some samples of the links that it crossed.
const CLOSED_HELD: Duration = Duration::from_secs(10);
/// Slower flows are control traffic: they never load a link.
const ACTIVE_BPS: f64 = 1e6;

/// A flow as last reported by its sender.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    pub job: Option<JobId>,
    pub rate_bps: f64,
    pub at: Duration,
    /// The shorter of its last two intervals: the longer may be one of a lost sample.
    interval: Duration,
    /// The newest.
    elapsed: Duration,
    /// First sample since it is on the way that it takes now, as far as that is known.
    pub since: Duration,
    pub retransmits: u64,
    /// When it retransmitted last.
    pub retransmitted_at: Option<Duration>,
    pub srtt_us: u32,
    pub delivered_ce: u64,
    tally: Tally,
    closed: bool,
}

impl Flow {
    /// Whether what was told `at` is no older than `least`, or than its node's interval allows.
    fn is_current(&self, at: Duration, least: Duration, now: Duration) -> bool {
        now.saturating_sub(at) <= age_max(least, self.interval)
    }

    fn is_active(&self, now: Duration) -> bool {
        !self.closed && self.rate_bps >= ACTIVE_BPS && self.is_current(self.at, RATE_AGE_MAX, now)
    }
}

keep!(struct Flow {
    job, rate_bps, at, interval, elapsed, since, retransmits, retransmitted_at, srtt_us, delivered_ce, tally, closed,
});

/// Where a node sends a flow that comes in by a port.
#[derive(Debug, Clone, PartialEq)]
struct Hop {
    node: NodeId,
    in_port: Arc<str>,
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Asked(Duration),
    Known {
        out_port: Option<Arc<str>>,
        group: Option<u32>,
        /// Of the node's routes; an older one is no answer any more.
        epoch: u64,
    },
}

/// Where a path passes a next-hop group with more than one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Index in the path of the port that was chosen.
    pub at: usize,
    pub in_port: Arc<str>,
    pub group: u32,
}

/// The ports by which a flow leaves each node on its way, the sender's first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    pub ports: Vec<PortId>,
    pub choices: Vec<Choice>,
}

/// All flows, and what is known of their paths.
#[derive(Debug, Clone, Default)]
pub struct Flows {
    flows: BTreeMap<FlowKey, Flow>,
    /// By flow: a handful each.
    hops: BTreeMap<FlowKey, Vec<Hop>>,
    hops_held: usize,
    /// How often each node's routes changed.
    epochs: BTreeMap<NodeId, u64>,
    wanted: BTreeSet<Question>,
    refused: u64,
}

/// What a node is asked: where it sends a flow that comes in by a port.
type Question = (NodeId, Arc<str>, FlowKey);

/// What a replay has to know of flows: all but their paths.
#[derive(Debug, Clone)]
pub struct Memory {
    flows: BTreeMap<FlowKey, Flow>,
    wanted: BTreeSet<Question>,
}

keep!(struct Memory { flows, wanted });

impl Flows {
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory {
            flows: self.flows.clone(),
            wanted: self.wanted.clone(),
        }
    }

    /// Goes on from there; no path is known.
    pub fn remember(&mut self, memory: Memory) {
        let Memory { flows, wanted } = memory;
        (self.flows, self.wanted) = (flows, wanted);
        self.forget_paths();
    }

    /// All paths have to be asked for again.
    pub fn forget_paths(&mut self) {
        self.hops.clear();
        self.hops_held = 0;
    }

    pub fn sampled(&mut self, sample: &FlowSample, elapsed: Duration, at: Duration) {
        let is_full = self.flows.len() >= FLOWS_MAX;
        let place = self.flows.entry(sample.key);
        if is_full && matches!(place, Entry::Vacant(_)) {
            self.refused += 1;
            return;
        }
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let flow = place.or_insert_with(|| Flow {
            job: None,
            rate_bps: 0.0,
            at,
            interval: elapsed,
            elapsed,
            since: at,
            retransmits: 0,
            retransmitted_at: None,
            srtt_us: 0,
            delivered_ce: 0,
            tally: Tally::default(),
            closed: false,
        });
        flow.interval = flow.elapsed.min(elapsed);
        (flow.elapsed, flow.at, flow.closed) = (elapsed, at, false);
        flow.rate_bps = sample.bytes as f64 * 8.0 / seconds;
        // What a job was inferred to be is said anew with each sample, or holds no longer.
        let holds = flow.job.as_ref().is_some_and(|job| !job.is_inferred());
        if (sample.job.is_some() || !holds) && flow.job != sample.job {
            flow.job.clone_from(&sample.job);
        }
        let packets = sample.bytes / silent::PACKET_BYTES;
        let counts = (packets, sample.retransmits);
        flow.tally.add(counts, flow.interval, at);
        if sample.retransmits > 0 {
            flow.retransmitted_at = Some(at);
        }
        (flow.retransmits, flow.srtt_us) = (sample.retransmits, sample.srtt_us);
        flow.delivered_ce = sample.delivered_ce;
    }

    /// Takes the jobs' names off their flows.
    pub fn forget_jobs(&mut self, jobs: &BTreeSet<JobId>) {
        for flow in self.flows.values_mut() {
            flow.job.take_if(|job| jobs.contains(job));
        }
    }

    /// A flow sends no more. It is held a while longer, since what it filled is still told.
    pub fn closed(&mut self, key: &FlowKey) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.closed = true;
        }
    }

    fn forget(&mut self, key: &FlowKey) {
        self.flows.remove(key);
        self.hops_held -= self.hops.remove(key).map_or(0, |hops| hops.len());
    }

    pub fn resolved(&mut self, node: &NodeId, hop: ResolvedHop) {
        let answer = Answer::Known {
            out_port: hop.out_port,
            group: hop.group,
            epoch: self.epoch(node),
        };
        self.note(node, &hop.in_port, &hop.key, answer);
    }

    /// Takes the hops of a node as unknown from now on.
    pub fn routes_changed(&mut self, node: &NodeId) {
        match self.epochs.get_mut(node) {
            Some(epoch) => *epoch += 1,
            None => {
                self.epochs.insert(node.clone(), 1);
            }
        }
    }

    /// Its flows have expired long ago.
    pub fn node_forgotten(&mut self, node: &NodeId) {
        self.epochs.remove(node);
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 3] {
        [
            ("flows", self.flows.len(), FLOWS_MAX),
            ("hops", self.hops_held, HOPS_MAX),
            ("route epochs", self.epochs.len(), NODES_MAX),
        ]
    }

    fn epoch(&self, node: &NodeId) -> u64 {
        self.epochs.get(node).copied().unwrap_or(0)
    }

    /// What is known of a hop, or since when it was asked for.
    fn answer(&self, node: &NodeId, in_port: &str, key: &FlowKey) -> Option<&Answer> {
        let mut hops = self.hops.get(key)?.iter();
        let hop = hops.find(|h| h.node == *node && *h.in_port == *in_port)?;
        match &hop.answer {
            Answer::Known { epoch, .. } if *epoch != self.epoch(node) => None,
            answer @ (Answer::Asked(_) | Answer::Known { .. }) => Some(answer),
        }
    }

    fn note(&mut self, node: &NodeId, in_port: &Arc<str>, key: &FlowKey, answer: Answer) {
        // It may have ended while its path was asked for.
        if !self.flows.contains_key(key) {
            return;
        }
        let hops = self.hops.entry(*key).or_default();
        let known = hops
            .iter_mut()
            .find(|h| h.node == *node && h.in_port == *in_port);
        match known {
            Some(hop) => {
                let stale = matches!(hop.answer, Answer::Known { .. });
                if stale && let Some(flow) = self.flows.get_mut(key) {
                    flow.since = flow.at;
                }
                hop.answer = answer;
            }
            None if self.hops_held < HOPS_MAX => {
                self.hops_held += 1;
                hops.push(Hop {
                    node: node.clone(),
                    in_port: in_port.clone(),
                    answer,
                });
            }
            None => {}
        }
    }

    /// Drops flows that were not reported for a minute: their agent or they are gone; and those that were closed.
    pub fn expire(&mut self, now: Duration) {
        let gone: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(_, f)| now.saturating_sub(f.at) > if f.closed { CLOSED_HELD } else { HELD })
            .map(|(k, _)| *k)
            .collect();
        for key in gone {
            self.forget(&key);
        }
    }

    /// Whether a flow of the job to `dst` retransmits and gets nothing through.
    #[must_use]
    pub fn retransmits(&self, job: &JobId, dst: Ipv4Addr, now: Duration) -> bool {
        self.flows.iter().any(|(key, flow)| {
            key.dst == dst
                && !flow.closed
                && flow.job.as_ref() == Some(job)
                && flow.rate_bps < ACTIVE_BPS
                && flow
                    .retransmitted_at
                    .is_some_and(|at| flow.is_current(at, RETRANSMITS_AGE_MAX, now))
        })
    }

    /// Flows with data on the wire in their newest sample.
    pub fn active(&self, now: Duration) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.iter().filter(move |(_, f)| f.is_active(now))
    }

    /// All flows of the last minute, and those closed of late, and whether each has data on the wire now.
    pub fn held(&self, now: Duration) -> impl Iterator<Item = (&FlowKey, &Flow, bool)> {
        self.flows
            .iter()
            .map(move |(key, flow)| (key, flow, flow.is_active(now)))
    }

    /// Packets that each flow sent, and sent again, lately; flows without any are left out.
    #[must_use]
    pub(crate) fn tallies(&self, now: Duration) -> Vec<(FlowKey, Tally)> {
        let open = self.flows.iter().filter(|(_, f)| !f.closed);
        let tallies = open.map(|(k, f)| (*k, f.tally));
        tallies.filter(|(_, t)| t.total(now).0 > 0).collect()
    }

    /// Jobs with active flows over one of `ports`, or from or to one of `nodes`, as far as paths are known.
    pub fn jobs_over(
        &mut self,
        ports: &BTreeSet<PortId>,
        nodes: &BTreeSet<NodeId>,
        topology: &Topology,
        now: Duration,
    ) -> BTreeSet<JobId> {
        let active = self.active(now);
        let active: Vec<(FlowKey, JobId)> = active
            .filter_map(|(key, flow)| Some((*key, flow.job.clone()?)))
            .collect();
        let mut jobs = BTreeSet::new();
        for (key, job) in active {
            if jobs.contains(&job) {
                continue;
            }
            let ends = [key.src, key.dst];
            let mut ends = ends.iter().filter_map(|a| topology.port_of(*a));
            let crosses = ends.any(|end| nodes.contains(&end.node))
                || self
                    .path(&key, topology)
                    .is_some_and(|path| path.ports.iter().any(|p| ports.contains(p)));
            if crosses {
                jobs.insert(job);
            }
        }
        jobs
    }

    /// Switches that active flows over one of `ports` pass, as far as paths are known.
    pub fn passed_with(
        &mut self,
        ports: &BTreeSet<PortId>,
        topology: &Topology,
        now: Duration,
    ) -> BTreeSet<NodeId> {
        let active: Vec<FlowKey> = self.active(now).map(|(key, _)| *key).collect();
        let mut passed = BTreeSet::new();
        for key in active {
            let path = self.path(&key, topology);
            let path = path.filter(|path| path.ports.iter().any(|p| ports.contains(p)));
            passed.extend(path.into_iter().flat_map(|path| path.ports).map(|p| p.node));
        }
        passed.retain(|node| topology.is_switch(node));
        passed
    }

    /// Flows refused because the table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The path of a flow from its sender, or `None` while a hop is not known; the question is
    /// then noted for [`Flows::take_questions`].
    pub fn path(&mut self, key: &FlowKey, topology: &Topology) -> Option<Path> {
        let first = topology.port_of(key.src)?.clone();
        self.walk(key, first, topology)
    }

    /// The path that a flow would take after leaving a node by `port`.
    pub fn walk(&mut self, key: &FlowKey, port: PortId, topology: &Topology) -> Option<Path> {
        self.lead(key, port, topology).flatten()
    }

    /// The same: `None` while a hop is not known, `Some(None)` if that way has no route to the receiver.
    pub fn lead(
        &mut self,
        key: &FlowKey,
        port: PortId,
        topology: &Topology,
    ) -> Option<Option<Path>> {
        let target = topology.port_of(key.dst)?.node.clone();
        let mut path = Path {
            ports: vec![port],
            choices: Vec::new(),
        };
        while path.ports.len() <= PATH_MAX {
            let entry = topology.peer(path.ports.last()?)?;
            if entry.node == target {
                return Some(Some(path));
            }
            match self.answer(&entry.node, &entry.port, key) {
                Some(Answer::Known {
                    out_port: Some(out),
                    group,
                    ..
                }) => {
                    if let Some(group) = group {
                        path.choices.push(Choice {
                            at: path.ports.len(),
                            in_port: entry.port.clone(),
                            group: *group,
                        });
                    }
                    path.ports.push(PortId {
                        node: entry.node.clone(),
                        port: out.clone(),
                    });
                }
                Some(Answer::Known { out_port: None, .. }) => return Some(None),
                Some(Answer::Asked(_)) | None => {
                    let question = (entry.node.clone(), entry.port.clone(), *key);
                    self.wanted.insert(question);
                    return None;
                }
            }
        }
        // A way in circles leads nowhere.
        Some(None)
    }

    /// Questions to send now, by node; each is repeated only after a second without an answer.
    pub fn take_questions(&mut self, now: Duration) -> BTreeMap<NodeId, Vec<(FlowKey, Arc<str>)>> {
        let mut questions: BTreeMap<NodeId, Vec<(FlowKey, Arc<str>)>> = BTreeMap::new();
        for (node, in_port, key) in std::mem::take(&mut self.wanted) {
            let asked = match self.answer(&node, &in_port, &key) {
                Some(Answer::Asked(at)) => now.saturating_sub(*at) < ASK_AGAIN,
                Some(Answer::Known { .. }) => true,
                None => self.hops_held >= HOPS_MAX,
            };
            if !asked {
                self.note(&node, &in_port, &key, Answer::Asked(now));
                questions.entry(node).or_default().push((key, in_port));
            }
        }
        questions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_current_for_two_and_a_half_of_its_own_intervals() {
        let key = FlowKey {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            src_port: 50_000,
            dst_port: 4791,
        };
        // Intervals, the newest last, and how long the last is current in milliseconds.
        for (intervals, current_ms) in [
            (&[1u64, 1, 1][..], 2_500),
            (&[10, 10, 10], 25_000),
            // A lost sample; an agent that looks more often from now on.
            (&[1, 1, 4], 2_500),
            (&[10, 10, 1], 2_500),
        ] {
            let (mut flows, mut now) = (Flows::default(), Duration::ZERO);
            for interval in intervals {
                let elapsed = Duration::from_secs(*interval);
                now += elapsed;
                let sample = FlowSample {
                    key,
                    job: None,
                    bytes: 1 << 30,
                    retransmits: 0,
                    srtt_us: 0,
                    delivered_ce: 0,
                    received_ce: 0,
                    cnps_sent: 0,
                };
                flows.sampled(&sample, elapsed, now);
            }
            let until = now + Duration::from_millis(current_ms);
            assert_eq!(flows.active(until).count(), 1, "{intervals:?}");
            let later = until + Duration::from_millis(1);
            assert_eq!(flows.active(later).count(), 0, "{intervals:?}");
        }
    }
}
