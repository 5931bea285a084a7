//! Simulated time: whole picoseconds, so that 1 byte at 100 or 400 Gb/s is exact.

use crate::num::whole;

/// Picoseconds since the start of the run. 2^64 of them are 213 days.
pub type Time = u64;

/// One nanosecond.
pub const NS: Time = 1_000;
/// One microsecond.
pub const US: Time = 1_000_000;
/// One millisecond.
pub const MS: Time = 1_000_000_000;

/// Picoseconds of so many microseconds.
#[must_use]
pub fn from_us(us: f64) -> Time {
    whole((us * 1e6).round())
}

/// Microseconds of so many picoseconds.
#[must_use]
pub fn to_us(t: Time) -> f64 {
    t as f64 / 1e6
}

/// How long bytes take on a wire: a rate, kept as picoseconds per byte in fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Picoseconds per byte, times 2^16.
    per_byte: u64,
    /// Serialisation times are cut down to a multiple of this. 1 is exact.
    quantum: Time,
}

impl Wire {
    /// A wire of so many bits per second. A simulator with a clock of nanoseconds has `quantum` [`NS`].
    #[must_use]
    pub fn new(bits_per_s: f64, quantum: Time) -> Self {
        let per_byte = whole((8e12 * 65536.0 / bits_per_s.max(1.0)).round());
        Self {
            per_byte,
            quantum: quantum.max(1),
        }
    }

    /// Serialisation time of so many bytes.
    #[must_use]
    pub fn time(self, bytes: u64) -> Time {
        let exact = (bytes * self.per_byte) >> 16;
        if self.quantum == 1 {
            exact
        } else {
            exact - exact % self.quantum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_exact_at_the_usual_rates() {
        assert_eq!(Wire::new(100e9, 1).time(1048), 83_840);
        assert_eq!(Wire::new(400e9, 1).time(1048), 20_960);
        assert_eq!(Wire::new(25e9, 1).time(1048), 335_360);
        assert_eq!(Wire::new(100e9, NS).time(1048), 83_000);
        assert_eq!(Wire::new(100e9, NS).time(60), 4_000);
    }
}
