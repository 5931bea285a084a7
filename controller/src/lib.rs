//! The controller's IO shell: gRPC in, HTTP out, files; all judgement is in `weir-controller-core`.

pub mod api;
pub mod brain;
pub mod config;
pub mod driver;
pub mod events;
pub mod ingest;
mod inventory;
mod judged;
pub mod metrics;
pub mod pinglists;
pub mod probes;
pub mod record;
pub mod server;
pub mod topology_command;
pub mod topology_file;
pub mod views;
