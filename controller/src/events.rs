//! What nodes saw happen, kept for readers: each event once, and no node's at the expense of others.
//!
//! Pure: no clock, no IO. An agent tells an event until it is acknowledged; its numbers rise within
//! one instance of the agent, so the last one taken tells a repeat. Room is bounded for each node and
//! for all together. When a node has its share, its oldest event of the lowest severity goes; when all
//! have theirs, that of the node with the most events of the lowest severity that anyone has.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use weir_controller_core::topology::NODES_MAX;
use weir_wire::v1;

/// A node that has more to tell in a day is broken, and its last events say how.
const EVENTS_OF_NODE_MAX: usize = 256;
/// Of all nodes: one for each of the most nodes; 8 MiB at 500 bytes each.
const EVENTS_MAX: usize = 16_384;

/// How bad an event is; what an older agent leaves open is no more than information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub const ALL: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];

    #[must_use]
    pub fn of(event: &v1::Event) -> Severity {
        match event.severity() {
            v1::Severity::Critical => Severity::Critical,
            v1::Severity::Warning => Severity::Warning,
            v1::Severity::Info | v1::Severity::Unspecified => Severity::Info,
        }
    }

    /// As the API and labels have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Why an event is not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    NodeFull,
    Full,
    /// The node was lost, and its place was needed for another.
    NodeForgotten,
}

impl Reason {
    pub const ALL: [Reason; 3] = [Reason::NodeFull, Reason::Full, Reason::NodeForgotten];

    /// As labels have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::NodeFull => "node_full",
            Reason::Full => "full",
            Reason::NodeForgotten => "node_forgotten",
        }
    }
}

/// Something that a node's agent saw happen.
#[derive(Debug, Clone)]
pub struct NodeEvent {
    /// Arrival of the frame that told it.
    pub at: Duration,
    pub event: v1::Event,
}

impl NodeEvent {
    /// How long before its arrival it was seen: an agent keeps what it cannot send.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_micros(self.event.age_us)
    }
}

#[derive(Debug, Default)]
struct OfNode {
    instance: u64,
    /// Number of the last event taken of this instance.
    taken: u64,
    /// When it was lost, in the order of such losses; `None` while it is connected.
    lost: Option<u64>,
    /// By severity, the oldest first.
    events: BTreeMap<Severity, VecDeque<NodeEvent>>,
}

impl OfNode {
    fn len(&self) -> usize {
        self.events.values().map(VecDeque::len).sum()
    }

    fn lowest(&self) -> Option<Severity> {
        let held = self.events.iter().filter(|(_, events)| !events.is_empty());
        held.map(|(severity, _)| *severity).next()
    }
}

/// Of each node, the instance of its agent and the number of its last event that was taken.
pub type Memory = BTreeMap<Arc<str>, (u64, u64)>;

/// The events of all nodes.
#[derive(Debug)]
pub struct NodeEvents {
    of_node_max: usize,
    events_max: usize,
    nodes: BTreeMap<Arc<str>, OfNode>,
    /// Nodes with events of a severity, by their number.
    fullest: BTreeMap<Severity, BTreeSet<(usize, Arc<str>)>>,
    held: usize,
    losses: u64,
    repeated: u64,
    taken: BTreeMap<Severity, u64>,
    dropped: BTreeMap<(Reason, Severity), u64>,
}

impl Default for NodeEvents {
    fn default() -> NodeEvents {
        NodeEvents::new(EVENTS_OF_NODE_MAX, EVENTS_MAX)
    }
}

