//! Paraleon's search (ICNP 2024), as its authors' published code does it: simulated annealing over thirteen parameters at
//! once, each candidate live for one millisecond and judged by a utility of throughput, round trips and pauses.
//!
//! From that code: the ranges, steps, defaults and aggressive directions of [`PARAMS`], utility and weights, the schedule
//! (0.1 to 0.01 by 0.76, 8 tries each: 9 temperatures, 72 candidates), what stood before as the first to beat, the defaults as the
//! first candidate, the acceptance rule, mode and weights by the share of large flows when a search begins, the trigger,
//! how likely a step goes the mode's way (the share of its class of flows, at most 0.7, down to 0.5 with the moving share of bad
//! steps), and that its only guard is to swap inverted thresholds. A flow is a message, large from 1 MiB, as in the
//! variant of that code which counts at hosts. Ours: a flow's round trip is that of the empty path and what waits along
//! it, looked at ten times a millisecond; a first rate of the whole line stands for none.

use crate::port::EcnParams;
use crate::rng::Rng;
use crate::sim::{Sample, Sim};
use crate::time::{MS, Time, US};
use crate::tune::case::Knobs;

/// Time between looks.
pub const TICK: Time = 100 * US;
const WINDOW: Time = MS;
const TRIES: u32 = 8;
const HOT: f64 = 0.1;
const COLD: f64 = 0.01;
const COOLING: f64 = 0.76;
const BASE_GBPS: f64 = 100.0;
const BASE_RTT_US: f64 = 40.0;
const LARGE: u64 = 1 << 20;

/// Least, most, step, default, and +1 where more is more aggressive.
const PARAMS: [(f64, f64, f64, f64, f64); 13] = [
    (50.0, 600.0, 50.0, 300.0, -1.0),    // time_reset, us
    (5.0, 100.0, 5.0, 5.0, 1.0),         // ai_rate, Mb/s
    (30.0, 600.0, 50.0, 50.0, 1.0),      // hai_rate, Mb/s
    (0.3, 0.8, 0.1, 0.5, 1.0),           // rate_to_set_on_first_cnp, of the line
    (0.3, 0.8, 0.1, 0.5, -1.0),          // rpg_min_dec_fac
    (1.0, 5000.0, 300.0, 1.0, 1.0),      // rpg_min_rate, Mb/s
    (11.0, 13.0, 1.0, 11.0, 1.0),        // rpg_gd
    (4.0, 128.0, 8.0, 4.0, 1.0),         // min_time_between_cnps, us
    (960.0, 1020.0, 5.0, 1019.0, -1.0),  // dce_tcp_g
    (1.0, 1023.0, 16.0, 1023.0, -1.0),   // initial_alpha
    (40.0, 1600.0, 100.0, 400.0, 1.0),   // kmin, KB
    (480.0, 6400.0, 400.0, 1600.0, 1.0), // kmax, KB
    (0.1, 0.4, 0.01, 0.2, -1.0),         // pmax
];

type Vector = [f64; 13];

#[derive(Debug, Clone, Copy)]
struct Search {
    temperature: f64,
    /// Tries left at this temperature.
    left: u32,
    /// Most flows were large when it began.
    aggressive: bool,
}

/// A run of it.
#[derive(Debug, Clone)]
pub struct Paraleon {
    rng: Rng,
    base: Knobs,
    line_mbps: f64,
    search: Option<Search>,
    candidate: Vector,
    current: (Vector, f64),
    best: (Vector, f64),
    bad: f64,
    /// Share of large flows in the last window that had flows.
    large: Option<f64>,
    window: Option<(Time, Sample)>,
    rtt_us: (f64, u32),
    /// Large flows and all flows seen in this window.
    flows: (u32, u32),
    /// Candidates so far.
    pub tried: usize,
    /// Searches that came to their end.
    pub ended: usize,
}

impl Paraleon {
    /// Nothing is touched before the first look.
    #[must_use]
    pub fn new(sim: &Sim, seed: u64) -> Self {
        let port = sim.topology().nodes[0].ports[0];
        let base = Knobs::of(&sim.config);
        let line_mbps = sim.topology().ports[port as usize].bits_per_s / 1e6;
        let standing = vector(&base, line_mbps);
        Self {
            rng: Rng::new(seed ^ 0x5041_5241),
            base,
            line_mbps,
            search: None,
            candidate: standing,
            current: (standing, f64::NEG_INFINITY),
            best: (standing, f64::NEG_INFINITY),
            bad: 0.0,
            large: None,
            window: None,
            rtt_us: (0.0, 0),
            flows: (0, 0),
            tried: 0,
            ended: 0,
        }
    }

