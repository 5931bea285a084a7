//! The flight recorder: everything that reaches the brain, and what the brain did, in bounded segments.
//!
//! ```text
//! DIRECTORY/RUN-NUMBER.weirrec          a run is a start of the controller; numbers start at 0
//! segment := "WEIRREC2" record*
//! record  := crc:u32 length:u32 at_us:u64 kind:u8 node_len:u16 node payload      (little endian)
//! ```
//! `length` counts what follows it, `crc` (CRC-32 as of zlib) covers what follows it. A segment begins
//! with what a replay needs to start there ([`format::Header`], the configuration, the topology file,
//! every node's Hello, schema, inventory, sources and last frames, the core's memory); then come events, each
//! followed by the actions that it led to.
//!
//! - [`writer`]: a bounded queue to a thread that writes. What it cannot take is counted, and a new
//!   segment begins, which says so: a replay starts afresh there.
//! - [`reader`]: a torn or damaged place ends its segment, never the replay.
//! - [`replay`]: rebuilds what was done, and compares.
//!
//! Why a replay can start at any segment, and what "byte for byte" means there:
//! docs/decisions/0006-a-replay-starts-at-any-segment.md.

mod disk;
pub mod event;
pub mod format;
pub mod reader;
pub mod replay;
pub mod report;
pub mod when;
pub mod writer;

pub use replay::{Ask, replay};
pub use report::Report;
pub use writer::{About, Recorded, Recorder, Settings};

use crate::brain::Action;

/// An action as it is recorded: the same text for the same action.
#[must_use]
pub fn text(action: &Action) -> String {
    format!("{action:?}")
}

/// Why a recording cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read {path}: {source}; give a directory of segments, or one segment")]
    Io {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{path} is not a recording of weir-controller: {what}; give the directory of `record` in controller.yaml, or a .weirrec file of it"
    )]
    NotARecording {
        path: std::path::PathBuf,
        what: String,
    },
    #[error("{path}: its configuration is not understood by this version: {what}")]
    Configuration {
        path: std::path::PathBuf,
        what: String,
    },
    #[error("no segment reaches {asked}: the recording goes from {first} to {last} seconds")]
    Outside {
        asked: String,
        first: f64,
        last: f64,
    },
}
