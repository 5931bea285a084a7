//! Keeps every agent's pinglist up to date: what agents announce goes in, lists that changed come out.
//!
//! A fabric that starts brings thousands of inventories in a few seconds, so lists are made when it has
//! been quiet for [`QUIET`], and at [`PATIENCE`] after the first change at the latest.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use weir_controller_core::ids::{NodeId, PortId};
use weir_controller_core::pinglist::{self, Endpoint, Pinglist, Placed, Settings, Target, Way};
use weir_controller_core::topology::Topology;
use weir_wire::v1;

const QUIET: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
/// Endpoints taken of one node; agents announce no more.
const ENDPOINTS_MAX: usize = 64;

/// Who announced endpoints, the hash of what each was told, and the first and last change that the lists do not know of.
pub type Memory = (
    BTreeSet<NodeId>,
    BTreeMap<NodeId, u64>,
    Option<(Duration, Duration)>,
);

/// What is announced, and what was told.
#[derive(Debug)]
pub struct Pinglists {
    settings: Settings,
    endpoints: BTreeMap<NodeId, Vec<Endpoint>>,
    /// What each stream was told last, by its hash.
    told: BTreeMap<NodeId, u64>,
    /// First and last change that the lists do not know of.
    changed: Option<(Duration, Duration)>,
    /// Ordered pairs of leaves, and those without a prober.
    pub pairs: usize,
    pub pairs_uncovered: usize,
    pub left_out: usize,
}

impl Pinglists {
    #[must_use]
    pub fn new(settings: Settings) -> Pinglists {
        Pinglists {
            settings,
            endpoints: BTreeMap::new(),
            told: BTreeMap::new(),
            changed: None,
            pairs: 0,
            pairs_uncovered: 0,
            left_out: 0,
        }
    }

    #[must_use]
    pub fn memory(&self) -> Memory {
        let announced = self.endpoints.keys().cloned().collect();
        (announced, self.told.clone(), self.changed)
    }

    /// Goes on from there, when the same nodes have announced the same.
    pub fn remember(&mut self, (announced, told, changed): Memory) {
        self.endpoints.retain(|node, _| announced.contains(node));
        (self.told, self.changed) = (told, changed);
    }

    /// A new stream knows of nothing.
    pub fn connected(&mut self, node: &NodeId) {
        self.told.remove(node);
    }

    /// The node is neither probed nor told any more.
    pub fn lost(&mut self, node: &NodeId, now: Duration) {
        self.told.remove(node);
        if self.endpoints.remove(node).is_some() {
            self.change(now);
        }
    }

    /// The node's ports, and with them its place, or its endpoints may have changed.
    pub fn inventory(&mut self, node: &NodeId, inventory: &v1::Inventory, now: Duration) {
        let announced = inventory.endpoints.iter().take(ENDPOINTS_MAX);
        let endpoints = announced.filter_map(|e| endpoint_of(node, e)).collect();
        self.endpoints.insert(node.clone(), endpoints);
        self.change(now);
    }

    fn change(&mut self, now: Duration) {
        let first = self.changed.map_or(now, |(first, _)| first);
        self.changed = Some((first, now));
    }

