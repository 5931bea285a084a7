//! The agent's own `/metrics`: one table, from which the page and the documents are made.
//!
//! The main loop publishes a [`Page`] after each sample; a scrape only formats it. A series exists
//! only while its subject does: absent is not zero.

use crate::collect::Extras;
use crate::compat;
use crate::exposition::{CONTENT_TYPE, Families};
use crate::probe;
use crate::qps;
use crate::sample::{PORT_SIGNALS, Sample};
use crate::source::{RawKind, Severity, Source};
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::routing::get;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use weir_agent_core::outbox::Reason;
use weir_common::catalogue::{Metric, Type};
use weir_wire::signal::{Entity, Kind, Signal};

macro_rules! catalogue {
    ($($ident:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $ident: Metric = Metric { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help };)+
        const OWN: &[Metric] = &[$($ident,)+];
    };
}

catalogue! {
    BUILD Gauge "weir_agent_build_info" ["version"] "Always 1; carries the version.";
    CPU Counter "weir_agent_process_cpu_seconds_total" [] "CPU time of the process (/proc/self/stat).";
    RSS Gauge "weir_agent_process_resident_bytes" [] "Resident memory of the process (VmRSS of /proc/self/status).";
    SOURCE_UP Gauge "weir_agent_source_up" ["source"] "1 while the source delivers; 0 costs its columns, not the agent.";
    SOURCE_AGE Gauge "weir_agent_source_age_seconds" ["source"] "Time since the source was last read with success; absent until it is.";
    SOURCE_READS Counter "weir_agent_source_reads_total" ["source"] "Readings of the source, successful or not.";
    SOURCE_CPU Counter "weir_agent_source_cpu_seconds_total" ["source"] "CPU time that reading the source cost: over the readings, the cost of one.";
    COLLECT Gauge "weir_agent_collect_seconds" ["source"] "Wall time of the last reading of the source.";
    EVENTS Counter "weir_agent_events_total" ["source", "name", "code", "subject", "severity"] "Events seen since the agent started (at most 1,024 series); code is the number of an XID or SXID.";
    EVENT_TIME Gauge "weir_agent_event_timestamp_seconds" ["source", "name", "code", "subject", "severity"] "When the event was seen last, in seconds since 1970.";
    EVENTS_DROPPED Counter "weir_agent_events_dropped_total" ["reason", "severity"] "Events that the queue to the controller had no room for, the least severe first: without a stream (no_uplink), or because the controller does not acknowledge them in time (not_taken).";
    EVENTS_WAITING Gauge "weir_agent_events_waiting" [] "Events that no controller has acknowledged yet.";
    RAW Counter "weir_raw_total" ["source", "device", "name"] "Counters of drivers and devices that no canonical signal stands for, under their own names.";
    RAW_GAUGE Gauge "weir_raw_value" ["source", "device", "name"] "The same of values that stand for themselves: states, numbers of things.";
    RAW_UNTYPED Untyped "weir_raw_untyped" ["source", "device", "name"] "The same of values of which nobody says whether they count.";
    PORT_INFO Gauge "weir_port_info" ["port", "driver", "firmware", "pci_address"] "Always 1; facts of a port, for joins.";
    RDMA_INFO Gauge "weir_rdma_info" ["device", "port", "driver", "firmware", "board", "pci_address", "netdev", "link_layer", "node_guid", "state", "phys_state"] "Always 1; facts of a port of a verbs device, for joins.";
    RDMA_GID Gauge "weir_rdma_gid_info" ["device", "port", "index", "gid", "type", "netdev"] "Always 1; an address of a port and its place in the port's table (at most 16 a port, 1,024 in all).";
    RDMA_OPTIONAL Gauge "weir_rdma_optional_counter_enabled" ["device", "port", "name"] "Optional counters that the port supports: 1 if it counts, 0 until `rdma statistic set` turns it on.";
    GPU_INFO Gauge "weir_gpu_info" ["gpu", "name", "uuid", "serial", "driver", "vbios"] "Always 1; facts of a GPU, for joins.";
    GPU_PART Gauge "weir_gpu_part_info" ["gpu", "part", "uuid"] "Always 1; a part of a GPU that is split (MIG). Its values are in those of the GPU.";
    GPU_PROCESSES Gauge "weir_gpu_processes" ["gpu"] "Processes that compute on the GPU.";
    GPU_PROCESS Gauge "weir_gpu_process_info" ["gpu", "pid", "job", "rank"] "Always 1; a process that computes on the GPU, and its job as its launcher told it (at most 1,024).";
    LOST Counter "weir_agent_bpf_lost_records_total" [] "Records that the eBPF programs could not hand over.";
    UPLINK Gauge "weir_agent_uplink_up" [] "1 while a stream to the controller is open.";
    FRAMES Counter "weir_agent_frames_sent_total" [] "Frames sent to the controller.";
    DROPPED Counter "weir_agent_samples_dropped_total" [] "Samples that the bounded spool dropped while the controller was away.";
    WIRE_BYTES Counter "weir_agent_wire_bytes_total" [] "Bytes of all messages sent to the controller, before HTTP/2 framing.";
    WIRE_SAMPLES Counter "weir_agent_wire_samples_total" [] "Values that those frames carried: columns, fields of open flows, of finished and of running calls.";
    HELD Gauge "weir_agent_leases_held" [] "Leases that are not over.";
    UNRESTORED Gauge "weir_agent_baselines_unrestored" [] "Leases that are over and whose baseline the kernel did not take yet: it is tried again every half second.";
    STANDING Gauge "weir_agent_changes_standing" [] "Route changes that stand at this moment.";
    APPLIED Counter "weir_agent_leases_applied_total" [] "Leases whose changes were written and read back.";
    REFUSED Counter "weir_agent_leases_refused_total" [] "Leases refused by the limits file or because nothing could be written.";
    ENDED Counter "weir_agent_leases_ended_total" [] "Leases whose baseline was restored.";
    DEPTH Histogram "weir_port_queue_depth_bytes" ["port"] "Backlog at each enqueue, in powers of two (eBPF).";
    REASONS Counter "weir_kernel_drops_total" ["port", "reason"] "Packets freed, by port and the kernel's drop reason (eBPF, kfree_skb).";
    FLOWS Gauge "weir_tcp_flows" [] "TCP flows seen in the last sample.";
    RETRANSMITS Counter "weir_tcp_retransmits_total" [] "Segments sent again by the flows seen since the agent started.";
    QPS Gauge "weir_rdma_qps" ["device", "type", "state"] "Queue pairs by type and state, as modified last (eBPF on ib_core, or RDMA netlink).";
    ROCE_BYTES Counter "weir_roce_bytes_total" ["port", "direction"] "Bytes of RoCE frames that crossed the kernel (tc); a NIC's own pass it by.";
    ROCE_PACKETS Counter "weir_roce_packets_total" ["port", "direction"] "RoCE packets that crossed the kernel (tc).";
    ROCE_CE Counter "weir_roce_ce_packets_total" ["port", "direction"] "Of those, packets marked with congestion experienced; transmit is before the port's own queue.";
    ROCE_CNPS Counter "weir_roce_cnps_total" ["port", "direction"] "Of those, congestion notification packets.";
    ROCE_SKIPPED Counter "weir_roce_skipped_total" [] "RoCE packets that were not counted: cut off, fragments, unread headers.";
    CALLS Counter "weir_collective_calls_total" ["op"] "Collective calls that returned (eBPF).";
    SECONDS Histogram "weir_collective_seconds" ["op"] "Duration of collective calls; for NCCL that of the enqueue (eBPF).";
    RUNNING Gauge "weir_collective_running" [] "Collective calls that have not returned.";
}

