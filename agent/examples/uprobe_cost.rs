//! Measures what the probes add to a collective call.
//!
//! A real MPI program with one rank calls `MPI_Allreduce` of one element in a
//! loop, which costs some hundred nanoseconds and never touches a network, first
//! without and then with the probes attached, in turns. The figure is the
//! difference of the medians. Prints one JSON object; needs root and `mpicc`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use weir_agent::bpf::{Bpf, BpfOptions};

/// Calls per measurement, few enough for the ring buffer to hold their records.
const CALLS: u32 = 10_000;
const TURNS: usize = 15;
const ATTACH_MAX: Duration = Duration::from_secs(20);

const PROGRAM: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <time.h>
int main(int argc, char **argv) {
    char line[64];
    int in = 1, out, calls;
    MPI_Init(&argc, &argv);
    setlinebuf(stdout);
    puts("ready");
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%d", &calls) == 1) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int i = 0; i < calls; i++)
            MPI_Allreduce(&in, &out, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%lld\n", (b.tv_sec - a.tv_sec) * 1000000000LL + (b.tv_nsec - a.tv_nsec));
    }
    MPI_Finalize();
}
"#;

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("loop.c");
    let program = directory.path().join("loop");
    std::fs::write(&source, PROGRAM)?;
    let compiled = Command::new("mpicc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .status();
    ensure!(
        compiled.context("mpicc is not installed")?.success(),
        "mpicc failed"
    );
    let mut job = Job::start(
        Command::new("mpirun")
            .args(["--allow-run-as-root", "-np", "1"])
            .arg(&program),
    )?;
    job.measure()?;
    let mut without = Vec::new();
    let mut with = Vec::new();
    for _ in 0..TURNS {
        without.push(job.measure()?);
        let mut bpf = attach()?;
        job.measure()?;
        bpf.poll(Instant::now());
        with.push(job.measure()?);
        let sample = bpf.poll(Instant::now());
        let seen = sample.collectives.len();
        ensure!(
            u32::try_from(seen)? == CALLS && sample.lost_records == 0,
            "{seen} of {CALLS} calls recorded, {} lost",
            sample.lost_records
        );
    }
    job.finish()?;
    let (without, with) = (median(without), median(with));
    let json = serde_json::json!({
        "uprobe_pair_ns_per_call": (with - without).round(),
        "call_ns_without": without.round(),
        "call_ns_with": with.round(),
        "calls": CALLS,
        "turns": TURNS,
    });
    writeln!(std::io::stdout(), "{json}")?;
    Ok(())
}

/// Loads the collective family and waits until the library has its probes.
fn attach() -> Result<Bpf> {
    let options = BpfOptions {
        collective: true,
        ..BpfOptions::default()
    };
    let start = Bpf::load(&options);
    let Some(mut bpf) = start.bpf else {
        bail!("{:?}", start.sources);
    };
    let begin = Instant::now();
    loop {
        bpf.poll(Instant::now());
        if bpf.libraries_attached() > 0 {
            return Ok(bpf);
        }
        ensure!(begin.elapsed() < ATTACH_MAX, "the library was not found");
        thread::sleep(Duration::from_millis(50));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The program under test.
struct Job {
    child: Child,
    input: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Job {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("mpirun")?;
        let input = child.stdin.take().context("piped")?;
        let answers = BufReader::new(child.stdout.take().context("piped")?);
        let mut job = Self {
            child,
            input,
            answers,
        };
        ensure!(job.answer()? == "ready", "the program did not start");
        Ok(job)
    }

    /// Nanoseconds per call.
    fn measure(&mut self) -> Result<f64> {
        writeln!(self.input, "{CALLS}")?;
        self.input.flush()?;
        let total: f64 = self.answer()?.parse()?;
        Ok(total / f64::from(CALLS))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn finish(mut self) -> Result<()> {
        drop(self.input);
        ensure!(self.child.wait()?.success(), "the program failed");
        Ok(())
    }
}
