//! From elements and their ports, as InfiniBand tools list them, to a fabric of named nodes.

use crate::fabric::{Device, End, Fabric, Link, Node, Role, contradiction};
use crate::finding::{Finding, Kind};
use crate::guid::Guid;
use crate::names;
use std::collections::BTreeMap;

/// What a tool knows an element by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Guid(Guid),
    /// Where the tool prints no GUID.
    Lid(u16),
}

/// What a nameless element is called after.
fn id(key: Key, element: &Element) -> String {
    match (key, element.guid) {
        (Key::Guid(guid), _) | (Key::Lid(_), Some(guid)) => format!("{:016x}", guid.0),
        (Key::Lid(lid), None) => format!("lid{lid}"),
    }
}

/// A switch chip, a channel adapter or a router.
#[derive(Debug, Clone, Default)]
pub(crate) struct Element {
    pub switch: bool,
    pub description: String,
    pub device_id: Option<u32>,
    pub guid: Option<Guid>,
    pub lid: Option<u16>,
    pub port_guids: BTreeMap<u32, Guid>,
}

/// One side's account of a cable.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub from: (Key, u32),
    pub to: (Key, u32),
    pub lanes: Option<u8>,
    pub speed: Option<&'static str>,
    pub rate_bps: Option<f64>,
    /// Rate that both ends could have, where the tool says that it is higher.
    pub could_be_bps: Option<f64>,
}

/// All that a file lists.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub elements: BTreeMap<Key, Element>,
    pub accounts: Vec<Account>,
    pub ports_down: usize,
    /// Whether the file tells each cable from both of its ends, so that one account is one too few.
    pub both_ends: bool,
}

/// A lid as the tools print it; 0 and 65535 mean that the port has none.
pub(crate) fn lid(number: u16) -> Option<u16> {
    (number != 0 && number != u16::MAX).then_some(number)
}

impl Discovered {
    pub(crate) fn fabric(self) -> Fabric {
        let mut findings = Vec::new();
        let named = self.names(&mut findings);
        let mut fabric = Fabric {
            ports_down: self.ports_down,
            ..Fabric::default()
        };
        for (key, element) in &self.elements {
            let Some((node, device)) = named.get(key) else {
                fabric.aggregation_nodes += 1;
                continue;
            };
            let (role, model) = if element.switch {
                let model = names::switch(&element.description).and_then(|s| s.model);
                (Role::Switch, model)
            } else {
                (Role::Host, None)
            };
            let device = Device {
                name: device.clone(),
                model,
                guid: element.guid,
                port_guids: element.port_guids.clone(),
                lid: element.lid,
            };
            fabric
                .nodes
                .entry(node.clone())
                .or_insert_with(|| Node {
                    role,
                    devices: Vec::new(),
                })
                .devices
                .push(device);
        }
        fabric.links = self.links(&named, &mut findings);
        fabric.findings = findings;
        fabric
    }

