//! Verbs devices: which there are, what they are, what they say by themselves.

#![expect(
    unsafe_code,
    reason = "libibverbs is C; its calls are in this file, completion.rs, queues.rs and address.rs"
)]

use crate::events::{self, Scope};
use crate::prober::Clock;
use rdma_sys::*;
use serde::Serialize;
use std::ffi::{CStr, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use weir_verbs_protocol::Event;

/// GIDs of a device that are looked at: 256 in the table of each port are common, and the kernel
/// refuses a buffer of 64 KiB and more (the length of an attribute of its ioctl has 16 bits).
const GIDS_MAX: usize = 2000;
const _: () = assert!(GIDS_MAX * size_of::<ibv_gid_entry>() < 1 << 16);
/// Vendor of soft-RoCE and other devices without hardware (rdma_rxe: RXE_VENDOR_ID).
const VENDOR_SOFTWARE: u32 = 0xff_ffff;
const LINK_LAYER_ETHERNET: u8 = 2;

unsafe extern "C" {
    /// What the inline function ibv_query_gid_table calls; rdma-sys does not bind it.
    fn _ibv_query_gid_table(
        context: *mut ibv_context,
        entries: *mut ibv_gid_entry,
        max_entries: usize,
        flags: u32,
        entry_size: usize,
    ) -> isize;
}

/// A device that the library lists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub device: String,
    /// Its character device, such as `uverbs0`: tells a device that came back from the one that went.
    pub uverbs: String,
}

/// The devices of this node. Opens none.
///
/// # Errors
/// The kernel has no verbs, or its listing cannot be read.
pub fn names() -> io::Result<Vec<Name>> {
    let list = List::new()?;
    Ok(list.iter().map(name_of).collect())
}

struct List {
    first: NonNull<*mut ibv_device>,
    len: usize,
}

impl List {
    fn new() -> io::Result<List> {
        let mut len: c_int = 0;
        // SAFETY: `len` is written before the call returns.
        let first = unsafe { ibv_get_device_list(&raw mut len) };
        match NonNull::new(first) {
            Some(first) => Ok(List {
                first,
                len: usize::try_from(len).unwrap_or(0),
            }),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn iter(&self) -> impl Iterator<Item = NonNull<ibv_device>> {
        // SAFETY: the library gave `len` pointers there, which live as long as the list.
        let devices = unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) };
        devices.iter().filter_map(|device| NonNull::new(*device))
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_get_device_list and is freed once; open devices stay valid.
        unsafe { ibv_free_device_list(self.first.as_ptr()) };
    }
}

fn name_of(device: NonNull<ibv_device>) -> Name {
    // SAFETY: a listed device; its names are arrays with a final zero.
    let (device, uverbs) = unsafe {
        let device = device.as_ref();
        (
            CStr::from_ptr(device.name.as_ptr()),
            CStr::from_ptr(device.dev_name.as_ptr()),
        )
    };
    Name {
        device: device.to_string_lossy().into_owned(),
        uverbs: uverbs.to_string_lossy().into_owned(),
    }
}

/// An open device; closed when dropped.
#[derive(Debug)]
pub struct Device {
    pub name: String,
    context: NonNull<ibv_context>,
}

// SAFETY: libibverbs lets any thread use a context (ibv_open_device(3) and the library's thread safety rules).
unsafe impl Send for Device {}
// SAFETY: as above; no method changes the context without the library's own lock.
unsafe impl Sync for Device {}

/// What a device is.
#[derive(Debug, Clone, Serialize)]
pub struct Attributes {
    pub firmware: String,
    pub node_guid: String,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    /// How many it has; listed one by one elsewhere.
    #[serde(skip)]
    pub ports: u8,
    /// Whether the kernel makes its packets, and so the UDP source port from the number of the queue pair.
    pub software: bool,
    /// kHz of the clock that stamps completions; `None` if they are not stamped.
    pub clock_khz: Option<u64>,
    #[serde(skip)]
    pub clock: Clock,
}

/// What a port is at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    pub port: u8,
    /// As in sysfs: `ACTIVE`, `DOWN`...
    pub state: &'static str,
    pub physical_state: &'static str,
    pub link_layer: &'static str,
    pub active_mtu_bytes: Option<u32>,
    pub lid: u16,
    pub sm_lid: u16,
    /// Bits per second; `None` while it is down, or for a width or speed that this version does not know.
    pub rate_bps: Option<u64>,
    pub gids: Vec<Gid>,
}

impl Port {
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == "ACTIVE"
    }
}

/// An entry of a port's table of GIDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gid {
    pub index: u8,
    pub gid: Ipv6Addr,
    /// `IB`, `RoCE v1`, `RoCE v2`.
    pub kind: &'static str,
    /// Of the network interface; 0: none.
    pub ifindex: u32,
}

