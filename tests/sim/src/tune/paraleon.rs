//! Paraleon's search (ICNP 2024), as its authors' published code does it: simulated annealing over thirteen parameters at
//! once, each candidate live for one millisecond and judged by a utility of throughput, round trips and pauses.
//!
//! From that code: the ranges, steps and defaults of [`PARAMS`], utility and weights, the schedule (0.1 to 0.01 by 0.76, 8
//! tries each: 9 temperatures, 72 candidates), the first candidate, the acceptance rule, the trigger, and that its only
//! guard is to swap inverted thresholds. Ours, where it does not say: which way "aggressive" is for the gain and the first
//! alpha, and how the share of tries in that direction shrinks (from 0.7 to 0.5 with the moving share of bad steps). A
//! flow is a queue pair here, and large once it has delivered 1 MiB; its round trip is that of the empty path and what
//! waits along it, looked at ten times a millisecond.

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
    (0.3, 0.8, 0.1, 0.5, 1.0),           // rpg_min_dec_fac
    (1.0, 5000.0, 300.0, 1.0, 1.0),      // rpg_min_rate, Mb/s
    (11.0, 13.0, 1.0, 11.0, 1.0),        // rpg_gd
    (4.0, 128.0, 8.0, 4.0, 1.0),         // min_time_between_cnps, us
    (960.0, 1020.0, 5.0, 1019.0, 1.0),   // dce_tcp_g
    (1.0, 1023.0, 16.0, 1023.0, -1.0),   // initial_alpha
    (40.0, 1600.0, 100.0, 400.0, 1.0),   // kmin, KB
    (480.0, 6400.0, 400.0, 1600.0, 1.0), // kmax, KB
    (0.1, 0.4, 0.01, 0.2, -1.0),         // pmax
];

type Vector = [f64; 13];

/// A run of it.
#[derive(Debug, Clone)]
pub struct Paraleon {
    rng: Rng,
    base: Knobs,
    line_mbps: f64,
    /// Temperature and tries left at it; `None` while it does not search.
    search: Option<(f64, u32)>,
    candidate: Vector,
    current: (Vector, f64),
    best: (Vector, f64),
    bad: f64,
    large: Option<f64>,
    window: Option<(Time, Sample)>,
    rtt_us: (f64, u32),
    delivered: Vec<u64>,
    /// When it first stopped searching.
    pub settled: Option<Time>,
}

impl Paraleon {
    /// Nothing is touched before the first look.
    #[must_use]
    pub fn new(sim: &Sim, seed: u64) -> Self {
        let defaults = PARAMS.map(|p| p.3);
        let port = sim.topology().nodes[0].ports[0];
        Self {
            rng: Rng::new(seed ^ 0x5041_5241),
            base: Knobs::of(&sim.config),
            line_mbps: sim.topology().ports[port as usize].bits_per_s / 1e6,
            search: None,
            candidate: defaults,
            current: (defaults, f64::NEG_INFINITY),
            best: (defaults, f64::NEG_INFINITY),
            bad: 0.0,
            large: None,
            window: None,
            rtt_us: (0.0, 0),
            delivered: Vec::new(),
            settled: None,
        }
    }

    /// A look at the fabric; every tenth ends a window.
    pub fn step(&mut self, sim: &mut Sim) {
        self.look_at_rtt(sim);
        let due = match &self.window {
            Some((since, _)) => sim.now() >= since + WINDOW,
            None => true,
        };
        if !due {
            return;
        }
        let after = sim.sample();
        let before = self.window.replace((sim.now(), after.clone()));
        let share = self.large_share(sim);
        let triggered = share.is_some_and(|s| self.large.is_none_or(|l| divergence(s, l) > 0.01));
        self.large = share.or(self.large);
        let utility = before.map(|(_, b)| self.utility(sim, &b, &after));
        self.rtt_us = (0.0, 0);
        match (self.search, utility) {
            (Some(_), Some(utility)) => self.judge(sim, utility),
            (None, _) if triggered => {
                self.search = Some((HOT, TRIES));
                self.candidate = PARAMS.map(|p| p.3);
                self.current = (self.candidate, f64::NEG_INFINITY);
                self.best = self.current;
                self.knobs(&self.candidate).apply(sim);
            }
            (Some(_) | None, _) => {}
        }
    }

    fn judge(&mut self, sim: &mut Sim, utility: f64) {
        let Some((temperature, left)) = self.search else {
            return;
        };
        let delta = if self.current.1.is_finite() {
            utility - self.current.1
        } else {
            1.0
        };
        self.bad = 0.85 * self.bad + if delta < -0.01 { 0.15 } else { 0.0 };
        if delta > 0.0 || (delta / temperature).exp() > self.rng.unit() {
            self.current = (self.candidate, utility);
        }
        if utility > self.best.1 {
            self.best = (self.candidate, utility);
        }
        self.search = match left {
            2.. => Some((temperature, left - 1)),
            _ if temperature * COOLING > COLD => Some((temperature * COOLING, TRIES)),
            _ => None,
        };
        if self.search.is_none() {
            self.candidate = self.best.0;
            self.settled.get_or_insert(sim.now());
        } else {
            self.candidate = self.mutate();
        }
        self.knobs(&self.candidate).apply(sim);
    }

    fn mutate(&mut self) -> Vector {
        let cap = 0.7 - 0.2 * self.bad;
        let aggressive = self.large.unwrap_or(0.5).min(cap);
        let mut next = self.current.0;
        for (x, (low, high, step, _, sign)) in next.iter_mut().zip(PARAMS) {
            let by = step * (0.5 + 0.5 * self.rng.unit());
            let way = if self.rng.unit() < aggressive {
                sign
            } else {
                -sign
            };
            *x = (*x + way * by).clamp(low, high);
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
        rp.rpg_gd = crate::num::low32(crate::num::whole(v[6].round()));
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

    /// Share of the flows of the last window that are large. `None`: there were none.
    fn large_share(&mut self, sim: &Sim) -> Option<f64> {
        let now: Vec<u64> = (0..sim.qp_count()).map(|q| sim.qp_delivered(q)).collect();
        let (mut large, mut all) = (0.0, 0.0);
        for (at, bytes) in now.iter().enumerate() {
            if *bytes > self.delivered.get(at).copied().unwrap_or(0) {
                all += 1.0;
                large += if *bytes >= LARGE { 1.0 } else { 0.0 };
            }
        }
        self.delivered = now;
        (all > 0.0).then(|| large / all)
    }

    fn utility(&self, sim: &Sim, before: &Sample, after: &Sample) -> f64 {
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
        let (w_tp, w_rtt, w_pfc) = if self.large.is_some_and(|l| l >= 0.5) {
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
        run(incast, 1, 4, TICK, &mut |sim| {
            let p = p.get_or_insert_with(|| Paraleon::new(sim, 1));
            p.step(sim);
            if seen.last() != Some(&p.candidate) && p.search.is_some() {
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
