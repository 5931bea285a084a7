//! A fleet of agents against the real controller: every frame is encoded, carried, decoded and judged as in a running
//! system, but by a clock that the simulator turns.

use crate::agent::Agent;
use crate::columns::GPU_ADDRESSES;
use crate::fabric::Tier;
use crate::job::{Pattern, Spec};
use crate::noise::Noise;
use crate::world::World;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_controller::brain::{Action, Brain, Event};
use weir_controller_core::incident::Incident;
use weir_controller_core::verdict::{Class, Subject, Verdict};
use weir_controller_core::{Command, Config};
use weir_sim::num::whole;
use weir_wire::v1::{self, agent_message::Body};

/// A switch answers where it would send a flow after this long.
const ANSWER_S: f64 = 0.02;
/// A node's links come up this long after its agent.
const LINKS_AFTER_S: f64 = 6.0;

/// An incident as the simulator keeps it.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: String,
    /// Which life of the controller opened it.
    pub life: u32,
    pub opened_s: f64,
    pub resolved_s: Option<f64>,
    pub class: Class,
    /// Places that it named, and when first.
    pub entities: Vec<(f64, Subject)>,
    pub verdict: Verdict,
    /// The incident that the controller says it follows from.
    pub root: Option<String>,
}

/// Sizes that the controller was fed with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fed {
    pub frames: u64,
    pub bytes: u64,
    /// Values of columns, flows and calls, changed or not.
    pub samples: u64,
}

/// A stream that the controller closed; there is no reason for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    pub at_s: f64,
    pub node: String,
    pub reason: String,
}

/// The fleet.
pub struct Fleet {
    pub world: World,
    pub brain: Brain,
    pub agents: Vec<Agent>,
    pub found: Vec<Found>,
    pub fed: Fed,
    pub refused: Vec<Refused>,
    interval_s: f64,
    /// Steps of the world in an interval.
    steps: u32,
    noise: Vec<(f64, usize, Noise)>,
    /// On their way, by when they arrive and in which order they left.
    wire: BTreeMap<(u64, u64), Event>,
    left: u64,
    /// Agents that come back, and whether after a boot.
    away: BTreeMap<usize, (f64, bool)>,
    slow_until: BTreeMap<usize, f64>,
    life: u32,
    opened: u64,
    known: BTreeMap<(u32, String), usize>,
    open: BTreeSet<usize>,
    ups: Vec<bool>,
    swapped: Vec<(usize, usize)>,
    /// Agents by the number of their node, if it has one, and by its name.
    of_node: Vec<Option<usize>>,
    of_name: BTreeMap<String, usize>,
    encoded: Vec<u8>,
}

impl Fleet {
    /// A fleet whose agents connect in the first interval. `noise` has the first event last.
    #[must_use]
    pub fn new(
        world: World,
        shape: &crate::scenario::Shape,
        noise: Vec<(f64, usize, Noise)>,
    ) -> Fleet {
        let nodes = 0..world.fabric.nodes.len();
        let agents = nodes
            .filter(|n| world.site.switches_tell() || world.fabric.nodes[*n].tier == Tier::Host);
        let agents = agents.map(|n| Agent::new(&world, n, shape.gpus, shape.nvlinks, shape.seed));
        let agents: Vec<Agent> = agents.collect();
        let mut fleet = Fleet {
            brain: Brain::new(Config::default(), world.plan(), false, 0),
            away: (0..agents.len()).map(|n| (n, (0.0, false))).collect(),
            of_node: vec![None; world.fabric.nodes.len()],
            of_name: BTreeMap::new(),
            ups: world.physics.up.clone(),
            swapped: Vec::new(),
            agents,
            found: Vec::new(),
            fed: Fed::default(),
            refused: Vec::new(),
            interval_s: shape.interval_s,
            steps: shape.steps.max(1),
            noise,
            wire: BTreeMap::new(),
            left: 0,
            slow_until: BTreeMap::new(),
            life: 0,
            opened: 0,
            known: BTreeMap::new(),
            open: BTreeSet::new(),
            encoded: Vec::new(),
            world,
        };
        // The order in which frames arrive in an interval is theirs for good.
        fleet.agents.sort_by(|a, b| a.phase.total_cmp(&b.phase));
        for (n, agent) in fleet.agents.iter().enumerate() {
            fleet.of_node[agent.node] = Some(n);
            fleet.of_name.insert(agent.name.clone(), n);
        }
        fleet
    }

