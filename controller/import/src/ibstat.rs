//! `ibstat` and `ibstatus`: the adapters of one host.

use crate::finding::{Finding, Kind};
use crate::guid::Guid;
use crate::rate;
use crate::text::{Error, lines};
use serde::Serialize;

/// A port of an adapter.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AdapterPort {
    pub number: u32,
    /// Without its number, such as `Active`.
    pub state: String,
    pub physical_state: String,
    /// Bits per second; `None` while the port is down, when the tools print a made-up 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u8>,
    /// `None` while the port has none (printed as 0 or 65535).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lid: Option<u16>,
    pub link_layer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Guid>,
}

/// An adapter.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Adapter {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub firmware: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Guid>,
    pub ports: Vec<AdapterPort>,
}

/// Reads the output of `ibstat` or `ibstatus`.
///
/// # Errors
/// [`Error`] at the first line that is none of theirs.
pub fn parse(text: &str) -> Result<Vec<Adapter>, Error> {
    let mut adapters: Vec<Adapter> = Vec::new();
    for mut cursor in lines(text) {
        cursor.skip_spaces();
        if cursor.is_empty() {
            continue;
        }
        if cursor.take("CA '") {
            let name = cursor.until("'", "' after the adapter's name")?.to_owned();
            adapters.push(Adapter {
                name,
                ..Adapter::default()
            });
            continue;
        }
        if cursor.take("Infiniband device '") {
            let name = cursor.until("'", "' after the adapter's name")?.to_owned();
            cursor.skip_spaces();
            cursor.expect("port ", "port and a number")?;
            let port = cursor.number("a port number")?;
            // One block for each port: those of one adapter follow each other.
            if adapters.last().is_none_or(|a| a.name != name) {
                adapters.push(Adapter {
                    name,
                    ..Adapter::default()
                });
            }
            if let Some(adapter) = adapters.last_mut() {
                adapter.ports.push(new_port(port));
            }
            continue;
        }
        let Some(adapter) = adapters.last_mut() else {
            return Err(cursor.error("CA 'NAME' or Infiniband device 'NAME'"));
        };
        let here = cursor.clone();
        if cursor.take("Port ")
            && let Ok(number) = cursor.number("")
        {
            adapter.ports.push(new_port(number));
            continue;
        }
        cursor = here.clone();
        let key = cursor.until(":", "KEY: VALUE")?.trim();
        let value = cursor.rest().trim();
        let wrong = || here.error(&format!("{key}: and a value of its kind"));
        let Some(port) = adapter.ports.last_mut() else {
            match key {
                "CA type" => value.clone_into(&mut adapter.model),
                "Firmware version" => value.clone_into(&mut adapter.firmware),
                "Node GUID" => adapter.guid = Some(Guid::parse(value).ok_or_else(wrong)?),
                _ => {}
            }
            continue;
        };
        match key {
            "State" | "state" => port.state = without_number(value),
            "Physical state" | "phys state" => port.physical_state = without_number(value),
            "Link layer" | "link_layer" => value.clone_into(&mut port.link_layer),
            "Port GUID" => port.guid = Some(Guid::parse(value).ok_or_else(wrong)?),
            "Base lid" | "base lid" => port.lid = lid(value).ok_or_else(wrong)?,
            "Rate" | "rate" => {
                let mut words = value.split([' ', '(', ')']).filter(|w| !w.is_empty());
                let gbit: f64 = words
                    .next()
                    .and_then(|w| w.parse().ok())
                    .ok_or_else(wrong)?;
                port.rate_bps = Some(gbit * 1e9).filter(|bps| bps.is_finite() && *bps > 0.0);
                port.lanes = words.find_map(rate::lanes);
            }
            _ => {}
        }
    }
    for port in adapters.iter_mut().flat_map(|a| &mut a.ports) {
        if !is_up(port) {
            (port.rate_bps, port.lanes) = (None, None);
        }
    }
    Ok(adapters)
}

fn new_port(number: u32) -> AdapterPort {
    AdapterPort {
        number,
        ..AdapterPort::default()
    }
}

/// `4: ACTIVE` and `Active` alike.
fn without_number(value: &str) -> String {
    value.split(": ").last().unwrap_or(value).to_owned()
}

/// Decimal in `ibstat`, hexadecimal in `ibstatus`. The outer `None`: no lid at all.
fn lid(text: &str) -> Option<Option<u16>> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok()?,
        None => text.parse().ok()?,
    };
    Some(crate::discovered::lid(number))
}

fn is_up(port: &AdapterPort) -> bool {
    !port.state.eq_ignore_ascii_case("down")
}

/// Ports that are down, and those on fewer lanes than four.
#[must_use]
pub fn findings(adapters: &[Adapter]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for adapter in adapters {
        for port in &adapter.ports {
            let subject = format!("{}/{}", adapter.name, port.number);
            if !is_up(port) {
                let why = match port.physical_state.as_str() {
                    "Disabled" => "it is switched off",
                    "Polling" => {
                        "it hears nothing from the far end: cable, transceiver or a port switched off there"
                    }
                    other => other,
                };
                let text = format!("{subject} is down: {why}");
                findings.push(Finding::warning(Kind::Down, subject, text));
            } else if let Some(lanes) = port.lanes.filter(|l| *l < 4) {
                let text = format!(
                    "{subject} runs on {lanes} lane(s): right for a split port, otherwise a lane is lost"
                );
                findings.push(Finding::note(Kind::Downgraded, subject, text));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_down_has_no_rate_and_no_lid() {
        let text = "CA 'mlx5_0'\n\tCA type: MT4129\n\tPort 1:\n\t\tState: Down\n\t\tPhysical state: Polling\n\t\tRate: 10\n\t\tBase lid: 65535\n";
        let adapters = parse(text).unwrap();
        let port = &adapters[0].ports[0];
        assert_eq!((port.rate_bps, port.lid), (None, None));
        assert!(findings(&adapters)[0].text.contains("hears nothing"));
    }

    #[test]
    fn a_lid_that_is_none_is_named_with_its_place() {
        let error = parse("CA 'a'\nPort 1:\n  Base lid: many").unwrap_err();
        assert_eq!((error.line, error.column), (3, 3), "{error}");
    }
}
