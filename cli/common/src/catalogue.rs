//! Metrics as the daemons' catalogues list them.

/// Prometheus type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Gauge,
    Counter,
    Histogram,
    /// Nobody knows.
    Untyped,
}

impl Type {
    /// Name in the exposition format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Type::Gauge => "gauge",
            Type::Counter => "counter",
            Type::Histogram => "histogram",
            Type::Untyped => "untyped",
        }
    }
}

/// A row of a catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Type,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// A catalogue as a table of Markdown.
#[must_use]
pub fn markdown(metrics: impl IntoIterator<Item = Metric>) -> String {
    let rows = metrics.into_iter().map(|m| {
        [
            format!("`{}`", m.name),
            m.kind.name().to_owned(),
            m.labels.join(", "),
            m.help.to_owned(),
        ]
    });
    table(["metric", "type", "labels", "meaning"], rows)
}

/// A table of Markdown.
#[must_use]
pub fn table<const N: usize>(
    heads: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(N));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}
