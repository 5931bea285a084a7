//! Every capture of a real machine, with what it must give. The captures live beside the checkout.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

mod fabric;
mod node;

use std::io::Write as _;
use std::path::PathBuf;
use weir_import::finding::{Finding, Kind};
use weir_import::format::{Document, Format, read};

/// The text of a capture; says aloud that the test is skipped where there are none.
fn capture(path: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures");
    let root =
        std::env::var_os("WEIR_FIXTURES").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if root.is_dir() {
        return Some(std::fs::read_to_string(root.join(path)).unwrap());
    }
    let line = format!("SKIPPED: no captures in {}\n", root.display());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// A capture, read as what it was detected to be.
fn document(path: &str, expected: Format) -> Option<Document> {
    let text = capture(path)?;
    assert_eq!(Format::detect(&text), Some(expected), "{path}");
    Some(read(&text, expected).unwrap())
}

fn count(findings: &[Finding], kind: Kind) -> usize {
    findings.iter().filter(|f| f.kind == kind).count()
}
