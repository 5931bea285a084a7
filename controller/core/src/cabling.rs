//! Wrong cabling: what is plugged in is not what the operator's file says.
//!
//! What is estimated: nothing; [`Topology::contradictions`] between the file and the neighbours and addresses that agents
//! report are told as verdicts, those about the same cables together (two that changed places show at up to four ports).
//!
//! Trip condition: a contradiction stands for [`MUTUAL`] where both ends name each other, otherwise for [`ONE_SIDED`]: an
//! entry of a neighbour table outlives a cable by about a minute (the kernel's `base_reachable_time` and probes). Nodes count
//! once they are connected for [`SETTLED`], since what a booting node reports is not yet what it is going to be. Recovery:
//! [`crate::incident`]. Cost: nothing where nothing is contradicted.

use crate::ids::{NodeId, PortId};
use crate::keep::keep;
use crate::topology::{Contradiction, Topology};
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that is connected for less is not asked.
pub const SETTLED: Duration = Duration::from_secs(30);
/// So long stands what both ends report.
const MUTUAL: Duration = Duration::from_secs(15);
/// So long stands what one end reports.
const ONE_SIDED: Duration = Duration::from_secs(60);
/// Verdicts at once. Where more cables are wrong, the file is.
const VERDICTS_MAX: usize = 64;

/// Since when cables are not as planned.
#[derive(Debug, Clone, Default)]
pub struct Cabling {
    /// By the ports of the cables concerned.
    since: BTreeMap<BTreeSet<PortId>, Duration>,
}

keep!(struct Cabling { since });

impl Cabling {
    /// Cables that are wrong now; `settled` says whether a node has been connected for [`SETTLED`].
    pub fn verdicts(
        &mut self,
        topology: &Topology,
        settled: impl Fn(&NodeId) -> bool,
        now: Duration,
    ) -> Vec<Verdict> {
        let mut cables: BTreeMap<BTreeSet<PortId>, Vec<&Contradiction>> = BTreeMap::new();
        let told = topology.contradictions().iter();
        for c in told.filter(|c| settled(&c.port.node) && settled(&c.actual.node)) {
            let elsewhere = topology.peer(&c.actual).cloned();
            let ports = [c.port.clone(), c.planned.clone(), c.actual.clone()];
            let ports = ports.into_iter().chain(elsewhere).collect();
            cables.entry(ports).or_default().push(c);
        }
        self.since.retain(|ports, _| cables.contains_key(ports));
        let mut verdicts = Vec::new();
        for (ports, told) in cables {
            let since = *self.since.entry(ports.clone()).or_insert(now);
            let mutual = told.iter().any(|c| c.mutual);
            let standing = now.saturating_sub(since);
            if standing >= if mutual { MUTUAL } else { ONE_SIDED } {
                verdicts.extend(verdict(ports, &told, mutual));
            }
            if verdicts.len() == VERDICTS_MAX {
                break;
            }
        }
        verdicts
    }
}

fn verdict(ports: BTreeSet<PortId>, told: &[&Contradiction], mutual: bool) -> Option<Verdict> {
    let evidence = told.iter().map(|c| {
        Evidence::new(
            format!("{} in the topology file", c.port),
            format!("to {}, but its neighbour is {}", c.planned, c.actual),
        )
    });
    let first = told.first()?;
    Some(Verdict {
        links: ports.into_iter().collect(),
        evidence: evidence.collect(),
        action: format!(
            "plug {} into {} as planned, or correct the topology file",
            first.port, first.planned
        ),
        ..Verdict::new(
            Class::Cabling,
            Severity::Warning,
            Subject::Link(first.port.clone()),
            if mutual { 0.99 } else { 0.9 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Inventory, PortInventory, Role};
    use crate::topology::{Cable, Plan};

    fn port(text: &str) -> PortId {
        PortId::parse(text).unwrap()
    }

    fn report(ports: &[(&str, &str, &[&str])]) -> Inventory {
        let ports = ports
            .iter()
            .map(|(name, address, neighbours)| PortInventory {
                name: (*name).into(),
                up: true,
                addresses: vec![(address.parse().unwrap(), 32)],
                neighbours: neighbours.iter().map(|n| n.parse().unwrap()).collect(),
                speed_bps: None,
            });
        Inventory {
            ports: ports.collect(),
            ..Inventory::default()
        }
    }

    /// Hosts a and b on ports 1 and 2 of a leaf; each sees what is given, the leaf sees `leaf`.
    fn topology(a: &[&str], b: &[&str], leaf: [&[&str]; 2]) -> Topology {
        let cable = |a: &str, b: &str| Cable {
            a: port(a),
            b: port(b),
            rate_bps: None,
        };
        let mut t = Topology::new(Plan {
            nodes: [(NodeId::new("leaf"), Role::Switch)].into(),
            cables: vec![cable("a:e0", "leaf:1"), cable("b:e0", "leaf:2")],
            ..Plan::default()
        });
        t.node_connected(&NodeId::new("leaf"), Role::Switch);
        t.inventory_reported(&NodeId::new("a"), report(&[("e0", "10.0.0.1", a)]));
        t.inventory_reported(&NodeId::new("b"), report(&[("e0", "10.0.0.2", b)]));
        let ports = [("1", "10.1.0.1", leaf[0]), ("2", "10.1.0.2", leaf[1])];
        t.inventory_reported(&NodeId::new("leaf"), report(&ports));
        t.refresh();
        t
    }

    fn after(t: &Topology, seconds: u64, settled: bool) -> usize {
        let mut cabling = Cabling::default();
        let mut at = |s| {
            cabling
                .verdicts(t, |_| settled, Duration::from_secs(s))
                .len()
        };
        assert_eq!(at(100), 0);
        at(100 + seconds)
    }

    #[test]
    fn two_cables_that_changed_places_are_one_verdict() {
        let t = topology(&["10.1.0.2"], &["10.1.0.1"], [&["10.0.0.2"], &["10.0.0.1"]]);
        assert_eq!(t.contradictions().len(), 4);
        assert_eq!(after(&t, 14, true), 0);
        assert_eq!(after(&t, 15, true), 1);
        assert_eq!(after(&t, 600, false), 0, "its nodes are booting");
    }

    #[test]
    fn what_one_end_says_has_to_stand_for_a_minute() {
        let t = topology(&["10.1.0.2"], &[], [&[], &[]]);
        assert_eq!(after(&t, 59, true), 0);
        assert_eq!(after(&t, 60, true), 1);
    }

    #[test]
    fn neighbours_on_a_segment_are_no_cables() {
        let t = topology(&["10.0.0.2"], &["10.0.0.1"], [&[], &[]]);
        assert_eq!(t.contradictions().len(), 0, "hosts on one bridge");
        let t = topology(&["10.1.0.1", "10.1.0.2"], &[], [&[], &[]]);
        assert_eq!(t.contradictions().len(), 0, "more than one neighbour");
    }
}
