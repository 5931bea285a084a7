//! Neighbours as `lldpctl -f json` and `-f json0` print them.
//!
//! In `json`, `interface` is an object with one neighbour and a list with several, and a chassis is
//! keyed by its name (or has none, and then stands there bare); `json0` always lists. SONiC puts the
//! local chassis in front.

use crate::fabric::{Device, End, Fabric, Link, Node, Role, contradiction, tidy, tidy_port};
use crate::text::Error;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// A neighbour on one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    pub local_port: String,
    /// System name; `None` if the neighbour tells none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Mostly a MAC address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_id: Option<String>,
    /// Interface name where the neighbour tells it, else whatever it tells.
    pub port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_description: Option<String>,
    pub management_addresses: Vec<String>,
    /// Whether it bridges or routes; `None` if it tells no capability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwards: Option<bool>,
}

/// What one node sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Neighbours {
    /// The node's own name, where the output has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_forwards: Option<bool>,
    pub neighbours: Vec<Neighbour>,
}

/// Reads the JSON of lldpctl.
///
/// # Errors
/// [`Error`] if it is no JSON, or has neither `lldp` nor `local-chassis`.
pub fn parse(text: &str) -> Result<Neighbours, Error> {
    let root: Value = serde_json::from_str(text).map_err(|e| Error::json(&e, text))?;
    let mut seen = Neighbours::default();
    let wrapped = root.get("lldp_loc_chassis").unwrap_or(&root);
    let local = wrapped.get("local-chassis").map(first);
    if let Some(chassis) = local.and_then(|l| l.get("chassis")) {
        let chassis = Chassis::of(chassis);
        (seen.local, seen.local_forwards) = (chassis.name, chassis.forwards);
    } else if root.get("lldp").is_none() {
        return Err(Error::new(1, 1, "an object with lldp", text.trim()));
    }
    let Some(interfaces) = root.get("lldp").map(first).and_then(|l| l.get("interface")) else {
        return Ok(seen);
    };
    for entry in each(interfaces) {
        // json0 names the interface inside; json by the key.
        if let Some(name) = entry.get("name").and_then(Value::as_str) {
            seen.neighbours.push(neighbour(name, entry));
        } else {
            for (name, entry) in entry.as_object().into_iter().flatten() {
                let all = each(entry).into_iter().filter(|e| e.is_object());
                seen.neighbours.extend(all.map(|e| neighbour(name, e)));
            }
        }
    }
    Ok(seen)
}

/// The first of a list, or the thing itself.
fn first(value: &Value) -> &Value {
    value.get(0).unwrap_or(value)
}

/// The elements of a list, or the thing itself.
fn each(value: &Value) -> Vec<&Value> {
    match value.as_array() {
        Some(list) => list.iter().collect(),
        None => vec![value],
    }
}

/// `"x"`, `{"value": "x"}` and `[{"value": "x"}]` alike.
fn scalar(value: &Value) -> Option<String> {
    let value = first(value);
    let value = value.get("value").unwrap_or(value);
    match value.as_str() {
        Some(text) => Some(text.to_owned()),
        None => value.is_number().then(|| value.to_string()),
    }
    .filter(|t| !t.trim().is_empty())
}

struct Chassis {
    name: Option<String>,
    id: Option<String>,
    addresses: Vec<String>,
    forwards: Option<bool>,
}

impl Chassis {
    fn of(value: &Value) -> Chassis {
        let value = first(value);
        // Bare, or json0: the id is right here. Otherwise the only key is the name.
        let (name, body) = if value
            .get("id")
            .is_some_and(|id| first(id).get("type").is_some())
        {
            (value.get("name").and_then(scalar), value)
        } else {
            let named = value.as_object().and_then(|o| o.iter().next());
            named.map_or((None, value), |(name, body)| (Some(name.clone()), body))
        };
        let capabilities: Vec<&Value> = body.get("capability").map(each).unwrap_or_default();
        let forwards = |c: &&&Value| {
            let kind = c.get("type").and_then(Value::as_str).unwrap_or("");
            let on = c.get("enabled").and_then(Value::as_bool) == Some(true);
            on && matches!(kind, "Bridge" | "Router")
        };
        Chassis {
            name,
            id: body.get("id").and_then(scalar),
            addresses: body
                .get("mgmt-ip")
                .map(each)
                .unwrap_or_default()
                .into_iter()
                .filter_map(scalar)
                .collect(),
            forwards: (!capabilities.is_empty())
                .then(|| capabilities.iter().filter(forwards).count() > 0),
        }
    }
}

fn neighbour(local_port: &str, entry: &Value) -> Neighbour {
    let chassis = Chassis::of(entry.get("chassis").unwrap_or(&Value::Null));
    let port = first(entry.get("port").unwrap_or(&Value::Null));
    let id = port.get("id").map(first);
    let kind = id.and_then(|i| i.get("type")).and_then(Value::as_str);
    let id = port.get("id").and_then(scalar);
    let description = port.get("descr").and_then(scalar);
    // A Linux host gives its MAC address as the port's id and the interface as the description.
    let interface = description
        .clone()
        .filter(|d| kind != Some("ifname") && !d.contains(char::is_whitespace));
    Neighbour {
        local_port: local_port.to_owned(),
        name: chassis.name,
        chassis_id: chassis.id,
        port: interface.or(id).unwrap_or_default(),
        port_description: description,
        management_addresses: chassis.addresses,
        forwards: chassis.forwards,
    }
}

