//! `weir-agent scan`: one look at this node, for people and for monitoring checks.

pub mod expect;
mod history;
mod rules;

use crate::bpf::{jobs, sys};
use crate::collect::{Collector, Purpose};
use crate::config::Config;
use crate::devices::KMSG;
use crate::inventory;
use crate::sample::{PORT_SIGNALS, Sample};
use crate::source::{ColumnKey, Gathered, Reading, Source};
use comfy_table::{ContentArrangement, Table, presets};
use expect::Expect;
use history::History;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use weir_wire::signal::{Entity, Signal};

/// How bad a finding is; the exit code of monitoring plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok = 0,
    Warning = 1,
    Critical = 2,
}

/// One line: what was looked at, what was found, what to do.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub subject: String,
    pub level: Level,
    pub finding: String,
    /// Empty if there is nothing to do.
    pub action: String,
}

/// Looks at the node once.
///
/// # Errors
/// Nothing at all can be read: the state is unknown.
pub fn scan(config: &Config, expected: &[Expect]) -> anyhow::Result<Vec<Finding>> {
    let mut collector = Collector::open(config, Purpose::Look, Instant::now())?;
    let (sample, extras) = collector.collect();
    let gathered = Gathered {
        columns: columns(&sample),
        info: extras.info,
        ..Gathered::default()
    };
    let mut findings: Vec<Finding> = expected.iter().map(|e| e.check(&gathered)).collect();
    findings.extend(rules::findings(&gathered));
    let now = Duration::from_nanos(sys::monotonic_ns());
    let mut sources = collector.sources();
    let mut history = History::default();
    if config.collectors.kmsg {
        let (source, read) = kmsg(now);
        sources.push(source);
        history = read;
    }
    for event in extras.events {
        history.take(event, now);
    }
    findings.extend(history.findings(now, &gathered));
    let mut say = |subject: String, level, finding: String, action: &str| {
        findings.push(Finding {
            subject,
            level,
            finding,
            action: action.into(),
        })
    };
    for source in sources {
        let level = if source.up { Level::Ok } else { Level::Warning };
        let text = if source.reason.is_empty() {
            "up".to_owned()
        } else {
            source.reason
        };
        say(
            format!("source {}", source.name),
            level,
            text,
            if source.up {
                ""
            } else {
                "give the agent the right that is named, or switch the source off"
            },
        );
    }
    let inventory = inventory::read(&mut collector.netlink, &config.ports_exclude, 0)?;
    for port in &inventory.ports {
        let of_port = |signal| gathered.get(Entity::Port, &port.name, signal);
        let drops = of_port(Signal::QueueDrops).unwrap_or(0);
        let has_address = !port.addresses.is_empty();
        match (port.up, has_address) {
            (true, _) if drops > 0 => say(
                format!("port {}", port.name),
                Level::Ok,
                format!("up, {drops} packets dropped by its queue since it was made"),
                "",
            ),
            (true, true) => say(
                format!("port {}", port.name),
                Level::Ok,
                format!("up, {}", port.addresses.join(" ")),
                "",
            ),
            (true, false) => say(
                format!("port {}", port.name),
                Level::Ok,
                "up, no address".into(),
                "",
            ),
            (false, true) => say(
                format!("port {}", port.name),
                Level::Critical,
                "down, although it has an address".into(),
                "check cable, optic and the port at the other end",
            ),
            (false, false) => say(
                format!("port {}", port.name),
                Level::Ok,
                "down, not in use".into(),
                "",
            ),
        }
    }
    for group in &inventory.groups {
        let members: Vec<String> = group
            .members
            .iter()
            .map(|m| format!("{}={}", m.port, m.weight))
            .collect();
        let level = if group.members.is_empty() {
            Level::Critical
        } else {
            Level::Ok
        };
        say(
            format!("ECMP group {}", group.id),
            level,
            format!("{} for {}", members.join(" "), group.prefixes.join(" ")),
            if group.members.is_empty() {
                "its next hops are gone: restore them"
            } else {
                ""
            },
        );
    }
    for pid in jobs::job_pids() {
        if let Some(job) = jobs::identify(pid) {
            let rank = job.rank.map_or_else(String::new, |r| format!(", rank {r}"));
            say(
                format!("process {pid}"),
                Level::Ok,
                format!("job {}{rank} (by {})", job.key, job.source),
                "",
            );
        }
    }
    let routes = if config.limits.routes_allow {
        format!("up to {} pins", config.limits.pins_max)
    } else {
        "no change is allowed".into()
    };
    say("limits".into(), Level::Ok, routes, "");
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(findings)
}

/// The kernel's log since the node started.
fn kmsg(now: Duration) -> (Source, History) {
    let (reason, history) = match History::read(Path::new(KMSG)) {
        Ok(history) => (history.extent(now), Ok(history)),
        Err(error) => (format!("cannot read {KMSG}: {error}"), Err(error)),
    };
    let source = Source {
        name: "kmsg",
        up: history.is_ok(),
        reason,
    };
    (source, history.unwrap_or_default())
}

/// Everything that was read, ports and the other sources alike.
fn columns(sample: &Sample) -> BTreeMap<ColumnKey, Reading> {
    let mut columns = sample.columns.clone();
    for (port, readings) in &sample.ports {
        for (signal, reading) in PORT_SIGNALS.iter().zip(readings) {
            let key = ColumnKey::port(port, *signal);
            columns.extend(reading.map(|value| (key, Reading::wide(value))));
        }
    }
    columns
}

/// The findings as a table.
#[must_use]
pub fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "subject", "finding", "action"]);
    for f in findings {
        let level = match f.level {
            Level::Ok => "ok",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
        };
        table.add_row([level, &f.subject, &f.finding, &f.action]);
    }
    table.to_string()
}
