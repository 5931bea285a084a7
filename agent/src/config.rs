//! The agent's configuration and its limits file: files that may be wrong, and values that cannot.

use crate::probe::config as probe;
use crate::rdma::stated;
pub use probe::RawProbe;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_agent_core::limits::Limits;
use weir_common::config::{self, Checker, ConfigError};
use weir_wire::SAMPLE_INTERVAL_MAX;

/// All addresses, as exporters do: who scrapes is another machine.
const LISTEN_METRICS: &str = "0.0.0.0:9741";

/// The only exporter whose names can be shown.
const NODE_EXPORTER: &str = "node-exporter";

/// What the node is in the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Host,
    Switch,
}

/// The file, key by key. Unknown keys are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "keys with values, such as `node: leaf1`"
)]
pub struct RawConfig {
    pub node: Option<String>,
    pub role: Option<String>,
    /// Address of the controller, such as "http://10.0.0.1:9742"; without one the agent serves /metrics only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    pub listen_metrics: Option<String>,
    pub state_dir: Option<PathBuf>,
    /// Limits file; without one nothing may be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<PathBuf>,
    pub sample_interval: Option<String>,
    pub spool_samples: Option<i64>,
    /// Interfaces that are left alone; a trailing * stands for anything.
    pub ports_exclude: Option<Vec<String>>,
    /// Go through every step of a change without writing it.
    pub dry_run: Option<bool>,
    /// Verbs devices that are left alone; a trailing * stands for anything.
    pub devices_exclude: Option<Vec<String>>,
    /// What links of verbs devices should run at, such as "mlx5_*=400G"; the first that fits counts.
    /// Default: their own best since the start, and what most of their kind run at.
    pub rdma_expect: Option<Vec<String>>,
    /// Where sysfs is mounted.
    pub path_sysfs: Option<PathBuf>,
    /// NVML library; default: libnvidia-ml.so.1 of the loader's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_library: Option<PathBuf>,
    /// The program weir-verbs; default: beside the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbs_program: Option<PathBuf>,
    /// Names of another exporter to show as well: "node-exporter".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compat: Option<String>,
    pub collectors: RawCollectors,
    pub bpf: RawBpf,
    pub probe: RawProbe,
}

/// Sources that can be switched off; those of eBPF are in `bpf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCollectors {
    pub ethtool: Option<bool>,
    pub rdma: Option<bool>,
    pub gpu: Option<bool>,
    pub kmsg: Option<bool>,
    pub verbs: Option<bool>,
    pub probe: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawBpf {
    /// False: no program is loaded; flows come from socket diagnostics instead.
    pub enabled: Option<bool>,
    /// See only the agent's own network namespace: for labs where many agents share a kernel.
    pub netns_filter: Option<bool>,
    pub collective: Option<bool>,
    pub tcp: Option<bool>,
    pub qdisc: Option<bool>,
    pub drop: Option<bool>,
    /// Queue pairs of verbs devices: peers, source ports, owners.
    pub qp: Option<bool>,
    /// RoCE packets, marks and notifications per queue pair where they cross the kernel: Linux
    /// switches and soft-RoCE. A NIC's own RDMA traffic passes the kernel by; hence off by default.
    pub roce: Option<bool>,
    /// cgroup v2 directory for the TCP programs; default: where it is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// A configuration that holds.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    pub role: Role,
    pub controller: Option<String>,
    pub listen_metrics: SocketAddr,
    pub state_dir: PathBuf,
    pub limits: Limits,
    /// Where the limits came from; `None`: no file, nothing is allowed.
    pub limits_file: Option<PathBuf>,
    pub sample_interval: Duration,
    pub spool_samples: usize,
    pub ports_exclude: Vec<String>,
    pub dry_run: bool,
    pub devices_exclude: Vec<String>,
    /// Pattern of devices and bits per second.
    pub rdma_expect: Vec<(String, u64)>,
    pub path_sysfs: PathBuf,
    pub nvml_library: Option<PathBuf>,
    pub verbs_program: Option<PathBuf>,
    /// Whether the names of node_exporter are shown beside our own.
    pub compat_node_exporter: bool,
    pub collectors: Collectors,
    pub bpf: Bpf,
    pub probe: probe::Config,
}