    /// One interval.
    pub fn step(&mut self) {
        let steps = f64::from(self.steps);
        let length = self.interval_s / steps;
        for step in 0..self.steps {
            let begin = self.world.now_s;
            self.make_noise(begin);
            self.world.step(length);
            self.tell_changes(length);
            self.tell_events(begin, begin + length);
            for n in 0..self.agents.len() {
                let phase = self.agents[n].phase;
                if whole(phase * steps) == u64::from(step) {
                    // Counters are those of the end of a step: where there are several, that is when they are read.
                    let at = if self.steps == 1 {
                        begin + phase * length
                    } else {
                        begin + length * (0.99 + 0.01 * (phase * steps).fract())
                    };
                    self.sample(n, (begin, length), at);
                } else {
                    self.agents[n].observe(&self.world, length);
                }
            }
            self.deliver(self.world.now_s);
        }
    }

    fn send(&mut self, at_s: f64, event: Event) {
        self.left += 1;
        self.wire.insert((whole(at_s * 1e6), self.left), event);
    }

    fn message(&mut self, n: usize, at_s: f64, body: Body) {
        let message = v1::AgentMessage { body: Some(body) };
        // Over the wire and back, as gRPC would.
        self.encoded.clear();
        let encoded = message.encode(&mut self.encoded);
        let carried = encoded.map_err(|e| e.to_string()).and_then(|()| {
            v1::AgentMessage::decode(self.encoded.as_slice()).map_err(|e| e.to_string())
        });
        let node = self.agents[n].name.clone();
        match carried {
            Ok(message) => {
                self.fed.bytes += self.encoded.len() as u64;
                self.send(at_s, Event::Message { node, message });
            }
            Err(reason) => self.refused.push(Refused { at_s, node, reason }),
        }
    }

    /// The agent's sample of an interval, in the step of `length` that began at `begin`.
    fn sample(&mut self, n: usize, (begin, length): (f64, f64), at: f64) {
        if let Some((back, booted)) = self.away.get(&n).copied() {
            if back > at {
                self.agents[n].observe(&self.world, length);
                return;
            }
            self.away.remove(&n);
            if booted {
                self.agents[n].counters.boot(true);
            }
            self.connect(n, at);
        }
        self.agents[n].observe(&self.world, length);
        if self.slow_until.get(&n).is_some_and(|until| *until <= begin) {
            self.slow_until.remove(&n);
            self.agents[n].delay_s = 0.0;
        }
        let agent = &mut self.agents[n];
        if agent.skip > 0 {
            agent.skip -= 1;
            return;
        }
        let frame = agent.frame(&self.world, at);
        if agent.lose > 0 {
            agent.lose -= 1;
            return;
        }
        let (twice, at) = (std::mem::take(&mut agent.twice), at + agent.delay_s);
        self.fed.frames += 1;
        let again = twice.then(|| frame.clone());
        self.message(n, at + 1e-3, Body::Frame(frame));
        if let Some(frame) = again {
            self.message(n, at + 2e-3, Body::Frame(frame));
        }
    }

    fn connect(&mut self, n: usize, at: f64) {
        let agent = &mut self.agents[n];
        let is_host = self.world.fabric.nodes[agent.node].tier == Tier::Host;
        let hello = agent.hello(is_host);
        let node = agent.name.clone();
        let inventory = agent.inventory(&self.world);
        self.end_stream(&node, at);
        self.send(at, Event::Connected { node, hello });
        self.message(n, at + 1e-4, Body::Inventory(inventory));
    }

