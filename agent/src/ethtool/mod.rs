//! Source *ethtool*: what a NIC's driver counts beside the kernel's own statistics. Pause by
//! priority, discards, forward error correction, PCIe stalls, by the table in [`table`]; everything
//! else raw under its own name.

pub mod ioctl;
pub mod netlink;
pub mod table;

use crate::pcie;
use crate::source::{ColumnKey, Gathered, Info, RawCounter, RawKind, Reading};
use ioctl::{Buffer, Driver, Ethtool};
use netlink::EthtoolNetlink;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// Forward error correction, link mode and module change slowly, and each costs firmware commands.
const SLOW: Duration = Duration::from_secs(10);
/// A device that fails is left alone for this long, and twice as long each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What becomes of one statistic.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Slot {
    /// Adds up to a canonical signal.
    Column(Signal, Option<u8>),
    Raw(RawKind, String),
    /// Of one queue, or a name that stood before.
    Skip,
}

#[derive(Debug)]
struct Device {
    driver: Driver,
    /// As many as `slots`, if everything is given verbatim; otherwise none.
    names: Vec<String>,
    slots: Vec<Slot>,
    /// What was read slowly, shown until it is read again.
    slow: BTreeMap<(Signal, Option<u8>), u64>,
    slow_at: Duration,
    /// Input of the module's temperature.
    module: Option<PathBuf>,
    /// Its directory in sysfs.
    sysfs: PathBuf,
}

/// A device that failed: when it is tried again.
#[derive(Debug, Clone, Copy)]
struct Failed {
    again: Duration,
    backoff: Duration,
}

/// The source.
pub struct EthtoolSource {
    ethtool: Ethtool,
    netlink: Option<EthtoolNetlink>,
    sysfs: PathBuf,
    devices: BTreeMap<String, Device>,
    failed: BTreeMap<String, Failed>,
    buffer: Buffer,
    verbatim: bool,
}

impl EthtoolSource {
    /// `verbatim`: whether to give every statistic under its own name as well.
    ///
    /// # Errors
    /// No socket can be had.
    pub fn open(sysfs: &Path, verbatim: bool) -> io::Result<EthtoolSource> {
        Ok(EthtoolSource {
            ethtool: Ethtool::open()?,
            // Older kernels do without.
            netlink: EthtoolNetlink::open().ok(),
            sysfs: sysfs.to_owned(),
            devices: BTreeMap::new(),
            failed: BTreeMap::new(),
            buffer: Buffer::default(),
            verbatim,
        })
    }

    /// Reads the interfaces.
    pub fn poll(&mut self, now: Duration, interfaces: &BTreeSet<&str>, out: &mut Gathered) {
        self.devices
            .retain(|name, _| interfaces.contains(name.as_str()));
        self.failed
            .retain(|name, _| interfaces.contains(name.as_str()));
        for interface in interfaces {
            let waiting = self.failed.get(*interface).is_some_and(|f| now < f.again);
            if waiting {
                continue;
            }
            match self.device(interface, now, out) {
                Ok(()) => {
                    self.failed.remove(*interface);
                }
                Err(error) => self.fail(interface, now, &error),
            }
        }
    }

