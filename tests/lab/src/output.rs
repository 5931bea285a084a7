//! Writes lines for people. A closed pipe is no reason to skip the teardown, so errors are dropped here.

use std::io::{self, Write};

/// Writes a line to standard output.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

/// Writes a line to standard error.
pub fn warn(line: &str) {
    writeln!(io::stderr().lock(), "{line}").ok();
}
