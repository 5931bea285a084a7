//! A port: what waits to be sent, whether it may be sent, and everything that is counted there.

use crate::packet::Queue;
use crate::round::Round;
use crate::rp::Rp;
use crate::time::{Time, Wire};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Marking at egress (RED on the current queue length).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EcnParams {
    /// False marks nothing.
    pub enabled: bool,
    /// Nothing is marked up to here, KB of 1000 bytes.
    pub kmin_kb: f64,
    /// Everything is marked above.
    pub kmax_kb: f64,
    /// Share marked at Kmax, 0.0..=1.0.
    pub pmax: f64,
}

impl Default for EcnParams {
    fn default() -> Self {
        Self {
            enabled: true,
            kmin_kb: 150.0,
            kmax_kb: 1500.0,
            pmax: 1.0,
        }
    }
}

/// Marking in the units of the engine.
#[derive(Debug, Clone, Copy)]
pub struct Ecn {
    kmin: u64,
    kmax: u64,
    per_byte: f64,
}

impl From<&EcnParams> for Ecn {
    fn from(p: &EcnParams) -> Self {
        if !p.enabled {
            return Self {
                kmin: u64::MAX,
                kmax: u64::MAX,
                per_byte: 0.0,
            };
        }
        let (kmin, kmax) = (
            crate::num::whole(p.kmin_kb * 1e3),
            crate::num::whole(p.kmax_kb * 1e3),
        );
        Self {
            kmin,
            kmax,
            per_byte: p.pmax / (kmax.saturating_sub(kmin).max(1)) as f64,
        }
    }
}

impl Ecn {
    /// Probability that a packet is marked when so many bytes wait behind it.
    #[inline]
    #[must_use]
    pub fn probability(&self, queue: u64) -> f64 {
        if queue <= self.kmin {
            0.0
        } else if queue > self.kmax {
            1.0
        } else {
            (queue - self.kmin) as f64 * self.per_byte
        }
    }
}

/// Counters of a port; they only rise, but for the last four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PortCounters {
    /// Bytes sent, on the wire, pauses included (`tx_bytes`).
    pub tx_bytes: u64,
    /// Packets sent (`tx_packets`).
    pub tx_packets: u64,
    /// Bytes received without pauses (`rx_bytes`).
    pub rx_bytes: u64,
    /// Packets received without pauses (`rx_packets`).
    pub rx_packets: u64,
    /// Packets marked CE on their way out (`ecn_marked_tx`).
    pub ecn_marked_tx: u64,
    /// Pauses sent (`pause_tx`).
    pub pause_tx: u64,
    /// Pauses received (`pause_rx`).
    pub pause_rx: u64,
    /// How long our transmitter was paused, ps (`pause_rx_us`).
    pub pause_rx_ps: u64,
    /// How long we kept the peer paused, ps (`pause_tx_us`).
    pub pause_tx_ps: u64,
    /// Packets that came in here and found no buffer (`rx_discards`).
    pub rx_discards: u64,
    /// Packets lost on the way out because the link was down (`tx_discards`).
    pub tx_discards: u64,
    /// Packets that arrived damaged (`rx_errors`).
    pub rx_errors: u64,
    /// Times that the link went down (`link_downs`).
    pub link_downs: u64,
    /// The link is up (`link_up`).
    pub up: bool,
    /// Its rate, bits per second (`rate_bps`).
    pub rate_bps: u64,
    /// Bytes waiting (`queue_bytes`).
    pub queue_bytes: u64,
    /// Most bytes waiting since the last sample (`queue_bytes_max`).
    pub queue_bytes_max: u64,
}

/// A port. One wire leaves it; the other direction is its peer's.
#[derive(Debug, Clone)]
pub struct Port {
    pub(crate) node: u32,
    pub(crate) peer: u32,
    pub(crate) position: u32,
    pub(crate) bits_per_s: f64,
    pub(crate) wire: Wire,
    pub(crate) delay: Time,
    pub(crate) busy_until: Time,
    pub(crate) waking: bool,
    pub(crate) paused_until: Time,
    pub(crate) paused_since: Time,
    pub(crate) unpausing: bool,
    pub(crate) pausing_since: Time,
    pub(crate) up: bool,
    /// Share of packets received here that are damaged, of 2^32.
    pub(crate) loss: u64,
    pub(crate) high: Queue,
    pub(crate) low: Queue,
    pub(crate) ecn: Ecn,
    pub(crate) count: PortCounters,
}

