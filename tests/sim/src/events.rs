//! What happens in a scenario, and when.

use crate::change::Change;
use crate::port::EcnParams;
use crate::rp::RpParams;
use crate::scenario::{ScenarioError, check_ecn, check_rp, refuse, within};
use crate::sim::Sim;
use crate::time::from_us;
use serde::{Deserialize, Serialize};

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventEntry {
    /// When, us.
    pub at_us: f64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happens. Ports are written `leaf0/5`, counted from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// Both directions of a link get a rate.
    LinkRate { port: String, gbps: f64 },
    /// A share of what a port receives is damaged.
    Loss { port: String, share: f64 },
    /// A link goes down; routes follow after `reroute_us`.
    LinkDown {
        port: String,
        #[serde(default)]
        reroute_us: f64,
    },
    /// A link comes back.
    LinkUp {
        port: String,
        #[serde(default)]
        reroute_us: f64,
    },
    /// A host takes in only so much; without a rate it is healed.
    SlowReceiver { host: u32, gbps: Option<f64> },
    /// A rank computes so much longer.
    Straggler { job: String, rank: u32, us: f64 },
    /// Marking of a switch, or of all.
    Ecn {
        switch: Option<String>,
        ecn: EcnParams,
    },
    /// Reaction point of a host, or of all.
    Rp { host: Option<u32>, rp: RpParams },
    /// Weight of a port in its groups.
    Weight { port: String, weight: u32 },
    /// Everything for a host leaves a switch by this port.
    Pin { port: String, dst: u32 },
}

pub(crate) fn port(sim: &Sim, key: &str, name: &str) -> Result<u32, ScenarioError> {
    sim.topology()
        .port_named(name)
        .ok_or_else(|| refuse(key, name, "a port such as leaf0/5, counted from 1"))
}

impl EventEntry {
    pub(crate) fn change(&self, sim: &Sim, key: &str) -> Result<Change, ScenarioError> {
        let host = |h: u32| {
            if h < sim.topology().hosts {
                Ok(h)
            } else {
                Err(refuse(format!("{key}.host"), h, "a host of the fabric"))
            }
        };
        let port = |name: &String| port(sim, &format!("{key}.port"), name);
        Ok(match &self.what {
            What::LinkRate { port: p, gbps } => {
                if !(0.001..=3200.0).contains(gbps) {
                    return Err(refuse(format!("{key}.gbps"), gbps, "0.001 to 3200"));
                }
                Change::LinkRate {
                    port: port(p)?,
                    bits_per_s: gbps * 1e9,
                }
            }
            What::Loss { port: p, share } => {
                within(key, &[("share", *share, 0.0, 1.0)])?;
                Change::Loss {
                    port: port(p)?,
                    share: *share,
                }
            }
            What::LinkDown {
                port: p,
                reroute_us,
            } => Change::Link {
                port: port(p)?,
                up: false,
                reroute: from_us(*reroute_us),
            },
            What::LinkUp {
                port: p,
                reroute_us,
            } => Change::Link {
                port: port(p)?,
                up: true,
                reroute: from_us(*reroute_us),
            },
            What::SlowReceiver { host: h, gbps } => Change::Receiver {
                host: host(*h)?,
                bits_per_s: gbps.map_or(f64::INFINITY, |g| g * 1e9),
            },
            What::Straggler { job, rank, us } => {
                let at = sim.jobs().iter().position(|j| j.spec.name == *job);
                let at = at.filter(|at| *rank < sim.jobs()[*at].spec.plan.ranks);
                let at =
                    at.ok_or_else(|| refuse(key, format!("{job} rank {rank}"), "a rank of a job"))?;
                Change::Straggler {
                    job: crate::num::index(at),
                    rank: *rank,
                    delay: from_us(*us),
                }
            }
            What::Ecn { switch, ecn } => {
                check_ecn(&format!("{key}.ecn"), ecn)?;
                let switch = switch.as_ref().map(|s| {
                    sim.topology()
                        .switch_named(s)
                        .ok_or_else(|| refuse(format!("{key}.switch"), s, "a switch such as leaf0"))
                });
                Change::Ecn {
                    switch: switch.transpose()?,
                    ecn: *ecn,
                }
            }
            What::Rp { host: h, rp } => {
                check_rp(&format!("{key}.rp"), rp)?;
                Change::Rp {
                    host: h.map(host).transpose()?,
                    rp: *rp,
                }
            }
            What::Weight { port: p, weight } => Change::Weight {
                port: port(p)?,
                weight: *weight,
            },
            What::Pin { port: p, dst } => {
                let p = port(p)?;
                Change::Pin {
                    switch: sim.topology().ports[p as usize].node,
                    dst: host(*dst)?,
                    port: Some(p),
                }
            }
        })
    }
}
