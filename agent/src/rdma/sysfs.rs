//! Verbs devices and their ports as `/sys/class/infiniband` shows them: what they are, not what
//! they count.
//!
//! Files are described in Documentation/ABI/stable/sysfs-class-infiniband of the kernel. Every
//! file may be missing or unreadable; what it would have said is then `None`.

use super::table::Driver;
use super::text::{self, Filter, Rate, State};
pub use crate::source::Gid;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More devices than any host has; virtual functions are devices too.
pub const DEVICES_MAX: usize = 256;
/// A switch in representor mode shows each of its ports.
pub const PORTS_MAX: usize = 128;
/// GIDs kept of a port: two per address and type, for every address of its interfaces.
pub const GIDS_MAX: usize = 16;
/// Entries of the GID table that are looked at.
const GID_ENTRIES: usize = 64;

/// A verbs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub driver: Driver,
    /// The kernel's driver of the device below, such as `mlx5_core`.
    pub module: Option<String>,
    /// `None` if it is not set.
    pub node_guid: Option<String>,
    pub firmware: Option<String>,
    /// Identifier of the board (PSID for NVIDIA).
    pub board: Option<String>,
    /// Model, such as `MT4129`.
    pub model: Option<String>,
    /// Such as `1: CA`.
    pub node_type: Option<State>,
    pub pci_address: Option<String>,
    pub ports: Vec<Port>,
}

/// A port of a verbs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u32,
    pub state: Option<State>,
    pub physical: Option<State>,
    /// Of a port that is down the kernel makes one up: see [`Port::trained`].
    pub rate: Option<Rate>,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: Option<String>,
    /// At most [`GIDS_MAX`].
    pub gids: Arc<[Gid]>,
    /// The network interface of the port.
    pub netdev: Option<String>,
}

/// What a port ought to run at. `None` says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    pub rate_bps: Option<u64>,
    pub lanes: Option<u8>,
}

const DOWN: u8 = 1;
const ACTIVE: u8 = 4;
const ACTIVE_DEFER: u8 = 5;

impl Port {
    /// Whether traffic can pass; `None` if the port does not say.
    ///
    /// A port that waits for its subnet manager is physically up and in `INIT`: not up.
    #[must_use]
    pub fn up(&self) -> Option<bool> {
        let number = self.state.as_ref()?.number;
        Some(number == ACTIVE || number == ACTIVE_DEFER)
    }

    /// The rate that the link trained to; `None` unless its link is up, whatever `rate` says.
    #[must_use]
    pub fn trained(&self) -> Option<&Rate> {
        let number = self.state.as_ref()?.number;
        self.rate
            .as_ref()
            .filter(|_| number > DOWN && number <= ACTIVE_DEFER)
    }

    /// Says in words how the port falls short of what is expected; `None` if it does not.
    #[must_use]
    pub fn shortfall(&self, expected: Expected) -> Option<String> {
        if expected == Expected::default() {
            return None;
        }
        if self.up() == Some(false) {
            let name = |s: &Option<State>| s.as_ref().map_or("unknown", |s| &s.name).to_owned();
            return Some(format!(
                "is not up: state {}, physical state {}",
                name(&self.state),
                name(&self.physical)
            ));
        }
        let Some(rate) = self.trained() else {
            return Some("does not say what it runs at".to_owned());
        };
        let slow = expected.rate_bps.filter(|bps| rate.bps < *bps);
        let narrow = expected.lanes.filter(|lanes| rate.lanes < *lanes);
        let mut faults = Vec::new();
        if let Some(bps) = slow {
            faults.push(format!(
                "runs at {} of {} Gb/s",
                gigabits(rate.bps),
                gigabits(bps)
            ));
        }
        if let Some(lanes) = narrow {
            faults.push(format!("runs on {} of {lanes} lanes", rate.lanes));
        }
        (!faults.is_empty()).then(|| faults.join(" and "))
    }
}

fn gigabits(bps: u64) -> String {
    let tenths = bps / 100_000_000;
    match tenths % 10 {
        0 => (tenths / 10).to_string(),
        rest => format!("{}.{rest}", tenths / 10),
    }
}

/// The directory of verbs devices under the root of a sysfs.
#[must_use]
pub fn class(sysfs: &Path) -> PathBuf {
    sysfs.join("class/infiniband")
}

