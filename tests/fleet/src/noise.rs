//! What happens in a healthy fleet and is nobody's fault: agents that restart, samples that are missing, frames that
//! are lost or come twice, counters that begin anew, nodes that boot, a controller that restarts, checkpoints.

use crate::fabric::Fabric;
use weir_sim::num::position;
use weir_sim::rng::Rng;

/// Something harmless.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// The agent's process is gone for this long.
    AgentRestart {
        down_s: f64,
    },
    /// The host boots, if no job runs on it: agent and links are gone.
    Reboot {
        down_s: f64,
    },
    /// Samples that are not taken.
    Missing {
        samples: u32,
    },
    LostFrames {
        frames: u32,
    },
    Twice,
    /// Its frames are late for a while.
    Slow {
        delay_s: f64,
        for_s: f64,
    },
    /// A driver is loaded anew; the agent marks what began again, or does not notice.
    CounterReset {
        nic: usize,
        told: bool,
    },
    /// The job of this node writes a checkpoint: short, at a part of the rate.
    Checkpoint {
        for_s: f64,
        percent: u32,
    },
    /// An XID that the catalogue says to ignore.
    IgnoredXid {
        gpu: usize,
    },
    /// The controller's process starts again: all streams begin anew.
    ControllerRestart,
}

/// How often each happens to one node in a day; a controller restart counts for the whole fleet.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    pub per_node_day: [f64; 9],
    pub controller_per_day: f64,
}

impl Default for Rates {
    /// Guesses on the bad side of what operators tell; no published rates are known to us.
    fn default() -> Rates {
        Rates {
            // Agent restart, reboot, missing, lost, twice, slow, reset, checkpoint, ignored XID.
            per_node_day: [0.3, 0.05, 8.0, 3.0, 1.0, 1.0, 0.1, 2.0, 0.02],
            controller_per_day: 1.0,
        }
    }
}

impl Rates {
    /// So much more of it, for scenarios that last minutes.
    #[must_use]
    pub fn times(self, factor: f64) -> Rates {
        Rates {
            per_node_day: self.per_node_day.map(|r| r * factor),
            controller_per_day: self.controller_per_day * factor.min(100.0),
        }
    }
}

/// Everything that happens until `end_s`, the first last: when, on which node, what.
#[must_use]
pub fn schedule(fabric: &Fabric, rates: &Rates, end_s: f64, seed: u64) -> Vec<(f64, usize, Noise)> {
    let mut rng = Rng::new(seed);
    let mut all = Vec::new();
    for node in 0..fabric.nodes.len() {
        for kind in 0..rates.per_node_day.len() {
            let mean_s = 86_400.0 / rates.per_node_day[kind].max(1e-12);
            let mut at = gap(&mut rng, mean_s);
            while at < end_s {
                all.push((at, node, of_kind(kind, fabric, &mut rng)));
                at += gap(&mut rng, mean_s);
            }
        }
    }
    let mean_s = 86_400.0 / rates.controller_per_day.max(1e-12);
    let mut at = gap(&mut rng, mean_s);
    while at < end_s {
        all.push((at, 0, Noise::ControllerRestart));
        at += gap(&mut rng, mean_s);
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

/// Time to the next of events that come independently.
fn gap(rng: &mut Rng, mean_s: f64) -> f64 {
    -(1.0 - rng.unit()).ln() * mean_s
}

fn of_kind(kind: usize, fabric: &Fabric, rng: &mut Rng) -> Noise {
    let few = |rng: &mut Rng, n: u64| u32::try_from(1 + rng.below(n)).unwrap_or(1);
    match kind {
        0 => Noise::AgentRestart {
            down_s: 0.5 + 5.0 * rng.unit(),
        },
        1 => Noise::Reboot {
            down_s: 40.0 + 60.0 * rng.unit(),
        },
        2 => Noise::Missing {
            samples: few(rng, 4),
        },
        3 => Noise::LostFrames {
            frames: few(rng, 3),
        },
        4 => Noise::Twice,
        5 => Noise::Slow {
            delay_s: 0.2 + 2.3 * rng.unit(),
            for_s: 5.0 + 20.0 * rng.unit(),
        },
        6 => Noise::CounterReset {
            nic: position(rng.below(fabric.nics as u64)),
            told: rng.below(2) == 0,
        },
        7 => Noise::Checkpoint {
            for_s: 1.0 + 2.0 * rng.unit(),
            percent: few(rng, 5),
        },
        _ => Noise::IgnoredXid {
            gpu: position(rng.below(8)),
        },
    }
}
