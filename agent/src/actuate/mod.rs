//! Route changes under lease: performs what [`weir_agent_core::lease`] decides.
//!
//! Order of every change: limits, baseline on disk (fsync), write, read back. Order of every end:
//! baseline back, read back, journal gone. A crash between any two of these leaves a journal, and
//! the next start restores it before anything else.

pub mod backend;
pub mod journal;

use backend::{ActuateError, Backend};
use journal::{Entry, Journal, JournalError, Journals};
use std::path::Path;
use std::time::Duration;
use weir_agent_core::change::RouteChange;
use weir_agent_core::lease::{Command, Grant, Leases, Outcome};
use weir_agent_core::limits::Limits;

/// What the controller is to be told of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub id: u64,
    pub outcome: Outcome,
    pub reason: String,
}

/// The one place of the agent that writes to the kernel.
pub struct Actuator<B> {
    leases: Leases,
    limits: Limits,
    journals: Journals,
    backend: B,
    reports: Vec<Report>,
}

impl<B: Backend> Actuator<B> {
    /// Takes the state directory for this process alone and restores whatever a former one left. A
    /// back end that writes nothing needs a directory of its own: it must not take a real journal
    /// for restored.
    ///
    /// Returns what had to be restored, in words.
    ///
    /// # Errors
    /// The directory cannot be had. A baseline that the kernel does not take yet is no error: it
    /// stays journalled and is tried again by [`Actuator::tick`].
    pub fn open(
        state_dir: &Path,
        limits: Limits,
        backend: B,
    ) -> Result<(Actuator<B>, Vec<String>), JournalError> {
        let (journals, left) = Journals::open(state_dir)?;
        let mut actuator = Actuator {
            leases: Leases::default(),
            limits,
            journals,
            backend,
            reports: Vec::new(),
        };
        let mut notes = Vec::new();
        for journal in left {
            let id = journal.lease;
            notes.push(match actuator.restore(&journal) {
                Ok(()) => format!("lease {id}: baseline restored from the journal"),
                Err(error) => {
                    format!("lease {id}: baseline not restored yet, will be tried again: {error}")
                }
            });
        }
        let kept: Vec<Entry> = actuator
            .journals
            .all()
            .flat_map(|j| j.entries.clone())
            .collect();
        match actuator.backend.sweep(&kept) {
            Ok(removed) => notes.extend(
                removed
                    .into_iter()
                    .map(|route| format!("removed {route}: a pin that no journal knows")),
            ),
            Err(error) => notes.push(format!(
                "pins that no journal knows: not looked for: {error}"
            )),
        }
        Ok((actuator, notes))
    }

    pub fn grant(&mut self, grant: Grant, now: Duration) {
        let held = self.leases.held();
        let orphan = self.journals.all().find(|j| !held.contains(&j.lease));
        if let Some(orphan) = orphan {
            // What stands now is no baseline: it would be restored when this lease ends.
            self.reports.push(Report {
                id: grant.id,
                outcome: Outcome::Refused,
                reason: format!("the baseline of lease {} is not restored yet", orphan.lease),
            });
            return;
        }
        self.leases.granted(grant, &self.limits);
        self.pump(now);
    }

    pub fn renew(&mut self, id: u64, ttl: Duration, now: Duration) {
        self.leases.renewed(id, ttl, &self.limits, now);
        self.pump(now);
    }

    pub fn end(&mut self, id: u64, reason: &str, now: Duration) {
        self.leases.end(id, reason, now);
        self.pump(now);
    }

    /// Gives everything back: shutdown.
    pub fn end_all(&mut self, reason: &str, now: Duration) {
        self.leases.end_all(reason, now);
        self.pump(now);
    }

