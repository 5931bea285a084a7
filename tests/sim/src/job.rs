//! Jobs: which hosts run which collective, how often, and how long it took.

use crate::hist::Histogram;
use crate::num::index;
use crate::plan::Plan;
use crate::sim::{Event, Sim};
use crate::time::Time;
use std::collections::BTreeMap;

/// Inside a server, 450 GB/s: one direction of NVLink 4.
const SERVER_BYTES_PER_US: u64 = 450_000;

/// A job.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Its name.
    pub name: String,
    /// Host of each rank.
    pub hosts: Vec<u32>,
    /// What it sends in each iteration.
    pub plan: Plan,
    /// When the first iteration starts.
    pub start: Time,
    /// Time between iterations, in which every rank computes.
    pub gap: Time,
    /// Iterations; 0 goes on as long as other jobs run.
    pub iterations: u32,
    /// From the delivery of what a message waits for to its start: a kernel that reduces or copies.
    pub step: Time,
    /// An iteration ends when its last message is acknowledged, not when it is delivered.
    pub end_on_ack: bool,
    /// Chance adds up to so much to the computation of each rank in each iteration.
    pub jitter: Time,
}

/// An iteration that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iteration {
    /// When it started, ps.
    pub start: Time,
    /// When it ended, ps.
    pub end: Time,
    /// When each rank was done computing and when it had received the last message, ps.
    pub ranks: Vec<(Time, Time)>,
}

/// A job as it runs.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is.
    pub spec: JobSpec,
    /// Queue pair of each connection; `u32::MAX` inside a server.
    pub qps: Vec<u32>,
    /// Iterations that have ended.
    pub iterations: Vec<Iteration>,
    /// Durations of messages, ns.
    pub flow_ns: Histogram,
    waiting: Vec<u32>,
    posted_at: Vec<Time>,
    ranks: Vec<(Time, Time)>,
    left: usize,
    started: Time,
    stragglers: BTreeMap<u32, Time>,
}

impl Job {
    pub(crate) fn new(spec: JobSpec) -> Self {
        let ops = spec.plan.ops.len();
        Self {
            qps: Vec::new(),
            iterations: Vec::new(),
            flow_ns: Histogram::default(),
            waiting: vec![0; ops],
            posted_at: vec![0; ops],
            ranks: vec![(0, 0); spec.plan.ranks as usize],
            left: 0,
            started: 0,
            stragglers: BTreeMap::new(),
            spec,
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<(u32, u32)> {
        let host = |r: u32| self.spec.hosts[r as usize];
        self.spec
            .plan
            .connections
            .iter()
            .map(|(a, b)| (host(*a), host(*b)))
            .collect()
    }

    pub(crate) fn set_straggler(&mut self, rank: u32, delay: Time) {
        if delay == 0 {
            self.stragglers.remove(&rank);
        } else {
            self.stragglers.insert(rank, delay);
        }
    }

    /// True when it has run all its iterations. Endless jobs never are.
    #[must_use]
    pub fn done(&self) -> bool {
        self.spec.iterations > 0 && self.iterations.len() >= self.spec.iterations as usize
    }

    /// Start of the iteration that is under way, ps. `None` between iterations.
    #[must_use]
    pub fn running_since(&self) -> Option<Time> {
        (self.left > 0).then_some(self.started)
    }

    /// Durations of the iterations that have ended, ps.
    pub fn durations(&self) -> impl Iterator<Item = Time> + '_ {
        self.iterations.iter().map(|i| i.end - i.start)
    }

    /// Mean duration of the iterations, us. `None` before the first has ended.
    #[must_use]
    pub fn mean_us(&self) -> Option<f64> {
        let n = self.iterations.len();
        (n > 0).then(|| crate::time::to_us(self.durations().sum::<Time>()) / n as f64)
    }
}

impl Sim {
    pub(crate) fn jobs_done(&self) -> bool {
        let endless = |j: &Job| j.spec.iterations == 0;
        self.jobs.iter().all(|j| endless(j) || j.done()) && !self.jobs.iter().all(endless)
    }

    /// Runs until a job has ended so many iterations in all, at most until `limit`. True when it has.
    pub fn run_iterations(&mut self, job: u32, count: usize, limit: Time) -> bool {
        while self.jobs[job as usize].iterations.len() < count {
            if !self.step(limit) {
                return false;
            }
        }
        true
    }

