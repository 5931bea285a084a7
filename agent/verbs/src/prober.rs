//! Whom to ping when, and what became of it. Pure: time is given, packets are the caller's.
//!
//! Six times make a measurement (Liu et al., R-Pingmesh): T1 before the ping is posted, T2 when it
//! left the device, T3 and T4 when it came and the answer left at the other end, T5 when the answer
//! came, T6 when it was handled. `(T5 - T2) - (T4 - T3)` is the fabric's, `(T6 - T1) - (T5 - T2)` this host's,
//! `T4 - T3` the other host's. Without timestamps of the device T2 is T1 and T5 is T6, because a
//! completion may be polled long after the packet left: then the fabric's part holds this host's too.

use crate::bucket::Bucket;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;
use weir_verbs_protocol::{Report, Spread, Target, Timestamps};

/// A ping that is not answered for this long is lost. Ten times what a congested fabric adds.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Pings under way at once: what the highest rate sends in one time-out.
const OUTSTANDING_MAX: usize = weir_verbs_protocol::PINGS_PER_SECOND_MAX as usize;

/// What the times of completions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Completions have no times.
    Host,
    /// The device's: cycles, of which those in `mask` are counted.
    Device { khz: u64, mask: u64 },
}

impl Clock {
    /// Nanoseconds from one time to a later one.
    #[must_use]
    pub fn between(self, from: u64, to: u64) -> u64 {
        match self {
            Clock::Host => to.saturating_sub(from),
            Clock::Device { khz, mask } => {
                let cycles = u128::from(to.wrapping_sub(from) & mask);
                let ns = cycles * 1_000_000 / u128::from(khz.max(1));
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        }
    }

    #[must_use]
    pub fn timestamps(self) -> Timestamps {
        match self {
            Clock::Host => Timestamps::Software,
            Clock::Device { .. } => Timestamps::Hardware,
        }
    }
}

/// A target with its address read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    pub target: Target,
    pub gid: Ipv6Addr,
}

/// A ping to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shot {
    pub sequence: u64,
    pub aim: Aim,
}

#[derive(Debug, Default)]
struct Window {
    sent: u64,
    lost: u64,
    rtt: Vec<u64>,
    host: Vec<u64>,
    responder: Vec<u64>,
}

#[derive(Debug)]
struct Goal {
    aim: Aim,
    window: Window,
}

/// A ping under way; host times in nanoseconds.
#[derive(Debug)]
struct Flight {
    id: String,
    gid: Ipv6Addr,
    posted: u64,
    departed: Option<u64>,
    /// Time of the completion, and when it was handled.
    answered: Option<(u64, u64)>,
    delay: Option<u64>,
}

/// The pings of one port.
#[derive(Debug)]
pub struct Prober {
    clock: Clock,
    goals: BTreeMap<String, Goal>,
    /// The target that was pinged last.
    last: Option<String>,
    pace: Bucket,
    /// Pings that may still be sent; `None`: without end.
    left: Option<u64>,
    flights: BTreeMap<u64, Flight>,
    sequence: u64,
    window_from: Duration,
}

