//! Whatever reaches the core, in whatever order: it does not panic, no table outgrows its limit, no
//! command lacks a verdict or an operator's request, no more changes run at once than the policy
//! allows, whatever it is, every lease ends at its baseline, and the same inputs give the same commands.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "the functions that tests share are tests too: they panic, and leave alone what they do not play"
)]

mod model;

use model::{Answer, HOSTS, Model, address, flow, host};
use proptest::prelude::*;
use std::time::Duration;
use weir_controller_core::config::{Config, Mode};
use weir_controller_core::ids::{FlowKey, JobId, NodeId};
use weir_controller_core::io::{
    CollectiveDone, CollectiveRunning, Column, EcmpGroup, FlowSample, Input, Inventory,
    LeaseOutcome, NodeEvent, NodeSample, PinChange, PortInventory, PortSample, ResolvedHop, Role,
};
use weir_controller_core::verdict::Severity;
use weir_signal::{Entity, Signal};

/// What the world does next.
#[derive(Debug, Clone)]
enum Step {
    /// A second of traffic that collides.
    Second,
    Answer(Answer),
    Wait(Duration),
    Tick,
    Input(Input),
    /// The last input again: repeated, and out of its order.
    Again,
    SegmentBegun,
}

fn node() -> impl Strategy<Value = NodeId> {
    let known = prop::sample::select(vec![
        "h11", "h12", "h21", "h24", "l1", "l2", "s1", "s2", "stranger", "",
    ]);
    known.prop_map(NodeId::new)
}

fn port() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "eth0", "up1", "up2", "h1", "h4", "down1", "down2", "x",
    ])
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        1u64..100_000_000,
        any::<u64>(),
        Just(u64::MAX)
    ]
}

/// Lease numbers begin after 1000.
fn lease() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1000u64..1006, 1 => any::<u64>()]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::from_nanos(1)),
        Just(Duration::from_secs(1)),
        any::<u64>().prop_map(Duration::from_nanos),
        Just(Duration::MAX),
    ]
}

fn job() -> impl Strategy<Value = JobId> {
    prop::sample::select(vec!["train", "other", ""]).prop_map(JobId::new)
}

fn key() -> impl Strategy<Value = FlowKey> {
    let strange =
        any::<(u32, u32, u16, u16)>().prop_map(|(src, dst, src_port, dst_port)| FlowKey {
            src: src.into(),
            dst: dst.into(),
            src_port,
            dst_port,
        });
    prop_oneof![4 => (0..HOSTS.len()).prop_map(flow), 1 => strange]
}

fn port_sample() -> impl Strategy<Value = PortSample> {
    let numbers = prop::array::uniform9(prop::option::of(number()));
    (port(), numbers, any::<Option<bool>>()).prop_map(|(port, n, up)| PortSample {
        port: port.into(),
        tx_bytes: n[0],
        queue_bytes_max: n[1],
        drops: n[2],
        tx_packets: n[3],
        rx_bytes: n[4],
        rx_packets: n[5],
        ecn_marked: n[6],
        pause_rx_us: n[7],
        pause_tx_us: n[8],
        up,
    })
}

fn flow_sample() -> impl Strategy<Value = FlowSample> {
    let value = (key(), prop::option::of(job()), number(), number());
    value.prop_map(|(key, job, bytes, retransmits)| FlowSample {
        key,
        job,
        bytes,
        retransmits,
        srtt_us: 0,
        delivered_ce: retransmits,
        received_ce: bytes,
        cnps_sent: bytes,
    })
}

fn call() -> impl Strategy<Value = CollectiveDone> {
    let op = prop::sample::select(vec!["MPI_Allreduce", "ncclAllReduce", "ncclGroupEnd", ""]);
    let rank = prop::option::of(any::<u32>());
    let times = (duration(), duration());
    (job(), rank, op, prop::option::of(number()), times).prop_map(
        |(job, rank, op, bytes, (started_before, duration))| CollectiveDone {
            job,
            rank,
            ranks: rank,
            op: op.into(),
            bytes,
            started_before,
            duration,
        },
    )
}

