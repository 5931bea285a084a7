//! Scenarios: a fabric, jobs, noise and faults, all of one seed.

use crate::fabric::{self, Fabric};
use crate::fault::Fault;
use crate::inject;
use crate::job::{Pattern, Spec};
use crate::noise::{self, Noise, Rates};
use crate::site::Site;
use crate::world::World;
use std::collections::BTreeSet;
use weir_controller_core::verdict::Class;
use weir_sim::num::{self, position};
use weir_sim::rng::{Rng, mix};

/// What agents have, and how often they look.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub gpus: usize,
    pub nvlinks: usize,
    pub interval_s: f64,
    /// Steps of the world in an interval, so that short things stay short where agents look seldom.
    pub steps: u32,
    pub seed: u64,
}

/// A scenario that is ready to run.
pub struct Scenario {
    pub number: u64,
    pub text: String,
    pub world: World,
    pub shape: Shape,
    pub noise: Vec<(f64, usize, Noise)>,
    pub length_s: f64,
}

/// Jobs run for this long before a fault begins, at least.
const CALM_S: f64 = 35.0;
/// A scenario goes on for this long after its last fault.
const AFTER_S: f64 = 25.0;
/// So much more noise in the minutes of a scenario than in a fleet's day.
const NOISE_FACTOR: f64 = 60.0;

impl Scenario {
    /// Scenario `number` of a run: 16 in 20 have one fault, of each class in turn; two have two, two have none.
    #[must_use]
    pub fn new(seed: u64, number: u64) -> Scenario {
        Scenario::at(seed, number, 1.0, Site::default())
    }

    /// The same at another kind of site, with agents that look every `interval_s`; where that is more than a second, jobs and faults last longer in
    /// proportion, so that there is as much to see.
    #[must_use]
    pub fn at(seed: u64, number: u64, interval_s: f64, site: Site) -> Scenario {
        let longer = interval_s.max(1.0);
        let own = mix(mix(seed) ^ number);
        let mut rng = Rng::new(own);
        let turn = number % 20;
        let class = |n: u64| Class::ALL[position(n) % Class::ALL.len()];
        let classes: Vec<Class> = match turn {
            0..16 => vec![class(turn)],
            16 | 17 => vec![class(rng.below(16)), class(rng.below(16))],
            _ => Vec::new(),
        };
        let (fabric, text) = some_fabric(&mut rng, classes.contains(&Class::Oversubscription));
        let shape = Shape {
            gpus: 8,
            nvlinks: 2,
            interval_s,
            steps: num::low32(num::whole(longer.round())),
            seed: own,
        };
        // A few cables were never in use.
        let spare = |rng: &mut Rng| position(rng.below(fabric.ports.len() as u64));
        let off = (0..2).map(|_| spare(&mut rng)).filter(|l| {
            let tier = |l: usize| fabric.nodes[fabric.ports[l].node].tier;
            tier(*l) != fabric::Tier::Host
                && tier(fabric.ports[*l].peer) != fabric::Tier::Host
                && rng_is(own, *l)
        });
        let off: BTreeSet<usize> = off.flat_map(|l| fabric.cable_of(l)).collect();
        let off = if classes.contains(&Class::Oversubscription) {
            BTreeSet::new()
        } else {
            off
        };
        let mut world = World::new(fabric, shape.gpus, off, own);
        world.site = site;
        let narrow = classes.contains(&Class::Oversubscription);
        let length_s = some_jobs(&mut world, &mut rng, narrow, longer);
        let mut faults: Vec<Fault> = Vec::new();
        for class in classes {
            let start = (CALM_S + 15.0 * rng.unit()) * longer;
            let span = (start, start + (35.0 + 30.0 * rng.unit()) * longer);
            if let Some(fault) = inject::fault(&mut world, &mut rng, class, span, &faults) {
                faults.push(fault);
            }
        }
        world
            .schedule
            .sort_by(|a, b| b.start_s.total_cmp(&a.start_s));
        let end = faults.iter().map(|f| f.end_s).fold(length_s, f64::max) + AFTER_S * longer;
        world.faults = faults;
        let rates = Rates::default().times(NOISE_FACTOR);
        let noise = noise::schedule(&world.fabric, &rates, end, mix(own ^ 1));
        let jobs: Vec<String> = world
            .jobs
            .iter()
            .map(|j| {
                format!(
                    "{} {:?} on {} nodes",
                    j.spec.name,
                    j.spec.pattern,
                    j.spec.nodes.len()
                )
            })
            .collect();
        let text = format!("{text}; {}", jobs.join(", "));
        Scenario {
            number,
            text,
            world,
            shape,
            noise,
            length_s: end,
        }
    }
}

