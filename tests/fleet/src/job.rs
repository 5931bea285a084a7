//! Jobs: who sends to whom, and the phases of a training step. Interval by interval, not packet by packet.
//!
//! A step computes, then communicates. Every rank arrives at the collective when its own computing ends; the
//! collective begins with the last of them and lasts as long as its slowest flow. Flows of a collective advance
//! together, as a pipelined ring does.

use crate::fabric::Link;
use crate::load::Moved;
use weir_controller_core::ids::FlowKey;
use weir_sim::rng::Rng;

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// NIC r of each node to NIC r of the next.
    Ring,
    /// Double binary tree: every node is inner in one and leaf in the other, half of the data in each.
    Tree,
    AllToAll,
    /// All others send to the first, without a pause: no training step, bytes for as long as it lasts.
    Gather,
    /// Every node writes to a storage node, at most this share of a NIC.
    Storage {
        to: usize,
        percent: u32,
    },
}

/// What a job is.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    /// Hosts, in order of ranks.
    pub nodes: Vec<usize>,
    pub pattern: Pattern,
    pub start_s: f64,
    pub end_s: f64,
    /// Computing of a step.
    pub compute_s: f64,
    /// Communicating of a step, at full rate.
    pub transfer_s: f64,
    /// Spread of each rank's computing, as a share of it.
    pub jitter: f64,
    /// Calls return when the collective is done (MPI), not when it is queued (NCCL).
    pub blocking: bool,
}

/// One queue pair's data.
#[derive(Debug, Clone)]
pub struct Flow {
    pub id: u32,
    pub src: Link,
    pub dst: Link,
    pub key: FlowKey,
    /// Most that it would send, in bits per second.
    pub demand_bps: f64,
    /// Of one step; of a job without steps, of one second.
    pub bytes: f64,
    /// Empty while there is no way.
    pub path: Vec<Link>,
    /// Share of packets lost.
    pub loss: f64,
    /// In the last interval.
    pub moved: Moved,
}

/// A finished call of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    pub rank: usize,
    pub start_s: f64,
    pub duration_s: f64,
}

/// A job that runs.
#[derive(Debug, Clone)]
pub struct Job {
    pub spec: Spec,
    pub flows: Vec<Flow>,
    /// Ranks on each node.
    pub per_node: usize,
    /// Added to the computing of single ranks, and to the end of their calls: seconds.
    pub late: Vec<(usize, f64, bool)>,
    /// A step's transfer as flows are now, in seconds.
    pub comm_s: f64,
    rng: Rng,
    cursor_s: f64,
    arrivals: Vec<f64>,
    begins_s: f64,
    remaining: f64,
    /// Begin of the interval.
    from_s: f64,
    /// Time in the interval for which it sent.
    sent_s: f64,
    /// Steps' transfers that were moved in the interval so far.
    pub progress: f64,
    /// Share of the interval so far in which data moved.
    pub busy: f64,
    pub steps: u64,
}

/// Time that a call takes to queue a collective.
const QUEUE_S: f64 = 12e-6;

impl Job {
    #[must_use]
    pub fn new(spec: Spec, flows: Vec<Flow>, per_node: usize, seed: u64) -> Job {
        let start = spec.start_s;
        let mut job = Job {
            spec,
            flows,
            per_node,
            late: Vec::new(),
            comm_s: 1.0,
            rng: Rng::new(seed),
            cursor_s: start,
            arrivals: Vec::new(),
            begins_s: start,
            remaining: 1.0,
            from_s: start,
            sent_s: 0.0,
            progress: 0.0,
            busy: 0.0,
            steps: 0,
        };
        job.begin(start);
        job
    }

    /// Whether it has steps.
    #[must_use]
    pub fn trains(&self) -> bool {
        !matches!(self.spec.pattern, Pattern::Gather | Pattern::Storage { .. })
    }

    /// Ranks that report calls.
    #[must_use]
    pub fn ranks(&self) -> usize {
        if self.trains() {
            self.spec.nodes.len() * self.per_node
        } else {
            0
        }
    }

