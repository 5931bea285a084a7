//! The hotspot detector: which links hold traffic back, and what kind of hot they are.
//!
//! What is estimated: for each set of hot links that share a job (or a flow), what would relieve
//! it. That question, and not a threshold per class, tells the classes apart:
//!
//! - **incast**: the hot link ends at a host and `incast_senders` or more send to it. No route
//!   avoids the last hop, so nothing is rerouted; hot links upstream that carry the same flows are
//!   consequences.
//! - **ECMP collision**: a sibling in the hot link's next-hop group has room (measured), *and* the
//!   slowest flow would gain `gain_min` under the best placement (max-min fair what-if). Both:
//!   the measurement alone sees room that the flows cannot use, the model alone sees gains for
//!   demand that is not there.
//! - **oversubscription**: every member of the group is hot and no placement helps.
//!
//! Trip condition: hot in `samples_hot` of the last `window` samples, the newest among them, and
//! known flows explain at least `explained_min` of the link's traffic; otherwise no verdict (on
//! doubt do nothing). Cold start: no verdict until paths are known, which the switches answer in
//! milliseconds. Recovery: [`crate::incident`]. Cost: O(flows x path) when a link is hot, O(links)
//! otherwise.

use crate::config::Hotspot;
use crate::flows::{Flows, Path, RATE_AGE_MAX};
use crate::ids::{FlowKey, JobId, NodeId, PortId};
use crate::io::PinChange;
use crate::links::{LinkSample, Links};
use crate::maxmin;
use crate::memory::keep;
use crate::plan::{self, Choice, Item, Load};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// What kind of hot a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    EcmpCollision,
    Incast,
    Oversubscription,
}

keep!(enum Class { 0 EcmpCollision, 1 Incast, 2 Oversubscription });

impl Class {
    pub const ALL: [Class; 3] = [Class::EcmpCollision, Class::Incast, Class::Oversubscription];

    /// Name in the API, in labels and in documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Class::EcmpCollision => "ecmp_collision",
            Class::Incast => "incast",
            Class::Oversubscription => "oversubscription",
        }
    }
}

/// One thing that was measured or weighed, in words and figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    pub what: String,
    pub value: String,
}

keep!(struct Evidence { what, value });

/// What is wrong, where, why we think so and what would help.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub class: Class,
    /// The link to look at first.
    pub entity: PortId,
    /// All links that the cause makes hot, the roots first.
    pub links: Vec<PortId>,
    pub job: Option<JobId>,
    /// In 0..=1: share of hot samples times share of the traffic explained.
    pub confidence: f64,
    pub evidence: Vec<Evidence>,
    /// The change that would relieve it; empty if no route does.
    pub plan: Vec<PinChange>,
}

keep!(struct Verdict { class, entity, links, job, confidence, evidence, plan });

/// An active flow with its path.
struct Crossing {
    job: Option<JobId>,
    rate_bps: f64,
    path: Path,
}

/// Looks at everything once.
pub fn detect(
    links: &Links,
    flows: &mut Flows,
    topology: &Topology,
    limits: &Hotspot,
    changes_max: usize,
    now: Duration,
) -> Vec<Verdict> {
    // Paths are asked for as soon as a link was hot once, so that they are known when it counts.
    if links.hot(now, RATE_AGE_MAX).next().is_none() {
        return Vec::new();
    }
    let mut hot: Vec<PortId> = links
        .hot(now, RATE_AGE_MAX)
        .filter(|l| links.hot_for(*l, limits.samples_hot, limits.window))
        .map(|l| topology.port(l).clone())
        .collect();
    hot.sort();
    let active: Vec<(FlowKey, Option<JobId>, f64)> = flows
        .active(now)
        .map(|(k, f)| (*k, f.job.clone(), f.rate_bps))
        .collect();
    let mut crossing: BTreeMap<FlowKey, Crossing> = BTreeMap::new();
    for (key, job, rate_bps) in active {
        if let Some(path) = flows.path(&key, topology) {
            crossing.insert(
                key,
                Crossing {
                    job,
                    rate_bps,
                    path,
                },
            );
        }
    }
    let scene = Scene {
        links,
        topology,
        limits,
        crossing: &crossing,
        now,
    };
    let mut verdicts = Vec::new();
    let (last_hop, fabric): (Vec<PortId>, Vec<PortId>) = hot
        .into_iter()
        .filter(|p| topology.is_switch(&p.node))
        .partition(|p| {
            topology
                .peer(p)
                .is_some_and(|peer| !topology.is_switch(&peer.node))
        });
    let mut consequences: BTreeSet<PortId> = BTreeSet::new();
    for port in last_hop {
        verdicts.extend(scene.incast(&port, &fabric, &mut consequences));
    }
    let roots: Vec<PortId> = fabric
        .into_iter()
        .filter(|p| !consequences.contains(p) && scene.explained(p) >= limits.explained_min)
        .collect();
    for component in scene.components(&roots) {
        verdicts.extend(scene.fabric(&component, flows, changes_max));
    }
    verdicts
}

