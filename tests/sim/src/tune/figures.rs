//! What is made of runs: a row for each contestant, and the figures that are quoted.

#[cfg(test)]
mod tests;

use crate::tune::case::{JobRun, Outcome};
use crate::tune::stats::Estimate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Parts of equal length that a run is compared with `nv` in, so that what `nv` itself gains with time cancels.
const WINDOWS: u32 = 12;
/// The last third of them.
pub(super) const LAST: Range<u32> = 8..WINDOWS;

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
    /// What was searched; `None`: it does not search.
    pub search: Option<Search>,
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
    /// The same in each twelfth of the run, an iteration counting by the part of it that lies there.
    pub windows_us: Vec<Option<f64>>,
    /// Duration that 99 % of its messages keep, us.
    pub flow_us_p99: f64,
}

/// What a contestant searched in a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// When candidates stood: from, until; us after the warm-up.
    pub stood_us: Vec<(f64, f64)>,
    /// Since when it rests, us after the warm-up. `None`: it was still searching at the end.
    pub settled_us: Option<f64>,
    /// Candidates that were tried.
    pub tried: usize,
    /// Those that were kept.
    pub kept: usize,
    /// What was tried, in words; only of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

impl Search {
    /// Notes what holds from now on (us after the warm-up): a candidate stands, or it rests.
    pub(super) fn note(&mut self, now_us: f64, stands: bool, rests: bool) {
        match (
            self.stood_us.last_mut().filter(|s| s.1.is_infinite()),
            stands,
        ) {
            (Some(open), false) => open.1 = now_us,
            (None, true) => self.stood_us.push((now_us, f64::INFINITY)),
            (Some(_), true) | (None, false) => {}
        }
        self.settled_us = rests.then(|| self.settled_us.unwrap_or(now_us));
    }

    /// The run is over.
    pub(super) fn end(&mut self, us: f64) {
        if let Some(open) = self.stood_us.last_mut() {
            open.1 = open.1.min(us);
        }
    }
}

fn raw(seed: u64, ran: Ran) -> Raw {
    let o = ran.outcome;
    let jobs = o.jobs.iter().map(|j| RawJob {
        iterations: j.iterations.len(),
        mean_us: j.mean_us(0.0, f64::INFINITY),
        windows_us: (0..WINDOWS).map(|w| in_window(j, &o, w)).collect(),
        flow_us_p99: j.flow_us_p99,
        name: j.name.clone(),
    });
    Raw {
        seed,
        jobs: jobs.collect(),
        paused_worst: o.paused_worst,
        paused_mean: o.paused_mean,
        lost: o.lost,
        out_of_sequence: o.out_of_sequence,
        search: ran.search,
    }
}

/// A contestant in a scenario, over all seeds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Contestant.
    pub name: String,
    /// Collective time against `nv`, percent, search included: mean iteration times of each twelfth of the run, their
    /// ratios over windows and jobs (geometric mean).
    pub time_pct: Estimate,
    /// The same over the last third of the run.
    pub settled_pct: Estimate,
    /// Duration that 99 % of messages keep against `nv`, percent, geometric mean over the jobs.
    pub flow_p99_pct: Estimate,
    /// Share of the time for which the most paused port was paused, percentage points above `nv`.
    pub pause_points: Estimate,
    /// By job.
    pub jobs: Vec<JobRow>,
    /// Time lost while searching: by how much longer than `nv` in the same twelfth the work took that was done while
    /// candidates stood, where it did; in iterations of `nv`, mean over the jobs. `None`: no search.
    pub lost_iterations: Option<Estimate>,
    /// The same as a share of the run, percent.
    pub lost_pct: Option<Estimate>,
    /// Raw figures.
    pub runs: Vec<Raw>,
}

/// A job under a contestant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRow {
    /// Its name.
    pub name: String,
    /// How much slower its iterations were than under `nv`, percent.
    pub slower_pct: Estimate,
}

impl Row {
    /// The job that lost most, by its mean over the seeds.
    #[must_use]
    pub fn victim(&self) -> Option<&JobRow> {
        let mean = |j: &JobRow| j.slower_pct.mean;
        self.jobs.iter().max_by(|a, b| mean(a).total_cmp(&mean(b)))
    }
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
    /// Time before that, in which `nv` settles, ms.
    pub warm_up_ms: f64,
    /// Contestants.
    pub rows: Vec<Row>,
}

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TuningResults {
    /// Version of the program that measured.
    pub version: String,
    /// Its arguments.
    pub arguments: String,
    /// Seeds of each scenario.
    pub seeds: u64,
    /// Scenarios.
    pub scenarios: Vec<ScenarioResult>,
    /// The figures that are quoted, by key.
    pub keys: BTreeMap<String, f64>,
}

/// A run of one contestant with one seed.
#[derive(Debug, Clone)]
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) search: Option<Search>,
}

pub(super) fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len().max(1) as f64
}

/// Start and end of a window, us.
fn window(outcome: &Outcome, w: u32) -> (f64, f64) {
    let at = |w: u32| outcome.us * f64::from(w) / f64::from(WINDOWS);
    (at(w), at(w + 1))
}

