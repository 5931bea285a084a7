//! Jobs that no agent knows of: the core finds them by their flows, uses them as it uses others, and lets them go.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic, and say aloud what they skip"
)]

mod world;

use std::collections::BTreeMap;
use weir_controller_core::config::Mode;
use weir_controller_core::ids::JobId;
use weir_controller_core::incident::Incident;
use weir_controller_core::jobs::Signature;
use weir_controller_core::trial::State;
use weir_controller_core::verdict::Class;
use world::*;

/// What each flow of a ring would send: three of them share an uplink of 200 Mbit/s at four fifths of it.
const DEMAND_BPS: f64 = 83e6;

/// A ring over all hosts that nobody reports; three of the four flows from leaf 1 share an uplink.
fn unseen(mode: Mode) -> World {
    let mut world = World::new(mode);
    world.job = Some(JobId::new("train"));
    world.unseen = true;
    world.flows = World::ring(&INTERLEAVED, DEMAND_BPS);
    collide(&mut world);
    for h in [1, 2] {
        world.spine.insert((2, address(1, h)), 2);
    }
    world
}

fn collide(world: &mut World) {
    world.spine.retain(|(leaf, _), _| *leaf == 2);
    world.spine.insert((1, address(2, 1)), 2);
}

fn spread(world: &mut World) {
    world.spine.insert((1, address(2, 2)), 2);
}

/// Steps of the job until `seconds` have passed: four seconds of traffic at full rate, then two of computing.
fn train(world: &mut World, seconds: u32) {
    let end = world.now + SECOND * seconds;
    while world.now < end {
        let mut left = 4.0 * DEMAND_BPS;
        while left > 0.0 {
            let mut load: BTreeMap<_, f64> = BTreeMap::new();
            for (key, _) in World::ring(&INTERLEAVED, DEMAND_BPS) {
                for port in world.path(&key) {
                    *load.entry(port).or_default() += DEMAND_BPS;
                }
            }
            let fullest = load.into_values().fold(0.0, f64::max);
            let rate = DEMAND_BPS * (LINK_BPS / fullest).min(1.0);
            let demand = if left < rate { left } else { DEMAND_BPS };
            world.flows = World::ring(&INTERLEAVED, demand);
            world.second();
            left -= rate;
        }
        world.flows.clear();
        world.seconds(2);
    }
}

fn open(world: &World) -> Vec<&Incident> {
    let incidents = world.core.incidents().iter();
    incidents.filter(|i| i.is_open()).collect()
}

fn jobs(world: &World) -> Vec<String> {
    let jobs = world.core.jobs().iter();
    jobs.map(|(job, _)| job.to_string()).collect()
}

#[test]
fn a_ring_that_nobody_reports_is_a_job_with_its_incident_and_no_trial_without_iterations() {
    let mut world = unseen(Mode::Act);
    world.seconds(20);
    assert_eq!(jobs(&world), ["inferred-1"]);
    let inferred = JobId::inferred(1);
    let group = world.core.inference().get(&inferred).unwrap();
    assert_eq!((group.servers.len(), group.rings.len()), (8, 1));
    let [incident] = open(&world)[..] else {
        panic!("{:?}", world.classes());
    };
    assert_eq!(incident.verdict.class, Class::EcmpCollision);
    assert_eq!(incident.verdict.job, Some(inferred.clone()));
    assert_eq!(world.grants(), 0);
    let told = incident.story.iter().map(|(_, text)| text.as_str());
    let why = "nothing is tried: no iterations of job inferred-1 are seen: it is inferred, and samples of its traffic show none";
    assert!(
        told.clone().any(|t| t == why),
        "{:?}",
        told.collect::<Vec<_>>()
    );
    assert!(
        world
            .core
            .jobs()
            .get(&inferred)
            .unwrap()
            .series(world.now)
            .is_none()
    );
}

#[test]
fn a_change_is_judged_by_the_bursts_of_a_job_that_nobody_reports() {
    let mut world = unseen(Mode::Act);
    train(&mut world, 120);
    let trial = world.core.trials().back().unwrap();
    assert_eq!(trial.job, JobId::inferred(1));
    assert_eq!(trial.signature, Signature::Rhythm);
    assert_eq!(trial.state, State::Committed, "{}", trial.reason);
    let (before, after) = trial.medians().unwrap();
    assert!(
        (before - 7.0).abs() < 0.5 && (after - 6.0).abs() < 0.5,
        "{before} -> {after}"
    );
    assert_eq!(world.core.trials().len(), 1);
}

#[test]
fn what_a_job_that_nobody_reports_loses_is_told_from_its_period() {
    let mut world = unseen(Mode::Observe);
    spread(&mut world);
    train(&mut world, 60);
    assert_eq!(open(&world).len(), 0);
    collide(&mut world);
    train(&mut world, 60);
    let [incident] = open(&world)[..] else {
        panic!("{:?}", world.classes());
    };
    let lost = incident.verdict.impact.unwrap().lost_ratio;
    assert!((lost - 1.0 / 7.0).abs() < 0.05, "{lost}");
}

#[test]
fn an_inferred_job_gives_way_to_the_reported_one_without_a_trace() {
    let mut world = unseen(Mode::Observe);
    world.seconds(20);
    let id = open(&world)[0].id.clone();
    world.unseen = false;
    world.seconds(3);
    assert_eq!(jobs(&world), ["train"]);
    assert_eq!(world.core.inference().groups(), []);
    let flows = world.core.flows().active(world.now);
    let named: Vec<_> = flows.filter_map(|(_, f)| f.job.clone()).collect();
    assert_eq!(named, vec![JobId::new("train"); 8]);
    let [incident] = open(&world)[..] else {
        panic!("{:?}", world.classes());
    };
    assert_eq!(incident.id, id);
    assert_eq!(incident.verdict.job, world.job);
    assert_eq!(incident.jobs, [JobId::new("train")].into());
    // Calls that are no longer reported do not bring it back at once, and then under a name of its own.
    world.unseen = true;
    world.seconds(60);
    assert_eq!(world.core.inference().groups(), []);
    world.seconds(80);
    assert_eq!(jobs(&world), ["inferred-2"]);
}

#[test]
fn a_change_for_an_inferred_job_is_given_back_when_the_job_turns_out_to_be_another() {
    let mut world = unseen(Mode::Act);
    train(&mut world, 120);
    assert_eq!(world.core.trials().back().unwrap().state, State::Committed);
    world.unseen = false;
    world.flows = World::ring(&INTERLEAVED, DEMAND_BPS);
    world.seconds(3);
    assert!(!world.core.trials().front().unwrap().is_live());
}
