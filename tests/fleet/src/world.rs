//! The fabric, its jobs and its faults over time. [`World::step`] goes on by one interval; what agents count in it is
//! then read from the fields.

use crate::fabric::{Fabric, Link, Tier};
use crate::fault::{Effect, Fault, MOMENT_S};
use crate::job::{Call, Flow, Job, Pattern, Spec, pairs};
use crate::load::{Load, Moved};
use crate::physics::{GpuFault, Physics};
use crate::site::Site;
use std::collections::{BTreeMap, BTreeSet};
use weir_controller_core::ids::FlowKey;
use weir_sim::rng::{Rng, mix};

/// Source ports tried for a flow, as libraries that look for disjoint paths do.
const PORTS_TRIED: u32 = 48;

/// Everything that is so, whether an agent tells it or not.
#[derive(Debug)]
pub struct World {
    pub fabric: Fabric,
    pub site: Site,
    pub jobs: Vec<Job>,
    /// Numbers of the jobs that run.
    pub active: Vec<usize>,
    /// Jobs to come, the next one last.
    pub schedule: Vec<Spec>,
    pub faults: Vec<Fault>,
    pub physics: Physics,
    pub load: Load,
    pub now_s: f64,
    /// Ports that are not in use and never were.
    pub off: BTreeSet<Link>,
    /// Names of jobs that no agent sees: neither their calls nor whose their flows are.
    pub unseen: BTreeSet<String>,
    /// Hosts whose links are down because they boot, until when.
    pub booting: BTreeMap<usize, f64>,
    /// Bytes and marks that left by each link in the last interval, and the share of it in which a job sent.
    pub tx: Vec<f64>,
    pub marks: Vec<f64>,
    pub busy: Vec<f64>,
    /// Calls that returned in the last interval, by node: job, call.
    pub calls: Vec<Vec<(usize, Call)>>,
    /// Flows by their sender's node: job, flow.
    pub flows_of: Vec<Vec<(usize, usize)>>,
    /// Job that runs on a node.
    pub job_of: Vec<Option<usize>>,
    in_force: Vec<bool>,
    gpus: usize,
    next_flow: u32,
    seed: u64,
    rng: Rng,
    dirty: bool,
}

impl World {
    #[must_use]
    pub fn new(fabric: Fabric, gpus: usize, off: BTreeSet<Link>, seed: u64) -> World {
        let (links, nodes) = (fabric.ports.len(), fabric.nodes.len());
        World {
            physics: Physics::healthy(&fabric, &off),
            fabric,
            site: Site::default(),
            jobs: Vec::new(),
            active: Vec::new(),
            schedule: Vec::new(),
            faults: Vec::new(),
            load: Load::default(),
            now_s: 0.0,
            off,
            unseen: BTreeSet::new(),
            booting: BTreeMap::new(),
            tx: vec![0.0; links],
            marks: vec![0.0; links],
            busy: vec![0.0; links],
            calls: vec![Vec::new(); nodes],
            flows_of: vec![Vec::new(); nodes],
            job_of: vec![None; nodes],
            in_force: Vec::new(),
            gpus,
            next_flow: 0,
            seed,
            rng: Rng::new(seed),
            dirty: true,
        }
    }

    /// Starts a job now. A training job that would not find room in the fabric for all of its flows is made smaller,
    /// because a scheduler that packs jobs, or a library that spreads them, is the healthy state.
    pub fn start(&mut self, mut spec: Spec) -> usize {
        let checked =
            !matches!(spec.pattern, Pattern::Gather | Pattern::Storage { .. }) && spec.jitter < 1.0;
        let mut flows = self.place(&spec);
        while checked && spec.nodes.len() > 2 && self.overloads(&flows) {
            spec.nodes.truncate(spec.nodes.len().div_ceil(2));
            flows = self.place(&spec);
        }
        let number = self.jobs.len();
        let seed = mix(self.seed ^ number as u64);
        let per_node = if self.gpus == 0 { 1 } else { self.gpus };
        self.jobs.push(Job::new(spec, flows, per_node, seed));
        self.active.push(number);
        self.dirty = true;
        self.settle();
        number
    }

    fn offered(&self) -> Vec<f64> {
        let mut offered = vec![0.0; self.fabric.ports.len()];
        for flow in self.active.iter().flat_map(|j| &self.jobs[*j].flows) {
            flow.path
                .iter()
                .for_each(|l| offered[*l] += flow.demand_bps);
        }
        offered
    }

