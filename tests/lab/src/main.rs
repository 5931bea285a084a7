//! `weir-lab`: the lab on the command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use weir_lab::{
    bench::bench,
    bench_node::measure_here,
    demo::{DemoSpec, JOB_BYTES, demo},
    fabric::Fabric,
    job::{Job, JobSpec, median_seconds},
    output::{say, warn},
    placement::Placement,
    plan::{FabricSpec, ring_pairs},
    state, sys, teardown, traffic,
};

#[derive(Parser)]
#[command(
    name = "weir-lab",
    about = "A leaf-spine fabric of network namespaces",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show an all-reduce being held back, found, rerouted, measured and kept.
    Demo {
        /// Leave everything running at the end and print the addresses.
        #[arg(long)]
        keep: bool,
        /// Take from the agents the right to load eBPF programs, to see the loop go on without.
        #[arg(long)]
        without_bpf: bool,
        /// Where weir-controller and weir-agent are; by default beside this program.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Where the figures go.
        #[arg(long, default_value = "target/demo.json")]
        out: PathBuf,
    },
    /// Measure what agents, controller and probes cost while a job runs.
    Bench {
        /// Where the daemons are; by default beside this program.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Where the figures go; keys of other benchmarks in it are kept.
        #[arg(long, default_value = "target/bench.json")]
        out: PathBuf,
        /// Only what an agent costs on a full node, beside node_exporter.
        #[arg(long)]
        node_only: bool,
    },
    /// The part of `bench` that measures a full node, here and now.
    #[command(hide = true)]
    BenchNode { bin_dir: PathBuf, out: PathBuf },
    /// Build a fabric and leave it there.
    Up {
        /// Name of the lab; unique by default.
        name: Option<String>,
    },
    /// Remove a lab.
    Down {
        /// Name of the lab.
        #[arg(required_unless_present = "stale")]
        name: Option<String>,
        /// Remove what labs left behind whose owner is gone.
        #[arg(long)]
        stale: bool,
    },
    /// List the labs on this machine.
    List,
    /// Run the all-reduce alone on a fabric of its own, colliding and then on hand-made routes.
    Job {
        /// Bytes reduced per iteration.
        #[arg(long, default_value_t = JOB_BYTES)]
        bytes: u32,
        /// Iterations of each measurement.
        #[arg(long, default_value_t = 10)]
        iterations: u32,
        /// Limit of each port's queue.
        #[arg(long, default_value_t = FabricSpec::default().queue_bytes)]
        queue_bytes: u32,
    },
    /// Make TCP traffic.
    Traffic {
        #[command(subcommand)]
        traffic: TrafficCommand,
    },
}

#[derive(Subcommand)]
enum TrafficCommand {
    /// Accept connections here and read what comes.
    Sink {
        #[arg(long, default_value_t = traffic::SINK_PORT)]
        port: u16,
        #[arg(long)]
        seconds: f64,
    },
    /// Send to a sink as fast as it goes.
    Send {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        seconds: f64,
        #[arg(long, default_value_t = 1)]
        flows: usize,
    },
    /// Load a lab that is up.
    Run {
        /// Name of the lab.
        name: String,
        /// Which load.
        kind: Load,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Load {
    /// h12, h13, h21 and h22 send to h11.
    Incast,
    /// Each host below l1 sends to one below l2.
    Oversubscription,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn(&format!("weir-lab: {error:#}"));
            // 130 is what a shell makes of a program ended by Ctrl-C.
            ExitCode::from(if sys::stop_requested() { 130 } else { 1 })
        }
    }
}

