//! Reads every source once and makes a [`Sample`] of it.
//!
//! Sources are `netdev` (links and queues over rtnetlink) and the eBPF families. Each fails alone:
//! its columns are absent, its state says why, the rest goes on.

use crate::bpf::jobs::{self, JobIdentity};
use crate::bpf::start_time;
use crate::bpf::{Bpf, BpfOptions, BpfSample, BpfStart, QpSample, SourceState};
use crate::config::{Config, excluded};
use crate::cost::{Costs, Meter};
use crate::devices::Devices;
use crate::gpu_jobs::{self, GpuProcess};
use crate::netlink::links::Link;
use crate::netlink::qdiscs::Qdisc;
use crate::netlink::{Netlink, NetlinkError};
use crate::probe::Probe;
use crate::probe::list::List;
use crate::probe::ud::Ud;
use crate::qps;
use crate::sample::{
    CollectiveCall, FlowEnds, FlowReading, PORT_SIGNALS, PortReadings, QueuePair, Readings,
    RunningCall, Sample, Series,
};
use crate::source::{
    Event, Gathered, GpuPart, Info, OptionalCounter, PortGids, RawCounter, Source,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_wire::signal::{Entity, Signal};
use weir_wire::v1;

/// How long a sample waits for devices: what comes later goes into the next.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same for a single look at the node: a driver may take seconds to wake GPUs that nobody uses.
const PATIENCE_ONCE: Duration = Duration::from_secs(10);
/// Processes whose job is remembered.
const PIDS_MAX: usize = 4096;
/// Flows whose owner is remembered.
const OWNERS_MAX: usize = 65_536;
/// A flow whose owner was not found is looked for again after this long.
const OWNER_AGAIN: Duration = Duration::from_secs(10);

/// What was read besides the sample, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    pub bpf: BpfSample,
    /// Interface names by ifindex.
    pub names: BTreeMap<u32, String>,
    /// Interfaces whose drivers tell no state.
    pub state_unknown: BTreeSet<String>,
    pub raw: Vec<RawCounter>,
    pub verbatim: Vec<RawCounter>,
    pub info: Vec<Info>,
    pub optional_counters: Vec<OptionalCounter>,
    pub gids: Vec<PortGids>,
    pub gpu_parts: Vec<GpuPart>,
    /// Processes on each GPU that tells.
    pub gpu_process_counts: BTreeMap<String, usize>,
    pub gpu_processes: Vec<GpuProcess>,
    /// Seen since the sample before.
    pub events: Vec<Event>,
    pub costs: Costs,
}

/// What the sources are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To read them for as long as the agent runs.
    Run,
    /// A single look at the node: what tells only what happens from now on stays closed. No program
    /// is loaded, no event awaited, nothing sent.
    Look,
}

/// What is known of a process.
struct Known {
    /// Ticks since boot; `None` once it is gone.
    started: Option<u64>,
    /// Number of the sample in which it was last looked at.
    sample: u64,
    identity: Option<JobIdentity>,
}

/// All sources of this node.
pub struct Collector {
    pub netlink: Netlink,
    bpf: Option<Bpf>,
    collectives_by_bpf: bool,
    bpf_sources: Vec<Source>,
    netdev_error: Option<String>,
    /// Ethernet ports by ifindex.
    ethernet: BTreeMap<u32, String>,
    /// Interfaces whose drivers tell no state.
    state_unknown: BTreeSet<String>,
    readings: Readings,
    exclude: Vec<String>,
    jobs: BTreeMap<u32, Known>,
    /// Taken so far.
    samples: u64,
    /// The pairs as the programs gave them last, and with their jobs.
    qps_seen: Arc<Vec<QpSample>>,
    qps: Arc<Vec<QueuePair>>,
    /// By process number and start.
    qp_jobs: BTreeMap<(u32, Option<u64>), Option<JobIdentity>>,
    owners: BTreeMap<FlowEnds, (Option<u32>, Instant)>,
    /// Processes among which the owners were looked for last.
    owner_pids: Vec<u32>,
    drop_sums: BTreeMap<u32, u64>,
    /// Jobs of the processes on GPUs, while they are there.
    gpu_jobs: BTreeMap<u32, Option<JobIdentity>>,
    devices: Devices,
    /// Active probes, or why there are none; `None`: not wanted.
    probe: Option<Result<Probe, String>>,
    /// The same over verbs.
    ud: Option<Ud>,
    /// How long a sample waits for devices.
    patience: Duration,
    costs: Costs,
    epoch: Instant,
}

