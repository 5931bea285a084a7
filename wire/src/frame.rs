//! What the packed rows of a frame mean.

use crate::rows::Rows;

/// Series of collective calls that one stream may have announced at once; their numbers are below.
pub const SERIES_MAX: u32 = 4096;

/// What a flow did since the last frame that named it. Field order is wire format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowRow {
    /// Bytes acknowledged by the peer.
    pub bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Smoothed round-trip time at the frame's moment, in microseconds; 0 if unknown.
    pub srtt_us: u64,
    /// Segments delivered with Congestion Experienced, as far as the sender heard of them: by ECE of
    /// a TCP flow; of a RoCE flow the CNPs that came back, each of which stands for one packet or more.
    pub delivered_ce: u64,
}

/// The state of all flows of a stream.
pub type FlowRows = Rows<4>;

impl From<FlowRow> for [u64; 4] {
    fn from(row: FlowRow) -> [u64; 4] {
        [row.bytes, row.retransmits, row.srtt_us, row.delivered_ce]
    }
}

impl From<[u64; 4]> for FlowRow {
    fn from([bytes, retransmits, srtt_us, delivered_ce]: [u64; 4]) -> FlowRow {
        FlowRow {
            bytes,
            retransmits,
            srtt_us,
            delivered_ce,
        }
    }
}

/// What came back to a RoCE flow's queue pair since the last frame that named it: of the data that its
/// peer sends it. Field order is wire format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoceRow {
    /// Packets that arrived with Congestion Experienced.
    pub received_ce: u64,
    /// Congestion notifications that it sent for them; none beside marks: they are switched off.
    pub cnps_sent: u64,
}

/// The state of all RoCE flows of a stream.
pub type RoceRows = Rows<2>;

impl From<RoceRow> for [u64; 2] {
    fn from(row: RoceRow) -> [u64; 2] {
        [row.received_ce, row.cnps_sent]
    }
}

impl From<[u64; 2]> for RoceRow {
    fn from([received_ce, cnps_sent]: [u64; 2]) -> RoceRow {
        RoceRow {
            received_ce,
            cnps_sent,
        }
    }
}

/// A finished collective call of a series. Field order is wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRow {
    /// On the clock of `Frame.at_us`; wraps if the call started before the agent.
    pub started_us: u64,
    pub duration_us: u64,
    /// Payload; `None` if the datatype is unknown.
    pub bytes: Option<u64>,
}

/// The state of all series of a stream, for finished calls.
pub type CallRows = Rows<3>;

impl From<CallRow> for [u64; 3] {
    fn from(row: CallRow) -> [u64; 3] {
        let bytes = row.bytes.map_or(0, |b| b.saturating_add(1));
        [row.started_us, row.duration_us, bytes]
    }
}

impl From<[u64; 3]> for CallRow {
    fn from([started_us, duration_us, bytes]: [u64; 3]) -> CallRow {
        CallRow {
            started_us,
            duration_us,
            bytes: bytes.checked_sub(1),
        }
    }
}

/// The state of all series of a stream, for calls that run: when they started, as
/// [`CallRow::started_us`].
pub type RunningRows = Rows<1>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_size_is_not_a_size_of_zero() {
        for bytes in [None, Some(0), Some(1 << 40)] {
            let row = CallRow {
                started_us: 0,
                duration_us: 1,
                bytes,
            };
            assert_eq!(CallRow::from(<[u64; 3]>::from(row)), row);
        }
    }
}
