//! A fleet of agents, simulated by intervals, against the real controller.
//!
//! ```text
//! scenario (seed) ──► World: fabric, jobs, faults ──► Counters of each node ──► Agent: frames of weir-wire
//!                       load: who sends when; moment: max-min                      │ lost, late, twice, restarted
//!                       rates, queues, marks, pause                                ▼
//!        score ◄── truth of the faults, incidents ◄── Brain: the real ingest and the real core
//! ```
//!
//! Where `weir-sim` moves packets, this moves intervals: a thousand nodes for days, or two thousand short scenarios in
//! minutes. What is assumed stands in docs/fleet.md.
#![deny(unsafe_code)]

pub mod agent;
pub mod columns;
pub mod cost;
pub mod counters;
pub mod fabric;
pub mod fault;
pub mod fleet;
pub mod healthy;
pub mod inject;
pub mod job;
pub mod load;
pub mod moment;
pub mod noise;
pub mod physics;
pub mod scenario;
pub mod score;
pub mod show;
pub mod site;
pub mod world;
