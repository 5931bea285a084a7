//! Dashboards and rules against the daemons' catalogues: every metric that a panel or rule names
//! exists, every alert has a case that fires and one that stays silent, and a runbook entry.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

fn file(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn yaml(path: &str) -> Value {
    serde_norway::from_str(&read(path)).unwrap()
}

/// Names that begin with `weir_` in an expression.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|w| w.starts_with("weir_"))
        .map(str::to_owned)
        .collect()
}

/// Names in docs/metrics.md, which another test keeps equal to the catalogues.
fn documented() -> BTreeSet<String> {
    read("docs/metrics.md")
        .lines()
        .filter_map(|l| Some(l.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect()
}

#[test]
fn every_metric_that_is_named_exists() {
    let known = documented();
    assert!(
        known.len() > 40,
        "docs/metrics.md holds {} metrics",
        known.len()
    );
    for path in [
        "dashboards/grafana/fabric.json",
        "dashboards/prometheus/rules.yaml",
        "dashboards/prometheus/tests.yaml",
    ] {
        for name in metrics_in(&read(path)) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s))
                .unwrap_or(&name)
                .to_owned();
            assert!(
                known.contains(&name) || known.contains(&base),
                "{path} names {name}, which no daemon has"
            );
        }
    }
}

#[test]
fn the_controller_s_catalogue_is_documented() {
    let known = documented();
    for metric in weir_controller::metrics::CATALOGUE {
        assert!(known.contains(metric.name), "{}: make docs", metric.name);
    }
}

#[test]
fn every_alert_fires_in_one_case_stays_silent_in_another_and_has_a_runbook() {
    let (rules, tests) = (
        yaml("dashboards/prometheus/rules.yaml"),
        yaml("dashboards/prometheus/tests.yaml"),
    );
    let alerts = rules["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["rules"].as_array().unwrap());
    let cases: Vec<&Value> = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|t| t["alert_rule_test"].as_array().unwrap())
        .collect();
    let runbooks = read("dashboards/runbooks.md");
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        let outcomes: BTreeSet<bool> = cases
            .iter()
            .filter(|c| c["alertname"] == name)
            .map(|c| c["exp_alerts"].as_array().unwrap().is_empty())
            .collect();
        assert_eq!(
            outcomes.len(),
            2,
            "{name} needs a case that fires and one that stays silent"
        );
        let anchor = format!("dashboards/runbooks.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], anchor.as_str());
        assert!(
            runbooks.contains(&format!("\n## {name}\n")),
            "no runbook entry for {name}"
        );
    }
}

#[test]
fn promtool_and_amtool_agree() {
    let checks: [(&str, &[&str]); 4] = [
        ("promtool", &["check", "rules", "rules.yaml"]),
        ("promtool", &["test", "rules", "tests.yaml"]),
        ("promtool", &["check", "config", "prometheus.yaml"]),
        ("amtool", &["check-config", "../alertmanager.yaml"]),
    ];
    for (tool, args) in checks {
        match Command::new(tool)
            .args(args)
            .current_dir(file("dashboards/prometheus"))
            .output()
        {
            Ok(output) => assert!(
                output.status.success(),
                "{tool} {args:?}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => println!("skipped: {tool} cannot be run ({error}): make setup"),
        }
    }
}

#[test]
fn panels_have_ids_of_their_own_a_description_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("dashboards/grafana/fabric.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut cells = BTreeSet::new();
    for panel in panels {
        assert!(
            panel["type"] == "row" || panel["description"].as_str().is_some_and(|d| d.len() > 20),
            "{}",
            panel["title"]
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(
                cells.insert((x, y)),
                "{} lies over another panel at {x},{y}",
                panel["title"]
            );
        }
    }
}
