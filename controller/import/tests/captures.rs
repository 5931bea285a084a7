//! Every capture of a real machine, with what it must give. The captures live beside the checkout.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use std::io::Write as _;
use std::path::PathBuf;
use weir_import::check::check;
use weir_import::fabric::Role;
use weir_import::finding::Kind;
use weir_import::graph::{Graph, Tier};
use weir_import::{ibnetdiscover, rails};

/// The text of a capture; says aloud that the test is skipped where there are none.
fn capture(path: &str) -> Option<String> {
    let root = std::env::var_os("WEIR_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    if root.is_dir() {
        return Some(std::fs::read_to_string(root.join(path)).unwrap());
    }
    let line = format!("SKIPPED: no captures in {}\n", root.display());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

#[test]
fn x() {
    for f in [
        "fabric/ufm_sdk/selene.compute.txt",
        "fabric/topograph/ibnetdiscover-example.out",
        "fabric/ufm_sdk/small_topo_file",
    ] {
        let Some(text) = capture(f) else { return };
        let t = std::time::Instant::now();
        let fabric = ibnetdiscover::parse(&text).unwrap();
        eprintln!("parse {:?}", t.elapsed());
        let graph = Graph::new(&fabric);
        eprintln!(
            "{f} hosts {} switches {} links {} agg {}",
            fabric.count(Role::Host),
            fabric.count(Role::Switch),
            fabric.links.len(),
            fabric.aggregation_nodes
        );
        eprintln!(
            "leaf {} spine {} core {} apart {}",
            graph.count(Tier::Leaf),
            graph.count(Tier::Spine),
            graph.count(Tier::Core),
            graph.count(Tier::Apart)
        );
        let fs = check(&fabric);
        eprintln!("{:?} findings {}", t.elapsed(), fs.len());
        for f in &fs {
            eprintln!("  {:?} {:?} {}", f.severity, f.kind, f.text);
        }
        for r in rails::rails(&fabric, &graph) {
            eprintln!(
                "  rail {} leaves {} adapters {}",
                r.rail,
                r.leaves.len(),
                r.adapters
            );
        }
        eprintln!("groups {}", graph.groups().len());
        let _ = Kind::Asymmetry;
    }
    for f in ["test", "test2", "test3"] {
        let Some(text) = capture(&format!("fabric/treydock/ibnetdiscover/{f}.out")) else {
            return;
        };
        eprintln!("{:#?}", ibnetdiscover::parse_list(&text).unwrap());
    }
}
