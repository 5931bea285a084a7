//! What comes on standard input: lines, orders. Pure.

use crate::prober::Aim;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use weir_agent_core::probe::budget::PACKETS_PER_S_MAX;
use weir_verbs_protocol::{
    FLOW_LABEL_MAX, ID_MAX, LINE_MAX, Orders, PROBERS_MAX, Place, TARGETS_MAX,
};

/// Cuts a stream into lines of at most `limit` bytes.
#[derive(Debug)]
pub struct Lines {
    partial: Vec<u8>,
    limit: usize,
    /// In a line that was too long, up to its end.
    skipping: bool,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines::new(LINE_MAX)
    }
}

impl Lines {
    #[must_use]
    pub fn new(limit: usize) -> Lines {
        Lines {
            partial: Vec::new(),
            limit,
            skipping: false,
        }
    }

    /// The lines that end in what came; `Err`: one that is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Vec<u8>, String>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if !self.skipping && self.partial.len() + text.len() > self.limit {
                self.skipping = true;
                self.partial = Vec::new();
                lines.push(Err(format!("a line of more than {} bytes", self.limit)));
            }
            if !self.skipping {
                self.partial.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.partial);
                if !std::mem::take(&mut self.skipping) && !line.trim_ascii().is_empty() {
                    lines.push(Ok(line));
                }
            }
        }
        lines
    }
}

/// Orders that hold: targets by the port that pings them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    pub aims: BTreeMap<Place, Vec<Aim>>,
    pub packets_per_second: u32,
    /// Whose pings are answered; `None`: everybody's.
    pub probers: Option<BTreeSet<Ipv6Addr>>,
}

/// Reads a line of orders. One wrong target spoils the line: half of a list would look like loss.
///
/// # Errors
/// What is wrong with it, in words.
pub fn orders(line: &[u8]) -> Result<Checked, String> {
    let orders: Orders =
        serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))?;
    if orders.targets.len() > TARGETS_MAX {
        return Err(format!(
            "{} targets, at most {TARGETS_MAX}",
            orders.targets.len()
        ));
    }
    let mut ids = BTreeSet::new();
    let mut checked = Checked {
        packets_per_second: orders.packets_per_second,
        probers: orders.probers.map(probers).transpose()?,
        ..Checked::default()
    };
    for target in orders.targets {
        let wrong = |what: &str| {
            let id: String = target.id.chars().take(ID_MAX).collect();
            format!("target {id:?}: {what}")
        };
        if target.id.is_empty() || target.id.len() > ID_MAX {
            return Err(wrong(&format!("give an id of 1 to {ID_MAX} bytes")));
        }
        if !ids.insert(target.id.clone()) {
            return Err(wrong("another has this id"));
        }
        if target.flow_label > FLOW_LABEL_MAX {
            return Err(wrong("a flow label has 20 bits"));
        }
        // 0 and 1 are the management's.
        if !(2..1 << 24).contains(&target.qpn) {
            return Err(wrong("a queue pair's number is from 2 to 16777215"));
        }
        if target.hop_limit == 0 {
            return Err(wrong("give a hop limit of at least 1"));
        }
        let gid: Ipv6Addr = target
            .gid
            .parse()
            .map_err(|_| wrong("give a GID such as ::ffff:10.0.0.1"))?;
        let place = Place {
            device: target.device.clone(),
            port: target.port,
        };
        checked
            .aims
            .entry(place)
            .or_default()
            .push(Aim { target, gid });
    }
    Ok(checked)
}

fn probers(given: Vec<String>) -> Result<BTreeSet<Ipv6Addr>, String> {
    if given.len() > PROBERS_MAX {
        return Err(format!("{} probers, at most {PROBERS_MAX}", given.len()));
    }
    let gid = |text: String| {
        text.parse()
            .map_err(|_| format!("prober {text:?}: give a GID such as ::ffff:10.0.0.1"))
    };
    given.into_iter().map(gid).collect()
}

