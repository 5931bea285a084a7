//! What each directed link did in its last sample intervals.

use crate::config::Hotspot;
use crate::io::{PortSample, age_max};
use crate::keep::keep;
use crate::topology::{LINKS_MAX, LinkIx};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Samples kept of a link that is or was hot, or pressed for a while: two minutes at one a second, for `weir explain`.
pub const SAMPLES_MAX: usize = 120;

/// Samples kept of any other link; at least the detector's window.
const SAMPLES_QUIET: usize = 16;

/// Histories that are kept for a replay, those of hot links first: 30 MB.
const REMEMBERED_MAX: usize = 4096;

/// Gaps between samples of a link, of which the shortest is its interval: a longer one may be a sample that was lost.
const GAPS: usize = 2;

/// A shorter busy share than this says nothing about the rest of the interval.
const BUSY_MIN: f64 = 0.1;

/// Bytes of a frame where only bytes are counted.
const FRAME_BYTES: u64 = 1500;

/// One interval of one link. Single precision: it is kept 120 times for hundreds of thousands of links.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkSample {
    pub at: Duration,
    /// Bits per second, mean over the interval.
    pub tx_bps: f32,
    utilisation: f32,
    utilisation_busy: f32,
    drops_per_s: f32,
    /// Share of packets marked; share of time paused by the peer, and of time that it kept the peer paused.
    marked: f32,
    paused: f32,
    pausing: f32,
    queue_bytes_max: u32,
    /// Something waits, is dropped or marked.
    pub pressed: bool,
    /// Pressed, and full but for the time in which it was paused.
    pub hot: bool,
}

impl LinkSample {
    /// Share of capacity, mean over the interval; `None` if the capacity is unknown.
    #[must_use]
    pub fn utilisation(&self) -> Option<f64> {
        known(self.utilisation)
    }

    /// Share of capacity while a collective was on the wire; at least [`Self::utilisation`].
    #[must_use]
    pub fn utilisation_busy(&self) -> Option<f64> {
        known(self.utilisation_busy)
    }

    #[must_use]
    pub fn drops_per_s(&self) -> Option<f64> {
        known(self.drops_per_s)
    }

    /// Share of packets that left marked Congestion Experienced, 0 to 1; `None` where nobody counts them.
    #[must_use]
    pub fn marked(&self) -> Option<f64> {
        known(self.marked)
    }

    /// Share of the interval for which the peer kept this transmitter paused, 0 to 1.
    #[must_use]
    pub fn paused(&self) -> Option<f64> {
        known(self.paused)
    }

    /// Share of the interval for which this port kept its peer's transmitter paused, 0 to 1.
    #[must_use]
    pub fn pausing(&self) -> Option<f64> {
        known(self.pausing)
    }

    /// Whether nothing is pressed, dropped, marked or paused: a sample of which no detector says anything.
    fn is_at_rest(&self) -> bool {
        let held = [self.drops_per_s, self.marked, self.paused, self.pausing];
        !self.hot && !self.pressed && held.into_iter().filter_map(known).all(|v| v == 0.0)
    }

    /// Deepest queue of the interval, at most 4 GiB; `None` where nobody sees it.
    #[must_use]
    pub fn queue_bytes_max(&self) -> Option<u64> {
        (self.queue_bytes_max != QUEUE_UNSEEN).then_some(self.queue_bytes_max.into())
    }
}

const QUEUE_UNSEEN: u32 = u32::MAX;

fn known(value: f32) -> Option<f64> {
    (!value.is_nan()).then_some(value.into())
}

#[expect(clippy::cast_possible_truncation, reason = "to single precision")]
fn packed(value: Option<f64>) -> f32 {
    value.map_or(f32::NAN, |v| v as f32)
}

/// Utilisation in the busy part of an interval.
fn while_busy(utilisation: f64, busy: f64) -> f64 {
    (utilisation / busy.clamp(BUSY_MIN, 1.0)).min(utilisation.max(1.0))
}

/// Whether what waits, is dropped or marked does so because the link is full.
fn is_hot(
    pressed: bool,
    marked: Option<f64>,
    paused: Option<f64>,
    utilisation_busy: Option<f64>,
    limits: &Hotspot,
) -> bool {
    // Congestion control that marks or pauses work keeps a link below its rate.
    let held = marked.is_some_and(|m| m >= limits.marked_hot);
    let enough = if held {
        limits.utilisation_marked
    } else {
        limits.utilisation_hot
    };
    // A link cannot be fuller than the peer lets it be.
    let full = utilisation_busy.map(|u| u + paused.unwrap_or(0.0));
    pressed && full.is_some_and(|u| u >= enough)
}

