//! What NVIDIA's error numbers mean: XIDs of GPUs, SXIDs of NVSwitches, the error words of NVLink 5.
//!
//! The numbers and action codes are those of NVIDIA's XID catalogue and Fabric Manager guide, the
//! words are our own. The data is in `data/*.csv`; no field holds a comma.

use crate::source::Severity;
use std::{collections::BTreeMap, sync::LazyLock};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// As NVIDIA names it.
    pub code: &'static str,
    pub severity: Severity,
    /// In plain words; empty if there is nothing to do.
    pub doc: &'static str,
}

const fn action(code: &'static str, severity: Severity, doc: &'static str) -> Action {
    Action {
        code,
        severity,
        doc,
    }
}

/// Every action code that occurs in the data.
pub const ACTIONS: &[Action] = {
    use Severity::{Critical, Info, Warning};
    &[
        action("IGNORE", Info, ""),
        action("SYMPATHETIC", Info, ""),
        action("NONE", Warning, ""),
        action(
            "WORKFLOW_XID_45",
            Info,
            "follow the error that was logged before it",
        ),
        action(
            "RESTART_FM_IF_SOLO",
            Info,
            "restart the fabric manager if it came alone",
        ),
        action("RESTART_APP", Warning, "restart the application"),
        action(
            "CHECK_APP",
            Warning,
            "check the application and its CUDA version",
        ),
        action(
            "WORKFLOW_XID_13",
            Warning,
            "debug the application (compute-sanitizer); if the same code runs elsewhere, run diagnostics on this GPU",
        ),
        action(
            "WORKFLOW_XID_31",
            Warning,
            "debug the application (compute-sanitizer); if the same code runs elsewhere, run diagnostics on this GPU",
        ),
        action(
            "CONTACT_SUPPORT",
            Warning,
            "collect nvidia-bug-report and ask the vendor",
        ),
        action(
            "UPDATE_SWFW",
            Warning,
            "bring driver and firmware to versions that fit together",
        ),
        action(
            "CHECK_UVM",
            Warning,
            "look for errors of the unified memory driver beside it",
        ),
        action(
            "INVESTIGATE_SW",
            Warning,
            "look for a known driver or firmware fault; update",
        ),
        action(
            "INVESTIGATE_SW_USER",
            Warning,
            "look at what software or an operator did to the link",
        ),
        action(
            "INVESTIGATE_HOST",
            Warning,
            "look for the fault in the host: power, PCIe, operating system",
        ),
        action(
            "INVESTIGATE_LINK_SI",
            Warning,
            "look at the link's signal quality: reseat, run link diagnostics",
        ),
        action(
            "INVESTIGATE_LINK_SI_AND_CABLES",
            Warning,
            "look at the link's signal quality and at its cables",
        ),
        action(
            "INVESTIGATE_SW_USER_LINK_SI",
            Warning,
            "look at what was done to the link, then at its signal quality",
        ),
        action(
            "INVESTIGATE_PEER_DEVICE",
            Warning,
            "look for the cause at the other end of the link",
        ),
        action(
            "CHECK_NVLINK_FAILURE_FLOW",
            Warning,
            "look for a link failure at the same time and follow that",
        ),
        action(
            "SYMPATHETIC_REPORT_SOLO",
            Warning,
            "follow the error beside it; if it came alone, ask the vendor",
        ),
        action(
            "REPORT_IF_DAILY",
            Warning,
            "ask the vendor if it comes more than once a day",
        ),
        action(
            "XID_137_FLOW",
            Warning,
            "look for the error on the peer GPUs that this one echoes",
        ),
        action("XID_154", Warning, "do what the line says"),
        action("XID_154_EVAL", Warning, "do what XID 154 beside it says"),
        action(
            "WORKFLOW_NVLINK_ERR",
            Warning,
            "check the link at both ends; reset the GPUs if it does not recover; reseat if it returns",
        ),
        action(
            "WORKFLOW_NVLINK5_ERR",
            Warning,
            "do what XID 154 beside it says; check the link at both ends",
        ),
        action("RESET_GPU", Critical, "drain the node and reset the GPU"),
        action(
            "WORKFLOW_XID_48",
            Critical,
            "drain the node and reset the GPU; replace it if rows cannot be remapped",
        ),
        action("RESTART_VM", Critical, "restart the virtual machine"),
        action("RESTART_BM", Critical, "drain and reboot the node"),
        action(
            "CHECK_MECHANICALS",
            Critical,
            "check power leads and seating of the GPU",
        ),
    ]
};

