//! The search for the most probable set of faults: greedy, with the joint likelihood kept up to date.

mod evidence;

use super::{Element, Explanation, LOSSES, Model, NO_STAGE, Number, Observations};
use std::collections::BTreeSet;

/// Level 0 is good, level n has `LOSSES[n - 1]`.
const LEVELS: usize = LOSSES.len() + 1;

/// Moves of one search. A fault takes one or two; more faults than this are no longer single faults.
const MOVES_MAX: usize = 128;

/// Factors of a loss over which it is averaged: together they reach from one of [`LOSSES`] to the next.
const WIDTH: [f64; 3] = [0.6, 1.0, 1.7];

/// A gain below this is rounding (log-likelihoods of 100,000 flows are summed).
const GAIN_MIN: f64 = 1e-6;

/// Loss of good paths: no estimate is outside, whatever was seen.
const NOISE: std::ops::RangeInclusive<f64> = 1e-7..=1e-2;

/// By level: how many candidate paths have it.
type Counts = [u16; LEVELS];

pub(super) fn explain(seen: &Observations, model: &Model) -> Explanation {
    let all = seen.flows.iter().fold((0.0, 0.0), |(b, s), f| {
        (b + f.bad as f64, s + f.sent as f64)
    });
    let mut noise = rate(all.0, all.1);
    // What is left over once the faults are known is noise; it shows smaller faults in turn.
    let mut search = Search::new(seen, model, noise);
    search.climb();
    for _ in 0..2 {
        let again = search.noise();
        if (again / noise).ln().abs() < 0.2 {
            break;
        }
        noise = again;
        search = Search::new(seen, model, noise);
        search.climb();
    }
    let faults = search.faults();
    Explanation {
        faults,
        noise,
        moves: search.moves,
    }
}

fn rate(bad: f64, sent: f64) -> f64 {
    ((bad + 0.5) / (sent + 1.0)).clamp(*NOISE.start(), *NOISE.end())
}

/// The best that can be made of one element.
#[derive(Debug, Clone, Copy)]
struct Move {
    to: usize,
    gain: f64,
}

pub(super) struct Search<'a> {
    seen: &'a Observations,
    model: &'a Model,
    /// By element: its level, and whether that is given.
    level: Vec<usize>,
    given: Vec<bool>,
    /// By element: whether a flow that may have passed it lost anything.
    suspect: Vec<bool>,
    best: Vec<Move>,
    /// By element: the flows that certainly pass it, and its paths in each stage.
    flows_of: Vec<Vec<usize>>,
    stages_of: Vec<Vec<(usize, Vec<usize>)>>,
    /// By stage: its flows, the level of each path, how many have each.
    flows_in: Vec<Vec<usize>>,
    paths: Vec<Vec<usize>>,
    counts: Vec<Counts>,
    /// By stage: log-likelihood of its flows with other counts, as far as that was asked for.
    weighed: Vec<Vec<(Counts, f64)>>,
    /// By flow: likelihood of what it saw at each level, over the greatest of them.
    likelihood: Vec<[f64; LEVELS]>,
    /// By flow: probability that it is an outlier.
    outlier: Vec<f64>,
    /// By flow: what an outlier would make of it, times that.
    own: Vec<f64>,
    /// By flow: the level of what it certainly passed.
    known: Vec<usize>,
    /// By flow: log-likelihood, were that level another.
    log: Vec<[f64; LEVELS]>,
    moves: usize,
}

