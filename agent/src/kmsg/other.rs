//! Lines of NIC drivers and of PCI Express: health, modules, links, AER. Pure.

use super::xid::pci_address;
use crate::source::{Event, Severity};

const CABLE: &str = "check cable, optic and the port at the other end";
const NIC_RESET: &str = "drain the node; reset the NIC's firmware (mlxfwreset) or power-cycle the node, then replace the NIC";

/// Words that make an event of a line of mlx5_core.
struct Rule {
    words: &'static str,
    name: &'static str,
    severity: Severity,
    action: &'static str,
}

/// The first rule that fits counts.
const MLX5: &[Rule] = &[
    Rule {
        words: "Cable unplugged",
        name: "module_removed",
        severity: Severity::Warning,
        action: CABLE,
    },
    Rule {
        words: "Port module event[error]",
        name: "module_error",
        severity: Severity::Warning,
        action: "replace the optic or cable, or give it the power it asks for",
    },
    Rule {
        words: "Cable plugged",
        name: "module_inserted",
        severity: Severity::Info,
        action: "",
    },
    Rule {
        words: "insufficient power on the PCIe slot",
        name: "nic_power",
        severity: Severity::Warning,
        action: "put the NIC into a slot that gives it enough power",
    },
    Rule {
        words: "igh temperature",
        name: "nic_temperature",
        severity: Severity::Critical,
        action: "check the node's fans and air flow",
    },
    Rule {
        words: "Fatal error",
        name: "nic_health",
        severity: Severity::Critical,
        action: NIC_RESET,
    },
    Rule {
        words: "health compromised",
        name: "nic_health",
        severity: Severity::Critical,
        action: NIC_RESET,
    },
    Rule {
        words: "Health issue observed",
        name: "nic_health",
        severity: Severity::Critical,
        action: NIC_RESET,
    },
    Rule {
        words: "health recovery",
        name: "nic_health",
        severity: Severity::Critical,
        action: NIC_RESET,
    },
    Rule {
        words: "Will cause a leak of a command resource",
        name: "nic_command_timeout",
        severity: Severity::Critical,
        action: NIC_RESET,
    },
];

/// The event of a line, if it has one.
#[must_use]
pub fn line(message: &str) -> Option<Event> {
    aer(message)
        .or_else(|| pcie_downgraded(message))
        .or_else(|| mlx5(message))
        .or_else(|| link(message))
}

fn event(
    name: &'static str,
    subject: String,
    severity: Severity,
    text: &str,
    action: &str,
) -> Event {
    Event {
        source: "kmsg",
        name,
        subject,
        code: None,
        severity,
        text: text.trim().to_owned(),
        action: action.to_owned(),
    }
}

/// `DRIVER ADDRESS REST`, at the beginning of the message.
fn driver_line(message: &str) -> Option<(&str, String, &str)> {
    let (driver, rest) = message.trim_start().split_once(' ')?;
    let (address, rest) = rest.split_once(' ')?;
    Some((driver, pci_address(address.trim_end_matches(':'))?, rest))
}

fn mlx5(message: &str) -> Option<Event> {
    let at = message.find("mlx5_core ")?;
    let (_, address, rest) = driver_line(&message[at..])?;
    if let Some(rule) = MLX5.iter().find(|rule| rest.contains(rule.words)) {
        // `function:line:(pid N): ` of newer drivers is of no use to anybody.
        let text = rest.rsplit_once("): ").map_or(rest, |(_, text)| text);
        return Some(event(rule.name, address, rule.severity, text, rule.action));
    }
    // `mlx5_5: Port: 1 Link ACTIVE`
    let (device, state) = rest.split_once(": Port: ")?;
    let (port, state) = state.split_once(" Link ")?;
    let up = state.trim() == "ACTIVE";
    Some(link_event(format!("{device}/{port}"), up))
}

