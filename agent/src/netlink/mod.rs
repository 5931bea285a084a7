//! A small synchronous rtnetlink client: just what an agent asks of its own network namespace.
//!
//! Own codec, because this is the sampling path: it walks the kernel's reply in place and copies
//! only the numbers that are wanted (see docs/decisions/0002-own-netlink-codec.md).

pub mod links;
pub mod monitor;
pub mod nexthops;
pub mod qdiscs;
pub mod routes;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::os::fd::AsRawFd;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Set in an error reply that carries attributes (extended ACK).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// NLMSGERR_ATTR_MSG: the kernel's explanation.
const ATTR_MSG: u16 = 1;
/// The kernel fills at most 32 KiB into one reply of a dump.
const REPLY_BYTES: usize = 64 << 10;
/// The kernel answers rtnetlink inside the call; longer means something is badly wrong.
const TIMEOUT_S: i64 = 2;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("{what}: {source}{}", if .message.is_empty() { String::new() } else { format!(" ({})", .message) })]
    Refused {
        what: String,
        message: String,
        source: std::io::Error,
    },
    #[error("{what}: the kernel's reply is cut short")]
    Truncated { what: String },
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            NetlinkError::Socket(_) | NetlinkError::Truncated { .. } => None,
        }
    }
}

/// A request under construction: header, fixed part, attributes.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    what: String,
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Request {
    /// `what` is for error messages; `fixed` is the message's own header (ifinfomsg, rtmsg ...).
    pub(crate) fn new(what: impl Into<String>, kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(fixed);
        Request {
            what: what.into(),
            bytes,
            kind,
            flags,
        }
    }

    pub(crate) fn dump(what: &str, kind: u16, fixed: &[u8]) -> Request {
        Request::new(what, kind, NLM_F_DUMP, fixed)
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Request {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// An attribute that holds what `build` adds.
    pub(crate) fn nested(self, kind: u16, build: impl FnOnce(Request) -> Request) -> Request {
        const NLA_F_NESTED: u16 = 0x8000;
        let inner = build(Request::new("", 0, 0, &[])).body();
        self.attribute(kind | NLA_F_NESTED, &inner)
    }

    /// What follows the netlink header.
    pub(crate) fn body(&self) -> Vec<u8> {
        self.bytes[16..].to_vec()
    }

    fn finish(mut self, seq: u32, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes
    }
}

/// The attributes of a message or of a nested attribute, in place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags, not part of the number.
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(crate) fn ipv4(bytes: &[u8]) -> Option<std::net::Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// A connection to the kernel of the calling thread's network namespace.
pub struct Netlink {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Speaks with the routing family.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn open() -> Result<Netlink, NetlinkError> {
        Netlink::open_for(NETLINK_ROUTE)
    }

    /// Speaks with another family.
    ///
    /// # Errors
    /// No netlink socket can be had, or the kernel lacks the family.
    pub fn open_for(protocol: isize) -> Result<Netlink, NetlinkError> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        set_receive_timeout(&socket, TIMEOUT_S)?;
        Ok(Netlink {
            socket,
            seq: 0,
            buffer: Vec::with_capacity(REPLY_BYTES),
        })
    }

    /// Sends a change and waits for the kernel's verdict.
    pub(crate) fn change(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.exchange(request, NLM_F_ACK, |_, _| {})
    }

    /// Sends a request and gives each reply (type, payload after the netlink header) to `each`.
    pub(crate) fn query(
        &mut self,
        request: Request,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.exchange(request, 0, each)
    }

    fn exchange(
        &mut self,
        request: Request,
        flags: u16,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        let (seq, what) = (self.seq, request.what.clone());
        let is_dump = request.flags & NLM_F_DUMP == NLM_F_DUMP;
        let single = !is_dump && flags & NLM_F_ACK == 0;
        self.socket.send(&request.finish(seq, flags), 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while rest.len() >= 16 {
                let truncated = || NetlinkError::Truncated { what: what.clone() };
                let length = usize::try_from(u32_at(rest, 0).ok_or_else(truncated)?)
                    .map_err(|_| truncated())?;
                let message = rest
                    .get(..length)
                    .filter(|m| m.len() >= 16)
                    .ok_or_else(truncated)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                // A late reply to a request that timed out.
                if u32_at(message, 8) != Some(seq) {
                    continue;
                }
                match u16_at(message, 4).ok_or_else(truncated)? {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return verdict(&what, message),
                    kind => {
                        each(kind, &message[16..]);
                        if single {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// An ACK is an error message with number 0.
pub(crate) fn verdict(what: &str, message: &[u8]) -> Result<(), NetlinkError> {
    let code = u32_at(message, 16).map_or(0, u32::cast_signed);
    if code == 0 {
        return Ok(());
    }
    let flags = u16_at(message, 6).unwrap_or(0);
    let echoed = u32_at(message, 20)
        .and_then(|l| usize::try_from(l).ok())
        .unwrap_or(0);
    // With NLM_F_CAPPED (0x100) only the header of the request is echoed.
    let attributes = 20
        + if flags & 0x100 == 0 {
            echoed.next_multiple_of(4)
        } else {
            16
        };
    let message = match message.get(attributes..) {
        Some(tail) if flags & NLM_F_ACK_TLVS != 0 => Attributes(tail)
            .find(|(k, _)| *k == ATTR_MSG)
            .map(|(_, v)| text(v))
            .unwrap_or_default(),
        Some(_) | None => String::new(),
    };
    let source = std::io::Error::from_raw_os_error(code.saturating_neg());
    Err(NetlinkError::Refused {
        what: what.to_owned(),
        message,
        source,
    })
}

#[expect(unsafe_code, reason = "netlink-sys has no call for SO_RCVTIMEO")]
pub(crate) fn set_receive_timeout(socket: &Socket, seconds: i64) -> std::io::Result<()> {
    let timeout = libc::timeval {
        tv_sec: seconds,
        tv_usec: 0,
    };
    let size = libc::socklen_t::try_from(size_of::<libc::timeval>()).unwrap_or(0);
    // SAFETY: the descriptor is open, and the pointer and size describe one timeval that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        let bytes = Request::new("x", 1, 0, &[])
            .attribute(5, b"abc")
            .u32(6, 7)
            .finish(1, 0);
        let found: Vec<(u16, &[u8])> = Attributes(&bytes[16..]).collect();
        assert_eq!(found, [(5, &b"abc"[..]), (6, &7u32.to_ne_bytes()[..])]);
    }

    proptest! {
        #[test]
        fn garbage_ends_the_walk(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Attributes(&bytes).count() <= bytes.len());
        }
    }
}
