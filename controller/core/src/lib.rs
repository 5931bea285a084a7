//! The pure part of the controller: facts in, commands out, no clock and no IO.
//!
//! ```text
//!  Input ──> Core ──> Command          loop { core.handle_input(fact, now);
//!            │  ├ topology                     while let Some(c) = core.poll_command() { perform(c) } }
//!            │  ├ links, flows, jobs    what was measured
//!            │  ├ hotspot, plan         what it means, what would help
//!            │  ├ health                what devices say of themselves
//!            │  └ cause, incident, trial  what follows from what, and what is done about it
//! ```
//!
//! Time is a [`std::time::Duration`] since the controller started and always an argument, so that
//! a recorded run gives the same verdicts and commands again, byte for byte.

pub mod cables;
pub mod cabling;
pub mod cause;
pub mod config;
pub mod engine;
pub mod flows;
pub mod health;
pub mod hotspot;
pub mod ids;
pub mod incident;
pub mod infer;
pub mod io;
pub mod jobs;
pub mod keep;
pub mod links;
pub mod localise;
pub mod losses;
pub mod maxmin;
pub mod memory;
pub mod pinglist;
pub mod plan;
pub mod silent;
pub mod straggler;
pub mod topology;
pub mod trial;
pub mod tune;
pub mod verdict;

pub use config::Config;
pub use engine::Core;
pub use io::{Command, Input};
pub use memory::Memory;
