//! The period of traffic that goes on and off, from bytes in equal sample intervals.
//!
//! Below two samples to a period everything looks like something else: a burst each 1.2 s, seen once a
//! second, is a perfect on and off of six seconds. So a rhythm counts only where its pauses are proven: two
//! samples in a row that are nearly empty cannot be had from any period of two samples or less, since
//! two samples then hold a whole burst. The period is the autocorrelation's first high peak, and must be a
//! whole number of bursts long; its value is the mean over the bursts, which is finer than a sample.

/// Samples kept of a server: four minutes at one a second.
pub const SAMPLES_MAX: usize = 256;
/// Fewer samples show no rhythm.
pub const SAMPLES_MIN: usize = 24;
/// Periods that must be seen.
const PERIODS_MIN: usize = 3;
/// Empty is below this share of the level while on; under a half, so that the argument above holds with room.
const EMPTY: f64 = 0.2;
/// Nearly empty samples that prove a pause.
const PAUSE_MIN: usize = 2;
/// Autocorrelation below which there is no rhythm, and share of the highest from which a peak is one.
const STRENGTH_MIN: f64 = 0.4;
const PEAK: f64 = 0.7;
/// How far a period may be off, as a share of it: steps vary.
const TOLERANCE: f64 = 0.25;
/// Share of the time between the first burst and the last that must be in periods.
const COVERED_MIN: f64 = 0.5;

/// A rhythm, in samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    pub period: f64,
    /// Share of the period in which there is traffic.
    pub duty: f64,
    /// Where each period began and ended, as positions in the series; oldest first. What is longer (a checkpoint
    /// between two iterations) is left out.
    pub periods: Vec<(f64, f64)>,
    /// Autocorrelation at the period.
    pub strength: f64,
}

/// Finds the rhythm of a series; `None` where there is none, or none that the samples can show.
#[must_use]
pub fn find(bytes: &[f64]) -> Option<Beat> {
    let n = bytes.len();
    if n < SAMPLES_MIN {
        return None;
    }
    let mean = bytes.iter().sum::<f64>() / n as f64;
    let mut on: Vec<f64> = bytes.iter().copied().filter(|b| *b > mean).collect();
    on.sort_by(f64::total_cmp);
    let level = *on.get(on.len() / 2)?;
    let bursts = bursts(bytes, level);
    let (first, last) = (*bursts.first()?, *bursts.last()?);
    let (lag, strength) = peak(bytes, mean)?;
    // From the newest burst back, each time to the burst nearest to a period before.
    let (mut periods, mut end) = (Vec::new(), bursts.len() - 1);
    while end > 0 {
        let off = |n: &usize| (bursts[end] - bursts[*n] - lag).abs();
        let start = (0..end).min_by(|a, b| off(a).total_cmp(&off(b)))?;
        if off(&start) <= TOLERANCE * lag {
            periods.push((bursts[start], bursts[end]));
            end = start;
        } else {
            end -= 1;
        }
    }
    periods.reverse();
    let covered: f64 = periods.iter().map(|(start, end)| end - start).sum();
    if periods.len() < PERIODS_MIN || covered < COVERED_MIN * (last - first) {
        return None;
    }
    Some(Beat {
        period: covered / periods.len() as f64,
        duty: (mean / level).min(1.0),
        periods,
        strength,
    })
}

/// Where bursts begin that follow a proven pause; part of a sample is told from how full it is.
fn bursts(bytes: &[f64], level: f64) -> Vec<f64> {
    let (mut bursts, mut empty) = (Vec::new(), 0);
    for (at, bytes) in (0u32..).zip(bytes) {
        if *bytes < EMPTY * level {
            empty += 1;
            continue;
        }
        if empty >= PAUSE_MIN {
            bursts.push(f64::from(at) + 1.0 - (bytes / level).min(1.0));
        }
        empty = 0;
    }
    bursts
}

/// The first high peak of the autocorrelation, in samples, and its height.
fn peak(bytes: &[f64], mean: f64) -> Option<(f64, f64)> {
    let n = bytes.len();
    let centred: Vec<f64> = bytes.iter().map(|b| b - mean).collect();
    // Spread over the neighbours: a period of 6.5 samples correlates at 6 and at 7, and not only at 13.
    let near =
        |k: usize| centred[k] * 2.0 + centred[k.saturating_sub(1)] + centred[(k + 1).min(n - 1)];
    let centred: Vec<f64> = (0..n).map(|k| near(k) / 4.0).collect();
    let variance = centred.iter().map(|c| c * c).sum::<f64>() / n as f64;
    if variance <= 0.0 {
        return None;
    }
    let at = |lag: usize| {
        let pairs = centred.iter().zip(&centred[lag..]);
        pairs.map(|(a, b)| a * b).sum::<f64>() / (n - lag) as f64 / variance
    };
    let most = n / PERIODS_MIN;
    let correlation: Vec<f64> = (0..=most + 1).map(at).collect();
    let is_peak = |lag: &usize| {
        correlation[*lag] >= correlation[lag - 1] && correlation[*lag] >= correlation[lag + 1]
    };
    let peaks: Vec<usize> = (PAUSE_MIN + 1..=most).filter(is_peak).collect();
    let highest = peaks
        .iter()
        .map(|l| correlation[*l])
        .fold(STRENGTH_MIN, f64::max);
    let lag = peaks
        .into_iter()
        .find(|l| correlation[*l] >= STRENGTH_MIN && correlation[*l] >= PEAK * highest)?;
    // The top of a parabola through three points.
    let (left, top, right) = (correlation[lag - 1], correlation[lag], correlation[lag + 1]);
    let bend = left - 2.0 * top + right;
    let shift = if bend < 0.0 {
        (left - right) / (2.0 * bend)
    } else {
        0.0
    };
    Some((lag as f64 + shift.clamp(-0.5, 0.5), top.min(1.0)))
}
