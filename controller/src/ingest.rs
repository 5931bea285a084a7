//! From messages to facts: rebuilds one agent's columns and turns them into the core's inputs.
//!
//! Pure: no clock, no IO. One [`Ingest`] for each stream; it dies with the stream.

mod layout;
mod rows;
#[cfg(test)]
mod tests;

use crate::inventory::{hop_of, inventory_of};
pub use layout::Layouts;
use layout::{Layout, Rises};
use rows::{merged, port_samples};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use weir_controller_core::ids::{FlowKey, JobId, NodeId};
use weir_controller_core::io::{self, Input};
use weir_controller_core::topology::NODES_MAX;
use weir_wire::SAMPLE_INTERVAL_MAX;
use weir_wire::codec::DecodeError;
use weir_wire::columns::{COLUMNS_MAX, Change, Columns};
use weir_wire::frame::{
    CallRow, CallRows, FlowRow, FlowRows, RoceRow, RoceRows, RunningRows, SERIES_MAX,
};
use weir_wire::signal::Signal;
use weir_wire::v1::{self, agent_message::Body};

/// Flows that one agent may have open at once.
const FLOWS_MAX: usize = 65_536;
/// A longer interval between two frames is a gap: a mean over it would say nothing.
const GAP: Duration = SAMPLE_INTERVAL_MAX.saturating_mul(2);

/// Sources of an agent.
const SOURCES_MAX: usize = 64;
/// Bytes of the name of a port, a job or an operation.
const NAME_BYTES_MAX: usize = 255;

/// Signals of a port that the core looks at.
const WATCHED: [Signal; 11] = [
    Signal::TxBytes,
    Signal::TxPackets,
    Signal::RxBytes,
    Signal::RxPackets,
    Signal::PauseRxUs,
    Signal::PauseTxUs,
    Signal::QueueBytes,
    Signal::QueueBytesMax,
    Signal::QueueDrops,
    Signal::EcnMarkedTx,
    Signal::LinkUp,
];

/// Why a stream is closed. Every variant is the agent's fault and names what was wrong.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{part} of frame {seq}: {source}")]
    Body {
        part: &'static str,
        seq: u64,
        source: DecodeError,
    },
    #[error("the schema has {columns} columns, {COLUMNS_MAX} are allowed")]
    SchemaTooLarge { columns: usize },
    #[error("frame {seq} has schema epoch {frame}, the last schema was {schema}")]
    SchemaEpoch { seq: u64, frame: u32, schema: u32 },
    #[error("more than {FLOWS_MAX} flows are open at once")]
    TooManyFlows,
    #[error("series {series} is out of range 0..{SERIES_MAX}")]
    SeriesNumber { series: u32 },
    #[error("port {port} of flow {flow} is out of range 0..=65535")]
    FlowPort { flow: u32, port: u32 },
    #[error("address {text:?} of interface {port} is not CIDR notation")]
    Address { port: String, text: String },
    #[error("a second Hello on one stream")]
    SecondHello,
    #[error(
        "{start:?} ({bytes} bytes) is no name: {NAME_BYTES_MAX} bytes without control characters are allowed"
    )]
    Name { start: String, bytes: usize },
    #[error("more than {NODES_MAX} nodes: run another controller for a part of the fabric")]
    TooManyNodes,
    #[error("{what}: {count}, {max} are allowed")]
    TooMany {
        what: &'static str,
        count: usize,
        max: usize,
    },
    #[error("an empty message")]
    Empty,
}

/// What a message became.
#[derive(Debug)]
pub enum Ingested {
    Input(Input),
    /// Frames were lost: ask for a key frame.
    Resync,
    /// Sources of the agent, for the status page.
    Sources(Vec<v1::Source>),
    Nothing,
}

/// State of one agent's stream.
#[derive(Debug)]
pub struct Ingest {
    node: NodeId,
    schema_epoch: u32,
    layout: Arc<Layout>,
    /// What the last frame left; while not in sync, what the counters of the next key frame rise from.
    state: Columns,
    last_seq: Option<u64>,
    last_at: Option<Duration>,
    in_sync: bool,
    /// A key frame came since one was last due for a recording.
    key_came: bool,
    flows: BTreeMap<u32, (FlowKey, Option<JobId>)>,
    flow_rows: FlowRows,
    roce_rows: RoceRows,
    series: BTreeMap<u32, Series>,
    call_rows: CallRows,
    running_rows: RunningRows,
    /// Values decoded so far, for the bytes-per-sample figure.
    pub samples: u64,
}

/// One value that an agent's probes saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeValue<'a> {
    /// `SOURCE/NODE:PORT`, as `Entity::Probe` has it.
    pub target: &'a str,
    /// `None`: of all paths.
    pub path: Option<u32>,
    pub signal: Signal,
    pub value: u64,
}

/// What the calls of one process have in common.
#[derive(Debug, Clone)]
struct Series {
    job: JobId,
    op: Arc<str>,
    rank: Option<u32>,
    ranks: Option<u32>,
}

