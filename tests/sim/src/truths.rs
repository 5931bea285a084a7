//! What is true of each trace of the independent simulator, as the one who made it wrote it down, beside what the
//! controller's core finds in its counters.

use crate::diagnose::{Found, in_trace};
use crate::scenario::Scenario;
use crate::traces::{Comparison, MODELS, Trace, TraceError};
use serde::{Deserialize, Serialize};
use std::path::Path;
use weir_controller_core::verdict::Class;

/// What must be found in a trace, and what may stand beside it.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    /// Name of the trace.
    pub trace: &'static str,
    /// Class, directed link, and the interval from which on it is there. `None`: nothing is to be found.
    pub fault: Option<(Class, &'static str, u64)>,
    /// Also true of this trace, but not what it was made for.
    pub beside: Option<Class>,
}

const fn truth(trace: &'static str, fault: Option<(Class, &'static str, u64)>) -> Truth {
    Truth {
        trace,
        fault,
        beside: None,
    }
}

/// In the order of [`MODELS`]. The paths of both interleaved rings with a fault collide, too.
pub const TRUTHS: [Truth; 7] = [
    truth("ring-clean-16h", None),
    truth("incast-8to1-16h", Some((Class::Incast, "leaf0:p1", 1))),
    truth("a2a-16h", None),
    truth(
        "ring-collision-16h",
        Some((Class::EcmpCollision, "leaf1:p7", 1)),
    ),
    truth("victim-16h", Some((Class::Incast, "leaf0:p4", 1))),
    Truth {
        trace: "ring-linkrate-16h",
        // Its cable is slow both ways; this is its other end.
        fault: Some((Class::DegradedLink, "spine0:p1", 6)),
        beside: Some(Class::EcmpCollision),
    },
    Truth {
        trace: "ring-linkerr-16h",
        fault: Some((Class::SilentLoss, "spine1:p2", 6)),
        beside: Some(Class::EcmpCollision),
    },
];

impl Truth {
    /// True when the core said this and nothing else; consequences and what is true beside it are left out.
    #[must_use]
    pub fn agrees(&self, found: &[Found]) -> bool {
        let mut own = found
            .iter()
            .filter(|f| !f.consequence && Some(f.class) != self.beside);
        match (self.fault, own.next(), own.next()) {
            (None, None, _) => true,
            (Some((class, link, from)), Some(one), None) => {
                // Of links that the same flows cross, none can be told from the other by them.
                let named = one.entity == link || one.links.iter().any(|l| l == link);
                one.class == class && named && one.interval >= from
            }
            _ => false,
        }
    }
}

/// A trace's truth and what was found, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Name of the trace.
    pub trace: String,
    /// What is to be found.
    pub truth: String,
    /// What the core said, in the order in which it opened its incidents.
    pub found: Vec<String>,
    /// Whether that is the truth and no more.
    pub agrees: bool,
}

/// Feeds each trace to the core.
///
/// # Errors
/// A trace that cannot be read.
///
/// # Panics
/// If a model that comes with this crate is not a scenario; a test reads them all.
pub fn diagnose(dir: &Path) -> Result<Vec<Diagnosis>, TraceError> {
    let mut all = Vec::with_capacity(TRUTHS.len());
    for (truth, (name, model, _)) in TRUTHS.iter().zip(MODELS) {
        let trace = Trace::read(&dir.join(format!("{name}.txt.gz")))?;
        let model = Scenario::parse(model).expect("models are scenarios");
        let found = in_trace(&model, &trace).expect("models are scenarios");
        all.push(Diagnosis {
            trace: name.to_owned(),
            truth: truth
                .fault
                .map_or("nothing".to_owned(), |(class, link, from)| {
                    format!("{} at {link} from interval {from} on", class.name())
                }),
            agrees: truth.agrees(&found),
            found: found.iter().map(|f| words(truth, f)).collect(),
        });
    }
    Ok(all)
}

/// All that was compared with the traces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Agreement {
    /// Ours were run with each.
    pub seeds: Vec<u64>,
    /// Iteration times and hot links, in the order of [`MODELS`].
    pub comparisons: Vec<Comparison>,
    /// What the core found, in the same order.
    pub diagnoses: Vec<Diagnosis>,
}

