//! What stands against the devices of one node: alarms, and the troubles that they tell of.
//!
//! An alarm is one rule about one column, or one kind of event about one device. It stands until
//! nothing bad was seen for its rule's hold time. Alarms of one class on one device are one trouble.
//!
//! A NIC has up to three names: of its interface (`eth0`), of its verbs device (`mlx5_0/1`) and of its
//! place on PCIe. No column tells which belong together. So an alarm under another kind of name joins
//! a trouble of its class on the node that has no such name yet, if both began within [`JOIN`]: two NICs
//! that break at the same moment stay two troubles, and one that breaks is one.

use super::events::{Effect, Sign};
use super::rules::RULES;
use super::watch::Found;
use crate::io::{Column, NodeEvent};
use crate::keep::keep;
use crate::verdict::{Class, Severity};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use weir_signal::Entity;

/// Longest time between the first words of two names of one device: sources are read seconds apart.
const JOIN: Duration = Duration::from_secs(15);
/// Alarms of one node; a chassis whose NVLinks are all down has 300.
const ALARMS_MAX: usize = 512;
/// Troubles remembered after they ended, for their repetition.
const ENDED_MAX: usize = 64;
/// A trouble that returns within this time is a repetition.
pub const REMEMBERED: Duration = Duration::from_secs(86_400);
/// Remarks kept of a node.
const REMARKS_MAX: usize = 32;

/// How a device is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Interface,
    Verbs,
    Pci,
}

impl Space {
    pub const ALL: [Space; 3] = [Space::Interface, Space::Verbs, Space::Pci];

    /// Of the subject of an event.
    #[must_use]
    pub fn of(name: &str, columns: &[Column]) -> Space {
        let verbs = |c: &Column| c.entity == Entity::Rdma && is_same(&c.subject, name);
        if name.contains(':') {
            Space::Pci
        } else if name.contains('/') || columns.iter().any(verbs) {
            Space::Verbs
        } else {
            Space::Interface
        }
    }

    fn of_entity(entity: Entity) -> Space {
        match entity {
            Entity::Rdma => Space::Verbs,
            Entity::Gpu => Space::Pci,
            Entity::Port | Entity::Node | Entity::Probe => Space::Interface,
        }
    }
}

/// Whether two names are of one device: equal, or one is the device and the other its port.
#[must_use]
pub fn is_same(a: &str, b: &str) -> bool {
    let of = |whole: &str, part: &str| {
        whole
            .strip_prefix(part)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    a.eq_ignore_ascii_case(b) || of(a, b) || of(b, a)
}

/// What raised an alarm.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// A value, by its rule, with its index.
    Value { found: Found, index: Option<u32> },
    /// An event, how often it came, and what it said last.
    Event {
        name: Arc<str>,
        code: Option<u32>,
        times: u32,
        text: String,
        /// It means nothing if many nodes tell it.
        lonely: bool,
    },
}

keep!(enum Cause {
    0 Value { found, index },
    1 Event { name, code, times, text, lonely },
});

/// One thing that is wrong with a device.
#[derive(Debug, Clone)]
pub struct Alarm {
    pub cause: Cause,
    pub name: Arc<str>,
    pub severity: Severity,
    pub confidence: f64,
    pub action: String,
    pub since: Duration,
    pub last_bad: Duration,
    hold: Duration,
    trouble: u32,
}

keep!(struct Alarm { cause, name, severity, confidence, action, since, last_bad, hold, trouble });

/// Alarms of one class on one device.
#[derive(Debug, Clone)]
pub struct Trouble {
    id: u32,
    pub class: Class,
    /// Its names, in the order of [`Space::ALL`].
    pub names: [Option<Arc<str>>; 3],
    /// Its name when it began.
    pub first: Arc<str>,
    pub since: Duration,
    /// How often the same ended within the last day.
    pub repeats: u32,
}

keep!(struct Trouble { id, class, names, first, since, repeats });

