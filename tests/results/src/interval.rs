//! Ranges in which a measured share or count may lie.

/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.96;

/// Range of a share that was `share` (0.0..=1.0) in `trials`, 95 % (Wilson 1927). `None` without a trial.
#[must_use]
pub fn wilson(share: f64, trials: f64) -> Option<(f64, f64)> {
    if trials <= 0.0 || !(0.0..=1.0).contains(&share) {
        return None;
    }
    let z2 = Z * Z;
    let scale = 1.0 + z2 / trials;
    let middle = (share + z2 / (2.0 * trials)) / scale;
    let half = Z / scale * (share * (1.0 - share) / trials + z2 / (4.0 * trials * trials)).sqrt();
    Some(((middle - half).max(0.0), (middle + half).min(1.0)))
}

/// Most events to be expected where `seen` were counted: the mean of which so few come in one case of 20 (Poisson; three
/// where none was seen).
#[must_use]
pub fn poisson_most(seen: u32) -> f64 {
    let few = |mean: f64| -> f64 {
        let mut term = (-mean).exp();
        let mut sum = term;
        for n in 1..=seen {
            term *= mean / f64::from(n);
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (f64::from(seen), 2.0 * f64::from(seen) + 10.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if few(middle) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_tables() {
        // Brown, Cai and DasGupta (2001); Garwood (1936).
        let (low, high) = wilson(0.0, 10.0).unwrap();
        assert!(low < 1e-9 && (high - 0.2775).abs() < 1e-3, "{high}");
        let (low, high) = wilson(0.5, 40.0).unwrap();
        assert!((low - 0.352).abs() < 1e-3 && (high - 0.648).abs() < 1e-3);
        assert_eq!(wilson(0.5, 0.0), None);
        assert!((poisson_most(0) - 2.9957).abs() < 1e-3);
        assert!((poisson_most(1) - 4.7439).abs() < 1e-3);
        assert!((poisson_most(10) - 16.962).abs() < 1e-2);
    }
}
