//! From samples to frames, pure: what changed since the controller last heard of it.

mod roce;

use crate::sample::{FlowEnds, FlowReading, PORT_SIGNALS, Sample, Series, micros};
use crate::source::ColumnKey;
use std::collections::{BTreeMap, BTreeSet};
use weir_wire::columns::Columns;
use weir_wire::frame::{CallRow, CallRows, FlowRow, FlowRows, RoceRows, RunningRows, SERIES_MAX};
use weir_wire::signal::{Entity, Signal};
use weir_wire::v1;

/// Values that a frame carries for an open flow, for a RoCE one besides, for a finished call and a running one.
const FLOW_VALUES: usize = 4;
const ROCE_VALUES: usize = 2;
const CALL_VALUES: usize = 3;
const RUNNING_VALUES: usize = 1;

/// Columns that may stand empty before the schema is made anew.
const OTHERS_SPARE: usize = 64;

/// Makes frames for one stream.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    seq: u64,
    schema_epoch: u32,
    ports: Vec<String>,
    /// Columns of the other sources, ascending.
    others: Vec<ColumnKey>,
    columns: Columns,
    key: bool,
    flows: BTreeMap<FlowEnds, SentFlow>,
    flow_rows: FlowRows,
    next_flow: u32,
    roce: roce::Told,
    roce_rows: RoceRows,
    sent_any: bool,
    series: SeriesTable,
    call_rows: CallRows,
    running_rows: RunningRows,
    /// Values that the frames carried, changed or not: columns, fields of open flows and of calls.
    pub samples: u64,
}

#[derive(Debug, Clone)]
struct SentFlow {
    id: u32,
    bytes: u64,
    retransmits: u64,
    delivered_ce: u64,
    announced: bool,
}

impl FrameEncoder {
    /// A new stream: everything is told afresh. The schema goes into the Hello.
    pub fn restart(&mut self, sample: Option<&Sample>) -> v1::Schema {
        for flow in self.flows.values_mut() {
            flow.announced = false;
        }
        self.roce.restart();
        match sample {
            Some(sample) => self.restart_columns(sample),
            None => self.new_schema(),
        }
    }

    /// The controller lost its state: the next frame says everything.
    pub fn resync(&mut self) {
        self.key = true;
    }

    /// Makes the frame of a sample, with the new schema before it if the ports changed.
    pub fn encode(
        &mut self,
        sample: &Sample,
        frames_dropped: u64,
    ) -> (Option<v1::Schema>, v1::Frame) {
        let schema = (!self.fits(sample)).then(|| self.restart_columns(sample));
        self.seq += 1;
        let mut frame = v1::Frame {
            seq: self.seq,
            at_us: micros(sample.at),
            schema_epoch: self.schema_epoch,
            key: std::mem::take(&mut self.key),
            resets: self.reset_columns(&sample.resets),
            frames_dropped,
            ..v1::Frame::default()
        };
        if frame.key {
            self.columns.clear();
            self.flow_rows = FlowRows::default();
            self.roce_rows = RoceRows::default();
            self.series = SeriesTable::default();
            self.call_rows = CallRows::default();
            self.running_rows = RunningRows::default();
        }
        self.columns(sample, &mut frame);
        self.calls(sample, &mut frame);
        self.flows(sample, &mut frame);
        self.sent_any = true;
        (schema, frame)
    }

    /// Whether the schema has a place for every value. A value that comes and goes keeps its own,
    /// unless most of them stay away.
    fn fits(&self, sample: &Sample) -> bool {
        // Both are in order.
        let mut places = self.others.iter();
        let known = |key: &ColumnKey| places.any(|place| place == key);
        self.ports.iter().eq(sample.ports.keys())
            && sample.columns.keys().all(known)
            && self.others.len() <= 2 * sample.columns.len() + OTHERS_SPARE
    }

    fn restart_columns(&mut self, sample: &Sample) -> v1::Schema {
        self.ports = sample.ports.keys().cloned().collect();
        self.others = sample.columns.keys().cloned().collect();
        self.new_schema()
    }

