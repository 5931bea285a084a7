//! Reads segments.

use super::ReplayError;
use super::format::{EXTENSION, Fault, Header, Kind, MAGIC, Record, read_record};
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A place from which on a segment cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    pub path: PathBuf,
    /// Of the record that cannot be read, in bytes from the start of the file.
    pub offset: u64,
    /// Its number in the file.
    pub record: u64,
    pub what: String,
    /// The last bytes are missing, as after a crash; else it is damaged.
    pub torn: bool,
}

/// A segment whose beginning could be read.
#[derive(Debug, Clone)]
pub struct Segment {
    pub path: PathBuf,
    pub header: Header,
    /// Time of its beginning.
    pub at: Duration,
    pub bytes: u64,
    pub config_text: String,
    pub topology_text: String,
}

/// The segments of one start of the controller, in order, and those whose beginning cannot be read.
#[derive(Debug, Default)]
pub struct Run {
    pub segments: Vec<Segment>,
    pub cuts: Vec<Cut>,
    /// Earlier starts in the same directory.
    pub other_runs: usize,
}

/// Finds the newest run in a directory, or takes one segment.
///
/// # Errors
/// [`ReplayError`]: nothing there can be read.
pub fn open(path: &Path) -> Result<Run, ReplayError> {
    let io = |source| ReplayError::Io {
        path: path.to_owned(),
        source,
    };
    let not = |what: &str| ReplayError::NotARecording {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let mut run = Run::default();
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        match open_segment(path).map_err(io)? {
            Ok(segment) => run.segments.push(segment),
            Err(cut) => return Err(not(&cut.what)),
        }
        return Ok(run);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut runs = Vec::new();
    // Names begin with the run's number.
    for path in &paths {
        let name = path.file_name().map(|n| n.to_string_lossy());
        let of = name.and_then(|n| Some(n.split_once('-')?.0.to_owned()));
        if runs.last() != Some(&of) {
            runs.push(of);
            run = Run::default();
        }
        match open_segment(path).map_err(io)? {
            Ok(segment) => run.segments.push(segment),
            Err(cut) => run.cuts.push(cut),
        }
    }
    run.other_runs = runs.len().saturating_sub(1);
    match run.cuts.first() {
        _ if !run.segments.is_empty() => Ok(run),
        Some(cut) => Err(not(&cut.what)),
        None => Err(not(&format!("no file of it ends with .{EXTENSION}"))),
    }
}

fn open_segment(path: &Path) -> std::io::Result<Result<Segment, Cut>> {
    let bytes = std::fs::metadata(path)?.len();
    let mut reader = Reader::open(path)?;
    Ok(reader
        .beginning()
        .map(|(at, header, [config, topology])| Segment {
            path: path.to_owned(),
            header,
            at,
            bytes,
            config_text: config,
            topology_text: topology,
        }))
}

/// Reads one segment.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    from: BufReader<File>,
    /// Bytes and records read.
    pub offset: u64,
    record: u64,
}

impl Reader {
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Reader> {
        Ok(Reader {
            path: path.to_owned(),
            from: BufReader::with_capacity(1 << 20, File::open(path)?),
            offset: 0,
            record: 0,
        })
    }

    /// What is ahead of the nodes: time, header, configuration and topology.
    ///
    /// # Errors
    /// [`Cut`]: it is no segment, or its beginning is damaged.
    pub fn beginning(&mut self) -> Result<(Duration, Header, [String; 2]), Cut> {
        let mut magic = [0; MAGIC.len()];
        let read = self.from.read_exact(&mut magic);
        if read.is_err() || magic != *MAGIC {
            return Err(self.cut("its first bytes are not WEIRREC2".into(), false));
        }
        self.offset = 8;
        let first = self.expect(Kind::Header)?;
        let header: Header = serde_json::from_slice(&first.payload)
            .map_err(|error| self.cut(format!("its header: {error}"), false))?;
        let mut text = |kind| {
            let record = self.expect(kind)?;
            String::from_utf8(record.payload)
                .map_err(|_| self.cut("its configuration is not UTF-8".into(), false))
        };
        let texts = [text(Kind::Configuration)?, text(Kind::Topology)?];
        Ok((first.at, header, texts))
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// [`Cut`]: the rest of the segment is lost.
    pub fn next_record(&mut self) -> Result<Option<Record>, Cut> {
        let record = read_record(&mut self.from).map_err(|fault| match fault {
            Fault::Torn => self.cut("it ends in the middle of a record".into(), true),
            Fault::Damaged(what) => self.cut(what, false),
        })?;
        if let Some(record) = &record {
            // Frame, time, kind and length of the name, as `format` has them.
            let length = 19 + record.node.len() + record.payload.len();
            self.offset += u64::try_from(length).unwrap_or(0);
            self.record += 1;
        }
        Ok(record)
    }

    /// A place that cannot be understood although its bytes are whole.
    #[must_use]
    pub fn cut(&self, what: String, torn: bool) -> Cut {
        Cut {
            path: self.path.clone(),
            offset: self.offset,
            record: self.record,
            what,
            torn,
        }
    }

    fn expect(&mut self, kind: Kind) -> Result<Record, Cut> {
        match self.next_record()? {
            Some(record) if record.kind == kind => Ok(record),
            Some(record) => Err(self.cut(
                format!("{:?} stands where {kind:?} should", record.kind),
                false,
            )),
            None => Err(self.cut("it ends at its beginning".into(), true)),
        }
    }
}
