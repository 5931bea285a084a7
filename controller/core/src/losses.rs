//! Cables between switches that were lost lately: what they carried, and what was hashed beside it, is elsewhere now.
//!
//! A switch that loses a next hop hashes all flows of the group anew, and so do the switches before it that avoid
//! the way behind. So a link that became hot soon after a loss, and carries a flow that passes one of the two
//! switches, is a consequence of the loss, not a fault of its own. Whether the link is down or flaps is known some
//! samples later than the heat: until then the loss is undecided, and what may follow from it waits.

use crate::ids::{NodeId, PortId};
use crate::io::PortSample;
use crate::keep::keep;
use crate::topology::{LinkIx, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For so long after a loss it may be why a link became hot: some iterations of slow jobs.
pub const AFTER: Duration = Duration::from_secs(120);
/// Sample intervals after which a loss was told as a link that is down, or is none.
const DECIDED: u32 = 8;
/// Sample intervals for which losses of one cable hold back what may follow from them, however often it flaps.
const HELD_BACK_MAX: u32 = 30;
/// Cables held; more are lost at once only with the fabric.
pub const LOSSES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Unknown,
    Up,
    Down,
}

keep!(enum Carrier { 0 Unknown, 1 Up, 2 Down });

#[derive(Debug, Clone, PartialEq)]
struct Loss {
    first: Duration,
    last: Duration,
    interval: Duration,
}

keep!(struct Loss { first, last, interval });

/// The carrier of every link, and which were lost lately.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    carriers: Vec<Carrier>,
    /// By the lesser of the cable's ports.
    lost: BTreeMap<PortId, Loss>,
}

keep!(struct Losses { carriers, lost });

/// The name of a cable: the lesser of its ports.
fn cable(port: &PortId, topology: &Topology) -> PortId {
    let far = topology.peer(port).filter(|far| *far < port);
    far.unwrap_or(port).clone()
}

impl Losses {
    /// Takes a switch's sample of a link.
    pub fn sampled(
        &mut self,
        link: LinkIx,
        sample: &PortSample,
        interval: Duration,
        topology: &Topology,
        now: Duration,
    ) {
        let Some(up) = sample.up else { return };
        if self.carriers.len() <= link.index() {
            self.carriers.resize(link.index() + 1, Carrier::Unknown);
        }
        let carrier = &mut self.carriers[link.index()];
        let was_up = *carrier == Carrier::Up;
        *carrier = if up { Carrier::Up } else { Carrier::Down };
        if up || !was_up {
            return;
        }
        let port = topology.port(link);
        let far = topology.peer(port);
        if !far.is_some_and(|far| topology.is_switch(&far.node)) {
            return;
        }
        let name = cable(port, topology);
        if let Some(loss) = self.lost.get_mut(&name) {
            loss.last = now;
        } else if self.lost.len() < LOSSES_MAX {
            let loss = Loss {
                first: now,
                last: now,
                interval,
            };
            self.lost.insert(name, loss);
        }
    }

    /// Forgets what is too long ago.
    pub fn expire(&mut self, now: Duration) {
        self.lost
            .retain(|_, loss| now.saturating_sub(loss.last) <= AFTER);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lost.is_empty()
    }

    /// Cables that were lost lately at one of the switches.
    #[must_use]
    pub fn at(&self, switches: &BTreeSet<NodeId>, topology: &Topology) -> BTreeSet<PortId> {
        let lost = self.lost.keys();
        let at = lost.filter(|port| {
            let far = topology.peer(port).map(|far| &far.node);
            far.is_some_and(|far| switches.contains(far)) || switches.contains(&port.node)
        });
        at.cloned().collect()
    }

    /// Whether it may yet turn out why a cable was lost.
    #[must_use]
    pub fn is_undecided(&self, cable: &PortId, now: Duration) -> bool {
        self.lost.get(cable).is_some_and(|loss| {
            now.saturating_sub(loss.last) < loss.interval * DECIDED
                && now.saturating_sub(loss.first) < loss.interval * HELD_BACK_MAX
        })
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 2] {
        let max = crate::topology::LINKS_MAX;
        [
            ("carriers", self.carriers.len(), max),
            ("lost cables", self.lost.len(), LOSSES_MAX),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Role;
    use crate::topology::{Cable, Plan};

    fn port(text: &str) -> PortId {
        PortId::parse(text).unwrap()
    }

    fn topology() -> Topology {
        let cables = [("h1:eth0", "l1:h1"), ("l1:up1", "s1:down1")];
        let cables = cables.map(|(a, b)| Cable {
            a: port(a),
            b: port(b),
            rate_bps: None,
        });
        Topology::new(Plan {
            nodes: ["l1", "s1"].map(|n| (NodeId::new(n), Role::Switch)).into(),
            cables: cables.to_vec(),
            ..Plan::default()
        })
    }

    /// What is lost at the leaf after its port was seen up or down, a sample a second.
    fn lost(name: &str, seen: &[bool]) -> (Losses, BTreeSet<PortId>) {
        let topology = topology();
        let mut losses = Losses::default();
        let link = topology.link(&port(name)).unwrap();
        for (at, up) in (1..).zip(seen) {
            let sample = PortSample {
                up: Some(*up),
                ..PortSample::default()
            };
            let (interval, now) = (Duration::from_secs(1), Duration::from_secs(at));
            losses.sampled(link, &sample, interval, &topology, now);
        }
        let at = losses.at(&[NodeId::new("l1")].into(), &topology);
        (losses, at)
    }

    #[test]
    fn a_cable_that_was_up_is_lost_and_one_that_never_was_is_not() {
        let cable = BTreeSet::from([port("l1:up1")]);
        assert_eq!(lost("l1:up1", &[true, false]).1, cable);
        assert_eq!(lost("s1:down1", &[true, false]).1, cable);
        assert_eq!(lost("l1:up1", &[false, false, true]).1, BTreeSet::new());
        assert_eq!(lost("l1:h1", &[true, false]).1, BTreeSet::new());
    }

    #[test]
    fn a_loss_is_undecided_for_some_samples_and_never_for_ever() {
        let undecided = |seen: &[bool], at_s: u64| {
            let (losses, _) = lost("l1:up1", seen);
            losses.is_undecided(&port("l1:up1"), Duration::from_secs(at_s))
        };
        assert!(undecided(&[true, false], 9));
        assert!(!undecided(&[true, false], 10));
        let flaps = [true, false].repeat(100);
        assert!(undecided(&flaps[..20], 21));
        assert!(!undecided(&flaps, 201));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (mut losses, _) = lost("l1:up1", &[true, false]);
        losses.expire(Duration::from_secs(122));
        assert!(!losses.is_empty());
        losses.expire(Duration::from_secs(123));
        assert!(losses.is_empty());
    }
}
