//! Feeds a recording to a fresh brain and compares what it does with what was done.

use super::format::{Kind, Record};
use super::reader::{self, Cut, Reader, Segment};
use super::report::{Changes, Difference, Report, Restart, Told, WhatIf};
use super::when::{When, utc};
use super::{ReplayError, event, text, writer};
use crate::brain::{Action, Brain, Event};
use crate::config::RawConfig;
use crate::topology_file;
use std::collections::BTreeMap;
use std::time::Duration;
use weir_controller_core::topology::Plan;
use weir_controller_core::{Command, Config};

/// After a start in the middle of a run nothing is compared for this long: links at rest are measured anew, which
/// remember up to 120 samples, one a second. All else is in the restart point.
pub const WARM_UP: Duration = Duration::from_secs(120);
/// Differences shown; the rest is counted.
const DIFFERENCES_MAX: usize = 100;
/// Lines of the story; the rest is counted.
const STORY_MAX: usize = 10_000;

/// What is asked of a recording.
#[derive(Debug, Default)]
pub struct Ask {
    /// What came before is replayed as far as it is needed, not told and not compared.
    pub from: Option<When>,
    pub to: Option<When>,
    /// What if these had stood in the place of those that were recorded?
    pub config: Option<Config>,
    pub plan: Option<Plan>,
}

/// Replays the newest run of a directory, or one segment. `progress` is told the bytes read of all.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(
    path: &std::path::Path,
    ask: &Ask,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, ReplayError> {
    let run = reader::open(path)?;
    let (Some(oldest), Some(newest)) = (run.segments.first(), run.segments.last()) else {
        return Err(ReplayError::NotARecording {
            path: path.to_owned(),
            what: "it has no segment".into(),
        });
    };
    let started = Duration::from_micros(oldest.header.started_us);
    let from = ask.from.map_or(Duration::ZERO, |w| w.since_start(started));
    let to = ask.to.map_or(Duration::MAX, |w| w.since_start(started));
    let outside = |asked: Option<When>, last: Duration| ReplayError::Outside {
        asked: asked.map_or_else(String::new, |w| w.to_string()),
        first: oldest.at.as_secs_f64(),
        last: last.as_secs_f64(),
    };
    if to < oldest.at {
        return Err(outside(ask.to, newest.at));
    }
    // The newest segment that is warm in time.
    let first = run.segments.iter().rposition(|s| warm_at(s) <= from);
    let segments = &run.segments[first.unwrap_or(0)..];
    let begin = &segments[0];
    let mut replayer = Replayer {
        ask,
        from,
        to,
        life: None,
        pending: None,
        seen: [Seen::default(), Seen::default()],
        report: Report {
            started: utc(started),
            program: begin.header.program.clone(),
            same_defaults: true,
            segments: 0,
            other_runs: run.other_runs,
            first_s: begin.at.as_secs_f64(),
            last_s: begin.at.as_secs_f64(),
            records: 0,
            compared: 0,
            differences: Vec::new(),
            differences_total: 0,
            memories_compared: 0,
            memories_different_s: Vec::new(),
            restarts: Vec::new(),
            cuts: run.cuts.clone(),
            story: Vec::new(),
            story_left_out: 0,
            what_if: None,
        },
    };
    let total = segments.iter().map(|s| s.bytes).sum();
    let mut done = 0;
    for segment in segments.iter().take_while(|s| s.at <= to) {
        replayer.segment(segment, |bytes| progress(done + bytes, total))?;
        done += segment.bytes;
        progress(done, total);
    }
    let report = replayer.finish();
    if report.last_s < from.as_secs_f64() {
        return Err(outside(ask.from, Duration::from_secs_f64(report.last_s)));
    }
    Ok(report)
}

/// From when on a replay that starts with the segment is compared.
fn warm_at(segment: &Segment) -> Duration {
    if segment.header.segment == 0 {
        Duration::ZERO
    } else {
        segment.at + WARM_UP
    }
}

/// A brain from its start to the end, or to the next hole.
struct Life {
    brain: Brain,
    /// With what was asked for instead.
    other: Option<Brain>,
    warm_at: Duration,
    /// Number of the segment that goes on where the last ended.
    next: u64,
}

/// An event whose actions are still to come.
struct Pending {
    at: Duration,
    recorded: Vec<String>,
    rebuilt: Vec<String>,
}

/// Verdicts and commands by their text, with the time of the first.
#[derive(Debug, Default)]
struct Seen {
    verdicts: BTreeMap<String, Duration>,
    commands: BTreeMap<String, Duration>,
}

struct Replayer<'a> {
    ask: &'a Ask,
    from: Duration,
    to: Duration,
    life: Option<Life>,
    pending: Option<Pending>,
    /// By the recorded configuration, and by the one asked for.
    seen: [Seen; 2],
    report: Report,
}

