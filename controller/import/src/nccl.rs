//! NCCL's topology in XML: what `NCCL_TOPO_DUMP_FILE` gets, and what clouds ship for `NCCL_TOPO_FILE`.
//!
//! Shipped files may name no GPU and no NIC: a PCI class then says what a device is.

use crate::affinity::{Affinity, Device, Path};
use crate::rate;
use crate::text::Error;
use crate::xml::{Step, walk};
use std::collections::BTreeMap;

/// Broadcom's (LSI's) switches show themselves as two levels of bridges; NCCL flattens them
/// (`ncclTopoFlattenBcmSwitches`), so that both levels count as one.
const FLATTENED: [&str; 2] = ["0xc010", "0xc030"];

/// A device with the bridges above it.
struct Found {
    device: Device,
    gpu: bool,
    /// Numbers of PCI bridges, from the root; the CPU's number is first.
    above: Vec<usize>,
    /// `NVLinks` by the PCI address of what they lead to: a GPU, or a switch.
    links: BTreeMap<String, u32>,
}

/// A CPU or a PCI device in which the reader stands.
struct Open {
    number: usize,
    found: Option<usize>,
    counts: bool,
}

/// Reads NCCL's topology.
///
/// # Errors
/// [`Error`] if it is no XML, or its root is not `system`.
pub fn parse(text: &str) -> Result<Affinity, Error> {
    let mut found: Vec<Found> = Vec::new();
    // One for each element that is open; None where it is no place.
    let mut open: Vec<Option<Open>> = Vec::new();
    let mut flattened: Vec<bool> = Vec::new();
    let (mut numa, mut cpus) = (None, None);
    let mut root = false;
    walk(text, |step, at| {
        let element = match step {
            Step::Begin(element) => element,
            Step::End => {
                open.pop();
                return Ok(());
            }
            Step::Text(_) => return Ok(()),
        };
        if !root && element.name != "system" {
            return Err(Error::at_byte(text, at, "a system element"));
        }
        root = true;
        let inner = open.iter().flatten().last().and_then(|o| o.found);
        let mut place = None;
        match element.name.as_str() {
            "cpu" => {
                numa = element.attribute("numaid").and_then(|n| n.parse().ok());
                cpus = element.attribute("affinity");
                place = Some(Open {
                    number: flattened.len(),
                    found: None,
                    counts: true,
                });
                flattened.push(false);
            }
            "pci" => {
                let class = element.attribute("class").unwrap_or_default();
                let gpu = class.starts_with("0x03");
                let broadcom = element.attribute("vendor").as_deref() == Some("0x1000");
                let model = element.attribute("device").unwrap_or_default();
                let number = flattened.len();
                flattened.push(broadcom && FLATTENED.contains(&model.as_str()));
                let endpoint = (gpu || class.starts_with("0x02")).then(|| {
                    let above = open.iter().flatten().filter(|o| o.counts);
                    let bus = element.attribute("busid");
                    found.push(Found {
                        device: Device {
                            name: bus.clone().unwrap_or_default(),
                            bus,
                            numa,
                            cpus: cpus.clone(),
                            ..Device::default()
                        },
                        gpu,
                        above: above.map(|o| o.number).collect(),
                        links: BTreeMap::new(),
                    });
                    found.len() - 1
                });
                place = Some(Open {
                    number,
                    found: endpoint,
                    counts: endpoint.is_none(),
                });
            }
            "gpu" => {
                let device = inner.and_then(|n| found.get_mut(n));
                if let (Some(f), Some(dev)) = (device, element.attribute("dev")) {
                    f.device.name = format!("GPU{dev}");
                    f.gpu = true;
                }
            }
            "nvlink" => {
                let count = element
                    .attribute("count")
                    .and_then(|c| c.parse::<u32>().ok());
                if let (Some(f), Some(count)) = (inner.and_then(|n| found.get_mut(n)), count) {
                    let total = f.device.nvlinks.unwrap_or(0).saturating_add(count);
                    f.device.nvlinks = Some(total);
                    let target = element.attribute("target").unwrap_or_default();
                    let links = f.links.entry(target).or_default();
                    *links = links.saturating_add(count);
                }
            }
            "net" => {
                if let Some(f) = inner.and_then(|n| found.get_mut(n)) {
                    net(&mut f.device, &element);
                }
            }
            _ => {}
        }
        open.push(place);
        Ok(())
    })?;
    if !root {
        return Err(Error::new(1, 1, "a system element", text.trim()));
    }
    let (gpus, nics): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|f| f.gpu);
    let paths = |others: &[&Found]| -> Vec<Vec<Option<Path>>> {
        let row = |g: &&Found| others.iter().map(|o| path(g, o, &flattened)).collect();
        gpus.iter().map(row).collect()
    };
    Ok(Affinity {
        gpu_nic: paths(&nics),
        gpu_gpu: paths(&gpus),
        gpus: gpus.iter().map(|f| f.device.clone()).collect(),
        nics: nics.iter().map(|f| f.device.clone()).collect(),
    })
}

