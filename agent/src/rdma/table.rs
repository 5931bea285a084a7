//! Which counter of which verbs driver means what. Pure.
//!
//! Sources: the port counters of the InfiniBand architecture (drivers/infiniband/core/sysfs.c, widths
//! by PortCounters and PortCountersExtended) and the hardware counters of each driver
//! (drivers/infiniband/hw: mlx5/counters.c, bnxt_re/hw_counters.c, irdma/verbs.c, ionic, efa/efa_verbs.c,
//! hns/hns_roce_main.c, hfi1/verbs.c, mlx4; sw/rxe/rxe_hw_counters.c).

use weir_agent_core::counter::Overflow;
use weir_wire::signal::Signal;

/// Who sees the event that a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The requester: sends data, waits for acknowledgements, slows down.
    Sender,
    /// The responder: receives data, marks, answers.
    Receiver,
    /// The port, whatever crosses it.
    Link,
}

/// What a counter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// File of sysfs, name of RDMA netlink.
    pub raw: &'static str,
    pub signal: Signal,
    /// Width of the register, 1 to 64.
    pub bits: u8,
    pub overflow: Overflow,
    /// Units of the signal in one unit of the counter.
    pub scale: u64,
    pub side: Side,
}

const fn row(raw: &'static str, signal: Signal, side: Side) -> Row {
    Row {
        raw,
        signal,
        bits: 64,
        overflow: Overflow::Wraps,
        scale: 1,
        side,
    }
}

/// A register that sticks at its maximum.
const fn sticks(raw: &'static str, signal: Signal, bits: u8) -> Row {
    Row {
        bits,
        overflow: Overflow::Saturates,
        ..row(raw, signal, Side::Link)
    }
}

/// A queue counter of mlx5: 32 bits, which wrap.
const fn q(raw: &'static str, signal: Signal, side: Side) -> Row {
    Row {
        bits: 32,
        ..row(raw, signal, side)
    }
}

/// Counts words of four bytes.
const fn words(raw: &'static str, signal: Signal) -> Row {
    Row {
        scale: 4,
        ..row(raw, signal, Side::Link)
    }
}

use Side::{Link, Receiver, Sender};
use Signal as S;

/// `counters/` of every driver that has it.
const PORT: &[Row] = &[
    words("port_xmit_data", S::TxBytes),
    words("port_rcv_data", S::RxBytes),
    row("port_xmit_packets", S::TxPackets, Link),
    row("port_rcv_packets", S::RxPackets, Link),
    sticks("symbol_error", S::SymbolErrors, 16),
    sticks("link_error_recovery", S::LinkRecoveries, 8),
    sticks("link_downed", S::LinkDowns, 8),
    sticks("port_rcv_errors", S::RxErrors, 16),
    sticks("port_xmit_discards", S::TxDiscards, 16),
    sticks("local_link_integrity_errors", S::LinkIntegrityErrors, 4),
    sticks("port_xmit_wait", S::TxWait, 32),
];

/// `counters_ext/` of ConnectX-3, which has the 64-bit counters that `counters/` lacks.
const MLX4_EXT: &[Row] = &[
    words("port_xmit_data_64", S::TxBytes),
    words("port_rcv_data_64", S::RxBytes),
    row("port_xmit_packets_64", S::TxPackets, Link),
    row("port_rcv_packets_64", S::RxPackets, Link),
];

const MLX5: &[Row] = &[
    row("np_ecn_marked_roce_packets", S::EcnMarkedRx, Receiver),
    row("np_cnp_sent", S::CnpTx, Receiver),
    row("rp_cnp_handled", S::CnpRx, Sender),
    row("rp_cnp_ignored", S::CnpIgnored, Sender),
    row("rx_icrc_encapsulated", S::IcrcErrors, Receiver),
    q("out_of_sequence", S::OutOfSequence, Receiver),
    q("packet_seq_err", S::SequenceNaks, Sender),
    q("local_ack_timeout_err", S::AckTimeouts, Sender),
    q("rnr_nak_retry_err", S::RnrNaks, Sender),
    q("out_of_buffer", S::RxDiscards, Receiver),
    q("req_cqe_error", S::QpErrors, Sender),
    q("resp_cqe_error", S::QpErrors, Receiver),
    q("roce_adp_retrans", S::AdaptiveRetransmits, Sender),
    q("roce_slow_restart", S::SlowRestarts, Sender),
];

