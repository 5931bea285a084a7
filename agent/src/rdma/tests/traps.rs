//! Each peculiarity of the format that has been seen on a real machine.

use super::{column, gather, info, port, raw, value};
use weir_agent_core::counter::{Counter, Observation, Overflow};
use weir_wire::signal::Signal;

#[test]
fn a_port_without_a_performance_agent_has_no_counters() {
    let root = port(
        "i40iw0",
        &[
            ("counters/symbol_error", "N/A (no PMA)\n"),
            ("counters/VL15_dropped", "N/A (no PMA)\n"),
            ("counters/port_xmit_wait", ""),
            ("state", "4: ACTIVE\n"),
        ],
    );
    let out = gather(root.path());
    assert_eq!(out.columns.len(), 1);
    assert!(out.raw.is_empty());
}

#[test]
fn data_of_a_port_is_in_words_and_of_efa_in_bytes() {
    let root = port(
        "mlx5_0",
        &[
            ("counters/port_xmit_data", "25\n"),
            ("counters/port_rcv_data", "50\n"),
        ],
    );
    let out = gather(root.path());
    assert_eq!(value(&out, "mlx5_0/1", Signal::TxBytes), Some(100));
    assert_eq!(value(&out, "mlx5_0/1", Signal::RxBytes), Some(200));
    let root = port("efa_0", &[("hw_counters/tx_bytes", "25\n")]);
    let out = gather(root.path());
    assert_eq!(value(&out, "efa_0/1", Signal::TxBytes), Some(25));
}

#[test]
fn pinned_counters_are_saturated_and_not_at_rest() {
    let pinned = [
        ("symbol_error", Signal::SymbolErrors, 65_535u64),
        ("link_downed", Signal::LinkDowns, 255),
        (
            "local_link_integrity_errors",
            Signal::LinkIntegrityErrors,
            15,
        ),
        ("port_xmit_wait", Signal::TxWait, 4_294_967_295),
    ];
    for (name, signal, pin) in pinned {
        let root = port("mlx5_0", &[(&format!("counters/{name}"), &pin.to_string())]);
        let reading = column(&gather(root.path()), "mlx5_0/1", signal).unwrap();
        assert_eq!(reading.overflow, Overflow::Saturates, "{name}");
        let mut counter = Counter::new(u32::from(reading.bits), reading.overflow);
        let now = std::time::Duration::from_secs;
        counter.observe(reading.value, now(1));
        let observed = counter.observe(reading.value, now(2));
        assert_eq!(observed, Observation::Saturated, "{name}");
    }
}

#[test]
fn lifespan_is_a_setting() {
    let root = port(
        "rxe0",
        &[
            ("hw_counters/lifespan", "12\n"),
            ("hw_counters/ack_deferred", "3\n"),
        ],
    );
    let out = gather(root.path());
    assert_eq!(raw(&out, "rxe0/1", "lifespan"), None);
    assert_eq!(raw(&out, "rxe0/1", "ack_deferred"), Some(3));
    assert_eq!(out.raw.len(), 1);
}

#[test]
fn names_of_irdma_hold_spaces_and_its_cnps_have_names_of_their_own() {
    let root = port(
        "irdma0",
        &[
            ("hw_counters/Nak Sequence Error", "1\n"),
            ("hw_counters/Nak Sequence Error Implied", "2\n"),
            ("hw_counters/RNR received", "3\n"),
            ("hw_counters/RNR sent", "4\n"),
            ("hw_counters/RTO", "5\n"),
            ("hw_counters/Rcvd Out of order packets", "6\n"),
            ("hw_counters/CRC errors", "7\n"),
            ("hw_counters/cnpSent", "8\n"),
            ("hw_counters/cnpHandled", "9\n"),
            ("hw_counters/cnpIgnored", "10\n"),
            ("hw_counters/RxECNMrkd", "11\n"),
            ("hw_counters/ip4OutOctets", "12\n"),
            ("hw_counters/ip6OutOctets", "13\n"),
        ],
    );
    let out = gather(root.path());
    let expected = [
        (Signal::SequenceNaks, 1),
        (Signal::RnrNaks, 3),
        (Signal::AckTimeouts, 5),
        (Signal::OutOfSequence, 6),
        (Signal::IcrcErrors, 7),
        (Signal::CnpTx, 8),
        (Signal::CnpRx, 9),
        (Signal::CnpIgnored, 10),
        (Signal::EcnMarkedRx, 11),
        (Signal::TxBytes, 25),
    ];
    for (signal, expected) in expected {
        assert_eq!(
            value(&out, "irdma0/1", signal),
            Some(expected),
            "{signal:?}"
        );
    }
    assert_eq!(out.columns.len(), expected.len());
    assert_eq!(raw(&out, "irdma0/1", "Nak Sequence Error Implied"), Some(2));
    assert_eq!(raw(&out, "irdma0/1", "RNR sent"), Some(4));
    // Parts of a sum can be seen one by one.
    assert_eq!(raw(&out, "irdma0/1", "ip6OutOctets"), Some(13));
}