fn link_event(subject: String, up: bool) -> Event {
    if up {
        event("link_up", subject, Severity::Info, "link is up", "")
    } else {
        event(
            "link_down",
            subject,
            Severity::Warning,
            "link is down",
            CABLE,
        )
    }
}

/// `DRIVER ADDRESS INTERFACE: NIC Link is Down`, `mlx5_core ADDRESS INTERFACE: Link up`,
/// `INTERFACE: Link is Up - 1Gbps`.
fn link(message: &str) -> Option<Event> {
    const FORMS: [(&str, bool); 6] = [
        (": NIC Link is Down", false),
        (": NIC Link is Up", true),
        (": Link is Down", false),
        (": Link is Up", true),
        (": Link down", false),
        (": Link up", true),
    ];
    let form = |(words, up): &(&str, bool)| Some((message.split_once(words)?.0, *up));
    // mlx5 leaves the colon out after the interface.
    let bare = || {
        let (before, up) = [(" Link up", true), (" Link down", false)]
            .iter()
            .find_map(|(words, up)| Some((message.strip_suffix(words)?, *up)))?;
        message.contains("mlx5_core ").then_some((before, up))
    };
    let (before, up) = FORMS.iter().find_map(form).or_else(bare)?;
    let interface = before.rsplit(' ').next()?.trim_end_matches(':');
    let is_name = !interface.is_empty() && interface.len() < 16 && pci_address(interface).is_none();
    is_name.then(|| link_event(interface.to_owned(), up))
}

/// `pcieport PORT: AER: Corrected error received: DEVICE`,
/// `DRIVER DEVICE: PCIe Bus Error: severity=Uncorrected (Fatal), type=...`.
fn aer(message: &str) -> Option<Event> {
    let (_, reporter, rest) = driver_line(message)?;
    let (kind, subject) = match (rest.split_once("AER: "), rest.split_once("severity=")) {
        (Some((_, text)), _) => {
            let (kind, device) = text.split_once(" error received")?;
            let device = device.trim_matches([':', ' ']);
            let device = device.split(' ').next().and_then(pci_address);
            (
                kind.trim_start_matches("Multiple ").trim(),
                device.unwrap_or(reporter),
            )
        }
        (None, Some((before, text))) if before.contains("PCIe Bus Error") => (
            text.split_once(',').map_or(text, |(kind, _)| kind),
            reporter,
        ),
        _ => return None,
    };
    if kind.starts_with("Corrected") || kind.starts_with("Correctable") {
        let text = "PCIe error, corrected by the link";
        return Some(event("aer_corrected", subject, Severity::Info, text, ""));
    }
    let fatal = kind.contains("Fatal") && !kind.contains("Non-Fatal");
    let severity = if fatal {
        Severity::Critical
    } else {
        Severity::Warning
    };
    let text = format!("PCIe error, not corrected ({kind})");
    let action = "check the seating of the device; look for XIDs or NIC errors at the same time";
    Some(event("aer_uncorrected", subject, severity, &text, action))
}

