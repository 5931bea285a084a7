//! All that crosses the network between agent and controller.
//!
//! - [`v1`]: the messages, generated from `proto/weir.proto`;
//! - [`columns`]: the packed column deltas inside a frame;
//! - [`rows`]: its packed flows and collective calls, and [`frame`], what their fields mean;
//! - [`signal`]: the one table of canonical signals;
//! - [`version`]: who may speak with whom.

pub mod codec;
pub mod columns;
pub mod frame;
pub mod rows;
pub mod version;
pub use weir_signal as signal;

/// Messages and the gRPC service, generated from `proto/weir.proto`.
#[expect(
    clippy::derive_partial_eq_without_eq,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}

/// Largest message that either side accepts, in bytes.
///
/// A key frame of 20,000 columns with 1,000 collectives is under 1 MiB; four times that stops
/// a broken peer before it costs memory.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of each text of an event; the rest is cut off. The kernel's log may say anything.
pub const EVENT_TEXT_BYTES_MAX: usize = 1024;

/// Longest time between two samples of an agent. The controller takes twice as long for a gap, over
/// which a mean would say nothing.
pub const SAMPLE_INTERVAL_MAX: std::time::Duration = std::time::Duration::from_secs(30);
