//! One NVIDIA GPU through NVML: what is read when, and what an error says about the device.
//!
//! Each sample costs six calls a GPU: its handle, one batch of fields, and what no field gives.
//! What hardly moves is read every ten seconds and stands in between.

use super::fields::{self, Field, Plan};
use super::presence::{Presence, gpu_back, gpu_lost};
use super::raw::{answers, fabric};
use super::text::pci_address;
use crate::source::{Gathered, GpuPart, Info, RawCounter, RawKind, Reading};
use nvml_wrapper::enum_wrappers::device::{TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{NVML_DEVICE_MIG_ENABLE, NVML_GPU_FABRIC_STATE_COMPLETED};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// How long link widths, fabric state and processes stand.
const SLOW: Duration = Duration::from_secs(10);
/// How long it stands what a device supports; enabling ECC or MIG changes it.
const PROBE: Duration = Duration::from_secs(60);
/// Parts of a GPU, as of the largest that there is; more are disbelieved.
const MOST_PARTS: u32 = 16;
/// Links beyond are disbelieved.
const MOST_LINKS: u8 = 64;

/// Values of one device.
#[derive(Debug, Clone, Default)]
struct Row {
    columns: Vec<(Signal, Option<u8>, Reading)>,
    /// Named parts of a signal, which only grow.
    counters: Vec<(&'static str, u64)>,
    /// States that no signal stands for.
    states: Vec<(&'static str, u64)>,
    /// `None` where they are not told.
    processes: Option<Vec<u32>>,
    /// Place and UUID of each part of a GPU that is split.
    parts: Vec<(u32, String)>,
}

impl Row {
    fn put(&mut self, signal: Signal, value: u64) {
        self.columns.push((signal, None, Reading::wide(value)));
    }
}

/// A device for the length of one sample.
struct Target<'a> {
    device: Device<'a>,
    plan: &'a Plan,
    links: u8,
}

type Call = fn(&Target<'_>, &mut Row) -> Result<(), NvmlError>;

/// Read at each sample.
const FAST_CALLS: &[Call] = &[
    |t, row| {
        let degrees = t.device.temperature(TemperatureSensor::Gpu)?;
        row.put(Signal::GpuTemperature, u64::from(degrees) * 1000);
        Ok(())
    },
    |t, row| {
        let share = t.device.utilization_rates()?;
        row.put(Signal::GpuUtilisation, share.gpu.into());
        Ok(())
    },
    |t, row| {
        let memory = t.device.memory_info()?;
        row.put(Signal::GpuMemoryUsed, memory.used);
        row.put(Signal::GpuMemoryTotal, memory.total);
        Ok(())
    },
    |t, row| {
        let reasons = t.device.current_throttle_reasons()?;
        row.put(Signal::ClockReasons, reasons.bits());
        Ok(())
    },
    |t, row| {
        if !t.plan.gives(Signal::GpuPower, None) {
            row.put(Signal::GpuPower, t.device.power_usage()?.into());
        }
        Ok(())
    },
];

/// Read every `SLOW`.
const SLOW_CALLS: &[Call] = &[
    |t, row| {
        row.put(
            Signal::PcieGeneration,
            t.device.current_pcie_link_gen()?.into(),
        );
        Ok(())
    },
    |t, row| {
        row.put(
            Signal::PcieWidth,
            t.device.current_pcie_link_width()?.into(),
        );
        Ok(())
    },
    |t, row| {
        for link in (0..t.links).filter(|l| !t.plan.gives(Signal::NvlinkUp, Some(*l))) {
            let up = t.device.link_wrapper_for(link.into()).is_active()?;
            let reading = Reading::wide(up.into());
            row.columns.push((Signal::NvlinkUp, Some(link), reading));
        }
        Ok(())
    },
    |t, row| {
        let fabric = fabric(&t.device)?;
        row.put(Signal::FabricState, fabric.state.into());
        // Only a completed registration has a status (nvml.h).
        if u32::from(fabric.state) == NVML_GPU_FABRIC_STATE_COMPLETED {
            row.states.push(("fabric_status", fabric.status.into()));
        }
        let health = fabric.health.map(|h| ("fabric_health_mask", h.into()));
        row.states.extend(health);
        Ok(())
    },
    |t, row| {
        let found = t.device.running_compute_processes()?;
        let pids: BTreeSet<u32> = found.into_iter().map(|p| p.pid).collect();
        row.processes = Some(pids.into_iter().collect());
        Ok(())
    },
    |t, row| {
        let split = t.device.mig_mode()?.current == NVML_DEVICE_MIG_ENABLE;
        row.states.push(("mig_mode", split.into()));
        let parts = if split {
            t.device.mig_device_count()?.min(MOST_PARTS)
        } else {
            0
        };
        for index in 0..parts {
            match t.device.mig_device_by_index(index) {
                Ok(part) => row.parts.push((index, part.uuid()?)),
                // Not every place is taken.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    },
];

/// What a GPU is; read once, and again after it was lost.
#[derive(Debug, Clone)]
struct Identity {
    address: String,
    name: String,
    labels: BTreeMap<&'static str, String>,
    /// What it can do and bear.
    limits: Vec<(Signal, u64)>,
}

/// What a device supports.
#[derive(Debug, Clone, Default)]
struct Abilities {
    plan: Plan,
    links: u8,
    /// Calls of each table that are not supported, as bits.
    refused: [u32; 2],
}

/// One GPU of the driver's list.
#[derive(Debug, Default)]
pub struct Gpu {
    index: u32,
    identity: Option<Identity>,
    abilities: Abilities,
    probe_at: Duration,
    slow: Row,
    slow_at: Duration,
    /// Not to be read by us, until then.
    barred_until: Duration,
    presence: Presence,
}

/// The driver is gone: no device can be read.
#[derive(Debug)]
pub struct DriverGone(pub NvmlError);

impl Gpu {
    /// The GPU of this place in the driver's list.
    #[must_use]
    pub fn new(index: u32) -> Gpu {
        Gpu {
            index,
            ..Gpu::default()
        }
    }

    /// PCI address, once it is known.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.identity.as_ref().map(|i| i.address.as_str())
    }

    /// Process ids that compute on it, ascending; `None` where it does not tell.
    #[must_use]
    pub fn processes(&self) -> Option<&[u32]> {
        self.slow.processes.as_deref()
    }

    /// Reads it, unless it is lost and its pause lasts. A lost GPU gives an event and no values.
    /// Returns whether it answers again after it was lost.
    ///
    /// # Errors
    /// The driver as a whole is gone.
    pub fn poll(
        &mut self,
        nvml: &Nvml,
        driver: Option<&str>,
        now: Duration,
        out: &mut Gathered,
    ) -> Result<bool, DriverGone> {
        if now < self.barred_until || !self.presence.due(now) {
            return Ok(false);
        }
        match self.read(nvml, driver, now) {
            Ok(row) => {
                let back = self.presence.found();
                if let Some(identity) = &self.identity {
                    if back {
                        out.events.push(gpu_back(&identity.address, &identity.name));
                    }
                    publish(identity, &row, &self.slow, out);
                }
                return Ok(back);
            }
            Err(error) if is_driver_gone(&error) => return Err(DriverGone(error)),
            Err(error) if is_barred(&error) => self.barred_until = now + PROBE,
            Err(error) => {
                if self.presence.lost(now) {
                    let unnamed = format!("GPU {}", self.index);
                    let (address, name) = self
                        .identity
                        .as_ref()
                        .map_or(("", &unnamed), |i| (&i.address, &i.name));
                    out.events.push(gpu_lost(address, name, &error.to_string()));
                }
                self.abilities = Abilities::default();
                self.probe_at = Duration::ZERO;
                self.slow = Row::default();
                self.slow_at = Duration::ZERO;
            }
        }
        Ok(false)
    }

    /// The values of one sample. An error is that of the device as a whole.
    fn read(&mut self, nvml: &Nvml, driver: Option<&str>, now: Duration) -> Result<Row, NvmlError> {
        let device = nvml.device_by_index(self.index)?;
        // What comes back may be another GPU.
        if self.identity.is_none() || self.presence.is_lost() {
            self.identity = Some(identify(&device, driver)?);
        }
        if now >= self.probe_at {
            self.abilities = probe(&device)?;
            self.probe_at = now + PROBE;
        }
        let Abilities {
            plan,
            links,
            refused: [fast_refused, slow_refused],
        } = &mut self.abilities;
        let target = Target {
            device,
            plan,
            links: *links,
        };
        let mut row = Row::default();
        let mut failed = run(FAST_CALLS, fast_refused, &target, &mut row)?;
        match answers(&target.device, target.plan.fields()) {
            Ok(answers) => {
                let values = target.plan.read(&answers);
                row.columns.extend(values.columns);
                row.counters.extend(values.parts);
            }
            Err(error) if is_fatal(&error) => return Err(error),
            Err(error) => failed = failed.or(Some(error)),
        }
        // One unknown error is one value's; nothing but errors is the device's.
        if row.columns.is_empty()
            && let Some(error) = failed
        {
            return Err(error);
        }
        if now >= self.slow_at {
            let mut slow = Row::default();
            run(SLOW_CALLS, slow_refused, &target, &mut slow)?;
            self.slow = slow;
            self.slow_at = now + SLOW;
        }
        Ok(row)
    }
}

fn publish(identity: &Identity, fast: &Row, slow: &Row, out: &mut Gathered) {
    out.info.push(Info {
        kind: Entity::Gpu,
        entity: identity.address.clone(),
        labels: identity.labels.clone(),
    });
    for (signal, index, reading) in fast.columns.iter().chain(&slow.columns) {
        out.put(Entity::Gpu, &identity.address, *signal, *index, *reading);
    }
    out.gpu_parts
        .extend(slow.parts.iter().map(|(index, uuid)| GpuPart {
            gpu: identity.address.clone(),
            index: *index,
            uuid: uuid.clone(),
        }));
    for (signal, value) in &identity.limits {
        let reading = Reading::wide(*value);
        out.put(Entity::Gpu, &identity.address, *signal, None, reading);
    }
    let rows = [fast, slow].into_iter();
    let raw = rows.flat_map(|row| {
        let counters = row.counters.iter().map(|part| (RawKind::Counter, part));
        counters.chain(row.states.iter().map(|state| (RawKind::Gauge, state)))
    });
    out.raw.extend(raw.map(|(kind, (name, value))| {
        RawCounter::new(kind, "nvml", &identity.address, name, *value)
    }));
}

/// Makes the calls that are not refused, remembers those that now are, and returns the first error
/// that may be the device's and not only a value's.
fn run(
    calls: &[Call],
    refused: &mut u32,
    target: &Target<'_>,
    row: &mut Row,
) -> Result<Option<NvmlError>, NvmlError> {
    let mut failed = None;
    for (at, call) in calls.iter().enumerate() {
        if *refused & (1 << at) != 0 {
            continue;
        }
        match call(target, row) {
            Ok(()) => {}
            Err(error) if is_fatal(&error) => return Err(error),
            Err(error) => {
                if is_unsupported(&error) {
                    *refused |= 1 << at;
                }
                if !is_barred(&error) {
                    failed = failed.or(Some(error));
                }
            }
        }
    }
    Ok(failed)
}

fn identify(device: &Device<'_>, driver: Option<&str>) -> Result<Identity, NvmlError> {
    let bus_id = device.pci_info()?.bus_id;
    let address = pci_address(&bus_id).unwrap_or(bus_id);
    let labels: BTreeMap<&'static str, String> = [
        ("name", device.name().ok()),
        ("uuid", device.uuid().ok()),
        ("serial", device.serial().ok()),
        ("vbios", device.vbios_version().ok()),
        ("driver", driver.map(str::to_owned)),
        ("pci_address", Some(address.clone())),
        ("vendor", Some("nvidia".to_owned())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?.trim().to_owned())))
    .filter(|(_, value)| !value.is_empty() && value != "N/A")
    .collect();
    let limit = |of| {
        device
            .temperature_threshold(of)
            .map(|degrees| degrees * 1000)
    };
    let limits = [
        (Signal::PcieMaxGeneration, device.max_pcie_link_gen()),
        (Signal::PcieMaxWidth, device.max_pcie_link_width()),
        (
            Signal::GpuTemperatureLimit,
            limit(TemperatureThreshold::Slowdown),
        ),
        (
            Signal::GpuMemoryTemperatureLimit,
            limit(TemperatureThreshold::MemoryMax),
        ),
    ]
    .into_iter()
    .filter_map(|(signal, value)| Some((signal, value.ok().filter(|v| *v > 0)?.into())))
    .collect();
    let name = labels.get("name").cloned();
    Ok(Identity {
        name: name.unwrap_or_else(|| "GPU".to_owned()),
        address,
        labels,
        limits,
    })
}

/// Asks for every field that may be of use. Without fields there are none, which is no error.
fn probe(device: &Device<'_>) -> Result<Abilities, NvmlError> {
    let ask = |fields: &[Field]| match answers(device, fields) {
        Err(error) if is_fatal(&error) => Err(error),
        Err(_) => Ok(Vec::new()),
        Ok(answers) => Ok(answers),
    };
    let links = ask(&[fields::LINK_COUNT])?
        .first()
        .copied()
        .flatten()
        .and_then(|reading| u8::try_from(reading.value).ok())
        .filter(|links| *links <= MOST_LINKS)
        .unwrap_or(0);
    let candidates = fields::candidates(links);
    let supported = candidates
        .iter()
        .zip(ask(&candidates)?)
        .filter_map(|(field, answer)| answer.map(|_| *field))
        .collect();
    Ok(Abilities {
        plan: Plan::new(links, &supported),
        links,
        refused: [0; 2],
    })
}

/// Whether nothing more can be had from the device, or from the driver.
pub fn is_fatal(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost) || is_driver_gone(error)
}

/// Whether no device can be read any more.
fn is_driver_gone(error: &NvmlError) -> bool {
    matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded)
}

/// Whether asking again soon is no use, though nothing is wrong.
fn is_barred(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::UnexpectedVariant(_)
    )
}

/// Whether asking for the same value again soon is no use. That a handle or an argument is not known
/// says of one value that there is none, and of all of them that the device has vanished.
fn is_unsupported(error: &NvmlError) -> bool {
    is_barred(error) || matches!(error, NvmlError::InvalidArg | NvmlError::NotFound)
}
