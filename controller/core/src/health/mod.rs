//! What the counters, gauges and events of single devices say about their health.
//!
//! ```text
//!  values ─┬─> watch (rules, debounce, reference) ──┐
//!  events ─┼─> events ──────────────────────────────┴──> alarm ──> report ─┬─> verdicts
//!          └─> peers ─────────────────────────────────────────────────────┘
//! ```
//!
//! A value is judged under each rule of its signal ([`rules`]), and an alarm stands for as long as it is
//! bad and a while longer ([`alarm`]). A verdict ([`report`]) is of one cable, NIC or GPU: both ends of a
//! cable, counters and events, an interface and its verbs device say it together.
//!
//! Cold start: a node that connects says nothing of its links until they stood still for
//! [`crate::config::Health::settle`], or for `boot_grace` at most: links that come up are no fault. A link that flaps keeps
//! nobody from settling. A port that was never up is not
//! cabled. Missing samples, resets and gaps change nothing. A link to a node that is away, or has just come
//! back, is that node's doing.
//!
//! Cost: some nanoseconds for a value that is as it should be, no allocation, no look-up; 40 bytes for each column and
//! rule. Verdicts are made for the nodes alone against which something stands.

pub mod alarm;
pub mod debounce;
mod document;
pub mod events;
mod memory;
pub mod peers;
pub mod reference;
mod report;
pub mod rules;
#[cfg(test)]
mod tests;
pub mod watch;

use crate::config;
use crate::ids::{JobId, NodeId, PortId};
use crate::io::{Column, NodeEvent, Role};
use crate::topology::Topology;
use crate::verdict::{Class, Severity, Verdict};
use alarm::{Alarms, Remark, Space};
use debounce::Bucket;
pub use document::document;
use events::{Effect, Sign};
pub use memory::Memory;
use peers::Peer;
use reference::{Model, References};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use watch::{Compiled, Sample, Watches};
use weir_signal::{Entity, Signal};

/// Gauges are judged this often, however often an agent samples.
const GAUGE_STEP: Duration = Duration::from_millis(800);
/// Ports whose downs are counted by their events.
const BOUNCES_MAX: usize = 256;

/// Health of every device of every node.
#[derive(Debug, Clone)]
pub struct Health {
    config: config::Health,
    rules: Vec<Compiled>,
    nodes: BTreeMap<NodeId, Node>,
    references: References,
    /// Nodes against which something stands.
    troubled: BTreeSet<NodeId>,
    /// Nodes that differ from the others of their job.
    outliers: BTreeSet<NodeId>,
    /// When nodes are compared again.
    next_step: Duration,
    interval: Duration,
}

/// What is known of a node.
#[derive(Debug, Clone)]
struct Node {
    role: Role,
    connected: bool,
    connected_at: Duration,
    /// When its links had come up after it connected last; `None` before that.
    settled_at: Option<Duration>,
    /// When a link came or went last.
    link_moved: Duration,
    last_sample: Duration,
    interval: Duration,
    since_gauges: Duration,
    watches: Watches,
    alarms: Alarms,
    peer: Peer,
    bounces: Vec<Bounces>,
}

/// Downs of one port that one kind of event told: others tell the same downs.
#[derive(Debug, Clone)]
struct Bounces {
    event: Arc<str>,
    port: Arc<str>,
    bucket: Bucket,
    last: Duration,
}

/// Whether the core wants values of this column: what it does not look at costs nothing.
#[must_use]
pub fn watches(entity: Entity, signal: Signal) -> bool {
    let ruled = |r: &rules::Rule| r.entities.contains(&entity) && is_read(r, signal);
    let taken_down = (entity, signal) == (Entity::Port, Signal::AdminUp);
    rules::RULES.iter().any(ruled) || peers::compares(entity, signal) || taken_down
}

/// Whether a rule reads the signal.
fn is_read(rule: &rules::Rule, signal: Signal) -> bool {
    let of = match rule.condition {
        rules::Condition::Counts { of, .. } => of,
        rules::Condition::Falls(_)
        | rules::Condition::Below { .. }
        | rules::Condition::Above(_)
        | rules::Condition::Bits(_) => None,
    };
    let beside = [of, rule.only.map(|only| only.0)];
    rule.signal == signal || beside.contains(&Some(signal))
}

