//! What a node should have: expectations from the command line or a profile, against what is there.
//!
//! One expectation is `KIND=COUNT[@RATE][:NAME]`: `rdma=8@400G` is eight ports of verbs devices up at
//! 400 Gbit/s, `gpu=8:H100` eight GPUs with H100 in their names, `port=2` two network interfaces up.

use super::{Finding, Level};
use crate::source::Gathered;
use std::collections::BTreeMap;
use std::str::FromStr;
use weir_wire::signal::{Entity, Signal};

/// Expectations of common nodes.
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

/// Why an expectation is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    #[error(
        "{0:?} is no expectation: give KIND=COUNT[@RATE][:NAME], such as rdma=8@400G or gpu=8:H100; KIND is port, rdma or gpu, RATE ends in M, G or T"
    )]
    Syntax(String),
    #[error("there is no profile {0:?}: give one of {1}, or --expect")]
    Profile(String, String),
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

/// The expectations of one of [`PROFILES`], by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile(pub Vec<Expect>);

impl FromStr for Profile {
    type Err = ExpectError;

    fn from_str(name: &str) -> Result<Profile, ExpectError> {
        let known = PROFILES
            .iter()
            .find(|(known, _, _)| known.eq_ignore_ascii_case(name));
        let Some((_, _, lines)) = known else {
            let names: Vec<&str> = PROFILES.iter().map(|(name, _, _)| *name).collect();
            return Err(ExpectError::Profile(name.to_owned(), names.join(", ")));
        };
        let expected: Result<_, _> = lines.iter().map(|line| line.parse()).collect();
        expected.map(Profile)
    }
}

/// Bits per second of `400G`.
fn rate_of(text: &str) -> Option<u64> {
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
            assert_eq!(name.parse::<Profile>().unwrap().0.len(), lines.len());
        }
        let text = "dgx".parse::<Profile>().unwrap_err().to_string();
        assert!(
            text.contains("8xh100-8xcx7") && text.contains("--expect"),
            "{text}"
        );
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
