//! The one task that owns the brain. It takes events from a bounded queue, stamps their arrival,
//! records them, and performs what the brain asks for.
//!
//! Tasks of the process: this driver; one for each agent's stream (`server.rs`), which only moves
//! messages; the HTTP server, whose handlers run closures on the brain through [`Handle::read`].
//! Cancel safety: the driver awaits only its queue and its timer, both cancel-safe.

use crate::brain::{Action, Brain, Event};
use crate::record::{Recorded, Recorder};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use weir_controller_core::Command;
use weir_controller_core::ids::JobId;
use weir_controller_core::io::PinChange;
use weir_wire::v1::{self, controller_message::Body};

/// Events waiting for the driver: 10,000 agents' frames of one interval. Streams wait when it is full.
pub const EVENTS_QUEUED_MAX: usize = 10_000;
/// Messages waiting for one agent. An agent that does not read is cut off when it is full.
pub const MESSAGES_QUEUED_MAX: usize = 1024;
/// A node that was silent for this long may be replaced by another instance of the same name.
const SILENT: Duration = Duration::from_secs(5);

/// What an agent's stream receives.
pub type Outgoing = Result<v1::ControllerMessage, tonic::Status>;

type Reader = Box<dyn FnOnce(&View<'_>) + Send>;

enum Request {
    Connect {
        hello: Box<v1::Hello>,
        out: mpsc::Sender<Outgoing>,
        reply: oneshot::Sender<Result<Connected, String>>,
    },
    Message {
        connection: u64,
        node: String,
        message: v1::AgentMessage,
    },
    Disconnect {
        connection: u64,
        node: String,
    },
    Event(Event),
    Freeze {
        frozen: bool,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Trial {
        job: JobId,
        pins: Vec<PinChange>,
        reply: oneshot::Sender<Result<u64, String>>,
    },
    Read(Reader),
}

/// The brain as a reader sees it.
pub struct View<'a> {
    pub brain: &'a Brain,
    /// Time since the controller started.
    pub now: Duration,
    /// Wall clock at the start, to turn the core's times into dates.
    pub started: SystemTime,
    pub agents_refused: u64,
    pub recorded: Recorded,
}

/// An accepted agent.
pub struct Connected {
    pub connection: u64,
    /// Fails when the driver has given the agent up.
    pub given_up: oneshot::Receiver<()>,
}

/// A way to the driver, for streams and for HTTP.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Request>);

/// The driver has stopped: the process is going down.
#[derive(Debug, thiserror::Error)]
#[error("the controller is shutting down")]
pub struct Stopped;

impl Handle {
    /// Announces an agent; says why if it is refused.
    ///
    /// # Errors
    /// The reason, for the agent to log.
    pub async fn connect(
        &self,
        hello: v1::Hello,
        out: mpsc::Sender<Outgoing>,
    ) -> Result<Connected, String> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Connect {
            hello: Box::new(hello),
            out,
            reply,
        };
        self.0
            .send(request)
            .await
            .map_err(|_| Stopped.to_string())?;
        answer.await.map_err(|_| Stopped.to_string())?
    }

    /// # Errors
    /// [`Stopped`].
    pub async fn message(
        &self,
        connection: u64,
        node: String,
        message: v1::AgentMessage,
    ) -> Result<(), Stopped> {
        self.0
            .send(Request::Message {
                connection,
                node,
                message,
            })
            .await
            .map_err(|_| Stopped)
    }

    /// # Errors
    /// [`Stopped`].
    pub async fn disconnect(&self, connection: u64, node: String) -> Result<(), Stopped> {
        self.0
            .send(Request::Disconnect { connection, node })
            .await
            .map_err(|_| Stopped)
    }

    /// # Errors
    /// [`Stopped`].
    pub async fn event(&self, event: Event) -> Result<(), Stopped> {
        self.0
            .send(Request::Event(event))
            .await
            .map_err(|_| Stopped)
    }

    /// Freezes or unfreezes, durably; says why if it is not.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn freeze(&self, frozen: bool) -> Result<Result<(), String>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Request::Freeze { frozen, reply })
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Asks for a trial by hand; gives its lease, or why it was not started.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn trial(
        &self,
        job: JobId,
        pins: Vec<PinChange>,
    ) -> Result<Result<u64, String>, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send(Request::Trial { job, pins, reply })
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Runs `reader` on the brain and returns what it made.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn read<T: Send + 'static>(
        &self,
        reader: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let read = Box::new(move |view: &View<'_>| {
            if reply.send(reader(view)).is_err() {
                tracing::debug!("a reader went away before its answer");
            }
        });
        self.0
            .send(Request::Read(read))
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

