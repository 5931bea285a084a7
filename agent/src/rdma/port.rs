//! A device whose files are known, and what is read from it at each poll.

use super::counters::{Counters, Reader, Watched};
use super::netlink::RdmaNetlink;
use super::sysfs::{self, Device};
use super::table::{Driver, Merged};
use super::text;
use crate::pcie;
use crate::source::{Gathered, Info, OptionalCounter, PortGids, RawCounter, RawKind, Reading};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// A device with its files.
pub struct OpenDevice {
    pub device: Device,
    /// As many as `device.ports`, in the same order.
    ports: Vec<OpenPort>,
    /// Counters of the device as a whole.
    own: Counters,
}

struct OpenPort {
    /// `DEVICE/PORT`.
    entity: String,
    state: Watched,
    physical: Watched,
    rate: Watched,
    /// `counters/` and, of old kernels, `counters_ext/`.
    counters: [Counters; 2],
    hw: Counters,
    /// Whether netlink answers for the hardware counters.
    netlink: bool,
    /// Optional counters and whether they count; `None` until netlink was asked, once a listing.
    optional: Option<Vec<(String, bool)>>,
    info: Info,
    /// Of the device, where no interface stands for the port and tells it.
    pcie: Vec<(Signal, u64)>,
}

impl OpenDevice {
    /// Lists the files of a device, and goes on where `old` ended.
    ///
    /// # Errors
    /// A directory cannot be listed.
    pub fn open(sysfs: &Path, name: &str, old: Option<&OpenDevice>) -> io::Result<OpenDevice> {
        let device = sysfs::device(sysfs, name)?;
        let class = sysfs::class(sysfs).join(name);
        let mut own = Counters::list(&class.join("hw_counters"), device.driver)?;
        if let Some(old) = old {
            own.inherit(&old.own);
        }
        let mut ports = Vec::with_capacity(device.ports.len());
        for port in &device.ports {
            let dir = class.join("ports").join(port.number.to_string());
            let entity = format!("{name}/{}", port.number);
            let mut hw = Counters::list(&dir.join("hw_counters"), device.driver)?;
            let before = old.and_then(|o| o.ports.iter().find(|p| p.entity == entity));
            if let Some(before) = before {
                hw.inherit(&before.hw);
            }
            ports.push(OpenPort {
                pcie: match port.netdev {
                    Some(_) => Vec::new(),
                    None => pcie::link(&class.join("device")),
                },
                info: info(&device, port, &entity),
                entity,
                state: Watched::new(dir.join("state")),
                physical: Watched::new(dir.join("phys_state")),
                rate: Watched::new(dir.join("rate")),
                counters: [
                    Counters::list(&dir.join("counters"), device.driver)?,
                    Counters::list(&dir.join("counters_ext"), device.driver)?,
                ],
                hw,
                netlink: true,
                optional: None,
            });
        }
        Ok(OpenDevice { device, ports, own })
    }

    /// Reads everything that is due.
    ///
    /// # Errors
    /// The device has failed; what was read of it before is not to be trusted.
    pub fn read(
        &mut self,
        now: Duration,
        reader: &mut Reader,
        mut netlink: Option<(&mut RdmaNetlink, u32)>,
    ) -> io::Result<()> {
        for (open, port) in self.ports.iter_mut().zip(&mut self.device.ports) {
            open.read_state(port, reader)?;
            for counters in &mut open.counters {
                counters.read(now, reader)?;
            }
            let netlink = netlink
                .as_mut()
                .map(|(socket, index)| (&mut **socket, *index));
            open.read_hw(port.number, now, reader, netlink)?;
        }
        self.own.read(now, reader)
    }

    /// Gives what was read.
    pub fn emit(&self, merged: &mut Merged, out: &mut Gathered) {
        for (open, port) in self.ports.iter().zip(&self.device.ports) {
            open.emit(port, merged, out);
        }
        merged.clear();
        self.own.raw(&self.device.name, merged, &mut out.raw);
    }

    /// Gives every port counter of sysfs under the name of its file, and the state of each port as
    /// `state`, `phys_state` and `rate` (bits per second). Files of `counters_ext/` have that before
    /// their name.
    pub fn verbatim(&self, out: &mut Vec<RawCounter>) {
        for (open, port) in self.ports.iter().zip(&self.device.ports) {
            let mut put = |name: &str, value: Option<u64>| {
                out.extend(value.map(|value| {
                    RawCounter::new(RawKind::Unknown, "rdma", &open.entity, name, value)
                }));
            };
            put("state", port.state.as_ref().map(|s| s.number.into()));
            put(
                "phys_state",
                port.physical.as_ref().map(|s| s.number.into()),
            );
            put("rate", port.rate.as_ref().map(|r| r.bps));
            let [counters, old] = &open.counters;
            counters.each(|name, value| put(name, Some(value)));
            old.each(|name, value| put(&format!("counters_ext/{name}"), Some(value)));
        }
    }

