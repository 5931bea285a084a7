//! The tcp family, user side: the table of flows, or what stands in for it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::HashMap,
    programs::{CgroupAttachMode, SockOps},
};
use weir_ebpf_abi::{FlowKey, FlowRecord, tcp_state};

use super::{
    load::{LoadError, Owned, program, take_map},
    sample::{BpfSample, FlowSample},
    sockdiag::{self, is_loopback, parse_addr},
};

const PROGRAM: &str = "tcp_flow";
/// Processes above the agent that are asked for the cgroup file system.
const ANCESTORS_MAX: u32 = 16;

/// A connection as both sources name it.
type Ends = (SocketAddr, SocketAddr);

/// Where the flows come from.
pub struct Flows {
    /// `None` where sock_ops cannot be had.
    table: Option<HashMap<Owned, FlowKey, FlowRecord>>,
    /// Flows that only socket diagnostics show, with their last figures: all
    /// of them without the table, else those that are older than the program.
    polled: BTreeMap<Ends, FlowSample>,
    dump_failed: bool,
}

impl Flows {
    /// Attaches the program to a cgroup and notes the flows that it is too late for.
    ///
    /// # Errors
    ///
    /// The program is refused, or there is no cgroup to attach it to.
    pub fn attach(ebpf: &mut Ebpf, cgroup: Option<&Path>) -> Result<Self, LoadError> {
        let table = take_map(ebpf, "FLOWS")?;
        let path = match cgroup {
            Some(path) => path.to_owned(),
            None => find_cgroup().ok_or_else(|| {
                LoadError::Other("no cgroup (version 2) file system is mounted".to_owned())
            })?,
        };
        let cgroup = fs::File::open(&path).map_err(|error| {
            LoadError::Other(format!(
                "cannot open the cgroup {}: {error}",
                path.display()
            ))
        })?;
        let refused = |source| LoadError::Program {
            program: PROGRAM,
            source,
        };
        let sock_ops: &mut SockOps = program(ebpf, PROGRAM)?;
        sock_ops.load().map_err(refused)?;
        // A link (5.7 and newer, and older kernels refuse the program) always
        // lets others attach too, and takes no flag to say so.
        sock_ops
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(refused)?;
        let mut flows = Self {
            table: Some(table),
            polled: BTreeMap::new(),
            dump_failed: false,
        };
        flows.note_older();
        Ok(flows)
    }

    /// Reads flows from socket diagnostics alone.
    ///
    /// # Errors
    ///
    /// These cannot be had either.
    pub fn without_program() -> Result<Self, LoadError> {
        sockdiag::flows()
            .map_err(|error| LoadError::Other(format!("no socket diagnostics: {error}")))?;
        Ok(Self {
            table: None,
            polled: BTreeMap::new(),
            dump_failed: false,
        })
    }

    /// Reads every flow; one that has ended is reported once more, as closed. False if some cannot
    /// be read.
    pub fn poll(&mut self, sample: &mut BpfSample) -> bool {
        self.read_table(sample);
        (self.table.is_some() && self.polled.is_empty()) || self.read_polled(sample)
    }

    fn read_table(&mut self, sample: &mut BpfSample) {
        let Some(table) = &mut self.table else { return };
        let mut closed = Vec::new();
        // An element removed while the table is read is not worth a word.
        for (key, record) in table.iter().flatten() {
            if record.state == tcp_state::CLOSE {
                closed.push(key);
            }
            sample.flows.extend(flow_sample(&key, &record));
        }
        for key in closed {
            // Pushed out by newer flows in between is as good as removed.
            drop(table.remove(&key));
        }
    }

    fn read_polled(&mut self, sample: &mut BpfSample) -> bool {
        let present = match sockdiag::flows() {
            Ok(present) => present,
            Err(error) => {
                if !self.dump_failed {
                    sample.notes.push(format!("socket diagnostics: {error}"));
                }
                self.dump_failed = true;
                return false;
            }
        };
        let only_known = self.table.is_some();
        let present: BTreeMap<Ends, FlowSample> = present
            .into_iter()
            .map(|flow| ((flow.local, flow.remote), flow))
            .filter(|(ends, _)| !only_known || self.polled.contains_key(ends))
            .collect();
        let ended = self
            .polled
            .iter()
            .filter(|(ends, _)| !present.contains_key(*ends));
        sample.flows.extend(ended.map(|(_, flow)| FlowSample {
            closed: true,
            ..flow.clone()
        }));
        sample.flows.extend(present.values().cloned());
        self.polled = present;
        true
    }

    /// Called right after the attachment: a flow that is not in the table then
    /// was established before, and the kernel will not report it.
    fn note_older(&mut self) {
        let mut in_table = BpfSample::default();
        self.read_table(&mut in_table);
        let has = |flow: &FlowSample| {
            let same =
                |other: &FlowSample| (other.local, other.remote) == (flow.local, flow.remote);
            in_table.flows.iter().any(same)
        };
        // Without diagnostics the older flows are simply not seen.
        self.polled = sockdiag::flows()
            .unwrap_or_default()
            .into_iter()
            .filter(|flow| !has(flow))
            .map(|flow| ((flow.local, flow.remote), flow))
            .collect();
    }
}

fn flow_sample(key: &FlowKey, record: &FlowRecord) -> Option<FlowSample> {
    let family = u8::try_from(key.family).ok()?;
    let local = SocketAddr::new(parse_addr(family, &key.local_addr)?, key.local_port);
    let remote = SocketAddr::new(parse_addr(family, &key.remote_addr)?, key.remote_port);
    if is_loopback(local, remote) {
        return None;
    }
    let srtt_us = record.srtt_us_shl3 >> 3;
    Some(FlowSample {
        local,
        remote,
        bytes_acked: record.bytes_acked,
        bytes_received: record.bytes_received,
        retransmits: u64::from(record.total_retrans),
        srtt_us: (srtt_us != 0).then_some(srtt_us),
        delivered_ce: Some(u64::from(record.delivered_ce)),
        delivered: Some(u64::from(record.delivered)),
        closed: record.state == tcp_state::CLOSE,
    })
}

/// Finds where the version 2 hierarchy is mounted.
///
/// An agent whose mount namespace hides it (`ip netns exec` covers `/sys`)
/// reaches it through the root of the process that started it, or of one above.
fn find_cgroup() -> Option<PathBuf> {
    let mut pid = std::process::id();
    for _ in 0..ANCESTORS_MAX {
        if let Some(path) = cgroup_of(pid) {
            return Some(path);
        }
        pid = parent(pid)?;
    }
    None
}

fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).ok()?;
    let mounted = parse_cgroup_mount(&mounts)?;
    let path = PathBuf::from(format!("/proc/{pid}/root{mounted}"));
    path.join("cgroup.procs").exists().then_some(path)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn parse_cgroup_mount(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_2_hierarchy_is_found_among_the_others() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(parse_cgroup_mount(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(parse_cgroup_mount("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn the_round_trip_time_is_in_microseconds_and_absent_before_the_first() {
        let key = FlowKey {
            family: 2,
            local_addr: [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            remote_addr: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..FlowKey::default()
        };
        let mut record = FlowRecord::default();
        let flow = flow_sample(&key, &record).expect("IPv4");
        assert_eq!((flow.srtt_us, flow.closed), (None, false));
        record.srtt_us_shl3 = 800;
        record.state = tcp_state::CLOSE;
        let flow = flow_sample(&key, &record).expect("IPv4");
        assert_eq!((flow.srtt_us, flow.closed), (Some(100), true));
    }
}
