//! Collective calls: what the entry probe is told and what the return probe reports.

/// Operation numbers in [`CallLayout`] and [`CollectiveRecord::op`].
///
/// Zero is no operation. The agent's `CollectiveOp` gives them names.
pub mod op {
    pub const NCCL_ALL_REDUCE: u8 = 1;
    pub const NCCL_ALL_GATHER: u8 = 2;
    pub const NCCL_REDUCE_SCATTER: u8 = 3;
    pub const NCCL_BROADCAST: u8 = 4;
    pub const NCCL_REDUCE: u8 = 5;
    pub const NCCL_SEND: u8 = 6;
    pub const NCCL_RECV: u8 = 7;
    pub const NCCL_GROUP_START: u8 = 8;
    pub const NCCL_GROUP_END: u8 = 9;
    pub const NCCL_COMM_INIT_RANK: u8 = 10;
    pub const MPI_ALLREDUCE: u8 = 32;
    pub const MPI_ALLGATHER: u8 = 33;
    pub const MPI_REDUCE_SCATTER: u8 = 34;
    pub const MPI_ALLTOALL: u8 = 35;
    pub const MPI_BCAST: u8 = 36;
}

/// Where a function keeps the arguments that the probes read: the attach cookie.
///
/// One pair of probes serves every function; the agent gives each attachment
/// this layout as its cookie. Argument numbers count from 1 in declaration
/// order, 0 means that the function has no such argument. Number 7 is the
/// first argument on the stack where six travel in registers (x86-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLayout {
    /// One of [`op`].
    pub op: u8,
    /// The element count.
    pub count: u8,
    /// The datatype: an enum in NCCL, a handle in MPI.
    pub datatype: u8,
    /// The communicator.
    pub comm: u8,
    /// The count is a C `int`: the register's upper half is undefined.
    pub count_is_int: bool,
    /// `ncclCommInitRank`: argument 1 is where the communicator will be
    /// stored, argument 2 the number of ranks, and the rank comes after a
    /// structure passed by value.
    pub init: bool,
}

impl CallLayout {
    /// Packs the layout into an attach cookie.
    #[must_use]
    pub const fn to_cookie(self) -> u64 {
        self.op as u64
            | (self.count as u64) << 8
            | (self.datatype as u64) << 16
            | (self.comm as u64) << 24
            | (self.count_is_int as u64) << 32
            | (self.init as u64) << 33
    }

    /// Unpacks an attach cookie; inverse of [`Self::to_cookie`].
    #[must_use]
    #[inline(always)]
    pub const fn from_cookie(cookie: u64) -> Self {
        let byte = cookie.to_le_bytes();
        Self {
            op: byte[0],
            count: byte[1],
            datatype: byte[2],
            comm: byte[3],
            count_is_int: byte[4] & 1 != 0,
            init: byte[4] & 2 != 0,
        }
    }
}

/// A call that has begun and not ended; value of `IN_FLIGHT`, keyed by pid and tid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct InFlight {
    /// Kernel monotonic clock, ns.
    pub start_ns: u64,
    /// Stack pointer at entry: tells a nested call (deeper) from a stale one.
    pub stack: u64,
    /// Elements; 0 where the function has no single count.
    pub count: u64,
    /// NCCL enum or MPI handle; 0 where the function has none.
    pub datatype: u64,
    /// Communicator; for an init call the address where it will be stored.
    pub comm: u64,
    /// Init calls only.
    pub nranks: u32,
    /// Init calls only.
    pub rank: u32,
    /// One of [`op`].
    pub op: u32,
    pub _pad: u32,
}

/// A finished call, as it stands in the ring buffer `CALLS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CollectiveRecord {
    /// Kernel monotonic clock, ns.
    pub start_ns: u64,
    /// Kernel monotonic clock, ns.
    pub end_ns: u64,
    /// Elements; 0 where the function has no single count.
    pub count: u64,
    /// NCCL enum or MPI handle; 0 where the function has none.
    pub datatype: u64,
    /// Communicator; 0 where the function has none.
    pub comm: u64,
    /// Process, as the kernel's initial pid namespace numbers it.
    pub pid: u32,
    /// Thread, likewise.
    pub tid: u32,
    /// Init calls only, else 0.
    pub nranks: u32,
    /// Init calls only, else 0.
    pub rank: u32,
    /// One of [`op`].
    pub op: u32,
    /// The function's return value (0 is success in NCCL and MPI alike).
    pub result: i32,
}

const _: () = assert!(size_of::<InFlight>() == 56);
const _: () = assert!(size_of::<CollectiveRecord>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_survives_its_cookie() {
        let layout = CallLayout {
            op: op::MPI_ALLTOALL,
            count: 5,
            datatype: 6,
            comm: 7,
            count_is_int: true,
            init: false,
        };
        assert_eq!(CallLayout::from_cookie(layout.to_cookie()), layout);
        let init = CallLayout {
            init: true,
            count_is_int: false,
            ..layout
        };
        assert_eq!(CallLayout::from_cookie(init.to_cookie()), init);
    }
}