impl Replayer<'_> {
    fn segment(
        &mut self,
        segment: &Segment,
        mut progress: impl FnMut(u64),
    ) -> Result<(), ReplayError> {
        let io = |source| ReplayError::Io {
            path: segment.path.clone(),
            source,
        };
        self.report.segments += 1;
        let header = &segment.header;
        let goes_on = self
            .life
            .as_ref()
            .is_some_and(|life| life.next == header.segment && header.lost_before == 0);
        if !goes_on {
            self.begin_life(segment)?;
        }
        let mut reader = Reader::open(&segment.path).map_err(io)?;
        let read = reader.beginning().map(drop);
        let mut read = read.and_then(|()| self.restart_point(&mut reader, segment, goes_on));
        while let Ok(true) = read {
            read = self.step(&mut reader);
            if self.report.records.is_multiple_of(4096) {
                progress(reader.offset);
            }
        }
        match read {
            Ok(_) => {
                if let Some(life) = &mut self.life {
                    life.next = header.segment + 1;
                }
            }
            Err(cut) => {
                // Of the last event not all may be known that followed from it.
                self.pending = None;
                self.end_life();
                self.report.cuts.push(cut);
            }
        }
        Ok(())
    }

    fn begin_life(&mut self, segment: &Segment) -> Result<(), ReplayError> {
        self.settle();
        self.end_life();
        let header = &segment.header;
        if self.report.segments > 1 {
            let why = match header.lost_before {
                0 => "the segment before it is damaged or missing".to_owned(),
                lost => format!("{lost} records were lost before it"),
            };
            self.report.restarts.push(Restart {
                at_s: segment.at.as_secs_f64(),
                why,
            });
        }
        let (config, plan) = configuration(segment)?;
        self.report.same_defaults &= writer::digest(&config, &plan) == header.digest;
        let brain = |config, plan| Brain::new(config, plan, header.frozen, header.run);
        let asked = self.ask.config.is_some() || self.ask.plan.is_some();
        let other = asked.then(|| {
            let config = self.ask.config.clone().unwrap_or_else(|| config.clone());
            brain(
                config,
                self.ask.plan.clone().unwrap_or_else(|| plan.clone()),
            )
        });
        self.life = Some(Life {
            brain: brain(config, plan),
            other,
            warm_at: warm_at(segment),
            next: header.segment,
        });
        Ok(())
    }

    /// Takes what a segment begins with into a new life; passes it over in one that goes on.
    fn restart_point(
        &mut self,
        reader: &mut Reader,
        segment: &Segment,
        goes_on: bool,
    ) -> Result<bool, Cut> {
        loop {
            let Some(record) = reader.next_record()? else {
                return Err(reader.cut("it ends at its beginning".into(), true));
            };
            let Some(life) = self.life.as_mut().filter(|_| !goes_on) else {
                if record.kind == Kind::Memory {
                    self.compare_memory(&record);
                    return Ok(true);
                }
                continue;
            };
            if record.kind == Kind::Memory {
                // At the start of a run there is nothing to remember, so that any version can replay it.
                if segment.header.segment == 0 {
                    return Ok(true);
                }
                let mut brains = [Some(&mut life.brain), life.other.as_mut()]
                    .into_iter()
                    .flatten();
                if !brains.all(|brain| brain.remember(&record.payload)) {
                    let what = format!(
                        "its memory is not understood: version {} wrote it, this is {}",
                        segment.header.program,
                        env!("CARGO_PKG_VERSION")
                    );
                    return Err(reader.cut(what, false));
                }
                return Ok(true);
            }
            let at = record.at;
            if let Some(event) = event_of(record, reader)? {
                if let Some(other) = &mut life.other {
                    other.handle(event.clone(), at);
                }
                life.brain.handle(event, at);
            }
        }
    }

    /// Whether the brain holds what the recorded one held where a segment begins: what differs there and led to nothing
    /// yet will lead to another decision later.
    fn compare_memory(&mut self, recorded: &Record) {
        let Some(life) = &self.life else { return };
        if recorded.at >= life.warm_at {
            self.report.memories_compared += 1;
            if life.brain.memory() != recorded.payload {
                let at_s = recorded.at.as_secs_f64();
                self.report.memories_different_s.push(at_s);
            }
        }
    }

    /// Takes one record; false when there is no more that was asked for.
    fn step(&mut self, reader: &mut Reader) -> Result<bool, Cut> {
        let Some(record) = reader.next_record()? else {
            return Ok(false);
        };
        let at = record.at;
        if record.kind == Kind::Action {
            if let Some(pending) = &mut self.pending {
                let text = String::from_utf8_lossy(&record.payload).into_owned();
                pending.recorded.push(text);
            }
            self.report.records += 1;
            return Ok(true);
        }
        self.settle();
        if at > self.to {
            return Ok(false);
        }
        self.report.records += 1;
        self.report.last_s = at.as_secs_f64();
        if let Some(event) = event_of(record, reader)? {
            self.event(event, at);
        }
        Ok(true)
    }

    fn event(&mut self, event: Event, at: Duration) {
        let Some(life) = &mut self.life else { return };
        let shown = at >= self.from;
        if let Some(other) = &mut life.other {
            for action in other.handle(event.clone(), at) {
                if shown {
                    self.seen[1].action(&action, at);
                }
            }
        }
        let mut pending = Pending {
            at,
            recorded: Vec::new(),
            rebuilt: Vec::new(),
        };
        for action in life.brain.handle(event, at) {
            pending.rebuilt.push(text(&action));
            if !shown {
                continue;
            }
            self.seen[0].action(&action, at);
            if let Some(text) = told(&action) {
                if self.report.story.len() < STORY_MAX {
                    let at_s = at.as_secs_f64();
                    self.report.story.push(Told { at_s, text });
                } else {
                    self.report.story_left_out += 1;
                }
            }
        }
        self.pending = Some(pending);
    }

    /// Compares what followed from the last event, now that all of it is known.
    fn settle(&mut self) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let warm_at = self.life.as_ref().map_or(Duration::MAX, |l| l.warm_at);
        if pending.at < self.from.max(warm_at) {
            return;
        }
        let Pending {
            at,
            mut recorded,
            mut rebuilt,
        } = pending;
        self.report.compared += recorded.len().max(rebuilt.len()) as u64;
        if recorded == rebuilt {
            return;
        }
        self.report.differences_total += 1;
        if self.report.differences.len() < DIFFERENCES_MAX {
            let same = recorded.iter().zip(&rebuilt).take_while(|(a, b)| a == b);
            let same = same.count();
            self.report.differences.push(Difference {
                at_s: at.as_secs_f64(),
                recorded: recorded.split_off(same),
                rebuilt: rebuilt.split_off(same),
            });
        }
    }

    /// Notes the verdicts of a brain that goes no further.
    fn end_life(&mut self) {
        let Some(life) = self.life.take() else { return };
        for (brain, seen) in [Some(life.brain), life.other]
            .into_iter()
            .zip(&mut self.seen)
        {
            let incidents = brain.iter().flat_map(|b| b.core.incidents().iter());
            for incident in incidents.filter(|i| i.last_seen >= self.from) {
                let verdict = &incident.verdict;
                let job = verdict.job.as_ref();
                let job = job.map_or_else(String::new, |job| format!(" of job {job}"));
                let text = format!("{} on {}{job}", verdict.class.name(), verdict.entity);
                seen.verdicts.entry(text).or_insert(incident.opened_at);
            }
        }
    }

    fn finish(mut self) -> Report {
        self.settle();
        self.end_life();
        if self.ask.config.is_some() || self.ask.plan.is_some() {
            let [recorded, asked] = &self.seen;
            self.report.what_if = Some(WhatIf {
                verdicts: changes(&recorded.verdicts, &asked.verdicts),
                commands: changes(&recorded.commands, &asked.commands),
            });
        }
        self.report
    }
}

