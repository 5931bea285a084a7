//! A small fabric at the level of messages: two leaves, two spines, eight hosts, a ring whose flows all
//! take one spine until a pin moves them. Its agents answer as real ones do, and tell of what is wrong.

use crate::faults::{self, Column, Fault, Faults, Moved, Port};
use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use weir_controller::brain::{Action, Brain, Event};
use weir_controller::config::RawConfig;
use weir_controller::record::{About, Recorder, Settings};
use weir_controller::topology_file;
use weir_controller_core::Command;
use weir_wire::columns::Columns;
use weir_wire::frame::{CallRow, CallRows, FlowRow, FlowRows};
use weir_wire::v1::{self, agent_message::Body};

const LINK_BPS: f64 = 200e6;
const FLOW_BPS: f64 = 95e6;
/// Every edge of the ring crosses the spines.
const RING: [(u8, u8); 8] = [
    (1, 1),
    (2, 1),
    (1, 2),
    (2, 2),
    (1, 3),
    (2, 3),
    (1, 4),
    (2, 4),
];
pub const STARTED: Duration = Duration::from_secs(1_700_000_000);

/// One agent and its stream.
#[derive(Default)]
struct Agent {
    ports: Vec<String>,
    instance: u64,
    schema: u32,
    columns: Vec<Column>,
    values: BTreeMap<Column, u64>,
    /// Added to the clock that it stamps its frames with.
    ahead: Duration,
    /// Seconds for which nothing is heard of it.
    silent: u32,
    seq: u64,
    key: bool,
    sent: Columns,
    flows: FlowRows,
    calls: CallRows,
    epoch: u64,
    /// Events that were not acknowledged, and the last that this stream was told.
    events: Vec<v1::Event>,
    told: u64,
    acknowledged: u64,
}

pub struct World {
    pub brain: Brain,
    pub recorder: Recorder,
    pub now: Duration,
    /// Whether the job runs.
    pub busy: bool,
    pub faults: Faults,
    /// Everything that was done, as text.
    pub done: Vec<String>,
    agents: BTreeMap<String, Agent>,
    /// Leaf and destination to spine.
    spine: BTreeMap<(u8, Ipv4Addr), u8>,
    leases: BTreeMap<(String, u64), Vec<Ipv4Addr>>,
    events: VecDeque<Event>,
}

fn host(l: u8, h: u8) -> String {
    format!("h{l}{h}")
}

fn address(l: u8, h: u8) -> Ipv4Addr {
    [10, l, h, 2].into()
}

fn digit(name: &str, at: usize) -> u8 {
    name.as_bytes()[at] - b'0'
}

fn topology() -> String {
    let (mut nodes, mut links) = (String::new(), String::new());
    for n in 1..=2 {
        nodes += &format!("  - {{name: l{n}, role: leaf}}\n  - {{name: s{n}, role: spine}}\n");
        for s in 1..=2 {
            links += &format!("  - {{a: \"l{n}:up{s}\", b: \"s{s}:down{n}\", rate: 200Mbit}}\n");
        }
        for h in 1..=4 {
            nodes += &format!("  - {{name: {}, role: host}}\n", host(n, h));
            links += &format!(
                "  - {{a: \"{}:eth0\", b: \"l{n}:h{h}\", rate: 200Mbit}}\n",
                host(n, h)
            );
        }
    }
    format!("nodes:\n{nodes}links:\n{links}")
}

