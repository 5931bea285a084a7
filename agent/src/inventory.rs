//! What this node tells of itself: ports, addresses, neighbours, ECMP groups; and its answers to
//! "where would you send this?".

use crate::config::excluded;
use crate::netlink::nexthops::Body;
use crate::netlink::routes::Lookup;
use crate::netlink::{Netlink, NetlinkError};
use std::collections::BTreeMap;
use weir_agent_core::change::{Member, RouteChange};
use weir_wire::v1;

/// Most keys answered of one question; the controller asks again for the rest.
const KEYS_MAX: usize = 10_000;
/// Most prefixes told of one group.
const PREFIXES_MAX: usize = 256;

/// Reads the inventory, without the interfaces that are left alone.
///
/// # Errors
/// [`NetlinkError`].
pub fn read(
    netlink: &mut Netlink,
    exclude: &[String],
    routes_epoch: u64,
) -> Result<v1::Inventory, NetlinkError> {
    let links = netlink.links()?;
    let names: BTreeMap<u32, &str> = links.iter().map(|l| (l.ifindex, l.name.as_str())).collect();
    let addresses = netlink.addresses()?;
    let neighbours = netlink.neighbours()?;
    let ports = links
        .iter()
        .filter(|l| !l.loopback && !excluded(exclude, &l.name))
        .map(|l| v1::Port {
            name: l.name.clone(),
            up: l.up,
            addresses: addresses
                .iter()
                .filter(|a| a.ifindex == l.ifindex)
                .map(|a| format!("{}/{}", a.address, a.prefix_len))
                .collect(),
            neighbours: neighbours
                .iter()
                .filter(|(i, _)| *i == l.ifindex)
                .map(|(_, a)| a.to_string())
                .collect(),
            speed_bps: speed_bps(&l.name),
        });
    let nexthops = netlink.nexthops()?;
    let routes = netlink.routes()?;
    let port_of = |id: u32| {
        nexthops
            .iter()
            .find(|n| n.id == id)
            .and_then(|n| match &n.body {
                Body::Hop { ifindex, .. } => names.get(ifindex).map(|s| (*s).to_owned()),
                Body::Group { .. } => None,
            })
    };
    let groups = nexthops.iter().filter_map(|n| match &n.body {
        Body::Group { members, .. } => Some(v1::EcmpGroup {
            id: n.id,
            prefixes: routes
                .iter()
                .filter(|r| r.nexthop == Some(n.id))
                .take(PREFIXES_MAX)
                .map(|r| format!("{}/{}", r.dst, r.prefix_len))
                .collect(),
            members: members
                .iter()
                .filter_map(|m| {
                    Some(v1::EcmpMember {
                        nexthop: m.nexthop,
                        port: port_of(m.nexthop)?,
                        weight: u32::from(m.weight),
                    })
                })
                .collect(),
        }),
        Body::Hop { .. } => None,
    });
    Ok(v1::Inventory {
        ports: ports.collect(),
        groups: groups.collect(),
        routes_epoch,
        endpoints: Vec::new(),
    })
}

/// Link speed by the driver in bits per second; 0 where it does not know. veth always claims 10 Gbit/s, which means nothing.
pub(crate) fn speed_bps(name: &str) -> u64 {
    let base = format!("/sys/class/net/{name}");
    if !std::path::Path::new(&format!("{base}/device")).exists() {
        return 0;
    }
    let mbps: i64 = std::fs::read_to_string(format!("{base}/speed"))
        .ok()
        .and_then(|s| s.trim().parse().ok())
        .unwrap_or(0);
    u64::try_from(mbps).unwrap_or(0) * 1_000_000
}