/// When a sample was taken, and over what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub at: Duration,
    pub elapsed: Duration,
    /// Share of the interval in which a collective may have run, 0 to 1.
    pub busy: f64,
}

keep!(struct LinkSample {
    at, tx_bps, utilisation, utilisation_busy, drops_per_s, marked, paused, pausing, queue_bytes_max, pressed, hot,
});

/// The intervals of one link.
#[derive(Debug, Clone, Default)]
pub struct Track {
    samples: VecDeque<LinkSample>,
    /// When it was hot last, or pressed for as long as the detector's window.
    notable_at: Option<Duration>,
}

keep!(struct Track { samples, notable_at });

impl Track {
    /// Time from one of its last samples to the next, as they arrived; zero before the second.
    fn interval(&self) -> Duration {
        let newer = self.samples.iter().rev();
        let gaps = newer.clone().zip(newer.skip(1)).take(GAPS);
        let gaps = gaps.map(|(newer, older)| newer.at.saturating_sub(older.at));
        gaps.min().unwrap_or_default()
    }
}

/// History of all links.
#[derive(Debug, Clone, Default)]
pub struct Links {
    tracks: Vec<Track>,
    /// Links whose newest sample was hot, pressed, or held back or pausing: all that a detector has to look at.
    hot: BTreeSet<LinkIx>,
    pressed: BTreeSet<LinkIx>,
    paused: BTreeSet<LinkIx>,
}

/// Keeps the member in the set or out of it.
fn keep(set: &mut BTreeSet<LinkIx>, link: LinkIx, is_in: bool) {
    if is_in {
        set.insert(link);
    } else {
        set.remove(&link);
    }
}

impl Links {
    /// Adds one interval; `capacity` in bits per second.
    pub fn sampled(
        &mut self,
        link: LinkIx,
        sample: &PortSample,
        interval: &Interval,
        capacity: Option<f64>,
        limits: &Hotspot,
    ) {
        let Interval { at, elapsed, busy } = *interval;
        let seconds = elapsed.as_secs_f64();
        let Some(tx_bytes) = sample.tx_bytes else {
            return;
        };
        if seconds <= 0.0 {
            return;
        }
        let tx_bps = tx_bytes as f64 * 8.0 / seconds;
        let capacity = capacity.filter(|c| *c > 0.0);
        let utilisation = capacity.map(|c| tx_bps / c);
        let utilisation_busy = utilisation.map(|u| while_busy(u, busy));
        let drops_per_s = sample.drops.map(|d| d as f64 / seconds);
        let queue_delay_s = capacity
            .zip(sample.queue_bytes_max)
            .map(|(c, q)| q as f64 * 8.0 / c);
        let marked = sample.ecn_marked.zip(sample.tx_packets.filter(|n| *n > 0));
        let marked = marked.map(|(marked, sent)| (marked as f64 / sent as f64).min(1.0));
        let share = |us: u64| (us as f64 / 1e6 / seconds).min(1.0);
        let (paused, pausing) = (sample.pause_rx_us.map(share), sample.pause_tx_us.map(share));
        let pressed = queue_delay_s.is_some_and(|d| d >= limits.queue_delay_hot.as_secs_f64())
            || sample.drops.is_some_and(|d| {
                let sent = sample.tx_packets.unwrap_or(tx_bytes / FRAME_BYTES).max(1);
                d as f64 >= limits.dropped_hot * sent as f64 && d > 0
            })
            || marked.is_some_and(|m| m >= limits.marked_hot);
        // A queue proves pressure. Where nobody sees the queue, only a link that is full all the time counts.
        let unseen = sample.queue_bytes_max.is_none() && sample.drops.is_none() && marked.is_none();
        let hot = is_hot(pressed, marked, paused, utilisation_busy, limits)
            || (unseen && utilisation.is_some_and(|u| u >= limits.utilisation_full));
        keep(&mut self.hot, link, hot);
        keep(&mut self.pressed, link, pressed);
        let longest = [paused, pausing].into_iter().flatten().fold(0.0, f64::max);
        let held = longest >= limits.paused_hot;
        keep(&mut self.paused, link, held);
        if self.tracks.len() <= link.index() {
            self.tracks.resize_with(link.index() + 1, Track::default);
        }
        let queue = |q: u64| u32::try_from(q).unwrap_or(u32::MAX).min(QUEUE_UNSEEN - 1);
        self.tracks[link.index()].push(
            LinkSample {
                at,
                tx_bps: packed(Some(tx_bps)),
                utilisation: packed(utilisation),
                utilisation_busy: packed(utilisation_busy),
                drops_per_s: packed(drops_per_s),
                marked: packed(marked),
                paused: packed(paused),
                pausing: packed(pausing),
                queue_bytes_max: sample.queue_bytes_max.map_or(QUEUE_UNSEEN, queue),
                pressed,
                hot,
            },
            limits.window,
        );
    }

