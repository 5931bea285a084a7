//! The `probe` section of the configuration.

use super::Options;
use super::list::{List, Ping, Way};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use weir_agent_core::probe::budget::PACKETS_PER_S_MAX;
use weir_agent_core::probe::prober::{PATHS_MAX, Settings, TARGETS_MAX};
use weir_common::config::{Checker, ConfigError};

/// UDP port of responders.
pub const PORT: u16 = 9744;
/// 26 kbit/s at 130 bytes on the wire.
const PACKETS_PER_SECOND: usize = 25;
/// 16 flows take all of 4 equal paths in 96 of 100 cases; those of two probers in 9,996 of 10,000.
const PATHS: usize = 16;

/// The section, key by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawProbe {
    /// UDP port on which probes are answered; 0: none are.
    pub port: Option<i64>,
    /// Source ports, which are the paths to each target.
    pub paths: Option<i64>,
    /// Probes in a second, at most, over UDP and verbs together. Each takes at most a five-thousandth of
    /// the link too, whose other parts are for replies (`weir_agent_core::probe::budget::Purpose`).
    pub packets_per_second: Option<i64>,
    /// Time between two probes of one path, at least.
    pub interval: Option<String>,
    /// A probe that is not answered by then is lost.
    pub timeout: Option<String>,
    /// Time over which loss and quantiles are made.
    pub window: Option<String>,
    /// Whom to probe for as long as no controller says.
    pub targets: Option<Vec<RawTarget>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTarget {
    pub node: String,
    /// IP address, with a port if it is not 9744.
    pub address: String,
}

/// A section that holds.
#[derive(Debug, Clone)]
pub struct Config {
    /// 0: nobody is answered.
    pub port: u16,
    pub paths: u8,
    pub packets_per_second: u32,
    pub settings: Settings,
    pub targets: Vec<(String, SocketAddr)>,
}

/// Checks every value.
pub(crate) fn check(raw: &RawProbe, check: &Checker<'_>) -> Result<Config, ConfigError> {
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    let port = check.count("probe.port", raw.port, PORT.into(), (0, 65_535))?;
    let paths = check.count("probe.paths", raw.paths, PATHS, (1, PATHS_MAX.into()))?;
    let rate = check.count(
        "probe.packets_per_second",
        raw.packets_per_second,
        PACKETS_PER_SECOND,
        (1, PACKETS_PER_S_MAX.into()),
    )?;
    let settings = Settings {
        interval: check.duration(
            "probe.interval",
            raw.interval.as_ref(),
            s(1),
            (ms(10), s(60)),
        )?,
        timeout: check.duration("probe.timeout", raw.timeout.as_ref(), s(1), (ms(10), s(2)))?,
        window: check.duration("probe.window", raw.window.as_ref(), s(30), (s(1), s(600)))?,
    };
    let given = raw.targets.as_deref().unwrap_or_default();
    if given.len() > TARGETS_MAX {
        let expected = format!("give at most {TARGETS_MAX} targets");
        return Err(check.wrong("probe.targets", &given.len(), expected));
    }
    let mut targets: Vec<(String, SocketAddr)> = Vec::new();
    for target in given {
        let address = address(&target.address).ok_or_else(|| {
            let expected = "give an IP address, with a port if it is not 9744: \"10.0.0.2\", \"[2001:db8::2]:9744\"";
            check.wrong("probe.targets", &target.address, expected)
        })?;
        let named = targets.iter().any(|(node, _)| *node == target.node);
        if named || target.node.is_empty() || target.node.contains([':', ' ', '\n']) {
            let expected = "give each target a name of its own, without colon or space";
            return Err(check.wrong("probe.targets", &target.node, expected));
        }
        targets.push((target.node.clone(), address));
    }
    Ok(Config {
        port: u16::try_from(port).unwrap_or(PORT),
        paths: u8::try_from(paths).unwrap_or(PATHS_MAX),
        packets_per_second: u32::try_from(rate).unwrap_or(1),
        settings,
        targets,
    })
}