/// Every metric that the agent can show: its own, and those of the canonical signals.
#[must_use]
pub fn catalogue() -> Vec<Metric> {
    let signals = Signal::ALL.iter().flat_map(|signal| {
        let entities = signal.entities().iter();
        entities.filter_map(|entity| metric_of(*signal, *entity))
    });
    OWN.iter().copied().chain(signals).collect()
}

/// Metric of a signal; those of the node as a whole are among the agent's own.
fn metric_of(signal: Signal, entity: Entity) -> Option<Metric> {
    let labels: &[&str] = match (entity, signal.index()) {
        (Entity::Node, _) => return None,
        (Entity::Port, None) => &["port"],
        (Entity::Port, Some("priority")) => &["port", "priority"],
        (Entity::Port, Some(_)) => &["port", "lane"],
        (Entity::Rdma, _) => &["device", "port"],
        (Entity::Gpu, None) => &["gpu"],
        (Entity::Gpu, Some(_)) => &["gpu", "link"],
        (Entity::Probe, _) => &["source", "target", "port", "path"],
    };
    Some(Metric {
        name: signal.metric(entity),
        kind: match signal.kind() {
            Kind::Counter => Type::Counter,
            Kind::Gauge => Type::Gauge,
        },
        labels,
        help: signal.help().trim(),
    })
}

