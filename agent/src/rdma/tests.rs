use super::*;
use crate::source::ColumnKey;
use std::fs;
use weir_agent_core::counter::Overflow;
use weir_wire::signal::{Entity, Signal};

fn key(entity: &str, signal: Signal) -> ColumnKey {
    ColumnKey {
        kind: Entity::Rdma,
        entity: entity.into(),
        signal,
        index: None,
    }
}

fn value(gathered: &Gathered, entity: &str, signal: Signal) -> Option<u64> {
    gathered.get(Entity::Rdma, entity, signal)
}

fn read(class: &Path) -> Gathered {
    let mut rdma = Rdma::new(Path::new("/nonexistent"), &[]);
    rdma.class = class.to_owned();
    let mut out = Gathered::default();
    rdma.poll(Duration::from_secs(1), &mut out).unwrap();
    out
}

/// A sysfs with one device of the given files below it.
fn sysfs_with(device: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = root.path().join("class/infiniband").join(device).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn a_mixed_node_reads_as_each_driver_means_it() {
    let Some(fixtures) = crate::testing::fixtures("sysfs/procfs-mixed/class/infiniband") else {
        return;
    };
    let out = read(&fixtures);
    let words =
        fs::read_to_string(fixtures.join("mlx4_0/ports/1/counters/port_xmit_data")).unwrap();
    let words: u64 = words.trim().parse().unwrap();
    assert_eq!(value(&out, "mlx4_0/1", Signal::TxBytes), Some(words * 4));
    assert_eq!(
        value(&out, "hfi1_0/1", Signal::RateBps),
        Some(100_000_000_000)
    );
    assert_eq!(value(&out, "mlx4_0/2", Signal::LinkUp), Some(1));
    let symbol = out.columns[&key("mlx4_0/1", Signal::SymbolErrors)];
    assert_eq!((symbol.bits, symbol.overflow), (16, Overflow::Saturates));
}

#[test]
fn an_h100_node_reads_with_its_rates_and_no_cnps_in_infiniband_mode() {
    let Some(fixtures) =
        crate::testing::fixtures("sysfs/mlx5-h100-gpud/sys-class-infiniband-h100.0")
    else {
        return;
    };
    let out = read(&fixtures);
    let ports = out.info.iter().filter(|info| info.kind == Entity::Rdma);
    assert_eq!(ports.count(), 9);
    assert_eq!(
        value(&out, "mlx5_0/1", Signal::RateBps),
        Some(400_000_000_000)
    );
    assert_eq!(value(&out, "mlx5_0/1", Signal::Lanes), Some(4));
    assert_eq!(value(&out, "mlx5_0/1", Signal::CnpTx), None);
    assert!(value(&out, "mlx5_0/1", Signal::OutOfSequence).is_some());
    assert!(out.raw.iter().any(|raw| &*raw.name == "rx_read_requests"));
}

#[test]
fn a_renamed_efa_is_known_by_its_counters_and_counts_bytes() {
    let Some(fixtures) = crate::testing::fixtures("sysfs/efa-p4d-aws/class/infiniband") else {
        return;
    };
    let out = read(&fixtures);
    let file = fixtures.join("rdmap16s27/ports/1/hw_counters/tx_bytes");
    let bytes = fs::read_to_string(file).unwrap().trim().parse().ok();
    assert_eq!(value(&out, "rdmap16s27/1", Signal::TxBytes), bytes);
    assert_eq!(
        value(&out, "rdmap16s27/1", Signal::LinkUp),
        None,
        "it has no state file"
    );
}

#[test]
fn a_congested_roce_port_shows_marks_and_notifications() {
    let Some(fixtures) = crate::testing::fixtures("sysfs/mlx5-roce-cnp-snippet/class/infiniband")
    else {
        return;
    };
    let out = read(&fixtures);
    let marked = value(&out, "mlx5_bond_0/1", Signal::EcnMarkedRx).unwrap();
    let sent = value(&out, "mlx5_bond_0/1", Signal::CnpTx).unwrap();
    assert!(
        marked > 20_000_000_000 && sent > 1_000_000_000,
        "{marked} {sent}"
    );
}

#[test]
fn texts_in_the_place_of_counters_are_absent() {
    let Some(fixtures) = crate::testing::fixtures("sysfs/node_exporter") else {
        return;
    };
    let class = ["class/infiniband", "infiniband", "sys/class/infiniband"]
        .map(|tail| fixtures.join(tail))
        .into_iter()
        .find(|dir| dir.is_dir())
        .unwrap_or(fixtures);
    let out = read(&class);
    assert!(
        out.info
            .iter()
            .any(|info| info.entity.starts_with("i40iw0"))
    );
    let of_i40iw = out.columns.keys().filter(|key| key.entity == "i40iw0/1");
    assert!(
        of_i40iw
            .into_iter()
            .all(|key| key.signal != Signal::TxBytes)
    );
}

#[test]
fn a_port_that_is_not_active_has_no_rate() {
    let root = sysfs_with(
        "mlx5_0",
        &[
            ("ports/1/state", "2: INIT\n"),
            ("ports/1/phys_state", "5: LinkUp\n"),
            ("ports/1/rate", "10 Gb/sec (4X SDR)\n"),
        ],
    );
    let out = read(&root.path().join("class/infiniband"));
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(0));
    assert_eq!(value(&out, "mlx5_0/1", Signal::RateBps), None);
    assert_eq!(out.info[0].labels["phys_state"], "LinkUp");
}

