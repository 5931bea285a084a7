use super::*;
use crate::io::CollectiveDone;
use proptest::prelude::*;

/// A job of some ranks that compute, then call a collective that all of them leave together.
#[derive(Clone)]
struct Job {
    ranks: u32,
    per_node: u32,
    iterations: u32,
    /// Calls of an iteration, in a burst.
    calls: u32,
    compute_s: f64,
    transfer_s: f64,
    op: &'static str,
    /// By rank: how much later its node's samples seem to arrive.
    skew_s: fn(u32) -> f64,
    /// By iteration and rank: longer compute, and a later end that the next start does not inherit.
    late_s: fn(u32, u32) -> f64,
    ends_late_s: fn(u32, u32) -> f64,
    jitter_s: f64,
    /// Samples lost, by rank and second.
    lost: fn(u32, u64) -> bool,
}

const JOB: Job = Job {
    ranks: 8,
    per_node: 1,
    iterations: 60,
    calls: 1,
    compute_s: 0.3,
    transfer_s: 0.2,
    op: "MPI_Allreduce",
    skew_s: |rank| f64::from(rank * 37 % 50) / 1e3,
    late_s: |_, _| 0.0,
    ends_late_s: |_, _| 0.0,
    jitter_s: 0.002,
    lost: |_, _| false,
};

fn node(rank: u32) -> NodeId {
    NodeId::new(&format!("n{rank}"))
}

fn noise(a: u32, b: u32) -> f64 {
    f64::from(
        (a.wrapping_mul(2_654_435_761) ^ b.wrapping_mul(40_503)).wrapping_mul(2_246_822_519) >> 16,
    ) / 65_536.0
}

impl Job {
    fn run(&self) -> Ranks {
        // Calls as (rank, start, end) in true time.
        let mut calls: Vec<(u32, f64, f64)> = Vec::new();
        let mut free = 1.0;
        for iteration in 0..self.iterations {
            for call in 0..self.calls {
                let start = |rank| {
                    let jitter = noise(iteration * 16 + call, rank) * self.jitter_s;
                    let compute = if call == 0 {
                        self.compute_s + (self.late_s)(iteration, rank)
                    } else {
                        1e-3
                    };
                    free + compute + jitter
                };
                let last = (0..self.ranks).map(start).fold(0.0, f64::max);
                let end = last + self.transfer_s;
                for rank in 0..self.ranks {
                    calls.push((rank, start(rank), end + (self.ends_late_s)(iteration, rank)));
                }
                free = end;
            }
        }
        // Each second each rank's node reports what ended in it.
        let mut ranks = Ranks::default();
        let mut second = 1;
        while calls.iter().any(|(_, _, end)| *end > second as f64 - 1.0) {
            for rank in (0..self.ranks).filter(|rank| !(self.lost)(*rank, second)) {
                let at = second as f64 + (self.skew_s)(rank);
                let of = calls.iter().filter(|(r, _, end)| {
                    *r == rank && *end <= second as f64 && *end > second as f64 - 1.0
                });
                for (_, start, end) in of {
                    let queued = self.op.starts_with("nccl");
                    ranks.done(
                        &node(rank / self.per_node),
                        &CollectiveDone {
                            job: JobId::new("j"),
                            rank: Some(rank),
                            ranks: Some(self.ranks),
                            op: self.op.into(),
                            bytes: Some(1 << 20),
                            started_before: Duration::from_secs_f64(second as f64 - start),
                            duration: Duration::from_secs_f64(if queued {
                                1e-5
                            } else {
                                end - start
                            }),
                        },
                        Duration::from_secs_f64(at),
                    );
                }
            }
            second += 1;
        }
        ranks
    }

    fn found(&self) -> Vec<(u32, Kind)> {
        let found = self.run().stragglers().unwrap();
        found.iter().map(|s| (s.rank, s.kind)).collect()
    }
}

#[test]
fn who_arrives_last_has_the_shortest_call_whatever_the_clocks_say() {
    let job = Job {
        late_s: |_, rank| if rank == 3 { 0.1 } else { 0.0 },
        ..JOB
    };
    let found = job.run().stragglers().unwrap();
    let [s] = &found[..] else { panic!("{found:?}") };
    assert_eq!((s.rank, s.kind), (3, Kind::Compute));
    assert!(
        (s.late_s - 0.1).abs() < 0.003 && (s.lost_s - 0.1).abs() < 0.003,
        "{s:?}"
    );
    assert!(
        (s.effective_ratio.unwrap() - 0.5 / 0.6).abs() < 0.01,
        "{s:?}"
    );
    assert!(s.share == 1.0 && s.confidence > 0.9, "{s:?}");
}

