//! Verdicts against the truth.
//!
//! A verdict matches a fault if both are of one class, it names one of the fault's places, and it was opened between the
//! fault's start and a grace after its end. What matches nothing is false, but what names a place or a job that an active
//! fault touches is a *consequence*. If the controller links it to the incident of that fault it is neither right nor
//! false; otherwise it counts as false, and the figure without those is told beside it.

use crate::fault::Fault;
use crate::fleet::{Fleet, Found, Refused};
use crate::scenario::Scenario;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use weir_controller_core::verdict::{Class, Subject};

/// Agents sample at moments of their own: what began in a step of the world may be told at its beginning.
const EARLY_S: f64 = 1.0;
/// A verdict may come so many intervals after the end of its fault: two, and the frames' way.
const GRACE: f64 = 4.0;
/// What a fault leaves behind is counted as its consequence for so many intervals.
const AFTERMATH: f64 = 15.0;

/// What a verdict turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Of the fault with this number: the first that this controller, which may have been restarted, tells of it.
    True(usize),
    /// Another incident of the same controller for a fault that was found.
    Repeated(usize),
    /// Of the fault with this number, and the controller says that it follows from the incident of that fault.
    Linked(usize),
    /// Of the fault with this number, but not linked to it.
    Consequence(usize),
    False,
}

/// One scenario's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub number: u64,
    /// Class of each fault, and after how many intervals it was found.
    pub faults: Vec<(String, Option<f64>)>,
    /// Numbers of faults of which nobody at the site tells enough.
    pub hidden: BTreeSet<usize>,
    /// Class of each verdict, and what it was.
    pub verdicts: Vec<(String, Kind)>,
    pub seconds: f64,
    pub refused: Vec<Refused>,
}

impl Outcome {
    /// Whether every fault was found, every verdict is right and every stream was taken.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let right = |k: &Kind| matches!(k, Kind::True(_) | Kind::Linked(_));
        self.refused.is_empty()
            && self.missed().next().is_none()
            && self.verdicts.iter().all(|(_, k)| right(k))
    }

    /// Classes of faults that should have been found.
    fn missed(&self) -> impl Iterator<Item = &str> {
        let missed = |(n, (_, found)): &(usize, &(String, Option<f64>))| {
            found.is_none() && !self.hidden.contains(n)
        };
        let all = self.faults.iter().enumerate().filter(missed);
        all.map(|(_, (class, _))| class.as_str())
    }

    /// What was missed, what is not right and which streams were refused, in a line.
    #[must_use]
    pub fn line(&self) -> String {
        let missed = self.missed().map(|c| format!("missed {c}"));
        let wrong = self.verdicts.iter().filter_map(|(class, kind)| match kind {
            Kind::True(_) | Kind::Linked(_) => None,
            Kind::Repeated(_) => Some(format!("{class} again")),
            Kind::Consequence(n) => {
                let of = self.faults.get(*n).map_or("", |(c, _)| c.as_str());
                Some(format!("{class} as a consequence of {of}"))
            }
            Kind::False => Some(format!("false {class}")),
        });
        let refused = self.refused.iter().map(|r| {
            let Refused { at_s, node, reason } = r;
            format!("{node} refused at {at_s:.3} s ({reason})")
        });
        let all: Vec<String> = missed.chain(wrong).chain(refused).collect();
        format!("scenario {}: {}", self.number, all.join(", "))
    }
}

