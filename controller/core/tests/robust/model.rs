//! The core with everything that must hold checked after every input, and agents that may answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;
use weir_controller_core::config::{Config, Mode};
use weir_controller_core::ids::{FlowKey, JobId, NodeId, PortId};
use weir_controller_core::io::{
    self, CollectiveDone, Command, FlowSample, Input, Inventory, LeaseOutcome, NodeSample,
    PinChange, PortInventory, PortSample, ResolvedHop, Role,
};
use weir_controller_core::keep::{from_bytes, to_bytes};
use weir_controller_core::topology::{Cable, Plan};
use weir_controller_core::trial::State;
use weir_controller_core::{Core, Memory};

const LINK_BPS: f64 = 200e6;
pub const HOSTS: [(u8, u8); 8] = [
    (1, 1),
    (2, 1),
    (1, 2),
    (2, 2),
    (1, 3),
    (2, 3),
    (1, 4),
    (2, 4),
];

/// What an agent does with a grant or an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    Silence,
}

/// What a node was told of a lease.
#[derive(Debug, Clone)]
struct Held {
    /// When the agent restores the baseline by itself.
    expires: Duration,
    ended: bool,
    /// It said that it is at its baseline.
    over: bool,
}

pub struct Model {
    pub core: Core,
    pub config: Config,
    pub now: Duration,
    pub answer: Answer,
    pub log: Vec<String>,
    connected: BTreeSet<NodeId>,
    held: BTreeMap<(NodeId, u64), Held>,
    /// Leases that a node claims and nobody granted.
    claimed: BTreeSet<(NodeId, u64)>,
    inputs: VecDeque<Input>,
    /// What each node that is known said of itself last: that it connected, its inventory, its columns.
    said: BTreeMap<NodeId, [Option<Input>; 3]>,
    /// Its last samples, with their arrival.
    samples: BTreeMap<NodeId, VecDeque<(Duration, Input)>>,
    /// Destinations that a lease moves off the first spine, by leaf: until it ends there or runs out.
    moved: BTreeMap<(NodeId, Ipv4Addr), u64>,
}

pub fn host(l: u8, h: u8) -> NodeId {
    NodeId::new(&format!("h{l}{h}"))
}

pub fn address(l: u8, h: u8) -> Ipv4Addr {
    [10, l, h, 2].into()
}

pub fn flow(n: usize) -> FlowKey {
    let ((sl, sh), (dl, dh)) = (HOSTS[n], HOSTS[(n + 1) % HOSTS.len()]);
    FlowKey {
        src: address(sl, sh),
        dst: address(dl, dh),
        src_port: 40_000,
        dst_port: 5_000,
    }
}

/// A policy that may act.
pub fn acting() -> Config {
    Config {
        mode: Mode::Act,
        ..Config::default()
    }
}

pub fn plan() -> Plan {
    let mut plan = Plan::default();
    let mut cable = |a: String, b: String| {
        let ends = [a, b].map(|end| PortId::parse(&end).unwrap());
        for end in &ends {
            let is_host = end.node.as_str().starts_with('h');
            let role = if is_host { Role::Host } else { Role::Switch };
            plan.nodes.insert(end.node.clone(), role);
        }
        let [a, b] = ends;
        let rate_bps = Some(LINK_BPS);
        plan.cables.push(Cable { a, b, rate_bps });
    };
    for l in 1..=2 {
        for s in 1..=2 {
            cable(format!("l{l}:up{s}"), format!("s{s}:down{l}"));
        }
        for h in 1..=4 {
            cable(format!("h{l}{h}:eth0"), format!("l{l}:h{h}"));
        }
    }
    plan
}

impl Model {
    /// All nodes are connected.
    pub fn new(config: Config) -> Model {
        let mut model = Model {
            core: Core::new(config.clone(), plan(), false, 1000),
            config,
            now: Duration::ZERO,
            answer: Answer::Yes,
            log: Vec::new(),
            connected: BTreeSet::new(),
            held: BTreeMap::new(),
            claimed: BTreeSet::new(),
            inputs: VecDeque::new(),
            said: BTreeMap::new(),
            samples: BTreeMap::new(),
            moved: BTreeMap::new(),
        };
        for (node, role) in plan().nodes {
            model.connect(node, role);
        }
        model
    }

