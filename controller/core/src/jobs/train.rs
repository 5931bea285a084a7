//! Calls that only queue work (NCCL, RCCL): how long it takes from one to the next.

use super::Iteration;
use crate::keep::keep;
use std::time::Duration;

/// A window over calls that only queue work lasts at least this long.
const WINDOW: Duration = Duration::from_secs(1);

/// Calls since a window began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train {
    first: Duration,
    last: Duration,
    calls: u32,
    gap_max: Duration,
}

keep!(struct Train { first, last, calls, gap_max });

impl Train {
    pub fn new(start: Duration) -> Train {
        Train {
            first: start,
            last: start,
            calls: 1,
            gap_max: Duration::ZERO,
        }
    }

    /// Takes a call; gives the window that it ends, which is at the first of a burst.
    pub fn call(&mut self, start: Duration) -> Option<Iteration> {
        let gap = start.saturating_sub(self.last);
        self.gap_max = self.gap_max.max(gap);
        let long = start.saturating_sub(self.first) >= WINDOW;
        if !long || gap * 2 < self.gap_max {
            (self.calls, self.last) = (self.calls.saturating_add(1), start.max(self.last));
            return None;
        }
        let window = Iteration {
            started: self.first,
            ended: start,
            seconds: (start - self.first).as_secs_f64() / f64::from(self.calls),
        };
        *self = Train::new(start);
        Some(window)
    }
}

/// Whether calls of the function return before the collective is done.
pub(crate) fn only_queues(op: &str) -> bool {
    op.starts_with("nccl")
}

/// Whether the function moves a payload; the rest of a library's calls say nothing of progress.
pub(crate) fn moves_data(op: &str) -> bool {
    !op.starts_with("ncclGroup") && !op.starts_with("ncclComm")
}
