//! What was seen while one setting stood: iterations of every job that began and ended in it, and what was counted.

use crate::ids::JobId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Jobs judged at once; those beyond are not known to this session, and it keeps its hands off while there are any.
pub const JOBS_MAX: usize = 64;

/// A job since the last look.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSeen {
    pub job: JobId,
    /// Start and end of the iterations that ended, oldest first.
    pub ended: Vec<(Duration, Duration)>,
    /// Start of the one under way; `None` between iterations.
    pub running_since: Option<Duration>,
}

/// Counters of the fabric, since any moment in the past.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Counters {
    /// By port, always in the same order: time for which it was paused, us (`pause_rx_us`).
    pub paused_us: Vec<u64>,
    /// Packets lost for want of buffer or to errors.
    pub lost: u64,
    /// Packets received out of sequence (`out_of_sequence`).
    pub out_of_sequence: u64,
    /// Packets received with a mark (`ecn_marked_rx`).
    pub marked: u64,
    /// Data packets received.
    pub packets: u64,
}

/// All that a tuner is told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Look {
    /// Every job that is alive.
    pub jobs: Vec<JobSeen>,
    pub counters: Counters,
}

/// What a block measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// By job: mean logarithm of its iterations' seconds.
    pub log_s: BTreeMap<JobId, f64>,
    /// Share of the block for which the port that was paused most was, 0.0..=1.0.
    pub paused: f64,
    /// Lost packets a second.
    pub lost_per_s: f64,
    /// Packets out of sequence a second.
    pub out_of_sequence_per_s: f64,
    /// Share of data packets that arrived marked, 0.0..=1.0.
    pub marked: f64,
    /// How long it took.
    pub seconds: f64,
}

/// A block under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// When its setting was applied.
    pub since: Duration,
    /// Iterations that began before are not judged: the change still shows in them.
    pub from: Duration,
    /// Counters are judged from the first look at or after this.
    count_from: Duration,
    /// Counters at the change, and at that look.
    change: Counters,
    start: Option<(Duration, Counters)>,
    jobs: BTreeMap<JobId, (u32, f64)>,
}

impl Block {
    /// A setting that was applied at `since`, after which iterations settle for some time, and counters at least for the
    /// longest iteration that may have been under way.
    #[must_use]
    pub fn new(since: Duration, settle: Duration, longest: Duration, change: Counters) -> Block {
        Block {
            since,
            from: since + settle,
            count_from: since + settle.max(longest),
            change,
            start: None,
            jobs: BTreeMap::new(),
        }
    }

    /// Takes up what has ended.
    pub fn add(&mut self, look: &Look, now: Duration) {
        if now >= self.count_from && self.start.is_none() {
            self.start = Some((now, look.counters.clone()));
        }
        for seen in look.jobs.iter().take(JOBS_MAX) {
            for (start, end) in &seen.ended {
                let seconds = end.saturating_sub(*start).as_secs_f64();
                if *start >= self.from && seconds > 0.0 {
                    let (n, sum) = self.jobs.entry(seen.job.clone()).or_default();
                    *n += 1;
                    *sum += seconds.ln();
                }
            }
        }
    }

    /// Every live job has had so many iterations that count, and there is at least one job.
    #[must_use]
    pub fn complete(&self, look: &Look, iterations: u32) -> bool {
        let enough = |j: &JobSeen| self.jobs.get(&j.job).is_some_and(|(n, _)| *n >= iterations);
        self.start.is_some()
            && !look.jobs.is_empty()
            && look.jobs.len() <= JOBS_MAX
            && look.jobs.iter().all(enough)
    }

    /// What it measured from `from` on. `None`: nothing yet, a counter fell, or the ports are not those of its start.
    #[must_use]
    pub fn measured(&self, now: &Counters, at: Duration) -> Option<Measured> {
        let (since, start) = self.start.as_ref()?;
        let got = rise(start, now, at.saturating_sub(*since))?;
        let jobs = self.jobs.iter();
        Some(Measured {
            log_s: jobs
                .map(|(j, (n, sum))| (j.clone(), sum / f64::from(*n)))
                .collect(),
            ..got
        })
    }

