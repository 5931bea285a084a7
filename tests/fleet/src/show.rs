//! One scenario in words: its truth, what the controller said and why, and which signals a fault really moved.

use crate::columns::{Gpu, Layout, NVLINK_COLUMNS, Of, Rdma};
use crate::fleet::{Fleet, Refused};
use crate::scenario::Scenario;
use crate::score::{Kind, judge, run};
use std::collections::BTreeMap;
use std::fmt::Write;
use weir_controller_core::verdict::Subject;
use weir_wire::signal::{Kind as Sort, Signal};

/// Nodes looked at for each fault.
const NODES_MAX: usize = 6;
/// Before a fault, so long counts as what is normal.
const BEFORE_S: f64 = 20.0;
/// The fault works so long before its signals are looked at.
const SETTLE_S: f64 = 3.0;

/// Readings of a node: time and values.
type History = Vec<(f64, Vec<Option<u64>>)>;

/// Runs the scenario and tells what happened. `signals`: with what the faults moved.
#[must_use]
pub fn scenario(scenario: Scenario, signals: bool) -> String {
    let mut lines = Vec::new();
    lines.push(format!("scenario {}: {}", scenario.number, scenario.text));
    let watched: Vec<Vec<usize>> = scenario
        .world
        .faults
        .iter()
        .map(|f| nodes_of(&scenario, &f.entities))
        .collect();
    let mut histories: BTreeMap<usize, History> = BTreeMap::new();
    let mut steps: Vec<(f64, Vec<u64>)> = Vec::new();
    let interval_s = scenario.shape.interval_s;
    let (outcome, fleet) = run(scenario, |fleet| {
        let now = fleet.world.now_s;
        steps.push((now, fleet.world.jobs.iter().map(|j| j.steps).collect()));
        for agent in fleet
            .agents
            .iter()
            .filter(|a| signals && watched.iter().flatten().any(|n| *n == a.node))
        {
            histories
                .entry(agent.node)
                .or_default()
                .push((now, agent.counters.values.clone()));
        }
    });
    let faults = &fleet.world.faults;
    let (seen, kinds) = judge(faults, &fleet.found, interval_s);
    lines.push(String::new());
    for (n, fault) in faults.iter().enumerate() {
        let found = seen[n].map_or("NOT FOUND".to_owned(), |at| {
            format!("found after {:.1} s", at - fault.start_s)
        });
        lines.push(format!(
            "truth {n}: {} from {:.1} to {:.1} s: {} — {found}",
            fault.class.name(),
            fault.start_s,
            fault.end_s,
            fault.text
        ));
        let places: Vec<String> = fault.entities.iter().map(ToString::to_string).collect();
        lines.push(format!("  places that name it: {}", few(&places, 8)));
        for (number, job) in fleet
            .world
            .jobs
            .iter()
            .enumerate()
            .filter(|(_, j)| j.trains())
        {
            let ends = fault.end_s.min(job.spec.end_s);
            let a = rate(&steps, number, fault.start_s - BEFORE_S, fault.start_s);
            let b = rate(&steps, number, fault.start_s + SETTLE_S, ends);
            if let (Some(a), Some(b)) = (a, b)
                && (b / a - 1.0).abs() > 0.03
            {
                lines.push(format!(
                    "  {}: a step took {a:.2} s before, {b:.2} s during it",
                    job.spec.name
                ));
            }
        }
        if signals {
            for node in &watched[n] {
                let history = histories.get(node).map_or(&[][..], Vec::as_slice);
                for text in moved(&fleet, *node, history, (fault.start_s, fault.end_s)) {
                    lines.push(format!("  {text}"));
                }
            }
        }
    }
    lines.push(String::new());
    for (found, kind) in fleet.found.iter().zip(&kinds) {
        let kind = match kind {
            Kind::True(n) => format!("RIGHT (truth {n})"),
            Kind::Repeated(n) => format!("right again (truth {n})"),
            Kind::Linked(n) => format!(
                "consequence of truth {n}, linked to {}",
                found.root.as_deref().unwrap_or("")
            ),
            Kind::Consequence(n) => format!("CONSEQUENCE of truth {n}, not linked to it"),
            Kind::False => "FALSE".to_owned(),
        };
        let until = found
            .resolved_s
            .map_or("the end".to_owned(), |r| format!("{r:.1} s"));
        let places: Vec<String> = found
            .entities
            .iter()
            .map(|(at, e)| format!("{e} at {at:.1} s"))
            .collect();
        lines.push(format!(
            "verdict {}: {} on {}, {:.1} s to {until}, confidence {:.2}{} — {kind}",
            found.id,
            found.class.name(),
            places.join(", then "),
            found.opened_s,
            found.verdict.confidence,
            found
                .verdict
                .job
                .as_ref()
                .map_or(String::new(), |j| format!(", job {j}")),
        ));
        for evidence in &found.verdict.evidence {
            lines.push(format!("    {}: {}", evidence.what, evidence.value));
        }
    }
    if fleet.found.is_empty() {
        lines.push("no verdicts".to_owned());
    }
    for refused in outcome.refused {
        let Refused { at_s, node, reason } = refused;
        lines.push(format!("stream REFUSED at {at_s:.3} s, {node}: {reason}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn few(all: &[String], max: usize) -> String {
    match all.len().checked_sub(max) {
        Some(more) if more > 0 => format!("{} and {more} more", all[..max].join(", ")),
        _ => all.join(", "),
    }
}

/// Nodes that the truth names, and the peers of links that it names.
fn nodes_of(scenario: &Scenario, entities: &std::collections::BTreeSet<Subject>) -> Vec<usize> {
    let fabric = &scenario.world.fabric;
    let named = |n: &usize| {
        entities.iter().any(|e| {
            e.node()
                .is_some_and(|e| e.as_str() == fabric.nodes[*n].name)
        })
    };
    (0..fabric.nodes.len())
        .filter(named)
        .take(NODES_MAX)
        .collect()
}

/// Seconds of a step of the job in a span; `None` if it had none.
fn rate(steps: &[(f64, Vec<u64>)], job: usize, from: f64, to: f64) -> Option<f64> {
    let mut inside = steps
        .iter()
        .filter(|(at, all)| (from..=to).contains(at) && all.len() > job);
    let (first, last) = (inside.next()?, inside.next_back()?);
    let done = last.1[job] - first.1[job];
    Some((last.0 - first.0) / if done == 0 { 0.5 } else { done as f64 })
}

/// What stands out: columns whose mean, or rise in a second, changed by more than a tenth and more than their noise.
fn moved(
    fleet: &Fleet,
    node: usize,
    history: &[(f64, Vec<Option<u64>>)],
    span: (f64, f64),
) -> Vec<String> {
    let Some(agent) = fleet.agents.iter().find(|a| a.node == node) else {
        return Vec::new();
    };
    let layout = agent.counters.layout;
    let names: Vec<String> = fleet.world.fabric.nodes[node]
        .ports
        .iter()
        .map(|p| fleet.world.fabric.ports[*p].name.clone())
        .collect();
    let mut lines = Vec::new();
    for column in 0..layout.len() {
        let (subject, signal, index) = column_of(&layout, &names, column);
        let series = |from: f64, to: f64| -> Vec<f64> {
            let inside: Vec<&(f64, Vec<Option<u64>>)> = history
                .iter()
                .filter(|(at, _)| (from..=to).contains(at))
                .collect();
            match signal.kind() {
                Sort::Gauge => inside
                    .iter()
                    .filter_map(|(_, v)| Some(v[column]? as f64))
                    .collect(),
                Sort::Counter => inside
                    .windows(2)
                    .filter_map(|w| {
                        Some(
                            (w[1].1[column]?.checked_sub(w[0].1[column]?)?) as f64
                                / (w[1].0 - w[0].0),
                        )
                    })
                    .collect(),
            }
        };
        let (before, during) = (
            series(span.0 - BEFORE_S, span.0),
            series(span.0 + SETTLE_S, span.1),
        );
        let (Some((a, noise)), Some((b, _))) = (spread(&before), spread(&during)) else {
            if before.is_empty() != during.is_empty() {
                lines.push(format!(
                    "{}:{subject} {} {}",
                    fleet.world.fabric.nodes[node].name,
                    signal.name(),
                    if during.is_empty() {
                        "is absent during it"
                    } else {
                        "comes with it"
                    }
                ));
            }
            continue;
        };
        if (b - a).abs() > (0.1 * a.abs()).max(4.0 * noise / 3.0).max(0.02) {
            let mut text = format!(
                "{}:{subject} {}",
                fleet.world.fabric.nodes[node].name,
                signal.name()
            );
            if let Some(index) = index
                && write!(text, "[{index}]").is_err()
            {
                continue;
            }
            let per = if signal.kind() == Sort::Counter {
                "/s"
            } else {
                ""
            };
            lines.push(format!("{text}: {} -> {}{per}", short(a), short(b)));
        }
    }
    lines
}

/// Mean and mean deviation.
fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (!values.is_empty()).then(|| {
        (
            mean,
            values.iter().map(|v| (v - mean).abs()).sum::<f64>() / n,
        )
    })
}

fn short(v: f64) -> String {
    for (unit, size) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if v.abs() >= size {
            return format!("{:.2}{unit}", v / size);
        }
    }
    format!("{v:.2}")
}

fn column_of(layout: &Layout, ports: &[String], column: usize) -> (String, Signal, Option<u32>) {
    let devices = layout.device(0, Rdma::TxBytes);
    let gpus = layout.gpu(0, Gpu::GpuTemperature);
    if column < devices {
        let (signal, index) = Of::ALL[column % Of::ALL.len()];
        return (ports[column / Of::ALL.len()].clone(), signal, index);
    }
    if column < gpus {
        let (n, at) = (
            (column - devices) / Rdma::ALL.len(),
            (column - devices) % Rdma::ALL.len(),
        );
        return (format!("mlx5_{n}/1"), Rdma::ALL[at].0, Rdma::ALL[at].1);
    }
    let each = Gpu::ALL.len() + layout.nvlinks * NVLINK_COLUMNS;
    let (n, at) = ((column - gpus) / each, (column - gpus) % each);
    let subject = crate::columns::GPU_ADDRESSES[n].to_owned();
    match at.checked_sub(Gpu::ALL.len()) {
        None => (subject, Gpu::ALL[at].0, Gpu::ALL[at].1),
        Some(rest) => {
            let signal = if rest % NVLINK_COLUMNS == 0 {
                Signal::NvlinkUp
            } else {
                Signal::NvlinkErrors
            };
            (
                subject,
                signal,
                Some(weir_sim::num::index(rest / NVLINK_COLUMNS)),
            )
        }
    }
}
