//! From readings to frames, pure: which columns there are, what was reset, what changed since the
//! controller last heard of it.
//!
//! The spool holds [`Sample`]s, not encoded frames: deltas are made when a frame is sent, against
//! what was sent last. So a sample that had to be dropped costs resolution, never a wrong sum.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;
use weir_agent_core::counter::{Counter, Observation, Overflow};
use weir_wire::columns::Columns;
use weir_wire::signal::{Kind, Signal};
use weir_wire::v1;

/// Signals of a port, in the order of their columns.
pub const PORT_SIGNALS: [Signal; 14] = [
    Signal::TxBytes,
    Signal::RxBytes,
    Signal::TxPackets,
    Signal::RxPackets,
    Signal::TxDrops,
    Signal::RxDrops,
    Signal::TxErrors,
    Signal::RxErrors,
    Signal::LinkUp,
    Signal::QueueBytes,
    Signal::QueueBytesMax,
    Signal::QueueDrops,
    Signal::EcnMarkedTx,
    Signal::KernelDrops,
];

/// One port's readings. `None` is absent, which is not zero.
pub type PortReadings = [Option<u64>; PORT_SIGNALS.len()];

/// A finished collective call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveCall {
    pub job: String,
    pub pid: u32,
    pub op: &'static str,
    pub bytes: Option<u64>,
    pub communicator: u64,
    /// Since the agent started; may lie before it.
    pub started_before_sample: Duration,
    pub duration: Duration,
    pub rank: Option<u32>,
    pub ranks: Option<u32>,
}

/// A flow's cumulative counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowReading {
    pub job: String,
    pub pid: u32,
    pub bytes: u64,
    pub retransmits: u64,
    pub srtt_us: u32,
    pub delivered_ce: u64,
    pub closed: bool,
}

/// Local and remote end.
pub type FlowEnds = (SocketAddrV4, SocketAddrV4);

/// A call that has not returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningCall {
    pub job: String,
    pub pid: u32,
    pub op: &'static str,
    pub running: Duration,
}

/// All readings of one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Monotonic, since the agent started.
    pub at: Duration,
    pub ports: BTreeMap<String, PortReadings>,
    pub lost_records: Option<u64>,
    /// Counters that were reset since the sample before.
    pub resets: BTreeSet<(String, Signal)>,
    pub collectives: Vec<CollectiveCall>,
    pub running: Vec<RunningCall>,
    pub flows: BTreeMap<FlowEnds, FlowReading>,
}

/// Finds resets and widens the kernel's 32-bit counters.
#[derive(Debug, Default)]
pub struct Readings {
    counters: BTreeMap<(String, Signal), (Counter, u64)>,
}

impl Readings {
    /// Judges every counter of `sample`: marks resets, replaces narrow values by 64-bit sums.
    pub fn judge(&mut self, sample: &mut Sample) {
        for (port, readings) in &mut sample.ports {
            for (signal, reading) in PORT_SIGNALS.iter().zip(readings.iter_mut()) {
                let (Kind::Counter, Some(raw)) = (signal.kind(), *reading) else {
                    continue;
                };
                // The kernel counts these in 32 bits (gnet_stats_queue, tc_red_xstats, tc_fq_codel_qd_stats).
                let narrow = matches!(signal, Signal::QueueDrops | Signal::EcnMarkedTx);
                let key = (port.clone(), *signal);
                let (counter, sum) = self.counters.entry(key.clone()).or_insert_with(|| {
                    (
                        Counter::new(if narrow { 32 } else { 64 }, Overflow::Wraps),
                        0,
                    )
                });
                match counter.observe(raw, sample.at) {
                    Observation::Delta { delta, .. } => *sum += delta,
                    Observation::First => *sum = raw,
                    Observation::Reset
                    | Observation::Gap
                    | Observation::Saturated
                    | Observation::Implausible => {
                        sample.resets.insert(key);
                    }
                }
                if narrow {
                    *reading = Some(*sum);
                }
            }
        }
        self.counters
            .retain(|(port, _), _| sample.ports.contains_key(port));
    }
}

