//! Fabrics: which port is cabled to which, and where a switch sends a flow.
//!
//! A link is named by the number of the port that it leaves by. Switches hash strictly (no adaptive routing):
//! the same flow takes the same member until a member goes down.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use weir_controller_core::ids::{FlowKey, NodeId, PortId};
use weir_controller_core::io::Role;
use weir_controller_core::topology::{Cable, Plan};
use weir_sim::rng::mix;

/// A port, or the directed link that leaves by it.
pub type Link = usize;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    Host,
    Leaf,
    /// Spine of two tiers, aggregation of three.
    Spine,
    Core,
}

/// A host or switch.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub tier: Tier,
    /// Hosts: one for each NIC, in order.
    pub ports: Vec<Link>,
    /// Leaves that lie below a port, for switches above leaves.
    below: BTreeMap<usize, Vec<Link>>,
    /// Members of the group that leads upwards.
    pub up: Vec<Link>,
}

/// A port of a node.
#[derive(Debug, Clone)]
pub struct Port {
    pub node: usize,
    pub name: String,
    pub peer: Link,
    pub bps: f64,
}

/// How nodes are cabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Every NIC of a host goes to its leaf.
    LeafSpine {
        leaves: usize,
        hosts: usize,
        spines: usize,
    },
    /// Pods of leaves and spines under cores; each spine has its own cores.
    ThreeTier {
        pods: usize,
        leaves: usize,
        hosts: usize,
        spines: usize,
        cores: usize,
    },
    /// Pods in which NIC r of every host goes to leaf r.
    Rail {
        pods: usize,
        hosts: usize,
        spines: usize,
    },
}

/// A fabric.
#[derive(Debug, Clone)]
pub struct Fabric {
    pub nodes: Vec<Node>,
    pub ports: Vec<Port>,
    pub nics: usize,
    pub shape: Shape,
    seed: u64,
}

/// The number of the group that leads upwards, on every switch.
pub const UP_GROUP: u32 = 1;

impl Fabric {
    /// Builds it; `nics` of `bps` for each host.
    #[must_use]
    pub fn new(shape: Shape, nics: usize, bps: f64, seed: u64) -> Fabric {
        let mut fabric = Fabric {
            nodes: Vec::new(),
            ports: Vec::new(),
            nics,
            shape,
            seed,
        };
        match shape {
            Shape::LeafSpine {
                leaves,
                hosts,
                spines,
            } => fabric.pods(1, leaves, hosts, spines, 0, bps),
            Shape::ThreeTier {
                pods,
                leaves,
                hosts,
                spines,
                cores,
            } => fabric.pods(pods, leaves, hosts, spines, cores, bps),
            Shape::Rail {
                pods,
                hosts,
                spines,
            } => fabric.rails(pods, hosts, spines, bps),
        }
        fabric.find_below();
        fabric
    }

    fn pods(
        &mut self,
        pods: usize,
        leaves: usize,
        hosts: usize,
        spines: usize,
        cores: usize,
        bps: f64,
    ) {
        for pod in 0..pods {
            let first = self.nodes.len();
            for l in 0..leaves {
                let leaf = self.node(format!("p{pod}l{l}"), Tier::Leaf);
                for h in 0..hosts {
                    let host = self.node(format!("p{pod}l{l}h{h}"), Tier::Host);
                    for n in 0..self.nics {
                        self.cable((host, format!("eth{n}")), (leaf, format!("h{h}n{n}")), bps);
                    }
                }
            }
            for s in 0..spines {
                let spine = self.node(format!("p{pod}s{s}"), Tier::Spine);
                for l in 0..leaves {
                    let leaf = first + l * (hosts + 1);
                    self.cable((leaf, format!("up{s}")), (spine, format!("down{l}")), bps);
                }
            }
        }
        let pod_nodes = leaves * (hosts + 1) + spines;
        for c in 0..cores * spines * usize::from(pods > 1) {
            let core = self.node(format!("c{c}"), Tier::Core);
            for pod in 0..pods {
                let spine = pod * pod_nodes + leaves * (hosts + 1) + c / cores;
                self.cable(
                    (spine, format!("up{}", c % cores)),
                    (core, format!("down{pod}")),
                    bps,
                );
            }
        }
    }

    fn rails(&mut self, pods: usize, hosts: usize, spines: usize, bps: f64) {
        let mut leaves = Vec::new();
        for pod in 0..pods {
            let of_pod: Vec<usize> = (0..self.nics)
                .map(|r| self.node(format!("p{pod}r{r}"), Tier::Leaf))
                .collect();
            for h in 0..hosts {
                let host = self.node(format!("p{pod}h{h}"), Tier::Host);
                for (n, leaf) in of_pod.iter().enumerate() {
                    self.cable((host, format!("eth{n}")), (*leaf, format!("h{h}")), bps);
                }
            }
            leaves.extend(of_pod);
        }
        for s in 0..spines {
            let spine = self.node(format!("s{s}"), Tier::Spine);
            for (l, leaf) in leaves.iter().enumerate() {
                self.cable((*leaf, format!("up{s}")), (spine, format!("down{l}")), bps);
            }
        }
    }

