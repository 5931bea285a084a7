//! Every contestant in every scenario with every seed.

use crate::config::SimConfig;
use crate::port::EcnParams;
use crate::reference::SETTINGS;
use crate::scenario::ScenarioError;
use crate::sim::Sim;
use crate::time::Time;
use crate::tune::acc::{self, Acc};
use crate::tune::case::{CASES, Case, Knobs, Outcome, collision_free, run};
use crate::tune::figures::{Ran, ScenarioResult, TuningResults, keys, mean, ratios, row};
use crate::tune::paraleon::{self, Paraleon};
use crate::tune::routing;
use crate::tune::weir::{self, Driver};
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

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seeds 1 to this.
    pub seeds: u64,
    /// Names of scenarios; empty is all.
    pub scenarios: Vec<String>,
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

fn chosen(options: &Options) -> impl Iterator<Item = &'static Case> {
    let all = options.scenarios.is_empty();
    CASES
        .iter()
        .filter(move |c| all || options.scenarios.iter().any(|s| s == c.name))
}

/// How often `progress` will be called.
#[must_use]
pub fn runs(options: &Options) -> u64 {
    let contestants = |c: &Case| STATIC.len() as u64 + 4 + u64::from(c.small) + u64::from(c.learns);
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
    let mut reached = Vec::new();
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
        // What routes alone are worth.
        let runs = all("nv_routed", &mut |seed, _| {
            let knobs = Knobs::of(&case.scenario(seed)?.config);
            fixed(case, seed, BASE_SHARE, &knobs, true).map(Ran::plain)
        })?;
        rows.push(row("nv_routed", false, runs, &nv));
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
                let free = collision_free(case, *seed)?;
                let third = |o: &Outcome| o.jobs[0].mean_us(o.us * 2.0 / 3.0, f64::INFINITY);
                if let (Some(free), Some(routed)) = (third(&free), third(&r.outcome)) {
                    reached.push(free / routed * 100.0);
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
    let keys = keys(&scenarios, &reached);
    Ok(TuningResults {
        seeds: options.seeds,
        scenarios,
        keys,
    })
}
