//! Lines of mlx5: health of the device, its modules and sensors. Newer kernels put the name of the
//! function before some messages, older ones before others; both are read.
//!
//! Source: drivers/net/ethernet/mellanox/mlx5/core/{health,events}.c.

use super::module::COOL;
use super::{Origin, event, join, module};
use crate::source::{Event, Severity};

const REPLACE: &str = "drain the node and power-cycle it; if it returns, replace the NIC";
const LOOK: &str = "drain the node if it returns, and read the device's firmware trace";
const GONE: &str = "all registers read as ones: the device no longer answers on PCIe";

/// A message by what it begins with.
struct Sign {
    begin: &'static str,
    name: &'static str,
    severity: Severity,
    meaning: &'static str,
    action: &'static str,
}

const fn broken(begin: &'static str, meaning: &'static str) -> Sign {
    Sign {
        begin,
        name: "nic_health",
        severity: Severity::Critical,
        meaning,
        action: REPLACE,
    }
}

const SIGNS: &[Sign] = &[
    broken("Fatal error", "NIC reports a fatal error"),
    broken(
        "device's health compromised",
        "NIC's firmware no longer counts its health counter up",
    ),
    broken("health recovery flow aborted", "NIC could not be recovered"),
    broken("health recovery failed", "NIC could not be recovered"),
    broken("PCI slot", GONE),
    broken("assert_var[0] 0xffffffff", GONE),
    broken("fw_ver 65535.65535.65535", GONE),
    Sign {
        begin: "Detected insufficient power",
        name: "nic_health",
        severity: Severity::Warning,
        meaning: "PCIe slot gives the NIC too little power: modules may be off",
        action: "use a slot with more power, or allow the NIC to draw it",
    },
    Sign {
        begin: "High temperature on sensors",
        name: "nic_temperature",
        severity: Severity::Warning,
        meaning: "NIC is too hot",
        action: COOL,
    },
];

/// An event in a message of mlx5.
pub(super) fn health(origin: &Origin<'_>, body: &str) -> Option<Event> {
    if let Some(rest) = body.strip_prefix("Port module event") {
        return module::change(origin, rest);
    }
    if origin.driver != "mlx5_core" {
        return None;
    }
    let message = without_function(body);
    if let Some(rest) = message.strip_prefix("Port module event") {
        return module::change(origin, rest);
    }
    if let Some(rest) = message.strip_prefix("synd 0x") {
        return syndrome(origin, rest);
    }
    if let Some(rest) = message.strip_prefix("Health issue observed, ") {
        return Some(issue(origin, rest));
    }
    if let Some((command, _)) = message.split_once(" timeout. Will cause a leak of a command") {
        let text = format!("NIC's firmware did not answer the command {command}");
        return Some(event(
            "nic_health",
            origin.subject(),
            Severity::Warning,
            text,
            LOOK,
        ));
    }
    let sign = SIGNS.iter().find(|s| message.starts_with(s.begin))?;
    let detail = match sign.meaning {
        GONE => "",
        _ => message[sign.begin.len()..].trim_start_matches([' ', '-']),
    };
    let text = join(sign.meaning, detail);
    Some(event(
        sign.name,
        origin.subject(),
        sign.severity,
        text,
        sign.action,
    ))
}

/// `poll_health:694:(pid 0): message` and `mlx5_pcie_event:299: message` without the function.
fn without_function(body: &str) -> &str {
    let stripped = || {
        let (function, rest) = body.split_once(':')?;
        let (line, rest) = rest.split_once(':')?;
        let named = function
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_');
        line.parse::<u32>().ok().filter(|_| named)?;
        match rest.strip_prefix("(pid ") {
            Some(pid) => pid.split_once("): ").map(|(_, message)| message),
            None => rest.strip_prefix(' '),
        }
    };
    stripped().unwrap_or(body)
}

/// `ff: unrecognized error`: the health syndrome, which becomes the event's code. How bad it is
/// stands in a line before it.
fn syndrome(origin: &Origin<'_>, rest: &str) -> Option<Event> {
    let (number, reason) = rest.split_once(": ")?;
    let number = u32::from_str_radix(number, 16).ok()?;
    let mut found = if number == 0xff {
        event(
            "nic_health",
            origin.subject(),
            Severity::Critical,
            GONE.to_owned(),
            REPLACE,
        )
    } else {
        judged(origin, reason, Severity::Warning)
    };
    found.code = Some(number);
    Some(found)
}

