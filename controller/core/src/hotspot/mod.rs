//! The hotspot detector: which links hold traffic back, and what kind of hot they are.
//!
//! What is estimated: for each set of hot links that share a job (or a flow), what would relieve
//! it. That question, and not a threshold per class, tells the classes apart:
//!
//! - **slow receiver**: the last hop is paused by the host at its end. Nothing in the fabric helps. If it lets through
//!   next to nothing for most of the time it is a **PFC storm**; so are switches that pause although none of their own
//!   links is held back or full, and links that wait for each other in a circle.
//! - **storage burst**: most of the traffic comes from storage or goes there (the operator's file says who that is), and
//!   one of the links is more than half full with it.
//! - **incast**: the hot link ends at a host, `incast_senders` or more send to it, and it gets more than they get
//!   themselves (in an all-to-all every last hop is as full as the others). No route avoids the last hop, so nothing
//!   is rerouted; hot links upstream that carry the same flows are consequences.
//! - **ECMP collision**: a sibling in the hot link's next-hop group has room (measured), *and* the
//!   slowest flow would gain `gain_min` under the best placement (max-min fair what-if). Both:
//!   the measurement alone sees room that the flows cannot use, the model alone sees gains for
//!   demand that is not there.
//! - **oversubscription**: every member of the group is hot and no placement helps.
//! - **degraded link**: something waits before it, though it is far from full, nobody pauses it, and all who send over it
//!   together cannot send more than it should carry, or are one job's flows that it carried before with nothing waiting.
//!
//! Links that wait because another is paused or full ([`pause`]) are consequences of that.
//!
//! Trip condition: hot in `samples_hot` of the last `window` samples, the newest among them, and
//! known flows explain at least `explained_min` of the link's traffic; otherwise no verdict (on
//! doubt do nothing). Where few packets are marked, inside the fabric, for longer than a checkpoint's burst lasts. Cold start: no verdict until paths are known, which the switches answer in
//! milliseconds. Recovery: [`crate::incident`]. Cost: O(flows x path) when a link is hot, O(links)
//! otherwise.

mod degraded;
mod pause;
mod relief;
mod scene;

use crate::config::Hotspot;
use crate::flows::{Flows, RATE_AGE_MAX};
use crate::ids::{FlowKey, JobId, PortId};
use crate::jobs::Jobs;
use crate::links::{LinkSample, Links};
use crate::plan;
use crate::topology::{LinkIx, Topology};
use crate::verdict::{Class, Evidence, Severity, Subject, Verdict};
use pause::{Root, Tree};
use scene::{Crossing, Crossings, Scene, common_job};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A receiver that takes less than this share of its link's capacity takes next to nothing.
const STANDS_STILL: f64 = 0.1;
/// An incast's receiver gets this many times what its senders get.
const INCAST_RATIO: f64 = 2.0;
/// All of the traffic, but for what samples of different moments make of it.
const ALL: f64 = 0.9;
/// Most of the traffic, where it decides what a verdict is called.
const MOST: f64 = 0.5;

