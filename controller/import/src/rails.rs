//! Rails: in a rail-optimised fabric the NICs of one number of all hosts share their leaves.

use crate::fabric::{End, Fabric};
use crate::finding::{Finding, Kind};
use crate::graph::{Graph, Tier};
use crate::names;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Adapters of a leaf that make a majority at least.
const ADAPTERS_MIN: usize = 4;

/// The leaves of one rail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rail<'a> {
    /// Number of the NIC in its host, from 0.
    pub rail: u32,
    pub leaves: Vec<&'a str>,
    /// NICs of this number on these leaves.
    pub adapters: usize,
}

/// A NIC's port on a leaf.
struct Adapter<'a> {
    host: &'a End,
    leaf: &'a End,
    rail: u32,
}

/// The rails; empty if the fabric is not built in rails.
#[must_use]
pub fn rails<'a>(fabric: &'a Fabric, graph: &Graph<'_>) -> Vec<Rail<'a>> {
    let adapters = adapters(fabric, graph);
    let mut rails: BTreeMap<u32, Rail<'a>> = BTreeMap::new();
    for (leaf, (rail, count)) in leaf_rails(&adapters) {
        let entry = rails.entry(rail).or_insert_with(|| Rail {
            rail,
            leaves: Vec::new(),
            adapters: 0,
        });
        entry.leaves.push(leaf);
        entry.adapters += count;
    }
    rails.into_values().collect()
}

fn adapters<'a>(fabric: &'a Fabric, graph: &Graph<'_>) -> Vec<Adapter<'a>> {
    let adapter = |host: &'a End, leaf: &'a End| {
        let placed = graph.tier_of(&host.node) == Some(Tier::Host)
            && graph.tier_of(&leaf.node) == Some(Tier::Leaf);
        let device = host.port.split('/').next()?;
        let rail = names::rail(device)?;
        placed.then_some(Adapter { host, leaf, rail })
    };
    let either = |l: &'a crate::fabric::Link| adapter(&l.a, &l.b).or_else(|| adapter(&l.b, &l.a));
    fabric.links.iter().filter_map(either).collect()
}

/// The rail of each leaf, with its adapters of that rail. Empty if fewer than half of the leaves have
/// one, or all have the same: then the fabric is not built in rails.
fn leaf_rails<'a>(adapters: &[Adapter<'a>]) -> BTreeMap<&'a str, (u32, usize)> {
    let mut votes: BTreeMap<&str, BTreeMap<u32, usize>> = BTreeMap::new();
    for a in adapters {
        *votes
            .entry(a.leaf.node.as_str())
            .or_default()
            .entry(a.rail)
            .or_default() += 1;
    }
    let leaves = votes.len();
    let clear = votes.into_iter().filter_map(|(leaf, votes)| {
        let all: usize = votes.values().sum();
        let (rail, count) = votes.into_iter().max_by_key(|(_, count)| *count)?;
        (all >= ADAPTERS_MIN && count * 4 >= all * 3).then_some((leaf, (rail, count)))
    });
    let clear: BTreeMap<&str, (u32, usize)> = clear.collect();
    let different: BTreeSet<u32> = clear.values().map(|v| v.0).collect();
    if clear.len() * 2 < leaves || different.len() < 2 {
        return BTreeMap::new();
    }
    clear
}

/// NICs on the leaf of another rail than theirs. Only hosts that have a NIC of the leaf's rail are
/// judged: others, such as management servers, are not part of the scheme.
pub(crate) fn mismatches(fabric: &Fabric, graph: &Graph<'_>, findings: &mut Vec<Finding>) {
    let adapters = adapters(fabric, graph);
    let expected = leaf_rails(&adapters);
    let mut of_host: BTreeMap<(&str, u32), &Adapter<'_>> = BTreeMap::new();
    for a in &adapters {
        of_host.insert((a.host.node.as_str(), a.rail), a);
    }
    for a in &adapters {
        let Some((rail, count)) = expected.get(a.leaf.node.as_str()) else {
            continue;
        };
        let Some(right) = of_host.get(&(a.host.node.as_str(), *rail)) else {
            continue;
        };
        if *rail == a.rail {
            continue;
        }
        let swapped = expected.get(right.leaf.node.as_str()).map(|e| e.0) == Some(a.rail);
        let advice = if swapped {
            format!(
                "; {} is on {}: the two cables are swapped",
                right.host, right.leaf
            )
        } else {
            String::new()
        };
        let text = format!(
            "{} is NIC {} of its host and is on {}, a leaf of rail {rail} ({count} NICs){advice}",
            a.host, a.rail, a.leaf
        );
        findings.push(Finding::warning(
            Kind::RailMismatch,
            a.host.to_string(),
            text,
        ));
    }
}
