//! Which verdict follows from which: one incident for a cause, not nine.
//!
//! A verdict is a consequence of an open one of a class that comes earlier in [`ORDER`], if both touch the same thing:
//! the same cable, a sibling in the next-hop group of a link that carries less or nothing, the same host, or the same
//! job (then only what is said of ranks and nodes; two hot links of one job may well have two causes). On doubt it
//! stands for itself: a consequence that is told apart costs a look, a cause that is hidden costs a day.

use crate::ids::{JobId, NodeId, PortId};
use crate::topology::Topology;
use crate::verdict::{Class, Verdict};
use std::collections::BTreeSet;

/// What is broken before what is congested before what is slow.
const ORDER: [Class; 16] = [
    Class::GpuFault,
    Class::NicFault,
    Class::Cabling,
    Class::LinkDown,
    Class::LinkFlap,
    Class::LinkErrors,
    Class::DegradedLink,
    Class::SilentLoss,
    Class::PfcStorm,
    Class::SlowReceiver,
    Class::StorageBurst,
    Class::Incast,
    Class::Oversubscription,
    Class::EcmpCollision,
    Class::NodeOutlier,
    Class::Straggler,
];

/// Place of a class: a cause comes before what follows from it.
#[must_use]
pub fn order(class: Class) -> usize {
    let place = ORDER.iter().position(|c| *c == class);
    place.unwrap_or(ORDER.len())
}

/// Whether a class is about a rank or a node that is slow, whatever the reason.
fn is_symptom(class: Class) -> bool {
    matches!(class, Class::NodeOutlier | Class::Straggler)
}

/// Whether a link of this class leaves its traffic to its siblings.
fn sheds(class: Class) -> bool {
    matches!(
        class,
        Class::LinkDown
            | Class::LinkFlap
            | Class::LinkErrors
            | Class::DegradedLink
            | Class::SilentLoss
    )
}

/// Whether a class says that more comes than a link carries: what is routed elsewhere may do that.
#[must_use]
pub fn is_crowded(class: Class) -> bool {
    matches!(
        class,
        Class::EcmpCollision | Class::Oversubscription | Class::Incast | Class::StorageBurst
    )
}

/// Whether a verdict says that a cable, named by one of its ports, carries nothing, for good or again and again.
#[must_use]
pub fn loses(verdict: &Verdict, cable: &PortId, topology: &Topology) -> bool {
    matches!(verdict.class, Class::LinkDown | Class::LinkFlap)
        && ports(verdict).any(|p| p == cable || topology.peer(p) == Some(cable))
}

/// A verdict with the jobs whose flows cross its links or end at its host, and the cables that were lost before it
/// where its flows pass ([`crate::losses`]).
#[derive(Debug, Clone, Copy)]
pub struct Affected<'a> {
    pub verdict: &'a Verdict,
    pub jobs: &'a BTreeSet<JobId>,
    pub after: &'a BTreeSet<PortId>,
}

/// Whether the verdict of `of` follows from that of `root`.
#[must_use]
pub fn follows(of: Affected<'_>, root: Affected<'_>, topology: &Topology) -> bool {
    let verdict = of.verdict;
    let (class, from) = (verdict.class, root.verdict.class);
    if order(class) <= order(from) {
        return false;
    }
    let host = |v: &Verdict| -> Option<NodeId> {
        // A last hop is its host's.
        let far = v
            .entity
            .link()
            .and_then(|l| topology.peer(l))
            .map(|p| &p.node);
        let mut nodes = v.entity.node().into_iter().chain(far);
        nodes.find(|node| !topology.is_switch(node)).cloned()
    };
    let same_host = host(verdict).is_some_and(|h| Some(h) == host(root.verdict));
    if from == Class::GpuFault {
        return is_symptom(class) && (same_host || in_job(verdict, root.jobs));
    }
    if is_symptom(class) && (same_host || in_job(verdict, root.jobs)) {
        return true;
    }
    if from == Class::NicFault && same_host {
        return true;
    }
    if of.after.iter().any(|c| loses(root.verdict, c, topology)) {
        return true;
    }
    let cable = |port: &PortId| {
        let far = topology.peer(port).cloned();
        [Some(port.clone()), far].into_iter().flatten()
    };
    let cables: BTreeSet<PortId> = ports(root.verdict).flat_map(cable).collect();
    if ports(verdict).any(|p| cables.contains(p)) {
        return true;
    }
    // What a link does not carry any more, its siblings do.
    sheds(from)
        && cables.iter().any(|port| {
            let sibling = |p: &PortId| p.node == port.node && topology.shared_group(port, &p.port);
            ports(verdict).any(sibling)
        })
}

/// The links of a verdict; of a verdict on a host's device all that is known is the host.
fn ports(verdict: &Verdict) -> impl Iterator<Item = &PortId> {
    verdict.entity.link().into_iter().chain(&verdict.links)
}

