//! The roce family, user side: programs on ports, and what they counted.
//!
//! Where the kernel has tcx links (6.6) a program goes with the agent, however that ends. Older
//! kernels take a filter of the `clsact` discipline, which stays behind when the agent is killed: it
//! is known by its name and removed at the next start (one agent counts in a network namespace). The
//! discipline itself may be someone else's and is never removed.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuHashMap},
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, SchedClassifierLinkId},
    },
};
use weir_ebpf_abi::{RoceCounts, RoceKey, direction, roce_skipped};

use super::{
    load::{LoadError, Owned, explain, program, take_map},
    sample::{BpfSample, RoceSample, RoceTotal},
};

/// Programs by hook. The names are what a filter left behind is known by.
const PROGRAMS: [(&str, TcAttachType); 2] = [
    ("weir_roce_in", TcAttachType::Ingress),
    ("weir_roce_out", TcAttachType::Egress),
];
/// Ports at a time: those of a large switch.
const PORTS_MAX: usize = 256;

/// RoCE packets by sender, queue pair and hook.
pub struct Roce {
    table: PerCpuHashMap<Owned, RoceKey, RoceCounts>,
    skipped: PerCpuArray<Owned, u64>,
    /// Entries at the last poll, and what ports saw altogether: entries go, sums only grow.
    last: BTreeMap<RoceKey, RoceCounts>,
    ports_total: BTreeMap<(u32, bool), RoceTotal>,
    /// Ports by ifindex, with their links; without any where attaching failed.
    ports: BTreeMap<u32, Vec<(&'static str, SchedClassifierLinkId)>>,
}

impl Roce {
    /// Loads the programs; [`Roce::watch`] attaches them.
    ///
    /// # Errors
    ///
    /// A program is refused.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let roce = Self {
            table: take_map(ebpf, "ROCE")?,
            skipped: take_map(ebpf, "ROCE_SKIPPED")?,
            last: BTreeMap::new(),
            ports_total: BTreeMap::new(),
            ports: BTreeMap::new(),
        };
        for (name, _) in PROGRAMS {
            let classifier: &mut SchedClassifier = program(ebpf, name)?;
            classifier.load().map_err(|source| LoadError::Program {
                program: name,
                source,
            })?;
        }
        Ok(roce)
    }

    /// Attaches to ports that are new, which are Ethernet's; returns what is worth a line in the log.
    pub fn watch(&mut self, ebpf: &mut Ebpf, ports: &BTreeMap<u32, String>) -> Vec<String> {
        let mut notes = Vec::new();
        // With the port its programs went; the links know nothing of it.
        self.ports.retain(|ifindex, links| {
            let stays = ports.contains_key(ifindex);
            if !stays {
                for (name, link) in std::mem::take(links) {
                    if let Ok(classifier) = program::<SchedClassifier>(ebpf, name) {
                        drop(classifier.detach(link));
                    }
                }
            }
            stays
        });
        for (ifindex, name) in ports {
            if self.ports.contains_key(ifindex) {
                continue;
            }
            if self.ports.len() >= PORTS_MAX {
                notes.push(format!(
                    "roce: more than {PORTS_MAX} ports, {name} is left out"
                ));
                self.ports.insert(*ifindex, Vec::new());
                continue;
            }
            let links = attach(ebpf, name).unwrap_or_else(|why| {
                notes.push(format!("roce: port {name}: {why}"));
                Vec::new()
            });
            self.ports.insert(*ifindex, links);
        }
        notes
    }

    /// Reads the counts.
    pub fn poll(&mut self, sample: &mut BpfSample) {
        let mut last = BTreeMap::new();
        for (key, per_cpu) in self.table.iter().flatten() {
            let counts = sum(&per_cpu);
            let before = self.last.get(&key).copied().unwrap_or_default();
            let port = (key.ifindex, key.direction == direction::INGRESS);
            let total = self.ports_total.entry(port).or_default();
            total.add(&counts, &before);
            sample.roce.push(roce_sample(&key, &counts));
            last.insert(key, counts);
        }
        self.last = last;
        self.ports_total
            .retain(|(ifindex, _), _| self.ports.contains_key(ifindex));
        sample.roce_ports.clone_from(&self.ports_total);
        sample.roce_skipped = (0..roce_skipped::COUNT)
            .filter_map(|cause| self.skipped.get(&cause, 0).ok())
            .flat_map(|per_cpu| per_cpu.iter().copied().collect::<Vec<_>>())
            .sum();
    }
}

impl RoceTotal {
    /// Adds what came since `before`; an entry that was made anew began at zero.
    fn add(&mut self, now: &RoceCounts, before: &RoceCounts) {
        let anew = now.packets < before.packets;
        let since = |now: u64, before: u64| {
            if anew {
                now
            } else {
                now.saturating_sub(before)
            }
        };
        self.bytes += since(now.bytes, before.bytes);
        self.packets += since(now.packets, before.packets);
        self.ce += since(now.ce, before.ce);
        self.cnps += since(now.cnps, before.cnps);
    }
}

fn sum(per_cpu: &[RoceCounts]) -> RoceCounts {
    let total = |of: fn(&RoceCounts) -> u64| per_cpu.iter().map(of).sum();
    RoceCounts {
        bytes: total(|c| c.bytes),
        packets: total(|c| c.packets),
        ce: total(|c| c.ce),
        cnps: total(|c| c.cnps),
        last_ns: per_cpu.iter().map(|c| c.last_ns).max().unwrap_or(0),
    }
}

fn roce_sample(key: &RoceKey, counts: &RoceCounts) -> RoceSample {
    RoceSample {
        ifindex: key.ifindex,
        ingress: key.direction == direction::INGRESS,
        src: key.src.into(),
        dst: key.dst.into(),
        dest_qpn: key.dest_qpn,
        src_port: u16::try_from(key.src_port).unwrap_or(0),
        counts: RoceTotal {
            bytes: counts.bytes,
            packets: counts.packets,
            ce: counts.ce,
            cnps: counts.cnps,
        },
    }
}

/// Attaches both programs to a port, after what a killed agent left there is removed.
fn attach(
    ebpf: &mut Ebpf,
    port: &str,
) -> Result<Vec<(&'static str, SchedClassifierLinkId)>, String> {
    let mut links = Vec::new();
    for (name, hook) in PROGRAMS {
        // Nothing of that name is the usual case; what else is wrong shows at the attachment.
        drop(tc::qdisc_detach_program(port, hook, name));
        let classifier: &mut SchedClassifier =
            program(ebpf, name).map_err(|error| error.to_string())?;
        let link = classifier.attach(port, hook).or_else(|_| {
            // A kernel before 6.6: filters need the discipline, which may be there already.
            let discipline = tc::qdisc_add_clsact(port).err();
            let attached = classifier.attach(port, hook);
            attached.map_err(|error| match discipline {
                Some(why) => format!("{}; clsact: {why}", explain(&error)),
                None => explain(&error),
            })
        });
        match link {
            Ok(link) => links.push((name, link)),
            Err(why) => {
                for (name, link) in links {
                    if let Ok(classifier) = program::<SchedClassifier>(ebpf, name) {
                        drop(classifier.detach(link));
                    }
                }
                return Err(why);
            }
        }
    }
    Ok(links)
}
