//! What a collective sends, as a graph of messages: each starts when those before it have been delivered.
//!
//! The algorithms are NCCL's in shape: rings in which each rank passes on what it has just received, a binary tree
//! up and down in chunks, all-to-all as one message to each peer. Sizes are those of the buffer that the caller names.

use crate::num::index;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    /// Connection, a position in [`Plan::connections`].
    pub connection: u32,
    /// Messages that must have been delivered before.
    pub after: u32,
    /// Payload.
    pub bytes: u64,
}

/// The messages of one iteration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Number of ranks.
    pub ranks: u32,
    /// Sender and receiver, by rank.
    pub connections: Vec<(u32, u32)>,
    /// Messages.
    pub ops: Vec<Op>,
    next_offsets: Vec<u32>,
    next: Vec<u32>,
    rank_offsets: Vec<u32>,
    by_rank: Vec<u32>,
}

impl Plan {
    /// A plan from its messages and the pairs (before, after) of them.
    #[must_use]
    pub fn new(
        ranks: u32,
        connections: Vec<(u32, u32)>,
        messages: &[(u32, u64)],
        order: &[(u32, u32)],
    ) -> Self {
        let mut ops: Vec<Op> = messages
            .iter()
            .map(|(c, b)| Op {
                connection: *c,
                after: 0,
                bytes: (*b).max(1),
            })
            .collect();
        for (_, after) in order {
            ops[*after as usize].after += 1;
        }
        let (next_offsets, next) = group(ops.len(), order.iter().copied());
        let senders = ops
            .iter()
            .enumerate()
            .map(|(i, o)| (connections[o.connection as usize].0, index(i)));
        let (rank_offsets, by_rank) = group(ranks as usize, senders);
        Self {
            ranks,
            connections,
            ops,
            next_offsets,
            next,
            rank_offsets,
            by_rank,
        }
    }

    /// Messages that wait for this one.
    #[must_use]
    pub fn next(&self, op: u32) -> std::ops::Range<usize> {
        self.next_offsets[op as usize] as usize..self.next_offsets[op as usize + 1] as usize
    }

    pub(crate) fn next_at(&self, at: usize) -> u32 {
        self.next[at]
    }

    /// Messages that a rank sends.
    #[must_use]
    pub fn sent_by(&self, rank: u32) -> std::ops::Range<usize> {
        self.rank_offsets[rank as usize] as usize..self.rank_offsets[rank as usize + 1] as usize
    }

    pub(crate) fn sent_at(&self, at: usize) -> u32 {
        self.by_rank[at]
    }

    /// Payload of all messages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ops.iter().map(|o| o.bytes).sum()
    }

    /// Ring of so many steps in which the buffer goes round in `ranks` pieces.
    fn ring(ranks: u32, bytes: u64, channels: u32, steps: u32) -> Self {
        let piece = (bytes / u64::from(ranks.max(1)) / u64::from(channels.max(1))).max(1);
        let (n, mut connections, mut messages, mut order) =
            (ranks, Vec::new(), Vec::new(), Vec::new());
        if n < 2 {
            return Self::new(n, connections, &messages, &order);
        }
        for channel in 0..channels {
            for r in 0..n {
                connections.push((r, (r + 1) % n));
            }
            let first = index(messages.len());
            for step in 0..steps {
                for r in 0..n {
                    messages.push((channel * n + r, piece));
                    if step > 0 {
                        order.push((
                            first + (step - 1) * n + (r + n - 1) % n,
                            first + step * n + r,
                        ));
                    }
                }
            }
        }
        Self::new(n, connections, &messages, &order)
    }

    /// Ring all-reduce: reduce-scatter, then all-gather, 2(n-1) steps.
    #[must_use]
    pub fn ring_all_reduce(ranks: u32, bytes: u64, channels: u32) -> Self {
        Self::ring(ranks, bytes, channels, 2 * ranks.saturating_sub(1))
    }

    /// Ring all-gather or reduce-scatter of a buffer of so many bytes in all: n-1 steps.
    #[must_use]
    pub fn ring_half(ranks: u32, bytes: u64, channels: u32) -> Self {
        Self::ring(ranks, bytes, channels, ranks.saturating_sub(1))
    }

    /// Tree all-reduce: chunks go up a binary tree and back down; a rank sends up what both its children sent.
    #[must_use]
    pub fn tree_all_reduce(ranks: u32, bytes: u64, chunks: u32) -> Self {
        let (n, chunks) = (ranks, chunks.max(1));
        let piece = (bytes / u64::from(chunks)).max(1);
        let (mut connections, mut messages, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for r in 1..n {
            connections.push((r, (r - 1) / 2));
        }
        for r in 1..n {
            connections.push(((r - 1) / 2, r));
        }
        let edges = n.saturating_sub(1);
        let up = |chunk: u32, r: u32| chunk * 2 * edges + (r - 1);
        let down = |chunk: u32, r: u32| chunk * 2 * edges + edges + (r - 1);
        for chunk in 0..chunks {
            for edge in 0..2 * edges {
                messages.push((edge, piece));
            }
            for r in 1..n {
                let parent = (r - 1) / 2;
                if parent > 0 {
                    order.push((up(chunk, r), up(chunk, parent)));
                    order.push((down(chunk, parent), down(chunk, r)));
                } else {
                    for child in (1..n).take(2) {
                        order.push((up(chunk, child), down(chunk, r)));
                    }
                }
            }
        }
        Self::new(n, connections, &messages, &order)
    }

    /// Every rank sends a piece of its buffer to every other, all at once.
    #[must_use]
    pub fn all_to_all(ranks: u32, bytes: u64) -> Self {
        let piece = (bytes / u64::from(ranks.max(1))).max(1);
        let mut connections = Vec::new();
        for r in 0..ranks {
            for away in 1..ranks {
                connections.push((r, (r + away) % ranks));
            }
        }
        let messages: Vec<(u32, u64)> = (0..index(connections.len())).map(|c| (c, piece)).collect();
        Self::new(ranks, connections, &messages, &[])
    }

    /// Rank 0 receives so many bytes from each other rank.
    #[must_use]
    pub fn incast(ranks: u32, bytes: u64) -> Self {
        let connections: Vec<(u32, u32)> = (1..ranks).map(|r| (r, 0)).collect();
        let messages: Vec<(u32, u64)> = (0..index(connections.len())).map(|c| (c, bytes)).collect();
        Self::new(ranks, connections, &messages, &[])
    }

    /// Activations of each micro-batch go forward through the stages, gradients back.
    #[must_use]
    pub fn pipeline(ranks: u32, bytes: u64, micro_batches: u32) -> Self {
        let edges = ranks.saturating_sub(1);
        let mut connections: Vec<(u32, u32)> = (0..edges).map(|s| (s, s + 1)).collect();
        connections.extend((0..edges).map(|s| (s + 1, s)));
        let (mut messages, mut order) = (Vec::new(), Vec::new());
        for batch in 0..micro_batches {
            let first = batch * 2 * edges;
            for s in 0..edges {
                messages.push((s, bytes));
                if s > 0 {
                    order.push((first + s - 1, first + s));
                }
            }
            for s in 0..edges {
                messages.push((edges + s, bytes));
                // The gradient of stage s+1 follows that of s+2; the last stage's follows its activation.
                order.push(if s + 1 == edges {
                    (first + s, first + edges + s)
                } else {
                    (first + edges + s + 1, first + edges + s)
                });
            }
        }
        Self::new(ranks, connections, &messages, &order)
    }

    /// The first ranks write so many bytes each to the last `storage` ranks, in turn.
    #[must_use]
    pub fn checkpoint(ranks: u32, bytes: u64, storage: u32) -> Self {
        let storage = storage.clamp(1, ranks.max(1));
        let writers = ranks - storage.min(ranks);
        let connections: Vec<(u32, u32)> =
            (0..writers).map(|r| (r, writers + r % storage)).collect();
        let messages: Vec<(u32, u64)> = (0..index(connections.len())).map(|c| (c, bytes)).collect();
        Self::new(ranks, connections, &messages, &[])
    }
}

