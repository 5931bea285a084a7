//! A node that differs from the others of its job, although no rule names a fault of it.
//!
//! The nodes of a job do the same work at the same time, so each is the others' reference (Minder,
//! NSDI 2025; here without its network). Every [`STEP`] each node's mean of a few signals is set against the median
//! of the job's nodes, in units of their spread (1.4826 times the median absolute deviation, but at least 5 % of the
//! median: equal nodes have no spread). What a node's place in the job does to its figures, such as the first stage of a pipeline, is
//! learnt in the first [`LEARN`] steps and very slowly after; judged is what changed.
//!
//! Trip: the node deviates in the same direction in [`N`] of the last [`M`] busy steps, in two families of signals by
//! [`FAR`], or in one alone by [`WIDE`]; and hardly anyone else does. Cold start: five nodes of one
//! job and the steps of learning. Recovery: as soon as N of M no longer hold, and a minute more. Silent: steps in which the job
//! idles, a node whose job ended or is another, a job of fewer than five nodes.
//!
//! Cost: an addition for each sample of a column that is looked at; each step sorts the nodes once for each signal.

use super::debounce::History;
use crate::ids::{JobId, NodeId};
use crate::io::Column;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;
use weir_signal::{Entity, Kind, Signal};

/// Two samples, so that the on and off of a job is in both.
pub const STEP: Duration = Duration::from_secs(2);
/// Fewer nodes have no median worth the name.
const NODES_MIN: usize = 5;
/// Steps of learning: twenty seconds.
const LEARN: u16 = 10;
/// Half a minute of the same.
const N: u32 = 15;
const M: u32 = 18;
/// Spreads from its usual place; at least a fifth of the median.
const FAR: f32 = 4.0;
/// As [`FAR`], for one signal alone; at least three fifths of the median.
const WIDE: f32 = 12.0;
/// Least spread, as a share of the median.
const SPREAD_MIN: f32 = 0.05;
/// Share of a difference that is learnt in a step: two minutes' half-life.
const DRIFT: f32 = 1.0 / 64.0;
/// GPU utilisation, in percent, from which a job is busy; without GPUs, bytes a second.
const BUSY_PERCENT: f32 = 20.0;
const BUSY_BYTES: f32 = 1e6;
/// A node that nobody saw in its job for so long is no part of it.
const JOB_GONE: Duration = Duration::from_secs(10);
/// An outlier stands for this long after it was one.
const HOLD: Duration = Duration::from_secs(60);
/// Nothing differs by more spreads than this.
const FARTHEST: f32 = 1000.0;

/// A signal that nodes are compared in.
struct Feature {
    signal: Signal,
    entity: Entity,
    /// Signals that move together count once.
    family: u8,
    /// Least spread, in the signal's unit a second.
    floor: f32,
    /// Whether it may be enough alone: pauses and losses have detectors of their own.
    alone: bool,
}

const fn feature(signal: Signal, entity: Entity, family: u8, floor: f32, alone: bool) -> Feature {
    Feature {
        signal,
        entity,
        family,
        floor,
        alone,
    }
}

const FEATURES: [Feature; 8] = [
    feature(Signal::TxBytes, Entity::Rdma, 0, 1e5, true),
    feature(Signal::RxBytes, Entity::Rdma, 0, 1e5, true),
    // Of the priorities and ports together: a hundredth of one port's time.
    feature(Signal::PauseRxUs, Entity::Port, 1, 1e4, false),
    feature(Signal::PauseTxUs, Entity::Port, 2, 1e4, false),
    feature(Signal::Retransmits, Entity::Rdma, 3, 10.0, false),
    feature(Signal::GpuUtilisation, Entity::Gpu, 4, 2.0, true),
    feature(Signal::GpuPower, Entity::Gpu, 4, 1e4, true),
    feature(Signal::GpuTemperature, Entity::Gpu, 5, 2e3, true),
];
const COUNT: usize = FEATURES.len();
const UTILISATION: usize = 5;

