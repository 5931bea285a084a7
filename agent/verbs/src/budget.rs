//! What pings may take of a link, and of all links of a node together.

use crate::packet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weir_agent_core::probe::budget::{Bucket, Burst, PACKETS_PER_S_MAX};

/// A packet on the wire: preamble, Ethernet, IPv6, UDP, BTH, DETH, the packet, ICRC, FCS, gap.
pub const WIRE_BYTES: u32 = 8 + 14 + 40 + 8 + 12 + 8 + PACKET_BYTES + 4 + 4 + 12;
const PACKET_BYTES: u32 = 64;
const _: () = assert!(PACKET_BYTES as usize == packet::SIZE);
/// An answer is two packets.
pub const ANSWER_BYTES: u32 = 2 * WIRE_BYTES;
/// Assumed of a port that does not tell its rate.
const RATE_UNKNOWN_BPS: u64 = 1_000_000_000;

/// The rate of which pings take their share, in bits per second.
#[must_use]
pub fn rate(rate_bps: Option<u64>) -> Option<u64> {
    rate_bps.or(Some(RATE_UNKNOWN_BPS))
}

/// Own pings of all ports of this process, as ordered; no more than [`PACKETS_PER_S_MAX`] a second.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Mutex<Bucket>>);

impl Budget {
    #[must_use]
    pub fn new(now: Duration) -> Budget {
        let most = PACKETS_PER_S_MAX.into();
        Budget(Arc::new(Mutex::new(Bucket::new(
            most,
            1,
            Burst::Small,
            now,
        ))))
    }

    /// The rate of own pings, as ordered.
    pub fn set_pings(&self, per_second: u32, now: Duration) {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pings.limit(per_second.min(PACKETS_PER_S_MAX).into(), 1, now);
    }

    /// Whether one more ping may leave.
    #[must_use]
    pub fn take_ping(&self, now: Duration) -> bool {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pings.take(1, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_order_raises_the_ceiling_and_all_ports_share_it() {
        let budget = Budget::new(Duration::ZERO);
        budget.set_pings(u32::MAX, Duration::ZERO);
        let other = budget.clone();
        let mut sent = 0;
        for us in 0..2_000_000_u64 {
            let now = Duration::from_micros(us);
            sent += u32::from(budget.take_ping(now)) + u32::from(other.take_ping(now));
        }
        let most = 2 * PACKETS_PER_S_MAX;
        assert!((most - most / 10..=most).contains(&sent), "{sent}");
    }
}
