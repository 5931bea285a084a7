//! The scenarios that tuners are compared in, and what a run of one of them gives.

use crate::change::Change;
use crate::config::SimConfig;
use crate::port::EcnParams;
use crate::rp::RpParams;
use crate::scenario::{Scenario, ScenarioError, refuse};
use crate::sim::{Sample, Sim};
use crate::time::{MS, Time, to_us};
use crate::tune::routing;
use serde::Serialize;

/// A scenario of the comparison.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Flows contend in it, so that there is something to gain.
    pub contended: bool,
    /// All that its flows contend for is a matter of placement.
    pub placement: bool,
    /// Small enough to try a whole grid of settings on.
    pub small: bool,
    /// Knobs matter beside routes, so that a second session has something to remember.
    pub learns: bool,
    /// Time before a contestant may touch anything: every run starts from what NVIDIA's defaults have settled at. Where
    /// flows of an incast were cut in the first rush they climb for long: its iterations go from 1.1 ms to 0.67 ms.
    pub warm_up: Time,
    text: &'static str,
}

macro_rules! case {
    ($name:literal, $contended:literal, $placement:literal, $small:literal, $learns:literal, $warm_up_ms:literal) => {
        Case {
            name: $name,
            contended: $contended,
            placement: $placement,
            small: $small,
            learns: $learns,
            warm_up: $warm_up_ms * MS,
            text: include_str!(concat!("../../scenarios/tune/", $name, ".yaml")),
        }
    };
}

/// All of them.
pub const CASES: [Case; 9] = [
    case!("clean-ring", false, false, true, false, 20),
    case!("ring-collisions", true, true, false, false, 40),
    case!("ring-incast", true, false, false, true, 300),
    case!("incast", true, false, true, true, 300),
    case!("all-to-all", true, false, false, false, 40),
    case!("victim", true, false, true, true, 300),
    case!("two-jobs", true, false, true, false, 40),
    case!("checkpoint", true, false, false, true, 40),
    case!("rail", true, false, false, false, 40),
];

impl Case {
    /// The scenario as it starts with one seed.
    ///
    /// # Errors
    /// The file of the scenario is wrong.
    pub fn scenario(&self, seed: u64) -> Result<Scenario, ScenarioError> {
        let mut scenario = Scenario::parse(self.text)?;
        scenario.config.seed = seed;
        Ok(scenario)
    }
}

/// Everything that congestion control can be set to, in the fabric's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Knobs {
    /// Marking.
    pub ecn: EcnParams,
    /// Reaction point.
    pub rp: RpParams,
    /// Least time between notifications, us.
    pub cnp_gap_us: f64,
}

impl Knobs {
    /// What a configuration holds.
    #[must_use]
    pub fn of(config: &SimConfig) -> Self {
        Self {
            ecn: config.ecn,
            rp: config.rp,
            cnp_gap_us: config.transport.cnp_gap_us,
        }
    }

    /// Sets every switch and host.
    pub fn apply(&self, sim: &mut Sim) {
        sim.apply(Change::Ecn {
            switch: None,
            ecn: self.ecn,
        });
        sim.apply(Change::Rp {
            host: None,
            rp: self.rp,
        });
        sim.apply(Change::CnpGap {
            host: None,
            us: self.cnp_gap_us,
        });
    }
}

/// What a job did while a contestant was at work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRun {
    /// Its name.
    pub name: String,
    /// Start and duration of each iteration that started then, us. The last may be cut off by the end of the run; it is
    /// held only if it is already longer than the mean of the others.
    pub iterations: Vec<(f64, f64)>,
    /// Duration that 99 % of its messages keep, us.
    pub flow_us_p99: f64,
}

impl JobRun {
    /// How much time iterations took in a part of the run (from, until; us), and how many iterations that was: one that lies in
    /// it by a third counts as a third.
    #[must_use]
    pub fn within(&self, from_us: f64, until_us: f64) -> (f64, f64) {
        let inside = self.iterations.iter().filter(|(_, d)| *d > 0.0);
        inside.fold((0.0, 0.0), |(us, n), (start, d)| {
            let both = (until_us.min(start + d) - from_us.max(*start)).max(0.0);
            (us + both, n + both / d)
        })
    }

    /// Mean duration of the iterations of a part of the run, us. `None`: there was none.
    #[must_use]
    pub fn mean_us(&self, from_us: f64, until_us: f64) -> Option<f64> {
        let (us, n) = self.within(from_us, until_us);
        (n > 0.0).then(|| us / n)
    }
}

/// What came of a run, from the end of its warm-up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Simulated time, us.
    pub us: f64,
    /// Jobs.
    pub jobs: Vec<JobRun>,
    /// Share of the time for which the port that was paused most was paused, 0.0..=1.0.
    pub paused_worst: f64,
    /// Mean of that share over all ports.
    pub paused_mean: f64,
    /// Packets lost for want of a buffer.
    pub lost: u64,
    /// Packets received out of sequence.
    pub out_of_sequence: u64,
}

/// A case at the end of its warm-up: every contestant goes on from here.
#[derive(Clone)]
pub struct Start {
    sim: Sim,
    /// Time for which every contestant runs.
    pub time: Time,
}

