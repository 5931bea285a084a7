//! What an agent can be asked to change.

use std::fmt;
use std::net::Ipv4Addr;

/// A change of one routing knob, in this node's own terms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteChange {
    /// Sends everything for a prefix to one next-hop object.
    Pin {
        dst: Ipv4Addr,
        prefix_len: u8,
        nexthop: u32,
        port: String,
    },
    /// Sets the weights of a next-hop group.
    Weights { group: u32, members: Vec<Member> },
}

/// A member of a next-hop group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub nexthop: u32,
    /// 1 to 255.
    pub weight: u8,
}

/// The one place in the kernel that a change touches; two leases never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knob {
    Route { dst: Ipv4Addr, prefix_len: u8 },
    Group(u32),
}

impl RouteChange {
    #[must_use]
    pub fn knob(&self) -> Knob {
        match self {
            RouteChange::Pin {
                dst, prefix_len, ..
            } => Knob::Route {
                dst: *dst,
                prefix_len: *prefix_len,
            },
            RouteChange::Weights { group, .. } => Knob::Group(*group),
        }
    }
}

impl fmt::Display for RouteChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                port,
            } => write!(f, "pin {dst}/{prefix_len} via nexthop {nexthop} ({port})"),
            RouteChange::Weights { group, members } => {
                let members: Vec<String> = members
                    .iter()
                    .map(|m| format!("{}={}", m.nexthop, m.weight))
                    .collect();
                write!(f, "weights of group {group}: {}", members.join(" "))
            }
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Knob::Route { dst, prefix_len } => write!(f, "route {dst}/{prefix_len}"),
            Knob::Group(id) => write!(f, "next-hop group {id}"),
        }
    }
}
