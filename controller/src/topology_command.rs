//! `weir-controller topology`: other tools' files in, a topology file or findings out.

use crate::topology_file::{self, TopologyError};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_import::collection::{Collection, Picture};
use weir_import::fabric::{Fabric, Role};
use weir_import::finding::{Finding, Severity};
use weir_import::format::{Document, Format, read};
use weir_import::graph::{Graph, Tier};
use weir_import::{rails, text};

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source} (read as {format})")]
    Syntax {
        path: PathBuf,
        format: &'static str,
        source: text::Error,
    },
    #[error("{path} is in no format that is known here; give one with --format: {}", known().join(", "))]
    Unknown { path: PathBuf },
    #[error("no file tells of a topology; `weir-controller topology check` reads what they hold")]
    NoTopology,
    #[error(transparent)]
    Own(#[from] TopologyError),
}

#[derive(Debug, Subcommand)]
pub enum TopologyCmd {
    /// Print the topology file that stands for what other tools saw: ibnetdiscover, iblinkinfo,
    /// lldpctl, SONiC databases.
    Import(Files),
    /// Say what is odd: cabling, rails, downgraded links, saturated counters, PFC storms, NIC and GPU
    /// affinity. Ends with 0 (nothing), 1 (warnings) or 2 (critical).
    Check(Files),
}

#[derive(Debug, Args)]
pub struct Files {
    /// Files of any of the formats; those of several tools or nodes add up. Without a name of its own
    /// in it, a file's node is called after the file.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Format of all files.
    #[arg(long, default_value = "auto", value_parser = format_named)]
    format: Wanted,
    /// As JSON, with tiers, ECMP groups, rails and findings.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Auto,
    /// The controller's own topology file.
    Own,
    Other(Format),
}

fn known() -> Vec<&'static str> {
    let others = Format::ALL.iter().map(|f| f.name());
    ["auto", "weir"].into_iter().chain(others).collect()
}

fn format_named(name: &str) -> Result<Wanted, String> {
    match name {
        "auto" => Ok(Wanted::Auto),
        "weir" => Ok(Wanted::Own),
        _ => Format::parse(name)
            .map(Wanted::Other)
            .ok_or_else(|| format!("give one of {}", known().join(", "))),
    }
}

/// Performs the command.
///
/// # Errors
/// [`ImportError`], or standard output is closed.
pub fn run(command: &TopologyCmd) -> anyhow::Result<ExitCode> {
    match command {
        TopologyCmd::Import(files) => {
            let picture = collect(files)?;
            let Some(fabric) = &picture.fabric else {
                return Err(ImportError::NoTopology.into());
            };
            if files.json {
                print(&json(&picture, fabric)?)?;
            } else {
                print(&format!(
                    "{}{}",
                    heading(files, fabric, &picture.findings),
                    fabric.yaml()
                ))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        TopologyCmd::Check(files) => {
            let picture = collect(files)?;
            if files.json {
                let fabric = picture.fabric.clone().unwrap_or_default();
                print(&json(&picture, &fabric)?)?;
            } else {
                print(&said(&picture.findings))?;
            }
            let worst = picture.findings.iter().map(|f| f.severity).max();
            Ok(match worst {
                None | Some(Severity::Note) => ExitCode::SUCCESS,
                Some(Severity::Warning) => ExitCode::from(1),
                Some(Severity::Critical) => ExitCode::from(2),
            })
        }
    }
}

fn collect(files: &Files) -> Result<Picture, ImportError> {
    let mut collection = Collection::default();
    for path in &files.files {
        let bytes = std::fs::read(path).map_err(|source| ImportError::Read {
            path: path.clone(),
            source,
        })?;
        // Descriptions of nodes are whatever somebody typed once.
        let text = String::from_utf8_lossy(&bytes);
        let format = match files.format {
            Wanted::Other(format) => format,
            Wanted::Own => {
                collection.merge(own(&text, path)?);
                continue;
            }
            Wanted::Auto => match Format::detect(&text) {
                Some(format) => format,
                None if text.lines().any(|l| l.starts_with("nodes:")) => {
                    collection.merge(own(&text, path)?);
                    continue;
                }
                None => return Err(ImportError::Unknown { path: path.clone() }),
            },
        };
        let document = read(&text, format).map_err(|source| ImportError::Syntax {
            path: path.clone(),
            format: format.name(),
            source,
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        // The databases of one switch lie in one directory.
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
        let switch = folder.to_string_lossy();
        let switch = if switch.is_empty() { "switch" } else { &switch };
        collection.add(document, &name, switch);
    }
    Ok(collection.finish())
}

fn own(text: &str, path: &Path) -> Result<Fabric, ImportError> {
    Ok(Fabric::of_plan(&topology_file::parse(text, path)?))
}

fn heading(files: &Files, fabric: &Fabric, findings: &[Finding]) -> String {
    let graph = Graph::new(fabric);
    let from: Vec<String> = files
        .files
        .iter()
        .map(|f| f.display().to_string())
        .collect();
    let tier = |t: Tier| format!("{} {}", graph.count(t), t.name());
    let notes = if findings.is_empty() {
        String::new()
    } else {
        format!(
            "# {} findings: weir-controller topology check\n",
            findings.len()
        )
    };
    format!(
        "# Imported from {}: {} hosts, {} switches ({}, {}, {}), {} links; {} SHARP aggregation nodes left out.\n{notes}",
        from.join(", ").replace(['\n', '\r'], " "),
        fabric.count(Role::Host),
        fabric.count(Role::Switch),
        tier(Tier::Leaf),
        tier(Tier::Spine),
        tier(Tier::Core),
        fabric.links.len(),
        fabric.aggregation_nodes,
    )
}

fn said(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let severity = match f.severity {
            Severity::Note => "note    ",
            Severity::Warning => "warning ",
            Severity::Critical => "critical",
        };
        format!("{severity}  {}\n", f.text)
    };
    if findings.is_empty() {
        return "nothing odd\n".to_owned();
    }
    findings.iter().map(line).collect()
}

fn json(picture: &Picture, fabric: &Fabric) -> anyhow::Result<String> {
    let graph = Graph::new(fabric);
    let tiers = fabric.nodes.keys().enumerate();
    let tiers = tiers.map(|(n, name)| (name.as_str(), graph.tier(n)));
    let mut nearest = BTreeMap::new();
    for other in &picture.others {
        if let Document::Affinity(affinity) = &other.document {
            nearest.insert(other.name.as_str(), affinity.nearest());
        }
    }
    let value = serde_json::json!({
        "nodes": fabric.nodes,
        "links": fabric.links,
        "tiers": tiers.collect::<BTreeMap<_, _>>(),
        "groups": graph.groups(),
        "rails": rails::rails(fabric, &graph),
        "switches": picture.switches,
        "documents": picture.others,
        "nearest_nics": nearest,
        "aggregation_nodes": fabric.aggregation_nodes,
        "ports_down": fabric.ports_down,
        "findings": picture.findings,
    });
    let mut text = serde_json::to_string_pretty(&value)?;
    text.push('\n');
    Ok(text)
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to standard output")
}
