//! What links and flows do while certain jobs send at once: max-min fair rates, queues, marks and pause.
//!
//! A link on which all demands together fit holds nobody back, so that only the others are solved for. Queues are those
//! of DCQCN with the marking thresholds of the published settings (Kmin 400 KB, Kmax 1,600 KB at 100 Gb/s, in proportion
//! to the rate).

use crate::fabric::{Fabric, Link};
use crate::job::Job;
use crate::load::GO_BACK;
use crate::physics::Physics;
use std::collections::BTreeMap;
use weir_controller_core::maxmin;

/// Marking starts at this queue, as seconds of the link's rate (400 KB at 100 Gb/s).
const KMIN_S: f64 = 400e3 * 8.0 / 100e9;
/// All are marked at this queue (1,600 KB at 100 Gb/s).
const KMAX_S: f64 = 4.0 * KMIN_S;
/// Demand over capacity from which a link holds flows back: more than rounding makes of one that fits.
pub const FULL: f64 = 1.001;
/// Slower is standing still.
const STALLED_BPS: f64 = 1e3;

/// What a link does while jobs on it communicate.
#[derive(Debug, Clone, Copy, Default)]
pub struct State {
    /// Demand over capacity.
    pub overload: f64,
    pub queue_bytes: f64,
    /// Share of packets marked as they leave.
    pub marked: f64,
    /// Share of the time for which the peer keeps this transmitter paused: while jobs communicate, and always.
    pub paused: f64,
    pub paused_always: f64,
}

impl State {
    /// The worse of both in everything.
    pub fn worsen(&mut self, other: &State) {
        self.overload = self.overload.max(other.overload);
        self.queue_bytes = self.queue_bytes.max(other.queue_bytes);
        self.marked = self.marked.max(other.marked);
        self.paused = self.paused.max(other.paused);
        self.paused_always = self.paused_always.max(other.paused_always);
    }
}

/// What a flow does.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub rate_bps: f64,
    /// Of one step; of a job without steps, of one second.
    pub bytes: f64,
    /// Share of packets marked on their way.
    pub marked: f64,
}

/// While certain jobs send.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Of each job, its step's transfer in seconds and its flows in order.
    jobs: BTreeMap<usize, (f64, Vec<Pace>)>,
    /// Links that are held back, or hold back.
    links: BTreeMap<Link, State>,
}

impl Moment {
    /// `capacity` in bits per second and `base`, what pause does whoever sends, are those of all links.
    #[must_use]
    pub fn new(
        (fabric, physics): (&Fabric, &Physics),
        jobs: &[Job],
        sending: &[usize],
        capacity: &[f64],
        base: &[State],
    ) -> Moment {
        // A collective advances together: with a flow that has no way nobody sends.
        let goes =
            |j: &&usize| !jobs[**j].trains() || jobs[**j].flows.iter().all(|f| !f.path.is_empty());
        let going: Vec<usize> = sending.iter().filter(goes).copied().collect();
        let mut moment = Moment::default();
        let rates = rates(jobs, &going, capacity);
        moment.crowd(fabric, jobs, &going, capacity);
        for flow in going.iter().flat_map(|j| &jobs[*j].flows) {
            for link in flow.path.iter().filter(|l| base[**l].marked > 0.0) {
                moment.links.entry(*link).or_default().worsen(&base[*link]);
            }
        }
        moment.pause(physics, jobs, &going);
        for number in sending {
            let job = &jobs[*number];
            let paces = job.flows.iter().enumerate().map(|(n, flow)| {
                let stands = flow.path.is_empty() || !going.contains(number);
                let free = if stands { STALLED_BPS } else { flow.demand_bps };
                let rate_bps = rates.get(&(*number, n)).copied().unwrap_or(free);
                let rate_bps = rate_bps / (1.0 + 4.0 * GO_BACK * flow.loss);
                let clear: f64 = flow.path.iter().map(|l| 1.0 - moment.marked(*l)).product();
                let bytes = if job.trains() {
                    flow.bytes
                } else {
                    rate_bps / 8.0
                };
                Pace {
                    rate_bps: rate_bps.max(STALLED_BPS),
                    bytes,
                    marked: 1.0 - clear,
                }
            });
            let paces: Vec<Pace> = paces.collect();
            let seconds = paces.iter().map(|p| p.bytes * 8.0 / p.rate_bps);
            let comm_s = seconds.fold(1e-3, f64::max);
            moment.jobs.insert(*number, (comm_s, paces));
        }
        moment
    }

    /// A step's transfer of a job that sends, in seconds.
    #[must_use]
    pub fn comm_s(&self, job: usize) -> f64 {
        self.jobs.get(&job).map_or(1.0, |(seconds, _)| *seconds)
    }

