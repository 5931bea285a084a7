//! One value under a canonical signal.

use serde::{Serialize, Serializer};
use weir_wire::signal::Signal;

/// A value as the wire carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reading {
    #[serde(serialize_with = "name")]
    pub signal: Signal,
    /// Priority or lane, where [`Signal::index`] tells values apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u8>,
    /// In the signal's unit.
    pub value: u64,
    /// It stands at the maximum of its register: no rate can be made of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub saturated: bool,
}

impl Reading {
    /// A count, or another whole number.
    #[must_use]
    pub fn counted(signal: Signal, value: u64) -> Reading {
        Reading {
            signal,
            index: None,
            value,
            saturated: false,
        }
    }

    #[must_use]
    pub fn of(self, index: u8) -> Reading {
        Reading {
            index: Some(index),
            ..self
        }
    }

    /// A measured value, rounded to whole units; `None` if it is negative or no number that fits.
    #[must_use]
    pub fn measured(signal: Signal, value: f64) -> Option<Reading> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be within the integers that a double holds exactly"
        )]
        let whole = (0.0..9e15).contains(&value).then(|| value.round() as u64)?;
        Some(Reading::counted(signal, whole))
    }
}

fn name<S: Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(signal.name())
}
