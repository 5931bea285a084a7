//! Lines of NVIDIA's drivers: XIDs of GPUs, SXIDs of NVSwitches, GPUs that are gone. Pure.

use super::catalogue;
use crate::source::{Event, Severity};

/// PCI address `dddd:bb:dd.f` of any of its spellings: in any case, with or without domain and
/// function.
#[must_use]
pub fn pci_address(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let (rest, function) = text.split_once('.').unwrap_or((&text, "0"));
    let parts: Vec<&str> = rest.split(':').collect();
    let (domain, bus, device) = match parts.as_slice() {
        [domain, bus, device] => (*domain, *bus, *device),
        [bus, device] => ("0000", *bus, *device),
        _ => return None,
    };
    let hex = |text: &str, max: u32| u32::from_str_radix(text, 16).ok().filter(|n| *n <= max);
    Some(format!(
        "{:04x}:{:02x}:{:02x}.{:x}",
        // Virtual machines number domains beyond 16 bits.
        hex(domain, u32::MAX)?,
        hex(bus, 0xff)?,
        hex(device, 0x1f)?,
        hex(function, 7)?
    ))
}

/// Takes an event out of lines that come one after the other.
#[derive(Debug, Default)]
pub struct Parser {
    /// The GPU named by a line that goes on in the next.
    named: Option<String>,
}

impl Parser {
    /// The event of a line, if it has one.
    pub fn line(&mut self, message: &str) -> Option<Event> {
        if let Some((_, rest)) = message.split_once("SXid (") {
            return sxid(rest);
        }
        let at = message.find("NVRM:")?;
        let text = message[at + 5..].trim();
        if let Some(rest) = text.strip_prefix("Xid (") {
            return xid(rest);
        }
        if let Some(rest) = text.strip_prefix("The NVIDIA GPU ") {
            let address = rest.split(' ').next().and_then(pci_address);
            self.named = address.or(self.named.take());
        }
        if text.contains("fallen off the bus") {
            let words = text.split([' ', '(', ')']);
            let here = words
                .map(|w| {
                    w.trim_start_matches("PCI:")
                        .trim_end_matches([':', '.', ','])
                })
                .filter(|w| w.contains(':'))
                .find_map(pci_address);
            return Some(gpu_lost(here.or_else(|| self.named.take())));
        }
        None
    }
}

fn gpu_lost(subject: Option<String>) -> Event {
    let (severity, action) = catalogue::advice(79);
    Event {
        source: "kmsg",
        name: "gpu_lost",
        subject: subject.unwrap_or_default(),
        code: None,
        severity,
        text: "the GPU has fallen off the bus".into(),
        action: action.into(),
    }
}

/// `PCI:ADDRESS): REST` as address and rest.
fn address_and_rest(text: &str) -> Option<(String, &str)> {
    let (address, rest) = text.split_once(')')?;
    let address = pci_address(address.trim_start_matches("PCI:"))?;
    Some((address, rest.trim_start_matches(':').trim()))
}

/// The number at the beginning, and what follows its comma.
fn number_and_rest(text: &str) -> Option<(u32, &str)> {
    let (number, rest) = text.split_once(',').unwrap_or((text, ""));
    Some((number.trim().parse().ok()?, rest.trim()))
}

fn xid(text: &str) -> Option<Event> {
    let (subject, rest) = address_and_rest(text)?;
    let (number, rest) = number_and_rest(rest)?;
    let detail = without_process(rest);
    let (mut severity, meaning, mut action) = catalogue::meaning(number);
    let mut text = meaning;
    match number {
        154 => (severity, action) = recovery(detail),
        144..=150 => {
            if let Some((found, advice)) = nvlink5(number, detail) {
                severity = if found { Severity::Critical } else { advice.0 };
                action = advice.1.to_owned();
            }
        }
        _ => {}
    }
    if !detail.is_empty() {
        text = format!("{text}: {}", cut(detail));
    }
    Some(Event {
        source: "kmsg",
        name: "xid",
        subject,
        code: Some(number),
        severity,
        text,
        action,
    })
}