#[test]
fn a_healthy_job_has_no_straggler_and_skew_is_none() {
    assert_eq!(JOB.found(), []);
    assert_eq!(
        Job {
            skew_s: |rank| f64::from(rank) / 20.0,
            ..JOB
        }
        .found(),
        []
    );
}

#[test]
fn a_rank_that_changes_each_time_is_jitter() {
    let late_s = |iteration: u32, rank: u32| if iteration % 8 == rank { 0.2 } else { 0.0 };
    assert_eq!(Job { late_s, ..JOB }.found(), []);
    // Late in two of three: a straggler, though not always.
    let late_s = |iteration: u32, rank: u32| {
        if rank == 5 && !iteration.is_multiple_of(3) {
            0.2
        } else {
            0.0
        }
    };
    let found = Job { late_s, ..JOB }.run().stragglers().unwrap();
    assert_eq!((found[0].rank, found.len()), (5, 1));
    assert!((0.6..0.75).contains(&found[0].share), "{found:?}");
}

#[test]
fn two_ranks_of_a_slow_node_are_both_named_and_cost_the_job_once() {
    let job = Job {
        late_s: |_, rank| if rank < 2 { 0.1 } else { 0.0 },
        ..JOB
    };
    let found = job.run().stragglers().unwrap();
    assert_eq!(found.len(), 2);
    assert!(
        found.iter().all(|s| (s.lost_s - 0.1).abs() < 0.003),
        "{found:?}"
    );
}

#[test]
fn same_start_and_late_end_is_the_network() {
    // Calibrated over the first 30 iterations, then one rank's end is late.
    let ends_late_s = |iteration: u32, rank: u32| {
        if iteration >= 30 && rank == 6 {
            0.08
        } else {
            0.0
        }
    };
    assert_eq!(Job { ends_late_s, ..JOB }.found(), [(6, Kind::Network)]);
}

#[test]
fn who_comes_early_is_no_straggler() {
    let late_s = |iteration: u32, rank: u32| {
        if iteration >= 30 && rank == 6 {
            -0.1
        } else {
            0.0
        }
    };
    assert_eq!(Job { late_s, ..JOB }.found(), []);
    let always = |_: u32, rank: u32| if rank == 6 { -0.1 } else { 0.0 };
    assert_eq!(
        Job {
            late_s: always,
            ..JOB
        }
        .found(),
        []
    );
}

#[test]
fn a_burst_of_calls_is_one_iteration() {
    let late_s = |_: u32, rank: u32| if rank == 2 { 0.15 } else { 0.0 };
    let job = Job {
        calls: 4,
        transfer_s: 0.03,
        late_s,
        ..JOB
    };
    assert_eq!(job.found(), [(2, Kind::Compute)]);
}

#[test]
fn queued_calls_are_measured_by_starts_against_the_ranks_own_past() {
    let nccl = Job {
        op: "ncclAllReduce",
        ..JOB
    };
    assert_eq!(nccl.found(), []);
    let late_s = |iteration: u32, rank: u32| {
        if iteration >= 40 && rank == 4 {
            0.12
        } else {
            0.0
        }
    };
    assert_eq!(
        Job {
            late_s,
            ..nccl.clone()
        }
        .found(),
        [(4, Kind::Compute)]
    );
    // Late from the first: that could be skew.
    let late_s = |_: u32, rank: u32| if rank == 4 { 0.12 } else { 0.0 };
    assert_eq!(
        Job {
            late_s,
            ..nccl.clone()
        }
        .found(),
        []
    );
    assert_eq!(
        Job {
            iterations: 20,
            ..nccl
        }
        .run()
        .stragglers(),
        None,
        "not calibrated"
    );
}

#[test]
fn nothing_is_said_of_too_little() {
    assert_eq!(
        Job {
            iterations: 8,
            ..JOB
        }
        .run()
        .stragglers(),
        None
    );
    assert_eq!(Job { ranks: 2, ..JOB }.run().stragglers(), None);
}

#[test]
fn lost_samples_cost_iterations_and_no_wrong_verdict() {
    let lost = |rank: u32, second: u64| rank == 1 && second.is_multiple_of(7);
    let job = Job {
        iterations: 120,
        lost,
        ..JOB
    };
    assert_eq!(job.found(), []);
    let late_s = |_: u32, rank: u32| if rank == 3 { 0.1 } else { 0.0 };
    assert_eq!(Job { late_s, ..job }.found(), [(3, Kind::Compute)]);
}

#[test]
fn a_straggler_that_recovers_is_forgotten() {
    let late_s = |iteration: u32, rank: u32| {
        if rank == 3 && iteration < 30 {
            0.1
        } else {
            0.0
        }
    };
    assert_eq!(Job { late_s, ..JOB }.found(), []);
}

