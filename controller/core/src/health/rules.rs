//! The rules for single devices: which value of which signal is bad, for how long it must be, what that
//! means and what to do. One table; docs/diagnosis.md is printed from it.
//!
//! Limits are those of the field where there is one: the bit error ratio of IEEE 802.3, DCGM's limit
//! for NVLink and PCIe. The other numbers are chosen so that the noise of a healthy fleet stays below them;
//! each says why.

use super::debounce::Budget;
use crate::config;
use crate::verdict::{Class, Severity};
use weir_signal::{Entity, Signal};

/// What a value must be like to be bad.
#[derive(Debug, Clone, Copy)]
pub enum Condition {
    /// A counter rises beyond its budget. `of` is what [`Budget::share`] is a share of: a counter's
    /// rise, or a gauge times the seconds.
    Counts {
        budget: fn(&config::Health) -> Budget,
        of: Option<Signal>,
    },
    /// A gauge falls to zero more often than the budget allows.
    Falls(fn(&config::Health) -> Budget),
    /// A gauge is below its reference by a tenth or more: what the same device of like nodes shows, or
    /// the highest that it had itself, or its planned rate. See [`super::reference`].
    Below { peers: bool },
    /// A gauge is above a limit.
    Above(fn(&config::Health) -> u64),
    /// Any of these bits is set in a gauge.
    Bits(u64),
}

/// A gauge of the same device that must have at least a value, or nothing is said.
#[derive(Debug, Clone, Copy)]
pub struct While(pub Signal, pub u64);

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub entities: &'static [Entity],
    pub signal: Signal,
    pub condition: Condition,
    pub only: Option<While>,
    /// Bad samples out of the last so many that raise it, at most 32. A counter's budget stands in
    /// for it.
    pub n_of_m: (u32, u32),
    /// Cleared when nothing was bad for so many seconds.
    pub hold_s: u16,
    pub class: Class,
    pub severity: Severity,
    /// How often such a finding means what it says, 0 to 1. No data of a fleet yet: 0.95 where the
    /// device itself says so, 0.9 for a limit of the field, 0.8 for a comparison, less where
    /// something else may be the cause.
    pub confidence: f64,
    /// Said only while few nodes have it: what many have at once is no device's fault.
    pub lonely: bool,
    pub finding: &'static str,
    pub action: &'static str,
}

pub const FLAPS: &str = "the link goes down and up";
pub const STOP_FLAP: &str = "take the link out of use, then clean or replace cable and optic";
const CABLE: &str =
    "clean both connectors, then replace the cable or optic; if it stays, try the other port";
const RESEAT_NIC: &str =
    "drain the node, reseat the NIC and its riser; if it stays, replace the NIC";
const RESET_GPU: &str = "drain the node and reset the GPU; if it returns, have it replaced";
const COOL: &str = "check airflow, fans, power supplies and inlet temperature";
const LINK: &[Entity] = &[Entity::Port, Entity::Rdma];
const GPU: &[Entity] = &[Entity::Gpu];

/// What most rows have in common.
const ROW: Rule = Rule {
    entities: GPU,
    signal: Signal::LinkUp,
    condition: Condition::Below { peers: false },
    only: None,
    n_of_m: (1, 1),
    hold_s: 60,
    class: Class::GpuFault,
    severity: Severity::Warning,
    confidence: 0.9,
    lonely: false,
    finding: "",
    action: RESET_GPU,
};

/// Samples for which a link is down before it is said: one that comes back before may be a flap.
pub const DOWN_SAMPLES: u32 = 5;

const LINK_UP: Option<While> = Some(While(Signal::LinkUp, 1));

/// `burst` seconds with an event, within `burst` / `per_s` seconds or so.
const fn seconds_with(burst: f32, per_s: f32) -> Budget {
    Budget {
        per_s,
        share: 0.0,
        burst,
        each_s: 1.0,
    }
}

