//! RoCE version 2 packets that cross the kernel: key and value of the table `ROCE`.

/// UDP destination port of RoCE version 2.
pub const ROCE_PORT: u16 = 4791;
/// Opcode of a congestion notification packet (InfiniBand specification, annex 17).
pub const ROCE_CNP: u8 = 0x81;

/// [`RoceKey::direction`].
pub mod direction {
    pub const INGRESS: u32 = 0;
    pub const EGRESS: u32 = 1;
}

/// Packets of one sender to one queue pair, as one hook of one port sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoceKey {
    /// As a GID: network byte order, IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    /// As `src`.
    pub dst: [u8; 16],
    /// Destination queue pair, 24 bits.
    pub dest_qpn: u32,
    pub ifindex: u32,
    /// One of [`direction`].
    pub direction: u32,
    /// UDP source port, machine byte order: two senders' pairs behind one address are told apart.
    pub src_port: u32,
}

/// Counted since the entry was made; entries give way to newer ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoceCounts {
    /// Frames with their Ethernet header, without the check sum.
    pub bytes: u64,
    pub packets: u64,
    /// Marked "congestion experienced" in the IP header.
    pub ce: u64,
    /// Congestion notification packets.
    pub cnps: u64,
    /// Kernel monotonic clock of the newest packet, ns.
    pub last_ns: u64,
}

/// Indices of the per-CPU array `ROCE_SKIPPED`: RoCE packets that were not counted, by cause.
pub mod roce_skipped {
    /// Cut off before the end of the RoCE header.
    pub const TRUNCATED: u32 = 0;
    /// A fragment: only the first has the header, and none the full length.
    pub const FRAGMENT: u32 = 1;
    /// IPv6 with extension headers, or more VLAN tags than are read.
    pub const HEADERS: u32 = 2;
    /// Length of the array.
    pub const COUNT: u32 = 3;
}

const _: () = assert!(size_of::<RoceKey>() == 48);
const _: () = assert!(size_of::<RoceCounts>() == 40);