    fn overloads(&self, flows: &[Flow]) -> bool {
        let mut offered = self.offered();
        for flow in flows {
            flow.path
                .iter()
                .for_each(|l| offered[*l] += flow.demand_bps);
        }
        let full = |l: &Link| offered[*l] > self.physics.capacity[*l] * 1.01;
        flows.iter().flat_map(|f| &f.path).any(full)
    }

    /// The flows of a job, on source ports that spread them.
    fn place(&mut self, spec: &Spec) -> Vec<Flow> {
        let mut offered = self.offered();
        let mut flows = Vec::new();
        for (a, b, share) in pairs(spec.pattern, spec.nodes.len()) {
            let to = match spec.pattern {
                Pattern::Storage { to, .. } => to,
                Pattern::Ring | Pattern::Tree | Pattern::AllToAll | Pattern::Gather => {
                    spec.nodes[b]
                }
            };
            for nic in 0..self.fabric.nics {
                let src = self.fabric.nodes[spec.nodes[a]].ports[nic];
                let dst = self.fabric.nodes[to].ports[nic];
                let demand_bps = share * self.fabric.ports[src].bps;
                let (key, path) = self.spread(src, dst, demand_bps, &offered);
                path.iter().for_each(|l| offered[*l] += demand_bps);
                self.next_flow += 1;
                flows.push(Flow {
                    id: self.next_flow,
                    src,
                    dst,
                    key,
                    demand_bps,
                    bytes: demand_bps / 8.0 * spec.transfer_s,
                    path,
                    loss: 0.0,
                    moved: Moved::default(),
                });
            }
        }
        flows
    }

    fn spread(
        &mut self,
        src: Link,
        dst: Link,
        demand: f64,
        offered: &[f64],
    ) -> (FlowKey, Vec<Link>) {
        let mut best: Option<(f64, FlowKey, Vec<Link>)> = None;
        for _ in 0..PORTS_TRIED {
            let port = 0xC000 | weir_sim::num::low32(self.rng.below(0x4000));
            let key = FlowKey {
                src: self.fabric.address(src),
                dst: self.fabric.address(dst),
                src_port: u16::try_from(port).unwrap_or(u16::MAX),
                dst_port: 4791,
            };
            let path = self.fabric.path(&key, &self.physics.up).unwrap_or_default();
            let over = |l: &Link| (offered[*l] + demand) / self.physics.capacity[*l].max(1.0);
            let worst = path.iter().map(over).fold(0.0, f64::max);
            let short = path.len() <= 2;
            if best.as_ref().is_none_or(|(w, ..)| worst < *w - 1e-9) {
                best = Some((worst, key, path));
            }
            if short || worst <= 1.001 {
                break;
            }
        }
        best.map_or_else(
            || unreachable!("at least one port is tried"),
            |(_, key, path)| (key, path),
        )
    }

    /// A source port with which the flow leaves its first switch by `link`; `None` if none of many does.
    pub fn port_towards(&self, flow: &Flow, link: Link) -> Option<u16> {
        (0xC000u16..0xC800).find(|port| {
            let key = FlowKey {
                src_port: *port,
                ..flow.key
            };
            self.fabric
                .path(&key, &self.physics.up)
                .is_some_and(|p| p.contains(&link))
        })
    }

    /// One interval of `seconds`.
    pub fn step(&mut self, seconds: f64) {
        self.begin_and_end_jobs();
        self.enforce();
        self.settle();
        for calls in &mut self.calls {
            calls.clear();
        }
        let (from_s, to_s) = (self.now_s, self.now_s + seconds);
        self.now_s = to_s;
        let physics = (&self.fabric, &self.physics);
        let calls = self.load.run(physics, &mut self.jobs, (from_s, to_s));
        for (j, call) in calls {
            let job = &self.jobs[j];
            self.calls[job.spec.nodes[call.rank / job.per_node]].push((j, call));
        }
        for (link, moved) in self.load.on_link.iter().enumerate() {
            let users = self.load.users[link].iter();
            self.busy[link] = users.map(|j| self.jobs[*j].busy).fold(0.0, f64::max);
            (self.tx[link], self.marks[link]) = (moved.bytes, moved.marks);
        }
    }

    fn begin_and_end_jobs(&mut self) {
        let (jobs, now) = (&self.jobs, self.now_s);
        let before = self.active.len();
        self.active.retain(|j| jobs[*j].spec.end_s > now);
        self.dirty |= self.active.len() != before;
        while self.schedule.last().is_some_and(|s| s.start_s <= now) {
            if let Some(spec) = self.schedule.pop() {
                self.start(spec);
            }
        }
    }

