//! A fleet in which nothing is wrong, for as long as there is time: each verdict is a false one.

use crate::cost::cpu;
use crate::fleet::{Fleet, Found};
use crate::scenario::healthy;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weir_sim::num::whole;

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Hosts and switches of each fleet.
    pub nodes: usize,
    /// Simulated days, of all fleets together.
    pub days: f64,
    pub interval_s: f64,
    /// Fleets with a seed of their own each, from `seed` on.
    pub fleets: u64,
    pub seed: u64,
    /// Threads; a fleet runs on one.
    pub jobs: usize,
    /// Fleets are ended where they are after so much time; `None`: not before their days are over.
    pub at_most: Option<Duration>,
}

/// One false verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FalseVerdict {
    pub seed: u64,
    /// Simulated seconds since the fleet's start.
    pub at_s: f64,
    pub class: String,
    pub place: String,
    /// What the controller says for it.
    pub evidence: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Of each fleet.
    pub nodes: u64,
    pub interval_s: f64,
    pub fleets: u64,
    /// Seed of the first fleet; each of the others has the next.
    pub seed: u64,
    /// Simulated days of all fleets together, whether or not all that was asked for.
    pub days: f64,
    pub false_verdicts: u64,
    pub false_verdicts_per_day: f64,
    pub frames: u64,
    /// Values of columns, flows and calls.
    pub samples: u64,
    /// Streams that the controller refused.
    pub refused: u64,
    /// CPU time of all threads, simulator and controller together.
    pub cpu_s: f64,
    pub verdicts: Vec<FalseVerdict>,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.nodes = self.nodes.max(other.nodes);
        self.days += other.days;
        self.false_verdicts += other.false_verdicts;
        self.frames += other.frames;
        self.samples += other.samples;
        self.refused += other.refused;
        self.cpu_s += other.cpu_s;
        self.verdicts.extend(other.verdicts);
    }
}

/// Simulated seconds between two looks at the clock.
const LOOK_S: u64 = 600;

/// Runs the plan; `tell` hears of simulated seconds that have passed, and of false verdicts.
pub fn run(plan: &Plan, tell: impl Fn(u64, usize) + Sync) -> Figures {
    let next = AtomicU64::new(0);
    let all = Mutex::new(Vec::new());
    let begin = Instant::now();
    let late = || plan.at_most.is_some_and(|most| begin.elapsed() >= most);
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs.clamp(1, position(plan.fleets)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.fleets || late() {
                        return;
                    }
                    let figures = one(plan, plan.seed + number, late, &tell);
                    if let Ok(mut all) = all.lock() {
                        all.push(figures);
                    }
                }
            });
        }
    });
    let mut figures = Figures {
        interval_s: plan.interval_s,
        fleets: plan.fleets,
        seed: plan.seed,
        ..Figures::default()
    };
    let all = all.into_inner().unwrap_or_default();
    all.into_iter().for_each(|one| figures.add(one));
    figures.verdicts.sort_by(|a, b| {
        (a.seed, a.at_s)
            .partial_cmp(&(b.seed, b.at_s))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    figures.false_verdicts_per_day = figures.false_verdicts as f64 / figures.days.max(1e-9);
    figures
}

fn position(n: u64) -> usize {
    weir_sim::num::position(n.max(1))
}

fn one(plan: &Plan, seed: u64, late: impl Fn() -> bool, tell: &impl Fn(u64, usize)) -> Figures {
    let start = cpu();
    let days = plan.days / plan.fleets.max(1) as f64;
    let scenario = healthy(plan.nodes, days, plan.interval_s, seed);
    let mut fleet = Fleet::new(scenario.world, &scenario.shape, scenario.noise);
    let (mut told, mut known) = (0, 0);
    while fleet.world.now_s < scenario.length_s {
        fleet.step();
        let now = whole(fleet.world.now_s);
        if now >= told + LOOK_S {
            tell(now - told, fleet.found.len() - known);
            (told, known) = (now, fleet.found.len());
            if late() {
                break;
            }
        }
    }
    let verdicts: Vec<FalseVerdict> = fleet.found.iter().map(|f| named(f, seed)).collect();
    Figures {
        nodes: fleet.agents.len() as u64,
        days: fleet.world.now_s / 86_400.0,
        false_verdicts: verdicts.len() as u64,
        frames: fleet.fed.frames,
        samples: fleet.fed.samples,
        refused: fleet.refused.len() as u64,
        cpu_s: (cpu() - start).as_secs_f64(),
        verdicts,
        ..Figures::default()
    }
}

fn named(found: &Found, seed: u64) -> FalseVerdict {
    let evidence = found.verdict.evidence.iter();
    let place = found.entities.first();
    FalseVerdict {
        seed,
        at_s: found.opened_s,
        class: found.class.name().to_owned(),
        place: place.map_or(String::new(), |(_, e)| e.to_string()),
        evidence: evidence
            .map(|e| format!("{}: {}", e.what, e.value))
            .collect(),
    }
}
