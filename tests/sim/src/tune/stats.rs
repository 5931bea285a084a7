//! Means over seeds with their confidence intervals.

use serde::{Deserialize, Serialize};

/// Two-sided 95 % quantiles of Student's t, by degrees of freedom from 1.
const T: [f64; 10] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
];

/// A mean over seeds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of its 95 % confidence interval (Student's t over seeds). `None` with fewer than two seeds.
    pub ci95: Option<f64>,
    /// By seed.
    pub by_seed: Vec<f64>,
}

impl Estimate {
    /// The estimate from one figure a seed.
    #[must_use]
    pub fn of(by_seed: Vec<f64>) -> Self {
        let n = by_seed.len() as f64;
        let mean = by_seed.iter().sum::<f64>() / n.max(1.0);
        let ci95 = (by_seed.len() > 1).then(|| {
            let spread = by_seed.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let t = T.get(by_seed.len() - 2).copied().unwrap_or(1.96);
            t * (spread / n).sqrt()
        });
        Self {
            mean,
            ci95,
            by_seed,
        }
    }
}

impl std::fmt::Display for Estimate {
    /// `-12.3 ±1.5`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ci95 {
            Some(ci) => write!(f, "{:+.1} ±{ci:.1}", self.mean),
            None => write!(f, "{:+.1}", self.mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_student() {
        let e = Estimate::of(vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        // Standard deviation sqrt(2.5), t 2.776 with four degrees of freedom.
        assert!((e.mean - 3.0).abs() < 1e-12);
        assert!((e.ci95.unwrap() - 2.776 * (2.5f64 / 5.0).sqrt()).abs() < 1e-9);
        assert_eq!(e.to_string(), "+3.0 ±2.0");
        assert_eq!(Estimate::of(vec![-1.0]).to_string(), "-1.0");
    }
}
