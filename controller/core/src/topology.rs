//! The fabric as a directed graph of ports: from the operator's file, completed and checked by what
//! the agents report.
//!
//! A link that nobody wrote down is inferred when exactly two reported addresses share a subnet.
//! What the file says stands; a report that contradicts it becomes a finding, never a crash.

#[cfg(test)]
mod tests;

use crate::ids::{NodeId, PortId};
use crate::io::{EcmpGroup, Inventory, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Nodes held at once.
pub const NODES_MAX: usize = 16_384;

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
    /// Hosts that store what the others compute.
    pub storage: BTreeSet<NodeId>,
    pub cables: Vec<Cable>,
}

/// Directed links held; 100,000 GPUs with three switch tiers have about 600,000.
pub const LINKS_MAX: usize = 1 << 20;

/// Findings held; nobody reads more, and one mistake in the file may make one for each port.
const FINDINGS_MAX: usize = 4096;

/// Number of a directed link; it never means another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkIx(u32);

impl LinkIx {
    /// For tables of links.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A planned cable whose end reports another neighbour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// The end that reports it.
    pub port: PortId,
    pub planned: PortId,
    /// The port, which the plan cables elsewhere, that it has for a neighbour.
    pub actual: PortId,
    /// Both ends report each other: no stale entry in one table.
    pub mutual: bool,
}

/// What is known of a directed link.
#[derive(Debug, Clone)]
struct Link {
    port: PortId,
    /// `None` once nobody says any more that it is there.
    peer: Option<PortId>,
    capacity_bps: Option<f64>,
    /// Named by the operator's file, not inferred.
    planned: bool,
    /// Its peer is known and forwards for nobody else.
    to_host: bool,
}

/// The fabric as known at this moment.
///
/// Reports only mark it as outdated: [`Topology::refresh`] takes them in all at once, because each
/// of them costs a look at everything.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    plan: Plan,
    reported: BTreeMap<NodeId, (Role, Inventory)>,
    /// By port that is in no group any more: the members of the one that it was in last, itself among them.
    parted: BTreeMap<PortId, Vec<Arc<str>>>,
    outdated: bool,
    links: Vec<Link>,
    /// As many of them, the first, the plan names.
    links_planned: usize,
    /// Ports of each node that a link leaves by, in order.
    of_node: BTreeMap<NodeId, Vec<(Arc<str>, LinkIx)>>,
    addresses: BTreeMap<Ipv4Addr, PortId>,
    /// Addresses that more than one port has: they name none.
    shared: BTreeSet<Ipv4Addr>,
    findings: BTreeSet<String>,
    contradictions: BTreeSet<Contradiction>,
}

impl Topology {
    #[must_use]
    pub fn new(plan: Plan) -> Topology {
        let mut topology = Topology {
            plan,
            ..Topology::default()
        };
        topology.rebuild();
        topology.links_planned = topology.links.len();
        topology
    }

    /// Links that the plan does not name, by the port that each leaves by, in the order of their numbers.
    pub(crate) fn found_links(&self) -> Vec<PortId> {
        let found = self.links.iter().skip(self.links_planned);
        found.map(|link| link.port.clone()).collect()
    }

    /// Takes the reports into the graph; links that another graph had `found` get their numbers in that order.
    pub(crate) fn remember(&mut self, found: &[PortId], parted: BTreeMap<PortId, Vec<Arc<str>>>) {
        self.parted = parted;
        for port in found {
            self.number(port);
        }
        self.rebuild();
        self.outdated = false;
    }

    pub fn node_connected(&mut self, node: &NodeId, role: Role) {
        let known = self.reported.get(node).map(|(role, _)| *role);
        if known != Some(role) {
            self.entry(node).0 = role;
            self.outdated = true;
        }
    }

    /// Forgets what a node reported.
    pub fn node_forgotten(&mut self, node: &NodeId) {
        self.outdated |= self.reported.remove(node).is_some();
        self.parted.retain(|port, _| port.node != *node);
    }

    /// Takes a node's report; true if anything changed.
    pub fn inventory_reported(&mut self, node: &NodeId, inventory: Inventory) -> bool {
        let entry = self.entry(node);
        if entry.1 == inventory {
            return false;
        }
        let ports_changed = entry.1.ports != inventory.ports;
        let before = std::mem::replace(&mut entry.1, inventory);
        self.outdated |= ports_changed;
        self.part(node, before.groups);
        true
    }