/// Runs a scenario to its end; `watch` is called after every interval.
pub fn run(scenario: Scenario, mut watch: impl FnMut(&Fleet)) -> (Outcome, Fleet) {
    let Scenario {
        number,
        world,
        shape,
        noise,
        length_s,
        ..
    } = scenario;
    let mut fleet = Fleet::new(world, &shape, noise);
    while fleet.world.now_s < length_s {
        fleet.step();
        watch(&fleet);
    }
    let (faults, verdicts) = judge(&fleet.world.faults, &fleet.found, shape.interval_s);
    let intervals =
        |found: &Option<f64>, f: &Fault| found.map(|at| (at - f.start_s) / shape.interval_s);
    let outcome = Outcome {
        number,
        faults: faults
            .iter()
            .zip(&fleet.world.faults)
            .map(|(found, f)| (f.class.name().to_owned(), intervals(found, f)))
            .collect(),
        hidden: (0..faults.len())
            .filter(|n| !fleet.world.site.shows(fleet.world.faults[*n].class))
            .collect(),
        verdicts: fleet
            .found
            .iter()
            .zip(verdicts)
            .map(|(f, k)| (f.class.name().to_owned(), k))
            .collect(),
        seconds: length_s,
        refused: fleet.refused.clone(),
    };
    (outcome, fleet)
}

/// When each fault was found, and what each verdict is, where agents sample every `interval_s`.
#[must_use]
pub fn judge(faults: &[Fault], found: &[Found], interval_s: f64) -> (Vec<Option<f64>>, Vec<Kind>) {
    let mut seen: Vec<Option<f64>> = vec![None; faults.len()];
    let mut told: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut kinds = Vec::with_capacity(found.len());
    for verdict in found {
        let matched = faults.iter().enumerate().find_map(|(n, fault)| {
            let span = fault.start_s - EARLY_S..=fault.end_s + GRACE * interval_s.max(1.0);
            let names = |(at, e): &(f64, Subject)| {
                (span.contains(at) && fault.entities.contains(e)).then_some(*at)
            };
            let ours = fault.class == verdict.class && span.contains(&verdict.opened_s);
            ours.then(|| verdict.entities.iter().find_map(names))
                .flatten()
                .map(|at| (n, at))
        });
        kinds.push(match matched {
            Some((n, at)) => {
                // A controller that was restarted knows nothing of what it told before.
                let first = told.insert((n, verdict.life));
                seen[n] = Some(seen[n].map_or(at, |s| s.min(at)));
                if first {
                    Kind::True(n)
                } else {
                    Kind::Repeated(n)
                }
            }
            None => match faults.iter().position(|f| touches(f, verdict, interval_s)) {
                Some(n) => Kind::Consequence(n),
                None => Kind::False,
            },
        });
    }
    let place = |life: u32, id: &str| found.iter().position(|f| f.life == life && f.id == id);
    for n in 0..found.len() {
        // What touches no fault follows from none, whatever the controller says.
        if !matches!(kinds[n], Kind::Consequence(_)) {
            continue;
        }
        let root = found[n]
            .root
            .as_ref()
            .and_then(|id| place(found[n].life, id));
        if let Some(Kind::True(fault) | Kind::Repeated(fault)) = root.map(|r| kinds[r]) {
            kinds[n] = Kind::Linked(fault);
        }
    }
    (seen, kinds)
}

fn touches(fault: &Fault, found: &Found, interval_s: f64) -> bool {
    let near = |e: &Subject| fault.touched.contains(e) || fault.entities.contains(e);
    let links = found.verdict.links.iter().map(|l| Subject::Link(l.clone()));
    let job = found
        .verdict
        .job
        .as_ref()
        .is_some_and(|j| fault.jobs.contains(j.as_str()));
    let aftermath_s = AFTERMATH * interval_s.max(1.0);
    (fault.start_s - EARLY_S..=fault.end_s + aftermath_s).contains(&found.opened_s)
        && (job
            || found.entities.iter().any(|(_, e)| near(e))
            || links.into_iter().any(|l| near(&l)))
}

/// Counts of one class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub faults: u64,
    pub found: u64,
    pub verdicts_true: u64,
    pub repeated: u64,
    pub linked: u64,
    pub consequences: u64,
    pub verdicts_false: u64,
    /// Sample intervals from a fault's start to its verdict.
    pub latency_p50: Option<f64>,
    pub latency_p99: Option<f64>,
    #[serde(skip)]
    latencies: Vec<f64>,
}

