//! A histogram of durations with a relative error of 3 %, of fixed size.

/// Sub-buckets to a power of two.
const SUB: u64 = 32;

/// Counts of values by size.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        let at = Self::bucket(value);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.total += 1;
    }

    /// Values added.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.total
    }

    /// True when nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The value below which a share (0.0..=1.0) of all values lies. `None` when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let want =
            crate::num::whole((self.total as f64 * share).ceil()).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= want {
                return Some(Self::value(at as u64));
            }
        }
        None
    }

    fn bucket(value: u64) -> usize {
        if value < SUB {
            return crate::num::position(value);
        }
        let power = u64::from(value.ilog2()) - 5;
        crate::num::position(SUB + power * SUB + ((value >> power) - SUB))
    }

    /// Middle of a bucket.
    fn value(at: u64) -> u64 {
        if at < SUB {
            return at;
        }
        let power = (at - SUB) / SUB;
        let low = (SUB + (at - SUB) % SUB) << power;
        low + (1 << power) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut h = Histogram::default();
        for v in 1..=100_000u64 {
            h.add(v * 997);
        }
        for share in [0.01, 0.5, 0.99] {
            let want = 100_000.0 * share * 997.0;
            let got = h.quantile(share).unwrap() as f64;
            assert!((got / want - 1.0).abs() < 0.03, "{share}: {got} {want}");
        }
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
