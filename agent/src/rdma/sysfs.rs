//! Verbs devices as sysfs shows them: `class/infiniband` below any root.
//!
//! Files are opened once and read with one system call each; a device that goes away is noticed by
//! the error of its next read.

use super::table::{self, Row, Set};
use super::text;
use crate::source::{Gathered, Info, RawCounter, Reading};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// The kernel prints nothing longer into these files than a page.
const TEXT_BYTES: usize = 4096;
/// hw_counters are cached by the kernel for this long where no `lifespan` says otherwise.
const LIFESPAN: Duration = Duration::from_millis(10);
/// Counters that no signal stands for are for scrapes only, which come no oftener.
const RAW_AGAIN: Duration = Duration::from_secs(10);
/// GIDs looked at to find a global one.
const GIDS_MAX: usize = 16;
/// Counters of one directory, at most.
const COUNTERS_MAX: usize = 1024;
/// A logical port state (enum ib_port_state).
const STATE_ACTIVE: u8 = 4;

/// A counter file.
#[derive(Debug)]
struct Counter {
    name: Arc<str>,
    file: File,
    row: Option<&'static Row>,
    /// As read last; `None` is absent.
    value: Option<u64>,
}

/// A directory of counters.
#[derive(Debug)]
struct Directory {
    counters: Vec<Counter>,
    /// Reading sooner gives what was read before.
    lifespan: Duration,
    read_at: Option<Duration>,
    /// When the raw counters were read last.
    raw_read_at: Option<Duration>,
}

/// A port of a device.
#[derive(Debug)]
pub struct Port {
    entity: Arc<str>,
    state: Option<File>,
    phys_state: Option<File>,
    rate: Option<File>,
    directories: Vec<Directory>,
    facts: BTreeMap<&'static str, String>,
}

/// A verbs device.
#[derive(Debug)]
pub struct Device {
    pub name: String,
    ports: Vec<Port>,
}

fn read_text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

/// Names in a directory, ascending.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Devices of a root, by name; a root without the class has none.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn list(class: &Path) -> io::Result<Vec<String>> {
    match names(class) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

impl Device {
    /// Opens a device's files.
    ///
    /// # Errors
    /// It has no ports that can be listed.
    pub fn open(class: &Path, name: &str) -> io::Result<Device> {
        let dir = class.join(name);
        let mut facts = BTreeMap::new();
        for (label, file) in [
            ("firmware", "fw_ver"),
            ("board", "board_id"),
            ("node_guid", "node_guid"),
        ] {
            facts.extend(read_text(&dir.join(file)).map(|text| (label, text)));
        }
        let link = |path: &str| {
            let target = fs::canonicalize(dir.join(path)).ok()?;
            target.file_name()?.to_str().map(str::to_owned)
        };
        facts.extend(link("device").map(|pci| ("pci_address", pci)));
        let module = link("device/driver");
        let mut ports = Vec::new();
        for number in names(&dir.join("ports"))? {
            let port = dir.join("ports").join(&number);
            let mut counters = Vec::new();
            for (set, path) in [
                (Set::Port, port.join("counters")),
                (Set::Hardware, port.join("counters_ext")),
                (Set::Hardware, port.join("hw_counters")),
                (Set::Hardware, dir.join("hw_counters")),
            ] {
                counters.push((set, path.clone(), names(&path).unwrap_or_default()));
            }
            let hardware = counters.iter().filter(|(set, ..)| *set == Set::Hardware);
            let hardware = hardware.flat_map(|(_, _, names)| names.iter().map(String::as_str));
            let driver = module
                .as_deref()
                .and_then(verbs_driver)
                .or_else(|| table::driver_by_name(name))
                .or_else(|| table::driver_by_counters(hardware))
                .unwrap_or("unknown");
            let directories = counters
                .into_iter()
                .filter(|(_, _, names)| !names.is_empty())
                .map(|(set, path, names)| Directory::open(driver, set, &path, names))
                .collect();
            ports.push(Port::open(
                name,
                &number,
                &port,
                driver,
                directories,
                facts.clone(),
            ));
        }
        Ok(Device {
            name: name.to_owned(),
            ports,
        })
    }

    /// Reads the device.
    ///
    /// # Errors
    /// A file that could be read cannot be any more: the device went away.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> io::Result<()> {
        self.ports
            .iter_mut()
            .try_for_each(|port| port.poll(now, out))
    }
}

/// The verbs driver that belongs to a PCI driver.
fn verbs_driver(module: &str) -> Option<&'static str> {
    match module {
        "mlx5_core" | "mlx5_ib" => Some("mlx5_ib"),
        "mlx4_core" | "mlx4_ib" => Some("mlx4_ib"),
        "bnxt_en" | "bnxt_re" => Some("bnxt_re"),
        "ice" | "i40e" | "idpf" | "irdma" => Some("irdma"),
        "ionic" | "ionic_rdma" => Some("ionic_rdma"),
        "efa" => Some("efa"),
        "hns3" | "hns_roce" => Some("hns_roce"),
        "hfi1" => Some("hfi1"),
        _ => None,
    }
}