impl Device {
    /// # Errors
    /// There is none of that name, or the library cannot open it.
    pub fn open(name: &str) -> io::Result<Device> {
        let list = List::new()?;
        let device = list
            .iter()
            .find(|device| name_of(*device).device == name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such verbs device"))?;
        // SAFETY: a device of a list that is still there.
        let context =
            NonNull::new(unsafe { ibv_open_device(device.as_ptr()) }).ok_or_else(last_error)?;
        let device = Device {
            name: name.to_owned(),
            context,
        };
        set_nonblocking(device.async_fd())?;
        Ok(device)
    }

    pub(crate) fn context(&self) -> *mut ibv_context {
        self.context.as_ptr()
    }

    /// Readable when there is an asynchronous event.
    #[must_use]
    pub fn async_fd(&self) -> RawFd {
        // SAFETY: the context is open as long as self.
        unsafe { self.context.as_ref() }.async_fd
    }

    /// # Errors
    /// What the driver says.
    pub fn attributes(&self) -> io::Result<Attributes> {
        let mut attr = MaybeUninit::<ibv_device_attr_ex>::zeroed();
        // SAFETY: the context is open; the struct is written up to the size that the library knows,
        // the rest stays zero, which is valid for all its fields.
        let attr = unsafe {
            check(ibv_query_device_ex(
                self.context(),
                std::ptr::null(),
                attr.as_mut_ptr(),
            ))?;
            attr.assume_init()
        };
        let basic = &attr.orig_attr;
        // SAFETY: an array with a final zero.
        let firmware = unsafe { CStr::from_ptr(basic.fw_ver.as_ptr()) };
        let (khz, mask) = (attr.hca_core_clock, attr.completion_timestamp_mask);
        let clock = if khz > 0 && mask > 0 {
            Clock::Device { khz, mask }
        } else {
            Clock::Host
        };
        let guid = u64::from_be(basic.node_guid);
        Ok(Attributes {
            firmware: firmware.to_string_lossy().into_owned(),
            node_guid: format!("{guid:016x}"),
            vendor_id: basic.vendor_id,
            vendor_part_id: basic.vendor_part_id,
            ports: basic.phys_port_cnt,
            software: basic.vendor_id == VENDOR_SOFTWARE,
            clock_khz: (clock != Clock::Host).then_some(khz),
            clock,
        })
    }

    /// # Errors
    /// What the driver says.
    pub fn port(&self, port: u8) -> io::Result<Port> {
        let mut attr = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: ibv_query_port writes a prefix of ibv_port_attr (the struct of its first version,
        // up to `flags`); the rest stays zero, which is valid.
        let attr = unsafe {
            check(ibv_query_port(
                self.context(),
                port,
                attr.as_mut_ptr().cast(),
            ))?;
            attr.assume_init()
        };
        let state = match attr.state {
            1 => "DOWN",
            2 => "INIT",
            3 => "ARMED",
            4 => "ACTIVE",
            5 => "ACTIVE_DEFER",
            _ => "NOP",
        };
        let rate = rate_bps(attr.active_width, attr.active_speed);
        Ok(Port {
            port,
            state,
            physical_state: match attr.phys_state {
                1 => "Sleep",
                2 => "Polling",
                3 => "Disabled",
                4 => "PortConfigurationTraining",
                5 => "LinkUp",
                6 => "LinkErrorRecovery",
                7 => "Phy Test",
                _ => "unknown",
            },
            link_layer: match attr.link_layer {
                0 | 1 => "InfiniBand",
                LINK_LAYER_ETHERNET => "Ethernet",
                _ => "unknown",
            },
            active_mtu_bytes: (1..=5)
                .contains(&attr.active_mtu)
                .then(|| 128 << attr.active_mtu),
            lid: attr.lid,
            sm_lid: attr.sm_lid,
            rate_bps: rate.filter(|_| attr.state == ibv_port_state::IBV_PORT_ACTIVE),
            gids: self.gids(port)?,
        })
    }

    fn gids(&self, port: u8) -> io::Result<Vec<Gid>> {
        let mut entries: Vec<ibv_gid_entry> = Vec::with_capacity(GIDS_MAX);
        // SAFETY: there is room for GIDS_MAX entries of that size; the library writes as many as it returns.
        let count = unsafe {
            _ibv_query_gid_table(
                self.context(),
                entries.as_mut_ptr(),
                GIDS_MAX,
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = i32::try_from(count.unsigned_abs()).unwrap_or(libc::EIO);
            return Err(io::Error::from_raw_os_error(error));
        };
        // SAFETY: the library has written that many, of at most GIDS_MAX.
        unsafe { entries.set_len(count.min(GIDS_MAX)) };
        let of_port = entries
            .iter()
            .filter(|entry| entry.port_num == u32::from(port));
        let gids = of_port.filter_map(|entry| {
            // SAFETY: every bit pattern is a GID.
            let raw = unsafe { entry.gid.raw };
            Some(Gid {
                // An address handle has eight bits for it.
                index: u8::try_from(entry.gid_index).ok()?,
                gid: Ipv6Addr::from(raw),
                kind: match entry.gid_type {
                    IBV_GID_TYPE_ROCE_V1 => "RoCE v1",
                    IBV_GID_TYPE_ROCE_V2 => "RoCE v2",
                    _ => "IB",
                },
                ifindex: entry.ndev_ifindex,
            })
        });
        Ok(gids.collect())
    }

    /// The next asynchronous event, acknowledged, with its port; `None` if there is none.
    ///
    /// # Errors
    /// The device is gone.
    pub fn next_event(&self) -> io::Result<Option<(u32, Event)>> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the context is open. The number is read as an integer, because the library may
        // know events that the enum lacks; `port_num` only of events for which the library sets it.
        // The event is given back as it came, once.
        unsafe {
            if ibv_get_async_event(self.context(), event.as_mut_ptr()) != 0 {
                let error = io::Error::last_os_error();
                let none = matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                );
                return if none { Ok(None) } else { Err(error) };
            }
            let kind = &raw const (*event.as_ptr()).event_type;
            let number = kind.cast::<u32>().read();
            let port = (events::scope(number) == Some(Scope::Port))
                .then(|| (*event.as_ptr()).element.port_num)
                .and_then(|port| u8::try_from(port).ok());
            ibv_ack_async_event(event.as_mut_ptr());
            Ok(Some((number, events::event(&self.name, number, port))))
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: opened by ibv_open_device, closed once; all that was made of it holds an Arc of it.
        unsafe { ibv_close_device(self.context.as_ptr()) };
    }
}

/// Lanes times speed (enum ib_port_width, ib_port_speed of the kernel's ib_verbs.h).
fn rate_bps(width: u8, speed: u8) -> Option<u64> {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return None,
    };
    let lane: u64 = match speed {
        1 => 2_500_000_000,
        2 => 5_000_000_000,
        4 | 8 => 10_000_000_000,
        16 => 14_062_500_000,
        32 => 25_000_000_000,
        64 => 50_000_000_000,
        128 => 100_000_000_000,
        _ => return None,
    };
    Some(lanes * lane)
}

/// The GID for pings: RoCE v2, best over IPv4, of the lowest index.
#[must_use]
pub fn choose(gids: &[Gid]) -> Option<&Gid> {
    let of = |v4: bool| {
        let fit = gids
            .iter()
            .filter(move |gid| gid.kind == "RoCE v2" && gid.gid.to_ipv4_mapped().is_some() == v4);
        fit.min_by_key(|gid| gid.index)
    };
    of(true).or_else(|| of(false))
}

/// Functions of verbs return an errno.
pub(crate) fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        // Some set errno and return -1 instead.
        negative if negative < 0 => Err(last_error()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Some providers fail without an errno.
pub(crate) fn last_error() -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(0) {
        return io::Error::other("refused by the device's library");
    }
    error
}

pub(crate) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller's descriptor is open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // SAFETY: F_GETFL and F_SETFL read and write flags only.
    unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, gid: &str, kind: &'static str) -> Gid {
        Gid {
            index,
            gid: gid.parse().unwrap(),
            kind,
            ifindex: 3,
        }
    }

    #[test]
    fn the_gid_for_pings_is_roce_v2_over_ipv4_where_there_is_one() {
        // As mlx5 has them.
        let gids = [
            gid(0, "fe80::1", "RoCE v1"),
            gid(1, "fe80::1", "RoCE v2"),
            gid(2, "::ffff:10.0.1.2", "RoCE v1"),
            gid(3, "::ffff:10.0.1.2", "RoCE v2"),
        ];
        assert_eq!(choose(&gids).unwrap().index, 3);
        assert_eq!(choose(&gids[..2]).unwrap().index, 1);
        assert_eq!(choose(&gids[..1]), None);
    }

    #[test]
    fn rates_are_lanes_times_speed() {
        assert_eq!(rate_bps(2, 128), Some(400_000_000_000));
        assert_eq!(rate_bps(2, 1), Some(10_000_000_000));
        assert_eq!(rate_bps(0, 1), None);
        assert_eq!(rate_bps(2, 0), None);
    }
}