/// Makes frames for one stream.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    seq: u64,
    schema_epoch: u32,
    ports: Vec<String>,
    columns: Columns,
    key: bool,
    flows: BTreeMap<FlowEnds, SentFlow>,
    next_flow: u32,
    sent_any: bool,
    /// Columns sampled into frames, for the bytes-per-sample figure.
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
        self.key = true;
        if let Some(sample) = sample {
            self.ports = sample.ports.keys().cloned().collect();
        }
        self.schema_epoch += 1;
        self.columns = Columns::new(self.ports.len() * PORT_SIGNALS.len() + 1);
        self.schema()
    }

    /// The controller lost its state of the columns.
    pub fn resync(&mut self) {
        self.key = true;
    }

    fn schema(&self) -> v1::Schema {
        let port_columns = self.ports.iter().flat_map(|p| {
            PORT_SIGNALS.iter().map(|s| v1::Column {
                port: p.clone(),
                signal: s.number(),
            })
        });
        let node_columns = [v1::Column {
            port: String::new(),
            signal: Signal::BpfLostRecords.number(),
        }];
        v1::Schema {
            epoch: self.schema_epoch,
            columns: port_columns.chain(node_columns).collect(),
        }
    }

    /// Makes the frame of a sample, with the new schema before it if the ports changed.
    pub fn encode(
        &mut self,
        sample: &Sample,
        frames_dropped: u64,
    ) -> (Option<v1::Schema>, v1::Frame) {
        let schema =
            (!self.ports.iter().eq(sample.ports.keys())).then(|| self.restart_columns(sample));
        if self.key {
            self.columns.clear();
        }
        let values: Vec<Option<u64>> = sample
            .ports
            .values()
            .flatten()
            .copied()
            .chain([sample.lost_records])
            .collect();
        self.samples += values.len() as u64;
        let mut columns = Vec::new();
        self.columns.encode(&values, &mut columns);
        self.seq += 1;
        let mut frame = v1::Frame {
            seq: self.seq,
            at_us: micros(sample.at),
            schema_epoch: self.schema_epoch,
            key: std::mem::take(&mut self.key),
            columns: columns.into(),
            resets: self.reset_columns(&sample.resets),
            collectives: sample.collectives.iter().map(collective).collect(),
            running: sample
                .running
                .iter()
                .map(|r| v1::RunningCollective {
                    job: r.job.clone(),
                    pid: r.pid,
                    op: r.op.into(),
                    running_us: micros(r.running),
                })
                .collect(),
            frames_dropped,
            ..v1::Frame::default()
        };
        self.flows(sample, &mut frame);
        self.sent_any = true;
        (schema, frame)
    }

    fn restart_columns(&mut self, sample: &Sample) -> v1::Schema {
        self.ports = sample.ports.keys().cloned().collect();
        self.schema_epoch += 1;
        self.columns = Columns::new(self.ports.len() * PORT_SIGNALS.len() + 1);
        self.key = true;
        self.schema()
    }

    fn reset_columns(&self, resets: &BTreeSet<(String, Signal)>) -> Vec<u32> {
        let column = |(port, signal): &(String, Signal)| {
            let p = self.ports.iter().position(|x| x == port)?;
            let s = PORT_SIGNALS.iter().position(|x| x == signal)?;
            u32::try_from(p * PORT_SIGNALS.len() + s).ok()
        };
        resets.iter().filter_map(column).collect()
    }

    fn flows(&mut self, sample: &Sample, frame: &mut v1::Frame) {
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
            let bytes = reading.bytes.saturating_sub(flow.bytes);
            if bytes > 0 || reading.retransmits > flow.retransmits {
                if !flow.announced {
                    flow.announced = true;
                    frame.flows_opened.push(opened(flow.id, ends, reading));
                }
                frame.flows.push(v1::FlowDelta {
                    id: flow.id,
                    bytes,
                    retransmits: narrow(reading.retransmits.saturating_sub(flow.retransmits)),
                    srtt_us: reading.srtt_us,
                    delivered_ce: narrow(reading.delivered_ce.saturating_sub(flow.delivered_ce)),
                });
            }
            (flow.bytes, flow.retransmits, flow.delivered_ce) =
                (reading.bytes, reading.retransmits, reading.delivered_ce);
        }
        let closed = |ends: &FlowEnds| sample.flows.get(ends).is_none_or(|f| f.closed);
        frame.flows_closed = self
            .flows
            .iter()
            .filter(|(ends, f)| f.announced && closed(ends))
            .map(|(_, f)| f.id)
            .collect();
        self.flows.retain(|ends, _| !closed(ends));
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
    }
}

fn collective(call: &CollectiveCall) -> v1::Collective {
    v1::Collective {
        job: call.job.clone(),
        pid: call.pid,
        op: call.op.into(),
        bytes: call.bytes,
        communicator: call.communicator,
        start_before_us: micros(call.started_before_sample),
        duration_us: micros(call.duration),
        rank: call.rank,
        ranks: call.ranks,
    }
}

