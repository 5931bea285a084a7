//! What the flows of all jobs do to the links over time: who sends at the same moments, and what each moves then.
//!
//! A job computes and communicates in phases of its own. Jobs that could overload a link together are a group, of which
//! each change is followed: whenever one of them begins or ends to send, rates and queues are those of the others
//! ([`Moment`]). A job that shares no tight link has the same rates whatever the others do.

use crate::fabric::Fabric;
use crate::job::{Call, Job};
use crate::moment::{FULL, Moment, State};
use crate::physics::Physics;
use std::collections::BTreeMap;

/// Bytes of a RoCE packet.
pub const PACKET: f64 = 4096.0;
/// Packets sent again for a lost one: go-back-N over the round trip of a fabric at 400 Gb/s.
pub const GO_BACK: f64 = 24.0;
/// Changes that are nearer to each other than this are one: seconds.
const MOMENT_MIN_S: f64 = 1e-6;
/// A flow gets one notification of congestion in this time at most: seconds.
const CNP_EVERY_S: f64 = 50e-6;

/// What a flow, or all flows over a link or a NIC, moved in the last interval.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    pub bytes: f64,
    pub marks: f64,
    pub lost: f64,
    /// Notifications of congestion, of a NIC.
    pub cnp: f64,
}

impl Moved {
    fn add(&mut self, more: Moved) {
        self.bytes += more.bytes;
        self.marks += more.marks;
        self.lost += more.lost;
        self.cnp += more.cnp;
    }
}

/// The load of everything in the last interval.
#[derive(Debug, Clone, Default)]
pub struct Load {
    /// The worst of each link's moments.
    pub links: Vec<State>,
    pub on_link: Vec<Moved>,
    /// What each host's port receives as a notification point, and sends as a reaction point.
    pub received: Vec<Moved>,
    pub sent: Vec<Moved>,
    /// Jobs with flows over each link.
    pub users: Vec<Vec<usize>>,
    /// What pause does to each link whoever sends.
    base: Vec<State>,
    capacity: Vec<f64>,
    groups: Vec<Vec<usize>>,
    /// By the jobs that send.
    moments: BTreeMap<Vec<usize>, Moment>,
}

impl Load {
    /// Sets the paths of the jobs that run, and finds out who may hold whom back.
    pub fn settle(fabric: &Fabric, physics: &Physics, jobs: &mut [Job], active: &[usize]) -> Load {
        let links = fabric.ports.len();
        let mut load = Load {
            links: vec![State::default(); links],
            on_link: vec![Moved::default(); links],
            received: vec![Moved::default(); links],
            sent: vec![Moved::default(); links],
            users: vec![Vec::new(); links],
            ..Load::default()
        };
        for job in active {
            for flow in &mut jobs[*job].flows {
                flow.path = fabric.path(&flow.key, &physics.up).unwrap_or_default();
                flow.loss = 1.0
                    - flow
                        .path
                        .iter()
                        .map(|l| 1.0 - physics.loss[*l])
                        .product::<f64>();
                for link in &flow.path {
                    if load.users[*link].last() != Some(job) {
                        load.users[*link].push(*job);
                    }
                }
            }
        }
        load.base = paused(physics, jobs, active, links);
        load.capacity = capacities(physics, jobs, active);
        load.groups = groups(&load.capacity, &load.users, jobs, active);
        for job in active {
            load.remember(fabric, physics, jobs, &[*job]);
            jobs[*job].comm_s = load.moments[&[*job][..]].comm_s(*job);
        }
        load
    }

    fn remember(&mut self, fabric: &Fabric, physics: &Physics, jobs: &[Job], sending: &[usize]) {
        if !self.moments.contains_key(sending) {
            let moment = Moment::new((fabric, physics), jobs, sending, &self.capacity, &self.base);
            self.moments.insert(sending.to_vec(), moment);
        }
    }

    /// All jobs go on from `from_s` until `to_s`; returns the calls that ended meanwhile, with their jobs.
    pub fn run(
        &mut self,
        (fabric, physics): (&Fabric, &Physics),
        jobs: &mut [Job],
        (from_s, to_s): (f64, f64),
    ) -> Vec<(usize, Call)> {
        let mut returned = Vec::new();
        self.links.clone_from(&self.base);
        for moved in [&mut self.on_link, &mut self.received, &mut self.sent] {
            moved.fill(Moved::default());
        }
        for group in std::mem::take(&mut self.groups) {
            group.iter().for_each(|j| jobs[*j].rest(from_s));
            let mut at = from_s;
            while at < to_s {
                let sending = senders(jobs, &group);
                self.remember(fabric, physics, jobs, &sending);
                let moment = &self.moments[&sending];
                for j in &sending {
                    jobs[*j].comm_s = moment.comm_s(*j);
                }
                let until = next_change(jobs, &group, to_s).max(at + MOMENT_MIN_S);
                at = until.min(to_s);
                self.go_on(jobs, &group, &sending, at, &mut returned);
            }
            self.groups.push(group);
        }
        returned
    }

