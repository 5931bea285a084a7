//! Routes stand while they are judged, and what was kept stays on probation: each job's latest iterations against those
//! before the session changed anything.
//!
//! Pins of the planner need no proof that they help: it counts the flows on each link, and what it proposes lowers that.
//! What must be shown is that nobody pays for it. A/B/A would not see the gain either: the rates that a collision cut
//! take a hundred milliseconds and more to climb, many short iterations, and fall at once where it comes back.

use super::{Phase, Tuner, Verdict};
use crate::ids::JobId;
use crate::tune::block::{JOBS_MAX, Look};
use crate::tune::sequential::Pairs;
use std::collections::VecDeque;
use std::time::Duration;

/// The latest iterations of each job that are compared.
pub(super) const RECENT: usize = 16;
/// Iterations of each job that are not compared after something broke a limit: rates that were cut climb for long, and
/// what a candidate left behind is no fault of what was kept before it.
const AFTERMATH: u32 = 32;
/// Standard errors by which a job must be slower than its limit. It is asked after each iteration, and iterations that
/// follow each other are alike, so two would err too often.
const SURE: f64 = 2.5;

/// A job's latest iterations under what stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Recent {
    /// Logarithms of seconds, oldest first.
    pub(super) log_s: VecDeque<f64>,
    /// Iterations that are still to be left out.
    skip: u32,
}

impl Recent {
    fn add(&mut self, log_s: f64) {
        if self.skip > 0 {
            self.skip -= 1;
        } else if log_s.is_finite() {
            self.log_s.push_back(log_s);
            if self.log_s.len() > RECENT {
                self.log_s.pop_front();
            }
        }
    }

    fn pairs(&self, from: usize, to: usize) -> Pairs {
        let mut pairs = Pairs::default();
        self.log_s.range(from..to).for_each(|x| pairs.add(*x));
        pairs
    }

    /// The newer half is surely faster than the older one: it is on its way back.
    fn improves(&self) -> bool {
        let (n, half) = (self.log_s.len(), self.log_s.len() / 2);
        let (old, new) = (self.pairs(0, half), self.pairs(half, n));
        let both = |f: fn(&Pairs) -> Option<f64>| Some((f(&old)?, f(&new)?));
        let (Some((before, after)), Some((a, b))) = (both(Pairs::mean), both(Pairs::error)) else {
            return false;
        };
        before - after > SURE * a.hypot(b)
    }
}

impl Tuner {
    /// Something else stands from now on; after what broke a limit it takes a while until that shows.
    pub(super) fn begin_anew(&mut self, broke: bool) {
        for recent in self.recent.values_mut() {
            recent.log_s.clear();
            recent.skip = if broke { AFTERMATH } else { 0 };
        }
    }

    /// Takes up the iterations that began while what stands now stood.
    fn note_recent(&mut self, look: &Look) {
        let Some(block) = &self.block else { return };
        let untouched = self.kept.is_empty() && self.phase == Phase::Incumbent;
        for seen in look.jobs.iter().take(JOBS_MAX) {
            let first = self.first.entry(seen.job.clone()).or_default();
            let recent = self.recent.entry(seen.job.clone()).or_default();
            for (start, end) in seen.ended.iter().filter(|(s, _)| *s >= block.from) {
                let log_s = end.saturating_sub(*start).as_secs_f64().ln();
                if untouched {
                    first.add(log_s);
                } else {
                    recent.add(log_s);
                }
            }
        }
        // A job may be missing from a look; who is gone makes room only where there are too many.
        let alive = |job: &JobId| look.jobs.iter().any(|j| j.job == *job);
        if self.first.len() > JOBS_MAX {
            self.first.retain(|job, _| alive(job));
            self.recent.retain(|job, _| alive(job));
        }
    }

    /// Log ratio of a job's latest iterations to those before the session changed anything, and its standard error.
    /// `None`: too few of either.
    fn since_first(&self, job: &JobId) -> Option<(f64, f64)> {
        let (first, recent) = (self.first.get(job)?, self.recent.get(job)?);
        let recent = recent.pairs(0, recent.log_s.len());
        let error = first.error()?.hypot(recent.error()?);
        Some((recent.mean()? - first.mean()?, error))
    }

    /// A job that is surely slower than the session may make it.
    fn slowed(&self) -> Option<JobId> {
        let limit = self.session.limits.slowdown_max.ln_1p();
        let full = self
            .recent
            .iter()
            .filter(|(_, r)| r.log_s.len() == RECENT && !r.improves());
        let mut slowed = full.map(|(job, _)| job).filter(|job| {
            self.since_first(job)
                .is_some_and(|(ratio, error)| ratio - SURE * error > limit)
        });
        slowed.next().cloned()
    }

    /// Takes what was kept last back if a job is surely slower than the session may make it; not before the first pair of a
    /// candidate, which may have left that behind.
    pub(super) fn gave_back(&mut self, look: &Look, now: Duration) -> bool {
        self.note_recent(look);
        let unknown = self.trial.as_ref().is_some_and(|t| t.all.n == 0);
        if unknown || self.kept.is_empty() {
            return false;
        }
        let slower = self.slowed().map(Verdict::Slower);
        slower.is_some_and(|slower| {
            self.undo(slower, look, now);
            true
        })
    }

    /// Routes on trial: dropped where a job pays or all are slower on average, kept otherwise.
    pub(super) fn routes_seen(&mut self, look: &Look, now: Duration) {
        self.note_recent(look);
        if let Some(job) = self.slowed() {
            self.end_trial(Verdict::Slower(job), look, now);
            return;
        }
        let Some(block) = &self.block else { return };
        if !block.complete(look, 2 * self.session.limits.iterations_first) {
            if self.late(now) {
                self.end_trial(Verdict::Silent, look, now);
            }
            return;
        }
        let mut all = Pairs::default();
        let mut error = 0.0f64;
        for seen in &look.jobs {
            let since = self.since_first(&seen.job);
            let (Some((ratio, e)), Some(trial)) = (since, &mut self.trial) else {
                continue;
            };
            all.add(ratio);
            error = error.hypot(e);
            trial.jobs.entry(seen.job.clone()).or_default().add(ratio);
        }
        let mean = all.mean().unwrap_or(0.0);
        if let Some(trial) = &mut self.trial {
            trial.all.add(mean);
        }
        let worse = mean > error / f64::from(all.n.max(1));
        let verdict = if worse {
            Verdict::NoBetter
        } else {
            Verdict::Kept
        };
        self.end_trial(verdict, look, now);
    }
}