/// `firmware internal error, severity(3) ERROR:`, the severity one of the kernel's log levels.
fn issue(origin: &Origin<'_>, rest: &str) -> Event {
    let (reason, level) = rest.rsplit_once(", severity(").unwrap_or((rest, "3)"));
    let level = level
        .split_once(')')
        .and_then(|(l, _)| l.parse::<u8>().ok());
    let severity = match level.unwrap_or(3) {
        0..=3 => Severity::Critical,
        4 => Severity::Warning,
        _ => Severity::Info,
    };
    judged(origin, reason, severity)
}

fn judged(origin: &Origin<'_>, reason: &str, severity: Severity) -> Event {
    let reason = reason.trim();
    let (name, meaning, action) = if reason.eq_ignore_ascii_case("high temperature") {
        ("nic_temperature", "NIC is too hot", COOL)
    } else {
        ("nic_health", "NIC reports", REPLACE)
    };
    event(
        name,
        origin.subject(),
        severity,
        join(meaning, reason),
        action,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmsg::classify_line;

    fn found(body: &str) -> Option<(&'static str, Severity, String)> {
        let event = classify_line(&format!("mlx5_core 0000:5c:00.1: {body}"))?;
        assert_eq!(event.subject, "0000:5c:00.1");
        Some((event.name, event.severity, event.text))
    }

    #[test]
    fn with_pci_gone_everything_reads_as_ones() {
        for body in [
            "print_health_info:383:(pid 0): synd 0xff: unrecognized error",
            "print_health_info:372:(pid 0): assert_var[0] 0xffffffff",
            "print_health_info:380:(pid 0): fw_ver 65535.65535.65535",
            "print_health_info:423:(pid 0): PCI slot 1 is unavailable",
            "PCI slot is unavailable",
        ] {
            assert_eq!(
                found(body),
                Some(("nic_health", Severity::Critical, GONE.to_owned())),
                "{body}"
            );
        }
        assert_eq!(
            found("print_health_info:372:(pid 0): assert_var[0] 0x00000073"),
            None
        );
        assert_eq!(
            found("print_health_info:380:(pid 0): fw_ver 28.39.1002"),
            None
        );
    }

    #[test]
    fn a_syndrome_is_the_code() {
        let line = "mlx5_core 0000:5c:00.0: print_health_info:383:(pid 0): synd 0x1: firmware internal error";
        let event = classify_line(line).unwrap();
        assert_eq!(
            (event.code, event.text.as_str()),
            (Some(1), "NIC reports: firmware internal error")
        );
    }

    #[test]
    fn health_in_old_and_new_words() {
        for (body, severity) in [
            (
                "poll_health:694:(pid 0): Fatal error 1 detected",
                Severity::Critical,
            ),
            (
                "print_health:819:(pid 0): Fatal error detected",
                Severity::Critical,
            ),
            (
                "poll_health:709:(pid 0): device's health compromised - reached miss count",
                Severity::Critical,
            ),
            (
                "Health issue observed, firmware internal error, severity(3) ERROR:",
                Severity::Critical,
            ),
            (
                "print_health_info:431:(pid 0): Health issue observed, EQ error, severity(4) WARNING:",
                Severity::Warning,
            ),
            (
                "mlx5_pcie_event:299: Detected insufficient power on the PCIe slot (27W).",
                Severity::Warning,
            ),
            (
                "wait_func:991:(pid 32): QUERY_VPORT_COUNTER(0x770) timeout. Will cause a leak of a command resource",
                Severity::Warning,
            ),
        ] {
            let (name, found, text) = found(body).unwrap();
            assert_eq!((name, found), ("nic_health", severity), "{body}");
            assert!(!text.ends_with([':', ' ']), "{text}");
        }
    }

    #[test]
    fn heat_has_its_own_name() {
        for body in [
            "temp_warn:171:(pid 0): High temperature on sensors with bit set 0 1",
            "temp_warn:190:(pid 0): High temperature on sensors with bit set 0x0 0x1.",
            "print_health_info:520:(pid 0): synd 0x10: High temperature",
            "Health issue observed, High temperature, severity(3) ERROR:",
        ] {
            assert_eq!(found(body).unwrap().0, "nic_temperature", "{body}");
        }
    }

    #[test]
    fn other_lines_of_the_driver_are_none() {
        for body in [
            "E-Switch: Total vports 10, per vport: max uc(128) max mc(2048)",
            "firmware version: 28.39.1002",
            "print_health_info:382:(pid 0): irisc_index 255",
            "Port module event",
        ] {
            assert_eq!(found(body), None, "{body}");
        }
    }
}
