//! How fast each job's collectives go: the only judge of a change.
//!
//! The time of an iteration is the duration of the job's largest collective as one rank saw it
//! (in a ring all ranks finish together; the lowest rank that reports is taken, so that the
//! series is one rank's and not a mixture). Smaller collectives of the same job are left out, so
//! that like is compared with like.
//!
//! A call of NCCL or RCCL returns when the work is queued to the GPU, so its duration says nothing.
//! There the mean time from one such call to the next stands in, over windows that begin and end
//! where a train of calls begins: a training step queues its buckets in a burst.
//!
//! Where nobody sees the collectives (no eBPF), progress of the job's flows stands in: seconds
//! per megabyte that the first reporting node sent, one value each sample.
//!
//! A job that is itself inferred from flows is measured on the rhythm of its traffic, where samples show one.

mod figures;
#[cfg(test)]
mod tests;
mod train;

use crate::ids::{JobId, NodeId};
use crate::infer::Group;
use crate::io::{CollectiveDone, NodeSample, age_max};
use crate::keep::keep;
use figures::busiest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use train::Train;
pub(crate) use train::{moves_data, only_queues};

/// Iterations kept for a rank.
const ITERATIONS_MAX: usize = 256;
/// Ranks whose series is kept: the lowest that report; one is used, the others stand by.
const RANKS_MAX: usize = 4;
/// Ranks of a job whose host is remembered: those that stragglers are looked for among.
const HOSTS_MAX: usize = crate::straggler::RANKS_MAX;
/// Nodes of a job whose flows may become a series; the first that report.
const CANDIDATES_MAX: usize = 1024;
/// Jobs held at once.
const JOBS_MAX: usize = 4096;
/// A largest collective that was not called for this long gives way to the next.
const FORGET: Duration = Duration::from_secs(30);
/// A series that ended longer ago is not the job's present.
const CURRENT: Duration = Duration::from_secs(10);

/// A report of a running call that is older says nothing of the present.
const RUNNING_AGE_MAX: Duration = Duration::from_secs(3);

/// Samples of flow progress in which a job may only have begun.
const WARM_UP: u32 = 2;

/// One finished iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iteration {
    pub started: Duration,
    pub ended: Duration,
    /// Duration of the collective; of calls that only queue work, mean time from one to the next;
    /// of a flow-based series, seconds per megabyte; of an inferred job, time from burst to burst.
    pub seconds: f64,
}

keep!(struct Iteration { started, ended, seconds });

/// What the iterations are measured on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signature {
    /// Calls that return when the collective is done (MPI).
    Collective { op: Arc<str>, bytes: u64, rank: u32 },
    /// Calls that return when the collective is queued (NCCL, RCCL).
    Queued { op: Arc<str>, bytes: u64, rank: u32 },
    /// Of the flows that one node sends.
    FlowProgress { node: NodeId },
    /// Bursts of traffic of an inferred job ([`crate::infer::rhythm`]).
    Rhythm,
}

keep!(enum Signature {
    0 Collective { op, bytes, rank },
    1 Queued { op, bytes, rank },
    2 FlowProgress { node },
    3 Rhythm,
});

impl Signature {
    /// Two medians of [`Iteration::seconds`], before a change and after it, in words.
    #[must_use]
    pub fn comparison(&self, before: f64, after: f64) -> String {
        let what = match self {
            Signature::Collective { .. } => "iteration",
            Signature::Queued { .. } => "time between calls",
            Signature::FlowProgress { .. } => "time to send a megabyte",
            Signature::Rhythm => "time from burst to burst",
        };
        format!(
            "median {what} {:.0} ms before, {:.0} ms after ({:+.0} %)",
            before * 1e3,
            after * 1e3,
            (after / before - 1.0) * 100.0
        )
    }
}

/// A job as seen through its collectives and flows.
#[derive(Debug, Clone, Default)]
pub struct Job {
    pub ranks: Option<u32>,
    pub first_seen: Duration,
    pub last_seen: Duration,
    collective: Option<(Arc<str>, u64)>,
    /// Arrival of the newest call of `collective`.
    collective_seen: Duration,
    by_rank: BTreeMap<u32, VecDeque<Iteration>>,
    /// The open window of each rank of `by_rank`, where calls only queue work.
    trains: BTreeMap<u32, Train>,
    by_flows: BTreeMap<NodeId, VecDeque<Iteration>>,
    /// Arrival of the newest report of calls that run, and the longest of them.
    running: Option<(Duration, Duration)>,
    /// Host of each rank, as far as their agents know its number.
    hosts: BTreeMap<u32, NodeId>,
    /// Samples of a node's flows that were passed over, up to [`WARM_UP`].
    warm_up: BTreeMap<NodeId, u32>,
    /// The last two intervals of its nodes; the longer may be one of a lost sample.
    elapsed: Option<(Duration, Duration)>,
    /// Of an inferred job, as of the last look at its traffic.
    rhythm: VecDeque<Iteration>,
}

