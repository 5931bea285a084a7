//! The compiled eBPF programs, embedded by agent/build.rs.

/// The ELF object, aligned as its parser requires.
pub static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-bpf.o"));
