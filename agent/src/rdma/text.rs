//! The texts of sysfs's verbs files (drivers/infiniband/core/sysfs.c). Pure.

/// A counter: `None` for what is no number, such as `N/A (no PMA)`.
#[must_use]
pub fn counter(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// `4: ACTIVE` as number and name.
#[must_use]
pub fn state(text: &[u8]) -> Option<(u8, &str)> {
    let (number, name) = std::str::from_utf8(text).ok()?.trim().split_once(':')?;
    Some((number.trim().parse().ok()?, name.trim()))
}

/// The rate that a port trained to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    pub bps: u64,
    /// Lanes; `None` if the text does not say.
    pub lanes: Option<u8>,
    /// Name of the signalling rate, such as `NDR`; empty if the text does not say (SDR).
    pub name: String,
}

/// `400 Gb/sec (4X NDR)`, `2.5 Gb/sec (1X)`.
#[must_use]
pub fn rate(text: &[u8]) -> Option<Rate> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let (number, rest) = text.split_once(" Gb/sec")?;
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let tenth: u64 = tenth.parse().ok().filter(|t| *t < 10)?;
    let whole: u64 = whole.parse().ok().filter(|w| *w < 1_000_000)?;
    let inside = rest
        .trim()
        .strip_prefix('(')
        .and_then(|r| r.strip_suffix(')'));
    let (lanes, name) = match inside {
        Some(inside) => inside.split_once(' ').unwrap_or((inside, "")),
        None => ("", ""),
    };
    Some(Rate {
        bps: whole * 1_000_000_000 + tenth * 100_000_000,
        lanes: lanes.strip_suffix('X').and_then(|l| l.parse().ok()),
        name: name.to_owned(),
    })
}

/// A GID that is worth telling: neither zero nor link local.
#[must_use]
pub fn global_gid(text: &[u8]) -> Option<String> {
    let gid: std::net::Ipv6Addr = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
    let link_local = gid.segments()[0] & 0xffc0 == 0xfe80;
    (!gid.is_unspecified() && !link_local).then(|| gid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_in_the_place_of_a_number_is_absent() {
        assert_eq!(counter(b"N/A (no PMA)\n"), None);
        assert_eq!(counter(b"18446744073709551615\n"), Some(u64::MAX));
        assert_eq!(counter(b""), None);
    }

    #[test]
    fn rates_are_read_in_all_their_forms() {
        let rate_of =
            |text: &str| rate(text.as_bytes()).map(|r| (r.bps / 100_000_000, r.lanes, r.name));
        let named = |tenths, lanes, name: &str| Some((tenths, Some(lanes), name.to_owned()));
        assert_eq!(rate_of("200 Gb/sec (2X NDR)\n"), named(2000, 2, "NDR"));
        assert_eq!(rate_of("25 Gb/sec (1X EDR)"), named(250, 1, "EDR"));
        assert_eq!(rate_of("10 Gb/sec (4X)"), named(100, 4, ""));
        assert_eq!(rate_of("2.5 Gb/sec (1X SDR)"), named(25, 1, "SDR"));
        assert_eq!(rate_of("fast"), None);
    }

    #[test]
    fn a_state_has_a_number_and_a_name() {
        assert_eq!(state(b"2: INIT\n"), Some((2, "INIT")));
        assert_eq!(state(b"5: LinkUp"), Some((5, "LinkUp")));
        assert_eq!(state(b"ACTIVE"), None);
    }

    #[test]
    fn a_global_gid_is_neither_zero_nor_link_local() {
        assert_eq!(
            global_gid(b"0000:0000:0000:0000:0000:0000:0000:0000\n"),
            None
        );
        assert_eq!(
            global_gid(b"fe80:0000:0000:0000:0aa4:16ff:fe1c:0001\n"),
            None
        );
        let mapped = global_gid(b"0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        assert_eq!(mapped.as_deref(), Some("::ffff:10.0.0.1"));
    }

    proptest! {
        #[test]
        fn garbage_is_absent(bytes in prop::collection::vec(any::<u8>(), 0..64), tail in "[0-9. ]{0,12} ?Gb/sec ?.{0,8}") {
            let read = |text: &[u8]| {
                (counter(text), state(text).map(|(n, _)| n), global_gid(text), rate(text))
            };
            prop_assert_eq!(read(&bytes), read(&bytes));
            prop_assert!(rate(tail.as_bytes()).is_none_or(|r| r.bps < 1 << 60));
        }
    }
}