    /// The flows of a job in order; none of one that does not send.
    pub fn paces(&self, job: usize) -> impl Iterator<Item = &Pace> {
        self.jobs.get(&job).into_iter().flat_map(|(_, paces)| paces)
    }

    /// Links that are held back, or hold back.
    pub fn states(&self) -> impl Iterator<Item = (Link, &State)> {
        self.links.iter().map(|(link, state)| (*link, state))
    }

    /// Share of packets marked as they leave by a link.
    #[must_use]
    pub fn marked(&self, link: Link) -> f64 {
        self.links.get(&link).map_or(0.0, |s| s.marked)
    }

    /// Queues before links to which more comes than they carry.
    fn crowd(&mut self, fabric: &Fabric, jobs: &[Job], going: &[usize], capacity: &[f64]) {
        // Flows and what they want, by link and the link before it.
        let mut from: BTreeMap<(Link, Option<Link>), (u32, f64)> = BTreeMap::new();
        for flow in going.iter().flat_map(|j| &jobs[*j].flows) {
            let mut before = None;
            for link in &flow.path {
                let (senders, bps) = from.entry((*link, before)).or_default();
                *senders += 1;
                *bps += flow.demand_bps;
                before = Some(*link);
            }
        }
        // No more arrives than the links before can carry: behind a full link of the same rate there is no queue.
        let mut arriving: BTreeMap<Link, (u32, f64)> = BTreeMap::new();
        for ((link, before), (more, bps)) in from {
            let (senders, all) = arriving.entry(link).or_default();
            *senders += more;
            *all += before.map_or(bps, |before| bps.min(capacity[before]));
        }
        for (link, (senders, bps)) in arriving {
            let overload = bps / capacity[link].max(1.0);
            if let Some(state) = contended(overload, senders, fabric.ports[link].bps) {
                self.links.insert(link, state);
            }
        }
    }

    /// Pause that full buffers send, and how far it goes upstream.
    fn pause(&mut self, physics: &Physics, jobs: &[Job], going: &[usize]) {
        for flow in going.iter().flat_map(|j| &jobs[*j].flows) {
            for (n, link) in flow.path.iter().enumerate() {
                if physics.paused.contains_key(link) {
                    continue;
                }
                // Marking holds the queue below the threshold of pause until many send to one.
                let overload = self.links.get(link).map_or(0.0, |s| s.overload);
                let share = (0.015 * (overload - 3.0)).clamp(0.0, 0.2);
                if share <= 0.0 {
                    continue;
                }
                for before in &flow.path[..n] {
                    let state = self.links.entry(*before).or_default();
                    state.paused = state.paused.max(share);
                }
            }
        }
    }
}

/// Rates of the flows, by job and place in it, that cross a link to which more comes than it carries.
fn rates(jobs: &[Job], going: &[usize], capacity: &[f64]) -> BTreeMap<(usize, usize), f64> {
    let mut offered: BTreeMap<Link, f64> = BTreeMap::new();
    for flow in going.iter().flat_map(|j| &jobs[*j].flows) {
        for link in &flow.path {
            *offered.entry(*link).or_default() += flow.demand_bps;
        }
    }
    let tight = |l: &Link| offered.get(l).is_some_and(|bps| *bps > capacity[*l] * FULL);
    let mut paths: Vec<Vec<Link>> = Vec::new();
    let mut limits: BTreeMap<Link, f64> = BTreeMap::new();
    let mut whose: Vec<(usize, usize)> = Vec::new();
    for job in going {
        for (n, flow) in jobs[*job].flows.iter().enumerate() {
            let mut path: Vec<Link> = flow.path.iter().copied().filter(tight).collect();
            if path.is_empty() {
                continue;
            }
            limits.extend(path.iter().map(|l| (*l, capacity[*l])));
            // Its demand is a link of its own.
            let own = capacity.len() + whose.len();
            limits.insert(own, flow.demand_bps);
            path.push(own);
            paths.push(path);
            whose.push((*job, n));
        }
    }
    whose
        .into_iter()
        .zip(maxmin::rates(&paths, &limits))
        .collect()
}

/// A link to which more comes than it carries; `None` if it carries all.
fn contended(overload: f64, senders: u32, bps: f64) -> Option<State> {
    let over = overload - 1.0;
    if over <= 0.02 {
        return None;
    }
    // The more senders, the deeper: each of them keeps a window in flight before it is slowed down. A demand that
    // hardly exceeds the link is held back as soon as marking starts.
    let depth = (0.15 + 0.08 * f64::from(senders)).min(1.2) * (over / 0.5).min(1.0);
    Some(State {
        overload,
        queue_bytes: (KMIN_S + (KMAX_S - KMIN_S) * depth) * bps / 8.0,
        marked: (0.01 + 0.004 * f64::from(senders)).min(0.2) * (over / 0.5).min(1.0),
        ..State::default()
    })
}
