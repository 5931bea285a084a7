//! A small leaf-spine fabric that answers the core as agents would.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::time::Duration;
use weir_controller_core::Core;
use weir_controller_core::config::{Config, Mode};
use weir_controller_core::ids::{FlowKey, JobId, NodeId, PortId};
use weir_controller_core::io::{self, Command, Input, LeaseOutcome, NodeSample, Role};
use weir_controller_core::topology::{Cable, Plan};
use weir_controller_core::verdict::Class;

pub const LINK_BPS: f64 = 200e6;
pub const SECOND: Duration = Duration::from_secs(1);

pub fn host(leaf: u8, n: u8) -> NodeId {
    NodeId::new(&format!("h{leaf}{n}"))
}

pub fn node(name: &str, n: u8) -> NodeId {
    NodeId::new(&format!("{name}{n}"))
}

/// 2 leaves, 2 spines, 4 hosts on each leaf.
pub fn plan() -> Plan {
    let mut plan = Plan::default();
    let mut cable = |a: (NodeId, String), b: (NodeId, String)| {
        for (n, role) in [(&a.0, Role::Switch), (&b.0, Role::Switch)] {
            let role = if n.as_str().starts_with('h') {
                Role::Host
            } else {
                role
            };
            plan.nodes.insert(n.clone(), role);
        }
        plan.cables.push(Cable {
            a: PortId::new(&a.0, &a.1),
            b: PortId::new(&b.0, &b.1),
            rate_bps: Some(LINK_BPS),
        });
    };
    for l in 1..=2 {
        for s in 1..=2 {
            cable(
                (node("l", l), format!("up{s}")),
                (node("s", s), format!("down{l}")),
            );
        }
        for h in 1..=4 {
            cable((host(l, h), "eth0".into()), (node("l", l), format!("h{h}")));
        }
    }
    plan
}

/// Leaf, destination, spine before a change.
pub type Baseline = (u8, std::net::Ipv4Addr, u8);

/// The fabric under test: fluid links, flows with routes, a ring job.
pub struct World {
    pub core: Core,
    pub now: Duration,
    /// Spine of (leaf, destination); what a pin changes.
    pub spine: BTreeMap<(u8, std::net::Ipv4Addr), u8>,
    pub flows: Vec<(FlowKey, f64)>,
    pub job: Option<JobId>,
    /// Whether no agent knows of the job: neither its calls nor whose its flows are.
    pub unseen: bool,
    pub commands: Vec<Command>,
    pub leases: BTreeMap<(NodeId, u64), Vec<Baseline>>,
    /// Share of time for which the far end pauses a link.
    pub paused: BTreeMap<PortId, f64>,
    /// Share of its capacity that a link has left, though it says nothing.
    pub squeezed: BTreeMap<PortId, f64>,
    /// Share of packets that a full link marks; without it, it drops.
    pub marks: Option<f64>,
    /// Iteration seconds for a given most loaded link, in bits per second of demand.
    pub iteration: fn(f64) -> f64,
}

pub fn address(leaf: u8, h: u8) -> std::net::Ipv4Addr {
    [10, leaf, h, 2].into()
}

impl World {
    pub fn new(mode: Mode) -> World {
        let config = Config {
            mode,
            ..Config::default()
        };
        let mut world = World {
            core: Core::new(config, plan(), false, 0),
            now: Duration::ZERO,
            spine: BTreeMap::new(),
            flows: Vec::new(),
            job: None,
            unseen: false,
            commands: Vec::new(),
            leases: BTreeMap::new(),
            paused: BTreeMap::new(),
            squeezed: BTreeMap::new(),
            marks: None,
            iteration: |load| 0.35 * (load / LINK_BPS).max(1.0),
        };
        let nodes: Vec<NodeId> = (1..=2)
            .flat_map(|l| {
                (1..=4)
                    .map(move |h| host(l, h))
                    .chain([node("l", l), node("s", l)])
            })
            .collect();
        for n in nodes {
            let role = if n.as_str().starts_with('h') {
                Role::Host
            } else {
                Role::Switch
            };
            world.connect(&n, role);
        }
        world
    }

    pub fn connect(&mut self, n: &NodeId, role: Role) {
        self.input(Input::NodeConnected {
            node: n.clone(),
            role,
            held_leases: vec![],
        });
        let inventory = self.inventory(n);
        self.input(Input::InventoryReported {
            node: n.clone(),
            inventory,
        });
    }

    pub fn inventory(&self, n: &NodeId) -> io::Inventory {
        let name = n.as_str().as_bytes();
        let port = |name: &str, addresses| io::PortInventory {
            name: name.into(),
            up: true,
            addresses,
            neighbours: vec![],
            speed_bps: None,
        };
        match name[0] {
            b'h' => io::Inventory {
                ports: vec![port(
                    "eth0",
                    vec![(address(name[1] - b'0', name[2] - b'0'), 24)],
                )],
                ..io::Inventory::default()
            },
            b'l' => {
                let groups = vec![io::EcmpGroup {
                    id: 100,
                    members: vec!["up1".into(), "up2".into()],
                }];
                let ports = ["up1", "up2", "h1", "h2", "h3", "h4"]
                    .map(|p| port(p, vec![]))
                    .to_vec();
                io::Inventory {
                    ports,
                    groups,
                    routes_epoch: 1,
                }
            }
            _ => io::Inventory {
                ports: ["down1", "down2"].map(|p| port(p, vec![])).to_vec(),
                ..io::Inventory::default()
            },
        }
    }

