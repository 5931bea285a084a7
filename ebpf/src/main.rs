//! Weir's eBPF programs: the kernel half of the agent's `bpf` collector.
//!
//! One file per hook family; each family can be absent without the others:
//!
//! | file | hook | map |
//! |---|---|---|
//! | collective | uprobe and uretprobe on NCCL, RCCL and MPI | `CALLS`, `IN_FLIGHT` |
//! | tcp | sock_ops of a cgroup | `FLOWS` |
//! | qdisc | raw tracepoint `qdisc_enqueue` | `PORTS` |
//! | drop | raw tracepoint `kfree_skb` | `DROPS` |
//! | qp | kprobes and kretprobes on `ib_core` | `QPS` |
//! | roce | tc (tcx, clsact) on ports | `ROCE` |
//!
//! Nothing here knows a kernel's structure layout: the agent finds the offsets
//! in the kernel's BTF and sets them as globals before it loads the object
//! (this compiler emits no CO-RE relocations). What cannot be recorded is
//! counted in `LOST`, whose indices are in the abi crate.
#![no_std]
#![no_main]

mod collective;
mod drop;
mod lost;
mod netns;
mod qdisc;
mod qp;
mod roce;
mod tcp;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers that these programs call are reserved for GPL-compatible ones.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
