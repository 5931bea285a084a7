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

    /// Adds the newest; returns the oldest if it had to go for it.
    pub fn push(&mut self, item: T) -> Option<T> {
        let dropped = if self.items.len() == self.max {
            self.items.pop_front()
        } else {
            None
        };
        self.dropped += u64::from(dropped.is_some());
        self.items.push_back(item);
        dropped
    }

    #[must_use]
    pub fn newest(&self) -> Option<&T> {
        self.items.back()
    }

    /// The one that is next to be dropped or taken.
    pub fn oldest_mut(&mut self) -> Option<&mut T> {
        self.items.front_mut()
    }

    pub fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
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
