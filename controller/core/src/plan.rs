//! The route planner: spreads flows over the members of their next-hop groups, fewest changes first.
//!
//! Items are (switch, destination) because a pin moves all that a switch sends to a destination;
//! bins are the group's members, each with the whole path behind it. What stands now is an option of
//! its own: the flows of one destination may hash to several members, and a pin brings them all to
//! one. The cost is the sum of the squared utilisations of all links: convex, so evening out always
//! lowers it, also where several links are equally full and the maximum alone would not move.
//!
//! Search: from what stands today, the single move (or, if none helps, the swap of two items) that
//! lowers the cost most, until none lowers it by what is worth a pin. With elephants of like size, as
//! collectives make them, that ends at the optimum of the packing in as few moves as there are
//! items in excess; every move is one pin that somebody has to read later. A move is weighed by the
//! links that it touches; the search ends with the best so far after [`WEIGHED_MAX`] of them.

use crate::ids::{FlowKey, NodeId, PortId};
use crate::io::PinChange;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A move must lower the cost by this share of it to be worth a pin, with up to four items.
const WORTH: f64 = 0.01;
/// Moves weighed in one search: some 20 ms of a core. 100 destinations over 8 uplinks need 5,750 for
/// each change.
pub const WEIGHED_MAX: usize = 50_000;

/// All flows of one switch to one destination, which a pin moves together.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub node: NodeId,
    pub dst: Ipv4Addr,
    /// What stands now, then one for each member port that can carry it.
    pub options: Vec<Choice>,
}

/// A way for an item's flows, with the whole path of each of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Port by which they all leave; `None`: by several, as their hashes have it.
    pub port: Option<Arc<str>>,
    pub paths: Vec<(FlowKey, Vec<PortId>)>,
}

/// The links with what they can carry and what is on them that cannot be moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Load {
    pub capacity_bps: BTreeMap<PortId, f64>,
    pub fixed_bps: BTreeMap<PortId, f64>,
    pub rate_bps: BTreeMap<FlowKey, f64>,
}

/// Returns the option to take for each item, in the order of `items`; 0 is what stands.
#[must_use]
pub fn spread(items: &[Item], load: &Load, changes_max: usize) -> Vec<usize> {
    let mut bins = Bins::new(items, load);
    let mut weighed = 0;
    while let Some(step) = bins.best(items, changes_max, &mut weighed) {
        bins.take(&step);
    }
    bins.taken
}

/// Options to take for one or two items.
type Step = Vec<(usize, usize)>;

/// The links as numbers, with what the options taken put on them.
struct Bins {
    capacity: Vec<f64>,
    bps: Vec<f64>,
    /// By item and option: links and what the option puts on them, in order of links.
    adds: Vec<Vec<Vec<(usize, f64)>>>,
    taken: Vec<usize>,
    cost: f64,
}

impl Bins {
    fn new(items: &[Item], load: &Load) -> Bins {
        let links: BTreeMap<&PortId, usize> = load.capacity_bps.keys().zip(0..).collect();
        let adds = |choice: &Choice| {
            let mut adds: BTreeMap<usize, f64> = BTreeMap::new();
            for (flow, path) in &choice.paths {
                let rate = load.rate_bps.get(flow).copied().unwrap_or(0.0);
                for link in path.iter().filter_map(|p| links.get(p)) {
                    *adds.entry(*link).or_default() += rate;
                }
            }
            adds.into_iter().collect()
        };
        let mut bins = Bins {
            capacity: load.capacity_bps.values().copied().collect(),
            bps: links
                .keys()
                .map(|p| load.fixed_bps.get(*p).copied().unwrap_or(0.0))
                .collect(),
            adds: items
                .iter()
                .map(|item| item.options.iter().map(adds).collect())
                .collect(),
            taken: vec![0; items.len()],
            cost: 0.0,
        };
        for item in &bins.adds {
            for (link, bps) in item.first().into_iter().flatten() {
                bins.bps[*link] += bps;
            }
        }
        let links = bins.bps.iter().zip(&bins.capacity);
        bins.cost = links.map(|(bps, capacity)| (bps / capacity).powi(2)).sum();
        bins
    }

