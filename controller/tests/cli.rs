//! The binary as a user meets it.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use weir_controller::record::{Ask, replay};

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

/// Waits for the line that names the address of the API.
fn listening(log: &mut impl BufRead) -> String {
    let mut lines = log.lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("HTTP on ")).unwrap();
    line.rsplit_once(' ').unwrap().1.to_owned()
}

fn post(address: &str, path: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    let rest = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all((head + rest).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_controller_that_is_told_to_stop_has_recorded_everything() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("records");
    let config = dir.path().join("controller.yaml");
    let text = format!(
        "listen_grpc: \"127.0.0.1:0\"\nlisten_http: \"127.0.0.1:0\"\nstate_dir: {}\nrecord: {{directory: {}}}\n",
        dir.path().join("state").display(),
        records.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut controller = Command::new(env!("CARGO_BIN_EXE_weir-controller"))
        .args(["run", "--config", config.to_str().unwrap()])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Held open to the end: the controller writes to it.
    let mut log = BufReader::new(controller.stderr.take().unwrap());
    let address = listening(&mut log);
    for path in ["/api/v1/freeze", "/api/v1/unfreeze", "/api/v1/freeze"] {
        post(&address, path);
    }
    let stopped = Command::new("kill")
        .arg(controller.id().to_string())
        .status();
    assert!(stopped.unwrap().success());
    controller.wait().unwrap();
    let report = replay(&records, &Ask::default(), |_, _| {}).unwrap();
    assert!(
        report.is_same() && report.is_whole() && report.cuts.is_empty(),
        "{report:?}"
    );
    let story: Vec<&str> = report.story.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(
        story,
        ["freeze: frozen", "freeze: unfrozen", "freeze: frozen"]
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

/// A leaf with two hosts and two spines, as `ibnetdiscover` prints it; a third leaf has lost a cable.
fn discovered() -> String {
    let mut text = String::from("# Topology file: generated\n");
    for leaf in 1..=4 {
        let cut = leaf == 3;
        text += &format!(
            "\nswitchguid=0x{leaf}({leaf})\nSwitch\t64 \"S-{leaf:016x}\"\t\t# \"MF0;leaf{leaf}:MQM9700/U1\" enhanced port 0 lid {leaf} lmc 0\n[1]\t\"H-{:016x}\"[1]({leaf}1) \t\t# \"node{leaf} mlx5_0 \" lid 9 4xNDR\n",
            leaf * 16 + 1
        );
        for spine in 10..=11 {
            if !(cut && spine == 11) {
                text += &format!(
                    "[{}]\t\"S-{spine:016x}\"[{leaf}]\t\t# \"MF0;spine{spine}:MQM9700/U1\" lid 5 4xNDR\n",
                    spine + 20
                );
            }
        }
    }
    for spine in 10..=11 {
        text += &format!(
            "\nSwitch\t64 \"S-{spine:016x}\"\t\t# \"MF0;spine{spine}:MQM9700/U1\" enhanced port 0 lid 5 lmc 0\n"
        );
        for leaf in (1..=4).filter(|l| !(*l == 3 && spine == 11)) {
            text += &format!(
                "[{leaf}]\t\"S-{leaf:016x}\"[{}]\t\t# \"MF0;leaf{leaf}:MQM9700/U1\" lid {leaf} 4xNDR\n",
                spine + 20
            );
        }
    }
    for leaf in 1..=4 {
        text += &format!(
            "\nCa\t1 \"H-{:016x}\"\t\t# \"node{leaf} mlx5_0\"\n[1]({leaf}1) \t\"S-{leaf:016x}\"[1]\t\t# lid 9 lmc 0 \"MF0;leaf{leaf}:MQM9700/U1\" lid {leaf} 4xNDR\n",
            leaf * 16 + 1
        );
    }
    text
}

#[test]
fn a_fabric_that_was_discovered_becomes_a_topology_file_that_the_controller_takes() {
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("fabric.txt");
    std::fs::write(&seen, discovered()).unwrap();
    let imported = controller(&["topology", "import", seen.to_str().unwrap()]);
    let yaml = String::from_utf8(imported.stdout).unwrap();
    assert!(imported.status.success(), "{yaml}");
    assert!(
        yaml.contains("4 hosts, 6 switches (4 leaf, 2 spine, 0 core), 11 links"),
        "{yaml}"
    );
    assert!(
        yaml.contains("{a: \"leaf1:1\", b: \"node1:mlx5_0/1\", rate: 400Gbit}"),
        "{yaml}"
    );
    let topology = dir.path().join("topology.yaml");
    std::fs::write(&topology, &yaml).unwrap();
    let config = dir.path().join("controller.yaml");
    std::fs::write(&config, format!("topology: {}\n", topology.display())).unwrap();
    let output = controller(&["config", "check", "--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    // What was discovered and what became of it show the same fault.
    for path in [&seen, &topology] {
        let output = controller(&["topology", "check", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains(
                "leaf3 has 1 uplink(s) where 3 of its 3 siblings have 2: 0 instead of 1 to spine11"
            ),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let output = controller(&["topology", "import", "--json", seen.to_str().unwrap()]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["tiers"]["spine10"], "spine");
    assert_eq!(value["groups"].as_array().unwrap().len(), 3);
    assert_eq!(value["findings"][0]["kind"], "asymmetry");
}

#[test]
fn a_file_that_cannot_be_imported_ends_with_64_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fabric.txt");
    for (text, format, words) in [
        (
            "vendid=0x2c9\nSwitch\tmany\n",
            "auto",
            "line 2, column 8: expected the number of ports",
        ),
        ("hello\n", "auto", "--format"),
        (
            "# Port counters: Lid 1 port 1\nPortXmitData:...7\n",
            "perfquery",
            "topology check",
        ),
        ("nodes: []\n", "weir", "links"),
    ] {
        std::fs::write(&path, text).unwrap();
        let args = [
            "topology",
            "import",
            "--format",
            format,
            path.to_str().unwrap(),
        ];
        let output = controller(&args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}: {message}");
        assert!(
            message.contains(words),
            "{text}: {words:?} is missing in {message}"
        );
    }
}
