//! How often silent loss is found, by joint likelihood and by 007's votes, on the same labelled cases.
//!
//! `cargo run --release -p weir-controller-core --example localisation -- [--json] [--cases N]`

mod cases;
mod score;

use cases::{Faults, Kind, Paths, Rng, Shape};
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

/// Cases are drawn again so often, with replacement, for the range of an F1 (bootstrap; Efron 1979).
const DRAWS: usize = 1000;

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
    let mut by_kind: BTreeMap<Kind, Vec<Scores>> = BTreeMap::new();
    for (n, kind) in (0..).zip(Kind::all()) {
        let of_kind = by_kind.entry(kind).or_default();
        for seed in 0..cases {
            let case = cases::case(kind, JUDGED_SEEDS + n * cases + seed);
            let mut scores = Scores::default();
            let ours = score::named(&case.seen.explain(&Model::default()));
            scores[0].add(&case, &ours);
            for (score, share) in scores[1..].iter_mut().zip([vote::SHARE_MIN, share]) {
                score.add(&case, &vote::blame(&case.seen, share).into_iter().collect());
            }
            of_kind.push(scores);
        }
    }
    let every: Vec<&Scores> = by_kind.values().flatten().collect();
    let faulty = by_kind.iter().filter(|(k, _)| k.faults != Faults::None);
    let totals = Totals {
        all: sum(every.iter().copied()),
        with_a_fault: sum(faulty.flat_map(|(_, all)| all)),
        f1: [0, 1, 2].map(|method| f1_range(&every, method)),
        share,
        by_kind: by_kind.iter().map(|(k, all)| (*k, sum(all))).collect(),
    };
    let speed = [true, false].map(speed);
    let mut out = io::stdout().lock();
    if json {
        write_json(&mut out, &totals, &speed)
    } else {
        write_table(&mut out, &totals, &speed)
    }
}

/// What all cases together show.
struct Totals {
    by_kind: BTreeMap<Kind, Scores>,
    all: Scores,
    /// Without those in which nothing is to be found, where a method that always names something can only be wrong.
    with_a_fault: Scores,
    /// By method: 95 % of redrawn F1 lie between.
    f1: [(f64, f64); 3],
    /// Of votes, at which 007 does best.
    share: f64,
}

/// A kind of case in the field's words.
fn name(kind: Kind) -> String {
    let shape = match kind.shape {
        Shape::LeafSpine => "leaf-spine",
        Shape::ThreeTier => "three-tier",
    };
    let paths = match kind.paths {
        Paths::Known => "paths known",
        Paths::Mixed => "half of the paths known",
        Paths::Unknown => "paths unknown",
    };
    let faults = match kind.faults {
        Faults::None => "no fault",
        Faults::OneLink => "one link",
        Faults::TwoLinks => "two links",
        Faults::Device => "one switch",
    };
    format!("{shape}, {paths}, {faults}")
}

fn sum<'a>(all: impl IntoIterator<Item = &'a Scores>) -> Scores {
    let mut sums = Scores::default();
    for scores in all {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *sum = sum.sum(score);
        }
    }
    sums
}

fn f1_range(cases: &[&Scores], method: usize) -> (f64, f64) {
    let mut rng = Rng::new(1);
    let mut draw = || {
        let mut score = Score::default();
        for _ in cases {
            score = score.sum(&cases[rng.below(cases.len())][method]);
        }
        score.f1()
    };
    let mut drawn: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    drawn.sort_by(f64::total_cmp);
    (drawn[DRAWS / 40], drawn[DRAWS - 1 - DRAWS / 40])
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

fn write_table(out: &mut impl Write, totals: &Totals, speed: &[f64; 2]) -> io::Result<()> {
    writeln!(
        out,
        "precision, recall, F1 of the joint likelihood, of 007 (stops at 1 % of votes, as published)"
    )?;
    writeln!(
        out,
        "and of 007 with the share that suits these cases best ({:.0} %)\n",
        totals.share * 100.0
    )?;
    writeln!(
        out,
        "{:<46} {:>5}   {:<19}   {:<19}   {:<19}",
        "fabric, paths, faults", "cases", "joint likelihood", "007, 1 %", "007, best"
    )?;
    let mut row = |name: &str, scores: &Scores| -> io::Result<()> {
        write!(out, "{name:<46} {:>5}", scores[0].cases)?;
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
    for (kind, scores) in &totals.by_kind {
        row(&name(*kind), scores)?;
    }
    row("with a fault", &totals.with_a_fault)?;
    row("all", &totals.all)?;
    writeln!(
        out,
        "\n10,000 flows over 1,024 links: {:.0} us with known paths, {:.0} us with unknown ones (16 ways each)",
        speed[0], speed[1]
    )
}

/// Keys by method, then counts by kind and method: named, right, faults, found.
fn write_json(out: &mut impl Write, totals: &Totals, speed: &[f64; 2]) -> io::Result<()> {
    writeln!(
        out,
        "{{\n  \"localisation_cases\": {},",
        totals.all[0].cases
    )?;
    let methods = ["", "_007", "_007_best_share"];
    for (n, name) in methods.into_iter().enumerate() {
        let (score, fault, f1) = (&totals.all[n], &totals.with_a_fault[n], totals.f1[n]);
        for (key, value) in [
            ("precision", score.precision()),
            ("recall", score.recall()),
            ("f1", score.f1()),
            ("f1_ci95_low", f1.0),
            ("f1_ci95_high", f1.1),
            ("precision_with_a_fault", fault.precision()),
            ("f1_with_a_fault", fault.f1()),
        ] {
            writeln!(out, "  \"localisation_{key}{name}\": {value:.4},")?;
        }
    }
    for (key, value) in [
        ("007_best_share", totals.share),
        ("us_10000_flows_known_paths", speed[0].round()),
        ("us_10000_flows_unknown_paths", speed[1].round()),
    ] {
        writeln!(out, "  \"localisation_{key}\": {value},")?;
    }
    let counts = |s: &Score| {
        format!(
            "{{\"named\": {:.4}, \"right\": {:.4}, \"faults\": {:.4}, \"found\": {:.4}}}",
            s.named, s.right, s.faults, s.found
        )
    };
    let row = |(name, scores): (String, &Scores)| {
        let methods: Vec<String> = scores.iter().map(counts).collect();
        format!(
            "    {{\"kind\": \"{name}\", \"cases\": {}, \"methods\": [{}]}}",
            scores[0].cases,
            methods.join(", ")
        )
    };
    let kinds = totals.by_kind.iter();
    let kinds = kinds.map(|(k, s)| (name(*k), s));
    let sums = [
        ("all with a fault", &totals.with_a_fault),
        ("all", &totals.all),
    ];
    let rows = kinds.chain(sums.map(|(name, s)| (name.to_owned(), s)));
    let rows: Vec<String> = rows.map(row).collect();
    writeln!(out, "  \"kinds\": [\n{}\n  ]\n}}", rows.join(",\n"))
}
