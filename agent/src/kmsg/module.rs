//! Transceiver modules and cables as mlx5 reports them.
//!
//! Source: drivers/net/ethernet/mellanox/mlx5/core/events.c (port_module).

use super::{Origin, event};
use crate::source::{Event, Severity};

/// What to do when something is too hot.
pub(super) const COOL: &str = "check airflow, fans and inlet temperature";

const ACCEPTED: &str = "use a module that the firmware accepts";
const RESEAT: &str = "reseat the module; replace it if it stays";

/// What to do, by what the reason begins with. For what is not here: [`RESEAT`].
const REASONS: &[(&str, &str)] = &[
    (
        "Power budget exceeded",
        "allow the module's power class, or use another module",
    ),
    ("Long Range for non MLNX cable", ACCEPTED),
    ("Enforce part number list", ACCEPTED),
    ("Unknown identifier", ACCEPTED),
    ("High Temperature", COOL),
    ("Bad or shorted cable/module", "replace the cable or module"),
    (
        "One or more network ports have been powered down",
        "use a slot with more power, or allow the NIC to draw it",
    ),
];

/// After `Port module event`: `: module 1, Cable unplugged`, or
/// `[error]: module 0, Cable error, High Temperature`.
pub(super) fn change(origin: &Origin<'_>, rest: &str) -> Option<Event> {
    let (_, rest) = rest.split_once(": module ")?;
    let (number, state) = rest.split_once(", ")?;
    let number: u8 = number.parse().ok()?;
    let (name, severity, what, action) = match state {
        "Cable plugged" => (
            "module_inserted",
            Severity::Info,
            "was plugged in".to_owned(),
            "",
        ),
        "Cable unplugged" => (
            "module_removed",
            Severity::Warning,
            "was removed".to_owned(),
            "plug the module in, if the port should have one",
        ),
        "Cable disabled" => (
            "module_error",
            Severity::Warning,
            "is disabled".to_owned(),
            "enable the module, if the port should work",
        ),
        state => {
            let reason = state.strip_prefix("Cable error, ").unwrap_or(state);
            let action = REASONS.iter().find(|(known, _)| reason.starts_with(known));
            (
                "module_error",
                Severity::Critical,
                format!("does not work: {reason}"),
                action.map_or(RESEAT, |(_, action)| action),
            )
        }
    };
    let text = format!("module {number} {what}");
    Some(event(name, origin.subject(), severity, text, action))
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
    fn the_port_module_line_changed_its_form() {
        for form in [
            "mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 0, Cable error, Power budget exceeded",
            "port_module:252:(pid 0): Port module event[error]: module 0, Cable error, Power budget exceeded",
            "Port module event[error]: module 0, Cable error, Power budget exceeded",
        ] {
            let text = "module 0 does not work: Power budget exceeded".to_owned();
            assert_eq!(
                found(form),
                Some(("module_error", Severity::Critical, text)),
                "{form}"
            );
        }
        let bare = "mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 0, Cable error, High Temperature";
        let event = classify_line(bare).unwrap();
        assert_eq!(
            (event.name, event.subject.as_str(), event.action.as_str()),
            ("module_error", "", COOL)
        );
    }

    #[test]
    fn modules_come_and_go() {
        assert_eq!(
            found("Port module event: module 1, Cable plugged")
                .unwrap()
                .0,
            "module_inserted"
        );
        let (name, severity, _) = found("Port module event: module 1, Cable unplugged").unwrap();
        assert_eq!((name, severity), ("module_removed", Severity::Warning));
        let (name, severity, _) = found("Port module event: module 1, Cable disabled").unwrap();
        assert_eq!((name, severity), ("module_error", Severity::Warning));
        assert_eq!(found("Port module event: module x, Cable plugged"), None);
    }
}
