//! Recordings of a run with a real verdict, a real lease and its renewals, replayed.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "the functions that tests share are tests too: they panic, and leave alone what they do not play"
)]

mod faults;
mod world;

use faults::Fault;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_controller::brain::Event;
use weir_controller::config::RawConfig;
use weir_controller::record::replay::WARM_UP;
use weir_controller::record::{Ask, Report, replay};
use weir_controller_core::engine::NODE_GONE;
use weir_wire::v1::Severity;
use world::World;

/// Large enough that nothing is deleted.
const ROOM: u64 = 1 << 40;

fn seconds(world: &mut World, n: u32) {
    for _ in 0..n {
        world.second();
    }
}

fn replayed(path: &Path, ask: &Ask) -> Report {
    replay(path, ask, |done, total| assert!(done <= total)).unwrap()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A collision that is found, rerouted and kept; an agent that comes back; a freeze that ends it.
fn story(directory: &Path, segment_bytes: u64, total_bytes: u64, seconds_kept: u32) -> Vec<String> {
    let mut world = World::new(directory, 1 << 20, segment_bytes, total_bytes);
    seconds(&mut world, 20);
    world.reconnect("s1", 0, true);
    seconds(&mut world, seconds_kept);
    world.event(Event::Freeze { frozen: true });
    world.perform();
    seconds(&mut world, 30);
    world.event(Event::Freeze { frozen: false });
    world.perform();
    seconds(&mut world, 60);
    std::mem::take(&mut world.done)
}

#[test]
fn a_run_is_rebuilt_byte_for_byte_over_all_its_segments() {
    let dir = tempfile::tempdir().unwrap();
    let done = story(dir.path(), 20_000, ROOM, 100);
    let granted = done.iter().filter(|a| a.contains("Grant")).count();
    assert!(granted >= 4, "{granted}");
    assert!(segments(dir.path()).len() > 2);
    let report = replayed(dir.path(), &Ask::default());
    assert!(report.is_same() && report.is_whole(), "{report:#?}");
    assert_eq!(report.compared, done.len() as u64);
    assert!(report.same_defaults);
    assert!(
        report
            .story
            .iter()
            .any(|t| t.text.contains("ecmp_collision on l1:up1"))
    );
}

#[test]
fn a_verdict_that_says_something_else_is_a_difference_though_nothing_else_was_done() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), 1 << 30, ROOM, 100);
    let path = segments(dir.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    // The last digit of the first digest, and the check of its record: crc, length, then 11 bytes before the text.
    let text = b"Judged { incident: ";
    let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
    let start = at - 19;
    let length = u32::from_le_bytes(bytes[start + 4..start + 8].try_into().unwrap());
    let end = start + 8 + length as usize;
    assert_eq!(&bytes[end - 2..end], b" }");
    bytes[end - 3] = if bytes[end - 3] == b'7' { b'8' } else { b'7' };
    let crc = crc32fast::hash(&bytes[start + 8..end]);
    bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let report = replayed(&path, &Ask::default());
    assert!(report.is_whole(), "{report:#?}");
    assert_eq!(report.differences_total, 1, "{:#?}", report.differences);
    let said = &report.differences[0].recorded[0];
    assert!(said.contains("ecmp_collision on l1:up1"), "{said}");
}

#[test]
fn from_a_later_segment_all_is_the_same_after_the_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    // The lease is granted in segments that are deleted, and kept, ended and granted again in others.
    let done = story(dir.path(), 20_000, 900_000, 600);
    let report = replayed(dir.path(), &Ask::default());
    assert!(report.first_s > 100.0, "{}", report.first_s);
    assert!(report.last_s - report.first_s > WARM_UP.as_secs_f64() + 60.0);
    assert!(
        report.is_same() && report.is_whole(),
        "{:#?}",
        report.differences
    );
    assert!(report.compared > 60, "{}", report.compared);
    let end = done
        .iter()
        .find(|a| a.contains("frozen by an operator"))
        .unwrap();
    assert!(
        report.story.iter().any(|t| t.text == *end),
        "{:#?}",
        report.story
    );
}

