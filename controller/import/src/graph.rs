//! The fabric as a graph of nodes: tiers, groups of parallel uplinks.

use crate::fabric::{Fabric, Role};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Where a node stands. Ordered from the hosts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    Host,
    Leaf,
    Spine,
    Core,
    /// A switch from which no host can be reached.
    Apart,
}

impl Tier {
    /// As the topology file calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tier::Host => "host",
            Tier::Leaf => "leaf",
            Tier::Spine => "spine",
            Tier::Core => "core",
            Tier::Apart => "switch",
        }
    }
}

/// Ports of one switch that lead upwards and that routing may use alike: a guess, since no cable
/// list tells the routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EcmpGroup<'a> {
    pub switch: &'a str,
    /// Ports by the switch that they lead to.
    pub towards: BTreeMap<&'a str, Vec<&'a str>>,
}

/// Nodes by number, in order of their names.
#[derive(Debug)]
pub struct Graph<'a> {
    pub(crate) names: Vec<&'a str>,
    pub(crate) roles: Vec<Role>,
    /// For each node, its neighbours with the links between them (numbers of [`Fabric::links`]).
    pub(crate) neighbours: Vec<BTreeMap<usize, Vec<usize>>>,
    /// Distance of a switch from the hosts, from 1; `None`: not connected to any, or a host.
    pub(crate) level: Vec<Option<u32>>,
    index: BTreeMap<&'a str, usize>,
    fabric: &'a Fabric,
}

impl<'a> Graph<'a> {
    #[must_use]
    pub fn new(fabric: &'a Fabric) -> Graph<'a> {
        let names: Vec<&str> = fabric.nodes.keys().map(String::as_str).collect();
        let index: BTreeMap<&str, usize> = names.iter().enumerate().map(|(n, s)| (*s, n)).collect();
        let mut neighbours: Vec<BTreeMap<usize, Vec<usize>>> = vec![BTreeMap::new(); names.len()];
        for (n, link) in fabric.links.iter().enumerate() {
            let (Some(a), Some(b)) = (
                index.get(link.a.node.as_str()).copied(),
                index.get(link.b.node.as_str()).copied(),
            ) else {
                continue;
            };
            if a != b {
                neighbours[a].entry(b).or_default().push(n);
                neighbours[b].entry(a).or_default().push(n);
            }
        }
        let mut graph = Graph {
            roles: fabric.nodes.values().map(|n| n.role).collect(),
            level: vec![None; names.len()],
            names,
            neighbours,
            index,
            fabric,
        };
        graph.find_levels();
        graph
    }

    /// Breadth first from the leaves.
    fn find_levels(&mut self) {
        let hosts: Vec<usize> = (0..self.names.len()).map(|n| self.hosts_of(n)).collect();
        let mut bearing: Vec<usize> = hosts.iter().copied().filter(|h| *h > 0).collect();
        bearing.sort_unstable();
        let median = bearing.get(bearing.len() / 2).copied().unwrap_or(0);
        let mut queue = VecDeque::new();
        for n in 0..self.names.len() {
            if hosts[n] > 0 && !self.is_spine_with_guests(n, &hosts, median) {
                self.level[n] = Some(1);
                queue.push_back(n);
            }
        }
        while let Some(n) = queue.pop_front() {
            let next = self.level[n].map(|l| l + 1);
            for m in self.neighbours[n].keys() {
                if self.roles[*m] == Role::Switch && self.level[*m].is_none() {
                    self.level[*m] = next;
                    queue.push_back(*m);
                }
            }
        }
    }

    /// A spine may have a few hosts of its own (a subnet manager, storage): its neighbours then are
    /// mostly switches with more of them.
    fn is_spine_with_guests(&self, n: usize, hosts: &[usize], median: usize) -> bool {
        let switches = self.neighbours[n]
            .keys()
            .filter(|m| self.roles[**m] == Role::Switch);
        let (mut more, mut all) = (0, 0);
        for m in switches {
            all += 1;
            more += usize::from(hosts[*m] > hosts[n]);
        }
        hosts[n] * 4 < median && more * 2 > all
    }

    fn hosts_of(&self, n: usize) -> usize {
        if self.roles[n] == Role::Host {
            return 0;
        }
        let host = |m: &&usize| self.roles[**m] == Role::Host;
        self.neighbours[n].keys().filter(host).count()
    }

    /// Where the node with this number (in order of names) stands.
    #[must_use]
    pub fn tier(&self, n: usize) -> Tier {
        match (self.roles.get(n), self.level.get(n).copied().flatten()) {
            (Some(Role::Host), _) => Tier::Host,
            (_, Some(1)) => Tier::Leaf,
            (_, Some(2)) => Tier::Spine,
            (_, Some(_)) => Tier::Core,
            (_, None) => Tier::Apart,
        }
    }

    /// Where the node stands; `None` if there is none of this name.
    #[must_use]
    pub fn tier_of(&self, name: &str) -> Option<Tier> {
        self.index.get(name).map(|n| self.tier(*n))
    }

    /// Nodes of a tier.
    #[must_use]
    pub fn count(&self, tier: Tier) -> usize {
        (0..self.names.len())
            .filter(|n| self.tier(*n) == tier)
            .count()
    }

    /// Neighbours one level up, with the cables to them.
    pub(crate) fn uppers(&self, n: usize) -> impl Iterator<Item = (usize, &[usize])> {
        let up = self.level[n].map(|l| l + 1);
        self.neighbours[n]
            .iter()
            .filter(move |(m, _)| up.is_some() && self.level[**m] == up)
            .map(|(m, links)| (*m, links.as_slice()))
    }

    /// The port by which a link leaves the node.
    pub(crate) fn port(&self, n: usize, link: usize) -> &'a str {
        let link = &self.fabric.links[link];
        if link.a.node == self.names[n] {
            &link.a.port
        } else {
            &link.b.port
        }
    }

    /// The uplinks of each switch that has at least two.
    #[must_use]
    pub fn groups(&self) -> Vec<EcmpGroup<'a>> {
        let group = |n: usize| {
            let towards: BTreeMap<&str, Vec<&str>> = self
                .uppers(n)
                .map(|(m, links)| {
                    let ports = links.iter().map(|l| self.port(n, *l)).collect();
                    (self.names[m], ports)
                })
                .collect();
            let many = towards.values().map(Vec::len).sum::<usize>() > 1;
            many.then(|| EcmpGroup {
                switch: self.names[n],
                towards,
            })
        };
        (0..self.names.len()).filter_map(group).collect()
    }
}
