//! XIDs: errors of GPUs as NVIDIA's driver reports them.

use super::{catalogue, event, join, nvlink5, pci};
use crate::source::{Event, Severity};

/// `NVRM: Xid (PCI:0000:9b:00): 119, pid=1, name=x, text`: the address with or without `PCI:`, the
/// function or a MIG instance; process and name absent, quoted or `<unknown>`.
pub(super) fn xid(body: &str) -> Option<Event> {
    let (subject, number, rest) = numbered(body.strip_prefix("Xid ")?)?;
    let (process, detail) = split_process(rest);
    let known = catalogue::xid(number);
    let fault = (144..=150)
        .contains(&number)
        .then(|| nvlink5::Fault::parse(detail))
        .flatten();
    let (mut severity, mut action) = known.map_or((Severity::Warning, String::new()), |k| {
        (k.advice.severity(), k.advice.doc())
    });
    if let Some(fault) = &fault {
        let cause = fault.cause(number);
        severity = fault.severity(cause);
        action = cause.map_or(action, |c| c.advice.doc());
    }
    if let Some(recovery) = (number == 154).then(|| Recovery::parse(detail)).flatten() {
        (severity, action) = (recovery.severity, recovery.action.to_owned());
    }
    if number == 74 && detail.contains(" fatal error") {
        severity = Severity::Critical;
    }
    let meaning = known.map_or("an error that the catalogue does not know", |k| {
        if k.meaning.is_empty() {
            k.mnemonic
        } else {
            k.meaning
        }
    });
    let text = format!("{}{process}", join(meaning, detail));
    let mut found = event("xid", subject, severity, text, &action);
    found.code = Some(number);
    Some(found)
}

/// Address, number and rest of `(PCI:0000:9b:00): 119, rest`.
pub(super) fn numbered(text: &str) -> Option<(String, u32, &str)> {
    let (place, rest) = text.strip_prefix('(')?.split_once("): ")?;
    let place = place.split_ascii_whitespace().next().unwrap_or_default();
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let number = rest[..end].parse().ok()?;
    let rest = rest[end..].trim_start_matches([',', ' ']);
    Some((pci::address(place).unwrap_or_default(), number, rest))
}

/// The process in words, empty if it is not known, and the rest of the line.
fn split_process(text: &str) -> (String, &str) {
    let (pid, rest) = field(text, "pid=");
    let (name, rest) = field(rest, "name=");
    let process = match (name, pid) {
        (Some(name), Some(pid)) => format!(" (process {name}, {pid})"),
        (None, Some(pid)) => format!(" (process {pid})"),
        (Some(name), None) => format!(" (process {name})"),
        (None, None) => String::new(),
    };
    (process, rest)
}

/// The value of `KEY=value, ` at the start of the text, and what follows it.
fn field<'a>(text: &'a str, key: &str) -> (Option<&'a str>, &'a str) {
    let Some(rest) = text.strip_prefix(key) else {
        return (None, text);
    };
    let (value, rest) = rest.split_once(", ").unwrap_or((rest, ""));
    let value = value.trim_matches('\'');
    let known = !value.is_empty() && value != "<unknown>";
    (known.then_some(value), rest)
}

/// What to do about a GPU that no reset brings back.
const REBOOT: &str = "drain and reboot the node";

/// Whether what an event tells of ends with a reboot, or with hands on the machine, and no sooner:
/// to load the driver again is no cure.
pub(crate) fn outlasts_reset(event: &Event) -> bool {
    let known = event.code.and_then(catalogue::xid);
    let needs_reboot = known.is_some_and(|xid| {
        ["RESTART_BM", "RESTART_VM", "CHECK_MECHANICALS"].contains(&xid.advice.immediate.code)
    });
    let told = event.code == Some(154) && event.action == REBOOT;
    event.name == "gpu_lost" || event.name == "xid" && (needs_reboot || told)
}

/// What the driver recommends, in XID 154.
struct Recovery {
    severity: Severity,
    action: &'static str,
}

/// The words of the recommendation, in the order in which they are looked for: the number beside
/// them has meant different things.
const RECOVERIES: &[(&str, Severity, &str)] = &[
    ("reboot", Severity::Critical, REBOOT),
    (
        "drain and reset",
        Severity::Critical,
        "let the jobs end, start no new ones, then reset the GPU",
    ),
    (
        "drain",
        Severity::Warning,
        "end the jobs that use peer-to-peer on this GPU",
    ),
    (
        "reset",
        Severity::Critical,
        "drain the node and reset the GPU",
    ),
    (
        "flr",
        Severity::Critical,
        "drain the node and reset the GPU",
    ),
    ("none", Severity::Info, ""),
];

