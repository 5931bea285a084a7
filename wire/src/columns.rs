//! Packed column deltas: the body of a frame.
//!
//! A frame says only what changed since the frame before. The body is a list of runs:
//!
//! ```text
//! run    := varint(columns skipped, unchanged) varint(columns that follow, n >= 1) token{n}
//! token  := varint(0)                          the column is absent now
//!         | varint(1 + zigzag(value - last))   last is 0 after a key frame or an absence
//! ```
//!
//! Why this and not protobuf's packed `sint64`: most columns of a port stand still (errors,
//! drops, link state), and a run costs two bytes for all of them together; the rest costs what
//! its change needs. Measured in the lab it is below one byte a sample.
//!
//! Decoding is all or nothing: a body that does not parse leaves the state as it was.

use crate::codec::{DecodeError, get_varint, put_varint, unzigzag, zigzag};

/// Most columns in one schema: 1,024 ports with 20 signals each.
pub const COLUMNS_MAX: usize = 20_480;

/// The column state of one side of a stream: what the last frame left.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Zero where a column is absent.
    values: Vec<u64>,
    /// Which are not absent, 64 to a word.
    present: Vec<u64>,
}

/// A column of which a frame told something else than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub column: usize,
    /// What it held before; `None` if it was absent.
    pub before: Option<u64>,
}

impl Columns {
    /// State for a schema of `columns`, all absent.
    #[must_use]
    pub fn new(columns: usize) -> Columns {
        Columns {
            values: vec![0; columns],
            present: vec![0; columns.div_ceil(64)],
        }
    }

    /// Columns of the schema, absent ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Value of a column after the last frame; `None` is absent, which is not zero, or out of the schema.
    #[inline]
    #[must_use]
    pub fn get(&self, column: usize) -> Option<u64> {
        let value = *self.values.get(column)?;
        (self.present[column / 64] >> (column % 64) & 1 == 1).then_some(value)
    }

    /// Puts a value in place of a column's; returns what it was. The column must be one of the schema.
    #[inline]
    pub fn replace(&mut self, column: usize, value: Option<u64>) -> Option<u64> {
        let before = self.get(column);
        let bit = 1 << (column % 64);
        match value {
            Some(_) => self.present[column / 64] |= bit,
            None => self.present[column / 64] &= !bit,
        }
        self.values[column] = value.unwrap_or(0);
        before
    }

    /// Forgets everything, as before a key frame.
    pub fn clear(&mut self) {
        self.values.fill(0);
        self.present.fill(0);
    }

    /// Appends the changes from the state to `sample` to `out` and makes `sample` the state.
    ///
    /// `sample` must have the schema's length; what is missing counts as absent.
    pub fn encode(&mut self, sample: &[Option<u64>], out: &mut Vec<u8>) {
        let mut next = 0;
        let mut written = 0;
        while next < self.values.len() {
            let changed = |i: usize| sample.get(i).copied().flatten() != self.get(i);
            if !changed(next) {
                next += 1;
                continue;
            }
            let start = next;
            // A single unchanged column inside a run costs one byte, a new run two.
            while next < self.values.len()
                && (changed(next) || (next + 1 < self.values.len() && changed(next + 1)))
            {
                next += 1;
            }
            put_varint((start - written) as u128, out);
            put_varint((next - start) as u128, out);
            for i in start..next {
                let new = sample.get(i).copied().flatten();
                let token = new.map_or(0, |v| {
                    1 + u128::from(zigzag(v.wrapping_sub(self.values[i]).cast_signed()))
                });
                put_varint(token, out);
                self.replace(i, new);
            }
            written = next;
        }
    }

    /// Applies a frame's body; returns the columns that it names, in ascending order.
    ///
    /// # Errors
    /// [`DecodeError`]; the state is then unchanged.
    pub fn decode(&mut self, body: &[u8]) -> Result<Vec<Change>, DecodeError> {
        // No change takes less than a byte.
        let mut changes = Vec::with_capacity(body.len().min(self.values.len()));
        let mut at = 0;
        let mut column = 0usize;
        let columns = self.values.len();
        let in_schema = |column: usize, n: u128| {
            usize::try_from(n)
                .ok()
                .and_then(|n| column.checked_add(n))
                .filter(|end| *end <= columns)
                .ok_or(DecodeError::OutOfSchema {
                    column: column as u128 + n,
                    columns,
                })
        };
        while at < body.len() {
            column = in_schema(column, get_varint(body, &mut at)?)?;
            let run_at = at;
            let end = in_schema(column, get_varint(body, &mut at)?)?;
            if end == column {
                return Err(DecodeError::EmptyRun { at: run_at });
            }
            while column < end {
                let token = get_varint(body, &mut at)?;
                let value = match token.checked_sub(1) {
                    None => None,
                    Some(delta) => {
                        let delta =
                            u64::try_from(delta).map_err(|_| DecodeError::Overlong { at })?;
                        Some(self.values[column].wrapping_add(unzigzag(delta).cast_unsigned()))
                    }
                };
                // What it holds from now on, until all of the body is known to be sound.
                let before = value;
                changes.push(Change { column, before });
                column += 1;
            }
        }
        for change in &mut changes {
            change.before = self.replace(change.column, change.before);
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(columns: &Columns) -> Vec<Option<u64>> {
        (0..columns.len()).map(|n| columns.get(n)).collect()
    }

    #[test]
    fn an_unchanged_sample_costs_nothing() {
        let mut columns = Columns::new(3);
        let sample = [Some(7), None, Some(0)];
        let mut body = Vec::new();
        columns.encode(&sample, &mut body);
        body.clear();
        columns.encode(&sample, &mut body);
        assert!(body.is_empty());
    }

    #[test]
    fn absent_is_not_zero() {
        let (mut tx, mut rx) = (Columns::new(2), Columns::new(2));
        for sample in [[Some(0), None], [None, Some(0)]] {
            let mut body = Vec::new();
            tx.encode(&sample, &mut body);
            rx.decode(&body).unwrap();
            assert_eq!(all(&rx), sample);
        }
    }

    #[test]
    fn a_truncated_body_changes_nothing() {
        let mut columns = Columns::new(2);
        columns.decode(&[0, 2, 11]).unwrap_err();
        assert_eq!(all(&columns), [None, None]);
    }

    #[test]
    fn a_run_past_the_schema_is_refused() {
        assert!(matches!(
            Columns::new(2).decode(&[1, 2, 1, 1]),
            Err(DecodeError::OutOfSchema {
                column: 3,
                columns: 2
            })
        ));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(samples in prop::collection::vec(prop::collection::vec(any::<Option<u64>>(), 9), 1..8)) {
            let (mut tx, mut rx) = (Columns::new(9), Columns::new(9));
            for sample in samples {
                let mut body = Vec::new();
                tx.encode(&sample, &mut body);
                let had = all(&rx);
                let mut before = sample.clone();
                for change in rx.decode(&body).unwrap() {
                    before[change.column] = change.before;
                }
                prop_assert_eq!(all(&rx), sample);
                prop_assert_eq!(before, had);
            }
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut columns = Columns::new(5);
            if columns.decode(&body).is_err() {
                prop_assert_eq!(all(&columns), [None; 5]);
            }
        }
    }
}
