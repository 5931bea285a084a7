//! What stands between a decision and the kernel: reading a baseline, applying a change, verifying
//! it, restoring. Three back ends: the kernel, a dry run, and one that fails on purpose.
//!
//! Only what Weir wrote is ever undone: its own pins, and the weights that still are as it set them.
//! What a link that went down took along, and what an operator or a routing daemon changed in the
//! meantime, is theirs (docs/decisions/0005).

use super::journal::Entry;
use crate::netlink::nexthops::{Body, GroupMember, KIND_MULTIPATH, Nexthop};
use crate::netlink::routes::{PROTOCOL_WEIR, Route};
use crate::netlink::{Netlink, NetlinkError};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use weir_agent_core::change::RouteChange;

/// Why a change, or its undoing, failed.
#[derive(Debug, thiserror::Error)]
pub enum ActuateError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{prefix} has a route of somebody else (protocol {protocol}): not touched")]
    Foreign { prefix: String, protocol: u8 },
    #[error("there is no next hop {0}")]
    NoNexthop(u32),
    #[error("next hop {0} is not a group of weights")]
    NotAGroup(u32),
    #[error("read back differs: wanted {wanted}, found {found}")]
    ReadBack { wanted: String, found: String },
    #[error("injected fault")]
    Injected,
}

/// Reads and writes of routes; the rest of this file is written once on top of them.
pub trait Table {
    /// # Errors
    /// [`ActuateError`].
    fn nexthops(&mut self) -> Result<Vec<Nexthop>, ActuateError>;
    /// The routes that Weir wrote, whoever remembers them.
    /// # Errors
    /// [`ActuateError`].
    fn own_routes(&mut self) -> Result<Vec<Route>, ActuateError>;
    /// The route of exactly this prefix.
    /// # Errors
    /// [`ActuateError`].
    fn exact(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<Option<Route>, ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError>;
    /// Makes a route; its prefix must be free.
    /// # Errors
    /// [`ActuateError`].
    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError>;
}

/// The steps of a change.
pub trait Backend {
    /// Reads what stands before a change; refuses what is not ours to change.
    /// # Errors
    /// [`ActuateError`].
    fn baseline(&mut self, change: &RouteChange) -> Result<Entry, ActuateError>;
    /// Writes a change and reads it back.
    /// # Errors
    /// [`ActuateError`].
    fn apply(&mut self, change: &RouteChange) -> Result<(), ActuateError>;
    /// Whether a change stands.
    /// # Errors
    /// [`ActuateError`].
    fn verify(&mut self, change: &RouteChange) -> Result<(), ActuateError>;
    /// Undoes a change and reads it back. Doing it twice is the same as once.
    /// # Errors
    /// [`ActuateError`].
    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError>;
    /// Removes the pins that no journal in `kept` knows; tells which.
    /// # Errors
    /// [`ActuateError`].
    fn sweep(&mut self, kept: &[Entry]) -> Result<Vec<String>, ActuateError>;
}

impl<T: Table> Backend for T {
    fn baseline(&mut self, change: &RouteChange) -> Result<Entry, ActuateError> {
        match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                if !self.nexthops()?.iter().any(|n| n.id == *nexthop) {
                    return Err(ActuateError::NoNexthop(*nexthop));
                }
                match self.exact(*dst, *prefix_len)? {
                    Some(route) => Err(ActuateError::Foreign {
                        prefix: format!("{dst}/{prefix_len}"),
                        protocol: route.protocol,
                    }),
                    None => Ok(Entry::Pin {
                        dst: *dst,
                        prefix_len: *prefix_len,
                    }),
                }
            }
            RouteChange::Weights { group, members } => Ok(Entry::Weights {
                group: *group,
                was: weights(self, *group)?.1,
                set: members.iter().map(|m| (*m).into()).collect(),
            }),
        }
    }

    fn apply(&mut self, change: &RouteChange) -> Result<(), ActuateError> {
        match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => self.add_route(&pinned(*dst, *prefix_len, *nexthop))?,
            RouteChange::Weights { group, members } => {
                let (protocol, _) = weights(self, *group)?;
                let members = members.iter().map(|m| (*m).into()).collect();
                self.set_nexthop(&group_of(*group, protocol, members))?;
            }
        }
        self.verify(change)
    }

    fn verify(&mut self, change: &RouteChange) -> Result<(), ActuateError> {
        let (stands, found) = match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                let found = self.exact(*dst, *prefix_len)?;
                (
                    found.as_ref().is_some_and(|r| {
                        (r.nexthop, r.protocol) == (Some(*nexthop), PROTOCOL_WEIR)
                    }),
                    found.map_or_else(|| "no such route".to_owned(), |r| r.to_string()),
                )
            }
            RouteChange::Weights { group, members } => {
                let wanted: Vec<GroupMember> = members.iter().map(|m| (*m).into()).collect();
                let (_, found) = weights(self, *group)?;
                (found == wanted, written(&found))
            }
        };
        if stands {
            Ok(())
        } else {
            Err(ActuateError::ReadBack {
                wanted: change.to_string(),
                found,
            })
        }
    }

    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError> {
        match entry {
            Entry::Pin { dst, prefix_len } => {
                let ours = |r: &Route| r.protocol == PROTOCOL_WEIR;
                if let Some(route) = self.exact(*dst, *prefix_len)?.filter(ours) {
                    self.delete_route(&route)?;
                }
                match self.exact(*dst, *prefix_len)?.filter(ours) {
                    Some(route) => Err(ActuateError::ReadBack {
                        wanted: format!("no pin of {dst}/{prefix_len}"),
                        found: route.to_string(),
                    }),
                    None => Ok(()),
                }
            }
            Entry::Weights { group, was, set } => {
                let (protocol, now) = match weights(self, *group) {
                    // Whoever removed the group removed the weights.
                    Err(ActuateError::NoNexthop(_) | ActuateError::NotAGroup(_)) => return Ok(()),
                    other => other?,
                };
                let Some(wanted) = undone(&now, was, set) else {
                    return Ok(());
                };
                self.set_nexthop(&group_of(*group, protocol, wanted.clone()))?;
                let (_, found) = weights(self, *group)?;
                if found == wanted {
                    Ok(())
                } else {
                    Err(ActuateError::ReadBack {
                        wanted: written(&wanted),
                        found: written(&found),
                    })
                }
            }
        }
    }

    fn sweep(&mut self, kept: &[Entry]) -> Result<Vec<String>, ActuateError> {
        let mut removed = Vec::new();
        for route in self.own_routes()? {
            let known = kept.iter().any(|e| {
                matches!(e, Entry::Pin { dst, prefix_len } if *dst == route.dst && *prefix_len == route.prefix_len)
            });
            if !known {
                self.delete_route(&route)?;
                removed.push(route.to_string());
            }
        }
        Ok(removed)
    }
}