/// Old and new names: a device has one or the other.
const BNXT: &[Row] = &[
    row("tx_bytes", S::TxBytes, Link),
    row("rx_bytes", S::RxBytes, Link),
    row("tx_pkts", S::TxPackets, Link),
    row("rx_pkts", S::RxPackets, Link),
    row("tx_roce_discards", S::TxDiscards, Sender),
    row("rx_roce_discards", S::RxDiscards, Receiver),
    row("tx_roce_errors", S::TxErrors, Sender),
    row("rx_roce_errors", S::RxErrors, Receiver),
    row("to_retransmits", S::AckTimeouts, Sender),
    row("seq_err_naks_rcvd", S::SequenceNaks, Sender),
    row("rnr_naks_rcvd", S::RnrNaks, Sender),
    row("oos_drop_count", S::OutOfSequence, Receiver),
    row("rx_ecn_marked_pkts", S::EcnMarkedRx, Receiver),
    row("np_ecn_marked_roce_packets", S::EcnMarkedRx, Receiver),
    row("tx_cnp_pkts", S::CnpTx, Receiver),
    row("np_cnp_pkts", S::CnpTx, Receiver),
    row("rx_cnp_pkts", S::CnpRx, Sender),
    row("rp_cnp_handled", S::CnpRx, Sender),
    row("unrecoverable_err", S::QpErrors, Sender),
];

/// Generation 2 and 3. The files' names of generation 3 hold spaces.
const IRDMA: &[Row] = &[
    row("ip4OutOctets", S::TxBytes, Link),
    row("ip6OutOctets", S::TxBytes, Link),
    row("ip4InOctets", S::RxBytes, Link),
    row("ip6InOctets", S::RxBytes, Link),
    row("ip4OutPkts", S::TxPackets, Link),
    row("ip6OutPkts", S::TxPackets, Link),
    row("ip4InPkts", S::RxPackets, Link),
    row("ip6InPkts", S::RxPackets, Link),
    row("cnpSent", S::CnpTx, Receiver),
    row("cnpHandled", S::CnpRx, Sender),
    row("cnpIgnored", S::CnpIgnored, Sender),
    row("RxECNMrkd", S::EcnMarkedRx, Receiver),
    row("tcpRetransSegs", S::Retransmits, Sender),
    row("Nak Sequence Error", S::SequenceNaks, Sender),
    row("RNR received", S::RnrNaks, Sender),
    row("RTO", S::AckTimeouts, Sender),
    row("Rcvd Out of order packets", S::OutOfSequence, Receiver),
    row("CRC errors", S::IcrcErrors, Receiver),
    row("ip4InDiscards", S::RxDiscards, Receiver),
    row("ip6InDiscards", S::RxDiscards, Receiver),
];

const IONIC: &[Row] = &[
    row("tx_rdma_ucast_bytes", S::TxBytes, Link),
    row("rx_rdma_ucast_bytes", S::RxBytes, Link),
    row("tx_rdma_ucast_pkts", S::TxPackets, Link),
    row("rx_rdma_ucast_pkts", S::RxPackets, Link),
    row("tx_rdma_cnp_pkts", S::CnpTx, Receiver),
    row("rx_rdma_cnp_pkts", S::CnpRx, Sender),
    row("rx_rdma_ecn_pkts", S::EcnMarkedRx, Receiver),
    row("req_rx_pkt_seq_err", S::SequenceNaks, Sender),
    row("req_rx_rnr_retry_err", S::RnrNaks, Sender),
    row("req_tx_retry_excd_err", S::AckTimeouts, Sender),
    row("resp_rx_outouf_seq", S::OutOfSequence, Receiver),
    row("resp_rx_outof_buf", S::RxDiscards, Receiver),
];

