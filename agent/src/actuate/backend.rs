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
use std::collections::{BTreeMap, BTreeSet};
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
    #[error(
        "next hop {nexthop} is no member of the group that carries {dst} ({carrier}): it is drained or gone"
    )]
    NotAMember {
        nexthop: u32,
        dst: Ipv4Addr,
        carrier: String,
    },
    #[error("next-hop group {group} has the members {has}, asked for are {asked}: name them all")]
    OtherMembers {
        group: u32,
        has: String,
        asked: String,
    },
    #[error("read back differs: wanted {wanted}, found {found}")]
    ReadBack { wanted: String, found: String },
    #[error("injected fault")]
    Injected,
}

/// What stands at one moment: next hops, and the unicast routes of the main table.
///
/// The table as it is, not what a look-up gives: a policy rule may send packets elsewhere, and a pin
/// is still there.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub nexthops: Vec<Nexthop>,
    pub routes: Vec<Route>,
}

/// Reads and writes of routes; the rest of this file is written once on top of them.
pub trait Table {
    /// # Errors
    /// [`ActuateError`].
    fn state(&mut self) -> Result<State, ActuateError>;
    /// # Errors
    /// [`ActuateError`].
    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError>;
    /// Makes a route; its prefix must be free.
    /// # Errors
    /// [`ActuateError`].
    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError>;
    /// Removes Weir's own route of a prefix; false if there is none.
    /// # Errors
    /// [`ActuateError`].
    fn delete_own(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<bool, ActuateError>;
}

/// The steps of a change.
pub trait Backend {
    /// Reads what stands before some changes; refuses what is not ours to change.
    /// # Errors
    /// [`ActuateError`].
    fn baseline(&mut self, changes: &[RouteChange]) -> Result<Vec<Entry>, ActuateError>;
    /// Writes changes one after the other, and reads them back.
    /// # Errors
    /// [`ActuateError`] of the first that fails, with its name.
    fn apply(&mut self, changes: &[RouteChange]) -> Result<(), String>;
    /// Whether changes stand and may: the first that does not, with the reason.
    /// # Errors
    /// [`ActuateError`], with the change's name.
    fn verify(&mut self, changes: &[&RouteChange]) -> Result<Vec<Option<String>>, ActuateError>;
    /// Undoes a change and reads it back. Doing it twice is the same as once.
    /// # Errors
    /// [`ActuateError`].
    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError>;
    /// Removes the pins that are not in `kept`; tells which.
    /// # Errors
    /// [`ActuateError`].
    fn sweep(&mut self, kept: &[Entry]) -> Result<Vec<String>, ActuateError>;
}

impl<T: Table> Backend for T {
    fn baseline(&mut self, changes: &[RouteChange]) -> Result<Vec<Entry>, ActuateError> {
        let state = self.state()?;
        changes.iter().map(|c| state.baseline(c)).collect()
    }

    fn apply(&mut self, changes: &[RouteChange]) -> Result<(), String> {
        for change in changes {
            let written = match change {
                RouteChange::Pin {
                    dst,
                    prefix_len,
                    nexthop,
                    ..
                } => self.add_route(&Route {
                    dst: *dst,
                    prefix_len: *prefix_len,
                    protocol: PROTOCOL_WEIR,
                    nexthop: Some(*nexthop),
                    gateway: None,
                    ifindex: None,
                }),
                RouteChange::Weights { group, members } => self.state().and_then(|state| {
                    let (protocol, _) = state.weights(*group)?;
                    let members = members.iter().map(|m| (*m).into()).collect();
                    self.set_nexthop(&group_of(*group, protocol, members))
                }),
            };
            written.map_err(|error| format!("{change}: {error}"))?;
        }
        let state = self.state().map_err(|error| error.to_string())?;
        let stands = |change: &RouteChange| {
            let stands = state.stands(change);
            stands.map_err(|error| format!("{change}: {error}"))
        };
        changes.iter().try_for_each(stands)
    }

