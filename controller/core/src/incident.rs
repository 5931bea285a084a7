//! Incidents: one for each cause, opened by a verdict, kept up to date by the next, resolved when
//! none came for a while.

use crate::cause::{self, Affected};
use crate::ids::{JobId, PortId};
use crate::keep::keep;
use crate::topology::Topology;
use crate::verdict::{Class, Verdict};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Incidents kept, resolved ones included; the oldest resolved goes first.
const INCIDENTS_MAX: usize = 1024;
/// What comes back so soon after it was resolved is the same incident: a job that computes for a while, a fault that comes
/// and goes. Nobody wants to be told twice.
const REOPEN: Duration = Duration::from_secs(60);
/// Links kept that an incident named earlier in its life.
const LINKS_MAX: usize = 256;
/// Jobs that may join those which an incident touched when it was opened.
const JOBS_MAX: usize = 64;
/// Lines kept of an incident's story.
const STORY_MAX: usize = 64;

/// A cause of trouble over its life.
#[derive(Debug, Clone, PartialEq)]
pub struct Incident {
    pub id: String,
    pub verdict: Verdict,
    pub opened_at: Duration,
    pub last_seen: Duration,
    pub resolved_at: Option<Duration>,
    /// Incident that it follows from, which is nobody's consequence.
    pub root: Option<String>,
    /// Jobs whose flows cross its links or end at its host, when it was opened.
    pub jobs: BTreeSet<JobId>,
    /// Cables that were lost shortly before it was opened, at switches that its flows pass.
    pub after: BTreeSet<PortId>,
    /// What was done about it, oldest first.
    pub story: VecDeque<(Duration, String)>,
}

keep!(struct Incident { id, verdict, opened_at, last_seen, resolved_at, root, jobs, after, story });

impl Incident {
    /// Adds a line to the story, unless it says the same as the last.
    pub fn tell(&mut self, at: Duration, text: String) {
        if self.story.back().is_some_and(|(_, last)| *last == text) {
            return;
        }
        if self.story.len() == STORY_MAX {
            self.story.pop_front();
        }
        self.story.push_back((at, text));
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.resolved_at.is_none()
    }
}

/// All incidents, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Incidents {
    list: VecDeque<Incident>,
    opened: u64,
    /// Incidents opened so far by class, for the counter.
    opened_by_class: [u64; Class::ALL.len()],
}

keep!(struct Incidents { list, opened, opened_by_class });

impl Incidents {
    /// Takes a verdict: opens an incident or brings the open one of the same cause up to date.
    /// Returns its id, and whether it was not open before.
    pub fn judged(&mut self, verdict: Verdict, at: Duration) -> (String, bool) {
        let open = self.place(&verdict, at);
        if let Some(incident) = open.and_then(|n| self.list.get_mut(n)) {
            // It may have been opened before its job was inferred, or when it was taken for another.
            if incident.verdict.job.is_none() && incident.jobs.len() < JOBS_MAX {
                incident.jobs.extend(verdict.job.clone());
            }
            // What it is called stays, though another of its links may look worse by now; but where all meet is the root.
            let before = &incident.verdict.entity;
            let meets = matches!(verdict.class, Class::Incast | Class::StorageBurst)
                && before.link().is_some_and(|l| verdict.links.contains(l));
            let mut verdict = verdict;
            if !meets {
                verdict.entity = before.clone();
            }
            // Nor are links forgotten that have a rest.
            let before = std::mem::take(&mut incident.verdict.links).into_iter();
            let rest: Vec<PortId> = before.filter(|l| !verdict.links.contains(l)).collect();
            let room = LINKS_MAX.saturating_sub(verdict.links.len());
            verdict.links.extend(rest.into_iter().take(room));
            incident.verdict = verdict;
            incident.last_seen = at;
            let back = incident.resolved_at.take().is_some();
            if back {
                incident.tell(at, "it is back: open again".into());
            }
            return (incident.id.clone(), back);
        }
        if self.list.len() >= INCIDENTS_MAX {
            let oldest = self.list.iter().position(|i| !i.is_open()).unwrap_or(0);
            self.list.remove(oldest);
        }
        self.opened += 1;
        if let Some(n) = Class::ALL.iter().position(|c| *c == verdict.class) {
            self.opened_by_class[n] += 1;
        }
        let id = format!("I{}", self.opened);
        let mut incident = Incident {
            id: id.clone(),
            verdict,
            opened_at: at,
            last_seen: at,
            resolved_at: None,
            root: None,
            jobs: BTreeSet::new(),
            after: BTreeSet::new(),
            story: VecDeque::new(),
        };
        incident.tell(
            at,
            format!(
                "{} found on {}",
                incident.verdict.class.name(),
                incident.verdict.entity
            ),
        );
        self.list.push_back(incident);
        (id, true)
    }

    /// The incident that a verdict is about, open or resolved so lately that it is opened again, if there is one.
    #[must_use]
    pub fn about(&self, verdict: &Verdict, now: Duration) -> Option<&Incident> {
        self.list.get(self.place(verdict, now)?)
    }

    fn place(&self, verdict: &Verdict, now: Duration) -> Option<usize> {
        let same = |i: &Incident| i.verdict.class == verdict.class && same_cause(i, verdict);
        let lately = |i: &Incident| {
            i.resolved_at
                .is_some_and(|at| now.saturating_sub(at) <= REOPEN)
        };
        let open = self.list.iter().position(|i| i.is_open() && same(i));
        open.or_else(|| self.list.iter().rposition(|i| lately(i) && same(i)))
    }

