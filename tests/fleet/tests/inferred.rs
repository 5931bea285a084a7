//! Half of the jobs of noisy fleets are seen by no agent: the core infers them from their flows, and only them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};
use weir_controller::driver::View;
use weir_controller::record::Recorded;
use weir_controller::{metrics, views};
use weir_controller_core::infer::Group;
use weir_fleet::fleet::Fleet;
use weir_fleet::scenario::Scenario;
use weir_fleet::score::run;

/// Scenarios looked at: several fabrics, rings, trees and all-to-all, jobs that write to storage, end and begin.
const SCENARIOS: u64 = 12;
/// Jobs that began later may not be known yet: two windows of flows.
const SETTLED_S: f64 = 60.0;

#[test]
fn the_jobs_that_no_agent_sees_are_inferred_and_no_others() {
    let mut inferred = 0;
    for number in 0..SCENARIOS {
        let mut scenario = Scenario::new(1, number);
        scenario.world.faults.clear();
        scenario.world.unseen = ["train-b", "train-wide"].map(String::from).into();
        let text = scenario.text.clone();
        let (_, fleet) = run(scenario, |_| ());
        shown_as_inferred(&fleet);
        let world = &fleet.world;
        let inference = fleet.brain.core.inference().groups();
        let groups: Vec<BTreeSet<String>> = inference
            .iter()
            .map(|g| g.servers.iter().map(ToString::to_string).collect())
            .collect();
        let trains = |j: &usize| world.jobs[*j].trains();
        let begun = |j: &usize| world.jobs[*j].spec.start_s + SETTLED_S < world.now_s;
        for j in world.active.iter().copied().filter(trains).filter(begun) {
            let spec = &world.jobs[j].spec;
            let nodes = spec
                .nodes
                .iter()
                .map(|n| world.fabric.nodes[*n].name.clone());
            let nodes: BTreeSet<String> = nodes.collect();
            let unseen = !world.is_seen(j);
            assert_eq!(
                groups.contains(&nodes),
                unseen,
                "scenario {number} ({text}), {}: {nodes:?}\n{groups:?}",
                spec.name
            );
            let mixed = groups.iter().any(|g| *g != nodes && !g.is_disjoint(&nodes));
            assert!(!mixed, "scenario {number}, {}: {groups:?}", spec.name);
            inferred += u64::from(unseen);
            // Steps of less than two samples could be anything; what is told all the same must be true.
            let mean_s = (world.now_s - spec.start_s) / world.jobs[j].steps as f64;
            let of_job = |g: &&Group| g.servers.iter().any(|s| nodes.contains(s.as_str()));
            let rhythm = inference
                .iter()
                .find(of_job)
                .and_then(|g| g.rhythm.as_ref());
            if let Some(rhythm) = rhythm {
                let off = rhythm.period.as_secs_f64() / mean_s - 1.0;
                assert!(
                    off.abs() < 0.1,
                    "scenario {number}, {}: {rhythm:?}, {mean_s} s",
                    spec.name
                );
            }
        }
    }
    assert!(inferred * 2 >= SCENARIOS, "{inferred}");
}

/// The API and the metrics tell inferred jobs from reported ones.
fn shown_as_inferred(fleet: &Fleet) {
    let view = View {
        brain: &fleet.brain,
        now: Duration::from_secs_f64(fleet.world.now_s),
        started: SystemTime::UNIX_EPOCH,
        agents_refused: 0,
        recorded: Recorded::default(),
    };
    let page = metrics::render(&view).expect("the catalogue holds");
    for job in views::status(&view).jobs {
        assert_eq!(job.inferred, job.key.starts_with("inferred-"), "{job:?}");
        assert_eq!(job.inferred, job.servers.len() > 1, "{job:?}");
        let line = format!(
            "weir_job_inferred{{job=\"{}\"}} {}",
            job.key,
            u8::from(job.inferred)
        );
        assert!(page.lines().any(|l| l == line), "{line}");
    }
}
