//! Against a child that is a shell script: it says what a test wants, and may die or hang.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// Long enough for a process on a busy machine.
const LONG: Duration = Duration::from_secs(20);

struct Rig {
    dir: tempfile::TempDir,
    verbs: Verbs,
    now: Duration,
}

impl Rig {
    /// A node with a verbs device, and a child that runs `script`.
    fn new(script: &str) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sys/class/infiniband/rxe1")).unwrap();
        let program = dir.path().join("weir-verbs");
        fs::write(
            &program,
            format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display()),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let verbs = Verbs::new(Options {
            program,
            exclude: vec!["mlx5_9".into(), "rxe*".into()],
            sysfs: dir.path().join("sys"),
        });
        Rig {
            dir,
            verbs,
            now: Duration::ZERO,
        }
    }

    /// Polls, a second of the agent's clock each time, until `done`.
    fn until(&mut self, done: impl Fn(&Rig, &Result<(), String>, &Gathered) -> bool) -> Gathered {
        let mut out = Gathered::default();
        let started = Instant::now();
        loop {
            let state = self.poll(&mut out);
            if done(self, &state, &out) {
                return out;
            }
            assert!(started.elapsed() < LONG, "{state:?} {out:?}");
            std::thread::yield_now();
        }
    }

    fn poll(&mut self, out: &mut Gathered) -> Result<(), String> {
        // A script that is still open for writing in a process that another test forks cannot be
        // started for a moment.
        loop {
            let state = self.verbs.poll(self.now, out);
            self.now += Duration::from_secs(1);
            match state {
                Err(reason) if reason.contains("Text file busy") => {}
                state => return state,
            }
        }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

const EVENT: &str = r#"{"event":{"device":"rxe1","port":1,"name":"port_error","number":10,"severity":"warning","text":"t","action":"a"}}"#;
const ENDPOINT: &str = r#"{"endpoint":{"device":"rxe1","port":1,"gid":"::ffff:10.0.0.1","gid_index":1,"qpn":17,"qkey":5,"queue_pairs":8,"active":true,"rate_bps":null,"timestamps":"software"}}"#;
const REPORT: &str = r#"{"report":{"id":"a","device":"rxe1","port":1,"sent":2,"lost":1,"rtt_ns":{"samples":1,"min":5,"p50":5,"p99":5,"max":5},"host_ns":null,"responder_ns":null,"timestamps":"software","window_ms":1000}}"#;
const STATUS: &str = r#"{"status":{"devices":["rxe1"],"stuck":[],"counters":{"rxe1":{"pings_sent":3,"pings_answered":0,"pings_refused":0,"pings_not_listed":2,"pings_too_fast":0,"foreign_packets":0,"pings_held_back":0,"pings_unknown":0,"completions_failed":0}},"lines_dropped":0}}"#;

fn say(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| format!("echo '{line}'\n"))
        .collect()
}

fn target(id: &str) -> Target {
    Target {
        id: id.into(),
        device: "rxe1".into(),
        port: 1,
        gid: "::ffff:10.0.0.2".into(),
        qpn: 17,
        qkey: 5,
        flow_label: 3,
        hop_limit: 64,
    }
}

fn orders(targets: Vec<Target>, packets_per_second: u32) -> Orders {
    Orders {
        targets,
        packets_per_second,
        probers: Some(vec!["::ffff:10.0.0.9".into()]),
    }
}

#[test]
fn what_the_child_says_becomes_events_endpoints_reports_and_counters() {
    let script =
        say(&[EVENT, "no JSON", ENDPOINT, REPORT, STATUS]) + "echo \"$@\" >args\nexec cat >orders";
    let mut rig = Rig::new(&script);
    let out = rig.until(|_, _, out| !out.raw.is_empty());
    assert_eq!(out.events.len(), 1);
    let event = &out.events[0];
    assert_eq!((event.source, event.name), ("verbs", "port_error"));
    assert_eq!(
        (event.subject.as_str(), event.severity),
        ("rxe1/1", Severity::Warning)
    );
    let raw = |name: &str| out.raw.iter().find(|raw| raw.name == name).unwrap().value;
    assert_eq!((raw("pings_sent"), raw("lines_malformed")), (3, 1));
    assert_eq!(raw("pings_not_listed"), 2);
    let handle = rig.verbs.handle();
    assert_eq!(handle.endpoints()[0].qpn, 17);
    assert_eq!(handle.take_reports()[0].lost, 1);
    assert_eq!(handle.take_reports(), []);
    rig.until(|rig, _, _| {
        rig.file("args") == "serve --device-exclude mlx5_9 --device-exclude rxe*\n"
    });
}

