//! `nvidia-smi topo -m`: the matrix of paths between GPUs and NICs.
//!
//! The header is underlined with ANSI escapes on a terminal, and its columns differ: NICs may have
//! their own names, be `NICn` with a legend below, or be absent; affinities come and go.

use crate::affinity::{Affinity, Device, Path};
use crate::text::{Cursor, Error, lines};
use std::collections::BTreeMap;

/// Reads the matrix. Rows that are cut off are completed from the columns: it is symmetric.
///
/// # Errors
/// [`Error`] if there is no header, or a row does not fit it.
pub fn parse(text: &str) -> Result<Affinity, Error> {
    let mut header: Vec<String> = Vec::new();
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut legend = false;
    for cursor in lines(text) {
        let line = without_escapes(cursor.line());
        if header.is_empty() {
            if is_header(&line) {
                let cells = cells(line.trim_start());
                header = cells.into_iter().filter(|c| !c.is_empty()).collect();
            }
            continue;
        }
        if line.starts_with("Legend") || line.trim_start().starts_with("NIC Legend") {
            legend = true;
        } else if legend {
            // `  NIC0: mlx5_0`; the words of the other legend have an equals sign.
            if let Some((nic, name)) = line.split_once(": ")
                && header.iter().any(|h| h == nic.trim())
            {
                names.insert(nic.trim().to_owned(), name.trim().to_owned());
            }
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            let mut row = cells(&line);
            let label = row.remove(0);
            check(&cursor, &header, &label, &row)?;
            rows.insert(label, row);
        }
    }
    if header.is_empty() {
        return Err(Error::new(
            1,
            1,
            "a header line that begins with GPU0",
            text.trim(),
        ));
    }
    Ok(affinity(&header, &rows, &names))
}

/// Whether a line names the columns.
pub(crate) fn is_header(line: &str) -> bool {
    let line = without_escapes(line);
    line.starts_with([' ', '\t']) && line.trim_start().starts_with("GPU0")
}

/// Takes out `ESC [ ... letter`, also where a pager has spelt the escape as `^[`.
fn without_escapes(line: &str) -> String {
    let line = line.replace("^[[", "\u{1b}[");
    let mut pieces = line.split('\u{1b}');
    let mut plain = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        let letter = piece.find(|c: char| c.is_ascii_alphabetic());
        plain.push_str(letter.and_then(|n| piece.get(n + 1..)).unwrap_or(""));
    }
    plain
}

/// Cells are apart by tabs, or by two blanks where a copy lost the tabs.
fn cells(line: &str) -> Vec<String> {
    let own = |c: &str| c.trim().to_owned();
    if line.contains('\t') {
        line.split('\t').map(own).collect()
    } else {
        line.split("  ")
            .map(own)
            .filter(|c| !c.is_empty())
            .collect()
    }
}

/// Columns of the matrix come first; those of affinity have words with a blank.
fn matrix(header: &[String]) -> usize {
    header.iter().take_while(|h| !h.contains(' ')).count()
}

fn check(cursor: &Cursor<'_>, header: &[String], label: &str, row: &[String]) -> Result<(), Error> {
    let width = matrix(header);
    if !header.iter().take(width).any(|h| h == label) {
        return Err(cursor.error(&format!("a row of {}", header[..width].join(", "))));
    }
    if row.len() < width {
        return Err(cursor.error(&format!("{width} cells after {label}")));
    }
    for cell in &row[..width] {
        if cell != "X" && cell != "N/A" && Path::parse(cell).is_none() {
            let mut here = cursor.clone();
            here.until(cell, "").ok();
            return Err(here.error(&format!(
                "X, PIX, PXB, PHB, NODE, SYS or NV and a number instead of {cell:?}"
            )));
        }
    }
    Ok(())
}

fn affinity(
    header: &[String],
    rows: &BTreeMap<String, Vec<String>>,
    names: &BTreeMap<String, String>,
) -> Affinity {
    let width = matrix(header);
    let is_gpu = |h: &&String| h.starts_with("GPU");
    let gpus: Vec<&String> = header[..width].iter().filter(is_gpu).collect();
    let nics: Vec<&String> = header[..width].iter().filter(|h| !is_gpu(h)).collect();
    let column: BTreeMap<&String, usize> = header.iter().zip(0..).collect();
    let cell = |row: &String, at: &String| Path::parse(rows.get(row)?.get(*column.get(at)?)?);
    let path = |a: &String, b: &String| cell(a, b).or_else(|| cell(b, a));
    let matrix = |others: &[&String]| -> Vec<Vec<Option<Path>>> {
        gpus.iter()
            .map(|g| others.iter().map(|o| path(g, o)).collect())
            .collect()
    };
    let device = |label: &&String| {
        let after = rows.get(*label).map(|r| &r[width.min(r.len())..]);
        let extra = |heading: &str| {
            let at = header[width..].iter().position(|h| h == heading)?;
            let value = after?.get(at)?;
            (!value.is_empty() && value != "N/A").then(|| value.clone())
        };
        let nvlinks = gpus.iter().filter_map(|g| match path(label, g) {
            Some(Path::NvLink(count)) => Some(count),
            _ => None,
        });
        Device {
            name: names.get(*label).unwrap_or(label).clone(),
            numa: extra("NUMA Affinity").and_then(|n| n.parse().ok()),
            cpus: extra("CPU Affinity"),
            nvlinks: nvlinks.max(),
            ..Device::default()
        }
    };
    Affinity {
        gpu_nic: matrix(&nics),
        gpu_gpu: matrix(&gpus),
        gpus: gpus.iter().map(device).collect(),
        nics: nics.iter().map(device).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\t\u{1b}[4mGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\u{1b}[0m\nGPU0\t X \tNV12\tPIX\tSYS\t0-3\t0\nGPU1\tNV12\t X \tSYS\tPXB\t4-7\t1\n\nLegend:\n\n  X    = Self\n\nNIC Legend:\n\n  NIC0: mlx5_0\n  NIC1: mlx5_7\n";

    #[test]
    fn escapes_legend_and_affinities() {
        let affinity = parse(TEXT).unwrap();
        let near = affinity.nearest();
        assert_eq!(
            (near[0].nics.as_slice(), near[0].path),
            (["mlx5_0"].as_slice(), Path::Pix)
        );
        assert_eq!(
            (near[1].nics.as_slice(), near[1].path),
            (["mlx5_7"].as_slice(), Path::Pxb)
        );
        assert_eq!(affinity.gpus[1].cpus.as_deref(), Some("4-7"));
        assert_eq!(affinity.gpus[1].numa, Some(1));
        assert_eq!(affinity.gpus[0].nvlinks, Some(12));
        assert!(affinity.findings().is_empty());
    }

    #[test]
    fn tabs_may_be_lost_and_rows_be_missing() {
        let text = "        GPU0    mlx5_0  CPU Affinity\nmlx5_0  SYS     X\n";
        let affinity = parse(text).unwrap();
        assert_eq!(affinity.gpu_nic, [[Some(Path::Sys)]]);
        assert_eq!(affinity.findings().len(), 1);
    }

    #[test]
    fn a_cell_that_is_no_path_is_named_with_its_line() {
        let error = parse("\tGPU0\tGPU1\nGPU0\tX\tNVY\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.expected.contains("NVY"), "{error}");
        assert_eq!(
            parse("\tGPU0\tGPU1\nGPU0\tX\n").unwrap_err().expected,
            "2 cells after GPU0"
        );
    }
}
