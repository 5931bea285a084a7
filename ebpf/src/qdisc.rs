//! Queue depth of each port, as every packet finds it.
//!
//! `qdisc_enqueue` fires once per packet that a device's *root* discipline has
//! accepted (`dev_qdisc_enqueue`, not the classes below it), so the root's own
//! backlog, the packet included, is the depth of the port. Sampling a gauge
//! once a second would miss the bursts that fill a queue for milliseconds.
//!
//! Disciplines that keep their backlog per CPU (`pfifo_fast`) have no figure
//! to read here and are left out, as are devices without a queue; a packet that
//! meets an idle discipline which lets it bypass the queue causes no event.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    macros::{map, raw_tracepoint},
    maps::{Array, PerCpuHashMap},
    programs::RawTracePointContext,
};
use weir_ebpf_abi::{HISTOGRAM_BUCKETS, PortQueue, histogram_bucket, lost};

use crate::{
    lost::count,
    netns::{device_ifindex, device_inum, has_our_ports, read_kernel},
};

/// Ports at a time: a large switch, or a host with many containers.
const PORTS_MAX: u32 = 256;

/// Offset of `dev` in `netdev_queue`.
#[unsafe(no_mangle)]
static OFF_TXQ_DEV: Global<u32> = Global::new(0);
/// Offset of `cpu_qstats` in `Qdisc`.
#[unsafe(no_mangle)]
static OFF_QDISC_CPU_QSTATS: Global<u32> = Global::new(0);
/// Offset of `qstats.backlog` in `Qdisc`.
#[unsafe(no_mangle)]
static OFF_QDISC_BACKLOG: Global<u32> = Global::new(0);

#[map]
static PORTS: PerCpuHashMap<u32, PortQueue> = PerCpuHashMap::with_max_entries(PORTS_MAX, 0);
/// The number of the present window, which the agent advances when it reads.
#[map]
static WINDOW: Array<u32> = Array::with_max_entries(1, 0);

/// Runs on every packet that enters a queue: `(qdisc, txq, skb)`.
#[raw_tracepoint(tracepoint = "qdisc_enqueue")]
pub fn qdisc_enqueue(ctx: RawTracePointContext) -> i32 {
    // `None` is a device of another namespace or a queue without a figure.
    _ = try_enqueue(&ctx);
    0
}

#[inline(always)]
fn try_enqueue(ctx: &RawTracePointContext) -> Option<()> {
    let queue: *const c_void = ctx.arg(1);
    let device: *const c_void = read_kernel(queue, OFF_TXQ_DEV.load())?;
    if !has_our_ports(device_inum(device)?) {
        return None;
    }
    let qdisc: *const c_void = ctx.arg(0);
    let per_cpu: *const c_void = read_kernel(qdisc, OFF_QDISC_CPU_QSTATS.load())?;
    if !per_cpu.is_null() {
        return None;
    }
    let backlog: u32 = read_kernel(qdisc, OFF_QDISC_BACKLOG.load())?;
    let port = port(device_ifindex(device)?)?;
    // SAFETY: an element of a live per-CPU map, which only this CPU writes.
    record(unsafe { &mut *port }, backlog);
    Some(())
}

/// Finds the port's element, or makes one.
#[inline(always)]
fn port(ifindex: u32) -> Option<*mut PortQueue> {
    if let Some(port) = PORTS.get_ptr_mut(ifindex) {
        return Some(port);
    }
    if PORTS.insert(ifindex, EMPTY, 0).is_err() {
        count(lost::PORTS_FULL);
        return None;
    }
    PORTS.get_ptr_mut(ifindex)
}

#[inline(always)]
fn record(port: &mut PortQueue, backlog: u32) {
    let window = WINDOW.get(0).copied().unwrap_or(0);
    let slot = (window & 1) as usize;
    let backlog_bytes = u64::from(backlog);
    if port.window[slot] != window || port.max_bytes[slot] < backlog_bytes {
        port.window[slot] = window;
        port.max_bytes[slot] = backlog_bytes;
    }
    let bucket = histogram_bucket(backlog) as usize;
    if bucket < HISTOGRAM_BUCKETS {
        port.histogram[bucket] += 1;
    }
}

static EMPTY: PortQueue = PortQueue {
    max_bytes: [0; 2],
    window: [0; 2],
    histogram: [0; HISTOGRAM_BUCKETS],
};
