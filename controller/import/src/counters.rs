//! Port counters as `perfquery` and `ibqueryerrors` print them.
//!
//! Formats: infiniband-diags/perfquery.c and ibqueryerrors.c; names of libibmad's `mad_fields`.
//! The classic registers stick at their maximum (InfiniBand architecture, volume 1, 16.1.3.5).

use crate::finding::{Finding, Kind};
use crate::guid::Guid;
use crate::names;
use crate::reading::Reading;
use crate::text::{Cursor, Error, lines};
use serde::Serialize;
use std::collections::BTreeMap;
use weir_wire::signal::Signal;

/// A register: its name, its width in bits, and the signal that it counts, with bytes in a unit.
struct Register {
    name: &'static str,
    bits: u32,
    signal: Option<(Signal, u64)>,
    /// What a value above zero means, where it means damage.
    damage: Option<&'static str>,
}

const fn register(
    name: &'static str,
    bits: u32,
    signal: Option<(Signal, u64)>,
    damage: Option<&'static str>,
) -> Register {
    Register {
        name,
        bits,
        signal,
        damage,
    }
}

/// Data is counted in words of four bytes. Data and packets are 64 bits in the extended set, where
/// the others still may be of their classic width.
const REGISTERS: &[Register] = &[
    register("PortXmitData", 64, Some((Signal::TxBytes, 4)), None),
    register("PortRcvData", 64, Some((Signal::RxBytes, 4)), None),
    register("PortXmitPkts", 64, Some((Signal::TxPackets, 1)), None),
    register("PortRcvPkts", 64, Some((Signal::RxPackets, 1)), None),
    register(
        "SymbolErrorCounter",
        16,
        Some((Signal::SymbolErrors, 1)),
        Some("symbol errors"),
    ),
    register(
        "LinkErrorRecoveryCounter",
        8,
        Some((Signal::LinkRecoveries, 1)),
        Some("link recoveries"),
    ),
    register(
        "LinkDownedCounter",
        8,
        Some((Signal::LinkDowns, 1)),
        Some("times down"),
    ),
    register(
        "PortRcvErrors",
        16,
        Some((Signal::RxErrors, 1)),
        Some("damaged packets"),
    ),
    register(
        "PortRcvRemotePhysicalErrors",
        16,
        None,
        Some("packets damaged before"),
    ),
    register("PortRcvSwitchRelayErrors", 16, None, None),
    register(
        "PortXmitDiscards",
        16,
        Some((Signal::TxDiscards, 1)),
        Some("discards on the way out"),
    ),
    register("PortXmitConstraintErrors", 8, None, None),
    register("PortRcvConstraintErrors", 8, None, None),
    register(
        "LocalLinkIntegrityErrors",
        4,
        Some((Signal::LinkIntegrityErrors, 1)),
        Some("link integrity errors"),
    ),
    register(
        "ExcessiveBufferOverrunErrors",
        4,
        None,
        Some("buffer overruns"),
    ),
    register("VL15Dropped", 16, None, None),
    register("PortXmitWait", 32, Some((Signal::TxWait, 1)), None),
    register("QP1Dropped", 16, None, None),
];

/// The counters of one port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PortCounters {
    /// Node as the tool calls it; empty where it prints only a lid.
    pub node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Guid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lid: Option<u16>,
    /// `None`: the sum over all ports.
    pub port: Option<u32>,
    /// By their names in the output.
    pub counters: BTreeMap<String, u64>,
}

impl PortCounters {
    /// Node and port for people.
    #[must_use]
    pub fn subject(&self) -> String {
        let node = match (self.node.as_str(), self.guid, self.lid) {
            ("", Some(guid), _) => guid.to_string(),
            ("", None, Some(lid)) => format!("lid {lid}"),
            (name, _, _) => name.to_owned(),
        };
        match self.port {
            Some(port) => format!("{node}:{port}"),
            None => node,
        }
    }

    /// Whether a counter stands at the maximum of its register. A sum over ports has no register.
    #[must_use]
    pub fn saturated(&self, name: &str) -> bool {
        let register = REGISTERS.iter().find(|r| r.name == name);
        let (Some(register), Some(value)) = (register, self.counters.get(name)) else {
            return false;
        };
        let max = u64::MAX >> (64 - register.bits);
        self.port.is_some() && *value == max
    }

    /// What Weir has signals for, in their units.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        let reading = |r: &Register| {
            let (signal, factor) = r.signal?;
            let value = self.counters.get(r.name)?.saturating_mul(factor);
            Some(Reading {
                saturated: self.saturated(r.name),
                ..Reading::counted(signal, value)
            })
        };
        REGISTERS.iter().filter_map(reading).collect()
    }

    fn findings(&self, findings: &mut Vec<Finding>) {
        let subject = self.subject();
        for name in self.counters.keys().filter(|n| self.saturated(n)) {
            let value = self.counters[name];
            let text = format!(
                "{name} of {subject} stands at its maximum, {value}: it tells nothing any more and hides what happens now; clear it (ibclearerrors, perfquery -R)"
            );
            findings.push(Finding::warning(Kind::Saturated, subject.clone(), text));
        }
        if self.port.is_none() {
            return;
        }
        let damage: Vec<String> = REGISTERS
            .iter()
            .filter_map(|r| {
                let value = self.counters.get(r.name).filter(|v| **v > 0)?;
                let least = if self.saturated(r.name) {
                    "at least "
                } else {
                    ""
                };
                Some(format!("{least}{value} {}", r.damage?))
            })
            .collect();
        if !damage.is_empty() {
            let text = format!(
                "{subject}: {} since its counters were cleared",
                damage.join(", ")
            );
            findings.push(Finding::note(Kind::Errors, subject, text));
        }
    }
}

