//! Next-hop objects and groups (RTM_*NEXTHOP, include/uapi/linux/nexthop.h).

use super::{
    Attributes, NLM_F_CREATE, NLM_F_REPLACE, Netlink, NetlinkError, Request, ipv4, u16_at, u32_at,
};
use std::net::Ipv4Addr;
use weir_agent_core::change::Member;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// NEXTHOP_GRP_TYPE_MPATH: the group that spreads by weights; the other kind keeps flows in buckets.
pub const KIND_MULTIPATH: u16 = 0;

/// A next-hop object of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nexthop {
    pub id: u32,
    /// rtm_protocol of whoever made it.
    pub protocol: u8,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Hop {
        gateway: Option<Ipv4Addr>,
        ifindex: u32,
    },
    Group {
        members: Vec<GroupMember>,
        kind: u16,
    },
}

/// A group's member as the journal keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GroupMember {
    pub nexthop: u32,
    pub weight: u8,
}

impl From<Member> for GroupMember {
    fn from(m: Member) -> GroupMember {
        GroupMember {
            nexthop: m.nexthop,
            weight: m.weight,
        }
    }
}

impl Netlink {
    /// All next-hop objects of the namespace; empty where the kernel has none of the kind.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn nexthops(&mut self) -> Result<Vec<Nexthop>, NetlinkError> {
        let mut nexthops = Vec::new();
        let result = self.query(
            Request::dump("list next hops", RTM_GETNEXTHOP, &[0; 8]),
            |_, m| nexthops.extend(parse(m)),
        );
        match result {
            // Kernels before 5.3.
            Err(e) if e.errno() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            other => other.map(|()| nexthops),
        }
    }

    /// Makes a next hop or a group, or replaces the one of its id.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), NetlinkError> {
        self.change(request(nexthop))
    }
}

fn request(nexthop: &Nexthop) -> Request {
    let is_group = matches!(nexthop.body, Body::Group { .. });
    let family = if is_group {
        libc::AF_UNSPEC
    } else {
        libc::AF_INET
    };
    // The kernel finds the scope by itself and refuses one that is given.
    let header = [family.to_ne_bytes()[0], 0, nexthop.protocol, 0, 0, 0, 0, 0];
    let request = Request::new(
        format!("set next hop {}", nexthop.id),
        RTM_NEWNEXTHOP,
        NLM_F_CREATE | NLM_F_REPLACE,
        &header,
    )
    .u32(NHA_ID, nexthop.id);
    match &nexthop.body {
        Body::Hop { gateway, ifindex } => {
            let request = request.u32(NHA_OIF, *ifindex);
            match gateway {
                Some(gateway) => request.attribute(NHA_GATEWAY, &gateway.octets()),
                None => request,
            }
        }
        Body::Group { members, kind } => {
            let mut group = Vec::new();
            for member in members {
                group.extend(member.nexthop.to_ne_bytes());
                // The kernel counts weights from zero.
                group.extend([member.weight.saturating_sub(1), 0, 0, 0]);
            }
            request
                .attribute(NHA_GROUP, &group)
                .attribute(NHA_GROUP_TYPE, &kind.to_ne_bytes())
        }
    }
}

pub(crate) fn parse(message: &[u8]) -> Option<Nexthop> {
    let (mut id, mut ifindex, mut gateway, mut group, mut kind) = (None, None, None, None, 0);
    for (attribute, value) in Attributes(message.get(8..)?) {
        match attribute {
            NHA_ID => id = u32_at(value, 0),
            NHA_OIF => ifindex = u32_at(value, 0),
            NHA_GATEWAY => gateway = ipv4(value),
            NHA_GROUP_TYPE => kind = u16_at(value, 0)?,
            NHA_GROUP => {
                let members = value.chunks_exact(8).map(|m| {
                    Some(GroupMember {
                        nexthop: u32_at(m, 0)?,
                        weight: m[4].saturating_add(1),
                    })
                });
                group = members.collect::<Option<Vec<_>>>();
            }
            _ => {}
        }
    }
    let body = match group {
        Some(members) => Body::Group { members, kind },
        None => Body::Hop {
            gateway,
            ifindex: ifindex?,
        },
    };
    Some(Nexthop {
        id: id?,
        protocol: *message.get(2)?,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(nexthop: &Nexthop) {
        let bytes = request(nexthop).bytes;
        assert_eq!(parse(&bytes[16..]).as_ref(), Some(nexthop));
    }

    #[test]
    fn a_hop_and_a_group_come_back() {
        round_trip(&Nexthop {
            id: 1,
            protocol: 4,
            body: Body::Hop {
                gateway: Some([10, 0, 0, 1].into()),
                ifindex: 3,
            },
        });
        let members = vec![
            GroupMember {
                nexthop: 1,
                weight: 1,
            },
            GroupMember {
                nexthop: 2,
                weight: 255,
            },
        ];
        round_trip(&Nexthop {
            id: 100,
            protocol: 4,
            body: Body::Group { members, kind: 0 },
        });
    }
}
