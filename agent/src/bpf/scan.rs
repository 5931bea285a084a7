//! Which processes run a communication library.
//!
//! There is no cheap event for "a process has mapped this file", so `/proc` is
//! looked through. A look at one process costs some 50 us (its memory map is
//! read), hence: each is looked at when it is new, then at ages that grow by a
//! quarter (a library may be loaded late, by `dlopen`), at the latest every
//! [`LOOK_PAUSE_MAX`]; and one whose address space is as large as at the last
//! look has mapped nothing since, which is a glance of some 3 us. `/proc` is
//! listed (half a microsecond for each process) only when the kernel has given
//! out a process number since, and every [`LIST_PAUSE_MAX`]. A number that is
//! used again is a new process: the directory entry's inode tells at once, the
//! start time for certain.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
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
/// Longest time for which the size of the address space stands for its map: what
/// is unmapped and mapped anew with the same size is seen after this.
const GLANCE_MAX: Duration = Duration::from_secs(300);
/// Longest pause between two listings of `/proc`.
const LIST_PAUSE_MAX: Duration = Duration::from_secs(5);
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
    /// Address space at the last look; `None` where it is not told.
    size: Option<Size>,
    looked: Instant,
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
    next_list: Option<Instant>,
    /// The process number that the kernel gave out last, as of the last listing.
    newest: Option<u32>,
    /// Whether `/proc` shows the process namespace that the agent is in.
    own_proc: bool,
    processes: BTreeMap<u32, Process>,
}