impl Recovery {
    /// `GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)`.
    fn parse(text: &str) -> Option<Recovery> {
        let (_, to) = text.split_once(" to ")?;
        let to = to.to_ascii_lowercase();
        RECOVERIES
            .iter()
            .find(|(word, _, _)| to.contains(word))
            .map(|(_, severity, action)| Recovery {
                severity: *severity,
                action,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmsg::classify_line;

    /// Subject, number, severity of the one event in a line.
    fn found(line: &str) -> (String, u32, Severity) {
        let event = classify_line(line).unwrap();
        (event.subject, event.code.unwrap(), event.severity)
    }

    #[test]
    fn a_process_may_be_known_unknown_quoted_or_absent() {
        for (fields, process) in [
            ("pid='<unknown>', name=<unknown>, ", ""),
            ("pid=<unknown>, name=<unknown>, ", ""),
            ("pid=77, name=python, ", " (process python, 77)"),
            ("pid=77, ", " (process 77)"),
            ("", ""),
        ] {
            let line = format!("NVRM: Xid (PCI:0000:3b:00): 31, {fields}Ch 00000010");
            let event = classify_line(&line).unwrap();
            assert_eq!((event.name, event.code), ("xid", Some(31)), "{line}");
            assert!(
                event.text.ends_with(&format!(": Ch 00000010{process}")),
                "{}",
                event.text
            );
        }
    }

    #[test]
    fn the_address_has_many_spellings() {
        for (place, subject) in [
            ("PCI:0000:3b:00", "0000:3b:00.0"),
            ("PCI:0000:3b:00.0", "0000:3b:00.0"),
            ("PCI:000f:01:1c", "000f:01:1c.0"),
            ("0000:3b:00", "0000:3b:00.0"),
            ("PCI:0000:3b:00 GPU-I:05", "0000:3b:00.0"),
            ("PCI:garbage", ""),
        ] {
            let line = format!("NVRM: Xid ({place}): 95, pid=1, Uncontained: LTC TAG");
            assert_eq!(
                found(&line),
                (subject.to_owned(), 95, Severity::Critical),
                "{line}"
            );
        }
    }

    #[test]
    fn xid_62_has_only_hex_words() {
        let line = "NVRM: Xid (PCI:0000:0a:00): 62, 1f2e3d4c 00000000 5b6a7988";
        let event = classify_line(line).unwrap();
        assert_eq!((event.code, event.severity), (Some(62), Severity::Critical));
        assert_eq!(
            event.text,
            "internal microcontroller halted: 1f2e3d4c 00000000 5b6a7988"
        );
    }

    #[test]
    fn a_number_without_a_comma_or_text() {
        assert_eq!(found("NVRM: Xid (PCI:0000:0a:00): 79").1, 79);
        assert_eq!(
            found("NVRM: Xid (PCI:0000:0a:00): 149 NETIR_LINK_EVT").1,
            149
        );
    }

    #[test]
    fn an_unknown_number_is_still_an_event() {
        let event = classify_line("NVRM: Xid (PCI:0000:0a:00): 4000, pid=3, news").unwrap();
        assert_eq!(
            (event.code, event.severity),
            (Some(4000), Severity::Warning)
        );
        assert_eq!(
            event.text,
            "an error that the catalogue does not know: news (process 3)"
        );
    }

    #[test]
    fn what_only_looks_like_an_xid_is_none() {
        for line in [
            "NVRM: Xid error: many",
            "NVRM: Xid (PCI:0000:0a:00): none",
            "NVRM: Xid (PCI:0000:0a:00): 99999999999",
            "NVRM: Xid (PCI:0000:0a:00)",
            "NVRM: GPU at PCI:0000:0a:00: GPU-0",
            "app[7]: segfault NVRM: Xid (PCI:0000:0a:00): 79, x",
        ] {
            assert_eq!(classify_line(line), None, "{line}");
        }
    }

    #[test]
    fn nvlink_5_is_decoded() {
        let line = "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000 0x00000000)";
        let event = classify_line(line).unwrap();
        assert_eq!(event.severity, Severity::Critical);
        assert!(
            event
                .action
                .ends_with("look for the cause at the other end of the link"),
            "{}",
            event.action
        );
        assert!(event.text.contains("Link 09"));
        let harmless = "NVRM: Xid (PCI:0018:01:00): 145, RLW_RSPCOL Nonfatal XC0 i0 Link 08 (0x000000a2 0x00000001 0x0)";
        assert_eq!(found(harmless).2, Severity::Info);
        let unknown = "NVRM: Xid (PCI:0018:01:00): 145, pid=4, name=x, RLW_NEW Nonfatal XC0 i0 Link 08 (0x1 0x2)";
        assert_eq!(found(unknown).2, Severity::Warning);
    }

    #[test]
    fn xid_154_says_what_to_do() {
        for (to, severity, action) in [
            ("0x0 (None)", Severity::Info, ""),
            (
                "0x1 (GPU Reset Required)",
                Severity::Critical,
                "drain the node and reset the GPU",
            ),
            (
                "0x1 (PF FLR)",
                Severity::Critical,
                "drain the node and reset the GPU",
            ),
            (
                "0x2 (Node Reboot Required)",
                Severity::Critical,
                "drain and reboot the node",
            ),
            (
                "0x2 (OS Reboot)",
                Severity::Critical,
                "drain and reboot the node",
            ),
            (
                "0x3 (Drain P2P)",
                Severity::Warning,
                "end the jobs that use peer-to-peer on this GPU",
            ),
            (
                "0x4 (Drain and Reset)",
                Severity::Critical,
                "let the jobs end, start no new ones, then reset the GPU",
            ),
            ("0x9 (Dance)", Severity::Warning, "do what the line says"),
        ] {
            let line = format!(
                "NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x0 (None) to {to}"
            );
            let event = classify_line(&line).unwrap();
            assert_eq!(
                (event.severity, event.action.as_str()),
                (severity, action),
                "{line}"
            );
        }
    }

    #[test]
    fn xid_74_is_as_bad_as_it_says() {
        let line = |kind| {
            format!(
                "NVRM: Xid (PCI:0000:1b:00): 74, pid='<unknown>', name=<unknown>, NVLink: {kind} detected on link 3(0x0, 0x0)"
            )
        };
        assert_eq!(found(&line("fatal error")).2, Severity::Critical);
        assert_eq!(found(&line("non-fatal error")).2, Severity::Warning);
    }
}
