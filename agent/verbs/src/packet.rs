//! What a ping looks like, and whose it is. Pure.
//!
//! Three packets (Liu et al., R-Pingmesh, SIGCOMM 2024): the ping, the answer to it, and what the
//! answer's departure took, which the responder knows only after the answer has left.
//!
//!     offset  0      4        5     6     8        16        24          28        32        40   44..64
//!             magic  version  kind  zero  session  sequence  flow label  hop limit delay_ns  qkey zero

use std::net::Ipv6Addr;

/// Bytes of a packet, the same for all kinds so that they meet the same queues.
pub const SIZE: usize = 64;
/// Bytes before it in the receive buffer (the GRH, or an IPv4 header in its second half).
pub const GRH: usize = 40;
const MAGIC: [u8; 4] = *b"WEIR";
const VERSION: u8 = 1;

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ping,
    /// The ping has arrived.
    Answer,
    /// Nanoseconds between the ping's arrival and the answer's departure.
    Delay(u64),
}

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub kind: Kind,
    /// Random number of the pinging port since its start: answers to a former start are nobody's.
    pub session: u64,
    pub sequence: u64,
    /// For the way back: a responder cannot read it off an IPv4 packet.
    pub flow_label: u32,
    pub hop_limit: u8,
    /// Of the queue pair that sent the packet: answers need it.
    pub qkey: u32,
}

impl Packet {
    #[must_use]
    pub fn write(&self) -> [u8; SIZE] {
        let (kind, delay) = match self.kind {
            Kind::Ping => (1, 0),
            Kind::Answer => (2, 0),
            Kind::Delay(ns) => (3, ns),
        };
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, value: &[u8]| {
            if let Some(to) = bytes.get_mut(at..at + value.len()) {
                to.copy_from_slice(value);
            }
        };
        put(0, &MAGIC);
        put(4, &[VERSION, kind]);
        put(8, &self.session.to_be_bytes());
        put(16, &self.sequence.to_be_bytes());
        put(24, &self.flow_label.to_be_bytes());
        put(28, &[self.hop_limit]);
        put(32, &delay.to_be_bytes());
        put(40, &self.qkey.to_be_bytes());
        bytes
    }

    /// `None` if it is none of ours.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Packet> {
        if bytes.len() != SIZE || bytes.get(..4)? != MAGIC || *bytes.get(4)? != VERSION {
            return None;
        }
        let delay = u64::from_be_bytes(field(bytes, 32)?);
        let kind = match (*bytes.get(5)?, delay) {
            (1, 0) => Kind::Ping,
            (2, 0) => Kind::Answer,
            (3, ns) => Kind::Delay(ns),
            _ => return None,
        };
        let flow_label = u32::from_be_bytes(field(bytes, 24)?);
        (flow_label <= weir_verbs_protocol::FLOW_LABEL_MAX).then_some(Packet {
            kind,
            session: u64::from_be_bytes(field(bytes, 8)?),
            sequence: u64::from_be_bytes(field(bytes, 16)?),
            flow_label,
            hop_limit: *bytes.get(28)?,
            qkey: u32::from_be_bytes(field(bytes, 40)?),
        })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The sender of a packet, from what the device put before it.
///
/// RoCE v2 over IPv4 puts the IPv4 header into the last 20 of the 40 bytes and leaves the others
/// undefined (the InfiniBand specification's annex A17), so they may look like IPv6 too: the checksum tells.
#[must_use]
pub fn source(grh: &[u8]) -> Option<Ipv6Addr> {
    let v4 = grh.get(20..GRH)?;
    if v4.first() == Some(&0x45) && is_ipv4_header(v4) {
        let source: [u8; 4] = field(v4, 12)?;
        return Some(std::net::Ipv4Addr::from(source).to_ipv6_mapped());
    }
    let v6: [u8; 16] = field(grh, 8)?;
    (grh.first()? >> 4 == 6).then(|| Ipv6Addr::from(v6))
}

fn is_ipv4_header(header: &[u8]) -> bool {
    let mut sum = 0_u32;
    for pair in header.chunks_exact(2) {
        sum += pair
            .iter()
            .fold(0, |word, byte| (word << 8) | u32::from(*byte));
    }
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4(source: [u8; 4]) -> [u8; GRH] {
        let mut grh = [0; GRH];
        // As rdma_rxe 6.1 leaves it: 112 bytes of UDP, time to live 61.
        grh[20..32].copy_from_slice(&[0x45, 0, 0, 132, 0, 0, 0x40, 0, 61, 17, 0, 0]);
        grh[32..36].copy_from_slice(&source);
        grh[36..40].copy_from_slice(&[10, 0, 3, 2]);
        let sum: u32 = grh[20..]
            .chunks(2)
            .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
            .sum();
        let folded = !((sum & 0xffff) + (sum >> 16)) & 0xffff;
        grh[30] = u8::try_from(folded >> 8).unwrap();
        grh[31] = u8::try_from(folded & 0xff).unwrap();
        grh
    }

    #[test]
    fn the_sender_is_found_in_both_forms() {
        let mut grh = ipv4([10, 0, 1, 2]);
        assert_eq!(source(&grh), Some("::ffff:10.0.1.2".parse().unwrap()));
        // The undefined half may be a former packet's.
        grh[0] = 0x60;
        assert_eq!(source(&grh), Some("::ffff:10.0.1.2".parse().unwrap()));
        // A real IPv6 header whose address happens to hold 0x45 there.
        grh[33] ^= 1;
        let v6 = source(&grh).unwrap();
        assert_eq!(v6.octets(), grh[8..24]);
        grh[0] = 0;
        assert_eq!(source(&grh), None);
    }

    #[test]
    fn another_version_is_none_of_ours() {
        let mut bytes = Packet {
            kind: Kind::Ping,
            session: 1,
            sequence: 2,
            flow_label: 3,
            hop_limit: 64,
            qkey: 5,
        }
        .write();
        assert!(Packet::parse(&bytes).is_some());
        bytes[4] = 2;
        assert_eq!(Packet::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in prop_oneof![
                Just(Kind::Ping), Just(Kind::Answer), any::<u64>().prop_map(Kind::Delay)
            ],
            session: u64, sequence: u64, flow_label in 0_u32..=0xf_ffff, hop_limit: u8, qkey: u32,
        ) {
            let packet = Packet { kind, session, sequence, flow_label, hop_limit, qkey };
            prop_assert_eq!(Packet::parse(&packet.write()), Some(packet));
        }

        #[test]
        fn anything_may_arrive(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(packet) = Packet::parse(&bytes) {
                prop_assert_eq!(bytes.len(), SIZE);
                prop_assert_eq!(Packet::parse(&packet.write()), Some(packet));
            }
            let found = source(&bytes);
            prop_assert!(found.is_none() || bytes.len() >= GRH);
        }
    }
}
