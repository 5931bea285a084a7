//! RDMA devices: what they are, whether their ports are up and how fast, and what they count.
//!
//! The numbers come from two places that both ask the driver: hardware counters through RDMA
//! netlink, one request for all of a port, with `hw_counters/` of sysfs where the kernel refuses;
//! port counters and state from sysfs alone. Neither is read sooner than `lifespan` after the last
//! time, because a reading can be a command to the firmware. A device that fails is left alone for
//! a while, longer each time, and costs the others nothing.

mod counters;
mod expected;
pub mod netlink;
mod port;
mod rows;
pub mod sysfs;
pub mod table;
pub mod text;

#[cfg(test)]
mod tests;

pub use expected::stated;
pub use rows::ROWS;
pub use table::lookup;

use crate::source::{Event, Gathered, Severity};
pub use counters::Files;
use counters::Reader;
pub use expected::{Judge, Link};
use netlink::RdmaNetlink;
use port::OpenDevice;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Merged;
use text::Filter;

/// Devices come and go rarely, and a listing costs some hundred file names.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// A device that failed is tried again after this, and after twice as long each time that it fails
/// again, up to the most.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MOST: Duration = Duration::from_secs(60);

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root of the sysfs: `/sys`, or a copy of one.
    pub sysfs: PathBuf,
    /// Devices to read, with an optional `*` at the end of a name; all if there is none.
    pub include: Vec<String>,
    /// Devices not to read; beats `include`.
    pub exclude: Vec<String>,
    /// Whether to ask RDMA netlink. It answers for the running kernel: never for a copy of a
    /// sysfs.
    pub netlink: bool,
    /// Whether to give every counter under its own name as well.
    pub verbatim: bool,
    /// Bits per second that the links of devices should run at; the first pattern that fits counts.
    pub expect: Vec<(String, u64)>,
    /// Room for files held open, which several may share.
    pub files: Files,
}

/// RDMA devices that one thread reads: while one of them hangs, so do the rest.
pub struct Rdma {
    sysfs: PathBuf,
    filter: Filter,
    netlink: Netlink,
    list_at: Duration,
    known: Vec<Known>,
    reader: Reader,
    merged: Merged,
    verbatim: bool,
    expect: Vec<(String, u64)>,
}

/// RDMA netlink and the numbers that it knows devices by.
enum Netlink {
    Off,
    /// With the reason, once it was tried.
    Closed(Option<String>),
    Open {
        socket: Box<RdmaNetlink>,
        indices: BTreeMap<String, u32>,
    },
}

/// A device that the last listing showed.
struct Known {
    name: String,
    open: Option<OpenDevice>,
    /// List its files anew before the next reading.
    stale: bool,
    failure: Option<Failure>,
}

struct Failure {
    reason: String,
    wait: Duration,
    until: Duration,
}

impl Rdma {
    /// Nothing is touched before the first poll.
    #[must_use]
    pub fn open(options: Options) -> Rdma {
        let netlink = options.netlink && options.sysfs == Path::new("/sys");
        Rdma {
            sysfs: options.sysfs,
            filter: Filter {
                include: options.include,
                exclude: options.exclude,
            },
            netlink: if netlink {
                Netlink::Closed(None)
            } else {
                Netlink::Off
            },
            list_at: Duration::ZERO,
            known: Vec::new(),
            reader: Reader::new(options.files),
            merged: Merged::default(),
            verbatim: options.verbatim,
            expect: options.expect,
        }
    }

