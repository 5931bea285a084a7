//! A record of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg), and the forms in which tools print
//! the same messages: dmesg, journalctl, syslog, pstore.

use std::time::Duration;

/// A message of the kernel log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// 0 emergency to 7 debug.
    pub level: u8,
    /// 0 the kernel, 1 a program that wrote to `/dev/kmsg`.
    pub facility: u32,
    pub sequence: u64,
    /// Since boot.
    pub at: Duration,
    /// May hold several lines.
    pub text: String,
    /// What the kernel tagged it with, such as `+pci:0000:41:00.0` or `n3`.
    pub device: Option<String>,
}

impl Record {
    /// `level|facility<<3,sequence,microseconds,flags[,...];text`, then one `KEY=value` per line
    /// that begins with a space. `None` if it is not of that form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let at = bytes.iter().position(|b| *b == b';')?;
        let (prefix, rest) = (std::str::from_utf8(&bytes[..at]).ok()?, &bytes[at + 1..]);
        let mut fields = prefix.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let at = Duration::from_micros(fields.next()?.parse().ok()?);
        fields.next()?;
        let mut lines = rest.split(|b| *b == b'\n');
        Some(Record {
            level: u8::try_from(priority & 7).unwrap_or(7),
            facility: priority >> 3,
            sequence,
            at,
            text: unescape(lines.next().unwrap_or_default()),
            device: lines
                .find_map(|l| l.strip_prefix(b" DEVICE="))
                .map(unescape),
        })
    }

    /// The PCI address that the kernel tagged it with.
    #[must_use]
    pub fn pci(&self) -> Option<&str> {
        self.device.as_deref()?.strip_prefix("+pci:")
    }
}

