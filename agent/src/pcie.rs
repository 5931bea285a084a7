//! What a device's PCIe link runs at and could run at, from sysfs
//! (Documentation/ABI/testing/sysfs-bus-pci: `current_link_*`, `max_link_*`).

use crate::gpu::pcie_generation;
use std::fs;
use std::path::Path;
use weir_wire::signal::Signal;

/// Signal of the present state, of the highest, end of the files' names, and how they read.
type Row = (Signal, Signal, &'static str, fn(&str) -> Option<u64>);

const ROWS: [Row; 2] = [
    (
        Signal::PcieGeneration,
        Signal::PcieMaxGeneration,
        "link_speed",
        pcie_generation,
    ),
    (Signal::PcieWidth, Signal::PcieMaxWidth, "link_width", lanes),
];

/// Generation and lanes of the link above a device's directory, and the most that both its ends can.
/// What is not told is absent, as of virtual functions and of devices that stand on no PCI function.
#[must_use]
pub fn link(device: &Path) -> Vec<(Signal, u64)> {
    let mut found = Vec::new();
    let Ok(device) = fs::canonicalize(device) else {
        return found;
    };
    for (now, most, file, parse) in ROWS {
        let read = |dir: &Path, which: &str| {
            let text = fs::read_to_string(dir.join(format!("{which}_{file}"))).ok()?;
            parse(text.trim())
        };
        found.extend(read(&device, "current").map(|value| (now, value)));
        // A narrow or slow slot is no fault of the link.
        let slot = device.parent().and_then(|slot| read(slot, "max"));
        let own = read(&device, "max");
        found.extend(own.map(|own| (most, slot.map_or(own, |slot| slot.min(own)))));
    }
    found
}

/// `current_link_width` is 0 or 255 where the device does not answer.
fn lanes(text: &str) -> Option<u64> {
    text.parse().ok().filter(|lanes| (1..=32).contains(lanes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// A device below a slot, with these speeds and widths: now, most, of the slot.
    fn tree(root: &Path, speed: [&str; 3], width: [&str; 3]) -> PathBuf {
        let slot = root.join("pci0000:00/0000:00:01.0");
        let device = slot.join("0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        for (file, [now, most, of_slot]) in [("link_speed", speed), ("link_width", width)] {
            fs::write(device.join(format!("current_{file}")), now).unwrap();
            fs::write(device.join(format!("max_{file}")), most).unwrap();
            fs::write(slot.join(format!("max_{file}")), of_slot).unwrap();
        }
        device
    }

    #[test]
    fn the_most_is_what_both_ends_can() {
        let root = tempfile::tempdir().unwrap();
        let device = tree(
            root.path(),
            ["16.0 GT/s PCIe\n", "32.0 GT/s PCIe\n", "16.0 GT/s PCIe\n"],
            ["8\n", "16\n", "16\n"],
        );
        let expected = [
            (Signal::PcieGeneration, 4),
            (Signal::PcieMaxGeneration, 4),
            (Signal::PcieWidth, 8),
            (Signal::PcieMaxWidth, 16),
        ];
        assert_eq!(link(&device), expected);
    }

    #[test]
    fn what_a_device_does_not_tell_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let unknown = ["Unknown\n", "", "32.0 GT/s PCIe\n"];
        let device = tree(root.path(), unknown, ["0\n", "255\n", "16\n"]);
        assert_eq!(link(&device), []);
        assert_eq!(link(&device.join("virtio0")), []);
    }

    proptest! {
        #[test]
        fn lanes_are_1_to_32(text in "\\PC{0,20}") {
            prop_assert!(lanes(&text).is_none_or(|l| (1..=32).contains(&l)));
        }
    }
}
