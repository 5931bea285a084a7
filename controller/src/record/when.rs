//! Times as people give them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Since the controller started.
    SinceStart(Duration),
    /// Since 1970.
    Wall(Duration),
}

impl When {
    /// Time since the controller's start, which was `started` after 1970; what was before it is 0.
    #[must_use]
    pub fn since_start(self, started: Duration) -> Duration {
        match self {
            When::SinceStart(at) => at,
            When::Wall(at) => at.saturating_sub(started),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        if let Ok(seconds) = text.parse() {
            return Duration::try_from_secs_f64(seconds)
                .map(When::SinceStart)
                .map_err(|_| format!("{text} seconds since the start are no time"));
        }
        let wall = humantime::parse_rfc3339_weak(text).map_err(|_| {
            format!(
                "{text:?} is no time; give seconds since the controller's start, such as 90.5, or UTC, such as 2026-01-31T08:15:00Z"
            )
        })?;
        let since = wall.duration_since(UNIX_EPOCH);
        Ok(When::Wall(since.unwrap_or(Duration::ZERO)))
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::SinceStart(at) => write!(f, "{} s", at.as_secs_f64()),
            When::Wall(at) => write!(f, "{}", utc(*at)),
        }
    }
}

/// A time since 1970 in RFC 3339, whole seconds.
#[must_use]
pub fn utc(since_1970: Duration) -> String {
    let at: Option<SystemTime> = UNIX_EPOCH.checked_add(since_1970);
    // Year 9999 is the last that the format has.
    at.filter(|_| since_1970.as_secs() < 253_402_300_800)
        .map_or_else(
            || "-".into(),
            |at| humantime::format_rfc3339_seconds(at).to_string(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_or_a_date() {
        let started = Duration::from_secs(1_700_000_000);
        for (text, seconds) in [
            ("90.5", 90.5),
            ("0", 0.0),
            ("2023-11-14T22:13:25Z", 5.0),
            ("2023-11-14 22:13:25", 5.0),
            ("1999-01-01T00:00:00Z", 0.0),
        ] {
            let when: When = text.parse().unwrap();
            assert_eq!(when.since_start(started).as_secs_f64(), seconds, "{text}");
        }
        for text in ["", "yesterday", "-3", "inf", "NaN", "1e300"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
