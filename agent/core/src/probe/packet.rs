//! What a probe carries. All of it is 64 bytes, so that no reply is larger than its request.
//!
//! ```text
//!  0  magic "WPRB"   4  version   5  kind    6  path (source port's number)
//!  8  sequence      16  nonce: what only the prober knows, and whoever saw the probe
//! 24  how long the responder held the probe, in ns; all ones: not known
//! 32  zeros         60  FNV-1a of what is before        (big endian)
//! ```
//!
//! A prober keeps all that it will need itself: nothing in a reply but the responder's delay is
//! believed, and a reply whose nonce is not that of its sequence number is no reply.

use std::time::Duration;

/// Length of every packet.
pub const LENGTH: usize = 64;
const MAGIC: [u8; 4] = *b"WPRB";
const VERSION: u8 = 1;
const UNKNOWN: u64 = u64::MAX;

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Reply,
}

/// A probe or its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub kind: Kind,
    pub path: u16,
    pub sequence: u64,
    pub nonce: u64,
    /// How long the responder held it; `None` where its kernel gave no stamp.
    pub held: Option<Duration>,
}

/// Why bytes are no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Somebody else's: length or magic is not ours.
    Foreign,
    /// Of another version of the protocol.
    Version(u8),
    /// Ours once, but changed on the way.
    Corrupt,
}

impl Packet {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Request => 1,
            Kind::Reply => 2,
        };
        bytes[6..8].copy_from_slice(&self.path.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.nonce.to_be_bytes());
        let held = self
            .held
            .and_then(|held| u64::try_from(held.as_nanos()).ok());
        bytes[24..32].copy_from_slice(&held.unwrap_or(UNKNOWN).to_be_bytes());
        let check = check(&bytes[..60]);
        bytes[60..].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Packet, Malformed> {
        let bytes: &[u8; LENGTH] = bytes.try_into().map_err(|_| Malformed::Foreign)?;
        if bytes[..4] != MAGIC {
            return Err(Malformed::Foreign);
        }
        if check(&bytes[..60]).to_be_bytes() != bytes[60..] {
            return Err(Malformed::Corrupt);
        }
        if bytes[4] != VERSION {
            return Err(Malformed::Version(bytes[4]));
        }
        let kind = match bytes[5] {
            1 => Kind::Request,
            2 => Kind::Reply,
            _ => return Err(Malformed::Corrupt),
        };
        let held = u64_at(bytes, 24);
        Ok(Packet {
            kind,
            path: u16::from_be_bytes([bytes[6], bytes[7]]),
            sequence: u64_at(bytes, 8),
            nonce: u64_at(bytes, 16),
            held: (held != UNKNOWN).then(|| Duration::from_nanos(held)),
        })
    }

    /// The reply to a request that was held for so long.
    #[must_use]
    pub fn reply(self, held: Option<Duration>) -> Packet {
        Packet {
            kind: Kind::Reply,
            held,
            ..self
        }
    }
}

fn u64_at(bytes: &[u8; LENGTH], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

/// FNV-1a: sees what a broken buffer or a bad NIC does, where the UDP checksum was offloaded and
/// computed over bytes that were damaged already. No protection against intent; the nonce is.
fn check(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> Packet {
        Packet {
            kind: Kind::Request,
            path: 3,
            sequence: 9,
            nonce: 77,
            held: None,
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = request().encode();
        bytes[4] = 9;
        let sum = check(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(Packet::decode(&bytes), Err(Malformed::Version(9)));
    }

    #[test]
    fn a_packet_of_another_length_is_foreign() {
        let bytes = request().encode();
        assert_eq!(Packet::decode(&bytes[..63]), Err(Malformed::Foreign));
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Packet::decode(&longer), Err(Malformed::Foreign));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(path: u16, sequence: u64, nonce: u64, held in prop::option::of(0u64..u64::MAX)) {
            let held = held.map(Duration::from_nanos);
            let packet = Packet { path, sequence, nonce, ..request() };
            let reply = packet.reply(held);
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            prop_assert_eq!(Packet::decode(&reply.encode()), Ok(reply));
            prop_assert_eq!(reply.encode().len(), packet.encode().len());
        }

        #[test]
        fn one_changed_byte_is_never_believed(at in 0..LENGTH, flip in 1u8..) {
            let mut bytes = request().encode();
            bytes[at] ^= flip;
            prop_assert!(Packet::decode(&bytes).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            Packet::decode(&bytes).ok();
        }
    }
}
