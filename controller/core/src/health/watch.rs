//! The values of one node against the rules: one small struct for each column and rule, in the order of
//! the columns. A quiet value costs a few compares.

use super::debounce::{Bucket, Budget, History};
use super::reference::{self, Group, Model, References};
use super::rules::{self, Condition, RULES, Rule};
use crate::config;
use crate::io::Column;
use crate::keep::{Keep, keep};
use crate::verdict::Class;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weir_signal::{Entity, Kind, Signal};

/// Watches of a node: 64 ports with ten each, or 16 GPUs with 18 NVLinks, several times over.
const WATCHES_MAX: usize = 16_384;

/// A column of the same device that a rule needs beside its own; its place among the columns.
type Beside = Option<u16>;

/// A rule with the operator's limits in it.
#[derive(Debug, Clone, Copy)]
pub struct Compiled {
    check: Check,
    of_kind: Kind,
    only_min: u64,
    n: u32,
    m: u32,
    /// Says nothing until the node's links have settled.
    cable: bool,
    /// Tells that a link came or went.
    moves: bool,
}

#[derive(Debug, Clone, Copy)]
enum Check {
    Counts(Budget),
    Falls(Budget),
    Below,
    Above(u64),
    Bits(u64),
}

/// The table with the operator's limits in it, in its order.
#[must_use]
pub fn compiled(config: &config::Health) -> Vec<Compiled> {
    let compile = |rule: &Rule| {
        let (check, of) = match rule.condition {
            Condition::Counts { budget, of } => (Check::Counts(budget(config)), of),
            Condition::Falls(budget) => (Check::Falls(budget(config)), None),
            Condition::Below { .. } => (Check::Below, None),
            Condition::Above(limit) => (Check::Above(limit(config)), None),
            Condition::Bits(bits) => (Check::Bits(bits), None),
        };
        Compiled {
            check,
            of_kind: of.map_or(Kind::Counter, Signal::kind),
            only_min: rule.only.map_or(0, |only| only.1),
            n: rule.n_of_m.0,
            m: rule.n_of_m.1,
            cable: rules::is_of_cable(rule.class),
            moves: rule.class == Class::LinkFlap,
        }
    };
    RULES.iter().map(compile).collect()
}

/// One column under one rule.
#[derive(Debug, Clone)]
struct Watch {
    column: u16,
    of: Beside,
    only: Beside,
    /// Place in [`RULES`].
    rule: u8,
    history: History,
    bucket: Bucket,
    /// Of a gauge that is compared: the highest that it was, or is planned to be.
    highest: u64,
    /// Of a gauge that is compared or may fall: what it was last, and counts for in its group.
    last: Last,
    group: Option<Group>,
}

/// A gauge's last value in eight bytes: no gauge shows the highest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last(u64);

impl Keep for Last {
    fn put(&self, out: &mut Vec<u8>) {
        self.get().put(out);
    }
    fn take(from: &mut &[u8]) -> Option<Last> {
        let last: Option<Option<u64>> = Keep::take(from);
        last.map(|last| last.map_or(Last::NONE, Last))
    }
}

impl Last {
    const NONE: Last = Last(u64::MAX);

    fn get(self) -> Option<u64> {
        (self != Last::NONE).then_some(self.0)
    }
}

/// One for each column and rule of ten thousand nodes.
const _: () = assert!(size_of::<Watch>() == 40);

/// A value that is bad for long enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Place in [`RULES`].
    pub rule: u8,
    /// Place among the node's columns.
    pub column: u16,
    /// A counter's rise a second, or a gauge.
    pub measured: f64,
    /// What is tolerated: a rate, a gauge's reference or limit.
    pub limit: f64,
    /// Bad samples out of the rule's window; of counters 1.
    pub bad: u32,
    /// The limit is what like devices show.
    pub of_like: bool,
}

keep!(
    struct Found { rule, column, measured, limit, bad, of_like }
    if |found: &Found| usize::from(found.rule) < RULES.len()
);

/// What is the same for all watches of a sample.
pub struct Sample<'a> {
    pub values: &'a [Option<u64>],
    pub elapsed: Option<Duration>,
    /// Whether gauges count: once a second, however often the agent samples.
    pub gauges: bool,
    /// Whether the node's links have come up, so that what they do is news.
    pub settled: bool,
}

/// What a watch holds that the next value does not tell.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    history: History,
    bucket: Bucket,
    highest: u64,
    last: Last,
}

keep!(struct Held { history, bucket, highest, last });

/// What a node's watches hold, and whether somebody took its ports down.
#[derive(Debug, Clone)]
pub struct Memory {
    /// By the watch's place; the others hold nothing.
    held: Vec<(u16, Held)>,
    taken_down: Vec<bool>,
}

keep!(struct Memory { held, taken_down });

const _: () = assert!(WATCHES_MAX <= 1 << 16);

/// The watches of a node.
#[derive(Debug, Clone, Default)]
pub struct Watches {
    watches: Vec<Watch>,
    columns: Arc<[Column]>,
    model: Option<Model>,
    /// Columns that tell whether somebody took a port down, and whether somebody did.
    taken_down: Vec<(u16, bool)>,
}

