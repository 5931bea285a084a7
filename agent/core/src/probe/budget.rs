//! How much may be sent: never more than a limit in any second, however time goes.
//!
//! A token bucket of depth `d` that refills with `r` a second lets less than `d + r` through in any
//! half-open second. With `r = limit - d + 1` that is the limit at most, not the limit and a burst.

use std::time::Duration;

/// Probes of one node in a second, whatever is configured: at 150 bytes on the wire 1.2 Mbit/s.
pub const PACKETS_PER_S_MAX: u32 = 1000;
/// All that a node sends because of probes takes at most one in so many of a link's bits.
pub const LINK_SHARE: u64 = 1000;

/// Why a packet is sent. Five packets have equal parts of [`LINK_SHARE`]: a UDP probe, its reply, a
/// ping over verbs, and the two that answer it. What own probes bring in takes three more such parts
/// of the other direction, which leaves two to the probes of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    UdpProbe,
    UdpReply,
    UdPing,
    /// Answer and delay, two packets.
    UdAnswer,
}

impl Purpose {
    pub const ALL: [Purpose; 4] = [
        Purpose::UdpProbe,
        Purpose::UdpReply,
        Purpose::UdPing,
        Purpose::UdAnswer,
    ];

    fn parts(self) -> u64 {
        match self {
            Purpose::UdpProbe | Purpose::UdpReply | Purpose::UdPing => 1,
            Purpose::UdAnswer => 2,
        }
    }

    /// Bytes of it that a link of this rate may carry in a second, on the wire; `None`: the rate is
    /// not known.
    #[must_use]
    pub fn bytes_per_s(self, link_bps: Option<u64>) -> Option<u64> {
        let all: u64 = Purpose::ALL.iter().map(|purpose| purpose.parts()).sum();
        link_bps.map(|bps| bps / 8 / LINK_SHARE / all * self.parts())
    }
}

/// How much of a second's limit may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burst {
    /// A tenth: what is sent is spread out, and a thread that wakes ten times a second sends all.
    Small,
    /// A quarter, which leaves three for the rest of the second: what comes in comes when others like.
    Large,
}

impl Burst {
    fn of(self, limit: u64) -> u64 {
        match self {
            Burst::Small => limit.div_ceil(10),
            Burst::Large => limit / 4,
        }
    }
}

/// Tokens are counted in billionths, so that a nanosecond's refill is a whole number.
const SCALE: u128 = 1_000_000_000;

/// Limits the sum of what is taken in any second.
#[derive(Debug, Clone)]
pub struct Bucket {
    depth: u128,
    rate: u128,
    level: u128,
    last: Duration,
    burst: Burst,
}

impl Bucket {
    /// A full bucket. At most `limit` in any second; one take is of `unit` at most, and where that
    /// is more than `limit` nothing is ever let through.
    #[must_use]
    pub fn new(limit: u64, unit: u64, burst: Burst, now: Duration) -> Bucket {
        let mut bucket = Bucket {
            depth: 0,
            rate: 0,
            level: 0,
            last: now,
            burst,
        };
        bucket.limit(limit, unit, now);
        bucket.level = bucket.depth;
        bucket
    }

    /// Another limit from now on. What was saved up is kept as far as the new limit allows, so that
    /// many changes give no more than one.
    pub fn limit(&mut self, limit: u64, unit: u64, now: Duration) {
        self.refill(now);
        let (depth, rate) = if limit < unit.max(1) {
            (0, 0)
        } else {
            let depth = unit.max(self.burst.of(limit));
            (depth, limit - depth + 1)
        };
        (self.depth, self.rate) = (u128::from(depth) * SCALE, u128::from(rate));
        self.level = self.level.min(self.depth);
    }

    /// A clock that stands or goes back refills nothing.
    fn refill(&mut self, now: Duration) {
        if let Some(elapsed) = now.checked_sub(self.last) {
            let gained = self.rate.saturating_mul(elapsed.as_nanos());
            self.level = self.level.saturating_add(gained).min(self.depth);
            self.last = now;
        }
    }

    /// Whether `amount` may be taken.
    pub fn holds(&mut self, amount: u64, now: Duration) -> bool {
        self.refill(now);
        self.level >= u128::from(amount) * SCALE
    }

