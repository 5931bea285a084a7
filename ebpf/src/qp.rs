//! Queue pairs: who talks to whom, by which UDP source port.
//!
//! Every queue pair, of a process or of the kernel, is modified (connected, brought into a state)
//! by one function of `ib_core` and destroyed by another, whatever the device: a probe on entry
//! keeps the arguments, one on return takes them over if the kernel agreed. Data never passes here,
//! so the probes cost nothing while a job runs.
//!
//! What the hardware does by itself (a pair that falls into error) is not a modification and not
//! seen. Where fields lie is in `QP_LAYOUT`: module and kernel tell by their BTF.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel_buf},
    macros::{kprobe, kretprobe, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::{ProbeContext, RetProbeContext},
};
use weir_ebpf_abi::{QpCall, QpKey, QpLayout, QpRecord, lost, qp_known, qp_state};

use crate::{
    lost::count,
    netns::{is_current_wanted, read_kernel},
};

/// Queue pairs at a time: 8 NICs with 2,048 each.
const QPS_MAX: u32 = 16_384;
/// Calls at a time: one per thread that is inside the kernel's RDMA code, with room, because the
/// kernel keeps up to 128 free entries of such a map on each CPU.
const CALLS_MAX: u32 = 4096;

/// Bits of `enum ib_qp_attr_mask`, which is part of the verbs ABI.
const MASK_STATE: u32 = 1;
const MASK_AV: u32 = 1 << 7;
const MASK_DEST_QPN: u32 = 1 << 20;
/// `IB_AH_GRH`: the address vector has GIDs.
const AH_GRH: u8 = 1;

#[map]
static QP_LAYOUT: Array<QpLayout> = Array::with_max_entries(1, 0);
/// By thread. A return that the kernel does not report (its kretprobe was out of instances) leaves an
/// entry behind: the oldest make room.
#[map]
static QP_CALLS: LruHashMap<u64, QpCall> = LruHashMap::with_max_entries(CALLS_MAX, 0);
#[map]
static QPS: HashMap<QpKey, QpRecord> = HashMap::with_max_entries(QPS_MAX, 0);
/// Changes of `QPS`, so that the agent reads it only when there was one.
#[map]
static QP_CHANGES: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Runs where a modification begins: `(qp, attr, attr_mask, udata)`.
#[kprobe]
pub fn qp_modify_entry(ctx: ProbeContext) -> u32 {
    if is_current_wanted()
        && let Some(call) = modification(&ctx)
    {
        begin(&call);
    }
    0
}

/// Runs where a modification returns.
#[kretprobe]
pub fn qp_modify_return(ctx: RetProbeContext) -> u32 {
    if let Some(call) = end(&ctx) {
        // `None`: an address that is not mapped, which the kernel would have stumbled over first.
        _ = modified(&call);
    }
    0
}

/// Runs where a destruction begins: `(qp, udata)`.
#[kprobe]
pub fn qp_destroy_entry(ctx: ProbeContext) -> u32 {
    if let Some(call) = destruction(&ctx) {
        begin(&call);
    }
    0
}

/// Runs where a destruction returns.
#[kretprobe]
pub fn qp_destroy_return(ctx: RetProbeContext) -> u32 {
    if let Some(call) = end(&ctx) {
        // A pair that was not in the table is no change of it.
        if QPS.remove(call.key).is_ok() {
            changed();
        }
    }
    0
}

#[inline(always)]
fn layout() -> Option<&'static QpLayout> {
    QP_LAYOUT.get(0)
}

#[inline(always)]
fn modification(ctx: &ProbeContext) -> Option<QpCall> {
    let qp: *const c_void = ctx.arg(0)?;
    let attr: *const c_void = ctx.arg(1)?;
    // A pair that several processes opened (XRC) has a handle for each.
    let real: *const c_void = read_kernel(qp, layout()?.qp_real)?;
    Some(QpCall {
        qp: real as u64,
        attr: attr as u64,
        mask: ctx.arg(2)?,
        ..QpCall::default()
    })
}

#[inline(always)]
fn destruction(ctx: &ProbeContext) -> Option<QpCall> {
    let layout = layout()?;
    let qp: *const c_void = ctx.arg(0)?;
    let real: *const c_void = read_kernel(qp, layout.qp_real)?;
    // One handle of several goes: the pair stays.
    if real != qp {
        return None;
    }
    Some(QpCall {
        key: key(qp, layout)?,
        ..QpCall::default()
    })
}

#[inline(always)]
fn begin(call: &QpCall) {
    if QP_CALLS
        .insert(bpf_get_current_pid_tgid(), call, 0)
        .is_err()
    {
        count(lost::QP_CALLS_FULL);
    }
}

/// The call that returns, if it began under our eyes and succeeded.
#[inline(always)]
fn end(ctx: &RetProbeContext) -> Option<QpCall> {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: the element lives while the program runs; only this thread writes it.
    let call = unsafe { *QP_CALLS.get_ptr(id)? };
    _ = QP_CALLS.remove(id);
    let result: i32 = ctx.ret();
    (result == 0).then_some(call)
}

