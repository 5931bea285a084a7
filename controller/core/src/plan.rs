//! The route planner: spreads flows over the members of their next-hop groups, fewest changes first.
//!
//! Items are (switch, destination) because a pin moves all that a switch sends to a destination;
//! bins are the group's members, each with the whole path behind it. The cost is the sum of the
//! squared utilisations of all links: convex, so evening out always lowers it, also where several
//! links are equally full and the maximum alone would not move.
//!
//! Search: from what stands today, the single move (or, if none helps, the swap of two items) that
//! lowers the cost most, until none lowers it by a percent. With elephants of like size, as
//! collectives make them, that ends at the optimum of the packing in as few moves as there are
//! items in excess; every move is one pin that somebody has to read later.

use crate::ids::{FlowKey, PortId};
use crate::io::PinChange;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A move must lower the cost by this share of it to be worth a pin.
const WORTH: f64 = 0.01;

/// All flows of one switch to one destination, which a pin moves together.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub pin: PinChange,
    /// Member ports that can carry it; `current` and `pin.port` are among them.
    pub options: Vec<Choice>,
    pub current: usize,
}

/// One member port, with the whole path of each of the item's flows if it is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub port: Arc<str>,
    pub paths: Vec<(FlowKey, Vec<PortId>)>,
}

/// The links with what they can carry and what is on them that cannot be moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Load {
    pub capacity_bps: BTreeMap<PortId, f64>,
    pub fixed_bps: BTreeMap<PortId, f64>,
    pub rate_bps: BTreeMap<FlowKey, f64>,
}

/// Returns the option to take for each item, in the order of `items`.
#[must_use]
pub fn spread(items: &[Item], load: &Load, changes_max: usize) -> Vec<usize> {
    let mut taken: Vec<usize> = items.iter().map(|i| i.current).collect();
    let mut cost = cost_of(items, &taken, load);
    let consider = |moves: Vec<Vec<(usize, usize)>>,
                    taken: &[usize],
                    cost: f64,
                    best: &mut Option<(f64, Vec<usize>)>| {
        for step in moves {
            let mut candidate = taken.to_vec();
            for (item, option) in step {
                candidate[item] = option;
            }
            let changes = candidate
                .iter()
                .zip(items)
                .filter(|(t, i)| **t != i.current)
                .count();
            let limit = best.as_ref().map_or(cost * (1.0 - WORTH), |b| b.0);
            let candidate_cost = cost_of(items, &candidate, load);
            if changes <= changes_max && candidate_cost < limit {
                *best = Some((candidate_cost, candidate));
            }
        }
    };
    loop {
        let mut best: Option<(f64, Vec<usize>)> = None;
        let singles =
            (0..items.len()).flat_map(|i| (0..items[i].options.len()).map(move |o| vec![(i, o)]));
        consider(singles.collect(), &taken, cost, &mut best);
        if best.is_none() {
            let pairs = (0..items.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            consider(
                pairs
                    .filter_map(|(i, j)| swap(items, &taken, i, j))
                    .collect(),
                &taken,
                cost,
                &mut best,
            );
        }
        match best {
            Some((lower, candidate)) => (cost, taken) = (lower, candidate),
            None => return taken,
        }
    }
}

/// Two items of one switch that trade their ports.
fn swap(items: &[Item], taken: &[usize], i: usize, j: usize) -> Option<Vec<(usize, usize)>> {
    let port = |n: usize| &items[n].options[taken[n]].port;
    let option = |n: usize, port: &Arc<str>| items[n].options.iter().position(|o| o.port == *port);
    if items[i].pin.node != items[j].pin.node || port(i) == port(j) {
        return None;
    }
    Some(vec![(i, option(i, port(j))?), (j, option(j, port(i))?)])
}

/// The pins of the items whose option is not the current one.
#[must_use]
pub fn pins(items: &[Item], taken: &[usize]) -> Vec<PinChange> {
    let changed = items.iter().zip(taken).filter(|(i, t)| i.current != **t);
    changed
        .map(|(i, t)| PinChange {
            port: i.options[*t].port.clone(),
            ..i.pin.clone()
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

fn cost_of(items: &[Item], taken: &[usize], load: &Load) -> f64 {
    let mut bps: BTreeMap<&PortId, f64> = load.fixed_bps.iter().map(|(p, b)| (p, *b)).collect();
    for (item, option) in items.iter().zip(taken) {
        for (flow, path) in &item.options[*option].paths {
            let rate = load.rate_bps.get(flow).copied().unwrap_or(0.0);
            for port in path {
                *bps.entry(port).or_default() += rate;
            }
        }
    }
    let squares = bps
        .iter()
        .filter_map(|(port, bps)| Some((bps / load.capacity_bps.get(*port)?).powi(2)));
    squares.sum()
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
            let options = uplinks
                .map(|up| Choice {
                    port: up.into(),
                    paths: vec![(key, vec![PortId::new(&node, up)])],
                })
                .to_vec();
            items.push(Item {
                pin: PinChange {
                    node: node.clone(),
                    dst: key.dst,
                    port: uplinks[*current].into(),
                },
                options,
                current: *current,
            });
        }
        let taken = spread(&items, &load, changes_max);
        let mut sums = [0.0f64; 2];
        for (t, (rate, _)) in taken.iter().zip(rates) {
            sums[*t] += rate;
        }
        (pins(&items, &taken), sums[0].max(sums[1]))
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
