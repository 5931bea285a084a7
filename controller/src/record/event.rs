//! Events as records.

use super::format::{Kind, Record, put_record};
use crate::brain::Event;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::time::Duration;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::PinChange;
use weir_wire::v1;

/// A request for a trial, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    job: String,
    /// Node, destination, port.
    pins: Vec<(String, Ipv4Addr, String)>,
}

/// Appends an event; false if it is too long to be recorded.
pub fn put_event(out: &mut Vec<u8>, at: Duration, event: &Event) -> bool {
    match event {
        Event::Connected { node, hello } => {
            put_record(out, at, Kind::Connected, node, |out| put(out, hello))
        }
        Event::Message { node, message } => {
            put_record(out, at, Kind::Message, node, |out| put(out, message))
        }
        Event::Lost { node } => put_record(out, at, Kind::Lost, node, |_| {}),
        Event::Tick => put_record(out, at, Kind::Tick, "", |_| {}),
        Event::Freeze { frozen } => {
            put_record(out, at, Kind::Freeze, "", |out| out.push(u8::from(*frozen)))
        }
        Event::Trial { job, pins } => {
            let pin = |p: &PinChange| (p.node.to_string(), p.dst, p.port.to_string());
            let trial = Trial {
                job: job.to_string(),
                pins: pins.iter().map(pin).collect(),
            };
            let Ok(json) = serde_json::to_vec(&trial) else {
                return false;
            };
            put_record(out, at, Kind::Trial, "", |out| out.extend(json))
        }
        Event::EndLease { lease } => put_record(out, at, Kind::EndLease, "", |out| {
            out.extend(lease.to_le_bytes())
        }),
        Event::SegmentDue => put_record(out, at, Kind::SegmentDue, "", |_| {}),
        Event::SegmentBegun => put_record(out, at, Kind::SegmentBegun, "", |_| {}),
    }
}

fn put(out: &mut Vec<u8>, message: &impl prost::Message) {
    out.reserve(message.encoded_len());
    message.encode_raw(out);
}

/// The event of a record; `None` if it holds none.
///
/// # Errors
/// What is wrong with its payload.
pub fn event_of(record: Record) -> Result<Option<Event>, String> {
    let Record {
        kind,
        node,
        payload,
        ..
    } = record;
    Ok(Some(match kind {
        Kind::Connected => Event::Connected {
            node,
            hello: v1::Hello::decode(&*payload).map_err(|e| e.to_string())?,
        },
        Kind::Message => Event::Message {
            node,
            message: v1::AgentMessage::decode(&*payload).map_err(|e| e.to_string())?,
        },
        Kind::Lost => Event::Lost { node },
        Kind::Tick => Event::Tick,
        Kind::Freeze => Event::Freeze {
            frozen: payload == [1],
        },
        Kind::Trial => {
            let trial: Trial = serde_json::from_slice(&payload).map_err(|e| e.to_string())?;
            let pin = |(node, dst, port): (String, Ipv4Addr, String)| PinChange {
                node: NodeId::new(&node),
                dst,
                port: port.into(),
            };
            Event::Trial {
                job: JobId::shown(&trial.job),
                pins: trial.pins.into_iter().map(pin).collect(),
            }
        }
        Kind::EndLease => {
            let lease = payload.try_into();
            let lease = lease.map_err(|_| "a lease's number has eight bytes")?;
            Event::EndLease {
                lease: u64::from_le_bytes(lease),
            }
        }
        Kind::SegmentDue => Event::SegmentDue,
        Kind::SegmentBegun => Event::SegmentBegun,
        Kind::Header | Kind::Configuration | Kind::Topology | Kind::Memory | Kind::Action => {
            return Ok(None);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::super::format::read_record;
    use super::*;

    #[test]
    fn every_event_comes_back() {
        let node = "h1".to_owned();
        let hello = v1::Hello {
            node: node.clone(),
            held_leases: vec![7, 8],
            ..v1::Hello::default()
        };
        let report = v1::LeaseReport {
            id: 7,
            reason: "expired".into(),
            ..v1::LeaseReport::default()
        };
        let message = v1::AgentMessage {
            body: Some(v1::agent_message::Body::Lease(report)),
        };
        let pin = PinChange {
            node: NodeId::new("l1"),
            dst: [10, 0, 0, 1].into(),
            port: "up2".into(),
        };
        let events = [
            Event::Connected {
                node: node.clone(),
                hello,
            },
            Event::Message {
                node: node.clone(),
                message,
            },
            Event::Lost { node },
            Event::Tick,
            Event::Freeze { frozen: true },
            Event::Freeze { frozen: false },
            Event::Trial {
                job: JobId::new("slurm-4:\"x\""),
                pins: vec![pin],
            },
            Event::EndLease { lease: u64::MAX },
            Event::SegmentDue,
            Event::SegmentBegun,
        ];
        let at = Duration::from_micros(1_234_567);
        let mut bytes = Vec::new();
        for event in &events {
            assert!(put_event(&mut bytes, at, event));
        }
        let mut rest = bytes.as_slice();
        for event in events {
            let record = read_record(&mut rest).unwrap().unwrap();
            assert_eq!(record.at, at);
            assert_eq!(event_of(record), Ok(Some(event)));
        }
    }
}
