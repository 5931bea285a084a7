//! What the core holds and cannot measure again, as bytes: incidents and trials, and of each detector what it has
//! seen so far.
//!
//! A segment of a recording begins with it, so that a replay can start there and decide the same from the first
//! event on. Left out is what says nothing (links at rest, values that are as they should be) and what is
//! asked for again (paths). See docs/decisions/0006-a-replay-starts-at-any-segment.md.

use crate::cables;
use crate::cabling::Cabling;
use crate::engine::Node;
use crate::flows;
use crate::health;
use crate::ids::{NodeId, PortId};
use crate::incident::Incidents;
use crate::infer::Inference;
use crate::jobs::Jobs;
use crate::keep::keep;
use crate::links::Track;
use crate::losses::Losses;
use crate::silent::Silent;
use crate::straggler::Stragglers;
use crate::trial::{Cause, Trial};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What is not measured again.
#[derive(Debug, Clone)]
pub struct Memory {
    pub next_lease: u64,
    pub next_tick: Duration,
    pub frozen: bool,
    pub incidents: Incidents,
    pub trials: VecDeque<Trial>,
    pub given_back: BTreeMap<Cause, u64>,
    pub jobs: Jobs,
    pub inference: Inference,
    pub nodes: BTreeMap<NodeId, Node>,
    /// Links that no plan names, in the order of their numbers: verdicts of one moment come in it.
    pub found_links: Vec<PortId>,
    /// Of links that are not at rest.
    pub tracks: Vec<(PortId, Track)>,
    /// Members of groups that ports were in, as [`crate::topology::Topology::shared_group`] remembers them.
    pub parted: BTreeMap<PortId, Vec<Arc<str>>>,
    pub losses: Losses,
    pub flows: flows::Memory,
    pub health: health::Memory,
    pub silent: Silent,
    pub cables: cables::Memory,
    pub cabling: Cabling,
    pub stragglers: Stragglers,
}

keep!(struct Memory {
    next_lease, next_tick, frozen, incidents, trials, given_back, jobs, inference, nodes, found_links, tracks, parted, losses, flows, health, silent, cables,
    cabling, stragglers,
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::{from_bytes, to_bytes};
    use proptest::prelude::*;

    proptest! {
        /// Damaged bytes are refused or are another memory; they never upset the reader.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(memory) = from_bytes::<Memory>(&bytes) {
                prop_assert_eq!(to_bytes(&memory), bytes);
            }
        }
    }
}
