//! The qp family, user side: the table of queue pairs, with what the wire shows of each.
//!
//! The probes keep the table from the moment they are attached; pairs that were there before are
//! entered from RDMA netlink, once, without addresses (netlink has none). Without probes the table
//! is netlink's, asked now and then. Netlink asks the device's firmware about every pair, so it runs
//! on a thread of its own.
//!
//! `ib_core` may be loaded, unloaded and loaded again while the agent runs: the probes follow.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv6Addr,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, PerCpuArray},
    programs::{KProbe, kprobe::KProbeLinkId},
};
use weir_ebpf_abi::{QpKey, QpLayout, QpRecord, qp_known};

use super::{
    btf::Btf,
    load::{LoadError, Owned, explain, program, take_map},
    sample::{BpfSample, QpKind, QpSample, QpState, SourceState},
    sport,
};

mod listing;
use listing::{Dump, Found, Listing};

/// There while `ib_core` is; another inode is another loading of it.
const CLASS: &str = "/sys/class/infiniband";
const MODULE: &str = "ib_core";
const NO_SUBSYSTEM: &str = "this kernel has no RDMA subsystem loaded (ib_core)";
/// Without probes, netlink is asked this often; with them, so long after it failed.
const DUMP_EVERY: Duration = Duration::from_secs(30);
/// Pairs read from the table, at most: its size.
const QPS_MAX: usize = 16_384;
/// `enum ib_gid_type`: RoCE version 2.
const GID_ROCE_V2: u8 = 2;

/// Functions to probe, first choice first: a compiler may have dissolved the innermost one into
/// the two that call it.
const MODIFY: [&[&str]; 2] = [
    &["_ib_modify_qp"],
    &["ib_modify_qp_with_udata", "ib_modify_qp"],
];
const DESTROY: [&[&str]; 1] = [&["ib_destroy_qp_user"]];
/// Destruction first, so that a pair that is entered is also removed.
const PROBES: [(&str, &[&[&str]]); 4] = [
    ("qp_destroy_return", &DESTROY),
    ("qp_destroy_entry", &DESTROY),
    ("qp_modify_return", &MODIFY),
    ("qp_modify_entry", &MODIFY),
];

