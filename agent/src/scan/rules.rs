//! What a value means for the health of a node: a table of rules, one look, no history.

use super::{Finding, Level};
use crate::source::{Event, Gathered, Severity};
use std::collections::BTreeMap;
use weir_wire::signal::{Entity, Signal};

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
                _ if sum > 1 => format!(" ({sum})"),
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
    found.extend(events(&gathered.events));
    found
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

/// One line for each thing that happened to each subject, with how often. A link that went down and
/// came back is no finding: links do so at every start.
fn events(events: &[Event]) -> Vec<Finding> {
    let mut sums: BTreeMap<(&str, &str, Option<u32>), (u32, &Event)> = BTreeMap::new();
    let came_back = |n: usize, down: &Event| {
        let later = events.iter().skip(n);
        let mut later = later.filter(|e| e.source == down.source && e.subject == down.subject);
        down.name == "link_down" && later.any(|e| e.name == "link_up")
    };
    let lasting = events.iter().enumerate();
    let lasting = lasting.filter(|(n, event)| !came_back(*n, event));
    for (_, event) in lasting.filter(|(_, e)| e.severity > Severity::Info) {
        let key = (event.subject.as_str(), event.name, event.code);
        sums.entry(key).or_insert((0, event)).0 += 1;
    }
    let line = |(times, event): &(u32, &Event)| Finding {
        subject: format!("{} {}", event.source, event.subject),
        level: match event.severity {
            Severity::Info => Level::Ok,
            Severity::Warning => Level::Warning,
            Severity::Critical => Level::Critical,
        },
        finding: if *times > 1 {
            format!("{} ({times} times since boot)", event.text)
        } else {
            event.text.clone()
        },
        action: event.action.clone(),
    };
    sums.values().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Reading;

    #[test]
    fn a_healthy_node_gives_no_line() {
        let mut gathered = Gathered::default();
        for rule in RULES {
            let good = u64::from((rule.bad)(0));
            gathered.put(rule.kind, "x", rule.signal, None, Reading::wide(good));
        }
        assert!(findings(&gathered).is_empty());
    }

    #[test]
    fn links_of_a_card_without_a_bridge_are_none() {
        let mut gathered = Gathered::default();
        for link in 0..12 {
            let reading = Reading::wide(0);
            gathered.put(
                Entity::Gpu,
                "0000:18:00.0",
                Signal::NvlinkUp,
                Some(link),
                reading,
            );
        }
        assert!(findings(&gathered).is_empty());
    }

    #[test]
    fn a_link_that_came_back_is_no_finding() {
        let event = |name, severity| Event {
            source: "kmsg",
            name,
            subject: "eth2".into(),
            code: None,
            severity,
            text: name.into(),
            action: String::new(),
        };
        let (down, up) = (
            event("link_down", Severity::Warning),
            event("link_up", Severity::Info),
        );
        assert!(events(&[down.clone(), up.clone()]).is_empty());
        assert_eq!(events(&[down.clone(), up, down]).len(), 1);
    }

    #[test]
    fn links_that_are_down_are_one_line_that_names_them() {
        let mut gathered = Gathered::default();
        for link in [0, 3, 17] {
            let reading = Reading::wide(u64::from(link == 0));
            gathered.put(
                Entity::Gpu,
                "0000:18:00.0",
                Signal::NvlinkUp,
                Some(link),
                reading,
            );
        }
        let found = findings(&gathered);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].finding, "NVLink is not active (link 3, 17)");
        assert!(!found[0].action.is_empty());
    }

    #[test]
    fn the_same_event_of_the_same_subject_is_one_line() {
        let xid = |subject: &str| Event {
            source: "kmsg",
            name: "xid",
            subject: subject.into(),
            code: Some(79),
            severity: Severity::Critical,
            text: "the GPU has fallen off the bus".into(),
            action: "reboot".into(),
        };
        let gathered = Gathered {
            events: vec![xid("a"), xid("a"), xid("b")],
            ..Gathered::default()
        };
        let texts: Vec<String> = findings(&gathered).into_iter().map(|f| f.finding).collect();
        assert_eq!(
            texts,
            [
                "the GPU has fallen off the bus (2 times since boot)",
                "the GPU has fallen off the bus"
            ]
        );
    }

    #[test]
    fn every_rule_is_of_a_signal_that_its_entity_has() {
        for rule in RULES {
            assert!(
                rule.signal.entities().contains(&rule.kind),
                "{}",
                rule.finding
            );
        }
    }
}
