//! NVIDIA GPUs by NVML. Values that a device does not support are absent; a device that is lost
//! leaves the others.

use super::events::Events;
use crate::kmsg::pci;
use crate::source::{Event, Gathered, Info, Reading, Severity};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id as fi;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlFieldValue_t, nvmlGpuFabricInfo_t};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weir_wire::signal::{Entity, Signal};

/// State of links and the fabric, and new devices, are looked for this often.
const SLOW: Duration = Duration::from_secs(10);
/// A device that is lost is asked again after this long, and twice as long each time.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// NVML_NVLINK_MAX_LINKS.
const LINKS_MAX: u8 = 18;
/// Values that one call brings.
const FIELDS: [(u32, Signal); 10] = [
    (fi::NVML_FI_DEV_MEMORY_TEMP, Signal::GpuMemoryTemperature),
    (fi::NVML_FI_DEV_ECC_SBE_VOL_TOTAL, Signal::EccCorrected),
    (fi::NVML_FI_DEV_ECC_DBE_VOL_TOTAL, Signal::EccUncorrected),
    (
        fi::NVML_FI_DEV_ECC_SBE_AGG_TOTAL,
        Signal::EccCorrectedLifetime,
    ),
    (
        fi::NVML_FI_DEV_ECC_DBE_AGG_TOTAL,
        Signal::EccUncorrectedLifetime,
    ),
    (fi::NVML_FI_DEV_REMAPPED_COR, Signal::RowsRemappedCorrected),
    (
        fi::NVML_FI_DEV_REMAPPED_UNC,
        Signal::RowsRemappedUncorrected,
    ),
    (fi::NVML_FI_DEV_REMAPPED_PENDING, Signal::RowRemapPending),
    (fi::NVML_FI_DEV_REMAPPED_FAILURE, Signal::RowRemapFailure),
    (fi::NVML_FI_DEV_PCIE_REPLAY_COUNTER, Signal::PcieReplays),
];

/// One GPU.
#[derive(Debug, Default)]
struct Gpu {
    /// As NVML spells the address.
    bus_id: String,
    facts: BTreeMap<&'static str, String>,
    /// Links that were active once: one that is not any more is worth a word.
    links: Vec<u8>,
    /// What is read slowly, shown until it is read again.
    slow: BTreeMap<(Signal, Option<u8>), u64>,
    slow_at: Option<Duration>,
    lost: Option<Lost>,
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    again: Duration,
    backoff: Duration,
}

/// A loaded NVML and its GPUs, by PCI address.
pub struct Nvidia {
    nvml: Arc<Nvml>,
    events: Events,
    gpus: BTreeMap<String, Gpu>,
    list_at: Duration,
    driver: String,
}

impl Nvidia {
    /// Loads the library and begins to listen for XIDs.
    ///
    /// # Errors
    /// There is no library, or no driver behind it.
    pub fn open(library: Option<&Path>) -> Result<Nvidia, NvmlError> {
        let try_library = |name: &OsStr| Nvml::builder().lib_path(name).init();
        let nvml = match library {
            Some(path) => try_library(path.as_os_str())?,
            // The library without a number is there only where people build.
            None => try_library(OsStr::new("libnvidia-ml.so.1"))?,
        };
        let nvml = Arc::new(nvml);
        Ok(Nvidia {
            events: Events::listen(Arc::clone(&nvml)),
            driver: nvml.sys_driver_version().unwrap_or_default(),
            gpus: BTreeMap::new(),
            list_at: Duration::ZERO,
            nvml,
        })
    }

    /// Reads every GPU, and the XIDs since the last time.
    pub fn poll(&mut self, now: Duration, meaning: super::Meaning, out: &mut Gathered) {
        if now >= self.list_at {
            self.list_at = now + SLOW;
            self.list();
        }
        out.events.extend(self.events.take(meaning));
        let nvml = &self.nvml;
        for (pci, gpu) in &mut self.gpus {
            if gpu.lost.is_some_and(|lost| now < lost.again) {
                continue;
            }
            let mut read = Gathered::default();
            let polled = nvml
                .device_by_pci_bus_id(gpu.bus_id.as_str())
                .and_then(|device| gpu.poll(pci, nvml, &device, now, &mut read));
            match polled {
                Ok(()) => {
                    gpu.lost = None;
                    out.append(read);
                }
                Err(error) => out.events.extend(gpu.fail(pci, &error, now)),
            }
        }
    }