    /// A candidate stands.
    #[must_use]
    pub fn searching(&self) -> bool {
        self.search.is_some()
    }

    /// A look at the fabric; every tenth ends a window.
    pub fn step(&mut self, sim: &mut Sim) {
        self.look_at_rtt(sim);
        self.look_at_flows(sim);
        let due = match &self.window {
            Some((since, _)) => sim.now() >= since + WINDOW,
            None => true,
        };
        if !due {
            return;
        }
        let after = sim.sample();
        let before = self.window.replace((sim.now(), after.clone()));
        let (large, all) = std::mem::take(&mut self.flows);
        // Every search begins with a whole window.
        let Some((_, before)) = before else { return };
        let share = (all > 0).then(|| f64::from(large) / f64::from(all));
        let triggered = share.is_some_and(|s| self.large.is_none_or(|l| divergence(s, l) > 0.01));
        self.large = share.or(self.large);
        let aggressive = match &self.search {
            Some(search) => search.aggressive,
            None => self.large.is_some_and(|l| l >= 0.5),
        };
        let utility = self.utility(sim, &before, &after, aggressive);
        self.rtt_us = (0.0, 0);
        if self.search.is_some() {
            self.judge(sim, utility);
        } else if triggered {
            self.search = Some(Search {
                temperature: HOT,
                left: TRIES,
                aggressive,
            });
            // What stands is the first to beat.
            self.current = (self.candidate, utility);
            self.best = self.current;
            self.candidate = PARAMS.map(|p| p.3);
            self.tried += 1;
            self.knobs(&self.candidate).apply(sim);
        }
    }

    fn judge(&mut self, sim: &mut Sim, utility: f64) {
        let Some(mut search) = self.search else {
            return;
        };
        let delta = utility - self.current.1;
        self.bad = 0.85 * self.bad + if delta < -0.01 { 0.15 } else { 0.0 };
        if delta > 0.0 || (delta / search.temperature).exp() > self.rng.unit() {
            self.current = (self.candidate, utility);
        }
        if utility > self.best.1 {
            self.best = (self.candidate, utility);
        }
        search.left -= 1;
        if search.left == 0 {
            search.left = TRIES;
            search.temperature *= COOLING;
        }
        self.search = (search.temperature > COLD).then_some(search);
        if self.search.is_some() {
            self.candidate = self.mutate(search.aggressive);
            self.tried += 1;
        } else {
            self.candidate = self.best.0;
            self.ended += 1;
        }
        self.knobs(&self.candidate).apply(sim);
    }

    fn mutate(&mut self, aggressive: bool) -> Vector {
        let cap = 0.7 - 0.2 * self.bad;
        let large = self.large.unwrap_or(0.5);
        let (class, mode) = if aggressive {
            (large, 1.0)
        } else {
            (1.0 - large, -1.0)
        };
        let mut next = self.current.0;
        for (x, (low, high, step, _, sign)) in next.iter_mut().zip(PARAMS) {
            let by = step * (0.5 + 0.5 * self.rng.unit());
            let way = if self.rng.unit() <= class.min(cap) {
                sign * mode
            } else {
                -sign * mode
            };
            let moved = *x + way * by;
            let moved = if step < 1.0 { moved } else { moved.round() };
            *x = moved.clamp(low, high);
        }
        if next[10] > next[11] {
            next.swap(10, 11);
        }
        next
    }

    fn knobs(&self, v: &Vector) -> Knobs {
        let mut rp = self.base.rp;
        rp.rpg_time_reset = v[0];
        rp.rpg_ai_rate = v[1];
        rp.rpg_hai_rate = v[2];
        rp.rate_to_set_on_first_cnp = v[3] * self.line_mbps;
        rp.min_dec_fac = v[4] * 100.0;
        rp.min_rate = v[5];
        rp.rpg_gd = crate::num::low32(crate::num::whole(v[6]));
        rp.dce_tcp_g = v[8];
        rp.initial_alpha = v[9];
        Knobs {
            ecn: EcnParams {
                enabled: true,
                kmin_kb: v[10],
                kmax_kb: v[11],
                pmax: v[12],
            },
            rp,
            cnp_gap_us: v[7],
        }
    }

