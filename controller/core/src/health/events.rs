//! What the events of agents mean: which are faults of a device by themselves, which end one, which say
//! more about a fault that others tell. One table.

use crate::verdict::{Class, Severity};
use std::time::Duration;

/// A fault that nothing repeats is over after this long: the driver tells a lasting one again.
const HOLD_WARNING: Duration = Duration::from_secs(600);
/// What stopped work is no sooner forgotten than somebody had time to look.
const HOLD_CRITICAL: Duration = Duration::from_secs(3600);
/// A device that is gone is gone until it is back.
const HOLD_GONE: Duration = Duration::from_secs(86_400);

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is a fault, unless its severity is info.
    Fault,
    /// It is a fault until the device is back.
    Gone,
    /// It ends the fault that this event told.
    Ends(&'static str),
    /// A link went down: several are a flap.
    Down,
    /// A fault only if the device is known to be of this class: any driver tells these.
    IfKnown,
    /// It says more about a fault that others tell.
    Remark,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Sign {
    /// Name of the event, as agents send it.
    pub event: &'static str,
    pub effect: Effect,
    pub class: Class,
}

const fn sign(event: &'static str, effect: Effect, class: Class) -> Sign {
    Sign {
        event,
        effect,
        class,
    }
}

/// Events that are not here are for people only.
pub const SIGNS: &[Sign] = &[
    sign("xid", Effect::Fault, Class::GpuFault),
    sign("sxid", Effect::Fault, Class::GpuFault),
    sign("ecc_uncorrected", Effect::Fault, Class::GpuFault),
    sign("gpu_lost", Effect::Gone, Class::GpuFault),
    sign("gpu_back", Effect::Ends("gpu_lost"), Class::GpuFault),
    sign("nic_health", Effect::Fault, Class::NicFault),
    sign("nic_temperature", Effect::Fault, Class::NicFault),
    sign("module_error", Effect::Fault, Class::NicFault),
    sign(
        "module_inserted",
        Effect::Ends("module_error"),
        Class::NicFault,
    ),
    sign("device_fatal", Effect::Fault, Class::NicFault),
    sign("device_removed", Effect::Gone, Class::NicFault),
    sign(
        "device_added",
        Effect::Ends("device_removed"),
        Class::NicFault,
    ),
    sign("aer_uncorrected", Effect::IfKnown, Class::NicFault),
    sign("link_down", Effect::Down, Class::LinkFlap),
    sign("port_error", Effect::Down, Class::LinkFlap),
    sign("link_up", Effect::Remark, Class::LinkFlap),
    sign("port_active", Effect::Remark, Class::LinkFlap),
    sign("speed_change", Effect::Remark, Class::DegradedLink),
    sign("module_removed", Effect::Remark, Class::LinkDown),
    sign("aer_corrected", Effect::Remark, Class::NicFault),
    sign("pcie_downgraded", Effect::Remark, Class::NicFault),
    sign("device_unreadable", Effect::Remark, Class::NicFault),
];

impl Sign {
    /// The row of an event.
    #[must_use]
    pub fn of(event: &str) -> Option<&'static Sign> {
        SIGNS.iter().find(|s| s.event == event)
    }

    /// How long a fault stands after its last event.
    #[must_use]
    pub fn hold(&self, severity: Severity) -> Duration {
        match (self.effect, severity) {
            (Effect::Gone, _) => HOLD_GONE,
            (_, Severity::Critical) => HOLD_CRITICAL,
            (_, Severity::Warning | Severity::Info) => HOLD_WARNING,
        }
    }

    /// How often such an event means an ill device: a warning may be the application's doing.
    #[must_use]
    pub fn confidence(&self, severity: Severity) -> f64 {
        match severity {
            Severity::Critical => 0.95,
            Severity::Warning | Severity::Info => 0.8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_what_ends_a_fault_names_one() {
        for (n, sign) in SIGNS.iter().enumerate() {
            assert!(SIGNS[..n].iter().all(|s| s.event != sign.event), "{sign:?}");
            if let Effect::Ends(other) = sign.effect {
                let other = Sign::of(other).unwrap();
                assert!(matches!(other.effect, Effect::Gone | Effect::Fault));
            }
        }
    }
}
