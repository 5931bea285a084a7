//! Whether a device answers: told once when it stops, asked again with growing pauses.

use crate::source::{Event, Severity};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What is known of a device's answering.
#[derive(Debug, Clone, Default)]
pub struct Presence(Option<Silent>);

#[derive(Debug, Clone)]
struct Silent {
    pause: Duration,
    retry: Duration,
}

impl Presence {
    /// Whether to ask the device at the monotonic time `now`.
    #[must_use]
    pub fn due(&self, now: Duration) -> bool {
        self.0.as_ref().is_none_or(|silent| now >= silent.retry)
    }

    /// Whether it did not answer when it was last asked.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.is_some()
    }

    /// It did not answer. Returns whether that is news.
    pub fn lost(&mut self, now: Duration) -> bool {
        let (news, pause) = match &self.0 {
            None => (true, FIRST),
            Some(silent) => (false, (silent.pause * 2).min(LONGEST)),
        };
        self.0 = Some(Silent {
            pause,
            retry: now + pause,
        });
        news
    }

    /// It answered. Returns whether that is news.
    pub fn found(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// The event of a GPU that stopped answering; `address` is empty where it never told its own.
#[must_use]
pub fn gpu_lost(address: &str, name: &str, why: &str) -> Event {
    Event {
        source: "gpu",
        name: "gpu_lost",
        subject: address.to_owned(),
        code: None,
        severity: Severity::Critical,
        text: format!("{name} no longer answers: {why}"),
        action: "Take the node out of service and reset the GPU or power-cycle the node; have the GPU replaced if it happens again.".to_owned(),
    }
}

/// The event of a GPU that answers again.
#[must_use]
pub fn gpu_back(address: &str, name: &str) -> Event {
    Event {
        source: "gpu",
        name: "gpu_back",
        subject: address.to_owned(),
        code: None,
        severity: Severity::Info,
        text: format!("{name} answers again"),
        action: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_loss_is_news_once_and_so_is_the_return() {
        let mut presence = Presence::default();
        let second = Duration::from_secs(1);
        assert!(presence.due(Duration::ZERO));
        assert!(presence.lost(second));
        assert!(presence.is_lost());
        assert!(!presence.due(second));
        assert!(presence.due(2 * second));
        assert!(!presence.lost(2 * second));
        assert!(!presence.due(3 * second));
        assert!(presence.found());
        assert!(!presence.found());
        assert!(presence.lost(4 * second));
    }

    proptest! {
        #[test]
        fn pauses_grow_to_a_minute(losses in 1u32..40) {
            let mut presence = Presence::default();
            let mut now = Duration::ZERO;
            for loss in 0..losses {
                presence.lost(now);
                let expected = FIRST.saturating_mul(1 << loss.min(6)).min(LONGEST);
                prop_assert!(!presence.due(now + expected - Duration::from_nanos(1)));
                now += expected;
                prop_assert!(presence.due(now));
            }
        }
    }
}