    /// Lists that are to be told now.
    pub fn poll(&mut self, topology: &Topology, now: Duration) -> Vec<(NodeId, v1::Pinglist)> {
        let Some((first, last)) = self.changed else {
            return Vec::new();
        };
        if now < last + QUIET && now < first + PATIENCE || self.settings.packets_per_s == 0 {
            return Vec::new();
        }
        self.changed = None;
        let placed = |endpoint: &Endpoint| {
            // A verbs port is where the interface of its address is.
            let by_gid = match &endpoint.way {
                Way::Ud { gid, .. } => Ipv6Addr::from(*gid).to_ipv4_mapped(),
                Way::Udp { .. } => None,
            };
            let interface = by_gid
                .and_then(|address| topology.port_of(address))
                .cloned();
            let port = interface
                .filter(|port| port.node == endpoint.node)
                .unwrap_or_else(|| PortId::new(&endpoint.node, &endpoint.port));
            let peer = topology.peer(&port);
            let leaf = peer.map(|peer| &peer.node);
            Placed {
                leaf: leaf.filter(|leaf| topology.is_switch(leaf)).cloned(),
                endpoint: endpoint.clone(),
                rate_bps: topology.capacity_bps(&port),
            }
        };
        let endpoints: Vec<Placed> = self.endpoints.values().flatten().map(placed).collect();
        let members = |leaf: &NodeId| topology.largest_group(leaf);
        let plan = pinglist::make(&endpoints, members, &self.settings);
        (self.pairs, self.pairs_uncovered) = (plan.pairs, plan.pairs_uncovered);
        self.left_out = plan.left_out;
        let mut lists = plan.lists;
        // Who lost its last endpoint is told to stop.
        for node in self.told.keys() {
            lists.entry(node.clone()).or_default();
        }
        lists.retain(|node, list| {
            let hash = hash_of(list);
            self.told.insert(node.clone(), hash) != Some(hash)
        });
        lists
            .iter()
            .map(|(node, list)| (node.clone(), message(list)))
            .collect()
    }
}

/// The same for the same list in each run of this program.
fn hash_of(list: &Pinglist) -> u64 {
    let mut hasher = DefaultHasher::new();
    list.hash(&mut hasher);
    hasher.finish()
}

fn endpoint_of(node: &NodeId, announced: &v1::Endpoint) -> Option<Endpoint> {
    let way = match announced.kind.as_ref()? {
        v1::endpoint::Kind::Udp(udp) => {
            let address: IpAddr = udp.address.parse().ok()?;
            let usable = !address.is_loopback() && !address.is_unspecified();
            Way::Udp {
                address: usable.then_some(address)?,
                port: u16::try_from(udp.port).ok().filter(|port| *port != 0)?,
            }
        }
        v1::endpoint::Kind::Ud(ud) => Way::Ud {
            gid: ud.gid.as_slice().try_into().ok()?,
            qpn: ud.qpn,
            qkey: ud.qkey,
        },
    };
    Some(Endpoint {
        node: node.clone(),
        port: announced.port.as_str().into(),
        way,
    })
}

