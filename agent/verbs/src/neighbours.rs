//! Tells that a neighbour of this host has another link address (rtnetlink, RTNLGRP_NEIGH): address
//! handles that were made before lead to the old one.

#![expect(unsafe_code, reason = "the standard library has no netlink")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};

const RTMGRP_NEIGH: u32 = 1 << 2;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// struct nlmsghdr and struct ndmsg.
const HEADER: usize = 16;
const NDMSG: usize = 12;
/// Neighbours that are remembered; kernels keep 1,024 of each family unless told otherwise.
const NEIGHBOURS_MAX: usize = 16_384;
/// Messages that are taken at once; the rest is there the next time.
const READS_MAX: usize = 64;

/// Interface and address.
type Neighbour = (u32, Vec<u8>);

/// A subscription to the kernel's table.
#[derive(Debug)]
pub struct Neighbours {
    socket: File,
    known: Known,
}

impl Neighbours {
    /// Subscribes, and asks for the table as it is.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> io::Result<Neighbours> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: makes a descriptor that is owned from here on; zero is valid for the address, and
        // its size is told.
        let mut socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = File::from_raw_fd(fd);
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).unwrap_or(0);
            address.nl_groups = RTMGRP_NEIGH;
            let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
            if libc::bind(fd, (&raw const address).cast(), size) != 0 {
                return Err(io::Error::last_os_error());
            }
            socket
        };
        socket.write_all(&dump())?;
        Ok(Neighbours {
            socket,
            known: Known::default(),
        })
    }

    /// Readable when there is news.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Takes the news; true if a neighbour has another address than before, or news was lost.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        let mut bytes = vec![0; 32 << 10];
        for _ in 0..READS_MAX {
            match self.socket.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => changed |= self.known.read(bytes.get(..read).unwrap_or_default()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        changed
    }
}

/// The request for the whole table.
fn dump() -> Vec<u8> {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    let mut request = Vec::new();
    request.extend(28_u32.to_ne_bytes());
    request.extend(RTM_GETNEIGH.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8 + NDMSG]);
    request
}

/// What the kernel told. One that it forgets is remembered here: it may come back another.
#[derive(Debug, Default)]
struct Known(BTreeMap<Neighbour, Vec<u8>>);

impl Known {
    /// Reads messages of the kernel; true if one changes an address.
    fn read(&mut self, mut rest: &[u8]) -> bool {
        let mut changed = false;
        while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let Ok(length) = usize::try_from(length) else {
                break;
            };
            let Some(message) = rest.get(HEADER..length) else {
                break;
            };
            if kind == RTM_NEWNEIGH
                && let Some((neighbour, address)) = neighbour(message)
            {
                changed |= self.note(neighbour, address);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        changed
    }

    fn note(&mut self, neighbour: Neighbour, address: &[u8]) -> bool {
        match self.0.get_mut(&neighbour) {
            Some(known) if known == address => false,
            Some(known) => {
                *known = address.to_vec();
                true
            }
            None => {
                if self.0.len() < NEIGHBOURS_MAX {
                    self.0.insert(neighbour, address.to_vec());
                }
                false
            }
        }
    }
}

/// Neighbour and link address of a message; `None` while the kernel knows none.
fn neighbour(message: &[u8]) -> Option<(Neighbour, &[u8])> {
    let ifindex = u32_at(message, 4)?;
    let (mut to, mut address) = (None, None);
    let mut rest = message.get(NDMSG..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        match kind {
            NDA_DST => to = Some(value.to_vec()),
            NDA_LLADDR => address = Some(value),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(((ifindex, to?), address?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.get(..4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.get(..2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, ifindex: u32, to: [u8; 4], mac: Option<[u8; 6]>) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        body.extend(ifindex.to_ne_bytes());
        body.extend([2, 0, 0, 1]);
        let mut attribute = |kind: u16, value: &[u8]| {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        };
        attribute(NDA_DST, &to);
        if let Some(mac) = mac {
            attribute(NDA_LLADDR, &mac);
        }
        let mut bytes = u32::try_from(HEADER + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn only_another_address_of_a_known_neighbour_is_a_change() {
        let (a, b) = ([10, 0, 0, 2], [10, 0, 0, 3]);
        let mut known = Known::default();
        let new = |to, mac| message(RTM_NEWNEIGH, 3, to, mac);
        let both = [new(a, Some([1; 6])), new(b, Some([2; 6]))].concat();
        assert!(!known.read(&both), "first heard of");
        assert!(!known.read(&both), "a change of state alone");
        assert!(!known.read(&new(a, None)), "it is being looked for");
        assert!(!known.read(&message(29, 3, a, Some([1; 6]))), "forgotten");
        assert!(known.read(&[new(a, Some([9; 6])), both.clone()].concat()));
        assert!(!known.read(&message(RTM_NEWNEIGH, 4, a, Some([7; 6]))));
    }

    /// In a network namespace of this thread alone, which goes with it.
    fn moved() -> Option<()> {
        let ip = |arguments: &str| {
            let run = std::process::Command::new("ip")
                .args(arguments.split(' '))
                .status();
            run.ok().filter(|status| status.success()).map(drop)
        };
        // SAFETY: takes a number.
        (unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0).then_some(())?;
        ip("link add d0 type veth peer name d1")?;
        ip("link set d0 up")?;
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev d0")?;
        let mut neighbours = Neighbours::open().unwrap();
        assert!(!neighbours.changed(), "the table as it is");
        ip("neigh add 10.0.0.3 lladdr 02:00:00:00:00:03 dev d0")?;
        assert!(!neighbours.changed(), "a new one");
        ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev d0")?;
        assert!(neighbours.changed(), "one of the table moved");
        assert!(!neighbours.changed(), "told once");
        Some(())
    }

    #[test]
    fn a_neighbour_that_moves_is_seen() {
        if std::thread::spawn(moved).join().unwrap().is_none() {
            println!("skipped: no network namespace or veth pair can be made here");
        }
    }

    proptest! {
        #[test]
        fn anything_may_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Known::default().read(&bytes);
        }

        #[test]
        fn a_cut_message_changes_nothing(cut in 0_usize..100) {
            let mut known = Known::default();
            let first = message(RTM_NEWNEIGH, 3, [10, 0, 0, 2], Some([1; 6]));
            known.read(&first);
            let second = message(RTM_NEWNEIGH, 3, [10, 0, 0, 2], Some([2; 6]));
            let cut = cut.min(second.len() - 1);
            prop_assert!(!known.read(&second[..cut]));
        }
    }
}
