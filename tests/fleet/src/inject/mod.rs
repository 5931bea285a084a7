//! Where a fault of each class strikes, and what its truth is: chosen so that it matters, because a fault that touches
//! no traffic has nothing to be found by.

mod hosts;
mod links;
mod traffic;

use crate::fabric::Link;
use crate::fault::{Effect, Fault, cable, whole};
use crate::world::World;
use std::collections::BTreeSet;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::verdict::{Class, Subject};
use weir_sim::num::{index, position};
use weir_sim::rng::Rng;

/// The job that faults strike.
const WIDE: usize = 0;

/// Makes a fault; `None` where this fabric and its jobs have no place for one beside `others`.
pub fn fault(
    world: &mut World,
    rng: &mut Rng,
    class: Class,
    span: (f64, f64),
    others: &[Fault],
) -> Option<Fault> {
    let scheduled = world.schedule.len();
    let fault = strike(world, rng, class, span).filter(|f| !is_taken(f, others));
    if fault.is_none() {
        // What is no fault must not run either.
        world.schedule.truncate(scheduled);
    }
    fault
}

/// Whether a place has a fault already, or there is one of the class.
fn is_taken(fault: &Fault, others: &[Fault]) -> bool {
    let mut taken = others
        .iter()
        .flat_map(|f| f.entities.iter().chain(&f.touched));
    taken.any(|e| fault.entities.contains(e)) || others.iter().any(|f| f.class == fault.class)
}

fn strike(world: &mut World, rng: &mut Rng, class: Class, span: (f64, f64)) -> Option<Fault> {
    let mut fault = match class {
        Class::EcmpCollision => traffic::collision(world, rng, span)?,
        Class::Incast => traffic::gather(world, rng, span)?,
        Class::Oversubscription => traffic::oversubscription(world, span)?,
        Class::StorageBurst => traffic::storage(world, rng, span)?,
        Class::SlowReceiver => {
            let port = job_port(world, rng);
            let share = 0.3 + 0.35 * rng.unit();
            let text = format!(
                "{} takes {:.0} % of its rate",
                world.fabric.port_id(port),
                share * 100.0
            );
            at_nic(
                world,
                class,
                span,
                Effect::Drain { port, share },
                port,
                text,
            )
        }
        Class::PfcStorm => {
            let port = job_port(world, rng);
            let text = format!("{} sends pause all the time", world.fabric.port_id(port));
            at_nic(world, class, span, Effect::Storm { port }, port, text)
        }
        Class::DegradedLink => {
            let link = busy_link(world, rng);
            // What no counter of a host says, only switches show.
            let told = rng.below(2) == 0 || !world.site.switches_tell();
            let share = if told && rng.below(2) == 0 { 0.25 } else { 0.5 };
            // Where less than what is left was sent, a rate that nobody tells changes nothing.
            let link = if told {
                link
            } else {
                pick(rng, &strained(world, share))?
            };
            let text = format!(
                "{} has {share} of its rate{}",
                world.fabric.port_id(link),
                if told { "" } else { ", nothing says so" }
            );
            on_cable(
                world,
                class,
                span,
                Effect::Degrade { link, share, told },
                link,
                text,
            )
        }
        Class::LinkFlap => links::flap(world, rng, span),
        Class::LinkDown => {
            let link = busy_link(world, rng);
            let text = format!("{} is down", world.fabric.port_id(link));
            on_cable(world, class, span, Effect::Down { link }, link, text)
        }
        Class::LinkErrors => {
            let mut link = busy_link(world, rng);
            // The receiving end counts.
            if !world.site.switches_tell() && !world.is_to_host(link) {
                link = world.fabric.ports[link].peer;
            }
            let blocks = 10f64.powf(1.0 + 2.5 * rng.unit());
            let text = format!(
                "{} damages {blocks:.0} blocks a second",
                world.fabric.port_id(link)
            );
            on_cable(
                world,
                class,
                span,
                Effect::Errors { link, blocks },
                link,
                text,
            )
        }
        Class::SilentLoss => links::silent(world, rng, span)?,
        Class::Straggler => hosts::straggler(world, rng, span),
        Class::NicFault => hosts::nic(world, rng, span),
        Class::GpuFault => hosts::sick_gpu(world, rng, span),
        Class::NodeOutlier => hosts::outlier(world, rng, span),
        Class::Cabling => links::cabling(world, rng, span)?,
    };
    if let Some(Effect::Down { link } | Effect::Flap { link, .. }) = fault.effects.first() {
        let rerouted = rerouted(world, *link);
        fault.jobs.extend(rerouted);
    }
    fault.touched.extend(neighbourhood(world, &fault));
    Some(fault)
}

