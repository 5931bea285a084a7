//! A rule in the manner of ACC (SIGCOMM 2021): each switch by itself moves its thresholds along a ladder of Kmin = 20 KB *
//! 2^n, Kmax four times that, Pmax 0.2, every millisecond, by the reward that ACC's agents learn from: utilisation of
//! its busiest port and emptiness of its deepest queue. ACC learns which step to take with a neural network; here a switch
//! goes on in its direction while the reward does not fall, and turns round when it does. Its steps are not bounded by where
//! ports pause: on 16 MB of buffer the upper three levels have Kmax above that, and hardly mark.

use crate::change::Change;
use crate::port::EcnParams;
use crate::sim::{Sample, Sim};
use crate::time::{MS, Time};

/// Time between steps.
pub const TICK: Time = MS;
const LEVELS: i32 = 7;
const UTILISATION_WEIGHT: f64 = 0.7;

/// The state of every switch.
#[derive(Debug, Clone, Default)]
pub struct Acc {
    before: Option<Sample>,
    /// By switch: level, direction, last reward.
    switches: Vec<(i32, i32, Option<f64>)>,
    /// Settings that stood.
    pub tried: usize,
}

impl Acc {
    /// One step of every switch.
    pub fn step(&mut self, sim: &mut Sim) {
        let after = sim.sample();
        let t = sim.topology().clone();
        let switches = &t.nodes[t.hosts as usize..];
        // From the level nearest to the defaults' 150 KB, upwards first.
        self.switches.resize(switches.len(), (3, 1, None));
        if let Some(before) = &self.before {
            self.tried += 1;
            let span = (after.at - before.at).max(1) as f64;
            for (s, node) in switches.iter().enumerate() {
                let (mut used, mut deepest) = (0.0f64, 0.0f64);
                for p in &node.ports {
                    let (b, a) = (&before.ports[*p as usize], &after.ports[*p as usize]);
                    let bits = (a.tx_bytes - b.tx_bytes) as f64 * 8e12;
                    used = used.max(bits / span / t.ports[*p as usize].bits_per_s);
                    deepest = deepest.max(a.queue_bytes_max as f64);
                }
                let depth = (deepest / 20e3).max(1.0).log2() / f64::from(LEVELS + 2);
                let reward = UTILISATION_WEIGHT * used + (1.0 - UTILISATION_WEIGHT) * (1.0 - depth);
                let (level, way, last) = &mut self.switches[s];
                if last.is_some_and(|l| reward < l - 0.01) {
                    *way = -*way;
                }
                *last = Some(reward);
                *level = (*level + *way).clamp(0, LEVELS - 1);
                let kmin_kb = 20.0 * 2f64.powi(*level);
                sim.apply(Change::Ecn {
                    switch: Some(t.hosts + crate::num::index(s)),
                    ecn: EcnParams {
                        enabled: true,
                        kmin_kb,
                        kmax_kb: 4.0 * kmin_kb,
                        pmax: 0.2,
                    },
                });
            }
        }
        self.before = Some(after);
    }
}
