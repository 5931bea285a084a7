//! What one poll of the programs gives: plain data, in the agent's terms.

use crate::cost;
use std::{net::SocketAddr, path::PathBuf};

/// What to load, and where.
#[derive(Clone, Debug, Default)]
pub struct BpfOptions {
    /// Look only at the calling thread's network namespace (several agents on
    /// one kernel); off where one agent covers a host with its containers.
    pub netns_filter: bool,
    /// Load nothing into the kernel: what has a stand-in (the flows) runs on it.
    pub no_programs: bool,
    /// Collective calls of NCCL, RCCL and MPI.
    pub collective: bool,
    /// TCP flows.
    pub tcp: bool,
    /// Queue depths.
    pub qdisc: bool,
    /// Dropped packets.
    pub drop: bool,
    /// The cgroup (version 2) whose sockets are watched; `None` finds the root.
    pub cgroup: Option<PathBuf>,
    /// Another object than the embedded one.
    pub object: Option<Vec<u8>>,
}

/// Whether a source is there; a source that is up may say what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `collective`, `tcp`, `qdisc` or `drop`.
    pub name: &'static str,
    pub up: bool,
    /// Why it is down, or what it does without.
    pub reason: Option<String>,
}

/// All that was seen since the last poll (events) or at this moment (tables).
#[derive(Clone, Debug, Default)]
pub struct BpfSample {
    /// Kernel monotonic clock of this poll, ns: the clock of the records.
    pub now_ns: u64,
    /// Calls that have ended since the last poll.
    pub collectives: Vec<Collective>,
    /// Calls that run now: an old one is a collective that hangs.
    pub in_flight: Vec<InFlightCall>,
    /// TCP connections, each with its counters since it began.
    pub flows: Vec<FlowSample>,
    /// Queues of the network ports that have sent something.
    pub ports: Vec<PortDepth>,
    /// Packets dropped since the programs were loaded.
    pub drops: Vec<Drops>,
    /// Records that found no room, since the programs were loaded.
    pub lost_records: u64,
    /// What is worth a line in the log, each said once: a library attached or
    /// given up, a library without the functions.
    pub notes: Vec<String>,
    /// What each family cost.
    pub costs: Vec<cost::Reading>,
}

/// The function that was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CollectiveOp {
    NcclAllReduce,
    NcclAllGather,
    NcclReduceScatter,
    NcclBroadcast,
    NcclReduce,
    NcclSend,
    NcclRecv,
    NcclGroupStart,
    NcclGroupEnd,
    NcclCommInitRank,
    MpiAllreduce,
    MpiAllgather,
    MpiReduceScatter,
    MpiAlltoall,
    MpiBcast,
}

/// A call that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collective {
    pub pid: u32,
    pub tid: u32,
    pub op: CollectiveOp,
    /// `count` times the datatype's size; `None` where either is unknown.
    ///
    /// For gathers and all-to-all this is the part that one rank contributes.
    pub bytes: Option<u64>,
    /// Elements; `None` where the function has no single count.
    pub count: Option<u64>,
    /// The datatype's name; `None` where it is derived or unknown.
    pub datatype: Option<&'static str>,
    /// The communicator's handle in its process; 0 where there is none.
    pub comm: u64,
    /// Kernel monotonic clock, ns.
    pub start_ns: u64,
    /// Kernel monotonic clock, ns. For NCCL this is the end of the enqueueing.
    pub end_ns: u64,
    /// Ranks of the communicator, from its init call only.
    pub nranks: Option<u32>,
    /// This rank, from the init call only.
    pub rank: Option<u32>,
    /// The function's return value, 0 for success.
    pub result: i32,
}

/// A call that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlightCall {
    pub pid: u32,
    pub tid: u32,
    pub op: CollectiveOp,
    /// As [`Collective::bytes`].
    pub bytes: Option<u64>,
    /// The communicator's handle in its process; 0 where there is none (yet).
    pub comm: u64,
    /// Kernel monotonic clock, ns.
    pub start_ns: u64,
}

/// A TCP connection, seen from its local end; the counters only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSample {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub bytes_acked: u64,
    /// On an end that only receives, as old as the last state change.
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Smoothed round-trip time; `None` before the first sample.
    pub srtt_us: Option<u32>,
    /// Segments that the peer reported as marked; `None` where unknown.
    pub delivered_ce: Option<u64>,
    /// Segments delivered; `None` where unknown.
    pub delivered: Option<u64>,
    /// The connection has ended: these are its last figures.
    pub closed: bool,
}

/// Depth of a port's queue, measured as each packet entered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDepth {
    /// Of the agent's own network namespace.
    pub ifindex: u32,
    /// Largest backlog since the last poll, bytes; 0 if no packet was queued.
    pub queue_bytes_max: u64,
    /// Packets by backlog since the programs were loaded: bucket n counts
    /// 2^n to 2^(n+1) - 1 bytes, bucket 0 also 0.
    pub histogram: [u64; 32],
}

/// Packets dropped at a port for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops {
    /// Of the agent's own network namespace; 0 if the packet had no port (seen
    /// only without the namespace filter).
    pub ifindex: u32,
    /// The running kernel's name of the reason, in lower case.
    pub reason: String,
    /// Since the programs were loaded.
    pub count: u64,
}

impl CollectiveOp {
    /// The function's name; the variants with a configuration share the plain one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NcclAllReduce => "ncclAllReduce",
            Self::NcclAllGather => "ncclAllGather",
            Self::NcclReduceScatter => "ncclReduceScatter",
            Self::NcclBroadcast => "ncclBroadcast",
            Self::NcclReduce => "ncclReduce",
            Self::NcclSend => "ncclSend",
            Self::NcclRecv => "ncclRecv",
            Self::NcclGroupStart => "ncclGroupStart",
            Self::NcclGroupEnd => "ncclGroupEnd",
            Self::NcclCommInitRank => "ncclCommInitRank",
            Self::MpiAllreduce => "MPI_Allreduce",
            Self::MpiAllgather => "MPI_Allgather",
            Self::MpiReduceScatter => "MPI_Reduce_scatter",
            Self::MpiAlltoall => "MPI_Alltoall",
            Self::MpiBcast => "MPI_Bcast",
        }
    }

    /// True for the functions of MPI, false for those of NCCL and RCCL.
    #[must_use]
    pub const fn is_mpi(self) -> bool {
        match self {
            Self::MpiAllreduce
            | Self::MpiAllgather
            | Self::MpiReduceScatter
            | Self::MpiAlltoall
            | Self::MpiBcast => true,
            Self::NcclAllReduce
            | Self::NcclAllGather
            | Self::NcclReduceScatter
            | Self::NcclBroadcast
            | Self::NcclReduce
            | Self::NcclSend
            | Self::NcclRecv
            | Self::NcclGroupStart
            | Self::NcclGroupEnd
            | Self::NcclCommInitRank => false,
        }
    }
}
