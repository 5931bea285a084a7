//! Whose turn it is: queue pairs of a host, in a fixed order that each turn goes on with.
//!
//! The order is by position, not by when a queue pair became ready: one that its pacing held back for less than a
//! round keeps its turn.

use crate::num::index;

/// A set of positions, taken out one after the other in a circle.
#[derive(Debug, Clone, Default)]
pub struct Round {
    words: Vec<u64>,
    last: usize,
    len: u32,
}

impl Round {
    /// True when it is nobody's turn.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a position that is not in it.
    #[inline]
    pub fn insert(&mut self, position: u32) {
        let at = position as usize;
        if at / 64 >= self.words.len() {
            self.words.resize(at / 64 + 1, 0);
        }
        debug_assert!(self.words[at / 64] & (1 << (at % 64)) == 0);
        self.words[at / 64] |= 1 << (at % 64);
        self.len += 1;
    }

    /// Takes out the first position after the last one taken.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let start = self.last + 1;
        let words = self.words.len();
        let mut word = (start / 64) % words;
        let mut bits = if start / 64 < words {
            self.words[word] & (u64::MAX << (start % 64))
        } else {
            self.words[word]
        };
        while bits == 0 {
            word = (word + 1) % words;
            bits = self.words[word];
        }
        let at = word * 64 + bits.trailing_zeros() as usize;
        self.words[word] &= !(1 << (at % 64));
        self.len -= 1;
        self.last = at;
        Some(index(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn goes_round_as_a_sorted_set_does(ops in proptest::collection::vec((0u32..200, any::<bool>()), 1..300)) {
            let (mut round, mut set, mut last) = (Round::default(), BTreeSet::new(), 0u32);
            for (position, take) in ops {
                if take {
                    let want = set.range(last + 1..).next().or_else(|| set.iter().next()).copied();
                    prop_assert_eq!(round.take(), want);
                    if let Some(at) = want {
                        set.remove(&at);
                        last = at;
                    }
                } else if set.insert(position) {
                    round.insert(position);
                }
                prop_assert_eq!(round.is_empty(), set.is_empty());
            }
        }
    }
}
