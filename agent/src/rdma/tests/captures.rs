//! Trees of real machines.

use super::{column, fixtures, gather, info, raw, value};
use crate::source::Gathered;
use std::path::Path;
use weir_agent_core::counter::Overflow;
use weir_wire::signal::Signal;

/// No capture has two columns of a signal, raw counters twice, or a raw `lifespan`.
fn check_soundness(out: &Gathered) {
    let mut names: Vec<_> = out.raw.iter().map(|r| (&r.device, &r.name)).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(out.raw.iter().all(|r| r.name != "lifespan"));
    assert!(out.events.is_empty());
}

#[test]
fn omni_path_connect_x3_and_connect_x4() {
    let Some(root) = fixtures("procfs-mixed") else {
        return;
    };
    let out = gather(&root);
    check_soundness(&out);
    assert_eq!(
        value(&out, "hfi1_0/1", Signal::TxBytes),
        Some(273_558_326_543 * 4)
    );
    assert_eq!(value(&out, "hfi1_0/1", Signal::LinkUp), Some(1));
    assert_eq!(
        value(&out, "hfi1_0/1", Signal::RateBps),
        Some(100_000_000_000)
    );
    assert_eq!(info(&out, "hfi1_0/1", "driver"), Some("hfi1"));
    assert_eq!(value(&out, "mlx4_0/1", Signal::TxWait), Some(3599));
    assert_eq!(value(&out, "mlx4_0/2", Signal::TxWait), Some(3846));
    assert_eq!(
        value(&out, "mlx4_0/2", Signal::RxBytes),
        Some(2_460_436_784 * 4)
    );
    assert_eq!(value(&out, "mlx5_0/1", Signal::Lanes), Some(1));
    assert_eq!(
        value(&out, "mlx5_0/1", Signal::TxPackets),
        Some(10_907_922_116)
    );
    assert_eq!(value(&out, "mlx5_0/1", Signal::AckTimeouts), Some(131));
    assert_eq!(
        value(&out, "mlx5_0/1", Signal::AdaptiveRetransmits),
        Some(99)
    );
    assert_eq!(value(&out, "mlx5_0/1", Signal::CnpTx), None);
    assert_eq!(raw(&out, "mlx5_0/1", "resp_cqe_flush_error"), Some(4708));
    assert_eq!(raw(&out, "mlx5_0/1", "out_of_sequence"), None);
    assert_eq!(
        info(&out, "mlx5_0/1", "node_guid"),
        Some("0a7f:bc12:45ef:d23b")
    );
    assert_eq!(info(&out, "mlx5_0/1", "firmware"), Some("14.28.2006"));
}

#[test]
fn iwarp_without_counters_and_connect_x3_with_wide_ones() {
    let Some(root) = fixtures("node_exporter") else {
        return;
    };
    let mut out = gather(&root);
    crate::rdma::Judge::default().take(&mut out);
    check_soundness(&out);
    assert_eq!(value(&out, "i40iw0/1", Signal::LinkUp), Some(1));
    assert_eq!(
        value(&out, "i40iw0/1", Signal::RateBps),
        Some(10_000_000_000)
    );
    assert_eq!(
        out.columns
            .keys()
            .filter(|k| k.entity == "i40iw0/1")
            .count(),
        6,
        "state, rate and lanes, and what is expected of it"
    );
    assert!(out.raw.iter().all(|r| r.device != "i40iw0/1"));
    let wait = column(&out, "mlx4_0/1", Signal::TxWait).unwrap();
    assert_eq!(
        (wait.value, wait.bits, wait.overflow),
        (4_294_967_295, 32, Overflow::Saturates)
    );
    assert_eq!(
        value(&out, "mlx4_0/1", Signal::RxPackets),
        Some(6_825_908_347)
    );
    assert_eq!(
        value(&out, "mlx4_0/2", Signal::TxBytes),
        Some(3_733_440 * 4)
    );
    assert_eq!(value(&out, "mlx4_0/2", Signal::TxWait), None);
}

#[test]
fn a_node_of_eight_gpus_in_infiniband_mode() {
    let Some(capture) = fixtures("mlx5-h100-gpud") else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("class")).unwrap();
    link(
        &capture.join("sys-class-infiniband-h100.0"),
        &root.path().join("class/infiniband"),
    );
    let out = gather(root.path());
    check_soundness(&out);
    let up = out
        .columns
        .iter()
        .filter(|(k, r)| k.signal == Signal::LinkUp && r.value == 1);
    assert_eq!(up.count(), 9);
    let port = "mlx5_0/1";
    assert_eq!(
        value(&out, port, Signal::TxBytes),
        Some(230_442_669_431_839 * 4)
    );
    assert_eq!(value(&out, port, Signal::TxWait), Some(2_489_603_687));
    assert_eq!(value(&out, port, Signal::RxErrors), Some(14));
    assert_eq!(raw(&out, port, "excessive_buffer_overrun_errors"), Some(15));
    assert_eq!(value(&out, port, Signal::EcnMarkedRx), None);
    assert_eq!(value(&out, "mlx5_1/1", Signal::LinkDowns), Some(255));
    assert_eq!(
        value(&out, "mlx5_bond_0/1", Signal::RateBps),
        Some(200_000_000_000)
    );
    assert_eq!(value(&out, "mlx5_bond_0/1", Signal::Lanes), Some(2));
    assert_eq!(info(&out, "mlx5_bond_0/1", "link_layer"), Some("Ethernet"));
}

#[test]
fn elastic_fabric_adapters_have_hardware_counters_only() {
    let Some(root) = fixtures("efa-p4d-aws") else {
        return;
    };
    let out = gather(&root);
    check_soundness(&out);
    let port = "rdmap16s27/1";
    assert_eq!(value(&out, port, Signal::TxBytes), Some(1_047_398_149_094));
    assert_eq!(value(&out, port, Signal::RxPackets), Some(6_657_585));
    assert_eq!(value(&out, port, Signal::QpErrors), Some(0));
    assert_eq!(raw(&out, port, "send_wrs"), Some(3_577_494));
    for absent in [
        Signal::LinkUp,
        Signal::RateBps,
        Signal::Lanes,
        Signal::LinkDowns,
        Signal::CnpTx,
    ] {
        assert_eq!(value(&out, port, absent), None, "{absent:?}");
    }
    assert_eq!(info(&out, port, "driver"), Some("efa"));
    assert_eq!(info(&out, port, "state"), None);
}

#[test]
fn a_congested_bond() {
    let Some(root) = fixtures("mlx5-roce-cnp-snippet") else {
        return;
    };
    let out = gather(&root);
    check_soundness(&out);
    let port = "mlx5_bond_0/1";
    let marked = column(&out, port, Signal::EcnMarkedRx).unwrap();
    assert_eq!((marked.value, marked.bits), (21_278_189_006, 64));
    assert_eq!(value(&out, port, Signal::CnpTx), Some(1_052_612_505));
    assert_eq!(value(&out, port, Signal::CnpRx), Some(0));
    let gaps = column(&out, port, Signal::OutOfSequence).unwrap();
    assert_eq!(
        (gaps.value, gaps.bits, gaps.overflow),
        (1_811_101, 32, Overflow::Wraps)
    );
    assert_eq!(raw(&out, port, "resp_cqe_error"), Some(3_293_504));
}

fn link(to: &Path, from: &Path) {
    std::os::unix::fs::symlink(std::fs::canonicalize(to).unwrap(), from).unwrap();
}
