//! A packet-level simulator of RoCEv2 fabrics.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod config;
pub mod hist;
pub mod job;
mod link;
mod nic;
pub mod num;
pub mod packet;
pub mod plan;
pub mod port;
pub mod rng;
pub mod route;
pub mod rp;
pub mod scenario;
pub mod sim;
pub mod time;
pub mod topology;
pub mod wheel;
