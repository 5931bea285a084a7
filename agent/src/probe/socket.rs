//! A UDP socket that tells when a packet really left and came, and by which of our addresses.
//!
//! `SO_TIMESTAMPING` (Documentation/networking/timestamping.rst): what comes in is stamped by the
//! kernel, and by the NIC where somebody has switched that on (we do not: it is a setting of the NIC's,
//! and ptp4l's to make). What goes out comes back by the error queue with its stamp, whole, so that it
//! is known by what it carries and no counting of packets can go wrong.

#![expect(
    unsafe_code,
    reason = "std has neither control messages, nor the error queue, nor poll"
)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Room for stamps, packet info and an extended error with its address, twice over.
const CONTROL_BYTES: usize = 512;
/// Headers of IPv6 with options and of the link, before what we sent.
pub const BUFFER_BYTES: usize = 512;
const STAMPS_IN: u32 = libc::SOF_TIMESTAMPING_RX_SOFTWARE
    | libc::SOF_TIMESTAMPING_SOFTWARE
    | libc::SOF_TIMESTAMPING_RX_HARDWARE
    | libc::SOF_TIMESTAMPING_RAW_HARDWARE;
const STAMPS_OUT: u32 = libc::SOF_TIMESTAMPING_TX_SOFTWARE
    | libc::SOF_TIMESTAMPING_TX_HARDWARE
    | libc::SOF_TIMESTAMPING_OPT_TX_SWHW;
/// ICMP port unreachable, and its like of ICMPv6.
const ICMP_PORT_UNREACH: (u8, u8) = (3, 3);
const ICMP6_PORT_UNREACH: (u8, u8) = (1, 4);

/// Wall clock in nanoseconds since 1970: the clock of the kernel's stamps.
#[must_use]
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

/// What came with a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    /// Stamps in nanoseconds: the kernel's since 1970, the NIC's on its own clock.
    pub kernel: Option<u64>,
    pub nic: Option<u64>,
    /// Address of ours that it was sent to.
    pub to: Option<IpAddr>,
    /// On the error queue: why it is there.
    pub error: Option<Cause>,
}

/// Why a packet is on the error queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was sent, and this is its stamp.
    Stamped,
    /// The peer has nobody on that port.
    Refused,
    /// The network or our own host could not deliver it.
    Undelivered,
}

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub length: usize,
    pub from: Option<SocketAddr>,
    pub control: Control,
}

/// See the module's text.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    pub local: SocketAddr,
    pub is_v6: bool,
}

