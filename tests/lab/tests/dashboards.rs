//! Every panel's query, and every annotation's, gives data from a real Prometheus that scraped the
//! lab while a collision was found and repaired.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use weir_lab::fabric::Fabric;
use weir_lab::job::{Job, JobSpec};
use weir_lab::placement::Placement;
use weir_lab::plan::{FabricSpec, ring_pairs};
use weir_lab::preflight::skipped;
use weir_lab::stack::{READY_DEADLINE, Stack, StackSpec, bin_dir};
use weir_lab::{http, sys};

const LONG: Duration = Duration::from_secs(90);

/// Ended with the test, however it ends.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Title and expression of every panel and annotation, with the variables filled in.
fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("dashboards/grafana/fabric.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let fill = |expr: &Value| {
        expr.as_str()
            .unwrap()
            .replace("$job", ".*")
            .replace("$node", ".*")
            .replace("$__rate_interval", "10s")
    };
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|p| {
        p["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| (p["title"].as_str().unwrap().to_owned(), fill(&t["expr"])))
    });
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    // Nothing is rolled back in this story.
    let told = annotations
        .filter(|a| a["name"] != "rolled back")
        .map(|a| (a["name"].as_str().unwrap().to_owned(), fill(&a["expr"])));
    targets.chain(told).collect()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[test]
fn every_panel_has_data_from_a_real_prometheus() {
    if skipped("dashboards") {
        return;
    }
    let fabric = Fabric::up(FabricSpec::default()).unwrap();
    let order = fabric.spec().interleaved_hosts();
    fabric
        .place(Placement::Collision, &ring_pairs(&order))
        .unwrap();
    let mut stack = Stack::start(&fabric, &StackSpec::new(bin_dir())).unwrap();
    stack.wait_ready(READY_DEADLINE).unwrap();

    let ctl = fabric.namespace("ctl");
    let dir = fabric.temp_dir().join("prometheus");
    std::fs::create_dir_all(&dir).unwrap();
    let agents: Vec<String> = fabric
        .nodes()
        .iter()
        .map(|n| {
            sys::in_netns(&fabric.namespace(&n.0), || {
                management_address().ok_or_else(|| anyhow::anyhow!("no mgmt0"))
            })
            .unwrap()
        })
        .map(|a| format!("\"{a}:9741\""))
        .collect();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - {{job_name: weir-controller, static_configs: [{{targets: [\"127.0.0.1:9743\"]}}]}}\n  - {{job_name: weir-agent, static_configs: [{{targets: [{}]}}]}}\n",
        agents.join(", ")
    );
    std::fs::write(dir.join("p.yml"), config).unwrap();
    let mut command = sys::command_in(&ctl, "prometheus").unwrap();
    command
        .arg(format!("--config.file={}", dir.join("p.yml").display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join("tsdb").display()
        ))
        .arg("--web.listen-address=127.0.0.1:9090");
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let prometheus = Prometheus(spawned.unwrap());

    let spec = JobSpec {
        order,
        bytes: 1_200_000,
        iterations: None,
        time_limit: Some(LONG * 2),
        compute_ms: 0,
    };
    let mut job = Job::start(&fabric, spec).unwrap();
    let mut open = queries();
    assert!(open.len() > 20);
    let deadline = Instant::now() + LONG;
    while !open.is_empty() {
        // Annotations are looked for in the past minute: what they mark is over in an instant.
        open.retain(|(_, expr)| {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs();
            let url = format!(
                "http://127.0.0.1:9090/api/v1/query_range?query={}&start={}&end={now}&step=1",
                encoded(expr),
                now - 60
            );
            let answer = http::get(&ctl, &url).unwrap_or(Value::Null);
            answer["data"]["result"]
                .as_array()
                .is_none_or(Vec::is_empty)
        });
        assert!(Instant::now() < deadline, "no data for {open:#?}");
        thread::sleep(Duration::from_secs(1));
    }
    job.stop().unwrap();
    drop(prometheus);
    stack.stop().unwrap();
    fabric.down().unwrap();
}

/// IPv4 address of `mgmt0` in the calling thread's namespace.
fn management_address() -> Option<String> {
    let output = std::process::Command::new("ip")
        .args(["-4", "-o", "addr", "show", "dev", "mgmt0"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(
        text.split_whitespace()
            .skip_while(|w| *w != "inet")
            .nth(1)?
            .split('/')
            .next()?
            .to_owned(),
    )
}
