//! What only ethtool's netlink family tells: forward error correction by lane, and the rate and
//! lanes that the link trained to (include/uapi/linux/ethtool_netlink.h).

use crate::netlink::{Attributes, Netlink, NetlinkError, Request, u16_at, u32_at, u64_at};
use netlink_sys::protocols::NETLINK_GENERIC;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const VERSION: u8 = 1;

const MSG_LINKMODES_GET: u8 = 4;
const MSG_FEC_GET: u8 = 29;
/// The first attribute of every request.
const A_HEADER: u16 = 1;
const A_HEADER_DEV_NAME: u16 = 2;
const A_HEADER_FLAGS: u16 = 3;
const FLAG_STATS: u32 = 1 << 2;
const A_LINKMODES_SPEED: u16 = 5;
const A_LINKMODES_LANES: u16 = 9;
const A_FEC_STATS: u16 = 5;
const A_FEC_STAT_CORRECTED: u16 = 2;
const A_FEC_STAT_UNCORR: u16 = 3;
const A_FEC_STAT_CORR_BITS: u16 = 4;
/// SPEED_UNKNOWN.
const SPEED_UNKNOWN: u32 = u32::MAX;
/// The generic header: command, version, reserved.
const GENL_HEADER: usize = 4;

/// Counts of forward error correction; an empty list is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fec {
    /// Blocks repaired, of the port.
    pub corrected: Option<u64>,
    /// Blocks not repaired, of the port.
    pub uncorrected: Option<u64>,
    /// Bits repaired, by lane.
    pub corrected_bits_by_lane: Vec<u64>,
}

/// What the link trained to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mode {
    pub rate_bps: Option<u64>,
    pub lanes: Option<u32>,
}

/// A connection to the family.
pub struct EthtoolNetlink {
    netlink: Netlink,
    family: u16,
}

impl EthtoolNetlink {
    /// # Errors
    /// No socket, or a kernel without the family (before 5.6).
    pub fn open() -> Result<EthtoolNetlink, NetlinkError> {
        let mut netlink = Netlink::open_for(NETLINK_GENERIC)?;
        let request = Request::new(
            "ethtool family",
            GENL_ID_CTRL,
            0,
            &[CTRL_CMD_GETFAMILY, VERSION, 0, 0],
        )
        .attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let mut family = None;
        netlink.query(request, |_, body| {
            family = attributes(body)
                .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
                .and_then(|(_, value)| u16_at(value, 0));
        })?;
        let family = family.ok_or_else(|| NetlinkError::Truncated {
            what: "ethtool family".into(),
        })?;
        Ok(EthtoolNetlink { netlink, family })
    }

    /// # Errors
    /// The driver does not count (EOPNOTSUPP), or the interface has gone.
    pub fn fec(&mut self, interface: &str) -> Result<Fec, NetlinkError> {
        let mut fec = Fec::default();
        let request = self.request("fec", MSG_FEC_GET, interface, FLAG_STATS);
        self.netlink
            .query(request, |_, body| fec = parse_fec(body))?;
        Ok(fec)
    }

    /// # Errors
    /// As [`Self::fec`].
    pub fn mode(&mut self, interface: &str) -> Result<Mode, NetlinkError> {
        let mut mode = Mode::default();
        let request = self.request("link modes", MSG_LINKMODES_GET, interface, 0);
        self.netlink
            .query(request, |_, body| mode = parse_mode(body))?;
        Ok(mode)
    }

    /// `flags`: a kernel refuses those that the command does not have.
    fn request(&self, what: &str, command: u8, interface: &str, flags: u32) -> Request {
        let mut name = interface.as_bytes().to_vec();
        name.push(0);
        Request::new(
            format!("ethtool {what} of {interface}"),
            self.family,
            0,
            &[command, VERSION, 0, 0],
        )
        .nested(A_HEADER, |header| {
            header
                .attribute(A_HEADER_DEV_NAME, &name)
                .u32(A_HEADER_FLAGS, flags)
        })
    }
}

fn attributes(body: &[u8]) -> Attributes<'_> {
    Attributes(body.get(GENL_HEADER..).unwrap_or_default())
}

pub(crate) fn parse_mode(body: &[u8]) -> Mode {
    let mut mode = Mode::default();
    for (kind, value) in attributes(body) {
        match kind {
            A_LINKMODES_SPEED => {
                mode.rate_bps = u32_at(value, 0)
                    .filter(|mbps| *mbps != SPEED_UNKNOWN && *mbps != 0)
                    .map(|mbps| u64::from(mbps) * 1_000_000);
            }
            A_LINKMODES_LANES => mode.lanes = u32_at(value, 0).filter(|lanes| *lanes != 0),
            _ => {}
        }
    }
    mode
}

pub(crate) fn parse_fec(body: &[u8]) -> Fec {
    let mut fec = Fec::default();
    let stats = attributes(body)
        .find(|(kind, _)| *kind == A_FEC_STATS)
        .map(|(_, value)| value);
    // An array: the whole port's count, then one for each lane.
    let counts = |value: &[u8]| -> Vec<u64> {
        value
            .chunks_exact(8)
            .filter_map(|word| u64_at(word, 0))
            .collect()
    };
    for (kind, value) in Attributes(stats.unwrap_or_default()) {
        match kind {
            A_FEC_STAT_CORRECTED => fec.corrected = counts(value).first().copied(),
            A_FEC_STAT_UNCORR => fec.uncorrected = counts(value).first().copied(),
            A_FEC_STAT_CORR_BITS => {
                fec.corrected_bits_by_lane = counts(value).into_iter().skip(1).collect();
            }
            _ => {}
        }
    }
    fec
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(build: impl FnOnce(Request) -> Request) -> Vec<u8> {
        build(Request::new("x", 0, 0, &[0; GENL_HEADER])).body()
    }

    #[test]
    fn fec_is_counted_for_the_port_and_for_lanes() {
        let words =
            |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_ne_bytes()).collect() };
        let body = message(|m| {
            m.nested(A_FEC_STATS, |stats| {
                stats
                    .attribute(A_FEC_STAT_CORRECTED, &words(&[7]))
                    .attribute(A_FEC_STAT_UNCORR, &words(&[1]))
                    .attribute(A_FEC_STAT_CORR_BITS, &words(&[30, 10, 0, 0, 20]))
            })
        });
        let expected = Fec {
            corrected: Some(7),
            uncorrected: Some(1),
            corrected_bits_by_lane: vec![10, 0, 0, 20],
        };
        assert_eq!(parse_fec(&body), expected);
        assert_eq!(parse_fec(&message(|m| m)), Fec::default());
    }

    #[test]
    fn a_speed_that_is_not_known_is_absent() {
        let body = |mbps| message(|m| m.u32(A_LINKMODES_SPEED, mbps).u32(A_LINKMODES_LANES, 4));
        assert_eq!(parse_mode(&body(u32::MAX)).rate_bps, None);
        let trained = Mode {
            rate_bps: Some(400_000_000_000),
            lanes: Some(4),
        };
        assert_eq!(parse_mode(&body(400_000)), trained);
    }

    proptest! {
        #[test]
        fn garbage_is_absent_or_a_number(body in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_fec(&body);
            parse_mode(&body);
        }
    }
}
