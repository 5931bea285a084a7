//! Links and flows of one moment, with what the detector asks of them.

use crate::config::Hotspot;
use crate::flows::{Flows, Path, RATE_AGE_MAX};
use crate::ids::{FlowKey, JobId, NodeId, PortId};
use crate::links::{LinkSample, Links};
use crate::topology::Topology;
use crate::verdict::Evidence;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Samples in which a pause shows as long as its effects do: a sample that was lost makes the next as long.
pub(super) const LATELY: usize = 16;

/// A burst that is hot for fewer of so many samples is nobody's placement: a checkpoint of some seconds.
const BURST: (usize, usize) = (6, 8);

/// An active flow with its path.
pub(super) struct Crossing {
    pub job: Option<JobId>,
    pub rate_bps: f64,
    /// Since when it is known to go this way.
    pub since: Duration,
    pub path: Path,
}

/// Active flows whose paths are known, by port.
pub(super) struct Crossings {
    by_key: BTreeMap<FlowKey, Crossing>,
    on_port: BTreeMap<PortId, Vec<FlowKey>>,
    resting: Vec<Crossing>,
    /// Jobs, or none, of the flows whose path is not known.
    astray: BTreeSet<Option<JobId>>,
}

impl Crossings {
    /// Asks for the paths of all flows.
    pub fn new(flows: &mut Flows, topology: &Topology, now: Duration) -> Crossings {
        let held = flows.held(now);
        let held: Vec<_> = held
            .map(|(k, f, active)| (*k, f.job.clone(), f.rate_bps, f.since, active))
            .collect();
        let (mut by_key, mut astray) = (BTreeMap::new(), BTreeSet::new());
        let mut on_port: BTreeMap<PortId, Vec<FlowKey>> = BTreeMap::new();
        let mut resting = Vec::new();
        for (key, job, rate_bps, since, active) in held {
            let Some(path) = flows.path(&key, topology) else {
                astray.insert(job);
                continue;
            };
            let one = Crossing {
                job,
                rate_bps,
                since,
                path,
            };
            if !active {
                resting.push(one);
                continue;
            }
            for port in &one.path.ports {
                match on_port.get_mut(port) {
                    Some(keys) => keys.push(key),
                    None => {
                        on_port.insert(port.clone(), vec![key]);
                    }
                }
            }
            by_key.insert(key, one);
        }
        Crossings {
            by_key,
            on_port,
            resting,
            astray,
        }
    }

    /// Jobs that cross a port; `None` if a flow of no known job does, or nobody is known to.
    pub fn jobs_on(&self, port: &PortId) -> Option<BTreeSet<&JobId>> {
        let keys = self.on_port.get(port)?.iter();
        keys.map(|key| self.by_key.get(key)?.job.as_ref()).collect()
    }
}

pub(super) struct Scene<'a> {
    pub links: &'a Links,
    pub topology: &'a Topology,
    pub limits: &'a Hotspot,
    pub now: Duration,
    pub crossing: BTreeMap<FlowKey, Crossing>,
    on_port: BTreeMap<PortId, Vec<FlowKey>>,
    /// Flows that had data on the wire within the last minute, but not now.
    resting: Vec<Crossing>,
    /// Jobs, or none, of the flows whose path is not known.
    pub astray: BTreeSet<Option<JobId>>,
}

