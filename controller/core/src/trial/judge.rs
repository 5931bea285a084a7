//! What the job's iterations say of a change: faster, slower, or nothing.

use super::{Cause, STALLED_MIN, State, Trial};
use crate::config::Trial as Limits;
use crate::io::Command;
use crate::jobs::{Iteration, Job, Signature};
use std::collections::VecDeque;
use std::time::Duration;

/// Recent iterations on which a kept change is watched.
const WATCH: usize = 5;

impl Trial {
    /// Whether a call has run for much longer than any should: a path that lost its end makes no
    /// iteration slower, it ends none. Ranks may also wait for one that writes a checkpoint, so
    /// that without a flow that `retransmits` over a pin the wait has to be as long as a job's end.
    pub(super) fn stalled(
        &self,
        job: Option<&Job>,
        retransmits: bool,
        limits: &Limits,
        now: Duration,
    ) -> bool {
        let usual = median(&self.before_s).unwrap_or(0.0).clamp(0.0, 1e6);
        let (least, times) = if retransmits {
            (STALLED_MIN, 5.0)
        } else {
            (limits.job_gone, 10.0)
        };
        let limit = least.max(Duration::from_secs_f64(usual * times));
        let stood = self
            .applied_at
            .map_or(Duration::ZERO, |at| now.saturating_sub(at));
        let running = job.and_then(|j| j.running_for(now));
        running.is_some_and(|running| running.min(stood) > limit)
    }

    pub(super) fn judge(
        &mut self,
        job: Option<(&Signature, &VecDeque<Iteration>)>,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        let applied_at = self.applied_at.unwrap_or(now);
        if let Some((signature, series)) = job {
            if *signature != self.signature {
                self.roll_back(
                    Cause::NotJudged,
                    "the job changed its collective: before and after cannot be compared".into(),
                    limits,
                    now,
                    out,
                );
                return;
            }
            self.after_s = series
                .iter()
                .filter(|i| i.ended > applied_at)
                .skip(1)
                .map(|i| i.seconds)
                .collect();
        }
        let Some(before) = median(&self.before_s) else {
            self.roll_back(
                Cause::NotJudged,
                "nothing to compare with".into(),
                limits,
                now,
                out,
            );
            return;
        };
        let slower = self
            .after_s
            .iter()
            .take(2)
            .filter(|s| **s > before * limits.harm_ratio)
            .count();
        if self.after_s.len() >= 2 && slower == 2 {
            let after = median(&self.after_s).unwrap_or(f64::NAN);
            self.roll_back(
                Cause::Slower,
                format!("slower: {}", self.signature.comparison(before, after)),
                limits,
                now,
                out,
            );
        } else if self.after_s.len() >= limits.iterations_after {
            let after = median(&self.after_s).unwrap_or(f64::NAN);
            let figures = self.signature.comparison(before, after);
            if after <= before * limits.keep_ratio {
                self.state = State::Committed;
                self.decided_at = Some(now);
                self.reason = format!("faster, kept: {figures}");
            } else {
                self.roll_back(
                    Cause::NoBetter,
                    format!("not faster by enough: {figures}"),
                    limits,
                    now,
                    out,
                );
            }
        } else if now.saturating_sub(applied_at) >= limits.hold_timeout {
            self.roll_back(
                Cause::NotJudged,
                format!(
                    "no judgement: {} iterations in {} s",
                    self.after_s.len(),
                    limits.hold_timeout.as_secs()
                ),
                limits,
                now,
                out,
            );
        }
    }

    /// A kept change must stay worth keeping.
    pub(super) fn watch(
        &mut self,
        job: Option<(&Signature, &VecDeque<Iteration>)>,
        limits: &Limits,
        now: Duration,
        out: &mut VecDeque<Command>,
    ) {
        let Some((signature, series)) = job else {
            return;
        };
        if *signature != self.signature {
            return;
        }
        let recent: Vec<f64> = series
            .iter()
            .filter(|i| Some(i.started) > self.decided_at)
            .map(|i| i.seconds)
            .rev()
            .take(WATCH)
            .collect();
        let worse = median(&self.before_s).is_some_and(|b| {
            recent.len() == WATCH && recent.iter().all(|s| *s > b * limits.harm_ratio)
        });
        if worse {
            self.roll_back(
                Cause::Slower,
                "the job became slower than before the change".into(),
                limits,
                now,
                out,
            );
        }
    }
}

/// Median; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mid = sorted.len() / 2;
    let upper = *sorted.get(mid)?;
    Some(if sorted.len() % 2 == 1 {
        upper
    } else {
        (sorted[mid - 1] + upper) / 2.0
    })
}
