//! What each directed link did in its last sample intervals.

use crate::config::Hotspot;
use crate::ids::PortId;
use crate::io::PortSample;
use crate::topology::Topology;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Samples kept for a link: two minutes at one a second, enough for `weir explain` and small.
pub const SAMPLES_MAX: usize = 120;

/// Directed links held; 100,000 GPUs with three switch tiers have about 600,000.
pub const LINKS_MAX: usize = 1 << 20;

/// A shorter busy share than this says nothing about the rest of the interval.
const BUSY_MIN: f64 = 0.2;

/// One interval of one link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkSample {
    pub at: Duration,
    /// Bits per second, mean over the interval.
    pub tx_bps: f64,
    /// Share of capacity, mean over the interval; `None` if the capacity is unknown.
    pub utilisation: Option<f64>,
    /// Share of capacity while a collective was on the wire; at least `utilisation`.
    pub utilisation_busy: Option<f64>,
    pub queue_bytes_max: Option<u64>,
    pub drops_per_s: Option<f64>,
    pub hot: bool,
}

/// When a sample was taken, and over what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub at: Duration,
    pub elapsed: Duration,
    /// Share of the interval in which a collective may have run, 0 to 1.
    pub busy: f64,
}

/// History of all links.
#[derive(Debug, Clone, Default)]
pub struct Links {
    samples: BTreeMap<PortId, VecDeque<LinkSample>>,
    refused: u64,
}

impl Links {
    /// Adds one interval.
    pub fn sampled(
        &mut self,
        port: &PortId,
        sample: &PortSample,
        interval: &Interval,
        topology: &Topology,
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
        let capacity = topology.capacity_bps(port).filter(|c| *c > 0.0);
        let utilisation = capacity.map(|c| tx_bps / c);
        let utilisation_busy = utilisation.map(|u| (u / busy.clamp(BUSY_MIN, 1.0)).min(u.max(1.0)));
        let drops_per_s = sample.drops.map(|d| d as f64 / seconds);
        let queue_delay_s = capacity
            .zip(sample.queue_bytes_max)
            .map(|(c, q)| q as f64 * 8.0 / c);
        let pressed = queue_delay_s.is_some_and(|d| d >= limits.queue_delay_hot.as_secs_f64())
            || drops_per_s.is_some_and(|d| d > 0.0);
        // A queue proves pressure. Where nobody sees the queue, only a link that is full all the time counts.
        let unseen = sample.queue_bytes_max.is_none() && sample.drops.is_none();
        let hot = (pressed && utilisation_busy.is_some_and(|u| u >= limits.utilisation_hot))
            || (unseen && utilisation.is_some_and(|u| u >= limits.utilisation_full));
        if !self.samples.contains_key(port) && self.samples.len() >= LINKS_MAX {
            self.refused += 1;
            return;
        }
        let samples = self.samples.entry(port.clone()).or_default();
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(LinkSample {
            at,
            tx_bps,
            utilisation,
            utilisation_busy,
            queue_bytes_max: sample.queue_bytes_max,
            drops_per_s,
            hot,
        });
    }

    /// Newest interval of a link, unless it is older than `max_age`.
    #[must_use]
    pub fn newest(&self, port: &PortId, now: Duration, max_age: Duration) -> Option<&LinkSample> {
        let sample = self.samples.get(port)?.back()?;
        (now.saturating_sub(sample.at) <= max_age).then_some(sample)
    }

    /// Intervals held of a link, oldest first.
    pub fn history(&self, port: &PortId) -> impl DoubleEndedIterator<Item = &LinkSample> {
        self.samples.get(port).into_iter().flatten()
    }

    /// Whether at least `n` of the last `window` intervals were hot, the newest among them.
    #[must_use]
    pub fn hot_for(&self, port: &PortId, n: usize, window: usize) -> bool {
        let mut last = self.history(port).rev().take(window).map(|s| s.hot);
        let newest = self.history(port).next_back().is_some_and(|s| s.hot);
        newest && last.by_ref().filter(|h| *h).count() >= n
    }

    /// Since when a link is hot, with fewer than `window` other intervals between hot ones; `None` if
    /// it is not. Goes back as far as the history is kept.
    #[must_use]
    pub fn hot_since(&self, port: &PortId, window: usize) -> Option<Duration> {
        let (mut since, mut cold, mut newer_is_hot) = (None, 0, false);
        for sample in self.history(port).rev() {
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

    /// Links with at least one interval, in order.
    pub fn ports(&self) -> impl Iterator<Item = &PortId> {
        self.samples.keys()
    }

    /// Intervals refused because the table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::topology::{Cable, Plan};

    fn sampled(tx_bytes: u64, busy: f64, queue: u64) -> LinkSample {
        let port = PortId::new(&NodeId::new("l1"), "up1");
        let cable = Cable {
            a: port.clone(),
            b: PortId::parse("s1:down1").unwrap(),
            rate_bps: Some(200e6),
        };
        let topology = Topology::new(Plan {
            cables: vec![cable],
            ..Plan::default()
        });
        let sample = PortSample {
            port: "up1".into(),
            tx_bytes: Some(tx_bytes),
            queue_bytes_max: Some(queue),
            drops: Some(0),
            ecn_marked: None,
            up: Some(true),
        };
        let mut links = Links::default();
        let interval = Interval {
            at: Duration::ZERO,
            elapsed: Duration::from_secs(1),
            busy,
        };
        links.sampled(
            &port,
            &sample,
            &interval,
            &topology,
            &crate::Config::default().hotspot,
        );
        *links
            .newest(&port, Duration::ZERO, Duration::from_secs(1))
            .unwrap()
    }

    #[test]
    fn a_link_that_is_full_whenever_the_job_sends_is_hot() {
        // 37.5 % of the second's capacity, sent in the 40 % of it that a collective ran.
        assert!(sampled(9_375_000, 0.4, 100_000).hot);
        assert!(!sampled(9_375_000, 1.0, 100_000).hot);
    }

    #[test]
    fn a_link_is_hot_since_the_interval_before_the_first_hot_one_ended() {
        let port = PortId::new(&NodeId::new("l1"), "up1");
        let since = |hot: &[u8]| {
            let sample = |(n, hot): (u64, &u8)| LinkSample {
                at: Duration::from_secs(n),
                hot: *hot == 1,
                ..sampled(0, 1.0, 0)
            };
            let samples = (1..).zip(hot).map(sample).collect();
            let links = Links {
                samples: [(port.clone(), samples)].into(),
                refused: 0,
            };
            links.hot_since(&port, 3).map(|since| since.as_secs())
        };
        assert_eq!(since(&[0, 0, 0]), None);
        assert_eq!(since(&[1]), Some(1));
        assert_eq!(since(&[0, 0, 1, 1]), Some(2));
        assert_eq!(since(&[0, 0, 1, 0, 0, 1, 0]), Some(2));
        assert_eq!(since(&[1, 0, 0, 0, 1, 1]), Some(4));
    }

    #[test]
    fn busy_is_not_hot_without_pressure() {
        assert!(!sampled(23_000_000, 1.0, 1_500).hot);
        assert!(sampled(23_000_000, 1.0, 60_000).hot);
    }
}
