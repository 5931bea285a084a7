//! The loop on the real fabric, end to end: real daemons, real routes, a real collective.
//!
//! Each test builds its own fabric and leaves nothing; what the kernel has of routes, next hops and
//! queues afterwards equals what it had before. They run the release binaries (`make test` builds
//! them; `WEIR_BIN_DIR` names others).

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use weir_lab::api::{Incident, Lease, plain};
use weir_lab::fabric::Fabric;
use weir_lab::job::{Job, JobSpec};
use weir_lab::placement::Placement;
use weir_lab::plan::{FabricSpec, address_of, ring_pairs};
use weir_lab::preflight::skipped;
use weir_lab::snapshot::Snapshot;
use weir_lab::stack::{READY_DEADLINE, Stack, StackSpec, bin_dir};
use weir_lab::sys::in_netns;
use weir_lab::traffic::Traffic;

const BYTES: u32 = 1_200_000;
/// From the job's start to a verdict, a trial and its judgement; a dozen seconds on two idle cores.
const SOON: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3);

fn spec() -> StackSpec {
    StackSpec {
        lease_ttl: format!("{}s", TTL.as_secs()),
        ..StackSpec::new(bin_dir())
    }
}

/// Polls until `probe` gives something.
fn wait_for<T>(
    what: &str,
    within: Duration,
    stack: &Stack,
    mut probe: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "no {what} within {within:?}\n{}\nincidents {:?}\nleases {:?}",
            stack.log_tail("controller"),
            stack.incidents(),
            stack.leases()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Fabric, daemons and job. Fields are dropped in order: job and daemons before their namespaces.
struct Scene {
    job: Job,
    stack: Stack,
    before: Snapshot,
    fabric: Fabric,
}

impl Scene {
    fn start(placement: Placement, spec: &StackSpec) -> Scene {
        let fabric = Fabric::up(FabricSpec::default()).unwrap();
        let order = fabric.spec().interleaved_hosts();
        fabric.place(placement, &ring_pairs(&order)).unwrap();
        let before = fabric.snapshot().unwrap();
        let mut stack = Stack::start(&fabric, spec).unwrap();
        stack.wait_ready(READY_DEADLINE).unwrap();
        let job = Job::start(
            &fabric,
            JobSpec {
                order,
                bytes: BYTES,
                iterations: None,
                time_limit: Some(Duration::from_secs(180)),
                compute_ms: 0,
            },
        )
        .unwrap();
        Scene {
            job,
            stack,
            before,
            fabric,
        }
    }

    fn newest_lease(&self) -> Option<Lease> {
        self.stack.leases().unwrap().pop()
    }

    fn lease_in(&self, states: &[&str]) -> Lease {
        wait_for(&format!("lease in {states:?}"), SOON, &self.stack, || {
            self.newest_lease()
                .filter(|l| states.contains(&l.state.as_str()))
        })
    }

    /// Waits for a change to stand, as the kernel sees it.
    fn held(placement: Placement, spec: &StackSpec) -> Scene {
        let scene = Scene::start(placement, spec);
        // On a busy machine a first trial may be given back before it is seen.
        wait_for("change that stands", SOON, &scene.stack, || {
            let stands = |l: &Lease| ["holding", "committed"].contains(&l.state.as_str());
            scene.newest_lease().filter(stands)?;
            let changed = scene.before.diff(&scene.fabric.snapshot().unwrap());
            (!changed.is_empty()).then_some(())
        });
        scene
    }

    fn wait_for_baseline(&self, within: Duration) -> Duration {
        let started = Instant::now();
        wait_for("baseline", within, &self.stack, || {
            self.before
                .diff(&self.fabric.snapshot().unwrap())
                .is_empty()
                .then_some(())
        });
        started.elapsed()
    }

    /// Runs the operator's command beside the controller; gives its exit code and what it printed.
    fn weir(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = in_netns(&self.fabric.namespace("ctl"), || {
            Ok(Command::new(bin_dir().join("weir")).args(args).output()?)
        })
        .unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(printed).unwrap())
    }

    fn end(mut self) {
        self.job.stop().unwrap();
        self.stack.stop().unwrap();
        assert_eq!(
            self.before.diff(&self.fabric.snapshot().unwrap()),
            Vec::<String>::new()
        );
        self.fabric.down().unwrap();
    }
}

