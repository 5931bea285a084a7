//! What the API shows: serde structs made from the brain, nothing else.

use crate::driver::View;
use crate::events::{NodeEvent, Severity};
use serde::Serialize;
use std::time::{Duration, UNIX_EPOCH};
use weir_controller_core::flows::RATE_AGE_MAX;
use weir_controller_core::ids::JobId;
use weir_controller_core::io::Role;
use weir_controller_core::jobs::{Job, Signature};
use weir_controller_core::links::LinkSample;
use weir_controller_core::trial::{Cause, NodeLease};

#[derive(Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    pub mode: &'static str,
    pub frozen: bool,
    /// Seconds since the controller started.
    pub uptime_s: f64,
    pub nodes: Vec<NodeView>,
    pub jobs: Vec<JobView>,
    /// Where the topology file and the agents disagree.
    pub findings: Vec<String>,
    pub incidents_open: usize,
    pub leases_live: usize,
}

#[derive(Debug, Serialize)]
pub struct NodeView {
    pub name: String,
    pub role: &'static str,
    pub up: bool,
    pub last_seen_s: f64,
    pub sources: Vec<SourceView>,
}

#[derive(Debug, Serialize)]
pub struct SourceView {
    pub name: String,
    pub up: bool,
    pub reason: String,
}

#[derive(Debug, Serialize)]
pub struct JobView {
    pub key: String,
    /// Nobody reports it: its flows tell of it.
    pub inferred: bool,
    /// Of an inferred job: its servers; empty of a reported one.
    pub servers: Vec<String>,
    /// Of an inferred job: rings of addresses that were found in its traffic.
    pub rings: Vec<Vec<String>>,
    pub ranks: Option<u32>,
    /// What iterations are measured on.
    pub measured_on: String,
    pub iterations: usize,
    /// Newest iteration; seconds.
    pub iteration_s: Option<f64>,
    /// Bus bandwidth of the newest iteration; Mbit/s.
    pub busbw_mbps: Option<f64>,
    pub first_seen: f64,
}

#[derive(Debug, Serialize)]
pub struct LinkView {
    pub id: String,
    pub node: String,
    pub port: String,
    pub peer: String,
    pub capacity_bps: Option<f64>,
    pub tx_bps: Option<f64>,
    /// Share of capacity in 0..=1.
    pub utilisation: Option<f64>,
    /// Share of capacity while a collective was on the wire.
    pub utilisation_busy: Option<f64>,
    pub queue_bytes: Option<u64>,
    pub drops_per_s: Option<f64>,
    pub hot: bool,
}

#[derive(Debug, Serialize)]
pub struct IncidentView {
    pub id: String,
    pub class: &'static str,
    pub severity: &'static str,
    pub state: &'static str,
    pub entity: String,
    /// Incident that this one follows from.
    pub root: Option<String>,
    /// What a person should do; empty if nothing.
    pub action: String,
    /// Share of its job's time that is lost.
    pub lost_ratio: Option<f64>,
    /// Seconds of its job lost since it was opened, at that share.
    pub lost_s: Option<f64>,
    pub links: Vec<String>,
    pub job: Option<String>,
    pub confidence: f64,
    pub evidence: Vec<EvidenceView>,
    pub suggested: Vec<String>,
    pub actions: Vec<StoryView>,
    /// Seconds since 1970.
    pub opened_at: f64,
    pub resolved_at: Option<f64>,
    /// Newest minute of the first link, for `weir explain`.
    pub series: Vec<SampleView>,
}

#[derive(Debug, Serialize)]
pub struct EvidenceView {
    pub what: String,
    pub value: String,
}

