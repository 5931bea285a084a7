//! What ports say arrived damaged: packets that are lost for it are lost, but not silently.
//!
//! What is estimated: packets and blocks that the receiving port of a link could not read, over the same windows as
//! what flows lost ([`crate::silent`]). Trip condition: none, whoever asks compares. Cold start: a port that counted
//! nothing damaged nothing. Recovery: windows pass. Cost: a look at two columns a port for each sample.

use super::Tally;
use crate::ids::{NodeId, PortId};
use crate::io::Column;
use crate::keep::keep;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weir_signal::{Entity, Signal};

/// Where a node's values tell of damage, and how often they come.
#[derive(Debug, Clone, Default)]
struct Told {
    /// Place among the values, and name of the port.
    columns: Vec<(usize, Arc<str>)>,
    /// Length of the newest sample's interval.
    elapsed: Duration,
}

keep!(struct Told { columns, elapsed });

/// What arrived damaged lately, by the port that says so.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    nodes: BTreeMap<NodeId, Told>,
    /// Only of ports that ever saw any.
    ports: BTreeMap<PortId, Tally>,
}

keep!(struct Damage { nodes, ports });

impl Damage {
    /// Notes where a node's values tell of damage.
    pub fn declared(&mut self, node: &NodeId, columns: &[Column]) {
        let tells = |c: &Column| {
            let signal = matches!(c.signal, Signal::RxErrors | Signal::FecUncorrected);
            signal && c.entity == Entity::Port && c.index.is_none()
        };
        let columns = columns.iter().enumerate().filter(|(_, c)| tells(c));
        let columns: Vec<_> = columns.map(|(n, c)| (n, c.subject.clone())).collect();
        let told = |port: &str| columns.iter().any(|(_, name)| **name == *port);
        self.ports
            .retain(|port, _| port.node != *node || told(&port.port));
        if columns.is_empty() {
            self.nodes.remove(node);
            return;
        }
        self.nodes.entry(node.clone()).or_default().columns = columns;
    }

    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
        self.ports.retain(|port, _| port.node != *node);
    }

    /// Takes a node's values; `elapsed` is the sample's interval, if it is known.
    pub fn sampled(
        &mut self,
        node: &NodeId,
        values: &[Option<u64>],
        elapsed: Option<Duration>,
        at: Duration,
    ) {
        let Some(told) = self.nodes.get_mut(node) else {
            return;
        };
        // A longer interval than the one before may be that of a lost sample.
        let elapsed = elapsed.unwrap_or(told.elapsed);
        let interval = std::mem::replace(&mut told.elapsed, elapsed).min(elapsed);
        for (place, port) in &told.columns {
            let damaged = values.get(*place).copied().flatten().filter(|d| *d > 0);
            if let Some(damaged) = damaged {
                let port = PortId::new(node, port);
                let tally = self.ports.entry(port).or_default();
                tally.add((0, damaged), interval, at);
            }
        }
    }

    /// Packets and blocks that arrived damaged at a port in the windows of [`Tally`].
    #[must_use]
    pub fn at(&self, port: &PortId, now: Duration) -> u64 {
        self.ports.get(port).map_or(0, |tally| tally.total(now).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_port_could_not_read_is_known_for_two_windows_and_of_that_port() {
        let node = NodeId::new("l1");
        let column = |signal, port: &str| Column {
            entity: Entity::Port,
            subject: port.into(),
            index: None,
            signal,
        };
        let columns = [
            column(Signal::RxPackets, "up1"),
            column(Signal::RxErrors, "up1"),
            column(Signal::FecUncorrected, "up2"),
        ];
        let second = Duration::from_secs;
        let mut damage = Damage::default();
        damage.declared(&node, &columns);
        for n in 1..=5 {
            let values = [Some(100), Some(7), Some(0)];
            damage.sampled(&node, &values, Some(second(1)), second(n));
        }
        let at = |port: &str, n| damage.at(&PortId::new(&node, port), second(n));
        assert_eq!(at("up1", 6), 35);
        assert_eq!(at("up2", 6), 0);
        assert_eq!(at("up1", 60), 0);
        damage.forget(&node);
        assert_eq!(damage.at(&PortId::new(&node, "up1"), second(6)), 0);
    }
}
