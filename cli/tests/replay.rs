//! `weir replay` as a person or a script meets it.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use weir_controller::brain::{Action, Brain, Event};
use weir_controller::record::{About, Recorder, Settings};
use weir_controller_core::Config;
use weir_controller_core::topology::Plan;

fn weir(args: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.arg("replay").args(args).arg(path).output().unwrap()
}

/// Thirty seconds with a freeze in each; `lie` is recorded as done and was not.
fn recording(directory: &Path, lie: Option<Action>) {
    let settings = Settings {
        directory: directory.to_owned(),
        segment_bytes: 1 << 20,
        total_bytes: 1 << 30,
    };
    let about = About {
        lease_base: 7 << 20,
        frozen: false,
        started: Duration::from_secs(1_700_000_000),
        config: Config::default(),
        plan: Plan::default(),
        config_text: String::new(),
        topology_text: String::new(),
    };
    let mut brain = Brain::new(Config::default(), Plan::default(), false, 7 << 20);
    let mut recorder = Recorder::create(settings, about).unwrap();
    for second in 1..=30 {
        let at = Duration::from_secs(second);
        let frozen = second % 2 == 0;
        for event in [Event::Freeze { frozen }, Event::Tick] {
            recorder.append(at, &event);
            for action in brain.handle(event, at) {
                recorder.acted(at, &action);
            }
        }
    }
    if let Some(lie) = lie {
        recorder.acted(Duration::from_secs(30), &lie);
    }
}

fn segment(directory: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(directory).unwrap();
    entries.next().unwrap().unwrap().path()
}

#[test]
fn the_exit_code_tells_whether_the_same_was_done() {
    let dir = tempfile::tempdir().unwrap();
    recording(dir.path(), None);
    let output = weir(&[], dir.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("started 2023-11-14T22:13:20Z"), "{text}");
    assert!(text.contains("2.000  freeze: frozen\n"), "{text}");
    assert!(text.contains("all 30 actions are the same"), "{text}");
    assert!(output.stderr.is_empty(), "no bar where nobody looks");

    let dir = tempfile::tempdir().unwrap();
    let node = "h1".to_owned();
    recording(dir.path(), Some(Action::Resync { node }));
    let output = weir(&[], dir.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("DIFFERENT at 30.0"), "{text}");
    assert!(text.contains("  - Resync { node: \"h1\" }"), "{text}");
    let before = weir(&["--to", "2023-11-14T22:13:49Z"], dir.path());
    assert_eq!(before.status.code(), Some(0), "the lie comes later");

    let path = segment(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = weir(&[], &path);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("DAMAGED") && text.contains("at byte"),
        "{text}"
    );
}

#[test]
fn as_json_it_is_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    recording(dir.path(), None);
    let output = weir(&["--json", "--from", "10", "--to", "19.5"], dir.path());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["same"], true);
    assert_eq!(report["whole"], true);
    assert_eq!(report["compared"], 10);
    assert_eq!(report["story"][0]["text"], "freeze: frozen");
    assert_eq!(report["story"][0]["at_s"], 10.0);
}

#[test]
fn what_it_cannot_use_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let config = dir.path().join("controller.yaml");
    std::fs::write(&config, "leas: {}\n").unwrap();
    let records = dir.path().join("records");
    recording(&records, None);
    let config_args = ["--config", config.to_str().unwrap()];
    for (args, path, code, words) in [
        (&[][..], &missing, 2, "missing"),
        (&[], &dir.path().to_owned(), 2, ".weirrec"),
        (&[], &config, 2, "not a recording"),
        (
            &["--from", "yesterday"],
            &records,
            64,
            "2026-01-31T08:15:00Z",
        ),
        (&["--from", "100"], &records, 2, "from 0 to 30 seconds"),
        (&config_args, &records, 64, "leas"),
    ] {
        let output = weir(args, path);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
}
