//! The agent's side of a lease: nothing is changed without one, and each ends at the baseline.
//!
//! ```text
//!  grant ──refused by limits, or knob taken──> (reported Refused, nothing written)
//!    │
//!    v        journalled         written, read back
//!  Journaling ──────────> Writing ──────────────────> Held ──renew──> Held
//!    │ failed               │ failed                   │ expired, ended, frozen, shutdown,
//!    v                      v                          v nexthop gone
//!  (Refused)             Restoring <───────────────────┘
//!                           │ restored          │ failed: stays, is tried again
//!                           v                   └──────────────────────> Restoring
//!                        (Ended)
//! ```
//!
//! The caller performs each [`Command`] and tells its result; the baseline is on disk before the
//! first write because `Write` is only asked for after `journalled` came back.

use crate::change::{Knob, RouteChange};
use crate::limits::Limits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Leases held at once: one controller tries one change at a time and keeps some.
pub const LEASES_MAX: usize = 64;
/// A restore that failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);

/// A request of the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub id: u64,
    pub ttl: Duration,
    pub verdict: String,
    pub changes: Vec<RouteChange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Journaling,
    Writing,
    Held { expires: Duration },
    Restoring { retry: Duration },
}

#[derive(Debug, Clone)]
struct Lease {
    state: State,
    ttl: Duration,
    changes: Vec<RouteChange>,
    reason: String,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Save the baseline of the changes' knobs, durably, then tell [`Leases::journaled`].
    Journal { id: u64, changes: Vec<RouteChange> },
    /// Write and read back every change, then tell [`Leases::written`].
    Write { id: u64, changes: Vec<RouteChange> },
    /// Return to the journalled baseline and clear the journal, then tell [`Leases::restored`].
    Restore { id: u64 },
    Report {
        id: u64,
        outcome: Outcome,
        reason: String,
    },
}

/// What the controller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    Refused,
    Ended,
}

/// All leases of this node.
#[derive(Debug, Default)]
pub struct Leases {
    leases: BTreeMap<u64, Lease>,
    commands: VecDeque<Command>,
}

impl Leases {
    /// The controller asks for a change.
    pub fn granted(&mut self, grant: Grant, limits: &Limits) {
        if let Err(reason) = self.acceptable(&grant, limits) {
            self.report(grant.id, Outcome::Refused, reason);
            return;
        }
        self.commands.push_back(Command::Journal {
            id: grant.id,
            changes: grant.changes.clone(),
        });
        let ttl = grant.ttl;
        self.leases.insert(
            grant.id,
            Lease {
                state: State::Journaling,
                ttl,
                changes: grant.changes,
                reason: String::new(),
            },
        );
    }

    fn acceptable(&self, grant: &Grant, limits: &Limits) -> Result<(), String> {
        if self.leases.contains_key(&grant.id) {
            return Err(format!("lease {} exists already", grant.id));
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(format!("{LEASES_MAX} leases are held already"));
        }
        if grant.changes.is_empty() || grant.ttl.is_zero() {
            return Err("a lease needs a change and a time to live".into());
        }
        if grant.ttl > limits.lease_max {
            return Err(format!(
                "a lease of {} s is more than the limits allow (max_lease: {} s); lower the controller's lease.ttl or raise it",
                grant.ttl.as_secs_f64(),
                limits.lease_max.as_secs_f64()
            ));
        }
        let held: BTreeSet<Knob> = self
            .leases
            .values()
            .flat_map(|l| l.changes.iter().map(RouteChange::knob))
            .collect();
        let pinned = held
            .iter()
            .filter(|k| matches!(k, Knob::Route { .. }))
            .count();
        let mut own = BTreeSet::new();
        for (n, change) in grant.changes.iter().enumerate() {
            limits
                .check(change, pinned + n)
                .map_err(|r| r.to_string())?;
            if held.contains(&change.knob()) || !own.insert(change.knob()) {
                return Err(format!("{} is under a lease already", change.knob()));
            }
        }
        Ok(())
    }

    /// The baseline is on disk, or could not be saved.
    pub fn journaled(&mut self, id: u64, result: Result<(), String>) {
        let Some(lease) = self
            .leases
            .get_mut(&id)
            .filter(|l| l.state == State::Journaling)
        else {
            return;
        };
        match result {
            Ok(()) => {
                lease.state = State::Writing;
                self.commands.push_back(Command::Write {
                    id,
                    changes: lease.changes.clone(),
                });
            }
            Err(reason) => {
                self.leases.remove(&id);
                self.report(id, Outcome::Refused, reason);
            }
        }
    }

