//! A trial: one change under one lease, judged on the job's own iterations.
//!
//! ```text
//!  (Idle) ──propose──> Proposed ──all nodes applied──> Holding ──faster──> Committed
//!                         │                              │                    │
//!              refused,   │         slower, no better,   │     job over, worse again,
//!              time-out   │         time-out, frozen     │     frozen, nexthop lost
//!                         v                              v                    v
//!                     RolledBack <───────────────────────┴────────────────────┘
//!                         │ every node reports its baseline (or is gone)
//!                         v
//!                     Cooldown ──cooldown over──> (Idle)
//! ```
//!
//! How it is judged. Before: the last iterations ahead of the change. After: the iterations that
//! end after every node had applied it, the first discarded, since it straddles the change. Same
//! job, same collective, same size, same rank: a paired comparison, by medians, because one
//! iteration that a page fault delayed must not decide. Harm is judged sooner than benefit: two
//! slower iterations in a row roll back, keeping needs three.
//!
//! A lease is never without a live controller behind it: Committed means renewed, not permanent.

mod judge;

use crate::config::Trial as Limits;
use crate::ids::{JobId, NodeId};
use crate::io::{Command, LeaseOutcome, PinChange};
use crate::jobs::{Job, Signature};
use crate::keep::keep;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use judge::median;

/// Iterations before the change that are kept for the comparison.
pub const BEFORE_MAX: usize = 8;
/// No call is taken for stalled sooner.
pub const STALLED_MIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Proposed,
    Holding,
    Committed,
    RolledBack,
    Cooldown,
    /// Over; the job may be tried again.
    Idle,
}

keep!(enum State { 0 Proposed, 1 Holding, 2 Committed, 3 RolledBack, 4 Cooldown, 5 Idle });

impl State {
    pub const ALL: [State; 6] = [
        State::Proposed,
        State::Holding,
        State::Committed,
        State::RolledBack,
        State::Cooldown,
        State::Idle,
    ];

    /// Name in the API and in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Proposed => "proposed",
            State::Holding => "holding",
            State::Committed => "committed",
            State::RolledBack => "rolled_back",
            State::Cooldown => "cooldown",
            State::Idle => "idle",
        }
    }
}

/// Why a change was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The job became slower.
    Slower,
    /// A call of the job does not end.
    Stalled,
    /// The job did not become faster by enough.
    NoBetter,
    /// Too few iterations, or none that can be compared.
    NotJudged,
    /// A node did not apply it: refused by its limits, or no answer.
    NotApplied,
    /// A node ended it, or was lost.
    Node,
    /// The job is over, and with it the reason for the change.
    JobOver,
    Operator,
    Frozen,
}

keep!(enum Cause {
    0 Slower, 1 Stalled, 2 NoBetter, 3 NotJudged, 4 NotApplied, 5 Node, 6 JobOver, 7 Operator, 8 Frozen,
});

impl Cause {
    pub const ALL: [Cause; 9] = [
        Cause::Slower,
        Cause::Stalled,
        Cause::NoBetter,
        Cause::NotJudged,
        Cause::NotApplied,
        Cause::Node,
        Cause::JobOver,
        Cause::Operator,
        Cause::Frozen,
    ];

    /// Name in the API and in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::Slower => "slower",
            Cause::Stalled => "stalled",
            Cause::NoBetter => "no_better",
            Cause::NotJudged => "not_judged",
            Cause::NotApplied => "not_applied",
            Cause::Node => "node",
            Cause::JobOver => "job_over",
            Cause::Operator => "operator",
            Cause::Frozen => "frozen",
        }
    }
}

/// What one node said of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeLease {
    Asked,
    Applied,
    /// At its baseline, or never left it.
    Over,
}

keep!(enum NodeLease { 0 Asked, 1 Applied, 2 Over });

/// A change on trial, or kept, or given back.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    pub lease: u64,
    pub incident: String,
    pub verdict: String,
    pub job: JobId,
    pub pins: Vec<PinChange>,
    pub nodes: BTreeMap<NodeId, NodeLease>,
    pub state: State,
    /// Why it is in its state, in words.
    pub reason: String,
    /// `None` while it is on trial or kept.
    pub given_back: Option<Cause>,
    pub signature: Signature,
    pub before_s: Vec<f64>,
    pub after_s: Vec<f64>,
    pub proposed_at: Duration,
    pub applied_at: Option<Duration>,
    pub decided_at: Option<Duration>,
    /// State of which the story was last told.
    told: Option<State>,
    counted: bool,
    cooldown: Duration,
    renew_at: Duration,
    cooldown_until: Duration,
}

