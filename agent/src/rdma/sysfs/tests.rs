use super::*;
use crate::rdma::tests::tree;
use std::os::unix::fs::symlink;

fn port(state: &str, physical: &str, rate: &str) -> Port {
    Port {
        number: 1,
        state: text::state(state),
        physical: text::state(physical),
        rate: text::rate(rate),
        link_layer: None,
        gids: [].into(),
        netdev: None,
    }
}

const NDR: Expected = Expected {
    rate_bps: Some(400_000_000_000),
    lanes: Some(4),
};

#[test]
fn a_port_that_runs_as_expected_has_no_shortfall() {
    let port = port("4: ACTIVE", "5: LinkUp", "400 Gb/sec (4X NDR)");
    assert_eq!(port.shortfall(NDR), None);
}

#[test]
fn a_downgraded_port_says_by_how_much() {
    let port = port("4: ACTIVE", "5: LinkUp", "2.5 Gb/sec (1X SDR)");
    let words = port.shortfall(NDR);
    assert_eq!(
        words.as_deref(),
        Some("runs at 2.5 of 400 Gb/s and runs on 1 of 4 lanes")
    );
}

#[test]
fn a_port_in_init_is_physically_up_and_not_up() {
    let port = port("2: INIT", "5: LinkUp", "400 Gb/sec (4X NDR)");
    assert_eq!(port.up(), Some(false));
    assert_eq!(port.trained().map(|r| r.lanes), Some(4));
    let words = port.shortfall(NDR);
    assert_eq!(
        words.as_deref(),
        Some("is not up: state INIT, physical state LinkUp")
    );
    assert_eq!(port.shortfall(Expected::default()), None);
}

#[test]
fn a_port_that_is_down_has_no_rate_whatever_its_file_says() {
    let port = port("1: DOWN", "3: Disabled", "10 Gb/sec (4X SDR)");
    assert_eq!(port.trained(), None);
}

#[test]
fn a_port_that_says_nothing_is_neither_up_nor_down() {
    let port = port("", "", "");
    assert_eq!(port.up(), None);
    let words = port.shortfall(NDR);
    assert_eq!(words.as_deref(), Some("does not say what it runs at"));
}

#[test]
fn links_tell_the_driver_the_address_and_the_interface() {
    let root = tree(&[
        ("devices/pci0000:17/0000:18:00.0/net/ib0/dev_port", "0"),
        ("devices/pci0000:17/0000:18:00.0/net/ib1/dev_port", "1"),
        ("bus/pci/drivers/mlx5_core/uevent", ""),
        ("class/infiniband/ibp24s0/ports/2/state", "4: ACTIVE\n"),
        (
            "class/infiniband/ibp24s0/node_guid",
            "0000:0000:0000:0000\n",
        ),
        ("class/infiniband/ibp24s0/node_type", "1: CA\n"),
    ]);
    let pci = root.path().join("devices/pci0000:17/0000:18:00.0");
    symlink(
        root.path().join("bus/pci/drivers/mlx5_core"),
        pci.join("driver"),
    )
    .unwrap();
    symlink(&pci, root.path().join("class/infiniband/ibp24s0/device")).unwrap();
    let device = device(root.path(), "ibp24s0").unwrap();
    assert_eq!(device.driver, Driver::Mlx5);
    assert_eq!(device.pci_address.as_deref(), Some("0000:18:00.0"));
    assert_eq!(device.ports[0].netdev.as_deref(), Some("ib1"));
    assert_eq!(device.node_guid, None);
    assert_eq!(device.node_type.unwrap().name, "CA");
}

#[test]
fn soft_roce_is_not_taken_for_the_device_below() {
    let root = tree(&[
        ("bus/pci/drivers/mlx5_core/uevent", ""),
        ("class/infiniband/rocep24s0/parent", "eth0\n"),
        ("class/infiniband/rocep24s0/ports/1/state", "4: ACTIVE\n"),
        ("class/infiniband/rocep24s0/device/uevent", ""),
    ]);
    let dir = root.path().join("class/infiniband/rocep24s0");
    symlink(
        root.path().join("bus/pci/drivers/mlx5_core"),
        dir.join("device/driver"),
    )
    .unwrap();
    let device = device(root.path(), "rocep24s0").unwrap();
    assert_eq!(device.driver, Driver::Rxe);
}

#[test]
fn gids_are_bounded_and_empty_entries_left_out() {
    let dir = "class/infiniband/mlx5_0/ports/1";
    let mut files: Vec<(String, String)> = (0..40)
        .map(|i| (format!("{dir}/gids/{i}"), format!("fe80::{i:x}\n")))
        .collect();
    files[0].1 = "0000:0000:0000:0000:0000:0000:0000:0000\n".into();
    files.push((format!("{dir}/gid_attrs/types/1"), "RoCE v2\n".into()));
    files.push((format!("{dir}/gid_attrs/ndevs/1"), "eth2\n".into()));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(p, c)| (p.as_str(), c.as_str()))
        .collect();
    let root = tree(&files);
    let port = device(root.path(), "mlx5_0").unwrap().ports.remove(0);
    assert_eq!(port.gids.len(), GIDS_MAX);
    assert_eq!(port.gids[0].index, 1);
    assert_eq!(port.gids[0].kind.as_deref(), Some("RoCE v2"));
    assert_eq!(port.netdev.as_deref(), Some("eth2"));
}

#[test]
fn a_device_without_ports_is_an_error_of_its_own() {
    let root = tree(&[
        ("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
        ("class/infiniband/mlx5_1/node_guid", "x"),
    ]);
    let devices = devices(root.path(), &Filter::default()).unwrap();
    assert!(devices[0].1.is_ok());
    assert!(devices[1].1.is_err());
}

#[test]
fn a_device_that_is_filtered_out_is_not_touched() {
    // A loop of links would fail, were anything under it opened.
    let root = tree(&[("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n")]);
    let bad = root.path().join("class/infiniband/mlx5_1");
    symlink(&bad, &bad).unwrap();
    let filter = Filter {
        include: Vec::new(),
        exclude: vec!["mlx5_1".into()],
    };
    let devices = devices(root.path(), &filter).unwrap();
    assert_eq!(devices.len(), 1);
    assert!(devices[0].1.is_ok());
}
