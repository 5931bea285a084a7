//! Links that carry less than they should, though they say nothing of it.

use super::ALL;
use super::scene::{Scene, common_job};
use crate::flows::RATE_AGE_MAX;
use crate::ids::PortId;
use crate::links::LinkSample;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeSet;

/// Rates are told in whole gigabits.
const ROUNDING: f64 = 0.01;
/// A link that is fuller than this, while its jobs have something on the wire, may have a queue.
const FULL: f64 = 0.6;
/// Samples in which nobody may have paused it: what a pause held back leaves later than the pause shows.
const CALM: usize = 16;
/// Share of packets marked that a burst does not leave.
const MARKED: f64 = 0.005;

impl Scene<'_> {
    /// Verdicts on links before which something waits although they are far from full, nobody pauses them, and all who
    /// send over them cannot send more than they should carry. Whatever the phases of the jobs: such a link cannot
    /// be overloaded, it must be slower than it says. Where more senders meet nothing is said; a link that knows that it
    /// is slow is found by [`crate::health`].
    pub fn degraded(&self, is_explained: impl Fn(&PortId) -> bool) -> Vec<Verdict> {
        let window = self.limits.window;
        let pressed = self.links.pressed(self.now, RATE_AGE_MAX);
        let hard = |s: &LinkSample| s.pressed && s.marked().is_none_or(|m| m >= MARKED);
        let lasting = pressed.filter(|l| self.links.held_for(*l, window, window, hard));
        let suspects = lasting.map(|l| self.topology.port(l));
        let suspects = suspects.filter(|p| self.topology.is_switch(&p.node) && !is_explained(p));
        suspects.filter_map(|port| self.held_back(port)).collect()
    }

    /// What can reach a link at once: what its senders' own links carry, or the links before it. `None` while a rate is
    /// unknown.
    fn offered_to(&self, port: &PortId) -> Option<f64> {
        let (mut first, mut before) = (BTreeSet::new(), BTreeSet::new());
        for path in self.paths_over(port) {
            let ports = &path.ports;
            let at = ports.iter().position(|p| p == port)?;
            first.insert(ports.first()?);
            before.insert(&ports[at.checked_sub(1)?]);
        }
        let sum = |ports: BTreeSet<&PortId>| {
            let rates = ports.into_iter().map(|p| self.topology.capacity_bps(p));
            rates.sum::<Option<f64>>()
        };
        Some(sum(first)?.min(sum(before)?))
    }

    /// Whether something waits before a link of a switch that what comes over this one has passed: then that one shapes it.
    fn is_behind_pressure(&self, port: &PortId) -> bool {
        self.flows_on(port).any(|(_, crossing)| {
            let before = crossing.path.ports.iter().take_while(|p| *p != port);
            let mut switches = before.filter(|p| self.topology.is_switch(&p.node));
            switches.any(|p| self.newest(p).is_some_and(|s| s.pressed))
        })
    }

    fn held_back(&self, port: &PortId) -> Option<Verdict> {
        let used = self.utilisation(port)?;
        let capacity = self.topology.capacity_bps(port)?;
        let offered = self.offered_to(port)?;
        if used >= FULL
            || offered > capacity * (1.0 + ROUNDING)
            || self.was_paused(port, CALM)
            || self.explained(port) < ALL
            || self.is_behind_pressure(port)
        {
            return None;
        }
        let sent = self.tx_bps(port);
        let mut evidence = self.link_evidence(port);
        evidence.push(Evidence::new(
            "rejected: too much traffic",
            format!(
                "whoever sends over it can send {:.0} Mbit/s, it should carry {:.0} and carries {:.0}; nobody pauses it",
                offered / 1e6,
                capacity / 1e6,
                sent / 1e6
            ),
        ));
        let confidence = self.share_of_window(port, |s| s.pressed);
        let far = self.topology.peer(port)?;
        let job = common_job(self.flows_on(port).map(|(_, c)| c));
        // A flow whose path is not known yet may be what fills it.
        if self.astray.contains(&job) {
            return None;
        }
        Some(Verdict {
            // A cable that is trained down is slow both ways.
            links: vec![port.clone(), far.clone()],
            job,
            evidence,
            action: format!(
                "look at the rate, the lanes and the shaping of {port} and {far}, then at the module and the cable"
            ),
            ..Verdict::new(
                Class::DegradedLink,
                Severity::Warning,
                Subject::Link(port.clone()),
                confidence,
            )
        })
    }
}