/// The action of a code.
#[must_use]
pub fn find_action(code: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|a| a.code == code)
}

/// What to do at once, and what if that does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    pub immediate: &'static Action,
    pub investigate: &'static Action,
}

impl Advice {
    /// The worse of the two.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.immediate.severity.max(self.investigate.severity)
    }

    /// Both in one sentence; empty if there is nothing to do.
    #[must_use]
    pub fn doc(&self) -> String {
        match (self.immediate.doc, self.investigate.doc) {
            (first, second) if second.is_empty() || first == second => first.to_owned(),
            ("", second) => format!("if it returns, {second}"),
            (first, second) => format!("{first}; if it returns, {second}"),
        }
    }
}

/// An XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// As the driver names it.
    pub mnemonic: &'static str,
    /// In plain words; empty for numbers that current GPUs do not use.
    pub meaning: &'static str,
    pub advice: Advice,
}

/// An SXID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sxid {
    pub name: &'static str,
    pub fatality: Fatality,
}

/// An error word of XID 144 to 150.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    pub xid: u32,
    /// One name, or several with `/` between.
    pub unit: &'static str,
    /// Mask and value of the first word in each layout.
    pub layouts: [(u32, u32); 2],
    pub status: u32,
    pub advice: Advice,
}

/// Whether an SXID ends the jobs on the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatality {
    /// The line says.
    Reported,
    /// It can, whatever the line says.
    Possible,
    /// It does, whatever the line says.
    Always,
}

static XIDS: LazyLock<BTreeMap<u32, Xid>> = LazyLock::new(|| {
    lines(include_str!("data/xid.csv"))
        .filter_map(parse_xid)
        .collect()
});

static SXIDS: LazyLock<BTreeMap<u32, Sxid>> = LazyLock::new(|| {
    lines(include_str!("data/sxid.csv"))
        .filter_map(parse_sxid)
        .collect()
});

static CAUSES: LazyLock<Vec<Cause>> = LazyLock::new(|| {
    lines(include_str!("data/nvlink5.csv"))
        .filter_map(parse_cause)
        .collect()
});

/// An XID of the catalogue.
#[must_use]
pub fn xid(number: u32) -> Option<&'static Xid> {
    XIDS.get(&number)
}

/// An SXID of the catalogue.
#[must_use]
pub fn sxid(number: u32) -> Option<&'static Sxid> {
    SXIDS.get(&number)
}

/// How bad an XID is, what it means and what to do: for those that come as a number alone.
#[must_use]
pub fn meaning(number: u32) -> (Severity, String, String) {
    let Some(known) = xid(number) else {
        let text = format!("XID {number}, which the catalogue does not know");
        return (Severity::Warning, text, String::new());
    };
    let words = if known.meaning.is_empty() {
        known.mnemonic
    } else {
        known.meaning
    };
    let text = format!("XID {number}: {words}");
    (known.advice.severity(), text, known.advice.doc())
}

/// The error words of XID 144 to 150.
#[must_use]
pub fn nvlink5_causes() -> &'static [Cause] {
    &CAUSES
}

