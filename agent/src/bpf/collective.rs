//! The collective family, user side: reads finished calls and those in flight.
//!
//! Records are read when the agent polls, not one wake-up each: a job may make
//! a hundred thousand calls a second.

use std::{path::Path, time::Instant};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, RingBuf},
};
use weir_ebpf_abi::{CollectiveRecord, InFlight};

use super::{
    attach::Attachments,
    datatype::{self, Datatype},
    functions::{collective_op, has_count},
    load::{LoadError, take_map},
    sample::{BpfSample, Collective, CollectiveOp, InFlightCall},
    scan::Scanner,
    sys::read_record,
};

/// A call in flight for longer than this is checked for a thread that has ended.
const STALE_NS: u64 = 1_000_000_000;

/// The tables of the family, and the probes.
pub struct Collectives {
    calls: RingBuf<MapData>,
    in_flight: HashMap<MapData, u64, InFlight>,
    scanner: Scanner,
    attachments: Attachments,
    scan_failed: bool,
}

impl Collectives {
    /// Takes the family's maps; probes are attached by the first poll.
    ///
    /// # Errors
    ///
    /// The object lacks a map.
    pub fn new(ebpf: &mut Ebpf, netns: Option<u64>) -> Result<Self, LoadError> {
        Ok(Self {
            calls: take_map(ebpf, "CALLS")?,
            in_flight: take_map(ebpf, "IN_FLIGHT")?,
            scanner: Scanner::new(netns),
            attachments: Attachments::default(),
            scan_failed: false,
        })
    }

    /// Processes that run a communication library now.
    pub fn job_pids(&self) -> Vec<u32> {
        self.scanner
            .processes()
            .iter()
            .filter(|(_, process)| process.is_alive() && !process.map.libraries.is_empty())
            .map(|(pid, _)| *pid)
            .collect()
    }

    /// Libraries that have probes.
    pub fn libraries_attached(&self) -> usize {
        self.attachments.attached()
    }

    /// Looks for processes to probe, if it is time.
    pub fn look(&mut self, ebpf: &mut Ebpf, now: Instant, notes: &mut Vec<String>) {
        match self.scanner.scan(now) {
            Ok(true) => self.attachments.update(ebpf, &mut self.scanner, notes),
            Ok(false) => {}
            Err(error) => {
                if !self.scan_failed {
                    notes.push(format!("/proc cannot be listed: {error}"));
                }
                self.scan_failed = true;
            }
        }
    }

    /// Looks for processes, and reads what their calls have left.
    pub fn poll(&mut self, ebpf: &mut Ebpf, now: Instant, sample: &mut BpfSample) {
        self.look(ebpf, now, &mut sample.notes);
        while let Some(item) = self.calls.next() {
            if let Some(record) = read_record::<CollectiveRecord>(&item)
                && let Some(collective) = finished(&self.scanner, &record)
            {
                sample.collectives.push(collective);
            }
        }
        self.read_in_flight(sample);
    }

    fn read_in_flight(&mut self, sample: &mut BpfSample) {
        let mut stale = Vec::new();
        // An element removed while the table is read is not worth a word.
        for (id, call) in self.in_flight.iter().flatten() {
            let [pid, tid] = [upper(id), lower(id)];
            let age_ns = sample.now_ns.saturating_sub(call.start_ns);
            if age_ns > STALE_NS && !Path::new(&format!("/proc/{pid}/task/{tid}")).exists() {
                stale.push(id);
                continue;
            }
            let Some(op) = collective_op(call.op) else {
                continue;
            };
            let datatype = datatype_of(&self.scanner, op, pid, call.datatype);
            sample.in_flight.push(InFlightCall {
                pid,
                tid,
                op,
                bytes: bytes_of(op, call.count, datatype),
                // For an init call this is where the handle will be stored.
                comm: if op == CollectiveOp::NcclCommInitRank {
                    0
                } else {
                    call.comm
                },
                start_ns: call.start_ns,
            });
        }
        for id in stale {
            // Gone already is as good as removed.
            drop(self.in_flight.remove(&id));
        }
    }
}

fn finished(scanner: &Scanner, record: &CollectiveRecord) -> Option<Collective> {
    let op = collective_op(record.op)?;
    let datatype = datatype_of(scanner, op, record.pid, record.datatype);
    let is_init = op == CollectiveOp::NcclCommInitRank;
    Some(Collective {
        pid: record.pid,
        tid: record.tid,
        op,
        bytes: bytes_of(op, record.count, datatype),
        count: has_count(op).then_some(record.count),
        datatype: datatype.and_then(|datatype| datatype.name),
        comm: record.comm,
        start_ns: record.start_ns,
        end_ns: record.end_ns,
        nranks: is_init.then_some(record.nranks),
        rank: is_init.then_some(record.rank),
        result: record.result,
    })
}

fn datatype_of(scanner: &Scanner, op: CollectiveOp, pid: u32, handle: u64) -> Option<Datatype> {
    match op {
        CollectiveOp::NcclGroupStart
        | CollectiveOp::NcclGroupEnd
        | CollectiveOp::NcclCommInitRank => None,
        CollectiveOp::NcclAllReduce
        | CollectiveOp::NcclAllGather
        | CollectiveOp::NcclReduceScatter
        | CollectiveOp::NcclBroadcast
        | CollectiveOp::NcclReduce
        | CollectiveOp::NcclSend
        | CollectiveOp::NcclRecv => datatype::of_nccl(handle & u64::from(u32::MAX)),
        CollectiveOp::MpiAllreduce
        | CollectiveOp::MpiAllgather
        | CollectiveOp::MpiReduceScatter
        | CollectiveOp::MpiAlltoall
        | CollectiveOp::MpiBcast => {
            let process = scanner.processes().get(&pid)?;
            if process.datatypes.is_empty() {
                return datatype::of_mpich(handle);
            }
            process.datatype_at(handle)
        }
    }
}

fn bytes_of(op: CollectiveOp, count: u64, datatype: Option<Datatype>) -> Option<u64> {
    let datatype = datatype.filter(|_| has_count(op))?;
    count.checked_mul(datatype.bytes)
}

/// The process of a `pid_tgid`.
fn upper(id: u64) -> u32 {
    u32::try_from(id >> 32).unwrap_or(u32::MAX)
}

/// The thread of a `pid_tgid`.
fn lower(id: u64) -> u32 {
    u32::try_from(id & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}
