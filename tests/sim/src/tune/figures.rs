//! What is made of runs: a row for each contestant, and the figures that are quoted.

#[cfg(test)]
mod tests;

use crate::time::{MS, Time, to_us};
use crate::tune::case::{Outcome, WARM_UP};
use crate::tune::stats::Estimate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Raw {
    /// Seed.
    pub seed: u64,
    /// Jobs.
    pub jobs: Vec<RawJob>,
    /// Share of the time for which the port that was paused most was paused, 0.0..=1.0.
    pub paused_worst: f64,
    /// Mean of that share over all ports.
    pub paused_mean: f64,
    /// Packets lost for want of a buffer.
    pub lost: u64,
    /// Packets received out of sequence.
    pub out_of_sequence: u64,
    /// When the search was over, ms after the warm-up. `None`: it was not, or there is none.
    pub settled_ms: Option<f64>,
    /// What was tried, in words; only of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// A job in one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RawJob {
    /// Its name.
    pub name: String,
    /// Iterations that started.
    pub iterations: usize,
    /// Their mean duration, us; `None`: there was none.
    pub mean_us: Option<f64>,
    /// The same over the last third of the run.
    pub settled_us: Option<f64>,
    /// Duration that 99 % of its messages keep, us.
    pub flow_us_p99: f64,
}

fn raw(seed: u64, ran: Ran) -> Raw {
    let o = ran.outcome;
    let jobs = o.jobs.into_iter().map(|j| RawJob {
        iterations: j.iterations.len(),
        mean_us: j.mean_us(0.0, f64::INFINITY),
        settled_us: j.mean_us(o.us * 2.0 / 3.0, f64::INFINITY),
        flow_us_p99: j.flow_us_p99,
        name: j.name,
    });
    Raw {
        seed,
        jobs: jobs.collect(),
        paused_worst: o.paused_worst,
        paused_mean: o.paused_mean,
        lost: o.lost,
        out_of_sequence: o.out_of_sequence,
        settled_ms: ran.settled.map(|t| (t - WARM_UP) as f64 / MS as f64),
        steps: ran.steps,
    }
}

/// A contestant in a scenario, over all seeds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Contestant.
    pub name: String,
    /// Collective time against `nv`, percent, search included: iteration times averaged over the run, their ratios over
    /// the jobs (geometric mean).
    pub time_pct: Estimate,
    /// The same over the last third of the run.
    pub settled_pct: Estimate,
    /// Duration that 99 % of messages keep against `nv`, percent, geometric mean over the jobs.
    pub flow_p99_pct: Estimate,
    /// Share of the time for which the most paused port was paused, percentage points above `nv`.
    pub pause_points: Estimate,
    /// The job that lost most against `nv`, by its mean over the seeds.
    pub victim: String,
    /// How much slower that job's iterations were, percent; below 0 no job lost.
    pub victim_pct: Estimate,
    /// Time lost while searching: by how much iterations of that time were slower than the mean of `nv`, summed over those
    /// that were, less what chance alone gives `nv`; in iterations of `nv`, mean over the jobs. `None`: no search.
    pub lost_iterations: Option<Estimate>,
    /// Raw figures.
    pub runs: Vec<Raw>,
}

/// A scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Flows contend in it.
    pub contended: bool,
    /// Simulated time, ms.
    pub simulated_ms: f64,
    /// Contestants.
    pub rows: Vec<Row>,
}

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TuningResults {
    /// Seeds of each scenario.
    pub seeds: u64,
    /// Scenarios.
    pub scenarios: Vec<ScenarioResult>,
    /// The figures that are quoted, by key.
    pub keys: BTreeMap<String, f64>,
}

/// Runs of one contestant with one seed.
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) settled: Option<Time>,
    pub(super) steps: Vec<String>,
}

impl Ran {
    pub(super) fn plain(outcome: Outcome) -> Self {
        Self {
            outcome,
            settled: None,
            steps: Vec::new(),
        }
    }
}

pub(super) fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len().max(1) as f64
}

/// By job, the log ratio of the mean iteration time in a part of the run (shares of it) to that of the whole run of `nv`.
pub(super) fn ratios(outcome: &Outcome, nv: &Outcome, from: f64, until: f64) -> Vec<f64> {
    let jobs = outcome.jobs.iter().zip(&nv.jobs);
    jobs.filter_map(|(j, b)| {
        let time = j.mean_us(from * outcome.us, until * outcome.us)?;
        Some((time / b.mean_us(0.0, f64::INFINITY)?).ln())
    })
    .collect()
}

fn percent(log: f64) -> f64 {
    log.exp_m1() * 100.0
}

