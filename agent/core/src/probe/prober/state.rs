//! What the prober keeps of targets and of probes that are out.

use super::types::{PathReport, Stamps, Target, TargetReport, TargetSummary};
use crate::probe::window::{Count, Samples, Summary};
use std::time::Duration;

#[derive(Debug)]
pub struct Answer {
    pub rx: Stamps,
    pub held: Option<Duration>,
    pub until: Duration,
}

#[derive(Debug)]
pub struct Flight {
    pub target: u32,
    pub path: u8,
    pub nonce: u64,
    pub sent: Duration,
    pub tx: Stamps,
    pub answer: Option<Answer>,
    /// Its answer is waited for, so that the time until we handle it is this host's own.
    pub watched: bool,
    /// Its outcome is counted; it stays so that a second answer is known.
    pub counted: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Path {
    pub total: Count,
    pub window: Count,
    pub rtts: Samples,
    pub last: Option<Summary>,
}

#[derive(Debug)]
pub struct TargetState<A> {
    pub target: Target<A>,
    pub paths: Vec<Path>,
    pub total: Count,
    pub own: Samples,
    pub theirs: Samples,
    pub last: Option<TargetSummary>,
}

impl<A> TargetState<A> {
    pub fn report(&self) -> TargetReport {
        let paths = (0..).zip(&self.paths).map(|(path, known)| PathReport {
            path,
            total: known.total,
            window: known.last,
        });
        TargetReport {
            name: self.target.name.clone(),
            total: self.total,
            window: self.last,
            paths: paths.collect(),
        }
    }

    /// Ends a window.
    pub fn close(&mut self) {
        let mut count = Count::default();
        let mut rtts = Samples::default();
        for path in &mut self.paths {
            count.sent += path.window.sent;
            count.lost += path.window.lost;
            rtts.extend(&path.rtts);
            path.last = Some(Summary {
                count: std::mem::take(&mut path.window),
                rtt: std::mem::take(&mut path.rtts).quantiles(),
            });
        }
        self.last = Some(TargetSummary {
            all: Summary {
                count,
                rtt: rtts.quantiles(),
            },
            own_delay: std::mem::take(&mut self.own).quantiles(),
            their_delay: std::mem::take(&mut self.theirs).quantiles(),
        });
    }
}
