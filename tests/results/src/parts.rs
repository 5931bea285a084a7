//! What is made of the raw figures of each part.

use crate::Keys;
use crate::interval::{poisson_most, wilson};
use serde_json::Value;
use std::fmt::Write;
use weir_fleet::cost::Cost;
use weir_fleet::healthy::{FalseVerdict, Figures};
use weir_fleet::score::{Score, Tally};
use weir_sim::reference::{self, Cell};
use weir_sim::truths::Agreement;
use weir_sim::tune::{self, TuningResults};

/// Markdown and keys of a part's raw figures.
type Render = fn(&Value) -> Result<(String, Keys), String>;

/// The parts in the order of the document: name of the raw figures, title, what is made of them.
pub const PARTS: &[(&str, &str, Render)] = &[
    ("diagnosis", "Diagnosis", diagnosis),
    ("healthy", "A healthy fleet", healthy),
    ("localisation", "Localisation of silent loss", localisation),
    ("traces", "An independent simulator's traces", traces),
    (
        "reference",
        "An independent simulator's settings of congestion control",
        settings,
    ),
    ("tuning", "Tuning", tuning),
    ("sim", "Speed of the packet simulator", simulator),
    ("cost", "Cost of the controller", cost),
];

/// A number without digits that say nothing.
pub(crate) fn plain(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

pub(crate) fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = format!(
        "| {} |\n|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn keys<const N: usize>(pairs: [(&str, Option<f64>); N]) -> Keys {
    pairs
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

fn read<T: serde::de::DeserializeOwned>(raw: &Value) -> Result<T, String> {
    serde_json::from_value(raw.clone()).map_err(|e| e.to_string())
}

fn number(raw: &Value, key: &str) -> Result<f64, String> {
    raw[key]
        .as_f64()
        .ok_or_else(|| format!("no number {key:?}"))
}

fn diagnosis(raw: &Value) -> Result<(String, Keys), String> {
    let score: Score = read(raw)?;
    let mut rows = score.rows().into_iter().map(Vec::from);
    let heads = rows.next().unwrap_or_default();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let tallies = score.classes.values().chain([&score.all]);
    let rows = rows.zip(tallies).map(|(row, tally)| {
        let cells = row.into_iter().zip(&heads);
        cells
            .map(
                |(cell, head)| match share(tally, head).and_then(|(p, n)| wilson(p, n)) {
                    Some((low, high)) => format!("{cell} ({low:.3}..{high:.3})"),
                    None => cell,
                },
            )
            .collect()
    });
    let text = format!(
        "{} scenarios of simulated fleets (seed {}, {:.1} hours in all, 16 to 1,000 hosts) through the real decoder and the real core: \
         `weir-fleet score`; what is assumed is in [fleet.md](fleet.md). *Right*: class and place agree with a fault, within its time. \
         *Linked*: the controller says that it follows from a verdict that is right. *Unlinked*: a consequence of a fault, not linked \
         to it. *Repeated*: a second incident of the same controller for one fault. Both count as false in *precision*, and are left \
         out *of roots*. *Latency*: sample intervals from the fault's start. A \
         verdict counts until 4 s after the fault's end, by any end or direction of a cable, and by any place that its incident ever \
         named. {} streams were refused by the controller.\n\n{}",
        score.scenarios,
        score.seed,
        score.simulated_hours,
        score.refused,
        table(&heads, rows)
    );
    let all = &score.all;
    let mut keys = keys([
        ("diagnosis_precision", all.precision()),
        ("diagnosis_precision_of_roots", all.precision_of_roots()),
        ("diagnosis_recall", all.recall()),
        ("diagnosis_scenarios", Some(score.scenarios as f64)),
        ("latency_intervals_p50", all.latency_p50),
        ("latency_intervals_p99", all.latency_p99),
    ]);
    for head in ["precision", "recall"] {
        if let Some((low, high)) = share(all, head).and_then(|(p, n)| wilson(p, n)) {
            keys.insert(format!("diagnosis_{head}_ci95_low"), low);
            keys.insert(format!("diagnosis_{head}_ci95_high"), high);
        }
    }
    Ok((text, keys))
}

/// Share under a head of the table, and of how many.
fn share(tally: &Tally, head: &str) -> Option<(f64, f64)> {
    let roots = tally.verdicts_true + tally.verdicts_false;
    let (share, of) = match head {
        "recall" => (tally.recall(), tally.faults),
        "precision" => (
            tally.precision(),
            roots + tally.consequences + tally.repeated,
        ),
        "of roots" => (tally.precision_of_roots(), roots),
        _ => (None, 0),
    };
    share.map(|share| (share, of as f64))
}

fn healthy(raw: &Value) -> Result<(String, Keys), String> {
    let figures: Figures = read(raw)?;
    let seen = u32::try_from(figures.false_verdicts).map_err(|e| e.to_string())?;
    let most = poisson_most(seen) / figures.days.max(1e-9);
    let mut text = format!(
        "{} fleets of {} nodes each, sampled every {} s, for {} simulated days in all, with jobs that come and go and all of the noise \
         of [fleet.md](fleet.md), but no fault (`weir-fleet healthy`): {seen} verdicts, all of them false; {} a day, and with 95 % \
         confidence fewer than {most:.2}. {:.1} million frames and {:.2} thousand million values in {:.0} s of CPU, simulator \
         included: a day of such a fleet takes {:.0} s of one core.\n",
        figures.fleets,
        figures.nodes,
        plain(figures.interval_s),
        plain(figures.days),
        plain(figures.false_verdicts_per_day),
        figures.frames as f64 / 1e6,
        figures.samples as f64 / 1e9,
        figures.cpu_s,
        figures.cpu_s / figures.days.max(1e-9),
    );
    for FalseVerdict {
        seed,
        at_s,
        class,
        place,
        ..
    } in &figures.verdicts
    {
        text += &format!("\n- seed {seed}, {at_s:.0} s: `{class}` on {place}");
    }
    Ok((
        text,
        keys([
            (
                "false_verdicts_per_day_1000_nodes",
                Some(figures.false_verdicts_per_day),
            ),
            ("false_verdicts_per_day_1000_nodes_ci95_high", Some(most)),
            ("healthy_days", Some(figures.days)),
            ("healthy_interval_s", Some(figures.interval_s)),
        ]),
    ))
}

/// Every number that the tool gives, under its own name.
fn as_they_are(raw: &Value) -> Keys {
    let numbers = raw.as_object().into_iter().flatten();
    numbers
        .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
        .collect()
}

/// Precision, recall and F1 of counts, with the ranges of the first two.
fn method(counts: &Value) -> Result<[String; 3], String> {
    let [named, right, faults, found] =
        ["named", "right", "faults", "found"].map(|key| number(counts, key));
    let (named, right, faults, found) = (named?, right?, faults?, found?);
    if faults == 0.0 {
        return Ok([format!("{named:.0} named"), "-".to_owned(), "-".to_owned()]);
    }
    let (p, r) = (
        if named > 0.0 { right / named } else { 1.0 },
        found / faults,
    );
    let cell = |share: f64, of: f64| match wilson(share, of) {
        Some((low, high)) => format!("{share:.3} ({low:.3}..{high:.3})"),
        None => format!("{share:.3}"),
    };
    let f1 = if p + r > 0.0 {
        2.0 * p * r / (p + r)
    } else {
        0.0
    };
    Ok([cell(p, named), cell(r, faults), format!("{f1:.3}")])
}

fn localisation(raw: &Value) -> Result<(String, Keys), String> {
    let mut rows = Vec::new();
    for kind in raw["kinds"].as_array().ok_or("no list \"kinds\"")? {
        let mut row = vec![
            kind["kind"].as_str().unwrap_or_default().to_owned(),
            plain(number(kind, "cases")?),
        ];
        for counts in kind["methods"].as_array().into_iter().flatten() {
            row.extend(method(counts)?);
        }
        rows.push(row);
    }
    let heads = [
        "fabric, paths, faults",
        "cases",
        "joint likelihood: precision",
        "recall",
        "F1",
        "007: precision",
        "recall",
        "F1",
        "007, best share: precision",
        "recall",
        "F1",
    ];
    let text = format!(
        "{:.0} labelled cases: leaf-spine and three-tier fabrics, known and unknown paths, one fault, two at once, a whole switch, and \
         none at all (there the number of links named, which are all wrong). *007* stops at 1 % of the votes, as published; *best share* is the share that suits these \
         cases best ({:.0} %), chosen on others. Links that no observation of a case can tell apart count as one, for every method. \
         Over all cases F1 is {:.3} to {:.3}, that of 007 {:.3} to {:.3} (bootstrap over cases).\n\n{}",
        number(raw, "localisation_cases")?,
        number(raw, "localisation_007_best_share")? * 100.0,
        number(raw, "localisation_f1_ci95_low")?,
        number(raw, "localisation_f1_ci95_high")?,
        number(raw, "localisation_f1_ci95_low_007")?,
        number(raw, "localisation_f1_ci95_high_007")?,
        table(&heads, rows)
    );
    Ok((text, as_they_are(raw)))
}

fn traces(raw: &Value) -> Result<(String, Keys), String> {
    let all: Agreement = read(raw)?;
    let [times, hot, found] = all.tables().map(|(heads, rows)| table(&heads, rows));
    let seeds = all.seeds.len();
    let text = format!(
        "Packet-level traces of a simulator that is not ours, beside runs of our models of them. What the controller's core finds in the \
         traces themselves (an interval is 500 us):\n\n{found}\nMean iteration time of the first job, theirs of one run, ours over {seeds} \
         seeds: which packets are marked is chance.\n\n{times}\nPorts with the deepest queues, of those beyond 150 KB. They agree when the \
         first is the same and each side's three deepest are hot on the other; where no time is bounded, the model is known to be incomplete \
         ([simulator.md](simulator.md)).\n\n{hot}"
    );
    let count = |n: usize| Some(n as f64);
    let agree = all.diagnoses.iter().filter(|d| d.agrees).count();
    let bound = all.comparisons.iter().filter(|c| c.allowed_pct.is_some());
    let worst = bound.map(|c| c.off_pct.abs()).fold(0.0, f64::max);
    Ok((
        text,
        keys([
            ("traces", count(all.diagnoses.len())),
            ("traces_truths_found", count(agree)),
            ("traces_worst_off_pct", Some(worst)),
        ]),
    ))
}

fn settings(raw: &Value) -> Result<(String, Keys), String> {
    let cells: Vec<Cell> = read(&raw["cells"])?;
    let order = reference::order(&cells);
    let (heads, rows) = reference::figures(&cells);
    let (order_heads, order_rows) = reference::orders(&order);
    let text = format!(
        "Mean iteration time of the first job in five kinds of traffic, *theirs; ours*, by seed: `nv` in us, the others in percent against \
         it with the same seed. In incast, all-to-all and victim our flows take the paths of their first seed, so that our seeds are the \
         chance of marks alone; in the rings paths are hashed, theirs and ours by other hashes.\n\n{}\nOrder of the settings, by the means of the seeds \
         (where paths are theirs: their first):\n\n{}",
        table(&heads, rows),
        table(&order_heads, order_rows)
    );
    let least = order.iter().map(|o| o.rank_correlation).reduce(f64::min);
    Ok((text, keys([("reference_rank_correlation_min", least)])))
}

fn tuning(raw: &Value) -> Result<(String, Keys), String> {
    let results: TuningResults = serde_json::from_value(raw.clone()).map_err(|e| e.to_string())?;
    let text = format!(
        "`weir-sim tune`, on the packet simulator. {}",
        tune::markdown(&results)
    );
    Ok((text, results.keys))
}

fn simulator(raw: &Value) -> Result<(String, Keys), String> {
    let loads = raw.as_array().ok_or("no list of loads")?;
    let mut first = None;
    let mut rows = Vec::new();
    for load in loads {
        let speed = number(load, "packets_per_s_core")?;
        first = first.or(Some(speed));
        let name = load["name"].as_str().unwrap_or_default();
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", number(load, "packets")?),
            format!("{speed:.0}"),
        ]);
    }
    let text = format!(
        "Data packets over a path of four hops, one thread (`weir-sim bench`). The key is that of the first.\n\n{}",
        table(
            &["load", "data packets", "data packets per s and core"],
            rows
        )
    );
    Ok((text, keys([("sim_packets_per_s_core", first)])))
}