/// Whether nodes are compared in this signal.
#[must_use]
pub fn compares(entity: Entity, signal: Signal) -> bool {
    FEATURES.iter().any(|f| f.is_fed_by(entity, signal))
}

impl Feature {
    /// Bytes of interfaces stand in where there are no verbs devices.
    fn is_fed_by(&self, entity: Entity, signal: Signal) -> bool {
        let port = self.signal == Signal::TxBytes || self.signal == Signal::RxBytes;
        signal == self.signal && (entity == self.entity || port && entity == Entity::Port)
    }
}

/// A node among its peers.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// Columns that are compared, and in which feature.
    feeds: Box<[(u16, u8)]>,
    /// Since the last step: what counters rose, what gauges summed up to.
    sums: [f32; COUNT],
    readings: [u16; COUNT],
    elapsed: Duration,
    job: Option<(JobId, Duration)>,
    /// Steps learnt, and the node's usual place.
    learnt: u16,
    usual: [f32; COUNT],
    /// Steps below and above the usual place, and wide of it.
    off: [[History; 2]; COUNT],
    wide: [History; COUNT],
    outlier: Option<Outlier>,
}

/// What makes a node an outlier.
#[derive(Debug, Clone, PartialEq)]
struct Outlier {
    job: JobId,
    since: Duration,
    last: Duration,
    nodes: usize,
    /// Feature, the node's value, the median, steps out of [`M`].
    off: Vec<(usize, f32, f32, u32)>,
}

impl Peer {
    /// The columns to look at from now on.
    pub fn declared(&mut self, columns: &[Column]) {
        let has = |entity, signal| {
            columns
                .iter()
                .any(|c| (c.entity, c.signal) == (entity, signal))
        };
        let feature = |c: &Column| {
            let n = FEATURES
                .iter()
                .position(|f| f.is_fed_by(c.entity, c.signal))?;
            let better = FEATURES[n].entity != c.entity && has(FEATURES[n].entity, c.signal);
            u8::try_from(n).ok().filter(|_| !better)
        };
        let feeds = columns.iter().enumerate();
        let feeds = feeds.filter_map(|(n, c)| Some((u16::try_from(n).ok()?, feature(c)?)));
        *self = Peer {
            feeds: feeds.collect(),
            job: self.job.take(),
            ..Peer::default()
        };
    }

    /// Takes a sample; `job` is what the node was seen to work for.
    pub fn sampled(
        &mut self,
        values: &[Option<u64>],
        elapsed: Option<Duration>,
        job: Option<&JobId>,
        now: Duration,
    ) {
        if let Some(job) = job {
            match &mut self.job {
                Some((known, seen)) if known == job => *seen = now,
                _ => {
                    let feeds = std::mem::take(&mut self.feeds);
                    let job = Some((job.clone(), now));
                    *self = Peer {
                        feeds,
                        job,
                        ..Peer::default()
                    };
                }
            }
        }
        let Some(elapsed) = elapsed.filter(|_| self.job.is_some()) else {
            return;
        };
        self.elapsed += elapsed;
        for (column, feature) in &self.feeds {
            if let Some(value) = values.get(usize::from(*column)).copied().flatten() {
                let feature = usize::from(*feature);
                self.sums[feature] += value as f32;
                self.readings[feature] = self.readings[feature].saturating_add(1);
            }
        }
    }

    /// The means since the last step: of counters a second, of gauges a reading.
    fn take_means(&mut self) -> [Option<f32>; COUNT] {
        let seconds = self.elapsed.as_secs_f32();
        let mut means = [None; COUNT];
        for (n, mean) in means.iter_mut().enumerate() {
            let divisor = match FEATURES[n].signal.kind() {
                Kind::Counter => seconds,
                Kind::Gauge => f32::from(self.readings[n]),
            };
            *mean = (self.readings[n] > 0 && seconds > 0.0).then(|| self.sums[n] / divisor);
        }
        (self.sums, self.readings, self.elapsed) = ([0.0; COUNT], [0; COUNT], Duration::ZERO);
        means
    }

