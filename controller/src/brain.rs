//! Core and ingest together, still without clock or IO: events in, commands out.
//!
//! This is what a recording is replayed into, so everything that influences a decision passes
//! through [`Brain::handle`].

use crate::events::{self, NodeEvents};
use crate::ingest::{Ingest, IngestError, Ingested, Layouts};
use crate::judged::Judged;
use crate::pinglists::{self, Pinglists};
use std::collections::BTreeMap;
use std::time::Duration;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::io::{PinChange, Role};
use weir_controller_core::keep::{from_bytes, to_bytes};
use weir_controller_core::topology::Plan;
use weir_controller_core::verdict::Severity;
use weir_controller_core::{Command, Config, Core, Input, Memory};
use weir_wire::{EVENT_TEXT_BYTES_MAX, v1};

/// Something that happened, in the order in which the controller saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Connected {
        node: String,
        hello: v1::Hello,
    },
    Message {
        node: String,
        message: v1::AgentMessage,
    },
    Lost {
        node: String,
    },
    /// The core's timer fired.
    Tick,
    /// A segment of the recording is due: every agent is asked for the key frame that it will start from.
    SegmentDue,
    /// The recording goes on in a new segment, and every path is asked for again: a replay can start here.
    SegmentBegun,
    Freeze {
        frozen: bool,
    },
    Trial {
        job: JobId,
        pins: Vec<PinChange>,
    },
    EndLease {
        lease: u64,
    },
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Action {
    Core(Command),
    Resync {
        node: String,
    },
    /// Acknowledge the node's events up to this number.
    EventsTaken {
        node: String,
        seq: u64,
    },
    /// Tell the node whom to probe and whom to answer.
    Pinglist {
        node: String,
        list: v1::Pinglist,
    },
    /// Nothing: an incident has opened or changed, and this is what it comes to. A recording holds it, so that a replay
    /// compares verdicts as a whole.
    Judged {
        incident: String,
        verdict: String,
        digest: u32,
    },
    /// Close the node's stream with the reason.
    Close {
        node: String,
        reason: String,
    },
}

/// The whole of the controller's judgement.
#[derive(Debug)]
pub struct Brain {
    pub core: Core,
    streams: BTreeMap<String, Ingest>,
    layouts: Layouts,
    /// Sources of each node as last reported.
    pub sources: BTreeMap<String, Vec<v1::Source>>,
    /// What agents saw happen.
    pub events: NodeEvents,
    pub frames: u64,
    pub samples: u64,
    pub frames_refused: u64,
    pub pinglists: Pinglists,
    judged: Judged,
}

impl Brain {
    #[must_use]
    pub fn new(config: Config, plan: Plan, frozen: bool, lease_base: u64) -> Brain {
        Brain {
            pinglists: Pinglists::new(config.probe.clone()),
            core: Core::new(config, plan, frozen, lease_base),
            streams: BTreeMap::new(),
            layouts: Layouts::default(),
            sources: BTreeMap::new(),
            events: NodeEvents::default(),
            frames: 0,
            samples: 0,
            frames_refused: 0,
            judged: Judged::default(),
        }
    }

