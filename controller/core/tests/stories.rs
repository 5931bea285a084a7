//! The core on a small leaf-spine fabric, with a clock that the test turns: what it finds, what it
//! leaves alone, what it asks for, and that every lease ends at its baseline.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use weir_controller_core::Core;
use weir_controller_core::config::{Config, Mode};
use weir_controller_core::hotspot::Class;
use weir_controller_core::ids::{FlowKey, JobId, NodeId, PortId};
use weir_controller_core::io::{self, Command, Input, LeaseOutcome, NodeSample, PinChange, Role};
use weir_controller_core::topology::{Cable, Plan};
use weir_controller_core::trial::{Cause, State};

const LINK_BPS: f64 = 200e6;
const SECOND: Duration = Duration::from_secs(1);

fn host(leaf: u8, n: u8) -> NodeId {
    NodeId::new(&format!("h{leaf}{n}"))
}

fn node(name: &str, n: u8) -> NodeId {
    NodeId::new(&format!("{name}{n}"))
}

/// 2 leaves, 2 spines, 4 hosts on each leaf.
fn plan() -> Plan {
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
type Baseline = (u8, std::net::Ipv4Addr, u8);

/// The fabric under test: fluid links, flows with routes, a ring job.
struct World {
    core: Core,
    now: Duration,
    /// Spine of (leaf, destination); what a pin changes.
    spine: BTreeMap<(u8, std::net::Ipv4Addr), u8>,
    flows: Vec<(FlowKey, f64)>,
    job: Option<JobId>,
    commands: Vec<Command>,
    leases: BTreeMap<(NodeId, u64), Vec<Baseline>>,
    /// Iteration seconds for a given most loaded link, in bits per second of demand.
    iteration: fn(f64) -> f64,
}

fn address(leaf: u8, h: u8) -> std::net::Ipv4Addr {
    [10, leaf, h, 2].into()
}

impl World {
    fn new(mode: Mode) -> World {
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
            commands: Vec::new(),
            leases: BTreeMap::new(),
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
            world.input(Input::NodeConnected {
                node: n.clone(),
                role,
                held_leases: vec![],
            });
            let inventory = world.inventory(&n);
            world.input(Input::InventoryReported { node: n, inventory });
        }
        world
    }

    fn inventory(&self, n: &NodeId) -> io::Inventory {
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

    fn input(&mut self, input: Input) {
        self.core.handle_input(input, self.now);
        self.perform();
    }

    /// Plays the agents' side of every command.
    fn perform(&mut self) {
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

    fn routes_changed(&mut self, node: &NodeId) {
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

    fn spine_of(&self, leaf: u8, dst: std::net::Ipv4Addr) -> u8 {
        self.spine.get(&(leaf, dst)).copied().unwrap_or(1)
    }

    fn hop(&self, n: &NodeId, key: FlowKey, in_port: std::sync::Arc<str>) -> io::ResolvedHop {
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

    fn path(&self, key: &FlowKey) -> Vec<PortId> {
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

    /// One second of traffic: each flow gets its demand, scaled down on the fullest link of its path.
    fn second(&mut self) {
        self.now += SECOND;
        let mut demand: BTreeMap<PortId, f64> = BTreeMap::new();
        for (key, bps) in &self.flows {
            for port in self.path(key) {
                *demand.entry(port).or_default() += bps;
            }
        }
        let fullest = demand.values().copied().fold(0.0, f64::max);
        // A ring goes as fast as its slowest edge; independent flows share each their own bottleneck.
        let scale = |key: &FlowKey, world: &World| {
            let worst = if world.job.is_some() {
                fullest
            } else {
                world
                    .path(key)
                    .iter()
                    .map(|p| demand[p])
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
            let full = demand.get(&port).is_some_and(|d| *d > LINK_BPS * 0.98);
            let queue = if full { 150_000 } else { 0 };
            let sample = io::PortSample {
                port: port.port.clone(),
                tx_bytes: Some(bytes(bps)),
                queue_bytes_max: Some(queue),
                drops: Some(u64::from(full)),
                ecn_marked: None,
                up: Some(true),
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
                job: self.job.clone(),
                bytes: bytes(*bps),
                retransmits: 0,
                srtt_us: 500,
                delivered_ce: 0,
                received_ce: 0,
                cnps_sent: 0,
            };
            samples.entry(host(l, h)).or_default().flows.push(flow);
        }
        if let Some(job) = self.job.clone() {
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

    fn seconds(&mut self, n: usize) {
        for _ in 0..n {
            self.second();
        }
    }

    fn ring(order: &[(u8, u8)], bps: f64) -> Vec<(FlowKey, f64)> {
        let next = order.iter().cycle().skip(1);
        order
            .iter()
            .zip(next)
            .map(|(a, b)| (flow(*a, *b), bps))
            .collect()
    }

    fn classes(&self) -> Vec<Class> {
        self.core
            .incidents()
            .iter()
            .map(|i| i.verdict.class)
            .collect()
    }

    fn grants(&self) -> usize {
        self.commands
            .iter()
            .filter(|c| matches!(c, Command::Grant { .. }))
            .count()
    }
}

fn flow(a: (u8, u8), b: (u8, u8)) -> FlowKey {
    FlowKey {
        src: address(a.0, a.1),
        dst: address(b.0, b.1),
        src_port: 40_000,
        dst_port: 5_000,
    }
}

fn bytes(bps: f64) -> u64 {
    format!("{:.0}", bps / 8.0).parse().unwrap()
}

const INTERLEAVED: [(u8, u8); 8] = [
    (1, 1),
    (2, 1),
    (1, 2),
    (2, 2),
    (1, 3),
    (2, 3),
    (1, 4),
    (2, 4),
];

fn colliding() -> World {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    world.flows = World::ring(&INTERLEAVED, 95e6);
    world
}

#[test]
fn a_colliding_ring_is_found_rerouted_on_both_leaves_and_kept() {
    let mut world = colliding();
    world.seconds(4);
    assert_eq!(world.classes(), [Class::EcmpCollision]);
    assert_eq!(world.grants(), 2, "one lease, both leaves");
    world.seconds(6);
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.state, State::Committed, "{}", trial.reason);
    assert_eq!(
        trial.pins.len(),
        4,
        "two of four destinations move on each leaf"
    );
    let (before, after) = trial.medians().unwrap();
    assert!(after < before * 0.6, "{before} -> {after}");
    world.seconds(20);
    assert_eq!(world.grants(), 2, "nothing more is tried");
    assert_eq!(world.classes(), [Class::EcmpCollision]);
}

#[test]
fn observing_finds_and_changes_nothing() {
    let mut world = colliding();
    world.core = World::new(Mode::Observe).core;
    world.seconds(10);
    assert_eq!(
        (world.classes(), world.grants()),
        (vec![Class::EcmpCollision], 0)
    );
}

#[test]
fn incast_is_named_and_not_rerouted() {
    let mut world = World::new(Mode::Act);
    world.flows = [(1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (2, 4)]
        .map(|s| (flow(s, (1, 1)), 150e6))
        .to_vec();
    world.seconds(10);
    assert_eq!((world.classes(), world.grants()), (vec![Class::Incast], 0));
}

#[test]
fn full_uplinks_are_oversubscription_and_not_rerouted() {
    let mut world = World::new(Mode::Act);
    world.flows = (1..=4).map(|h| (flow((1, h), (2, h)), 180e6)).collect();
    for h in [2, 4] {
        world.spine.insert((1, address(2, h)), 2);
    }
    world.seconds(10);
    assert_eq!(
        (world.classes(), world.grants()),
        (vec![Class::Oversubscription], 0)
    );
}

#[test]
fn a_balanced_ring_gives_no_verdict_for_an_hour() {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    world.flows = World::ring(&INTERLEAVED, 85e6);
    for (l, h) in [(2, 2), (2, 4), (1, 2), (1, 4)] {
        world.spine.insert((3 - l, address(l, h)), 2);
    }
    world.seconds(3600);
    assert_eq!((world.classes(), world.grants()), (vec![], 0));
}

/// The iterations of the good time must not be what the change is compared with.
#[test]
fn a_collision_that_comes_after_a_good_time_is_rerouted_and_kept() {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    world.iteration = |load| 0.5 * (load / LINK_BPS).max(1.0);
    world.flows = World::ring(&INTERLEAVED, 85e6);
    let apart = [(2, 2), (2, 4), (1, 2), (1, 4)].map(|(l, h)| (3 - l, address(l, h)));
    for at in apart {
        world.spine.insert(at, 2);
    }
    world.seconds(60);
    assert_eq!((world.classes(), world.grants()), (vec![], 0));
    for (leaf, dst) in apart {
        world.spine.insert((leaf, dst), 1);
        world.routes_changed(&node("l", leaf));
    }
    world.seconds(15);
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.state, State::Committed, "{}", trial.reason);
    assert!(
        trial.before_s.iter().all(|s| *s > 0.8),
        "{:?}",
        trial.before_s
    );
}

#[test]
fn a_change_that_makes_the_job_slower_is_rolled_back_within_three_iterations() {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    world.flows = World::ring(&INTERLEAVED, 85e6);
    for (l, h) in [(2, 2), (2, 4), (1, 2), (1, 4)] {
        world.spine.insert((3 - l, address(l, h)), 2);
    }
    world.seconds(5);
    let routes = world.spine.clone();
    let pins = [2, 4]
        .map(|h| PinChange {
            node: node("l", 1),
            dst: address(2, h),
            port: "up1".into(),
        })
        .to_vec();
    world.input(Input::TrialRequested {
        job: JobId::new("train"),
        pins,
    });
    world.seconds(4);
    let trial = world.core.trials().back().unwrap();
    assert!(
        trial.given_back == Some(Cause::Slower) && trial.reason.contains("slower"),
        "{}",
        trial.reason
    );
    assert!(trial.after_s.len() <= 3, "{:?}", trial.after_s);
    assert_eq!(world.spine, routes);
}

#[test]
fn a_kept_change_under_which_a_call_does_not_end_is_given_back() {
    let mut world = colliding();
    world.seconds(10);
    assert_eq!(world.core.trials().back().unwrap().state, State::Committed);
    let job = world.job.take().unwrap();
    let flows = std::mem::take(&mut world.flows);
    for stalled in 1..10 {
        world.second();
        let running = vec![io::CollectiveRunning {
            job: job.clone(),
            running: SECOND * stalled,
        }];
        let flows = flows.iter().map(|(key, _)| io::FlowSample {
            key: *key,
            job: Some(job.clone()),
            bytes: 0,
            retransmits: u64::from(stalled.is_power_of_two()),
            srtt_us: 500,
            delivered_ce: 0,
            received_ce: 0,
            cnps_sent: 0,
        });
        let sample = NodeSample {
            elapsed: Some(SECOND),
            running,
            flows: flows.collect(),
            ..NodeSample::default()
        };
        world.input(Input::SampleReported {
            node: host(1, 1),
            sample,
        });
    }
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.given_back, Some(Cause::Stalled), "{}", trial.reason);
    assert!(world.leases.is_empty());
}

#[test]
fn an_operator_s_trial_needs_the_mode_too() {
    let mut world = World::new(Mode::Observe);
    world.job = Some(JobId::new("train"));
    world.flows = World::ring(&INTERLEAVED, 85e6);
    world.seconds(5);
    let pins = vec![PinChange {
        node: node("l", 1),
        dst: address(2, 2),
        port: "up1".into(),
    }];
    world.input(Input::TrialRequested {
        job: JobId::new("train"),
        pins,
    });
    let refused = |c: &Command| matches!(c, Command::AnswerTrial { outcome: Err(reason) } if reason.contains("mode is observe"));
    assert!(world.commands.iter().any(refused));
    assert_eq!(world.grants(), 0);
}

#[test]
fn tries_in_vain_become_seldom() {
    let mut world = colliding();
    // Whatever is done, the job goes at the same speed: something else holds it back.
    world.iteration = |_| 0.6;
    let grants_after = |world: &mut World, seconds| {
        world.seconds(seconds);
        world.grants()
    };
    let ten_minutes = grants_after(&mut world, 600);
    let an_hour = grants_after(&mut world, 3000);
    assert!(ten_minutes >= 2, "{ten_minutes}");
    assert!(
        an_hour <= 2 * ten_minutes + 4,
        "{ten_minutes}, then {an_hour}"
    );
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.given_back, Some(Cause::NoBetter), "{}", trial.reason);
}

#[test]
fn a_freeze_ends_the_lease_and_forbids_the_next() {
    let mut world = colliding();
    world.seconds(4);
    let grants = world.grants();
    assert!(grants > 0);
    world.input(Input::FreezeSet { frozen: true });
    world.seconds(60);
    assert!(world.leases.is_empty());
    assert_eq!(world.grants(), grants);
    assert!(
        world.spine.values().all(|s| *s == 1),
        "back on the baseline"
    );
}

#[test]
fn a_node_that_is_lost_under_a_lease_rolls_the_rest_back() {
    let mut world = colliding();
    world.seconds(4);
    world.input(Input::NodeLost { node: node("l", 2) });
    assert!(world.core.trials().back().unwrap().given_back.is_some());
    assert!(!world.leases.keys().any(|(n, _)| n.as_str() == "l1"));
}

#[test]
fn the_job_s_end_gives_the_change_back() {
    let mut world = colliding();
    world.seconds(10);
    world.job = None;
    world.flows.clear();
    world.seconds(40);
    assert!(world.leases.is_empty());
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.given_back, Some(Cause::JobOver));
    assert!(trial.reason.contains("over"));
    assert_eq!(world.core.given_back(Cause::JobOver), 1);
    assert_eq!(
        world.core.jobs().iter().count(),
        0,
        "an ended job is no more shown"
    );
}

#[test]
fn the_same_inputs_give_the_same_commands() {
    let run = || {
        let mut world = colliding();
        world.seconds(12);
        format!("{:?} {:?}", world.commands, world.core.trials())
    };
    assert_eq!(run(), run());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever comes, in whatever order: no panic, at most one change on trial, and a freeze
    /// leaves no lease live.
    #[test]
    fn nothing_upsets_the_core(steps in prop::collection::vec((0u8..9, 0u8..12, any::<u64>()), 0..120)) {
        let mut world = colliding();
        let names: Vec<NodeId> = world.core.nodes().keys().cloned().collect();
        for (step, n, value) in steps {
            let node = names[usize::from(n)].clone();
            match step {
                0 | 1 => world.second(),
                2 => world.input(Input::NodeLost { node }),
                3 => world.input(Input::NodeConnected { node, role: Role::Switch, held_leases: vec![value] }),
                4 => world.input(Input::LeaseReported { node, lease: value % 4, outcome: LeaseOutcome::Ended, reason: String::new() }),
                5 => world.input(Input::FreezeSet { frozen: value % 2 == 0 }),
                6 => {
                    let ports = vec![io::PortSample { port: "up1".into(), tx_bytes: Some(value), queue_bytes_max: Some(value), drops: Some(value), ecn_marked: None, up: None }];
                    world.input(Input::SampleReported { node, sample: NodeSample { elapsed: Some(Duration::from_nanos(value)), ports, ..NodeSample::default() } });
                }
                7 => world.now += Duration::from_secs(value % 100),
                _ => world.input(Input::LeaseEndRequested { lease: value % 4 }),
            }
            let on_trial = world.core.trials().iter().filter(|t| matches!(t.state, State::Proposed | State::Holding)).count();
            prop_assert!(on_trial <= 1);
        }
        world.input(Input::FreezeSet { frozen: true });
        prop_assert!(world.core.trials().iter().all(|t| !t.is_live()));
    }
}
