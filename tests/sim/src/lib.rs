//! A packet-level simulator of RoCEv2 fabrics.
#![forbid(unsafe_code)]

pub mod bench;
pub mod buffer;
pub mod change;
pub mod config;
pub mod events;
pub mod hist;
pub mod infer;
pub mod job;
mod link;
mod nic;
pub mod num;
pub mod packet;
pub mod plan;
pub mod port;
pub mod reference;
pub mod report;
pub mod rng;
pub mod round;
pub mod route;
pub mod rp;
pub mod scenario;
pub mod sim;
pub mod svg;
pub mod time;
pub mod topology;
pub mod traces;
pub mod wheel;
