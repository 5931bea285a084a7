//! 007's voting (Arzani et al., NSDI 2018), the baseline beside the joint likelihood.
//!
//! Each flow with a bad packet gives one vote, in equal parts to the links of its path (where the path
//! is unknown, in equal parts to its candidates). Then the link with the most votes is blamed, the flows
//! that cross it are taken out with their votes, and so on until no link has `share_min` of all votes.
//! It knows links only, and no flow that crossed a link unharmed speaks for the link.

use super::{Element, Number, Observations};
use std::collections::BTreeSet;

/// The share of all votes at which the published procedure stops.
pub const SHARE_MIN: f64 = 0.01;

/// Links blamed, in the order of their votes.
#[must_use]
pub fn blame(seen: &Observations, share_min: f64) -> Vec<Element> {
    let mut votes = vec![0.0; seen.elements.len()];
    let mut ballots: Vec<Ballot> = seen
        .flows
        .iter()
        .filter(|f| f.bad > 0)
        .map(|f| ballot(seen, &f.known, &seen.stages[f.stage]))
        .collect();
    // Loss that a switch counts is explained already.
    ballots.retain(|b| {
        !b.iter()
            .any(|(e, _)| seen.counted.contains_key(&seen.elements[*e]))
    });
    let mut of: Vec<Vec<usize>> = vec![Vec::new(); votes.len()];
    for (n, ballot) in ballots.iter().enumerate() {
        for (element, vote) in ballot {
            votes[*element] += vote;
            of[*element].push(n);
        }
    }
    let total: f64 = votes.iter().sum();
    let mut counted_out = vec![false; ballots.len()];
    let mut blamed = Vec::new();
    let mut left: BTreeSet<Element> = seen.numbers.keys().copied().collect();
    loop {
        let mut top: Option<(Element, Number)> = None;
        for element in &left {
            let number = seen.numbers[element];
            if top.is_none_or(|(_, t)| votes[number] > votes[t]) {
                top = Some((*element, number));
            }
        }
        let Some((element, number)) =
            top.filter(|(_, n)| votes[*n] > 0.0 && votes[*n] >= share_min * total)
        else {
            return blamed;
        };
        left.remove(&element);
        blamed.push(element);
        for n in &of[number] {
            if !std::mem::replace(&mut counted_out[*n], true) {
                for (element, vote) in &ballots[*n] {
                    votes[*element] = (votes[*element] - vote).max(0.0);
                }
            }
        }
        votes[number] = 0.0;
    }
}

/// A flow's vote, by link.
type Ballot = Vec<(Number, f64)>;

fn ballot(seen: &Observations, known: &[Number], candidates: &[Vec<Number>]) -> Ballot {
    let link = |e: &&Number| matches!(seen.elements[**e], Element::Link(_));
    let mut ballot = Ballot::new();
    for path in candidates {
        let links: Vec<Number> = known.iter().chain(path).filter(link).copied().collect();
        let vote = 1.0 / (links.len() as f64 * candidates.len() as f64);
        ballot.extend(links.into_iter().map(|l| (l, vote)));
    }
    ballot.sort_by_key(|(link, _)| *link);
    ballot.dedup_by(|b, a| {
        let same = a.0 == b.0;
        a.1 += if same { b.1 } else { 0.0 };
        same
    });
    ballot
}
