//! Writes segments, without ever waiting for the disk.
//!
//! The brain's task encodes records into a block and hands full blocks, and what there is at each tick,
//! to a thread through a bounded queue. If the queue is full or the disk refuses, the records are
//! counted as lost, and so is all that follows until a new segment begins: a replay that lacks an event
//! would go another way.

use super::disk::{Disk, Node, Told, Work, check_writable};
use super::format::{EXTENSION, Header, Kind, MAGIC, put_record};
use crate::brain::{Action, Event};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use weir_controller_core::engine::NODE_GONE;
use weir_controller_core::topology::NODES_MAX;
use weir_wire::v1::agent_message::Body;

/// A block is handed on when it is this long: 1,000 frames of 250 bytes.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that wait for the disk: 16 MiB, five seconds of 10,000 nodes.
const BLOCKS_QUEUED_MAX: usize = 64;
/// After a loss a new segment is tried this often: each try costs a key frame of every node.
const RETRY: Duration = Duration::from_secs(30);
/// Frames of each node in a restart point, its key frame first: from four samples, one a second, links
/// have the intervals that a verdict is made from.
const FRAMES: usize = 5;
/// A node that has not sent them by then has to do without.
const PATIENCE: Duration = Duration::from_secs(10);
/// A segment's events are at least this many times its restart point, whatever its limit says, so that
/// restart points take at most a fifth of the disk.
const EVENTS_PER_RESTART: u64 = 4;

/// Where, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub directory: PathBuf,
    /// A segment ends when its events have taken this.
    pub segment_bytes: u64,
    /// All segments together, those of earlier starts included; the oldest is deleted.
    pub total_bytes: u64,
}

/// What a replay has to know of this start of the controller.
#[derive(Debug, Clone)]
pub struct About {
    pub lease_base: u64,
    pub frozen: bool,
    /// Wall clock at the start of the controller, since 1970.
    pub started: Duration,
    pub config: weir_controller_core::Config,
    pub plan: weir_controller_core::topology::Plan,
    /// controller.yaml as it was understood, and the topology file.
    pub config_text: String,
    pub topology_text: String,
}

/// What became of the recording so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Bytes written.
    pub bytes: u64,
    /// Records (events and actions) that were not written.
    pub lost: u64,
    pub segments_deleted: u64,
}

/// Takes events and actions; a thread writes them. Dropping it waits until all is written.
#[derive(Debug)]
pub struct Recorder {
    settings: Settings,
    about: About,
    digest: u32,
    to: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
    told: Arc<Told>,
    block: Vec<u8>,
    block_records: u64,
    nodes: BTreeMap<String, Node>,
    /// Number of the next segment.
    next: u64,
    /// Of the events of this segment.
    bytes: u64,
    bytes_max: u64,
    /// Since when the next segment waits for the nodes' key frames.
    due_since: Option<Duration>,
    /// Nothing is recorded until a segment begins, which is tried at this time.
    hole_until: Option<Duration>,
    /// Records lost before this segment.
    lost_before: u64,
}

impl Recorder {
    /// Makes the directory and begins the first segment.
    ///
    /// # Errors
    /// The directory or its first file cannot be made.
    pub fn create(settings: Settings, about: About) -> std::io::Result<Recorder> {
        std::fs::create_dir_all(&settings.directory)?;
        let disk = Disk::open(&settings)?;
        check_writable(&settings.directory)?;
        let told = Arc::new(Told::default());
        let (to, work) = sync_channel(BLOCKS_QUEUED_MAX);
        let thread = std::thread::Builder::new().name("recorder".into()).spawn({
            let told = told.clone();
            move || disk.run(&work, &told)
        })?;
        let mut recorder = Recorder {
            digest: digest(&about.config, &about.plan),
            bytes_max: settings.segment_bytes,
            settings,
            about,
            to: Some(to),
            thread: Some(thread),
            told,
            block: Vec::new(),
            block_records: 0,
            nodes: BTreeMap::new(),
            next: 0,
            bytes: 0,
            due_since: None,
            hole_until: None,
            lost_before: 0,
        };
        recorder.begin(Duration::ZERO, &[]);
        Ok(recorder)
    }

    /// Takes an event that arrived at `at`.
    pub fn append(&mut self, at: Duration, event: &Event) {
        let start = self.block.len();
        let fits = super::event::put_event(&mut self.block, at, event);
        self.learn(at, event);
        self.appended(at, start, fits);
    }

