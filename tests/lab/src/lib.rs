//! The lab: a leaf-spine fabric of network namespaces on one machine, with real forwarding, a real
//! all-reduce and real agents. The demo and the end-to-end tests use the same code.
//!
//! | module | holds |
//! |---|---|
//! | [`plan`] | what a fabric consists of; pure |
//! | [`fabric`], [`teardown`], [`state`] | building it, removing it, knowing what is there |
//! | [`placement`] | which uplink each flow takes |
//! | [`snapshot`] | routes and queueing as a comparable value |
//! | [`job`], [`traffic`] | load: an MPI all-reduce, and plain TCP |
//! | [`stack`], [`api`], [`http`] | controller and agents as processes, and the controller's API |
//! | [`demo`], [`progress`], [`report`], [`preflight`] | `weir-lab demo` |
//! | [`bench`], `bench_node` | `weir-lab bench`: on the fabric, and on a full node |
//! | [`guest`] | a virtual machine with real verbs devices |
//! | [`sys`], [`shell`], [`output`] | system calls, external programs, lines for people |

pub mod api;
pub mod bench;
pub mod bench_node;
mod bench_tree;
pub mod demo;
pub mod fabric;
pub mod guest;
pub mod http;
pub mod job;
pub mod output;
pub mod placement;
pub mod plan;
pub mod preflight;
pub mod progress;
pub mod report;
pub mod shell;
pub mod snapshot;
pub mod stack;
pub mod state;
pub mod sys;
pub mod teardown;
pub mod traffic;