/// Sources that are on.
#[derive(Debug, Clone, Copy)]
pub struct Collectors {
    pub ethtool: bool,
    pub rdma: bool,
    pub gpu: bool,
    pub kmsg: bool,
    pub verbs: bool,
    pub probe: bool,
}

/// What to see by eBPF.
#[derive(Debug, Clone)]
pub struct Bpf {
    /// Whether programs may be loaded at all.
    pub enabled: bool,
    pub netns_filter: bool,
    pub collective: bool,
    pub tcp: bool,
    pub qdisc: bool,
    pub drop: bool,
    pub qp: bool,
    pub roce: bool,
    pub cgroup: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    routes: RawRouteLimits,
    max_lease: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRouteLimits {
    allow: Option<bool>,
    max_pins: Option<i64>,
    prefixes: Option<Vec<String>>,
    groups: Option<Vec<u32>>,
}

impl RawConfig {
    /// Checks every value; `path` is for the messages.
    ///
    /// # Errors
    /// [`ConfigError`], the first that is found.
    pub fn check(&self, path: &Path) -> Result<Config, ConfigError> {
        let check = Checker(path);
        let role = match self.role.as_deref() {
            None | Some("host") => Role::Host,
            Some("switch") => Role::Switch,
            Some(other) => return Err(check.wrong("role", &other, "give host or switch")),
        };
        let node = self.node.clone().unwrap_or_else(hostname);
        let foreign = |c: char| c.is_control() || [':', ' ', '/'].contains(&c);
        if node.is_empty() || node.len() > 255 || node.contains(foreign) {
            return Err(check.wrong(
                "node",
                &node,
                "give 1 to 255 bytes without colon, slash, space or control characters",
            ));
        }
        if let Some(controller) = &self.controller
            && !is_controller_address(controller)
        {
            return Err(check.wrong(
                "controller",
                controller,
                "give http://ADDRESS:PORT, such as \"http://10.0.0.1:9742\"",
            ));
        }
        let listen = self.listen_metrics.as_deref().unwrap_or(LISTEN_METRICS);
        let listen_metrics = listen.parse().map_err(|_| {
            check.wrong(
                "listen_metrics",
                &listen,
                "give an address and a port, such as \"0.0.0.0:9741\"",
            )
        })?;
        let compat_node_exporter = match self.compat.as_deref() {
            None => false,
            Some(NODE_EXPORTER) => true,
            Some(other) => return Err(check.wrong("compat", &other, "give node-exporter")),
        };
        let second = Duration::from_secs(1);
        let is_host = role == Role::Host;
        let limits = match &self.limits {
            Some(file) => read_limits(file)?,
            None => Limits::default(),
        };
        Ok(Config {
            node,
            role,
            controller: self.controller.clone(),
            listen_metrics,
            state_dir: self
                .state_dir
                .clone()
                .unwrap_or_else(|| "/var/lib/weir/agent".into()),
            limits,
            limits_file: self.limits.clone(),
            sample_interval: check.duration(
                "sample_interval",
                self.sample_interval.as_ref(),
                second,
                (second / 10, SAMPLE_INTERVAL_MAX),
            )?,
            spool_samples: check.count("spool_samples", self.spool_samples, 120, (1, 10_000))?,
            ports_exclude: self.ports_exclude.clone().unwrap_or_default(),
            dry_run: self.dry_run.unwrap_or(false),
            devices_exclude: self.devices_exclude.clone().unwrap_or_default(),
            rdma_expect: self
                .rdma_expect
                .iter()
                .flatten()
                .map(|text| {
                    let remedy = "give DEVICE=RATE, such as \"mlx5_*=400G\"";
                    stated(text).ok_or_else(|| check.wrong("rdma_expect", text, remedy))
                })
                .collect::<Result<_, _>>()?,
            path_sysfs: self.path_sysfs.clone().unwrap_or_else(|| "/sys".into()),
            nvml_library: self.nvml_library.clone(),
            verbs_program: self.verbs_program.clone(),
            compat_node_exporter,
            collectors: Collectors {
                ethtool: self.collectors.ethtool.unwrap_or(true),
                rdma: self.collectors.rdma.unwrap_or(true),
                gpu: self.collectors.gpu.unwrap_or(is_host),
                kmsg: self.collectors.kmsg.unwrap_or(true),
                verbs: self.collectors.verbs.unwrap_or(is_host),
                // A switch forwards in hardware and answers when it has time.
                probe: self.collectors.probe.unwrap_or(is_host),
            },
            probe: probe::check(&self.probe, &check)?,
            bpf: Bpf {
                enabled: self.bpf.enabled.unwrap_or(true),
                netns_filter: self.bpf.netns_filter.unwrap_or(false),
                // A switch forwards: it runs no collectives and ends no flows. A host's queue is its NIC's.
                collective: self.bpf.collective.unwrap_or(is_host),
                tcp: self.bpf.tcp.unwrap_or(is_host),
                qdisc: self.bpf.qdisc.unwrap_or(!is_host),
                drop: self.bpf.drop.unwrap_or(true),
                qp: self.bpf.qp.unwrap_or(is_host),
                roce: self.bpf.roce.unwrap_or(false),
                cgroup: self.bpf.cgroup.clone(),
            },
        })
    }
}

impl From<&Config> for RawConfig {
    /// The file that would give this configuration, with every default written out.
    fn from(config: &Config) -> RawConfig {
        let role = match config.role {
            Role::Host => "host",
            Role::Switch => "switch",
        };
        RawConfig {
            node: Some(config.node.clone()),
            role: Some(role.into()),
            controller: config.controller.clone(),
            listen_metrics: Some(config.listen_metrics.to_string()),
            state_dir: Some(config.state_dir.clone()),
            limits: config.limits_file.clone(),
            sample_interval: Some(humantime::format_duration(config.sample_interval).to_string()),
            spool_samples: i64::try_from(config.spool_samples).ok(),
            ports_exclude: Some(config.ports_exclude.clone()),
            dry_run: Some(config.dry_run),
            devices_exclude: Some(config.devices_exclude.clone()),
            rdma_expect: Some(
                config
                    .rdma_expect
                    .iter()
                    .map(|(pattern, bps)| format!("{pattern}={}M", bps / 1_000_000))
                    .collect(),
            ),
            path_sysfs: Some(config.path_sysfs.clone()),
            nvml_library: config.nvml_library.clone(),
            verbs_program: config.verbs_program.clone(),
            compat: config
                .compat_node_exporter
                .then(|| NODE_EXPORTER.to_owned()),
            collectors: RawCollectors {
                ethtool: Some(config.collectors.ethtool),
                rdma: Some(config.collectors.rdma),
                gpu: Some(config.collectors.gpu),
                kmsg: Some(config.collectors.kmsg),
                verbs: Some(config.collectors.verbs),
                probe: Some(config.collectors.probe),
            },
            probe: RawProbe::from(&config.probe),
            bpf: RawBpf {
                enabled: Some(config.bpf.enabled),
                netns_filter: Some(config.bpf.netns_filter),
                collective: Some(config.bpf.collective),
                tcp: Some(config.bpf.tcp),
                qdisc: Some(config.bpf.qdisc),
                drop: Some(config.bpf.drop),
                qp: Some(config.bpf.qp),
                roce: Some(config.bpf.roce),
                cgroup: config.bpf.cgroup.clone(),
            },
        }
    }
}

fn read_limits(path: &Path) -> Result<Limits, ConfigError> {
    let raw: RawLimits = config::read(path)?;
    let check = Checker(path);
    let second = Duration::from_secs(1);
    let mut prefixes = Vec::new();
    for text in raw.routes.prefixes.iter().flatten() {
        prefixes.push(cidr(text).ok_or_else(|| {
            check.wrong(
                "routes.prefixes",
                text,
                "give networks such as \"10.0.0.0/8\"",
            )
        })?);
    }
    let defaults = Limits::default();
    Ok(Limits {
        routes_allow: raw.routes.allow.unwrap_or(false),
        pins_max: check.count(
            "routes.max_pins",
            raw.routes.max_pins,
            defaults.pins_max,
            (0, 65_536),
        )?,
        prefixes,
        groups: raw.routes.groups.unwrap_or_default(),
        lease_max: check.duration(
            "max_lease",
            raw.max_lease.as_ref(),
            defaults.lease_max,
            (second, 3600 * second),
        )?,
    })
}

/// Reads "10.0.0.0/8"; a bare address is a /32.
#[must_use]
pub fn cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    Some((
        address.parse().ok()?,
        prefix.parse().ok().filter(|p| *p <= 32)?,
    ))
}

