//! A node that differs from the others of its job, although no rule names a fault of it.
//!
//! The nodes of a job do the same work at the same time, so each is the others' reference (Minder,
//! NSDI 2025; here without its network). Every [`STEP`] each node's mean of a few signals is set against the median
//! of the job's nodes, as a share of it. What a node's place in the job or in the room does to its figures, such as the first stage of a
//! pipeline or a warm rack, is learnt in the first [`LEARN`] steps and very slowly after; judged is what changed, in units of the spread of the
//! nodes' changes (1.4826 times their median absolute deviation, but at least a few percent: equal nodes have no spread).
//!
//! Trip: the node deviates in the same direction in [`N`] of the last [`M`] busy steps, in two families of signals by
//! [`FAR`], or in one alone by [`WIDE`] and [`WIDE_SHARE`]; and hardly anyone else does. Nothing need be learnt of a node that
//! is hotter than the others though it draws less power: a lighter part of the job draws less and is cooler, a
//! warm place is hotter and draws no less. Cold start: four nodes of one job and, for each signal, the steps of learning in
//! which the job had any of it; an agent that comes back keeps them. Recovery: as soon as N of M no longer hold, and a minute more. Silent: steps in which the job
//! idles, a node whose job ended or is another, a job of fewer than four nodes.
//!
//! Cost: an addition for each sample of a column that is looked at; each step sorts the nodes once for each signal.

use super::debounce::History;
use crate::ids::{JobId, NodeId};
use crate::io::{Column, age_max};
use crate::keep::keep;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;
use weir_signal::{Entity, Kind, Signal};

/// Two samples, so that the on and off of a job is in both.
pub const STEP: Duration = Duration::from_secs(2);
/// A node needs three others that agree.
const NODES_MIN: usize = 4;
/// Steps of learning: twenty seconds.
const LEARN: u16 = 10;
/// Twenty seconds of the same.
const N: u32 = 10;
const M: u32 = 12;
/// Spreads from its usual place.
const FAR: f32 = 4.0;
/// As [`FAR`], for one signal alone.
const WIDE: f32 = 12.0;
/// And this share of the median.
const WIDE_SHARE: f32 = 0.6;
/// Share of a difference that is learnt in a step: two minutes' half-life.
const DRIFT: f32 = 1.0 / 64.0;
/// GPU utilisation, in percent, from which a job is busy; without GPUs, bytes a second.
const BUSY_PERCENT: f32 = 20.0;
const BUSY_BYTES: f32 = 1e6;
/// A node that nobody saw in its job for so long is no part of it, where samples come once a second.
const JOB_GONE: Duration = Duration::from_secs(10);
/// An outlier stands for this long after it was one, and over two steps at least.
const HOLD: Duration = Duration::from_secs(60);
/// Nothing differs by more medians than this.
const FARTHEST: f32 = 1000.0;

/// A signal that nodes are compared in.
struct Feature {
    signal: Signal,
    entity: Entity,
    /// Signals that move together count once.
    family: u8,
    /// Added to the median, in the signal's unit (of counters, a second): what is little beside it is no difference.
    floor: f32,
    /// Least spread, as a share of the two.
    spread_min: f32,
    sides: Sides,
}

/// In which direction a signal must differ, and whether it may be enough alone: pauses and losses have
/// detectors of their own, and a node that carries more than the others has work beside the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sides {
    Less,
    More,
    Any,
}

const fn feature(
    signal: Signal,
    entity: Entity,
    family: u8,
    (floor, spread_min): (f32, f32),
    sides: Sides,
) -> Feature {
    Feature {
        signal,
        entity,
        family,
        floor,
        spread_min,
        sides,
    }
}

/// Spreads: clocks, and so power, of healthy GPUs that do the same differ by a few percent that stay; a
/// temperature is told in whole degrees, and four spreads are four degrees.
const FEATURES: [Feature; 9] = [
    feature(Signal::TxBytes, Entity::Rdma, 0, (1e7, 0.05), Sides::Less),
    feature(Signal::RxBytes, Entity::Rdma, 0, (1e7, 0.05), Sides::Less),
    // Of the priorities and ports together: a tenth of one port's time.
    feature(Signal::PauseRxUs, Entity::Port, 1, (1e5, 0.1), Sides::More),
    feature(Signal::PauseTxUs, Entity::Port, 2, (1e5, 0.1), Sides::More),
    feature(
        Signal::Retransmits,
        Entity::Rdma,
        3,
        (100.0, 0.1),
        Sides::More,
    ),
    feature(
        Signal::GpuUtilisation,
        Entity::Gpu,
        4,
        (1.0, 0.05),
        Sides::Less,
    ),
    feature(Signal::GpuPower, Entity::Gpu, 4, (1e4, 0.025), Sides::Any),
    feature(
        Signal::GpuTemperature,
        Entity::Gpu,
        5,
        (1e3, 0.015),
        Sides::Any,
    ),
    // Writes that wait for the host: of the ports together.
    feature(
        Signal::PcieStalls,
        Entity::Port,
        6,
        (200.0, 0.25),
        Sides::More,
    ),
];
const COUNT: usize = FEATURES.len();
const UTILISATION: usize = 5;
const POWER: usize = 6;
const TEMPERATURE: usize = 7;