impl Collector {
    /// Opens what can be opened.
    ///
    /// # Errors
    /// No netlink socket: nothing at all can be read.
    pub fn open(
        config: &Config,
        purpose: Purpose,
        epoch: Instant,
    ) -> Result<Collector, NetlinkError> {
        let run = purpose == Purpose::Run;
        let options = BpfOptions {
            netns_filter: config.bpf.netns_filter,
            collective: config.bpf.enabled && config.bpf.collective,
            tcp: config.bpf.tcp,
            qdisc: config.bpf.enabled && config.bpf.qdisc,
            drop: config.bpf.enabled && config.bpf.drop,
            qp: config.bpf.qp,
            roce: config.bpf.enabled && config.bpf.roce,
            cgroup: config.bpf.cgroup.clone(),
            no_programs: !config.bpf.enabled,
            object: None,
        };
        let start = if run {
            Bpf::load(&options)
        } else {
            BpfStart::default()
        };
        let collectives_by_bpf = start.sources.iter().any(|s| s.name == "collective" && s.up);
        let devices = Devices::start(config, run);
        let wanted = devices.verbs().filter(|_| config.collectors.probe);
        let ud = wanted.map(|verbs| {
            let probe = &config.probe;
            Ud::new(
                verbs.clone(),
                probe.packets_per_second,
                probe.settings.window,
            )
        });
        Ok(Collector {
            netlink: Netlink::open()?,
            bpf: start.bpf,
            collectives_by_bpf,
            bpf_sources: start.sources.into_iter().map(source_of).collect(),
            netdev_error: None,
            ethernet: BTreeMap::new(),
            state_unknown: BTreeSet::new(),
            readings: Readings::default(),
            exclude: config.ports_exclude.clone(),
            jobs: BTreeMap::new(),
            samples: 0,
            qps_seen: Arc::default(),
            qps: Arc::default(),
            qp_jobs: BTreeMap::new(),
            owners: BTreeMap::new(),
            owner_pids: Vec::new(),
            drop_sums: BTreeMap::new(),
            gpu_jobs: BTreeMap::new(),
            devices,
            ud,
            probe: (config.collectors.probe && run)
                .then(|| Probe::start(config.probe.options(&config.ports_exclude))),
            patience: match purpose {
                Purpose::Run => PATIENCE,
                Purpose::Look => PATIENCE_ONCE,
            },
            costs: Costs::default(),
            epoch,
        })
    }

