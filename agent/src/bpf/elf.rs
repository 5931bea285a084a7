//! What the agent needs of a library or executable file: where the functions
//! begin that it probes, and where the objects lie that Open MPI uses as handles.
//!
//! Only the parts of the file that hold the answer are read: libnccl has 350 MB.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};

use super::{
    datatype::{self, Datatype},
    functions::{FUNCTIONS, Function},
};

/// A file that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("cannot open it")]
    Open(#[from] io::Error),
    #[error("it is not an ELF file that can be read")]
    Parse(#[from] object::Error),
}

/// The answers.
#[derive(Debug, Default)]
pub struct Elf {
    /// Functions to probe, each with its offset in the file; empty if it has none.
    pub functions: Vec<(Function, u64)>,
    /// Open MPI's datatype objects by virtual address; in an executable those
    /// that the linker copied into it.
    pub datatypes: BTreeMap<u64, Datatype>,
    /// Virtual address of file offset 0, before the loader moves the file.
    base: u64,
}

impl Elf {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or is no ELF file.
    pub fn read(path: &Path) -> Result<Self, ElfError> {
        let cache = ReadCache::new(File::open(path)?);
        let file = object::File::parse(&cache)?;
        let mut elf = Self {
            base: file.segments().next().map_or(0, |segment| {
                segment.address().wrapping_sub(segment.file_range().0)
            }),
            ..Self::default()
        };
        for symbol in file.dynamic_symbols() {
            if !symbol.is_definition() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            if let Some(datatype) = datatype::of_open_mpi_symbol(name) {
                elf.datatypes.insert(symbol.address(), datatype);
            } else if let Some(function) = FUNCTIONS.iter().find(|known| known.name == name)
                && let Some(offset) = file_offset(&file, symbol.address())
            {
                elf.functions.push((*function, offset));
            }
        }
        Ok(elf)
    }

    /// The datatype object at an address of a process that has this file
    /// mapped: `start` is where the mapping of file offset `offset` begins.
    pub fn datatype_at(&self, address: u64, start: u64, offset: u64) -> Option<Datatype> {
        let moved_by = start.wrapping_sub(offset).wrapping_sub(self.base);
        self.datatypes.get(&address.wrapping_sub(moved_by)).copied()
    }
}

fn file_offset<'data>(file: &impl object::Object<'data>, address: u64) -> Option<u64> {
    file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let inside = address.checked_sub(segment.address())?;
        (inside < size).then(|| offset + inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_mpi_library_has_functions_and_datatypes() {
        let path = Path::new("/usr/lib/x86_64-linux-gnu/libmpi.so.40");
        if !path.exists() {
            println!("skipped: {} is not installed", path.display());
            return;
        }
        let elf = Elf::read(path).expect("readable");
        let names: Vec<_> = elf.functions.iter().map(|(known, _)| known.name).collect();
        for name in [
            "MPI_Allreduce",
            "MPI_Allgather",
            "MPI_Reduce_scatter",
            "MPI_Alltoall",
            "MPI_Bcast",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(elf.datatypes.len() > 20);
    }

    #[test]
    fn a_library_without_the_functions_has_none() {
        let elf = Elf::read(Path::new("/proc/self/exe")).expect("readable");
        assert!(elf.functions.is_empty());
        assert!(matches!(
            Elf::read(Path::new("/proc/self/maps")),
            Err(ElfError::Parse(_))
        ));
    }
}