/// Heads and rows.
pub type Rows = (Vec<&'static str>, Vec<Vec<String>>);

impl Agreement {
    /// What does not agree, in words: a time beyond its bound, other links hot, a verdict missing or too many. Links are
    /// compared where times are.
    #[must_use]
    pub fn beyond(&self) -> Vec<String> {
        let bound = self.comparisons.iter().filter(|c| c.allowed_pct.is_some());
        let compared = bound.filter_map(|c| match (c.holds(), c.same_hot()) {
            (true, true) => None,
            (true, false) => Some(format!("{}: other links are hot", c.trace)),
            (false, _) => Some(format!("{}: times {:+.1} % off", c.trace, c.off_pct)),
        });
        let wrong = self.diagnoses.iter().filter(|d| !d.agrees);
        let wrong = wrong.map(|d| format!("{}: found {:?}", d.trace, d.found));
        compared.chain(wrong).collect()
    }

    /// Iteration times, hot links, verdicts.
    #[must_use]
    pub fn tables(&self) -> [Rows; 3] {
        let us = |all: &[f64]| -> String {
            let all: Vec<String> = all.iter().map(|x| format!("{x:.0}")).collect();
            all.join(" ")
        };
        let times = self.comparisons.iter().map(|c| {
            vec![
                c.trace.clone(),
                format!("{:.1}", c.theirs_mean_us),
                format!("{:.1}", c.ours_mean_us),
                format!("{:.0}..{:.0}", c.ours_range_us.0, c.ours_range_us.1),
                format!("{:+.1}", c.off_pct),
                c.allowed_pct.map_or("-".to_owned(), |a| format!("{a:.0}")),
                us(&c.theirs_us),
                us(&c.ours_us),
                format!("{}, {}", c.theirs_sums.0, c.ours_sums.0),
                format!("{:.0}, {:.0}", c.theirs_sums.2, c.ours_sums.2),
            ]
        });
        let kb = |ports: &[(String, u64)]| -> String {
            let all = ports.iter().take(3);
            let all: Vec<String> = all
                .map(|(port, bytes)| format!("{port} {}", bytes / 1000))
                .collect();
            all.join(", ")
        };
        let hot = self.comparisons.iter().map(|c| {
            vec![
                c.trace.clone(),
                kb(&c.theirs_hot),
                kb(&c.ours_hot),
                format!("{:.2}", c.hot_overlap()),
                if c.same_hot() { "yes" } else { "no" }.to_owned(),
            ]
        });
        let found = self.diagnoses.iter().map(|d| {
            vec![
                d.trace.clone(),
                d.truth.clone(),
                if d.found.is_empty() {
                    "nothing".to_owned()
                } else {
                    d.found.join("; ")
                },
                if d.agrees { "yes" } else { "no" }.to_owned(),
            ]
        });
        [
            (
                vec![
                    "trace",
                    "theirs, mean us",
                    "ours, mean us",
                    "by seed",
                    "off %",
                    "allowed %",
                    "theirs, each us",
                    "ours, each us (first seed)",
                    "marks, theirs and ours",
                    "us paused, theirs and ours",
                ],
                times.collect(),
            ),
            (
                vec![
                    "trace",
                    "their deepest queues, KB",
                    "ours (first seed), KB",
                    "overlap of all hot",
                    "agree",
                ],
                hot.collect(),
            ),
            (vec!["trace", "truth", "found", "agree"], found.collect()),
        ]
    }
}

fn words(truth: &Truth, found: &Found) -> String {
    let mut text = format!(
        "{} at {} in interval {}",
        found.class.name(),
        found.entity,
        found.interval
    );
    if found.consequence {
        text += " (a consequence)";
    } else if Some(found.class) == truth.beside {
        text += " (true as well)";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: Class, entity: &str, interval: u64, consequence: bool) -> Found {
        Found {
            class,
            entity: entity.to_owned(),
            links: Vec::new(),
            interval,
            consequence,
        }
    }

    #[test]
    fn a_truth_agrees_with_itself_alone() {
        let truth = TRUTHS[5];
        let (class, link, from) = truth.fault.unwrap();
        let right = found(class, link, from, false);
        let beside = found(truth.beside.unwrap(), "leaf1:p7", 1, false);
        let follows = found(Class::Straggler, "job0", 9, true);
        assert!(truth.agrees(std::slice::from_ref(&right)));
        assert!(truth.agrees(&[beside.clone(), right.clone(), follows]));
        for wrong in [
            vec![],
            vec![beside],
            vec![right.clone(), right.clone()],
            vec![found(class, link, from - 1, false)],
            vec![found(class, "leaf0:p6", from, false)],
            vec![found(Class::LinkDown, link, from, false)],
            vec![right, found(Class::Straggler, "job0", 9, false)],
        ] {
            assert!(!truth.agrees(&wrong), "{wrong:?}");
        }
        assert!(TRUTHS[0].agrees(&[]));
        assert!(!TRUTHS[0].agrees(&[found(Class::Incast, "leaf0:p1", 3, false)]));
    }

    #[test]
    fn each_model_has_its_truth() {
        assert!(TRUTHS.iter().zip(MODELS).all(|(t, m)| t.trace == m.0));
    }
}
