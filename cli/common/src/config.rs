//! Files of configuration, which may be wrong.

use serde::Deserialize;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a configuration is refused. Names file, key, value, range and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; {}", remedy(source))]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Syntax {
        path: PathBuf,
        source: serde_norway::Error,
    },
    #[error("{path}: {key}: {value:?} is not valid: {expected}")]
    Value {
        path: PathBuf,
        key: &'static str,
        value: String,
        expected: String,
    },
}

fn remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{InvalidData, IsADirectory, PermissionDenied};
    let known = [
        (PermissionDenied, "make it readable for this user"),
        (IsADirectory, "give the file, not its directory"),
        (InvalidData, "it has to be text in UTF-8"),
    ];
    let remedy = known.iter().find(|(kind, _)| *kind == error.kind());
    remedy.map_or("give an existing file", |(_, text)| text)
}

/// Reads a file, unchecked; an empty one is all defaults.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::Syntax`].
pub fn read<T: Default + for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, path)
}

/// Parses a file's text.
///
/// # Errors
/// [`ConfigError::Syntax`].
pub fn parse<T: Default + for<'a> Deserialize<'a>>(
    text: &str,
    path: &Path,
) -> Result<T, ConfigError> {
    let parsed: Option<T> = serde_norway::from_str(text).map_err(|source| ConfigError::Syntax {
        path: path.to_owned(),
        source,
    })?;
    Ok(parsed.unwrap_or_default())
}

/// Checks the values of one file, whose path is for the messages.
#[derive(Debug, Clone, Copy)]
pub struct Checker<'a>(pub &'a Path);

impl Checker<'_> {
    #[must_use]
    pub fn wrong(
        &self,
        key: &'static str,
        value: &dyn Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            path: self.0.to_owned(),
            key,
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// # Errors
    /// [`ConfigError::Value`]: no unit, or out of range.
    pub fn duration(
        &self,
        key: &'static str,
        value: Option<&String>,
        default: Duration,
        (min, max): (Duration, Duration),
    ) -> Result<Duration, ConfigError> {
        let Some(text) = value else {
            return Ok(default);
        };
        let parsed = humantime::parse_duration(text).ok();
        parsed.filter(|d| (min..=max).contains(d)).ok_or_else(|| {
            let expected = format!(
                "give a duration with a unit from {} to {}, such as \"10s\" or \"250ms\"",
                humantime::format_duration(min),
                humantime::format_duration(max)
            );
            self.wrong(key, text, expected)
        })
    }

    /// # Errors
    /// [`ConfigError::Value`]: out of range.
    pub fn count(
        &self,
        key: &'static str,
        value: Option<i64>,
        default: usize,
        (min, max): (i64, i64),
    ) -> Result<usize, ConfigError> {
        let Some(v) = value else { return Ok(default) };
        let valid = usize::try_from(v).ok().filter(|_| (min..=max).contains(&v));
        valid.ok_or_else(|| self.wrong(key, &v, format!("give a whole number from {min} to {max}")))
    }

    /// # Errors
    /// [`ConfigError::Value`]: out of range, or no number.
    pub fn ratio(
        &self,
        key: &'static str,
        value: Option<f64>,
        default: f64,
        (min, max): (f64, f64),
    ) -> Result<f64, ConfigError> {
        let v = value.unwrap_or(default);
        if (min..=max).contains(&v) {
            return Ok(v);
        }
        Err(self.wrong(key, &v, format!("give a number from {min} to {max}")))
    }

    /// # Errors
    /// [`ConfigError::Value`]: not an address with a port.
    pub fn address(
        &self,
        key: &'static str,
        value: Option<&String>,
        default: SocketAddr,
    ) -> Result<SocketAddr, ConfigError> {
        let Some(text) = value else {
            return Ok(default);
        };
        text.parse().map_err(|_| {
            let expected = format!("give an address and a port, such as \"{default}\"");
            self.wrong(key, text, expected)
        })
    }
}
