//! One session of the tuner: from what stands to what is kept.

use crate::ids::JobId;
use crate::io::PinChange;
use crate::tune::block::{Block, JobSeen, Look, Measured};
use crate::tune::memory::{Memory, Signature, Tally};
use crate::tune::sequential::Pairs;
use crate::tune::setting::{Bounds, Move, Setting};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Iterations of each job under the incumbent that are remembered, to know how slow is normal.
const HISTORY: usize = 64;
/// An iteration longer than the longest of those by this factor ends a candidate at once.
const GROSS: f64 = 1.25;
/// A block that takes so many times as long as the first one gives its candidate up.
const BLOCK_PATIENCE: f64 = 6.0;
/// So many periods of the increase timer after a change of knobs the rates have climbed to where it leads.
const SETTLE_TIMERS: f64 = 12.0;
/// Below this share of marked packets thresholds decide nothing.
const MARKED_MIN: f64 = 1e-4;

/// What a session may cost and do.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Slow-down of any job over the whole session, as a share of its time before: 0.05.
    pub slowdown_max: f64,
    /// Rise of the paused share of the port that is paused most, over the whole session: 0.01 is one point.
    pub pause_max: f64,
    /// Chance with which a candidate that changes nothing is taken for faster.
    pub alpha: f64,
    /// A gain below this is not worth a change.
    pub worth: f64,
    /// Iterations of each job before anything is tried.
    pub iterations_first: u32,
    /// Iterations of each job in a block, the one that straddles the change not counted.
    pub iterations: u32,
    /// Pairs after which a candidate that is still undecided is dropped.
    pub pairs_max: u32,
    /// Candidates in a session.
    pub candidates_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            slowdown_max: 0.05,
            pause_max: 0.01,
            alpha: 0.05,
            worth: 0.01,
            iterations_first: 4,
            iterations: 2,
            pairs_max: 10,
            candidates_max: 16,
        }
    }
}

/// What a session starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// What stands.
    pub baseline: Setting,
    pub bounds: Bounds,
    /// Leaves or rails; a candidate stands on one of them before all. Fewer than two: no canary.
    pub groups: Vec<Arc<str>>,
    /// Pins that the route planner proposes; empty where nothing collides.
    pub pins: Vec<PinChange>,
    pub signature: Signature,
    pub limits: Limits,
}

/// Where a setting is to stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    /// On the switches and hosts of one group; elsewhere the incumbent.
    Group(Arc<str>),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Applies a setting, under the session's lease.
    Apply { setting: Setting, scope: Scope },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The incumbent stands and is measured.
    Incumbent,
    /// A candidate stands on one group.
    Canary,
    /// A candidate stands everywhere.
    Candidate,
    /// Nothing is left to try; what was kept is watched.
    Watching,
}

/// What a candidate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The planner's routes.
    Routes,
    /// What was best for this pattern in an earlier session.
    Remembered,
    Move(Move),
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Kept,
    /// It brought too little, or is still undecided after all pairs.
    NoBetter,
    /// A job became slower by too much.
    Slower(JobId),
    /// A port was paused for too long.
    Paused,
    /// Packets were lost or came out of order.
    Lost,
    /// A block did not end.
    Silent,
}

