//! The child and the three threads that speak with it. None of them is waited for: a child that
//! hangs in the kernel keeps its pipes open.

use super::Shared;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use weir_verbs_protocol::LINE_MAX;

/// Of what the child says on standard error, the last line is kept up to this length.
const COMPLAINT_MAX: u64 = 400;

#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    /// Wakes the thread that writes orders; closing it closes the child's standard input.
    orders: SyncSender<()>,
    complaint: Arc<Mutex<String>>,
    pub started: Instant,
}

impl Child {
    /// Starts the program. Its lines go into `shared`, whose orders go to it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, exclude: &[String], shared: &Arc<Shared>) -> io::Result<Child> {
        let mut command = Command::new(program);
        command.arg("serve");
        for name in exclude {
            command.args(["--device-exclude", name]);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (
            process.stdin.take(),
            process.stdout.take(),
            process.stderr.take(),
        ) else {
            return Err(io::Error::other("no pipes"));
        };
        let (orders, wake) = sync_channel(1);
        let complaint = Arc::default();
        let child = Child {
            process,
            orders,
            complaint: Arc::clone(&complaint),
            started: Instant::now(),
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (its, life) = (Arc::clone(shared), shared.new_life());
        thread("verbs-out").spawn(move || read_lines(stdout, &its, life))?;
        thread("verbs-err").spawn(move || read_complaints(stderr, &complaint))?;
        let its = Arc::clone(shared);
        thread("verbs-in").spawn(move || write_orders(stdin, &wake, &its))?;
        child.new_orders();
        Ok(child)
    }

    /// There are new orders, or orders for a new child.
    pub fn new_orders(&self) {
        // A full queue says the same.
        self.orders.try_send(()).ok();
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// The last line of its standard error.
    pub fn complaint(&self) -> String {
        self.complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn kill(&mut self) {
        if let Err(error) = self.process.kill() {
            tracing::debug!("weir-verbs cannot be killed: {error}");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // Nothing is left of it if it ends at once; else init takes it.
        self.process.try_wait().ok();
    }
}

fn read_lines(stdout: impl Read, shared: &Shared, life: u64) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_MAX as u64;
        match (&mut reader).take(limit).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(line) => shared.heard(line, life),
            Err(_) => shared.malformed(),
        }
    }
}

fn read_complaints(stderr: impl Read, last: &Mutex<String>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader)
            .take(COMPLAINT_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            tracing::debug!("weir-verbs: {text}");
            *last.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }
}

fn write_orders(mut stdin: ChildStdin, wake: &Receiver<()>, shared: &Shared) {
    // Ends when the child is dropped, or has ended.
    for () in wake {
        let Some(orders) = shared.orders() else {
            continue;
        };
        let Ok(mut line) = serde_json::to_vec(&orders) else {
            continue;
        };
        line.push(b'\n');
        if stdin.write_all(&line).is_err() {
            return;
        }
    }
}
