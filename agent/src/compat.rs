//! The names that node_exporter gives to what we read too, so that its dashboards and rules keep
//! working: `node_infiniband_*` from the files of sysfs, `node_network_*` from rtnetlink and
//! `node_ethtool_*` from the drivers' statistics, with its labels and units.
//!
//! Only what we have: statistics of single queues are left out, and so are the loopback device and the
//! speed of a link that is down.

use crate::collect::Extras;
use crate::exposition::Families;
use crate::sample::{PORT_SIGNALS, Sample};
use crate::source::Info;
use std::collections::BTreeSet;
use weir_common::catalogue::{Metric, Type};
use weir_wire::signal::{Entity, Signal};

const HELP: &str = "As node_exporter has it.";

/// A file of a port, its metric, and how many of the metric's units one of the file's is.
struct Row(&'static str, Metric, f64);

const fn port(kind: Type, name: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels: &["device", "port"],
        help: HELP,
    }
}

macro_rules! files {
    ($($file:literal $kind:ident $name:literal $times:literal;)+) => {
        &[$(Row($file, port(Type::$kind, concat!("node_infiniband_", $name)), $times),)+]
    };
}

/// Data is counted in words of four bytes, and the rate is read in bits.
const INFINIBAND: &[Row] = files! {
    "state" Gauge "state_id" 1.0;
    "phys_state" Gauge "physical_state_id" 1.0;
    "rate" Gauge "rate_bytes_per_second" 0.125;
    "VL15_dropped" Counter "vl15_dropped_total" 1.0;
    "excessive_buffer_overrun_errors" Counter "excessive_buffer_overrun_errors_total" 1.0;
    "link_downed" Counter "link_downed_total" 1.0;
    "link_error_recovery" Counter "link_error_recovery_total" 1.0;
    "local_link_integrity_errors" Counter "local_link_integrity_errors_total" 1.0;
    "multicast_rcv_packets" Counter "multicast_packets_received_total" 1.0;
    "multicast_xmit_packets" Counter "multicast_packets_transmitted_total" 1.0;
    "port_rcv_constraint_errors" Counter "port_constraint_errors_received_total" 1.0;
    "port_xmit_constraint_errors" Counter "port_constraint_errors_transmitted_total" 1.0;
    "port_rcv_data" Counter "port_data_received_bytes_total" 4.0;
    "port_xmit_data" Counter "port_data_transmitted_bytes_total" 4.0;
    "port_rcv_discards" Counter "port_discards_received_total" 1.0;
    "port_xmit_discards" Counter "port_discards_transmitted_total" 1.0;
    "port_rcv_errors" Counter "port_errors_received_total" 1.0;
    "port_rcv_packets" Counter "port_packets_received_total" 1.0;
    "port_xmit_packets" Counter "port_packets_transmitted_total" 1.0;
    "port_rcv_remote_physical_errors" Counter "port_receive_remote_physical_errors_total" 1.0;
    "port_rcv_switch_relay_errors" Counter "port_receive_switch_relay_errors_total" 1.0;
    "port_xmit_wait" Counter "port_transmit_wait_total" 1.0;
    "symbol_error" Counter "symbol_error_total" 1.0;
    "unicast_rcv_packets" Counter "unicast_packets_received_total" 1.0;
    "unicast_xmit_packets" Counter "unicast_packets_transmitted_total" 1.0;
    "counters_ext/port_multicast_rcv_packets" Counter "legacy_multicast_packets_received_total" 1.0;
    "counters_ext/port_multicast_xmit_packets" Counter "legacy_multicast_packets_transmitted_total" 1.0;
    "counters_ext/port_rcv_data_64" Counter "legacy_data_received_bytes_total" 4.0;
    "counters_ext/port_rcv_packets_64" Counter "legacy_packets_received_total" 1.0;
    "counters_ext/port_unicast_rcv_packets" Counter "legacy_unicast_packets_received_total" 1.0;
    "counters_ext/port_unicast_xmit_packets" Counter "legacy_unicast_packets_transmitted_total" 1.0;
    "counters_ext/port_xmit_data_64" Counter "legacy_data_transmitted_bytes_total" 4.0;
    "counters_ext/port_xmit_packets_64" Counter "legacy_packets_transmitted_total" 1.0;
};

const INFINIBAND_INFO: Metric = Metric {
    name: "node_infiniband_info",
    kind: Type::Gauge,
    labels: &["board_id", "device", "firmware_version", "hca_type"],
    help: HELP,
};

const ETHTOOL_INFO: Metric = Metric {
    name: "node_ethtool_info",
    kind: Type::Gauge,
    labels: &[
        "bus_info",
        "device",
        "driver",
        "expansion_rom_version",
        "firmware_version",
        "version",
    ],
    help: HELP,
};

const fn network(kind: Type, name: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels: &["device"],
        help: HELP,
    }
}

const UP: Metric = network(Type::Gauge, "node_network_up");
const SPEED: Metric = network(Type::Gauge, "node_network_speed_bytes");

/// Adds the series.
pub fn put(sample: &Sample, extras: &Extras, families: &mut Families) {
    let mut told = BTreeSet::new();
    for counter in &extras.verbatim {
        if counter.source == "ethtool" {
            let name = ethtool_name(&counter.name);
            // Names that differ in their signs alone become one: the first counts.
            if told.insert((counter.device.as_str(), name.clone())) {
                let device = ("device", counter.device.as_str());
                families.untyped(&name, HELP, device, counter.value as f64);
            }
        } else if let Some(Row(_, metric, times)) =
            INFINIBAND.iter().find(|row| row.0 == counter.name)
        {
            let labels: Vec<&str> = counter.device.splitn(2, '/').collect();
            families.value(*metric, &labels, counter.value as f64 * times);
        }
    }
    let mut devices = BTreeSet::new();
    for info in &extras.info {
        put_info(info, &mut devices, families);
    }
    put_network(sample, extras, families);
}

