//! weir-agent: wiring only.

use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_agent::config::{Config, RawConfig};
use weir_agent::scan::Level;
use weir_agent::scan::expect::{self, Expect};
use weir_agent::{document, metrics, qps, run, scan};
use weir_common::config::{self, ConfigError};
use weir_common::program::{EXIT_USAGE, arguments, said};

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
        /// What this node should have, such as rdma=8@400G, gpu=8:H100 or port=2; may be given more
        /// than once. What is missing is critical.
        #[arg(long, value_name = "KIND=COUNT[@RATE][:NAME]")]
        expect: Vec<Expect>,
        /// Expectations of a common node: 8xh100-8xcx7, 8xh200-8xcx7, 8xb200-8xcx7, 8xmi300x-8x400g,
        /// 8xa100-8xcx6, or a YAML file of one's own (`expect: ["gpu=8:H100", "rdma=8@400G"]`).
        #[arg(long, value_name = "NAME|FILE")]
        profile: Option<String>,
        /// As JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// List the queue pairs of this node: who talks to whom by which UDP source port, for which job.
    ///
    /// Asks the agent that runs here; without one RDMA netlink, which knows no addresses.
    Qps {
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
    /// Address of /metrics; default: 0.0.0.0:9741.
    #[arg(
        long,
        visible_alias = "web.listen-address",
        env = "WEIR_AGENT_LISTEN_METRICS"
    )]
    listen_metrics: Option<String>,
    /// Time between samples, such as 1s or 250ms.
    #[arg(long, env = "WEIR_AGENT_SAMPLE_INTERVAL")]
    sample_interval: Option<String>,
    /// Go through every step of a change without writing it.
    #[arg(long, env = "WEIR_AGENT_DRY_RUN")]
    dry_run: bool,
    /// Where sysfs is mounted; default: /sys.
    #[arg(long = "path.sysfs", env = "WEIR_AGENT_PATH_SYSFS", value_name = "DIR")]
    path_sysfs: Option<PathBuf>,
    /// Verbs devices that are left alone, such as mlx5_1 or mlx5_*; may be given more than once.
    #[arg(
        long,
        env = "WEIR_AGENT_DEVICE_EXCLUDE",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    device_exclude: Vec<String>,
    /// NVML library; default: libnvidia-ml.so.1 of the loader's path.
    #[arg(long, env = "WEIR_AGENT_NVML_LIBRARY", value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    /// The program weir-verbs; default: beside weir-agent.
    #[arg(long, env = "WEIR_AGENT_VERBS_PROGRAM", value_name = "FILE")]
    verbs_program: Option<PathBuf>,
    /// Show another exporter's names as well, so that its dashboards keep working: node-exporter.
    #[arg(long, env = "WEIR_AGENT_COMPAT", value_name = "EXPORTER")]
    compat: Option<String>,
    #[command(flatten)]
    collectors: CollectorFlags,
}

/// What `--collector.NAME` and `--no-collector.NAME` said.
#[derive(Debug, Clone, Default)]
struct CollectorFlags(Vec<(&'static str, bool)>);

/// Name, flag that switches it on, flag that switches it off, environment, what it reads.
const COLLECTORS: [(&str, &str, &str, &str, &str); 12] = [
    (
        "ethtool",
        "collector.ethtool",
        "no-collector.ethtool",
        "WEIR_AGENT_COLLECTOR_ETHTOOL",
        "Driver statistics of NICs: pause, discards, FEC, PCIe",
    ),
    (
        "rdma",
        "collector.rdma",
        "no-collector.rdma",
        "WEIR_AGENT_COLLECTOR_RDMA",
        "Verbs devices: port and hardware counters, state",
    ),
    (
        "gpu",
        "collector.gpu",
        "no-collector.gpu",
        "WEIR_AGENT_COLLECTOR_GPU",
        "GPUs, by NVML and amdgpu",
    ),
    (
        "kmsg",
        "collector.kmsg",
        "no-collector.kmsg",
        "WEIR_AGENT_COLLECTOR_KMSG",
        "The kernel's log: XIDs, NIC health, link flaps, AER",
    ),
    (
        "verbs",
        "collector.verbs",
        "no-collector.verbs",
        "WEIR_AGENT_COLLECTOR_VERBS",
        "Events of verbs devices and pings between them (weir-verbs)",
    ),
    (
        "probe",
        "collector.probe",
        "no-collector.probe",
        "WEIR_AGENT_COLLECTOR_PROBE",
        "Probes to other nodes, and answers to theirs (UDP port 9744)",
    ),
    (
        "collective",
        "collector.collective",
        "no-collector.collective",
        "WEIR_AGENT_COLLECTOR_COLLECTIVE",
        "Collective calls of NCCL, RCCL and MPI (eBPF)",
    ),
    (
        "tcp",
        "collector.tcp",
        "no-collector.tcp",
        "WEIR_AGENT_COLLECTOR_TCP",
        "TCP flows (eBPF, or socket diagnostics)",
    ),
    (
        "qdisc",
        "collector.qdisc",
        "no-collector.qdisc",
        "WEIR_AGENT_COLLECTOR_QDISC",
        "Queue depths (eBPF)",
    ),
    (
        "drop",
        "collector.drop",
        "no-collector.drop",
        "WEIR_AGENT_COLLECTOR_DROP",
        "Dropped packets by reason (eBPF)",
    ),
    (
        "qp",
        "collector.qp",
        "no-collector.qp",
        "WEIR_AGENT_COLLECTOR_QP",
        "Queue pairs: peers, source ports, owners (eBPF, or RDMA netlink)",
    ),
    (
        "roce",
        "collector.roce",
        "no-collector.roce",
        "WEIR_AGENT_COLLECTOR_ROCE",
        "RoCE packets and marks that cross the kernel, off by default: a NIC's own pass it by (eBPF)",
    ),
];

impl clap::FromArgMatches for CollectorFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = CollectorFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for (name, on, off, _, _) in COLLECTORS {
            if matches.get_flag(off) {
                self.0.push((name, false));
            } else if let Some(wanted) = matches.get_one::<bool>(on) {
                self.0.push((name, *wanted));
            }
        }
        Ok(())
    }
}