    /// Which effects are in force, and the physics that follow.
    fn enforce(&mut self) {
        let now = self.now_s;
        let on = |f: &Fault, e: &Effect| f.is_active(now) && e.is_on(now - f.start_s);
        // Some begin with a moment in which the link is down.
        let phase = |f: &Fault, e: &Effect| on(f, e) && now - f.start_s >= MOMENT_S;
        let faults = &self.faults;
        let in_force: Vec<bool> = faults
            .iter()
            .flat_map(|f| f.effects.iter().flat_map(move |e| [on(f, e), phase(f, e)]))
            .collect();
        let booted = self.booting.len();
        self.booting.retain(|_, until| *until > now);
        if in_force == self.in_force && self.booting.len() == booted && !self.dirty {
            return;
        }
        self.dirty = true;
        let before = std::mem::replace(&mut self.in_force, in_force);
        let mut physics = Physics::healthy(&self.fabric, &self.off);
        for host in self.booting.keys() {
            for port in &self.fabric.nodes[*host].ports {
                self.fabric
                    .cable_of(*port)
                    .iter()
                    .for_each(|l| physics.up[*l] = false);
            }
        }
        let mut n = 0;
        for fault in &self.faults {
            for effect in &fault.effects {
                let (was, is) = (before.get(n).copied().unwrap_or(false), self.in_force[n]);
                n += 2;
                if is {
                    effect.apply(now - fault.start_s, &self.fabric, &mut physics);
                }
                if let Effect::Rehash(job, moves) = effect
                    && is != was
                {
                    // The bits that differ: there and back again.
                    for (flow, port) in moves {
                        self.next_flow += 1;
                        let flow = &mut self.jobs[*job].flows[*flow];
                        flow.id = self.next_flow;
                        flow.key.src_port ^= port;
                    }
                }
                // A job does not survive the loss of one of its GPUs.
                if let Effect::Gpu { node, what, .. } = effect
                    && *what == GpuFault::Lost
                    && is
                    && !was
                    && let Some(job) = self.job_of[*node]
                {
                    self.jobs[job].spec.end_s = now + 1.0;
                }
            }
        }
        for job in &mut self.jobs {
            job.late.clear();
        }
        for (job, rank, seconds, network) in &physics.late {
            self.jobs[*job].late.push((*rank, *seconds, *network));
        }
        self.physics = physics;
    }

    fn settle(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.load = Load::settle(&self.fabric, &self.physics, &mut self.jobs, &self.active);
        self.flows_of.iter_mut().for_each(Vec::clear);
        self.job_of.fill(None);
        for j in &self.active {
            for (n, flow) in self.jobs[*j].flows.iter().enumerate() {
                self.flows_of[self.fabric.ports[flow.src].node].push((*j, n));
            }
            if self.jobs[*j].trains() {
                self.jobs[*j]
                    .spec
                    .nodes
                    .iter()
                    .for_each(|n| self.job_of[*n] = Some(*j));
            }
        }
    }

    /// The host boots: its links are down until then.
    pub fn boot(&mut self, host: usize, until_s: f64) {
        self.booting.insert(host, until_s);
        self.dirty = true;
    }

    /// What the operator of such a site knows of it.
    #[must_use]
    pub fn plan(&self) -> weir_controller_core::topology::Plan {
        self.fabric.plan(self.site.switches_tell())
    }

    /// Where a cable really ends.
    #[must_use]
    pub fn actual_peer(&self, link: Link) -> Link {
        let peer = |l: Link| self.fabric.ports[l].peer;
        for (a, b) in &self.physics.swapped {
            for (x, y) in [(*a, *b), (*b, *a)] {
                if link == x {
                    return peer(y);
                }
                if link == peer(x) {
                    return y;
                }
            }
        }
        peer(link)
    }

    /// Whether agents see the job.
    #[must_use]
    pub fn is_seen(&self, job: usize) -> bool {
        !self.unseen.contains(&self.jobs[job].spec.name)
    }

    /// Links inside the fabric and down to hosts that flows of the job use.
    pub fn links_of(&self, job: usize) -> BTreeSet<Link> {
        self.jobs[job]
            .flows
            .iter()
            .flat_map(|f| f.path.iter().copied())
            .collect()
    }

    /// Whether it ends at a host.
    #[must_use]
    pub fn is_to_host(&self, link: Link) -> bool {
        self.fabric.nodes[self.fabric.ports[self.fabric.ports[link].peer].node].tier == Tier::Host
    }

    /// Whether both ends are switches.
    #[must_use]
    pub fn is_fabric(&self, link: Link) -> bool {
        let tier = |l: Link| self.fabric.nodes[self.fabric.ports[l].node].tier;
        tier(link) != Tier::Host && tier(self.fabric.ports[link].peer) != Tier::Host
    }
}
