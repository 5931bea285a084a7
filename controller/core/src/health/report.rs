//! From the troubles of nodes to verdicts: one of each cable, NIC and GPU.
//!
//! Both ends of a cable see a fault of it; the verdict is about the end that is a switch's port, or the
//! first of the two by name. Of one cable a flap says all that its downs and errors say, and a link
//! that is down all that its errors and its rate say. Confidence: 1 less the chance that all of its
//! findings mean something else, were they independent.

use super::alarm::{Alarm, Cause, Lonely, REMEMBERED, Trouble};
use super::rules::{self, Condition, DOWN_SAMPLES, RULES};
use super::watch::Found;
use super::{Health, Node};
use crate::ids::{NodeId, PortId};
use crate::io::Column;
use crate::topology::Topology;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_signal::{Entity, Kind, Signal};

/// Lines of evidence in one verdict.
const EVIDENCE_MAX: usize = 12;
/// Verdicts of one call: as many as incidents are kept.
const VERDICTS_MAX: usize = 1024;
/// A trouble of a verbs device or PCIe address alone waits so long for the interface's word.
const HOLD_BACK: Duration = Duration::from_secs(2);
/// More nodes than this share, and than two, have the same: it is no device's fault.
const LONELY_SHARE: usize = 20;
/// So many links of a switch, and half of all, or so many GPUs of a node are the node's fault.
const LINKS_WHOLE: usize = 3;
const GPUS_WHOLE: usize = 4;
/// Repetitions within a day that make it worse.
const REPEATS_WORSE: u32 = 3;
/// Remarks of this long before the trouble belong to it.
const REMARKS_BEFORE: Duration = Duration::from_secs(60);
/// A node that sent nothing for so many of its intervals is away, whether its stream ended or not.
const INTERVALS_MISSED: u32 = 3;
/// Confidence is never more than this.
const CONFIDENCE_MAX: f64 = 0.99;