    fn best(&self, items: &[Item], changes_max: usize, weighed: &mut usize) -> Option<Step> {
        let single = |i: usize| (0..items[i].options.len()).map(move |o| vec![(i, o)]);
        let singles = (0..items.len()).flat_map(single);
        let pairs = (0..items.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let swaps = pairs.filter_map(|(i, j)| self.swap(items, i, j));
        self.lowest(singles, changes_max, weighed)
            .or_else(|| self.lowest(swaps, changes_max, weighed))
    }

    fn lowest(
        &self,
        steps: impl Iterator<Item = Step>,
        changes_max: usize,
        weighed: &mut usize,
    ) -> Option<Step> {
        // Of many small items each can do but little.
        let worth = self.cost * WORTH * 4.0 / self.taken.len().max(4) as f64;
        let mut best: Option<(f64, Step)> = None;
        for step in steps.take(WEIGHED_MAX.saturating_sub(*weighed)) {
            *weighed += 1;
            let limit = best.as_ref().map_or(-worth, |(gain, _)| *gain);
            let gain = self.weigh(&step);
            if gain < limit && self.changes(&step) <= changes_max {
                best = Some((gain, step));
            }
        }
        best.map(|(_, step)| step)
    }

    /// What a step adds to the cost.
    fn weigh(&self, step: &[(usize, usize)]) -> f64 {
        let mut moved: BTreeMap<usize, f64> = BTreeMap::new();
        for (item, option) in step {
            for (link, bps) in &self.adds[*item][self.taken[*item]] {
                *moved.entry(*link).or_default() -= bps;
            }
            for (link, bps) in &self.adds[*item][*option] {
                *moved.entry(*link).or_default() += bps;
            }
        }
        let square = |link: usize, bps: f64| (bps / self.capacity[link]).powi(2);
        let links = moved.into_iter();
        links
            .map(|(link, by)| square(link, self.bps[link] + by) - square(link, self.bps[link]))
            .sum()
    }

    fn take(&mut self, step: &[(usize, usize)]) {
        self.cost += self.weigh(step);
        for (item, option) in step {
            for (link, bps) in &self.adds[*item][self.taken[*item]] {
                self.bps[*link] -= bps;
            }
            for (link, bps) in &self.adds[*item][*option] {
                self.bps[*link] += bps;
            }
            self.taken[*item] = *option;
        }
    }

    fn changes(&self, step: &[(usize, usize)]) -> usize {
        let option = |item: usize| {
            let of_step = step.iter().find(|(i, _)| *i == item);
            of_step.map_or(self.taken[item], |(_, option)| *option)
        };
        (0..self.taken.len()).filter(|i| option(*i) != 0).count()
    }

    /// Two items of one switch that trade their ports.
    fn swap(&self, items: &[Item], i: usize, j: usize) -> Option<Step> {
        let port = |n: usize| items[n].options[self.taken[n]].port.as_ref();
        let option = |n: usize, port: &Arc<str>| {
            let options = items[n].options.iter();
            options.skip(1).position(|o| o.port.as_ref() == Some(port))
        };
        let (of_i, of_j) = (port(i)?, port(j)?);
        if items[i].node != items[j].node || of_i == of_j {
            return None;
        }
        Some(vec![(i, 1 + option(i, of_j)?), (j, 1 + option(j, of_i)?)])
    }
}

/// The pins of the items for which something else than what stands is taken.
#[must_use]
pub fn pins(items: &[Item], taken: &[usize]) -> Vec<PinChange> {
    let changed = items.iter().zip(taken).filter(|(_, t)| **t != 0);
    changed
        .filter_map(|(i, t)| {
            Some(PinChange {
                node: i.node.clone(),
                dst: i.dst,
                port: i.options[*t].port.clone()?,
            })
        })
        .collect()
}

/// Each flow's path under a choice of options.
#[must_use]
pub fn paths(items: &[Item], taken: &[usize]) -> BTreeMap<FlowKey, Vec<PortId>> {
    items
        .iter()
        .zip(taken)
        .flat_map(|(i, t)| i.options[*t].paths.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    /// Items of one switch with two uplinks; `rates` in Mbit/s, all on uplink `current`.
    fn moves(rates: &[(f64, usize)], changes_max: usize) -> (Vec<PinChange>, f64) {
        let node = NodeId::new("l1");
        let mut load = Load::default();
        let uplinks = ["up1", "up2"];
        for up in uplinks {
            load.capacity_bps.insert(PortId::new(&node, up), 200e6);
        }
        let mut items = Vec::new();
        for (n, (rate, current)) in rates.iter().enumerate() {
            let last = u8::try_from(n).unwrap();
            let key = FlowKey {
                src: [10, 1, 0, last].into(),
                dst: [10, 2, 0, last].into(),
                src_port: 1,
                dst_port: 2,
            };
            load.rate_bps.insert(key, rate * 1e6);
            let by = |up: &str| Choice {
                port: Some(up.into()),
                paths: vec![(key, vec![PortId::new(&node, up)])],
            };
            items.push(Item {
                node: node.clone(),
                dst: key.dst,
                options: vec![by(uplinks[*current]), by(uplinks[0]), by(uplinks[1])],
            });
        }
        let taken = spread(&items, &load, changes_max);
        (pins(&items, &taken), fullest(&items, &taken, &load))
    }

    /// Mbit/s of the fullest link.
    fn fullest(items: &[Item], taken: &[usize], load: &Load) -> f64 {
        let mut bps: BTreeMap<PortId, f64> = BTreeMap::new();
        for (flow, path) in paths(items, taken) {
            for port in path {
                *bps.entry(port).or_default() += load.rate_bps[&flow];
            }
        }
        bps.into_values().fold(0.0, f64::max) / 1e6
    }

    /// A has a flow on each uplink, B two on the first: to pin B to the second would mirror it.
    #[test]
    fn flows_of_one_destination_may_stand_on_several_members() {
        let node = NodeId::new("l1");
        let mut load = Load::default();
        for up in ["up1", "up2"] {
            load.capacity_bps.insert(PortId::new(&node, up), 200e6);
        }
        let flows = |last: u8| {
            [1, 2].map(|src_port| FlowKey {
                src: [10, 1, 0, last].into(),
                dst: [10, 2, 0, last].into(),
                src_port,
                dst_port: 2,
            })
        };
        for flow in (1..5).flat_map(flows) {
            load.rate_bps.insert(flow, 100e6);
        }
        let item = |last: u8, now: [&str; 2]| {
            let flows = flows(last);
            let way = |ports: [&str; 2]| Choice {
                port: (ports[0] == ports[1]).then(|| ports[0].into()),
                paths: flows
                    .into_iter()
                    .zip(ports.map(|p| vec![PortId::new(&node, p)]))
                    .collect(),
            };
            Item {
                node: node.clone(),
                dst: flows[0].dst,
                options: vec![way(now), way(["up1"; 2]), way(["up2"; 2])],
            }
        };
        let items = [item(1, ["up1", "up2"]), item(2, ["up1", "up1"])];
        let taken = spread(&items, &load, 32);
        // Two on each are only to be had by a pin of A.
        assert_eq!(fullest(&items, &taken, &load), 200.0);
        assert_eq!(taken, [2, 0]);
        let items = [item(3, ["up1", "up2"]), item(4, ["up2", "up1"])];
        assert_eq!(spread(&items, &load, 32), [0, 0]);
    }

    #[test]
    fn a_search_that_is_too_large_ends() {
        let (pins, fullest) = moves(&[(1.0, 0); 250], 250);
        assert!(fullest < 250.0 && !pins.is_empty(), "{fullest}");
    }

    #[test]
    fn four_equal_flows_on_one_of_two_uplinks_need_two_moves() {
        let (pins, fullest) = moves(&[(50.0, 0); 4], 32);
        assert_eq!((pins.len(), fullest), (2, 100.0));
        assert_eq!(pins[0].to_string(), "pin 10.2.0.0/32 via up2 on l1");
    }

    #[test]
    fn what_is_balanced_stays() {
        assert_eq!(
            moves(&[(50.0, 0), (50.0, 1), (50.0, 0), (50.0, 1)], 32).0,
            []
        );
    }

    #[test]
    fn a_swap_is_found_where_no_single_move_helps() {
        let (_, fullest) = moves(&[(60.0, 0), (60.0, 0), (50.0, 1), (40.0, 1), (0.0, 1)], 32);
        assert_eq!(fullest, 110.0);
    }

    #[test]
    fn the_limit_on_changes_holds() {
        assert_eq!(moves(&[(50.0, 0); 8], 2).0.len(), 2);
    }
}