impl World {
    /// A fabric that is connected. `run` numbers the start of the controller.
    pub fn new(directory: &Path, run: u64, segment_bytes: u64, total_bytes: u64) -> World {
        let settings = Settings {
            directory: directory.to_owned(),
            segment_bytes,
            total_bytes,
        };
        let raw = RawConfig {
            mode: Some("act".into()),
            ..RawConfig::default()
        };
        let core = raw.check(Path::new("controller.yaml")).unwrap().core;
        let plan = topology_file::parse(&topology(), Path::new("topology.yaml")).unwrap();
        let about = About {
            lease_base: run,
            frozen: false,
            started: STARTED,
            config: core.clone(),
            plan: plan.clone(),
            config_text: serde_norway::to_string(&raw).unwrap(),
            topology_text: topology(),
        };
        let mut world = World {
            brain: Brain::new(core, plan, false, run),
            recorder: Recorder::create(settings, about).unwrap(),
            now: Duration::ZERO,
            busy: true,
            faults: Faults::default(),
            done: Vec::new(),
            agents: BTreeMap::new(),
            spine: BTreeMap::new(),
            leases: BTreeMap::new(),
            events: VecDeque::new(),
        };
        for l in 1..=2 {
            for h in 1..=4 {
                world.connect(&host(l, h), &["eth0"]);
            }
            world.connect(&format!("l{l}"), &["h1", "h2", "h3", "h4", "up1", "up2"]);
            world.connect(&format!("s{l}"), &["down1", "down2"]);
        }
        world
    }

    fn connect(&mut self, node: &str, ports: &[&str]) {
        let ports: Vec<String> = ports.iter().map(|p| (*p).to_owned()).collect();
        let columns = faults::columns(node, &ports);
        let agent = Agent {
            values: columns.iter().map(|c| (c.clone(), 0)).collect(),
            ports,
            columns,
            ..Agent::default()
        };
        self.stream(node, agent);
    }

    /// An agent's stream begins.
    fn stream(&mut self, node: &str, agent: Agent) {
        let role = if node.starts_with('h') {
            v1::Role::Host
        } else {
            v1::Role::Switch
        };
        let hello = v1::Hello {
            node: node.to_owned(),
            role: role.into(),
            instance: agent.instance,
            schema: Some(faults::schema(1, &agent.columns)),
            ..v1::Hello::default()
        };
        let agent = Agent {
            key: true,
            schema: 1,
            sent: Columns::new(agent.columns.len()),
            flows: FlowRows::default(),
            calls: CallRows::default(),
            seq: 0,
            told: 0,
            acknowledged: 0,
            ..agent
        };
        self.agents.insert(node.to_owned(), agent);
        self.event(Event::Connected {
            node: node.to_owned(),
            hello,
        });
        self.inventory(node);
        self.perform();
    }

    /// A stream breaks, and comes back after some seconds; so does its agent, if it is `killed`.
    pub fn reconnect(&mut self, node: &str, seconds: u32, killed: bool) {
        let Some(mut agent) = self.agents.remove(node) else {
            return;
        };
        self.event(Event::Lost {
            node: node.to_owned(),
        });
        self.perform();
        (0..seconds).for_each(|_| self.second());
        if killed {
            agent.instance += 1;
            agent.events.clear();
            agent.values.values_mut().for_each(|v| *v = 0);
        }
        self.stream(node, agent);
    }

    /// A node goes for good.
    pub fn lose(&mut self, node: &str) {
        if self.agents.remove(node).is_some() {
            let node = node.to_owned();
            self.event(Event::Lost { node });
            self.perform();
        }
    }

