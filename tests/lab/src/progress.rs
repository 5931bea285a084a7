//! The live display of the demo: a few lines that change in place on a terminal, plain lines elsewhere.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// The lines of the display, in the order shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// What is going on.
    Phase,
    /// The collective, iteration by iteration.
    Job,
    /// The hottest links.
    Links,
    /// Class and entity.
    Verdict,
    /// What the verdict rests on.
    Evidence,
    /// State of the trial.
    Lease,
    /// What was changed.
    Change,
}

const ROWS: [(Row, &str); 7] = [
    (Row::Phase, "now"),
    (Row::Job, "busbw"),
    (Row::Links, "links"),
    (Row::Verdict, "verdict"),
    (Row::Evidence, "evidence"),
    (Row::Lease, "lease"),
    (Row::Change, "change"),
];

/// Eight heights of a sparkline.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// As many as fit beside the figures on 80 columns.
const SPARKLINE_MAX: usize = 40;

/// The display.
pub struct Progress {
    live: Option<(MultiProgress, BTreeMap<Row, ProgressBar>)>,
    shown: BTreeMap<Row, String>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Live if standard output is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
            let bars = ROWS.map(|(row, name)| (row, all.add(bar(row, name))));
            (all, BTreeMap::from(bars))
        });
        Self {
            live,
            shown: BTreeMap::new(),
        }
    }

    /// Sets a line. Elsewhere than on a terminal it is printed if it differs from the one before.
    pub fn set(&mut self, row: Row, text: &str) {
        if self.shown.get(&row).is_some_and(|shown| shown == text) {
            return;
        }
        self.shown.insert(row, text.to_owned());
        match &self.live {
            Some((_, bars)) => {
                if let Some(bar) = bars.get(&row) {
                    bar.set_message(text.to_owned());
                }
            }
            None => {
                if let Some((_, name)) = ROWS.iter().find(|(r, _)| *r == row) {
                    output::say(&format!("{name:>9}  {text}"));
                }
            }
        }
    }

    /// Sets a line that changes all the time: on a terminal only.
    pub fn set_live(&mut self, row: Row, text: &str) {
        if self.live.is_some() {
            self.set(row, text);
        }
    }

    /// Prints a line above the display that stays.
    pub fn note(&self, text: &str) {
        match &self.live {
            // An error here is that of a closed terminal.
            Some((all, _)) => {
                all.println(text).ok();
            }
            None => output::say(text),
        }
    }

    /// Returns true if lines change in place.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Leaves the last state of each line on the screen.
    pub fn finish(&mut self) {
        if let Some((_, bars)) = self.live.take() {
            for bar in bars.values() {
                bar.abandon();
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar(row: Row, name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let template = match row {
        Row::Phase => format!("{name:>9} {{spinner}} {{wide_msg}}"),
        Row::Job | Row::Links | Row::Verdict | Row::Evidence | Row::Lease | Row::Change => {
            format!("{name:>9}   {{wide_msg}}")
        }
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(150));
    bar
}

/// The newest values as bars, the largest being full height.
#[must_use]
pub fn sparkline(values: &[f64]) -> String {
    let newest = &values[values.len().saturating_sub(SPARKLINE_MAX)..];
    let largest = newest.iter().copied().fold(0.0, f64::max);
    let height = |value: f64| {
        let step = (1..8_u8)
            .filter(|s| value * 8.0 > largest * f64::from(*s))
            .count();
        BARS[step]
    };
    newest.iter().map(|v| height(*v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_is_relative_to_its_largest_value() {
        assert_eq!(sparkline(&[0.0, 50.0, 100.0]), "▁▄█");
        assert_eq!(sparkline(&[]), "");
    }
}