/// A candidate that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub what: What,
    pub setting: Setting,
    pub verdict: Verdict,
    /// Pairs that it took.
    pub pairs: u32,
    /// Mean log ratio of the iteration times; `None` before the first pair.
    pub gain: Option<f64>,
}

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
    first_block: Option<f64>,
    before: Option<Measured>,
    /// Worst of the incumbents' blocks: paused, lost and out of sequence.
    normal: Measured,
    /// Largest paused share of a block before anything was kept.
    paused_first: f64,
    history: BTreeMap<JobId, VecDeque<f64>>,
    /// Iterations in a row that were too slow.
    slow: BTreeMap<JobId, u32>,
    /// What was kept, the latest last: it goes first when a limit breaks later.
    kept: Vec<Kept>,
    tallies: BTreeMap<Move, Tally>,
    steps: Vec<Step>,
    commands: VecDeque<Command>,
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
            first_block: None,
            before: None,
            normal: Measured::default(),
            paused_first: 0.0,
            history: BTreeMap::new(),
            slow: BTreeMap::new(),
            kept: Vec::new(),
            tallies: BTreeMap::new(),
            steps: Vec::new(),
            commands: VecDeque::new(),
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
        self.commands.pop_front()
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
        block.add(look, now);
        match self.phase {
            Phase::Incumbent => self.incumbent_seen(look, now),
            Phase::Canary | Phase::Candidate => self.candidate_seen(look, now),
            Phase::Watching => self.watched(look, now),
        }
    }

    fn incumbent_seen(&mut self, look: &Look, now: Duration) {
        let Some(block) = &self.block else { return };
        for seen in &look.jobs {
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
            Some(_) => limits.iterations,
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
        let Some(block) = &self.block else { return };
        let canary = self.phase == Phase::Canary;
        let iterations = if canary {
            1
        } else {
            self.session.limits.iterations
        };
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

    /// A limit that breaks while a candidate stands.
    fn broken(&mut self, look: &Look, now: Duration) -> Option<Verdict> {
        let limit = self.session.limits.slowdown_max;
        for seen in &look.jobs {
            if slow_now(&self.history, &mut self.slow, seen, limit, now) {
                return Some(Verdict::Slower(seen.job.clone()));
            }
        }
        let (block, before) = (self.block.as_ref()?, self.before.as_ref()?);
        let got = block.since_change(&look.counters, now)?;
        // Early in a block a single pause is a large share: it is taken of a whole block.
        let share = got.paused * got.seconds / got.seconds.max(before.seconds);
        if share > self.normal.paused + self.session.limits.pause_max {
            return Some(Verdict::Paused);
        }
        let more = |now: f64, normal: f64| now > normal + 3.0 * normal.sqrt();
        if more(
            got.lost_per_s * got.seconds,
            self.normal.lost_per_s * got.seconds,
        ) {
            return Some(Verdict::Lost);
        }
        // A change of routes lets packets overtake each other once; only what comes later tells against it.
        let got = block.measured(&look.counters, now)?;
        let normal = self.normal.out_of_sequence_per_s * got.seconds;
        more(got.out_of_sequence_per_s * got.seconds, normal).then_some(Verdict::Lost)
    }

    fn late(&self, now: Duration) -> bool {
        let (Some(block), Some(first)) = (&self.block, self.first_block) else {
            return false;
        };
        now.saturating_sub(block.from).as_secs_f64() > first * BLOCK_PATIENCE
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
                what: trial.what,
                before: std::mem::replace(&mut self.incumbent, trial.setting.clone()),
                gain: mean(&trial.all),
                jobs: jobs.map(|(job, p)| (job.clone(), mean(p))).collect(),
                paused: mean(&trial.paused),
            });
        }
        match (trial.what, kept) {
            (What::Move(m), true) => {
                self.agenda
                    .retain(|w| m.opposite().is_none_or(|o| *w != What::Move(o)));
                self.agenda.push(What::Move(m));
            }
            // What was learned does not hold here: search.
            (What::Remembered, false) => self.agenda = moves(&self.order),
            (What::Remembered, true) if Some(&self.incumbent) != self.goal.as_ref() => {
                self.agenda.push(What::Remembered);
            }
            (What::Routes | What::Remembered | What::Move(_), _) => {}
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

    /// The next candidate that may be tried.
    fn next(&mut self, look: &Look, now: Duration) {
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
            let setting = match what {
                What::Routes => Setting {
                    pins: self.session.pins.clone(),
                    ..self.incumbent.clone()
                },
                _ if self.quiet() && !self.recovering(what) => continue,
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

    /// Nothing is marked and nobody pauses: no threshold decides anything.
    fn quiet(&self) -> bool {
        let quiet = |m: &Measured| m.marked < MARKED_MIN && m.paused == 0.0;
        self.before.as_ref().is_some_and(quiet)
    }

    /// Rates that were cut while flows collided climb back by themselves, but slowly.
    fn recovering(&self, what: What) -> bool {
        let routed = |s: &Step| s.what == What::Routes && s.verdict == Verdict::Kept;
        what == What::Move(Move::ClimbFaster) && self.steps.iter().any(routed)
    }

    /// No marking is where marking later and less leads to; it is tried only where that helped and cost no pauses.
    fn may_turn_off(&self) -> bool {
        let kept = |m: Move| self.tallies.get(&m).is_some_and(|t| t.kept > 0);
        (kept(Move::MarkLater) || kept(Move::MarkLess))
            && self.kept.iter().map(|k| k.paused).sum::<f64>()
                <= self.session.limits.pause_max / 2.0
    }

    /// What was kept is given back, the latest first, when a job is slower three iterations in a row than any was before,
    /// or a port is paused for longer than the session allows: rates may take long to get to where a setting leads them.
    fn watched(&mut self, look: &Look, now: Duration) {
        let limit = self.session.limits.slowdown_max;
        let Some(block) = &self.block else { return };
        let since = block.from;
        for seen in &look.jobs {
            let Some(longest) = longest(&self.history, &seen.job) else {
                continue;
            };
            let slow = self.slow.entry(seen.job.clone()).or_default();
            for (start, end) in seen.ended.iter().filter(|(s, _)| *s >= since) {
                let seconds = end.saturating_sub(*start).as_secs_f64();
                *slow = if seconds > longest * (1.0 + limit) {
                    *slow + 1
                } else {
                    0
                };
            }
            if *slow >= 3 {
                self.undo(Verdict::Slower(seen.job.clone()), look, now);
                return;
            }
        }
        if !block.complete(look, self.session.limits.iterations) {
            return;
        }
        match block.measured(&look.counters, now) {
            Some(m) if self.over_pause_limit(&m) => self.undo(Verdict::Paused, look, now),
            Some(_) | None => {
                let counters = look.counters.clone();
                self.block = Some(Block::new(now, Duration::ZERO, Duration::ZERO, counters));
            }
        }
    }

    /// A port is paused for longer than the session allows. Before anything was kept, what is seen is what is normal.
    fn over_pause_limit(&mut self, m: &Measured) -> bool {
        if self.kept.is_empty() {
            self.paused_first = self.paused_first.max(m.paused);
        }
        m.paused > self.paused_first + self.session.limits.pause_max
    }

    /// Gives back what was kept last. A session with nothing to give back only goes on.
    fn undo(&mut self, verdict: Verdict, look: &Look, now: Duration) {
        self.trial = None;
        self.before = None;
        if let Some(kept) = self.kept.pop() {
            self.incumbent = kept.before;
            self.steps[kept.step].verdict = verdict;
            if let What::Move(m) = kept.what {
                let tally = self.tallies.entry(m).or_default();
                tally.kept = tally.kept.saturating_sub(1);
                tally.broke += 1;
            }
        }
        let incumbent = self.incumbent.clone();
        self.apply(incumbent, Scope::All, Phase::Incumbent, look, now);
    }

    fn apply(&mut self, setting: Setting, scope: Scope, phase: Phase, look: &Look, now: Duration) {
        self.commands.push_back(Command::Apply { setting, scope });
        self.phase = phase;
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

    /// How long a change still shows in iterations that begin after it: not at all in that of routes; in that of knobs,
    /// until rates have climbed to where they lead.
    fn settle(&self) -> Duration {
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

    fn longest_of_all(&self) -> Duration {
        let all = self.history.values().flatten().copied();
        Duration::from_secs_f64(all.fold(0.0, f64::max))
    }
}

/// An agenda of moves; the next one is last.
fn moves(order: &[Move]) -> Vec<What> {
    order.iter().rev().map(|m| What::Move(*m)).collect()
}

/// Seconds of the longest iteration of a job under the incumbent. `None`: none is known.
fn longest(history: &BTreeMap<JobId, VecDeque<f64>>, job: &JobId) -> Option<f64> {
    history.get(job)?.iter().copied().reduce(f64::max)
}

/// A job's iteration is grossly longer than any under the incumbent, or the second one in a row is by `limit`.
fn slow_now(
    history: &BTreeMap<JobId, VecDeque<f64>>,
    slow: &mut BTreeMap<JobId, u32>,
    seen: &JobSeen,
    limit: f64,
    now: Duration,
) -> bool {
    let Some(longest) = longest(history, &seen.job) else {
        return false;
    };
    let running = seen.running_since.map(|s| now.saturating_sub(s));
    if running.is_some_and(|r| r.as_secs_f64() > longest * GROSS) {
        return true;
    }
    let slow = slow.entry(seen.job.clone()).or_default();
    for (start, end) in &seen.ended {
        let seconds = end.saturating_sub(*start).as_secs_f64();
        *slow = if seconds > longest * (1.0 + limit) {
            *slow + 1
        } else {
            0
        };
        if *slow >= 2 || seconds > longest * GROSS {
            return true;
        }
    }
    false
}
