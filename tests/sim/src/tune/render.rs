//! The comparison as a document.

use crate::tune::figures::{Row, TuningResults};
use std::fmt::Write;

/// What each key means, in a sentence. `X` stands for nothing (ours), `paraleon_`, `oracle_`, `no_cc_`, `nv_routed_`.
const KEYS: [(&str, &str); 6] = [
    (
        "tuning_mean_gain_pct_vs_nv",
        "by how much less time collectives took than under `nv`, mean over the scenarios in which flows contend, \
         over the whole run with the search in it",
    ),
    (
        "tuning_worst_scenario_pct",
        "the change of collective time against `nv` in the scenario where it is worst (above 0 is slower)",
    ),
    (
        "tuning_worst_victim_slowdown_pct",
        "the change of the iteration time of the job that lost most against `nv`, mean over the seeds, worst of all \
         scenarios",
    ),
    (
        "tuning_pause_points_over_nv",
        "share of the time for which the most paused port was paused, percentage points above `nv`, worst of all scenarios",
    ),
    (
        "tuning_lost_iterations",
        "time lost while searching, in iterations of `nv`, mean over the scenarios",
    ),
    (
        "routing_pct_of_collision_free",
        "time of the collision-free ring as a share of its time after routing, last third of the runs of ring-collisions",
    ),
];

/// Markdown: what was measured and how, a table for each scenario, the keys.
#[must_use]
pub fn markdown(results: &TuningResults) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(&format!(
        "Every contestant starts from what NVIDIA's defaults (`nv`) settle at, in {} scenarios with {} seeds each; a seed \
         decides hashes, marks and jitter, and every figure is against `nv` with the same seed: mean over the seeds ± half \
         of the 95 % confidence interval (Student's t). Time: iteration times averaged over the run, search included, \
         geometric mean over the jobs. Settled: the same over the last third of the run. Flow p99: messages. Pause: the port that is \
         paused most, percentage points of time. Victim: the job that lost most. Lost: what the search cost, in iterations \
         of `nv`. Fixed settings and the oracle run for a fourth of the \
         time, `nv` and `nv_routed` (the planner's pins alone) for half, the ACC-like rule for a third. The oracle is the best of eight settings and \
         `nv`, routed, that breaks no limit, \
         chosen with hindsight; it runs in the small scenarios, and its keys are over those.",
        results.scenarios.len(),
        results.seeds,
    ));
    for s in &results.scenarios {
        line(&format!(
            "\n### {} ({} ms{})\n\n{}\n",
            s.name,
            s.simulated_ms,
            if s.contended {
                ""
            } else {
                ", nothing contends"
            },
            s.about
        ));
        line("| contestant | time % | settled % | flow p99 % | pause points | victim | lost |");
        line("|---|---|---|---|---|---|---|");
        for row in &s.rows {
            line(&cells(row));
        }
    }
    line("\n### Keys\n");
    for (key, meaning) in KEYS {
        let of = |prefix: &str| {
            let value = results.keys.get(&format!("{prefix}{key}"))?;
            Some(format!(
                "{}{value:.2}",
                if prefix.is_empty() {
                    String::new()
                } else {
                    format!("{} ", prefix.trim_end_matches('_'))
                }
            ))
        };
        let values: Vec<String> = ["", "paraleon_", "oracle_", "no_cc_", "nv_routed_"]
            .into_iter()
            .filter_map(of)
            .collect();
        if !values.is_empty() {
            line(&format!("- `{key}` ({}): {meaning}.", values.join(", ")));
        }
    }
    out
}

fn cells(row: &Row) -> String {
    let mut text = format!(
        "| {} | {} | {} | {} | {} |",
        row.name, row.time_pct, row.settled_pct, row.flow_p99_pct, row.pause_points
    );
    let lost = row.lost_iterations.as_ref();
    let lost = lost.map_or("-".to_owned(), ToString::to_string);
    write!(text, " {} {} | {lost} |", row.victim, row.victim_pct).ok();
    text
}
