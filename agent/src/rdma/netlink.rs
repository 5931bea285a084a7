//! RDMA netlink (`NETLINK_RDMA`, client NLDEV): devices, ports, hardware counters and queue pairs,
//! a request for each instead of a file for each number.
//!
//! Numbers are those of include/uapi/rdma/rdma_netlink.h; drivers/infiniband/core/nldev.c answers.
//! It calls the driver on every request for counters, without the cache of sysfs, and refuses with
//! EMSGSIZE what does not fit a page: who asks keeps to the lifespan and has the files to fall back
//! on.

use crate::netlink::{Attributes, set_receive_timeout, text, u16_at, u32_at, u64_at};
use netlink_sys::{Socket, SocketAddr};
use std::io;

const NETLINK_RDMA: isize = 20;
const NLDEV: u16 = 5;
const CMD_GET: u16 = 1;
const CMD_PORT_GET: u16 = 5;
const CMD_RES_QP_GET: u16 = 10;
const CMD_STAT_GET: u16 = 17;
const CMD_STAT_GET_STATUS: u16 = 24;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

const ATTR_DEV_INDEX: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_PORT_INDEX: u16 = 3;
const ATTR_FW_VERSION: u16 = 5;
const ATTR_NODE_GUID: u16 = 6;
const ATTR_PORT_STATE: u16 = 12;
const ATTR_PORT_PHYS_STATE: u16 = 13;
const ATTR_RES_QP: u16 = 19;
const ATTR_RES_QP_ENTRY: u16 = 20;
const ATTR_RES_LQPN: u16 = 21;
const ATTR_RES_RQPN: u16 = 22;
const ATTR_RES_TYPE: u16 = 26;
const ATTR_RES_STATE: u16 = 27;
const ATTR_RES_PID: u16 = 28;
const ATTR_RES_KERN_NAME: u16 = 29;
const ATTR_NDEV_INDEX: u16 = 50;
const ATTR_NDEV_NAME: u16 = 51;
const ATTR_STAT_HWCOUNTERS: u16 = 80;
const ATTR_STAT_HWCOUNTER_ENTRY: u16 = 81;
const ATTR_STAT_HWCOUNTER_ENTRY_NAME: u16 = 82;
const ATTR_STAT_HWCOUNTER_ENTRY_VALUE: u16 = 83;
/// 1 for an optional counter that counts, 0 for one that does not; of no other counter.
const ATTR_STAT_HWCOUNTER_DYNAMIC: u16 = 95;

/// Bounds of what one dump may grow to.
const DEVICES_MAX: usize = super::sysfs::DEVICES_MAX;
const COUNTERS_MAX: usize = 512;
/// 64 ranks with 64 peers and 16 queue pairs each.
const QPS_MAX: usize = 65_536;
const REPLY_BYTES: usize = 64 << 10;
/// A device whose firmware does not answer holds the request for as long as its driver waits.
const TIMEOUT_S: i64 = 2;

/// A verbs device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// Number of ports.
    pub ports: u32,
    pub firmware: Option<String>,
    pub node_guid: Option<u64>,
}

/// A port of a verbs device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Port {
    /// As in [`super::text::State`].
    pub state: Option<u8>,
    pub physical: Option<u8>,
    pub ifindex: Option<u32>,
    pub netdev: Option<String>,
}

/// A queue pair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qp {
    pub lqpn: u32,
    /// Of the peer; only connected queue pairs have one.
    pub rqpn: Option<u32>,
    /// `enum ib_qp_type`: 2 RC, 3 UC, 4 UD.
    pub kind: Option<u8>,
    /// `enum ib_qp_state`: 0 reset, 1 init, 2 ready to receive, 3 ready to send, 4 to 6 draining or
    /// in error.
    pub state: Option<u8>,
    /// Of the process that made it; `None` for the kernel's own.
    pub pid: Option<u32>,
    /// Name of the process, or of the part of the kernel.
    pub comm: Option<String>,
}

/// A connection to the RDMA subsystem of the calling thread's network namespace.
pub struct RdmaNetlink {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl RdmaNetlink {
    /// # Errors
    /// The kernel has no RDMA subsystem (EPROTONOSUPPORT), or no socket can be had.
    pub fn open() -> io::Result<RdmaNetlink> {
        let mut socket = Socket::new(NETLINK_RDMA)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_receive_timeout(&socket, TIMEOUT_S)?;
        Ok(RdmaNetlink {
            socket,
            seq: 0,
            buffer: Vec::with_capacity(REPLY_BYTES),
        })
    }

