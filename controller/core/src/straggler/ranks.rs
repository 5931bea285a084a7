//! One job: calls of its ranks are matched to iterations, and each rank measured beside the others.

mod often;

use super::{CALIBRATED, Kind, LATE_MIN, RANKS_MAX, SPREADS, WINDOW};
use crate::ids::NodeId;
use crate::io::CollectiveDone;
use crate::jobs::{moves_data, only_queues};
use crate::keep::{Keep, keep};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Fewer ranks have no median to stand out from.
const RANKS_MIN: usize = 3;
/// Calls of a rank that wait for the other ranks': samples of a second, with a call each 10 ms.
const CALLS_MAX: usize = 128;
/// A rank that did not call for this long while others did is left out: longer than a step of a large model.
const GONE: Duration = Duration::from_secs(60);
/// How often that is looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// A largest collective that was not called for this long gives way to the next.
const FORGET: Duration = Duration::from_secs(120);
/// Times between bursts kept of a rank; a lost sample makes one of them wrong.
const LENGTHS_MAX: usize = 9;
/// Usual starts kept of a rank.
const STARTS_MAX: usize = 64;
/// Fewer ranks of a node, and fewer nodes, have no median of their own.
const NODE_RANKS_MIN: usize = 3;
const NODES_MIN: usize = 4;
/// No lateness below a millisecond is told from the jitter of a host.
const LATE_MIN_S: f64 = 1e-3;
/// Median absolute deviation to standard deviation, of a normal distribution.
const SCALE: f64 = 1.4826;

#[derive(Debug, Clone, Copy)]
struct Call {
    start: f64,
    seconds: f64,
    /// The first of a burst.
    first: bool,
}

keep!(struct Call { start, seconds, first });

impl Call {
    fn end(&self) -> f64 {
        self.start + self.seconds
    }
}

#[derive(Debug, Clone, Default)]
struct Track {
    node: Option<NodeId>,
    calls: VecDeque<Call>,
    seen: Duration,
    /// End of the newest call (its start, where calls only queue work), and the two longest gaps of late: the longest
    /// may be calls that were lost.
    last: Option<f64>,
    gaps_max: [f64; 2],
    /// Start of the newest burst, and times from one to the next.
    burst: Option<f64>,
    lengths: VecDeque<f64>,
    /// Their median; `None` before the second burst.
    length: Option<f64>,
    /// Starts behind the median of all ranks, of ordinary iterations since the node's clock began anew so often.
    starts: Starts,
    breaks: u32,
}

/// The last usual starts of a rank, as they came and in order, because their median is asked for in each iteration.
#[derive(Debug, Clone, Default)]
struct Starts {
    came: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Starts {
    fn push(&mut self, start: f64) {
        let place =
            |sorted: &[f64], value: f64| sorted.partition_point(|s| s.total_cmp(&value).is_lt());
        if self.came.len() == STARTS_MAX
            && let Some(oldest) = self.came.pop_front()
        {
            self.sorted.remove(place(&self.sorted, oldest));
        }
        self.came.push_back(start);
        self.sorted.insert(place(&self.sorted, start), start);
    }

    fn clear(&mut self) {
        self.came.clear();
        self.sorted.clear();
    }
}

impl Keep for Starts {
    fn put(&self, out: &mut Vec<u8>) {
        self.came.put(out);
    }
    fn take(from: &mut &[u8]) -> Option<Starts> {
        let came: VecDeque<f64> = Keep::take(from)?;
        let mut sorted: Vec<f64> = came.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Starts { came, sorted })
    }
}

keep!(struct Track { node, calls, seen, last, gaps_max, burst, lengths, length, starts, breaks });

impl Track {
    /// The usual start behind the other ranks; `None` before it is calibrated.
    fn usual(&self) -> Option<f64> {
        let sorted = &self.starts.sorted;
        let n = sorted.len();
        (n >= CALIBRATED).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
    }
}

/// What one rank did in the open iteration: sums over its calls.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// Duration short of the median, and start behind it at the first call.
    short_s: f64,
    behind_s: Option<f64>,
}

/// How late, and of which kind; without a kind it does not stand out.
type Lateness = (Option<Kind>, f64);
keep!(struct Part { short_s, behind_s });

