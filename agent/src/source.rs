//! What a source of readings gives: columns under canonical signals, raw counters under their own
//! names, events. A source that fails costs its columns, not the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use weir_agent_core::counter::Overflow;
use weir_wire::signal::{Entity, Signal};

/// State of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: &'static str,
    pub up: bool,
    /// Why it is down, or what it does without; empty if there is nothing to say.
    pub reason: String,
}

/// Which value: of what, and which signal of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnKey {
    pub kind: Entity,
    /// Interface name, `DEVICE/PORT` of a verbs device, or PCI address of a GPU.
    pub entity: String,
    pub signal: Signal,
    /// Priority, lane or link number, where the signal has one.
    pub index: Option<u8>,
}

impl ColumnKey {
    /// A signal of a network interface.
    #[must_use]
    pub fn port(name: &str, signal: Signal) -> ColumnKey {
        ColumnKey {
            kind: Entity::Port,
            entity: name.to_owned(),
            signal,
            index: None,
        }
    }
}

/// A value as the source counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub value: u64,
    /// Width of the register behind it, 1 to 64.
    pub bits: u8,
    /// What it does at its upper end.
    pub overflow: Overflow,
}

impl Reading {
    /// A gauge, or a counter of 64 bits.
    #[must_use]
    pub const fn wide(value: u64) -> Reading {
        Reading {
            value,
            bits: 64,
            overflow: Overflow::Wraps,
        }
    }
}

/// How a raw value behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawKind {
    /// Rises until it is reset.
    Counter,
    /// Stands for itself: a temperature, a state, a number of things that are there.
    Gauge,
    /// Neither its source nor a table of ours says.
    Unknown,
}

/// A value that the table of canonical signals does not know, under its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawCounter {
    pub kind: RawKind,
    /// Source and device, such as `("ethtool", "eth0")`.
    pub source: &'static str,
    pub device: String,
    pub name: String,
    pub value: u64,
}

impl RawCounter {
    #[must_use]
    pub fn new(
        kind: RawKind,
        source: &'static str,
        device: &str,
        name: &str,
        value: u64,
    ) -> RawCounter {
        RawCounter {
            kind,
            source,
            device: device.to_owned(),
            name: name.to_owned(),
            value,
        }
    }
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];

    /// As labels have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Something that happened, as opposed to a value that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `kmsg`, `gpu`, `rdma` or `verbs`.
    pub source: &'static str,
    /// Stable name in snake case, such as `xid` or `port_error`: a label of metrics.
    pub name: &'static str,
    /// What it concerns: PCI address, interface, `DEVICE/PORT`; empty if unknown.
    pub subject: String,
    /// Number of an XID or SXID, or the syndrome of a NIC's health.
    pub code: Option<u32>,
    pub severity: Severity,
    /// What it means, in plain words.
    pub text: String,
    /// What to do; empty if there is nothing to do.
    pub action: String,
}

/// Facts for joins, which become the labels of an `*_info` metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub kind: Entity,
    pub entity: String,
    /// Such as `firmware`, `board`, `pci_address`, `netdev`, `link_layer`.
    pub labels: BTreeMap<&'static str, String>,
}

/// A part of a GPU that was split (MIG). Its memory and its work are the GPU's: they are counted there,
/// and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuPart {
    /// PCI address of the GPU.
    pub gpu: String,
    /// Place in the GPU's list of parts.
    pub index: u32,
    pub uuid: String,
}

/// The addresses of a verbs port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGids {
    /// `DEVICE/PORT`.
    pub entity: String,
    pub gids: Arc<[Gid]>,
}

/// An address of a verbs port, and its place in the port's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    pub index: usize,
    pub gid: String,
    /// `IB/RoCE v1` or `RoCE v2`.
    pub kind: Option<String>,
    pub netdev: Option<String>,
}

/// A counter of a verbs port that costs the device something, so that an operator has to turn it on
/// (`rdma statistic set link DEVICE/PORT optional-counters NAME`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalCounter {
    /// `DEVICE/PORT`.
    pub entity: String,
    pub name: String,
    pub enabled: bool,
}

/// What one reading of a source gives. What is absent is not there.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    pub columns: BTreeMap<ColumnKey, Reading>,
    pub raw: Vec<RawCounter>,
    /// Every counter under its own name, those with a canonical signal too; only where that was
    /// asked for.
    pub verbatim: Vec<RawCounter>,
    pub info: Vec<Info>,
    pub optional_counters: Vec<OptionalCounter>,
    pub gids: Vec<PortGids>,
    /// Ports of verbs devices, for [`crate::rdma::Judge`].
    pub links: Vec<crate::rdma::Link>,
    pub gpu_parts: Vec<GpuPart>,
    /// Processes that compute on a GPU, by its PCI address; a GPU that does not tell is not there.
    pub gpu_processes: BTreeMap<String, Vec<u32>>,
    pub events: Vec<Event>,
}

impl Gathered {
    /// Takes what another reading gave.
    pub fn append(&mut self, mut other: Gathered) {
        self.columns.append(&mut other.columns);
        self.raw.append(&mut other.raw);
        self.verbatim.append(&mut other.verbatim);
        self.info.append(&mut other.info);
        self.optional_counters.append(&mut other.optional_counters);
        self.gids.append(&mut other.gids);
        self.links.append(&mut other.links);
        self.gpu_parts.append(&mut other.gpu_parts);
        self.gpu_processes.append(&mut other.gpu_processes);
        self.events.append(&mut other.events);
    }

    /// A value, if it was read. Of a signal without index.
    #[must_use]
    pub fn get(&self, kind: Entity, entity: &str, signal: Signal) -> Option<u64> {
        let key = ColumnKey {
            kind,
            entity: entity.to_owned(),
            signal,
            index: None,
        };
        self.columns.get(&key).map(|reading| reading.value)
    }

    /// Adds a column.
    pub fn put(
        &mut self,
        kind: Entity,
        entity: &str,
        signal: Signal,
        index: Option<u8>,
        reading: Reading,
    ) {
        let key = ColumnKey {
            kind,
            entity: entity.to_owned(),
            signal,
            index,
        };
        self.columns.insert(key, reading);
    }
}
