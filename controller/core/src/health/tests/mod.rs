//! Stories of a small fabric, and arbitrary sequences: what is found and when, what is left alone.

mod devices;
mod links;
mod noise;

use super::rules::{Condition, RULES, Rule};
use super::*;
use crate::config::Health as Settings;
use crate::topology::{Cable, Plan};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const RATE: u64 = 400_000_000_000;

fn id(name: &str) -> NodeId {
    NodeId::new(name)
}

fn port(text: &str) -> PortId {
    PortId::parse(text).unwrap()
}

fn column(entity: Entity, subject: &str, signal: Signal) -> Column {
    Column {
        entity,
        subject: subject.into(),
        index: None,
        signal,
    }
}

/// Six hosts `h0` to `h5`, each with `eth0` on port `p0` to `p5` of `leaf`.
struct World {
    health: Health,
    topology: Topology,
    now: Duration,
    columns: BTreeMap<NodeId, Arc<[Column]>>,
    /// What differs from a healthy node.
    values: BTreeMap<(NodeId, usize), Option<u64>>,
    /// Nodes that send nothing.
    silent: BTreeSet<NodeId>,
}

const HOSTS: usize = 6;

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.nodes.insert(id("leaf"), Role::Switch);
    for n in 0..HOSTS {
        plan.nodes.insert(id(&format!("h{n}")), Role::Host);
        plan.cables.push(Cable {
            a: port(&format!("h{n}:eth0")),
            b: port(&format!("leaf:p{n}")),
            rate_bps: None,
        });
    }
    plan
}

/// A healthy value: links are up and trained, counters do not rise.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are at rest")]
fn healthy(column: &Column) -> u64 {
    match column.signal {
        Signal::LinkUp | Signal::AdminUp | Signal::NvlinkUp => 1,
        Signal::RateBps => RATE,
        Signal::Lanes | Signal::PcieGeneration => 5,
        Signal::PcieWidth => 16,
        Signal::FabricState => 3,
        Signal::GpuUtilisation => 97,
        Signal::ClockReasons => 0x4,
        Signal::ModuleTemperature => 62_000,
        _ => 0,
    }
}

impl World {
    fn new() -> World {
        let mut world = World {
            health: Health::new(Settings::default()),
            topology: Topology::new(plan()),
            now: Duration::ZERO,
            columns: BTreeMap::new(),
            values: BTreeMap::new(),
            silent: BTreeSet::new(),
        };
        let ruled = |entity: Entity, name: &str| {
            let signals = Signal::ALL
                .iter()
                .filter(|s| s.entities().contains(&entity));
            let watched = signals.filter(|s| watches(entity, **s));
            watched
                .map(|s| column(entity, name, *s))
                .collect::<Vec<_>>()
        };
        let mut leaf = Vec::new();
        for n in 0..HOSTS {
            let devices = [
                ruled(Entity::Port, "eth0"),
                ruled(Entity::Rdma, "mlx5_0/1"),
                ruled(Entity::Gpu, "0000:1a:00.0"),
                ruled(Entity::Gpu, "0000:3b:00.0"),
            ];
            world
                .columns
                .insert(id(&format!("h{n}")), devices.concat().into());
            leaf.extend(ruled(Entity::Port, &format!("p{n}")));
        }
        world.columns.insert(id("leaf"), leaf.into());
        for node in world.columns.clone().into_keys() {
            world.connect(&node);
        }
        world.run(20);
        world
    }

    fn connect(&mut self, node: &NodeId) {
        let is_leaf = *node == id("leaf");
        let role = if is_leaf { Role::Switch } else { Role::Host };
        self.health.connected(node, role, self.now);
        let columns = self.columns[node].clone();
        self.health.declared(node, columns, &self.topology);
        self.silent.remove(node);
    }

    fn lose(&mut self, node: &str) {
        self.silent.insert(id(node));
        self.health.lost(&id(node));
    }

    /// From now on the signal shows this, or rises by so much in each sample.
    fn set(&mut self, node: &str, subject: &str, signal: Signal, value: impl Into<Option<u64>>) {
        let columns = &self.columns[&id(node)];
        let is = |c: &Column| &*c.subject == subject && c.signal == signal;
        let n = columns.iter().position(is).unwrap();
        self.values.insert((id(node), n), value.into());
    }

    fn clear(&mut self) {
        self.values.clear();
    }

    /// A sample of every node; what stands after it.
    fn second(&mut self) -> Vec<Verdict> {
        self.now += SECOND;
        for (node, columns) in self.columns.clone() {
            if self.silent.contains(&node) {
                continue;
            }
            let value = |(n, c): (usize, &Column)| {
                let changed = self.values.get(&(node.clone(), n)).copied();
                changed.unwrap_or(Some(healthy(c)))
            };
            let values: Vec<Option<u64>> = columns.iter().enumerate().map(value).collect();
            self.health
                .sampled(&node, &values, Some(SECOND), None, self.now);
        }
        self.health.verdicts(&self.topology, self.now)
    }

    fn run(&mut self, seconds: usize) -> Vec<Verdict> {
        (0..seconds)
            .map(|_| self.second())
            .last()
            .unwrap_or_default()
    }

    /// Seconds until something stands, and what.
    fn until_found(&mut self, most: usize) -> (usize, Vec<Verdict>) {
        for n in 1..=most {
            let found = self.second();
            if !found.is_empty() {
                return (n, found);
            }
        }
        panic!("nothing in {most} seconds");
    }

    fn event(&mut self, node: &str, name: &str, subject: &str, severity: Severity) {
        let event = NodeEvent {
            source: "kmsg".into(),
            name: name.into(),
            subject: subject.into(),
            code: (name == "xid").then_some(79),
            severity,
            text: format!("{name} happened"),
            action: "do something".into(),
        };
        self.health.event_seen(&id(node), event, self.now);
    }
}

fn one(verdicts: &[Verdict]) -> (Class, String, Severity) {
    let [verdict] = verdicts else {
        panic!("{verdicts:#?}");
    };
    assert!(!verdict.evidence.is_empty() && !verdict.action.is_empty());
    assert!((0.5..1.0).contains(&verdict.confidence), "{verdict:?}");
    (verdict.class, verdict.entity.to_string(), verdict.severity)
}

/// A value that the rule calls bad, of a healthy one.
fn bad(rule: &Rule) -> u64 {
    match rule.condition {
        Condition::Counts { .. } => 1_000_000,
        Condition::Below { .. } => healthy(&column(rule.entities[0], "", rule.signal)) / 2,
        Condition::Falls(_) => 0,
        Condition::Above(limit) => limit(&Settings::default()) + 1,
        Condition::Bits(bits) => 1 << bits.trailing_zeros(),
    }
}
