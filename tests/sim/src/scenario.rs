//! Scenario files: what a run is, in YAML. Unknown keys are refused; names and numbers are checked before it starts.

use crate::change::Change;
use crate::config::SimConfig;
use crate::events::{EventEntry, port};
use crate::job::JobSpec;
use crate::plan::Plan;
use crate::port::EcnParams;
use crate::route::ANSWERS;
use crate::rp::RpParams;
use crate::sim::Sim;
use crate::time::{MS, Time, from_us};
use crate::topology::{Topology, TopologyError, TopologySpec};
use serde::{Deserialize, Serialize};

/// A scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in a sentence.
    #[serde(default)]
    pub about: String,
    /// The fabric.
    pub topology: TopologySpec,
    /// Seed, marking, reaction point, buffers, transport.
    #[serde(default)]
    pub config: SimConfig,
    /// Who sends.
    pub jobs: Vec<JobEntry>,
    /// Paths given by hand instead of by hash.
    #[serde(default)]
    pub paths: Vec<PathEntry>,
    /// What happens when.
    #[serde(default)]
    pub events: Vec<EventEntry>,
    /// How long it may take, ms of simulated time.
    #[serde(default = "default_limit")]
    pub limit_ms: f64,
    /// Time between samples, us.
    #[serde(default = "default_sample")]
    pub sample_us: f64,
}

fn default_limit() -> f64 {
    1000.0
}

fn default_sample() -> f64 {
    50.0
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobEntry {
    /// Its name.
    pub name: String,
    /// What it does.
    pub traffic: Traffic,
    /// Host of each rank, in rank order: numbers and ranges such as `0-15`.
    pub hosts: Vec<HostRange>,
    /// Start of the first iteration, us.
    #[serde(default)]
    pub start_us: f64,
    /// Computation between iterations, us.
    #[serde(default)]
    pub gap_us: f64,
    /// Iterations; 0 goes on as long as other jobs run.
    #[serde(default = "one")]
    pub iterations: u32,
    /// From receiving a piece to passing it on, us.
    #[serde(default)]
    pub step_us: f64,
    /// Chance adds up to so much to each rank's computation, us.
    #[serde(default)]
    pub jitter_us: f64,
    /// An iteration ends when everything is acknowledged.
    #[serde(default)]
    pub end_on_ack: bool,
}

fn one() -> u32 {
    1
}

/// A host or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HostRange {
    /// One.
    One(u32),
    /// First to last, `0-15`.
    Range(String),
}

/// What a job does in an iteration. Bytes are of the whole buffer unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Traffic {
    /// Ring all-reduce.
    RingAllReduce {
        /// Size of the buffer.
        bytes: u64,
        /// Rings side by side, each with a share of the buffer.
        #[serde(default = "one")]
        channels: u32,
    },
    /// Tree all-reduce.
    TreeAllReduce {
        /// Size of the buffer.
        bytes: u64,
        /// Pieces of the pipeline.
        #[serde(default = "one")]
        chunks: u32,
    },
    /// Ring all-gather.
    AllGather {
        /// Size of the result.
        bytes: u64,
        /// Rings side by side.
        #[serde(default = "one")]
        channels: u32,
    },
    /// Ring reduce-scatter.
    ReduceScatter {
        /// Size of the input.
        bytes: u64,
        /// Rings side by side.
        #[serde(default = "one")]
        channels: u32,
    },
    /// Every rank to every other.
    AllToAll {
        /// Size of a rank's buffer.
        bytes: u64,
    },
    /// Activations forward and gradients back.
    Pipeline {
        /// Size of one activation.
        bytes: u64,
        /// Micro-batches.
        micro_batches: u32,
    },
    /// All others to the first rank.
    Incast {
        /// Size of what each sends.
        bytes: u64,
    },
    /// The first ranks write to the last ones.
    Checkpoint {
        /// Size of what each writes.
        bytes: u64,
        /// How many of the ranks are storage.
        storage: u32,
    },
}

impl Traffic {
    /// The messages of one iteration.
    #[must_use]
    pub fn plan(self, ranks: u32) -> Plan {
        match self {
            Traffic::RingAllReduce { bytes, channels } => {
                Plan::ring_all_reduce(ranks, bytes, channels)
            }
            Traffic::TreeAllReduce { bytes, chunks } => Plan::tree_all_reduce(ranks, bytes, chunks),
            Traffic::AllGather { bytes, channels } | Traffic::ReduceScatter { bytes, channels } => {
                Plan::ring_half(ranks, bytes, channels)
            }
            Traffic::AllToAll { bytes } => Plan::all_to_all(ranks, bytes),
            Traffic::Pipeline {
                bytes,
                micro_batches,
            } => Plan::pipeline(ranks, bytes, micro_batches),
            Traffic::Incast { bytes } => Plan::incast(ranks, bytes),
            Traffic::Checkpoint { bytes, storage } => Plan::checkpoint(ranks, bytes, storage),
        }
    }

