//! What a reader or a check noticed, in plain words.

use serde::Serialize;

/// How bad it is. The order is that of exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Costs bandwidth, or hides trouble.
    Warning,
    /// Traffic suffers now.
    Critical,
}

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Devices that tell no host's name.
    Nameless,
    /// The two ends of a cable say different things.
    Contradiction,
    /// A switch is cabled to itself.
    SelfLoop,
    /// A cable between switches of one tier, or past a tier.
    WrongTier,
    /// A switch has fewer cables upwards than its siblings.
    Asymmetry,
    /// A cable goes where no sibling's goes.
    WrongCabling,
    /// A NIC hangs on the leaf of another rail.
    RailMismatch,
    /// A link runs below what its ends can do, or below its peers.
    Downgraded,
    /// A port that should be up is down.
    Down,
    /// A counter stands at its maximum and tells nothing any more.
    Saturated,
    /// A counter of damage is not zero.
    Errors,
    /// A queue is paused for so long that the watchdog acts.
    PauseStorm,
    /// A GPU has no NIC near it, or shares it.
    Affinity,
    /// A fan, power supply, module or GPU is not well.
    Hardware,
}

/// One thing noticed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub kind: Kind,
    /// Node, `node:port`, or device.
    pub subject: String,
    /// A sentence that names what was seen and what was expected.
    pub text: String,
}

impl Finding {
    #[must_use]
    pub fn new(
        severity: Severity,
        kind: Kind,
        subject: impl Into<String>,
        text: impl Into<String>,
    ) -> Finding {
        Finding {
            severity,
            kind,
            subject: subject.into(),
            text: text.into(),
        }
    }

    #[must_use]
    pub fn note(kind: Kind, subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding::new(Severity::Note, kind, subject, text)
    }

    #[must_use]
    pub fn warning(kind: Kind, subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, kind, subject, text)
    }

    #[must_use]
    pub fn critical(kind: Kind, subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding::new(Severity::Critical, kind, subject, text)
    }
}
