//! Where a fault of each class strikes, and what its truth is: chosen so that it matters, because a fault that touches
//! no traffic has nothing to be found by.

use crate::columns::{GPU_ADDRESSES, GPUS, nic_address};
use crate::fabric::{Link, Tier};
use crate::fault::{Effect, Fault, cable, gpu, nic_names, whole};
use crate::fleet::event;
use crate::job::{Pattern, Spec};
use crate::physics::GpuFault;
use crate::world::World;
use std::collections::BTreeSet;
use weir_controller_core::ids::{JobId, NodeId};
use weir_controller_core::verdict::{Class, Subject};
use weir_sim::num::{index, position};
use weir_sim::rng::Rng;
use weir_wire::v1;

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
    let mut fault = match class {
        Class::EcmpCollision => collision(world, rng, span)?,
        Class::Incast => gather(world, rng, span)?,
        Class::Oversubscription => oversubscription(world, span)?,
        Class::StorageBurst => storage(world, rng, span)?,
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
            let told = rng.below(2) == 0;
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
        Class::LinkFlap => flap(world, rng, span),
        Class::LinkDown => {
            let link = busy_link(world, rng);
            let text = format!("{} is down", world.fabric.port_id(link));
            on_cable(world, class, span, Effect::Down { link }, link, text)
        }
        Class::LinkErrors => {
            let link = busy_link(world, rng);
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
        Class::SilentLoss => silent(world, rng, span)?,
        Class::Straggler => straggler(world, rng, span),
        Class::NicFault => nic(world, rng, span),
        Class::GpuFault => sick_gpu(world, rng, span),
        Class::NodeOutlier => outlier(world, rng, span),
        Class::Cabling => cabling(world, rng, span)?,
    };
    let taken: BTreeSet<&Subject> = others
        .iter()
        .flat_map(|f| f.entities.iter().chain(&f.touched))
        .collect();
    if fault.entities.iter().any(|e| taken.contains(e)) || others.iter().any(|f| f.class == class) {
        return None;
    }
    fault.touched.extend(neighbourhood(world, &fault));
    Some(fault)
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

/// A link that carries flows of the job, any in its paths.
fn busy_link(world: &World, rng: &mut Rng) -> Link {
    let links: Vec<Link> = world.links_of(WIDE).into_iter().collect();
    links[position(rng.below(links.len() as u64))]
}

/// Links of the job over which more is sent than this share of what they carry.
fn strained(world: &World, share: f64) -> Vec<Link> {
    let flows = || world.active.iter().flat_map(|j| &world.jobs[*j].flows);
    let offered = |l: &Link| -> f64 {
        let over = flows().filter(|f| f.path.contains(l));
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

/// A flow is hashed to the uplink of another of the same leaf.
fn collision(world: &mut World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
    let flows = &world.jobs[WIDE].flows;
    let leaving: Vec<(usize, Link)> = flows
        .iter()
        .enumerate()
        .filter_map(|(n, f)| Some((n, *f.path.get(1)?)))
        .filter(|(_, l)| world.is_fabric(*l))
        .collect();
    let (_, link) = pick(rng, &leaving)?;
    let leaf = world.fabric.ports[link].node;
    let guests: Vec<(usize, Link)> = leaving
        .iter()
        .copied()
        .filter(|(_, l)| *l != link && world.fabric.ports[*l].node == leaf)
        .collect();
    let mut moves = Vec::new();
    let mut hit: BTreeSet<Link> = BTreeSet::from([link]);
    for (n, _) in guests.into_iter().take(1 + position(rng.below(2))) {
        let flow = &world.jobs[WIDE].flows[n];
        let port = world.port_towards(flow, link)?;
        let key = weir_controller_core::ids::FlowKey {
            src_port: port,
            ..flow.key
        };
        let path = world.fabric.path(&key, &world.physics.up)?;
        // Behind the spine it may meet others, too.
        hit.extend(path.iter().copied().filter(|l| world.is_fabric(*l)));
        moves.push((n, flow.key.src_port ^ port));
    }
    if moves.is_empty() {
        return None;
    }
    let shared: Vec<Link> = hit.into_iter().collect();
    let text = format!(
        "{} flows more hash to {}",
        moves.len(),
        world.fabric.port_id(link)
    );
    let mut fault = Fault::new(
        Class::EcmpCollision,
        span,
        vec![Effect::Rehash(WIDE, moves)],
        text,
    );
    fault.jobs = jobs_on(world, &shared);
    fault.entities = shared
        .iter()
        .map(|l| Subject::Link(world.fabric.port_id(*l)))
        .collect();
    Some(fault)
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

fn gather(world: &mut World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
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

fn oversubscription(world: &mut World, span: (f64, f64)) -> Option<Fault> {
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
    fault.jobs = world
        .jobs
        .iter()
        .map(|j| j.spec.name.clone())
        .chain(["train-wide".to_owned()])
        .collect();
    // Which of the groups are full is known once it runs: any link between switches.
    let fabric_links = (0..world.fabric.ports.len()).filter(|l| world.is_fabric(*l));
    fault.entities = fabric_links
        .map(|l| Subject::Link(world.fabric.port_id(l)))
        .collect();
    Some(fault)
}

fn storage(world: &mut World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
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

fn flap(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
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
fn silent(world: &World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
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

fn straggler(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let job = &world.jobs[WIDE];
    let rank = position(rng.below(job.ranks() as u64));
    // Where calls only queue work, a network that is slow for one rank shows in no call.
    let network = job.spec.blocking && rng.below(3) == 0;
    let seconds = (job.spec.compute_s + job.comm_s) * (0.15 + 0.35 * rng.unit());
    let how = if network { "finishes" } else { "arrives" };
    let text = format!("rank {rank} of {} {how} {seconds:.2} s late", job.spec.name);
    let effect = Effect::Late {
        job: WIDE,
        ranks: vec![rank],
        seconds,
        network,
    };
    let mut fault = Fault::new(Class::Straggler, span, vec![effect], text);
    fault.entities = rank_names(world, WIDE, rank).into();
    fault.jobs = BTreeSet::from([job.spec.name.clone()]);
    fault
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

fn critical(mut event: v1::Event) -> v1::Event {
    event.severity = v1::Severity::Critical.into();
    event
}

fn nic(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let port = job_port(world, rng);
    let node = world.fabric.ports[port].node;
    let n = world.fabric.nodes[node]
        .ports
        .iter()
        .position(|p| *p == port)
        .unwrap_or(0);
    let (address, name) = (nic_address(n), world.fabric.port_id(port));
    let (effect, text, told) = match rng.below(3) {
        0 => (
            Effect::QpErrors { port },
            format!("{name}: queue pairs fail"),
            None,
        ),
        1 => (
            Effect::Pcie { port, share: 0.5 },
            format!("{name}: half of its PCIe lanes"),
            Some(event(
                "kmsg",
                "pcie_downgraded",
                &address,
                None,
                true,
                "PCIe gives 126.016 Gb/s, limited by 8.0 GT/s PCIe x16 link; the device can do 252.048",
            )),
        ),
        _ => (
            Effect::QpErrors { port },
            format!("{name}: firmware fails"),
            Some(critical(event(
                "kmsg",
                "nic_health",
                &address,
                None,
                true,
                "NIC's firmware no longer counts its health counter up",
            ))),
        ),
    };
    let mut fault = at_nic(world, Class::NicFault, span, effect, port, text);
    fault.entities.extend(nic_names(&world.fabric, port));
    fault.events = told.into_iter().map(|e| (span.0 + 0.5, node, e)).collect();
    fault
}

fn sick_gpu(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let node = job_node(world, rng);
    let n = position(rng.below(GPUS as u64));
    let address = GPU_ADDRESSES[n];
    let xid =
        |code: u32, text: &str| critical(event("kmsg", "xid", address, Some(code), true, text));
    let (what, text, told) = match rng.below(5) {
        0 => (
            GpuFault::Lost,
            "is lost",
            vec![
                xid(79, "GPU no longer answers on PCIe"),
                critical(event(
                    "gpu",
                    "gpu_lost",
                    address,
                    None,
                    true,
                    "NVIDIA H100 no longer answers: GPU is lost",
                )),
            ],
        ),
        1 => (
            GpuFault::EccUncorrected,
            "has memory errors",
            vec![
                xid(48, "uncorrectable (double bit) ECC error"),
                xid(
                    95,
                    "uncorrectable memory error not contained; other processes affected",
                ),
            ],
        ),
        2 => (
            GpuFault::RemapFailure,
            "cannot remap a row",
            vec![xid(
                64,
                "row remap or page retirement could not be recorded",
            )],
        ),
        3 => (
            GpuFault::NvlinkDown,
            "has an NVLink down",
            vec![event(
                "kmsg",
                "xid",
                address,
                Some(74),
                true,
                "NVLink fault on one of the links; register dump in the text",
            )],
        ),
        _ => (GpuFault::Thermal, "is too hot and slows down", Vec::new()),
    };
    let name = format!("{}:{address}", world.fabric.nodes[node].name);
    let mut effects = vec![Effect::Gpu { node, gpu: n, what }];
    let job = &world.jobs[WIDE];
    if what == GpuFault::Thermal
        && let Some(place) = job.spec.nodes.iter().position(|h| *h == node)
    {
        let rank = place * job.per_node + n;
        effects.push(Effect::Late {
            job: WIDE,
            ranks: vec![rank],
            seconds: job.spec.compute_s * 0.6,
            network: false,
        });
    }
    let mut fault = Fault::new(Class::GpuFault, span, effects, format!("{name} {text}"));
    fault.entities = BTreeSet::from([gpu(&world.fabric, node, n)]);
    fault.jobs = BTreeSet::from([job.spec.name.clone()]);
    fault.events = told.into_iter().map(|e| (span.0 + 0.5, node, e)).collect();
    fault
}

fn outlier(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let node = job_node(world, rng);
    let job = &world.jobs[WIDE];
    let place = job.spec.nodes.iter().position(|h| *h == node).unwrap_or(0);
    let ranks = (0..job.per_node)
        .map(|g| place * job.per_node + g)
        .collect();
    let seconds = job.spec.compute_s * (0.08 + 0.07 * rng.unit());
    let effects = vec![
        Effect::Outlier { node },
        Effect::Late {
            job: WIDE,
            ranks,
            seconds,
            network: false,
        },
    ];
    let text = format!(
        "{} is warmer and slower than its peers",
        world.fabric.nodes[node].name
    );
    let mut fault = Fault::new(Class::NodeOutlier, span, effects, text);
    fault.entities = BTreeSet::from([whole(&world.fabric, node)]);
    fault.jobs = BTreeSet::from([job.spec.name.clone()]);
    fault
}

/// Two cables change places while an idle node is off for maintenance.
fn cabling(world: &World, rng: &mut Rng, span: (f64, f64)) -> Option<Fault> {
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
