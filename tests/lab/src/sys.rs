//! The few system calls that the lab needs and the standard library lacks.
//!
//! Namespaces are entered with `setns(CLONE_NEWNET)` and nothing else. `ip netns exec` would also
//! remount /sys, which hides the cgroup tree from an agent that wants to attach BPF programs to it.
#![expect(
    unsafe_code,
    reason = "setns, kill and sigaction have no safe form in std; every use is in this file"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};

/// Where iproute2 keeps the names of network namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// Set by the handlers of [`stop_on_signals`], read by [`stop_requested`].
static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);

/// A signal that the lab sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end in good order.
    Terminate,
    /// SIGKILL: end at once.
    Kill,
}

impl Signal {
    const fn number(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
        }
    }
}

fn netns_path(namespace: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(namespace)
}

fn open_netns(namespace: &str) -> Result<OwnedFd> {
    let path = netns_path(namespace);
    let file = File::open(&path).with_context(|| format!("open namespace {}", path.display()))?;
    Ok(file.into())
}

fn set_netns(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and setns touches no memory of ours.
    let rc = unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Runs `body` on a thread of its own inside the named network namespace.
///
/// Sockets opened and children spawned by `body` belong to the namespace; the caller stays where it is.
///
/// # Errors
/// When the namespace cannot be entered, and whatever `body` returns.
pub fn in_netns<T: Send>(namespace: &str, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let fd = open_netns(namespace)?;
    thread::scope(|scope| {
        scope
            .spawn(move || {
                set_netns(&fd).with_context(|| format!("enter namespace {namespace}"))?;
                body()
            })
            .join()
            .map_err(|_| anyhow!("the thread inside namespace {namespace} panicked"))?
    })
}

/// Returns a command that will run inside the named network namespace, in a process group of its own
/// (so that Ctrl-C on the terminal reaches the lab only, which then ends its children in order).
///
/// # Errors
/// When there is no such namespace.
pub fn command_in(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let fd = open_netns(namespace)?;
    let mut command = Command::new(program);
    command.process_group(0);
    // SAFETY: the closure makes one system call on a descriptor it owns and allocates nothing, which is
    // allowed between fork and exec.
    unsafe {
        command.pre_exec(move || set_netns(&fd));
    }
    Ok(command)
}

/// Gives a process the priority of a system daemon (nice -10), as its unit would: the ranks of the
/// lab's job spin while they wait and would starve it on two cores.
///
/// # Errors
/// When the kernel refuses.
pub fn prefer(pid: u32) -> Result<()> {
    // SAFETY: takes plain numbers.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, -10) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
        .with_context(|| format!("cannot set the priority of process {pid}"))
}

/// Sends `signal` to one process. A process that is already gone is no error.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn signal_process(pid: u32, signal: Signal) -> Result<()> {
    kill(i64::from(pid), signal)
}

/// Sends `signal` to the process group that `leader` leads. A group that is already gone is no error.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn signal_group(leader: u32, signal: Signal) -> Result<()> {
    kill(-i64::from(leader), signal)
}

fn kill(target: i64, signal: Signal) -> Result<()> {
    // 0, 1, -1: ourselves, init, everybody. None of them can be meant.
    if (-1..=1).contains(&target) {
        bail!("refusing to signal pid {target}");
    }
    let target = libc::pid_t::try_from(target).context("pid out of range")?;
    // SAFETY: kill takes two integers.
    if unsafe { libc::kill(target, signal.number()) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) {
        return Ok(());
    }
    Err(error).with_context(|| format!("signal process {target}"))
}

/// Returns true if this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

extern "C" fn note_stop(_signal: libc::c_int) {
    STOP_REQUESTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set a flag, so that the lab can be torn down.
///
/// # Errors
/// When the kernel refuses a handler.
pub fn stop_on_signals() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: an all-zero sigaction is valid; the handler only stores to an atomic, which is
        // async-signal-safe; the pointers live through the call.
        let rc = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note_stop as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if rc != 0 {
            return Err(io::Error::last_os_error()).context("install a signal handler");
        }
    }
    Ok(())
}

/// Returns true once a signal asked this process to stop.
#[must_use]
pub fn stop_requested() -> bool {
    STOP_REQUESTED.load(Ordering::SeqCst)
}

/// Returns the processes inside each of the namespaces, in one walk over /proc.
///
/// A namespace that does not exist is left out. Processes that end during the walk are too.
///
/// # Errors
/// When /proc cannot be read.
pub fn pids_in(namespaces: &[String]) -> Result<BTreeMap<String, Vec<u32>>> {
    let wanted: BTreeMap<(u64, u64), &String> = namespaces
        .iter()
        .filter_map(|name| Some((identity(&netns_path(name))?, name)))
        .collect();
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else {
            continue;
        };
        if let Some(name) =
            identity(&entry.path().join("ns/net")).and_then(|identity| wanted.get(&identity))
        {
            found.entry((*name).clone()).or_default().push(pid);
        }
    }
    Ok(found)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Returns when the process was started, in clock ticks since boot; `None` if there is no such process.
///
/// With the pid it names one process for good, also after the number was given to another.
#[must_use]
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses: fields are counted from its end. starttime is
    // field 22 of proc(5), the 20th after the name.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}