#[test]
fn jobs_are_kept_apart_and_forgotten_when_nobody_reports_them() {
    let mut stragglers = Stragglers::default();
    for iteration in 0..20u32 {
        for rank in 0..8u32 {
            // Rank 2 of job `a` and rank 5 of job `b` arrive last.
            let done = |job: &str, last| CollectiveDone {
                job: JobId::new(job),
                rank: Some(rank),
                ranks: Some(8),
                op: "MPI_Allreduce".into(),
                bytes: Some(1 << 20),
                started_before: Duration::from_millis(if rank == last { 200 } else { 300 }),
                duration: Duration::from_millis(if rank == last { 200 } else { 300 }),
            };
            let sample = NodeSample {
                collectives: vec![done("a", 2), done("b", 5)],
                ..NodeSample::default()
            };
            let at = Duration::from_millis(1000 + 500 * u64::from(iteration));
            stragglers.sampled(&node(rank), &sample, at);
        }
    }
    let found = stragglers
        .iter()
        .map(|(job, ranks)| (job.as_str(), ranks.stragglers().unwrap()[0].rank));
    assert_eq!(found.collect::<Vec<_>>(), [("a", 2), ("b", 5)]);
    stragglers.expire(Duration::from_secs(100), Duration::from_secs(60));
    assert!(stragglers.get(&JobId::new("a")).is_none());
}

/// Verdicts on eight ranks, two on each node, of which one is as late as `late_ms` says, from the 30th iteration on.
fn judged(
    iterations: u64,
    op: &str,
    late_ms: fn(u32) -> u64,
    waits_ms: fn(u32, u64) -> u64,
) -> Vec<Verdict> {
    let (mut stragglers, mut jobs) = (Stragglers::default(), Jobs::default());
    let mut now = Duration::ZERO;
    for iteration in 0..iterations {
        for node in 0..4u32 {
            let done = (2 * node..2 * node + 2).map(|rank| {
                let late = if iteration >= 30 { late_ms(rank) } else { 0 };
                let short = if op.starts_with("MPI") { 300 - late } else { 0 };
                CollectiveDone {
                    job: JobId::new("j"),
                    rank: Some(rank),
                    ranks: Some(8),
                    op: op.into(),
                    bytes: Some(1 << 20),
                    started_before: Duration::from_millis(400 - late),
                    duration: Duration::from_millis(short),
                }
            });
            let sample = NodeSample {
                elapsed: Some(Duration::from_secs(1)),
                collectives: done.collect(),
                ..NodeSample::default()
            };
            now = Duration::from_millis(1000 * (iteration + 1) + waits_ms(node, iteration));
            stragglers.sampled(&self::node(node), &sample, now);
            jobs.sampled(&self::node(node), &sample, now);
        }
    }
    verdicts(&stragglers, &jobs, now)
}

#[test]
fn ranks_of_a_node_that_are_late_together_name_the_node() {
    let ops = ["MPI_Allreduce", "ncclAllReduce"];
    // Eleven late ones are judged by the newest alone.
    for (op, iterations) in ops.map(|op| [(op, 41), (op, 50)]).as_flattened() {
        let both = |rank| {
            if rank / 2 == 1 {
                100 + u64::from(rank)
            } else {
                0
            }
        };
        let found = judged(*iterations, op, both, |_, _| 0);
        let [node] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(node.class, Class::NodeOutlier);
        assert_eq!(node.entity, Subject::Node(NodeId::new("n1")));
        let one = |rank| if rank == 3 { 100 } else { 0 };
        let found = judged(*iterations, op, one, |_, _| 0);
        let [rank] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(rank.class, Class::Straggler);
    }
}

#[test]
fn a_node_stands_out_where_the_jitter_of_ranks_hides_each() {
    let job = Job {
        ranks: 40,
        per_node: 8,
        jitter_s: 0.06,
        late_s: |_, rank| if rank / 8 == 2 { 0.05 } else { 0.0 },
        ..JOB
    };
    assert_eq!(job.found(), []);
    let slow = job.run().slow_nodes();
    let [(name, straggler)] = &slow[..] else {
        panic!("{slow:?}")
    };
    assert_eq!((name, straggler.rank / 8), (&node(2), 2));
    let one = |_, rank| if rank == 17 { 0.2 } else { 0.0 };
    let one = Job { late_s: one, ..job };
    assert_eq!(one.found(), [(17, Kind::Compute)]);
    assert!(
        one.run().slow_nodes().is_empty(),
        "one rank is not its node"
    );
}

#[test]
fn who_was_on_time_before_is_found_within_nine_iterations() {
    let found = |late: u32| {
        let job = Job {
            late_s: |iteration, rank| {
                if iteration >= 40 && rank == 3 {
                    0.1
                } else {
                    0.0
                }
            },
            iterations: 40 + late,
            ..JOB
        };
        job.found()
    };
    assert_eq!(found(7), []);
    assert_eq!(found(10), [(3, Kind::Compute)]);
}

