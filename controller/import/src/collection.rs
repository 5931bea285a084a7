//! Several files as one picture.

use crate::check::check;
use crate::fabric::Fabric;
use crate::finding::Finding;
use crate::format::Document;
use crate::sonic::{Databases, Switch};
use serde::Serialize;
use std::collections::BTreeMap;

/// What was read so far.
#[derive(Debug, Default)]
pub struct Collection {
    fabric: Fabric,
    /// Whether any file told of a fabric, be it an empty one.
    topology: bool,
    findings: Vec<Finding>,
    /// Databases of SONiC switches, by switch.
    sonic: BTreeMap<String, Databases>,
    others: Vec<Named>,
}

/// A document that is no part of a fabric, with what it is about.
#[derive(Debug, Serialize)]
pub struct Named {
    pub name: String,
    pub document: Document,
}

/// All files together.
#[derive(Debug, Default)]
pub struct Picture {
    /// `None` if no file told of one.
    pub fabric: Option<Fabric>,
    pub switches: Vec<Switch>,
    /// What tells of a node, a link or counters: affinities, module reports, inventories.
    pub others: Vec<Named>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Collection {
    /// Takes in a document. `name` stands for what it does not say: the node whose neighbours it
    /// lists, the port that it reports on. `switch` tells which of SONiC's databases belong together.
    pub fn add(&mut self, document: Document, name: &str, switch: &str) {
        self.findings.extend(document.findings(name));
        match document {
            Document::Fabric(fabric) => self.merge(fabric),
            Document::Neighbours(neighbours) => self.merge(neighbours.fabric(name)),
            Document::Sonic(database, hashes) => {
                let databases = self.sonic.entry(switch.to_owned()).or_default();
                databases.add(database, hashes);
            }
            Document::Counters(_)
            | Document::Adapters(_)
            | Document::SwitchHealth(_)
            | Document::Link(_)
            | Document::Affinity(_)
            | Document::Gpus(_) => self.others.push(Named {
                name: name.to_owned(),
                document,
            }),
        }
    }

    /// Takes in a fabric, such as that of the operator's own file.
    pub fn merge(&mut self, fabric: Fabric) {
        self.topology = true;
        self.fabric.merge(fabric);
    }

    /// Puts together what was read.
    #[must_use]
    pub fn finish(mut self) -> Picture {
        let mut switches = Vec::new();
        for (name, databases) in std::mem::take(&mut self.sonic) {
            let switch = databases.switch();
            let called = switch.name.clone().unwrap_or_else(|| name.clone());
            self.findings
                .extend(switch.findings().into_iter().map(|f| Finding {
                    subject: format!("{called}:{}", f.subject),
                    text: format!("{called}: {}", f.text),
                    ..f
                }));
            if switch.name.is_some() || switch.ports.values().any(|p| p.neighbour.is_some()) {
                self.merge(switch.fabric(&name));
            }
            switches.push(switch);
        }
        self.findings.extend(check(&self.fabric));
        let worst_first = |x: &Finding, y: &Finding| y.severity.cmp(&x.severity).then(x.cmp(y));
        self.findings.sort_by(worst_first);
        Picture {
            fabric: self.topology.then_some(self.fabric),
            switches,
            others: self.others,
            findings: self.findings,
        }
    }
}
