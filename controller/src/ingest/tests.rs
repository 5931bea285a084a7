use super::*;

fn opened(id: u32, src_port: u32) -> v1::FlowOpened {
    v1::FlowOpened {
        id,
        src_ipv4: 0x0a00_0102,
        dst_ipv4: 0x0a00_0302,
        src_port,
        dst_port: 4791,
        job: "slurm:77".into(),
        pid: 5,
        kind: v1::FlowKind::Roce.into(),
        roce: Some(v1::RoceFlow::default()),
    }
}

#[test]
fn queue_pairs_are_flows_by_their_ends_and_one_without_a_source_port_is_none() {
    let mut ingest = Ingest::new(&v1::Hello::default()).unwrap();
    let rows = [1, 2, 3].map(|id| (id, [100 * u64::from(id), 0, 0, 1]));
    let frame = v1::Frame {
        seq: 1,
        key: true,
        flows_opened: vec![opened(1, 0xc132), opened(2, 0xc132), opened(3, 0)],
        flows: FlowRows::default().encode(rows),
        roce: RoceRows::default().encode([(2, [5, 1]), (3, [7, 7])]),
        ..v1::Frame::default()
    };
    let ingested = ingest.frame(frame).unwrap();
    let Ingested::Input(Input::SampleReported { sample, .. }) = ingested else {
        panic!("{ingested:?}");
    };
    let [flow] = sample.flows.as_slice() else {
        panic!("{:?}", sample.flows);
    };
    assert_eq!(flow.key.to_string(), "10.0.1.2:49458 -> 10.0.3.2:4791");
    assert_eq!((flow.bytes, flow.delivered_ce), (300, 2));
    assert_eq!((flow.received_ce, flow.cnps_sent), (5, 1));
    assert_eq!(flow.job, Some(JobId::new("slurm:77")));
}

#[test]
fn an_interval_that_an_agent_may_have_is_no_gap() {
    let mut ingest = Ingest::new(&v1::Hello::default()).unwrap();
    let mut elapsed = |seq: u64, at: Duration| {
        let frame = v1::Frame {
            seq,
            at_us: u64::try_from(at.as_micros()).unwrap(),
            key: true,
            ..v1::Frame::default()
        };
        let ingested = ingest.frame(frame).unwrap();
        let Ingested::Input(Input::SampleReported { sample, .. }) = ingested else {
            panic!("{ingested:?}");
        };
        sample.elapsed
    };
    let late = SAMPLE_INTERVAL_MAX + Duration::from_secs(1);
    assert_eq!(elapsed(1, Duration::ZERO), None);
    assert_eq!(elapsed(2, late), Some(late));
    assert_eq!(elapsed(3, late + GAP + Duration::from_millis(1)), None);
}
