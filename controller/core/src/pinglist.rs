//! Who probes whom: a few of its own leaf, and a share of the pairs of leaves.
//!
//! - *Same leaf.* The endpoints of a leaf form a ring, in an order that a hash gives; each probes the
//!   next [`SAME_LEAF`] in it, and is probed by as many. This watches every host's link.
//! - *Across.* For each ordered pair of leaves some endpoints of the one probe some of the other, from
//!   enough source ports that each of the equal paths between them is taken by some flow. Whose turn it
//!   is follows from rendezvous hashing with a limit for each endpoint (Thaler and Ravishankar 1998).
//!   Two probers for each pair, where there are two, so that a sick host is not taken for a sick path.
//!
//! What a node costs is constant, whatever the size of the fabric; when a node comes or goes its ring's
//! neighbours and the pairs that it served change, and no others (but for limits that were reached).
//! The same endpoints give the same lists. Cost: pairs of leaves times hosts of a leaf.

use crate::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Neighbours in the ring of a leaf.
pub const SAME_LEAF: usize = 3;
/// Source ports inside a leaf, where there is one path: a second queue of each NIC.
const SAME_LEAF_PATHS: u8 = 2;
/// Neighbours where nobody knows the leaves: one ring of all.
pub const UNPLACED: usize = 8;
/// Source ports where the number of paths is not known.
const PATHS_UNKNOWN: u8 = 8;
/// Targets of one endpoint on other leaves, at most.
pub const ACROSS: usize = 6;
/// Probers on other leaves that one endpoint answers, at most.
const ACROSS_IN: usize = 2 * ACROSS;
/// Probers of one pair of leaves.
const PROBERS: usize = 2;
/// Source ports to one target, at most: what an agent opens unless it is told otherwise.
const PATHS_MAX: u8 = 16;
/// Endpoints of one kind of one node, at most: the eight rails of a GPU node.
const ENDPOINTS_MAX: usize = 8;
/// Chance that some path between two leaves is taken by none of the flows.
const MISSED: f64 = 0.01;

/// What an operator can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Probes of one node in a second, at most; 0: nobody is told to probe. Each path gets one a second
    /// where that is less.
    pub packets_per_s: u32,
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            packets_per_s: 200,
            seed: 0,
        }
    }
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    Udp { address: IpAddr, port: u16 },
    Ud { gid: [u8; 16], qpn: u32, qkey: u32 },
}

impl Way {
    /// Endpoints probe those of their own kind.
    fn kind(&self) -> u8 {
        match self {
            Way::Udp { address, .. } if address.is_ipv4() => 0,
            Way::Udp { .. } => 1,
            Way::Ud { .. } => 2,
        }
    }

    /// What probes come from: an address, or a GID in the notation of one.
    fn source(&self) -> IpAddr {
        match self {
            Way::Udp { address, .. } => *address,
            Way::Ud { gid, .. } => IpAddr::from(*gid),
        }
    }
}

/// Where a node answers and probes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub node: NodeId,
    pub port: Arc<str>,
    pub way: Way,
}

/// An endpoint in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub endpoint: Endpoint,
    /// The switch that its port is cabled to; `None`: not known.
    pub leaf: Option<NodeId>,
    /// Capacity of its link in bits per second, where somebody knows.
    pub rate_bps: Option<f64>,
}

/// Whom to probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub to: Endpoint,
    /// Port of the prober's own endpoint.
    pub from: Arc<str>,
    pub paths: u8,
}

/// What one node is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pinglist {
    /// Same leaf first.
    pub targets: Vec<Target>,
    pub packets_per_s: u32,
    /// Where it is probed from.
    pub probers: BTreeSet<IpAddr>,
}

/// The lists of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub lists: BTreeMap<NodeId, Pinglist>,
    /// Ordered pairs of leaves, and those that have no prober because every endpoint has its limit.
    pub pairs: usize,
    pub pairs_uncovered: usize,
    /// Endpoints left out: an address that several nodes claim, or more than a node may have.
    pub left_out: usize,
}

