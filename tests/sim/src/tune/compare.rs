//! Every contestant in every scenario with every seed, and what is made of it.

#[cfg(test)]
mod tests;

use crate::config::SimConfig;
use crate::port::EcnParams;
use crate::reference::SETTINGS;
use crate::scenario::ScenarioError;
use crate::sim::Sim;
use crate::time::{MS, Time, to_us};
use crate::tune::acc::{self, Acc};
use crate::tune::case::{CASES, Case, Knobs, Outcome, WARM_UP, run};
use crate::tune::paraleon::{self, Paraleon};
use crate::tune::routing;
use crate::tune::stats::Estimate;
use crate::tune::weir::{self, Driver};
use serde::Serialize;
use std::collections::BTreeMap;
use weir_controller_core::tune::{Limits, Memory};

/// Static settings of the reference that are compared, by its names; `nv` is what all are compared with.
const STATIC: [&str; 8] = [
    "nv", "hpcc", "paper", "low", "nv_rpt", "nv_ecn", "combo", "no_ecn",
];
/// What stays as it is runs for a part of the time: a fourth, and half of it for `nv`, which all are compared with.
const STATIC_SHARE: Time = 4;
const BASE_SHARE: Time = 2;
/// What has no memory of more than a step runs for a third.
const RULE_SHARE: Time = 3;

/// One run.
#[derive(Debug, Clone, Serialize)]
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// A job in one run.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
pub struct TuningResults {
    /// Seeds of each scenario.
    pub seeds: u64,
    /// Scenarios.
    pub scenarios: Vec<ScenarioResult>,
    /// The figures that are quoted, by key.
    pub keys: BTreeMap<String, f64>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seeds 1 to this.
    pub seeds: u64,
    /// Names of scenarios; empty is all.
    pub scenarios: Vec<String>,
}

/// Runs of one contestant with one seed.
struct Ran {
    outcome: Outcome,
    settled: Option<Time>,
    steps: Vec<String>,
}

impl Ran {
    fn plain(outcome: Outcome) -> Self {
        Self {
            outcome,
            settled: None,
            steps: Vec::new(),
        }
    }
}

/// Runs a setting that stays, with the planner's pins or without.
fn fixed(
    case: &Case,
    seed: u64,
    share: Time,
    knobs: &Knobs,
    routed: bool,
) -> Result<Outcome, ScenarioError> {
    let mut done = false;
    run(case, seed, share, Time::MAX / 2, &mut |sim: &mut Sim| {
        if !done {
            done = true;
            knobs.apply(sim);
            let pins = if routed {
                routing::plan(sim, &[])
            } else {
                Vec::new()
            };
            for pin in &pins {
                if let Some(change) = routing::change(sim, pin) {
                    sim.apply(change);
                }
            }
        }
    })
}

fn ours(case: &Case, seed: u64, memory: &mut Memory) -> Result<Ran, ScenarioError> {
    let mut driver = None;
    let outcome = run(case, seed, 1, weir::TICK, &mut |sim| {
        driver
            .get_or_insert_with(|| Driver::new(sim, memory))
            .step(sim);
    })?;
    let mut ran = Ran::plain(outcome);
    if let Some(driver) = driver {
        ran.settled = driver.settled;
        let steps = driver.tuner().steps().iter();
        ran.steps = steps
            .map(|s| {
                let gain = s
                    .gain
                    .map_or("-".into(), |g| format!("{:+.1} %", g.exp_m1() * 100.0));
                format!("{:?}: {:?}, {gain} in {} pairs", s.what, s.verdict, s.pairs)
            })
            .collect();
        driver.tuner().learn(memory);
    }
    Ok(ran)
}

fn annealing(case: &Case, seed: u64) -> Result<Ran, ScenarioError> {
    let mut search = None;
    let outcome = run(case, seed, 1, paraleon::TICK, &mut |sim| {
        search
            .get_or_insert_with(|| Paraleon::new(sim, seed))
            .step(sim);
    })?;
    let settled = search.and_then(|s| s.settled);
    Ok(Ran {
        settled,
        ..Ran::plain(outcome)
    })
}

/// The best setting of a small grid that breaks no constraint, found by running all of them: nobody can know it.
fn oracle(case: &Case, seed: u64, nv: &Outcome) -> Result<Ran, ScenarioError> {
    let limits = Limits::default();
    let base = Knobs::of(&case.scenario(seed)?.config);
    let mut best: Option<(f64, Outcome)> = None;
    for (kmin_kb, kmax_kb, pmax) in [
        (150.0, 900.0, 1.0),
        (300.0, 900.0, 0.3),
        (600.0, 900.0, 0.1),
        (0.0, 0.0, 0.0),
    ] {
        for (ai, hai) in [(5.0, 50.0), (100.0, 1000.0)] {
            let mut knobs = base;
            knobs.ecn = EcnParams {
                enabled: kmax_kb > 0.0,
                kmin_kb,
                kmax_kb,
                pmax,
            };
            (knobs.rp.rpg_ai_rate, knobs.rp.rpg_hai_rate) = (ai, hai);
            let outcome = fixed(case, seed, STATIC_SHARE, &knobs, true)?;
            let ratios = ratios(&outcome, nv, 0.0, f64::INFINITY);
            let harmless = ratios.iter().all(|r| *r <= limits.slowdown_max.ln_1p())
                && outcome.paused_worst <= nv.paused_worst + limits.pause_max;
            let time = mean(&ratios);
            if harmless && time < best.as_ref().map_or(0.0, |(t, _)| *t) {
                best = Some((time, outcome));
            }
        }
    }
    Ok(Ran::plain(best.map_or_else(|| nv.clone(), |(_, o)| o)))
}

