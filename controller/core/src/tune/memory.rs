//! What earlier sessions found, by traffic pattern: plain data, bounded, to be stored and loaded as it is.

use crate::ids::JobId;
use crate::tune::setting::{Move, Setting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Patterns held. Each field of a signature has a handful of values; a fabric shows some dozens of combinations.
pub const PATTERNS_MAX: usize = 128;

/// Who sends to whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub job: JobId,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
}

/// A traffic pattern, coarse enough for two runs of one job mix to be the same and fine enough for settings to carry over.
/// Counts are as powers of two (0: none or one, 1: two or three, ...), because twice as many senders ask for much the
/// same thresholds and ten times as many do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Signature {
    /// Most senders to one receiver within one job: 0 in a ring, 3 in an 8:1 incast.
    pub incast: u32,
    /// Most receivers of one sender within one job: 0 in a ring, as `incast` in an all-to-all.
    pub spread: u32,
    /// Jobs.
    pub jobs: u32,
    /// Jobs in which somebody receives from four or more while sending to nobody or one: incasts, checkpoints.
    pub gathering: u32,
}

fn power(n: usize) -> u32 {
    n.max(1).ilog2()
}

impl Signature {
    /// The pattern of all flows that are alive.
    #[must_use]
    pub fn of(edges: &BTreeSet<Edge>) -> Signature {
        let mut senders: BTreeMap<(&JobId, Ipv4Addr), usize> = BTreeMap::new();
        let mut receivers: BTreeMap<(&JobId, Ipv4Addr), usize> = BTreeMap::new();
        for e in edges {
            *senders.entry((&e.job, e.dst)).or_default() += 1;
            *receivers.entry((&e.job, e.src)).or_default() += 1;
        }
        let most =
            |m: &BTreeMap<(&JobId, Ipv4Addr), usize>| power(m.values().copied().max().unwrap_or(0));
        let gathers = |((job, host), n): (&(&JobId, Ipv4Addr), &usize)| {
            let sends = receivers.get(&(*job, *host)).copied().unwrap_or(0);
            (*n >= 4 && sends <= 1).then(|| (*job).clone())
        };
        let jobs: BTreeSet<&JobId> = edges.iter().map(|e| &e.job).collect();
        let gathering: BTreeSet<JobId> = senders.iter().filter_map(gathers).collect();
        Signature {
            incast: most(&senders),
            spread: most(&receivers),
            jobs: power(jobs.len()),
            gathering: power(gathering.len() + 1),
        }
    }
}

/// What became of the tries of one move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub tried: u32,
    pub kept: u32,
    /// Times that it broke a constraint.
    pub broke: u32,
}

/// What is known of one pattern.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    /// Knobs at which the last session ended; its routes are not held, as they depend on where the flows are.
    pub setting: Setting,
    /// Sum of the mean log ratios of the knobs that it kept; 0 when it kept none.
    pub gain: f64,
    /// Sessions that came to their end.
    pub sessions: u32,
    /// By move.
    pub moves: BTreeMap<Move, Tally>,
    /// [`Memory::sessions`] when this was last used: the lowest goes first.
    pub used: u64,
}

/// All patterns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// At most [`PATTERNS_MAX`] after each [`Memory::learn`].
    pub known: BTreeMap<Signature, Known>,
    /// Sessions so far.
    pub sessions: u64,
}

impl Memory {
    /// What is known of a pattern.
    #[must_use]
    pub fn of(&self, signature: &Signature) -> Option<&Known> {
        self.known.get(signature)
    }

    /// The moves in the order in which to try them: what was kept most often first, then what was never tried; what was
    /// tried twice and never kept is not tried again. [`Move::Off`] stays last, being the end of a direction.
    #[must_use]
    pub fn order(&self, signature: &Signature) -> Vec<Move> {
        let known = self.known.get(signature);
        let tally = |m: &Move| {
            known
                .and_then(|k| k.moves.get(m).copied())
                .unwrap_or_default()
        };
        let mut moves: Vec<Move> = Move::ALL.to_vec();
        moves.retain(|m| tally(m).tried < 2 || tally(m).kept > 0);
        moves.sort_by_key(|m| {
            let t = tally(m);
            let failed = t.tried - t.kept.min(t.tried);
            (*m == Move::Off, std::cmp::Reverse(t.kept), failed)
        });
        moves
    }

