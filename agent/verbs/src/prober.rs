//! Whom to ping when, and what became of it. Pure: time is given, packets are the caller's.
//!
//! Six times make a measurement (Liu et al., R-Pingmesh): T1 before the ping is posted, T2 when it
//! left the device, T3 and T4 when it came and the answer left at the other end, T5 when the answer
//! came, T6 when it was handled. `(T5 - T2) - (T4 - T3)` is the fabric's, `(T6 - T1) - (T5 - T2)` this host's,
//! `T4 - T3` the other host's. Without timestamps of the device T2 is T1 and T5 is T6, because a
//! completion may be polled long after the packet left: then the fabric's part holds this host's too.

use crate::budget::WIRE_BYTES;
use crate::ways::Route;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;
use weir_agent_core::probe::budget::{Budget, Burst, PACKETS_PER_S_MAX};
use weir_agent_core::probe::prober::TARGET_PER_S_MAX;
use weir_verbs_protocol::{Report, Spread, Target, Timestamps};

/// A ping that is not answered for this long is lost. Ten times what a congested fabric adds.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Pings under way at once: what the highest rate sends in one time-out.
const OUTSTANDING_MAX: usize = PACKETS_PER_S_MAX as usize;
/// A target that has not answered since it was named, or since its endpoint changed, may not know of
/// us yet, or may have started anew: for this long its silence is no loss. Agents tell their
/// endpoints within a second, the controller its lists within five.
pub const GRACE: Duration = Duration::from_secs(10);
/// So many pings of one target lost in a row: its address is in doubt.
const DOUBT: u32 = 3;

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

impl Aim {
    #[must_use]
    pub fn route(&self) -> Route {
        Route {
            gid: self.gid,
            flow_label: self.target.flow_label,
            hop_limit: self.target.hop_limit,
        }
    }
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
    /// When it was named.
    since: Duration,
    /// It has answered since.
    answered: bool,
    /// Pings lost since its last answer.
    lost_in_a_row: u32,
}

impl Goal {
    fn new(aim: Aim, now: Duration) -> Goal {
        Goal {
            aim,
            window: Window::default(),
            since: now,
            answered: false,
            lost_in_a_row: 0,
        }
    }

    /// A ping without an answer. True if it is a loss, and not a target that is only just named.
    fn lose(&mut self, grace: Duration, now: Duration) -> bool {
        self.lost_in_a_row = self.lost_in_a_row.saturating_add(1);
        let lost = self.answered || now.saturating_sub(self.since) >= grace;
        self.window.sent += u64::from(lost);
        self.window.lost += u64::from(lost);
        lost
    }
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
    pace: Budget,
    /// Pings that may still be sent; `None`: without end.
    left: Option<u64>,
    flights: BTreeMap<u64, Flight>,
    sequence: u64,
    window_from: Duration,
    grace: Duration,
    /// Pings without an answer that are no loss.
    pub unknown: u64,
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
            pace: Budget::new(0, None, WIRE_BYTES, Burst::Small, now),
            left: None,
            flights: BTreeMap::new(),
            sequence: 0,
            window_from: now,
            grace: GRACE,
            unknown: 0,
        }
    }

    /// These targets and no others, so many pings and bytes a second in all. What is measured of
    /// those that stay, stays; one whose endpoint is another starts anew.
    pub fn set_aims(
        &mut self,
        aims: Vec<Aim>,
        per_second: u32,
        bytes_per_s: Option<u64>,
        now: Duration,
    ) {
        // A responder answers so many of one source.
        let gids: BTreeSet<Ipv6Addr> = aims.iter().map(|aim| aim.gid).collect();
        let gids = u32::try_from(gids.len()).unwrap_or(u32::MAX);
        let per_second = per_second.min(gids.saturating_mul(TARGET_PER_S_MAX));
        self.pace.limit(per_second, bytes_per_s, WIRE_BYTES, now);
        let mut old = std::mem::take(&mut self.goals);
        let mut stayed = BTreeSet::new();
        for aim in aims {
            let id = aim.target.id.clone();
            let goal = match old.remove(&id) {
                Some(goal) if goal.aim == aim => {
                    stayed.insert(id.clone());
                    goal
                }
                Some(_) | None => Goal::new(aim, now),
            };
            self.goals.insert(id, goal);
        }
        self.flights.retain(|_, flight| stayed.contains(&flight.id));
    }

    /// How long the silence of a target that was only just named is no loss; [`GRACE`] at first.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
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
            .due(WIRE_BYTES)
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
        if idle || self.flights.len() >= OUTSTANDING_MAX || !self.pace.take(WIRE_BYTES, now) {
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

    /// The network has no way to the target: its ping is lost.
    pub fn unreachable(&mut self, shot: &Shot, now: Duration) {
        if let Some(goal) = self.goals.get_mut(&shot.aim.target.id) {
            self.unknown += u64::from(!goal.lose(self.grace, now));
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
        let id = flight.id.clone();
        if let Some(goal) = self.goals.get_mut(&id) {
            goal.answered = true;
            goal.lost_in_a_row = 0;
        }
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

    /// Gives up what was not answered in time; returns ways that several pings in a row were lost on.
    pub fn expire(&mut self, now: Duration) -> Vec<Route> {
        let limit = ns(now.saturating_sub(TIMEOUT));
        let mut doubtful = Vec::new();
        while let Some(entry) = self.flights.first_entry() {
            if entry.get().posted > limit || now < TIMEOUT {
                break;
            }
            let flight = entry.remove();
            let Some(goal) = self.goals.get_mut(&flight.id) else {
                continue;
            };
            if flight.answered.is_some() {
                goal.window.sent += 1;
                continue;
            }
            self.unknown += u64::from(!goal.lose(self.grace, now));
            if goal.lost_in_a_row >= DOUBT {
                doubtful.push(goal.aim.route());
            }
        }
        doubtful
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
