//! Which processes run a communication library.
//!
//! There is no cheap event for "a process has mapped this file", so `/proc` is
//! looked through. A look at one process costs some 50 us (its memory map is
//! read), hence: each is looked at when it is new, then at ages that grow by a
//! quarter (a library may be loaded late, by `dlopen`), at the latest every
//! [`LOOK_PAUSE_MAX`]. Between looks a process costs its share of one directory
//! listing. A number that is used again is a new process: the directory entry's
//! inode tells at once, the start time for certain.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    datatype::Datatype,
    elf::Elf,
    maps::{MappedFile, MemoryMap, parse_maps},
    sys,
};

/// Shortest pause between two scans: bounds how late a job's start is seen.
const SCAN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two looks at one process.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a process that has ended is remembered: its last calls are read later.
const GONE_KEEP: Duration = Duration::from_secs(10);

/// USER_HZ: the unit of times in /proc.
const TICKS_PER_SECOND: u64 = 100;

/// A process that has been looked at.
#[derive(Debug)]
pub struct Process {
    entry_inode: u64,
    start_time: u64,
    first_seen: Instant,
    next_look: Instant,
    gone_at: Option<Instant>,
    pub map: MemoryMap,
    /// The mapped files that hold MPI datatypes, once they have been read.
    pub datatypes: Vec<(MappedFile, Arc<Elf>)>,
}

impl Process {
    /// True until the process has ended.
    pub fn is_alive(&self) -> bool {
        self.gone_at.is_none()
    }

    /// The element type that an Open MPI handle of this process stands for.
    pub fn datatype_at(&self, handle: u64) -> Option<Datatype> {
        self.datatypes
            .iter()
            .find_map(|(file, elf)| elf.datatype_at(handle, file.start, file.offset))
    }
}

/// The table of processes.
#[derive(Debug)]
pub struct Scanner {
    /// Inode number of the only network namespace to look at.
    netns: Option<u64>,
    next_scan: Option<Instant>,
    processes: BTreeMap<u32, Process>,
}

impl Scanner {
    /// With `netns`, processes of other network namespaces are left out.
    pub fn new(netns: Option<u64>) -> Self {
        Self {
            netns,
            next_scan: None,
            processes: BTreeMap::new(),
        }
    }

    pub fn processes(&self) -> &BTreeMap<u32, Process> {
        &self.processes
    }

    pub fn processes_mut(&mut self) -> impl Iterator<Item = (u32, &mut Process)> {
        self.processes
            .iter_mut()
            .map(|(pid, process)| (*pid, process))
    }

    /// Looks through `/proc` if it is time; true if libraries came or went.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be listed.
    pub fn scan(&mut self, now: Instant) -> io::Result<bool> {
        if self.next_scan.is_some_and(|due| now < due) {
            return Ok(false);
        }
        self.next_scan = Some(now + SCAN_PAUSE);
        let mut listed = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            if let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                listed.insert(pid, entry.ino());
            }
        }
        let mut changed = self.forget_gone(&listed, now);
        for (pid, entry_inode) in listed {
            changed |= self.visit(pid, entry_inode, now);
        }
        Ok(changed)
    }

    fn forget_gone(&mut self, listed: &BTreeMap<u32, u64>, now: Instant) -> bool {
        let mut changed = false;
        self.processes.retain(|pid, process| {
            match process.gone_at {
                Some(gone) => return now.saturating_duration_since(gone) < GONE_KEEP,
                None if listed.contains_key(pid) => {}
                None => {
                    process.gone_at = Some(now);
                    changed |= !process.map.libraries.is_empty();
                }
            }
            process.is_alive() || !process.map.libraries.is_empty()
        });
        changed
    }

    fn visit(&mut self, pid: u32, entry_inode: u64, now: Instant) -> bool {
        if let Some(known) = self.processes.get(&pid)
            && known.is_alive()
            && known.entry_inode == entry_inode
            && now < known.next_look
        {
            return false;
        }
        let looked = look(pid, self.netns);
        let Some((start_time, map)) = looked else {
            // Gone since the listing, or not ours to read: it is not there.
            let known = self.processes.remove(&pid);
            return known.is_some_and(|process| !process.map.libraries.is_empty());
        };
        let known = self
            .processes
            .remove(&pid)
            .filter(|process| process.is_alive() && process.start_time == start_time);
        let changed = known
            .as_ref()
            .map_or(!map.libraries.is_empty(), |process| process.map != map);
        // One that is older than the agent has had its time to load what it needs.
        let started = || now.checked_sub(age_of(start_time)).unwrap_or(now);
        let first_seen = known
            .as_ref()
            .map_or_else(started, |process| process.first_seen);
        let datatypes = known
            .filter(|process| process.map == map)
            .map_or_else(Vec::new, |process| process.datatypes);
        let age = now.saturating_duration_since(first_seen);
        self.processes.insert(
            pid,
            Process {
                entry_inode,
                start_time,
                first_seen,
                next_look: now + (age / 4).clamp(SCAN_PAUSE, LOOK_PAUSE_MAX),
                gone_at: None,
                map,
                datatypes,
            },
        );
        changed
    }
}

