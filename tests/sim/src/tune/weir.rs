//! The controller's tuner, driving the simulator: looks go in, settings come out.

use crate::change::Change;
use crate::port::EcnParams;
use crate::rp::RpParams;
use crate::sim::Sim;
use crate::time::{NS, Time, US};
use crate::tune::case::{discards, out_of_sequence};
use crate::tune::routing;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_controller_core::ids::JobId;
use weir_controller_core::tune::{
    Bounds, Class, Command, Counters, Ecn, Edge, JobSeen, Limits, Look, Memory, Phase, Rate, Scope,
    Session, Setting, Signature, Tuner,
};

/// How often the tuner looks: an agent's fast interval is 100 ms where iterations take a second or so; this is the same
/// share of an iteration here.
pub const TICK: Time = 100 * US;

/// One session.
#[derive(Debug)]
pub struct Driver {
    tuner: Tuner,
    /// Iterations told so far, by job.
    told: Vec<usize>,
    pins: BTreeMap<(u32, u32), Change>,
    /// Since when the search is over.
    pub settled: Option<Time>,
}

fn duration(t: Time) -> Duration {
    Duration::from_nanos(t / NS)
}

/// Switches of one tier are one class.
fn class(name: &str) -> Class {
    name.trim_end_matches(|c: char| c.is_ascii_digit()).into()
}

const NIC: &str = "nic";

fn ecn(p: &EcnParams) -> Ecn {
    Ecn {
        on: p.enabled,
        kmin_kb: p.kmin_kb,
        kmax_kb: p.kmax_kb,
        pmax: p.pmax,
    }
}

/// The reaction point of a host with the rates of a setting.
fn rp(base: &RpParams, rate: &Rate) -> RpParams {
    RpParams {
        rpg_time_reset: rate.timer_us,
        rpg_ai_rate: rate.ai_mbps,
        rpg_hai_rate: rate.hai_mbps,
        rate_reduce_monitor_period: rate.cut_gap_us,
        ..*base
    }
}

/// What stands in a fabric that was never touched.
#[must_use]
pub fn baseline(sim: &Sim) -> Setting {
    let (config, t) = (&sim.config, sim.topology());
    let switches = t.nodes.iter().filter(|n| n.tier > 0);
    let rate = Rate {
        timer_us: config.rp.rpg_time_reset,
        ai_mbps: config.rp.rpg_ai_rate,
        hai_mbps: config.rp.rpg_hai_rate,
        cut_gap_us: config.rp.rate_reduce_monitor_period,
        cnp_gap_us: config.transport.cnp_gap_us,
    };
    Setting {
        ecn: switches
            .map(|n| (class(&n.name), ecn(&config.ecn)))
            .collect(),
        nic: [(NIC.into(), rate)].into(),
        pins: Vec::new(),
    }
}

/// Where the switches of each class pause: alpha / (1 + alpha) of the smallest shared pool.
#[must_use]
pub fn bounds(sim: &Sim) -> Bounds {
    let t = sim.topology();
    let alpha = 2f64.powi(sim.config.buffer.dynamic_th);
    let mut xoff_kb: BTreeMap<Class, f64> = BTreeMap::new();
    for (node, buffer) in t.nodes[t.hosts as usize..].iter().zip(&sim.buffers) {
        let xoff = alpha / (1.0 + alpha) * buffer.pool() as f64 / 1e3;
        let least = xoff_kb.entry(class(&node.name)).or_insert(xoff);
        *least = least.min(xoff);
    }
    Bounds { xoff_kb }
}

/// The traffic pattern, from the queue pairs that carry data.
#[must_use]
pub fn signature(sim: &Sim) -> Signature {
    let mut edges = BTreeSet::new();
    for job in sim.jobs() {
        for qp in job.qps.iter().filter(|qp| **qp != u32::MAX) {
            let tuple = sim.tuple(*qp);
            edges.insert(Edge {
                job: JobId::new(&job.spec.name),
                src: routing::address(tuple.src),
                dst: routing::address(tuple.dst),
            });
        }
    }
    Signature::of(&edges)
}

impl Driver {
    /// Starts a session with the fabric as it is.
    #[must_use]
    pub fn new(sim: &Sim, memory: &Memory) -> Driver {
        let leaves = sim.topology().nodes.iter().filter(|n| n.tier == 1);
        let session = Session {
            baseline: baseline(sim),
            bounds: bounds(sim),
            groups: leaves.map(|n| n.name.as_str().into()).collect(),
            pins: routing::plan(sim, &[]),
            signature: signature(sim),
            limits: Limits::default(),
        };
        Driver {
            tuner: Tuner::new(session, memory),
            told: sim.jobs().iter().map(|j| j.iterations.len()).collect(),
            pins: BTreeMap::new(),
            settled: None,
        }
    }

    /// The session.
    #[must_use]
    pub fn tuner(&self) -> &Tuner {
        &self.tuner
    }

    /// Looks at the fabric and does what the tuner says.
    pub fn step(&mut self, sim: &mut Sim) {
        let look = self.look(sim);
        self.tuner.handle_look(&look, duration(sim.now()));
        while let Some(Command::Apply { setting, scope }) = self.tuner.poll_command() {
            self.apply(sim, &setting, &scope);
        }
        let over = self.tuner.phase() == Phase::Watching;
        if over && self.settled.is_none() {
            self.settled = Some(sim.now());
        }
    }

