//! What a fabric's routes, nexthops and queueing look like, as a value that tests compare.
//!
//! Statistics are left out, order does not matter, and the management ports are part of it.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::{fabric::Fabric, shell, sys};

/// Lines of `ip route`, `ip nexthop` and `tc`, sorted, by node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot(pub BTreeMap<String, Vec<String>>);

impl Snapshot {
    /// What differs, a line each: `l1 - route ..` was there before, `l1 + route ..` is there now.
    #[must_use]
    pub fn diff(&self, now: &Self) -> Vec<String> {
        let empty = Vec::new();
        let mut out = Vec::new();
        let mut nodes: Vec<&String> = self.0.keys().chain(now.0.keys()).collect();
        nodes.sort();
        nodes.dedup();
        for node in nodes {
            let before = self.0.get(node).unwrap_or(&empty);
            let after = now.0.get(node).unwrap_or(&empty);
            out.extend(missing(before, after).map(|l| format!("{node} - {l}")));
            out.extend(missing(after, before).map(|l| format!("{node} + {l}")));
        }
        out
    }
}

fn missing<'a>(from: &'a [String], of: &'a [String]) -> impl Iterator<Item = &'a String> {
    from.iter().filter(|line| !of.contains(line))
}

impl Fabric {
    /// Reads the routes, nexthop objects, qdiscs, classes and filters of every node.
    ///
    /// # Errors
    /// When ip or tc fails.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut nodes = BTreeMap::new();
        for (node, _) in self.nodes() {
            let lines = sys::in_netns(&self.namespace(&node), || read_node(&self.ports(&node)))?;
            nodes.insert(node, lines);
        }
        Ok(Snapshot(nodes))
    }

    /// Every port of a node, `mgmt0` included.
    #[must_use]
    pub fn ports(&self, node: &str) -> Vec<String> {
        let links = self.spec().links();
        let ends = links.iter().flat_map(|link| [&link.a, &link.b]);
        ends.filter(|end| end.node == node)
            .map(|end| end.port.clone())
            .chain(["mgmt0".to_owned()])
            .collect()
    }
}

/// Reads the namespace that the calling thread is in.
fn read_node(ports: &[String]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut add = |kind: &str, text: &str| {
        // A continuation ("\tnexthop via ..") belongs to the line before it.
        let joined = text.replace("\n\t", " ").replace("\n ", " ");
        let words = joined
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>());
        lines.extend(words.map(|w| format!("{kind} {}", w.join(" "))));
    };
    add(
        "route",
        &shell::run("ip", &["route", "show", "table", "all"])?,
    );
    add("nexthop", &shell::run("ip", &["nexthop", "show"])?);
    add("tc", &shell::run("tc", &["qdisc", "show"])?);
    for port in ports {
        let queries = format!(
            "class show dev {port}\nfilter show dev {port}\nfilter show dev {port} ingress\nfilter show dev {port} egress\n"
        );
        add(&format!("tc {port}"), &shell::batch("tc", &queries)?);
    }
    lines.sort();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(lines: &[&str]) -> Snapshot {
        let lines = lines.iter().map(|l| (*l).to_owned()).collect();
        Snapshot(BTreeMap::from([("l1".to_owned(), lines)]))
    }

    #[test]
    fn equal_snapshots_have_no_difference() {
        assert!(snapshot(&["a"]).diff(&snapshot(&["a"])).is_empty());
    }

    #[test]
    fn a_difference_says_which_side_has_the_line() {
        let diff = snapshot(&["a", "b"]).diff(&snapshot(&["a", "c"]));
        assert_eq!(diff, ["l1 - b", "l1 + c"]);
    }
}
