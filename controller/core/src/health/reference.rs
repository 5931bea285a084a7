//! What a gauge should show: what the same device of like nodes shows.
//!
//! Nodes are alike if they have the same role and the same verbs devices and GPUs under the same names.
//! Among at least five of them, the median of one gauge of one device is its reference, as long as
//! hardly anyone is below it: where a tenth is, the nodes are of two kinds, and it says nothing. Values
//! are counted when they change, so that a sample costs nothing.

use crate::io::{Column, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_signal::{Entity, Signal};

/// Groups held: a hundred models of nodes with some hundred gauges each.
const GROUPS_MAX: usize = 1 << 16;
/// Nodes that make a reference.
const NODES_MIN: u32 = 5;
/// Below its reference is what is below this share of it.
pub const BELOW: f64 = 0.9;

/// Hash of what makes nodes alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model(u64);

impl Model {
    /// The model of a node; `None` if it has neither verbs devices nor GPUs to be known by.
    #[must_use]
    pub fn of(role: Role, columns: &[Column]) -> Option<Model> {
        let devices = columns
            .iter()
            .filter(|c| matches!(c.entity, Entity::Rdma | Entity::Gpu));
        let mut names: Vec<&str> = devices.map(|c| &*c.subject).collect();
        names.sort_unstable();
        names.dedup();
        // FNV-1a.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let role = u8::from(role == Role::Switch);
        let seed = step(0xcbf2_9ce4_8422_2325, role);
        let hash = names.iter().fold(seed, |hash, name| {
            name.bytes().chain([b'\n']).fold(hash, step)
        });
        (!names.is_empty()).then_some(Model(hash))
    }
}

type Key = (Model, Entity, Signal, Option<u32>, Arc<str>);

/// Number of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(u32);

#[derive(Debug, Clone, Default)]
struct Values {
    members: u32,
    /// How many show each value.
    counts: BTreeMap<u64, u32>,
    reference: Option<u64>,
}

/// The values of all groups.
#[derive(Debug, Clone, Default)]
pub struct References {
    ids: BTreeMap<Key, Group>,
    groups: Vec<Values>,
    free: Vec<Group>,
}

impl References {
    /// A column becomes a member; `None` if there is no room for its group.
    pub fn join(&mut self, model: Model, column: &Column) -> Option<Group> {
        let key = (
            model,
            column.entity,
            column.signal,
            column.index,
            column.subject.clone(),
        );
        let group = match self.ids.get(&key) {
            Some(group) => *group,
            None => {
                let group = match self.free.pop() {
                    Some(group) => group,
                    None if self.groups.len() < GROUPS_MAX => {
                        self.groups.push(Values::default());
                        Group(u32::try_from(self.groups.len() - 1).ok()?)
                    }
                    None => return None,
                };
                self.ids.insert(key, group);
                group
            }
        };
        self.groups[group.0 as usize].members += 1;
        Some(group)
    }

    /// A column is a member no more; it showed `value` last.
    pub fn leave(&mut self, model: Model, column: &Column, group: Group, value: Option<u64>) {
        self.changed(group, value, None);
        let values = &mut self.groups[group.0 as usize];
        values.members -= 1;
        if values.members == 0 {
            let key = (
                model,
                column.entity,
                column.signal,
                column.index,
                column.subject.clone(),
            );
            self.ids.remove(&key);
            self.free.push(group);
        }
    }

    /// A member shows another value than before.
    pub fn changed(&mut self, group: Group, before: Option<u64>, now: Option<u64>) {
        let values = &mut self.groups[group.0 as usize];
        if let Some(before) = before
            && let Some(count) = values.counts.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                values.counts.remove(&before);
            }
        }
        if let Some(now) = now {
            *values.counts.entry(now).or_default() += 1;
        }
        values.reference = values.judge();
    }

    /// What a member should show.
    #[inline]
    #[must_use]
    pub fn of(&self, group: Group) -> Option<u64> {
        self.groups[group.0 as usize].reference
    }
}

impl Values {
    fn judge(&self) -> Option<u64> {
        let total: u32 = self.counts.values().sum();
        if total < NODES_MIN {
            return None;
        }
        let mut seen = 0;
        let median = self.counts.iter().find_map(|(value, count)| {
            seen += count;
            (2 * seen >= total).then_some(*value)
        })?;
        let below = self.counts.range(..median);
        let below = below.filter(|(value, _)| **value as f64 / (median as f64) < BELOW);
        let below: u32 = below.map(|(_, count)| count).sum();
        (below <= (total / 10).max(1)).then_some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn column(name: &str) -> Column {
        Column {
            entity: Entity::Rdma,
            subject: name.into(),
            index: None,
            signal: Signal::RateBps,
        }
    }

    /// The reference of members that show these values.
    fn reference(shown: &[u64]) -> Option<u64> {
        let mut references = References::default();
        let column = column("mlx5_0/1");
        let model = Model::of(Role::Host, std::slice::from_ref(&column)).unwrap();
        let mut last = None;
        for value in shown {
            let group = references.join(model, &column).unwrap();
            references.changed(group, None, Some(*value));
            last = Some(group);
        }
        references.of(last?)
    }

    #[test]
    fn five_that_agree_are_a_reference_and_four_are_none() {
        assert_eq!(reference(&[400; 4]), None);
        assert_eq!(reference(&[400; 5]), Some(400));
        assert_eq!(reference(&[400, 400, 200, 400, 400]), Some(400));
    }

    #[test]
    fn two_kinds_of_nodes_have_no_reference() {
        assert_eq!(reference(&[400, 400, 400, 400, 200, 200]), None);
        assert_eq!(reference(&[[400; 10].as_slice(), &[200; 3]].concat()), None);
    }

    #[test]
    fn nodes_with_other_devices_are_not_alike() {
        let model = |role, name| Model::of(role, &[column(name)]);
        assert_eq!(model(Role::Host, "a/1"), model(Role::Host, "a/1"));
        assert_ne!(model(Role::Host, "a/1"), model(Role::Host, "b/1"));
        assert_ne!(model(Role::Host, "a/1"), model(Role::Switch, "a/1"));
        assert_eq!(Model::of(Role::Host, &[]), None);
    }

    proptest! {
        #[test]
        fn who_left_leaves_nothing(values in proptest::collection::vec(proptest::option::of(0u64..9), 0..40)) {
            let mut references = References::default();
            let column = column("mlx5_0/1");
            let model = Model::of(Role::Host, std::slice::from_ref(&column)).unwrap();
            let joined: Vec<_> = values.iter().map(|value| {
                let group = references.join(model, &column).unwrap();
                references.changed(group, None, *value);
                (group, *value)
            }).collect();
            for (group, value) in joined {
                references.leave(model, &column, group, value);
            }
            prop_assert!(references.ids.is_empty());
            prop_assert!(references.groups.iter().all(|g| g.counts.is_empty() && g.reference.is_none()));
        }
    }
}