    /// Node and device of each element, of aggregation nodes none.
    fn names(&self, findings: &mut Vec<Finding>) -> BTreeMap<Key, (String, String)> {
        let hosts_wanted = |e: &&(&Key, &Element)| {
            !e.1.switch && !names::is_aggregation(e.1.device_id, &e.1.description)
        };
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        let mut chips: BTreeMap<String, usize> = BTreeMap::new();
        for element in self.elements.values().filter(|e| e.switch) {
            if let Some(s) = names::switch(&element.description) {
                *chips.entry(format!("{} {}", s.name, s.chip)).or_default() += 1;
                *taken.entry(s.name).or_default() += 1;
            }
        }
        let mut named = BTreeMap::new();
        for (key, element) in self.elements.iter().filter(|e| e.1.switch) {
            let id = id(*key, element);
            let name = match names::switch(&element.description) {
                None => format!("switch-{id}"),
                Some(s) if taken.get(&s.name) == Some(&1) => s.name,
                Some(s)
                    if !s.chip.is_empty()
                        && chips.get(&format!("{} {}", s.name, s.chip)) == Some(&1) =>
                {
                    format!("{}-{}", s.name, s.chip)
                }
                Some(s) => format!("{}-{id}", s.name),
            };
            named.insert(*key, (name, String::new()));
        }
        let mut devices: BTreeMap<(String, String), usize> = BTreeMap::new();
        let all: Vec<(&Key, &Element)> = self.elements.iter().collect();
        for (_, element) in all.iter().filter(hosts_wanted) {
            if let Some(name) = names::host(&element.description) {
                *devices.entry(name).or_default() += 1;
            }
        }
        let mut nameless = 0_usize;
        for (key, element) in all.iter().filter(hosts_wanted) {
            let id = id(**key, element);
            let name = match names::host(&element.description) {
                None => {
                    nameless += 1;
                    (format!("ca-{id}"), "ca".to_owned())
                }
                Some((mut host, mut device)) => {
                    let twin = devices.get(&(host.clone(), device.clone())) > Some(&1);
                    if taken.contains_key(&host) {
                        host = format!("{host}-host");
                    }
                    if twin || device.is_empty() {
                        device =
                            format!("{device}{}{id}", if device.is_empty() { "" } else { "-" });
                    }
                    (host, device)
                }
            };
            named.insert(**key, name);
        }
        if nameless > 0 {
            let text = format!(
                "{nameless} adapters tell no host's name (rdma-ndd does not run there, or the host has none): they stand as nodes of their own named after their GUID"
            );
            findings.push(Finding::note(Kind::Nameless, "hosts", text));
        }
        named
    }

    fn links(
        &self,
        named: &BTreeMap<Key, (String, String)>,
        findings: &mut Vec<Finding>,
    ) -> Vec<Link> {
        let end = |(key, port): (Key, u32)| -> Option<End> {
            let (node, device) = named.get(&key)?;
            let port = if device.is_empty() {
                port.to_string()
            } else {
                format!("{device}/{port}")
            };
            Some(End {
                node: node.clone(),
                port,
            })
        };
        let told: BTreeMap<(Key, u32), (Key, u32)> =
            self.accounts.iter().map(|a| (a.from, a.to)).collect();
        let mut taken: BTreeMap<End, End> = BTreeMap::new();
        let mut links = Vec::new();
        for account in &self.accounts {
            let (Some(a), Some(b)) = (end(account.from), end(account.to)) else {
                continue;
            };
            if a == b {
                let text = format!("{a} is cabled to itself: a loopback plug, or a wrong file");
                findings.push(Finding::warning(Kind::SelfLoop, a.to_string(), text));
                continue;
            }
            match told.get(&account.to) {
                Some(back) if *back == account.from => {}
                Some(back) => {
                    let other =
                        end(*back).map_or_else(|| "nothing known".to_owned(), |e| e.to_string());
                    let text = format!("{a} sees {b} at the other end, but {b} sees {other}");
                    findings.push(contradiction(&a.to_string(), &text));
                }
                None if self.both_ends => {
                    let text = format!(
                        "{a} sees {b} at the other end, but {b} is not listed with a link: the file is cut, or the link went down while it was made"
                    );
                    findings.push(contradiction(&a.to_string(), &text));
                }
                None => {}
            }
            // A port has one cable; the first account of it stands.
            let free = |port: &End, peer: &End| taken.get(port).is_none_or(|p| p == peer);
            if !free(&a, &b) || !free(&b, &a) {
                continue;
            }
            let known = taken.insert(a.clone(), b.clone()).is_some();
            taken.insert(b.clone(), a.clone());
            if known {
                continue;
            }
            downgraded(account, &a, &b, findings);
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            links.push(Link {
                a,
                b,
                rate_bps: account.rate_bps,
                lanes: account.lanes,
                speed: account.speed,
            });
        }
        links.sort_by(|x, y| (&x.a, &x.b).cmp(&(&y.a, &y.b)));
        links
    }
}

fn downgraded(account: &Account, a: &End, b: &End, findings: &mut Vec<Finding>) {
    if let (Some(rate), Some(could)) = (account.rate_bps, account.could_be_bps) {
        let (rate, could) = (crate::rate::spoken(rate), crate::rate::spoken(could));
        let text = format!(
            "{a} - {b} runs at {rate} where both ends can do {could}: reseat or change the cable, and check that no end is set to a lower speed"
        );
        findings.push(Finding::warning(Kind::Downgraded, a.to_string(), text));
    }
}
