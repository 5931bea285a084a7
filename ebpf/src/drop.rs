//! Dropped packets by port and by the kernel's reason.
//!
//! `kfree_skb` fires only for packets that are thrown away (those that were
//! used up end in `consume_skb`), with a reason since Linux 5.17. The reason's
//! name is looked up by the agent in the running kernel's BTF: the numbers
//! differ between versions.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    macros::{map, raw_tracepoint},
    maps::PerCpuHashMap,
    programs::RawTracePointContext,
};
use weir_ebpf_abi::{DropKey, lost};

use crate::{
    lost::count,
    netns::{device_ifindex, device_inum, has_our_ports, is_filter_off, read_kernel},
};

/// Pairs of port and reason at a time.
const DROPS_MAX: u32 = 2048;

/// Offset of `dev` in `sk_buff`.
#[unsafe(no_mangle)]
static OFF_SKB_DEV: Global<u32> = Global::new(0);

#[map]
static DROPS: PerCpuHashMap<DropKey, u64> = PerCpuHashMap::with_max_entries(DROPS_MAX, 0);

/// Runs on every packet thrown away: `(skb, location, reason, ..)`.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn skb_drop(ctx: RawTracePointContext) -> i32 {
    let skb: *const c_void = ctx.arg(0);
    let reason: u32 = ctx.arg(2);
    match port(skb) {
        Some((netns, ifindex)) if has_our_ports(netns) => add(&DropKey { ifindex, reason }),
        // Another agent's, or a container's own.
        Some(_) => {}
        // Whose it was cannot be told.
        None if is_filter_off() => add(&DropKey { ifindex: 0, reason }),
        None => {}
    }
    0
}

/// The packet's port, if it has one: a packet in a socket's queue has none.
#[inline(always)]
fn port(skb: *const c_void) -> Option<(u32, u32)> {
    let device: *const c_void = read_kernel(skb, OFF_SKB_DEV.load())?;
    let netns = device_inum(device)?;
    Some((netns, device_ifindex(device)?))
}

#[inline(always)]
fn add(key: &DropKey) {
    if let Some(packets) = DROPS.get_ptr_mut(key) {
        // SAFETY: an element of a live per-CPU map, which only this CPU writes.
        unsafe { *packets += 1 };
    } else if DROPS.insert(key, 1, 0).is_err() {
        count(lost::DROPS_FULL);
    }
}
