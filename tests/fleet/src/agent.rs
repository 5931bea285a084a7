//! One node's agent: it reads the counters, makes frames of them and answers for its switch.

use crate::counters::Counters;
use crate::fabric::{Tier, UP_GROUP};
use crate::job::Call;
use crate::load::GO_BACK;
use crate::world::World;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use weir_controller_core::ids::FlowKey;
use weir_sim::num::{index, whole};
use weir_sim::rng::{Rng, mix};
use weir_wire::columns::Columns;
use weir_wire::frame::{CallRow, CallRows, FlowRow, FlowRows, RunningRows};
use weir_wire::v1;

/// What a flow did since the last frame.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    bytes: f64,
    retransmits: f64,
    marked: f64,
}

/// An agent.
#[derive(Debug)]
pub struct Agent {
    pub node: usize,
    pub name: String,
    pub counters: Counters,
    /// Where in an interval its samples arrive, as a share of it.
    pub phase: f64,
    /// `None` while it has no stream.
    pub connected: bool,
    /// Samples that it skips.
    pub skip: u32,
    /// Frames that are lost on the way.
    pub lose: u32,
    /// The next frame is delivered twice.
    pub twice: bool,
    /// Delay of its frames in seconds.
    pub delay_s: f64,
    pub key: bool,
    /// Those that the controller has not acknowledged.
    events: Vec<v1::Event>,
    events_seen: u64,
    /// Number of the last that this stream told.
    events_told: u64,
    instance: u64,
    ports: Vec<String>,
    epoch: u32,
    seq: u64,
    started_s: f64,
    /// Its clock's rate against the controller's.
    drift: f64,
    sent: Columns,
    moved: BTreeMap<(usize, usize), Moved>,
    announced: BTreeMap<(usize, usize), u32>,
    flow_rows: FlowRows,
    series: BTreeMap<(usize, usize), u32>,
    call_rows: CallRows,
    running_rows: RunningRows,
    calls: Vec<(usize, Call)>,
    routes_epoch: u64,
    rng: Rng,
}

/// Calls kept while no frame is sent; older ones go first.
const CALLS_MAX: usize = 4096;

impl Agent {
    #[must_use]
    pub fn new(world: &World, node: usize, gpus: usize, nvlinks: usize, seed: u64) -> Agent {
        let mut rng = Rng::new(mix(seed ^ (node as u64) << 20));
        let owner = &world.fabric.nodes[node];
        Agent {
            node,
            name: owner.name.clone(),
            counters: Counters::new(world, node, gpus, nvlinks, seed),
            phase: rng.unit(),
            connected: false,
            skip: 0,
            lose: 0,
            twice: false,
            delay_s: 0.0,
            key: true,
            events: Vec::new(),
            events_seen: 0,
            events_told: 0,
            instance: 1,
            ports: owner
                .ports
                .iter()
                .map(|p| world.fabric.ports[*p].name.clone())
                .collect(),
            epoch: 0,
            seq: 0,
            started_s: -1000.0 * rng.unit(),
            drift: 1.0 + 1e-4 * (rng.unit() - 0.5),
            sent: Columns::default(),
            moved: BTreeMap::new(),
            announced: BTreeMap::new(),
            flow_rows: FlowRows::default(),
            series: BTreeMap::new(),
            call_rows: CallRows::default(),
            running_rows: RunningRows::default(),
            calls: Vec::new(),
            routes_epoch: 1,
            rng,
        }
    }

    /// The process starts again; counters that it judged begin anew in what it tells.
    pub fn restart(&mut self, at_s: f64) {
        self.started_s = at_s;
        self.seq = 0;
        self.moved.clear();
        self.calls.clear();
        self.events.clear();
        self.events_seen = 0;
        self.instance += 1;
    }

    /// Something happened: it is told until it is acknowledged.
    pub fn see(&mut self, mut event: v1::Event) {
        self.events_seen += 1;
        event.seq = self.events_seen;
        self.events.push(event);
    }

    /// The controller has the events up to this number.
    pub fn acknowledged(&mut self, seq: u64) {
        self.events.retain(|e| e.seq > seq);
    }

    /// Begins a stream.
    pub fn hello(&mut self, is_host: bool) -> v1::Hello {
        self.epoch += 1;
        self.connected = true;
        self.key = true;
        self.sent = Columns::new(self.counters.layout.len());
        v1::Hello {
            protocol_major: weir_wire::version::PROTOCOL_MAJOR,
            protocol_minor: weir_wire::version::PROTOCOL_MINOR,
            agent_version: "fleet".to_owned(),
            node: self.name.clone(),
            role: if is_host {
                v1::Role::Host
            } else {
                v1::Role::Switch
            }
            .into(),
            instance: self.instance,
            schema: Some(self.counters.layout.schema(self.epoch, &self.ports)),
            ..v1::Hello::default()
        }
    }

