//! The text form of Prometheus's metrics, version 0.0.4, written directly: a full node shows some
//! thousand series at each scrape, and each costs but its line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use weir_common::catalogue::Metric;

/// What `Content-Type` says of it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bytes of a line, somewhat more than is usual.
const LINE: usize = 128;

/// Families under construction, by name.
#[derive(Debug, Default)]
pub struct Families(BTreeMap<Cow<'static, str>, Family>);

#[derive(Debug)]
struct Family {
    kind: &'static str,
    help: &'static str,
    lines: String,
}

impl Families {
    fn lines(&mut self, metric: Metric) -> &mut String {
        let name = Cow::Borrowed(metric.name);
        let family = self.0.entry(name).or_insert_with(|| Family {
            kind: metric.kind.name(),
            help: metric.help,
            lines: String::with_capacity(LINE),
        });
        &mut family.lines
    }

    /// A series whose name is known only now, and its kind not at all.
    pub fn untyped(
        &mut self,
        name: &str,
        help: &'static str,
        label: (&'static str, &str),
        value: f64,
    ) {
        let owned = Cow::Owned(name.to_owned());
        let family = self.0.entry(owned).or_insert_with(|| Family {
            kind: "untyped",
            help,
            lines: String::with_capacity(LINE),
        });
        family.lines.push_str(name);
        put_labels(&mut family.lines, &[label.0], &[label.1], None);
        put_value(&mut family.lines, value);
    }

    /// A series of a gauge or counter; `labels` are the values, in the order of the metric's names.
    pub fn value(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let lines = self.lines(metric);
        lines.push_str(metric.name);
        put_labels(lines, metric.labels, labels, None);
        put_value(lines, value);
    }

    /// A series of a histogram; `counts` holds one more entry than `bounds`: what lies above the last.
    pub fn histogram(
        &mut self,
        metric: Metric,
        labels: &[&str],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let lines = self.lines(metric);
        let mut cumulative = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            cumulative += count;
            put_bucket(lines, metric, labels, &bound.to_string(), cumulative);
        }
        let all = counts.iter().sum();
        put_bucket(lines, metric, labels, "+Inf", all);
        for (part, value) in [("_sum", sum), ("_count", all as f64)] {
            lines.push_str(metric.name);
            lines.push_str(part);
            put_labels(lines, metric.labels, labels, None);
            put_value(lines, value);
        }
    }

    /// The page.
    #[must_use]
    pub fn text(self) -> String {
        let heads = self.0.len() * 2 * LINE;
        let length: usize = self.0.values().map(|f| f.lines.len()).sum();
        let mut text = String::with_capacity(length + heads);
        for (name, Family { kind, help, lines }) in &self.0 {
            text.extend(["# HELP ", name, " "]);
            put_escaped(&mut text, help, false);
            text.extend(["\n# TYPE ", name, " ", kind, "\n", lines]);
        }
        text
    }
}

fn put_bucket(lines: &mut String, metric: Metric, labels: &[&str], bound: &str, count: u64) {
    lines.push_str(metric.name);
    lines.push_str("_bucket");
    put_labels(lines, metric.labels, labels, Some(bound));
    put_value(lines, count as f64);
}

fn put_labels(lines: &mut String, names: &[&str], values: &[&str], bound: Option<&str>) {
    let pairs = names.iter().copied().zip(values.iter().copied());
    let mut before = '{';
    for (name, value) in pairs.chain(bound.map(|bound| ("le", bound))) {
        lines.push(before);
        lines.push_str(name);
        lines.push_str("=\"");
        put_escaped(lines, value, true);
        lines.push('"');
        before = ',';
    }
    if before == ',' {
        lines.push('}');
    }
}

/// In the value of a label the quote is escaped as well.
fn put_escaped(text: &mut String, value: &str, quote: bool) {
    if !value.contains(['\\', '\n', '"']) {
        text.push_str(value);
        return;
    }
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quote => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

fn put_value(lines: &mut String, value: f64) {
    // A String takes whatever is written to it.
    writeln!(lines, " {value}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_common::catalogue::Type;

    const QUEUES: Metric = Metric {
        name: "weir_test_depth_bytes",
        kind: Type::Histogram,
        labels: &["port"],
        help: "One\\two\nlines, \"quoted\".",
    };
    const FACTS: Metric = Metric {
        name: "weir_test_info",
        kind: Type::Gauge,
        labels: &["a", "b"],
        help: "Facts.",
    };

    #[test]
    fn the_text_is_as_the_format_has_it() {
        let mut families = Families::default();
        families.value(FACTS, &["x", ""], 1.0);
        families.value(FACTS, &["back\\slash \"quote\"\nnew line", "y"], 0.5);
        families.histogram(QUEUES, &["eth0"], &[1.0, 2.5], &[3, 0, 4], 17.25);
        let expected = r#"# HELP weir_test_depth_bytes One\\two\nlines, "quoted".
# TYPE weir_test_depth_bytes histogram
weir_test_depth_bytes_bucket{port="eth0",le="1"} 3
weir_test_depth_bytes_bucket{port="eth0",le="2.5"} 3
weir_test_depth_bytes_bucket{port="eth0",le="+Inf"} 7
weir_test_depth_bytes_sum{port="eth0"} 17.25
weir_test_depth_bytes_count{port="eth0"} 7
# HELP weir_test_info Facts.
# TYPE weir_test_info gauge
weir_test_info{a="x",b=""} 1
weir_test_info{a="back\\slash \"quote\"\nnew line",b="y"} 0.5
"#;
        assert_eq!(families.text(), expected);
    }

    #[test]
    fn large_counts_are_written_in_full() {
        let mut families = Families::default();
        const PLAIN: Metric = Metric {
            name: "weir_test_total",
            kind: Type::Counter,
            labels: &[],
            help: "Count.",
        };
        families.value(PLAIN, &[], 12_000_000_000_000_000.0);
        let text = families.text();
        assert!(
            text.ends_with("\nweir_test_total 12000000000000000\n"),
            "{text}"
        );
    }
}