fn address(text: &str) -> Option<SocketAddr> {
    let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    bare.or_else(|_| text.parse())
        .ok()
        .filter(|a| a.port() != 0)
}

impl Config {
    /// What the probes are started with.
    #[must_use]
    pub fn options(&self, exclude: &[String]) -> Options {
        let ping = |(node, address): &(String, SocketAddr)| Ping {
            node: node.clone(),
            port: String::new(),
            from: String::new(),
            paths: self.paths,
            way: Way::Udp(*address),
        };
        Options {
            port: (self.port != 0).then_some(self.port),
            paths: self.paths,
            packets_per_s: self.packets_per_second,
            settings: self.settings,
            exclude: exclude.to_vec(),
            list: List {
                targets: self.targets.iter().map(ping).collect(),
                packets_per_s: self.packets_per_second,
                probers: None,
                unusable: 0,
            },
        }
    }
}

impl From<&Config> for RawProbe {
    fn from(config: &Config) -> RawProbe {
        let duration = |d| Some(humantime::format_duration(d).to_string());
        let target = |(node, address): &(String, SocketAddr)| RawTarget {
            node: node.clone(),
            address: address.to_string(),
        };
        RawProbe {
            port: Some(config.port.into()),
            paths: Some(config.paths.into()),
            packets_per_second: Some(config.packets_per_second.into()),
            interval: duration(config.settings.interval),
            timeout: duration(config.settings.timeout),
            window: duration(config.settings.window),
            targets: Some(config.targets.iter().map(target).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::RawConfig;
    use std::path::Path;

    fn checked(probe: &str) -> Result<super::Config, String> {
        let raw: RawConfig = serde_norway::from_str(&format!("probe: {probe}")).unwrap();
        let config = raw.check(Path::new("agent.yaml"));
        config.map(|c| c.probe).map_err(|e| e.to_string())
    }

    #[test]
    fn targets_have_the_usual_port_unless_one_is_given() {
        let config = checked(
            "{port: 0, targets: [{node: a, address: 10.0.0.2}, {node: b, address: '[2001:db8::2]:7'}, {node: c, address: '2001:db8::3'}]}",
        );
        let config = config.unwrap();
        let shown: Vec<String> = config.targets.iter().map(|t| t.1.to_string()).collect();
        assert_eq!(
            shown,
            ["10.0.0.2:9744", "[2001:db8::2]:7", "[2001:db8::3]:9744"]
        );
        assert_eq!(config.options(&[]).port, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_range() {
        for (probe, words) in [
            ("{port: 65536}", ["probe.port", "0 to 65535"]),
            ("{paths: 33}", ["probe.paths", "1 to 32"]),
            (
                "{packets_per_second: 1001}",
                ["probe.packets_per_second", "1 to 1000"],
            ),
            ("{interval: 1ms}", ["probe.interval", "10ms to 1m"]),
            ("{timeout: 3s}", ["probe.timeout", "10ms to 2s"]),
            ("{window: '30'}", ["probe.window", "1s to 10m"]),
            (
                "{targets: [{node: a, address: h2}]}",
                ["probe.targets", "IP address"],
            ),
            (
                "{targets: [{node: a, address: '10.0.0.2:0'}]}",
                ["probe.targets", "IP address"],
            ),
            (
                "{targets: [{node: 'a:b', address: 10.0.0.2}]}",
                ["probe.targets", "name of its own"],
            ),
            (
                "{targets: [{node: a, address: 10.0.0.2}, {node: a, address: 10.0.0.3}]}",
                ["probe.targets", "name of its own"],
            ),
        ] {
            let text = checked(probe).unwrap_err();
            assert!(
                words.iter().all(|word| text.contains(word)),
                "{probe}: {text}"
            );
        }
    }
}
