//! What a node should have: expectations from the command line or a profile, against what is there.
//!
//! One expectation is `KIND=COUNT[@RATE][:NAME]`: `rdma=8@400G` is eight ports of verbs devices up at
//! 400 Gbit/s, `gpu=8:H100` eight GPUs with H100 in their names, `port=2` two network interfaces up.

use super::{Finding, Level};
use crate::source::Gathered;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use weir_common::config::{self, Checker, ConfigError};
use weir_wire::signal::{Entity, Signal};

/// Expectations of common nodes: name, description, expectations.
pub const PROFILES: [(&str, &str, &[&str]); 5] = [
    (
        "8xh100-8xcx7",
        "DGX H100 and its like: 8 H100, 8 ConnectX-7 at 400G",
        &["gpu=8:H100", "rdma=8@400G"],
    ),
    (
        "8xh200-8xcx7",
        "HGX H200: 8 H200, 8 ConnectX-7 at 400G",
        &["gpu=8:H200", "rdma=8@400G"],
    ),
    (
        "8xb200-8xcx7",
        "DGX B200: 8 B200, 8 ConnectX-7 at 400G",
        &["gpu=8:B200", "rdma=8@400G"],
    ),
    (
        "8xmi300x-8x400g",
        "8 MI300X, 8 NICs at 400G",
        &["gpu=8:MI300X", "rdma=8@400G"],
    ),
    (
        "8xa100-8xcx6",
        "DGX A100: 8 A100, 8 ConnectX-6 at 200G",
        &["gpu=8:A100", "rdma=8@200G"],
    ),
];

/// How many of something, at which rate or with which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    kind: Entity,
    count: usize,
    rate_bps: Option<u64>,
    name: Option<String>,
}

const SYNTAX: &str = "give KIND=COUNT[@RATE][:NAME], such as rdma=8@400G or gpu=8:H100; KIND is port, rdma or gpu, RATE ends in M, G or T";

/// Why an expectation is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    #[error("{0:?} is no expectation: {SYNTAX}")]
    Syntax(String),
}

/// A profile as a file has it, in YAML: what [`PROFILES`] has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "keys with values, such as `expect: [\"gpu=8:H100\"]`"
)]
struct RawProfile {
    name: String,
    description: String,
    expect: Vec<String>,
}

impl FromStr for Expect {
    type Err = ExpectError;

    fn from_str(text: &str) -> Result<Expect, ExpectError> {
        let wrong = || ExpectError::Syntax(text.to_owned());
        let (kind, rest) = text.split_once('=').ok_or_else(wrong)?;
        let kind = match kind {
            "port" => Entity::Port,
            "rdma" => Entity::Rdma,
            "gpu" => Entity::Gpu,
            _ => return Err(wrong()),
        };
        let (rest, name) = match rest.split_once(':') {
            Some((rest, name)) if !name.is_empty() => (rest, Some(name.to_owned())),
            Some(_) => return Err(wrong()),
            None => (rest, None),
        };
        let (count, rate_bps) = match rest.split_once('@') {
            Some((count, rate)) => (count, Some(rate_of(rate).ok_or_else(wrong)?)),
            None => (rest, None),
        };
        let count = count.parse().map_err(|_| wrong())?;
        Ok(Expect {
            kind,
            count,
            rate_bps,
            name,
        })
    }
}

/// The expectations of one of [`PROFILES`], by its name, or of a file: what has a slash, or ends in
/// `.yaml` or `.yml`, is one.
///
/// # Errors
/// There is no such profile or file, or the file is wrong.
pub fn profile(name: &str) -> Result<Vec<Expect>, ConfigError> {
    let path = Path::new(name);
    let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    if yaml || name.contains('/') {
        return from_file(path);
    }
    let known = PROFILES
        .iter()
        .find(|(known, _, _)| known.eq_ignore_ascii_case(name));
    let Some((_, _, lines)) = known else {
        let names: Vec<&str> = PROFILES.iter().map(|(name, _, _)| *name).collect();
        let remedy = format!("give a YAML file or one of {}", names.join(", "));
        return Err(Checker(Path::new("(command line)")).wrong("profile", &name, remedy));
    };
    parsed(path, lines.iter().copied())
}

