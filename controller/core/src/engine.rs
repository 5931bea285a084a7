//! The core itself: facts in, commands out.

mod act;
mod detect;
mod resume;

use crate::cables::Cables;
use crate::cabling::Cabling;
use crate::config::Config;
use crate::flows::Flows;
use crate::health::Health;
use crate::ids::NodeId;
use crate::incident::Incidents;
use crate::infer::Inference;
use crate::io::{Command, Input, NodeSample, Role};
use crate::jobs::Jobs;
use crate::keep::keep;
use crate::links::{Interval, Links};
use crate::losses::Losses;
use crate::silent::Silent;
use crate::straggler::Stragglers;
use crate::topology::{NODES_MAX, Plan, Topology};
use crate::trial::{Cause, Trial};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use detect::describe;

/// The core looks at everything this often: four times in a sample interval, so that a verdict
/// waits for no more than a quarter of one.
const TICK: Duration = Duration::from_millis(250);
/// The graph is built again at most this often: a tenth of the time that it takes.
const REFRESH_PER_LINK: Duration = Duration::from_micros(20);
/// A longer interval is a gap: a mean over it would say nothing.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// A node that was lost for longer is no part of the fabric any more.
pub const NODE_GONE: Duration = Duration::from_secs(86_400);

/// A node as the core knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub role: Role,
    pub connected: bool,
    pub last_seen: Duration,
    connected_at: Duration,
    routes_epoch: u64,
}

keep!(struct Node { role, connected, last_seen, connected_at, routes_epoch });

/// A table, or the largest of several alike, and its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub held: usize,
    pub max: usize,
}

/// The pure controller.
#[derive(Debug)]
pub struct Core {
    config: Config,
    topology: Topology,
    nodes: BTreeMap<NodeId, Node>,
    links: Links,
    losses: Losses,
    flows: Flows,
    jobs: Jobs,
    inference: Inference,
    health: Health,
    silent: Silent,
    cables: Cables,
    cabling: Cabling,
    stragglers: Stragglers,
    incidents: Incidents,
    trials: VecDeque<Trial>,
    given_back: BTreeMap<Cause, u64>,
    frozen: bool,
    next_lease: u64,
    next_tick: Duration,
    next_refresh: Duration,
    commands: VecDeque<Command>,
}

impl Core {
    /// `lease_base` makes lease numbers unique over restarts of the controller.
    #[must_use]
    pub fn new(config: Config, plan: Plan, frozen: bool, lease_base: u64) -> Core {
        Core {
            health: Health::new(config.health.clone()),
            cables: Cables::new(config.hotspot.cable_window),
            config,
            topology: Topology::new(plan),
            nodes: BTreeMap::new(),
            links: Links::default(),
            losses: Losses::default(),
            flows: Flows::default(),
            jobs: Jobs::default(),
            inference: Inference::default(),
            silent: Silent::default(),
            cabling: Cabling::default(),
            stragglers: Stragglers::default(),
            incidents: Incidents::default(),
            trials: VecDeque::new(),
            given_back: BTreeMap::new(),
            frozen,
            next_lease: lease_base,
            next_tick: TICK,
            next_refresh: Duration::ZERO,
            commands: VecDeque::new(),
        }
    }

