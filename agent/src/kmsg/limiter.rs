//! Keeps a flood of the log from becoming a flood of events. Pure: time is an argument.

use crate::source::{Event, Severity};
use std::collections::BTreeMap;
use std::time::Duration;

/// The same thing of the same subject is told again after this long.
const AGAIN: Duration = Duration::from_secs(60);
/// Different events of one subject in [`AGAIN`].
const SUBJECT_MAX: u32 = 20;
/// Events in all in [`AGAIN`]; those that are critical have as many for themselves.
const ALL_MAX: u32 = 200;

/// What tells two events apart.
type Key = (&'static str, String, Option<u32>);

/// Decides which events are told.
#[derive(Debug, Default)]
pub struct Limiter {
    told: BTreeMap<Key, Duration>,
    subjects: BTreeMap<String, u32>,
    all: [u32; 2],
    window: Duration,
    /// Events not told since the start.
    pub suppressed: u64,
}

impl Limiter {
    /// Whether an event is to be told at `now`.
    pub fn admit(&mut self, event: &Event, now: Duration) -> bool {
        if now.saturating_sub(self.window) >= AGAIN {
            self.window = now;
            self.all = [0; 2];
            self.subjects.clear();
            self.told.retain(|_, at| now.saturating_sub(*at) < AGAIN);
        }
        let subject = event.subject.as_str();
        let class = usize::from(event.severity == Severity::Critical);
        let key = (event.name, subject.to_owned(), event.code);
        let repeated = self
            .told
            .get(&key)
            .is_some_and(|at| now.saturating_sub(*at) < AGAIN);
        let of_subject = self.subjects.get(subject).copied().unwrap_or(0);
        let admitted = !repeated && of_subject < SUBJECT_MAX && self.all[class] < ALL_MAX;
        if admitted {
            self.told.insert(key, now);
            *self.subjects.entry(subject.to_owned()).or_default() += 1;
            self.all[class] += 1;
        } else {
            self.suppressed += 1;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn event(subject: &str, code: u32, severity: Severity) -> Event {
        Event {
            source: "kmsg",
            name: "xid",
            subject: subject.into(),
            code: Some(code),
            severity,
            text: String::new(),
            action: String::new(),
        }
    }

    fn warning(subject: &str, code: u32) -> Event {
        event(subject, code, Severity::Warning)
    }

    #[test]
    fn the_same_event_is_told_once_a_minute() {
        let mut limiter = Limiter::default();
        let at = [0, 1, 59, 60, 61];
        let admitted = at.map(|s| limiter.admit(&warning("a", 13), s * S));
        assert_eq!(admitted, [true, false, false, true, false]);
        assert_eq!(limiter.suppressed, 3);
        assert!(limiter.admit(&warning("a", 31), 61 * S), "another code");
        assert!(limiter.admit(&warning("b", 13), 61 * S), "another GPU");
    }

    #[test]
    fn a_flood_of_one_subject_leaves_room_for_the_others() {
        let mut limiter = Limiter::default();
        let told = (0..10_000).filter(|n| limiter.admit(&warning("flood", *n), S));
        assert_eq!(told.count(), 20);
        assert!(limiter.admit(&warning("quiet", 79), 2 * S));
    }

    #[test]
    fn a_flood_of_subjects_is_bounded_and_leaves_room_for_what_is_critical() {
        let mut limiter = Limiter::default();
        let told = (0..10_000).filter(|n| limiter.admit(&warning(&n.to_string(), 13), S));
        assert_eq!(told.count(), 200);
        assert!(limiter.admit(&event("lost", 79, Severity::Critical), S));
        assert!(limiter.admit(&warning("later", 13), 62 * S));
        assert!(limiter.told.len() <= 2 * 200 && limiter.subjects.len() <= 2 * 200);
    }
}
