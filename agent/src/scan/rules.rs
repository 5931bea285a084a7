//! What a value means for the health of a node: a table of rules, one look, no history.

use super::expect::rate_text;
use super::{Finding, Level};
use crate::source::{ColumnKey, Gathered, Reading};
use std::collections::BTreeMap;
use weir_wire::signal::{Entity, Kind, Signal};

/// A value that is worth a line.
struct Rule {
    kind: Entity,
    signal: Signal,
    bad: fn(u64) -> bool,
    level: Level,
    finding: &'static str,
    action: &'static str,
}

const fn some(value: u64) -> bool {
    value > 0
}

const RULES: &[Rule] = &[
    Rule {
        kind: Entity::Gpu,
        signal: Signal::RowRemapFailure,
        bad: some,
        level: Level::Critical,
        finding: "a memory row could not be remapped",
        action: "drain the node and have the GPU replaced",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::RowRemapPending,
        bad: some,
        level: Level::Warning,
        finding: "a memory row waits to be remapped",
        action: "drain the node and reset the GPU",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::EccUncorrected,
        bad: some,
        level: Level::Warning,
        finding: "uncorrected memory errors since the driver was loaded",
        action: "drain the node and reset the GPU; if they come back, have it replaced",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::NvlinkUp,
        bad: |up| up == 0,
        level: Level::Critical,
        finding: "NVLink is not active",
        action: "look for XID 74 and 144 to 150; reset the GPUs, then check the NVLink bridge or switch",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::FabricState,
        bad: |state| state == 1 || state == 2,
        level: Level::Warning,
        finding: "the GPU has not joined the NVLink fabric",
        action: "see that the fabric manager runs, and its log",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::RecoveryAction,
        bad: |action| action == 1 || action == 4,
        level: Level::Critical,
        finding: "the driver asks for a reset of the GPU",
        action: "drain the node and reset the GPU",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::RecoveryAction,
        bad: |action| action == 2,
        level: Level::Critical,
        finding: "the driver asks for a reboot of the node",
        action: "drain and reboot the node",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::RecoveryAction,
        bad: |action| action == 3,
        level: Level::Warning,
        finding: "the driver asks for an end of peer-to-peer on the GPU",
        action: "end the jobs that use peer-to-peer on this GPU",
    },
    // The hardware's slowdown is set together with its two causes, where they are known.
    Rule {
        kind: Entity::Gpu,
        signal: Signal::ClockReasons,
        bad: |bits| bits & HW_SLOWDOWN != 0 && bits & (HW_THERMAL | POWER_BRAKE) == 0,
        level: Level::Warning,
        finding: "the hardware slows the clocks down",
        action: "check cooling and power supply",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::ClockReasons,
        bad: |bits| bits & HW_THERMAL != 0,
        level: Level::Warning,
        finding: "the hardware slows the clocks down: the GPU is too hot",
        action: COOL,
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::ClockReasons,
        bad: |bits| bits & POWER_BRAKE != 0,
        level: Level::Warning,
        finding: "the power brake slows the clocks down",
        action: "check power supplies and the node's power limit",
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::ClockReasons,
        bad: |bits| bits & SW_THERMAL != 0,
        level: Level::Warning,
        finding: "the driver slows the clocks down: the GPU or its memory is too hot",
        action: COOL,
    },
    Rule {
        kind: Entity::Gpu,
        signal: Signal::ClockReasons,
        bad: |bits| bits & SW_POWER_CAP != 0,
        level: Level::Ok,
        finding: "clocks are held to the power limit, as under full load",
        action: "",
    },
    Rule {
        kind: Entity::Rdma,
        signal: Signal::LinkRecoveries,
        bad: some,
        level: Level::Warning,
        finding: "the link recovered from errors by itself",
        action: "clean or replace cable and optic",
    },
    Rule {
        kind: Entity::Rdma,
        signal: Signal::LinkIntegrityErrors,
        bad: some,
        level: Level::Warning,
        finding: "local errors passed the port's threshold",
        action: "clean or replace cable and optic",
    },
    Rule {
        kind: Entity::Rdma,
        signal: Signal::IcrcErrors,
        bad: some,
        level: Level::Warning,
        finding: "RoCE packets arrived with a wrong checksum",
        action: "something between the NICs changes packets: look for a switch or middlebox that rewrites headers",
    },
    Rule {
        kind: Entity::Port,
        signal: Signal::FecUncorrected,
        bad: some,
        level: Level::Warning,
        finding: "blocks that forward error correction could not repair",
        action: "clean or replace cable and optic",
    },
    Rule {
        kind: Entity::Port,
        signal: Signal::PauseStorms,
        bad: some,
        level: Level::Warning,
        finding: "the device kept its peer paused for too long",
        action: "find what kept the host from draining: PCIe, memory, a stuck process; see that the switch's PFC watchdog is on",
    },
];

/// Bits of nvmlClocksEventReasons (nvml.h).
const SW_POWER_CAP: u64 = 0x4;
const HW_SLOWDOWN: u64 = 0x8;
const SW_THERMAL: u64 = 0x20;
const HW_THERMAL: u64 = 0x40;
const POWER_BRAKE: u64 = 0x80;

/// A value and what the device itself, or its like, says that it should be. A warning.
struct Pair {
    kinds: &'static [Entity],
    value: Signal,
    limit: Signal,
    bad: fn(u64, u64) -> bool,
    finding: fn(u64, u64) -> String,
    action: &'static str,
}

const fn below(value: u64, limit: u64) -> bool {
    value < limit
}

const fn reached(value: u64, limit: u64) -> bool {
    value >= limit
}

