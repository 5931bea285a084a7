//! The same lists over verbs: what of a pinglist names queue pairs goes to `weir-verbs`, and what it
//! reports each second becomes windows like those of the UDP probes.

use super::list::{List, Way};
use super::report;
use crate::source::Gathered;
use crate::verbs::{Endpoint, Handle, Orders, PROBERS_MAX, Report, Spread, TARGETS_MAX, Target};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use weir_agent_core::probe::prober::{PathReport, TargetReport, TargetSummary};
use weir_agent_core::probe::window::{Count, Quantiles, Summary};
use weir_wire::v1;

/// Pings over verbs devices.
pub struct Ud {
    verbs: Handle,
    packets_per_s: u32,
    windows: Windows,
}

impl Ud {
    /// `window`: over which loss and quantiles are made; `packets_per_s`: whatever a list asks for.
    #[must_use]
    pub fn new(verbs: Handle, packets_per_s: u32, window: Duration) -> Ud {
        Ud {
            verbs,
            packets_per_s,
            windows: Windows {
                window,
                paths: BTreeMap::new(),
            },
        }
    }

    /// Pings these from now on, and answers whom they name.
    pub fn set_list(&mut self, list: &List) {
        let targets = targets(list);
        self.windows.set_targets(&targets);
        let of_ours = list
            .targets
            .iter()
            .filter(|p| matches!(p.way, Way::Ud { .. }));
        let rate = list.share(of_ours.count(), self.packets_per_s);
        self.verbs.order(Orders {
            targets,
            packets_per_second: rate,
            probers: list.probers.as_ref().map(|probers| gids(probers.iter())),
        });
    }

    /// Where this node's ports can be pinged.
    #[must_use]
    pub fn endpoints(&self) -> Vec<v1::Endpoint> {
        let endpoints = self.verbs.endpoints();
        endpoints.iter().filter_map(announced).collect()
    }

    /// Adds what is known at `now`, the agent's clock.
    pub fn gather(&mut self, now: Duration, out: &mut Gathered) {
        for report in self.verbs.take_reports() {
            self.windows.add(report, now);
        }
        report::columns(&self.windows.reports(now), out);
    }
}

/// Probers by GID. One of IPv4 is mapped into IPv6; bare addresses are of UDP probers.
fn gids<'a>(probers: impl Iterator<Item = &'a IpAddr>) -> Vec<String> {
    let gids = probers.filter(|address| address.is_ipv6());
    gids.take(PROBERS_MAX).map(ToString::to_string).collect()
}

fn announced(endpoint: &Endpoint) -> Option<v1::Endpoint> {
    let gid: Ipv6Addr = endpoint.gid.parse().ok()?;
    endpoint.active.then(|| v1::Endpoint {
        port: format!("{}/{}", endpoint.device, endpoint.port),
        kind: Some(v1::endpoint::Kind::Ud(v1::UdEndpoint {
            gid: gid.octets().to_vec(),
            qpn: endpoint.qpn,
            qkey: endpoint.qkey,
        })),
    })
}

/// One target of `weir-verbs` for each path of each queue pair; `NAME#PATH` is what it is called.
fn targets(list: &List) -> Vec<Target> {
    let mut targets = Vec::new();
    for ping in &list.targets {
        let (Way::Ud { gid, qpn, qkey }, Some((device, port))) =
            (&ping.way, ping.from.split_once('/'))
        else {
            continue;
        };
        let Ok(port) = port.parse() else { continue };
        for path in 0..ping.paths {
            targets.push(Target {
                id: format!("{}#{path}", ping.name()),
                device: device.to_owned(),
                port,
                gid: Ipv6Addr::from(*gid).to_string(),
                qpn: *qpn,
                qkey: *qkey,
                flow_label: flow_label(path),
                hop_limit: 64,
            });
        }
    }
    targets.truncate(TARGETS_MAX);
    targets
}

/// A label of 20 bits for a path. Devices make the UDP source port of it by folding its upper bits
/// on its lower ones; soft-RoCE takes its lowest bits as the number of a queue pair.
fn flow_label(path: u8) -> u32 {
    // Fibonacci hashing: neighbours end far apart.
    let spread = u32::from(path).wrapping_mul(0x9e37_79b9) >> 20;
    spread << 8 | u32::from(path)
}

/// What was reported lately, by `NAME#PATH`.
struct Windows {
    window: Duration,
    paths: BTreeMap<String, Path>,
}