impl Health {
    #[must_use]
    pub fn new(config: config::Health) -> Health {
        Health {
            rules: watch::compiled(&config),
            config,
            nodes: BTreeMap::new(),
            references: References::default(),
            troubled: BTreeSet::new(),
            outliers: BTreeSet::new(),
            next_step: Duration::ZERO,
            interval: Duration::ZERO,
        }
    }

    /// The node's stream begins.
    pub fn connected(&mut self, node: &NodeId, role: Role, now: Duration) {
        let known = self.nodes.entry(node.clone()).or_insert_with(|| Node {
            role,
            connected: true,
            connected_at: now,
            settled_at: None,
            link_moved: now,
            last_sample: now,
            interval: Duration::ZERO,
            since_gauges: Duration::ZERO,
            watches: Watches::default(),
            alarms: Alarms::default(),
            peer: Peer::default(),
            bounces: Vec::new(),
        });
        (known.role, known.connected, known.connected_at) = (role, true, now);
        (known.settled_at, known.link_moved) = (None, now);
    }

    /// The node's stream ended.
    pub fn lost(&mut self, node: &NodeId) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.connected = false;
        }
    }

    /// The node is no part of the fabric any more.
    pub fn forget(&mut self, node: &NodeId) {
        if let Some(node) = self.nodes.remove(node) {
            node.watches.forget(&mut self.references);
        }
        self.troubled.remove(node);
    }

    /// What the values that follow are.
    pub fn declared(&mut self, node: &NodeId, columns: Arc<[Column]>, topology: &Topology) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        let model = Model::of(known.role, &columns);
        let before = std::mem::take(&mut known.watches);
        let planned = |port: &str| {
            let bps = topology.capacity_bps(&PortId::new(node, port))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate below 2^64 bits per second; the cast saturates"
            )]
            Some(bps as u64)
        };
        known.peer.declared(&columns);
        known.watches = Watches::of(columns, model, before, &mut self.references, planned);
    }

    /// Values in the order of the columns; `job` is what the node was seen to work for meanwhile.
    pub fn sampled(
        &mut self,
        node: &NodeId,
        values: &[Option<u64>],
        elapsed: Option<Duration>,
        job: Option<&JobId>,
        now: Duration,
    ) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        known.last_sample = now;
        known.interval = elapsed.unwrap_or(known.interval);
        let step = elapsed.unwrap_or(GAUGE_STEP);
        known.since_gauges = known.since_gauges.saturating_add(step);
        let gauges = known.since_gauges >= GAUGE_STEP;
        if gauges {
            known.since_gauges = Duration::ZERO;
        }
        let sample = Sample {
            values,
            elapsed,
            gauges,
            settled: known.settled_at.is_some(),
        };
        let (alarms, columns) = (&mut known.alarms, known.watches.columns().clone());
        let found = |found: watch::Found| {
            alarms.found(found, &columns[usize::from(found.column)], now);
        };
        let moved = known
            .watches
            .sampled(&sample, &self.rules, &mut self.references, found);
        if moved {
            known.link_moved = now;
        }
        known.settle(&self.config, now);
        known.peer.sampled(values, elapsed, job, now);
        if !known.alarms.is_quiet() {
            self.troubled.insert(node.clone());
        }
    }

    /// An agent saw something happen.
    pub fn event_seen(&mut self, node: &NodeId, event: NodeEvent, now: Duration) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        let Some(sign) = Sign::of(&event.name) else {
            return;
        };
        known.event(event, sign, &self.config, now);
        if !known.alarms.is_quiet() {
            self.troubled.insert(node.clone());
        }
    }

    /// What is wrong now.
    pub fn verdicts(&mut self, topology: &Topology, now: Duration) -> Vec<Verdict> {
        let nodes = &mut self.nodes;
        self.troubled.retain(|id| {
            nodes.get_mut(id).is_some_and(|node| {
                node.alarms.expire(now);
                !node.alarms.is_quiet()
            })
        });
        if now >= self.next_step {
            let interval = self.usual_interval();
            self.interval = interval;
            self.next_step = now + peers::step_of(interval);
            let peers = self.nodes.values_mut().map(|n| &mut n.peer);
            peers::step(peers, interval, now);
            let outliers = self.nodes.iter().filter(|(_, n)| n.peer.is_outlier());
            self.outliers = outliers.map(|(id, _)| id.clone()).collect();
        }
        let mut verdicts = self.report(topology, now);
        // What a rule names is no riddle.
        let riddles = self.outliers.difference(&self.troubled);
        verdicts.extend(riddles.filter_map(|id| self.nodes.get(id)?.peer.verdict(id, now)));
        verdicts
    }

    /// The sample interval of most nodes in whole seconds, as it was at the last step; zero before the first.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The median of the nodes' sample intervals, rounded to seconds: samples are never quite on time.
    fn usual_interval(&self) -> Duration {
        let connected = self.nodes.values().filter(|n| n.connected);
        let mut all: Vec<Duration> = connected.map(|n| n.interval).collect();
        let middle = all.len() / 2;
        if all.is_empty() {
            return Duration::ZERO;
        }
        let usual = *all.select_nth_unstable(middle).1;
        Duration::from_secs((usual + Duration::from_millis(500)).as_secs())
    }

    /// Alarms that a node had no room for, of all nodes.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.nodes.values().map(|n| n.alarms.refused).sum()
    }
}

