//! The controller's metrics: one table, from which the page and the documents are made.
//!
//! All values are read from the brain at each scrape, so a series exists only while its subject does.

use crate::driver::View;
use crate::events::{Reason, Severity};
use crate::{probes, views};
use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use std::collections::BTreeMap;
use weir_common::catalogue::{Metric, Type};
use weir_controller_core::trial::Cause;
use weir_controller_core::verdict::Class;

macro_rules! catalogue {
    ($($ident:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $ident: Metric = Metric { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help };)+
        /// Every metric that the controller can show.
        pub const CATALOGUE: &[Metric] = &[$($ident,)+];
    };
}

catalogue! {
    BUILD Gauge "weir_controller_build_info" ["version"] "Always 1; carries the version.";
    UPTIME Gauge "weir_controller_uptime_seconds" [] "Time since the controller started.";
    CPU Counter "weir_controller_process_cpu_seconds_total" [] "CPU time of the process (/proc/self/stat).";
    RSS Gauge "weir_controller_process_resident_bytes" [] "Resident memory of the process (/proc/self/statm).";
    FROZEN Gauge "weir_controller_frozen" [] "1 while an operator's freeze forbids every change.";
    FRAMES Counter "weir_controller_frames_total" [] "Frames taken from agents.";
    SAMPLES Counter "weir_controller_samples_total" [] "Column samples in those frames.";
    REFUSED Counter "weir_controller_streams_refused_total" [] "Streams closed for a bad message.";
    TWICE Counter "weir_controller_agents_refused_total" [] "Agents refused because another one reports under the same name.";
    EVENTS_TAKEN Counter "weir_controller_events_total" ["severity"] "Events taken from agents.";
    EVENTS_REPEATED Counter "weir_controller_events_repeated_total" [] "Events that agents told again because no acknowledgement had reached them.";
    EVENTS_DROPPED Counter "weir_controller_events_dropped_total" ["reason", "severity"] "Events that others pushed out of memory: the node had its share (node_full), or all nodes together had theirs (full); or its node is long gone (node_forgotten).";
    RECORD_LOST Counter "weir_controller_record_dropped_total" [] "Events and actions that the recording could not take: the disk is slow, full or gone.";
    RECORD_BYTES Counter "weir_controller_record_bytes_total" [] "Bytes written to the recording.";
    RECORD_DELETED Counter "weir_controller_record_segments_deleted_total" [] "Segments of the recording deleted because it had reached its size.";
    TABLE_FULL Counter "weir_controller_table_refused_total" ["table"] "Samples refused because a bounded table was full.";
    FINDINGS Gauge "weir_topology_findings" [] "Contradictions between the topology file and what agents report.";
    NODE_UP Gauge "weir_node_up" ["node", "role"] "1 while the node's agent is connected.";
    NODE_SOURCE_UP Gauge "weir_node_source_up" ["node", "source"] "1 while the agent's source delivers, as the agent reported it.";
    LINK_TX Gauge "weir_link_transmit_bits_per_second" ["node", "port", "peer"] "Rate of the directed link that leaves by the port, over the last sample.";
    LINK_CAPACITY Gauge "weir_link_capacity_bits_per_second" ["node", "port", "peer"] "Capacity by the topology file, or by the driver.";
    LINK_UTIL Gauge "weir_link_utilisation_ratio" ["node", "port", "peer"] "Share of capacity over the last sample, 0 to 1.";
    LINK_QUEUE Gauge "weir_link_queue_max_bytes" ["node", "port", "peer"] "Deepest queue of the last sample.";
    LINK_DROPS Gauge "weir_link_drops_per_second" ["node", "port", "peer"] "Packets dropped by the port's queue.";
    LINK_HOT Gauge "weir_link_hot" ["node", "port", "peer"] "1 if the last sample was hot.";
    JOB_INFERRED Gauge "weir_job_inferred" ["job"] "1 for a job that nobody reports and that is inferred from its flows, 0 for a reported one.";
    JOB_RANKS Gauge "weir_job_ranks" ["job"] "Ranks of the job's communicator.";
    JOB_ITERATION Gauge "weir_job_iteration_seconds" ["job"] "Duration of the newest iteration of the job's largest collective; of an inferred job, time between its last two bursts of traffic.";
    JOB_BUSBW Gauge "weir_job_bus_bandwidth_bits_per_second" ["job"] "Bus bandwidth of the newest iteration, by the convention of nccl-tests.";
    INCIDENTS_OPEN Gauge "weir_incidents_open" ["class"] "Open incidents.";
    INCIDENTS_OPENED Counter "weir_incidents_opened_total" ["class"] "Incidents opened since the start.";
    INCIDENT Gauge "weir_incident_open" ["id", "class", "severity", "entity", "job", "root"] "1 for each open incident (at most 1,024); root is the incident that it follows from, or empty.";
    LEASES_LIVE Gauge "weir_leases_live" [] "Leases under which a change may stand.";
    LEASE Gauge "weir_lease_state" ["lease", "job", "state"] "1 for the state of each lease held in memory (at most 256).";
    TRIALS_KEPT Gauge "weir_trials_kept" [] "Changes of the leases in memory that were kept.";
    TRIALS_ENDED Counter "weir_trials_given_back_total" ["cause"] "Changes given back since the start, by cause.";
    PAIR_LOSS Gauge "weir_probe_pair_loss_ratio" ["source", "source_port", "target", "target_port"] "Share of the last window's probes that was lost, 0 to 1 (the 512 worst pairs).";
    PAIR_WORST Gauge "weir_probe_pair_worst_path_loss_ratio" ["source", "source_port", "target", "target_port"] "The same of the path with the most loss.";
    PAIR_RTT Gauge "weir_probe_pair_rtt_seconds" ["source", "source_port", "target", "target_port"] "Round trip without the responder's delay, median of the last window.";
    PAIR_RTT_P99 Gauge "weir_probe_pair_rtt_p99_seconds" ["source", "source_port", "target", "target_port"] "The same, 99th percentile.";
    PAIR_HELD Gauge "weir_probe_pair_responder_delay_seconds" ["source", "source_port", "target", "target_port"] "Time for which the target's host held the probes, 99th percentile.";
    PAIRS Gauge "weir_probe_pairs" [] "Pairs of endpoints that are probed.";
    PAIRS_LOSSY Gauge "weir_probe_pairs_lossy" [] "Pairs that lost at least one probe in the last window.";
    LEAF_PAIRS Gauge "weir_probe_leaf_pairs" [] "Ordered pairs of leaves in the pinglists.";
    LEAF_PAIRS_UNCOVERED Gauge "weir_probe_leaf_pairs_uncovered" [] "Pairs of leaves that no endpoint has room to probe.";
    ENDPOINTS_LEFT_OUT Gauge "weir_probe_endpoints_left_out" [] "Endpoints that are not probed: an address that several nodes claim, or more than eight of a node and kind.";
}

