//! AMD GPUs through amdgpu's sysfs (Documentation/gpu/amdgpu in the kernel), without ROCm.

use super::presence::{Presence, gpu_back, gpu_lost};
use super::text::{Ras, pci_address, ras};
use crate::pcie;
use crate::source::{Gathered, Info, RawCounter, RawKind, Reading};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

const VENDOR: &str = "0x1002";
/// 3D controller, other display controller, processing accelerator: what compute GPUs call
/// themselves. A VGA controller (0x0300) drives a screen.
const CLASSES: [&str; 3] = ["0x0302", "0x0380", "0x1200"];
/// How long it stands which cards there are.
const SCAN: Duration = Duration::from_secs(60);
/// How long error counts and the link's state stand: each count is a query to the firmware.
const SLOW: Duration = Duration::from_secs(10);

/// The AMD GPUs under one root of sysfs.
#[derive(Debug)]
pub struct Amd {
    drm: PathBuf,
    /// By PCI address.
    cards: BTreeMap<String, Card>,
    scan_at: Duration,
}

#[derive(Debug)]
struct Card {
    /// `class/drm/cardN/device`.
    device: PathBuf,
    sensors: Vec<Sensor>,
    /// Name of the block and its file.
    ras: Vec<(String, PathBuf)>,
    info: BTreeMap<&'static str, String>,
    slow: Slow,
    slow_at: Duration,
    presence: Presence,
}

#[derive(Debug, Default)]
struct Slow {
    columns: Vec<(Signal, u64)>,
    raw: Vec<(String, u64)>,
}

/// A file with one number, and how that gives a signal's unit.
#[derive(Debug)]
struct Sensor {
    signal: Signal,
    file: PathBuf,
    divisor: u64,
    /// Answered by the hardware, not from the driver's memory.
    live: bool,
}

/// Facts that make up the labels, by file.
const INFO: [(&str, &str); 4] = [
    ("name", "product_name"),
    ("serial", "serial_number"),
    ("uuid", "unique_id"),
    ("vbios", "vbios_version"),
];

impl Amd {
    #[must_use]
    pub fn new(sysfs: &Path) -> Amd {
        Amd {
            drm: sysfs.join("class/drm"),
            cards: BTreeMap::new(),
            scan_at: Duration::ZERO,
        }
    }

    /// Reads every card and returns how many are known, lost ones too.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> usize {
        let retried = |card: &Card| card.presence.is_lost() && card.presence.due(now);
        if now >= self.scan_at || self.cards.values().any(retried) {
            self.scan();
            self.scan_at = now + SCAN;
        }
        for (address, card) in &mut self.cards {
            card.poll(address, now, out);
        }
        self.cards.len()
    }

    /// Takes up new cards, and lost ones anew: a reset may have renumbered their files.
    fn scan(&mut self) {
        for entry in fs::read_dir(&self.drm).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_prefix("card").unwrap_or_default();
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let device = entry.path().join("device");
            let Some(address) = compute_gpu(&device) else {
                continue;
            };
            match self.cards.get_mut(&address) {
                Some(card) if card.presence.is_lost() => card.reopen(device),
                Some(_) => {}
                None => {
                    self.cards
                        .insert(address.clone(), Card::open(&address, device));
                }
            }
        }
    }
}

/// PCI address of a device that is an AMD GPU for computing.
fn compute_gpu(device: &Path) -> Option<String> {
    let is = |file: &str, known: &[&str]| {
        read(&device.join(file)).is_some_and(|text| known.iter().any(|k| text.starts_with(k)))
    };
    if !is("vendor", &[VENDOR]) || !is("class", &CLASSES) {
        return None;
    }
    let uevent = read(&device.join("uevent"))?;
    let slot = uevent
        .lines()
        .find_map(|l| l.strip_prefix("PCI_SLOT_NAME="))?;
    pci_address(slot)
}

impl Card {
    fn open(address: &str, device: PathBuf) -> Card {
        let mut card = Card {
            sensors: sensors(&device),
            ras: ras_files(&device),
            info: BTreeMap::new(),
            slow: Slow::default(),
            slow_at: Duration::ZERO,
            presence: Presence::default(),
            device,
        };
        card.info = INFO
            .iter()
            .filter_map(|(label, file)| Some((*label, card.text(file)?)))
            .chain([
                ("pci_address", address.to_owned()),
                ("vendor", "amd".to_owned()),
            ])
            .collect();
        card
    }

    fn reopen(&mut self, device: PathBuf) {
        self.sensors = sensors(&device);
        self.ras = ras_files(&device);
        self.slow_at = Duration::ZERO;
        self.device = device;
    }

