//! The columns of an agent's frames that the core's health detectors look at, as gauges and rises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weir_controller_core::health;
use weir_controller_core::io::Column;
use weir_wire::signal::{Entity, Kind, Signal};
use weir_wire::v1;

/// The watched columns of one schema, with what they were last.
#[derive(Debug, Default)]
pub struct Values {
    columns: Arc<[Column]>,
    readings: Vec<Reading>,
}

#[derive(Debug)]
struct Reading {
    /// Its place in the schema.
    place: usize,
    kind: Kind,
    /// Last value of a counter.
    last: Option<u64>,
}

impl Values {
    /// The watched columns of a schema; counters that were there before go on.
    #[must_use]
    pub fn of(schema: &v1::Schema, before: &Values) -> Values {
        let key = |c: &Column| (c.entity, c.subject.clone(), c.index, c.signal);
        let readings = before.columns.iter().map(key).zip(&before.readings);
        let before: BTreeMap<_, Option<u64>> = readings.map(|(k, r)| (k, r.last)).collect();
        // Many columns are of one device: they share its name.
        let mut subjects: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut shared = |name: &str| {
            let known = subjects.get(name).cloned();
            let subject = known.unwrap_or_else(|| Arc::from(name));
            subjects.insert(subject.clone());
            subject
        };
        let (mut columns, mut readings) = (Vec::new(), Vec::new());
        for (place, column) in schema.columns.iter().enumerate() {
            let entity = match column.entity() {
                v1::Entity::Port if column.port.is_empty() => Entity::Node,
                v1::Entity::Port => Entity::Port,
                v1::Entity::Rdma => Entity::Rdma,
                v1::Entity::Gpu => Entity::Gpu,
                v1::Entity::Probe => Entity::Probe,
            };
            let signal = Signal::from_number(column.signal);
            let Some(signal) = signal.filter(|s| health::watches(entity, *s)) else {
                continue;
            };
            let column = Column {
                entity,
                subject: shared(&column.port),
                index: column.index,
                signal,
            };
            let last = before.get(&key(&column)).copied().flatten();
            columns.push(column);
            readings.push(Reading {
                place,
                kind: signal.kind(),
                last,
            });
        }
        Values {
            columns: columns.into(),
            readings,
        }
    }

    /// What the values are, in their order.
    #[must_use]
    pub fn columns(&self) -> Arc<[Column]> {
        self.columns.clone()
    }

    /// The next rise of each counter is unknown.
    pub fn begin_anew(&mut self) {
        self.readings.iter_mut().for_each(|r| r.last = None);
    }

    /// The newest value of each gauge and the rise of each counter since the last call. A counter that
    /// was `reset`, or fell without a word, is a gap and never a spike.
    pub fn read(&mut self, state: &[Option<u64>], resets: &BTreeSet<usize>) -> Vec<Option<u64>> {
        let read = |reading: &mut Reading| {
            let value = state.get(reading.place).copied().flatten();
            if reading.kind == Kind::Gauge {
                return value;
            }
            let last = std::mem::replace(&mut reading.last, value);
            let rise = last.zip(value).and_then(|(last, v)| v.checked_sub(last));
            rise.filter(|_| resets.is_empty() || !resets.contains(&reading.place))
        };
        self.readings.iter_mut().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(columns: &[(&str, Signal, v1::Entity)]) -> v1::Schema {
        let column = |(port, signal, entity): &(&str, Signal, v1::Entity)| v1::Column {
            port: (*port).to_owned(),
            signal: signal.number(),
            entity: (*entity).into(),
            index: None,
        };
        v1::Schema {
            epoch: 1,
            columns: columns.iter().map(column).collect(),
        }
    }

    #[test]
    fn counters_go_on_over_a_new_schema_and_resets_are_gaps() {
        let downs = ("mlx5_0/1", Signal::LinkDowns, v1::Entity::Rdma);
        let heat = ("0000:1a:00.0", Signal::GpuTemperature, v1::Entity::Gpu);
        let mut values = Values::of(&schema(&[downs, heat]), &Values::default());
        let none = BTreeSet::new();
        assert_eq!(values.read(&[Some(3), Some(60)], &none), [None, Some(60)]);
        assert_eq!(values.read(&[Some(5), None], &none), [Some(2), None]);
        let mut values = Values::of(&schema(&[heat, downs]), &values);
        assert_eq!(
            values.read(&[Some(61), Some(6)], &none),
            [Some(61), Some(1)]
        );
        assert_eq!(values.read(&[None, Some(2)], &none), [None, None]);
        assert_eq!(
            values.read(&[None, Some(9)], &BTreeSet::from([1])),
            [None, None]
        );
        assert_eq!(values.read(&[None, Some(10)], &none), [None, Some(1)]);
    }
}