    /// Remembers which ports left their group.
    fn part(&mut self, node: &NodeId, before: Vec<EcmpGroup>) {
        let now = self.reported.get(node).map(|r| r.1.groups.as_slice());
        let is_member = |port: &Arc<str>| {
            let mut now = now.into_iter().flatten();
            now.any(|g| g.members.len() > 1 && g.members.contains(port))
        };
        self.parted
            .retain(|port, _| port.node != *node || !is_member(&port.port));
        for group in before.into_iter().filter(|g| g.members.len() > 1) {
            for port in group.members.iter().filter(|m| !is_member(m)) {
                let port = PortId {
                    node: node.clone(),
                    port: port.clone(),
                };
                self.parted.insert(port, group.members.clone());
            }
        }
    }

    fn entry(&mut self, node: &NodeId) -> &mut (Role, Inventory) {
        self.reported
            .entry(node.clone())
            .or_insert((Role::Host, Inventory::default()))
    }

    /// Takes the reports since the last call into the graph; true if there were any.
    pub fn refresh(&mut self) -> bool {
        let outdated = std::mem::take(&mut self.outdated);
        if outdated {
            self.rebuild();
        }
        outdated
    }

    /// The link that leaves by `port`; `None` if there is none.
    #[must_use]
    pub fn link(&self, port: &PortId) -> Option<LinkIx> {
        let is_there = |link: &LinkIx| self.links[link.index()].peer.is_some();
        self.number_of(port).filter(is_there)
    }

    /// The link that leaves by `port`, or once did.
    pub(crate) fn number_of(&self, port: &PortId) -> Option<LinkIx> {
        let ports = self.links_of(&port.node);
        let n = ports.binary_search_by(|(name, _)| name.cmp(&port.port));
        n.ok().map(|n| ports[n].1)
    }

    /// Links that leave a node or once did, in the order of their ports' names.
    #[must_use]
    pub fn links_of(&self, node: &NodeId) -> &[(Arc<str>, LinkIx)] {
        self.of_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// The link of a number as [`LinkIx::index`] gives it.
    #[must_use]
    pub fn link_at(&self, index: usize) -> Option<LinkIx> {
        let ix = u32::try_from(index).ok()?;
        (index < self.links.len()).then_some(LinkIx(ix))
    }

    /// Nodes with links, in order, each with the links that leave it.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &[(Arc<str>, LinkIx)])> {
        self.of_node
            .iter()
            .map(|(node, links)| (node, links.as_slice()))
    }

    /// The port that a link leaves by.
    #[must_use]
    pub fn port(&self, link: LinkIx) -> &PortId {
        &self.links[link.index()].port
    }

    pub(crate) fn port_at(&self, index: usize) -> Option<&PortId> {
        self.links.get(index).map(|link| &link.port)
    }

    /// The port at the other end of the cable.
    #[must_use]
    pub fn peer(&self, port: &PortId) -> Option<&PortId> {
        self.links[self.link(port)?.index()].peer.as_ref()
    }

    /// Capacity of the directed link that leaves by `port`, in bits per second.
    #[must_use]
    pub fn capacity_bps(&self, port: &PortId) -> Option<f64> {
        self.capacity_of(self.link(port)?)
    }

    /// Capacity of a link in bits per second.
    #[must_use]
    pub fn capacity_of(&self, link: LinkIx) -> Option<f64> {
        self.links[link.index()].capacity_bps
    }

    /// Whether what leaves by the link is for the host at its other end.
    #[must_use]
    pub fn leads_to_host(&self, link: LinkIx) -> bool {
        self.links[link.index()].to_host
    }

    /// Links that have a number.
    #[must_use]
    pub fn links_held(&self) -> usize {
        self.links.len()
    }

