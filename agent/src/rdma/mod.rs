//! Source *rdma*: verbs devices, by sysfs. Port and hardware counters under canonical signals by the
//! table in [`table`], the others raw; state, rate and facts of each port.

pub mod sysfs;
pub mod table;
pub mod text;

use crate::config::excluded;
use crate::source::Gathered;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sysfs::Device;

/// Devices come and go rarely; one that goes is noticed at once by its reads.
const LIST_AGAIN: Duration = Duration::from_secs(30);
/// A device that fails is left alone for this long, and twice as long each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Devices of one node, at most: 16 NICs with 128 virtual functions each.
const DEVICES_MAX: usize = 2048;

/// A device that failed: why, and when it is tried again.
#[derive(Debug, Clone)]
struct Failed {
    reason: String,
    again: Duration,
    backoff: Duration,
}

/// The source.
pub struct Rdma {
    class: PathBuf,
    exclude: Vec<String>,
    devices: BTreeMap<String, Device>,
    failed: BTreeMap<String, Failed>,
    list_at: Duration,
}

impl Rdma {
    /// `exclude` names devices that are not even opened; a trailing `*` stands for anything.
    #[must_use]
    pub fn new(sysfs: &Path, exclude: &[String]) -> Rdma {
        Rdma {
            class: sysfs.join("class/infiniband"),
            exclude: exclude.to_vec(),
            devices: BTreeMap::new(),
            failed: BTreeMap::new(),
            list_at: Duration::ZERO,
        }
    }

    /// Whether there is any device to read.
    #[must_use]
    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty() || !self.failed.is_empty()
    }

    /// Reads every device. A device that fails costs its own columns.
    ///
    /// # Errors
    /// The class cannot be listed, or every device fails: why.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        if now >= self.list_at {
            self.list_at = now + LIST_AGAIN;
            self.list()?;
        }
        let names: Vec<String> = self
            .failed
            .iter()
            .filter(|(_, failed)| now >= failed.again)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.open(&name, now);
        }
        let mut gone = Vec::new();
        for (name, device) in &mut self.devices {
            let mut read = Gathered::default();
            match device.poll(now, &mut read) {
                // All of a device or nothing of it.
                Ok(()) => out.append(read),
                Err(error) => gone.push((name.clone(), error.to_string())),
            }
        }
        for (name, reason) in gone {
            self.fail(&name, reason, now);
        }
        match self.failed.values().next() {
            Some(failed) if self.devices.is_empty() => Err(failed.reason.clone()),
            Some(_) | None => Ok(()),
        }
    }

    fn list(&mut self) -> Result<(), String> {
        let listed = sysfs::list(&self.class)
            .map_err(|error| format!("cannot list {}: {error}", self.class.display()))?;
        let mut listed: Vec<String> = listed
            .into_iter()
            .filter(|name| !excluded(&self.exclude, name))
            .collect();
        listed.truncate(DEVICES_MAX);
        self.devices.retain(|name, _| listed.contains(name));
        self.failed.retain(|name, _| listed.contains(name));
        for name in listed {
            if !self.devices.contains_key(&name) && !self.failed.contains_key(&name) {
                self.open(&name, Duration::ZERO);
            }
        }
        Ok(())
    }

    fn open(&mut self, name: &str, now: Duration) {
        match Device::open(&self.class, name) {
            Ok(device) => {
                self.failed.remove(name);
                self.devices.insert(name.to_owned(), device);
            }
            Err(error) => self.fail(name, format!("{name}: {error}"), now),
        }
    }

    fn fail(&mut self, name: &str, reason: String, now: Duration) {
        self.devices.remove(name);
        let before = self.failed.get(name).map(|failed| failed.backoff);
        if before.is_none() {
            tracing::warn!(device = name, "verbs device cannot be read: {reason}");
        }
        let backoff = before.map_or(BACKOFF_MIN, |b| (b * 2).min(BACKOFF_MAX));
        let failed = Failed {
            reason,
            again: now + backoff,
            backoff,
        };
        self.failed.insert(name.to_owned(), failed);
    }
}

#[cfg(test)]
mod tests;