    /// Takes up what a session found. `gain`: the sum of the mean log ratios that the knobs brought, at most 0.
    pub fn learn(
        &mut self,
        signature: Signature,
        setting: &Setting,
        gain: f64,
        tallies: &BTreeMap<Move, Tally>,
    ) {
        self.sessions += 1;
        while self.known.len() >= PATTERNS_MAX && !self.known.contains_key(&signature) {
            let oldest = self.known.iter().min_by_key(|(_, k)| k.used);
            let Some(oldest) = oldest.map(|(s, _)| *s) else {
                break;
            };
            self.known.remove(&oldest);
        }
        let known = self.known.entry(signature).or_default();
        known.setting = Setting {
            pins: Vec::new(),
            ..setting.clone()
        };
        known.gain = gain;
        known.sessions += 1;
        known.used = self.sessions;
        for (m, t) in tallies {
            let sum = known.moves.entry(*m).or_default();
            sum.tried += t.tried;
            sum.kept += t.kept;
            sum.broke += t.broke;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::setting::tests::nv;

    fn edges(job: &str, pairs: impl IntoIterator<Item = (u8, u8)>) -> BTreeSet<Edge> {
        let edge = |(a, b): (u8, u8)| Edge {
            job: JobId::new(job),
            src: [10, 0, 0, a].into(),
            dst: [10, 0, 0, b].into(),
        };
        pairs.into_iter().map(edge).collect()
    }

    #[test]
    fn patterns_differ_where_their_settings_do() {
        let ring = edges("ring", (0..8).map(|h| (h, (h + 1) % 8)));
        let incast = edges("incast", (1..9).map(|h| (h, 0)));
        let all = (0..8).flat_map(|a| (0..8).filter(move |b| a != *b).map(move |b| (a, b)));
        let all = edges("moe", all);
        let of = |e: &BTreeSet<Edge>| {
            let s = Signature::of(e);
            (s.incast, s.spread, s.jobs, s.gathering)
        };
        assert_eq!(of(&ring), (0, 0, 0, 0));
        assert_eq!(of(&incast), (3, 0, 0, 1));
        assert_eq!(of(&all), (2, 2, 0, 0));
        assert_eq!(of(&ring.union(&incast).cloned().collect()), (3, 0, 1, 1));
        assert_eq!(of(&BTreeSet::new()), (0, 0, 0, 0));
        // The same pattern on other hosts, one more of them.
        let larger = edges("incast", (11..20).map(|h| (h, 3)));
        assert_eq!(of(&larger), of(&incast));
    }

    #[test]
    fn what_was_kept_comes_first_and_what_failed_twice_no_more() {
        let (setting, _) = nv(1750.0);
        let (mut memory, pattern) = (Memory::default(), Signature::default());
        assert_eq!(memory.order(&pattern), Move::ALL);
        let tally = |tried, kept, broke| Tally { tried, kept, broke };
        let session = [
            (Move::ClimbFaster, tally(2, 1, 0)),
            (Move::MarkLater, tally(1, 0, 1)),
            (Move::Off, tally(1, 0, 1)),
        ];
        memory.learn(pattern, &setting, -0.1, &session.into());
        let order = memory.order(&pattern);
        assert_eq!(
            (order[0], order.len()),
            (Move::ClimbFaster, Move::ALL.len())
        );
        assert_eq!(order[Move::ALL.len() - 1], Move::Off);
        memory.learn(pattern, &setting, -0.1, &session.into());
        let order = memory.order(&pattern);
        assert!(!order.contains(&Move::MarkLater) && !order.contains(&Move::Off));
        let known = memory.of(&pattern).unwrap();
        assert_eq!(
            (known.sessions, known.moves[&Move::ClimbFaster].kept),
            (2, 2)
        );
    }

    #[test]
    fn it_holds_no_more_than_its_limit_and_forgets_what_was_used_longest_ago() {
        let (setting, _) = nv(1750.0);
        let mut memory = Memory::default();
        let pattern = |n: usize| Signature {
            jobs: u32::try_from(n).unwrap(),
            ..Signature::default()
        };
        for n in 0..PATTERNS_MAX {
            memory.learn(pattern(n), &setting, 0.0, &BTreeMap::new());
        }
        memory.learn(pattern(0), &setting, 0.0, &BTreeMap::new());
        memory.learn(pattern(PATTERNS_MAX), &setting, 0.0, &BTreeMap::new());
        assert_eq!(memory.known.len(), PATTERNS_MAX);
        assert!(memory.of(&pattern(0)).is_some());
        assert!(memory.of(&pattern(1)).is_none());
    }
}