struct Scene<'a> {
    links: &'a Links,
    topology: &'a Topology,
    limits: &'a Hotspot,
    crossing: &'a BTreeMap<FlowKey, Crossing>,
    now: Duration,
}

impl Scene<'_> {
    fn flows_on<'a>(
        &'a self,
        port: &'a PortId,
    ) -> impl Iterator<Item = (&'a FlowKey, &'a Crossing)> {
        self.crossing
            .iter()
            .filter(move |(_, c)| c.path.ports.contains(port))
    }

    fn newest(&self, port: &PortId) -> Option<&LinkSample> {
        self.links
            .newest(self.topology.link(port)?, self.now, RATE_AGE_MAX)
    }

    fn tx_bps(&self, port: &PortId) -> f64 {
        self.newest(port).map_or(0.0, |s| s.tx_bps.into())
    }

    fn utilisation(&self, port: &PortId) -> Option<f64> {
        self.newest(port)?.utilisation_busy()
    }

    /// Share of a link's traffic that known flows explain.
    fn explained(&self, port: &PortId) -> f64 {
        let known: f64 = self.flows_on(port).map(|(_, c)| c.rate_bps).sum();
        let seen = self.tx_bps(port);
        if seen > 0.0 {
            (known / seen).min(1.0)
        } else {
            0.0
        }
    }

    fn confidence(&self, port: &PortId) -> f64 {
        let history = self.topology.link(port).map(|l| self.links.history(l));
        let newest = history.into_iter().flatten().rev();
        let window: Vec<bool> = newest.take(self.limits.window).map(|s| s.hot).collect();
        let hot = window.iter().filter(|h| **h).count();
        if window.is_empty() {
            0.0
        } else {
            self.explained(port) * hot as f64 / window.len() as f64
        }
    }

    fn incast(
        &self,
        port: &PortId,
        fabric: &[PortId],
        consequences: &mut BTreeSet<PortId>,
    ) -> Option<Verdict> {
        let flows: Vec<(&FlowKey, &Crossing)> = self.flows_on(port).collect();
        let senders: BTreeSet<_> = flows.iter().map(|(k, _)| k.src).collect();
        if senders.len() < self.limits.incast_senders
            || self.explained(port) < self.limits.explained_min
        {
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
            if ours > 0.5 * all {
                consequences.insert(upstream.clone());
                links.push(upstream.clone());
            }
        }
        let receiver = self.topology.peer(port)?;
        let mut evidence = self.link_evidence(port);
        evidence.push(Evidence {
            what: "senders".into(),
            value: format!("{} hosts send to {} at once", senders.len(), receiver.node),
        });
        evidence.push(Evidence {
            what: "rejected: reroute".into(),
            value: format!("every path to {} ends in {port}", receiver.node),
        });
        Some(Verdict {
            class: Class::Incast,
            entity: port.clone(),
            links,
            job: common_job(&flows),
            confidence: self.confidence(port),
            evidence,
            plan: Vec::new(),
        })
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
        components
            .into_iter()
            .map(|(_, mut p)| {
                p.sort();
                p
            })
            .collect()
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
        let items = self.items(&on_hot, flows)?;
        let load = self.load(&items);
        let taken = plan::spread(&items, &load, changes_max);
        let gain = self.gain(&items, &taken, &load, &on_hot);
        let roomy = |p: &PortId| {
            let siblings = self.topology.group_of(p).map(|g| {
                g.members.iter().map(|m| PortId {
                    node: p.node.clone(),
                    port: m.clone(),
                })
            });
            let mut rooms = siblings
                .into_iter()
                .flatten()
                .filter(|s| s != p)
                .filter_map(|s| Some((self.utilisation(&s)?, s)));
            rooms.find(|(u, _)| *u < self.limits.sibling_idle)
        };
        let mut links: Vec<PortId> = hot.to_vec();
        links.sort_by_key(|p| roomy(p).is_none());
        let job = common_job(&on_hot);
        let entity = links.first()?.clone();
        let confidence = hot.iter().map(|p| self.confidence(p)).fold(1.0, f64::min);
        let mut evidence: Vec<Evidence> =
            links.iter().flat_map(|p| self.link_evidence(p)).collect();
        evidence.push(Evidence {
            what: "flows".into(),
            value: on_hot
                .iter()
                .map(|(k, c)| format!("{k} at {:.0} Mbit/s", c.rate_bps / 1e6))
                .collect::<Vec<_>>()
                .join("; "),
        });
        if let Some((utilisation, sibling)) = roomy(&entity) {
            evidence.push(Evidence {
                what: format!("sibling {sibling}"),
                value: format!("{:.0} % used", utilisation * 100.0),
            });
            evidence.push(Evidence {
                what: "best placement".into(),
                value: format!("slowest flow x{gain:.2} (max-min fair)"),
            });
            let plan = plan::pins(&items, &taken);
            if gain < self.limits.gain_min || plan.is_empty() {
                return None;
            }
            evidence.push(Evidence {
                what: "rejected: incast".into(),
                value: "no hot link ends at a host that they share".into(),
            });
            evidence.push(Evidence {
                what: "rejected: oversubscription".into(),
                value: "a sibling in the group has room".into(),
            });
            return Some(Verdict {
                class: Class::EcmpCollision,
                entity,
                links,
                job,
                confidence,
                evidence,
                plan,
            });
        }
        let is_full = |p: &PortId| {
            hot.contains(p)
                && self
                    .utilisation(p)
                    .is_some_and(|u| u >= self.limits.utilisation_full)
        };
        let full = |p: &PortId| {
            self.topology.group_of(p).is_some_and(|g| {
                g.members.iter().all(|m| {
                    is_full(&PortId {
                        node: p.node.clone(),
                        port: m.clone(),
                    })
                })
            })
        };
        let entity = links.iter().find(|p| full(p))?.clone();
        evidence.push(Evidence {
            what: "rejected: collision".into(),
            value: format!("every member of the group is hot; best placement gives x{gain:.2}"),
        });
        Some(Verdict {
            class: Class::Oversubscription,
            entity,
            links,
            job,
            confidence,
            evidence,
            plan: Vec::new(),
        })
    }

    /// What a planner can move of the flows. `None` while a path that would be needed is unknown.
    fn items(&self, on_hot: &[(&FlowKey, &Crossing)], flows: &mut Flows) -> Option<Vec<Item>> {
        let mut items: BTreeMap<(NodeId, Ipv4Addr), Item> = BTreeMap::new();
        let mut complete = true;
        for (key, crossing) in on_hot {
            // The first choice on the way; what lies behind it follows from it.
            let Some(choice) = crossing.path.choices.iter().find(|c| {
                self.topology
                    .group(&crossing.path.ports[c.at].node, c.group)
                    .is_some_and(|g| g.members.len() > 1)
            }) else {
                continue;
            };
            let (before, chosen) = (
                &crossing.path.ports[..choice.at],
                &crossing.path.ports[choice.at],
            );
            let members = &self.topology.group(&chosen.node, choice.group)?.members;
            let item = items
                .entry((chosen.node.clone(), key.dst))
                .or_insert_with(|| {
                    let ports = [chosen.port.clone()]
                        .into_iter()
                        .chain(members.iter().cloned());
                    Item {
                        node: chosen.node.clone(),
                        dst: key.dst,
                        options: ports
                            .map(|port| Choice {
                                port: Some(port),
                                paths: Vec::new(),
                            })
                            .collect(),
                    }
                });
            for (n, option) in item.options.iter_mut().enumerate() {
                if n == 0 {
                    if option.port.as_ref() != Some(&chosen.port) {
                        option.port = None;
                    }
                    option.paths.push((**key, crossing.path.ports.clone()));
                    continue;
                }
                let Some(port) = option.port.clone() else {
                    continue;
                };
                let leave = PortId {
                    node: chosen.node.clone(),
                    port,
                };
                match flows.walk(key, leave, self.topology) {
                    Some(behind) => {
                        let path = before.iter().cloned().chain(behind.ports).collect();
                        option.paths.push((**key, path));
                    }
                    None => complete = false,
                }
            }
        }
        (complete && !items.is_empty()).then(|| items.into_values().collect())
    }

    fn load(&self, items: &[Item]) -> Load {
        let mut load = Load::default();
        let movable: BTreeSet<FlowKey> = items
            .iter()
            .flat_map(|i| {
                i.options
                    .iter()
                    .flat_map(|o| o.paths.iter().map(|(k, _)| *k))
            })
            .collect();
        let ports: BTreeSet<PortId> = items
            .iter()
            .flat_map(|i| {
                i.options
                    .iter()
                    .flat_map(|o| o.paths.iter().flat_map(|(_, p)| p.iter().cloned()))
            })
            .collect();
        for (key, crossing) in self.crossing {
            load.rate_bps.insert(*key, crossing.rate_bps);
        }
        for port in ports {
            let moved: f64 = self
                .flows_on(&port)
                .filter(|(k, _)| movable.contains(k))
                .map(|(_, c)| c.rate_bps)
                .sum();
            load.fixed_bps
                .insert(port.clone(), (self.tx_bps(&port) - moved).max(0.0));
            if let Some(capacity) = self.topology.capacity_bps(&port) {
                load.capacity_bps.insert(port, capacity);
            }
        }
        load
    }

    /// How much faster the slowest flow on the hot links would be: max-min fair rates with the
    /// plan over those without.
    fn gain(
        &self,
        items: &[Item],
        taken: &[usize],
        load: &Load,
        on_hot: &[(&FlowKey, &Crossing)],
    ) -> f64 {
        let moved = plan::paths(items, taken);
        let now: Vec<Vec<PortId>> = self
            .crossing
            .values()
            .map(|c| c.path.ports.clone())
            .collect();
        let then: Vec<Vec<PortId>> = self
            .crossing
            .iter()
            .map(|(k, c)| moved.get(k).unwrap_or(&c.path.ports).clone())
            .collect();
        let mut capacity = load.capacity_bps.clone();
        for port in now.iter().flatten() {
            if let Some(c) = self.topology.capacity_bps(port) {
                capacity.entry(port.clone()).or_insert(c);
            }
        }
        let slowest = |paths: &[Vec<PortId>]| {
            let rates = maxmin::rates(paths, &capacity);
            let ours = self
                .crossing
                .keys()
                .zip(rates)
                .filter(|(k, _)| on_hot.iter().any(|(o, _)| o == k));
            ours.map(|(_, r)| r).fold(f64::INFINITY, f64::min)
        };
        let (before, after) = (slowest(&now), slowest(&then));
        if before > 0.0 && before.is_finite() && after.is_finite() {
            after / before
        } else {
            1.0
        }
    }

    fn link_evidence(&self, port: &PortId) -> Vec<Evidence> {
        let Some(sample) = self.newest(port) else {
            return Vec::new();
        };
        let mut value = format!(
            "{:.0} % of capacity while busy",
            sample.utilisation_busy().unwrap_or(0.0) * 100.0
        );
        if let Some(queue) = sample.queue_bytes_max() {
            value += &format!(", queue up to {:.0} KB", queue as f64 / 1e3);
        }
        if let Some(drops) = sample.drops_per_s() {
            value += &format!(", {drops:.0} drops/s");
        }
        value += &format!(
            ", {} flows explain {:.0} %",
            self.flows_on(port).count(),
            self.explained(port) * 100.0
        );
        vec![Evidence {
            what: format!("link {port}"),
            value,
        }]
    }
}

/// The job of most of the traffic.
fn common_job(flows: &[(&FlowKey, &Crossing)]) -> Option<JobId> {
    let mut by_job: BTreeMap<&JobId, f64> = BTreeMap::new();
    for (_, crossing) in flows {
        if let Some(job) = &crossing.job {
            *by_job.entry(job).or_default() += crossing.rate_bps;
        }
    }
    by_job
        .into_iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(job, _)| job.clone())
}