fn degrees(value: u64, limit: u64) -> String {
    let (value, limit) = (value / 1000, limit / 1000);
    format!("is at {value} °C, its own limit is {limit} °C")
}

const HAVE_PCIE: &[Entity] = &[Entity::Gpu, Entity::Port, Entity::Rdma];
const RESEAT: &str = "look for PCIe errors in the kernel log; reseat the device or its riser";
const COOL: &str = "check fans, air flow or coolant, and the temperature of what comes in";
const CLEAN: &str = "clean or replace cable and optic; see what both ends offer";

const PAIRS: &[Pair] = &[
    Pair {
        kinds: HAVE_PCIE,
        value: Signal::PcieWidth,
        limit: Signal::PcieMaxWidth,
        bad: below,
        finding: |width, most| format!("PCIe runs on {width} of {most} lanes"),
        action: RESEAT,
    },
    Pair {
        kinds: HAVE_PCIE,
        value: Signal::PcieGeneration,
        limit: Signal::PcieMaxGeneration,
        bad: below,
        finding: |generation, most| format!("PCIe runs at generation {generation} of {most}"),
        action: RESEAT,
    },
    Pair {
        kinds: &[Entity::Gpu],
        value: Signal::GpuTemperature,
        limit: Signal::GpuTemperatureLimit,
        bad: reached,
        finding: degrees,
        action: COOL,
    },
    Pair {
        kinds: &[Entity::Gpu],
        value: Signal::GpuMemoryTemperature,
        limit: Signal::GpuMemoryTemperatureLimit,
        bad: reached,
        finding: |value, limit| format!("memory {}", degrees(value, limit)),
        action: COOL,
    },
    Pair {
        kinds: &[Entity::Port],
        value: Signal::ModuleTemperature,
        limit: Signal::ModuleTemperatureLimit,
        bad: reached,
        finding: |value, limit| format!("transceiver module {}", degrees(value, limit)),
        action: "check air flow around the module; replace it if others beside it are cooler",
    },
    Pair {
        kinds: &[Entity::Rdma],
        value: Signal::RateBps,
        limit: Signal::RateExpectedBps,
        bad: below,
        finding: |rate, expected| format!("runs at {} of {}", rate_text(rate), rate_text(expected)),
        action: CLEAN,
    },
    Pair {
        kinds: &[Entity::Rdma],
        value: Signal::Lanes,
        limit: Signal::LanesExpected,
        bad: below,
        finding: |lanes, expected| format!("runs on {lanes} of {expected} lanes"),
        action: CLEAN,
    },
];

/// Lines for the values that the rules know, one for each rule and entity.
#[must_use]
pub fn findings(gathered: &Gathered) -> Vec<Finding> {
    let mut found = Vec::new();
    for rule in RULES {
        let mut bad: BTreeMap<&str, (u64, Vec<String>)> = BTreeMap::new();
        for (key, reading) in &gathered.columns {
            if (key.kind, key.signal) == (rule.kind, rule.signal) && (rule.bad)(reading.value) {
                let (sum, indexes) = bad.entry(&key.entity).or_default();
                *sum += reading.value;
                indexes.extend(key.index.map(|i| i.to_string()));
            }
        }
        if rule.signal == Signal::NvlinkUp {
            // A card without a bridge has links, and none is active.
            let is_up = |entity: &str| {
                gathered.columns.iter().any(|(key, reading)| {
                    key.signal == Signal::NvlinkUp && key.entity == entity && reading.value != 0
                })
            };
            bad.retain(|entity, _| is_up(entity));
        }
        for (entity, (sum, indexes)) in bad {
            let which = match (rule.signal.index(), indexes.is_empty()) {
                (Some(index), false) => format!(" ({index} {})", indexes.join(", ")),
                _ if sum > 1 && rule.signal.kind() == Kind::Counter => format!(" ({sum})"),
                _ => String::new(),
            };
            found.push(Finding {
                subject: format!("{} {entity}", kind_text(rule.kind)),
                level: rule.level,
                finding: format!("{}{which}", rule.finding),
                action: rule.action.into(),
            });
        }
    }
    found.extend(PAIRS.iter().flat_map(|pair| pair.findings(gathered)));
    found
}

impl Pair {
    fn findings(&self, gathered: &Gathered) -> Vec<Finding> {
        let values = gathered.columns.iter();
        let values = values.filter(|(key, _)| {
            key.signal == self.value && key.index.is_none() && self.kinds.contains(&key.kind)
        });
        let finding = |(key, reading): (&ColumnKey, &Reading)| {
            let limit = gathered.get(key.kind, &key.entity, self.limit)?;
            if !(self.bad)(reading.value, limit) {
                return None;
            }
            let idle = key.kind == Entity::Gpu
                && self.value == Signal::PcieGeneration
                && gathered
                    .get(Entity::Gpu, &key.entity, Signal::GpuUtilisation)
                    .is_none_or(|busy| busy == 0);
            let words = (self.finding)(reading.value, limit);
            let (level, finding, action) = if idle {
                let words = format!("{words}, as an idle GPU may to save power");
                (Level::Ok, words, "")
            } else {
                (Level::Warning, words, self.action)
            };
            Some(Finding {
                subject: format!("{} {}", kind_text(key.kind), key.entity),
                level,
                finding,
                action: action.into(),
            })
        };
        values.filter_map(finding).collect()
    }
}

fn kind_text(kind: Entity) -> &'static str {
    match kind {
        Entity::Node => "node",
        Entity::Port => "port",
        Entity::Rdma => "verbs port",
        Entity::Gpu => "GPU",
        Entity::Probe => "probes of",
    }
}

#[cfg(test)]
mod tests;