impl clap::Args for CollectorFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        COLLECTORS
            .iter()
            .fold(command, |command, (_, on, off, env, help)| {
                let switch_on = clap::Arg::new(*on)
                    .long(*on)
                    .env(*env)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("BOOL")
                    .value_parser(clap::builder::BoolishValueParser::new())
                    .help_heading("Collectors")
                    .help(format!("{help}; --{off} switches it off"));
                let switch_off = clap::Arg::new(*off)
                    .long(*off)
                    .action(clap::ArgAction::SetTrue)
                    .conflicts_with(*on)
                    .hide(true);
                command.arg(switch_on).arg(switch_off)
            })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl CollectorFlags {
    fn apply(&self, raw: &mut RawConfig) {
        let (collectors, bpf) = (&mut raw.collectors, &mut raw.bpf);
        for (name, wanted) in &self.0 {
            let key = match *name {
                "ethtool" => &mut collectors.ethtool,
                "rdma" => &mut collectors.rdma,
                "gpu" => &mut collectors.gpu,
                "kmsg" => &mut collectors.kmsg,
                "verbs" => &mut collectors.verbs,
                "probe" => &mut collectors.probe,
                "collective" => &mut bpf.collective,
                "tcp" => &mut bpf.tcp,
                "qdisc" => &mut bpf.qdisc,
                "qp" => &mut bpf.qp,
                "roce" => &mut bpf.roce,
                _ => &mut bpf.drop,
            };
            *key = Some(*wanted);
        }
    }
}

impl Options {
    fn load(&self) -> Result<Config, ConfigError> {
        let path = self
            .config
            .as_deref()
            .unwrap_or(Path::new("(command line)"));
        let mut raw = match &self.config {
            Some(file) => config::read(file)?,
            None => RawConfig::default(),
        };
        let overrides = [
            (&self.node, &mut raw.node),
            (&self.role, &mut raw.role),
            (&self.controller, &mut raw.controller),
            (&self.listen_metrics, &mut raw.listen_metrics),
            (&self.sample_interval, &mut raw.sample_interval),
            (&self.compat, &mut raw.compat),
        ];
        for (given, key) in overrides {
            if given.is_some() {
                key.clone_from(given);
            }
        }
        if self.dry_run {
            raw.dry_run = Some(true);
        }
        for (given, key) in [
            (&self.path_sysfs, &mut raw.path_sysfs),
            (&self.nvml_library, &mut raw.nvml_library),
            (&self.verbs_program, &mut raw.verbs_program),
        ] {
            if given.is_some() {
                key.clone_from(given);
            }
        }
        if !self.device_exclude.is_empty() {
            raw.devices_exclude = Some(self.device_exclude.clone());
        }
        self.collectors.apply(&mut raw);
        raw.check(path)
    }
}

fn main() -> ExitCode {
    let args: Args = match arguments() {
        Ok(args) => args,
        Err(code) => return code,
    };
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
            let written = writeln!(std::io::stderr(), "weir-agent: {}", said(&error));
            drop(written);
            ExitCode::from(if error.is::<ConfigError>() {
                EXIT_USAGE
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
        Cmd::Scan {
            options,
            expect,
            profile,
            json,
        } => {
            let mut expected = match profile {
                Some(name) => expect::profile(&name)?,
                None => Vec::new(),
            };
            expected.extend(expect);
            let findings = scan::scan(&options.load()?, &expected)?;
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
        Cmd::Qps { options, json } => {
            let pairs = qps::list(options.load()?.listen_metrics)?;
            writeln!(
                out,
                "{}",
                if json {
                    serde_json::to_string_pretty(&pairs)?
                } else {
                    qps::table(&pairs)
                }
            )?;
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
            out.write_all(document::markdown().as_bytes())?;
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