impl<'a> Search<'a> {
    pub(super) fn new(seen: &'a Observations, model: &'a Model, noise: f64) -> Search<'a> {
        let (elements, flows, stages) = (seen.elements.len(), seen.flows.len(), seen.stages.len());
        let mut search = Search {
            seen,
            model,
            level: vec![0; elements],
            given: vec![false; elements],
            suspect: vec![false; elements],
            best: vec![Move { to: 0, gain: 0.0 }; elements],
            flows_of: vec![Vec::new(); elements],
            stages_of: vec![Vec::new(); elements],
            flows_in: vec![Vec::new(); stages],
            paths: seen.stages.iter().map(|s| vec![0; s.len()]).collect(),
            counts: vec![[0; LEVELS]; stages],
            weighed: vec![Vec::new(); stages],
            likelihood: Vec::with_capacity(flows),
            outlier: Vec::with_capacity(flows),
            own: Vec::with_capacity(flows),
            known: vec![0; flows],
            log: vec![[0.0; LEVELS]; flows],
            moves: 0,
        };
        // The loss of a link is anywhere between two of the sizes, and not the same for each flow.
        let logs: [[(f64, f64); WIDTH.len()]; LEVELS] = std::array::from_fn(|level| {
            WIDTH.map(|width| {
                let loss = noise
                    + if level == 0 {
                        0.0
                    } else {
                        LOSSES[level - 1] * width
                    };
                (loss.ln(), (-loss).ln_1p())
            })
        });
        for (n, flow) in seen.flows.iter().enumerate() {
            let (bad, good) = (flow.bad as f64, (flow.sent - flow.bad) as f64);
            let logs = logs.map(|level| level.map(|(lost, kept)| bad * lost + good * kept));
            let top = logs
                .iter()
                .flatten()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            let likelihood = logs.map(|level| {
                level.iter().map(|l| (l - top).exp()).sum::<f64>() / WIDTH.len() as f64
            });
            let own = likelihood.iter().sum::<f64>() / LEVELS as f64;
            search.likelihood.push(likelihood);
            let outlier = flow.outlier.unwrap_or(model.outliers);
            search.outlier.push(outlier);
            search.own.push(outlier * own);
            search.flows_in[flow.stage].push(n);
            for element in &flow.known {
                search.flows_of[*element].push(n);
                search.suspect[*element] |= flow.bad > 0;
            }
        }
        for (stage, paths) in seen.stages.iter().enumerate() {
            if search.flows_in[stage].is_empty() {
                continue;
            }
            let suspect = search.flows_in[stage]
                .iter()
                .any(|f| seen.flows[*f].bad > 0);
            for (path, elements) in paths.iter().enumerate() {
                for element in elements {
                    search.suspect[*element] |= suspect;
                    let of = &mut search.stages_of[*element];
                    match of.last_mut().filter(|(s, _)| *s == stage) {
                        Some((_, through)) => through.push(path),
                        None => of.push((stage, vec![path])),
                    }
                }
            }
            search.count(stage);
        }
        search.take_as_given();
        for flow in 0..flows {
            search.weigh(flow);
        }
        for element in 0..elements {
            search.best[element] = search.look(element);
        }
        search
    }

    /// Puts the loss that switches count into the state.
    fn take_as_given(&mut self) {
        for (element, loss) in &self.seen.counted {
            let Some(number) = self.seen.numbers.get(element) else {
                continue;
            };
            let off = |l: &f64| (l / loss).ln().abs();
            let nearest =
                (1..LEVELS).min_by(|a, b| off(&LOSSES[a - 1]).total_cmp(&off(&LOSSES[b - 1])));
            self.given[*number] = true;
            self.put(*number, nearest.unwrap_or(0));
        }
    }

    /// Counts the paths of a stage by level.
    fn count(&mut self, stage: usize) {
        let mut counts = [0; LEVELS];
        for level in &self.paths[stage] {
            counts[*level] += 1;
        }
        self.counts[stage] = counts;
        self.weighed[stage].clear();
    }

    /// Log-likelihood of a flow over paths with these levels, none better than `known`.
    fn log(&self, flow: usize, known: usize, counts: &Counts) -> f64 {
        let likelihood = &self.likelihood[flow];
        let (share, own) = (1.0 - self.outlier[flow], self.own[flow]);
        if self.seen.flows[flow].stage == NO_STAGE {
            return (share * likelihood[known] + own).ln();
        }
        let (mut mixture, mut paths) = (0.0, 0.0);
        for (level, count) in counts.iter().enumerate() {
            mixture += f64::from(*count) * likelihood[level.max(known)];
            paths += f64::from(*count);
        }
        (share * mixture / paths + own).ln()
    }

    /// Fills a flow's table.
    fn weigh(&mut self, flow: usize) {
        let counts = self.counts[self.seen.flows[flow].stage];
        self.log[flow] = std::array::from_fn(|known| self.log(flow, known, &counts));
    }

    /// Level of the worst of some elements, were one of them at another level.
    fn worst(&self, of: &[Number], changed: Number, to: usize) -> usize {
        let level = |e: &Number| if *e == changed { to } else { self.level[*e] };
        of.iter().map(level).max().unwrap_or(0)
    }

    /// What the likelihood and the prior would gain, were an element at each of the levels.
    pub(super) fn gains(&mut self, element: Number) -> [f64; LEVELS] {
        let from = self.level[element];
        let mut gains: [f64; LEVELS] =
            std::array::from_fn(|to| self.cost(element, from) - self.cost(element, to));
        for flow in &self.flows_of[element] {
            let known = self.known[*flow];
            let rest = if known == 0 || from < known {
                known
            } else {
                self.worst(&self.seen.flows[*flow].known, element, 0)
            };
            let log = &self.log[*flow];
            for (to, gain) in gains.iter_mut().enumerate() {
                *gain += log[to.max(rest)] - log[known];
            }
        }
        for n in 0..self.stages_of[element].len() {
            let (stage, ref through) = self.stages_of[element][n];
            // Its paths by the level of what else is on them, and all others by their level.
            let (mut rest, mut others) = ([0; LEVELS], self.counts[stage]);
            for path in through {
                let level = self.paths[stage][*path];
                others[level] -= 1;
                let alone = level == 0 || from < level;
                rest[if alone {
                    level
                } else {
                    self.worst(&self.seen.stages[stage][*path], element, 0)
                }] += 1;
            }
            let now = self.stage_log(stage, self.counts[stage]);
            for (to, gain) in gains.iter_mut().enumerate() {
                let mut counts = others;
                for (level, paths) in rest.iter().enumerate() {
                    counts[level.max(to)] += paths;
                }
                *gain += self.stage_log(stage, counts) - now;
            }
        }
        gains
    }

    /// Log-likelihood of all flows of a stage with such paths.
    fn stage_log(&mut self, stage: usize, counts: Counts) -> f64 {
        if let Some((_, log)) = self.weighed[stage].iter().find(|(c, _)| *c == counts) {
            return *log;
        }
        let flows = self.flows_in[stage].iter();
        let log = flows.map(|f| self.log(*f, self.known[*f], &counts)).sum();
        self.weighed[stage].push((counts, log));
        log
    }

    /// What the prior takes for a level.
    fn cost(&self, element: Number, level: usize) -> f64 {
        let prior = match self.seen.elements[element] {
            Element::Link(_) => self.model.prior_link,
            Element::Device(_) => self.model.prior_device,
        };
        if level == 0 || self.given[element] {
            0.0
        } else {
            ((1.0 - prior) / prior).ln() + (LOSSES.len() as f64).ln()
        }
    }

    /// The best move of an element, among all levels but its own.
    fn look(&mut self, element: Number) -> Move {
        let mut best = Move {
            to: self.level[element],
            gain: f64::NEG_INFINITY,
        };
        let from = self.level[element];
        // Where nothing was lost there is nothing to gain.
        if from == 0 && !self.suspect[element] {
            return best;
        }
        for (to, gain) in self.gains(element).into_iter().enumerate() {
            if to != from && gain > best.gain {
                best = Move { to, gain };
            }
        }
        best
    }

    /// Puts an element at a level, without looking at what follows; gives the flows that changed.
    fn put(&mut self, element: Number, to: usize) -> Vec<usize> {
        self.level[element] = to;
        let mut changed = self.flows_of[element].clone();
        for flow in &changed {
            self.known[*flow] = self.worst(&self.seen.flows[*flow].known, element, to);
            self.weighed[self.seen.flows[*flow].stage].clear();
        }
        for n in 0..self.stages_of[element].len() {
            let (stage, ref through) = self.stages_of[element][n];
            for path in through {
                self.paths[stage][*path] = self.worst(&self.seen.stages[stage][*path], element, to);
            }
            self.count(stage);
            changed.extend(&self.flows_in[stage]);
        }
        changed
    }

    /// Puts an element at a level, and looks again at all that shares a flow with it.
    pub(super) fn apply(&mut self, element: Number, to: usize) {
        let changed = self.put(element, to);
        let (mut elements, mut stages) = (BTreeSet::from([element]), BTreeSet::new());
        for flow in changed {
            self.weigh(flow);
            let flow = &self.seen.flows[flow];
            elements.extend(&flow.known);
            if flow.stage != NO_STAGE && stages.insert(flow.stage) {
                elements.extend(self.seen.stages[flow.stage].iter().flatten());
            }
        }
        for element in elements {
            self.best[element] = self.look(element);
        }
    }

    /// The element with the best move; of equals the first in the order of elements.
    fn top(&self) -> Option<(Number, Move)> {
        let elements = self.seen.numbers.values();
        let mut top: Option<(Number, Move)> = None;
        for element in elements {
            let best = self.best[*element];
            if top.is_none_or(|(_, t)| best.gain > t.gain + GAIN_MIN) {
                top = Some((*element, best));
            }
        }
        top
    }

    /// Takes the best move until none gains anything, exchanges included.
    fn climb(&mut self) {
        loop {
            while let Some((element, best)) = self.top().filter(|(_, b)| b.gain > GAIN_MIN) {
                if self.moves == MOVES_MAX {
                    return;
                }
                self.moves += 1;
                self.apply(element, best.to);
            }
            if !self.bad().into_iter().any(|element| self.exchange(element)) {
                return;
            }
        }
    }

    /// Elements that are bad, and not as given.
    fn bad(&self) -> Vec<Number> {
        let bad = |e: &Number| self.level[*e] > 0 && !self.given[*e];
        self.seen.numbers.values().copied().filter(bad).collect()
    }

    /// Puts another element in the place of one, if that is better; else leaves it.
    fn exchange(&mut self, element: Number) -> bool {
        if self.moves == MOVES_MAX {
            return false;
        }
        let level = self.level[element];
        self.apply(element, 0);
        let ours = self.best[element].gain;
        let better = self
            .top()
            .filter(|(e, b)| *e != element && b.gain > ours + GAIN_MIN);
        let (put, to) = better.map_or((element, level), |(e, b)| (e, b.to));
        self.moves += usize::from(better.is_some());
        self.apply(put, to);
        better.is_some()
    }

    /// Loss of paths on which nothing is bad, each flow as far as it is no outlier.
    fn noise(&self) -> f64 {
        let (mut bad, mut sent) = (0.0, 0.0);
        for (n, flow) in self.seen.flows.iter().enumerate() {
            let counts = &self.counts[flow.stage];
            if self.known[n] == 0 && counts[1..].iter().all(|c| *c == 0) {
                let ordinary =
                    (1.0 - self.outlier[n]) * self.likelihood[n][0] / self.log[n][0].exp();
                bad += ordinary * flow.bad as f64;
                sent += ordinary * flow.sent as f64;
            }
        }
        rate(bad, sent)
    }
}

#[cfg(test)]
impl Search<'_> {
    /// Log-likelihood and prior of the state, from the tables of flows.
    pub(super) fn total(&self) -> f64 {
        let flows: f64 = self
            .log
            .iter()
            .zip(&self.known)
            .map(|(log, known)| log[*known])
            .sum();
        let costs: f64 = (0..self.level.len())
            .map(|e| self.cost(e, self.level[e]))
            .sum();
        flows - costs
    }

    /// Compares all that is kept with what follows from the levels alone.
    pub(super) fn check(&mut self) {
        for (n, flow) in self.seen.flows.iter().enumerate() {
            let level = |path: &[Number]| path.iter().map(|e| self.level[*e]).max().unwrap_or(0);
            assert_eq!(self.known[n], level(&flow.known));
            let paths: Vec<usize> = self.seen.stages[flow.stage]
                .iter()
                .map(|p| level(p))
                .collect();
            assert_eq!(self.paths[flow.stage], paths);
        }
        for element in 0..self.level.len() {
            let (kept, anew) = (self.best[element], self.look(element));
            assert!(
                kept.gain == anew.gain
                    || (kept.gain - anew.gain).abs() < 1e-6 * anew.gain.abs().max(1.0)
            );
        }
    }
}
