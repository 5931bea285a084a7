//! `weir-results`: keeps raw figures with what they were made by, and writes the document that they give.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use weir_common::interrupt;
use weir_results::{Made, PARTS, Raw, Results};

/// Gathers what was measured.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Run a tool and keep its figures as DOCS/results/NAME.json, with the version and the arguments that made them
    Keep {
        /// Part of the document: diagnosis, healthy, localisation, traces, reference, tuning, sim, cost
        name: String,
        /// Commit of the sources
        #[arg(long, value_name = "COMMIT")]
        version: String,
        /// Folder of results.md
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
        /// Program and arguments; it prints JSON. One that ends with status 130 was interrupted: what it printed is kept and marked
        #[arg(last = true, required = true)]
        tool: Vec<String>,
    },
    /// Write DOCS/results.json and DOCS/results.md from DOCS/results/*.json
    Write {
        /// Folder of results.md
        #[arg(default_value = "docs")]
        docs: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        What::Keep {
            name,
            version,
            docs,
            tool,
        } => keep(&name, version, &docs, &tool),
        What::Write { docs } => write(&docs).map(|()| ExitCode::SUCCESS),
    }
}

fn keep(name: &str, version: String, docs: &Path, tool: &[String]) -> anyhow::Result<ExitCode> {
    let names: Vec<&str> = PARTS.iter().map(|p| p.0).collect();
    if !names.contains(&name) {
        bail!(
            "{name} is no part of the document: there are {}",
            names.join(", ")
        );
    }
    let Some((program, arguments)) = tool.split_first() else {
        bail!("no tool to run");
    };
    // Ctrl-C is the tool's: it prints what there is, and that is to be kept.
    interrupt::flag().context("taking Ctrl-C")?;
    let done = Command::new(program)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {program}"))?;
    let interrupted = done.status.code() == Some(interrupt::STATUS.into());
    if !done.status.success() && !interrupted {
        bail!("{program}: {}; {name} stays as it was", done.status);
    }
    let figures = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("{program} printed no JSON; {name} stays as it was"))?;
    let short = Path::new(program)
        .file_name()
        .map_or(program.into(), |n| n.to_string_lossy());
    let command = [&[short.into_owned()], arguments].concat().join(" ");
    let raw = Raw {
        made: Made {
            version,
            command,
            processor: processor(),
            interrupted,
        },
        figures,
    };
    let folder = docs.join("results");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    put(
        &folder.join(format!("{name}.json")),
        &(serde_json::to_string_pretty(&raw)? + "\n"),
    )?;
    Ok(if interrupted {
        ExitCode::from(interrupt::STATUS)
    } else {
        ExitCode::SUCCESS
    })
}

fn write(docs: &Path) -> anyhow::Result<()> {
    let mut texts = BTreeMap::new();
    for (name, ..) in PARTS {
        let path = docs.join("results").join(format!("{name}.json"));
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            texts.insert((*name).to_owned(), text);
        }
    }
    let results = Results::gather(&texts)?;
    let json = serde_json::to_string_pretty(&results)? + "\n";
    put(&docs.join("results.json"), &json)?;
    put(&docs.join("results.md"), &results.markdown())
}

/// Writes a file as a whole or not at all.
fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Model of the processor (cpuinfo of proc(5)); empty where nobody tells.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("model name"));
    line.map_or("", |l| l.trim_start_matches([' ', '\t', ':']))
        .to_owned()
}
