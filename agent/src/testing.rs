//! What unit tests of several sources share.

use crate::bpf::{QpKind, QpSample, QpState};
use crate::sample::QueuePair;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A folder of captures of real machines, which live beside the checkout (or in `WEIR_FIXTURES`);
/// says aloud that the test is skipped where they are not.
pub fn fixtures(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEIR_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    let path = root.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    let line = format!("SKIPPED: no captures in {}\n", path.display());
    std::io::stderr().write_all(line.as_bytes()).ok();
    None
}

/// A connected pair of rxe1 between 10.0.1.2 and 10.0.3.2, whose peer has the next number.
pub fn pair(qpn: u32) -> QueuePair {
    let gid = |address: [u8; 4]| Ipv4Addr::from(address).to_ipv6_mapped();
    QueuePair {
        qp: QpSample {
            device_index: 0,
            device: "rxe1".into(),
            port: Some(1),
            qpn,
            kind: QpKind::Rc,
            state: QpState::ReadyToSend,
            local_gid: Some(gid([10, 0, 1, 2])),
            peer_gid: Some(gid([10, 0, 3, 2])),
            peer_qpn: Some(qpn + 1),
            sgid_index: Some(1),
            flow_label: Some(0),
            traffic_class: Some(0x6a),
            roce_v2: true,
            src_port: Some(0xc132),
            src_port_predicted: false,
            pid: Some(5),
            process_start_ns: Some(7),
            older: false,
        },
        job: "slurm:77".into(),
    }
}