    /// Expiries, and restores that failed before.
    pub fn tick(&mut self, now: Duration) {
        self.leases.handle_timeout(now);
        self.pump(now);
        let held = self.leases.held();
        let orphans: Vec<Journal> = self
            .journals
            .all()
            .filter(|j| !held.contains(&j.lease))
            .cloned()
            .collect();
        for journal in orphans {
            match self.restore(&journal) {
                Ok(()) => {
                    tracing::info!(lease = journal.lease, "baseline restored from the journal")
                }
                Err(error) => tracing::debug!(
                    lease = journal.lease,
                    "baseline still not restored: {error}"
                ),
            }
        }
    }

    /// Links, routes or next hops changed: a change that no longer stands ends its lease.
    pub fn routing_changed(&mut self, now: Duration) {
        let standing: Vec<(u64, RouteChange)> = self
            .leases
            .standing()
            .map(|(id, c)| (id, c.clone()))
            .collect();
        if standing.is_empty() {
            return;
        }
        let changes: Vec<&RouteChange> = standing.iter().map(|(_, change)| change).collect();
        match self.backend.verify(&changes) {
            Ok(verdicts) => {
                for ((id, change), verdict) in standing.iter().zip(verdicts) {
                    if let Some(reason) = verdict {
                        let reason = format!("{change} no longer stands: {reason}");
                        self.leases.end(*id, &reason, now);
                    }
                }
            }
            Err(error) => tracing::warn!("what stands cannot be read: {error}"),
        }
        self.pump(now);
    }

    /// When [`Actuator::tick`] wants to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.leases.poll_timeout().map(|(at, _)| at)
    }

    /// What happened since the last call.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Journals whose baseline could not be restored yet.
    #[must_use]
    pub fn unrestored(&self) -> usize {
        let standing: Vec<u64> = self.leases.standing().map(|(id, _)| id).collect();
        self.journals
            .all()
            .filter(|j| !standing.contains(&j.lease))
            .count()
    }

    /// Leases that are not over.
    #[must_use]
    pub fn held(&self) -> Vec<u64> {
        self.leases.held()
    }

    /// Changes that stand at this moment.
    #[must_use]
    pub fn standing(&self) -> usize {
        self.leases.standing().count()
    }

    /// The back end, for reads that are no changes.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    fn pump(&mut self, now: Duration) {
        while let Some(command) = self.leases.poll_command() {
            match command {
                Command::Journal { id, changes } => {
                    let result = self.journal(id, &changes).map_err(|e| e.to_string());
                    self.leases.journaled(id, result);
                }
                Command::Write { id, changes } => {
                    let result = self.backend.apply(&changes);
                    self.leases.written(id, result, now);
                }
                Command::Restore { id } => {
                    let journal = self.journals.get(id).cloned();
                    let result = journal
                        .map_or(Ok(()), |j| self.restore(&j))
                        .map_err(|e| e.to_string());
                    if let Err(reason) = &result {
                        tracing::warn!(
                            lease = id,
                            "baseline not restored yet, will be tried again: {reason}"
                        );
                    }
                    self.leases.restored(id, result, now);
                }
                Command::Report {
                    id,
                    outcome,
                    reason,
                } => {
                    tracing::info!(lease = id, ?outcome, "{reason}");
                    self.reports.push(Report {
                        id,
                        outcome,
                        reason,
                    });
                }
            }
        }
    }

    fn journal(&mut self, id: u64, changes: &[RouteChange]) -> Result<(), Refused> {
        let entries = self.backend.baseline(changes)?;
        Ok(self.journals.save(Journal::new(id, entries))?)
    }

    fn restore(&mut self, journal: &Journal) -> Result<(), Refused> {
        // One that the kernel does not take keeps none of the others.
        let restored: Vec<_> = journal
            .entries
            .iter()
            .map(|entry| self.backend.restore(entry))
            .collect();
        restored.into_iter().collect::<Result<(), _>>()?;
        Ok(self.journals.remove(journal.lease)?)
    }
}

/// Why a step could not be made.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Actuate(#[from] ActuateError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}