fn from_file(path: &Path) -> Result<Vec<Expect>, ConfigError> {
    let raw: RawProfile = config::read(path)?;
    if raw.expect.is_empty() {
        let remedy = "list at least one expectation, such as \"rdma=8@400G\"";
        return Err(Checker(path).wrong("expect", &"[]", remedy));
    }
    parsed(path, raw.expect.iter().map(String::as_str))
}

fn parsed<'a>(
    path: &Path,
    lines: impl Iterator<Item = &'a str>,
) -> Result<Vec<Expect>, ConfigError> {
    lines
        .map(|line| {
            let expect = line.parse();
            expect.map_err(|_: ExpectError| Checker(path).wrong("expect", &line, SYNTAX))
        })
        .collect()
}

/// Bits per second of `400G`; `None` if it is not of that form.
#[must_use]
pub fn rate_of(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let scale = match unit {
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

/// `400 Gbit/s`.
#[must_use]
pub fn rate_text(bps: u64) -> String {
    if bps.is_multiple_of(1_000_000_000) {
        format!("{} Gbit/s", bps / 1_000_000_000)
    } else {
        format!("{} Mbit/s", bps / 1_000_000)
    }
}

impl Expect {
    /// Holds the expectation against what was read.
    #[must_use]
    pub fn check(&self, gathered: &Gathered) -> Finding {
        let mut fits = 0;
        let mut others = Vec::new();
        for (entity, name) in self.candidates(gathered) {
            match self.lacks(gathered, entity, name) {
                None => fits += 1,
                Some(lack) => others.push(format!("{entity} {lack}")),
            }
        }
        let what = match self.kind {
            Entity::Gpu => "GPUs",
            Entity::Rdma => "verbs ports up",
            Entity::Node | Entity::Port | Entity::Probe => "interfaces up",
        };
        let rate = self
            .rate_bps
            .map_or_else(String::new, |r| format!(" at {}", rate_text(r)));
        let name = self
            .name
            .as_ref()
            .map_or_else(String::new, |n| format!(" ({n})"));
        let mut finding = format!("{fits} of {} {what}{rate}{name}", self.count);
        if fits < self.count && !others.is_empty() {
            finding = format!("{finding}; {}", others.join(", "));
        }
        let (level, action) = if fits < self.count {
            (
                Level::Critical,
                "find the missing ones: seating, cable, firmware, lspci",
            )
        } else {
            (Level::Ok, "")
        };
        Finding {
            subject: "expected".into(),
            level,
            finding,
            action: action.into(),
        }
    }

    /// Entities of the kind, with the name that the source gave them.
    fn candidates<'g>(&self, gathered: &'g Gathered) -> BTreeMap<&'g str, &'g str> {
        let of_kind = gathered.columns.keys().filter(|key| key.kind == self.kind);
        let mut found: BTreeMap<&str, &str> =
            of_kind.map(|key| (key.entity.as_str(), "")).collect();
        for info in gathered.info.iter().filter(|info| info.kind == self.kind) {
            let name = info.labels.get("name").map_or("", String::as_str);
            found.insert(&info.entity, name);
        }
        found
    }

    /// Why an entity does not count, in words.
    fn lacks(&self, gathered: &Gathered, entity: &str, name: &str) -> Option<String> {
        let value = |signal| gathered.get(self.kind, entity, signal);
        if let Some(wanted) = &self.name
            && !name.to_lowercase().contains(&wanted.to_lowercase())
        {
            let name = if name.is_empty() {
                "of unknown name"
            } else {
                name
            };
            return Some(format!("is {name}"));
        }
        if self.kind != Entity::Gpu && value(Signal::LinkUp) != Some(1) {
            return Some("is down".into());
        }
        let wanted = self.rate_bps?;
        match value(Signal::RateBps) {
            Some(rate) if rate >= wanted => None,
            Some(rate) => Some(format!("runs at {}", rate_text(rate))),
            None => Some("has an unknown rate".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Info, Reading};
    use proptest::prelude::*;

    fn node() -> Gathered {
        let mut gathered = Gathered::default();
        for (device, up, gbps) in [
            ("mlx5_0/1", 1, 400),
            ("mlx5_1/1", 1, 200),
            ("mlx5_2/1", 0, 400),
        ] {
            let rate = Reading::wide(gbps * 1_000_000_000);
            gathered.put(
                Entity::Rdma,
                device,
                Signal::LinkUp,
                None,
                Reading::wide(up),
            );
            gathered.put(Entity::Rdma, device, Signal::RateBps, None, rate);
        }
        gathered.info.push(Info {
            kind: Entity::Gpu,
            entity: "0000:18:00.0".into(),
            labels: [("name", "NVIDIA H100 80GB HBM3".to_owned())].into(),
        });
        gathered
    }

    fn check(expectation: &str) -> (Level, String) {
        let finding = expectation.parse::<Expect>().unwrap().check(&node());
        (finding.level, finding.finding)
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let (level, text) = check("rdma=3@400G");
        assert_eq!(level, Level::Critical);
        assert_eq!(
            text,
            "1 of 3 verbs ports up at 400 Gbit/s; mlx5_1/1 runs at 200 Gbit/s, mlx5_2/1 is down"
        );
        assert_eq!(check("rdma=2").0, Level::Ok);
        assert_eq!(check("gpu=1:h100").0, Level::Ok);
        assert_eq!(check("gpu=8:H100").0, Level::Critical);
        let other = check("gpu=1:B200").1;
        assert!(other.contains("is NVIDIA H100"), "{other}");
    }

    #[test]
    fn every_profile_is_understood_and_an_unknown_one_lists_them() {
        for (name, _, lines) in PROFILES {
            assert_eq!(profile(name).unwrap().len(), lines.len());
        }
        let text = profile("dgx").unwrap_err().to_string();
        assert!(
            text.contains("8xh100-8xcx7") && text.contains("YAML file"),
            "{text}"
        );
    }

    fn in_file(text: &str) -> Result<Vec<Expect>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        std::fs::write(&path, text).unwrap();
        profile(path.to_str().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_what_a_built_in_profile_says() {
        for (name, description, lines) in PROFILES {
            let text = format!("name: {name}\ndescription: \"{description}\"\nexpect: {lines:?}\n");
            assert_eq!(in_file(&text), Ok(profile(name).unwrap()));
        }
        assert_eq!(in_file("expect: [port=2]").unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_by_file_key_and_value() {
        for (text, words) in [
            ("expects: [gpu=8]\n", ["node.yaml", "expects", "expect"]),
            ("expect: [gpu=8, nic=8]\n", ["node.yaml", "expect", "nic=8"]),
            ("expect: gpu=8\n", ["node.yaml", "expect", "sequence"]),
            ("name: x\n", ["node.yaml", "expect", "rdma=8@400G"]),
            ("- gpu=8\n", ["node.yaml", "keys with values", "expect"]),
        ] {
            let said = in_file(text).unwrap_err();
            for word in words {
                assert!(said.contains(word), "{text}: {word:?} is missing in {said}");
            }
        }
        let said = profile("/nonexistent/node.yaml").unwrap_err().to_string();
        assert!(said.contains("/nonexistent/node.yaml") && said.contains("existing file"));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_with_an_example(text in ".{0,40}") {
            if let Err(error) = text.parse::<Expect>() {
                prop_assert!(error.to_string().contains("rdma=8@400G"));
            }
        }

        #[test]
        fn a_rate_is_read_as_it_is_written(n in 1u64..1000) {
            let rate = rate_of(&format!("{n}G")).unwrap();
            prop_assert_eq!(rate_text(rate), format!("{n} Gbit/s"));
        }
    }
}