    /// Takes what [`Self::holds`] allowed; true if it was there.
    pub fn take(&mut self, amount: u64, now: Duration) -> bool {
        let held = self.holds(amount, now);
        if held {
            self.level -= u128::from(amount) * SCALE;
        }
        held
    }

    /// When `amount` may be taken; `None`: never.
    #[must_use]
    pub fn due(&self, amount: u64) -> Option<Duration> {
        let wanted = u128::from(amount) * SCALE;
        if wanted > self.depth || self.rate == 0 {
            return None;
        }
        let nanos = wanted.saturating_sub(self.level).div_ceil(self.rate);
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(self.last + wait)
    }
}

/// Packets and bytes: both must allow.
#[derive(Debug, Clone)]
pub struct Budget {
    packets: Bucket,
    bytes: Bucket,
}

impl Budget {
    /// Packets in a second, and bytes on the wire in a second of packets of up to `unit` bytes.
    #[must_use]
    pub fn new(packets: u32, bytes: Option<u64>, unit: u32, burst: Burst, now: Duration) -> Budget {
        let (packets, bytes) = ceilings(packets, bytes, unit);
        Budget {
            packets: Bucket::new(packets, 1, burst, now),
            bytes: Bucket::new(bytes, u64::from(unit), burst, now),
        }
    }

    /// Other limits from now on; `bytes` of `None` leaves the packets' ceiling to speak for them.
    pub fn limit(&mut self, packets: u32, bytes: Option<u64>, unit: u32, now: Duration) {
        let (packets, bytes) = ceilings(packets, bytes, unit);
        self.packets.limit(packets, 1, now);
        self.bytes.limit(bytes, u64::from(unit), now);
    }

    /// Takes one packet of `bytes`; false if it may not be sent now.
    pub fn take(&mut self, bytes: u32, now: Duration) -> bool {
        self.bytes.holds(u64::from(bytes), now)
            && self.packets.take(1, now)
            && self.bytes.take(u64::from(bytes), now)
    }

    /// When a packet of `bytes` may be sent; `None`: never.
    #[must_use]
    pub fn due(&self, bytes: u32) -> Option<Duration> {
        Some(self.packets.due(1)?.max(self.bytes.due(bytes.into())?))
    }
}

