//! `weir-results DOCS`: reads DOCS/results/*.json and writes DOCS/results.json and DOCS/results.md.

use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use weir_results::{PARTS, Results};

fn main() -> anyhow::Result<()> {
    let docs = std::env::args()
        .nth(1)
        .context("usage: weir-results DOCS")?;
    let docs = Path::new(&docs);
    let mut raw = BTreeMap::new();
    for (name, ..) in PARTS {
        let path = docs.join("results").join(format!("{name}.json"));
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let figures =
                serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            raw.insert((*name).to_owned(), figures);
        }
    }
    let results = Results::gather(&raw)?;
    for (name, text) in [
        (
            "results.json",
            serde_json::to_string_pretty(&results)? + "\n",
        ),
        ("results.md", results.markdown()),
    ] {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