    fn poll(&mut self, address: &str, now: Duration, out: &mut Gathered) {
        if !self.presence.due(now) {
            return;
        }
        let readings: Vec<(&Sensor, Option<u64>)> = self
            .sensors
            .iter()
            .map(|s| (s, read(&s.file).as_deref().and_then(number)))
            .collect();
        let mut live = readings.iter().filter(|(sensor, _)| sensor.live).peekable();
        let silent = live.peek().is_some() && live.all(|(_, value)| value.is_none());
        let name = self.info.get("name").map_or("AMD GPU", String::as_str);
        if silent || !self.device.exists() {
            if self.presence.lost(now) {
                let why = "the driver reads none of its sensors";
                out.events.push(gpu_lost(address, name, why));
            }
            return;
        }
        if self.presence.found() {
            out.events.push(gpu_back(address, name));
        }
        let put = |out: &mut Gathered, signal, value| {
            out.put(Entity::Gpu, address, signal, None, Reading::wide(value));
        };
        for (sensor, value) in readings {
            if let Some(value) = value {
                put(out, sensor.signal, value / sensor.divisor);
            }
        }
        if now >= self.slow_at {
            self.slow = self.read_slow();
            self.slow_at = now + SLOW;
        }
        for (signal, value) in &self.slow.columns {
            put(out, *signal, *value);
        }
        out.raw.extend(self.slow.raw.iter().map(|(name, value)| {
            RawCounter::new(RawKind::Counter, "amdgpu", address, name, *value)
        }));
        out.info.push(Info {
            kind: Entity::Gpu,
            entity: address.to_owned(),
            labels: self.info.clone(),
        });
    }

    fn read_slow(&self) -> Slow {
        let replays = self.text("pcie_replay_count");
        let replays = replays.as_deref().and_then(number);
        let link = pcie::link(&self.device).into_iter();
        let mut slow = Slow {
            columns: link
                .chain(replays.map(|count| (Signal::PcieReplays, count)))
                .collect(),
            raw: Vec::new(),
        };
        let blocks: Vec<(&str, Ras)> = self
            .ras
            .iter()
            .filter_map(|(block, file)| Some((block.as_str(), ras(&read(file)?))))
            .collect();
        for (signal, kind, of) in RAS_KINDS {
            // A block that fails for once must not make the sum fall.
            let counted = blocks.iter().filter_map(|(_, block)| of(block));
            if counted.clone().count() == self.ras.len() && !self.ras.is_empty() {
                let sum = counted.fold(0, u64::saturating_add);
                slow.columns.push((signal, sum));
            }
            slow.raw.extend(
                blocks
                    .iter()
                    .filter_map(|(name, block)| Some((format!("ras_{name}_{kind}"), of(block)?))),
            );
        }
        slow
    }

    fn text(&self, file: &str) -> Option<String> {
        read(&self.device.join(file)).filter(|t| !t.is_empty() && t != "N/A")
    }
}

/// The two kinds of errors that a block counts.
type RasKind = (Signal, &'static str, fn(&Ras) -> Option<u64>);
const RAS_KINDS: [RasKind; 2] = [
    (Signal::EccCorrected, "corrected", |r| r.corrected),
    (Signal::EccUncorrected, "uncorrected", |r| r.uncorrected),
];

/// The files of a card that give a number at each sample. hwmon counts in millidegrees and
/// microwatts (Documentation/hwmon/sysfs-interface.rst).
fn sensors(device: &Path) -> Vec<Sensor> {
    let hwmon = fs::read_dir(device.join("hwmon"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .min();
    let hwmon = hwmon.unwrap_or_default();
    let there = |path: PathBuf| path.exists().then_some(path);
    let labelled = |wanted: &str, end: &str| {
        (1..=8).find_map(|n| {
            let label = read(&hwmon.join(format!("temp{n}_label")))?;
            let file = hwmon.join(format!("temp{n}_{end}"));
            (label == wanted).then_some(file)
        })
    };
    // The junction is what the limits hold for; MI300X has no edge sensor.
    let hottest = |end| labelled("junction", end).or_else(|| labelled("edge", end));
    let power = ["power1_average", "power1_input"];
    let wanted = [
        (Signal::GpuTemperature, hottest("input"), 1, true),
        (
            Signal::GpuTemperatureLimit,
            hottest("crit").and_then(there),
            1,
            false,
        ),
        (
            Signal::GpuMemoryTemperature,
            labelled("mem", "input"),
            1,
            true,
        ),
        (
            Signal::GpuMemoryTemperatureLimit,
            labelled("mem", "crit").and_then(there),
            1,
            false,
        ),
        (
            Signal::GpuPower,
            power.iter().find_map(|f| there(hwmon.join(f))),
            1000,
            true,
        ),
        (
            Signal::GpuUtilisation,
            there(device.join("gpu_busy_percent")),
            1,
            true,
        ),
        (
            Signal::GpuMemoryUsed,
            there(device.join("mem_info_vram_used")),
            1,
            false,
        ),
        (
            Signal::GpuMemoryTotal,
            there(device.join("mem_info_vram_total")),
            1,
            false,
        ),
    ];
    wanted
        .into_iter()
        .filter_map(|(signal, file, divisor, live)| {
            Some(Sensor {
                signal,
                file: file?,
                divisor,
                live,
            })
        })
        .collect()
}

/// `ras/<block>_err_count` of the blocks that count errors.
fn ras_files(device: &Path) -> Vec<(String, PathBuf)> {
    let mut files: Vec<(String, PathBuf)> = fs::read_dir(device.join("ras"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let block = name.to_str()?.strip_suffix("_err_count")?.to_owned();
            let path = entry.path();
            // Not every block that is there can count.
            let counts = ras(&read(&path)?) != Ras::default();
            counts.then_some((block, path))
        })
        .collect();
    files.sort();
    files
}

/// A file of sysfs without its newline; `None` if it cannot be read.
fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64) {
            prop_assert_eq!(number(&format!("{value}\n")), Some(value));
        }
    }
}
