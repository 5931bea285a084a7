//! Faults of the traffic: too much of it for a link, for a host, or for all links together.

use super::{WIDE, idle, jobs_on};
use crate::fabric::Link;
use crate::fault::{Effect, Fault, cable, whole};
use crate::job::{Pattern, Spec};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use weir_controller_core::ids::FlowKey;
use weir_controller_core::verdict::{Class, Subject};
use weir_sim::num::position;
use weir_sim::rng::Rng;

/// Demand of one job over capacity that a collision makes at least: less than this holds nobody back, and what others
/// want they want at moments of their own.
const COLLIDES: f64 = 1.2;
/// Flows that meet by bad luck; more are bad hashing.
const GUESTS_MAX: usize = 4;

/// Flows are hashed to the uplink of others of the same job and leaf, and together they want more than it has.
pub fn collision(world: &World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let flows = &world.jobs[WIDE].flows;
    let leaving: Vec<(usize, Link)> = flows
        .iter()
        .enumerate()
        .filter_map(|(n, f)| Some((n, *f.path.get(1)?)))
        .filter(|(_, l)| world.is_fabric(*l))
        .collect();
    let links: BTreeSet<Link> = leaving.iter().map(|(_, l)| *l).collect();
    let links: Vec<Link> = links.into_iter().collect();
    let first = position(rng.below(links.len().max(1) as u64));
    let mut order = links[first..].iter().chain(&links[..first]);
    order.find_map(|link| collision_on(world, *link, &leaving, span))
}

fn collision_on(
    world: &World,
    link: Link,
    leaving: &[(usize, Link)],
    span: (f64, f64),
) -> Option<Fault> {
    let flows = &world.jobs[WIDE].flows;
    let leaf = world.fabric.ports[link].node;
    let guests = leaving
        .iter()
        .filter(|(_, l)| *l != link && world.fabric.ports[*l].node == leaf);
    let demand = |link: Link, paths: &[Option<Vec<Link>>]| -> f64 {
        let ours = flows.iter().zip(paths);
        let ours = ours.map(|(f, moved)| (f.demand_bps, moved.as_ref().unwrap_or(&f.path)));
        let on = ours.filter(|(_, path)| path.contains(&link));
        on.map(|(bps, _)| bps).sum()
    };
    let (mut moves, mut hit) = (Vec::new(), BTreeSet::from([link]));
    let mut paths: Vec<Option<Vec<Link>>> = vec![None; flows.len()];
    let enough = COLLIDES * world.physics.capacity[link];
    for (n, _) in guests.take(GUESTS_MAX) {
        let flow = &flows[*n];
        let port = world.port_towards(flow, link)?;
        let key = FlowKey {
            src_port: port,
            ..flow.key
        };
        let path = world.fabric.path(&key, &world.physics.up)?;
        // Behind the spine it may meet others, too.
        hit.extend(path.iter().copied().filter(|l| world.is_fabric(*l)));
        moves.push((*n, flow.key.src_port ^ port));
        paths[*n] = Some(path);
        if demand(link, &paths) >= enough {
            break;
        }
    }
    if moves.is_empty() || demand(link, &paths) < enough {
        return None;
    }
    let shared: Vec<Link> = hit.into_iter().collect();
    let text = format!(
        "{} flows more hash to {}",
        moves.len(),
        world.fabric.port_id(link)
    );
    let effects = vec![Effect::Rehash(WIDE, moves)];
    let mut fault = Fault::new(Class::EcmpCollision, span, effects, text);
    fault.jobs = jobs_on(world, &shared);
    fault.entities = shared
        .iter()
        .map(|l| Subject::Link(world.fabric.port_id(*l)))
        .collect();
    Some(fault)
}

/// A job without steps that is the fault itself.
fn burst(name: &str, nodes: Vec<usize>, pattern: Pattern, span: (f64, f64)) -> Spec {
    Spec {
        name: name.to_owned(),
        nodes,
        pattern,
        start_s: span.0,
        end_s: span.1,
        compute_s: 0.0,
        transfer_s: 1.0,
        jitter: 1.0,
        blocking: false,
    }
}