impl Scanner {
    /// With `netns`, processes of other network namespaces are left out.
    pub fn new(netns: Option<u64>) -> Self {
        Self {
            netns,
            next_scan: None,
            next_list: None,
            newest: None,
            own_proc: is_own_proc(),
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
        // Before the listing: what comes meanwhile is news to the next.
        let newest = self.own_proc.then(newest_process).flatten();
        let known = newest.is_some() && newest == self.newest;
        if known && self.next_list.is_some_and(|due| now < due) {
            return Ok(self.follow(now));
        }
        self.newest = newest;
        self.next_list = Some(now + LIST_PAUSE_MAX);
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

    /// Looks after the processes that are known, where there can be no others.
    fn follow(&mut self, now: Instant) -> bool {
        let mut changed = false;
        let mut due = Vec::new();
        self.processes.retain(|pid, process| {
            if let Some(gone) = process.gone_at {
                return now.saturating_duration_since(gone) < GONE_KEEP;
            }
            // The others are missed by nobody until the next listing.
            if !process.map.libraries.is_empty() && !is_there(*pid) {
                process.gone_at = Some(now);
                changed = true;
            } else if now >= process.next_look {
                due.push((*pid, process.entry_inode));
            }
            true
        });
        for (pid, entry_inode) in due {
            changed |= self.visit(pid, entry_inode, now);
        }
        changed
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
        if let Some(known) = self.processes.get_mut(&pid)
            && known.is_alive()
            && known.entry_inode == entry_inode
        {
            if now < known.next_look {
                return false;
            }
            let recent = now.saturating_duration_since(known.looked) < GLANCE_MAX;
            if recent && known.size.is_some() && known.size == size(pid) {
                known.next_look = next_look(known.first_seen, now);
                return false;
            }
        }
        // Before the map: what is mapped meanwhile is seen at the next glance.
        let size = size(pid);
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
        self.processes.insert(
            pid,
            Process {
                entry_inode,
                start_time,
                first_seen,
                next_look: next_look(first_seen, now),
                size,
                looked: now,
                gone_at: None,
                map,
                datatypes,
            },
        );
        changed
    }
}

fn next_look(first_seen: Instant, now: Instant) -> Instant {
    let age = now.saturating_duration_since(first_seen);
    now + (age / 4).clamp(SCAN_PAUSE, LOOK_PAUSE_MAX)
}

/// Pages of a process' address space, and those of its executable's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    all: u64,
    code: u64,
}

/// From `/proc/PID/statm`; `None` if the process has gone.
fn size(pid: u32) -> Option<Size> {
    // Seven numbers of at most 20 digits.
    let mut buffer = [0; 160];
    let mut file = File::open(format!("/proc/{pid}/statm")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    Some(Size {
        all: fields.next()?.parse().ok()?,
        code: fields.nth(2)?.parse().ok()?,
    })
}

/// True unless the kernel says that there is no such process.
fn is_there(pid: u32) -> bool {
    !matches!(fs::metadata(format!("/proc/{pid}")), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// The number given out last in the process namespace of the agent, to processes
/// and threads alike: the last field of `/proc/loadavg`.
fn newest_process() -> Option<u32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.rsplit_once(' ')?.1.trim_end().parse().ok()
}

/// Whether `/proc` numbers processes as this one's namespace does: an agent in a
/// container may be shown the host's.
fn is_own_proc() -> bool {
    fs::read_link("/proc/self").is_ok_and(|me| me.to_str() == Some(&std::process::id().to_string()))
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
        // The kernel gave it out again.
        scanner.newest = None;
        let later = start + Duration::from_secs(1);
        scanner.scan(later).expect("/proc is there");
        let first_seen = scanner.processes()[&me].first_seen;
        assert!(first_seen <= later && first_seen + Duration::from_secs(3600) > later);
        assert!(scanner.processes()[&me].start_time > 1);
    }

    /// A process that has started, and maps nothing any more.
    fn still() -> std::process::Child {
        use std::io::Write as _;
        let mut cat = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("cat is installed");
        let (stdin, stdout) = (cat.stdin.as_mut(), cat.stdout.as_mut());
        stdin.expect("piped").write_all(b"x").expect("it reads");
        let mut echo = [0];
        stdout
            .expect("piped")
            .read_exact(&mut echo)
            .expect("it writes");
        cat
    }

    #[test]
    fn a_map_is_read_again_only_when_it_may_have_changed() {
        let mut scanner = Scanner::new(None);
        let mut cat = still();
        let (pid, start) = (cat.id(), Instant::now());
        let mut looked_at = |second: u64, size: Option<Size>| {
            let now = start + Duration::from_secs(second);
            if let Some(known) = scanner.processes.get_mut(&pid) {
                known.size = size.or(known.size);
            }
            scanner.visit(pid, 7, now);
            let known = &scanner.processes()[&pid];
            assert!(known.next_look > now, "at second {second}");
            known.looked.duration_since(start).as_secs()
        };
        assert_eq!(looked_at(0, None), 0);
        assert_eq!(looked_at(60, None), 0, "it stands still");
        let other = Size { all: 1, code: 1 };
        assert_eq!(looked_at(120, Some(other)), 120, "it has grown");
        assert_eq!(looked_at(180, None), 120);
        assert_eq!(looked_at(420, None), 420, "a glance is not for ever");
        cat.kill().expect("it is ours");
        cat.wait().expect("it is ours");
    }

    #[test]
    fn a_new_process_is_seen_without_waiting_for_a_listing() {
        let mut scanner = Scanner::new(None);
        assert!(scanner.own_proc);
        let start = Instant::now();
        scanner.scan(start).expect("/proc is there");
        let mut child = still();
        scanner.scan(start + SCAN_PAUSE).expect("/proc is there");
        assert!(scanner.processes().contains_key(&child.id()));
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        assert!(!is_there(child.id()));
        scanner
            .scan(start + SCAN_PAUSE + LIST_PAUSE_MAX)
            .expect("/proc is there");
        assert!(!scanner.processes().contains_key(&child.id()));
    }

    #[test]
    fn another_namespace_is_left_out() {
        let mut scanner = Scanner::new(Some(1));
        scanner.scan(Instant::now()).expect("/proc is there");
        let mine = &scanner.processes()[&std::process::id()];
        assert_eq!(mine.map, MemoryMap::default());
    }
}