    /// Every change is written and read back, or something failed on the way.
    pub fn written(&mut self, id: u64, result: Result<(), String>, now: Duration) {
        let Some(lease) = self
            .leases
            .get_mut(&id)
            .filter(|l| l.state == State::Writing)
        else {
            return;
        };
        match result {
            Ok(()) => {
                lease.state = State::Held {
                    expires: now + lease.ttl,
                };
                self.report(id, Outcome::Applied, "written and read back".into());
            }
            Err(reason) => self.end(id, &reason, now),
        }
    }

    /// The controller is alive and wants the change to stand.
    pub fn renewed(&mut self, id: u64, ttl: Duration, limits: &Limits, now: Duration) {
        match self.leases.get_mut(&id) {
            Some(lease) => {
                if let State::Held { expires } = &mut lease.state {
                    *expires = now + ttl.min(limits.lease_max);
                }
            }
            None => self.report(id, Outcome::Ended, "no such lease is held".into()),
        }
    }

    /// Gives a lease back, whoever wants it: the controller, an expiry, a vanished next hop.
    pub fn end(&mut self, id: u64, reason: &str, now: Duration) {
        match self.leases.get_mut(&id) {
            Some(lease) if !matches!(lease.state, State::Restoring { .. }) => {
                lease.state = State::Restoring { retry: now + RETRY };
                lease.reason = reason.to_owned();
                self.commands.push_back(Command::Restore { id });
            }
            Some(_) => {}
            None => self.report(id, Outcome::Ended, "no such lease is held".into()),
        }
    }

    /// Gives every lease back.
    pub fn end_all(&mut self, reason: &str, now: Duration) {
        for id in self.held() {
            self.end(id, reason, now);
        }
    }

    /// The baseline stands again, or cannot be restored yet; it is then tried again.
    pub fn restored(&mut self, id: u64, result: Result<(), String>, now: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if let (State::Restoring { retry }, Err(_)) = (&mut lease.state, &result) {
            *retry = now + RETRY;
            return;
        }
        if let Some(lease) = self.leases.remove(&id) {
            self.report(id, Outcome::Ended, lease.reason);
        }
    }