/// Twice within a fifth of the window, or three times within it: the bucket loses one in it.
#[must_use]
pub fn flaps(config: &config::Health) -> Budget {
    Budget {
        per_s: 1.0 / config.flap_window.as_secs_f32().max(1.0),
        share: 0.0,
        burst: 1.8,
        each_s: 8.0,
    }
}

pub const RULES: &[Rule] = &[
    Rule {
        entities: LINK,
        signal: Signal::LinkUp,
        n_of_m: (DOWN_SAMPLES, DOWN_SAMPLES),
        hold_s: 10,
        class: Class::LinkDown,
        severity: Severity::Critical,
        confidence: 0.95,
        finding: "the link is down",
        action: "check the cable and the port at its other end; replace the optic or cable if it does not come up",
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::LinkDowns,
        condition: Condition::Counts {
            budget: flaps,
            of: None,
        },
        hold_s: 300,
        class: Class::LinkFlap,
        confidence: 0.95,
        finding: FLAPS,
        action: STOP_FLAP,
        ..ROW
    },
    Rule {
        entities: LINK,
        condition: Condition::Falls(flaps),
        hold_s: 300,
        class: Class::LinkFlap,
        confidence: 0.9,
        finding: FLAPS,
        action: STOP_FLAP,
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::SymbolErrors,
        condition: Condition::Counts {
            budget: |config| Budget {
                per_s: 0.1,
                share: config.bit_error_ratio,
                burst: 40.0,
                each_s: 8.0,
            },
            of: Some(Signal::RateBps),
        },
        only: LINK_UP,
        class: Class::LinkErrors,
        finding: "more symbol errors than the bit error ratio of a good link allows",
        action: CABLE,
        ..ROW
    },
    Rule {
        entities: &[Entity::Port],
        signal: Signal::FecUncorrected,
        condition: Condition::Counts {
            // Each is a lost frame or more, and a good link sees less than one an hour.
            budget: |_| seconds_with(3.0, 0.02),
            of: None,
        },
        only: LINK_UP,
        class: Class::LinkErrors,
        finding: "blocks that forward error correction could not repair",
        action: CABLE,
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::RxErrors,
        condition: Condition::Counts {
            // A packet of 9,000 bytes at the limit of bit errors is damaged once in 14 million.
            budget: |_| Budget {
                per_s: 0.05,
                share: 1e-7,
                burst: 10.0,
                each_s: 2.0,
            },
            of: Some(Signal::RxPackets),
        },
        only: LINK_UP,
        class: Class::LinkErrors,
        finding: "damaged packets arrive",
        action: CABLE,
        ..ROW
    },
    Rule {
        entities: &[Entity::Rdma],
        signal: Signal::LinkRecoveries,
        condition: Condition::Counts {
            budget: |_| seconds_with(3.0, 0.01),
            of: None,
        },
        class: Class::LinkErrors,
        finding: "the link keeps recovering from errors by itself",
        action: CABLE,
        ..ROW
    },
    Rule {
        entities: &[Entity::Rdma],
        signal: Signal::LinkIntegrityErrors,
        condition: Condition::Counts {
            budget: |_| seconds_with(3.0, 0.01),
            of: None,
        },
        class: Class::LinkErrors,
        finding: "local errors keep passing the port's threshold",
        action: CABLE,
        ..ROW
    },
    Rule {
        entities: &[Entity::Rdma],
        signal: Signal::IcrcErrors,
        condition: Condition::Counts {
            budget: |_| seconds_with(5.0, 0.02),
            of: None,
        },
        class: Class::LinkErrors,
        confidence: 0.6,
        lonely: true,
        finding: "RoCE packets arrive with a wrong invariant checksum",
        action: "something between the NICs changes packets: compare the ports of the path, then look for a switch that damages or rewrites them",
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::RateBps,
        condition: Condition::Below { peers: true },
        only: LINK_UP,
        n_of_m: (5, 6),
        class: Class::DegradedLink,
        confidence: 0.9,
        finding: "the link runs below its rate",
        action: "take the link down and up to train it again; if it stays, replace cable or optic and check both ports' settings",
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::Lanes,
        condition: Condition::Below { peers: true },
        only: LINK_UP,
        n_of_m: (5, 6),
        class: Class::DegradedLink,
        confidence: 0.9,
        finding: "the link trained to fewer lanes",
        action: "a lane of the cable or optic is dead: replace it",
        ..ROW
    },
    Rule {
        entities: &[Entity::Port],
        signal: Signal::PcieErrors,
        condition: Condition::Counts {
            budget: |_| seconds_with(5.0, 0.02),
            of: None,
        },
        class: Class::NicFault,
        finding: "signal integrity errors on the NIC's PCIe",
        action: RESEAT_NIC,
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::PcieWidth,
        condition: Condition::Below { peers: true },
        n_of_m: (5, 6),
        class: Class::NicFault,
        finding: "the NIC's PCIe link has fewer lanes than it should",
        action: RESEAT_NIC,
        ..ROW
    },
    Rule {
        entities: LINK,
        signal: Signal::PcieGeneration,
        condition: Condition::Below { peers: true },
        n_of_m: (10, 12),
        class: Class::NicFault,
        confidence: 0.8,
        finding: "the NIC's PCIe link is slower than it should be",
        action: RESEAT_NIC,
        ..ROW
    },
    Rule {
        entities: &[Entity::Rdma],
        signal: Signal::QpErrors,
        condition: Condition::Counts {
            // A job that dies breaks its queue pairs within some seconds, on all of its nodes.
            budget: |_| Budget {
                per_s: 0.5,
                share: 0.0,
                burst: 20.0,
                each_s: 2.0,
            },
            of: None,
        },
        class: Class::NicFault,
        confidence: 0.7,
        lonely: true,
        finding: "queue pairs keep failing",
        action: "look at the job's errors on this node first; if another job fails here too, drain the node and reset the NIC",
        ..ROW
    },
    Rule {
        entities: &[Entity::Port],
        signal: Signal::ModuleTemperature,
        condition: Condition::Above(|config| config.module_millidegrees_max),
        n_of_m: (24, 30),
        class: Class::NicFault,
        lonely: true,
        finding: "the transceiver module is too hot",
        action: COOL,
        ..ROW
    },
    Rule {
        signal: Signal::EccUncorrected,
        condition: Condition::Counts {
            budget: |_| Budget {
                per_s: 0.0,
                share: 0.0,
                burst: 1.0,
                each_s: 1.0,
            },
            of: None,
        },
        hold_s: 600,
        severity: Severity::Critical,
        confidence: 0.95,
        finding: "memory errors that were not corrected",
        ..ROW
    },
    Rule {
        signal: Signal::RowRemapFailure,
        condition: Condition::Bits(u64::MAX),
        n_of_m: (2, 3),
        severity: Severity::Critical,
        confidence: 0.95,
        finding: "a memory row could not be remapped",
        action: "drain the node and have the GPU replaced",
        ..ROW
    },
    Rule {
        signal: Signal::RowRemapPending,
        condition: Condition::Bits(u64::MAX),
        n_of_m: (2, 3),
        confidence: 0.95,
        finding: "a memory row waits for a reset to be remapped",
        action: "reset the GPU when its job ends",
        ..ROW
    },
    Rule {
        signal: Signal::NvlinkUp,
        condition: Condition::Below { peers: true },
        n_of_m: (3, 4),
        severity: Severity::Critical,
        confidence: 0.95,
        finding: "an NVLink is not active",
        action: "look for XID 74 and 144 to 150; drain the node and reset its GPUs, then check the NVLink bridge or switch",
        ..ROW
    },
    Rule {
        signal: Signal::NvlinkErrors,
        condition: Condition::Counts {
            // DCGM warns from 100 CRC errors a second (DCGM_LIMIT_MAX_NVLINK_CRC_ERROR).
            budget: |_| Budget {
                per_s: 100.0,
                share: 0.0,
                burst: 1000.0,
                each_s: 200.0,
            },
            of: None,
        },
        finding: "an NVLink sees more than 100 errors a second",
        action: "drain the node and reset its GPUs; if it stays, check the NVLink bridge, switch or cable",
        ..ROW
    },
    Rule {
        signal: Signal::PcieReplays,
        condition: Condition::Counts {
            // DCGM warns from eight a minute (DCGM_LIMIT_MAX_PCIREPLAY_RATE).
            budget: |_| Budget {
                per_s: 8.0 / 60.0,
                share: 0.0,
                burst: 40.0,
                each_s: 4.0,
            },
            of: None,
        },
        finding: "PCIe packets are sent again all the time",
        action: "drain the node and reseat the GPU or its riser; if it stays, replace the GPU",
        ..ROW
    },
    Rule {
        signal: Signal::PcieWidth,
        condition: Condition::Below { peers: true },
        n_of_m: (5, 6),
        finding: "the GPU's PCIe link has fewer lanes than it should",
        action: "drain the node and reseat the GPU or its riser",
        ..ROW
    },
    Rule {
        signal: Signal::PcieGeneration,
        condition: Condition::Below { peers: true },
        // An idle GPU lowers it to save power.
        only: Some(While(Signal::GpuUtilisation, 50)),
        n_of_m: (10, 12),
        confidence: 0.8,
        finding: "the GPU's PCIe link is slower than it should be",
        action: "drain the node and reseat the GPU or its riser",
        ..ROW
    },
    Rule {
        signal: Signal::FabricState,
        condition: Condition::Below { peers: true },
        n_of_m: (30, 32),
        confidence: 0.8,
        finding: "the GPU left the NVLink fabric",
        action: "see that the fabric manager runs, and its log; then reset the GPU",
        ..ROW
    },
    Rule {
        signal: Signal::ClockReasons,
        // nvmlClocksEventReason: HwSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown. The power cap
        // that software sets (0x4) is how a busy GPU runs.
        condition: Condition::Bits(0x8 | 0x40 | 0x80),
        n_of_m: (5, 8),
        confidence: 0.95,
        finding: "the GPU's hardware slows its clocks: too hot, or its power supply brakes it",
        action: COOL,
        ..ROW
    },
    Rule {
        signal: Signal::ClockReasons,
        // SwThermalSlowdown; it comes for moments on warm days.
        condition: Condition::Bits(0x20),
        n_of_m: (24, 30),
        confidence: 0.8,
        finding: "the driver slows the GPU's clocks because it is hot",
        action: COOL,
        ..ROW
    },
];

