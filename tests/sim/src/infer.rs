//! Which way each flow of a trace went: its hash is not known, but its counters tell.
//!
//! The counters of each pair of leaf and spine at the end of a trace say how many flows and acknowledgements took
//! that way, without any simulation: a search moves single flows until these sums fit. What is left open, which of
//! the flows of a leaf share a link, is found by exchanging two at a time and comparing the first rows of the trace
//! with ours. Iteration times are not looked at: they stay a test of the model.

use crate::change::Change;
use crate::num::index;
use crate::rng::Rng;
use crate::scenario::{PathEntry, Scenario};
use crate::sim::Sim;
use crate::time::NS;
use crate::topology::Shape;
use crate::traces::Trace;

#[derive(Clone, Copy)]
struct Flow {
    qp: u32,
    from: u32,
    to: u32,
    bytes: f64,
    answers: bool,
}

/// The search for the paths of one trace.
pub struct Search<'a> {
    scenario: &'a Scenario,
    trace: &'a Trace,
    flows: Vec<Flow>,
    leaves: u32,
    spines: u32,
    per_leaf: u32,
    hosts: u32,
}

impl<'a> Search<'a> {
    /// Prepares it. `None`: not a leaf-spine fabric, or the scenario does not build.
    #[must_use]
    pub fn new(scenario: &'a Scenario, trace: &'a Trace) -> Option<Self> {
        let Shape::LeafSpine {
            leaves,
            spines,
            hosts_per_leaf,
        } = scenario.topology.shape
        else {
            return None;
        };
        let mut sim = scenario.build().ok()?;
        sim.run_jobs(scenario.limit());
        let transport = scenario.config.transport;
        let mut flows = Vec::new();
        for qp in 0..sim.qp_count() {
            let t = sim.tuple(qp);
            let (from, to) = (t.src / hosts_per_leaf, t.dst / hosts_per_leaf);
            if from != to {
                let packets = (sim.qp_delivered(qp) / u64::from(transport.mtu)) as f64;
                flows.push(Flow {
                    qp,
                    from,
                    to,
                    bytes: packets * f64::from(transport.mtu + transport.header),
                    answers: false,
                });
                flows.push(Flow {
                    qp,
                    from: to,
                    to: from,
                    bytes: packets * f64::from(transport.ack_bytes),
                    answers: true,
                });
            }
        }
        Some(Self {
            scenario,
            trace,
            flows,
            leaves,
            spines,
            per_leaf: hosts_per_leaf,
            hosts: leaves * hosts_per_leaf,
        })
    }

    /// Searches, with so many simulations at most.
    #[must_use]
    pub fn run(
        &self,
        simulations: u32,
        seed: u64,
        mut progress: impl FnMut(u32, f64),
    ) -> Vec<PathEntry> {
        let mut rng = Rng::new(seed);
        let spines = u64::from(self.spines);
        let mut choice: Vec<u32> = self
            .flows
            .iter()
            .map(|_| crate::num::low32(rng.below(spines)))
            .collect();
        self.fit_sums(&mut choice, &mut rng);
        let mut best = self.distance(&choice);
        for n in 0..simulations {
            let (a, b) = (self.any(&mut rng), self.any(&mut rng));
            let (fa, fb) = (self.flows[a], self.flows[b]);
            let alike = fa.from == fb.from && fa.to == fb.to && fa.answers == fb.answers;
            if !alike || choice[a] == choice[b] {
                continue;
            }
            choice.swap(a, b);
            let now = self.distance(&choice);
            if now <= best {
                best = now;
            } else {
                choice.swap(a, b);
            }
            progress(n, best);
        }
        self.entries(&choice)
    }

    fn any(&self, rng: &mut Rng) -> usize {
        crate::num::position(rng.below(self.flows.len() as u64))
    }

    /// Bytes that the spines received from and sent to each leaf at the end, less those of a choice.
    fn residue(&self, choice: &[u32]) -> Vec<f64> {
        let cells = (self.leaves * self.spines) as usize;
        let mut left = vec![0.0; 2 * cells];
        let Some(last) = self.trace.ports.values().next_back() else {
            return left;
        };
        for spine in 0..self.spines {
            for leaf in 0..self.leaves {
                let row = last
                    .get(&(self.hosts + self.leaves + spine, leaf + 1))
                    .copied()
                    .unwrap_or_default();
                let at = (spine * self.leaves + leaf) as usize;
                left[at] = row.rx_bytes as f64;
                left[cells + at] = row.tx_bytes as f64;
            }
        }
        for (flow, spine) in self.flows.iter().zip(choice) {
            left[(spine * self.leaves + flow.from) as usize] -= flow.bytes;
            left[cells + (spine * self.leaves + flow.to) as usize] -= flow.bytes;
        }
        left
    }