impl Socket {
    /// Binds; port 0 takes a free one. With an error queue what is sent comes back with its stamp or
    /// as undelivered, and has to be taken: the queue counts against the room for what comes in.
    ///
    /// # Errors
    /// The address is taken, or the kernel lacks the address family.
    pub fn bind(address: SocketAddr, error_queue: bool) -> io::Result<Socket> {
        let is_v6 = address.is_ipv6();
        let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes three numbers.
        let fd = unsafe { libc::socket(family, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut socket = Socket {
            fd,
            local: address,
            is_v6,
        };
        if is_v6 {
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        } else {
            socket.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        if error_queue && is_v6 {
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        } else if error_queue {
            socket.set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        }
        let stamps = STAMPS_IN | if error_queue { STAMPS_OUT } else { 0 };
        // Every kernel that runs us has these; without, times are those of our calls.
        if let Err(error) = socket.set(libc::SOL_SOCKET, libc::SO_TIMESTAMPING, stamps) {
            tracing::warn!("probes without the kernel's time stamps: {error}");
        }
        let (name, length) = encode(address);
        // SAFETY: `name` holds an address of `length` bytes.
        if unsafe { libc::bind(socket.fd.as_raw_fd(), name.as_ptr().cast(), length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // std knows how to ask for the address.
        let named = std::net::UdpSocket::from(socket.fd.try_clone()?);
        socket.local = named.local_addr()?;
        Ok(socket)
    }

    fn set(&self, level: i32, option: i32, value: u32) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(4);
        // SAFETY: `value` has `length` bytes and outlives the call.
        let status = unsafe {
            let value = (&raw const value).cast();
            libc::setsockopt(self.fd.as_raw_fd(), level, option, value, length)
        };
        if status == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Sends from the address `from` of ours, or from what the kernel chooses.
    ///
    /// # Errors
    /// There is no route, no room, no such address.
    pub fn send(&self, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        let (mut name, name_length) = encode(to);
        let mut control = from.map_or_else(Vec::new, packet_info);
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: all zeros is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = name_length;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !control.is_empty() {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = control.len();
        }
        // SAFETY: everything that `message` points to outlives the call, which only reads it.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Takes what has come in, or what is on the error queue; `None`: nothing is there.
    ///
    /// # Errors
    /// What the kernel says; an error of an earlier packet is told once.
    pub fn receive(&self, buffer: &mut [u8], errors: bool) -> io::Result<Option<Message>> {
        let mut name = [0u8; 28];
        let mut control = [0u8; CONTROL_BYTES];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all zeros is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = 28;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len();
        let flags = if errors { libc::MSG_ERRQUEUE } else { 0 };
        // SAFETY: everything that `message` points to is writable, as long as told, and outlives the call.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            let empty = error.kind() == io::ErrorKind::WouldBlock;
            return if empty { Ok(None) } else { Err(error) };
        };
        let filled = control.get(..message.msg_controllen).unwrap_or(&control);
        Ok(Some(Message {
            length,
            from: decode(&name),
            control: parse_control(filled),
        }))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of these can be read or has an error, or the time is over; says which.
///
/// # Errors
/// What the kernel says.
pub fn poll(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let entry = |fd: &BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries: Vec<libc::pollfd> = fds.iter().map(entry).collect();
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), |t| t as *const _);
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or(0);
    // SAFETY: `entries` holds `count` entries; the time is valid or null, no signals are masked.
    let status = unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
    if status < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(entries.iter().map(|e| e.revents != 0).collect())
}

/// An address as the kernel has it (sockaddr_in, sockaddr_in6), and its length.
fn encode(address: SocketAddr) -> ([u8; 28], libc::socklen_t) {
    let mut name = [0; 28];
    name[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            name[..2].copy_from_slice(&family(libc::AF_INET));
            name[4..8].copy_from_slice(&v4.ip().octets());
            (name, 16)
        }
        SocketAddr::V6(v6) => {
            name[..2].copy_from_slice(&family(libc::AF_INET6));
            name[8..24].copy_from_slice(&v6.ip().octets());
            name[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
            (name, 28)
        }
    }
}

fn family(family: i32) -> [u8; 2] {
    u16::try_from(family).unwrap_or(0).to_ne_bytes()
}

fn decode(name: &[u8; 28]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([name[2], name[3]]);
    let ip = if name[..2] == family(libc::AF_INET) {
        IpAddr::V4(Ipv4Addr::from(word(name, 4)?))
    } else if name[..2] == family(libc::AF_INET6) {
        IpAddr::V6(Ipv6Addr::from(word::<16>(name, 8)?))
    } else {
        return None;
    };
    Some(SocketAddr::new(ip, port))
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.get(..N)?.try_into().ok()
}

/// The control message that chooses the source address (in_pktinfo, in6_pktinfo).
fn packet_info(from: IpAddr) -> Vec<u8> {
    let (level, kind, data) = match from {
        IpAddr::V4(v4) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&v4.octets());
            (libc::IPPROTO_IP, libc::IP_PKTINFO, info.to_vec())
        }
        IpAddr::V6(v6) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&v6.octets());
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info.to_vec())
        }
    };
    let mut control = (HEADER_BYTES + data.len()).to_ne_bytes().to_vec();
    control.extend(level.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(data);
    control.resize(control.len().next_multiple_of(size_of::<usize>()), 0);
    control
}

/// struct cmsghdr: length, level, type.
const HEADER_BYTES: usize = size_of::<usize>() + 8;

/// Takes apart what the kernel wrote beside the packet.
fn parse_control(mut bytes: &[u8]) -> Control {
    let mut control = Control::default();
    while let Some(length) = word(bytes, 0).map(usize::from_ne_bytes) {
        let level = word(bytes, size_of::<usize>()).map(i32::from_ne_bytes);
        let kind = word(bytes, size_of::<usize>() + 4).map(i32::from_ne_bytes);
        let (Some(level), Some(kind), Some(data)) = (level, kind, bytes.get(HEADER_BYTES..length))
        else {
            break;
        };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING) => {
                // struct scm_timestamping: the kernel's, none, the NIC's.
                control.kernel = timespec_ns(data, 0);
                control.nic = timespec_ns(data, 2);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                control.to = word(data, 8).map(|a: [u8; 4]| IpAddr::from(a));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                control.to = word(data, 0).map(|a: [u8; 16]| IpAddr::from(a));
            }
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                control.error = cause(data);
            }
            _ => {}
        }
        let next = length.next_multiple_of(size_of::<usize>());
        bytes = bytes.get(next..).unwrap_or_default();
    }
    control
}

