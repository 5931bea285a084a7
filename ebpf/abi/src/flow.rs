//! TCP flows: key and value of the table `FLOWS`.

/// Address families as the kernel numbers them (`AF_INET`, `AF_INET6`).
pub mod family {
    pub const INET: u32 = 2;
    pub const INET6: u32 = 10;
}

/// TCP states that the programs act on, as in the kernel's `tcp_states.h`.
pub mod tcp_state {
    pub const ESTABLISHED: u32 = 1;
    pub const CLOSE: u32 = 7;
}

/// A TCP connection, seen from one of its ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// Cookie of the network namespace: equal 5-tuples may exist in several.
    pub netns_cookie: u64,
    /// Network byte order; IPv4 in the first four bytes, the rest zero.
    pub local_addr: [u8; 16],
    /// As `local_addr`.
    pub remote_addr: [u8; 16],
    /// One of [`family`].
    pub family: u32,
    /// Machine byte order.
    pub local_port: u16,
    /// Machine byte order.
    pub remote_port: u16,
}

/// The newest counters of a flow; all but `srtt_us_shl3` only grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowRecord {
    /// Bytes of ours that the peer has acknowledged.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Kernel monotonic clock at this update, ns.
    pub last_ns: u64,
    /// Segments sent again since the connection began.
    pub total_retrans: u32,
    /// Smoothed round-trip time in eighths of a microsecond, as the kernel keeps it.
    pub srtt_us_shl3: u32,
    /// Segments delivered to the peer.
    pub delivered: u32,
    /// Of those, segments that the peer reported as marked (ECN CE).
    pub delivered_ce: u32,
    /// The kernel's TCP state number.
    pub state: u32,
    pub _pad: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 48);
const _: () = assert!(size_of::<FlowRecord>() == 48);