    fn look(&mut self, sim: &mut Sim) -> Look {
        let sample = sim.sample();
        let jobs = sim.jobs().iter().zip(&mut self.told).map(|(job, told)| {
            let ended = job.iterations[*told..].iter();
            let seen = JobSeen {
                job: JobId::new(&job.spec.name),
                ended: ended
                    .map(|i| (duration(i.start), duration(i.end)))
                    .collect(),
                running_since: job.running_since().map(duration),
            };
            *told = job.iterations.len();
            seen
        });
        Look {
            jobs: jobs.collect(),
            counters: Counters {
                paused_us: sample.ports.iter().map(|p| p.pause_rx_ps / US).collect(),
                lost: discards(&sample),
                out_of_sequence: out_of_sequence(&sample),
                marked: sample.hosts.iter().map(|h| h.ecn_marked_rx).sum(),
                packets: sample.hosts.iter().map(|h| h.rx_packets).sum(),
            },
        }
    }

    fn apply(&mut self, sim: &mut Sim, setting: &Setting, scope: &Scope) {
        let t = sim.topology().clone();
        let base = sim.config.rp;
        let group = match scope {
            Scope::All => None,
            Scope::Group(name) => t.switch_named(name),
        };
        for (n, node) in (0u32..).zip(&t.nodes) {
            let leaf = if node.tier == 0 { t.access(n) } else { n };
            if group.is_some_and(|g| g != leaf) {
                continue;
            }
            if node.tier == 0 {
                if let Some(rate) = setting.nic.get(NIC) {
                    sim.apply(Change::Rp {
                        host: Some(n),
                        rp: rp(&base, rate),
                    });
                    sim.apply(Change::CnpGap {
                        host: Some(n),
                        us: rate.cnp_gap_us,
                    });
                }
            } else if let Some(e) = setting.ecn.get(&class(&node.name)) {
                sim.apply(Change::Ecn {
                    switch: Some(n),
                    ecn: EcnParams {
                        enabled: e.on,
                        kmin_kb: e.kmin_kb,
                        kmax_kb: e.kmax_kb,
                        pmax: e.pmax,
                    },
                });
            }
        }
        if group.is_none() {
            self.pin(sim, setting);
        }
    }

    /// Takes away the pins that do not stand any more and sets those that are new.
    fn pin(&mut self, sim: &mut Sim, setting: &Setting) {
        let changes = setting.pins.iter().filter_map(|p| routing::change(sim, p));
        let mut wanted: BTreeMap<(u32, u32), Change> = BTreeMap::new();
        for change in changes {
            if let Change::Pin { switch, dst, .. } = change {
                wanted.insert((switch, dst), change);
            }
        }
        for ((switch, dst), _) in self.pins.iter().filter(|(k, c)| wanted.get(*k) != Some(*c)) {
            sim.apply(Change::Pin {
                switch: *switch,
                dst: *dst,
                port: None,
            });
        }
        for (_, change) in wanted.iter().filter(|(k, c)| self.pins.get(*k) != Some(*c)) {
            sim.apply(*change);
        }
        self.pins = wanted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::case::{CASES, Case, Outcome, run};

    fn case(name: &str) -> &'static Case {
        CASES.iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn a_canary_stands_on_one_leaf_and_its_hosts_only() {
        let mut sim = case("incast").scenario(1).unwrap().build().unwrap();
        let mut driver = Driver::new(&sim, &Memory::default());
        let mut setting = baseline(&sim);
        for e in setting.ecn.values_mut() {
            e.on = false;
        }
        setting.nic.get_mut(NIC).unwrap().timer_us = 55.0;
        driver.apply(&mut sim, &setting, &Scope::Group("leaf1".into()));
        let leaf = sim.topology().switch_named("leaf1").unwrap();
        for port in sim.ports.iter().filter(|p| p.node >= sim.topology.hosts) {
            let off = port.ecn.probability(u64::MAX - 1) == 0.0;
            assert_eq!(off, port.node == leaf, "{}", port.node);
        }
        let timers: Vec<f64> = (0..16).map(|h| sim.rp(h).rpg_time_reset).collect();
        let wanted: Vec<f64> = (0..16)
            .map(|h| {
                if sim.topology.access(h) == leaf {
                    55.0
                } else {
                    300.0
                }
            })
            .collect();
        assert_eq!(timers, wanted);
        assert_eq!(wanted.iter().filter(|t| **t == 55.0).count(), 4);
    }

    #[test]
    fn what_pauses_lies_below_where_a_port_alone_would_pause() {
        let sim = case("incast").scenario(1).unwrap().build().unwrap();
        // 1/17 of 16.8 MB less the headrooms of eight ports.
        for (class, kb) in &bounds(&sim).xoff_kb {
            assert!((900.0..990.0).contains(kb), "{class} {kb}");
        }
    }

    /// The scenario in which tuners that look at one job harm the other: for as long as a search takes nobody pays.
    #[test]
    fn no_job_pays_while_it_searches_beside_a_victim() {
        let victim = case("victim");
        let nv = run(victim, 1, 4, TICK, &mut |_| ()).unwrap();
        let mut driver = None;
        let ours = run(victim, 1, 4, TICK, &mut |sim| {
            let d = driver.get_or_insert_with(|| Driver::new(sim, &Memory::default()));
            d.step(sim);
        })
        .unwrap();
        let mean = |o: &Outcome, job: usize| o.jobs[job].mean_us(0.0, f64::INFINITY).unwrap();
        for (at, job) in nv.jobs.iter().enumerate() {
            let ratio = mean(&ours, at) / mean(&nv, at);
            assert!(ratio < 1.05, "{} {ratio}", job.name);
        }
        assert!(ours.paused_worst < nv.paused_worst + 0.01);
        assert_eq!(ours.lost, 0);
        // It did change something meanwhile.
        assert_ne!(
            (mean(&ours, 0), mean(&ours, 1)),
            (mean(&nv, 0), mean(&nv, 1))
        );
    }
}