impl Ingest {
    /// # Errors
    /// The Hello's schema is too large.
    pub fn new(hello: &v1::Hello, layouts: &mut Layouts) -> Result<Ingest, IngestError> {
        let mut ingest = Ingest {
            node: NodeId::new(&hello.node),
            schema_epoch: 0,
            layout: Arc::default(),
            state: Columns::default(),
            last_seq: None,
            last_at: None,
            in_sync: false,
            key_came: false,
            flows: BTreeMap::new(),
            flow_rows: FlowRows::default(),
            roce_rows: RoceRows::default(),
            series: BTreeMap::new(),
            call_rows: CallRows::default(),
            running_rows: RunningRows::default(),
            samples: 0,
        };
        if let Some(schema) = &hello.schema {
            ingest.schema(schema, layouts)?;
        }
        Ok(ingest)
    }

    /// Takes one message.
    ///
    /// # Errors
    /// [`IngestError`]: the stream is to be closed with its text.
    pub fn message(
        &mut self,
        message: v1::AgentMessage,
        layouts: &mut Layouts,
    ) -> Result<Ingested, IngestError> {
        Ok(match message.body.ok_or(IngestError::Empty)? {
            Body::Hello(_) => return Err(IngestError::SecondHello),
            Body::Schema(schema) => {
                self.schema(&schema, layouts)?;
                Ingested::Input(self.columns())
            }
            Body::Frame(frame) => self.frame(frame)?,
            Body::Inventory(inventory) => Ingested::Input(Input::InventoryReported {
                node: self.node.clone(),
                inventory: inventory_of(inventory)?,
            }),
            Body::Sources(report) => {
                few("sources", report.sources.len(), SOURCES_MAX)?;
                report.sources.iter().try_for_each(|s| name(&s.name))?;
                Ingested::Sources(report.sources)
            }
            Body::Path(answer) => Ingested::Input(Input::PathsResolved {
                node: self.node.clone(),
                hops: answer.hops.iter().filter_map(hop_of).collect(),
            }),
            Body::Lease(report) => match outcome_of(report.state()) {
                Some(outcome) => {
                    let reason = if report.detail.is_empty() {
                        report.reason
                    } else {
                        format!("{}: {}", report.reason, report.detail)
                    };
                    Ingested::Input(Input::LeaseReported {
                        node: self.node.clone(),
                        lease: report.id,
                        outcome,
                        reason,
                    })
                }
                None => Ingested::Nothing,
            },
        })
    }

    /// A segment of the recording is due, which begins with each agent's next key frame.
    pub fn key_due(&mut self) {
        self.key_came = false;
    }

    /// The recording goes on in a new segment. A stream that is not in it begins anew, here as in a replay.
    pub fn segment_begun(&mut self) {
        if self.key_came {
            return;
        }
        (self.in_sync, self.last_seq, self.last_at) = (false, None, None);
        self.state.clear();
        self.flows.clear();
    }

    /// What the values of its samples are.
    #[must_use]
    pub fn columns(&self) -> Input {
        Input::ColumnsDeclared {
            node: self.node.clone(),
            columns: self.layout.columns.clone(),
        }
    }

    fn schema(&mut self, schema: &v1::Schema, layouts: &mut Layouts) -> Result<(), IngestError> {
        if schema.columns.len() > COLUMNS_MAX {
            return Err(IngestError::SchemaTooLarge {
                columns: schema.columns.len(),
            });
        }
        schema.columns.iter().try_for_each(|c| name(&c.port))?;
        self.schema_epoch = schema.epoch;
        let layout = layouts.of(schema);
        self.state = self.layout.carried(&self.state, &layout);
        self.layout = layout;
        self.in_sync = false;
        self.key_came = false;
        Ok(())
    }