#[derive(Debug, Serialize)]
pub struct StoryView {
    pub at: f64,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct SampleView {
    pub at: f64,
    pub utilisation: Option<f64>,
    pub queue_bytes: Option<u64>,
    pub hot: bool,
}

#[derive(Debug, Serialize)]
pub struct LeaseView {
    pub id: u64,
    pub incident: String,
    pub verdict: String,
    pub job: String,
    pub state: &'static str,
    pub rolled_back: bool,
    /// Why it was given back: `slower`, `no_better`, ...; absent while it was not.
    pub cause: Option<&'static str>,
    pub live: bool,
    pub reason: String,
    pub nodes: Vec<LeaseNodeView>,
    pub changes: Vec<String>,
    pub iterations_before_s: Vec<f64>,
    pub iterations_after_s: Vec<f64>,
    pub timeline: Timeline,
}

#[derive(Debug, Serialize)]
pub struct LeaseNodeView {
    pub node: String,
    pub state: &'static str,
}

/// Seconds since 1970.
#[derive(Debug, Serialize)]
pub struct Timeline {
    /// First collective of the job.
    pub job_seen_at: Option<f64>,
    /// The verdict.
    pub opened_at: Option<f64>,
    pub proposed_at: f64,
    pub applied_at: Option<f64>,
    pub decided_at: Option<f64>,
}

fn date(view: &View<'_>, at: Duration) -> f64 {
    (view.started + at)
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Something that a node's agent saw happen.
#[derive(Debug, Serialize)]
pub struct EventView {
    /// Seconds since 1970.
    pub at: f64,
    pub node: String,
    pub severity: &'static str,
    pub source: String,
    pub name: String,
    pub subject: String,
    /// Number of an XID or SXID.
    pub code: Option<u32>,
    pub text: String,
    pub action: String,
}

/// Events of one answer: 2 MiB of the usual ones.
const EVENTS_SHOWN_MAX: usize = 4096;

/// What the nodes saw happen, or one of them, newest first; the newest 4,096.
#[must_use]
pub fn events(view: &View<'_>, only: Option<&str>) -> Vec<EventView> {
    let event = |(node, seen): (&str, &NodeEvent)| EventView {
        at: date(view, seen.at) - seen.age().as_secs_f64(),
        node: node.to_owned(),
        severity: Severity::of(&seen.event).name(),
        source: seen.event.source.clone(),
        name: seen.event.name.clone(),
        subject: seen.event.subject.clone(),
        code: seen.event.code,
        text: seen.event.text.clone(),
        action: seen.event.action.clone(),
    };
    let newest_first = view.brain.events.newest_first();
    let wanted = newest_first.into_iter();
    let wanted = wanted.filter(|(node, _)| only.is_none_or(|only| only == *node));
    wanted.take(EVENTS_SHOWN_MAX).map(event).collect()
}

#[must_use]
pub fn status(view: &View<'_>) -> Status {
    let core = &view.brain.core;
    let nodes = core.nodes().iter().map(|(id, node)| NodeView {
        name: id.to_string(),
        role: role_name(node.role),
        up: node.connected,
        last_seen_s: view.now.saturating_sub(node.last_seen).as_secs_f64(),
        sources: view
            .brain
            .sources
            .get(id.as_str())
            .into_iter()
            .flatten()
            .map(|s| SourceView {
                name: s.name.clone(),
                up: s.up,
                reason: s.reason.clone(),
            })
            .collect(),
    });
    Status {
        version: env!("CARGO_PKG_VERSION"),
        mode: core.config().mode.name(),
        frozen: core.is_frozen(),
        uptime_s: view.now.as_secs_f64(),
        nodes: nodes.collect(),
        jobs: core
            .jobs()
            .iter()
            .map(|(key, job)| job_view(view, key, job))
            .collect(),
        findings: core.topology().findings().iter().cloned().collect(),
        incidents_open: core.incidents().iter().filter(|i| i.is_open()).count(),
        leases_live: core.trials().iter().filter(|t| t.is_live()).count(),
    }
}

fn job_view(view: &View<'_>, key: &JobId, job: &Job) -> JobView {
    let series = job.series(view.now);
    let newest = series
        .as_ref()
        .and_then(|(_, i)| i.back())
        .map(|i| i.seconds);
    let on_collectives = matches!(series, Some((Signature::Collective { .. }, _)));
    let group = view.brain.core.inference().get(key);
    JobView {
        key: key.to_string(),
        inferred: key.is_inferred(),
        servers: group
            .into_iter()
            .flat_map(|g| g.servers.iter().map(ToString::to_string))
            .collect(),
        rings: group
            .into_iter()
            .flat_map(|g| &g.rings)
            .map(|ring| ring.iter().map(ToString::to_string).collect())
            .collect(),
        ranks: job.ranks,
        measured_on: match &series {
            Some((Signature::Collective { op, bytes, .. }, _)) => format!("{op} of {bytes} bytes"),
            Some((Signature::Queued { op, bytes, .. }, _)) => {
                format!("time between calls of {op} of {bytes} bytes")
            }
            Some((Signature::FlowProgress { .. }, _)) => "seconds per megabyte of its flows".into(),
            Some((Signature::Rhythm, _)) => "bursts of its traffic".into(),
            None if key.is_inferred() => {
                "nothing: samples of its traffic show no iterations".into()
            }
            None => "nothing at present".into(),
        },
        iterations: series.as_ref().map_or(0, |(_, i)| i.len()),
        iteration_s: newest,
        busbw_mbps: newest
            .filter(|_| on_collectives)
            .and_then(|s| job.busbw_bps(s))
            .map(|b| b / 1e6),
        first_seen: date(view, job.first_seen),
    }
}

#[must_use]
pub fn links(view: &View<'_>) -> Vec<LinkView> {
    let core = &view.brain.core;
    let link = |(port, peer): (
        &weir_controller_core::ids::PortId,
        &weir_controller_core::ids::PortId,
    )| {
        let ix = core.topology().link(port);
        let sample = ix.and_then(|ix| core.links().newest(ix, view.now, RATE_AGE_MAX));
        LinkView {
            id: format!("{port}->{peer}"),
            node: port.node.to_string(),
            port: port.port.to_string(),
            peer: peer.to_string(),
            capacity_bps: core.topology().capacity_bps(port),
            tx_bps: sample.map(|s| s.tx_bps.into()),
            utilisation: sample.and_then(LinkSample::utilisation),
            utilisation_busy: sample.and_then(LinkSample::utilisation_busy),
            queue_bytes: sample.and_then(LinkSample::queue_bytes_max),
            drops_per_s: sample.and_then(LinkSample::drops_per_s),
            hot: sample.is_some_and(|s| s.hot),
        }
    };
    core.topology().links().map(link).collect()
}

#[must_use]
pub fn incidents(view: &View<'_>) -> Vec<IncidentView> {
    let core = &view.brain.core;
    let incident = |i: &weir_controller_core::incident::Incident| IncidentView {
        id: i.id.clone(),
        class: i.verdict.class.name(),
        severity: i.verdict.severity.name(),
        root: i.root.clone(),
        action: i.verdict.action.clone(),
        lost_ratio: i.verdict.impact.map(|x| x.lost_ratio),
        lost_s: i.verdict.impact.map(|x| {
            let open = i.resolved_at.unwrap_or(i.last_seen);
            x.lost_ratio * open.saturating_sub(i.opened_at).as_secs_f64()
        }),
        state: if i.is_open() { "open" } else { "resolved" },
        entity: i.verdict.entity.to_string(),
        links: i.verdict.links.iter().map(ToString::to_string).collect(),
        job: i.verdict.job.as_ref().map(ToString::to_string),
        confidence: i.verdict.confidence,
        evidence: i
            .verdict
            .evidence
            .iter()
            .map(|e| EvidenceView {
                what: e.what.clone(),
                value: e.value.clone(),
            })
            .collect(),
        suggested: i.verdict.plan.iter().map(ToString::to_string).collect(),
        actions: i
            .story
            .iter()
            .map(|(at, text)| StoryView {
                at: date(view, *at),
                text: text.clone(),
            })
            .collect(),
        opened_at: date(view, i.opened_at),
        resolved_at: i.resolved_at.map(|at| date(view, at)),
        series: i
            .verdict
            .entity
            .link()
            .and_then(|link| core.topology().link(link))
            .into_iter()
            .flat_map(|link| core.links().history(link))
            .map(|s| SampleView {
                at: date(view, s.at),
                utilisation: s.utilisation(),
                queue_bytes: s.queue_bytes_max(),
                hot: s.hot,
            })
            .collect(),
    };
    core.incidents().iter().map(incident).collect()
}

#[must_use]
pub fn leases(view: &View<'_>) -> Vec<LeaseView> {
    let core = &view.brain.core;
    let lease = |t: &weir_controller_core::trial::Trial| LeaseView {
        id: t.lease,
        incident: t.incident.clone(),
        verdict: t.verdict.clone(),
        job: t.job.to_string(),
        state: t.state.name(),
        rolled_back: t.given_back.is_some(),
        cause: t.given_back.map(Cause::name),
        live: t.is_live(),
        reason: t.reason.clone(),
        nodes: t
            .nodes
            .iter()
            .map(|(n, l)| LeaseNodeView {
                node: n.to_string(),
                state: node_lease_name(*l),
            })
            .collect(),
        changes: t.pins.iter().map(ToString::to_string).collect(),
        iterations_before_s: t.before_s.clone(),
        iterations_after_s: t.after_s.clone(),
        timeline: Timeline {
            job_seen_at: core.jobs().get(&t.job).map(|j| date(view, j.first_seen)),
            opened_at: core
                .incidents()
                .iter()
                .find(|i| i.id == t.incident)
                .map(|i| date(view, i.opened_at)),
            proposed_at: date(view, t.proposed_at),
            applied_at: t.applied_at.map(|at| date(view, at)),
            decided_at: t.decided_at.map(|at| date(view, at)),
        },
    };
    core.trials().iter().map(lease).collect()
}

/// Name of a role in the API and in labels.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Host => "host",
        Role::Switch => "switch",
    }
}

fn node_lease_name(lease: NodeLease) -> &'static str {
    match lease {
        NodeLease::Asked => "asked",
        NodeLease::Applied => "applied",
        NodeLease::Over => "at its baseline",
    }
}
