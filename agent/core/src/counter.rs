//! What two readings of a counter mean.

use std::time::Duration;

/// Two readings further apart than this are a gap: a mean over it would say nothing.
pub const GAP: Duration = Duration::from_secs(60);

/// How a counter behaves at its upper end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Starts again at zero.
    Wraps,
    /// Sticks at its maximum (IBA port counters).
    Saturates,
}

/// What a reading means in the light of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// Nothing to compare with.
    First,
    /// The counter rose (or stood) by `delta` in `elapsed`.
    Delta { delta: u64, elapsed: Duration },
    /// It fell: the device or driver was reset. No rate over this interval.
    Reset,
    /// Too long since the last reading.
    Gap,
    /// It stands at its maximum: the true value is unknown.
    Saturated,
    /// The clock did not advance, or the value does not fit the counter's width.
    Implausible,
}

impl Observation {
    /// Returns units per second; `None` where no rate can be told.
    #[must_use]
    pub fn rate(self) -> Option<f64> {
        match self {
            Observation::Delta { delta, elapsed } if !elapsed.is_zero() => {
                Some(delta as f64 / elapsed.as_secs_f64())
            }
            Observation::Delta { .. }
            | Observation::First
            | Observation::Reset
            | Observation::Gap
            | Observation::Saturated
            | Observation::Implausible => None,
        }
    }
}

/// A counter of 1 to 64 bits.
#[derive(Debug, Clone)]
pub struct Counter {
    max: u64,
    overflow: Overflow,
    last: Option<(u64, Duration)>,
}

impl Counter {
    /// `bits` in 1..=64.
    #[must_use]
    pub fn new(bits: u32, overflow: Overflow) -> Counter {
        let max = if bits >= 64 {
            u64::MAX
        } else {
            (1 << bits.max(1)) - 1
        };
        Counter {
            max,
            overflow,
            last: None,
        }
    }

    /// Takes a reading at the monotonic time `now`.
    ///
    /// A fall from the top quarter of the range to the bottom quarter is a wrap, any other fall a
    /// reset; a 64-bit counter never wraps in the life of a machine.
    pub fn observe(&mut self, raw: u64, now: Duration) -> Observation {
        if raw > self.max {
            return Observation::Implausible;
        }
        let last = self.last.replace((raw, now));
        if self.overflow == Overflow::Saturates && raw == self.max {
            return Observation::Saturated;
        }
        let Some((before, then)) = last else {
            return Observation::First;
        };
        let Some(elapsed) = now.checked_sub(then).filter(|e| !e.is_zero()) else {
            return Observation::Implausible;
        };
        if elapsed > GAP {
            return Observation::Gap;
        }
        let quarter = self.max / 4;
        let wrapped = self.overflow == Overflow::Wraps
            && self.max < u64::MAX
            && before > self.max - quarter
            && raw < quarter;
        match raw.checked_sub(before) {
            Some(delta) => Observation::Delta { delta, elapsed },
            None if wrapped => Observation::Delta {
                delta: self.max - before + 1 + raw,
                elapsed,
            },
            None => Observation::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn check(bits: u32, overflow: Overflow, readings: &[(u64, u64)], expected: Observation) {
        let mut counter = Counter::new(bits, overflow);
        let mut last = Observation::First;
        for (raw, at_s) in readings {
            last = counter.observe(*raw, Duration::from_secs(*at_s));
        }
        assert_eq!(last, expected);
    }

    #[test]
    fn a_32_bit_counter_wraps() {
        check(
            32,
            Overflow::Wraps,
            &[(u64::from(u32::MAX) - 9, 1), (10, 2)],
            Observation::Delta {
                delta: 20,
                elapsed: S,
            },
        );
    }

    #[test]
    fn a_fall_from_the_middle_is_a_reset() {
        check(
            32,
            Overflow::Wraps,
            &[(1 << 31, 1), (10, 2)],
            Observation::Reset,
        );
        check(
            64,
            Overflow::Wraps,
            &[(u64::MAX, 1), (10, 2)],
            Observation::Reset,
        );
    }

    #[test]
    fn a_pinned_counter_is_saturated_and_not_at_rest() {
        check(
            16,
            Overflow::Saturates,
            &[(65_535, 1), (65_535, 2)],
            Observation::Saturated,
        );
    }

    #[test]
    fn a_clock_that_stands_or_jumps_back_gives_no_rate() {
        check(
            64,
            Overflow::Wraps,
            &[(1, 5), (2, 5)],
            Observation::Implausible,
        );
        check(
            64,
            Overflow::Wraps,
            &[(1, 5), (2, 4)],
            Observation::Implausible,
        );
    }

    #[test]
    fn a_long_silence_is_a_gap() {
        check(64, Overflow::Wraps, &[(1, 0), (2, 61)], Observation::Gap);
    }

    proptest! {
        #[test]
        fn no_reading_panics_and_no_delta_exceeds_the_width(bits in 1u32..=64, readings in prop::collection::vec((any::<u64>(), 0u64..200), 0..20)) {
            let mut counter = Counter::new(bits, Overflow::Wraps);
            for (raw, at_s) in readings {
                if let Observation::Delta { delta, .. } = counter.observe(raw, Duration::from_secs(at_s)) {
                    prop_assert!(bits == 64 || delta < 1 << bits);
                }
            }
        }
    }
}
