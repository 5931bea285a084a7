//! `nvidia-smi -q -x`: which GPUs a node has, to compare with what an agent tells.

use crate::finding::{Finding, Kind};
use crate::text::Error;
use crate::xml::{Step, walk};
use serde::Serialize;

/// A GPU. What this version of the DTD does not have, or reads `N/A`, is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Gpu {
    /// PCI address as nvidia-smi prints it, eight digits of domain.
    pub bus: String,
    pub product: Option<String>,
    pub uuid: Option<String>,
    pub serial: Option<String>,
    pub memory_mib: Option<u64>,
    /// It does not answer any more.
    pub lost: bool,
    /// A row of memory waits for a reset to be remapped.
    pub remap_pending: Option<bool>,
}

/// The GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Inventory {
    pub driver: Option<String>,
    /// Number that the driver says are attached.
    pub attached: Option<u32>,
    pub gpus: Vec<Gpu>,
}

/// Reads the XML of nvidia-smi.
///
/// # Errors
/// [`Error`] if it is no XML, or its root is not `nvidia_smi_log`.
pub fn parse(text: &str) -> Result<Inventory, Error> {
    let mut inventory = Inventory::default();
    let mut path: Vec<String> = Vec::new();
    walk(text, |step, at| {
        match step {
            Step::Begin(element) => {
                if path.is_empty() && element.name != "nvidia_smi_log" {
                    return Err(Error::at_byte(text, at, "an nvidia_smi_log element"));
                }
                if path.len() == 1 && element.name == "gpu" {
                    inventory.gpus.push(Gpu {
                        bus: element.attribute("id").unwrap_or_default(),
                        ..Gpu::default()
                    });
                }
                path.push(element.name);
            }
            Step::End => {
                path.pop();
            }
            Step::Text(value) => value_of(&path, value.trim(), &mut inventory),
        }
        Ok(())
    })?;
    Ok(inventory)
}

fn value_of(path: &[String], value: &str, inventory: &mut Inventory) {
    if value.is_empty() || value == "N/A" {
        return;
    }
    let path: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    let own = || Some(value.to_owned());
    match (path.as_slice(), inventory.gpus.last_mut()) {
        (["driver_version"], _) => inventory.driver = own(),
        (["attached_gpus"], _) => inventory.attached = value.parse().ok(),
        (["gpu", ..], Some(gpu)) if value == "GPU is lost" => gpu.lost = true,
        (["gpu", "product_name"], Some(gpu)) => gpu.product = own(),
        (["gpu", "uuid"], Some(gpu)) => gpu.uuid = own(),
        (["gpu", "serial"], Some(gpu)) => gpu.serial = own(),
        (["gpu", "fb_memory_usage", "total"], Some(gpu)) => {
            let number = value.strip_suffix(" MiB");
            gpu.memory_mib = number.and_then(|n| n.parse().ok());
        }
        (["gpu", "remapped_rows", "remapped_row_pending"], Some(gpu)) => {
            gpu.remap_pending = match value {
                "Yes" => Some(true),
                "No" => Some(false),
                _ => None,
            };
        }
        _ => {}
    }
}

/// GPUs that are lost or wait for a reset.
#[must_use]
pub fn findings(inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for gpu in &inventory.gpus {
        if gpu.lost {
            let text = format!(
                "the GPU at {} is lost: the node needs a reset or a visit",
                gpu.bus
            );
            findings.push(Finding::critical(Kind::Hardware, gpu.bus.clone(), text));
        }
        if gpu.remap_pending == Some(true) {
            let text = format!(
                "the GPU at {} has a row of memory to remap: reset it when its job ends",
                gpu.bus
            );
            findings.push(Finding::warning(Kind::Hardware, gpu.bus.clone(), text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_absent() {
        let text = "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v12.dtd\">\n<nvidia_smi_log><driver_version>1.2</driver_version><gpu id=\"00000000:01:00.0\"><product_name>Card</product_name><serial>N/A</serial><remapped_rows>N/A</remapped_rows></gpu><gpu id=\"00000000:02:00.0\"><temperature>GPU is lost</temperature><remapped_rows><remapped_row_pending>Yes</remapped_row_pending></remapped_rows></gpu></nvidia_smi_log>";
        let inventory = parse(text).unwrap();
        let gpu = &inventory.gpus[0];
        assert_eq!(
            (gpu.serial.as_ref(), gpu.remap_pending, gpu.lost),
            (None, None, false)
        );
        assert_eq!(findings(&inventory).len(), 2);
        assert!(parse("<a/>").is_err());
    }
}