/// Whether an interface is to be left alone; a trailing `*` of a pattern stands for anything.
#[must_use]
pub fn excluded(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|p| {
        p.strip_suffix('*')
            .map_or(p == name, |prefix| name.starts_with(prefix))
    })
}

fn is_controller_address(text: &str) -> bool {
    text.parse::<tonic::transport::Uri>().is_ok_and(|uri| {
        let host = uri.host().is_some_and(|h| !h.is_empty());
        uri.scheme_str() == Some("http") && host && uri.port_u16().is_some() && uri.path() == "/"
    })
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: &str, limits: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let limits_path = dir.path().join("limits.yaml");
        std::fs::write(&limits_path, limits).unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(
            &path,
            format!("limits: {}\n{config}", limits_path.display()),
        )
        .unwrap();
        let checked = config::read(&path).and_then(|raw: RawConfig| raw.check(&path));
        checked.unwrap_err().to_string()
    }

    #[test]
    fn with_no_limits_file_nothing_may_be_written() {
        let config = RawConfig::default().check(Path::new("x")).unwrap();
        assert!(!config.limits.routes_allow);
    }

    #[test]
    fn what_is_shown_gives_the_same_configuration() {
        for text in [
            "node: n",
            "{node: s1, role: switch, controller: 'http://c:1', sample_interval: 250ms, compat: node-exporter, rdma_expect: ['mlx5_*=400G'], bpf: {enabled: false, tcp: true}}",
        ] {
            let raw: RawConfig = serde_norway::from_str(text).unwrap();
            let shown = RawConfig::from(&raw.check(Path::new("x")).unwrap());
            let yaml = serde_norway::to_string(&shown).unwrap();
            let again: RawConfig = serde_norway::from_str(&yaml).unwrap();
            assert_eq!(
                RawConfig::from(&again.check(Path::new("y")).unwrap()),
                shown
            );
            assert!(!yaml.contains("null"), "{yaml}");
        }
    }

    #[test]
    fn a_controller_that_cannot_be_reached_by_its_address_is_refused() {
        for bad in [
            "https://c:1",
            "http://",
            "http://c",
            "c:9742",
            "http://c:1/x",
            "http://c:x",
        ] {
            let text = refusal(&format!("controller: \"{bad}\""), "");
            assert!(
                text.contains("controller") && text.contains("http://ADDRESS:PORT"),
                "{bad}: {text}"
            );
        }
    }

    #[test]
    fn a_pattern_with_a_star_excludes_by_prefix() {
        let patterns = ["docker*".to_owned(), "ib0".to_owned()];
        assert!(excluded(&patterns, "docker0") && excluded(&patterns, "ib0"));
        assert!(!excluded(&patterns, "ib01") && !excluded(&patterns, "eth0"));
    }

    #[test]
    fn an_interval_without_unit_is_refused_with_the_range() {
        let text = refusal("sample_interval: \"1\"", "");
        assert!(
            text.contains("agent.yaml")
                && text.contains("sample_interval")
                && text.contains("100ms to 30s"),
            "{text}"
        );
    }

    #[test]
    fn a_limits_file_is_checked_like_the_rest() {
        let text = refusal("", "routes: {prefixes: [\"10.0.0.0/33\"]}");
        assert!(
            text.contains("limits.yaml")
                && text.contains("routes.prefixes")
                && text.contains("/33"),
            "{text}"
        );
        assert!(refusal("", "routs: {}").contains("routs"));
    }
}
