//! What the hotspot detector calls things, on a small fabric.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

mod world;

use std::collections::BTreeMap;
use weir_controller_core::config::{Config, Mode};
use weir_controller_core::ids::{JobId, PortId};
use weir_controller_core::verdict::{Class, Subject, Verdict};
use weir_controller_core::{Core, verdict::Severity};
use world::*;

/// A ring across both leaves whose flows have a spine for each pair.
fn balanced() -> World {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    world.flows = World::ring(&INTERLEAVED, 85e6);
    for (l, h) in [(2, 2), (2, 4), (1, 2), (1, 4)] {
        world.spine.insert((3 - l, address(l, h)), 2);
    }
    world
}

fn port(text: &str) -> PortId {
    PortId::parse(text).unwrap()
}

/// The only verdict.
fn verdict(world: &World) -> &Verdict {
    let mut incidents = world.core.incidents().iter();
    let first = incidents.next().unwrap();
    assert_eq!(incidents.next().map(|i| &i.verdict), None);
    &first.verdict
}

#[test]
fn a_host_that_pauses_its_link_is_a_slow_receiver_and_what_waits_for_it_a_consequence() {
    let mut world = balanced();
    world.paused = BTreeMap::from([
        (port("l2:h1"), 0.7),
        (port("s1:down2"), 0.4),
        (port("l1:up1"), 0.2),
    ]);
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(verdict.class, Class::SlowReceiver);
    assert_eq!(verdict.entity, Subject::Link(port("l2:h1")));
    assert!(
        verdict.links.contains(&port("s1:down2")) && verdict.links.contains(&port("l1:up1")),
        "{verdict:?}"
    );
    assert_eq!(world.grants(), 0);
}

#[test]
fn a_host_that_lets_nothing_through_is_a_storm() {
    let mut world = balanced();
    world.paused = BTreeMap::from([(port("l2:h1"), 0.97), (port("s1:down2"), 0.9)]);
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(
        (verdict.class, verdict.severity),
        (Class::PfcStorm, Severity::Critical)
    );
    assert_eq!(verdict.entity, Subject::Link(port("l2:h1")));
}

#[test]
fn a_switch_that_pauses_for_no_reason_is_a_storm() {
    let mut world = balanced();
    world.paused = BTreeMap::from([(port("l1:up1"), 0.6)]);
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(verdict.class, Class::PfcStorm);
    assert!(verdict.action.contains("s1"), "{}", verdict.action);
}

#[test]
fn links_that_wait_for_each_other_in_a_circle_are_a_storm() {
    let mut world = World::new(Mode::Act);
    world.paused = ["l1:up1", "s1:down2", "l2:up2", "s2:down1"]
        .map(|p| (port(p), 0.9))
        .into();
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(verdict.class, Class::PfcStorm);
    assert!(verdict.action.contains("circle"), "{}", verdict.action);
    assert_eq!(verdict.links.len(), 4);
}

#[test]
fn pause_by_a_link_that_is_too_full_belongs_to_what_fills_it() {
    let mut world = World::new(Mode::Act);
    world.flows = [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)]
        .map(|s| (flow(s, (1, 1)), 150e6))
        .to_vec();
    world.paused = BTreeMap::from([(port("s1:down1"), 0.3)]);
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(verdict.class, Class::Incast);
    assert_eq!(verdict.entity, Subject::Link(port("l1:h1")));
    assert!(verdict.links.contains(&port("s1:down1")));
}

#[test]
fn a_link_that_carries_less_than_its_rate_says_is_degraded() {
    let mut world = balanced();
    world.squeezed = BTreeMap::from([(port("s2:down1"), 0.25)]);
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(verdict.class, Class::DegradedLink);
    assert_eq!(verdict.entity, Subject::Link(port("s2:down1")));
    assert_eq!(world.grants(), 0);
}

#[test]
fn a_link_of_a_job_that_starts_is_not_degraded_by_flows_that_are_not_told_yet() {
    let mut world = balanced();
    world.squeezed = BTreeMap::from([(port("s2:down1"), 0.25)]);
    world.seconds(6);
    assert_eq!(world.classes(), []);
    world.seconds(6);
    assert_eq!(world.classes(), [Class::DegradedLink]);
}

#[test]
fn few_marks_are_a_collision_only_if_they_outlast_a_checkpoint() {
    for (marks, short, long) in [(0.002, 4, 8), (0.02, 1, 4)] {
        let mut world = World::new(Mode::Observe);
        world.job = Some(JobId::new("train"));
        world.flows = World::ring(&INTERLEAVED, 85e6);
        world.marks = Some(marks);
        world.seconds(short);
        assert_eq!(world.classes(), [], "{marks}");
        world.seconds(long - short);
        assert_eq!(world.classes(), [Class::EcmpCollision], "{marks}");
    }
}

#[test]
fn an_all_to_all_that_fills_every_last_hop_is_no_incast() {
    let mut world = World::new(Mode::Act);
    world.job = Some(JobId::new("train"));
    let hosts: Vec<(u8, u8)> = (1..=4).map(|h| (1, h)).collect();
    let pairs = hosts
        .iter()
        .flat_map(|a| hosts.iter().map(move |b| (*a, *b)));
    world.flows = pairs
        .filter(|(a, b)| a != b)
        .map(|(a, b)| (flow(a, b), 66.5e6))
        .collect();
    world.seconds(60);
    assert_eq!(world.classes(), []);
}

#[test]
fn traffic_to_storage_is_a_burst_and_nothing_is_rerouted() {
    let mut world = World::new(Mode::Act);
    let config = Config {
        mode: Mode::Act,
        ..Config::default()
    };
    let mut plan = plan();
    plan.storage.insert(host(2, 1));
    let connected = world.core.nodes().clone();
    world.core = Core::new(config, plan, false, 0);
    for (node, known) in connected {
        world.connect(&node, known.role);
    }
    world.job = Some(JobId::new("train"));
    world.flows = [(1, 1), (1, 2), (1, 3), (1, 4)]
        .map(|s| (flow(s, (2, 1)), 150e6))
        .to_vec();
    world.seconds(10);
    let verdict = verdict(&world);
    assert_eq!(
        (verdict.class, verdict.severity),
        (Class::StorageBurst, Severity::Info)
    );
    assert_eq!(world.grants(), 0);
}

#[test]
fn a_collision_tells_what_it_costs() {
    let mut world = balanced();
    world.iteration = |load| 0.3 * (load / LINK_BPS).max(1.0);
    world.flows = World::ring(&INTERLEAVED, 95e6);
    world.seconds(8);
    assert_eq!(world.classes(), []);
    world.spine.clear();
    for leaf in 1..=2 {
        world.routes_changed(&node("l", leaf));
    }
    world.seconds(4);
    let impact = verdict(&world).impact.unwrap();
    assert_eq!(impact.ranks, 8);
    assert!(
        impact.lost_ratio > 0.2 && impact.lost_ratio <= 1.0,
        "{impact:?}"
    );
}
