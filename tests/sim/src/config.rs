//! Everything about a run that is not its topology or traffic.

use crate::buffer::BufferParams;
use crate::port::EcnParams;
use crate::rp::RpParams;
use serde::{Deserialize, Serialize};

/// Which class acknowledgements travel in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckClass {
    /// With the data: queued behind it and paused with it.
    #[default]
    Data,
    /// Ahead of all data, never paused.
    High,
}

/// Transport of the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportParams {
    /// Payload of a full packet, bytes.
    pub mtu: u16,
    /// Headers of a data packet on the wire, bytes.
    pub header: u16,
    /// An acknowledgement on the wire, bytes.
    pub ack_bytes: u16,
    /// A pause on the wire, bytes.
    pub pause_bytes: u16,
    /// Packets to one acknowledgement; the last of a message is always acknowledged.
    pub ack_every: u32,
    /// Class of acknowledgements.
    pub ack_class: AckClass,
    /// Most unacknowledged bytes of a queue pair; 0 is no limit.
    pub window: u64,
    /// Retransmission timeout, us.
    pub rto_us: f64,
    /// Time before the same gap is reported again, us.
    pub nak_gap_us: f64,
    /// A gap reported by the receiver slows the sender down as a notification does.
    pub nak_slows: bool,
    /// Notifications ride on acknowledgements; otherwise they are packets of their own, ahead of all data.
    pub cnp_on_ack: bool,
    /// Least time between notifications of one queue pair, us.
    pub cnp_gap_us: f64,
    /// Serialisation times are cut to whole nanoseconds.
    pub whole_ns: bool,
}

impl Default for TransportParams {
    fn default() -> Self {
        Self {
            mtu: 1000,
            header: 48,
            ack_bytes: 60,
            pause_bytes: 64,
            ack_every: 1,
            ack_class: AckClass::Data,
            window: 0,
            rto_us: 4000.0,
            nak_gap_us: 500.0,
            nak_slows: false,
            cnp_on_ack: true,
            cnp_gap_us: 4.0,
            whole_ns: false,
        }
    }
}

/// Configuration of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimConfig {
    /// The seed of everything that is chance: marks, losses, hashes, jitter.
    pub seed: u64,
    /// Marking of every switch port.
    pub ecn: EcnParams,
    /// Reaction point of every host.
    pub rp: RpParams,
    /// Buffer of every switch.
    pub buffer: BufferParams,
    /// Transport of every host.
    pub transport: TransportParams,
}
