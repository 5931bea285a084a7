//! Pings and asynchronous events on real verbs devices: soft-RoCE hosts around a leaf-spine in a
//! virtual machine.
//!
//! `tests/guest/verbs.sh` is what runs in it. Skipped, aloud, where QEMU is not installed or the
//! packages cannot be had.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use weir_lab::guest;

type Sections = BTreeMap<String, String>;

/// What the pings of one target met, over all windows.
#[derive(Debug, Default)]
struct Met {
    sent: u64,
    lost: u64,
    /// Least of all windows, and the median of the windows' medians.
    rtt_min_ms: f64,
    rtt_ms: f64,
}

/// A window of one pinging device in which a host stood still, its own or the other, says nothing of
/// paths: one that took far too long, or in which most paths to one host lost at once.
fn stood_still(reports: &[Value]) -> bool {
    let late = reports
        .iter()
        .any(|report| report["window_ms"].as_u64() > Some(2000));
    let mut of_peer: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for report in reports {
        let peer = &report["id"].as_str().unwrap()[..3];
        let (all, lossy) = of_peer.entry(peer).or_default();
        *all += 1;
        *lossy += u64::from(report["lost"].as_u64() > Some(0));
    }
    late || of_peer
        .values()
        .any(|(all, lossy)| *all > 2 && lossy * 2 > *all)
}

/// All reports, by pinging device and window: those of a window stand together.
fn windows(section: &str) -> Vec<Vec<Value>> {
    let mut of_device: BTreeMap<String, Vec<Vec<Value>>> = BTreeMap::new();
    for line in section.lines() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let report = line["report"].take();
        let windows = of_device
            .entry(report["device"].as_str().unwrap().to_owned())
            .or_default();
        match windows.last_mut() {
            // A name that comes again begins the next.
            Some(window) if window.iter().all(|other| other["id"] != report["id"]) => {
                window.push(report);
            }
            Some(_) | None => windows.push(vec![report]),
        }
    }
    of_device.into_values().flatten().collect()
}

fn mesh(section: &str) -> BTreeMap<String, Met> {
    let mut met: BTreeMap<String, Met> = BTreeMap::new();
    let mut times: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let windows = windows(section);
    let calm = windows.iter().filter(|window| !stood_still(window));
    for report in calm.flatten() {
        let id = report["id"].as_str().unwrap().to_owned();
        let entry = met.entry(id.clone()).or_default();
        entry.sent += report["sent"].as_u64().unwrap();
        entry.lost += report["lost"].as_u64().unwrap();
        // Soft-RoCE does not stamp completions, so nothing can be said of the host's own part.
        assert_eq!(report["timestamps"], "software");
        assert_eq!(report["host_ns"], Value::Null);
        let rtt = &report["rtt_ns"];
        if let (Some(min), Some(median)) = (rtt["min"].as_f64(), rtt["p50"].as_f64()) {
            times.entry(id).or_default().push((min / 1e6, median / 1e6));
            assert!(report["responder_ns"]["p50"].as_f64().unwrap() > 0.0);
        }
    }
    for (id, mut times) in times {
        let entry = met.entry(id).or_default();
        entry.rtt_min_ms = times.iter().map(|t| t.0).fold(f64::MAX, f64::min);
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        entry.rtt_ms = times[times.len() / 2].1;
    }
    met
}

/// By target, the spine that its pings crossed and their UDP source port, from the captures.
fn paths(section: &str) -> BTreeMap<String, BTreeSet<(u64, u64)>> {
    let mut paths: BTreeMap<String, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for line in section.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [spine, _count, source, to, kind, label] = words[..] else {
            panic!("{line}");
        };
        // 1 is a ping; answers to leaf 2 cross the spines too.
        if kind != "1" {
            continue;
        }
        let host = |address: &str| address.split('.').nth(2).unwrap().to_owned();
        let label = u64::from_str_radix(label, 16).unwrap();
        let port = source.rsplit('.').next().unwrap().parse().unwrap();
        let id = format!("{}-{}-{label}", host(source), host(to));
        let spine = spine.parse().unwrap();
        paths.entry(id).or_default().insert((spine, port));
    }
    paths
}

fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect()
}

