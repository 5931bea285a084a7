//! What XIDs and SXIDs mean and what to do about them, from tables of facts in `data/`.

use crate::source::Severity;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A row of the XID catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Xid {
    pub mnemonic: &'static str,
    /// In plain words; may be empty.
    pub meaning: &'static str,
    /// Code of what to do at once.
    pub action: &'static str,
}

/// Advice: severity, and what to do in plain words.
pub type Advice = (Severity, &'static str);

/// Each code of an action in plain words, and how bad it makes the event.
const ACTIONS: [(&str, Severity, &str); 15] = [
    ("IGNORE", Severity::Info, ""),
    (
        "RESTART_APP",
        Severity::Warning,
        "restart the job; if it comes back on other GPUs too, look for the fault in the application",
    ),
    (
        "RESET_GPU",
        Severity::Critical,
        "drain the node and reset the GPU",
    ),
    (
        "RESTART_BM",
        Severity::Critical,
        "drain and reboot the node; if it comes back, check seating and power, then replace the GPU",
    ),
    (
        "RESTART_VM",
        Severity::Critical,
        "drain and restart the virtual machine",
    ),
    (
        "CONTACT_SUPPORT",
        Severity::Warning,
        "collect nvidia-bug-report.sh and open a case with the vendor",
    ),
    (
        "CHECK_MECHANICALS",
        Severity::Critical,
        "check the power leads and the seating of the GPU",
    ),
    (
        "UPDATE_SWFW",
        Severity::Warning,
        "bring driver and firmware to versions that belong together",
    ),
    (
        "CHECK_UVM",
        Severity::Warning,
        "restart the job; if it comes back, open a case with the vendor",
    ),
    (
        "WORKFLOW_XID_45",
        Severity::Info,
        "a follow-on: look for the XID before it",
    ),
    (
        "WORKFLOW_XID_48",
        Severity::Critical,
        "drain the node and reset the GPU; then see whether its memory rows could be remapped",
    ),
    (
        "WORKFLOW_NVLINK_ERR",
        Severity::Critical,
        "drain the node and reset the GPUs; if the same link fails again, check bridge, switch and baseboard",
    ),
    (
        "WORKFLOW_NVLINK5_ERR",
        Severity::Warning,
        "look for XID 154 of the same GPU, which says what is needed",
    ),
    (
        "XID_154",
        Severity::Warning,
        "do what the driver recommends in the line",
    ),
    (
        "XID_154_EVAL",
        Severity::Warning,
        "look for XID 154 of the same GPU, which says what is needed",
    ),
];

/// What is not in the table, or has no action in it.
const UNKNOWN: Advice = (
    Severity::Warning,
    "look it up in the vendor's XID catalogue",
);

/// Where the action alone would say too little: the fault is repaired only by a later reset.
const SEVERER: [(u32, Severity, &str); 1] = [(
    63,
    Severity::Warning,
    "reset the GPU at the next chance, to put the new row into use",
)];

/// Rows of a table: `|` between fields, `#` begins a comment.
fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|line| line.split('|').collect())
}

static XIDS: LazyLock<BTreeMap<u32, Xid>> = LazyLock::new(|| {
    let row = |fields: Vec<&'static str>| match fields.as_slice() {
        [number, mnemonic, meaning, action, _] => Some((
            number.parse().ok()?,
            Xid {
                mnemonic,
                meaning,
                action,
            },
        )),
        _ => None,
    };
    rows(include_str!("data/xid.txt")).filter_map(row).collect()
});

static SXIDS: LazyLock<BTreeMap<u32, &'static str>> = LazyLock::new(|| {
    let row = |fields: Vec<&'static str>| match fields.as_slice() {
        [number, name, ..] => Some((number.parse().ok()?, *name)),
        _ => None,
    };
    rows(include_str!("data/sxid.txt"))
        .filter_map(row)
        .collect()
});

/// A decoded error of the fifth generation of NVLink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nvlink5 {
    /// Number of the XID, 144 to 150.
    xid: u32,
    /// Unit of the link that reported it, such as `RLW_REMAP`; alternatives between slashes.
    pub unit: &'static str,
    /// Error status.
    status: u32,
    /// Code of the action.
    action: &'static str,
    /// Whether it took the link or the GPU down.
    pub fatal: bool,
}

