//! Interfaces with their statistics, addresses and neighbours.

use super::{Attributes, Netlink, NetlinkError, Request, ipv4, text, u16_at, u32_at, u64_at};
use std::net::Ipv4Addr;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETNEIGH: u16 = 30;
const IFLA_IFNAME: u16 = 3;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_STATS64: u16 = 23;
const IFF_UP: u32 = 1;
const ARPHRD_ETHER: u16 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_LOWER_UP: u32 = 1 << 16;
const OPER_UP: u8 = 6;
const OPER_UNKNOWN: u8 = 0;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
/// NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT: the peer was there.
const NUD_SEEN: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

/// An interface at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub loopback: bool,
    /// Its frames begin with an Ethernet header.
    pub ethernet: bool,
    /// Administratively up with a carrier.
    pub up: bool,
    /// Its driver tells no state (operstate "unknown"): it is up if it has a carrier.
    pub state_unknown: bool,
    /// `None` where the driver gives no 64-bit statistics.
    pub stats: Option<Stats>,
}

/// rtnl_link_stats64, the fields that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    /// Packets for which the device had no buffer.
    pub rx_missed: u64,
}

/// An IPv4 address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ifindex: u32,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
}

impl Netlink {
    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = Vec::new();
        self.query(
            Request::dump("list interfaces", RTM_GETLINK, &[0; 16]),
            |_, m| links.extend(parse_link(m)),
        )?;
        Ok(links)
    }

    /// All IPv4 addresses of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let mut addresses = Vec::new();
        self.query(
            Request::dump(
                "list addresses",
                RTM_GETADDR,
                &[libc::AF_INET.to_ne_bytes()[0], 0, 0, 0, 0, 0, 0, 0],
            ),
            |_, m| addresses.extend(parse_address(m)),
        )?;
        Ok(addresses)
    }

    /// IPv4 neighbours that answered: (ifindex, address).
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn neighbours(&mut self) -> Result<Vec<(u32, Ipv4Addr)>, NetlinkError> {
        let mut neighbours = Vec::new();
        let mut header = [0; 12];
        header[0] = libc::AF_INET.to_ne_bytes()[0];
        self.query(
            Request::dump("list neighbours", RTM_GETNEIGH, &header),
            |_, m| neighbours.extend(parse_neighbour(m)),
        )?;
        Ok(neighbours)
    }
}

pub(crate) fn parse_link(message: &[u8]) -> Option<Link> {
    let flags = u32_at(message, 8)?;
    let mut link = Link {
        ifindex: u32_at(message, 4)?,
        name: String::new(),
        loopback: flags & IFF_LOOPBACK != 0,
        ethernet: u16_at(message, 2)? == ARPHRD_ETHER,
        up: false,
        state_unknown: false,
        stats: None,
    };
    let mut operstate = OPER_UNKNOWN;
    for (kind, value) in Attributes(message.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_OPERSTATE => operstate = value.first().copied().unwrap_or(OPER_UNKNOWN),
            IFLA_STATS64 => link.stats = parse_stats(value),
            _ => {}
        }
    }
    let running = operstate == OPER_UP || (operstate == OPER_UNKNOWN && flags & IFF_LOWER_UP != 0);
    link.state_unknown = operstate == OPER_UNKNOWN;
    link.up = flags & IFF_UP != 0 && running;
    Some(link)
}

fn parse_stats(v: &[u8]) -> Option<Stats> {
    Some(Stats {
        rx_packets: u64_at(v, 0)?,
        tx_packets: u64_at(v, 8)?,
        rx_bytes: u64_at(v, 16)?,
        tx_bytes: u64_at(v, 24)?,
        rx_errors: u64_at(v, 32)?,
        tx_errors: u64_at(v, 40)?,
        rx_dropped: u64_at(v, 48)?,
        tx_dropped: u64_at(v, 56)?,
        rx_missed: u64_at(v, 120)?,
    })
}

pub(crate) fn parse_address(message: &[u8]) -> Option<Address> {
    let local = Attributes(message.get(8..)?).find(|(k, _)| *k == IFA_LOCAL)?;
    Some(Address {
        ifindex: u32_at(message, 4)?,
        address: ipv4(local.1)?,
        prefix_len: *message.get(1)?,
    })
}

pub(crate) fn parse_neighbour(message: &[u8]) -> Option<(u32, Ipv4Addr)> {
    let seen = u16_at(message, 8)? & NUD_SEEN != 0;
    let dst = Attributes(message.get(12..)?).find(|(k, _)| *k == NDA_DST)?;
    let address = ipv4(dst.1)?;
    (seen && !address.is_multicast()).then_some((u32_at(message, 4)?, address))
}