    fn list(&mut self) {
        for index in 0..self.nvml.device_count().unwrap_or(0) {
            // One that is lost does not tell its address; if it was known, it stays so.
            let Ok(device) = self.nvml.device_by_index(index) else {
                continue;
            };
            let Ok(info) = device.pci_info() else {
                continue;
            };
            let Some(pci) = pci::address(&info.bus_id) else {
                continue;
            };
            self.gpus.entry(pci).or_insert_with(|| Gpu {
                facts: facts(&device, &self.driver),
                bus_id: info.bus_id,
                ..Gpu::default()
            });
        }
    }
}

fn facts(device: &Device<'_>, driver: &str) -> BTreeMap<&'static str, String> {
    let facts = [
        ("name", device.name().ok()),
        ("uuid", device.uuid().ok()),
        ("serial", device.serial().ok()),
        ("vbios", device.vbios_version().ok()),
        ("driver", Some(driver.to_owned())),
    ];
    let known = |(label, value): (&'static str, Option<String>)| Some((label, value?));
    facts.into_iter().filter_map(known).collect()
}

/// The value, or absence where the device does not have it; an error if the device is lost.
fn optional<T>(result: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            lost @ (NvmlError::GpuLost | NvmlError::Uninitialized | NvmlError::DriverNotLoaded),
        ) => Err(lost),
        Err(_) => Ok(None),
    }
}

impl Gpu {
    fn fail(&mut self, pci: &str, error: &NvmlError, now: Duration) -> Option<Event> {
        let first = self.lost.is_none();
        let backoff = self
            .lost
            .map_or(BACKOFF_MIN, |lost| (lost.backoff * 2).min(BACKOFF_MAX));
        self.lost = Some(Lost {
            again: now + backoff,
            backoff,
        });
        self.slow_at = None;
        first.then(|| Event {
            source: "gpu",
            name: "gpu_lost",
            subject: pci.to_owned(),
            code: None,
            severity: Severity::Critical,
            text: format!("the GPU does not answer: {error}"),
            action: "drain and reboot the node; if it comes back, check seating and power, then replace the GPU".into(),
        })
    }

    fn poll(
        &mut self,
        pci: &str,
        nvml: &Nvml,
        device: &Device<'_>,
        now: Duration,
        out: &mut Gathered,
    ) -> Result<(), NvmlError> {
        let mut put = |signal, index, value: Option<u64>| {
            if let Some(value) = value {
                out.put(Entity::Gpu, pci, signal, index, Reading::wide(value));
            }
        };
        let celsius = optional(device.temperature(TemperatureSensor::Gpu))?;
        put(
            Signal::GpuTemperature,
            None,
            celsius.map(|t| u64::from(t) * 1000),
        );
        let power = optional(device.power_usage())?;
        put(Signal::GpuPower, None, power.map(u64::from));
        let utilisation = optional(device.utilization_rates())?;
        put(
            Signal::GpuUtilisation,
            None,
            utilisation.map(|u| u64::from(u.gpu)),
        );
        if let Some(memory) = optional(device.memory_info())? {
            put(Signal::GpuMemoryUsed, None, Some(memory.used));
            put(Signal::GpuMemoryTotal, None, Some(memory.total));
        }
        let reasons = optional(device.current_throttle_reasons())?;
        put(Signal::ClockReasons, None, reasons.map(|r| r.bits()));
        let ids = FIELDS.map(|(id, _)| FieldId(id));
        let fields = optional(device.field_values_for(&ids))?.unwrap_or_default();
        for ((_, signal), field) in FIELDS.iter().zip(fields) {
            let value = field.ok().and_then(|f| f.value.ok()).and_then(whole);
            let scale = if *signal == Signal::GpuMemoryTemperature {
                1000
            } else {
                1
            };
            // A GPU whose memory has no sensor says 0.
            let value = value.filter(|v| scale == 1 || *v > 0);
            put(*signal, None, value.map(|v| v * scale));
        }
        for (signal, link, bytes) in throughput(nvml, device, &self.links) {
            put(signal, Some(link), Some(bytes));
        }
        if self.slow_at.is_none_or(|at| now >= at) {
            self.slow_at = Some(now + SLOW);
            self.slow = self.read_slowly(nvml, device)?;
        }
        for ((signal, index), value) in &self.slow {
            put(*signal, *index, Some(*value));
        }
        out.info.push(Info {
            kind: Entity::Gpu,
            entity: pci.to_owned(),
            labels: self.facts.clone(),
        });
        Ok(())
    }

