//! What nobody can know: the best setting of a grid, found by running all of it.

use crate::port::EcnParams;
use crate::tune::case::{Knobs, Outcome, Start};
use crate::tune::compare::fixed;
use crate::tune::figures::{mean, over_all};
use weir_controller_core::tune::Limits;

/// Kmin and Kmax in KB, Pmax: the thresholds of the reference's settings, and two below where a port pauses.
const MARKING: [(f64, f64, f64); 6] = [
    (150.0, 1500.0, 1.0),
    (50.0, 400.0, 0.2),
    (400.0, 1600.0, 0.2),
    (800.0, 3200.0, 0.1),
    (300.0, 900.0, 0.3),
    (600.0, 900.0, 0.1),
];
const TIMER_US: [f64; 3] = [55.0, 150.0, 300.0];
/// AI and HAI, Mb/s.
const CLIMB: [(f64, f64); 2] = [(5.0, 50.0), (100.0, 1000.0)];
/// Least time between cuts and between notifications, us.
const GAP_US: [f64; 2] = [4.0, 50.0];
/// The whole grid runs for this part of the time, its best harmless settings for all of it.
const PART: u64 = 8;
const FINALISTS: usize = 4;

/// Every point of the grid around a setting; the last is marking off.
#[must_use]
pub fn grid(base: &Knobs) -> Vec<Knobs> {
    let mut all = Vec::new();
    for (kmin_kb, kmax_kb, pmax) in MARKING {
        for timer in TIMER_US {
            for (ai, hai) in CLIMB {
                for gap in GAP_US {
                    let mut knobs = *base;
                    knobs.ecn = EcnParams {
                        enabled: true,
                        kmin_kb,
                        kmax_kb,
                        pmax,
                    };
                    knobs.rp.rpg_time_reset = timer;
                    (knobs.rp.rpg_ai_rate, knobs.rp.rpg_hai_rate) = (ai, hai);
                    knobs.rp.rate_reduce_monitor_period = gap;
                    knobs.cnp_gap_us = gap;
                    all.push(knobs);
                }
            }
        }
    }
    // Without marks nothing is cut, and no other knob matters.
    let mut off = *base;
    off.ecn.enabled = false;
    all.push(off);
    all
}

/// Log ratio of the collective time to that of `nv`. `None`: it breaks a limit.
fn harmless(outcome: &Outcome, nv: &Outcome, limits: &Limits) -> Option<f64> {
    let ratios = over_all(outcome, nv);
    let kept = ratios.iter().all(|r| *r <= limits.slowdown_max.ln_1p())
        && outcome.paused_worst <= nv.paused_worst + limits.pause_max
        && outcome.lost <= nv.lost;
    kept.then(|| mean(&ratios))
}

/// The run of the best setting, with the planner's pins, that breaks no limit; `nv` itself where there is none.
#[must_use]
pub fn best(start: &Start, nv: &Outcome) -> Outcome {
    let limits = Limits::default();
    let part = start.time / PART;
    let nv_part = fixed(start, part, None, false);
    let mut tried: Vec<(f64, Knobs)> = grid(&start.knobs())
        .into_iter()
        .filter_map(|knobs| {
            let outcome = fixed(start, part, Some(&knobs), true);
            Some((harmless(&outcome, &nv_part, &limits)?, knobs))
        })
        .collect();
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    let finalists = tried.into_iter().take(FINALISTS).filter_map(|(_, knobs)| {
        let outcome = fixed(start, start.time, Some(&knobs), true);
        Some((harmless(&outcome, nv, &limits)?, outcome))
    });
    let best = finalists.min_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(time, _)| *time < 0.0)
        .map_or_else(|| nv.clone(), |(_, outcome)| outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SimConfig;

    #[test]
    fn the_grid_holds_every_setting_once() {
        let base = Knobs::of(&SimConfig::default());
        let all = grid(&base);
        assert_eq!(all.len(), 6 * 3 * 2 * 2 + 1);
        for (at, knobs) in all.iter().enumerate() {
            assert!(!all[..at].contains(knobs), "{knobs:?}");
        }
        assert!(all.contains(&base));
        assert_eq!(all.iter().filter(|k| !k.ecn.enabled).count(), 1);
    }
}
