//! The node agent's IO shell: collectors, actuators, uplink. What readings mean and what may be
//! changed is decided in `weir-agent-core`.

pub mod actuate;
pub mod bpf;
pub mod collect;
mod compat;
pub mod config;
pub mod cost;
pub mod devices;
pub mod document;
pub mod ethtool;
pub mod events;
mod exposition;
pub mod frame;
pub mod fuzz;
pub mod gpu;
pub mod gpu_jobs;
pub mod inventory;
pub mod kmsg;
pub mod metrics;
pub mod netlink;
pub mod pcie;
pub mod probe;
pub mod qps;
pub mod rdma;
pub mod run;
pub mod sample;
pub mod scan;
pub mod source;
#[cfg(test)]
mod testing;
pub mod uplink;
pub mod verbs;