    fn verify(&mut self, changes: &[&RouteChange]) -> Result<Vec<Option<String>>, ActuateError> {
        let state = self.state()?;
        let verdict = |c: &&RouteChange| state.stands(c).err().map(|error| error.to_string());
        Ok(changes.iter().map(verdict).collect())
    }

    fn restore(&mut self, entry: &Entry) -> Result<(), ActuateError> {
        match entry {
            Entry::Pin { dst, prefix_len } => {
                while self.delete_own(*dst, *prefix_len)? {}
                match self.state()?.own(*dst, *prefix_len) {
                    Some(route) => Err(ActuateError::ReadBack {
                        wanted: format!("no pin of {dst}/{prefix_len}"),
                        found: route.to_string(),
                    }),
                    None => Ok(()),
                }
            }
            Entry::Weights { group, was, set } => {
                let (protocol, now) = match self.state()?.weights(*group) {
                    // Whoever removed the group removed the weights.
                    Err(ActuateError::NoNexthop(_) | ActuateError::NotAGroup(_)) => return Ok(()),
                    other => other?,
                };
                let Some(wanted) = undone(&now, was, set) else {
                    return Ok(());
                };
                self.set_nexthop(&group_of(*group, protocol, wanted.clone()))?;
                let (_, found) = self.state()?.weights(*group)?;
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
        for route in self.state()?.routes {
            let is_it = |e: &Entry| matches!(e, Entry::Pin { dst, prefix_len } if (*dst, *prefix_len) == (route.dst, route.prefix_len));
            if route.protocol == PROTOCOL_WEIR && !kept.iter().any(is_it) {
                self.delete_own(route.dst, route.prefix_len)?;
                removed.push(route.to_string());
            }
        }
        Ok(removed)
    }
}

impl State {
    fn baseline(&self, change: &RouteChange) -> Result<Entry, ActuateError> {
        match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                if !self.nexthops.iter().any(|n| n.id == *nexthop) {
                    return Err(ActuateError::NoNexthop(*nexthop));
                }
                let is_it = |r: &&Route| (r.dst, r.prefix_len) == (*dst, *prefix_len);
                if let Some(route) = self.routes.iter().find(is_it) {
                    return Err(ActuateError::Foreign {
                        prefix: format!("{dst}/{prefix_len}"),
                        protocol: route.protocol,
                    });
                }
                self.carried(*dst, *prefix_len, *nexthop)?;
                Ok(Entry::Pin {
                    dst: *dst,
                    prefix_len: *prefix_len,
                })
            }
            RouteChange::Weights { group, members } => {
                let (_, was) = self.weights(*group)?;
                let set: Vec<GroupMember> = members.iter().map(|m| (*m).into()).collect();
                let ids = |members: &[GroupMember]| -> BTreeSet<u32> {
                    members.iter().map(|m| m.nexthop).collect()
                };
                if ids(&was) != ids(&set) || was.len() != set.len() {
                    return Err(ActuateError::OtherMembers {
                        group: *group,
                        has: written(&was),
                        asked: written(&set),
                    });
                }
                Ok(Entry::Weights {
                    group: *group,
                    was,
                    set,
                })
            }
        }
    }

