//! RoCE version 2 packets where they cross the kernel: Linux switches and soft-RoCE hosts.
//!
//! A NIC's own RDMA traffic passes the kernel by; there this program sees nothing and is not
//! attached unless asked for. Per sender, destination and destination queue pair it counts bytes,
//! packets, packets marked "congestion experienced" and congestion notifications. The hook of a
//! port's egress lies before its queue: marks that the queue sets are seen where the packet comes in
//! next.
//!
//! It reads through the kernel's helper, never past what that gives, and always lets the packet go
//! on to whoever is attached next.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{classifier, map},
    maps::{LruPerCpuHashMap, PerCpuArray},
    programs::TcContext,
};
use weir_ebpf_abi::{ROCE_CNP, ROCE_PORT, RoceCounts, RoceKey, direction, lost, roce_skipped};

use crate::lost::count;

/// Senders and queue pairs at a time, times the hooks that they cross; the least recently seen
/// make room. 40 bytes each for every CPU (this target's compiler has no atomic additions).
const ROCE_MAX: u32 = 8192;

/// `TC_ACT_UNSPEC` and `TCX_NEXT`: the next program decides.
const NEXT: i32 = -1;

const ETHER_LEN: usize = 14;
const VLAN_LEN: usize = 4;
/// Tags inside the packet; the outermost one is often beside it.
const VLANS_MAX: usize = 2;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const PROTOCOL_UDP: u8 = 17;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// Base transport header.
const BTH_LEN: usize = 12;
/// More fragments, and the fragment's offset.
const FRAGMENT_BITS: u16 = 0x3fff;
const ECN_CE: u8 = 3;

#[map]
static ROCE: LruPerCpuHashMap<RoceKey, RoceCounts> =
    LruPerCpuHashMap::with_max_entries(ROCE_MAX, 0);
#[map]
static ROCE_SKIPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(roce_skipped::COUNT, 0);

/// Runs on every packet that comes in by a port.
#[classifier]
pub fn weir_roce_in(ctx: TcContext) -> i32 {
    see(&ctx, direction::INGRESS);
    NEXT
}

/// Runs on every packet that is to leave by a port, before its queue.
#[classifier]
pub fn weir_roce_out(ctx: TcContext) -> i32 {
    see(&ctx, direction::EGRESS);
    NEXT
}

#[inline(always)]
fn see(ctx: &TcContext, direction: u32) {
    match parse(ctx) {
        Ok(packet) => add(ctx, direction, &packet),
        Err(Skip::Other) => {}
        Err(Skip::Truncated) => skipped(roce_skipped::TRUNCATED),
        Err(Skip::Fragment) => skipped(roce_skipped::FRAGMENT),
        Err(Skip::Headers) => skipped(roce_skipped::HEADERS),
    }
}

struct Packet {
    src: [u8; 16],
    dst: [u8; 16],
    dest_qpn: u32,
    src_port: u16,
    ce: bool,
    cnp: bool,
}

/// Why a packet is not counted.
enum Skip {
    /// Not RoCE, as far as can be told.
    Other,
    Truncated,
    Fragment,
    Headers,
}

/// What the IP header says.
struct Ip {
    src: [u8; 16],
    dst: [u8; 16],
    traffic_class: u8,
    /// Where the UDP header begins.
    udp: usize,
}

#[inline(always)]
fn parse(ctx: &TcContext) -> Result<Packet, Skip> {
    let mut at = ETHER_LEN;
    let mut ethertype = load_u16(ctx, 12).ok_or(Skip::Other)?;
    for _ in 0..VLANS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = load_u16(ctx, at + 2).ok_or(Skip::Other)?;
        at += VLAN_LEN;
    }
    let ip = match ethertype {
        ETHERTYPE_IPV4 => ipv4(ctx, at)?,
        ETHERTYPE_IPV6 => ipv6(ctx, at)?,
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => return Err(Skip::Headers),
        _ => return Err(Skip::Other),
    };
    let udp: [u8; UDP_LEN] = ctx.load(ip.udp).map_err(|_| Skip::Other)?;
    if u16::from_be_bytes([udp[2], udp[3]]) != ROCE_PORT {
        return Err(Skip::Other);
    }
    // A datagram shorter than the header is none of RoCE, however long the frame is.
    if (u16::from_be_bytes([udp[4], udp[5]]) as usize) < UDP_LEN + BTH_LEN {
        return Err(Skip::Truncated);
    }
    let bth: [u8; BTH_LEN] = ctx.load(ip.udp + UDP_LEN).map_err(|_| Skip::Truncated)?;
    Ok(Packet {
        src: ip.src,
        dst: ip.dst,
        dest_qpn: u32::from_be_bytes([0, bth[5], bth[6], bth[7]]),
        src_port: u16::from_be_bytes([udp[0], udp[1]]),
        ce: ip.traffic_class & 3 == ECN_CE,
        cnp: bth[0] == ROCE_CNP,
    })
}

