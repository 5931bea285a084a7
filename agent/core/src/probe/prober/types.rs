//! What goes into the prober and comes out of it.

use crate::probe::packet::Packet;
use crate::probe::window::{Count, Quantiles, Summary};
use std::time::Duration;

/// Whom to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<A> {
    /// What its results are called; one target has each name.
    pub name: String,
    pub address: A,
    /// 1 to [`PATHS_MAX`](super::PATHS_MAX).
    pub paths: u8,
    /// Length of a probe on the wire, with all headers.
    pub wire_bytes: u32,
}

/// What the caller is to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order<A> {
    pub packet: Packet,
    /// Number of the source port.
    pub path: u8,
    pub address: A,
}

/// Times of one packet: of the user's call, the kernel's and the NIC's. Kernel and user share a clock
/// (nanoseconds since 1970), a NIC has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamps {
    pub user: u64,
    pub kernel: Option<u64>,
    pub nic: Option<u64>,
}

/// How often each thing happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    /// Answers after the time-out.
    pub late: u64,
    /// Second answers to one probe.
    pub duplicates: u64,
    /// Answers to what was never asked, or that come from elsewhere.
    pub strays: u64,
    /// Answers whose bytes were changed on the way.
    pub corrupt: u64,
    /// Probes that a target without a responder sent back (ICMP port unreachable); not lost.
    pub refused: u64,
    /// Probes that this node could not send; not lost.
    pub failed: u64,
    /// Probes put off because the budget was used up.
    pub over_budget: u64,
    /// Answers whose stamps contradict each other, such as over a step of the clock: no RTT.
    pub implausible: u64,
    /// RTTs from stamps of the NIC, the kernel, the user's calls.
    pub by_nic: u64,
    pub by_kernel: u64,
    pub by_user: u64,
}

/// What a caller may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A probe that is not answered by then is lost.
    pub timeout: Duration,
    /// Time over which loss and quantiles are made.
    pub window: Duration,
    /// Time between two probes of a path, at least.
    pub interval: Duration,
}

/// One finished window of all paths to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetSummary {
    pub all: Summary,
    /// Time between our calls and our kernel's stamps, both ways; `None` without such stamps.
    pub own_delay: Option<Quantiles>,
    /// For how long the responder held the probes.
    pub their_delay: Option<Quantiles>,
}

/// What is known of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathReport {
    pub path: u8,
    /// Since the target was set.
    pub total: Count,
    /// The newest finished window; `None` before the first.
    pub window: Option<Summary>,
}

/// What is known of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetReport {
    pub name: String,
    pub total: Count,
    pub window: Option<TargetSummary>,
    pub paths: Vec<PathReport>,
}
