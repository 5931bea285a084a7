//! What each source costs, and when it last delivered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The account of one source since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Readings that ended, with success or not.
    pub reads: u64,
    /// CPU time of the threads that read it, user and system.
    pub cpu: Duration,
    /// Wall time of the last reading.
    pub took: Duration,
    /// End of the last reading that succeeded; `None` if none has yet.
    pub read_at: Option<Instant>,
}

/// One reading of a source.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub source: &'static str,
    pub ok: bool,
    pub cpu: Duration,
    pub took: Duration,
}

/// The accounts of all sources, of which there are a dozen.
#[derive(Debug, Clone, Default)]
pub struct Costs(BTreeMap<&'static str, Cost>);

impl Costs {
    /// Takes a reading that ended at `now`.
    pub fn note(&mut self, reading: Reading, now: Instant) {
        let cost = self.0.entry(reading.source).or_default();
        cost.reads += 1;
        cost.cpu += reading.cpu;
        cost.took = reading.took;
        if reading.ok {
            cost.read_at = Some(now);
        }
    }

    /// Source and account, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Cost)> {
        self.0.iter().map(|(source, cost)| (*source, cost))
    }
}

/// Measures one reading on the calling thread.
#[derive(Debug)]
pub struct Meter {
    cpu: Duration,
    wall: Instant,
}

impl Meter {
    #[must_use]
    pub fn start() -> Meter {
        Meter {
            cpu: thread_cpu(),
            wall: Instant::now(),
        }
    }

    /// Ends a reading; the next one begins now.
    pub fn lap(&mut self, source: &'static str, ok: bool) -> Reading {
        let next = Meter::start();
        let reading = Reading {
            source,
            ok,
            cpu: next.cpu.saturating_sub(self.cpu),
            took: next.wall.duration_since(self.wall),
        };
        *self = next;
        reading
    }
}

/// CPU time of the calling thread, user and system.
fn thread_cpu() -> Duration {
    crate::bpf::sys::clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_success_makes_a_source_young() {
        let mut costs = Costs::default();
        let start = Instant::now();
        let reading = |ok| Reading {
            source: "rdma",
            ok,
            cpu: Duration::from_micros(30),
            took: Duration::from_micros(50),
        };
        costs.note(reading(false), start);
        let read_at = |costs: &Costs| costs.iter().next().and_then(|(_, c)| c.read_at);
        assert_eq!(read_at(&costs), None);
        costs.note(reading(true), start);
        costs.note(reading(false), start + Duration::from_secs(9));
        assert_eq!(read_at(&costs), Some(start));
        let (source, cost) = costs.iter().next().unwrap();
        assert_eq!((source, cost.reads), ("rdma", 3));
        assert_eq!(cost.cpu, Duration::from_micros(90));
    }

    #[test]
    fn work_is_measured_and_waiting_is_not() {
        let mut meter = Meter::start();
        let mut sum = 0u64;
        let mut busy = Duration::ZERO;
        while busy < Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            busy = meter.cpu.max(thread_cpu()) - meter.cpu;
        }
        assert!(meter.lap("work", true).cpu >= Duration::from_millis(2));
        let (_held, wait) = std::sync::mpsc::channel::<()>();
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err());
        let waited = meter.lap("wait", true);
        assert!(waited.took >= Duration::from_millis(50));
        assert!(waited.cpu < waited.took);
    }
}
