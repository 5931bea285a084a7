//! Which versions of the protocol understand each other: the same major, any minor.

/// Raised when an older peer must not ignore what is new.
pub const PROTOCOL_MAJOR: u32 = 1;
/// Raised when something was added that an older peer may ignore.
pub const PROTOCOL_MINOR: u32 = 2;
/// First minor whose controllers acknowledge events.
pub const MINOR_EVENTS_TAKEN: u32 = 2;

/// The peer speaks another major version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "protocol {theirs_major}.{theirs_minor} of {peer} is incompatible with protocol \
     {PROTOCOL_MAJOR}.{PROTOCOL_MINOR} of this side: upgrade the older of the two"
)]
pub struct Incompatible {
    /// What the peer calls itself, with its software version.
    pub peer: String,
    pub theirs_major: u32,
    pub theirs_minor: u32,
}

/// Checks the version in a peer's first message.
///
/// # Errors
/// [`Incompatible`] names both versions.
pub fn check(peer: &str, major: u32, minor: u32) -> Result<(), Incompatible> {
    if major == PROTOCOL_MAJOR {
        return Ok(());
    }
    Err(Incompatible {
        peer: peer.to_owned(),
        theirs_major: major,
        theirs_minor: minor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_minor_is_welcome() {
        assert_eq!(check("agent", PROTOCOL_MAJOR, PROTOCOL_MINOR + 7), Ok(()));
    }

    #[test]
    fn another_major_is_refused_and_both_versions_are_named() {
        let error = check("agent h11 (9.0.0)", 2, 3).unwrap_err().to_string();
        let ours = format!("{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}");
        assert!(
            error.contains("2.3") && error.contains(&ours) && error.contains("h11"),
            "{error}"
        );
    }
}