/// Jobs with flows that take another way while a cable is lost.
fn rerouted(world: &World, link: Link) -> BTreeSet<String> {
    let mut up = world.physics.up.clone();
    for end in world.fabric.cable_of(link) {
        up[end] = false;
    }
    let moves = |flow: &crate::job::Flow| {
        world.fabric.path(&flow.key, &up) != world.fabric.path(&flow.key, &world.physics.up)
    };
    let hit = world.jobs.iter().filter(|job| job.flows.iter().any(moves));
    hit.map(|job| job.spec.name.clone()).collect()
}

/// Nodes of the jobs that it strikes, and links of their flows.
fn neighbourhood(world: &World, fault: &Fault) -> BTreeSet<Subject> {
    let struck = world
        .jobs
        .iter()
        .enumerate()
        .filter(|(_, j)| fault.jobs.contains(&j.spec.name));
    struck
        .flat_map(|(n, job)| {
            let links = world
                .links_of(n)
                .into_iter()
                .map(|l| Subject::Link(world.fabric.port_id(l)));
            let nodes = job.spec.nodes.iter().map(|n| whole(&world.fabric, *n));
            let ranks = (0..job.ranks()).flat_map(|r| rank_names(world, n, r));
            links.chain(nodes).chain(ranks).collect::<Vec<_>>()
        })
        .collect()
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
    from.get(position(rng.below(from.len() as u64))).copied()
}

fn job_node(world: &World, rng: &mut Rng) -> usize {
    let nodes = &world.jobs[WIDE].spec.nodes;
    nodes[position(rng.below(nodes.len() as u64))]
}

fn job_port(world: &World, rng: &mut Rng) -> Link {
    let ports = &world.fabric.nodes[job_node(world, rng)].ports;
    ports[position(rng.below(ports.len() as u64))]
}

/// A link that carries flows of the job, any in its paths; where switches tell nothing, one of a host.
fn busy_link(world: &World, rng: &mut Rng) -> Link {
    let links: Vec<Link> = world
        .links_of(WIDE)
        .into_iter()
        .filter(|l| world.site.switches_tell() || !world.is_fabric(*l))
        .collect();
    links[position(rng.below(links.len() as u64))]
}

/// Links over which the job alone sends more than this share of what they carry: others send at moments of their own.
fn strained(world: &World, share: f64) -> Vec<Link> {
    let offered = |l: &Link| -> f64 {
        let flows = world.jobs[WIDE].flows.iter();
        let over = flows.filter(|f| f.path.contains(l));
        over.map(|f| f.demand_bps).sum()
    };
    let links = world.links_of(WIDE).into_iter();
    links
        .filter(|l| offered(l) > share * world.fabric.ports[*l].bps)
        .collect()
}

/// Jobs with flows over any of the links.
fn jobs_on(world: &World, links: &[Link]) -> BTreeSet<String> {
    let on = |flow: &crate::job::Flow| flow.path.iter().any(|l| links.contains(l));
    let hit = world.jobs.iter().filter(|j| j.flows.iter().any(on));
    hit.map(|j| j.spec.name.clone()).collect()
}

fn on_cable(
    world: &World,
    class: Class,
    span: (f64, f64),
    effect: Effect,
    link: Link,
    text: String,
) -> Fault {
    Fault {
        entities: cable(&world.fabric, link),
        jobs: jobs_on(world, &world.fabric.cable_of(link)),
        ..Fault::new(class, span, vec![effect], text)
    }
}

/// A fault of a host's NIC: named by it, or by either end of its cable.
fn at_nic(
    world: &World,
    class: Class,
    span: (f64, f64),
    effect: Effect,
    port: Link,
    text: String,
) -> Fault {
    let mut fault = on_cable(world, class, span, effect, port, text);
    // Pause goes upstream to everybody who sends through the same ports.
    let upstream: BTreeSet<Link> = world
        .jobs
        .iter()
        .flat_map(|j| &j.flows)
        .filter(|f| f.dst == port)
        .flat_map(|f| f.path.iter().copied())
        .collect();
    let upstream: Vec<Link> = upstream.into_iter().collect();
    fault.jobs.extend(jobs_on(world, &upstream));
    fault
}

/// Hosts without a job, in order.
fn idle(world: &World) -> Vec<usize> {
    let booked: BTreeSet<usize> = world
        .schedule
        .iter()
        .flat_map(|s| s.nodes.iter().copied())
        .collect();
    world
        .fabric
        .computing()
        .filter(|h| world.job_of[*h].is_none() && !booked.contains(h))
        .collect()
}

/// A rank, with its host and without.
fn rank_names(world: &World, job: usize, rank: usize) -> [Subject; 2] {
    let job = &world.jobs[job];
    let host = job.spec.nodes[rank / job.per_node];
    let node = NodeId::new(&world.fabric.nodes[host].name);
    [Some(node), None].map(|node| Subject::Rank {
        job: JobId::new(&job.spec.name),
        rank: index(rank),
        node,
    })
}