const EFA: &[Row] = &[
    row("tx_bytes", S::TxBytes, Link),
    row("rx_bytes", S::RxBytes, Link),
    row("tx_pkts", S::TxPackets, Link),
    row("rx_pkts", S::RxPackets, Link),
    row("rx_drops", S::RxDiscards, Receiver),
    row("retrans_pkts", S::Retransmits, Sender),
    row("retrans_timeout_events", S::AckTimeouts, Sender),
];

const HNS: &[Row] = &[
    row("rx_rc_pkt", S::RxPackets, Link),
    row("tx_rc_pkt", S::TxPackets, Link),
    row("tx_cnp_pkt", S::CnpTx, Receiver),
    row("rx_cnp_pkt", S::CnpRx, Sender),
    row("rx_icrc_err", S::IcrcErrors, Receiver),
    row("rx_no_rx_buf", S::RxDiscards, Receiver),
    row("rx_err_pkt", S::RxErrors, Receiver),
    row("tx_err_pkt", S::TxErrors, Sender),
    row("retry_cnt", S::Retransmits, Sender),
];

const RXE: &[Row] = &[
    row("sent_pkts", S::TxPackets, Link),
    row("rcvd_pkts", S::RxPackets, Link),
    row("out_of_seq_request", S::OutOfSequence, Receiver),
    row("rcvd_seq_err", S::SequenceNaks, Sender),
    row("rcvd_rnr_err", S::RnrNaks, Sender),
    row("completer_retry_err", S::Retransmits, Sender),
    row("retry_exceeded_err", S::AckTimeouts, Sender),
    row("retry_rnr_exceeded_err", S::QpErrors, Sender),
    row("send_err", S::TxErrors, Sender),
    row("link_downed", S::LinkDowns, Link),
];

/// Every driver's hardware counters, by the kernel module's name.
pub const DRIVERS: &[(&str, &[Row])] = &[
    ("mlx5_ib", MLX5),
    ("bnxt_re", BNXT),
    ("irdma", IRDMA),
    ("ionic_rdma", IONIC),
    ("efa", EFA),
    ("hns_roce", HNS),
    ("mlx4_ib", MLX4_EXT),
    ("hfi1", &[]),
    ("rdma_rxe", RXE),
];

/// The directory that a counter stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// `counters/`: the same names for every driver.
    Port,
    /// `hw_counters/` and `counters_ext/`: each driver its own.
    Hardware,
}

/// Meaning of a counter; `None` if the table does not know it.
///
/// Several counters of a port may have the same meaning: they add up.
#[must_use]
pub fn meaning(driver: &str, set: Set, raw: &str) -> Option<&'static Row> {
    let rows = match set {
        Set::Port => PORT,
        Set::Hardware => DRIVERS.iter().find(|(name, _)| *name == driver)?.1,
    };
    rows.iter().find(|row| row.raw == raw)
}

/// The driver of a device by what drivers call their devices, where sysfs does not say.
#[must_use]
pub fn driver_by_name(device: &str) -> Option<&'static str> {
    const PREFIXES: [(&str, &str); 9] = [
        ("mlx5_", "mlx5_ib"),
        ("mlx4_", "mlx4_ib"),
        ("bnxt_re", "bnxt_re"),
        ("irdma", "irdma"),
        ("ionic_", "ionic_rdma"),
        ("efa_", "efa"),
        ("hns_", "hns_roce"),
        ("hfi1_", "hfi1"),
        ("rxe", "rdma_rxe"),
    ];
    PREFIXES
        .iter()
        .find(|(prefix, _)| device.starts_with(prefix))
        .map(|(_, driver)| *driver)
}

