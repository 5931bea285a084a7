//! What a replay tells.

use super::reader::Cut;
use serde::Serialize;

/// What a replay showed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Start of the controller, UTC.
    pub started: String,
    /// Version that recorded, and whether this one understands its configuration as that one did.
    pub program: String,
    pub same_defaults: bool,
    pub segments: usize,
    /// Earlier starts of the controller in the directory, which were left alone.
    pub other_runs: usize,
    /// First and last record replayed, seconds since the start.
    pub first_s: f64,
    pub last_s: f64,
    pub records: u64,
    /// Actions that were compared.
    pub compared: u64,
    pub differences: Vec<Difference>,
    pub differences_total: u64,
    /// Beginnings of segments at which what the brain holds was compared, and when it was not the same, in seconds since
    /// the start. Of a recording by another version it may be the same and written in another way.
    pub memories_compared: u64,
    pub memories_different_s: Vec<f64>,
    /// Where the replay had to start afresh, and why.
    pub restarts: Vec<Restart>,
    pub cuts: Vec<Cut>,
    /// What was found and done, without questions and renewals.
    pub story: Vec<Told>,
    pub story_left_out: u64,
    pub what_if: Option<WhatIf>,
}

/// An event from which something else followed than was recorded.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    pub at_s: f64,
    pub recorded: Vec<String>,
    pub rebuilt: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Restart {
    pub at_s: f64,
    pub why: String,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Told {
    pub at_s: f64,
    pub text: String,
}

/// What would have been different.
#[derive(Debug, Default, Serialize)]
pub struct WhatIf {
    pub verdicts: Changes,
    pub commands: Changes,
}

/// Each with the time of its first appearance.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Changes {
    pub only_recorded: Vec<Told>,
    pub only_asked: Vec<Told>,
    pub both: usize,
}

impl Report {
    /// Every action that could be compared was the same.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.differences_total == 0
    }

    /// Nothing of what was asked for is missing: something was compared, and a torn tail is the only
    /// damage.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.compared > 0 && self.restarts.is_empty() && self.cuts.iter().all(|cut| cut.torn)
    }
}
