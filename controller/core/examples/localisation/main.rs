//! How often silent loss is found, by joint likelihood and by 007's votes, on the same labelled cases.
//!
//! `cargo run --release -p weir-controller-core --example localisation -- [--json] [--cases N]`

mod cases;
mod score;

use cases::Kind;
use score::Score;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::Instant;
use weir_controller_core::localise::{Model, vote};

/// Seeds on which 007's share is chosen are not those on which it is judged, and these are not those on which either
/// method was developed (from 0 on).
const CHOICE_SEEDS: u64 = 1 << 32;
const JUDGED_SEEDS: u64 = 1 << 40;
const CASES: u64 = 60;
const SHARES: [f64; 8] = [vote::SHARE_MIN, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2];

/// Scores of us, of 007 as published, of 007 with the share that suits these cases best.
type Scores = [Score; 3];

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().any(|a| a == "--json");
    let at = arguments.iter().position(|a| a == "--cases");
    let cases = at
        .and_then(|n| arguments.get(n + 1)?.parse().ok())
        .unwrap_or(CASES);
    let share = best_share(cases.div_ceil(3));
    let mut by_kind: BTreeMap<Kind, Scores> = BTreeMap::new();
    for (n, kind) in (0..).zip(Kind::all()) {
        let scores = by_kind.entry(kind).or_default();
        for seed in 0..cases {
            let case = cases::case(kind, JUDGED_SEEDS + n * cases + seed);
            let ours = score::named(&case.seen.explain(&Model::default()));
            scores[0].add(&case, &ours);
            for (score, share) in scores[1..].iter_mut().zip([vote::SHARE_MIN, share]) {
                score.add(&case, &vote::blame(&case.seen, share).into_iter().collect());
            }
        }
    }
    let mut all = Scores::default();
    for scores in by_kind.values() {
        for (sum, score) in all.iter_mut().zip(scores) {
            *sum = sum.sum(score);
        }
    }
    let speed = [true, false].map(speed);
    let mut out = io::stdout().lock();
    if json {
        write_json(&mut out, &all, share, &speed)
    } else {
        write_table(&mut out, &by_kind, &all, share, &speed)
    }
}

/// The share that gives 007 its best F1, on seeds of its own.
fn best_share(cases: u64) -> f64 {
    let mut scores = [Score::default(); SHARES.len()];
    for (n, kind) in (0..).zip(Kind::all()) {
        for seed in 0..cases {
            let case = cases::case(kind, CHOICE_SEEDS + n * cases + seed);
            for (score, share) in scores.iter_mut().zip(SHARES) {
                score.add(
                    &case,
                    &vote::blame(&case.seen, share)
                        .into_iter()
                        .collect::<BTreeSet<_>>(),
                );
            }
        }
    }
    let best = (0..SHARES.len()).max_by(|a, b| scores[*a].f1().total_cmp(&scores[*b].f1()));
    best.map_or(vote::SHARE_MIN, |n| SHARES[n])
}

/// Microseconds of an explanation of 10,000 flows over 1,024 links: the least of 21, since other programs may run beside it.
fn speed(told: bool) -> f64 {
    let times = (0..21).map(|seed| {
        let seen = cases::large(10_000, told, seed);
        let start = Instant::now();
        std::hint::black_box(seen.explain(&Model::default()));
        start.elapsed().as_secs_f64() * 1e6
    });
    times.fold(f64::INFINITY, f64::min)
}

fn write_table(
    out: &mut impl Write,
    by_kind: &BTreeMap<Kind, Scores>,
    all: &Scores,
    share: f64,
    speed: &[f64; 2],
) -> io::Result<()> {
    writeln!(
        out,
        "precision, recall, F1 of the joint likelihood, of 007 (stops at 1 % of votes, as published)"
    )?;
    writeln!(
        out,
        "and of 007 with the share that suits these cases best ({:.0} %)\n",
        share * 100.0
    )?;
    writeln!(
        out,
        "{:<32} {:>5}   {:<19}   {:<19}   {:<19}",
        "fabric, paths, faults", "cases", "joint likelihood", "007, 1 %", "007, best"
    )?;
    let mut row = |name: &str, scores: &Scores| -> io::Result<()> {
        write!(out, "{name:<32} {:>5}", scores[0].cases)?;
        for s in scores {
            if s.faults == 0.0 {
                write!(out, "   {:<19}", format!("{} named", s.named))?;
                continue;
            }
            write!(
                out,
                "   {:.3}  {:.3}  {:.3}",
                s.precision(),
                s.recall(),
                s.f1()
            )?;
        }
        writeln!(out)
    };
    for (kind, scores) in by_kind {
        row(
            &format!("{:?}, {:?}, {:?}", kind.shape, kind.paths, kind.faults),
            scores,
        )?;
    }
    row("all", all)?;
    writeln!(
        out,
        "\n10,000 flows over 1,024 links: {:.0} us with known paths, {:.0} us with unknown ones (16 ways each)",
        speed[0], speed[1]
    )
}

fn write_json(out: &mut impl Write, all: &Scores, share: f64, speed: &[f64; 2]) -> io::Result<()> {
    let [ours, votes, best] = all;
    writeln!(out, "{{")?;
    writeln!(out, "  \"localisation_cases\": {},", ours.cases)?;
    for (name, score) in [("", ours), ("_007", votes), ("_007_best_share", best)] {
        writeln!(
            out,
            "  \"localisation_precision{name}\": {:.4},",
            score.precision()
        )?;
        writeln!(
            out,
            "  \"localisation_recall{name}\": {:.4},",
            score.recall()
        )?;
        writeln!(out, "  \"localisation_f1{name}\": {:.4},", score.f1())?;
    }
    writeln!(out, "  \"localisation_007_best_share\": {share},")?;
    writeln!(
        out,
        "  \"localisation_us_10000_flows_known_paths\": {:.0},",
        speed[0]
    )?;
    writeln!(
        out,
        "  \"localisation_us_10000_flows_unknown_paths\": {:.0}",
        speed[1]
    )?;
    writeln!(out, "}}")
}
