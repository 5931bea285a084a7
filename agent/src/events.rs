//! Events on their way to the controller: kept until it has taken them, whatever becomes of streams
//! and samples meanwhile.

use crate::source::{Event, Severity};
use std::collections::BTreeMap;
use std::time::Duration;
use weir_agent_core::outbox::{Outbox, Reason};
use weir_wire::{EVENT_TEXT_BYTES_MAX, v1, version};

/// Events that wait: 6 MiB if every text is as long as it may be; the usual ones take a tenth.
const EVENTS_MAX: usize = 2048;
/// Events of one frame: 1.5 MiB at most, which leaves a key frame its room in a message.
pub const EVENTS_PER_FRAME: usize = 512;

/// The queue of a node's events.
#[derive(Debug)]
pub struct Events {
    /// Each with the moment of the sample that saw it.
    outbox: Outbox<(Duration, v1::Event), Severity>,
}

impl Default for Events {
    fn default() -> Events {
        Events {
            outbox: Outbox::new(EVENTS_MAX),
        }
    }
}

impl Events {
    /// Keeps an event that the sample taken at `at` saw.
    pub fn push(&mut self, event: &Event, at: Duration) {
        self.outbox.push(event.severity, (at, message(event)));
    }

    /// A controller of this minor version welcomed the agent.
    pub fn welcomed(&mut self, minor: u32) {
        self.outbox.opened(minor >= version::MINOR_EVENTS_TAKEN);
    }

    /// The stream is gone.
    pub fn closed(&mut self) {
        self.outbox.closed();
    }

    /// The controller has everything up to this number.
    pub fn taken(&mut self, seq: u64) {
        self.outbox.taken(seq);
    }

    /// Puts what this stream was not told yet into a frame that leaves at `now`.
    pub fn fill(&mut self, frame: &mut v1::Frame, now: Duration) {
        let told = self.outbox.give(EVENTS_PER_FRAME).into_iter();
        frame.events = told
            .map(|(seq, (at, event))| v1::Event {
                seq,
                age_us: crate::sample::micros(now.saturating_sub(at)),
                ..event
            })
            .collect();
    }

    /// Events that no controller has acknowledged.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.outbox.waiting().len()
    }

    /// Events that the queue had no room for.
    #[must_use]
    pub fn dropped(&self) -> &BTreeMap<(Reason, Severity), u64> {
        self.outbox.dropped()
    }
}

fn message(event: &Event) -> v1::Event {
    let text = |text: &str| text[..text.floor_char_boundary(EVENT_TEXT_BYTES_MAX)].to_owned();
    v1::Event {
        source: event.source.into(),
        name: event.name.into(),
        subject: text(&event.subject),
        code: event.code,
        severity: match event.severity {
            Severity::Info => v1::Severity::Info,
            Severity::Warning => v1::Severity::Warning,
            Severity::Critical => v1::Severity::Critical,
        }
        .into(),
        text: text(&event.text),
        action: text(&event.action),
        ..v1::Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        Event {
            source: "kmsg",
            name: "xid",
            subject: "0000:18:00.0".into(),
            code: Some(79),
            severity: Severity::Critical,
            text: text.into(),
            action: String::new(),
        }
    }

    fn told(events: &mut Events, now_s: u64) -> Vec<v1::Event> {
        let mut frame = v1::Frame::default();
        events.fill(&mut frame, Duration::from_secs(now_s));
        frame.events
    }

    #[test]
    fn an_event_keeps_its_number_and_grows_older_until_it_is_taken() {
        let mut events = Events::default();
        events.push(&event("lost"), Duration::from_secs(1));
        assert!(told(&mut events, 1).is_empty(), "there is no stream");
        for now_s in [1, 61] {
            events.welcomed(version::MINOR_EVENTS_TAKEN);
            let [told] = told(&mut events, now_s).try_into().unwrap();
            assert_eq!((told.seq, told.code), (1, Some(79)));
            assert_eq!(told.severity(), v1::Severity::Critical);
            assert_eq!(told.age_us, (now_s - 1) * 1_000_000);
            events.closed();
        }
        events.welcomed(version::MINOR_EVENTS_TAKEN);
        told(&mut events, 62);
        events.taken(1);
        assert_eq!(events.waiting(), 0);
    }

    #[test]
    fn a_controller_that_does_not_acknowledge_is_told_once() {
        let mut events = Events::default();
        events.push(&event("lost"), Duration::ZERO);
        events.welcomed(version::MINOR_EVENTS_TAKEN - 1);
        assert_eq!(told(&mut events, 1).len(), 1);
        assert_eq!(events.waiting(), 0);
    }

    #[test]
    fn a_full_frame_of_the_longest_events_leaves_half_a_message() {
        use prost::Message as _;
        let mut events = Events::default();
        let long = "ü".repeat(EVENT_TEXT_BYTES_MAX);
        let longest = Event {
            subject: long.clone(),
            action: long.clone(),
            ..event(&long)
        };
        (0..EVENTS_MAX).for_each(|_| events.push(&longest, Duration::ZERO));
        events.welcomed(version::PROTOCOL_MINOR);
        let mut frame = v1::Frame::default();
        events.fill(&mut frame, Duration::MAX);
        assert_eq!(frame.events.len(), EVENTS_PER_FRAME);
        assert!(frame.encoded_len() <= weir_wire::MESSAGE_BYTES_MAX / 2);
        assert_eq!(told(&mut events, 0).len(), EVENTS_PER_FRAME);
    }
}