    /// Takes what followed from the event before.
    pub fn acted(&mut self, at: Duration, action: &Action) {
        if let Action::Close { node, .. } = action {
            self.gone(node, at);
        }
        let start = self.block.len();
        let text = super::text(action);
        let fits = put_record(&mut self.block, at, Kind::Action, "", |out| {
            out.extend(text.as_bytes());
        });
        self.appended(at, start, fits);
    }

    /// Hands what is there to the thread.
    fn flush(&mut self, at: Duration) {
        if self.told.broken.swap(false, Relaxed) {
            self.fall_behind(at, 0);
        }
        let (bytes, records) = (std::mem::take(&mut self.block), self.block_records);
        self.block_records = 0;
        if bytes.is_empty() {
            return;
        }
        let work = Work::Block { bytes, records };
        if self.to.as_ref().is_none_or(|to| to.try_send(work).is_err()) {
            self.fall_behind(at, records);
        }
    }

    /// To be called now and then, between two events: hands on what is there, and begins a segment if it
    /// is time, with what is known of the nodes and with the brain's `memory`. The event that it returns
    /// has to follow.
    pub fn tick(&mut self, at: Duration, memory: impl FnOnce() -> Vec<u8>) -> Option<Event> {
        self.flush(at);
        let full = self.bytes >= self.bytes_max;
        match self.due_since {
            None if full || self.hole_until.is_some_and(|retry_at| at >= retry_at) => {
                self.due_since = Some(at);
                self.nodes.values_mut().for_each(|n| n.frames.clear());
                Some(Event::SegmentDue)
            }
            Some(since) if self.is_complete() || at >= since + PATIENCE => {
                self.due_since = None;
                self.begin(at, &memory()).then_some(Event::SegmentBegun)
            }
            Some(_) | None => None,
        }
    }

    /// Whether every node that is there has sent what a restart point needs of it.
    fn is_complete(&self) -> bool {
        let mut there = self.nodes.values().filter(|n| n.lost.is_none());
        there.all(|n| n.frames.len() >= FRAMES)
    }

