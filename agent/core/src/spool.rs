//! A bounded queue that keeps the newest.

use std::collections::VecDeque;

/// Holds what the uplink could not take yet.
#[derive(Debug, Clone)]
pub struct Spool<T> {
    /// Each with its weight.
    items: VecDeque<(T, usize)>,
    items_max: usize,
    weight: usize,
    weight_max: usize,
    dropped: u64,
}

impl<T> Spool<T> {
    /// Holds `items_max` items, of `weight_max` together; the newest is held whatever it weighs.
    #[must_use]
    pub fn new(items_max: usize, weight_max: usize) -> Spool<T> {
        Spool {
            items: VecDeque::new(),
            items_max,
            weight: 0,
            weight_max,
            dropped: 0,
        }
    }

    /// Adds the newest; [`Spool::shed`] is then to be called until nothing has to go any more.
    pub fn push(&mut self, item: T, weight: usize) {
        self.items.push_back((item, weight));
        self.weight += weight;
    }

    /// The oldest, if it has to go.
    pub fn shed(&mut self) -> Option<T> {
        let over = self.items.len() > self.items_max || self.weight > self.weight_max;
        if !over || self.items.len() < 2 {
            return None;
        }
        self.dropped += 1;
        self.pop()
    }

    #[must_use]
    pub fn newest(&self) -> Option<&T> {
        self.items.back().map(|(item, _)| item)
    }

    /// The one that is next to be dropped or taken.
    pub fn oldest_mut(&mut self) -> Option<&mut T> {
        self.items.front_mut().map(|(item, _)| item)
    }

    pub fn pop(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight -= weight;
        Some(item)
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
        let mut spool = Spool::new(2, 100);
        for n in 0..5 {
            spool.push(n, 1);
            while spool.shed().is_some() {}
        }
        assert_eq!(
            (spool.pop(), spool.pop(), spool.pop(), spool.dropped()),
            (Some(3), Some(4), None, 3)
        );
    }

    #[test]
    fn heavy_ones_leave_room_for_fewer() {
        let mut spool = Spool::new(100, 10);
        for (n, weight) in [4, 4, 4, 50, 3].into_iter().enumerate() {
            spool.push(n, weight);
            while spool.shed().is_some() {}
        }
        assert_eq!(
            (spool.pop(), spool.pop(), spool.dropped()),
            (Some(4), None, 4)
        );
        spool.push(9, 50);
        assert_eq!((spool.shed(), spool.pop()), (None, Some(9)));
    }
}
