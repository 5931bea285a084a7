//! Probes in the libraries that running processes use.
//!
//! A uprobe belongs to a file, not to a process: each library file (device and
//! inode, so that containers which share a layer count once) is probed once for
//! all its processes, and released when the last of them has ended. The file is
//! reached through `/proc/PID/root`, which leads into the process' container,
//! or through `/proc/PID/map_files` where it has been replaced since.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope},
    },
};

use super::{
    elf::{Elf, ElfError},
    load::explain,
    maps::{FileKey, MappedFile},
    scan::{Process, Scanner},
};

/// Entry and return program of the collective family.
pub const PROGRAMS: [&str; 2] = ["collective_entry", "collective_return"];

/// Files with datatypes that are kept read: a host runs few executables at a time.
const FILES_MAX: usize = 64;

/// A library file that some process has mapped.
#[derive(Debug)]
struct Library {
    path: PathBuf,
    modified: (i64, i64),
    /// Program and link; empty for a library that was given up.
    links: Vec<(&'static str, UProbeLinkId)>,
}

/// Why a library has no probes.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("cannot be read: {0}")]
    Read(#[from] ElfError),
    #[error("has none of the functions that are probed")]
    NoFunctions,
    #[error("{function} cannot be probed: {reason}")]
    Probe {
        function: &'static str,
        reason: String,
    },
}

/// All probes that are attached now.
#[derive(Debug, Default)]
pub struct Attachments {
    libraries: BTreeMap<FileKey, Library>,
    /// Files read already, for the datatypes in them.
    files: BTreeMap<FileKey, Arc<Elf>>,
}

impl Attachments {
    /// Makes the probes match the processes; what happened goes to `notes`.
    pub fn update(&mut self, ebpf: &mut Ebpf, scanner: &mut Scanner, notes: &mut Vec<String>) {
        let mut wanted: BTreeMap<FileKey, (u32, MappedFile)> = BTreeMap::new();
        for (pid, process) in scanner.processes().iter().filter(|(_, p)| p.is_alive()) {
            for library in &process.map.libraries {
                wanted
                    .entry(library.key.clone())
                    .or_insert_with(|| (*pid, library.clone()));
            }
        }
        let gone = |key: &FileKey| !wanted.contains_key(key);
        let released: Vec<_> = self
            .libraries
            .keys()
            .filter(|key| gone(key))
            .cloned()
            .collect();
        for key in released {
            self.release(ebpf, &key, notes);
        }
        for (key, (pid, file)) in &wanted {
            self.attach_once(ebpf, key, *pid, file, notes);
        }
        for (pid, process) in scanner.processes_mut() {
            self.read_datatypes(pid, process);
        }
    }

    /// Libraries that have probes.
    pub fn attached(&self) -> usize {
        self.libraries
            .values()
            .filter(|library| !library.links.is_empty())
            .count()
    }

    fn attach_once(
        &mut self,
        ebpf: &mut Ebpf,
        key: &FileKey,
        pid: u32,
        file: &MappedFile,
        notes: &mut Vec<String>,
    ) {
        let path = reach(pid, file);
        let Ok(modified) = modified(&path) else {
            // The process ended in between; the next scan sees that.
            return;
        };
        if let Some(known) = self.libraries.get(key) {
            if known.modified == modified {
                return;
            }
            // Overwritten in place: the offsets are other ones now.
            self.release(ebpf, key, notes);
            self.files.remove(key);
        }
        let links = match self.attach(ebpf, key, &path) {
            Ok(links) => {
                notes.push(format!(
                    "{}: {} probes attached",
                    file.path.display(),
                    links.len()
                ));
                links
            }
            Err(error) => {
                notes.push(format!("{} {error}", file.path.display()));
                Vec::new()
            }
        };
        let library = Library {
            path: file.path.clone(),
            modified,
            links,
        };
        self.libraries.insert(key.clone(), library);
    }

    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        key: &FileKey,
        path: &Path,
    ) -> Result<Vec<(&'static str, UProbeLinkId)>, AttachError> {
        let elf = self.file(key, path)?;
        if elf.functions.is_empty() {
            return Err(AttachError::NoFunctions);
        }
        let mut links = Vec::with_capacity(elf.functions.len() * PROGRAMS.len());
        // Return probes first: a call that begins in between is not recorded,
        // rather than left in flight for ever.
        for program in PROGRAMS.into_iter().rev() {
            for (function, offset) in &elf.functions {
                let point = UProbeAttachPoint {
                    location: UProbeAttachLocation::AbsoluteOffset(*offset),
                    cookie: Some(function.layout.to_cookie()),
                };
                match attach_one(ebpf, program, point, path) {
                    Ok(link) => links.push((program, link)),
                    Err(error) => {
                        detach(ebpf, links);
                        return Err(AttachError::Probe {
                            function: function.name,
                            reason: explain(&error),
                        });
                    }
                }
            }
        }
        Ok(links)
    }