    /// A new stream of the node begins at `at`: of the one before, whose frames may be late, nothing is taken any more.
    fn end_stream(&mut self, node: &str, at: f64) {
        let late = self.wire.range((whole(at * 1e6), 0)..);
        let late = late.filter(|(_, event)| node_of(event) == Some(node));
        let late: Vec<(u64, u64)> = late.map(|(key, _)| *key).collect();
        for key in late {
            if let Some(Event::Lost { node }) = self.wire.remove(&key) {
                self.send(at, Event::Lost { node });
            }
        }
    }

    fn lose(&mut self, n: usize, at: f64, back: f64, booted: bool) {
        if !std::mem::take(&mut self.agents[n].connected) {
            return;
        }
        self.agents[n].restart(back);
        let node = self.agents[n].name.clone();
        // What it sent before arrives before.
        self.send(at + self.agents[n].delay_s, Event::Lost { node });
        self.away.insert(n, (back, booted));
    }

    /// Inventories of nodes whose links changed, and new paths.
    fn tell_changes(&mut self, length: f64) {
        if self.ups == self.world.physics.up && self.swapped == self.world.physics.swapped {
            return;
        }
        let swapped = self
            .swapped
            .iter()
            .chain(&self.world.physics.swapped)
            .flat_map(|(a, b)| [*a, *b]);
        let changed: BTreeSet<usize> = (0..self.ups.len())
            .filter(|l| self.ups[*l] != self.world.physics.up[*l])
            .chain(swapped)
            .map(|l| self.world.fabric.ports[l].node)
            .collect();
        let before = std::mem::replace(&mut self.ups, self.world.physics.up.clone());
        self.swapped.clone_from(&self.world.physics.swapped);
        let now = self.world.now_s;
        for n in 0..self.agents.len() {
            // Routes change everywhere: the next switch upstream avoids what is behind the link.
            let agent = &mut self.agents[n];
            let tier = self.world.fabric.nodes[agent.node].tier;
            if !agent.connected || (tier == Tier::Host && !changed.contains(&agent.node)) {
                continue;
            }
            agent.routes_changed();
            for link in &self.world.fabric.nodes[agent.node].ports {
                let is_up = self.world.physics.up[*link];
                if before[*link] != is_up && tier == Tier::Host {
                    let port = &self.world.fabric.ports[*link].name;
                    let name = if is_up { "link_up" } else { "link_down" };
                    agent.see(event("kmsg", name, port, None, !is_up, ""));
                }
            }
            let inventory = agent.inventory(&self.world);
            let at = now - length + agent.phase * length;
            self.message(n, at, Body::Inventory(inventory));
        }
    }

    /// Events of faults that are due.
    fn tell_events(&mut self, begin: f64, until: f64) {
        let world = &self.world;
        let due: Vec<(usize, v1::Event)> = world
            .faults
            .iter()
            .flat_map(|f| &f.events)
            .filter(|(at, ..)| (begin..until).contains(at))
            .map(|(_, node, event)| (*node, event.clone()))
            .collect();
        for (node, event) in due {
            if let Some(n) = self.of_node[node] {
                self.agents[n].see(event);
            }
        }
    }

