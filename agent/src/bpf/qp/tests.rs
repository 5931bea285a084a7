use super::listing::Answer;
use super::*;
use crate::bpf::sport::driver;
use crate::rdma::netlink::Qp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use weir_ebpf_abi::qp_state;

const NOW: (u32, u32) = (6, 1);
const KEY: QpKey = QpKey { device: 2, qpn: 17 };

fn record() -> QpRecord {
    let mut record = QpRecord {
        driver: driver::RXE,
        peer_qpn: 18,
        pid: 42,
        start_ns: 7,
        kind: 2,
        state: qp_state::RTS,
        port: 1,
        traffic_class: 0x6a,
        gid_type: GID_ROCE_V2,
        known: qp_known::AV | qp_known::PEER,
        modified: 3,
        ..QpRecord::NEW
    };
    record.device_name[..4].copy_from_slice(b"rxe1");
    record.peer_gid = "::ffff:10.0.3.2".parse::<Ipv6Addr>().unwrap().octets();
    record
}

#[test]
fn a_connected_pair_has_a_peer_and_a_source_port() {
    let qp = qp_sample(&KEY, &record(), NOW);
    assert_eq!((qp.device.as_str(), qp.qpn, qp.port), ("rxe1", 17, Some(1)));
    assert_eq!((qp.kind, qp.state), (QpKind::Rc, QpState::ReadyToSend));
    assert_eq!(qp.peer_gid, "::ffff:10.0.3.2".parse().ok());
    assert_eq!((qp.pid, qp.process_start_ns), (Some(42), Some(7)));
    // 17 * 18, by the numbers alone.
    assert_eq!(qp.src_port, Some(0xc000 | 306));
    assert!(!qp.older && !qp.src_port_predicted);
    // There the firmware has the last word.
    let mlx5 = QpRecord {
        driver: driver::MLX5,
        ..record()
    };
    let qp = qp_sample(&KEY, &mlx5, NOW);
    assert_eq!(
        (qp.src_port, qp.src_port_predicted),
        (Some(0xc000 | 306), true)
    );
    let alone = QpRecord { known: 0, ..mlx5 };
    assert!(!qp_sample(&KEY, &alone, NOW).src_port_predicted);
}

#[test]
fn what_is_not_known_is_absent() {
    // Brought up, not connected: the kernel has set neither address nor peer.
    let fresh = QpRecord {
        known: 0,
        pid: 0,
        start_ns: 0,
        ..record()
    };
    let qp = qp_sample(&KEY, &fresh, NOW);
    assert_eq!((qp.local_gid, qp.peer_gid, qp.peer_qpn), (None, None, None));
    assert_eq!((qp.flow_label, qp.traffic_class), (None, None));
    assert_eq!((qp.src_port, qp.pid), (None, None));
    // InfiniBand has no UDP, and datagrams no peer to compute a port from.
    for other in [
        QpRecord {
            gid_type: 0,
            ..record()
        },
        QpRecord {
            kind: 4,
            ..record()
        },
    ] {
        assert_eq!(qp_sample(&KEY, &other, NOW).src_port, None);
    }
}

fn found(device_index: u32, lqpn: u32) -> Found {
    Found {
        device_index,
        device: "rxe1".into(),
        qp: Qp {
            lqpn,
            rqpn: Some(18),
            kind: Some(2),
            state: Some(3),
            pid: Some(42),
            comm: None,
        },
    }
}

#[test]
fn a_device_that_does_not_answer_keeps_its_pairs() {
    let key = |device, qpn| QpKey { device, qpn };
    let listing = Listing {
        found: vec![found(1, 17)],
        failed: [(2, "rxe2: Input/output error".to_owned())].into(),
    };
    let entered = vec![key(1, 17), key(1, 18), key(2, 17), key(3, 17)];
    assert_eq!(gone(entered, &listing), [key(1, 18), key(3, 17)]);

    let all = Listing {
        found: vec![found(1, 17), found(1, 18), found(2, 17), found(3, 17)],
        failed: BTreeMap::new(),
    };
    let former = table(&[], &all, NOW);
    let left = table(&former, &listing, NOW);
    let left: Vec<(u32, u32)> = left.iter().map(|qp| (qp.device_index, qp.qpn)).collect();
    assert_eq!(left, [(1, 17), (2, 17)]);
}

