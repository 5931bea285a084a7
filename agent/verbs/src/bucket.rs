//! How many packets may leave: a token bucket. Pure; time is given.

use std::time::Duration;

/// Never lets more than `rate` x time + [`Bucket::BURST`] pass.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: u32,
    /// Billionths of a token.
    nanotokens: u64,
    at: Duration,
}

const TOKEN: u64 = 1_000_000_000;

impl Bucket {
    /// Packets that may leave at once: pings are evenly spaced, late ones are not made up for.
    pub const BURST: u32 = 8;

    /// Full at the start.
    #[must_use]
    pub fn new(per_second: u32, now: Duration) -> Bucket {
        Bucket {
            per_second,
            nanotokens: u64::from(Self::BURST) * TOKEN,
            at: now,
        }
    }

    /// Changes the rate from `now` on. What was saved up stays, so that changing it often gains nothing.
    pub fn set_rate(&mut self, per_second: u32, now: Duration) {
        self.fill(now);
        self.per_second = per_second;
    }

    /// Takes one packet's worth, if there is one. A clock that goes back fills nothing.
    pub fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        match self.nanotokens.checked_sub(TOKEN) {
            Some(left) => {
                self.nanotokens = left;
                true
            }
            None => false,
        }
    }

    /// When the next packet may leave; `None`: never at this rate.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let missing = TOKEN.saturating_sub(self.nanotokens);
        if missing == 0 {
            return Some(self.at);
        }
        let rate = u64::from(self.per_second);
        let wait = missing.div_ceil((rate > 0).then_some(rate)?);
        Some(self.at.saturating_add(Duration::from_nanos(wait)))
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let full = u64::from(Self::BURST) * TOKEN;
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let gained = passed_ns.saturating_mul(u64::from(self.per_second));
        self.nanotokens = self.nanotokens.saturating_add(gained).min(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_of_nothing_lets_only_the_burst_pass() {
        let mut bucket = Bucket::new(0, Duration::ZERO);
        let passed = (0..1000)
            .filter(|s| bucket.take(Duration::from_secs(*s)))
            .count();
        assert_eq!(passed, 8);
        assert_eq!(bucket.next(), None);
    }

    #[test]
    fn what_it_says_of_the_next_packet_holds() {
        let mut bucket = Bucket::new(3, Duration::ZERO);
        while bucket.take(Duration::ZERO) {}
        let next = bucket.next().unwrap();
        assert!(!bucket.take(next - Duration::from_nanos(1)));
        assert!(bucket.take(next));
    }

    proptest! {
        #[test]
        fn no_window_ever_sees_more_than_its_rate_and_one_burst(
            rate in 0_u32..20_000,
            steps in prop::collection::vec((0_u64..2_000_000, 1_usize..40), 1..300),
        ) {
            let mut bucket = Bucket::new(rate, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut sent: Vec<Duration> = Vec::new();
            for (ns, tries) in steps {
                now += Duration::from_nanos(ns);
                for _ in 0..tries {
                    if bucket.take(now) {
                        sent.push(now);
                    }
                }
            }
            for (first, from) in sent.iter().enumerate() {
                for (count, to) in sent.iter().skip(first).enumerate() {
                    let allowed = (*to - *from).as_secs_f64() * f64::from(rate) + 8.0;
                    prop_assert!((count + 1) as f64 <= allowed + 1e-6);
                }
            }
        }

        #[test]
        fn changing_the_rate_gains_nothing(
            steps in prop::collection::vec((0_u64..50_000_000, 0_u32..10_001), 1..300),
        ) {
            let mut bucket = Bucket::new(10_000, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut sent = 0_u32;
            for (ns, rate) in steps {
                now += Duration::from_nanos(ns);
                bucket.set_rate(rate, now);
                while bucket.take(now) {
                    sent += 1;
                }
            }
            prop_assert!(f64::from(sent) <= now.as_secs_f64() * 10_000.0 + 8.0 + 1e-6);
        }
    }
}
