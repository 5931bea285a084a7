//! `--compat node-exporter` beside the real one, on the same tree of files.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::collections::{BTreeMap, BTreeSet};
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
    /// The network namespace that it runs in; `None` for our own.
    netns: Option<String>,
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
        Ok(Daemon {
            child,
            address,
            netns: None,
        })
    }

    fn page(&self) -> String {
        if let Some(netns) = &self.netns {
            let (host, port) = self.address.split_once(':').unwrap();
            let script = format!(
                "exec 3<>/dev/tcp/{host}/{port}
                 printf 'GET /metrics HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3
                 cat <&3"
            );
            return ip(&["netns", "exec", netns, "bash", "-e", "-c", &script]).unwrap();
        }
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

/// What ip(8) says; an error if it is not there or fails.
fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("ip {}: {said}", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A network namespace of our own with interfaces of every state, and packets that crossed one.
struct Netns(String);

impl Netns {
    fn make() -> Result<Netns, String> {
        let netns = Netns(format!("weir-compat-{}", std::process::id()));
        ip(&["netns", "add", &netns.0])?;
        // The driver of "silent" tells no state. The receiver has no address, so it answers nothing: the counters stand still afterwards.
        netns.exec(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             ip link set lo up
             ip link add p0 type veth peer name p1 address 02:00:00:00:00:01
             ip link add down0 type veth peer name down1
             ip link add silent type ifb || ip link add silent type dummy
             ip addr add 10.7.0.1/24 dev p0
             for port in p0 p1 silent; do ip link set $port up; done
             ip neigh add 10.7.0.2 lladdr 02:00:00:00:00:01 dev p0 nud permanent
             for try in {1..2000}; do
                 echo hello > /dev/udp/10.7.0.2/9
                 test $(< /sys/class/net/p1/statistics/rx_packets) -lt 7 || break
             done",
        )?;
        Ok(netns)
    }

    fn exec(&self, script: &str) -> Result<String, String> {
        ip(&["netns", "exec", &self.0, "bash", "-e", "-c", script])
    }

    /// A daemon inside.
    fn start(&self, program: &str, arguments: &[&str], before: &str) -> std::io::Result<Daemon> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        let mut daemon = Daemon::start(command.args(arguments), before)?;
        daemon.netns = Some(self.0.clone());
        Ok(daemon)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]).ok();
    }
}

/// Types of these metrics by name.
fn types(page: &str, prefix: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let wanted = name.starts_with(prefix);
        wanted.then(|| (name.to_owned(), kind.to_owned()))
    };
    page.lines().filter_map(line).collect()
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

/// The same kernel, the same namespace, the same sysfs for both: every series that we give under
/// these names is the exporter's, with its labels, value and type, and of each of these names we have
/// every series but those of the loopback device.
#[test]
fn interfaces_are_told_as_node_exporter_tells_them() {
    const PREFIXES: [&str; 2] = ["node_network_", "node_ethtool_"];
    // Of these names there is at least one series here.
    const NAMES: [&str; 12] = [
        "node_network_up",
        "node_network_speed_bytes",
        "node_network_receive_bytes_total",
        "node_network_receive_packets_total",
        "node_network_receive_drop_total",
        "node_network_receive_errs_total",
        "node_network_transmit_bytes_total",
        "node_network_transmit_packets_total",
        "node_network_transmit_drop_total",
        "node_network_transmit_errs_total",
        "node_ethtool_info",
        "node_ethtool_peer_ifindex",
    ];
    let exporter = "prometheus-node-exporter";
    if let Err(error) = Command::new(exporter).arg("--version").output() {
        return skipped(&format!("{exporter}: {error}"));
    }
    let netns = match Netns::make() {
        Ok(netns) => netns,
        Err(error) => return skipped(&format!("no network namespace: {error}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.yaml");
    let state = dir.path().join("state");
    std::fs::write(&config, format!("state_dir: {}\nbpf: {{enabled: false, tcp: false, collective: false, qdisc: false, drop: false, qp: false}}\ncollectors: {{rdma: false, gpu: false, kmsg: false, verbs: false, probe: false}}\n", state.display())).unwrap();
    let agent = netns.start(
        env!("CARGO_BIN_EXE_weir-agent"),
        &[
            "run",
            "--compat",
            "node-exporter",
            "--node",
            "n",
            "--web.listen-address",
            "127.0.0.1:0",
            "--config",
            config.to_str().unwrap(),
        ],
        "/metrics on ",
    );
    let agent = agent.unwrap();
    let exporter = netns.start(
        exporter,
        &[
            "--web.listen-address=127.0.0.1:0",
            "--collector.disable-defaults",
            "--collector.netclass",
            "--collector.netdev",
            "--collector.ethtool",
        ],
        "msg=\"Listening on\" address=",
    );
    let exporter = exporter.unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (ours, theirs) = (agent.page(), exporter.page());
        let all = |page: &str| {
            let mut all = series(page, PREFIXES[0]);
            all.extend(series(page, PREFIXES[1]));
            all
        };
        let (our, mut their) = (all(&ours), all(&theirs));
        let name = |series: &str| series.split('[').next().unwrap().to_owned();
        let names: BTreeSet<String> = our.keys().map(|series| name(series)).collect();
        their
            .retain(|series, _| names.contains(&name(series)) && !series.contains("device=\\\"lo"));
        let complete = NAMES.iter().all(|name| names.contains(*name));
        if complete && our == their {
            for prefix in PREFIXES {
                let mut theirs = types(&theirs, prefix);
                theirs.retain(|name, _| names.contains(name));
                assert_eq!(types(&ours, prefix), theirs);
            }
            let value = |name: &str| our[&format!("{name}[\"device=\\\"p1\"]")];
            assert!(value("node_network_receive_packets_total") >= 7.0);
            return;
        }
        if Instant::now() >= deadline {
            assert!(complete, "only {names:#?}");
            let lacks = |a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>| {
                let differs = a
                    .iter()
                    .filter(|(series, value)| b.get(*series) != Some(*value));
                format!("{:#?}", differs.collect::<Vec<_>>())
            };
            panic!(
                "ours: {}\ntheirs: {}",
                lacks(&our, &their),
                lacks(&their, &our)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
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