fn classes(incidents: &[Incident]) -> Vec<&str> {
    incidents.iter().map(|i| i.class.as_str()).collect()
}

#[test]
fn a_collision_is_found_rerouted_kept_and_replayed_byte_for_byte() {
    if skipped("collision") {
        return;
    }
    let recording =
        std::env::temp_dir().join(format!("weir-test-{}-recording", std::process::id()));
    let spec = StackSpec {
        record: Some(recording.clone()),
        ..spec()
    };
    let scene = Scene::start(Placement::Collision, &spec);
    let lease = scene.lease_in(&["committed", "cooldown"]);
    assert_eq!(lease.state, "committed", "{:?}", lease.reason);
    let incidents = scene.stack.incidents().unwrap();
    assert_eq!(incidents[0].class, "ecmp_collision");
    assert!(!incidents[0].evidence.is_empty());
    assert!(
        lease.changes.iter().any(|c| c.contains("on l1"))
            && lease.changes.iter().any(|c| c.contains("on l2")),
        "{:?}",
        lease.changes
    );
    let mut scene = scene;
    scene.job.stop().unwrap();
    scene.stack.terminate("controller").unwrap();
    let replay = || {
        let output = Command::new(bin_dir().join("weir"))
            .args(["replay", "--json"])
            .arg(&recording)
            .output()
            .unwrap();
        // 0: all that was done was rebuilt, byte for byte, and nothing is missing.
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let replayed = replay();
    assert_eq!(replay(), replayed);
    let report: serde_json::Value = serde_json::from_str(&replayed).unwrap();
    assert!(report["compared"].as_u64() > Some(20), "{replayed}");
    assert!(report["story"].to_string().contains("Grant"), "{replayed}");
    std::fs::remove_dir_all(&recording).unwrap();
    scene.wait_for_baseline(TTL * 4);
    scene.stack.stop().unwrap();
    scene.fabric.down().unwrap();
}

#[test]
fn a_collision_is_found_and_kept_where_ebpf_is_refused() {
    if skipped("collision without eBPF") {
        return;
    }
    let scene = Scene::start(
        Placement::Collision,
        &StackSpec {
            bpf: false,
            ..spec()
        },
    );
    let down = scene.stack.status().unwrap().sources_down();
    let blind = down
        .iter()
        .find(|((source, _), _)| source == "collective")
        .map(|(_, nodes)| nodes.len());
    assert_eq!(blind, Some(8), "{down:?}");
    let lease = scene.lease_in(&["committed", "cooldown"]);
    assert_eq!(lease.state, "committed", "{:?}", lease.reason);
    let reason = lease.reason.unwrap();
    assert!(reason.contains("time to send a megabyte"), "{reason}");
    scene.end();
}

#[test]
fn incast_and_full_uplinks_are_named_and_not_rerouted() {
    if skipped("incast, oversubscription") {
        return;
    }
    for class in ["incast", "oversubscription"] {
        let fabric = Fabric::up(FabricSpec::default()).unwrap();
        let before = fabric.snapshot().unwrap();
        let mut stack = Stack::start(&fabric, &spec()).unwrap();
        stack.wait_ready(READY_DEADLINE).unwrap();
        let bin = bin_dir().join("weir-lab");
        let length = Duration::from_secs(15);
        let traffic = if class == "incast" {
            let senders: Vec<String> = ["h12", "h13", "h21", "h22", "h23", "h24"]
                .map(str::to_owned)
                .to_vec();
            Traffic::incast(&fabric, &bin, &senders, "h11", length).unwrap()
        } else {
            Traffic::oversubscription(&fabric, &bin, length).unwrap()
        };
        let placed = fabric.snapshot().unwrap();
        wait_for(class, length, &stack, || {
            stack
                .incidents()
                .unwrap()
                .iter()
                .any(|i| i.class == class)
                .then_some(())
        });
        traffic.wait().unwrap();
        let incidents = stack.incidents().unwrap();
        assert!(
            classes(&incidents).iter().all(|c| *c == class),
            "{:?}",
            classes(&incidents)
        );
        assert!(stack.leases().unwrap().is_empty(), "nothing is rerouted");
        assert_eq!(
            placed.diff(&fabric.snapshot().unwrap()),
            Vec::<String>::new()
        );
        stack.stop().unwrap();
        assert_eq!(
            before.diff(&fabric.snapshot().unwrap()),
            Vec::<String>::new()
        );
        fabric.down().unwrap();
    }
}

#[test]
fn a_healthy_balanced_job_gives_no_verdict_in_a_minute() {
    if skipped("healthy") {
        return;
    }
    let scene = Scene::start(Placement::Balanced, &spec());
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let incidents = scene.stack.incidents().unwrap();
        assert!(incidents.is_empty(), "{incidents:?}");
        thread::sleep(Duration::from_secs(1));
    }
    assert!(
        scene.job.iterations().len() > 30,
        "the job ran: {}",
        scene.job.log_tail()
    );
    assert!(scene.stack.leases().unwrap().is_empty());
    scene.end();
}

