//! Every contestant in every scenario with every seed, for the same time from the same state.

use crate::config::SimConfig;
use crate::reference::SETTINGS;
use crate::rng::Rng;
use crate::scenario::ScenarioError;
use crate::sim::Sim;
use crate::time::{Time, to_us};
use crate::tune::acc::{self, Acc};
use crate::tune::case::{CASES, Case, Knobs, Outcome, Start, collision_free};
use crate::tune::figures::{self, LAST, Ran, ScenarioResult, Search, TuningResults, keys, row};
use crate::tune::oracle;
use crate::tune::paraleon::{self, Paraleon};
use crate::tune::weir::{self, Driver};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use weir_controller_core::tune::{Memory, Phase, Verdict};

/// Static settings of the reference that are compared, by its names.
const STATIC: [&str; 7] = [
    "hpcc", "paper", "low", "nv_rpt", "nv_ecn", "combo", "no_ecn",
];
/// What NVIDIA ships beside the defaults of `nv`: 32767 of a unit that is not documented, here 64 bytes.
const BYTE_RESET: u64 = 32_767 * 64;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seeds 1 to this.
    pub seeds: u64,
    /// Names of scenarios; empty is all.
    pub scenarios: Vec<String>,
    /// Names of contestants; empty is all. `nv` always runs.
    pub contestants: Vec<String>,
    /// Threads.
    pub jobs: usize,
}

/// What a contestant does.
#[derive(Debug, Clone, Copy)]
enum How {
    /// What stands stays.
    Stay,
    /// The same with other marks and jitter from the start on: what chance alone does.
    Chance,
    /// A setting that stays.
    Fixed(Knobs),
    Paraleon,
    Acc,
    Oracle,
    Weir,
}

/// A contestant: its name, what it does, and whether the planner's pins are set first.
type Contestant = (&'static str, How, bool);

/// All of them; the second session of ours is not among them.
fn contestants() -> Vec<Contestant> {
    let of = |name: &str| {
        let mut config = SimConfig::default();
        for setting in SETTINGS.iter().filter(|s| s.name == name) {
            setting.apply(&mut config);
        }
        Knobs::of(&config)
    };
    let mut bytes = of("nv");
    bytes.rp.rpg_byte_reset = BYTE_RESET;
    let mut all = vec![
        ("nv", How::Stay, false),
        ("nv_again", How::Chance, false),
        ("nv_bytes", How::Fixed(bytes), false),
    ];
    all.extend(STATIC.map(|name| {
        let called = if name == "no_ecn" { "no_cc" } else { name };
        (called, How::Fixed(of(name)), false)
    }));
    all.extend([
        ("nv_routed", How::Stay, true),
        ("paraleon", How::Paraleon, false),
        ("paraleon_routed", How::Paraleon, true),
        ("acc-like", How::Acc, false),
        ("oracle", How::Oracle, false),
        ("weir", How::Weir, false),
    ]);
    all
}

/// Names that [`Options::contestants`] may hold.
#[must_use]
pub fn names() -> Vec<&'static str> {
    contestants().iter().map(|c| c.0).collect()
}

fn pin(start: &Start, sim: &mut Sim, routed: bool) {
    for change in routed.then(|| start.pins()).into_iter().flatten() {
        sim.apply(change);
    }
}

/// Runs a setting that stays, with the planner's pins or without.
pub(super) fn fixed(start: &Start, time: Time, knobs: Option<&Knobs>, routed: bool) -> Outcome {
    let mut first = true;
    start.run(time, weir::TICK, &mut |sim: &mut Sim| {
        if std::mem::take(&mut first) {
            pin(start, sim, routed);
            if let Some(knobs) = knobs {
                knobs.apply(sim);
            }
        }
        // As often as those look that tune: looking rounds rates, and must not make a difference.
        sim.sample();
    })
}

fn chance(start: &Start, seed: u64) -> Outcome {
    let mut first = true;
    start.run(start.time, weir::TICK, &mut |sim: &mut Sim| {
        if std::mem::take(&mut first) {
            sim.rng = Rng::new(!seed);
        }
        sim.sample();
    })
}