fn sample() -> impl Strategy<Value = NodeSample> {
    let some = |n| 0..n;
    let running = (job(), duration()).prop_map(|(job, running)| CollectiveRunning { job, running });
    (
        prop::option::of(duration()),
        prop::collection::vec(port_sample(), some(3)),
        prop::collection::vec(call(), some(4)),
        prop::collection::vec(running, some(2)),
        prop::collection::vec(flow_sample(), some(4)),
        prop::collection::vec(key(), some(2)),
        prop::collection::vec(prop::option::of(number()), some(8)),
    )
        .prop_map(
            |(elapsed, ports, collectives, running, flows, flows_closed, values)| NodeSample {
                elapsed,
                ports,
                collectives,
                running,
                flows,
                flows_closed,
                values,
            },
        )
}

fn column() -> impl Strategy<Value = Column> {
    let entity = prop::sample::select(vec![
        Entity::Node,
        Entity::Port,
        Entity::Rdma,
        Entity::Gpu,
        Entity::Probe,
    ]);
    let signal = prop::sample::select(Signal::ALL.to_vec());
    (entity, port(), any::<Option<u32>>(), signal).prop_map(|(entity, subject, index, signal)| {
        Column {
            entity,
            subject: subject.into(),
            index,
            signal,
        }
    })
}

fn event() -> impl Strategy<Value = NodeEvent> {
    let name = prop::sample::select(vec![
        "xid",
        "gpu_lost",
        "link_down",
        "port_error",
        "aer",
        "",
    ]);
    let severity =
        prop::sample::select(vec![Severity::Info, Severity::Warning, Severity::Critical]);
    (name, port(), any::<Option<u32>>(), severity).prop_map(|(name, subject, code, severity)| {
        NodeEvent {
            source: "kmsg".into(),
            name: name.into(),
            subject: subject.into(),
            code,
            severity,
            text: String::new(),
            action: String::new(),
        }
    })
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let addresses = prop::collection::vec((any::<u32>(), any::<u8>()), 0..3);
    let reported = (port(), any::<bool>(), addresses, prop::option::of(number()));
    let reported = reported.prop_map(|(name, up, addresses, speed_bps)| PortInventory {
        name: name.into(),
        up,
        addresses: addresses.into_iter().map(|(a, p)| (a.into(), p)).collect(),
        neighbours: vec![address(1, 1)],
        speed_bps,
    });
    let group = (any::<u32>(), prop::collection::vec(port(), 0..3));
    let group = group.prop_map(|(id, members)| EcmpGroup {
        id,
        members: members.into_iter().map(Into::into).collect(),
    });
    let ports = prop::collection::vec(reported, 0..4);
    let groups = prop::collection::vec(group, 0..2);
    (ports, groups, number()).prop_map(|(ports, groups, routes_epoch)| Inventory {
        ports,
        groups,
        routes_epoch,
    })
}

fn hop() -> impl Strategy<Value = ResolvedHop> {
    let value = (
        key(),
        port(),
        prop::option::of(port()),
        any::<Option<u32>>(),
    );
    value.prop_map(|(key, in_port, out_port, group)| ResolvedHop {
        key,
        in_port: in_port.into(),
        out_port: out_port.map(Into::into),
        group,
    })
}

