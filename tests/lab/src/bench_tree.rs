//! The sysfs of a full node for the bench: eight ports of mlx5 with all their counters.

use anyhow::Result;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const NICS: u32 = 8;

/// `counters/` of a port; those that move while data flows come first.
const PORT_COUNTERS: [&str; 22] = [
    "port_xmit_data",
    "port_rcv_data",
    "port_xmit_packets",
    "port_rcv_packets",
    "unicast_xmit_packets",
    "unicast_rcv_packets",
    "port_xmit_wait",
    "multicast_xmit_packets",
    "multicast_rcv_packets",
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_discards",
    "symbol_error",
    "port_xmit_wait_ext",
];
/// `hw_counters/` of mlx5 in RoCE mode, likewise.
const HW_COUNTERS: [&str; 29] = [
    "rx_write_requests",
    "rx_read_requests",
    "np_ecn_marked_roce_packets",
    "np_cnp_sent",
    "rp_cnp_handled",
    "out_of_sequence",
    "packet_seq_err",
    "roce_adp_retrans",
    "duplicate_request",
    "implied_nak_seq_err",
    "local_ack_timeout_err",
    "out_of_buffer",
    "req_cqe_error",
    "req_cqe_flush_error",
    "req_remote_access_errors",
    "req_remote_invalid_request",
    "resp_cqe_error",
    "resp_cqe_flush_error",
    "resp_local_length_error",
    "resp_remote_access_errors",
    "rnr_nak_retry_err",
    "roce_adp_retrans_to",
    "roce_slow_restart",
    "roce_slow_restart_cnps",
    "roce_slow_restart_trans",
    "rp_cnp_ignored",
    "rx_atomic_requests",
    "rx_dct_connect",
    "rx_icrc_encapsulated",
];
/// Counters of each directory that move.
const MOVING: usize = 7;

/// A tree of files that looks like sysfs, and the files that move.
pub struct Tree {
    moving: Vec<(File, u64)>,
}

impl Tree {
    /// # Errors
    /// A file cannot be written.
    pub fn make(root: &Path) -> Result<Tree> {
        let mut moving = Vec::new();
        for nic in 0..NICS {
            let device = root.join(format!("class/infiniband/mlx5_{nic}"));
            let port = device.join("ports/1");
            fs::create_dir_all(&port)?;
            for (file, text) in [
                ("../../fw_ver", "28.43.2026"),
                ("../../board_id", "MT_0000000838"),
                ("../../hca_type", "MT4129"),
                ("state", "4: ACTIVE"),
                ("phys_state", "5: LinkUp"),
                ("rate", "400 Gb/sec (4X NDR)"),
                ("link_layer", "Ethernet"),
            ] {
                fs::write(port.join(file), format!("{text}\n"))?;
            }
            for (dir, names) in [
                ("counters", &PORT_COUNTERS[..]),
                ("hw_counters", &HW_COUNTERS),
            ] {
                fs::create_dir_all(port.join(dir))?;
                for (place, name) in (0u64..).zip(names) {
                    let path = port.join(dir).join(name);
                    fs::write(&path, counter(0))?;
                    if place < MOVING as u64 {
                        let file = OpenOptions::new().write(true).open(&path)?;
                        // From a full link's bytes down to a few marks a second.
                        moving.push((file, 12_000_000_000 >> (place * 5)));
                    }
                }
            }
            fs::write(port.join("hw_counters/lifespan"), "10\n")?;
        }
        Ok(Tree { moving })
    }

    /// Lets time pass: rates that waver by some per cent, as a busy link's do.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn step(&self, second: u64) -> Result<()> {
        for (place, (file, rate)) in (0u64..).zip(&self.moving) {
            let waver = (second * 7919 + place * 104_729) % 64;
            let value = rate * second + rate / 1024 * waver;
            file.write_all_at(counter(value).as_bytes(), 0)?;
        }
        Ok(())
    }
}

/// Of one width, so that it can be written over in place.
fn counter(value: u64) -> String {
    format!("{value:020}\n")
}