    fn make_noise(&mut self, begin: f64) {
        while let Some((at, node, noise)) = self.noise.last().copied() {
            if at > begin {
                return;
            }
            self.noise.pop();
            if noise == Noise::ControllerRestart {
                self.restart_controller(begin);
                continue;
            }
            let Some(n) = self.of_node[node] else {
                continue;
            };
            let is_host = self.world.fabric.nodes[node].tier == Tier::Host;
            match noise {
                Noise::AgentRestart { down_s } => self.lose(n, begin, begin + down_s, false),
                Noise::Reboot { down_s } => {
                    let busy =
                        !self.world.flows_of[node].is_empty() || self.world.job_of[node].is_some();
                    let faulty = self.world.faults.iter().any(|f| {
                        f.events.iter().any(|(_, at, _)| *at == node)
                            || f.entities.iter().any(|e| {
                                e.node().is_some_and(|e| e.as_str() == self.agents[n].name)
                            })
                    });
                    let back = begin + down_s + LINKS_AFTER_S;
                    // No scheduler starts a job on a node that boots.
                    let mut booked = self.world.schedule.iter().filter(|s| s.start_s <= back);
                    let booked = booked.any(|s| s.nodes.contains(&node));
                    if is_host && !busy && !booked && !faulty && self.agents[n].connected {
                        self.world.boot(node, back);
                        self.lose(n, begin, begin + down_s, true);
                    }
                }
                Noise::Missing { samples } => self.agents[n].skip = samples,
                Noise::LostFrames { frames } => self.agents[n].lose = frames,
                Noise::Twice => self.agents[n].twice = true,
                Noise::Slow { delay_s, for_s } => {
                    self.agents[n].delay_s = delay_s;
                    self.slow_until.insert(n, begin + for_s);
                }
                Noise::CounterReset { nic, told } => {
                    if is_host {
                        self.agents[n].counters.reset(nic, told);
                    }
                }
                Noise::Checkpoint { for_s, percent } => {
                    self.checkpoint(node, begin, for_s, percent)
                }
                Noise::IgnoredXid { gpu } => {
                    if is_host {
                        let text =
                            "channel torn down as a follow-on of another error or a killed process";
                        let mut xid =
                            event("kmsg", "xid", GPU_ADDRESSES[gpu], Some(43), false, text);
                        xid.severity = v1::Severity::Info.into();
                        self.agents[n].see(xid);
                    }
                }
                Noise::ControllerRestart => {}
            }
        }
    }

    /// A few nodes of the job write a little, for a moment.
    fn checkpoint(&mut self, node: usize, begin: f64, for_s: f64, percent: u32) {
        let Some(j) = self.world.job_of[node] else {
            return;
        };
        let Some(to) = self.world.fabric.storage() else {
            return;
        };
        let job = &self.world.jobs[j];
        let nodes: Vec<usize> = job.spec.nodes.iter().copied().take(4).collect();
        let spec = Spec {
            name: job.spec.name.clone(),
            nodes,
            pattern: Pattern::Storage { to, percent },
            start_s: begin,
            end_s: begin + for_s,
            compute_s: 0.0,
            transfer_s: 1.0,
            jitter: 1.0,
            blocking: false,
        };
        self.world.start(spec);
    }

    fn restart_controller(&mut self, begin: f64) {
        self.deliver(begin);
        self.collect(begin);
        self.brain = Brain::new(Config::default(), self.world.plan(), false, 0);
        self.life += 1;
        self.opened = 0;
        self.open.clear();
        self.wire.clear();
        for n in 0..self.agents.len() {
            if std::mem::take(&mut self.agents[n].connected) {
                let back = begin + 0.5 + 2.0 * self.agents[n].phase;
                self.away.insert(n, (back, false));
            }
        }
    }

    /// Hands over what arrives until then, and lets the core's timer fire in between.
    fn deliver(&mut self, until_s: f64) {
        let until = whole(until_s * 1e6);
        loop {
            let next = self
                .wire
                .first_key_value()
                .map(|((at, _), _)| *at)
                .filter(|at| *at < until);
            let tick =
                u64::try_from(self.brain.core.poll_timeout().0.as_micros()).unwrap_or(u64::MAX);
            if tick < next.unwrap_or(until) {
                let actions = self.brain.handle(Event::Tick, Duration::from_micros(tick));
                self.perform(actions, tick);
                self.collect(tick as f64 / 1e6);
                continue;
            }
            let (Some(at), Some(((..), event))) = (next, self.wire.pop_first()) else {
                break;
            };
            let actions = self.brain.handle(event, Duration::from_micros(at));
            self.perform(actions, at);
        }
        self.fed.samples += std::mem::take(&mut self.brain.samples);
    }

