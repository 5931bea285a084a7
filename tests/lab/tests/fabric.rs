//! The lab itself: two at once, nothing left behind, and placements that the packets follow.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use weir_lab::{
    fabric::Fabric,
    job::{Job, JobSpec},
    placement::{Pair, Placement},
    plan::{FabricSpec, address_of, leaf_of, ring_pairs},
    preflight::skipped,
    state, sys, teardown, traffic,
};

const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

fn up() -> Fabric {
    Fabric::up(FabricSpec::default()).unwrap()
}

fn assert_gone(name: &str) {
    let needle = format!("weir-{name}-");
    for dir in [sys::NETNS_DIR, "/etc/netns"] {
        let left: Vec<_> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&needle))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(state::read(name).unwrap().is_none());
    assert!(
        !std::env::temp_dir()
            .join(format!("weir-lab-{name}"))
            .exists()
    );
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if skipped("two_labs_at_once_do_not_meet") {
        return;
    }
    let (a, b) = (up(), up());
    let before = b.snapshot().unwrap();
    a.pin("l1", "h21", 2).unwrap();
    let diff = before.diff(&b.snapshot().unwrap());
    assert!(diff.is_empty(), "{diff:?}");
    let name = a.name().to_owned();
    a.down().unwrap();
    assert_gone(&name);
    assert!(before.diff(&b.snapshot().unwrap()).is_empty());
    let allowed = fs::read_to_string(CONGESTION).unwrap();
    assert!(
        allowed.contains("cubic"),
        "{allowed}: taken away from the lab that is left"
    );
    let name = b.name().to_owned();
    drop(b);
    assert_gone(&name);
}

#[test]
fn teardown_ends_the_processes_inside() {
    if skipped("teardown_ends_the_processes_inside") {
        return;
    }
    let fabric = up();
    let mut child = sys::command_in(&fabric.namespace("h11"), "sleep")
        .unwrap()
        .arg("600")
        .spawn()
        .unwrap();
    let name = fabric.name().to_owned();
    fabric.down().unwrap();
    assert!(!child.wait().unwrap().success());
    assert_gone(&name);
}

#[test]
fn a_pin_shows_in_the_snapshot_and_its_removal_restores_it() {
    if skipped("a_pin_shows_in_the_snapshot_and_its_removal_restores_it") {
        return;
    }
    let fabric = up();
    let before = fabric.snapshot().unwrap();
    fabric.pin("l1", "h23", 2).unwrap();
    assert_eq!(fabric.predict("l1", "h11", "h23").unwrap(), "up2");
    let diff = before.diff(&fabric.snapshot().unwrap());
    assert!(
        diff.len() == 1 && diff[0].starts_with("l1 + route 10.2.3.2"),
        "{diff:?}"
    );
    fabric.unpin("l1", "h23").unwrap();
    assert_eq!(
        before.diff(&fabric.snapshot().unwrap()),
        Vec::<String>::new()
    );
}

#[test]
fn a_link_that_went_down_loses_its_nexthop_for_good() {
    if skipped("a_link_that_went_down_loses_its_nexthop_for_good") {
        return;
    }
    let fabric = up();
    let before = fabric.snapshot().unwrap();
    fabric.link_down("l1", 1).unwrap();
    fabric.link_up("l1", 1).unwrap();
    let diff = before.diff(&fabric.snapshot().unwrap());
    assert!(
        diff.iter().any(|l| l.starts_with("l1 - nexthop id 1 ")),
        "{diff:?}"
    );
}

/// Sends on each pair and returns what the leaves' uplinks carried, as (leaf, uplink, bytes).
fn carried(fabric: &Fabric, pairs: &[Pair]) -> Vec<(String, String, u64)> {
    let ports = || {
        let read = |leaf: &str, up: &str| fabric.tx_bytes(leaf, up).unwrap();
        ["l1", "l2"]
            .map(|leaf| ["up1", "up2"].map(|up| (leaf.to_owned(), up.to_owned(), read(leaf, up))))
    };
    let before = ports();
    thread::scope(|scope| {
        for (src, dst) in pairs {
            scope.spawn(move || {
                let (from, to) = (fabric.namespace(src), fabric.namespace(dst));
                thread::scope(|pair| {
                    let length = Duration::from_millis(600);
                    let port = 7_000 + u16::from(src.as_bytes()[2]);
                    pair.spawn(move || sys::in_netns(&to, || traffic::sink(port, length)).unwrap());
                    let address = format!("{}:{port}", address_of(dst)).parse().unwrap();
                    let sent = sys::in_netns(&from, || traffic::send(address, length, 1)).unwrap();
                    assert!(sent > 100_000, "{src} to {dst}: {sent} bytes");
                });
            });
        }
    });
    let after = ports();
    let both = before
        .into_iter()
        .flatten()
        .zip(after.into_iter().flatten());
    both.map(|((leaf, up, was), (_, _, is))| (leaf, up, is - was))
        .collect()
}

