//! The programs in the running kernel: real namespaces, real sockets, real probes.
//!
//! They take root, a kernel with eBPF, `ip`, `tc` and a C compiler; where one
//! is missing a test says so and passes.

mod collective;
mod loading;
mod mpi;
mod ports;
pub(crate) mod rig;
mod roce;
mod tcp;