    /// State of every source after the last collection.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        let netdev = Source {
            name: "netdev",
            up: self.netdev_error.is_none(),
            reason: self.netdev_error.clone().unwrap_or_default(),
        };
        let mut sources = vec![netdev];
        sources.extend(self.bpf_sources.iter().cloned());
        sources.extend(self.devices.sources().cloned());
        sources.extend(self.probe.as_ref().map(|probe| match probe {
            Ok(probe) => probe.source(),
            Err(reason) => Source {
                name: "probe",
                up: false,
                reason: reason.clone(),
            },
        }));
        sources
    }

    /// The controller says whom to probe and whom to answer.
    pub fn pinglist(&mut self, list: &v1::Pinglist) {
        let list = List::from(list);
        if let Some(ud) = &mut self.ud {
            ud.set_list(&list);
        }
        if let Some(Ok(probe)) = &self.probe {
            probe.set_list(list);
        }
    }

    /// Where this node answers probes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<v1::Endpoint> {
        let mut endpoints = match &self.probe {
            Some(Ok(probe)) => probe.endpoints(),
            Some(Err(_)) | None => Vec::new(),
        };
        endpoints.extend(self.ud.iter().flat_map(Ud::endpoints));
        endpoints
    }

    /// Looks for processes to probe, between samples.
    pub fn look_for_jobs(&mut self) {
        let notes = self
            .bpf
            .as_mut()
            .map(|b| b.look_for_jobs(Instant::now()))
            .unwrap_or_default();
        for note in notes {
            tracing::info!("{note}");
        }
    }

    /// Reads everything once.
    pub fn collect(&mut self) -> (Sample, Extras) {
        let started = Instant::now();
        self.samples += 1;
        let mut sample = Sample {
            at: started.duration_since(self.epoch),
            ..Sample::default()
        };
        let mut bpf = self
            .bpf
            .as_mut()
            .map(|b| b.poll(started))
            .unwrap_or_default();
        let mut read = std::mem::take(&mut bpf.costs);
        let mut meter = Meter::start();
        for note in &bpf.notes {
            tracing::info!("{note}");
        }
        for change in &bpf.source_changes {
            self.source_changed(change);
        }
        sample.lost_records = self.bpf.as_ref().map(|_| bpf.lost_records);
        let names = match self.netdev(&bpf, &mut sample) {
            Ok(names) => {
                self.netdev_error = None;
                names
            }
            Err(error) => {
                if self.netdev_error.is_none() {
                    tracing::warn!("source netdev is down: {error}");
                }
                self.netdev_error = Some(error.to_string());
                BTreeMap::new()
            }
        };
        read.push(meter.lap("netdev", self.netdev_error.is_none()));
        self.collectives(&bpf, &mut sample);
        self.queue_pairs(&bpf, &mut sample);
        self.flows(&bpf, &mut sample);
        let mut gathered = Gathered::default();
        let interfaces = names.values().cloned().collect();
        let (now, patience) = (sample.at, self.patience);
        if let Some(Ok(probe)) = &self.probe {
            probe.gather(&mut gathered);
        }
        if let Some(ud) = &mut self.ud {
            ud.gather(now, &mut gathered);
        }
        read.extend(self.devices.poll(now, interfaces, patience, &mut gathered));
        let ended = Instant::now();
        for reading in read {
            self.costs.note(reading, ended);
        }
        sample.columns = gathered.columns;
        forget_untrained(&mut sample);
        for event in &gathered.events {
            tracing::info!(
                source = event.source,
                name = event.name,
                subject = event.subject,
                code = event.code,
                "{}",
                event.text
            );
        }
        self.readings.judge(&mut sample);
        let extras = Extras {
            bpf,
            names,
            state_unknown: self.state_unknown.clone(),
            raw: gathered.raw,
            verbatim: gathered.verbatim,
            info: gathered.info,
            optional_counters: gathered.optional_counters,
            gids: gathered.gids,
            gpu_parts: gathered.gpu_parts,
            gpu_process_counts: gathered
                .gpu_processes
                .iter()
                .map(|(gpu, pids)| (gpu.clone(), pids.len()))
                .collect(),
            gpu_processes: gpu_jobs::join(
                &gathered.gpu_processes,
                &mut self.gpu_jobs,
                jobs::identify,
            ),
            events: gathered.events,
            costs: self.costs.clone(),
        };
        (sample, extras)
    }

    fn netdev(
        &mut self,
        bpf: &BpfSample,
        sample: &mut Sample,
    ) -> Result<BTreeMap<u32, String>, NetlinkError> {
        let links = self.netlink.links()?;
        let qdiscs = self.netlink.qdiscs()?;
        let depths: BTreeMap<u32, u64> = bpf
            .ports
            .iter()
            .map(|p| (p.ifindex, p.queue_bytes_max))
            .collect();
        let drops_seen = self.bpf_sources.iter().any(|s| s.name == "drop" && s.up);
        self.drop_sums.clear();
        for drops in &bpf.drops {
            *self.drop_sums.entry(drops.ifindex).or_default() += drops.count;
        }
        let mut names = BTreeMap::new();
        self.ethernet.clear();
        self.state_unknown.clear();
        for link in links
            .into_iter()
            .filter(|l| !l.loopback && !excluded(&self.exclude, &l.name))
        {
            let kernel_drops =
                drops_seen.then(|| self.drop_sums.get(&link.ifindex).copied().unwrap_or(0));
            sample.ports.insert(
                link.name.clone(),
                readings_of(
                    &link,
                    qdiscs.get(&link.ifindex),
                    depths.get(&link.ifindex).copied(),
                    kernel_drops,
                ),
            );
            if link.state_unknown {
                self.state_unknown.insert(link.name.clone());
            }
            if link.ethernet {
                self.ethernet.insert(link.ifindex, link.name.clone());
            }
            names.insert(link.ifindex, link.name);
        }
        Ok(names)
    }

    fn collectives(&mut self, bpf: &BpfSample, sample: &mut Sample) {
        let before = |ns: u64| Duration::from_nanos(bpf.now_ns.saturating_sub(ns));
        for call in &bpf.collectives {
            let job = self.job(call.pid);
            sample.collectives.push(CollectiveCall {
                series: Series {
                    job: key_of(job.as_ref(), call.pid),
                    pid: call.pid,
                    op: call.op.name(),
                    communicator: call.comm,
                    rank: call.rank.or_else(|| job.as_ref()?.rank),
                    ranks: call.nranks.or_else(|| job.as_ref()?.size),
                },
                bytes: call.bytes,
                started_before_sample: before(call.start_ns),
                duration: Duration::from_nanos(call.end_ns.saturating_sub(call.start_ns)),
            });
        }
        for call in &bpf.in_flight {
            let job = self.job(call.pid);
            sample.running.push(RunningCall {
                series: Series {
                    job: key_of(job.as_ref(), call.pid),
                    pid: call.pid,
                    op: call.op.name(),
                    communicator: call.comm,
                    rank: job.as_ref().and_then(|j| j.rank),
                    ranks: job.as_ref().and_then(|j| j.size),
                },
                running: before(call.start_ns),
            });
        }
    }

    /// A source that came or went while the agent runs; said once.
    fn source_changed(&mut self, change: &SourceState) {
        let name = change.name;
        let Some(source) = self.bpf_sources.iter_mut().find(|s| s.name == name) else {
            return;
        };
        let reason = change.reason.clone().unwrap_or_default();
        if (source.up, &source.reason) != (change.up, &reason) {
            *source = source_of(change.clone());
            if source.up && reason.is_empty() {
                tracing::info!("source {name} is up");
            }
        }
    }

    fn queue_pairs(&mut self, bpf: &BpfSample, sample: &mut Sample) {
        if !Arc::ptr_eq(&bpf.qps, &self.qps_seen) {
            let jobs = &mut self.qp_jobs;
            let mut present = BTreeSet::new();
            let pairs = bpf.qps.iter().map(|qp| {
                let job = qp.pid.and_then(|pid| {
                    let process = (pid, qp.process_start_ns);
                    present.insert(process);
                    let identity = || jobs::identify_process(pid, qp.process_start_ns);
                    jobs.entry(process).or_insert_with(identity).as_ref()
                });
                QueuePair {
                    qp: qp.clone(),
                    job: job.map_or_else(String::new, |job| job.key.clone()),
                }
            });
            self.qps = Arc::new(pairs.collect());
            self.qp_jobs.retain(|process, _| present.contains(process));
            self.qps_seen = Arc::clone(&bpf.qps);
        }
        sample.qps = Arc::clone(&self.qps);
        sample.qps_seen = qps::seen(&self.qps, &bpf.roce);
        let ports = &self.ethernet;
        let notes = self.bpf.as_mut().map(|bpf| bpf.watch_ports(ports));
        for note in notes.unwrap_or_default() {
            tracing::warn!("{note}");
        }
    }

    fn job(&mut self, pid: u32) -> Option<JobIdentity> {
        if self.jobs.len() >= PIDS_MAX {
            self.jobs.clear();
        }
        let known = self.jobs.get(&pid).filter(|k| k.sample == self.samples);
        if let Some(known) = known {
            return known.identity.clone();
        }
        // A number that is used again is another process; one that is gone is still who it was.
        let started = start_time(pid);
        let identity = match self.jobs.get(&pid) {
            Some(k) if started.is_none() || k.started == started => k.identity.clone(),
            Some(_) | None => jobs::identify(pid),
        };
        let known = Known {
            started,
            sample: self.samples,
            identity: identity.clone(),
        };
        self.jobs.insert(pid, known);
        identity
    }

    fn flows(&mut self, bpf: &BpfSample, sample: &mut Sample) {
        let mut ended = BTreeMap::new();
        for flow in &bpf.flows {
            let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (flow.local, flow.remote) else {
                continue;
            };
            ended.insert((local, remote), flow);
        }
        self.owners.retain(|ends, _| ended.contains_key(ends));
        self.find_owners(ended.keys().copied().collect());
        for (ends, flow) in ended {
            let pid = self.owners.get(&ends).and_then(|(pid, _)| *pid);
            let job = pid
                .and_then(|pid| self.job(pid))
                .map_or_else(String::new, |j| j.key);
            sample.flows.insert(
                ends,
                FlowReading {
                    job,
                    pid: pid.unwrap_or(0),
                    bytes: flow.bytes_acked,
                    retransmits: flow.retransmits,
                    srtt_us: flow.srtt_us.unwrap_or(0),
                    delivered_ce: flow.delivered_ce.unwrap_or(0),
                    closed: flow.closed,
                },
            );
        }
    }

    /// Looks up the processes of flows not seen before: only then, because it reads /proc.
    ///
    /// A flow may be older than the moment at which its process was recognised as a job's, so those
    /// without an owner are looked for again when the set of such processes changed.
    fn find_owners(&mut self, ends: BTreeSet<FlowEnds>) {
        let now = Instant::now();
        // Without the programs every process's environment would have to be read to know.
        let known_pids = match &self.bpf {
            Some(bpf) if self.collectives_by_bpf => Some(bpf.job_pids()),
            Some(_) | None => None,
        };
        let others = known_pids
            .as_ref()
            .is_some_and(|pids| *pids != self.owner_pids);
        let unknown = |e: &FlowEnds| match self.owners.get(e) {
            Some((Some(_), _)) => false,
            Some((None, asked)) => others || now.duration_since(*asked) >= OWNER_AGAIN,
            None => true,
        };
        let wanted: Vec<FlowEnds> = ends.into_iter().filter(unknown).take(OWNERS_MAX).collect();
        if wanted.is_empty() {
            return;
        }
        let pids = known_pids.unwrap_or_else(jobs::job_pids);
        let found = jobs::socket_owners(&pids);
        self.owner_pids = pids;
        for ends in wanted {
            let pid = found.get(&(ends.0.into(), ends.1.into())).copied();
            if self.owners.len() < OWNERS_MAX {
                self.owners.insert(ends, (pid, now));
            }
        }
    }
}