pub fn gather(world: &mut World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let idle = idle(world);
    let senders = 3 + position(rng.below(8));
    // Part of the senders have a job of their own; the receiver has none.
    let mut nodes: Vec<usize> = vec![*idle.first()?];
    nodes.extend(idle.iter().skip(1).take(senders));
    let short = (senders + 1).saturating_sub(nodes.len());
    nodes.extend(world.jobs[WIDE].spec.nodes.iter().take(short).copied());
    let receiver = nodes[0];
    let text = format!(
        "{} nodes send to {} at once",
        nodes.len() - 1,
        world.fabric.nodes[receiver].name
    );
    world
        .schedule
        .push(burst("gather", nodes, Pattern::Gather, span));
    let mut fault = Fault::new(Class::Incast, span, vec![Effect::Workload], text);
    for port in &world.fabric.nodes[receiver].ports {
        fault.entities.extend(cable(&world.fabric, *port));
    }
    fault.jobs = world
        .jobs
        .iter()
        .map(|j| j.spec.name.clone())
        .chain(["gather".to_owned()])
        .collect();
    Some(fault)
}

pub fn oversubscription(world: &mut World, span: (f64, f64)) -> Option<Fault> {
    // One node of each leaf after the other: every edge of the ring crosses the spines.
    let idle = idle(world);
    let mut by_leaf: Vec<Vec<usize>> = Vec::new();
    let mut leaves: Vec<usize> = Vec::new();
    for host in idle {
        let leaf = world.fabric.leaf_of(world.fabric.nodes[host].ports[0]);
        match leaves.iter().position(|l| *l == leaf) {
            Some(n) => by_leaf[n].push(host),
            None => {
                leaves.push(leaf);
                by_leaf.push(vec![host]);
            }
        }
    }
    let each = by_leaf.iter().map(Vec::len).max()?.min(8);
    let mut nodes: Vec<usize> = Vec::new();
    for n in 0..each {
        nodes.extend(by_leaf.iter().filter_map(|l| l.get(n)));
    }
    if by_leaf.len() < 2 || nodes.len() < 6 {
        return None;
    }
    nodes.truncate(48);
    // A checked start would make it smaller: that is what this fault is about.
    let ports = nodes.iter().flat_map(|n| &world.fabric.nodes[*n].ports);
    let mut offered: BTreeMap<usize, f64> = BTreeMap::new();
    for port in ports {
        *offered.entry(world.fabric.leaf_of(*port)).or_default() += world.fabric.ports[*port].bps;
    }
    let carried = |leaf: usize| -> f64 {
        let up = world.fabric.nodes[leaf].up.iter();
        up.map(|l| world.fabric.ports[*l].bps).sum()
    };
    // Less would be a collision: another placement would help.
    if !offered.iter().any(|(leaf, bps)| *bps > carried(*leaf)) {
        return None;
    }
    let leaves: BTreeSet<usize> = offered.into_keys().collect();
    let spec = Spec {
        compute_s: 0.4,
        transfer_s: 0.3,
        jitter: 1.0,
        blocking: true,
        ..burst("train-wide", nodes, Pattern::Ring, span)
    };
    world.schedule.push(spec);
    let text = "a job needs more of the uplinks than there are".to_owned();
    let mut fault = Fault::new(Class::Oversubscription, span, vec![Effect::Workload], text);
    // Which of its leaves' uplinks are the fullest is known once it runs: any of them, or the way down to such a leaf.
    let ends = |l: &Link| [*l, world.fabric.ports[*l].peer].map(|e| world.fabric.ports[e].node);
    let fabric_links = (0..world.fabric.ports.len()).filter(|l| world.is_fabric(*l));
    let links: Vec<Link> = fabric_links
        .filter(|l| ends(l).iter().any(|n| leaves.contains(n)))
        .collect();
    fault.jobs = jobs_on(world, &links);
    fault.jobs.insert("train-wide".to_owned());
    fault.entities = links
        .iter()
        .map(|l| Subject::Link(world.fabric.port_id(*l)))
        .collect();
    Some(fault)
}

pub fn storage(world: &mut World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let to = world.fabric.storage()?;
    let end = span.0 + 15.0 + 20.0 * rng.unit();
    let job = &world.jobs[WIDE].spec;
    let (name, nodes) = (job.name.clone(), job.nodes.clone());
    let percent = u32::try_from(40 + rng.below(60)).unwrap_or(50);
    let text = format!(
        "{} nodes of {name} write to {}",
        nodes.len(),
        world.fabric.nodes[to].name
    );
    world.schedule.push(burst(
        &name,
        nodes,
        Pattern::Storage { to, percent },
        (span.0, end),
    ));
    let mut fault = Fault::new(
        Class::StorageBurst,
        (span.0, end),
        vec![Effect::Workload],
        text,
    );
    for port in &world.fabric.nodes[to].ports {
        fault.entities.extend(cable(&world.fabric, *port));
    }
    fault.entities.insert(whole(&world.fabric, to));
    fault.jobs = world.jobs.iter().map(|j| j.spec.name.clone()).collect();
    Some(fault)
}
