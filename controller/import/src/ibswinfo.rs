//! `ibswinfo`: what an unmanaged InfiniBand switch says of itself.

use crate::finding::{Finding, Kind};
use crate::guid::Guid;
use crate::text::{Error, lines};
use serde::Serialize;
use std::collections::BTreeMap;

/// A switch's own account. What it did not answer is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SwitchHealth {
    pub description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Guid>,
    /// Degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<i32>,
    /// Revolutions per minute, by the fan's name.
    pub fans_rpm: BTreeMap<String, u32>,
    /// Watts, by power supply.
    pub power_w: BTreeMap<String, u32>,
    /// States of fans and supplies, such as `OK` and `ERROR`.
    pub states: BTreeMap<String, String>,
    /// Part, serial number, firmware and the like.
    pub facts: BTreeMap<String, String>,
}

/// Reads the output of `ibswinfo`.
///
/// # Errors
/// [`Error`] at the first line that is none of its.
pub fn parse(text: &str) -> Result<SwitchHealth, Error> {
    let mut switch = SwitchHealth::default();
    let mut supply = None;
    for mut cursor in lines(text) {
        let line = cursor.line();
        if line.trim().is_empty() || line.starts_with("===") || line.starts_with("---") {
            continue;
        }
        if switch.description.is_empty() && switch.facts.is_empty() && !line.contains('|') {
            line.trim().clone_into(&mut switch.description);
            continue;
        }
        let here = cursor.clone();
        let key = cursor.until("|", "NAME | VALUE")?.trim();
        let value = cursor.rest().trim();
        if value.is_empty() {
            continue;
        }
        let wrong = || here.error(&format!("a number for {key}"));
        if let Some(unit) = key.strip_suffix(" status").filter(|k| k.starts_with("PSU")) {
            supply = Some(unit);
            switch.states.insert(unit.to_owned(), value.to_owned());
        } else if line.starts_with(' ') {
            let unit = supply.unwrap_or("PSU");
            match key {
                "power (W)" => {
                    let power = value.parse().map_err(|_| wrong())?;
                    switch.power_w.insert(unit.to_owned(), power);
                }
                "DC power" | "fan status" => {
                    switch
                        .states
                        .insert(format!("{unit} {key}"), value.to_owned());
                }
                _ => {
                    switch
                        .facts
                        .insert(format!("{unit} {key}"), value.to_owned());
                }
            }
        } else if key == "fan status" {
            switch.states.insert("fans".to_owned(), value.to_owned());
        } else if let Some(fan) = key.strip_suffix(" (rpm)") {
            let rpm = value.parse().map_err(|_| wrong())?;
            switch.fans_rpm.insert(fan.to_owned(), rpm);
        } else if key == "temperature (C)" {
            switch.temperature_c = Some(value.parse().map_err(|_| wrong())?);
        } else if key == "GUID" {
            switch.guid = Some(Guid::parse(value).ok_or_else(|| here.error("a GUID"))?);
        } else {
            switch.facts.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(switch)
}

/// Fans and supplies that are not well.
#[must_use]
pub fn findings(switch: &SwitchHealth) -> Vec<Finding> {
    let subject = switch
        .guid
        .map_or_else(|| switch.description.clone(), |g| format!("switch {g}"));
    let bad = switch.states.iter().filter(|(_, state)| *state != "OK");
    bad.map(|(unit, state)| {
        let text = format!("{unit} of {subject} ({}) says {state}", switch.description);
        Finding::warning(Kind::Hardware, subject.clone(), text)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supply_s_fan_is_not_the_switch_s() {
        let text = "====\nSome Switch\n====\nGUID | 0x1\nPSU0 status | OK\n     fan status | ERROR\n     power (W) | 70\nfan status | OK\nfan#1 (rpm) | 8000\n";
        let switch = parse(text).unwrap();
        assert_eq!(switch.power_w["PSU0"], 70);
        let findings = findings(&switch);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].text.contains("PSU0 fan status"), "{findings:?}");
    }

    #[test]
    fn a_fan_without_a_number_is_named_with_its_line() {
        let error = parse("x\nfan#1 (rpm) | fast").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
    }
}