    fn begin(&mut self, at: f64) {
        let ranks = self.ranks();
        self.arrivals.clear();
        for rank in 0..ranks {
            // The sum of three uniform numbers is near enough to a bell, with bounds.
            let bell = self.rng.unit() + self.rng.unit() + self.rng.unit() - 1.5;
            let own = self.spec.compute_s * (1.0 + self.spec.jitter * bell);
            let late = self
                .late
                .iter()
                .filter(|(r, _, network)| *r == rank && !network);
            self.arrivals
                .push(at + own + late.map(|(_, s, _)| s).sum::<f64>());
        }
        self.begins_s = self.arrivals.iter().copied().fold(at, f64::max);
        self.remaining = 1.0;
    }

    /// Whether data of it is on the wire now.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        !self.trains() || self.cursor_s >= self.begins_s
    }

    /// When it begins or ends to send if nothing changes before.
    #[must_use]
    pub fn changes_at(&self) -> f64 {
        if !self.trains() {
            return f64::INFINITY;
        }
        let ends_s = self.cursor_s + self.remaining * self.comm_s;
        if self.is_sending() {
            ends_s
        } else {
            self.begins_s
        }
    }

    /// Begins an interval at `from_s`.
    pub fn rest(&mut self, from_s: f64) {
        (self.progress, self.busy, self.sent_s) = (0.0, 0.0, 0.0);
        self.from_s = from_s.min(self.cursor_s);
        for flow in &mut self.flows {
            flow.moved = Moved::default();
        }
    }

    /// Goes on until `to_s`, in the interval that began last; the calls that returned meanwhile are added.
    pub fn step(&mut self, to_s: f64, calls: &mut Vec<Call>) {
        while self.cursor_s < to_s {
            let left = to_s - self.cursor_s;
            if !self.trains() {
                self.send(left, left);
                self.cursor_s = to_s;
                break;
            }
            if self.cursor_s < self.begins_s {
                self.cursor_s = self.begins_s.min(to_s);
                continue;
            }
            let needs = self.remaining * self.comm_s;
            if self.cursor_s + needs > to_s {
                let share = left / self.comm_s;
                self.remaining -= share;
                self.send(left, share);
                self.cursor_s = to_s;
                break;
            }
            self.send(needs, self.remaining);
            self.finish(calls);
        }
        self.busy = (self.sent_s / (to_s - self.from_s).max(1e-9)).min(1.0);
    }

    /// Sends this share of a step's transfer.
    fn send(&mut self, seconds: f64, share: f64) {
        self.progress += share;
        self.sent_s += seconds;
        self.cursor_s += seconds;
    }

    fn finish(&mut self, calls: &mut Vec<Call>) {
        let mut end = self.cursor_s;
        for (_, extra, network) in &self.late {
            if *network {
                end = end.max(self.cursor_s + extra);
            }
        }
        for (rank, start_s) in self.arrivals.iter().copied().enumerate() {
            let slow = self
                .late
                .iter()
                .find(|(r, _, network)| *r == rank && *network);
            let own_end =
                self.cursor_s + slow.map_or(0.0, |(_, extra, _)| *extra) + self.rng.unit() * 2e-4;
            let duration_s = if self.spec.blocking {
                own_end - start_s
            } else {
                QUEUE_S * (0.7 + self.rng.unit())
            };
            calls.push(Call {
                rank,
                start_s,
                duration_s,
            });
        }
        self.steps += 1;
        self.cursor_s = end;
        self.begin(end);
    }

    /// Calls of blocking collectives that have begun and not returned: rank and start.
    pub fn running(&self) -> impl Iterator<Item = (usize, f64)> {
        let begun = |at: &f64| self.spec.blocking && *at <= self.cursor_s;
        self.arrivals
            .iter()
            .copied()
            .enumerate()
            .filter(move |(_, at)| begun(at))
    }

    /// Bytes of one call.
    #[must_use]
    pub fn call_bytes(&self) -> u64 {
        // Wire bytes of a ring's edge are 2(n-1)/n of the payload, over all NICs of a node.
        let of_node: f64 = self
            .flows
            .iter()
            .filter(|f| f.src == self.flows[0].src)
            .map(|f| f.bytes)
            .sum();
        weir_sim::num::whole(of_node / 2.0)
    }
}

