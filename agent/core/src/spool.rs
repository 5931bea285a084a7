//! A bounded queue that keeps the newest.

use std::collections::VecDeque;

/// Holds what the uplink could not take yet.
#[derive(Debug, Clone)]
pub struct Spool<T> {
    items: VecDeque<T>,
    max: usize,
    dropped: u64,
}

impl<T> Spool<T> {
    /// `max` of at least 1.
    #[must_use]
    pub fn new(max: usize) -> Spool<T> {
        Spool {
            items: VecDeque::new(),
            max: max.max(1),
            dropped: 0,
        }
    }

    /// Adds the newest; true if the oldest had to go for it.
    pub fn push(&mut self, item: T) -> bool {
        let full = self.items.len() == self.max;
        if full {
            self.items.pop_front();
            self.dropped += 1;
        }
        self.items.push_back(item);
        full
    }

    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    pub fn clear(&mut self) {
        self.dropped += self.items.len() as u64;
        self.items.clear();
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Items dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_the_rest_is_counted() {
        let mut spool = Spool::new(2);
        for n in 0..5 {
            spool.push(n);
        }
        assert_eq!(
            (spool.pop(), spool.pop(), spool.pop(), spool.dropped()),
            (Some(3), Some(4), None, 3)
        );
    }
}
