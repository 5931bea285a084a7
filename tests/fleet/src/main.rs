//! `weir-fleet`: scores the controller's verdicts on simulated fleets.

use anyhow::Context;
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, value_parser};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use weir_common::interrupt;
use weir_fleet::healthy::{FalseVerdict, Plan};
use weir_fleet::scenario::Scenario;
use weir_fleet::score::{Outcome, Score, run};
use weir_fleet::site::Site;
use weir_fleet::{cost, healthy, show};

/// Simulates fleets of agents with faults whose truth is known, and scores what the controller says.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many scenarios; tell precision, recall and latency of each class
    Score {
        /// How many; Ctrl-C ends after those that run, and tells what there is
        #[arg(long, default_value_t = 2000)]
        scenarios: u64,
        /// Seed of all of them
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of the first scenario
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Threads
        #[arg(long, default_value_t = 1, value_parser = count(64))]
        jobs: usize,
        /// Sample interval; beyond 1s jobs and faults last longer in proportion
        #[arg(long, default_value = "1s", value_parser = seconds)]
        interval: f64,
        /// What the site has, and so what its agents tell
        #[arg(long, default_value = "ethernet")]
        site: Site,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
        /// Name each scenario with a fault that was not found or a verdict that is not right
        #[arg(long)]
        misses: bool,
        /// Show how far it is
        #[arg(long)]
        progress: bool,
    },
    /// Show one scenario: its truth, the verdicts with their evidence, and the signals that its faults moved
    Show {
        /// Number of the scenario, as `score --misses` names it
        #[arg(long)]
        scenario: u64,
        /// Seed of all of them
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Sample interval
        #[arg(long, default_value = "1s", value_parser = seconds)]
        interval: f64,
        #[arg(long, default_value = "ethernet")]
        site: Site,
        /// Leave out the signals
        #[arg(long)]
        brief: bool,
    },
    /// Run a fleet in which nothing is wrong; every verdict is a false one
    Healthy {
        /// Hosts and switches
        #[arg(long, default_value_t = 1000, value_parser = count(NODES_MAX))]
        nodes: usize,
        /// Simulated days
        #[arg(long, default_value_t = 7.0, value_parser = days)]
        days: f64,
        /// Sample interval, as 1s or 100ms; at least 10ms
        #[arg(long, default_value = "1s", value_parser = seconds)]
        interval: f64,
        /// Independent fleets, each with a seed of its own; the days are shared out among them
        #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=1000))]
        fleets: u64,
        /// Threads; a fleet runs on one
        #[arg(long, default_value_t = 1, value_parser = count(64))]
        jobs: usize,
        /// End the fleets where they are after so much time, such as 600s
        #[arg(long, value_parser = seconds)]
        at_most: Option<f64>,
        /// Of the first fleet
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
        /// Show how far it is
        #[arg(long)]
        progress: bool,
    },
    /// Measure what a large fleet costs the controller
    Cost {
        /// Hosts and switches
        #[arg(long, default_value_t = 10_000, value_parser = count(NODES_MAX))]
        nodes: usize,
        /// NICs of a host
        #[arg(long, default_value_t = 8, value_parser = count(8))]
        nics: usize,
        /// GPUs of a host
        #[arg(long, default_value_t = 8)]
        gpus: usize,
        /// NVLinks told of a GPU
        #[arg(long, default_value_t = 0)]
        nvlinks: usize,
        /// Seconds of the fleet before anything is measured: detectors learn
        #[arg(long, default_value_t = cost::WARM_UP_S)]
        warm_up: u64,
        /// Seconds of the fleet to measure
        #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
        seconds: u64,
        /// Write the figures as JSON to standard output
        #[arg(long)]
        json: bool,
        /// Show how far it is
        #[arg(long)]
        progress: bool,
    },
}

/// More than the core holds at once.
const NODES_MAX: u64 = 16_000;

fn seconds(text: &str) -> Result<f64, String> {
    let of = |digits: &str, scale: f64| digits.parse::<f64>().ok().map(|v| v * scale);
    text.strip_suffix("ms")
        .and_then(|d| of(d, 1e-3))
        .or_else(|| text.strip_suffix('s').and_then(|d| of(d, 1.0)))
        .filter(|v| (0.01..=86_400.0).contains(v))
        .ok_or_else(|| {
            format!(
                "{text:?} is no time: write it as 1s or 100ms, at least 10ms and at most 86400s"
            )
        })
}

fn days(text: &str) -> Result<f64, String> {
    let days = text.parse().ok();
    days.filter(|d| (1e-4..=3650.0).contains(d))
        .ok_or_else(|| format!("{text:?} is no number of days from 0.0001 to 3650"))
}

/// A number of things from 1 to `most`.
fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

fn bar(steps: u64, show: bool) -> anyhow::Result<ProgressBar> {
    if !show {
        return Ok(ProgressBar::hidden());
    }
    let style =
        ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} {eta} left {msg}")
            .context("the style of the progress bar")?;
    Ok(ProgressBar::new(steps).with_style(style))
}

