//! This node's own ends: interfaces that are up, an address of each, and how fast they are.

use crate::config::excluded;
use crate::inventory::speed_bps;
use crate::netlink::Netlink;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// Ends that are told of one node.
const LOCALS_MAX: usize = 64;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub port: String,
    /// IPv4 where it has one, otherwise a global IPv6 address.
    pub address: IpAddr,
    /// Bits per second; `None` where the driver does not know.
    pub rate_bps: Option<u64>,
}

/// The interfaces that are up, have an address and are not left alone.
///
/// # Errors
/// What netlink says.
pub fn read(exclude: &[String]) -> Result<Vec<Local>, String> {
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let links = netlink.links().map_err(|e| e.to_string())?;
    let v4 = netlink.addresses().map_err(|e| e.to_string())?;
    // Not /proc/net, which is the first thread's namespace.
    let v6 = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let v6 = parse_v6(&v6);
    let usable = links
        .into_iter()
        .filter(|l| l.up && !l.loopback && !excluded(exclude, &l.name));
    let local = |link: crate::netlink::links::Link| {
        let of_link = v4.iter().find(|a| a.ifindex == link.ifindex);
        let address = of_link.map(|a| IpAddr::V4(a.address));
        let address = address.or_else(|| v6.get(&link.ifindex).map(|a| IpAddr::V6(*a)))?;
        Some(Local {
            rate_bps: Some(speed_bps(&link.name)).filter(|bps| *bps > 0),
            port: link.name,
            address,
        })
    };
    Ok(usable.filter_map(local).take(LOCALS_MAX).collect())
}

/// First address of global scope of each interface, by its number.
fn parse_v6(text: &str) -> BTreeMap<u32, Ipv6Addr> {
    let mut addresses = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // address, interface, prefix length, scope, flags, name; all but the name in hex.
        let [address, ifindex, _, "00", flags, ..] = fields.as_slice() else {
            continue;
        };
        let address = u128::from_str_radix(address, 16).ok();
        let ifindex = u32::from_str_radix(ifindex, 16).ok();
        // IFA_F_TENTATIVE, IFA_F_DADFAILED: not to be used yet, or ever.
        let usable = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x48 == 0);
        if let (Some(address), Some(ifindex), true) = (address, ifindex, usable) {
            addresses.entry(ifindex).or_insert(address.into());
        }
    }
    addresses
}

/// The end that packets to `target` leave by; `None` where there is no route or it is not one of ours.
#[must_use]
pub fn leaves_by(locals: &[Local], target: SocketAddr) -> Option<&Local> {
    let any: IpAddr = match target.ip() {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let address = socket.local_addr().ok()?.ip();
    locals.iter().find(|local| local.address == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_and_unusable_addresses_are_passed_over() {
        let text = "\
00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000007 02 40 20 80     eth0
20010db8000000000000000000000007 02 40 00 40     eth0
20010db8000000000000000000000008 02 40 00 80     eth0
garbage
20010db8000000000000000000000009 0b 40 00 00     eth9
";
        let addresses = parse_v6(text);
        let expected: Ipv6Addr = "2001:db8::8".parse().unwrap();
        assert_eq!(addresses.get(&2), Some(&expected));
        assert_eq!(addresses.len(), 2);
    }
}
