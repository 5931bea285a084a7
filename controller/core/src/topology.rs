//! The fabric as a directed graph of ports: from the operator's file, completed and checked by what
//! the agents report.
//!
//! A link that nobody wrote down is inferred when exactly two reported addresses share a subnet.
//! What the file says stands; a report that contradicts it becomes a finding, never a crash.

use crate::ids::{NodeId, PortId};
use crate::io::{EcmpGroup, Inventory, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// A cable, as the operator's file names it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cable {
    pub a: PortId,
    pub b: PortId,
    /// Bits per second, each direction; `None`: what the drivers report.
    pub rate_bps: Option<f64>,
}

/// What the operator's file says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    pub nodes: BTreeMap<NodeId, Role>,
    pub cables: Vec<Cable>,
}

/// The fabric as known at this moment.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    plan: Plan,
    reported: BTreeMap<NodeId, (Role, Inventory)>,
    peers: BTreeMap<PortId, PortId>,
    capacity_bps: BTreeMap<PortId, f64>,
    addresses: BTreeMap<Ipv4Addr, PortId>,
    findings: BTreeSet<String>,
}

impl Topology {
    #[must_use]
    pub fn new(plan: Plan) -> Topology {
        let mut topology = Topology {
            plan,
            ..Topology::default()
        };
        topology.rebuild();
        topology
    }

    pub fn node_connected(&mut self, node: &NodeId, role: Role) {
        self.reported
            .entry(node.clone())
            .or_insert((role, Inventory::default()))
            .0 = role;
        self.rebuild();
    }

    /// Takes a node's report; true if anything changed.
    pub fn inventory_reported(&mut self, node: &NodeId, inventory: Inventory) -> bool {
        let entry = self
            .reported
            .entry(node.clone())
            .or_insert((Role::Host, Inventory::default()));
        if entry.1 == inventory {
            return false;
        }
        entry.1 = inventory;
        self.rebuild();
        true
    }

    /// The port at the other end of the cable.
    #[must_use]
    pub fn peer(&self, port: &PortId) -> Option<&PortId> {
        self.peers.get(port)
    }

    /// Capacity of the directed link that leaves by `port`, in bits per second.
    #[must_use]
    pub fn capacity_bps(&self, port: &PortId) -> Option<f64> {
        self.capacity_bps.get(port).copied()
    }

    /// Directed links, in order.
    pub fn links(&self) -> impl Iterator<Item = (&PortId, &PortId)> {
        self.peers.iter()
    }

    /// The port that has the address.
    #[must_use]
    pub fn port_of(&self, address: Ipv4Addr) -> Option<&PortId> {
        self.addresses.get(&address)
    }

    /// Whether the node forwards for others.
    #[must_use]
    pub fn is_switch(&self, node: &NodeId) -> bool {
        let planned = self.plan.nodes.get(node).copied();
        planned.or(self.reported.get(node).map(|r| r.0)) == Some(Role::Switch)
    }

    /// The ECMP group of `node` that `port` is a member of, if it has at least two.
    #[must_use]
    pub fn group_of(&self, port: &PortId) -> Option<&EcmpGroup> {
        let groups = &self.reported.get(&port.node)?.1.groups;
        groups
            .iter()
            .find(|g| g.members.len() > 1 && g.members.contains(&port.port))
    }

    /// Members of the node's largest ECMP group; `None` if it reported none.
    #[must_use]
    pub fn largest_group(&self, node: &NodeId) -> Option<usize> {
        let groups = &self.reported.get(node)?.1.groups;
        groups.iter().map(|group| group.members.len()).max()
    }

    /// A group of a node by its number.
    #[must_use]
    pub fn group(&self, node: &NodeId, id: u32) -> Option<&EcmpGroup> {
        self.reported
            .get(node)?
            .1
            .groups
            .iter()
            .find(|g| g.id == id)
    }

    /// Where file and reports disagree, in words.
    #[must_use]
    pub fn findings(&self) -> &BTreeSet<String> {
        &self.findings
    }

