//! What `weir-verbs` prints and reads, one JSON object a line. Both sides are of one version; what
//! either does not know is an error of that line alone.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Targets of one node: a fleet of 1,000 hosts with eight ports each asks for far fewer per node.
pub const TARGETS_MAX: usize = 4096;
/// Sources of pings that are answered: one for each port of as many peers as are pinged.
pub const PROBERS_MAX: usize = 4096;
/// Longest line that is read: all targets at 250 bytes and all probers at 45, with room.
pub const LINE_MAX: usize = 2 << 20;
/// Longest name that a target goes by, in bytes.
pub const ID_MAX: usize = 128;
/// A flow label has 20 bits.
pub const FLOW_LABEL_MAX: u32 = 0xf_ffff;

/// Names that events may have: those of enum ibv_event_type in its order, then those of our own.
pub const EVENT_NAMES: [&str; 24] = [
    "cq_error",
    "qp_fatal",
    "qp_request_error",
    "qp_access_error",
    "communication_established",
    "send_queue_drained",
    "path_migrated",
    "path_migration_error",
    "device_fatal",
    "port_active",
    "port_error",
    "lid_change",
    "pkey_change",
    "sm_change",
    "srq_error",
    "srq_limit_reached",
    "qp_last_wqe_reached",
    "client_reregister",
    "gid_change",
    "wq_fatal",
    "speed_change",
    "unknown_verbs_event",
    "device_added",
    "device_removed",
];

/// What `weir-verbs` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Event(Event),
    Endpoint(Endpoint),
    /// An endpoint that is no more.
    EndpointGone(Place),
    Report(Report),
    Status(Status),
    Error(Failure),
}

/// How bad an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// An asynchronous event of a device, or that a device came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub device: String,
    /// `None`: it concerns the device, not a port of it.
    pub port: Option<u8>,
    /// Snake case, such as `port_error`.
    pub name: String,
    /// Number of enum ibv_event_type; `None` where it is no event of the library's.
    pub number: Option<u32>,
    pub severity: Severity,
    pub text: String,
    /// Empty if there is nothing to do.
    pub action: String,
}

/// A port of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub device: String,
    pub port: u8,
}

/// Where pings to a port go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub device: String,
    pub port: u8,
    /// As an IPv6 address; RoCE v2 over IPv4 has `::ffff:a.b.c.d`.
    pub gid: String,
    pub gid_index: u8,
    /// Of the queue pair that receives; changes with each start.
    pub qpn: u32,
    pub qkey: u32,
    /// Paths that pings can be told apart by: more than one where each takes a queue pair of its
    /// own, because the device makes the UDP source port of the queue pair's number; 1 where the flow label does it.
    pub queue_pairs: u16,
    pub active: bool,
    /// Bits per second; `None` if the port does not say, or is down.
    pub rate_bps: Option<u64>,
    pub timestamps: Timestamps,
}

/// Where the times of a report come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timestamps {
    /// The device's clock, at the completion.
    Hardware,
    /// CLOCK_MONOTONIC_RAW, when the completion was polled.
    Software,
}

/// What `weir-verbs` is told: these targets and no others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    pub targets: Vec<Target>,
    /// Of all targets together; 1,000 at most count, and a five-thousandth of each port's link.
    pub packets_per_second: u32,
    /// GIDs whose pings are answered, as IPv6 addresses; `None`: everybody's who has the key, within the rates.
    #[serde(default)]
    pub probers: Option<Vec<String>>,
}

/// Whom to ping, on which path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The name that its reports bear; one target each.
    pub id: String,
    /// Device that pings.
    pub device: String,
    #[serde(default = "first_port")]
    pub port: u8,
    /// Of the target.
    pub gid: String,
    pub qpn: u32,
    pub qkey: u32,
    /// Which of the equal paths, there and back. The flow label of the packets, from which RoCE
    /// devices make the UDP source port; soft-RoCE takes it modulo [`Endpoint::queue_pairs`] as the number of the queue pair that sends.
    #[serde(default)]
    pub flow_label: u32,
    #[serde(default = "hops")]
    pub hop_limit: u8,
}

fn first_port() -> u8 {
    1
}

fn hops() -> u8 {
    64
}

/// What pings to a target met in one window. Nothing is printed of a window without an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub id: String,
    pub device: String,
    pub port: u8,
    /// Pings whose outcome is known: answered, or given up. Without those to a target that has not
    /// answered yet since it was named, for some seconds: it may not know of us.
    pub sent: u64,
    /// Pings that nobody answered in time, or to which the network has no way.
    pub lost: u64,
    /// From the sender's device to the other's and back, the other's delay taken out.
    pub rtt_ns: Option<Spread>,
    /// What this host added to it: from the program to its device and back.
    pub host_ns: Option<Spread>,
    /// What the other host added: between the ping's arrival and the answer's departure.
    pub responder_ns: Option<Spread>,
    pub timestamps: Timestamps,
    pub window_ms: u64,
}

/// Of the values in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    pub samples: u64,
    pub min: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// Said once a second: the program is alive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Devices that are open.
    pub devices: Vec<String>,
    /// Devices whose library has not come back for some seconds.
    pub stuck: Vec<String>,
    /// Since the start, by device; the names are those of [`Counters`].
    pub counters: BTreeMap<String, Counters>,
    /// Lines that nobody read in time, and so were not printed.
    pub lines_dropped: u64,
}

/// What a device's pings and answers came to since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub pings_sent: u64,
    pub pings_answered: u64,
    /// Pings of others that no way or no buffer was left for.
    pub pings_refused: u64,
    /// Pings of those whom the orders do not name.
    pub pings_not_listed: u64,
    /// Pings beyond what a source, or all of them together, may ask for.
    pub pings_too_fast: u64,
    /// Packets that are none of ours, or answers that nobody waits for.
    pub foreign_packets: u64,
    /// Own pings that no buffer or no room for an address was left for: they were not sent.
    pub pings_held_back: u64,
    /// Own pings without an answer, to targets that have not answered yet since they were named: not lost.
    pub pings_unknown: u64,
    pub completions_failed: u64,
}

impl Counters {
    /// Names and values, for raw counters.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 9] {
        [
            ("pings_sent", self.pings_sent),
            ("pings_answered", self.pings_answered),
            ("pings_refused", self.pings_refused),
            ("pings_not_listed", self.pings_not_listed),
            ("pings_too_fast", self.pings_too_fast),
            ("foreign_packets", self.foreign_packets),
            ("pings_held_back", self.pings_held_back),
            ("pings_unknown", self.pings_unknown),
            ("completions_failed", self.completions_failed),
        ]
    }
}

/// Something that could not be done. The program goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `None`: it concerns what was read.
    pub device: Option<String>,
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_what_they_hold() {
        let line = Line::EndpointGone(Place {
            device: "rxe1".into(),
            port: 1,
        });
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"endpoint_gone":{"device":"rxe1","port":1}}"#);
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    }

    #[test]
    fn what_is_left_out_of_a_target_has_a_default_and_the_unknown_is_refused() {
        let orders = r#"{"targets":[{"id":"a","device":"d","gid":"::1","qpn":1,"qkey":2}],"packets_per_second":5}"#;
        let orders: Orders = serde_json::from_str(orders).unwrap();
        assert_eq!(
            (orders.targets[0].port, orders.targets[0].hop_limit),
            (1, 64)
        );
        let unknown = r#"{"targets":[],"packets_per_second":5,"burst":9}"#;
        assert!(serde_json::from_str::<Orders>(unknown).is_err());
    }
}