fn timespec_ns(data: &[u8], n: usize) -> Option<u64> {
    let seconds = i64::from_ne_bytes(word(data, 16 * n)?);
    let nanos = i64::from_ne_bytes(word(data, 16 * n + 8)?);
    let (seconds, nanos) = (u64::try_from(seconds).ok()?, u64::try_from(nanos).ok()?);
    let stamp = seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?;
    (stamp != 0).then_some(stamp)
}

/// struct sock_extended_err: errno, origin, type, code.
fn cause(data: &[u8]) -> Option<Cause> {
    let [origin, kind, code]: [u8; 3] = word(data, 4)?;
    Some(match (origin, (kind, code)) {
        (libc::SO_EE_ORIGIN_TIMESTAMPING, _) => Cause::Stamped,
        (libc::SO_EE_ORIGIN_ICMP, ICMP_PORT_UNREACH)
        | (libc::SO_EE_ORIGIN_ICMP6, ICMP6_PORT_UNREACH) => Cause::Refused,
        _ => Cause::Undelivered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    fn wait(socket: &Socket, errors: bool) -> ([u8; BUFFER_BYTES], Message) {
        let mut buffer = [0; BUFFER_BYTES];
        let deadline = Instant::now() + LONG;
        loop {
            // An error of an earlier packet is told once, and passed over.
            if let Ok(Some(message)) = socket.receive(&mut buffer, errors) {
                return (buffer, message);
            }
            assert!(Instant::now() < deadline, "nothing comes");
            poll(&[socket.as_fd()], Some(Duration::from_millis(50))).unwrap();
        }
    }

    fn exchange(loopback: IpAddr) {
        let bind = |error_queue| Socket::bind(SocketAddr::new(loopback, 0), error_queue);
        let (a, b) = match (bind(true), bind(false)) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(error), _) | (_, Err(error)) => {
                println!("skipped: no {loopback} here ({error})");
                return;
            }
        };
        // The kernel begins to stamp a moment after the first socket asked for it.
        let deadline = Instant::now() + LONG;
        loop {
            a.send(&[1; 64], b.local, None).unwrap();
            let stamped_in = wait(&b, false).1.control.kernel.is_some();
            if stamped_in && wait(&a, true).1.control.kernel.is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "no stamps");
        }
        while let Ok(Some(_)) = a.receive(&mut [0; BUFFER_BYTES], true) {}
        let before = wall_ns();
        a.send(&[7; 64], b.local, Some(loopback)).unwrap();
        let (buffer, message) = wait(&b, false);
        assert_eq!((message.length, buffer[63]), (64, 7));
        assert_eq!(message.from, Some(a.local));
        assert_eq!(message.control.to, Some(loopback));
        let rx = message.control.kernel.unwrap();
        let (buffer, message) = wait(&a, true);
        assert_eq!(message.control.error, Some(Cause::Stamped));
        assert_eq!(buffer[message.length - 64..message.length], [7; 64]);
        let tx = message.control.kernel.unwrap();
        assert!(
            before <= tx && tx <= rx && rx <= wall_ns(),
            "{before} {tx} {rx}"
        );

        // Nobody is there: what was sent comes back.
        let gone = b.local;
        drop(b);
        a.send(&[9; 64], gone, None).unwrap();
        loop {
            let (buffer, message) = wait(&a, true);
            if message.control.error == Some(Cause::Refused) {
                assert_eq!(buffer[message.length - 64..message.length], [9; 64]);
                break;
            }
        }
    }

    #[test]
    fn packets_are_stamped_both_ways_and_a_dead_port_is_told() {
        exchange(Ipv4Addr::LOCALHOST.into());
        exchange(Ipv6Addr::LOCALHOST.into());
    }

    #[test]
    fn control_messages_that_are_cut_or_lie_are_passed_over() {
        let info = packet_info(Ipv4Addr::new(10, 0, 0, 7).into());
        for cut in 0..info.len() {
            parse_control(&info[..cut]);
        }
        let mut lies = info;
        for length in [0, 1, 15, 17, 4096, usize::MAX] {
            lies[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            parse_control(&lies);
        }
    }

    #[test]
    fn addresses_come_back() {
        for text in ["10.1.2.3:9744", "[2001:db8::7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(decode(&encode(address).0), Some(address));
        }
    }
}