    /// Ports, addresses, neighbours and groups.
    #[must_use]
    pub fn inventory(&self, world: &World) -> v1::Inventory {
        let fabric = &world.fabric;
        let owner = &fabric.nodes[self.node];
        let ports = owner.ports.iter().map(|link| {
            let port = &fabric.ports[*link];
            let up = world.physics.up[*link];
            let neighbour = fabric.address(world.actual_peer(*link)).to_string();
            v1::Port {
                name: port.name.clone(),
                up,
                addresses: vec![format!("{}/32", fabric.address(*link))],
                neighbours: if up && world.site.switches_tell() {
                    vec![neighbour]
                } else {
                    Vec::new()
                },
                speed_bps: whole(world.physics.trained[*link].0),
            }
        });
        let members = owner.up.iter().filter(|l| world.physics.up[**l]);
        let members = members.map(|l| v1::EcmpMember {
            nexthop: index(*l),
            port: fabric.ports[*l].name.clone(),
            weight: 1,
        });
        let members: Vec<v1::EcmpMember> = members.collect();
        let group = v1::EcmpGroup {
            id: UP_GROUP,
            prefixes: vec!["0.0.0.0/0".to_owned()],
            members,
        };
        v1::Inventory {
            ports: ports.collect(),
            groups: if owner.tier == Tier::Host || owner.up.is_empty() {
                Vec::new()
            } else {
                vec![group]
            },
            routes_epoch: self.routes_epoch,
            endpoints: Vec::new(),
        }
    }

    /// Routes changed: paths through this node are asked for again.
    pub fn routes_changed(&mut self) {
        self.routes_epoch += 1;
    }

    /// Where this switch would send each flow.
    #[must_use]
    pub fn paths(&self, world: &World, keys: &[(FlowKey, std::sync::Arc<str>)]) -> v1::PathAnswer {
        let hops = keys.iter().map(|(key, in_port)| {
            let hop = world.fabric.next_hop(self.node, key, &world.physics.up);
            v1::PathHop {
                key: Some(v1::PathKey {
                    src_ipv4: key.src.to_bits(),
                    dst_ipv4: key.dst.to_bits(),
                    src_port: key.src_port.into(),
                    dst_port: key.dst_port.into(),
                    in_port: in_port.to_string(),
                }),
                out_port: hop.map_or(String::new(), |(l, _)| world.fabric.ports[l].name.clone()),
                group: hop.and_then(|(_, g)| g).unwrap_or(0),
            }
        });
        v1::PathAnswer {
            hops: hops.collect(),
        }
    }

    /// Takes in one interval.
    pub fn observe(&mut self, world: &World, seconds: f64) {
        self.counters.step(world, self.node, seconds);
        for (j, f) in &world.flows_of[self.node] {
            let job = &world.jobs[*j];
            if job.progress <= 0.0 {
                continue;
            }
            let flow = &job.flows[*f];
            let moved = self.moved.entry((*j, *f)).or_default();
            moved.bytes += flow.moved.bytes;
            moved.retransmits += flow.moved.lost * GO_BACK;
            moved.marked += flow.moved.marks;
        }
        let calls = world.calls[self.node].iter();
        self.calls.extend(calls.filter(|(j, _)| world.is_seen(*j)));
        if self.calls.len() > CALLS_MAX {
            self.calls.drain(..self.calls.len() - CALLS_MAX);
        }
    }

    fn clock_us(&self, at_s: f64) -> u64 {
        whole(((at_s - self.started_s) * self.drift * 1e6).max(0.0))
    }

    /// Makes the frame of a sample taken at `at_s`.
    pub fn frame(&mut self, world: &World, at_s: f64) -> v1::Frame {
        self.seq += 1;
        // A sample is never quite on time.
        let at_us = self.clock_us(at_s) + self.rng.below(4000);
        let mut frame = v1::Frame {
            seq: self.seq,
            at_us,
            schema_epoch: self.epoch,
            key: std::mem::take(&mut self.key),
            resets: std::mem::take(&mut self.counters.resets),
            ..v1::Frame::default()
        };
        if frame.key {
            self.events_told = 0;
            self.sent.clear();
            self.flow_rows = FlowRows::default();
            self.call_rows = CallRows::default();
            self.running_rows = RunningRows::default();
            self.announced.clear();
            self.series.clear();
        }
        let news = self.events.iter().filter(|e| e.seq > self.events_told);
        frame.events = news.cloned().collect();
        self.events_told = self.events_seen;
        self.sent.encode(&self.counters.values, &mut frame.columns);
        self.flows(world, &mut frame);
        self.collectives(world, at_s, &mut frame);
        frame
    }

