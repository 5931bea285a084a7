//! A job whose nodes show what the test says.

use super::*;
use proptest::prelude::*;

/// Columns of a node: bytes, power, temperature, utilisation.
fn columns() -> Vec<Column> {
    FEATURES
        .iter()
        .map(|f| Column {
            entity: f.entity,
            subject: "x".into(),
            index: None,
            signal: f.signal,
        })
        .collect()
}

struct Job {
    peers: Vec<Peer>,
    interval: Duration,
    now: Duration,
}

const HEALTHY: [u64; COUNT] = [
    40_000_000_000,
    40_000_000_000,
    500,
    500,
    0,
    98,
    650_000,
    61_000,
    300,
];

impl Job {
    fn new(nodes: usize) -> Job {
        let mut peers = vec![Peer::default(); nodes];
        for peer in &mut peers {
            peer.declared(&columns());
        }
        Job {
            peers,
            interval: STEP / 2,
            now: Duration::ZERO,
        }
    }

    /// Steps in which node and step make of the healthy values what they show; the outliers.
    fn run(
        &mut self,
        steps: u64,
        shown: impl Fn(usize, u64, [u64; COUNT]) -> [u64; COUNT],
    ) -> Vec<usize> {
        let job = JobId::new("train");
        for k in 0..steps {
            for _ in 0..2 {
                self.now += self.interval;
                for (n, peer) in self.peers.iter_mut().enumerate() {
                    let values = shown(n, k, HEALTHY).map(Some);
                    peer.sampled(&values, Some(self.interval), Some(&job), self.now);
                }
            }
            step(self.peers.iter_mut(), self.interval, self.now);
        }
        let found = self.peers.iter().enumerate();
        found
            .filter(|(_, p)| p.is_outlier())
            .map(|(n, _)| n)
            .collect()
    }
}

/// A few percent that differ from node to node and from step to step.
fn noise(n: usize, k: u64, mut values: [u64; COUNT]) -> [u64; COUNT] {
    for (f, value) in values.iter_mut().enumerate() {
        let random = (n as u64 * 7919 + k * 104_729 + f as u64 * 1_299_709) * 2_654_435_761 % 100;
        *value += *value * random / 1500;
    }
    values
}

fn slow(values: [u64; COUNT]) -> [u64; COUNT] {
    let mut values = values;
    values[UTILISATION] = values[UTILISATION] * 60 / 100;
    values[UTILISATION + 1] = values[UTILISATION + 1] * 55 / 100;
    values[UTILISATION + 2] -= 15_000;
    values
}

#[test]
fn a_node_that_becomes_slow_is_found_within_a_minute_and_cleared() {
    let mut job = Job::new(8);
    assert!(job.run(30, noise).is_empty());
    let sick = |n, k, v| {
        if n == 3 {
            slow(noise(n, k, v))
        } else {
            noise(n, k, v)
        }
    };
    assert!(job.run(9, sick).is_empty(), "not before N of M");
    assert_eq!(job.run(4, sick), [3]);
    let verdict = job.peers[3].verdict(&NodeId::new("h3"), job.now).unwrap();
    assert!(verdict.evidence.len() >= 3, "{verdict:?}");
    assert!(verdict.confidence > 0.7);
    assert!(job.run(50, noise).is_empty());
}

#[test]
fn nodes_that_are_sampled_seldom_are_compared_seldom_and_found_all_the_same() {
    for seconds in [5, 10, 30] {
        let mut job = Job::new(8);
        // What rises in an interval is in proportion to it.
        job.interval = Duration::from_secs(seconds);
        let longer = |mut v: [u64; COUNT]| {
            v[..5].iter_mut().for_each(|v| *v *= seconds);
            v[COUNT - 1] *= seconds;
            v
        };
        assert_eq!(step_of(job.interval), job.interval * 2);
        assert!(job.run(30, |n, k, v| longer(noise(n, k, v))).is_empty());
        let sick = |n, k, v| {
            let v = noise(n, k, v);
            longer(if n == 3 { slow(v) } else { v })
        };
        assert_eq!(job.run(13, sick), [3], "{seconds} s");
    }
    assert_eq!(step_of(Duration::from_secs(1)), STEP);
    assert_eq!(step_of(Duration::ZERO), STEP);
}

#[test]
fn one_signal_must_be_wide_of_the_others() {
    let less = |percent: u64| {
        move |n, k, v| {
            let mut values = noise(n, k, v);
            if n == 3 && k >= 20 {
                values[0] = values[0] * percent / 100;
            }
            values
        }
    };
    assert!(Job::new(8).run(60, less(70)).is_empty());
    assert_eq!(Job::new(8).run(60, less(20)), [3]);
}

#[test]
fn traffic_beside_the_job_is_no_fault() {
    let more = |n, k, v| {
        let mut values = noise(n, k, v);
        if n == 3 && k >= 20 {
            (values[0], values[1]) = (values[0] * 3, values[1] * 3);
        }
        values
    };
    assert!(Job::new(8).run(60, more).is_empty());
}

