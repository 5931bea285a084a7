//! Links that carry less than they should, though they say nothing of it.

use super::scene::{Scene, common_job};
use crate::flows::RATE_AGE_MAX;
use crate::ids::{FlowKey, PortId};
use crate::links::LinkSample;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeSet;

/// Links that carry as much without pressure before another is blamed.
const PEERS_MIN: usize = 3;
/// What "as much" means, as a share.
const AS_MUCH: f64 = 0.95;
/// A link that is fuller than this, while its jobs have something on the wire, may have a queue.
const FULL: f64 = 0.6;
/// Share of packets marked that a burst does not leave.
const MARKED: f64 = 0.005;

impl Scene<'_> {
    /// Verdicts on links before which something waits although they are far from full, nobody pauses them, and at least
    /// [`PEERS_MIN`] links of the same rate carry as much for as many senders of the same job without any pressure.
    /// A burst cannot look like that: where more senders meet, more is carried.
    pub fn degraded(&self, is_explained: impl Fn(&PortId) -> bool) -> Vec<Verdict> {
        let window = self.limits.window;
        let pressed = self.links.pressed(self.now, RATE_AGE_MAX);
        let hard = |s: &LinkSample| s.pressed && s.marked().is_none_or(|m| m >= MARKED);
        let lasting = pressed.filter(|l| self.links.held_for(*l, window, window, hard));
        let suspects = lasting.map(|l| self.topology.port(l));
        let suspects = suspects.filter(|p| self.topology.is_switch(&p.node) && !is_explained(p));
        suspects.filter_map(|port| self.held_back(port)).collect()
    }

    fn held_back(&self, port: &PortId) -> Option<Verdict> {
        let used = self.utilisation(port)?;
        if used >= FULL
            || self.paused(port) >= self.limits.paused_hot
            || self.explained(port) < self.limits.explained_min
        {
            return None;
        }
        let job = common_job(self.flows_on(port).map(|(_, c)| c))?;
        let senders = |p: &PortId| {
            let flows = self.flows_on(p);
            let ours = flows.filter(|(_, c)| c.job.as_ref() == Some(&job));
            let senders: BTreeSet<_> = ours.map(|(key, _)| key.src).collect();
            senders.len()
        };
        let (sent, capacity) = (self.tx_bps(port), self.topology.capacity_bps(port)?);
        let meet = senders(port);
        // Links behind it carry what it lets through: they say nothing.
        let ours: BTreeSet<&FlowKey> = self.flows_on(port).map(|(key, _)| key).collect();
        let of_our_job = self
            .crossing
            .values()
            .filter(|c| c.job.as_ref() == Some(&job));
        let mut peers: Vec<&PortId> = of_our_job.flat_map(|c| &c.path.ports).collect();
        peers.sort();
        peers.dedup();
        peers.retain(|p| {
            *p != port
                && self.topology.is_switch(&p.node)
                && self.topology.capacity_bps(p) == Some(capacity)
                && self.newest(p).is_some_and(|s| !s.pressed)
                && self.tx_bps(p) >= AS_MUCH * sent
                && self.paused(p) < self.limits.paused_hot
                && senders(p) >= meet
                && !self.flows_on(p).any(|(key, _)| ours.contains(key))
        });
        if peers.len() < PEERS_MIN {
            return None;
        }
        let mut evidence = self.link_evidence(port);
        let names: Vec<String> = peers.iter().take(4).map(ToString::to_string).collect();
        evidence.push(Evidence::new(
            "links that carry as much without pressure",
            format!("{} of the same rate: {}", peers.len(), names.join(", ")),
        ));
        evidence.push(Evidence::new(
            "rejected: too much traffic",
            format!(
                "it carries {:.0} of {:.0} Mbit/s and nobody pauses it",
                sent / 1e6,
                capacity / 1e6
            ),
        ));
        let confidence = self.share_of_window(port, |s| s.pressed);
        let far = self.topology.peer(port)?;
        Some(Verdict {
            // A cable that is trained down is slow both ways.
            links: vec![port.clone(), far.clone()],
            job: Some(job),
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
