//! What happens over time: devices that come, go and fail, and how often they are read.

use super::{Rdma, gather, options, port, raw, rdma, tree, value};
use crate::rdma::Judge;
use crate::rdma::{Files, Options};
use crate::source::Gathered;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_wire::signal::Signal;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn poll(rdma: &mut Rdma, now: Duration) -> (Result<(), String>, Gathered) {
    let mut out = Gathered::default();
    (rdma.poll(now, &mut out), out)
}

fn file(root: &Path, device: &str, path: &str) -> PathBuf {
    root.join("class/infiniband")
        .join(device)
        .join("ports/1")
        .join(path)
}

/// Makes every reading of the state of a port fail with EISDIR: the device is broken.
fn break_device(root: &Path, device: &str) {
    for name in ["state", "phys_state", "rate"] {
        let path = file(root, device, name);
        if path.is_file() {
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir_all(path).unwrap();
    }
}

fn mend_device(root: &Path, device: &str) {
    for name in ["state", "phys_state", "rate"] {
        fs::remove_dir(file(root, device, name)).unwrap();
    }
}

#[test]
fn without_devices_the_source_is_down_and_says_why() {
    let root = tempfile::tempdir().unwrap();
    let (result, out) = poll(&mut rdma(root.path()), Duration::ZERO);
    let reason = result.unwrap_err();
    assert!(
        reason.starts_with("no RDMA subsystem") && !reason.contains('\n'),
        "{reason}"
    );
    assert!(out.columns.is_empty() && out.raw.is_empty() && out.info.is_empty());
    fs::create_dir_all(root.path().join("class/infiniband")).unwrap();
    let (result, _) = poll(&mut rdma(root.path()), Duration::ZERO);
    assert!(result.unwrap_err().starts_with("no RDMA device"));
}

#[test]
fn hardware_counters_are_read_no_sooner_than_their_lifespan() {
    let root = port(
        "mlx5_0",
        &[
            ("hw_counters/lifespan", "25\n"),
            ("hw_counters/np_cnp_sent", "1\n"),
            ("counters/port_xmit_packets", "1\n"),
        ],
    );
    let mut rdma = rdma(root.path());
    let mut seen = |now, write: &str| {
        for path in ["hw_counters/np_cnp_sent", "counters/port_xmit_packets"] {
            fs::write(file(root.path(), "mlx5_0", path), write).unwrap();
        }
        let (_, out) = poll(&mut rdma, now);
        (
            value(&out, "mlx5_0/1", Signal::CnpTx),
            value(&out, "mlx5_0/1", Signal::TxPackets),
        )
    };
    assert_eq!(seen(MS(100), "1"), (Some(1), Some(1)));
    assert_eq!(seen(MS(124), "2"), (Some(1), Some(2)));
    assert_eq!(seen(MS(125), "3"), (Some(3), Some(3)));
    assert_eq!(seen(MS(149), "4"), (Some(3), Some(4)));
}

#[test]
fn a_new_listing_does_not_shorten_the_lifespan() {
    let root = port(
        "mlx5_0",
        &[
            ("hw_counters/lifespan", "10000\n"),
            ("hw_counters/np_cnp_sent", "1\n"),
        ],
    );
    let mut rdma = rdma(root.path());
    let mut seen = |now, write: &str| {
        fs::write(
            file(root.path(), "mlx5_0", "hw_counters/np_cnp_sent"),
            write,
        )
        .unwrap();
        value(&poll(&mut rdma, now).1, "mlx5_0/1", Signal::CnpTx)
    };
    assert_eq!(seen(MS(0), "1"), Some(1));
    assert_eq!(seen(MS(25_000), "2"), Some(2));
    assert_eq!(seen(MS(30_000), "3"), Some(2), "listed anew");
    assert_eq!(seen(MS(35_000), "4"), Some(4));
}

#[test]
fn without_a_lifespan_hardware_counters_have_the_kernels_default() {
    let root = port("mlx5_0", &[("hw_counters/np_cnp_sent", "1\n")]);
    let mut rdma = rdma(root.path());
    let mut seen = |now, write: &str| {
        fs::write(
            file(root.path(), "mlx5_0", "hw_counters/np_cnp_sent"),
            write,
        )
        .unwrap();
        value(&poll(&mut rdma, now).1, "mlx5_0/1", Signal::CnpTx)
    };
    assert_eq!(seen(MS(0), "1"), Some(1));
    assert_eq!(seen(MS(9), "2"), Some(1));
    assert_eq!(seen(MS(10), "3"), Some(3));
}

#[test]
fn a_device_that_fails_is_left_alone_longer_each_time_and_the_others_go_on() {
    let root = tree(&[
        ("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
        ("class/infiniband/mlx5_1/ports/1/state", "4: ACTIVE\n"),
    ]);
    break_device(root.path(), "mlx5_1");
    let mut rdma = rdma(root.path());
    let (result, out) = poll(&mut rdma, MS(0));
    assert_eq!(result, Ok(()));
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(1));
    assert_eq!(out.events.len(), 1);
    assert_eq!(out.events[0].subject, "mlx5_1");
    assert_eq!(
        rdma.failing().map(|(name, _)| name).collect::<Vec<_>>(),
        ["mlx5_1"]
    );
    // Mended at once, but not looked at before its time.
    mend_device(root.path(), "mlx5_1");
    fs::write(file(root.path(), "mlx5_1", "state"), "4: ACTIVE\n").unwrap();
    assert_eq!(
        value(&poll(&mut rdma, MS(999)).1, "mlx5_1/1", Signal::LinkUp),
        None
    );
    assert_eq!(
        value(&poll(&mut rdma, MS(1000)).1, "mlx5_1/1", Signal::LinkUp),
        Some(1)
    );
    assert_eq!(rdma.failing().count(), 0);
}

#[test]
fn the_wait_doubles_up_to_a_minute_and_is_reported_once() {
    let root = port("mlx5_0", &[("node_desc", "x")]);
    break_device(root.path(), "mlx5_0");
    let mut rdma = rdma(root.path());
    let mut events = 0;
    let mut tries = Vec::new();
    for now_s in 0..300 {
        let before = rdma
            .known
            .first()
            .and_then(|k| Some(k.failure.as_ref()?.until));
        let (result, out) = poll(&mut rdma, Duration::from_secs(now_s));
        assert!(result.unwrap_err().contains("mlx5_0"));
        events += out.events.len();
        let after = rdma
            .known
            .first()
            .and_then(|k| Some(k.failure.as_ref()?.until));
        if before != after {
            tries.push(now_s);
        }
    }
    assert_eq!(events, 1);
    assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
}

#[test]
fn a_few_files_that_cannot_be_read_do_not_cost_the_device() {
    let root = port("mlx5_0", &[("state", "4: ACTIVE\n")]);
    fs::create_dir(file(root.path(), "mlx5_0", "rate")).unwrap();
    fs::create_dir(file(root.path(), "mlx5_0", "phys_state")).unwrap();
    let out = gather(root.path());
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(1));
}

