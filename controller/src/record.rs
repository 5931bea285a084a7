//! Recording of everything that reaches the brain, and its replay.
//!
//! ```text
//! file  := "WEIRREC1" lease_base:u64 frozen:u8 record*
//! record:= at_us:u64 kind:u8 node_len:u16 node payload_len:u32 payload      (little endian)
//! ```
//! Beside it, in `<file>.actions`, what the controller did, a line for each action: a replay must give
//! the same lines again.
//!
//! A torn tail (the controller was killed in the middle of a write) ends the replay, it is no error.

use crate::brain::{Action, Brain, Event};
use prost::Message as _;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weir_controller_core::Config;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::PinChange;
use weir_controller_core::topology::Plan;
use weir_wire::v1;

const MAGIC: &[u8; 8] = b"WEIRREC1";
/// A recording stops growing here: about a day of 100 nodes. What comes after is counted.
const BYTES_MAX: u64 = 1 << 30;

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read {path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a recording of weir-controller (its first bytes are not WEIRREC1)")]
    NotARecording { path: PathBuf },
    #[error("{path}: record {record} is damaged: {what}")]
    Damaged {
        path: PathBuf,
        record: u64,
        what: String,
    },
}

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder {
    file: BufWriter<File>,
    actions: BufWriter<File>,
    bytes: u64,
    /// Events that came after the file was full or a write failed. Nothing is written after the
    /// first: a replay would go another way without it.
    pub dropped: u64,
}

impl Recorder {
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, lease_base: u64, frozen: bool) -> std::io::Result<Recorder> {
        // The recording of a run that ended badly is the one that is wanted.
        for file in [path.to_owned(), actions_path(path)] {
            let mut old = file.clone().into_os_string();
            old.push(".old");
            match std::fs::rename(&file, old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(MAGIC)?;
        file.write_all(&lease_base.to_le_bytes())?;
        file.write_all(&[u8::from(frozen)])?;
        let actions = BufWriter::new(File::create(actions_path(path))?);
        Ok(Recorder {
            file,
            actions,
            bytes: 17,
            dropped: 0,
        })
    }

    /// Appends an event. A failure is counted: the record must never stop the controller.
    pub fn append(&mut self, at: Duration, event: &Event) {
        let (kind, node, payload) = encode(event);
        let size = 15 + node.len() as u64 + payload.len() as u64;
        let lengths = u16::try_from(node.len())
            .ok()
            .zip(u32::try_from(payload.len()).ok());
        let room = self.dropped == 0 && self.bytes + size <= BYTES_MAX;
        let (Some((node_len, payload_len)), true) = (lengths, room) else {
            self.dropped += 1;
            return;
        };
        let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let mut head = at_us.to_le_bytes().to_vec();
        head.push(kind);
        head.extend(node_len.to_le_bytes());
        head.extend(node.as_bytes());
        head.extend(payload_len.to_le_bytes());
        if self
            .file
            .write_all(&head)
            .and_then(|()| self.file.write_all(&payload))
            .is_err()
        {
            self.dropped += 1;
        }
        self.bytes += size;
    }

    /// Appends what followed from an event.
    pub fn acted(&mut self, at: Duration, action: &Action) {
        let line = line(at, action);
        self.bytes += line.len() as u64;
        if self.dropped > 0 || self.bytes > BYTES_MAX || writeln!(self.actions, "{line}").is_err() {
            self.dropped += 1;
        }
    }

    /// Hands what is buffered to the kernel.
    pub fn flush(&mut self) {
        if self
            .file
            .flush()
            .and_then(|()| self.actions.flush())
            .is_err()
        {
            self.dropped += 1;
        }
    }
}

/// Feeds a recording to a fresh brain and returns every action and verdict as lines of text.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(path: &Path, config: Config, plan: Plan) -> Result<Vec<String>, ReplayError> {
    let io = |source| ReplayError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut head = [0u8; 17];
    file.read_exact(&mut head).map_err(io)?;
    let (magic, rest) = head.split_at(8);
    if magic != MAGIC {
        return Err(ReplayError::NotARecording {
            path: path.to_owned(),
        });
    }
    let mut lease_base = [0u8; 8];
    lease_base.copy_from_slice(&rest[..8]);
    let mut brain = Brain::new(config, plan, rest[8] != 0, u64::from_le_bytes(lease_base));
    let mut lines = Vec::new();
    let mut record = 0;
    while let Some((at, event)) = read_record(&mut file, path, record)? {
        record += 1;
        for action in brain.handle(event, at) {
            lines.push(line(at, &action));
        }
    }
    for incident in brain.core.incidents().iter() {
        lines.push(format!("{incident:?}"));
    }
    for trial in brain.core.trials() {
        lines.push(format!("{trial:?}"));
    }
    Ok(lines)
}

