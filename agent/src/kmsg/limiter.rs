//! Keeps a flood of faults from becoming a flood of events, and one fault from becoming two.
//!
//! A GPU's fault is told by NVML and by the kernel's log. Whoever comes first leads: what the other
//! tells of the same within [`JOIN_WINDOW`] is counted as a duplicate, unless it is graver (the line
//! of an XID 154 names the recovery, its number alone does not).
//!
//! The same event within a minute is only counted, unless it is worse than before. What is left
//! takes a token of its subject and one of all: a device that floods empties its own budget and not
//! that of the others, and the last quarter of the tokens of all is kept for critical events.

use crate::source::{Event, RawCounter, RawKind, Severity};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Both sources are read with each sample and may be late by one, of a second or a few.
pub const JOIN_WINDOW: Duration = Duration::from_secs(5);

/// A fault repeats its line within seconds; after a minute it is worth another word.
pub const REPEAT_WINDOW: Duration = Duration::from_mins(1);
/// Events remembered: more than the devices of a node have kinds of error.
pub const REPEATS_MAX: usize = 1024;
/// A device that fails gives several kinds of error at once: a chain of XIDs has up to ten.
pub const SUBJECT_BURST: u32 = 16;
pub const SUBJECT_REFILL: Duration = Duration::from_secs(10);
/// A node has about a hundred PCI devices and interfaces that can fail. What is beyond shares one
/// budget.
pub const SUBJECTS_MAX: usize = 256;
/// A whole node may fail at once, with a few events for each of its devices.
pub const TOTAL_BURST: u32 = 256;
pub const TOTAL_REFILL: Duration = Duration::from_millis(250);
/// Of [`TOTAL_BURST`], for critical events only.
pub const CRITICAL_RESERVE: u32 = TOTAL_BURST / 4;

/// What ends the other: whoever hears of a return has to hear of the next loss.
const OPPOSITES: [(&str, &str); 2] = [("gpu_lost", "gpu_back"), ("gpu_back", "gpu_lost")];

/// Stands for all subjects that the table has no room for.
const OTHERS: &str = "";

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is passed on; the same was held back as often since the last time.
    Pass { repeated: u64 },
    /// It is only counted.
    Suppress,
    /// Another source told it already.
    Duplicate,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    /// When the last token came in.
    filled_at: Duration,
}

impl Bucket {
    fn full(tokens: u32, now: Duration) -> Bucket {
        Bucket {
            tokens,
            filled_at: now,
        }
    }

