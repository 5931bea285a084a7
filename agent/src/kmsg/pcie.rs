//! Errors on PCIe as the kernel's AER driver reports them, and links that trained below what the
//! device can do.
//!
//! Source: drivers/pci/pcie/{aer,dpc}.c, drivers/pci/pci.c (__pcie_print_link_status).

use super::{Origin, event, join, pci};
use crate::source::{Event, Severity};

/// `AER: Corrected error received: 0000:02:00.0` of a root port, and `PCIe Bus Error:
/// severity=Corrected, type=...` of the device, with or without `AER:` before it.
pub(super) fn error(origin: &Origin<'_>, body: &str) -> Option<Event> {
    if body.starts_with("DPC: containment event") {
        let meaning = "PCIe port cut the device off after an error";
        return Some(uncorrected(
            origin.subject(),
            Severity::Critical,
            meaning.to_owned(),
        ));
    }
    let aer = body.strip_prefix("AER: ");
    if let Some(rest) = aer
        .unwrap_or(body)
        .strip_prefix("PCIe Bus Error: severity=")
    {
        let (kind, detail) = rest.split_once(", ").unwrap_or((rest, ""));
        return Some(of_kind(origin.subject(), kind, detail));
    }
    let rest = aer?;
    let kind = rest.strip_prefix("Multiple ").unwrap_or(rest);
    let reported = kind.contains(" error received") || kind.contains(" error message received");
    if !reported || !(kind.starts_with("Correct") || kind.starts_with("Uncorrect")) {
        return None;
    }
    let subject = pci::find(kind).unwrap_or_else(|| origin.subject());
    Some(of_kind(subject, kind, ""))
}

/// `Corrected`, `Correctable`, `Uncorrected (Non-Fatal)`, `Uncorrectable (Fatal)`.
fn of_kind(subject: String, kind: &str, detail: &str) -> Event {
    let detail = detail.strip_prefix("type=").unwrap_or(detail);
    if kind.starts_with("Correct") {
        let text = join("PCIe error that the link corrected", detail);
        let action = "reseat the device if they keep coming";
        return event("aer_corrected", subject, Severity::Info, text, action);
    }
    let (severity, meaning) = if kind.contains("Non-Fatal") {
        (Severity::Warning, "PCIe error that was not corrected")
    } else {
        (Severity::Critical, "fatal PCIe error")
    };
    uncorrected(subject, severity, join(meaning, detail))
}

fn uncorrected(subject: String, severity: Severity, text: String) -> Event {
    let action = "drain the node and reset the device; if it returns, reseat or replace it";
    event("aer_uncorrected", subject, severity, text, action)
}

/// `4.000 Gb/s available PCIe bandwidth, limited by 5.0 GT/s PCIe x1 link at 0000:00:1c.1
/// (capable of 7.876 Gb/s with 8.0 GT/s PCIe x1 link)`.
pub(super) fn downgrade(origin: &Origin<'_>, body: &str) -> Option<Event> {
    if !body.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (have, rest) = body.split_once(" Gb/s available PCIe bandwidth, limited by ")?;
    let (limit, capable) = rest.split_once(" (capable of ")?;
    let capable = capable.trim_end_matches([')', '.']);
    let text = format!("PCIe gives {have} Gb/s, limited by {limit}; the device can do {capable}");
    let action = "check slot and seating, if the device should have its full width and speed";
    Some(event(
        "pcie_downgraded",
        origin.subject(),
        Severity::Warning,
        text,
        action,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmsg::classify_line;

    fn found(line: &str) -> Option<(&'static str, String, Severity)> {
        classify_line(line).map(|e| (e.name, e.subject, e.severity))
    }

    #[test]
    fn the_device_in_error_is_the_subject() {
        for (line, name, subject, severity) in [
            (
                "pcieport 0000:00:06.0: AER: Corrected error received: 0000:02:00.0",
                "aer_corrected",
                "0000:02:00.0",
                Severity::Info,
            ),
            (
                "pcieport 0000:00:06.0: AER: Multiple Corrected error received: 0000:02:00.0",
                "aer_corrected",
                "0000:02:00.0",
                Severity::Info,
            ),
            (
                "pcieport 0000:00:06.0: AER: Corrected error received: id=00e0",
                "aer_corrected",
                "0000:00:06.0",
                Severity::Info,
            ),
            (
                "pcieport 0000:00:06.0: AER: Correctable error message received from 0000:02:00.0",
                "aer_corrected",
                "0000:02:00.0",
                Severity::Info,
            ),
            (
                "nvme 0000:02:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
                "aer_corrected",
                "0000:02:00.0",
                Severity::Info,
            ),
            (
                "igb 0000:09:00.0: AER: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
                "aer_uncorrected",
                "0000:09:00.0",
                Severity::Warning,
            ),
            (
                "pcieport 0000:c0:01.1: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, (Requester ID)",
                "aer_uncorrected",
                "0000:c0:01.1",
                Severity::Critical,
            ),
            (
                "pcieport 0000:00:01.1: AER: Uncorrected (Fatal) error received: 0000:09:00.0",
                "aer_uncorrected",
                "0000:09:00.0",
                Severity::Critical,
            ),
            (
                "pcieport 0000:00:1b.0: DPC: containment event, status:0x1f01 source:0x0000",
                "aer_uncorrected",
                "0000:00:1b.0",
                Severity::Critical,
            ),
        ] {
            assert_eq!(
                found(line),
                Some((name, subject.to_owned(), severity)),
                "{line}"
            );
        }
    }

    #[test]
    fn the_layer_is_told() {
        let line = "nvme 0000:02:00.0: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Transmitter ID)";
        let text = classify_line(line).unwrap().text;
        assert_eq!(
            text,
            "PCIe error that the link corrected: Data Link Layer, (Transmitter ID)"
        );
    }

    #[test]
    fn what_belongs_to_an_error_is_no_second_one() {
        for line in [
            "pcieport 0000:00:1c.5: AER: can't find device of ID00e5",
            "nvme 0000:02:00.0:   device [15b7:5006] error status/mask=00000001/0000e000",
            "pcieport 0000:00:1c.0:    [ 0] RxErr                  (First)",
            "pcieport 0000:00:1c.0: AER: enabled with IRQ 122",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn a_link_below_what_the_device_can_do() {
        let line = "pci 0000:05:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 8.0 GT/s PCIe x8 link at 0000:00:01.0 (capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)";
        let event = classify_line(line).unwrap();
        assert_eq!(
            (event.name, event.subject.as_str()),
            ("pcie_downgraded", "0000:05:00.0")
        );
        assert_eq!(
            event.text,
            "PCIe gives 63.008 Gb/s, limited by 8.0 GT/s PCIe x8 link at 0000:00:01.0; the device can do 252.048 Gb/s with 16.0 GT/s PCIe x16 link"
        );
        let whole =
            "mlx5_core 0000:41:00.1: 63.008 Gb/s available PCIe bandwidth (8.0 GT/s PCIe x8 link)";
        assert_eq!(found(whole), None);
    }
}
