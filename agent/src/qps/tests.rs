use super::*;
use crate::bpf::RoceSample;
use crate::testing::pair;

fn packets(dest_qpn: u32, ingress: bool, bytes: u64) -> RoceSample {
    let qp = pair(17).qp;
    RoceSample {
        ifindex: 3,
        ingress,
        src: qp.local_gid.unwrap(),
        dst: qp.peer_gid.unwrap(),
        dest_qpn,
        src_port: 0xc132,
        counts: RoceTotal {
            bytes,
            packets: 2,
            ce: 0,
            cnps: 0,
        },
    }
}

#[test]
fn packets_that_leave_belong_to_the_pair_that_sent_them() {
    let pairs = [pair(17), pair(18)];
    let mut elsewhere = packets(18, false, 1000);
    elsewhere.src_port = 1;
    let seen = [
        packets(18, false, 100),
        packets(19, false, 10),
        packets(18, true, 5000),
        packets(77, false, 7000),
        elsewhere,
    ];
    let seen = super::seen(&pairs, &seen);
    let bytes: Vec<_> = seen
        .iter()
        .map(|(id, seen)| (*id, seen.sent.bytes))
        .collect();
    assert_eq!(bytes, [((0, 17), 100), ((0, 18), 10)]);
}

#[test]
fn packets_that_come_in_belong_to_the_pair_that_they_are_for() {
    let qp = pair(17).qp;
    let back = |dest_qpn, counts| RoceSample {
        src: qp.peer_gid.unwrap(),
        dst: qp.local_gid.unwrap(),
        // The peer's, which this end does not know.
        src_port: 0xd001,
        counts,
        ..packets(dest_qpn, true, 0)
    };
    let marked = RoceTotal {
        bytes: 4000,
        packets: 4,
        ce: 3,
        cnps: 1,
    };
    let seen = [
        back(17, marked),
        back(18, RoceTotal::default()),
        back(77, marked),
        packets(17, true, 5000),
    ];
    let seen = super::seen(&[pair(17), pair(18)], &seen);
    assert_eq!(seen[&(0, 17)].received, marked);
    assert_eq!(seen[&(0, 17)].sent, RoceTotal::default());
    assert_eq!((seen.len(), seen[&(0, 18)].received.ce), (2, 0));
}

#[test]
fn a_row_says_what_is_known() {
    let mut older = pair(30);
    older.qp = QpSample {
        local_gid: None,
        peer_gid: None,
        flow_label: None,
        traffic_class: None,
        src_port: None,
        older: true,
        ..older.qp
    };
    older.job.clear();
    let sent = RoceTotal {
        packets: 1,
        ..RoceTotal::default()
    };
    let seen = Seen {
        sent,
        ..Seen::default()
    };
    let rows = rows(&[pair(17), older], &BTreeMap::from([((0, 17), seen)]));
    let [first, second] = rows.as_slice() else {
        panic!("{rows:?}")
    };
    assert_eq!(first.local, "10.0.1.2".parse().ok());
    assert_eq!(
        (first.dscp, first.job.as_deref()),
        (Some(26), Some("slurm:77"))
    );
    assert!(first.sent.is_some() && second.sent.is_none());
    assert_eq!(
        (second.local, second.dscp, &second.job),
        (None, None, &None)
    );
    assert_eq!(second.peer_qpn, Some(31));
    let table = table(&rows);
    let line = |qpn: &str| table.lines().find(|l| l.contains(qpn)).unwrap().to_owned();
    assert!(line(" 17 ").contains("10.0.3.2") && line(" 17 ").contains("49458"));
    assert!(line(" 30 ").contains(" - "));
    assert!(line(" 17 ").contains("computed") && !line(" 30 ").contains("computed"));
    let mut predicted = pair(17);
    predicted.qp.src_port_predicted = true;
    let rows = super::rows(&[predicted], &BTreeMap::new());
    assert!(super::table(&rows).contains("predicted"));
}

#[test]
fn the_public_page_counts_pairs_and_names_no_process() {
    let sample = crate::sample::Sample {
        qps: std::sync::Arc::new(vec![pair(17), pair(18)]),
        ..Default::default()
    };
    let mut page = crate::metrics::Page::default();
    page.sampled(
        std::sync::Arc::new(sample),
        crate::collect::Extras::default(),
    );
    let text = crate::metrics::render(&page);
    let lines = text.lines().filter(|line| line.contains("rdma_qps{"));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(
        lines,
        [r#"weir_rdma_qps{device="rxe1",type="RC",state="RTS"} 2"#]
    );
    assert!(!text.contains("pid=") && !text.contains("slurm:77"));
}

#[test]
fn pairs_are_counted_by_device_type_and_state() {
    let mut datagrams = pair(19);
    datagrams.qp.kind = QpKind::Ud;
    let pairs = [pair(17), pair(18), datagrams];
    let counts = count(&pairs);
    assert_eq!(counts[&("rxe1", QpKind::Rc, QpState::ReadyToSend)], 2);
    assert_eq!(counts[&("rxe1", QpKind::Ud, QpState::ReadyToSend)], 1);
}

#[test]
fn an_answer_is_read_and_a_refusal_is_told() {
    let rows = rows(&[pair(17)], &BTreeMap::new());
    let json = serde_json::to_string(&rows).unwrap();
    let answer = format!("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n{json}");
    assert_eq!(body(answer.as_bytes()).unwrap(), rows);
    for bad in [
        "HTTP/1.0 403 Forbidden\r\n\r\n",
        "nothing",
        "HTTP/1.0 200 OK\r\n\r\n[{",
    ] {
        assert!(body(bad.as_bytes()).is_err(), "{bad}");
    }
    let refused = body(b"HTTP/1.0 403 Forbidden\r\n\r\n").unwrap_err();
    assert!(refused.to_string().contains("403"));
}