    /// Links with a long history, or that were not at rest in one of their last few intervals, by their number. Where
    /// there are too many, the rest is measured again within [`SAMPLES_MAX`] intervals.
    pub(crate) fn restless(&self) -> Vec<(usize, &Track)> {
        let lately = |t: &Track| {
            t.samples
                .iter()
                .rev()
                .take(SAMPLES_QUIET)
                .any(|s| !s.is_at_rest())
        };
        let tracks = || self.tracks.iter().enumerate();
        let hot = tracks().filter(|(_, t)| t.was_notable());
        let held = tracks().filter(|(_, t)| !t.was_notable() && lately(t));
        hot.chain(held).take(REMEMBERED_MAX).collect()
    }

    /// Puts a link's history in the place of what is known of it.
    pub(crate) fn remember(&mut self, link: LinkIx, track: Track) {
        if self.tracks.len() <= link.index() {
            self.tracks.resize_with(link.index() + 1, Track::default);
        }
        let newest = track.samples.back();
        keep(&mut self.hot, link, newest.is_some_and(|s| s.hot));
        keep(&mut self.pressed, link, newest.is_some_and(|s| s.pressed));
        self.tracks[link.index()] = track;
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 2] {
        let longest = self.tracks.iter().map(|t| t.samples.len()).max();
        [
            ("link tracks", self.tracks.len(), LINKS_MAX),
            ("samples of a link", longest.unwrap_or(0), SAMPLES_MAX),
        ]
    }

    /// Judges the newest intervals of a pressed link again, now that it is known which jobs cross it: `busy` gives the
    /// share of an interval in which they may have had a collective on the wire, `None` if that is not known of
    /// one of them. Then how full it was says nothing, and marks alone must tell. The interval before the newest as
    /// well: what ran in it is told only with the next sample.
    pub fn settle(
        &mut self,
        link: LinkIx,
        busy: impl Fn(Duration, Duration) -> Option<f64>,
        limits: &Hotspot,
    ) {
        let Some(track) = self.tracks.get_mut(link.index()) else {
            return;
        };
        let last = track.samples.len();
        for n in last.saturating_sub(2).max(1)..last {
            let from = track.samples[n - 1].at;
            let sample = &mut track.samples[n];
            let Some(utilisation) = sample.utilisation() else {
                continue;
            };
            if sample.hot || !sample.pressed {
                continue;
            }
            let (marked, paused) = (sample.marked(), sample.paused());
            let hot = match busy(from, sample.at) {
                Some(busy) => {
                    let used = while_busy(utilisation, busy);
                    sample.utilisation_busy = packed(Some(used));
                    is_hot(true, marked, paused, Some(used), limits)
                }
                None => marked.is_some_and(|m| m >= limits.marked_alone),
            };
            if hot {
                sample.hot = true;
                track.notable_at = track.notable_at.max(Some(sample.at));
                self.hot.insert(link);
            }
        }
    }

    /// Links whose newest interval was hot; how old it may be: [`Links::newest`].
    pub fn hot(&self, now: Duration, max_age: Duration) -> impl Iterator<Item = LinkIx> {
        let fresh = move |link: &LinkIx| self.newest(*link, now, max_age).is_some();
        self.hot.iter().copied().filter(fresh)
    }