    /// When [`Leases::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        let due = |l: &Lease| match l.state {
            State::Held { expires } => Some((expires, "a lease expires")),
            State::Restoring { retry } => Some((retry, "a restore is tried again")),
            State::Journaling | State::Writing => None,
        };
        self.leases.values().filter_map(due).min()
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        let mut expired = Vec::new();
        for (id, lease) in &mut self.leases {
            match &mut lease.state {
                State::Held { expires } if *expires <= now => expired.push(*id),
                State::Restoring { retry } if *retry <= now => {
                    *retry = now + RETRY;
                    self.commands.push_back(Command::Restore { id: *id });
                }
                State::Held { .. }
                | State::Restoring { .. }
                | State::Journaling
                | State::Writing => {}
            }
        }
        for id in expired {
            self.end(id, "the lease expired: the controller was silent", now);
        }
    }

    /// What the caller has to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Leases that are not over.
    #[must_use]
    pub fn held(&self) -> Vec<u64> {
        self.leases.keys().copied().collect()
    }

    /// Changes that stand at this moment, by lease.
    pub fn standing(&self) -> impl Iterator<Item = (u64, &RouteChange)> {
        let held = self
            .leases
            .iter()
            .filter(|(_, l)| matches!(l.state, State::Held { .. }));
        held.flat_map(|(id, l)| l.changes.iter().map(|c| (*id, c)))
    }

    fn report(&mut self, id: u64, outcome: Outcome, reason: String) {
        self.commands.push_back(Command::Report {
            id,
            outcome,
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn limits() -> Limits {
        Limits {
            routes_allow: true,
            prefixes: vec![([10, 0, 0, 0].into(), 8)],
            ..Limits::default()
        }
    }

    fn grant(id: u64, last: u8) -> Grant {
        let change = RouteChange::Pin {
            dst: [10, 0, 0, last].into(),
            prefix_len: 32,
            nexthop: 1,
            port: "up1".into(),
        };
        Grant {
            id,
            ttl: 3 * S,
            verdict: String::new(),
            changes: vec![change],
        }
    }

    fn drain(leases: &mut Leases) -> Vec<Command> {
        std::iter::from_fn(|| leases.poll_command()).collect()
    }

    fn held() -> Leases {
        let mut leases = Leases::default();
        leases.granted(grant(1, 1), &limits());
        leases.journaled(1, Ok(()));
        leases.written(1, Ok(()), S);
        drain(&mut leases);
        leases
    }

    #[test]
    fn nothing_is_written_before_the_journal_is_on_disk() {
        let mut leases = Leases::default();
        leases.granted(grant(1, 1), &limits());
        assert!(matches!(
            drain(&mut leases)[..],
            [Command::Journal { id: 1, .. }]
        ));
        leases.journaled(1, Err("disk full".into()));
        assert!(
            matches!(&drain(&mut leases)[..], [Command::Report { outcome: Outcome::Refused, reason, .. }] if reason == "disk full")
        );
    }

    #[test]
    fn a_lease_that_is_not_renewed_is_restored() {
        let mut leases = held();
        assert_eq!(leases.poll_timeout().unwrap().0, 4 * S);
        leases.renewed(1, 3 * S, &limits(), 3 * S);
        leases.handle_timeout(5 * S);
        assert_eq!(drain(&mut leases), []);
        leases.handle_timeout(6 * S);
        assert_eq!(drain(&mut leases), [Command::Restore { id: 1 }]);
    }

    #[test]
    fn a_restore_that_fails_is_tried_until_it_holds() {
        let mut leases = held();
        leases.end(1, "over", 2 * S);
        leases.restored(1, Err("device down".into()), 2 * S);
        drain(&mut leases);
        leases.handle_timeout(3 * S);
        assert_eq!(drain(&mut leases), [Command::Restore { id: 1 }]);
        leases.restored(1, Ok(()), 3 * S);
        assert!(matches!(
            drain(&mut leases)[..],
            [Command::Report {
                outcome: Outcome::Ended,
                ..
            }]
        ));
    }

    #[test]
    fn a_failed_write_restores() {
        let mut leases = Leases::default();
        leases.granted(grant(1, 1), &limits());
        leases.journaled(1, Ok(()));
        drain(&mut leases);
        leases.written(1, Err("read back differs".into()), S);
        assert_eq!(drain(&mut leases), [Command::Restore { id: 1 }]);
    }

    #[test]
    fn a_knob_has_one_lease() {
        let mut leases = held();
        leases.granted(grant(2, 1), &limits());
        assert!(matches!(
            drain(&mut leases)[..],
            [Command::Report {
                id: 2,
                outcome: Outcome::Refused,
                ..
            }]
        ));
    }

    #[test]
    fn a_lease_longer_than_the_limits_allow_is_refused() {
        let mut leases = Leases::default();
        let short = Limits {
            lease_max: S,
            ..limits()
        };
        leases.granted(grant(1, 1), &short);
        assert!(matches!(
            leases.poll_command(),
            Some(Command::Report { outcome: Outcome::Refused, reason, .. }) if reason.contains("max_lease")
        ));
        assert!(leases.held().is_empty());
    }

    proptest! {
        /// Whatever happens in whatever order: no write without a journal, and once everything is
        /// ended and restores succeed, no lease is left and each that wrote was restored after.
        #[test]
        fn every_lease_ends_at_its_baseline(steps in prop::collection::vec((0u8..8, 1u64..6, 0u8..3, any::<bool>()), 0..80)) {
            let mut leases = Leases::default();
            let mut journaled = BTreeSet::new();
            let mut changed = BTreeSet::new();
            let mut now = S;
            for (step, id, last, good) in steps {
                let result = if good { Ok(()) } else { Err("no".to_owned()) };
                now += S / 2;
                match step {
                    0 | 1 => leases.granted(grant(id, last), &limits()),
                    2 => leases.renewed(id, 2 * S, &limits(), now),
                    3 => leases.end(id, "asked", now),
                    4 => leases.end_all("shutdown", now),
                    _ => leases.handle_timeout(now),
                }
                while let Some(command) = leases.poll_command() {
                    match command {
                        Command::Journal { id, .. } => {
                            if good { journaled.insert(id); }
                            leases.journaled(id, result.clone());
                        }
                        Command::Write { id, .. } => {
                            prop_assert!(journaled.contains(&id));
                            changed.insert(id);
                            leases.written(id, result.clone(), now);
                        }
                        Command::Restore { id } => {
                            if good { changed.remove(&id); journaled.remove(&id); }
                            leases.restored(id, result.clone(), now);
                        }
                        Command::Report { .. } => {}
                    }
                }
                prop_assert!(leases.held().len() <= LEASES_MAX);
            }
            leases.end_all("over", now);
            for _ in 0..3 {
                now += S;
                leases.handle_timeout(now);
                while let Some(command) = leases.poll_command() {
                    if let Command::Restore { id } = command {
                        changed.remove(&id);
                        leases.restored(id, Ok(()), now);
                    }
                }
            }
            prop_assert!(leases.held().is_empty() && changed.is_empty());
        }
    }
}
