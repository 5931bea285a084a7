//! A real all-reduce job: Debian's Open MPI over TCP, one rank in each host's namespace.
//!
//! `mpirun` runs in the first host and reaches the others through a launch agent that enters their
//! namespaces with `ip netns exec` (which is what gives each its own hosts file) and `unshare -u` (which gives
//! each its own host name). The algorithm is forced to the ring, so the flows are those of
//! [`crate::plan::ring_pairs`]. Every process carries `WEIR_LAB_JOB` in its environment; that is how
//! [`Job::stop`] finds them, wherever they were started from.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    fabric::Fabric,
    shell,
    sys::{self, Signal},
};

const PROGRAM_SOURCE: &str = include_str!("allreduce.c");
/// A job that was told to end finishes the iteration it is in; then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);
/// Largest message that Open MPI sends without asking the receiver first.
const EAGER_BYTES: u32 = 1_048_576;
/// A day at two iterations a second; older ones are no use to anybody.
const ITERATIONS_MAX: usize = 200_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Hosts in ring order; the first runs rank 0.
    pub order: Vec<String>,
    /// Bytes reduced per iteration.
    pub bytes: u32,
    /// Ends after that many; `None` for no such limit.
    pub iterations: Option<u32>,
    /// Ends after the iteration in which this time has passed; `None` for no such limit.
    pub time_limit: Option<Duration>,
    /// Pause before each all-reduce, in the place of the training step.
    pub compute_ms: u32,
}

/// One all-reduce, as rank 0 saw it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Iteration {
    /// Count from 0.
    pub i: u64,
    /// When it ended, seconds since the epoch.
    #[serde(rename = "t")]
    pub ended_at_s: f64,
    /// How long it took.
    #[serde(rename = "s")]
    pub seconds: f64,
}

/// A running job; dropping it ends it.
#[derive(Debug)]
pub struct Job {
    spec: JobSpec,
    id: String,
    namespaces: Vec<String>,
    mpirun: Child,
    output: Mutex<Output>,
    log: PathBuf,
    stopped: bool,
}

/// What rank 0 has printed. A file and not a pipe, so that a job can outlive who started it.
#[derive(Debug)]
struct Output {
    file: fs::File,
    /// The beginning of a line whose end is not there yet.
    rest: String,
    iterations: Vec<Iteration>,
}

impl Output {
    fn read(&mut self) -> std::io::Result<()> {
        self.file.read_to_string(&mut self.rest)?;
        while let Some(end) = self.rest.find('\n') {
            // Open MPI may print a notice of its own between ours.
            if let Ok(iteration) = serde_json::from_str(&self.rest[..end])
                && self.iterations.len() < ITERATIONS_MAX
            {
                self.iterations.push(iteration);
            }
            self.rest.drain(..=end);
        }
        Ok(())
    }
}

impl Job {
    /// Compiles the program if this lab has not yet, and starts it.
    ///
    /// # Errors
    /// When mpicc or mpirun fails to start.
    pub fn start(fabric: &Fabric, spec: JobSpec) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        ensure!(spec.order.len() >= 2, "a ring needs two hosts");
        let id = format!(
            "{}-{}",
            fabric.name(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let dir = fabric.temp_dir();
        let program = compile(dir)?;
        let agent = write_launch_agent(fabric, &id)?;
        let log = dir.join(format!("job-{id}.log"));
        let errors = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let printed = dir.join(format!("job-{id}.out"));
        let stdout =
            fs::File::create(&printed).with_context(|| format!("create {}", printed.display()))?;
        let file =
            fs::File::open(&printed).with_context(|| format!("open {}", printed.display()))?;
        let first = fabric.namespace(&spec.order[0]);
        // ip netns exec gives mpirun the hosts file of the namespace, unshare -u its host name.
        let mpirun = sys::command_in(&first, "ip")?
            .args(["netns", "exec", &first, "unshare", "-u", "bash", "-c"])
            .arg(r#"hostname "$0"; exec mpirun "$@""#)
            .arg(&spec.order[0])
            .args(mpirun_args(&spec, &agent, dir, &program))
            .env("PATH", shell::search_path())
            .envs(job_environment(&id))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(errors)
            .spawn()
            .context("start mpirun")?;
        Ok(Self {
            namespaces: spec.order.iter().map(|h| fabric.namespace(h)).collect(),
            spec,
            id,
            mpirun,
            output: Mutex::new(Output {
                file,
                rest: String::new(),
                iterations: Vec::new(),
            }),
            log,
            stopped: false,
        })
    }

    /// The iterations so far.
    #[must_use]
    pub fn iterations(&self) -> Vec<Iteration> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = output.read() {
            crate::output::warn(&format!("the job's output: {error}"));
        }
        output.iterations.clone()
    }

    /// The flows of the ring.
    #[must_use]
    pub fn pairs(&self) -> Vec<(String, String)> {
        crate::plan::ring_pairs(&self.spec.order)
    }

    /// Bus bandwidth of an iteration: what each rank sent, over the time.
    #[must_use]
    pub fn busbw_mbps(&self, seconds: f64) -> f64 {
        busbw_mbps(self.spec.order.len(), self.spec.bytes, seconds)
    }

    /// Returns true while mpirun runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.mpirun.try_wait(), Ok(None))
    }

