//! TCP traffic of our own, for the cases that an all-reduce does not make: incast and oversubscription.
//!
//! Each host runs one process (`weir-lab traffic sink|send`), so that an agent sees it as it would see
//! any other program's. Everything is bounded in time by the processes themselves.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    fabric::Fabric,
    placement::{Pair, Placement},
    plan::{address_of, leaf_of},
    sys::{self, Signal},
};

/// Port that sinks listen on.
pub const SINK_PORT: u16 = 5_201;
/// A write of this size keeps a 200 Mbit/s port busy for 2.6 ms.
const CHUNK_BYTES: usize = 64 * 1024;
/// How often a blocked call looks at the clock.
const TICK: Duration = Duration::from_millis(200);
/// The sink may start after the sender; the kernel answers a refused connection at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_RETRY: Duration = Duration::from_millis(20);
/// Senders of one sink: the fabric has at most 81 hosts.
const CONNECTIONS_MAX: usize = 128;

/// Accepts connections on `port` for `length` and reads all that comes; returns the bytes.
///
/// # Errors
/// When the port is taken.
pub fn sink(port: u16, length: Duration) -> Result<u64> {
    let end = Instant::now() + length;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("listen on port {port}"))?;
    listener.set_nonblocking(true).context("listener")?;
    let mut readers = Vec::new();
    while Instant::now() < end && !sys::stop_requested() {
        match listener.accept() {
            Ok((stream, _)) if readers.len() < CONNECTIONS_MAX => {
                readers.push(thread::spawn(move || drain(stream, end)));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(CONNECT_RETRY),
            Err(error) => return Err(error).context("accept"),
        }
    }
    let mut total = 0;
    for reader in readers {
        total += reader.join().map_err(|_| anyhow!("a reader panicked"))??;
    }
    Ok(total)
}

fn drain(mut stream: TcpStream, end: Instant) -> Result<u64> {
    stream.set_nonblocking(false).context("stream")?;
    stream.set_read_timeout(Some(TICK)).context("stream")?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut total = 0;
    while Instant::now() < end && !sys::stop_requested() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => total += n as u64,
            Err(error) if is_patience(&error) => {}
            // The sender's end of time came first.
            Err(_) => break,
        }
    }
    Ok(total)
}

/// Sends to `to` as fast as it goes for `length`, over `flows` connections; returns the bytes.
///
/// # Errors
/// When the sink cannot be reached.
pub fn send(to: SocketAddr, length: Duration, flows: usize) -> Result<u64> {
    let end = Instant::now() + length;
    let senders: Vec<_> = (0..flows.clamp(1, CONNECTIONS_MAX))
        .map(|_| thread::spawn(move || pour(to, end)))
        .collect();
    let mut total = 0;
    for sender in senders {
        total += sender.join().map_err(|_| anyhow!("a sender panicked"))??;
    }
    Ok(total)
}

fn pour(to: SocketAddr, end: Instant) -> Result<u64> {
    let mut stream = connect(to)?;
    stream.set_write_timeout(Some(TICK)).context("stream")?;
    let chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    while Instant::now() < end && !sys::stop_requested() {
        match stream.write(&chunk) {
            Ok(n) => total += n as u64,
            Err(error) if is_patience(&error) => {}
            // The sink's end of time came first.
            Err(_) => break,
        }
    }
    Ok(total)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    loop {
        match TcpStream::connect_timeout(&to, CONNECT_DEADLINE) {
            Ok(stream) => return Ok(stream),
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline =>
            {
                thread::sleep(CONNECT_RETRY);
            }
            Err(error) => return Err(error).with_context(|| format!("connect to {to}")),
        }
    }
}

