//! Which node is wired to which: leaf-spine, three-tier fat-tree and rail-optimised fabrics.
//!
//! A host here is one NIC: a server with eight of them is eight hosts that share `server`. Hosts come first, then
//! switches tier by tier; ports of a switch count from 0, those towards hosts first.

use crate::num::index;
use serde::{Deserialize, Serialize};

/// Shape and links of a fabric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologySpec {
    /// The shape.
    pub shape: Shape,
    /// Rate of the hosts' links, Gb/s.
    #[serde(default = "default_gbps")]
    pub host_gbps: f64,
    /// Rate of the links between switches, Gb/s.
    #[serde(default = "default_gbps")]
    pub fabric_gbps: f64,
    /// Propagation delay of each link, ns.
    #[serde(default = "default_delay")]
    pub delay_ns: u64,
}

fn default_gbps() -> f64 {
    100.0
}

fn default_delay() -> u64 {
    1000
}

/// The shape of a fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    /// Every leaf has a link to every spine.
    LeafSpine {
        /// Leaves.
        leaves: u32,
        /// Spines.
        spines: u32,
        /// Hosts on each leaf.
        hosts_per_leaf: u32,
    },
    /// The fat-tree of Al-Fares et al.: k pods of k/2 edge and k/2 aggregation switches, (k/2)^2 cores, k^3/4 hosts.
    FatTree {
        /// Ports of each switch, even.
        k: u32,
    },
    /// NIC i of every server of a group hangs on leaf i of the group; every leaf has a link to every spine.
    Rail {
        /// Groups of servers.
        groups: u32,
        /// Servers in each group.
        servers_per_group: u32,
        /// NICs of a server, which is leaves of a group.
        rails: u32,
        /// Spines.
        spines: u32,
    },
}

/// The most hosts of a fabric.
pub const HOSTS_MAX: u64 = 1024;

impl Shape {
    /// Number of hosts.
    #[must_use]
    pub fn hosts(self) -> u64 {
        match self {
            Shape::LeafSpine {
                leaves,
                hosts_per_leaf,
                ..
            } => u64::from(leaves) * u64::from(hosts_per_leaf),
            Shape::FatTree { k } => u64::from(k).pow(3) / 4,
            Shape::Rail {
                groups,
                servers_per_group,
                rails,
                ..
            } => u64::from(groups) * u64::from(servers_per_group) * u64::from(rails),
        }
    }
}

/// A host or a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// `host3`, `leaf0`, `spine2`, `core1`.
    pub name: String,
    /// 0 for hosts, 1 for the switches that they hang on, and so on.
    pub tier: u32,
    /// Its ports, as numbers of ports of the fabric.
    pub ports: Vec<u32>,
    /// Of a host: the server it is a NIC of.
    pub server: u32,
}

/// One direction's end of a link: the port that sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PortInfo {
    /// Its node.
    pub node: u32,
    /// Position among the ports of its node, from 0.
    pub position: u32,
    /// The port at the other end.
    pub peer: u32,
    /// Rate, bits per second.
    pub bits_per_s: f64,
}

/// Nodes and links.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// Hosts, then switches by tier.
    pub nodes: Vec<NodeInfo>,
    /// Ports of all nodes.
    pub ports: Vec<PortInfo>,
    /// How many of the nodes are hosts.
    pub hosts: u32,
    /// Propagation delay of each link, ps.
    pub delay: u64,
}

/// Why a fabric cannot be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A count is 0 or k is odd.
    #[error("topology.shape: every count must be at least 1, and k even")]
    Count,
    /// Too large.
    #[error("topology.shape: {0} hosts, the most is {HOSTS_MAX}")]
    Hosts(u64),
    /// A rate or delay out of range.
    #[error(
        "topology: host_gbps and fabric_gbps must be in 0.001..=3200, delay_ns at most 10000000"
    )]
    Link,
}

impl Topology {
    /// Builds it.
    ///
    /// # Errors
    /// Counts or rates out of range.
    pub fn build(spec: &TopologySpec) -> Result<Self, TopologyError> {
        let ok = |gbps: f64| (0.001..=3200.0).contains(&gbps);
        if !ok(spec.host_gbps) || !ok(spec.fabric_gbps) || spec.delay_ns > 10_000_000 {
            return Err(TopologyError::Link);
        }
        let counts = match spec.shape {
            Shape::LeafSpine {
                leaves,
                spines,
                hosts_per_leaf,
            } => vec![leaves, spines, hosts_per_leaf],
            Shape::FatTree { k } => vec![k, if k % 2 == 0 { 1 } else { 0 }],
            Shape::Rail {
                groups,
                servers_per_group,
                rails,
                spines,
            } => vec![groups, servers_per_group, rails, spines],
        };
        if counts.iter().any(|c| *c == 0 || *c > 4096) {
            return Err(TopologyError::Count);
        }
        let hosts = spec.shape.hosts();
        if hosts > HOSTS_MAX {
            return Err(TopologyError::Hosts(hosts));
        }
        let mut t = Topology {
            nodes: Vec::new(),
            ports: Vec::new(),
            hosts: crate::num::low32(hosts),
            delay: spec.delay_ns * crate::time::NS,
        };
        let (host_rate, rate) = (spec.host_gbps * 1e9, spec.fabric_gbps * 1e9);
        for h in 0..t.hosts {
            t.add(format!("host{h}"), 0, h);
        }
        match spec.shape {
            Shape::LeafSpine {
                leaves,
                spines,
                hosts_per_leaf,
            } => {
                let first = t.tier("leaf", 1, leaves);
                let spine = t.tier("spine", 2, spines);
                for l in 0..leaves {
                    for h in 0..hosts_per_leaf {
                        t.link(first + l, l * hosts_per_leaf + h, host_rate);
                    }
                }
                t.mesh(first, leaves, spine, spines, rate);
            }
            Shape::FatTree { k } => {
                let half = k / 2;
                let edge = t.tier("leaf", 1, k * half);
                let agg = t.tier("spine", 2, k * half);
                let core = t.tier("core", 3, half * half);
                for e in 0..k * half {
                    for h in 0..half {
                        t.link(edge + e, e * half + h, host_rate);
                    }
                }
                for pod in 0..k {
                    t.mesh(edge + pod * half, half, agg + pod * half, half, rate);
                    for a in 0..half {
                        for c in 0..half {
                            t.link(agg + pod * half + a, core + a * half + c, rate);
                        }
                    }
                }
            }
            Shape::Rail {
                groups,
                servers_per_group,
                rails,
                spines,
            } => {
                let first = t.tier("leaf", 1, groups * rails);
                let spine = t.tier("spine", 2, spines);
                for g in 0..groups {
                    for s in 0..servers_per_group {
                        let server = g * servers_per_group + s;
                        for r in 0..rails {
                            let host = server * rails + r;
                            t.nodes[host as usize].server = server;
                            t.link(first + g * rails + r, host, host_rate);
                        }
                    }
                }
                t.mesh(first, groups * rails, spine, spines, rate);
            }
        }
        Ok(t)
    }

