//! `weir-sim`: runs scenarios of fabrics and draws what happened.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use weir_sim::scenario::Scenario;
use weir_sim::{bench, infer, reference, report, svg, traces, truths, tune};

/// Simulates RoCE fabrics packet by packet.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario file and tell iteration times and the hottest links
    Run {
        /// Scenario, YAML
        file: PathBuf,
        /// Write the report as JSON to standard output
        #[arg(long)]
        json: bool,
        /// Write heat.svg, queues.svg and rates.svg there
        #[arg(long, value_name = "DIR")]
        svg: Option<PathBuf>,
        /// Show how far it is
        #[arg(long)]
        progress: bool,
        /// Another seed than the scenario's
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Run our models of the independent simulator's traces beside them, and the controller's core on those traces
    Traces {
        /// Folder of the traces (NAME.txt.gz); they are no part of this project
        #[arg(env = "WEIR_TRACES")]
        dir: PathBuf,
        /// Seeds of the marks
        #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5")]
        seeds: Vec<u64>,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
    },
    /// Run ten settings of congestion control in five kinds of traffic beside the independent reference
    Reference {
        /// Seeds
        #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
        seeds: Vec<u64>,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
    },
    /// Find the paths that the flows of a trace took, from its counters
    Infer {
        /// Model of the trace, YAML; its own paths are not looked at
        file: PathBuf,
        /// Trace
        trace: PathBuf,
        /// Simulations of the first rows at most
        #[arg(long, default_value_t = 600)]
        simulations: u32,
    },
    /// Run the controller's tuner, published ones and fixed settings on the same scenarios
    Tune {
        /// Seeds 1 to this
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
        seeds: u64,
        /// Only these scenarios
        #[arg(long, value_delimiter = ',')]
        scenario: Vec<String>,
        /// Only these contestants; `nv` always runs
        #[arg(long, value_delimiter = ',')]
        contestant: Vec<String>,
        /// Threads, 1 to 64 [default: one for each core]
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: Option<u8>,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
        /// Show how far it is
        #[arg(long)]
        progress: bool,
    },
    /// Measure data packets per second and core
    Bench {
        /// Data packets of each load
        #[arg(long, default_value_t = 1_000_000)]
        packets: u64,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Run {
            file,
            json,
            svg,
            progress,
            seed,
        } => run(&file, json, svg.as_deref(), progress, seed),
        Command::Traces { dir, seeds, json } => compare(&dir, &seeds, json),
        Command::Reference { seeds, json } => settings(&seeds, json),
        Command::Infer {
            file,
            trace,
            simulations,
        } => paths(&file, &trace, simulations),
        Command::Tune {
            seeds,
            scenario,
            contestant,
            jobs,
            json,
            progress,
        } => {
            let cores = || std::thread::available_parallelism().map_or(1, usize::from);
            let options = tune::Options {
                seeds,
                scenarios: scenario,
                contestants: contestant,
                jobs: jobs.map_or_else(cores, usize::from),
            };
            tuners(&options, json, progress)
        }
        Command::Bench { packets, json } => speed(packets, json),
    }
}

/// A closed pipe ends the output, not the program; a full disk does.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

fn bar(length: u64, show: bool) -> anyhow::Result<ProgressBar> {
    if !show {
        return Ok(ProgressBar::hidden());
    }
    Ok(
        ProgressBar::new(length).with_style(ProgressStyle::with_template(
            "{msg:28} {bar:30} {percent:>3} % {eta:>5} left",
        )?),
    )
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_header(header.to_vec());
    table
}

fn read(file: &Path) -> anyhow::Result<Scenario> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Scenario::parse(&text).with_context(|| file.display().to_string())
}