    /// All devices.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn devices(&mut self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        self.ask(CMD_GET, NLM_F_DUMP, &[], |message| {
            if devices.len() < DEVICES_MAX {
                devices.extend(parse_device(message));
            }
        })?;
        Ok(devices)
    }

    /// A port.
    ///
    /// # Errors
    /// There is no such port, the kernel refuses, or does not answer.
    pub fn port(&mut self, device: u32, port: u32) -> io::Result<Port> {
        let mut found = Port::default();
        let what = [(ATTR_DEV_INDEX, device), (ATTR_PORT_INDEX, port)];
        self.ask(CMD_PORT_GET, 0, &what, |message| {
            found = parse_port(message);
        })?;
        Ok(found)
    }

    /// The hardware counters of a port, as the driver has them at this moment, given to `each`
    /// message by message.
    ///
    /// # Errors
    /// The port has no such counters (EINVAL), they do not fit a reply (EMSGSIZE), the kernel
    /// refuses, or does not answer.
    pub fn counters(
        &mut self,
        device: u32,
        port: u32,
        mut each: impl FnMut(HwCounters<'_>),
    ) -> io::Result<()> {
        let what = [(ATTR_DEV_INDEX, device), (ATTR_PORT_INDEX, port)];
        self.ask(CMD_STAT_GET, 0, &what, |message| each(HwCounters(message)))
    }

    /// The optional counters that a port supports, and whether each counts.
    ///
    /// # Errors
    /// The kernel is older than 5.16 or the port has no such counters (EINVAL), or the kernel does not
    /// answer.
    pub fn optional_counters(&mut self, device: u32, port: u32) -> io::Result<Vec<(String, bool)>> {
        let what = [(ATTR_DEV_INDEX, device), (ATTR_PORT_INDEX, port)];
        let mut found = Vec::new();
        self.ask(CMD_STAT_GET_STATUS, 0, &what, |message| {
            let optional = parse_optional(message);
            found.extend(optional.map(|(name, on)| (name.to_owned(), on)));
        })?;
        Ok(found)
    }

    /// The queue pairs of a device. Those of other users need CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn qps(&mut self, device: u32) -> io::Result<Vec<Qp>> {
        let mut qps = Vec::new();
        let what = [(ATTR_DEV_INDEX, device)];
        self.ask(CMD_RES_QP_GET, NLM_F_DUMP, &what, |message| {
            qps.extend(parse_qps(message).take(QPS_MAX - qps.len()));
        })?;
        for qp in &mut qps {
            if let Some(pid) = qp.pid {
                qp.comm = std::fs::read(format!("/proc/{pid}/comm"))
                    .ok()
                    .and_then(|b| super::text::line(&b));
            }
        }
        Ok(qps)
    }

    fn ask(
        &mut self,
        command: u16,
        flags: u16,
        attributes: &[(u16, u32)],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.seq = self.seq.wrapping_add(1);
        self.socket
            .send(&request(command, flags, self.seq, attributes), 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            if let Some(verdict) = walk(&self.buffer, self.seq, flags & NLM_F_DUMP == 0, &mut each)
            {
                return verdict;
            }
        }
    }
}

/// The bytes of a request. A single one asks for no acknowledgement: its reply is enough.
fn request(command: u16, flags: u16, seq: u32, attributes: &[(u16, u32)]) -> Vec<u8> {
    let length = u32::try_from(HEADER + attributes.len() * 8).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + attributes.len() * 8);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(((NLDEV << 10) | command).to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    for (kind, value) in attributes {
        bytes.extend(8u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// Gives the messages of one datagram to `each`; `Some` when the answer is complete.
fn walk(
    datagram: &[u8],
    seq: u32,
    single: bool,
    each: &mut impl FnMut(&[u8]),
) -> Option<io::Result<()>> {
    let cut = || {
        Some(Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's reply is cut short",
        )))
    };
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = u32_at(rest, 0).and_then(|l| usize::try_from(l).ok());
        let Some(message) = length
            .and_then(|l| rest.get(..l))
            .filter(|m| m.len() >= HEADER)
        else {
            return cut();
        };
        rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or(&[]);
        // A late reply to a request that timed out.
        if u32_at(message, 8) != Some(seq) {
            continue;
        }
        match u16_at(message, 4) {
            Some(NLMSG_DONE) => return Some(Ok(())),
            Some(NLMSG_ERROR) => {
                let code = u32_at(message, HEADER).map_or(-libc::EIO, u32::cast_signed);
                return Some(match code {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                });
            }
            Some(_) | None => {
                each(&message[HEADER..]);
                if single {
                    return Some(Ok(()));
                }
            }
        }
    }
    None
}

