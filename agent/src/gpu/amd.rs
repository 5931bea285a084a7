//! AMD GPUs by what amdgpu shows in sysfs (Documentation/gpu/amdgpu: thermal, ras, driver-misc).

use crate::kmsg::pci;
use crate::source::{Gathered, Info, Reading};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use weir_wire::signal::{Entity, Signal};

/// PCI vendor.
const AMD: &str = "0x1002";
/// PCI classes of GPUs that compute: display controllers and processing accelerators. Graphics
/// without them is what a server's console hangs on.
const CLASSES: [&str; 3] = ["0x0302", "0x0380", "0x1200"];

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// Device directories of the GPUs, by PCI address.
#[must_use]
pub fn devices(sysfs: &Path) -> BTreeMap<String, PathBuf> {
    let device = |card: PathBuf| {
        let name = card.file_name()?.to_str()?.strip_prefix("card")?.to_owned();
        // `card0-DP-1` is a connector.
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let dir = card.join("device");
        let class = text(&dir.join("class"))?;
        let computes = CLASSES.iter().any(|c| class.starts_with(c));
        if text(&dir.join("vendor"))? != AMD || !computes {
            return None;
        }
        let uevent = text(&dir.join("uevent")).unwrap_or_default();
        let slot = uevent
            .lines()
            .find_map(|l| l.strip_prefix("PCI_SLOT_NAME="));
        Some((slot.and_then(pci::address)?, dir))
    };
    entries(&sysfs.join("class/drm"))
        .into_iter()
        .filter_map(device)
        .collect()
}

/// `ue: 3\nce: 14`: errors not corrected, and corrected.
#[must_use]
pub fn ras(text: &str) -> (Option<u64>, Option<u64>) {
    let count = |key: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.trim().strip_prefix(key)?.trim().parse().ok())
    };
    (count("ue:"), count("ce:"))
}

/// `16.0 GT/s PCIe` as generation.
#[must_use]
pub fn pcie_generation(speed: &str) -> Option<u64> {
    let rate = speed.split(' ').next()?;
    let generations = ["2.5", "5.0", "8.0", "16.0", "32.0", "64.0"];
    let place = generations.iter().position(|g| *g == rate)?;
    u64::try_from(place + 1).ok()
}

