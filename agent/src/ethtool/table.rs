//! Which statistic of which driver means what: driver and name to canonical signal. Pure.
//!
//! Sources: Documentation/networking/device_drivers/ethernet/mellanox/mlx5/counters.rst and the
//! string tables of drivers/net/ethernet: mellanox/mlx5/core/en_stats.c, broadcom/bnxt/bnxt_ethtool.c,
//! intel/ice/ice_ethtool.c, intel/i40e/i40e_ethtool.c, pensando/ionic/ionic_stats.c,
//! amazon/ena/ena_ethtool.c.

use crate::source::RawKind;
use weir_wire::signal::Signal;

/// What a statistic means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub signal: Signal,
    /// Priority or lane.
    pub index: Option<u8>,
}

/// One name, or eight: `#` stands for one digit, which is the index.
struct Row(&'static str, Signal);

const MLX5: &[Row] = &[
    Row("rx_prio#_pause", Signal::PauseRx),
    Row("tx_prio#_pause", Signal::PauseTx),
    Row("rx_prio#_pause_duration", Signal::PauseRxUs),
    Row("tx_prio#_pause_duration", Signal::PauseTxUs),
    Row("rx_global_pause", Signal::PauseRx),
    Row("tx_global_pause", Signal::PauseTx),
    Row("rx_global_pause_duration", Signal::PauseRxUs),
    Row("tx_global_pause_duration", Signal::PauseTxUs),
    Row("tx_pause_storm_error_events", Signal::PauseStorms),
    Row("rx_discards_phy", Signal::RxDiscards),
    Row("tx_discards_phy", Signal::TxDiscards),
    Row("rx_symbol_err_phy", Signal::SymbolErrors),
    Row("link_down_events_phy", Signal::LinkDowns),
    Row("rx_err_lane_#_phy", Signal::LaneErrors),
    Row("outbound_pci_stalled_rd_events", Signal::PcieStalls),
    Row("outbound_pci_stalled_wr_events", Signal::PcieStalls),
    Row("rx_pci_signal_integrity", Signal::PcieErrors),
    Row("tx_pci_signal_integrity", Signal::PcieErrors),
];

const BNXT: &[Row] = &[
    Row("rx_pfc_ena_frames_pri#", Signal::PauseRx),
    Row("tx_pfc_ena_frames_pri#", Signal::PauseTx),
    Row("pfc_pri#_rx_duration_us", Signal::PauseRxUs),
    Row("pfc_pri#_tx_duration_us", Signal::PauseTxUs),
    Row("rx_pause_frames", Signal::PauseRx),
    Row("tx_pause_frames", Signal::PauseTx),
    Row("continuous_pause_events", Signal::PauseStorms),
    Row("continuous_roce_pause_events", Signal::PauseStorms),
    Row("rx_stat_discard", Signal::RxDiscards),
    Row("tx_stat_discard", Signal::TxDiscards),
    Row("rx_pcs_symbol_err", Signal::SymbolErrors),
    Row("link_down_events", Signal::LinkDowns),
    Row("rx_fec_corrected_blocks", Signal::FecCorrected),
    Row("rx_fec_uncorrectable_blocks", Signal::FecUncorrected),
];

/// i40e says `port.NAME` of what ice says as `NAME.nic`.
const INTEL: &[Row] = &[
    Row("rx_priority_#_xoff", Signal::PauseRx),
    Row("tx_priority_#_xoff", Signal::PauseTx),
    Row("link_xoff_rx", Signal::PauseRx),
    Row("link_xoff_tx", Signal::PauseTx),
    Row("rx_dropped", Signal::RxDiscards),
    Row("tx_dropped_link_down", Signal::TxDiscards),
];

const IONIC: &[Row] = &[
    Row("rx_pripause_#_1us_count", Signal::PauseRxUs),
    Row("tx_pripause_#_1us_count", Signal::PauseTxUs),
    Row("rx_pause_1us_count", Signal::PauseRxUs),
    Row("tx_pause_1us_count", Signal::PauseTxUs),
    Row("frames_rx_pause", Signal::PauseRx),
    Row("frames_tx_pause", Signal::PauseTx),
    Row("frames_rx_dropped", Signal::RxDiscards),
];

/// The allowances of an EC2 instance: packets beyond them are "queued or dropped" (EC2 User Guide,
/// "Monitor network performance for ENA settings"), so they are no discards. Those of connection
/// tracking and of local services are dropped and stay under their own names.
const ENA: &[Row] = &[
    Row("bw_in_allowance_exceeded", Signal::RxAllowanceExceeded),
    Row("bw_out_allowance_exceeded", Signal::TxAllowanceExceeded),
    Row("pps_allowance_exceeded", Signal::PacketAllowanceExceeded),
];

/// Drivers whose statistics count, by their sources, but for those in [`GAUGES`].
const COUNTING: &[&str] = &[
    "mlx5_core",
    "bnxt_en",
    "ice",
    "i40e",
    "iavf",
    "ionic",
    "ena",
    "veth",
    "virtio_net",
    "e1000e",
    "tg3",
    "r8169",
];

/// Statistics that stand for themselves: numbers of things, switches, states.
const GAUGES: &[(&str, &str)] = &[
    // Per cent of the last second.
    ("mlx5_core", "outbound_pci_stalled_rd"),
    ("mlx5_core", "outbound_pci_stalled_wr"),
    ("veth", "peer_ifindex"),
    ("ena", "conntrack_allowance_available"),
    ("i40e", "port.fdir_atr_status"),
    ("i40e", "port.fdir_sb_status"),
    ("i40e", "port.tx_lpi_status"),
    ("i40e", "port.rx_lpi_status"),
    ("sfc", "rfs_filter_count"),
    ("fsl_dpaa2_eth", "[hw] tx pending frames"),
    ("fsl_dpaa2_eth", "[qbman] rx pending frames"),
    ("fsl_dpaa2_eth", "[qbman] rx pending bytes"),
    ("fsl_dpaa2_eth", "[qbman] tx conf pending frames"),
    ("fsl_dpaa2_eth", "[qbman] tx conf pending bytes"),
    ("fsl_dpaa2_eth", "[qbman] buffer count"),
];

/// How a statistic behaves that has no meaning here. The kernel does not say: only what is known of
/// a driver's sources does.
#[must_use]
pub fn raw_kind(driver: &str, name: &str) -> RawKind {
    if GAUGES.contains(&(driver, name)) {
        RawKind::Gauge
    } else if COUNTING.contains(&driver) {
        RawKind::Counter
    } else {
        RawKind::Unknown
    }
}

/// Meaning of a statistic; `None` if the table does not know it.
///
/// Several statistics of a device may have the same meaning: they add up.
#[must_use]
pub fn meaning(driver: &str, name: &str) -> Option<Meaning> {
    let (rows, name) = match driver {
        "mlx5_core" => (MLX5, name),
        "bnxt_en" => (BNXT, name),
        "ice" => (INTEL, name.strip_suffix(".nic")?),
        "i40e" => (INTEL, name.strip_prefix("port.")?),
        "ionic" => (IONIC, name),
        "ena" => (ENA, name),
        _ => return None,
    };
    rows.iter().find_map(|Row(pattern, signal)| {
        index_in(pattern, name).map(|index| Meaning {
            signal: *signal,
            index,
        })
    })
}

/// Heads of the columns of [`documented`].
pub const DOCUMENT_HEADS: [&str; 4] = ["driver", "statistic", "signal", "unit"];

/// The rows as words, for documents.
pub fn documented() -> impl Iterator<Item = [String; 4]> {
    let drivers = [
        ("mlx5_core", MLX5, ("", "")),
        ("bnxt_en", BNXT, ("", "")),
        ("ice", INTEL, ("", ".nic")),
        ("i40e", INTEL, ("port.", "")),
        ("ionic", IONIC, ("", "")),
        ("ena", ENA, ("", "")),
    ];
    drivers.into_iter().flat_map(|(driver, rows, around)| {
        rows.iter().map(move |Row(name, signal)| {
            [
                driver.to_owned(),
                format!("{}{name}{}", around.0, around.1),
                signal.name().to_owned(),
                signal.unit().to_owned(),
            ]
        })
    })
}

/// Whether the name is the pattern's, and its index.
fn index_in(pattern: &str, name: &str) -> Option<Option<u8>> {
    let Some((before, after)) = pattern.split_once('#') else {
        return (pattern == name).then_some(None);
    };
    let digit = name.strip_prefix(before)?.strip_suffix(after)?;
    match digit.as_bytes() {
        [digit @ b'0'..=b'9'] => Some(Some(digit - b'0')),
        _ => None,
    }
}

/// Whether a statistic belongs to one queue, channel or ring: there are thousands of those, and
/// their sums stand beside them.
#[must_use]
pub fn is_per_queue(name: &str) -> bool {
    let indexed = |prefix: &str, ends: &[u8]| {
        let Some(rest) = name.strip_prefix(prefix) else {
            return false;
        };
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        after.len() < rest.len() && after.bytes().next().is_some_and(|b| ends.contains(&b))
    };
    [
        "rx",
        "tx",
        "ch",
        "rx-",
        "tx-",
        "queue_",
        "rx_queue_",
        "tx_queue_",
        "xdp",
        "veb.tc_",
    ]
    .iter()
    .any(|prefix| indexed(prefix, b"_.:"))
        || indexed("[", b"]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_wire::signal::{Entity, Kind};

    fn of(driver: &str, name: &str) -> Option<(Signal, Option<u8>)> {
        meaning(driver, name).map(|m| (m.signal, m.index))
    }

    #[test]
    fn mlx5_shows_global_pause_without_pfc_and_priorities_with_it() {
        for (name, meant) in [
            ("rx_global_pause", (Signal::PauseRx, None)),
            ("rx_prio3_pause", (Signal::PauseRx, Some(3))),
            ("tx_prio7_pause_duration", (Signal::PauseTxUs, Some(7))),
            ("rx_err_lane_2_phy", (Signal::LaneErrors, Some(2))),
        ] {
            assert_eq!(of("mlx5_core", name), Some(meant), "{name}");
        }
        for other in [
            "rx_prio3_packets",
            "rx_prio33_pause",
            "rx_prio_pause",
            "rx_prio3_pause_transition",
        ] {
            assert_eq!(of("mlx5_core", other), None, "{other}");
        }
    }

    #[test]
    fn each_driver_has_its_own_spelling() {
        let pause3 = Some((Signal::PauseRx, Some(3)));
        assert_eq!(of("bnxt_en", "rx_pfc_ena_frames_pri3"), pause3);
        assert_eq!(of("ice", "rx_priority_3_xoff.nic"), pause3);
        assert_eq!(of("i40e", "port.rx_priority_3_xoff"), pause3);
        assert_eq!(
            of("ice", "rx_dropped"),
            None,
            "that is the VSI's, not the port's"
        );
        assert_eq!(of("virtio_net", "rx_dropped"), None);
    }

    #[test]
    fn a_raw_statistic_is_of_the_kind_that_its_driver_s_source_says() {
        for (driver, name, kind) in [
            ("veth", "peer_ifindex", RawKind::Gauge),
            ("ena", "conntrack_allowance_available", RawKind::Gauge),
            ("ena", "conntrack_allowance_exceeded", RawKind::Counter),
            ("mlx5_core", "rx_bytes_phy", RawKind::Counter),
            ("mlx5_core", "outbound_pci_stalled_rd", RawKind::Gauge),
            ("sfc", "rfs_filter_count", RawKind::Gauge),
            ("sfc", "port_rx_bytes", RawKind::Unknown),
            ("newdriver", "temperature", RawKind::Unknown),
        ] {
            assert_eq!(raw_kind(driver, name), kind, "{driver} {name}");
        }
        for (driver, name) in GAUGES {
            assert_eq!(meaning(driver, name), None, "{name} is a counter's column");
        }
    }

    #[test]
    fn what_an_allowance_held_up_is_not_lost() {
        for name in ["bw_in", "bw_out", "pps"] {
            let meant = of("ena", &format!("{name}_allowance_exceeded"));
            let (signal, index) = meant.unwrap();
            assert!(signal.name().ends_with("allowance_exceeded"), "{name}");
            assert_eq!(index, None);
        }
        assert_eq!(of("ena", "conntrack_allowance_exceeded"), None);
    }

    #[test]
    fn what_is_documented_is_what_is_meant() {
        for [driver, name, signal, _] in documented() {
            let meant = of(&driver, &name.replace('#', "5"));
            assert_eq!(
                meant.map(|(s, _)| s.name()),
                Some(signal.as_str()),
                "{name}"
            );
        }
    }

    #[test]
    fn statistics_of_queues_are_told_by_their_names() {
        for queue in [
            "rx0_packets",
            "tx-12.tx_bytes",
            "[3]: rx_errors",
            "ch4_poll",
            "queue_0_tx_cnt",
            "rx_queue_1_drops",
        ] {
            assert!(is_per_queue(queue), "{queue}");
        }
        for port in [
            "rx_64_bytes_phy",
            "rx_prio0_bytes",
            "tx_bytes",
            "rx_1024_to_1518_bytes_phy",
            "port.rx_size_64",
        ] {
            assert!(!is_per_queue(port), "{port}");
        }
    }

    #[test]
    fn every_meaning_is_a_counter_of_a_port() {
        for rows in [MLX5, BNXT, INTEL, IONIC, ENA] {
            for Row(pattern, signal) in rows {
                assert!(signal.entities().contains(&Entity::Port), "{pattern}");
                assert_eq!(signal.kind(), Kind::Counter, "{pattern}");
                assert!(
                    !pattern.contains('#') || signal.index().is_some(),
                    "{pattern}"
                );
            }
        }
    }

    #[test]
    fn what_has_a_meaning_is_of_the_port() {
        for rows in [MLX5, BNXT, IONIC, ENA] {
            for Row(pattern, _) in rows {
                assert!(!is_per_queue(&pattern.replace('#', "3")), "{pattern}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_index_is_a_digit(name in "[rt]x_(prio|err_lane_|priority_)[0-9]{0,2}_[a-z_.]{0,12}") {
            for driver in ["mlx5_core", "bnxt_en", "ice", "i40e", "ionic", "ena"] {
                let index = meaning(driver, &name).and_then(|m| m.index);
                prop_assert!(index.is_none_or(|i| i < 10));
            }
        }
    }
}