#[test]
fn a_listing_that_failed_is_said_and_asked_again() {
    fn fails() -> Answer {
        Err("no memory".to_owned())
    }
    fn holds() -> Answer {
        Ok(Listing::default())
    }
    let mut qps = QueuePairs::new(Err("no programs".to_owned()));
    // As if its probes were attached.
    qps.origin = Origin::Probes(Vec::new());
    qps.dump.read = fails;
    qps.ask(Asked::Older);
    let started = Instant::now();
    let poll = |qps: &mut QueuePairs, now: Instant, done: fn(&QueuePairs) -> bool| {
        while !done(qps) {
            qps.poll(now, &mut BpfSample::default());
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
    };
    poll(&mut qps, started, |qps| qps.dump.failure.is_some());
    let state = qps.state();
    assert!(state.up && state.reason.is_some_and(|why| why.contains("no memory")));
    // Not at once.
    qps.poll(started, &mut BpfSample::default());
    assert!(!qps.dump.waiting);
    qps.dump.read = holds;
    qps.dump.channels = None;
    let later = started + 2 * DUMP_EVERY;
    poll(&mut qps, later, |qps| qps.dump.failure.is_none());
    assert_eq!(qps.state().reason, None);
}

#[test]
fn a_pair_of_netlink_is_older_until_it_is_modified() {
    let found = found(2, 17);
    assert_eq!(found.key(), KEY);
    let qp = qp_sample(&found.key(), &found.record(), NOW);
    assert!(qp.older && qp.peer_gid.is_none() && qp.src_port.is_none());
    assert_eq!((qp.peer_qpn, qp.pid), (Some(18), Some(42)));
    let modified = QpRecord {
        modified: 1,
        ..found.record()
    };
    assert!(!qp_sample(&KEY, &modified, NOW).older);
}

#[test]
fn without_the_subsystem_the_source_is_down_in_one_line() {
    if fs::metadata(CLASS).is_ok() {
        return super::super::tests::rig::skipped("this machine has RDMA");
    }
    let mut qps = QueuePairs::new(Err("no programs".to_owned()));
    assert!(!qps.follow(None));
    let mut sample = BpfSample::default();
    qps.poll(Instant::now(), &mut sample);
    let state = qps.state();
    assert!(!state.up && sample.qps.is_empty());
    let reason = state.reason.expect("it is down");
    assert!(
        reason.contains("ib_core") && reason.lines().count() == 1,
        "{reason}"
    );
}

/// The kernel here has no kprobes, but its verifier judges the programs all the same.
#[test]
fn the_verifier_lets_the_probes_pass() {
    use super::super::{
        BpfOptions,
        load::{Globals, load_object},
        tests::rig,
    };
    if !rig::is_root() {
        return;
    }
    let options = BpfOptions {
        qp: true,
        ..BpfOptions::default()
    };
    let mut ebpf = match load_object(&options, &Globals::default()) {
        Ok(ebpf) => ebpf,
        Err(error) => return rig::skipped(&error.to_string()),
    };
    for (name, _) in PROBES {
        let probe: &mut KProbe = program(&mut ebpf, name).expect(name);
        if let Err(error) = probe.load() {
            panic!("{name}: {}", explain(&error));
        }
    }
}

proptest! {
    #[test]
    fn any_record_is_readable(bytes in prop::collection::vec(any::<u8>(), size_of::<QpRecord>()), qpn in any::<u32>()) {
        let record: QpRecord = super::super::sys::read_record(&bytes).unwrap();
        let qp = qp_sample(&QpKey { device: 0, qpn }, &record, NOW);
        prop_assert_eq!(qp.peer_gid.is_some(), record.known & qp_known::AV != 0);
        prop_assert!(qp.src_port.is_none_or(|port| port >= 0xc000));
    }
}