impl NodeEvents {
    /// Holds `of_node_max` events of each node and `events_max` of all.
    #[must_use]
    pub fn new(of_node_max: usize, events_max: usize) -> NodeEvents {
        NodeEvents {
            of_node_max,
            events_max,
            nodes: BTreeMap::new(),
            fullest: BTreeMap::new(),
            held: 0,
            losses: 0,
            repeated: 0,
            taken: BTreeMap::new(),
            dropped: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn memory(&self) -> Memory {
        let nodes = self.nodes.iter();
        nodes
            .map(|(node, known)| (node.clone(), (known.instance, known.taken)))
            .collect()
    }

    /// What was taken there is a repetition here.
    pub fn remember(&mut self, memory: Memory) {
        for (node, (instance, taken)) in memory {
            let known = self.nodes.entry(node).or_default();
            (known.instance, known.taken) = (instance, taken);
        }
    }

    /// An agent connected; another instance numbers its events anew.
    pub fn connected(&mut self, node: &str, instance: u64) {
        if !self.nodes.contains_key(node) && self.nodes.len() >= NODES_MAX {
            self.forget_one();
        }
        let known = self.nodes.entry(node.into()).or_default();
        known.lost = None;
        if known.instance != instance {
            (known.instance, known.taken) = (instance, 0);
        }
    }

    /// The node's stream ended. What it told stays.
    pub fn lost(&mut self, node: &str) {
        if let Some(known) = self.nodes.get_mut(node) {
            self.losses += 1;
            known.lost = Some(self.losses);
        }
    }

    /// Takes an event of a connected node; gives whether it is new.
    pub fn take(&mut self, node: &str, event: v1::Event, now: Duration) -> bool {
        let Some(known) = self.nodes.get_mut(node) else {
            return false;
        };
        if event.seq > 0 && event.seq <= known.taken {
            self.repeated += 1;
            return false;
        }
        known.taken = known.taken.max(event.seq);
        *self.taken.entry(Severity::of(&event)).or_default() += 1;
        self.add(node, NodeEvent { at: now, event });
        true
    }

    fn add(&mut self, node: &str, event: NodeEvent) {
        let severity = Severity::of(&event.event);
        let Some((name, known)) = self.nodes.get_key_value(node) else {
            return;
        };
        let name = Arc::clone(name);
        let evicted = if known.len() >= self.of_node_max {
            known.lowest().map(|s| (Reason::NodeFull, s, name.clone()))
        } else if self.held >= self.events_max {
            let mut lowest = self.fullest.iter().filter(|(_, nodes)| !nodes.is_empty());
            let lowest = lowest.next();
            lowest.and_then(|(s, nodes)| Some((Reason::Full, *s, nodes.last()?.1.clone())))
        } else {
            None
        };
        match evicted {
            Some((reason, lowest, _)) if severity < lowest => {
                *self.dropped.entry((reason, severity)).or_default() += 1;
                return;
            }
            Some((reason, lowest, fullest)) => {
                self.change(&fullest, lowest, |events| drop(events.pop_front()));
                *self.dropped.entry((reason, lowest)).or_default() += 1;
            }
            None => {}
        }
        self.change(&name, severity, |events| events.push_back(event));
    }

    /// Changes a node's events of one severity and keeps the counts.
    fn change(
        &mut self,
        node: &Arc<str>,
        severity: Severity,
        change: impl FnOnce(&mut VecDeque<NodeEvent>),
    ) {
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        let events = known.events.entry(severity).or_default();
        let before = events.len();
        change(events);
        let after = events.len();
        self.held = self.held - before + after;
        let fullest = self.fullest.entry(severity).or_default();
        fullest.remove(&(before, node.clone()));
        if after > 0 {
            fullest.insert((after, node.clone()));
        }
    }

    /// Makes room for a node: the one that was lost longest ago goes.
    fn forget_one(&mut self) {
        let lost = self
            .nodes
            .iter()
            .filter_map(|(name, n)| Some((n.lost?, name)));
        let Some(name) = lost.min().map(|(_, name)| name.clone()) else {
            return;
        };
        for severity in Severity::ALL {
            let mut gone = 0;
            self.change(&name, severity, |events| {
                gone = events.len() as u64;
                events.clear();
            });
            if gone > 0 {
                let reason = (Reason::NodeForgotten, severity);
                *self.dropped.entry(reason).or_default() += gone;
            }
        }
        self.nodes.remove(&name);
    }

    /// Node and event, the newest first, by when they were seen.
    #[must_use]
    pub fn newest_first(&self) -> Vec<(&str, &NodeEvent)> {
        let mut all = Vec::with_capacity(self.held);
        for (name, node) in &self.nodes {
            let events = node.events.values().flatten();
            all.extend(events.map(|event| (name.as_ref(), event)));
        }
        // When it was seen may lie before the controller's start.
        let seen_us = |e: &NodeEvent| e.at.as_micros().cast_signed() - i128::from(e.event.age_us);
        all.sort_by_key(|(_, e)| Reverse((seen_us(e), e.event.seq)));
        all
    }

    /// Events told more than once.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Events taken, by severity.
    #[must_use]
    pub fn taken(&self) -> &BTreeMap<Severity, u64> {
        &self.taken
    }

    /// Events that are not kept any more.
    #[must_use]
    pub fn dropped(&self) -> &BTreeMap<(Reason, Severity), u64> {
        &self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(seq: u64, severity: v1::Severity) -> v1::Event {
        v1::Event {
            seq,
            severity: severity.into(),
            ..v1::Event::default()
        }
    }

    /// Numbers of a node's events, the newest first.
    fn held(events: &NodeEvents, node: &str) -> Vec<u64> {
        let of_node = events.newest_first().into_iter();
        let of_node = of_node.filter(|(name, _)| *name == node);
        of_node.map(|(_, seen)| seen.event.seq).collect()
    }

    const SEVERITIES: [v1::Severity; 3] = [
        v1::Severity::Info,
        v1::Severity::Warning,
        v1::Severity::Critical,
    ];

    #[test]
    fn a_repeat_is_shown_once() {
        let mut events = NodeEvents::default();
        let mut told = |instance, second, new| {
            events.connected("h1", instance);
            for seq in [1, 4] {
                let event = event(seq, SEVERITIES[1]);
                assert_eq!(events.take("h1", event, Duration::from_secs(second)), new);
            }
            events.lost("h1");
            (held(&events, "h1"), events.repeated())
        };
        assert_eq!(told(7, 0, true), (vec![4, 1], 0));
        assert_eq!(told(7, 1, false), (vec![4, 1], 2));
        // The agent was started anew.
        assert_eq!(told(8, 2, true), (vec![4, 1, 4, 1], 2));
    }

    #[test]
    fn an_older_agent_numbers_nothing_and_repeats_nothing() {
        let mut events = NodeEvents::default();
        events.connected("h1", 7);
        for _ in 0..2 {
            assert!(events.take("h1", event(0, SEVERITIES[0]), Duration::ZERO));
        }
        assert_eq!(held(&events, "h1"), [0, 0]);
    }

    #[test]
    fn a_chatty_node_pushes_out_its_own_and_critical_ones_last() {
        let mut events = NodeEvents::new(3, 100);
        events.connected("quiet", 1);
        events.take("quiet", event(1, SEVERITIES[0]), Duration::ZERO);
        events.connected("chatty", 1);
        for (seq, severity) in (1..).zip([2, 0, 1, 1, 1, 0]) {
            events.take("chatty", event(seq, SEVERITIES[severity]), Duration::ZERO);
        }
        assert_eq!(held(&events, "quiet"), [1]);
        assert_eq!(held(&events, "chatty"), [5, 4, 1]);
        let dropped = [(Severity::Info, 2), (Severity::Warning, 1)];
        let dropped = dropped.map(|(severity, count)| ((Reason::NodeFull, severity), count));
        assert_eq!(*events.dropped(), dropped.into());
    }

    #[test]
    fn of_all_the_node_with_the_most_of_the_lowest_gives_way() {
        let mut events = NodeEvents::new(9, 4);
        for (node, told) in [("a", [1, 1]), ("b", [2, 2])] {
            events.connected(node, 1);
            for (seq, severity) in (1..).zip(told) {
                events.take(node, event(seq, SEVERITIES[severity]), Duration::ZERO);
            }
        }
        events.connected("c", 1);
        for (seq, severity) in [(1, 1), (2, 1), (3, 0)] {
            events.take("c", event(seq, SEVERITIES[severity]), Duration::ZERO);
        }
        assert_eq!(held(&events, "a"), [2]);
        assert_eq!(held(&events, "b"), [2, 1]);
        assert_eq!(held(&events, "c"), [2]);
        let dropped = [(Severity::Info, 1), (Severity::Warning, 2)];
        let dropped = dropped.map(|(severity, count)| ((Reason::Full, severity), count));
        assert_eq!(*events.dropped(), dropped.into());
    }

    #[test]
    fn what_came_late_is_shown_at_its_time() {
        let mut events = NodeEvents::default();
        events.connected("h1", 1);
        let mut late = event(1, SEVERITIES[0]);
        late.age_us = 10_000_000;
        events.take("h1", event(2, SEVERITIES[2]), Duration::from_secs(5));
        events.connected("h2", 1);
        events.take("h2", late, Duration::from_secs(6));
        let order: Vec<&str> = events
            .newest_first()
            .iter()
            .map(|(node, _)| *node)
            .collect();
        assert_eq!(order, ["h1", "h2"]);
    }

    #[test]
    fn nodes_that_come_and_go_are_forgotten_with_a_count() {
        let mut events = NodeEvents::default();
        for n in 0..=NODES_MAX {
            let node = format!("h{n}");
            events.connected(&node, 1);
            events.take(&node, event(1, SEVERITIES[1]), Duration::ZERO);
            events.lost(&node);
        }
        assert_eq!(events.nodes.len(), NODES_MAX);
        assert!(held(&events, "h0").is_empty());
        let gone = (Reason::NodeForgotten, Severity::Warning);
        assert_eq!(*events.dropped(), [(gone, 1)].into());
    }

    proptest! {
        /// Whatever is told: the limits hold, and what is not kept was counted.
        #[test]
        fn limits_hold_and_nothing_goes_uncounted(
            told in prop::collection::vec((0u8..4, 0usize..3), 0..60), of_node in 1usize..6, all in 1usize..12,
        ) {
            let mut events = NodeEvents::new(of_node, all);
            for (seq, (node, severity)) in (1..).zip(&told) {
                let node = format!("h{node}");
                events.connected(&node, 1);
                events.take(&node, event(seq, SEVERITIES[*severity]), Duration::ZERO);
            }
            let kept = events.newest_first();
            prop_assert!(kept.len() <= all);
            for node in 0..4 {
                let node = format!("h{node}");
                prop_assert!(held(&events, &node).len() <= of_node);
            }
            for (severity, wire) in Severity::ALL.into_iter().zip(SEVERITIES) {
                let kept = kept.iter().filter(|(_, e)| e.event.severity() == wire).count() as u64;
                let dropped = events.dropped().iter().filter(|((_, s), _)| *s == severity);
                let dropped: u64 = dropped.map(|(_, count)| count).sum();
                let told = told.iter().filter(|(_, s)| SEVERITIES[*s] == wire).count() as u64;
                prop_assert_eq!(kept + dropped, told);
            }
        }
    }
}
