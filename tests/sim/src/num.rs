//! The few conversions between number types, each with why it cannot lose anything that matters.

/// A length or position as an index of ours. Tables here stay far below 2^32 entries.
///
/// # Panics
/// Above 2^32 - 1 entries.
#[must_use]
pub fn index(n: usize) -> u32 {
    u32::try_from(n).expect("tables stay below 2^32 entries")
}

/// A float of picoseconds, bytes or bits per second as an integer: what is below 0 becomes 0.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates at both ends, which is what is wanted"
)]
pub fn whole(x: f64) -> u64 {
    x as u64
}

/// The low 32 bits.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for"
)]
pub fn low32(x: u64) -> u32 {
    x as u32
}

/// A position in a table of this process.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "positions come from lengths of tables in memory"
)]
pub fn position(x: u64) -> usize {
    x as usize
}