impl Health {
    /// What is wrong now, of the nodes against which something stands.
    pub(super) fn report(&self, topology: &Topology, now: Duration) -> Vec<Verdict> {
        let troubled = self.troubled.iter();
        let troubled: Vec<(&NodeId, &Node)> = troubled
            .filter_map(|id| self.nodes.get_key_value(id))
            .collect();
        let crowds = self.crowds(&troubled);
        let crowded = |a: &&Alarm| a.lonely().is_some_and(|l| crowds.contains(&l));
        let mut verdicts: BTreeMap<(Subject, Class), Verdict> = BTreeMap::new();
        for (id, node) in troubled {
            for (trouble, alarms) in node.alarms.troubles() {
                let alarms: Vec<&Alarm> = alarms.filter(|a| !crowded(a)).collect();
                let Some(last_bad) = alarms.iter().map(|a| a.last_bad).max() else {
                    continue;
                };
                let Some((subject, links)) =
                    self.subject(id, node, trouble, last_bad, topology, now)
                else {
                    continue;
                };
                let key = (subject, trouble.class);
                if verdicts.len() == VERDICTS_MAX && !verdicts.contains_key(&key) {
                    continue;
                }
                let subject = key.0.clone();
                let verdict = verdicts.entry(key).or_insert_with(|| {
                    let mut new = Verdict::new(trouble.class, Severity::Info, subject, 0.0);
                    new.links = links;
                    new
                });
                self.add(verdict, id, node, trouble, &alarms, now);
            }
        }
        let told_by_another = |(subject, class): &(Subject, Class)| {
            let is = |class| verdicts.contains_key(&(subject.clone(), class));
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "these three alone are parts of another"
            )]
            let by: &[Class] = match *class {
                Class::LinkDown => &[Class::LinkFlap],
                Class::LinkErrors => &[Class::LinkFlap, Class::LinkDown],
                Class::DegradedLink => &[Class::LinkDown],
                _ => &[],
            };
            by.iter().any(|class| is(*class))
        };
        let said: Vec<_> = verdicts
            .keys()
            .filter(|k| told_by_another(k))
            .cloned()
            .collect();
        for key in said {
            verdicts.remove(&key);
        }
        whole(verdicts, topology)
    }

    /// What too many nodes have at once to be a device's fault.
    fn crowds(&self, troubled: &[(&NodeId, &Node)]) -> BTreeSet<Lonely> {
        let mut nodes: BTreeMap<Lonely, usize> = BTreeMap::new();
        for lonely in troubled.iter().flat_map(|(_, node)| node.alarms.lonely()) {
            *nodes.entry(lonely).or_default() += 1;
        }
        let most = (self.nodes.len() / LONELY_SHARE).max(2);
        nodes.retain(|_, count| *count > most);
        nodes.into_keys().collect()
    }

    /// What a trouble is about, and its links; `None` if it is another's doing or not cabled.
    fn subject(
        &self,
        id: &NodeId,
        node: &Node,
        trouble: &Trouble,
        last_bad: Duration,
        topology: &Topology,
        now: Duration,
    ) -> Option<(Subject, Vec<PortId>)> {
        if trouble.first.is_empty() {
            return Some((Subject::Node(id.clone()), Vec::new()));
        }
        if trouble.class == Class::GpuFault {
            return Some((Subject::Gpu(id.clone(), trouble.first.clone()), Vec::new()));
        }
        if !rules::is_of_cable(trouble.class) {
            return Some((Subject::Nic(id.clone(), trouble.first.clone()), Vec::new()));
        }
        let [interface, verbs, _] = &trouble.names;
        // Fabrics name a verbs device with its port or without.
        let device = verbs
            .as_ref()
            .and_then(|v| v.split_once('/'))
            .map(|(device, _)| device);
        let ports = [interface.as_deref(), verbs.as_deref(), device];
        let mut cables = ports.into_iter().flatten().filter_map(|name| {
            let port = PortId::new(id, name);
            let peer = topology.peer(&port)?.clone();
            Some((port, peer))
        });
        if let Some((port, peer)) = cables.next() {
            let own = self.is_own_fault(node, &peer.node, trouble, last_bad, now);
            if !own || [&port, &peer].iter().any(|end| self.is_taken_down(end)) {
                return None;
            }
            let switch = |port: &PortId| !topology.is_switch(&port.node);
            let mut ends = [port, peer];
            ends.sort_by(|a, b| (switch(a), a).cmp(&(switch(b), b)));
            return Some((Subject::Link(ends[0].clone()), ends.to_vec()));
        }
        match (interface, verbs) {
            // The plan or the agents know the cables of this node's interfaces, and none is here.
            (Some(_), _) if node.has_cabled_interfaces(id, topology) => None,
            (Some(name), _) if node.watches.is_taken_down(name) => None,
            (Some(name), _) => Some((Subject::Nic(id.clone(), name.clone()), Vec::new())),
            (None, Some(name)) => (now.saturating_sub(trouble.since) >= HOLD_BACK)
                .then(|| (Subject::Nic(id.clone(), name.clone()), Vec::new())),
            (None, None) => None,
        }
    }

    /// Whether somebody took the port down: so what its cable does is meant.
    fn is_taken_down(&self, port: &PortId) -> bool {
        let node = self.nodes.get(&port.node);
        node.is_some_and(|node| node.watches.is_taken_down(&port.port))
    }

    /// Whether what was bad at `last_bad` came after both ends of the cable had settled, and the other
    /// end's node is there and was heard since it began.
    fn is_own_fault(
        &self,
        node: &Node,
        peer: &NodeId,
        trouble: &Trouble,
        last_bad: Duration,
        now: Duration,
    ) -> bool {
        let samples = if trouble.class == Class::LinkDown {
            DOWN_SAMPLES
        } else {
            1
        };
        let began = trouble.since.saturating_sub(node.interval * (samples - 1));
        let settled = |n: &Node| n.settled_at.is_some_and(|at| last_bad >= at);
        let peer = self.nodes.get(peer);
        let there = |peer: &Node| settled(peer) && peer.is_here(now) && peer.last_sample >= began;
        settled(node) && peer.is_none_or(there)
    }

    fn add(
        &self,
        verdict: &mut Verdict,
        id: &NodeId,
        node: &Node,
        trouble: &Trouble,
        alarms: &[&Alarm],
        now: Duration,
    ) {
        let stands = now.saturating_sub(trouble.since);
        let worst = alarms.iter().map(|a| a.severity).max();
        let mut severity = worst.unwrap_or(Severity::Info);
        let worse = trouble.repeats >= REPEATS_WORSE || stands >= self.config.escalate_after;
        if worse && severity == Severity::Warning {
            severity = Severity::Critical;
        }
        let gravest = alarms
            .iter()
            .max_by_key(|a| (a.severity, std::cmp::Reverse(a.since)));
        if let Some(gravest) = gravest
            && (verdict.action.is_empty() || severity > verdict.severity)
        {
            verdict.action = gravest.action.clone();
        }
        verdict.severity = verdict.severity.max(severity);
        let wrong = alarms.iter().map(|a| 1.0 - a.confidence).product::<f64>();
        verdict.confidence = (1.0 - (1.0 - verdict.confidence) * wrong).min(CONFIDENCE_MAX);
        let names: Vec<&str> = trouble.names.iter().flatten().map(|n| &**n).collect();
        let names = names.join(", ");
        let mut evidence: Vec<Evidence> = alarms
            .iter()
            .map(|alarm| sentence(alarm, format_args!("{id}:{}", alarm.name), now))
            .collect();
        if trouble.repeats > 0 {
            let hours = REMEMBERED.as_secs() / 3600;
            let text = format!("{} times in {hours} hours", trouble.repeats);
            evidence.push(Evidence::new(format!("{id}:{names} had it before"), text));
        }
        let since = trouble.since.saturating_sub(REMARKS_BEFORE);
        for remark in node.alarms.remarks(trouble, since) {
            let what = format!("{id}:{} logged, {}", remark.name, ago(now, remark.at));
            evidence.push(Evidence::new(what, remark.text.clone()));
        }
        let room = EVIDENCE_MAX.saturating_sub(verdict.evidence.len());
        let left = evidence.len().saturating_sub(room);
        evidence.truncate(room);
        if left > 0 && room > 0 {
            evidence[room - 1] =
                Evidence::new("more of the same", format!("{} findings", left + 1));
        }
        verdict.evidence.extend(evidence);
    }
}

