//! Stories of a small fabric, and arbitrary sequences: what is found and when, what is left alone.

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
        Signal::LinkUp | Signal::NvlinkUp => 1,
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

#[test]
fn each_rule_fires_after_n_of_m_on_its_device_and_clears() {
    for rule in RULES
        .iter()
        .filter(|r| !matches!(r.condition, Condition::Falls(_)))
    {
        for entity in rule.entities {
            let mut world = World::new();
            let subject = match entity {
                Entity::Port => "eth0",
                Entity::Rdma => "mlx5_0/1",
                Entity::Gpu => "0000:3b:00.0",
                Entity::Node | Entity::Probe => unreachable!(),
            };
            world.set("h2", subject, rule.signal, bad(rule));
            let held_back = usize::from(*entity == Entity::Rdma) * 2;
            let (after, found) = world.until_found(60);
            let least = match rule.condition {
                Condition::Counts { budget, .. } => {
                    let budget = budget(&Settings::default());
                    let enough = |n: &u16| f32::from(*n) * budget.each_s >= budget.burst;
                    (1u16..60).find(enough).unwrap().into()
                }
                Condition::Below { .. }
                | Condition::Above(_)
                | Condition::Bits(_)
                | Condition::Falls(_) => rule.n_of_m.0 as usize,
            };
            assert!(
                (least..=least + held_back + 1).contains(&after),
                "{} after {after} of {least}",
                rule.finding
            );
            let (class, entity, _) = one(&found);
            assert_eq!(class, rule.class, "{}", rule.finding);
            let cabled = *subject == *"eth0" && rules::is_of_cable(rule.class);
            let whole = if cabled {
                "leaf:p2".to_owned()
            } else {
                format!("h2:{subject}")
            };
            assert_eq!(entity, whole);
            assert_eq!(found[0].action, rule.action);
            world.clear();
            let stands = world.run(usize::from(rule.hold_s) - 2);
            assert_eq!(stands.len(), 1, "{} still stands", rule.finding);
            let found = world.run(40);
            assert!(found.is_empty(), "{}: {found:?}", rule.finding);
        }
    }
}

#[test]
fn a_bad_sample_now_and_then_is_no_fault() {
    for rule in RULES {
        if rule.n_of_m == (1, 1) {
            continue;
        }
        let mut world = World::new();
        let (n, m) = rule.n_of_m;
        let subject = match rule.entities[0] {
            Entity::Port => "eth0",
            Entity::Rdma => "mlx5_0/1",
            Entity::Gpu | Entity::Node | Entity::Probe => "0000:3b:00.0",
        };
        // One less than needed in each window: bad first, then good.
        for k in 0..200u32 {
            let is_bad = k % m < n - 1 && rule.signal != Signal::LinkUp;
            let good = healthy(&column(rule.entities[0], "", rule.signal));
            let value = if is_bad { bad(rule) } else { good };
            world.set("h2", subject, rule.signal, value);
            assert!(world.second().is_empty(), "{}", rule.finding);
        }
    }
}

#[test]
fn both_ends_of_a_cable_are_one_verdict_about_the_switch_port() {
    let mut world = World::new();
    world.set("h1", "eth0", Signal::LinkUp, 0);
    world.set("h1", "mlx5_0/1", Signal::LinkUp, 0);
    world.set("leaf", "p1", Signal::LinkUp, 0);
    let (after, found) = world.until_found(20);
    assert_eq!(after, 5);
    let down = (Class::LinkDown, "leaf:p1".to_owned(), Severity::Critical);
    assert_eq!(one(&found), down);
    assert_eq!(found[0].links, [port("leaf:p1"), port("h1:eth0")]);
    assert!(found[0].confidence > 0.95);
    assert_eq!(one(&world.run(60)), down, "and stays one");
}