impl Checked {
    /// How many of the pings a second a port gets: as many as it has targets of all. The sum is no
    /// more than what is ordered, unless a port would get none: then one.
    #[must_use]
    pub fn share(&self, place: &Place) -> u32 {
        let all: usize = self.aims.values().map(Vec::len).sum();
        let its = self.aims.get(place).map_or(0, Vec::len);
        let rate = self.packets_per_second.min(PACKETS_PER_S_MAX);
        if all == 0 || its == 0 || rate == 0 {
            return 0;
        }
        let share = u64::from(rate) * its as u64 / all as u64;
        u32::try_from(share).unwrap_or(rate).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(line: &str) -> String {
        orders(line.as_bytes()).unwrap_err()
    }

    fn with(target: &str) -> String {
        format!(r#"{{"targets":[{target}],"packets_per_second":10}}"#)
    }

    const GOOD: &str = r#"{"id":"a","device":"d","gid":"::ffff:10.0.0.1","qpn":17,"qkey":1}"#;

    #[test]
    fn orders_are_told_apart_by_port() {
        let second = GOOD.replace("\"a\"", "\"b\"").replace("\"d\"", "\"e\"");
        let third = GOOD.replace("\"a\"", "\"c\"");
        let line = with(&format!("{GOOD},{second},{third}"));
        let checked = orders(line.as_bytes()).unwrap();
        let place = |device: &str| Place {
            device: device.into(),
            port: 1,
        };
        assert_eq!(checked.aims[&place("d")].len(), 2);
        assert_eq!(checked.share(&place("d")), 6);
        assert_eq!(checked.share(&place("e")), 3);
        assert_eq!(checked.share(&place("f")), 0);
    }

    #[test]
    fn probers_are_named_by_gid_and_without_them_everybody_is_answered() {
        let with = |probers: &str| {
            let line = format!(r#"{{"targets":[],"packets_per_second":1{probers}}}"#);
            orders(line.as_bytes()).map(|checked| checked.probers)
        };
        assert_eq!(with(""), Ok(None));
        assert_eq!(with(r#","probers":[]"#), Ok(Some(BTreeSet::new())));
        let gid: Ipv6Addr = "::ffff:10.0.0.2".parse().unwrap();
        let given = with(r#","probers":["::ffff:a00:2"]"#);
        assert_eq!(given, Ok(Some([gid].into())));
        let bare = with(r#","probers":["10.0.0.2"]"#).unwrap_err();
        assert!(
            bare.contains("10.0.0.2") && bare.contains("give a GID"),
            "{bare}"
        );
        let many = vec!["\"::1\""; PROBERS_MAX + 1].join(",");
        let many = with(&format!(",\"probers\":[{many}]")).unwrap_err();
        assert!(many.contains("at most 4096"), "{many}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, says) in [
            ("x".to_owned(), "not understood"),
            (with(&GOOD.replace("17", "1")), "queue pair"),
            (with(&GOOD.replace("10.0.0.1", "10.0.0")), "GID"),
            (with(&GOOD.replace("\"a\"", "\"\"")), "id of 1"),
            (with(&format!("{GOOD},{GOOD}")), "another has this id"),
            (
                with(&GOOD.replace("1}", "1,\"flow_label\":1048576}")),
                "20 bits",
            ),
            (with(&GOOD.replace("1}", "1,\"hop_limit\":0}")), "hop limit"),
        ] {
            assert!(refused(&line).contains(says), "{line}: {}", refused(&line));
        }
    }

    #[test]
    fn a_line_too_long_is_said_once_and_the_next_is_read() {
        let mut lines = Lines::new(4);
        let mut got = lines.push(b"abc");
        got.extend(lines.push(b"defgh"));
        got.extend(lines.push(b"ijk\nlm\n\n n"));
        assert_eq!(got.len(), 2);
        assert!(got[0].is_err());
        assert_eq!(got[1], Ok(b"lm".to_vec()));
        assert_eq!(lines.push(b"o\n"), [Ok(b" no".to_vec())]);
    }

    proptest! {
        #[test]
        fn anything_may_be_said(line in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(checked) = orders(&line) {
                prop_assert!(checked.aims.values().all(|aims| !aims.is_empty()));
            }
        }

        #[test]
        fn wherever_the_stream_is_cut_the_lines_are_the_same(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(b' ')], 0..200),
            cuts in prop::collection::vec(0_usize..200, 0..10),
        ) {
            let whole = Lines::new(8).push(&bytes);
            let mut lines = Lines::new(8);
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut got = Vec::new();
            let mut from = 0;
            for cut in cuts {
                got.extend(lines.push(&bytes[from..cut]));
                from = cut;
            }
            prop_assert_eq!(got, whole);
        }
    }
}