fn mean(xs: &[f64]) -> f64 {
    xs.iter().sum::<f64>() / xs.len().max(1) as f64
}

/// By job, the log ratio of the mean iteration time in a part of the run (shares of it) to that of the whole run of `nv`.
fn ratios(outcome: &Outcome, nv: &Outcome, from: f64, until: f64) -> Vec<f64> {
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

fn row(name: &str, searches: bool, runs: Vec<(u64, Ran)>, nv: &[Outcome]) -> Row {
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

fn chosen(options: &Options) -> impl Iterator<Item = &'static Case> {
    let all = options.scenarios.is_empty();
    CASES
        .iter()
        .filter(move |c| all || options.scenarios.iter().any(|s| s == c.name))
}

/// How often `progress` will be called.
#[must_use]
pub fn runs(options: &Options) -> u64 {
    let contestants = |c: &Case| STATIC.len() as u64 + 3 + u64::from(c.small) + u64::from(c.learns);
    options.seeds * chosen(options).map(contestants).sum::<u64>()
}

/// Runs the comparison. `progress` is told scenario and contestant before each run.
///
/// # Errors
/// The file of a scenario is wrong.
pub fn tuning_results(
    options: &Options,
    mut progress: impl FnMut(&str, &str),
) -> Result<TuningResults, ScenarioError> {
    let mut scenarios = Vec::new();
    let mut collision_free = Vec::new();
    for case in chosen(options) {
        let mut rows = Vec::new();
        // Every seed with one contestant.
        let mut all =
            |name: &str, one: &mut dyn FnMut(u64, usize) -> Result<Ran, ScenarioError>| {
                let seeds = (1..=options.seeds).enumerate();
                seeds
                    .map(|(at, seed)| {
                        progress(case.name, name);
                        Ok((seed, one(seed, at)?))
                    })
                    .collect::<Result<Vec<_>, ScenarioError>>()
            };
        let mut nv: Vec<Outcome> = Vec::new();
        for setting in SETTINGS.iter().filter(|s| STATIC.contains(&s.name)) {
            let mut config = SimConfig::default();
            setting.apply(&mut config);
            let knobs = Knobs::of(&config);
            let share = if nv.is_empty() {
                BASE_SHARE
            } else {
                STATIC_SHARE
            };
            let name = if setting.name == "no_ecn" {
                "no_cc"
            } else {
                setting.name
            };
            let runs = all(name, &mut |seed, _| {
                fixed(case, seed, share, &knobs, false).map(Ran::plain)
            })?;
            if nv.is_empty() {
                nv = runs.iter().map(|(_, r)| r.outcome.clone()).collect();
            }
            rows.push(row(name, false, runs, &nv));
        }
        let runs = all("paraleon", &mut |seed, _| annealing(case, seed))?;
        rows.push(row("paraleon", true, runs, &nv));
        let runs = all("acc-like", &mut |seed, _| {
            let mut acc = Acc::default();
            run(case, seed, RULE_SHARE, acc::TICK, &mut |sim| acc.step(sim)).map(Ran::plain)
        })?;
        rows.push(row("acc-like", true, runs, &nv));
        if case.small {
            let runs = all("oracle", &mut |seed, at| oracle(case, seed, &nv[at]))?;
            rows.push(row("oracle", false, runs, &nv));
        }
        let mut memories: Vec<Memory> = Vec::new();
        let runs = all("weir", &mut |seed, _| {
            let mut memory = Memory::default();
            let ran = ours(case, seed, &mut memory);
            memories.push(memory);
            ran
        })?;
        if case.placement {
            for (seed, r) in &runs {
                let free = crate::tune::case::collision_free(case, *seed)?;
                let third = |o: &Outcome| o.jobs[0].mean_us(o.us * 2.0 / 3.0, f64::INFINITY);
                if let (Some(free), Some(routed)) = (third(&free), third(&r.outcome)) {
                    collision_free.push(free / routed * 100.0);
                }
            }
        }
        rows.push(row("weir", true, runs, &nv));
        if case.learns {
            // With what the session of another seed has learned.
            let runs = all("weir, second session", &mut |seed, at| {
                let mut memory = memories[(at + 1) % memories.len()].clone();
                ours(case, seed, &mut memory)
            })?;
            rows.push(row("weir, second session", true, runs, &nv));
        }
        let scenario = case.scenario(1)?;
        scenarios.push(ScenarioResult {
            name: case.name.to_owned(),
            about: scenario.about.clone(),
            contended: case.contended,
            simulated_ms: scenario.limit_ms,
            rows,
        });
    }
    let keys = keys(&scenarios, &collision_free);
    Ok(TuningResults {
        seeds: options.seeds,
        scenarios,
        keys,
    })
}

/// The figures that are quoted; what was not run is not there.
fn keys(scenarios: &[ScenarioResult], collision_free: &[f64]) -> BTreeMap<String, f64> {
    let mut keys = BTreeMap::new();
    for (prefix, name) in [
        ("", "weir"),
        ("paraleon_", "paraleon"),
        ("oracle_", "oracle"),
        ("no_cc_", "no_cc"),
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
        put("mean_gain_pct_vs_nv", mean(&contended));
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
