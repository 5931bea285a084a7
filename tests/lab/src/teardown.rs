//! Removes a lab: processes, namespaces, files, and what it changed outside of them.
//!
//! Works from the state file alone, so that it also clears up after a lab that was killed.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    shell,
    state::{self, LabState},
    sys::{self, Signal},
};

/// SIGKILL takes effect within milliseconds; a process stuck in the kernel for longer is reported.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Removes everything that belongs to `lab`. What is gone already is no error.
///
/// # Errors
/// When something is left; the state file then stays, so that it can be tried again.
pub fn remove(lab: &LabState) -> Result<()> {
    end_processes(&lab.namespaces)?;
    let lines: Vec<String> = lab
        .namespaces
        .iter()
        .filter(|ns| Path::new(sys::NETNS_DIR).join(ns).exists())
        .map(|ns| format!("netns del {ns}\n"))
        .collect();
    shell::batch("ip", &lines.concat())?;
    let lock = state::lock()?;
    for namespace in &lab.namespaces {
        remove_dir(&Path::new("/etc/netns").join(namespace))?;
    }
    // Only goes if it is empty; then nobody else uses it.
    fs::remove_dir("/etc/netns").ok();
    remove_dir(&lab.temp_dir)?;
    state::forget(lab, &lock)
}

/// Removes every lab whose owner is gone; returns their names.
///
/// # Errors
/// When one of them cannot be wholly removed.
pub fn remove_stale() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for lab in state::read_all()?.iter().filter(|lab| lab.is_stale()) {
        remove(lab).with_context(|| format!("remove the leftovers of lab {}", lab.name))?;
        removed.push(lab.name.clone());
    }
    Ok(removed)
}

/// Ends the processes inside the namespaces. They are the lab's by construction: nothing else knows
/// the names.
fn end_processes(namespaces: &[String]) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let pids: Vec<u32> = sys::pids_in(namespaces)?.into_values().flatten().collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes {pids:?} did not end on SIGKILL");
        }
        for pid in pids {
            sys::signal_process(pid, Signal::Kill)?;
        }
        thread::sleep(POLL);
    }
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
