//! What a session tries next, and how long a change takes to show.

use super::{Phase, Scope, Trial, Tuner, Verdict, What};
use crate::tune::block::{Block, Look, Measured};
use crate::tune::sequential::Pairs;
use crate::tune::session::Step;
use crate::tune::setting::{Move, Setting};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many periods of the increase timer after a change of knobs the rates have climbed to where it leads.
const SETTLE_TIMERS: f64 = 12.0;
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
            if self.steps.len() >= limits.candidates_max {
                break;
            }
            let setting = match &what {
                What::Routes => Setting {
                    pins: self.session.pins.clone(),
                    ..self.incumbent.clone()
                },
                _ if self.quiet() && !self.recovering(&what) => continue,
                What::Remembered => match &self.goal {
                    Some(goal) => self.incumbent.towards(goal),
                    None => continue,
                },
                What::Move(Move::Off) if !self.may_turn_off() => continue,
                What::Move(m) => m.from(&self.incumbent, &self.session.bounds),
                What::Part(m, class) => m
                    .from(&self.incumbent, &self.session.bounds)
                    .only(class, &self.incumbent),
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
            let failed = |s: &Step| s.setting == setting && s.verdict != Verdict::Kept;
            if self.steps.iter().any(failed) {
                continue;
            }
            // Half of a set of pins means nothing, so routes have no canary.
            let group = match &what {
                What::Routes => None,
                _ if self.session.groups.len() < 2 => None,
                What::Remembered | What::Move(_) | What::Part(..) => {
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

    /// What the end of a trial means for what is tried next.
    pub(super) fn reconsider(&mut self, what: &What, verdict: &Verdict) {
        match (what, verdict) {
            // What the collisions cut climbs back slowly: that comes second.
            (What::Routes, Verdict::Kept) => {
                let climb = What::Move(Move::ClimbFaster);
                if let Some(at) = self.agenda.iter().position(|w| *w == climb) {
                    self.agenda.remove(at);
                    self.agenda
                        .insert(self.agenda.len().saturating_sub(1), climb);
                }
            }
            // Once more in the same direction, and not back.
            (What::Move(m) | What::Part(m, _), Verdict::Kept) => {
                if let Some(back) = m.opposite() {
                    self.agenda.retain(|w| *w != What::Move(back));
                }
                self.agenda.push(what.clone());
            }
            (What::Remembered, Verdict::Kept) => {
                if Some(&self.incumbent) != self.goal.as_ref() {
                    self.agenda.push(What::Remembered);
                }
            }
            // What was learned does not hold here: search.
            (What::Remembered, _) => self.agenda = moves(&self.order),
            // What is too much for all may do for one class; that comes last.
            (What::Move(m), Verdict::Slower(_) | Verdict::Paused | Verdict::Lost) => {
                let classes = m.classes(&self.incumbent);
                if classes.len() > 1 {
                    let parts = classes.into_iter().map(|c| What::Part(*m, c));
                    self.agenda.splice(0..0, parts);
                }
            }
            (What::Routes | What::Move(_) | What::Part(..), _) => {}
        }
    }

    /// What was kept is given back: not once more in that direction, and the way back is open again, last of all.
    pub(super) fn unmade(&mut self, what: &What) {
        self.agenda.retain(|w| w != what);
        if let What::Move(m) | What::Part(m, _) = what
            && let Some(back) = m.opposite().map(What::Move)
            && !self.agenda.contains(&back)
        {
            self.agenda.insert(0, back);
        }
    }

    /// Nothing is marked and nobody pauses: no threshold decides anything.
    pub(super) fn quiet(&self) -> bool {
        let quiet = |m: &Measured| m.marked < MARKED_MIN && m.paused == 0.0;
        self.before.as_ref().is_some_and(quiet)
    }

    /// Rates that were cut while flows collided climb back by themselves, but slowly.
    pub(super) fn recovering(&self, what: &What) -> bool {
        let routed = |s: &Step| s.what == What::Routes && s.verdict == Verdict::Kept;
        *what == What::Move(Move::ClimbFaster) && self.steps.iter().any(routed)
    }

    /// No marking is where marking later and less leads to; it is tried only where that helped and cost no pauses.
    pub(super) fn may_turn_off(&self) -> bool {
        let kept = |m: Move| self.tallies.get(&m).is_some_and(|t| t.kept > 0);
        (kept(Move::MarkLater) || kept(Move::MarkLess))
            && self.kept.iter().map(|k| k.paused).sum::<f64>()
                <= self.session.limits.pause_max / 2.0
    }

    /// Iterations of each job in a block: twice as many after each pair that left the trial undecided, up to four times,
    /// because what works slowly shows in long blocks only.
    pub(super) fn block_iterations(&self) -> u32 {
        let pairs = self.trial.as_ref().map_or(0, |t| t.all.n);
        self.session.limits.iterations << pairs.min(2)
    }

    /// How long a change still shows in iterations that begin after it: not at all in that of routes; in that of knobs,
    /// until rates have climbed to where they lead.
    pub(super) fn settle(&self) -> Duration {
        let trial = self.trial.as_ref();
        if trial.is_some_and(|t| t.what == What::Routes) {
            return Duration::ZERO;
        }
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
