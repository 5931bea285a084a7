//! What the words and bits of GPU drivers mean. Pure functions; bad input is `None`, never 0.

/// Brings a PCI address to the form that the kernel prints: `dddd:bb:dd.f` in lower case.
///
/// Takes NVML's eight digits of domain, the bare `bb:dd.f`, and `dddd:bb:dd` without a function,
/// which stands for function 0. A domain above 0xffff keeps its digits. `None` if it is no address.
#[must_use]
pub fn pci_address(text: &str) -> Option<String> {
    let (path, function) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let mut parts = path.rsplit(':');
    let device = hex(parts.next()?, 2, 0x1f)?;
    let bus = hex(parts.next()?, 2, 0xff)?;
    let domain = parts.next().map_or(Some(0), |d| hex(d, 8, u32::MAX))?;
    let function = hex(function, 1, 7)?;
    match parts.next() {
        Some(_) => None,
        None => Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}")),
    }
}

fn hex(text: &str, digits: usize, max: u32) -> Option<u32> {
    if text.len() > digits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok().filter(|n| *n <= max)
}

/// Bits of nvmlClocksEventReasons (nvml.h) and what they say, the gravest first.
const CLOCK_REASONS: [(u64, &str); 10] = [
    (0x8, "hardware slowdown"),
    (0x80, "hardware power brake"),
    (0x40, "hardware thermal slowdown"),
    (0x20, "software thermal slowdown"),
    (0x4, "software power cap"),
    (0x10, "sync boost"),
    (0x2, "application clocks"),
    (0x100, "display clocks"),
    (0x1, "idle"),
    (!0x1ff, "unknown reason"),
];

/// The reasons for which the clocks are not at their highest, the gravest first; empty if none.
#[must_use]
pub fn clock_reasons(bits: u64) -> Vec<&'static str> {
    CLOCK_REASONS
        .iter()
        .filter(|(mask, _)| bits & mask != 0)
        .map(|(_, word)| *word)
        .collect()
}

/// Errors of one block of an AMD GPU. `None`: the block does not count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ras {
    /// Corrected ("ce").
    pub corrected: Option<u64>,
    /// Not corrected ("ue").
    pub uncorrected: Option<u64>,
}

/// Reads `ras/*_err_count` (drivers/gpu/drm/amd/amdgpu/amdgpu_ras.c): one `ue: N` and one `ce: N`
/// line, in newer kernels a `de: N` of deferred errors too.
#[must_use]
pub fn ras(text: &str) -> Ras {
    let count = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .and_then(|(_, value)| value.trim().parse().ok())
    };
    Ras {
        corrected: count("ce"),
        uncorrected: count("ue"),
    }
}

/// Transfer rates per lane and the generation of PCIe that has them.
const GENERATIONS: [(&str, u64); 6] = [
    ("2.5", 1),
    ("5.0", 2),
    ("8.0", 3),
    ("16.0", 4),
    ("32.0", 5),
    ("64.0", 6),
];

/// Reads `current_link_speed` (drivers/pci/pci-sysfs.c), such as `32.0 GT/s PCIe`, as a generation.
#[must_use]
pub fn pcie_generation(text: &str) -> Option<u64> {
    let (rate, unit) = text.trim().split_once(' ')?;
    GENERATIONS
        .iter()
        .find(|(name, _)| *name == rate && unit.starts_with("GT/s"))
        .map(|(_, generation)| *generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_an_address_is_one() {
        for spelling in [
            "00000000:5A:00.0",
            "0000:5a:00.0",
            "0000:5A:00",
            "5a:00.0",
            " 0000:5a:00.0\n",
        ] {
            assert_eq!(
                pci_address(spelling).as_deref(),
                Some("0000:5a:00.0"),
                "{spelling}"
            );
        }
        assert_eq!(
            pci_address("00010000:01:1F.7").as_deref(),
            Some("10000:01:1f.7")
        );
    }

    #[test]
    fn what_is_no_address_is_none() {
        for bad in [
            "",
            "N/A",
            "5a",
            ":",
            "0000:5a:20.0",
            "0000:5a:00.8",
            "0000:100:00.0",
            "0000:+a:00.0",
            "1:2:3:4.0",
            "000000000:5a:00.0",
        ] {
            assert_eq!(pci_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn clock_reasons_begin_with_the_gravest() {
        assert_eq!(
            clock_reasons(0x4 | 0x40 | 0x1),
            ["hardware thermal slowdown", "software power cap", "idle"]
        );
        assert_eq!(clock_reasons(0), [""; 0]);
        assert_eq!(clock_reasons(0x200), ["unknown reason"]);
    }

    #[test]
    fn ras_counts() {
        let both = Ras {
            corrected: Some(7),
            uncorrected: Some(2),
        };
        assert_eq!(ras("ue: 2\nce: 7\n"), both);
        assert_eq!(ras("ue: 2\nce: 7\nde: 1\n"), both);
        assert_eq!(ras("ue: 2\n").corrected, None);
        assert_eq!(ras("ue: N/A\nce: -1\n"), Ras::default());
        assert_eq!(ras("query ras error is not supported\n"), Ras::default());
    }

    #[test]
    fn link_speeds() {
        assert_eq!(pcie_generation("32.0 GT/s PCIe\n"), Some(5));
        assert_eq!(pcie_generation("2.5 GT/s PCIe"), Some(1));
        assert_eq!(pcie_generation("8.0 GT/s"), Some(3));
        assert_eq!(pcie_generation("Unknown\n"), None);
        assert_eq!(pcie_generation("Unknown speed"), None);
        assert_eq!(pcie_generation("16.0 Gb/s"), None);
    }

    proptest! {
        #[test]
        fn anything_may_be_read(text in "\\PC{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for text in [text.as_str(), &String::from_utf8_lossy(&bytes)] {
                if let Some(address) = pci_address(text) {
                    prop_assert_eq!(pci_address(&address), Some(address.clone()));
                }
                prop_assert!(text.contains(':') || ras(text) == Ras::default());
                prop_assert!(text.contains("GT/s") || pcie_generation(text).is_none());
            }
        }

        #[test]
        fn addresses_come_back(domain: u32, bus in 0u32..0x100, device in 0u32..0x20, function in 0u32..8) {
            let kernel = format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}");
            let nvml = format!("{domain:08X}:{bus:02X}:{device:02X}.{function:X}");
            prop_assert_eq!(pci_address(&kernel), Some(kernel.clone()));
            prop_assert_eq!(pci_address(&nvml), Some(kernel));
        }

        #[test]
        fn ras_counts_come_back(ue: u64, ce: u64) {
            let read = ras(&format!("ue: {ue}\nce: {ce}\n"));
            prop_assert_eq!(read, Ras { corrected: Some(ce), uncorrected: Some(ue) });
        }

        #[test]
        fn every_bit_has_a_word(bits: u64) {
            prop_assert_eq!(clock_reasons(bits).is_empty(), bits == 0);
        }
    }
}
