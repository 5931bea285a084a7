//! What a replay has to know of the health of nodes: in a healthy fleet the gauges, and each node's place among its peers.

use super::alarm::Alarms;
use super::peers::Peer;
use super::reference::References;
use super::{Bounces, Health, Node, watch};
use crate::ids::NodeId;
use crate::io::Role;
use crate::keep::keep;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is known of all nodes, less what their columns tell.
#[derive(Debug, Clone)]
pub struct Memory {
    nodes: BTreeMap<NodeId, OfNode>,
    next_step: Duration,
}

#[derive(Debug, Clone)]
struct OfNode {
    role: Role,
    connected: bool,
    connected_at: Duration,
    settled_at: Option<Duration>,
    link_moved: Duration,
    last_sample: Duration,
    interval: Duration,
    since_gauges: Duration,
    watches: watch::Memory,
    alarms: Alarms,
    peer: Peer,
    bounces: Vec<Bounces>,
}

keep!(struct Memory { nodes, next_step });
keep!(struct OfNode {
    role, connected, connected_at, settled_at, link_moved, last_sample, interval, since_gauges, watches, alarms, peer,
    bounces,
});
keep!(struct Bounces { event, port, bucket, last });

impl Health {
    #[must_use]
    pub fn memory(&self) -> Memory {
        let nodes = self.nodes.iter();
        Memory {
            nodes: nodes
                .map(|(id, node)| (id.clone(), node.memory()))
                .collect(),
            next_step: self.next_step,
        }
    }

    /// Goes on from what other nodes of the same columns held; those that are not among them are forgotten.
    pub fn remember(&mut self, memory: Memory) {
        let Memory { nodes, next_step } = memory;
        let others = self.nodes.keys().filter(|id| !nodes.contains_key(*id));
        for id in others.cloned().collect::<Vec<_>>() {
            self.forget(&id);
        }
        for (id, of_node) in nodes {
            if !self.nodes.contains_key(&id) {
                self.connected(&id, of_node.role, of_node.connected_at);
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                node.remember(of_node, &mut self.references);
            }
        }
        let those = |is: fn(&Node) -> bool| {
            let nodes = self.nodes.iter().filter(|(_, node)| is(node));
            nodes.map(|(id, _)| id.clone()).collect()
        };
        self.troubled = those(|node| !node.alarms.is_quiet());
        self.outliers = those(|node| node.peer.is_outlier());
        self.next_step = next_step;
    }
}

impl Node {
    fn memory(&self) -> OfNode {
        OfNode {
            role: self.role,
            connected: self.connected,
            connected_at: self.connected_at,
            settled_at: self.settled_at,
            link_moved: self.link_moved,
            last_sample: self.last_sample,
            interval: self.interval,
            since_gauges: self.since_gauges,
            watches: self.watches.memory(),
            alarms: self.alarms.clone(),
            peer: self.peer.memory(),
            bounces: self.bounces.clone(),
        }
    }

    fn remember(&mut self, memory: OfNode, references: &mut References) {
        let OfNode {
            role,
            connected,
            connected_at,
            settled_at,
            link_moved,
            last_sample,
            interval,
            since_gauges,
            watches,
            alarms,
            peer,
            bounces,
        } = memory;
        self.watches.remember(watches, references);
        self.peer.remember(peer);
        *self = Node {
            role,
            connected,
            connected_at,
            settled_at,
            link_moved,
            last_sample,
            interval,
            since_gauges,
            watches: std::mem::take(&mut self.watches),
            alarms,
            peer: std::mem::take(&mut self.peer),
            bounces,
        };
    }
}
