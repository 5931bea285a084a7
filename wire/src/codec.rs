//! What the packed parts of a frame have in common: numbers of variable length, and why a body is
//! refused.

/// Why a packed body was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the body ends in the middle of a number, at byte {at}")]
    Truncated { at: usize },
    #[error("the number at byte {at} of the body has more than 65 bits")]
    Overlong { at: usize },
    #[error("the body names column {column}, the schema has {columns}")]
    OutOfSchema { column: u128, columns: usize },
    #[error("the body has an empty run at byte {at}")]
    EmptyRun { at: usize },
    #[error("the body names row {row}, which was not announced")]
    UnknownRow { row: u64 },
    #[error("row {row} of the body names fields {mask:#b}, a row has {fields}")]
    UnknownField { row: u64, mask: u128, fields: usize },
}

/// Maps small magnitudes of either sign to small numbers.
pub(crate) fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)).cast_unsigned()
}

pub(crate) fn unzigzag(v: u64) -> i64 {
    (v >> 1).cast_signed() ^ -((v & 1).cast_signed())
}

/// Appends `v` in groups of seven bits, least significant first.
pub(crate) fn put_varint(mut v: u128, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(0x80 | u8::try_from(v & 0x7f).unwrap_or(0x7f));
        v >>= 7;
    }
    out.push(u8::try_from(v).unwrap_or(0x7f));
}

/// Reads the number at `at`, of up to 70 bits, and steps over it.
#[inline]
pub(crate) fn get_varint(body: &[u8], at: &mut usize) -> Result<u128, DecodeError> {
    match body.get(*at) {
        Some(byte) if *byte < 0x80 => {
            *at += 1;
            Ok(u128::from(*byte))
        }
        Some(_) | None => get_long_varint(body, at),
    }
}

/// The same of a number that may have several bytes. Most of them have at most nine: 63 bits.
fn get_long_varint(body: &[u8], at: &mut usize) -> Result<u128, DecodeError> {
    let start = *at;
    let mut low = 0u64;
    for shift in (0..63).step_by(7) {
        let byte = *body.get(*at).ok_or(DecodeError::Truncated { at: *at })?;
        *at += 1;
        low |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(u128::from(low));
        }
    }
    let byte = *body.get(*at).ok_or(DecodeError::Truncated { at: *at })?;
    *at += 1;
    if byte < 0x80 {
        return Ok(u128::from(low) | u128::from(byte) << 63);
    }
    Err(DecodeError::Overlong { at: start })
}

/// Reads a number that must have at most 64 bits.
pub(crate) fn get_u64(body: &[u8], at: &mut usize) -> Result<u64, DecodeError> {
    let start = *at;
    u64::try_from(get_varint(body, at)?).map_err(|_| DecodeError::Overlong { at: start })
}