fn main() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match Args::parse().command {
        Command::Score {
            scenarios,
            seed,
            first,
            jobs,
            interval,
            site,
            json,
            misses,
            progress,
        } => {
            let stop = interrupt::flag().context("taking Ctrl-C")?;
            let outcomes = outcomes(
                (seed, interval, site),
                first..first + scenarios,
                jobs,
                &stop,
                &bar(scenarios, progress)?,
            );
            let interrupted = stop.load(Ordering::Relaxed);
            if misses {
                for outcome in outcomes.iter().filter(|o| !o.is_clean()) {
                    writeln!(out, "{}", outcome.line())?;
                }
            }
            let score = Score::of(seed, &outcomes);
            if json {
                let mut figures = serde_json::to_value(&score)?;
                if interrupted {
                    figures["interrupted"] = true.into();
                }
                writeln!(out, "{}", serde_json::to_string_pretty(&figures)?)?;
            } else {
                let mut table = Table::new();
                table.load_preset(UTF8_FULL_CONDENSED);
                let mut rows = score.rows().into_iter();
                table.set_header(rows.next().unwrap_or_default());
                table.add_rows(rows);
                writeln!(
                    out,
                    "{table}\n{} scenarios, {:.1} hours of fleets, {} streams refused, {} faults that nobody at the site can see",
                    score.scenarios, score.simulated_hours, score.refused, score.hidden
                )?;
            }
            if interrupted {
                if !json {
                    writeln!(out, "interrupted: {scenarios} scenarios were asked for")?;
                }
                return Ok(ExitCode::from(interrupt::STATUS));
            }
        }
        Command::Show {
            scenario,
            seed,
            interval,
            site,
            brief,
        } => {
            write!(
                out,
                "{}",
                show::scenario(Scenario::at(seed, scenario, interval, site), !brief)
            )?;
        }
        Command::Healthy {
            nodes,
            days,
            interval,
            fleets,
            jobs,
            at_most,
            seed,
            json,
            progress,
        } => {
            let plan = Plan {
                nodes,
                days,
                interval_s: interval,
                fleets: fleets.max(1),
                seed,
                jobs,
                at_most: at_most.map(Duration::from_secs_f64),
            };
            let bar = bar(weir_sim::num::whole(days * 86_400.0), progress)?;
            let verdicts = AtomicU64::new(0);
            let figures = healthy::run(&plan, |seconds, more| {
                bar.inc(seconds);
                let more = more as u64;
                let known = verdicts.fetch_add(more, Ordering::Relaxed) + more;
                bar.set_message(format!("{known} verdicts"));
            });
            bar.finish_and_clear();
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&figures)?)?;
                return Ok(ExitCode::SUCCESS);
            }
            for verdict in &figures.verdicts {
                let FalseVerdict {
                    seed,
                    at_s,
                    class,
                    place,
                    evidence,
                } = verdict;
                writeln!(out, "seed {seed}, {at_s:.1} s: {class} on {place}")?;
                evidence.iter().try_for_each(|e| writeln!(out, "    {e}"))?;
            }
            writeln!(
                out,
                "{} false verdicts in {:.2} days of {} fleets with {} nodes, sampled every {interval} s: {:.2} a day; \
                 {} frames, {} values, {} streams refused; {:.0} s of CPU",
                figures.false_verdicts,
                figures.days,
                figures.fleets,
                figures.nodes,
                figures.false_verdicts_per_day,
                figures.frames,
                figures.samples,
                figures.refused,
                figures.cpu_s
            )?;
        }
        Command::Cost {
            nodes,
            nics,
            gpus,
            nvlinks,
            warm_up,
            seconds,
            json,
            progress,
        } => {
            let bar = bar(warm_up + seconds, progress)?;
            let fleet = cost::fleet(nodes, nics, gpus, nvlinks);
            let cost = cost::measure(fleet, warm_up, seconds, |s| bar.set_position(s + 1));
            bar.finish_and_clear();
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&cost)?)?;
            } else {
                writeln!(
                    out,
                    "{} nodes, {} directed links, {} columns a host, {} values a second\n\
                     {:.3} s of CPU for a second of the fleet ({:.3} s at most), {:.3} s of it in the core's timer\n\
                     {:.1} ns a value; {:.2} bytes a value on the wire; {:.1} KiB a node held",
                    cost.nodes,
                    cost.directed_links,
                    cost.host_columns,
                    cost.samples_per_s,
                    cost.cpu_s_per_s,
                    cost.cpu_s_max,
                    cost.tick_cpu_s_per_s,
                    cost.ns_per_sample,
                    cost.wire_bytes_per_sample,
                    cost.bytes_per_node as f64 / 1024.0
                )?;
                if let (Some(bytes), Some(stall)) = (
                    cost.restart_point_bytes_per_node,
                    cost.restart_point_stall_s,
                ) {
                    let kib = bytes as f64 / 1024.0;
                    writeln!(
                        out,
                        "a segment of a recording begins with {kib:.1} KiB of the brain's memory a node, written in {stall:.2} s of CPU"
                    )?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs scenarios on several threads until told to stop; the order of the results does not depend on them.
fn outcomes(
    (seed, interval_s, site): (u64, f64, Site),
    numbers: std::ops::Range<u64>,
    jobs: usize,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Vec<Outcome> {
    let next = AtomicU64::new(numbers.start);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    let (outcome, _) = run(Scenario::at(seed, number, interval_s, site), |_| ());
                    if let Ok(mut all) = all.lock() {
                        all.push(outcome);
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut all = all.into_inner().unwrap_or_default();
    all.sort_by_key(|o| o.number);
    all
}