fn put_info<'a>(info: &'a Info, devices: &mut BTreeSet<&'a str>, families: &mut Families) {
    let label = |name: &str| info.labels.get(name).map_or("", String::as_str);
    match info.kind {
        Entity::Rdma => {
            let device = info.entity.split('/').next().unwrap_or_default();
            if devices.insert(device) {
                let labels = [label("board"), device, label("firmware"), label("model")];
                families.value(INFINIBAND_INFO, &labels, 1.0);
            }
        }
        Entity::Port => {
            let labels = [
                label("pci_address"),
                &info.entity,
                label("driver"),
                label("expansion_rom"),
                label("firmware"),
                label("version"),
            ];
            families.value(ETHTOOL_INFO, &labels, 1.0);
        }
        Entity::Gpu | Entity::Node | Entity::Probe => {}
    }
}

fn put_network(sample: &Sample, extras: &Extras, families: &mut Families) {
    for (port, readings) in &sample.ports {
        for (signal, reading) in PORT_SIGNALS.iter().zip(readings) {
            if let (Some(metric), Some(value)) = (network_metric(*signal), reading) {
                // There only a state that is told is up.
                let unknown = *signal == Signal::LinkUp && extras.state_unknown.contains(port);
                let value = if unknown { 0.0 } else { *value as f64 };
                families.value(metric, &[port], value);
            }
        }
    }
    for (key, reading) in &sample.columns {
        if key.kind == Entity::Port && key.signal == Signal::RateBps {
            families.value(SPEED, &[&key.entity], reading.value as f64 / 8.0);
        }
    }
}

/// The metric of what rtnetlink tells of an interface.
fn network_metric(signal: Signal) -> Option<Metric> {
    const COUNTERS: [(Signal, &str); 8] = [
        (Signal::TxBytes, "node_network_transmit_bytes_total"),
        (Signal::RxBytes, "node_network_receive_bytes_total"),
        (Signal::TxPackets, "node_network_transmit_packets_total"),
        (Signal::RxPackets, "node_network_receive_packets_total"),
        (Signal::TxDrops, "node_network_transmit_drop_total"),
        (Signal::RxDrops, "node_network_receive_drop_total"),
        (Signal::TxErrors, "node_network_transmit_errs_total"),
        (Signal::RxErrors, "node_network_receive_errs_total"),
    ];
    if signal == Signal::LinkUp {
        return Some(UP);
    }
    let (_, name) = COUNTERS.iter().find(|(of, _)| *of == signal)?;
    Some(network(Type::Counter, name))
}

/// Name of a driver's statistic: lower case, whatever is no letter or digit an underscore, `rx` and
/// `tx` in full; seven common ones end in `_total`.
fn ethtool_name(statistic: &str) -> String {
    let common = [
        "rx_bytes",
        "rx_dropped",
        "rx_errors",
        "rx_packets",
        "tx_bytes",
        "tx_errors",
        "tx_packets",
    ];
    let plain = plain(statistic);
    let plain = spelt(&spelt(&plain, "rx", "received"), "tx", "transmitted");
    let end = if common.contains(&statistic) {
        "_total"
    } else {
        ""
    };
    format!("node_ethtool_{plain}{end}")
}

/// A run of signs, with the underscores around it, becomes one underscore; none stands at the front.
fn plain(statistic: &str) -> String {
    let mut name = String::with_capacity(statistic.len());
    let mut sign = false;
    for c in statistic.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
            sign = false;
        } else if c == '_' {
            if !sign {
                name.push(c);
            }
        } else {
            name.truncate(name.trim_end_matches('_').len());
            name.push('_');
            sign = true;
        }
    }
    name.trim_start_matches('_').to_owned()
}

/// Replaces a word between underscores; of two in a row, which share theirs, the first.
fn spelt(name: &str, word: &str, full: &str) -> String {
    let mut after = false;
    let words = name.split('_').map(|part| {
        after = part == word && !after;
        if after { full } else { part }
    });
    words.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_named_as_node_exporter_names_them() {
        for (statistic, name) in [
            ("rx_bytes", "node_ethtool_received_bytes_total"),
            ("tx_discards_phy", "node_ethtool_transmitted_discards_phy"),
            ("rx_prio3_pause", "node_ethtool_received_prio3_pause"),
            ("port.rx_dropped", "node_ethtool_port_received_dropped"),
            ("rx_dropped.nic", "node_ethtool_received_dropped_nic"),
            ("tx-12.bytes", "node_ethtool_transmitted_12_bytes"),
            (
                "[3]: rx_ucast_packets",
                "node_ethtool_3_received_ucast_packets",
            ),
            ("_OddOne__two", "node_ethtool_oddone__two"),
            (
                "veb.tc_0_tx_packets",
                "node_ethtool_veb_tc_0_transmitted_packets",
            ),
            ("rx_rx", "node_ethtool_received_rx"),
            ("prx_txp", "node_ethtool_prx_txp"),
        ] {
            assert_eq!(ethtool_name(statistic), name, "{statistic}");
        }
    }
}
