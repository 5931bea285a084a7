//! What one poll of the programs gives: plain data, in the agent's terms.

use crate::cost;
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

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
    /// Queue pairs.
    pub qp: bool,
    /// RoCE packets that cross the kernel.
    pub roce: bool,
    /// The cgroup (version 2) whose sockets are watched; `None` finds the root.
    pub cgroup: Option<PathBuf>,
    /// Another object than the embedded one.
    pub object: Option<Vec<u8>>,
}

/// Whether a source is there; a source that is up may say what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// `collective`, `tcp`, `qdisc`, `drop`, `qp` or `roce`.
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
    /// Queue pairs of all devices, ascending by device and number; the same allocation while none
    /// changes.
    pub qps: Arc<Vec<QpSample>>,
    /// RoCE packets that crossed the kernel, by sender, queue pair and hook.
    pub roce: Vec<RoceSample>,
    /// The same by port (ifindex) and direction (true: coming in), since the agent started.
    pub roce_ports: BTreeMap<(u32, bool), RoceTotal>,
    /// RoCE packets that were not counted, since the programs were loaded: cut off, fragments, and
    /// with headers that are not read.
    pub roce_skipped: u64,
    /// Sources that came or went since the last poll.
    pub source_changes: Vec<SourceState>,
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

/// Type of a queue pair (`enum ib_qp_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QpKind {
    Smi,
    Gsi,
    Rc,
    Uc,
    Ud,
    RawPacket,
    XrcInitiator,
    XrcTarget,
    /// The driver's own, or one that this agent does not know.
    Other,
}

impl QpKind {
    /// The type with a number of the kernel.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Smi,
            1 => Self::Gsi,
            2 => Self::Rc,
            3 => Self::Uc,
            4 => Self::Ud,
            8 => Self::RawPacket,
            9 => Self::XrcInitiator,
            10 => Self::XrcTarget,
            _ => Self::Other,
        }
    }

    /// As `rdma resource show qp` writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smi => "SMI",
            Self::Gsi => "GSI",
            Self::Rc => "RC",
            Self::Uc => "UC",
            Self::Ud => "UD",
            Self::RawPacket => "RAW_PACKET",
            Self::XrcInitiator => "XRC_INI",
            Self::XrcTarget => "XRC_TGT",
            Self::Other => "OTHER",
        }
    }

    /// Whether a pair of this type talks to one other pair only.
    #[must_use]
    pub const fn is_connected(self) -> bool {
        matches!(
            self,
            Self::Rc | Self::Uc | Self::XrcInitiator | Self::XrcTarget
        )
    }
}

/// State of a queue pair (`enum ib_qp_state`) as the last modification left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QpState {
    Reset,
    Init,
    ReadyToReceive,
    ReadyToSend,
    SendQueueDrain,
    SendQueueError,
    Error,
    Unknown,
}

impl QpState {
    /// The state with a number of the kernel.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Reset,
            1 => Self::Init,
            2 => Self::ReadyToReceive,
            3 => Self::ReadyToSend,
            4 => Self::SendQueueDrain,
            5 => Self::SendQueueError,
            6 => Self::Error,
            _ => Self::Unknown,
        }
    }

    /// As `rdma resource show qp` writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "RESET",
            Self::Init => "INIT",
            Self::ReadyToReceive => "RTR",
            Self::ReadyToSend => "RTS",
            Self::SendQueueDrain => "SQD",
            Self::SendQueueError => "SQE",
            Self::Error => "ERR",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether packets may be on the way.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(
            self,
            Self::ReadyToReceive | Self::ReadyToSend | Self::SendQueueDrain
        )
    }
}

/// A queue pair. What is not known of it is `None`: of a pair that is older than the probes,
/// everything that RDMA netlink does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpSample {
    /// The kernel's number of the device.
    pub device_index: u32,
    /// Its name, such as `mlx5_0`.
    pub device: String,
    pub port: Option<u8>,
    pub qpn: u32,
    pub kind: QpKind,
    pub state: QpState,
    /// IPv4 addresses as `::ffff:a.b.c.d`.
    pub local_gid: Option<Ipv6Addr>,
    pub peer_gid: Option<Ipv6Addr>,
    pub peer_qpn: Option<u32>,
    pub sgid_index: Option<u8>,
    /// 20 bits; 0: the driver makes one up.
    pub flow_label: Option<u32>,
    /// The upper six bits are the DSCP.
    pub traffic_class: Option<u8>,
    /// It runs over RoCE version 2, as far as is known.
    pub roce_v2: bool,
    /// UDP source port of its packets; `None` also where the driver leaves it to firmware.
    pub src_port: Option<u16>,
    /// The port is what the kernel would choose, but the NIC's firmware chooses (mlx5): a prediction.
    pub src_port_predicted: bool,
    /// The process that made it; `None` for the kernel's own.
    pub pid: Option<u32>,
    /// When that process began, ns since boot, sleep included.
    pub process_start_ns: Option<u64>,
    /// It is older than the probes and has not been modified since.
    pub older: bool,
}

/// RoCE packets of one sender to one queue pair, as one hook of one port sees them; since the
/// entry was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoceSample {
    pub ifindex: u32,
    /// Coming in, or about to leave (before the port's queue).
    pub ingress: bool,
    /// IPv4 addresses as `::ffff:a.b.c.d`.
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub dest_qpn: u32,
    pub src_port: u16,
    pub counts: RoceTotal,
}

/// RoCE packets, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoceTotal {
    /// Frames with their Ethernet header, without the check sum.
    pub bytes: u64,
    pub packets: u64,
    /// Marked "congestion experienced".
    pub ce: u64,
    /// Congestion notification packets.
    pub cnps: u64,
}