/// Takes one reply apart in every way there is; gives how much of it was understood.
pub(crate) fn understood(message: &[u8]) -> usize {
    let port = parse_port(message);
    usize::from(parse_device(message).is_some())
        + usize::from(port != Port::default())
        + HwCounters(message).iter().count()
        + parse_optional(message).count()
        + parse_qps(message).count()
}

fn u8_at(value: &[u8]) -> Option<u8> {
    value.first().copied()
}

fn parse_device(message: &[u8]) -> Option<Device> {
    let mut device = Device::default();
    for (kind, value) in Attributes(message) {
        match kind {
            ATTR_DEV_INDEX => device.index = u32_at(value, 0)?,
            ATTR_DEV_NAME => device.name = text(value),
            ATTR_PORT_INDEX => device.ports = u32_at(value, 0)?,
            ATTR_FW_VERSION => device.firmware = Some(text(value)).filter(|t| !t.is_empty()),
            ATTR_NODE_GUID => device.node_guid = u64_at(value, 0).filter(|g| *g != 0),
            _ => {}
        }
    }
    (!device.name.is_empty()).then_some(device)
}

fn parse_port(message: &[u8]) -> Port {
    let mut port = Port::default();
    for (kind, value) in Attributes(message) {
        match kind {
            ATTR_PORT_STATE => port.state = u8_at(value),
            ATTR_PORT_PHYS_STATE => port.physical = u8_at(value),
            ATTR_NDEV_INDEX => port.ifindex = u32_at(value, 0),
            ATTR_NDEV_NAME => port.netdev = Some(text(value)),
            _ => {}
        }
    }
    port
}

/// The entries of a table inside a message: (attributes of the entry).
fn entries(message: &[u8], table: u16, entry: u16) -> impl Iterator<Item = Attributes<'_>> {
    Attributes(message)
        .filter(move |(kind, _)| *kind == table)
        .flat_map(|(_, value)| Attributes(value))
        .filter(move |(kind, _)| *kind == entry)
        .map(|(_, value)| Attributes(value))
}

/// The hardware counters in one message.
#[derive(Debug, Clone, Copy)]
pub struct HwCounters<'a>(&'a [u8]);

impl<'a> HwCounters<'a> {
    /// Name and value of each, in the order of the driver.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, u64)> {
        entries(self.0, ATTR_STAT_HWCOUNTERS, ATTR_STAT_HWCOUNTER_ENTRY)
            .filter_map(parse_counter)
            .take(COUNTERS_MAX)
    }
}

fn parse_counter(entry: Attributes<'_>) -> Option<(&str, u64)> {
    let (mut name, mut number) = (None, None);
    for (kind, value) in entry {
        match kind {
            ATTR_STAT_HWCOUNTER_ENTRY_NAME => name = counter_name(value),
            ATTR_STAT_HWCOUNTER_ENTRY_VALUE => number = u64_at(value, 0),
            _ => {}
        }
    }
    Some((name?, number?))
}

fn parse_optional(message: &[u8]) -> impl Iterator<Item = (&str, bool)> {
    entries(message, ATTR_STAT_HWCOUNTERS, ATTR_STAT_HWCOUNTER_ENTRY)
        .filter_map(|entry| {
            let (mut name, mut enabled) = (None, None);
            for (kind, value) in entry {
                match kind {
                    ATTR_STAT_HWCOUNTER_ENTRY_NAME => name = counter_name(value),
                    ATTR_STAT_HWCOUNTER_DYNAMIC => enabled = u8_at(value).map(|on| on != 0),
                    _ => {}
                }
            }
            Some((name?, enabled?))
        })
        .take(COUNTERS_MAX)
}

fn counter_name(value: &[u8]) -> Option<&str> {
    let bytes = value.split(|b| *b == 0).next()?;
    std::str::from_utf8(bytes).ok().filter(|n| !n.is_empty())
}

fn parse_qps(message: &[u8]) -> impl Iterator<Item = Qp> {
    entries(message, ATTR_RES_QP, ATTR_RES_QP_ENTRY).filter_map(parse_qp)
}

fn parse_qp(entry: Attributes<'_>) -> Option<Qp> {
    let mut qp = Qp::default();
    let mut lqpn = None;
    for (kind, value) in entry {
        match kind {
            ATTR_RES_LQPN => lqpn = u32_at(value, 0),
            ATTR_RES_RQPN => qp.rqpn = u32_at(value, 0),
            ATTR_RES_TYPE => qp.kind = u8_at(value),
            ATTR_RES_STATE => qp.state = u8_at(value),
            ATTR_RES_PID => qp.pid = u32_at(value, 0),
            ATTR_RES_KERN_NAME => qp.comm = Some(text(value)),
            _ => {}
        }
    }
    qp.lqpn = lqpn?;
    Some(qp)
}

#[cfg(test)]
mod tests;