#[inline(always)]
fn key(qp: *const c_void, layout: &QpLayout) -> Option<QpKey> {
    let device: *const c_void = read_kernel(qp, layout.qp_device)?;
    Some(QpKey {
        device: read_kernel(device, layout.device_index)?,
        qpn: read_kernel(qp, layout.qp_num)?,
    })
}

#[inline(always)]
fn modified(call: &QpCall) -> Option<()> {
    let layout = layout()?;
    let qp = call.qp as *const c_void;
    let attr = call.attr as *const c_void;
    let key = key(qp, layout)?;
    if QPS.get_ptr(key).is_none() && QPS.insert(key, NEW, 0).is_err() {
        count(lost::QPS_FULL);
        return None;
    }
    // SAFETY: the element lives while the program runs; modifications of one pair are one after
    // the other, because the kernel holds its lock, and a reader comes again after `changed`.
    let record = unsafe { &mut *QPS.get_ptr_mut(key)? };
    // What does not change is read again: an entry made from netlink lacks most of it.
    identity(record, qp, layout)?;
    if call.mask & MASK_DEST_QPN != 0 {
        record.peer_qpn = read_kernel(attr, layout.attr_dest_qpn)?;
        record.known |= qp_known::PEER;
    }
    if call.mask & MASK_AV != 0 {
        address(record, qp, attr, layout)?;
    }
    if call.mask & MASK_STATE != 0 {
        let state: u32 = read_kernel(attr, layout.attr_state)?;
        if record.state != state as u8 {
            record.state_before = record.state;
            record.state = state as u8;
        }
        if record.state == qp_state::RESET {
            record.known &= !(qp_known::AV | qp_known::PEER);
        }
    }
    record.modified = record.modified.wrapping_add(1);
    // SAFETY: takes nothing.
    record.changed_ns = unsafe { bpf_ktime_get_ns() };
    changed();
    Some(())
}

/// Device, type, port and owner.
#[inline(always)]
fn identity(record: &mut QpRecord, qp: *const c_void, layout: &QpLayout) -> Option<()> {
    let device: *const c_void = read_kernel(qp, layout.qp_device)?;
    read_bytes(device, layout.device_name, &mut record.device_name)?;
    record.driver = read_kernel(device, layout.device_driver)?;
    // The lower byte of a little-endian number; the port has one byte before Linux 5.13.
    record.kind = read_kernel(qp, layout.qp_type)?;
    record.port = read_kernel(qp, layout.qp_port)?;
    let task: *const c_void = read_kernel(qp, layout.qp_task)?;
    if !task.is_null() {
        record.pid = read_kernel(task, layout.task_tgid)?;
        let leader: *const c_void = read_kernel(task, layout.task_leader)?;
        record.start_ns = read_kernel(leader, layout.task_start)?;
    }
    Some(())
}

/// The address vector of a modification that has succeeded.
#[inline(always)]
fn address(
    record: &mut QpRecord,
    qp: *const c_void,
    attr: *const c_void,
    layout: &QpLayout,
) -> Option<()> {
    let flags: u8 = read_kernel(attr, layout.attr_ah_flags)?;
    if flags & AH_GRH == 0 {
        // InfiniBand within a subnet: there are no GIDs.
        return Some(());
    }
    read_bytes(attr, layout.attr_dgid, &mut record.peer_gid)?;
    let flow_label: u32 = read_kernel(attr, layout.attr_flow_label)?;
    record.flow_label = flow_label & 0xf_ffff;
    record.sgid_index = read_kernel(attr, layout.attr_sgid_index)?;
    record.traffic_class = read_kernel(attr, layout.attr_traffic_class)?;
    // The kernel resolved the index to this entry, and keeps it while the pair uses it.
    let own: *const c_void = read_kernel(qp, layout.qp_sgid_attr)?;
    if !own.is_null() {
        read_bytes(own, layout.gid, &mut record.local_gid)?;
        record.gid_type = read_kernel(own, layout.gid_type)?;
    }
    record.known |= qp_known::AV;
    Some(())
}

/// Reads the kernel's memory at `base + offset` straight into a map's element: the stack is small.
#[inline(always)]
fn read_bytes(base: *const c_void, offset: u32, into: &mut [u8]) -> Option<()> {
    if base.is_null() {
        return None;
    }
    let address = base.wrapping_byte_add(offset as usize);
    // SAFETY: the helper checks the address and fails on one that is not mapped.
    unsafe { bpf_probe_read_kernel_buf(address.cast(), into) }.ok()
}

#[inline(always)]
fn changed() {
    if let Some(changes) = QP_CHANGES.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's element of a live map.
        unsafe { *changes += 1 };
    }
}

static NEW: QpRecord = QpRecord::NEW;