static NVLINK5: LazyLock<Vec<Nvlink5>> = LazyLock::new(|| {
    let row = |fields: Vec<&'static str>| match fields.as_slice() {
        [xid, unit, status, action, severity] => Some(Nvlink5 {
            xid: xid.parse().ok()?,
            unit,
            status: u32::from_str_radix(status.strip_prefix("0x")?, 16).ok()?,
            action,
            fatal: severity.to_lowercase().contains("fatal")
                && !severity.to_lowercase().starts_with("non"),
        }),
        _ => None,
    };
    rows(include_str!("data/nvlink5.txt"))
        .filter_map(row)
        .collect()
});

/// A row of the catalogue; `None` for a number that it does not have.
#[must_use]
pub fn xid(number: u32) -> Option<&'static Xid> {
    XIDS.get(&number)
}

/// Name of an SXID.
#[must_use]
pub fn sxid(number: u32) -> Option<&'static str> {
    SXIDS.get(&number).copied()
}

fn action(code: &str) -> Advice {
    let known = ACTIONS.iter().find(|(c, ..)| *c == code);
    known.map_or(UNKNOWN, |(_, severity, text)| (*severity, text))
}

/// How bad an XID is and what to do.
#[must_use]
pub fn advice(number: u32) -> Advice {
    let severer = SEVERER.iter().find(|(n, ..)| *n == number);
    severer.map_or_else(
        || action(xid(number).map_or("", |x| x.action)),
        |(_, severity, text)| (*severity, text),
    )
}

/// Meaning, severity and action of an XID, as events want them.
#[must_use]
pub fn meaning(number: u32) -> (Severity, String, String) {
    let (severity, action) = advice(number);
    let text = match xid(number) {
        Some(x) if x.meaning.is_empty() => format!("XID {number} ({})", x.mnemonic),
        Some(x) => format!("XID {number}: {}", x.meaning),
        None => format!("XID {number}, which the catalogue does not have"),
    };
    (severity, text, action.to_owned())
}

/// Decodes XID 144 to 150: unit as the line names it, and error status.
#[must_use]
pub fn nvlink5(xid: u32, unit: &str, status: u32) -> Option<(&'static Nvlink5, Advice)> {
    let of_unit = |n: &&Nvlink5| n.xid == xid && n.unit.split('/').any(|u| u == unit);
    let exact = NVLINK5.iter().filter(of_unit).find(|n| n.status == status);
    // Several bits at once: the worst of them stands for all.
    let any = || {
        let set = NVLINK5.iter().filter(of_unit);
        let set = set.filter(|n| n.status != 0 && status & n.status == n.status);
        set.max_by_key(|n| (n.fatal, action(n.action).0))
    };
    let found = exact.or_else(any)?;
    Some((found, action(found.action)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_read_to_the_last_line() {
        let lines = |text: &str| text.lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(XIDS.len(), lines(include_str!("data/xid.txt")));
        assert_eq!(SXIDS.len(), lines(include_str!("data/sxid.txt")));
        assert_eq!(NVLINK5.len(), lines(include_str!("data/nvlink5.txt")));
    }

    #[test]
    fn every_action_of_the_tables_has_words() {
        let codes = XIDS.values().map(|x| x.action);
        for code in codes.chain(NVLINK5.iter().map(|n| n.action)) {
            let known = code.is_empty() || ACTIONS.iter().any(|(c, ..)| *c == code);
            assert!(known, "{code}");
        }
    }

    #[test]
    fn the_worst_xids_are_critical_and_an_application_s_are_not() {
        for number in [46, 48, 62, 64, 74, 79, 95, 119, 140, 143] {
            assert_eq!(advice(number).0, Severity::Critical, "{number}");
        }
        for number in [13, 31, 43, 45, 63, 94] {
            assert!(advice(number).0 < Severity::Critical, "{number}");
        }
        assert_eq!(advice(9999), UNKNOWN);
    }

    #[test]
    fn an_nvlink5_error_is_decoded_by_unit_and_status() {
        let (found, (severity, _)) = nvlink5(144, "SAW_MVB", 2).unwrap();
        assert!(found.fatal && severity == Severity::Critical);
        let (found, _) = nvlink5(144, "SAW_MVB", 1).unwrap();
        assert!(!found.fatal);
        assert!(
            nvlink5(144, "SAW_MVB", 2 | 4).unwrap().0.fatal,
            "the worst of several"
        );
        assert!(nvlink5(147, "TLW_RX_PIPE0", 1).is_none(), "of another XID");
        assert!(
            nvlink5(146, "TLW_RX_PIPE0", 1).is_some(),
            "either name of a unit"
        );
    }
}