fn in_job(verdict: &Verdict, jobs: &BTreeSet<JobId>) -> bool {
    verdict.job.as_ref().is_some_and(|job| jobs.contains(job))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{EcmpGroup, Inventory, Role};
    use crate::topology::{Cable, Plan};
    use crate::verdict::{Severity, Subject};

    fn port(text: &str) -> PortId {
        PortId::parse(text).unwrap()
    }

    /// A leaf with a host, two uplinks in a group, and a spine to each.
    fn topology() -> Topology {
        let cables = [
            ("h1:eth0", "l1:h1"),
            ("l1:up1", "s1:down1"),
            ("l1:up2", "s2:down1"),
        ];
        let cables = cables.map(|(a, b)| Cable {
            a: port(a),
            b: port(b),
            rate_bps: None,
        });
        let switches = ["l1", "s1", "s2"].map(|n| (NodeId::new(n), Role::Switch));
        let mut topology = Topology::new(Plan {
            nodes: switches.into(),
            cables: cables.to_vec(),
            ..Plan::default()
        });
        let members = vec!["up1".into(), "up2".into()];
        let groups = vec![EcmpGroup { id: 1, members }];
        let l1 = NodeId::new("l1");
        let inventory = |groups| Inventory {
            groups,
            ..Inventory::default()
        };
        topology.inventory_reported(&l1, inventory(groups));
        // A kernel takes a next hop whose link is down out of its group.
        let groups = vec![EcmpGroup {
            id: 1,
            members: vec!["up2".into()],
        }];
        topology.inventory_reported(&l1, inventory(groups));
        topology
    }

    fn link(class: Class, text: &str) -> Verdict {
        let entity = Subject::Link(port(text));
        Verdict {
            links: vec![port(text)],
            ..Verdict::new(class, Severity::Warning, entity, 1.0)
        }
    }

    fn straggler(job: &str) -> Verdict {
        let job = JobId::new(job);
        let entity = Subject::Rank {
            job: job.clone(),
            rank: 3,
            node: Some(NodeId::new("h1")),
        };
        Verdict {
            job: Some(job),
            ..Verdict::new(Class::Straggler, Severity::Warning, entity, 1.0)
        }
    }

    #[track_caller]
    fn check(verdict: &Verdict, root: &Verdict, jobs: &[&str], expected: bool) {
        let jobs = jobs.iter().map(|j| JobId::new(j)).collect();
        check_after(verdict, root, &jobs, &BTreeSet::new(), expected);
    }

    #[track_caller]
    fn check_after(
        verdict: &Verdict,
        root: &Verdict,
        jobs: &BTreeSet<JobId>,
        after: &BTreeSet<PortId>,
        expected: bool,
    ) {
        let affected = |verdict| Affected {
            verdict,
            jobs,
            after,
        };
        let is = follows(affected(verdict), affected(root), &topology());
        assert_eq!(is, expected);
    }

    #[test]
    fn what_is_routed_elsewhere_after_a_loss_follows_from_it() {
        let full = link(Class::EcmpCollision, "l2:up2");
        let after = BTreeSet::from([port("l1:up1")]);
        let check = |root: &Verdict, is| check_after(&full, root, &BTreeSet::new(), &after, is);
        check(&link(Class::LinkDown, "s1:down1"), true);
        check(&link(Class::LinkFlap, "l1:up1"), true);
        check(&link(Class::LinkDown, "l1:up2"), false);
        check(&link(Class::LinkErrors, "l1:up1"), false);
    }

    #[test]
    fn both_directions_of_a_cable_are_one() {
        let errors = link(Class::LinkErrors, "l1:up1");
        check(&link(Class::SilentLoss, "s1:down1"), &errors, &[], true);
        check(&link(Class::SilentLoss, "s2:down1"), &errors, &[], false);
        check(&errors, &link(Class::SilentLoss, "s1:down1"), &[], false);
    }

    #[test]
    fn a_lost_link_leaves_its_traffic_to_its_siblings() {
        let full = link(Class::Oversubscription, "l1:up2");
        check(&full, &link(Class::LinkDown, "l1:up1"), &[], true);
        check(&full, &link(Class::LinkDown, "s1:down1"), &[], true);
        check(&full, &link(Class::LinkDown, "h1:eth0"), &[], false);
        check(&full, &link(Class::Incast, "l1:up1"), &[], false);
    }

    #[test]
    fn ranks_wait_for_what_their_job_crosses_and_for_what_ails_their_host() {
        let degraded = link(Class::DegradedLink, "l1:up1");
        check(&straggler("a"), &degraded, &["a"], true);
        check(&straggler("b"), &degraded, &["a"], false);
        let gpu = Subject::Gpu(NodeId::new("h1"), "0000:1a:00.0".into());
        let gpu = Verdict::new(Class::GpuFault, Severity::Critical, gpu, 1.0);
        check(&straggler("b"), &gpu, &[], true);
        check(&degraded, &gpu, &["a"], false);
        let nic = Subject::Nic(NodeId::new("h1"), "mlx5_0/1".into());
        let nic = Verdict::new(Class::NicFault, Severity::Warning, nic, 1.0);
        check(&link(Class::SlowReceiver, "l1:h1"), &nic, &[], true);
        check(&link(Class::SlowReceiver, "l1:up1"), &nic, &[], false);
    }

    #[test]
    fn every_class_has_its_place() {
        for class in Class::ALL {
            assert!(order(*class) < ORDER.len(), "{class:?}");
        }
    }
}
