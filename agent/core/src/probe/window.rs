//! What was measured of one path in one window, and in all.

use std::time::Duration;

/// Values kept of one window. Of more, a uniform choice is kept: p50 and p99 are those of the choice.
pub const SAMPLES_MAX: usize = 256;

/// Four figures of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    pub min: Duration,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// Times under collection.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    kept: Vec<Duration>,
    seen: u64,
    ends: Option<(Duration, Duration)>,
}

impl Samples {
    /// Adds one; `random` chooses which to forget when there are too many (algorithm R).
    pub fn add(&mut self, value: Duration, random: u64) {
        let (min, max) = self.ends.unwrap_or((value, value));
        self.ends = Some((min.min(value), max.max(value)));
        self.seen += 1;
        if self.kept.len() < SAMPLES_MAX {
            self.kept.push(value);
        } else if let Ok(place) = usize::try_from(random % self.seen)
            && let Some(kept) = self.kept.get_mut(place)
        {
            *kept = value;
        }
    }

    /// Takes what another path saw.
    pub fn extend(&mut self, other: &Samples) {
        self.kept.extend(&other.kept);
        self.seen += other.seen;
        self.ends = match (self.ends, other.ends) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (ends, None) | (None, ends) => ends,
        };
    }

    /// `None` where nothing was seen. A quantile is the smallest value that so large a share does
    /// not exceed.
    #[must_use]
    pub fn quantiles(&self) -> Option<Quantiles> {
        let mut sorted = self.kept.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied()
        };
        let (min, max) = self.ends?;
        Some(Quantiles {
            min,
            p50: at(50)?,
            p99: at(99)?,
            max,
        })
    }
}

/// Probes whose outcome is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Answered or lost.
    pub sent: u64,
    pub lost: u64,
}

impl Count {
    /// Share that was lost, in 0..=1; `None` if there was none to lose.
    #[must_use]
    pub fn loss(self) -> Option<f64> {
        (self.sent > 0).then(|| self.lost as f64 / self.sent as f64)
    }

    pub(super) fn add(&mut self, lost: bool) {
        self.sent += 1;
        self.lost += u64::from(lost);
    }
}

/// One finished window of a path, or of all paths to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub count: Count,
    /// Without the responder's delay; `None` if nothing came back with usable stamps.
    pub rtt: Option<Quantiles>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn the_quantiles_of_a_hundred() {
        let mut samples = Samples::default();
        (1..=100).rev().for_each(|n| samples.add(us(n), 0));
        let quantiles = samples.quantiles().unwrap();
        let expected = (us(1), us(50), us(99), us(100));
        let Quantiles { min, p50, p99, max } = quantiles;
        assert_eq!((min, p50, p99, max), expected);
    }

    #[test]
    fn nothing_seen_has_no_figures() {
        assert_eq!(Samples::default().quantiles(), None);
        assert_eq!(Count::default().loss(), None);
    }

    proptest! {
        #[test]
        fn the_figures_are_in_order_and_memory_is_bounded(values in prop::collection::vec((0u64..1_000_000, any::<u64>()), 1..2000)) {
            let mut samples = Samples::default();
            for (value, random) in &values {
                samples.add(us(*value), *random);
            }
            let q = samples.quantiles().unwrap();
            prop_assert!(q.min <= q.p50 && q.p50 <= q.p99 && q.p99 <= q.max);
            prop_assert_eq!(Some(q.max), values.iter().map(|v| us(v.0)).max());
            prop_assert_eq!(Some(q.min), values.iter().map(|v| us(v.0)).min());
            prop_assert!(samples.kept.len() <= SAMPLES_MAX);
        }
    }
}
