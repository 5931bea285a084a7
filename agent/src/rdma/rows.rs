//! The rows of the table of counters, driver by driver.
//!
//! What is left out on purpose is exported under its own name: completions flushed when a queue
//! pair is torn down (`*_cqe_flush_error`, and the `*_cqe_error` that include them), duplicate
//! requests and implied NAKs (the same loss as seen a second time), counts of work requests.

use super::table::{Driver, Row, Side};
use weir_wire::signal::Signal;

const fn sender(driver: Driver, raw: &'static str, signal: Signal) -> Row {
    Row::new(driver, raw, signal, Side::Sender)
}

const fn receiver(driver: Driver, raw: &'static str, signal: Signal) -> Row {
    Row::new(driver, raw, signal, Side::Receiver)
}

const fn link(driver: Driver, raw: &'static str, signal: Signal) -> Row {
    Row::new(driver, raw, signal, Side::Link)
}

/// A port counter of the InfiniBand architecture; a driver's own counter of the signal comes first.
const fn iba(raw: &'static str, signal: Signal) -> Row {
    link(Driver::Iba, raw, signal).rank(1)
}

use Driver::{BnxtRe, Efa, Hns, Ionic, Irdma, Mlx4, Mlx5, Rxe};

/// Every counter with a canonical signal.
pub const ROWS: &[Row] = &[
    // Port counters, files of `counters/` (drivers/infiniband/core/sysfs.c has their widths; they
    // stick at their end by the InfiniBand architecture, volume 1, 16.1.3.5). Data is in words of
    // four bytes. RoCE ports of mlx5 count RDMA traffic only.
    iba("port_xmit_data", Signal::TxBytes).times(4),
    iba("port_rcv_data", Signal::RxBytes).times(4),
    iba("port_xmit_packets", Signal::TxPackets),
    iba("port_rcv_packets", Signal::RxPackets),
    iba("symbol_error", Signal::SymbolErrors).sticks_at(16),
    iba("link_error_recovery", Signal::LinkRecoveries).sticks_at(8),
    iba("link_downed", Signal::LinkDowns).sticks_at(8),
    iba("port_rcv_errors", Signal::RxErrors).sticks_at(16),
    iba("port_xmit_discards", Signal::TxDiscards).sticks_at(16),
    iba("local_link_integrity_errors", Signal::LinkIntegrityErrors).sticks_at(4),
    iba("port_xmit_wait", Signal::TxWait).sticks_at(32),
    // mlx5 (drivers/infiniband/hw/mlx5/counters.c): counters of queue pairs are 32 bits of a
    // firmware reply, those of congestion control 64. In InfiniBand mode the latter do not exist.
    receiver(Mlx5, "out_of_buffer", Signal::RxDiscards).wraps_at(32),
    receiver(Mlx5, "out_of_sequence", Signal::OutOfSequence).wraps_at(32),
    sender(Mlx5, "rnr_nak_retry_err", Signal::RnrNaks).wraps_at(32),
    sender(Mlx5, "packet_seq_err", Signal::SequenceNaks).wraps_at(32),
    sender(Mlx5, "local_ack_timeout_err", Signal::AckTimeouts).wraps_at(32),
    sender(Mlx5, "roce_adp_retrans", Signal::AdaptiveRetransmits).wraps_at(32),
    sender(Mlx5, "roce_slow_restart", Signal::SlowRestarts).wraps_at(32),
    sender(Mlx5, "req_remote_access_errors", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    sender(Mlx5, "req_remote_invalid_request", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    sender(Mlx5, "req_transport_retries_exceeded", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    sender(Mlx5, "req_rnr_retries_exceeded", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    receiver(Mlx5, "resp_local_length_error", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    receiver(Mlx5, "resp_remote_access_errors", Signal::QpErrors)
        .wraps_at(32)
        .adds(),
    receiver(Mlx5, "np_ecn_marked_roce_packets", Signal::EcnMarkedRx),
    receiver(Mlx5, "np_cnp_sent", Signal::CnpTx),
    sender(Mlx5, "rp_cnp_handled", Signal::CnpRx),
    sender(Mlx5, "rp_cnp_ignored", Signal::CnpIgnored),
    receiver(Mlx5, "rx_icrc_encapsulated", Signal::IcrcErrors),
    // Optional counters of mlx5, off unless `rdma statistic set` turns them on.
    receiver(Mlx5, "cc_rx_ce_pkts", Signal::EcnMarkedRx).rank(1),
    receiver(Mlx5, "cc_tx_cnp_pkts", Signal::CnpTx).rank(1),
    sender(Mlx5, "cc_rx_cnp_pkts", Signal::CnpRx).rank(1),
    link(Mlx5, "rdma_tx_bytes", Signal::TxBytes).rank(2),
    link(Mlx5, "rdma_rx_bytes", Signal::RxBytes).rank(2),
    link(Mlx5, "rdma_tx_packets", Signal::TxPackets).rank(2),
    link(Mlx5, "rdma_rx_packets", Signal::RxPackets).rank(2),
    // mlx4 (drivers/infiniband/hw/mlx4/main.c): 32-bit diagnostic counters; `counters_ext/` of
    // kernels before 4.6 beside counters that stick at 32 bits, or that firmware leaves at zero.
    link(Mlx4, "port_xmit_data", Signal::TxBytes)
        .times(4)
        .largest(),
    link(Mlx4, "port_xmit_data_64", Signal::TxBytes)
        .times(4)
        .largest(),
    link(Mlx4, "port_rcv_data", Signal::RxBytes)
        .times(4)
        .largest(),
    link(Mlx4, "port_rcv_data_64", Signal::RxBytes)
        .times(4)
        .largest(),
    link(Mlx4, "port_xmit_packets", Signal::TxPackets).largest(),
    link(Mlx4, "port_xmit_packets_64", Signal::TxPackets).largest(),
    link(Mlx4, "port_rcv_packets", Signal::RxPackets).largest(),
    link(Mlx4, "port_rcv_packets_64", Signal::RxPackets).largest(),
    receiver(Mlx4, "rq_num_oos", Signal::OutOfSequence).wraps_at(32),
    sender(Mlx4, "sq_num_oos", Signal::SequenceNaks).wraps_at(32),
    sender(Mlx4, "sq_num_rnr", Signal::RnrNaks).wraps_at(32),
    sender(Mlx4, "sq_num_to", Signal::AckTimeouts).wraps_at(32),
    qp_error_32("sq_num_lle", Side::Sender),
    qp_error_32("sq_num_lqpoe", Side::Sender),
    qp_error_32("sq_num_lpe", Side::Sender),
    qp_error_32("sq_num_mwbe", Side::Sender),
    qp_error_32("sq_num_bre", Side::Sender),
    qp_error_32("sq_num_rire", Side::Sender),
    qp_error_32("sq_num_rae", Side::Sender),
    qp_error_32("sq_num_roe", Side::Sender),
    qp_error_32("sq_num_tree", Side::Sender),
    qp_error_32("sq_num_rree", Side::Sender),
    qp_error_32("rq_num_lle", Side::Receiver),
    qp_error_32("rq_num_lqpoe", Side::Receiver),
    qp_error_32("rq_num_lpe", Side::Receiver),
    qp_error_32("rq_num_rire", Side::Receiver),
    qp_error_32("rq_num_rae", Side::Receiver),
    // bnxt_re (drivers/infiniband/hw/bnxt_re/hw_counters.c), names before and after they were
    // brought in line with those of mlx5. The bytes are bytes.
    link(BnxtRe, "tx_bytes", Signal::TxBytes),
    link(BnxtRe, "rx_bytes", Signal::RxBytes),
    link(BnxtRe, "tx_pkts", Signal::TxPackets),
    link(BnxtRe, "rx_pkts", Signal::RxPackets),
    link(BnxtRe, "tx_roce_errors", Signal::TxErrors),
    link(BnxtRe, "rx_roce_errors", Signal::RxErrors),
    link(BnxtRe, "tx_roce_discards", Signal::TxDiscards),
    receiver(BnxtRe, "rx_out_of_buffer", Signal::RxDiscards).largest(),
    receiver(BnxtRe, "out_of_buffer", Signal::RxDiscards).largest(),
    link(BnxtRe, "rx_roce_discards", Signal::RxDiscards).rank(1),
    receiver(BnxtRe, "rx_ecn_marked_pkts", Signal::EcnMarkedRx).largest(),
    receiver(BnxtRe, "np_ecn_marked_roce_packets", Signal::EcnMarkedRx).largest(),
    receiver(BnxtRe, "tx_cnp_pkts", Signal::CnpTx).largest(),
    receiver(BnxtRe, "np_cnp_pkts", Signal::CnpTx).largest(),
    sender(BnxtRe, "rx_cnp_pkts", Signal::CnpRx).largest(),
    sender(BnxtRe, "rp_cnp_handled", Signal::CnpRx).largest(),
    sender(BnxtRe, "to_retransmits", Signal::AckTimeouts).largest(),
    sender(BnxtRe, "local_ack_timeout_err", Signal::AckTimeouts).largest(),
    sender(BnxtRe, "seq_err_naks_rcvd", Signal::SequenceNaks).largest(),
    sender(BnxtRe, "packet_seq_err", Signal::SequenceNaks).largest(),
    sender(BnxtRe, "rnr_naks_rcvd", Signal::RnrNaks).largest(),
    sender(BnxtRe, "rnr_nak_retry_err", Signal::RnrNaks).largest(),
    receiver(BnxtRe, "oos_drop_count", Signal::OutOfSequence).largest(),
    receiver(BnxtRe, "out_of_sequence", Signal::OutOfSequence).largest(),
    sender(BnxtRe, "max_retry_exceeded", Signal::QpErrors).adds(),
    sender(BnxtRe, "unrecoverable_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "bad_resp_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "local_qp_op_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "local_protection_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "mem_mgmt_op_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "remote_op_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "remote_invalid_req_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "req_remote_invalid_request", Signal::QpErrors).adds(),
    sender(BnxtRe, "remote_access_err", Signal::QpErrors).adds(),
    sender(BnxtRe, "req_remote_access_errors", Signal::QpErrors).adds(),
    receiver(BnxtRe, "res_length_mismatch", Signal::QpErrors).adds(),
    receiver(BnxtRe, "resp_local_length_error", Signal::QpErrors).adds(),
    receiver(BnxtRe, "resp_remote_access_errors", Signal::QpErrors).adds(),
    // irdma (drivers/infiniband/hw/irdma/verbs.c); the driver widens its registers. The third
    // generation has names with spaces, and RetransSegs for tcpRetransSegs, which on RoCE counts
    // its own retransmissions.
    link(Irdma, "ip4OutOctets", Signal::TxBytes).adds(),
    link(Irdma, "ip6OutOctets", Signal::TxBytes).adds(),
    link(Irdma, "ip4InOctets", Signal::RxBytes).adds(),
    link(Irdma, "ip6InOctets", Signal::RxBytes).adds(),
    link(Irdma, "ip4OutPkts", Signal::TxPackets).adds(),
    link(Irdma, "ip6OutPkts", Signal::TxPackets).adds(),
    link(Irdma, "ip4InPkts", Signal::RxPackets).adds(),
    link(Irdma, "ip6InPkts", Signal::RxPackets).adds(),
    link(Irdma, "ip4InDiscards", Signal::RxDiscards).adds(),
    link(Irdma, "ip6InDiscards", Signal::RxDiscards).adds(),
    link(Irdma, "ip4OutNoRoutes", Signal::TxDiscards).adds(),
    link(Irdma, "ip6OutNoRoutes", Signal::TxDiscards).adds(),
    sender(Irdma, "tcpRetransSegs", Signal::Retransmits).largest(),
    sender(Irdma, "RetransSegs", Signal::Retransmits).largest(),
    receiver(Irdma, "RxECNMrkd", Signal::EcnMarkedRx),
    receiver(Irdma, "cnpSent", Signal::CnpTx),
    sender(Irdma, "cnpHandled", Signal::CnpRx),
    sender(Irdma, "cnpIgnored", Signal::CnpIgnored),
    sender(Irdma, "RNR received", Signal::RnrNaks),
    sender(Irdma, "Nak Sequence Error", Signal::SequenceNaks),
    sender(Irdma, "RTO", Signal::AckTimeouts),
    receiver(Irdma, "Rcvd Out of order packets", Signal::OutOfSequence),
    receiver(Irdma, "CRC errors", Signal::IcrcErrors),
    // ionic: firmware names the counters (drivers/infiniband/hw/ionic/ionic_hw_stats.c); these are
    // the names of AMD's Pollara.
    link(Ionic, "tx_rdma_ucast_bytes", Signal::TxBytes).adds(),
    link(Ionic, "tx_rdma_mcast_bytes", Signal::TxBytes).adds(),
    link(Ionic, "rx_rdma_ucast_bytes", Signal::RxBytes).adds(),
    link(Ionic, "rx_rdma_mcast_bytes", Signal::RxBytes).adds(),
    link(Ionic, "tx_rdma_ucast_pkts", Signal::TxPackets).adds(),
    link(Ionic, "tx_rdma_mcast_pkts", Signal::TxPackets).adds(),
    link(Ionic, "rx_rdma_ucast_pkts", Signal::RxPackets).adds(),
    link(Ionic, "rx_rdma_mcast_pkts", Signal::RxPackets).adds(),
    receiver(Ionic, "rx_rdma_ecn_pkts", Signal::EcnMarkedRx),
    receiver(Ionic, "tx_rdma_cnp_pkts", Signal::CnpTx),
    sender(Ionic, "rx_rdma_cnp_pkts", Signal::CnpRx),
    sender(Ionic, "tx_rdma_retx_pkts", Signal::Retransmits),
    sender(Ionic, "tx_rdma_ack_timeout", Signal::AckTimeouts),
    sender(Ionic, "req_rx_pkt_seq_err", Signal::SequenceNaks),
    sender(Ionic, "req_rx_rnr_retry_err", Signal::RnrNaks),
    receiver(Ionic, "resp_rx_outouf_seq", Signal::OutOfSequence),
    receiver(Ionic, "resp_rx_outof_buf", Signal::RxDiscards),
    sender(Ionic, "req_rx_rmt_acc_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_rx_rmt_req_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_rx_oper_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_tx_loc_acc_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_tx_loc_oper_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_tx_mem_mgmt_err", Signal::QpErrors).adds(),
    sender(Ionic, "req_tx_retry_excd_err", Signal::QpErrors).adds(),
    receiver(Ionic, "resp_rx_loc_len_err", Signal::QpErrors).adds(),
    receiver(Ionic, "resp_rx_loc_oper_err", Signal::QpErrors).adds(),
    receiver(Ionic, "resp_tx_rmt_inval_req_err", Signal::QpErrors).adds(),
    receiver(Ionic, "resp_tx_rmt_acc_err", Signal::QpErrors).adds(),
    receiver(Ionic, "resp_tx_rmt_oper_err", Signal::QpErrors).adds(),
    // EFA (drivers/infiniband/hw/efa/efa_verbs.c): bytes are bytes. The retransmissions are of
    // Nitro version 4 and later.
    link(Efa, "tx_bytes", Signal::TxBytes),
    link(Efa, "rx_bytes", Signal::RxBytes),
    link(Efa, "tx_pkts", Signal::TxPackets),
    link(Efa, "rx_pkts", Signal::RxPackets),
    receiver(Efa, "rx_drops", Signal::RxDiscards),
    sender(Efa, "retrans_pkts", Signal::Retransmits),
    sender(Efa, "retrans_timeout_events", Signal::AckTimeouts),
    sender(Efa, "rdma_read_wr_err", Signal::QpErrors).adds(),
    sender(Efa, "rdma_write_wr_err", Signal::QpErrors).adds(),
    // hns (drivers/infiniband/hw/hns/hns_roce_main.c).
    link(Hns, "tx_pkt", Signal::TxPackets),
    link(Hns, "rx_pkt", Signal::RxPackets),
    link(Hns, "tx_err_pkt", Signal::TxErrors),
    link(Hns, "rx_err_pkt", Signal::RxErrors),
    receiver(Hns, "tx_cnp_pkt", Signal::CnpTx),
    sender(Hns, "rx_cnp_pkt", Signal::CnpRx),
    // rxe (drivers/infiniband/sw/rxe/rxe_hw_counters.c). A retry of the completer sends again all
    // that was not acknowledged: a lower bound of the packets.
    link(Rxe, "sent_pkts", Signal::TxPackets),
    link(Rxe, "rcvd_pkts", Signal::RxPackets),
    link(Rxe, "send_err", Signal::TxErrors),
    link(Rxe, "link_downed", Signal::LinkDowns),
    sender(Rxe, "completer_retry_err", Signal::Retransmits),
    sender(Rxe, "rcvd_seq_err", Signal::SequenceNaks),
    sender(Rxe, "rcvd_rnr_err", Signal::RnrNaks),
    receiver(Rxe, "out_of_seq_request", Signal::OutOfSequence),
    sender(Rxe, "retry_exceeded_err", Signal::QpErrors).adds(),
    sender(Rxe, "retry_rnr_exceeded_err", Signal::QpErrors).adds(),
];

const fn qp_error_32(raw: &'static str, side: Side) -> Row {
    Row::new(Driver::Mlx4, raw, Signal::QpErrors, side)
        .wraps_at(32)
        .adds()
}