/// `pci ADDRESS: 63.008 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x8 link at ...`.
fn pcie_downgraded(message: &str) -> Option<Event> {
    if !message.contains("available PCIe bandwidth, limited by") {
        return None;
    }
    let (_, subject, rest) = driver_line(message)?;
    let action = "reseat the device and its riser; check the slot's width and the BIOS";
    Some(event(
        "pcie_downgraded",
        subject,
        Severity::Warning,
        rest,
        action,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(message: &str) -> (&'static str, String) {
        let event = line(message).unwrap();
        (event.name, event.subject)
    }

    #[test]
    fn a_module_is_told_in_old_and_new_forms() {
        let subject = "0000:41:00.1".to_owned();
        for text in [
            "mlx5_core 0000:41:00.1: mlx5_port_module_event:1131:(pid 0): Port module event: module 1, Cable unplugged",
            "mlx5_core 0000:41:00.1: port_module:252:(pid 0): Port module event: module 1, Cable unplugged",
            "mlx5_core 0000:41:00.1: Port module event: module 1, Cable unplugged",
        ] {
            assert_eq!(of(text), ("module_removed", subject.clone()));
            assert_eq!(
                line(text).unwrap().text,
                "Port module event: module 1, Cable unplugged"
            );
        }
        let error = "mlx5_core 0000:81:00.0: port_module:252:(pid 0): Port module event[error]: module 0, Cable error, Power budget exceeded";
        assert_eq!(of(error).0, "module_error");
    }

    #[test]
    fn a_nic_whose_pci_is_gone_is_one_event_by_name_and_subject() {
        for text in [
            "mlx5_core 0000:00:00.0: poll_health:694:(pid 0): Fatal error 1 detected",
            "mlx5_core 0000:00:00.0: poll_health:709:(pid 0): device's health compromised - reached miss count",
        ] {
            assert_eq!(of(text), ("nic_health", "0000:00:00.0".to_owned()));
        }
        let dump =
            "mlx5_core 0000:00:00.0: print_health_info:372:(pid 0): assert_var[0] 0xffffffff";
        assert_eq!(line(dump), None);
    }

    #[test]
    fn links_are_told_by_interface_or_verbs_port() {
        for (text, name, subject) in [
            (
                "mlx5_core 0000:41:00.0 enp65s0f0np0: Link up",
                "link_up",
                "enp65s0f0np0",
            ),
            (
                "mlx5_core 0000:41:00.0 ens1: Link down",
                "link_down",
                "ens1",
            ),
            (
                "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link INIT",
                "link_down",
                "mlx5_5/1",
            ),
            (
                "mlx5_core 0000:ab:00.0 mlx5_5: Port: 1 Link ACTIVE",
                "link_up",
                "mlx5_5/1",
            ),
            (
                "bnxt_en 0000:01:00.0 eth2: NIC Link is Down",
                "link_down",
                "eth2",
            ),
            ("ice 0000:01:00.0 eth2: NIC Link is up 100 Gbps", "", ""),
            ("eth0: Link is Up - 1Gbps/Full", "link_up", "eth0"),
        ] {
            let found = line(text).map(|e| (e.name, e.subject));
            let expected = (!name.is_empty()).then(|| (name, subject.to_owned()));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn aer_names_the_device_and_not_the_port_that_reports() {
        for text in [
            "pcieport 0000:00:1d.0: AER: Corrected error received: 0000:02:00.0",
            "pcieport 0000:00:1d.0: AER: Multiple Corrected error received: 0000:02:00.0",
            "nvme 0000:02:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
        ] {
            assert_eq!(
                of(text),
                ("aer_corrected", "0000:02:00.0".to_owned()),
                "{text}"
            );
        }
        let fatal = "mlx5_core 0000:02:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer";
        assert_eq!(line(fatal).unwrap().severity, Severity::Critical);
        let other =
            "pcieport 0000:00:1d.0: AER: Uncorrected (Non-Fatal) error received: 0000:02:00.0";
        assert_eq!(line(other).unwrap().severity, Severity::Warning);
        assert_eq!(
            of("pcieport 0000:00:1c.5: AER: Corrected error received: id=00e5").1,
            "0000:00:1c.5"
        );
    }

    #[test]
    fn a_link_of_pcie_below_its_width_is_told() {
        let text = "pci 0000:18:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x8 link at 0000:17:00.0 (capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)";
        assert_eq!(of(text), ("pcie_downgraded", "0000:18:00.0".to_owned()));
    }

    proptest! {
        #[test]
        fn garbage_gives_short_subjects(tail in ".{0,60}") {
            for head in ["mlx5_core 0000:41:00.0: ", "pcieport 0000:00:1d.0: AER: ", "mlx5_core ", "eth0: Link is Down", ""] {
                if let Some(event) = line(&format!("{head}{tail}")) {
                    prop_assert!(event.subject.len() <= 80, "{:?}", event);
                }
            }
        }
    }
}