    fn rebuild(&mut self) {
        self.peers.clear();
        self.capacity_bps.clear();
        self.addresses.clear();
        self.findings.clear();
        let mut subnets: BTreeMap<(Ipv4Addr, u8), Vec<(PortId, Ipv4Addr)>> = BTreeMap::new();
        for (node, (role, inventory)) in &self.reported {
            if let Some(planned) = self.plan.nodes.get(node)
                && planned != role
            {
                self.findings.insert(format!(
                    "{node} is a {planned:?} in the topology file but its agent runs as {role:?}"
                ));
            }
            for port in &inventory.ports {
                let id = PortId::new(node, &port.name);
                if let Some(speed) = port.speed_bps {
                    self.capacity_bps.insert(id.clone(), speed as f64);
                }
                for (address, prefix) in &port.addresses {
                    if let Some(other) = self.addresses.insert(*address, id.clone()) {
                        self.findings
                            .insert(format!("{address} is on {id} and on {other}"));
                    }
                    subnets
                        .entry((network(*address, *prefix), *prefix))
                        .or_default()
                        .push((id.clone(), *address));
                }
            }
        }
        for cable in self.plan.cables.clone() {
            for (from, to) in [(&cable.a, &cable.b), (&cable.b, &cable.a)] {
                self.check_end(from, to);
                self.peers.insert(from.clone(), to.clone());
                if let Some(rate) = cable.rate_bps {
                    self.capacity_bps.insert(from.clone(), rate);
                }
            }
        }
        for ports in subnets.values() {
            if let [(a, _), (b, _)] = ports.as_slice() {
                for (from, to) in [(a, b), (b, a)] {
                    match self.peers.get(from) {
                        None => {
                            self.peers.insert(from.clone(), to.clone());
                        }
                        Some(planned) if planned == to => {}
                        Some(planned) => {
                            let text = format!(
                                "{from} is cabled to {planned} in the topology file but shares its subnet with {to}"
                            );
                            self.findings.insert(text);
                        }
                    }
                }
            }
        }
    }

    /// A planned port must exist on a node that has reported, and a planned neighbour must not be
    /// contradicted by the kernel's neighbour table.
    fn check_end(&mut self, port: &PortId, peer: &PortId) {
        let Some((_, inventory)) = self.reported.get(&port.node) else {
            return;
        };
        if inventory.ports.is_empty() {
            return;
        }
        let Some(reported) = inventory.ports.iter().find(|p| p.name == port.port) else {
            let have: Vec<&str> = inventory.ports.iter().map(|p| &*p.name).collect();
            self.findings.insert(format!(
                "the topology file names {port}, but {} has no such interface (it has {})",
                port.node,
                have.join(", ")
            ));
            return;
        };
        for neighbour in &reported.neighbours {
            if let Some(actual) = self.addresses.get(neighbour)
                && actual.node != peer.node
                && actual.node != port.node
            {
                let text = format!(
                    "{port} is cabled to {peer} in the topology file but sees {neighbour} of {actual}"
                );
                self.findings.insert(text);
            }
        }
    }
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::PortInventory;

    fn inventory(ports: &[(&str, &str, u8)]) -> Inventory {
        let ports = ports
            .iter()
            .map(|(name, address, prefix)| PortInventory {
                name: (*name).into(),
                up: true,
                addresses: vec![(address.parse().unwrap(), *prefix)],
                neighbours: vec![],
                speed_bps: None,
            })
            .collect();
        Inventory {
            ports,
            ..Inventory::default()
        }
    }

    fn port(text: &str) -> PortId {
        PortId::parse(text).unwrap()
    }

    #[test]
    fn a_link_nobody_wrote_down_is_inferred_from_the_subnet() {
        let mut t = Topology::default();
        t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
        t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.0.0.1", 31)]));
        assert_eq!(t.peer(&port("a:e0")), Some(&port("b:e1")));
    }

    #[test]
    fn a_planned_port_that_the_node_lacks_is_a_finding() {
        let cable = Cable {
            a: port("a:e9"),
            b: port("b:e1"),
            rate_bps: None,
        };
        let mut t = Topology::new(Plan {
            cables: vec![cable],
            ..Plan::default()
        });
        assert!(
            t.findings().is_empty(),
            "nothing reported yet, nothing contradicted"
        );
        t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
        let finding = t.findings().first().unwrap();
        assert!(
            finding.contains("a:e9") && finding.contains("e0"),
            "{finding}"
        );
    }

    #[test]
    fn wrong_cabling_is_a_finding_and_the_file_stands() {
        let cable = Cable {
            a: port("a:e0"),
            b: port("c:e1"),
            rate_bps: None,
        };
        let mut t = Topology::new(Plan {
            cables: vec![cable],
            ..Plan::default()
        });
        t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.0", 31)]));
        t.inventory_reported(&NodeId::new("b"), inventory(&[("e1", "10.0.0.1", 31)]));
        assert_eq!(t.peer(&port("a:e0")), Some(&port("c:e1")));
        assert!(t.findings().iter().any(|f| f.contains("b:e1")));
    }

    #[test]
    fn one_address_twice_is_a_finding() {
        let mut t = Topology::default();
        t.inventory_reported(&NodeId::new("a"), inventory(&[("e0", "10.0.0.9", 24)]));
        t.inventory_reported(&NodeId::new("b"), inventory(&[("e0", "10.0.0.9", 24)]));
        assert_eq!(t.findings().len(), 1);
    }
}
