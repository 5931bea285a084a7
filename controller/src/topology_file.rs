//! The operator's topology file.
//!
//! ```yaml
//! nodes:
//!   - {name: h11, role: host}
//!   - {name: l1, role: leaf}
//! links:
//!   - {a: "h11:eth0", b: "l1:h11", rate: 200Mbit}
//! ```

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use weir_controller_core::ids::{NodeId, PortId};
use weir_controller_core::io::Role;
use weir_controller_core::topology::{Cable, Plan};

/// Why a topology file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot read {path}: {source}; set `topology` to an existing file")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Syntax {
        path: PathBuf,
        source: serde_norway::Error,
    },
    #[error("{path}: {place}: {what}")]
    Value {
        path: PathBuf,
        place: String,
        what: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Node>,
    links: Vec<Link>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    role: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    a: String,
    b: String,
    rate: Option<String>,
}

/// Reads and checks a topology file.
///
/// # Errors
/// [`TopologyError`] names the file, the entry and the remedy.
pub fn read(path: &Path) -> Result<Plan, TopologyError> {
    parse(&text(path)?, path)
}

/// The text of a topology file, unchecked.
///
/// # Errors
/// [`TopologyError::Read`].
pub fn text(path: &Path) -> Result<String, TopologyError> {
    std::fs::read_to_string(path).map_err(|source| TopologyError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Parses the text of a topology file; `path` is for the messages.
///
/// # Errors
/// [`TopologyError`].
pub fn parse(text: &str, path: &Path) -> Result<Plan, TopologyError> {
    let file: File = serde_norway::from_str(text).map_err(|source| TopologyError::Syntax {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |place: String, what: String| TopologyError::Value {
        path: path.to_owned(),
        place,
        what,
    };
    let mut nodes = BTreeMap::new();
    let mut storage = BTreeSet::new();
    for (n, node) in file.nodes.iter().enumerate() {
        let role = match node.role.as_str() {
            "host" => Role::Host,
            "storage" => {
                storage.insert(NodeId::new(&node.name));
                Role::Host
            }
            "switch" | "leaf" | "spine" | "core" => Role::Switch,
            other => {
                return Err(wrong(
                    format!("nodes[{n}].role"),
                    format!(
                        "{other:?} is no role; give host, storage, switch, leaf, spine or core"
                    ),
                ));
            }
        };
        if nodes.insert(NodeId::new(&node.name), role).is_some() {
            return Err(wrong(
                format!("nodes[{n}].name"),
                format!("{} is there twice", node.name),
            ));
        }
    }
    let mut taken: BTreeMap<PortId, usize> = BTreeMap::new();
    let mut cables = Vec::new();
    for (n, link) in file.links.iter().enumerate() {
        let mut ends = Vec::new();
        for (key, end) in [("a", &link.a), ("b", &link.b)] {
            let place = format!("links[{n}].{key}");
            let port = PortId::parse(end).map_err(|t| {
                wrong(
                    place.clone(),
                    format!("{t:?} is no port; write node:interface, such as \"l1:up1\""),
                )
            })?;
            if !nodes.contains_key(&port.node) {
                return Err(wrong(
                    place,
                    format!(
                        "{} is not among the nodes; add it there or correct the name",
                        port.node
                    ),
                ));
            }
            if let Some(other) = taken.insert(port.clone(), n) {
                return Err(wrong(place, format!("{port} is in links[{other}] already")));
            }
            ends.push(port);
        }
        let rate_bps = match &link.rate {
            None => None,
            Some(rate) => Some(parse_rate(rate).ok_or_else(|| wrong(format!("links[{n}].rate"), format!("{rate:?} is no rate; write a number with kbit, Mbit, Gbit or Tbit, such as \"400Gbit\"")))?),
        };
        if let [a, b] = ends.as_slice() {
            cables.push(Cable {
                a: a.clone(),
                b: b.clone(),
                rate_bps,
            });
        }
    }
    Ok(Plan {
        nodes,
        storage,
        cables,
    })
}

/// Reads "200Mbit" as bits per second.
fn parse_rate(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        "tbit" => 1e12,
        _ => return None,
    };
    number
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|n| *n > 0.0 && n.is_finite())
        .map(|n| n * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(links: &str) -> Result<Plan, String> {
        let text = format!(
            "nodes: [{{name: l1, role: leaf}}, {{name: s1, role: spine}}]\nlinks: [{links}]"
        );
        parse(&text, Path::new("fabric.yaml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_link_has_ends_and_a_rate() {
        let plan = check("{a: \"l1:up1\", b: \"s1:down1\", rate: 200Mbit}").unwrap();
        assert_eq!(plan.cables[0].rate_bps, Some(200e6));
    }

    #[test]
    fn an_unknown_node_is_named_with_its_place() {
        let text = check("{a: \"l1:up1\", b: \"s9:down1\"}").unwrap_err();
        assert!(
            text.contains("fabric.yaml") && text.contains("links[0].b") && text.contains("s9"),
            "{text}"
        );
    }

    #[test]
    fn a_rate_without_unit_is_refused() {
        assert!(
            check("{a: \"l1:up1\", b: \"s1:down1\", rate: \"200\"}")
                .unwrap_err()
                .contains("links[0].rate")
        );
    }

    #[test]
    fn a_port_has_one_cable() {
        assert!(
            check("{a: \"l1:up1\", b: \"s1:d1\"}, {a: \"l1:up1\", b: \"s1:d2\"}")
                .unwrap_err()
                .contains("links[0] already")
        );
    }
}
