//! From samples to a state that lasts: N of M for gauges, a leaky bucket for counters.
//!
//! A gauge is bad or good, so the last samples are bits and N bad ones of the newest M raise it. What
//! a counter counts comes by chance: single bit errors on a link within its limit, one every some
//! minutes, must never add up to a fault, and a link ten times over it must be one soon. A bucket that
//! takes each error, loses the tolerated rate and is full at `burst` is the CUSUM test for that (Page,
//! Biometrika 1954): at half of the tolerated rate the chance that Poisson errors ever fill 20 is about
//! exp(-25). No sample adds more than a part of it, so that one glitch is no fault however large it is.
//!
//! Cold start: empty. Missing samples change nothing. Recovery is by time, in [`super::alarm`].

use crate::keep::keep;
use std::time::Duration;

/// Whether the last 32 samples were bad, the newest in the lowest bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History(u32);

keep!(struct History(_));

impl History {
    /// No sample was bad.
    pub const CLEAN: History = History(0);
    /// Longest window, in samples.
    pub const MAX: u32 = u32::BITS;

    /// Takes a sample; returns how many of the newest `window` (1 to 32) are bad.
    #[inline]
    pub fn push(&mut self, bad: bool, window: u32) -> u32 {
        self.0 = self.0 << 1 | u32::from(bad);
        (self.0 & (u32::MAX >> (Self::MAX - window))).count_ones()
    }

    /// Whether none of the last samples was bad.
    #[inline]
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.0 == 0
    }
}

/// What a counter may count before it is a fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Tolerated in any second.
    pub per_s: f32,
    /// Tolerated for each unit of another signal, where that is more.
    pub share: f32,
    /// Beyond what is tolerated: a fault.
    pub burst: f32,
    /// Most that one second adds.
    pub each_s: f32,
}

/// What was counted beyond what is tolerated.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bucket(f32);

keep!(struct Bucket(_));

impl Bucket {
    pub const EMPTY: Bucket = Bucket(0.0);

    /// Takes a rise over an interval with `of` of the other signal; true while it is full.
    #[inline]
    pub fn add(&mut self, rise: u64, of: f32, elapsed: Duration, budget: &Budget) -> bool {
        if rise == 0 && self.0 == 0.0 {
            return false;
        }
        let seconds = elapsed.as_secs_f32();
        let tolerated = (budget.per_s * seconds).max(budget.share * of);
        // A long sample may add more than a short one, but never fill the bucket alone, unless a
        // second may.
        let most = (budget.each_s * seconds).min(budget.each_s.max(budget.burst / 2.0));
        let level = self.0 + (rise as f32).min(most + tolerated) - tolerated;
        self.0 = level.clamp(0.0, 2.0 * budget.burst);
        self.0 >= budget.burst
    }

    /// What is in it.
    #[must_use]
    pub fn level(self) -> f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BUDGET: Budget = Budget {
        per_s: 0.4,
        share: 0.0,
        burst: 20.0,
        each_s: 4.0,
    };

    #[test]
    fn n_of_m_counts_the_newest() {
        let mut history = History::default();
        assert_eq!(history.push(true, 3), 1);
        assert_eq!(history.push(false, 3), 1);
        assert_eq!(history.push(true, 3), 2);
        assert_eq!(history.push(false, 3), 1, "the first is out of the window");
        assert_eq!(history.push(true, 32), 3);
    }

    #[test]
    fn a_glitch_however_large_fills_no_bucket_and_errors_that_go_on_do() {
        let mut bucket = Bucket::default();
        assert!(!bucket.add(1_000_000, 0.0, SECOND, &BUDGET));
        for _ in 0..3 {
            assert!(!bucket.add(10, 0.0, SECOND, &BUDGET));
        }
        assert!(
            bucket.add(10, 0.0, SECOND, &BUDGET),
            "the fifth second in a row"
        );
    }

    #[test]
    fn samples_of_ten_seconds_and_of_a_tenth_find_the_same() {
        for (millis, steps) in [(100u64, 60), (10_000, 2)] {
            let mut bucket = Bucket::default();
            let step = Duration::from_millis(millis);
            let full = (0..steps).any(|_| bucket.add(millis, 0.0, step, &BUDGET));
            assert!(full, "{millis} ms");
        }
    }

    proptest! {
        #[test]
        fn a_rate_within_the_budget_never_fills_it(gaps in proptest::collection::vec(3u64..1000, 1..300)) {
            // Errors at least three seconds apart: a third of a second each, of 0.4 tolerated.
            let mut bucket = Bucket::default();
            for gap in gaps {
                for _ in 1..gap {
                    bucket.add(0, 0.0, SECOND, &BUDGET);
                }
                prop_assert!(!bucket.add(1, 0.0, SECOND, &BUDGET));
                prop_assert!(bucket.level() < 2.0);
            }
        }

        #[test]
        fn no_sequence_leaves_the_bounds(samples in proptest::collection::vec((any::<u64>(), 0f32..1e30, 0u64..100_000), 0..100)) {
            let mut bucket = Bucket::default();
            for (rise, of, millis) in samples {
                bucket.add(rise, of, Duration::from_millis(millis), &BUDGET);
                prop_assert!((0.0..=2.0 * BUDGET.burst).contains(&bucket.level()));
            }
        }
    }
}