    pub fn input(&mut self, input: Input) {
        self.core.handle_input(input, self.now);
        self.perform();
    }

    /// Plays the agents' side of every command.
    pub fn perform(&mut self) {
        while let Some(command) = self.core.poll_command() {
            self.commands.push(command.clone());
            match command {
                Command::QueryPaths { node, keys } => {
                    let hops = keys
                        .into_iter()
                        .map(|(key, in_port)| self.hop(&node, key, in_port))
                        .collect();
                    self.core
                        .handle_input(Input::PathsResolved { node, hops }, self.now);
                }
                Command::Grant {
                    node, lease, pins, ..
                } => {
                    let leaf = node.as_str().as_bytes()[1] - b'0';
                    let mut baseline = Vec::new();
                    for pin in &pins {
                        baseline.push((leaf, pin.dst, self.spine_of(leaf, pin.dst)));
                        self.spine
                            .insert((leaf, pin.dst), pin.port.as_bytes()[2] - b'0');
                    }
                    self.leases.insert((node.clone(), lease), baseline);
                    self.routes_changed(&node);
                    self.core.handle_input(
                        Input::LeaseReported {
                            node,
                            lease,
                            outcome: LeaseOutcome::Applied,
                            reason: String::new(),
                        },
                        self.now,
                    );
                }
                Command::End { node, lease, .. } => {
                    for (leaf, dst, spine) in self
                        .leases
                        .remove(&(node.clone(), lease))
                        .unwrap_or_default()
                    {
                        self.spine.insert((leaf, dst), spine);
                    }
                    self.routes_changed(&node);
                    self.core.handle_input(
                        Input::LeaseReported {
                            node,
                            lease,
                            outcome: LeaseOutcome::Ended,
                            reason: String::new(),
                        },
                        self.now,
                    );
                }
                Command::Renew { .. } | Command::AnswerTrial { .. } | Command::Note { .. } => {}
            }
        }
    }

    pub fn routes_changed(&mut self, node: &NodeId) {
        let epoch = u64::try_from(self.commands.len()).unwrap() + 2;
        let inventory = io::Inventory {
            routes_epoch: epoch,
            ..self.inventory(node)
        };
        self.core.handle_input(
            Input::InventoryReported {
                node: node.clone(),
                inventory,
            },
            self.now,
        );
    }

    pub fn spine_of(&self, leaf: u8, dst: std::net::Ipv4Addr) -> u8 {
        self.spine.get(&(leaf, dst)).copied().unwrap_or(1)
    }

    pub fn hop(&self, n: &NodeId, key: FlowKey, in_port: std::sync::Arc<str>) -> io::ResolvedHop {
        let name = n.as_str().as_bytes();
        let [_, dst_leaf, dst_host, _] = key.dst.octets();
        let (out, group) = match name[0] {
            b'l' if name[1] - b'0' == dst_leaf => (format!("h{dst_host}"), None),
            b'l' => (
                format!("up{}", self.spine_of(name[1] - b'0', key.dst)),
                Some(100),
            ),
            _ => (format!("down{dst_leaf}"), None),
        };
        io::ResolvedHop {
            key,
            in_port,
            out_port: Some(out.as_str().into()),
            group,
        }
    }

    pub fn path(&self, key: &FlowKey) -> Vec<PortId> {
        let ([_, sl, sh, _], [_, dl, dh, _]) = (key.src.octets(), key.dst.octets());
        let mut path = vec![PortId::new(&host(sl, sh), "eth0")];
        if sl != dl {
            let spine = self.spine_of(sl, key.dst);
            path.push(PortId::new(&node("l", sl), &format!("up{spine}")));
            path.push(PortId::new(&node("s", spine), &format!("down{dl}")));
        }
        path.push(PortId::new(&node("l", dl), &format!("h{dh}")));
        path
    }

    /// The job, as agents report it.
    fn reported(&self) -> Option<JobId> {
        self.job.clone().filter(|_| !self.unseen)
    }