#[test]
fn a_node_whose_samples_wait_on_their_way_is_not_late() {
    let waits = |node, second| if node == 2 && second >= 30 { 300 } else { 0 };
    for op in ["MPI_Allreduce", "ncclAllReduce"] {
        assert_eq!(judged(50, op, |_| 0, waits), []);
    }
}

#[test]
fn a_rank_of_which_calls_were_lost_is_still_compared() {
    let lost = |rank: u32, second: u64| rank == 3 && (10..13).contains(&second);
    let late_s = |i: u32, rank: u32| f64::from(u8::from(i >= 30 && rank == 3)) / 10.0;
    let job = Job {
        iterations: 44,
        lost,
        late_s,
        ..JOB
    };
    assert_eq!(job.found(), [(3, Kind::Compute)]);
}

#[test]
fn several_communicators_in_one_are_not_compared() {
    let mut ranks = JOB.run();
    assert_eq!(ranks.stragglers(), Some(vec![]));
    let at = ranks.last_seen() + Duration::from_millis(1);
    let call = |rank, ranks| CollectiveDone {
        job: JobId::new("j"),
        rank: Some(rank),
        ranks: Some(ranks),
        op: "MPI_Allreduce".into(),
        bytes: Some(1 << 20),
        started_before: Duration::from_millis(200),
        duration: Duration::from_millis(200),
    };
    let mut larger = ranks.clone();
    larger.done(&node(8), &call(8, 8), at);
    assert_eq!(larger.stragglers(), None, "nine ranks of eight");
    ranks.done(&node(9), &call(3, 8), at);
    assert_eq!(ranks.stragglers(), None, "rank 3 on two nodes");
}

proptest! {
    #[test]
    fn any_calls_are_taken_and_what_is_held_is_bounded(
        calls in proptest::collection::vec((0..6u32, 0..3u64, any::<u32>(), any::<u32>(), 0..200u64), 0..400),
        queued: bool,
    ) {
        let mut ranks = Ranks::default();
        let mut at = Duration::from_secs(1);
        for (rank, bytes, before, ms, later) in calls {
            at += Duration::from_millis(later);
            ranks.done(&node(rank), &CollectiveDone {
                job: JobId::new("j"),
                rank: (rank < 5).then_some(rank),
                ranks: None,
                op: if queued { "ncclAllReduce" } else { "MPI_Allreduce" }.into(),
                bytes: Some(bytes),
                started_before: Duration::from_millis(before.into()),
                duration: Duration::from_millis(ms.into()),
            }, at);
            for s in ranks.stragglers().into_iter().flatten() {
                prop_assert!(s.share >= SHARE_MIN && s.share <= 1.0 && s.late_s > 0.0 && s.lost_s >= 0.0);
                prop_assert!((0.0..=1.0).contains(&s.confidence));
                prop_assert!(s.iterations <= WINDOW);
            }
        }
    }

    /// No skew, constant over time, makes or hides a straggler where durations are known.
    #[test]
    fn skew_changes_nothing(victim in 0..8u32, seed in 0..1000u32) {
        let base = Job { late_s: |_, rank| if rank == 3 { 0.1 } else { 0.0 }, ..JOB };
        let mut ranks: Vec<Ranks> = Vec::new();
        for skewed in [false, true] {
            let mut job = Ranks::default();
            for iteration in 0..40u32 {
                for rank in 0..8u32 {
                    let late = (base.late_s)(iteration, (rank + victim) % 8) + noise(iteration, rank) * 0.004;
                    let skew = if skewed { noise(seed, rank) * 0.09 } else { 0.0 };
                    let start = 10.0 + f64::from(iteration) * 0.6 + late;
                    let end = 10.0 + f64::from(iteration) * 0.6 + 0.3;
                    let at = end + 0.05;
                    job.done(&node(rank), &CollectiveDone {
                        job: JobId::new("j"),
                        rank: Some(rank),
                        ranks: Some(8),
                        op: "MPI_Allreduce".into(),
                        bytes: Some(1 << 20),
                        started_before: Duration::from_secs_f64(at - start),
                        duration: Duration::from_secs_f64(end - start),
                    }, Duration::from_secs_f64(at + skew));
                }
            }
            ranks.push(job);
        }
        let found = |r: &Ranks| r.stragglers().unwrap().iter().map(|s| (s.rank, s.kind)).collect::<Vec<_>>();
        prop_assert_eq!(found(&ranks[0]), vec![((3 + 8 - victim) % 8, Kind::Compute)]);
        prop_assert_eq!(found(&ranks[0]), found(&ranks[1]));
    }
}
