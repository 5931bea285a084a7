//! The figures of a demo run: the table, target/demo.json, and whether it succeeded.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

/// What a run has shown. The names are those of target/demo.json.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Median over the iterations before the change.
    pub busbw_before_mbps: Option<f64>,
    /// Median over the iterations after it was kept.
    pub busbw_after_mbps: Option<f64>,
    /// The same job on routes set by hand.
    pub busbw_collision_free_mbps: Option<f64>,
    /// From the start of the job to the change read back on every node.
    pub job_start_to_change_s: Option<f64>,
    /// From the start of mpirun to the end of the first iteration.
    pub job_start_to_first_iteration_s: Option<f64>,
    /// From the start of the job to the first collective that the controller saw.
    pub job_start_to_job_seen_s: Option<f64>,
    /// From the start of the job to the verdict.
    pub job_start_to_verdict_s: Option<f64>,
    /// From the start of the job to the lease being asked for.
    pub job_start_to_lease_s: Option<f64>,
    /// Such as `ecmp_collision`; `None` if there was no verdict.
    pub verdict_class: Option<String>,
    /// True if a change was taken back.
    pub rolled_back: bool,
}

impl Report {
    /// Says why the run is no success; `None` if it is one.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.rolled_back {
            return Some("the change was taken back".into());
        }
        match (self.busbw_before_mbps, self.busbw_after_mbps) {
            (Some(before), Some(after)) if after > before => None,
            (Some(before), Some(after)) => Some(format!(
                "the collective did not become faster: {before:.1} Mbit/s before, {after:.1} after"
            )),
            _ => Some("the collective was not measured before and after a change".into()),
        }
    }

    /// The before/after table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.set_header(["all-reduce", "busbw Mbit/s", "against before"]);
        let rows = [
            ("before: flows collide", self.busbw_before_mbps),
            ("after: rerouted by weir", self.busbw_after_mbps),
            ("routes set by hand", self.busbw_collision_free_mbps),
        ];
        for (name, value) in rows {
            let ratio = value
                .zip(self.busbw_before_mbps)
                .map(|(v, before)| v / before);
            table.add_row([
                name.to_owned(),
                value.map_or_else(|| "-".into(), |v| format!("{v:.1}")),
                ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}x")),
            ]);
        }
        table.to_string()
    }

    /// How the time from the job's start to the change was spent, stage by stage.
    #[must_use]
    pub fn stages(&self) -> String {
        let moments = [
            ("first iteration", self.job_start_to_first_iteration_s),
            ("job seen", self.job_start_to_job_seen_s),
            ("verdict", self.job_start_to_verdict_s),
            ("lease asked for", self.job_start_to_lease_s),
            ("change applied", self.job_start_to_change_s),
        ];
        let mut known: Vec<(&str, f64)> = moments
            .iter()
            .filter_map(|(name, at)| Some((*name, (*at)?)))
            .collect();
        known.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut last = 0.0;
        let mut parts = Vec::new();
        for (name, at) in known {
            parts.push(format!("{name} at {at:.2} s (+{:.2})", at - last));
            last = at;
        }
        format!("from the job's start: {}", parts.join(", "))
    }

    /// Writes target/demo.json.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(before: f64, after: f64) -> Report {
        Report {
            busbw_before_mbps: Some(before),
            busbw_after_mbps: Some(after),
            ..Report::default()
        }
    }

    #[test]
    fn faster_is_success_and_anything_else_says_why() {
        assert_eq!(report(40.0, 80.0).failure(), None);
        assert!(report(40.0, 40.0).failure().is_some());
        assert!(Report::default().failure().is_some());
        let back = Report {
            rolled_back: true,
            ..report(40.0, 80.0)
        };
        assert!(back.failure().is_some());
    }
}