/// Who made a multipath group, and its members.
fn weights<T: Table + ?Sized>(
    table: &mut T,
    group: u32,
) -> Result<(u8, Vec<GroupMember>), ActuateError> {
    let found = table.nexthops()?.into_iter().find(|n| n.id == group);
    match found.map(|n| (n.protocol, n.body)) {
        Some((protocol, Body::Group { members, kind })) if kind == KIND_MULTIPATH => {
            Ok((protocol, members))
        }
        Some(_) => Err(ActuateError::NotAGroup(group)),
        None => Err(ActuateError::NoNexthop(group)),
    }
}

/// What a group's members `now` are to become so that the weights that Weir `set` are again as they
/// `was`; `None`: nothing of them is left to undo.
///
/// The kernel drops a member with its link. Any other difference is the work of somebody else, who
/// has the last word on the whole group.
fn undone(
    now: &[GroupMember],
    was: &[GroupMember],
    set: &[GroupMember],
) -> Option<Vec<GroupMember>> {
    if !now.iter().all(|m| set.contains(m)) {
        return None;
    }
    let before = |m: &GroupMember| was.iter().find(|w| w.nexthop == m.nexthop).copied();
    let wanted: Vec<GroupMember> = now.iter().map(|m| before(m).unwrap_or(*m)).collect();
    (wanted != now).then_some(wanted)
}

fn written(members: &[GroupMember]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|m| format!("{}={}", m.nexthop, m.weight))
        .collect();
    members.join(" ")
}

fn group_of(id: u32, protocol: u8, members: Vec<GroupMember>) -> Nexthop {
    Nexthop {
        id,
        protocol,
        body: Body::Group {
            members,
            kind: KIND_MULTIPATH,
        },
    }
}

