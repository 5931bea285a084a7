//! What would relieve hot links: which flows a planner can move, and how much faster they would be.

use super::scene::{Crossing, Scene};
use crate::flows::Flows;
use crate::ids::{FlowKey, NodeId, PortId};
use crate::maxmin;
use crate::plan::{self, Choice, Item, Load};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

impl Scene<'_> {
    /// What a planner can move of the flows. `None` while a path that would be needed is unknown.
    pub fn items(&self, on_hot: &[(&FlowKey, &Crossing)], flows: &mut Flows) -> Option<Vec<Item>> {
        let mut items: BTreeMap<(NodeId, Ipv4Addr), Item> = BTreeMap::new();
        let mut complete = true;
        for (key, crossing) in on_hot {
            // The first choice on the way; what lies behind it follows from it.
            let Some(choice) = crossing.path.choices.iter().find(|c| {
                self.topology
                    .group(&crossing.path.ports[c.at].node, c.group)
                    .is_some_and(|g| g.members.len() > 1)
            }) else {
                continue;
            };
            let (before, chosen) = (
                &crossing.path.ports[..choice.at],
                &crossing.path.ports[choice.at],
            );
            let members = &self.topology.group(&chosen.node, choice.group)?.members;
            let item = items
                .entry((chosen.node.clone(), key.dst))
                .or_insert_with(|| {
                    let ports = [chosen.port.clone()]
                        .into_iter()
                        .chain(members.iter().cloned());
                    Item {
                        node: chosen.node.clone(),
                        dst: key.dst,
                        options: ports
                            .map(|port| Choice {
                                port: Some(port),
                                paths: Vec::new(),
                            })
                            .collect(),
                    }
                });
            for (n, option) in item.options.iter_mut().enumerate() {
                if n == 0 {
                    if option.port.as_ref() != Some(&chosen.port) {
                        option.port = None;
                    }
                    option.paths.push((**key, crossing.path.ports.clone()));
                    continue;
                }
                let Some(port) = option.port.clone() else {
                    continue;
                };
                let leave = PortId {
                    node: chosen.node.clone(),
                    port,
                };
                match flows.lead(key, leave, self.topology) {
                    Some(Some(behind)) => {
                        let path = before.iter().cloned().chain(behind.ports).collect();
                        option.paths.push((**key, path));
                    }
                    // A way without a route is none to choose.
                    Some(None) => option.port = None,
                    None => complete = false,
                }
            }
        }
        for item in items.values_mut() {
            let mut first = true;
            item.options
                .retain(|o| std::mem::take(&mut first) || o.port.is_some());
        }
        (complete && !items.is_empty()).then(|| items.into_values().collect())
    }

    pub fn load(&self, items: &[Item]) -> Load {
        let mut load = Load::default();
        let movable: BTreeSet<FlowKey> = items
            .iter()
            .flat_map(|i| {
                i.options
                    .iter()
                    .flat_map(|o| o.paths.iter().map(|(k, _)| *k))
            })
            .collect();
        let ports: BTreeSet<PortId> = items
            .iter()
            .flat_map(|i| {
                i.options
                    .iter()
                    .flat_map(|o| o.paths.iter().flat_map(|(_, p)| p.iter().cloned()))
            })
            .collect();
        for (key, crossing) in &self.crossing {
            load.rate_bps.insert(*key, crossing.rate_bps);
        }
        for port in ports {
            let moved: f64 = self
                .flows_on(&port)
                .filter(|(k, _)| movable.contains(k))
                .map(|(_, c)| c.rate_bps)
                .sum();
            load.fixed_bps
                .insert(port.clone(), (self.tx_bps(&port) - moved).max(0.0));
            if let Some(capacity) = self.topology.capacity_bps(&port) {
                load.capacity_bps.insert(port, capacity);
            }
        }
        load
    }

    /// How much faster the slowest flow on the hot links would be: max-min fair rates with the
    /// plan over those without.
    pub fn gain(
        &self,
        items: &[Item],
        taken: &[usize],
        load: &Load,
        on_hot: &[(&FlowKey, &Crossing)],
    ) -> f64 {
        let moved = plan::paths(items, taken);
        let now: Vec<Vec<PortId>> = self
            .crossing
            .values()
            .map(|c| c.path.ports.clone())
            .collect();
        let then: Vec<Vec<PortId>> = self
            .crossing
            .iter()
            .map(|(k, c)| moved.get(k).unwrap_or(&c.path.ports).clone())
            .collect();
        let mut capacity = load.capacity_bps.clone();
        for port in now.iter().flatten() {
            if let Some(c) = self.topology.capacity_bps(port) {
                capacity.entry(port.clone()).or_insert(c);
            }
        }
        let slowest = |paths: &[Vec<PortId>]| {
            let rates = maxmin::rates(paths, &capacity);
            let ours = self
                .crossing
                .keys()
                .zip(rates)
                .filter(|(k, _)| on_hot.iter().any(|(o, _)| o == k));
            ours.map(|(_, r)| r).fold(f64::INFINITY, f64::min)
        };
        let (before, after) = (slowest(&now), slowest(&then));
        if before > 0.0 && before.is_finite() && after.is_finite() {
            after / before
        } else {
            1.0
        }
    }
}
