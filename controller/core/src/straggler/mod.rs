//! Which rank holds a job's collective back: the one that arrives late, or the one that finishes late.
//!
//! What is estimated: for each rank and iteration, how late it was beside the median of all ranks.
//! A collective ends for all ranks at about the same time, so whoever arrives last spends the shortest
//! time inside the call, and its shortfall is its lateness, whatever the clocks of the nodes say
//! (their skew is tens of milliseconds, as starts are told by when a sample was taken, see [`clock`]). A rank whose
//! call is *longer* than the others' either came early, which harms nobody, or ended late, which is the
//! network; its start tells which, once it is calibrated against the rank's own past. A call of NCCL or
//! RCCL returns when the work is queued and its duration says nothing: there the start alone is used, behind
//! the other ranks' and calibrated likewise, so a rank that was always late cannot be told from skew.
//!
//! Why median and MAD, and not mean and deviation: one straggler moves the latter by as much as it stands out.
//! Why not slow iterations: a ring's slow edge makes every rank's call equally long, and that is for
//! [`crate::hotspot`] to find.
//!
//! Trip condition: late by [`LATE_MIN`] of the iteration and by [`SPREADS`] times the ranks' spread, in
//! [`SHARE_MIN`] of the last [`WINDOW`] iterations, or in nearly all of the newest ([`BRIEF`]); a rank that changes each time is jitter. Cold start:
//! `None` before [`ITERATIONS_MIN`] iterations of three ranks, and of starts before [`CALIBRATED`] ordinary
//! ones. Recovery: below the share again. Iterations: calls of the job's largest collective, matched by their
//! order from burst to burst; a burst of calls is one iteration. What is lost on the way costs iterations,
//! never a wrong match for long. Several communicators do not wait for each
//! other: where they show (a rank on two nodes, more ranks than there are) nothing is said.
//! Where most ranks of a node are late together, the verdict is one on the node; the medians of nodes' ranks are compared
//! in the same way, since a node stands out from others where the jitter of single ranks hides each of its ranks.
//! Cost: O(ranks log ranks) an iteration; 2 us a call were measured with 1,024 ranks.

mod clock;
mod ranks;
#[cfg(test)]
mod tests;

use crate::ids::{JobId, NodeId};
use crate::io::NodeSample;
use crate::jobs::Jobs;
use crate::keep::keep;
use crate::verdict::{Class, Evidence, Impact, Severity, Subject, Verdict};
use clock::Clock;
pub use ranks::Ranks;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Iterations that a verdict looks back on.
pub const WINDOW: usize = 20;
/// Iterations before anything is said.
pub const ITERATIONS_MIN: usize = 10;
/// Share of the iterations in which a rank must be late. Chance puts one of three ranks last in a third of them.
pub const SHARE_MIN: f64 = 0.6;
/// Or late in so many of so many of the newest: who was on time before is found sooner.
pub const BRIEF: (usize, usize) = (8, 9);
/// Lateness that matters, as a share of the iteration.
pub const LATE_MIN: f64 = 0.03;
/// Lateness that stands out from the other ranks', in spreads (median absolute deviations, scaled to a standard deviation).
pub const SPREADS: f64 = 5.0;
/// Ordinary iterations after which a rank's usual start is known.
pub const CALIBRATED: usize = 16;
/// Ranks of a job that are looked at, the lowest that report. The rest is counted.
pub const RANKS_MAX: usize = 4096;
/// Jobs held at once; each costs up to 4 MB, with as many ranks as that.
const JOBS_MAX: usize = 1024;

/// What makes a rank late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It arrives late: the others wait inside the call.
    Compute,
    /// It starts with the others and ends late.
    Network,
}

keep!(enum Kind { 0 Compute, 1 Network });

impl Kind {
    /// Name in the API, in labels and in documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Compute => "compute",
            Kind::Network => "network",
        }
    }
}

/// A rank that holds its job back.
#[derive(Debug, Clone, PartialEq)]
pub struct Straggler {
    pub rank: u32,
    pub kind: Kind,
    /// Seconds behind the median rank, in the median of the iterations in which it was late.
    pub late_s: f64,
    /// Lateness from which it would have stood out, in seconds.
    pub threshold_s: f64,
    /// Share of the last `iterations` in which it was late, in [`SHARE_MIN`]..=1; these are the newest of [`BRIEF`] if it was
    /// on time before.
    pub share: f64,
    pub iterations: usize,
    /// In 0..1: the share, less the more `late_s` comes near to the threshold.
    pub confidence: f64,
    /// Seconds that each iteration would be shorter without this and the job's other stragglers of its kind.
    pub lost_s: f64,
    /// Share of the time that the job would need without them: 1 is no loss. `None`: length of iterations unknown.
    pub effective_ratio: Option<f64>,
}

/// The ranks of all jobs.
#[derive(Debug, Clone, Default)]
pub struct Stragglers {
    jobs: BTreeMap<JobId, Ranks>,
    clocks: BTreeMap<NodeId, Clock>,
}

keep!(struct Stragglers { jobs, clocks });