#[test]
fn a_link_that_goes_up_and_down_is_a_flap_and_nothing_else() {
    let mut world = World::new();
    let mut found = Vec::new();
    for k in 0..40u64 {
        for (node, name) in [("h1", "eth0"), ("h1", "mlx5_0/1"), ("leaf", "p1")] {
            world.set(node, name, Signal::LinkUp, u64::from(k % 10 != 3));
            world.set(node, name, Signal::LinkDowns, u64::from(k % 10 == 3));
        }
        found = world.second();
        assert!(
            found.is_empty() || k >= 13,
            "not before the second down: {found:?}"
        );
    }
    let flap = (Class::LinkFlap, "leaf:p1".to_owned(), Severity::Warning);
    assert_eq!(one(&found), flap);
    world.clear();
    assert_eq!(one(&world.run(280)), flap);
    assert!(world.run(40).is_empty());
}

#[test]
fn two_downs_in_one_sample_are_a_flap_though_the_gauge_says_up() {
    let mut world = World::new();
    world.set("leaf", "p4", Signal::LinkDowns, 2);
    assert_eq!(one(&world.second()).0, Class::LinkFlap);
    let mut world = World::new();
    world.set("leaf", "p4", Signal::LinkDowns, 1);
    assert!(world.second().is_empty(), "one down is none");
}

#[test]
fn downs_that_only_events_saw_are_a_flap() {
    let mut world = World::new();
    for _ in 0..3 {
        assert!(world.run(20).is_empty());
        world.event("h1", "link_down", "eth0", Severity::Warning);
        world.event("h1", "link_up", "eth0", Severity::Info);
    }
    assert_eq!(one(&world.second()).0, Class::LinkFlap);
}

#[test]
fn a_rack_that_reboots_and_a_port_that_was_never_up_are_no_fault() {
    let mut world = World::new();
    let name = id("h9");
    let columns = world.columns[&id("h0")].clone();
    world.columns.insert(name.clone(), columns);
    world.set("h9", "mlx5_0/1", Signal::LinkUp, 0);
    world.connect(&name);
    let hosts: Vec<String> = (0..3).map(|n| format!("h{n}")).collect();
    for (n, host) in hosts.iter().enumerate() {
        world.lose(host);
        world.set("leaf", &format!("p{n}"), Signal::LinkUp, 0);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    let mut story = Vec::new();
    story.extend(world.second());
    for n in 0..3 {
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 0);
    }
    for _ in 0..90 {
        story.extend(world.second());
    }
    for (n, host) in hosts.iter().enumerate() {
        world.connect(&id(host));
        world.set(host, "eth0", Signal::LinkUp, 0);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    story.extend(world.second());
    for (n, host) in hosts.iter().enumerate() {
        world.set(host, "eth0", Signal::LinkUp, 1);
        world.set("leaf", &format!("p{n}"), Signal::LinkUp, 1);
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 1);
    }
    story.extend(world.second());
    for n in 0..3 {
        world.set("leaf", &format!("p{n}"), Signal::LinkDowns, 0);
    }
    for _ in 0..400 {
        story.extend(world.second());
    }
    assert!(story.is_empty(), "{story:?}");
    world.set("h9", "eth0", Signal::LinkUp, 0);
    assert_eq!(one(&world.run(8)).1, "h9:eth0", "that one was up before");
}

