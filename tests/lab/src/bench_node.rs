//! What the agent costs on a full node: eight NICs with all counters of mlx5, eight GPUs by the
//! stand-in NVML, every collector on; beside node_exporter on the same tree of files.

use crate::{http, output::say, shell, sys};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Cycles that are measured, one a second.
const CYCLES: u32 = 20;
const CYCLE: Duration = Duration::from_secs(1);
const READY_DEADLINE: Duration = Duration::from_secs(20);
const NICS: u32 = 8;

/// `counters/` of a port; those that move while data flows come first.
const PORT_COUNTERS: [&str; 22] = [
    "port_xmit_data",
    "port_rcv_data",
    "port_xmit_packets",
    "port_rcv_packets",
    "unicast_xmit_packets",
    "unicast_rcv_packets",
    "port_xmit_wait",
    "multicast_xmit_packets",
    "multicast_rcv_packets",
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_discards",
    "symbol_error",
    "port_xmit_wait_ext",
];
/// `hw_counters/` of mlx5 in RoCE mode, likewise.
const HW_COUNTERS: [&str; 29] = [
    "rx_write_requests",
    "rx_read_requests",
    "np_ecn_marked_roce_packets",
    "np_cnp_sent",
    "rp_cnp_handled",
    "out_of_sequence",
    "packet_seq_err",
    "roce_adp_retrans",
    "duplicate_request",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "out_of_buffer",
    "req_cqe_error",
    "req_cqe_flush_error",
    "req_remote_access_errors",
    "req_remote_invalid_request",
    "resp_cqe_error",
    "resp_cqe_flush_error",
    "resp_local_length_error",
    "resp_remote_access_errors",
    "rnr_nak_retry_err",
    "roce_adp_retrans_to",
    "roce_slow_restart",
    "roce_slow_restart_cnps",
    "roce_slow_restart_trans",
    "rp_cnp_ignored",
    "rx_atomic_requests",
    "rx_dct_connect",
    "rx_icrc_encapsulated",
];
/// Counters of each directory that move.
const MOVING: usize = 7;

/// A tree of files that looks like sysfs, and the files that move.
struct Tree {
    moving: Vec<(File, u64)>,
}

impl Tree {
    fn make(root: &Path) -> Result<Tree> {
        let mut moving = Vec::new();
        for nic in 0..NICS {
            let device = root.join(format!("class/infiniband/mlx5_{nic}"));
            let port = device.join("ports/1");
            fs::create_dir_all(&port)?;
            for (file, text) in [
                ("../../fw_ver", "28.43.2026"),
                ("../../board_id", "MT_0000000838"),
                ("../../hca_type", "MT4129"),
                ("state", "4: ACTIVE"),
                ("phys_state", "5: LinkUp"),
                ("rate", "400 Gb/sec (4X NDR)"),
                ("link_layer", "Ethernet"),
            ] {
                fs::write(port.join(file), format!("{text}\n"))?;
            }
            for (dir, names) in [
                ("counters", &PORT_COUNTERS[..]),
                ("hw_counters", &HW_COUNTERS),
            ] {
                fs::create_dir_all(port.join(dir))?;
                for (place, name) in (0u64..).zip(names) {
                    let path = port.join(dir).join(name);
                    fs::write(&path, counter(0))?;
                    if place < MOVING as u64 {
                        let file = OpenOptions::new().write(true).open(&path)?;
                        // From a full link's bytes down to a few marks a second.
                        moving.push((file, 12_000_000_000 >> (place * 5)));
                    }
                }
            }
            fs::write(port.join("hw_counters/lifespan"), "10\n")?;
        }
        Ok(Tree { moving })
    }

    /// Lets time pass: rates that waver by some per cent, as a busy link's do.
    fn step(&self, second: u64) -> Result<()> {
        for (place, (file, rate)) in (0u64..).zip(&self.moving) {
            let waver = (second * 7919 + place * 104_729) % 64;
            let value = rate * second + rate / 1024 * waver;
            file.write_all_at(counter(value).as_bytes(), 0)?;
        }
        Ok(())
    }
}

/// Of one width, so that it can be written over in place.
fn counter(value: u64) -> String {
    format!("{value:020}\n")
}

/// A process, ended with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    fn start(namespace: &str, program: &Path, args: &[&str]) -> Result<Running> {
        let child = sys::command_in(namespace, program)?
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Running(child))
    }

    /// CPU time of all threads (`/proc/PID/task/*/schedstat`, nanoseconds).
    fn cpu_us(&self) -> Result<f64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id()))?;
        let mut nanoseconds = 0.0;
        for task in tasks {
            let stat = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = stat.split(' ').next().unwrap_or_default();
            nanoseconds += first.parse::<f64>().context("schedstat")?;
        }
        Ok(nanoseconds / 1000.0)
    }

    fn rss_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok());
        Ok(kib.context("VmRSS")? / 1024.0)
    }
}

/// A network namespace with a loopback device, removed with the value.
struct Namespace(String);

impl Namespace {
    fn make() -> Result<Namespace> {
        let name = format!("weir-bench-{}", std::process::id());
        shell::run("ip", &["netns", "add", &name])?;
        let namespace = Namespace(name);
        shell::run("ip", &["-n", &namespace.0, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        shell::run("ip", &["netns", "del", &self.0]).ok();
    }
}

/// Waits for a page.
fn page(namespace: &str, url: &str) -> Result<String> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        match http::get_text(namespace, url) {
            Ok(text) => return Ok(text),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Value of a metric without labels.
fn value(page: &str, name: &str) -> Result<f64> {
    let line = page
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|v| v.parse().ok())
        .with_context(|| format!("{name} is not on the page"))
}

/// The stand-in NVML, if a C compiler is there and this runs in a checkout.
fn fake_nvml(dir: &Path) -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../fake-nvml/nvml.c");
    let library = dir.join("libnvidia-ml.so.1");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, Path::new(source)])
        .status();
    built
        .is_ok_and(|status| status.success())
        .then_some(library)
}

