//! Ten settings of congestion control in five kinds of traffic: the reference of an independent simulator beside ours.
//!
//! In incast, all-to-all and victim the flows take the paths of the traces, and the seed is chance alone: there the
//! reference's first seed is what to compare with. The paths of its rings are not known: ours are hashed, and what must
//! agree is the order of the settings, not the single figure.
//!
//! Sizes that it does not give are inferred from its other figures: 2 MB in the all-to-all (its clean time), 4
//! iterations where the mean of a trace's first four is the figure, 20 MB a sender in the victim's incast (without
//! marking, its slowdown is that of two slow iterations and four undisturbed ones). What runs beside the ring in
//! `ring+incast` is not said: here it is the incast of its own column, again and again.

use crate::config::SimConfig;
use crate::port::EcnParams;
use crate::rp::RpParams;
use crate::scenario::{Scenario, Traffic};
use crate::truths::Rows;
use serde::{Deserialize, Serialize};

/// Marking (Kmin KB, Kmax KB, Pmax; `None` is off), AI and HAI in Mb/s, timer us, gap of cuts, alpha and notifications us.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name.
    pub name: &'static str,
    ecn: Option<(f64, f64, f64)>,
    ai: f64,
    hai: f64,
    timer: f64,
    gap: Option<f64>,
    threshold: u32,
    /// Theirs, by kind of traffic and seed: the first setting in us, the others in percent against it.
    theirs: [[Option<f64>; 3]; 5],
}

/// Kinds of traffic.
pub const TRAFFIC: [&str; 5] = ["ring", "ring+incast", "incast", "all-to-all", "victim"];

const fn one(x: f64) -> [Option<f64>; 3] {
    [Some(x), None, None]
}
const fn all(a: f64, b: f64, c: f64) -> [Option<f64>; 3] {
    [Some(a), Some(b), Some(c)]
}
const NO: [Option<f64>; 3] = [None; 3];
const NV: Option<(f64, f64, f64)> = Some((150.0, 1500.0, 1.0));

const fn setting(
    name: &'static str,
    ecn: Option<(f64, f64, f64)>,
    rp: (f64, f64, f64),
    gap: Option<f64>,
    threshold: u32,
    theirs: [[Option<f64>; 3]; 5],
) -> Setting {
    Setting {
        name,
        ecn,
        ai: rp.0,
        hai: rp.1,
        timer: rp.2,
        gap,
        threshold,
        theirs,
    }
}

/// The settings with their reference figures.
pub const SETTINGS: [Setting; 10] = [
    setting(
        "nv",
        NV,
        (5.0, 50.0, 300.0),
        None,
        1,
        [
            all(1961.0, 1658.0, 1614.0),
            all(2705.0, 2866.0, 3348.0),
            one(911.0),
            one(250.0),
            all(443.0, 626.0, 463.0),
        ],
    ),
    setting(
        "hpcc",
        Some((400.0, 1600.0, 0.2)),
        (20.0, 200.0, 300.0),
        None,
        1,
        [
            all(-10.0, -11.0, -4.0),
            all(0.0, 3.0, 4.0),
            one(6.0),
            one(-22.0),
            all(-7.0, 29.0, -15.0),
        ],
    ),
    setting(
        "paper",
        Some((5.0, 200.0, 0.01)),
        (40.0, 400.0, 55.0),
        Some(50.0),
        5,
        [one(6.0), one(41.0), one(-11.0), one(-22.0), one(13.0)],
    ),
    setting(
        "low",
        Some((50.0, 400.0, 0.2)),
        (100.0, 1000.0, 55.0),
        None,
        1,
        [one(-11.0), one(7.0), one(-12.0), one(-14.0), one(4.0)],
    ),
    setting(
        "nv_ai",
        NV,
        (100.0, 1000.0, 300.0),
        None,
        1,
        [one(1.0), one(0.0), one(0.0), one(0.0), NO],
    ),
    setting(
        "nv_rpt",
        NV,
        (100.0, 1000.0, 55.0),
        None,
        1,
        [one(-13.0), one(22.0), one(-17.0), one(-17.0), one(17.0)],
    ),
    setting(
        "nv_rdi",
        NV,
        (5.0, 50.0, 300.0),
        Some(50.0),
        1,
        [one(6.0), one(14.0), one(15.0), one(-22.0), NO],
    ),
    setting(
        "nv_ecn",
        Some((800.0, 3200.0, 0.1)),
        (5.0, 50.0, 300.0),
        None,
        1,
        [
            all(-18.0, -18.0, -19.0),
            all(-24.0, -28.0, -24.0),
            one(-18.0),
            one(-22.0),
            all(83.0, 119.0, 34.0),
        ],
    ),
    setting(
        "combo",
        Some((800.0, 3200.0, 0.1)),
        (100.0, 1000.0, 55.0),
        Some(50.0),
        1,
        [one(-19.0), one(-15.0), one(-10.0), one(-22.0), one(67.0)],
    ),
    setting(
        "no_ecn",
        None,
        (5.0, 50.0, 300.0),
        None,
        1,
        [
            all(-19.0, -19.0, -21.0),
            all(-34.0, -37.0, -34.0),
            one(-27.0),
            one(-22.0),
            all(528.0, 531.0, 70.0),
        ],
    ),
];