keep!(struct Trial {
    lease, incident, verdict, job, pins, nodes, state, reason, given_back, signature, before_s, after_s,
    proposed_at, applied_at, decided_at, told, counted, cooldown, renew_at, cooldown_until,
});

/// What a trial starts from.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub lease: u64,
    pub incident: String,
    pub verdict: String,
    pub job: JobId,
    pub pins: Vec<PinChange>,
    pub signature: Signature,
    /// Seconds of the iterations to compare with, oldest first.
    pub before_s: Vec<f64>,
    /// Cool-downs to wait for after it: more after every try that was in vain.
    pub cooldowns: u32,
}

impl Trial {
    /// Asks every node concerned for its part of the change.
    #[must_use]
    pub fn propose(
        proposal: Proposal,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) -> Trial {
        let nodes: BTreeSet<NodeId> = proposal.pins.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            out.push_back(Command::Grant {
                node: node.clone(),
                lease: proposal.lease,
                ttl: limits.ttl,
                incident: proposal.incident.clone(),
                verdict: proposal.verdict.clone(),
                pins: proposal
                    .pins
                    .iter()
                    .filter(|p| p.node == *node)
                    .cloned()
                    .collect(),
            });
        }
        let mut before_s = proposal.before_s;
        before_s.drain(..before_s.len().saturating_sub(BEFORE_MAX));
        Trial {
            lease: proposal.lease,
            incident: proposal.incident,
            verdict: proposal.verdict,
            job: proposal.job,
            pins: proposal.pins,
            nodes: nodes.into_iter().map(|n| (n, NodeLease::Asked)).collect(),
            state: State::Proposed,
            reason: "waiting for the agents to apply it".into(),
            given_back: None,
            signature: proposal.signature,
            before_s,
            after_s: Vec::new(),
            proposed_at: now,
            applied_at: None,
            decided_at: None,
            told: None,
            counted: false,
            cooldown: limits.cooldown * proposal.cooldowns,
            renew_at: now + limits.ttl / 3,
            cooldown_until: Duration::MAX,
        }
    }

    /// Whether nodes may hold the change.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.state {
            State::Proposed | State::Holding | State::Committed => true,
            State::RolledBack | State::Cooldown | State::Idle => false,
        }
    }

    /// Why it was given back, once.
    pub fn take_end(&mut self) -> Option<Cause> {
        let end = self.given_back.filter(|_| !self.counted);
        self.counted |= end.is_some();
        end
    }

    /// The state, in words, if it changed since the last call.
    pub fn take_news(&mut self) -> Option<String> {
        if self.told == Some(self.state) {
            return None;
        }
        self.told = Some(self.state);
        Some(format!(
            "lease {} {}: {}",
            self.lease,
            self.state.name(),
            self.reason
        ))
    }

    /// Median iteration before and after; `None` until there is one of each.
    #[must_use]
    pub fn medians(&self) -> Option<(f64, f64)> {
        Some((median(&self.before_s)?, median(&self.after_s)?))
    }

    pub fn lease_reported(
        &mut self,
        node: &NodeId,
        outcome: LeaseOutcome,
        reason: &str,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        let Some(lease) = self.nodes.get_mut(node) else {
            return;
        };
        *lease = match outcome {
            LeaseOutcome::Applied => NodeLease::Applied,
            LeaseOutcome::Refused | LeaseOutcome::Ended => NodeLease::Over,
        };
        match (self.state, outcome) {
            (State::Proposed, LeaseOutcome::Applied)
                if self.nodes.values().all(|n| *n == NodeLease::Applied) =>
            {
                self.state = State::Holding;
                self.reason = "applied; watching the job's iterations".into();
                self.applied_at = Some(now);
            }
            (State::Proposed | State::Holding | State::Committed, LeaseOutcome::Refused) => self
                .roll_back(
                    Cause::NotApplied,
                    format!("{node} refused: {reason}"),
                    limits,
                    now,
                    out,
                ),
            (State::Proposed | State::Holding | State::Committed, LeaseOutcome::Ended) => self
                .roll_back(
                    Cause::Node,
                    format!("{node} ended the lease: {reason}"),
                    limits,
                    now,
                    out,
                ),
            // The answer to the grant was still on its way.
            (State::RolledBack | State::Cooldown | State::Idle, LeaseOutcome::Applied) => {
                out.push_back(Command::End {
                    node: node.clone(),
                    lease: self.lease,
                    reason: self.reason.clone(),
                });
            }
            (State::Proposed | State::Holding | State::Committed, LeaseOutcome::Applied) => {}
            (
                State::RolledBack | State::Cooldown | State::Idle,
                LeaseOutcome::Refused | LeaseOutcome::Ended,
            ) => {}
        }
        self.settle(now);
    }

    /// The node's stream broke: its agent restores the baseline by itself when the lease runs out.
    pub fn node_lost(
        &mut self,
        node: &NodeId,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        let Some(lease) = self.nodes.get_mut(node) else {
            return;
        };
        *lease = NodeLease::Over;
        if self.is_live() {
            self.roll_back(
                Cause::Node,
                format!("the stream of {node} was lost"),
                limits,
                now,
                out,
            );
        }
        self.settle(now);
    }

    /// Gives the change back.
    pub fn roll_back(
        &mut self,
        cause: Cause,
        reason: String,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        if !self.is_live() {
            return;
        }
        self.state = State::RolledBack;
        self.given_back = Some(cause);
        self.reason = reason;
        self.decided_at = Some(now);
        for (node, lease) in &self.nodes {
            if *lease != NodeLease::Over {
                out.push_back(Command::End {
                    node: node.clone(),
                    lease: self.lease,
                    reason: self.reason.clone(),
                });
            }
        }
        // A node that never answers is at its baseline when its lease has run out.
        self.cooldown_until = now + limits.ttl;
        self.settle(now);
    }

    fn settle(&mut self, now: Duration) {
        if self.state == State::RolledBack
            && (self.nodes.values().all(|n| *n == NodeLease::Over) || now >= self.cooldown_until)
        {
            self.state = State::Cooldown;
            self.cooldown_until = now + self.cooldown;
        }
    }

    /// Time passes: renewals, time-outs, and the judgement on what the job did since.
    ///
    /// `job` is `None` if it is not known any more; `retransmits`: a flow of it does, over a pin.
    pub fn tick(
        &mut self,
        job: Option<&Job>,
        retransmits: bool,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        let series = job.and_then(|j| j.series(now));
        let series = series.as_ref().map(|(s, i)| (s, *i));
        if self.is_live() && now >= self.renew_at {
            self.renew_at = now + limits.ttl / 3;
            for node in self.nodes.keys() {
                out.push_back(Command::Renew {
                    node: node.clone(),
                    lease: self.lease,
                    ttl: limits.ttl,
                });
            }
        }
        match self.state {
            State::Proposed if now >= self.proposed_at + limits.apply_timeout => {
                let missing: Vec<&str> = self
                    .nodes
                    .iter()
                    .filter(|(_, l)| **l == NodeLease::Asked)
                    .map(|(n, _)| n.as_str())
                    .collect();
                self.roll_back(
                    Cause::NotApplied,
                    format!("no answer from {} in time", missing.join(", ")),
                    limits,
                    now,
                    out,
                );
            }
            State::Holding | State::Committed if self.stalled(job, retransmits, limits, now) => {
                self.roll_back(
                    Cause::Stalled,
                    "a call of the job does not end".into(),
                    limits,
                    now,
                    out,
                )
            }
            State::Holding => self.judge(series, limits, now, out),
            State::Committed
                if job.is_none_or(|j| now.saturating_sub(j.last_seen) >= limits.job_gone) =>
            {
                self.roll_back(
                    Cause::JobOver,
                    "the job is over; the baseline is restored".into(),
                    limits,
                    now,
                    out,
                );
            }
            State::Committed => self.watch(series, limits, now, out),
            State::RolledBack => self.settle(now),
            State::Cooldown if now >= self.cooldown_until => self.state = State::Idle,
            State::Proposed | State::Cooldown | State::Idle => {}
        }
    }
}
