use super::*;

fn done(rank: u32, bytes: u64, started_before_ms: u64, ms: u64) -> CollectiveDone {
    CollectiveDone {
        job: JobId::new("j"),
        rank: Some(rank),
        ranks: Some(8),
        op: "MPI_Allreduce".into(),
        bytes: Some(bytes),
        started_before: Duration::from_millis(started_before_ms),
        duration: Duration::from_millis(ms),
    }
}

#[test]
fn what_a_job_told_is_its_present_until_its_next_sample_is_overdue() {
    let at = Duration::from_secs;
    let node = NodeId::new("h1");
    for interval in [1, 10, 30] {
        let mut jobs = Jobs::default();
        for n in 1..=4u64 {
            let sample = NodeSample {
                elapsed: Some(at(interval)),
                collectives: vec![done(0, 4000, 900, 250)],
                running: vec![crate::io::CollectiveRunning {
                    job: JobId::new("j"),
                    running: at(7),
                }],
                ..NodeSample::default()
            };
            jobs.sampled(&node, &sample, at(n * interval));
        }
        let job = jobs.get(&JobId::new("j")).unwrap();
        let last = at(4 * interval);
        let until = last + at(interval * 5 / 2).max(RUNNING_AGE_MAX);
        assert_eq!(job.running_for(until), Some(at(7)), "{interval} s");
        assert_eq!(job.running_for(until + Duration::from_secs(1)), None);
        let series = |now| job.series(now).is_some();
        assert!(series(last + at(interval)), "{interval} s");
        assert!(!series(last + at(interval * 5 / 2).max(CURRENT)));
    }
}

#[test]
fn only_the_largest_collective_of_one_rank_counts() {
    let mut job = Job::default();
    let at = Duration::from_secs(10);
    for d in [
        done(3, 8, 900, 1),
        done(3, 4000, 800, 300),
        done(0, 4000, 790, 290),
        done(0, 8, 400, 1),
    ] {
        job.collective_done(&d, at);
    }
    let (_, series) = job.series(at).unwrap();
    assert_eq!(series.iter().map(|i| i.seconds).collect::<Vec<_>>(), [0.29]);
}

#[test]
fn a_large_collective_that_does_not_come_back_gives_way() {
    let mut job = Job::default();
    let at = Duration::from_secs;
    job.collective_done(&done(0, 1 << 30, 900, 800), at(10));
    job.collective_done(&done(0, 4000, 300, 290), at(39));
    let largest = |job: &Job| job.collective.as_ref().map(|(_, bytes)| *bytes);
    assert_eq!(largest(&job), Some(1 << 30));
    job.collective_done(&done(0, 4000, 300, 290), at(41));
    assert_eq!(largest(&job), Some(4000));
    assert_eq!(job.series(at(41)).unwrap().1.len(), 1);
}

#[test]
fn time_not_yet_reported_counts_as_busy() {
    let mut job = Job::default();
    job.collective_done(&done(0, 4000, 500, 250), Duration::from_secs(10));
    let (s9, s10) = (Duration::from_secs(9), Duration::from_secs(10));
    assert!(
        (job.idle_share(s9, s10) - 0.5).abs() < 1e-9,
        "before the first call: idle; after the last: unknown"
    );
    job.collective_done(&done(0, 4000, 0, 250), Duration::from_secs(10));
    assert!((job.idle_share(s9, s10) - 0.75).abs() < 1e-9);
}

/// Steps of `step_ms` with a burst of four all-reduces, 5 ms apart.
fn nccl_steps(step_ms: u64, steps: u64) -> Job {
    let mut job = Job::default();
    for call in 0..4 * steps {
        let start_ms = call / 4 * step_ms + call % 4 * 5;
        let at = Duration::from_millis(start_ms + 1);
        job.collective_done(
            &CollectiveDone {
                op: "ncclAllReduce".into(),
                ..done(0, 1 << 20, 1, 0)
            },
            at,
        );
    }
    job
}

#[test]
fn nccl_is_measured_by_the_time_between_its_calls() {
    for step_ms in [100, 980, 1010, 3000] {
        let job = nccl_steps(step_ms, 40);
        let now = Duration::from_millis(40 * step_ms);
        let (signature, series) = job.series(now).unwrap();
        assert!(matches!(signature, Signature::Queued { .. }));
        let expected = Duration::from_millis(step_ms).as_secs_f64() / 4.0;
        for window in series {
            assert!((window.seconds / expected - 1.0).abs() < 1e-9, "{window:?}");
        }
        assert_eq!(job.busbw_bps(1.0), None);
        assert_eq!(job.idle_share(Duration::ZERO, now), 0.0);
    }
}

#[test]
fn what_groups_calls_is_no_collective() {
    let mut job = Job::default();
    let group = CollectiveDone {
        op: "ncclGroupStart".into(),
        bytes: None,
        ..done(0, 0, 1, 0)
    };
    job.collective_done(&group, Duration::from_secs(1));
    assert!(job.series(Duration::from_secs(1)).is_none());
}

#[test]
fn busbw_of_a_ring_of_eight() {
    let mut job = Job::default();
    job.collective_done(&done(0, 4_000_000, 500, 500), Duration::from_secs(1));
    assert_eq!(job.busbw_bps(0.7), Some(2.0 * 7.0 / 8.0 * 32e6 / 0.7));
}
