//! What a SONiC switch's databases show: findings, and its part of the fabric.

use super::{Switch, Watchdog};
use crate::fabric::{End, Fabric, Link, Node, Role, contradiction, tidy, tidy_port};
use crate::finding::{Finding, Kind};
use std::collections::BTreeMap;
use weir_wire::signal::Signal;

impl Switch {
    /// Storms, ports that should be up, slow ports, modules that are not well.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, port) in &self.ports {
            let behind = match &port.neighbour {
                Some((node, far)) => format!("{node}:{far}"),
                None => "the far end".to_owned(),
            };
            for (index, queue) in &port.queues {
                findings.extend(
                    queue
                        .watchdog
                        .as_ref()
                        .and_then(|d| storm(name, *index, d, &behind)),
                );
            }
            let mut warn = |kind, text: String| findings.push(Finding::warning(kind, name, text));
            if port.admin_up == Some(true) && port.up == Some(false) {
                warn(
                    Kind::Down,
                    format!("{name} is switched on but has no link to {behind}"),
                );
            }
            if let (Some(rate), Some(set)) = (port.rate_bps, port.configured_bps)
                && rate < set
            {
                let (rate, set) = (crate::rate::spoken(rate), crate::rate::spoken(set));
                warn(
                    Kind::Downgraded,
                    format!("{name} runs at {rate} and is set to {set}"),
                );
            }
            if let Some(error) = &port.module_error {
                warn(
                    Kind::Hardware,
                    format!("the module of {name} says: {error}"),
                );
            }
            let uncorrected = port
                .readings
                .iter()
                .find(|r| r.signal == Signal::FecUncorrected);
            if let Some(r) = uncorrected.filter(|r| r.value > 0) {
                warn(
                    Kind::Errors,
                    format!(
                        "{name} received {} frames that forward error correction could not repair: clean or change the cable to {behind}",
                        r.value
                    ),
                );
            }
        }
        findings.sort_by(|x, y| y.severity.cmp(&x.severity).then_with(|| x.cmp(y)));
        findings
    }

    /// The switch and the cables that its configuration expects. `fallback` is its name if the
    /// databases have none.
    #[must_use]
    pub fn fabric(&self, fallback: &str) -> Fabric {
        let mut fabric = Fabric::default();
        let local = tidy(self.name.as_deref().unwrap_or(fallback));
        let node = |role| Node {
            role,
            devices: Vec::new(),
        };
        fabric.nodes.insert(local.clone(), node(Role::Switch));
        let mut far_ends = BTreeMap::new();
        for (name, port) in &self.ports {
            let Some((far, far_port)) = &port.neighbour else {
                continue;
            };
            let a = End {
                node: local.clone(),
                port: tidy_port(name),
            };
            let b = End {
                node: tidy(far),
                port: tidy_port(far_port),
            };
            if let Some(other) = far_ends.insert(b.clone(), name) {
                let text = format!("the configuration expects {b} on {name} and on {other}");
                fabric.findings.push(contradiction(&a.to_string(), &text));
                continue;
            }
            let role = if self.routers.contains(far) {
                Role::Switch
            } else {
                Role::Host
            };
            fabric
                .nodes
                .entry(b.node.clone())
                .or_insert_with(|| node(role));
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            fabric.links.push(Link {
                a,
                b,
                rate_bps: port.rate_bps.or(port.configured_bps),
                lanes: u8::try_from(port.lanes.len()).ok().filter(|n| *n > 0),
                speed: None,
            });
        }
        fabric.links.sort_by(|x, y| (&x.a, &x.b).cmp(&(&y.a, &y.b)));
        fabric
    }
}

