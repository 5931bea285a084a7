//! Source *gpu*: NVIDIA GPUs by NVML, AMD GPUs by sysfs.

pub mod amd;
pub mod events;
pub mod nvml;

use crate::source::{Gathered, Severity};
use nvml::Nvidia;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A library that is not there is looked for again after this long; AMD's devices too.
const AGAIN: Duration = Duration::from_secs(60);

/// What an XID means: severity, in words, what to do.
pub type Meaning = fn(u32) -> (Severity, String, String);

/// The source.
pub struct GpuSource {
    library: Option<PathBuf>,
    sysfs: PathBuf,
    meaning: Meaning,
    nvidia: Result<Nvidia, String>,
    amd: BTreeMap<String, PathBuf>,
    look_at: Duration,
}

impl GpuSource {
    /// `library` is NVML's, where it is not in the loader's path.
    #[must_use]
    pub fn new(library: Option<&Path>, sysfs: &Path, meaning: Meaning) -> GpuSource {
        GpuSource {
            library: library.map(Path::to_owned),
            sysfs: sysfs.to_owned(),
            meaning,
            nvidia: Err(String::new()),
            amd: BTreeMap::new(),
            look_at: Duration::ZERO,
        }
    }

    /// Reads every GPU.
    ///
    /// # Errors
    /// The node has NVIDIA GPUs and NVML cannot be had: why. A node without GPUs is no error.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        if now >= self.look_at {
            self.look_at = now + AGAIN;
            self.amd = amd::devices(&self.sysfs);
            if self.nvidia.is_err() {
                self.nvidia = Nvidia::open(self.library.as_deref()).map_err(|error| {
                    let hint = "is the NVIDIA driver loaded, and its library where the agent finds it (nvml_library)?";
                    format!("NVML cannot be had: {error}; {hint}")
                });
            }
        }
        for (pci, dir) in &self.amd {
            amd::read(pci, dir, out);
        }
        match &mut self.nvidia {
            Ok(nvidia) => nvidia.poll(now, self.meaning, out),
            Err(reason) if self.library.is_some() || has_nvidia(&self.sysfs) => {
                return Err(reason.clone());
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// Whether PCI shows an NVIDIA GPU, driver or not.
fn has_nvidia(sysfs: &Path) -> bool {
    let devices = fs::read_dir(sysfs.join("bus/pci/devices"));
    devices.into_iter().flatten().flatten().any(|device| {
        let is = |file: &str, prefix: &str| {
            let text = fs::read_to_string(device.path().join(file));
            text.is_ok_and(|text| text.starts_with(prefix))
        };
        is("vendor", "0x10de") && is("class", "0x03")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmsg::catalogue::meaning;

    #[test]
    fn a_node_without_gpus_is_no_error_and_one_without_the_driver_is() {
        let root = tempfile::tempdir().unwrap();
        let mut out = Gathered::default();
        GpuSource::new(None, root.path(), meaning)
            .poll(Duration::ZERO, &mut out)
            .unwrap();
        let device = root.path().join("bus/pci/devices/0000:18:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), "0x10de\n").unwrap();
        fs::write(device.join("class"), "0x030200\n").unwrap();
        let mut source = GpuSource::new(None, root.path(), meaning);
        if source.nvidia.is_err() {
            let reason = source.poll(Duration::ZERO, &mut out);
            // A machine with a driver reads its own GPUs here.
            if let Err(reason) = reason {
                assert!(reason.contains("nvml_library"), "{reason}");
            }
        }
    }

    #[test]
    fn a_library_that_was_named_and_is_not_there_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("libnvidia-ml.so.1");
        let mut source = GpuSource::new(Some(&library), root.path(), meaning);
        let reason = source.poll(Duration::ZERO, &mut Gathered::default());
        assert!(reason.unwrap_err().contains("NVML cannot be had"));
    }
}