    /// One second of traffic: each flow gets its demand, scaled down on the fullest link of its path.
    pub fn second(&mut self) {
        self.now += SECOND;
        let mut demand: BTreeMap<PortId, f64> = BTreeMap::new();
        for (key, bps) in &self.flows {
            for port in self.path(key) {
                *demand.entry(port).or_default() += bps;
            }
        }
        let left = |port: &PortId| {
            let share =
                |of: &BTreeMap<PortId, f64>, normal: f64| of.get(port).copied().unwrap_or(normal);
            LINK_BPS * (1.0 - share(&self.paused, 0.0)) * share(&self.squeezed, 1.0)
        };
        let strained: BTreeMap<PortId, f64> = demand
            .iter()
            .map(|(p, d)| (p.clone(), d * LINK_BPS / left(p)))
            .collect();
        let fullest = strained.values().copied().fold(0.0, f64::max);
        // A ring goes as fast as its slowest edge; independent flows share each their own bottleneck.
        let scale = |key: &FlowKey, world: &World| {
            let worst = if world.job.is_some() {
                fullest
            } else {
                world
                    .path(key)
                    .iter()
                    .map(|p| strained[p])
                    .fold(0.0, f64::max)
            };
            (LINK_BPS / worst).min(1.0)
        };
        let rates: Vec<(FlowKey, f64)> = self
            .flows
            .iter()
            .map(|(k, bps)| (*k, bps * scale(k, self)))
            .collect();
        let mut carried: BTreeMap<PortId, f64> = BTreeMap::new();
        for (key, bps) in &rates {
            for port in self.path(key) {
                *carried.entry(port).or_default() += bps;
            }
        }
        let mut samples: BTreeMap<NodeId, NodeSample> = BTreeMap::new();
        let ports: Vec<PortId> = self
            .core
            .topology()
            .links()
            .map(|(p, _)| p.clone())
            .collect();
        for port in ports {
            let bps = carried.get(&port).copied().unwrap_or(0.0);
            let full = strained.get(&port).is_some_and(|d| *d > LINK_BPS * 0.98);
            let queue = if full { 150_000 } else { 0 };
            let packets = bytes(bps) / 1000;
            let share = self.marks.map(|share| if full { share } else { 0.0 });
            let sample = io::PortSample {
                port: port.port.clone(),
                tx_bytes: Some(bytes(bps)),
                queue_bytes_max: Some(queue),
                drops: Some(u64::from(full && share.is_none())),
                tx_packets: share.map(|_| packets),
                ecn_marked: share.map(|share| bytes(8.0 * share * packets as f64)),
                up: Some(true),
                pause_rx_us: Some(bytes(8e6 * self.paused.get(&port).copied().unwrap_or(0.0))),
                ..io::PortSample::default()
            };
            samples
                .entry(port.node.clone())
                .or_default()
                .ports
                .push(sample);
        }
        for (key, bps) in &rates {
            let [_, l, h, _] = key.src.octets();
            let flow = io::FlowSample {
                key: *key,
                job: self.reported(),
                bytes: bytes(*bps),
                retransmits: 0,
                srtt_us: 500,
                delivered_ce: 0,
                received_ce: 0,
                cnps_sent: 0,
            };
            samples.entry(host(l, h)).or_default().flows.push(flow);
        }
        if let Some(job) = self.reported() {
            let seconds = (self.iteration)(fullest);
            let count = (1.0 / seconds).floor().max(1.0);
            let mut before = 1.0;
            while before >= 1.0 / count - 1e-9 {
                let done = io::CollectiveDone {
                    job: job.clone(),
                    rank: Some(0),
                    ranks: Some(8),
                    op: "MPI_Allreduce".into(),
                    bytes: Some(2_000_000),
                    started_before: Duration::from_secs_f64(before),
                    duration: Duration::from_secs_f64(seconds),
                };
                samples
                    .entry(host(1, 1))
                    .or_default()
                    .collectives
                    .push(done);
                before -= 1.0 / count;
            }
        }
        for (node, mut sample) in samples {
            sample.elapsed = Some(SECOND);
            self.input(Input::SampleReported { node, sample });
        }
        for _ in 0..4 {
            let (due, _) = self.core.poll_timeout();
            self.core.handle_timeout(due.max(self.now));
            self.perform();
        }
    }

    pub fn seconds(&mut self, n: usize) {
        for _ in 0..n {
            self.second();
        }
    }

    pub fn ring(order: &[(u8, u8)], bps: f64) -> Vec<(FlowKey, f64)> {
        let next = order.iter().cycle().skip(1);
        order
            .iter()
            .zip(next)
            .map(|(a, b)| (flow(*a, *b), bps))
            .collect()
    }

    pub fn classes(&self) -> Vec<Class> {
        self.core
            .incidents()
            .iter()
            .map(|i| i.verdict.class)
            .collect()
    }

    pub fn grants(&self) -> usize {
        self.commands
            .iter()
            .filter(|c| matches!(c, Command::Grant { .. }))
            .count()
    }
}

pub fn flow(a: (u8, u8), b: (u8, u8)) -> FlowKey {
    FlowKey {
        src: address(a.0, a.1),
        dst: address(b.0, b.1),
        src_port: 40_000,
        dst_port: 5_000,
    }
}

pub fn bytes(bps: f64) -> u64 {
    format!("{:.0}", bps / 8.0).parse().unwrap()
}

pub const INTERLEAVED: [(u8, u8); 8] = [
    (1, 1),
    (2, 1),
    (1, 2),
    (2, 2),
    (1, 3),
    (2, 3),
    (1, 4),
    (2, 4),
];