/// Start and end of some windows, us.
pub(super) fn span(outcome: &Outcome, windows: Range<u32>) -> (f64, f64) {
    let end = windows.end.saturating_sub(1);
    (window(outcome, windows.start).0, window(outcome, end).1)
}

fn in_window(job: &JobRun, outcome: &Outcome, w: u32) -> Option<f64> {
    let (from, until) = window(outcome, w);
    job.mean_us(from, until)
}

/// By job, the log ratio of its iteration times to those of `nv`, mean over some windows. Not a number: no window has both.
pub(super) fn ratios(outcome: &Outcome, nv: &Outcome, windows: Range<u32>) -> Vec<f64> {
    let jobs = outcome.jobs.iter().zip(&nv.jobs);
    jobs.map(|(j, b)| {
        let both = windows
            .clone()
            .filter_map(|w| Some((in_window(j, outcome, w)? / in_window(b, nv, w)?).ln()));
        let logs: Vec<f64> = both.collect();
        if logs.is_empty() {
            f64::NAN
        } else {
            mean(&logs)
        }
    })
    .collect()
}

/// The same over the whole run.
pub(super) fn over_all(outcome: &Outcome, nv: &Outcome) -> Vec<f64> {
    ratios(outcome, nv, 0..WINDOWS)
}

fn percent(log: f64) -> f64 {
    log.exp_m1() * 100.0
}

/// What the search cost: in iterations of `nv`, and as a share of the run; mean over the jobs.
fn lost(outcome: &Outcome, nv: &Outcome, search: &Search) -> (f64, f64) {
    let jobs = outcome.jobs.iter().zip(&nv.jobs).map(|(j, b)| {
        let windows = (0..WINDOWS).filter_map(|w| {
            let normal = in_window(b, nv, w)?;
            let (from, until) = window(outcome, w);
            let stood = search
                .stood_us
                .iter()
                .map(|(a, b)| j.within(a.max(from), b.min(until)));
            let (us, n) = stood.fold((0.0, 0.0), |x, y| (x.0 + y.0, x.1 + y.1));
            let over = (us - n * normal).max(0.0);
            Some((over / normal, over / outcome.us))
        });
        windows.fold((0.0, 0.0), |x, y| (x.0 + y.0, x.1 + y.1))
    });
    let (iterations, shares): (Vec<f64>, Vec<f64>) = jobs.unzip();
    (mean(&iterations), mean(&shares))
}

pub(super) fn row(name: &str, runs: Vec<(u64, Ran)>, nv: &[Outcome]) -> Row {
    let each = |f: &dyn Fn(&Ran, &Outcome) -> f64| {
        let pairs = runs.iter().zip(nv);
        Estimate::of(pairs.map(|((_, r), nv)| f(r, nv)).collect())
    };
    let cost = |of: fn((f64, f64)) -> f64| {
        let searches = runs.iter().all(|(_, r)| r.search.is_some());
        searches.then(|| {
            each(&|r, nv| {
                let search = r.search.as_ref();
                search.map_or(f64::NAN, |s| of(lost(&r.outcome, nv, s)))
            })
        })
    };
    let jobs = nv.first().map_or(&[][..], |o| &o.jobs[..]);
    let jobs = jobs.iter().enumerate().map(|(at, job)| JobRow {
        name: job.name.clone(),
        slower_pct: each(&|r, nv| percent(over_all(&r.outcome, nv)[at])),
    });
    Row {
        name: name.to_owned(),
        time_pct: each(&|r, nv| percent(mean(&over_all(&r.outcome, nv)))),
        settled_pct: each(&|r, nv| percent(mean(&ratios(&r.outcome, nv, LAST)))),
        flow_p99_pct: each(&|r, nv| {
            let flows = r.outcome.jobs.iter().zip(&nv.jobs);
            let logs = flows.map(|(a, b)| (a.flow_us_p99 / b.flow_us_p99).ln());
            percent(mean(&logs.collect::<Vec<f64>>()))
        }),
        pause_points: each(&|r, nv| (r.outcome.paused_worst - nv.paused_worst) * 100.0),
        jobs: jobs.collect(),
        lost_iterations: cost(|x| x.0),
        lost_pct: cost(|x| x.1 * 100.0),
        runs: runs.into_iter().map(|(seed, r)| raw(seed, r)).collect(),
    }
}

/// Contestants that have keys: prefix and name.
pub(super) const QUOTED: [(&str, &str); 8] = [
    ("", "weir"),
    ("paraleon_", "paraleon"),
    ("paraleon_routed_", "paraleon_routed"),
    ("oracle_", "oracle"),
    ("no_cc_", "no_cc"),
    ("nv_routed_", "nv_routed"),
    ("nv_bytes_", "nv_bytes"),
    ("nv_again_", "nv_again"),
];

/// The name of a contestant that runs a second time with what it has learned; it counts where the worst is asked for.
pub(super) fn second(name: &str) -> String {
    format!("{name}, second session")
}

impl ScenarioResult {
    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }
}