    /// Its ports, by `DEVICE/PORT`.
    pub fn ports(&self) -> impl Iterator<Item = (&str, &sysfs::Port)> {
        let entities = self.ports.iter().map(|open| open.entity.as_str());
        entities.zip(&self.device.ports)
    }
}

impl OpenPort {
    fn read_state(&mut self, port: &mut sysfs::Port, reader: &mut Reader) -> io::Result<()> {
        if let Some(line) = self.state.changed(reader)? {
            port.state = line.as_deref().and_then(text::state);
            label(
                &mut self.info,
                "state",
                port.state.as_ref().map(|s| &s.name),
            );
        }
        if let Some(line) = self.physical.changed(reader)? {
            port.physical = line.as_deref().and_then(text::state);
            let name = port.physical.as_ref().map(|s| &s.name);
            label(&mut self.info, "phys_state", name);
        }
        if let Some(line) = self.rate.changed(reader)? {
            port.rate = line.as_deref().and_then(text::rate);
        }
        Ok(())
    }

    fn read_hw(
        &mut self,
        port: u32,
        now: Duration,
        reader: &mut Reader,
        netlink: Option<(&mut RdmaNetlink, u32)>,
    ) -> io::Result<()> {
        if let Some((socket, device)) = netlink.filter(|_| self.netlink) {
            if !self.hw.due(now) {
                return Ok(());
            }
            if self.optional.is_none() {
                // Older kernels, and ports without any, refuse.
                self.optional = Some(socket.optional_counters(device, port).unwrap_or_default());
            }
            let hw = &mut self.hw;
            match socket.counters(device, port, |values| hw.take(now, values.iter())) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    tracing::debug!("{}: {error}: counters come from sysfs", self.entity);
                    self.netlink = false;
                }
            }
        }
        self.hw.read(now, reader)
    }

    fn emit(&self, port: &sysfs::Port, merged: &mut Merged, out: &mut Gathered) {
        let mut put = |signal, reading| out.put(Entity::Rdma, &self.entity, signal, None, reading);
        if let Some(up) = port.up() {
            put(Signal::LinkUp, Reading::wide(u64::from(up)));
        }
        if let Some(rate) = port.trained() {
            put(Signal::RateBps, Reading::wide(rate.bps));
            put(Signal::Lanes, Reading::wide(u64::from(rate.lanes)));
        }
        for (signal, value) in &self.pcie {
            put(*signal, Reading::wide(*value));
        }
        merged.clear();
        let all = || self.counters.iter().chain([&self.hw]);
        all().for_each(|counters| counters.merge(merged));
        for (signal, reading) in merged.readings() {
            put(signal, reading);
        }
        all().for_each(|counters| counters.raw(&self.entity, merged, &mut out.raw));
        out.info.push(self.info.clone());
        let optional = self.optional.iter().flatten();
        let optional = optional.map(|(name, enabled)| OptionalCounter {
            entity: self.entity.clone(),
            name: name.clone(),
            enabled: *enabled,
        });
        out.optional_counters.extend(optional);
        if !port.gids.is_empty() {
            out.gids.push(PortGids {
                entity: self.entity.clone(),
                gids: Arc::clone(&port.gids),
            });
        }
    }
}

fn info(device: &Device, port: &sysfs::Port, entity: &str) -> Info {
    let driver = match device.module.as_deref() {
        Some(module) if device.driver == Driver::Other => module,
        Some(_) | None => device.driver.name(),
    };
    let mut info = Info {
        kind: Entity::Rdma,
        entity: entity.to_owned(),
        labels: BTreeMap::new(),
    };
    label(&mut info, "driver", Some(driver));
    label(&mut info, "firmware", device.firmware.as_ref());
    label(&mut info, "board", device.board.as_ref());
    label(&mut info, "model", device.model.as_ref());
    label(&mut info, "node_guid", device.node_guid.as_ref());
    label(&mut info, "pci_address", device.pci_address.as_ref());
    label(&mut info, "link_layer", port.link_layer.as_ref());
    label(&mut info, "netdev", port.netdev.as_ref());
    label(&mut info, "state", port.state.as_ref().map(|s| &s.name));
    label(
        &mut info,
        "phys_state",
        port.physical.as_ref().map(|s| &s.name),
    );
    info
}

fn label<T: AsRef<str> + ?Sized>(info: &mut Info, name: &'static str, value: Option<&T>) {
    match value {
        Some(value) => info.labels.insert(name, value.as_ref().to_owned()),
        None => info.labels.remove(name),
    };
}
