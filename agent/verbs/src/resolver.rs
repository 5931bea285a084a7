//! Addresses of targets, looked for by a thread of their own: the kernel waits up to a second for a
//! neighbour that is down, and pings to the others must not.

use crate::address::{Address, Domain};
use crate::system::Bell;
use crate::ways::{Look, Route};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Routes that wait to be looked for; what is beyond is asked again with the next packet.
const QUEUE: usize = 256;

/// A way, or [`Look::Unreachable`] or [`Look::NoRoom`].
type Answer = (Route, Result<Address, Look>);

pub struct Resolver {
    wanted: SyncSender<Route>,
    found: Receiver<Answer>,
    bell: Bell,
}

impl Resolver {
    /// The thread ends when this is dropped, after the address that it is looking for.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(domain: Arc<Domain>, port: u8, sgid_index: u8) -> io::Result<Resolver> {
        let (wanted, routes) = sync_channel::<Route>(QUEUE);
        let (results, found) = sync_channel(QUEUE);
        let bell = Bell::new()?;
        let rings = bell.clone();
        std::thread::Builder::new()
            .name("addresses".to_owned())
            .spawn(move || {
                for route in routes {
                    let address = domain.address(port, sgid_index, route);
                    let address = address.map_err(|error| blame(&error));
                    if results.send((route, address)).is_err() {
                        return;
                    }
                    rings.ring();
                }
            })?;
        Ok(Resolver {
            wanted,
            found,
            bell,
        })
    }

    /// Readable when something was found.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.bell.fd()
    }

    /// False if too many are waiting.
    #[must_use]
    pub fn ask(&self, route: Route) -> bool {
        self.wanted.try_send(route).is_ok()
    }

    /// What was found, or was not, since the last call.
    pub fn found(&self) -> Vec<Answer> {
        self.bell.silence();
        self.found.try_iter().collect()
    }
}

/// Whose fault it is that there is no way: a neighbour that does not answer and a route that is not
/// there are the network's (`rdma_resolve_ip`), all else is this host's.
fn blame(error: &io::Error) -> Look {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => Look::Unreachable,
        Some(_) | None => Look::NoRoom,
    }
}