/// Upper bounds of collective durations: 100 us to 100 s, three to a decade.
const SECONDS_BOUNDS: [f64; 19] = [
    1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0,
    50.0, 100.0,
];

/// Calls of one operation: how many fell into each bucket, and their sum.
#[derive(Debug, Clone, Default)]
struct Durations {
    counts: [u64; SECONDS_BOUNDS.len() + 1],
    sum_s: f64,
}

/// Series of addresses, at most: 64 ports with all that is kept of each.
const GID_SERIES_MAX: usize = 1024;
/// Series of events, at most.
const EVENT_SERIES_MAX: usize = 1024;

/// What tells the series of events apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct EventKey {
    source: &'static str,
    name: &'static str,
    code: Option<u32>,
    subject: String,
    severity: Severity,
}

#[derive(Debug, Clone, Copy, Default)]
struct EventSeen {
    count: u64,
    last_s: f64,
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}

/// Everything that the page shows.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub sources: Vec<Source>,
    pub uplink_up: bool,
    pub frames_sent: u64,
    pub samples_dropped: u64,
    pub events_waiting: usize,
    pub events_dropped: BTreeMap<(Reason, Severity), u64>,
    pub wire_bytes: u64,
    pub wire_samples: u64,
    pub leases_held: usize,
    pub baselines_unrestored: usize,
    pub changes_standing: usize,
    pub leases_applied: u64,
    pub leases_refused: u64,
    pub leases_ended: u64,
    /// Whether the names of node_exporter are shown as well.
    pub compat_node_exporter: bool,
    sample: Arc<Sample>,
    extras: Arc<Extras>,
    durations: BTreeMap<&'static str, Durations>,
    events: BTreeMap<EventKey, EventSeen>,
    retransmits: u64,
    flow_retransmits: BTreeMap<crate::sample::FlowEnds, u64>,
}

impl Page {
    /// Takes a sample.
    pub fn sampled(&mut self, sample: Arc<Sample>, extras: Extras) {
        for call in &sample.collectives {
            let seconds = call.duration.as_secs_f64();
            let durations = self.durations.entry(call.series.op).or_default();
            let bucket = SECONDS_BOUNDS.partition_point(|bound| *bound < seconds);
            durations.counts[bucket] += 1;
            durations.sum_s += seconds;
        }
        for (ends, flow) in &sample.flows {
            let last = self
                .flow_retransmits
                .insert(*ends, flow.retransmits)
                .unwrap_or(0);
            self.retransmits += flow.retransmits.saturating_sub(last);
        }
        for event in &extras.events {
            let key = EventKey {
                source: event.source,
                name: event.name,
                code: event.code,
                subject: event.subject.clone(),
                severity: event.severity,
            };
            // Codes and subjects come from the kernel's log, which anyone with the right may write to.
            if self.events.len() < EVENT_SERIES_MAX || self.events.contains_key(&key) {
                let seen = self.events.entry(key).or_default();
                seen.count += 1;
                seen.last_s = unix_seconds();
            }
        }
        self.flow_retransmits
            .retain(|ends, _| sample.flows.contains_key(ends));
        self.sample = sample;
        self.extras = Arc::new(extras);
    }
}

