//! When a node's samples were taken, on the controller's clock.
//!
//! A sample that waits on its way is no news of the rank: by its arrival alone all that it tells would have
//! happened later. So arrival is set against the node's own monotonic clock, and the least difference of late is that of a
//! sample which did not wait (the minimum filter of NTP, RFC 5905 section 10). Its constant part, the fastest way, stays in; it
//! is the rank's usual start.
//!
//! Cold start, and after each break in the node's clock: the first sample's arrival. What was learnt from starts before a
//! break holds no more ([`Clock::breaks`]). Cost: a few additions a sample.

use crate::keep::keep;
use std::time::Duration;

/// The least difference is of the last one to two of these: longer than a node is held up, so short that clocks which
/// differ by 50 ppm move by 3 ms.
const SPAN: Duration = Duration::from_secs(30);

/// A sample that comes sooner than all of late by so many seconds shows that those waited. More than samples jitter.
const WAITED_S: f64 = 0.05;

/// One node's clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Arrival of the newest sample.
    pub arrived: Duration,
    /// The node's own time since the first sample, in seconds.
    own_s: f64,
    /// Least arrival less own time, in seconds: in the present span, and in the one before. `None` before any sample.
    least_s: [Option<f64>; 2],
    span_began: Duration,
    /// How often it began anew, or showed that all samples before had waited.
    pub breaks: u32,
}

keep!(struct Clock { arrived, own_s, least_s, span_began, breaks });

impl Clock {
    /// Takes a sample's arrival and the length of its interval by the node's clock (`None`: it has begun anew); returns when it was taken,
    /// never later than it arrived.
    pub fn taken(&mut self, elapsed: Option<Duration>, at: Duration) -> Duration {
        match elapsed {
            Some(elapsed) => self.own_s += elapsed.as_secs_f64(),
            None => {
                let breaks = self.breaks.saturating_add(1);
                *self = Clock {
                    span_began: at,
                    breaks,
                    ..Clock::default()
                };
            }
        }
        self.arrived = at;
        if at.saturating_sub(self.span_began) >= SPAN {
            self.span_began = at;
            self.least_s = [None, self.least_s[0]];
        }
        let apart = at.as_secs_f64() - self.own_s;
        let before = self.least_s.into_iter().flatten().reduce(f64::min);
        if before.is_some_and(|before| before - apart > WAITED_S) {
            self.breaks = self.breaks.saturating_add(1);
        }
        let present = self.least_s[0].map_or(apart, |l| l.min(apart));
        self.least_s[0] = Some(present);
        let least = self.least_s[1].map_or(present, |l| l.min(present));
        Duration::try_from_secs_f64(self.own_s + least).map_or(at, |taken| taken.min(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sample_that_waited_was_taken_when_it_was() {
        let mut clock = Clock::default();
        for k in 0..200u32 {
            let due = SECOND * (k + 10);
            let late = if (20..40).contains(&(k % 90)) {
                SECOND * 2
            } else {
                Duration::ZERO
            };
            let taken = clock.taken(Some(SECOND), due + late);
            assert!(
                taken.abs_diff(due) < Duration::from_micros(1),
                "{k}: {taken:?}"
            );
        }
    }

    #[test]
    fn the_first_sample_that_did_not_wait_voids_what_was_learnt_before() {
        let mut clock = Clock::default();
        let mut breaks = Vec::new();
        for k in 0..40u32 {
            let waits = if k < 20 { SECOND * 2 } else { Duration::ZERO };
            clock.taken((k > 0).then_some(SECOND), SECOND * (k + 10) + waits);
            breaks.push(clock.breaks);
        }
        assert_eq!(
            (breaks[0], breaks[19], breaks[20], breaks[39]),
            (1, 1, 2, 2)
        );
    }

    #[test]
    fn a_break_and_a_clock_that_runs_slow_cost_milliseconds() {
        let mut clock = Clock::default();
        for k in 0..1000u32 {
            let elapsed = (k % 300 != 0).then(|| SECOND.mul_f64(1.0 - 5e-5));
            let due = SECOND * (k + 10);
            let taken = clock.taken(elapsed, due);
            assert!(
                taken.abs_diff(due) < Duration::from_millis(4),
                "{k}: {taken:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_was_taken_after_it_arrived(samples in prop::collection::vec((any::<u64>(), prop::option::of(any::<u64>())), 0..200)) {
            let mut clock = Clock::default();
            for (at, elapsed) in samples {
                let at = Duration::from_micros(at);
                prop_assert!(clock.taken(elapsed.map(Duration::from_micros), at) <= at);
            }
        }
    }
}
