//! What a job's iterations tell: its loss, its bandwidth, when it has something on the wire.

use super::{CURRENT, ITERATIONS_MAX, Job, Signature, only_queues};
use crate::verdict::Impact;
use std::sync::Arc;
use std::time::Duration;

/// Iterations on either side before a loss is told.
const IMPACT_MIN: usize = 3;

/// Calls of a late frame are dated late: by less than this, they stand out of order.
const LATE_MAX: Duration = Duration::from_secs(10);

impl Job {
    /// What the job has lost since `began`: how much longer its iterations take than the median of those before.
    /// `None` if too few are known on either side, or they are measured on the progress of flows.
    #[must_use]
    pub fn impact(&self, began: Duration, now: Duration) -> Option<Impact> {
        let (signature, series) = self.series(now)?;
        if matches!(signature, Signature::FlowProgress { .. }) {
            return None;
        }
        let before = series.iter().filter(|i| i.ended <= began);
        let mut before: Vec<f64> = before.map(|i| i.seconds).collect();
        let since: Vec<f64> = series
            .iter()
            .filter(|i| i.started >= began)
            .map(|i| i.seconds)
            .collect();
        if before.len() < IMPACT_MIN || since.len() < IMPACT_MIN {
            return None;
        }
        before.sort_by(f64::total_cmp);
        let healthy = before[before.len() / 2];
        // Calls that only queue work, and bursts, follow each other without a gap: their times are shares of it.
        let mean = since.iter().sum::<f64>() / since.len() as f64;
        let period = match signature {
            Signature::Queued { .. } | Signature::Rhythm => mean,
            Signature::Collective { .. } | Signature::FlowProgress { .. } => {
                let first = series.iter().find(|i| i.started >= began)?.started;
                let last = series.back()?.started;
                let gaps = (since.len() - 1).max(1) as f64;
                last.saturating_sub(first).as_secs_f64() / gaps
            }
        };
        (period > 0.0).then(|| Impact {
            lost_ratio: ((mean - healthy) / period).clamp(0.0, 1.0),
            ranks: self.ranks.unwrap_or(0),
        })
    }

    /// Bus bandwidth of an iteration in bits per second, by the convention of nccl-tests: wire
    /// bytes of an ideal ring over the time taken. `None` where the operation, its size or the
    /// number of ranks is unknown, or where its calls only queue it.
    #[must_use]
    pub fn busbw_bps(&self, seconds: f64) -> Option<f64> {
        let (op, bytes) = self
            .collective
            .as_ref()
            .filter(|(op, _)| !only_queues(op))?;
        let ranks = f64::from(self.ranks.filter(|n| *n > 1)?);
        let factor = if op.contains("llreduce") || op.contains("llReduce") {
            2.0 * (ranks - 1.0) / ranks
        } else if op.contains("gather")
            || op.contains("Gather")
            || op.contains("educe_scatter")
            || op.contains("educeScatter")
            || op.contains("lltoall")
        {
            (ranks - 1.0) / ranks
        } else {
            1.0
        };
        (*bytes > 0 && seconds > 0.0).then(|| factor * *bytes as f64 * 8.0 / seconds)
    }

    /// Whether its calls tell when it has something on the wire.
    #[must_use]
    pub fn tells_phases(&self) -> bool {
        let waits = |(op, _): &(Arc<str>, u64)| !only_queues(op);
        self.collective.as_ref().is_some_and(waits)
    }

    /// Share of `from..to` in which the job is *known* to have had no collective running: gaps
    /// between calls of one rank, and the time before its first. What is not yet reported counts
    /// as busy, so that late news never makes a link look hotter than it was. Where calls only queue
    /// work nothing is known.
    #[must_use]
    pub fn idle_share(&self, from: Duration, to: Duration) -> f64 {
        if self
            .collective
            .as_ref()
            .is_some_and(|(op, _)| only_queues(op))
        {
            return 0.0;
        }
        let Some(series) = self.by_rank.values().find(|s| !s.is_empty()) else {
            return 0.0;
        };
        let overlap =
            |a: Duration, b: Duration| b.min(to).saturating_sub(a.max(from)).as_secs_f64();
        let mut idle = if series.len() < ITERATIONS_MAX {
            series
                .front()
                .map_or(0.0, |i| overlap(Duration::ZERO, i.started))
        } else {
            0.0
        };
        // The newest first: what began long before `from` has no gap in the interval.
        for (after, before) in series.iter().rev().zip(series.iter().rev().skip(1)) {
            if after.started.saturating_add(LATE_MAX) < from {
                break;
            }
            idle += overlap(before.ended, after.started);
        }
        let length = to.saturating_sub(from).as_secs_f64();
        if length > 0.0 {
            (idle / length).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// The largest share of an interval in which one of the jobs that run may have had something on the wire; 1 with none.
pub(super) fn busiest<'a>(
    jobs: impl Iterator<Item = &'a Job>,
    from: Duration,
    to: Duration,
) -> f64 {
    let mut most: Option<f64> = None;
    for job in jobs.filter(|j| to.saturating_sub(j.last_seen) <= j.age_max(CURRENT)) {
        let share = 1.0 - job.idle_share(from, to);
        // No job is busier than all the time: asked with each sample, of each job that a fleet runs.
        if share >= 1.0 {
            return share;
        }
        most = Some(most.map_or(share, |most| most.max(share)));
    }
    most.unwrap_or(1.0)
}
