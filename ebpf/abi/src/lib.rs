//! Records and map values shared by the eBPF programs and the agent.
//!
//! Both sides are compiled by different compilers, so every type here is
//! `#[repr(C)]`, spells out its padding and has its size checked at compile
//! time. All integers are in the machine's byte order; addresses and ports in
//! [`FlowKey`] say theirs. With the feature `user` the types implement
//! `aya::Pod`, which is what lets the agent read them out of a map.
#![no_std]

mod collective;
mod flow;
mod port;
mod qp;
mod roce;

pub use collective::{CallLayout, CollectiveRecord, InFlight, op};
pub use flow::{FlowKey, FlowRecord, family, tcp_state};
pub use port::{DropKey, HISTOGRAM_BUCKETS, PortQueue, histogram_bucket};
pub use qp::{QP_DEVICE_NAME, QpCall, QpKey, QpLayout, QpRecord, qp_known, qp_state};
pub use roce::{ROCE_CNP, ROCE_PORT, RoceCounts, RoceKey, direction, roce_skipped};

/// Indices of the per-CPU array `LOST`: what could not be recorded, by cause.
pub mod lost {
    /// A finished call found the ring buffer full.
    pub const RING_FULL: u32 = 0;
    /// A call that begins found the table of calls in flight full.
    pub const IN_FLIGHT_FULL: u32 = 1;
    /// A flow could not be entered into the table of flows.
    pub const FLOWS_FULL: u32 = 2;
    /// A port could not be entered into the table of queues.
    pub const PORTS_FULL: u32 = 3;
    /// A drop could not be entered into the table of drops.
    pub const DROPS_FULL: u32 = 4;
    /// A queue pair could not be entered into the table of queue pairs.
    pub const QPS_FULL: u32 = 5;
    /// A modification of a queue pair found the table of such calls full.
    pub const QP_CALLS_FULL: u32 = 6;
    /// A sender of RoCE packets could not be entered into their table.
    pub const ROCE_FULL: u32 = 7;
    /// Length of the array.
    pub const COUNT: u32 = 8;
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "Pod is an unsafe trait: the types below are plain old data"
)]
mod pod {
    use super::{
        CollectiveRecord, DropKey, FlowKey, FlowRecord, InFlight, PortQueue, QpKey, QpLayout,
        QpRecord, RoceCounts, RoceKey,
    };

    // SAFETY (all): `repr(C)`, made of integers only, without implicit padding
    // (the size asserts beside each type prove it), so any bytes are a value.
    macro_rules! pod {
        ($($record:ty),+) => { $(
            // SAFETY: see above.
            unsafe impl aya::Pod for $record {}
        )+ };
    }
    pod!(
        CollectiveRecord,
        InFlight,
        FlowKey,
        FlowRecord,
        PortQueue,
        DropKey,
        QpLayout,
        QpKey,
        QpRecord,
        RoceKey,
        RoceCounts
    );
}