fn ns(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

impl Prober {
    #[must_use]
    pub fn new(clock: Clock, now: Duration) -> Prober {
        Prober {
            clock,
            goals: BTreeMap::new(),
            last: None,
            pace: Bucket::new(0, now),
            left: None,
            flights: BTreeMap::new(),
            sequence: 0,
            window_from: now,
        }
    }

    /// These targets and no others, `per_second` pings in all. What is measured of those that stay, stays.
    pub fn set_aims(&mut self, aims: Vec<Aim>, per_second: u32, now: Duration) {
        self.pace.set_rate(per_second, now);
        let mut old = std::mem::take(&mut self.goals);
        for aim in aims {
            let window = match old.remove(&aim.target.id) {
                Some(goal) if goal.aim == aim => goal.window,
                Some(_) | None => Window::default(),
            };
            self.goals
                .insert(aim.target.id.clone(), Goal { aim, window });
        }
        let goals = &self.goals;
        self.flights.retain(|_, flight| {
            goals
                .get(&flight.id)
                .is_some_and(|goal| goal.aim.gid == flight.gid)
        });
    }

    /// Sends only this many pings from now on.
    pub fn set_limit(&mut self, pings: u64) {
        self.left = Some(pings);
    }

    /// As many more, if there is a limit.
    pub fn add_to_limit(&mut self, pings: u64) {
        self.left = self.left.map(|left| left.saturating_add(pings));
    }

    /// When there is something to do next; `None`: nothing is asked for and nothing under way.
    #[must_use]
    pub fn wake(&self) -> Option<Duration> {
        let ping = self
            .pace
            .next()
            .filter(|_| !self.goals.is_empty() && self.left != Some(0));
        let expiry = self
            .flights
            .first_key_value()
            .map(|(_, flight)| Duration::from_nanos(flight.posted).saturating_add(TIMEOUT));
        ping.into_iter().chain(expiry).min()
    }

    /// The next ping, if its time has come. Targets take turns.
    pub fn shoot(&mut self, now: Duration) -> Option<Shot> {
        let idle = self.goals.is_empty() || self.left == Some(0);
        if idle || self.flights.len() >= OUTSTANDING_MAX || !self.pace.take(now) {
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        let after = self.last.as_ref().and_then(|last| {
            let later = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
            self.goals.range::<String, _>(later).next()
        });
        let (id, goal) = after.or_else(|| self.goals.first_key_value())?;
        let aim = goal.aim.clone();
        self.last = Some(id.clone());
        self.sequence += 1;
        Some(Shot {
            sequence: self.sequence,
            aim,
        })
    }

    /// The ping is about to be posted.
    pub fn posted(&mut self, shot: &Shot, now: Duration) {
        let flight = Flight {
            id: shot.aim.target.id.clone(),
            gid: shot.aim.gid,
            posted: ns(now),
            departed: (self.clock == Clock::Host).then(|| ns(now)),
            answered: None,
            delay: None,
        };
        self.flights.insert(shot.sequence, flight);
    }

    /// It could not be posted after all, and counts for nothing.
    pub fn held_back(&mut self, sequence: u64) {
        self.flights.remove(&sequence);
    }

    /// There is no way to the target: its ping is lost.
    pub fn unreachable(&mut self, shot: &Shot) {
        if let Some(goal) = self.goals.get_mut(&shot.aim.target.id) {
            goal.window.sent += 1;
            goal.window.lost += 1;
        }
    }

    /// The ping has left the device; `at` is the time of its completion.
    pub fn departed(&mut self, sequence: u64, at: u64) {
        if let Some(flight) = self.flights.get_mut(&sequence) {
            flight.departed.get_or_insert(at);
        }
        self.finish(sequence);
    }

    /// An answer; `at` is the time of its completion. False if nobody waits for it.
    pub fn answered(&mut self, sequence: u64, from: Ipv6Addr, at: u64, now: Duration) -> bool {
        let host = self.clock == Clock::Host;
        let Some(flight) = self.flight(sequence, from) else {
            return false;
        };
        let at = if host { ns(now) } else { at };
        flight.answered.get_or_insert((at, ns(now)));
        self.finish(sequence);
        true
    }

    /// What the answer took at the other end. False if nobody waits for it.
    pub fn delayed(&mut self, sequence: u64, from: Ipv6Addr, delay_ns: u64) -> bool {
        let Some(flight) = self.flight(sequence, from) else {
            return false;
        };
        flight.delay.get_or_insert(delay_ns);
        self.finish(sequence);
        true
    }

    fn flight(&mut self, sequence: u64, from: Ipv6Addr) -> Option<&mut Flight> {
        self.flights
            .get_mut(&sequence)
            .filter(|flight| flight.gid == from)
    }

    fn finish(&mut self, sequence: u64) {
        let Some(flight) = self.flights.get(&sequence) else {
            return;
        };
        let (Some(departed), Some((came, handled)), Some(delay)) =
            (flight.departed, flight.answered, flight.delay)
        else {
            return;
        };
        let away = self.clock.between(departed, came);
        let whole = handled.saturating_sub(flight.posted);
        let id = flight.id.clone();
        self.flights.remove(&sequence);
        if let Some(Goal { window, .. }) = self.goals.get_mut(&id) {
            window.sent += 1;
            // A delay longer than the time away is not true: no measurement.
            if let Some(rtt) = away.checked_sub(delay) {
                window.rtt.push(rtt);
                window.responder.push(delay);
                if self.clock != Clock::Host {
                    window.host.push(whole.saturating_sub(away));
                }
            }
        }
    }

    /// Gives up what was not answered in time.
    pub fn expire(&mut self, now: Duration) {
        let limit = ns(now.saturating_sub(TIMEOUT));
        while let Some(entry) = self.flights.first_entry() {
            if entry.get().posted > limit || now < TIMEOUT {
                return;
            }
            let flight = entry.remove();
            if let Some(goal) = self.goals.get_mut(&flight.id) {
                goal.window.sent += 1;
                goal.window.lost += u64::from(flight.answered.is_none());
            }
        }
    }

    /// What the window that ends now met, and begins the next.
    pub fn reports(&mut self, now: Duration) -> Vec<Report> {
        let length = now.saturating_sub(self.window_from);
        self.window_from = now;
        let timestamps = self.clock.timestamps();
        let mut reports = Vec::new();
        for (id, goal) in &mut self.goals {
            let window = std::mem::take(&mut goal.window);
            if window.sent == 0 {
                continue;
            }
            reports.push(Report {
                id: id.clone(),
                device: goal.aim.target.device.clone(),
                port: goal.aim.target.port,
                sent: window.sent,
                lost: window.lost,
                rtt_ns: spread(window.rtt),
                host_ns: spread(window.host),
                responder_ns: spread(window.responder),
                timestamps,
                window_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            });
        }
        reports
    }
}

fn spread(mut values: Vec<u64>) -> Option<Spread> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    // Nearest rank.
    let rank = |percent: usize| (values.len() * percent).div_ceil(100).saturating_sub(1);
    let at = |index: usize| values.get(index).copied();
    Some(Spread {
        samples: values.len() as u64,
        min: at(0)?,
        p50: at(rank(50))?,
        p99: at(rank(99))?,
        max: at(last)?,
    })
}

#[cfg(test)]
mod tests;
