//! Network ports: queue depth (`PORTS`) and dropped packets (`DROPS`).

/// Buckets of a depth histogram: powers of two up to 2 GiB.
pub const HISTOGRAM_BUCKETS: usize = 32;

/// Depth of a port's queue right after each packet entered it; one per CPU,
/// keyed by interface index.
///
/// The maximum is that of one window. The agent cannot clear another CPU's
/// value without losing an update, so windows are numbered (array `WINDOW`)
/// and the programs write slot `window % 2`, clearing it when its number is
/// old: the agent reads the slot that nobody writes any more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortQueue {
    /// Largest backlog in the slot's window, bytes.
    pub max_bytes: [u64; 2],
    /// The window that each slot belongs to.
    pub window: [u32; 2],
    /// Packets by [`histogram_bucket`] of the backlog, since the program was loaded.
    pub histogram: [u64; HISTOGRAM_BUCKETS],
}

/// What the table `DROPS` counts by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropKey {
    /// 0 where the packet had no device (any more).
    pub ifindex: u32,
    /// The kernel's `enum skb_drop_reason`; its names are in the kernel's BTF.
    pub reason: u32,
}

/// Bucket of a backlog: 0 holds 0 and 1 byte, bucket n holds 2^n to 2^(n+1) - 1 bytes.
#[must_use]
#[inline(always)]
pub const fn histogram_bucket(backlog_bytes: u32) -> u32 {
    // Written as five halvings: the BPF target has no count-leading-zeros
    // instruction before instruction set version 4.
    let mut rest = backlog_bytes;
    let mut bucket = 0;
    if rest >= 1 << 16 {
        rest >>= 16;
        bucket += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        bucket += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        bucket += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        bucket += 2;
    }
    if rest >= 1 << 1 {
        bucket += 1;
    }
    bucket
}

const _: () = assert!(size_of::<PortQueue>() == 24 + 8 * HISTOGRAM_BUCKETS);
const _: () = assert!(size_of::<DropKey>() == 8);

#[cfg(test)]
mod tests {
    use super::histogram_bucket;

    #[test]
    fn a_bucket_is_the_floor_of_the_binary_logarithm() {
        for bytes in [1, 2, 3, 4, 1500, 65_535, 65_536, u32::MAX] {
            assert_eq!(histogram_bucket(bytes), bytes.ilog2(), "{bytes}");
        }
        assert_eq!(histogram_bucket(0), 0);
    }
}
