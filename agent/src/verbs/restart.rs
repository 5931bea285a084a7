//! When a child that ended is started again. Pure.

use std::time::Duration;

const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MOST: Duration = Duration::from_secs(60);
/// A child that lived this long had started well: the next wait is the first again.
const LIVED_WELL: Duration = Duration::from_secs(60);

/// The waits between starts: each twice the one before, and up to half as long again by chance, so
/// that the nodes of a fleet that a bad library stops do not all start anew at once.
#[derive(Debug, Default)]
pub struct Restart {
    wait: Option<Duration>,
    /// The next start is not before.
    pub at: Duration,
}

impl Restart {
    /// The child ended at `now` after it lived so long, or did not start (zero). `chance` is any number.
    pub fn ended(&mut self, now: Duration, lived: Duration, chance: u64) {
        let wait = match self.wait {
            Some(wait) if lived < LIVED_WELL => wait.saturating_mul(2).min(WAIT_MOST),
            Some(_) | None => WAIT_FIRST,
        };
        self.wait = Some(wait);
        let half_ms = u64::try_from(wait.as_millis() / 2).unwrap_or(1).max(1);
        self.at = now
            .saturating_add(wait)
            .saturating_add(Duration::from_millis(chance % half_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_good_life() {
        let mut restart = Restart::default();
        let second = Duration::from_secs(1);
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                restart.ended(Duration::ZERO, second, 0);
                restart.at.as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        restart.ended(Duration::ZERO, 100 * second, 0);
        assert_eq!(restart.at, second);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_a_second_nor_longer_than_ninety(
            ends in prop::collection::vec((0_u64..200, any::<u64>()), 1..20),
        ) {
            let mut restart = Restart::default();
            for (lived, chance) in ends {
                restart.ended(Duration::from_secs(1000), Duration::from_secs(lived), chance);
                let wait = restart.at - Duration::from_secs(1000);
                prop_assert!((1..=90).contains(&wait.as_secs()), "{wait:?}");
            }
        }
    }
}