#[derive(Debug, Clone, Default)]
struct Iteration {
    threshold_s: f64,
    /// In the order of ranks.
    ranks: Vec<(u32, Lateness)>,
    /// Those of them that stand out: none, as a rule, and all that is asked for at each look.
    late: Vec<Late<u32>>,
    /// The same of the medians of nodes' ranks, of which chance makes less.
    node_threshold_s: f64,
    late_nodes: Vec<Late<NodeId>>,
}

impl Iteration {
    fn lateness(&self, rank: u32) -> Option<Lateness> {
        let place = self.ranks.binary_search_by_key(&rank, |(rank, _)| *rank);
        place.ok().map(|n| self.ranks[n].1)
    }
}

/// Who stands out, how, and by how many seconds.
type Late<K> = (K, Kind, f64);

/// Lateness from which one of these stands out, in seconds.
fn threshold(late: &[f64], middle: f64, length: f64) -> f64 {
    let spread = median(late.iter().map(|l| (l - middle).abs())).unwrap_or(0.0) * SCALE;
    (SPREADS * spread).max(LATE_MIN * length).max(LATE_MIN_S)
}

keep!(struct Iteration { threshold_s, ranks, late, node_threshold_s, late_nodes });

/// The ranks of one job.
#[derive(Debug, Clone, Default)]
pub struct Ranks {
    collective: Option<(Arc<str>, u64)>,
    collective_seen: Duration,
    tracks: BTreeMap<u32, Track>,
    /// Ranks with a call that waits for the others'.
    ready: usize,
    swept: Duration,
    /// In the order of ranks.
    open: Vec<(u32, Part)>,
    /// Median start of the open iteration; lengths of those before it.
    opened: Option<f64>,
    lengths: VecDeque<f64>,
    iterations: VecDeque<Iteration>,
    last_seen: Duration,
    /// Ranks of the communicator, if they are known.
    size: Option<u32>,
    /// When two nodes last called one rank theirs.
    mixed: Option<Duration>,
    refused: u64,
    unmatched: u64,
}

keep!(struct Ranks {
    collective, collective_seen, tracks, ready, swept, open, opened, lengths, iterations, last_seen, size, mixed, refused,
    unmatched,
});

impl Ranks {
    /// A rank's next calls are dated by its node's clock after so many breaks: usual starts from before one mean nothing.
    pub fn dated(&mut self, rank: Option<u32>, breaks: u32) {
        if let Some(track) = rank.and_then(|rank| self.tracks.get_mut(&rank))
            && track.breaks != breaks
        {
            track.breaks = breaks;
            track.starts.clear();
        }
    }

    /// Takes a finished call, in the order of each rank.
    pub fn done(&mut self, node: &NodeId, done: &CollectiveDone, at: Duration) {
        self.last_seen = at;
        let Some(rank) = done.rank.filter(|_| moves_data(&done.op)) else {
            return;
        };
        let bytes = done.bytes.unwrap_or(0);
        if at.saturating_sub(self.collective_seen) > FORGET {
            self.collective = None;
        }
        match &self.collective {
            Some((op, most)) if *most > bytes || (*most == bytes && *op != done.op) => return,
            Some((_, most)) if *most == bytes => {}
            Some(_) | None => {
                *self = Ranks {
                    collective: Some((done.op.clone(), bytes)),
                    last_seen: at,
                    mixed: self.mixed,
                    ..Ranks::default()
                };
            }
        }
        self.collective_seen = at;
        let highest = self.tracks.last_key_value().map(|(rank, _)| *rank);
        if !self.tracks.contains_key(&rank) && self.tracks.len() >= RANKS_MAX {
            self.refused += 1;
            let Some(highest) = highest.filter(|h| *h > rank) else {
                return;
            };
            self.tracks.remove(&highest);
            self.count_ready();
        }
        let queued = self.only_queues();
        self.size = done.ranks.or(self.size);
        let track = self.tracks.entry(rank).or_default();
        if track.node.as_ref() != Some(node) {
            if track.node.is_some() {
                self.mixed = Some(at);
                self.ready -= usize::from(!track.calls.is_empty());
            }
            *track = Track {
                node: Some(node.clone()),
                ..Track::default()
            };
        }
        let start = at.saturating_sub(done.started_before).as_secs_f64();
        let seconds = if queued {
            0.0
        } else {
            done.duration.as_secs_f64()
        };
        let gap = track.last.map_or(0.0, |last| (start - last).max(0.0));
        let [longest, second] = track.gaps_max.map(|g| g * 0.95);
        track.gaps_max = [gap.max(longest), second.max(gap.min(longest))];
        let first = gap * 2.0 >= track.gaps_max[1];
        track.last = Some(start + seconds);
        if first && let Some(burst) = track.burst.replace(start) {
            push(&mut track.lengths, (start - burst).max(0.0), LENGTHS_MAX);
            track.length = median(track.lengths.iter().copied());
        }
        track.seen = at;
        self.ready += usize::from(track.calls.is_empty());
        track.calls.push_back(Call {
            start,
            seconds,
            first,
        });
        if track.calls.len() > CALLS_MAX {
            track.calls.pop_front();
            self.unmatched += 1;
        }
        while self.step(at) {}
    }

