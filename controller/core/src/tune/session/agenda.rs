//! What a session tries next, and how long a change takes to show.

use super::{Phase, Scope, Trial, Tuner, Verdict, What};
use crate::tune::block::{Block, Look, Measured};
use crate::tune::sequential::Pairs;
use crate::tune::setting::{Move, Setting};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many periods of the increase timer after a change, rates that climb faster meanwhile are where it leads them.
const SETTLE_TIMERS: f64 = 6.0;
/// Below this share of marked packets thresholds decide nothing.
const MARKED_MIN: f64 = 1e-4;

impl Tuner {
    /// The next candidate that may be tried.
    pub(super) fn next(&mut self, look: &Look, now: Duration) {
        if let Some(trial) = &self.trial {
            // Its block was lost to a reset of counters.
            let setting = trial.setting.clone();
            self.apply(setting, Scope::All, Phase::Candidate, look, now);
            return;
        }
        while let Some(what) = self.agenda.pop() {
            let limits = &self.session.limits;
            if self.steps.len() >= limits.candidates_max || self.misses() >= limits.misses_max {
                break;
            }
            let setting = match what {
                What::Routes => Setting {
                    pins: self.session.pins.clone(),
                    ..self.incumbent.clone()
                },
                _ if self.quiet() => continue,
                What::Remembered => match &self.goal {
                    Some(goal) => self.incumbent.towards(goal),
                    None => continue,
                },
                What::Move(Move::Off) if !self.may_turn_off() => continue,
                What::Move(m) => m.from(&self.incumbent, &self.session.bounds),
            };
            if setting
                .check(&self.incumbent, &self.session.bounds)
                .is_err()
            {
                if what == What::Remembered {
                    self.agenda = moves(&self.order);
                }
                continue;
            }
            // Half of a set of pins means nothing, so routes have no canary.
            let group = match what {
                What::Routes => None,
                What::Remembered | What::Move(_) if self.session.groups.len() < 2 => None,
                What::Remembered | What::Move(_) => {
                    let groups = &self.session.groups;
                    Some(groups[self.steps.len() % groups.len()].clone())
                }
            };
            self.trial = Some(Trial {
                what,
                setting: setting.clone(),
                all: Pairs::default(),
                jobs: BTreeMap::new(),
                paused: Pairs::default(),
                measured: None,
            });
            let (scope, phase) = match group {
                Some(group) => (Scope::Group(group), Phase::Canary),
                None => (Scope::All, Phase::Candidate),
            };
            self.apply(setting, scope, phase, look, now);
            return;
        }
        self.phase = Phase::Watching;
        self.slow.clear();
        self.block = Some(Block::new(
            now,
            Duration::ZERO,
            Duration::ZERO,
            look.counters.clone(),
        ));
    }

    /// Candidates since the last one that was kept, those of routes not counted.
    fn misses(&self) -> usize {
        let steps = self.steps.iter().rev().filter(|s| s.what != What::Routes);
        steps.take_while(|s| s.verdict != Verdict::Kept).count()
    }

    /// The level at which the candidate that is on trial must be sure: the false discovery rate of the session holds
    /// when the one tried as number j, after k were kept, is tested at `alpha (k + 1) / (j (j + 1))` (e-LOND: Xu and Ramdas,
    /// "Online multiple testing with e-values", 2024), whatever depends on what.
    pub(super) fn level(&self) -> f64 {
        let number = |n: usize| u32::try_from(n).map_or(f64::INFINITY, f64::from);
        let (j, kept) = (number(self.steps.len() + 1), number(self.kept.len()));
        self.session.limits.alpha * (kept + 1.0) / (j * (j + 1.0))
    }

    /// Nothing is marked and nobody pauses: no threshold decides anything.
    pub(super) fn quiet(&self) -> bool {
        let quiet = |m: &Measured| m.marked < MARKED_MIN && m.paused == 0.0;
        self.before.as_ref().is_some_and(quiet)
    }

    /// No marking is where marking later and less leads to; it is tried only where that helped and cost no pauses.
    pub(super) fn may_turn_off(&self) -> bool {
        let kept = |m: Move| self.tallies.get(&m).is_some_and(|t| t.kept > 0);
        [Move::Loosen, Move::MarkLater, Move::MarkLess]
            .into_iter()
            .any(kept)
            && self.kept.iter().map(|k| k.paused).sum::<f64>()
                <= self.session.limits.pause_max / 2.0
    }

    /// Iterations of each job in a block: twice as many after each third pair that left the trial undecided, up to four
    /// times, because what works slowly shows in long blocks only. Fewer than three pairs never decide for a candidate.
    pub(super) fn block_iterations(&self) -> u32 {
        let pairs = self.trial.as_ref().map_or(0, |t| t.all.n);
        self.session.limits.iterations << (pairs / 3).min(2)
    }

    /// How long a change still shows in iterations that begin after it: until rates have climbed to where it leads.
    pub(super) fn settle(&self) -> Duration {
        let trial = self.trial.as_ref();
        let settings = trial.map(|t| &t.setting).into_iter();
        let rates = settings
            .chain([&self.incumbent])
            .flat_map(|s| s.nic.values());
        let timer_us = rates.map(|r| r.timer_us).fold(0.0, f64::max);
        Duration::from_secs_f64(SETTLE_TIMERS * timer_us / 1e6)
    }

    pub(super) fn longest_of_all(&self) -> Duration {
        let all = self.history.values().flatten().copied();
        Duration::from_secs_f64(all.fold(0.0, f64::max))
    }
}

/// An agenda of moves; the next one is last.
pub(super) fn moves(order: &[Move]) -> Vec<What> {
    order.iter().rev().map(|m| What::Move(*m)).collect()
}