    fn add(&mut self, name: String, tier: u32, server: u32) {
        self.nodes.push(NodeInfo {
            name,
            tier,
            ports: Vec::new(),
            server,
        });
    }

    fn tier(&mut self, name: &str, tier: u32, count: u32) -> u32 {
        let first = index(self.nodes.len());
        for i in 0..count {
            self.add(format!("{name}{i}"), tier, u32::MAX);
        }
        first
    }

    fn mesh(&mut self, low: u32, lows: u32, high: u32, highs: u32, rate: f64) {
        for l in 0..lows {
            for h in 0..highs {
                self.link(low + l, high + h, rate);
            }
        }
    }

    fn link(&mut self, a: u32, b: u32, bits_per_s: f64) {
        let (pa, pb) = (index(self.ports.len()), index(self.ports.len() + 1));
        for (node, own, peer) in [(a, pa, pb), (b, pb, pa)] {
            let ports = &mut self.nodes[node as usize].ports;
            let position = index(ports.len());
            ports.push(own);
            self.ports.push(PortInfo {
                node,
                position,
                peer,
                bits_per_s,
            });
        }
    }

    /// The switch that a host hangs on.
    #[must_use]
    pub fn access(&self, host: u32) -> u32 {
        let port = self.nodes[host as usize].ports[0];
        self.ports[self.ports[port as usize].peer as usize].node
    }

    /// Name of a port: its node and its number there from 1, `leaf0/5`.
    #[must_use]
    pub fn port_name(&self, port: u32) -> String {
        let p = &self.ports[port as usize];
        format!("{}/{}", self.nodes[p.node as usize].name, p.position + 1)
    }

    /// The port of that name. `None` if there is none.
    #[must_use]
    pub fn port_named(&self, name: &str) -> Option<u32> {
        let (node, number) = name.split_once('/')?;
        let number: usize = number.parse().ok()?;
        self.nodes
            .iter()
            .find(|n| n.name == node)?
            .ports
            .get(number.checked_sub(1)?)
            .copied()
    }

    /// The switch of that name. `None` if there is none.
    #[must_use]
    pub fn switch_named(&self, name: &str) -> Option<u32> {
        self.nodes
            .iter()
            .position(|n| n.tier > 0 && n.name == name)
            .map(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(shape: Shape) -> Topology {
        Topology::build(&TopologySpec {
            shape,
            host_gbps: 100.0,
            fabric_gbps: 100.0,
            delay_ns: 1000,
        })
        .unwrap()
    }

    #[test]
    fn a_leaf_spine_is_numbered_as_the_traces_are() {
        let t = build(Shape::LeafSpine {
            leaves: 4,
            spines: 4,
            hosts_per_leaf: 4,
        });
        assert_eq!((t.hosts, t.nodes.len(), t.ports.len()), (16, 24, 64));
        assert_eq!(t.access(5), 17);
        let up = t.port_named("leaf0/5").unwrap();
        assert_eq!(t.port_name(t.ports[up as usize].peer), "spine0/1");
        assert_eq!(t.port_named("leaf0/9"), None);
    }

    #[test]
    fn a_fat_tree_has_the_published_counts() {
        let t = build(Shape::FatTree { k: 8 });
        assert_eq!((t.hosts, t.nodes.len()), (128, 128 + 80));
        assert!(t.nodes.iter().skip(128).all(|n| n.ports.len() == 8));
        assert_eq!(build(Shape::FatTree { k: 16 }).hosts, 1024);
    }

    #[test]
    fn a_rail_holds_one_nic_of_each_server_of_its_group() {
        let t = build(Shape::Rail {
            groups: 2,
            servers_per_group: 4,
            rails: 8,
            spines: 8,
        });
        assert_eq!(t.hosts, 64);
        let leaves: Vec<u32> = (0..8).map(|r| t.access(r)).collect();
        assert_eq!(leaves, (64..72).collect::<Vec<_>>());
        assert_eq!(t.access(8), t.access(0));
        assert_ne!(t.access(32), t.access(0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let spec = |shape| TopologySpec {
            shape,
            host_gbps: 100.0,
            fabric_gbps: 100.0,
            delay_ns: 1000,
        };
        assert_eq!(
            Topology::build(&spec(Shape::FatTree { k: 3 })),
            Err(TopologyError::Count)
        );
        assert_eq!(
            Topology::build(&spec(Shape::FatTree { k: 18 })),
            Err(TopologyError::Hosts(1458))
        );
    }
}