    /// Links whose newest interval was pressed, hot or not.
    pub fn pressed(&self, now: Duration, max_age: Duration) -> impl Iterator<Item = LinkIx> {
        let fresh = move |link: &LinkIx| self.newest(*link, now, max_age).is_some();
        self.pressed.iter().copied().filter(fresh)
    }

    /// Links of which one end pauses the other in the newest interval.
    pub fn paused(&self, now: Duration, max_age: Duration) -> impl Iterator<Item = LinkIx> {
        let fresh = move |link: &LinkIx| self.newest(*link, now, max_age).is_some();
        self.paused.iter().copied().filter(fresh)
    }

    /// Newest interval of a link, unless it is older than `max_age` and than two and a half of the intervals at which the
    /// link is sampled.
    #[must_use]
    pub fn newest(&self, link: LinkIx, now: Duration, max_age: Duration) -> Option<&LinkSample> {
        let track = self.tracks.get(link.index())?;
        let sample = track.samples.back()?;
        let age = now.saturating_sub(sample.at);
        (age <= max_age || age <= age_max(max_age, track.interval())).then_some(sample)
    }

    /// Intervals held of a link, oldest first.
    pub fn history(&self, link: LinkIx) -> impl DoubleEndedIterator<Item = &LinkSample> {
        let track = self.tracks.get(link.index());
        track.into_iter().flat_map(|t| &t.samples)
    }

    /// Whether at least `n` of the last `window` intervals were hot, and the newest hot or pressed.
    #[must_use]
    pub fn hot_for(&self, link: LinkIx, n: usize, window: usize) -> bool {
        let last = || self.history(link).rev().take(window);
        let newest = last().next().is_some_and(|s| s.hot || s.pressed);
        self.hot.contains(&link) && newest && last().filter(|s| s.hot).count() >= n
    }

    /// Whether `is` held in at least `n` of the last `window` intervals, the newest among them.
    #[must_use]
    pub fn held_for(
        &self,
        link: LinkIx,
        n: usize,
        window: usize,
        is: impl Fn(&LinkSample) -> bool,
    ) -> bool {
        let mut last = self.history(link).rev().take(window).map(is);
        last.next() == Some(true) && 1 + last.filter(|held| *held).count() >= n
    }

    /// Since when a link is hot, with fewer than `window` other intervals between hot ones; `None` if
    /// it is not. Goes back as far as the history is kept.
    #[must_use]
    pub fn hot_since(&self, link: LinkIx, window: usize) -> Option<Duration> {
        let (mut since, mut cold, mut newer_is_hot) = (None, 0, false);
        for sample in self.history(link).rev() {
            // An interval begins where the one before it ends.
            if newer_is_hot || (sample.hot && since.is_none()) {
                since = Some(sample.at);
            }
            newer_is_hot = sample.hot;
            cold = if sample.hot { 0 } else { cold + 1 };
            if cold >= window {
                break;
            }
        }
        since
    }
}

impl Track {
    /// Whether it was hot or pressed for long in the intervals that are held.
    fn was_notable(&self) -> bool {
        self.notable_at.is_some() && self.notable_at >= self.samples.front().map(|s| s.at)
    }

