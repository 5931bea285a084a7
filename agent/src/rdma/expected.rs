//! What each link ought to run at, and whether it does.
//!
//! No device tells what its link was bought for. An operator may (`rdma_expect`); otherwise a port
//! is held to the best that it ran at since the agent started, and to what more than half of the
//! ports of its board and link layer on this node run at, if at least [`PEERS_MIN`] are up. A node
//! on which every link trained low from the start is not found by that: `weir-agent scan --expect`
//! and profiles know what was ordered.

use super::sysfs::{Expected, Port};
use crate::scan::expect::rate_of;
use crate::source::{Event, Gathered, Reading, Severity};
use std::collections::BTreeMap;
use weir_wire::signal::{Entity, Signal};

/// Of two ports neither is the rule.
const PEERS_MIN: usize = 3;

/// A port as it was read.
#[derive(Debug, Clone)]
pub struct Link {
    /// `DEVICE/PORT`.
    pub entity: String,
    /// Board and link layer: what makes links comparable.
    pub kind: (String, String),
    pub port: Port,
    /// What an operator said.
    pub stated_bps: Option<u64>,
}

/// Ports remembered; with more names than that something gives each a new one.
const PORTS_MAX: usize = 1024;

/// What is known of the links of this node.
#[derive(Debug, Default)]
pub struct Judge {
    best: BTreeMap<String, Expected>,
    downgraded: BTreeMap<String, bool>,
}

/// The judgement of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub entity: &'a str,
    pub expected: Expected,
    pub downgraded: bool,
    /// It was not so before.
    pub event: Option<Event>,
}

/// Pattern of devices and bits per second of `mlx5_*=400G`; `None` if it is not of that form.
#[must_use]
pub fn stated(text: &str) -> Option<(String, u64)> {
    let (pattern, rate) = text.split_once('=')?;
    let bps = rate_of(rate).filter(|_| !pattern.is_empty())?;
    Some((pattern.to_owned(), bps))
}

impl Judge {
    /// Holds the links of all devices that were read to what they should run at.
    pub fn take(&mut self, out: &mut Gathered) {
        let links = std::mem::take(&mut out.links);
        for verdict in self.judge(&links) {
            let expected = verdict.expected;
            let values = [
                (Signal::RateExpectedBps, expected.rate_bps),
                (Signal::LanesExpected, expected.lanes.map(u64::from)),
                (Signal::LinkDowngraded, Some(verdict.downgraded.into())),
            ];
            for (signal, value) in values {
                if let Some(reading) = value.map(Reading::wide) {
                    out.put(Entity::Rdma, verdict.entity, signal, None, reading);
                }
            }
            out.events.extend(verdict.event);
        }
    }

    /// Judges the links that are up.
    pub fn judge<'a>(&mut self, links: &'a [Link]) -> Vec<Verdict<'a>> {
        if self.best.len() > PORTS_MAX {
            *self = Judge::default();
        }
        let usual = usual(links);
        links.iter().filter_map(|l| self.one(l, &usual)).collect()
    }

    fn one<'a>(
        &mut self,
        link: &'a Link,
        usual: &BTreeMap<&(String, String), Expected>,
    ) -> Option<Verdict<'a>> {
        let present = of(&link.port)?;
        let best = self.best.entry(link.entity.clone()).or_default();
        *best = most(*best, present);
        let expected = match link.stated_bps {
            Some(bps) => Expected {
                rate_bps: Some(bps),
                lanes: None,
            },
            None => most(*best, usual.get(&link.kind).copied().unwrap_or_default()),
        };
        let shortfall = link.port.shortfall(expected);
        let downgraded = shortfall.is_some();
        let before = self.downgraded.insert(link.entity.clone(), downgraded);
        let event = match (before, shortfall) {
            (Some(false), Some(words)) => Some(event(
                &link.entity,
                "link_downgraded",
                Severity::Warning,
                &words,
                "Clean or replace cable and optic; see what both ends offer.",
            )),
            (Some(true), None) => Some(event(
                &link.entity,
                "link_restored",
                Severity::Info,
                "runs as expected again",
                "",
            )),
            _ => None,
        };
        Some(Verdict {
            entity: &link.entity,
            expected,
            downgraded,
            event,
        })
    }
}

/// What a port runs at; `None` unless it is up.
fn of(port: &Port) -> Option<Expected> {
    let rate = port.trained().filter(|_| port.up() == Some(true))?;
    Some(Expected {
        rate_bps: Some(rate.bps),
        lanes: Some(rate.lanes),
    })
}

fn most(a: Expected, b: Expected) -> Expected {
    Expected {
        rate_bps: a.rate_bps.max(b.rate_bps),
        lanes: a.lanes.max(b.lanes),
    }
}

/// What more than half of the links of a kind run at.
fn usual(links: &[Link]) -> BTreeMap<&(String, String), Expected> {
    let mut kinds: BTreeMap<&(String, String), Vec<Expected>> = BTreeMap::new();
    for link in links {
        kinds.entry(&link.kind).or_default().extend(of(&link.port));
    }
    kinds.retain(|_, rates| rates.len() >= PEERS_MIN);
    let usual = kinds.into_iter().map(|(kind, rates)| {
        let expected = Expected {
            rate_bps: majority(rates.iter().filter_map(|r| r.rate_bps), rates.len()),
            lanes: majority(rates.iter().filter_map(|r| r.lanes), rates.len()),
        };
        (kind, expected)
    });
    usual.collect()
}

