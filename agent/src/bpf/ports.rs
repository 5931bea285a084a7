//! The qdisc and drop families, user side: per-port tables summed over the CPUs.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{Array, PerCpuHashMap},
    programs::RawTracePoint,
};
use weir_ebpf_abi::{DropKey, HISTOGRAM_BUCKETS, PortQueue};

use super::{
    btf::Btf,
    load::{LoadError, Owned, program, take_map},
    sample::{BpfSample, Drops, PortDepth},
};

/// Entries of `PORTS` and `DROPS` above which idle ones make room; both three
/// quarters of the tables' sizes in ebpf/src. Ports of containers come and go.
const PORTS_FULL: usize = 192;
const DROPS_FULL: usize = 1536;

/// What reads in the kernel's enum before each reason's own name.
const REASON_PREFIX: &str = "SKB_DROP_REASON_";

/// Loads and attaches a program of a raw tracepoint.
///
/// # Errors
///
/// The program is refused, or this kernel has no such tracepoint.
fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        program: name,
        source,
    };
    let raw: &mut RawTracePoint = program(ebpf, name)?;
    raw.load().map_err(refused)?;
    raw.attach(tracepoint).map(drop).map_err(refused)
}

/// Queue depths.
pub struct Queues {
    ports: PerCpuHashMap<Owned, u32, PortQueue>,
    window_map: Array<Owned, u32>,
    window: u32,
    /// Packets seen per port at the last poll.
    packets: BTreeMap<u32, u64>,
}

impl Queues {
    /// Takes the family's maps and attaches its program.
    ///
    /// # Errors
    ///
    /// As [`attach`].
    pub fn attach(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let queues = Self {
            ports: take_map(ebpf, "PORTS")?,
            window_map: take_map(ebpf, "WINDOW")?,
            window: 0,
            packets: BTreeMap::new(),
        };
        attach(ebpf, "qdisc_enqueue", "qdisc_enqueue")?;
        Ok(queues)
    }

    /// Closes the window and reads it.
    pub fn poll(&mut self, sample: &mut BpfSample) {
        let closed = self.window;
        let next = closed.wrapping_add(1);
        // If this failed, the window stays open and its maximum is reported again.
        if self.window_map.set(0, next, 0).is_ok() {
            self.window = next;
        }
        let mut packets = BTreeMap::new();
        for (key, per_cpu) in self.ports.iter().flatten() {
            let port = sum_port(key, &per_cpu, closed);
            packets.insert(key, port.histogram.iter().sum::<u64>());
            sample.ports.push(port);
        }
        for idle in idle(&self.packets, &packets, PORTS_FULL) {
            drop(self.ports.remove(&idle));
        }
        self.packets = packets;
    }
}

fn sum_port(ifindex: u32, per_cpu: &[PortQueue], window: u32) -> PortDepth {
    let slot = usize::from(window % 2 == 1);
    let mut port = PortDepth {
        ifindex,
        queue_bytes_max: 0,
        histogram: [0; HISTOGRAM_BUCKETS],
    };
    for cpu in per_cpu {
        if cpu.window[slot] == window {
            port.queue_bytes_max = port.queue_bytes_max.max(cpu.max_bytes[slot]);
        }
        for (sum, packets) in port.histogram.iter_mut().zip(cpu.histogram) {
            *sum += packets;
        }
    }
    port
}

/// Dropped packets.
pub struct DropCounts {
    drops: PerCpuHashMap<Owned, DropKey, u64>,
    reasons: BTreeMap<u32, String>,
    packets: BTreeMap<DropKey, u64>,
}

impl DropCounts {
    /// Takes the family's map and attaches its program.
    ///
    /// # Errors
    ///
    /// As [`attach`], or this kernel gives no reasons.
    pub fn attach(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, LoadError> {
        if btf.tracepoint_arguments("kfree_skb").unwrap_or(0) < 3 {
            return Err(LoadError::Other(
                "this kernel gives no reason for a drop (Linux 5.17 is the first that does)"
                    .to_owned(),
            ));
        }
        let counts = Self {
            drops: take_map(ebpf, "DROPS")?,
            reasons: btf.enum_names("skb_drop_reason"),
            packets: BTreeMap::new(),
        };
        attach(ebpf, "skb_drop", "kfree_skb")?;
        Ok(counts)
    }

    /// Reads the counts.
    pub fn poll(&mut self, sample: &mut BpfSample) {
        let mut packets = BTreeMap::new();
        for (key, per_cpu) in self.drops.iter().flatten() {
            let count = per_cpu.iter().sum();
            packets.insert(key, count);
            sample.drops.push(Drops {
                ifindex: key.ifindex,
                reason: reason_name(&self.reasons, key.reason),
                count,
            });
        }
        for idle in idle(&self.packets, &packets, DROPS_FULL) {
            drop(self.drops.remove(&idle));
        }
        self.packets = packets;
    }
}

fn reason_name(reasons: &BTreeMap<u32, String>, reason: u32) -> String {
    reasons.get(&reason).map_or_else(
        // Reasons of a subsystem (its number in the upper half) have enums of their own.
        || format!("subsystem_{}_reason_{}", reason >> 16, reason & 0xffff),
        |name| {
            name.strip_prefix(REASON_PREFIX)
                .unwrap_or(name)
                .to_ascii_lowercase()
        },
    )
}

/// Entries that have not moved since the last poll, if the table is nearly full.
fn idle<K: Ord + Copy>(before: &BTreeMap<K, u64>, now: &BTreeMap<K, u64>, full: usize) -> Vec<K> {
    if now.len() < full {
        return Vec::new();
    }
    now.iter()
        .filter(|(key, count)| before.get(key) == Some(count))
        .map(|(key, _)| *key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_closed_window_counts() {
        let mut old = PortQueue {
            max_bytes: [900, 500],
            window: [2, 3],
            histogram: [0; HISTOGRAM_BUCKETS],
        };
        old.histogram[9] = 2;
        let newer = PortQueue {
            max_bytes: [7000, 700],
            window: [4, 3],
            histogram: old.histogram,
        };
        let port = sum_port(1, &[old, newer], 3);
        assert_eq!((port.queue_bytes_max, port.histogram[9]), (700, 4));
        let port = sum_port(1, &[old], 5);
        assert_eq!(port.queue_bytes_max, 0);
    }

    #[test]
    fn idle_entries_go_only_from_a_table_that_is_nearly_full() {
        let before = BTreeMap::from([(1, 5), (2, 6)]);
        let now = BTreeMap::from([(1, 5), (2, 7), (3, 1)]);
        assert_eq!(idle(&before, &now, 4), Vec::<i32>::new());
        assert_eq!(idle(&before, &now, 3), [1]);
    }

    #[test]
    fn a_reason_has_the_kernels_name_or_its_number() {
        let reasons = BTreeMap::from([(2, "SKB_DROP_REASON_NO_SOCKET".to_owned())]);
        assert_eq!(reason_name(&reasons, 2), "no_socket");
        assert_eq!(reason_name(&reasons, 0x1_0003), "subsystem_1_reason_3");
    }
}
