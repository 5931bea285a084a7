//! The event queue: a wheel of narrow slots for what is near, a heap for what is far.
//!
//! Packets travel microseconds, so nearly every event falls into the wheel and is added to a list; a slot is
//! sorted when its turn comes. Events come out by time and, at the same time, in the order in which they were
//! put in: that makes a run depend on its seed alone.

use crate::time::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A slot is 2^13 ps = 8 ns wide: a few events each on a busy fabric.
const SLOT_BITS: u32 = 13;
/// 8192 slots reach 67 us ahead: beyond propagation, queueing on a port and pacing of most queue pairs.
const SLOTS: usize = 8192;
const NONE: u32 = u32::MAX;

/// Something that will happen. Plain numbers, so that the queue stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<E> {
    /// When.
    pub time: Time,
    seq: u64,
    /// What.
    pub event: E,
}

#[derive(Clone)]
struct Far<E>(Entry<E>);

impl<E> PartialEq for Far<E> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}
impl<E> Eq for Far<E> {}
impl<E> PartialOrd for Far<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Far<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(&other.0.key())
    }
}

impl<E> Entry<E> {
    fn key(&self) -> (Time, u64) {
        (self.time, self.seq)
    }
}

/// The queue.
#[derive(Clone)]
pub struct Wheel<E> {
    /// For each slot, the list that holds its entries.
    slots: Vec<u32>,
    occupied: Vec<u64>,
    lists: Vec<Vec<Entry<E>>>,
    /// Lists that are empty. There are only as many as slots were occupied at once.
    spare: Vec<u32>,
    /// Entries of the slot whose turn it is, the next one last.
    now: Vec<Entry<E>>,
    /// Entries that were put in for this slot or earlier while its turn was.
    late: BinaryHeap<Reverse<Far<E>>>,
    slot: u64,
    far: BinaryHeap<Reverse<Far<E>>>,
    seq: u64,
    near: usize,
}

impl<E: Copy> Default for Wheel<E> {
    fn default() -> Self {
        Self {
            slots: vec![NONE; SLOTS],
            occupied: vec![0; SLOTS / 64],
            lists: Vec::new(),
            spare: Vec::new(),
            now: Vec::new(),
            late: BinaryHeap::new(),
            slot: 0,
            far: BinaryHeap::new(),
            seq: 0,
            near: 0,
        }
    }
}

