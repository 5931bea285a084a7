//! Which links lose packets that no counter admits, from the ends of flows alone.
//!
//! What is estimated: the set of directed links and whole switches that lose packets, and how much,
//! that best explains how many packets each flow sent and how many of them went bad (were
//! retransmitted, or are probes without a reply). A flow whose path is known has passed certain links;
//! of any other only its candidates are known, one for each way that ECMP may have taken it.
//!
//! The model is Flock's (Harsh et al., CoNEXT 2023): each link is good or bad with a prior, a flow's
//! bad packets are binomial with the loss of its path, an unknown path is a mixture over candidates,
//! and the explanation is the one most probable *jointly*. Two things are added, because loss in a real
//! fabric has more than one size and not all of it is a link's fault: a bad link has one of [`LOSSES`]
//! and the path the worst of its links'; and any flow may be an outlier that loses packets for reasons
//! of its own (incast at its receiver, a slow host), so that no single flow can convict a link, unless the caller
//! knows better ([`Observations::flow_with_outlier`]). Why not
//! votes (007, [`vote`]): a vote is blind to flows that crossed a link unharmed.
//!
//! Trip condition: a link is named when the explanation with it is more probable than without, prior
//! included: two flows at least, of flows that may be outliers. The loss of good paths is estimated from the same flows. Cold start and
//! recovery: none, each call stands for itself; the caller debounces. Loss that a switch counts
//! is not silent: [`Observations::counted`] takes it as given.
//!
//! Cost: flows x path for the tables, then for each move (a link becomes good, bad, worse) only what
//! shares flows with it is weighed again. All ways of one ambiguous stage (a pair of leaves, say) that look
//! alike are weighed once for all its flows: 10,000 flows over 1,024 links took 7 ms with known paths and 29 ms
//! with 16 candidates each (`examples/localisation`, on a core shared with other work). Same input, same output.

mod search;
#[cfg(test)]
mod tests;
pub mod vote;

use std::collections::{BTreeMap, BTreeSet};

/// Losses that a bad link can have, as shares of packets, each about the triple of the one before:
/// finer steps than that no flow of some thousand packets can tell apart.
pub const LOSSES: [f64; 7] = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.5];

/// Candidate paths of one stage: three tiers with 16 x 16 ways. More say too little to be weighed.
pub const PATHS_MAX: usize = 256;

/// Observations held, so that one look ends in a fraction of a second.
pub const OBSERVATIONS_MAX: usize = 1 << 17;

/// What can be at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A directed link, by the caller's number (as of [`crate::topology::LinkIx::index`]).
    Link(usize),
    /// A switch that loses on all links that leave it, by the caller's number.
    Device(usize),
}

/// What is believed before anything was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Probability that a link is bad, in 0..1. At 10⁻⁴ a fabric of 1,000 links has a bad one a tenth of the time.
    pub prior_link: f64,
    /// The same of a whole switch.
    pub prior_device: f64,
    /// Share of flows that lose packets for reasons of their own, in 0..1.
    pub outliers: f64,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            prior_link: 1e-4,
            prior_device: 1e-5,
            outliers: 0.01,
        }
    }
}

/// Links between which ECMP chose, as given to [`Observations::stage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stage(usize);

/// Nothing is ambiguous: the one path through it has no links.
const NO_STAGE: usize = 0;

/// Number of an element among those on any path.
type Number = usize;

#[derive(Debug, Clone)]
struct Flow {
    /// Elements that it certainly passed.
    known: Vec<Number>,
    stage: usize,
    sent: u64,
    bad: u64,
    /// Probability that its losses are its own; `None`: [`Model::outliers`].
    outlier: Option<f64>,
}

/// What flows and probes saw over some window.
#[derive(Debug, Clone)]
pub struct Observations {
    /// By link: the switch that it leaves; `None`: a host.
    leaves: Vec<Option<usize>>,
    numbers: BTreeMap<Element, Number>,
    elements: Vec<Element>,
    /// Candidate paths of each stage, each sorted.
    stages: Vec<Vec<Vec<Number>>>,
    stage_numbers: BTreeMap<Vec<Vec<Number>>, usize>,
    flows: Vec<Flow>,
    counted: BTreeMap<Element, f64>,
    refused: u64,
}

impl Observations {
    /// Of a fabric with as many directed links as `leaves` has entries: the switch that each leaves,
    /// `None` for a link that leaves a host. A packet that crosses a switch leaves it by one of its links.
    #[must_use]
    pub fn new(leaves: Vec<Option<usize>>) -> Observations {
        let trivial = vec![Vec::new()];
        Observations {
            leaves,
            numbers: BTreeMap::new(),
            elements: Vec::new(),
            stage_numbers: BTreeMap::from([(trivial.clone(), NO_STAGE)]),
            stages: vec![trivial],
            flows: Vec::new(),
            counted: BTreeMap::new(),
            refused: 0,
        }
    }