impl<'a> Scene<'a> {
    pub fn new(
        links: &'a Links,
        crossings: Crossings,
        topology: &'a Topology,
        limits: &'a Hotspot,
        now: Duration,
    ) -> Scene<'a> {
        Scene {
            links,
            topology,
            limits,
            now,
            crossing: crossings.by_key,
            on_port: crossings.on_port,
            resting: crossings.resting,
            astray: crossings.astray,
        }
    }

    pub fn flows_on(&self, port: &PortId) -> impl Iterator<Item = (&FlowKey, &Crossing)> {
        let keys = self.on_port.get(port).into_iter().flatten();
        keys.filter_map(|key| self.crossing.get_key_value(key))
    }

    /// All flows over a port that may send, on the wire now or not.
    pub fn may_send(&self, port: &PortId) -> impl Iterator<Item = &Crossing> {
        let active = self.flows_on(port).map(|(_, c)| c);
        let resting = self.resting.iter();
        active.chain(resting.filter(|c| c.path.ports.contains(port)))
    }

    pub fn newest(&self, port: &PortId) -> Option<&LinkSample> {
        self.links
            .newest(self.topology.link(port)?, self.now, RATE_AGE_MAX)
    }

    pub fn tx_bps(&self, port: &PortId) -> f64 {
        self.newest(port).map_or(0.0, |s| s.tx_bps.into())
    }

    pub fn utilisation(&self, port: &PortId) -> Option<f64> {
        self.newest(port)?.utilisation_busy()
    }

    /// Share of time for which the far end keeps a link's transmitter paused, as either end counts it.
    pub fn paused(&self, port: &PortId) -> f64 {
        let here = self.newest(port).and_then(LinkSample::paused);
        let far = self.topology.peer(port).and_then(|peer| self.newest(peer));
        let there = far.and_then(LinkSample::pausing);
        here.into_iter().chain(there).fold(0.0, f64::max)
    }

    /// Whether `is` held in any of a link's last `samples` intervals.
    pub fn was(&self, port: &PortId, samples: usize, is: impl Fn(&LinkSample) -> bool) -> bool {
        let link = self.topology.link(port);
        link.is_some_and(|l| self.links.history(l).rev().take(samples).any(is))
    }

    /// Whether either end says that it was paused in any of its last `samples` intervals.
    pub fn was_paused(&self, port: &PortId, samples: usize) -> bool {
        let long = |x: Option<f64>| x.is_some_and(|x| x >= self.limits.paused_hot);
        let far = self.topology.peer(port);
        self.was(port, samples, |s| long(s.paused()))
            || far.is_some_and(|far| self.was(far, samples, |s| long(s.pausing())))
    }

    /// Whether it was paused for `share` of the time in enough of the last intervals.
    pub fn paused_for(&self, port: &PortId, share: f64) -> bool {
        let long = |x: Option<f64>| x.is_some_and(|x| x >= share);
        let held = |port: &PortId, is: &dyn Fn(&LinkSample) -> bool| {
            let link = self.topology.link(port);
            let (n, window) = (self.limits.samples_hot, self.limits.window);
            link.is_some_and(|l| self.links.held_for(l, n, window, is))
        };
        held(port, &|s| long(s.paused()))
            || self
                .topology
                .peer(port)
                .is_some_and(|peer| held(peer, &|s| long(s.pausing())))
    }

    /// Whether a link is held back by more than a burst of some seconds that passes by itself: by marks that show how much
    /// more is wanted than it has, by drops, by a queue that nobody marks, or for longer than a burst lasts.
    pub fn outlasts_a_burst(&self, port: &PortId) -> bool {
        let alone = self.limits.marked_alone;
        let light = |s: &LinkSample| {
            s.marked().is_some_and(|m| m > 0.0 && m < alone)
                && s.drops_per_s().is_none_or(|d| d == 0.0)
        };
        let Some(link) = self.topology.link(port) else {
            return false;
        };
        let last = |window| self.links.history(link).rev().take(window);
        let hard = last(self.limits.window).filter(|s| s.hot && !light(s));
        let (hot, window) = BURST;
        hard.count() >= self.limits.samples_hot || last(window).filter(|s| s.hot).count() >= hot
    }

    /// The node that a link leads to.
    pub fn leads_to(&self, port: &PortId) -> Option<&NodeId> {
        self.topology.peer(port).map(|peer| &peer.node)
    }

    /// Whether a link leads to a host.
    pub fn is_last_hop(&self, port: &PortId) -> bool {
        let far = self.leads_to(port);
        far.is_some_and(|node| !self.topology.is_switch(node))
    }

    /// Share of a link's traffic that known flows explain.
    pub fn explained(&self, port: &PortId) -> f64 {
        let known: f64 = self.flows_on(port).map(|(_, c)| c.rate_bps).sum();
        let seen = self.tx_bps(port);
        if seen > 0.0 {
            (known / seen).min(1.0)
        } else {
            0.0
        }
    }

    /// Share of the known traffic on these links that comes from storage or goes there.
    pub fn storage_share<'b>(
        &self,
        flows: impl Iterator<Item = (&'b FlowKey, &'b Crossing)>,
    ) -> f64 {
        let (mut all, mut storage) = (0.0, 0.0);
        for (key, crossing) in flows {
            all += crossing.rate_bps;
            let ends = [key.src, key.dst];
            let mut ends = ends.iter().filter_map(|a| self.topology.port_of(*a));
            if ends.any(|port| self.topology.is_storage(&port.node)) {
                storage += crossing.rate_bps;
            }
        }
        if all > 0.0 { storage / all } else { 0.0 }
    }

    /// Share of hot samples in the window times the share of the traffic that is explained.
    pub fn confidence(&self, port: &PortId) -> f64 {
        self.explained(port) * self.share_of_window(port, |s| s.hot)
    }

    /// Share of the last samples in which `is` held.
    pub fn share_of_window(&self, port: &PortId, is: impl Fn(&LinkSample) -> bool) -> f64 {
        let history = self.topology.link(port).map(|l| self.links.history(l));
        let newest = history.into_iter().flatten().rev();
        let window: Vec<bool> = newest.take(self.limits.window).map(is).collect();
        let held = window.iter().filter(|h| **h).count();
        if window.is_empty() {
            0.0
        } else {
            held as f64 / window.len() as f64
        }
    }

    pub fn link_evidence(&self, port: &PortId) -> Vec<Evidence> {
        let Some(sample) = self.newest(port) else {
            return Vec::new();
        };
        let percent = |share: f64| share * 100.0;
        let mut value = format!(
            "{:.0} % of capacity while busy",
            percent(sample.utilisation_busy().unwrap_or(0.0))
        );
        if let Some(queue) = sample.queue_bytes_max() {
            value += &format!(", queue up to {:.0} KB", queue as f64 / 1e3);
        }
        if let Some(drops) = sample.drops_per_s() {
            value += &format!(", {drops:.0} drops/s");
        }
        if let Some(marked) = sample.marked() {
            value += &format!(", {:.1} % marked", percent(marked));
        }
        let paused = self.paused(port);
        if paused > 0.0 {
            value += &format!(", paused for {:.0} % of the time", percent(paused));
        }
        value += &format!(
            ", {} flows explain {:.0} %",
            self.flows_on(port).count(),
            percent(self.explained(port))
        );
        vec![Evidence::new(format!("link {port}"), value)]
    }
}

/// The job of most of the traffic.
pub(super) fn common_job<'a>(flows: impl Iterator<Item = &'a Crossing>) -> Option<JobId> {
    let mut by_job: BTreeMap<&JobId, f64> = BTreeMap::new();
    for crossing in flows {
        if let Some(job) = &crossing.job {
            *by_job.entry(job).or_default() += crossing.rate_bps;
        }
    }
    let most = by_job.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    most.map(|(job, _)| job.clone())
}
