//! Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg), and the forms in which a log shows
//! the same lines. Pure.

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Rises by one with each; a jump is records that were overwritten before they were read.
    pub seq: u64,
    /// First line, without the properties that follow it.
    pub text: &'a str,
}

/// Parses `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT`; `None` for anything else.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Record<'_>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, text) = text.split_once(';')?;
    let mut fields = head.split(',');
    let _priority: u32 = fields.next()?.parse().ok()?;
    let seq = fields.next()?.parse().ok()?;
    let _microseconds: u64 = fields.next()?.parse().ok()?;
    Some(Record {
        seq,
        text: text.lines().next().unwrap_or_default(),
    })
}

/// The kernel's words in a line of a log: what stands before them (dates, host, level, `[time]`, the
/// header of a raw record) is cut off.
#[must_use]
pub fn message(line: &str) -> &str {
    if let Some(record) = parse(line.as_bytes()) {
        return record.text;
    }
    // `[  123.456789] text`, after whatever syslog put before it.
    if let Some((before, after)) = line.split_once("] ") {
        let time = before.rsplit_once('[').map_or("", |(_, time)| time).trim();
        let is_time = time.split_once('.').is_some_and(|(s, us)| {
            [s, us]
                .iter()
                .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
        });
        if is_time {
            return after;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_a_sequence_and_one_line_of_text() {
        let record =
            parse(b"4,3965,206764310,-,caller=T1;NVRM: text; more\n SUBSYSTEM=pci\n").unwrap();
        assert_eq!((record.seq, record.text), (3965, "NVRM: text; more"));
        assert_eq!(parse(b"no record"), None);
    }

    #[test]
    fn what_a_log_puts_before_the_message_is_cut_off() {
        for line in [
            "[430954.509105] NVRM: x",
            "<6>[    2.962781] NVRM: x",
            "Nov 22 14:56:47 host kernel: [94558.085056] NVRM: x",
            "6,3964,206764307,-;NVRM: x",
            "NVRM: x",
        ] {
            assert_eq!(message(line), "NVRM: x");
        }
        assert_eq!(
            message("device [15b7:5006] error status"),
            "device [15b7:5006] error status"
        );
    }

    proptest! {
        #[test]
        fn a_message_is_a_part_of_its_line(line in ".*") {
            prop_assert!(line.contains(message(&line)));
        }

        #[test]
        fn garbage_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(record) = parse(&bytes) {
                prop_assert!(!record.text.contains('\n'));
            }
        }
    }
}
