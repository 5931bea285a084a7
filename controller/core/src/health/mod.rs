//! What the counters, gauges and events of single devices say about their health.

use crate::ids::NodeId;
use crate::io::{Column, NodeEvent};
use crate::topology::Topology;
use crate::verdict::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weir_signal::{Entity, Signal};

/// Health of every device of every node.
#[derive(Debug, Clone, Default)]
pub struct Health {
    nodes: BTreeMap<NodeId, Arc<[Column]>>,
}

/// Whether the core wants values of this column: what it does not look at costs nothing.
#[must_use]
pub fn watches(entity: Entity, _signal: Signal) -> bool {
    matches!(entity, Entity::Port | Entity::Rdma | Entity::Gpu)
}

impl Health {
    /// The node's stream begins.
    pub fn connected(&mut self, _node: &NodeId, _now: Duration) {}

    /// The node's stream ended.
    pub fn lost(&mut self, _node: &NodeId, _now: Duration) {}

    /// The node is no part of the fabric any more.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// What the values that follow are.
    pub fn declared(&mut self, node: &NodeId, columns: Arc<[Column]>, _now: Duration) {
        self.nodes.insert(node.clone(), columns);
    }

    /// Values in the order of the columns.
    pub fn sampled(
        &mut self,
        _node: &NodeId,
        _values: &[Option<u64>],
        _elapsed: Option<Duration>,
        _now: Duration,
    ) {
    }

    /// An agent saw something happen.
    pub fn event_seen(&mut self, _node: &NodeId, _event: NodeEvent, _now: Duration) {}

    /// What is wrong now.
    pub fn verdicts(&mut self, _topology: &Topology, _now: Duration) -> Vec<Verdict> {
        Vec::new()
    }
}