/// A verbs device or interface of a NIC; one PCI device may have two.
fn net(device: &mut Device, element: &crate::xml::Element<'_>) {
    let name = element.attribute("name").unwrap_or_default();
    if device.rate_bps.is_none() && device.bus.as_deref() == Some(&device.name) {
        device.name = name;
    } else {
        device.name = format!("{},{name}", device.name);
    }
    // In Mbit/s.
    let speed = element
        .attribute("speed")
        .and_then(|s| s.parse::<u32>().ok());
    if let Some(speed) = speed {
        let before = device.rate_bps.unwrap_or(0.0);
        device.rate_bps = Some(before + rate::link_bps(1, f64::from(speed) * 1e6));
    }
}

/// `NVLinks` between two GPUs: direct ones, or through switches that both have links to.
fn nvlinks(a: &Found, b: &Found) -> Option<u32> {
    let direct = b.device.bus.as_ref().and_then(|bus| a.links.get(bus));
    let through = |(switch, mine): (&String, &u32)| {
        let theirs = b.links.get(switch)?;
        Some(*mine.min(theirs))
    };
    let switched = a.links.iter().filter_map(through);
    let switched = switched.reduce(u32::saturating_add);
    direct.copied().or(switched)
}

fn path(a: &Found, b: &Found, flattened: &[bool]) -> Option<Path> {
    if std::ptr::eq(a, b) {
        return None;
    }
    if let Some(links) = nvlinks(a, b) {
        return Some(Path::NvLink(links));
    }
    let shared = a
        .above
        .iter()
        .zip(&b.above)
        .take_while(|(x, y)| x == y)
        .count();
    if shared == 0 {
        return Some(Path::Sys);
    }
    if shared == 1 {
        // Below one CPU, but not below one bridge.
        return Some(Path::Phb);
    }
    let between = a.above[shared..].iter().chain(&b.above[shared..]);
    let top = a.above[shared - 1];
    // Both levels of a flattened switch are one bridge.
    let mut deeper = between.filter(|n| !(flattened[**n] && flattened[top]));
    Some(if deeper.next().is_none() {
        Path::Pix
    } else {
        Path::Pxb
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"<system version="1">
  <cpu numaid="0" affinity="ff">
    <pci busid="0000:01:00.0" class="0x060400">
      <pci busid="0000:02:00.0" class="0x030200"><gpu dev="0"><nvlink target="x" count="4"/><nvlink target="y" count="5"/></gpu></pci>
      <pci busid="0000:03:00.0" class="0x020000"><nic><net name="mlx5_0" speed="400000"/></nic></pci>
      <pci busid="0000:04:00.0" class="0x060400">
        <pci busid="0000:05:00.0" class="0x020000"/>
      </pci>
    </pci>
    <pci busid="0000:06:00.0" class="0x020000"><nic><net name="eth0" speed="25000"/></nic></pci>
  </cpu>
  <cpu numaid="1" affinity="ff00"><pci busid="0000:81:00.0" class="0x020700"/></cpu>
</system>"#;

    #[test]
    fn a_path_is_what_lies_between() {
        let affinity = parse(TEXT).unwrap();
        let names: Vec<&str> = affinity.nics.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "0000:05:00.0", "eth0", "0000:81:00.0"]);
        let paths: Vec<Path> = affinity.gpu_nic[0].iter().flatten().copied().collect();
        assert_eq!(paths, [Path::Pix, Path::Pxb, Path::Phb, Path::Sys]);
        assert_eq!(affinity.gpus[0].name, "GPU0");
        assert_eq!(affinity.gpus[0].nvlinks, Some(9));
        assert_eq!(affinity.nics[0].rate_bps, Some(400e9));
        assert_eq!(affinity.nics[3].numa, Some(1));
    }

    #[test]
    fn gpus_are_joined_by_nvlinks_directly_or_through_switches() {
        let gpu = |bus: &str, links: &str| {
            format!(
                "<pci busid=\"{bus}\" class=\"0x030200\"><gpu dev=\"{bus}\">{links}</gpu></pci>"
            )
        };
        let link =
            |target: &str, count: u32| format!("<nvlink target=\"{target}\" count=\"{count}\"/>");
        let gpus = [
            gpu("1", &format!("{}{}", link("s1", 5), link("s2", 4))),
            gpu(
                "2",
                &format!("{}{}{}", link("s1", 5), link("s2", 3), link("3", 2)),
            ),
            gpu("3", &link("2", 2)),
        ];
        let text = format!("<system><cpu numaid=\"0\">{}</cpu></system>", gpus.concat());
        let between = parse(&text).unwrap().gpu_gpu;
        assert_eq!(between[0], [None, Some(Path::NvLink(8)), Some(Path::Phb)]);
        assert_eq!(between[2][1], Some(Path::NvLink(2)));
    }

    #[test]
    fn errors_name_their_place() {
        assert_eq!(parse("\n <x/>").unwrap_err().line, 2);
        let error = parse("<system>\n  <cpu></pci>\n</system>").unwrap_err();
        assert_eq!(error.line, 2, "{error}");
        assert!(parse("<system>").is_err());
        let deep = format!("<system>{}", "<pci>".repeat(100));
        assert!(parse(&deep).unwrap_err().expected.contains("at most 64"));
    }
}
