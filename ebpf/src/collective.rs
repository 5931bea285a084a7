//! Collective calls: when each began and ended, how large, on which communicator.
//!
//! One entry and one return program serve every function: the attach cookie
//! says which function it is and where its arguments are. A call is recorded
//! once, when it ends; while it runs it stands in `IN_FLIGHT`, which is how a
//! collective that hangs is seen. A call within a call (a library that builds
//! one collective from another) is part of the outer one and not recorded.
//!
//! Telling a nested call from a stale entry (a call that never returned:
//! longjmp, an exception) needs no depth counter that could be left wrong: the
//! stack grows down, so a nested call has a lower stack pointer than the call
//! in flight, and one at the same height or above means that the other has gone.
//!
//! NCCL returns when the work is *enqueued*; its times bound the host's part.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_RB_NO_WAKEUP, pt_regs},
    helpers::{
        bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
    },
    macros::{map, uprobe, uretprobe},
    maps::{HashMap, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use weir_ebpf_abi::{CallLayout, CollectiveRecord, InFlight, lost};

use crate::{lost::count, netns::is_current_wanted};

/// Calls that may be in flight at a time: one per thread, a full host has few hundred.
const IN_FLIGHT_MAX: u32 = 4096;
/// 16,000 records: what a host calls between two reads of one second at most.
const CALLS_BYTES: u32 = 1 << 20;

#[map]
static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(IN_FLIGHT_MAX, 0);
#[map]
static CALLS: RingBuf = RingBuf::with_byte_size(CALLS_BYTES, 0);

/// Runs where a probed function begins.
#[uprobe]
pub fn collective_entry(ctx: ProbeContext) -> u32 {
    if is_current_wanted() {
        begin(&ctx);
    }
    0
}

/// Runs where a probed function returns.
#[uretprobe]
pub fn collective_return(ctx: RetProbeContext) -> u32 {
    // No filter: only calls that passed it at entry are in flight.
    end(&ctx);
    0
}

#[inline(always)]
fn begin(ctx: &ProbeContext) {
    // SAFETY: the context is this program's own.
    let layout = CallLayout::from_cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let registers = Registers::read(ctx.regs);
    let id = bpf_get_current_pid_tgid();
    if let Some(outer) = IN_FLIGHT.get_ptr(id) {
        // SAFETY: the kernel keeps the element's memory while the program runs.
        if registers.stack < unsafe { (*outer).stack } {
            return;
        }
    }
    let mut call = InFlight {
        stack: registers.stack,
        op: u32::from(layout.op),
        ..InFlight::default()
    };
    if layout.init {
        call.comm = registers.first[0];
        call.nranks = registers.first[1] as u32;
        call.rank = registers.init_rank() as u32;
    } else {
        call.count = registers.argument(layout.count);
        if layout.count_is_int {
            call.count &= u64::from(u32::MAX);
        }
        call.datatype = registers.argument(layout.datatype);
        call.comm = registers.argument(layout.comm);
    }
    // SAFETY: takes nothing. Read last, so that our own work is not measured.
    call.start_ns = unsafe { bpf_ktime_get_ns() };
    if IN_FLIGHT.insert(id, call, 0).is_err() {
        count(lost::IN_FLIGHT_FULL);
    }
}

#[inline(always)]
fn end(ctx: &RetProbeContext) {
    // SAFETY: takes nothing. Read first, for the same reason.
    let end_ns = unsafe { bpf_ktime_get_ns() };
    let id = bpf_get_current_pid_tgid();
    let Some(call) = IN_FLIGHT.get_ptr(id) else {
        return;
    };
    // SAFETY: the kernel keeps the element's memory while the program runs,
    // and only this thread writes it.
    let call = unsafe { *call };
    // SAFETY: the context is this program's own.
    let layout = CallLayout::from_cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    if Registers::read_stack(ctx.regs) < call.stack || call.op != u32::from(layout.op) {
        return;
    }
    let mut record = CollectiveRecord {
        start_ns: call.start_ns,
        end_ns,
        count: call.count,
        datatype: call.datatype,
        comm: call.comm,
        pid: (id >> 32) as u32,
        tid: id as u32,
        nranks: call.nranks,
        rank: call.rank,
        op: call.op,
        result: ctx.ret(),
    };
    if layout.init {
        // SAFETY: the helper checks the address, which is the caller's.
        record.comm = unsafe { bpf_probe_read_user(call.comm as *const u64) }.unwrap_or(0);
    }
    if CALLS
        .output::<CollectiveRecord>(record, u64::from(BPF_RB_NO_WAKEUP))
        .is_err()
    {
        count(lost::RING_FULL);
    }
    // An error means that it has gone already: nothing to do.
    _ = IN_FLIGHT.remove(id);
}

/// The registers that carry arguments, and what is found through the stack.
struct Registers {
    first: [u64; 6],
    stack: u64,
    /// Argument 7: a register on aarch64, the first stack slot on x86-64.
    seventh: Seventh,
}

#[derive(Clone, Copy)]
enum Seventh {
    #[cfg_attr(bpf_target_arch = "x86_64", allow(dead_code, reason = "aarch64"))]
    Value(u64),
    #[cfg_attr(bpf_target_arch = "aarch64", allow(dead_code, reason = "x86-64"))]
    At(u64),
}

impl Registers {
    /// Reads them all at once: volatile and at constant offsets, because the
    /// verifier accepts no computed offset into the context.
    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    fn read(regs: *const pt_regs) -> Self {
        // SAFETY: the kernel passes a complete pt_regs.
        let read = |field: *const u64| unsafe { field.read_volatile() };
        // SAFETY: only the fields' addresses are taken.
        unsafe {
            Self {
                first: [
                    read(&raw const (*regs).rdi),
                    read(&raw const (*regs).rsi),
                    read(&raw const (*regs).rdx),
                    read(&raw const (*regs).rcx),
                    read(&raw const (*regs).r8),
                    read(&raw const (*regs).r9),
                ],
                stack: Self::read_stack(regs),
                // The return address lies at the stack pointer itself.
                seventh: Seventh::At(Self::read_stack(regs).wrapping_add(8)),
            }
        }
    }

    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    fn read_stack(regs: *const pt_regs) -> u64 {
        // SAFETY: the kernel passes a complete pt_regs.
        unsafe { (&raw const (*regs).rsp).read_volatile() }
    }

    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    fn read(regs: *const pt_regs) -> Self {
        // SAFETY: the kernel passes a complete pt_regs.
        let read = |n: usize| unsafe { (&raw const (*regs).regs[n]).read_volatile() };
        Self {
            first: [read(0), read(1), read(2), read(3), read(4), read(5)],
            stack: Self::read_stack(regs),
            seventh: Seventh::Value(read(6)),
        }
    }

    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    fn read_stack(regs: *const pt_regs) -> u64 {
        // SAFETY: the kernel passes a complete pt_regs.
        unsafe { (&raw const (*regs).sp).read_volatile() }
    }

    /// Argument `number`, counted from 1; 0 for number 0 or one out of reach.
    #[inline(always)]
    fn argument(&self, number: u8) -> u64 {
        match number {
            1 => self.first[0],
            2 => self.first[1],
            3 => self.first[2],
            4 => self.first[3],
            5 => self.first[4],
            6 => self.first[5],
            7 => match self.seventh {
                Seventh::Value(value) => value,
                // SAFETY: the helper checks the address, which is the caller's.
                Seventh::At(address) => unsafe {
                    bpf_probe_read_user(address as *const c_void as *const u64).unwrap_or(0)
                },
            },
            _ => 0,
        }
    }

    /// The rank of `ncclCommInitRank`, which follows a 128-byte structure: that
    /// travels on the stack on x86-64 and by reference on aarch64.
    #[inline(always)]
    fn init_rank(&self) -> u64 {
        if cfg!(bpf_target_arch = "x86_64") {
            self.first[2]
        } else {
            self.first[3]
        }
    }
}
