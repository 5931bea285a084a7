//! What is odd about a fabric, seen from its graph alone.
//!
//! Nobody says what was meant, so each switch is compared with its siblings: switches of its tier
//! that share at least half of its uplinks' far ends. What most siblings have is expected; a switch
//! with fewer than two siblings is not judged. Cost: links times [`SIBLINGS_MAX`] at most.

use crate::fabric::{Fabric, Role};
use crate::finding::{Finding, Kind};
use crate::graph::{Graph, Tier};
use crate::rails;
use crate::rate;
use std::collections::BTreeMap;

/// Siblings that are looked at. A pod has fewer leaves; more would tell no more.
const SIBLINGS_MAX: usize = 256;

/// Links that a majority is made of at least, where links of one switch are compared.
const LINKS_MIN: usize = 4;

/// What the reader noticed and what the graph shows, the worst first.
#[must_use]
pub fn check(fabric: &Fabric) -> Vec<Finding> {
    let graph = Graph::new(fabric);
    let mut findings = fabric.findings.clone();
    loops(fabric, &mut findings);
    wrong_tiers(&graph, &mut findings);
    for n in 0..graph.names.len() {
        asymmetry(&graph, n, &mut findings);
        slow_links(fabric, &graph, n, &mut findings);
    }
    rails::mismatches(fabric, &graph, &mut findings);
    findings.sort_by(|x, y| y.severity.cmp(&x.severity).then_with(|| x.cmp(y)));
    findings.dedup();
    findings
}

fn loops(fabric: &Fabric, findings: &mut Vec<Finding>) {
    for link in fabric.links.iter().filter(|l| l.a.node == l.b.node) {
        let text = format!(
            "{} and {} are two ports of one node with a cable between them: it carries nothing; a loopback plug was left in, or a cable went wrong",
            link.a, link.b
        );
        findings.push(Finding::warning(Kind::SelfLoop, link.a.to_string(), text));
    }
}

/// Cables between switches of one tier. Where they are many, the fabric is no tree and they are meant.
fn wrong_tiers(graph: &Graph<'_>, findings: &mut Vec<Finding>) {
    let (mut all, mut flat) = (0, Vec::new());
    for n in 0..graph.names.len() {
        for (m, links) in &graph.neighbours[n] {
            if n < *m && graph.roles[n] == Role::Switch && graph.roles[*m] == Role::Switch {
                all += 1;
                if graph.level[n].is_some() && graph.level[n] == graph.level[*m] {
                    flat.push((n, *m, links.len()));
                }
            }
        }
    }
    if flat.len() * 4 > all {
        let text = format!(
            "{} of {all} pairs of connected switches are of one tier: this is no tree of leaves and spines, and is not checked as one",
            flat.len()
        );
        findings.push(Finding::note(Kind::WrongTier, "fabric", text));
        return;
    }
    for (n, m, cables) in flat {
        let (a, b, tier) = (graph.names[n], graph.names[m], graph.tier(n).name());
        let text = format!(
            "{a} and {b} are both {tier} switches and have {cables} cable(s) between them: one of the ends belongs elsewhere"
        );
        findings.push(Finding::warning(Kind::WrongTier, a, text));
    }
}

/// The value that most have, and how many have it.
fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<(T, usize)> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}

/// Switches of the same tier that share at least half of the switch's upper neighbours.
fn siblings(graph: &Graph<'_>, n: usize) -> Vec<usize> {
    let (mut uppers, mut shared) = (0, BTreeMap::<usize, usize>::new());
    for (upper, _) in graph.uppers(n) {
        uppers += 1;
        let lower = |m: &&usize| **m != n && graph.level[**m] == graph.level[n];
        for m in graph.neighbours[upper]
            .keys()
            .filter(lower)
            .take(SIBLINGS_MAX)
        {
            *shared.entry(*m).or_default() += 1;
        }
    }
    shared
        .into_iter()
        .filter(|(_, count)| count * 2 >= uppers)
        .map(|(m, _)| m)
        .take(SIBLINGS_MAX)
        .collect()
}