impl Directory {
    fn open(driver: &str, set: Set, path: &Path, names: Vec<String>) -> Directory {
        let lifespan = read_text(&path.join("lifespan"))
            .and_then(|ms| ms.parse().ok())
            .map_or(LIFESPAN, Duration::from_millis);
        let counters = names
            .into_iter()
            // A setting, not a counter.
            .filter(|name| name != "lifespan")
            .take(COUNTERS_MAX)
            .filter_map(|name| {
                Some(Counter {
                    file: File::open(path.join(&name)).ok()?,
                    row: table::meaning(driver, set, &name),
                    value: None,
                    name: name.into(),
                })
            })
            .collect();
        Directory {
            counters,
            lifespan,
            read_at: None,
            raw_read_at: None,
        }
    }

    fn refresh(&mut self, now: Duration) -> io::Result<()> {
        let fresh = self
            .read_at
            .is_some_and(|at| now.saturating_sub(at) < self.lifespan);
        if fresh {
            return Ok(());
        }
        self.read_at = Some(now);
        let raw_too = self
            .raw_read_at
            .is_none_or(|at| now.saturating_sub(at) >= RAW_AGAIN);
        if raw_too {
            self.raw_read_at = Some(now);
        }
        let mut buffer = [0; TEXT_BYTES];
        let due = |counter: &&mut Counter| counter.row.is_some() || raw_too;
        for counter in self.counters.iter_mut().filter(due) {
            counter.value = read(&counter.file, &mut buffer)?.and_then(text::counter);
        }
        Ok(())
    }
}

/// A file's text; `None` where the driver refuses this one file.
fn read<'b>(file: &File, buffer: &'b mut [u8; TEXT_BYTES]) -> io::Result<Option<&'b [u8]>> {
    match file.read_at(buffer, 0) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(error),
        // EINVAL, EOPNOTSUPP: the device does not have this counter.
        Err(_) => Ok(None),
    }
}

impl Port {
    fn open(
        device: &str,
        number: &str,
        dir: &Path,
        driver: &str,
        directories: Vec<Directory>,
        mut facts: BTreeMap<&'static str, String>,
    ) -> Port {
        facts.insert("driver", driver.to_owned());
        facts.extend(read_text(&dir.join("link_layer")).map(|text| ("link_layer", text)));
        facts.extend(read_text(&dir.join("gid_attrs/ndevs/0")).map(|text| ("netdev", text)));
        let gid = (0..GIDS_MAX).find_map(|index| {
            let bytes = fs::read(dir.join("gids").join(index.to_string())).ok()?;
            text::global_gid(&bytes)
        });
        facts.extend(gid.map(|gid| ("gid", gid)));
        let open = |file: &str| File::open(dir.join(file)).ok();
        Port {
            entity: format!("{device}/{number}").into(),
            state: open("state"),
            phys_state: open("phys_state"),
            rate: open("rate"),
            directories,
            facts,
        }
    }

    fn poll(&mut self, now: Duration, out: &mut Gathered) -> io::Result<()> {
        let mut buffer = [0; TEXT_BYTES];
        let mut put = |signal, value| {
            let reading = Reading::wide(value);
            out.put(Entity::Rdma, &self.entity, signal, None, reading);
        };
        let mut active = false;
        for (label, file) in [("state", &self.state), ("phys_state", &self.phys_state)] {
            let Some(file) = file else { continue };
            if let Some((number, name)) = read(file, &mut buffer)?.and_then(text::state) {
                self.facts.insert(label, name.to_owned());
                if label == "state" {
                    active = number == STATE_ACTIVE;
                    put(Signal::LinkUp, u64::from(active));
                }
            }
        }
        // A port that is down shows a rate that no link has.
        if active
            && let Some(file) = &self.rate
            && let Some(rate) = read(file, &mut buffer)?.and_then(text::rate)
        {
            put(Signal::RateBps, rate.bps);
            if let Some(lanes) = rate.lanes {
                put(Signal::Lanes, u64::from(lanes));
            }
        }
        for directory in &mut self.directories {
            directory.refresh(now)?;
            for counter in &directory.counters {
                let Some(value) = counter.value else { continue };
                match counter.row {
                    Some(row) => add(out, &self.entity, row, value),
                    None => out.raw.push(RawCounter {
                        source: "rdma",
                        device: Arc::clone(&self.entity),
                        name: Arc::clone(&counter.name),
                        value,
                    }),
                }
            }
        }
        out.info.push(Info {
            kind: Entity::Rdma,
            entity: self.entity.to_string(),
            labels: self.facts.clone(),
        });
        Ok(())
    }
}

/// Adds a counter to its signal's column.
pub(super) fn add(out: &mut Gathered, entity: &str, row: &Row, value: u64) {
    let reading = Reading {
        value: value.saturating_mul(row.scale),
        bits: row.bits,
        overflow: row.overflow,
    };
    let key = crate::source::ColumnKey {
        kind: Entity::Rdma,
        entity: entity.to_owned(),
        signal: row.signal,
        index: None,
    };
    let sum = out.columns.entry(key).or_insert(Reading {
        value: 0,
        ..reading
    });
    sum.value = sum.value.wrapping_add(reading.value);
    // A sum of narrow counters can be larger than each.
    if sum.value != reading.value {
        sum.bits = 64;
    }
}