/// The page as the HTTP task sees it.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Arc<Page>>>);

impl Shared {
    pub fn publish(&self, page: &Page) {
        let page = Arc::new(page.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }
}

/// Serves `/metrics`, `/healthz`, and to this machine `/qps`.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: tokio::net::TcpListener, shared: Shared) -> std::io::Result<()> {
    let for_pairs = shared.clone();
    let own = listener
        .local_addr()
        .map(|own| own.ip().to_canonical())
        .ok();
    let scrape = move || {
        let page = Arc::clone(&shared.0.lock().unwrap_or_else(PoisonError::into_inner));
        async move { ([("content-type", CONTENT_TYPE)], render(&page)) }
    };
    let pairs = move |ConnectInfo(from): ConnectInfo<SocketAddr>| {
        let page = for_pairs.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = Arc::clone(&page.sample);
        drop(page);
        async move {
            // Processes and jobs are nobody's business elsewhere.
            let from = from.ip().to_canonical();
            if !from.is_loopback() && Some(from) != own {
                return Err(StatusCode::FORBIDDEN);
            }
            let rows = qps::rows(&sample.qps, &sample.qps_seen);
            let json =
                serde_json::to_string(&rows).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
            Ok(([("content-type", "application/json")], json))
        }
    };
    let router = axum::Router::new()
        .route("/metrics", get(scrape))
        .route(qps::PATH, get(pairs))
        .route("/healthz", get(|| async { "ok\n" }));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

/// The page as text.
#[must_use]
pub fn render(page: &Page) -> String {
    let mut families = Families::default();
    own(page, &mut families);
    ports(page, &mut families);
    columns(page, &mut families);
    listed(&page.extras, &mut families);
    for (op, durations) in &page.durations {
        let calls: u64 = durations.counts.iter().sum();
        families.value(CALLS, &[op], calls as f64);
        families.histogram(
            SECONDS,
            &[op],
            &SECONDS_BOUNDS,
            &durations.counts,
            durations.sum_s,
        );
    }
    families.value(RUNNING, &[], page.sample.running.len() as f64);
    families.value(FLOWS, &[], page.sample.flows.len() as f64);
    families.value(RETRANSMITS, &[], page.retransmits as f64);
    roce(page, &mut families);
    if page.compat_node_exporter {
        compat::put(&page.sample, &page.extras, &mut families);
    }
    families.text()
}

fn own(page: &Page, families: &mut Families) {
    families.value(BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
    if let Some((cpu, rss)) = own_process() {
        families.value(CPU, &[], cpu);
        families.value(RSS, &[], rss);
    }
    for source in &page.sources {
        families.value(SOURCE_UP, &[source.name], f64::from(u8::from(source.up)));
    }
    if let Some(lost) = page.sample.lost_records {
        families.value(LOST, &[], lost as f64);
    }
    let values = [
        (EVENTS_WAITING, page.events_waiting as f64),
        (UPLINK, f64::from(u8::from(page.uplink_up))),
        (FRAMES, page.frames_sent as f64),
        (DROPPED, page.samples_dropped as f64),
        (WIRE_BYTES, page.wire_bytes as f64),
        (WIRE_SAMPLES, page.wire_samples as f64),
        (HELD, page.leases_held as f64),
        (UNRESTORED, page.baselines_unrestored as f64),
        (STANDING, page.changes_standing as f64),
        (APPLIED, page.leases_applied as f64),
        (REFUSED, page.leases_refused as f64),
        (ENDED, page.leases_ended as f64),
    ];
    for (metric, value) in values {
        families.value(metric, &[], value);
    }
    for (source, cost) in page.extras.costs.iter() {
        if let Some(at) = cost.read_at {
            families.value(SOURCE_AGE, &[source], at.elapsed().as_secs_f64());
        }
        families.value(SOURCE_READS, &[source], cost.reads as f64);
        families.value(SOURCE_CPU, &[source], cost.cpu.as_secs_f64());
        families.value(COLLECT, &[source], cost.took.as_secs_f64());
    }
    // From zero on: a rate needs the value before the first drop.
    for reason in Reason::ALL {
        for severity in Severity::ALL {
            let count = page.events_dropped.get(&(reason, severity));
            let labels = [reason.name(), severity.name()];
            families.value(EVENTS_DROPPED, &labels, count.map_or(0.0, |c| *c as f64));
        }
    }
    for (key, seen) in &page.events {
        let code = key.code.map_or_else(String::new, |c| c.to_string());
        let severity = key.severity.name();
        let labels = [key.source, key.name, &code, &key.subject, severity];
        families.value(EVENTS, &labels, seen.count as f64);
        families.value(EVENT_TIME, &labels, seen.last_s);
    }
}

/// What the sources beside netdev and eBPF read.
fn columns(page: &Page, families: &mut Families) {
    let worst = probe::worst_paths(&page.sample.columns);
    for (key, reading) in &page.sample.columns {
        let path = key.index.filter(|_| key.kind == Entity::Probe);
        if path.is_some_and(|path| !worst.contains(&(key.entity.as_str(), path))) {
            continue;
        }
        let Some(metric) = metric_of(key.signal, key.kind) else {
            continue;
        };
        let index = key.index.map(|i| i.to_string());
        let mut labels: Vec<&str> = match key.kind {
            // DEVICE/PORT has one label for each.
            Entity::Rdma => key.entity.splitn(2, '/').collect(),
            Entity::Node | Entity::Port | Entity::Gpu => vec![&key.entity],
            Entity::Probe => probe::labels(&key.entity).to_vec(),
        };
        labels.extend(index.as_deref());
        families.value(metric, &labels, reading.value as f64 * key.signal.scale());
    }
    for raw in &page.extras.raw {
        let metric = match raw.kind {
            RawKind::Counter => RAW,
            RawKind::Gauge => RAW_GAUGE,
            RawKind::Unknown => RAW_UNTYPED,
        };
        let labels = [raw.source, &raw.device, &raw.name];
        families.value(metric, &labels, raw.value as f64);
    }
    for info in &page.extras.info {
        let (metric, own): (Metric, Vec<&str>) = match info.kind {
            Entity::Rdma => (RDMA_INFO, info.entity.splitn(2, '/').collect()),
            Entity::Gpu => (GPU_INFO, vec![&info.entity]),
            Entity::Node | Entity::Port | Entity::Probe => (PORT_INFO, vec![&info.entity]),
        };
        let facts = metric.labels.iter().skip(own.len());
        let facts = facts.map(|label| info.labels.get(label).map_or("", String::as_str));
        let labels: Vec<&str> = own.iter().copied().chain(facts).collect();
        families.value(metric, &labels, 1.0);
    }
}

fn listed(extras: &Extras, families: &mut Families) {
    let gids = extras.gids.iter();
    let gids = gids.flat_map(|port| port.gids.iter().map(move |gid| (&port.entity, gid)));
    for (entity, gid) in gids.take(GID_SERIES_MAX) {
        let (device, port) = entity.split_once('/').unwrap_or((entity, ""));
        let index = gid.index.to_string();
        let kind = gid.kind.as_deref().unwrap_or_default();
        let netdev = gid.netdev.as_deref().unwrap_or_default();
        let labels = [device, port, &index, &gid.gid, kind, netdev];
        families.value(RDMA_GID, &labels, 1.0);
    }
    for counter in &extras.optional_counters {
        let mut labels: Vec<&str> = counter.entity.splitn(2, '/').collect();
        labels.push(&counter.name);
        families.value(RDMA_OPTIONAL, &labels, f64::from(u8::from(counter.enabled)));
    }
    for part in &extras.gpu_parts {
        let labels = [part.gpu.as_str(), &part.index.to_string(), &part.uuid];
        families.value(GPU_PART, &labels, 1.0);
    }
    for (gpu, count) in &extras.gpu_process_counts {
        families.value(GPU_PROCESSES, &[gpu], *count as f64);
    }
    for process in &extras.gpu_processes {
        let job = process.job.as_ref();
        let rank = job.and_then(|j| j.rank).map(|r| r.to_string());
        let labels = [
            process.gpu.as_str(),
            &process.pid.to_string(),
            job.map_or("", |j| &j.key),
            rank.as_deref().unwrap_or_default(),
        ];
        families.value(GPU_PROCESS, &labels, 1.0);
    }
}

fn ports(page: &Page, families: &mut Families) {
    for (port, readings) in &page.sample.ports {
        for (signal, reading) in PORT_SIGNALS.iter().zip(readings) {
            if let (Some(metric), Some(value)) = (metric_of(*signal, Entity::Port), reading) {
                families.value(metric, &[port], *value as f64 * signal.scale());
            }
        }
    }
    for depth in &page.extras.bpf.ports {
        if let Some(port) = page.extras.names.get(&depth.ifindex) {
            // Bucket n ends at 2^(n+1) - 1 bytes. The sum is not counted; the middle of each bucket stands for it.
            let bounds: Vec<f64> = (0..31)
                .map(|n| f64::from(2u32.pow(n)) * 2.0 - 1.0)
                .collect();
            let sum: f64 = depth
                .histogram
                .iter()
                .zip(&bounds)
                .map(|(count, bound)| *count as f64 * bound * 0.75)
                .sum();
            families.histogram(DEPTH, &[port], &bounds, &depth.histogram, sum);
        }
    }
    for drops in &page.extras.bpf.drops {
        if let Some(port) = page.extras.names.get(&drops.ifindex) {
            families.value(REASONS, &[port, &drops.reason], drops.count as f64);
        }
    }
}

fn roce(page: &Page, families: &mut Families) {
    for ((device, kind, state), count) in qps::count(&page.sample.qps) {
        families.value(QPS, &[device, kind.name(), state.name()], count as f64);
    }
    let bpf = &page.extras.bpf;
    for ((ifindex, ingress), total) in &bpf.roce_ports {
        let Some(port) = page.extras.names.get(ifindex) else {
            continue;
        };
        let labels: [&str; 2] = [port, if *ingress { "receive" } else { "transmit" }];
        for (metric, value) in [
            (ROCE_BYTES, total.bytes),
            (ROCE_PACKETS, total.packets),
            (ROCE_CE, total.ce),
            (ROCE_CNPS, total.cnps),
        ] {
            families.value(metric, &labels, value as f64);
        }
    }
    if page
        .sources
        .iter()
        .any(|source| source.name == "roce" && source.up)
    {
        families.value(ROCE_SKIPPED, &[], bpf.roce_skipped as f64);
    }
}

/// CPU seconds and resident bytes of this process; `None` where /proc is not mounted.
fn own_process() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: f64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // The kernel's user-visible clock tick is 100 Hz (USER_HZ) on every architecture we run on.
    Some(((user + system) / 100.0, kib * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_convention() {
        let catalogue = catalogue();
        let names: BTreeSet<&str> = catalogue.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), catalogue.len());
        for metric in catalogue {
            assert!(metric.name.starts_with("weir_"), "{}", metric.name);
            let total = metric.name.ends_with("_total");
            assert_eq!(metric.kind == Type::Counter, total, "{}", metric.name);
        }
    }

    #[test]
    fn every_port_signal_has_a_metric() {
        for signal in PORT_SIGNALS {
            assert!(signal.entities().contains(&Entity::Port), "{signal:?}");
        }
    }

    #[test]
    fn the_process_is_seen() {
        let (cpu, rss) = own_process().unwrap();
        assert!(cpu >= 0.0 && rss > 100_000.0, "{cpu} {rss}");
    }

    #[test]
    fn columns_are_shown_in_base_units_with_their_labels() {
        let mut gathered = crate::source::Gathered::default();
        let mut put = |kind, entity: &str, signal, index, value| {
            gathered.put(
                kind,
                entity,
                signal,
                index,
                crate::source::Reading::wide(value),
            );
        };
        put(Entity::Port, "eth0", Signal::PauseRxUs, Some(3), 1_500_000);
        put(Entity::Rdma, "mlx5_0/1", Signal::CnpTx, None, 7);
        let mut page = Page::default();
        let sample = Sample {
            columns: gathered.columns,
            ..Sample::default()
        };
        page.sampled(Arc::new(sample), Extras::default());
        let text = render(&page);
        for line in [
            "weir_port_pause_receive_seconds_total{port=\"eth0\",priority=\"3\"} 1.5",
            "weir_rdma_cnp_transmit_total{device=\"mlx5_0\",port=\"1\"} 7",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_raw_value_is_of_the_type_that_is_known_of_it() {
        let raw = |kind, name| crate::source::RawCounter::new(kind, "s", "d", name, 5);
        let mut page = Page::default();
        let extras = Extras {
            raw: vec![
                raw(RawKind::Counter, "rises"),
                raw(RawKind::Gauge, "stands"),
                raw(RawKind::Unknown, "either"),
            ],
            ..Extras::default()
        };
        page.sampled(Arc::default(), extras);
        let text = render(&page);
        for line in [
            "# TYPE weir_raw_total counter",
            "weir_raw_total{source=\"s\",device=\"d\",name=\"rises\"} 5",
            "# TYPE weir_raw_value gauge",
            "weir_raw_value{source=\"s\",device=\"d\",name=\"stands\"} 5",
            "# TYPE weir_raw_untyped untyped",
            "weir_raw_untyped{source=\"s\",device=\"d\",name=\"either\"} 5",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn addresses_are_series_up_to_a_limit() {
        let gid = |index| crate::source::Gid {
            index,
            gid: "::ffff:10.0.1.2".into(),
            kind: Some("RoCE v2".into()),
            netdev: None,
        };
        let gids: Arc<[_]> = (0..16).map(gid).collect();
        let of_port = |n| crate::source::PortGids {
            entity: format!("mlx5_{n}/1"),
            gids: Arc::clone(&gids),
        };
        let mut page = Page::default();
        let extras = Extras {
            gids: (0..100).map(of_port).collect(),
            ..Extras::default()
        };
        page.sampled(Arc::default(), extras);
        let text = render(&page);
        let line = "weir_rdma_gid_info{device=\"mlx5_0\",port=\"1\",index=\"3\",gid=\"::ffff:10.0.1.2\",type=\"RoCE v2\",netdev=\"\"} 1\n";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.matches("weir_rdma_gid_info{").count(), GID_SERIES_MAX);
    }

    #[test]
    fn what_is_absent_has_no_series() {
        let mut page = Page::default();
        let mut readings = [None; PORT_SIGNALS.len()];
        readings[0] = Some(7);
        let sample = Sample {
            ports: [("eth0".to_owned(), readings)].into(),
            ..Sample::default()
        };
        page.sampled(Arc::new(sample), Extras::default());
        let text = render(&page);
        assert!(
            text.contains("weir_port_transmit_bytes_total{port=\"eth0\"} 7"),
            "{text}"
        );
        assert!(!text.contains("weir_port_ecn_marked_total{"), "{text}");
    }
}
