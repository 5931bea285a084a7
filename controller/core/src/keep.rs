//! Values as bytes, so that a segment of a recording can hold them: [`Keep`], and [`keep!`] that writes it for a type.
//!
//! Whole numbers take seven bits a byte, the lowest first (LEB128), so that a quiet fleet is small; a sequence has its
//! length ahead. [`keep!`] names every field of a type, and one that it does not name fails to compile: nothing is
//! forgotten silently.

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

/// Names the fields of a struct (and what else must hold of them), or the variants of an enum with a number each that
/// stays theirs; or a struct around one value.
macro_rules! keep {
    (struct $name:ident(_)) => {
        impl $crate::keep::Keep for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $crate::keep::Keep::put(&self.0, out);
            }
            fn take(from: &mut &[u8]) -> Option<$name> {
                $crate::keep::Keep::take(from).map($name)
            }
        }
    };
    (struct $name:ident { $($field:ident),+ $(,)? } $(if $is_sound:expr)?) => {
        impl $crate::keep::Keep for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let $name { $($field),+ } = self;
                $($crate::keep::Keep::put($field, out);)+
            }
            fn take(from: &mut &[u8]) -> Option<$name> {
                $(let $field = $crate::keep::Keep::take(from)?;)+
                let taken = $name { $($field),+ };
                $(if !($is_sound)(&taken) {
                    return None;
                })?
                Some(taken)
            }
        }
    };
    (enum $name:ident { $($number:literal $variant:ident $({ $($field:ident),+ })?),+ $(,)? }) => {
        impl $crate::keep::Keep for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant { $($($field),+)? } => {
                        out.push($number);
                        $($($crate::keep::Keep::put($field, out);)+)?
                    })+
                }
            }
            fn take(from: &mut &[u8]) -> Option<$name> {
                match <u8 as $crate::keep::Keep>::take(from)? {
                    $($number => {
                        $($(let $field = $crate::keep::Keep::take(from)?;)+)?
                        Some($name::$variant { $($($field),+)? })
                    })+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use keep;

/// A value as bytes.
#[must_use]
pub fn to_bytes(value: &impl Keep) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// `None`: they are damaged, or another version wrote them.
#[must_use]
pub fn from_bytes<T: Keep>(mut bytes: &[u8]) -> Option<T> {
    T::take(&mut bytes).filter(|_| bytes.is_empty())
}

impl Keep for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut rest = *self;
        while rest > 0x7f {
            let [lowest, ..] = rest.to_le_bytes();
            out.push(lowest | 0x80);
            rest >>= 7;
        }
        let [lowest, ..] = rest.to_le_bytes();
        out.push(lowest);
    }
    fn take(from: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = u8::take(from)?;
            let bits = u64::from(byte & 0x7f);
            // One way to write each number: no bit beyond the highest, no empty byte at the end.
            if bits << shift >> shift != bits || shift > 0 && byte == 0 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

macro_rules! keep_whole {
    ($($number:ty),+) => { $(impl Keep for $number {
        fn put(&self, out: &mut Vec<u8>) {
            // No number of the core is wider than 64 bits.
            u64::try_from(*self).unwrap_or(u64::MAX).put(out);
        }
        fn take(from: &mut &[u8]) -> Option<$number> {
            <$number>::try_from(u64::take(from)?).ok()
        }
    })+ };
}
keep_whole!(u16, u32, usize);

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
keep_numbers!(u8, f32, f64);

macro_rules! keep_names {
    ($($name:ty, $made:expr, $text:expr;)+) => { $(impl Keep for $name {
        fn put(&self, out: &mut Vec<u8>) {
            let text: &str = $text(self);
            text.len().put(out);
            out.extend(text.as_bytes());
        }
        fn take(from: &mut &[u8]) -> Option<$name> {
            let length = usize::take(from)?;
            let (text, rest) = from.split_at_checked(length)?;
            *from = rest;
            std::str::from_utf8(text).ok().map($made)
        }
    })+ };
}
keep_names! {
    String, str::to_owned, String::as_str;
    Arc<str>, Arc::from, Arc::as_ref;
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

impl<A: Keep, B: Keep, C: Keep> Keep for (A, B, C) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }
    fn take(from: &mut &[u8]) -> Option<(A, B, C)> {
        Some((A::take(from)?, B::take(from)?, C::take(from)?))
    }
}

fn put_all<'a, T: Keep + 'a>(items: impl ExactSizeIterator<Item = &'a T>, out: &mut Vec<u8>) {
    items.len().put(out);
    for item in items {
        item.put(out);
    }
}

fn take_all<T: Keep, C: FromIterator<T>>(from: &mut &[u8]) -> Option<C> {
    let length = usize::take(from)?;
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

impl<T: Keep> Keep for Box<[T]> {
    fn put(&self, out: &mut Vec<u8>) {
        put_all(self.iter(), out);
    }
    fn take(from: &mut &[u8]) -> Option<Box<[T]>> {
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
        self.len().put(out);
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
        /// There is one way to write each number, and any other is refused.
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..11)) {
            if let Some(number) = from_bytes::<u64>(&bytes) {
                prop_assert_eq!(to_bytes(&number), bytes);
            }
        }

        #[test]
        fn what_was_put_is_taken(
            text in ".{0,20}",
            numbers in prop::collection::btree_map(any::<u64>(), any::<Option<u32>>(), 0..9),
            secs in any::<u64>(), nanos in 0u32..1_000_000_000, truth: bool,
        ) {
            let value = (text, (numbers, (Duration::new(secs, nanos), truth)));
            prop_assert_eq!(from_bytes(&to_bytes(&value)), Some(value));
        }
    }
}
