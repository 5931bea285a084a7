//! Global identifiers of InfiniBand, in one spelling.

use serde::{Serialize, Serializer};
use std::fmt;

/// An EUI-64. Tools print it with or without `0x`, with its leading zeros or without them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guid(pub u64);

impl Guid {
    /// Reads any of the spellings; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Guid> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        // from_str_radix would take a sign.
        if digits.is_empty() || digits.len() > 16 || !digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Guid)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:016x}", self.0)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_and_prefixes_make_no_difference() {
        let guid = Guid::parse("0c42a10300303dbe");
        assert_eq!(guid, Guid::parse("c42a10300303dbe"));
        assert_eq!(guid, Guid::parse("0xC42A10300303DBE"));
        assert_eq!(guid.unwrap().to_string(), "0x0c42a10300303dbe");
        for bad in ["", "0x", "+1", "12345678901234567", "xyz"] {
            assert_eq!(Guid::parse(bad), None, "{bad:?}");
        }
    }
}