/// Reads one GPU.
pub fn read(pci: &str, dir: &Path, out: &mut Gathered) {
    let mut put = |signal, value: Option<u64>| {
        if let Some(value) = value {
            out.put(Entity::Gpu, pci, signal, None, Reading::wide(value));
        }
    };
    for (signal, file) in [
        (Signal::GpuUtilisation, "gpu_busy_percent"),
        (Signal::GpuMemoryUsed, "mem_info_vram_used"),
        (Signal::GpuMemoryTotal, "mem_info_vram_total"),
        (Signal::PcieWidth, "current_link_width"),
        (Signal::PcieReplays, "pcie_replay_count"),
    ] {
        put(signal, number(&dir.join(file)));
    }
    let speed = text(&dir.join("current_link_speed"));
    put(
        Signal::PcieGeneration,
        speed.as_deref().and_then(pcie_generation),
    );
    for hwmon in entries(&dir.join("hwmon")) {
        // Microwatts; the first that the card has.
        let power = ["power1_average", "power1_input"];
        let power = power.iter().find_map(|file| number(&hwmon.join(file)));
        put(Signal::GpuPower, power.map(|microwatts| microwatts / 1000));
        for label in entries(&hwmon) {
            let name = label
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let Some(sensor) = name
                .strip_suffix("_label")
                .filter(|n| n.starts_with("temp"))
            else {
                continue;
            };
            let input = number(&hwmon.join(format!("{sensor}_input")));
            match text(&label).as_deref() {
                // The hottest spot is what the firmware acts on; edge is all that some cards have.
                Some("junction") => put(Signal::GpuTemperature, input),
                Some("mem") => put(Signal::GpuMemoryTemperature, input),
                _ => {}
            }
        }
    }
    let (mut uncorrected, mut corrected) = (None, None);
    for file in entries(&dir.join("ras")) {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name.ends_with("_err_count") {
            let (ue, ce) = ras(&text(&file).unwrap_or_default());
            uncorrected = sum(uncorrected, ue);
            corrected = sum(corrected, ce);
        }
    }
    put(Signal::EccUncorrected, uncorrected);
    put(Signal::EccCorrected, corrected);
    let facts = [
        ("name", text(&dir.join("product_name"))),
        ("uuid", text(&dir.join("unique_id"))),
        ("serial", text(&dir.join("serial_number"))),
        ("vbios", text(&dir.join("vbios_version"))),
        ("driver", Some("amdgpu".to_owned())),
    ];
    let known = |(label, value): (&'static str, Option<String>)| Some((label, value?));
    out.info.push(Info {
        kind: Entity::Gpu,
        entity: pci.to_owned(),
        labels: facts.into_iter().filter_map(known).collect(),
    });
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A card of the given files.
    fn card(root: &Path, index: u32, files: &[(&str, &str)]) {
        let dir = root.join(format!("class/drm/card{index}/device"));
        let uevent = format!(
            "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:{:02x}:00.0\n",
            0x0c + index
        );
        let common = [
            ("vendor", "0x1002\n"),
            ("class", "0x120000\n"),
            ("uevent", &uevent),
        ];
        for (file, text) in common.iter().chain(files) {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn eight_accelerators_read_and_a_console_card_is_none() {
        let root = tempfile::tempdir().unwrap();
        for index in 0..8 {
            card(
                root.path(),
                index,
                &[
                    ("gpu_busy_percent", "97\n"),
                    ("mem_info_vram_total", "206141652992\n"),
                    ("current_link_speed", "32.0 GT/s PCIe\n"),
                    ("current_link_width", "16\n"),
                    ("hwmon/hwmon4/power1_input", "652000000\n"),
                    ("hwmon/hwmon4/temp2_label", "junction\n"),
                    ("hwmon/hwmon4/temp2_input", "71000\n"),
                    ("hwmon/hwmon4/temp3_label", "mem\n"),
                    ("hwmon/hwmon4/temp3_input", "54000\n"),
                    ("ras/umc_err_count", "ue: 1\nce: 40\n"),
                    ("ras/gfx_err_count", "ue: 0\nce: 2\n"),
                    ("product_name", "AMD Instinct MI300X OAM\n"),
                ],
            );
        }
        card(root.path(), 8, &[("class", "0x030000\n")]);
        let found = devices(root.path());
        assert_eq!(found.len(), 8);
        let mut out = Gathered::default();
        for (pci, dir) in &found {
            read(pci, dir, &mut out);
        }
        let value = |signal| out.get(Entity::Gpu, "0000:0f:00.0", signal);
        for (signal, expected) in [
            (Signal::GpuUtilisation, 97),
            (Signal::PcieGeneration, 5),
            (Signal::GpuPower, 652_000),
            (Signal::GpuTemperature, 71_000),
            (Signal::GpuMemoryTemperature, 54_000),
            (Signal::EccUncorrected, 1),
            (Signal::EccCorrected, 42),
        ] {
            assert_eq!(value(signal), Some(expected), "{signal:?}");
        }
        assert_eq!(value(Signal::GpuMemoryUsed), None, "its file is not there");
        assert_eq!(out.info[0].labels["name"], "AMD Instinct MI300X OAM");
    }

    proptest! {
        #[test]
        fn garbage_is_absent(text in ".{0,40}") {
            let (ue, ce) = ras(&text);
            prop_assert!(ue.is_none() || text.contains("ue:"));
            prop_assert!(ce.is_none() || text.contains("ce:"));
            prop_assert!(pcie_generation(&text).is_none_or(|g| g <= 6));
        }
    }
}
