//! Who was late in so many of the last iterations that it is no chance: ranks, and nodes.

use super::super::{BRIEF, ITERATIONS_MIN, Kind, SHARE_MIN, Straggler};
use super::{GONE, Iteration, Late, Ranks, median};
use crate::ids::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// What was late often enough: seconds in the median, and in which share of how many iterations.
struct Often {
    late_s: f64,
    share: f64,
    iterations: usize,
}

impl Ranks {
    /// The job's stragglers, the latest first. `None` while nothing can be said: too few iterations or
    /// ranks, calls that only queue work and starts that are not calibrated yet, or several communicators in one
    /// (a rank on two nodes in the last minute, more ranks than there are): they do not wait for each other.
    #[must_use]
    pub fn stragglers(&self) -> Option<Vec<Straggler>> {
        if !self.is_comparable() {
            return None;
        }
        let often = self.often(|i| &i.late);
        let threshold_s = median(self.iterations.iter().map(|i| i.threshold_s))?;
        let mut stragglers = Vec::new();
        for ((rank, kind), often_late) in &often {
            let lost_s = self.lost_s(*kind, |rank| often.contains_key(&(rank, *kind)));
            stragglers.push(self.straggler((*rank, *kind), often_late, threshold_s, lost_s));
        }
        stragglers.sort_by(|a, b| b.late_s.total_cmp(&a.late_s).then(a.rank.cmp(&b.rank)));
        Some(stragglers)
    }

    /// Nodes whose ranks arrive late together, each with its latest rank: by the median of its ranks, which stands out
    /// where the jitter of a single one does not.
    #[must_use]
    pub fn slow_nodes(&self) -> Vec<(NodeId, Straggler)> {
        if !self.is_comparable() {
            return Vec::new();
        }
        let thresholds = self.iterations.iter().map(|i| i.node_threshold_s);
        let threshold_s = median(thresholds).unwrap_or(0.0);
        let often = self.often(|i| &i.late_nodes).into_iter();
        let slow = often.filter_map(|((node, kind), often_late)| {
            let there = |rank: u32| {
                self.tracks
                    .get(&rank)
                    .is_some_and(|t| t.node.as_ref() == Some(&node))
            };
            let late_s = |rank: &u32| {
                let all = self.iterations.iter().filter_map(|i| i.lateness(*rank));
                all.map(|(_, late_s)| late_s).sum::<f64>()
            };
            let ranks = self.tracks.keys().filter(|r| there(**r));
            let latest = ranks.max_by(|a, b| late_s(a).total_cmp(&late_s(b)))?;
            let lost_s = self.lost_s(kind, there);
            let straggler = self.straggler((*latest, kind), &often_late, threshold_s, lost_s);
            Some((node, straggler))
        });
        slow.collect()
    }

    /// Whether there are iterations enough, and not several communicators in one.
    fn is_comparable(&self) -> bool {
        let recent = |at: Duration| self.last_seen.saturating_sub(at) < GONE;
        let too_many = self.size.is_some_and(|n| self.tracks.len() > n as usize);
        self.iterations.len() >= ITERATIONS_MIN && !too_many && !self.mixed.is_some_and(recent)
    }

    /// Who was late in [`SHARE_MIN`] of the iterations, or in nearly all of the newest.
    fn often<K: Ord + Clone>(
        &self,
        of: impl Fn(&Iteration) -> &[Late<K>],
    ) -> BTreeMap<(K, Kind), Often> {
        let all = self.iterations.len();
        let (brief_min, brief) = BRIEF;
        let mut late: BTreeMap<(K, Kind), Vec<(usize, f64)>> = BTreeMap::new();
        for (n, iteration) in self.iterations.iter().enumerate() {
            for (who, kind, late_s) in of(iteration) {
                let times = late.entry((who.clone(), *kind)).or_default();
                times.push((n, *late_s));
            }
        }
        let often = late.into_iter().filter_map(|(who, times)| {
            let newest = times.iter().filter(|(n, _)| n + brief >= all).count();
            let (count, iterations) = if times.len() as f64 >= SHARE_MIN * all as f64 {
                (times.len(), all)
            } else if newest >= brief_min {
                (newest, brief)
            } else {
                return None;
            };
            let late_s = median(times.iter().map(|(_, late_s)| *late_s))?;
            let share = count as f64 / iterations as f64;
            let often = Often {
                late_s,
                share,
                iterations,
            };
            Some((who, often))
        });
        often.collect()
    }

    fn straggler(
        &self,
        (rank, kind): (u32, Kind),
        often: &Often,
        threshold_s: f64,
        lost_s: f64,
    ) -> Straggler {
        let Often {
            late_s,
            share,
            iterations,
        } = *often;
        let length = median(self.lengths.iter().copied()).filter(|l| *l > 0.0);
        Straggler {
            rank,
            kind,
            late_s,
            threshold_s,
            share,
            iterations,
            confidence: share * (1.0 - (threshold_s / late_s).min(1.0).powi(2) / 2.0),
            lost_s,
            effective_ratio: length.map(|l| (1.0 - lost_s / l).clamp(0.0, 1.0)),
        }
    }

    /// Seconds of an iteration, in the mean, for which the latest straggler was later than any other rank.
    fn lost_s(&self, of: Kind, straggles: impl Fn(u32) -> bool) -> f64 {
        let lost = self.iterations.iter().map(|iteration| {
            let worst = |ours: bool| {
                let ranks = iteration.ranks.iter().filter(|(rank, (kind, _))| {
                    straggles(*rank) == ours && kind.is_none_or(|k| k == of)
                });
                ranks.map(|(_, (_, late))| *late).fold(0.0, f64::max)
            };
            (worst(true) - worst(false)).max(0.0)
        });
        lost.sum::<f64>() / self.iterations.len().max(1) as f64
    }

    /// Ranks on the straggler's node that are at least half as late, in the median of the iterations that tell of
    /// it, and all ranks there that were compared; itself is one of both.
    #[must_use]
    pub fn late_beside(&self, straggler: &Straggler) -> (usize, usize) {
        let Some(own) = self.tracks.get(&straggler.rank) else {
            return (0, 0);
        };
        let there = self.tracks.iter().filter(|(_, t)| t.node == own.node);
        let late = there.filter_map(|(rank, _)| {
            let newest = self.iterations.iter().rev().take(straggler.iterations);
            let times = newest.filter_map(|i| i.lateness(*rank));
            median(times.map(|(kind, late_s)| match kind {
                Some(Kind::Network) => 0.0,
                Some(Kind::Compute) | None => late_s,
            }))
        });
        let late: Vec<f64> = late.collect();
        let with_it = late.iter().filter(|l| **l * 2.0 >= straggler.late_s);
        (with_it.count(), late.len())
    }
}