/// The driver by the names of its counters, for devices that udev renamed (`rocep129s0`,
/// `rdmap16s27`) and whose driver sysfs does not show. The one that knows the most of them.
#[must_use]
pub fn driver_by_counters<'n>(
    names: impl Iterator<Item = &'n str> + Clone,
) -> Option<&'static str> {
    let known = |rows: &[Row]| {
        let knows = |name: &&str| rows.iter().any(|row| row.raw == *name);
        names.clone().filter(knows).count()
    };
    DRIVERS
        .iter()
        .map(|(driver, rows)| (known(rows), *driver))
        .filter(|(count, _)| *count > 0)
        .max_by_key(|(count, _)| *count)
        .map(|(_, driver)| driver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use weir_wire::signal::{Entity, Kind};

    #[test]
    fn every_row_is_a_counter_of_a_verbs_port_and_stands_once() {
        for (driver, rows) in DRIVERS.iter().copied().chain([("port", PORT)]) {
            let names: BTreeSet<&str> = rows.iter().map(|row| row.raw).collect();
            assert_eq!(names.len(), rows.len(), "{driver}");
            for row in rows {
                assert!(row.signal.entities().contains(&Entity::Rdma), "{}", row.raw);
                assert_eq!(row.signal.kind(), Kind::Counter, "{}", row.raw);
                assert!((1..=64).contains(&row.bits), "{}", row.raw);
            }
        }
    }

    #[test]
    fn data_of_iba_counts_words_and_that_of_efa_bytes() {
        let scale = |driver, set, raw| meaning(driver, set, raw).map(|row| row.scale);
        assert_eq!(scale("mlx5_ib", Set::Port, "port_xmit_data"), Some(4));
        assert_eq!(scale("efa", Set::Hardware, "tx_bytes"), Some(1));
    }

    #[test]
    fn narrow_counters_of_iba_stick() {
        for (raw, bits) in [
            ("symbol_error", 16),
            ("link_downed", 8),
            ("local_link_integrity_errors", 4),
            ("port_xmit_wait", 32),
        ] {
            let row = meaning("mlx5_ib", Set::Port, raw).unwrap();
            assert_eq!(
                (row.bits, row.overflow),
                (bits, Overflow::Saturates),
                "{raw}"
            );
        }
    }

    #[test]
    fn renamed_counters_of_bnxt_re_have_one_meaning() {
        for (old, new) in [
            ("rx_cnp_pkts", "rp_cnp_handled"),
            ("tx_cnp_pkts", "np_cnp_pkts"),
            ("rx_ecn_marked_pkts", "np_ecn_marked_roce_packets"),
        ] {
            let signal = |raw| meaning("bnxt_re", Set::Hardware, raw).unwrap().signal;
            assert_eq!(signal(old), signal(new));
        }
    }

    #[test]
    fn names_with_spaces_are_names() {
        let row = meaning("irdma", Set::Hardware, "Nak Sequence Error").unwrap();
        assert_eq!((row.signal, row.side), (S::SequenceNaks, Side::Sender));
    }

    #[test]
    fn a_lifespan_is_no_counter() {
        for (driver, _) in DRIVERS {
            assert_eq!(meaning(driver, Set::Hardware, "lifespan"), None);
        }
    }

    #[test]
    fn a_renamed_device_is_known_by_its_counters() {
        let efa = [
            "tx_bytes",
            "rx_bytes",
            "tx_pkts",
            "rx_pkts",
            "rx_drops",
            "rdma_read_wrs",
        ];
        assert_eq!(driver_by_counters(efa.into_iter()), Some("efa"));
        assert_eq!(driver_by_counters(["cnpSent"].into_iter()), Some("irdma"));
        assert_eq!(driver_by_counters(["nothing"].into_iter()), None);
        assert_eq!(driver_by_name("mlx5_bond_0"), Some("mlx5_ib"));
        assert_eq!(driver_by_name("rdmap16s27"), None);
    }
}