fn message(list: &Pinglist) -> v1::Pinglist {
    let target = |target: &Target| v1::PingTarget {
        node: target.to.node.to_string(),
        port: target.to.port.to_string(),
        from: target.from.to_string(),
        paths: target.paths.into(),
        kind: Some(match &target.to.way {
            Way::Udp { address, port } => v1::ping_target::Kind::Udp(v1::UdpEndpoint {
                address: address.to_string(),
                port: (*port).into(),
                source_ports: Vec::new(),
            }),
            Way::Ud { gid, qpn, qkey } => v1::ping_target::Kind::Ud(v1::UdEndpoint {
                gid: gid.to_vec(),
                qpn: *qpn,
                qkey: *qkey,
            }),
        }),
    };
    v1::Pinglist {
        targets: list.targets.iter().map(target).collect(),
        packets_per_second: list.packets_per_s,
        probers: list.probers.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_controller_core::io::Role;

    const MS: Duration = Duration::from_millis(1);

    fn node(n: u8) -> NodeId {
        NodeId::new(&format!("h{n}"))
    }

    fn inventory(n: u8) -> v1::Inventory {
        let udp = v1::UdpEndpoint {
            address: format!("10.0.0.{n}"),
            port: 9744,
            source_ports: vec![],
        };
        v1::Inventory {
            endpoints: vec![v1::Endpoint {
                port: "eth0".into(),
                kind: Some(v1::endpoint::Kind::Udp(udp)),
            }],
            ..v1::Inventory::default()
        }
    }

    fn started(nodes: u8) -> (Pinglists, Topology) {
        let mut lists = Pinglists::new(Settings::default());
        let mut topology = Topology::default();
        for n in 1..=nodes {
            topology.node_connected(&node(n), Role::Host);
            lists.connected(&node(n));
            lists.inventory(&node(n), &inventory(n), MS);
        }
        (lists, topology)
    }

    #[test]
    fn many_changes_are_one_and_only_who_is_concerned_is_told() {
        let (mut lists, topology) = started(30);
        assert!(lists.poll(&topology, 500 * MS).is_empty(), "not yet quiet");
        assert_eq!(lists.poll(&topology, 1001 * MS).len(), 30);
        assert!(
            lists.poll(&topology, 9000 * MS).is_empty(),
            "nothing changed"
        );
        lists.lost(&node(7), 9000 * MS);
        let told = lists.poll(&topology, 10_000 * MS);
        // Eight before it in the ring probe another; eight after it, and the eight that those probe
        // instead, are probed by others.
        assert!((8..=18).contains(&told.len()), "{}", told.len());
        assert!(told.iter().all(|(n, list)| *n != node(7)
            && list.targets.iter().all(|t| t.node != "h7")
            && !list.probers.contains(&"10.0.0.7".into())));
    }

    #[test]
    fn a_fabric_that_is_never_quiet_is_told_too() {
        let (mut lists, topology) = started(3);
        let mut told = None;
        for at in (500..20_000).step_by(500) {
            lists.inventory(&node(1), &inventory(1), at * MS);
            if !lists.poll(&topology, at * MS).is_empty() {
                told = Some(at);
                break;
            }
        }
        assert_eq!(told, Some(5500));
    }

    #[test]
    fn who_connects_again_is_told_again_and_who_answers_no_more_is_told_to_stop() {
        let (mut lists, topology) = started(3);
        lists.poll(&topology, 2000 * MS);
        lists.connected(&node(2));
        lists.inventory(&node(2), &inventory(2), 3000 * MS);
        let told = lists.poll(&topology, 4000 * MS);
        assert_eq!(
            told.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["h2"]
        );
        lists.inventory(&node(2), &v1::Inventory::default(), 5000 * MS);
        let told: BTreeMap<_, _> = lists.poll(&topology, 6000 * MS).into_iter().collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told[&node(2)], v1::Pinglist::default());
    }

    #[test]
    fn a_queue_pair_that_is_another_is_told_to_who_pings_it_within_a_second() {
        let ud = |n: u8, qpn| {
            let gid = std::net::Ipv4Addr::new(10, 0, 0, n).to_ipv6_mapped();
            let ud = v1::UdEndpoint {
                gid: gid.octets().to_vec(),
                qpn,
                qkey: 5,
            };
            v1::Inventory {
                endpoints: vec![v1::Endpoint {
                    port: "mlx5_0/1".into(),
                    kind: Some(v1::endpoint::Kind::Ud(ud)),
                }],
                ..v1::Inventory::default()
            }
        };
        let mut lists = Pinglists::new(Settings::default());
        let mut topology = Topology::default();
        for n in 1..=2 {
            topology.node_connected(&node(n), Role::Host);
            lists.connected(&node(n));
            lists.inventory(&node(n), &ud(n, 17), MS);
        }
        let told = lists.poll(&topology, 2000 * MS);
        assert_eq!(told.len(), 2);
        // Each answers the other, by its GID.
        assert_eq!(told[0].1.probers, ["::ffff:10.0.0.2"]);
        lists.inventory(&node(1), &ud(1, 18), 3000 * MS);
        let told = lists.poll(&topology, 3000 * MS + QUIET);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, node(2));
        let kind = told[0].1.targets[0].kind.clone();
        assert!(
            matches!(kind, Some(v1::ping_target::Kind::Ud(ud)) if ud.qpn == 18),
            "{told:?}"
        );
    }

    #[test]
    fn told_not_to_probe_nobody_is_told_anything() {
        let (mut lists, topology) = started(3);
        lists.settings.packets_per_s = 0;
        assert!(lists.poll(&topology, 9000 * MS).is_empty());
    }
}
