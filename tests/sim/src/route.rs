//! Which port a packet leaves by: shortest paths, strict hashing over the 5-tuple, weights and pins.
//!
//! Each switch hashes with its own seed, so that one tier's choice says nothing about the next. A pin of a flow goes
//! before a pin of a destination, and that before the hash.

use crate::num::index;
use crate::rng::mix;
use crate::topology::Topology;
use std::collections::{BTreeMap, VecDeque};

/// Added to a queue pair's number, it means what its receiver sends back.
pub const ANSWERS: u32 = 1 << 31;

/// What a switch hashes. The destination port is always 4791 and the protocol UDP: they are part of the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Source host.
    pub src: u32,
    /// Destination host.
    pub dst: u32,
    /// UDP source port.
    pub sport: u16,
}

/// Tables of all switches.
#[derive(Debug, Clone)]
pub struct Routes {
    hosts: u32,
    /// Access switch of each host, as a position among the access switches.
    access_of: Vec<u32>,
    accesses: usize,
    /// `next[offset[switch * accesses + access]..]`: ports towards it.
    offsets: Vec<u32>,
    next: Vec<u32>,
    host_port: Vec<u32>,
    access_node: Vec<u32>,
    seeds: Vec<u64>,
    weights: Vec<u32>,
    pins: BTreeMap<(u32, u32), u32>,
    flow_pins: BTreeMap<(u32, u32), u32>,
    up: Vec<bool>,
}

impl Routes {
    /// Routes of a fabric whose links are all up.
    #[must_use]
    pub fn new(t: &Topology, seed: u64) -> Self {
        let mut access_node: Vec<u32> = (0..t.hosts).map(|h| t.access(h)).collect();
        access_node.sort_unstable();
        access_node.dedup();
        let access_of = (0..t.hosts)
            .map(|h| index(access_node.binary_search(&t.access(h)).unwrap_or(0)))
            .collect();
        let host_port = (0..t.hosts)
            .map(|h| t.ports[t.nodes[h as usize].ports[0] as usize].peer)
            .collect();
        let mut routes = Self {
            hosts: t.hosts,
            access_of,
            accesses: access_node.len(),
            offsets: Vec::new(),
            next: Vec::new(),
            host_port,
            access_node,
            seeds: (0..t.nodes.len() as u64)
                .map(|n| mix(seed ^ mix(n + 0x1_0000)))
                .collect(),
            weights: vec![1; t.ports.len()],
            pins: BTreeMap::new(),
            flow_pins: BTreeMap::new(),
            up: vec![true; t.ports.len()],
        };
        routes.rebuild(t);
        routes
    }

    /// Computes the shortest paths over the links that are up.
    pub fn rebuild(&mut self, t: &Topology) {
        let switches = t.nodes.len() - self.hosts as usize;
        let mut tables: Vec<Vec<u32>> = vec![Vec::new(); switches * self.accesses];
        for (a, access) in self.access_node.iter().enumerate() {
            let mut distance = vec![u32::MAX; t.nodes.len()];
            distance[*access as usize] = 0;
            let mut todo = VecDeque::from([*access]);
            while let Some(node) = todo.pop_front() {
                for port in &t.nodes[node as usize].ports {
                    let peer = t.ports[t.ports[*port as usize].peer as usize].node;
                    if self.up[*port as usize]
                        && t.nodes[peer as usize].tier > 0
                        && distance[peer as usize] == u32::MAX
                    {
                        distance[peer as usize] = distance[node as usize] + 1;
                        todo.push_back(peer);
                    }
                }
            }
            for s in 0..switches {
                let node = s + self.hosts as usize;
                if distance[node] == 0 || distance[node] == u32::MAX {
                    continue;
                }
                for port in &t.nodes[node].ports {
                    let peer = t.ports[t.ports[*port as usize].peer as usize].node as usize;
                    if self.up[*port as usize] && distance[peer] == distance[node] - 1 {
                        tables[s * self.accesses + a].push(*port);
                    }
                }
            }
        }
        self.offsets.clear();
        self.next.clear();
        for table in &tables {
            self.offsets.push(index(self.next.len()));
            self.next.extend_from_slice(table);
        }
        self.offsets.push(index(self.next.len()));
    }

    /// The port by which a packet leaves a switch. `None`: there is no way.
    #[must_use]
    pub fn egress(&self, switch: u32, tuple: Tuple, qp: u32) -> Option<u32> {
        let access = self.access_of[tuple.dst as usize];
        if self.access_node[access as usize] == switch {
            return Some(self.host_port[tuple.dst as usize]);
        }
        if !self.flow_pins.is_empty()
            && let Some(port) = self.flow_pins.get(&(switch, qp))
            && self.up[*port as usize]
        {
            return Some(*port);
        }
        if !self.pins.is_empty()
            && let Some(port) = self.pins.get(&(switch, tuple.dst))
            && self.up[*port as usize]
        {
            return Some(*port);
        }
        let group = self.group(switch, tuple.dst);
        let total: u64 = group
            .iter()
            .map(|p| u64::from(self.weights[*p as usize]))
            .sum();
        let hash = self.hash(switch, tuple);
        if total == 0 {
            return group
                .get(crate::num::position(hash % (group.len().max(1) as u64)))
                .copied();
        }
        let mut at = hash % total;
        for port in group {
            let w = u64::from(self.weights[*port as usize]);
            if at < w {
                return Some(*port);
            }
            at -= w;
        }
        None
    }

