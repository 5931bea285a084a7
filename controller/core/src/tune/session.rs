//! One session of the tuner: from what stands to what is kept.

mod agenda;
mod guard;
mod stand;
mod terms;
#[cfg(test)]
mod tests;

pub use terms::{Command, Limits, Phase, Scope, Session, Step, Verdict, What};

use crate::ids::JobId;
use crate::tune::block::{Block, JOBS_MAX, Look, Measured};
use crate::tune::memory::{Memory, Tally};
use crate::tune::sequential::Pairs;
use crate::tune::setting::{Move, Setting};
use agenda::moves;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Iterations of each job under the incumbent that are remembered, to know how slow is normal.
const HISTORY: usize = 64;

#[derive(Debug, Clone, PartialEq)]
struct Trial {
    what: What,
    setting: Setting,
    all: Pairs,
    jobs: BTreeMap<JobId, Pairs>,
    paused: Pairs,
    /// The candidate's last block, while the incumbent's after it is measured.
    measured: Option<Measured>,
}

/// A candidate that was kept: what stood before it and what it cost.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    step: usize,
    what: What,
    before: Setting,
    /// Mean log ratio over the jobs, and by job.
    gain: f64,
    jobs: BTreeMap<JobId, f64>,
    /// Rise of the paused share.
    paused: f64,
}

/// A session.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuner {
    session: Session,
    incumbent: Setting,
    phase: Phase,
    /// What is left to try, the next one last.
    agenda: Vec<What>,
    /// Where the last session of this pattern ended.
    goal: Option<Setting>,
    /// Moves in the order in which to try them, should the remembered setting not hold.
    order: Vec<Move>,
    trial: Option<Trial>,
    block: Option<Block>,
    /// When what stands was applied.
    applied: Duration,
    first_block: Option<f64>,
    before: Option<Measured>,
    /// Worst of the incumbents' blocks: paused, lost and out of sequence.
    normal: Measured,
    /// Largest paused share of a block before anything was kept.
    paused_first: f64,
    history: BTreeMap<JobId, VecDeque<f64>>,
    /// By job: logarithms of the seconds of its iterations before anything was tried.
    first: BTreeMap<JobId, Pairs>,
    /// By job: the same of its latest ones under what stands, since something was tried.
    recent: BTreeMap<JobId, stand::Recent>,
    /// Iterations in a row that were too slow.
    slow: BTreeMap<JobId, u32>,
    /// What was kept, the latest last: it goes first when a limit breaks later.
    kept: Vec<Kept>,
    tallies: BTreeMap<Move, Tally>,
    steps: Vec<Step>,
    /// What the shell has to do; a later command takes the place of one that was not fetched.
    command: Option<Command>,
}

impl Tuner {
    /// Starts a session. What `memory` knows of the pattern decides what is tried, and in which order.
    #[must_use]
    pub fn new(session: Session, memory: &Memory) -> Tuner {
        let order = memory.order(&session.signature);
        let known = memory.of(&session.signature);
        let goal = known.filter(|k| k.gain < 0.0).map(|k| k.setting.clone());
        let mut agenda = match goal {
            Some(_) => vec![What::Remembered],
            None => moves(&order),
        };
        if !session.pins.is_empty() {
            agenda.push(What::Routes);
        }
        Tuner {
            incumbent: session.baseline.clone(),
            session,
            phase: Phase::Incumbent,
            agenda,
            goal,
            order,
            trial: None,
            block: None,
            applied: Duration::ZERO,
            first_block: None,
            before: None,
            normal: Measured::default(),
            paused_first: 0.0,
            history: BTreeMap::new(),
            first: BTreeMap::new(),
            recent: BTreeMap::new(),
            slow: BTreeMap::new(),
            kept: Vec::new(),
            tallies: BTreeMap::new(),
            steps: Vec::new(),
            command: None,
        }
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What stands when no candidate does.
    #[must_use]
    pub fn incumbent(&self) -> &Setting {
        &self.incumbent
    }

    /// What was tried so far.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Puts what was found into the memory. Call it once, at the end.
    pub fn learn(&self, memory: &mut Memory) {
        let knobs = self.kept.iter().filter(|k| k.what != What::Routes);
        let gain = knobs.map(|k| k.gain).sum();
        memory.learn(self.session.signature, &self.incumbent, gain, &self.tallies);
    }

    /// What the shell has to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.command.take()
    }

