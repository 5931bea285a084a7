//! Names and sizes of the element types of NCCL and MPI.
//!
//! NCCL passes an enum. Open MPI passes the address of an object of the
//! library (`ompi_mpi_float`), or of its copy in the executable; the caller
//! finds out which symbol an address is. MPICH and its kin pass an integer
//! whose second byte is the size. Derived types are unknown, not guessed.

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datatype {
    /// `None` where only the size is known.
    pub name: Option<&'static str>,
    pub bytes: u64,
}

const fn named(name: &'static str, bytes: u64) -> Datatype {
    Datatype {
        name: Some(name),
        bytes,
    }
}

/// Translates `ncclDataType_t` (nccl.h 2.32; RCCL's is the same).
pub fn of_nccl(number: u64) -> Option<Datatype> {
    Some(match number {
        0 => named("int8", 1),
        1 => named("uint8", 1),
        2 => named("int32", 4),
        3 => named("uint32", 4),
        4 => named("int64", 8),
        5 => named("uint64", 8),
        6 => named("float16", 2),
        7 => named("float32", 4),
        8 => named("float64", 8),
        9 => named("bfloat16", 2),
        10 => named("float8e4m3", 1),
        11 => named("float8e5m2", 1),
        _ => return None,
    })
}

/// Translates a handle of MPICH, Intel MPI or MVAPICH (`MPI_Datatype` is an `int`).
///
/// `0x4c00SSNN` is a built-in type of SS bytes (mpich's mpi.h).
pub fn of_mpich(handle: u64) -> Option<Datatype> {
    let handle = u32::try_from(handle & u64::from(u32::MAX)).ok()?;
    let bytes = u64::from((handle >> 8) & 0xff);
    (handle >> 16 == 0x4c00 && bytes != 0).then_some(Datatype { name: None, bytes })
}

/// The symbols of Open MPI's built-in types, with their sizes on 64-bit Linux.
pub fn of_open_mpi_symbol(symbol: &str) -> Option<Datatype> {
    Some(match symbol.strip_prefix("ompi_mpi_")? {
        "byte" => named("byte", 1),
        "char" => named("char", 1),
        "signed_char" => named("signed_char", 1),
        "unsigned_char" => named("unsigned_char", 1),
        "packed" => named("packed", 1),
        "short" => named("short", 2),
        "unsigned_short" => named("unsigned_short", 2),
        "int" => named("int", 4),
        "unsigned" => named("unsigned", 4),
        "long" => named("long", 8),
        "unsigned_long" => named("unsigned_long", 8),
        "long_long_int" => named("long_long", 8),
        "unsigned_long_long" => named("unsigned_long_long", 8),
        "float" => named("float", 4),
        "double" => named("double", 8),
        "long_double" => named("long_double", 16),
        "int8_t" => named("int8", 1),
        "uint8_t" => named("uint8", 1),
        "int16_t" => named("int16", 2),
        "uint16_t" => named("uint16", 2),
        "int32_t" => named("int32", 4),
        "uint32_t" => named("uint32", 4),
        "int64_t" => named("int64", 8),
        "uint64_t" => named("uint64", 8),
        "c_bool" => named("c_bool", 1),
        "cxx_bool" => named("cxx_bool", 1),
        "c_float_complex" => named("c_float_complex", 8),
        "c_double_complex" => named("c_double_complex", 16),
        "integer" => named("integer", 4),
        "real" => named("real", 4),
        "dblprec" => named("double_precision", 8),
        "aint" => named("aint", 8),
        "count" => named("count", 8),
        "offset" => named("offset", 8),
        "float_int" => named("float_int", 8),
        "2int" => named("2int", 8),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_usual_types() {
        assert_eq!(of_nccl(9), Some(named("bfloat16", 2)));
        assert_eq!(of_nccl(12), None);
        // MPI_DOUBLE of MPICH.
        assert_eq!(of_mpich(0x4c00_080b).map(|t| t.bytes), Some(8));
        // A derived type of MPICH, and a pointer of Open MPI.
        assert_eq!(of_mpich(0xcc00_0000), None);
        assert_eq!(of_mpich(0x7f00_1234_5678), None);
        assert_eq!(
            of_open_mpi_symbol("ompi_mpi_float").map(|t| t.bytes),
            Some(4)
        );
        assert_eq!(of_open_mpi_symbol("ompi_mpi_comm_world"), None);
    }
}
