//! Readers of topology and inventory formats: text in, values out, nothing else.
//!
//! Each reader takes the text of a file or of a tool's output and gives a value, or an
//! [`text::Error`] that names line, column and what was expected there. No reader reads files, has a
//! clock, panics on any input, or takes more than linear time (times a logarithm).

pub mod affinity;
pub mod check;
pub mod collection;
pub mod counters;
mod discovered;
pub mod fabric;
pub mod finding;
pub mod format;
pub mod graph;
pub mod guid;
pub mod iblinkinfo;
pub mod ibnetdiscover;
pub mod ibstat;
pub mod ibswinfo;
pub mod lldp;
pub mod mlxlink;
pub mod names;
pub mod nccl;
pub mod rails;
pub mod rate;
pub mod reading;
pub mod smi;
pub mod sonic;
pub mod text;
pub mod topo_m;
mod xml;
