//! How right an answer is, over many cases.

use crate::cases::{Case, Truth};
use std::collections::BTreeSet;
use weir_controller_core::localise::{Element, Explanation};

/// Sums over cases; what no observation can tell apart counts as one, for every method. A case without faults counts in `named`, where anything that is named is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    pub cases: u32,
    /// Elements named, and those of them that are at fault (or leave a switch that is).
    pub named: f64,
    pub right: f64,
    /// Faults, and how much of them was found: a switch by its name, or by its links each in part.
    pub faults: f64,
    pub found: f64,
}

impl Score {
    pub fn add(&mut self, case: &Case, named: &BTreeSet<Element>) {
        let class = |element: Element| match element {
            Element::Link(l) => Element::Link(case.link_class[l]),
            Element::Device(d) => Element::Device(case.device_class[d]),
        };
        let named: BTreeSet<Element> = named.iter().copied().map(class).collect();
        let (mut right, mut found) = (BTreeSet::new(), 0.0);
        for truth in &case.truth {
            let (whole, parts): (Element, Vec<Element>) = match truth {
                Truth::Link(l) => (class(Element::Link(*l)), Vec::new()),
                Truth::Device(d, links) => {
                    let links = links.iter().map(|l| class(Element::Link(*l)));
                    (class(Element::Device(*d)), links.collect())
                }
            };
            let hits = parts.iter().filter(|p| named.contains(p)).count() as f64;
            found += if named.contains(&whole) {
                1.0
            } else {
                hits / parts.len().max(1) as f64
            };
            right.extend(
                parts
                    .into_iter()
                    .chain([whole])
                    .filter(|e| named.contains(e)),
            );
        }
        self.cases += 1;
        self.named += named.len() as f64;
        self.right += right.len() as f64;
        self.faults += case.truth.len() as f64;
        self.found += found;
    }

    /// 1 where nothing was named.
    pub fn precision(&self) -> f64 {
        if self.named > 0.0 {
            self.right / self.named
        } else {
            1.0
        }
    }

    /// 1 where there was nothing to find.
    pub fn recall(&self) -> f64 {
        if self.faults > 0.0 {
            self.found / self.faults
        } else {
            1.0
        }
    }

    pub fn f1(&self) -> f64 {
        let (p, r) = (self.precision(), self.recall());
        if p + r > 0.0 {
            2.0 * p * r / (p + r)
        } else {
            0.0
        }
    }

    pub fn sum(mut self, other: &Score) -> Score {
        self.cases += other.cases;
        self.named += other.named;
        self.right += other.right;
        self.faults += other.faults;
        self.found += other.found;
        self
    }
}

/// All that an explanation names: of a class that cannot be told apart, every element.
pub fn named(explanation: &Explanation) -> BTreeSet<Element> {
    explanation
        .faults
        .iter()
        .flat_map(|f| f.elements.iter().copied())
        .collect()
}