    fn push(&mut self, sample: LinkSample, window: usize) {
        let mut last = self.samples.iter().rev().take(window.saturating_sub(1));
        if sample.hot || sample.pressed && last.all(|s| s.pressed) {
            self.notable_at = Some(sample.at);
        }
        let oldest = self.samples.front().map_or(sample.at, |s| s.at);
        self.notable_at = self.notable_at.filter(|at| *at >= oldest);
        let keep = if self.notable_at.is_some() {
            SAMPLES_MAX
        } else {
            SAMPLES_QUIET.max(window)
        };
        // What is too old goes first: a queue that grows beyond what it keeps takes twice as much.
        let over = (self.samples.len() + 1).saturating_sub(keep);
        self.samples.drain(..over);
        if self.samples.capacity() > 2 * keep {
            self.samples.shrink_to(keep);
        }
        self.samples.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PortId;
    use crate::topology::{Cable, Plan, Topology};

    fn link() -> LinkIx {
        let cable = Cable {
            a: PortId::parse("l1:up1").unwrap(),
            b: PortId::parse("s1:down1").unwrap(),
            rate_bps: None,
        };
        let topology = Topology::new(Plan {
            cables: vec![cable.clone()],
            ..Plan::default()
        });
        topology.link(&cable.a).unwrap()
    }

    fn add(links: &mut Links, at_s: u64, tx_bytes: u64, busy: f64, queue: u64) {
        let sample = PortSample {
            port: "up1".into(),
            tx_bytes: Some(tx_bytes),
            queue_bytes_max: Some(queue),
            drops: Some(0),
            up: Some(true),
            ..PortSample::default()
        };
        let interval = Interval {
            at: Duration::from_secs(at_s),
            elapsed: Duration::from_secs(1),
            busy,
        };
        let limits = crate::Config::default().hotspot;
        links.sampled(link(), &sample, &interval, Some(200e6), &limits);
    }

    fn sampled(tx_bytes: u64, busy: f64, queue: u64) -> LinkSample {
        let mut links = Links::default();
        add(&mut links, 0, tx_bytes, busy, queue);
        let newest = links.newest(link(), Duration::ZERO, Duration::from_secs(1));
        *newest.unwrap()
    }

    #[test]
    fn a_link_that_is_full_whenever_the_job_sends_is_hot() {
        // 37.5 % of the second's capacity, sent in the 40 % of it that a collective ran.
        assert!(sampled(9_375_000, 0.4, 100_000).hot);
        assert!(!sampled(9_375_000, 1.0, 100_000).hot);
    }

    #[test]
    fn a_link_is_hot_since_the_interval_before_the_first_hot_one_ended() {
        let since = |hot: &[u8]| {
            let mut links = Links::default();
            for (at_s, hot) in (1..).zip(hot) {
                add(&mut links, at_s, 24_000_000, 1.0, 60_000 * u64::from(*hot));
            }
            links.hot_since(link(), 3).map(|since| since.as_secs())
        };
        assert_eq!(since(&[0, 0, 0]), None);
        assert_eq!(since(&[1]), Some(1));
        assert_eq!(since(&[0, 0, 1, 1]), Some(2));
        assert_eq!(since(&[0, 0, 1, 0, 0, 1, 0]), Some(2));
        assert_eq!(since(&[1, 0, 0, 0, 1, 1]), Some(4));
    }

    #[test]
    fn a_link_is_unknown_after_two_and_a_half_of_its_own_intervals() {
        let age = Duration::from_millis(2500);
        let known = |at: &[u64], now_ms: u64| {
            let mut links = Links::default();
            at.iter()
                .for_each(|at_s| add(&mut links, *at_s, 24_000_000, 1.0, 60_000));
            let now = Duration::from_millis(now_ms);
            let newest = links.newest(link(), now, age).is_some();
            assert_eq!(links.hot(now, age).next().is_some(), newest);
            newest
        };
        for (at, until_ms) in [
            (&[1u64, 2, 3][..], 5_500),
            (&[10, 20, 30], 55_000),
            (&[30, 60, 90], 165_000),
            // One sample was lost; one alone says nothing of the next.
            (&[1, 2, 8], 10_500),
            (&[10], 12_500),
        ] {
            assert!(known(at, until_ms), "{at:?}");
            assert!(!known(at, until_ms + 1), "{at:?}");
        }
    }

    #[test]
    fn only_what_was_hot_is_remembered_for_long() {
        let mut links = Links::default();
        let (now, age) = (Duration::from_secs(300), Duration::from_secs(1000));
        for at_s in 1..100 {
            add(&mut links, at_s, 24_000_000, 1.0, 0);
        }
        assert_eq!(links.history(link()).count(), SAMPLES_QUIET);
        add(&mut links, 100, 24_000_000, 1.0, 60_000);
        assert_eq!(links.hot(now, age).collect::<Vec<_>>(), [link()]);
        for at_s in 101..160 {
            add(&mut links, at_s, 24_000_000, 1.0, 0);
        }
        assert_eq!(links.history(link()).count(), SAMPLES_QUIET + 60);
        assert_eq!(links.hot(now, age).count(), 0);
        for at_s in 160..400 {
            add(&mut links, at_s, 24_000_000, 1.0, 0);
        }
        assert_eq!(links.history(link()).count(), SAMPLES_QUIET);
    }

    #[test]
    fn busy_is_not_hot_without_pressure() {
        assert!(!sampled(23_000_000, 1.0, 1_500).hot);
        assert!(sampled(23_000_000, 1.0, 60_000).hot);
    }
}