/// Names of the devices that pass the filter, in order; nothing under a device is touched.
///
/// # Errors
/// The directory cannot be read: there is no RDMA subsystem.
pub fn names(sysfs: &Path, filter: &Filter) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(class(sysfs))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| filter.passes(name))
        .collect();
    names.sort();
    names.truncate(DEVICES_MAX);
    Ok(names)
}

/// All devices that pass the filter; each with the reason if it cannot be read.
///
/// # Errors
/// As [`names`].
pub fn devices(sysfs: &Path, filter: &Filter) -> io::Result<Vec<(String, io::Result<Device>)>> {
    let read = |name: String| {
        let device = device(sysfs, &name);
        (name, device)
    };
    Ok(names(sysfs, filter)?.into_iter().map(read).collect())
}

/// One device.
///
/// # Errors
/// Its ports cannot be listed.
pub fn device(sysfs: &Path, name: &str) -> io::Result<Device> {
    let dir = class(sysfs).join(name);
    let module = link_name(&dir.join("device/driver"));
    let mut ports: Vec<u32> = fs::read_dir(dir.join("ports"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 0)
        .collect();
    ports.sort_unstable();
    ports.truncate(PORTS_MAX);
    Ok(Device {
        name: name.to_owned(),
        driver: driver(&dir, name, module.as_deref()),
        node_guid: read(&dir.join("node_guid"))
            .as_deref()
            .and_then(text::identifier)
            .map(str::to_owned),
        firmware: read(&dir.join("fw_ver")),
        board: read(&dir.join("board_id")),
        model: read(&dir.join("hca_type")),
        node_type: read(&dir.join("node_type")).and_then(|t| text::state(&t)),
        pci_address: pci_address(&dir.join("device")),
        ports: ports.into_iter().map(|n| port(&dir, n)).collect(),
        module,
    })
}

/// Soft RoCE stands on the device of its network interface, whose driver is not its own; it is
/// known by its file `parent`.
fn driver(dir: &Path, name: &str, module: Option<&str>) -> Driver {
    if dir.join("parent").is_file() {
        return Driver::Rxe;
    }
    let by_name = Driver::of_device(name);
    match module.map(Driver::of_module) {
        Some(by_module) if by_module != Driver::Other && by_name != Driver::Rxe => by_module,
        Some(_) | None => by_name,
    }
}

fn port(device: &Path, number: u32) -> Port {
    let dir = device.join("ports").join(number.to_string());
    let gids = gids(&dir);
    let netdev = gids
        .iter()
        .find_map(|g| g.netdev.clone())
        .or_else(|| netdev(&device.join("device/net"), number));
    Port {
        number,
        state: read(&dir.join("state")).and_then(|t| text::state(&t)),
        physical: read(&dir.join("phys_state")).and_then(|t| text::state(&t)),
        rate: read(&dir.join("rate")).and_then(|t| text::rate(&t)),
        link_layer: read(&dir.join("link_layer")),
        gids: gids.into(),
        netdev,
    }
}

fn gids(port: &Path) -> Vec<Gid> {
    let attribute =
        |kind: &str, index: usize| read(&port.join("gid_attrs").join(kind).join(index.to_string()));
    let mut gids = Vec::new();
    for index in 0..GID_ENTRIES {
        let Ok(content) = fs::read(port.join("gids").join(index.to_string())) else {
            break;
        };
        let Some(gid) = text::line(&content).filter(|l| text::identifier(l).is_some()) else {
            continue;
        };
        gids.push(Gid {
            index,
            gid,
            kind: attribute("types", index),
            netdev: attribute("ndevs", index),
        });
        if gids.len() == GIDS_MAX {
            break;
        }
    }
    gids
}

/// The interface of an InfiniBand port, which has no GID with an interface: the one of the same
/// PCI function whose `dev_port` counts to it from 0.
fn netdev(net: &Path, port: u32) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(net)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let place = (port - 1).to_string();
    names
        .into_iter()
        .find(|name| read(&net.join(name).join("dev_port")).is_some_and(|p| p == place))
}

/// The PCI function that the device stands on, directly or through devices between.
fn pci_address(device: &Path) -> Option<String> {
    let path = fs::canonicalize(device).ok()?;
    path.components()
        .rev()
        .filter_map(|c| c.as_os_str().to_str())
        .find(|name| text::is_pci_address(name))
        .map(str::to_owned)
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

fn read(path: &Path) -> Option<String> {
    text::line(&fs::read(path).ok()?)
}

#[cfg(test)]
mod tests;