/// `\xNN` is how the kernel writes a byte that is not printable ASCII, and the backslash itself.
fn unescape(bytes: &[u8]) -> String {
    if !bytes.contains(&b'\\') {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let (byte, after) = escaped(rest).unwrap_or((*first, tail));
        plain.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn escaped(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = bytes.strip_prefix(b"\\x")?.split_first_chunk::<2>()?;
    let digits = std::str::from_utf8(digits).ok()?;
    Some((u8::from_str_radix(digits, 16).ok()?, rest))
}

/// The messages in a log as text, without the prefixes that tools put before them.
///
/// A line that is indented continues the message before it, as dmesg prints a message of several
/// lines; the properties of a raw record are indented too, and are no message either.
#[must_use]
pub fn messages(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in log.lines() {
        let continued = line.starts_with([' ', '\t']);
        match found.last_mut() {
            Some(last) if continued => {
                last.push('\n');
                last.push_str(line.trim());
            }
            Some(_) | None => found.push(message(line)),
        }
    }
    found
}

/// The message in one line of a log.
fn message(line: &str) -> String {
    if let Some(record) = Record::parse(line.as_bytes()) {
        return record.text;
    }
    let line = between(line, '<', '>', |p| p.parse::<u16>().is_ok()).unwrap_or(line);
    let line = decoded(line).or_else(|| syslog(line)).unwrap_or(line);
    let line = between(line, '[', ']', is_time).unwrap_or(line);
    between(line, '[', ']', is_caller)
        .unwrap_or(line)
        .trim_end()
        .to_owned()
}

/// What follows a bracketed prefix whose inside is as expected.
fn between(line: &str, open: char, close: char, expected: fn(&str) -> bool) -> Option<&str> {
    let (inside, rest) = line.strip_prefix(open)?.split_once(close)?;
    expected(inside.trim()).then(|| rest.strip_prefix(' ').unwrap_or(rest))
}

/// `12.345678` as the kernel counts, or `Sun Feb 23 16:24:18 2025` (dmesg -T).
fn is_time(inside: &str) -> bool {
    let mut words = inside.split_ascii_whitespace();
    let (first, count) = (words.next().unwrap_or_default(), words.count());
    match count {
        0 => first.parse::<f64>().is_ok() && first.contains('.'),
        4 => inside.contains(':'),
        _ => false,
    }
}

/// `T123` or `C4`: thread or processor (CONFIG_PRINTK_CALLER).
fn is_caller(inside: &str) -> bool {
    inside
        .strip_prefix(['T', 'C'])
        .is_some_and(|n| n.parse::<u32>().is_ok())
}

/// dmesg -x --time-format=iso: `kern  :warn  : 2025-01-21T04:41:44,285060+00:00 message`.
fn decoded(line: &str) -> Option<&str> {
    let (facility, rest) = line.split_once(':')?;
    let (level, rest) = rest.split_once(": ")?;
    let (time, rest) = rest.split_once(' ')?;
    let word = |w: &str| w.trim_end().bytes().all(|b| b.is_ascii_lowercase());
    let iso = time.contains('T') && time.starts_with(|c: char| c.is_ascii_digit());
    (word(facility) && word(level) && iso).then_some(rest)
}

/// `Jan  5 06:18:52 host kernel: message`, or with an ISO time.
fn syslog(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once(" kernel: ")?;
    let words = before.split_ascii_whitespace().count();
    (before.contains(':') && (2..=4).contains(&words)).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_with_properties() {
        let record = Record::parse(
            b"30,339,5140900,c;a \\x5cb\\x0ac\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:06.0\n",
        )
        .unwrap();
        assert_eq!((record.level, record.facility), (6, 3));
        assert_eq!(
            (record.sequence, record.at),
            (339, Duration::from_micros(5_140_900))
        );
        assert_eq!(record.text, "a \\b\nc");
        assert_eq!(record.pci(), Some("0000:00:06.0"));
    }

    #[test]
    fn fields_that_a_newer_kernel_adds_are_passed_over() {
        let record = Record::parse(b"6,1,2,-,caller=T1;text; more\n").unwrap();
        assert_eq!((record.text.as_str(), record.device), ("text; more", None));
    }

    #[test]
    fn what_is_not_a_record_is_none() {
        for bytes in [
            &b""[..],
            b"text",
            b"6,1;x",
            b"a,1,2,-;x",
            b"6,1,2;x",
            b"-6,1,2,-;x",
        ] {
            assert_eq!(Record::parse(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_broken_escape_stays_as_it_is() {
        assert_eq!(
            Record::parse(b"6,1,2,-;\\xg1 \\x4\n").unwrap().text,
            "\\xg1 \\x4"
        );
    }

    #[test]
    fn every_form_of_a_log_gives_the_same_message() {
        for line in [
            "NVRM: hello",
            "6,3,9,-;NVRM: hello",
            "<6>[    2.608284] NVRM: hello",
            "[430954.509105] NVRM: hello",
            "[   12.3] NVRM: hello",
            "[    0.1][   T17] NVRM: hello",
            "[Sun Feb 23 16:24:18 2025] NVRM: hello",
            "kern  :warn  : 2025-01-21T04:41:44,285060+00:00 NVRM: hello",
            "Jan  5 06:18:52 node-7 kernel: [295306.524933] NVRM: hello",
            "Feb 14 05:03:41 node-7 kernel: NVRM: hello",
            "2025-02-14T05:03:41.123456+00:00 node-7 kernel: NVRM: hello",
        ] {
            assert_eq!(message(line), "NVRM: hello", "{line}");
        }
    }

    #[test]
    fn brackets_that_belong_to_the_message_stay() {
        for line in [
            "[drm] ready",
            "[<ffffffffbd3d1956>] x",
            "<no> x",
            "pci: [8086:9d13] x",
        ] {
            assert_eq!(message(line), line);
        }
    }

    #[test]
    fn an_indented_line_continues_the_message() {
        let log = "[ 1.0] first\n          second\n\n[ 2.0] third";
        assert_eq!(messages(log), ["first\nsecond", "", "third"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Record::parse(&bytes).is_none_or(|r| r.level < 8));
            let record = [b"6,1,2,-;", bytes.as_slice()].concat();
            prop_assert!(Record::parse(&record).is_some());
        }

        #[test]
        fn any_text_is_read(text in "[\\PC\n\t<>\\[\\]:;, ]{0,200}") {
            prop_assert!(messages(&text).len() <= text.lines().count());
        }
    }
}