impl Stragglers {
    /// Takes a node's sample that arrived `at`.
    pub fn sampled(&mut self, node: &NodeId, sample: &NodeSample, at: Duration) {
        if sample.collectives.is_empty() && !self.clocks.contains_key(node) {
            return;
        }
        let clock = self.clocks.entry(node.clone()).or_default();
        let at = clock.taken(sample.elapsed, at);
        for calls in sample.collectives.chunk_by(|a, b| a.job == b.job) {
            let job = &calls[0].job;
            if !self.jobs.contains_key(job) && self.jobs.len() >= JOBS_MAX {
                let oldest = self.jobs.iter().min_by_key(|(_, r)| r.last_seen());
                let Some(oldest) = oldest.map(|(job, _)| job.clone()) else {
                    continue;
                };
                self.jobs.remove(&oldest);
            }
            let ranks = self.jobs.entry(job.clone()).or_default();
            for done in calls {
                ranks.dated(done.rank, clock.breaks);
                ranks.done(node, done, at);
            }
        }
    }

    /// Forgets jobs and nodes that nobody reported for `gone`.
    pub fn expire(&mut self, now: Duration, gone: Duration) {
        self.jobs
            .retain(|_, r| now.saturating_sub(r.last_seen()) < gone);
        self.clocks
            .retain(|_, c| now.saturating_sub(c.arrived) < gone);
    }

    #[must_use]
    pub fn get(&self, job: &JobId) -> Option<&Ranks> {
        self.jobs.get(job)
    }

    /// All jobs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Ranks)> {
        self.jobs.iter()
    }
}

/// Time after its last call for which a job's stragglers are worth a verdict.
const CURRENT: Duration = Duration::from_secs(10);

/// Verdicts on the stragglers of all jobs that run.
#[must_use]
pub fn verdicts(stragglers: &Stragglers, jobs: &Jobs, now: Duration) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (job, ranks) in stragglers.iter() {
        let known = jobs.get(job);
        let age = now.saturating_sub(ranks.last_seen());
        if age > known.map_or(CURRENT, |j| j.age_max(CURRENT)) {
            continue;
        }
        let mut slow_nodes = BTreeSet::new();
        let mut single = BTreeSet::new();
        for straggler in ranks.stragglers().unwrap_or_default() {
            let node = known.and_then(|j| j.host_of(straggler.rank)).cloned();
            if straggler.kind == Kind::Compute
                && let Some(node) = &node
            {
                let (late, all) = ranks.late_beside(&straggler);
                if slow_nodes.contains(node) {
                    continue;
                }
                if late > 1 && late * 2 > all {
                    slow_nodes.insert(node.clone());
                    let ranks = known.and_then(|j| j.ranks);
                    verdicts.push(slow_node(job, &straggler, node, (late, all), ranks));
                    continue;
                }
                single.insert(node.clone());
            }
            verdicts.push(verdict(job, &straggler, node, known.and_then(|j| j.ranks)));
        }
        for (node, straggler) in ranks.slow_nodes() {
            if !slow_nodes.contains(&node) && !single.contains(&node) {
                let beside = ranks.late_beside(&straggler);
                let of = known.and_then(|j| j.ranks);
                verdicts.push(slow_node(job, &straggler, &node, beside, of));
            }
        }
    }
    verdicts
}

/// Most ranks of a node arrive late together: that is the node, or a GPU that the others there wait for before they
/// call; which of the two, arrivals do not tell.
fn slow_node(
    job: &JobId,
    straggler: &Straggler,
    node: &NodeId,
    (late, all): (usize, usize),
    ranks: Option<u32>,
) -> Verdict {
    let subject = Subject::Node(node.clone());
    let confidence = straggler.confidence;
    let single = verdict(job, straggler, Some(node.clone()), ranks);
    let together = Evidence::new(
        format!("ranks on {node}"),
        format!("{late} of {all} are late together, at least half as much as the latest"),
    );
    Verdict {
        job: single.job,
        evidence: [together].into_iter().chain(single.evidence).collect(),
        action: single.action,
        impact: single.impact,
        ..Verdict::new(Class::NodeOutlier, Severity::Warning, subject, confidence)
    }
}

fn verdict(
    job: &JobId,
    straggler: &Straggler,
    node: Option<NodeId>,
    ranks: Option<u32>,
) -> Verdict {
    let Straggler {
        rank,
        kind,
        late_s,
        threshold_s,
        share,
        iterations,
        confidence,
        lost_s,
        effective_ratio,
    } = *straggler;
    let host = node
        .as_ref()
        .map_or_else(|| "its host".to_owned(), ToString::to_string);
    let what = match kind {
        Kind::Compute => "arrives late, the others wait in the call",
        Kind::Network => "starts with the others and ends late",
    };
    let evidence = vec![
        Evidence::new(
            format!("rank {rank} on {host}"),
            format!("{what}: {:.1} ms behind the median rank", late_s * 1e3),
        ),
        Evidence::new(
            "stands out from",
            format!("{:.1} ms, the spread of the others", threshold_s * 1e3),
        ),
        Evidence::new(
            "how often",
            format!(
                "in {:.0} % of the last {iterations} iterations",
                share * 100.0
            ),
        ),
        Evidence::new("lost", format!("{:.1} ms of each iteration", lost_s * 1e3)),
    ];
    let action = match kind {
        Kind::Compute => format!(
            "compare {host} with a neighbour: GPU clocks and temperatures, PCIe, input pipeline, other processes (`weir-agent scan`)"
        ),
        Kind::Network => format!("look at the links and the network adapter of {host}"),
    };
    let entity = Subject::Rank {
        job: job.clone(),
        rank,
        node,
    };
    Verdict {
        job: Some(job.clone()),
        evidence,
        action,
        impact: effective_ratio.map(|effective| Impact {
            lost_ratio: (1.0 - effective).clamp(0.0, 1.0),
            ranks: ranks.unwrap_or(0),
        }),
        ..Verdict::new(Class::Straggler, Severity::Warning, entity, confidence)
    }
}