/// Whether nodes are compared in this signal.
#[must_use]
pub fn compares(entity: Entity, signal: Signal) -> bool {
    FEATURES.iter().any(|f| f.is_fed_by(entity, signal))
}

/// Signals that nodes are compared in, their families, which way they must differ, and whether one may
/// be enough alone.
pub fn features() -> impl Iterator<Item = (Signal, u8, &'static str, bool)> {
    FEATURES.iter().map(|f| {
        let side = match f.sides {
            Sides::Less => "less",
            Sides::More => "more",
            Sides::Any => "either",
        };
        (f.signal, f.family, side, f.sides.may_be_alone())
    })
}

impl Sides {
    /// Whether less and more count.
    fn count(self) -> [bool; 2] {
        [self != Sides::More, self != Sides::Less]
    }

    fn may_be_alone(self) -> bool {
        self != Sides::More
    }
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
    learnt: [u16; COUNT],
    usual: [f32; COUNT],
    /// Steps below and above the usual place, and wide of it.
    off: [[History; 2]; COUNT],
    wide: [History; COUNT],
    /// Steps in which it was hotter than the others though it drew less.
    choked: History,
    outlier: Option<Outlier>,
}

keep!(struct Peer { feeds, sums, readings, elapsed, job, learnt, usual, off, wide, choked, outlier });

/// What makes a node an outlier.
#[derive(Debug, Clone, PartialEq)]
struct Outlier {
    job: JobId,
    since: Duration,
    last: Duration,
    nodes: usize,
    off: Vec<Off>,
}

keep!(struct Outlier { job, since, last, nodes, off });

/// A feature in which it is off.
#[derive(Debug, Clone, PartialEq)]
struct Off {
    /// Place in [`FEATURES`].
    feature: usize,
    value: f32,
    median: f32,
    /// Steps out of [`M`].
    times: u32,
}