fn ours(start: &Start, memory: &mut Memory) -> Ran {
    let mut driver = None;
    let mut search = Search::default();
    let mut begin = None;
    let outcome = start.run(start.time, weir::TICK, &mut |sim| {
        let from = *begin.get_or_insert(sim.now());
        let driver = driver.get_or_insert_with(|| Driver::new(sim, memory));
        driver.step(sim);
        let phase = driver.tuner().phase();
        let stands = matches!(phase, Phase::Canary | Phase::Candidate);
        search.note(to_us(sim.now() - from), stands, phase == Phase::Watching);
    });
    search.end(outcome.us);
    if let Some(driver) = driver {
        let steps = driver.tuner().steps();
        search.tried = steps.len();
        let kept = steps.iter().filter(|s| matches!(s.verdict, Verdict::Kept));
        search.kept = kept.count();
        let steps = steps.iter().map(|s| {
            let gain = s.gain;
            let gain = gain.map_or("-".into(), |g| format!("{:+.1} %", g.exp_m1() * 100.0));
            format!("{:?}: {:?}, {gain} in {} pairs", s.what, s.verdict, s.pairs)
        });
        search.steps = steps.collect();
        driver.tuner().learn(memory);
    }
    Ran {
        outcome,
        search: Some(search),
    }
}

fn annealing(start: &Start, seed: u64, routed: bool) -> Ran {
    let mut paraleon = None;
    let mut search = Search::default();
    let mut begin = None;
    let outcome = start.run(start.time, paraleon::TICK, &mut |sim| {
        let from = *begin.get_or_insert(sim.now());
        let paraleon = paraleon.get_or_insert_with(|| {
            pin(start, sim, routed);
            Paraleon::new(sim, seed)
        });
        paraleon.step(sim);
        let searching = paraleon.searching();
        search.note(to_us(sim.now() - from), searching, !searching);
        (search.tried, search.kept) = (paraleon.tried, paraleon.ended);
    });
    search.end(outcome.us);
    Ran {
        outcome,
        search: Some(search),
    }
}

fn ladder(start: &Start) -> Ran {
    let mut acc = Acc::default();
    let outcome = start.run(start.time, acc::TICK, &mut |sim| acc.step(sim));
    let mut search = Search::default();
    search.note(0.0, true, false);
    search.end(outcome.us);
    (search.tried, search.kept) = (acc.tried, acc.tried);
    Ran {
        outcome,
        search: Some(search),
    }
}

/// One seed of a scenario.
struct Seed {
    runs: BTreeMap<&'static str, Ran>,
    /// What ours has learned.
    memory: Memory,
    /// Time without collisions as a share of that after routing, percent; only where placement is all.
    reached: Option<f64>,
}

fn one_seed(
    case: &Case,
    seed: u64,
    chosen: &[Contestant],
    progress: &(dyn Fn(&str, &str) + Sync),
) -> Result<Seed, ScenarioError> {
    let start = Start::new(case, seed)?;
    let mut all = Seed {
        runs: BTreeMap::new(),
        memory: Memory::default(),
        reached: None,
    };
    let mut nv = None;
    for (name, how, routed) in chosen.iter().filter(|c| runs_in(c, case)) {
        progress(case.name, name);
        let plain = |outcome| Ran {
            outcome,
            search: None,
        };
        let ran = match how {
            How::Stay => plain(fixed(&start, start.time, None, *routed)),
            How::Chance => plain(chance(&start, seed)),
            How::Fixed(knobs) => plain(fixed(&start, start.time, Some(knobs), *routed)),
            How::Paraleon => annealing(&start, seed, *routed),
            How::Acc => ladder(&start),
            How::Oracle => {
                let nv = nv.get_or_insert_with(|| fixed(&start, start.time, None, false));
                plain(oracle::best(&start, nv))
            }
            How::Weir => ours(&start, &mut all.memory),
        };
        if *name == "nv" {
            nv = Some(ran.outcome.clone());
        }
        all.runs.insert(name, ran);
    }
    if let Some(ours) = all.runs.get("weir").filter(|_| case.placement) {
        let free = collision_free(case, seed)?;
        // A third of the case's time is the last third of the run.
        let last = figures::span(&ours.outcome, LAST);
        let shares = free
            .jobs
            .iter()
            .zip(&ours.outcome.jobs)
            .filter_map(|(f, o)| {
                Some((f.mean_us(0.0, f64::INFINITY)? / o.mean_us(last.0, last.1)?).ln())
            });
        let shares: Vec<f64> = shares.collect();
        all.reached = Some(figures::mean(&shares).exp() * 100.0);
    }
    Ok(all)
}

fn runs_in(contestant: &Contestant, case: &Case) -> bool {
    !matches!(contestant.1, How::Oracle) || case.small
}