/// Looks at everything once.
pub fn detect(
    links: &mut Links,
    flows: &mut Flows,
    jobs: &Jobs,
    topology: &Topology,
    limits: &Hotspot,
    changes_max: usize,
    now: Duration,
) -> Vec<Verdict> {
    // Paths are asked for as soon as a link was hot once, so that they are known when it counts.
    let any = |mut links: Box<dyn Iterator<Item = LinkIx> + '_>| links.next().is_some();
    if !any(Box::new(links.pressed(now, RATE_AGE_MAX)))
        && !any(Box::new(links.hot(now, RATE_AGE_MAX)))
        && !any(Box::new(links.paused(now, RATE_AGE_MAX)))
    {
        return Vec::new();
    }
    let crossings = Crossings::new(flows, topology, now);
    let pressed: Vec<LinkIx> = links.pressed(now, RATE_AGE_MAX).collect();
    for link in pressed {
        if let Some(ours) = crossings.jobs_on(topology.port(link)) {
            links.settle(link, |from, to| jobs.busy_share_of(&ours, from, to), limits);
        }
    }
    let links = &*links;
    let scene = Scene::new(links, crossings, topology, limits, now);
    let mut hot: Vec<PortId> = links
        .hot(now, RATE_AGE_MAX)
        .filter(|l| links.hot_for(*l, limits.samples_hot, limits.window))
        .map(|l| topology.port(l).clone())
        .filter(|p| topology.is_switch(&p.node))
        .collect();
    hot.sort();
    let mut verdicts = Vec::new();
    let mut consequences: BTreeSet<PortId> = BTreeSet::new();
    let mut waiting: BTreeMap<PortId, BTreeSet<PortId>> = BTreeMap::new();
    for tree in pause::trees(&scene, &scene.paused_links()) {
        consequences.extend(tree.waiting.iter().cloned());
        if tree.cause == Root::Full {
            waiting.entry(tree.root).or_default().extend(tree.waiting);
        } else {
            consequences.insert(tree.root.clone());
            verdicts.extend(scene.pausing(&tree));
        }
    }
    hot.retain(|p| !consequences.contains(p));
    let (last_hop, fabric): (Vec<PortId>, Vec<PortId>) =
        hot.into_iter().partition(|p| scene.is_last_hop(p));
    for port in last_hop {
        let Some(verdict) = scene.incast(&port, &fabric, &mut consequences) else {
            continue;
        };
        // A receiver with several ports is one.
        let far = scene.leads_to(&port);
        let same = |v: &&mut Verdict| {
            let link = v.entity.link();
            v.class == verdict.class && link.and_then(|l| scene.leads_to(l)) == far
        };
        match verdicts.iter_mut().find(same) {
            Some(one) => {
                one.links.extend(verdict.links);
                one.evidence.extend(verdict.evidence);
            }
            None => verdicts.push(verdict),
        }
    }
    let roots: Vec<PortId> = fabric
        .into_iter()
        .filter(|p| !consequences.contains(p) && scene.explained(p) >= limits.explained_min)
        .filter(|p| scene.outlasts_a_burst(p))
        .collect();
    for component in scene.components(&roots) {
        verdicts.extend(scene.fabric(&component, flows, changes_max));
    }
    for verdict in &mut verdicts {
        let upstream: Vec<PortId> = verdict
            .links
            .iter()
            .filter_map(|l| waiting.get(l))
            .flatten()
            .cloned()
            .collect();
        let more = upstream.into_iter().filter(|l| !verdict.links.contains(l));
        let more: Vec<PortId> = more.collect();
        verdict.links.extend(more);
    }
    let named: BTreeSet<&PortId> = verdicts.iter().flat_map(|v| &v.links).collect();
    let degraded = scene.degraded(|port| named.contains(port) || consequences.contains(port));
    verdicts.extend(degraded);
    verdicts
}

