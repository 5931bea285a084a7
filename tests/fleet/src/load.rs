//! What the flows of all jobs do to the links: max-min fair rates, queues, marks and pause.
//!
//! Rates are those of jobs that all communicate at once, the worst case. A link on which all demands together fit
//! holds nobody back, so that only the others are solved for. Queues are those of DCQCN with the marking thresholds of
//! the published settings (Kmin 400 KB, Kmax 1,600 KB at 100 Gb/s, in proportion to the rate).

use crate::fabric::{Fabric, Link};
use crate::job::Job;
use crate::physics::Physics;
use std::collections::BTreeMap;
use weir_controller_core::maxmin;

/// Marking starts at this queue, as seconds of the link's rate (400 KB at 100 Gb/s).
const KMIN_S: f64 = 400e3 * 8.0 / 100e9;
/// All are marked at this queue (1,600 KB at 100 Gb/s).
const KMAX_S: f64 = 4.0 * KMIN_S;
/// Bytes of a RoCE packet.
pub const PACKET: f64 = 4096.0;
/// Packets sent again for a lost one: go-back-N over the round trip of a fabric at 400 Gb/s.
pub const GO_BACK: f64 = 24.0;
/// Slower is standing still.
const STALLED_BPS: f64 = 1e3;

/// What a link does while the jobs on it communicate.
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

/// What one job's step does to one link or NIC.
#[derive(Debug, Clone, Copy, Default)]
pub struct Share {
    pub job: usize,
    pub bytes: f64,
    pub marks: f64,
    pub lost: f64,
    /// Of a NIC, by what the others see.
    pub cnp: f64,
}

/// The load of everything.
#[derive(Debug, Clone, Default)]
pub struct Load {
    pub links: Vec<State>,
    /// Bytes, marks of each job on each link.
    pub on_link: Vec<Vec<Share>>,
    /// What each host's port receives as a notification point, and sends as a reaction point.
    pub received: Vec<Vec<Share>>,
    pub sent: Vec<Vec<Share>>,
}

impl Load {
    /// Sets paths, rates and step times of the jobs that run, and returns what they do to the links.
    pub fn settle(fabric: &Fabric, physics: &Physics, jobs: &mut [Job], active: &[usize]) -> Load {
        let links = fabric.ports.len();
        let mut load = Load {
            links: vec![State::default(); links],
            on_link: vec![Vec::new(); links],
            received: vec![Vec::new(); links],
            sent: vec![Vec::new(); links],
        };
        let mut offered = vec![0.0; links];
        let mut senders = vec![0u32; links];
        // By link and the link before it.
        let mut from: BTreeMap<(Link, Option<Link>), f64> = BTreeMap::new();
        for job in active {
            for flow in &mut jobs[*job].flows {
                flow.path = fabric.path(&flow.key, &physics.up).unwrap_or_default();
                let mut before = None;
                for link in &flow.path {
                    offered[*link] += flow.demand_bps;
                    senders[*link] += 1;
                    *from.entry((*link, before)).or_insert(0.0) += flow.demand_bps;
                    before = Some(*link);
                }
            }
        }
        let capacity = capacities(physics, jobs, active);
        load.rates(jobs, active, &capacity, &offered);
        // No more arrives than the links before can carry: behind a full link of the same rate there is no queue.
        let mut arriving = vec![0.0; links];
        for ((link, before), bps) in from {
            arriving[link] += before.map_or(bps, |before| bps.min(capacity[before]));
        }
        for (link, state) in load.links.iter_mut().enumerate() {
            let overload = arriving[link] / capacity[link].max(1.0);
            *state = contended(overload, senders[link], fabric.ports[link].bps);
        }
        load.pause(physics, jobs, active);
        load.shares(physics, jobs, active);
        load
    }

