//! The traces of the independent simulator: reading them, and our model of each beside them.

use crate::scenario::Scenario;
use crate::sim::{Sample, Sim};
use crate::time::{NS, Time};
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A trace, our model of it, and how far their iteration times may be apart, in percent. `None`: no bound is claimed.
pub const MODELS: [(&str, &str, Option<f64>); 7] = [
    (
        "ring-clean-16h",
        include_str!("../scenarios/trace-ring-clean.yaml"),
        Some(10.0),
    ),
    (
        "incast-8to1-16h",
        include_str!("../scenarios/trace-incast.yaml"),
        Some(10.0),
    ),
    (
        "a2a-16h",
        include_str!("../scenarios/trace-a2a.yaml"),
        Some(10.0),
    ),
    (
        "ring-collision-16h",
        include_str!("../scenarios/trace-ring-collision.yaml"),
        Some(20.0),
    ),
    (
        "victim-16h",
        include_str!("../scenarios/trace-victim.yaml"),
        Some(20.0),
    ),
    (
        "ring-linkrate-16h",
        include_str!("../scenarios/trace-ring-linkrate.yaml"),
        None,
    ),
    (
        "ring-linkerr-16h",
        include_str!("../scenarios/trace-ring-linkerr.yaml"),
        None,
    ),
];

/// Counters of a switch port in a row of a trace. They rise from the start, but for the queue's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortRow {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets marked.
    pub ecn: u64,
    /// Pauses sent.
    pub pause_tx: u64,
    /// Time paused, ns.
    pub paused_ns: u64,
    /// Bytes waiting.
    pub queue: u64,
    /// Most bytes waiting since the row before.
    pub queue_max: u64,
    /// Packets dropped.
    pub drop: u64,
}

/// A trace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Rows of switch ports, by time in ns, then node and port from 1.
    pub ports: BTreeMap<u64, BTreeMap<(u32, u32), PortRow>>,
    /// Payload sent by each host, by time in ns.
    pub host_tx: BTreeMap<u64, BTreeMap<u32, u64>>,
    /// Negative acknowledgements that each host received, by time in ns.
    pub host_naks: BTreeMap<u64, BTreeMap<u32, u64>>,
    /// Job, iteration and duration in us.
    pub iterations: Vec<(u32, u32, f64)>,
    /// End in ns, job and duration in us of the same.
    pub ends: Vec<(u64, (u32, f64))>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line.
    #[error("line {0}: not a row of a trace")]
    Line(usize),
}

/// A trace larger than this is not one: the largest has 1 MB.
const BYTES_MAX: u64 = 64 << 20;

impl Trace {
    /// Reads a compressed trace.
    ///
    /// # Errors
    /// No such file, or not a trace.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let fail = |source| TraceError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(fail)?;
        let mut text = String::new();
        GzDecoder::new(file)
            .take(BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(fail)?;
        Self::parse(&text)
    }

