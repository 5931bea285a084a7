//! What was measured, as one table of keys and one document. Pure: raw figures (docs/results/NAME.json, as the tools
//! print them with `--json`) in, [`Results`] out; [`Results::markdown`] is docs/results.md.
//!
//! A part whose raw figures are not there is left out, and so are its keys.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use weir_fleet::cost::Cost;
use weir_fleet::healthy::{FalseVerdict, Figures};
use weir_fleet::score::Score;
use weir_sim::tune::{self, TuningResults};

/// One chapter of the document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub title: String,
    /// Markdown.
    pub text: String,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Figures by key.
    #[serde(flatten)]
    pub keys: BTreeMap<String, f64>,
    #[serde(default)]
    pub parts: Vec<Part>,
}

/// Why raw figures were refused.
#[derive(Debug)]
pub struct Refused {
    pub name: &'static str,
    pub reason: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "docs/results/{}.json: {}; `make results` writes it anew",
            self.name, self.reason
        )
    }
}

impl std::error::Error for Refused {}

/// Markdown and keys of a part's raw figures.
type Render = fn(&Value) -> Result<(String, Keys), String>;
type Keys = BTreeMap<String, f64>;

/// The parts in the order of the document: name of the raw figures, title, what is made of them.
pub const PARTS: &[(&str, &str, Render)] = &[
    ("diagnosis", "Diagnosis", diagnosis),
    ("healthy", "A healthy fleet", healthy),
    ("localisation", "Localisation of silent loss", localisation),
    ("tuning", "Tuning", tuning),
    ("sim", "Speed of the packet simulator", simulator),
    ("cost", "Cost of the controller", cost),
];

impl Results {
    /// Gathers the parts whose raw figures are there.
    ///
    /// # Errors
    /// [`Refused`]: figures that are not what their tool writes.
    pub fn gather(raw: &BTreeMap<String, Value>) -> Result<Results, Refused> {
        let mut results = Results::default();
        for (name, title, render) in PARTS {
            let Some(figures) = raw.get(*name) else {
                continue;
            };
            let (text, keys) = render(figures).map_err(|reason| Refused { name, reason })?;
            results.keys.extend(keys);
            results.parts.push(Part {
                title: (*title).to_owned(),
                text,
            });
        }
        Ok(results)
    }

    /// docs/results.md.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = "# Results\n\nMade by `make results` from docs/results.json; raw figures are in docs/results/. A value is what was \
                       measured, never its goal.\n"
            .to_owned();
        for part in &self.parts {
            out += &format!("\n## {}\n\n{}\n", part.title, part.text.trim_end());
        }
        let rows = self
            .keys
            .iter()
            .map(|(key, value)| vec![format!("`{key}`"), plain(*value)]);
        out += &format!("\n## Keys\n\n{}", table(&["key", "value"], rows));
        out
    }
}

/// A number without digits that say nothing.
fn plain(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
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
    let text = format!(
        "{} scenarios of simulated fleets (seed {}, {:.1} hours in all, 16 to 1,000 hosts) through the real decoder and the real core: \
         `weir-fleet score`; what is assumed is in [fleet.md](fleet.md). *Right*: class and place agree with a fault, within its time. \
         *Linked*: the controller says that it follows from a verdict that is right. *Unlinked*: a consequence of a fault, not linked \
         to it; counts as false in *precision*, and is left out *of roots*. *Latency*: sample intervals from the fault's start.\n\n{}",
        score.scenarios,
        score.seed,
        score.simulated_hours,
        table(&heads, rows)
    );
    let all = &score.all;
    let keys = keys([
        ("diagnosis_precision", all.precision()),
        ("diagnosis_precision_of_roots", all.precision_of_roots()),
        ("diagnosis_recall", all.recall()),
        ("diagnosis_scenarios", Some(score.scenarios as f64)),
        ("latency_intervals_p50", all.latency_p50),
        ("latency_intervals_p99", all.latency_p99),
    ]);
    Ok((text, keys))
}

fn healthy(raw: &Value) -> Result<(String, Keys), String> {
    let figures: Figures = read(raw)?;
    let mut text = format!(
        "{} fleets of {} nodes each, sampled every {} s, for {} simulated days in all, with jobs that come and go and all of the noise \
         of [fleet.md](fleet.md), but no fault (`weir-fleet healthy`): {} verdicts, all of them false; {} a day. {:.1} million frames \
         and {:.2} thousand million values in {:.0} s of CPU, simulator included: a day of such a fleet takes {:.0} s of one core.\n",
        figures.fleets,
        figures.nodes,
        plain(figures.interval_s),
        plain(figures.days),
        figures.false_verdicts,
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

fn localisation(raw: &Value) -> Result<(String, Keys), String> {
    let score = |suffix: &str| -> Result<Vec<String>, String> {
        let cell = |what: &str| {
            number(raw, &format!("localisation_{what}{suffix}")).map(|v| format!("{v:.3}"))
        };
        Ok(vec![cell("precision")?, cell("recall")?, cell("f1")?])
    };
    let mut rows = Vec::new();
    for (name, suffix) in [
        ("joint likelihood", ""),
        ("007's votes, stopping at 1 % as published", "_007"),
        (
            "007's votes, with the share that suits these cases best",
            "_007_best_share",
        ),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend(score(suffix)?);
        rows.push(row);
    }
    let text = format!(
        "{:.0} labelled cases: leaf-spine and three-tier fabrics, known and unknown paths, one fault and two at once \
         (`cargo run --release -p weir-controller-core --example localisation`).\n\n{}",
        number(raw, "localisation_cases")?,
        table(&["method", "precision", "recall", "F1"], rows)
    );
    Ok((text, as_they_are(raw)))
}

fn tuning(raw: &Value) -> Result<(String, Keys), String> {
    let results: TuningResults = serde_json::from_value(raw.clone()).map_err(|e| e.to_string())?;
    let text = format!(
        "`weir-sim` on the packet simulator. {}",
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
         thread with all detectors (`weir-fleet cost`):\n\n",
        cost.nodes, cost.directed_links, cost.host_columns
    );
    let rows = [
        ("values in a second", cost.samples_per_s as f64),
        ("CPU seconds for a second of the fleet", cost.cpu_s_per_s),
        ("of them in the core's timer", cost.tick_cpu_s_per_s),
        ("nanoseconds a value", cost.ns_per_sample),
        ("bytes a value on the wire", cost.wire_bytes_per_sample),
        (
            "bytes held for a node (counted by the allocator)",
            cost.bytes_per_node as f64,
        ),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), plain(value)]);
    write!(text, "{}", table(&["figure", "value"], rows)).map_err(|e| e.to_string())?;
    let keys = keys([
        ("core_ns_per_sample", Some(cost.ns_per_sample)),
        (
            "fleet_10000_node_second_cpu_s",
            (cost.nodes > 9_000).then_some(cost.cpu_s_per_s),
        ),
        ("core_bytes_per_node", Some(cost.bytes_per_node as f64)),
    ]);
    Ok((text, keys))
}
