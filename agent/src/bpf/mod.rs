//! The bpf collector: what eBPF programs see of collectives, flows, queues and drops.
//!
//! [`Bpf::load`] loads the programs of ebpf/ (embedded, see agent/build.rs) and
//! attaches them; [`Bpf::poll`] reads their maps. Six families, each of which
//! can fail without the others: a verifier's refusal or a missing right costs
//! that one source, with its reason, never the agent.
//!
//! | source | what it needs | what it gives |
//! |---|---|---|
//! | collective | uprobes (5.15) | calls of NCCL, RCCL, MPI in the processes that run now |
//! | tcp | sock_ops on a cgroup v2, or socket diagnostics | counters per connection |
//! | qdisc | raw tracepoints, BTF | queue depth per port |
//! | drop | raw tracepoints, BTF (5.17) | packets dropped per port and reason |
//! | qp | kprobes and BTF of ib_core, or RDMA netlink | queue pairs: peers, source ports, owners |
//! | roce | tc on Ethernet ports | RoCE packets, marks and notifications that cross the kernel |
//!
//! Everything is read when the caller polls; nothing here waits or wakes.

mod attach;
mod btf;
mod collective;
mod datatype;
mod elf;
mod embedded;
mod flows;
mod functions;
pub mod jobs;
mod load;
mod maps;
mod ports;
mod qp;
mod roce;
mod sample;
mod scan;
pub mod sockdiag;
pub mod sport;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod tests;

use crate::cost::Meter;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aya::{Ebpf, maps::PerCpuArray, programs::UProbe};
use weir_ebpf_abi::lost;

pub use jobs::{JobIdentity, socket_owners};
pub use sample::{
    BpfOptions, BpfSample, Collective, CollectiveOp, Drops, FlowSample, InFlightCall, PortDepth,
    QpKind, QpSample, QpState, RoceSample, RoceTotal, SourceState,
};
pub use scan::start_time;

use btf::{Btf, BtfError};
use collective::Collectives;
use flows::Flows;
use load::{Globals, LoadError, Owned};
use ports::{DropCounts, Queues};
use qp::QueuePairs;
use roce::Roce;

/// The outcome of loading.
#[derive(Default)]
pub struct BpfStart {
    /// `None` if no source is up.
    pub bpf: Option<Bpf>,
    /// One per family that was asked for.
    pub sources: Vec<SourceState>,
}

/// Loaded programs; dropping it detaches and unloads all of them.
pub struct Bpf {
    /// `None` where only a stand-in works.
    ebpf: Option<Ebpf>,
    lost: Option<PerCpuArray<Owned, u64>>,
    collectives: Option<Collectives>,
    flows: Option<Flows>,
    queues: Option<Queues>,
    drops: Option<DropCounts>,
    qps: Option<QueuePairs>,
    roce: Option<Roce>,
    /// CPU time of the looks between polls.
    looked: Duration,
}

impl Bpf {
    /// Loads and attaches the families that are asked for.
    ///
    /// Never fails as a whole: what is not there is in the sources' states.
    #[must_use]
    pub fn load(options: &BpfOptions) -> BpfStart {
        let loader = if options.no_programs {
            Err(LoadError::Other("bpf.enabled is false".to_owned()))
        } else {
            Loader::new(options)
        };
        let start = match loader {
            Ok(loader) => loader.load(options),
            Err(error) => without_programs(options, &error),
        };
        sys::release_heap();
        start
    }

    /// Reads everything, and looks for processes to probe if it is time.
    pub fn poll(&mut self, now: Instant) -> BpfSample {
        let mut sample = BpfSample {
            now_ns: sys::monotonic_ns(),
            ..BpfSample::default()
        };
        let mut meter = Meter::start();
        if let (Some(collectives), Some(ebpf)) = (&mut self.collectives, &mut self.ebpf) {
            collectives.poll(ebpf, now, &mut sample);
            let mut reading = meter.lap("collective", true);
            reading.cpu += std::mem::take(&mut self.looked);
            sample.costs.push(reading);
        }
        if let Some(flows) = &mut self.flows {
            let ok = flows.poll(&mut sample);
            sample.costs.push(meter.lap("tcp", ok));
        }
        if let Some(queues) = &mut self.queues {
            queues.poll(&mut sample);
            sample.costs.push(meter.lap("qdisc", true));
        }
        if let Some(drops) = &mut self.drops {
            drops.poll(&mut sample);
            sample.costs.push(meter.lap("drop", true));
        }
        if let Some(qps) = &mut self.qps {
            let moved = qps.follow(self.ebpf.as_mut());
            if qps.poll(now, &mut sample) || moved {
                sample.source_changes.push(qps.state());
            }
        }
        if let Some(roce) = &mut self.roce {
            roce.poll(&mut sample);
        }
        sample.lost_records = self.lost_records();
        sample
    }