    fn perform(&mut self, actions: Vec<Action>, at: u64) {
        for action in actions {
            match action {
                Action::Core(Command::QueryPaths { node, keys }) => {
                    let Some(n) = self.of_name.get(node.as_str()).copied() else {
                        continue;
                    };
                    let answer = self.agents[n].paths(&self.world, &keys);
                    self.message(n, at as f64 / 1e6 + ANSWER_S, Body::Path(answer));
                }
                Action::Resync { node } => {
                    if let Some(n) = self.of_name.get(&node) {
                        self.agents[*n].key = true;
                    }
                }
                Action::EventsTaken { node, seq } => {
                    if let Some(n) = self.of_name.get(&node) {
                        self.agents[*n].acknowledged(seq);
                    }
                }
                Action::Close { node, reason } => {
                    let at_s = at as f64 / 1e6;
                    self.refused.push(Refused { at_s, node, reason });
                }
                Action::Core(_) | Action::Pinglist { .. } | Action::Judged { .. } => {}
            }
        }
    }

    /// Takes note of incidents that are new, changed or over.
    fn collect(&mut self, at_s: f64) {
        let incidents = self.brain.core.incidents();
        let opened: u64 = Class::ALL
            .iter()
            .map(|c| incidents.opened_by_class(*c))
            .sum();
        if opened == self.opened && self.open.is_empty() {
            return;
        }
        let life = self.life;
        let news = usize::try_from(opened - self.opened).unwrap_or(usize::MAX);
        let mut fresh: Vec<&Incident> = incidents.iter().rev().take(news).collect();
        fresh.reverse();
        for incident in fresh {
            self.known
                .insert((life, incident.id.clone()), self.found.len());
            self.open.insert(self.found.len());
            self.found.push(Found {
                id: incident.id.clone(),
                life,
                opened_s: incident.opened_at.as_secs_f64(),
                resolved_s: None,
                class: incident.verdict.class,
                entities: vec![(at_s, incident.verdict.entity.clone())],
                verdict: incident.verdict.clone(),
                root: incident.root.clone(),
            });
        }
        self.opened = opened;
        for incident in incidents.iter() {
            let Some(n) = self
                .known
                .get(&(life, incident.id.clone()))
                .filter(|n| self.open.contains(n))
            else {
                continue;
            };
            let found = &mut self.found[*n];
            if found
                .entities
                .iter()
                .all(|(_, e)| *e != incident.verdict.entity)
            {
                found.entities.push((at_s, incident.verdict.entity.clone()));
            }
            found.verdict.clone_from(&incident.verdict);
            // A link to a root stays told, though the root may be over before it.
            found.root = incident.root.clone().or_else(|| found.root.take());
            found.resolved_s = incident.resolved_at.map(|r| r.as_secs_f64());
            if found.resolved_s.is_some() {
                self.open.remove(n);
            }
        }
    }
}

/// The node whose stream an event is of.
fn node_of(event: &Event) -> Option<&str> {
    match event {
        Event::Connected { node, .. } | Event::Message { node, .. } | Event::Lost { node } => {
            Some(node)
        }
        Event::Tick
        | Event::SegmentDue
        | Event::SegmentBegun
        | Event::Freeze { .. }
        | Event::Trial { .. }
        | Event::EndLease { .. } => None,
    }
}

/// An event of an agent.
#[must_use]
pub fn event(
    source: &str,
    name: &str,
    subject: &str,
    code: Option<u32>,
    is_warning: bool,
    text: &str,
) -> v1::Event {
    v1::Event {
        source: source.to_owned(),
        name: name.to_owned(),
        subject: subject.to_owned(),
        code,
        severity: if is_warning {
            v1::Severity::Warning
        } else {
            v1::Severity::Info
        }
        .into(),
        text: text.to_owned(),
        action: String::new(),
        ..v1::Event::default()
    }
}