struct Connection {
    number: u64,
    instance: u64,
    out: mpsc::Sender<Outgoing>,
    last_heard: Duration,
    /// Dropped with the connection: tells the stream's task.
    _alive: oneshot::Sender<()>,
}

/// The driver's state.
pub struct Driver {
    brain: Brain,
    recorder: Option<Recorder>,
    frozen_file: PathBuf,
    connections: BTreeMap<String, Connection>,
    next_connection: u64,
    agents_refused: u64,
    /// Nodes whose streams were closed while actions were performed.
    given_up: VecDeque<String>,
    /// The core's answer to the request for a trial that is being handled.
    trial_answer: Option<Result<u64, String>>,
    epoch: Instant,
    started: SystemTime,
}

impl Driver {
    /// Starts the driver's task.
    #[must_use]
    pub fn spawn(brain: Brain, recorder: Option<Recorder>, frozen_file: PathBuf) -> Handle {
        let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
        let driver = Driver {
            brain,
            recorder,
            frozen_file,
            connections: BTreeMap::new(),
            next_connection: 0,
            agents_refused: 0,
            given_up: VecDeque::new(),
            trial_answer: None,
            epoch: Instant::now(),
            started: SystemTime::now(),
        };
        tokio::spawn(driver.run(receiver));
        Handle(sender)
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let (due, _) = self.brain.core.poll_timeout();
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.request(request),
                    None => return,
                },
                () = tokio::time::sleep_until(self.epoch + due) => {
                    self.event(Event::Tick);
                    self.keep_recording();
                }
            }
        }
    }

    /// Hands on what was recorded, and begins the next segment if it is time.
    fn keep_recording(&mut self) {
        let now = self.now();
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        if let Some(event) = recorder.tick(now, || self.brain.memory()) {
            self.event(event);
        }
    }

    /// Microseconds, because that is what a recording keeps.
    fn now(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Connect { hello, out, reply } => {
                let node = hello.node.clone();
                let answer = self.connect(*hello, out);
                if let Err(Ok(gone)) = reply.send(answer) {
                    tracing::debug!(node, "an agent went away during its Hello");
                    self.disconnected(gone.connection, node);
                }
            }
            Request::Message {
                connection,
                node,
                message,
            } => {
                let now = self.now();
                if let Some(known) = self
                    .connections
                    .get_mut(&node)
                    .filter(|c| c.number == connection)
                {
                    known.last_heard = now;
                    self.event(Event::Message { node, message });
                }
            }
            Request::Disconnect { connection, node } => self.disconnected(connection, node),
            Request::Event(event) => self.event(event),
            Request::Freeze { frozen, reply } => {
                let kept = self.keep_frozen(frozen);
                // To freeze is safe even if it does not last; to unfreeze what returns is not.
                if frozen || kept.is_ok() {
                    self.event(Event::Freeze { frozen });
                }
                if reply.send(kept).is_err() {
                    tracing::debug!("who asked for the freeze went away before its answer");
                }
            }
            Request::Trial { job, pins, reply } => {
                self.event(Event::Trial { job, pins });
                if let Some(outcome) = self.trial_answer.take()
                    && reply.send(outcome).is_err()
                {
                    tracing::debug!("who asked for the trial went away before its answer");
                }
            }
            Request::Read(reader) => {
                let recorded = self.recorder.as_ref().map(Recorder::recorded);
                let view = View {
                    brain: &self.brain,
                    now: self.now(),
                    started: self.started,
                    agents_refused: self.agents_refused,
                    recorded: recorded.unwrap_or_default(),
                };
                reader(&view);
            }
        }
    }

    fn connect(
        &mut self,
        hello: v1::Hello,
        out: mpsc::Sender<Outgoing>,
    ) -> Result<Connected, String> {
        let now = self.now();
        let node = hello.node.clone();
        if let Some(other) = self.connections.get(&node) {
            if other.instance != hello.instance
                && now.saturating_sub(other.last_heard) < SILENT
                && !other.out.is_closed()
            {
                self.agents_refused += 1;
                let reason = format!(
                    "another agent already reports as {node}: give each agent its own `node`, or stop the other one"
                );
                tracing::warn!(node, "{reason}");
                return Err(reason);
            }
            self.connections.remove(&node);
            self.event(Event::Lost { node: node.clone() });
        }
        self.next_connection += 1;
        let (alive, given_up) = oneshot::channel();
        tracing::info!(node, version = hello.agent_version, "agent connected");
        self.connections.insert(
            node.clone(),
            Connection {
                number: self.next_connection,
                instance: hello.instance,
                out,
                last_heard: now,
                _alive: alive,
            },
        );
        let connection = self.next_connection;
        self.event(Event::Connected { node, hello });
        Ok(Connected {
            connection,
            given_up,
        })
    }

    fn disconnected(&mut self, connection: u64, node: String) {
        let is_it = |c: &Connection| c.number == connection;
        if self.connections.get(&node).is_some_and(is_it) {
            self.connections.remove(&node);
            tracing::info!(node, "agent disconnected");
            self.event(Event::Lost { node });
        }
    }

    fn event(&mut self, event: Event) {
        self.handle(event);
        // What is found while actions are performed comes after them, here as in a replay.
        while let Some(node) = self.given_up.pop_front() {
            self.handle(Event::Lost { node });
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        if let Some(recorder) = &mut self.recorder {
            recorder.append(now, &event);
        }
        for action in self.brain.handle(event, now) {
            if let Some(recorder) = &mut self.recorder {
                recorder.acted(now, &action);
            }
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Core(Command::AnswerTrial { outcome }) => self.trial_answer = Some(outcome),
            Action::Core(Command::Note { subject, text }) => tracing::info!(subject, "{text}"),
            Action::Core(Command::QueryPaths { node, keys }) => {
                let keys = keys.into_iter().map(|(key, in_port)| v1::PathKey {
                    src_ipv4: key.src.to_bits(),
                    dst_ipv4: key.dst.to_bits(),
                    src_port: u32::from(key.src_port),
                    dst_port: u32::from(key.dst_port),
                    in_port: in_port.to_string(),
                });
                self.send(
                    node.as_str(),
                    Body::Path(v1::PathQuery {
                        keys: keys.collect(),
                    }),
                );
            }
            Action::Core(Command::Grant {
                node,
                lease,
                ttl,
                incident,
                verdict,
                pins,
            }) => {
                let changes = pins.iter().map(|p| v1::Change {
                    body: Some(v1::change::Body::Pin(v1::Pin {
                        prefix: format!("{}/32", p.dst),
                        port: p.port.to_string(),
                    })),
                });
                let grant = v1::LeaseGrant {
                    id: lease,
                    ttl_ms: ms(ttl),
                    incident,
                    verdict,
                    changes: changes.collect(),
                };
                self.send(node.as_str(), Body::Grant(grant));
            }
            Action::Core(Command::Renew { node, lease, ttl }) => self.send(
                node.as_str(),
                Body::Renew(v1::LeaseRenew {
                    id: lease,
                    ttl_ms: ms(ttl),
                }),
            ),
            Action::Core(Command::End {
                node,
                lease,
                reason,
            }) => self.send(node.as_str(), Body::End(v1::LeaseEnd { id: lease, reason })),
            Action::EventsTaken { node, seq } => {
                self.send(&node, Body::EventsTaken(v1::EventsTaken { seq }));
            }
            Action::Resync { node } => self.send(&node, Body::Resync(v1::Resync {})),
            Action::Judged { .. } => {}
            Action::Pinglist { node, list } => self.send(&node, Body::Pinglist(list)),
            Action::Close { node, reason } => {
                tracing::warn!(node, "stream closed: {reason}");
                if let Some(connection) = self.connections.remove(&node)
                    && connection
                        .out
                        .try_send(Err(tonic::Status::invalid_argument(reason)))
                        .is_err()
                {
                    tracing::debug!(node, "the agent was gone already");
                }
            }
        }
    }

    fn send(&mut self, node: &str, body: Body) {
        let Some(connection) = self.connections.get(node) else {
            return;
        };
        if connection
            .out
            .try_send(Ok(v1::ControllerMessage { body: Some(body) }))
            .is_err()
        {
            tracing::warn!(node, "the agent does not read its messages: stream closed");
            self.connections.remove(node);
            self.given_up.push_back(node.to_owned());
        }
    }

    /// A freeze must outlive a restart of the controller.
    fn keep_frozen(&self, frozen: bool) -> Result<(), String> {
        let file = &self.frozen_file;
        let kept = if frozen {
            std::fs::File::create(file).and_then(|f| f.sync_all())
        } else {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        };
        let synced = kept.and_then(|()| match file.parent() {
            Some(directory) => std::fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        });
        synced.map_err(|error| {
            let file = file.display();
            let text = if frozen {
                format!("frozen, but a restart of the controller forgets it: {file}: {error}")
            } else {
                format!("still frozen: {file}: {error}")
            };
            tracing::error!("{text}");
            text
        })
    }
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
