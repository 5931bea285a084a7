//! NVML's functions that nvml-wrapper does not wrap, or not as they are needed: fields with a scope,
//! and the fabric.

use super::fields::Field;
use super::nvml::is_fatal;
use crate::source::Reading;
use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

/// Fields asked for in one call: a GPU with 18 links fits.
const BATCH: usize = 128;

/// The values of these fields in their order; `None` is a field that gave none.
///
/// By hand, because nvml-wrapper asks for no scope, so for no link but the first.
///
/// # Errors
/// The call is not there or fails as a whole, or the GPU is lost.
#[expect(
    unsafe_code,
    reason = "nvml-wrapper cannot ask for the fields of a link"
)]
pub fn answers(device: &Device<'_>, fields: &[Field]) -> Result<Vec<Option<Reading>>, NvmlError> {
    let mut answers = Vec::with_capacity(fields.len());
    for batch in fields.chunks(BATCH) {
        let mut values: Vec<sys::nvmlFieldValue_t> = batch
            .iter()
            .map(|field| sys::nvmlFieldValue_t {
                fieldId: field.id,
                scopeId: field.scope,
                timestamp: 0,
                latencyUsec: 0,
                valueType: 0,
                nvmlReturn: sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN,
                value: sys::nvmlValue_t { ullVal: 0 },
            })
            .collect();
        let count = i32::try_from(values.len()).map_err(|_| NvmlError::InvalidArg)?;
        let lib = device.nvml().lib();
        let call = nvml_sym(lib.nvmlDeviceGetFieldValues.as_ref())?;
        // SAFETY: the handle belongs to the library that `device` borrows, and the pointer to
        // `count` values that outlive the call.
        nvml_try(unsafe { call(device.handle(), count, values.as_mut_ptr()) })?;
        for value in &values {
            if value.nvmlReturn == sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST {
                return Err(NvmlError::GpuLost);
            }
            answers.push(reading(value));
        }
    }
    Ok(answers)
}

/// The value of a field as the driver types it; the width of an integer is that of its counter.
#[expect(unsafe_code, reason = "NVML hands values over in a union")]
fn reading(field: &sys::nvmlFieldValue_t) -> Option<Reading> {
    if field.nvmlReturn != sys::nvmlReturn_enum_NVML_SUCCESS {
        return None;
    }
    // SAFETY: all 8 bytes of the union were zeroed before the call, and every member is a plain
    // number that any bits are valid for.
    let (narrow, wide, long) =
        unsafe { (field.value.uiVal, field.value.ullVal, field.value.ulVal) };
    let short = u16::try_from(narrow & 0xffff).ok();
    let (value, bits) = match field.valueType {
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => (Some(narrow.into()), 32),
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG => (Some(long), 64),
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => (Some(wide), 64),
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => {
            (u64::try_from(wide.cast_signed()).ok(), 64)
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => {
            (u64::try_from(narrow.cast_signed()).ok(), 64)
        }
        sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT => (short.map(u64::from), 16),
        _ => (None, 64),
    };
    // NVML_VALUE_NOT_AVAILABLE is -1.
    let value = value.filter(|v| *v != u64::MAX)?;
    Some(Reading {
        bits,
        ..Reading::wide(value)
    })
}

/// A GPU's place in the NVLink fabric.
#[derive(Debug, Clone, Copy)]
pub struct Fabric {
    /// 0 unsupported, 1 not started, 2 in progress, 3 completed.
    pub state: u8,
    /// An nvmlReturn_t; only a completed registration has one.
    pub status: u32,
    /// Bits of NVML_GPU_FABRIC_HEALTH_MASK_*; `None` from drivers without the versioned call.
    pub health: Option<u32>,
}

/// Second version of the structure and its size in bytes, as NVML_STRUCT_VERSION makes it.
const FABRIC_V2: u32 = (2 << 24) | 36;

/// # Errors
/// Neither version of the call is there, or the device refuses both.
#[expect(unsafe_code, reason = "nvml-wrapper has no call for the fabric")]
pub fn fabric(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    let lib = device.nvml().lib();
    if let Ok(call) = &lib.nvmlDeviceGetGpuFabricInfoV {
        let mut info = sys::nvmlGpuFabricInfoV_t {
            version: FABRIC_V2,
            clusterUuid: [0; 16],
            status: 0,
            cliqueId: 0,
            state: 0,
            healthMask: 0,
            healthSummary: 0,
        };
        // SAFETY: the handle belongs to the library that `device` borrows; the structure is of the
        // third version, which begins like the second that is asked for and is longer.
        match nvml_try(unsafe { call(device.handle(), &raw mut info) }) {
            Ok(()) => {
                return Ok(Fabric {
                    state: info.state,
                    status: info.status,
                    health: Some(info.healthMask),
                });
            }
            Err(error) if is_fatal(&error) => return Err(error),
            // The call is there, but this version of the structure or the device is not known to it.
            Err(_) => {}
        }
    }
    let call = nvml_sym(lib.nvmlDeviceGetGpuFabricInfo.as_ref())?;
    let mut info = sys::nvmlGpuFabricInfo_t {
        clusterUuid: [0; 16],
        status: 0,
        cliqueId: 0,
        state: 0,
    };
    // SAFETY: the handle belongs to the library that `device` borrows, and the structure, which has
    // but this version, outlives the call.
    nvml_try(unsafe { call(device.handle(), &raw mut info) })?;
    Ok(Fabric {
        state: info.state,
        status: info.status,
        health: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(kind: u32, value: u64, outcome: u32) -> sys::nvmlFieldValue_t {
        sys::nvmlFieldValue_t {
            fieldId: 1,
            scopeId: 0,
            timestamp: 0,
            latencyUsec: 0,
            valueType: kind,
            nvmlReturn: outcome,
            value: sys::nvmlValue_t { ullVal: value },
        }
    }

    #[test]
    fn values_by_their_type() {
        let read = |kind, value| reading(&field(kind, value, 0)).map(|r| (r.value, r.bits));
        assert_eq!(read(1, 7), Some((7, 32)));
        assert_eq!(read(3, 1 << 40), Some((1 << 40, 64)));
        assert_eq!(read(4, 5), Some((5, 64)));
        assert_eq!(read(6, 9), Some((9, 16)));
        for (kind, value) in [
            (0, 1),
            (3, u64::MAX),
            (4, 1 << 63),
            (5, 0xffff_ffff),
            (7, 1),
        ] {
            assert_eq!(read(kind, value), None, "type {kind}, value {value:#x}");
        }
        assert_eq!(reading(&field(3, 7, 3)), None);
    }

    #[test]
    fn the_version_of_the_fabric_structure_names_its_size() {
        let size = size_of::<sys::nvmlGpuFabricInfo_v2_t>();
        assert_eq!(usize::try_from(FABRIC_V2 & 0xff_ffff).unwrap(), size);
        assert!(size_of::<sys::nvmlGpuFabricInfoV_t>() >= size);
    }

    proptest! {
        #[test]
        fn any_value_may_be_read(kind in 0u32..10, value: u64, outcome in 0u32..30) {
            let read = reading(&field(kind, value, outcome));
            prop_assert!(outcome == 0 || read.is_none());
            if let Some(Reading { value, bits, .. }) = read {
                prop_assert!(bits == 64 || value < 1 << bits);
            }
        }
    }
}
