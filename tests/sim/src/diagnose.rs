//! The controller's core fed with the counters of a packet-level run: our simulator's, or an independent trace's.
//!
//! A run lasts milliseconds, the core looks at seconds. So time is stretched: each interval of the run is one second to
//! the core, capacities and times are scaled with it, and shares and ratios stay what they are.

use crate::num::index;
use crate::port::HostCounters;
use crate::scenario::Scenario;
use crate::sim::{Sample, Sim};
use crate::time::{NS, Time};
use crate::traces::{PortRow, Trace};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;
use weir_controller_core::ids::{FlowKey, JobId, NodeId, PortId};
use weir_controller_core::infer::LOOK;
use weir_controller_core::io::{
    CollectiveDone, Column, EcmpGroup, FlowSample, Inventory, NodeSample, PortInventory,
    PortSample, ResolvedHop, Role,
};
use weir_controller_core::topology::{Cable, Plan};
use weir_controller_core::verdict::Class;
use weir_controller_core::{Command, Config, Core, Input};
use weir_wire::signal::{Entity, Signal};

/// Interval in which a trace is looked at: about a fifth of an iteration, as a second is of a large model's.
const INTERVAL_NS: u64 = 500_000;

/// All ports are read at the same moment: a few intervals are enough to compare both ends of a cable.
const CABLE_WINDOW: Duration = Duration::from_secs(5);

const SECOND: Duration = Duration::from_secs(1);

/// What a port of the fabric counted in one interval.
#[derive(Debug, Clone, Copy, Default)]
struct PortCount {
    tx_bytes: u64,
    tx_packets: u64,
    rx_bytes: u64,
    rx_packets: Option<u64>,
    marked: u64,
    queue_bytes_max: u64,
    drops: u64,
    /// Shares of the interval in millionths.
    paused_us: u64,
    pausing_us: u64,
}

/// What the verbs device of a host counted in one interval, for all its queue pairs.
#[derive(Debug, Clone, Copy, Default)]
struct Device {
    /// Packets sent.
    sent: u64,
    /// Negative acknowledgements received.
    naks: u64,
}

/// A queue pair as its sender's agent sees it.
#[derive(Debug, Clone)]
struct Flow {
    key: FlowKey,
    job: JobId,
    qp: u32,
    src: u32,
    /// Ports that it leaves by, the host's first.
    path: Vec<u32>,
}

/// A collective that ended in an interval.
#[derive(Debug, Clone, Copy)]
struct Done {
    job: u32,
    /// Start before the end of the interval, and duration; in intervals.
    started_before: f64,
    duration: f64,
}

/// What the core said of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Kind.
    pub class: Class,
    /// What it is about.
    pub entity: String,
    /// Links that it names, where no flow tells them apart or the cause makes them wait.
    pub links: Vec<String>,
    /// Interval in which it was found, from 1.
    pub interval: u64,
    /// Whether it follows from another.
    pub consequence: bool,
}

/// The core, with the fabric that it looks at.
struct Fabric {
    core: Core,
    sim: Sim,
    flows: Vec<Flow>,
    /// `None`: hosts tell what their jobs call, and whose their flows are. Else they do not, and a flow has this many
    /// times its bytes in an interval: as many as in a second, since what is control traffic is told by bytes a second.
    untold: Option<u64>,
    now: Duration,
}

fn address(host: u32) -> Ipv4Addr {
    let [.., a, b] = host.to_be_bytes();
    [10, 0, a, b].into()
}

