//! XID 144 to 150: faults of NVLink 5, which the driver prints as
//! `UNIT Fatal|Nonfatal XC0 i0 Link 09 (intrinfo status ...)`.
//!
//! Bits of the first word name the unit, the event and so the row of the catalogue; the second is
//! the error status. Two layouts of the first word are in use, an older and a newer one.

use super::catalogue::{Cause, nvlink5_causes};
use crate::source::Severity;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault<'a> {
    pub unit: &'a str,
    /// As the driver judges it.
    pub fatal: bool,
    /// `None` if the fault is not of one link.
    pub link: Option<u8>,
    pub info: Option<u32>,
    pub status: Option<u32>,
}

impl<'a> Fault<'a> {
    /// `None` if the text has no unit with a verdict.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Fault<'a>> {
        let (head, registers) = text.split_once(['(', '[']).unwrap_or((text, ""));
        let mut words = head.split_ascii_whitespace();
        let unit = words.next()?;
        let fatal = match words.next()? {
            "Fatal" => true,
            "Nonfatal" | "Non-fatal" => false,
            _ => return None,
        };
        let link = words.skip_while(|w| *w != "Link").nth(1);
        let mut registers = registers
            .split(|c: char| c.is_ascii_whitespace() || matches!(c, ')' | ']' | ','))
            .map_while(|w| u32::from_str_radix(w.strip_prefix("0x")?, 16).ok());
        Some(Fault {
            unit,
            fatal,
            link: link.and_then(|l| l.parse().ok()),
            info: registers.next(),
            status: registers.next(),
        })
    }

    /// The row of the catalogue for this fault, the worst if several bits of the status are set.
    /// `None` if the registers are not printed or not in the catalogue.
    #[must_use]
    pub fn cause(&self, xid: u32) -> Option<&'static Cause> {
        let (info, status) = (self.info?, self.status?);
        let of_unit = || {
            nvlink5_causes()
                .iter()
                .filter(move |c| c.xid == xid && c.unit.split('/').any(|u| u == self.unit))
                .filter(move |c| c.layouts.iter().any(|(mask, value)| info & mask == *value))
        };
        of_unit().find(|c| c.status == status).or_else(|| {
            of_unit()
                .filter(|c| has_status_bits(c.xid) && status & c.status != 0)
                .max_by_key(|c| c.advice.severity())
        })
    }

    /// How bad it is: by the catalogue, otherwise as the driver judges.
    #[must_use]
    pub fn severity(&self, cause: Option<&Cause>) -> Severity {
        match cause {
            Some(cause) => cause.advice.severity(),
            None if self.fatal => Severity::Critical,
            None => Severity::Warning,
        }
    }
}

/// The status of 149 and 150 is a number, that of the others a set of bits.
fn has_status_bits(xid: u32) -> bool {
    xid < 149
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cause(xid: u32, text: &str) -> Option<(&'static str, &'static str)> {
        let cause = Fault::parse(text).unwrap().cause(xid)?;
        Some((cause.advice.immediate.code, cause.advice.investigate.code))
    }

    #[test]
    fn a_line_is_taken_apart() {
        let fault =
            Fault::parse("NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000001 0x0)");
        let expected = Fault {
            unit: "NETIR_LINK_EVT",
            fatal: true,
            link: Some(9),
            info: Some(0x0255_25c6),
            status: Some(1),
        };
        assert_eq!(fault, Some(expected));
    }

    #[test]
    fn older_spellings_and_missing_registers() {
        let older = Fault::parse("TREX Non-fatal XC 1 i 2 Link 01 [0x0000000a]").unwrap();
        assert_eq!((older.fatal, older.link), (false, Some(1)));
        assert_eq!((older.info, older.status), (Some(10), None));
        let bare = Fault::parse("NVLPW_CTRL Fatal XC0 i0 Link -1").unwrap();
        assert_eq!((bare.link, bare.info, bare.cause(148)), (None, None, None));
        assert_eq!(bare.severity(None), Severity::Critical);
        assert_eq!(Fault::parse("driver-specific detail"), None);
        assert_eq!(Fault::parse(""), None);
    }

    #[test]
    fn the_event_of_a_link_is_in_the_first_word() {
        let line = |info| format!("NETIR_LINK_EVT Fatal XC0 i0 Link 00 ({info} 0x00000000)");
        let peer = Some(("RESET_GPU", "INVESTIGATE_PEER_DEVICE"));
        let signal = Some(("RESET_GPU", "INVESTIGATE_LINK_SI"));
        assert_eq!(cause(149, &line("0x025001c6")), peer);
        assert_eq!(
            cause(149, &line("0x004001c6")),
            Some(("RESET_GPU", "INVESTIGATE_LINK_SI"))
        );
        assert_eq!(cause(149, &line("0x00200011")), signal);
        assert_eq!(cause(149, &line("0x027001c6")), None);
        assert_eq!(cause(145, &line("0x025001c6")), None);
    }

    #[test]
    fn both_layouts_of_the_first_word_are_known() {
        let line = |info| format!("RLW_REMAP Nonfatal XC0 i0 Link 08 ({info} 0x00000008)");
        let flow = Some(("XID_154_EVAL", "CHECK_NVLINK_FAILURE_FLOW"));
        assert_eq!(cause(145, &line("0x00000082")), flow);
        assert_eq!(cause(145, &line("0x00000004")), flow);
        assert_eq!(cause(145, &line("0x00000002")), None);
    }

    #[test]
    fn of_several_status_bits_the_worst_counts() {
        let line = |status| format!("SAW_MVB Fatal XC0 i0 Link 01 (0x00000021 {status})");
        let reset = Some(("RESET_GPU", "CONTACT_SUPPORT"));
        assert_eq!(cause(144, &line("0x00000004")), Some(("IGNORE", "IGNORE")));
        assert_eq!(cause(144, &line("0x00000006")), reset);
        assert_eq!(cause(144, &line("0x00000100")), None);
        let number = "NETIR_MFDE_EVENT Fatal XC0 i0 Link 01 (0x00000246 0x00000006)";
        assert_eq!(cause(149, number), None);
    }

    #[test]
    fn a_unit_may_go_by_two_names() {
        for unit in ["TLW_RX", "TLW_RX_PIPE0"] {
            let line = format!("{unit} Fatal XC0 i0 Link 01 (0x00000143 0x00000004)");
            assert_eq!(cause(146, &line), Some(("RESET_GPU", "CONTACT_SUPPORT")));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,80}", xid in 140u32..155, info: u32, status: u32) {
            prop_assert!(Fault::parse(&text).is_none_or(|f| text.contains(f.unit)));
            let line = format!("NETIR Fatal XC0 i0 Link 1 ({info:#x} {status:#x}");
            let fault = Fault::parse(&line).unwrap();
            prop_assert_eq!((fault.info, fault.status), (Some(info), Some(status)));
            prop_assert!(fault.cause(xid).is_none_or(|c| c.xid == xid));
        }
    }
}
