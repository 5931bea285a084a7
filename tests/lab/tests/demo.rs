//! The main job as a user runs it.

use std::process::Command;
use weir_lab::preflight::skipped;
use weir_lab::stack::bin_dir;

/// How much faster is a figure that the program prints; a busy machine makes it any, so that what is asserted is that
/// the change was judged faster by the job's own iterations, and kept.
#[test]
fn the_demo_makes_the_collective_faster_and_leaves_nothing() {
    if skipped("demo") {
        return;
    }
    let before_it = labs();
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("demo.json");
    let run = Command::new(bin_dir().join("weir-lab"))
        .args(["demo", "--out"])
        .arg(&out)
        .output()
        .expect("weir-lab runs");
    let printed = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    assert!(run.status.success(), "{printed}");
    let report = std::fs::read(&out).expect("the figures");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let figure = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {report}"))
    };
    for key in [
        "busbw_before_mbps",
        "busbw_after_mbps",
        "busbw_collision_free_mbps",
        "job_start_to_change_s",
    ] {
        assert!(figure(key) > 0.0, "{key}: {printed}");
    }
    assert_eq!(report["verdict_class"], "ecmp_collision");
    assert_eq!(report["rolled_back"], false);
    assert_eq!(labs(), before_it, "a lab is left behind");
}

fn labs() -> String {
    let list = Command::new(bin_dir().join("weir-lab"))
        .arg("list")
        .output()
        .expect("weir-lab runs");
    String::from_utf8_lossy(&list.stdout).into_owned()
}