impl Tally {
    /// Share of verdicts that are right; consequences that are not linked to their root count as wrong, and so does a
    /// second incident for a fault.
    #[must_use]
    pub fn precision(&self) -> Option<f64> {
        let wrong = self.verdicts_false + self.consequences + self.repeated;
        ratio(self.verdicts_true, self.verdicts_true + wrong)
    }

    /// As [`Tally::precision`], consequences and second incidents left out.
    #[must_use]
    pub fn precision_of_roots(&self) -> Option<f64> {
        ratio(self.verdicts_true, self.verdicts_true + self.verdicts_false)
    }

    #[must_use]
    pub fn recall(&self) -> Option<f64> {
        ratio(self.found, self.faults)
    }

    fn close(&mut self) {
        self.latencies.sort_by(f64::total_cmp);
        let at = |p: f64| {
            let last = self.latencies.len().checked_sub(1)?;
            let n = weir_sim::num::position(weir_sim::num::whole((last as f64 * p).round()));
            self.latencies.get(n).map(|l| (l * 100.0).round() / 100.0)
        };
        (self.latency_p50, self.latency_p99) = (at(0.5), at(0.99));
    }
}

fn ratio(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| (part as f64 / all as f64 * 1e4).round() / 1e4)
}

/// The result of many scenarios.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub seed: u64,
    pub scenarios: u64,
    pub simulated_hours: f64,
    /// Streams that the controller refused.
    pub refused: u64,
    /// Faults of which nobody at the site tells enough to name them; they count for nothing else.
    #[serde(default)]
    pub hidden: u64,
    pub classes: BTreeMap<String, Tally>,
    pub all: Tally,
}

impl Score {
    /// Adds up outcomes.
    #[must_use]
    pub fn of(seed: u64, outcomes: &[Outcome]) -> Score {
        let mut score = Score {
            seed,
            scenarios: outcomes.len() as u64,
            ..Score::default()
        };
        for class in Class::ALL {
            score
                .classes
                .insert(class.name().to_owned(), Tally::default());
        }
        for outcome in outcomes {
            score.simulated_hours += outcome.seconds / 3600.0;
            score.refused += outcome.refused.len() as u64;
            for (n, (class, latency)) in outcome.faults.iter().enumerate() {
                if latency.is_none() && outcome.hidden.contains(&n) {
                    score.hidden += 1;
                    continue;
                }
                for tally in [
                    score.classes.entry(class.clone()).or_default(),
                    &mut score.all,
                ] {
                    tally.faults += 1;
                    tally.found += u64::from(latency.is_some());
                    tally.latencies.extend(latency);
                }
            }
            for (class, kind) in &outcome.verdicts {
                for tally in [
                    score.classes.entry(class.clone()).or_default(),
                    &mut score.all,
                ] {
                    match kind {
                        Kind::True(_) => tally.verdicts_true += 1,
                        Kind::Repeated(_) => tally.repeated += 1,
                        Kind::Linked(_) => tally.linked += 1,
                        Kind::Consequence(_) => tally.consequences += 1,
                        Kind::False => tally.verdicts_false += 1,
                    }
                }
            }
        }
        score.simulated_hours = (score.simulated_hours * 100.0).round() / 100.0;
        score.classes.values_mut().for_each(Tally::close);
        score.all.close();
        score
    }

