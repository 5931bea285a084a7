//! The simulator itself: the same seed gives the same run, faults have their consequences, the wire takes all of it.

use std::collections::BTreeSet;
use weir_controller_core::verdict::Class;
use weir_fleet::columns::{Gpu, Of, Rdma};
use weir_fleet::counters::Counters;
use weir_fleet::fabric::{Fabric, Shape};
use weir_fleet::fault::{Effect, Fault};
use weir_fleet::fleet::Fleet;
use weir_fleet::healthy::{self, Figures, Plan};
use weir_fleet::job::{Pattern, Spec};
use weir_fleet::scenario::{self, Scenario};
use weir_fleet::score::run;
use weir_fleet::site::Site;
use weir_fleet::world::World;

/// Two leaves with four hosts each, and a ring that crosses the spines with every edge.
fn world() -> World {
    let shape = Shape::LeafSpine {
        leaves: 2,
        hosts: 4,
        spines: 4,
    };
    let mut world = World::new(Fabric::new(shape, 1, 400e9, 5), 8, BTreeSet::new(), 5);
    let hosts: Vec<usize> = world.fabric.hosts().collect();
    let nodes = (0..4).flat_map(|n| [hosts[n], hosts[4 + n]]).collect();
    world.start(Spec {
        name: "ring".into(),
        nodes,
        pattern: Pattern::Ring,
        start_s: 0.0,
        end_s: 1e9,
        compute_s: 0.5,
        transfer_s: 0.25,
        jitter: 0.01,
        blocking: true,
    });
    assert_eq!(
        world.jobs[0].spec.nodes.len(),
        8,
        "there is room for all of it"
    );
    world
}

/// Steps of the ring in half a minute, and in another one under the effect.
fn steps(effect: Option<Effect>) -> (u64, u64, World) {
    let mut world = world();
    if let Some(effect) = effect {
        world.faults.push(Fault::new(
            Class::DegradedLink,
            (30.0, 90.0),
            vec![effect],
            String::new(),
        ));
    }
    (0..30).for_each(|_| world.step(1.0));
    let half = world.jobs[0].steps;
    (0..30).for_each(|_| world.step(1.0));
    (half, world.jobs[0].steps - half, world)
}

#[test]
fn a_healthy_ring_keeps_its_pace_and_no_link_is_contended() {
    let (before, after, world) = steps(None);
    assert!(before >= 38 && after >= 38, "{before} {after}");
    assert!(
        world
            .load
            .links
            .iter()
            .all(|l| l.queue_bytes == 0.0 && l.marked == 0.0)
    );
}

#[test]
fn jobs_hold_each_other_back_only_while_both_send() {
    let shape = Shape::LeafSpine {
        leaves: 2,
        hosts: 4,
        spines: 1,
    };
    let steps = |jobs: &[usize]| {
        let mut world = World::new(Fabric::new(shape, 1, 400e9, 5), 8, BTreeSet::new(), 5);
        let hosts: Vec<usize> = world.fabric.hosts().collect();
        for n in jobs {
            world.start(Spec {
                name: format!("ring-{n}"),
                nodes: vec![hosts[*n], hosts[4 + n]],
                pattern: Pattern::Ring,
                start_s: 0.0,
                end_s: 1e9,
                compute_s: 0.5 + 0.3 * *n as f64,
                transfer_s: 0.25,
                jitter: 0.01,
                blocking: true,
            });
        }
        let mut queued = 0;
        let (mut moved, mut sent) = (0.0, 0.0);
        for _ in 0..60 {
            world.step(1.0);
            queued += u32::from(world.load.links.iter().any(|l| l.queue_bytes > 0.0));
            moved += world.tx.iter().sum::<f64>();
            let of = |j: &weir_fleet::job::Job| -> f64 {
                j.flows
                    .iter()
                    .map(|f| f.path.len() as f64 * f.bytes * j.progress)
                    .sum()
            };
            sent += world.jobs.iter().map(of).sum::<f64>();
        }
        assert!((moved / sent - 1.0).abs() < 1e-9, "{moved} {sent}");
        let steps: Vec<u64> = world.jobs.iter().map(|j| j.steps).collect();
        (steps, queued)
    };
    let (both, queued) = steps(&[0, 1]);
    for n in 0..2 {
        let (alone, none) = steps(&[n]);
        // Were both always to send at once, a step would take a quarter of a second more.
        assert!(
            both[n] < alone[0] && both[n] * 9 > alone[0] * 8,
            "{both:?} {alone:?}"
        );
        assert_eq!(none, 0);
    }
    assert!((5..55).contains(&queued), "{queued}");
}

