//! What stands between a decision and the kernel: reading a baseline, applying a change, verifying
//! it, restoring. Three back ends: the kernel, a dry run, and one that fails on purpose.

use super::journal::{Entry, KnobBaseline};
use crate::netlink::nexthops::{Body, GroupMember, Nexthop};
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
    #[error("next hop {0} is not a group")]
    NotAGroup(u32),
    #[error("read back differs: wanted {wanted}, found {found}")]
    ReadBack { wanted: String, found: String },
    #[error("interface {ifindex} is down: next hop {nexthop} returns with it")]
    DeviceDown { ifindex: u32, nexthop: u32 },
    #[error("injected fault")]
    Injected,
}

/// Reads and writes of routes; the rest of this file is written once on top of them.
pub trait Table {
    /// # Errors
    /// [`ActuateError`].
    fn nexthops(&mut self) -> Result<Vec<Nexthop>, ActuateError>;
    /// The route of exactly this prefix.
    /// # Errors
    /// [`ActuateError`].
    fn exact(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<Option<Route>, ActuateError>;
    /// The route that a destination matches.
    /// # Errors
    /// [`ActuateError`].
    fn matched(&mut self, dst: Ipv4Addr) -> Result<Option<Route>, ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn is_up(&mut self, ifindex: u32) -> Result<bool, ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn set_route(&mut self, route: &Route, replace: bool) -> Result<(), ActuateError>;
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
    /// Returns to a baseline and reads it back. Doing it twice is the same as once.
    /// # Errors
    /// [`ActuateError`].
    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError>;
}

impl<T: Table> Backend for T {
    fn baseline(&mut self, change: &RouteChange) -> Result<Entry, ActuateError> {
        let nexthops = self.nexthops()?;
        match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                if !nexthops.iter().any(|n| n.id == *nexthop) {
                    return Err(ActuateError::NoNexthop(*nexthop));
                }
                let was = self.exact(*dst, *prefix_len)?;
                if let Some(route) = was.as_ref().filter(|r| r.protocol != PROTOCOL_WEIR) {
                    return Err(ActuateError::Foreign {
                        prefix: format!("{dst}/{prefix_len}"),
                        protocol: route.protocol,
                    });
                }
                let carrier = self.matched(*dst)?;
                let rests_on = carrier
                    .as_ref()
                    .and_then(|r| r.nexthop)
                    .map_or_else(Vec::new, |id| closure(&nexthops, id));
                Ok(Entry {
                    knob: KnobBaseline::Route {
                        dst: *dst,
                        prefix_len: *prefix_len,
                        was: None,
                    },
                    nexthops: rests_on,
                    route: carrier,
                })
            }
            RouteChange::Weights { group, .. } => {
                let rests_on = closure(&nexthops, *group);
                match rests_on.last() {
                    Some(Nexthop {
                        body: Body::Group { .. },
                        ..
                    }) => Ok(Entry {
                        knob: KnobBaseline::Group { group: *group },
                        nexthops: rests_on,
                        route: None,
                    }),
                    Some(Nexthop {
                        body: Body::Hop { .. },
                        ..
                    }) => Err(ActuateError::NotAGroup(*group)),
                    None => Err(ActuateError::NoNexthop(*group)),
                }
            }
        }
    }

    fn apply(&mut self, change: &RouteChange) -> Result<(), ActuateError> {
        match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => self.set_route(&pinned(*dst, *prefix_len, *nexthop), true)?,
            RouteChange::Weights { group, members } => {
                let nexthops = self.nexthops()?;
                let Some(Nexthop {
                    protocol,
                    body: Body::Group { kind, .. },
                    ..
                }) = nexthops.iter().find(|n| n.id == *group)
                else {
                    return Err(ActuateError::NotAGroup(*group));
                };
                let body = Body::Group {
                    members: members.iter().map(|m| (*m).into()).collect(),
                    kind: *kind,
                };
                self.set_nexthop(&Nexthop {
                    id: *group,
                    protocol: *protocol,
                    body,
                })?;
            }
        }
        self.verify(change)
    }

    fn verify(&mut self, change: &RouteChange) -> Result<(), ActuateError> {
        let (wanted, found) = match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                let found = self
                    .exact(*dst, *prefix_len)?
                    .map(|r| (r.nexthop, r.protocol));
                (
                    Some((Some(*nexthop), PROTOCOL_WEIR)) == found,
                    format!("{found:?}"),
                )
            }
            RouteChange::Weights { group, members } => {
                let members: Vec<GroupMember> = members.iter().map(|m| (*m).into()).collect();
                let found = self.nexthops()?.into_iter().find(|n| n.id == *group);
                (
                    matches!(&found, Some(Nexthop { body: Body::Group { members: m, .. }, .. }) if *m == members),
                    format!("{found:?}"),
                )
            }
        };
        if wanted {
            Ok(())
        } else {
            Err(ActuateError::ReadBack {
                wanted: change.to_string(),
                found,
            })
        }
    }

    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError> {
        // The pin first: whatever else fails, traffic is back on the route that was there.
        if let KnobBaseline::Route {
            dst, prefix_len, ..
        } = &entry.knob
            && let Some(route) = self
                .exact(*dst, *prefix_len)?
                .filter(|r| r.protocol == PROTOCOL_WEIR)
        {
            self.delete_route(&route)?;
        }
        // Members come before their group, the group before its route.
        for nexthop in &entry.nexthops {
            let standing = self.nexthops()?.into_iter().find(|n| n.id == nexthop.id);
            if standing.as_ref() == Some(nexthop) {
                continue;
            }
            match &nexthop.body {
                // Somebody gave the id another meaning in the meantime: theirs stands.
                Body::Hop { .. } if standing.is_some() => continue,
                Body::Hop { ifindex, .. } if !self.is_up(*ifindex)? => {
                    return Err(ActuateError::DeviceDown {
                        ifindex: *ifindex,
                        nexthop: nexthop.id,
                    });
                }
                Body::Hop { .. } | Body::Group { .. } => self.set_nexthop(nexthop)?,
            }
        }
        if let Some(route) = &entry.route
            && self.exact(route.dst, route.prefix_len)?.is_none()
        {
            self.set_route(route, false)?;
        }
        if let KnobBaseline::Route {
            dst, prefix_len, ..
        } = &entry.knob
        {
            let found = self.exact(*dst, *prefix_len)?;
            if found.as_ref().is_some_and(|r| r.protocol == PROTOCOL_WEIR) {
                return Err(ActuateError::ReadBack {
                    wanted: format!("no pin of {dst}/{prefix_len}"),
                    found: format!("{found:?}"),
                });
            }
        }
        Ok(())
    }
}