#[test]
fn devices_come_and_go_with_the_next_listing() {
    let root = port("mlx5_0", &[("state", "4: ACTIVE\n")]);
    let mut rdma = rdma(root.path());
    assert_eq!(poll(&mut rdma, MS(0)).1.info.len(), 1);
    let dir = root.path().join("class/infiniband");
    fs::create_dir_all(dir.join("mlx5_1/ports/1")).unwrap();
    assert_eq!(poll(&mut rdma, MS(29_999)).1.info.len(), 1);
    assert_eq!(poll(&mut rdma, MS(30_000)).1.info.len(), 2);
    fs::remove_dir_all(dir.join("mlx5_0")).unwrap();
    let (result, out) = poll(&mut rdma, MS(60_000));
    assert_eq!(result, Ok(()));
    assert_eq!(out.info.len(), 1);
    assert!(out.events.is_empty());
    assert_eq!(
        rdma.devices().map(|d| d.name.as_str()).collect::<Vec<_>>(),
        ["mlx5_1"]
    );
}

#[test]
fn a_change_of_state_is_seen_at_the_next_poll() {
    let root = port(
        "mlx5_0",
        &[("state", "4: ACTIVE\n"), ("rate", "400 Gb/sec (4X NDR)\n")],
    );
    let mut rdma = rdma(root.path());
    let (_, out) = poll(&mut rdma, MS(0));
    assert_eq!(value(&out, "mlx5_0/1", Signal::Lanes), Some(4));
    fs::write(file(root.path(), "mlx5_0", "state"), "1: DOWN\n").unwrap();
    let (_, out) = poll(&mut rdma, MS(1));
    assert_eq!(value(&out, "mlx5_0/1", Signal::LinkUp), Some(0));
    assert_eq!(value(&out, "mlx5_0/1", Signal::Lanes), None);
    assert_eq!(out.info[0].labels["state"], "DOWN");
    let port = &rdma.devices().next().unwrap().ports[0];
    assert_eq!(port.up(), Some(false));
}