#[test]
fn a_controller_that_is_killed_leaves_every_node_at_its_baseline() {
    if skipped("controller killed") {
        return;
    }
    let mut scene = Scene::held(Placement::Collision, &spec());
    scene.stack.kill("controller").unwrap();
    let started = Instant::now();
    while !scene
        .before
        .diff(&scene.fabric.snapshot().unwrap())
        .is_empty()
    {
        assert!(
            // The lease, and what a busy machine needs to notice and to look.
            started.elapsed() < TTL + Duration::from_secs(7),
            "the lease of {TTL:?} ran out and its routes stand"
        );
        thread::sleep(Duration::from_millis(100));
    }
    scene.stack.restart("controller").unwrap();
    scene.end();
}

#[test]
fn an_agent_that_is_killed_restores_its_journal_and_one_that_is_told_to_stop_restores_first() {
    if skipped("agent killed") {
        return;
    }
    let mut scene = Scene::held(Placement::Collision, &spec());
    scene.stack.kill("l1").unwrap();
    let l1_changed = |scene: &Scene| {
        scene
            .before
            .diff(&scene.fabric.snapshot().unwrap())
            .iter()
            .any(|d| d.contains("l1"))
    };
    assert!(l1_changed(&scene), "a dead agent restores nothing");
    scene.stack.restart("l1").unwrap();
    scene.wait_for_baseline(SOON);
    assert!(
        scene
            .stack
            .log_tail("l1")
            .contains("restored from the journal"),
        "{}",
        scene.stack.log_tail("l1")
    );
    let lease = scene.lease_in(&["cooldown"]);
    assert!(lease.rolled_back);
    scene.end();

    let mut scene = Scene::held(Placement::Collision, &spec());
    assert_eq!(scene.stack.terminate("l1").unwrap(), 0);
    assert!(
        !l1_changed(&scene),
        "the baseline stands when the process is gone"
    );
    scene.wait_for_baseline(SOON);
    scene.stack.restart("l1").unwrap();
    scene.end();
}