/// Verdicts of one class about most links of a switch, or about many GPUs of a node, become one: what they
/// share is ill, not each of them.
fn whole(verdicts: BTreeMap<(Subject, Class), Verdict>, topology: &Topology) -> Vec<Verdict> {
    let shared = |(subject, class): &(Subject, Class)| match subject {
        Subject::Link(port) => Some((port.node.clone(), *class)),
        Subject::Gpu(node, _) => Some((node.clone(), *class)),
        Subject::Nic(..) | Subject::Node(_) | Subject::Rank { .. } => None,
    };
    let mut counts: BTreeMap<(NodeId, Class), usize> = BTreeMap::new();
    for node in verdicts.keys().filter_map(shared) {
        *counts.entry(node).or_default() += 1;
    }
    counts.retain(|(node, class), count| {
        let links = topology.links_of(node).len();
        *count
            >= if *class == Class::GpuFault {
                GPUS_WHOLE
            } else {
                LINKS_WHOLE.max(links / 2)
            }
    });
    let mut told = Vec::new();
    let mut wholes: BTreeMap<(NodeId, Class), Verdict> = BTreeMap::new();
    for (key, verdict) in verdicts {
        let Some(shared) = shared(&key).filter(|shared| counts.contains_key(shared)) else {
            told.push(verdict);
            continue;
        };
        let subject = Subject::Node(shared.0.clone());
        let count = counts[&shared];
        let whole = wholes.entry(shared).or_insert_with(|| {
            let mut new = Verdict::new(key.1, verdict.severity, subject, verdict.confidence);
            let text = format!("{count} of them at the same time");
            new.evidence
                .push(Evidence::new("links or GPUs of one node", text));
            new.action = format!(
                "look at the node first: power, cooling, software; then: {}",
                verdict.action
            );
            new
        });
        whole.severity = whole.severity.max(verdict.severity);
        whole.confidence = whole.confidence.max(verdict.confidence);
        whole.links.extend(verdict.links);
        let room = EVIDENCE_MAX.saturating_sub(whole.evidence.len());
        whole
            .evidence
            .extend(verdict.evidence.into_iter().take(room.min(1)));
    }
    told.extend(wholes.into_values());
    told
}

