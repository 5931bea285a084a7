//! Routes: what the kernel would do with a packet, what stands in the main table, and changes to it.

use super::{Attributes, NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, Request, ipv4, u32_at};
use std::fmt;
use std::net::Ipv4Addr;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
const RTA_NH_ID: u16 = 30;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTM_F_FIB_MATCH: u32 = 0x2000;
const TABLE_MAIN: u8 = 254;
const TYPE_UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;

/// rtm_protocol of the routes that Weir writes, so that they can be told from everybody else's.
pub const PROTOCOL_WEIR: u8 = 0x57;

/// Packet headers on which the kernel hashes, and where the packet comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub src_port: u16,
    pub dst_port: u16,
    /// ifindex.
    pub in_port: u32,
}

/// A unicast IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub dst: Ipv4Addr,
    pub prefix_len: u8,
    pub protocol: u8,
    /// Next-hop object or group.
    pub nexthop: Option<u32>,
    pub gateway: Option<Ipv4Addr>,
    pub ifindex: Option<u32>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dst, self.prefix_len)?;
        if let Some(id) = self.nexthop {
            write!(f, " via next hop {id}")?;
        }
        write!(f, " (protocol {})", self.protocol)
    }
}

impl Netlink {
    /// The port by which the kernel would send a TCP packet on; `None` if it has no route.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn lookup(&mut self, lookup: &Lookup) -> Result<Option<Route>, NetlinkError> {
        self.get(lookup, RTM_F_LOOKUP_TABLE)
    }

    /// The route of the table that a packet matches, before a member of its group is chosen.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn matched(&mut self, dst: Ipv4Addr) -> Result<Option<Route>, NetlinkError> {
        let request = Request::new(
            format!("match route to {dst}"),
            RTM_GETROUTE,
            0,
            &header(32, 0, 0, RTM_F_FIB_MATCH),
        )
        .attribute(RTA_DST, &dst.octets());
        self.route_of(request)
    }

    fn get(&mut self, lookup: &Lookup, flags: u32) -> Result<Option<Route>, NetlinkError> {
        // The kernel's choice among members may depend on it.
        let protocol = match lookup.dst_port {
            weir_ebpf_abi::ROCE_PORT => libc::IPPROTO_UDP,
            _ => libc::IPPROTO_TCP,
        };
        let mut header = header(32, 0, 0, flags);
        header[2] = 32;
        let request = Request::new(
            format!("look up route to {}", lookup.dst),
            RTM_GETROUTE,
            0,
            &header,
        )
        .attribute(RTA_DST, &lookup.dst.octets())
        .attribute(RTA_SRC, &lookup.src.octets())
        .u32(RTA_IIF, lookup.in_port)
        .attribute(RTA_IP_PROTO, &[protocol.to_ne_bytes()[0]])
        .attribute(RTA_SPORT, &lookup.src_port.to_be_bytes())
        .attribute(RTA_DPORT, &lookup.dst_port.to_be_bytes());
        self.route_of(request)
    }

    fn route_of(&mut self, request: Request) -> Result<Option<Route>, NetlinkError> {
        let mut route = None;
        match self.query(request, |_, m| route = parse(m)) {
            Err(e)
                if matches!(
                    e.errno(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ESRCH)
                ) =>
            {
                Ok(None)
            }
            other => other.map(|()| route),
        }
    }

    /// All unicast IPv4 routes of the main table.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        self.query(
            Request::dump("list routes", RTM_GETROUTE, &header(0, 0, 0, 0)),
            |_, m| {
                if m.get(4) == Some(&TABLE_MAIN) && m.get(7) == Some(&TYPE_UNICAST) {
                    routes.extend(parse(m));
                }
            },
        )?;
        Ok(routes)
    }

    /// Makes a route; its prefix must be free.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.change(request(route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Removes a route of the prefix and protocol, wherever it goes; true if there was one.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn delete_route(
        &mut self,
        dst: Ipv4Addr,
        prefix_len: u8,
        protocol: u8,
    ) -> Result<bool, NetlinkError> {
        let route = Route {
            dst,
            prefix_len,
            protocol,
            nexthop: None,
            gateway: None,
            ifindex: None,
        };
        match self.change(request(&route, RTM_DELROUTE, 0)) {
            Err(e) if e.errno() == Some(libc::ESRCH) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

/// struct rtmsg.
fn header(prefix_len: u8, protocol: u8, scope: u8, flags: u32) -> [u8; 12] {
    let mut header = [
        libc::AF_INET.to_ne_bytes()[0],
        prefix_len,
        0,
        0,
        0,
        protocol,
        scope,
        0,
        0,
        0,
        0,
        0,
    ];
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn request(route: &Route, kind: u16, flags: u16) -> Request {
    let mut header = header(route.prefix_len, route.protocol, SCOPE_UNIVERSE, 0);
    (header[4], header[7]) = (TABLE_MAIN, TYPE_UNICAST);
    let mut request = Request::new(
        format!("route {}/{}", route.dst, route.prefix_len),
        kind,
        flags,
        &header,
    )
    .attribute(RTA_DST, &route.dst.octets());
    if let Some(id) = route.nexthop {
        return request.u32(RTA_NH_ID, id);
    }
    if let Some(gateway) = route.gateway {
        request = request.attribute(RTA_GATEWAY, &gateway.octets());
    }
    match route.ifindex {
        Some(ifindex) => request.u32(RTA_OIF, ifindex),
        None => request,
    }
}

pub(crate) fn parse(message: &[u8]) -> Option<Route> {
    let mut route = Route {
        dst: Ipv4Addr::UNSPECIFIED,
        prefix_len: *message.get(1)?,
        protocol: *message.get(5)?,
        nexthop: None,
        gateway: None,
        ifindex: None,
    };
    for (kind, value) in Attributes(message.get(12..)?) {
        match kind {
            RTA_DST => route.dst = ipv4(value)?,
            RTA_OIF => route.ifindex = u32_at(value, 0),
            RTA_GATEWAY => route.gateway = ipv4(value),
            RTA_NH_ID => route.nexthop = u32_at(value, 0),
            RTA_TABLE if u32_at(value, 0) != Some(u32::from(TABLE_MAIN)) => return None,
            _ => {}
        }
    }
    Some(route)
}