impl Fabric {
    /// The fabric of a scenario whose intervals last `interval`; its queue pairs are all known from the start.
    fn new(sim: Sim, interval: Time) -> Self {
        let stretch = 1e12 / interval as f64;
        let mut config = Config::default();
        let queue = config.hotspot.queue_delay_hot.as_secs_f64() * stretch;
        config.hotspot.queue_delay_hot = Duration::from_secs_f64(queue);
        config.hotspot.cable_window = CABLE_WINDOW;
        let topology = sim.topology();
        let mut plan = Plan::default();
        for (n, node) in topology.nodes.iter().enumerate() {
            let is_host = index(n) < topology.hosts;
            let role = if is_host { Role::Host } else { Role::Switch };
            plan.nodes.insert(NodeId::new(&node.name), role);
        }
        for (n, port) in topology.ports.iter().enumerate() {
            if index(n) < port.peer {
                plan.cables.push(Cable {
                    a: port_id(&sim, index(n)),
                    b: port_id(&sim, port.peer),
                    rate_bps: Some(port.bits_per_s / stretch),
                });
            }
        }
        let nodes: Vec<(NodeId, Role)> = plan.nodes.clone().into_iter().collect();
        let mut fabric = Self {
            core: Core::new(config, plan, false, 0),
            flows: flows(&sim),
            sim,
            untold: None,
            now: Duration::ZERO,
        };
        for (node, role) in nodes {
            let inventory = fabric.inventory(&node);
            fabric.input(Input::NodeConnected {
                node: node.clone(),
                role,
                held_leases: Vec::new(),
            });
            fabric.input(Input::InventoryReported {
                node: node.clone(),
                inventory,
            });
            if role == Role::Host {
                let columns = [Signal::TxPackets, Signal::SequenceNaks].map(|signal| Column {
                    entity: Entity::Rdma,
                    subject: "roce0/1".into(),
                    index: None,
                    signal,
                });
                let columns = columns.into();
                fabric.input(Input::ColumnsDeclared { node, columns });
            }
        }
        fabric
    }

