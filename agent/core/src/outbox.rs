//! What must reach the controller at least once: numbered, kept until it is acknowledged, told again
//! in the next stream.
//!
//! ```text
//! push ──> waiting ──give──> given to this stream ──taken──> gone
//!             ^                       │
//!             └───────opened──────────┘   (the stream before broke)
//! ```
//!
//! Numbers rise and are given in order, so the other side knows a repeat by one number alone. When
//! the queue is full the oldest of the lowest rank goes, and is counted: it may have arrived without
//! an acknowledgement, so the count is never too low.

use std::collections::{BTreeMap, VecDeque};

/// Why something had to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The queue ran full while there was no stream.
    NoUplink,
    /// It ran full although there was one: the other side does not acknowledge in time.
    NotTaken,
}

impl Reason {
    pub const ALL: [Reason; 2] = [Reason::NoUplink, Reason::NotTaken];

    /// As labels have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::NoUplink => "no_uplink",
            Reason::NotTaken => "not_taken",
        }
    }
}

#[derive(Debug, Clone)]
struct Waiting<T, R> {
    seq: u64,
    rank: R,
    item: T,
}

/// The stream that is open.
#[derive(Debug, Clone, Copy)]
struct Stream {
    acknowledges: bool,
    /// Number of the last item that it was given.
    given: u64,
}

/// A bounded queue of items with a rank; the higher the rank, the later it has to go.
#[derive(Debug, Clone)]
pub struct Outbox<T, R> {
    /// Ascending by number.
    waiting: VecDeque<Waiting<T, R>>,
    items_max: usize,
    last: u64,
    stream: Option<Stream>,
    dropped: BTreeMap<(Reason, R), u64>,
}

impl<T: Clone, R: Copy + Ord> Outbox<T, R> {
    /// Holds `items_max` items.
    #[must_use]
    pub fn new(items_max: usize) -> Outbox<T, R> {
        Outbox {
            waiting: VecDeque::new(),
            items_max,
            last: 0,
            stream: None,
            dropped: BTreeMap::new(),
        }
    }

    /// Numbers an item, from 1, and keeps it.
    pub fn push(&mut self, rank: R, item: T) {
        self.last += 1;
        let seq = self.last;
        self.waiting.push_back(Waiting { seq, rank, item });
        if self.waiting.len() <= self.items_max {
            return;
        }
        // The first of several that are equally low.
        let lowest = self.waiting.iter().enumerate().min_by_key(|(_, w)| w.rank);
        let lowest = lowest.map(|(place, _)| place);
        if let Some(gone) = lowest.and_then(|place| self.waiting.remove(place)) {
            let reason = match self.stream {
                Some(_) => Reason::NotTaken,
                None => Reason::NoUplink,
            };
            *self.dropped.entry((reason, gone.rank)).or_default() += 1;
        }
    }

    /// A stream was accepted: it is given everything that waits. A peer that acknowledges nothing is
    /// told each item once.
    pub fn opened(&mut self, acknowledges: bool) {
        self.stream = Some(Stream {
            acknowledges,
            given: 0,
        });
    }

    /// The stream is gone.
    pub fn closed(&mut self) {
        self.stream = None;
    }

    /// The next items for the stream with their numbers, `most` of them; none without a stream.
    pub fn give(&mut self, most: usize) -> Vec<(u64, T)> {
        let Some(stream) = &mut self.stream else {
            return Vec::new();
        };
        let start = self.waiting.partition_point(|w| w.seq <= stream.given);
        let next = self.waiting.iter().skip(start).take(most);
        let given: Vec<(u64, T)> = next.map(|w| (w.seq, w.item.clone())).collect();
        if let Some((seq, _)) = given.last() {
            stream.given = *seq;
            if !stream.acknowledges {
                self.taken(*seq);
            }
        }
        given
    }

    /// The other side has everything up to `seq`, as far as this stream was given it.
    pub fn taken(&mut self, seq: u64) {
        let given = self.stream.map_or(0, |stream| stream.given);
        let first = self.waiting.partition_point(|w| w.seq <= seq.min(given));
        self.waiting.drain(..first);
    }

    /// Items that are not acknowledged, with their ranks.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = (R, &T)> {
        self.waiting.iter().map(|w| (w.rank, &w.item))
    }

    /// Items that had to go, by reason and rank.
    #[must_use]
    pub fn dropped(&self) -> &BTreeMap<(Reason, R), u64> {
        &self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_not_acknowledged_is_told_again_in_the_next_stream() {
        let mut outbox = Outbox::new(9);
        "abc".chars().for_each(|c| outbox.push(0, c));
        assert_eq!(outbox.give(9), []);
        outbox.opened(true);
        assert_eq!(outbox.give(2), [(1, 'a'), (2, 'b')]);
        assert_eq!(outbox.give(2), [(3, 'c')]);
        assert_eq!(outbox.give(2), []);
        outbox.taken(1);
        outbox.closed();
        outbox.opened(true);
        assert_eq!(outbox.give(9), [(2, 'b'), (3, 'c')]);
        outbox.taken(3);
        assert_eq!(outbox.waiting().len(), 0);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_given_takes_nothing() {
        let mut outbox = Outbox::new(9);
        outbox.push(0, 'a');
        outbox.taken(u64::MAX);
        outbox.opened(true);
        outbox.taken(u64::MAX);
        assert_eq!(outbox.give(9), [(1, 'a')]);
    }

    #[test]
    fn a_peer_without_acknowledgements_is_told_once() {
        let mut outbox = Outbox::new(9);
        "ab".chars().for_each(|c| outbox.push(0, c));
        outbox.opened(false);
        assert_eq!(outbox.give(1), [(1, 'a')]);
        outbox.closed();
        outbox.opened(false);
        assert_eq!(outbox.give(9), [(2, 'b')]);
    }

    #[test]
    fn the_oldest_of_the_lowest_goes_and_is_counted() {
        let mut outbox = Outbox::new(2);
        for (rank, item) in [(1, 'a'), (0, 'b'), (2, 'c'), (1, 'd'), (0, 'e')] {
            outbox.push(rank, item);
        }
        outbox.opened(true);
        assert_eq!(outbox.give(9), [(3, 'c'), (4, 'd')]);
        outbox.push(2, 'f');
        outbox.push(2, 'g');
        let counted = [
            ((Reason::NoUplink, 0), 2),
            ((Reason::NoUplink, 1), 1),
            ((Reason::NotTaken, 1), 1),
            ((Reason::NotTaken, 2), 1),
        ];
        assert_eq!(*outbox.dropped(), counted.into());
    }

    proptest! {
        /// Nothing of a rank goes while there is something of a lower one.
        #[test]
        fn the_highest_ranks_are_kept(ranks in prop::collection::vec(0u8..3, 0..40), room in 1usize..10) {
            let mut outbox = Outbox::new(room);
            for (n, rank) in ranks.iter().enumerate() {
                outbox.push(*rank, n);
            }
            let mut kept: Vec<u8> = outbox.waiting().map(|(rank, _)| rank).collect();
            kept.sort_unstable();
            let mut best = ranks.clone();
            best.sort_unstable();
            prop_assert_eq!(&kept[..], &best[best.len().saturating_sub(room)..]);
            let dropped: u64 = outbox.dropped().values().sum();
            prop_assert_eq!(dropped + kept.len() as u64, ranks.len() as u64);
        }
    }
}