    /// Looks for processes to probe between polls, so that a job's first calls are seen; returns
    /// what is worth a line in the log.
    pub fn look_for_jobs(&mut self, now: Instant) -> Vec<String> {
        let mut notes = Vec::new();
        if let (Some(collectives), Some(ebpf)) = (&mut self.collectives, &mut self.ebpf) {
            let mut meter = Meter::start();
            collectives.look(ebpf, now, &mut notes);
            self.looked += meter.lap("collective", true).cpu;
        }
        notes
    }

    /// Ethernet ports to count RoCE packets on, by ifindex; programs are attached to those that are new.
    pub fn watch_ports(&mut self, ports: &BTreeMap<u32, String>) -> Vec<String> {
        match (&mut self.roce, &mut self.ebpf) {
            (Some(roce), Some(ebpf)) => roce.watch(ebpf, ports),
            _ => Vec::new(),
        }
    }

    /// Processes that run a communication library now, as of the last poll.
    #[must_use]
    pub fn job_pids(&self) -> Vec<u32> {
        self.collectives
            .as_ref()
            .map_or_else(Vec::new, Collectives::job_pids)
    }

    /// Library files that have probes now.
    #[must_use]
    pub fn libraries_attached(&self) -> usize {
        self.collectives
            .as_ref()
            .map_or(0, Collectives::libraries_attached)
    }

    fn lost_records(&self) -> u64 {
        let Some(lost) = &self.lost else { return 0 };
        (0..lost::COUNT)
            .filter_map(|cause| lost.get(&cause, 0).ok())
            .flat_map(|per_cpu| per_cpu.iter().copied().collect::<Vec<_>>())
            .sum()
    }
}

/// What the families are made from.
struct Loader {
    ebpf: Ebpf,
    btf: Result<Btf, BtfError>,
    globals: Globals,
    netns_inum: Option<u64>,
}

impl Loader {
    fn new(options: &BpfOptions) -> Result<Self, LoadError> {
        let btf = Btf::read();
        let unknown = |error| LoadError::Other(format!("own network namespace: {error}"));
        let own_inum = sys::netns_inum().map_err(unknown)?;
        let netns_cookie = if options.netns_filter {
            sys::netns_cookie().map_err(unknown)?
        } else {
            0
        };
        let globals = Globals {
            offsets: load::find_offsets(btf.as_ref().ok()),
            netns_inum: if options.netns_filter { own_inum } else { 0 },
            netns_ports: own_inum,
            netns_cookie,
        };
        Ok(Self {
            ebpf: load::load_object(options, &globals)?,
            btf,
            globals,
            netns_inum: options.netns_filter.then_some(u64::from(own_inum)),
        })
    }

    fn load(mut self, options: &BpfOptions) -> BpfStart {
        let mut sources = Vec::new();
        let mut keep = |name, loaded: Result<(), String>| sources.push(source(name, loaded));
        let mut collectives = None;
        if options.collective {
            let loaded = self.load_collectives();
            keep("collective", store(loaded, &mut collectives));
        }
        let mut queues = None;
        if options.qdisc {
            let loaded = self.load_queues();
            keep("qdisc", store(loaded, &mut queues));
        }
        let mut drops = None;
        if options.drop {
            let loaded = self.load_drops();
            keep("drop", store(loaded, &mut drops));
        }
        let mut flows = None;
        if options.tcp {
            let (source, loaded) = match Flows::attach(&mut self.ebpf, options.cgroup.as_deref()) {
                Ok(loaded) => (source("tcp", Ok(())), Some(loaded)),
                Err(error) => flows_without_program(&error),
            };
            sources.push(source);
            flows = loaded;
        }
        let qps = options.qp.then(|| {
            let mut qps = QueuePairs::new(Ok(&mut self.ebpf));
            qps.follow(Some(&mut self.ebpf));
            sources.push(qps.state());
            qps
        });
        let mut roce = None;
        if options.roce {
            let loaded = Roce::load(&mut self.ebpf);
            sources.push(source("roce", store(loaded, &mut roce)));
        }
        // Queue pairs may come later, with their subsystem.
        let is_up = qps.is_some() || sources.iter().any(|source| source.up);
        let lost = load::take_map(&mut self.ebpf, "LOST").ok();
        let bpf = is_up.then_some(Bpf {
            ebpf: Some(self.ebpf),
            lost,
            collectives,
            flows,
            queues,
            drops,
            qps,
            roce,
            looked: Duration::ZERO,
        });
        BpfStart { bpf, sources }
    }

