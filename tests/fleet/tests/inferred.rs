//! Half of the jobs of noisy fleets are seen by no agent: the core infers them from their flows, and only them.

use std::collections::BTreeSet;
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
        let world = &fleet.world;
        let groups = fleet.brain.core.inference().groups();
        let groups: Vec<BTreeSet<String>> = groups
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
        }
    }
    assert!(inferred * 2 >= SCENARIOS, "{inferred}");
}