/// Makes the lists. `members` gives the size of a leaf's largest ECMP group; `None`: not known.
#[must_use]
pub fn make(
    endpoints: &[Placed],
    members: impl Fn(&NodeId) -> Option<usize>,
    settings: &Settings,
) -> Plan {
    let mut plan = Plan::default();
    let usable = usable(endpoints, &mut plan);
    for placed in &usable {
        plan.lists.entry(placed.endpoint.node.clone()).or_default();
    }
    for kind in 0..=2 {
        let mut leaves: BTreeMap<Option<&NodeId>, Vec<&Endpoint>> = BTreeMap::new();
        for placed in usable.iter().filter(|p| p.endpoint.way.kind() == kind) {
            let leaf = leaves.entry(placed.leaf.as_ref()).or_default();
            leaf.push(&placed.endpoint);
        }
        for (leaf, endpoints) in &leaves {
            ring(endpoints, leaf.is_some(), settings.seed, &mut plan);
        }
        let leaves: BTreeMap<&NodeId, Vec<&Endpoint>> = leaves
            .into_iter()
            .filter_map(|(leaf, endpoints)| Some((leaf?, endpoints)))
            .collect();
        across(&leaves, &members, settings.seed, &mut plan);
    }
    let mut slowest: BTreeMap<&NodeId, f64> = BTreeMap::new();
    for placed in &usable {
        if let Some(rate_bps) = placed.rate_bps {
            let rate = slowest.entry(&placed.endpoint.node).or_insert(rate_bps);
            *rate = rate.min(rate_bps);
        }
    }
    for (node, list) in &mut plan.lists {
        let paths: u32 = list.targets.iter().map(|t| u32::from(t.paths)).sum();
        let slowest = slowest.get(node).copied();
        let most = slowest.map_or(settings.packets_per_s, packets_of_link);
        list.packets_per_s = paths.min(settings.packets_per_s).min(most);
    }
    plan
}

/// Probes that a node is told to send in a second over such a link. Agents send at most a
/// five-thousandth of its rate, so that all that probes bring forth takes a thousandth, and answer as
/// much; they are told a third of it, because an endpoint may have twice as many probers as
/// targets ([`ACROSS_IN`]), and what is not answered looks like loss. At 150 bytes on the wire.
fn packets_of_link(rate_bps: f64) -> u32 {
    // A float turns into the nearest number that there is, and into 0 below it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, which is meant"
    )]
    let packets = (rate_bps / 5000.0 / 3.0 / 8.0 / 150.0) as u32;
    packets
}

/// One owner for each address, so many for each node, and those in a known place if a node has one:
/// the rest is management, containers, or a mistake.
fn usable<'a>(endpoints: &'a [Placed], plan: &mut Plan) -> Vec<&'a Placed> {
    let mut owners: BTreeMap<(u8, IpAddr), BTreeSet<&NodeId>> = BTreeMap::new();
    let mut placed: BTreeSet<&NodeId> = BTreeSet::new();
    for p in endpoints {
        let key = (p.endpoint.way.kind(), p.endpoint.way.source());
        owners.entry(key).or_default().insert(&p.endpoint.node);
        if p.leaf.is_some() {
            placed.insert(&p.endpoint.node);
        }
    }
    let mut counts: BTreeMap<(&NodeId, u8), usize> = BTreeMap::new();
    let mut sorted: Vec<&Placed> = endpoints.iter().collect();
    sorted.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    sorted.retain(|p| {
        let kind = p.endpoint.way.kind();
        let claimed = owners.get(&(kind, p.endpoint.way.source()));
        let count = counts.entry((&p.endpoint.node, kind)).or_default();
        let fits = claimed.is_some_and(|owners| owners.len() == 1) && *count < ENDPOINTS_MAX;
        let in_place = p.leaf.is_some() || !placed.contains(&p.endpoint.node);
        plan.left_out += usize::from(in_place && !fits);
        *count += usize::from(in_place && fits);
        in_place && fits
    });
    sorted
}

/// Each probes the next few of other nodes.
fn ring(endpoints: &[&Endpoint], known: bool, seed: u64, plan: &mut Plan) {
    let (count, paths) = if known {
        (SAME_LEAF, SAME_LEAF_PATHS)
    } else {
        (UNPLACED, PATHS_UNKNOWN)
    };
    let mut ring: Vec<(u64, &Endpoint)> = endpoints
        .iter()
        .map(|e| (hash(seed, &[e.node.as_str(), &e.port]), *e))
        .collect();
    ring.sort_unstable();
    for (at, (_, from)) in ring.iter().enumerate() {
        let next = ring.iter().cycle().skip(at + 1).take(ring.len() - 1);
        let others = next.map(|(_, to)| *to).filter(|to| to.node != from.node);
        for to in others.take(count) {
            add(from, to, paths, plan);
        }
    }
}

