//! What was read at one moment, and what of it was reset.
//!
//! The spool holds [`Sample`]s, not encoded frames: deltas are made when a frame is sent, against
//! what was sent last ([`crate::frame`]). So a sample that had to be dropped costs resolution, never a wrong sum.

use crate::bpf::QpSample;
use crate::qps;
use crate::source::{ColumnKey, Reading};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;
use weir_agent_core::counter::{Counter, Observation};
use weir_wire::signal::{Kind, Signal};

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

/// What the collective calls of one process have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub job: String,
    pub pid: u32,
    pub op: &'static str,
    pub communicator: u64,
    pub rank: Option<u32>,
    pub ranks: Option<u32>,
}

/// A finished collective call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectiveCall {
    pub series: Series,
    /// Payload; `None` if the datatype is unknown.
    pub bytes: Option<u64>,
    pub started_before_sample: Duration,
    pub duration: Duration,
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
    pub series: Series,
    pub running: Duration,
}

/// A queue pair and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuePair {
    pub qp: QpSample,
    /// Empty if its process is of no job that is known.
    pub job: String,
}

/// Number of the device and of the pair.
pub type QpId = (u32, u32);

impl QueuePair {
    #[must_use]
    pub fn id(&self) -> QpId {
        (self.qp.device_index, self.qp.qpn)
    }
}

/// All readings of one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Monotonic, since the agent started.
    pub at: Duration,
    pub ports: BTreeMap<String, PortReadings>,
    pub lost_records: Option<u64>,
    /// What the other sources read.
    pub columns: BTreeMap<ColumnKey, Reading>,
    /// Counters that were reset since the sample before.
    pub resets: BTreeSet<ColumnKey>,
    pub collectives: Vec<CollectiveCall>,
    pub running: Vec<RunningCall>,
    pub flows: BTreeMap<FlowEnds, FlowReading>,
    /// Queue pairs, ascending; the same allocation while none changes.
    pub qps: Arc<Vec<QueuePair>>,
    /// What the kernel saw of those, as far as that is counted.
    pub qps_seen: BTreeMap<QpId, qps::Seen>,
}

impl Sample {
    /// What it holds, in pieces of 100 to 200 bytes.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ports.len() * 2
            + self.columns.len()
            + self.resets.len()
            + self.collectives.len()
            + self.running.len()
            + self.flows.len()
    }
}

/// Finds resets and widens narrow counters.
#[derive(Debug, Default)]
pub struct Readings {
    ports: BTreeMap<String, JudgedPort>,
    columns: BTreeMap<ColumnKey, Judged>,
}

type JudgedPort = [Option<Judged>; PORT_SIGNALS.len()];

/// A counter under judgement.
#[derive(Debug)]
struct Judged {
    counter: Counter,
    /// What a wide counter would stand at.
    sum: u64,
    at: Duration,
}

impl Readings {
    /// Judges every counter of `sample`: marks resets, replaces narrow values by 64-bit sums.
    pub fn judge(&mut self, sample: &mut Sample) {
        self.judge_ports(sample);
        self.judge_columns(sample);
    }

    fn judge_ports(&mut self, sample: &mut Sample) {
        self.ports.retain(|port, _| sample.ports.contains_key(port));
        for (port, readings) in &mut sample.ports {
            if !self.ports.contains_key(port) {
                self.ports.insert(port.clone(), Default::default());
            }
            let Some(known) = self.ports.get_mut(port) else {
                continue;
            };
            for ((signal, reading), known) in PORT_SIGNALS.iter().zip(readings).zip(known) {
                let (Kind::Counter, Some(raw)) = (signal.kind(), *reading) else {
                    *known = None;
                    continue;
                };
                // The kernel counts these in 32 bits (gnet_stats_queue, tc_red_xstats, tc_fq_codel_qd_stats).
                let narrow = matches!(signal, Signal::QueueDrops | Signal::EcnMarkedTx);
                let raw = Reading {
                    bits: if narrow { 32 } else { 64 },
                    ..Reading::wide(raw)
                };
                let (value, sound) = match known {
                    Some(judged) => judged.judge(raw, sample.at),
                    None => {
                        *known = Some(Judged::first(raw, sample.at));
                        (raw.value, true)
                    }
                };
                *reading = Some(value);
                if !sound {
                    sample.resets.insert(ColumnKey::port(port, *signal));
                }
            }
        }
    }

    /// Both sides are in order, so one walk along them finds every counter's past.
    fn judge_columns(&mut self, sample: &mut Sample) {
        let at = sample.at;
        let mut new = Vec::new();
        let mut known = self.columns.iter_mut().peekable();
        for (key, reading) in &mut sample.columns {
            if key.signal.kind() != Kind::Counter {
                continue;
            }
            while known.next_if(|(past, _)| *past < key).is_some() {}
            let (value, sound) = match known.next_if(|(past, _)| *past == key) {
                Some((_, judged)) => judged.judge(*reading, at),
                None => {
                    new.push((key.clone(), Judged::first(*reading, at)));
                    (reading.value, true)
                }
            };
            reading.value = value;
            if !sound {
                sample.resets.insert(key.clone());
            }
        }
        self.columns.retain(|_, judged| judged.at == at);
        self.columns.extend(new);
    }
}