    fn new_schema(&mut self) -> v1::Schema {
        self.schema_epoch += 1;
        self.key = true;
        let port_columns = self.ports.iter().flat_map(|p| {
            PORT_SIGNALS.iter().map(|s| v1::Column {
                port: p.clone(),
                signal: s.number(),
                ..v1::Column::default()
            })
        });
        let node_columns = [v1::Column {
            signal: Signal::BpfLostRecords.number(),
            ..v1::Column::default()
        }];
        let other_columns = self.others.iter().map(|key| v1::Column {
            port: key.entity.clone(),
            signal: key.signal.number(),
            entity: entity_of(key.kind).into(),
            index: key.index.map(u32::from),
        });
        let columns = port_columns.chain(node_columns).chain(other_columns);
        let columns: Vec<_> = columns.collect();
        self.columns = Columns::new(columns.len());
        v1::Schema {
            epoch: self.schema_epoch,
            columns,
        }
    }

    fn reset_columns(&self, resets: &BTreeSet<ColumnKey>) -> Vec<u32> {
        let of_ports = self.ports.len() * PORT_SIGNALS.len();
        let column = |key: &ColumnKey| {
            let place = match self.others.binary_search(key) {
                Ok(place) => of_ports + 1 + place,
                Err(_) => {
                    let p = self.ports.iter().position(|x| *x == key.entity)?;
                    let s = PORT_SIGNALS.iter().position(|x| *x == key.signal)?;
                    p * PORT_SIGNALS.len() + s
                }
            };
            u32::try_from(place).ok()
        };
        resets.iter().filter_map(column).collect()
    }

    fn columns(&mut self, sample: &Sample, frame: &mut v1::Frame) {
        let ports = sample.ports.values().flatten().copied();
        // Both are in order, and every column has its place.
        let mut read = sample.columns.iter().peekable();
        let others = self.others.iter().map(|key| {
            let found = read.next_if(|(column, _)| *column == key);
            found.map(|(_, reading)| reading.value)
        });
        let values = ports.chain([sample.lost_records]).chain(others);
        let values: Vec<Option<u64>> = values.collect();
        let mut body = Vec::new();
        self.columns.encode(&values, &mut body);
        frame.columns = body;
        self.count(values.len());
    }

    fn calls(&mut self, sample: &Sample, frame: &mut v1::Frame) {
        let mut calls = Vec::new();
        for call in &sample.collectives {
            let id = self.series_id(&call.series, frame);
            let row = CallRow {
                started_us: frame.at_us.wrapping_sub(micros(call.started_before_sample)),
                duration_us: micros(call.duration),
                bytes: call.bytes,
            };
            calls.push((id, row.into()));
        }
        let mut running = Vec::new();
        for call in &sample.running {
            let id = self.series_id(&call.series, frame);
            running.push((id, [frame.at_us.wrapping_sub(micros(call.running))]));
        }
        self.count(calls.len() * CALL_VALUES + running.len() * RUNNING_VALUES);
        frame.collectives = self.call_rows.encode(calls);
        frame.running = self.running_rows.encode(running);
    }

    fn series_id(&mut self, series: &Series, frame: &mut v1::Frame) -> u32 {
        let (id, new) = self.series.id(series, frame.seq);
        if new {
            self.call_rows.announce(id);
            self.running_rows.announce(id);
            frame.series.push(v1::Series {
                id,
                job: series.job.clone(),
                pid: series.pid,
                op: series.op.into(),
                communicator: series.communicator,
                rank: series.rank,
                ranks: series.ranks,
            });
        }
        id
    }