/// How much an endpoint has taken on.
#[derive(Default)]
struct Load<'a> {
    out: BTreeMap<&'a Endpoint, usize>,
    within: BTreeMap<&'a Endpoint, usize>,
}

fn across(
    leaves: &BTreeMap<&NodeId, Vec<&Endpoint>>,
    members: &impl Fn(&NodeId) -> Option<usize>,
    seed: u64,
    plan: &mut Plan,
) {
    // In an order that favours no leaf for its name.
    let mut pairs: Vec<(u64, &NodeId, &NodeId)> = leaves
        .keys()
        .flat_map(|a| leaves.keys().map(move |b| (*a, *b)))
        .filter(|(a, b)| a != b)
        .map(|(a, b)| (hash(seed, &[a.as_str(), b.as_str()]), a, b))
        .collect();
    pairs.sort_unstable();
    plan.pairs += pairs.len();
    let groups: BTreeMap<&NodeId, Option<usize>> =
        leaves.keys().map(|leaf| (*leaf, members(leaf))).collect();
    let mut load = Load::default();
    let mut first: BTreeMap<(&NodeId, &NodeId), (&Endpoint, &Endpoint)> = BTreeMap::new();
    for round in 0..PROBERS {
        for (_, a, b) in &pairs {
            let (Some(from), Some(to)) = (leaves.get(a), leaves.get(b)) else {
                continue;
            };
            let former = first.get(&(*a, *b)).copied();
            if round > 0 && former.is_none() {
                continue;
            }
            let pair = [a.as_str(), b.as_str()];
            let not = former.map(|(from, _)| &from.node);
            let from = choose(from, &[not], &load.out, ACROSS, seed, &pair);
            let not = [former.map(|(_, to)| &to.node), from.map(|from| &from.node)];
            let to = choose(to, &not, &load.within, ACROSS_IN, seed, &pair);
            let (Some(from), Some(to)) = (from, to) else {
                plan.pairs_uncovered += usize::from(round == 0);
                continue;
            };
            let groups = [a, b].map(|leaf| groups.get(*leaf).copied().flatten());
            add(from, to, paths(groups), plan);
            *load.out.entry(from).or_default() += 1;
            *load.within.entry(to).or_default() += 1;
            first.entry((*a, *b)).or_insert((from, to));
        }
    }
}

/// Of those that have room and are not of these nodes, whose hash with the pair is highest.
fn choose<'a>(
    among: &[&'a Endpoint],
    not: &[Option<&NodeId>],
    load: &BTreeMap<&Endpoint, usize>,
    limit: usize,
    seed: u64,
    pair: &[&str; 2],
) -> Option<&'a Endpoint> {
    let free = among.iter().filter(|e| {
        let taken = load.get(**e).copied().unwrap_or(0);
        taken < limit && !not.contains(&Some(&e.node))
    });
    let ranked = free.map(|e| {
        (
            hash(seed, &[pair[0], pair[1], e.node.as_str(), &e.port]),
            *e,
        )
    });
    ranked.max().map(|(_, endpoint)| endpoint)
}

/// Flows of one prober so that all probers of a pair together miss no path, with the chance of
/// [`MISSED`]: by the union bound `g (1 - 1/g)^n`, for the larger group of the two leaves.
fn paths(groups: [Option<usize>; 2]) -> u8 {
    let Some(group) = groups.into_iter().flatten().max() else {
        return PATHS_UNKNOWN;
    };
    let group = group.max(1) as f64;
    let mut missed = group;
    let mut flows = 0usize;
    while missed > MISSED && flows < PROBERS * usize::from(PATHS_MAX) {
        missed *= 1.0 - 1.0 / group;
        flows += 1;
    }
    let each = u8::try_from(flows.div_ceil(PROBERS)).unwrap_or(PATHS_MAX);
    each.clamp(SAME_LEAF_PATHS, PATHS_MAX)
}

fn add(from: &Endpoint, to: &Endpoint, paths: u8, plan: &mut Plan) {
    if let Some(list) = plan.lists.get_mut(&from.node) {
        list.targets.push(Target {
            to: to.clone(),
            from: from.port.clone(),
            paths,
        });
    }
    if let Some(list) = plan.lists.get_mut(&to.node) {
        list.probers.insert(from.way.source());
    }
}

/// FNV-1a of the words, mixed as splitmix64 does: near names are far apart.
fn hash(seed: u64, words: &[&str]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed;
    for word in words {
        for byte in word.bytes().chain([0]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests;