    /// What Open MPI had to say, for an error message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Waits until `count` iterations are there.
    ///
    /// # Errors
    /// When the job ends before, the time is up, or the user wants to stop.
    pub fn wait_for_iterations(
        &mut self,
        count: usize,
        within: Duration,
    ) -> Result<Vec<Iteration>> {
        let deadline = Instant::now() + within;
        loop {
            let ended = !self.is_running();
            let iterations = self.iterations();
            if iterations.len() >= count {
                return Ok(iterations);
            }
            if ended || Instant::now() > deadline {
                bail!(
                    "{} of {count} iterations, then {}:\n{}",
                    iterations.len(),
                    if ended {
                        "the job ended"
                    } else {
                        "the time was up"
                    },
                    self.log_tail()
                );
            }
            ensure!(!sys::stop_requested(), "stopped by a signal");
            thread::sleep(POLL);
        }
    }

    /// Ends the job and waits for its processes.
    ///
    /// # Errors
    /// When a process cannot be signalled.
    pub fn stop(&mut self) -> Result<()> {
        // To the ranks, not to mpirun: they end after the iteration they are in, and mpirun after them.
        let deadline = Instant::now() + STOP_DEADLINE;
        for pid in self.processes()? {
            if is_named(pid, "allreduce") {
                sys::signal_process(pid, Signal::Terminate)?;
            }
        }
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        sys::signal_group(self.mpirun.id(), Signal::Kill)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            let left = self.processes()?;
            if left.is_empty() {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "processes {left:?} of the job do not end"
            );
            for pid in left {
                sys::signal_process(pid, Signal::Kill)?;
            }
            self.mpirun.try_wait().context("wait for mpirun")?;
            thread::sleep(POLL);
        }
        self.mpirun.wait().context("wait for mpirun")?;
        self.stopped = true;
        Ok(())
    }

    /// Leaves the job running when this value is dropped; it goes with the fabric.
    pub fn keep(mut self) {
        self.stopped = true;
    }

    fn processes(&self) -> Result<Vec<u32>> {
        let mark = format!("WEIR_LAB_JOB={}", self.id);
        let pids = sys::pids_in(&self.namespaces)?.into_values().flatten();
        Ok(pids.filter(|pid| has_environment(*pid, &mark)).collect())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.stopped
            && let Err(error) = self.stop()
        {
            crate::output::warn(&format!("the job did not end: {error:#}"));
        }
    }
}

/// Bus bandwidth of an all-reduce as nccl-tests define it, in Mbit/s: 2(n-1)/n times the bytes over the time.
#[must_use]
pub fn busbw_mbps(ranks: usize, bytes: u32, seconds: f64) -> f64 {
    let ranks = f64::from(u32::try_from(ranks).unwrap_or(u32::MAX));
    2.0 * (ranks - 1.0) / ranks * f64::from(bytes) * 8.0 / seconds / 1e6
}