    fn node(&mut self, name: String, tier: Tier) -> usize {
        self.nodes.push(Node {
            name,
            tier,
            ports: Vec::new(),
            below: BTreeMap::new(),
            up: Vec::new(),
        });
        self.nodes.len() - 1
    }

    fn cable(&mut self, lower: (usize, String), upper: (usize, String), bps: f64) {
        let first = self.ports.len();
        for (n, (node, name)) in [lower, upper].into_iter().enumerate() {
            self.nodes[node].ports.push(first + n);
            let peer = first + 1 - n;
            self.ports.push(Port {
                node,
                name,
                peer,
                bps,
            });
        }
        let below = self.ports[first].node;
        if self.nodes[below].tier != Tier::Host {
            self.nodes[below].up.push(first);
        }
    }

    /// Which leaves each switch reaches downwards, and by which ports.
    fn find_below(&mut self) {
        let order = [Tier::Spine, Tier::Core];
        for tier in order {
            for node in 0..self.nodes.len() {
                if self.nodes[node].tier != tier {
                    continue;
                }
                let mut below: BTreeMap<usize, Vec<Link>> = BTreeMap::new();
                for link in &self.nodes[node].ports {
                    let other = self.ports[self.ports[*link].peer].node;
                    match self.nodes[other].tier {
                        Tier::Leaf => below.entry(other).or_default().push(*link),
                        Tier::Spine if tier == Tier::Core => {
                            for leaf in self.nodes[other].below.keys() {
                                below.entry(*leaf).or_default().push(*link);
                            }
                        }
                        Tier::Host | Tier::Spine | Tier::Core => {}
                    }
                }
                self.nodes[node].below = below;
            }
        }
    }