keep!(struct Off { feature, value, median, times } if |off: &Off| off.feature < COUNT);

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
        let feeds: Box<[(u16, u8)]> = feeds.collect();
        // An agent that comes back with the same columns moves the node to no other place.
        let same = feeds == self.feeds;
        *self = Peer {
            feeds,
            job: self.job.take(),
            learnt: if same { self.learnt } else { [0; COUNT] },
            usual: self.usual,
            ..Peer::default()
        };
    }

    /// What its columns do not tell.
    #[must_use]
    pub fn memory(&self) -> Peer {
        Peer {
            feeds: Box::default(),
            ..self.clone()
        }
    }

    /// Goes on from there with its own columns.
    pub fn remember(&mut self, memory: Peer) {
        let feeds = std::mem::take(&mut self.feeds);
        *self = Peer { feeds, ..memory };
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
        self.elapsed = self.elapsed.saturating_add(elapsed);
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
        for off in &outlier.off {
            let Off {
                feature,
                value,
                median,
                times,
            } = off;
            let signal = FEATURES[*feature].signal;
            let per = match signal.kind() {
                Kind::Counter => " a second",
                Kind::Gauge => "",
            };
            verdict.evidence.push(Evidence::new(
                format!("{} of {node}", signal.name()),
                format!(
                    "{value:.0} {}{per}, median of the job's {} nodes {median:.0}; stood out in {times} of the last {M} looks",
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
        let mut families: Vec<u8> = self
            .off
            .iter()
            .map(|o| FEATURES[o.feature].family)
            .collect();
        families.sort_unstable();
        families.dedup();
        families.len()
    }
}

type Means = [Option<f32>; COUNT];

/// Time between two steps where nodes are sampled each `interval`: two samples.
#[must_use]
pub fn step_of(interval: Duration) -> Duration {
    STEP.max(2 * interval)
}

/// Compares the nodes of each job over the last step; `interval` is that of their samples.
pub fn step<'a>(peers: impl Iterator<Item = &'a mut Peer>, interval: Duration, now: Duration) {
    let gone = age_max(JOB_GONE, interval);
    let hold = age_max(HOLD, step_of(interval));
    let mut jobs: BTreeMap<JobId, Vec<(&mut Peer, Means)>> = BTreeMap::new();
    for peer in peers {
        let means = peer.take_means();
        if peer
            .outlier
            .as_ref()
            .is_some_and(|o| now.saturating_sub(o.last) >= hold)
        {
            peer.outlier = None;
        }
        match &peer.job {
            Some((_, seen)) if now.saturating_sub(*seen) > gone => {
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

/// Median of a feature; `None` of too few nodes.
fn middle(nodes: &[(&mut Peer, Means)], n: usize) -> Option<f32> {
    let mut values: Vec<f32> = nodes.iter().filter_map(|(_, means)| means[n]).collect();
    (values.len() >= NODES_MIN).then(|| median(&mut values))
}

/// Spread of what nodes show of a feature, at least the one that equal nodes have.
fn spread(n: usize, shown: impl Iterator<Item = f32>) -> f32 {
    let mut shown: Vec<f32> = shown.collect();
    if shown.is_empty() {
        return FEATURES[n].spread_min;
    }
    let middle = median(&mut shown);
    for value in &mut shown {
        *value = (*value - middle).abs();
    }
    (1.4826 * median(&mut shown)).max(FEATURES[n].spread_min)
}

/// Difference from its usual place; `None` before that is learnt. Where less alone counts, less than usual must be less than
/// the others, too: who had work beside the job and has it no more is like them.
fn change(n: usize, middle: Option<f32>, peer: &Peer, means: &Means) -> Option<f32> {
    let place = share(n, middle, means)?;
    let change = place - peer.usual[n];
    let least = FEATURES[n].sides == Sides::Less;
    (peer.learnt[n] >= LEARN).then(|| if least { change.max(place) } else { change })
}

/// How far a node is from the median, as a share of it. `None` where most have nothing of which a node could have less:
/// while a job stands still, all lose what they had more than the others.
fn share(n: usize, middle: Option<f32>, means: &Means) -> Option<f32> {
    let (middle, mean) = middle.zip(means[n])?;
    if FEATURES[n].sides == Sides::Less && middle < FEATURES[n].floor {
        return None;
    }
    Some(((mean - middle) / (middle.abs() + FEATURES[n].floor)).clamp(-FARTHEST, FARTHEST))
}

fn median(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

fn compare(job: &JobId, nodes: &mut [(&mut Peer, Means)], now: Duration) {
    let middles: [Option<f32>; COUNT] = std::array::from_fn(|n| middle(nodes, n));
    let busy = match (middles[UTILISATION], middles[0]) {
        (Some(percent), _) => percent >= BUSY_PERCENT,
        (None, Some(bytes)) => bytes >= BUSY_BYTES,
        (None, None) => false,
    };
    if !busy {
        return;
    }
    let changes = |n| {
        let nodes = nodes.iter();
        nodes.filter_map(move |(peer, means)| change(n, middles[n], peer, means))
    };
    let spreads: [f32; COUNT] = std::array::from_fn(|n| spread(n, changes(n)));
    let places = |n| {
        let places = nodes.iter();
        places.filter_map(move |(_, means)| share(n, middles[n], means))
    };
    let [cool, hot] = [POWER, TEMPERATURE].map(|n| FAR * spread(n, places(n)));
    let is_choked = |means: &Means| {
        let place = |n| share(n, middles[n], means);
        place(POWER).is_some_and(|p| p <= -cool) && place(TEMPERATURE).is_some_and(|t| t >= hot)
    };
    let choked = nodes.iter().filter(|(_, means)| is_choked(means)).count();
    // How many are off, below and above: what several do is the job's doing.
    let mut crowd = [[0usize; 2]; COUNT];
    for (n, crowd) in crowd.iter_mut().enumerate() {
        for off in changes(n).map(|c| c / spreads[n]) {
            crowd[0] += usize::from(off <= -FAR);
            crowd[1] += usize::from(off >= FAR);
        }
    }
    let most = (nodes.len() / 10).max(1);
    let count = nodes.len();
    for (peer, means) in nodes.iter_mut() {
        let mut found: Vec<Off> = Vec::new();
        let mut enough_alone = false;
        let times = peer.choked.push(choked <= most && is_choked(means), M);
        if times >= N {
            let both = [POWER, TEMPERATURE].into_iter();
            found.extend(both.filter_map(|n| {
                Some(Off {
                    feature: n,
                    value: means[n]?,
                    median: middles[n]?,
                    times,
                })
            }));
        }
        for n in 0..COUNT {
            let Some(place) = share(n, middles[n], means) else {
                continue;
            };
            let Some(change) = change(n, middles[n], peer, means) else {
                peer.learnt[n] += 1;
                peer.usual[n] += (place - peer.usual[n]) / f32::from(peer.learnt[n]);
                continue;
            };
            let off = change / spreads[n];
            let [less, more] = FEATURES[n].sides.count();
            let is = [
                less && off <= -FAR && crowd[n][0] <= most,
                more && off >= FAR && crowd[n][1] <= most,
            ];
            let wide = off.abs() >= WIDE && change.abs() >= WIDE_SHARE && is.contains(&true);
            let wide = peer.wide[n].push(wide, M) >= N && FEATURES[n].sides.may_be_alone();
            let times =
                std::array::from_fn::<u32, 2, _>(|side| peer.off[n][side].push(is[side], M));
            if !is.contains(&true) {
                peer.usual[n] += (place - peer.usual[n]) * DRIFT;
            }
            if let (Some(times), Some(median), Some(value)) =
                (times.into_iter().find(|t| *t >= N), middles[n], means[n])
                && found.iter().all(|off| off.feature != n)
            {
                found.push(Off {
                    feature: n,
                    value,
                    median,
                    times,
                });
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
mod tests;
