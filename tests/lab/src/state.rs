//! What labs exist on this machine, so that leftovers of a lab that was killed can be removed.
//!
//! Each lab has a file `/run/weir-lab/NAME.json`, written before the first namespace is made and removed after
//! the last is gone. All changes that two labs could make at once happen under a lock on
//! `/run/weir-lab/lock`: the files themselves, /etc/netns, and the list of congestion controls that a
//! namespace may choose from (which only the initial namespace can extend).

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sys;

const STATE_DIR: &str = "/run/weir-lab";
const ALLOWED_CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// One lab on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabState {
    /// Name of the lab.
    pub name: String,
    /// The process that built it and will remove it.
    pub owner_pid: u32,
    /// Its start, so that a reused pid is not taken for it.
    pub owner_start_ticks: u64,
    /// True once the owner left it running on purpose: then only its name removes it.
    pub kept: bool,
    /// Every namespace of the lab.
    pub namespaces: Vec<String>,
    /// Directory of logs, configs and the job's program.
    pub temp_dir: PathBuf,
    /// The list of congestion controls before any living lab extended it; `None` if none had to.
    pub congestion_before: Option<String>,
}

impl LabState {
    /// Returns true if nobody will remove this lab: its owner is gone and did not mean to leave it.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        !self.kept && sys::process_start_ticks(self.owner_pid) != Some(self.owner_start_ticks)
    }

    fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Writes the state file, whole or not at all.
    ///
    /// # Errors
    /// When /run cannot be written.
    pub fn write(&self) -> Result<()> {
        let path = self.path();
        let staged = path.with_extension("new");
        fs::write(&staged, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&staged, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(STATE_DIR).join(format!("{name}.json"))
}

/// A name that no other lab has: pid, time, and a count within the process.
#[must_use]
pub fn unique_name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let count = MADE.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    format!("{}x{:03x}{count}", process::id(), (nanos >> 10) & 0xfff)
}

/// Held while shared state of the machine is changed; released on drop.
pub struct Lock {
    _file: File,
}

/// Waits for the lock.
///
/// # Errors
/// When /run cannot be written.
pub fn lock() -> Result<Lock> {
    fs::create_dir_all(STATE_DIR).with_context(|| format!("create {STATE_DIR}"))?;
    let path = Path::new(STATE_DIR).join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(Lock { _file: file })
}

/// Reads the state of the lab called `name`; `None` if there is none.
///
/// # Errors
/// When its file cannot be read or understood.
pub fn read(name: &str) -> Result<Option<LabState>> {
    let path = path_of(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))?,
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Reads the state of every lab on this machine, by name.
///
/// # Errors
/// When a file cannot be read or understood.
pub fn read_all() -> Result<Vec<LabState>> {
    let mut labs = Vec::new();
    let entries = match fs::read_dir(STATE_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(labs),
        Err(error) => return Err(error).with_context(|| format!("read {STATE_DIR}")),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "json")
            && let Some(name) = path.file_stem().and_then(|s| s.to_str())
        {
            labs.extend(read(name)?);
        }
    }
    labs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(labs)
}

/// Makes cubic choosable inside namespaces. Returns what the list must be set back to, if anything.
///
/// # Errors
/// When the list cannot be read or extended.
pub fn allow_cubic(_lock: &Lock) -> Result<Option<String>> {
    let now = fs::read_to_string(ALLOWED_CONGESTION_CONTROL)
        .with_context(|| format!("read {ALLOWED_CONGESTION_CONTROL}"))?;
    let now = now.trim().to_owned();
    if now.split_whitespace().any(|c| c == "cubic") {
        return Ok(read_all()?.into_iter().find_map(|l| l.congestion_before));
    }
    fs::write(ALLOWED_CONGESTION_CONTROL, format!("{now} cubic")).with_context(|| {
        format!("allow cubic in {ALLOWED_CONGESTION_CONTROL} (is tcp_cubic in this kernel?)")
    })?;
    Ok(Some(now))
}

/// Removes the state file of a lab that is gone, and sets the machine back if it was the last.
///
/// # Errors
/// When /run or the list of congestion controls cannot be written.
pub fn forget(lab: &LabState, _lock: &Lock) -> Result<()> {
    if let Err(error) = fs::remove_file(lab.path())
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove {}", lab.path().display()));
    }
    if read_all()?.is_empty()
        && let Some(before) = &lab.congestion_before
    {
        fs::write(ALLOWED_CONGESTION_CONTROL, before)
            .with_context(|| format!("restore {ALLOWED_CONGESTION_CONTROL}"))?;
    }
    Ok(())
}
