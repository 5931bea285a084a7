use super::*;
use crate::bpf::sport::driver;
use proptest::prelude::*;

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
    assert!(!qp.older);
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

#[test]
fn a_pair_of_netlink_is_older_until_it_is_modified() {
    let found = Found {
        device_index: 2,
        device: "rxe1".into(),
        qp: Qp {
            lqpn: 17,
            rqpn: Some(18),
            kind: Some(2),
            state: Some(3),
            pid: Some(42),
            comm: None,
        },
    };
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
