//! What the core makes of what it sees: inferred jobs, verdicts, incidents.

use super::Core;
use crate::cabling;
use crate::cause;
use crate::config::Mode;
use crate::hotspot;
use crate::ids::{JobId, NodeId, PortId};
use crate::incident::Incident;
use crate::io::Command;
use crate::straggler;
use crate::verdict::Verdict;
use std::collections::BTreeSet;
use std::time::Duration;

impl Core {
    /// Looks for jobs of which only flows tell. One that gives way takes its name along.
    pub(super) fn infer(&mut self, now: Duration) {
        if !self.inference.is_due(now) {
            return;
        }
        let ended = self.inference.look(now);
        for group in self.inference.groups() {
            self.jobs.inferred(group);
        }
        if !ended.is_empty() {
            self.jobs.forget(&ended);
            self.flows.forget_jobs(&ended);
            self.incidents.forget_jobs(&ended);
        }
    }

    pub(super) fn detect(&mut self, now: Duration) {
        let verdicts = hotspot::detect(
            &mut self.links,
            &mut self.flows,
            &self.jobs,
            &self.topology,
            &self.config.hotspot,
            self.config.trial.changes_max,
            now,
        );
        let silent = self
            .silent
            .verdicts(&mut self.flows, &self.links, &self.topology, now);
        for (node, keys) in self.flows.take_questions(now) {
            if self.nodes.get(&node).is_some_and(|n| n.connected) {
                self.commands.push_back(Command::QueryPaths { node, keys });
            }
        }
        let settled = |node: &NodeId| {
            let known = self.nodes.get(node);
            known.is_some_and(|n| {
                n.connected && now.saturating_sub(n.connected_at) >= cabling::SETTLED
            })
        };
        let miscabled = self.cabling.verdicts(&self.topology, settled, now);
        let verdicts = verdicts
            .into_iter()
            .chain(miscabled)
            .chain(self.health.verdicts(&self.topology, now))
            .chain(silent)
            .chain(self.cables.verdicts(&self.topology, now).iter().cloned())
            .chain(straggler::verdicts(&self.stragglers, &self.jobs, now));
        let verdicts: Vec<Verdict> = verdicts.collect();
        let mut news = false;
        for verdict in verdicts {
            news |= self.judged(verdict, now);
        }
        if news {
            self.incidents.link_causes(&self.topology, now);
        }
    }

    /// Jobs whose flows cross what a verdict is about, and cables that were lost lately at a switch that these pass.
    fn touched(&mut self, verdict: &Verdict, now: Duration) -> (BTreeSet<JobId>, BTreeSet<PortId>) {
        let mut ports = BTreeSet::new();
        for port in verdict.entity.link().into_iter().chain(&verdict.links) {
            ports.extend(self.topology.peer(port).cloned());
            ports.insert(port.clone());
        }
        let host = verdict
            .entity
            .node()
            .filter(|n| !self.topology.is_switch(n));
        let hosts = host.cloned().into_iter().collect();
        let mut jobs = self.flows.jobs_over(&ports, &hosts, &self.topology, now);
        jobs.extend(verdict.job.clone());
        if self.losses.is_empty() || !cause::is_crowded(verdict.class) {
            return (jobs, BTreeSet::new());
        }
        let passed = self.flows.passed_with(&ports, &self.topology, now);
        (jobs, self.losses.at(&passed, &self.topology))
    }

    /// Takes a verdict; true if it opened an incident.
    fn judged(&mut self, mut verdict: Verdict, now: Duration) -> bool {
        let (job, plan, text) = (
            verdict.job.clone(),
            verdict.plan.clone(),
            describe(&verdict),
        );
        let window = self.config.hotspot.window;
        let link = verdict.entity.link().and_then(|l| self.topology.link(l));
        let since = link.and_then(|l| self.links.hot_since(l, window));
        let known = self.incidents.about(&verdict, now);
        let opened = known.map(|i| i.opened_at);
        let is_open = known.is_some_and(Incident::is_open);
        let held_back = verdict.job.as_ref().and_then(|job| self.jobs.get(job));
        let began = since.or(opened).unwrap_or(now);
        verdict.impact = verdict
            .impact
            .or(held_back.and_then(|job| job.impact(began, now)));
        let touched = (!is_open).then(|| self.touched(&verdict, now));
        if let Some((_, after)) = &touched {
            // Whether it follows from the loss of a link is known soon.
            let lost = |cable: &PortId| self.incidents.is_lost(cable, &self.topology);
            let mut after = after.iter();
            if after.any(|cable| self.losses.is_undecided(cable, now) && !lost(cable)) {
                return false;
            }
        }
        let (id, new) = self.incidents.judged(verdict, now);
        if let Some((jobs, after)) = touched {
            self.incidents.touches(&id, jobs, after);
        }
        if new {
            self.note(&id, text.clone());
            if !plan.is_empty() && self.config.mode == Mode::Advise {
                let pins: Vec<String> = plan.iter().map(ToString::to_string).collect();
                self.incidents
                    .tell(&id, now, format!("advised: {}", pins.join(", ")));
            }
        }
        if plan.is_empty() || self.config.mode != Mode::Act {
            return new;
        }
        let Some(job) = job else { return new };
        let told = match self.propose(&job, plan, (id.clone(), text), since, now) {
            Ok(_) => "a change is on trial".into(),
            Err(reason) => format!("nothing is tried: {reason}"),
        };
        self.incidents.tell(&id, now, told);
        new
    }
}

/// A verdict in one sentence.
#[must_use]
pub fn describe(verdict: &Verdict) -> String {
    let links: Vec<String> = verdict.links.iter().map(ToString::to_string).collect();
    let links = match links.as_slice() {
        [] => String::new(),
        links => format!("links {}; ", links.join(", ")),
    };
    let job = verdict
        .job
        .as_ref()
        .map_or(String::new(), |j| format!(" of job {j}"));
    format!(
        "{} on {}{job} ({links}confidence {:.2})",
        verdict.class.name(),
        verdict.entity,
        verdict.confidence
    )
}