    /// The ports of equal cost from a switch towards a host; empty where it hangs on the switch itself.
    #[must_use]
    pub fn group(&self, switch: u32, dst: u32) -> &[u32] {
        let at =
            (switch - self.hosts) as usize * self.accesses + self.access_of[dst as usize] as usize;
        &self.next[self.offsets[at] as usize..self.offsets[at + 1] as usize]
    }

    /// The switch's hash of a tuple: which member of a group it takes is this modulo the sum of weights.
    #[must_use]
    pub fn hash(&self, switch: u32, tuple: Tuple) -> u64 {
        let pair = (u64::from(tuple.src) << 32) | u64::from(tuple.dst);
        mix(mix(pair ^ self.seeds[switch as usize]) ^ (u64::from(tuple.sport) << 24 | 0x0012_b711))
            >> 16
    }

    /// Share of new choices that a port gets within its groups, against the weights of the others. 0 takes it out.
    pub fn set_weight(&mut self, port: u32, weight: u32) {
        self.weights[port as usize] = weight;
    }

    /// The weight of a port.
    #[must_use]
    pub fn weight(&self, port: u32) -> u32 {
        self.weights[port as usize]
    }

    /// Sends everything for a host by one port of the switch; `None` takes the pin away.
    pub fn pin(&mut self, switch: u32, dst: u32, port: Option<u32>) {
        match port {
            Some(port) => self.pins.insert((switch, dst), port),
            None => self.pins.remove(&(switch, dst)),
        };
    }

    /// Sends the data of one queue pair by one port of the switch; of `qp | ANSWERS`, what its receiver sends back.
    pub fn pin_flow(&mut self, switch: u32, qp: u32, port: Option<u32>) {
        match port {
            Some(port) => self.flow_pins.insert((switch, qp), port),
            None => self.flow_pins.remove(&(switch, qp)),
        };
    }

    /// Takes a port out of every group or back in. Needs [`Routes::rebuild`] to reach other switches.
    pub fn set_up(&mut self, port: u32, up: bool) {
        self.up[port as usize] = up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Shape, TopologySpec};

    fn fabric(shape: Shape) -> (Topology, Routes) {
        let t = Topology::build(&TopologySpec {
            shape,
            host_gbps: 100.0,
            fabric_gbps: 100.0,
            delay_ns: 1000,
        })
        .unwrap();
        let r = Routes::new(&t, 7);
        (t, r)
    }

    #[test]
    fn many_flows_spread_evenly_and_by_weight() {
        let (t, mut r) = fabric(Shape::LeafSpine {
            leaves: 4,
            spines: 4,
            hosts_per_leaf: 4,
        });
        let count = |r: &Routes| {
            let mut n = [0u32; 4];
            for sport in 0..8000u16 {
                let port = r
                    .egress(
                        16,
                        Tuple {
                            src: 0,
                            dst: 9,
                            sport: sport | 0xc000,
                        },
                        0,
                    )
                    .unwrap();
                n[(t.ports[port as usize].position - 4) as usize] += 1;
            }
            n
        };
        // Binomial, standard deviation 39 of 8000/4.
        assert!(
            count(&r).iter().all(|n| n.abs_diff(2000) < 200),
            "{:?}",
            count(&r)
        );
        r.set_weight(t.port_named("leaf0/5").unwrap(), 3);
        r.set_weight(t.port_named("leaf0/6").unwrap(), 0);
        let n = count(&r);
        assert_eq!(n[1], 0);
        assert!(n[0].abs_diff(4800) < 200, "{n:?}");
    }

    #[test]
    fn tiers_choose_independently() {
        let (t, r) = fabric(Shape::FatTree { k: 8 });
        let mut seen = std::collections::BTreeSet::new();
        for sport in 0..2000u16 {
            let tuple = Tuple {
                src: 0,
                dst: 127,
                sport,
            };
            let up = r.egress(t.access(0), tuple, 0).unwrap();
            let agg = t.ports[t.ports[up as usize].peer as usize].node;
            seen.insert((up, r.egress(agg, tuple, 0).unwrap()));
        }
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn pins_go_before_the_hash_and_dead_links_leave_every_group() {
        let (t, mut r) = fabric(Shape::LeafSpine {
            leaves: 4,
            spines: 4,
            hosts_per_leaf: 4,
        });
        let tuple = Tuple {
            src: 0,
            dst: 9,
            sport: 0xc001,
        };
        let port = t.port_named("leaf0/7").unwrap();
        r.pin(16, 9, Some(port));
        assert_eq!(r.egress(16, tuple, 0), Some(port));
        for p in [port, t.ports[port as usize].peer] {
            r.set_up(p, false);
        }
        r.rebuild(&t);
        assert_eq!(r.group(16, 9).len(), 3);
        assert_ne!(r.egress(16, tuple, 0), Some(port));
        // The spine behind the dead link has no way down to leaf 0, so others go round it too.
        assert_eq!(r.group(17, 0).len(), 3);
        r.pin(16, 9, None);
        assert_ne!(r.egress(16, tuple, 0), Some(port));
    }
}
