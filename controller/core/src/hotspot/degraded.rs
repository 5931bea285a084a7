//! Links that carry less than they should, though they say nothing of it.

use super::ALL;
use super::scene::{Crossing, LATELY, Scene, common_job};
use crate::flows::RATE_AGE_MAX;
use crate::ids::PortId;
use crate::links::LinkSample;
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use std::collections::BTreeSet;

/// Rates are told in whole gigabits.
const ROUNDING: f64 = 0.01;
/// A link that is fuller than this, while its jobs have something on the wire, may have a queue.
const FULL: f64 = 0.6;
/// Samples in a row without anything that waits, as many as tell how a link is when it is well.
const RUN: usize = 8;
/// Share of packets marked that a burst does not leave.
const MARKED: f64 = 0.005;

impl Scene<'_> {
    /// Verdicts on links before which something waits although they are far from full, nobody pauses them, and all who
    /// send over them cannot send more than they should carry. Whatever the phases of the jobs: such a link cannot
    /// be overloaded, it must be slower than it says. Where more senders meet, a link is said to be slower only if it
    /// carried as much of the same flows before and nothing waited; a link that knows that it
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
        for crossing in self.may_send(port) {
            let ports = &crossing.path.ports;
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

    /// Mean bits per second in the last samples in which nothing waited before a link, if the same flows of one job sent as
    /// much then as they do since: so the link has changed and not what is sent. Several jobs may only by now send at
    /// the same moments.
    fn carried_calmly(&self, port: &PortId) -> Option<f64> {
        let history = self.links.history(self.topology.link(port)?);
        let history: Vec<&LinkSample> = history.collect();
        let calm = history
            .windows(RUN)
            .rev()
            .find(|run| run.iter().all(|s| !s.pressed))?;
        let (from, until) = (calm.first()?.at, calm.last()?.at);
        let mean = |samples: &mut dyn Iterator<Item = &&LinkSample>| {
            let rates: Vec<f64> = samples.map(|s| f64::from(s.tx_bps)).collect();
            rates.iter().sum::<f64>() / rates.len().max(1) as f64
        };
        let before = mean(&mut calm.iter());
        let after = mean(&mut history.iter().filter(|s| s.at > until));
        let mut flows = self.may_send(port);
        let job = flows.next()?.job.as_ref()?;
        let same = |c: &Crossing| c.job.as_ref() == Some(job) && c.since <= from;
        let all = self.may_send(port).all(same);
        (all && after <= before * (1.0 + ROUNDING)).then_some(before)
    }

    /// Whether all flows over a link have been known for some samples: those of a job that starts are told one after the
    /// other, and what the first of them can send is not all that comes.
    fn is_settled(&self, port: &PortId) -> bool {
        let link = self.topology.link(port);
        let mut newest = link.into_iter().flat_map(|l| self.links.history(l)).rev();
        let from = newest.nth(RUN - 1).map(|s| s.at);
        from.is_some_and(|from| self.may_send(port).all(|c| c.since <= from))
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
        let fits = offered <= capacity * (1.0 + ROUNDING);
        let carried = if fits {
            None
        } else {
            Some(self.carried_calmly(port)?)
        };
        if used >= FULL
            || !self.is_settled(port)
            || self.was_paused(port, LATELY)
            || self.explained(port) < ALL
            || self.is_behind_pressure(port)
        {
            return None;
        }
        let sent = self.tx_bps(port);
        let mut evidence = self.link_evidence(port);
        let mega = |bps: f64| bps / 1e6;
        let text = match carried {
            None => format!(
                "whoever sends over it can send {:.0} Mbit/s, it should carry {:.0} and carries {:.0}; nobody pauses it",
                mega(offered),
                mega(capacity),
                mega(sent)
            ),
            Some(calm) => format!(
                "before, it carried {:.0} Mbit/s of the same flows and nothing waited, now {:.0}; nobody pauses it",
                mega(calm),
                mega(sent)
            ),
        };
        evidence.push(Evidence::new("rejected: too much traffic", text));
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