    fn fail(&mut self, interface: &str, now: Duration, error: &io::Error) {
        self.devices.remove(interface);
        let before = self.failed.get(interface).map(|f| f.backoff);
        // Most virtual interfaces simply have no statistics.
        if before.is_none() && error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            tracing::info!(interface, "ethtool: {error}");
        }
        let backoff = before.map_or(BACKOFF_MIN, |b| (b * 2).min(BACKOFF_MAX));
        let failed = Failed {
            again: now + backoff,
            backoff,
        };
        self.failed.insert(interface.to_owned(), failed);
    }

    fn device(&mut self, interface: &str, now: Duration, out: &mut Gathered) -> io::Result<()> {
        if !self.devices.contains_key(interface) {
            let driver = self.ethtool.driver(interface)?;
            let names = self.ethtool.names(interface)?;
            let device = Device {
                names: if self.verbatim {
                    names.clone()
                } else {
                    Vec::new()
                },
                slots: slots(&driver.name, names),
                module: module_input(&self.sysfs, interface),
                sysfs: directory(&self.sysfs, interface),
                driver,
                slow: BTreeMap::new(),
                slow_at: Duration::ZERO,
            };
            self.devices.insert(interface.to_owned(), device);
        }
        let Some(device) = self.devices.get_mut(interface) else {
            return Ok(());
        };
        if device.slow_at.is_zero() || now >= device.slow_at {
            device.slow_at = now + SLOW;
            device.slow = read_slowly(
                self.netlink.as_mut(),
                interface,
                &device.sysfs,
                device.module.as_deref(),
            );
        }
        let mut columns: BTreeMap<(Signal, Option<u8>), u64> = BTreeMap::new();
        if !device.slots.is_empty() {
            let values = self
                .ethtool
                .values(interface, device.slots.len(), &mut self.buffer)?;
            for (place, (slot, value)) in device.slots.iter().zip(values).enumerate() {
                if let Some(name) = device.names.get(place).filter(|_| *slot != Slot::Skip) {
                    let kind = RawKind::Unknown;
                    let raw = RawCounter::new(kind, "ethtool", interface, name, value);
                    out.verbatim.push(raw);
                }
                match slot {
                    Slot::Column(signal, index) => {
                        let sum = columns.entry((*signal, *index)).or_default();
                        *sum = sum.wrapping_add(value);
                    }
                    Slot::Raw(kind, name) => {
                        let raw = RawCounter::new(*kind, "ethtool", interface, name, value);
                        out.raw.push(raw);
                    }
                    Slot::Skip => {}
                }
            }
        }
        // The kernel's own view of a signal comes before the driver's string.
        columns.extend(&device.slow);
        for ((signal, index), value) in columns {
            let key = ColumnKey {
                kind: Entity::Port,
                entity: interface.to_owned(),
                signal,
                index,
            };
            out.columns.insert(key, Reading::wide(value));
        }
        let labels = [
            ("driver", &device.driver.name),
            ("firmware", &device.driver.firmware),
            ("pci_address", &device.driver.bus),
            ("version", &device.driver.version),
            ("expansion_rom", &device.driver.expansion_rom),
        ];
        out.info.push(Info {
            kind: Entity::Port,
            entity: interface.to_owned(),
            labels: labels.map(|(k, v)| (k, v.clone())).into(),
        });
        Ok(())
    }
}

/// How many names of a driver become columns, and how many of all are kept.
pub(crate) fn understood(driver: &str, names: Vec<String>) -> (usize, usize) {
    let slots = slots(driver, names);
    let columns = slots.iter().filter(|s| matches!(s, Slot::Column(..)));
    let kept = slots.iter().filter(|s| **s != Slot::Skip);
    (columns.count(), kept.count())
}

/// What becomes of each statistic of a driver.
fn slots(driver: &str, names: Vec<String>) -> Vec<Slot> {
    let mut seen = BTreeSet::new();
    let slot = |name: String| {
        // Some drivers repeat a name; the first stands for it.
        if !seen.insert(name.clone()) || table::is_per_queue(&name) {
            return Slot::Skip;
        }
        match table::meaning(driver, &name) {
            Some(meaning) => Slot::Column(meaning.signal, meaning.index),
            None => Slot::Raw(table::raw_kind(driver, &name), name),
        }
    };
    names.into_iter().map(slot).collect()
}