#[derive(Debug, Clone)]
struct Ended {
    class: Class,
    name: Arc<str>,
    repeats: u32,
    at: Duration,
}

keep!(struct Ended { class, name, repeats, at });

/// An event that is no trouble of its own.
#[derive(Debug, Clone)]
pub struct Remark {
    pub at: Duration,
    pub name: Arc<str>,
    pub text: String,
}

keep!(struct Remark { at, name, text });

/// All that stands against a node's devices.
#[derive(Debug, Clone, Default)]
pub struct Alarms {
    alarms: Vec<Alarm>,
    troubles: Vec<Trouble>,
    ended: VecDeque<Ended>,
    remarks: VecDeque<Remark>,
    next: u32,
    /// Alarms that there was no room for.
    pub refused: u64,
}

keep!(struct Alarms { alarms, troubles, ended, remarks, next, refused });

impl Alarms {
    /// A value is bad.
    pub fn found(&mut self, found: Found, column: &Column, now: Duration) {
        let same = |a: &&mut Alarm| {
            let is = matches!(&a.cause, Cause::Value { found: f, index } if f.rule == found.rule && *index == column.index);
            is && a.name == column.subject
        };
        if let Some(alarm) = self.alarms.iter_mut().find(same) {
            (alarm.cause, alarm.last_bad) = (
                Cause::Value {
                    found,
                    index: column.index,
                },
                now,
            );
            return;
        }
        let rule = &RULES[usize::from(found.rule)];
        let alarm = Alarm {
            cause: Cause::Value {
                found,
                index: column.index,
            },
            name: column.subject.clone(),
            severity: rule.severity,
            confidence: rule.confidence,
            action: rule.action.to_owned(),
            since: now,
            last_bad: now,
            hold: Duration::from_secs(rule.hold_s.into()),
            trouble: 0,
        };
        self.raise(alarm, rule.class, Space::of_entity(column.entity));
    }

    /// An event tells of a fault of a device.
    pub fn told(
        &mut self,
        event: NodeEvent,
        (sign, class): (&Sign, Class),
        space: Space,
        now: Duration,
    ) {
        let same = |a: &&mut Alarm| {
            let is = matches!(&a.cause, Cause::Event { name, code, .. } if *name == event.name && *code == event.code);
            is && a.name == event.subject
        };
        let hold = sign.hold(event.severity);
        if let Some(alarm) = self.alarms.iter_mut().find(same) {
            if let Cause::Event { times, text, .. } = &mut alarm.cause {
                (*times, *text) = (times.saturating_add(1), event.text);
            }
            (alarm.severity, alarm.last_bad) = (alarm.severity.max(event.severity), now);
            alarm.hold = alarm.hold.max(hold);
            return;
        }
        let alarm = Alarm {
            cause: Cause::Event {
                name: event.name,
                code: event.code,
                times: 1,
                text: event.text,
                lonely: sign.effect == Effect::Lonely,
            },
            name: event.subject,
            severity: event.severity,
            confidence: sign.confidence(event.severity),
            action: event.action,
            since: now,
            last_bad: now,
            hold,
            trouble: 0,
        };
        self.raise(alarm, class, space);
    }

    /// An event tells that what another event told of is over.
    pub fn over(&mut self, ended: &str, name: &str) {
        let is = |a: &Alarm| matches!(&a.cause, Cause::Event { name, .. } if **name == *ended);
        for alarm in self.alarms.iter_mut().filter(|a| is(a)) {
            if is_same(&alarm.name, name) {
                alarm.hold = Duration::ZERO;
            }
        }
    }

    /// An event that says more of a trouble that others tell.
    pub fn remark(&mut self, remark: Remark) {
        if self.remarks.len() == REMARKS_MAX {
            self.remarks.pop_front();
        }
        self.remarks.push_back(remark);
    }

