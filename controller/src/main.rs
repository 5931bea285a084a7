//! weir-controller: wiring only.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_common::catalogue;
use weir_common::config::ConfigError;
use weir_common::program::{EXIT_USAGE, arguments, said};
use weir_controller::brain::Brain;
use weir_controller::config::{self, Config, RawConfig};
use weir_controller::driver::Driver;
use weir_controller::{api, metrics, record, server, topology_command, topology_file};
use weir_controller_core::topology::Plan;

/// Weir's controller: takes what agents see, finds what holds the collectives back, changes routes
/// under a lease and keeps only what made the job faster.
#[derive(Debug, Parser)]
#[command(version, about, long_about)]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Run until SIGTERM or Ctrl-C. With no file: loopback only, mode observe (nothing is changed).
    Run(File),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCmd),
    /// Topology files: make one of what other tools saw, and look for what is odd.
    #[command(subcommand)]
    Topology(topology_command::TopologyCmd),
    /// Print the catalogue of metrics.
    Metrics {
        /// As JSON instead of Markdown.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCmd {
    /// Say whether a file is valid, and what is wrong with it.
    Check(File),
    /// Print a file as it was understood.
    Show(File),
}

#[derive(Debug, clap::Args)]
struct File {
    /// YAML file, such as /etc/weir/controller.yaml.
    #[arg(long, env = "WEIR_CONTROLLER_CONFIG")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args: Args = match arguments() {
        Ok(args) => args,
        Err(code) => return code,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    match run(args.command) {
        Ok(code) => code,
        Err(error) => {
            let message = format!("weir-controller: {}\n", said(&error));
            let written = std::io::stderr().write_all(message.as_bytes());
            drop(written);
            let config = error.is::<ConfigError>()
                || error.is::<topology_file::TopologyError>()
                || error.is::<topology_command::ImportError>();
            if config {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(command: Cmd) -> anyhow::Result<ExitCode> {
    let done = match command {
        Cmd::Topology(command) => return topology_command::run(&command),
        Cmd::Run(file) => {
            let loaded = load(&file)?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(serve(loaded))
        }
        Cmd::Config(ConfigCmd::Check(file)) => {
            load(&file)?;
            out("ok")
        }
        Cmd::Config(ConfigCmd::Show(file)) => {
            let loaded = load(&file)?;
            out(serde_norway::to_string(&loaded.raw)?.trim_end())
        }
        Cmd::Metrics { json } => {
            if json {
                let rows = metrics::CATALOGUE.iter().map(|m| serde_json::json!({ "name": m.name, "type": m.kind.name(), "labels": m.labels, "help": m.help }));
                return out(&serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?)
                    .map(|()| ExitCode::SUCCESS);
            }
            out(catalogue::markdown(metrics::CATALOGUE.iter().copied()).trim_end())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn out(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// The configuration, and the topology file that it names.
struct Loaded {
    raw: RawConfig,
    config: Config,
    plan: Plan,
    topology_text: String,
}

fn load(file: &File) -> anyhow::Result<Loaded> {
    let (raw, config) = match &file.config {
        Some(path) => config::read(path)?,
        None => (
            RawConfig::default(),
            RawConfig::default().check(Path::new("(defaults)"))?,
        ),
    };
    let (plan, topology_text) = match &config.topology {
        Some(path) => {
            let text = topology_file::text(path)?;
            (topology_file::parse(&text, path)?, text)
        }
        None => (Plan::default(), String::new()),
    };
    Ok(Loaded {
        raw,
        config,
        plan,
        topology_text,
    })
}

async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    let Loaded {
        raw,
        config,
        plan,
        topology_text,
    } = loaded;
    let state = &config.state_dir;
    std::fs::create_dir_all(state)
        .with_context(|| format!("cannot make state_dir {}", state.display()))?;
    // One controller for a state directory, which it can write.
    let lock_path = state.join("lock");
    let lock = std::fs::File::create(&lock_path).with_context(|| {
        format!(
            "cannot write {}; make state_dir writable for the controller or set another",
            lock_path.display()
        )
    })?;
    if lock.try_lock().is_err() {
        anyhow::bail!(
            "state_dir {} belongs to another running controller; give each its own",
            state.display()
        );
    }
    let frozen_file = state.join("frozen");
    let frozen = frozen_file
        .try_exists()
        .with_context(|| format!("cannot read {}", frozen_file.display()))?;
    // Seconds since 1970 in the upper half: lease numbers never repeat over restarts.
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let lease_base = started.as_secs() << 20;
    let recorder = match config.record {
        Some(settings) => {
            let directory = settings.directory.clone();
            let about = record::About {
                lease_base,
                frozen,
                started,
                config: config.core.clone(),
                plan: plan.clone(),
                config_text: serde_norway::to_string(&raw)?,
                topology_text,
            };
            let recorder = record::Recorder::create(settings, about).with_context(|| {
                let directory = directory.display();
                format!("cannot record in {directory}; make it writable for the controller or set record.directory")
            })?;
            Some(recorder)
        }
        None => None,
    };
    let http = tokio::net::TcpListener::bind(config.listen_http)
        .await
        .with_context(|| {
            format!(
                "cannot listen for HTTP on {}; set listen_http to a free address",
                config.listen_http
            )
        })?;
    tracing::info!("HTTP on {}", http.local_addr()?);
    let handle = Driver::spawn(
        Brain::new(config.core, plan, frozen, lease_base),
        recorder,
        frozen_file,
    );
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = server::serve(config.listen_grpc, handle.clone()) => result,
        result = axum::serve(http, api::router(handle)) => Ok(result?),
        result = tokio::signal::ctrl_c() => Ok(result?),
        _ = term.recv() => Ok(()),
    }
}