/// Cuts off `pid=..., name=..., `, in all the ways in which drivers write them.
fn without_process(text: &str) -> &str {
    let mut rest = text;
    for field in ["pid=", "name="] {
        if rest.starts_with(field) {
            rest = rest.split_once(", ").map_or("", |(_, rest)| rest);
        }
    }
    rest.trim()
}

/// A detail that fits into an event.
fn cut(text: &str) -> &str {
    const DETAIL_CHARS: usize = 240;
    let end = text.char_indices().nth(DETAIL_CHARS).map(|(at, _)| at);
    end.map_or(text, |end| &text[..end])
}

/// Whether it is fatal, and the advice: `UNIT ... Link N (0xINTRINFO 0xSTATUS ...)`.
fn nvlink5(number: u32, detail: &str) -> Option<(bool, catalogue::Advice)> {
    let unit = detail.split(' ').next()?;
    let words = detail.split_once("(0x")?.1;
    let status = words.split([' ', ')']).nth(1)?.strip_prefix("0x")?;
    let status = u32::from_str_radix(status, 16).ok()?;
    let (found, advice) = catalogue::nvlink5(number, unit, status)?;
    Some((found.fatal, advice))
}

/// What the driver recommends: `... changed from 0xN (OLD) to 0xM (NEW)`.
fn recovery(detail: &str) -> (Severity, String) {
    let new = detail
        .rsplit_once('(')
        .map_or("", |(_, tail)| tail.trim_end_matches([')', '.', ' ']));
    let lower = new.to_ascii_lowercase();
    match lower.as_str() {
        "" => (Severity::Warning, "see the line".into()),
        "none" => (Severity::Info, String::new()),
        _ if lower.contains("reset") || lower.contains("reboot") => (
            Severity::Critical,
            format!("drain the node; the driver recommends: {new}"),
        ),
        _ => (Severity::Warning, format!("the driver recommends: {new}")),
    }
}