    fn flows(&mut self, world: &World, frame: &mut v1::Frame) {
        let mut rows = Vec::new();
        for ((j, f), moved) in std::mem::take(&mut self.moved) {
            let job = &world.jobs[j];
            let flow = &job.flows[f];
            // A queue pair that came back with another source port is another flow.
            if let Some(old) = self.announced.get(&(j, f)).copied()
                && old != flow.id
            {
                frame.flows_closed.push(old);
                self.flow_rows.forget(old);
                self.announced.remove(&(j, f));
            }
            if let std::collections::btree_map::Entry::Vacant(new) = self.announced.entry((j, f)) {
                new.insert(flow.id);
                let seen = world.is_seen(j);
                let name = if seen { &job.spec.name } else { "" };
                self.flow_rows.announce(flow.id);
                frame.flows_opened.push(opened(flow.id, &flow.key, name));
            }
            let row = FlowRow {
                bytes: whole(moved.bytes),
                retransmits: whole(
                    moved.retransmits
                        + self.rng.unit() * f64::from(u8::from(moved.retransmits > 0.0)),
                ),
                srtt_us: 0,
                delivered_ce: whole(moved.marked),
            };
            rows.push((flow.id, row.into()));
        }
        frame.flows = self.flow_rows.encode(rows);
        let gone: Vec<(usize, usize)> = self
            .announced
            .keys()
            .copied()
            .filter(|(j, _)| !world.active.contains(j))
            .collect();
        for key in gone {
            if let Some(id) = self.announced.remove(&key) {
                frame.flows_closed.push(id);
                self.flow_rows.forget(id);
            }
        }
    }

    /// Calls that returned by `at_s`; the world is at the end of the interval already. What a process that is
    /// gone saw begin, nobody saw return.
    fn collectives(&mut self, world: &World, at_s: f64, frame: &mut v1::Frame) {
        let mut rows = Vec::new();
        let seen = std::mem::take(&mut self.calls).into_iter();
        let seen = seen.filter(|(_, call)| call.start_s >= self.started_s);
        let (done, later): (Vec<_>, Vec<_>) =
            seen.partition(|(_, call)| call.start_s + call.duration_s <= at_s);
        self.calls = later;
        // Of a job, the same for all calls.
        let mut bytes: Option<(usize, u64)> = None;
        for (j, call) in done {
            let id = self.series_of(world, (j, call.rank), frame);
            let of_call = match bytes {
                Some((of, known)) if of == j => known,
                _ => world.jobs[j].call_bytes(),
            };
            bytes = Some((j, of_call));
            let started_us = self.clock_us(call.start_s);
            let row = CallRow {
                started_us,
                duration_us: whole(call.duration_s * 1e6),
                bytes: Some(of_call),
            };
            rows.push((id, row.into()));
        }
        frame.collectives = self.call_rows.encode(rows);
        let seen = |j: &usize| world.is_seen(*j);
        let Some(j) = world.job_of[self.node].filter(seen) else {
            return;
        };
        let job = &world.jobs[j];
        let Some(place) = job.spec.nodes.iter().position(|n| *n == self.node) else {
            return;
        };
        let own = place * job.per_node..(place + 1) * job.per_node;
        let mut running = Vec::new();
        let returned = self.calls.iter().filter(|(of, _)| *of == j);
        let returned = returned.map(|(_, call)| (call.rank, call.start_s));
        let begun = returned.chain(job.running());
        let begun = begun.filter(|(rank, start_s)| own.contains(rank) && *start_s <= at_s);
        for (rank, start_s) in begun.collect::<Vec<_>>() {
            let id = self.series_of(world, (j, rank), frame);
            running.push((id, [self.clock_us(start_s)]));
        }
        frame.running = self.running_rows.encode(running);
    }

    fn series_of(
        &mut self,
        world: &World,
        (j, rank): (usize, usize),
        frame: &mut v1::Frame,
    ) -> u32 {
        if let Some(id) = self.series.get(&(j, rank)) {
            return *id;
        }
        let job = &world.jobs[j];
        // Numbers are below 4096: those of jobs that are over are given again with the next key frame.
        let id = index(self.series.len());
        self.series.insert((j, rank), id);
        self.call_rows.announce(id);
        self.running_rows.announce(id);
        frame.series.push(v1::Series {
            id,
            job: job.spec.name.clone(),
            pid: 1000 + index(rank),
            op: if job.spec.blocking {
                "MPI_Allreduce"
            } else {
                "ncclAllReduce"
            }
            .to_owned(),
            communicator: 7,
            rank: Some(index(rank)),
            ranks: Some(index(job.ranks())),
        });
        self.key |= self.series.len() > 3500;
        id
    }
}

fn opened(id: u32, key: &FlowKey, job: &str) -> v1::FlowOpened {
    let gid = |address: Ipv4Addr| {
        let mut gid = [0u8; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&address.octets());
        gid.to_vec()
    };
    v1::FlowOpened {
        id,
        src_ipv4: key.src.to_bits(),
        dst_ipv4: key.dst.to_bits(),
        src_port: key.src_port.into(),
        dst_port: key.dst_port.into(),
        job: job.to_owned(),
        pid: 1000,
        kind: v1::FlowKind::Roce.into(),
        roce: Some(v1::RoceFlow {
            device: "mlx5_0".to_owned(),
            port: 1,
            local_gid: gid(key.src),
            peer_gid: gid(key.dst),
            local_qpn: 100 + id,
            peer_qpn: 5000 + id,
            dscp: 26,
        }),
    }
}