    /// Resolves what was not seen for `clear_after`; returns the ids.
    pub fn expire(&mut self, now: Duration, clear_after: Duration) -> Vec<String> {
        let mut resolved = Vec::new();
        for incident in self.list.iter_mut().filter(|i| i.is_open()) {
            if now.saturating_sub(incident.last_seen) >= clear_after {
                incident.resolved_at = Some(now);
                incident.tell(now, format!("resolved: {}", over(incident.verdict.class)));
                resolved.push(incident.id.clone());
            }
        }
        resolved
    }

    /// Takes the jobs' names off open incidents: whose they are is told by the next verdicts.
    pub fn forget_jobs(&mut self, jobs: &BTreeSet<JobId>) {
        for incident in self.list.iter_mut().filter(|i| i.is_open()) {
            incident.verdict.job.take_if(|job| jobs.contains(job));
            incident.jobs.retain(|job| !jobs.contains(job));
        }
    }

    /// Whether an open incident says that a cable is lost, for good or again and again.
    #[must_use]
    pub fn is_lost(&self, cable: &PortId, topology: &Topology) -> bool {
        let mut open = self.list.iter().filter(|i| i.is_open());
        open.any(|i| cause::loses(&i.verdict, cable, topology))
    }

    /// Says which jobs an incident touches, and after which losses it came.
    pub fn touches(&mut self, id: &str, jobs: BTreeSet<JobId>, after: BTreeSet<PortId>) {
        if let Some(incident) = self.list.iter_mut().find(|i| i.id == id) {
            (incident.jobs, incident.after) = (jobs, after);
        }
    }

    /// Finds out anew which open incident follows from which.
    pub fn link_causes(&mut self, topology: &Topology, now: Duration) {
        let open: Vec<usize> = (0..self.list.len())
            .filter(|n| self.list[*n].is_open())
            .collect();
        let affected = |n: usize| {
            let incident = &self.list[n];
            Affected {
                verdict: &incident.verdict,
                jobs: &incident.jobs,
                after: &incident.after,
            }
        };
        let root_of = |n: usize| {
            let of = affected(n);
            let roots = open
                .iter()
                .filter(|m| cause::follows(of, affected(**m), topology));
            roots
                .min_by_key(|m| (cause::order(self.list[**m].verdict.class), **m))
                .copied()
        };
        // What follows from a consequence follows from its root: classes are in order, so this ends.
        let first: Vec<(usize, Option<usize>)> = open.iter().map(|n| (*n, root_of(*n))).collect();
        let parent = |n: usize| {
            first
                .iter()
                .find(|(m, _)| *m == n)
                .and_then(|(_, root)| *root)
        };
        for (n, root) in &first {
            let mut root = *root;
            while let Some(above) = root.and_then(parent) {
                root = Some(above);
            }
            let root = root.map(|m| self.list[m].id.clone());
            if root != self.list[*n].root {
                if let Some(id) = &root {
                    self.list[*n].tell(now, format!("follows from {id}"));
                }
                self.list[*n].root = root;
            }
        }
    }

    pub fn tell(&mut self, id: &str, at: Duration, text: String) {
        if let Some(incident) = self.list.iter_mut().find(|i| i.id == id) {
            incident.tell(at, text);
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Incident> {
        self.list.iter()
    }

    pub(crate) fn tables(&self) -> [(&'static str, usize, usize); 2] {
        let longest = self.list.iter().map(|i| i.story.len()).max();
        [
            ("incidents", self.list.len(), INCIDENTS_MAX),
            ("lines of a story", longest.unwrap_or(0), STORY_MAX),
        ]
    }

    /// Incidents opened since the start, by class.
    #[must_use]
    pub fn opened_by_class(&self, class: Class) -> u64 {
        Class::ALL
            .iter()
            .position(|c| *c == class)
            .map_or(0, |n| self.opened_by_class[n])
    }
}

/// What is no longer seen of a class when its incident is over.
fn over(class: Class) -> &'static str {
    match class {
        Class::EcmpCollision | Class::Incast | Class::Oversubscription | Class::StorageBurst => {
            "its links are no longer hot"
        }
        Class::SlowReceiver | Class::PfcStorm => "its links are no longer paused for long",
        Class::DegradedLink => "the link carries what it should, as far as is seen",
        Class::LinkDown | Class::LinkFlap => "the link is no longer seen to go down",
        Class::LinkErrors | Class::SilentLoss => "no more damage or loss is seen",
        Class::NicFault | Class::GpuFault => "nothing reports the fault any more",
        Class::NodeOutlier => "the node is like its peers again",
        Class::Straggler => "the rank is no longer late",
        Class::Cabling => "the ends no longer contradict the plan",
    }
}

/// The same thing, or a link in common. Collisions and full groups of one job, or of jobs that cross the same links, are
/// one, too: which of the links is the hottest differs from sample to sample.
fn same_cause(of: &Incident, new: &Verdict) -> bool {
    let by_job = matches!(
        new.class,
        Class::EcmpCollision | Class::Oversubscription | Class::StorageBurst
    );
    let job = || new.job.as_ref().is_some_and(|job| of.jobs.contains(job));
    of.verdict.entity == new.entity
        || (by_job && job())
        || of.verdict.links.iter().any(|l| new.links.contains(l))
}
