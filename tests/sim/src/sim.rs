//! A run: state, the loop over events, and the handle by which it is watched and changed while it runs.

use crate::buffer::Buffer;
use crate::change::Change;
use crate::config::{AckClass, SimConfig};
use crate::job::{Job, JobSpec};
use crate::num::index;
use crate::packet::{Queue, Slab};
use crate::port::{Ecn, Host, HostCounters, Path, Port, PortCounters, Qp};
use crate::rng::Rng;
use crate::round::Round;
use crate::route::{ANSWERS, Routes, Tuple};
use crate::rp::{Rp, RpConstants, RpParams};
use crate::time::{NS, Time, Wire, from_us};
use crate::topology::Topology;
use crate::wheel::Wheel;
use std::collections::VecDeque;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The last bit of a packet is at a port.
    Arrive { port: u32, packet: u32 },
    /// The port has sent its packet.
    Wake { port: u32 },
    /// A pause runs out.
    Unpause { port: u32 },
    /// A pause is to be repeated.
    Repause { port: u32 },
    /// The pacing of a queue pair lets it send.
    Ready { qp: u32 },
    /// Time to look whether acknowledgements came.
    Timeout { qp: u32 },
    /// A slow receiver has room again.
    Drained { host: u32 },
    /// A rank of a job is done computing.
    RankStart { job: u32, rank: u32 },
    /// A job starts its next iteration.
    Iterate { job: u32 },
    /// An operation's data is ready to be sent.
    Post { job: u32, op: u32 },
    /// A message that stays inside a server has been copied.
    Copied { job: u32, op: u32 },
    /// A planned change.
    Change { at: u32 },
}

/// What has become of all packets: made = delivered + lost + alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Packets made, of every kind.
    pub made: u64,
    /// Packets that reached their end.
    pub delivered: u64,
    /// Packets that found no buffer.
    pub lost_buffer: u64,
    /// Packets damaged on a link.
    pub lost_error: u64,
    /// Packets on a link or in a queue when it went down, or without a route.
    pub lost_link: u64,
    /// Data packets made.
    pub data_made: u64,
    /// Data packets that reached their host.
    pub data_delivered: u64,
    /// Payload that the receivers handed on, in order.
    pub goodput: u64,
    /// Events handled.
    pub events: u64,
}

/// Counters of a fabric at a moment.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sample {
    /// When, ps.
    pub at: Time,
    /// By port, in the order of the topology.
    pub ports: Vec<PortCounters>,
    /// By host.
    pub hosts: Vec<HostCounters>,
}

/// A run. A copy goes on from the same state on its own: what would another setting have done?
#[derive(Clone)]
pub struct Sim {
    pub(crate) now: Time,
    pub(crate) config: SimConfig,
    pub(crate) topology: Topology,
    pub(crate) routes: Routes,
    pub(crate) wheel: Wheel<Event>,
    pub(crate) rng: Rng,
    pub(crate) slab: Slab,
    pub(crate) ports: Vec<Port>,
    pub(crate) hosts: Vec<Host>,
    /// By switch, from the first one.
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) qps: Vec<Qp>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) changes: Vec<Change>,
    pub(crate) totals: Totals,
    pub(crate) rto: Time,
    pub(crate) nak_gap: Time,
    pub(crate) pause_time: Time,
    pub(crate) ack_high: bool,
    pub(crate) quantum: Time,
}

