//! What the core is told (facts, past tense) and what it asks for (commands, imperative).

use crate::ids::{FlowKey, JobId, NodeId, PortId};
use crate::keep::keep;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// Part that a node plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Host,
    Switch,
}

keep!(enum Role { 0 Host, 1 Switch });

/// A fact. The time at which it arrived is an argument beside it.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    NodeConnected {
        node: NodeId,
        role: Role,
        held_leases: Vec<u64>,
    },
    NodeLost {
        node: NodeId,
    },
    InventoryReported {
        node: NodeId,
        inventory: Inventory,
    },
    /// What the values of this node's samples are from now on.
    ColumnsDeclared {
        node: NodeId,
        columns: Arc<[Column]>,
    },
    SampleReported {
        node: NodeId,
        sample: NodeSample,
    },
    EventReported {
        node: NodeId,
        event: NodeEvent,
    },
    PathsResolved {
        node: NodeId,
        hops: Vec<ResolvedHop>,
    },
    LeaseReported {
        node: NodeId,
        lease: u64,
        outcome: LeaseOutcome,
        reason: String,
    },
    FreezeSet {
        frozen: bool,
    },
    /// A recording goes on from here: whoever replays it knows none of the paths that were asked for
    /// before, so that all are asked for again.
    SegmentBegun,
    /// An operator asks for a change by hand; it runs under the same lease and the same judge.
    TrialRequested {
        job: JobId,
        pins: Vec<PinChange>,
    },
    /// An operator ends a trial or a kept change.
    LeaseEndRequested {
        lease: u64,
    },
}

/// What a node has: interfaces, addresses, neighbours, ECMP groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    pub ports: Vec<PortInventory>,
    pub groups: Vec<EcmpGroup>,
    /// Rises whenever predicted paths through the node are stale.
    pub routes_epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInventory {
    pub name: Arc<str>,
    pub up: bool,
    pub addresses: Vec<(Ipv4Addr, u8)>,
    pub neighbours: Vec<Ipv4Addr>,
    /// Bits per second; `None` if the driver does not know.
    pub speed_bps: Option<u64>,
}

/// Next hops that share the load of some destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcmpGroup {
    pub id: u32,
    pub members: Vec<Arc<str>>,
}

/// One sample interval of one node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeSample {
    /// Length of the interval by the agent's monotonic clock; `None` for the first sample and
    /// after a gap: no rates then.
    pub elapsed: Option<Duration>,
    pub ports: Vec<PortSample>,
    pub collectives: Vec<CollectiveDone>,
    pub running: Vec<CollectiveRunning>,
    pub flows: Vec<FlowSample>,
    pub flows_closed: Vec<FlowKey>,
    /// One for each column of the last [`Input::ColumnsDeclared`]: a gauge's value, or how far a counter
    /// rose over `elapsed`. `None` is absent or not comparable (first, reset, gap).
    pub values: Vec<Option<u64>>,
}

/// How long what a node told may stand: two and a half of its own `interval`s, so that one lost sample does not make
/// it unknown, and `least` at least, which is right for samples of a second.
#[must_use]
pub fn age_max(least: Duration, interval: Duration) -> Duration {
    least.max(interval.saturating_mul(5) / 2)
}

impl NodeSample {
    /// The job that the node worked for, as far as the interval tells.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        let done = self.collectives.iter().map(|c| &c.job);
        let running = self.running.iter().map(|c| &c.job);
        let flows = self.flows.iter().filter_map(|f| f.job.as_ref());
        done.chain(running).chain(flows).next()
    }
}

/// What one value of a sample is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub entity: weir_signal::Entity,
    /// Interface, `DEVICE/PORT`, or PCI address; empty for the node.
    pub subject: Arc<str>,
    /// Priority, lane or link number, where the signal has one.
    pub index: Option<u32>,
    pub signal: weir_signal::Signal,
}

/// Something that a node's agent saw happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// Source that saw it, such as `kmsg`.
    pub source: Arc<str>,
    /// Stable name, such as `xid`.
    pub name: Arc<str>,
    /// As [`Column::subject`]; empty if unknown.
    pub subject: Arc<str>,
    /// Number of an XID or SXID.
    pub code: Option<u32>,
    pub severity: crate::verdict::Severity,
    pub text: String,
    /// What the vendor says to do; empty if nothing.
    pub action: String,
}

/// Differences over the interval. `None` is absent or not comparable (first, reset, gap).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSample {
    pub port: Arc<str>,
    pub tx_bytes: Option<u64>,
    /// Deepest queue known of the interval, in bytes.
    pub queue_bytes_max: Option<u64>,
    pub drops: Option<u64>,
    pub tx_packets: Option<u64>,
    pub rx_bytes: Option<u64>,
    pub rx_packets: Option<u64>,
    /// Packets marked Congestion Experienced on the way out.
    pub ecn_marked: Option<u64>,
    /// Time for which the peer kept our transmitter paused, in microseconds; of the priority that was longest.
    pub pause_rx_us: Option<u64>,
    /// Time for which we kept the peer's transmitter paused, likewise.
    pub pause_tx_us: Option<u64>,
    pub up: Option<bool>,
}

/// A collective call that returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveDone {
    pub job: JobId,
    pub rank: Option<u32>,
    pub ranks: Option<u32>,
    pub op: Arc<str>,
    pub bytes: Option<u64>,
    /// Start before the arrival of the sample.
    pub started_before: Duration,
    pub duration: Duration,
}

/// A collective call that has not returned yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveRunning {
    pub job: JobId,
    pub running: Duration,
}

/// One flow over the interval, as its sender sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowSample {
    pub key: FlowKey,
    pub job: Option<JobId>,
    /// Bytes acknowledged over the interval.
    pub bytes: u64,
    pub retransmits: u64,
    pub srtt_us: u32,
    /// Segments delivered with Congestion Experienced, as far as the sender heard: of a RoCE flow the
    /// CNPs that came back.
    pub delivered_ce: u64,
    /// Of a RoCE flow: packets of its peer's data that arrived marked, and CNPs sent for them.
    pub received_ce: u64,
    pub cnps_sent: u64,
}

/// A switch's own answer to "where would you send this?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedHop {
    pub key: FlowKey,
    pub in_port: Arc<str>,
    /// `None`: no route.
    pub out_port: Option<Arc<str>>,
    /// Group that was chosen from.
    pub group: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseOutcome {
    Applied,
    Refused,
    Ended,
}

/// Sends everything that `node` forwards to `dst` out by `port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinChange {
    pub node: NodeId,
    pub dst: Ipv4Addr,
    pub port: Arc<str>,
}

keep!(struct PinChange { node, dst, port });

impl std::fmt::Display for PinChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pin {}/32 via {} on {}", self.dst, self.port, self.node)
    }
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    QueryPaths {
        node: NodeId,
        keys: Vec<(FlowKey, Arc<str>)>,
    },
    Grant {
        node: NodeId,
        lease: u64,
        ttl: Duration,
        incident: String,
        verdict: String,
        pins: Vec<PinChange>,
    },
    Renew {
        node: NodeId,
        lease: u64,
        ttl: Duration,
    },
    End {
        node: NodeId,
        lease: u64,
        reason: String,
    },
    /// Answers the operator who asked for a trial: its lease, or why there is none.
    AnswerTrial { outcome: Result<u64, String> },
    /// Something happened that people want to read later.
    Note { subject: String, text: String },
}

/// The directed link that leaves by a port, for readers.
pub type LinkId = PortId;