    /// Time passes of which nobody tells.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn silence(&mut self, node: &str, seconds: u32) {
        let agent = self.agents.get_mut(node);
        agent.into_iter().for_each(|agent| agent.silent = seconds);
    }

    /// An agent's clock jumps.
    pub fn step_clock(&mut self, node: &str, ahead: Duration) {
        let agent = self.agents.get_mut(node);
        agent.into_iter().for_each(|agent| agent.ahead = ahead);
    }

    /// A port or GPU comes or goes: other columns from here on.
    pub fn redeclare(&mut self, node: &str) {
        let Some(agent) = self.agents.get_mut(node) else {
            return;
        };
        let all = faults::columns(node, &agent.ports);
        let left_out = if agent.columns.len() == all.len() {
            1
        } else {
            0
        };
        agent.columns = all[..all.len() - left_out].to_vec();
        agent.schema += 1;
        (agent.key, agent.sent) = (true, Columns::new(agent.columns.len()));
        let schema = faults::schema(agent.schema, &agent.columns);
        self.say(node, Body::Schema(schema));
    }

    /// A node sees something happen.
    pub fn happens(&mut self, node: &str, name: &str, subject: &str, severity: v1::Severity) {
        let Some(agent) = self.agents.get_mut(node) else {
            return;
        };
        agent.epoch += 1;
        agent.events.push(v1::Event {
            source: "kmsg".into(),
            name: name.into(),
            subject: subject.into(),
            severity: severity.into(),
            text: format!("{name} at {:?}", self.now),
            seq: agent.epoch,
            ..v1::Event::default()
        });
    }

    /// Begins a fault, or ends it.
    pub fn toggle(&mut self, fault: Fault, target: usize) {
        self.faults.toggle(fault, target);
        if fault == Fault::Miscabled {
            let nodes: Vec<String> = self.agents.keys().cloned().collect();
            nodes.iter().for_each(|node| self.inventory(node));
        }
    }

    fn inventory(&mut self, node: &str) {
        let agent = self.agents.get_mut(node).unwrap();
        agent.epoch += 1;
        let addresses = if node.starts_with('h') {
            vec![format!("{}/24", address(digit(node, 1), digit(node, 2)))]
        } else {
            Vec::new()
        };
        let miscabled = self.faults.target(Fault::Miscabled).is_some();
        // Hosts 1 and 2 of the first leaf change places.
        let place = move |l: u8, h: u8| match (l, h) {
            (1, 1..=2) if miscabled => (l, 3 - h),
            place => place,
        };
        let of_leaf = |l: u8, h: u8| Ipv4Addr::from([10, 100 + l, h, 1]);
        let port = |name: &String| {
            let port = v1::Port {
                name: name.clone(),
                up: true,
                addresses: addresses.clone(),
                ..v1::Port::default()
            };
            let (addresses, neighbour) = match (node.as_bytes()[0], name.as_bytes()[0]) {
                (b'h', _) => {
                    let (l, h) = place(digit(node, 1), digit(node, 2));
                    (port.addresses, of_leaf(l, h))
                }
                (b'l', b'h') => {
                    let (l, h) = (digit(node, 1), digit(name, 1));
                    let (to_l, to_h) = place(l, h);
                    (vec![format!("{}/32", of_leaf(l, h))], address(to_l, to_h))
                }
                _ => return port,
            };
            v1::Port {
                addresses,
                neighbours: vec![neighbour.to_string()],
                ..port
            }
        };
        let member = |port: &str| v1::EcmpMember {
            port: port.into(),
            ..v1::EcmpMember::default()
        };
        let group = v1::EcmpGroup {
            id: 100,
            members: ["up1", "up2"].map(member).to_vec(),
            ..v1::EcmpGroup::default()
        };
        let endpoint = |address: &String| v1::Endpoint {
            port: "eth0".into(),
            kind: Some(v1::endpoint::Kind::Udp(v1::UdpEndpoint {
                address: address.trim_end_matches("/24").into(),
                port: 9744,
                ..v1::UdpEndpoint::default()
            })),
        };
        let inventory = v1::Inventory {
            endpoints: addresses.iter().map(endpoint).collect(),
            ports: agent.ports.iter().map(port).collect(),
            groups: node.starts_with('l').then_some(group).into_iter().collect(),
            routes_epoch: agent.epoch,
        };
        self.say(node, Body::Inventory(inventory));
    }

    fn say(&mut self, node: &str, body: Body) {
        self.event(Event::Message {
            node: node.to_owned(),
            message: v1::AgentMessage { body: Some(body) },
        });
    }

    pub fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Lets the brain have what happened, and the agents do what it asks for.
    pub fn perform(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.recorder.append(self.now, &event);
            for action in self.brain.handle(event, self.now) {
                self.recorder.acted(self.now, &action);
                self.done.push(format!("{action:?}"));
                self.answer(action);
            }
        }
    }

    fn answer(&mut self, action: Action) {
        match action {
            Action::Resync { node } => {
                let agent = self.agents.get_mut(&node);
                agent.into_iter().for_each(|agent| agent.key = true);
            }
            Action::EventsTaken { node, seq } => {
                let agent = self.agents.get_mut(&node);
                agent.into_iter().for_each(|agent| agent.acknowledged = seq);
            }
            Action::Core(Command::QueryPaths { node, keys }) => {
                let hops = keys.into_iter().map(|(key, in_port)| {
                    let (out_port, group) = self.hop(node.as_str(), key.dst);
                    let key = v1::PathKey {
                        src_ipv4: key.src.to_bits(),
                        dst_ipv4: key.dst.to_bits(),
                        src_port: key.src_port.into(),
                        dst_port: key.dst_port.into(),
                        in_port: in_port.to_string(),
                    };
                    v1::PathHop {
                        key: Some(key),
                        out_port,
                        group,
                    }
                });
                let hops = hops.collect();
                self.say(node.as_str(), Body::Path(v1::PathAnswer { hops }));
            }
            Action::Core(Command::Grant {
                node, lease, pins, ..
            }) => {
                let leaf = digit(node.as_str(), 1);
                for pin in &pins {
                    self.spine.insert((leaf, pin.dst), digit(&pin.port, 2));
                }
                let dsts = pins.iter().map(|p| p.dst).collect();
                self.leases.insert((node.to_string(), lease), dsts);
                self.lease(node.as_str(), lease, v1::lease_report::State::Applied);
            }
            Action::Core(Command::End { node, lease, .. }) => {
                let leaf = digit(node.as_str(), 1);
                let held = self.leases.remove(&(node.to_string(), lease));
                for dst in held.into_iter().flatten() {
                    self.spine.remove(&(leaf, dst));
                }
                self.lease(node.as_str(), lease, v1::lease_report::State::Ended);
            }
            _ => {}
        }
    }

    fn lease(&mut self, node: &str, id: u64, state: v1::lease_report::State) {
        if !self.agents.contains_key(node) {
            return;
        }
        let report = v1::LeaseReport {
            id,
            state: state.into(),
            ..v1::LeaseReport::default()
        };
        self.inventory(node);
        self.say(node, Body::Lease(report));
    }

    fn spine_of(&self, leaf: u8, dst: Ipv4Addr) -> u8 {
        self.spine.get(&(leaf, dst)).copied().unwrap_or(1)
    }

    fn hop(&self, node: &str, dst: Ipv4Addr) -> (String, u32) {
        let [_, leaf, h, _] = dst.octets();
        match node.as_bytes()[0] {
            b'l' if digit(node, 1) == leaf => (format!("h{h}"), 0),
            b'l' => (format!("up{}", self.spine_of(digit(node, 1), dst)), 100),
            _ => (format!("down{leaf}"), 0),
        }
    }

    /// Ports that the edge of the ring which starts at `n` crosses.
    fn path(&self, n: usize) -> Vec<(String, String)> {
        let ((sl, sh), (dl, dh)) = (RING[n], RING[(n + 1) % RING.len()]);
        let spine = self.spine_of(sl, address(dl, dh));
        vec![
            (host(sl, sh), "eth0".into()),
            (format!("l{sl}"), format!("up{spine}")),
            (format!("s{spine}"), format!("down{dl}")),
            (format!("l{dl}"), format!("h{dh}")),
        ]
    }

    /// A second passes: frames of all agents, then four ticks of the controller.
    pub fn second(&mut self) {
        self.now += Duration::from_secs(1);
        let mut demand: BTreeMap<(String, String), f64> = BTreeMap::new();
        for n in 0..RING.len() {
            for port in self.path(n) {
                *demand.entry(port).or_default() += FLOW_BPS;
            }
        }
        let slow = demand.values().copied().fold(0.0, f64::max) / LINK_BPS;
        let slow = slow.max(1.0);
        for node in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.count(&node, &demand, slow);
            let agent = self.agents.get_mut(&node).unwrap();
            if agent.silent > 0 {
                agent.silent -= 1;
                continue;
            }
            let frame = self.frame(&node, slow);
            self.say(&node, Body::Frame(frame));
            self.perform();
        }
        for _ in 0..4 {
            self.now += Duration::from_micros(10);
            self.event(Event::Tick);
            self.perform();
            let memory = || self.brain.memory();
            if let Some(event) = self.recorder.tick(self.now, memory) {
                self.event(event);
                self.perform();
            }
        }
        // This clock is faster than any disk.
        self.recorder.wait(self.now);
    }

    /// A node counts what went through it.
    fn count(&mut self, node: &str, demand: &BTreeMap<Port, f64>, slow: f64) {
        let busy = self.busy;
        let asked = |port: &Port| demand.get(port).copied().filter(|_| busy).unwrap_or(0.0);
        let bytes = |port: &Port| whole(asked(port) / slow / 8.0);
        let moved = |port: &Port| Moved {
            tx_bytes: bytes(port),
            rx_bytes: bytes(&faults::peer(port)),
            full: asked(port) > LINK_BPS * 0.98,
        };
        let agent = self.agents.get_mut(node).unwrap();
        let at = (node, self.now.as_secs());
        faults::advance(&mut agent.values, at, busy, &self.faults, moved);
    }

    fn frame(&mut self, node: &str, slow: f64) -> v1::Frame {
        let path = RING.iter().position(|(l, h)| host(*l, *h) == node);
        let path = path.map(|n| self.path(n)).unwrap_or_default();
        let lossy = path
            .iter()
            .any(|port| self.faults.end(Fault::Loses, port).is_some());
        let late = self
            .faults
            .target(Fault::Late)
            .map(|rank| rank % RING.len());
        let agent = self.agents.get_mut(node).unwrap();
        let busy = self.busy;
        let at_us = u64::try_from((self.now + agent.ahead).as_micros()).unwrap();
        agent.seq += 1;
        let key = std::mem::take(&mut agent.key);
        let values: Vec<Option<u64>> = agent
            .columns
            .iter()
            .map(|c| Some(agent.values[c]))
            .collect();
        let (told, acknowledged) = (agent.told, agent.acknowledged);
        agent.events.retain(|e| e.seq > acknowledged);
        let news = agent
            .events
            .iter()
            .filter(|e| e.seq > told)
            .cloned()
            .collect();
        agent.told = agent.events.last().map_or(told, |e| e.seq);
        let mut frame = v1::Frame {
            seq: agent.seq,
            at_us,
            schema_epoch: agent.schema,
            key,
            events: news,
            ..v1::Frame::default()
        };
        if key {
            agent.sent.clear();
            (agent.flows, agent.calls) = (FlowRows::default(), CallRows::default());
        }
        agent.sent.encode(&values, &mut frame.columns);
        let own = RING.iter().position(|(l, h)| host(*l, *h) == node);
        let Some(n) = own.filter(|_| busy) else {
            return frame;
        };
        let ((sl, sh), (dl, dh)) = (RING[n], RING[(n + 1) % RING.len()]);
        if key || agent.flows.is_empty() {
            agent.flows.announce(1);
            frame.flows_opened = vec![v1::FlowOpened {
                id: 1,
                src_ipv4: address(sl, sh).to_bits(),
                dst_ipv4: address(dl, dh).to_bits(),
                src_port: 40_000,
                dst_port: 5_000,
                job: "train".into(),
                ..v1::FlowOpened::default()
            }];
        }
        let bytes = whole(FLOW_BPS / slow / 8.0);
        let row = FlowRow {
            bytes,
            retransmits: if lossy { bytes / 2048 / 50 } else { 0 },
            srtt_us: 500,
            ..FlowRow::default()
        };
        frame.flows = agent.flows.encode([(1, row.into())]);
        let rank = u32::try_from(n).unwrap();
        if key || agent.calls.is_empty() {
            agent.calls.announce(1);
            frame.series = vec![v1::Series {
                id: 1,
                job: "train".into(),
                op: "MPI_Allreduce".into(),
                rank: Some(rank),
                ranks: Some(8),
                ..v1::Series::default()
            }];
        }
        let took_us = whole(350_000.0 * slow);
        // All wait in the call for the one that is late.
        let late_us = if late == Some(n) { took_us / 4 } else { 0 };
        let calls = (0..1_000_000 / took_us).map(|n| CallRow {
            started_us: at_us - 1_000_000 + n * took_us + late_us,
            duration_us: took_us - late_us,
            bytes: Some(2_000_000),
        });
        frame.collectives = agent.calls.encode(calls.map(|call| (1, call.into())));
        frame
    }
}

fn whole(value: f64) -> u64 {
    format!("{value:.0}").parse().unwrap()
}
