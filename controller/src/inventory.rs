//! What an agent says of its ports, next-hop groups and paths, as the core takes it.

use crate::ingest::{IngestError, few, name};
use std::net::Ipv4Addr;
use weir_controller_core::ids::FlowKey;
use weir_controller_core::io;
use weir_wire::v1;

/// Ports of a node, and next-hop groups of a switch.
const PORTS_MAX: usize = 8192;
/// Members of a next-hop group.
const MEMBERS_MAX: usize = 1024;

pub(crate) fn hop_of(hop: &v1::PathHop) -> Option<io::ResolvedHop> {
    let key = hop.key.as_ref()?;
    Some(io::ResolvedHop {
        key: FlowKey {
            src: key.src_ipv4.into(),
            dst: key.dst_ipv4.into(),
            src_port: u16::try_from(key.src_port).ok()?,
            dst_port: u16::try_from(key.dst_port).ok()?,
        },
        in_port: key.in_port.as_str().into(),
        out_port: (!hop.out_port.is_empty()).then(|| hop.out_port.as_str().into()),
        group: (hop.group != 0).then_some(hop.group),
    })
}

pub(crate) fn inventory_of(inventory: v1::Inventory) -> Result<io::Inventory, IngestError> {
    let mut ports = Vec::new();
    few("ports", inventory.ports.len(), PORTS_MAX)?;
    few("next-hop groups", inventory.groups.len(), PORTS_MAX)?;
    for port in inventory.ports {
        name(&port.name)?;
        let mut addresses = Vec::new();
        for text in &port.addresses {
            // IPv6 is not used for paths yet and is passed over, not refused.
            if !text.contains(':') {
                addresses.push(cidr(text).ok_or_else(|| IngestError::Address {
                    port: port.name.clone(),
                    text: text.clone(),
                })?);
            }
        }
        ports.push(io::PortInventory {
            up: port.up,
            addresses,
            neighbours: port
                .neighbours
                .iter()
                .filter_map(|n| n.parse().ok())
                .collect(),
            speed_bps: (port.speed_bps != 0).then_some(port.speed_bps),
            name: port.name.into(),
        });
    }
    for group in &inventory.groups {
        few("members of a group", group.members.len(), MEMBERS_MAX)?;
        group.members.iter().try_for_each(|m| name(&m.port))?;
    }
    let groups = inventory.groups.into_iter().map(|g| io::EcmpGroup {
        id: g.id,
        members: g.members.into_iter().map(|m| m.port.into()).collect(),
    });
    Ok(io::Inventory {
        ports,
        groups: groups.collect(),
        routes_epoch: inventory.routes_epoch,
    })
}

fn cidr(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    Some((
        address.parse().ok()?,
        prefix.parse().ok().filter(|p| *p <= 32)?,
    ))
}