#[test]
fn half_of_a_link_makes_all_wait_and_queues_before_it() {
    let link = world().jobs[0].flows[0].path[1];
    let (before, after, world) = steps(Some(Effect::Degrade {
        link,
        share: 0.5,
        told: false,
    }));
    assert!((after as f64) < 0.85 * before as f64, "{before} {after}");
    assert!(world.load.links[link].queue_bytes > 0.0);
    assert!(
        (world.physics.trained[link].0 - 400e9).abs() < 1.0,
        "nothing says so"
    );
}

#[test]
fn a_receiver_that_takes_half_pauses_its_leaf() {
    let port = world().jobs[0].flows[0].dst;
    let (before, after, world) = steps(Some(Effect::Drain { port, share: 0.5 }));
    assert!((after as f64) < 0.85 * before as f64, "{before} {after}");
    let to_host = world.fabric.ports[port].peer;
    assert!(world.load.links[to_host].paused > 0.4);
}

#[test]
fn a_storm_stops_everybody_who_sends_there() {
    let port = world().jobs[0].flows[0].dst;
    let (before, after, _) = steps(Some(Effect::Storm { port }));
    assert!(after * 5 < before, "{before} {after}");
}

#[test]
fn a_host_without_a_link_stops_its_job() {
    let link = world().jobs[0].flows[0].src;
    let (_, after, _) = steps(Some(Effect::Down { link }));
    assert!(after <= 1, "{after}");
}

#[test]
fn losses_are_seen_by_both_ends_and_by_no_drop_counter() {
    let flow = world().jobs[0].flows[0].clone();
    let effect = Effect::Loss {
        links: vec![flow.path[1]],
        share: 0.01,
    };
    let (_, _, mut world) = steps(Some(effect));
    let nodes = [flow.src, flow.dst].map(|port| world.fabric.ports[port].node);
    let mut counters = nodes.map(|node| Counters::new(&world, node, 8, 0, 1));
    for _ in 0..5 {
        world.step(1.0);
        for (c, node) in counters.iter_mut().zip(nodes) {
            c.step(&world, node, 1.0);
        }
    }
    let read = |c: &Counters, column: usize| c.values[column].unwrap();
    let [sender, receiver] = &counters;
    assert!(read(sender, sender.layout.device(0, Rdma::SequenceNaks)) > 100);
    assert!(read(receiver, receiver.layout.device(0, Rdma::OutOfSequence)) > 100);
    for c in &counters {
        assert_eq!(read(c, c.layout.port(0, Of::RxDiscards)), 0);
        assert_eq!(read(c, c.layout.port(0, Of::RxErrors)), 0);
    }
}

#[test]
fn a_seed_gives_one_run_and_no_stream_is_refused() {
    // One fault of several classes, two faults, none.
    for number in [0, 8, 13, 15, 16, 18] {
        let [a, b] = [(), ()].map(|()| {
            let (outcome, fleet) = run(Scenario::new(3, number), |_| ());
            assert_eq!(outcome.refused, [], "scenario {number}");
            (serde_json::to_string(&outcome).unwrap(), fleet.fed)
        });
        assert_eq!(a, b, "scenario {number}");
        assert!(a.1.frames > 1000);
    }
}

#[test]
fn what_a_site_lacks_is_absent_and_the_rest_is_there() {
    for site in [Site::Ethernet, Site::Cloud, Site::Amd, Site::Infiniband] {
        let mut world = world();
        world.site = site;
        let node = world.jobs[0].spec.nodes[0];
        let mut counters = Counters::new(&world, node, 8, 2, 1);
        for second in 0..20 {
            world.step(1.0);
            counters.step(&world, node, 1.0);
            match second {
                5 => counters.reset(0, true),
                10 => counters.boot(true),
                _ => {}
            }
        }
        let layout = counters.layout;
        let there = |column: usize| counters.values[column].is_some();
        let infiniband = site == Site::Infiniband;
        assert_eq!(
            there(layout.port(0, Of::PauseRxUs)),
            !infiniband,
            "{site:?}"
        );
        assert_eq!(
            there(layout.device(0, Rdma::CnpRx)),
            !infiniband,
            "{site:?}"
        );
        assert!(there(layout.device(0, Rdma::TxWait)), "{site:?}");
        let amd = site == Site::Amd;
        assert_eq!(there(layout.gpu(3, Gpu::Xids)), !amd, "{site:?}");
        assert_eq!(there(layout.nvlink(3, 1)), !amd, "{site:?}");
        assert!(there(layout.gpu(3, Gpu::EccUncorrected)), "{site:?}");
    }
}

