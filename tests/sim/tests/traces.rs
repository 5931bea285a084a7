//! Our model of each trace of the independent simulator, beside it. The traces are not part of the project.

use std::collections::BTreeSet;
use std::path::PathBuf;
use weir_sim::diagnose::jobs_in_trace;
use weir_sim::reference::{Cell, TRAFFIC, order, run};
use weir_sim::scenario::Scenario;
use weir_sim::traces::{MODELS, Trace, compare};
use weir_sim::truths::diagnose;

/// Where the traces are, `WEIR_TRACES`; says aloud that the test is skipped where nobody names a place. A place without
/// them fails.
#[expect(clippy::print_stdout, reason = "a test that skips says so")]
fn traces() -> Option<PathBuf> {
    let dir = std::env::var_os("WEIR_TRACES");
    if dir.is_none() {
        println!(
            "SKIPPED: no traces of the independent simulator; WEIR_TRACES=DIR says where they are"
        );
    }
    dir.map(PathBuf::from)
}

#[test]
fn iteration_times_and_hot_links_agree_with_the_independent_traces() {
    let Some(dir) = traces() else { return };
    for model in MODELS.into_iter().filter(|m| m.2.is_some()) {
        let c = compare(&dir, model, &[1, 2, 3]).unwrap();
        assert!(
            c.holds(),
            "{}: {:+.1} %, theirs {:?}, ours {:?}",
            c.trace,
            c.off_pct,
            c.theirs_us,
            c.ours_us
        );
        assert!(
            c.same_hot(),
            "{}: hot {:?}, ours {:?}",
            c.trace,
            c.theirs_hot,
            c.ours_hot
        );
        assert_eq!(c.lost, 0, "{}", c.trace);
        assert_eq!(c.theirs_us.len(), c.ours_us.len(), "{}", c.trace);
    }
}

#[test]
fn a_clean_ring_agrees_to_the_tenth_of_a_microsecond_and_marks_nothing() {
    let Some(dir) = traces() else { return };
    let c = compare(&dir, MODELS[0], &[1]).unwrap();
    assert!((c.ours_mean_us - c.theirs_mean_us).abs() < 0.1, "{c:?}");
    assert_eq!((c.ours_sums.0, c.ours_sums.1, c.ours_hot.len()), (0, 0, 0));
}

/// With one seed, to be quick; `make results` runs three, with the same bounds.
#[test]
fn settings_come_in_the_order_of_the_reference() {
    let cells = run(&TRAFFIC, &[1], |_, _| ());
    let orders = order(&cells);
    assert_eq!(orders.len(), TRAFFIC.len());
    for order in orders {
        assert!(order.holds(), "{order:?}");
    }
    // What the reference teaches: what is best for one job is the worst for its neighbour.
    let pct = |setting: &str, traffic: &str| {
        cells
            .iter()
            .find(|c| c.setting == setting && c.traffic == traffic)
            .unwrap()
            .ours_mean_pct()
    };
    for setting in ["nv_ecn", "no_ecn"] {
        assert!(
            pct(setting, "ring") < -5.0 && pct(setting, "incast") < -15.0,
            "{setting}"
        );
        assert!(pct(setting, "victim") > 30.0, "{setting}");
    }
    assert!(pct("no_ecn", "victim") > 200.0);
    assert!(
        ["ring", "incast"]
            .iter()
            .all(|t| pct("nv_ai", t).abs() < 6.0)
    );
}

#[test]
fn an_order_holds_by_rank_and_by_pairs_that_are_apart() {
    let cells = |ours: &[f64]| -> Vec<Cell> {
        let theirs = [0.0, -20.0, -10.0, 10.0, 30.0, 12.0];
        let both = theirs.iter().zip(ours);
        both.map(|(theirs, ours)| Cell {
            setting: "s".to_owned(),
            traffic: "ring".to_owned(),
            ours_us: vec![1.0],
            paused_us: 0.0,
            ours_pct: vec![*ours],
            theirs: vec![*theirs],
            theirs_pct: Some(*theirs),
        })
        .collect()
    };
    // 10 and 12 are no order: theirs come as it happens.
    let same = order(&cells(&[0.0, -2.0, -1.0, 4.0, 5.0, 3.0]));
    assert_eq!((same[0].pairs, same[0].same), (14, 14));
    assert!(same[0].holds());
    let turned = order(&cells(&[0.0, 2.0, 1.0, -4.0, -5.0, -3.0]));
    assert_eq!((turned[0].pairs, turned[0].same), (14, 0));
    // The worst in the middle: three pairs of fourteen are turned.
    let middle = order(&cells(&[0.0, -2.0, -1.0, 4.0, -0.5, 3.0]));
    assert_eq!((middle[0].pairs, middle[0].same), (14, 11));
    assert!(!turned[0].holds() && !middle[0].holds());
}

