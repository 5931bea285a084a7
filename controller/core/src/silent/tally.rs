//! What was sent and went wrong lately, in windows that end together.

use crate::io::age_max;
use crate::keep::keep;
use std::time::Duration;

/// Retransmissions are added up over two of these, the newer one unfinished; over longer ones where samples come more
/// seldom than each ten seconds, so that there is one in each.
pub(super) const WINDOW: Duration = Duration::from_secs(15);
/// What lost nothing for so long loses no longer: two looks.
pub(super) const LASTS: Duration = Duration::from_secs(10);

/// Packets sent, and sent again, in the finished window and in the one under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Length of the windows, and number of the one under way.
    length: Duration,
    window: u64,
    now: (u64, u64),
    before: (u64, u64),
    /// Until when it counts as lossy.
    lossy_until: Option<Duration>,
}

keep!(struct Tally { length, window, now, before, lossy_until });

impl Tally {
    /// Takes packets sent, and sent again, of a sample; `interval` is that of its node.
    pub fn add(&mut self, (sent, bad): (u64, u64), interval: Duration, at: Duration) {
        // Samples are never quite on time, and a length that changes begins anew.
        let seconds = (interval + Duration::from_millis(500)).as_secs();
        let length = WINDOW.max(Duration::from_secs(seconds * 3 / 2));
        if length != self.length {
            *self = Tally {
                length,
                ..Tally::default()
            };
        }
        let window = self.number(at);
        if window != self.window {
            let next = window == self.window + 1;
            self.before = if next { self.now } else { (0, 0) };
            (self.window, self.now) = (window, (0, 0));
        }
        self.now.0 = self.now.0.saturating_add(sent);
        self.now.1 = self.now.1.saturating_add(bad);
        if bad > 0 {
            self.lossy_until = Some(at.saturating_add(age_max(LASTS, interval)));
        }
    }

    fn number(&self, at: Duration) -> u64 {
        at.as_secs() / self.length.as_secs().max(1)
    }

    /// Whether something was bad in the last [`LASTS`].
    pub(super) fn is_lossy(&self, now: Duration) -> bool {
        self.lossy_until.is_some_and(|until| now <= until)
    }

    /// Of both windows; nothing if it is older than they are.
    #[must_use]
    pub fn total(&self, at: Duration) -> (u64, u64) {
        if self.number(at) > self.window + 1 {
            return (0, 0);
        }
        let sum = (
            self.now.0.saturating_add(self.before.0),
            self.now.1.saturating_add(self.before.1),
        );
        (sum.0.max(sum.1), sum.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_holds_two_windows() {
        let at = Duration::from_secs;
        let mut tally = Tally::default();
        let second = at(1);
        tally.add((100, 1), second, at(1));
        tally.add((100, 2), second, at(16));
        assert_eq!(tally.total(at(17)), (200, 3));
        assert_eq!(tally.total(at(31)), (200, 3));
        assert_eq!(tally.total(at(46)), (0, 0));
        tally.add((7, 0), second, at(31));
        assert_eq!(tally.total(at(31)), (107, 2));
        tally.add((5, 9), second, at(300));
        assert_eq!(
            tally.total(at(300)),
            (9, 9),
            "more sent again than sent is all of it"
        );
    }

    #[test]
    fn samples_that_are_not_quite_on_time_add_up() {
        let mut tally = Tally::default();
        let mut at = Duration::ZERO;
        for n in 0..20u64 {
            let interval = Duration::from_millis(30_000 + n % 3 * 4 - 4);
            at += interval;
            tally.add((100, 1), interval, at);
            assert!(n < 2 || tally.total(at).0 >= 200, "sample {n}");
        }
    }

    #[test]
    fn samples_that_come_seldom_have_a_window_each_and_last_until_the_next() {
        let at = Duration::from_secs;
        let interval = at(30);
        let mut tally = Tally::default();
        for n in 1..20u64 {
            tally.add((100, u64::from(n >= 10)), interval, at(n * 30));
            let (sent, _) = tally.total(at(n * 30 + 29));
            assert!(sent >= 100, "sample {n}: {sent}");
            assert_eq!(tally.is_lossy(at(n * 30 + 29)), n >= 10);
        }
        assert!(!tally.is_lossy(at(19 * 30 + 80)));
    }
}