impl Watches {
    /// The watches of these columns; what was known of the same ones before goes on. `planned` is a
    /// port's rate by the topology, in bits per second.
    #[must_use]
    pub fn of(
        columns: Arc<[Column]>,
        model: Option<Model>,
        before: Watches,
        references: &mut References,
        planned: impl Fn(&str) -> Option<u64>,
    ) -> Watches {
        type Key<'a> = (Entity, &'a str, Option<u32>, Signal, u8);
        let mut known: BTreeMap<Key<'_>, &Watch> = BTreeMap::new();
        for watch in &before.watches {
            let c = &before.columns[usize::from(watch.column)];
            if let (Some(group), Some(model)) = (watch.group, before.model) {
                references.leave(model, c, group, watch.last.get());
            }
            known.insert((c.entity, &c.subject, c.index, c.signal, watch.rule), watch);
        }
        let place = |n: usize| u16::try_from(n).ok();
        let whole = columns
            .iter()
            .enumerate()
            .filter(|(_, c)| c.index.is_none());
        let places: BTreeMap<(Entity, &str, Signal), u16> = whole
            .filter_map(|(n, c)| Some(((c.entity, &*c.subject, c.signal), place(n)?)))
            .collect();
        let mut watches = Vec::new();
        for (n, column) in columns.iter().enumerate() {
            let rules = RULES.iter().enumerate();
            let rules = rules
                .filter(|(_, r)| r.signal == column.signal && r.entities.contains(&column.entity));
            for (number, rule) in rules {
                let (Some(n), Ok(number)) = (place(n), u8::try_from(number)) else {
                    continue;
                };
                let beside = |signal: Signal| {
                    places
                        .get(&(column.entity, &*column.subject, signal))
                        .copied()
                };
                let (of, peers) = match rule.condition {
                    Condition::Counts { of, .. } => (of.and_then(beside), false),
                    Condition::Below { peers } => (None, peers),
                    Condition::Falls(_) | Condition::Above(_) | Condition::Bits(_) => (None, false),
                };
                let only = rule.only.and_then(|only| beside(only.0));
                if watches.len() == WATCHES_MAX {
                    break;
                }
                let key = (
                    column.entity,
                    &*column.subject,
                    column.index,
                    column.signal,
                    number,
                );
                let old = known.get(&key);
                let group = model
                    .filter(|_| peers)
                    .and_then(|model| references.join(model, column));
                let rate = (rule.signal == Signal::RateBps && column.entity == Entity::Port)
                    .then(|| planned(&column.subject))
                    .flatten();
                watches.push(Watch {
                    column: n,
                    of,
                    only,
                    rule: number,
                    history: old.map_or(History::default(), |w| w.history),
                    bucket: old.map_or(Bucket::default(), |w| w.bucket),
                    highest: old.map_or(0, |w| w.highest).max(rate.unwrap_or(0)),
                    last: Last::NONE,
                    group,
                });
            }
        }
        let admin = columns.iter().enumerate();
        let admin = admin.filter(|(_, c)| c.signal == Signal::AdminUp);
        let taken_down = admin.filter_map(|(n, _)| Some((place(n)?, false)));
        let taken_down = taken_down.collect();
        Watches {
            watches,
            columns,
            model,
            taken_down,
        }
    }

    #[must_use]
    pub fn memory(&self) -> Memory {
        let held = (0u16..).zip(&self.watches);
        let held = held.map(|(place, watch)| (place, watch.held()));
        Memory {
            held: held.filter(|(_, held)| *held != Held::NOTHING).collect(),
            taken_down: self.taken_down.iter().map(|(_, down)| *down).collect(),
        }
    }

    /// Goes on from what watches of the same columns held.
    pub fn remember(&mut self, memory: Memory, references: &mut References) {
        let mut kept = memory.held.into_iter().peekable();
        for (place, watch) in (0u16..).zip(&mut self.watches) {
            let held = kept.next_if(|(n, _)| *n == place);
            let Held {
                history,
                bucket,
                highest,
                last,
            } = held.map_or(Held::NOTHING, |(_, held)| held);
            if let Some(group) = watch.group {
                references.changed(group, watch.last.get(), last.get());
            }
            (watch.history, watch.bucket) = (history, bucket);
            (watch.highest, watch.last) = (highest, last);
        }
        for ((_, down), was) in self.taken_down.iter_mut().zip(memory.taken_down) {
            *down = was;
        }
    }

    /// Whether somebody took the port down.
    #[must_use]
    pub fn is_taken_down(&self, port: &str) -> bool {
        let mut down = self.taken_down.iter().filter(|(_, down)| *down);
        down.any(|(n, _)| *self.columns[usize::from(*n)].subject == *port)
    }

    #[must_use]
    pub fn columns(&self) -> &Arc<[Column]> {
        &self.columns
    }

    /// Takes what the node showed out of the references.
    pub fn forget(self, references: &mut References) {
        for watch in &self.watches {
            let column = &self.columns[usize::from(watch.column)];
            if let (Some(group), Some(model)) = (watch.group, self.model) {
                references.leave(model, column, group, watch.last.get());
            }
        }
    }

    /// Takes a sample; calls `found` for each value that is bad, and has been for long enough.
    /// Returns whether a link came or went.
    pub fn sampled(
        &mut self,
        sample: &Sample<'_>,
        rules: &[Compiled],
        references: &mut References,
        mut found: impl FnMut(Found),
    ) -> bool {
        let Sample {
            values, elapsed, ..
        } = *sample;
        let at = |beside: u16| values.get(usize::from(beside)).copied().flatten();
        let mut moved = false;
        for (column, down) in &mut self.taken_down {
            if let Some(up) = at(*column) {
                *down = up == 0;
            }
        }
        for watch in &mut self.watches {
            let Some(value) = at(watch.column) else {
                continue;
            };
            let rule = &rules[usize::from(watch.rule)];
            let idle = match rule.check {
                Check::Counts(_) => value == 0 && watch.bucket == Bucket::default(),
                Check::Bits(bits) => value & bits == 0 && watch.history.is_clean(),
                Check::Below | Check::Falls(_) | Check::Above(_) => false,
            };
            if idle {
                continue;
            }
            let silent = rule.cable && !sample.settled;
            let only = watch.only.map(at);
            let not_now = only.is_some_and(|v| v.is_none_or(|v| v < rule.only_min));
            match rule.check {
                Check::Counts(budget) => {
                    // Downs count from the beginning: a link that flaps is not one that comes up.
                    let counts = !not_now && (!silent || rule.moves);
                    let Some(elapsed) = elapsed.filter(|_| counts) else {
                        moved |= rule.moves && value > 0;
                        continue;
                    };
                    let of = match (watch.of.and_then(at), rule.of_kind) {
                        (None, _) => 0.0,
                        (Some(of), Kind::Counter) => of as f32,
                        (Some(of), Kind::Gauge) => of as f32 * elapsed.as_secs_f32(),
                    };
                    let full = watch.bucket.add(value, of, elapsed, &budget);
                    moved |= rule.moves && value > 0 && !full;
                    if full && value > 0 && !silent {
                        let seconds = elapsed.as_secs_f64().max(1e-3);
                        let share = f64::from(budget.share) * f64::from(of) / seconds;
                        found(Found {
                            rule: watch.rule,
                            column: watch.column,
                            measured: value as f64 / seconds,
                            limit: share.max(f64::from(budget.per_s)),
                            bad: 1,
                            of_like: false,
                        });
                    }
                }
                Check::Falls(budget) => {
                    let fell = watch.last.get().is_some_and(|last| last > value);
                    watch.last = Last(value);
                    let Some(elapsed) = elapsed else {
                        moved |= fell;
                        continue;
                    };
                    let full = watch.bucket.add(fell.into(), 0.0, elapsed, &budget);
                    moved |= fell && !full;
                    if full && fell && !silent {
                        found(Found {
                            rule: watch.rule,
                            column: watch.column,
                            measured: f64::from(watch.bucket.level()),
                            limit: f64::from(budget.burst),
                            bad: 1,
                            of_like: false,
                        });
                    }
                }
                Check::Below | Check::Above(_) | Check::Bits(_) if !sample.gauges || not_now => {}
                Check::Below => {
                    if watch.last != Last(value) {
                        if let Some(group) = watch.group {
                            let last = Last(value);
                            references.changed(group, watch.last.get(), last.get());
                        }
                        watch.last = Last(value);
                        watch.highest = watch.highest.max(value);
                    }
                    let shared = watch.group.and_then(|group| references.of(group));
                    let limit = shared.unwrap_or(watch.highest) as f64;
                    let bad = (value as f64) < limit * reference::BELOW;
                    if silent || !bad && watch.history.is_clean() {
                        continue;
                    }
                    watch.judge(bad, rule, value, (limit, shared.is_some()), &mut found);
                }
                Check::Above(limit) => {
                    let bad = value > limit;
                    if bad || !watch.history.is_clean() {
                        watch.judge(bad, rule, value, (limit as f64, false), &mut found);
                    }
                }
                Check::Bits(bits) => {
                    let set = value & bits;
                    watch.judge(set != 0, rule, set, (0.0, false), &mut found);
                }
            }
        }
        moved
    }
}

impl Held {
    const NOTHING: Held = Held {
        history: History::CLEAN,
        bucket: Bucket::EMPTY,
        highest: 0,
        last: Last::NONE,
    };
}

impl Watch {
    fn held(&self) -> Held {
        let (history, bucket) = (self.history, self.bucket);
        let (highest, last) = (self.highest, self.last);
        Held {
            history,
            bucket,
            highest,
            last,
        }
    }

    fn judge(
        &mut self,
        bad: bool,
        rule: &Compiled,
        value: u64,
        (limit, of_like): (f64, bool),
        found: &mut impl FnMut(Found),
    ) {
        let times = self.history.push(bad, rule.m);
        if bad && times >= rule.n {
            found(Found {
                rule: self.rule,
                column: self.column,
                measured: value as f64,
                limit,
                bad: times,
                of_like,
            });
        }
    }
}