/// By seed, the mean over scenarios.
fn over_scenarios(scenarios: &[Vec<f64>]) -> Option<Estimate> {
    let seeds = scenarios.iter().map(Vec::len).min()?;
    let of = |seed: usize| mean(&scenarios.iter().map(|s| s[seed]).collect::<Vec<f64>>());
    Some(Estimate::of((0..seeds).map(of).collect()))
}

/// How much less time a row took than another, percent, by seed.
fn gain(row: &Row, than: Option<&Row>) -> Vec<f64> {
    let base = |seed: usize| than.map_or(0.0, |b| b.time_pct.by_seed[seed]);
    let times = row.time_pct.by_seed.iter().enumerate();
    times
        .map(|(seed, t)| (1.0 - (100.0 + t) / (100.0 + base(seed))) * 100.0)
        .collect()
}

/// The figures that are quoted; what was not run is not there. `collision_free` is, by run, the time without collisions
/// as a share of that after routing, percent. `_ci95` is half of a confidence interval over the seeds, `_mean` a mean over the
/// seeds where the key itself is the worst of them.
pub(super) fn keys(scenarios: &[ScenarioResult], collision_free: &[f64]) -> BTreeMap<String, f64> {
    let mut keys = BTreeMap::new();
    let mut put = |key: String, e: &Estimate| {
        if let Some(ci) = e.ci95.filter(|_| e.mean.is_finite()) {
            keys.insert(format!("{key}_ci95"), ci);
        }
        if e.mean.is_finite() {
            keys.insert(key, e.mean);
        }
    };
    for (prefix, name) in QUOTED {
        let ran = |s: &&ScenarioResult| s.row(name).is_some();
        if !scenarios.iter().any(|s| ran(&s)) {
            continue;
        }
        let mut put = |key: &str, e: Option<&Estimate>| {
            if let Some(e) = e {
                put(format!("{prefix}tuning_{key}"), e);
            }
        };
        let gains = |than: Option<&str>, beside: Option<&str>| {
            let chosen = scenarios.iter().filter(|s| {
                s.contended
                    && [than, beside]
                        .into_iter()
                        .flatten()
                        .all(|n| s.row(n).is_some())
            });
            let gains =
                chosen.filter_map(|s| Some(gain(s.row(name)?, than.and_then(|n| s.row(n)))));
            over_scenarios(&gains.collect::<Vec<_>>())
        };
        put("mean_gain_pct_vs_nv", gains(None, None).as_ref());
        if name == "weir" {
            put(
                "mean_gain_pct_on_oracle_scenarios",
                gains(None, Some("oracle")).as_ref(),
            );
            put(
                "mean_gain_pct_vs_nv_routed",
                gains(Some("nv_routed"), None).as_ref(),
            );
        }
        let again = second(name);
        let rows = || {
            let all = scenarios.iter().flat_map(|s| &s.rows);
            all.filter(|r| r.name == name || r.name == again)
        };
        let mut worst = |key: &str, all: Vec<&Estimate>| {
            let most = all
                .iter()
                .flat_map(|e| &e.by_seed)
                .copied()
                .fold(f64::NAN, f64::max);
            put(
                key,
                Some(&Estimate {
                    mean: most,
                    ..Estimate::default()
                }),
            );
            let mean = all.into_iter().max_by(|a, b| a.mean.total_cmp(&b.mean));
            put(&format!("{key}_mean"), mean);
        };
        worst("worst_scenario_pct", rows().map(|r| &r.time_pct).collect());
        let jobs = rows().flat_map(|r| &r.jobs);
        worst(
            "worst_victim_slowdown_pct",
            jobs.map(|j| &j.slower_pct).collect(),
        );
        worst(
            "pause_points_over_nv",
            rows().map(|r| &r.pause_points).collect(),
        );
        let lost = |of: fn(&Row) -> Option<&Estimate>| {
            let all = scenarios
                .iter()
                .filter_map(|s| Some(of(s.row(name)?)?.by_seed.clone()));
            over_scenarios(&all.collect::<Vec<_>>())
        };
        put(
            "lost_iterations",
            lost(|r| r.lost_iterations.as_ref()).as_ref(),
        );
        put("lost_pct_of_run", lost(|r| r.lost_pct.as_ref()).as_ref());
        let searches = scenarios
            .iter()
            .filter_map(|s| s.row(name))
            .flat_map(|r| &r.runs);
        let ended: Vec<f64> = searches
            .filter_map(|r| {
                Some(f64::from(u8::from(r.search.as_ref()?.settled_us.is_some())) * 100.0)
            })
            .collect();
        if !ended.is_empty() {
            let ended = Estimate {
                mean: mean(&ended),
                ..Estimate::default()
            };
            put("settled_pct_of_runs", Some(&ended));
        }
    }
    if !collision_free.is_empty() {
        let key = "routing_pct_of_collision_free";
        put(key.to_owned(), &Estimate::of(collision_free.to_vec()));
        let least = collision_free.iter().copied().fold(f64::NAN, f64::min);
        put(
            format!("{key}_min"),
            &Estimate {
                mean: least,
                ..Estimate::default()
            },
        );
    }
    keys
}
