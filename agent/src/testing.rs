//! What unit tests of several sources share.

use std::io::Write as _;
use std::path::PathBuf;

/// A folder of captures of real machines, which live beside the checkout (or in `WEIR_FIXTURES`);
/// says aloud that the test is skipped where they are not.
pub fn fixtures(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEIR_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    let path = root.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    let line = format!("SKIPPED: no captures in {}\n", path.display());
    std::io::stderr().write_all(line.as_bytes()).ok();
    None
}
