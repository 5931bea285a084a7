//! A fabric as a reader understood it: hosts, switches, cables.

use crate::finding::Finding;
use crate::guid::Guid;
use crate::rate;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use weir_controller_core::ids::{NodeId, PortId};
use weir_controller_core::io;
use weir_controller_core::topology::{Cable, Plan};

/// What a node does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Host,
    Switch,
}

/// A device of a node: a NIC of a host, the chip of a switch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Device {
    /// As in its ports' names, such as `mlx5_0`; empty for a switch.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Model, as the tool tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Guid>,
    /// GUIDs of ports, where they are told.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_guids: BTreeMap<u32, Guid>,
    /// Local identifier; `None` while the port is down (tools then print 0 or 65535).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lid: Option<u16>,
}

/// A host or switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    pub role: Role,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// A port of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct End {
    pub node: String,
    pub port: String,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.port)
    }
}

impl From<End> for String {
    fn from(end: End) -> String {
        end.to_string()
    }
}

/// A cable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Link {
    pub a: End,
    pub b: End,
    /// Bits per second, each direction; `None` if the tool does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u8>,
    /// Generation of the lanes, such as `HDR`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<&'static str>,
}

/// What was read, from one file or several.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Fabric {
    pub nodes: BTreeMap<String, Node>,
    /// In order of their ends, each cable once.
    pub links: Vec<Link>,
    /// SHARP aggregation nodes: they look like hosts on a switch's extra port, and are left out.
    pub aggregation_nodes: usize,
    /// Ports that were listed without a link.
    pub ports_down: usize,
    /// What the reader noticed; the checks of the graph are [`crate::check::check`].
    pub findings: Vec<Finding>,
}

impl Fabric {
    /// Nodes of a role.
    #[must_use]
    pub fn count(&self, role: Role) -> usize {
        self.nodes.values().filter(|n| n.role == role).count()
    }

    /// Takes in what another file says. A port keeps the cable that it got first; the same cable
    /// told from its other end adds what was not known.
    pub fn merge(&mut self, other: Fabric) {
        for (name, node) in other.nodes {
            let Some(mine) = self.nodes.get_mut(&name) else {
                self.nodes.insert(name, node);
                continue;
            };
            // Whoever forwards is a switch: a neighbour that does not say so is taken for a host.
            if node.role == Role::Switch {
                mine.role = Role::Switch;
            }
            let new = |d: &Device| !mine.devices.iter().any(|m| m == d);
            let devices: Vec<Device> = node.devices.into_iter().filter(new).collect();
            mine.devices.extend(devices);
        }
        let mut by_port: BTreeMap<End, usize> = BTreeMap::new();
        for (n, link) in self.links.iter().enumerate() {
            by_port.insert(link.a.clone(), n);
            by_port.insert(link.b.clone(), n);
        }
        for link in other.links {
            let seen = by_port.get(&link.a).or(by_port.get(&link.b)).copied();
            let Some(n) = seen else {
                by_port.insert(link.a.clone(), self.links.len());
                by_port.insert(link.b.clone(), self.links.len());
                self.links.push(link);
                continue;
            };
            let mine = &mut self.links[n];
            let same = |l: &Link| BTreeSet::from([l.a.clone(), l.b.clone()]);
            if same(mine) == same(&link) {
                mine.rate_bps = mine.rate_bps.or(link.rate_bps);
                mine.lanes = mine.lanes.or(link.lanes);
                mine.speed = mine.speed.or(link.speed);
            } else {
                let text = format!(
                    "one file has a cable {} - {}, another {} - {}; the first stands",
                    mine.a, mine.b, link.a, link.b
                );
                self.findings
                    .push(contradiction(&link.a.to_string(), &text));
            }
        }
        self.links.sort_by(|x, y| (&x.a, &x.b).cmp(&(&y.a, &y.b)));
        self.aggregation_nodes += other.aggregation_nodes;
        self.ports_down += other.ports_down;
        self.findings.extend(other.findings);
    }

    /// As the controller takes it.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let role = |n: &Node| match n.role {
            Role::Host => io::Role::Host,
            Role::Switch => io::Role::Switch,
        };
        let port = |end: &End| PortId::new(&NodeId::new(&end.node), &end.port);
        Plan {
            nodes: self
                .nodes
                .iter()
                .map(|(name, node)| (NodeId::new(name), role(node)))
                .collect(),
            cables: self
                .links
                .iter()
                .map(|l| Cable {
                    a: port(&l.a),
                    b: port(&l.b),
                    rate_bps: l.rate_bps,
                })
                .collect(),
            ..Plan::default()
        }
    }

    /// From what the controller has, so that an operator's own file can be checked as well.
    #[must_use]
    pub fn of_plan(plan: &Plan) -> Fabric {
        let nodes = plan.nodes.iter().map(|(id, role)| {
            let role = match role {
                io::Role::Host => Role::Host,
                io::Role::Switch => Role::Switch,
            };
            let devices = Vec::new();
            (id.as_str().to_owned(), Node { role, devices })
        });
        let end = |port: &PortId| End {
            node: port.node.as_str().to_owned(),
            port: port.port.to_string(),
        };
        let links = plan.cables.iter().map(|c| Link {
            a: end(&c.a),
            b: end(&c.b),
            rate_bps: c.rate_bps,
            lanes: None,
            speed: None,
        });
        Fabric {
            nodes: nodes.collect(),
            links: links.collect(),
            ..Fabric::default()
        }
    }

    /// The topology file of the controller. Switches are called leaf, spine and core by their place.
    #[must_use]
    pub fn yaml(&self) -> String {
        use std::fmt::Write as _;
        let graph = crate::graph::Graph::new(self);
        let mut text = String::from("nodes:\n");
        // Writing to a String cannot fail.
        for (n, name) in self.nodes.keys().enumerate() {
            writeln!(
                text,
                "  - {{name: {}, role: {}}}",
                quoted(name),
                graph.tier(n).name()
            )
            .ok();
        }
        text.push_str(if self.links.is_empty() {
            "links: []\n"
        } else {
            "links:\n"
        });
        for link in &self.links {
            let (a, b) = (quoted(&link.a.to_string()), quoted(&link.b.to_string()));
            match link.rate_bps {
                None => writeln!(text, "  - {{a: {a}, b: {b}}}"),
                Some(bps) => writeln!(text, "  - {{a: {a}, b: {b}, rate: {}}}", rate::spoken(bps)),
            }
            .ok();
        }
        text
    }
}

/// Two tools, or two ends, that say different things.
pub(crate) fn contradiction(subject: &str, text: &str) -> Finding {
    Finding::warning(crate::finding::Kind::Contradiction, subject, text)
}

/// A name that the topology file can hold: no colon, no white space, nothing that YAML or a URL
/// reads as more than a letter.
#[must_use]
pub(crate) fn tidy(name: &str) -> String {
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let tidied: String = name
        .trim()
        .chars()
        .map(|c| if fine(c) { c } else { '-' })
        .collect();
    if tidied.is_empty() {
        "-".to_owned()
    } else {
        tidied
    }
}

/// A port's name: as [`tidy`], and `Ethernet1/1` stays what it is.
#[must_use]
pub(crate) fn tidy_port(name: &str) -> String {
    name.split('/').map(tidy).collect::<Vec<_>>().join("/")
}

/// A double-quoted scalar: what JSON escapes, YAML reads alike.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