fn input() -> impl Strategy<Value = Input> {
    let role = prop::sample::select(vec![Role::Host, Role::Switch]);
    let outcome = prop::sample::select(vec![
        LeaseOutcome::Applied,
        LeaseOutcome::Refused,
        LeaseOutcome::Ended,
    ]);
    let pin = (node(), 0..HOSTS.len(), port()).prop_map(|(node, n, port)| PinChange {
        node,
        dst: flow(n).dst,
        port: port.into(),
    });
    prop_oneof![
        2 => (node(), role, prop::collection::vec(lease(), 0..2))
            .prop_map(|(node, role, held_leases)| Input::NodeConnected { node, role, held_leases }),
        2 => node().prop_map(|node| Input::NodeLost { node }),
        2 => (node(), inventory()).prop_map(|(node, inventory)| Input::InventoryReported { node, inventory }),
        6 => (node(), sample()).prop_map(|(node, sample)| Input::SampleReported { node, sample }),
        2 => (node(), prop::collection::vec(column(), 0..8))
            .prop_map(|(node, columns)| Input::ColumnsDeclared { node, columns: columns.into() }),
        2 => (node(), event()).prop_map(|(node, event)| Input::EventReported { node, event }),
        1 => (node(), prop::collection::vec(hop(), 0..4)).prop_map(|(node, hops)| Input::PathsResolved { node, hops }),
        2 => (node(), lease(), outcome).prop_map(|(node, lease, outcome)| Input::LeaseReported { node, lease, outcome, reason: String::new() }),
        1 => any::<bool>().prop_map(|frozen| Input::FreezeSet { frozen }),
        2 => (job(), prop::collection::vec(pin, 0..4)).prop_map(|(job, pins)| Input::TrialRequested { job, pins }),
        1 => lease().prop_map(|lease| Input::LeaseEndRequested { lease }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop::sample::select(vec![Answer::Yes, Answer::Yes, Answer::No, Answer::Silence]);
    prop_oneof![
        8 => Just(Step::Second),
        1 => answer.prop_map(Step::Answer),
        2 => (0u64..40_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        3 => Just(Step::Tick),
        6 => input().prop_map(Step::Input),
        1 => Just(Step::Again),
        1 => Just(Step::SegmentBegun),
    ]
}

/// Any policy; most may act.
fn policy() -> impl Strategy<Value = Config> {
    let mode = prop_oneof![6 => Just(Mode::Act), 1 => Just(Mode::Advise), 1 => Just(Mode::Observe)];
    let times = (1u64..90, 1u64..10, 1u64..120);
    (mode, 1usize..=8, times).prop_map(|(mode, changes_max, (ttl, apply, hold))| {
        let mut config = model::acting();
        config.mode = mode;
        config.trial.changes_max = changes_max;
        config.trial.ttl = Duration::from_secs(ttl);
        config.trial.apply_timeout = Duration::from_secs(apply);
        config.trial.hold_timeout = Duration::from_secs(hold);
        config
    })
}

fn run(config: &Config, steps: &[Step]) -> Model {
    let mut model = Model::new(config.clone());
    // So that a lease is under way in most cases.
    (0..5).for_each(|_| model.second());
    go_on(&mut model, steps);
    model
}

fn go_on(model: &mut Model, steps: &[Step]) {
    let mut last = None;
    for step in steps {
        match step {
            Step::Second => model.second(),
            Step::Answer(answer) => model.answer = *answer,
            Step::Wait(time) => model.now += *time,
            Step::Tick => model.tick(),
            Step::Input(input) => {
                model.input(input.clone());
                last = Some(input.clone());
            }
            Step::Again => last.iter().cloned().for_each(|input| model.input(input)),
            Step::SegmentBegun => model.input(Input::SegmentBegun),
        }
    }
}

proptest! {
    #[test]
    fn whatever_comes_the_rules_hold(config in policy(), steps in prop::collection::vec(step(), 0..80)) {
        let mut model = run(&config, &steps);
        model.fork();
        // An operator freezes: where a node hears it, every route is as it was before, at once.
        model.input(Input::FreezeSet { frozen: true });
        model.tick();
        prop_assert_eq!(model.moved_where_heard(), 0);
        // Nobody answers any more, time passes: nothing is left of any lease anywhere.
        model.answer = Answer::Silence;
        model.now += config.trial.ttl;
        model.tick();
        prop_assert!(model.is_at_baseline());
        prop_assert!(model.core.trials().iter().all(|t| !t.is_live()));
    }

    #[test]
    fn a_core_that_goes_on_from_another_does_the_same(
        config in policy(),
        before in prop::collection::vec(step(), 0..60), after in prop::collection::vec(step(), 0..60),
    ) {
        let mut one = run(&config, &before);
        let mut other = one.fork();
        go_on(&mut one, &after);
        go_on(&mut other, &after);
        other.check_same(&one);
    }

    #[test]
    fn the_same_inputs_give_the_same_commands(config in policy(), steps in prop::collection::vec(step(), 0..60)) {
        let (one, two) = (run(&config, &steps), run(&config, &steps));
        two.check_same(&one);
    }
}

#[test]
fn only_a_policy_that_may_act_changes_anything() {
    for mode in [Mode::Observe, Mode::Advise, Mode::Act] {
        let mut config = model::acting();
        config.mode = mode;
        let mut model = Model::new(config);
        (0..30).for_each(|_| model.second());
        let granted = model.log.iter().any(|line| line.contains("Grant"));
        assert_eq!(granted, mode == Mode::Act, "{mode:?}");
        let found = model.core.incidents().iter().next().is_some();
        assert!(found, "{mode:?}");
    }
}

/// The generator is worth its name: leases are granted, renewed and ended in it.
#[test]
fn the_model_itself_brings_leases_about() {
    let mut model = Model::new(model::acting());
    assert!(model.is_at_baseline());
    (0..30).for_each(|_| model.second());
    for what in ["QueryPaths", "Grant", "Renew", "faster, kept"] {
        assert!(model.log.iter().any(|line| line.contains(what)), "{what}");
    }
    model.input(Input::NodeLost {
        node: NodeId::new("l1"),
    });
    assert!(
        model
            .log
            .last()
            .unwrap()
            .contains("the stream of l1 was lost")
    );
    assert!(
        !model.is_at_baseline(),
        "the lost node's lease has not run out"
    );
    model.now += model.config.trial.ttl;
    assert!(model.is_at_baseline());
    model.fork();
}

fn sampled(model: &mut Model, node: &NodeId, sample: NodeSample) {
    let sample = NodeSample {
        elapsed: Some(Duration::from_secs(1)),
        ..sample
    };
    let node = node.clone();
    model.input(Input::SampleReported { node, sample });
}

#[test]
fn a_flood_of_names_fills_no_table_beyond_its_limit() {
    let mut model = Model::new(model::acting());
    let flow = |n: u32, job: &str| FlowSample {
        key: FlowKey {
            src: n.into(),
            dst: address(1, 1),
            src_port: 1,
            dst_port: 1,
        },
        job: Some(JobId::new(job)),
        bytes: 1_000_000,
        retransmits: 1,
        srtt_us: 0,
        delivered_ce: 0,
        received_ce: 0,
        cnps_sent: 0,
    };
    for n in 0..17_000 {
        let node = NodeId::new(&format!("n{n}"));
        let role = Role::Switch;
        let connected = Input::NodeConnected {
            node: node.clone(),
            role,
            held_leases: vec![],
        };
        // Not through the model, which looks at everything each time.
        model.core.handle_input(connected, model.now);
        if n < 1100 {
            let flows = vec![flow(n, "train")];
            let sample = NodeSample {
                elapsed: Some(Duration::from_secs(1)),
                flows,
                ..NodeSample::default()
            };
            let node = node.clone();
            model
                .core
                .handle_input(Input::SampleReported { node, sample }, model.now);
        }
        model.core.handle_input(Input::NodeLost { node }, model.now);
    }
    let flows = (0..70_000).map(|n| flow(n, "train"));
    let sample = NodeSample {
        flows: flows.collect(),
        ..NodeSample::default()
    };
    sampled(&mut model, &host(1, 1), sample);
    let calls = (0..5000).map(|n| CollectiveDone {
        // One job with many ranks and calls, and many jobs.
        job: JobId::new(&if n < 500 {
            "train".into()
        } else {
            format!("job {n}")
        }),
        rank: Some(n % 9),
        ranks: Some(9),
        op: "MPI_Allreduce".into(),
        bytes: Some(1),
        started_before: Duration::ZERO,
        duration: Duration::from_secs(1),
    });
    let collectives: Vec<CollectiveDone> = calls.collect();
    for _ in 0..8 {
        let sample = NodeSample {
            collectives: collectives[..500].to_vec(),
            ..NodeSample::default()
        };
        sampled(&mut model, &host(1, 1), sample);
    }
    let most = |model: &Model, name: &str| {
        let tables = model.core.tables();
        let table = tables.iter().find(|t| t.name == name).unwrap();
        (table.held, table.max)
    };
    for name in [
        "ranks of a job",
        "iterations of a series",
        "candidates of a job",
    ] {
        let (held, max) = most(&model, name);
        assert_eq!(held, max, "{name}");
    }
    let sample = NodeSample {
        collectives,
        ..NodeSample::default()
    };
    sampled(&mut model, &host(1, 1), sample);
    model.tick();
    let full: Vec<&str> = model
        .core
        .tables()
        .iter()
        .filter(|t| t.held == t.max)
        .map(|t| t.name)
        .collect();
    for name in [
        "nodes",
        "inventories",
        "route epochs",
        "flows",
        "jobs",
        "candidates of a job",
    ] {
        assert!(full.contains(&name), "{name} is not full: {full:?}");
    }
    assert!(
        model.core.flows().refused() > 0,
        "what was refused is counted"
    );
    // What is gone for long gives its place back.
    model.now += Duration::from_secs(2 * 86_400);
    model.tick();
    for table in model.core.tables() {
        assert!(table.held <= table.max, "{table:?}");
        if ["nodes", "flows", "jobs", "route epochs"].contains(&table.name) {
            assert!(table.held <= 12, "{table:?}");
        }
    }
}