fn pinned(dst: Ipv4Addr, prefix_len: u8, nexthop: u32) -> Route {
    Route {
        dst,
        prefix_len,
        protocol: PROTOCOL_WEIR,
        scope: 0,
        nexthop: Some(nexthop),
        gateway: None,
        ifindex: None,
    }
}

/// A next hop with what it rests on, members first.
fn closure(nexthops: &[Nexthop], id: u32) -> Vec<Nexthop> {
    let Some(own) = nexthops.iter().find(|n| n.id == id) else {
        return Vec::new();
    };
    let members: Vec<u32> = match &own.body {
        Body::Group { members, .. } => members.iter().map(|m| m.nexthop).collect(),
        Body::Hop { .. } => Vec::new(),
    };
    nexthops
        .iter()
        .filter(|n| members.contains(&n.id))
        .chain([own])
        .cloned()
        .collect()
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

    fn matched(&mut self, dst: Ipv4Addr) -> Result<Option<Route>, ActuateError> {
        Ok(Netlink::matched(self, dst)?)
    }

    fn is_up(&mut self, ifindex: u32) -> Result<bool, ActuateError> {
        Ok(self.links()?.iter().any(|l| l.ifindex == ifindex && l.up))
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        Ok(Netlink::set_nexthop(self, nexthop)?)
    }

    fn set_route(&mut self, route: &Route, replace: bool) -> Result<(), ActuateError> {
        Ok(Netlink::set_route(self, route, replace)?)
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

    fn matched(&mut self, dst: Ipv4Addr) -> Result<Option<Route>, ActuateError> {
        match self.routes.get(&(dst, 32)) {
            Some(Some(route)) => Ok(Some(route.clone())),
            Some(None) | None => self.inner.matched(dst),
        }
    }

    fn is_up(&mut self, ifindex: u32) -> Result<bool, ActuateError> {
        self.inner.is_up(ifindex)
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        tracing::info!("dry run: would set next hop {nexthop:?}");
        self.nexthops.insert(nexthop.id, nexthop.clone());
        Ok(())
    }

    fn set_route(&mut self, route: &Route, _replace: bool) -> Result<(), ActuateError> {
        tracing::info!(
            "dry run: would set route {}/{} via next hop {:?}",
            route.dst,
            route.prefix_len,
            route.nexthop
        );
        self.routes
            .insert((route.dst, route.prefix_len), Some(route.clone()));
        Ok(())
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        tracing::info!(
            "dry run: would delete route {}/{}",
            route.dst,
            route.prefix_len
        );
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

    fn matched(&mut self, dst: Ipv4Addr) -> Result<Option<Route>, ActuateError> {
        self.inner.matched(dst)
    }

    fn is_up(&mut self, ifindex: u32) -> Result<bool, ActuateError> {
        self.inner.is_up(ifindex)
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.set_nexthop(nexthop)
        }
    }

    fn set_route(&mut self, route: &Route, replace: bool) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.set_route(route, replace)
        }
    }

    fn delete_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        self.inner.delete_route(route)
    }
}