/// Half of the spare cables, chosen by the scenario and not by the order of drawing.
fn rng_is(seed: u64, link: usize) -> bool {
    mix(seed ^ link as u64) & 1 == 0
}

fn some_fabric(rng: &mut Rng, narrow: bool) -> (Fabric, String) {
    let sizes = [(16, 38), (32, 32), (64, 18), (128, 8), (256, 3), (1000, 1)];
    let mut draw = rng.below(sizes.iter().map(|(_, w)| w).sum());
    let size = sizes.iter().find(|(_, w)| {
        let here = draw < *w;
        draw = draw.saturating_sub(*w);
        here
    });
    let hosts = size.map_or(16, |(n, _)| *n);
    let gbps = [100e9, 200e9, 400e9][position(rng.below(3))];
    let kind = rng.below(3);
    let per_leaf = if hosts > 64 { 16 } else { 8 };
    let (shape, nics) = match kind {
        0 if hosts >= 32 && !narrow => {
            let pods = if hosts >= 128 { 4 } else { 2 };
            let leaves = (hosts / pods / per_leaf).max(1);
            (
                fabric::Shape::ThreeTier {
                    pods,
                    leaves,
                    hosts: per_leaf,
                    spines: per_leaf,
                    cores: leaves,
                },
                1,
            )
        }
        1 if hosts <= 256 => {
            let nics = if hosts <= 32 {
                [2, 4, 8][position(rng.below(3))]
            } else {
                2
            };
            let per_pod = if hosts >= 64 { 16 } else { 8 };
            let spines = if narrow { per_pod / 4 } else { per_pod };
            (
                fabric::Shape::Rail {
                    pods: hosts / per_pod,
                    hosts: per_pod,
                    spines,
                },
                nics,
            )
        }
        _ => {
            let nics = if hosts <= 64 {
                1 + position(rng.below(2))
            } else {
                1
            };
            let spines = if narrow {
                per_leaf * nics / 4
            } else {
                per_leaf * nics
            };
            (
                fabric::Shape::LeafSpine {
                    leaves: hosts.div_ceil(per_leaf),
                    hosts: per_leaf,
                    spines,
                },
                nics,
            )
        }
    };
    let fabric = Fabric::new(shape, nics, gbps, rng.bits());
    let text = format!("{shape:?}, {nics} NICs of {:.0} Gb/s a host", gbps / 1e9);
    (fabric, text)
}

/// A training step's times, as large models have them: a second or so, a quarter to a half of it on the wire.
#[must_use]
pub fn training(
    rng: &mut Rng,
    name: String,
    nodes: Vec<usize>,
    pattern: Pattern,
    span: (f64, f64),
) -> Spec {
    Spec {
        name,
        nodes,
        pattern,
        start_s: span.0,
        end_s: span.1,
        compute_s: 0.25 + 0.9 * rng.unit(),
        transfer_s: 0.12 + 0.35 * rng.unit(),
        jitter: 0.01 + 0.03 * rng.unit(),
        blocking: rng.below(2) == 0,
    }
}

