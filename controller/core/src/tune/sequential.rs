//! A sequential test of paired log ratios: sure or not, asked after every pair, for as long as one likes.
//!
//! The ratios of one trial are taken as normal with a mean and a variance that nobody knows. The evidence against
//! "the mean is `at`" is the likelihood ratio of the t statistic, mixed over effect sizes (mean over standard
//! deviation) that are normal with variance `EFFECT^2`; with n pairs, sum S and sum of squares V of the differences to
//! `at`,
//!
//! ```text
//!   e = (1 + n c)^(-1/2) * (1 - c S^2 / ((1 + n c) V))^(-n/2),   c = EFFECT^2
//! ```
//!
//! (the scale-invariant mixture of Lai 1976; Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for
//! Gaussian means with unknown variance", 2023). Under that mean it is a martingale that starts at 1, whatever the
//! variance, so by Ville's inequality it ever reaches 1/alpha with probability alpha at most: looking after each pair
//! costs nothing. A z test would need the variance, a t test with a fixed n cannot stop early.
//!
//! Cost: four numbers a test, some 20 flops a pair. Three pairs that agree decide at alpha = 0.05, one or two never do.

/// Standard deviation of the effect sizes that the test looks for: what is worth a change is several deviations away.
const EFFECT: f64 = 3.0;

/// Paired log ratios, candidate over incumbent: below 0 is faster.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pairs {
    /// How many.
    pub n: u32,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl Pairs {
    /// Adds a pair. One that is not a number is left out.
    pub fn add(&mut self, log_ratio: f64) {
        if log_ratio.is_finite() {
            self.n += 1;
            self.sum += log_ratio;
            self.squares += log_ratio * log_ratio;
        }
    }

    /// Mean log ratio. `None` before the first pair.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / f64::from(self.n))
    }

    /// Standard error of the mean. `None` before the second pair.
    #[must_use]
    pub fn error(&self) -> Option<f64> {
        let n = f64::from(self.n);
        (self.n > 1).then(|| {
            let spread = (self.squares - self.sum * self.sum / n).max(0.0) / (n - 1.0);
            (spread / n).sqrt()
        })
    }

    /// Evidence against a mean of `at`: 1 is none, 1/alpha refutes it at that level. Never below 0.
    #[must_use]
    pub fn evidence(&self, at: f64) -> f64 {
        let (n, c) = (f64::from(self.n), EFFECT * EFFECT);
        let sum = self.sum - n * at;
        let squares = self.squares - 2.0 * at * self.sum + n * at * at;
        // What is nothing but rounding is no difference.
        if squares <= 1e-18 * n.max(1.0) {
            return 1.0;
        }
        let share = (sum * sum / squares).clamp(0.0, n);
        let left = 1.0 - c * share / (1.0 + n * c);
        (1.0 + n * c).powf(-0.5) * left.powf(-n / 2.0)
    }

    /// Sure at level `alpha` that the mean is below `at`.
    #[must_use]
    pub fn surely_below(&self, at: f64, alpha: f64) -> bool {
        self.mean().is_some_and(|m| m < at) && self.evidence(at) * alpha >= 1.0
    }

    /// Sure at level `alpha` that the mean is above `at`.
    #[must_use]
    pub fn surely_above(&self, at: f64, alpha: f64) -> bool {
        self.mean().is_some_and(|m| m > at) && self.evidence(at) * alpha >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Uniform in 0..1, SplitMix64.
    fn unit(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(state: &mut u64) -> f64 {
        let (u, v) = (unit(state).max(1e-300), unit(state));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// How many of 4,000 runs of up to 60 pairs are ever sure that the mean is below 0.
    fn ever_sure(mut next: impl FnMut(&mut u64) -> f64, alpha: f64) -> u32 {
        let mut state = 1;
        (0..4000)
            .map(|_| {
                let mut pairs = Pairs::default();
                let sure = (0..60).any(|_| {
                    pairs.add(next(&mut state));
                    pairs.surely_below(0.0, alpha)
                });
                u32::from(sure)
            })
            .sum()
    }

    #[test]
    fn of_runs_without_a_difference_no_more_than_alpha_are_ever_taken_for_faster() {
        for (alpha, sigma) in [(0.05, 0.001), (0.05, 0.3), (0.2, 0.05)] {
            let wrong = ever_sure(|s| sigma * normal(s), alpha);
            // One side only, so half of alpha is what is expected at most; alpha is what is promised.
            assert!(
                f64::from(wrong) <= 4000.0 * alpha,
                "{alpha} {sigma}: {wrong}"
            );
            assert!(wrong > 0, "a test that never errs here tests nothing");
        }
        let slower = ever_sure(|s| 0.02 + 0.05 * normal(s), 0.05);
        assert!(slower <= 20, "{slower}");
        // Not normal at all: uniform, and one iteration in ten that something delayed by half.
        let uniform = ever_sure(|s| unit(s) - 0.5, 0.05);
        assert!(uniform <= 200, "{uniform}");
        let outliers = ever_sure(
            |s| {
                let late = |s: &mut u64| if unit(s) < 0.1 { 0.4 } else { 0.0 };
                0.01 * normal(s) + late(s) - late(s)
            },
            0.05,
        );
        assert!(outliers <= 200, "{outliers}");
    }

    #[test]
    fn a_gain_of_five_percent_in_noise_of_two_is_found_soon() {
        let (mut state, mut most) = (7, 0);
        for _ in 0..200 {
            let mut pairs = Pairs::default();
            while !pairs.surely_below(0.0, 0.05) {
                pairs.add(-0.05 + 0.02 * normal(&mut state));
            }
            most = most.max(pairs.n);
        }
        assert!((3..25).contains(&most), "{most}");
    }

    #[test]
    fn one_or_two_pairs_never_decide_and_three_that_agree_do() {
        let mut pairs = Pairs::default();
        for n in 1..=3 {
            pairs.add(-0.1);
            assert_eq!(pairs.surely_below(0.0, 0.05), n == 3, "{n}");
        }
        assert!(!pairs.surely_above(0.0, 0.05));
    }

    proptest! {
        #[test]
        fn evidence_is_a_number_whatever_comes(xs in proptest::collection::vec(any::<f64>(), 0..40), at in -1.0f64..1.0) {
            let mut pairs = Pairs::default();
            for x in xs {
                pairs.add(x.clamp(-50.0, 50.0));
            }
            prop_assert!(pairs.evidence(at) >= 0.0);
            prop_assert!(!(pairs.surely_below(at, 0.05) && pairs.surely_above(at, 0.05)));
        }
    }
}