#[test]
fn a_host_that_dies_silently_takes_its_links_along() {
    let mut world = World::new();
    world.silent.insert(id("h3"));
    world.set("leaf", "p3", Signal::LinkUp, 0);
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn events_and_counters_of_one_gpu_are_one_incident() {
    let mut world = World::new();
    world.event("h0", "xid", "0000:3b:00.0", Severity::Critical);
    world.set("h0", "0000:3b:00.0", Signal::EccUncorrected, 1);
    world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
    let found = world.run(3);
    let fault = (
        Class::GpuFault,
        "h0:0000:3b:00.0".to_owned(),
        Severity::Critical,
    );
    assert_eq!(one(&found), fault);
    assert_eq!(found[0].evidence.len(), 3);
    world.event("h0", "xid", "0000:1a:00.0", Severity::Critical);
    assert_eq!(world.second().len(), 2, "another GPU is another");
    world.event("h1", "xid", "0000:1a:00.0", Severity::Info);
    assert_eq!(world.second().len(), 2, "for people only");
}

#[test]
fn a_gpu_that_comes_back_is_well() {
    let mut world = World::new();
    world.event("h0", "gpu_lost", "0000:3b:00.0", Severity::Critical);
    assert_eq!(one(&world.run(7200)).0, Class::GpuFault);
    world.event("h0", "gpu_back", "0000:3b:00.0", Severity::Info);
    assert!(world.second().is_empty());
}

#[test]
fn events_and_counters_of_one_nic_are_one_incident() {
    let mut world = World::new();
    world.event("h0", "nic_health", "0000:5c:00.0", Severity::Critical);
    world.set("h0", "mlx5_0/1", Signal::QpErrors, 50);
    world.set("h0", "eth0", Signal::PcieErrors, 5);
    world.event("h0", "aer_uncorrected", "0000:5c:00.0", Severity::Critical);
    let found = world.run(14);
    assert_eq!(one(&found).1, "h0:0000:5c:00.0");
    assert_eq!(found[0].evidence.len(), 4, "{found:?}");
    world.event("h1", "aer_uncorrected", "0000:99:00.0", Severity::Critical);
    assert_eq!(world.second().len(), 1, "who knows what device that is");
}

#[test]
fn what_all_nodes_have_is_no_nic_fault() {
    let mut world = World::new();
    for n in 0..HOSTS {
        world.set(&format!("h{n}"), "mlx5_0/1", Signal::QpErrors, 50);
    }
    for _ in 0..60 {
        assert!(world.second().is_empty());
    }
}

#[test]
fn a_fault_that_stays_or_returns_becomes_critical() {
    let mut world = World::new();
    world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
    assert_eq!(one(&world.run(10)).2, Severity::Warning);
    assert_eq!(one(&world.run(1800)).2, Severity::Critical);
    let mut world = World::new();
    for round in 0..4 {
        world.set("h0", "0000:3b:00.0", Signal::RowRemapPending, 1);
        let severity = one(&world.run(5)).2;
        assert_eq!(severity == Severity::Critical, round == 3, "{round}");
        world.clear();
        assert!(world.run(90).is_empty());
    }
}

#[test]
fn a_link_that_trained_low_from_the_start_is_seen_beside_its_like() {
    let mut world = World::new();
    world.clear();
    let name = id("h9");
    let columns = world.columns[&id("h0")].clone();
    world.columns.insert(name.clone(), columns);
    world.set("h9", "mlx5_0/1", Signal::RateBps, RATE / 2);
    world.connect(&name);
    assert!(world.run(15).is_empty());
    let found = world.run(15);
    assert_eq!(one(&found).1, "h9:mlx5_0/1");
    assert!(
        found[0].evidence[0].value.contains("200 Gbit/s"),
        "{found:?}"
    );
    assert!(
        found[0].evidence[0].value.contains("400 Gbit/s"),
        "{found:?}"
    );
}

#[test]
fn a_rate_below_the_plan_is_seen_at_once() {
    let mut plan = plan();
    plan.cables[2].rate_bps = Some(2.0 * RATE as f64);
    let mut world = World::new();
    world.topology = Topology::new(plan);
    world.connect(&id("leaf"));
    let found = world.run(30);
    assert_eq!(
        one(&found),
        (Class::DegradedLink, "leaf:p2".into(), Severity::Warning)
    );
}

#[test]
fn ports_that_no_plan_names_are_left_alone() {
    let mut world = World::new();
    world.topology = Topology::new(Plan {
        cables: plan()
            .cables
            .drain(1..)
            .chain([Cable {
                a: port("h0:eth7"),
                b: port("leaf:p0"),
                rate_bps: None,
            }])
            .collect(),
        ..plan()
    });
    world.set("h0", "eth0", Signal::LinkUp, 0);
    world.set("h0", "mlx5_0/1", Signal::LinkUp, 0);
    assert!(world.run(60).is_empty(), "a port for management");
}

#[test]
fn optical_noise_within_the_limit_is_no_fault() {
    let mut world = World::new();
    // 400 Gbit/s at 1e-12 tolerates 0.4 a second.
    for k in 0..3000u64 {
        world.set("leaf", "p1", Signal::SymbolErrors, u64::from(k % 4 == 0));
        world.set(
            "leaf",
            "p2",
            Signal::SymbolErrors,
            if k % 100 == 0 { 25 } else { 0 },
        );
        assert!(world.second().is_empty(), "{k}");
    }
    world.set("leaf", "p1", Signal::SymbolErrors, 4);
    assert_eq!(one(&world.run(7)).0, Class::LinkErrors);
}

#[test]
fn an_agent_that_samples_ten_times_a_second_finds_the_same() {
    let mut world = World::new();
    let node = id("h2");
    world.set("h2", "0000:3b:00.0", Signal::RowRemapFailure, 1);
    let columns = world.columns[&node].clone();
    let values: Vec<Option<u64>> = columns
        .iter()
        .enumerate()
        .map(|(n, c)| {
            world
                .values
                .get(&(node.clone(), n))
                .copied()
                .unwrap_or(Some(healthy(c)))
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..30 {
        world.now += SECOND / 10;
        let tenth = Some(SECOND / 10);
        world.health.sampled(&node, &values, tenth, None, world.now);
        seen.push(world.health.verdicts(&world.topology, world.now).len());
    }
    assert!(
        seen[..10].iter().all(|n| *n == 0),
        "not within a second: {seen:?}"
    );
    assert_eq!(seen[29], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes in whatever order: no panic, bounds hold, the same again gives the same, and
    /// silence ends it.
    #[test]
    fn any_sequence_is_survived(steps in proptest::collection::vec(
        (0usize..8, 0usize..HOSTS, any::<u64>(), 0u64..20_000), 0..120)) {
        let tell = || {
            let mut world = World::new();
            let mut told = Vec::new();
            for (what, host, value, millis) in &steps {
                let pick = usize::from(value.to_le_bytes()[0]);
                let name = format!("h{host}");
                world.now += Duration::from_millis(*millis);
                let columns = world.columns[&id(&name)].clone();
                match what {
                    0 => world.health.lost(&id(&name)),
                    1 => world.connect(&id(&name)),
                    2 => world.health.forget(&id(&name)),
                    3 => {
                        let sign = events::SIGNS[pick % events::SIGNS.len()];
                        let subject = ["eth0", "mlx5_0", "mlx5_0/1", "0000:1a:00.0", ""];
                        let subject = subject[pick % 5];
                        world.event(&name, sign.event, subject, Severity::Warning);
                    }
                    4 => {
                        let topology = &world.topology;
                        let half = columns[..columns.len() / 2].into();
                        world.health.declared(&id(&name), half, topology);
                    }
                    _ => {
                        let wild = |n: usize| match (value >> (n % 60)) & 3 {
                            0 => None,
                            1 => Some(0),
                            2 => Some(*value),
                            _ => Some(value >> (n % 64)),
                        };
                        let values: Vec<_> = (0..columns.len() + 3).map(wild).collect();
                        let elapsed = (*what > 5).then_some(Duration::from_millis(*millis));
                        world.health.sampled(&id(&name), &values, elapsed, None, world.now);
                    }
                }
                let verdicts = world.health.verdicts(&world.topology, world.now);
                for verdict in &verdicts {
                    prop_assert!((0.0..1.0).contains(&verdict.confidence));
                    prop_assert!(!verdict.evidence.is_empty() && verdict.evidence.len() <= 12);
                }
                told.push(verdicts);
            }
            world.now += 2 * Duration::from_secs(86_400);
            prop_assert!(world.health.verdicts(&world.topology, world.now).is_empty());
            Ok(told)
        };
        prop_assert_eq!(tell()?, tell()?);
    }
}
