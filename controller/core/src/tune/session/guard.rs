//! The limits of a session: what ends a candidate at once, and what takes back what was kept.

use super::{Phase, Scope, Tuner, Verdict, What};
use crate::ids::JobId;
use crate::tune::block::{Block, JOBS_MAX, JobSeen, Look, Measured};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// An iteration longer than the longest of those by this factor ends a candidate at once.
const GROSS: f64 = 1.25;
/// A block that takes so many times as long as the first one gives its candidate up.
const BLOCK_PATIENCE: f64 = 6.0;

impl Tuner {
    /// A limit that breaks while a candidate stands.
    pub(super) fn broken(&mut self, look: &Look, now: Duration) -> Option<Verdict> {
        let limit = self.session.limits.slowdown_max;
        for seen in look.jobs.iter().take(JOBS_MAX) {
            if slow_now(&self.history, &mut self.slow, seen, limit, now) {
                return Some(Verdict::Slower(seen.job.clone()));
            }
        }
        let (block, before) = (self.block.as_ref()?, self.before.as_ref()?);
        let got = block.since_change(&look.counters, now)?;
        // Early in a block a single pause is a large share: it is taken of a whole block.
        let share = got.paused * got.seconds / got.seconds.max(before.seconds);
        if share > self.normal.paused + self.session.limits.pause_max {
            return Some(Verdict::Paused);
        }
        let more = |now: f64, normal: f64| now > normal + 3.0 * normal.sqrt();
        if more(
            got.lost_per_s * got.seconds,
            self.normal.lost_per_s * got.seconds,
        ) {
            return Some(Verdict::Lost);
        }
        // A change of routes lets packets overtake each other once; only what comes later tells against it.
        let got = block.measured(&look.counters, now)?;
        let normal = self.normal.out_of_sequence_per_s * got.seconds;
        more(got.out_of_sequence_per_s * got.seconds, normal).then_some(Verdict::Lost)
    }

    pub(super) fn late(&self, now: Duration) -> bool {
        let Some(first) = self.first_block else {
            return false;
        };
        let since = now.saturating_sub(self.applied + self.settle());
        since.as_secs_f64() > first * BLOCK_PATIENCE
    }

    /// What was kept is given back, the latest first, when a job is slower three iterations in a row than any was before,
    /// or a port is paused for longer than the session allows: rates may take long to get to where a setting leads them.
    pub(super) fn watched(&mut self, look: &Look, now: Duration) {
        let limit = self.session.limits.slowdown_max;
        let Some(block) = &self.block else { return };
        let since = block.from;
        if self.gave_back(look, now) {
            return;
        }
        let Some(block) = &self.block else { return };
        for seen in look.jobs.iter().take(JOBS_MAX) {
            let Some(longest) = longest(&self.history, &seen.job) else {
                continue;
            };
            let slow = self.slow.entry(seen.job.clone()).or_default();
            for (start, end) in seen.ended.iter().filter(|(s, _)| *s >= since) {
                let seconds = end.saturating_sub(*start).as_secs_f64();
                *slow = if seconds > longest * (1.0 + limit) {
                    *slow + 1
                } else {
                    0
                };
            }
            if *slow >= 3 {
                self.undo(Verdict::Slower(seen.job.clone()), look, now);
                return;
            }
        }
        if !block.complete(look, self.session.limits.iterations) {
            return;
        }
        match block.measured(&look.counters, now) {
            Some(m) if self.over_pause_limit(&m) => self.undo(Verdict::Paused, look, now),
            Some(_) | None => {
                let counters = look.counters.clone();
                self.block = Some(Block::new(now, Duration::ZERO, Duration::ZERO, counters));
            }
        }
    }

    /// A port is paused for longer than the session allows. Before anything was kept, what is seen is what is normal.
    pub(super) fn over_pause_limit(&mut self, m: &Measured) -> bool {
        if self.kept.is_empty() {
            self.paused_first = self.paused_first.max(m.paused);
        }
        m.paused > self.paused_first + self.session.limits.pause_max
    }

    /// Gives back what was kept last. A session with nothing to give back only goes on watching.
    pub(super) fn undo(&mut self, verdict: Verdict, look: &Look, now: Duration) {
        let Some(kept) = self.kept.pop() else {
            self.slow.clear();
            return;
        };
        self.trial = None;
        self.before = None;
        self.begin_anew(true);
        self.incumbent = kept.before;
        self.steps[kept.step].verdict = verdict;
        if let What::Move(m) = kept.what {
            let tally = self.tallies.entry(m).or_default();
            tally.kept = tally.kept.saturating_sub(1);
            tally.broke += 1;
        }
        self.unmade(&kept.what);
        let incumbent = self.incumbent.clone();
        self.apply(incumbent, Scope::All, Phase::Incumbent, look, now);
    }
}

/// Seconds of the longest iteration of a job under the incumbent. `None`: none is known.
fn longest(history: &BTreeMap<JobId, VecDeque<f64>>, job: &JobId) -> Option<f64> {
    history.get(job)?.iter().copied().reduce(f64::max)
}

/// A job's iteration is grossly longer than any under the incumbent, or the second one in a row is by `limit`.
fn slow_now(
    history: &BTreeMap<JobId, VecDeque<f64>>,
    slow: &mut BTreeMap<JobId, u32>,
    seen: &JobSeen,
    limit: f64,
    now: Duration,
) -> bool {
    let Some(longest) = longest(history, &seen.job) else {
        return false;
    };
    let running = seen.running_since.map(|s| now.saturating_sub(s));
    if running.is_some_and(|r| r.as_secs_f64() > longest * GROSS) {
        return true;
    }
    let slow = slow.entry(seen.job.clone()).or_default();
    for (start, end) in &seen.ended {
        let seconds = end.saturating_sub(*start).as_secs_f64();
        *slow = if seconds > longest * (1.0 + limit) {
            *slow + 1
        } else {
            0
        };
        if *slow >= 2 || seconds > longest * GROSS {
            return true;
        }
    }
    false
}