    fn flows(&mut self, sample: &Sample, frame: &mut v1::Frame) {
        let mut rows = Vec::new();
        for (ends, reading) in &sample.flows {
            let first_frame = !self.sent_any;
            let next = &mut self.next_flow;
            let flow = self.flows.entry(*ends).or_insert_with(|| {
                *next = next.wrapping_add(1);
                // A flow that is new since the last sample sent all its bytes since then; one that
                // was there before the agent sent them at a time that nobody knows.
                let before = |counted: u64| if first_frame { counted } else { 0 };
                SentFlow {
                    id: *next,
                    bytes: before(reading.bytes),
                    retransmits: before(reading.retransmits),
                    delivered_ce: before(reading.delivered_ce),
                    announced: false,
                }
            });
            let row = FlowRow {
                bytes: reading.bytes.saturating_sub(flow.bytes),
                retransmits: reading.retransmits.saturating_sub(flow.retransmits),
                srtt_us: u64::from(reading.srtt_us),
                delivered_ce: reading.delivered_ce.saturating_sub(flow.delivered_ce),
            };
            let moved = row.bytes > 0 || row.retransmits > 0;
            if moved && !flow.announced || flow.announced && frame.key {
                flow.announced = true;
                self.flow_rows.announce(flow.id);
                frame.flows_opened.push(opened(flow.id, ends, reading));
            }
            if moved {
                rows.push((flow.id, row.into()));
            }
            (flow.bytes, flow.retransmits, flow.delivered_ce) =
                (reading.bytes, reading.retransmits, reading.delivered_ce);
        }
        let mut moved = self.roce_flows(sample, frame);
        rows.append(&mut moved);
        frame.flows = self.flow_rows.encode(rows);
        self.count(self.flow_rows.len() * FLOW_VALUES + self.roce_rows.len() * ROCE_VALUES);
        let closed = |ends: &FlowEnds| sample.flows.get(ends).is_none_or(|f| f.closed);
        let ended = self.flows.iter();
        let ended = ended.filter(|(ends, f)| f.announced && closed(ends));
        frame.flows_closed.extend(ended.map(|(_, f)| f.id));
        for id in &frame.flows_closed {
            self.flow_rows.forget(*id);
        }
        self.flows.retain(|ends, _| !closed(ends));
    }

    fn count(&mut self, values: usize) {
        self.samples += values as u64;
    }
}

fn entity_of(kind: Entity) -> v1::Entity {
    match kind {
        Entity::Node | Entity::Port => v1::Entity::Port,
        Entity::Rdma => v1::Entity::Rdma,
        Entity::Gpu => v1::Entity::Gpu,
        Entity::Probe => v1::Entity::Probe,
    }
}

fn opened(id: u32, ends: &FlowEnds, reading: &FlowReading) -> v1::FlowOpened {
    v1::FlowOpened {
        id,
        src_ipv4: ends.0.ip().to_bits(),
        dst_ipv4: ends.1.ip().to_bits(),
        src_port: u32::from(ends.0.port()),
        dst_port: u32::from(ends.1.port()),
        job: reading.job.clone(),
        pid: reading.pid,
        ..v1::FlowOpened::default()
    }
}

/// The series announced on a stream, by number. When all numbers are taken, the series that was
/// silent for longest loses its own.
#[derive(Debug, Default)]
struct SeriesTable {
    ids: BTreeMap<Series, u32>,
    /// Frame of the last use, by number.
    used: Vec<u64>,
}

