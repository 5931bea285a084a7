//! Which NIC is near which GPU, from a NCCL topology or `nvidia-smi topo -m`.

use crate::finding::{Finding, Kind};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// What a connection crosses, the nearest first, in the words of `nvidia-smi topo -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// This many bonded `NVLinks`.
    NvLink(u32),
    /// At most one PCIe bridge.
    Pix,
    /// Several PCIe bridges, no host bridge.
    Pxb,
    /// A PCIe host bridge.
    Phb,
    /// Several host bridges of one NUMA node.
    Node,
    /// The link between sockets.
    Sys,
}

impl Path {
    /// Reads `PIX` or `NV18`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Path> {
        Some(match text {
            "PIX" => Path::Pix,
            "PXB" => Path::Pxb,
            "PHB" => Path::Phb,
            "NODE" => Path::Node,
            "SYS" | "SOC" => Path::Sys,
            _ => Path::NvLink(text.strip_prefix("NV")?.parse().ok()?),
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::NvLink(count) => return write!(f, "NV{count}"),
            Path::Pix => "PIX",
            Path::Pxb => "PXB",
            Path::Phb => "PHB",
            Path::Node => "NODE",
            Path::Sys => "SYS",
        })
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A GPU or a NIC.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Device {
    /// `GPU0`; of a NIC its verbs devices, else what the tool calls it.
    pub name: String,
    /// PCI address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// CPUs near it, as the tool prints them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Bits per second of a NIC's ports together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<f64>,
    /// `NVLinks` of a GPU, to other GPUs or to switches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks: Option<u32>,
}

/// The GPUs and NICs of one node.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Affinity {
    pub gpus: Vec<Device>,
    pub nics: Vec<Device>,
    /// For each GPU, the path to each NIC; `None` where it is not told.
    pub gpu_nic: Vec<Vec<Option<Path>>>,
    /// For each GPU, the path to each GPU; `None` to itself and where it is not told.
    pub gpu_gpu: Vec<Vec<Option<Path>>>,
}

/// A GPU with the NICs nearest to it: its rail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nearest<'a> {
    pub gpu: &'a str,
    pub path: Path,
    pub nics: Vec<&'a str>,
}

impl Affinity {
    /// For each GPU its nearest NICs. A GPU to which no path is told is left out.
    #[must_use]
    pub fn nearest(&self) -> Vec<Nearest<'_>> {
        let mut nearest = Vec::new();
        for (gpu, paths) in self.gpus.iter().zip(&self.gpu_nic) {
            let Some(path) = paths.iter().flatten().min().copied() else {
                continue;
            };
            let near = self.nics.iter().zip(paths);
            let near = near.filter(|(_, p)| **p == Some(path));
            nearest.push(Nearest {
                gpu: &gpu.name,
                path,
                nics: near.map(|(nic, _)| nic.name.as_str()).collect(),
            });
        }
        nearest
    }

    /// GPUs without a NIC under their own PCIe switch, and NICs that several GPUs share.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut users: BTreeMap<Vec<&str>, Vec<&str>> = BTreeMap::new();
        for near in self.nearest() {
            if near.path > Path::Pxb {
                let text = format!(
                    "the nearest NIC of {} is {} over {}: GPUDirect RDMA crosses the CPU's PCIe root",
                    near.gpu,
                    near.nics.join(", "),
                    near.path
                );
                findings.push(Finding::warning(Kind::Affinity, near.gpu, text));
            } else {
                users.entry(near.nics).or_default().push(near.gpu);
            }
        }
        for (nics, gpus) in users.into_iter().filter(|(n, g)| g.len() > n.len()) {
            let text = format!(
                "{} share {}: each has only a part of the NIC when all send at once",
                gpus.join(", "),
                nics.join(", ")
            );
            findings.push(Finding::note(Kind::Affinity, nics.join(","), text));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_ordered_by_what_they_cross() {
        let words = ["NV18", "PIX", "PXB", "PHB", "NODE", "SYS"];
        let paths: Vec<Path> = words.iter().map(|w| Path::parse(w).unwrap()).collect();
        assert!(paths.windows(2).all(|p| p[0] < p[1]));
        for (word, path) in words.iter().zip(paths) {
            assert_eq!(path.to_string(), *word);
        }
        assert_eq!(Path::parse("NVX"), None);
    }
}