fn run(
    file: &Path,
    json: bool,
    drawings: Option<&Path>,
    progress: bool,
    seed: Option<u64>,
) -> anyhow::Result<()> {
    let mut scenario = read(file)?;
    if let Some(seed) = seed {
        scenario.config.seed = seed;
    }
    let mut sim = scenario
        .build()
        .with_context(|| file.display().to_string())?;
    let iterations: u64 = sim
        .jobs()
        .iter()
        .map(|j| u64::from(j.spec.iterations))
        .sum();
    let bar = bar(iterations, progress)?;
    let (report, history) = report::run(&scenario, &mut sim, |sim| {
        let done = sim
            .jobs()
            .iter()
            .filter(|j| j.spec.iterations > 0)
            .map(|j| j.iterations.len() as u64)
            .sum();
        bar.set_position(done);
        bar.set_message(format!("{:.3} ms simulated", sim.now() as f64 / 1e9));
    });
    bar.finish_and_clear();
    if let Some(dir) = drawings {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        for (name, text) in [
            ("heat.svg", svg::heat_map(&sim, &history)),
            ("queues.svg", svg::queues(&sim, &history)),
            ("rates.svg", svg::rates(&history)),
        ] {
            fs::write(dir.join(name), text)
                .with_context(|| format!("writing {}", dir.join(name).display()))?;
        }
    }
    if json {
        say_json(&report)?;
    } else {
        show(&report)?;
        if let Some(dir) = drawings {
            say(&format!(
                "drawings: {}/heat.svg, queues.svg, rates.svg",
                dir.display()
            ))?;
        }
    }
    if !report.done {
        bail!("a job did not end within limit_ms = {}", scenario.limit_ms);
    }
    Ok(())
}

fn show(report: &report::Report) -> anyhow::Result<()> {
    if !report.about.is_empty() {
        say(&report.about)?;
    }
    let us = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.1}"));
    let mut jobs = table(&[
        "job",
        "iterations",
        "mean us",
        "each us",
        "flow p50 us",
        "flow p99 us",
    ]);
    for j in &report.jobs {
        let each: Vec<String> = j
            .iterations_us
            .iter()
            .take(8)
            .map(|x| format!("{x:.1}"))
            .collect();
        let more = if j.iterations_us.len() > 8 { " .." } else { "" };
        jobs.add_row(vec![
            j.name.clone(),
            j.iterations_us.len().to_string(),
            us(j.mean_us),
            each.join(" ") + more,
            us(j.flow_us_p50),
            us(j.flow_us_p99),
        ]);
    }
    say(&jobs.to_string())?;
    let mut links = table(&[
        "link",
        "to",
        "used %",
        "deepest queue KB",
        "marked",
        "pauses received",
        "paused %",
        "lost",
    ]);
    for l in report.links.iter().take(8) {
        let c = &l.counters;
        links.add_row(vec![
            l.port.clone(),
            l.peer.clone(),
            format!("{:.1}", l.utilisation * 100.0),
            format!("{:.1}", l.queue_bytes_max as f64 / 1e3),
            c.ecn_marked_tx.to_string(),
            c.pause_rx.to_string(),
            format!("{:.1}", l.paused * 100.0),
            (c.rx_discards + c.rx_errors + c.tx_discards).to_string(),
        ]);
    }
    say(&links.to_string())?;
    let t = &report.totals;
    say(&format!(
        "{:.3} ms, {} data packets, lost: {} no buffer, {} damaged, {} link down",
        report.simulated_ms, t.data_delivered, t.lost_buffer, t.lost_error, t.lost_link
    ))?;
    Ok(())
}

/// At least one seed, or there is nothing to say.
fn some(seeds: &[u64]) -> anyhow::Result<()> {
    if seeds.is_empty() {
        bail!("--seeds: at least one");
    }
    Ok(())
}

fn compare(dir: &Path, seeds: &[u64], json: bool) -> anyhow::Result<()> {
    some(seeds)?;
    let comparisons = traces::MODELS
        .into_iter()
        .map(|m| traces::compare(dir, m, seeds))
        .collect::<Result<Vec<_>, _>>()?;
    let all = truths::Agreement {
        seeds: seeds.to_vec(),
        comparisons,
        diagnoses: truths::diagnose(dir)?,
    };
    if json {
        say_json(&all)?;
    } else {
        for (head, rows) in all.tables() {
            let mut t = table(&head);
            t.add_rows(rows);
            say(&t.to_string())?;
        }
    }
    // Which of the shallow queues is hot is a matter of one run; what must hold is held over several.
    let far = all.beyond();
    if !far.is_empty() {
        bail!("traces that do not agree: {}", far.join("; "));
    }
    Ok(())
}

