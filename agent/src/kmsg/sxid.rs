//! SXIDs: errors of NVSwitches.

use super::{
    catalogue::{self, Fatality},
    event, join,
    xid::numbered,
};
use crate::source::{Event, Severity};

/// `SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up`. The lines with registers that
/// follow each are no event of their own.
pub(super) fn sxid(body: &str) -> Option<Event> {
    let (subject, number, rest) = numbered(body.strip_prefix("SXid ")?)?;
    if rest.starts_with("Severity ") || rest.starts_with("Data {") {
        return None;
    }
    let (verdict, detail) = rest.split_once(", ").unwrap_or((rest, ""));
    let known = catalogue::sxid(number);
    let always = known.is_some_and(|k| k.fatality == Fatality::Always);
    let (severity, action) = if verdict == "Fatal" || always {
        (
            Severity::Critical,
            "drain the node and reset its GPUs and NVSwitches together; if it returns, ask the vendor",
        )
    } else if known.is_some_and(|k| k.fatality == Fatality::Possible) {
        (
            Severity::Warning,
            "look for a fatal error on the same switch",
        )
    } else {
        (Severity::Warning, "look at the link it names if it returns")
    };
    let meaning = known.map_or("NVSwitch error", |k| k.name);
    let detail = if detail.is_empty() { verdict } else { detail };
    let mut found = event("sxid", subject, severity, join(meaning, detail), action);
    found.code = Some(number);
    Some(found)
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
    fn switch_errors_with_link_and_verdict() {
        let line = |rest: &str| format!("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): {rest}");
        let event = classify_line(&line("20034, Fatal, Link 30 LTSSM Fault Up")).unwrap();
        assert_eq!(
            (event.name, event.subject.as_str()),
            ("sxid", "0000:c1:00.0")
        );
        assert_eq!(
            (event.code, event.severity),
            (Some(20_034), Severity::Critical)
        );
        assert_eq!(event.text, "LTSSM Fault Up: Link 30 LTSSM Fault Up");
        assert_eq!(
            found(&line("12028, Non-fatal, Link 32 egress (First)")).2,
            Severity::Warning
        );
        assert_eq!(found(&line("10003, Non-fatal, x")).2, Severity::Critical);
        assert_eq!(found(&line("28006, Non-fatal, Link 46 MC TS")).1, 28_006);
        assert_eq!(
            found("NVRM: SXid (PCI:0000:c1:00.0): 24007, Fatal, Link 1").1,
            24_007
        );
    }

    #[test]
    fn registers_after_a_switch_error_are_no_event() {
        for rest in [
            "28006, Severity 0 Engine instance 46 Sub-engine instance 00",
            "28006, Data {0x00000001, 0x00000000}",
            "garbled, Fatal",
        ] {
            let line = format!("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): {rest}");
            assert_eq!(classify_line(&line), None, "{line}");
        }
    }
}
