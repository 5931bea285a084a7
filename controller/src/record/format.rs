//! Records as bytes.

use serde::{Deserialize, Serialize};
use std::io::Read;
use std::time::Duration;
use weir_wire::MESSAGE_BYTES_MAX;

/// What a segment begins with.
pub const MAGIC: &[u8; 8] = b"WEIRREC2";
/// What segments' names end with.
pub const EXTENSION: &str = "weirrec";
/// CRC and length.
const FRAME_BYTES: usize = 8;
/// Time, kind, length of the node's name.
const FIXED_BYTES: usize = 11;
/// No record is longer: a memory of 1,024 incidents and 4,096 jobs at their limits, a topology file of 600,000
/// links. A longer one is damage.
const RECORD_BYTES_MAX: usize = 512 << 20;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Header`] as JSON.
    Header = 0,
    Connected = 1,
    Message = 2,
    Lost = 3,
    Tick = 4,
    Freeze = 5,
    Trial = 6,
    EndLease = 7,
    /// The restart point is complete, events follow: an event itself.
    SegmentBegun = 8,
    /// controller.yaml as it was understood.
    Configuration = 9,
    /// The operator's topology file.
    Topology = 10,
    /// [`weir_controller_core::Memory`].
    Memory = 11,
    /// What followed from the event before, as text.
    Action = 12,
    /// The next segment is due.
    SegmentDue = 13,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        use Kind::{
            Action, Configuration, Connected, EndLease, Freeze, Header, Lost, Memory, Message,
            SegmentBegun, SegmentDue, Tick, Topology, Trial,
        };
        let all = [
            Header,
            Connected,
            Message,
            Lost,
            Tick,
            Freeze,
            Trial,
            EndLease,
            SegmentBegun,
            Configuration,
            Topology,
            Memory,
            Action,
            SegmentDue,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// What a segment says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the program that wrote it.
    pub program: String,
    /// The start of the controller, as its lease numbers have it: seconds since 1970, times 2^20.
    pub run: u64,
    pub segment: u64,
    /// Wall clock at the start of the controller, microseconds since 1970.
    pub started_us: u64,
    /// An operator's freeze stood when the controller started.
    pub frozen: bool,
    /// Records lost between the segment before and this one.
    pub lost_before: u64,
    /// Of the configuration and topology as understood: CRC-32 of their debug text.
    pub digest: u32,
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Since the start of the controller.
    pub at: Duration,
    pub kind: Kind,
    pub node: String,
    pub payload: Vec<u8>,
}

/// Why a segment ends before its last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It ends in the middle of a record: the controller was killed, or the disk was full.
    Torn,
    Damaged(String),
}

/// Appends a record, whose payload `fill` writes; false if it is too long to be one.
pub fn put_record(
    out: &mut Vec<u8>,
    at: Duration,
    kind: Kind,
    node: &str,
    fill: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let start = out.len();
    let at_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
    let Ok(node_len) = u16::try_from(node.len()) else {
        return false;
    };
    out.extend([0; FRAME_BYTES]);
    out.extend(at_us.to_le_bytes());
    out.push(kind as u8);
    out.extend(node_len.to_le_bytes());
    out.extend(node.as_bytes());
    fill(out);
    let (frame, body) = out[start..].split_at_mut(FRAME_BYTES);
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= RECORD_BYTES_MAX);
    let Some(length) = length else {
        out.truncate(start);
        return false;
    };
    frame[..4].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    frame[4..].copy_from_slice(&length.to_le_bytes());
    true
}

/// Reads the next record; `None` at the end.
///
/// # Errors
/// [`Fault`]: what follows cannot be read.
pub fn read_record(from: &mut impl Read) -> Result<Option<Record>, Fault> {
    let mut frame = [0; FRAME_BYTES];
    match fill(from, &mut frame)? {
        0 => return Ok(None),
        FRAME_BYTES => {}
        _ => return Err(Fault::Torn),
    }
    let [c0, c1, c2, c3, l0, l1, l2, l3] = frame;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if !(FIXED_BYTES..=RECORD_BYTES_MAX).contains(&length) {
        return Err(Fault::Damaged(format!(
            "its length of {length} is impossible"
        )));
    }
    // As much as there is and no more is set aside, whatever the length says.
    let mut body = Vec::with_capacity(length.min(MESSAGE_BYTES_MAX));
    let wanted = u64::try_from(length).unwrap_or(u64::MAX);
    let read = from.by_ref().take(wanted).read_to_end(&mut body);
    read.map_err(|error| Fault::Damaged(error.to_string()))?;
    if body.len() < length {
        return Err(Fault::Torn);
    }
    if crc32fast::hash(&body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(Fault::Damaged("its checksum is wrong".into()));
    }
    parse_body(&body).map(Some).map_err(Fault::Damaged)
}

fn parse_body(body: &[u8]) -> Result<Record, String> {
    let short = || "it is too short".to_owned();
    let (at_us, rest) = body.split_first_chunk().ok_or_else(short)?;
    let ([kind, n0, n1], rest) = rest.split_first_chunk().ok_or_else(short)?;
    let node_len = usize::from(u16::from_le_bytes([*n0, *n1]));
    let (node, payload) = rest.split_at_checked(node_len).ok_or_else(short)?;
    Ok(Record {
        at: Duration::from_micros(u64::from_le_bytes(*at_us)),
        kind: Kind::of(*kind)
            .ok_or_else(|| format!("kind {kind} is unknown; a newer version wrote it?"))?,
        node: std::str::from_utf8(node)
            .map_err(|_| "the node's name is not UTF-8")?
            .to_owned(),
        payload: payload.to_vec(),
    })
}

/// Bytes that were there, at most as many as fit.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Fault> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::Damaged(error.to_string())),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let record = (
            any::<u64>(),
            0u8..=13,
            ".{0,12}",
            prop::collection::vec(any::<u8>(), 0..60),
        );
        let record = record.prop_map(|(at_us, kind, node, payload)| Record {
            at: Duration::from_micros(at_us),
            kind: Kind::of(kind).unwrap(),
            node,
            payload,
        });
        prop::collection::vec(record, 1..8)
    }

    fn written(records: &[Record]) -> Vec<u8> {
        let mut out = Vec::new();
        for r in records {
            assert!(put_record(&mut out, r.at, r.kind, &r.node, |out| out
                .extend(&r.payload)));
        }
        out
    }

    /// All records up to the end or the first fault.
    fn read(mut bytes: &[u8]) -> (Vec<Record>, Option<Fault>) {
        let mut records = Vec::new();
        loop {
            match read_record(&mut bytes) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => return (records, None),
                Err(fault) => return (records, Some(fault)),
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in records()) {
            prop_assert_eq!(read(&written(&records)), (records, None));
        }

        #[test]
        fn a_torn_tail_costs_the_record_that_it_tears(records in records(), cut in any::<prop::sample::Index>()) {
            let bytes = written(&records);
            let cut = cut.index(bytes.len());
            let (whole, fault) = read(&bytes[..cut]);
            prop_assert_eq!(&records[..whole.len()], &whole);
            let length = written(&whole).len();
            prop_assert_eq!(fault, (length < cut).then_some(Fault::Torn));
        }

        /// One wrong bit anywhere: what is ahead of it is read, and nothing that was not written.
        #[test]
        fn damage_is_noticed(records in records(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = written(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (whole, fault) = read(&bytes);
            prop_assert!(fault.is_some());
            prop_assert_eq!(&records[..whole.len()], &whole);
            prop_assert!(written(&whole).len() <= at);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&bytes);
        }
    }
}
