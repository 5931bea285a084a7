//! What the probes saw, as columns and metrics.

use super::responder;
use crate::source::{ColumnKey, Gathered, RawCounter, RawKind, Reading};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_agent_core::probe::prober::{Counters, TargetReport};
use weir_agent_core::probe::window::{Count, Summary};
use weir_wire::signal::{Entity, Signal};

/// Paths that have series of their own on `/metrics`: the worst. Frames carry all of them.
const PATHS_SHOWN: usize = 16;

/// Source, target and target's port of `SOURCE/NODE:PORT`.
#[must_use]
pub fn labels(entity: &str) -> [&str; 3] {
    let (source, target) = entity.split_once('/').unwrap_or(("", entity));
    let (node, port) = target.split_once(':').unwrap_or((target, ""));
    [source, node, port]
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn ppm(count: Count) -> Option<u64> {
    (count.lost * 1_000_000).checked_div(count.sent)
}

/// Adds the columns of every target and every path.
pub fn columns(reports: &[TargetReport], out: &mut Gathered) {
    for report in reports {
        let mut put = |path: Option<u8>, signal, value: Option<u64>| {
            if let Some(value) = value {
                let reading = Reading::wide(value);
                out.put(Entity::Probe, &report.name, signal, path, reading);
            }
        };
        let mut summary = |path, total: Count, window: Option<Summary>| {
            put(path, Signal::ProbesSent, Some(total.sent));
            put(path, Signal::ProbesLost, Some(total.lost));
            let rtt = window.and_then(|w| w.rtt);
            put(
                path,
                Signal::ProbeLossPpm,
                window.and_then(|w| ppm(w.count)),
            );
            put(path, Signal::ProbeRttNs, rtt.map(|q| nanos(q.p50)));
            put(path, Signal::ProbeRttP99Ns, rtt.map(|q| nanos(q.p99)));
        };
        for path in &report.paths {
            summary(Some(path.path), path.total, path.window);
        }
        summary(None, report.total, report.window.map(|w| w.all));
        let rtt = report.window.and_then(|w| w.all.rtt);
        let own = report.window.and_then(|w| w.own_delay);
        let theirs = report.window.and_then(|w| w.their_delay);
        for (signal, value) in [
            (Signal::ProbeRttMinNs, rtt.map(|q| q.min)),
            (Signal::ProbeRttMaxNs, rtt.map(|q| q.max)),
            (Signal::ProbeHostDelayNs, own.map(|q| q.p99)),
            (Signal::ProbeResponderDelayNs, theirs.map(|q| q.p99)),
        ] {
            put(None, signal, value.map(nanos));
        }
    }
}

/// Adds how often each thing happened.
pub fn counters(prober: &Counters, responder: &responder::Counters, out: &mut Gathered) {
    let of_prober = [
        ("sent", prober.sent),
        ("answered", prober.answered),
        ("lost", prober.lost),
        ("late", prober.late),
        ("duplicate", prober.duplicates),
        ("stray", prober.strays),
        ("corrupt", prober.corrupt),
        ("refused", prober.refused),
        ("send_failed", prober.failed),
        ("over_budget", prober.over_budget),
        ("implausible_rtt", prober.implausible),
        ("rtt_by_nic", prober.by_nic),
        ("rtt_by_kernel", prober.by_kernel),
        ("rtt_by_calls", prober.by_user),
    ];
    let of_responder = [
        ("answered", responder.answered),
        ("not_listed", responder.not_listed),
        ("too_fast", responder.too_fast),
        ("no_room", responder.no_room),
        ("stray", responder.strays),
        ("corrupt", responder.corrupt),
        ("other_version", responder.other_version),
        ("send_failed", responder.failed),
    ];
    for (device, counters) in [("prober", &of_prober[..]), ("responder", &of_responder)] {
        out.raw.extend(
            counters.iter().map(|(name, value)| {
                RawCounter::new(RawKind::Counter, "probe", device, name, *value)
            }),
        );
    }
}

/// The paths that are worth a series: most loss first, then the longest p99.
#[must_use]
pub fn worst_paths(columns: &BTreeMap<ColumnKey, Reading>) -> BTreeSet<(&str, u8)> {
    let mut paths: BTreeMap<(&str, u8), (u64, u64)> = BTreeMap::new();
    for (key, reading) in columns {
        let (Entity::Probe, Some(path)) = (key.kind, key.index) else {
            continue;
        };
        let badness = paths.entry((&key.entity, path)).or_default();
        if key.signal == Signal::ProbeLossPpm {
            badness.0 = reading.value;
        } else if key.signal == Signal::ProbeRttP99Ns {
            badness.1 = reading.value;
        }
    }
    let mut paths: Vec<_> = paths.into_iter().collect();
    paths.sort_by_key(|(path, badness)| (std::cmp::Reverse(*badness), *path));
    let worst = paths.into_iter().take(PATHS_SHOWN);
    worst.map(|(path, _)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_agent_core::probe::prober::{PathReport, TargetSummary};
    use weir_agent_core::probe::window::Quantiles;

    fn summary(sent: u64, lost: u64, us: u64) -> Summary {
        let time = Duration::from_micros(us);
        Summary {
            count: Count { sent, lost },
            rtt: (sent > lost).then_some(Quantiles {
                min: time,
                p50: time,
                p99: time * 2,
                max: time * 3,
            }),
        }
    }

    fn report(paths: u8, lossy: u8) -> TargetReport {
        let path = |path| PathReport {
            path,
            total: Count { sent: 9, lost: 1 },
            window: Some(summary(
                100,
                if path == lossy { 25 } else { 0 },
                10 + u64::from(path),
            )),
        };
        let all = TargetSummary {
            all: summary(3200, 25, 20),
            own_delay: None,
            their_delay: None,
        };
        TargetReport {
            name: "eth0/h2:eth1".into(),
            total: Count { sent: 9, lost: 1 },
            window: Some(all),
            paths: (0..paths).map(path).collect(),
        }
    }

    #[test]
    fn the_worst_paths_are_the_lossy_then_the_slow() {
        let mut gathered = Gathered::default();
        columns(&[report(32, 3)], &mut gathered);
        let worst = worst_paths(&gathered.columns);
        assert_eq!(worst.len(), PATHS_SHOWN);
        assert!(worst.contains(&("eth0/h2:eth1", 3)));
        assert!(worst.contains(&("eth0/h2:eth1", 31)) && !worst.contains(&("eth0/h2:eth1", 0)));
    }

    #[test]
    fn what_was_not_measured_is_absent() {
        let mut gathered = Gathered::default();
        let mut silent = report(1, 9);
        silent.window = None;
        silent.paths[0].window = Some(summary(0, 0, 0));
        columns(&[silent], &mut gathered);
        let signals: BTreeSet<Signal> = gathered.columns.keys().map(|k| k.signal).collect();
        assert_eq!(signals, [Signal::ProbesSent, Signal::ProbesLost].into());
    }

    #[test]
    fn a_loss_of_all_is_a_million_parts() {
        assert_eq!(ppm(Count { sent: 7, lost: 7 }), Some(1_000_000));
        assert_eq!(ppm(Count::default()), None);
    }
}
