//! What the core changes: trials under lease, one at a time, and the freeze that ends them.

use super::Core;
use crate::config::Mode;
use crate::ids::{JobId, NodeId};
use crate::io::{Command, LeaseOutcome, PinChange};
use crate::trial::{Cause, Proposal, STALLED_MIN, State, Trial};
use std::collections::BTreeSet;
use std::time::Duration;

/// After this many tries in vain the cool-down grows no more: 64 times the first.
const IN_VAIN_MAX: usize = 6;
/// Trials kept, the oldest that is over goes first.
pub(super) const TRIALS_MAX: usize = 256;

impl Core {
    /// Starts a trial and gives its lease, unless something forbids it; says what.
    ///
    /// It is compared with the job's iterations `since` the link became hot: those before it were
    /// not held back.
    pub(super) fn propose(
        &mut self,
        job: &JobId,
        pins: Vec<PinChange>,
        (incident, verdict): (String, String),
        since: Option<Duration>,
        now: Duration,
    ) -> Result<u64, String> {
        if self.config.mode != Mode::Act {
            return Err(format!(
                "the controller's mode is {}: nothing is changed unless it is act",
                self.config.mode.name()
            ));
        }
        if self.frozen {
            return Err("the controller is frozen: `weir unfreeze` lets it act again".into());
        }
        if pins.is_empty() || pins.len() > self.config.trial.changes_max {
            return Err(format!(
                "{} changes; 1 to {} are allowed in a trial",
                pins.len(),
                self.config.trial.changes_max
            ));
        }
        let mut routes = BTreeSet::new();
        if let Some(twice) = pins.iter().find(|p| !routes.insert((&p.node, p.dst))) {
            return Err(format!("{twice}: the same route twice in one trial"));
        }
        // One at a time: two changes under way cannot be told apart by what the jobs do.
        if let Some(other) = self.trials.iter().find(|t| {
            matches!(
                t.state,
                State::Proposed | State::Holding | State::RolledBack
            )
        }) {
            return Err(format!("lease {} is on trial", other.lease));
        }
        if let Some(other) = self
            .trials
            .iter()
            .find(|t| t.job == *job && t.state == State::Cooldown)
        {
            return Err(format!("cooling down after lease {}", other.lease));
        }
        if let Some(other) = self.trials.iter().find(|t| {
            t.is_live()
                && t.pins
                    .iter()
                    .any(|p| pins.iter().any(|q| p.node == q.node && p.dst == q.dst))
        }) {
            return Err(format!(
                "lease {} holds one of the same routes",
                other.lease
            ));
        }
        for pin in &pins {
            if !self.nodes.get(&pin.node).is_some_and(|n| n.connected) {
                return Err(format!("{} is not connected", pin.node));
            }
        }
        let Some((signature, series)) = self.jobs.get(job).and_then(|j| j.series(now)) else {
            let why = if job.is_inferred() {
                ": it is inferred, and samples of its traffic show none"
            } else {
                ""
            };
            return Err(format!("no iterations of job {job} are seen{why}"));
        };
        let held_back = series
            .iter()
            .filter(|i| since.is_none_or(|since| i.started >= since));
        let before_s: Vec<f64> = held_back.map(|i| i.seconds).collect();
        if before_s.len() < self.config.trial.iterations_before {
            return Err(format!(
                "{} of {} iterations seen",
                before_s.len(),
                self.config.trial.iterations_before
            ));
        }
        if self.trials.len() >= TRIALS_MAX {
            match self.trials.iter().position(|t| t.state == State::Idle) {
                Some(over) => self.trials.remove(over),
                None => return Err(format!("{TRIALS_MAX} leases are held or cooling down")),
            };
        }
        self.next_lease += 1;
        let proposal = Proposal {
            lease: self.next_lease,
            incident,
            verdict,
            job: job.clone(),
            pins,
            signature,
            before_s,
            cooldowns: 1 << self.in_vain(job).min(IN_VAIN_MAX),
        };
        let trial = Trial::propose(proposal, &self.config.trial, now, &mut self.commands);
        self.trials.push_back(trial);
        Ok(self.next_lease)
    }

    /// Tries for a job that did not help, since the last that did.
    fn in_vain(&self, job: &JobId) -> usize {
        let of_job = self.trials.iter().rev().filter(|t| t.job == *job);
        let causes = of_job.map(|t| t.given_back);
        let in_vain =
            |cause: &Option<Cause>| matches!(cause, Some(Cause::Slower | Cause::NoBetter));
        causes.take_while(in_vain).count()
    }

    pub(super) fn lease_reported(
        &mut self,
        node: &NodeId,
        lease: u64,
        outcome: LeaseOutcome,
        reason: &str,
        now: Duration,
    ) {
        match self.trials.iter_mut().find(|t| t.lease == lease) {
            Some(trial) => trial.lease_reported(
                node,
                outcome,
                reason,
                &self.config.trial,
                now,
                &mut self.commands,
            ),
            None if outcome == LeaseOutcome::Applied => {
                let reason = "the controller knows no such lease".to_owned();
                self.commands.push_back(Command::End {
                    node: node.clone(),
                    lease,
                    reason,
                });
            }
            None => {}
        }
    }

    pub(super) fn freeze(&mut self, frozen: bool, now: Duration) {
        self.frozen = frozen;
        self.note(
            "freeze",
            if frozen {
                "frozen".into()
            } else {
                "unfrozen".into()
            },
        );
        if frozen {
            for trial in &mut self.trials {
                trial.roll_back(
                    Cause::Frozen,
                    "frozen by an operator".into(),
                    &self.config.trial,
                    now,
                    &mut self.commands,
                );
            }
        }
    }

    pub(super) fn trials_tick(&mut self, now: Duration) {
        for trial in &mut self.trials {
            let job = self.jobs.get(&trial.job);
            let waits = trial.is_live()
                && job
                    .and_then(|j| j.running_for(now))
                    .is_some_and(|running| running > STALLED_MIN);
            let retransmits = waits
                && trial
                    .pins
                    .iter()
                    .any(|pin| self.flows.retransmits(&trial.job, pin.dst, now));
            trial.tick(
                job,
                retransmits,
                &self.config.trial,
                now,
                &mut self.commands,
            );
            if let Some(cause) = trial.take_end() {
                *self.given_back.entry(cause).or_default() += 1;
            }
            if let Some(text) = trial.take_news() {
                self.incidents.tell(&trial.incident, now, text.clone());
                self.commands.push_back(Command::Note {
                    subject: format!("lease {}", trial.lease),
                    text,
                });
            }
        }
    }
}