    /// What was counted since the change itself. `None`: a counter fell, or the ports are others.
    #[must_use]
    pub fn since_change(&self, now: &Counters, at: Duration) -> Option<Measured> {
        rise(&self.change, now, at.saturating_sub(self.since))
    }
}

fn rise(start: &Counters, now: &Counters, time: Duration) -> Option<Measured> {
    let seconds = time.as_secs_f64().max(1e-9);
    let rose = |a: u64, b: u64| b.checked_sub(a).map(|d| d as f64);
    if now.paused_us.len() != start.paused_us.len() {
        return None;
    }
    let mut paused: f64 = 0.0;
    for (a, b) in start.paused_us.iter().zip(&now.paused_us) {
        paused = paused.max(rose(*a, *b)? / 1e6 / seconds);
    }
    let packets = rose(start.packets, now.packets)?;
    Some(Measured {
        log_s: BTreeMap::new(),
        paused,
        lost_per_s: rose(start.lost, now.lost)? / seconds,
        out_of_sequence_per_s: rose(start.out_of_sequence, now.out_of_sequence)? / seconds,
        marked: rose(start.marked, now.marked)? / packets.max(1.0),
        seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(ended_ms: &[(u64, u64)], paused_us: u64) -> Look {
        let ms = Duration::from_millis;
        Look {
            jobs: vec![JobSeen {
                job: JobId::new("ring"),
                ended: ended_ms.iter().map(|(a, b)| (ms(*a), ms(*b))).collect(),
                running_since: None,
            }],
            counters: Counters {
                paused_us: vec![0, paused_us],
                packets: 100,
                ..Counters::default()
            },
        }
    }

    #[test]
    fn what_the_change_still_shows_in_does_not_count() {
        let ms = Duration::from_millis;
        let mut block = Block::new(ms(2), ms(3), ms(0), look(&[], 0).counters);
        block.add(&look(&[(2, 8)], 100), ms(5));
        assert!(!block.complete(&look(&[], 0), 1));
        block.add(&look(&[(8, 10), (10, 18)], 100), ms(8));
        assert!(block.complete(&look(&[], 0), 2) && !block.complete(&look(&[], 0), 3));
        let got = block.measured(&look(&[], 600).counters, ms(15)).unwrap();
        // Geometric mean of 2 and 8 ms; 0.5 of 10 ms.
        assert!((got.log_s[&JobId::new("ring")].exp() - 0.004).abs() < 1e-9);
        assert!((got.paused - 0.05).abs() < 1e-9, "{}", got.paused);
        let all = block
            .since_change(&look(&[], 600).counters, ms(14))
            .unwrap();
        assert!((all.paused - 0.05).abs() < 1e-9, "{}", all.paused);
    }

    #[test]
    fn a_counter_that_falls_makes_the_block_unknown() {
        let at = Duration::from_millis(1);
        let mut block = Block::new(
            Duration::ZERO,
            Duration::ZERO,
            Duration::ZERO,
            Counters::default(),
        );
        assert_eq!(block.measured(&look(&[], 99).counters, at), None);
        block.add(&look(&[], 100), Duration::ZERO);
        assert!(!block.complete(&look(&[], 100), 1));
        assert!(block.measured(&look(&[], 100).counters, at).is_some());
        assert_eq!(block.measured(&look(&[], 99).counters, at), None);
        let fewer = Counters {
            paused_us: vec![0, 100],
            packets: 99,
            ..Counters::default()
        };
        assert_eq!(block.measured(&fewer, at), None);
    }

    #[test]
    fn without_jobs_nothing_is_complete() {
        let block = Block::new(
            Duration::ZERO,
            Duration::ZERO,
            Duration::ZERO,
            Counters::default(),
        );
        assert!(!block.complete(&Look::default(), 0));
    }
}