/// The value that more than half of `all` have.
fn majority<T: Ord>(values: impl Iterator<Item = T>, all: usize) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let found = counts.into_iter().find(|(_, count)| 2 * count > all);
    found.map(|(value, _)| value)
}

fn event(entity: &str, name: &'static str, severity: Severity, words: &str, action: &str) -> Event {
    Event {
        source: "rdma",
        name,
        subject: entity.to_owned(),
        code: None,
        severity,
        text: format!("{entity} {words}"),
        action: action.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::text::{Rate, State};
    use proptest::prelude::*;
    use std::sync::Arc;

    const G: u64 = 1_000_000_000;

    fn port(gigabits: u64, lanes: u8, up: bool) -> Port {
        Port {
            number: 1,
            state: Some(State {
                number: if up { 4 } else { 1 },
                name: "x".into(),
            }),
            physical: None,
            rate: Some(Rate {
                bps: gigabits * G,
                lanes,
                generation: None,
            }),
            link_layer: None,
            gids: Arc::default(),
            netdev: None,
        }
    }

    /// Judges ports of one board; the entities are their places.
    fn judge(judge: &mut Judge, ports: &[Port]) -> Vec<(String, bool, Option<&'static str>)> {
        let links: Vec<Link> = ports
            .iter()
            .enumerate()
            .map(|(n, port)| Link {
                entity: format!("mlx5_{n}/1"),
                kind: ("MT_0000000838".into(), "InfiniBand".into()),
                port: port.clone(),
                stated_bps: None,
            })
            .collect();
        let verdicts = judge.judge(&links).into_iter();
        verdicts
            .map(|v| (v.entity.to_owned(), v.downgraded, v.event.map(|e| e.name)))
            .collect()
    }

    #[test]
    fn a_link_that_falls_below_its_best_is_an_event_once_and_so_is_its_return() {
        let mut state = Judge::default();
        let mut at = |gigabits, lanes, up| {
            let verdicts = judge(&mut state, &[port(gigabits, lanes, up)]);
            verdicts
                .into_iter()
                .next()
                .map(|(_, bad, event)| (bad, event))
        };
        assert_eq!(
            at(100, 4, true),
            Some((false, None)),
            "nothing better is known"
        );
        assert_eq!(at(400, 4, true), Some((false, None)));
        assert_eq!(at(400, 4, false), None, "down is not downgraded");
        assert_eq!(at(200, 2, true), Some((true, Some("link_downgraded"))));
        assert_eq!(at(200, 2, true), Some((true, None)));
        assert_eq!(at(400, 4, true), Some((false, Some("link_restored"))));
        assert_eq!(at(400, 2, true), Some((true, Some("link_downgraded"))));
    }

    #[test]
    fn the_odd_one_among_its_kind_is_told_from_the_start() {
        let mut ports = vec![port(400, 4, true); 7];
        ports.push(port(200, 4, true));
        let found = judge(&mut Judge::default(), &ports);
        let bad: Vec<&str> = found.iter().filter(|v| v.1).map(|v| v.0.as_str()).collect();
        assert_eq!(bad, ["mlx5_7/1"]);
        assert!(found.iter().all(|v| v.2.is_none()), "it did not happen now");
        // Half and half, or two alone, say nothing.
        for ports in [[400, 400, 200, 200].as_slice(), &[400, 200]] {
            let ports: Vec<Port> = ports.iter().map(|g| port(*g, 4, true)).collect();
            assert!(judge(&mut Judge::default(), &ports).iter().all(|v| !v.1));
        }
    }

    #[test]
    fn what_an_operator_says_counts_alone() {
        let slow = port(200, 2, true);
        let mut state = Judge::default();
        judge(&mut state, &[port(400, 4, true)]);
        let link = |stated| Link {
            entity: "mlx5_0/1".into(),
            kind: ("b".into(), "Ethernet".into()),
            port: slow.clone(),
            stated_bps: Some(stated),
        };
        assert!(!state.judge(&[link(200 * G)])[0].downgraded);
        let links = [link(400 * G)];
        let verdict = state.judge(&links).remove(0);
        let event = verdict.event.unwrap();
        assert_eq!(event.text, "mlx5_0/1 runs at 200 of 400 Gb/s");
        assert_eq!((event.severity, event.source), (Severity::Warning, "rdma"));
    }

    proptest! {
        /// Whatever links do: events alternate, and the fastest is never downgraded.
        #[test]
        fn events_alternate(rounds in prop::collection::vec(prop::collection::vec((prop::sample::select(vec![100u64, 200, 400]), any::<bool>()), 4), 1..30)) {
            let mut state = Judge::default();
            let mut last: BTreeMap<String, &str> = BTreeMap::new();
            for round in rounds {
                let ports: Vec<Port> = round.iter().map(|(g, up)| port(*g, 4, *up)).collect();
                for (place, (entity, bad, event)) in judge(&mut state, &ports).into_iter().enumerate() {
                    if let Some(event) = event {
                        prop_assert_eq!(event == "link_downgraded", bad);
                        let before = last.insert(entity, event);
                        prop_assert!(before != Some(event), "{place}");
                    }
                }
                for (port, verdict) in ports.iter().filter(|p| p.up() == Some(true)).zip(judge(&mut state, &ports)) {
                    prop_assert!(port.rate.as_ref().unwrap().bps < 400 * G || !verdict.1);
                    prop_assert!(verdict.2.is_none(), "the same again is no news");
                }
            }
        }
    }
}