#[test]
fn bnxt_re_means_the_same_by_its_old_and_new_names() {
    let names = [
        ("tx_cnp_pkts", "np_cnp_pkts", Signal::CnpTx),
        ("rx_cnp_pkts", "rp_cnp_handled", Signal::CnpRx),
        (
            "rx_ecn_marked_pkts",
            "np_ecn_marked_roce_packets",
            Signal::EcnMarkedRx,
        ),
        ("rx_out_of_buffer", "out_of_buffer", Signal::RxDiscards),
        ("seq_err_naks_rcvd", "packet_seq_err", Signal::SequenceNaks),
        ("oos_drop_count", "out_of_sequence", Signal::OutOfSequence),
    ];
    for (old, new, signal) in names {
        for name in [old, new] {
            let root = port("bnxt_re0", &[(&format!("hw_counters/{name}"), "7\n")]);
            let out = gather(root.path());
            assert_eq!(value(&out, "bnxt_re0/1", signal), Some(7), "{name}");
            assert!(out.raw.is_empty(), "{name}");
        }
    }
}

#[test]
fn what_a_device_lacks_is_absent() {
    let infiniband = port(
        "mlx5_0",
        &[
            ("link_layer", "InfiniBand\n"),
            ("counters/link_downed", "0\n"),
            ("hw_counters/out_of_sequence", "0\n"),
        ],
    );
    let out = gather(infiniband.path());
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkDowns), Some(0));
    for absent in [Signal::CnpTx, Signal::CnpRx, Signal::EcnMarkedRx] {
        assert_eq!(value(&out, "mlx5_0/1", absent), None);
    }
    let soft = port("rxe0", &[("hw_counters/sent_pkts", "9\n")]);
    let out = gather(soft.path());
    assert_eq!(out.columns.len(), 1);
    let old = port("mlx4_0", &[("counters_ext/port_rcv_packets_64", "9\n")]);
    let out = gather(old.path());
    assert_eq!(value(&out, "mlx4_0/1", Signal::RxPackets), Some(9));
}

#[test]
fn rates_tell_lanes_and_may_lack_a_generation() {
    for (text, bps, lanes) in [
        ("200 Gb/sec (2X NDR)\n", 200_000_000_000, 2),
        ("25 Gb/sec (1X EDR)\n", 25_000_000_000, 1),
        ("10 Gb/sec (4X)\n", 10_000_000_000, 4),
    ] {
        let root = port("mlx5_0", &[("rate", text), ("state", "4: ACTIVE\n")]);
        let out = gather(root.path());
        assert_eq!(value(&out, "mlx5_0/1", Signal::RateBps), Some(bps));
        assert_eq!(value(&out, "mlx5_0/1", Signal::Lanes), Some(lanes));
    }
}

#[test]
fn a_port_in_init_is_not_up_although_its_link_is() {
    let root = port(
        "mlx5_0",
        &[
            ("state", "2: INIT\n"),
            ("phys_state", "5: LinkUp\n"),
            ("rate", "400 Gb/sec (4X NDR)\n"),
        ],
    );
    let out = gather(root.path());
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(0));
    assert_eq!(
        value(&out, "mlx5_0/1", Signal::RateBps),
        Some(400_000_000_000)
    );
    assert_eq!(info(&out, "mlx5_0/1", "state"), Some("INIT"));
    assert_eq!(info(&out, "mlx5_0/1", "phys_state"), Some("LinkUp"));
}

#[test]
fn a_counter_of_all_ones_is_one_that_the_device_does_not_have() {
    let root = port(
        "ionic_0",
        &[
            ("hw_counters/tx_rdma_retx_pkts", "18446744073709551615\n"),
            ("hw_counters/rx_rdma_cnp_pkts", "4\n"),
        ],
    );
    let out = gather(root.path());
    assert_eq!(value(&out, "ionic_0/1", Signal::Retransmits), None);
    assert_eq!(value(&out, "ionic_0/1", Signal::CnpRx), Some(4));
}
