//! GPUs: NVIDIA through its management library (NVML), AMD through amdgpu's sysfs.
//!
//! Each value that a device does not support is absent. A GPU that stops answering gives one event
//! and leaves the others; without a driver the source is down and says why in one line.
//!
//! While NVML is initialised it holds the devices open, as every resident monitor does: an
//! `nvidia-smi --gpu-reset` or the unloading of the driver waits for the agent to stop.

mod amd;
mod events;
mod fields;
mod nvidia;
mod nvml;
mod presence;
mod raw;
mod text;

pub use text::{Ras, clock_reasons, pci_address, pcie_generation, ras};

use crate::kmsg::limiter::{HeldBack, Shared};
use crate::source::{Gathered, Severity};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What an XID means: severity, text and action of its event.
pub type Meaning = fn(u32) -> (Severity, String, String);

/// Where GPUs are looked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// NVML to load; `None` for the driver's own, by its usual names.
    pub nvml_library: Option<PathBuf>,
    /// Usually `/sys`.
    pub sysfs: PathBuf,
    pub meaning: Meaning,
    /// Those of the kernel's log, which tells of the same faults.
    pub limits: Shared,
}

/// The GPUs of this node.
#[derive(Debug)]
pub struct Gpu {
    nvidia: nvidia::Nvidia,
    amd: amd::Amd,
    limits: Shared,
    held_back: HeldBack,
}

impl Gpu {
    /// Opens nothing yet: the first poll does, and others later where there was nothing.
    #[must_use]
    pub fn open(options: Options) -> Gpu {
        Gpu {
            nvidia: nvidia::Nvidia::new(options.nvml_library, options.meaning),
            amd: amd::Amd::new(&options.sysfs),
            limits: options.limits,
            held_back: HeldBack::default(),
        }
    }

    /// Reads every GPU into `out`, which holds no events yet; `now` is monotonic.
    ///
    /// # Errors
    /// No GPU of either vendor can be read; one line says why. It may get better by itself.
    pub fn poll(&mut self, now: Duration, out: &mut Gathered) -> Result<(), String> {
        let amd = self.amd.poll(now, out);
        let nvidia = self.nvidia.poll(now, out);
        self.limits
            .filter(&mut out.events, now, &mut self.held_back);
        let held_back = HeldBack {
            suppressed: self.held_back.suppressed + self.nvidia.repeats(),
            ..self.held_back
        };
        out.raw.extend(held_back.raw("gpu", "node"));
        if amd == 0 { nvidia } else { Ok(()) }
    }

    /// Ids of the processes that compute on each NVIDIA GPU, by PCI address, as of the last poll
    /// or at most ten seconds before it. A GPU that does not tell, or is lost, is not there.
    #[must_use]
    pub fn processes(&self) -> BTreeMap<String, Vec<u32>> {
        self.nvidia
            .processes()
            .map(|(gpu, pids)| (gpu.to_owned(), pids.to_vec()))
            .collect()
    }
}
