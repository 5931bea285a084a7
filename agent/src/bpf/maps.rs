//! `/proc/PID/maps`: which communication libraries a process has mapped.

use std::path::PathBuf;

/// Beginnings of the file names of libraries that hold probed functions.
const LIBRARIES: [&str; 4] = ["libnccl.so", "librccl.so", "libmpi.so", "libmpich.so"];

/// A file, whatever it is called: device and inode as `maps` shows them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey {
    pub device: String,
    pub inode: u64,
}

/// A file mapped into a process: its first mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    pub key: FileKey,
    /// As the process sees it.
    pub path: PathBuf,
    pub start: u64,
    pub end: u64,
    /// Offset in the file of the mapping's first byte.
    pub offset: u64,
    /// The file has been unlinked since.
    pub deleted: bool,
}

impl MappedFile {
    /// True for a library of MPI, false for NCCL and RCCL.
    pub fn is_mpi(&self) -> bool {
        self.file_name().starts_with("libmpi")
    }

    fn file_name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }
}

/// The parts of a process' memory map that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    pub libraries: Vec<MappedFile>,
    pub executable: Option<MappedFile>,
}

/// Reads the text of a `maps` file. `executable` is where `/proc/PID/exe` points.
pub fn parse_maps(text: &str, executable: Option<&str>) -> MemoryMap {
    let mut found = MemoryMap::default();
    for line in text.lines() {
        // Most lines are of no interest: look at the name before the rest.
        let Some(name_at) = line.find('/') else {
            continue;
        };
        let name = &line[name_at..];
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        let file_name = name.rsplit('/').next().unwrap_or_default();
        let is_library = LIBRARIES.iter().any(|start| file_name.starts_with(start));
        let is_executable = found.executable.is_none() && executable == Some(name);
        if !is_library && !is_executable {
            continue;
        }
        let Some(mapped) = parse_line(line, name_at, name) else {
            continue;
        };
        if is_executable {
            found.executable = Some(mapped);
        } else if !found.libraries.iter().any(|known| known.key == mapped.key) {
            found.libraries.push(mapped);
        }
    }
    found
}

/// `7f10-7f20 r--p 00000000 fe:00 1234    /usr/lib/libmpi.so.40`
fn parse_line(line: &str, name_at: usize, name: &str) -> Option<MappedFile> {
    let mut fields = line[..name_at].split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    let device = fields.next()?;
    let inode = fields.next()?;
    Some(MappedFile {
        key: FileKey {
            device: device.to_owned(),
            inode: inode.parse().ok()?,
        },
        path: PathBuf::from(name),
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        deleted: line.ends_with(" (deleted)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 77 /home/a job/train
55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 77 /home/a job/train
7f0000000000-7f0000010000 r--p 00000000 fe:00 1234                       /usr/lib/libmpi.so.40.30.4
7f0000010000-7f0000020000 r-xp 00010000 fe:00 1234                       /usr/lib/libmpi.so.40.30.4
7f0000020000-7f0000030000 r--p 00000000 00:2a 99                         /opt/libnccl.so.2 (deleted)
7f0000040000-7f0000050000 r--p 00000000 fe:00 5                          /opt/libnccl-net.so
7f0000060000-7f0000070000 rw-p 00000000 00:00 0                          [heap]
garbage";

    #[test]
    fn libraries_are_found_once_each() {
        let found = parse_maps(MAPS, Some("/home/a job/train"));
        let names: Vec<_> = found
            .libraries
            .iter()
            .map(|library| (library.path.to_str().expect("utf-8"), library.deleted))
            .collect();
        assert_eq!(
            names,
            [
                ("/usr/lib/libmpi.so.40.30.4", false),
                ("/opt/libnccl.so.2", true)
            ]
        );
        assert_eq!(found.libraries[0].start, 0x7f00_0000_0000);
        assert!(found.libraries[0].is_mpi() && !found.libraries[1].is_mpi());
        assert_eq!(found.executable.map(|file| file.key.inode), Some(77));
    }
}