keep!(struct Job {
    ranks, first_seen, last_seen, collective, collective_seen, by_rank, trains, by_flows, running, hosts, warm_up,
    elapsed, rhythm,
});

impl Job {
    fn collective_done(&mut self, done: &CollectiveDone, at: Duration) {
        self.ranks = done.ranks.or(self.ranks);
        if !moves_data(&done.op) {
            return;
        }
        let bytes = done.bytes.unwrap_or(0);
        // A broadcast of all parameters at the start is not what the job goes on with.
        if at.saturating_sub(self.collective_seen) > FORGET {
            self.collective = None;
        }
        match &self.collective {
            Some((op, largest)) if *largest > bytes || (*largest == bytes && *op != done.op) => {
                return;
            }
            Some((_, largest)) if *largest == bytes => {}
            Some(_) | None => {
                self.collective = Some((done.op.clone(), bytes));
                self.by_rank.clear();
                self.trains.clear();
            }
        }
        self.collective_seen = at;
        let rank = done.rank.unwrap_or(u32::MAX);
        if !self.by_rank.contains_key(&rank) && self.by_rank.len() >= RANKS_MAX {
            match self.by_rank.last_key_value() {
                Some((highest, _)) if *highest > rank => {
                    self.trains.remove(highest);
                    self.by_rank.pop_last()
                }
                Some(_) | None => return,
            };
        }
        let started = at.saturating_sub(done.started_before);
        let series = self.by_rank.entry(rank).or_default();
        if !only_queues(&done.op) {
            push(
                series,
                Iteration {
                    started,
                    ended: started.saturating_add(done.duration),
                    seconds: done.duration.as_secs_f64(),
                },
            );
            return;
        }
        match self.trains.get_mut(&rank) {
            Some(train) => {
                if let Some(window) = train.call(started) {
                    push(series, window);
                }
            }
            None => {
                self.trains.insert(rank, Train::new(started));
            }
        }
    }

    /// The job's iterations, oldest first, and what they are measured on.
    #[must_use]
    pub fn series(&self, now: Duration) -> Option<(Signature, &VecDeque<Iteration>)> {
        let current = |s: &VecDeque<Iteration>| {
            s.back().is_some_and(|i| {
                now.saturating_sub(i.ended)
                    <= self
                        .age_max(CURRENT)
                        .max(Duration::from_secs_f64(i.seconds.clamp(0.0, 1e6) * 3.0))
            })
        };
        if let (Some((op, bytes)), Some((rank, series))) = (
            &self.collective,
            self.by_rank.iter().find(|(_, s)| current(s)),
        ) {
            let (op, bytes, rank) = (op.clone(), *bytes, *rank);
            let signature = if only_queues(&op) {
                Signature::Queued { op, bytes, rank }
            } else {
                Signature::Collective { op, bytes, rank }
            };
            return Some((signature, series));
        }
        if current(&self.rhythm) {
            return Some((Signature::Rhythm, &self.rhythm));
        }
        let (node, series) = self.by_flows.iter().find(|(_, s)| current(s))?;
        Some((Signature::FlowProgress { node: node.clone() }, series))
    }

    /// For how long a call of the job has been running, by reports not older than a few samples;
    /// `None` if none is. Calls that only queue work never run for long.
    #[must_use]
    pub fn running_for(&self, now: Duration) -> Option<Duration> {
        let (seen, running) = self.running?;
        (now.saturating_sub(seen) <= self.age_max(RUNNING_AGE_MAX)).then_some(running)
    }

    /// How old what its nodes told may be: [`age_max`] of the shorter of their last two intervals.
    #[must_use]
    pub fn age_max(&self, least: Duration) -> Duration {
        let interval = self.elapsed.map_or(Duration::ZERO, |(a, b)| a.min(b));
        age_max(least, interval)
    }

    /// The host that a rank runs on; `None` if its agent does not tell.
    #[must_use]
    pub fn host_of(&self, rank: u32) -> Option<&NodeId> {
        self.hosts.get(&rank)
    }
}

fn push(series: &mut VecDeque<Iteration>, iteration: Iteration) {
    if series.len() == ITERATIONS_MAX {
        series.pop_front();
    }
    series.push_back(iteration);
}

/// All jobs.
#[derive(Debug, Clone, Default)]
pub struct Jobs(BTreeMap<JobId, Job>);

keep!(struct Jobs(_));

