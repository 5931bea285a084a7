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
    let mut ingest = Ingest::new(&v1::Hello::default(), &mut Layouts::default()).unwrap();
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
    let mut ingest = Ingest::new(&v1::Hello::default(), &mut Layouts::default()).unwrap();
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

/// The sample of a frame with these columns, if there is one.
fn sample(ingest: &mut Ingest, frame: v1::Frame) -> Option<io::NodeSample> {
    match ingest.frame(frame).unwrap() {
        Ingested::Input(Input::SampleReported { sample, .. }) => Some(sample),
        Ingested::Input(_) | Ingested::Resync | Ingested::Sources(_) | Ingested::Nothing => None,
    }
}

fn schema(epoch: u32, columns: &[(&str, Signal, v1::Entity)]) -> v1::Schema {
    let column = |(port, signal, entity): &(&str, Signal, v1::Entity)| v1::Column {
        port: (*port).to_owned(),
        signal: signal.number(),
        entity: (*entity).into(),
        index: None,
    };
    v1::Schema {
        epoch,
        columns: columns.iter().map(column).collect(),
    }
}

const DOWNS: (&str, Signal, v1::Entity) = ("mlx5_0/1", Signal::LinkDowns, v1::Entity::Rdma);
const HEAT: (&str, Signal, v1::Entity) = ("0000:1a:00.0", Signal::GpuTemperature, v1::Entity::Gpu);
const BYTES: (&str, Signal, v1::Entity) = ("eth0", Signal::TxBytes, v1::Entity::Port);

/// A stream, its agent's state, and the number of the next frame.
struct Stream {
    ingest: Ingest,
    layouts: Layouts,
    sent: Columns,
    epoch: u32,
    seq: u64,
}

impl Stream {
    fn new(columns: &[(&str, Signal, v1::Entity)]) -> Stream {
        let (hello, mut layouts) = (v1::Hello::default(), Layouts::default());
        let mut stream = Stream {
            ingest: Ingest::new(&hello, &mut layouts).unwrap(),
            layouts,
            sent: Columns::default(),
            epoch: 0,
            seq: 0,
        };
        stream.schema(columns);
        stream
    }

    fn schema(&mut self, columns: &[(&str, Signal, v1::Entity)]) {
        self.epoch += 1;
        let schema = schema(self.epoch, columns);
        self.ingest.schema(&schema, &mut self.layouts).unwrap();
        self.sent = Columns::new(columns.len());
    }

    fn frame(&mut self, key: bool, values: &[Option<u64>], resets: &[u32]) -> v1::Frame {
        if key {
            self.sent.clear();
        }
        let mut columns = Vec::new();
        self.sent.encode(values, &mut columns);
        self.seq += 1;
        v1::Frame {
            seq: self.seq,
            at_us: self.seq * 1_000_000,
            schema_epoch: self.epoch,
            key,
            columns,
            resets: resets.to_vec(),
            ..v1::Frame::default()
        }
    }

    /// The core's values after a frame.
    fn values(&mut self, key: bool, values: &[Option<u64>], resets: &[u32]) -> Vec<Option<u64>> {
        let frame = self.frame(key, values, resets);
        sample(&mut self.ingest, frame).unwrap().values
    }
}

#[test]
fn counters_go_on_over_a_new_schema_and_resets_are_gaps() {
    let mut stream = Stream::new(&[DOWNS, HEAT]);
    let first = stream.values(true, &[Some(3), Some(60)], &[]);
    assert_eq!(first, [None, Some(60)]);
    assert_eq!(stream.values(false, &[Some(5), None], &[]), [Some(2), None]);
    stream.schema(&[HEAT, DOWNS]);
    let next = stream.values(true, &[Some(61), Some(6)], &[]);
    assert_eq!(next, [Some(61), Some(1)]);
    assert_eq!(stream.values(false, &[None, Some(2)], &[]), [None, None]);
    assert_eq!(stream.values(false, &[None, Some(9)], &[1]), [None, None]);
    assert_eq!(
        stream.values(false, &[None, Some(10)], &[]),
        [None, Some(1)]
    );
    assert_eq!(
        stream.values(false, &[None, Some(10)], &[]),
        [None, Some(0)]
    );
}

