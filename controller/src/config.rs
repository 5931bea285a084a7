//! The controller's configuration: a file that may be wrong ([`RawConfig`]) and a value that cannot.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_controller_core::config::Mode;
use weir_controller_core::trial::BEFORE_MAX;

/// Why a configuration is refused. Names file, key, value, range and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; {}", remedy(source))]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Syntax {
        path: PathBuf,
        source: serde_norway::Error,
    },
    #[error("{path}: {key}: {value:?} is not valid: {expected}")]
    Value {
        path: PathBuf,
        key: &'static str,
        value: String,
        expected: String,
    },
}

fn remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{InvalidData, IsADirectory, PermissionDenied};
    let known = [
        (PermissionDenied, "make it readable for this user"),
        (IsADirectory, "give the file, not its directory"),
        (InvalidData, "it has to be text in UTF-8"),
    ];
    let remedy = known.iter().find(|(kind, _)| *kind == error.kind());
    remedy.map_or("give an existing file", |(_, text)| text)
}

/// The file, key by key. Unknown keys are errors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "keys with values, such as `mode: observe`"
)]
pub struct RawConfig {
    pub listen_grpc: Option<String>,
    pub listen_http: Option<String>,
    /// Needed to listen, for agents or for HTTP, on anything but loopback: there is no TLS yet.
    pub allow_plaintext: Option<bool>,
    pub topology: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub mode: Option<String>,
    pub record: Option<PathBuf>,
    pub lease: RawLease,
    pub trial: RawTrial,
    pub hotspot: RawHotspot,
    pub probe: RawProbe,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawProbe {
    /// Probes of one node in a second, at most; 0: agents are not told to probe.
    pub packets_per_second: Option<i64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLease {
    pub ttl: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTrial {
    pub iterations_before: Option<i64>,
    pub iterations_after: Option<i64>,
    pub changes_max: Option<i64>,
    pub keep_ratio: Option<f64>,
    pub cooldown: Option<String>,
    pub hold_timeout: Option<String>,
    pub job_gone: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHotspot {
    pub utilisation_hot: Option<f64>,
    pub sibling_idle: Option<f64>,
    pub gain_min: Option<f64>,
    pub incast_senders: Option<i64>,
    pub clear_after: Option<String>,
}

/// A configuration that holds.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen_grpc: SocketAddr,
    pub listen_http: SocketAddr,
    pub topology: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub record: Option<PathBuf>,
    pub core: weir_controller_core::Config,
}

struct Checker<'a> {
    path: &'a Path,
}

impl Checker<'_> {
    fn wrong(
        &self,
        key: &'static str,
        value: &dyn std::fmt::Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key,
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    fn duration(
        &self,
        key: &'static str,
        value: Option<&String>,
        range: (Duration, Duration),
        into: &mut Duration,
    ) -> Result<(), ConfigError> {
        let Some(text) = value else { return Ok(()) };
        let (min, max) = range;
        let expected = || {
            format!(
                "give a duration with a unit from {} to {}, such as \"10s\" or \"250ms\"",
                humantime::format_duration(min),
                humantime::format_duration(max)
            )
        };
        let parsed =
            humantime::parse_duration(text).map_err(|_| self.wrong(key, text, expected()))?;
        if parsed < min || parsed > max {
            return Err(self.wrong(key, text, expected()));
        }
        *into = parsed;
        Ok(())
    }

    fn ratio(
        &self,
        key: &'static str,
        value: Option<f64>,
        range: (f64, f64),
        into: &mut f64,
    ) -> Result<(), ConfigError> {
        let Some(v) = value else { return Ok(()) };
        if !(range.0..=range.1).contains(&v) {
            return Err(self.wrong(
                key,
                &v,
                format!("give a number from {} to {}", range.0, range.1),
            ));
        }
        *into = v;
        Ok(())
    }

    fn count(
        &self,
        key: &'static str,
        value: Option<i64>,
        range: (i64, i64),
        into: &mut usize,
    ) -> Result<(), ConfigError> {
        let Some(v) = value else { return Ok(()) };
        match usize::try_from(v) {
            Ok(n) if (range.0..=range.1).contains(&v) => *into = n,
            Ok(_) | Err(_) => {
                return Err(self.wrong(
                    key,
                    &v,
                    format!("give a whole number from {} to {}", range.0, range.1),
                ));
            }
        }
        Ok(())
    }

    fn address(
        &self,
        key: &'static str,
        value: Option<&String>,
        default: SocketAddr,
    ) -> Result<SocketAddr, ConfigError> {
        let Some(text) = value else {
            return Ok(default);
        };
        text.parse().map_err(|_| {
            self.wrong(
                key,
                text,
                "give an address and a port, such as \"127.0.0.1:9743\"",
            )
        })
    }
}

impl RawConfig {
    /// Checks every value; `path` is for the messages.
    ///
    /// # Errors
    /// [`ConfigError::Value`], the first that is found.
    pub fn check(&self, path: &Path) -> Result<Config, ConfigError> {
        let check = Checker { path };
        let s = Duration::from_secs;
        let loopback = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        let mut core = weir_controller_core::Config {
            mode: match self.mode.as_deref() {
                None | Some("observe") => Mode::Observe,
                Some("advise") => Mode::Advise,
                Some("act") => Mode::Act,
                Some(other) => {
                    return Err(check.wrong("mode", &other, "give observe, advise or act"));
                }
            },
            ..weir_controller_core::Config::default()
        };
        let (trial, hotspot) = (&mut core.trial, &mut core.hotspot);
        check.duration(
            "lease.ttl",
            self.lease.ttl.as_ref(),
            (s(1), s(300)),
            &mut trial.ttl,
        )?;
        check.duration(
            "trial.cooldown",
            self.trial.cooldown.as_ref(),
            (s(1), s(86_400)),
            &mut trial.cooldown,
        )?;
        check.duration(
            "trial.hold_timeout",
            self.trial.hold_timeout.as_ref(),
            (s(1), s(3600)),
            &mut trial.hold_timeout,
        )?;
        check.duration(
            "trial.job_gone",
            self.trial.job_gone.as_ref(),
            (s(1), s(86_400)),
            &mut trial.job_gone,
        )?;
        check.duration(
            "hotspot.clear_after",
            self.hotspot.clear_after.as_ref(),
            (s(1), s(3600)),
            &mut hotspot.clear_after,
        )?;
        check.count(
            "trial.iterations_before",
            self.trial.iterations_before,
            (1, BEFORE_MAX as i64),
            &mut trial.iterations_before,
        )?;
        check.count(
            "trial.iterations_after",
            self.trial.iterations_after,
            (2, 64),
            &mut trial.iterations_after,
        )?;
        check.count(
            "trial.changes_max",
            self.trial.changes_max,
            (1, 1024),
            &mut trial.changes_max,
        )?;
        check.ratio(
            "trial.keep_ratio",
            self.trial.keep_ratio,
            (0.1, 1.0),
            &mut trial.keep_ratio,
        )?;
        check.ratio(
            "hotspot.utilisation_hot",
            self.hotspot.utilisation_hot,
            (0.1, 1.0),
            &mut hotspot.utilisation_hot,
        )?;
        check.ratio(
            "hotspot.sibling_idle",
            self.hotspot.sibling_idle,
            (0.0, 1.0),
            &mut hotspot.sibling_idle,
        )?;
        check.ratio(
            "hotspot.gain_min",
            self.hotspot.gain_min,
            (1.0, 10.0),
            &mut hotspot.gain_min,
        )?;
        check.count(
            "hotspot.incast_senders",
            self.hotspot.incast_senders,
            (2, 10_000),
            &mut hotspot.incast_senders,
        )?;
        let mut packets = usize::try_from(core.probe.packets_per_s).unwrap_or(0);
        check.count(
            "probe.packets_per_second",
            self.probe.packets_per_second,
            (0, 1000),
            &mut packets,
        )?;
        core.probe.packets_per_s = u32::try_from(packets).unwrap_or(0);
        let listen_grpc =
            check.address("listen_grpc", self.listen_grpc.as_ref(), loopback(9742))?;
        if !listen_grpc.ip().is_loopback() && self.allow_plaintext != Some(true) {
            let expected = "agents would speak plain text over the network; listen on loopback or set allow_plaintext: true";
            return Err(check.wrong("listen_grpc", &listen_grpc, expected));
        }
        let listen_http =
            check.address("listen_http", self.listen_http.as_ref(), loopback(9743))?;
        if !listen_http.ip().is_loopback() && self.allow_plaintext != Some(true) {
            let expected = "whoever reaches it may freeze, unfreeze and end changes; listen on loopback or set allow_plaintext: true";
            return Err(check.wrong("listen_http", &listen_http, expected));
        }
        Ok(Config {
            listen_grpc,
            listen_http,
            topology: self.topology.clone(),
            state_dir: self
                .state_dir
                .clone()
                .unwrap_or_else(|| "/var/lib/weir/controller".into()),
            record: self.record.clone(),
            core,
        })
    }
}

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError`].
pub fn read(path: &Path) -> Result<(RawConfig, Config), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let raw = parse(&text, path)?;
    let config = raw.check(path)?;
    Ok((raw, config))
}

/// Parses the text of a file; an empty one is all defaults.
///
/// # Errors
/// [`ConfigError::Syntax`].
pub fn parse(text: &str, path: &Path) -> Result<RawConfig, ConfigError> {
    let raw: Option<RawConfig> =
        serde_norway::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
    Ok(raw.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let path = Path::new("/etc/weir/controller.yaml");
        parse(text, path)
            .and_then(|raw| raw.check(path))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_empty_file_is_all_defaults_and_only_observes() {
        let config = parse("", Path::new("x"))
            .unwrap()
            .check(Path::new("x"))
            .unwrap();
        assert_eq!(config.core.mode, Mode::Observe);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let text = refusal("lease:\n  tll: 3s\n");
        assert!(
            text.contains("controller.yaml") && text.contains("tll") && text.contains("ttl"),
            "{text}"
        );
    }

    #[test]
    fn a_duration_without_unit_is_refused_with_the_range() {
        let text = refusal("lease: {ttl: \"3\"}");
        assert!(
            text.contains("lease.ttl") && text.contains("\"3\"") && text.contains("5m"),
            "{text}"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        let text = refusal("hotspot: {utilisation_hot: 90}");
        assert!(
            text.contains("hotspot.utilisation_hot")
                && text.contains("90")
                && text.contains("0.1 to 1"),
            "{text}"
        );
    }

    #[test]
    fn a_rate_of_probes_is_checked() {
        let text = refusal("probe: {packets_per_second: 1001}");
        let words = ["probe.packets_per_second", "1001", "0 to 1000"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    #[test]
    fn plain_text_beyond_loopback_must_be_asked_for() {
        assert!(refusal("listen_grpc: \"10.0.0.1:9742\"").contains("allow_plaintext"));
        assert!(refusal("listen_http: \"0.0.0.0:9743\"").contains("allow_plaintext"));
    }
}