    fn rates(&mut self, jobs: &mut [Job], active: &[usize], capacity: &[f64], offered: &[f64]) {
        let tight = |l: &Link| offered[*l] > capacity[*l] * 1.001;
        let mut paths: Vec<Vec<Link>> = Vec::new();
        let mut limits: BTreeMap<Link, f64> = BTreeMap::new();
        let mut whose: Vec<(usize, usize)> = Vec::new();
        for job in active {
            for (n, flow) in jobs[*job].flows.iter_mut().enumerate() {
                flow.rate_bps = flow.demand_bps;
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
        for ((job, flow), rate) in whose.into_iter().zip(maxmin::rates(&paths, &limits)) {
            jobs[job].flows[flow].rate_bps = rate;
        }
    }

    /// Pause that hosts and full buffers send, and how far it goes upstream.
    fn pause(&mut self, physics: &Physics, jobs: &[Job], active: &[usize]) {
        for (link, pause) in &physics.paused {
            let state = &mut self.links[*link];
            state.paused = state.paused.max(pause.busy);
            state.paused_always = state.paused_always.max(pause.always);
            state.queue_bytes = state
                .queue_bytes
                .max(if pause.always > 0.5 { 4e6 } else { 1.5e6 });
            state.marked = state.marked.max(0.1);
        }
        let flows = active.iter().flat_map(|j| &jobs[*j].flows);
        for flow in flows {
            for (n, link) in flow.path.iter().enumerate() {
                let (busy, always) = match physics.paused.get(link) {
                    Some(pause) => (pause.upstream_busy, pause.upstream_always),
                    // Marking holds the queue below the threshold of pause until many send to one.
                    None => (
                        (0.015 * (self.links[*link].overload - 3.0)).clamp(0.0, 0.2),
                        0.0,
                    ),
                };
                for before in &flow.path[..n] {
                    let state = &mut self.links[*before];
                    state.paused = state.paused.max(busy);
                    state.paused_always = state.paused_always.max(always);
                }
            }
        }
    }

    fn shares(&mut self, physics: &Physics, jobs: &mut [Job], active: &[usize]) {
        for j in active {
            let job = &mut jobs[*j];
            let trains = job.trains();
            let mut slowest: f64 = 0.0;
            for flow in &mut job.flows {
                let pass: f64 = flow.path.iter().map(|l| 1.0 - physics.loss[*l]).product();
                let clear: f64 = flow
                    .path
                    .iter()
                    .map(|l| 1.0 - self.links[*l].marked)
                    .product();
                (flow.loss, flow.marked) = (1.0 - pass, 1.0 - clear);
                if flow.path.is_empty() {
                    flow.rate_bps = STALLED_BPS;
                }
                flow.rate_bps /= 1.0 + 4.0 * GO_BACK * flow.loss;
                if !trains {
                    flow.bytes = flow.rate_bps / 8.0;
                }
                slowest = slowest.max(flow.bytes * 8.0 / flow.rate_bps.max(STALLED_BPS));
                let packets = flow.bytes / PACKET;
                let marks = packets * flow.marked;
                // One notification for a flow in 50 us at most.
                let cnp = marks.min(flow.bytes * 8.0 / flow.rate_bps.max(STALLED_BPS) / 50e-6);
                let share = Share {
                    job: *j,
                    bytes: flow.bytes,
                    marks,
                    lost: packets * flow.loss,
                    cnp,
                };
                for link in &flow.path {
                    let marks = packets * self.links[*link].marked;
                    add(&mut self.on_link[*link], Share { marks, ..share });
                }
                add(&mut self.sent[flow.src], share);
                add(&mut self.received[flow.dst], share);
            }
            job.comm_s = slowest.max(1e-3);
        }
    }
}

/// Capacity of every link. Ports that a storm paused hold all others back, too.
fn capacities(physics: &Physics, jobs: &[Job], active: &[usize]) -> Vec<f64> {
    let mut capacity = physics.capacity.clone();
    for flow in active.iter().flat_map(|j| &jobs[*j].flows) {
        for (n, link) in flow.path.iter().enumerate() {
            if let Some(pause) = physics.paused.get(link) {
                for before in &flow.path[..n] {
                    let left = physics.capacity[*before] * (1.0 - pause.upstream_always);
                    capacity[*before] = capacity[*before].min(left);
                }
            }
        }
    }
    capacity
}

fn contended(overload: f64, senders: u32, bps: f64) -> State {
    let over = overload - 1.0;
    if over <= 0.02 || senders == 0 {
        return State {
            overload,
            ..State::default()
        };
    }
    // The more senders, the deeper: each of them keeps a window in flight before it is slowed down. A demand that
    // hardly exceeds the link is held back as soon as marking starts.
    let depth = (0.15 + 0.08 * f64::from(senders)).min(1.2) * (over / 0.5).min(1.0);
    State {
        overload,
        queue_bytes: (KMIN_S + (KMAX_S - KMIN_S) * depth) * bps / 8.0,
        marked: (0.01 + 0.004 * f64::from(senders)).min(0.2) * (over / 0.5).min(1.0),
        ..State::default()
    }
}

fn add(shares: &mut Vec<Share>, share: Share) {
    match shares.iter_mut().find(|s| s.job == share.job) {
        Some(own) => {
            own.bytes += share.bytes;
            own.marks += share.marks;
            own.lost += share.lost;
            own.cnp += share.cnp;
        }
        None => shares.push(share),
    }
}