    /// Messages that are under way, the first of each queue pair.
    fn look_at_flows(&mut self, sim: &Sim) {
        let first = sim.qps.iter().filter_map(|q| q.sending.front());
        for (_, job, op) in first {
            let message = sim.jobs()[*job as usize].spec.plan.ops[*op as usize];
            self.flows.1 += 1;
            self.flows.0 += u32::from(message.bytes >= LARGE);
        }
    }

    fn look_at_rtt(&mut self, sim: &Sim) {
        for qp in sim
            .qps
            .iter()
            .filter(|q| q.next < q.posted || q.acked < q.next)
        {
            let mut us = 2.0 * sim.topology.delay as f64 / 1e6;
            for path in [&qp.there, &qp.back] {
                for port in &path.ports[..usize::from(path.len)] {
                    let p = &sim.ports[*port as usize];
                    let waiting = (p.high.bytes + p.low.bytes) as f64;
                    us += p.delay as f64 / 1e6 + waiting * 8e6 / p.bits_per_s;
                }
            }
            self.rtt_us.0 += us;
            self.rtt_us.1 += 1;
        }
    }

    fn utility(&self, sim: &Sim, before: &Sample, after: &Sample, aggressive: bool) -> f64 {
        let span = (after.at - before.at).max(1) as f64;
        let ports = before.ports.iter().zip(&after.ports);
        let gbps = ports
            .clone()
            .map(|(b, a)| (a.tx_bytes - b.tx_bytes) as f64 * 8e3 / span);
        let busy: Vec<f64> = gbps.filter(|g| *g > 5.0).collect();
        let tp = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        let paused = ports.filter(|(b, a)| a.pause_rx > b.pause_rx).count() as f64;
        let pfc = paused / sim.topology().ports.len().max(1) as f64;
        let rtt = self.rtt_us.0 / f64::from(self.rtt_us.1.max(1));
        let (w_tp, w_rtt, w_pfc) = if aggressive {
            (0.6, 0.2, 0.2)
        } else {
            (0.3, 0.5, 0.2)
        };
        // A window in which nothing was sent has no round trips, and counts for nothing there.
        let quick = if self.rtt_us.1 > 0 {
            BASE_RTT_US / rtt
        } else {
            0.0
        };
        w_tp * tp / BASE_GBPS + w_rtt * quick + w_pfc * (1.0 - pfc).max(0.0)
    }
}

/// A setting as its search sees it.
fn vector(knobs: &Knobs, line_mbps: f64) -> Vector {
    let rp = &knobs.rp;
    let first = match rp.rate_to_set_on_first_cnp {
        0.0 => 1.0,
        mbps => mbps / line_mbps,
    };
    [
        rp.rpg_time_reset,
        rp.rpg_ai_rate,
        rp.rpg_hai_rate,
        first,
        rp.min_dec_fac / 100.0,
        rp.min_rate,
        f64::from(rp.rpg_gd),
        knobs.cnp_gap_us,
        rp.dce_tcp_g,
        rp.initial_alpha,
        knobs.ecn.kmin_kb,
        knobs.ecn.kmax_kb,
        knobs.ecn.pmax,
    ]
}

/// Kullback-Leibler divergence of two shares, nats.
fn divergence(p: f64, q: f64) -> f64 {
    let clip = |x: f64| x.clamp(1e-6, 1.0 - 1e-6);
    let (p, q) = (clip(p), clip(q));
    p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::case::{CASES, run};

    #[test]
    fn a_search_takes_72_candidates_inside_the_ranges() {
        let incast = CASES.iter().find(|c| c.name == "incast").unwrap();
        let (mut p, mut seen) = (None, Vec::new());
        run(incast, 1, 5, TICK, &mut |sim| {
            let p = p.get_or_insert_with(|| Paraleon::new(sim, 1));
            p.step(sim);
            if seen.last() != Some(&p.candidate) && p.searching() {
                seen.push(p.candidate);
            }
        })
        .unwrap();
        assert_eq!(seen.len(), 72);
        assert_eq!(seen[0], PARAMS.map(|p| p.3));
        for v in &seen {
            for (x, (low, high, ..)) in v.iter().zip(PARAMS) {
                assert!((low..=high).contains(x), "{v:?}");
            }
            assert!(v[10] <= v[11]);
        }
    }
}