#[test]
fn a_device_that_the_filter_keeps_out_is_not_touched() {
    let root = port("mlx5_0", &[("state", "4: ACTIVE\n")]);
    fs::write(root.path().join("class/infiniband/mlx5_1"), "not a device").unwrap();
    let mut rdma = Rdma::open(Options {
        exclude: vec!["mlx5_1*".into()],
        verbatim: true,
        ..options(root.path())
    });
    let (result, out) = poll(&mut rdma, MS(0));
    assert_eq!(result, Ok(()));
    assert!(out.events.is_empty());
    assert_eq!(rdma.failing().count(), 0);
}

#[test]
fn counters_of_a_device_as_a_whole_stay_raw() {
    let root = tree(&[
        ("class/infiniband/efa_0/ports/1/hw_counters/tx_bytes", "5"),
        ("class/infiniband/efa_0/hw_counters/submitted_cmds", "6"),
    ]);
    let out = gather(root.path());
    assert_eq!(raw(&out, "efa_0", "submitted_cmds"), Some(6));
    assert_eq!(value(&out, "efa_0/1", Signal::TxBytes), Some(5));
}

#[test]
fn more_counters_than_files_may_be_open_are_all_read() {
    let names: Vec<String> = (0..4)
        .flat_map(|d| (0..200).map(move |c| (d, c)))
        .map(|(d, c)| format!("class/infiniband/hfi1_{d}/ports/1/counters/c{c}"))
        .collect();
    let files: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "1\n")).collect();
    let root = tree(&files);
    let files = Files::default();
    let mut rdma = Rdma::open(Options {
        files: files.clone(),
        ..options(root.path())
    });
    for now in [MS(0), MS(1000), MS(40_000)] {
        assert_eq!(poll(&mut rdma, now).1.raw.len(), 800);
        assert_eq!(files.left(), 0);
    }
    drop(rdma);
    assert_eq!(files.left(), 512);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_content_of_the_files_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let root = port("mlx5_0", &[("x", "")]);
        for path in [
            "state", "phys_state", "rate", "link_layer", "gids/0", "gid_attrs/ndevs/0",
            "counters/link_downed", "hw_counters/lifespan", "hw_counters/out_of_buffer", "hw_counters/other",
        ] {
            let path = file(root.path(), "mlx5_0", path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &bytes).unwrap();
        }
        let out = gather(root.path());
        prop_assert_eq!(out.info.len(), 1);
    }
}

/// Eight ports of one board at these rates, in Gbit/s.
fn boards(rates: [u64; 8]) -> tempfile::TempDir {
    let root = tree(&[]);
    for (n, rate) in rates.into_iter().enumerate() {
        let device = format!("mlx5_{n}");
        let dir = root.path().join("class/infiniband").join(&device);
        fs::create_dir_all(dir.join("ports/1")).unwrap();
        fs::write(dir.join("board_id"), "MT_0000000838\n").unwrap();
        fs::write(file(root.path(), &device, "state"), "4: ACTIVE\n").unwrap();
        set_rate(root.path(), &device, rate);
    }
    root
}

fn set_rate(root: &Path, device: &str, gigabits: u64) {
    let rate = format!("{gigabits} Gb/sec (4X NDR)\n");
    fs::write(file(root, device, "rate"), rate).unwrap();
}