    fn only_queues(&self) -> bool {
        self.collective
            .as_ref()
            .is_some_and(|(op, _)| only_queues(op))
    }

    /// Matches one call of each rank; false while one must still come.
    fn step(&mut self, now: Duration) -> bool {
        if self.ready < self.tracks.len() && now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.tracks.retain(|_, t| now.saturating_sub(t.seen) < GONE);
            self.count_ready();
        }
        if self.ready < self.tracks.len().max(RANKS_MIN) {
            return false;
        }
        let heads: Vec<(u32, Call)> = self
            .tracks
            .iter()
            .filter_map(|(r, t)| Some((*r, *t.calls.front()?)))
            .collect();
        let Some(end) = median(heads.iter().map(|(_, c)| c.end())) else {
            return false;
        };
        let firsts = heads.iter().filter(|(_, c)| c.first).count();
        let first = firsts * 2 > heads.len();
        // Half an iteration away is another iteration.
        let lengths = self.tracks.values().filter_map(|t| t.length);
        let apart = median(lengths).map_or(f64::INFINITY, |l| l / 2.0);
        let stale = |c: &Call| c.end() < end - apart || (first && !c.first);
        let ahead = |c: &Call| c.end() > end + apart || (!first && c.first);
        let mut matched = Vec::new();
        let mut dropped = false;
        for (rank, call) in &heads {
            if ahead(call) && !stale(call) {
                continue;
            }
            if stale(call) {
                self.unmatched += 1;
                dropped = true;
            } else {
                matched.push((*rank, *call));
            }
        }
        for (rank, call) in &heads {
            if let Some(track) = self.tracks.get_mut(rank)
                && (stale(call) || (!dropped && !ahead(call)))
            {
                track.calls.pop_front();
            }
        }
        self.count_ready();
        if !dropped {
            self.matched(&matched, first);
        }
        true
    }

    fn count_ready(&mut self) {
        self.ready = self.tracks.values().filter(|t| !t.calls.is_empty()).count();
    }

    /// Takes calls of the same place in the order of calls.
    fn matched(&mut self, calls: &[(u32, Call)], first: bool) {
        let (Some(start), Some(seconds)) = (
            median(calls.iter().map(|(_, c)| c.start)),
            median(calls.iter().map(|(_, c)| c.seconds)),
        ) else {
            return;
        };
        if first {
            self.close(start);
        }
        for (rank, call) in calls {
            let place = self.open.partition_point(|(r, _)| r < rank);
            if self.open.get(place).is_none_or(|(r, _)| r != rank) {
                self.open.insert(place, (*rank, Part::default()));
            }
            let part = &mut self.open[place].1;
            part.short_s += seconds - call.seconds;
            part.behind_s.get_or_insert(call.start - start);
        }
    }

    /// Ends the open iteration where the next one starts, and measures each rank in it.
    fn close(&mut self, next: f64) {
        let open = std::mem::take(&mut self.open);
        let Some(opened) = self.opened.replace(next) else {
            return;
        };
        push(&mut self.lengths, (next - opened).max(0.0), WINDOW);
        let queued = self.only_queues();
        // How late, and the start behind the median.
        let mut late: Vec<(u32, f64, f64)> = Vec::with_capacity(open.len());
        for (rank, part) in &open {
            let behind = part.behind_s.unwrap_or(0.0);
            let Some(track) = self.tracks.get_mut(rank) else {
                continue;
            };
            if !queued {
                late.push((*rank, part.short_s, behind));
                continue;
            }
            match track.usual() {
                Some(usual) => late.push((*rank, behind - usual, behind)),
                None => track.starts.push(behind),
            }
        }
        let (Some(middle), Some(length)) = (
            median(late.iter().map(|(_, late, _)| *late)),
            median(self.lengths.iter().copied()),
        ) else {
            return;
        };
        if late.len() < RANKS_MIN {
            return;
        }
        let all: Vec<f64> = late.iter().map(|(_, late, _)| *late).collect();
        let threshold_s = threshold(&all, middle, length);
        let mut iteration = Iteration {
            threshold_s,
            ranks: Vec::with_capacity(late.len()),
            ..Iteration::default()
        };
        for (rank, late, behind) in late {
            let late = late - middle;
            let Some(track) = self.tracks.get_mut(&rank) else {
                continue;
            };
            let judged = if late > threshold_s {
                (Some(Kind::Compute), late)
            } else if late >= -threshold_s {
                track.starts.push(behind);
                (None, late)
            } else if !queued
                && track
                    .usual()
                    .is_some_and(|u| (behind - u).abs() < -late / 2.0)
            {
                (Some(Kind::Network), -late)
            } else {
                // It came early, as far as one can say.
                (None, 0.0)
            };
            if let (Some(kind), late_s) = judged {
                iteration.late.push((rank, kind, late_s));
            }
            iteration.ranks.push((rank, judged));
        }
        self.compare_nodes(&mut iteration, length);
        push(&mut self.iterations, iteration, WINDOW);
    }

    fn compare_nodes(&self, iteration: &mut Iteration, length: f64) {
        let mut of_node: BTreeMap<&NodeId, Vec<f64>> = BTreeMap::new();
        for (rank, (kind, late_s)) in &iteration.ranks {
            let node = self.tracks.get(rank).and_then(|t| t.node.as_ref());
            if let Some(node) = node.filter(|_| *kind != Some(Kind::Network)) {
                of_node.entry(node).or_default().push(*late_s);
            }
        }
        of_node.retain(|_, ranks| ranks.len() >= NODE_RANKS_MIN);
        let medians = of_node.into_iter();
        let medians: BTreeMap<&NodeId, f64> = medians
            .filter_map(|(node, ranks)| Some((node, median(ranks.into_iter())?)))
            .collect();
        let all: Vec<f64> = medians.values().copied().collect();
        let Some(middle) = median(all.iter().copied()).filter(|_| all.len() >= NODES_MIN) else {
            return;
        };
        iteration.node_threshold_s = threshold(&all, middle, length);
        for (node, late) in medians {
            let late_s = late - middle;
            if late_s > iteration.node_threshold_s {
                let late = (node.clone(), Kind::Compute, late_s);
                iteration.late_nodes.push(late);
            }
        }
    }

    /// When any rank was last heard of.
    #[must_use]
    pub fn last_seen(&self) -> Duration {
        self.last_seen
    }

    /// Calls of ranks beyond [`RANKS_MAX`], and calls to which no others were found.
    #[must_use]
    pub fn left_out(&self) -> (u64, u64) {
        (self.refused, self.unmatched)
    }
}

