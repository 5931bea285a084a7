//! The network-namespace filter, and the kernel reads that it rests on.
//!
//! Several agents may share a kernel, one per namespace (a lab), and each of
//! their programs runs on every packet: the filter is the first thing that
//! each does. In production it is off for processes and flows, so that one agent
//! covers the containers of its host.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
};

/// Inode number of the only namespace whose processes to look at; 0 looks at all.
#[unsafe(no_mangle)]
static NETNS_INUM: Global<u32> = Global::new(0);
/// Inode number of the agent's own namespace: the only one whose ports it can
/// tell apart, because interface indices repeat in others.
#[unsafe(no_mangle)]
static NETNS_PORTS: Global<u32> = Global::new(0);

/// Offset of `nsproxy` in `task_struct`.
#[unsafe(no_mangle)]
static OFF_TASK_NSPROXY: Global<u32> = Global::new(0);
/// Offset of `net_ns` in `nsproxy`.
#[unsafe(no_mangle)]
static OFF_NSPROXY_NET: Global<u32> = Global::new(0);
/// Offset of `ns.inum` in `net`.
#[unsafe(no_mangle)]
static OFF_NET_INUM: Global<u32> = Global::new(0);
/// Offset of `nd_net.net` in `net_device`.
#[unsafe(no_mangle)]
static OFF_DEV_NET: Global<u32> = Global::new(0);
/// Offset of `ifindex` in `net_device`.
#[unsafe(no_mangle)]
static OFF_DEV_IFINDEX: Global<u32> = Global::new(0);

/// First inode number that the kernel gives to a namespace (`PROC_DYNAMIC_FIRST`
/// of fs/proc and the numbers of the initial namespaces lie at or above it).
const INUM_FIRST: u32 = 0xF000_0000 - 32;

/// Reads a `T` of the kernel's memory at `base + offset`; `None` for a bad address.
#[inline(always)]
pub fn read_kernel<T>(base: *const c_void, offset: u32) -> Option<T> {
    if base.is_null() {
        return None;
    }
    let address = base.wrapping_byte_add(offset as usize);
    // SAFETY: the helper checks the address and fails on one that is not mapped.
    unsafe { bpf_probe_read_kernel(address.cast::<T>()) }.ok()
}

/// True if all namespaces are looked at.
#[inline(always)]
pub fn is_filter_off() -> bool {
    NETNS_INUM.load() == 0
}

/// True if a port in the namespace with this inode number is the agent's to see.
#[inline(always)]
pub fn has_our_ports(inum: u32) -> bool {
    NETNS_PORTS.load() == inum
}

/// True if the calling process lives in a namespace to look at.
#[inline(always)]
pub fn is_current_wanted() -> bool {
    is_filter_off() || current_inum() == Some(NETNS_INUM.load())
}

#[inline(always)]
fn current_inum() -> Option<u32> {
    // SAFETY: takes nothing and returns the running task's address.
    let task = unsafe { bpf_get_current_task() } as *const c_void;
    let nsproxy: *const c_void = read_kernel(task, OFF_TASK_NSPROXY.load())?;
    let net: *const c_void = read_kernel(nsproxy, OFF_NSPROXY_NET.load())?;
    read_kernel(net, OFF_NET_INUM.load())
}

/// Inode number of the namespace of a `net_device`; `None` if that is no device.
#[inline(always)]
pub fn device_inum(device: *const c_void) -> Option<u32> {
    let net: *const c_void = read_kernel(device, OFF_DEV_NET.load())?;
    let inum: u32 = read_kernel(net, OFF_NET_INUM.load())?;
    // A socket buffer's device field holds other things while the buffer is
    // queued in TCP or UDP: only what reads like a namespace is believed.
    (inum >= INUM_FIRST).then_some(inum)
}

/// Interface index of a `net_device`.
#[inline(always)]
pub fn device_ifindex(device: *const c_void) -> Option<u32> {
    read_kernel(device, OFF_DEV_IFINDEX.load())
}
