//! The text of sysfs files under `/sys/class/infiniband` (drivers/infiniband/core/sysfs.c writes
//! it), and the patterns that choose devices.

/// A state with its number, such as `4: ACTIVE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// As in the InfiniBand architecture. Of a port: 1 down, 2 initialize, 3 armed, 4 active.
    /// Physical: 2 polling, 3 disabled, 5 link up, 6 error recovery.
    pub number: u8,
    pub name: String,
}

/// What a link runs at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second of all lanes together.
    pub bps: u64,
    pub lanes: u8,
    /// Generation, such as `NDR`; `None` where the driver gives none.
    pub generation: Option<String>,
}

/// A counter: a decimal number and nothing else.
///
/// `N/A (no PMA)` is the content of a file where a port has no performance management agent. All
/// bits set is what a device says of a counter that it does not have (ionic), or that has left the
/// bus. Both are `None`.
#[must_use]
pub fn counter(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|v| *v != u64::MAX)
}

/// The first line without the space around it; `None` if nothing is left.
#[must_use]
pub fn line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// `4: ACTIVE` or `5: LinkUp`.
#[must_use]
pub fn state(text: &str) -> Option<State> {
    let (number, name) = text.trim().split_once(':')?;
    Some(State {
        number: number.parse().ok()?,
        name: name.trim().to_owned(),
    })
}

/// `200 Gb/sec (2X NDR)`, `2.5 Gb/sec (1X SDR)`, `10 Gb/sec (4X)`.
#[must_use]
pub fn rate(text: &str) -> Option<Rate> {
    let (gigabits, link) = text.trim().split_once(" Gb/sec (")?;
    let link = link.strip_suffix(')')?;
    let (lanes, generation) = link.split_once('X')?;
    let generation = generation.trim();
    Some(Rate {
        bps: billionths(gigabits)?,
        lanes: lanes.parse().ok().filter(|l| *l > 0)?,
        generation: (!generation.is_empty()).then(|| generation.to_owned()),
    })
}

/// A decimal number in billionths: `2.5` is 2 500 000 000.
fn billionths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) || !(1..=9).contains(&fraction.len()) {
        return None;
    }
    let places = u32::try_from(9 - fraction.len()).ok()?;
    let fraction = fraction.parse::<u64>().ok()? * 10u64.pow(places);
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(fraction)
}

/// A GUID or GID that is not all zeros, which stands for an empty entry.
#[must_use]
pub fn identifier(text: &str) -> Option<&str> {
    let text = text.trim();
    let sound = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    (sound && text.bytes().any(|b| b != b'0' && b != b':')).then_some(text)
}

/// Whether the name of a directory is a PCI address, such as `0000:18:00.0`.
#[must_use]
pub fn is_pci_address(name: &str) -> bool {
    let Some((bus, function)) = name.rsplit_once('.') else {
        return false;
    };
    let hex = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit());
    let mut parts = bus.split(':');
    hex(function)
        && parts.by_ref().take(3).filter(|p| hex(p)).count() == 3
        && parts.next().is_none()
}

/// Which devices are read: those that an `include` names, or all if there is none, without those
/// that an `exclude` names. A trailing `*` stands for any end of the name.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl Filter {
    /// Whether a device is read.
    #[must_use]
    pub fn passes(&self, device: &str) -> bool {
        let named = |patterns: &[String]| patterns.iter().any(|p| matches(p, device));
        (self.include.is_empty() || named(&self.include)) && !named(&self.exclude)
    }
}

/// Whether a name is the pattern's; a trailing `*` stands for any end.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_counter_is_a_number_and_nothing_else() {
        assert_eq!(counter(b"21278189006\n"), Some(21_278_189_006));
        for absent in [
            "N/A (no PMA)\n",
            "",
            "\n",
            "-1",
            "+1",
            "0x10",
            "12 34",
            "1.5",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            assert_eq!(counter(absent.as_bytes()), None, "{absent:?}");
        }
        assert_eq!(counter(b"\xff\xfe"), None);
    }

    fn check_rate(text: &str, bps: u64, lanes: u8, generation: Option<&str>) {
        let expected = Rate {
            bps,
            lanes,
            generation: generation.map(str::to_owned),
        };
        assert_eq!(rate(text), Some(expected), "{text}");
    }

    #[test]
    fn rates_in_all_their_forms() {
        check_rate("200 Gb/sec (2X NDR)", 200_000_000_000, 2, Some("NDR"));
        check_rate("25 Gb/sec (1X EDR)\n", 25_000_000_000, 1, Some("EDR"));
        check_rate("10 Gb/sec (4X)", 10_000_000_000, 4, None);
        check_rate("2.5 Gb/sec (1X SDR)", 2_500_000_000, 1, Some("SDR"));
        check_rate("800 Gb/sec (4X XDR)", 800_000_000_000, 4, Some("XDR"));
        for bad in [
            "",
            "Gb/sec",
            "x Gb/sec (4X)",
            "1. Gb/sec (4X)",
            "10 Gb/sec (0X)",
            "10 Gb/sec (4X",
            "99999999999999 Gb/sec (4X)",
        ] {
            assert_eq!(rate(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn states_have_a_number_and_a_name() {
        let link_up = State {
            number: 5,
            name: "LinkUp".into(),
        };
        assert_eq!(state("5: LinkUp\n"), Some(link_up));
        assert_eq!(state("ACTIVE"), None);
        assert_eq!(state(": ACTIVE"), None);
    }

    #[test]
    fn an_empty_entry_is_no_identifier() {
        assert_eq!(identifier("0000:0000:0000:0000"), None);
        assert_eq!(
            identifier("0a7f:bc12:45ef:d23b\n"),
            Some("0a7f:bc12:45ef:d23b")
        );
        assert_eq!(identifier("N/A"), None);
        assert_eq!(identifier(""), None);
    }

    #[test]
    fn pci_addresses_are_told_from_other_names() {
        assert!(is_pci_address("0000:18:00.0"));
        for other in [
            "virtio0",
            "mlx5_core.sf.4",
            "pci0000:00",
            "0000:18:00",
            "a:b:c:d.0",
            "",
        ] {
            assert!(!is_pci_address(other), "{other}");
        }
    }

    #[test]
    fn an_exclude_beats_an_include() {
        let filter = Filter {
            include: vec!["mlx5_*".into()],
            exclude: vec!["mlx5_bond_0".into()],
        };
        assert!(filter.passes("mlx5_3"));
        assert!(!filter.passes("mlx5_bond_0"));
        assert!(!filter.passes("irdma0"));
        assert!(Filter::default().passes("anything"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = (counter(&bytes), line(&bytes), state(&text), rate(&text), identifier(&text));
            let _ = (is_pci_address(&text), matches(&text, &text));
        }

        #[test]
        fn near_rates_are_read_without_a_panic(text in "[0-9]{0,22}(\\.[0-9]{0,12})? Gb/sec \\([0-9]{0,4}X?[A-Z ]{0,5}\\)") {
            std::hint::black_box(rate(&text));
        }

        #[test]
        fn every_number_comes_back(value in 0..u64::MAX) {
            prop_assert_eq!(counter(format!("{value}\n").as_bytes()), Some(value));
        }
    }
}