/// Where the pairs come from now.
enum Origin {
    /// There is no RDMA subsystem.
    Nothing,
    Probes(Vec<(&'static str, KProbeLinkId)>),
    /// Why there are no probes.
    Netlink(String),
}

/// What the answer of netlink is for.
enum Asked {
    No,
    /// Pairs older than the probes.
    Older,
    /// Which of these, entered since, were gone by then.
    Gone(Vec<QpKey>),
    Table,
}

/// The programs' maps.
struct Maps {
    table: HashMap<Owned, QpKey, QpRecord>,
    changes: PerCpuArray<Owned, u64>,
    layout: Array<Owned, QpLayout>,
}

/// The table of queue pairs.
pub struct QueuePairs {
    /// `Err` with the reason where no program can be loaded.
    maps: Result<Maps, String>,
    origin: Origin,
    /// Inode of [`CLASS`] when the origin was chosen.
    class: Option<u64>,
    dump: Dump,
    asked: Asked,
    asked_at: Option<Instant>,
    changes: u64,
    kernel: (u32, u32),
    pairs: Arc<Vec<QpSample>>,
}

impl QueuePairs {
    /// Takes the family's maps; probes are attached when the first poll finds the subsystem.
    pub fn new(ebpf: Result<&mut Ebpf, String>) -> Self {
        let maps = ebpf.and_then(|ebpf| {
            let maps = |ebpf: &mut Ebpf| {
                Ok::<_, LoadError>(Maps {
                    table: take_map(ebpf, "QPS")?,
                    changes: take_map(ebpf, "QP_CHANGES")?,
                    layout: take_map(ebpf, "QP_LAYOUT")?,
                })
            };
            maps(ebpf).map_err(|error| error.to_string())
        });
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            maps,
            origin: Origin::Nothing,
            class: None,
            dump: Dump::default(),
            asked: Asked::No,
            asked_at: None,
            changes: 0,
            // A kernel that hides its version is a recent one as likely as not.
            kernel: sport::kernel_version(&release).unwrap_or((u32::MAX, 0)),
            pairs: Arc::default(),
        }
    }

    /// State of the source.
    pub fn state(&self) -> SourceState {
        let (up, reason) = match &self.origin {
            Origin::Nothing => (false, Some(NO_SUBSYSTEM.to_owned())),
            Origin::Probes(_) => {
                let without = |failure| {
                    format!("pairs older than the agent may be missing: RDMA netlink: {failure}")
                };
                (true, self.dump.failure.as_ref().map(without))
            }
            Origin::Netlink(why) => (
                self.dump.failure.is_none(),
                Some(match &self.dump.failure {
                    None => format!("from RDMA netlink, without addresses and source ports: {why}"),
                    Some(failure) => format!("{why}; RDMA netlink: {failure}"),
                }),
            ),
        };
        SourceState {
            name: "qp",
            up,
            reason,
        }
    }

    /// Follows the subsystem as it comes and goes; true if the source's state may have changed.
    pub fn follow(&mut self, ebpf: Option<&mut Ebpf>) -> bool {
        let class = fs::metadata(CLASS).ok().map(|found| found.ino());
        if class == self.class {
            return false;
        }
        self.class = class;
        let ebpf = self.leave(ebpf);
        if class.is_some() {
            self.origin = match self.attach(ebpf) {
                Ok(links) => {
                    // What was there before the probes.
                    self.ask(Asked::Older);
                    Origin::Probes(links)
                }
                Err(why) => Origin::Netlink(why),
            };
        }
        true
    }

    /// Reads the pairs, if there is news of them; true if the source's state may have changed.
    pub fn poll(&mut self, now: Instant, sample: &mut BpfSample) -> bool {
        let before = self.dump.failure.clone();
        if let Some(listing) = self.dump.answer() {
            self.answered(&listing);
        }
        let may_ask = !self.dump.waiting
            && (self.asked_at)
                .is_none_or(|asked| now.saturating_duration_since(asked) >= DUMP_EVERY);
        match &self.origin {
            Origin::Nothing => {}
            Origin::Probes(_) => {
                if self.dump.failure.is_some() && may_ask {
                    self.ask(Asked::Older);
                }
                self.read_table();
            }
            Origin::Netlink(_) => {
                if may_ask {
                    self.ask(Asked::Table);
                }
            }
        }
        sample.qps = Arc::clone(&self.pairs);
        before != self.dump.failure
    }

    /// Detaches what is attached and forgets the pairs of a subsystem that is gone.
    fn leave<'a>(&mut self, mut ebpf: Option<&'a mut Ebpf>) -> Option<&'a mut Ebpf> {
        if let Origin::Probes(links) = std::mem::replace(&mut self.origin, Origin::Nothing)
            && let Some(ebpf) = ebpf.as_deref_mut()
        {
            for (name, link) in links {
                // The functions may be gone already, and the probes with them.
                if let Ok(probe) = program::<KProbe>(ebpf, name) {
                    drop(probe.detach(link));
                }
            }
        }
        if let Ok(maps) = &mut self.maps {
            let keys: Vec<QpKey> = maps.table.keys().flatten().take(QPS_MAX).collect();
            for key in keys {
                drop(maps.table.remove(&key));
            }
        }
        self.asked = Asked::No;
        self.asked_at = None;
        self.dump.failure = None;
        self.pairs = Arc::default();
        ebpf
    }

    fn attach(
        &mut self,
        ebpf: Option<&mut Ebpf>,
    ) -> Result<Vec<(&'static str, KProbeLinkId)>, String> {
        let maps = self.maps.as_mut().map_err(|why| why.clone())?;
        let ebpf = ebpf.ok_or("no programs are loaded")?;
        let mut btf = Btf::read().map_err(|error| error.to_string())?;
        btf.add_module(MODULE).map_err(|error| error.to_string())?;
        let layout = layout(&btf).map_err(|error| error.to_string())?;
        drop(btf);
        super::sys::release_heap();
        maps.layout
            .set(0, layout, 0)
            .map_err(|error| error.to_string())?;
        let mut links = Vec::new();
        for (name, choices) in PROBES {
            let probe: &mut KProbe = program(ebpf, name).map_err(|error| error.to_string())?;
            // Loaded once, attached as often as the module comes.
            if probe.fd().is_err() {
                probe
                    .load()
                    .map_err(|error| format!("program {name}: {}", explain(&error)))?;
            }
            match attach_first(probe, choices) {
                Ok(attached) => links.extend(attached.into_iter().map(|link| (name, link))),
                Err(why) => {
                    self.origin = Origin::Probes(links);
                    self.leave(Some(ebpf));
                    return Err(format!("program {name}: {why}"));
                }
            }
        }
        Ok(links)
    }

    fn ask(&mut self, what: Asked) {
        self.asked = what;
        self.asked_at = Some(Instant::now());
        self.dump.ask();
    }

    fn answered(&mut self, listing: &Listing) {
        match std::mem::replace(&mut self.asked, Asked::No) {
            Asked::No => {}
            Asked::Older => {
                let entered = self.enter(&listing.found);
                if !entered.is_empty() {
                    // One that was destroyed between the answer and its entry would stay for ever.
                    self.ask(Asked::Gone(entered));
                }
            }
            Asked::Gone(entered) => self.remove(&gone(entered, listing)),
            Asked::Table => self.pairs = Arc::new(table(&self.pairs, listing, self.kernel)),
        }
    }

    /// Enters pairs that the probes do not know; returns those that only netlink knows.
    fn enter(&mut self, found: &[Found]) -> Vec<QpKey> {
        const NOEXIST: u64 = 1;
        let Ok(maps) = &mut self.maps else {
            return Vec::new();
        };
        let entered = found.iter().take(QPS_MAX).filter(|found| {
            let entry = maps.table.insert(found.key(), found.record(), NOEXIST);
            // Or of a listing before this one.
            let known = maps.table.get(&found.key(), 0);
            entry.is_ok() || known.is_ok_and(|record| record.modified == 0)
        });
        let entered: Vec<QpKey> = entered.map(Found::key).collect();
        self.changes = u64::MAX;
        entered
    }

    fn remove(&mut self, gone: &[QpKey]) {
        let Ok(maps) = &mut self.maps else { return };
        for key in gone {
            // One that was modified since is a new pair of the same number.
            if maps.table.get(key, 0).is_ok_and(|r| r.modified == 0) {
                drop(maps.table.remove(key));
            }
        }
        self.changes = u64::MAX;
    }

    fn read_table(&mut self) {
        let Ok(maps) = &mut self.maps else { return };
        let changes = maps.changes.get(&0, 0).map_or(0, |cpus| {
            cpus.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n))
        });
        if changes == self.changes {
            return;
        }
        self.changes = changes;
        let entries = maps.table.iter().flatten().take(QPS_MAX);
        let pairs = entries.map(|(key, record)| qp_sample(&key, &record, self.kernel));
        let mut pairs: Vec<QpSample> = pairs.collect();
        pairs.sort_unstable_by_key(|qp| (qp.device_index, qp.qpn));
        self.pairs = Arc::new(pairs);
    }
}

