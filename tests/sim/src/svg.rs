//! Drawings of a run as SVG: a heat map with a row for each link, and curves over time. Written by hand: they are
//! rectangles and lines, and a library would be larger than they are.

use crate::report::History;
use crate::sim::Sim;
use std::fmt::Write;

/// Adds a line; writing to a string cannot fail.
macro_rules! line {
    ($svg:ident, $($arg:tt)*) => {
        writeln!($svg, $($arg)*).unwrap_or_default()
    };
}

const LEFT: f64 = 110.0;
const WIDTH: f64 = 900.0;
const COLOURS: [&str; 8] = [
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf",
];
/// More columns than this are not seen.
const COLUMNS: usize = 300;
/// More links than this are not read: the busiest are drawn.
const ROWS: usize = 128;

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"10\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{}</text>\n",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// White over yellow and red to black for 0.0..=1.0.
fn heat(x: f64) -> String {
    let part =
        |a: f64, b: f64| crate::num::whole(255.0 * (1.0 - ((x - a) / (b - a)).clamp(0.0, 1.0)));
    format!(
        "#{:02x}{:02x}{:02x}",
        part(0.75, 1.3),
        part(0.25, 0.85),
        part(0.0, 0.3)
    )
}

/// Where the samples of a column begin and end.
fn columns(samples: usize) -> Vec<(usize, usize)> {
    let n = samples.clamp(1, COLUMNS);
    (0..n)
        .map(|c| (c * samples / n, (c + 1) * samples / n))
        .collect()
}

/// Use of every link over time, 0 to 100 % of its rate; a blue mark on top where more than Kmin waited.
#[must_use]
pub fn heat_map(sim: &Sim, history: &History) -> String {
    let mut rows: Vec<usize> = (0..history.tx.len())
        .filter(|p| history.tx[*p].iter().any(|b| *b > 0))
        .collect();
    if rows.len() > ROWS {
        rows.sort_by_key(|p| {
            std::cmp::Reverse(history.queue[*p].iter().copied().max().unwrap_or(0))
        });
        rows.truncate(ROWS);
        rows.sort_unstable();
    }
    let row_height = 9.0;
    let height = 30.0 + rows.len() as f64 * row_height + 24.0;
    let mut svg = open(
        LEFT + WIDTH + 10.0,
        height,
        "use of each link (white 0, black 100 %; blue: more than 150 KB waited)",
    );
    let columns = columns(history.at.len());
    let w = WIDTH / columns.len() as f64;
    for (r, p) in rows.iter().enumerate() {
        let y = 26.0 + r as f64 * row_height;
        let info = &sim.topology().ports[*p];
        let name = sim.topology().port_name(crate::num::index(*p));
        line!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"8\">{name}</text>",
            LEFT - 4.0,
            y + 7.0
        );
        for (c, (from, to)) in columns.iter().enumerate() {
            let begin = if *from == 0 { 0 } else { history.at[from - 1] };
            let span = (history.at[*to - 1] - begin).max(1) as f64;
            let bytes: u64 = history.tx[*p][*from..*to].iter().sum();
            let used = bytes as f64 * 8e12 / (info.bits_per_s * span);
            let queue = history.queue[*p][*from..*to]
                .iter()
                .copied()
                .max()
                .unwrap_or(0);
            if used > 0.005 {
                line!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"8\" fill=\"{}\"/>",
                    LEFT + c as f64 * w,
                    heat(used)
                );
            }
            if queue > 150_000 {
                line!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"2.5\" fill=\"#2040ff\"/>",
                    LEFT + c as f64 * w
                );
            }
        }
    }
    axis(&mut svg, history, height - 10.0);
    svg + "</svg>\n"
}

fn axis(svg: &mut String, history: &History, y: f64) {
    let end = history.at.last().copied().unwrap_or(1) as f64 / 1e9;
    for i in 0..=5 {
        let x = LEFT + WIDTH * f64::from(i) / 5.0;
        line!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{:.3} ms</text>",
            end * f64::from(i) / 5.0
        );
    }
}

/// Curves over time with their names.
fn curves(title: &str, unit: &str, history: &History, lines: &[(String, Vec<f64>)]) -> String {
    let (height, top) = (320.0, 30.0);
    let plot = height - top - 40.0;
    let max = lines
        .iter()
        .flat_map(|l| l.1.iter().copied())
        .fold(0.0, f64::max)
        .max(1e-9);
    let mut svg = open(LEFT + WIDTH + 130.0, height, title);
    for i in 0..=4 {
        let y = top + plot * (1.0 - f64::from(i) / 4.0);
        line!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>",
            LEFT + WIDTH
        );
        line!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.1} {unit}</text>",
            LEFT - 4.0,
            y + 3.0,
            max * f64::from(i) / 4.0
        );
    }
    let columns = columns(history.at.len());
    for (n, (name, values)) in lines.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(c, (from, to))| {
                let value = values[*from..*to].iter().copied().fold(0.0, f64::max);
                let x = LEFT + WIDTH * (c as f64 + 0.5) / columns.len() as f64;
                format!("{x:.1},{:.1}", top + plot * (1.0 - value / max))
            })
            .collect();
        line!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>",
            points.join(" ")
        );
        let y = top + 12.0 * n as f64 + 10.0;
        line!(
            svg,
            "<text x=\"{}\" y=\"{y:.1}\" fill=\"{colour}\">{}</text>",
            LEFT + WIDTH + 8.0,
            escape(name)
        );
    }
    axis(&mut svg, history, height - 12.0);
    svg + "</svg>\n"
}

/// The eight deepest queues over time.
#[must_use]
pub fn queues(sim: &Sim, history: &History) -> String {
    let mut ports: Vec<usize> = (0..history.queue.len()).collect();
    ports.sort_by_key(|p| std::cmp::Reverse(history.queue[*p].iter().copied().max().unwrap_or(0)));
    let lines: Vec<(String, Vec<f64>)> = ports
        .into_iter()
        .take(8)
        .map(|p| {
            (
                sim.topology().port_name(crate::num::index(p)),
                history.queue[p].iter().map(|b| *b as f64 / 1e3).collect(),
            )
        })
        .collect();
    curves("deepest queues", "KB", history, &lines)
}

/// The rates that the reaction points allow to the eight hosts that they slow down most.
#[must_use]
pub fn rates(history: &History) -> String {
    let mut hosts: Vec<(f64, usize)> = history
        .rate
        .iter()
        .enumerate()
        .filter_map(|(h, r)| {
            r.iter()
                .copied()
                .filter(|x| *x > 0.0)
                .reduce(f64::min)
                .map(|low| (low, h))
        })
        .collect();
    hosts.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let lines: Vec<(String, Vec<f64>)> = hosts
        .into_iter()
        .take(8)
        .map(|(_, h)| (format!("host{h}"), history.rate[h].clone()))
        .collect();
    curves(
        "rates allowed to the slowest senders",
        "Gb/s",
        history,
        &lines,
    )
}
