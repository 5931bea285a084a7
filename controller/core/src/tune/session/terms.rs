//! The terms of a session: what it may do, what it says, what became of what it tried.

use crate::ids::JobId;
use crate::io::PinChange;
use crate::tune::memory::Signature;
use crate::tune::setting::{Bounds, Class, Move, Setting};
use std::sync::Arc;

/// What a session may cost and do.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Slow-down of any job over the whole session, as a share of its time before: 0.05.
    pub slowdown_max: f64,
    /// Rise of the paused share of the port that is paused most, over the whole session: 0.01 is one point.
    pub pause_max: f64,
    /// Chance with which a candidate that changes nothing is taken for faster.
    pub alpha: f64,
    /// A gain below this is not worth a change.
    pub worth: f64,
    /// Iterations of each job before anything is tried.
    pub iterations_first: u32,
    /// Iterations of each job in the first block of a candidate, the one that straddles the change not counted; later
    /// blocks have up to four times as many.
    pub iterations: u32,
    /// Pairs after which a candidate that is still undecided is dropped.
    pub pairs_max: u32,
    /// Candidates in a session.
    pub candidates_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            slowdown_max: 0.05,
            pause_max: 0.01,
            alpha: 0.05,
            worth: 0.01,
            iterations_first: 4,
            iterations: 2,
            pairs_max: 8,
            candidates_max: 16,
        }
    }
}

/// What a session starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// What stands.
    pub baseline: Setting,
    pub bounds: Bounds,
    /// Leaves or rails; a candidate stands on one of them before all. Fewer than two: no canary.
    pub groups: Vec<Arc<str>>,
    /// Pins that the route planner proposes; empty where nothing collides.
    pub pins: Vec<PinChange>,
    pub signature: Signature,
    pub limits: Limits,
}

/// Where a setting is to stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    /// On the switches and hosts of one group; elsewhere the incumbent.
    Group(Arc<str>),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Applies a setting, under the session's lease.
    Apply { setting: Setting, scope: Scope },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The incumbent stands and is measured.
    Incumbent,
    /// A candidate stands on one group.
    Canary,
    /// A candidate stands everywhere.
    Candidate,
    /// Nothing is left to try; what was kept is watched.
    Watching,
}

/// What a candidate is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The planner's routes.
    Routes,
    /// What was best for this pattern in an earlier session.
    Remembered,
    /// A move of all classes.
    Move(Move),
    /// A move of one class of switches or model of NICs alone.
    Part(Move, Class),
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Kept,
    /// It brought too little, or is still undecided after all pairs.
    NoBetter,
    /// A job became slower by too much.
    Slower(JobId),
    /// A port was paused for too long.
    Paused,
    /// Packets were lost or came out of order.
    Lost,
    /// A block did not end.
    Silent,
}

/// A candidate that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub what: What,
    pub setting: Setting,
    pub verdict: Verdict,
    /// Pairs that it took.
    pub pairs: u32,
    /// Mean log ratio of the iteration times; `None` before the first pair.
    pub gain: Option<f64>,
}