impl Sim {
    /// A fabric at rest at time 0.
    #[must_use]
    pub fn new(topology: Topology, config: SimConfig) -> Self {
        let quantum = if config.transport.whole_ns { NS } else { 1 };
        let ecn = Ecn::from(&config.ecn);
        let ports: Vec<Port> = topology
            .ports
            .iter()
            .map(|p| Port {
                node: p.node,
                peer: p.peer,
                position: p.position,
                bits_per_s: p.bits_per_s,
                wire: Wire::new(p.bits_per_s, quantum),
                delay: topology.delay,
                busy_until: 0,
                waking: false,
                paused_until: 0,
                paused_since: 0,
                unpausing: false,
                pausing_since: 0,
                up: true,
                loss: 0,
                high: Queue::default(),
                low: Queue::default(),
                ecn,
                count: PortCounters::default(),
            })
            .collect();
        let hosts = (0..topology.hosts)
            .map(|h| Host {
                port: topology.nodes[h as usize].ports[0],
                ready: Round::default(),
                qps: Vec::new(),
                rp: RpConstants::from(&config.rp),
                rp_params: config.rp,
                cnp_gap: from_us(config.transport.cnp_gap_us),
                slow: None,
                count: HostCounters::default(),
            })
            .collect();
        let buffers = topology.nodes[topology.hosts as usize..]
            .iter()
            .map(|n| {
                let headroom = |p: &u32| match config.buffer.headroom {
                    // What is on its way while a pause travels there and takes effect, and some frames.
                    0 => {
                        let bytes = topology.ports[*p as usize].bits_per_s / 8e12
                            * (2 * topology.delay) as f64;
                        crate::num::whole(bytes)
                            + 4 * u64::from(config.transport.mtu + config.transport.header)
                            + 3000
                    }
                    h => h,
                };
                Buffer::new(
                    config.buffer,
                    &n.ports.iter().map(headroom).collect::<Vec<_>>(),
                )
            })
            .collect();
        let routes = Routes::new(&topology, config.seed);
        Self {
            now: 0,
            routes,
            wheel: Wheel::default(),
            rng: Rng::new(config.seed),
            slab: Slab::new(),
            ports,
            hosts,
            buffers,
            qps: Vec::new(),
            jobs: Vec::new(),
            changes: Vec::new(),
            totals: Totals::default(),
            rto: from_us(config.transport.rto_us).max(1),
            nak_gap: from_us(config.transport.nak_gap_us),
            pause_time: from_us(config.buffer.pause_us).max(1),
            ack_high: config.transport.ack_class == AckClass::High,
            quantum,
            topology,
            config,
        }
    }

    /// A queue pair from one host to another, which stays for the whole run. Chance gives it a source port.
    pub fn connect(&mut self, src: u32, dst: u32) -> u32 {
        let id = index(self.qps.len());
        let sport = 0xc000 | u16::try_from(self.rng.below(0x4000)).unwrap_or(0);
        let line = self.ports[self.hosts[src as usize].port as usize].bits_per_s;
        self.qps.push(Qp {
            src,
            dst,
            sport,
            turn: index(self.hosts[src as usize].qps.len()),
            there: Path::default(),
            back: Path::default(),
            rp: Rp::new(line),
            posted: 0,
            next: 0,
            acked: 0,
            highest: 0,
            next_at: 0,
            in_ready: false,
            timed: false,
            rto_armed: false,
            progress_at: 0,
            sending: VecDeque::new(),
            cursor: 0,
            expected: 0,
            receiving: VecDeque::new(),
            unacked: 0,
            naked: u64::MAX,
            nak_again: 0,
            cnp_again: 0,
        });
        self.hosts[src as usize].qps.push(id);
        self.trace_paths(id);
        id
    }

    /// Adds a job; it starts when its specification says.
    pub fn add_job(&mut self, spec: JobSpec) -> u32 {
        let id = index(self.jobs.len());
        let start = spec.start;
        let mut job = Job::new(spec);
        for (src, dst) in job.endpoints() {
            let local = self.topology.nodes[src as usize].server
                == self.topology.nodes[dst as usize].server;
            job.qps.push(if local {
                u32::MAX
            } else {
                self.connect(src, dst)
            });
        }
        self.jobs.push(job);
        self.wheel
            .push(start.max(self.now), Event::Iterate { job: id });
        id
    }

    /// Plans a change.
    pub fn at(&mut self, time: Time, change: Change) {
        self.changes.push(change);
        let at = index(self.changes.len() - 1);
        self.wheel.push(time.max(self.now), Event::Change { at });
    }

    /// Runs until that time, or until nothing happens any more.
    pub fn run_until(&mut self, until: Time) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Runs until every job that has an end has reached it, at most until `limit`. True when they have.
    pub fn run_jobs(&mut self, limit: Time) -> bool {
        while !self.jobs_done() {
            if !self.step(limit) {
                return self.jobs_done();
            }
        }
        true
    }

