//! The binary as a user meets it: configurations that are wrong, the catalogue of metrics.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::path::Path;
use std::process::{Command, Output};

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-agent"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs `config check` on a file with this text and returns exit code and message.
fn check(text: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, text).unwrap();
    let output = agent(&["config", "check", "--config", path.to_str().unwrap()]);
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_bad_configuration_ends_with_64_and_names_file_key_value_and_range() {
    for (text, words) in [
        ("nod: h1\n", ["agent.yaml", "nod", "node"]),
        (
            "sample_interval: \"5\"\n",
            ["agent.yaml", "sample_interval", "100ms to 30s"],
        ),
        (
            "sample_interval: 2h\n",
            ["agent.yaml", "\"2h\"", "100ms to 30s"],
        ),
        ("node: a\nnode: b\n", ["agent.yaml", "duplicate", "node"]),
        (
            "rdma_expect: [\"mlx5_0=fast\"]\n",
            ["agent.yaml", "rdma_expect", "mlx5_*=400G"],
        ),
        ("role: router\n", ["agent.yaml", "role", "host or switch"]),
        (
            "spool_samples: 0\n",
            ["agent.yaml", "spool_samples", "1 to 10000"],
        ),
        (
            "listen_metrics: \"9741\"\n",
            ["agent.yaml", "listen_metrics", "an address and a port"],
        ),
        (
            "limits: /nonexistent/limits.yaml\n",
            ["/nonexistent/limits.yaml", "cannot read", "existing file"],
        ),
    ] {
        let (code, message) = check(text);
        assert_eq!(code, Some(64), "{text}: {message}");
        for word in words {
            assert!(
                message.contains(word),
                "{text}: {word:?} is missing in {message}"
            );
        }
        let words: Vec<&str> = message.split(": ").collect();
        let said_twice = words.windows(2).any(|pair| pair[0] == pair[1]);
        assert!(!said_twice, "{message}");
    }
}

#[test]
fn a_good_configuration_is_ok_and_shown_as_understood() {
    assert_eq!(check("node: h1\nrole: switch\n").0, Some(0));
    let output = agent(&["config", "show", "--node", "h9"]);
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("node: h9")
    );
}

#[test]
fn the_documented_metrics_are_the_agent_s() {
    let output = String::from_utf8(agent(&["metrics"]).stdout).unwrap();
    let documented =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))
            .unwrap();
    assert!(
        documented.contains(&output),
        "docs/metrics.md is not current: make docs"
    );
}
