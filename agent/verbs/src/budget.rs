//! What pings may take: of a link, and of all links of a node together.

use crate::bucket::Bucket;
use crate::packet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weir_verbs_protocol::PINGS_PER_SECOND_MAX;

/// A packet on the wire: preamble, Ethernet, IPv6, UDP, BTH, DETH, the packet, ICRC, FCS, gap.
const WIRE_BITS: u64 = 8 * (8 + 14 + 40 + 8 + 12 + 8 + packet::SIZE as u64 + 4 + 4 + 12);
/// Share of a link that pings may take: one in so many.
const LINK_SHARE: u64 = 1000;
/// Assumed of a port that does not tell its rate.
const RATE_UNKNOWN_BPS: u64 = 1_000_000_000;
/// Pings a second that a link may carry.
#[must_use]
pub fn allowance(rate_bps: Option<u64>) -> u32 {
    let bits = rate_bps.unwrap_or(RATE_UNKNOWN_BPS) / LINK_SHARE;
    // An answer is two packets; a ping and what it brings forth leave no more than that on either side.
    let packets = bits / (2 * WIRE_BITS);
    u32::try_from(packets)
        .unwrap_or(u32::MAX)
        .min(PINGS_PER_SECOND_MAX)
}

/// What all ports of this process share.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Own pings.
    pings: Arc<Mutex<Bucket>>,
    /// Answers to pings of others.
    answers: Arc<Mutex<Bucket>>,
}

impl Budget {
    /// At most [`PINGS_PER_SECOND_MAX`] of each.
    #[must_use]
    pub fn new(now: Duration) -> Budget {
        let full = || Arc::new(Mutex::new(Bucket::new(PINGS_PER_SECOND_MAX, now)));
        Budget {
            pings: full(),
            answers: full(),
        }
    }

    /// The rate of own pings, as ordered.
    pub fn set_pings(&self, per_second: u32, now: Duration) {
        let mut pings = self.pings.lock().unwrap_or_else(PoisonError::into_inner);
        pings.set_rate(per_second.min(PINGS_PER_SECOND_MAX), now);
    }

    /// Whether one more ping may leave.
    #[must_use]
    pub fn take_ping(&self, now: Duration) -> bool {
        take(&self.pings, now)
    }

    /// Whether one more ping of others may be answered.
    #[must_use]
    pub fn take_answer(&self, now: Duration) -> bool {
        take(&self.answers, now)
    }
}

fn take(bucket: &Mutex<Bucket>, now: Duration) -> bool {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    bucket.take(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_carries_more_than_a_thousandth_in_pings() {
        for rate in [1_000_000, 2_500_000_000, 10_000_000_000, 400_000_000_000] {
            let packets = u64::from(allowance(Some(rate)));
            assert!(packets * 2 * WIRE_BITS <= rate / 1000, "{rate}");
            assert!(packets <= 10_000);
        }
        assert_eq!(allowance(Some(400_000_000_000)), 10_000);
        assert!(allowance(None) > 100);
    }

    #[test]
    fn no_order_raises_the_ceiling_and_all_ports_share_it() {
        let budget = Budget::new(Duration::ZERO);
        budget.set_pings(u32::MAX, Duration::ZERO);
        let other = budget.clone();
        let mut sent = 0;
        for us in 0..2_000_000_u64 {
            let now = Duration::from_micros(us);
            sent += u64::from(budget.take_ping(now)) + u64::from(other.take_ping(now));
        }
        assert!((19_990..=20_008).contains(&sent), "{sent}");
    }
}
