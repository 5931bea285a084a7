//! What the columns of a schema are: which of them the core looks at, and as what.
//!
//! Nodes of one kind tell the same columns. Streams with the same share one layout, so that it stays in the processor's
//! caches and takes memory once.

use super::WATCHED;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Weak};
use weir_controller_core::health;
use weir_controller_core::io::Column;
use weir_wire::columns::{Change, Columns};
use weir_wire::signal::{Entity, Kind, Signal};
use weir_wire::v1;

/// What is looked at of the columns of one schema, each in the schema's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Columns of the schema.
    pub len: usize,
    /// Ports of the schema, in order.
    pub ports: Vec<Arc<str>>,
    /// Columns of links.
    pub watched: Vec<Watched>,
    /// Columns of devices' health, and what they are.
    readings: Vec<Reading>,
    pub columns: Arc<[Column]>,
    pub probes: Vec<ProbeColumn>,
}

/// A column of a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub column: usize,
    /// Index in [`Layout::ports`].
    pub port: usize,
    pub signal: Signal,
    pub index: Option<u32>,
}

/// A column of a device's health.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    column: usize,
    kind: Kind,
}

/// A column of active probes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProbeColumn {
    pub column: usize,
    pub target: Arc<str>,
    pub path: Option<u32>,
    pub signal: Signal,
}

/// What a column is, whatever its place.
type Key<'a> = (Entity, &'a str, Option<u32>, Signal);

/// Names, each held once: many columns are of one device.
#[derive(Default)]
struct Names(BTreeSet<Arc<str>>);

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        name
    }
}

impl Layout {
    fn of(schema: &v1::Schema) -> Layout {
        let mut names = Names::default();
        let (ports, watched) = links(&schema.columns, &mut names);
        let health = schema.columns.iter().enumerate();
        let health = health.filter_map(|(place, told)| Some((place, column(told, &mut names)?)));
        let (readings, columns): (Vec<Reading>, Vec<Column>) = health
            .map(|(place, column)| {
                let kind = column.signal.kind();
                (
                    Reading {
                        column: place,
                        kind,
                    },
                    column,
                )
            })
            .unzip();
        Layout {
            len: schema.columns.len(),
            ports,
            watched,
            readings,
            columns: columns.into(),
            probes: probes(&schema.columns, &mut Names::default()),
        }
    }

    /// Columns that are looked at, by what they are.
    fn keys(&self) -> impl Iterator<Item = (Key<'_>, usize)> {
        let health = self.readings.iter().zip(&*self.columns).map(|(r, c)| {
            let key: Key<'_> = (c.entity, &c.subject, c.index, c.signal);
            (key, r.column)
        });
        let links = self.watched.iter().map(|w| {
            let key: Key<'_> = (Entity::Port, &self.ports[w.port], w.index, w.signal);
            (key, w.column)
        });
        health.chain(links)
    }

    /// The state of a stream that goes on with another schema: counters that both have go on from what they were.
    pub fn carried(&self, state: &Columns, next: &Layout) -> Columns {
        let known: BTreeMap<Key<'_>, usize> = self.keys().collect();
        let mut carried = Columns::new(next.len);
        for (key, place) in next.keys() {
            carried.replace(place, known.get(&key).and_then(|was| state.get(*was)));
        }
        carried
    }

    /// The newest value of each gauge of health and the rise of each counter since the frame before.
    pub fn values(&self, rises: &mut Rises<'_>) -> Vec<Option<u64>> {
        let value = |reading: &Reading| rises.of(reading.column, reading.kind);
        self.readings.iter().map(value).collect()
    }
}