    /// Handles the next event if it is not after `until`.
    #[inline]
    pub(crate) fn step(&mut self, until: Time) -> bool {
        let Some(entry) = self.wheel.pop(until) else {
            return false;
        };
        self.now = entry.time;
        self.totals.events += 1;
        self.handle(entry.event);
        true
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { port, packet } => self.arrive(port, packet),
            Event::Wake { port } => {
                self.ports[port as usize].waking = false;
                self.kick(port);
            }
            Event::Unpause { port } => self.unpause(port),
            Event::Repause { port } => self.repause(port),
            Event::Ready { qp } => {
                self.qps[qp as usize].timed = false;
                self.offer(qp);
            }
            Event::Timeout { qp } => self.timeout(qp),
            Event::Drained { host } => self.drained(host),
            Event::RankStart { job, rank } => self.rank_start(job, rank),
            Event::Iterate { job } => self.iterate(job),
            Event::Post { job, op } => self.post_op(job, op),
            Event::Copied { job, op } => self.delivered(job, op),
            Event::Change { at } => self.apply(self.changes[at as usize]),
        }
    }

    pub(crate) fn trace_all_paths(&mut self) {
        for qp in 0..index(self.qps.len()) {
            self.trace_paths(qp);
        }
    }

    /// Follows the routes of a queue pair once, so that its packets need not.
    pub(crate) fn trace_paths(&mut self, qp: u32) {
        let q = &self.qps[qp as usize];
        let (there, back) = (q.there_tuple(), q.back_tuple());
        let there = self.trace(there, qp);
        let back = self.trace(back, qp | ANSWERS);
        let q = &mut self.qps[qp as usize];
        (q.there, q.back) = (there, back);
    }

    fn trace(&self, tuple: Tuple, qp: u32) -> Path {
        let mut path = Path::default();
        let mut node = self.topology.access(tuple.src);
        while usize::from(path.len) < path.ports.len() {
            let Some(port) = self.routes.egress(node, tuple, qp) else {
                break;
            };
            path.ports[usize::from(path.len)] = port;
            path.len += 1;
            node = self.ports[self.ports[port as usize].peer as usize].node;
            if node < self.topology.hosts {
                break;
            }
        }
        path
    }

    /// Now, ps.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// The fabric.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The routes in force.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// What has become of all packets.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Packets on links and in queues.
    #[must_use]
    pub fn alive(&self) -> u64 {
        u64::from(self.slab.live())
    }

    /// Source host, destination host and source port of a queue pair.
    #[must_use]
    pub fn tuple(&self, qp: u32) -> Tuple {
        self.qps[qp as usize].there_tuple()
    }

    /// The ports that the data of a queue pair passes, the host's own first.
    #[must_use]
    pub fn path(&self, qp: u32) -> Vec<u32> {
        let q = &self.qps[qp as usize];
        let mut path = vec![self.hosts[q.src as usize].port];
        path.extend_from_slice(&q.there.ports[..usize::from(q.there.len)]);
        path
    }

    /// Rate at which a queue pair may send, bits per second.
    #[must_use]
    pub fn qp_rate(&self, qp: u32) -> f64 {
        self.qps[qp as usize].rp.rate()
    }

    /// Bytes that the receiver of a queue pair has handed on, in order.
    #[must_use]
    pub fn qp_delivered(&self, qp: u32) -> u64 {
        self.qps[qp as usize].expected
    }

    /// Queue pairs so far.
    #[must_use]
    pub fn qp_count(&self) -> u32 {
        index(self.qps.len())
    }

    /// The reaction point's parameters of a host.
    #[must_use]
    pub fn rp(&self, host: u32) -> &RpParams {
        &self.hosts[host as usize].rp_params
    }

    /// Jobs, in the order in which they were added.
    #[must_use]
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// Every counter now. Starts the queues' maxima again.
    pub fn sample(&mut self) -> Sample {
        let now = self.now;
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for host in &mut self.hosts {
            let mut count = host.count;
            for qp in &host.qps {
                let q = &mut self.qps[*qp as usize];
                q.rp.catch_up(now, &host.rp);
                if q.next < q.posted {
                    count.active_qps += 1;
                    count.rate_gbps += q.rp.rate() / 1e9;
                }
            }
            hosts.push(count);
        }
        let hosts_n = self.topology.hosts;
        let buffers = &self.buffers;
        let ports = self
            .ports
            .iter_mut()
            .map(|p| {
                let mut count = p.count;
                count.up = p.up;
                count.rate_bps = crate::num::whole(p.bits_per_s);
                count.queue_bytes = p.high.bytes + p.low.bytes;
                if p.paused_until > now {
                    count.pause_rx_ps += now - p.paused_since;
                }
                if p.node >= hosts_n
                    && buffers[(p.node - hosts_n) as usize].pausing(p.position as usize)
                {
                    count.pause_tx_ps += now - p.pausing_since;
                }
                p.count.queue_bytes_max = count.queue_bytes;
                count
            })
            .collect();
        Sample {
            at: now,
            ports,
            hosts,
        }
    }
}

impl Qp {
    pub(crate) fn there_tuple(&self) -> Tuple {
        Tuple {
            src: self.src,
            dst: self.dst,
            sport: self.sport,
        }
    }

    /// Acknowledgements have the ports swapped; what varies is the same number.
    pub(crate) fn back_tuple(&self) -> Tuple {
        Tuple {
            src: self.dst,
            dst: self.src,
            sport: self.sport,
        }
    }
}
