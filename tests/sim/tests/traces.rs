//! Our model of each trace of the independent simulator, beside it. The traces are not part of the project.

use std::collections::BTreeSet;
use std::path::PathBuf;
use weir_controller_core::verdict::Class;
use weir_sim::diagnose::{in_trace, jobs_in_trace};
use weir_sim::reference::{rank_correlation, run};
use weir_sim::scenario::Scenario;
use weir_sim::traces::{MODELS, Trace, compare};

/// Where the traces are: `WEIR_TRACES`, or beside the repository. Says why there is nothing to compare with.
#[expect(clippy::print_stdout, reason = "a test that skips says so")]
fn traces() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
    let dir = std::env::var_os("WEIR_TRACES").map_or(beside, PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    println!(
        "skipped: no traces in {} (WEIR_TRACES=DIR names another place)",
        dir.display()
    );
    None
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

#[test]
fn settings_come_in_the_order_of_the_reference() {
    let kinds = ["ring", "incast", "victim"];
    let cells = run(&kinds, &[1], |_, _| ());
    for traffic in kinds {
        let r = rank_correlation(&cells, traffic).unwrap();
        assert!(r >= 0.7, "{traffic}: {r:.2}");
    }
    // What the reference teaches: what is best for one job is the worst for its neighbour.
    let pct = |setting: &str, traffic: &str| {
        cells
            .iter()
            .find(|c| (c.setting, c.traffic) == (setting, traffic))
            .unwrap()
            .ours_pct
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

/// What is true of each trace, as the one who made it wrote it down: what must be found, from which interval on, and
/// what else is there (the paths of both interleaved rings with a fault collide, too).
struct Truth {
    trace: &'static str,
    found: Option<(Class, &'static str, u64)>,
    beside: Option<Class>,
}

const fn truth(trace: &'static str, found: Option<(Class, &'static str, u64)>) -> Truth {
    Truth {
        trace,
        found,
        beside: None,
    }
}

const TRUTHS: [Truth; 7] = [
    truth("ring-clean-16h", None),
    truth("incast-8to1-16h", Some((Class::Incast, "leaf0:p1", 1))),
    truth("a2a-16h", None),
    truth(
        "ring-collision-16h",
        Some((Class::EcmpCollision, "leaf1:p7", 1)),
    ),
    truth("victim-16h", Some((Class::Incast, "leaf0:p4", 1))),
    Truth {
        trace: "ring-linkrate-16h",
        // Its cable is slow both ways; this is its other end.
        found: Some((Class::DegradedLink, "spine0:p1", 6)),
        beside: Some(Class::EcmpCollision),
    },
    Truth {
        trace: "ring-linkerr-16h",
        found: Some((Class::SilentLoss, "spine1:p2", 6)),
        beside: Some(Class::EcmpCollision),
    },
];

#[test]
fn every_truth_of_the_independent_traces_is_found_and_nothing_where_nothing_is() {
    let Some(dir) = traces() else { return };
    for truth in TRUTHS {
        let (name, model, _) = MODELS.into_iter().find(|m| m.0 == truth.trace).unwrap();
        let trace = Trace::read(&dir.join(format!("{name}.txt.gz"))).unwrap();
        let mut found = in_trace(&Scenario::parse(model).unwrap(), &trace).unwrap();
        found.retain(|f| !f.consequence && Some(f.class) != truth.beside);
        match (truth.found, found.as_slice()) {
            (None, []) => {}
            (Some((class, link, from)), [one]) => {
                assert_eq!(one.class, class, "{name}");
                // Of links that the same flows cross, none can be told from the other by them.
                let named = one.entity == link || one.links.iter().any(|l| l == link);
                assert!(named, "{name}: {one:?}");
                assert!(one.interval >= from, "{name}: {one:?} before it was there");
            }
            _ => panic!("{name}: {found:?}"),
        }
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
