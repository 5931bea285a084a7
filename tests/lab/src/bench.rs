//! What Weir costs, measured on the lab while a job runs: CPU and memory of an agent in the host's
//! role, bytes on the wire, CPU of the controller with twelve agents, and what the uprobes add to a
//! collective call. Prints figures and writes them as JSON; asserts nothing.

use crate::{
    fabric::Fabric,
    job::{Job, JobSpec},
    output::say,
    placement::Placement,
    plan::{FabricSpec, ring_pairs},
    stack::{READY_DEADLINE, Stack, StackSpec},
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Long enough for twenty samples.
const WINDOW: Duration = Duration::from_secs(20);
const JOB_DEADLINE: Duration = Duration::from_secs(30);
const HOSTS: [&str; 4] = ["h11", "h12", "h21", "h24"];

/// Readings of one moment.
struct Readings {
    at: Instant,
    agents: Vec<String>,
    controller: String,
}

impl Readings {
    fn take(stack: &Stack) -> Result<Readings> {
        let agents = HOSTS
            .iter()
            .map(|h| stack.http_text(h, "/metrics"))
            .collect::<Result<_>>()?;
        Ok(Readings {
            at: Instant::now(),
            agents,
            controller: stack.http_text("controller", "/metrics")?,
        })
    }
}

/// Value of a metric without labels on a page.
fn value(page: &str, name: &str) -> Result<f64> {
    let line = page
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|v| v.parse().ok())
        .with_context(|| format!("{name} is not on the page"))
}

/// Sum over the hosts of a counter's increase.
fn increase(before: &[String], after: &[String], name: &str) -> Result<f64> {
    before
        .iter()
        .zip(after)
        .map(|(b, a)| Ok(value(a, name)? - value(b, name)?))
        .sum()
}

/// Measures, prints, and writes `out`; `node_only` leaves out what needs the lab's fabric.
///
/// # Errors
/// When the lab, the daemons or the job cannot run, or a figure cannot be read.
pub fn bench(bin_dir: &Path, out: &Path, node_only: bool) -> Result<()> {
    let mut figures = json!({});
    if !node_only {
        figures = lab(bin_dir)?;
        match example(bin_dir, "uprobe_cost", "uprobe_pair_ns_per_call") {
            Ok(cost) => figures["uprobe_pair_ns_per_call"] = cost,
            Err(error) => say(&format!("uprobe cost not measured: {error:#}")),
        }
    }
    match crate::bench_node::bench(bin_dir) {
        Ok(Value::Object(full)) => {
            if let Some(figures) = figures.as_object_mut() {
                figures.extend(full);
            }
        }
        Ok(_) => {}
        Err(error) => say(&format!("full node not measured: {error:#}")),
    }
    match example(bin_dir, "kmsg_lines", "kmsg_lines_per_s") {
        Ok(lines) => figures["kmsg_lines_per_s"] = lines,
        Err(error) => say(&format!("kmsg rate not measured: {error:#}")),
    }
    let goals = [
        (
            "agent_cpu_pct_of_core",
            "agent CPU, host role, job running",
            "% of a core",
            "1 at most",
        ),
        (
            "agent_rss_mib",
            "agent memory, host role",
            "MiB",
            "20 at most",
        ),
        (
            "wire_bytes_per_sample",
            "agent to controller",
            "bytes per sample",
            "2 at most",
        ),
        (
            "controller_cpu_pct_at_12_agents",
            "controller CPU, 12 agents",
            "% of a core",
            "",
        ),
        (
            "uprobe_pair_ns_per_call",
            "added to a collective call",
            "ns",
            "",
        ),
        (
            "agent_cycle_cpu_us",
            "agent, full node, one cycle",
            "us",
            "a fifth of node_exporter's",
        ),
        (
            "agent_cycle_unscraped_cpu_us",
            "agent, full node, nobody scrapes",
            "us",
            "",
        ),
        (
            "agent_rdma_cycle_cpu_us",
            "agent, only rdma, one cycle",
            "us",
            "",
        ),
        (
            "node_exporter_cycle_cpu_us",
            "node_exporter, only infiniband",
            "us",
            "",
        ),
        (
            "node_exporter_defaults_cycle_cpu_us",
            "node_exporter, its defaults",
            "us",
            "",
        ),
        (
            "agent_full_cpu_pct_of_core",
            "agent CPU, full node, 1 s, unscraped",
            "% of a core",
            "0.3 at most",
        ),
        (
            "agent_full_rss_mib",
            "agent memory, full node",
            "MiB",
            "20 at most",
        ),
        ("agent_rdma_rss_mib", "agent memory, only rdma", "MiB", ""),
        ("node_exporter_rss_mib", "node_exporter memory", "MiB", ""),
        (
            "wire_bytes_per_sample_full_node",
            "agent to controller, full node",
            "bytes per sample",
            "1.3 at most",
        ),
        (
            "kmsg_lines_per_s",
            "lines of the kernel's log held",
            "lines/s",
            "",
        ),
    ];
    for (key, what, unit, goal) in goals {
        if let Some(figure) = figures[key].as_f64() {
            let goal = if goal.is_empty() {
                String::new()
            } else {
                format!("   goal: {goal}")
            };
            say(&format!("{what:36} {figure:10.2} {unit}{goal}"));
        }
    }
    let mut all: Value = std::fs::read(out)
        .ok()
        .and_then(|old| serde_json::from_slice(&old).ok())
        .unwrap_or_else(|| json!({}));
    if let (Some(all), Value::Object(figures)) = (all.as_object_mut(), figures) {
        all.extend(figures);
    }
    std::fs::write(out, serde_json::to_string_pretty(&all)?)
        .with_context(|| format!("write {}", out.display()))
}