/// Median of the iterations' seconds; `None` if there are none.
#[must_use]
pub fn median_seconds(iterations: &[Iteration]) -> Option<f64> {
    let mut seconds: Vec<f64> = iterations.iter().map(|i| i.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

fn mpirun_args(spec: &JobSpec, agent: &Path, dir: &Path, program: &Path) -> Vec<String> {
    let limit_s = spec.time_limit.map_or(0.0, |d| d.as_secs_f64());
    let mca = [
        ("plm_rsh_agent", agent.display().to_string()),
        ("plm_rsh_no_tree_spawn", "1".into()),
        ("btl", "tcp,self".into()),
        // The fabric only: the management network is not shaped.
        ("btl_tcp_if_include", "10.0.0.0/8".into()),
        ("oob_tcp_if_include", "10.0.0.0/8".into()),
        // Above the chunk of a ring step: it is sent at once, without a handshake whose answer would wait
        // in the very queues that are being measured (8 ranks, 2 MB: 1.84x against 1.67x).
        ("btl_tcp_eager_limit", EAGER_BYTES.to_string()),
        ("btl_tcp_max_send_size", EAGER_BYTES.to_string()),
        // More ranks than cores: a rank that spins while it waits keeps another from sending.
        ("mpi_yield_when_idle", "1".into()),
        ("coll_tuned_use_dynamic_rules", "1".into()),
        // 4 is the ring.
        ("coll_tuned_allreduce_algorithm", "4".into()),
        // Session directories go where the lab removes them.
        ("orte_tmpdir_base", dir.display().to_string()),
    ];
    let mut args: Vec<String> = ["-np".into(), spec.order.len().to_string()].into();
    args.extend(["--host".into(), spec.order.join(",")]);
    args.extend(["--map-by", "node", "--bind-to", "none"].map(String::from));
    for (key, value) in mca {
        args.extend(["--mca".into(), key.into(), value]);
    }
    args.extend([
        program.display().to_string(),
        spec.bytes.to_string(),
        spec.iterations.unwrap_or(0).to_string(),
        limit_s.to_string(),
        spec.compute_ms.to_string(),
    ]);
    args
}

fn job_environment(id: &str) -> [(&'static str, String); 4] {
    [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1".into()),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1".into()),
        ("LC_ALL", "C".into()),
        ("WEIR_LAB_JOB", id.into()),
    ]
}

/// Writes the program that Open MPI calls in the place of ssh: HOST COMMAND...
fn write_launch_agent(fabric: &Fabric, id: &str) -> Result<PathBuf> {
    let path = fabric.temp_dir().join(format!("launch-{id}"));
    let text = format!(
        "#!/bin/bash\nhost=$1; shift\nexport WEIR_LAB_JOB={id} LC_ALL=C\n\
         exec ip netns exec {}$host unshare -u bash -c \"hostname $host; $*\"\n",
        fabric.namespace("")
    );
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn compile(dir: &Path) -> Result<PathBuf> {
    let program = dir.join("allreduce");
    if program.exists() {
        return Ok(program);
    }
    let source = dir.join("allreduce.c");
    fs::write(&source, PROGRAM_SOURCE).with_context(|| format!("write {}", source.display()))?;
    let (to, from) = (program.display().to_string(), source.display().to_string());
    shell::run("mpicc", &["-O2", "-Wall", "-o", &to, &from]).context("compile the job")?;
    Ok(program)
}

fn has_environment(pid: u32, entry: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|bytes| bytes.split(|b| *b == 0).any(|e| e == entry.as_bytes()))
}

fn is_named(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_bandwidth_is_that_of_nccl_tests() {
        // 8 ranks, 4 MB in 0.7 s: 1.75 * 32 Mbit / 0.7 s.
        assert!((busbw_mbps(8, 4_000_000, 0.7) - 80.0).abs() < 1e-9);
    }

    #[test]
    fn a_line_of_the_program_is_understood() {
        let line = r#"{"i":3,"t":1700000000.250000,"s":0.512000}"#;
        let iteration: Iteration = serde_json::from_str(line).unwrap();
        assert_eq!((iteration.i, iteration.seconds), (3, 0.512));
    }
}