    fn raise(&mut self, mut alarm: Alarm, class: Class, space: Space) {
        if self.alarms.len() >= ALARMS_MAX {
            self.refused += 1;
            return;
        }
        let slot = space as usize;
        let joins = |t: &Trouble| {
            let vacant = alarm.since.saturating_sub(t.since) <= JOIN && class != Class::GpuFault;
            t.class == class && t.names[slot].is_none() && vacant
        };
        let named = |t: &Trouble| {
            let name = t.names[slot].as_ref();
            t.class == class && name.is_some_and(|name| is_same(name, &alarm.name))
        };
        let place = self.troubles.iter().position(named);
        let place = place.or_else(|| self.troubles.iter().position(joins));
        let trouble = place.map(|n| &mut self.troubles[n]);
        alarm.trouble = match trouble {
            Some(trouble) => {
                trouble.names[slot].get_or_insert(alarm.name.clone());
                trouble.id
            }
            None => {
                self.next = self.next.wrapping_add(1);
                let before = self
                    .ended
                    .iter()
                    .find(|e| e.class == class && e.name == alarm.name);
                let recent = before.filter(|e| alarm.since.saturating_sub(e.at) <= REMEMBERED);
                let mut names = [None, None, None];
                names[slot] = Some(alarm.name.clone());
                self.troubles.push(Trouble {
                    id: self.next,
                    class,
                    names,
                    first: alarm.name.clone(),
                    since: alarm.since,
                    repeats: recent.map_or(0, |e| e.repeats),
                });
                self.next
            }
        };
        self.alarms.push(alarm);
    }

    /// Ends what was not bad for its hold time.
    pub fn expire(&mut self, now: Duration) {
        let stands = |a: &Alarm| now.saturating_sub(a.last_bad) < a.hold;
        if self.alarms.iter().all(stands) {
            return;
        }
        self.alarms.retain(stands);
        let alarms = &self.alarms;
        let ended = &mut self.ended;
        self.troubles.retain(|trouble| {
            let stands = alarms.iter().any(|a| a.trouble == trouble.id);
            if !stands {
                ended.retain(|e| (e.class, &e.name) != (trouble.class, &trouble.first));
                if ended.len() == ENDED_MAX {
                    ended.pop_front();
                }
                ended.push_back(Ended {
                    class: trouble.class,
                    name: trouble.first.clone(),
                    repeats: trouble.repeats.saturating_add(1),
                    at: now,
                });
            }
            stands
        });
    }

    /// Whether nothing stands.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.alarms.is_empty()
    }

    /// Troubles with their alarms, oldest first.
    pub fn troubles(&self) -> impl Iterator<Item = (&Trouble, impl Iterator<Item = &Alarm>)> {
        self.troubles.iter().map(|trouble| {
            let alarms = self.alarms.iter();
            (trouble, alarms.filter(move |a| a.trouble == trouble.id))
        })
    }

    /// What was remarked about a device since `since`.
    pub fn remarks(&self, trouble: &Trouble, since: Duration) -> impl Iterator<Item = &Remark> {
        let about = move |r: &&Remark| {
            let names = trouble.names.iter().flatten();
            r.at >= since && names.into_iter().any(|name| is_same(name, &r.name))
        };
        self.remarks.iter().filter(about)
    }

    /// What stands on this node that means something only while few nodes have it.
    pub fn lonely(&self) -> BTreeSet<Lonely> {
        self.alarms.iter().filter_map(Alarm::lonely).collect()
    }
}

/// A rule or an event that means something only while few nodes have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lonely {
    Rule(u8),
    Event(Arc<str>),
}

impl Alarm {
    /// `None` if it means something however many have it.
    #[must_use]
    pub fn lonely(&self) -> Option<Lonely> {
        match &self.cause {
            Cause::Value { found, .. } => {
                let lonely = RULES[usize::from(found.rule)].lonely;
                lonely.then_some(Lonely::Rule(found.rule))
            }
            Cause::Event { name, lonely, .. } => lonely.then(|| Lonely::Event(name.clone())),
        }
    }
}
