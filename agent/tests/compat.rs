//! `--compat node-exporter` beside the real one, on the same tree of files.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Within this time a daemon serves what it reads, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Files of a port's `counters/` with values of their own.
const COUNTERS: [&str; 23] = [
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "multicast_rcv_packets",
    "multicast_xmit_packets",
    "port_rcv_constraint_errors",
    "port_rcv_data",
    "port_rcv_discards",
    "port_rcv_errors",
    "port_rcv_packets",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_data",
    "port_xmit_discards",
    "port_xmit_packets",
    "port_xmit_wait",
    "symbol_error",
    "unicast_rcv_packets",
    "unicast_xmit_packets",
    "port_xmit_time_cong",
];
/// The same of kernels before 4.6.
const OLD_COUNTERS: [&str; 8] = [
    "port_multicast_rcv_packets",
    "port_multicast_xmit_packets",
    "port_rcv_data_64",
    "port_rcv_packets_64",
    "port_unicast_rcv_packets",
    "port_unicast_xmit_packets",
    "port_xmit_data_64",
    "port_xmit_packets_64",
];

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

fn put(path: &Path, line: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("{line}\n")).unwrap();
}

/// Two devices: one with all there is, one with a port that is down and a counter without a value.
fn tree(root: &Path) {
    let class = root.join("class/infiniband");
    for (device, model, ports) in [("mlx5_0", "MT4129", 1), ("mlx4_1", "MT4099", 2)] {
        let device = class.join(device);
        put(&device.join("fw_ver"), "28.43.2026");
        put(&device.join("board_id"), "MT_0000000838");
        put(&device.join("hca_type"), model);
        for port in 1..=ports {
            let dir = device.join(format!("ports/{port}"));
            let (state, physical, rate) = match port {
                1 => ("4: ACTIVE", "5: LinkUp", "400 Gb/sec (4X NDR)"),
                _ => ("1: DOWN", "3: Disabled", "2.5 Gb/sec (1X SDR)"),
            };
            put(&dir.join("state"), state);
            put(&dir.join("phys_state"), physical);
            put(&dir.join("rate"), rate);
            for (place, name) in (1u64..).zip(COUNTERS) {
                let value = place * 1_000_003 * port;
                put(&dir.join("counters").join(name), &value.to_string());
            }
            put(&dir.join("hw_counters/lifespan"), "10");
        }
        if ports == 2 {
            put(
                &device.join("ports/2/counters/port_xmit_wait"),
                "N/A (no PMA)",
            );
            std::fs::remove_file(device.join("ports/2/counters/symbol_error")).unwrap();
            for (place, name) in (1u64..).zip(OLD_COUNTERS) {
                let path = device.join("ports/1/counters_ext").join(name);
                put(&path, &(place * 7_000_000_001).to_string());
            }
        }
    }
}

/// A daemon and the address that it said it listens on.
struct Daemon {
    child: Child,
    address: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Daemon {
    /// Waits for the line of its log that has `before`; what follows is the address.
    fn start(command: &mut Command, before: &str) -> std::io::Result<Daemon> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let start = said.len();
            assert!(log.read_line(&mut said).unwrap() > 0, "it ended: {said}");
            if let Some((_, address)) = said[start..].split_once(before) {
                let end = address.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
                break address[..end.unwrap_or(address.len())].to_owned();
            }
        };
        // Read on, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Daemon { child, address })
    }

    fn page(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

/// Series of these metrics by name and sorted labels.
fn series(page: &str, prefix: &str) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.strip_suffix('}')?.split_once('{')?;
        let mut labels: Vec<&str> = labels
            .split("\",")
            .map(|l| l.trim_end_matches('"'))
            .collect();
        labels.sort_unstable();
        Some((format!("{name}{labels:?}"), value.parse().ok()?))
    };
    let lines = page.lines().filter(|l| l.starts_with(prefix));
    lines
        .map(|l| line(l).unwrap_or_else(|| panic!("{l}")))
        .collect()
}

#[test]
fn infiniband_is_told_as_node_exporter_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = dir.path().join("sys");
    tree(&sysfs);
    let exporter = Daemon::start(
        Command::new("prometheus-node-exporter")
            .arg("--web.listen-address=127.0.0.1:0")
            .arg(format!("--path.sysfs={}", sysfs.display()))
            .args(["--collector.disable-defaults", "--collector.infiniband"]),
        "msg=\"Listening on\" address=",
    );
    let exporter = match exporter {
        Ok(exporter) => exporter,
        Err(error) => return skipped(&format!("prometheus-node-exporter: {error}")),
    };
    let config = dir.path().join("agent.yaml");
    let state = dir.path().join("state");
    std::fs::write(&config, format!("state_dir: {}\nbpf: {{enabled: false, tcp: false, collective: false, qdisc: false, drop: false}}\ncollectors: {{ethtool: false, gpu: false, kmsg: false}}\n", state.display())).unwrap();
    let agent = Daemon::start(
        Command::new(env!("CARGO_BIN_EXE_weir-agent"))
            .args(["run", "--compat", "node-exporter", "--node", "n"])
            .args(["--web.listen-address", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--path.sysfs")
            .arg(&sysfs),
        "/metrics on ",
    )
    .unwrap();
    let theirs = series(&exporter.page(), "node_infiniband_");
    assert!(theirs.len() > 70, "{theirs:#?}");
    let deadline = Instant::now() + DEADLINE;
    let ours = loop {
        let ours = series(&agent.page(), "node_infiniband_");
        if !ours.is_empty() {
            break ours;
        }
        assert!(Instant::now() < deadline, "nothing after {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ours, theirs);
}

#[test]
fn an_exporter_that_is_not_known_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_weir-agent"))
        .args(["config", "check", "--node", "n", "--compat", "telegraf"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("telegraf") && said.contains("node-exporter"),
        "{said}"
    );
}