    /// Takes a fact that arrived at `now`.
    pub fn handle_input(&mut self, input: Input, now: Duration) {
        match input {
            Input::NodeConnected {
                node,
                role,
                held_leases,
            } => self.node_connected(&node, role, &held_leases, now),
            Input::NodeLost { node } => self.node_lost(&node, now),
            Input::InventoryReported { node, .. } if !self.nodes.contains_key(&node) => {}
            Input::InventoryReported { node, inventory } => {
                let epoch = inventory.routes_epoch;
                let changed = self.topology.inventory_reported(&node, inventory);
                if let Some(known) = self.nodes.get_mut(&node)
                    && (changed || known.routes_epoch != epoch)
                {
                    known.routes_epoch = epoch;
                    self.flows.routes_changed(&node);
                }
            }
            Input::ColumnsDeclared { node, columns } => {
                if self.nodes.contains_key(&node) {
                    self.silent.declared(&node, &columns);
                    self.health.declared(&node, columns, &self.topology);
                }
            }
            Input::EventReported { node, event } => {
                if self.nodes.contains_key(&node) {
                    self.health.event_seen(&node, event, now);
                }
            }
            Input::SampleReported { node, mut sample } => {
                sample.elapsed = sample.elapsed.filter(|e| *e <= INTERVAL_MAX);
                self.sampled(&node, &mut sample, now);
            }
            Input::PathsResolved { node, .. } if !self.nodes.contains_key(&node) => {}
            Input::PathsResolved { node, hops } => {
                for hop in hops {
                    self.flows.resolved(&node, hop);
                }
                self.detect(now);
            }
            Input::LeaseReported {
                node,
                lease,
                outcome,
                reason,
            } => self.lease_reported(&node, lease, outcome, &reason, now),
            Input::FreezeSet { frozen } => self.freeze(frozen, now),
            Input::SegmentBegun => self.segment_begun(now),
            Input::TrialRequested { job, pins } => {
                let verdict = "asked for by an operator".to_owned();
                let outcome = self.propose(&job, pins, (String::new(), verdict), None, now);
                self.commands.push_back(Command::AnswerTrial { outcome });
            }
            Input::LeaseEndRequested { lease } => {
                for trial in self.trials.iter_mut().filter(|t| t.lease == lease) {
                    trial.roll_back(
                        Cause::Operator,
                        "ended by an operator".into(),
                        &self.config.trial,
                        now,
                        &mut self.commands,
                    );
                }
            }
        }
        self.trials_tick(now);
    }