#[test]
fn a_child_that_starts_anew_is_told_its_targets_again() {
    // Ends after its first orders, once.
    let script = "read line; echo \"$line\" >>orders; [ -e again ] || { touch again; exit 3; }; exec cat >/dev/null";
    let mut rig = Rig::new(script);
    rig.verbs.handle().order(orders(vec![target("a")], 7));
    rig.until(|rig, _, _| rig.file("orders").lines().count() == 2);
    for line in rig.file("orders").lines() {
        let orders: Orders = serde_json::from_str(line).unwrap();
        assert_eq!(
            (orders.targets[0].id.as_str(), orders.packets_per_second),
            ("a", 7)
        );
        assert_eq!(orders.probers.unwrap(), ["::ffff:10.0.0.9"]);
    }
}

#[test]
fn new_targets_are_told_a_running_child() {
    let mut rig = Rig::new(&format!("{}exec cat >orders", say(&[STATUS])));
    rig.until(|_, _, out| !out.raw.is_empty());
    rig.verbs.handle().order(orders(vec![target("b")], 1));
    rig.until(|rig, _, _| rig.file("orders").contains("\"id\":\"b\""));
}

#[test]
fn what_a_dead_child_announced_is_no_more() {
    let mut rig = Rig::new(&format!("{}read line; exit 1", say(&[ENDPOINT, STATUS])));
    rig.until(|rig, _, _| !rig.verbs.handle().endpoints().is_empty());
    rig.verbs.handle().order(orders(Vec::new(), 0));
    rig.until(|rig, state, _| state.is_err() && rig.verbs.handle().endpoints().is_empty());
}

#[test]
fn without_the_library_one_line_says_what_to_install() {
    let complaint = "weir-verbs: error while loading shared libraries: libibverbs.so.1: cannot open shared object file: No such file or directory";
    let mut rig = Rig::new(&format!("echo '{complaint}' >&2; exit 127"));
    rig.until(|_, state, _| {
        let reason = state.clone().err().unwrap_or_default();
        reason.contains("libibverbs.so.1: apt-get install libibverbs1")
    });
}

#[test]
fn without_the_program_one_line_says_so_and_it_is_not_looked_for_all_the_time() {
    let mut rig = Rig::new("");
    fs::remove_file(rig.dir.path().join("weir-verbs")).unwrap();
    let mut out = Gathered::default();
    let first = rig.poll(&mut out).unwrap_err();
    assert!(
        first.contains("install weir-verbs beside weir-agent"),
        "{first}"
    );
    assert!(rig.verbs.restart.at >= Duration::from_secs(1));
    // The same line, whether it is tried or waited for.
    rig.now = Duration::from_millis(1);
    assert_eq!(rig.poll(&mut out), Err(first));
}

#[test]
fn a_node_without_devices_lacks_nothing_and_starts_nothing() {
    let mut rig = Rig::new("touch started");
    fs::remove_dir(rig.dir.path().join("sys/class/infiniband/rxe1")).unwrap();
    assert_eq!(rig.poll(&mut Gathered::default()), Ok(()));
    assert!(rig.verbs.child.is_none());
}

#[test]
fn a_device_that_hangs_is_named() {
    let status = STATUS.replace("\"stuck\":[]", "\"stuck\":[\"mlx5_3\"]");
    let mut rig = Rig::new(&format!("{}exec cat >/dev/null", say(&[&status])));
    rig.until(|_, state, _| *state == Err("the library of mlx5_3 hangs".to_owned()));
}

#[test]
fn a_child_that_says_nothing_is_killed() {
    let mut rig = Rig::new("exec cat >/dev/null");
    rig.poll(&mut Gathered::default()).unwrap();
    let child = rig.verbs.child.as_mut().unwrap();
    child.started = Instant::now().checked_sub(SILENT).unwrap();
    let killed = rig.poll(&mut Gathered::default()).unwrap_err();
    assert!(killed.contains("hangs"), "{killed}");
    rig.until(|_, state, _| {
        state
            .clone()
            .is_err_and(|reason| reason.contains("signal: 9"))
    });
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let shared = Shared::default();
    let event: Line = serde_json::from_str(EVENT).unwrap();
    let report: Line = serde_json::from_str(REPORT).unwrap();
    for _ in 0..REPORTS_MAX + 5 {
        shared.heard(event.clone(), 0);
        shared.heard(report.clone(), 0);
    }
    let heard = shared.lock();
    assert_eq!(heard.events.len(), EVENTS_MAX);
    assert_eq!(heard.reports_dropped, 5);
    assert_eq!(heard.events_dropped, (REPORTS_MAX + 5 - EVENTS_MAX) as u64);
}

#[test]
fn an_event_of_a_name_unknown_keeps_its_text() {
    let line = EVENT.replace("port_error", "invented");
    let Ok(Line::Event(invented)) = serde_json::from_str(&line) else {
        panic!("an event");
    };
    let event = event(invented);
    assert_eq!(
        (event.name, event.text.as_str()),
        ("unknown_verbs_event", "t")
    );
}