/// Answers a path query from the kernel's own routing decision.
pub fn answer(netlink: &mut Netlink, query: &v1::PathQuery) -> v1::PathAnswer {
    let links = netlink.links().unwrap_or_default();
    let by_name: BTreeMap<&str, u32> = links.iter().map(|l| (l.name.as_str(), l.ifindex)).collect();
    let by_index: BTreeMap<u32, &str> =
        links.iter().map(|l| (l.ifindex, l.name.as_str())).collect();
    // Destinations of one job are few and their flows many.
    let mut groups: BTreeMap<u32, u32> = BTreeMap::new();
    let mut hops = Vec::new();
    for key in query.keys.iter().take(KEYS_MAX) {
        let mut hop = v1::PathHop {
            key: Some(key.clone()),
            ..v1::PathHop::default()
        };
        let ports = u16::try_from(key.src_port)
            .ok()
            .zip(u16::try_from(key.dst_port).ok());
        if let (Some((src_port, dst_port)), Some(in_port)) =
            (ports, by_name.get(key.in_port.as_str()))
        {
            let lookup = Lookup {
                src: key.src_ipv4.into(),
                dst: key.dst_ipv4.into(),
                src_port,
                dst_port,
                in_port: *in_port,
            };
            match netlink.lookup(&lookup) {
                Ok(route) => {
                    hop.out_port = route
                        .and_then(|r| by_index.get(&r.ifindex?))
                        .map(|s| (*s).to_owned())
                        .unwrap_or_default()
                }
                Err(error) => tracing::debug!("{error}"),
            }
            hop.group = *groups.entry(key.dst_ipv4).or_insert_with(|| {
                netlink
                    .matched(key.dst_ipv4.into())
                    .ok()
                    .flatten()
                    .and_then(|r| r.nexthop)
                    .unwrap_or(0)
            });
        }
        hops.push(hop);
    }
    v1::PathAnswer { hops }
}

/// Turns the controller's change into this node's terms.
///
/// # Errors
/// What of it this node does not have, in words.
pub fn change_of(
    netlink: &mut Netlink,
    exclude: &[String],
    change: &v1::Change,
) -> Result<RouteChange, String> {
    let text = |e: NetlinkError| e.to_string();
    let links = netlink.links().map_err(text)?;
    let ifindex = |port: &str| {
        if excluded(exclude, port) {
            return Err(format!("{port} is left alone by this node (ports_exclude)"));
        }
        links
            .iter()
            .find(|l| l.name == port)
            .map(|l| l.ifindex)
            .ok_or_else(|| format!("there is no interface {port}"))
    };
    let nexthops = netlink.nexthops().map_err(text)?;
    // The member of the group that goes out by the port.
    let member = |group: u32, port: u32| {
        let members = nexthops
            .iter()
            .find(|n| n.id == group)
            .and_then(|n| match &n.body {
                Body::Group { members, .. } => Some(members.as_slice()),
                Body::Hop { .. } => None,
            })?;
        let goes_out = |id: u32| {
            nexthops.iter().any(|n| {
                n.id == id && matches!(n.body, Body::Hop { ifindex, .. } if ifindex == port)
            })
        };
        members.iter().map(|m| m.nexthop).find(|id| goes_out(*id))
    };
    match change
        .body
        .as_ref()
        .ok_or("an empty change; is the controller newer than this agent?")?
    {
        v1::change::Body::Pin(pin) => {
            let (dst, prefix_len) = crate::config::cidr(&pin.prefix)
                .ok_or_else(|| format!("{:?} is no prefix", pin.prefix))?;
            let carrier = netlink
                .matched(dst)
                .map_err(text)?
                .ok_or_else(|| format!("there is no route to {dst}"))?;
            let group = carrier
                .nexthop
                .ok_or_else(|| format!("the route to {dst} is not carried by a next-hop group"))?;
            let nexthop = member(group, ifindex(&pin.port)?).ok_or_else(|| {
                format!(
                    "no member of next-hop group {group} goes out by {}",
                    pin.port
                )
            })?;
            Ok(RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                port: pin.port.clone(),
            })
        }
        v1::change::Body::Weights(weights) => {
            let mut members = Vec::new();
            for weight in &weights.weights {
                let nexthop = member(weights.group, ifindex(&weight.port)?).ok_or_else(|| {
                    format!(
                        "no member of next-hop group {} goes out by {}",
                        weights.group, weight.port
                    )
                })?;
                let value = u8::try_from(weight.weight)
                    .ok()
                    .filter(|w| *w > 0)
                    .ok_or_else(|| format!("weight {} is not in 1..=255", weight.weight))?;
                members.push(Member {
                    nexthop,
                    weight: value,
                });
            }
            Ok(RouteChange::Weights {
                group: weights.group,
                members,
            })
        }
    }
}