/// Measures and gives the figures.
///
/// # Errors
/// When a program cannot be started, or a figure cannot be read.
pub fn bench(bin_dir: &Path) -> Result<Value> {
    let dir = std::env::temp_dir().join(format!("weir-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let figures = measure(bin_dir, &dir);
    fs::remove_dir_all(&dir).ok();
    figures
}

fn measure(bin_dir: &Path, dir: &Path) -> Result<Value> {
    let bin_dir = fs::canonicalize(bin_dir)?;
    let sysfs = dir.join("sys");
    let tree = Arc::new(Tree::make(&sysfs)?);
    let namespace = Namespace::make()?;
    let text = |path: PathBuf| path.display().to_string();
    fs::write(dir.join("topology.yaml"), "nodes: []\nlinks: []\n")?;
    fs::write(
        dir.join("controller.yaml"),
        format!(
            "listen_grpc: \"127.0.0.1:9742\"\nlisten_http: \"127.0.0.1:9743\"\ntopology: \"{}\"\nstate_dir: \"{}\"\nallow_plaintext: true\n",
            text(dir.join("topology.yaml")),
            text(dir.to_owned())
        ),
    )?;
    fs::write(
        dir.join("agent.yaml"),
        format!(
            "node: full\ncontroller: \"http://127.0.0.1:9742\"\nlisten_metrics: \"127.0.0.1:9741\"\nstate_dir: \"{}\"\npath_sysfs: \"{}\"\n",
            text(dir.join("agent")),
            text(sysfs.clone())
        ),
    )?;
    let _controller = Running::start(
        &namespace.0,
        &bin_dir.join("weir-controller"),
        &["run", "--config", &text(dir.join("controller.yaml"))],
    )?;
    let config = text(dir.join("agent.yaml"));
    let mut args = vec!["run", "--config", &config];
    let nvml = fake_nvml(dir).map(text);
    if let Some(nvml) = &nvml {
        args.extend(["--nvml-library", nvml]);
    }
    let agent = Running::start(&namespace.0, &bin_dir.join("weir-agent"), &args)?;
    let agent_url = "http://127.0.0.1:9741/metrics";
    page(&namespace.0, agent_url)?;
    let exporter_url = "http://127.0.0.1:9100/metrics";
    let exporter = Running::start(
        &namespace.0,
        Path::new("prometheus-node-exporter"),
        &[
            "--web.listen-address=127.0.0.1:9100",
            &format!("--path.sysfs={}", sysfs.display()),
            "--collector.disable-defaults",
            "--collector.infiniband",
        ],
    );
    let exporter = match exporter.and_then(|e| page(&namespace.0, exporter_url).map(|_| e)) {
        Ok(exporter) => Some(exporter),
        Err(error) => {
            say(&format!(
                "no comparison with node_exporter (package prometheus-node-exporter): {error:#}"
            ));
            None
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mover = thread::spawn({
        let (tree, stop) = (Arc::clone(&tree), Arc::clone(&stop));
        move || -> Result<()> {
            let mut second = 0;
            while !stop.load(Ordering::Relaxed) {
                second += 1;
                tree.step(second)?;
                thread::sleep(CYCLE);
            }
            Ok(())
        }
    });
    say(&format!("measuring a full node for {CYCLES} s ..."));
    // The first frames bring everything.
    thread::sleep(CYCLE * 3);
    let before = page(&namespace.0, agent_url)?;
    let cpu = |of: &Running| of.cpu_us();
    let (agent_before, exporter_before) = (cpu(&agent)?, exporter.as_ref().map(cpu).transpose()?);
    for _ in 0..CYCLES {
        thread::sleep(CYCLE);
        page(&namespace.0, agent_url)?;
        if exporter.is_some() {
            page(&namespace.0, exporter_url)?;
        }
    }
    let cycles = f64::from(CYCLES);
    let agent_us = (cpu(&agent)? - agent_before) / cycles;
    let after = page(&namespace.0, agent_url)?;
    let increase = |name| Ok::<f64, anyhow::Error>(value(&after, name)? - value(&before, name)?);
    let bytes = increase("weir_agent_wire_bytes_total")?;
    let samples = increase("weir_agent_wire_samples_total")?;
    let mut figures = json!({
        "agent_cycle_cpu_us": agent_us,
        "agent_full_cpu_pct_of_core": agent_us / 1e4,
        "agent_full_rss_mib": agent.rss_mib()?,
        "wire_bytes_per_sample_full_node": bytes / samples,
        "full_node_samples_per_s": samples / cycles,
    });
    if let (Some(exporter), Some(before)) = (&exporter, exporter_before) {
        figures["node_exporter_cycle_cpu_us"] = json!((cpu(exporter)? - before) / cycles);
        figures["node_exporter_rss_mib"] = json!(exporter.rss_mib()?);
    }
    stop.store(true, Ordering::Relaxed);
    mover
        .join()
        .map_err(|_| anyhow::anyhow!("the tree's thread panicked"))??;
    Ok(figures)
}