    /// Reads a trace.
    ///
    /// # Errors
    /// A row that is not one.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut trace = Self::default();
        for (n, line) in text.lines().enumerate() {
            trace.line(line).ok_or(TraceError::Line(n + 1))?;
        }
        Ok(trace)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let n = |i: usize| words.get(i)?.parse::<u64>().ok();
        let small = |i: usize| words.get(i)?.parse::<u32>().ok();
        match *words.first()? {
            "S" => {
                let row = PortRow {
                    tx_bytes: n(5)?,
                    tx_packets: n(6)?,
                    rx_bytes: n(7)?,
                    ecn: n(8)?,
                    pause_tx: n(9)?,
                    paused_ns: n(11)?,
                    queue: n(12)?,
                    queue_max: n(13)?,
                    drop: n(14)?,
                };
                self.ports
                    .entry(n(1)?)
                    .or_default()
                    .insert((small(2)?, small(3)?), row);
            }
            "H" => {
                self.host_tx
                    .entry(n(1)?)
                    .or_default()
                    .insert(small(2)?, n(3)?);
                let naks = self.host_naks.entry(n(1)?).or_default();
                naks.insert(small(2)?, n(11)?);
            }
            "J" => {
                let us = words.get(4)?.parse().ok()?;
                self.iterations.push((small(2)?, small(3)?, us));
                self.ends.push((n(1)?, (small(2)?, us)));
            }
            "#" => (),
            _ => return None,
        }
        Some(())
    }

    /// Mean duration of the iterations of a job, us. `None`: it has none.
    #[must_use]
    pub fn mean_us(&self, job: u32) -> Option<f64> {
        let all: Vec<f64> = self
            .iterations
            .iter()
            .filter(|i| i.0 == job)
            .map(|i| i.2)
            .collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// The deepest queue of each port, by node and port from 1.
    #[must_use]
    pub fn queue_max(&self) -> BTreeMap<(u32, u32), u64> {
        let mut max = BTreeMap::new();
        for row in self.ports.values() {
            for (key, port) in row {
                let at = max.entry(*key).or_insert(0);
                *at = port.queue_max.max(*at);
            }
        }
        max
    }

    /// Counters at the end, summed over all ports: marks, pauses, paused ns.
    #[must_use]
    pub fn sums(&self) -> (u64, u64, u64) {
        let Some(last) = self.ports.values().next_back() else {
            return (0, 0, 0);
        };
        last.values().fold((0, 0, 0), |s, p| {
            (s.0 + p.ecn, s.1 + p.pause_tx, s.2 + p.paused_ns)
        })
    }
}

/// Their figures and ours for one trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the trace.
    pub trace: String,
    /// Iteration times of the first job, us: theirs.
    pub theirs_us: Vec<f64>,
    /// Ours, with the first seed.
    pub ours_us: Vec<f64>,
    /// Mean of theirs, one run.
    pub theirs_mean_us: f64,
    /// Mean of ours over all seeds: which packets are marked is chance, and theirs is one draw of it.
    pub ours_mean_us: f64,
    /// Lowest and highest mean of a seed.
    pub ours_range_us: (f64, f64),
    /// How far ours is from theirs, percent.
    pub off_pct: f64,
    /// How far it may be, percent.
    pub allowed_pct: Option<f64>,
    /// Their ports with the deepest queues, deepest first, and how deep in bytes: all beyond the lowest marking threshold.
    pub theirs_hot: Vec<(String, u64)>,
    /// Ours, with the first seed.
    pub ours_hot: Vec<(String, u64)>,
    /// Marks, pauses and time paused in us over all ports: theirs.
    pub theirs_sums: (u64, u64, f64),
    /// Ours.
    pub ours_sums: (u64, u64, f64),
    /// Packets lost for want of buffer, ours, all seeds.
    pub lost: u64,
}

impl Comparison {
    /// True when the iteration times are within the bound, or there is none.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.allowed_pct
            .is_none_or(|allowed| self.off_pct.abs() <= allowed)
    }

    /// True when the deepest queue is at the same port, each side's three deepest are hot on the other, and neither is
    /// hot where the other is not at all. Which of several shallow queues comes third is chance: the marks'.
    #[must_use]
    pub fn same_hot(&self) -> bool {
        let among = |few: &[(String, u64)], all: &[(String, u64)]| {
            few.iter().take(3).all(|p| all.iter().any(|q| p.0 == q.0))
        };
        let first = |all: &[(String, u64)]| all.first().map(|p| p.0.clone());
        first(&self.theirs_hot) == first(&self.ours_hot)
            && among(&self.theirs_hot, &self.ours_hot)
            && among(&self.ours_hot, &self.theirs_hot)
    }

    /// Ports that are hot on both sides against those hot on either (Jaccard's index), 0.0..=1.0; 1 where none is.
    #[must_use]
    pub fn hot_overlap(&self) -> f64 {
        let names = |all: &[(String, u64)]| -> BTreeSet<String> {
            all.iter().map(|p| p.0.clone()).collect()
        };
        let (theirs, ours) = (names(&self.theirs_hot), names(&self.ours_hot));
        let either = theirs.union(&ours).count();
        if either == 0 {
            return 1.0;
        }
        theirs.intersection(&ours).count() as f64 / either as f64
    }
}