impl Jobs {
    pub fn sampled(&mut self, node: &NodeId, sample: &NodeSample, at: Duration) {
        for calls in sample.collectives.chunk_by(|a, b| a.job == b.job) {
            let Some(job) = self.entry(&calls[0].job, at) else {
                continue;
            };
            for done in calls {
                job.collective_done(done, at);
                if let Some(rank) = done.rank
                    && (job.hosts.len() < HOSTS_MAX || job.hosts.contains_key(&rank))
                    && job.hosts.get(&rank) != Some(node)
                {
                    job.hosts.insert(rank, node.clone());
                }
            }
        }
        for running in &sample.running {
            if let Some(job) = self.entry(&running.job, at) {
                let longest = job.running.filter(|(seen, _)| *seen == at);
                let longest = longest.map_or(Duration::ZERO, |(_, longest)| longest);
                job.running = Some((at, longest.max(running.running)));
            }
        }
        let Some(elapsed) = sample.elapsed else {
            return;
        };
        if let Some(job) = sample.job().and_then(|job| self.0.get_mut(job)) {
            let before = job.elapsed.map_or(elapsed, |(_, newest)| newest);
            job.elapsed = Some((before, elapsed));
        }
        let mut sent: BTreeMap<&JobId, u64> = BTreeMap::new();
        for flow in &sample.flows {
            if let Some(job) = &flow.job {
                let sum = sent.entry(job).or_default();
                *sum = sum.saturating_add(flow.bytes);
            }
        }
        for (key, bytes) in sent {
            // Less than 100 KB in an interval is set-up traffic, and no measure of progress.
            if bytes >= 100_000
                && let Some(job) = self.entry(key, at)
                // What its samples do not resolve would be an alias: its iterations come by `inferred`.
                && !key.is_inferred()
                && (job.by_flows.contains_key(node) || job.by_flows.len() < RANKS_MAX)
            {
                let seconds = elapsed.as_secs_f64() / (bytes as f64 / 1e6);
                if job.warm_up.len() >= CANDIDATES_MAX && !job.warm_up.contains_key(node) {
                    continue;
                }
                let passed = job.warm_up.entry(node.clone()).or_default();
                if *passed < WARM_UP {
                    *passed += 1;
                    continue;
                }
                push(
                    job.by_flows.entry(node.clone()).or_default(),
                    Iteration {
                        started: at.saturating_sub(elapsed),
                        ended: at,
                        seconds,
                    },
                );
            }
        }
    }

    /// Takes what a look at its traffic tells of an inferred job; one that sends nothing is none.
    pub fn inferred(&mut self, group: &Group) {
        if let Some(job) = self.0.get_mut(&group.job) {
            job.first_seen = job.first_seen.min(group.first_seen);
            let iterations = group.rhythm.iter().flat_map(|r| &r.iterations);
            job.rhythm = iterations.copied().collect();
        }
    }

    /// Forgets jobs that turned out to be none.
    pub fn forget(&mut self, jobs: &BTreeSet<JobId>) {
        self.0.retain(|job, _| !jobs.contains(job));
    }

    /// Forgets jobs that nobody reported for `gone`.
    pub fn expire(&mut self, now: Duration, gone: Duration) {
        self.0
            .retain(|_, job| now.saturating_sub(job.last_seen) < gone);
    }

    fn entry(&mut self, key: &JobId, at: Duration) -> Option<&mut Job> {
        if !self.0.contains_key(key) && self.0.len() >= JOBS_MAX {
            if key.is_inferred() {
                return None;
            }
            let oldest = self
                .0
                .iter()
                .min_by_key(|(_, j)| j.last_seen)
                .map(|(k, _)| k.clone())?;
            self.0.remove(&oldest);
        }
        let job = self.0.entry(key.clone()).or_insert_with(|| Job {
            first_seen: at,
            ..Job::default()
        });
        job.last_seen = at;
        Some(job)
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 5] {
        let most = |of: fn(&Job) -> usize| self.0.values().map(of).max().unwrap_or(0);
        let series = |j: &Job| {
            let all = j.by_rank.values().chain(j.by_flows.values());
            let all = all.chain([&j.rhythm]);
            all.map(VecDeque::len).max().unwrap_or(0)
        };
        [
            ("jobs", self.0.len(), JOBS_MAX),
            (
                "ranks of a job",
                most(|j| j.by_rank.len().max(j.trains.len())),
                RANKS_MAX,
            ),
            ("nodes of a job", most(|j| j.by_flows.len()), RANKS_MAX),
            (
                "candidates of a job",
                most(|j| j.warm_up.len()),
                CANDIDATES_MAX,
            ),
            ("iterations of a series", most(series), ITERATIONS_MAX),
        ]
    }

    #[must_use]
    pub fn get(&self, key: &JobId) -> Option<&Job> {
        self.0.get(key)
    }

    /// All jobs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Job)> {
        self.0.iter()
    }

    /// Share of an interval in which some job may have had a collective running; 1 with no job.
    #[must_use]
    pub fn busy_share(&self, from: Duration, to: Duration) -> f64 {
        busiest(self.0.values(), from, to)
    }

    /// The same of some jobs; `None` if of one of them it is not known when it has something on the wire.
    #[must_use]
    pub fn busy_share_of(
        &self,
        jobs: &BTreeSet<&JobId>,
        from: Duration,
        to: Duration,
    ) -> Option<f64> {
        let jobs = jobs
            .iter()
            .map(|job| self.get(job).filter(|j| j.tells_phases()));
        let jobs: Vec<&Job> = jobs.collect::<Option<_>>()?;
        Some(busiest(jobs.into_iter(), from, to))
    }
}