/// Replays from each segment but the first and the newest: all is the same after the warm-up.
fn check_each_start(directory: &Path) -> u64 {
    let paths = segments(directory);
    let mut compared = 0;
    for n in 1..paths.len().saturating_sub(1) {
        let from = tempfile::tempdir_in(directory).unwrap();
        for path in &paths[n..] {
            let link = from.path().join(path.file_name().unwrap());
            std::fs::hard_link(path, link).unwrap();
        }
        let report = replayed(from.path(), &Ask::default());
        assert!(report.is_same(), "{n}: {:#?}", report.differences);
        assert_eq!(report.memories_different_s, [0.0; 0], "{n}");
        assert!(report.restarts.is_empty() && report.cuts.is_empty());
        compared += report.compared;
    }
    compared
}

#[test]
fn a_replay_can_start_at_each_segment() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), 20_000, ROOM, 900);
    assert!(segments(dir.path()).len() > 5);
    assert!(check_each_start(dir.path()) > 500);
}

/// What may happen in a story, and for how long its consequences are waited for.
fn happens(world: &mut World, step: u8, n: u32) {
    const NODES: [&str; 6] = ["l1", "l2", "s1", "s2", "h11", "h22"];
    const HOSTS: [&str; 4] = ["h11", "h13", "h22", "h24"];
    const EVENTS: [(&str, &str, Severity); 7] = [
        ("xid", "0000:1a:00.0", Severity::Critical),
        ("gpu_lost", "0000:1a:00.0", Severity::Critical),
        ("gpu_back", "0000:1a:00.0", Severity::Info),
        ("nic_health", "mlx5_0/1", Severity::Warning),
        ("link_down", "eth0", Severity::Warning),
        ("pcie_downgraded", "0000:17:00.0", Severity::Warning),
        ("link_up", "eth0", Severity::Info),
    ];
    let place = n as usize;
    let node = NODES[place % NODES.len()];
    match step {
        0 => world.reconnect(node, n % 9, false),
        1 => world.reconnect(node, n % 50, true),
        2 => world.busy = !world.busy,
        3 => world.event(Event::Freeze {
            frozen: n.is_multiple_of(2),
        }),
        4 => world.event(Event::EndLease {
            lease: (1 << 20) + u64::from(n) % 4,
        }),
        5 => world.silence(node, n),
        6 => world.step_clock(node, Duration::from_secs(u64::from(n) * 10)),
        7 => world.redeclare(node),
        8 => world.wait(Duration::from_millis(u64::from(n) * 300)),
        9 if n > 30 => {
            // A node is lost and forgotten.
            world.lose(node);
            world.wait(NODE_GONE);
            seconds(world, 1);
        }
        9..=14 => {
            let (name, subject, severity) = EVENTS[place % EVENTS.len()];
            world.happens(HOSTS[place % HOSTS.len()], name, subject, severity);
        }
        _ => {
            let fault = Fault::ALL[usize::from(step) % Fault::ALL.len()];
            world.toggle(fault, place);
        }
    }
    world.perform();
    seconds(world, n);
}

/// Each class of verdict that a story of this world can have, each with its place in the segments.
#[test]
fn every_detector_decides_the_same_from_each_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), 1 << 20, 60_000, ROOM);
    seconds(&mut world, 60);
    for (n, fault) in Fault::ALL.into_iter().enumerate() {
        // What is lost where damage is counted is not silent: another cable than that of the errors.
        world.toggle(fault, n + usize::from(fault == Fault::Loses));
        let cables = fault == Fault::Swallows;
        seconds(&mut world, if cables { 300 } else { 60 });
        if n % 2 == 0 {
            world.toggle(fault, n);
        }
    }
    for n in 10..17 {
        happens(&mut world, 10, n);
    }
    seconds(&mut world, 200);
    let incidents = world.brain.core.incidents();
    let found: BTreeSet<&str> = incidents.iter().map(|i| i.verdict.class.name()).collect();
    for class in [
        "ecmp_collision",
        "slow_receiver",
        "straggler",
        "link_flap",
        "link_down",
        "link_errors",
        "degraded_link",
        "silent_loss",
        "nic_fault",
        "gpu_fault",
        "node_outlier",
        "cabling",
    ] {
        assert!(found.contains(class), "{class} is not in {found:?}");
    }
    let by = |what: &str| {
        let mut evidence = incidents.iter().flat_map(|i| &i.verdict.evidence);
        evidence.any(|e| e.what.contains(what))
    };
    assert!(
        by("did not arrive") && by("packets sent again"),
        "both detectors of silent loss"
    );
    drop(world);
    assert!(check_each_start(dir.path()) > 500);
}