#[test]
fn without_its_switches_a_fabric_is_a_set_of_hosts() {
    // A link that is down, at each kind of site.
    let down = Class::ALL.iter().position(|c| *c == Class::LinkDown);
    for site in [Site::Cloud, Site::Infiniband] {
        let (outcome, fleet) = run(Scenario::at(3, down.unwrap() as u64, 1.0, site), |_| ());
        assert_eq!(outcome.refused, []);
        let hosts = fleet.world.fabric.hosts().count();
        assert_eq!(fleet.agents.len(), hosts);
        assert_eq!(fleet.brain.core.nodes().len(), hosts);
        assert!(outcome.is_clean(), "{site:?}: {}", outcome.line());
        assert_eq!(outcome.faults.len(), 1);
    }
}

#[test]
fn agents_that_look_each_ten_seconds_show_a_collision() {
    let collision = Class::ALL.iter().position(|c| *c == Class::EcmpCollision);
    let scenario = Scenario::at(1, 40 + collision.unwrap() as u64, 10.0, Site::Ethernet);
    let mut fleet = Fleet::new(scenario.world, &scenario.shape, scenario.noise);
    let found = |fleet: &Fleet| fleet.found.iter().any(|f| f.class == Class::EcmpCollision);
    while fleet.world.now_s < scenario.length_s && !found(&fleet) {
        fleet.step();
    }
    let fault = &fleet.world.faults[0];
    assert!(found(&fleet) && fault.is_active(fleet.world.now_s));
}

#[test]
fn threads_and_their_order_change_no_figure() {
    let plan = Plan {
        nodes: 40,
        days: 0.004,
        interval_s: 10.0,
        fleets: 3,
        seed: 4,
        jobs: 1,
        at_most: None,
    };
    let [one, three] = [1, 3].map(|jobs| {
        let figures = healthy::run(&Plan { jobs, ..plan }, |_, _| ());
        Figures {
            cpu_s: 0.0,
            days: 0.0,
            ..figures
        }
    });
    assert_eq!(one, three);
    assert!(one.frames > 1000 && one.refused == 0, "{one:?}");
    let ended = healthy::run(
        &Plan {
            at_most: Some(std::time::Duration::ZERO),
            ..plan
        },
        |_, _| (),
    );
    assert_eq!((ended.frames, ended.days), (0, 0.0));
}

#[test]
fn a_controller_that_restarts_gets_all_streams_back() {
    let mut scenario = scenario::healthy(40, 120.0 / 86_400.0, 1.0, 9);
    scenario.noise = vec![(60.0, 0, weir_fleet::noise::Noise::ControllerRestart)];
    let (outcome, fleet) = run(scenario, |_| ());
    assert_eq!(outcome.refused, []);
    assert!(fleet.agents.iter().all(|a| a.connected));
    let known = fleet
        .brain
        .core
        .nodes()
        .values()
        .filter(|n| n.connected)
        .count();
    assert_eq!(known, fleet.agents.len());
}

#[test]
fn frames_that_are_later_than_a_restart_are_of_the_stream_before() {
    use weir_fleet::noise::Noise::{AgentRestart, Slow};
    let mut scenario = scenario::healthy(40, 90.0 / 86_400.0, 1.0, 9);
    let node = scenario.world.fabric.hosts().next().unwrap();
    let (delay_s, for_s) = (2.3, 20.0);
    scenario.noise = vec![
        (40.0, node, AgentRestart { down_s: 0.6 }),
        (30.0, node, Slow { delay_s, for_s }),
    ];
    let (outcome, fleet) = run(scenario, |_| ());
    assert_eq!(outcome.refused, []);
    let name = fleet.world.fabric.nodes[node].name.as_str();
    let known = fleet.brain.core.nodes();
    let known = known.iter().find(|(id, _)| id.as_str() == name);
    assert!(known.is_some_and(|(_, n)| n.connected));
}

#[test]
fn loss_that_ports_count_or_one_flow_has_beside_a_lossy_switch_is_no_silent_loss_of_its_own() {
    for (number, silent) in [(250, 0), (1911, 1)] {
        let (outcome, fleet) = run(Scenario::new(1, number), |_| ());
        assert!(outcome.is_clean(), "{}", outcome.line());
        let told = fleet.found.iter();
        let told = told.filter(|f| f.class == Class::SilentLoss);
        assert_eq!(told.count(), silent, "scenario {number}");
    }
}