    pub fn connect(&mut self, node: NodeId, role: Role) {
        self.input(Input::NodeConnected {
            node: node.clone(),
            role,
            held_leases: vec![],
        });
        self.report(&node);
    }

    fn report(&mut self, node: &NodeId) {
        let name = node.as_str();
        let port = |name: &str, addresses| PortInventory {
            name: name.into(),
            up: true,
            addresses,
            neighbours: vec![],
            speed_bps: None,
        };
        let inventory = match name.as_bytes() {
            [b'h', l, h] => Inventory {
                ports: vec![port("eth0", vec![(address(l - b'0', h - b'0'), 24)])],
                ..Inventory::default()
            },
            [b'l', _] => Inventory {
                ports: ["up1", "up2", "h1", "h2", "h3", "h4"]
                    .map(|p| port(p, vec![]))
                    .to_vec(),
                groups: vec![io::EcmpGroup {
                    id: 100,
                    members: vec!["up1".into(), "up2".into()],
                }],
                routes_epoch: self.log.len() as u64,
            },
            _ => Inventory {
                ports: ["down1", "down2"].map(|p| port(p, vec![])).to_vec(),
                ..Inventory::default()
            },
        };
        let node = node.clone();
        self.input(Input::InventoryReported { node, inventory });
    }

    /// Hands the core an input, and whatever the agents answer.
    pub fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            self.note(&input);
            self.core.handle_input(input.clone(), self.now);
            self.keep(&input);
            self.check(Some(&input));
        }
    }

    /// Keeps what a node says of itself, as a recording does.
    fn keep(&mut self, input: &Input) {
        let (node, place) = match input {
            Input::NodeConnected { node, .. } => (node, 0),
            Input::InventoryReported { node, .. } => (node, 1),
            Input::ColumnsDeclared { node, .. } => (node, 2),
            Input::SampleReported { node, .. } => {
                let samples = self.samples.entry(node.clone()).or_default();
                samples.push_back((self.now, input.clone()));
                if samples.len() > 5 {
                    samples.pop_front();
                }
                return;
            }
            _ => return,
        };
        let nodes = self.core.nodes();
        if nodes.contains_key(node) {
            self.said.entry(node.clone()).or_default()[place] = Some(input.clone());
        }
    }

    pub fn tick(&mut self) {
        self.core.handle_timeout(self.now);
        self.check(None);
        while let Some(input) = self.inputs.pop_front() {
            self.input(input);
        }
    }

    fn note(&mut self, input: &Input) {
        match input {
            Input::NodeConnected {
                node, held_leases, ..
            } => {
                self.connected.insert(node.clone());
                // What an agent does not claim, it does not hold.
                self.moved
                    .retain(|(at, _), by| at != node || held_leases.contains(by));
                let claims = held_leases.iter().map(|lease| (node.clone(), *lease));
                self.claimed.extend(claims);
            }
            Input::NodeLost { node } => {
                self.connected.remove(node);
            }
            Input::LeaseReported {
                node,
                lease,
                outcome,
                ..
            } => {
                let key = (node.clone(), *lease);
                if *outcome != LeaseOutcome::Applied {
                    self.moved.retain(|(at, _), by| (at, *by) != (node, *lease));
                }
                match self.held.get_mut(&key) {
                    Some(held) => held.over = *outcome != LeaseOutcome::Applied,
                    None => {
                        self.claimed.insert(key);
                    }
                }
            }
            _ => {}
        }
    }

    /// Every rule that commands keep to, then every limit of a table.
    fn check(&mut self, input: Option<&Input>) {
        let mut answers = 0;
        while let Some(command) = self.core.poll_command() {
            self.log.push(format!("{:?} {command:?}", self.now));
            match command {
                Command::QueryPaths { node, keys } => {
                    assert!(
                        self.connected.contains(&node),
                        "{node} is asked and not there"
                    );
                    self.answer_paths(node, keys);
                }
                Command::Grant {
                    node,
                    lease,
                    ttl,
                    incident,
                    verdict,
                    pins,
                } => {
                    assert!(
                        self.connected.contains(&node),
                        "{node} is granted and not there"
                    );
                    assert!(!self.core.is_frozen(), "granted while frozen");
                    assert_eq!(self.config.mode, Mode::Act, "granted without leave");
                    assert_eq!(ttl, self.config.trial.ttl);
                    assert!(!verdict.is_empty());
                    assert!(pins.iter().all(|p| p.node == node));
                    assert!((1..=self.config.trial.changes_max).contains(&pins.len()));
                    let asked = matches!(input, Some(Input::TrialRequested { .. }));
                    let found = self.core.incidents().iter().any(|i| i.id == incident);
                    assert!(
                        found || (asked && incident.is_empty()),
                        "nothing behind {lease}"
                    );
                    let held = Held {
                        expires: self.now + ttl,
                        ended: false,
                        over: false,
                    };
                    let before = self.held.insert((node.clone(), lease), held);
                    assert!(before.is_none(), "lease {lease} is granted twice");
                    let dsts = pins.iter().map(|p| ((node.clone(), p.dst), lease));
                    if self.answer == Answer::Yes {
                        self.moved.extend(dsts);
                    }
                    self.answer_lease(node, lease, [LeaseOutcome::Applied, LeaseOutcome::Refused]);
                }
                Command::Renew { node, lease, ttl } => {
                    let held = self.held.get_mut(&(node.clone(), lease)).unwrap();
                    assert!(!held.ended, "lease {lease} is renewed after its end");
                    held.expires = self.now + ttl;
                }
                Command::End { node, lease, .. } => {
                    let key = (node.clone(), lease);
                    if self.connected.contains(&node) {
                        self.moved.retain(|(at, _), by| (at, *by) != (&node, lease));
                    }
                    match self.held.get_mut(&key) {
                        Some(held) => held.ended = true,
                        None => assert!(self.claimed.contains(&key), "{lease} ends on {node}"),
                    }
                    self.answer_lease(node, lease, [LeaseOutcome::Ended; 2]);
                }
                Command::AnswerTrial { .. } => answers += 1,
                Command::Note { subject, text } => {
                    assert!(!subject.is_empty() && !text.is_empty());
                }
            }
        }
        let asked = matches!(input, Some(Input::TrialRequested { .. }));
        assert_eq!(answers, usize::from(asked), "one answer for each request");
        self.check_state();
    }

    fn check_state(&self) {
        let trials = self.core.trials();
        let on_trial = |s: State| matches!(s, State::Proposed | State::Holding);
        assert!(
            trials.iter().filter(|t| on_trial(t.state)).count() <= 1,
            "two on trial"
        );
        let mut routes = BTreeSet::new();
        for trial in trials.iter().filter(|t| t.is_live()) {
            assert!(trial.pins.len() <= self.config.trial.changes_max);
            assert!(!self.core.is_frozen(), "a lease lives through a freeze");
            for PinChange { node, dst, .. } in &trial.pins {
                assert!(
                    routes.insert((node, dst)),
                    "two leases hold {dst} on {node}"
                );
            }
        }
        // Every grant is live, was ended, or will run out.
        for ((node, lease), held) in &self.held {
            let live = trials.iter().any(|t| t.lease == *lease && t.is_live());
            let lost = !self.connected.contains(node) || held.expires <= self.now;
            let settled = held.ended || held.over || lost;
            // A node that came back since was told to end what it still claims.
            assert!(
                live || settled || self.reconnected(node, *lease),
                "lease {lease} of {node}"
            );
        }
        for table in self.core.tables() {
            assert!(table.held <= table.max, "{table:?}");
        }
    }

    /// The trial knows that the node went, and left its lease to run out.
    fn reconnected(&self, node: &NodeId, lease: u64) -> bool {
        let trial = self.core.trials().iter().find(|t| t.lease == lease);
        trial.is_none_or(|t| {
            t.nodes.get(node) == Some(&weir_controller_core::trial::NodeLease::Over)
        })
    }

    /// Whether nothing is left of any lease at this time: none is held, and every route is as it was.
    pub fn is_at_baseline(&mut self) -> bool {
        self.run_out();
        let mut held = self.held.values();
        held.all(|h| h.ended || h.over || h.expires <= self.now) && self.moved.is_empty()
    }

    /// Routes that are not as they were on nodes that hear the controller.
    pub fn moved_where_heard(&mut self) -> usize {
        self.run_out();
        let heard = |(node, _): &&(NodeId, Ipv4Addr)| self.connected.contains(node);
        self.moved.keys().filter(heard).count()
    }

    /// Agents restore what a lease changed when it runs out.
    fn run_out(&mut self) {
        let (held, now) = (&self.held, self.now);
        self.moved.retain(|(node, _), lease| {
            let held = held.get(&(node.clone(), *lease));
            held.is_some_and(|h| h.expires > now)
        });
    }

    fn answer_lease(&mut self, node: NodeId, lease: u64, outcomes: [LeaseOutcome; 2]) {
        let outcome = match self.answer {
            Answer::Yes => outcomes[0],
            Answer::No => outcomes[1],
            Answer::Silence => return,
        };
        self.inputs.push_back(Input::LeaseReported {
            node,
            lease,
            outcome,
            reason: "told by the test".into(),
        });
    }

    fn answer_paths(&mut self, node: NodeId, keys: Vec<(FlowKey, std::sync::Arc<str>)>) {
        if self.answer == Answer::Silence {
            return;
        }
        let hop = |(key, in_port): (FlowKey, std::sync::Arc<str>)| {
            let [_, leaf, h, _] = key.dst.octets();
            let (out_port, group) = match node.as_str().as_bytes() {
                [b'l', l] if l - b'0' == leaf => (format!("h{h}"), None),
                [b'l', _] => (format!("up{}", self.spine_of(&node, key.dst)), Some(100)),
                _ => (format!("down{leaf}"), None),
            };
            ResolvedHop {
                key,
                in_port,
                out_port: Some(out_port.as_str().into()),
                group,
            }
        };
        let hops = keys.into_iter().map(hop).collect();
        self.inputs.push_back(Input::PathsResolved { node, hops });
    }

    fn spine_of(&self, leaf: &NodeId, dst: Ipv4Addr) -> u8 {
        1 + u8::from(self.moved.contains_key(&(leaf.clone(), dst)))
    }

    /// A second of a ring of eight whose edges all cross the fabric, on one spine but for what is moved.
    pub fn second(&mut self) {
        self.now += Duration::from_secs(1);
        self.run_out();
        // A link that carries nothing says so.
        let ends = plan().cables.into_iter().flat_map(|c| [c.a, c.b]);
        let mut load: BTreeMap<PortId, f64> = ends.map(|port| (port, 0.0)).collect();
        let path = |model: &Model, n: usize| {
            let ((sl, sh), (dl, dh)) = (HOSTS[n], HOSTS[(n + 1) % HOSTS.len()]);
            let spine = model.spine_of(&NodeId::new(&format!("l{sl}")), address(dl, dh));
            [
                format!("h{sl}{sh}:eth0"),
                format!("l{sl}:up{spine}"),
                format!("s{spine}:down{dl}"),
                format!("l{dl}:h{dh}"),
            ]
            .map(|port| PortId::parse(&port).unwrap())
        };
        for n in 0..HOSTS.len() {
            for port in path(self, n) {
                *load.entry(port).or_default() += 95e6;
            }
        }
        let slow = load.values().copied().fold(LINK_BPS, f64::max) / LINK_BPS;
        let bytes = |bps: f64| format!("{:.0}", bps / slow / 8.0).parse().unwrap();
        let mut samples: BTreeMap<NodeId, NodeSample> = BTreeMap::new();
        for (port, bps) in &load {
            let full = *bps > LINK_BPS;
            samples
                .entry(port.node.clone())
                .or_default()
                .ports
                .push(PortSample {
                    port: port.port.clone(),
                    tx_bytes: Some(bytes(*bps)),
                    queue_bytes_max: Some(if full { 150_000 } else { 0 }),
                    drops: Some(u64::from(full)),
                    up: Some(true),
                    ..PortSample::default()
                });
        }
        for (n, (l, h)) in HOSTS.into_iter().enumerate() {
            samples
                .entry(host(l, h))
                .or_default()
                .flows
                .push(FlowSample {
                    key: flow(n),
                    job: Some(JobId::new("train")),
                    bytes: bytes(95e6),
                    retransmits: 0,
                    srtt_us: 500,
                    delivered_ce: 0,
                    received_ce: 0,
                    cnps_sent: 0,
                });
        }
        let duration = Duration::from_millis(350).mul_f64(slow);
        let calls = (0..1000 / duration.as_millis().max(1)).map(|n| CollectiveDone {
            job: JobId::new("train"),
            rank: Some(0),
            ranks: Some(8),
            op: "MPI_Allreduce".into(),
            bytes: Some(2_000_000),
            started_before: Duration::from_secs(1)
                .saturating_sub(duration * u32::try_from(n).unwrap()),
            duration,
        });
        samples.entry(host(1, 1)).or_default().collectives = calls.collect();
        for (node, mut sample) in samples {
            sample.elapsed = Some(Duration::from_secs(1));
            self.input(Input::SampleReported { node, sample });
        }
        for _ in 0..4 {
            self.now += Duration::from_micros(1);
            self.tick();
        }
    }

    /// Another core that knows what the nodes said of themselves, and goes on from what this one keeps: it holds the same.
    pub fn fork(&mut self) -> Model {
        let nodes = self.core.nodes();
        self.said.retain(|node, _| nodes.contains_key(node));
        let bytes = to_bytes(&self.core.memory());
        let mut core = Core::new(self.config.clone(), plan(), false, 0);
        for input in self.said.values().flatten().flatten() {
            core.handle_input(input.clone(), self.now);
        }
        for (at, input) in self.samples.values().flatten() {
            core.handle_input(input.clone(), *at);
        }
        core.remember(from_bytes(&bytes).unwrap());
        // Whatever part of it is missing is noticed.
        assert!(from_bytes::<Memory>(&bytes[..bytes.len() - 1]).is_none());
        let mut other = Model {
            config: self.config.clone(),
            core,
            now: self.now,
            answer: self.answer,
            log: self.log.clone(),
            connected: self.connected.clone(),
            held: self.held.clone(),
            claimed: self.claimed.clone(),
            inputs: VecDeque::new(),
            said: self.said.clone(),
            samples: self.samples.clone(),
            moved: self.moved.clone(),
        };
        for model in [&mut *self, &mut other] {
            model.input(Input::SegmentBegun);
        }
        other.check_same(self);
        other
    }

    pub fn check_same(&self, other: &Model) {
        for (n, (ours, theirs)) in self.log.iter().zip(&other.log).enumerate() {
            assert_eq!(ours, theirs, "line {n}");
        }
        assert_eq!(self.log.len(), other.log.len());
        assert_eq!(self.core.trials(), other.core.trials());
        let [ours, theirs] = [self, other].map(|model| {
            let mut memory = model.core.memory();
            // Of a link that was at rest, less is known.
            memory.tracks.clear();
            memory
        });
        if to_bytes(&ours) == to_bytes(&theirs) {
            return;
        }
        let [ours, theirs] = [ours, theirs].map(|memory| format!("{memory:#?}"));
        let mut both = ours.lines().zip(theirs.lines()).enumerate();
        if let Some((n, (a, b))) = both.find(|(_, (a, b))| a != b) {
            let before: Vec<&str> = ours.lines().skip(n.saturating_sub(40)).take(40).collect();
            panic!("{}\n- {a}\n+ {b}", before.join("\n"));
        }
        panic!("one of them holds more");
    }
}