    fn fit_sums(&self, choice: &mut [u32], rng: &mut Rng) {
        let cells = (self.leaves * self.spines) as usize;
        let mut left = self.residue(choice);
        let mut heat = left.iter().map(|x| x * x).sum::<f64>() / 10.0;
        for _ in 0..400_000 {
            let f = self.any(rng);
            let (flow, old) = (self.flows[f], choice[f]);
            let new = crate::num::low32(rng.below(u64::from(self.spines)));
            let mut delta = 0.0;
            for (leaf, base) in [(flow.from, 0), (flow.to, cells)] {
                for (spine, sign) in [(old, 1.0), (new, -1.0)] {
                    let at = base + (spine * self.leaves + leaf) as usize;
                    delta -= left[at] * left[at];
                    left[at] += sign * flow.bytes;
                    delta += left[at] * left[at];
                }
            }
            heat *= 0.999_95;
            if delta <= 0.0 || rng.unit() < (-delta / heat.max(1.0)).exp() {
                choice[f] = new;
            } else {
                for (leaf, base) in [(flow.from, 0), (flow.to, cells)] {
                    for (spine, sign) in [(old, 1.0), (new, -1.0)] {
                        left[base + (spine * self.leaves + leaf) as usize] -= sign * flow.bytes;
                    }
                }
            }
        }
    }

    fn pin(&self, sim: &mut Sim, choice: &[u32]) {
        for (flow, spine) in self.flows.iter().zip(choice) {
            let switch = self.hosts + flow.from;
            let port =
                sim.topology().nodes[switch as usize].ports[(self.per_leaf + spine) as usize];
            let qp = if flow.answers {
                flow.qp | crate::route::ANSWERS
            } else {
                flow.qp
            };
            sim.apply(Change::PinFlow {
                switch,
                qp,
                port: Some(port),
            });
        }
    }

    /// How far our first rows are from theirs, bytes.
    fn distance(&self, choice: &[u32]) -> f64 {
        let Ok(mut sim) = self.scenario.build() else {
            return f64::INFINITY;
        };
        self.pin(&mut sim, choice);
        let mut sum = 0.0;
        for (t, rows) in self.trace.ports.iter().skip(1).take(3) {
            sim.run_until(t * NS);
            let sample = sim.sample();
            for ((node, port), row) in rows {
                let Some(at) = sim
                    .topology()
                    .nodes
                    .get(*node as usize)
                    .and_then(|n| n.ports.get(*port as usize - 1))
                else {
                    continue;
                };
                sum += sample.ports[*at as usize].tx_bytes.abs_diff(row.tx_bytes) as f64;
            }
            for (host, tx) in self.trace.host_tx.get(t).into_iter().flatten() {
                sum += sample.hosts[*host as usize].tx_payload.abs_diff(*tx) as f64;
            }
        }
        sum
    }

    fn entries(&self, choice: &[u32]) -> Vec<PathEntry> {
        let Ok(sim) = self.scenario.build() else {
            return Vec::new();
        };
        let mut seen = std::collections::BTreeMap::new();
        self.flows
            .iter()
            .zip(choice)
            .map(|(flow, spine)| {
                let t = sim.tuple(flow.qp);
                let nth = seen.entry((t.src, t.dst, flow.answers)).or_insert(0);
                *nth += 1;
                let via = vec![format!("leaf{}/{}", flow.from, self.per_leaf + spine + 1)];
                PathEntry {
                    src: t.src,
                    dst: t.dst,
                    nth: *nth - 1,
                    answers: flow.answers,
                    via,
                }
            })
            .collect()
    }
}

/// The paths as lines of a scenario file.
#[must_use]
pub fn to_yaml(paths: &[PathEntry]) -> String {
    let mut text = String::from("paths:\n");
    for p in paths {
        let nth = if p.nth > 0 {
            format!("nth: {}, ", p.nth)
        } else {
            String::new()
        };
        let answers = if p.answers { "answers: true, " } else { "" };
        text.push_str(&format!(
            "  - {{src: {}, dst: {}, {nth}{answers}via: [{}]}}\n",
            p.src,
            p.dst,
            p.via.join(", ")
        ));
    }
    text
}

/// Number of flows that a search has to place.
#[must_use]
pub fn count(search: &Search<'_>) -> u32 {
    index(search.flows.len())
}