#[test]
fn counters_go_on_over_lost_frames_and_begin_anew_with_a_segment() {
    let mut stream = Stream::new(&[DOWNS, BYTES]);
    assert_eq!(
        stream.values(true, &[Some(1), Some(100)], &[]),
        [None, None]
    );
    stream.frame(false, &[Some(2), Some(200)], &[]);
    let late = stream.frame(false, &[Some(3), Some(300)], &[]);
    assert!(matches!(stream.ingest.frame(late), Ok(Ingested::Resync)));
    let key = stream.frame(true, &[Some(7), Some(700)], &[]);
    let told = sample(&mut stream.ingest, key).unwrap();
    assert_eq!(told.values, [Some(6), Some(600)]);
    assert_eq!(told.ports[0].tx_bytes, Some(600));
    stream.ingest.key_due();
    stream.ingest.segment_begun();
    let key = stream.frame(true, &[Some(9), Some(900)], &[]);
    let told = sample(&mut stream.ingest, key).unwrap();
    assert_eq!((told.values, told.ports[0].tx_bytes), (vec![None; 2], None));
}

#[test]
fn nodes_of_one_kind_share_a_layout_for_as_long_as_one_has_it() {
    let mut layouts = Layouts::default();
    let one = layouts.of(&schema(1, &[DOWNS, HEAT]));
    let other = layouts.of(&schema(7, &[DOWNS, HEAT]));
    assert!(Arc::ptr_eq(&one, &other));
    assert!(!Arc::ptr_eq(&one, &layouts.of(&schema(1, &[HEAT, DOWNS]))));
}

/// A frame that opens flows.
fn opens(seq: u64, key: bool, flows_opened: Vec<v1::FlowOpened>) -> v1::Frame {
    v1::Frame {
        seq,
        key,
        flows_opened,
        ..v1::Frame::default()
    }
}

#[test]
fn flows_that_closed_in_lost_frames_are_forgotten_with_the_next_key_frame() {
    let mut ingest = Ingest::new(&v1::Hello::default(), &mut Layouts::default()).unwrap();
    for n in 0..4u32 {
        let opened = (0..30_000).map(|i| opened(n * 30_000 + i, i + 1)).collect();
        ingest
            .frame(opens(u64::from(n) * 10 + 1, true, opened))
            .unwrap();
        assert_eq!(ingest.flows.len(), 30_000);
    }
}

#[test]
fn flows_without_a_path_are_bounded_too() {
    let mut ingest = Ingest::new(&v1::Hello::default(), &mut Layouts::default()).unwrap();
    let without = |n: u32| {
        let id = |i| n * 30_000 + i;
        (0..30_000)
            .map(|i| v1::FlowOpened {
                src_ipv4: 0,
                ..opened(id(i), 1)
            })
            .collect()
    };
    ingest.frame(opens(1, true, without(0))).unwrap();
    ingest.frame(opens(2, false, without(1))).unwrap();
    let third = ingest.frame(opens(3, false, without(2)));
    assert!(matches!(third, Err(IngestError::TooManyFlows)));
}

#[test]
fn absurd_numbers_of_one_flow_add_up_to_the_most() {
    let mut ingest = Ingest::new(&v1::Hello::default(), &mut Layouts::default()).unwrap();
    let mut rows = FlowRows::default();
    [1, 2].into_iter().for_each(|id| rows.announce(id));
    let frame = v1::Frame {
        flows: rows.encode([1, 2].map(|id| (id, [u64::MAX, 0, 0, 0]))),
        ..opens(1, true, vec![opened(1, 9), opened(2, 9)])
    };
    let told = sample(&mut ingest, frame).unwrap();
    assert_eq!(told.flows[0].bytes, u64::MAX);
}