proptest! {
    // Each is some minutes of twelve nodes, replayed several times.
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn whatever_happens_is_rebuilt_from_each_segment(steps in prop::collection::vec((0u8..40, 1u32..40), 10..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path(), 1 << 20, 60_000, ROOM);
        for (step, n) in steps {
            happens(&mut world, step, n);
        }
        drop(world);
        let report = replayed(dir.path(), &Ask::default());
        prop_assert!(report.is_same() && report.is_whole(), "{:#?}", report.differences);
        prop_assert!(report.memories_different_s.is_empty());
        check_each_start(dir.path());
    }
}

#[test]
fn a_part_is_replayed_from_a_segment_that_is_warm_in_time() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), 20_000, ROOM, 600);
    let ask = Ask {
        from: Some("2023-11-14T22:23:20Z".parse().unwrap()),
        to: Some("640".parse().unwrap()),
        ..Ask::default()
    };
    let report = replayed(dir.path(), &ask);
    assert!(
        report.is_same() && report.is_whole(),
        "{:#?}",
        report.differences
    );
    assert!(
        (200.0..=480.0).contains(&report.first_s),
        "{}",
        report.first_s
    );
    assert!(
        (638.0..=640.0).contains(&report.last_s),
        "{}",
        report.last_s
    );
    assert!(report.story.iter().all(|t| t.at_s >= 600.0));
    let late = Ask {
        from: Some("5000".parse().unwrap()),
        ..Ask::default()
    };
    let error = replay(dir.path(), &late, |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("5000 s"), "{error}");
}

#[test]
fn a_torn_tail_is_cut_and_what_is_ahead_of_it_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), ROOM, ROOM, 30);
    let path = segments(dir.path()).pop().unwrap();
    let whole = replayed(dir.path(), &Ask::default());
    let bytes = std::fs::read(&path).unwrap();
    for cut in [1, 7, 100, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let report = replayed(dir.path(), &Ask::default());
        assert!(report.is_same() && report.is_whole(), "{report:#?}");
        assert!(report.records < whole.records);
        assert!(report.cuts.len() <= 1 && report.cuts.iter().all(|cut| cut.torn));
    }
}

#[test]
fn damage_is_told_with_its_place_and_the_next_segment_starts_afresh() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), 20_000, ROOM, 600);
    let damaged = &segments(dir.path())[1];
    let mut bytes = std::fs::read(damaged).unwrap();
    let at = bytes.len() * 3 / 4;
    bytes[at] ^= 0x40;
    std::fs::write(damaged, &bytes).unwrap();
    let report = replayed(dir.path(), &Ask::default());
    let [cut] = report.cuts.as_slice() else {
        panic!("{:#?}", report.cuts)
    };
    assert_eq!(cut.path, *damaged);
    assert!(
        !cut.torn && cut.offset <= at as u64 && cut.offset + 3000 > at as u64,
        "{cut:?}"
    );
    assert_eq!(report.restarts.len(), 1);
    assert!(
        report.is_same() && !report.is_whole(),
        "{:#?}",
        report.differences
    );
    assert!(report.compared > 100);
}