struct Path {
    target: Target,
    total: Count,
    /// With their arrivals, oldest first.
    recent: VecDeque<(Duration, Report)>,
}

impl Windows {
    /// What is known of a target that stays is kept; one whose endpoint changed starts anew.
    fn set_targets(&mut self, targets: &[Target]) {
        let mut former = std::mem::take(&mut self.paths);
        for target in targets {
            let same = former
                .remove(&target.id)
                .filter(|path| path.target == *target);
            let path = same.unwrap_or_else(|| Path {
                target: target.clone(),
                total: Count::default(),
                recent: VecDeque::new(),
            });
            self.paths.insert(target.id.clone(), path);
        }
    }

    fn add(&mut self, report: Report, now: Duration) {
        // Of a target that is none any more.
        let Some(path) = self.paths.get_mut(&report.id) else {
            return;
        };
        path.total.sent += report.sent;
        path.total.lost += report.lost;
        path.recent.push_back((now, report));
    }

    fn reports(&mut self, now: Duration) -> Vec<TargetReport> {
        let mut targets: BTreeMap<&str, Vec<(u8, &Path)>> = BTreeMap::new();
        for path in self.paths.values_mut() {
            let old = |(at, _): &(Duration, Report)| now.saturating_sub(*at) > self.window;
            while path.recent.front().is_some_and(old) {
                path.recent.pop_front();
            }
        }
        for (id, path) in &self.paths {
            if let Some((name, number)) = id.rsplit_once('#')
                && let Ok(number) = number.parse()
            {
                targets.entry(name).or_default().push((number, path));
            }
        }
        let target = |(name, paths): (&str, Vec<(u8, &Path)>)| {
            let all = |of: fn(&Report) -> Option<Spread>| {
                joined(paths.iter().flat_map(|(_, path)| path.spreads(of)))
            };
            let sum = |counts: &mut dyn Iterator<Item = Count>| {
                counts.fold(Count::default(), |a, b| Count {
                    sent: a.sent + b.sent,
                    lost: a.lost + b.lost,
                })
            };
            let summary = TargetSummary {
                all: Summary {
                    count: sum(&mut paths.iter().map(|(_, path)| path.count())),
                    rtt: all(|r| r.rtt_ns),
                },
                own_delay: all(|r| r.host_ns),
                their_delay: all(|r| r.responder_ns),
            };
            TargetReport {
                name: name.to_owned(),
                total: sum(&mut paths.iter().map(|(_, path)| path.total)),
                window: (summary.all.count.sent > 0).then_some(summary),
                paths: paths
                    .iter()
                    .map(|(number, path)| PathReport {
                        path: *number,
                        total: path.total,
                        window: (path.count().sent > 0).then(|| Summary {
                            count: path.count(),
                            rtt: joined(path.spreads(|r| r.rtt_ns)),
                        }),
                    })
                    .collect(),
            }
        };
        targets.into_iter().map(target).collect()
    }
}

impl Path {
    fn count(&self) -> Count {
        let reports = self.recent.iter().map(|(_, report)| report);
        reports.fold(Count::default(), |count, report| Count {
            sent: count.sent + report.sent,
            lost: count.lost + report.lost,
        })
    }

    fn spreads(&self, of: fn(&Report) -> Option<Spread>) -> impl Iterator<Item = Spread> {
        self.recent.iter().filter_map(move |(_, report)| of(report))
    }
}