fn run(command: Command) -> Result<()> {
    sys::stop_on_signals()?;
    match command {
        Command::Demo {
            keep,
            without_bpf,
            bin_dir,
            out,
        } => demo(&DemoSpec {
            keep,
            without_bpf,
            bin_dir: bin_dir.map_or_else(beside, Ok)?,
            out,
        }),
        Command::Bench {
            bin_dir,
            out,
            node_only,
        } => bench(&bin_dir.map_or_else(beside, Ok)?, &out, node_only),
        Command::BenchNode { bin_dir, out } => measure_here(&bin_dir, &out),
        Command::Up { name } => up(name),
        Command::Down { name, stale } => down(name, stale),
        Command::List => list(),
        Command::Job {
            bytes,
            iterations,
            queue_bytes,
        } => job(bytes, iterations, queue_bytes),
        Command::Traffic { traffic } => run_traffic(traffic),
    }
}

/// The directory of this program.
fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    Ok(own.parent().context("own directory")?.to_owned())
}

fn up(name: Option<String>) -> Result<()> {
    let mut spec = FabricSpec::default();
    if let Some(name) = name {
        spec.name = name;
    }
    let fabric = Fabric::up(spec)?;
    say(fabric.name());
    fabric.keep()
}

fn down(name: Option<String>, stale: bool) -> Result<()> {
    if stale {
        for removed in teardown::remove_stale()? {
            say(&removed);
        }
    }
    let Some(name) = name else { return Ok(()) };
    match state::read(&name)? {
        Some(lab) => teardown::remove(&lab),
        None => bail!("no lab is called {name} (weir-lab list shows those that are there)"),
    }
}

fn list() -> Result<()> {
    for lab in state::read_all()? {
        let what = if lab.kept {
            "kept".to_owned()
        } else if lab.is_stale() {
            "stale: weir-lab down --stale".to_owned()
        } else {
            format!("owned by process {}", lab.owner_pid)
        };
        say(&format!("{}  {what}", lab.name));
    }
    Ok(())
}

fn job(bytes: u32, iterations: u32, queue_bytes: u32) -> Result<()> {
    let spec = FabricSpec {
        queue_bytes,
        ..FabricSpec::default()
    };
    let fabric = Fabric::up(spec)?;
    let order = fabric.spec().interleaved_hosts();
    let pairs = ring_pairs(&order);
    fabric.place(Placement::Collision, &pairs)?;
    let spec = JobSpec {
        order,
        bytes,
        iterations: None,
        time_limit: None,
        compute_ms: 0,
    };
    let mut job = Job::start(&fabric, spec)?;
    let count = usize::try_from(iterations).context("iterations")?;
    for name in ["collision", "hand-made routes"] {
        let from = job.iterations().len() + 2;
        let seen = job.wait_for_iterations(from + count, Duration::from_secs(300))?;
        let seconds = median_seconds(&seen[from..]).context("no iterations")?;
        say(&format!(
            "{name:>16}  {seconds:.3} s  {:.1} Mbit/s busbw",
            job.busbw_mbps(seconds)
        ));
        fabric.pin_collision_free(&pairs)?;
    }
    job.stop()?;
    fabric.down()
}

fn run_traffic(command: TrafficCommand) -> Result<()> {
    let length = |seconds: f64| Duration::try_from_secs_f64(seconds).context("--seconds");
    match command {
        TrafficCommand::Sink { port, seconds } => {
            say(&traffic::sink(port, length(seconds)?)?.to_string());
        }
        TrafficCommand::Send { to, seconds, flows } => {
            say(&traffic::send(to, length(seconds)?, flows)?.to_string());
        }
        TrafficCommand::Run {
            name,
            kind,
            seconds,
        } => {
            let fabric = Fabric::attach(&name)?;
            let bin = traffic::find_bin()?;
            let senders = ["h12", "h13", "h21", "h22"].map(str::to_owned);
            let length = length(seconds)?;
            let load = match kind {
                Load::Incast => traffic::Traffic::incast(&fabric, &bin, &senders, "h11", length)?,
                Load::Oversubscription => {
                    traffic::Traffic::oversubscription(&fabric, &bin, length)?
                }
            };
            load.wait()?;
        }
    }
    Ok(())
}