impl Node {
    /// Notes when the links have come up.
    fn settle(&mut self, config: &config::Health, now: Duration) {
        let since = |at: Duration| now.saturating_sub(at);
        let still = since(self.link_moved) >= config.settle;
        if self.settled_at.is_none() && (still || since(self.connected_at) >= config.boot_grace) {
            self.settled_at = Some(now);
        }
    }

    fn event(&mut self, event: NodeEvent, sign: &Sign, config: &config::Health, now: Duration) {
        let columns = self.watches.columns();
        let space = Space::of(&event.subject, columns);
        let is_gpu =
            |c: &Column| c.entity == Entity::Gpu && c.subject.eq_ignore_ascii_case(&event.subject);
        let effect = match sign.effect {
            Effect::Fault | Effect::Gone | Effect::Lonely if event.severity == Severity::Info => {
                Effect::Remark
            }
            Effect::IfKnown if columns.iter().any(is_gpu) || self.is_nic(&event.subject) => {
                Effect::Fault
            }
            Effect::IfKnown => Effect::Remark,
            effect @ (Effect::Fault
            | Effect::Gone
            | Effect::Ends(_)
            | Effect::Down
            | Effect::Lonely
            | Effect::Remark) => effect,
        };
        let remark = Remark {
            at: now,
            name: event.subject.clone(),
            text: event.text.clone(),
        };
        match effect {
            Effect::Fault | Effect::Gone | Effect::Lonely => {
                let class = match columns.iter().any(is_gpu) {
                    true => Class::GpuFault,
                    false => sign.class,
                };
                self.alarms.told(event, (sign, class), space, now);
            }
            Effect::Ends(other) => self.alarms.over(other, &event.subject),
            Effect::Remark | Effect::IfKnown => self.alarms.remark(remark),
            Effect::Down => {
                self.alarms.remark(remark);
                if !self.bounced(&event, config, now) {
                    self.link_moved = now;
                } else if self.settled_at.is_some() {
                    let action = rules::STOP_FLAP.to_owned();
                    let event = NodeEvent { action, ..event };
                    self.alarms.told(event, (sign, sign.class), space, now);
                }
            }
        }
    }

    /// Whether the device is one of the NICs against which something stands.
    fn is_nic(&self, name: &str) -> bool {
        let mut nics = self
            .alarms
            .troubles()
            .filter(|(t, _)| t.class == Class::NicFault);
        nics.any(|(t, _)| t.names.iter().flatten().any(|n| alarm::is_same(n, name)))
    }

    /// Counts a down of a port; whether that makes a flap.
    fn bounced(&mut self, event: &NodeEvent, config: &config::Health, now: Duration) -> bool {
        let of_event = |b: &Bounces| b.port == event.subject && b.event == event.name;
        let place = self.bounces.iter().position(of_event);
        let place = place.unwrap_or_else(|| {
            if self.bounces.len() == BOUNCES_MAX {
                self.bounces.remove(0);
            }
            self.bounces.push(Bounces {
                event: event.name.clone(),
                port: event.subject.clone(),
                bucket: Bucket::default(),
                last: now,
            });
            self.bounces.len() - 1
        });
        let bounces = &mut self.bounces[place];
        let elapsed = now.saturating_sub(bounces.last).max(Duration::from_secs(1));
        bounces.last = now;
        bounces.bucket.add(1, 0.0, elapsed, &rules::flaps(config))
    }
}