#[inline(always)]
fn ipv4(ctx: &TcContext, at: usize) -> Result<Ip, Skip> {
    let header: [u8; 20] = ctx.load(at).map_err(|_| Skip::Other)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 || header[9] != PROTOCOL_UDP {
        return Err(Skip::Other);
    }
    let udp = at + length;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_BITS;
    if fragment != 0 {
        // Only a first fragment tells its port.
        let is_roce = fragment & 0x1fff == 0 && load_u16(ctx, udp + 2) == Some(ROCE_PORT);
        return Err(if is_roce { Skip::Fragment } else { Skip::Other });
    }
    Ok(Ip {
        src: mapped([header[12], header[13], header[14], header[15]]),
        dst: mapped([header[16], header[17], header[18], header[19]]),
        traffic_class: header[1],
        udp,
    })
}

#[inline(always)]
fn ipv6(ctx: &TcContext, at: usize) -> Result<Ip, Skip> {
    let first: [u8; 8] = ctx.load(at).map_err(|_| Skip::Other)?;
    if first[0] >> 4 != 6 {
        return Err(Skip::Other);
    }
    match first[6] {
        PROTOCOL_UDP => {}
        // Hop-by-hop, routing, fragment, destination options: RoCE behind one of them is skipped.
        0 | 43 | 44 | 60 => {
            let next: u8 = ctx.load(at + IPV6_LEN).map_err(|_| Skip::Other)?;
            return Err(if next == PROTOCOL_UDP {
                Skip::Headers
            } else {
                Skip::Other
            });
        }
        _ => return Err(Skip::Other),
    }
    Ok(Ip {
        src: ctx.load(at + 8).map_err(|_| Skip::Other)?,
        dst: ctx.load(at + 24).map_err(|_| Skip::Other)?,
        traffic_class: first[0] << 4 | first[1] >> 4,
        udp: at + IPV6_LEN,
    })
}

#[inline(always)]
fn load_u16(ctx: &TcContext, at: usize) -> Option<u16> {
    ctx.load::<[u8; 2]>(at).ok().map(u16::from_be_bytes)
}

#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[inline(always)]
fn add(ctx: &TcContext, direction: u32, packet: &Packet) {
    // SAFETY: the context is this program's own.
    let ifindex = unsafe { (&raw const (*ctx.skb.skb).ifindex).read_volatile() };
    let key = RoceKey {
        src: packet.src,
        dst: packet.dst,
        dest_qpn: packet.dest_qpn,
        ifindex,
        direction,
        src_port: u32::from(packet.src_port),
    };
    let counts = match ROCE.get_ptr_mut(&key) {
        Some(counts) => counts,
        None => {
            // Another CPU may have made it meanwhile; the flag keeps its counts.
            const NOEXIST: u64 = 1;
            _ = ROCE.insert(&key, RoceCounts::default(), NOEXIST);
            match ROCE.get_ptr_mut(&key) {
                Some(counts) => counts,
                None => return count(lost::ROCE_FULL),
            }
        }
    };
    // SAFETY: an element of a live per-CPU map, which only this CPU writes.
    let counts = unsafe { &mut *counts };
    counts.bytes += u64::from(ctx.len());
    counts.packets += 1;
    counts.ce += u64::from(packet.ce);
    counts.cnps += u64::from(packet.cnp);
    // SAFETY: takes nothing.
    counts.last_ns = unsafe { bpf_ktime_get_ns() };
}

#[inline(always)]
fn skipped(cause: u32) {
    if let Some(counter) = ROCE_SKIPPED.get_ptr_mut(cause) {
        // SAFETY: the pointer is this CPU's element of a live map.
        unsafe { *counter += 1 };
    }
}
