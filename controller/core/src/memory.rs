//! What the core holds and cannot measure again, as bytes: incidents, trials, the iterations of jobs, since
//! when links are hot.
//!
//! A segment of a recording begins with it, so that a replay can start there: links, flows and paths
//! are measured again within seconds, an incident that is open or a lease that is kept is not. See
//! docs/decisions/0006-a-replay-starts-at-any-segment.md.
//!
//! Numbers are little endian, a sequence has its length (u32) ahead. [`keep!`] names every field of a
//! type, and one that it does not name fails to compile: nothing is forgotten silently.

use crate::ids::{JobId, NodeId, PortId};
use crate::incident::Incidents;
use crate::infer::Inference;
use crate::jobs::Jobs;
use crate::links::Track;
use crate::trial::{Cause, Trial};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A value that can be kept as bytes.
pub trait Keep: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Takes a value off the front; `None` if what is there is none.
    fn take(from: &mut &[u8]) -> Option<Self>;
}

/// What is not measured again.
#[derive(Debug, Clone)]
pub struct Memory {
    pub next_lease: u64,
    pub frozen: bool,
    pub incidents: Incidents,
    pub trials: VecDeque<Trial>,
    pub given_back: BTreeMap<Cause, u64>,
    pub jobs: Jobs,
    /// Its series go back further than a replay measures before its start.
    pub inference: Inference,
    /// Since when a link is hot goes back further than a replay measures before its start.
    pub hot_links: Vec<(PortId, Track)>,
}

/// Names the fields of a struct, or the variants of an enum with a number each that stays theirs.
macro_rules! keep {
    (struct $name:ident { $($field:ident),+ $(,)? }) => {
        impl $crate::memory::Keep for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),+ } = self;
                $($crate::memory::Keep::put($field, out);)+
            }
            fn take(from: &mut &[u8]) -> Option<$name> {
                $(let $field = $crate::memory::Keep::take(from)?;)+
                Some($name { $($field),+ })
            }
        }
    };
    (enum $name:ident { $($number:literal $variant:ident $({ $($field:ident),+ })?),+ $(,)? }) => {
        impl $crate::memory::Keep for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant { $($($field),+)? } => {
                        out.push($number);
                        $($($crate::memory::Keep::put($field, out);)+)?
                    })+
                }
            }
            fn take(from: &mut &[u8]) -> Option<$name> {
                match <u8 as $crate::memory::Keep>::take(from)? {
                    $($number => {
                        $($(let $field = $crate::memory::Keep::take(from)?;)+)?
                        Some($name::$variant { $($($field),+)? })
                    })+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use keep;

keep!(struct Memory { next_lease, frozen, incidents, trials, given_back, jobs, inference, hot_links });

impl Memory {
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// `None`: they are damaged, or another version wrote them.
    #[must_use]
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Memory> {
        Memory::take(&mut bytes).filter(|_| bytes.is_empty())
    }
}

macro_rules! keep_numbers {
    ($($number:ty),+) => { $(impl Keep for $number {
        fn put(&self, out: &mut Vec<u8>) {
            out.extend(self.to_le_bytes());
        }
        fn take(from: &mut &[u8]) -> Option<$number> {
            let (bytes, rest) = from.split_first_chunk()?;
            *from = rest;
            Some(<$number>::from_le_bytes(*bytes))
        }
    })+ };
}
keep_numbers!(u8, u32, u64, f32, f64);

macro_rules! keep_names {
    ($($name:ty, $made:expr, $text:expr;)+) => { $(impl Keep for $name {
        fn put(&self, out: &mut Vec<u8>) {
            let text: &str = $text(self);
            put_length(text.len(), out);
            out.extend(text.as_bytes());
        }
        fn take(from: &mut &[u8]) -> Option<$name> {
            let length = usize::try_from(u32::take(from)?).ok()?;
            let (text, rest) = from.split_at_checked(length)?;
            *from = rest;
            std::str::from_utf8(text).ok().map($made)
        }
    })+ };
}
keep_names! {
    String, str::to_owned, String::as_str;
    Arc<str>, Arc::from, Arc::as_ref;
    NodeId, NodeId::new, NodeId::as_str;
    JobId, JobId::shown, JobId::as_str;
}

/// What is longer than 4 Gi does not exist in the core; it would be refused when it is read.
fn put_length(length: usize, out: &mut Vec<u8>) {
    u32::try_from(length).unwrap_or(u32::MAX).put(out);
}

impl Keep for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut &[u8]) -> Option<bool> {
        match u8::take(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Keep for Duration {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_secs().put(out);
        self.subsec_nanos().put(out);
    }
    fn take(from: &mut &[u8]) -> Option<Duration> {
        let seconds = u64::take(from)?;
        let nanos = u32::take(from).filter(|nanos| *nanos < 1_000_000_000)?;
        Some(Duration::new(seconds, nanos))
    }
}

impl Keep for Ipv4Addr {
    fn put(&self, out: &mut Vec<u8>) {
        self.to_bits().put(out);
    }
    fn take(from: &mut &[u8]) -> Option<Ipv4Addr> {
        u32::take(from).map(Ipv4Addr::from_bits)
    }
}

impl<T: Keep> Keep for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Option<Option<T>> {
        if bool::take(from)? {
            T::take(from).map(Some)
        } else {
            Some(None)
        }
    }
}

impl<A: Keep, B: Keep> Keep for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut &[u8]) -> Option<(A, B)> {
        Some((A::take(from)?, B::take(from)?))
    }
}

fn put_all<'a, T: Keep + 'a>(items: impl ExactSizeIterator<Item = &'a T>, out: &mut Vec<u8>) {
    put_length(items.len(), out);
    for item in items {
        item.put(out);
    }
}

fn take_all<T: Keep, C: FromIterator<T>>(from: &mut &[u8]) -> Option<C> {
    let length = u32::take(from)?;
    (0..length).map(|_| T::take(from)).collect()
}

impl<T: Keep> Keep for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self.iter(), out);
    }
    fn take(from: &mut &[u8]) -> Option<Vec<T>> {
        take_all(from)
    }
}

impl<T: Keep> Keep for VecDeque<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self.iter(), out);
    }
    fn take(from: &mut &[u8]) -> Option<VecDeque<T>> {
        take_all(from)
    }
}

impl<T: Keep + Ord> Keep for BTreeSet<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self.iter(), out);
    }
    fn take(from: &mut &[u8]) -> Option<BTreeSet<T>> {
        take_all(from)
    }
}

impl<T: Keep, const N: usize> Keep for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self.iter(), out);
    }
    fn take(from: &mut &[u8]) -> Option<[T; N]> {
        let items: Vec<T> = take_all(from)?;
        items.try_into().ok()
    }
}

impl<K: Keep + Ord, V: Keep> Keep for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        put_length(self.len(), out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Option<BTreeMap<K, V>> {
        take_all::<(K, V), _>(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Damaged bytes are refused or are another memory; they never upset the reader.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(memory) = Memory::from_bytes(&bytes) {
                prop_assert_eq!(memory.to_bytes(), bytes);
            }
        }

        #[test]
        fn what_was_put_is_taken(
            text in ".{0,20}",
            numbers in prop::collection::btree_map(any::<u64>(), any::<Option<u32>>(), 0..9),
            secs in any::<u64>(), nanos in 0u32..1_000_000_000, truth: bool,
        ) {
            let value = (text, (numbers, (Duration::new(secs, nanos), truth)));
            let mut out = Vec::new();
            value.put(&mut out);
            let mut rest = out.as_slice();
            prop_assert_eq!(Keep::take(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }
    }
}