#[test]
fn what_the_disk_does_not_take_is_counted_and_the_recording_goes_on_with_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("records");
    let mut world = World::new(&records, 1 << 20, 20_000, ROOM);
    seconds(&mut world, 30);
    std::fs::rename(&records, dir.path().join("away")).unwrap();
    while world.recorder.recorded().lost == 0 {
        world.second();
    }
    std::fs::create_dir(&records).unwrap();
    while segments(&records).is_empty() {
        world.second();
    }
    seconds(&mut world, 200);
    let lost = world.recorder.recorded().lost;
    drop(world);
    let kept = segments(&dir.path().join("away"));
    for path in kept {
        std::fs::rename(&path, records.join(path.file_name().unwrap())).unwrap();
    }
    let report = replayed(&records, &Ask::default());
    let [restart] = report.restarts.as_slice() else {
        panic!("{:#?}", report.restarts)
    };
    assert_eq!(restart.why, format!("{lost} records were lost before it"));
    assert!(
        report.is_same() && !report.is_whole(),
        "{:#?}",
        report.differences
    );
}

#[test]
fn the_oldest_segments_are_deleted_and_those_of_an_earlier_start_first() {
    let dir = tempfile::tempdir().unwrap();
    const TOTAL: u64 = 1_000_000;
    let mut first = World::new(dir.path(), 1 << 20, 20_000, TOTAL);
    while first.recorder.recorded().segments_deleted == 0 {
        seconds(&mut first, 20);
    }
    drop(first);
    let before = segments(dir.path());
    let mut second = World::new(dir.path(), 2 << 20, 20_000, TOTAL);
    while segments(dir.path()).contains(&before[0]) {
        seconds(&mut second, 20);
    }
    drop(second);
    let after = segments(dir.path());
    let size: u64 = after.iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(size <= TOTAL, "{size}");
    let report = replayed(dir.path(), &Ask::default());
    assert_eq!(
        (report.other_runs, report.first_s),
        (1, 0.0),
        "the newest run is replayed"
    );
    assert!(report.is_same() && report.is_whole());
}

#[test]
fn another_configuration_shows_what_would_have_been_different() {
    let dir = tempfile::tempdir().unwrap();
    story(dir.path(), ROOM, ROOM, 30);
    let ask = |text: &str| {
        let path = Path::new("asked.yaml");
        let raw: RawConfig = weir_common::config::parse(text, path).unwrap();
        Ask {
            config: Some(raw.check(path).unwrap().core),
            ..Ask::default()
        }
    };
    let same = replayed(dir.path(), &ask("mode: act")).what_if.unwrap();
    assert!(same.verdicts.both > 0 && same.commands.both > 0);
    for changes in [&same.verdicts, &same.commands] {
        assert!(changes.only_recorded.is_empty() && changes.only_asked.is_empty());
    }
    let report = replayed(dir.path(), &ask("mode: observe"));
    assert!(
        report.is_same(),
        "the recorded configuration is what is compared"
    );
    let observed = report.what_if.unwrap();
    assert_eq!(observed.verdicts, same.verdicts);
    let pins = &observed.commands.only_recorded;
    assert!(
        pins.iter().any(|t| t.text.starts_with("pin 10.")),
        "{pins:?}"
    );
    assert_eq!(observed.commands.both, 0);
    // Flows that would have to gain more than they can.
    let strict = replayed(dir.path(), &ask("mode: act\nhotspot: {gain_min: 9.0}"));
    let strict = strict.what_if.unwrap();
    assert_eq!(strict.verdicts.only_recorded.len(), same.verdicts.both);
    assert_eq!(strict.verdicts.both, 0);
}

#[test]
fn a_recording_of_nothing_and_a_foreign_file_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let no = |path: &Path| {
        replay(path, &Ask::default(), |_, _| {})
            .unwrap_err()
            .to_string()
    };
    assert!(no(dir.path()).contains(".weirrec"));
    let file = dir.path().join("x.weirrec");
    std::fs::write(&file, "something else").unwrap();
    assert!(no(&file).contains("not a recording"), "{}", no(&file));
    assert!(no(dir.path()).contains("not a recording"));
    assert!(no(&dir.path().join("gone")).contains("gone"));
    assert!(Duration::ZERO < WARM_UP);
}
