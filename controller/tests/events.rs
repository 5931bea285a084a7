//! Agent's queue and controller's memory together, over streams that break and ends that start
//! anew: what becomes of each event.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too: they panic"
)]

use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use weir_agent_core::outbox::Outbox;
use weir_controller::brain::{Action, Brain, Event};
use weir_controller_core::Config;
use weir_controller_core::topology::Plan;
use weir_wire::v1::{self, agent_message::Body};

const SEVERITIES: [v1::Severity; 3] = [
    v1::Severity::Info,
    v1::Severity::Warning,
    v1::Severity::Critical,
];
/// Events that the agent's queue holds: few, so that it runs full.
const QUEUE: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    /// Something happens on the node, of this severity.
    Happens(usize),
    /// A stream is opened and welcomed.
    Connect,
    /// The agent sends a frame with at most so many events.
    Send(usize),
    /// The controller takes the next message of the stream.
    Take,
    /// The agent takes the next acknowledgement.
    Hear,
    /// Both directions lose what is under way.
    Break,
    AgentRestarts,
    ControllerRestarts,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..3).prop_map(Step::Happens),
        2 => Just(Step::Connect),
        4 => (1usize..4).prop_map(Step::Send),
        4 => Just(Step::Take),
        4 => Just(Step::Hear),
        2 => Just(Step::Break),
        1 => Just(Step::AgentRestarts),
        1 => Just(Step::ControllerRestarts),
    ];
    prop::collection::vec(step, 0..120)
}

fn brain() -> Brain {
    Brain::new(Config::default(), Plan::default(), false, 0)
}

/// Counts by severity.
type Counts = [u64; 3];

/// The two ends and the stream between them.
struct World {
    outbox: Outbox<v1::Event, usize>,
    instance: u64,
    frames: u64,
    brain: Brain,
    up: bool,
    to_controller: VecDeque<v1::Frame>,
    to_agent: VecDeque<u64>,
    /// The severity of each event, whose text is its place here.
    happened: Vec<usize>,
    /// In any life of the controller.
    shown: BTreeMap<usize, usize>,
    /// Counted as dropped, or as given up when the agent ended.
    counted: Counts,
}

impl World {
    fn new() -> World {
        World {
            outbox: Outbox::new(QUEUE),
            instance: 1,
            frames: 0,
            brain: brain(),
            up: false,
            to_controller: VecDeque::new(),
            to_agent: VecDeque::new(),
            happened: Vec::new(),
            shown: BTreeMap::new(),
            counted: Counts::default(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Happens(severity) => {
                let event = v1::Event {
                    severity: SEVERITIES[*severity].into(),
                    text: self.happened.len().to_string(),
                    ..v1::Event::default()
                };
                self.happened.push(*severity);
                self.outbox.push(*severity, event);
            }
            Step::Connect => {
                self.break_off();
                let hello = v1::Hello {
                    node: "h1".into(),
                    instance: self.instance,
                    ..v1::Hello::default()
                };
                let node = "h1".into();
                self.tell(Event::Connected { node, hello });
                self.outbox.opened(true);
                self.up = true;
            }
            Step::Send(most) if self.up => {
                self.frames += 1;
                let events = self.outbox.give(*most).into_iter();
                let frame = v1::Frame {
                    seq: self.frames,
                    key: true,
                    events: events.map(|(seq, e)| v1::Event { seq, ..e }).collect(),
                    ..v1::Frame::default()
                };
                self.to_controller.push_back(frame);
            }
            Step::Take => {
                if let Some(frame) = self.to_controller.pop_front() {
                    let body = Some(Body::Frame(frame));
                    let message = v1::AgentMessage { body };
                    let node = "h1".into();
                    self.tell(Event::Message { node, message });
                }
            }
            Step::Hear => {
                if let Some(seq) = self.to_agent.pop_front() {
                    self.outbox.taken(seq);
                }
            }
            Step::Break => self.break_off(),
            Step::AgentRestarts => {
                self.break_off();
                // It says how many events nobody acknowledged, and they are in its log.
                for (severity, _) in self.outbox.waiting() {
                    self.counted[severity] += 1;
                }
                self.count_dropped();
                self.outbox = Outbox::new(QUEUE);
                self.instance += 1;
            }
            Step::ControllerRestarts => {
                self.break_off();
                self.look();
                self.brain = brain();
            }
            Step::Send(_) => {}
        }
    }

    fn tell(&mut self, event: Event) {
        for action in self.brain.handle(event, Duration::ZERO) {
            if let Action::EventsTaken { seq, .. } = action {
                self.to_agent.push_back(seq);
            }
        }
    }

    fn break_off(&mut self) {
        self.to_controller.clear();
        self.to_agent.clear();
        if std::mem::take(&mut self.up) {
            self.outbox.closed();
            let node = "h1".into();
            self.tell(Event::Lost { node });
        }
    }

    fn count_dropped(&mut self) {
        for ((_, severity), count) in self.outbox.dropped() {
            self.counted[*severity] += count;
        }
    }

    /// Notes what this life of the controller shows: each event once.
    fn look(&mut self) {
        let mut now: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, seen) in self.brain.events.newest_first() {
            *now.entry(seen.event.text.parse().unwrap()).or_default() += 1;
        }
        assert!(
            now.values().all(|times| *times == 1),
            "shown twice: {now:?}"
        );
        self.shown.extend(now);
    }

    /// Lets everything come to rest and gives what was neither shown nor counted, by severity.
    fn unaccounted(&mut self) -> [i128; 3] {
        self.step(&Step::Connect);
        for _ in 0..QUEUE {
            self.step(&Step::Send(1));
            self.step(&Step::Take);
            self.step(&Step::Hear);
        }
        assert_eq!(self.outbox.waiting().len(), 0, "not acknowledged");
        self.look();
        self.count_dropped();
        let mut lost = self.counted.map(|counted| -i128::from(counted));
        for (event, severity) in self.happened.iter().enumerate() {
            lost[*severity] += i128::from(!self.shown.contains_key(&event));
        }
        lost
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_event_is_shown_once_or_counted(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        let lost = world.unaccounted();
        prop_assert!(lost.iter().all(|lost| *lost <= 0), "{lost:?}");
    }

    /// As long as the queue has room for what is severe, only information goes.
    #[test]
    fn nothing_severe_is_lost_while_there_is_room(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            let severe = world.outbox.waiting().filter(|(severity, _)| *severity > 0).count();
            let fits = !matches!(step, Step::Happens(1..)) || severe < QUEUE;
            if fits && !matches!(step, Step::AgentRestarts) {
                world.step(step);
            }
        }
        world.unaccounted();
        let severe = world.happened.iter().enumerate().filter(|(_, severity)| **severity > 0);
        for (event, _) in severe {
            prop_assert!(world.shown.contains_key(&event), "event {event}");
        }
    }
}