fn is_patience(error: &std::io::Error) -> bool {
    [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

/// Running traffic; dropping it ends it.
#[derive(Debug)]
pub struct Traffic {
    pairs: Vec<Pair>,
    children: Vec<Child>,
}

impl Traffic {
    /// `senders` all send to `receiver`: its leaf's port to it is the only full one.
    ///
    /// Senders below the other leaf are spread over the uplinks first, so that the fabric itself is calm.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn incast(
        fabric: &Fabric,
        bin: &Path,
        senders: &[String],
        receiver: &str,
        length: Duration,
    ) -> Result<Self> {
        let pairs: Vec<Pair> = senders
            .iter()
            .map(|s| (s.clone(), receiver.to_owned()))
            .collect();
        Self::start(fabric, bin, pairs, length)
    }

    /// Each host below the first leaf sends to one below the second, as fast as it goes, with the flows spread
    /// evenly: every uplink is full and there is nowhere to move a flow to.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn oversubscription(fabric: &Fabric, bin: &Path, length: Duration) -> Result<Self> {
        let hosts = fabric.spec().hosts();
        let (below_first, below_second): (Vec<_>, Vec<_>) = (
            hosts
                .iter()
                .filter(|h| leaf_of(h) == "l1")
                .cloned()
                .collect(),
            hosts
                .iter()
                .filter(|h| leaf_of(h) == "l2")
                .cloned()
                .collect(),
        );
        Self::start(
            fabric,
            bin,
            below_first.into_iter().zip(below_second).collect(),
            length,
        )
    }

    /// Sends from the first to the second of each pair for `length`, with the flows spread evenly over the
    /// uplinks. `bin` is the weir-lab program.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(fabric: &Fabric, bin: &Path, pairs: Vec<Pair>, length: Duration) -> Result<Self> {
        fabric.place(Placement::Balanced, &pairs)?;
        let mut traffic = Self {
            pairs,
            children: Vec::new(),
        };
        let seconds = length.as_secs_f64().to_string();
        let mut receivers: Vec<&String> = traffic.pairs.iter().map(|(_, dst)| dst).collect();
        receivers.sort();
        receivers.dedup();
        let port = SINK_PORT.to_string();
        let sinks = receivers.iter().map(|host| {
            let args = ["sink", "--port", &port, "--seconds", &seconds];
            spawn(fabric, bin, host, &args.map(str::to_owned))
        });
        let senders = traffic.pairs.iter().map(|(src, dst)| {
            let to = format!("{}:{SINK_PORT}", address_of(dst));
            let args = ["send", "--to", &to, "--seconds", &seconds];
            spawn(fabric, bin, src, &args.map(str::to_owned))
        });
        // On an error part-way the drop of `children` must still end the others.
        let started: Vec<Result<Child>> = sinks.chain(senders).collect();
        let mut failure = None;
        for child in started {
            match child {
                Ok(child) => traffic.children.push(child),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(traffic), Err)
    }

    /// The flows, as source and destination host.
    #[must_use]
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Waits until every process has ended by itself.
    ///
    /// # Errors
    /// When one of them failed.
    pub fn wait(mut self) -> Result<()> {
        let mut failed = 0;
        for child in &mut self.children {
            failed += usize::from(!child.wait().context("wait for traffic")?.success());
        }
        self.children.clear();
        ensure!(failed == 0, "{failed} of the traffic processes failed");
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Gone already is as good.
            sys::signal_group(child.id(), Signal::Kill).ok();
            child.wait().ok();
        }
    }
}

fn spawn(fabric: &Fabric, bin: &Path, host: &str, args: &[String]) -> Result<Child> {
    sys::command_in(&fabric.namespace(host), bin)?
        .arg("traffic")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("start {} in {host}", bin.display()))
}

/// Finds the weir-lab program: this one, or the one beside the test that runs now.
///
/// # Errors
/// When it was not built.
pub fn find_bin() -> Result<PathBuf> {
    let current = std::env::current_exe().context("own path")?;
    let mut dirs = current.ancestors().skip(1).take(2);
    dirs.find_map(|dir| Some(dir.join("weir-lab")).filter(|p| p.is_file()))
        .with_context(|| {
            format!(
                "no weir-lab near {}: cargo build -p weir-lab",
                current.display()
            )
        })
}