fn ceilings(packets: u32, bytes: Option<u64>, unit: u32) -> (u64, u64) {
    let packets = packets.min(PACKETS_PER_S_MAX);
    let most = u64::from(PACKETS_PER_S_MAX) * u64::from(unit);
    (u64::from(packets), bytes.unwrap_or(most).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_link_too_slow_for_a_packet_a_second_gets_none() {
        let bytes = Purpose::UdpProbe.bytes_per_s(Some(5_000_000));
        let mut budget = Budget::new(1000, bytes, 150, Burst::Small, Duration::ZERO);
        assert_eq!(bytes, Some(125));
        assert!(!budget.take(150, 3600 * S));
        assert_eq!(budget.due(150), None);
    }

    #[test]
    fn the_full_rate_is_reached() {
        for limit in [1, 7, 100, 1000] {
            let mut budget = Budget::new(limit, None, 150, Burst::Small, Duration::ZERO);
            let steps = (1..=10_000u32).map(|ms| Duration::from_millis(ms.into()));
            let sent: usize = steps
                .map(|now| (0..20).filter(|_| budget.take(150, now)).count())
                .sum();
            let least = f64::from(limit) * 10.0 * 0.9 - 1.0;
            assert!(sent as f64 >= least, "{sent} of {limit} a second");
        }
    }

    #[test]
    fn after_the_wait_it_may_be_sent() {
        let mut budget = Budget::new(3, Some(1000), 150, Burst::Small, S);
        assert!(budget.take(150, S));
        let due = budget.due(150).unwrap();
        assert!(!budget.take(150, due.saturating_sub(Duration::from_nanos(1))));
        assert!(budget.take(150, due));
    }

    /// Takes as much as it can at each step, and looks at the worst second: packets and bytes.
    fn worst_second(steps: &[(i64, u8)], budgets: &mut [(Budget, u32)]) -> (u64, u64) {
        let mut now = 10_000_000_000i64;
        let mut sent: Vec<(i64, u64, u64)> = Vec::new();
        for (step, tries) in steps {
            now = (now + step).max(0);
            let at = Duration::from_nanos(now.unsigned_abs());
            let (mut packets, mut all_bytes) = (0, 0);
            for (budget, bytes) in budgets.iter_mut() {
                let count = (0..*tries).filter(|_| budget.take(*bytes, at)).count() as u64;
                packets += count;
                all_bytes += count * u64::from(*bytes);
            }
            // A moment at which the budget was not asked is none to it.
            if *tries > 0 {
                sent.push((now, packets, all_bytes));
            }
        }
        // Time as a clock that never goes back would tell it: how far it came.
        let mut high = i64::MIN;
        for (at, _, _) in &mut sent {
            high = high.max(*at);
            *at = high;
        }
        let worst = |of: fn(&(i64, u64, u64)) -> u64| -> u64 {
            let second = |from: i64| -> u64 {
                let within = |at: i64| at >= from && at - from < 1_000_000_000;
                sent.iter().filter(|x| within(x.0)).map(of).sum()
            };
            sent.iter().map(|x| second(x.0)).max().unwrap_or(0)
        };
        (worst(|x| x.1), worst(|x| x.2))
    }

    /// Times that stand, go on and go back, and how often something is sent at each.
    fn steps() -> impl Strategy<Value = Vec<(i64, u8)>> {
        let step = prop_oneof![Just(0), 0..2_000_000i64, -3_000_000_000..3_000_000_000i64];
        prop::collection::vec((step, any::<u8>()), 0..200)
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_the_limit(
            steps in steps(),
            packets in 0u32..3000,
            limit in prop::option::of(0u64..100_000),
            bytes in 64u32..1500,
            large: bool,
        ) {
            let burst = if large { Burst::Large } else { Burst::Small };
            let budget = Budget::new(packets, limit, bytes, burst, 10 * S);
            let (sent, sent_bytes) = worst_second(&steps, &mut [(budget, bytes)]);
            prop_assert!(sent <= u64::from(packets.min(PACKETS_PER_S_MAX)));
            prop_assert!(limit.is_none_or(|limit| sent_bytes <= limit), "{sent_bytes}");
        }

        /// Probes, replies, pings and answers of one link, each as greedy as it can be.
        #[test]
        fn no_second_has_more_than_a_thousandth_of_the_link_of_all_together(
            steps in steps(),
            link_bps in 0u64..1_000_000_000,
            bytes in prop::collection::vec(64u32..400, Purpose::ALL.len()),
        ) {
            let new = |(purpose, bytes): (Purpose, u32)| {
                let burst = match purpose {
                    Purpose::UdpProbe | Purpose::UdPing => Burst::Small,
                    Purpose::UdpReply | Purpose::UdAnswer => Burst::Large,
                };
                let limit = purpose.bytes_per_s(Some(link_bps));
                (Budget::new(u32::MAX, limit, bytes, burst, 10 * S), bytes)
            };
            let mut all: Vec<_> = Purpose::ALL.into_iter().zip(bytes).map(new).collect();
            let (_, sent) = worst_second(&steps, &mut all);
            prop_assert!(sent * 8 * 1000 <= link_bps, "{sent} of {link_bps}");
        }

        #[test]
        fn changing_the_limit_gives_no_extra(
            limits in prop::collection::vec(1u32..200, 1..100),
            step_ns in 0u64..20_000_000,
        ) {
            let highest = limits.iter().copied().max().unwrap_or(0);
            let mut budget = Budget::new(1, None, 100, Burst::Small, Duration::ZERO);
            let mut sent: Vec<(u64, u64)> = Vec::new();
            for (at, limit) in (0..).map(|n: u64| n * step_ns).zip(limits) {
                let now = Duration::from_nanos(at);
                budget.limit(limit, None, 100, now);
                let count = (0..300).filter(|_| budget.take(100, now)).count();
                sent.push((at, count as u64));
            }
            for (from, _) in &sent {
                let within = sent.iter().filter(|(at, _)| at >= from && at - from < 1_000_000_000);
                let sum: u64 = within.map(|x| x.1).sum();
                prop_assert!(sum <= u64::from(highest), "{sum} > {highest}");
            }
        }
    }
}