/// Merges what must not be lost of a dropped sample into the one after it.
pub fn carry(dropped: Sample, into: &mut Sample) {
    into.resets.extend(dropped.resets);
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn narrow(v: u64) -> u32 {
    u32::try_from(v).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: u64, tx_bytes: u64, queue_drops: u64) -> Sample {
        let mut readings = [None; PORT_SIGNALS.len()];
        (readings[0], readings[11]) = (Some(tx_bytes), Some(queue_drops));
        Sample {
            at: Duration::from_secs(at_s),
            ports: [("eth0".to_owned(), readings)].into(),
            ..Sample::default()
        }
    }

    fn judged(samples: &[Sample]) -> Sample {
        let mut readings = Readings::default();
        let mut last = Sample::default();
        for s in samples {
            last = s.clone();
            readings.judge(&mut last);
        }
        last
    }

    #[test]
    fn a_counter_that_goes_backwards_is_marked_as_reset() {
        let last = judged(&[sample(1, 1000, 0), sample(2, 10, 0)]);
        assert!(last.resets.contains(&("eth0".to_owned(), Signal::TxBytes)));
    }

    #[test]
    fn a_32_bit_drop_counter_goes_on_rising_over_its_wrap() {
        let near = u64::from(u32::MAX) - 4;
        let last = judged(&[sample(1, 0, near), sample(2, 0, 5)]);
        assert_eq!(last.ports["eth0"][11], Some(near + 10));
        assert!(last.resets.is_empty());
    }

    #[test]
    fn a_clock_that_jumps_back_gives_no_rate() {
        let last = judged(&[sample(9, 1000, 0), sample(2, 2000, 0)]);
        assert!(last.resets.contains(&("eth0".to_owned(), Signal::TxBytes)));
    }

    #[test]
    fn a_new_port_brings_a_new_schema_and_a_key_frame() {
        let mut encoder = FrameEncoder::default();
        let first = encoder.restart(Some(&sample(1, 0, 0)));
        let (schema, frame) = encoder.encode(&sample(1, 0, 0), 0);
        assert!(schema.is_none() && frame.key);
        let mut two = sample(2, 0, 0);
        two.ports.insert("eth1".into(), [None; PORT_SIGNALS.len()]);
        let (schema, frame) = encoder.encode(&two, 0);
        let schema = schema.unwrap();
        assert!(frame.key && schema.epoch > first.epoch && frame.schema_epoch == schema.epoch);
        assert_eq!(schema.columns.len(), 2 * PORT_SIGNALS.len() + 1);
    }

    #[test]
    fn a_dropped_sample_does_not_lose_a_reset() {
        let mut dropped = sample(1, 0, 0);
        dropped.resets.insert(("eth0".into(), Signal::TxBytes));
        let mut next = sample(2, 0, 0);
        carry(dropped, &mut next);
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&next));
        assert_eq!(encoder.encode(&next, 1).1.resets, [0]);
    }

    #[test]
    fn what_is_absent_stays_absent_and_costs_nothing() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&sample(1, 7, 0)));
        let mut state = Columns::new(PORT_SIGNALS.len() + 1);
        let first = encoder.encode(&sample(1, 7, 0), 0).1;
        state.decode(&first.columns).unwrap();
        assert_eq!((state.values()[0], state.values()[1]), (Some(7), None));
        assert!(encoder.encode(&sample(2, 7, 0), 0).1.columns.is_empty());
    }

    #[test]
    fn a_resync_brings_a_key_frame_that_stands_alone() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(Some(&sample(1, 7, 0)));
        encoder.encode(&sample(1, 7, 0), 0);
        encoder.resync();
        let frame = encoder.encode(&sample(2, 9, 0), 0).1;
        let mut state = Columns::new(PORT_SIGNALS.len() + 1);
        state.decode(&frame.columns).unwrap();
        assert!(frame.key && state.values()[0] == Some(9));
    }

    #[test]
    fn a_flow_older_than_the_agent_is_counted_from_its_first_sample() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        let step = |encoder: &mut FrameEncoder, bytes, retransmits| {
            let mut flows = flow(bytes, false);
            flows.values_mut().for_each(|f| f.retransmits = retransmits);
            let sample = Sample {
                flows,
                ..Sample::default()
            };
            encoder.encode(&sample, 0).1.flows
        };
        assert!(step(&mut encoder, 1 << 40, 99).is_empty());
        let second = step(&mut encoder, (1 << 40) + 5, 100);
        assert_eq!((second[0].bytes, second[0].retransmits), (5, 1));
    }

    fn flow(bytes: u64, closed: bool) -> BTreeMap<FlowEnds, FlowReading> {
        let ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        [(
            ends,
            FlowReading {
                job: "j".into(),
                pid: 1,
                bytes,
                retransmits: 0,
                srtt_us: 5,
                delivered_ce: 0,
                closed,
            },
        )]
        .into()
    }

    #[test]
    fn a_flow_is_opened_once_counted_and_closed() {
        let mut encoder = FrameEncoder::default();
        encoder.restart(None);
        encoder.encode(&Sample::default(), 0);
        let step = |encoder: &mut FrameEncoder, bytes, closed| {
            encoder
                .encode(
                    &Sample {
                        flows: flow(bytes, closed),
                        ..Sample::default()
                    },
                    0,
                )
                .1
        };
        let first = step(&mut encoder, 100, false);
        assert_eq!((first.flows_opened.len(), first.flows[0].bytes), (1, 100));
        let second = step(&mut encoder, 150, false);
        assert_eq!((second.flows_opened.len(), second.flows[0].bytes), (0, 50));
        assert_eq!(step(&mut encoder, 150, true).flows_closed, [1]);
    }
}
