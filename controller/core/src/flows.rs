//! Which flows are on the wire, how fast, and by which links.
//!
//! Paths are asked of the switches hop by hop (their kernels answer with the route they would
//! take) and remembered until the switch says that its routes changed.

use crate::engine::NODES_MAX;
use crate::ids::{FlowKey, JobId, NodeId, PortId};
use crate::io::{FlowSample, ResolvedHop};
use crate::silent::{self, Tally};
use crate::topology::Topology;
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
/// A rate older than this is no longer current (samples come once a second).
pub const RATE_AGE_MAX: Duration = Duration::from_millis(2500);
/// TCP doubles the time between its retransmissions: a flow without any for longer is at rest.
const RETRANSMITS_AGE_MAX: Duration = Duration::from_secs(5);
/// Slower flows are control traffic: they never load a link.
const ACTIVE_BPS: f64 = 1e6;

/// A flow as last reported by its sender.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    pub job: Option<JobId>,
    pub rate_bps: f64,
    pub at: Duration,
    pub retransmits: u64,
    /// When it retransmitted last.
    pub retransmitted_at: Option<Duration>,
    pub srtt_us: u32,
    pub delivered_ce: u64,
    tally: Tally,
}

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
    wanted: BTreeSet<(NodeId, Arc<str>, FlowKey)>,
    refused: u64,
}

impl Flows {
    pub fn sampled(&mut self, sample: &FlowSample, elapsed: Duration, at: Duration) {
        if !self.flows.contains_key(&sample.key) && self.flows.len() >= FLOWS_MAX {
            self.refused += 1;
            return;
        }
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate_bps = sample.bytes as f64 * 8.0 / seconds;
        let known = self.flows.get(&sample.key);
        // What a job was inferred to be is said anew with each sample, or holds no longer.
        let before = || known?.job.clone().filter(|job| !job.is_inferred());
        let job = sample.job.clone().or_else(before);
        let before = known.and_then(|f| f.retransmitted_at);
        let mut tally = known.map(|f| f.tally).unwrap_or_default();
        tally.add(sample.bytes / silent::PACKET_BYTES, sample.retransmits, at);
        let flow = Flow {
            retransmitted_at: if sample.retransmits > 0 {
                Some(at)
            } else {
                before
            },
            job,
            rate_bps,
            at,
            retransmits: sample.retransmits,
            srtt_us: sample.srtt_us,
            delivered_ce: sample.delivered_ce,
            tally,
        };
        self.flows.insert(sample.key, flow);
    }

    /// Takes the jobs' names off their flows.
    pub fn forget_jobs(&mut self, jobs: &BTreeSet<JobId>) {
        for flow in self.flows.values_mut() {
            flow.job.take_if(|job| jobs.contains(job));
        }
    }

    pub fn closed(&mut self, key: &FlowKey) {
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
            Some(hop) => hop.answer = answer,
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

    /// Drops flows that were not reported for a minute: their agent or they are gone.
    pub fn expire(&mut self, now: Duration) {
        let gone: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(_, f)| now.saturating_sub(f.at) > Duration::from_secs(60))
            .map(|(k, _)| *k)
            .collect();
        for key in gone {
            self.closed(&key);
        }
    }

    /// Whether a flow of the job to `dst` retransmits and gets nothing through.
    #[must_use]
    pub fn retransmits(&self, job: &JobId, dst: Ipv4Addr, now: Duration) -> bool {
        self.flows.iter().any(|(key, flow)| {
            key.dst == dst
                && flow.job.as_ref() == Some(job)
                && flow.rate_bps < ACTIVE_BPS
                && flow
                    .retransmitted_at
                    .is_some_and(|at| now.saturating_sub(at) <= RETRANSMITS_AGE_MAX)
        })
    }

    /// Flows with data on the wire in their newest sample.
    pub fn active(&self, now: Duration) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.iter().filter(move |(_, f)| {
            f.rate_bps >= ACTIVE_BPS && now.saturating_sub(f.at) <= RATE_AGE_MAX
        })
    }

    /// Packets that each flow sent, and sent again, lately; flows without any are left out.
    #[must_use]
    pub(crate) fn tallies(&self, now: Duration) -> Vec<(FlowKey, Tally)> {
        let tallies = self.flows.iter().map(|(k, f)| (*k, f.tally));
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
