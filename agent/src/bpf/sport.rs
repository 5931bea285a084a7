//! The UDP source port of a queue pair on RoCE version 2, as its driver computes it.
//!
//! Switches spread RoCE traffic by this port, so it decides the path. No interface tells it; the
//! kernel computes it when the pair is connected. Pure.
//!
//! | driver | port of a connected pair |
//! |---|---|
//! | irdma, hns, mana, ionic, rxe | `rdma_get_udp_sport` of include/rdma/ib_verbs.h |
//! | mlx5 | the same, told to the firmware, which follows it only with the capability `sw_r_roce_src_udp_port`: a prediction |
//! | irdma before Linux 5.17 | always 0xc000 |
//! | rxe before Linux 5.17 | a hash of its own number (`rxe_qp_init_req`) |
//! | bnxt_re, mlx4, qedr and others | chosen by the firmware: unknown |
//!
//! A program can set the port of an mlx5 pair by hand (`mlx5dv_modify_qp_udp_sport`), which goes to
//! the firmware and is not seen here.

/// `enum rdma_driver_id` of include/uapi/rdma/ib_user_ioctl_verbs.h.
pub mod driver {
    pub const MLX5: u32 = 1;
    pub const IRDMA: u32 = 9;
    pub const HNS: u32 = 12;
    pub const RXE: u32 = 14;
    pub const MANA: u32 = 20;
    pub const IONIC: u32 = 21;
}

/// `IB_ROCE_UDP_ENCAP_VALID_PORT_MIN`: the first of 2^14 ports.
const PORT_MIN: u32 = 0xc000;
const PORT_BITS: u32 = 14;
/// Since when all drivers of the kernel share one computation.
const STANDARD_SINCE: (u32, u32) = (5, 17);

/// Returns the UDP source port of a connected pair; `None` where its driver leaves that to firmware.
///
/// `flow_label` has 20 bits, 0 stands for "not given". `kernel` is the version, (6, 1) for 6.1.
#[must_use]
pub fn source_port(
    driver: u32,
    kernel: (u32, u32),
    flow_label: u32,
    local_qpn: u32,
    peer_qpn: u32,
) -> Option<u16> {
    let standard = standard(flow_label, local_qpn, peer_qpn);
    match driver {
        driver::RXE if kernel < STANDARD_SINCE => {
            // hash_32_generic(qpn, 14): the golden ratio's upper bits.
            let hash = local_qpn.wrapping_mul(0x61c8_8647) >> (32 - PORT_BITS);
            u16::try_from(PORT_MIN + hash).ok()
        }
        driver::IRDMA if kernel < STANDARD_SINCE => u16::try_from(PORT_MIN).ok(),
        driver::MLX5 | driver::IRDMA | driver::HNS | driver::RXE | driver::MANA | driver::IONIC => {
            Some(standard)
        }
        _ => None,
    }
}

/// Whether [`source_port`] is a prediction: the firmware chooses, and may choose otherwise.
#[must_use]
pub fn is_predicted(driver: u32) -> bool {
    driver == driver::MLX5
}

/// The RoCE specification's way: the flow label, or one made of both numbers, folded to 14 bits.
fn standard(flow_label: u32, local_qpn: u32, peer_qpn: u32) -> u16 {
    let label = match flow_label & 0xf_ffff {
        0 => label_of_pair(local_qpn, peer_qpn),
        given => given,
    };
    let low = label & 0x3fff;
    let high = (label & 0xf_c000) >> PORT_BITS;
    u16::try_from((low ^ high) | PORT_MIN).unwrap_or(u16::MAX)
}

/// `rdma_calc_flow_label`: the same from both ends.
fn label_of_pair(local_qpn: u32, peer_qpn: u32) -> u32 {
    let mut product = u64::from(local_qpn) * u64::from(peer_qpn);
    product ^= product >> 20;
    product ^= product >> 40;
    u32::try_from(product & 0xf_ffff).unwrap_or(0)
}

/// Reads "6.1.0-18-amd64" (`/proc/sys/kernel/osrelease`) as (6, 1).
#[must_use]
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.trim().split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    let minor = rest.get(..digits.unwrap_or(rest.len()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: (u32, u32) = (6, 1);

    #[test]
    fn the_label_decides_where_there_is_one() {
        // 0x12345: low 14 bits 0x2345, upper six 0x04.
        let port = source_port(driver::MLX5, NOW, 0x1_2345, 100, 200);
        assert_eq!(port, Some(0xc000 | (0x2345 ^ 0x04)));
        assert_eq!(source_port(driver::RXE, NOW, 0x1_2345, 7, 8), port);
    }

    #[test]
    fn without_a_label_the_two_numbers_decide() {
        // 17 * 18 = 306: nothing to fold.
        assert_eq!(source_port(driver::RXE, NOW, 0, 17, 18), Some(0xc000 | 306));
        // The product 0xc379a59ba4a, folded at 20 bits and at 40, ends in 0xac3e3.
        let port = source_port(driver::HNS, NOW, 0, 0xab_cdef, 0x12_3456);
        assert_eq!(port, Some(0xc3c8));
    }

    #[test]
    fn older_kernels_have_their_own_ways() {
        assert_eq!(source_port(driver::IRDMA, (5, 15), 5, 1, 2), Some(0xc000));
        // 17 * 0x61c88647 is 0x7e50eab7 in 32 bits, of which the upper 14 are 0x1f94.
        let port = source_port(driver::RXE, (5, 15), 5, 17, 2);
        assert_eq!(port, Some(0xc000 + 0x1f94));
    }

    #[test]
    fn a_driver_that_leaves_it_to_firmware_has_no_port() {
        const BNXT_RE: u32 = 6;
        assert_eq!(source_port(BNXT_RE, NOW, 0x1_2345, 1, 2), None);
    }

    #[test]
    fn a_release_has_a_version() {
        assert_eq!(kernel_version("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(kernel_version("5.14-rc1"), Some((5, 14)));
        assert_eq!(kernel_version("linux"), None);
    }

    proptest! {
        #[test]
        fn both_ends_agree_and_stay_in_the_range(label in 0u32..1 << 20, a in 1u32..1 << 24, b in 1u32..1 << 24) {
            let port = source_port(driver::MLX5, NOW, label, a, b);
            prop_assert_eq!(port, source_port(driver::MLX5, NOW, label, b, a));
            prop_assert!(port.is_some_and(|p| p >= 0xc000));
        }
    }
}