    /// When [`Core::handle_timeout`] wants to be called, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> (Duration, &'static str) {
        (self.next_tick, "look at links, flows and trials")
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        if now >= self.next_refresh && self.topology.refresh() {
            self.refresh_again(now);
        }
        self.flows.expire(now);
        self.losses.expire(now);
        self.jobs.expire(now, self.config.trial.job_gone);
        self.stragglers.expire(now, self.config.trial.job_gone);
        self.forget_nodes(now);
        self.infer(now);
        self.detect(now);
        let intervals = u32::try_from(self.health.interval().as_secs()).unwrap_or(u32::MAX);
        let clear_after = self.config.hotspot.clear_after;
        let clear_after = clear_after.saturating_mul(intervals.max(1));
        for id in self.incidents.expire(now, clear_after) {
            self.note(&id, "resolved".into());
        }
        self.trials_tick(now);
    }

    fn refresh_again(&mut self, now: Duration) {
        let links = u32::try_from(self.topology.links_held()).unwrap_or(u32::MAX);
        self.next_refresh = now + REFRESH_PER_LINK * links;
    }

    /// What the shell has to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn node_connected(&mut self, node: &NodeId, role: Role, held: &[u64], now: Duration) {
        if !self.has_room_for(node) {
            return;
        }
        self.nodes.insert(
            node.clone(),
            Node {
                role,
                connected: true,
                last_seen: now,
                connected_at: now,
                routes_epoch: 0,
            },
        );
        self.topology.node_connected(node, role);
        self.health.connected(node, role, now);
        self.flows.routes_changed(node);
        for lease in held {
            let live = self
                .trials
                .iter()
                .any(|t| t.lease == *lease && t.is_live() && t.nodes.contains_key(node));
            if !live {
                let reason = "the controller knows no such lease".to_owned();
                self.commands.push_back(Command::End {
                    node: node.clone(),
                    lease: *lease,
                    reason,
                });
            }
        }
    }

    /// Whether a node may connect: it is known, or there is room.
    #[must_use]
    pub fn has_room_for(&self, node: &NodeId) -> bool {
        self.nodes.len() < NODES_MAX || self.nodes.contains_key(node)
    }

    fn forget_nodes(&mut self, now: Duration) {
        let gone = |n: &Node| !n.connected && now.saturating_sub(n.last_seen) >= NODE_GONE;
        let (topology, flows) = (&mut self.topology, &mut self.flows);
        let (health, silent) = (&mut self.health, &mut self.silent);
        self.nodes.retain(|id, node| {
            let keep = !gone(node);
            if !keep {
                topology.node_forgotten(id);
                health.forget(id);
                silent.forget(id);
                flows.node_forgotten(id);
            }
            keep
        });
    }

    fn node_lost(&mut self, node: &NodeId, now: Duration) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.connected = false;
        }
        self.health.lost(node);
        for trial in &mut self.trials {
            trial.node_lost(node, &self.config.trial, now, &mut self.commands);
        }
    }

    fn sampled(&mut self, node: &NodeId, sample: &mut NodeSample, now: Duration) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        known.last_seen = now;
        let known_role = known.role;
        self.inference.sampled(node, sample, &self.topology, now);
        let sample = &*sample;
        self.jobs.sampled(node, sample, now);
        self.stragglers.sampled(node, sample, now);
        let bytes = sample.flows.iter().map(|f| f.bytes);
        let sent = bytes.fold(0, u64::saturating_add);
        self.silent
            .sampled(node, &sample.values, sent, sample.elapsed, now);
        let job = sample.job();
        self.health
            .sampled(node, &sample.values, sample.elapsed, job, now);
        self.ports_sampled(node, sample, known_role, now);
        let Some(elapsed) = sample.elapsed else {
            return;
        };
        for flow in &sample.flows {
            self.flows.sampled(flow, elapsed, now);
        }
        for key in &sample.flows_closed {
            self.flows.closed(key);
        }
    }

    /// Takes what a sample tells of the links that leave its node.
    fn ports_sampled(&mut self, node: &NodeId, sample: &NodeSample, role: Role, now: Duration) {
        let is_switch = role == Role::Switch;
        let interval = sample.elapsed.map(|elapsed| Interval {
            at: now,
            elapsed,
            busy: self.jobs.busy_share(now.saturating_sub(elapsed), now),
        });
        let links = self.topology.links_of(node);
        // Both are in the order of names: as a rule the next is the one behind the last.
        let mut next = 0;
        for port in &sample.ports {
            let is_next = links.get(next).is_some_and(|(name, _)| *name == port.port);
            let place = if is_next {
                Ok(next)
            } else {
                links.binary_search_by(|(name, _)| name.cmp(&port.port))
            };
            let Ok(n) = place else { continue };
            next = n + 1;
            let link = links[n].1;
            // A host's interface does not count what its adapter sends past the kernel.
            if is_switch && !self.topology.leads_to_host(link) {
                self.cables.sampled(link, port, sample.elapsed, now);
            }
            let Some(interval) = &interval else {
                continue;
            };
            let capacity = self.topology.capacity_of(link);
            let limits = &self.config.hotspot;
            self.links.sampled(link, port, interval, capacity, limits);
            if is_switch {
                let elapsed = interval.elapsed;
                self.losses
                    .sampled(link, port, elapsed, &self.topology, now);
            }
        }
    }

    fn note(&mut self, subject: &str, text: String) {
        self.commands.push_back(Command::Note {
            subject: subject.to_owned(),
            text,
        });
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    #[must_use]
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    #[must_use]
    pub fn inference(&self) -> &Inference {
        &self.inference
    }

    #[must_use]
    pub fn incidents(&self) -> &Incidents {
        &self.incidents
    }

    #[must_use]
    pub fn trials(&self) -> &VecDeque<Trial> {
        &self.trials
    }

    /// Changes given back since the start, by cause.
    #[must_use]
    pub fn given_back(&self, cause: Cause) -> u64 {
        self.given_back.get(&cause).copied().unwrap_or(0)
    }

    /// How full every table is.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let own = [
            ("nodes", self.nodes.len(), NODES_MAX),
            ("trials", self.trials.len(), act::TRIALS_MAX),
        ];
        let all = own
            .into_iter()
            .chain(self.topology.tables())
            .chain(self.links.tables())
            .chain(self.losses.tables())
            .chain(self.flows.tables())
            .chain(self.jobs.tables())
            .chain(self.inference.tables())
            .chain(self.incidents.tables());
        all.map(|(name, held, max)| Table { name, held, max })
            .collect()
    }

    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }
}