    /// Directed links, in order.
    pub fn links(&self) -> impl Iterator<Item = (&PortId, &PortId)> {
        let all = self.of_node.values().flatten();
        all.filter_map(|(_, link)| {
            let link = &self.links[link.index()];
            Some((&link.port, link.peer.as_ref()?))
        })
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

    /// Whether the operator's file calls the node storage.
    #[must_use]
    pub fn is_storage(&self, node: &NodeId) -> bool {
        self.plan.storage.contains(node)
    }

    /// The ECMP group of `node` that `port` is a member of, if it has at least two.
    #[must_use]
    pub fn group_of(&self, port: &PortId) -> Option<&EcmpGroup> {
        let groups = &self.reported.get(&port.node)?.1.groups;
        groups
            .iter()
            .find(|g| g.members.len() > 1 && g.members.contains(&port.port))
    }

    pub(crate) fn parted(&self) -> &BTreeMap<PortId, Vec<Arc<str>>> {
        &self.parted
    }

    /// Whether two ports of a node share a group, or did when `port` was in one last.
    #[must_use]
    pub fn shared_group(&self, port: &PortId, other: &str) -> bool {
        let members = self.group_of(port).map(|g| &g.members);
        let members = members.or_else(|| self.parted.get(port));
        members.is_some_and(|m| m.iter().any(|m| **m == *other))
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

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 3] {
        [
            ("inventories", self.reported.len(), NODES_MAX),
            ("links", self.links.len(), LINKS_MAX),
            ("findings", self.findings.len(), FINDINGS_MAX),
        ]
    }

    /// Where file and reports disagree, in words.
    #[must_use]
    pub fn findings(&self) -> &BTreeSet<String> {
        &self.findings
    }

    /// Where cables are not as the operator's file says, as their ends report.
    ///
    /// A port counts that has one neighbour only, as a cable has two ends: who sees several sits on a segment, and so do
    /// two hosts that see each other where the file has switches. The neighbour must be a port that the file cables
    /// elsewhere: the address of a VLAN interface says nothing of a cable.
    #[must_use]
    pub fn contradictions(&self) -> &BTreeSet<Contradiction> {
        &self.contradictions
    }

    fn rebuild(&mut self) {
        for link in &mut self.links {
            (link.peer, link.capacity_bps, link.planned) = (None, None, false);
            link.to_host = false;
        }
        self.addresses.clear();
        self.shared.clear();
        self.findings.clear();
        self.contradictions.clear();
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
                for (address, prefix) in &port.addresses {
                    let id = PortId::new(node, &port.name);
                    if let Some(other) = self.addresses.insert(*address, id.clone()) {
                        self.shared.insert(*address);
                        self.findings
                            .insert(format!("{address} is on {id} and on {other}"));
                    }
                    subnets
                        .entry((network(*address, *prefix), *prefix))
                        .or_default()
                        .push((id, *address));
                }
            }
        }
        let cables = std::mem::take(&mut self.plan.cables);
        for cable in &cables {
            for (from, to) in [(&cable.a, &cable.b), (&cable.b, &cable.a)] {
                self.connect(from, to, cable.rate_bps, true);
            }
        }
        self.plan.cables = cables;
        let mut seen = Vec::new();
        for ports in subnets.values() {
            if let [(a, _), (b, _)] = ports.as_slice() {
                for (from, to) in [(a, b), (b, a)] {
                    match self.peer(from) {
                        None => self.connect(from, to, None, false),
                        Some(planned) if planned == to => {}
                        Some(planned) => {
                            let text = format!(
                                "{from} is cabled to {planned} in the topology file but shares its subnet with {to}"
                            );
                            seen.push((from.clone(), planned.clone(), to.clone()));
                            self.findings.insert(text);
                        }
                    }
                }
            }
        }
        self.check_reports(&mut seen);
        self.contradict(seen);
        self.mark_hosts();
    }

    /// Marks links that lead to hosts, by the links that leave these.
    fn mark_hosts(&mut self) {
        let hosts = self
            .of_node
            .iter()
            .filter(|(node, _)| !self.is_switch(node));
        let ends = hosts.flat_map(|(_, links)| links);
        let ends = ends.filter_map(|(_, link)| self.links[link.index()].peer.as_ref());
        let leading: Vec<LinkIx> = ends.filter_map(|end| self.number_of(end)).collect();
        for link in leading {
            self.links[link.index()].to_host = true;
        }
    }

    /// The only neighbour of a port that an address names.
    fn sole_neighbour(&self, port: &PortId) -> Option<&PortId> {
        let ports = &self.reported.get(&port.node)?.1.ports;
        let report = ports.iter().find(|p| p.name == port.port)?;
        let named = report.neighbours.iter();
        let named = named.filter(|a| !self.shared.contains(a));
        sole(named.filter_map(|a| self.addresses.get(a).filter(|p| p.node != port.node)))
    }

    /// Keeps of what was seen what speaks of cables.
    fn contradict(&mut self, seen: Vec<(PortId, PortId, PortId)>) {
        let planned = |p: &PortId| self.link(p).is_some_and(|l| self.links[l.index()].planned);
        let mut found = BTreeSet::new();
        for (port, plan, actual) in seen.into_iter().take(FINDINGS_MAX) {
            if planned(&actual) && (self.is_switch(&port.node) || self.is_switch(&actual.node)) {
                let mutual = self.sole_neighbour(&port) == Some(&actual)
                    && self.sole_neighbour(&actual) == Some(&port);
                found.insert(Contradiction {
                    port,
                    planned: plan,
                    actual,
                    mutual,
                });
            }
        }
        self.contradictions = found;
    }

    fn connect(&mut self, from: &PortId, to: &PortId, rate_bps: Option<f64>, planned: bool) {
        let Some(link) = self.number(from) else {
            self.findings.insert(format!(
                "more than {LINKS_MAX} directed links: the rest is not watched"
            ));
            return;
        };
        let link = &mut self.links[link.index()];
        link.peer = Some(to.clone());
        link.capacity_bps = rate_bps;
        link.planned = planned;
    }

    /// The number of the link that leaves by a port, a new one if it has none; `None` if there is no room.
    fn number(&mut self, port: &PortId) -> Option<LinkIx> {
        let ports = match self.of_node.get_mut(&port.node) {
            Some(ports) => ports,
            None => self.of_node.entry(port.node.clone()).or_default(),
        };
        match ports.binary_search_by(|(name, _)| name.cmp(&port.port)) {
            Ok(n) => Some(ports[n].1),
            Err(n) => {
                let ix = u32::try_from(self.links.len()).ok();
                let ix = LinkIx(ix.filter(|ix| (*ix as usize) < LINKS_MAX)?);
                ports.insert(n, (port.port.clone(), ix));
                self.links.push(Link {
                    port: port.clone(),
                    peer: None,
                    capacity_bps: None,
                    planned: false,
                    to_host: false,
                });
                Some(ix)
            }
        }
    }

    /// What nodes report of their ports: speeds where the file gives none; a planned port must
    /// exist, and a planned neighbour must not be contradicted by the kernel's neighbour table.
    /// Adds to `seen` each planned port with another neighbour: port, planned, actual.
    fn check_reports(&mut self, seen: &mut Vec<(PortId, PortId, PortId)>) {
        let mut wrong = Vec::new();
        for (node, links) in &self.of_node {
            let Some((_, inventory)) = self.reported.get(node) else {
                continue;
            };
            if inventory.ports.is_empty() {
                continue;
            }
            let reported: BTreeMap<&str, _> =
                inventory.ports.iter().map(|p| (&*p.name, p)).collect();
            for (name, link) in links {
                let Link {
                    port,
                    peer,
                    capacity_bps,
                    planned,
                    ..
                } = &mut self.links[link.index()];
                let Some(peer) = peer else { continue };
                let Some(report) = reported.get(&**name) else {
                    let have: Vec<&str> = reported.keys().copied().collect();
                    wrong.push(format!(
                        "the topology file names {port}, but {node} has no such interface (it has {})",
                        have.join(", ")
                    ));
                    continue;
                };
                if capacity_bps.is_none() {
                    *capacity_bps = report.speed_bps.map(|bps| bps as f64);
                }
                let known = |a: &Ipv4Addr| match self.shared.contains(a) {
                    true => None,
                    false => self.addresses.get(a).filter(|p| p.node != *node),
                };
                if *planned
                    && let Some(actual) = sole(report.neighbours.iter().filter_map(known))
                    && actual != peer
                {
                    seen.push((port.clone(), peer.clone(), actual.clone()));
                }
                for neighbour in report.neighbours.iter().filter(|_| *planned) {
                    if let Some(actual) = self.addresses.get(neighbour)
                        && actual.node != peer.node
                        && actual.node != *node
                    {
                        wrong.push(format!(
                            "{port} is cabled to {peer} in the topology file but sees {neighbour} of {actual}"
                        ));
                    }
                }
            }
        }
        self.findings.extend(wrong);
        let over = self.findings.len().saturating_sub(FINDINGS_MAX);
        if over > 0 {
            (0..=over).for_each(|_| drop(self.findings.pop_last()));
            // Behind all others in their order, so that it is what people read last.
            self.findings
                .insert(format!("~ {} more findings", over + 1));
        }
    }
}

/// The only one there is, however often.
fn sole<'a>(mut ports: impl Iterator<Item = &'a PortId>) -> Option<&'a PortId> {
    let first = ports.next()?;
    ports.all(|p| p == first).then_some(first)
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}
