//! What this node allows whatever the controller says.

use crate::change::RouteChange;
use std::net::Ipv4Addr;
use std::time::Duration;

/// The local limits file, checked. The default allows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub routes_allow: bool,
    pub pins_max: usize,
    /// Destinations that may be pinned; empty: none.
    pub prefixes: Vec<(Ipv4Addr, u8)>,
    /// Groups whose weights may be set; empty: none.
    pub groups: Vec<u32>,
    pub lease_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            routes_allow: false,
            pins_max: 64,
            prefixes: Vec::new(),
            groups: Vec::new(),
            lease_max: Duration::from_secs(60),
        }
    }
}

/// Why a change is not made. The text names the key of the limits file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Limits {
    /// Checks one change; `pinned` counts the pins that stand already.
    ///
    /// # Errors
    /// [`Refusal`] says which limit forbids it.
    pub fn check(&self, change: &RouteChange, pinned: usize) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal(format!("{change}: {why}")));
        if !self.routes_allow {
            return refuse("the limits file forbids route changes (routes.allow: false)".into());
        }
        match change {
            RouteChange::Pin {
                dst, prefix_len, ..
            } => {
                if *prefix_len == 0 || *prefix_len > 32 {
                    return refuse(format!("a prefix length of {prefix_len} is not in 1..=32"));
                }
                if !self
                    .prefixes
                    .iter()
                    .any(|(net, len)| *len <= *prefix_len && covers(*net, *len, *dst))
                {
                    return refuse(
                        "the limits file allows no such destination (routes.prefixes)".into(),
                    );
                }
                if pinned >= self.pins_max {
                    return refuse(format!(
                        "{pinned} pins stand already (routes.max_pins: {})",
                        self.pins_max
                    ));
                }
            }
            RouteChange::Weights { group, members } => {
                if !self.groups.contains(group) {
                    return refuse(
                        "the limits file does not name the group (routes.groups)".into(),
                    );
                }
                if members.is_empty() || members.iter().any(|m| m.weight == 0) {
                    return refuse("every weight must be in 1..=255, and there must be one".into());
                }
            }
        }
        Ok(())
    }
}

/// Whether `dst` lies in the network `net/len`.
#[must_use]
pub fn covers(net: Ipv4Addr, len: u8, dst: Ipv4Addr) -> bool {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(len.min(32)))
        .unwrap_or(0);
    net.to_bits() & mask == dst.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(dst: &str) -> RouteChange {
        RouteChange::Pin {
            dst: dst.parse().unwrap(),
            prefix_len: 32,
            nexthop: 1,
            port: "up1".into(),
        }
    }

    #[test]
    fn the_default_allows_nothing() {
        assert!(
            Limits::default()
                .check(&pin("10.0.0.1"), 0)
                .unwrap_err()
                .0
                .contains("routes.allow")
        );
    }

    #[test]
    fn a_pin_must_lie_in_an_allowed_prefix_and_within_the_count() {
        let limits = Limits {
            routes_allow: true,
            pins_max: 2,
            prefixes: vec![("10.0.0.0".parse().unwrap(), 8)],
            ..Limits::default()
        };
        assert_eq!(limits.check(&pin("10.9.9.9"), 1), Ok(()));
        assert!(
            limits
                .check(&pin("11.0.0.1"), 0)
                .unwrap_err()
                .0
                .contains("routes.prefixes")
        );
        assert!(
            limits
                .check(&pin("10.0.0.1"), 2)
                .unwrap_err()
                .0
                .contains("routes.max_pins")
        );
    }
}