    /// Reads all devices at the monotonic time `now`.
    ///
    /// # Errors
    /// The source is down: there is no device, or none can be read. The text says why.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        if now >= self.list_at {
            self.list()?;
            self.list_at = now.saturating_add(LIST_EVERY);
        }
        if self.known.is_empty() {
            return Err(format!(
                "no RDMA device in {} that the filter lets through",
                sysfs::class(&self.sysfs).display()
            ));
        }
        let read: Vec<bool> = (0..self.known.len())
            .map(|index| self.poll_device(index, now, out))
            .collect();
        if read.contains(&true) {
            out.links.append(&mut self.links(&read));
            return Ok(());
        }
        let reasons: Vec<String> = self.failing().map(|(n, r)| format!("{n}: {r}")).collect();
        Err(format!(
            "no RDMA device can be read ({})",
            reasons.join("; ")
        ))
    }

    /// The devices that are read, with their ports as they were at the last poll.
    pub fn devices(&self) -> impl Iterator<Item = &sysfs::Device> {
        self.known
            .iter()
            .filter_map(|k| Some(&k.open.as_ref()?.device))
    }

    /// Why RDMA netlink does not answer, although it was asked for; `None` if it does.
    #[must_use]
    pub fn netlink_failure(&self) -> Option<&str> {
        match &self.netlink {
            Netlink::Closed(reason) => reason.as_deref(),
            Netlink::Off | Netlink::Open { .. } => None,
        }
    }

    /// Names of the devices that cannot be read at present, and why.
    pub fn failing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known
            .iter()
            .filter_map(|k| Some((k.name.as_str(), k.failure.as_ref()?.reason.as_str())))
    }

    fn list(&mut self) -> Result<(), String> {
        let names = match sysfs::names(&self.sysfs, &self.filter) {
            Ok(names) => names,
            Err(error) => {
                self.known.clear();
                let class = sysfs::class(&self.sysfs);
                return Err(format!("no RDMA subsystem: {}: {error}", class.display()));
            }
        };
        let mut old = std::mem::take(&mut self.known);
        for name in names {
            let known = match old.iter().position(|k| k.name == name) {
                Some(found) => Known {
                    stale: true,
                    ..old.swap_remove(found)
                },
                None => Known {
                    name,
                    open: None,
                    stale: true,
                    failure: None,
                },
            };
            self.known.push(known);
        }
        self.list_netlink();
        Ok(())
    }

    /// Asks netlink anew for its numbers; a subsystem that was not there may be by now.
    fn list_netlink(&mut self) {
        let (opened, before) = match std::mem::replace(&mut self.netlink, Netlink::Off) {
            Netlink::Off => return,
            Netlink::Open { socket, .. } => (Ok(socket), None),
            Netlink::Closed(reason) => (RdmaNetlink::open().map(Box::new), reason),
        };
        let listed = opened.and_then(|mut socket| {
            let devices = socket.devices()?;
            Ok((socket, devices))
        });
        self.netlink = match listed {
            Ok((socket, devices)) => Netlink::Open {
                socket,
                indices: devices.into_iter().map(|d| (d.name, d.index)).collect(),
            },
            Err(error) => {
                let reason = error.to_string();
                if before.as_ref() != Some(&reason) {
                    tracing::info!("no RDMA netlink ({reason}): counters come from sysfs");
                }
                Netlink::Closed(Some(reason))
            }
        };
    }

    /// The links of the devices that were read.
    fn links(&self, read: &[bool]) -> Vec<Link> {
        let mut links = Vec::new();
        for (known, _) in self.known.iter().zip(read).filter(|(_, read)| **read) {
            let Some(open) = &known.open else { continue };
            let fits = |(pattern, _): &&(String, u64)| text::matches(pattern, &known.name);
            let stated_bps = self.expect.iter().find(fits).map(|(_, bps)| *bps);
            let board = open
                .device
                .board
                .as_deref()
                .or(open.device.model.as_deref());
            links.extend(open.ports().map(|(entity, port)| Link {
                entity: entity.to_owned(),
                kind: (
                    board.unwrap_or_default().to_owned(),
                    port.link_layer.clone().unwrap_or_default(),
                ),
                port: port.clone(),
                stated_bps,
            }));
        }
        links
    }

    /// Returns whether the device was read.
    fn poll_device(&mut self, index: usize, now: Duration, out: &mut Gathered) -> bool {
        let Some(known) = self.known.get_mut(index) else {
            return false;
        };
        if known.failure.as_ref().is_some_and(|f| now < f.until) {
            return false;
        }
        self.reader.begin();
        match known.read(&self.sysfs, now, &mut self.reader, &mut self.netlink) {
            Ok(device) => {
                device.emit(&mut self.merged, out);
                if self.verbatim {
                    device.verbatim(&mut out.verbatim);
                }
                known.failure = None;
                true
            }
            Err(error) => {
                if let Some(event) = known.fail(&error, now) {
                    out.events.push(event);
                }
                // It may be gone for good.
                self.list_at = now;
                false
            }
        }
    }
}

impl Known {
    fn read(
        &mut self,
        sysfs: &Path,
        now: Duration,
        reader: &mut Reader,
        netlink: &mut Netlink,
    ) -> io::Result<&OpenDevice> {
        if self.stale || self.open.is_none() {
            let device = OpenDevice::open(sysfs, &self.name, self.open.as_ref())?;
            self.open = Some(device);
            self.stale = false;
        }
        let name = &self.name;
        let device = self
            .open
            .as_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let netlink = match netlink {
            Netlink::Open { socket, indices } => indices.get(name).map(|i| (&mut **socket, *i)),
            Netlink::Off | Netlink::Closed(_) => None,
        };
        device.read(now, reader, netlink)?;
        Ok(device)
    }

    /// Notes a failure; the event of the first one in a row.
    fn fail(&mut self, error: &io::Error, now: Duration) -> Option<Event> {
        let wait = match &self.failure {
            Some(failure) => failure.wait.saturating_mul(2).min(WAIT_MOST),
            None => WAIT_FIRST,
        };
        let first = self.failure.is_none();
        self.stale = true;
        self.failure = Some(Failure {
            reason: error.to_string(),
            wait,
            until: now.saturating_add(wait),
        });
        first.then(|| Event {
            source: "rdma",
            name: "device_unreadable",
            subject: self.name.clone(),
            code: None,
            severity: Severity::Warning,
            text: format!("the counters of {} cannot be read: {error}", self.name),
            action: "See the kernel log for the device; reload its driver or reset it.".to_owned(),
        })
    }
}