/// Some drivers tell the rate of a link that is down.
fn forget_untrained(sample: &mut Sample) {
    let up = PORT_SIGNALS.iter().position(|s| *s == Signal::LinkUp);
    let ports = &sample.ports;
    let is_down = |port: &str| {
        let readings = ports.get(port).zip(up);
        readings.is_some_and(|(readings, up)| readings[up] == Some(0))
    };
    sample.columns.retain(|key, _| {
        let trained = matches!(key.signal, Signal::RateBps | Signal::Lanes);
        !(key.kind == Entity::Port && trained && is_down(&key.entity))
    });
}

fn source_of(state: SourceState) -> Source {
    match &state.reason {
        Some(reason) if !state.up => tracing::warn!("source {} is down: {reason}", state.name),
        Some(reason) => tracing::info!("source {}: {reason}", state.name),
        None => {}
    }
    Source {
        name: state.name,
        up: state.up,
        reason: state.reason.unwrap_or_default(),
    }
}

/// A process that no launcher named is a job of its own.
fn key_of(job: Option<&JobIdentity>, pid: u32) -> String {
    job.map_or_else(|| format!("pid:{pid}"), |j| j.key.clone())
}

fn readings_of(
    link: &Link,
    qdisc: Option<&Qdisc>,
    depth: Option<u64>,
    kernel_drops: Option<u64>,
) -> PortReadings {
    let stats = link.stats;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the signals of a port that every kernel has"
    )]
    PORT_SIGNALS.map(|signal| match signal {
        Signal::TxBytes => stats.map(|s| s.tx_bytes),
        Signal::RxBytes => stats.map(|s| s.rx_bytes),
        Signal::TxPackets => stats.map(|s| s.tx_packets),
        Signal::RxPackets => stats.map(|s| s.rx_packets),
        Signal::TxDrops => stats.map(|s| s.tx_dropped),
        // As /proc/net/dev has it.
        Signal::RxDrops => stats.map(|s| s.rx_dropped.saturating_add(s.rx_missed)),
        Signal::TxErrors => stats.map(|s| s.tx_errors),
        Signal::RxErrors => stats.map(|s| s.rx_errors),
        Signal::LinkUp => Some(u64::from(link.up)),
        Signal::QueueBytes => qdisc.map(|q| u64::from(q.backlog_bytes)),
        Signal::QueueBytesMax => depth,
        Signal::QueueDrops => qdisc.map(|q| u64::from(q.drops)),
        Signal::EcnMarkedTx => qdisc.and_then(|q| q.ecn_marked),
        Signal::KernelDrops => kernel_drops,
        _ => None,
    })
}