    /// Rows of a table: heads first.
    #[must_use]
    pub fn rows(&self) -> Vec<[String; 12]> {
        let head = [
            "class",
            "faults",
            "found",
            "recall",
            "right",
            "repeated",
            "linked",
            "unlinked",
            "false",
            "precision",
            "of roots",
            "latency p50/p99",
        ];
        let number = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.3}"));
        let row = |name: &str, t: &Tally| {
            [
                name.to_owned(),
                t.faults.to_string(),
                t.found.to_string(),
                number(t.recall()),
                t.verdicts_true.to_string(),
                t.repeated.to_string(),
                t.linked.to_string(),
                t.consequences.to_string(),
                t.verdicts_false.to_string(),
                number(t.precision()),
                number(t.precision_of_roots()),
                t.latency_p50
                    .zip(t.latency_p99)
                    .map_or("-".to_owned(), |(a, b)| format!("{a:.1} / {b:.1}")),
            ]
        };
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.classes.iter().map(|(name, tally)| row(name, tally)));
        rows.push(row("all", &self.all));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_controller_core::ids::{NodeId, PortId};
    use weir_controller_core::verdict::{Severity, Verdict};

    fn link(text: &str) -> Subject {
        Subject::Link(PortId::parse(text).unwrap())
    }

    /// A link that is down for a minute, and what it touches.
    fn fault() -> Fault {
        let mut fault = Fault::new(Class::LinkDown, (30.0, 90.0), Vec::new(), String::new());
        fault.entities = [link("l1:up1")].into();
        fault.touched = [Subject::Node(NodeId::new("h1"))].into();
        fault
    }

    fn found(id: &str, class: Class, place: Subject, opened_s: f64, root: Option<&str>) -> Found {
        Found {
            id: id.to_owned(),
            life: 0,
            opened_s,
            resolved_s: None,
            class,
            entities: vec![(opened_s, place.clone())],
            verdict: Verdict::new(class, Severity::Warning, place, 1.0),
            root: root.map(str::to_owned),
        }
    }

    fn kinds(found: &[Found]) -> Vec<Kind> {
        judge(&[fault()], found, 1.0).1
    }

    #[test]
    fn what_touches_nothing_is_false_whatever_it_is_linked_to() {
        let outlier = |place: &str, root| {
            let place = Subject::Node(NodeId::new(place));
            found("I2", Class::NodeOutlier, place, 50.0, root)
        };
        let down = || found("I1", Class::LinkDown, link("l1:up1"), 35.0, None);
        let with = |other| kinds(&[down(), other]);
        assert_eq!(with(outlier("h1", Some("I1")))[1], Kind::Linked(0));
        assert_eq!(with(outlier("h1", None))[1], Kind::Consequence(0));
        assert_eq!(with(outlier("h9", Some("I1")))[1], Kind::False);
    }

    #[test]
    fn a_second_incident_counts_as_wrong_unless_the_controller_was_restarted() {
        let down = |id, at| found(id, Class::LinkDown, link("l1:up1"), at, None);
        let twice = [down("I1", 35.0), down("I2", 60.0)];
        assert_eq!(kinds(&twice), [Kind::True(0), Kind::Repeated(0)]);
        let mut restarted = twice;
        restarted[1].life = 1;
        assert_eq!(kinds(&restarted), [Kind::True(0), Kind::True(0)]);
        let tally = |kind| {
            let outcome = Outcome {
                number: 0,
                faults: vec![("link_down".to_owned(), Some(5.0))],
                hidden: BTreeSet::new(),
                verdicts: vec![
                    ("link_down".to_owned(), Kind::True(0)),
                    ("link_down".to_owned(), kind),
                ],
                seconds: 100.0,
                refused: Vec::new(),
            };
            Score::of(1, &[outcome]).all.precision()
        };
        assert_eq!(tally(Kind::True(0)), Some(1.0));
        assert_eq!(tally(Kind::Repeated(0)), Some(0.5));
        assert_eq!(tally(Kind::Linked(0)), Some(1.0));
    }

    #[test]
    fn a_verdict_out_of_its_time_or_place_is_no_find() {
        let at = |place: &str, at| {
            let found = found("I1", Class::LinkDown, link(place), at, None);
            judge(&[fault()], &[found], 1.0).0[0]
        };
        assert_eq!(at("l1:up1", 40.0), Some(40.0));
        assert_eq!(at("l1:up2", 40.0), None);
        assert_eq!(at("l1:up1", 20.0), None);
        assert_eq!(at("l1:up1", 99.0), None);
    }
}
