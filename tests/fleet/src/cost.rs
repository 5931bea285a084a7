//! What a large fleet costs the controller: CPU time of one thread and memory, frame by frame through the real decoder
//! and the real core.
//!
//! Bytes are those that the brain asked the allocator for and did not give back, whatever else the process holds: a
//! counting allocator counts while the brain runs, and all that is handed to it is decoded while it counts.

use crate::agent::Agent;
use crate::fabric::{Fabric, Shape, Tier};
use crate::job::Pattern;
use crate::scenario::training;
use crate::world::World;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;
use weir_controller::brain::{Brain, Event};
use weir_controller_core::Config;
use weir_sim::rng::Rng;
use weir_wire::v1::{self, agent_message::Body};

/// Seconds before anything is measured. Every detector judges by then: node outliers learn for 20 s, rates of errors look
/// back over 60 s, cables and silent loss are compared over less.
pub const WARM_UP_S: u64 = 90;

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what a thread takes and gives back while [`counted`] runs there.
struct Counting;

impl Counting {
    fn note(taken: usize, given_back: usize) {
        // A thread that ends has no cells any more, and nothing to count.
        let counts = COUNTS.try_with(Cell::get).unwrap_or(false);
        if counts {
            let bytes = |n| i64::try_from(n).unwrap_or(i64::MAX);
            let change = bytes(taken) - bytes(given_back);
            HELD.try_with(|held| held.set(held.get() + change)).ok();
        }
    }
}

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call goes to the system's allocator as it came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size(), 0);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::note(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts what this thread takes and gives back meanwhile; does not nest.
fn counted<T>(run: impl FnOnce() -> T) -> T {
    COUNTS.set(true);
    let result = run();
    COUNTS.set(false);
    result
}

/// Bytes taken and not given back while counting, on this thread.
fn held() -> i64 {
    HELD.get()
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
    /// Of them in the second that took longest.
    pub cpu_s_max: f64,
    /// What the brain holds at the end.
    pub bytes_per_node: u64,
    /// Seconds of the fleet before those measured.
    pub warm_up_s: u64,
    pub wire_bytes_per_sample: f64,
    /// What a segment of a recording holds of the brain's memory; Hellos, inventories and frames come on top.
    /// `None`: not measured.
    #[serde(default)]
    pub restart_point_bytes_per_node: Option<u64>,
    /// CPU time for which the brain writes it and takes in nothing else.
    #[serde(default)]
    pub restart_point_stall_s: Option<f64>,
}

/// CPU time of this thread (schedstat of proc(5)).
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

/// What an agent's stream carries, decoded as from the network.
fn decode(bytes: &[u8]) -> Option<v1::AgentMessage> {
    v1::AgentMessage::decode(bytes).ok()
}

/// Measures `seconds` of a fleet, after `warm_up_s` ([`WARM_UP_S`]).
#[must_use]
pub fn measure(
    (mut world, mut agents): (World, Vec<Agent>),
    warm_up_s: u64,
    seconds: u64,
    mut tell: impl FnMut(u64),
) -> Cost {
    let nodes = agents.len();
    let before = held();
    let (mut brain, links) = counted(|| {
        let plan = world.fabric.plan(true);
        let links = plan.cables.len() * 2;
        (Brain::new(Config::default(), plan, false, 0), links)
    });
    let step = Duration::from_nanos(1_000_000_000 / nodes as u64);
    let mut now = Duration::ZERO;
    // Where a tick is due, and what it takes.
    let tick = |brain: &mut Brain, now: Duration| {
        if now < brain.core.poll_timeout().0 {
            return Duration::ZERO;
        }
        let start = cpu();
        counted(|| drop(brain.handle(Event::Tick, now)));
        cpu() - start
    };
    for agent in &mut agents {
        now += step;
        let is_host = world.fabric.nodes[agent.node].tier == Tier::Host;
        let message = |body| v1::AgentMessage { body: Some(body) }.encode_to_vec();
        let hello = agent.hello(is_host).encode_to_vec();
        let inventory = message(Body::Inventory(agent.inventory(&world)));
        counted(|| {
            let node = agent.name.clone();
            let hello = v1::Hello::decode(hello.as_slice()).unwrap_or_default();
            drop(brain.handle(Event::Connected { node, hello }, now));
            if let Some(message) = decode(&inventory) {
                let node = agent.name.clone();
                drop(brain.handle(Event::Message { node, message }, now));
            }
        });
        tick(&mut brain, now);
    }
    let (mut total, mut longest, mut ticks) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut samples, mut bytes) = (0, 0u64);
    for second in 0..seconds + warm_up_s {
        world.step(1.0);
        let mut frames = Vec::with_capacity(nodes);
        for agent in &mut agents {
            agent.observe(&world, 1.0);
            let frame = agent.frame(&world, world.now_s);
            let message = v1::AgentMessage {
                body: Some(Body::Frame(frame)),
            };
            frames.push((agent.name.as_str(), message.encode_to_vec()));
        }
        let sent: u64 = frames.iter().map(|(_, f)| f.len() as u64).sum();
        let had = brain.samples;
        let start = cpu();
        let mut in_ticks = Duration::ZERO;
        for (node, frame) in &frames {
            now += step;
            counted(|| {
                if let Some(message) = decode(frame) {
                    let node = (*node).to_owned();
                    drop(brain.handle(Event::Message { node, message }, now));
                }
            });
            in_ticks += tick(&mut brain, now);
        }
        if second >= warm_up_s {
            let took = cpu() - start;
            total += took;
            longest = longest.max(took);
            ticks += in_ticks;
            samples += brain.samples - had;
            bytes += sent;
        }
        tell(second);
    }
    let own = u64::try_from(held() - before).unwrap_or(0);
    let start = cpu();
    let memory = brain.memory();
    let stall = cpu() - start;
    drop(brain);
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
        cpu_s_max: round(longest.as_secs_f64()),
        tick_cpu_s_per_s: round(ticks.as_secs_f64() / each),
        ns_per_sample: round(total.as_secs_f64() * 1e9 / (samples.max(1)) as f64),
        bytes_per_node: own / nodes.max(1) as u64,
        warm_up_s,
        wire_bytes_per_sample: round(bytes as f64 / samples.max(1) as f64),
        restart_point_bytes_per_node: Some((memory.len() / nodes.max(1)) as u64),
        restart_point_stall_s: Some(round(stall.as_secs_f64())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_that_are_taken_while_counting_and_still_held() {
        let before = held();
        let outside = vec![0u8; 1000];
        let kept = counted(|| {
            drop(vec![0u8; 5000]);
            let mut kept: Vec<u64> = Vec::with_capacity(10);
            kept.reserve_exact(100);
            kept
        });
        assert_eq!(held() - before, 800);
        drop(outside);
        assert_eq!(held() - before, 800);
        counted(|| drop(kept));
        assert_eq!(held() - before, 0);
    }

    #[test]
    fn what_a_brain_holds_is_counted_to_the_byte_and_grows_with_the_columns() {
        let cost = |nvlinks| measure(fleet(72, 2, 2, nvlinks), 2, 2, |_| ());
        let (more, few) = (cost(18), cost(0));
        assert!(
            few.samples_per_s > 0 && few.bytes_per_node > 1000,
            "{few:?}"
        );
        assert!(more.bytes_per_node > few.bytes_per_node, "{more:?}");
        assert_eq!(few.bytes_per_node, cost(0).bytes_per_node);
    }
}
