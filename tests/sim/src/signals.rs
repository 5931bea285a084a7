//! The counters of a sample as canonical signals: what an agent beside that NIC, or a switch's telemetry, would report.

use crate::port::{HostCounters, PortCounters};
use crate::time::US;
use weir_wire::signal::Signal;

/// Signals of a port of the fabric, of a switch or of a NIC.
#[must_use]
pub fn of_port(c: &PortCounters) -> [(Signal, u64); 17] {
    [
        (Signal::TxBytes, c.tx_bytes),
        (Signal::RxBytes, c.rx_bytes),
        (Signal::TxPackets, c.tx_packets),
        (Signal::RxPackets, c.rx_packets),
        (Signal::RxErrors, c.rx_errors),
        (Signal::LinkUp, u64::from(c.up)),
        (Signal::QueueBytes, c.queue_bytes),
        (Signal::QueueBytesMax, c.queue_bytes_max),
        (Signal::EcnMarkedTx, c.ecn_marked_tx),
        (Signal::PauseRx, c.pause_rx),
        (Signal::PauseTx, c.pause_tx),
        (Signal::PauseRxUs, c.pause_rx_ps / US),
        (Signal::PauseTxUs, c.pause_tx_ps / US),
        (Signal::RxDiscards, c.rx_discards),
        (Signal::TxDiscards, c.tx_discards),
        (Signal::LinkDowns, c.link_downs),
        (Signal::RateBps, c.rate_bps),
    ]
}

/// Signals of the verbs device of a host.
#[must_use]
pub fn of_host(c: &HostCounters) -> [(Signal, u64); 11] {
    [
        (Signal::TxPackets, c.tx_packets),
        (Signal::RxPackets, c.rx_packets),
        (Signal::RxBytes, c.rx_bytes),
        (Signal::EcnMarkedRx, c.ecn_marked_rx),
        (Signal::CnpTx, c.cnp_tx),
        (Signal::CnpRx, c.cnp_rx),
        (Signal::CnpIgnored, c.cnp_ignored),
        (Signal::Retransmits, c.retransmits),
        (Signal::OutOfSequence, c.out_of_sequence),
        (Signal::AckTimeouts, c.ack_timeouts),
        (Signal::SequenceNaks, c.sequence_naks),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use std::collections::BTreeMap;
    use weir_wire::signal::{Entity, Kind};

    #[test]
    fn counters_only_rise_and_belong_to_what_they_are_reported_for() {
        let scenario = Scenario::parse(include_str!("../scenarios/rail-flap.yaml")).unwrap();
        let mut sim = scenario.build().unwrap();
        let mut last: BTreeMap<(Entity, usize, Signal), u64> = BTreeMap::new();
        let mut down = false;
        crate::traces::run_sampled(&mut sim, scenario.limit(), 20 * US, |_, sample| {
            let ports = sample
                .ports
                .iter()
                .enumerate()
                .flat_map(|(p, c)| of_port(c).map(|s| (Entity::Port, p, s)));
            let hosts = sample
                .hosts
                .iter()
                .enumerate()
                .flat_map(|(h, c)| of_host(c).map(|s| (Entity::Rdma, h, s)));
            for (entity, at, (signal, value)) in ports.chain(hosts) {
                assert!(signal.entities().contains(&entity), "{signal:?}");
                let before = last.insert((entity, at, signal), value).unwrap_or(0);
                assert!(
                    signal.kind() == Kind::Gauge || value >= before,
                    "{signal:?} {before} {value}"
                );
                down |= signal == Signal::LinkUp && value == 0;
            }
        });
        assert!(down);
        assert!(
            last.iter()
                .any(|((_, _, s), v)| *s == Signal::LinkDowns && *v == 1)
        );
    }
}