    /// Hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].tier == Tier::Host)
    }

    /// The host that stores what the others compute: the last.
    #[must_use]
    pub fn storage(&self) -> Option<usize> {
        self.hosts().last()
    }

    /// Hosts that run jobs, in order.
    pub fn computing(&self) -> impl Iterator<Item = usize> {
        let storage = self.storage();
        self.hosts().filter(move |h| Some(*h) != storage)
    }

    /// The leaf that a host's port is cabled to.
    #[must_use]
    pub fn leaf_of(&self, host_port: Link) -> usize {
        self.ports[self.ports[host_port].peer].node
    }

    /// Both directions of a cable.
    #[must_use]
    pub fn cable_of(&self, link: Link) -> [Link; 2] {
        [link, self.ports[link].peer]
    }

    /// Address of a port: hosts in 10/8, switches in 172.16/12.
    #[must_use]
    pub fn address(&self, link: Link) -> Ipv4Addr {
        let is_host = self.nodes[self.ports[link].node].tier == Tier::Host;
        let net: u32 = if is_host {
            10 << 24
        } else {
            172 << 24 | 16 << 16
        };
        Ipv4Addr::from_bits(net + weir_sim::num::index(link) + 1)
    }

    /// The port of a host's address.
    fn port_of(&self, address: Ipv4Addr) -> Option<Link> {
        let n = address.to_bits().checked_sub((10 << 24) + 1)?;
        usize::try_from(n).ok().filter(|n| *n < self.ports.len())
    }

    /// The name that the controller has for a link.
    #[must_use]
    pub fn port_id(&self, link: Link) -> PortId {
        let port = &self.ports[link];
        PortId::new(&NodeId::new(&self.nodes[port.node].name), &port.name)
    }

    /// The operator's file; without `switches` of hosts alone, and of no cables.
    #[must_use]
    pub fn plan(&self, switches: bool) -> Plan {
        let role = |n: &Node| {
            if n.tier == Tier::Host {
                Role::Host
            } else {
                Role::Switch
            }
        };
        Plan {
            nodes: self
                .nodes
                .iter()
                .filter(|n| switches || n.tier == Tier::Host)
                .map(|n| (NodeId::new(&n.name), role(n)))
                .collect(),
            storage: self
                .storage()
                .map(|n| NodeId::new(&self.nodes[n].name))
                .into_iter()
                .collect(),
            cables: (0..self.ports.len())
                .step_by(2)
                .filter(|_| switches)
                .map(|a| Cable {
                    a: self.port_id(a),
                    b: self.port_id(a + 1),
                    rate_bps: Some(self.ports[a].bps),
                })
                .collect(),
        }
    }

    /// Ports by which a switch may send to a leaf, and whether they are its group; empty if it cannot.
    fn choices(&self, node: usize, leaf: usize, up: &[bool]) -> (Vec<Link>, bool) {
        let peer = |l: &Link| self.ports[self.ports[*l].peer].node;
        let down = self.nodes[node].below.get(&leaf);
        let down = down.into_iter().flatten().copied().filter(|l| {
            up[*l]
                && (peer(l) == leaf
                    || self.nodes[peer(l)]
                        .below
                        .get(&leaf)
                        .is_some_and(|b| b.iter().any(|l| up[*l])))
        });
        let down: Vec<Link> = down.collect();
        if !down.is_empty() {
            return (down, false);
        }
        let ups = self.nodes[node].up.iter().copied();
        let ups = ups.filter(|l| up[*l] && !self.choices(peer(l), leaf, up).0.is_empty());
        (ups.collect(), true)
    }

    /// Where a switch sends a flow: the port, and its group if it chose. `None`: no route.
    #[must_use]
    pub fn next_hop(&self, node: usize, key: &FlowKey, up: &[bool]) -> Option<(Link, Option<u32>)> {
        let target = self.port_of(key.dst)?;
        let leaf = self.leaf_of(target);
        if leaf == node {
            let last = self.ports[target].peer;
            return up[last].then_some((last, None));
        }
        let (choices, upwards) = self.choices(node, leaf, up);
        if choices.is_empty() {
            return None;
        }
        let ends = u64::from(key.src.to_bits()) << 32 | u64::from(key.dst.to_bits());
        let ports = u64::from(key.src_port) << 16 | u64::from(key.dst_port);
        let hash = mix(self.seed ^ mix(ends ^ mix(ports ^ (node as u64) << 32)));
        let chosen = choices[weir_sim::num::position(hash % choices.len() as u64)];
        Some((chosen, upwards.then_some(UP_GROUP)))
    }

    /// The links of a flow, its host's first; `None` while there is no way.
    #[must_use]
    pub fn path(&self, key: &FlowKey, up: &[bool]) -> Option<Vec<Link>> {
        let (first, target) = (self.port_of(key.src)?, self.port_of(key.dst)?);
        let mut path = vec![first];
        if !up[first] {
            return None;
        }
        while path.len() < 8 {
            let at = self.ports[self.ports[*path.last()?].peer].node;
            if at == self.ports[target].node {
                return Some(path);
            }
            path.push(self.next_hop(at, key, up)?.0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shapes() -> impl Strategy<Value = (Shape, usize)> {
        prop_oneof![
            (2..5usize, 1..5usize, 1..5usize, 1..3usize).prop_map(
                |(leaves, hosts, spines, nics)| (
                    Shape::LeafSpine {
                        leaves,
                        hosts,
                        spines
                    },
                    nics
                )
            ),
            (2..4usize, 1..3usize, 1..4usize, 1..4usize, 1..3usize).prop_map(
                |(pods, leaves, hosts, spines, cores)| {
                    (
                        Shape::ThreeTier {
                            pods,
                            leaves,
                            hosts,
                            spines,
                            cores,
                        },
                        1,
                    )
                }
            ),
            (1..4usize, 1..5usize, 1..5usize, 1..5usize).prop_map(|(pods, hosts, spines, nics)| (
                Shape::Rail {
                    pods,
                    hosts,
                    spines
                },
                nics
            )),
        ]
    }

    proptest! {
        #[test]
        fn every_nic_reaches_every_other_over_cables(((shape, nics), a, b, port) in (shapes(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u16>())) {
            let fabric = Fabric::new(shape, nics, 400e9, 7);
            let nics: Vec<Link> = fabric.hosts().flat_map(|h| fabric.nodes[h].ports.clone()).collect();
            let (src, dst) = (nics[a.index(nics.len())], nics[b.index(nics.len())]);
            prop_assume!(fabric.ports[src].node != fabric.ports[dst].node);
            let key = FlowKey { src: fabric.address(src), dst: fabric.address(dst), src_port: port, dst_port: 4791 };
            let up = vec![true; fabric.ports.len()];
            let path = fabric.path(&key, &up).unwrap();
            prop_assert_eq!(path[0], src);
            prop_assert_eq!(fabric.ports[*path.last().unwrap()].peer, dst);
            for pair in path.windows(2) {
                prop_assert_eq!(fabric.ports[fabric.ports[pair[0]].peer].node, fabric.ports[pair[1]].node);
            }
        }
    }

    #[test]
    fn a_flow_goes_round_a_link_that_is_down() {
        let fabric = Fabric::new(
            Shape::LeafSpine {
                leaves: 2,
                hosts: 1,
                spines: 2,
            },
            1,
            1e9,
            3,
        );
        let hosts: Vec<usize> = fabric.hosts().collect();
        let key = FlowKey {
            src: fabric.address(fabric.nodes[hosts[0]].ports[0]),
            dst: fabric.address(fabric.nodes[hosts[1]].ports[0]),
            src_port: 50_000,
            dst_port: 4791,
        };
        let mut up = vec![true; fabric.ports.len()];
        let before = fabric.path(&key, &up).unwrap();
        // The spine's port to the second leaf: the first leaf has to avoid that spine.
        for end in fabric.cable_of(before[2]) {
            up[end] = false;
        }
        let after = fabric.path(&key, &up).unwrap();
        assert_ne!(before[1], after[1]);
        up.fill(false);
        assert_eq!(fabric.path(&key, &up), None);
    }
}