fn settings(seeds: &[u64], json: bool) -> anyhow::Result<()> {
    some(seeds)?;
    let bar = bar(
        (reference::TRAFFIC.len() * reference::SETTINGS.len()) as u64,
        true,
    )?;
    let cells = reference::run(&reference::TRAFFIC, seeds, |traffic, setting| {
        bar.set_message(format!("{traffic}, {setting}"));
        bar.inc(1);
    });
    bar.finish_and_clear();
    let order = reference::order(&cells);
    if json {
        say_json(&serde_json::json!({"seeds": seeds, "cells": cells, "order": order}))?;
    } else {
        for (head, rows) in [reference::figures(&cells), reference::orders(&order)] {
            let mut t = table(&head);
            t.add_rows(rows);
            say(&t.to_string())?;
        }
    }
    let far: Vec<&str> = order
        .iter()
        .filter(|o| !o.holds())
        .map(|o| o.traffic.as_str())
        .collect();
    if !far.is_empty() {
        bail!("another order than the reference's: {}", far.join(", "));
    }
    Ok(())
}

/// Refuses a name that there is not, with those that there are.
fn known(option: &str, given: &[String], names: &[&str]) -> anyhow::Result<()> {
    match given.iter().find(|g| !names.contains(&g.as_str())) {
        Some(unknown) => bail!("{option} {unknown}: there are {}", names.join(", ")),
        None => Ok(()),
    }
}

fn tuners(options: &tune::Options, json: bool, progress: bool) -> anyhow::Result<()> {
    let scenarios: Vec<&str> = tune::case::CASES.iter().map(|c| c.name).collect();
    known("--scenario", &options.scenarios, &scenarios)?;
    known(
        "--contestant",
        &options.contestants,
        &tune::compare::names(),
    )?;
    let bar = bar(tune::compare::runs(options), progress)?;
    let mut results = tune::tuning_results(options, |scenario, contestant| {
        bar.set_message(format!("{scenario}, {contestant}"));
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    results.arguments = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    if json {
        return say_json(&results);
    }
    say(tune::markdown(&results).trim_end())?;
    Ok(())
}

fn paths(file: &Path, trace: &Path, simulations: u32) -> anyhow::Result<()> {
    let mut scenario = read(file)?;
    scenario.paths.clear();
    let trace = traces::Trace::read(trace)?;
    let search = infer::Search::new(&scenario, &trace).context("only leaf-spine fabrics")?;
    let bar = bar(u64::from(simulations), true)?;
    let found = search.run(simulations, 1, |n, distance| {
        bar.set_position(u64::from(n));
        bar.set_message(format!("{:.0} KB apart", distance / 1e3));
    });
    bar.finish_and_clear();
    say(infer::to_yaml(&found).trim_end())?;
    Ok(())
}

fn speed(packets: u64, json: bool) -> anyhow::Result<()> {
    let start = std::time::Instant::now();
    // Time on the processor, so that a busy machine does not count; time on the wall where the kernel does not tell.
    let clock = || {
        let told = fs::read_to_string("/proc/thread-self/schedstat").ok();
        let ns = told.and_then(|t| t.split_ascii_whitespace().next()?.parse::<u64>().ok());
        ns.map_or_else(|| start.elapsed().as_secs_f64(), |ns| ns as f64 / 1e9)
    };
    let speeds: Vec<bench::Speed> = bench::LOADS
        .into_iter()
        .filter_map(|l| bench::measure(l, packets, clock))
        .collect();
    if json {
        return say_json(&speeds);
    }
    let mut t = table(&[
        "load",
        "data packets",
        "events",
        "s",
        "data packets per s and core",
    ]);
    for s in &speeds {
        t.add_row(vec![
            s.name.to_owned(),
            s.packets.to_string(),
            s.events.to_string(),
            format!("{:.2}", s.seconds),
            format!("{:.0}", s.packets_per_s_core),
        ]);
    }
    say(&t.to_string())?;
    Ok(())
}
