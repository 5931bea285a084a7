//! What the tests stand on: namespaces, small C programs, polling with a deadline.
#![expect(
    unsafe_code,
    reason = "entering a network namespace is a system call of one thread"
)]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::bpf::{Bpf, BpfOptions, BpfSample, BpfStart};

/// What is waited for takes milliseconds; this is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// Says that a test was skipped, and why; fails where nothing may be skipped.
pub fn skipped(why: &str) {
    let required = std::env::var_os("WEIR_REQUIRE_LAB").is_some();
    assert!(!required, "not skipped: {why}");
    println!("skipped: {why}");
}

/// True for root; otherwise says that the test is skipped.
pub fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if !root {
        skipped("not root");
    }
    root
}

/// Runs a command to its end; false if it cannot be run or fails.
pub fn succeeds(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    Command::new(program)
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What a command prints.
pub fn output(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    String::from_utf8(output.expect("it runs").stdout).expect("text")
}

/// Loads with the first of the sources up, or says why the test is skipped.
pub fn load(options: &BpfOptions) -> Option<Bpf> {
    let BpfStart { bpf, sources } = Bpf::load(options);
    if let Some(down) = sources.iter().find(|source| !source.up) {
        let reason = down.reason.as_deref().unwrap_or_default();
        assert!(!reason.contains("verifier refused"), "{reason}");
        skipped(&format!("{}: {reason}", down.name));
        return None;
    }
    // Up by a stand-in is not what is tested.
    let lacking = sources.iter().find_map(|source| source.reason.clone());
    assert_eq!(lacking, None);
    bpf
}

/// Polls until `found` gives something; panics with `what` after the deadline.
pub fn until<T>(
    bpf: &mut Bpf,
    what: &str,
    mut found: impl FnMut(&BpfSample, &Bpf) -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        let sample = bpf.poll(Instant::now());
        if let Some(found) = found(&sample, bpf) {
            return found;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "{what}: not seen; last poll: {sample:?}"
        );
        thread::sleep(PAUSE);
    }
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

fn unique() -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", std::process::id())
}

/// Two namespaces joined by a veth pair: 10.77.0.1 in the first, 10.77.0.2 in the second.
pub struct Pair {
    pub first: String,
    pub second: String,
}

impl Pair {
    /// `None` (and a word) where namespaces cannot be made.
    pub fn make() -> Option<Self> {
        let id = unique();
        let pair = Self {
            first: format!("weir-a-{id}"),
            second: format!("weir-b-{id}"),
        };
        let (first, second) = (&pair.first, &pair.second);
        let made = [
            format!("ip netns add {first}"),
            format!("ip netns add {second}"),
            format!("ip link add port netns {first} type veth peer name port netns {second}"),
            format!("ip -n {first} addr add 10.77.0.1/24 dev port"),
            format!("ip -n {second} addr add 10.77.0.2/24 dev port"),
            format!("ip -n {first} link set port up"),
            format!("ip -n {second} link set port up"),
        ]
        .iter()
        .all(|line| succeeds(line));
        if !made {
            skipped("network namespaces cannot be made");
            return None;
        }
        Some(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.first, &self.second] {
            succeeds(&format!("ip netns del {name}"));
        }
    }
}

/// Runs `work` on a thread of a namespace; sockets and programs made there stay there.
pub fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{netns}")).expect("made by this test");
            // SAFETY: changes the namespace of this thread only, which ends here.
            let status = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(status, 0, "setns to {netns}");
            work()
        });
        worker
            .join()
            .expect("the worker's own panic is shown above")
    })
}

/// A C program with a library of its own, in a directory that goes with it.
pub struct Built {
    pub directory: tempfile::TempDir,
    pub program: PathBuf,
}

/// Compiles `library` to a shared library of that file name and `program`
/// against it; `None` (and a word) without a C compiler.
pub fn build(file_name: &str, library: &str, program: &str) -> Option<Built> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::write(at("library.c"), library).expect("written");
    fs::write(at("program.c"), program).expect("written");
    let shared = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([at(file_name), at("library.c")])
        .status();
    let linked = Command::new("cc")
        .args(["-O1", "-Wl,-rpath,$ORIGIN", "-o"])
        .args([at("program"), at("program.c"), at(file_name)])
        .status();
    if !shared.is_ok_and(|status| status.success()) || !linked.is_ok_and(|status| status.success())
    {
        skipped("no C compiler that works");
        return None;
    }
    let program = at("program");
    Some(Built { directory, program })
}

/// A running program that does something for each line it is given and then answers with one.
pub struct Running {
    pub child: Child,
    answers: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(program: &Path, netns: Option<&str>) -> Self {
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns]).arg(program);
                command
            }
            None => Command::new(program),
        };
        Self::spawn(&mut command)
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, answers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line and waits for the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        answer.trim().to_owned()
    }

    /// Sends a line.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("the program reads");
        stdin.flush().expect("the program reads");
    }

    /// Closes its input and waits for its end.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it ends").success());
    }
}