#[test]
fn a_change_that_makes_the_job_slower_is_rolled_back_within_three_iterations() {
    if skipped("slower change") {
        return;
    }
    let mut scene = Scene::start(Placement::Balanced, &spec());
    let order = scene.fabric.spec().interleaved_hosts();
    let pins: Vec<serde_json::Value> = ring_pairs(&order)
        .iter()
        .filter(|(src, dst)| {
            src.starts_with("h1") && scene.fabric.predict("l1", src, dst).unwrap() == "up2"
        })
        .map(|(_, dst)| serde_json::json!({ "node": "l1", "dst": address_of(dst), "port": "up1" }))
        .collect();
    assert_eq!(pins.len(), 2);
    let ready = |s: &Scene| {
        s.stack
            .status()
            .unwrap()
            .jobs
            .first()
            .filter(|j| j.busbw_mbps.is_some())
            .map(|j| plain(&j.key))
    };
    let job = wait_for("job", SOON, &scene.stack, || ready(&scene));
    scene.job.wait_for_iterations(12, SOON).unwrap();
    thread::sleep(Duration::from_secs(3));
    scene
        .stack
        .http_post(
            "/api/v1/trials",
            &serde_json::json!({ "job": job, "pins": pins }),
        )
        .unwrap();
    let lease = scene.lease_in(&["rolled_back", "cooldown"]);
    assert!(
        lease.reason.as_deref().unwrap_or("").contains("slower"),
        "{:?}",
        lease.reason
    );
    let raw = scene.stack.http_get("/api/v1/leases").unwrap();
    let judged = raw[0]["iterations_after_s"].as_array().unwrap().len();
    // Two slower ones in a row decide, after the one that straddles the change; a sample brings two.
    assert!((2..=4).contains(&judged), "{judged}");
    scene.wait_for_baseline(SOON);
    scene.end();
}

#[test]
fn a_freeze_returns_to_the_baseline_and_limits_are_the_agents_own() {
    if skipped("freeze, limits") {
        return;
    }
    let scene = Scene::held(Placement::Collision, &spec());
    let incident = scene.stack.incidents().unwrap()[0].id.clone();
    for (args, expected) in [
        (&["status"][..], "not frozen"),
        (&["links"], "l1"),
        (&["incidents"], "ecmp_collision"),
        (&["explain", &plain(&incident)], "up2"),
        (&["leases", "--json"], "\"applied_at\""),
        (&["events"], "nothing happened"),
        (&["--controller", "127.0.0.1:9743", "freeze"], "frozen"),
        (&["status"], "FROZEN"),
    ] {
        let (code, printed) = scene.weir(args);
        assert!(
            code == Some(0) && printed.contains(expected),
            "weir {args:?}: {code:?}\n{printed}"
        );
    }
    scene.wait_for_baseline(TTL * 4);
    let lease = scene.stack.http_get("/api/v1/leases").unwrap();
    let lease = lease.as_array().unwrap().last().unwrap().clone();
    assert_eq!(lease["cause"], "frozen", "{lease}");
    let leases = scene.stack.leases().unwrap().len();
    thread::sleep(Duration::from_secs(8));
    assert_eq!(
        scene.stack.leases().unwrap().len(),
        leases,
        "nothing is tried while frozen"
    );
    let pin = serde_json::json!({ "node": "l1", "dst": address_of("h21"), "port": "up1" });
    let asked = serde_json::json!({ "job": "any", "pins": [pin] });
    let refused = scene.stack.http_post("/api/v1/trials", &asked);
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("frozen"), "{refused}");
    assert_eq!(scene.weir(&["unfreeze"]).0, Some(0));
    let (code, printed) = scene.weir(&["explain", "none-such"]);
    assert!(
        code == Some(1) && printed.contains("no incident none-such"),
        "{code:?} {printed}"
    );
    scene.end();

    let forbidding = StackSpec {
        limits_yaml_of: [("l1".to_owned(), "routes: {allow: false}\n".to_owned())].into(),
        ..spec()
    };
    let scene = Scene::start(Placement::Collision, &forbidding);
    let lease = scene.lease_in(&["rolled_back", "cooldown"]);
    assert!(
        lease
            .reason
            .as_deref()
            .unwrap_or("")
            .contains("routes.allow"),
        "{:?}",
        lease.reason
    );
    assert!(
        scene.stack.log_tail("l1").contains("routes.allow"),
        "{}",
        scene.stack.log_tail("l1")
    );
    // The page follows with the next sample.
    wait_for("count of refusals", SOON, &scene.stack, || {
        let page = scene.stack.http_text("l1", "/metrics").unwrap();
        page.contains("weir_agent_leases_refused_total 1")
            .then_some(())
    });
    scene.wait_for_baseline(TTL * 4);
    scene.end();
}
