//! The route planner of the controller, fed with a fabric of the simulator.

use crate::change::Change;
use crate::sim::Sim;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use weir_controller_core::ids::{FlowKey, NodeId, PortId};
use weir_controller_core::io::PinChange;
use weir_controller_core::plan::{Choice, Item, Load, pins, spread};

/// Most pins of one plan.
const PINS_MAX: usize = 64;

/// The address of a host.
#[must_use]
pub fn address(host: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + host)
}

fn port_id(sim: &Sim, port: u32) -> PortId {
    let t = sim.topology();
    let info = &t.ports[port as usize];
    let node = NodeId::new(&t.nodes[info.node as usize].name);
    PortId::new(&node, &(info.position + 1).to_string())
}

/// The flow of a queue pair.
fn flow(sim: &Sim, qp: u32) -> FlowKey {
    let tuple = sim.tuple(qp);
    FlowKey {
        src: address(tuple.src),
        dst: address(tuple.dst),
        src_port: tuple.sport,
        dst_port: 4791,
    }
}

/// The way of a queue pair's data if the switch sent it by a port.
fn way(sim: &Sim, qp: u32, switch: u32, by: u32) -> Vec<PortId> {
    let t = sim.topology();
    let tuple = sim.tuple(qp);
    let mut way = vec![port_id(sim, t.nodes[tuple.src as usize].ports[0])];
    let mut node = t.access(tuple.src);
    // No shortest path of these fabrics has more than six switches.
    for _ in 0..6 {
        let next = if node == switch {
            Some(by)
        } else {
            sim.routes().egress(node, tuple, qp)
        };
        let Some(port) = next else { break };
        way.push(port_id(sim, port));
        node = t.ports[t.ports[port as usize].peer as usize].node;
        if node < t.hosts {
            break;
        }
    }
    way
}

/// What to pin so that flows share links as evenly as can be, from what each delivered since `since` (bytes by queue pair).
/// Empty where the hash did well enough.
#[must_use]
pub fn plan(sim: &Sim, since: &[u64]) -> Vec<PinChange> {
    let t = sim.topology();
    let mut load = Load::default();
    for (p, info) in t.ports.iter().enumerate() {
        load.capacity_bps
            .insert(port_id(sim, crate::num::index(p)), info.bits_per_s);
    }
    // A pin moves all that a leaf sends to a host: these are the items.
    let mut items: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    for qp in 0..sim.qp_count() {
        let bytes = sim.qp_delivered(qp) - since.get(qp as usize).copied().unwrap_or(0);
        let tuple = sim.tuple(qp);
        let leaf = t.access(tuple.src);
        if bytes > 0 && leaf != t.access(tuple.dst) {
            load.rate_bps.insert(flow(sim, qp), bytes as f64);
            items.entry((leaf, tuple.dst)).or_default().push(qp);
        }
    }
    // Bytes of some time against capacity a second: the planner looks at shares only.
    let items: Vec<Item> = items
        .into_iter()
        .map(|((leaf, dst), qps)| {
            let by = |port: Option<u32>| Choice {
                port: port.map(|p| port_id(sim, p).port),
                paths: qps
                    .iter()
                    .map(|qp| {
                        let now = || {
                            let path = sim.path(*qp);
                            path.into_iter().map(|p| port_id(sim, p)).collect()
                        };
                        let path = port.map_or_else(now, |p| way(sim, *qp, leaf, p));
                        (flow(sim, *qp), path)
                    })
                    .collect(),
            };
            let group = sim.routes().group(leaf, dst);
            let ports: BTreeSet<u32> = group.iter().copied().collect();
            Item {
                node: NodeId::new(&t.nodes[leaf as usize].name),
                dst: address(dst),
                options: std::iter::once(by(None))
                    .chain(ports.into_iter().map(|p| by(Some(p))))
                    .collect(),
            }
        })
        .collect();
    let taken = spread(&items, &load, PINS_MAX);
    pins(&items, &taken)
}

/// The change that sets a pin. `None`: the fabric has no such switch or port.
#[must_use]
pub fn change(sim: &Sim, pin: &PinChange) -> Option<Change> {
    let t = sim.topology();
    Some(Change::Pin {
        switch: t.switch_named(pin.node.as_str())?,
        dst: u32::from(pin.dst).checked_sub(0x0a00_0000)?,
        port: Some(t.port_named(&format!("{}/{}", pin.node, pin.port))?),
    })
}

/// Most flows on one link between switches.
#[must_use]
pub fn crowd(sim: &Sim) -> usize {
    let t = sim.topology();
    let mut flows: BTreeMap<u32, usize> = BTreeMap::new();
    for qp in 0..sim.qp_count() {
        for port in sim.path(qp) {
            let peer = t.ports[t.ports[port as usize].peer as usize].node;
            if t.ports[port as usize].node >= t.hosts && peer >= t.hosts {
                *flows.entry(port).or_default() += 1;
            }
        }
    }
    flows.into_values().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::case::CASES;

    #[test]
    fn the_plan_leaves_no_two_flows_of_a_ring_on_one_link() {
        let case = CASES.iter().find(|c| c.name == "ring-collisions").unwrap();
        for seed in 1..=3 {
            let mut sim = case.scenario(seed).unwrap().build().unwrap();
            sim.run_until(case.warm_up);
            assert!(crowd(&sim) > 1);
            let pins = plan(&sim, &[]);
            for pin in &pins {
                let change = change(&sim, pin).unwrap();
                sim.apply(change);
            }
            assert_eq!(crowd(&sim), 1, "seed {seed}, {} pins", pins.len());
        }
    }
}