    fn multiplier(self) -> u32 {
        match self {
            Traffic::RingAllReduce { channels, .. }
            | Traffic::AllGather { channels, .. }
            | Traffic::ReduceScatter { channels, .. } => channels,
            Traffic::TreeAllReduce { chunks, .. } => chunks,
            Traffic::Pipeline { micro_batches, .. } => micro_batches,
            Traffic::AllToAll { .. } | Traffic::Incast { .. } | Traffic::Checkpoint { .. } => 1,
        }
    }
}

/// The way of one flow's data from its leaf on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathEntry {
    /// Sender.
    pub src: u32,
    /// Receiver.
    pub dst: u32,
    /// Which of the queue pairs between the two, from 0, in the order of jobs and channels.
    #[serde(default)]
    pub nth: u32,
    /// The way of what the receiver sends back instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
    /// Ports by which it leaves switches, such as `leaf0/5`.
    pub via: Vec<String>,
}

/// Why a scenario cannot be run: which key, and what is allowed there.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not YAML of this shape.
    #[error("{0}")]
    Yaml(#[from] serde_norway::Error),
    /// The fabric cannot be built.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A value out of range.
    #[error("{key}: {value} is not allowed: {allowed}")]
    Value {
        /// Where.
        key: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
}

pub(crate) fn refuse(
    key: impl Into<String>,
    value: impl ToString,
    allowed: impl Into<String>,
) -> ScenarioError {
    ScenarioError::Value {
        key: key.into(),
        value: value.to_string(),
        allowed: allowed.into(),
    }
}

/// Messages of one job at most: 100 million take 4 GB.
const OPS_MAX: u64 = 20_000_000;

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// Not YAML of this shape.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        Ok(serde_norway::from_str(text)?)
    }

    /// Simulated time after which a run is given up.
    #[must_use]
    pub fn limit(&self) -> Time {
        crate::num::whole(self.limit_ms * MS as f64)
    }

    /// Time between samples.
    #[must_use]
    pub fn sample_every(&self) -> Time {
        from_us(self.sample_us)
    }

    /// Builds the fabric with its jobs and everything that will happen.
    ///
    /// # Errors
    /// A value out of range, or a name that is not there.
    pub fn build(&self) -> Result<Sim, ScenarioError> {
        self.check()?;
        let topology = Topology::build(&self.topology)?;
        let mut sim = Sim::new(topology, self.config);
        if sim.buffers.iter().any(|b| b.pool() == 0) {
            let allowed = "more than the headrooms and reserves of a switch's ports take";
            return Err(refuse(
                "config.buffer.bytes",
                self.config.buffer.bytes,
                allowed,
            ));
        }
        for (i, job) in self.jobs.iter().enumerate() {
            let key = format!("jobs[{i}]");
            let hosts = job.ranks(&key, sim.topology().hosts)?;
            let ranks = crate::num::index(hosts.len());
            let ops = u64::from(ranks).pow(2) * 2 * u64::from(job.traffic.multiplier().max(1));
            if ops > OPS_MAX {
                return Err(refuse(
                    format!("{key}.traffic"),
                    format!("{ops} messages"),
                    format!("at most {OPS_MAX}"),
                ));
            }
            sim.add_job(JobSpec {
                name: job.name.clone(),
                plan: job.traffic.plan(ranks),
                hosts,
                start: from_us(job.start_us),
                gap: from_us(job.gap_us),
                iterations: job.iterations,
                step: from_us(job.step_us),
                end_on_ack: job.end_on_ack,
                jitter: from_us(job.jitter_us),
            });
        }
        for (i, path) in self.paths.iter().enumerate() {
            let qp = (0..sim.qp_count())
                .filter(|qp| (sim.tuple(*qp).src, sim.tuple(*qp).dst) == (path.src, path.dst))
                .nth(path.nth as usize)
                .ok_or_else(|| {
                    refuse(
                        format!("paths[{i}]"),
                        format!("{} to {}, nth {}", path.src, path.dst, path.nth),
                        "a connection of a job",
                    )
                })?;
            for name in &path.via {
                let port = port(&sim, &format!("paths[{i}].via"), name)?;
                let switch = sim.topology().ports[port as usize].node;
                let flow = if path.answers { qp | ANSWERS } else { qp };
                sim.apply(Change::PinFlow {
                    switch,
                    qp: flow,
                    port: Some(port),
                });
            }
        }
        for (i, event) in self.events.iter().enumerate() {
            let change = event.change(&sim, &format!("events[{i}]"))?;
            sim.at(from_us(event.at_us), change);
        }
        Ok(sim)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let (config, t) = (&self.config, &self.config.transport);
        within(
            "config.transport",
            &[
                ("mtu", f64::from(t.mtu), 1.0, 9000.0),
                ("header", f64::from(t.header), 0.0, 500.0),
                ("ack_every", f64::from(t.ack_every), 1.0, 1e6),
                ("rto_us", t.rto_us, 1.0, 1e7),
                ("cnp_gap_us", t.cnp_gap_us, 0.0, 1e6),
            ],
        )?;
        within(
            "config.buffer",
            &[
                ("pause_us", config.buffer.pause_us, 1.0, 1e6),
                (
                    "dynamic_th",
                    f64::from(config.buffer.dynamic_th),
                    -16.0,
                    16.0,
                ),
                ("bytes", config.buffer.bytes as f64, 0.0, 1e12),
            ],
        )?;
        check_ecn("config.ecn", &config.ecn)?;
        check_rp("config.rp", &config.rp)?;
        for (key, value, low, high) in [
            ("limit_ms", self.limit_ms, 0.001, 1e7),
            ("sample_us", self.sample_us, 0.1, 1e9),
        ] {
            if !(low..=high).contains(&value) {
                return Err(refuse(key, value, format!("{low} to {high}")));
            }
        }
        for (i, event) in self.events.iter().enumerate() {
            let key = format!("events[{i}]");
            within(&key, &[("at_us", event.at_us, 0.0, 1e10)])?;
        }
        Ok(())
    }
}

