//! What the agent costs on a full node: eight NICs with all counters of mlx5, eight GPUs by the
//! stand-in NVML, every collector on; beside node_exporter on the same tree of files, in the same
//! seconds, among 200 processes that stand still.
//!
//! Three pairs, because no single one is fair. *All collectors* against node_exporter's `infiniband`
//! alone is the goal, and the hardest: the agent does far more. *rdma* against `infiniband` is the
//! same work on the same files. *All collectors* against node_exporter with its defaults is what an
//! operator would install. The agent is also measured without anyone scraping it, as a controller is
//! enough for it.

use crate::{bench_tree::Tree, http, output::say, shell, sys};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Cycles that are measured, one a second.
const CYCLES: u32 = 20;
const CYCLE: Duration = Duration::from_secs(1);
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// The first frames bring everything, and each source opens its files.
const WARM_UP: Duration = Duration::from_secs(3);
/// Other processes of the node, which stand still, for the agent looks for jobs among them.
const PROCESSES: usize = 200;

/// A process, ended with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    fn start(namespace: &str, program: &Path, args: &[String]) -> Result<Running> {
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
        // In a process namespace of its own every bench has the same number.
        let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let name = format!("weir-bench-{:x}", unique.as_nanos());
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

/// The stand-in NVML, if a C compiler is there and this runs in a checkout. Its calls cost next to
/// nothing: what is measured is the agent without the driver.
fn fake_nvml(dir: &Path) -> Option<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../fake-nvml/nvml.c");
    let library = dir.join("libnvidia-ml.so.1");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-DSTILL", "-o"])
        .args([&library, Path::new(source)])
        .status();
    built
        .is_ok_and(|status| status.success())
        .then_some(library)
}

/// A daemon under measurement and where its page is.
struct Subject {
    daemon: Running,
    url: String,
}

/// A moment: CPU time of each subject, and the page of the full agent.
struct Moment {
    cpu_us: Vec<f64>,
    page: String,
}

/// Everything that runs while it is measured.
struct Rig<'a> {
    bin_dir: PathBuf,
    dir: &'a Path,
    sysfs: PathBuf,
    namespace: Namespace,
}

/// Measures on a node of its own processes, where nothing else comes and goes, and gives the figures.
///
/// # Errors
/// When no process namespace can be made, or as [`measure_here`].
pub fn bench(bin_dir: &Path) -> Result<Value> {
    let out = std::env::temp_dir().join(format!("weir-bench-{}.json", std::process::id()));
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe()?)
        .arg("bench-node")
        .arg(bin_dir)
        .arg(&out)
        .status()
        .context("run unshare")?;
    let figures = fs::read(&out);
    fs::remove_file(&out).ok();
    anyhow::ensure!(status.success(), "it ended with {status}");
    Ok(serde_json::from_slice(&figures.context("no figures")?)?)
}

/// Measures among the processes that are there, and writes the figures to `out`.
///
/// # Errors
/// When a program cannot be started, or a figure cannot be read.
pub fn measure_here(bin_dir: &Path, out: &Path) -> Result<()> {
    let dir = out.with_extension("d");
    fs::create_dir_all(&dir)?;
    let figures = measure(bin_dir, &dir);
    fs::remove_dir_all(&dir).ok();
    fs::write(out, figures?.to_string()).with_context(|| format!("write {}", out.display()))
}

fn measure(bin_dir: &Path, dir: &Path) -> Result<Value> {
    let rig = Rig {
        bin_dir: fs::canonicalize(bin_dir)?,
        dir,
        sysfs: dir.join("sys"),
        namespace: Namespace::make()?,
    };
    let tree = Tree::make(&rig.sysfs)?;
    let sleep = || {
        Running::start(
            &rig.namespace.0,
            Path::new("sleep"),
            &["infinity".to_owned()],
        )
    };
    let _others: Vec<Running> = (0..PROCESSES).map(|_| sleep()).collect::<Result<_>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mover = scope.spawn(|| -> Result<()> {
            let mut second = 0;
            while !stop.load(Ordering::Relaxed) {
                second += 1;
                tree.step(second)?;
                thread::sleep(CYCLE);
            }
            Ok(())
        });
        let figures = rig.measure();
        stop.store(true, Ordering::Relaxed);
        mover
            .join()
            .map_err(|_| anyhow::anyhow!("the tree's thread panicked"))??;
        figures
    })
}

