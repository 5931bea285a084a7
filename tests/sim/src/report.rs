//! What a run tells: iteration times of each job, the hottest links, what became of all packets.

use crate::port::{HostCounters, PortCounters};
use crate::scenario::Scenario;
use crate::sim::{Sample, Sim, Totals};
use crate::time::{Time, to_us};
use crate::traces::run_sampled;
use serde::Serialize;

/// Figures of one job.
#[derive(Debug, Clone, Serialize)]
pub struct JobReport {
    /// Its name.
    pub name: String,
    /// It ran all its iterations.
    pub done: bool,
    /// Duration of each iteration, us.
    pub iterations_us: Vec<f64>,
    /// Mean of them, us.
    pub mean_us: Option<f64>,
    /// Median duration of a message, us.
    pub flow_us_p50: Option<f64>,
    /// Duration that 99 % of messages keep, us.
    pub flow_us_p99: Option<f64>,
}

/// Figures of one port.
#[derive(Debug, Clone, Serialize)]
pub struct LinkReport {
    /// Sending port.
    pub port: String,
    /// Receiving port.
    pub peer: String,
    /// Share of the rate that was used over the run, 0.0..=1.0.
    pub utilisation: f64,
    /// Deepest queue, bytes.
    pub queue_bytes_max: u64,
    /// Share of the run in which it was paused.
    pub paused: f64,
    /// Its counters at the end.
    pub counters: PortCounters,
}

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the scenario shows.
    pub about: String,
    /// Simulated time, ms.
    pub simulated_ms: f64,
    /// Every job with an end reached it.
    pub done: bool,
    /// Jobs.
    pub jobs: Vec<JobReport>,
    /// Every port, those with the deepest queues first.
    pub links: Vec<LinkReport>,
    /// NICs, by host.
    pub hosts: Vec<HostCounters>,
    /// What became of all packets.
    pub totals: Totals,
}

/// Everything that a drawing needs of a run: a row of figures at each sample.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Times of the samples, ps.
    pub at: Vec<Time>,
    /// By port: bytes sent since the sample before.
    pub tx: Vec<Vec<u64>>,
    /// By port: deepest queue since the sample before.
    pub queue: Vec<Vec<u64>>,
    /// By host: rate allowed by the reaction points, Gb/s.
    pub rate: Vec<Vec<f64>>,
    last: Vec<u64>,
}

impl History {
    fn add(&mut self, sample: &Sample) {
        self.tx.resize(sample.ports.len(), Vec::new());
        self.queue.resize(sample.ports.len(), Vec::new());
        self.rate.resize(sample.hosts.len(), Vec::new());
        self.last.resize(sample.ports.len(), 0);
        self.at.push(sample.at);
        for (p, count) in sample.ports.iter().enumerate() {
            self.tx[p].push(count.tx_bytes - self.last[p]);
            self.last[p] = count.tx_bytes;
            self.queue[p].push(count.queue_bytes_max);
        }
        for (h, count) in sample.hosts.iter().enumerate() {
            self.rate[h].push(count.rate_gbps);
        }
    }
}

/// Runs a scenario to its end.
pub fn run(
    scenario: &Scenario,
    sim: &mut Sim,
    mut progress: impl FnMut(&Sim),
) -> (Report, History) {
    let mut history = History::default();
    let mut last = None;
    let done = run_sampled(
        sim,
        scenario.limit(),
        scenario.sample_every(),
        |sim, sample| {
            history.add(&sample);
            last = Some(sample);
            progress(sim);
        },
    );
    let sample = last.unwrap_or_else(|| sim.sample());
    let span = sim.now().max(1) as f64;
    let mut links: Vec<LinkReport> = sim
        .topology()
        .ports
        .iter()
        .enumerate()
        .map(|(p, info)| LinkReport {
            port: sim.topology().port_name(crate::num::index(p)),
            peer: sim.topology().port_name(info.peer),
            utilisation: sample.ports[p].tx_bytes as f64 * 8e12 / (info.bits_per_s * span),
            queue_bytes_max: history.queue[p].iter().copied().max().unwrap_or(0),
            paused: sample.ports[p].pause_rx_ps as f64 / span,
            counters: sample.ports[p],
        })
        .collect();
    links.sort_by(|a, b| {
        b.queue_bytes_max
            .cmp(&a.queue_bytes_max)
            .then(b.utilisation.total_cmp(&a.utilisation))
    });
    let jobs = sim
        .jobs()
        .iter()
        .map(|j| JobReport {
            name: j.spec.name.clone(),
            done: j.done(),
            iterations_us: j.durations().map(to_us).collect(),
            mean_us: j.mean_us(),
            flow_us_p50: j.flow_ns.quantile(0.5).map(|ns| ns as f64 / 1e3),
            flow_us_p99: j.flow_ns.quantile(0.99).map(|ns| ns as f64 / 1e3),
        })
        .collect();
    let report = Report {
        about: scenario.about.clone(),
        simulated_ms: span / 1e9,
        done: done || sim.jobs().iter().all(|j| j.spec.iterations == 0),
        jobs,
        links,
        hosts: sample.hosts,
        totals: sim.totals(),
    };
    (report, history)
}
