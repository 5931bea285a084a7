//! PCI addresses in the spellings of drivers, in one normal form.

/// `dddd:bb:dd.f` of an address with or without a leading `PCI:`, domain or function: the domain
/// defaults to 0, and so does the function. `None` if it is not an address.
#[must_use]
pub fn address(text: &str) -> Option<String> {
    let text = text.strip_prefix("PCI:").unwrap_or(text);
    let (place, function) = match text.split_once('.') {
        Some((place, function)) => (place, function.parse::<u8>().ok().filter(|f| *f < 8)?),
        None => (text, 0),
    };
    let mut parts = place.rsplit(':');
    let device = hex(parts.next()?, 2).filter(|d| *d < 32)?;
    let bus = hex(parts.next()?, 2)?;
    let domain = parts.next().map_or(Some(0), |d| hex(d, 8))?;
    parts
        .next()
        .is_none()
        .then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// The first address among the words of a text; one that stands alone has a domain.
#[must_use]
pub fn find(text: &str) -> Option<String> {
    text.split(|c: char| c.is_ascii_whitespace() || matches!(c, '(' | ')' | ','))
        .map(|word| word.trim_end_matches([':', '.']))
        .filter(|word| word.matches(':').count() >= 2)
        .find_map(address)
}

fn hex(digits: &str, length_max: usize) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    (plain && digits.len() <= length_max)
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_has_one_form() {
        for (text, expected) in [
            ("0000:9b:00.0", "0000:9b:00.0"),
            ("PCI:0000:9B:00", "0000:9b:00.0"),
            ("PCI:0000:10:1c", "0000:10:1c.0"),
            ("9b:00.1", "0000:9b:00.1"),
            ("00000000:9B:00.0", "0000:9b:00.0"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(address(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_none() {
        for text in [
            "",
            "9b",
            "eth0",
            "0000:9b:20.0",
            "0000:9b:00.8",
            "0:0:0:0",
            "+1:02:03",
            "0000:9b:00.",
        ] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_among_words() {
        assert_eq!(
            find("GPU at PCI:0000:01:00: gone").as_deref(),
            Some("0000:01:00.0")
        );
        assert_eq!(
            find("received: 0000:02:00.0").as_deref(),
            Some("0000:02:00.0")
        );
        assert_eq!(find("at 12:34 it was up"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_the_form_is_stable(text in "\\PC{0,40}", words in "[0-9a-f:.PCI ]{0,30}") {
            prop_assert!(find(&text).is_none_or(|a| address(&a).is_some()));
            if let Some(once) = find(&words) {
                prop_assert_eq!(address(&once), Some(once.clone()));
            }
        }
    }
}
