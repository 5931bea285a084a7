//! Names out of the node descriptions that InfiniBand tools print.
//!
//! A host's driver or `rdma-ndd` writes `HOST DEVICE`; a managed switch `MF0;NAME:MODEL/U1`, with
//! the line card between on a modular one; firmware that nobody told a name its product's.

use crate::fabric::{tidy, tidy_port};

/// Device id of the SHARP aggregation node inside a Quantum switch.
const AGGREGATION_DEVICE: u32 = 0xcf09;

/// Names that a machine has before somebody gives it one.
const UNNAMED: &[&str] = &["localhost", "localhost.localdomain", "(none)", "ubuntu"];

/// Whether this is a SHARP aggregation node and no host.
#[must_use]
pub fn is_aggregation(device_id: Option<u32>, description: &str) -> bool {
    device_id == Some(AGGREGATION_DEVICE) || description.contains("Aggregation Node")
}

/// A switch's name, what follows its model, and its model.
#[derive(Debug, PartialEq, Eq)]
pub struct SwitchName {
    pub name: String,
    /// Tells the chips of a modular switch apart, such as `L01-U1`.
    pub chip: String,
    pub model: Option<String>,
}

/// Reads a switch's description; `None` if it is only its product's.
#[must_use]
pub fn switch(description: &str) -> Option<SwitchName> {
    let text = description.trim();
    if let Some(managed) = managed(text) {
        let (name, rest) = managed.split_once(':').unwrap_or((managed, ""));
        let (model, chip) = rest.split_once('/').unwrap_or((rest, ""));
        return (!name.trim().is_empty()).then(|| SwitchName {
            name: tidy(name),
            chip: tidy(chip),
            model: (!model.is_empty()).then(|| model.to_owned()),
        });
    }
    let product = text.ends_with("Technologies") || text.is_empty();
    (!product).then(|| SwitchName {
        name: tidy(text),
        chip: String::new(),
        model: None,
    })
}

/// What follows the `MF0;` of a managed switch.
fn managed(text: &str) -> Option<&str> {
    let (prefix, rest) = text.split_once(';')?;
    let digits = prefix.strip_prefix("MF")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(rest)
}

/// Whether a description is of a managed switch, where the tool does not say what it is.
#[must_use]
pub fn is_switch(description: &str) -> bool {
    managed(description.trim()).is_some()
}

/// Reads a channel adapter's description as host and device; `None` if it tells no host.
#[must_use]
pub fn host(description: &str) -> Option<(String, String)> {
    let mut words = description.split_whitespace();
    let host = words.next()?;
    let device = words.next().unwrap_or("");
    let tells = words.next().is_none() && !UNNAMED.contains(&host);
    tells.then(|| {
        (
            tidy(host),
            if device.is_empty() {
                String::new()
            } else {
                tidy_port(device)
            },
        )
    })
}

/// The rail that a device belongs to: `mlx5_3` and `HCA-4`, counted from 0 and from 1, are both the
/// fourth. `None` if the name ends in no number.
#[must_use]
pub fn rail(device: &str) -> Option<u32> {
    if let Some(number) = device.strip_prefix("HCA-") {
        return number.parse::<u32>().ok()?.checked_sub(1);
    }
    let head = device.trim_end_matches(|c: char| c.is_ascii_digit());
    device.get(head.len()..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_first_of_two_words() {
        let named = |h: &str, d: &str| Some((h.to_owned(), d.to_owned()));
        assert_eq!(host("node-7 mlx5_1 "), named("node-7", "mlx5_1"));
        assert_eq!(host("  node-7 HCA-2"), named("node-7", "HCA-2"));
        assert_eq!(host("node-7"), named("node-7", ""));
        assert_eq!(host("localhost HCA-1"), None);
        assert_eq!(host("MT4129 ConnectX7   Mellanox Technologies"), None);
        assert_eq!(host(" "), None);
    }

    #[test]
    fn a_managed_switch_has_a_name_a_model_and_a_chip() {
        let plain = switch("MF0;row1-leaf2:MQM9700/U1").unwrap();
        assert_eq!(plain.name, "row1-leaf2");
        assert_eq!(plain.model.as_deref(), Some("MQM9700"));
        let modular = switch("MF0;big:CS8500/L03/U2").unwrap();
        assert_eq!(modular.chip, "L03-U2");
        assert_eq!(switch(" spine 3 ").unwrap().name, "spine-3");
        assert_eq!(switch("Quantum Mellanox Technologies"), None);
        assert!(is_switch("MF0;a:b/U1") && !is_switch("MFx;a:b") && !is_switch("node-7 mlx5_0"));
    }

    #[test]
    fn devices_counted_from_zero_and_from_one_share_rails() {
        assert_eq!(rail("mlx5_3"), Some(3));
        assert_eq!(rail("HCA-4"), Some(3));
        assert_eq!(rail("HCA-0"), None);
        assert_eq!(rail("ib"), None);
    }
}
