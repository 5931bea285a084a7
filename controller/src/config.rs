//! The controller's configuration: a file that may be wrong ([`RawConfig`]) and a value that cannot.

use crate::record;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_common::config::{self, Checker, ConfigError};
use weir_controller_core::config::Mode;
use weir_controller_core::trial::BEFORE_MAX;

/// MiB of a segment, and of all; what they hold is in docs/recorder.md.
const SEGMENT_MIB: usize = 64;
const TOTAL_MIB: usize = 2048;

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
    pub record: RawRecord,
    pub lease: RawLease,
    pub trial: RawTrial,
    pub hotspot: RawHotspot,
    pub probe: RawProbe,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRecord {
    /// Where the flight recorder keeps its segments; without it nothing is recorded.
    pub directory: Option<PathBuf>,
    /// A segment ends when its events have taken this.
    pub segment_mib: Option<i64>,
    /// All segments together; the oldest is deleted.
    pub total_mib: Option<i64>,
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
    pub record: Option<record::Settings>,
    pub core: weir_controller_core::Config,
}

impl RawConfig {
    /// Checks every value; `path` is for the messages.
    ///
    /// # Errors
    /// [`ConfigError::Value`], the first that is found.
    pub fn check(&self, path: &Path) -> Result<Config, ConfigError> {
        let check = Checker(path);
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
        trial.ttl = check.duration(
            "lease.ttl",
            self.lease.ttl.as_ref(),
            trial.ttl,
            (s(1), s(300)),
        )?;
        trial.cooldown = check.duration(
            "trial.cooldown",
            self.trial.cooldown.as_ref(),
            trial.cooldown,
            (s(1), s(86_400)),
        )?;
        trial.hold_timeout = check.duration(
            "trial.hold_timeout",
            self.trial.hold_timeout.as_ref(),
            trial.hold_timeout,
            (s(1), s(3600)),
        )?;
        trial.job_gone = check.duration(
            "trial.job_gone",
            self.trial.job_gone.as_ref(),
            trial.job_gone,
            (s(1), s(86_400)),
        )?;
        hotspot.clear_after = check.duration(
            "hotspot.clear_after",
            self.hotspot.clear_after.as_ref(),
            hotspot.clear_after,
            (s(1), s(3600)),
        )?;
        trial.iterations_before = check.count(
            "trial.iterations_before",
            self.trial.iterations_before,
            trial.iterations_before,
            (1, BEFORE_MAX as i64),
        )?;
        trial.iterations_after = check.count(
            "trial.iterations_after",
            self.trial.iterations_after,
            trial.iterations_after,
            (2, 64),
        )?;
        trial.changes_max = check.count(
            "trial.changes_max",
            self.trial.changes_max,
            trial.changes_max,
            (1, 1024),
        )?;
        trial.keep_ratio = check.ratio(
            "trial.keep_ratio",
            self.trial.keep_ratio,
            trial.keep_ratio,
            (0.1, 1.0),
        )?;
        hotspot.utilisation_hot = check.ratio(
            "hotspot.utilisation_hot",
            self.hotspot.utilisation_hot,
            hotspot.utilisation_hot,
            (0.1, 1.0),
        )?;
        hotspot.sibling_idle = check.ratio(
            "hotspot.sibling_idle",
            self.hotspot.sibling_idle,
            hotspot.sibling_idle,
            (0.0, 1.0),
        )?;
        hotspot.gain_min = check.ratio(
            "hotspot.gain_min",
            self.hotspot.gain_min,
            hotspot.gain_min,
            (1.0, 10.0),
        )?;
        hotspot.incast_senders = check.count(
            "hotspot.incast_senders",
            self.hotspot.incast_senders,
            hotspot.incast_senders,
            (2, 10_000),
        )?;
        let mut packets = usize::try_from(core.probe.packets_per_s).unwrap_or(0);
        packets = check.count(
            "probe.packets_per_second",
            self.probe.packets_per_second,
            packets,
            (0, 1000),
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
            record: self.record(&check)?,
            core,
        })
    }
}

impl RawConfig {
    fn record(&self, check: &Checker<'_>) -> Result<Option<record::Settings>, ConfigError> {
        let RawRecord {
            directory,
            segment_mib,
            total_mib,
        } = &self.record;
        let segment = check.count(
            "record.segment_mib",
            *segment_mib,
            SEGMENT_MIB,
            (1, 1 << 16),
        )?;
        // Less than four segments would keep little more than the newest.
        let total = TOTAL_MIB.max(4 * segment);
        let least = i64::try_from(4 * segment).unwrap_or(i64::MAX);
        let total = check.count("record.total_mib", *total_mib, total, (least, 1 << 24))?;
        let bytes = |mib: usize| {
            u64::try_from(mib)
                .unwrap_or(u64::MAX)
                .saturating_mul(1 << 20)
        };
        Ok(directory.clone().map(|directory| record::Settings {
            directory,
            segment_bytes: bytes(segment),
            total_bytes: bytes(total),
        }))
    }
}

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError`].
pub fn read(path: &Path) -> Result<(RawConfig, Config), ConfigError> {
    let raw: RawConfig = config::read(path)?;
    let config = raw.check(path)?;
    Ok((raw, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let path = Path::new("/etc/weir/controller.yaml");
        config::parse(text, path)
            .and_then(|raw: RawConfig| raw.check(path))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_empty_file_is_all_defaults_and_only_observes() {
        let config = config::parse::<RawConfig>("", Path::new("x"))
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
    fn a_recording_has_room_for_four_segments() {
        let text = refusal("record: {directory: /x, segment_mib: 100, total_mib: 399}");
        let words = ["record.total_mib", "399", "400 to"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }

    #[test]
    fn plain_text_beyond_loopback_must_be_asked_for() {
        assert!(refusal("listen_grpc: \"10.0.0.1:9742\"").contains("allow_plaintext"));
        assert!(refusal("listen_http: \"0.0.0.0:9743\"").contains("allow_plaintext"));
    }
}