/// Where the actions of a recording are kept.
#[must_use]
pub fn actions_path(recording: &Path) -> PathBuf {
    let mut name = recording.as_os_str().to_owned();
    name.push(".actions");
    name.into()
}

/// An action as a line; the same text for the same action.
#[must_use]
pub fn line(at: Duration, action: &Action) -> String {
    format!("{:.6} {action:?}", at.as_secs_f64())
}

fn encode(event: &Event) -> (u8, &str, Vec<u8>) {
    match event {
        Event::Connected { node, hello } => (1, node, hello.encode_to_vec()),
        Event::Message { node, message } => (2, node, message.encode_to_vec()),
        Event::Lost { node } => (3, node, Vec::new()),
        Event::Tick => (4, "", Vec::new()),
        Event::Freeze { frozen } => (5, "", vec![u8::from(*frozen)]),
        Event::Trial { job, pins } => {
            let pin = |p: &PinChange| json!([p.node.as_str(), p.dst.to_string(), &*p.port]);
            let pins: Vec<Value> = pins.iter().map(pin).collect();
            (6, job.as_str(), Value::from(pins).to_string().into_bytes())
        }
        Event::EndLease { lease } => (7, "", lease.to_le_bytes().to_vec()),
    }
}

fn read_record(
    file: &mut impl Read,
    path: &Path,
    record: u64,
) -> Result<Option<(Duration, Event)>, ReplayError> {
    let damaged = |what: &str| ReplayError::Damaged {
        path: path.to_owned(),
        record,
        what: what.to_owned(),
    };
    let mut head = [0u8; 11];
    if !filled(file, &mut head) {
        return Ok(None);
    }
    let mut at_us = [0u8; 8];
    at_us.copy_from_slice(&head[..8]);
    let mut node = vec![0; usize::from(u16::from_le_bytes([head[9], head[10]]))];
    let mut length = [0u8; 4];
    if !filled(file, &mut node) || !filled(file, &mut length) {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > 2 * weir_wire::MESSAGE_BYTES_MAX {
        return Err(damaged("its length is impossible"));
    }
    let mut payload = vec![0; length];
    if !filled(file, &mut payload) {
        return Ok(None);
    }
    let node = String::from_utf8(node).map_err(|_| damaged("the node's name is not UTF-8"))?;
    let event = match head[8] {
        1 => Event::Connected {
            node,
            hello: v1::Hello::decode(&*payload).map_err(|e| damaged(&e.to_string()))?,
        },
        2 => Event::Message {
            node,
            message: v1::AgentMessage::decode(&*payload).map_err(|e| damaged(&e.to_string()))?,
        },
        3 => Event::Lost { node },
        4 => Event::Tick,
        5 => Event::Freeze {
            frozen: payload.first() == Some(&1),
        },
        6 => Event::Trial {
            job: JobId::new(&node),
            pins: pins_of(&payload).ok_or_else(|| damaged("a pin does not parse"))?,
        },
        7 => Event::EndLease {
            lease: u64::from_le_bytes(
                payload
                    .try_into()
                    .map_err(|_| damaged("a lease number has eight bytes"))?,
            ),
        },
        _ => return Err(damaged("unknown kind; recorded by a newer version?")),
    };
    Ok(Some((
        Duration::from_micros(u64::from_le_bytes(at_us)),
        event,
    )))
}

fn filled(file: &mut impl Read, buffer: &mut [u8]) -> bool {
    file.read_exact(buffer).is_ok()
}

fn pins_of(payload: &[u8]) -> Option<Vec<PinChange>> {
    let pins: Vec<[String; 3]> = serde_json::from_slice(payload).ok()?;
    let pin = |[node, dst, port]: &[String; 3]| {
        Some(PinChange {
            node: NodeId::new(node),
            dst: dst.parse().ok()?,
            port: port.as_str().into(),
        })
    };
    pins.iter().map(pin).collect()
}