/// Values by key, as offsets and one list; values of a key stay in their order.
fn group(keys: usize, pairs: impl Iterator<Item = (u32, u32)> + Clone) -> (Vec<u32>, Vec<u32>) {
    let mut offsets = vec![0u32; keys + 1];
    for (key, _) in pairs.clone() {
        offsets[key as usize + 1] += 1;
    }
    for k in 0..keys {
        offsets[k + 1] += offsets[k];
    }
    let mut at = offsets.clone();
    let mut values = vec![0; offsets[keys] as usize];
    for (key, value) in pairs {
        values[at[key as usize] as usize] = value;
        at[key as usize] += 1;
    }
    (offsets, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every message can start at some time: no cycles.
    fn runs_to_its_end(plan: &Plan) -> bool {
        let mut after: Vec<u32> = plan.ops.iter().map(|o| o.after).collect();
        let mut ready: Vec<u32> = (0..index(after.len()))
            .filter(|o| after[*o as usize] == 0)
            .collect();
        let mut done = 0;
        while let Some(op) = ready.pop() {
            done += 1;
            for at in plan.next(op) {
                let next = plan.next_at(at);
                after[next as usize] -= 1;
                if after[next as usize] == 0 {
                    ready.push(next);
                }
            }
        }
        done == plan.ops.len()
    }

    proptest! {
        #[test]
        fn no_plan_waits_for_itself(n in 1u32..40, parts in 1u32..5, bytes in 1u64..10_000_000) {
            for plan in [
                Plan::ring_all_reduce(n, bytes, parts), Plan::ring_half(n, bytes, parts), Plan::tree_all_reduce(n, bytes, parts),
                Plan::all_to_all(n, bytes), Plan::incast(n, bytes), Plan::pipeline(n, bytes, parts), Plan::checkpoint(n, bytes, parts),
            ] {
                prop_assert!(runs_to_its_end(&plan));
                let sent: usize = (0..n).map(|r| plan.sent_by(r).len()).sum();
                prop_assert_eq!(sent, plan.ops.len());
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_algorithms() {
        // A ring sends 2(n-1)/n of the buffer over each edge, a tree the whole of it up and down each edge.
        assert_eq!(
            Plan::ring_all_reduce(16, 4_000_000, 2).bytes(),
            16 * 30 * 250_000
        );
        assert_eq!(Plan::ring_half(16, 4_000_000, 1).bytes(), 16 * 15 * 250_000);
        assert_eq!(
            Plan::tree_all_reduce(16, 4_000_000, 8).bytes(),
            15 * 2 * 4_000_000
        );
        assert_eq!(Plan::all_to_all(16, 4_000_000).bytes(), 16 * 15 * 250_000);
        assert_eq!(Plan::pipeline(4, 1000, 3).bytes(), 3 * 2 * 3 * 1000);
        assert_eq!(Plan::checkpoint(10, 1000, 2).bytes(), 8 * 1000);
    }
}
