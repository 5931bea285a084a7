//! weir-agent: wiring only.

use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_agent::config::{self, Config, ConfigError, RawConfig};
use weir_agent::scan::Level;
use weir_agent::{metrics, run, scan};

/// Exit code for a bad configuration (EX_USAGE of sysexits.h).
const EXIT_CONFIG: u8 = 64;
/// Exit code of monitoring checks for "unknown".
const EXIT_UNKNOWN: u8 = 3;

/// Weir's node agent: sees the ports, queues, flows and collectives of this node, tells a controller,
/// and changes routes only under a lease, within the limits file, and back again.
#[derive(Debug, Parser)]
#[command(version, about, long_about)]
struct Args {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Run until SIGTERM or Ctrl-C; every change is given back before the exit.
    Run(Options),
    /// Look at this node once. Exit code: 0 ok, 1 warning, 2 critical, 3 unknown.
    Scan {
        #[command(flatten)]
        options: Options,
        /// As JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print the catalogue of metrics.
    Metrics {
        /// As JSON instead of Markdown.
        #[arg(long)]
        json: bool,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCmd),
}

#[derive(Debug, Subcommand)]
enum ConfigCmd {
    /// Say whether the configuration is valid, and what is wrong with it.
    Check(Options),
    /// Print the configuration as it was understood, defaults and overrides included; the output is a valid file.
    Show(Options),
}

/// The file, and what overrides it.
#[derive(Debug, clap::Args)]
struct Options {
    /// YAML file, such as /etc/weir/agent.yaml. Without one: defaults, no controller.
    #[arg(long, env = "WEIR_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Name of this node; default: the hostname.
    #[arg(long, env = "WEIR_AGENT_NODE")]
    node: Option<String>,
    /// host or switch.
    #[arg(long, env = "WEIR_AGENT_ROLE")]
    role: Option<String>,
    /// Address of the controller, such as http://10.0.0.1:9742.
    #[arg(long, env = "WEIR_AGENT_CONTROLLER")]
    controller: Option<String>,
    /// Address of /metrics.
    #[arg(long, env = "WEIR_AGENT_LISTEN_METRICS")]
    listen_metrics: Option<String>,
    /// Time between samples, such as 1s or 250ms.
    #[arg(long, env = "WEIR_AGENT_SAMPLE_INTERVAL")]
    sample_interval: Option<String>,
    /// Go through every step of a change without writing it.
    #[arg(long, env = "WEIR_AGENT_DRY_RUN")]
    dry_run: bool,
}

impl Options {
    fn load(&self) -> Result<Config, ConfigError> {
        let path = self
            .config
            .as_deref()
            .unwrap_or(Path::new("(command line)"));
        let mut raw = match &self.config {
            Some(file) => config::parse(file)?,
            None => RawConfig::default(),
        };
        let overrides = [
            (&self.node, &mut raw.node),
            (&self.role, &mut raw.role),
            (&self.controller, &mut raw.controller),
            (&self.listen_metrics, &mut raw.listen_metrics),
            (&self.sample_interval, &mut raw.sample_interval),
        ];
        for (given, key) in overrides {
            if given.is_some() {
                key.clone_from(given);
            }
        }
        if self.dry_run {
            raw.dry_run = Some(true);
        }
        raw.check(path)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = if matches!(args.command, Cmd::Scan { .. }) {
        "error"
    } else {
        "info"
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| filter.into()),
        )
        .init();
    let failure = if matches!(args.command, Cmd::Scan { .. }) {
        EXIT_UNKNOWN
    } else {
        1
    };
    match perform(args.command) {
        Ok(code) => code,
        Err(error) => {
            let written = writeln!(std::io::stderr(), "weir-agent: {error:#}");
            drop(written);
            ExitCode::from(if error.is::<ConfigError>() {
                EXIT_CONFIG
            } else {
                failure
            })
        }
    }
}

fn perform(command: Cmd) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    match command {
        Cmd::Run(options) => {
            let config = options.load()?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(run::run(config))?;
        }
        Cmd::Scan { options, json } => {
            let findings = scan::scan(&options.load()?)?;
            writeln!(
                out,
                "{}",
                if json {
                    serde_json::to_string_pretty(&findings)?
                } else {
                    scan::table(&findings)
                }
            )?;
            return Ok(match findings.iter().map(|f| f.level).max() {
                None | Some(Level::Ok) => ExitCode::SUCCESS,
                Some(Level::Warning) => ExitCode::from(1),
                Some(Level::Critical) => ExitCode::from(2),
            });
        }
        Cmd::Metrics { json: true } => {
            let rows = metrics::catalogue().into_iter().map(|m| serde_json::json!({ "name": m.name, "type": format!("{:?}", m.kind).to_lowercase(), "labels": m.labels, "help": m.help }));
            writeln!(
                out,
                "{}",
                serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?
            )?;
        }
        Cmd::Metrics { json: false } => {
            writeln!(
                out,
                "| metric | type | labels | meaning |\n|---|---|---|---|"
            )?;
            for m in metrics::catalogue() {
                writeln!(
                    out,
                    "| `{}` | {} | {} | {} |",
                    m.name,
                    format!("{:?}", m.kind).to_lowercase(),
                    m.labels.join(", "),
                    m.help
                )?;
            }
        }
        Cmd::Config(ConfigCmd::Check(options)) => {
            options.load()?;
            writeln!(out, "ok")?;
        }
        Cmd::Config(ConfigCmd::Show(options)) => {
            let effective = RawConfig::from(&options.load()?);
            write!(out, "{}", serde_norway::to_string(&effective)?)?
        }
    }
    Ok(ExitCode::SUCCESS)
}