fn read_slowly(
    netlink: Option<&mut EthtoolNetlink>,
    interface: &str,
    device: &Path,
    module: Option<&Path>,
) -> BTreeMap<(Signal, Option<u8>), u64> {
    let mut slow = BTreeMap::new();
    if let Some(netlink) = netlink {
        // What a driver does not tell is absent.
        let fec = netlink.fec(interface).unwrap_or_default();
        let mode = netlink.mode(interface).unwrap_or_default();
        let values = [
            (Signal::FecCorrected, fec.corrected),
            (Signal::FecUncorrected, fec.uncorrected),
            (Signal::RateBps, mode.rate_bps),
            (Signal::Lanes, mode.lanes.map(u64::from)),
        ];
        for (signal, value) in values {
            slow.extend(value.map(|v| ((signal, None), v)));
        }
        for (lane, bits) in (0..).zip(fec.corrected_bits_by_lane) {
            slow.insert((Signal::LaneErrors, Some(lane)), bits);
        }
    }
    let link = pcie::link(device).into_iter();
    slow.extend(link.map(|(signal, value)| ((signal, None), value)));
    let Some(module) = module else { return slow };
    let read = |end: &str| {
        let name = module.file_name()?.to_str()?.strip_suffix("input")?;
        let file = module.with_file_name(format!("{name}{end}"));
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    for (signal, value) in [
        (Signal::ModuleTemperature, read("input")),
        (
            Signal::ModuleTemperatureLimit,
            read("crit").or_else(|| read("max")),
        ),
    ] {
        slow.extend(value.map(|v| ((signal, None), v)));
    }
    slow
}

/// The directory of the interface's device.
fn directory(sysfs: &Path, interface: &str) -> PathBuf {
    sysfs.join("class/net").join(interface).join("device")
}

/// The hwmon input of the transceiver module: the one whose label names a module.
fn module_input(sysfs: &Path, interface: &str) -> Option<PathBuf> {
    let hwmon = directory(sysfs, interface).join("hwmon");
    let labelled = |file: PathBuf| {
        let stem = file
            .file_name()?
            .to_str()?
            .strip_suffix("_label")?
            .to_owned();
        let label = std::fs::read_to_string(&file).ok()?.to_lowercase();
        (stem.starts_with("temp") && label.contains("module"))
            .then(|| file.with_file_name(format!("{stem}_input")))
    };
    let files = |dir: PathBuf| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        files.sort();
        files
    };
    files(hwmon).into_iter().flat_map(files).find_map(labelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_and_queues_are_passed_over() {
        let names = [
            "port.rx_dropped",
            "rx_packets",
            "rx_packets",
            "rx-0.rx_bytes",
        ];
        let slots = slots("i40e", names.map(str::to_owned).to_vec());
        let expected = [
            Slot::Column(Signal::RxDiscards, None),
            Slot::Raw(RawKind::Counter, "rx_packets".into()),
            Slot::Skip,
            Slot::Skip,
        ];
        assert_eq!(slots, expected);
    }

    #[test]
    fn the_module_is_found_by_its_label() {
        let dir = tempfile::tempdir().unwrap();
        let hwmon = dir.path().join("class/net/eth0/device/hwmon/hwmon3");
        std::fs::create_dir_all(&hwmon).unwrap();
        for (file, text) in [
            ("temp1_label", "asic\n"),
            ("temp1_input", "51000\n"),
            ("temp2_label", "Module0\n"),
            ("temp2_input", "43000\n"),
            ("temp2_crit", "75000\n"),
        ] {
            std::fs::write(hwmon.join(file), text).unwrap();
        }
        let input = module_input(dir.path(), "eth0").unwrap();
        assert!(input.ends_with("temp2_input"), "{input:?}");
        let device = directory(dir.path(), "eth0");
        let slow = read_slowly(None, "eth0", &device, Some(&input));
        let expected = [
            ((Signal::ModuleTemperature, None), 43_000),
            ((Signal::ModuleTemperatureLimit, None), 75_000),
        ];
        assert_eq!(slow, expected.into());
        assert_eq!(module_input(dir.path(), "eth1"), None);
    }

    #[test]
    fn a_device_that_fails_is_tried_less_and_less_often() {
        let mut source = EthtoolSource::open(Path::new("/sys"), true).unwrap();
        let nowhere: BTreeSet<&str> = ["no-such-port"].into();
        let mut tried = 0;
        for second in 0..100 {
            let before = source.failed.get("no-such-port").map(|f| f.again);
            source.poll(
                Duration::from_secs(second),
                &nowhere,
                &mut Gathered::default(),
            );
            tried += u32::from(source.failed.get("no-such-port").map(|f| f.again) != before);
        }
        assert_eq!(tried, 7, "after 0, 1, 3, 7, 15, 31, 63 seconds");
        source.poll(
            Duration::from_secs(100),
            &BTreeSet::new(),
            &mut Gathered::default(),
        );
        assert!(source.failed.is_empty());
    }

    #[test]
    fn a_veth_has_a_driver_and_statistics() {
        use crate::bpf::tests::rig::{Pair, inside, is_root};
        if !is_root() {
            return;
        }
        let Some(pair) = Pair::make() else { return };
        let gathered = inside(&pair.first, || {
            let mut source = EthtoolSource::open(Path::new("/sys"), true).expect("a socket");
            let mut out = Gathered::default();
            source.poll(Duration::from_secs(1), &["port"].into(), &mut out);
            out
        });
        assert_eq!(gathered.info[0].labels["driver"], "veth");
        let peer = gathered.raw.iter().find(|r| r.name == "peer_ifindex");
        assert!(peer.is_some_and(|r| r.value > 0), "{:?}", gathered.raw);
        let verbatim = gathered.verbatim.iter().find(|r| r.name == "peer_ifindex");
        let rate = gathered.get(Entity::Port, "port", Signal::RateBps);
        assert_eq!(rate, Some(10_000_000_000), "what a veth says of itself");
        let value = |raw: Option<&RawCounter>| raw.map(|r| r.value);
        assert_eq!(value(verbatim), value(peer));
        assert_eq!(peer.map(|r| r.kind), Some(RawKind::Gauge));
    }

    /// Names and values of a capture of `ethtool -S`.
    fn capture(path: &Path) -> Vec<(String, u64)> {
        let text = std::fs::read_to_string(path).unwrap();
        let line = |l: &str| {
            let (name, value) = l.rsplit_once(':')?;
            Some((name.trim().to_owned(), value.trim().parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    #[test]
    fn captures_of_real_nics_have_the_meanings_they_should() {
        let Some(fixtures) = crate::testing::fixtures("ethtool") else {
            return;
        };
        let expected: [(&str, &str, Slot, u64); 6] = [
            (
                "ethq/bnxt_en",
                "bnxt_en",
                Slot::Column(Signal::RxDiscards, None),
                49337,
            ),
            (
                "ethq/mlx5_core",
                "mlx5_core",
                Slot::Column(Signal::PcieErrors, None),
                34,
            ),
            ("ethq/ice", "ice", Slot::Column(Signal::PauseRx, Some(7)), 0),
            (
                "ethq/i40e",
                "i40e",
                Slot::Column(Signal::PauseTx, Some(0)),
                0,
            ),
            (
                "snippets/mlx5-cx4lx-global-pause.txt",
                "mlx5_core",
                Slot::Column(Signal::PauseTxUs, None),
                555_665_182,
            ),
            (
                "snippets/mlx5-fec-lane-errors.txt",
                "mlx5_core",
                Slot::Column(Signal::LaneErrors, Some(3)),
                17_722_623,
            ),
        ];
        for (file, driver, meant, sum) in expected {
            let lines = capture(&fixtures.join(file));
            let names = lines.iter().map(|(name, _)| name.clone()).collect();
            let mine = slots(driver, names);
            let found: Vec<u64> = mine
                .iter()
                .zip(&lines)
                .filter_map(|(slot, (_, value))| (*slot == meant).then_some(*value))
                .collect();
            assert!(!found.is_empty(), "{file}: {meant:?}");
            assert_eq!(found.iter().sum::<u64>(), sum, "{file}: {meant:?}");
        }
        for entry in std::fs::read_dir(fixtures.join("ethq")).unwrap().flatten() {
            let names: Vec<String> = capture(&entry.path()).into_iter().map(|(n, _)| n).collect();
            assert!(!names.is_empty(), "{entry:?}");
            for driver in ["mlx5_core", "bnxt_en", "ice", "i40e", "ena", "ionic"] {
                assert_eq!(slots(driver, names.clone()).len(), names.len());
            }
        }
    }
}
