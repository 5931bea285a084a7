//! `weir replay`: what a recording says, and whether it can be rebuilt.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_common::config::ConfigError;
use weir_common::program::EXIT_USAGE;
use weir_controller::record::report::{Changes, Report, Told};
use weir_controller::record::{Ask, ReplayError, replay, when::When};
use weir_controller::topology_file::TopologyError;
use weir_controller::{config, topology_file};

/// As diff(1) has it: 0 and 1 are answers, 2 is trouble.
const INCOMPLETE: u8 = 2;
/// Differences printed; `--json` has more.
const DIFFERENCES_SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the flight recorder (`record` in controller.yaml; its newest run), or one segment of it.
    path: PathBuf,
    /// Begin here: seconds since the controller's start, or UTC as in 2026-01-31T08:15:00Z.
    #[arg(long)]
    from: Option<When>,
    /// End here.
    #[arg(long)]
    to: Option<When>,
    /// What if this controller.yaml had stood in the place of the recorded one? Its `topology` is not read.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The same with a topology file.
    #[arg(long)]
    topology: Option<PathBuf>,
}

/// Prints what was rebuilt. 0: the same as was done; 1: something else; 2: parts are missing or damaged,
/// or nothing could be compared.
pub fn run(args: &Args, json: bool) -> anyhow::Result<(String, ExitCode)> {
    let config = args.config.as_deref().map(config::read).transpose()?;
    let plan = args
        .topology
        .as_deref()
        .map(topology_file::read)
        .transpose()?;
    let ask = Ask {
        from: args.from,
        to: args.to,
        config: config.map(|(_, config)| config.core),
        plan,
    };
    let bar = progress_bar(&args.path);
    let report = replay(&args.path, &ask, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    let code = match (report.is_same(), report.is_whole()) {
        (false, _) => 1,
        (true, false) => INCOMPLETE,
        (true, true) => 0,
    };
    let text = if json {
        let mut value = serde_json::to_value(&report).context("the report as JSON")?;
        value["same"] = report.is_same().into();
        value["whole"] = report.is_whole().into();
        serde_json::to_string_pretty(&value)?
    } else {
        shown(&report)
    };
    Ok((text, ExitCode::from(code)))
}

/// The code to end with after an error: 64 for a bad configuration, 2 where there is nothing to replay.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    if error.is::<ConfigError>() || error.is::<TopologyError>() {
        ExitCode::from(EXIT_USAGE)
    } else if error.is::<ReplayError>() {
        ExitCode::from(INCOMPLETE)
    } else {
        ExitCode::FAILURE
    }
}

/// Only for a person who waits: indicatif draws to standard error, and nothing if that is no terminal.
fn progress_bar(path: &Path) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    );
    ProgressBar::new(0)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(path.display().to_string())
}

fn shown(report: &Report) -> String {
    let mut out = format!(
        "recorded by weir-controller {}, started {}\n",
        report.program, report.started
    );
    if report.other_runs > 0 {
        out += &format!(
            "{} earlier runs are there: give a segment of theirs to replay it\n",
            report.other_runs
        );
    }
    if !report.same_defaults {
        out += "this version understands the recorded configuration differently (other defaults): differences may come from that\n";
    }
    for Told { at_s, text } in &report.story {
        out += &format!("{at_s:12.3}  {text}\n");
    }
    if report.story_left_out > 0 {
        out += &format!("... and {} more\n", report.story_left_out);
    }
    for cut in &report.cuts {
        let what = if cut.torn { "torn tail" } else { "DAMAGED" };
        out += &format!(
            "{what}: {}: record {} at byte {}: {}\n",
            cut.path.display(),
            cut.record,
            cut.offset,
            cut.what
        );
    }
    for restart in &report.restarts {
        out += &format!("afresh from {:.3} s: {}\n", restart.at_s, restart.why);
    }
    for difference in report.differences.iter().take(DIFFERENCES_SHOWN) {
        out += &format!("DIFFERENT at {:.6} s\n", difference.at_s);
        for (sign, lines) in [('-', &difference.recorded), ('+', &difference.rebuilt)] {
            for line in lines {
                out += &format!("  {sign} {line}\n");
            }
        }
    }
    for at_s in &report.memories_different_s {
        out += &format!(
            "the state at the beginning of the segment at {at_s:.3} s is not the recorded one: a later decision may differ\n"
        );
    }
    if let Some(what_if) = &report.what_if {
        out += &changes("verdicts", &what_if.verdicts);
        out += &changes("commands", &what_if.commands);
    }
    let result = match (report.is_same(), report.compared) {
        (false, n) => format!(
            "{} of the events that led to {n} actions were answered DIFFERENTLY",
            report.differences_total
        ),
        (true, 0) => "no action was left to compare: a replay from the middle is compared after a warm-up of 120 s".into(),
        (true, n) => format!("all {n} actions are the same as were done"),
    };
    out += &format!(
        "{} records of {} segments, {:.3} to {:.3} s: {result}\n",
        report.records, report.segments, report.first_s, report.last_s
    );
    out
}

fn changes(what: &str, changes: &Changes) -> String {
    let mut out = format!("what if: {} {what} in both\n", changes.both);
    for (sign, list) in [('-', &changes.only_recorded), ('+', &changes.only_asked)] {
        for Told { at_s, text } in list {
            out += &format!("  {sign} {at_s:.3} {text}\n");
        }
    }
    out
}