/// Quantiles of several windows together: exact ends; the median is that of the windows' medians
/// by their samples, and the 99th percentile the largest of theirs, which is no less than the true one.
fn joined(spreads: impl Iterator<Item = Spread>) -> Option<Quantiles> {
    let mut spreads: Vec<Spread> = spreads.filter(|spread| spread.samples > 0).collect();
    spreads.sort_by_key(|spread| spread.p50);
    let samples: u64 = spreads.iter().map(|spread| spread.samples).sum();
    let mut below = 0;
    let median = spreads.iter().find(|spread| {
        below += spread.samples;
        below * 2 >= samples
    })?;
    let ns = Duration::from_nanos;
    Some(Quantiles {
        min: ns(spreads.iter().map(|spread| spread.min).min()?),
        p50: ns(median.p50),
        p99: ns(spreads.iter().map(|spread| spread.p99).max()?),
        max: ns(spreads.iter().map(|spread| spread.max).max()?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::list::Ping;
    use super::*;
    use crate::verbs::Timestamps;
    use std::collections::BTreeSet;

    const S: Duration = Duration::from_secs(1);

    fn list(paths: u8) -> List {
        let ping = Ping {
            node: "h2".into(),
            port: "mlx5_1/1".into(),
            from: "mlx5_0/1".into(),
            paths,
            way: Way::Ud {
                gid: Ipv6Addr::from_bits(0xffff_0a00_0002).octets(),
                qpn: 17,
                qkey: 5,
            },
        };
        List {
            targets: vec![ping],
            packets_per_s: 50,
            ..List::default()
        }
    }

    fn report(path: u8, sent: u64, lost: u64, rtt_us: u64) -> Report {
        let spread = Spread {
            samples: sent - lost,
            min: rtt_us * 900,
            p50: rtt_us * 1000,
            p99: rtt_us * 2000,
            max: rtt_us * 3000,
        };
        Report {
            id: targets(&list(8))[usize::from(path)].id.clone(),
            device: "mlx5_0".into(),
            port: 1,
            sent,
            lost,
            rtt_ns: (sent > lost).then_some(spread),
            host_ns: None,
            responder_ns: None,
            timestamps: Timestamps::Software,
            window_ms: 1000,
        }
    }

    #[test]
    fn each_path_is_a_target_with_a_label_of_its_own() {
        let targets = targets(&list(8));
        let labels: BTreeSet<u32> = targets.iter().map(|t| t.flow_label).collect();
        assert_eq!(labels.len(), 8);
        assert!(labels.iter().all(|label| *label < 1 << 20));
        let queue_pairs: BTreeSet<u32> = labels.iter().map(|label| label % 8).collect();
        assert_eq!(queue_pairs.len(), 8);
        assert_eq!(targets[0].gid, "::ffff:10.0.0.2");
        assert_eq!((targets[0].device.as_str(), targets[0].port), ("mlx5_0", 1));
        let names = report::labels(targets[3].id.rsplit_once('#').unwrap().0);
        assert_eq!(names, ["mlx5_0:1", "h2", "mlx5_1/1"]);
    }

    #[test]
    fn a_lossy_path_stands_out_and_the_window_moves_on() {
        let mut windows = Windows {
            window: S * 30,
            paths: BTreeMap::new(),
        };
        windows.set_targets(&targets(&list(8)));
        for second in 0..10 {
            for path in 0..4 {
                let lost = u64::from(path == 2 && second % 2 == 0);
                windows.add(report(path, 10, lost, 10 + u64::from(path)), S * second);
            }
        }
        let reports = windows.reports(S * 10);
        assert_eq!(reports.len(), 1);
        let loss = |n: usize| reports[0].paths[n].window.unwrap().count.loss();
        assert_eq!((loss(1), loss(2)), (Some(0.0), Some(0.05)));
        let rtt = reports[0].window.unwrap().all.rtt.unwrap();
        assert_eq!(
            (rtt.min, rtt.max),
            (Duration::from_nanos(9000), Duration::from_micros(39))
        );
        assert!(rtt.p50 >= Duration::from_micros(10) && rtt.p50 <= Duration::from_micros(13));
        let later = windows.reports(S * 60);
        assert_eq!(later[0].window, None);
        assert_eq!(later[0].total, Count { sent: 400, lost: 5 });
    }

    #[test]
    fn a_peer_that_started_anew_is_measured_anew_and_who_goes_is_forgotten() {
        let mut windows = Windows {
            window: S * 30,
            paths: BTreeMap::new(),
        };
        let mut given = targets(&list(2));
        windows.set_targets(&given);
        for path in 0..2 {
            windows.add(report(path, 10, 10, 5), S);
        }
        given[0].qpn += 1;
        windows.set_targets(&given);
        let reports = windows.reports(S * 2);
        let totals: Vec<u64> = reports[0].paths.iter().map(|p| p.total.sent).collect();
        assert_eq!(totals, [0, 10]);
        assert_eq!(reports[0].paths[0].window, None);
        windows.set_targets(&[]);
        windows.add(report(0, 10, 10, 5), S * 3);
        assert_eq!(windows.reports(S * 3), []);
    }

    #[test]
    fn of_the_probers_those_with_a_gid_are_answered() {
        let probers: BTreeSet<IpAddr> = ["10.0.0.2", "::ffff:10.0.0.2", "fe80::7"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(gids(probers.iter()), ["::ffff:10.0.0.2", "fe80::7"]);
    }
}
