//! The thread that writes segments and deletes the oldest.

use super::format::{EXTENSION, Kind, put_record};
use super::writer::{BLOCK_BYTES, Settings};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

/// What the thread tells.
#[derive(Debug, Default)]
pub struct Told {
    pub bytes: AtomicU64,
    pub lost: AtomicU64,
    pub segments_deleted: AtomicU64,
    /// A segment could not be written to its end.
    pub broken: AtomicBool,
}

#[derive(Debug)]
pub enum Work {
    Begin {
        path: PathBuf,
        /// Everything ahead of the nodes.
        head: Vec<u8>,
        at: Duration,
        nodes: Vec<(String, Node)>,
        /// Everything behind them.
        tail: Vec<u8>,
        /// It says that records were lost before it, or it is the first.
        afresh: bool,
    },
    Block {
        bytes: Vec<u8>,
        records: u64,
    },
    /// Answered when everything before it is written.
    Wait(SyncSender<()>),
}

/// The newest of what one node said of itself, encoded.
#[derive(Debug, Clone, Default)]
pub struct Node {
    pub hello: Arc<[u8]>,
    pub schema: Option<Arc<[u8]>>,
    pub inventory: Option<Arc<[u8]>>,
    pub sources: Option<Arc<[u8]>>,
    /// Since its newest key frame, while a segment is due; with their arrival.
    pub frames: Vec<(Duration, Arc<[u8]>)>,
    /// Of the newest frame of its stream.
    pub seq: Option<u64>,
    /// `None` while it is connected.
    pub lost: Option<Duration>,
}

impl Node {
    fn said(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        [&self.schema, &self.inventory, &self.sources]
            .into_iter()
            .flatten()
    }

    pub fn bytes(&self) -> usize {
        let frames = self.frames.iter().map(|(_, frame)| frame.len());
        self.hello.len() + self.said().map(|s| s.len()).chain(frames).sum::<usize>()
    }
}

/// That no file can be made is known at the start and not when one is needed.
pub fn check_writable(directory: &Path) -> std::io::Result<()> {
    let probe = directory.join(".writable");
    File::create(&probe)?;
    std::fs::remove_file(probe)
}

/// The thread's side.
pub struct Disk {
    total_max: u64,
    /// Segments that are complete, the oldest first.
    closed: VecDeque<(PathBuf, u64)>,
    open: Option<(File, PathBuf, u64)>,
}

impl Disk {
    pub fn open(settings: &Settings) -> std::io::Result<Disk> {
        let mut closed = Vec::new();
        for entry in std::fs::read_dir(&settings.directory)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|e| e == EXTENSION) {
                closed.push((entry.path(), entry.metadata()?.len()));
            }
        }
        // Their names are in the order of time.
        closed.sort();
        Ok(Disk {
            total_max: settings.total_bytes,
            closed: closed.into(),
            open: None,
        })
    }

    pub fn run(mut self, work: &Receiver<Work>, told: &Told) {
        while let Ok(work) = work.recv() {
            let (result, records) = match work {
                Work::Begin {
                    path,
                    head,
                    at,
                    nodes,
                    tail,
                    afresh,
                } => {
                    let begun = if afresh || self.open.is_some() {
                        self.begin(path, head, at, &nodes, &tail, told)
                    } else {
                        // Records of the segment before were lost and this one does not say so.
                        Err(std::io::Error::other("records were lost"))
                    };
                    (begun, 0)
                }
                Work::Block { bytes, records } => (self.write(&bytes, told), records),
                Work::Wait(done) => {
                    // Nobody waits any more: nothing to answer.
                    done.send(()).ok();
                    continue;
                }
            };
            if let Err(error) = result {
                told.lost.fetch_add(records, Relaxed);
                // What follows a loss is lost until a segment begins.
                if let Some((_, path, bytes)) = self.open.take() {
                    tracing::warn!("cannot write {}: {error}", path.display());
                    self.closed.push_back((path, bytes));
                }
                told.broken.store(true, Relaxed);
            }
            self.delete_oldest(told);
        }
    }

    fn begin(
        &mut self,
        path: PathBuf,
        mut bytes: Vec<u8>,
        at: Duration,
        nodes: &[(String, Node)],
        tail: &[u8],
        told: &Told,
    ) -> std::io::Result<()> {
        if let Some((file, path, bytes)) = self.open.take() {
            // A whole segment outlives the machine; of the open one the kernel has what was written.
            file.sync_data().ok();
            self.closed.push_back((path, bytes));
        }
        let file = File::create_new(&path).inspect_err(|error| {
            tracing::warn!("cannot make {}: {error}", path.display());
        })?;
        self.open = Some((file, path, 0));
        for (name, node) in nodes {
            let mut put = |at, kind, payload: &[u8]| {
                put_record(&mut bytes, at, kind, name, |out| out.extend(payload))
            };
            let mut whole = put(at, Kind::Connected, &node.hello);
            for said in node.said() {
                whole &= put(at, Kind::Message, said);
            }
            for (at, frame) in &node.frames {
                whole &= put(*at, Kind::Message, frame);
            }
            if node.lost.is_some() {
                whole &= put(at, Kind::Lost, &[]);
            }
            debug_assert!(whole, "it was recorded before, so it is not too long");
            if bytes.len() >= BLOCK_BYTES {
                self.write(&bytes, told)?;
                bytes.clear();
            }
        }
        bytes.extend(tail);
        self.write(&bytes, told)
    }

    fn write(&mut self, bytes: &[u8], told: &Told) -> std::io::Result<()> {
        let Some((file, _, length)) = &mut self.open else {
            return Err(std::io::Error::other("no segment is open"));
        };
        file.write_all(bytes)?;
        let written = u64::try_from(bytes.len()).unwrap_or(0);
        *length += written;
        told.bytes.fetch_add(written, Relaxed);
        Ok(())
    }

    fn delete_oldest(&mut self, told: &Told) {
        let open = self.open.as_ref().map_or(0, |(_, _, bytes)| *bytes);
        let mut total = open + self.closed.iter().map(|(_, bytes)| *bytes).sum::<u64>();
        while total > self.total_max
            && let Some((path, bytes)) = self.closed.pop_front()
        {
            match std::fs::remove_file(&path) {
                Ok(()) => {
                    told.segments_deleted.fetch_add(1, Relaxed);
                }
                Err(error) => tracing::warn!("cannot delete {}: {error}", path.display()),
            }
            total -= bytes;
        }
    }
}
