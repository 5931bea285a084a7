//! The pure part of the agent: what a counter's readings mean, what may be changed, and the life of
//! a lease. No clock, no files, no sockets: time is an argument, and what has to be done comes out
//! as commands.

pub mod change;
pub mod counter;
pub mod lease;
pub mod limits;
pub mod outbox;
pub mod probe;
pub mod spool;