/// Figures of a setting in one kind of traffic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Setting.
    pub setting: String,
    /// Kind of traffic.
    pub traffic: String,
    /// Mean iteration time of the first job, by seed, us.
    pub ours_us: Vec<f64>,
    /// Time paused over all ports, mean of the seeds, us.
    pub paused_us: f64,
    /// Against the first setting with the same seed, percent. 0 for the first setting.
    pub ours_pct: Vec<f64>,
    /// The reference's by its seeds, as it gives them: the first setting in us, the others in percent against it.
    pub theirs: Vec<f64>,
    /// Change of theirs to compare with, percent: the mean over the seeds of its rings, elsewhere that of the seed whose
    /// paths ours take. 0 for the first setting; `None`: not given.
    pub theirs_pct: Option<f64>,
}

impl Cell {
    /// Mean over the seeds, percent.
    #[must_use]
    pub fn ours_mean_pct(&self) -> f64 {
        mean(&self.ours_pct)
    }
}

fn mean(all: &[f64]) -> f64 {
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// The scenario of a kind of traffic.
#[must_use]
pub fn scenario(traffic: &str, setting: &Setting, seed: u64) -> Option<Scenario> {
    let model = |at: usize| Scenario::parse(crate::traces::MODELS[at].1).ok();
    let mut scenario = match traffic {
        "ring" | "ring+incast" => {
            let mut ring = model(3)?;
            ring.paths.clear();
            if traffic == "ring+incast" {
                let mut beside = model(1)?.jobs;
                beside[0].iterations = 0;
                ring.jobs.append(&mut beside);
            }
            ring
        }
        "incast" => model(1)?,
        "all-to-all" => {
            let mut all = model(2)?;
            all.jobs[0].traffic = Traffic::AllToAll { bytes: 2_000_000 };
            all
        }
        "victim" => model(4)?,
        _ => return None,
    };
    if traffic != "victim" {
        scenario.jobs[0].iterations = 4;
    }
    scenario.config.seed = seed;
    scenario.limit_ms = 200.0;
    setting.apply(&mut scenario.config);
    Some(scenario)
}

impl Setting {
    /// Puts it into a configuration.
    pub fn apply(&self, c: &mut SimConfig) {
        c.ecn = match self.ecn {
            Some((kmin_kb, kmax_kb, pmax)) => EcnParams {
                enabled: true,
                kmin_kb,
                kmax_kb,
                pmax,
            },
            None => EcnParams {
                enabled: false,
                ..EcnParams::default()
            },
        };
        c.rp = RpParams {
            rpg_ai_rate: self.ai,
            rpg_hai_rate: self.hai,
            rpg_time_reset: self.timer,
            rpg_threshold: self.threshold,
            ..RpParams::default()
        };
        if let Some(gap) = self.gap {
            c.rp.rate_reduce_monitor_period = gap;
            c.rp.dce_tcp_rtt = gap;
            c.transport.cnp_gap_us = gap;
        }
    }
}

/// Runs every setting in some kinds of traffic.
pub fn run(
    kinds: &[&'static str],
    seeds: &[u64],
    mut progress: impl FnMut(&str, &str),
) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for (t, traffic) in TRAFFIC.into_iter().enumerate() {
        if !kinds.contains(&traffic) {
            continue;
        }
        let mut base: Vec<f64> = Vec::new();
        for setting in &SETTINGS {
            progress(traffic, setting.name);
            let (mut ours_us, mut paused) = (Vec::new(), 0.0);
            for seed in seeds {
                let Some(scenario) = scenario(traffic, setting, *seed) else {
                    continue;
                };
                let Ok(mut sim) = scenario.build() else {
                    continue;
                };
                sim.run_jobs(scenario.limit());
                ours_us.push(sim.jobs()[0].mean_us().unwrap_or(f64::NAN));
                paused += sim
                    .sample()
                    .ports
                    .iter()
                    .map(|p| p.pause_rx_ps as f64 / 1e6)
                    .sum::<f64>();
            }
            if base.is_empty() {
                base.clone_from(&ours_us);
            }
            let change = |(ours, base): (&f64, &f64)| (ours / base - 1.0) * 100.0;
            let theirs: Vec<f64> = setting.theirs[t].into_iter().flatten().collect();
            let seeds_known = if traffic.starts_with("ring") { 3 } else { 1 };
            let known = &theirs[..theirs.len().min(seeds_known)];
            let theirs_pct = if setting.name == "nv" {
                Some(0.0)
            } else {
                (!known.is_empty()).then(|| mean(known))
            };
            cells.push(Cell {
                setting: setting.name.to_owned(),
                traffic: traffic.to_owned(),
                ours_pct: ours_us.iter().zip(&base).map(change).collect(),
                paused_us: paused / ours_us.len().max(1) as f64,
                ours_us,
                theirs,
                theirs_pct,
            });
        }
    }
    cells
}

/// Settings closer together than this in the reference are in no order: percent.
const NOISE_PCT: f64 = 5.0;

/// How the order of the settings agrees in one kind of traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Kind of traffic.
    pub traffic: String,
    /// Spearman's, over the means of the seeds.
    pub rank_correlation: f64,
    /// Pairs of settings that are more than 5 points apart in the reference, and those of them in the same order here.
    pub pairs: usize,
    /// See `pairs`.
    pub same: usize,
}

