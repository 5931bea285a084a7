//! The prober: a schedule over targets and paths, the table of probes in flight, and what each
//! reply means.
//!
//! ```text
//!            order           sent                reply               its own stamp came, or HOLD passed
//!  schedule ──────> in flight ──────> in flight ───────> answered ──────────────────────────> counted
//!                       │ could not be sent   │ time-out
//!                       v                     v
//!                    failed                 lost ──reply──> late (stays lost)
//! ```
//!
//! Every path starts at a random phase and its interval varies by half, so that probes neither come
//! in bursts nor keep step with an all-reduce. Where the budget gives less than the interval asks
//! for, all paths get the same share of it.
//!
//! Stamps of the kernel say when a packet came, so nobody has to be awake for it: the caller sleeps
//! for [`Prober::pause`] at least and takes all that came meanwhile at once. A few probes a second are
//! waited for ([`Prober::is_watching`]), because how long this host takes to wake up is a measure too.
//!
//! `A` is where a target is reached; the caller knows what it means.

use super::budget::{Budget, Burst};
use super::packet::{Kind, Packet};
use super::window::{Count, Samples};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

mod state;
mod types;
use state::{Answer, Flight, Path, TargetState};
pub use types::{
    Counters, Order, PathReport, Settings, Stamps, Target, TargetReport, TargetSummary,
};

/// Paths to one target at most: the number of source ports.
pub const PATHS_MAX: u8 = 32;
/// Targets at most; a list of the controller's has fewer.
pub const TARGETS_MAX: usize = 128;
/// Paths to all targets at most: what one node's results may cost.
pub const PATHS_TOTAL_MAX: usize = 1024;
/// Probes of one target in a second: a responder answers no more than a few times as many of one source.
pub const TARGET_PER_S_MAX: u32 = 100;
/// Probes in flight, and as many remembered after their time-out: two seconds at the highest rate.
const FLIGHT_MAX: usize = 2048;
/// A NIC's or kernel's own stamp of a probe may come so much after the reply.
const HOLD: Duration = Duration::from_millis(50);
/// A probe is watched so often, and for so long.
const WATCH_EVERY: Duration = Duration::from_millis(250);
const WATCH_FOR: Duration = Duration::from_millis(100);
/// Time between two wake-ups, at least; with as much again by chance, so that they keep step with
/// nothing. Ten in a second cost little, and can send all that a second may hold.
const PAUSE: Duration = Duration::from_millis(66);
/// A new target's agent hears of us at about the time at which we hear of it.
pub const SETTLE: Duration = Duration::from_secs(2);

/// The state machine.
#[derive(Debug)]
pub struct Prober<A> {
    settings: Settings,
    budget: Budget,
    packets_per_s: u32,
    targets: BTreeMap<u32, TargetState<A>>,
    next_target: u32,
    due: BTreeSet<(Duration, u32, u8)>,
    flights: BTreeMap<u64, Flight>,
    /// Sequence numbers of answers that wait for a stamp of ours, oldest first.
    waiting: VecDeque<u64>,
    /// Sequence and nonce of what was lost lately.
    expired: VecDeque<(u64, u64)>,
    sequence: u64,
    random: u64,
    window_ends: Duration,
    put_off: bool,
    /// What came last had a stamp of the kernel or the NIC.
    stamped: bool,
    /// The next probe from then on is watched.
    watch_at: Duration,
    /// All flights before it are counted.
    first_open: u64,
    pub counters: Counters,
}