/// A queue is hot beyond this: Kmin of the traces.
const HOT_BYTES: u64 = 150_000;

fn hottest(sim: &Sim, max: &BTreeMap<(u32, u32), u64>) -> Vec<(String, u64)> {
    let mut ports: Vec<(String, u64)> = max
        .iter()
        .filter(|(_, bytes)| **bytes > HOT_BYTES)
        .filter_map(|((node, port), bytes)| {
            let ports = &sim.topology().nodes.get(*node as usize)?.ports;
            Some((
                sim.topology().port_name(*ports.get(*port as usize - 1)?),
                *bytes,
            ))
        })
        .collect();
    ports.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    ports
}

/// Runs a scenario to its end, with a sample each so often.
pub fn run_sampled(
    sim: &mut Sim,
    limit: Time,
    every: Time,
    mut each: impl FnMut(&Sim, Sample),
) -> bool {
    let mut next = sim.now();
    loop {
        next = (next + every.max(1)).min(limit);
        if sim.run_jobs(next) || next >= limit {
            let sample = sim.sample();
            each(sim, sample);
            return sim.jobs_done();
        }
        sim.run_until(next);
        let sample = sim.sample();
        each(sim, sample);
    }
}

/// One run of a model: durations of the first job, deepest queues, marks, pauses and ps paused, packets lost.
struct Run {
    us: Vec<f64>,
    hot: Vec<(String, u64)>,
    sums: (u64, u64, u64),
    lost: u64,
}

fn run_model(scenario: &Scenario) -> Option<(Sim, Run)> {
    let mut sim = scenario.build().ok()?;
    let mut max: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut sums = (0, 0, 0);
    run_sampled(
        &mut sim,
        scenario.limit(),
        scenario.sample_every(),
        |sim, sample| {
            for (port, count) in sim.topology().ports.iter().zip(&sample.ports) {
                if port.node >= sim.topology().hosts {
                    let at = max.entry((port.node, port.position + 1)).or_insert(0);
                    *at = count.queue_bytes_max.max(*at);
                }
            }
            sums = sample.ports.iter().fold((0, 0, 0), |a, p| {
                (a.0 + p.ecn_marked_tx, a.1 + p.pause_tx, a.2 + p.pause_rx_ps)
            });
        },
    );
    let us = sim.jobs()[0].durations().map(crate::time::to_us).collect();
    let run = Run {
        us,
        hot: hottest(&sim, &max),
        sums,
        lost: sim.totals().lost_buffer,
    };
    Some((sim, run))
}