    /// Takes an event that arrived at `now` and returns what follows from it, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let judges = matches!(event, Event::Tick | Event::SegmentBegun);
        if event == Event::SegmentBegun {
            self.judged.forget();
        }
        match event {
            Event::Connected { node, hello } => self.connected(node, &hello, now, &mut actions),
            Event::Message { node, message } => self.message(node, message, now, &mut actions),
            Event::Lost { node } => {
                self.sources.remove(&node);
                self.events.lost(&node);
                self.pinglists.lost(&NodeId::new(&node), now);
                if self.streams.remove(&node).is_some() {
                    self.core.handle_input(
                        Input::NodeLost {
                            node: NodeId::new(&node),
                        },
                        now,
                    );
                }
            }
            Event::Tick => self.core.handle_timeout(now),
            Event::SegmentDue => {
                self.streams.values_mut().for_each(Ingest::key_due);
                let resync = |node: &String| Action::Resync { node: node.clone() };
                actions.extend(self.streams.keys().map(resync));
            }
            Event::SegmentBegun => {
                self.streams.values_mut().for_each(Ingest::segment_begun);
                self.core.handle_input(Input::SegmentBegun, now);
            }
            Event::Freeze { frozen } => self.core.handle_input(Input::FreezeSet { frozen }, now),
            Event::Trial { job, pins } => self
                .core
                .handle_input(Input::TrialRequested { job, pins }, now),
            Event::EndLease { lease } => self
                .core
                .handle_input(Input::LeaseEndRequested { lease }, now),
        }
        while let Some(command) = self.core.poll_command() {
            actions.push(Action::Core(command));
        }
        for (node, list) in self.pinglists.poll(self.core.topology(), now) {
            let node = node.to_string();
            actions.push(Action::Pinglist { node, list });
        }
        if judges {
            let incidents: Vec<_> = self.core.incidents().iter().collect();
            actions.extend(self.judged.changes(&incidents));
        }
        actions
    }

    /// What a brain that starts later in the same run cannot know of the nodes alone.
    #[must_use]
    pub fn memory(&self) -> Vec<u8> {
        to_bytes(&(
            self.core.memory(),
            self.events.memory(),
            self.pinglists.memory(),
        ))
    }

    /// Goes on from what another brain held at this time, when the same nodes have said the same of themselves.
    /// [`Event::SegmentBegun`] has to follow. False: another version wrote it, nothing is taken.
    #[must_use]
    pub fn remember(&mut self, memory: &[u8]) -> bool {
        let Some((core, events, pinglists)) =
            from_bytes::<(Memory, events::Memory, pinglists::Memory)>(memory)
        else {
            return false;
        };
        self.core.remember(core);
        self.events.remember(events);
        self.pinglists.remember(pinglists);
        true
    }

    /// What each connected node's probes saw last.
    pub fn probes(&self) -> impl Iterator<Item = (&str, &Ingest)> {
        self.streams
            .iter()
            .map(|(node, ingest)| (node.as_str(), ingest))
    }

    fn connected(
        &mut self,
        node: String,
        hello: &v1::Hello,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let id = NodeId::new(&node);
        match Ingest::new(hello, &mut self.layouts) {
            Ok(_) if !self.core.has_room_for(&id) => {
                actions.push(self.refuse(node, &IngestError::TooManyNodes));
            }
            Ok(ingest) => {
                let columns = ingest.columns();
                let role = match hello.role() {
                    v1::Role::Switch => Role::Switch,
                    v1::Role::Host | v1::Role::Unspecified => Role::Host,
                };
                self.streams.insert(node.clone(), ingest);
                self.events.connected(&node, hello.instance);
                self.pinglists.connected(&NodeId::new(&node));
                let held_leases = hello.held_leases.clone();
                self.core.handle_input(
                    Input::NodeConnected {
                        node: NodeId::new(&node),
                        role,
                        held_leases,
                    },
                    now,
                );
                self.core.handle_input(columns, now);
            }
            Err(error) => actions.push(self.refuse(node, &error)),
        }
    }

    fn message(
        &mut self,
        node: String,
        mut message: v1::AgentMessage,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(ingest) = self.streams.get_mut(&node) else {
            return;
        };
        let mut is_frame = false;
        if let Some(v1::agent_message::Body::Frame(frame)) = &mut message.body {
            is_frame = true;
            let events = std::mem::take(&mut frame.events);
            let seq = events.iter().map(|event| event.seq).max();
            for event in events {
                let event = shortened(event);
                let seen = event_of(&event);
                if self.events.take(&node, event, now) {
                    self.core.handle_input(
                        Input::EventReported {
                            node: NodeId::new(&node),
                            event: seen,
                        },
                        now,
                    );
                }
            }
            if let Some(seq) = seq.filter(|seq| *seq > 0) {
                let node = node.clone();
                actions.push(Action::EventsTaken { node, seq });
            }
        }
        if let Some(v1::agent_message::Body::Inventory(inventory)) = &message.body {
            self.pinglists
                .inventory(&NodeId::new(&node), inventory, now);
        }
        let samples = ingest.samples;
        match ingest.message(message, &mut self.layouts) {
            Ok(Ingested::Input(input)) => {
                self.frames += u64::from(is_frame);
                self.samples += ingest.samples - samples;
                self.core.handle_input(input, now);
            }
            Ok(Ingested::Resync) => actions.push(Action::Resync { node }),
            Ok(Ingested::Sources(sources)) => {
                self.sources.insert(node, sources);
            }
            Ok(Ingested::Nothing) => {}
            Err(error) => {
                self.streams.remove(&node);
                self.pinglists.lost(&NodeId::new(&node), now);
                self.core.handle_input(
                    Input::NodeLost {
                        node: NodeId::new(&node),
                    },
                    now,
                );
                actions.push(self.refuse(node, &error));
            }
        }
    }

    fn refuse(&mut self, node: String, error: &IngestError) -> Action {
        self.frames_refused += 1;
        Action::Close {
            node,
            reason: error.to_string(),
        }
    }
}

/// An event as the core takes it.
fn event_of(event: &v1::Event) -> weir_controller_core::io::NodeEvent {
    weir_controller_core::io::NodeEvent {
        source: event.source.as_str().into(),
        name: event.name.as_str().into(),
        subject: event.subject.as_str().into(),
        code: event.code,
        severity: match event.severity() {
            v1::Severity::Critical => Severity::Critical,
            v1::Severity::Warning => Severity::Warning,
            v1::Severity::Info | v1::Severity::Unspecified => Severity::Info,
        },
        text: event.text.clone(),
        action: event.action.clone(),
    }
}

/// The log of a node may say anything; what is kept of it is bounded.
fn shortened(mut event: v1::Event) -> v1::Event {
    let v1::Event {
        source,
        name,
        subject,
        text,
        action,
        ..
    } = &mut event;
    for part in [source, name, subject, text, action] {
        part.truncate(part.floor_char_boundary(EVENT_TEXT_BYTES_MAX));
    }
    event
}