/// What iterations that began before `until` lost against the mean of `nv`, in iterations of `nv`.
fn lost(outcome: &Outcome, nv: &Outcome, until_us: f64) -> f64 {
    let jobs = outcome.jobs.iter().zip(&nv.jobs).filter_map(|(j, b)| {
        let normal = b.mean_us(0.0, f64::INFINITY)?;
        let over = |d: f64| (d / normal - 1.0).max(0.0);
        let chance = mean(&b.iterations.iter().map(|i| over(i.1)).collect::<Vec<_>>());
        let searched = j.iterations.iter().filter(|i| i.0 < until_us);
        Some(searched.map(|i| over(i.1) - chance).sum::<f64>())
    });
    mean(&jobs.collect::<Vec<f64>>())
}

pub(super) fn row(name: &str, searches: bool, runs: Vec<(u64, Ran)>, nv: &[Outcome]) -> Row {
    let each = |f: &dyn Fn(&Ran, &Outcome) -> f64| {
        let pairs = runs.iter().zip(nv);
        Estimate::of(pairs.map(|((_, r), nv)| f(r, nv)).collect())
    };
    let jobs = nv.first().map_or(&[][..], |o| &o.jobs[..]);
    let victims = jobs.iter().enumerate().map(|(at, job)| {
        let slower = each(&|r, nv| {
            let all = ratios(&r.outcome, nv, 0.0, f64::INFINITY);
            all.get(at).map_or(f64::NAN, |x| percent(*x))
        });
        (job.name.clone(), slower)
    });
    let (victim, victim_pct) = victims
        .max_by(|a, b| a.1.mean.total_cmp(&b.1.mean))
        .unwrap_or_default();
    Row {
        name: name.to_owned(),
        time_pct: each(&|r, nv| percent(mean(&ratios(&r.outcome, nv, 0.0, f64::INFINITY)))),
        settled_pct: each(&|r, nv| percent(mean(&ratios(&r.outcome, nv, 2.0 / 3.0, 2.0)))),
        flow_p99_pct: each(&|r, nv| {
            let flows = r.outcome.jobs.iter().zip(&nv.jobs);
            let logs = flows.map(|(a, b)| (a.flow_us_p99 / b.flow_us_p99).ln());
            percent(mean(&logs.collect::<Vec<f64>>()))
        }),
        pause_points: each(&|r, nv| (r.outcome.paused_worst - nv.paused_worst) * 100.0),
        victim,
        victim_pct,
        lost_iterations: searches.then(|| {
            each(&|r, nv| {
                let until = r.settled.map_or(f64::INFINITY, |t| to_us(t - WARM_UP));
                lost(&r.outcome, nv, until)
            })
        }),
        runs: runs.into_iter().map(|(seed, r)| raw(seed, r)).collect(),
    }
}

/// The figures that are quoted; what was not run is not there.
pub(super) fn keys(scenarios: &[ScenarioResult], collision_free: &[f64]) -> BTreeMap<String, f64> {
    let mut keys = BTreeMap::new();
    for (prefix, name) in [
        ("", "weir"),
        ("paraleon_", "paraleon"),
        ("oracle_", "oracle"),
        ("no_cc_", "no_cc"),
        ("nv_routed_", "nv_routed"),
    ] {
        let rows: Vec<(bool, &Row)> = scenarios
            .iter()
            .flat_map(|s| s.rows.iter().map(|r| (s.contended, r)))
            .filter(|(_, r)| r.name == name)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let most = |f: &dyn Fn(&Row) -> f64| {
            rows.iter()
                .map(|(_, r)| f(r))
                .fold(f64::NEG_INFINITY, f64::max)
        };
        let contended: Vec<f64> = rows
            .iter()
            .filter(|(contended, _)| *contended)
            .map(|(_, r)| -r.time_pct.mean)
            .collect();
        let mut put = |key: &str, value: f64| {
            if value.is_finite() {
                keys.insert(format!("{prefix}tuning_{key}"), value);
            }
        };
        if !contended.is_empty() {
            put("mean_gain_pct_vs_nv", mean(&contended));
        }
        put("worst_scenario_pct", most(&|r| r.time_pct.mean));
        put("worst_victim_slowdown_pct", most(&|r| r.victim_pct.mean));
        put("pause_points_over_nv", most(&|r| r.pause_points.mean));
        if rows.iter().any(|(_, r)| r.lost_iterations.is_some()) {
            let lost = rows.iter().filter_map(|(_, r)| r.lost_iterations.as_ref());
            put(
                "lost_iterations",
                mean(&lost.map(|e| e.mean).collect::<Vec<f64>>()),
            );
        }
    }
    if !collision_free.is_empty() {
        keys.insert(
            "routing_pct_of_collision_free".to_owned(),
            mean(collision_free),
        );
    }
    keys
}