fn lab(bin_dir: &Path) -> Result<Value> {
    let fabric = Fabric::up(FabricSpec::default())?;
    let order = fabric.spec().interleaved_hosts();
    fabric.place(Placement::Balanced, &ring_pairs(&order))?;
    let mut stack = Stack::start(&fabric, &StackSpec::new(bin_dir))?;
    stack.wait_ready(READY_DEADLINE)?;
    let mut job = Job::start(
        &fabric,
        JobSpec {
            order,
            bytes: crate::demo::JOB_BYTES,
            iterations: None,
            time_limit: Some(Duration::from_secs(120)),
            compute_ms: 0,
        },
    )?;
    job.wait_for_iterations(10, JOB_DEADLINE)?;
    say(&format!("measuring for {} s ...", WINDOW.as_secs()));
    let before = Readings::take(&stack)?;
    thread::sleep(WINDOW);
    let after = Readings::take(&stack)?;
    let seconds = (after.at - before.at).as_secs_f64();
    let hosts = HOSTS.len() as f64;
    let cpu = increase(
        &before.agents,
        &after.agents,
        "weir_agent_process_cpu_seconds_total",
    )?;
    let bytes = increase(&before.agents, &after.agents, "weir_agent_wire_bytes_total")?;
    let samples = increase(
        &before.agents,
        &after.agents,
        "weir_agent_wire_samples_total",
    )?;
    let rss = after
        .agents
        .iter()
        .map(|p| value(p, "weir_agent_process_resident_bytes"))
        .collect::<Result<Vec<f64>>>()?;
    let controller =
        |r: &Readings| value(&r.controller, "weir_controller_process_cpu_seconds_total");
    job.stop()?;
    let figures = json!({
        "agent_cpu_pct_of_core": cpu / seconds / hosts * 100.0,
        "agent_rss_mib": rss.iter().copied().fold(0.0, f64::max) / f64::from(1 << 20),
        "wire_bytes_per_sample": bytes / samples,
        "controller_cpu_pct_at_12_agents": (controller(&after)? - controller(&before)?) / seconds * 100.0,
    });
    stack.stop()?;
    fabric.down()?;
    Ok(figures)
}

/// A figure that one of the agent's example programs prints.
fn example(bin_dir: &Path, name: &str, key: &str) -> Result<Value> {
    let program = bin_dir.join("examples").join(name);
    let output = Command::new(&program).output().with_context(|| {
        format!(
            "run {}; cargo build --release --examples",
            program.display()
        )
    })?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    Ok(figures[key].clone())
}