#[test]
fn a_link_that_comes_back_slower_is_told_as_a_value_and_as_an_event() {
    let root = boards([400; 8]);
    let mut rdma = rdma(root.path());
    let mut judge = Judge::default();
    let mut poll = |rdma: &mut Rdma, now| {
        let (result, mut out) = poll(rdma, now);
        judge.take(&mut out);
        (result, out)
    };
    let (_, out) = poll(&mut rdma, MS(0));
    assert_eq!(value(&out, "mlx5_3/1", Signal::LinkDowngraded), Some(0));
    assert_eq!(out.events, []);
    set_rate(root.path(), "mlx5_3", 200);
    let (_, out) = poll(&mut rdma, MS(1_000));
    let events: Vec<_> = out.events.iter().map(|e| (e.name, &*e.text)).collect();
    let words = "mlx5_3/1 runs at 200 of 400 Gb/s";
    assert_eq!(events, [("link_downgraded", words)]);
    assert_eq!(value(&out, "mlx5_3/1", Signal::LinkDowngraded), Some(1));
    let expected = value(&out, "mlx5_3/1", Signal::RateExpectedBps);
    assert_eq!(expected, Some(400_000_000_000));
    assert_eq!(value(&out, "mlx5_2/1", Signal::LinkDowngraded), Some(0));
    // A new listing forgets nothing; down is down, not slow.
    let (_, out) = poll(&mut rdma, MS(40_000));
    assert_eq!(out.events, []);
    fs::write(file(root.path(), "mlx5_3", "state"), "1: DOWN\n").unwrap();
    let (_, out) = poll(&mut rdma, MS(41_000));
    assert_eq!(value(&out, "mlx5_3/1", Signal::LinkDowngraded), None);
    fs::write(file(root.path(), "mlx5_3", "state"), "4: ACTIVE\n").unwrap();
    set_rate(root.path(), "mlx5_3", 400);
    let (_, out) = poll(&mut rdma, MS(42_000));
    assert_eq!(out.events.len(), 1);
    assert_eq!(out.events[0].name, "link_restored");
}

#[test]
fn a_link_slower_than_its_like_is_told_at_the_first_look_unless_it_should_be() {
    let root = boards([400, 400, 400, 400, 400, 400, 400, 200]);
    let downgraded = |expect: &[(&str, u64)]| {
        let mut rdma = Rdma::open(Options {
            expect: expect
                .iter()
                .map(|(p, bps)| ((*p).to_owned(), *bps))
                .collect(),
            ..options(root.path())
        });
        let (_, mut out) = poll(&mut rdma, MS(0));
        Judge::default().take(&mut out);
        assert_eq!(out.events, [], "nothing happened");
        value(&out, "mlx5_7/1", Signal::LinkDowngraded)
    };
    assert_eq!(downgraded(&[]), Some(1));
    assert_eq!(
        downgraded(&[("mlx5_7", 200_000_000_000), ("mlx5_*", 400_000_000_000)]),
        Some(0)
    );
    assert_eq!(downgraded(&[("mlx5_*", 400_000_000_000)]), Some(1));
}

#[test]
fn addresses_of_a_port_are_listed_with_their_types() {
    let root = port(
        "mlx5_0",
        &[
            ("state", "4: ACTIVE\n"),
            ("gids/0", "fe80:0000:0000:0000:0a00:00ff:fe00:0001\n"),
            ("gids/1", "fe80:0000:0000:0000:0a00:00ff:fe00:0001\n"),
            ("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n"),
            ("gids/3", "0000:0000:0000:0000:0000:ffff:0a00:0102\n"),
            ("gid_attrs/types/0", "IB/RoCE v1\n"),
            ("gid_attrs/types/1", "RoCE v2\n"),
            ("gid_attrs/types/3", "RoCE v2\n"),
            ("gid_attrs/ndevs/3", "eth2\n"),
        ],
    );
    let out = gather(root.path());
    let [of_port] = out.gids.as_slice() else {
        panic!("{:?}", out.gids)
    };
    assert_eq!(of_port.entity, "mlx5_0/1");
    let gids: Vec<_> = of_port
        .gids
        .iter()
        .map(|g| (g.index, g.kind.as_deref(), g.netdev.as_deref()))
        .collect();
    let expected = [
        (0, Some("IB/RoCE v1"), None),
        (1, Some("RoCE v2"), None),
        (3, Some("RoCE v2"), Some("eth2")),
    ];
    assert_eq!(gids, expected);
}

#[test]
fn the_pcie_link_of_a_port_without_an_interface_is_read() {
    let root = port("mlx5_0", &[("state", "4: ACTIVE\n")]);
    let device = root.path().join("class/infiniband/mlx5_0/device");
    fs::create_dir_all(&device).unwrap();
    for (name, text) in [
        ("current_link_width", "8\n"),
        ("max_link_width", "16\n"),
        ("current_link_speed", "32.0 GT/s PCIe\n"),
    ] {
        fs::write(device.join(name), text).unwrap();
    }
    let out = gather(root.path());
    let of = |signal| value(&out, "mlx5_0/1", signal);
    assert_eq!(
        (of(Signal::PcieWidth), of(Signal::PcieMaxWidth)),
        (Some(8), Some(16))
    );
    assert_eq!(
        (of(Signal::PcieGeneration), of(Signal::PcieMaxGeneration)),
        (Some(5), None)
    );
}