/// One job over all leaves, one that is packed, and on some fabrics an all-to-all; some nodes stay idle. Some end and
/// others begin. Returns when the last change is due.
fn some_jobs(world: &mut World, rng: &mut Rng, narrow: bool, longer: f64) -> f64 {
    let hosts: Vec<usize> = world.fabric.computing().collect();
    let forever = 1e9;
    // A quarter stays free: for storage, spare nodes and jobs to come.
    let in_use = hosts.len() * 3 / 4;
    // Where uplinks are few, jobs are small, until one is not.
    let wide = if narrow { 4 } else { (in_use / 2).clamp(4, 48) };
    // Every second host, so that neighbours in the ring sit on different leaves.
    let stride = (hosts.len() / wide).max(1);
    let mut order: Vec<usize> = (0..wide).map(|n| hosts[n * stride]).collect();
    if rng.below(2) == 0 {
        let half = order.len() / 2;
        let (front, back) = order.split_at(half);
        order = front.iter().zip(back).flat_map(|(a, b)| [*a, *b]).collect();
    }
    let pattern = if rng.below(4) == 0 {
        Pattern::Tree
    } else {
        Pattern::Ring
    };
    let spec = training(rng, "train-a".to_owned(), order, pattern, (0.0, forever));
    world.start(spec);
    let free = |world: &World, from: usize, n: usize| -> Vec<usize> {
        let free = hosts.iter().copied().filter(|h| world.job_of[*h].is_none());
        free.skip(from).take(n).collect()
    };
    let spare = hosts.len() - wide;
    let packed = free(world, 0, if narrow { 2 } else { (spare / 3).clamp(2, 16) });
    let ends = if rng.below(3) == 0 {
        (45.0 + 30.0 * rng.unit()) * longer
    } else {
        forever
    };
    let spec = training(
        rng,
        "train-b".to_owned(),
        packed,
        Pattern::Ring,
        (0.0, ends),
    );
    world.start(spec);
    if spare >= 8 && !narrow && rng.below(2) == 0 {
        let nodes = free(world, 0, (spare / 4).clamp(2, 8));
        let pattern = if rng.below(2) == 0 {
            Pattern::AllToAll
        } else {
            Pattern::Ring
        };
        let begins = (20.0 + 20.0 * rng.unit()) * longer;
        let spec = training(rng, "train-c".to_owned(), nodes, pattern, (begins, forever));
        world.schedule.push(spec);
    }
    100.0 * longer
}

/// A fleet of about `nodes` nodes in which nothing is wrong: jobs that come and go for `days`, and all of the noise.
#[must_use]
pub fn healthy(nodes: usize, days: f64, interval_s: f64, seed: u64) -> Scenario {
    let mut rng = Rng::new(mix(seed));
    let hosts = 16usize;
    // 16 hosts, their leaf, and a part of the spines.
    let leaves = (nodes / (hosts + 2)).max(2);
    let fabric_shape = fabric::Shape::LeafSpine {
        leaves,
        hosts,
        spines: hosts,
    };
    let fabric = Fabric::new(fabric_shape, 1, 400e9, rng.bits());
    let shape = Shape {
        gpus: 8,
        nvlinks: 0,
        interval_s,
        // Half of the cost is the simulator's: what happens in a fleet lasts an interval at least.
        steps: 1,
        seed,
    };
    let mut world = World::new(fabric, shape.gpus, BTreeSet::new(), seed);
    let hosts: Vec<usize> = world.fabric.computing().collect();
    let length_s = days * 86_400.0;
    let mut number = 0;
    let mut first = 0;
    while first < hosts.len() {
        // Slots of 2 to 64 nodes, in each of which one job follows another.
        let size = (2usize << rng.below(6)).min(hosts.len() - first);
        let slot = &hosts[first..first + size];
        first += size;
        let mut at = 600.0 * rng.unit();
        while at < length_s {
            let ends = at + 1800.0 + 6.0 * 3600.0 * rng.unit();
            number += 1;
            let pattern = match rng.below(8) {
                0 => Pattern::Tree,
                1 if size <= 8 => Pattern::AllToAll,
                _ => Pattern::Ring,
            };
            if size >= 2 && rng.below(12) != 0 {
                let spec = training(
                    &mut rng,
                    format!("job-{number}"),
                    slot.to_vec(),
                    pattern,
                    (at, ends),
                );
                world.schedule.push(spec);
            }
            at = ends + 60.0 + 600.0 * rng.unit();
        }
    }
    world
        .schedule
        .sort_by(|a, b| b.start_s.total_cmp(&a.start_s));
    let noise = noise::schedule(&world.fabric, &Rates::default(), length_s, mix(seed ^ 2));
    let text = format!(
        "{fabric_shape:?}, {} nodes, {number} jobs",
        world.fabric.nodes.len()
    );
    Scenario {
        number: 0,
        text,
        world,
        shape,
        noise,
        length_s,
    }
}