    fn inventory(&self, node: &NodeId) -> Inventory {
        let topology = self.sim.topology();
        let known = topology.nodes.iter().position(|n| n.name == node.as_str());
        let Some(n) = known else {
            return Inventory::default();
        };
        let port = |p: &u32| PortInventory {
            name: port_id(&self.sim, *p).port,
            up: true,
            addresses: if index(n) < topology.hosts {
                vec![(address(index(n)), 32)]
            } else {
                Vec::new()
            },
            neighbours: Vec::new(),
            speed_bps: None,
        };
        let ports = topology.nodes[n].ports.iter().map(port).collect();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        if index(n) >= topology.hosts {
            for dst in 0..topology.hosts {
                let group = self.sim.routes().group(index(n), dst).to_vec();
                if group.len() > 1 && !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        let group = |(id, members): (usize, Vec<u32>)| EcmpGroup {
            id: index(id) + 1,
            members: members
                .iter()
                .map(|p| port_id(&self.sim, *p).port)
                .collect(),
        };
        Inventory {
            ports,
            groups: groups.into_iter().enumerate().map(group).collect(),
            routes_epoch: 1,
        }
    }

    fn input(&mut self, input: Input) {
        self.core.handle_input(input, self.now);
        while let Some(command) = self.core.poll_command() {
            if let Command::QueryPaths { node, keys } = command {
                let hops = keys.into_iter().map(|(key, in_port)| {
                    let out = self.next_hop(&node, &key);
                    let group = out
                        .as_ref()
                        .and_then(|out| self.core.topology().group_of(out));
                    ResolvedHop {
                        key,
                        in_port,
                        group: group.map(|g| g.id),
                        out_port: out.map(|out| out.port),
                    }
                });
                let hops = hops.collect();
                self.core
                    .handle_input(Input::PathsResolved { node, hops }, self.now);
            }
        }
    }

    fn next_hop(&self, node: &NodeId, key: &FlowKey) -> Option<PortId> {
        let flow = self.flows.iter().find(|f| f.key == *key)?;
        let mut ports = flow.path.iter().map(|p| port_id(&self.sim, *p));
        // Where it does not pass today, the routes say what would become of it.
        ports.find(|p| p.node == *node).or_else(|| {
            let switch = self.sim.topology().switch_named(node.as_str())?;
            let out = self
                .sim
                .routes()
                .egress(switch, self.sim.tuple(flow.qp), flow.qp)?;
            Some(port_id(&self.sim, out))
        })
    }

    /// One interval: what each port, queue pair and collective did.
    fn interval(
        &mut self,
        ports: &BTreeMap<u32, PortCount>,
        flows: &[u64],
        devices: &[Device],
        done: &[Done],
    ) {
        self.now += SECOND;
        let mut samples: BTreeMap<NodeId, NodeSample> = BTreeMap::new();
        for (port, count) in ports {
            let id = port_id(&self.sim, *port);
            samples.entry(id.node).or_default().ports.push(PortSample {
                port: id.port,
                tx_bytes: Some(count.tx_bytes),
                queue_bytes_max: Some(count.queue_bytes_max),
                drops: Some(count.drops),
                tx_packets: Some(count.tx_packets),
                rx_bytes: Some(count.rx_bytes),
                rx_packets: count.rx_packets,
                ecn_marked: Some(count.marked),
                pause_rx_us: Some(count.paused_us),
                pause_tx_us: Some(count.pausing_us),
                up: Some(true),
            });
        }
        for (host, device) in (0..self.sim.topology().hosts).zip(devices) {
            let host = NodeId::new(&self.sim.topology().nodes[host as usize].name);
            samples.entry(host).or_default().values = vec![Some(device.sent), Some(device.naks)];
        }
        for (flow, bytes) in self.flows.iter().zip(flows) {
            let host = NodeId::new(&self.sim.topology().nodes[flow.src as usize].name);
            samples.entry(host).or_default().flows.push(FlowSample {
                key: flow.key,
                job: self.untold.is_none().then(|| flow.job.clone()),
                bytes: bytes * self.untold.unwrap_or(1),
                retransmits: 0,
                srtt_us: 0,
                delivered_ce: 0,
                received_ce: 0,
                cnps_sent: 0,
            });
        }
        for done in done.iter().filter(|_| self.untold.is_none()) {
            let Some(flow) = self.flows.iter().find(|f| f.job == job_id(done.job)) else {
                continue;
            };
            let host = NodeId::new(&self.sim.topology().nodes[flow.src as usize].name);
            samples
                .entry(host)
                .or_default()
                .collectives
                .push(CollectiveDone {
                    job: job_id(done.job),
                    rank: Some(0),
                    ranks: None,
                    op: "MPI_Allreduce".into(),
                    bytes: Some(1),
                    started_before: SECOND.mul_f64(done.started_before.max(0.0)),
                    duration: SECOND.mul_f64(done.duration.max(0.0)),
                });
        }
        for (node, mut sample) in samples {
            sample.elapsed = Some(SECOND);
            self.input(Input::SampleReported { node, sample });
        }
        for _ in 0..4 {
            let (due, _) = self.core.poll_timeout();
            self.core.handle_timeout(due.max(self.now));
        }
    }

    fn found(&self) -> Vec<Found> {
        let found = self.core.incidents().iter().map(|i| Found {
            class: i.verdict.class,
            entity: i.verdict.entity.to_string(),
            links: i.verdict.links.iter().map(ToString::to_string).collect(),
            interval: i.opened_at.as_secs(),
            consequence: i.root.is_some(),
        });
        found.collect()
    }
}

fn job_id(job: u32) -> JobId {
    JobId::new(&format!("job{job}"))
}

fn port_id(sim: &Sim, port: u32) -> PortId {
    let name = sim.topology().port_name(port);
    let (node, number) = name.split_once('/').unwrap_or((&name, ""));
    PortId::new(&NodeId::new(node), &format!("p{number}"))
}

fn flows(sim: &Sim) -> Vec<Flow> {
    let mut by_qp: BTreeMap<u32, u32> = BTreeMap::new();
    for (n, job) in sim.jobs().iter().enumerate() {
        by_qp.extend(
            job.qps
                .iter()
                .filter(|qp| **qp != u32::MAX)
                .map(|qp| (*qp, index(n))),
        );
    }
    let flow = |(qp, job): (u32, u32)| {
        let tuple = sim.tuple(qp);
        Flow {
            key: FlowKey {
                src: address(tuple.src),
                dst: address(tuple.dst),
                // The number of the queue pair tells those of the same two hosts apart.
                src_port: u16::try_from(0xc000 + (qp & 0x3fff)).unwrap_or(u16::MAX),
                dst_port: 4791,
            },
            job: job_id(job),
            qp,
            src: tuple.src,
            path: sim.path(qp),
        }
    };
    by_qp.into_iter().map(flow).collect()
}

/// The rows of a trace at one time.
#[derive(Default)]
struct Rows {
    ports: BTreeMap<(u32, u32), PortRow>,
    sent: BTreeMap<u32, u64>,
    naks: BTreeMap<u32, u64>,
}

/// Hosts of the jobs of an independent trace that the core infers when no host tells of any.
#[must_use]
pub fn jobs_in_trace(model: &Scenario, trace: &Trace) -> Option<Vec<BTreeSet<String>>> {
    let mut fabric = feed(model, trace, false)?;
    // Some traces are shorter than the time between looks.
    fabric.core.handle_timeout(fabric.now + LOOK);
    let groups = fabric.core.inference().groups().iter();
    let hosts = groups.map(|g| g.servers.iter().map(ToString::to_string).collect());
    Some(hosts.collect())
}

/// What the core finds in an independent trace. Paths are those of our `model` of it, which [`crate::infer`] found in its
/// counters; a host's traffic is shared out evenly among its queue pairs.
#[must_use]
pub fn in_trace(model: &Scenario, trace: &Trace) -> Option<Vec<Found>> {
    feed(model, trace, true).map(|fabric| fabric.found())
}

/// The core after it was fed with a trace.
fn feed(model: &Scenario, trace: &Trace, is_told: bool) -> Option<Fabric> {
    let mut sim = model.build().ok()?;
    sim.run_jobs(model.limit());
    let all: Vec<u64> = trace.ports.keys().copied().collect();
    let row_ns = all.get(1)?.checked_sub(*all.first()?)?;
    let rows_each = usize::try_from((INTERVAL_NS / row_ns).max(1)).ok()?;
    let step_ns = row_ns * rows_each as u64;
    let times: Vec<u64> = all
        .chunks_exact(rows_each)
        .filter_map(<[u64]>::last)
        .copied()
        .collect();
    let mut fabric = Fabric::new(sim, step_ns * NS);
    fabric.untold = (!is_told).then_some(1_000_000_000 / step_ns);
    let mut last = Rows::default();
    let mut ended: BTreeMap<u64, Vec<Done>> = BTreeMap::new();
    for (at, (job, duration_us)) in &trace.ends {
        // One that ends after the last row is nobody's news.
        let Some(row) = times.get(times.partition_point(|t| t < at)) else {
            continue;
        };
        let step_us = step_ns as f64 / 1e3;
        ended.entry(*row).or_default().push(Done {
            job: *job,
            started_before: ((row - at) as f64 / 1e3 + duration_us) / step_us,
            duration: duration_us / step_us,
        });
    }
    let mut deepest: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for (at, rows) in &trace.ports {
        for (port, row) in rows {
            let queue = deepest.entry(*port).or_default();
            *queue = row.queue_max.max(*queue);
        }
        if times.binary_search(at).is_err() {
            continue;
        }
        let rise = |now: u64, before: u64| now.saturating_sub(before);
        let mut ports = BTreeMap::new();
        for ((node, number), row) in rows {
            let before = last
                .ports
                .get(&(*node, *number))
                .copied()
                .unwrap_or_default();
            let info = fabric.sim.topology().nodes.get(*node as usize)?;
            let port = *info.ports.get((*number as usize).checked_sub(1)?)?;
            let share = |ns: u64| ns.min(step_ns) * 1_000_000 / step_ns;
            let count = PortCount {
                tx_bytes: rise(row.tx_bytes, before.tx_bytes),
                tx_packets: rise(row.tx_packets, before.tx_packets),
                rx_bytes: rise(row.rx_bytes, before.rx_bytes),
                rx_packets: None,
                marked: rise(row.ecn, before.ecn),
                queue_bytes_max: deepest.remove(&(*node, *number)).unwrap_or(0),
                drops: rise(row.drop, before.drop),
                paused_us: share(rise(row.paused_ns, before.paused_ns)),
                pausing_us: 0,
            };
            ports.insert(port, count);
        }
        let hosts = trace.host_tx.get(at).cloned().unwrap_or_default();
        let mut per_host: BTreeMap<u32, u64> = BTreeMap::new();
        for flow in &fabric.flows {
            *per_host.entry(flow.src).or_default() += 1;
        }
        let of_flow = |flow: &Flow| {
            let now = hosts.get(&flow.src).copied().unwrap_or(0);
            let sent = rise(now, last.sent.get(&flow.src).copied().unwrap_or(0));
            sent / per_host[&flow.src]
        };
        let flows: Vec<u64> = fabric.flows.iter().map(of_flow).collect();
        let naks = trace.host_naks.get(at).cloned().unwrap_or_default();
        let of_host = |host: u32| {
            let rise = |now: &BTreeMap<u32, u64>, before: &BTreeMap<u32, u64>| {
                let at = |rows: &BTreeMap<u32, u64>| rows.get(&host).copied().unwrap_or(0);
                at(now).saturating_sub(at(before))
            };
            Device {
                sent: rise(&hosts, &last.sent) / u64::from(model.config.transport.mtu),
                naks: rise(&naks, &last.naks),
            }
        };
        let devices: Vec<Device> = (0..fabric.sim.topology().hosts).map(of_host).collect();
        let done = ended.remove(at).unwrap_or_default();
        fabric.interval(&ports, &flows, &devices, &done);
        last = Rows {
            ports: rows.clone(),
            sent: hosts,
            naks,
        };
    }
    Some(fabric)
}

/// What the core finds in a run of our own, sampled every `interval`.
#[must_use]
pub fn in_run(scenario: &Scenario, interval: Time) -> Option<Vec<Found>> {
    let mut sim = scenario.build().ok()?;
    let mut planned = scenario.build().ok()?;
    planned.run_jobs(scenario.limit());
    let mut fabric = Fabric::new(planned, interval);
    let mut last: Option<Sample> = None;
    let mut delivered: Vec<u64> = Vec::new();
    let mut finished: Vec<usize> = Vec::new();
    crate::traces::run_sampled(&mut sim, scenario.limit(), interval, |sim, sample| {
        let mut ports = BTreeMap::new();
        for (n, count) in sample.ports.iter().enumerate() {
            let before = last.as_ref().map(|l| l.ports[n]).unwrap_or_default();
            let share = |ps: Time| ps.min(interval) * 1_000_000 / interval;
            let one = PortCount {
                tx_bytes: count.tx_bytes - before.tx_bytes,
                tx_packets: count.tx_packets - before.tx_packets,
                rx_bytes: count.rx_bytes - before.rx_bytes,
                rx_packets: Some(count.rx_packets - before.rx_packets),
                marked: count.ecn_marked_tx - before.ecn_marked_tx,
                queue_bytes_max: count.queue_bytes_max,
                drops: count.tx_discards - before.tx_discards,
                paused_us: share(count.pause_rx_ps.saturating_sub(before.pause_rx_ps)),
                pausing_us: share(count.pause_tx_ps.saturating_sub(before.pause_tx_ps)),
            };
            ports.insert(index(n), one);
        }
        let now: Vec<u64> = (0..sim.qp_count()).map(|qp| sim.qp_delivered(qp)).collect();
        let sent = |qp: usize| now[qp] - delivered.get(qp).copied().unwrap_or(0);
        let rows: Vec<u64> = (0..now.len()).map(sent).collect();
        let device = |(n, count): (usize, &HostCounters)| {
            let before = last.as_ref().map(|l| l.hosts[n]).unwrap_or_default();
            Device {
                sent: count.tx_packets - before.tx_packets,
                naks: count.sequence_naks - before.sequence_naks,
            }
        };
        let devices: Vec<Device> = sample.hosts.iter().enumerate().map(device).collect();
        finished.resize(sim.jobs().len(), 0);
        let mut done = Vec::new();
        for (n, job) in sim.jobs().iter().enumerate() {
            for iteration in &job.iterations[finished[n]..] {
                let intervals = |time: Time| time as f64 / interval as f64;
                done.push(Done {
                    job: index(n),
                    started_before: intervals(sample.at - iteration.start),
                    duration: intervals(iteration.end - iteration.start),
                });
            }
            finished[n] = job.iterations.len();
        }
        fabric.interval(&ports, &rows, &devices, &done);
        (delivered, last) = (now, Some(sample));
    });
    Some(fabric.found())
}