/// Values by their names below `key`, each with the least and the most that it may be.
pub(crate) fn within(key: &str, values: &[(&str, f64, f64, f64)]) -> Result<(), ScenarioError> {
    for (name, value, low, high) in values {
        if !(*low..=*high).contains(value) {
            let key = format!("{key}.{name}");
            return Err(refuse(key, value, format!("{low} to {high}")));
        }
    }
    Ok(())
}

pub(crate) fn check_ecn(key: &str, ecn: &EcnParams) -> Result<(), ScenarioError> {
    within(
        key,
        &[
            ("pmax", ecn.pmax, 0.0, 1.0),
            ("kmax_kb", ecn.kmax_kb, 0.0, 1e9),
            ("kmin_kb", ecn.kmin_kb, 0.0, ecn.kmax_kb),
        ],
    )
}

pub(crate) fn check_rp(key: &str, rp: &RpParams) -> Result<(), ScenarioError> {
    within(
        key,
        &[
            ("rpg_time_reset", rp.rpg_time_reset, 1.0, 1e6),
            ("rpg_ai_rate", rp.rpg_ai_rate, 0.0, 1e6),
            ("rpg_hai_rate", rp.rpg_hai_rate, 0.0, 1e6),
            (
                "rate_reduce_monitor_period",
                rp.rate_reduce_monitor_period,
                0.0,
                1e6,
            ),
            ("min_rate", rp.min_rate, 0.001, 1e6),
        ],
    )
}

impl JobEntry {
    fn ranks(&self, key: &str, all: u32) -> Result<Vec<u32>, ScenarioError> {
        let mut hosts = Vec::new();
        for range in &self.hosts {
            let (first, last) = match range {
                HostRange::One(h) => (*h, *h),
                HostRange::Range(text) => text
                    .split_once('-')
                    .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)))
                    .ok_or_else(|| {
                        refuse(
                            format!("{key}.hosts"),
                            text,
                            "a number or a range such as 0-15",
                        )
                    })?,
            };
            if last >= all || first > last {
                return Err(refuse(
                    format!("{key}.hosts"),
                    format!("{first}-{last}"),
                    format!("hosts 0 to {}", all - 1),
                ));
            }
            hosts.extend(first..=last);
        }
        if hosts.len() < 2 {
            return Err(refuse(
                format!("{key}.hosts"),
                hosts.len(),
                "at least 2 hosts",
            ));
        }
        let mut sorted = hosts.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != hosts.len() {
            return Err(refuse(
                format!("{key}.hosts"),
                "a host twice",
                "each host once",
            ));
        }
        for (name, us) in [
            ("start_us", self.start_us),
            ("gap_us", self.gap_us),
            ("step_us", self.step_us),
            ("jitter_us", self.jitter_us),
        ] {
            if !(0.0..=1e9).contains(&us) {
                return Err(refuse(format!("{key}.{name}"), us, "0 to 1000000000"));
            }
        }
        Ok(hosts)
    }
}