impl Order {
    /// True when the order agrees: a correlation of at least 0.7, and four pairs of five. A setting's place among its
    /// equals is chance; two in wrong places among ten already cost more than that.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.rank_correlation >= 0.7 && self.same * 5 >= self.pairs * 4
    }
}

/// The order in each kind of traffic that was run.
#[must_use]
pub fn order(cells: &[Cell]) -> Vec<Order> {
    let of = |traffic: &&str| {
        let rank_correlation = rank_correlation(cells, traffic)?;
        let known: Vec<(f64, f64)> = pairs(cells, traffic);
        let apart = known.iter().enumerate().flat_map(|(n, a)| {
            let rest = known[n + 1..].iter();
            rest.filter(|b| (a.0 - b.0).abs() > NOISE_PCT)
                .map(|b| (a.0 < b.0) == (a.1 < b.1))
        });
        let apart: Vec<bool> = apart.collect();
        Some(Order {
            traffic: (*traffic).to_owned(),
            rank_correlation,
            pairs: apart.len(),
            same: apart.iter().filter(|same| **same).count(),
        })
    };
    TRAFFIC.iter().filter_map(of).collect()
}

/// Each setting's figures, theirs and ours by seed: the first in us, the others in percent against it.
#[must_use]
pub fn figures(cells: &[Cell]) -> Rows {
    let list = |all: &[f64], us: bool| -> String {
        let one = |x: &f64| {
            if us {
                format!("{x:.0}")
            } else {
                format!("{x:+.0}")
            }
        };
        let all: Vec<String> = all.iter().map(one).collect();
        if all.is_empty() {
            return "-".to_owned();
        }
        all.join("/")
    };
    let mut heads = vec!["setting"];
    heads.extend(TRAFFIC);
    let row = |setting: &Setting| {
        let cell = |traffic: &str| {
            let known = cells
                .iter()
                .find(|c| c.setting == setting.name && c.traffic == traffic);
            known.map_or("-".to_owned(), |c| {
                let us = setting.name == "nv";
                let ours = if us { &c.ours_us } else { &c.ours_pct };
                format!("{}; {}", list(&c.theirs, us), list(ours, us))
            })
        };
        let mut row = vec![setting.name.to_owned()];
        row.extend(TRAFFIC.iter().map(|t| cell(t)));
        row
    };
    (heads, SETTINGS.iter().map(row).collect())
}

/// How the orders agree.
#[must_use]
pub fn orders(all: &[Order]) -> Rows {
    let rows = all.iter().map(|o| {
        vec![
            o.traffic.clone(),
            format!("{:.2}", o.rank_correlation),
            format!("{} of {}", o.same, o.pairs),
            if o.holds() { "yes" } else { "no" }.to_owned(),
        ]
    });
    let heads = vec![
        "traffic",
        "rank correlation",
        "pairs more than 5 points apart in the same order",
        "agree",
    ];
    (heads, rows.collect())
}

/// Changes of each setting that the reference gives, theirs and ours, percent.
fn pairs(cells: &[Cell], traffic: &str) -> Vec<(f64, f64)> {
    cells
        .iter()
        .filter(|c| c.traffic == traffic)
        .filter_map(|c| Some((c.theirs_pct?, c.ours_mean_pct())))
        .collect()
}

/// Spearman's rank correlation of theirs and ours in one kind of traffic, -1.0..=1.0. `None`: fewer than three pairs.
#[must_use]
pub fn rank_correlation(cells: &[Cell], traffic: &str) -> Option<f64> {
    let pairs = pairs(cells, traffic);
    if pairs.len() < 3 {
        return None;
    }
    let ranks = |values: Vec<f64>| -> Vec<f64> {
        values
            .iter()
            .map(|v| {
                let below = values.iter().filter(|w| *w < v).count() as f64;
                let same = values.iter().filter(|w| *w == v).count() as f64;
                below + (same - 1.0) / 2.0
            })
            .collect()
    };
    let (a, b) = (
        ranks(pairs.iter().map(|p| p.0).collect()),
        ranks(pairs.iter().map(|p| p.1).collect()),
    );
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let cov: f64 = a.iter().zip(&b).map(|(x, y)| (x - ma) * (y - mb)).sum();
    let (va, vb) = (
        a.iter().map(|x| (x - ma).powi(2)).sum::<f64>(),
        b.iter().map(|y| (y - mb).powi(2)).sum::<f64>(),
    );
    (va > 0.0 && vb > 0.0).then(|| cov / (va * vb).sqrt())
}
