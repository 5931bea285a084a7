//! The binary as a user meets it.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::path::Path;
use std::process::{Command, Output};

fn controller(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-controller"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn a_bad_configuration_or_topology_ends_with_64_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let topology = dir.path().join("fabric.yaml");
    std::fs::write(
        &topology,
        "nodes: [{name: l1, role: leaf}]\nlinks: [{a: \"l1:up1\", b: \"s1:down1\"}]\n",
    )
    .unwrap();
    let topology_line = format!("topology: {}\n", topology.display());
    for (text, words) in [
        ("leas: {}\n", ["controller.yaml", "leas", "lease"]),
        (
            "mode: on\n",
            ["controller.yaml", "mode", "observe, advise or act"],
        ),
        (
            "trial: {changes_max: 0}\n",
            ["controller.yaml", "trial.changes_max", "1 to 1024"],
        ),
        (&topology_line, ["fabric.yaml", "links[0].b", "s1"]),
    ] {
        let path = dir.path().join("controller.yaml");
        std::fs::write(&path, text).unwrap();
        let output = controller(&["config", "check", "--config", path.to_str().unwrap()]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}: {message}");
        for word in words {
            assert!(
                message.contains(word),
                "{text}: {word:?} is missing in {message}"
            );
        }
    }
}

#[test]
fn a_file_that_is_no_recording_is_named() {
    let output = controller(&["replay", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("not a recording")
    );
}

#[test]
fn the_documented_metrics_are_the_controller_s() {
    let output = String::from_utf8(controller(&["metrics"]).stdout).unwrap();
    let documented =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))
            .unwrap();
    assert!(
        documented.contains(&output),
        "docs/metrics.md is not current: make docs"
    );
}
