//! `weir-agent scan` as an operator and a monitoring check meet it.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Subject, level, finding.
type Line = (String, String, String);

/// A tree of sysfs without devices, and a stand-in for NVML of tests/fake-nvml where there is a C
/// compiler.
struct Node {
    dir: tempfile::TempDir,
    nvml: Option<PathBuf>,
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

impl Node {
    fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libnvidia-ml.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fake-nvml/nvml.c");
        let built = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        let built = built.is_ok_and(|status| status.success());
        std::fs::create_dir(dir.path().join("libnvidia-ml.so.d")).unwrap();
        Node {
            nvml: built.then_some(library),
            dir,
        }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-agent"));
        command
            .args(["scan", "--json", "--node", "n", "--path.sysfs"])
            .arg(self.dir.path().join("sys"))
            .args(arguments);
        if let Some(nvml) = &self.nvml {
            command.arg("--nvml-library").arg(nvml);
        }
        command.output().unwrap()
    }

    /// Exit code and lines.
    fn scan(&self, arguments: &[&str]) -> (Option<i32>, Vec<Line>) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let findings: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().into();
        let lines = findings
            .iter()
            .map(|f| (text(f, "subject"), text(f, "level"), text(f, "finding")))
            .collect();
        (output.status.code(), lines)
    }
}

fn has(lines: &[Line], subject: &str, level: &str, finding: &str) -> bool {
    lines
        .iter()
        .any(|l| l.0 == subject && l.1 == level && l.2.starts_with(finding))
}

#[test]
fn eight_gpus_are_judged_by_what_they_say_of_themselves() {
    let node = Node::new();
    if node.nvml.is_none() {
        return skipped("no C compiler (cc)");
    }
    let (code, lines) = node.scan(&["--expect", "gpu=8:H100"]);
    for (subject, level, finding) in [
        ("expected", "ok", "8 of 8 GPUs (H100)"),
        ("GPU 0000:3a:00.0", "warning", "PCIe runs on 8 of 16 lanes"),
        (
            "GPU 0000:1a:00.0",
            "warning",
            "the hardware slows the clocks down: the GPU is too hot",
        ),
        (
            "GPU 0000:1a:00.0",
            "ok",
            "clocks are held to the power limit",
        ),
        (
            "GPU 0000:5a:00.0",
            "critical",
            "the driver asks for a reset",
        ),
        (
            "GPU 0000:2a:00.0",
            "critical",
            "NVLink is not active (link 3)",
        ),
    ] {
        assert!(
            has(&lines, subject, level, finding),
            "{finding}: {lines:#?}"
        );
    }
    assert_eq!(code, Some(2));
    let wide = |line: &&Line| line.2.starts_with("PCIe runs");
    assert_eq!(lines.iter().filter(wide).count(), 1, "{lines:#?}");
}

#[test]
fn a_single_look_loads_no_program_and_starts_no_helper() {
    let node = Node::new();
    let (_, lines) = node.scan(&["--collector.roce"]);
    let sources: Vec<&str> = lines
        .iter()
        .filter_map(|l| l.0.strip_prefix("source "))
        .collect();
    for source in ["netdev", "ethtool", "rdma", "gpu", "kmsg"] {
        assert!(sources.contains(&source), "{sources:?}");
    }
    for program in ["collective", "tcp", "qdisc", "drop", "qp", "roce", "verbs"] {
        assert!(!sources.contains(&program), "{sources:?}");
    }
    let (_, lines) = node.scan(&["--no-collector.kmsg"]);
    assert!(lines.iter().all(|l| l.0 != "source kmsg"));
}

#[test]
fn a_slow_link_among_eight_and_a_profile_of_ones_own() {
    let node = Node::new();
    for n in 0..8 {
        let gigabits = if n == 5 { 200 } else { 400 };
        let port = format!("sys/class/infiniband/mlx5_{n}/ports/1");
        node.write(&format!("{port}/state"), "4: ACTIVE\n");
        node.write(
            &format!("{port}/rate"),
            &format!("{gigabits} Gb/sec (4X NDR)\n"),
        );
        node.write(&format!("{port}/../../board_id"), "MT_0000000838\n");
    }
    let (_, lines) = node.scan(&[]);
    let words = "runs at 200 Gbit/s of 400 Gbit/s";
    assert!(
        has(&lines, "verbs port mlx5_5/1", "warning", words),
        "{lines:#?}"
    );
    let profile = node.write("node.yaml", "name: mine\nexpect: [\"rdma=8@400G\"]\n");
    let (code, lines) = node.scan(&["--profile", profile.to_str().unwrap()]);
    let words = "7 of 8 verbs ports up at 400 Gbit/s; mlx5_5/1 runs at 200 Gbit/s";
    assert!(has(&lines, "expected", "critical", words), "{lines:#?}");
    assert_eq!(code, Some(2));
}

#[test]
fn a_profile_that_is_wrong_ends_with_64_and_names_the_key() {
    let node = Node::new();
    let profile = node.write("node.yaml", "expect: [\"rdma=eight\"]\n");
    for (name, words) in [
        (
            profile.to_str().unwrap(),
            ["node.yaml: expect", "rdma=eight"],
        ),
        ("nonesuch", ["profile", "8xh100-8xcx7"]),
    ] {
        let output = node.run(&["--profile", name]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in {said}");
        }
    }
}

/// The log of a node whose driver was loaded again, in the place of the kernel's own, in a mount
/// namespace that ends with the look.
#[test]
fn faults_of_the_log_stand_until_they_are_mended_and_all_count() {
    let node = Node::new();
    let mut log = String::new();
    let mut say = |text: &str| {
        let number = log.lines().count();
        log += &format!("4,{number},{},-;{text}\n", 1_000 + number);
    };
    say("NVRM: Xid (PCI:0000:b1:00): 119, pid=7, name=a, Timeout after 6s");
    say("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.144.03");
    say("NVRM: Xid (PCI:0000:b2:00): 79, GPU has fallen off the bus.");
    for _ in 0..3_000 {
        say("NVRM: Xid (PCI:0000:b3:00): 31, pid=7, name=a, MMU Fault");
    }
    let log = node.write("kmsg", &log);
    let inside = |then: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["-m", "bash", "-e", "-c"])
            .arg(format!("mount --bind \"$1\" /dev/kmsg; {then}"))
            .args(["scan".as_ref(), log.as_os_str()])
            .arg(env!("CARGO_BIN_EXE_weir-agent"))
            .arg(node.dir.path().join("sys"));
        command.output()
    };
    match inside("true") {
        Ok(output) if output.status.success() => {}
        Ok(output) => return skipped(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => return skipped(&format!("unshare: {error}")),
    }
    let output = inside("exec \"$2\" scan --json --node n --path.sysfs \"$3\"").unwrap();
    assert_eq!(output.status.code(), Some(2));
    let found: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |subject: &str| {
        let mut lines = found.iter().filter(|f| f["subject"] == subject);
        let line = lines.next().unwrap_or_else(|| panic!("{found:#?}"));
        assert!(lines.next().is_none(), "{subject} twice");
        (line["level"].clone(), line["finding"].to_string())
    };
    let (level, text) = of("kmsg 0000:b1:00.0");
    assert_eq!(level, "ok");
    assert!(
        text.contains("since then the driver was loaded again"),
        "{text}"
    );
    assert_eq!(of("kmsg 0000:b2:00.0").0, "critical");
    let (_, text) = of("kmsg 0000:b3:00.0");
    assert!(text.contains("(3000 times, the last"), "{text}");
}