/// Does `work` for 0 to `n` on so many threads; results are in order.
fn on_threads<T: Send, E: Send>(
    n: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, n.max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        break;
                    }
                    let result = work(at);
                    let mut done = done
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    done.insert(at, result);
                }
            });
        }
    });
    let done = done.into_inner();
    let done = done.unwrap_or_else(std::sync::PoisonError::into_inner);
    done.into_values().collect()
}

fn chosen_cases(options: &Options) -> Vec<&'static Case> {
    let all = options.scenarios.is_empty();
    let cases = CASES.iter();
    cases
        .filter(|c| all || options.scenarios.iter().any(|s| s == c.name))
        .collect()
}

fn chosen_contestants(options: &Options) -> Vec<Contestant> {
    let all = options.contestants.is_empty();
    let mut chosen = contestants();
    chosen.retain(|c| all || c.0 == "nv" || options.contestants.iter().any(|n| n == c.0));
    chosen
}

/// A second session follows where ours has something to remember.
fn again(case: &Case, chosen: &[Contestant]) -> bool {
    case.learns && chosen.iter().any(|c| matches!(c.1, How::Weir))
}

/// How often `progress` will be called.
#[must_use]
pub fn runs(options: &Options) -> u64 {
    let chosen = chosen_contestants(options);
    let of = |case: &Case| {
        let first = chosen.iter().filter(|c| runs_in(c, case)).count() as u64;
        first + u64::from(again(case, &chosen))
    };
    options.seeds * chosen_cases(options).into_iter().map(of).sum::<u64>()
}

/// Runs the comparison. `progress` is told scenario and contestant before each run. The same options give the same
/// results, on however many threads.
///
/// # Errors
/// The file of a scenario is wrong.
pub fn tuning_results(
    options: &Options,
    progress: impl Fn(&str, &str) + Sync,
) -> Result<TuningResults, ScenarioError> {
    let chosen = chosen_contestants(options);
    let cases = chosen_cases(options);
    let seeds: Vec<u64> = (1..=options.seeds).collect();
    let of = |at: usize| (cases[at / seeds.len()], seeds[at % seeds.len()]);
    let n = cases.len() * seeds.len();
    let first = on_threads(n, options.jobs, |at| {
        let (case, seed) = of(at);
        one_seed(case, seed, &chosen, &progress)
    })?;
    // With what the session of another seed has learned.
    let learned = on_threads(n, options.jobs, |at| -> Result<_, ScenarioError> {
        let (case, seed) = of(at);
        if !again(case, &chosen) {
            return Ok(None);
        }
        let other = at / seeds.len() * seeds.len() + (at + 1) % seeds.len();
        progress(case.name, "weir, second session");
        let mut memory = first[other].memory.clone();
        Ok(Some(ours(&Start::new(case, seed)?, &mut memory)))
    })?;
    let reached: Vec<f64> = first.iter().filter_map(|s| s.reached).collect();
    let mut scenarios = Vec::new();
    for (case, (runs, learned)) in cases
        .iter()
        .zip(first.chunks(seeds.len()).zip(learned.chunks(seeds.len())))
    {
        let of = |name: &str| -> Vec<(u64, Ran)> {
            let ran = seeds.iter().zip(runs);
            ran.filter_map(|(seed, s)| Some((*seed, s.runs.get(name)?.clone())))
                .collect()
        };
        let nv: Vec<Outcome> = of("nv").into_iter().map(|(_, r)| r.outcome).collect();
        let ran = chosen.iter().filter(|c| runs_in(c, case));
        let mut rows: Vec<_> = ran.map(|c| row(c.0, of(c.0), &nv)).collect();
        let learned: Option<Vec<(u64, Ran)>> = seeds
            .iter()
            .zip(learned)
            .map(|(seed, r)| Some((*seed, r.clone()?)))
            .collect();
        rows.extend(learned.map(|runs| row(&figures::second("weir"), runs, &nv)));
        let scenario = case.scenario(1)?;
        scenarios.push(ScenarioResult {
            name: case.name.to_owned(),
            about: scenario.about.clone(),
            contended: case.contended,
            simulated_ms: scenario.limit_ms,
            warm_up_ms: to_us(case.warm_up) / 1e3,
            rows,
        });
    }
    Ok(TuningResults {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        arguments: String::new(),
        seeds: options.seeds,
        keys: keys(&scenarios, &reached),
        scenarios,
    })
}

#[cfg(test)]
mod tests;