/// Pairs of positions in the list of nodes: from, to, and the share of a NIC that the flow asks for.
#[must_use]
pub fn pairs(pattern: Pattern, nodes: usize) -> Vec<(usize, usize, f64)> {
    match pattern {
        Pattern::Ring => (0..nodes).map(|n| (n, (n + 1) % nodes, 1.0)).collect(),
        Pattern::Tree => {
            // In the second tree every position is mirrored.
            let mut pairs = Vec::new();
            for child in 1..nodes {
                let parent = (child - 1) / 2;
                for (a, b) in [(child, parent), (nodes - 1 - child, nodes - 1 - parent)] {
                    pairs.push((a, b, 0.25));
                    pairs.push((b, a, 0.25));
                }
            }
            pairs
        }
        Pattern::AllToAll => {
            let share = 1.0 / (nodes.max(2) - 1) as f64;
            let others = |a| {
                (0..nodes)
                    .filter(move |b| *b != a)
                    .map(move |b| (a, b, share))
            };
            (0..nodes).flat_map(others).collect()
        }
        Pattern::Gather => (1..nodes).map(|n| (n, 0, 1.0)).collect(),
        Pattern::Storage { percent, .. } => (0..nodes)
            .map(|n| (n, usize::MAX, f64::from(percent) / 100.0))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(blocking: bool, late: Vec<(usize, f64, bool)>) -> Job {
        let spec = Spec {
            name: "j".into(),
            nodes: vec![0, 1, 2],
            pattern: Pattern::Ring,
            start_s: 0.0,
            end_s: 100.0,
            compute_s: 0.5,
            transfer_s: 0.25,
            jitter: 0.01,
            blocking,
        };
        let mut job = Job::new(spec, Vec::new(), 2, 1);
        job.comm_s = 0.25;
        job.late = late;
        job
    }

    fn calls(job: &mut Job, seconds: u32) -> Vec<Call> {
        let mut calls = Vec::new();
        (1..=seconds).for_each(|t| job.step(f64::from(t), &mut calls));
        calls
    }

    #[test]
    fn who_arrives_last_has_the_shortest_call() {
        let mut job = job(true, vec![(4, 0.2, false)]);
        for step in calls(&mut job, 20).chunks(6).skip(1) {
            let shortest = step
                .iter()
                .min_by(|a, b| a.duration_s.total_cmp(&b.duration_s))
                .unwrap();
            assert_eq!(shortest.rank, 4);
            assert!((shortest.duration_s - 0.25).abs() < 1e-3);
        }
    }

    #[test]
    fn a_slow_network_shows_at_the_end_of_a_call() {
        let mut job = job(true, vec![(1, 0.2, true)]);
        for step in calls(&mut job, 20).chunks(6) {
            let end = |c: &Call| c.start_s + c.duration_s;
            let last = step
                .iter()
                .max_by(|a, b| end(a).total_cmp(&end(b)))
                .unwrap();
            assert_eq!(last.rank, 1);
        }
    }

    proptest! {
        #[test]
        fn what_moves_in_all_intervals_is_what_the_steps_needed(cuts in prop::collection::vec(0.01..1.0f64, 1..60)) {
            let mut job = job(false, vec![]);
            let (mut at, mut moved, mut calls) = (0.0, 0.0, Vec::new());
            for cut in cuts {
                job.rest(at);
                at += cut;
                job.step(at, &mut calls);
                moved += job.progress;
                prop_assert!((0.0..=1.0).contains(&job.busy));
            }
            prop_assert!((moved - (job.steps as f64 + 1.0 - job.remaining)).abs() < 1e-6);
            prop_assert_eq!(calls.len() as u64, job.steps * 6);
        }
    }
}
