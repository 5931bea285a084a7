//! Widths and speeds of InfiniBand links.
//!
//! Rates are those that the kernel prints in `/sys/class/infiniband/*/ports/*/rate`
//! (`rate_show`, drivers/infiniband/core/sysfs.c), so that a rate from a topology file and one from
//! an agent compare: QDR, FDR10 and FDR by their nominal 10, 10 and 14 Gbit/s a lane.

/// Generation, bits per second of a lane, signalling rate of a lane in Gbit/s as `iblinkinfo` prints it.
const GENERATIONS: &[(&str, f64, f64)] = &[
    ("SDR", 2.5e9, 2.5),
    ("DDR", 5e9, 5.0),
    ("QDR", 10e9, 10.0),
    ("FDR10", 10e9, 10.3125),
    ("FDR", 14e9, 14.0625),
    ("EDR", 25e9, 25.78125),
    ("HDR", 50e9, 53.125),
    ("NDR", 100e9, 106.25),
    ("XDR", 200e9, 212.5),
];

/// Reads `4x` or `4X`; `None` if it is no width that InfiniBand has.
#[must_use]
pub fn lanes(text: &str) -> Option<u8> {
    let number = text.strip_suffix(['x', 'X'])?;
    let lanes = number.parse().ok()?;
    matches!(lanes, 1 | 2 | 4 | 8 | 12).then_some(lanes)
}

/// The generation's name and the rate of one lane in bits per second, from `HDR` or `53.125`
/// (signalling rate in Gbit/s). `None` if neither.
#[must_use]
pub fn generation(text: &str) -> Option<(&'static str, f64)> {
    let signalling = text.parse::<f64>().ok();
    let row = GENERATIONS.iter().find(|(name, _, rate)| {
        text.eq_ignore_ascii_case(name) || signalling.is_some_and(|s| (s - rate).abs() < 1e-6)
    })?;
    Some((row.0, row.1))
}

/// Bits per second of a link, each direction.
#[must_use]
pub fn link_bps(lanes: u8, lane_bps: f64) -> f64 {
    f64::from(lanes) * lane_bps
}

/// Bits per second as people say it, such as `400Gbit`; the topology file reads it.
#[must_use]
pub fn spoken(bps: f64) -> String {
    for (unit, factor) in [("Tbit", 1e12), ("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)] {
        // 1600Gbit is said so, not 1.6Tbit.
        if bps >= factor * if factor > 1e11 { 10.0 } else { 1.0 } {
            return format!("{}{unit}", bps / factor);
        }
    }
    format!("{bps}bit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_signalling_rates_are_the_same_generations() {
        for (name, rate, signalling) in GENERATIONS {
            assert_eq!(generation(name), Some((*name, *rate)));
            assert_eq!(generation(&signalling.to_string()), Some((*name, *rate)));
        }
        assert_eq!(generation("???"), None);
        assert_eq!(generation("NaN"), None);
    }

    #[test]
    fn widths() {
        assert_eq!(lanes("4x"), Some(4));
        assert_eq!(lanes("12X"), Some(12));
        assert_eq!(lanes("3x"), None);
        assert_eq!(lanes("4"), None);
    }

    #[test]
    fn rates_are_said_shortly() {
        assert_eq!(spoken(200e9), "200Gbit");
        assert_eq!(spoken(56e9), "56Gbit");
        assert_eq!(spoken(1.6e12), "1600Gbit");
        assert_eq!(spoken(2.5e9), "2.5Gbit");
        assert_eq!(spoken(12.0), "12bit");
    }
}
