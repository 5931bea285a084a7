//! TCP flows: bytes, retransmissions, round-trip time and ECN marks per connection.
//!
//! A `sock_ops` program of a cgroup is called when a connection is established
//! and, once it has asked for that, on each round-trip sample, retransmission
//! and state change: no packet is ever looked at. The counters are the
//! kernel's own. A side that only receives takes no round-trip samples, so its
//! `bytes_received` is as old as its last state change; the sender's end is
//! the one to read.
//!
//! Loopback connections are never asked for. The program always returns 1 and
//! keeps flags that others have set: several may be attached at once.

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock_ops,
        bpf_tcp_sock as TcpSock,
    },
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_tcp_sock},
    macros::{map, sock_ops},
    maps::LruHashMap,
    programs::SockOpsContext,
};
use weir_ebpf_abi::{FlowKey, FlowRecord, family, lost, tcp_state};

use crate::lost::count;

/// Connections at a time; the least recently used make room for new ones.
const FLOWS_MAX: u32 = 16_384;

/// Cookie of the only network namespace to look at; 0 looks at all.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

#[map]
static FLOWS: LruHashMap<FlowKey, FlowRecord> = LruHashMap::with_max_entries(FLOWS_MAX, 0);

/// Runs on the events of each TCP connection of the cgroup.
#[sock_ops]
pub fn tcp_flow(ctx: SockOpsContext) -> u32 {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let only = NETNS_COOKIE.load();
    if only == 0 || only == cookie {
        follow(&ctx, cookie);
    }
    1
}

#[inline(always)]
fn follow(ctx: &SockOpsContext, netns_cookie: u64) {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            let Some(key) = flow_key(ctx, netns_cookie) else {
                return;
            };
            if is_loopback(&key) {
                return;
            }
            let wanted = BPF_SOCK_OPS_RTT_CB_FLAG
                | BPF_SOCK_OPS_RETRANS_CB_FLAG
                | BPF_SOCK_OPS_STATE_CB_FLAG;
            // A kernel without one of these events sets the rest: what is
            // missing then is only that event's updates.
            _ = ctx.set_cb_flags((ctx.cb_flags() | wanted) as i32);
            store(ctx, &key, tcp_state::ESTABLISHED);
        }
        BPF_SOCK_OPS_RTT_CB | BPF_SOCK_OPS_RETRANS_CB => {
            if let Some(key) = flow_key(ctx, netns_cookie) {
                store(ctx, &key, tcp_state::ESTABLISHED);
            }
        }
        BPF_SOCK_OPS_STATE_CB => {
            if let Some(key) = flow_key(ctx, netns_cookie) {
                // The second argument is the state that is entered now.
                // SAFETY: the context is valid and the union holds integers.
                let state =
                    unsafe { (&raw const (*ctx.ops).__bindgen_anon_1.args[1]).read_volatile() };
                store(ctx, &key, state);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn store(ctx: &SockOpsContext, key: &FlowKey, state: u32) {
    // SAFETY: the context is valid; the verifier knows this field as a socket.
    let sk = unsafe { (&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile() };
    if sk.is_null() {
        return;
    }
    // SAFETY: `sk` is a socket, as checked.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return;
    }
    let record = read_counters(tcp, state);
    if let Some(known) = FLOWS.get_ptr_mut(key) {
        // SAFETY: the element lives while the program runs; the socket's lock
        // is held, so that nobody else writes this flow.
        unsafe { *known = record };
    } else if FLOWS.insert(key, record, 0).is_err() {
        count(lost::FLOWS_FULL);
    }
}

/// Copies the counters one by one: merged loads are not valid accesses of this type.
#[inline(always)]
fn read_counters(tcp: *const TcpSock, state: u32) -> FlowRecord {
    // SAFETY: not null, and the kernel's helper returned it.
    unsafe {
        FlowRecord {
            bytes_acked: (&raw const (*tcp).bytes_acked).read_volatile(),
            bytes_received: (&raw const (*tcp).bytes_received).read_volatile(),
            last_ns: bpf_ktime_get_ns(),
            total_retrans: (&raw const (*tcp).total_retrans).read_volatile(),
            srtt_us_shl3: (&raw const (*tcp).srtt_us).read_volatile(),
            delivered: (&raw const (*tcp).delivered).read_volatile(),
            delivered_ce: (&raw const (*tcp).delivered_ce).read_volatile(),
            state,
            _pad: 0,
        }
    }
}

#[inline(always)]
fn flow_key(ctx: &SockOpsContext, netns_cookie: u64) -> Option<FlowKey> {
    let ops: *const bpf_sock_ops = ctx.ops;
    // SAFETY: the context is valid. Volatile, so that each access keeps its
    // field's width, as the verifier demands.
    let word = |field: *const u32| unsafe { field.read_volatile() };
    // SAFETY: only addresses of fields are taken.
    unsafe {
        let mut key = FlowKey {
            netns_cookie,
            family: word(&raw const (*ops).family),
            local_port: word(&raw const (*ops).local_port) as u16,
            // In network byte order, in the upper half on little-endian machines.
            remote_port: u32::from_be(word(&raw const (*ops).remote_port)) as u16,
            ..FlowKey::default()
        };
        match key.family {
            family::INET => {
                set_word(&mut key.local_addr, 0, word(&raw const (*ops).local_ip4));
                set_word(&mut key.remote_addr, 0, word(&raw const (*ops).remote_ip4));
            }
            family::INET6 => {
                set_word(&mut key.local_addr, 0, word(&raw const (*ops).local_ip6[0]));
                set_word(&mut key.local_addr, 1, word(&raw const (*ops).local_ip6[1]));
                set_word(&mut key.local_addr, 2, word(&raw const (*ops).local_ip6[2]));
                set_word(&mut key.local_addr, 3, word(&raw const (*ops).local_ip6[3]));
                set_word(
                    &mut key.remote_addr,
                    0,
                    word(&raw const (*ops).remote_ip6[0]),
                );
                set_word(
                    &mut key.remote_addr,
                    1,
                    word(&raw const (*ops).remote_ip6[1]),
                );
                set_word(
                    &mut key.remote_addr,
                    2,
                    word(&raw const (*ops).remote_ip6[2]),
                );
                set_word(
                    &mut key.remote_addr,
                    3,
                    word(&raw const (*ops).remote_ip6[3]),
                );
            }
            _ => return None,
        }
        Some(key)
    }
}

/// Stores a word of an address; the words are in network byte order already.
#[inline(always)]
fn set_word(addr: &mut [u8; 16], index: usize, word: u32) {
    let bytes = word.to_ne_bytes();
    addr[index * 4] = bytes[0];
    addr[index * 4 + 1] = bytes[1];
    addr[index * 4 + 2] = bytes[2];
    addr[index * 4 + 3] = bytes[3];
}

#[inline(always)]
fn is_loopback(key: &FlowKey) -> bool {
    if key.family == family::INET && (key.local_addr[0] == 127 || key.remote_addr[0] == 127) {
        return true;
    }
    // A connection of a host to its own address, ::1 among them.
    words(&key.local_addr) == words(&key.remote_addr)
}

#[inline(always)]
fn words(addr: &[u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    )
}