    /// Notes the candidate paths between two points, all equally likely; the same ones give the same stage.
    /// `None` for none, more than [`PATHS_MAX`], or a link that there is not.
    pub fn stage(&mut self, candidates: &[&[usize]]) -> Option<Stage> {
        if candidates.is_empty() || candidates.len() > PATHS_MAX {
            return None;
        }
        let paths = candidates
            .iter()
            .map(|links| self.numbered(links))
            .collect::<Option<Vec<_>>>()?;
        Some(Stage(self.stage_of(paths)))
    }

    fn stage_of(&mut self, mut paths: Vec<Vec<Number>>) -> usize {
        paths.sort();
        let next = self.stages.len();
        let number = *self.stage_numbers.entry(paths.clone()).or_insert(next);
        if number == next {
            self.stages.push(paths);
        }
        number
    }

    /// Notes a flow over `known` links, and over one of the ways of `stage` if part of its path is unknown;
    /// `bad` of the `sent` packets were retransmitted. A series of probes over one path is a flow as well.
    /// One that says nothing (no packets) or names a link that there is not is refused and counted.
    pub fn flow(&mut self, known: &[usize], stage: Option<Stage>, sent: u64, bad: u64) {
        self.flow_with_outlier(known, stage, (sent, bad), None);
    }

    /// As [`Observations::flow`], of a flow whose losses are its own with probability `outlier`, in 0..1; `None`: as
    /// [`Model::outliers`] says. On a lossless fabric a queue pair has hardly a reason of its own to lose packets.
    pub fn flow_with_outlier(
        &mut self,
        known: &[usize],
        stage: Option<Stage>,
        (sent, bad): (u64, u64),
        outlier: Option<f64>,
    ) {
        let mut number = stage.map_or(NO_STAGE, |s| s.0);
        let room = self.flows.len() < OBSERVATIONS_MAX;
        let known = self.numbered(known);
        let (Some(known), Some(paths), true) = (
            known,
            self.stages.get(number),
            room && sent > 0 && bad <= sent,
        ) else {
            self.refused += 1;
            return;
        };
        // What is certain is not also ambiguous.
        if paths.iter().flatten().any(|e| known.contains(e)) {
            let rest = |path: &Vec<Number>| {
                let rest = path.iter().filter(|e| !known.contains(e));
                rest.copied().collect()
            };
            let paths = paths.iter().map(rest).collect();
            number = self.stage_of(paths);
        }
        self.flows.push(Flow {
            known,
            stage: number,
            sent,
            bad,
            outlier,
        });
    }

    /// Notes a loss that a switch counts and reports itself (a congested queue), as a share of packets:
    /// the link is bad at no cost to the explanation, of the size that the flows show, and not reported again.
    pub fn counted(&mut self, link: usize, loss: f64) {
        if self.leaves.get(link).is_some() && loss > 0.0 {
            self.counted.insert(Element::Link(link), loss);
        }
    }

    /// Flows that were refused: no packets, more bad than sent, an unknown link, or no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The most probable explanation.
    #[must_use]
    pub fn explain(&self, model: &Model) -> Explanation {
        search::explain(self, model)
    }

    /// Elements of a path, sorted: its links, and the switches that they leave.
    fn numbered(&mut self, links: &[usize]) -> Option<Vec<Number>> {
        let mut path = BTreeSet::new();
        for link in links {
            let device = *self.leaves.get(*link)?;
            path.insert(self.number(Element::Link(*link)));
            path.extend(device.map(|d| self.number(Element::Device(d))));
        }
        Some(path.into_iter().collect())
    }

    fn number(&mut self, element: Element) -> Number {
        let next = self.elements.len();
        let number = *self.numbers.entry(element).or_insert(next);
        if number == next {
            self.elements.push(element);
        }
        number
    }
}

/// Something that loses packets, and why it is believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// One of these; more than one only where no observation can tell them apart. In order.
    pub elements: Vec<Element>,
    /// Share of packets lost, from the flows that crossed it.
    pub loss: f64,
    /// Probability of this explanation against the next best one, in 0..=1.
    pub confidence: f64,
    /// Natural logarithm of the odds behind `confidence`.
    pub log_odds: f64,
    /// What else could be at fault, were it not for the evidence; `None`: the next best is no fault at all.
    pub next: Option<Element>,
    /// Flows that crossed it; where the path is unknown, as probable as that is.
    pub flows: f64,
    /// Packets of those flows, and how many of them went bad.
    pub sent: f64,
    pub bad: f64,
}

/// The most probable explanation of what was seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explanation {
    /// The surest first.
    pub faults: Vec<Fault>,
    /// Loss of paths with no fault on them, as a share of packets.
    pub noise: f64,
    /// Moves that the search took.
    pub moves: usize,
}