fn cost(raw: &Value) -> Result<(String, Keys), String> {
    let cost: Cost = read(raw)?;
    let mut text = format!(
        "{} nodes ({} directed links, {} columns a host) at one sample a second, every frame decoded and judged on one \
         thread with all detectors, {} s after the start, when all of them have learnt what they need:\n\n",
        cost.nodes, cost.directed_links, cost.host_columns, cost.warm_up_s
    );
    let mut rows = vec![
        ("values in a second", cost.samples_per_s as f64),
        ("CPU seconds for a second of the fleet", cost.cpu_s_per_s),
        ("of the longest second", cost.cpu_s_max),
        ("of them in the core's timer", cost.tick_cpu_s_per_s),
        ("nanoseconds a value", cost.ns_per_sample),
        ("bytes a value on the wire", cost.wire_bytes_per_sample),
        (
            "bytes held for a node: allocated by the controller's brain and not freed",
            cost.bytes_per_node as f64,
        ),
    ];
    let restart_bytes = cost.restart_point_bytes_per_node.map(|n| n as f64);
    rows.extend(restart_bytes.map(|n| {
        (
            "bytes of the brain's memory for a node where a segment of a recording begins",
            n,
        )
    }));
    let stall = cost.restart_point_stall_s;
    rows.extend(stall.map(|s| ("CPU seconds for which the brain writes it", s)));
    let rows = rows.into_iter();
    let rows = rows.map(|(name, value)| vec![name.to_owned(), plain(value)]);
    write!(text, "{}", table(&["figure", "value"], rows)).map_err(|e| e.to_string())?;
    let keys = keys([
        ("core_ns_per_sample", Some(cost.ns_per_sample)),
        (
            "fleet_10000_node_second_cpu_s",
            (cost.nodes > 9_000).then_some(cost.cpu_s_per_s),
        ),
        ("core_bytes_per_node", Some(cost.bytes_per_node as f64)),
        ("restart_point_bytes_per_node", restart_bytes),
        ("restart_point_stall_s", stall),
    ]);
    Ok((text, keys))
}
