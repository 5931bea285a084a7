//! What a large fleet costs the controller: CPU time of one thread and memory, frame by frame through the real decoder
//! and the real core.

use crate::agent::Agent;
use crate::fabric::{Fabric, Shape, Tier};
use crate::job::Pattern;
use crate::scenario::training;
use crate::world::World;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use weir_controller::brain::{Brain, Event};
use weir_controller_core::Config;
use weir_sim::rng::Rng;
use weir_wire::v1::{self, agent_message::Body};

/// Resident memory of this process in bytes (statm of proc(5)); 0 where nobody tells.
#[must_use]
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub nodes: u64,
    pub directed_links: u64,
    /// Columns of a host.
    pub host_columns: u64,
    pub seconds_measured: u64,
    /// Values in a second of the fleet.
    pub samples_per_s: u64,
    /// CPU time of one thread for a second of the fleet: decoding, ingest and core.
    pub cpu_s_per_s: f64,
    /// Of it in the core's timer, where verdicts are made.
    pub tick_cpu_s_per_s: f64,
    pub ns_per_sample: f64,
    /// What the controller holds, without the simulator.
    pub bytes_per_node: u64,
    pub wire_bytes_per_sample: f64,
}

/// CPU time of this thread; zero where the kernel does not tell.
pub(crate) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(
        stat.split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
    )
}

/// Pods of 64 hosts, `nics` rails and `gpus` GPUs under eight spines; training jobs on three quarters of the hosts.
#[must_use]
pub fn fleet(nodes: usize, nics: usize, gpus: usize, nvlinks: usize) -> (World, Vec<Agent>) {
    let pods = (nodes / (64 + nics)).max(1);
    let shape = Shape::Rail {
        pods,
        hosts: 64,
        spines: 8,
    };
    let mut world = World::new(
        Fabric::new(shape, nics, 400e9, 1),
        gpus.max(1),
        BTreeSet::new(),
        1,
    );
    let hosts: Vec<usize> = world.fabric.hosts().collect();
    let mut rng = Rng::new(5);
    // Packed: one job in a pod, over 48 of its hosts.
    for (n, pod) in hosts.chunks(64).enumerate() {
        let nodes = pod.iter().copied().take(48).collect();
        let spec = training(
            &mut rng,
            format!("job-{n}"),
            nodes,
            Pattern::Ring,
            (0.0, 1e9),
        );
        world.schedule.push(spec);
    }
    let agents = (0..world.fabric.nodes.len())
        .map(|n| Agent::new(&world, n, gpus, nvlinks, 1))
        .collect();
    (world, agents)
}

/// Measures `seconds` of a fleet, after three to warm up. Memory is what the process grew by meanwhile: what the
/// simulated agents themselves took is in it, so the core has no more.
#[must_use]
pub fn measure(
    (mut world, mut agents): (World, Vec<Agent>),
    seconds: u64,
    mut tell: impl FnMut(u64),
) -> Cost {
    let plan = world.fabric.plan(true);
    let (nodes, links) = (agents.len(), plan.cables.len() * 2);
    let before = resident();
    let mut brain = Brain::new(Config::default(), plan, false, 0);
    let step = Duration::from_nanos(1_000_000_000 / nodes as u64);
    let mut now = Duration::ZERO;
    // Where a tick is due, and what it takes.
    let tick = |brain: &mut Brain, now: Duration| {
        if now < brain.core.poll_timeout().0 {
            return Duration::ZERO;
        }
        let start = cpu();
        brain.handle(Event::Tick, now);
        cpu() - start
    };
    for agent in &mut agents {
        now += step;
        let is_host = world.fabric.nodes[agent.node].tier == Tier::Host;
        let hello = agent.hello(is_host);
        let inventory = agent.inventory(&world);
        let node = agent.name.clone();
        brain.handle(
            Event::Connected {
                node: node.clone(),
                hello,
            },
            now,
        );
        let message = v1::AgentMessage {
            body: Some(Body::Inventory(inventory)),
        };
        brain.handle(Event::Message { node, message }, now);
        tick(&mut brain, now);
    }
    let (mut total, mut ticks, mut samples, mut bytes) = (Duration::ZERO, Duration::ZERO, 0, 0u64);
    for second in 0..seconds + 3 {
        world.step(1.0);
        let mut frames = Vec::with_capacity(nodes);
        for agent in &mut agents {
            agent.observe(&world, 1.0);
            let frame = agent.frame(&world, world.now_s);
            let message = v1::AgentMessage {
                body: Some(Body::Frame(frame)),
            };
            frames.push((agent.name.clone(), message.encode_to_vec()));
        }
        let sent: u64 = frames.iter().map(|(_, f)| f.len() as u64).sum();
        let had = brain.samples;
        let start = cpu();
        let mut in_ticks = Duration::ZERO;
        for (node, frame) in frames {
            now += step;
            if let Ok(message) = v1::AgentMessage::decode(frame.as_slice()) {
                brain.handle(Event::Message { node, message }, now);
            }
            in_ticks += tick(&mut brain, now);
        }
        if second >= 3 {
            total += cpu() - start;
            ticks += in_ticks;
            samples += brain.samples - had;
            bytes += sent;
        }
        tell(second);
    }
    let own = resident().saturating_sub(before);
    let each = seconds.max(1) as f64;
    let host = agents
        .iter()
        .find(|a| a.counters.layout.devices > 0)
        .map_or(0, |a| a.counters.layout.len());
    let round = |v: f64| (v * 1000.0).round() / 1000.0;
    Cost {
        nodes: nodes as u64,
        directed_links: links as u64,
        host_columns: host as u64,
        seconds_measured: seconds,
        samples_per_s: samples / seconds.max(1),
        cpu_s_per_s: round(total.as_secs_f64() / each),
        tick_cpu_s_per_s: round(ticks.as_secs_f64() / each),
        ns_per_sample: round(total.as_secs_f64() * 1e9 / (samples.max(1)) as f64),
        bytes_per_node: own / nodes.max(1) as u64,
        wire_bytes_per_sample: round(bytes as f64 / samples.max(1) as f64),
    }
}