impl<A: Copy + PartialEq> Prober<A> {
    /// `seed` must not be known to others: sequence numbers and nonces are made of it.
    #[must_use]
    pub fn new(settings: Settings, seed: u64, now: Duration) -> Prober<A> {
        let mut prober = Prober {
            settings,
            budget: Budget::new(0, None, 1, Burst::Small, now),
            packets_per_s: 0,
            targets: BTreeMap::new(),
            next_target: 0,
            due: BTreeSet::new(),
            flights: BTreeMap::new(),
            waiting: VecDeque::new(),
            expired: VecDeque::new(),
            sequence: 0,
            random: seed,
            window_ends: now + settings.window,
            put_off: false,
            stamped: false,
            watch_at: now,
            first_open: 0,
            counters: Counters::default(),
        };
        prober.sequence = prober.random() >> 1;
        prober
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Up to so much of `span`, evenly.
    fn share(&mut self, span: Duration) -> Duration {
        let thousandths = u32::try_from(self.random() % 1000).unwrap_or(0);
        span / 1000 * thousandths
    }

    /// Probes these from now on, with at most so many packets and bytes in a second. A target that
    /// is as before goes on as before; what is beyond the limits is left out, and counted in the
    /// result.
    pub fn set_targets(
        &mut self,
        targets: Vec<Target<A>>,
        packets_per_s: u32,
        bytes_per_s: Option<u64>,
        now: Duration,
    ) -> usize {
        let asked = targets.len();
        let unit = targets.iter().map(|t| t.wire_bytes).max().unwrap_or(1);
        self.budget.limit(packets_per_s, bytes_per_s, unit, now);
        self.packets_per_s = packets_per_s;
        let mut former = std::mem::take(&mut self.targets);
        let mut names = BTreeSet::new();
        let mut room = PATHS_TOTAL_MAX;
        let mut fresh = Vec::new();
        for mut target in targets {
            target.paths = target.paths.clamp(1, PATHS_MAX);
            let paths = usize::from(target.paths);
            let full = self.targets.len() >= TARGETS_MAX || paths > room;
            if full || !names.insert(target.name.clone()) {
                continue;
            }
            room -= paths;
            let same = |state: &&TargetState<A>| state.target == target;
            let known = former.iter().find(|(_, state)| same(state));
            if let Some(id) = known.map(|(id, _)| *id)
                && let Some(state) = former.remove(&id)
            {
                self.targets.insert(id, state);
                continue;
            }
            let id = self.next_target;
            self.next_target = self.next_target.wrapping_add(1);
            fresh.extend((0..target.paths).map(|path| (id, path)));
            let state = TargetState {
                paths: vec![Path::default(); paths],
                target,
                total: Count::default(),
                own: Samples::default(),
                theirs: Samples::default(),
                last: None,
            };
            self.targets.insert(id, state);
        }
        let targets = &self.targets;
        self.due.retain(|(_, id, _)| targets.contains_key(id));
        for (id, path) in fresh {
            let phase = self.share(self.interval(id));
            self.due.insert((now + SETTLE + phase, id, path));
        }
        asked - self.targets.len()
    }

    /// Time between two probes of a path of the target.
    fn interval(&self, target: u32) -> Duration {
        let share = |paths: usize, per_s: u32| {
            Duration::from_secs(1) * u32::try_from(paths).unwrap_or(u32::MAX) / per_s.max(1)
        };
        let all: usize = self.targets.values().map(|t| t.paths.len()).sum();
        let own = self.targets.get(&target).map_or(0, |t| t.paths.len());
        let fair = share(all, self.packets_per_s).max(share(own, TARGET_PER_S_MAX));
        self.settings.interval.max(fair)
    }

    /// The next probe that is due and may be sent.
    pub fn poll_order(&mut self, user_ns: u64, now: Duration) -> Option<Order<A>> {
        let (due, id, path) = *self.due.first()?;
        if due > now || self.flights.len() >= FLIGHT_MAX {
            return None;
        }
        let state = self.targets.get(&id)?;
        let address = state.target.address;
        if !self.budget.take(state.target.wire_bytes, now) {
            self.counters.over_budget += u64::from(!self.put_off);
            self.put_off = true;
            return None;
        }
        self.put_off = false;
        self.due.pop_first();
        let interval = self.interval(id);
        let next = now + interval / 2 + self.share(interval);
        self.due.insert((next, id, path));
        self.sequence = self.sequence.wrapping_add(1);
        let nonce = self.random();
        // Without stamps the time at which we see the answer is all there is.
        let watched = !self.stamped || now >= self.watch_at;
        if watched {
            self.watch_at = now + WATCH_EVERY;
        }
        let flight = Flight {
            target: id,
            path,
            nonce,
            sent: now,
            tx: Stamps {
                user: user_ns,
                ..Stamps::default()
            },
            answer: None,
            watched,
            counted: false,
        };
        self.flights.insert(self.sequence, flight);
        self.counters.sent += 1;
        let packet = Packet {
            kind: Kind::Request,
            path: path.into(),
            sequence: self.sequence,
            nonce,
            held: None,
        };
        Some(Order {
            packet,
            path,
            address,
        })
    }

    /// When to come again; `None`: there is nothing to wait for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let first = self.due.first().and_then(|(due, id, _)| {
            let wire_bytes = self.targets.get(id)?.target.wire_bytes;
            if self.flights.len() >= FLIGHT_MAX {
                return None;
            }
            if self.put_off {
                return self.budget.due(wire_bytes).map(|at| at.max(*due));
            }
            Some(*due)
        });
        let expiry = self.open().next();
        let expiry = expiry.map(|flight| flight.sent + self.settings.timeout);
        let waiting = self.waiting.front().and_then(|s| self.flights.get(s));
        let held = waiting.and_then(|flight| Some(flight.answer.as_ref()?.until));
        let window = (!self.targets.is_empty()).then_some(self.window_ends);
        [first, expiry, held, window].into_iter().flatten().min()
    }

    /// Flights whose outcome is open, oldest first.
    fn open(&self) -> impl Iterator<Item = &Flight> {
        let flights = self.flights.range(self.first_open..);
        flights.map(|(_, flight)| flight).filter(|f| !f.counted)
    }

    /// Whether what comes in is to be handed over at once: an answer is waited for.
    #[must_use]
    pub fn is_watching(&self, now: Duration) -> bool {
        let patience = if self.stamped {
            WATCH_FOR
        } else {
            self.settings.timeout
        };
        self.open()
            .any(|f| f.watched && f.answer.is_none() && now.saturating_sub(f.sent) < patience)
    }

    /// How long the caller sleeps at least, unless it is watching and something comes.
    pub fn pause(&mut self) -> Duration {
        PAUSE + self.share(PAUSE)
    }

    /// Whom a probe that is out was sent to.
    #[must_use]
    pub fn address_of(&self, sequence: u64) -> Option<A> {
        let flight = self.flights.get(&sequence)?;
        Some(self.targets.get(&flight.target)?.target.address)
    }

    /// The probe could not be sent.
    pub fn failed(&mut self, sequence: u64) {
        let open = |flight: &Flight| flight.answer.is_none();
        if self.flights.get(&sequence).is_some_and(open) {
            self.flights.remove(&sequence);
            self.counters.failed += 1;
        }
    }

    /// Whoever should answer has no responder.
    pub fn refused(&mut self, packet: &Packet) {
        let open = |flight: &Flight| flight.nonce == packet.nonce && flight.answer.is_none();
        if self.flights.get(&packet.sequence).is_some_and(open) {
            self.flights.remove(&packet.sequence);
            self.counters.refused += 1;
        }
    }

    /// The kernel or the NIC stamped a probe on its way out.
    pub fn stamped(&mut self, packet: &Packet, kernel: Option<u64>, nic: Option<u64>) {
        let Some(flight) = self.flights.get_mut(&packet.sequence) else {
            return;
        };
        if flight.nonce != packet.nonce || flight.counted {
            return;
        }
        flight.tx.kernel = kernel.or(flight.tx.kernel);
        flight.tx.nic = nic.or(flight.tx.nic);
        let done = flight.answer.as_ref().is_some_and(|answer| {
            // A NIC that stamps what comes in stamps what goes out.
            answer.rx.nic.is_none() || flight.tx.nic.is_some()
        });
        if done {
            self.count(packet.sequence);
        }
    }

    /// A packet came in on the source port `path`.
    pub fn replied(&mut self, packet: &Packet, from: A, path: u8, rx: Stamps, now: Duration) {
        let Some(flight) = self.flights.get_mut(&packet.sequence) else {
            if self.expired.contains(&(packet.sequence, packet.nonce)) {
                self.counters.late += 1;
            } else {
                self.counters.strays += 1;
            }
            return;
        };
        let expected = self.targets.get(&flight.target);
        let ours = packet.kind == Kind::Reply
            && packet.nonce == flight.nonce
            && path == flight.path
            && expected.is_none_or(|state| state.target.address == from);
        if !ours {
            self.counters.strays += 1;
            return;
        }
        if flight.answer.is_some() {
            self.counters.duplicates += 1;
            return;
        }
        self.stamped = rx.nic.is_some() || rx.kernel.is_some();
        // By both clocks, as one of them may step.
        let took = rx.kernel.unwrap_or(rx.user).saturating_sub(flight.tx.user);
        let timeout = self.settings.timeout;
        if now.saturating_sub(flight.sent) > timeout && Duration::from_nanos(took) > timeout {
            self.counters.late += 1;
            self.lose(packet.sequence);
            return;
        }
        // We may have slept while it waited.
        flight.watched &= now.saturating_sub(flight.sent) < WATCH_FOR || !self.stamped;
        let stamped = match rx.nic {
            Some(_) => flight.tx.nic.is_some(),
            None => flight.tx.kernel.is_some() || rx.kernel.is_none(),
        };
        let until = now + HOLD;
        let held = packet.held;
        flight.answer = Some(Answer { rx, held, until });
        if stamped {
            self.count(packet.sequence);
        } else {
            self.waiting.push_back(packet.sequence);
        }
    }

    /// Time passed: what was not answered is lost, a window may be over. To be called after
    /// everything that has come in was handed over.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(sequence) = self.waiting.front().copied() {
            match self.flights.get(&sequence).map(|f| (f.counted, &f.answer)) {
                Some((false, Some(answer))) if answer.until > now => break,
                Some((false, _)) => self.count(sequence),
                Some((true, _)) | None => {}
            }
            self.waiting.pop_front();
        }
        while let Some(entry) = self.flights.first_entry() {
            if entry.get().sent + self.settings.timeout > now {
                break;
            }
            let sequence = *entry.key();
            if entry.get().answer.is_some() {
                self.count(sequence);
                self.flights.remove(&sequence);
            } else {
                self.lose(sequence);
            }
        }
        let open = self.flights.range(self.first_open..);
        let mut open = open.filter(|(_, flight)| !flight.counted);
        self.first_open = open.next().map_or(self.sequence, |(sequence, _)| *sequence);
        if now >= self.window_ends {
            self.targets.values_mut().for_each(TargetState::close);
            self.window_ends = now + self.settings.window;
        }
    }

    /// A probe was not answered in time.
    fn lose(&mut self, sequence: u64) {
        let Some(flight) = self.flights.remove(&sequence) else {
            return;
        };
        self.counters.lost += 1;
        if self.expired.len() >= FLIGHT_MAX {
            self.expired.pop_front();
        }
        self.expired.push_back((sequence, flight.nonce));
        if let Some(state) = self.targets.get_mut(&flight.target) {
            state.total.add(true);
            if let Some(path) = state.paths.get_mut(usize::from(flight.path)) {
                path.total.add(true);
                path.window.add(true);
            }
        }
    }

    /// Counts an answered probe.
    fn count(&mut self, sequence: u64) {
        let random = self.random();
        let Some(flight) = self.flights.get_mut(&sequence) else {
            return;
        };
        let (Some(answer), false) = (&flight.answer, flight.counted) else {
            return;
        };
        flight.counted = true;
        self.counters.answered += 1;
        let (tx, rx) = (flight.tx, answer.rx);
        let (elapsed, by) = match (tx.nic, rx.nic, tx.kernel, rx.kernel) {
            (Some(tx), Some(rx), _, _) => (rx.checked_sub(tx), &mut self.counters.by_nic),
            (_, _, Some(tx), Some(rx)) => (rx.checked_sub(tx), &mut self.counters.by_kernel),
            _ if flight.watched => (rx.user.checked_sub(tx.user), &mut self.counters.by_user),
            _ => (None, &mut self.counters.by_user),
        };
        let rtt = elapsed.map(Duration::from_nanos);
        let rtt = rtt.zip(answer.held).and_then(|(e, h)| e.checked_sub(h));
        // More than the time-out is no round trip of a probe that was answered within it.
        let rtt = rtt.filter(|rtt| *rtt <= self.settings.timeout + HOLD);
        match rtt {
            Some(_) => *by += 1,
            None => self.counters.implausible += 1,
        }
        let out = tx.kernel.and_then(|kernel| kernel.checked_sub(tx.user));
        let back = rx.kernel.and_then(|kernel| rx.user.checked_sub(kernel));
        let own = out.zip(back).filter(|_| flight.watched);
        let own = own.map(|(out, back)| out.saturating_add(back));
        let Some(state) = self.targets.get_mut(&flight.target) else {
            return;
        };
        state.total.add(false);
        if let Some(own) = own {
            state.own.add(Duration::from_nanos(own), random);
        }
        if let Some(held) = answer.held {
            state.theirs.add(held, random);
        }
        if let Some(path) = state.paths.get_mut(usize::from(flight.path)) {
            path.total.add(false);
            path.window.add(false);
            if let Some(rtt) = rtt {
                path.rtts.add(rtt, random);
            }
        }
    }

    /// What is known of every target, by name.
    #[must_use]
    pub fn report(&self) -> Vec<TargetReport> {
        let reports = self.targets.values().map(TargetState::report);
        let mut reports: Vec<TargetReport> = reports.collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }
}

#[cfg(test)]
mod tests;
