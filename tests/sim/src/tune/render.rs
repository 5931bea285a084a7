//! The comparison as a document.

use crate::tune::figures::{QUOTED, Row, ScenarioResult, TuningResults};
use std::fmt::Write;

/// From how much slower on, percent, a job in a single run is listed.
const LISTED_PCT: f64 = 2.0;

/// What each key means, in a sentence; prefixes are those of [`QUOTED`].
const KEYS: [(&str, &str); 11] = [
    (
        "tuning_mean_gain_pct_vs_nv",
        "by how much less time collectives took than under `nv`, mean over the scenarios in which flows contend, \
         over the whole run with the search in it",
    ),
    (
        "tuning_mean_gain_pct_on_oracle_scenarios",
        "the same over the scenarios in which the oracle runs",
    ),
    (
        "tuning_mean_gain_pct_vs_nv_routed",
        "by how much less time collectives took than under `nv_routed`: what the search adds to the planner's routes",
    ),
    (
        "tuning_worst_scenario_pct",
        "the change of collective time against `nv` in the worst run of all scenarios and seeds (above 0 is slower)",
    ),
    (
        "tuning_worst_victim_slowdown_pct",
        "the change of the iteration time of the job that lost most against `nv`, worst run of all scenarios, jobs and seeds",
    ),
    (
        "tuning_worst_victim_slowdown_pct_mean",
        "the same, mean over the seeds, worst of all scenarios and jobs",
    ),
    (
        "tuning_pause_points_over_nv",
        "share of the time for which the most paused port was paused, percentage points above `nv`, worst run of all",
    ),
    (
        "tuning_lost_iterations",
        "time lost while candidates stood, in iterations of `nv`, mean over the scenarios",
    ),
    ("tuning_lost_pct_of_run", "the same as a share of the run"),
    (
        "tuning_settled_pct_of_runs",
        "runs in which the search was over at the end",
    ),
    (
        "routing_pct_of_collision_free",
        "time of the collision-free ring as a share of its time after routing, last third of the runs of ring-collisions; \
         no two flows of the collision-free one share a link between switches, which is checked",
    ),
];

const METHOD: &str = "Every contestant runs for the same simulated time from the same state: what NVIDIA's defaults (`nv`) \
    have settled at after a warm-up. A run is compared with that of `nv` with the same seed in each twelfth of \
    the time, so that what `nv` itself gains with time does not count; who does nothing has 0 everywhere. A seed decides hashes, marks and \
    jitter; figures are means over the seeds ± half of the 95 % confidence interval (Student's t). `nv_again` is `nv` with other marks and \
    jitter: what chance alone does. `nv_bytes` is `nv` with a byte counter of 2 MB: shipped are 32767 of a unit that is not \
    documented, here 64 bytes; in `nv` and all others it is off. `nv_routed` has the planner's pins alone, `paraleon_routed` has them before its \
    search begins, as ours has once it kept them.\n\n\
    Time: iteration times over the run, search included, geometric mean over twelfths and jobs. Settled: the same over the last third. \
    Flow p99: messages. Pause: the port that is paused most, percentage points of time. Victim: the job that lost most, by its \
    mean. Lost: what the search cost while candidates stood, in iterations of `nv` and as a share of the run. Search: candidates \
    tried, those that were kept, runs in which it was over at the end and after how long. The oracle is the best of 73 settings (six \
    thresholds, three timers, two climbs, two gaps, marking off), routed, that breaks no limit, chosen with hindsight for each seed: all \
    of them run for an eighth of the time, the best four for all of it; it runs in the small scenarios.";