    /// What the agent's probes saw last, in the order of its columns; nothing after a lost frame.
    pub fn probes(&self) -> impl Iterator<Item = ProbeValue<'_>> {
        let known = self.layout.probes.iter().filter(|_| self.in_sync);
        known.filter_map(|probe| {
            Some(ProbeValue {
                target: &probe.target,
                path: probe.path,
                signal: probe.signal,
                value: self.state.get(probe.column)?,
            })
        })
    }

    fn frame(&mut self, frame: v1::Frame) -> Result<Ingested, IngestError> {
        let seq = frame.seq;
        if frame.schema_epoch != self.schema_epoch {
            return Err(IngestError::SchemaEpoch {
                seq,
                frame: frame.schema_epoch,
                schema: self.schema_epoch,
            });
        }
        let repeated = self.last_seq.is_some_and(|last| seq <= last);
        if repeated {
            return Ok(Ingested::Nothing);
        }
        let lost = self.last_seq.is_some_and(|last| seq != last + 1);
        self.last_seq = Some(seq);
        let mut before = None;
        if frame.key {
            before = Some(std::mem::replace(
                &mut self.state,
                Columns::new(self.layout.len),
            ));
            self.flow_rows = FlowRows::default();
            self.roce_rows = RoceRows::default();
            // All that are open are announced again; who closed in a lost frame is not.
            self.flows.clear();
            self.call_rows = CallRows::default();
            self.running_rows = RunningRows::default();
            self.series.clear();
            self.in_sync = true;
            self.key_came = true;
        } else if lost || !self.in_sync {
            self.in_sync = false;
            return Ok(Ingested::Resync);
        }
        let body = |part| move |source| IngestError::Body { part, seq, source };
        let changes = self.state.decode(&frame.columns);
        let mut changes = changes.map_err(body("columns"))?;
        if let Some(before) = before {
            let known = |change: &mut Change| change.before = before.get(change.column);
            changes.iter_mut().for_each(known);
        }
        self.samples += self.state.len() as u64;
        let at = Duration::from_micros(frame.at_us);
        let elapsed = self
            .last_at
            .and_then(|last| at.checked_sub(last))
            .filter(|e| !e.is_zero() && *e <= GAP);
        self.last_at = Some(at);
        let resets = frame.resets.iter().filter_map(|r| usize::try_from(*r).ok());
        let resets: BTreeSet<usize> = resets.collect();
        let rises = || Rises::new(&self.state, &changes, &resets);
        let ports = port_samples(&self.layout, &mut rises());
        let values = self.layout.values(&mut rises());
        for series in frame.series {
            self.announce_series(series)?;
        }
        for opened in &frame.flows_opened {
            self.open_flow(opened)?;
        }
        let flows = self.flow_rows.decode(&frame.flows).map_err(body("flows"))?;
        let roce = self.roce_rows.decode(&frame.roce).map_err(body("roce"))?;
        self.samples += (4 * self.flow_rows.len() + 2 * self.roce_rows.len()) as u64;
        let sent = flows
            .into_iter()
            .map(|(id, row)| (id, row.into(), RoceRow::default()));
        let came_back = roce
            .into_iter()
            .map(|(id, row)| (id, FlowRow::default(), row.into()));
        let flows = sent.chain(came_back).filter_map(|(id, row, roce)| {
            let (key, job) = self.flows.get(&id)?;
            Some(io::FlowSample {
                key: *key,
                job: job.clone(),
                bytes: row.bytes,
                retransmits: row.retransmits,
                srtt_us: u32::try_from(row.srtt_us).unwrap_or(u32::MAX),
                delivered_ce: row.delivered_ce,
                received_ce: roce.received_ce,
                cnps_sent: roce.cnps_sent,
            })
        });
        let flows = merged(flows);
        let flows_closed = frame.flows_closed.iter().filter_map(|id| {
            self.flow_rows.forget(*id);
            self.roce_rows.forget(*id);
            Some(self.flows.remove(id)?.0)
        });
        let flows_closed = flows_closed.collect();
        let since = |started_us: u64| Duration::from_micros(frame.at_us.wrapping_sub(started_us));
        let calls = self
            .call_rows
            .decode(&frame.collectives)
            .map_err(body("collectives"))?;
        let running = self
            .running_rows
            .decode(&frame.running)
            .map_err(body("running"))?;
        self.samples += (3 * calls.len() + running.len()) as u64;
        let collectives = calls.into_iter().filter_map(|(id, row)| {
            let series = self.series.get(&id)?;
            let row = CallRow::from(row);
            Some(io::CollectiveDone {
                job: series.job.clone(),
                rank: series.rank,
                ranks: series.ranks,
                op: series.op.clone(),
                bytes: row.bytes,
                started_before: since(row.started_us),
                duration: Duration::from_micros(row.duration_us),
            })
        });
        let running = running.into_iter().filter_map(|(id, [started_us])| {
            Some(io::CollectiveRunning {
                job: self.series.get(&id)?.job.clone(),
                running: since(started_us),
            })
        });
        let sample = io::NodeSample {
            elapsed,
            ports,
            collectives: collectives.collect(),
            running: running.collect(),
            flows,
            flows_closed,
            values,
        };
        Ok(Ingested::Input(Input::SampleReported {
            node: self.node.clone(),
            sample,
        }))
    }
}

pub(crate) fn few(what: &'static str, count: usize, max: usize) -> Result<(), IngestError> {
    if count <= max {
        Ok(())
    } else {
        Err(IngestError::TooMany { what, count, max })
    }
}

/// Whether a text may name a port, a job or an operation.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

pub(crate) fn name(text: &str) -> Result<(), IngestError> {
    if is_name(text) {
        return Ok(());
    }
    Err(IngestError::Name {
        start: text.chars().take(32).collect(),
        bytes: text.len(),
    })
}

fn outcome_of(state: v1::lease_report::State) -> Option<io::LeaseOutcome> {
    match state {
        v1::lease_report::State::Applied => Some(io::LeaseOutcome::Applied),
        v1::lease_report::State::Refused => Some(io::LeaseOutcome::Refused),
        v1::lease_report::State::Ended => Some(io::LeaseOutcome::Ended),
        v1::lease_report::State::Unspecified => None,
    }
}