/// Pairs with series of their own: the worst. Ten thousand nodes have a hundred thousand pairs.
const PAIRS_MAX: usize = 512;

/// A series: the metric, its label values, its value.
struct Point {
    metric: &'static str,
    labels: Vec<String>,
    value: f64,
}

/// The page of `/metrics`.
///
/// # Errors
/// The catalogue contradicts itself (a test keeps that from happening).
pub fn render(view: &View<'_>) -> prometheus::Result<String> {
    let registry = Registry::new();
    let mut points: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    for point in all_points(view) {
        points.entry(point.metric).or_default().push(point);
    }
    for metric in CATALOGUE {
        let vector = GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
        for point in points.get(metric.name).into_iter().flatten() {
            let labels: Vec<&str> = point.labels.iter().map(String::as_str).collect();
            vector
                .get_metric_with_label_values(&labels)?
                .set(point.value);
        }
        registry.register(Box::new(vector))?;
    }
    let mut families = registry.gather();
    for family in &mut families {
        if CATALOGUE
            .iter()
            .any(|m| m.name == family.name() && m.kind == Type::Counter)
        {
            as_counter(family);
        }
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The registry's counters only grow by steps; ours are read whole, so they are gauges until here.
fn as_counter(family: &mut prometheus::proto::MetricFamily) {
    family.set_field_type(prometheus::proto::MetricType::COUNTER);
    for metric in family.mut_metric() {
        let value = metric.get_gauge().get_value();
        let mut counter = prometheus::proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    }
}

fn all_points(view: &View<'_>) -> Vec<Point> {
    let core = &view.brain.core;
    let mut points = Vec::new();
    let mut put = |metric: Metric, labels: &[&str], value: f64| {
        points.push(Point {
            metric: metric.name,
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            value,
        });
    };
    put(BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
    put(UPTIME, &[], view.now.as_secs_f64());
    if let Some((cpu, rss)) = own_process() {
        put(CPU, &[], cpu);
        put(RSS, &[], rss);
    }
    put(FROZEN, &[], flag(core.is_frozen()));
    put(FRAMES, &[], view.brain.frames as f64);
    put(SAMPLES, &[], view.brain.samples as f64);
    put(REFUSED, &[], view.brain.frames_refused as f64);
    put(TWICE, &[], view.agents_refused as f64);
    let events = &view.brain.events;
    put(EVENTS_REPEATED, &[], events.repeated() as f64);
    // From zero on: a rate needs the value before the first one.
    for severity in Severity::ALL {
        let taken = events.taken().get(&severity).copied();
        put(EVENTS_TAKEN, &[severity.name()], taken.unwrap_or(0) as f64);
        for reason in Reason::ALL {
            let dropped = events.dropped().get(&(reason, severity)).copied();
            let labels = [reason.name(), severity.name()];
            put(EVENTS_DROPPED, &labels, dropped.unwrap_or(0) as f64);
        }
    }
    put(RECORD_LOST, &[], view.recorded.lost as f64);
    put(RECORD_BYTES, &[], view.recorded.bytes as f64);
    put(RECORD_DELETED, &[], view.recorded.segments_deleted as f64);
    put(TABLE_FULL, &["flows"], core.flows().refused() as f64);
    let refused = core.inference().refused();
    put(TABLE_FULL, &["inference"], refused as f64);
    let status = views::status(view);
    put(FINDINGS, &[], status.findings.len() as f64);
    put(LEASES_LIVE, &[], status.leases_live as f64);
    for node in &status.nodes {
        put(NODE_UP, &[&node.name, node.role], flag(node.up));
        for source in &node.sources {
            put(NODE_SOURCE_UP, &[&node.name, &source.name], flag(source.up));
        }
    }
    for link in views::links(view) {
        let labels = [link.node.as_str(), link.port.as_str(), link.peer.as_str()];
        let values = [
            (LINK_TX, link.tx_bps),
            (LINK_CAPACITY, link.capacity_bps),
            (LINK_UTIL, link.utilisation),
            (LINK_QUEUE, link.queue_bytes.map(|q| q as f64)),
            (LINK_DROPS, link.drops_per_s),
        ];
        for (metric, value) in values {
            if let Some(value) = value {
                put(metric, &labels, value);
            }
        }
        if link.tx_bps.is_some() {
            put(LINK_HOT, &labels, flag(link.hot));
        }
    }
    for job in &status.jobs {
        let values = [
            (JOB_INFERRED, Some(flag(job.inferred))),
            (JOB_RANKS, job.ranks.map(f64::from)),
            (JOB_ITERATION, job.iteration_s),
            (JOB_BUSBW, job.busbw_mbps.map(|b| b * 1e6)),
        ];
        for (metric, value) in values {
            if let Some(value) = value {
                put(metric, &[&job.key], value);
            }
        }
    }
    for &class in Class::ALL {
        let open = core
            .incidents()
            .iter()
            .filter(|i| i.is_open() && i.verdict.class == class)
            .count();
        put(INCIDENTS_OPEN, &[class.name()], open as f64);
        put(
            INCIDENTS_OPENED,
            &[class.name()],
            core.incidents().opened_by_class(class) as f64,
        );
    }
    for incident in core.incidents().iter().filter(|i| i.is_open()) {
        let job = incident.verdict.job.as_ref().map_or("", |j| j.as_str());
        put(
            INCIDENT,
            &[
                &incident.id,
                incident.verdict.class.name(),
                incident.verdict.severity.name(),
                &incident.verdict.entity.to_string(),
                job,
                incident.root.as_deref().unwrap_or(""),
            ],
            1.0,
        );
    }
    for trial in core.trials() {
        put(
            LEASE,
            &[
                &trial.lease.to_string(),
                trial.job.as_str(),
                trial.state.name(),
            ],
            1.0,
        );
    }
    for cause in Cause::ALL {
        let count = core.given_back(cause);
        put(TRIALS_ENDED, &[cause.name()], count as f64);
    }
    let pairs = probes::pairs(view);
    let lossy = pairs
        .iter()
        .filter(|p| p.loss.is_some_and(|loss| loss > 0.0));
    put(PAIRS, &[], pairs.len() as f64);
    put(PAIRS_LOSSY, &[], lossy.count() as f64);
    let lists = &view.brain.pinglists;
    put(LEAF_PAIRS, &[], lists.pairs as f64);
    put(LEAF_PAIRS_UNCOVERED, &[], lists.pairs_uncovered as f64);
    put(ENDPOINTS_LEFT_OUT, &[], lists.left_out as f64);
    for pair in pairs.iter().take(PAIRS_MAX) {
        let labels = [
            &pair.source,
            &pair.source_port,
            &pair.target,
            &pair.target_port,
        ];
        let labels = labels.map(String::as_str);
        let values = [
            (PAIR_LOSS, pair.loss),
            (PAIR_WORST, pair.worst_path.as_ref().and_then(|p| p.loss)),
            (PAIR_RTT, pair.rtt_p50_s),
            (PAIR_RTT_P99, pair.rtt_p99_s),
            (PAIR_HELD, pair.responder_delay_s),
        ];
        for (metric, value) in values {
            if let Some(value) = value {
                put(metric, &labels, value);
            }
        }
    }
    put(
        TRIALS_KEPT,
        &[],
        core.trials()
            .iter()
            .filter(|t| t.is_live() && t.decided_at.is_some())
            .count() as f64,
    );
    points
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// CPU seconds and resident bytes of this process; `None` where /proc is not mounted.
fn own_process() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let pages: f64 = std::fs::read_to_string("/proc/self/statm")
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    // The kernel's user-visible clock tick is 100 Hz on every architecture that Linux runs on (USER_HZ).
    Some(((user + system) / 100.0, pages * 4096.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_convention() {
        let names: BTreeSet<&str> = CATALOGUE.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        for metric in CATALOGUE {
            assert!(metric.name.starts_with("weir_"), "{}", metric.name);
            assert_eq!(
                metric.kind == Type::Counter,
                metric.name.ends_with("_total"),
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