impl Rig<'_> {
    fn measure(&self) -> Result<Value> {
        let _controller = self.controller()?;
        let mut subjects = vec![self.full_agent()?, self.rdma_agent()?];
        let mut exporters = Vec::new();
        for (port, collectors) in [
            (
                9100,
                &["--collector.disable-defaults", "--collector.infiniband"][..],
            ),
            (9101, &[]),
        ] {
            match self.exporter(port, collectors) {
                Ok(exporter) => exporters.push(exporter),
                Err(error) => say(&format!(
                    "no comparison with node_exporter (package prometheus-node-exporter): {error:#}"
                )),
            }
        }
        let compared = exporters.len() == 2;
        subjects.extend(exporters);
        say(&format!("measuring a full node for {} s ...", 2 * CYCLES));
        thread::sleep(WARM_UP);
        let (before, after) = self.window(&subjects, true)?;
        let cycles = f64::from(CYCLES);
        let cycle = |at: usize, (b, a): &(Moment, Moment)| {
            let of = |m: &Moment| m.cpu_us.get(at).copied().unwrap_or_default();
            (of(a) - of(b)) / cycles
        };
        let scraped = (before, after);
        let alone = self.window(&subjects, false)?;
        let increase = |name: &str| {
            Ok::<f64, anyhow::Error>(value(&scraped.1.page, name)? - value(&scraped.0.page, name)?)
        };
        let bytes = increase("weir_agent_wire_bytes_total")?;
        let samples = increase("weir_agent_wire_samples_total")?;
        let [agent, rdma] = [&subjects[0], &subjects[1]];
        let mut figures = json!({
            "agent_cycle_cpu_us": cycle(0, &scraped),
            "agent_cycle_unscraped_cpu_us": cycle(0, &alone),
            "agent_rdma_cycle_cpu_us": cycle(1, &scraped),
            "agent_full_cpu_pct_of_core": cycle(0, &alone) / 1e4,
            "agent_full_rss_mib": agent.daemon.rss_mib()?,
            "agent_rdma_rss_mib": rdma.daemon.rss_mib()?,
            "wire_bytes_per_sample_full_node": bytes / samples,
            "full_node_samples_per_s": samples / cycles,
        });
        if compared {
            figures["node_exporter_cycle_cpu_us"] = json!(cycle(2, &scraped));
            figures["node_exporter_defaults_cycle_cpu_us"] = json!(cycle(3, &scraped));
            figures["node_exporter_rss_mib"] = json!(subjects[2].daemon.rss_mib()?);
            figures["node_exporter_defaults_rss_mib"] = json!(subjects[3].daemon.rss_mib()?);
        }
        let costs = source_costs(&scraped.0.page, &scraped.1.page, cycles);
        for (source, cost_us) in &costs {
            say(&format!("  source {source:12} {cost_us:8.1} us a cycle"));
        }
        figures["agent_source_cycle_cpu_us"] = json!(costs);
        Ok(figures)
    }

    /// What happens in [`CYCLES`] seconds.
    fn window(&self, subjects: &[Subject], scrape: bool) -> Result<(Moment, Moment)> {
        let before = self.moment(subjects)?;
        for _ in 0..CYCLES {
            thread::sleep(CYCLE);
            if scrape {
                for subject in subjects {
                    page(&self.namespace.0, &subject.url)?;
                }
            }
        }
        Ok((before, self.moment(subjects)?))
    }

    fn moment(&self, subjects: &[Subject]) -> Result<Moment> {
        let cpu_us = subjects.iter().map(|s| s.daemon.cpu_us());
        Ok(Moment {
            cpu_us: cpu_us.collect::<Result<_>>()?,
            page: page(&self.namespace.0, &subjects[0].url)?,
        })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn start(&self, program: &Path, args: &[String], port: u16) -> Result<Subject> {
        let subject = Subject {
            daemon: Running::start(&self.namespace.0, program, args)?,
            url: format!("http://127.0.0.1:{port}/metrics"),
        };
        page(&self.namespace.0, &subject.url)?;
        Ok(subject)
    }

    fn controller(&self) -> Result<Running> {
        let (config, topology) = (self.path("controller.yaml"), self.path("topology.yaml"));
        fs::write(&topology, "nodes: []\nlinks: []\n")?;
        fs::write(
            &config,
            format!(
                "listen_grpc: \"127.0.0.1:9742\"\nlisten_http: \"127.0.0.1:9743\"\ntopology: \"{topology}\"\nstate_dir: \"{}\"\nallow_plaintext: true\n",
                self.dir.display()
            ),
        )?;
        let args = ["run".to_owned(), "--config".to_owned(), config];
        Running::start(
            &self.namespace.0,
            &self.bin_dir.join("weir-controller"),
            &args,
        )
    }

    /// An agent with these lines in its configuration beside those that all have.
    fn agent(&self, name: &str, port: u16, lines: &str, args: &[String]) -> Result<Subject> {
        let config = self.path(&format!("{name}.yaml"));
        fs::write(
            &config,
            format!(
                "node: {name}\nlisten_metrics: \"127.0.0.1:{port}\"\nstate_dir: \"{}\"\npath_sysfs: \"{}\"\n{lines}",
                self.path(name),
                self.sysfs.display()
            ),
        )?;
        let mut all = vec!["run".to_owned(), "--config".to_owned(), config];
        all.extend_from_slice(args);
        self.start(&self.bin_dir.join("weir-agent"), &all, port)
    }

    fn full_agent(&self) -> Result<Subject> {
        let mut args = Vec::new();
        if let Some(nvml) = fake_nvml(self.dir) {
            args = vec!["--nvml-library".to_owned(), nvml.display().to_string()];
        }
        let lines = "controller: \"http://127.0.0.1:9742\"\n";
        self.agent("full", 9741, lines, &args)
    }

    /// The work of node_exporter's `infiniband`, and the interfaces of an empty namespace.
    fn rdma_agent(&self) -> Result<Subject> {
        let lines = "collectors: {ethtool: false, gpu: false, kmsg: false}\nbpf: {enabled: false, collective: false, tcp: false, qdisc: false, drop: false}\n";
        self.agent("rdma", 9740, lines, &[])
    }

    fn exporter(&self, port: u16, collectors: &[&str]) -> Result<Subject> {
        let mut args = vec![
            format!("--web.listen-address=127.0.0.1:{port}"),
            format!("--path.sysfs={}", self.sysfs.display()),
        ];
        args.extend(collectors.iter().map(|c| (*c).to_owned()));
        self.start(Path::new("prometheus-node-exporter"), &args, port)
    }
}

/// CPU time of each source in a cycle, by the agent's own account; the rest of a cycle is judging,
/// frames, the stream and the page.
fn source_costs(before: &str, after: &str, cycles: f64) -> BTreeMap<String, f64> {
    let costs = |page: &str| -> BTreeMap<String, f64> {
        let source = |line: &str| {
            let (source, seconds) = line
                .strip_prefix("weir_agent_source_cpu_seconds_total{source=\"")?
                .split_once("\"} ")?;
            Some((source.to_owned(), seconds.parse::<f64>().ok()? * 1e6))
        };
        page.lines().filter_map(source).collect()
    };
    let before = costs(before);
    let difference = |(source, us): (String, f64)| {
        let then = before.get(&source).copied().unwrap_or_default();
        (source, (us - then) / cycles)
    };
    costs(after).into_iter().map(difference).collect()
}