    fn begin(&mut self, at: Duration, memory: &[u8]) -> bool {
        let lost = self.told.lost.load(Relaxed);
        let lost_before = match self.hole_until {
            Some(_) => (lost - self.lost_before).max(1),
            None => 0,
        };
        self.nodes.retain(|_, n| {
            n.lost
                .is_none_or(|lost| at.saturating_sub(lost) < NODE_GONE)
        });
        let mut head = MAGIC.to_vec();
        let mut tail = Vec::new();
        let whole = self.put_head(&mut head, at, lost_before)
            && put_record(&mut tail, at, Kind::Memory, "", |out| out.extend(memory));
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.clone()))
            .collect();
        let restart = nodes.iter().map(|(_, node)| node.bytes()).sum::<usize>();
        let restart = u64::try_from(restart + head.len() + tail.len()).unwrap_or(u64::MAX);
        let name = format!(
            "{:016x}-{:06}.{EXTENSION}",
            self.about.lease_base, self.next
        );
        let work = Work::Begin {
            path: self.settings.directory.join(name),
            head,
            at,
            nodes,
            tail,
            afresh: lost_before > 0 || self.next == 0,
        };
        let sent = whole && self.to.as_ref().is_some_and(|to| to.try_send(work).is_ok());
        if sent {
            self.next += 1;
            self.nodes.values_mut().for_each(|n| n.frames.clear());
            (self.hole_until, self.lost_before) = (None, lost);
            self.bytes = 0;
            let least = restart.saturating_mul(EVENTS_PER_RESTART);
            self.bytes_max = self.settings.segment_bytes.max(least);
        } else {
            self.fall_behind(at, 0);
            self.hole_until = Some(at + RETRY);
        }
        sent
    }

    /// Waits until all is written: for whoever makes a recording faster than the clock.
    pub fn wait(&mut self, at: Duration) {
        self.flush(at);
        let (done, written) = sync_channel(1);
        let asked = self.to.as_ref().map(|to| to.send(Work::Wait(done)));
        if asked.is_none_or(|asked| asked.is_err()) || written.recv().is_err() {
            self.fall_behind(at, 0);
        }
    }

    #[must_use]
    pub fn recorded(&self) -> Recorded {
        Recorded {
            bytes: self.told.bytes.load(Relaxed),
            lost: self.told.lost.load(Relaxed),
            segments_deleted: self.told.segments_deleted.load(Relaxed),
        }
    }

    fn put_head(&self, head: &mut Vec<u8>, at: Duration, lost_before: u64) -> bool {
        let header = Header {
            program: env!("CARGO_PKG_VERSION").into(),
            run: self.about.lease_base,
            segment: self.next,
            started_us: u64::try_from(self.about.started.as_micros()).unwrap_or(u64::MAX),
            frozen: self.about.frozen,
            lost_before,
            digest: self.digest,
        };
        let Ok(json) = serde_json::to_vec(&header) else {
            return false;
        };
        [
            (Kind::Header, json.as_slice()),
            (Kind::Configuration, self.about.config_text.as_bytes()),
            (Kind::Topology, self.about.topology_text.as_bytes()),
        ]
        .into_iter()
        .all(|(kind, bytes)| put_record(head, at, kind, "", |out| out.extend(bytes)))
    }

    /// A record was put at `start` of the block, or was too long.
    fn appended(&mut self, at: Duration, start: usize, fits: bool) {
        if self.hole_until.is_some() || !fits {
            self.block.truncate(start);
            self.fall_behind(at, 1);
            return;
        }
        self.bytes += u64::try_from(self.block.len() - start).unwrap_or(0);
        self.block_records += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.flush(at);
        }
    }

    fn fall_behind(&mut self, at: Duration, records: u64) {
        if self.hole_until.is_none() {
            tracing::warn!("the recording has a hole: the disk is slow, full or gone");
            self.hole_until = Some(at + RETRY);
        }
        self.told.lost.fetch_add(records, Relaxed);
    }

    /// Keeps what a restart point needs of an event. The controller holds no more nodes than this does.
    fn learn(&mut self, at: Duration, event: &Event) {
        match event {
            Event::Connected { node, hello } => {
                let node_is_new = !self.nodes.contains_key(node);
                if node_is_new && self.nodes.len() >= NODES_MAX {
                    return;
                }
                let known = self.nodes.entry(node.clone()).or_default();
                *known = Node {
                    hello: prost::Message::encode_to_vec(hello).into(),
                    // Of the node, not of its stream: it stands until there is another.
                    inventory: known.inventory.take(),
                    ..Node::default()
                };
            }
            Event::Message { node, message } => {
                let Some(known) = self.nodes.get_mut(node) else {
                    return;
                };
                if let Some(Body::Frame(frame)) = &message.body {
                    // As the brain does: what came before, or twice, is nothing.
                    if known.seq.is_some_and(|last| frame.seq <= last) {
                        return;
                    }
                    known.seq = Some(frame.seq);
                    if self.due_since.is_some() && (frame.key || !known.frames.is_empty()) {
                        if frame.key {
                            known.frames.clear();
                        }
                        let bytes = prost::Message::encode_to_vec(message);
                        known.frames.push((at, bytes.into()));
                    }
                    return;
                }
                let place = match &message.body {
                    Some(Body::Schema(_)) => {
                        // What came before is of other columns; a key frame follows.
                        known.frames.clear();
                        &mut known.schema
                    }
                    Some(Body::Inventory(_)) => &mut known.inventory,
                    Some(Body::Sources(_)) => &mut known.sources,
                    Some(Body::Hello(_) | Body::Frame(_) | Body::Path(_) | Body::Lease(_))
                    | None => {
                        return;
                    }
                };
                *place = Some(prost::Message::encode_to_vec(message).into());
            }
            Event::Lost { node } => self.gone(node, at),
            Event::Tick
            | Event::Freeze { .. }
            | Event::Trial { .. }
            | Event::EndLease { .. }
            | Event::SegmentDue
            | Event::SegmentBegun => {}
        }
    }

    fn gone(&mut self, node: &str, at: Duration) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.lost.get_or_insert(at);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush(Duration::MAX.saturating_sub(RETRY));
        drop(self.to.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the recorder's thread panicked");
        }
    }
}

/// CRC-32 of what a configuration and a topology mean to this version.
#[must_use]
pub fn digest(
    config: &weir_controller_core::Config,
    plan: &weir_controller_core::topology::Plan,
) -> u32 {
    crc32fast::hash(format!("{config:?}{plan:?}").as_bytes())
}