impl Neighbours {
    /// As a fabric: this node and its cables. `fallback` is its name if the output has none.
    ///
    /// On a switch with front-panel ports (`EthernetN`, `swpN`), `eth0` is the management port and
    /// left out.
    #[must_use]
    pub fn fabric(&self, fallback: &str) -> Fabric {
        let mut fabric = Fabric::default();
        let local = tidy(self.local.as_deref().unwrap_or(fallback));
        let panel = |n: &Neighbour| {
            ["Ethernet", "swp"]
                .iter()
                .any(|p| n.local_port.starts_with(p))
        };
        let front = self.neighbours.iter().any(panel);
        let role = |forwards: Option<bool>| match forwards {
            Some(true) => Role::Switch,
            Some(false) | None => Role::Host,
        };
        let node = |forwards| Node {
            role: role(forwards),
            devices: Vec::<Device>::new(),
        };
        let forwards = self.local_forwards.or(front.then_some(true));
        fabric.nodes.insert(local.clone(), node(forwards));
        let mut taken = BTreeSet::new();
        for n in &self.neighbours {
            let management = n.local_port == "eth0" || n.local_port.starts_with("mgmt");
            if front && management {
                continue;
            }
            let Some(name) = n.name.as_ref().or(n.chassis_id.as_ref()) else {
                continue;
            };
            let a = End {
                node: local.clone(),
                port: tidy_port(&n.local_port),
            };
            let b = End {
                node: tidy(name),
                port: tidy_port(&n.port),
            };
            if taken.contains(&a) || taken.contains(&b) {
                let text = format!(
                    "{a} sees {b}, but one of them has a cable already: a bridge without LLDP is between, or two neighbours tell one name"
                );
                fabric.findings.push(contradiction(&a.to_string(), &text));
                continue;
            }
            let entry = fabric
                .nodes
                .entry(b.node.clone())
                .or_insert_with(|| node(n.forwards));
            if n.forwards == Some(true) {
                entry.role = Role::Switch;
            }
            taken.extend([a.clone(), b.clone()]);
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            fabric.links.push(Link {
                a,
                b,
                rate_bps: None,
                lanes: None,
                speed: None,
            });
        }
        fabric.links.sort_by(|x, y| (&x.a, &x.b).cmp(&(&y.a, &y.b)));
        fabric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"lldp":{"interface":{"eth2":{"chassis":{"leaf1":{"id":{"type":"mac","value":"02:00:00:00:00:01"},"mgmt-ip":"192.0.2.1","capability":[{"type":"Bridge","enabled":true}]}},"port":{"id":{"type":"ifname","value":"swp3"}}}}}}"#;
    const ZERO: &str = r#"{"lldp":[{"interface":[{"name":"eth2","chassis":[{"id":[{"type":"mac","value":"02:00:00:00:00:01"}],"name":[{"value":"leaf1"}],"mgmt-ip":[{"value":"192.0.2.1"}],"capability":[{"type":"Bridge","enabled":true}]}],"port":[{"id":[{"type":"ifname","value":"swp3"}]}]}]}]}"#;

    #[test]
    fn json_and_json0_say_the_same() {
        let one = parse(ONE).unwrap();
        assert_eq!(one, parse(ZERO).unwrap());
        let fabric = one.fabric("node1");
        assert_eq!(fabric.links[0].a.to_string(), "leaf1:swp3");
        assert_eq!(fabric.nodes["leaf1"].role, Role::Switch);
        assert_eq!(fabric.nodes["node1"].role, Role::Host);
    }

    #[test]
    fn a_list_has_several_and_a_chassis_without_name_is_its_address() {
        let text = r#"{"lldp":{"interface":[{"eth0":{"chassis":{"id":{"type":"mac","value":"02:00:00:00:00:09"},"ttl":"120"},"port":{"id":{"type":"mac","value":"02:00:00:00:00:0a"},"descr":"ens3"}}},{"eth1":{"chassis":{"b":{"id":{"type":"mac","value":"x"}}},"port":{"id":{"type":"local","value":"7"}}}}]}}"#;
        let seen = parse(text).unwrap();
        assert_eq!(seen.neighbours[0].name, None);
        assert_eq!(seen.neighbours[0].port, "ens3");
        assert_eq!(seen.neighbours[1].port, "7");
        assert_eq!(seen.fabric("a").links.len(), 2);
    }

    #[test]
    fn other_json_is_refused_with_its_place() {
        assert!(parse("{\"x\": 1}").unwrap_err().expected.contains("lldp"));
        let error = parse("{\"lldp\":\n  {,}}").unwrap_err();
        assert_eq!((error.line, error.column), (2, 4), "{error}");
    }
}