    /// Takes what was seen since the last look.
    pub fn handle_look(&mut self, look: &Look, now: Duration) {
        let Some(block) = &mut self.block else {
            self.block = Some(Block::new(
                now,
                Duration::ZERO,
                Duration::ZERO,
                look.counters.clone(),
            ));
            return;
        };
        if block.since_change(&look.counters, now).is_none() {
            // A counter fell, or a port came or went: what was counted is unknown, so this block begins again.
            *block = Block::new(now, Duration::ZERO, Duration::ZERO, look.counters.clone());
        }
        block.add(look, now);
        match self.phase {
            Phase::Incumbent => self.incumbent_seen(look, now),
            Phase::Canary | Phase::Candidate => self.candidate_seen(look, now),
            Phase::Watching => self.watched(look, now),
        }
    }

    fn incumbent_seen(&mut self, look: &Look, now: Duration) {
        if self.gave_back(look, now) {
            return;
        }
        let Some(block) = &self.block else { return };
        for seen in look.jobs.iter().take(JOBS_MAX) {
            let history = self.history.entry(seen.job.clone()).or_default();
            for (start, end) in seen.ended.iter().filter(|(s, _)| *s >= block.since) {
                history.push_back(end.saturating_sub(*start).as_secs_f64());
                if history.len() > HISTORY {
                    history.pop_front();
                }
            }
        }
        self.history
            .retain(|job, _| look.jobs.iter().any(|j| j.job == *job));
        let limits = &self.session.limits;
        let iterations = match self.first_block {
            None => limits.iterations_first,
            Some(_) => self.block_iterations(),
        };
        if !block.complete(look, iterations) {
            if self.trial.is_some() && self.late(now) {
                self.end_trial(Verdict::Silent, look, now);
            }
            return;
        }
        let Some(after) = block.measured(&look.counters, now) else {
            // A counter was reset: this block again.
            self.block = Some(Block::new(
                now,
                Duration::ZERO,
                Duration::ZERO,
                look.counters.clone(),
            ));
            return;
        };
        self.first_block.get_or_insert(after.seconds);
        if self.over_pause_limit(&after) {
            self.undo(Verdict::Paused, look, now);
            return;
        }
        self.normal.paused = self.normal.paused.max(after.paused);
        self.normal.lost_per_s = self.normal.lost_per_s.max(after.lost_per_s);
        let disorder = &mut self.normal.out_of_sequence_per_s;
        *disorder = disorder.max(after.out_of_sequence_per_s);
        let before = self.before.replace(after.clone());
        let pending = self.trial.as_mut().and_then(|t| t.measured.take());
        match (before, pending) {
            (Some(before), Some(middle)) => self.pair(&before, &middle, &after, look, now),
            _ => self.next(look, now),
        }
    }

    /// One A/B/A: what the candidate was worth, and what to do about it.
    fn pair(&mut self, a: &Measured, b: &Measured, c: &Measured, look: &Look, now: Duration) {
        let limits = self.session.limits.clone();
        let Some(trial) = &mut self.trial else { return };
        let ratio = |job: &JobId| {
            let (a, c) = (a.log_s.get(job)?, c.log_s.get(job)?);
            Some(b.log_s.get(job)? - (a + c) / 2.0)
        };
        let mut all = Pairs::default();
        for seen in &look.jobs {
            if let Some(x) = ratio(&seen.job) {
                all.add(x);
                trial.jobs.entry(seen.job.clone()).or_default().add(x);
            }
        }
        if let Some(mean) = all.mean() {
            trial.all.add(mean);
        }
        trial.paused.add(b.paused - (a.paused + c.paused) / 2.0);
        let (n, mean) = (trial.all.n, trial.all.mean().unwrap_or(0.0));
        if mean > limits.worth {
            // What it leaves behind is in the incumbent's block after it.
            self.begin_anew(true);
        }
        let Some(trial) = &self.trial else { return };
        let room = |job: &JobId| {
            let spent = self.kept.iter().filter_map(|k| k.jobs.get(job));
            limits.slowdown_max.ln_1p() - spent.sum::<f64>().max(0.0)
        };
        // A single pair has no error of its own: twice the limit stands for it.
        let error = |p: &Pairs| p.error().unwrap_or(2.0 * limits.slowdown_max);
        let costs = |p: &Pairs| p.mean().unwrap_or(0.0);
        let slower = trial
            .jobs
            .iter()
            .find(|(job, p)| costs(p) - error(p) > room(job))
            .map(|(job, _)| job.clone());
        let harmless = trial
            .jobs
            .iter()
            .all(|(job, p)| costs(p) + error(p) <= room(job));
        let spent_pause: f64 = self.kept.iter().map(|k| k.paused).sum();
        let pause = spent_pause + costs(&trial.paused);
        let verdict = if let Some(job) = slower {
            Some(Verdict::Slower(job))
        } else if pause > limits.pause_max {
            Some(Verdict::Paused)
        } else if trial.all.surely_below(0.0, limits.alpha) && mean <= -limits.worth && harmless {
            Some(Verdict::Kept)
        } else if (n >= 2 && mean > error(&trial.all))
            || (n >= 4 && mean > -limits.worth)
            || n >= limits.pairs_max
        {
            Some(Verdict::NoBetter)
        } else {
            None
        };
        match verdict {
            Some(verdict) => self.end_trial(verdict, look, now),
            None => {
                let setting = trial.setting.clone();
                self.apply(setting, Scope::All, Phase::Candidate, look, now);
            }
        }
    }

