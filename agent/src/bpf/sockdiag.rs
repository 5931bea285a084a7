//! TCP connections from the kernel's socket diagnostics (netlink).
//!
//! Serves two ends: it stands in where `sock_ops` cannot be had, and it shows
//! the connections that are older than the program. One dump lists every
//! connection of the calling thread's network namespace, so it costs more than
//! the program's table and never shows how a connection ended.
//!
//! Layouts: `include/uapi/linux/{netlink,inet_diag,tcp}.h`, which do not change
//! but may grow at the end; a field that this kernel lacks is absent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::sample::FlowSample;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_INFO: u16 = 2;
/// Established, and half closed either way: what may still move data.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8;

const HEADER: usize = 16;
const REQUEST: usize = 56;
/// `struct inet_diag_msg`; attributes follow.
const MESSAGE: usize = 72;
/// What the kernel puts into one message at most.
const RECEIVE_MAX: usize = 1 << 16;

/// Lists the connections of the calling thread's network namespace, without loopback.
///
/// # Errors
///
/// The kernel has no socket diagnostics (CONFIG_INET_DIAG), or refuses.
pub fn flows() -> io::Result<Vec<FlowSample>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        socket.send(&request(family), 0)?;
        while receive(&socket, &mut found)? {}
    }
    Ok(found)
}

/// True if either end says that this connection never leaves the host.
pub fn is_loopback(local: SocketAddr, remote: SocketAddr) -> bool {
    local.ip() == remote.ip() || local.ip().is_loopback() || remote.ip().is_loopback()
}

fn request(family: u8) -> Vec<u8> {
    let length = HEADER + REQUEST;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port
    bytes.push(family);
    bytes.push(6); // IPPROTO_TCP
    bytes.push(1 << (INET_DIAG_INFO - 1)); // attributes asked for
    bytes.push(0);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(length, 0); // any address, any port
    bytes
}

/// Reads one datagram; false when the dump is complete.
fn receive(socket: &Socket, flows: &mut Vec<FlowSample>) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(RECEIVE_MAX);
    socket.recv(&mut buffer, 0)?;
    let mut rest = buffer.as_slice();
    while let Some(length) = read_u32(rest, 0).map(|length| length as usize) {
        if length < HEADER || length > rest.len() {
            return Err(io::Error::other(
                "socket diagnostics sent a malformed message",
            ));
        }
        let body = &rest[HEADER..length];
        match read_u16(rest, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => {
                let code = read_u32(body, 0).unwrap_or(0);
                // The kernel sends the negated number.
                let errno = i32::try_from(code.wrapping_neg()).unwrap_or(0);
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => flows.extend(parse_message(body)),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// `struct inet_diag_msg` and its attributes.
pub(crate) fn parse_message(body: &[u8]) -> Option<FlowSample> {
    let family = *body.first()?;
    let local = SocketAddr::new(parse_addr(family, body.get(8..24)?)?, read_port(body, 4)?);
    let remote = SocketAddr::new(parse_addr(family, body.get(24..40)?)?, read_port(body, 6)?);
    if is_loopback(local, remote) {
        return None;
    }
    let mut attributes = body.get(MESSAGE..)?;
    while let Some(length) = read_u16(attributes, 0).map(usize::from) {
        let value = attributes.get(4..length)?;
        if read_u16(attributes, 2) == Some(INET_DIAG_INFO) {
            return parse_info(value, local, remote);
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    None
}

/// `struct tcp_info`.
fn parse_info(info: &[u8], local: SocketAddr, remote: SocketAddr) -> Option<FlowSample> {
    Some(FlowSample {
        local,
        remote,
        bytes_acked: read_u64(info, 120)?,
        bytes_received: read_u64(info, 128)?,
        retransmits: u64::from(read_u32(info, 100)?),
        srtt_us: read_u32(info, 68).filter(|srtt| *srtt != 0),
        delivered_ce: read_u32(info, 196).map(u64::from),
        delivered: read_u32(info, 192).map(u64::from),
        closed: false,
    })
}

/// An address in network byte order; one mapped from IPv4 is that IPv4 address.
pub fn parse_addr(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => {
            let four: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(four)))
        }
        libc::AF_INET6 => {
            let sixteen: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical())
        }
        _ => None,
    }
}

fn read_port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(info_length: usize) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = u8::try_from(libc::AF_INET).expect("small");
        body[4..6].copy_from_slice(&5000_u16.to_be_bytes());
        body[6..8].copy_from_slice(&6000_u16.to_be_bytes());
        body[8..12].copy_from_slice(&[10, 0, 0, 1]);
        body[24..28].copy_from_slice(&[10, 0, 0, 2]);
        let length = u16::try_from(4 + info_length).expect("small");
        body.extend(length.to_ne_bytes());
        body.extend(INET_DIAG_INFO.to_ne_bytes());
        let mut info = vec![0; info_length];
        info[120..128].copy_from_slice(&77_u64.to_ne_bytes());
        body.extend(info);
        body
    }

    #[test]
    fn a_field_that_an_old_kernel_lacks_is_absent() {
        let old = parse_message(&message(192)).expect("complete");
        assert_eq!((old.bytes_acked, old.delivered_ce), (77, None));
        assert_eq!(old.local, "10.0.0.1:5000".parse().expect("an address"));
        let new = parse_message(&message(232)).expect("complete");
        assert_eq!(new.delivered_ce, Some(0));
    }

    #[test]
    fn a_cut_message_is_no_flow() {
        let body = message(232);
        for length in 0..body.len() {
            assert_eq!(parse_message(&body[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_address_mapped_from_ipv4_is_that_address() {
        let mapped = Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets();
        assert_eq!(
            parse_addr(10, &mapped),
            Some(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)))
        );
    }
}