    fn load_collectives(&mut self) -> Result<Collectives, LoadError> {
        if self.netns_inum.is_some() {
            // The filter follows the running task to its namespace.
            self.globals
                .require(&["OFF_TASK_NSPROXY", "OFF_NSPROXY_NET", "OFF_NET_INUM"])
                .map_err(|error| self.blame_btf(error))?;
        }
        for name in attach::PROGRAMS {
            let probe: &mut UProbe = load::program(&mut self.ebpf, name)?;
            probe.load().map_err(|source| LoadError::Program {
                program: name,
                source,
            })?;
        }
        Collectives::new(&mut self.ebpf, self.netns_inum)
    }

    fn load_queues(&mut self) -> Result<Queues, LoadError> {
        const FIELDS: [&str; 6] = [
            "OFF_NET_INUM",
            "OFF_DEV_NET",
            "OFF_DEV_IFINDEX",
            "OFF_TXQ_DEV",
            "OFF_QDISC_CPU_QSTATS",
            "OFF_QDISC_BACKLOG",
        ];
        self.globals
            .require(&FIELDS)
            .map_err(|error| self.blame_btf(error))?;
        Queues::attach(&mut self.ebpf)
    }

    fn load_drops(&mut self) -> Result<DropCounts, LoadError> {
        const FIELDS: [&str; 4] = [
            "OFF_NET_INUM",
            "OFF_DEV_NET",
            "OFF_DEV_IFINDEX",
            "OFF_SKB_DEV",
        ];
        self.globals
            .require(&FIELDS)
            .map_err(|error| self.blame_btf(error))?;
        let btf = self
            .btf
            .as_ref()
            .map_err(|error| LoadError::Other(error.to_string()))?;
        DropCounts::attach(&mut self.ebpf, btf)
    }

    /// A field is missing because the kernel says nothing about any, if so.
    fn blame_btf(&self, error: LoadError) -> LoadError {
        match &self.btf {
            Ok(_) => error,
            Err(btf) => LoadError::Other(btf.to_string()),
        }
    }
}

/// No program can be loaded at all: only the stand-in for flows is left.
fn without_programs(options: &BpfOptions, error: &LoadError) -> BpfStart {
    let asked = [
        ("collective", options.collective),
        ("qdisc", options.qdisc),
        ("drop", options.drop),
        ("roce", options.roce),
    ];
    let mut sources: Vec<_> = asked
        .into_iter()
        .filter(|(_, asked)| *asked)
        .map(|(name, _)| source(name, Err(error.to_string())))
        .collect();
    let mut flows = None;
    if options.tcp {
        let (source, loaded) = flows_without_program(error);
        sources.push(source);
        flows = loaded;
    }
    let qps = options.qp.then(|| {
        let mut qps = QueuePairs::new(Err(error.to_string()));
        qps.follow(None);
        sources.push(qps.state());
        qps
    });
    let bpf = (flows.is_some() || qps.is_some()).then_some(Bpf {
        ebpf: None,
        lost: None,
        collectives: None,
        flows,
        queues: None,
        drops: None,
        qps,
        roce: None,
        looked: Duration::ZERO,
    });
    BpfStart { bpf, sources }
}

fn flows_without_program(error: &LoadError) -> (SourceState, Option<Flows>) {
    match Flows::without_program() {
        Ok(flows) => {
            let state = SourceState {
                name: "tcp",
                up: true,
                reason: Some(format!(
                    "from socket diagnostics, because sock_ops cannot be had: {error}"
                )),
            };
            (state, Some(flows))
        }
        Err(second) => (source("tcp", Err(format!("{error}; {second}"))), None),
    }
}

fn source(name: &'static str, loaded: Result<(), String>) -> SourceState {
    SourceState {
        name,
        up: loaded.is_ok(),
        reason: loaded.err(),
    }
}

fn store<T>(loaded: Result<T, LoadError>, place: &mut Option<T>) -> Result<(), String> {
    *place = Some(loaded.map_err(|error| error.to_string())?);
    Ok(())
}
