//! The command, as a person runs it.

use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim"))
        .args(args)
        .output()
        .expect("the binary is built for this test")
}

const SCENARIO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/slow-receiver.yaml");

#[test]
fn run_reports_in_json_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let out = sim(&["run", SCENARIO, "--json", "--svg", path]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        report["jobs"][0]["iterations_us"].as_array().unwrap().len(),
        6
    );
    assert!(report["links"][0]["queue_bytes_max"].as_u64().unwrap() > 100_000);
    assert_eq!(report["totals"]["lost_buffer"], 0);
    for (name, wanted) in [
        ("heat.svg", "<rect"),
        ("queues.svg", "leaf1/5"),
        ("rates.svg", "<polyline"),
    ] {
        let svg = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains(wanted),
            "{name}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    let text = std::fs::read_to_string(SCENARIO)
        .unwrap()
        .replace("hosts: [1, 5]", "hosts: [1, 99]");
    std::fs::write(&file, text).unwrap();
    let out = sim(&["run", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(
        said.contains("bad.yaml")
            && said.contains("jobs[0].hosts")
            && said.contains("hosts 0 to 7"),
        "{said}"
    );
}

#[test]
fn where_nothing_contends_no_tuner_of_ours_touches_anything() {
    let args = ["tune", "--scenario", "clean-ring", "--seeds", "1", "--json"];
    let out = sim(&args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let results: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(results["arguments"], args.join(" "));
    assert_eq!(results["version"], env!("CARGO_PKG_VERSION"));
    let rows = results["scenarios"][0]["rows"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|r| r["name"] == name).unwrap();
    for name in ["nv_bytes", "no_cc", "paraleon_routed", "acc-like", "oracle"] {
        assert!(row(name)["time_pct"]["mean"].is_number(), "{name}");
    }
    let weir = row("weir");
    assert!(weir["runs"][0]["search"]["steps"].is_null(), "{weir}");
    assert!(weir["runs"][0]["search"]["settled_us"].as_f64().unwrap() > 0.0);
    for figure in ["time_pct", "settled_pct", "flow_p99_pct", "pause_points"] {
        assert_eq!(weir[figure]["mean"], 0.0, "{figure}");
    }
    let keys = &results["keys"];
    assert_eq!(keys["tuning_worst_scenario_pct"], 0.0);
    assert_eq!(keys["tuning_worst_victim_slowdown_pct"], 0.0);
    assert!(keys["no_cc_tuning_pause_points_over_nv"].is_number());
}

#[test]
fn an_unknown_name_is_refused_with_those_that_there_are() {
    for (option, name, known) in [
        ("--scenario", "ring", "ring-collisions"),
        ("--contestant", "annealing", "paraleon"),
    ] {
        let out = sim(&["tune", option, name]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{said}");
        assert!(said.contains(option) && said.contains(known), "{said}");
    }
}
