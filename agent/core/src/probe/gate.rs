//! Whom a responder answers: it must not be of use to anybody who forges the address of a third.
//!
//! A reply is as large as its request, a source gets a few in a second, all sources together stay
//! within the link's share, and where a controller has named the probers nobody else gets any.

use super::budget::{Bucket, Budget, PACKETS_PER_S_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Replies to one address in a second: 16 paths of a few interfaces once a second, and room.
const SOURCE_PER_S: u64 = 200;
/// Sources remembered. Forged ones fill this table, so whoever is named by a controller comes first.
const SOURCES_MAX: usize = 4096;
/// A source that was silent for this long is forgotten when another needs its place.
const IDLE: Duration = Duration::from_secs(10);
/// The silent are looked for this often at most.
const SWEEP: Duration = Duration::from_secs(1);
/// Probers of the former list are answered for this long: theirs changes a little later.
const GRACE: Duration = Duration::from_secs(30);

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The controller's list does not name the source.
    NotListed,
    /// It asks too often, or too many do.
    TooFast,
    /// There is no place for another source.
    NoRoom,
}

/// The decision, for sources of type `A`.
#[derive(Debug)]
pub struct Gate<A> {
    listed: Option<BTreeSet<A>>,
    former: BTreeSet<A>,
    former_until: Duration,
    sources: BTreeMap<A, (Bucket, Duration)>,
    /// The silent were looked for last: a flood must not make us look for every packet of it.
    swept: Duration,
    total: Budget,
}

impl<A: Ord + Copy> Gate<A> {
    /// Answers everybody, within the rates.
    #[must_use]
    pub fn new(now: Duration) -> Gate<A> {
        Gate {
            listed: None,
            former: BTreeSet::new(),
            former_until: Duration::ZERO,
            sources: BTreeMap::new(),
            swept: now,
            total: Budget::new(PACKETS_PER_S_MAX, None, 1, now),
        }
    }

    /// The controller named who may ask.
    pub fn list(&mut self, sources: BTreeSet<A>, now: Duration) {
        if let Some(former) = self.listed.replace(sources) {
            if now >= self.former_until {
                self.former.clear();
            }
            self.former.extend(former);
            self.former_until = now + GRACE;
        }
    }

    /// Bytes that all replies may take in a second, of packets of up to `unit`.
    pub fn limit(&mut self, bytes: Option<u64>, unit: u32, now: Duration) {
        self.total.limit(PACKETS_PER_S_MAX, bytes, unit, now);
    }

    /// Whether to answer a request of `source` with `bytes` on the wire.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit(&mut self, source: A, bytes: u32, now: Duration) -> Result<(), Refusal> {
        let listed = self.listed.as_ref().is_none_or(|listed| {
            let formerly = now < self.former_until && self.former.contains(&source);
            listed.contains(&source) || formerly
        });
        if !listed {
            return Err(Refusal::NotListed);
        }
        if !self.sources.contains_key(&source) {
            let full = self.sources.len() >= SOURCES_MAX;
            if full && now.saturating_sub(self.swept) >= SWEEP {
                self.swept = now;
                self.sources.retain(|_, (_, asked)| *asked + IDLE > now);
            }
            if self.sources.len() >= SOURCES_MAX {
                return Err(Refusal::NoRoom);
            }
            // A newcomer's bucket is full: its first probe is answered.
            let bucket = Bucket::new(SOURCE_PER_S, 1, now.saturating_sub(Duration::from_secs(1)));
            self.sources.insert(source, (bucket, now));
        }
        let Some((bucket, asked)) = self.sources.get_mut(&source) else {
            return Err(Refusal::NoRoom);
        };
        *asked = now;
        if bucket.take(1, now) && self.total.take(bytes, now) {
            Ok(())
        } else {
            Err(Refusal::TooFast)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn gate() -> Gate<u32> {
        let mut gate = Gate::new(Duration::ZERO);
        gate.limit(None, 130, Duration::ZERO);
        gate
    }

    #[test]
    fn a_source_gets_no_more_than_its_rate_and_another_is_not_hurt() {
        let mut gate = gate();
        let mut answered = 0u64;
        for ms in 0..1000u32 {
            let now = 10 * S + Duration::from_millis(ms.into());
            answered += (0..10).filter(|_| gate.admit(1, 130, now).is_ok()).count() as u64;
        }
        assert!(answered <= SOURCE_PER_S, "{answered}");
        assert_eq!(gate.admit(2, 130, 11 * S), Ok(()));
    }

    #[test]
    fn only_listed_sources_are_answered_and_the_former_for_a_while() {
        let mut gate = gate();
        assert_eq!(gate.admit(9, 130, S), Ok(()));
        gate.list([1].into(), S);
        assert_eq!(gate.admit(9, 130, 2 * S), Err(Refusal::NotListed));
        assert_eq!(gate.admit(1, 130, 2 * S), Ok(()));
        gate.list([2].into(), 2 * S);
        assert_eq!(gate.admit(1, 130, 3 * S), Ok(()));
        assert_eq!(gate.admit(2, 130, 3 * S), Ok(()));
        assert_eq!(gate.admit(1, 130, 3 * S + GRACE), Err(Refusal::NotListed));
    }

    #[test]
    fn forged_sources_do_not_fill_the_memory() {
        let mut gate = gate();
        for source in 0..100_000 {
            gate.admit(source, 130, S).ok();
        }
        assert!(gate.sources.len() <= SOURCES_MAX);
        assert_eq!(gate.admit(200_000, 130, 2 * S), Err(Refusal::NoRoom));
        assert_eq!(gate.admit(200_000, 130, 2 * S + IDLE), Ok(()));
    }

    #[test]
    fn all_replies_together_stay_within_the_link_s_share() {
        let mut gate = gate();
        gate.limit(Some(1300), 130, Duration::ZERO);
        let mut answered = 0;
        for ms in 0..1000u32 {
            let now = 10 * S + Duration::from_millis(ms.into());
            answered += u32::from(gate.admit(ms, 130, now).is_ok());
        }
        assert!(answered <= 10, "{answered}");
    }
}
