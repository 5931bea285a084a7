//! The core on a small leaf-spine fabric, with a clock that the test turns: what it finds, what it
//! leaves alone, what it asks for, and that every lease ends at its baseline.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

mod world;

use proptest::prelude::*;
use std::time::Duration;
use weir_controller_core::config::Mode;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::{self, Command, Input, LeaseOutcome, NodeSample, PinChange, Role};
use weir_controller_core::trial::{Cause, State};
use weir_controller_core::verdict::Class;
use world::*;

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
                    let ports = vec![io::PortSample { port: "up1".into(), tx_bytes: Some(value), queue_bytes_max: Some(value), drops: Some(value), ..io::PortSample::default() }];
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
