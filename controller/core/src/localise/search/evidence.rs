//! What speaks for each fault: what would be lost without it, and what could take its place.

use super::{GAIN_MIN, Search};
use crate::localise::{Fault, Number};
use std::collections::BTreeSet;

impl Search<'_> {
    pub(super) fn faults(&mut self) -> Vec<Fault> {
        let mut claimed = BTreeSet::new();
        let mut faults: Vec<Fault> = Vec::new();
        for element in self.bad() {
            if !claimed.contains(&element) {
                let (fault, class) = self.fault(element);
                claimed.extend(class);
                faults.push(fault);
            }
        }
        faults.sort_by(|a, b| {
            b.log_odds
                .total_cmp(&a.log_odds)
                .then(a.elements.cmp(&b.elements))
        });
        faults
    }

    /// The evidence for one bad element: what would be lost without it, and what could take its place.
    fn fault(&mut self, element: Number) -> (Fault, Vec<Number>) {
        let (flows, sent, bad) = self.crossed(element);
        let level = self.level[element];
        self.apply(element, 0);
        let ours = self.best[element].gain;
        let kind = |e: Number| std::mem::discriminant(&self.seen.elements[e]);
        let class: Vec<Number> = self
            .seen
            .numbers
            .values()
            .copied()
            .filter(|e| kind(*e) == kind(element) && self.level[*e] == 0 && !self.given[*e])
            .filter(|e| (self.best[*e].gain - ours).abs() <= GAIN_MIN)
            .collect();
        // A switch all of whose flows take this one link is the same place by another name.
        let same_place = |e: Number| {
            kind(e) != kind(element)
                && class.iter().any(|c| {
                    self.flows_of[e] == self.flows_of[*c] && self.stages_of[e] == self.stages_of[*c]
                })
        };
        let (mut next, mut next_gain) = (None, 0.0);
        let others = self.seen.numbers.values();
        for other in others.filter(|e| !class.contains(e) && !same_place(**e)) {
            if self.best[*other].gain > next_gain {
                (next, next_gain) = (Some(self.seen.elements[*other]), self.best[*other].gain);
            }
        }
        self.apply(element, level);
        let log_odds = ours - next_gain;
        let fault = Fault {
            elements: class.iter().map(|e| self.seen.elements[*e]).collect(),
            loss: if sent > 0.0 { bad / sent } else { 0.0 },
            confidence: 1.0 / (1.0 + (-log_odds).exp()),
            log_odds,
            next,
            flows,
            sent,
            bad,
        };
        (fault, class)
    }

    /// Flows that crossed an element, their packets and the bad ones, each as probable as it is that the flow
    /// took a path through it.
    fn crossed(&self, element: Number) -> (f64, f64, f64) {
        let mut sums = (0.0, 0.0, 0.0);
        let mut add = |flow: usize, share: f64| {
            let flow = &self.seen.flows[flow];
            sums.0 += share;
            sums.1 += share * flow.sent as f64;
            sums.2 += share * flow.bad as f64;
        };
        for flow in &self.flows_of[element] {
            add(*flow, 1.0);
        }
        for (stage, through) in &self.stages_of[element] {
            for flow in &self.flows_in[*stage] {
                let likelihood = |path: &usize| {
                    self.likelihood[*flow][self.paths[*stage][*path].max(self.known[*flow])]
                };
                let ours: f64 = through.iter().map(likelihood).sum();
                let all: f64 = (0..self.paths[*stage].len()).map(|p| likelihood(&p)).sum();
                if all > 0.0 {
                    add(*flow, ours / all);
                }
            }
        }
        sums
    }
}