#[test]
fn every_scenario_that_comes_with_the_simulator_builds_and_ends() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // Those of the tuner go on until it is done.
        if path.is_dir() {
            continue;
        }
        let name = path.display();
        let scenario = Scenario::parse(&std::fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut sim = scenario.build().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(sim.run_jobs(scenario.limit()), "{name}");
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
}

#[test]
fn the_scenario_of_the_manual_runs() {
    let manual = include_str!("../../../docs/simulator.md");
    let text = manual
        .split("```yaml")
        .nth(1)
        .and_then(|t| t.split("```").next())
        .unwrap();
    let scenario = Scenario::parse(text).unwrap();
    let mut sim = scenario.build().unwrap();
    assert!(sim.run_jobs(scenario.limit()));
    assert_eq!(sim.jobs()[0].iterations.len(), 6);
}

#[test]
fn a_scenario_that_cannot_be_says_which_key_and_what_is_allowed() {
    let good = "topology: {shape: {kind: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 2}}\n\
                jobs: [{name: a, traffic: {kind: incast, bytes: 1000}, hosts: [0-3]}]\n";
    assert!(Scenario::parse(good).unwrap().build().is_ok());
    for (text, want) in [
        (good.replace("[0-3]", "[0-4]"), "hosts 0 to 3"),
        (good.replace("[0-3]", "[0, 0]"), "a host twice"),
        (good.replace("[0-3]", "[x]"), "a range such as 0-15"),
        (good.replace("leaves: 2", "leaves: 0"), "at least 1"),
        (good.replace("bytes: 1000", "byte: 1000"), "unknown field"),
        (format!("{good}speed: 1\n"), "unknown field `speed`"),
        (
            format!("{good}events: [{{at_us: 1, what: link_rate, port: leaf9/1, gbps: 1}}]\n"),
            "a port such as leaf0/5",
        ),
        (
            format!("{good}events: [{{at_us: 1, what: link_rate, port: leaf0/1, gbit: 1}}]\n"),
            "gbit",
        ),
        (
            format!("{good}config: {{ecn: {{kmin_kb: 9000}}}}\n"),
            "config.ecn.kmin_kb",
        ),
    ] {
        let error = match Scenario::parse(&text).map(|s| s.build()) {
            Err(e) | Ok(Err(e)) => e.to_string(),
            Ok(Ok(_)) => panic!("accepted: {text}"),
        };
        assert!(error.contains(want), "{error}\nwanted: {want}\n{text}");
    }
}

#[test]
fn every_truth_of_the_independent_traces_is_found_and_nothing_where_nothing_is() {
    let Some(dir) = traces() else { return };
    for diagnosis in diagnose(&dir).unwrap() {
        assert!(diagnosis.agrees, "{diagnosis:?}");
    }
}

/// Hosts of a trace that exchange data; who only sends to one, or is only sent to, is in no job that flows tell of.
const JOBS: [(&str, &[u32]); 7] = [
    ("ring-clean-16h", &ALL_HOSTS),
    ("incast-8to1-16h", &[]),
    ("a2a-16h", &ALL_HOSTS),
    ("ring-collision-16h", &ALL_HOSTS),
    ("victim-16h", &[0, 4, 8, 12]),
    ("ring-linkrate-16h", &ALL_HOSTS),
    ("ring-linkerr-16h", &ALL_HOSTS),
];
const ALL_HOSTS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

#[test]
fn the_jobs_of_the_independent_traces_are_inferred_where_no_host_tells_of_them() {
    let Some(dir) = traces() else { return };
    for (trace, hosts) in JOBS {
        let (name, model, _) = MODELS.into_iter().find(|m| m.0 == trace).unwrap();
        let trace = Trace::read(&dir.join(format!("{name}.txt.gz"))).unwrap();
        let jobs = jobs_in_trace(&Scenario::parse(model).unwrap(), &trace).unwrap();
        let hosts: BTreeSet<String> = hosts.iter().map(|n| format!("host{n}")).collect();
        let expected: Vec<BTreeSet<String>> =
            [hosts].into_iter().filter(|h| !h.is_empty()).collect();
        assert_eq!(jobs, expected, "{name}");
    }
}
