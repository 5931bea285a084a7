//! Whom a responder answers: it must not be of use to anybody who forges the address of a third.
//!
//! A reply is as large as its request, a source gets a few in a second, all sources together stay
//! within the link's share, and where a controller has named the probers nobody else gets any.

use super::budget::{Bucket, Budget, Burst, PACKETS_PER_S_MAX, Purpose};
use super::prober::TARGET_PER_S_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Replies to one address in a second: what a prober sends to one target at most ([`TARGET_PER_S_MAX`]),
/// with room for probes that come together, of which a bucket lets a quarter of its limit pass.
const SOURCE_PER_S: u64 = 3 * TARGET_PER_S_MAX as u64;
/// Sources remembered. Forged ones fill this table, so whoever is named by a controller comes first.
const SOURCES_MAX: usize = 4096;
/// A source that was silent for this long is forgotten when another needs its place.
const IDLE: Duration = Duration::from_secs(10);
/// The silent are looked for this often at most.
const SWEEP: Duration = Duration::from_secs(1);
/// Own addresses with a budget of their own.
const LINKS_MAX: usize = 256;
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
    purpose: Purpose,
    /// Longest answer on the wire.
    wire_bytes_max: u32,
    listed: Option<BTreeSet<A>>,
    /// Of lists before, and until when they are answered.
    former: BTreeMap<A, Duration>,
    sources: BTreeMap<A, (Bucket, Duration)>,
    /// The silent were looked for last: a flood must not make us look for every packet of it.
    swept: Duration,
    /// By our own addresses: each is on a link of its own.
    links: BTreeMap<A, Budget>,
    /// For addresses that nobody told.
    other: Budget,
}

impl<A: Ord + Copy> Gate<A> {
    /// Answers everybody, within the rates; no answer has more than `wire_bytes_max` on the wire.
    #[must_use]
    pub fn new(purpose: Purpose, wire_bytes_max: u32, now: Duration) -> Gate<A> {
        Gate {
            purpose,
            wire_bytes_max,
            listed: None,
            former: BTreeMap::new(),
            sources: BTreeMap::new(),
            swept: now,
            links: BTreeMap::new(),
            other: Budget::new(PACKETS_PER_S_MAX, None, wire_bytes_max, Burst::Large, now),
        }
    }

    /// The controller named who may ask.
    pub fn list(&mut self, sources: BTreeSet<A>, now: Duration) {
        self.former.retain(|_, until| now < *until);
        let before = self.listed.iter().flatten();
        let left = before.filter(|source| !sources.contains(source));
        self.former
            .extend(left.map(|source| (*source, now + GRACE)));
        self.listed = Some(sources);
    }

    /// Our own addresses and the rates of their links in bits per second, where they are known.
    pub fn limit(&mut self, links: impl IntoIterator<Item = (A, Option<u64>)>, now: Duration) {
        let mut former = std::mem::take(&mut self.links);
        for (address, rate_bps) in links.into_iter().take(LINKS_MAX) {
            let (bytes, unit) = (self.purpose.bytes_per_s(rate_bps), self.wire_bytes_max);
            let new = || Budget::new(PACKETS_PER_S_MAX, bytes, unit, Burst::Large, now);
            let mut budget = former.remove(&address).unwrap_or_else(new);
            budget.limit(PACKETS_PER_S_MAX, bytes, unit, now);
            self.links.insert(address, budget);
        }
    }

    /// Whether to answer a request of `source` to our address `local` with `bytes` on the wire.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit(&mut self, source: A, local: A, bytes: u32, now: Duration) -> Result<(), Refusal> {
        let listed = self.listed.as_ref().is_none_or(|listed| {
            let formerly = self.former.get(&source).is_some_and(|until| now < *until);
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
            let bucket = Bucket::new(SOURCE_PER_S, 1, Burst::Large, now);
            self.sources.insert(source, (bucket, now));
        }
        let Some((bucket, asked)) = self.sources.get_mut(&source) else {
            return Err(Refusal::NoRoom);
        };
        *asked = now;
        let link = self.links.get_mut(&local).unwrap_or(&mut self.other);
        if bucket.take(1, now) && link.take(bytes, now) {
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
    const OWN: u32 = u32::MAX;

    fn gate() -> Gate<u32> {
        let mut gate = Gate::new(Purpose::UdpReply, 150, Duration::ZERO);
        gate.limit([(OWN, None)], Duration::ZERO);
        gate
    }

    #[test]
    fn a_source_gets_no_more_than_its_rate_and_another_is_not_hurt() {
        let mut gate = gate();
        let mut answered = 0u64;
        for ms in 0..1000u32 {
            let now = 10 * S + Duration::from_millis(ms.into());
            answered += (0..10)
                .filter(|_| gate.admit(1, OWN, 130, now).is_ok())
                .count() as u64;
        }
        assert!(answered <= SOURCE_PER_S, "{answered}");
        assert_eq!(gate.admit(2, OWN, 130, 11 * S), Ok(()));
    }

    #[test]
    fn only_listed_sources_are_answered_and_the_former_for_a_while() {
        let mut gate = gate();
        assert_eq!(gate.admit(9, OWN, 130, S), Ok(()));
        gate.list([1].into(), S);
        assert_eq!(gate.admit(9, OWN, 130, 2 * S), Err(Refusal::NotListed));
        assert_eq!(gate.admit(1, OWN, 130, 2 * S), Ok(()));
        gate.list([2].into(), 2 * S);
        assert_eq!(gate.admit(1, OWN, 130, 3 * S), Ok(()));
        assert_eq!(gate.admit(2, OWN, 130, 3 * S), Ok(()));
        // Another list does not make the while longer.
        gate.list([3].into(), 20 * S);
        assert_eq!(
            gate.admit(1, OWN, 130, 2 * S + GRACE),
            Err(Refusal::NotListed)
        );
        assert_eq!(gate.admit(2, OWN, 130, 2 * S + GRACE), Ok(()));
    }

    #[test]
    fn forged_sources_do_not_fill_the_memory() {
        let mut gate = gate();
        for source in 0..100_000 {
            gate.admit(source, OWN, 130, S).ok();
        }
        assert!(gate.sources.len() <= SOURCES_MAX);
        assert_eq!(gate.admit(200_000, OWN, 130, 2 * S), Err(Refusal::NoRoom));
        assert_eq!(gate.admit(200_000, OWN, 130, 2 * S + IDLE), Ok(()));
    }

    #[test]
    fn all_replies_together_stay_within_the_link_s_share() {
        let mut gate = gate();
        gate.limit([(OWN, Some(1300 * 8 * 5000))], Duration::ZERO);
        let mut answered = 0;
        for ms in 0..1000u32 {
            let now = 10 * S + Duration::from_millis(ms.into());
            answered += u32::from(gate.admit(ms, OWN, 130, now).is_ok());
        }
        assert!((5..=10).contains(&answered), "{answered}");
        // Another link of ours is not used up by it.
        assert_eq!(gate.admit(5000, 7, 130, 11 * S), Ok(()));
    }
}
