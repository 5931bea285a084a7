//! The document says what was measured: docs/results.md is made of docs/results.json, and that of the raw figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use weir_results::{PARTS, Results};

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name)
}

#[test]
fn the_document_is_what_the_figures_render_to() {
    let json = fs::read_to_string(docs("results.json")).unwrap();
    let results: Results = serde_json::from_str(&json).unwrap();
    assert_eq!(
        results.markdown(),
        fs::read_to_string(docs("results.md")).unwrap()
    );
}

#[test]
fn the_figures_are_what_the_raw_ones_give() {
    let mut raw = BTreeMap::new();
    for (name, ..) in PARTS {
        if let Ok(text) = fs::read_to_string(docs(&format!("results/{name}.json"))) {
            raw.insert((*name).to_owned(), serde_json::from_str(&text).unwrap());
        }
    }
    assert!(raw.contains_key("diagnosis"));
    let results: Results =
        serde_json::from_str(&fs::read_to_string(docs("results.json")).unwrap()).unwrap();
    assert_eq!(Results::gather(&raw).unwrap(), results);
}

#[test]
fn a_part_without_figures_is_left_out_and_wrong_figures_are_told() {
    assert_eq!(
        Results::gather(&BTreeMap::new()).unwrap(),
        Results::default()
    );
    let raw = BTreeMap::from([("cost".to_owned(), serde_json::json!({"nodes": 1}))]);
    let refused = Results::gather(&raw).unwrap_err().to_string();
    assert!(refused.contains("docs/results/cost.json"), "{refused}");
}