    /// Durations of the messages that a job has delivered since this was last asked.
    pub fn take_flow_ns(&mut self, job: u32) -> Histogram {
        std::mem::take(&mut self.jobs[job as usize].flow_ns)
    }

    pub(crate) fn iterate(&mut self, job: u32) {
        let j = &mut self.jobs[job as usize];
        j.started = self.now;
        j.left = j.spec.plan.ops.len();
        for (waiting, op) in j.waiting.iter_mut().zip(&j.spec.plan.ops) {
            // One more than the messages before it: its rank must be done computing.
            *waiting = op.after + 1;
        }
        for rank in 0..j.spec.plan.ranks {
            let j = &self.jobs[job as usize];
            let mut delay = j.stragglers.get(&rank).copied().unwrap_or(0);
            if j.spec.jitter > 0 {
                delay += self.rng.below(j.spec.jitter);
            }
            if delay == 0 {
                self.rank_start(job, rank);
            } else {
                self.wheel
                    .push(self.now + delay, Event::RankStart { job, rank });
            }
        }
        if self.jobs[job as usize].spec.plan.ops.is_empty() {
            self.end_iteration(job);
        }
    }

    pub(crate) fn rank_start(&mut self, job: u32, rank: u32) {
        let j = &mut self.jobs[job as usize];
        j.ranks[rank as usize] = (self.now, self.now);
        for at in j.spec.plan.sent_by(rank) {
            let op = self.jobs[job as usize].spec.plan.sent_at(at);
            self.satisfy(job, op);
        }
    }

    fn satisfy(&mut self, job: u32, op: u32) {
        let j = &mut self.jobs[job as usize];
        let waiting = &mut j.waiting[op as usize];
        *waiting -= 1;
        if *waiting > 0 {
            return;
        }
        if j.spec.step > 0 && j.spec.plan.ops[op as usize].after > 0 {
            self.wheel
                .push(self.now + j.spec.step, Event::Post { job, op });
        } else {
            self.post_op(job, op);
        }
    }

    pub(crate) fn post_op(&mut self, job: u32, op: u32) {
        let j = &mut self.jobs[job as usize];
        j.posted_at[op as usize] = self.now;
        let message = j.spec.plan.ops[op as usize];
        let qp = j.qps[message.connection as usize];
        if qp == u32::MAX {
            let time = (message.bytes * crate::time::US).div_ceil(SERVER_BYTES_PER_US);
            self.wheel.push(self.now + time, Event::Copied { job, op });
        } else {
            self.post(qp, message.bytes, job, op);
        }
    }

    pub(crate) fn delivered(&mut self, job: u32, op: u32) {
        let j = &mut self.jobs[job as usize];
        j.flow_ns
            .add((self.now - j.posted_at[op as usize]) / crate::time::NS);
        let connection = j.spec.plan.ops[op as usize].connection as usize;
        let receiver = j.spec.plan.connections[connection].1 as usize;
        j.ranks[receiver].1 = self.now;
        let local = j.qps[connection] == u32::MAX;
        let end = local || !j.spec.end_on_ack;
        for at in j.spec.plan.next(op) {
            let next = self.jobs[job as usize].spec.plan.next_at(at);
            self.satisfy(job, next);
        }
        if end {
            self.end_op(job);
        }
    }

    pub(crate) fn acked(&mut self, job: u32, _op: u32) {
        if self.jobs[job as usize].spec.end_on_ack {
            self.end_op(job);
        }
    }

    fn end_op(&mut self, job: u32) {
        let j = &mut self.jobs[job as usize];
        j.left -= 1;
        if j.left == 0 {
            self.end_iteration(job);
        }
    }

    fn end_iteration(&mut self, job: u32) {
        let j = &mut self.jobs[job as usize];
        let ranks = j.ranks.clone();
        j.iterations.push(Iteration {
            start: j.started,
            end: self.now,
            ranks,
        });
        if j.spec.iterations == 0 || index(j.iterations.len()) < j.spec.iterations {
            // An endless job of nothing must not keep time from passing.
            let gap = if j.spec.plan.ops.is_empty() {
                j.spec.gap.max(crate::time::US)
            } else {
                j.spec.gap
            };
            self.wheel.push(self.now + gap, Event::Iterate { job });
        }
    }
}