/// Whether the class is about a cable, which has two ends.
#[must_use]
pub fn is_of_cable(class: Class) -> bool {
    matches!(
        class,
        Class::LinkDown | Class::LinkFlap | Class::LinkErrors | Class::DegradedLink
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::debounce::History;
    use weir_signal::Kind;

    #[test]
    fn every_rule_can_be_met() {
        for rule in RULES {
            for entity in rule.entities {
                assert!(rule.signal.entities().contains(entity), "{}", rule.finding);
            }
            let counter = rule.signal.kind() == Kind::Counter;
            let counts = matches!(rule.condition, Condition::Counts { .. });
            assert_eq!(counter, counts, "{}", rule.finding);
            let (n, m) = rule.n_of_m;
            assert!(1 <= n && n <= m && m <= History::MAX, "{}", rule.finding);
            assert!((0.5..1.0).contains(&rule.confidence), "{}", rule.finding);
            assert!(!rule.action.is_empty() && !rule.finding.is_empty());
        }
    }

    #[test]
    fn what_software_caps_is_no_fault() {
        for rule in RULES.iter().filter(|r| r.signal == Signal::ClockReasons) {
            let Condition::Bits(bits) = rule.condition else {
                panic!("{rule:?}")
            };
            assert_eq!(
                bits & 0x117,
                0,
                "idle, set clocks, power cap, sync, display"
            );
        }
    }
}