/// Number of events of one name and subject; `None` if there was none.
fn events(page: &str, name: &str, subject: &str) -> Option<f64> {
    page.lines()
        .find(|line| {
            line.starts_with("weir_agent_events_total{source=\"verbs\"")
                && line.contains(&format!("name=\"{name}\""))
                && line.contains(&format!("subject=\"{subject}\""))
        })
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

#[test]
fn verbs_devices_ping_over_every_path_and_say_what_befalls_them() {
    let Some(sections) = guest::run("verbs.sh") else {
        return;
    };
    devices_are_listed(&sections);
    each_label_is_a_path(&sections);
    the_lossy_path_and_the_slow_one_are_found(&sections);
    orders_are_bounded(&sections);
    only_the_listed_are_answered(&sections);
    an_oversized_datagram_costs_nothing(&sections);
    events_reach_the_agent(&sections);
    a_crash_costs_a_restart_and_no_orphan(&sections);
    without_the_program_the_agent_runs(&sections);
}

fn devices_are_listed(sections: &Sections) {
    let list: Value = serde_json::from_str(&sections["list"]).unwrap();
    let names: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["device"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["rxe1", "rxe2", "rxe3"], "rxe4 is excluded");
    let port = &list[0]["ports"][0];
    assert_eq!(
        (&port["state"], &port["link_layer"]),
        (&"ACTIVE".into(), &"Ethernet".into())
    );
    let gids = port["gids"].as_array().unwrap();
    assert!(
        gids.iter()
            .any(|gid| gid["gid"] == "::ffff:10.1.1.2" && gid["kind"] == "RoCE v2")
    );
}

/// Soft-RoCE makes the UDP source port of the number of the queue pair: a label has its own.
fn each_label_is_a_path(sections: &Sections) {
    let paths = paths(&sections["sniffed"]);
    for pair in ["1-3", "2-4"] {
        let mut ports = BTreeSet::new();
        for label in 0..8 {
            let path = &paths[&format!("{pair}-{label}")];
            assert_eq!(path.len(), 1, "{pair}-{label} stays on its path: {path:?}");
            ports.extend(path.iter().map(|(_, port)| *port));
        }
        assert_eq!(ports.len(), 8, "{pair}: {ports:?}");
    }
    // There are eight such pairs, and the label itself has no effect.
    assert_eq!(paths["1-3-8"], paths["1-3-0"]);
}

fn the_lossy_path_and_the_slow_one_are_found(sections: &Sections) {
    let spines = numbers(&sections["spines"]);
    let paths = paths(&sections["sniffed"]);
    let met = mesh(&sections["mesh"]);
    assert_eq!(met.len(), 19, "{met:?}");
    let share = |met: &Met| met.lost as f64 / met.sent as f64;
    let (mut lossy, mut slow) = (Vec::new(), 0);
    let mut clean = Vec::new();
    for (id, met) in &met {
        let spine = paths
            .get(id)
            .and_then(|path| path.first())
            .map(|path| path.0 as f64);
        assert!(met.sent > 50, "{id}: {met:?}");
        if spine == Some(spines[0]) {
            lossy.push(share(met));
        } else {
            clean.push(share(met));
        }
        // The delay is the least that a slow path can take.
        if spine == Some(spines[1]) {
            slow += 1;
            assert!(met.rtt_min_ms >= 300.0, "{id} is slow: {met:?}");
        } else {
            assert!(
                met.rtt_min_ms > 0.0 && met.rtt_ms < 300.0,
                "{id} is not slow: {met:?}"
            );
        }
    }
    assert!(!lossy.is_empty() && slow > 0, "{paths:?}");
    // 5 % of what crosses the lossy spine, and hardly anything else.
    let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((0.02..0.12).contains(&mean(&lossy)), "{met:?}");
    assert!(mean(&clean) <= 0.01, "{met:?}");
    let least = lossy.iter().copied().fold(f64::MAX, f64::min);
    assert!(clean.iter().all(|share| *share < least), "{met:?}");
}

fn orders_are_bounded(sections: &Sections) {
    let errors = &sections["errors"];
    assert!(
        errors.contains("not understood") && errors.contains("give a GID"),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 2, "{errors}");

    let lines: Vec<&str> = sections["ceiling"].lines().collect();
    let figures = numbers(lines[0]);
    let (sent, seconds) = (figures[1] - figures[0], figures[3] - figures[2]);
    // A hundred of one target; the counter may be a second younger than the clock.
    assert!(sent > 0.0 && sent <= 100.0 * (seconds + 1.0), "{figures:?}");
    let unanswered: Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(
        unanswered["report"]["sent"], unanswered["report"]["lost"],
        "a wrong key"
    );

    let byhand: Vec<Value> = sections["byhand"]
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sent: u64 = byhand
        .iter()
        .map(|report| report["sent"].as_u64().unwrap())
        .sum();
    assert_eq!(sent, 7);
    assert_eq!(sections["end of input"].trim(), "ended 0");
}

fn only_the_listed_are_answered(sections: &Sections) {
    let lines: Vec<&str> = sections["listed"].lines().collect();
    let of = |line: &str| numbers(line.split_once(' ').unwrap().1);
    let (third, fourth) = (of(lines[0]), of(lines[1]));
    assert!(third[0] > 20.0, "host 1 is refused: {lines:?}");
    assert_eq!(fourth[0], 0.0, "host 2 is not: {lines:?}");
    assert!(fourth[1] > numbers(lines[2])[0] + 20.0, "{lines:?}");
}

fn an_oversized_datagram_costs_nothing(sections: &Sections) {
    let section = &sections["oversized"];
    let (padded, rest) = section.split_once("padding 0\n").unwrap();
    let (plain, counters) = rest.split_once("counters\n").unwrap();
    let sum = |reports: &str, name: &str| -> u64 {
        let reports = reports.lines().filter(|line| line.starts_with('{'));
        let reports = reports.map(|line| serde_json::from_str::<Value>(line).unwrap());
        reports.map(|r| r[name].as_u64().unwrap()).sum()
    };
    assert_eq!(
        (sum(padded, "sent"), sum(padded, "lost")),
        (10, 10),
        "{section}"
    );
    assert_eq!(sum(plain, "sent"), 10, "{section}");
    assert!(sum(plain, "lost") < 10, "the port goes on: {section}");
    let counters = numbers(counters);
    assert!(counters[1] > counters[0], "they came: {section}");
    assert_eq!(counters[2], 0.0, "{section}");
}

fn events_reach_the_agent(sections: &Sections) {
    assert_eq!(events(&sections["agent"], "port_error", "rxe2/1"), None);
    assert!(sections["agent"].contains("device=\"rxe1\""));
    assert!(!sections["agent"].contains("rxe4"), "excluded");
    assert_eq!(events(&sections["down"], "port_error", "rxe2/1"), Some(1.0));
    // The kernel may say it twice: once for the interface, once for its carrier.
    assert!(events(&sections["up"], "port_active", "rxe2/1") >= Some(1.0));
    assert_eq!(events(&sections["up"], "port_error", "rxe1/1"), None);

    let removed = &sections["removed"];
    assert_eq!(
        events(removed, "device_removed", "rxe3"),
        Some(1.0),
        "{removed}"
    );
    assert!(!removed.contains("weir_raw_total{source=\"verbs\",device=\"rxe3\""));
    assert!(removed.contains("weir_raw_total{source=\"verbs\",device=\"rxe1\""));
    for source in ["verbs", "rdma", "netdev", "ethtool", "kmsg"] {
        let up = format!("weir_agent_source_up{{source=\"{source}\"}} 1");
        assert!(removed.contains(&up), "{source}: {removed}");
    }
}

fn a_crash_costs_a_restart_and_no_orphan(sections: &Sections) {
    let crash = &sections["crash"];
    for said in [
        "restarted",
        "weir_agent_source_up{source=\"verbs\"} 1",
        "alone",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(crash.lines().any(|line| line == said), "{said}: {crash}");
    }
}

fn without_the_program_the_agent_runs(sections: &Sections) {
    let missing = &sections["missing"];
    assert!(
        missing.contains("weir_agent_source_up{source=\"verbs\"} 0"),
        "{missing}"
    );
    assert!(
        missing.contains("weir_agent_source_up{source=\"netdev\"} 1"),
        "{missing}"
    );
    let said: Vec<&str> = missing
        .lines()
        .filter(|line| line.contains("WARN"))
        .collect();
    assert_eq!(said.len(), 1, "{missing}");
    assert!(
        said[0].contains("install weir-verbs beside weir-agent"),
        "{missing}"
    );
}