    fn refill(&mut self, max: u32, each: Duration, now: Duration) {
        let new = now.saturating_sub(self.filled_at).as_nanos() / each.as_nanos();
        let new = u32::try_from(new).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(new).min(max);
        if self.tokens == max {
            self.filled_at = now.max(self.filled_at);
        } else {
            self.filled_at += each * new;
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: &'static str,
    subject: String,
    code: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Repeat {
    /// Who tells it, and when it did last.
    leader: &'static str,
    told_at: Duration,
    passed_at: Duration,
    severity: Severity,
    held_back: u64,
}

/// The state of the limits. Time is any clock that does not go back.
#[derive(Debug)]
pub struct Limiter {
    repeats: BTreeMap<Key, Repeat>,
    subjects: BTreeMap<String, Bucket>,
    total: Bucket,
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter {
            repeats: BTreeMap::new(),
            subjects: BTreeMap::new(),
            total: Bucket::full(TOTAL_BURST, Duration::ZERO),
        }
    }
}

impl Limiter {
    /// Whether an event is passed on.
    pub fn admit(&mut self, event: &Event, now: Duration) -> Verdict {
        // Whom nobody names is told apart by what is said of it.
        let subject = match event.subject.as_str() {
            "" => &event.text,
            _ => &event.subject,
        };
        let key = Key {
            name: event.name,
            subject: subject.clone(),
            code: event.code,
        };
        let mut repeated = 0;
        if let Some(repeat) = self.repeats.get_mut(&key) {
            let led = now.saturating_sub(repeat.told_at) < JOIN_WINDOW;
            if event.source == repeat.leader || !led {
                (repeat.leader, repeat.told_at) = (event.source, now);
            } else if event.severity <= repeat.severity {
                return Verdict::Duplicate;
            }
            let recent = now.saturating_sub(repeat.passed_at) < REPEAT_WINDOW;
            if recent && event.severity <= repeat.severity {
                repeat.held_back += 1;
                return Verdict::Suppress;
            }
            repeated = repeat.held_back;
        }
        if !self.take(event, now) {
            return Verdict::Suppress;
        }
        if let Some((_, name)) = OPPOSITES.iter().find(|(name, _)| *name == key.name) {
            let ended = Key {
                name,
                ..key.clone()
            };
            self.repeats.remove(&ended);
        }
        self.remember(key, event, now);
        Verdict::Pass { repeated }
    }

    /// Takes a token of the subject and one of all, or none.
    fn take(&mut self, event: &Event, now: Duration) -> bool {
        self.total.refill(TOTAL_BURST, TOTAL_REFILL, now);
        let reserve = match event.severity {
            Severity::Critical => 0,
            Severity::Warning | Severity::Info => CRITICAL_RESERVE,
        };
        if self.total.tokens <= reserve {
            return false;
        }
        let subject = self.subject(&event.subject, now);
        subject.refill(SUBJECT_BURST, SUBJECT_REFILL, now);
        if subject.tokens == 0 {
            return false;
        }
        subject.tokens -= 1;
        self.total.tokens -= 1;
        true
    }

    /// The bucket of a subject. Those that are full again need no memory.
    fn subject(&mut self, name: &str, now: Duration) -> &mut Bucket {
        let known = self.subjects.contains_key(name);
        if !known && self.subjects.len() >= SUBJECTS_MAX {
            self.subjects.retain(|_, bucket| {
                bucket.refill(SUBJECT_BURST, SUBJECT_REFILL, now);
                bucket.tokens < SUBJECT_BURST
            });
        }
        let room = known || self.subjects.len() < SUBJECTS_MAX;
        let name = if room { name } else { OTHERS };
        self.subjects
            .entry(name.to_owned())
            .or_insert_with(|| Bucket::full(SUBJECT_BURST, now))
    }

    /// What finds no room is not recognised when it repeats; its subject's budget still holds.
    fn remember(&mut self, key: Key, event: &Event, now: Duration) {
        if self.repeats.len() >= REPEATS_MAX && !self.repeats.contains_key(&key) {
            self.repeats
                .retain(|_, r| now.saturating_sub(r.passed_at) < REPEAT_WINDOW);
            if self.repeats.len() >= REPEATS_MAX {
                return;
            }
        }
        let repeat = Repeat {
            leader: event.source,
            told_at: now,
            passed_at: now,
            severity: event.severity,
            held_back: 0,
        };
        self.repeats.insert(key, repeat);
    }
}

/// The limits that several sources pass together.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Limiter>>);

/// Events of one source that were not passed on, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// Repeats, and what was beyond the budget.
    pub suppressed: u64,
    /// Told by another source already.
    pub deduplicated: u64,
}

impl Shared {
    /// Keeps the events that are passed on.
    pub fn filter(&self, events: &mut Vec<Event>, now: Duration, held: &mut HeldBack) {
        let all = std::mem::take(events).into_iter();
        events.extend(all.filter_map(|event| self.admit(event, now, held)));
    }

    /// Passes an event on, with how often it repeated meanwhile, or counts it.
    pub fn admit(&self, mut event: Event, now: Duration, held: &mut HeldBack) -> Option<Event> {
        let verdict = {
            let mut limiter = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.admit(&event, now)
        };
        match verdict {
            Verdict::Suppress => held.suppressed += 1,
            Verdict::Duplicate => held.deduplicated += 1,
            Verdict::Pass { repeated } => {
                if repeated > 0 {
                    event.text += &format!(" (and {repeated} times since the last report)");
                }
                return Some(event);
            }
        }
        None
    }
}

impl HeldBack {
    /// The counts as counters of a source.
    pub fn raw(self, source: &'static str, device: &str) -> [RawCounter; 2] {
        [
            ("suppressed", self.suppressed),
            ("deduplicated", self.deduplicated),
        ]
        .map(|(name, value)| RawCounter::new(RawKind::Counter, source, device, name, value))
    }
}

#[cfg(test)]
mod tests;