/// Columns of links, and the ports that they are of, in order.
fn links(columns: &[v1::Column], names: &mut Names) -> (Vec<Arc<str>>, Vec<Watched>) {
    // Links are ports as a whole.
    let whole_ports = columns.iter().enumerate().filter_map(|(n, c)| {
        let signal = Signal::from_number(c.signal).filter(|s| WATCHED.contains(s))?;
        // Pause is counted by priority, everything else once.
        let by_priority = matches!(signal, Signal::PauseRxUs | Signal::PauseTxUs);
        let whole = c.entity() == v1::Entity::Port
            && (c.index.is_none() || by_priority)
            && !c.port.is_empty();
        whole.then_some((n, c.port.as_str(), signal, c.index))
    });
    let whole_ports: Vec<(usize, &str, Signal, Option<u32>)> = whole_ports.collect();
    let ports: BTreeSet<&str> = whole_ports.iter().map(|(_, port, ..)| *port).collect();
    let ports: Vec<&str> = ports.into_iter().collect();
    let watched = whole_ports
        .into_iter()
        .filter_map(|(column, port, signal, index)| {
            Some(Watched {
                column,
                port: ports.binary_search(&port).ok()?,
                signal,
                index,
            })
        });
    let watched = watched.collect();
    (ports.iter().map(|p| names.shared(p)).collect(), watched)
}

/// A column as the core takes it; `None` if it does not look at it.
fn column(told: &v1::Column, names: &mut Names) -> Option<Column> {
    let entity = match told.entity() {
        v1::Entity::Port if told.port.is_empty() => Entity::Node,
        v1::Entity::Port => Entity::Port,
        v1::Entity::Rdma => Entity::Rdma,
        v1::Entity::Gpu => Entity::Gpu,
        v1::Entity::Probe => Entity::Probe,
    };
    let signal = Signal::from_number(told.signal).filter(|s| health::watches(entity, *s))?;
    Some(Column {
        entity,
        subject: names.shared(&told.port),
        index: told.index,
        signal,
    })
}

fn probes(columns: &[v1::Column], names: &mut Names) -> Vec<ProbeColumn> {
    let probes = columns.iter().enumerate().filter_map(|(column, c)| {
        let signal = Signal::from_number(c.signal)?;
        let is_probe = c.entity() == v1::Entity::Probe;
        is_probe.then(|| ProbeColumn {
            column,
            target: names.shared(&c.port),
            path: c.index,
            signal,
        })
    });
    probes.collect()
}

/// How far counters rose in a frame. Columns have to be asked for in ascending order.
pub(super) struct Rises<'a> {
    state: &'a Columns,
    /// Those not yet passed.
    changes: &'a [Change],
    resets: &'a BTreeSet<usize>,
}

impl<'a> Rises<'a> {
    /// Of a frame that left this `state`, made these `changes` and says which counters began anew.
    pub fn new(
        state: &'a Columns,
        changes: &'a [Change],
        resets: &'a BTreeSet<usize>,
    ) -> Rises<'a> {
        Rises {
            state,
            changes,
            resets,
        }
    }

    /// The value of a gauge, or how far a counter rose. One that was reset, or fell without a word, is a gap and never a
    /// spike; `None` as well if it is or was absent.
    #[inline]
    pub fn of(&mut self, column: usize, kind: Kind) -> Option<u64> {
        let value = self.state.get(column)?;
        if kind == Kind::Gauge {
            return Some(value);
        }
        let passed = self.changes.iter().take_while(|c| c.column < column);
        self.changes = &self.changes[passed.count()..];
        let before = match self.changes.first() {
            Some(change) if change.column == column => change.before,
            Some(_) | None => Some(value),
        };
        let rise = value.checked_sub(before?);
        rise.filter(|_| self.resets.is_empty() || !self.resets.contains(&column))
    }
}

/// The layouts of all streams, by a hash of their schemas.
#[derive(Debug, Default)]
pub struct Layouts {
    known: BTreeMap<u64, Weak<Layout>>,
    /// Those that nobody has any more are dropped when there are so many.
    sweep_at: usize,
}

impl Layouts {
    /// The layout of a schema.
    pub(super) fn of(&mut self, schema: &v1::Schema) -> Arc<Layout> {
        let layout = Layout::of(schema);
        // The same for the same columns in each run of this program.
        let mut hasher = DefaultHasher::new();
        schema.columns.hash(&mut hasher);
        let hash = hasher.finish();
        let known = self.known.get(&hash).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| **known == layout) {
            return known;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, layout| layout.strong_count() > 0);
            self.sweep_at = (2 * self.known.len()).max(64);
        }
        let layout = Arc::new(layout);
        self.known.insert(hash, Arc::downgrade(&layout));
        layout
    }
}