/// Attaches to all functions of the first choice that this kernel has.
fn attach_first(probe: &mut KProbe, choices: &[&[&str]]) -> Result<Vec<KProbeLinkId>, String> {
    let mut why = String::new();
    for functions in choices {
        let mut links = Vec::new();
        for function in *functions {
            match probe.attach(function, 0) {
                Ok(link) => links.push(link),
                Err(error) => {
                    why = format!("{function}: {}", explain(&error));
                    break;
                }
            }
        }
        if links.len() == functions.len() {
            return Ok(links);
        }
        for link in links {
            drop(probe.detach(link));
        }
    }
    Err(why)
}

/// Where this kernel keeps what the programs read.
///
/// # Errors
/// Names the structure that lacks a field.
fn layout(btf: &Btf) -> Result<QpLayout, LoadError> {
    let at = |structure: &'static str, path: &[&str]| {
        btf.offset(structure, path)
            .ok_or(LoadError::NoField(structure))
    };
    let attr = |path: &[&str]| at("ib_qp_attr", path);
    Ok(QpLayout {
        qp_device: at("ib_qp", &["device"])?,
        qp_num: at("ib_qp", &["qp_num"])?,
        qp_type: at("ib_qp", &["qp_type"])?,
        qp_port: at("ib_qp", &["port"])?,
        qp_real: at("ib_qp", &["real_qp"])?,
        qp_task: at("ib_qp", &["res", "task"])?,
        qp_sgid_attr: at("ib_qp", &["av_sgid_attr"])?,
        attr_state: attr(&["qp_state"])?,
        attr_dest_qpn: attr(&["dest_qp_num"])?,
        attr_ah_flags: attr(&["ah_attr", "ah_flags"])?,
        attr_dgid: attr(&["ah_attr", "grh", "dgid"])?,
        attr_flow_label: attr(&["ah_attr", "grh", "flow_label"])?,
        attr_sgid_index: attr(&["ah_attr", "grh", "sgid_index"])?,
        attr_traffic_class: attr(&["ah_attr", "grh", "traffic_class"])?,
        device_index: at("ib_device", &["index"])?,
        device_name: at("ib_device", &["name"])?,
        device_driver: at("ib_device", &["ops", "driver_id"])?,
        gid: at("ib_gid_attr", &["gid"])?,
        gid_type: at("ib_gid_attr", &["gid_type"])?,
        task_tgid: at("task_struct", &["tgid"])?,
        task_leader: at("task_struct", &["group_leader"])?,
        // Called real_start_time before Linux 5.5.
        task_start: at("task_struct", &["start_boottime"])
            .or_else(|_| at("task_struct", &["real_start_time"]))?,
    })
}

