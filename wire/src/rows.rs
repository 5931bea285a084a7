//! Packed rows: what happened to things that come and go, such as flows and collective calls.
//!
//! A thing is announced once under a number; from then on a body says only what differs from its
//! row before. A body is a list of rows, and a number may stand in it more than once:
//!
//! ```text
//! row := varint(zigzag(number - number of the row before)) varint(mask of changed fields)
//!        varint(zigzag(value - last)){one for each bit of the mask, lowest first}
//! ```
//!
//! Why this beside [`crate::columns`]: a port's counters are always there and mostly stand still,
//! so their place is known and silence is free; of a hundred flows a few move, and of one series
//! several calls may end between two samples. An active flow costs six to eight bytes for its four
//! fields, against about twenty-five as a protobuf message.

use crate::codec::{DecodeError, get_u64, get_varint, put_varint, unzigzag, zigzag};
use std::collections::BTreeMap;

/// The state of one side of a stream: the last row of every number that was announced.
#[derive(Debug, Clone, Default)]
pub struct Rows<const FIELDS: usize> {
    last: BTreeMap<u32, [u64; FIELDS]>,
}

impl<const FIELDS: usize> Rows<FIELDS> {
    /// Numbers announced and not forgotten.
    #[must_use]
    pub fn len(&self) -> usize {
        self.last.len()
    }

    /// Whether nothing is announced.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Announces a number, or announces it anew: its last row is all zeros.
    pub fn announce(&mut self, number: u32) {
        self.last.insert(number, [0; FIELDS]);
    }

    /// The number is not used any more.
    pub fn forget(&mut self, number: u32) {
        self.last.remove(&number);
    }

    /// Makes the body of `rows`. A number that was not announced counts as announced with it.
    pub fn encode(&mut self, rows: impl IntoIterator<Item = (u32, [u64; FIELDS])>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut before = 0;
        for (number, row) in rows {
            let last = self.last.entry(number).or_insert([0; FIELDS]);
            let changed = |i: &usize| row[*i] != last[*i];
            let mask = (0..FIELDS).filter(changed).fold(0u128, |m, i| m | 1 << i);
            put_varint(u128::from(zigzag(i64::from(number) - before)), &mut out);
            put_varint(mask, &mut out);
            for i in (0..FIELDS).filter(changed) {
                let delta = row[i].wrapping_sub(last[i]).cast_signed();
                put_varint(u128::from(zigzag(delta)), &mut out);
            }
            (*last, before) = (row, i64::from(number));
        }
        out
    }

    /// The rows of a body, in its order.
    ///
    /// # Errors
    /// [`DecodeError`]; the state is then of no more use, and the stream is to be closed.
    pub fn decode(&mut self, body: &[u8]) -> Result<Vec<(u32, [u64; FIELDS])>, DecodeError> {
        let mut rows = Vec::new();
        let mut at = 0;
        let mut before = 0i64;
        while at < body.len() {
            before = before.wrapping_add(unzigzag(get_u64(body, &mut at)?));
            let row = before.cast_unsigned();
            let unknown = DecodeError::UnknownRow { row };
            let Ok(number) = u32::try_from(before) else {
                return Err(unknown);
            };
            let last = self.last.get_mut(&number).ok_or(unknown)?;
            let mask = get_varint(body, &mut at)?;
            if mask >> FIELDS != 0 {
                return Err(DecodeError::UnknownField {
                    row,
                    mask,
                    fields: FIELDS,
                });
            }
            for (i, value) in last.iter_mut().enumerate() {
                if mask >> i & 1 == 1 {
                    let delta = unzigzag(get_u64(body, &mut at)?);
                    *value = value.wrapping_add(delta.cast_unsigned());
                }
            }
            rows.push((number, *last));
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn announced() -> Rows<3> {
        let mut rows = Rows::default();
        (0..4).for_each(|n| rows.announce(n));
        rows
    }

    #[test]
    fn a_row_like_the_one_before_costs_two_bytes() {
        let mut rows = announced();
        rows.encode([(2, [1 << 40, 7, 9])]);
        assert_eq!(rows.encode([(2, [1 << 40, 7, 9])]).len(), 2);
    }

    #[test]
    fn a_row_that_was_not_announced_is_refused() {
        let body = Rows::<3>::default().encode([(7, [1, 0, 0])]);
        let refused = announced().decode(&body);
        assert_eq!(refused, Err(DecodeError::UnknownRow { row: 7 }));
        assert!(matches!(
            announced().decode(&[1, 0]),
            Err(DecodeError::UnknownRow { .. })
        ));
    }

    #[test]
    fn a_field_that_a_row_does_not_have_is_refused() {
        assert!(matches!(
            announced().decode(&[2, 0b1000, 1]),
            Err(DecodeError::UnknownField { row: 1, .. })
        ));
    }

    #[test]
    fn announced_anew_it_starts_from_zeros() {
        let (mut tx, mut rx) = (announced(), announced());
        rx.decode(&tx.encode([(1, [5, 5, 5])])).unwrap();
        tx.announce(1);
        rx.announce(1);
        assert_eq!(
            rx.decode(&tx.encode([(1, [5, 0, 0])])),
            Ok(vec![(1, [5, 0, 0])])
        );
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(bodies in prop::collection::vec(prop::collection::vec((0u32..4, any::<[u64; 3]>()), 0..8), 0..4)) {
            let (mut tx, mut rx) = (announced(), announced());
            for rows in bodies {
                prop_assert_eq!(rx.decode(&tx.encode(rows.clone())), Ok(rows));
            }
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..64)) {
            announced().decode(&body).ok();
        }
    }
}