#[test]
fn packets_take_the_uplinks_that_were_predicted() {
    if skipped("packets_take_the_uplinks_that_were_predicted") {
        return;
    }
    let fabric = up();
    let pairs = ring_pairs(&fabric.spec().interleaved_hosts());
    for placement in [Placement::Collision, Placement::Balanced] {
        fabric.place(placement, &pairs).unwrap();
        let mut expected = 0;
        for (src, dst) in &pairs {
            let uplink = fabric.predict(&leaf_of(src), src, dst).unwrap();
            expected += usize::from(uplink == "up1");
        }
        assert_eq!(
            expected,
            if placement == Placement::Collision {
                8
            } else {
                4
            }
        );
        // One direction at a time: acknowledgements of the other would hide what is looked for.
        let from_l1: Vec<Pair> = pairs
            .iter()
            .filter(|(src, _)| leaf_of(src) == "l1")
            .cloned()
            .collect();
        let bytes = carried(&fabric, &from_l1);
        let of = |up: &str| {
            bytes
                .iter()
                .find(|(l, u, _)| l == "l1" && u == up)
                .unwrap()
                .2
        };
        let total = of("up1") + of("up2");
        match placement {
            Placement::Collision => assert!(of("up2") * 50 < total, "{bytes:?}"),
            Placement::Balanced => assert!(of("up2") * 4 > total, "{bytes:?}"),
        }
    }
}

#[test]
fn a_job_runs_and_ends_without_a_trace() {
    if skipped("a_job_runs_and_ends_without_a_trace") {
        return;
    }
    let fabric = up();
    let order = ["h11", "h21", "h12", "h22"].map(str::to_owned).to_vec();
    let spec = JobSpec {
        order,
        bytes: 200_000,
        iterations: None,
        time_limit: None,
        compute_ms: 0,
    };
    let mut job = Job::start(&fabric, spec).unwrap();
    let seen = job.wait_for_iterations(5, Duration::from_secs(30)).unwrap();
    assert!(
        seen.windows(2)
            .all(|w| w[1].i == w[0].i + 1 && w[1].ended_at_s > w[0].ended_at_s)
    );
    job.stop().unwrap();
    let left = sys::pids_in(fabric.namespaces()).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_limited_job_ends_by_itself() {
    if skipped("a_limited_job_ends_by_itself") {
        return;
    }
    let fabric = up();
    let order = ["h11", "h21"].map(str::to_owned).to_vec();
    let spec = JobSpec {
        order,
        bytes: 100_000,
        iterations: Some(3),
        time_limit: None,
        compute_ms: 1,
    };
    let mut job = Job::start(&fabric, spec).unwrap();
    wait_until("the job ends", || !job.is_running());
    assert_eq!(job.iterations().len(), 3, "{}", job.log_tail());
}

#[test]
fn the_leftovers_of_a_killed_lab_are_removed() {
    if skipped("the_leftovers_of_a_killed_lab_are_removed") {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_weir-lab"))
        .args(["job", "--bytes", "400000", "--iterations", "1000"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let prefix = format!("{}x", owner.id());
    let find = || {
        state::read_all()
            .unwrap()
            .into_iter()
            .find(|lab| lab.name.starts_with(&prefix))
    };
    wait_until("the lab runs a job", || {
        find().is_some_and(|lab| Path::new(&lab.temp_dir).join("allreduce").exists())
    });
    let lab = find().unwrap();
    sys::signal_process(owner.id(), sys::Signal::Kill).unwrap();
    owner.wait().unwrap();
    assert!(lab.is_stale());
    // Another lab's start may have been quicker; what counts is that it is gone.
    teardown::remove_stale().unwrap();
    wait_until("the lab is gone", || find().is_none());
    assert_gone(&lab.name);
}

#[test]
fn a_lab_that_is_told_to_stop_removes_itself() {
    if skipped("a_lab_that_is_told_to_stop_removes_itself") {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_weir-lab"))
        .args(["job", "--bytes", "400000", "--iterations", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let prefix = format!("{}x", owner.id());
    let find = || {
        state::read_all()
            .unwrap()
            .into_iter()
            .find(|lab| lab.name.starts_with(&prefix))
    };
    wait_until("the lab runs a job", || {
        find().is_some_and(|lab| Path::new(&lab.temp_dir).join("allreduce").exists())
    });
    let lab = find().unwrap();
    sys::signal_process(owner.id(), sys::Signal::Terminate).unwrap();
    assert_eq!(owner.wait().unwrap().code(), Some(130));
    assert_gone(&lab.name);
}