impl Start {
    /// Warms a case up.
    ///
    /// # Errors
    /// The file of the scenario is wrong.
    pub fn new(case: &Case, seed: u64) -> Result<Self, ScenarioError> {
        let scenario = case.scenario(seed)?;
        let mut sim = scenario.build()?;
        sim.run_until(case.warm_up);
        Ok(Self {
            sim,
            time: scenario.limit(),
        })
    }

    /// The knobs that stand.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        Knobs::of(&self.sim.config)
    }

    /// What the planner would pin.
    #[must_use]
    pub fn pins(&self) -> Vec<Change> {
        let pins = routing::plan(&self.sim, &[]);
        let changes = pins.iter().filter_map(|p| routing::change(&self.sim, p));
        changes.collect()
    }

    /// Goes on from here for some time. `control` is called at once, then every `tick`.
    pub fn run(&self, time: Time, tick: Time, control: &mut dyn FnMut(&mut Sim)) -> Outcome {
        measure(&mut self.sim.clone(), time, tick, control)
    }
}

/// Runs a case for its time divided by `share`. `control` is called first at the end of the warm-up, then every `tick`.
///
/// # Errors
/// The file of the scenario is wrong.
pub fn run(
    case: &Case,
    seed: u64,
    share: Time,
    tick: Time,
    control: &mut dyn FnMut(&mut Sim),
) -> Result<Outcome, ScenarioError> {
    let start = Start::new(case, seed)?;
    Ok(start.run(start.time / share, tick, control))
}

/// A run without collisions, for a third of the case's time: what the planner pins after a warm-up is pinned from the
/// start, and no two flows share a link between switches.
///
/// # Errors
/// The file of the scenario is wrong, or the pins leave a link that two flows share.
pub fn collision_free(case: &Case, seed: u64) -> Result<Outcome, ScenarioError> {
    let scenario = case.scenario(seed)?;
    let mut sim = scenario.build()?;
    for change in Start::new(case, seed)?.pins() {
        sim.apply(change);
    }
    let crowd = routing::crowd(&sim);
    if crowd > 1 {
        return Err(refuse(
            format!("{}, seed {seed}: flows on one link", case.name),
            crowd,
            "1, or there is nothing to compare routing with",
        ));
    }
    sim.run_until(case.warm_up);
    Ok(measure(
        &mut sim,
        scenario.limit() / 3,
        Time::MAX / 2,
        &mut |_| (),
    ))
}

fn measure(sim: &mut Sim, time: Time, tick: Time, control: &mut dyn FnMut(&mut Sim)) -> Outcome {
    let jobs = 0..crate::num::index(sim.jobs().len());
    for job in jobs.clone() {
        sim.take_flow_ns(job);
    }
    let before = sim.sample();
    let begin = sim.now();
    let end = begin + time;
    while sim.now() < end {
        control(sim);
        sim.run_until(end.min(sim.now() + tick));
    }
    let after = sim.sample();
    let p99: Vec<f64> = jobs
        .map(|job| {
            let ns = sim.take_flow_ns(job).quantile(0.99);
            ns.map_or(f64::NAN, |ns| ns as f64 / 1e3)
        })
        .collect();
    let jobs = sim.jobs().iter().zip(p99);
    let jobs = jobs.map(|(j, p99)| {
        let ended = j.iterations.iter().filter(|i| i.start >= begin);
        let mut iterations: Vec<(f64, f64)> = ended
            .map(|i| (to_us(i.start - begin), to_us(i.end - i.start)))
            .collect();
        let mean = iterations.iter().map(|i| i.1).sum::<f64>() / iterations.len().max(1) as f64;
        if let Some(start) = j.running_since() {
            let start = start.max(begin);
            let elapsed = to_us(end - start.min(end));
            if elapsed > mean {
                iterations.push((to_us(start - begin), elapsed));
            }
        }
        JobRun {
            name: j.spec.name.clone(),
            iterations,
            flow_us_p99: p99,
        }
    });
    Outcome {
        us: to_us(time),
        jobs: jobs.collect(),
        paused_worst: paused(&before, &after).fold(0.0, f64::max),
        paused_mean: paused(&before, &after).sum::<f64>() / after.ports.len().max(1) as f64,
        lost: discards(&after) - discards(&before),
        out_of_sequence: out_of_sequence(&after) - out_of_sequence(&before),
    }
}

/// By port, the share of the time between two samples in which it was paused.
pub fn paused<'a>(before: &'a Sample, after: &'a Sample) -> impl Iterator<Item = f64> + 'a {
    let span = (after.at - before.at).max(1) as f64;
    let ports = before.ports.iter().zip(&after.ports);
    ports.map(move |(b, a)| (a.pause_rx_ps - b.pause_rx_ps) as f64 / span)
}

/// Packets lost for want of a buffer so far.
#[must_use]
pub fn discards(sample: &Sample) -> u64 {
    sample.ports.iter().map(|p| p.rx_discards).sum()
}

/// Packets received out of sequence so far.
#[must_use]
pub fn out_of_sequence(sample: &Sample) -> u64 {
    sample.hosts.iter().map(|h| h.out_of_sequence).sum()
}
