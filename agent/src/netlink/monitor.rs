//! Tells that links, routes or next hops changed, so that predicted paths and baselines are looked
//! at again at once and not at the next sample.

use super::{Attributes, NetlinkError, u16_at, u32_at};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::unix::AsyncFd;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_NEXTHOP: u32 = 32;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_DELNEXTHOP: u16 = 105;
const NHA_ID: u16 = 1;

/// What changed since the last call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links, addresses, routes or next hops: predicted paths are stale.
    pub routing: bool,
    pub neighbours: bool,
    pub nexthops_gone: Vec<u32>,
    /// Messages were lost: anything may have changed.
    pub overrun: bool,
}

struct Fd(Socket);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A subscription to the kernel's notifications.
pub struct Monitor {
    socket: AsyncFd<Fd>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn open() -> Result<Monitor, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_NEXTHOP,
        ] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Monitor {
            socket: registered(socket)?,
            buffer: Vec::with_capacity(64 << 10),
        })
    }

    /// Waits for news and takes all that is there. Cancel-safe.
    ///
    /// # Errors
    /// The socket broke.
    pub async fn changed(&mut self) -> Result<Changes, NetlinkError> {
        let mut ready = self.socket.readable().await?;
        let mut changes = Changes::default();
        loop {
            self.buffer.clear();
            match ready.get_inner().0.recv(&mut self.buffer, 0) {
                Ok(_) => read(&self.buffer, &mut changes),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes.overrun = true;
                    changes.routing = true;
                }
                Err(e) => return Err(e.into()),
            }
        }
        ready.clear_ready();
        Ok(changes)
    }
}

#[expect(
    unsafe_code,
    reason = "netlink-sys has no AsFd, which the safe registration asks for"
)]
fn registered(socket: Socket) -> std::io::Result<AsyncFd<Fd>> {
    // SAFETY: the descriptor belongs to the socket inside, which lives as long as the registration.
    unsafe { AsyncFd::register(Fd(socket)) }.map_err(std::io::Error::from)
}

pub(crate) fn read(mut rest: &[u8], changes: &mut Changes) {
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let Ok(length) = usize::try_from(length) else {
            return;
        };
        let Some(message) = rest.get(16..length) else {
            return;
        };
        match kind {
            RTM_NEWNEIGH | RTM_DELNEIGH => changes.neighbours = true,
            RTM_DELNEXTHOP => {
                changes.routing = true;
                let id = message
                    .get(8..)
                    .and_then(|a| Attributes(a).find(|(k, _)| *k == NHA_ID))
                    .and_then(|(_, v)| u32_at(v, 0));
                changes.nexthops_gone.extend(id);
            }
            _ => changes.routing = true,
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
}