    fn candidate_seen(&mut self, look: &Look, now: Duration) {
        if let Some(verdict) = self.broken(look, now) {
            self.end_trial(verdict, look, now);
            return;
        }
        if self.trial.as_ref().is_some_and(|t| t.what == What::Routes) {
            self.routes_seen(look, now);
            return;
        }
        let Some(block) = &self.block else { return };
        let canary = self.phase == Phase::Canary;
        let iterations = if canary { 1 } else { self.block_iterations() };
        if !block.complete(look, iterations) {
            if self.late(now) {
                self.end_trial(Verdict::Silent, look, now);
            }
            return;
        }
        let Some(trial) = &mut self.trial else { return };
        if canary {
            let setting = trial.setting.clone();
            self.apply(setting, Scope::All, Phase::Candidate, look, now);
            return;
        }
        // Counters that were reset: the pair is formed without this block, that is not at all, and B comes again.
        trial.measured = block.measured(&look.counters, now);
        let incumbent = self.incumbent.clone();
        self.apply(incumbent, Scope::All, Phase::Incumbent, look, now);
    }

    fn end_trial(&mut self, verdict: Verdict, look: &Look, now: Duration) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        let kept = verdict == Verdict::Kept;
        if let What::Move(m) = trial.what {
            let tally = self.tallies.entry(m).or_default();
            tally.tried += 1;
            tally.kept += u32::from(kept);
            tally.broke += u32::from(!matches!(verdict, Verdict::Kept | Verdict::NoBetter));
        }
        if kept {
            let mean = |p: &Pairs| p.mean().unwrap_or(0.0);
            let jobs = trial.jobs.iter();
            self.kept.push(Kept {
                step: self.steps.len(),
                what: trial.what.clone(),
                before: std::mem::replace(&mut self.incumbent, trial.setting.clone()),
                gain: mean(&trial.all),
                jobs: jobs.map(|(job, p)| (job.clone(), mean(p))).collect(),
                paused: mean(&trial.paused),
            });
        }
        self.reconsider(&trial.what, &verdict);
        match verdict {
            Verdict::Slower(_) | Verdict::Paused | Verdict::Lost => self.begin_anew(true),
            // Routes that were kept stand already.
            Verdict::Kept if trial.what == What::Routes => {}
            Verdict::Kept => self.begin_anew(false),
            Verdict::NoBetter | Verdict::Silent if trial.what == What::Routes => {
                self.begin_anew(false);
            }
            Verdict::NoBetter | Verdict::Silent => {}
        }
        let stands = self.phase != Phase::Incumbent;
        self.steps.push(Step {
            what: trial.what,
            setting: trial.setting,
            verdict,
            pairs: trial.all.n,
            gain: trial.all.mean(),
        });
        if kept || stands {
            // The incumbent must be measured anew before the next candidate.
            self.before = None;
            let incumbent = self.incumbent.clone();
            self.apply(incumbent, Scope::All, Phase::Incumbent, look, now);
        } else {
            self.next(look, now);
        }
    }

    fn apply(&mut self, setting: Setting, scope: Scope, phase: Phase, look: &Look, now: Duration) {
        self.command = Some(Command::Apply { setting, scope });
        self.phase = phase;
        self.applied = now;
        self.slow.clear();
        let settle = match phase {
            Phase::Incumbent | Phase::Candidate => self.settle(),
            Phase::Canary | Phase::Watching => Duration::ZERO,
        };
        self.block = Some(Block::new(
            now,
            settle,
            self.longest_of_all(),
            look.counters.clone(),
        ));
    }
}