    fn go_on(
        &mut self,
        jobs: &mut [Job],
        group: &[usize],
        sending: &[usize],
        until_s: f64,
        returned: &mut Vec<(usize, Call)>,
    ) {
        let moment = &self.moments[sending];
        moment.states().for_each(|(l, s)| self.links[l].worsen(s));
        let mut calls = Vec::new();
        for number in group {
            let job = &mut jobs[*number];
            let before = job.progress;
            job.step(until_s, &mut calls);
            returned.extend(calls.drain(..).map(|call| (*number, call)));
            let progress = job.progress - before;
            if progress <= 0.0 {
                continue;
            }
            for (flow, pace) in job.flows.iter_mut().zip(moment.paces(*number)) {
                let bytes = pace.bytes * progress;
                let packets = bytes / PACKET;
                let marks = packets * pace.marked;
                let seconds = bytes * 8.0 / pace.rate_bps;
                let moved = Moved {
                    bytes,
                    marks,
                    lost: packets * flow.loss,
                    cnp: marks.min(seconds / CNP_EVERY_S),
                };
                flow.moved.add(moved);
                for link in &flow.path {
                    let marks = packets * moment.marked(*link);
                    self.on_link[*link].add(Moved { marks, ..moved });
                }
                self.sent[flow.src].add(moved);
                self.received[flow.dst].add(moved);
            }
        }
    }
}

/// Those of a group that send now. One that is alone has the same rates all the time.
fn senders(jobs: &[Job], group: &[usize]) -> Vec<usize> {
    let all = group.iter().copied();
    all.filter(|j| group.len() == 1 || jobs[*j].is_sending())
        .collect()
}

/// When somebody of a group begins or ends to send; `to_s` if nobody does before, or if it makes no difference.
fn next_change(jobs: &[Job], group: &[usize], to_s: f64) -> f64 {
    let changes = group.iter().map(|j| jobs[*j].changes_at());
    changes.fold(
        to_s,
        |next, at| if group.len() == 1 { next } else { next.min(at) },
    )
}

/// Pause that hosts send, and how far it goes upstream.
fn paused(physics: &Physics, jobs: &[Job], active: &[usize], links: usize) -> Vec<State> {
    let mut base = vec![State::default(); links];
    for (link, pause) in &physics.paused {
        base[*link] = State {
            queue_bytes: if pause.always > 0.5 { 4e6 } else { 1.5e6 },
            marked: 0.1,
            paused: pause.busy,
            paused_always: pause.always,
            ..State::default()
        };
    }
    for flow in active.iter().flat_map(|j| &jobs[*j].flows) {
        for (n, link) in flow.path.iter().enumerate() {
            let Some(pause) = physics.paused.get(link) else {
                continue;
            };
            for before in &flow.path[..n] {
                let state = &mut base[*before];
                state.paused = state.paused.max(pause.upstream_busy);
                state.paused_always = state.paused_always.max(pause.upstream_always);
            }
        }
    }
    base
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

/// Jobs that share a link which cannot carry all that they would send over it at once, each group in order.
fn groups(
    capacity: &[f64],
    users: &[Vec<usize>],
    jobs: &[Job],
    active: &[usize],
) -> Vec<Vec<usize>> {
    let mut offered = vec![0.0; capacity.len()];
    for flow in active.iter().flat_map(|j| &jobs[*j].flows) {
        flow.path
            .iter()
            .for_each(|l| offered[*l] += flow.demand_bps);
    }
    let mut groups: Vec<Vec<usize>> = active.iter().map(|j| vec![*j]).collect();
    let tight =
        (0..capacity.len()).filter(|l| users[*l].len() > 1 && offered[*l] > capacity[*l] * FULL);
    for link in tight {
        let shares = |group: &Vec<usize>| group.iter().any(|j| users[link].contains(j));
        let (together, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(shares);
        let mut together: Vec<usize> = together.into_iter().flatten().collect();
        together.sort_unstable();
        groups = apart;
        groups.push(together);
    }
    groups
}