/// Start time and memory map of a process; an empty map for one that is none of
/// ours (a kernel thread, another namespace); `None` if it has gone.
fn look(pid: u32, netns: Option<u64>) -> Option<(u64, MemoryMap)> {
    let start_time = start_time(pid)?;
    if let Some(only) = netns {
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net")).ok();
        if theirs.is_none_or(|metadata| metadata.ino() != only) {
            return Some((start_time, MemoryMap::default()));
        }
    }
    // A kernel thread has no executable.
    let Ok(executable) = fs::read_link(format!("/proc/{pid}/exe")) else {
        return Some((start_time, MemoryMap::default()));
    };
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let map = parse_maps(&String::from_utf8_lossy(&maps), executable.to_str());
    if map.libraries.is_empty() {
        // The executable matters only beside a library.
        return Some((start_time, MemoryMap::default()));
    }
    Some((start_time, map))
}

/// Age of a process that started at this tick.
fn age_of(start_time: u64) -> Duration {
    let started = Duration::from_millis(start_time.saturating_mul(1000 / TICKS_PER_SECOND));
    sys::boot_time().saturating_sub(started)
}

/// When a process started, clock ticks since boot: with its number, its identity.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_looked_at_ever_more_seldom() {
        let mut scanner = Scanner::new(None);
        let start = Instant::now();
        let me = std::process::id();
        scanner.scan(start).expect("/proc is there");
        let pause = |scanner: &Scanner, now| scanner.processes()[&me].next_look - now;
        assert_eq!(pause(&scanner, start), SCAN_PAUSE);
        let later = start + Duration::from_secs(40);
        scanner.scan(later).expect("/proc is there");
        // A quarter of its age, which is a little more than the scanner's.
        let quarter = pause(&scanner, later).as_secs_f64();
        assert!((10.0..11.0).contains(&quarter), "{quarter}");
        let much_later = start + Duration::from_secs(3600);
        scanner.scan(much_later).expect("/proc is there");
        assert_eq!(pause(&scanner, much_later), LOOK_PAUSE_MAX);
    }

    #[test]
    fn a_number_used_again_is_a_new_process() {
        let mut scanner = Scanner::new(None);
        let start = Instant::now();
        let me = std::process::id();
        scanner.scan(start).expect("/proc is there");
        scanner.processes.get_mut(&me).expect("listed").start_time = 1;
        scanner.processes.get_mut(&me).expect("listed").entry_inode = 1;
        let later = start + Duration::from_secs(1);
        scanner.scan(later).expect("/proc is there");
        let first_seen = scanner.processes()[&me].first_seen;
        assert!(first_seen <= later && first_seen + Duration::from_secs(3600) > later);
        assert!(scanner.processes()[&me].start_time > 1);
    }

    #[test]
    fn another_namespace_is_left_out() {
        let mut scanner = Scanner::new(Some(1));
        scanner.scan(Instant::now()).expect("/proc is there");
        let mine = &scanner.processes()[&std::process::id()];
        assert_eq!(mine.map, MemoryMap::default());
    }
}