    fn read_slowly(
        &mut self,
        nvml: &Nvml,
        device: &Device<'_>,
    ) -> Result<BTreeMap<(Signal, Option<u8>), u64>, NvmlError> {
        let mut slow = BTreeMap::new();
        for (signal, value) in [
            (
                Signal::PcieGeneration,
                optional(device.current_pcie_link_gen())?,
            ),
            (
                Signal::PcieWidth,
                optional(device.current_pcie_link_width())?,
            ),
            (Signal::FabricState, fabric_state(nvml, device)),
        ] {
            slow.extend(value.map(|v| ((signal, None), u64::from(v))));
        }
        for number in 0..LINKS_MAX {
            let link = device.link_wrapper_for(u32::from(number));
            let Some(active) = optional(link.is_active())? else {
                // The device has no more links.
                break;
            };
            if active && !self.links.contains(&number) {
                self.links.push(number);
            }
            // A link that was never active may have nothing at its other end.
            if self.links.contains(&number) {
                slow.insert((Signal::NvlinkUp, Some(number)), u64::from(active));
                let errors = [
                    ErrorCounter::DlReplay,
                    ErrorCounter::DlRecovery,
                    ErrorCounter::DlCrcFlit,
                    ErrorCounter::DlCrcData,
                ]
                .into_iter()
                .filter_map(|counter| link.error_counter(counter).ok())
                .reduce(u64::saturating_add);
                slow.extend(errors.map(|e| ((Signal::NvlinkErrors, Some(number)), e)));
            }
        }
        Ok(slow)
    }
}

/// A field's value as a whole number.
fn whole(value: SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(v) => Some(u64::from(v)),
        SampleValue::U64(v) => Some(v),
        SampleValue::I64(v) => u64::try_from(v).ok(),
        SampleValue::F64(_) => None,
        #[expect(
            unreachable_patterns,
            reason = "newer wrappers know more kinds of numbers"
        )]
        _ => None,
    }
}

/// Bytes over each link, in one call (the wrapper's own has no place for the link's number).
#[expect(
    unsafe_code,
    reason = "a call of the C library that the wrapper does not offer"
)]
fn throughput(nvml: &Nvml, device: &Device<'_>, links: &[u8]) -> Vec<(Signal, u8, u64)> {
    let Ok(get) = nvml.lib().nvmlDeviceGetFieldValues.as_ref() else {
        return Vec::new();
    };
    if links.is_empty() {
        return Vec::new();
    }
    let directions = [
        (
            Signal::NvlinkTxBytes,
            fi::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        ),
        (
            Signal::NvlinkRxBytes,
            fi::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        ),
    ];
    let asked: Vec<(Signal, u8, u32)> = links
        .iter()
        .flat_map(|link| directions.map(|(signal, id)| (signal, *link, id)))
        .collect();
    let mut values: Vec<nvmlFieldValue_t> = asked
        .iter()
        .map(|(_, link, id)| {
            // SAFETY: plain data, for which all zeros are valid.
            let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
            (value.fieldId, value.scopeId) = (*id, u32::from(*link));
            value
        })
        .collect();
    let count = i32::try_from(values.len()).unwrap_or(0);
    // SAFETY: the handle is the device's, which lives; `values` has room for `count` values.
    let result = unsafe { get(device.handle(), count, values.as_mut_ptr()) };
    if result != 0 {
        return Vec::new();
    }
    let read = asked.into_iter().zip(values);
    read.filter(|(_, value)| value.nvmlReturn == 0)
        .map(|((signal, link, _), value)| {
            // SAFETY: the fields count KiB in 64 bits; a union of numbers is valid as any of them.
            let kib = unsafe { value.value.ullVal };
            (signal, link, kib.saturating_mul(1024))
        })
        .collect()
}

/// nvmlGpuFabricState_t; `None` on GPUs without an NVLink fabric.
#[expect(
    unsafe_code,
    reason = "a call of the C library that the wrapper does not offer"
)]
fn fabric_state(nvml: &Nvml, device: &Device<'_>) -> Option<u32> {
    let get = nvml.lib().nvmlDeviceGetGpuFabricInfo.as_ref().ok()?;
    // SAFETY: plain data, for which all zeros are valid.
    let mut info: nvmlGpuFabricInfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is the device's, which lives, and `info` outlives the call.
    let result = unsafe { get(device.handle(), &raw mut info) };
    (result == 0 && info.state != 0).then_some(u32::from(info.state))
}
