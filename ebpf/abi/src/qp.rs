//! Queue pairs: where the kernel keeps their fields (`QP_LAYOUT`), and the table `QPS`.

/// Byte offsets of the fields that the programs read, from the BTF of the kernel and of `ib_core`.
///
/// Set by the agent before the probes are attached, and anew when `ib_core` was loaded anew.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpLayout {
    /// `ib_qp.device`, `.qp_num`, `.qp_type`, `.port`, `.real_qp`, `.res.task`, `.av_sgid_attr`.
    pub qp_device: u32,
    pub qp_num: u32,
    pub qp_type: u32,
    pub qp_port: u32,
    pub qp_real: u32,
    pub qp_task: u32,
    pub qp_sgid_attr: u32,
    /// `ib_qp_attr.qp_state`, `.dest_qp_num`.
    pub attr_state: u32,
    pub attr_dest_qpn: u32,
    /// `ib_qp_attr.ah_attr.ah_flags`, `.grh.dgid`, `.grh.flow_label`, `.grh.sgid_index`,
    /// `.grh.traffic_class`.
    pub attr_ah_flags: u32,
    pub attr_dgid: u32,
    pub attr_flow_label: u32,
    pub attr_sgid_index: u32,
    pub attr_traffic_class: u32,
    /// `ib_device.index`, `.name`, `.ops.driver_id`.
    pub device_index: u32,
    pub device_name: u32,
    pub device_driver: u32,
    /// `ib_gid_attr.gid`, `.gid_type`.
    pub gid: u32,
    pub gid_type: u32,
    /// `task_struct.tgid`, `.group_leader`, `.start_boottime`.
    pub task_tgid: u32,
    pub task_leader: u32,
    pub task_start: u32,
}

/// A queue pair on this machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QpKey {
    /// The kernel's number of the device; never used again for another.
    pub device: u32,
    pub qpn: u32,
}

/// `enum ib_qp_state`.
pub mod qp_state {
    pub const RESET: u8 = 0;
    pub const INIT: u8 = 1;
    pub const RTR: u8 = 2;
    pub const RTS: u8 = 3;
    pub const SQD: u8 = 4;
    pub const SQE: u8 = 5;
    pub const ERR: u8 = 6;
}

/// Bits of [`QpRecord::known`]: which fields were ever set.
pub mod qp_known {
    /// Address vector: GIDs, flow label, traffic class, SGID index.
    pub const AV: u8 = 1;
    /// `peer_qpn`.
    pub const PEER: u8 = 2;
    /// The pair is older than the probes; the agent entered it from RDMA netlink.
    pub const OLDER: u8 = 4;
}

/// `IB_DEVICE_NAME_MAX` of the kernel.
pub const QP_DEVICE_NAME: usize = 64;

/// A queue pair as its last successful modification left it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QpRecord {
    /// Kernel monotonic clock, ns.
    pub changed_ns: u64,
    /// When the owner's process began: ns since boot, sleep included; 0 for the kernel's own.
    pub start_ns: u64,
    /// Zero-terminated.
    pub device_name: [u8; QP_DEVICE_NAME],
    /// Network byte order.
    pub local_gid: [u8; 16],
    /// Network byte order.
    pub peer_gid: [u8; 16],
    /// Of the process that made it, as the initial pid namespace numbers it; 0 for the kernel's own.
    pub pid: u32,
    pub peer_qpn: u32,
    /// 20 bits; 0: the driver makes one up.
    pub flow_label: u32,
    /// `enum rdma_driver_id` of the kernel's ABI.
    pub driver: u32,
    /// Successful modifications seen.
    pub modified: u32,
    /// `enum ib_qp_type`, its lower byte: all that a device can have fit.
    pub kind: u8,
    /// One of [`qp_state`].
    pub state: u8,
    /// The state before the last change of state.
    pub state_before: u8,
    pub port: u8,
    pub sgid_index: u8,
    pub traffic_class: u8,
    /// `enum ib_gid_type`: 2 is RoCE version 2.
    pub gid_type: u8,
    /// Bits of [`qp_known`].
    pub known: u8,
    pub _pad: u32,
}

impl QpRecord {
    /// A pair of which nothing is known yet.
    pub const NEW: Self = Self {
        changed_ns: 0,
        start_ns: 0,
        device_name: [0; QP_DEVICE_NAME],
        local_gid: [0; 16],
        peer_gid: [0; 16],
        pid: 0,
        peer_qpn: 0,
        flow_label: 0,
        driver: 0,
        modified: 0,
        kind: 0,
        state: 0,
        state_before: 0,
        port: 0,
        sgid_index: 0,
        traffic_class: 0,
        gid_type: 0,
        known: 0,
        _pad: 0,
    };
}

/// A call of the modifying or destroying function that has not returned, by pid and tid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct QpCall {
    /// Modification: address of the `ib_qp`.
    pub qp: u64,
    /// Modification: address of the `ib_qp_attr`; 0 for a destruction.
    pub attr: u64,
    /// Destruction: the pair, which is gone when the call returns.
    pub key: QpKey,
    /// Modification: which attributes are set.
    pub mask: u32,
    pub _pad: u32,
}

const _: () = assert!(size_of::<QpLayout>() == 22 * 4);
const _: () = assert!(size_of::<QpKey>() == 8);
const _: () = assert!(size_of::<QpRecord>() == 16 + 64 + 32 + 20 + 8 + 4);
const _: () = assert!(size_of::<QpCall>() == 32);