/// A pair in the agent's terms. What is not known of it is absent.
fn qp_sample(key: &QpKey, record: &QpRecord, kernel: (u32, u32)) -> QpSample {
    let has = |bit: u8| record.known & bit != 0;
    let kind = QpKind::from_number(record.kind);
    let av = has(qp_known::AV);
    let peer_qpn = has(qp_known::PEER).then_some(record.peer_qpn);
    let roce_v2 = av && record.gid_type == GID_ROCE_V2;
    let src_port = peer_qpn
        .filter(|_| roce_v2 && kind.is_connected())
        .and_then(|peer| {
            sport::source_port(record.driver, kernel, record.flow_label, key.qpn, peer)
        });
    let name = record.device_name.split(|byte| *byte == 0).next();
    QpSample {
        device_index: key.device,
        device: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        port: (record.port != 0).then_some(record.port),
        qpn: key.qpn,
        kind,
        state: QpState::from_number(record.state),
        local_gid: av.then(|| Ipv6Addr::from(record.local_gid)),
        peer_gid: av.then(|| Ipv6Addr::from(record.peer_gid)),
        peer_qpn,
        sgid_index: av.then_some(record.sgid_index),
        flow_label: av.then_some(record.flow_label),
        traffic_class: av.then_some(record.traffic_class),
        roce_v2,
        src_port,
        src_port_predicted: src_port.is_some() && sport::is_predicted(record.driver),
        pid: (record.pid != 0).then_some(record.pid),
        process_start_ns: (record.start_ns != 0).then_some(record.start_ns),
        older: has(qp_known::OLDER) && record.modified == 0,
    }
}

/// Of the pairs that were entered, those that are no more. Of a device that did not answer nobody knows.
fn gone(entered: Vec<QpKey>, listing: &Listing) -> Vec<QpKey> {
    let present: BTreeSet<QpKey> = listing.found.iter().map(Found::key).collect();
    let gone = |key: &QpKey| !present.contains(key) && !listing.failed.contains_key(&key.device);
    entered.into_iter().filter(gone).collect()
}

/// The table that a listing makes. Pairs of a device that did not answer stay as they were.
fn table(former: &[QpSample], listing: &Listing, kernel: (u32, u32)) -> Vec<QpSample> {
    let found = listing.found.iter();
    let found = found.map(|found| qp_sample(&found.key(), &found.record(), kernel));
    let kept = former.iter();
    let kept = kept.filter(|pair| listing.failed.contains_key(&pair.device_index));
    let mut pairs: Vec<QpSample> = found.chain(kept.cloned()).take(QPS_MAX).collect();
    pairs.sort_unstable_by_key(|qp| (qp.device_index, qp.qpn));
    pairs
}

#[cfg(test)]
mod tests;
