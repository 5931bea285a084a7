//! How fast the simulator is: data packets per second and core over a four-hop path.

use crate::config::SimConfig;
use crate::job::JobSpec;
use crate::plan::Plan;
use crate::sim::Sim;
use crate::time::MS;
use crate::topology::{Shape, Topology, TopologySpec};

/// Figures of one load.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Speed {
    /// Load.
    pub name: &'static str,
    /// Data packets that crossed the fabric.
    pub packets: u64,
    /// Events handled for them, acknowledgements included.
    pub events: u64,
    /// Time that it took, s.
    pub seconds: f64,
    /// Data packets per second and core.
    pub packets_per_s_core: f64,
}

/// What is measured: pairs of hosts on different leaves, so that each data packet crosses host, leaf, spine, leaf.
pub const LOADS: [(&str, Shape, u32); 4] = [
    (
        "16 hosts, leaf-spine, one acknowledgement a packet",
        Shape::LeafSpine {
            leaves: 4,
            spines: 4,
            hosts_per_leaf: 4,
        },
        1,
    ),
    (
        "16 hosts, leaf-spine, one acknowledgement for 4 packets",
        Shape::LeafSpine {
            leaves: 4,
            spines: 4,
            hosts_per_leaf: 4,
        },
        4,
    ),
    (
        "128 hosts, rail-optimised, one acknowledgement a packet",
        Shape::Rail {
            groups: 2,
            servers_per_group: 8,
            rails: 8,
            spines: 8,
        },
        1,
    ),
    (
        "1024 hosts, fat-tree (six hops), one acknowledgement a packet",
        Shape::FatTree { k: 16 },
        1,
    ),
];

/// A fabric in which every host sends to the one half the fabric away. `None`: no such fabric.
#[must_use]
pub fn load(shape: Shape, ack_every: u32, bytes: u64) -> Option<Sim> {
    let topology = Topology::build(&TopologySpec {
        shape,
        host_gbps: 100.0,
        fabric_gbps: 100.0,
        delay_ns: 1000,
    })
    .ok()?;
    let mut config = SimConfig {
        seed: 1,
        ..SimConfig::default()
    };
    config.transport.ack_every = ack_every;
    let n = topology.hosts;
    let mut sim = Sim::new(topology, config);
    let connections: Vec<(u32, u32)> = (0..n).map(|h| (h, (h + n / 2) % n)).collect();
    let messages: Vec<(u32, u64)> = (0..n).map(|c| (c, bytes)).collect();
    sim.add_job(JobSpec {
        name: "pairs".to_owned(),
        hosts: (0..n).collect(),
        plan: Plan::new(n, connections, &messages, &[]),
        start: 0,
        gap: 0,
        iterations: 1,
        step: 0,
        end_on_ack: true,
        jitter: 0,
    });
    Some(sim)
}

/// Measures one load; `clock` tells seconds.
pub fn measure(
    (name, shape, ack_every): (&'static str, Shape, u32),
    packets: u64,
    clock: impl Fn() -> f64,
) -> Option<Speed> {
    let hosts = shape.hosts().max(1);
    let mut sim = load(shape, ack_every, packets.div_ceil(hosts) * 1000)?;
    let start = clock();
    sim.run_jobs(10_000 * MS);
    let seconds = clock() - start;
    let packets = sim.totals().data_delivered;
    Some(Speed {
        name,
        packets,
        events: sim.totals().events,
        seconds,
        packets_per_s_core: packets as f64 / seconds.max(1e-9),
    })
}
