//! Faults of cables and of switches.

use super::{WIDE, busy_link, idle, jobs_on, on_cable, pick};
use crate::fabric::{Link, Tier};
use crate::fault::{Effect, Fault, cable, whole};
use crate::world::World;
use std::collections::BTreeSet;
use weir_controller_core::verdict::{Class, Subject};
use weir_sim::rng::Rng;

pub fn flap(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let link = busy_link(world, rng);
    let mut down = Vec::new();
    let mut at = 0.0;
    for _ in 0..3 + rng.below(4) {
        let until = at + 1.0 + 2.5 * rng.unit();
        down.push((at, until));
        at = until + 3.0 + 6.0 * rng.unit();
    }
    let text = format!(
        "{} goes down {} times",
        world.fabric.port_id(link),
        down.len()
    );
    let span = (span.0, span.0 + at);
    on_cable(
        world,
        Class::LinkFlap,
        span,
        Effect::Flap { link, down },
        link,
        text,
    )
}

/// One direction of a link, or a switch in all that passes through it.
pub fn silent(world: &World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let share = 10f64.powf(-3.3 + 1.8 * rng.unit());
    let links: Vec<Link> = world
        .links_of(WIDE)
        .into_iter()
        .filter(|l| world.is_fabric(*l))
        .collect();
    let link = pick(rng, &links)?;
    let mut fault;
    if rng.below(3) == 0 {
        let node = world.fabric.ports[link].node;
        let all = world.fabric.nodes[node].ports.clone();
        let text = format!(
            "{} loses {:.3} % of what passes through it",
            world.fabric.nodes[node].name,
            share * 100.0
        );
        fault = Fault::new(
            Class::SilentLoss,
            span,
            vec![Effect::Loss {
                links: all.clone(),
                share,
            }],
            text,
        );
        fault.jobs = jobs_on(world, &all);
        fault.entities = BTreeSet::from([whole(&world.fabric, node)]);
        // With flows over one of its links alone, that link says it as well, and those that carry just the same.
        let used: Vec<Link> = all
            .into_iter()
            .filter(|l| !jobs_on(world, &[*l]).is_empty())
            .collect();
        if let [only] = used.as_slice() {
            fault.entities.extend(alike(world, *only));
        }
        // So does a switch through which just the same flows pass.
        let through = |n: usize| -> BTreeSet<u32> {
            let flows = world.active.iter().flat_map(|j| &world.jobs[*j].flows);
            let leaves = |f: &&crate::job::Flow| {
                let mut links = f.path.iter();
                links.any(|l| world.fabric.ports[*l].node == n)
            };
            flows.filter(leaves).map(|f| f.id).collect()
        };
        let own = through(node);
        let switches = 0..world.fabric.nodes.len();
        let switches = switches.filter(|n| world.fabric.nodes[*n].tier != Tier::Host);
        let same = switches.filter(|n| through(*n) == own);
        fault.entities.extend(same.map(|n| whole(&world.fabric, n)));
    } else {
        let text = format!(
            "{} loses {:.3} %",
            world.fabric.port_id(link),
            share * 100.0
        );
        fault = Fault::new(
            Class::SilentLoss,
            span,
            vec![Effect::Loss {
                links: vec![link],
                share,
            }],
            text,
        );
        fault.jobs = jobs_on(world, &[link]);
        fault.entities = alike(world, link);
    }
    Some(fault)
}

/// Links that carry just the same flows: no end host can tell them apart.
fn alike(world: &World, link: Link) -> BTreeSet<Subject> {
    let flows = |l: Link| -> BTreeSet<u32> {
        let all = world.active.iter().flat_map(|j| &world.jobs[*j].flows);
        all.filter(|f| f.path.contains(&l)).map(|f| f.id).collect()
    };
    let own = flows(link);
    let near: BTreeSet<Link> = world
        .active
        .iter()
        .flat_map(|j| &world.jobs[*j].flows)
        .filter(|f| own.contains(&f.id))
        .flat_map(|f| f.path.iter().copied())
        .collect();
    let same = near.into_iter().filter(|l| flows(*l) == own);
    same.map(|l| Subject::Link(world.fabric.port_id(l)))
        .collect()
}

/// Two cables change places while an idle node is off for maintenance.
pub fn cabling(world: &World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let idle = idle(world);
    let host = pick(rng, &idle)?;
    let ports = &world.fabric.nodes[host].ports;
    let (a, b) = if ports.len() > 1 {
        (ports[0], ports[1])
    } else {
        let other = idle.iter().copied().find(|h| *h != host)?;
        (ports[0], world.fabric.nodes[other].ports[0])
    };
    let text = format!(
        "{} and {} have changed places",
        world.fabric.port_id(a),
        world.fabric.port_id(b)
    );
    let span = (span.0, span.1 + 20.0);
    let mut fault = Fault::new(Class::Cabling, span, vec![Effect::Swap { a, b }], text);
    for port in [a, b] {
        fault.entities.extend(cable(&world.fabric, port));
        let owner = world.fabric.ports[port].node;
        fault.entities.insert(whole(&world.fabric, owner));
        debug_assert_eq!(world.fabric.nodes[owner].tier, Tier::Host);
    }
    Some(fault)
}