    /// Whether a change stands, and whether it still may.
    fn stands(&self, change: &RouteChange) -> Result<(), ActuateError> {
        let (stands, found) = match change {
            RouteChange::Pin {
                dst,
                prefix_len,
                nexthop,
                ..
            } => {
                let found = self.own(*dst, *prefix_len);
                if found.is_some() {
                    self.carried(*dst, *prefix_len, *nexthop)?;
                }
                (
                    found.is_some_and(|r| r.nexthop == Some(*nexthop)),
                    found.map_or_else(|| "no such route".to_owned(), ToString::to_string),
                )
            }
            RouteChange::Weights { group, members } => {
                let wanted: Vec<GroupMember> = members.iter().map(|m| (*m).into()).collect();
                let (_, found) = self.weights(*group)?;
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

    fn own(&self, dst: Ipv4Addr, prefix_len: u8) -> Option<&Route> {
        let is_it =
            |r: &&Route| (r.dst, r.prefix_len, r.protocol) == (dst, prefix_len, PROTOCOL_WEIR);
        self.routes.iter().find(is_it)
    }

    /// A pin only chooses among the members of the group that carries the destination without it:
    /// what whoever keeps the routes took out of the group is no path any more.
    fn carried(&self, dst: Ipv4Addr, prefix_len: u8, nexthop: u32) -> Result<(), ActuateError> {
        let covers = |r: &&Route| {
            let bits = u32::MAX
                .checked_shl(32 - u32::from(r.prefix_len.min(32)))
                .unwrap_or(0);
            r.protocol != PROTOCOL_WEIR
                && r.prefix_len < prefix_len
                && (r.dst.to_bits() ^ dst.to_bits()) & bits == 0
        };
        // The kernel lists routes of one prefix by metric; the last of equal keys would be taken.
        let carrier = self
            .routes
            .iter()
            .rev()
            .filter(covers)
            .max_by_key(|r| r.prefix_len);
        let group = carrier.and_then(|r| r.nexthop);
        let members = group.and_then(|id| self.weights(id).ok());
        if members.is_some_and(|(_, members)| members.iter().any(|m| m.nexthop == nexthop)) {
            return Ok(());
        }
        Err(ActuateError::NotAMember {
            nexthop,
            dst,
            carrier: carrier.map_or_else(|| "no route".to_owned(), ToString::to_string),
        })
    }

    /// Who made a multipath group, and its members.
    fn weights(&self, group: u32) -> Result<(u8, Vec<GroupMember>), ActuateError> {
        let found = self.nexthops.iter().find(|n| n.id == group);
        match found.map(|n| (n.protocol, &n.body)) {
            Some((protocol, Body::Group { members, kind })) if *kind == KIND_MULTIPATH => {
                Ok((protocol, members.clone()))
            }
            Some(_) => Err(ActuateError::NotAGroup(group)),
            None => Err(ActuateError::NoNexthop(group)),
        }
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

impl Table for Netlink {
    fn state(&mut self) -> Result<State, ActuateError> {
        Ok(State {
            nexthops: self.nexthops()?,
            routes: self.routes()?,
        })
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        Ok(Netlink::set_nexthop(self, nexthop)?)
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        Ok(Netlink::add_route(self, route)?)
    }

    fn delete_own(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<bool, ActuateError> {
        Ok(self.delete_route(dst, prefix_len, PROTOCOL_WEIR)?)
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
    fn state(&mut self) -> Result<State, ActuateError> {
        let mut state = self.inner.state()?;
        for nexthop in &mut state.nexthops {
            if let Some(ours) = self.nexthops.get(&nexthop.id) {
                *nexthop = ours.clone();
            }
        }
        state
            .routes
            .retain(|r| !self.routes.contains_key(&(r.dst, r.prefix_len)));
        state.routes.extend(self.routes.values().flatten().cloned());
        Ok(state)
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        tracing::info!("dry run: would set next hop {nexthop:?}");
        self.nexthops.insert(nexthop.id, nexthop.clone());
        Ok(())
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        tracing::info!("dry run: would add route {route}");
        self.routes
            .insert((route.dst, route.prefix_len), Some(route.clone()));
        Ok(())
    }

    fn delete_own(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<bool, ActuateError> {
        let was_there = self.state()?.own(dst, prefix_len).is_some();
        if was_there {
            tracing::info!("dry run: would delete the pin of {dst}/{prefix_len}");
            self.routes.insert((dst, prefix_len), None);
        }
        Ok(was_there)
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
    fn state(&mut self) -> Result<State, ActuateError> {
        self.inner.state()
    }

    fn set_nexthop(&mut self, nexthop: &Nexthop) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.set_nexthop(nexthop)
        }
    }

    fn add_route(&mut self, route: &Route) -> Result<(), ActuateError> {
        if self.fault()? {
            Ok(())
        } else {
            self.inner.add_route(route)
        }
    }

    fn delete_own(&mut self, dst: Ipv4Addr, prefix_len: u8) -> Result<bool, ActuateError> {
        if self.fault()? {
            Ok(false)
        } else {
            self.inner.delete_own(dst, prefix_len)
        }
    }
}
