//! Who makes whom wait: the trees that priority flow control spreads over a lossless fabric.
//!
//! A port that is paused cannot drain, its buffer fills, and it pauses those that send to it. So from each paused link
//! the question goes on to the node that pauses it: does one of its own links stand still, too (follow it), is one of
//! them full (that is where the traffic meets), or does nothing hold it back (the node itself is to blame)?
//! O(paused links x hops).

use super::scene::{LATELY, Scene};
use crate::ids::PortId;
use std::collections::{BTreeMap, BTreeSet};

/// What keeps a tree of links waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Root {
    /// The host at the end of the root link.
    Host,
    /// The root link is full: too much is sent over it.
    Full,
    /// The switch at the end of the root link, though none of its own links is held back or full.
    Switch,
    /// Links that wait for each other in a circle.
    Cycle,
}

/// Links that wait for the same cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub root: PortId,
    pub cause: Root,
    /// All paused links of the tree but the root, in order.
    pub waiting: BTreeSet<PortId>,
}

enum Next {
    Link(PortId),
    Root(Root, PortId),
    /// Nobody reports what the pausing node does.
    Unseen,
}

/// All trees, in the order of their roots.
pub(super) fn trees(scene: &Scene<'_>, paused: &BTreeSet<PortId>) -> Vec<Tree> {
    let mut trees: BTreeMap<(PortId, Root), BTreeSet<PortId>> = BTreeMap::new();
    for start in paused {
        let mut seen = BTreeSet::from([start.clone()]);
        let mut at = start.clone();
        let (root, cause) = loop {
            match next(scene, &at, paused) {
                Next::Link(port) if seen.insert(port.clone()) => at = port,
                // The least of the circle stands for it, from wherever it is entered.
                Next::Link(port) => break (least_of_circle(scene, port, paused), Root::Cycle),
                Next::Root(cause, port) => break (port, cause),
                Next::Unseen => {
                    seen.clear();
                    break (at, Root::Host);
                }
            }
        };
        if !seen.is_empty() {
            seen.remove(&root);
            trees.entry((root, cause)).or_default().append(&mut seen);
        }
    }
    let tree = |((root, cause), waiting)| Tree {
        root,
        cause,
        waiting,
    };
    trees.into_iter().map(tree).collect()
}

fn least_of_circle(scene: &Scene<'_>, entry: PortId, paused: &BTreeSet<PortId>) -> PortId {
    let (mut least, mut at) = (entry.clone(), entry.clone());
    while let Next::Link(port) = next(scene, &at, paused) {
        if port == entry {
            break;
        }
        least = least.min(port.clone());
        at = port;
    }
    least
}

/// Why the far end of a paused link pauses it.
fn next(scene: &Scene<'_>, port: &PortId, paused: &BTreeSet<PortId>) -> Next {
    let Some(far) = scene.leads_to(port) else {
        return Next::Unseen;
    };
    if !scene.topology.is_switch(far) {
        return Next::Root(Root::Host, port.clone());
    }
    let back = scene.topology.peer(port);
    let leaving = scene.topology.links_of(far).iter();
    let leaving = leaving.map(|(_, link)| scene.topology.port(*link));
    // A link back to where the waiting ones come from is none of theirs.
    let leaving: Vec<&PortId> = leaving.filter(|p| Some(*p) != back).collect();
    let shares = |p: &PortId| scene.flows_on(port).any(|(_, c)| c.path.ports.contains(p));
    let flows_known = scene.flows_on(port).next().is_some();
    // First where the flows on it go; those that stand still are not seen, so then any.
    let ours = leaving.iter().copied();
    let ours: Vec<&PortId> = ours.filter(|p| !flows_known || shares(p)).collect();
    for links in [&ours, &leaving] {
        let longest = links
            .iter()
            .filter(|p| paused.contains(**p))
            .max_by(|a, b| scene.paused(a).total_cmp(&scene.paused(b)).then(b.cmp(a)));
        if let Some(longest) = longest {
            return Next::Link((*longest).clone());
        }
        let full = links
            .iter()
            .filter(|p| scene.newest(p).is_some_and(|s| s.pressed))
            .max_by(|a, b| scene.tx_bps(a).total_cmp(&scene.tx_bps(b)).then(b.cmp(a)));
        if let Some(full) = full {
            return Next::Root(Root::Full, (*full).clone());
        }
    }
    // Nodes are read at moments of their own, and some late: what was held back of late may still be why the others wait.
    let window = scene.limits.window;
    let lately = |p: &&PortId| scene.was_paused(p, LATELY) || scene.was(p, window, |s| s.pressed);
    if ours.iter().any(|p| scene.newest(p).is_some()) && !leaving.iter().any(lately) {
        Next::Root(Root::Switch, port.clone())
    } else {
        Next::Unseen
    }
}