fn asymmetry(graph: &Graph<'_>, n: usize, findings: &mut Vec<Finding>) {
    let siblings = siblings(graph, n);
    if siblings.len() < 2 {
        return;
    }
    let mine: BTreeMap<usize, usize> = graph.uppers(n).map(|(m, l)| (m, l.len())).collect();
    // For each upper switch, the numbers of cables that siblings have to it.
    let mut theirs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut totals = Vec::new();
    for sibling in &siblings {
        let mut total = 0;
        for (upper, links) in graph.uppers(*sibling) {
            theirs.entry(upper).or_default().push(links.len());
            total += links.len();
        }
        totals.push(total);
    }
    let name = graph.names[n];
    let many = siblings.len();
    for (upper, cables) in mine.iter().filter(|(m, _)| !theirs.contains_key(*m)) {
        let text = format!(
            "{name} has {cables} cable(s) to {}, to which none of its {many} siblings has one",
            graph.names[*upper]
        );
        findings.push(Finding::warning(Kind::WrongCabling, name, text));
    }
    let Some((expected, holders)) = most_common(totals.into_iter()) else {
        return;
    };
    let total: usize = mine.values().sum();
    if total >= expected || holders * 2 <= many {
        return;
    }
    let mut fewer = Vec::new();
    for (upper, cables) in &theirs {
        let Some((usual, holders)) = most_common(cables.iter().copied()) else {
            continue;
        };
        let have = mine.get(upper).copied().unwrap_or(0);
        if have < usual && holders * 2 > many {
            fewer.push(format!(
                "{have} instead of {usual} to {}",
                graph.names[*upper]
            ));
        }
    }
    let shown = fewer.len().min(3);
    let more = fewer.len() - shown;
    let mut places = fewer[..shown].join(", ");
    if more > 0 {
        places = format!("{places} and {more} more");
    }
    if !places.is_empty() {
        places = format!(": {places}");
    }
    let text = format!(
        "{name} has {total} uplink(s) where {holders} of its {many} siblings have {expected}{places}"
    );
    findings.push(Finding::warning(Kind::Asymmetry, name, text));
}

/// Links of one switch, of one direction, that are slower than three quarters of the others.
fn slow_links(fabric: &Fabric, graph: &Graph<'_>, n: usize, findings: &mut Vec<Finding>) {
    if graph.roles[n] != Role::Switch {
        return;
    }
    let mut down = Vec::new();
    for (m, links) in &graph.neighbours[n] {
        if graph.tier(*m) == Tier::Host {
            down.extend(links);
        }
    }
    let up: Vec<usize> = graph.uppers(n).flat_map(|(_, l)| l).copied().collect();
    for (links, what) in [(down, "hosts"), (up, "switches above")] {
        // Rates are whole numbers of bits, far below 2^53: their bits sort as they do.
        let rates: Vec<(u64, usize)> = links
            .iter()
            .filter_map(|l| Some((fabric.links[*l].rate_bps?.to_bits(), *l)))
            .collect();
        let Some((usual, holders)) = most_common(rates.iter().map(|r| r.0)) else {
            continue;
        };
        if rates.len() < LINKS_MIN || holders * 4 < rates.len() * 3 {
            continue;
        }
        for (bits, link) in rates {
            let bps = f64::from_bits(bits);
            if bps < f64::from_bits(usual) {
                let (link, rest) = (&fabric.links[link], holders);
                let text = format!(
                    "{} - {} runs at {} where {rest} of the links of {} to {what} run at {}",
                    link.a,
                    link.b,
                    rate::spoken(bps),
                    graph.names[n],
                    rate::spoken(f64::from_bits(usual))
                );
                findings.push(Finding::warning(Kind::Downgraded, link.a.to_string(), text));
            }
        }
    }
}
