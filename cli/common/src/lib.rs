//! What Weir's programs do alike, so that their errors, exit codes and documents read alike.

pub mod catalogue;
pub mod config;
pub mod interrupt;
pub mod program;