/// What the counters of a file show.
#[must_use]
pub fn findings(ports: &[PortCounters]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for port in ports {
        port.findings(&mut findings);
    }
    findings
}

/// Reads the output of `perfquery`, of one query or several; an empty text has none.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse_perfquery(text: &str) -> Result<Vec<PortCounters>, Error> {
    let mut ports: Vec<PortCounters> = Vec::new();
    for mut cursor in lines(text) {
        if cursor.is_empty() {
            continue;
        }
        if cursor.take("#") {
            cursor.until("Lid ", "a heading with Lid and port")?;
            let lid = cursor.number("a lid of at most 65535")?;
            cursor.skip_spaces();
            cursor.expect("port ", "port and a number")?;
            let port = if cursor.take("ALL") {
                None
            } else {
                Some(cursor.number("a port number")?)
            };
            ports.push(PortCounters {
                lid: Some(lid),
                port,
                ..PortCounters::default()
            });
            continue;
        }
        let Some(port) = ports.last_mut() else {
            return Err(cursor.error("a heading such as \"# Port counters: Lid 6 port 1\""));
        };
        let name = cursor.until(":", "NAME:....VALUE")?.trim().to_owned();
        while cursor.take(".") {}
        let value = if cursor.take("0x") {
            u64::from_str_radix(cursor.rest().trim(), 16).map_err(|_| cursor.error("a number"))?
        } else {
            cursor.number("a number")?
        };
        if !name.contains("Select") {
            port.counters.insert(name, value);
        }
    }
    Ok(ports)
}

/// Reads the output of `ibqueryerrors`.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse_ibqueryerrors(text: &str) -> Result<Vec<PortCounters>, Error> {
    let mut ports = Vec::new();
    let mut node = None;
    for mut cursor in lines(text) {
        cursor.skip_spaces();
        if cursor.is_empty() || cursor.take("#") || cursor.take("Link info:") {
            continue;
        }
        if cursor.take("Errors for ") {
            node = Some(heading(&mut cursor)?);
            continue;
        }
        let Some(node) = &node else {
            return Err(cursor.error("an \"Errors for\" line before the first port"));
        };
        cursor.expect("GUID ", "GUID and a port")?;
        let guid = cursor.guid("")?;
        cursor.skip_spaces();
        cursor.expect("port ", "port and a number, or ALL")?;
        let port = if cursor.take("ALL") {
            None
        } else {
            Some(cursor.number("a port number, or ALL")?)
        };
        cursor.expect(":", ": after the port")?;
        let mut counters = BTreeMap::new();
        cursor.skip_spaces();
        while cursor.take("[") {
            let name = cursor.until(" == ", "NAME == VALUE")?.to_owned();
            counters.insert(name, cursor.number("a number")?);
            // Data may be repeated in a rounder unit.
            cursor.until("]", "] after the value")?;
            cursor.skip_spaces();
        }
        ports.push(PortCounters {
            node: node.clone(),
            guid: Some(guid),
            lid: None,
            port,
            counters,
        });
    }
    Ok(ports)
}

/// `"HOST DEVICE"` of an adapter, `0xGUID "DESCRIPTION"` of a switch: a name for people.
fn heading(cursor: &mut Cursor<'_>) -> Result<String, Error> {
    if cursor.rest().starts_with("0x") {
        cursor.guid("")?;
        cursor.skip_spaces();
    }
    cursor.expect("\"", "a quoted description")?;
    let text = cursor.until_last("\"", "the closing quote of the description")?;
    let named = if names::is_switch(text) {
        names::switch(text).map(|s| s.name)
    } else {
        names::host(text).map(|(host, device)| format!("{host}:{device}"))
    };
    Ok(named.unwrap_or_else(|| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_in_words_of_four_bytes_and_a_full_register_is_saturated() {
        let text = "# Port extended counters: Lid 7 port 2 (CapMask: 0x5300)\nPortSelect:......2\nPortXmitData:....10\nSymbolErrorCounter:....65535\n";
        let ports = parse_perfquery(text).unwrap();
        assert_eq!((ports[0].lid, ports[0].port), (Some(7), Some(2)));
        let readings = ports[0].readings();
        let of = |signal| *readings.iter().find(|r| r.signal == signal).unwrap();
        assert_eq!(of(Signal::TxBytes).value, 40);
        assert!(of(Signal::SymbolErrors).saturated && !of(Signal::TxBytes).saturated);
        assert_eq!(readings.len(), 2, "what is absent is absent");
    }

    #[test]
    fn a_counter_without_a_port_is_named_with_its_line() {
        let error = parse_perfquery("\nPortXmitData:....1").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        let error =
            parse_ibqueryerrors("Errors for \"a b\"\n  GUID 0x1 port 1: [X = 3]").unwrap_err();
        assert_eq!((error.line, error.column), (2, 21), "{error}");
    }
}