fn pinned(dst: Ipv4Addr, prefix_len: u8, nexthop: u32) -> Route {
    Route {
        dst,
        prefix_len,
        protocol: PROTOCOL_WEIR,
        nexthop: Some(nexthop),
        gateway: None,
        ifindex: None,
    }
}

impl Table for Netlink {
    fn nexthops(&mut self) -> Result<Vec<Nexthop>, ActuateError> {
        Ok(Netlink::nexthops(self)?)
    }

    fn exact(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<Option<Route>, ActuateError> {
        let is_it = |r: &Route| r.dst == dst && r.prefix_len == prefix_len;
        if prefix_len == 32 {
            return Ok(Netlink::matched(self, dst)?.filter(is_it));
        }
        Ok(self.routes()?.into_iter().find(is_it))
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        Ok(Netlink::set_nexthop(self, nexthop)?)
    }

    fn own_routes(&mut self) -> Result<Vec<Route>, ActuateError> {
        let mut routes = self.routes()?;
        routes.retain(|r| r.protocol == PROTOCOL_WEIR);
        Ok(routes)
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        Ok(Netlink::add_route(self, route)?)
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        Netlink::delete_route(self, route)?;
        Ok(())
    }
}

/// Reads from another table, and keeps its writes to itself: what a change would do.
pub struct DryRun<T> {
    inner: T,
    routes: BTreeMap<(Ipv4Addr, u8), Option<Route>>,
    nexthops: BTreeMap<u32, Nexthop>,
}

impl<T> DryRun<T> {
    pub fn new(inner: T) -> DryRun<T> {
        DryRun {
            inner,
            routes: BTreeMap::new(),
            nexthops: BTreeMap::new(),
        }
    }
}

impl<T: Table> Table for DryRun<T> {
    fn nexthops(&mut self) -> Result<Vec<Nexthop>, ActuateError> {
        let real = self.inner.nexthops()?;
        Ok(real
            .into_iter()
            .map(|n| self.nexthops.get(&n.id).cloned().unwrap_or(n))
            .collect())
    }

    fn exact(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<Option<Route>, ActuateError> {
        match self.routes.get(&(dst, prefix_len)) {
            Some(route) => Ok(route.clone()),
            None => self.inner.exact(dst, prefix_len),
        }
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        tracing::info!("dry run: would set next hop {nexthop:?}");
        self.nexthops.insert(nexthop.id, nexthop.clone());
        Ok(())
    }

    fn own_routes(&mut self) -> Result<Vec<Route>, ActuateError> {
        let mut routes = self.inner.own_routes()?;
        routes.retain(|r| !self.routes.contains_key(&(r.dst, r.prefix_len)));
        Ok(routes)
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        tracing::info!("dry run: would add route {route}");
        self.routes
            .insert((route.dst, route.prefix_len), Some(route.clone()));
        Ok(())
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        tracing::info!("dry run: would delete route {route}");
        self.routes.insert((route.dst, route.prefix_len), None);
        Ok(())
    }
}

/// Fails chosen writes of another table, or lets them get lost: what tests need to see the rollback.
pub struct Faulty<T> {
    pub inner: T,
    /// Writes still to succeed before one fails; `None`: none fails.
    pub writes_until_failure: Option<usize>,
    /// Writes are acknowledged and not made, so that the read-back differs.
    pub lose_writes: bool,
}

impl<T> Faulty<T> {
    fn fault(&mut self) -> Result<bool, ActuateError> {
        match &mut self.writes_until_failure {
            Some(0) => {
                self.writes_until_failure = None;
                return Err(ActuateError::Injected);
            }
            Some(n) => *n -= 1,
            None => {}
        }
        Ok(self.lose_writes)
    }
}

impl<T: Table> Table for Faulty<T> {
    fn nexthops(&mut self) -> Result<Vec<Nexthop>, ActuateError> {
        self.inner.nexthops()
    }

    fn exact(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<Option<Route>, ActuateError> {
        self.inner.exact(dst, prefix_len)
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.set_nexthop(nexthop)
        }
    }

    fn own_routes(&mut self) -> Result<Vec<Route>, ActuateError> {
        self.inner.own_routes()
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.add_route(route)
        }
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.delete_route(route)
        }
    }
}