impl Node {
    fn has_cabled_interfaces(&self, id: &NodeId, topology: &Topology) -> bool {
        let links = topology.links_of(id);
        let cabled = |c: &Column| {
            links
                .binary_search_by(|(name, _)| name.cmp(&c.subject))
                .is_ok()
        };
        let mut columns = self.watches.columns().iter();
        columns.any(|c| c.entity == Entity::Port && cabled(c))
    }

    fn is_here(&self, now: Duration) -> bool {
        let patience = Duration::from_secs(1) + self.interval * INTERVALS_MISSED;
        self.connected && now.saturating_sub(self.last_sample) <= patience
    }
}

/// An alarm as evidence.
fn sentence(alarm: &Alarm, place: std::fmt::Arguments<'_>, now: Duration) -> Evidence {
    let since = ago(now, alarm.since);
    match &alarm.cause {
        Cause::Value { found, index } => {
            let rule = &RULES[usize::from(found.rule)];
            let index = index.zip(rule.signal.index());
            let index = index.map_or(String::new(), |(n, by)| format!(" {by} {n}"));
            let what = format!("{place}{index}: {}", rule.finding);
            Evidence::new(what, format!("{}; first {since}", measured(rule, found)))
        }
        Cause::Event {
            name, times, text, ..
        } => {
            let times = match times {
                1 => String::new(),
                n => format!("{n} times, "),
            };
            Evidence::new(
                format!("{place}: {name}, {times}first {since}"),
                text.clone(),
            )
        }
    }
}

/// Value, limit and N of M of a finding.
fn measured(rule: &rules::Rule, found: &Found) -> String {
    let name = rule.signal.name();
    let (n, m) = rule.n_of_m;
    let of = |value| figure(value, rule.signal);
    let times = format!("in {} of the last {m} samples, {n} are needed", found.bad);
    match rule.condition {
        Condition::Counts { .. } => format!(
            "{name} {} a second, up to {} is tolerated",
            of(found.measured),
            of(found.limit)
        ),
        Condition::Falls(_) => {
            format!(
                "{name} fell to 0 {:.1} times more than is tolerated",
                found.measured
            )
        }
        Condition::Below { peers } => {
            let whose = match (found.of_like, peers) {
                (true, _) => "like devices have",
                (false, true) => "it had before or is planned to have",
                (false, false) => "it had before",
            };
            format!(
                "{name} {}, below the {} that {whose}, {times}",
                of(found.measured),
                of(found.limit)
            )
        }
        Condition::Above(_) => format!(
            "{name} {}, above {}, {times}",
            of(found.measured),
            of(found.limit)
        ),
        Condition::Bits(_) => format!("{name} {:.0}, {times}", found.measured),
    }
}

/// A value in its unit.
fn figure(value: f64, signal: Signal) -> String {
    match signal.unit() {
        "bits per second" => format!("{:.0} Gbit/s", value / 1e9),
        "millidegrees Celsius" => format!("{:.0} °C", value / 1e3),
        unit if signal.kind() == Kind::Counter => format!("{value:.3} {unit}"),
        "bool" | "state" => format!("{value:.0}"),
        unit => format!("{value:.0} {unit}"),
    }
}

fn ago(now: Duration, at: Duration) -> String {
    format!("{} s ago", now.saturating_sub(at).as_secs())
}