impl Judged {
    fn first(raw: Reading, at: Duration) -> Judged {
        let mut counter = Counter::new(u32::from(raw.bits), raw.overflow);
        counter.observe(raw.value, at);
        Judged {
            counter,
            sum: raw.value,
            at,
        }
    }

    /// The value to go on with, and whether the counter ran on since the reading before.
    fn judge(&mut self, raw: Reading, at: Duration) -> (u64, bool) {
        self.at = at;
        let sound = match self.counter.observe(raw.value, at) {
            Observation::Delta { delta, .. } => {
                self.sum += delta;
                true
            }
            Observation::First => {
                self.sum = raw.value;
                true
            }
            // It stands at its maximum, whatever has happened since.
            Observation::Saturated => {
                self.sum = self.sum.max(raw.value);
                false
            }
            Observation::Reset | Observation::Gap | Observation::Implausible => false,
        };
        let value = if raw.bits < 64 { self.sum } else { raw.value };
        (value, sound)
    }
}

/// Merges what must not be lost of a dropped sample into the one after it.
pub fn carry(dropped: &Sample, into: &mut Sample) {
    into.resets.extend(dropped.resets.iter().cloned());
}

/// Whole microseconds, as the wire has them.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_agent_core::counter::Overflow;
    use weir_wire::signal::Entity;

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
        assert!(
            last.resets
                .contains(&ColumnKey::port("eth0", Signal::TxBytes))
        );
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
        assert!(
            last.resets
                .contains(&ColumnKey::port("eth0", Signal::TxBytes))
        );
    }

    fn saturating(at_s: u64, value: u64) -> Sample {
        let key = ColumnKey {
            kind: Entity::Rdma,
            entity: "mlx5_0/1".into(),
            signal: Signal::SymbolErrors,
            index: None,
        };
        let reading = Reading {
            value,
            bits: 16,
            overflow: Overflow::Saturates,
        };
        Sample {
            at: Duration::from_secs(at_s),
            columns: [(key, reading)].into(),
            ..Sample::default()
        }
    }

    #[test]
    fn a_counter_that_stands_at_its_maximum_has_no_rate() {
        let last = judged(&[saturating(1, 65_000), saturating(2, 65_535)]);
        assert_eq!(last.resets.len(), 1);
        assert_eq!(last.columns.values().next().map(|r| r.value), Some(65_535));
        let last = judged(&[saturating(1, 65_000), saturating(2, 65_010)]);
        assert!(last.resets.is_empty());
    }

    #[test]
    fn a_first_reading_stands_as_it_is() {
        let last = judged(&[saturating(1, 65_535)]);
        assert!(last.resets.is_empty());
        assert_eq!(last.columns.values().next().map(|r| r.value), Some(65_535));
    }

    #[test]
    fn every_counter_is_held_against_its_own_past() {
        let key = |device: u8, signal| ColumnKey {
            kind: Entity::Rdma,
            entity: format!("mlx5_{device}/1"),
            signal,
            index: None,
        };
        let signals = [Signal::TxBytes, Signal::LinkUp, Signal::CnpTx];
        let sample = |at_s: u64, devices: &[u8], fallen: u8| {
            let of = |device: &u8| {
                let value = if *device == fallen { 1 } else { 1000 + at_s };
                signals.map(|s| (key(*device, s), Reading::wide(value)))
            };
            Sample {
                at: Duration::from_secs(at_s),
                columns: devices.iter().flat_map(of).collect(),
                ..Sample::default()
            }
        };
        let mut readings = Readings::default();
        let none = u8::MAX;
        let mut check = |mut sample: Sample, reset: &[u8]| {
            readings.judge(&mut sample);
            let gone = |device: &u8| [key(*device, Signal::TxBytes), key(*device, Signal::CnpTx)];
            let expected: BTreeSet<ColumnKey> = reset.iter().flat_map(gone).collect();
            assert_eq!(sample.resets, expected, "at {:?}", sample.at);
        };
        check(sample(1, &[0, 1, 3], none), &[]);
        check(sample(2, &[0, 1, 2, 3], 1), &[1]);
        check(sample(3, &[2, 3], 2), &[2]);
        check(sample(4, &[0, 1, 2, 3], 0), &[]);
        check(sample(5, &[0, 1, 2, 3], none), &[]);
        check(sample(6, &[0, 1, 2, 3], 3), &[3]);
    }

    #[test]
    fn a_counter_that_was_away_begins_anew() {
        let mut readings = Readings::default();
        for mut sample in [
            saturating(1, 100),
            Sample {
                at: Duration::from_secs(2),
                ..Sample::default()
            },
        ] {
            readings.judge(&mut sample);
        }
        let mut back = saturating(3, 7);
        readings.judge(&mut back);
        assert!(back.resets.is_empty());
        assert_eq!(back.columns.values().next().map(|r| r.value), Some(7));
    }
}