fn push<T>(series: &mut VecDeque<T>, value: T, most: usize) {
    if series.len() == most {
        series.pop_front();
    }
    series.push_back(value);
}

/// The middle value, or the mean of the two; `None` of nothing.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len() / 2;
    let is_even = values.len().is_multiple_of(2);
    if values.is_empty() {
        return None;
    }
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp);
    let lower = lower.filter(|_| is_even).unwrap_or(*upper);
    Some((lower + *upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn usual_starts_have_the_median_of_the_last_ones(starts in prop::collection::vec(any::<f64>(), 0..200)) {
            let mut track = Track::default();
            for (n, start) in starts.iter().enumerate() {
                track.starts.push(*start);
                let last = &starts[(n + 1).saturating_sub(STARTS_MAX)..=n];
                let expected = median(last.iter().copied()).filter(|_| last.len() >= CALIBRATED);
                prop_assert_eq!(track.usual().map(f64::to_bits), expected.map(f64::to_bits));
            }
        }

        #[test]
        fn a_median_is_the_middle_of_the_sorted_values(values in prop::collection::vec(any::<f64>(), 0..40)) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let middle = sorted.get(values.len() / 2).map(|upper| (sorted[(values.len() - 1) / 2] + upper) / 2.0);
            prop_assert_eq!(median(values.into_iter()).map(f64::to_bits), middle.map(f64::to_bits));
        }
    }
}