    /// Whether it is an outlier.
    #[must_use]
    pub fn is_outlier(&self) -> bool {
        self.outlier.is_some()
    }

    /// The verdict about it; `None` while it is like the others.
    #[must_use]
    pub fn verdict(&self, node: &NodeId, now: Duration) -> Option<Verdict> {
        let outlier = self.outlier.as_ref()?;
        let families: usize = outlier.families();
        // No data yet: two families that agree are right more often than one that is far off.
        let confidence = if families > 1 { 0.8 } else { 0.6 };
        let subject = Subject::Node(node.clone());
        let mut verdict = Verdict::new(Class::NodeOutlier, Severity::Warning, subject, confidence);
        verdict.job = Some(outlier.job.clone());
        for (n, value, median, times) in &outlier.off {
            let signal = FEATURES[*n].signal;
            let per = match signal.kind() {
                Kind::Counter => " a second",
                Kind::Gauge => "",
            };
            verdict.evidence.push(Evidence::new(
                format!("{} of {node}", signal.name()),
                format!(
                    "{value:.0} {}{per}, median of the job's {} nodes {median:.0}; off its usual place in {times} of the last {M} looks",
                    signal.unit(), outlier.nodes
                ),
            ));
        }
        let seconds = now.saturating_sub(outlier.since).as_secs();
        verdict
            .evidence
            .push(Evidence::new("it began", format!("{seconds} s ago")));
        verdict.action = "compare the node with another of its job: clocks, temperatures, PCIe, memory, processes beside the job; take it out of the job if the job is slow".to_owned();
        Some(verdict)
    }
}

impl Outlier {
    fn families(&self) -> usize {
        let mut families: Vec<u8> = self.off.iter().map(|o| FEATURES[o.0].family).collect();
        families.sort_unstable();
        families.dedup();
        families.len()
    }
}

type Means = [Option<f32>; COUNT];

/// Compares the nodes of each job over the last step.
pub fn step<'a>(peers: impl Iterator<Item = &'a mut Peer>, now: Duration) {
    let mut jobs: BTreeMap<JobId, Vec<(&mut Peer, Means)>> = BTreeMap::new();
    for peer in peers {
        let means = peer.take_means();
        if peer
            .outlier
            .as_ref()
            .is_some_and(|o| now.saturating_sub(o.last) >= HOLD)
        {
            peer.outlier = None;
        }
        match &peer.job {
            Some((_, seen)) if now.saturating_sub(*seen) > JOB_GONE => {
                let feeds = std::mem::take(&mut peer.feeds);
                *peer = Peer {
                    feeds,
                    ..Peer::default()
                };
            }
            Some((job, _)) => jobs.entry(job.clone()).or_default().push((peer, means)),
            None => {}
        }
    }
    for (job, mut nodes) in jobs {
        compare(&job, &mut nodes, now);
    }
}

/// Median and spread of a feature; `None` of too few nodes.
fn place(nodes: &[(&mut Peer, Means)], n: usize) -> Option<(f32, f32)> {
    let mut values: Vec<f32> = nodes.iter().filter_map(|(_, means)| means[n]).collect();
    if values.len() < NODES_MIN {
        return None;
    }
    let median = median(&mut values);
    for value in &mut values {
        *value = (*value - median).abs();
    }
    let spread = 1.4826 * self::median(&mut values);
    let least = (SPREAD_MIN * median.abs()).max(FEATURES[n].floor);
    Some((median, spread.max(least)))
}

