//! From the troubles of nodes to verdicts: one of each cable, NIC and GPU.
//!
//! Both ends of a cable see a fault of it; the verdict is about the end that is a switch's port, or the
//! first of the two by name. Of one cable a flap says all that its downs and errors say, and a link
//! that is down all that its errors and its rate say. Confidence: 1 less the chance that all of its
//! findings mean something else, were they independent.

use super::alarm::{Alarm, Cause, REMEMBERED, Trouble};
use super::rules::{self, Condition, RULES};
use super::watch::Found;
use super::{Health, Node};
use crate::ids::{NodeId, PortId};
use crate::topology::Topology;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeMap;
use std::time::Duration;
use weir_signal::{Kind, Signal};

/// Lines of evidence in one verdict.
const EVIDENCE_MAX: usize = 12;
/// Verdicts of one call: as many as incidents are kept.
const VERDICTS_MAX: usize = 1024;
/// A trouble of a verbs device or PCIe address alone waits so long for the interface's word.
const HOLD_BACK: Duration = Duration::from_secs(2);
/// More nodes than this share, and than two, have the same: it is no device's fault.
const LONELY_SHARE: usize = 20;
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
        let crowded = self.crowded(&troubled);
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
        verdicts.into_values().collect()
    }

    /// Whether an alarm is one that too many nodes have.
    fn crowded(&self, troubled: &[(&NodeId, &Node)]) -> impl Fn(&Alarm) -> bool + use<> {
        let mut nodes = vec![0; RULES.len()];
        for (_, node) in troubled {
            let mut rules: Vec<usize> = node.alarms.rules().collect();
            rules.sort_unstable();
            rules.dedup();
            for rule in rules {
                nodes[rule] += 1;
            }
        }
        let most = (self.nodes.len() / LONELY_SHARE).max(2);
        move |alarm| match &alarm.cause {
            Cause::Value { found, .. } => {
                let rule = usize::from(found.rule);
                RULES[rule].lonely && nodes[rule] > most
            }
            Cause::Event { .. } => false,
        }
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
        if trouble.class == Class::GpuFault {
            return Some((Subject::Gpu(id.clone(), trouble.first.clone()), Vec::new()));
        }
        if !rules::is_of_cable(trouble.class) {
            return Some((Subject::Nic(id.clone(), trouble.first.clone()), Vec::new()));
        }
        let [interface, verbs, _] = &trouble.names;
        let ports = [interface, verbs].into_iter().flatten();
        let mut cables = ports.filter_map(|name| {
            let port = PortId::new(id, name);
            let peer = topology.peer(&port)?.clone();
            Some((port, peer))
        });
        if let Some((port, peer)) = cables.next() {
            if !self.is_own_fault(node, &peer.node, last_bad, now) {
                return None;
            }
            let switch = |port: &PortId| !topology.is_switch(&port.node);
            let mut ends = [port, peer];
            ends.sort_by(|a, b| (switch(a), a).cmp(&(switch(b), b)));
            return Some((Subject::Link(ends[0].clone()), ends.to_vec()));
        }
        match (interface, verbs) {
            // The plan or the agents know this node's cables, and none is here.
            (Some(_), _) if !topology.links_of(id).is_empty() => None,
            (Some(name), _) => Some((Subject::Nic(id.clone(), name.clone()), Vec::new())),
            (None, Some(name)) => (now.saturating_sub(trouble.since) >= HOLD_BACK)
                .then(|| (Subject::Nic(id.clone(), name.clone()), Vec::new())),
            (None, None) => None,
        }
    }

    /// Whether what was bad at `last_bad` came after both ends of the cable had settled, and the other
    /// end's node is there.
    fn is_own_fault(&self, node: &Node, peer: &NodeId, last_bad: Duration, now: Duration) -> bool {
        let settled = |n: &Node| n.settled_at.is_some_and(|at| last_bad >= at);
        let peer = self.nodes.get(peer);
        settled(node) && peer.is_none_or(|peer| settled(peer) && peer.is_here(now))
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

impl Node {
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
            let whose = if peers {
                "it had before, is planned, or like nodes have"
            } else {
                "it had before"
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