impl Seen {
    fn action(&mut self, action: &Action, at: Duration) {
        if let Action::Core(Command::Grant { pins, .. }) = action {
            for pin in pins {
                self.commands.entry(pin.to_string()).or_insert(at);
            }
        } else if let Action::Core(Command::End { node, reason, .. }) = action {
            let text = format!("end on {node}: {reason}");
            self.commands.entry(text).or_insert(at);
        }
    }
}

fn changes(a: &BTreeMap<String, Duration>, b: &BTreeMap<String, Duration>) -> Changes {
    let only = |a: &BTreeMap<String, Duration>, b: &BTreeMap<String, Duration>| {
        let only = a.iter().filter(|(text, _)| !b.contains_key(*text));
        let told = only.map(|(text, at)| Told {
            at_s: at.as_secs_f64(),
            text: text.clone(),
        });
        let mut told: Vec<Told> = told.collect();
        told.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        told
    };
    Changes {
        only_recorded: only(a, b),
        only_asked: only(b, a),
        both: a.keys().filter(|text| b.contains_key(*text)).count(),
    }
}

/// An action for people; `None` of what goes on all the time.
fn told(action: &Action) -> Option<String> {
    if let Action::Core(Command::Note { subject, text }) = action {
        return Some(format!("{subject}: {text}"));
    }
    let routine = matches!(
        action,
        Action::Core(Command::QueryPaths { .. } | Command::Renew { .. })
            | Action::Resync { .. }
            | Action::Judged { .. }
            | Action::Pinglist { .. }
    );
    (!routine).then(|| text(action))
}

fn event_of(record: Record, reader: &Reader) -> Result<Option<Event>, Cut> {
    event::event_of(record).map_err(|what| reader.cut(what, false))
}

/// The configuration and topology that a segment was recorded with.
fn configuration(segment: &Segment) -> Result<(Config, Plan), ReplayError> {
    let wrong = |what: String| ReplayError::Configuration {
        path: segment.path.clone(),
        what,
    };
    let raw: RawConfig = weir_common::config::parse(&segment.config_text, &segment.path)
        .map_err(|e| wrong(e.to_string()))?;
    let config = raw.check(&segment.path).map_err(|e| wrong(e.to_string()))?;
    let plan = if segment.topology_text.is_empty() {
        Plan::default()
    } else {
        topology_file::parse(&segment.topology_text, &segment.path)
            .map_err(|e| wrong(e.to_string()))?
    };
    Ok((config.core, plan))
}