fn median(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

fn compare(job: &JobId, nodes: &mut [(&mut Peer, Means)], now: Duration) {
    let places: [Option<(f32, f32)>; COUNT] = std::array::from_fn(|n| place(nodes, n));
    let busy = match (places[UTILISATION], places[0]) {
        (Some((percent, _)), _) => percent >= BUSY_PERCENT,
        (None, Some((bytes, _))) => bytes >= BUSY_BYTES,
        (None, None) => false,
    };
    if !busy {
        return;
    }
    let distance = |means: &Means, n: usize| {
        let ((median, spread), mean) = places[n].zip(means[n])?;
        Some(((mean - median) / spread).clamp(-FARTHEST, FARTHEST))
    };
    // How many are off, below and above: what several do is the job's doing.
    let mut crowd = [[0usize; 2]; COUNT];
    for (peer, means) in nodes.iter() {
        for n in (0..COUNT).filter(|_| peer.learnt >= LEARN) {
            let off = distance(means, n).map_or(0.0, |d| d - peer.usual[n]);
            crowd[n][0] += usize::from(off <= -FAR);
            crowd[n][1] += usize::from(off >= FAR);
        }
    }
    let most = (nodes.len() / 10).max(1);
    let count = nodes.len();
    for (peer, means) in nodes.iter_mut() {
        if peer.learnt < LEARN {
            peer.learnt += 1;
            for n in 0..COUNT {
                let place = distance(means, n).unwrap_or(0.0);
                peer.usual[n] += (place - peer.usual[n]) / f32::from(peer.learnt);
            }
            continue;
        }
        let mut found = Vec::new();
        let mut enough_alone = false;
        for n in 0..COUNT {
            let Some(place) = distance(means, n) else {
                continue;
            };
            let off = place - peer.usual[n];
            let is = [
                off <= -FAR && crowd[n][0] <= most,
                off >= FAR && crowd[n][1] <= most,
            ];
            let wide = off.abs() >= WIDE && is.contains(&true);
            let wide = peer.wide[n].push(wide, M) >= N && FEATURES[n].alone;
            let times =
                std::array::from_fn::<u32, 2, _>(|side| peer.off[n][side].push(is[side], M));
            if !is.contains(&true) {
                peer.usual[n] += off * DRIFT;
            }
            if let (Some(times), Some((median, _)), Some(mean)) =
                (times.into_iter().find(|t| *t >= N), places[n], means[n])
            {
                found.push((n, mean, median, times));
                enough_alone |= wide;
            }
        }
        let outlier = Outlier {
            job: job.clone(),
            since: peer.outlier.as_ref().map_or(now, |o| o.since),
            last: now,
            nodes: count,
            off: found,
        };
        if outlier.families() > 1 || enough_alone {
            peer.outlier = Some(outlier);
        }
    }
}

#[cfg(test)]
mod tests {
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
    ];

    impl Job {
        fn new(nodes: usize) -> Job {
            let mut peers = vec![Peer::default(); nodes];
            for peer in &mut peers {
                peer.declared(&columns());
            }
            Job {
                peers,
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
                    self.now += STEP / 2;
                    for (n, peer) in self.peers.iter_mut().enumerate() {
                        let values = shown(n, k, HEALTHY).map(Some);
                        peer.sampled(&values, Some(STEP / 2), Some(&job), self.now);
                    }
                }
                step(self.peers.iter_mut(), self.now);
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
            let random =
                (n as u64 * 7919 + k * 104_729 + f as u64 * 1_299_709) * 2_654_435_761 % 100;
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
        assert!(job.run(14, sick).is_empty(), "not before N of M");
        assert_eq!(job.run(4, sick), [3]);
        let verdict = job.peers[3].verdict(&NodeId::new("h3"), job.now).unwrap();
        assert!(verdict.evidence.len() >= 3, "{verdict:?}");
        assert!(verdict.confidence > 0.7);
        assert!(job.run(50, noise).is_empty());
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
        assert!(Job::new(4).run(100, sick).is_empty());
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
                step(job.peers.iter_mut(), job.now);
                let usual = job.peers[n].usual;
                prop_assert!(usual.iter().all(|u| u.is_finite()), "{usual:?}");
            }
        }
    }
}