impl<E: Copy> Wheel<E> {
    /// Entries held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.now.len() + self.late.len() + self.near + self.far.len()
    }

    /// True when nothing will happen any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an event.
    #[inline]
    pub fn push(&mut self, time: Time, event: E) {
        self.seq += 1;
        let entry = Entry {
            time,
            seq: self.seq,
            event,
        };
        let slot = time >> SLOT_BITS;
        if slot <= self.slot {
            self.late.push(Reverse(Far(entry)));
        } else if slot - self.slot < SLOTS as u64 {
            self.link(slot, entry);
        } else {
            self.far.push(Reverse(Far(entry)));
        }
    }

    /// Takes the next event if it is not after `until`.
    #[inline]
    pub fn pop(&mut self, until: Time) -> Option<Entry<E>> {
        loop {
            let late = self.late.peek().map(|Reverse(Far(e))| e.key());
            match (self.now.last(), late) {
                (Some(a), late) if late.is_none_or(|b| a.key() < b) => {
                    return if a.time <= until {
                        self.now.pop()
                    } else {
                        None
                    };
                }
                (None, None) => {
                    if !self.advance() {
                        return None;
                    }
                }
                _ => return self.pop_late(until),
            }
        }
    }

    fn pop_late(&mut self, until: Time) -> Option<Entry<E>> {
        let Reverse(Far(first)) = self.late.peek()?;
        if first.time > until {
            return None;
        }
        self.late.pop().map(|Reverse(Far(entry))| entry)
    }

    #[inline]
    fn link(&mut self, slot: u64, entry: Entry<E>) {
        let s = crate::num::position(slot % SLOTS as u64);
        if self.slots[s] == NONE {
            self.slots[s] = self.spare.pop().unwrap_or_else(|| {
                self.lists.push(Vec::new());
                crate::num::index(self.lists.len() - 1)
            });
            self.occupied[s / 64] |= 1 << (s % 64);
        }
        self.lists[self.slots[s] as usize].push(entry);
        self.near += 1;
    }

    /// Moves to the next slot that holds something. False when there is none.
    fn advance(&mut self) -> bool {
        let near = if self.near == 0 {
            None
        } else {
            self.next_slot()
        };
        let far = self.far.peek().map(|Reverse(Far(e))| e.time >> SLOT_BITS);
        let Some(slot) = (match (near, far) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }) else {
            return false;
        };
        self.slot = slot;
        while let Some(Reverse(Far(e))) = self.far.peek() {
            let s = e.time >> SLOT_BITS;
            if s >= slot + SLOTS as u64 {
                break;
            }
            let Some(Reverse(Far(entry))) = self.far.pop() else {
                break;
            };
            self.link(s, entry);
        }
        let s = crate::num::position(slot % SLOTS as u64);
        let list = std::mem::replace(&mut self.slots[s], NONE);
        self.occupied[s / 64] &= !(1 << (s % 64));
        if list != NONE {
            // The list that `now` was goes back empty, with its room.
            std::mem::swap(&mut self.now, &mut self.lists[list as usize]);
            self.spare.push(list);
            self.near -= self.now.len();
        }
        if self.now.len() > 1 {
            self.now.sort_unstable_by_key(|e| Reverse(e.key()));
        }
        true
    }

    /// The first occupied slot after the current one, as an absolute number.
    fn next_slot(&self) -> Option<u64> {
        let start = crate::num::position((self.slot + 1) % SLOTS as u64);
        let words = self.occupied.len();
        let mut word = start / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (start % 64));
        for _ in 0..=words {
            if bits != 0 {
                let s = (word * 64) as u64 + u64::from(bits.trailing_zeros());
                let ahead = (s + SLOTS as u64 - start as u64) % SLOTS as u64;
                return Some(self.slot + 1 + ahead);
            }
            word = (word + 1) % words;
            bits = self.occupied[word];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the plain definition: by time, then by the order of insertion, with insertions in between.
        #[test]
        fn comes_out_in_order(ops in proptest::collection::vec((0u64..200_000_000, 0u8..4), 1..400)) {
            let mut wheel = Wheel::default();
            let mut model: Vec<(Time, u32)> = Vec::new();
            let mut now = 0;
            for (i, (ahead, pops)) in ops.iter().enumerate() {
                let id = crate::num::index(i);
                wheel.push(now + ahead, id);
                model.push((now + ahead, id));
                for _ in 0..*pops {
                    model.sort();
                    let got = wheel.pop(Time::MAX).map(|e| (e.time, e.event));
                    let want = if model.is_empty() { None } else { Some(model.remove(0)) };
                    prop_assert_eq!(got, want);
                    now = got.map_or(now, |g| g.0);
                }
            }
            model.sort();
            for want in model {
                prop_assert_eq!(wheel.pop(Time::MAX).map(|e| (e.time, e.event)), Some(want));
            }
            prop_assert!(wheel.is_empty());
        }
    }

    #[test]
    fn keeps_what_is_after_the_limit() {
        let mut wheel = Wheel::default();
        wheel.push(1_000_000_000, 1u32);
        assert_eq!(wheel.pop(999_999_999).map(|e| e.event), None);
        wheel.push(5, 2);
        assert_eq!(wheel.pop(999_999_999).map(|e| e.event), Some(2));
        assert_eq!(wheel.pop(1_000_000_000).map(|e| e.event), Some(1));
    }
}
