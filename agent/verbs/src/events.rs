//! Names and meanings of asynchronous events (enum ibv_event_type of infiniband/verbs.h). Pure.

use weir_verbs_protocol::{Event, Severity};

/// What an event concerns. Of queue pairs, completion queues and shared receive queues a process
/// hears its own alone; of ports and devices every process hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Device,
    Port,
    QueuePair,
    CompletionQueue,
    SharedReceiveQueue,
    WorkQueue,
}

use Scope::{CompletionQueue, Device, Port, QueuePair, SharedReceiveQueue, WorkQueue};
use Severity::{Critical, Info, Warning};

type Row = (Scope, &'static str, Severity, &'static str, &'static str);

const CHECK_LINK: &str = "Check the cable or module and the switch port at its other end.";
const RESET: &str = "Look into the kernel log for the device; reload its driver or reset it.";
const OWN: &str = "The pings of this port start anew; look into the kernel log if it recurs.";

/// In the order of enum ibv_event_type.
const ROWS: [Row; 21] = [
    (
        CompletionQueue,
        "cq_error",
        Warning,
        "a completion queue of the pings overran or failed",
        OWN,
    ),
    (
        QueuePair,
        "qp_fatal",
        Warning,
        "a queue pair of the pings failed",
        OWN,
    ),
    (
        QueuePair,
        "qp_request_error",
        Warning,
        "a queue pair of the pings got an invalid request",
        OWN,
    ),
    (
        QueuePair,
        "qp_access_error",
        Warning,
        "a queue pair of the pings had its access refused",
        OWN,
    ),
    (
        QueuePair,
        "communication_established",
        Info,
        "a queue pair got its first packet",
        "",
    ),
    (
        QueuePair,
        "send_queue_drained",
        Info,
        "a send queue has drained",
        "",
    ),
    (
        QueuePair,
        "path_migrated",
        Info,
        "a connection moved to its alternate path",
        "",
    ),
    (
        QueuePair,
        "path_migration_error",
        Warning,
        "a connection could not move to its alternate path",
        CHECK_LINK,
    ),
    (
        Device,
        "device_fatal",
        Critical,
        "the device failed fatally: it is closed",
        RESET,
    ),
    (Port, "port_active", Info, "the port is active", ""),
    (
        Port,
        "port_error",
        Warning,
        "the port is no longer active",
        CHECK_LINK,
    ),
    (
        Port,
        "lid_change",
        Info,
        "the subnet manager changed the port's LID",
        "",
    ),
    (
        Port,
        "pkey_change",
        Info,
        "the port's table of partition keys changed",
        "",
    ),
    (
        Port,
        "sm_change",
        Info,
        "the port has another subnet manager",
        "",
    ),
    (
        SharedReceiveQueue,
        "srq_error",
        Warning,
        "a shared receive queue failed",
        OWN,
    ),
    (
        SharedReceiveQueue,
        "srq_limit_reached",
        Info,
        "a shared receive queue runs low",
        "",
    ),
    (
        QueuePair,
        "qp_last_wqe_reached",
        Info,
        "a queue pair took its last shared buffer",
        "",
    ),
    (
        Port,
        "client_reregister",
        Info,
        "the subnet manager asks for registrations anew",
        "",
    ),
    (
        Port,
        "gid_change",
        Info,
        "the port's table of GIDs changed",
        "",
    ),
    (WorkQueue, "wq_fatal", Warning, "a work queue failed", OWN),
    (
        Port,
        "speed_change",
        Warning,
        "the port's speed changed",
        CHECK_LINK,
    ),
];

/// What a number concerns; `None` for one that this version does not know, whose element must not be touched.
#[must_use]
pub fn scope(number: u32) -> Option<Scope> {
    row(number).map(|row| row.0)
}

fn row(number: u32) -> Option<&'static Row> {
    ROWS.get(usize::try_from(number).ok()?)
}

/// The event of a number; `port` as the library gives it.
#[must_use]
pub fn event(device: &str, number: u32, port: Option<u8>) -> Event {
    let (name, severity, text, action) = row(number).map_or(
        (
            "unknown_verbs_event",
            Warning,
            "an event that this version does not know",
            "",
        ),
        |row| (row.1, row.2, row.3, row.4),
    );
    Event {
        device: device.to_owned(),
        port,
        name: name.to_owned(),
        number: Some(number),
        severity,
        text: match (row(number), port) {
            (None, _) => format!("{device}: {text} ({number})"),
            (Some(_), Some(port)) => format!("{device} port {port}: {text}"),
            (Some(_), None) => format!("{device}: {text}"),
        },
        action: action.to_owned(),
    }
}

/// A device that is there no more although it did not say so, or that is new.
#[must_use]
pub fn presence(device: &str, here: bool) -> Event {
    let (name, severity, text, action) = if here {
        ("device_added", Info, "the device has come", "")
    } else {
        (
            "device_removed",
            Warning,
            "the device is gone",
            "If nobody removed it: look into the kernel log for PCIe errors.",
        )
    };
    Event {
        device: device.to_owned(),
        port: None,
        name: name.to_owned(),
        number: None,
        severity,
        text: format!("{device}: {text}"),
        action: action.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdma_sys::ibv_event_type;

    #[test]
    fn rows_stand_where_the_library_numbers_them() {
        for (number, name) in [
            (ibv_event_type::IBV_EVENT_CQ_ERR as u32, "cq_error"),
            (
                ibv_event_type::IBV_EVENT_QP_ACCESS_ERR as u32,
                "qp_access_error",
            ),
            (ibv_event_type::IBV_EVENT_PATH_MIG as u32, "path_migrated"),
            (
                ibv_event_type::IBV_EVENT_DEVICE_FATAL as u32,
                "device_fatal",
            ),
            (ibv_event_type::IBV_EVENT_PORT_ACTIVE as u32, "port_active"),
            (ibv_event_type::IBV_EVENT_PORT_ERR as u32, "port_error"),
            (ibv_event_type::IBV_EVENT_LID_CHANGE as u32, "lid_change"),
            (ibv_event_type::IBV_EVENT_PKEY_CHANGE as u32, "pkey_change"),
            (ibv_event_type::IBV_EVENT_SM_CHANGE as u32, "sm_change"),
            (ibv_event_type::IBV_EVENT_SRQ_ERR as u32, "srq_error"),
            (
                ibv_event_type::IBV_EVENT_CLIENT_REREGISTER as u32,
                "client_reregister",
            ),
            (ibv_event_type::IBV_EVENT_GID_CHANGE as u32, "gid_change"),
            (ibv_event_type::IBV_EVENT_WQ_FATAL as u32, "wq_fatal"),
        ] {
            assert_eq!(event("d", number, None).name, name);
        }
        let names: Vec<&str> = ROWS.iter().map(|row| row.1).collect();
        assert_eq!(names, weir_verbs_protocol::EVENT_NAMES[..ROWS.len()]);
    }

    #[test]
    fn a_number_of_a_later_library_has_no_element() {
        assert_eq!(scope(21), None);
        let later = event("mlx5_0", 99, None);
        assert_eq!(later.name, "unknown_verbs_event");
        assert!(later.text.contains("99"));
    }

    #[test]
    fn a_port_that_fails_is_worth_a_warning_a_device_more() {
        assert_eq!(event("d", 10, Some(1)).severity, Warning);
        assert_eq!(event("d", 9, Some(1)).severity, Info);
        assert_eq!(event("d", 8, None).severity, Critical);
        assert_eq!(
            event("d", 10, Some(2)).text,
            "d port 2: the port is no longer active"
        );
    }
}