impl Scene<'_> {
    /// Links whose far end pauses them, from a switch or a host alike.
    fn paused_links(&self) -> BTreeSet<PortId> {
        let held = self.links.paused(self.now, RATE_AGE_MAX);
        let ends = held.flat_map(|link| {
            let port = self.topology.port(link);
            [Some(port), self.topology.peer(port)]
        });
        let long = self.limits.paused_hot;
        let paused = ends.flatten().filter(|port| self.paused(port) >= long);
        paused.cloned().collect()
    }

    /// A verdict on a host or a switch that makes others wait.
    fn pausing(&self, tree: &Tree) -> Option<Verdict> {
        let root = &tree.root;
        let share = self.paused(root);
        let far = self.leads_to(root)?;
        let stands = |s: &LinkSample| s.utilisation_busy().unwrap_or(0.0) < STANDS_STILL;
        let link = self.topology.link(root)?;
        let lasts = |n| self.links.history(link).rev().take(n).all(stands);
        let stands = share >= self.limits.storm && lasts(1);
        // Both ends are read at moments of their own: one sample without traffic is not next to nothing.
        if stands && !lasts(2) {
            return None;
        }
        let (class, severity, long, action) = match tree.cause {
            Root::Host if stands => (
                Class::PfcStorm,
                Severity::Critical,
                self.limits.storm,
                format!("isolate {far} from the fabric, then reset its network adapter; see that switches have a PFC watchdog"),
            ),
            Root::Host => (
                Class::SlowReceiver,
                Severity::Warning,
                self.limits.slow_receiver,
                format!("look at {far}: PCIe width and errors, memory bandwidth, IOMMU, the adapter's buffers"),
            ),
            Root::Switch => (
                Class::PfcStorm,
                Severity::Critical,
                self.limits.storm,
                format!("look at the buffers and the PFC settings of {far}: it pauses though nothing holds it back"),
            ),
            Root::Cycle => (
                Class::PfcStorm,
                Severity::Critical,
                self.limits.slow_receiver,
                "switch the PFC watchdog on: links wait for each other in a circle and only dropping frees them".into(),
            ),
            Root::Full => return None,
        };
        if !self.paused_for(root, long) {
            return None;
        }
        let mut evidence = self.link_evidence(root);
        evidence.push(Evidence::new(
            format!("pause by {far}"),
            format!(
                "{:.0} % of the time, in {} of the last {} intervals at least",
                share * 100.0,
                self.limits.samples_hot,
                self.limits.window
            ),
        ));
        if !tree.waiting.is_empty() {
            let waiting: Vec<String> = tree.waiting.iter().map(ToString::to_string).collect();
            evidence.push(Evidence::new("links that wait for it", waiting.join(", ")));
        }
        let links = [root].into_iter().chain(&tree.waiting);
        let confidence = self.share_of_window(root, |s| s.paused().is_some_and(|p| p >= long));
        Some(Verdict {
            links: links.cloned().collect(),
            job: common_job(self.flows_on(root).map(|(_, c)| c)),
            evidence,
            action,
            ..Verdict::new(
                class,
                severity,
                Subject::Link(root.clone()),
                confidence.max(MOST),
            )
        })
    }

    fn incast(
        &self,
        port: &PortId,
        fabric: &[PortId],
        consequences: &mut BTreeSet<PortId>,
    ) -> Option<Verdict> {
        let flows: Vec<(&FlowKey, &Crossing)> = self.flows_on(port).collect();
        let senders: BTreeSet<_> = flows.iter().map(|(k, _)| k.src).collect();
        if self.explained(port) < self.limits.explained_min {
            return None;
        }
        let storage = self.storage_share(flows.iter().copied());
        // What the senders get by their own last hops.
        let inbound = senders.iter().filter_map(|address| {
            let last_hop = self.topology.peer(self.topology.port_of(*address)?)?;
            Some(self.newest(last_hop)?.tx_bps.into())
        });
        let inbound: Vec<f64> = inbound.collect();
        let mean = inbound.iter().sum::<f64>() / inbound.len().max(1) as f64;
        let alone = self.tx_bps(port) >= INCAST_RATIO * mean;
        if storage < MOST && (senders.len() < self.limits.incast_senders || !alone) {
            return None;
        }
        let mut links = vec![port.clone()];
        for upstream in fabric {
            let all: f64 = self.flows_on(upstream).map(|(_, c)| c.rate_bps).sum();
            let ours: f64 = flows
                .iter()
                .filter(|(_, c)| c.path.ports.contains(upstream))
                .map(|(_, c)| c.rate_bps)
                .sum();
            if ours > MOST * all {
                consequences.insert(upstream.clone());
                links.push(upstream.clone());
            }
        }
        let receiver = self.leads_to(port)?;
        let mut evidence = self.link_evidence(port);
        evidence.push(Evidence::new(
            "senders",
            format!(
                "{} hosts send to {receiver} at once; it gets {:.0} Mbit/s, they get {:.0} on average",
                senders.len(),
                self.tx_bps(port) / 1e6,
                mean / 1e6
            ),
        ));
        evidence.push(Evidence::new(
            "rejected: reroute",
            format!("every path to {receiver} ends in {port}"),
        ));
        let class = if storage >= MOST {
            Class::StorageBurst
        } else {
            Class::Incast
        };
        Some(self.crowded(class, port, links, &flows, evidence))
    }

    /// A verdict on too much traffic that no route relieves.
    fn crowded(
        &self,
        class: Class,
        port: &PortId,
        links: Vec<PortId>,
        flows: &[(&FlowKey, &Crossing)],
        mut evidence: Vec<Evidence>,
    ) -> Verdict {
        let mut severity = Severity::Warning;
        if class == Class::StorageBurst {
            severity = Severity::Info;
            let share = self.storage_share(flows.iter().copied()) * 100.0;
            let value = format!("{share:.0} % of the traffic comes from it or goes to it");
            evidence.push(Evidence::new("storage", value));
        }
        Verdict {
            links,
            job: common_job(flows.iter().map(|(_, c)| *c)),
            evidence,
            ..Verdict::new(
                class,
                severity,
                Subject::Link(port.clone()),
                self.confidence(port),
            )
        }
    }

    /// Sets of hot links that are held together by a job, by a flow of no known job, or by their group.
    fn components(&self, roots: &[PortId]) -> Vec<Vec<PortId>> {
        let mut components: Vec<(BTreeSet<String>, Vec<PortId>)> = Vec::new();
        for port in roots {
            let flows = self.flows_on(port);
            let mut ties: BTreeSet<String> = flows
                .map(|(k, c)| {
                    c.job
                        .as_ref()
                        .map_or_else(|| k.to_string(), |j| format!("job {j}"))
                })
                .collect();
            if let Some(group) = self.topology.group_of(port) {
                ties.insert(format!("group {} of {}", group.id, port.node));
            }
            let mut ports = vec![port.clone()];
            components.retain_mut(|(t, p)| {
                let apart = t.is_disjoint(&ties);
                if !apart {
                    ties.append(t);
                    ports.append(p);
                }
                apart
            });
            components.push((ties, ports));
        }
        let sorted = |(_, mut ports): (_, Vec<PortId>)| {
            ports.sort();
            ports
        };
        components.into_iter().map(sorted).collect()
    }

    /// A sibling of the port that has room, with the share of its capacity that is used.
    fn roomy(&self, port: &PortId) -> Option<(f64, PortId)> {
        let members = &self.topology.group_of(port)?.members;
        let siblings = members.iter().filter(|m| **m != port.port);
        let siblings = siblings.map(|m| PortId {
            node: port.node.clone(),
            port: m.clone(),
        });
        let mut rooms = siblings.filter_map(|s| Some((self.utilisation(&s)?, s)));
        rooms.find(|(used, _)| *used < self.limits.sibling_idle)
    }

    /// Whether more is sent over a port's group than it has: its hosts can send more than all members carry, or all
    /// members are full.
    fn is_too_little(&self, port: &PortId, hot: &[PortId]) -> bool {
        let offered = self.offered(port);
        let more = offered.is_some_and(|(offered, there)| offered > there);
        // That hosts could fill it is no proof that they do: it is full, or marks enough say so.
        let used = self.utilisation(port).map(|u| u + self.paused(port));
        let full = used.is_some_and(|u| u >= self.limits.utilisation_full);
        let marked = self.newest(port).and_then(LinkSample::marked);
        let marked = marked.is_some_and(|m| m >= self.limits.marked_alone);
        (more && (full || marked) && self.explained(port) >= ALL) || self.group_is_full(port, hot)
    }

    /// What the hosts can send whose flows cross a port's group, and what its members carry, in bits per second.
    fn offered(&self, port: &PortId) -> Option<(f64, f64)> {
        let group = self.topology.group_of(port)?;
        let members = group.members.iter().map(|m| PortId {
            node: port.node.clone(),
            port: m.clone(),
        });
        let (mut there, mut senders) = (0.0, BTreeSet::new());
        for member in members {
            there += self.topology.capacity_bps(&member)?;
            senders.extend(self.may_send(&member).filter_map(|c| c.path.ports.first()));
        }
        let rates = senders.into_iter().map(|p| self.topology.capacity_bps(p));
        Some((rates.sum::<Option<f64>>()?, there))
    }

    /// Whether every member of the port's group is hot and full.
    fn group_is_full(&self, port: &PortId, hot: &[PortId]) -> bool {
        let full = |member: &std::sync::Arc<str>| {
            let port = PortId {
                node: port.node.clone(),
                port: member.clone(),
            };
            let used = self.utilisation(&port).map(|u| u + self.paused(&port));
            hot.contains(&port) && used.is_some_and(|u| u >= self.limits.utilisation_full)
        };
        let group = self.topology.group_of(port);
        group.is_some_and(|g| g.members.iter().all(full))
    }

    /// A verdict on hot links inside the fabric, if one is due.
    fn fabric(&self, hot: &[PortId], flows: &mut Flows, changes_max: usize) -> Option<Verdict> {
        let crosses = |c: &Crossing| c.path.ports.iter().any(|p| hot.contains(p));
        let jobs: BTreeSet<&JobId> = self
            .crossing
            .values()
            .filter(|c| crosses(c))
            .filter_map(|c| c.job.as_ref())
            .collect();
        // A collective is as fast as its slowest edge: the plan is for all flows of the jobs that
        // are hit, also for those whose link was not hot just now.
        let ours = |c: &Crossing| crosses(c) || c.job.as_ref().is_some_and(|j| jobs.contains(j));
        let on_hot: Vec<(&FlowKey, &Crossing)> =
            self.crossing.iter().filter(|(_, c)| ours(c)).collect();
        let mut links: Vec<PortId> = hot.to_vec();
        // Named by the worst for which something can be done.
        let marked = |p: &PortId| self.newest(p).and_then(LinkSample::marked).unwrap_or(0.0);
        let used = |p: &PortId| self.utilisation(p).unwrap_or(0.0);
        links.sort_by(|a, b| used(b).total_cmp(&used(a)));
        links.sort_by(|a, b| marked(b).total_cmp(&marked(a)));
        links.sort_by_cached_key(|p| self.roomy(p).is_none());
        let entity = links.first()?.clone();
        let mut evidence: Vec<Evidence> =
            links.iter().flat_map(|p| self.link_evidence(p)).collect();
        let through: Vec<_> = on_hot.iter().copied().filter(|(_, c)| crosses(c)).collect();
        if self.storage_share(through.iter().copied()) >= MOST {
            // Flows that carry little beside a queue are not what it waits for: the others rest just now.
            let used = |p: &PortId| self.utilisation(p).map(|u| u + self.paused(p));
            let fills = |p: &PortId| used(p).is_some_and(|u| u >= MOST);
            return links
                .iter()
                .any(fills)
                .then(|| self.crowded(Class::StorageBurst, &entity, links, &through, evidence));
        }
        let items = self.items(&on_hot, flows)?;
        let load = self.load(&items);
        let taken = plan::spread(&items, &load, changes_max);
        let gain = self.gain(&items, &taken, &load, &on_hot);
        let job = common_job(on_hot.iter().map(|(_, c)| *c));
        let confidence = hot.iter().map(|p| self.confidence(p)).fold(1.0, f64::min);
        evidence.push(Evidence::new(
            "flows",
            on_hot
                .iter()
                .map(|(k, c)| format!("{k} at {:.0} Mbit/s", c.rate_bps / 1e6))
                .collect::<Vec<_>>()
                .join("; "),
        ));
        let plan = plan::pins(&items, &taken);
        let helps = gain >= self.limits.gain_min && !plan.is_empty();
        let mut say = |what: String, value: &str| evidence.push(Evidence::new(what, value));
        let (class, entity, plan) = match self.roomy(&entity).filter(|_| helps) {
            Some((used, sibling)) => {
                let used = format!("{:.0} % used", used * 100.0);
                say(format!("sibling {sibling}"), &used);
                let gain = format!("slowest flow x{gain:.2} (max-min fair)");
                say("best placement".into(), &gain);
                say(
                    "rejected: incast".into(),
                    "no hot link ends at a host that they share",
                );
                say(
                    "rejected: oversubscription".into(),
                    "a sibling in the group has room",
                );
                (Class::EcmpCollision, entity, plan)
            }
            None => {
                let entity = links.iter().find(|p| self.is_too_little(p, hot))?.clone();
                let why = match self.offered(&entity) {
                    Some((offered, there)) => format!(
                        "hosts that can send {:.0} Mbit/s share a group of {:.0}",
                        offered / 1e6,
                        there / 1e6
                    ),
                    None => "every member of the group is full".into(),
                };
                say("demand".into(), &why);
                let gain = format!("best placement gives x{gain:.2}");
                say("rejected: collision".into(), &gain);
                (Class::Oversubscription, entity, Vec::new())
            }
        };
        Some(Verdict {
            links,
            job,
            evidence,
            plan,
            ..Verdict::new(class, Severity::Warning, Subject::Link(entity), confidence)
        })
    }
}