/// Runs our model of a trace with each seed beside it.
///
/// # Errors
/// The trace cannot be read.
///
/// # Panics
/// If a model that comes with this crate is not a scenario, or there is no seed; a test reads them all.
pub fn compare(
    dir: &Path,
    (name, yaml, allowed): (&'static str, &str, Option<f64>),
    seeds: &[u64],
) -> Result<Comparison, TraceError> {
    let trace = Trace::read(&dir.join(format!("{name}.txt.gz")))?;
    let mut scenario = Scenario::parse(yaml).expect("models are scenarios");
    let mut means = Vec::new();
    let mut first = None;
    let mut lost = 0;
    for seed in seeds {
        scenario.config.seed = *seed;
        let (sim, run) = run_model(&scenario).expect("models are scenarios");
        means.push(sim.jobs()[0].mean_us().unwrap_or(f64::NAN));
        lost += run.lost;
        first.get_or_insert((sim, run));
    }
    let (sim, run) = first.expect("at least one seed");
    let theirs_us: Vec<f64> = trace
        .iterations
        .iter()
        .filter(|i| i.0 == 0)
        .map(|i| i.2)
        .collect();
    let theirs_mean_us = trace.mean_us(0).unwrap_or(f64::NAN);
    let ours_mean_us = means.iter().sum::<f64>() / means.len() as f64;
    let theirs = trace.sums();
    Ok(Comparison {
        trace: name.to_owned(),
        off_pct: (ours_mean_us / theirs_mean_us - 1.0) * 100.0,
        theirs_hot: hottest(&sim, &trace.queue_max()),
        ours_hot: run.hot,
        theirs_us,
        ours_us: run.us,
        theirs_mean_us,
        ours_mean_us,
        ours_range_us: means
            .iter()
            .fold((f64::INFINITY, 0.0), |r, m| (m.min(r.0), m.max(r.1))),
        allowed_pct: allowed,
        theirs_sums: (theirs.0, theirs.1, theirs.2 as f64 / 1e3),
        ours_sums: (
            run.sums.0,
            run.sums.1,
            run.sums.2 as f64 / (NS * 1000) as f64,
        ),
        lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hot(theirs: &[(&str, u64)], ours: &[(&str, u64)]) -> Comparison {
        let own = |ports: &[(&str, u64)]| ports.iter().map(|p| (p.0.to_owned(), p.1)).collect();
        Comparison {
            trace: "t".to_owned(),
            theirs_us: Vec::new(),
            ours_us: Vec::new(),
            theirs_mean_us: 1.0,
            ours_mean_us: 1.0,
            ours_range_us: (1.0, 1.0),
            off_pct: 0.0,
            allowed_pct: None,
            theirs_hot: own(theirs),
            ours_hot: own(ours),
            theirs_sums: (0, 0, 0.0),
            ours_sums: (0, 0, 0.0),
            lost: 0,
        }
    }

    #[test]
    fn the_same_links_are_hot_when_each_sides_deepest_are_hot_on_the_other() {
        let (a, b, c, d) = (("a", 9), ("b", 5), ("c", 3), ("d", 2));
        assert!(hot(&[], &[]).same_hot());
        assert!(hot(&[a, b, c, d], &[a, c, d, b]).same_hot());
        // Another first, one of the first three not hot at all, none at all.
        assert!(!hot(&[a, b, c], &[b, a, c]).same_hot());
        assert!(!hot(&[a, b, c], &[a, b]).same_hot());
        assert!(!hot(&[a, b], &[a, b, c]).same_hot());
        assert!(!hot(&[a], &[]).same_hot() && !hot(&[], &[a]).same_hot());
        let overlap = hot(&[a, b], &[a, c, d]).hot_overlap();
        assert!((overlap - 0.25).abs() < 1e-12, "{overlap}");
    }

    #[test]
    fn rows_are_read_by_their_columns() {
        let trace = Trace::parse(
            "# S t_ns sw port peer ...\nS 50000 16 5 20 4680 78 464264 3 4 5 6 7 8 9\nH 50000 4 300000 300 0 0 0 0 5 0 0 0 0 0 1 3.931\nJ 1289378 0 0 1279.4\n",
        )
        .unwrap();
        let want = PortRow {
            tx_bytes: 4680,
            tx_packets: 78,
            rx_bytes: 464_264,
            ecn: 3,
            pause_tx: 4,
            paused_ns: 6,
            queue: 7,
            queue_max: 8,
            drop: 9,
        };
        assert_eq!(trace.ports[&50_000][&(16, 5)], want);
        assert_eq!(trace.host_tx[&50_000][&4], 300_000);
        assert_eq!(trace.mean_us(0), Some(1279.4));
        assert!(matches!(Trace::parse("S 1 2\n"), Err(TraceError::Line(1))));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[SHJ#0-9 .\n-]{0,300}") {
            drop(Trace::parse(&text));
        }
    }
}