#[test]
fn counters_of_one_meaning_add_up() {
    let root = sysfs_with(
        "mlx5_0",
        &[
            ("ports/1/hw_counters/req_cqe_error", "2\n"),
            ("ports/1/hw_counters/resp_cqe_error", "3\n"),
        ],
    );
    let out = read(&root.path().join("class/infiniband"));
    assert_eq!(value(&out, "mlx5_0/1", Signal::QpErrors), Some(5));
}

#[test]
fn nothing_is_read_sooner_than_its_lifespan() {
    let file = "ports/1/hw_counters/np_cnp_sent";
    let root = sysfs_with(
        "mlx5_0",
        &[(file, "1\n"), ("ports/1/hw_counters/lifespan", "500\n")],
    );
    let mut rdma = Rdma::new(root.path(), &[]);
    let mut at = |ms| {
        let mut out = Gathered::default();
        rdma.poll(Duration::from_millis(ms), &mut out).unwrap();
        value(&out, "mlx5_0/1", Signal::CnpTx)
    };
    assert_eq!(at(1000), Some(1));
    fs::write(
        root.path().join("class/infiniband/mlx5_0").join(file),
        "9\n",
    )
    .unwrap();
    assert_eq!(at(1400), Some(1));
    assert_eq!(at(1500), Some(9));
}

#[test]
fn an_excluded_device_is_not_touched_and_one_that_fails_is_backed_off() {
    let root = sysfs_with("mlx5_0", &[("ports/1/state", "4: ACTIVE\n")]);
    let class = root.path().join("class/infiniband");
    fs::create_dir_all(class.join("mlx5_1")).unwrap();
    fs::create_dir_all(class.join("skip0")).unwrap();
    let mut rdma = Rdma::new(root.path(), &["skip*".to_owned()]);
    let mut out = Gathered::default();
    rdma.poll(Duration::from_secs(1), &mut out).unwrap();
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(1));
    let failed: Vec<&String> = rdma.failed.keys().collect();
    assert_eq!(failed, ["mlx5_1"]);
    fs::create_dir_all(class.join("mlx5_1/ports/1")).unwrap();
    fs::write(class.join("mlx5_1/ports/1/state"), "4: ACTIVE\n").unwrap();
    let mut out = Gathered::default();
    rdma.poll(Duration::from_secs(5), &mut out).unwrap();
    assert_eq!(value(&out, "mlx5_1/1", Signal::LinkUp), Some(1));
}

#[test]
fn a_node_without_verbs_devices_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    let mut rdma = Rdma::new(root.path(), &[]);
    rdma.poll(Duration::ZERO, &mut Gathered::default()).unwrap();
    assert!(!rdma.has_devices());
}
