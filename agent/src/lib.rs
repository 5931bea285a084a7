//! The node agent's IO shell: collectors, actuators, uplink. What readings mean and what may be
//! changed is decided in `weir-agent-core`.

pub mod actuate;
pub mod netlink;
