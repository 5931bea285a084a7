//! The document says what was measured: docs/results.md and docs/results.json are made of the raw figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use weir_results::{PARTS, Raw, Results};

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

#[test]
fn the_document_and_the_keys_are_what_the_raw_figures_give() {
    let mut texts = BTreeMap::new();
    for (name, ..) in PARTS {
        if let Ok(text) = fs::read_to_string(docs(&format!("results/{name}.json"))) {
            texts.insert((*name).to_owned(), text);
        }
    }
    assert!(texts.contains_key("diagnosis"));
    let results = Results::gather(&texts).unwrap();
    let markdown = fs::read_to_string(docs("results.md")).unwrap();
    assert_eq!(results.markdown(), markdown);
    let json = fs::read_to_string(docs("results.json")).unwrap();
    assert_eq!(serde_json::to_string_pretty(&results).unwrap() + "\n", json);
}

#[test]
fn a_part_without_figures_is_left_out_and_wrong_figures_are_told() {
    assert_eq!(
        Results::gather(&BTreeMap::new()).unwrap(),
        Results::default()
    );
    let made = r#"{"version": "1", "command": "weir-fleet cost", "processor": "x"}"#;
    for (text, why) in [
        (
            format!(r#"{{"made": {made}, "figures": {{"nodes": 1}}}}"#),
            "missing field",
        ),
        (r#"{"nodes": 1}"#.to_owned(), "unknown field `nodes`"),
        (
            r#"{"figures": {"nodes": 1}}"#.to_owned(),
            "missing field `made`",
        ),
        (
            format!(
                r#"{{"made": {}, "figures": 1}}"#,
                made.replace("weir-fleet cost", " ")
            ),
            "no command",
        ),
        (
            format!(r#"{{"made": {}, "figures": 1}}"#, made.replace('1', "")),
            "no version",
        ),
    ] {
        let raw = BTreeMap::from([("cost".to_owned(), text)]);
        let refused = Results::gather(&raw).unwrap_err().to_string();
        assert!(refused.contains("docs/results/cost.json"), "{refused}");
        assert!(refused.contains(why), "{refused}");
    }
}

fn keep(docs: &std::path::Path, script: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-results"))
        .args(["keep", "sim", "--version", "abc+", "--docs"])
        .arg(docs)
        .args(["--", "/bin/sh", "-c", script])
        .output()
        .expect("the binary is built for this test")
}

#[test]
fn figures_are_kept_with_what_made_them_and_a_failure_leaves_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results/sim.json");
    let read = || Raw::parse(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(keep(dir.path(), "echo '[1]'").status.success());
    let first = read();
    assert_eq!(first.figures, serde_json::json!([1]));
    assert_eq!(first.made.version, "abc+");
    assert_eq!(first.made.command, "sh -c echo '[1]'");
    assert!(!first.made.interrupted);
    for script in ["echo '[2]'; exit 1", "echo '[2'"] {
        let failed = keep(dir.path(), script);
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success(), "{script}");
        assert!(said.contains("sim stays as it was"), "{said}");
        assert_eq!(read(), first);
    }
    let interrupted = keep(dir.path(), "echo '[3]'; exit 130");
    assert_eq!(interrupted.status.code(), Some(130));
    assert!(read().made.interrupted);
    assert_eq!(read().figures, serde_json::json!([3]));
}

#[test]
fn an_interrupted_part_says_so_in_the_document() {
    let text = r#"{"made": {"version": "1", "command": "weir-sim bench", "interrupted": true}, "figures": []}"#;
    let texts = BTreeMap::from([("sim".to_owned(), text.to_owned())]);
    let markdown = Results::gather(&texts).unwrap().markdown();
    assert!(markdown.contains("`weir-sim bench` of 1"), "{markdown}");
    assert!(markdown.contains("Interrupted"), "{markdown}");
}