/// Markdown: what was measured and how, a table for each scenario, who lost, the keys.
#[must_use]
pub fn markdown(results: &TuningResults) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(&format!(
        "Measured by version {} as `{}`: {} scenarios with {} seeds each. {METHOD}",
        results.version,
        results.arguments,
        results.scenarios.len(),
        results.seeds,
    ));
    for s in &results.scenarios {
        line(&format!(
            "\n### {} ({} ms after {} ms of warm-up{})\n\n{}\n",
            s.name,
            s.simulated_ms,
            s.warm_up_ms,
            if s.contended {
                ""
            } else {
                ", nothing contends"
            },
            s.about
        ));
        line(
            "| contestant | time % | settled % | flow p99 % | pause points | victim | lost | search |",
        );
        line("|---|---|---|---|---|---|---|---|");
        for row in &s.rows {
            line(&cells(row));
        }
    }
    line("\n### Who lost\n");
    line(&format!(
        "Every job that was slower than under `nv` by more than {LISTED_PCT} % in a run of one that tunes, and how often chance alone \
         (`nv_again`) does that: in {}.\n",
        chance(&results.scenarios)
    ));
    line("| scenario | contestant | job | seed | slower % |");
    line("|---|---|---|---|---|");
    for text in losers(&results.scenarios, |r| r.lost_pct.is_some()) {
        line(&text);
    }
    line("\n### Keys\n");
    for (key, meaning) in KEYS {
        let values: Vec<String> = QUOTED
            .iter()
            .filter_map(|(prefix, name)| {
                let key = format!("{prefix}{key}");
                let value = results.keys.get(&key)?;
                let ci = results.keys.get(&format!("{key}_ci95"));
                let ci = ci.map_or_else(String::new, |ci| format!(" ±{ci:.2}"));
                let name = if prefix.is_empty() { "" } else { name };
                Some(format!("{name} {value:.2}{ci}").trim_start().to_owned())
            })
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
    let victim = row
        .victim()
        .map_or_else(String::new, |j| format!("{} {}", j.name, j.slower_pct));
    let lost = row.lost_iterations.as_ref().zip(row.lost_pct.as_ref());
    let lost = lost.map_or("-".to_owned(), |(n, pct)| {
        format!("{n} ({:.1} %)", pct.mean)
    });
    write!(text, " {victim} | {lost} | {} |", search(row)).ok();
    text
}

/// Candidates tried and kept in all runs, in how many runs the search was over, and after how long.
fn search(row: &Row) -> String {
    let all: Vec<_> = row.runs.iter().filter_map(|r| r.search.as_ref()).collect();
    if all.is_empty() {
        return "-".to_owned();
    }
    let tried: usize = all.iter().map(|s| s.tried).sum();
    let kept: usize = all.iter().map(|s| s.kept).sum();
    let over: Vec<f64> = all.iter().filter_map(|s| s.settled_us).collect();
    let mut text = format!("{tried}, {kept}; {} of {}", over.len(), all.len());
    if !over.is_empty() {
        let ms = over.iter().sum::<f64>() / over.len() as f64 / 1e3;
        write!(text, ", {ms:.0} ms").ok();
    }
    text
}

/// A line for each job in each run that was slower by more than [`LISTED_PCT`].
fn losers(scenarios: &[ScenarioResult], whose: fn(&Row) -> bool) -> Vec<String> {
    let mut all = Vec::new();
    for s in scenarios {
        for row in s.rows.iter().filter(|r| whose(r)) {
            for job in &row.jobs {
                for (run, slower) in row.runs.iter().zip(&job.slower_pct.by_seed) {
                    if *slower > LISTED_PCT {
                        all.push(format!(
                            "| {} | {} | {} | {} | {slower:+.1} |",
                            s.name, row.name, job.name, run.seed
                        ));
                    }
                }
            }
        }
    }
    all
}

/// `3 of 70 jobs`: how often chance alone makes a job slower by more than [`LISTED_PCT`].
fn chance(scenarios: &[ScenarioResult]) -> String {
    let is = |r: &Row| r.name == "nv_again";
    let rows = scenarios.iter().flat_map(|s| &s.rows).filter(|r| is(r));
    let all: usize = rows.map(|r| r.jobs.len() * r.runs.len()).sum();
    format!("{} of {all} jobs", losers(scenarios, is).len())
}