/// An error of an NVSwitch: `ADDRESS): NUMBER, Fatal, Link N TEXT`.
fn sxid(text: &str) -> Option<Event> {
    let (subject, rest) = address_and_rest(text)?;
    let (number, detail) = number_and_rest(rest)?;
    let fatal = detail.starts_with("Fatal");
    let name = catalogue::sxid(number).map_or_else(String::new, |name| format!(" ({name})"));
    Some(Event {
        source: "kmsg",
        name: "sxid",
        subject,
        code: Some(number),
        severity: if fatal {
            Severity::Critical
        } else {
            Severity::Warning
        },
        text: format!("SXID {number}{name}: {}", cut(detail)),
        action: if fatal {
            "drain the node; reset all its GPUs and NVSwitches together, or reboot it".into()
        } else {
            "watch it; if the same link keeps reporting, check its GPU and the baseboard".into()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(line: &str) -> Event {
        Parser::default().line(line).unwrap()
    }

    #[test]
    fn an_address_has_one_form() {
        for text in ["0000:9B:00", "9b:00.0", "0000:9b:00.0", " 9b:00"] {
            assert_eq!(pci_address(text).as_deref(), Some("0000:9b:00.0"), "{text}");
        }
        assert_eq!(pci_address("0000:10:1c").as_deref(), Some("0000:10:1c.0"));
        for bad in ["", "9b", "zz:00", "0000:9b:20.0", "0000:9b:00.8"] {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_xid_is_read_in_every_spelling_of_its_process() {
        for process in [
            "pid='<unknown>', name=<unknown>, ",
            "pid=<unknown>, name=<unknown>, ",
            "pid=1234, name=KMS thread, ",
            "pid=1234, ",
            "",
        ] {
            let line = format!("NVRM: Xid (PCI:0000:52:00): 48, {process}An uncorrectable error");
            let event = event(&line);
            assert_eq!(
                (event.code, event.subject.as_str()),
                (Some(48), "0000:52:00.0")
            );
            assert!(
                event.text.ends_with(": An uncorrectable error"),
                "{}",
                event.text
            );
            assert_eq!(event.severity, Severity::Critical);
        }
        let older = event("NVRM: Xid (0000:03:00.0): 13, 0001 00000000");
        assert_eq!(
            (older.code, older.subject.as_str()),
            (Some(13), "0000:03:00.0")
        );
    }

    #[test]
    fn words_in_hexadecimal_are_a_detail() {
        let event = event("NVRM: Xid (PCI:0000:01:00): 62, 023f0f30 00000000 202c0ffe");
        assert_eq!(event.code, Some(62));
        assert!(event.text.ends_with("023f0f30 00000000 202c0ffe"));
    }

    #[test]
    fn a_gpu_that_is_gone_is_told_without_an_xid_too() {
        let mut parser = Parser::default();
        for line in [
            "NVRM: The NVIDIA GPU 0000:b3:00.0",
            "NVRM: (PCI ID: 10de:26b5) installed in this system has",
        ] {
            assert_eq!(parser.line(line), None);
        }
        let lost = parser.line("NVRM: fallen off the bus and is not responding to commands.");
        assert_eq!(lost.unwrap().subject, "0000:b3:00.0");
        let one_line = event("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.");
        assert_eq!(
            (one_line.name, one_line.subject.as_str()),
            ("gpu_lost", "0000:18:00.0")
        );
        let older = event("NVRM: GPU at PCI:0000:0a:00: has fallen off the bus");
        assert_eq!(older.subject, "0000:0a:00.0");
    }

    #[test]
    fn xid_154_says_what_the_driver_recommends() {
        let line = |to: &str| {
            event(&format!(
                "NVRM: Xid (PCI:0000:18:00): 154, GPU recovery action changed from 0x0 (None) to {to}"
            ))
        };
        let reboot = line("0x2 (Node Reboot Required)");
        assert_eq!(reboot.severity, Severity::Critical);
        assert!(reboot.action.contains("Node Reboot Required"));
        assert_eq!(line("0x0 (None)").severity, Severity::Info);
        assert_eq!(line("0x3 (Drain P2P)").severity, Severity::Warning);
    }

    #[test]
    fn an_error_of_nvlink5_is_decoded() {
        let line = |status: &str| {
            event(&format!(
                "NVRM: Xid (PCI:0018:01:00): 144, SAW_MVB Fatal XC0 i0 Link 07 (0x00000021 {status} 0x00000000)"
            ))
        };
        assert_eq!(line("0x00000002").severity, Severity::Critical);
        assert_eq!(line("0x00000004").severity, Severity::Info);
        assert_eq!(line("0x00000002").subject, "0018:01:00.0");
    }

    #[test]
    fn an_sxid_is_fatal_or_not() {
        let line = |fatal: &str| {
            event(&format!(
                "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, {fatal}, Link 32 egress non-posted PRIV error"
            ))
        };
        assert_eq!(
            (line("Fatal").name, line("Fatal").code),
            ("sxid", Some(12028))
        );
        assert_eq!(line("Fatal").severity, Severity::Critical);
        assert_eq!(line("Non-fatal").severity, Severity::Warning);
    }

    proptest! {
        #[test]
        fn garbage_is_no_event_or_one_of_an_address(tail in ".{0,80}") {
            let mut parser = Parser::default();
            for head in ["NVRM: Xid (", "SXid (", "NVRM: Xid (PCI:0000:18:00): ", "NVRM: The NVIDIA GPU ", "NVRM: fallen off the bus "] {
                if let Some(event) = parser.line(&format!("{head}{tail}")) {
                    prop_assert!(event.subject.is_empty() || pci_address(&event.subject) == Some(event.subject));
                }
            }
        }
    }
}