fn storm(port: &str, queue: u16, dog: &Watchdog, behind: &str) -> Option<Finding> {
    let subject = format!("{port}:{queue}");
    let (tx, rx) = (dog.tx_dropped_packets, dog.rx_dropped_packets);
    if dog.stormed {
        let text = format!(
            "{subject} is in a PFC storm: {behind} keeps priority {queue} paused, and the watchdog has acted ({}; {tx} packets dropped on the way out, {rx} on the way in): look for a receiver that does not drain",
            dog.action
        );
        return Some(Finding::critical(Kind::PauseStorm, subject, text));
    }
    (dog.storms_detected > 0).then(|| {
        let text = format!(
            "{subject} had {} PFC storm(s), of which {} ended by themselves",
            dog.storms_detected, dog.storms_restored
        );
        Finding::note(Kind::PauseStorm, subject, text)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Database, Databases, database, parse};
    use super::*;

    const CONFIG: &str = r#"{
        "DEVICE_METADATA|localhost": {"hostname": "leaf7", "hwsku": "X"},
        "PORT|Ethernet0": {"lanes": "1,2,3,4", "speed": "400000", "alias": "e1", "admin_status": "up"},
        "PORT|Ethernet4": {"lanes": "5", "speed": "100000", "admin_status": "up"},
        "PORT_QOS_MAP|Ethernet0": {"pfc_enable": "3,4"},
        "DEVICE_NEIGHBOR|Ethernet0": {"name": "spine1", "port": "Ethernet8"},
        "DEVICE_NEIGHBOR|Ethernet4": {"name": "node3", "port": "eth0"},
        "DEVICE_NEIGHBOR_METADATA|spine1": {"type": "SpineRouter"}}"#;
    const COUNTERS: &str = r#"{
        "COUNTERS_PORT_NAME_MAP": {"Ethernet0": "oid:0x1"},
        "COUNTERS_QUEUE_NAME_MAP": {"Ethernet0:3": "oid:0x2", "Ethernet0:4": "oid:0x3", "Ethernet0:9": "oid:0xgone"},
        "COUNTERS:oid:0x1": {"SAI_PORT_STAT_IF_OUT_OCTETS": "70", "SAI_PORT_STAT_IF_IN_UCAST_PKTS": "5", "SAI_PORT_STAT_PFC_3_RX_PKTS": "9", "SAI_PORT_STAT_PFC_3_RX_PAUSE_DURATION_US": "1", "EST_PORT_STAT_PFC_3_RX_PAUSE_DURATION_US": "2"},
        "COUNTERS:oid:0x2": {"PFC_WD_STATUS": "stormed", "PFC_WD_QUEUE_STATS_DEADLOCK_DETECTED": "1", "SAI_QUEUE_STAT_DROPPED_PACKETS": 6},
        "COUNTERS:oid:0x3": {"PFC_WD_STATUS": "operational", "PFC_WD_QUEUE_STATS_DEADLOCK_DETECTED": "2", "SAI_QUEUE_STAT_DROPPED_PACKETS": 1}}"#;
    const STATE: &str =
        r#"{"PORT_TABLE|Ethernet0": {"speed": "200000", "netdev_oper_status": "up"}}"#;

    fn switch() -> Switch {
        let mut databases = Databases::default();
        for text in [CONFIG, COUNTERS, STATE] {
            let hashes = parse(text).unwrap();
            databases.add(database(&hashes).unwrap(), hashes);
        }
        databases.switch()
    }

    #[test]
    fn a_queue_in_a_storm_comes_first_and_names_who_pauses() {
        let findings = switch().findings();
        assert_eq!(findings[0].subject, "Ethernet0:3");
        assert!(
            findings[0].text.contains("spine1:Ethernet8"),
            "{findings:?}"
        );
        let kinds: Vec<Kind> = findings.iter().map(|f| f.kind).collect();
        assert_eq!(
            kinds,
            [Kind::PauseStorm, Kind::Downgraded, Kind::PauseStorm]
        );
    }

    #[test]
    fn counters_become_signals_and_what_is_absent_is_absent() {
        let switch = switch();
        let port = &switch.ports["Ethernet0"];
        let of = |signal, index| {
            let mut found = port
                .readings
                .iter()
                .filter(|r| (r.signal, r.index) == (signal, index));
            (found.next().map(|r| r.value), found.next())
        };
        assert_eq!(of(Signal::TxBytes, None), (Some(70), None));
        assert_eq!(of(Signal::RxPackets, None), (Some(5), None));
        assert_eq!(of(Signal::PauseRx, Some(3)), (Some(9), None));
        assert_eq!(
            of(Signal::PauseRxUs, Some(3)),
            (Some(1), None),
            "measured, not estimated"
        );
        assert_eq!(of(Signal::QueueDrops, None), (Some(7), None));
        assert_eq!(of(Signal::PauseStorms, None), (Some(3), None));
        assert_eq!(of(Signal::RateBps, None), (Some(200_000_000_000), None));
        assert_eq!(of(Signal::RxBytes, None), (None, None));
        assert_eq!(
            (port.queues.len(), port.pfc.as_slice()),
            (2, [3, 4].as_slice())
        );
    }

    #[test]
    fn the_configuration_s_neighbours_are_cables() {
        let fabric = switch().fabric("unused");
        let cables: Vec<String> = fabric
            .links
            .iter()
            .map(|l| format!("{} {}", l.a, l.b))
            .collect();
        assert_eq!(
            cables,
            [
                "leaf7:Ethernet0 spine1:Ethernet8",
                "leaf7:Ethernet4 node3:eth0"
            ]
        );
        assert_eq!(fabric.nodes["spine1"].role, Role::Switch);
        assert_eq!(fabric.nodes["node3"].role, Role::Host);
    }

    #[test]
    fn a_hash_below_its_time_to_live_and_what_is_none() {
        let hashes =
            parse(r#"{"PORT|Ethernet0": {"ttl": -1, "value": {"speed": "100000"}}}"#).unwrap();
        assert_eq!(hashes["PORT|Ethernet0"]["speed"], "100000");
        assert_eq!(database(&hashes), Some(Database::Config));
        let error = parse("{\n \"PORT|Ethernet0\": 7}").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        assert_eq!(database(&parse("{}").unwrap()), None);
    }
}