    fn release(&mut self, ebpf: &mut Ebpf, key: &FileKey, notes: &mut Vec<String>) {
        let Some(library) = self.libraries.remove(key) else {
            return;
        };
        if library.links.is_empty() {
            return;
        }
        notes.push(format!(
            "{}: probes released, no process uses it",
            library.path.display()
        ));
        detach(ebpf, library.links);
    }

    /// Remembers, for a process of MPI, the files whose objects are its datatypes.
    fn read_datatypes(&mut self, pid: u32, process: &mut Process) {
        let map = &process.map;
        if !process.datatypes.is_empty() || !map.libraries.iter().any(MappedFile::is_mpi) {
            return;
        }
        let files: Vec<_> = map
            .libraries
            .iter()
            .chain(&map.executable)
            .cloned()
            .collect();
        for file in files {
            let path = reach(pid, &file);
            if let Ok(elf) = self.file(&file.key, &path)
                && !elf.datatypes.is_empty()
            {
                process.datatypes.push((file, elf));
            }
        }
    }

    fn file(&mut self, key: &FileKey, path: &Path) -> Result<Arc<Elf>, ElfError> {
        if let Some(elf) = self.files.get(key) {
            return Ok(Arc::clone(elf));
        }
        let elf = Arc::new(Elf::read(path)?);
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        self.files.insert(key.clone(), Arc::clone(&elf));
        Ok(elf)
    }
}

fn attach_one(
    ebpf: &mut Ebpf,
    program: &str,
    point: UProbeAttachPoint<'_>,
    path: &Path,
) -> Result<UProbeLinkId, ProgramError> {
    let probe: &mut UProbe = ebpf
        .program_mut(program)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()?;
    probe.attach(point, path, UProbeScope::AllProcesses)
}

/// Removes probes without waiting for it: the kernel takes some 100 ms for each
/// (every CPU has to have left the probed code), and the agent has more to do.
fn detach(ebpf: &mut Ebpf, links: Vec<(&'static str, UProbeLinkId)>) {
    let mut owned = Vec::with_capacity(links.len());
    // Entry probes were attached last and go first, for the reason given there.
    for (program, link) in links.into_iter().rev() {
        let Some(Ok(probe)) = ebpf.program_mut(program).map(<&mut UProbe>::try_from) else {
            continue;
        };
        match probe.take_link(link) {
            Ok(link) => owned.push(link),
            Err(error) => tracing::warn!(program, %error, "a probe could not be detached"),
        }
    }
    // Dropping a link detaches it. If no thread can be had, it happens here.
    let detacher = thread::Builder::new().name("bpf-detach".to_owned());
    if let Err(error) = detacher.spawn(move || drop(owned)) {
        tracing::debug!(%error, "no thread to detach probes on");
    }
}

/// A path by which the agent reaches a file that a process has mapped.
fn reach(pid: u32, file: &MappedFile) -> PathBuf {
    let in_root = file.path.strip_prefix("/").unwrap_or(&file.path);
    let through_root = Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(in_root);
    let same_file = fs::metadata(&through_root).is_ok_and(|found| found.ino() == file.key.inode);
    if same_file && !file.deleted {
        return through_root;
    }
    PathBuf::from(format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        file.start, file.end
    ))
}

fn modified(path: &Path) -> io::Result<(i64, i64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.mtime(), metadata.mtime_nsec()))
}
