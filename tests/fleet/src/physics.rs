//! What is the matter with the fabric now: the healthy state, and what each active fault changes of it.

use crate::fabric::{Fabric, Link};
use std::collections::{BTreeMap, BTreeSet};

/// Why a transmitter is paused by its peer, and what that does upstream: shares of time, while jobs communicate or
/// always.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pause {
    pub busy: f64,
    pub always: f64,
    pub upstream_busy: f64,
    pub upstream_always: f64,
}

/// What a NIC counts beside its traffic, in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Nic {
    pub qp_errors: f64,
    pub pcie_stalls: f64,
    pub pcie_errors: f64,
    /// Packets that found no buffer.
    pub discards: f64,
}

/// What is wrong with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuFault {
    /// Off the bus: no columns, and an event.
    Lost,
    EccUncorrected,
    RemapFailure,
    NvlinkDown,
    Thermal,
}

/// The state of everything that flows do not decide.
#[derive(Debug, Clone)]
pub struct Physics {
    /// Bits per second of each link.
    pub capacity: Vec<f64>,
    pub up: Vec<bool>,
    /// Rate and lanes that each port trained to.
    pub trained: Vec<(f64, u32)>,
    /// Share of packets that each link loses.
    pub loss: Vec<f64>,
    /// Blocks in a second that forward error correction could not repair, at the receiving end of a link.
    pub uncorrected: BTreeMap<Link, f64>,
    pub paused: BTreeMap<Link, Pause>,
    pub nics: BTreeMap<Link, Nic>,
    pub gpus: BTreeMap<(usize, usize), GpuFault>,
    pub outliers: BTreeSet<usize>,
    /// Job, rank, seconds, and whether it is the network.
    pub late: Vec<(usize, usize, f64, bool)>,
    /// Host ports that are plugged into each other's place.
    pub swapped: Vec<(Link, Link)>,
}

/// Lanes of a port.
pub const LANES: u32 = 4;

impl Physics {
    /// A fabric in which nothing is wrong; ports in `off` are not in use.
    #[must_use]
    pub fn healthy(fabric: &Fabric, off: &BTreeSet<Link>) -> Physics {
        let links = fabric.ports.len();
        Physics {
            capacity: fabric.ports.iter().map(|p| p.bps).collect(),
            up: (0..links).map(|l| !off.contains(&l)).collect(),
            trained: fabric.ports.iter().map(|p| (p.bps, LANES)).collect(),
            loss: vec![0.0; links],
            uncorrected: BTreeMap::new(),
            paused: BTreeMap::new(),
            nics: BTreeMap::new(),
            gpus: BTreeMap::new(),
            outliers: BTreeSet::new(),
            late: Vec::new(),
            swapped: Vec::new(),
        }
    }
}