fn lines(data: &'static str) -> impl Iterator<Item = &'static str> {
    data.lines().skip(1)
}

fn fields<const N: usize>(line: &'static str) -> Option<[&'static str; N]> {
    line.split(',').collect::<Vec<_>>().try_into().ok()
}

fn advice(immediate: &str, investigate: &str) -> Option<Advice> {
    Some(Advice {
        immediate: find_action(immediate)?,
        investigate: find_action(investigate)?,
    })
}

fn parse_xid(line: &'static str) -> Option<(u32, Xid)> {
    let [number, mnemonic, meaning, immediate, investigate] = fields(line)?;
    let advice = advice(immediate, investigate)?;
    Some((
        number.parse().ok()?,
        Xid {
            mnemonic,
            meaning,
            advice,
        },
    ))
}

fn parse_sxid(line: &'static str) -> Option<(u32, Sxid)> {
    let [number, name, fatality] = fields(line)?;
    let fatality = match fatality {
        "reported" => Fatality::Reported,
        "possible" => Fatality::Possible,
        "always" => Fatality::Always,
        _ => return None,
    };
    Some((number.parse().ok()?, Sxid { name, fatality }))
}

fn parse_cause(line: &'static str) -> Option<Cause> {
    let [xid, unit, layout1, layout2, status, resolution, investigate] = fields(line)?;
    Some(Cause {
        xid: xid.parse().ok()?,
        unit,
        layouts: [mask_and_value(layout1)?, mask_and_value(layout2)?],
        status: u32::from_str_radix(status, 16).ok()?,
        advice: advice(resolution, investigate)?,
    })
}

fn mask_and_value(text: &str) -> Option<(u32, u32)> {
    let (mask, value) = text.split_once('/')?;
    Some((
        u32::from_str_radix(mask, 16).ok()?,
        u32::from_str_radix(value, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_worst_are_critical_and_an_application_s_own_faults_are_not() {
        for number in [46, 48, 62, 64, 79, 95, 119, 140, 143] {
            assert_eq!(meaning(number).0, Severity::Critical, "{number}");
        }
        for number in [13, 31, 43, 45, 63, 94] {
            assert!(meaning(number).0 < Severity::Critical, "{number}");
        }
        assert_eq!(meaning(9999).0, Severity::Warning);
    }

    /// Every line of the data is understood, and no number comes twice.
    #[test]
    fn the_data_is_complete() {
        assert_eq!(XIDS.len(), lines(include_str!("data/xid.csv")).count());
        assert_eq!(SXIDS.len(), lines(include_str!("data/sxid.csv")).count());
        assert_eq!(
            CAUSES.len(),
            lines(include_str!("data/nvlink5.csv")).count()
        );
        assert!(XIDS.len() >= 176 && SXIDS.len() >= 93 && CAUSES.len() >= 94);
    }

    #[test]
    fn every_number_of_the_driver_is_there() {
        assert!((1..=176).all(|n| xid(n).is_some()));
        assert_eq!(xid(177), None);
        assert!(XIDS.values().all(|x| !x.mnemonic.is_empty()));
    }

    /// Every action but the three that ask for nothing says what to do, each code stands once, and
    /// each is used.
    #[test]
    fn every_action_says_what_to_do() {
        let silent: Vec<_> = ACTIONS
            .iter()
            .filter(|a| a.doc.is_empty())
            .map(|a| a.code)
            .collect();
        assert_eq!(silent, ["IGNORE", "SYMPATHETIC", "NONE"]);
        let codes: BTreeSet<_> = ACTIONS.iter().map(|a| a.code).collect();
        assert_eq!(codes.len(), ACTIONS.len());
        let used: BTreeSet<_> = XIDS
            .values()
            .map(|x| x.advice)
            .chain(CAUSES.iter().map(|c| c.advice))
            .flat_map(|a| [a.immediate.code, a.investigate.code])
            .collect();
        assert_eq!(used, codes);
    }

    #[test]
    fn the_facts_of_some_numbers() {
        let severity = |n| xid(n).unwrap().advice.severity();
        assert_eq!(severity(48), Severity::Critical);
        assert_eq!(severity(79), Severity::Critical);
        assert_eq!(severity(119), Severity::Critical);
        assert_eq!(severity(13), Severity::Warning);
        assert_eq!(severity(63), Severity::Info);
        assert_eq!(
            xid(79).unwrap().mnemonic,
            "ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS"
        );
        assert_eq!(sxid(10_003).unwrap().fatality, Fatality::Always);
        assert_eq!(sxid(20_034).unwrap().name, "LTSSM Fault Up");
        assert_eq!(sxid(1), None);
    }

    #[test]
    fn advice_reads_as_a_sentence() {
        assert_eq!(xid(63).unwrap().advice.doc(), "");
        assert_eq!(xid(94).unwrap().advice.doc(), "restart the application");
        assert_eq!(
            xid(109).unwrap().advice.doc(),
            "drain the node and reset the GPU; if it returns, collect nvidia-bug-report and ask the vendor"
        );
        assert_eq!(
            xid(92).unwrap().advice.doc(),
            "if it returns, collect nvidia-bug-report and ask the vendor"
        );
    }
}