/// Counters of a host's NIC; they only rise, but for the last three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct HostCounters {
    /// Payload sent, repeated bytes included.
    pub tx_payload: u64,
    /// Data packets sent (`tx_packets`).
    pub tx_packets: u64,
    /// Bytes of data packets received, on the wire (`rx_bytes`).
    pub rx_bytes: u64,
    /// Data packets received (`rx_packets`).
    pub rx_packets: u64,
    /// Data packets received with CE (`ecn_marked_rx`).
    pub ecn_marked_rx: u64,
    /// Congestion notifications sent (`cnp_tx`).
    pub cnp_tx: u64,
    /// Congestion notifications taken note of (`cnp_rx`).
    pub cnp_rx: u64,
    /// Congestion notifications received while the reaction point is off (`cnp_ignored`).
    pub cnp_ignored: u64,
    /// Sequence NAKs sent.
    pub nak_tx: u64,
    /// Packets received out of sequence (`out_of_sequence`).
    pub out_of_sequence: u64,
    /// Sequence NAKs received (`sequence_naks`).
    pub sequence_naks: u64,
    /// Acknowledgements that did not come in time (`ack_timeouts`).
    pub ack_timeouts: u64,
    /// Packets sent again (`retransmits`).
    pub retransmits: u64,
    /// Queue pairs with something to send.
    pub active_qps: u32,
    /// Sum of the rates of those, Gb/s.
    pub rate_gbps: f64,
}

/// A receiver that takes what comes slower than its link brings it.
#[derive(Debug, Clone, Copy)]
pub struct SlowReceiver {
    pub(crate) bits_per_s: f64,
    pub(crate) xoff: u64,
    pub(crate) backlog: f64,
    pub(crate) at: Time,
    pub(crate) pausing: bool,
}

/// A host's NIC.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) port: u32,
    pub(crate) ready: Round,
    pub(crate) qps: Vec<u32>,
    pub(crate) rp: crate::rp::RpConstants,
    pub(crate) rp_params: crate::rp::RpParams,
    /// Least time between notifications of one queue pair.
    pub(crate) cnp_gap: Time,
    pub(crate) slow: Option<SlowReceiver>,
    pub(crate) count: HostCounters,
}

/// The switches of a path in order, as the ports by which they are left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Path {
    pub(crate) ports: [u32; 6],
    pub(crate) len: u8,
}

/// A queue pair, with the state of both its ends: `src` sends, `dst` receives.
#[derive(Debug, Clone)]
pub struct Qp {
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) sport: u16,
    /// Position among the queue pairs of its sender.
    pub(crate) turn: u32,
    pub(crate) there: Path,
    pub(crate) back: Path,
    pub(crate) rp: Rp,
    // Sender, in bytes since the beginning.
    pub(crate) posted: u64,
    pub(crate) next: u64,
    pub(crate) acked: u64,
    pub(crate) highest: u64,
    pub(crate) next_at: Time,
    pub(crate) in_ready: bool,
    pub(crate) timed: bool,
    pub(crate) rto_armed: bool,
    pub(crate) progress_at: Time,
    /// Ends of messages that are not acknowledged, with what they are.
    pub(crate) sending: VecDeque<(u64, u32, u32)>,
    /// Position in `sending` of the message that `next` is in.
    pub(crate) cursor: usize,
    // Receiver.
    pub(crate) expected: u64,
    pub(crate) receiving: VecDeque<(u64, u32, u32)>,
    pub(crate) unacked: u32,
    pub(crate) naked: u64,
    pub(crate) nak_again: Time,
    pub(crate) cnp_again: Time,
}

impl Qp {
    pub(crate) fn may_send(&self, window: u64) -> bool {
        self.next < self.posted && (window == 0 || self.next - self.acked < window)
    }

    /// Goes back to the first byte that is not acknowledged.
    pub(crate) fn go_back(&mut self) {
        self.next = self.acked;
        self.cursor = 0;
    }
}