#[test]
fn a_place_in_the_job_is_no_fault() {
    let stages = |n, k, v| {
        if n == 0 {
            slow(noise(n, k, v))
        } else {
            noise(n, k, v)
        }
    };
    assert!(Job::new(8).run(200, stages).is_empty());
}

/// Hotter and weaker than the others.
fn choked(mut values: [u64; COUNT]) -> [u64; COUNT] {
    values[POWER] = values[POWER] * 75 / 100;
    values[TEMPERATURE] += 12_000;
    values
}

#[test]
fn a_node_that_is_hotter_though_it_draws_less_has_no_such_place() {
    let always = |n: usize| {
        move |m: usize, k, v| {
            let values = noise(m, k, v);
            if m % n == 3 { choked(values) } else { values }
        }
    };
    assert_eq!(Job::new(8).run(13, always(8)), [3]);
    assert!(Job::new(8).run(60, always(4)).is_empty(), "two of eight");
    let warm = |n, k, v| {
        let mut values = noise(n, k, v);
        values[TEMPERATURE] += if n == 3 { 12_000 } else { 0 };
        values
    };
    assert!(Job::new(8).run(60, warm).is_empty(), "a warm place");
}

#[test]
fn an_agent_that_comes_back_knows_the_nodes_place() {
    let mut job = Job::new(8);
    assert!(job.run(20, noise).is_empty());
    let loses_power = |n, k, v| {
        let mut values = noise(n, k, v);
        if n == 3 {
            values[UTILISATION] = values[UTILISATION] * 60 / 100;
            values[TEMPERATURE] -= 15_000;
        }
        values
    };
    assert!(job.run(2, loses_power).is_empty());
    job.peers[3].declared(&columns());
    assert_eq!(job.run(13, loses_power), [3]);
}

#[test]
fn a_job_that_stands_still_teaches_nothing() {
    let mut job = Job::new(8);
    let inner = |n, k, v| {
        let mut values = noise(n, k, v);
        if n % 2 == 0 {
            (values[0], values[1]) = (values[0] / 8, values[1] / 8);
        }
        values
    };
    let stands = |n, k, v| {
        let mut values = inner(n, k, v);
        (values[0], values[1]) = (2, 2);
        values
    };
    assert!(job.run(20, stands).is_empty());
    assert!(job.run(60, inner).is_empty());
}

#[test]
fn who_has_no_work_beside_the_job_any_more_is_like_the_others() {
    let mut job = Job::new(8);
    let beside = |n, k, v| {
        let mut values = noise(n, k, v);
        if n == 3 {
            (values[0], values[1]) = (values[0] * 4, values[1] * 4);
        }
        values
    };
    assert!(job.run(20, beside).is_empty());
    assert!(job.run(60, noise).is_empty());
}

#[test]
fn what_several_do_is_the_jobs_doing() {
    let several = |n, k, v| {
        if n < 3 && k > 20 {
            slow(noise(n, k, v))
        } else {
            noise(n, k, v)
        }
    };
    assert!(Job::new(8).run(100, several).is_empty());
}

#[test]
fn an_idle_job_and_a_small_one_say_nothing() {
    let idle = |n, k, v| {
        let mut values = noise(n, k, v);
        values[UTILISATION] = 3;
        values[0] = if n == 1 && k > 15 { values[0] } else { 1000 };
        values[1] = values[0];
        values
    };
    assert!(Job::new(8).run(100, idle).is_empty());
    let sick = |n, k, v| {
        if n == 3 && k > 20 {
            slow(v)
        } else {
            noise(n, k, v)
        }
    };
    assert!(Job::new(3).run(100, sick).is_empty());
}

#[test]
fn drift_over_a_day_is_no_fault() {
    let mut job = Job::new(8);
    let warm = |n: usize, k: u64, v| {
        let mut values = noise(n, k, v);
        // One node stands where it becomes warmer by 12 degrees in some hours.
        values[UTILISATION + 2] += if n == 5 { k.min(6000) * 2 } else { k.min(6000) };
        values
    };
    for part in 0..8 {
        assert!(
            job.run(1000, |n, k, v| warm(n, part * 1000 + k, v))
                .is_empty()
        );
    }
}

proptest! {
    #[test]
    fn absurd_values_break_nothing(steps in proptest::collection::vec((0usize..7, any::<u64>(), 0u64..5000), 0..300)) {
        let mut job = Job::new(7);
        for (n, value, millis) in steps {
            job.now += Duration::from_millis(millis);
            let values = [Some(value); COUNT].map(|v| v.filter(|v| v % 5 != 0));
            let elapsed = (millis % 7 != 0).then_some(Duration::from_millis(millis));
            job.peers[n].sampled(&values, elapsed, Some(&JobId::new("j")), job.now);
            step(job.peers.iter_mut(), STEP / 2, job.now);
            let usual = job.peers[n].usual;
            prop_assert!(usual.iter().all(|u| u.is_finite()), "{usual:?}");
        }
    }
}
