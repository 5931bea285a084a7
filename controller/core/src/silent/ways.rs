//! What flows sent and lost by the links of their paths.

use crate::flows::Flows;
use crate::ids::FlowKey;
use crate::localise::{Element, Fault};
use crate::topology::{LinkIx, Topology};
use std::collections::BTreeSet;

/// One flow's share of packets sent again over that of all flows that cross the same fault, at most: a queue pair sends
/// again what it has under way for each packet that it loses, and in the same window one has sent longer than another.
const UNEVEN: f64 = 10.0;

/// What some flows sent and lost together; of which of them it was is not known if they are several.
pub(super) struct Sent {
    pub keys: Vec<FlowKey>,
    pub sent: u64,
    pub bad: u64,
    /// It loses still.
    pub lasts: bool,
    pub outlier: Option<f64>,
}

/// The same by the links of each flow's path.
pub(super) struct Way {
    pub paths: Vec<Vec<usize>>,
    pub sent: u64,
    pub bad: u64,
    /// It loses still.
    pub lasts: bool,
    pub outlier: Option<f64>,
}

/// Paths of all flows, and whether one is not known yet; flows without any are left out.
pub(super) fn ways(sent: Vec<Sent>, flows: &mut Flows, topology: &Topology) -> (Vec<Way>, bool) {
    let mut unknown = false;
    let ways = sent.into_iter().filter_map(|flow| {
        let paths = flow.keys.iter().map(|key| path_of(key, flows, topology));
        let paths: Vec<Option<Vec<usize>>> = paths.collect();
        unknown |= paths.contains(&None);
        let paths: BTreeSet<Vec<usize>> = paths.into_iter().flatten().collect();
        (!paths.is_empty()).then(|| Way {
            paths: paths.into_iter().collect(),
            sent: flow.sent,
            bad: flow.bad,
            lasts: flow.lasts,
            outlier: flow.outlier,
        })
    });
    (ways.collect(), unknown)
}

/// `part` of `whole` of what was counted, rounded up.
pub(super) fn share(counted: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(counted) * u128::from(part);
    u64::try_from(product.div_ceil(u128::from(whole.max(1)))).unwrap_or(u64::MAX)
}

/// By link: the number of the switch that it leaves, `None` for a host's.
pub(super) fn leaves(topology: &Topology) -> Vec<Option<usize>> {
    let mut leaves = vec![None; topology.links_held()];
    for (number, (node, links)) in topology.nodes().enumerate() {
        if topology.is_switch(node) {
            for (_, link) in links {
                leaves[link.index()] = Some(number);
            }
        }
    }
    leaves
}

fn path_of(key: &FlowKey, flows: &mut Flows, topology: &Topology) -> Option<Vec<usize>> {
    let path = flows.path(key, topology)?;
    let links = path
        .ports
        .iter()
        .map(|p| topology.link(p).map(LinkIx::index));
    links.collect()
}

impl Way {
    fn crosses(&self, fault: &Fault, leaves: &[Option<usize>]) -> bool {
        let passes = |element: &Element| {
            let mut links = self.paths.iter().flatten();
            links.any(|link| match element {
                Element::Link(n) => link == n,
                Element::Device(n) => leaves.get(*link) == Some(&Some(*n)),
            })
        };
        fault.elements.iter().any(passes)
    }
}

/// Takes away what one flow alone says while it crosses a fault that more flows show: that it loses another share than
/// they do is no second fault.
pub(super) fn drop_uneven(faults: &mut Vec<Fault>, ways: &[Way], leaves: &[Option<usize>]) {
    let lossy: Vec<&Way> = ways.iter().filter(|w| w.bad > 0).collect();
    let uneven = |fault: &Fault| {
        let mut ours = lossy.iter().filter(|w| w.crosses(fault, leaves));
        let (Some(way), None) = (ours.next(), ours.next()) else {
            return false;
        };
        let share = way.bad as f64 / way.sent.max(1) as f64;
        let is_of = |of: &Fault| {
            of.flows > fault.flows && share <= UNEVEN * of.loss && way.crosses(of, leaves)
        };
        faults.iter().any(is_of)
    };
    let uneven: Vec<bool> = faults.iter().map(uneven).collect();
    let mut uneven = uneven.into_iter();
    faults.retain(|_| uneven.next() != Some(true));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(path: &[usize], bad: u64) -> Way {
        Way {
            paths: vec![path.to_vec()],
            sent: 1000,
            bad,
            lasts: true,
            outlier: None,
        }
    }

    fn fault(element: Element, flows: f64, loss: f64) -> Fault {
        Fault {
            elements: vec![element],
            loss,
            confidence: 1.0,
            log_odds: 9.0,
            next: None,
            flows,
            sent: 1000.0 * flows,
            bad: 1000.0 * flows * loss,
        }
    }

    /// Which of a switch (0, which links 1 and 2 leave) and link 5 are left, if these flows were lossy.
    #[track_caller]
    fn check(ways: &[Way], expected: &[Element]) {
        let leaves = [None, Some(0), Some(0), None, None, None];
        let mut faults = vec![
            fault(Element::Device(0), 4.0, 0.03),
            fault(Element::Link(5), 1.0, 0.1),
        ];
        drop_uneven(&mut faults, ways, &leaves);
        let left: Vec<Element> = faults.iter().flat_map(|f| f.elements.clone()).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn one_flow_that_loses_more_over_a_lossy_switch_is_no_second_fault() {
        let (switch, link) = (Element::Device(0), Element::Link(5));
        let others = || vec![way(&[0, 1], 30), way(&[0, 2], 30)];
        let with = |more: Vec<Way>| others().into_iter().chain(more).collect::<Vec<_>>();
        check(&with(vec![way(&[5, 1], 100)]), &[switch]);
        // Far more, by another way, or of two: there is something else.
        check(&with(vec![way(&[5, 1], 500)]), &[switch, link]);
        check(&with(vec![way(&[5, 3], 100)]), &[switch, link]);
        let two = vec![way(&[5, 1], 100), way(&[5, 2], 100)];
        check(&with(two), &[switch, link]);
    }
}