impl SeriesTable {
    /// The number of a series and whether it has to be announced.
    fn id(&mut self, series: &Series, seq: u64) -> (u32, bool) {
        if let Some(id) = self.ids.get(series) {
            if let Some(used) = self.used.get_mut(*id as usize) {
                *used = seq;
            }
            return (*id, false);
        }
        let full = self.used.len() >= SERIES_MAX as usize;
        let silent = self.used.iter().zip(0u32..).min().filter(|_| full);
        let id = match silent {
            Some((_, id)) => {
                self.ids.retain(|_, other| *other != id);
                id
            }
            None => {
                self.used.push(seq);
                u32::try_from(self.used.len() - 1).unwrap_or(SERIES_MAX - 1)
            }
        };
        if let Some(used) = self.used.get_mut(id as usize) {
            *used = seq;
        }
        self.ids.insert(series.clone(), id);
        (id, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CollectiveCall, RunningCall, carry};
    use crate::source::Reading;
    use std::time::Duration;

    fn sample(at_s: u64, tx_bytes: u64) -> Sample {
        let mut readings = [None; PORT_SIGNALS.len()];
        readings[0] = Some(tx_bytes);
        Sample {
            at: Duration::from_secs(at_s),
            ports: [("eth0".to_owned(), readings)].into(),
            ..Sample::default()
        }
    }

    fn series(pid: u32) -> Series {
        Series {
            job: "j".into(),
            pid,
            op: "MPI_Allreduce",
            communicator: 9,
            rank: Some(0),
            ranks: Some(8),
        }
    }

    fn call(pid: u32, before_us: u64, bytes: u64) -> CollectiveCall {
        CollectiveCall {
            series: series(pid),
            bytes: Some(bytes),
            started_before_sample: Duration::from_micros(before_us),
            duration: Duration::from_micros(1000),
        }
    }

    fn flow(bytes: u64, closed: bool) -> BTreeMap<FlowEnds, FlowReading> {
        let ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let reading = FlowReading {
            job: "j".into(),
            pid: 1,
            bytes,
            retransmits: 0,
            srtt_us: 5,
            delivered_ce: 0,
            closed,
        };
        [(ends, reading)].into()
    }

    fn flows_of(encoder: &mut FrameEncoder, flows: BTreeMap<FlowEnds, FlowReading>) -> v1::Frame {
        let sample = Sample {
            flows,
            ..Sample::default()
        };
        encoder.encode(&sample, 0).1
    }

    fn moved(rows: &mut FlowRows, frame: &v1::Frame) -> Vec<FlowRow> {
        frame.flows_opened.iter().for_each(|o| rows.announce(o.id));
        let decoded = rows.decode(&frame.flows).unwrap();
        decoded.into_iter().map(|(_, row)| row.into()).collect()
    }

    #[test]
    fn a_new_port_brings_a_new_schema_and_a_key_frame() {
        let mut encoder = FrameEncoder::default();
        let first = encoder.restart(Some(&sample(1, 0)));
        let (schema, frame) = encoder.encode(&sample(1, 0), 0);
        assert!(schema.is_none() && frame.key);
        let mut two = sample(2, 0);
        two.ports.insert("eth1".into(), [None; PORT_SIGNALS.len()]);
        let (schema, frame) = encoder.encode(&two, 0);
        let schema = schema.unwrap();
        assert!(frame.key && schema.epoch > first.epoch && frame.schema_epoch == schema.epoch);
        assert_eq!(schema.columns.len(), 2 * PORT_SIGNALS.len() + 1);
    }

    #[test]
    fn a_dropped_sample_does_not_lose_a_reset() {
        let mut dropped = sample(1, 0);
        dropped
            .resets
            .insert(ColumnKey::port("eth0", Signal::TxBytes));
        let mut next = sample(2, 0);
        carry(&dropped, &mut next);
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&next));
        assert_eq!(encoder.encode(&next, 1).1.resets, [0]);
    }

    #[test]
    fn columns_of_other_sources_keep_their_place_while_they_are_away() {
        let key = ColumnKey {
            kind: Entity::Port,
            entity: "eth0".into(),
            signal: Signal::PauseRx,
            index: Some(3),
        };
        let with = |at_s, value| Sample {
            columns: [(key.clone(), Reading::wide(value))].into(),
            ..sample(at_s, 0)
        };
        let mut encoder = FrameEncoder::default();
        let schema = encoder.restart(Some(&with(1, 5)));
        let place = schema.columns.len() - 1;
        let pause = &schema.columns[place];
        assert_eq!(pause.signal, Signal::PauseRx.number());
        assert_eq!((pause.port.as_str(), pause.index), ("eth0", Some(3)));
        let mut state = Columns::new(schema.columns.len());
        for (sample, expected) in [
            (with(1, 5), Some(5)),
            (sample(2, 0), None),
            (with(3, 6), Some(6)),
        ] {
            let (schema, frame) = encoder.encode(&sample, 0);
            state.decode(&frame.columns).unwrap();
            assert!(schema.is_none());
            assert_eq!(state.get(place), expected);
        }
        let mut reset = with(4, 1);
        reset.resets.insert(key.clone());
        let resets = encoder.encode(&reset, 0).1.resets;
        assert_eq!(resets, [u32::try_from(place).unwrap()]);
        let mut more = with(5, 1);
        more.columns.insert(
            ColumnKey {
                index: Some(4),
                ..key.clone()
            },
            Reading::wide(1),
        );
        assert!(
            encoder.encode(&more, 0).0.is_some(),
            "a new column brings a new schema"
        );
    }

    #[test]
    fn what_is_absent_stays_absent_and_costs_nothing() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&sample(1, 7)));
        let mut state = Columns::new(PORT_SIGNALS.len() + 1);
        let first = encoder.encode(&sample(1, 7), 0).1;
        state.decode(&first.columns).unwrap();
        assert_eq!((state.get(0), state.get(1)), (Some(7), None));
        assert!(encoder.encode(&sample(2, 7), 0).1.columns.is_empty());
    }

    #[test]
    fn a_resync_brings_a_key_frame_that_stands_alone() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&sample(1, 7)));
        let busy = |at_s, tx_bytes, bytes| Sample {
            collectives: vec![call(1, 500, 64)],
            flows: flow(bytes, false),
            ..sample(at_s, tx_bytes)
        };
        encoder.encode(&sample(1, 7), 0);
        encoder.encode(&busy(2, 7, 100), 0);
        encoder.resync();
        let frame = encoder.encode(&busy(3, 9, 150), 0).1;
        let mut state = Columns::new(PORT_SIGNALS.len() + 1);
        state.decode(&frame.columns).unwrap();
        assert!(frame.key && state.get(0) == Some(9));
        assert_eq!(moved(&mut FlowRows::default(), &frame)[0].bytes, 50);
        assert_eq!(frame.series.len(), 1);
    }

    #[test]
    fn a_flow_older_than_the_agent_is_counted_from_its_first_sample() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let mut rows = FlowRows::default();
        let mut step = |bytes, retransmits| {
            let mut flows = flow(bytes, false);
            flows.values_mut().for_each(|f| f.retransmits = retransmits);
            moved(&mut rows, &flows_of(&mut encoder, flows))
        };
        assert!(step(1 << 40, 99).is_empty());
        let second = step((1 << 40) + 5, 100);
        assert_eq!((second[0].bytes, second[0].retransmits), (5, 1));
    }

    #[test]
    fn a_flow_is_opened_once_counted_and_closed() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        encoder.encode(&Sample::default(), 0);
        let mut rows = FlowRows::default();
        for (bytes, opened, counted) in [(100, 1, 100), (150, 0, 50), (250, 0, 100)] {
            let frame = flows_of(&mut encoder, flow(bytes, false));
            assert_eq!(frame.flows_opened.len(), opened);
            assert_eq!(moved(&mut rows, &frame)[0].bytes, counted);
        }
        assert_eq!(flows_of(&mut encoder, flow(250, true)).flows_closed, [1]);
    }

    #[test]
    fn a_series_is_announced_once_and_its_calls_cost_few_bytes() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let mut rows = CallRows::default();
        let mut step = |at_s: u64, calls: Vec<CollectiveCall>| {
            let running = vec![RunningCall {
                series: series(1),
                running: Duration::from_micros(10),
            }];
            let frame = encoder.encode(
                &Sample {
                    at: Duration::from_secs(at_s),
                    collectives: calls,
                    running,
                    ..Sample::default()
                },
                0,
            );
            frame.1.series.iter().for_each(|s| rows.announce(s.id));
            let calls = rows.decode(&frame.1.collectives).unwrap();
            let calls = calls.into_iter().map(|(_, row)| CallRow::from(row));
            (
                frame.1.series.len(),
                frame.1.collectives.len(),
                calls.collect::<Vec<_>>(),
            )
        };
        step(1, vec![call(1, 500_000, 64)]);
        let (announced, bytes, calls) = step(2, vec![call(1, 700_000, 64), call(1, 500_000, 64)]);
        assert_eq!(announced, 0);
        assert!(bytes <= 2 * 6, "{bytes}");
        let started: Vec<u64> = calls.iter().map(|c| c.started_us).collect();
        assert_eq!(started, [1_300_000, 1_500_000]);
        assert!(calls.iter().all(|c| c.bytes == Some(64)));
    }

    #[test]
    fn the_series_longest_silent_gives_up_its_number() {
        let mut table = SeriesTable::default();
        for pid in 0..SERIES_MAX {
            assert_eq!(table.id(&series(pid), u64::from(pid)), (pid, true));
        }
        assert_eq!(table.id(&series(0), 9999), (0, false));
        assert_eq!(table.id(&series(SERIES_MAX), 9999), (1, true));
        assert_eq!(table.id(&series(1), 9999), (2, true));
        assert_eq!(table.ids.len(), SERIES_MAX as usize);
    }
}
