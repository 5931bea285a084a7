//! Faults with their truth: what is wrong, from when until when, where a verdict may say that it is, and what the
//! fault does to the fabric.

use crate::columns::{GPU_ADDRESSES, nic_address};
use crate::fabric::{Fabric, Link};
use crate::physics::{GpuFault, Nic, Pause, Physics};
use std::collections::BTreeSet;
use std::sync::Arc;
use weir_controller_core::ids::NodeId;
use weir_controller_core::verdict::{Class, Subject};
use weir_wire::v1;

/// For so long is a link down when it trains anew or is plugged elsewhere.
pub const MOMENT_S: f64 = 2.0;

/// What a fault does.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A job of the schedule is the fault.
    Workload,
    /// Queue pairs come back with other source ports, and at the end with those they had: job; flow and the bits
    /// in which its port differs.
    Rehash(usize, Vec<(usize, u16)>),
    /// A host takes only this share of its line rate.
    Drain {
        port: Link,
        share: f64,
    },
    /// A cable carries a share of its rate; `told` if it trained down, otherwise nothing says so.
    Degrade {
        link: Link,
        share: f64,
        told: bool,
    },
    /// A NIC sends pause all the time.
    Storm {
        port: Link,
    },
    /// Ranks of a job arrive late, or finish late.
    Late {
        job: usize,
        ranks: Vec<usize>,
        seconds: f64,
        network: bool,
    },
    /// Down between these times, as seconds since the start.
    Flap {
        link: Link,
        down: Vec<(f64, f64)>,
    },
    Down {
        link: Link,
    },
    /// Blocks a second that are lost on the way out of `link`.
    Errors {
        link: Link,
        blocks: f64,
    },
    Loss {
        links: Vec<Link>,
        share: f64,
    },
    QpErrors {
        port: Link,
    },
    /// The NIC has fewer lanes to its host.
    Pcie {
        port: Link,
        share: f64,
    },
    Gpu {
        node: usize,
        gpu: usize,
        what: GpuFault,
    },
    Outlier {
        node: usize,
    },
    /// Two host ports are plugged into each other's place.
    Swap {
        a: Link,
        b: Link,
    },
}

/// A fault and its truth.
#[derive(Debug, Clone)]
pub struct Fault {
    pub class: Class,
    pub start_s: f64,
    pub end_s: f64,
    pub effects: Vec<Effect>,
    /// Places that name it.
    pub entities: BTreeSet<Subject>,
    /// Jobs that it slows down or stops.
    pub jobs: BTreeSet<String>,
    /// Nodes and links that it touches: a verdict there is its consequence, if it is not its name.
    pub touched: BTreeSet<Subject>,
    pub text: String,
    /// What the agents see happen: when, on which node.
    pub events: Vec<(f64, usize, v1::Event)>,
}

impl Fault {
    #[must_use]
    pub fn new(
        class: Class,
        (start_s, end_s): (f64, f64),
        effects: Vec<Effect>,
        text: String,
    ) -> Fault {
        Fault {
            class,
            start_s,
            end_s,
            effects,
            entities: BTreeSet::new(),
            jobs: BTreeSet::new(),
            touched: BTreeSet::new(),
            text,
            events: Vec::new(),
        }
    }

    #[must_use]
    pub fn is_active(&self, at_s: f64) -> bool {
        (self.start_s..self.end_s).contains(&at_s)
    }
}

impl Effect {
    /// Whether it is in force, `since_s` after its fault began.
    #[must_use]
    pub fn is_on(&self, since_s: f64) -> bool {
        let Effect::Flap { down, .. } = self else {
            return true;
        };
        down.iter().any(|(a, b)| (*a..*b).contains(&since_s))
    }

    /// Changes the healthy state.
    pub fn apply(&self, since_s: f64, fabric: &Fabric, physics: &mut Physics) {
        let down = |physics: &mut Physics, link: Link| {
            fabric
                .cable_of(link)
                .iter()
                .for_each(|l| physics.up[*l] = false);
        };
        match self {
            Effect::Workload | Effect::Rehash(..) => {}
            Effect::Drain { port, share } => {
                let to_host = fabric.ports[*port].peer;
                physics.capacity[to_host] *= share;
                let busy = 1.0 - share;
                let pause = Pause {
                    busy,
                    upstream_busy: busy * 0.15,
                    ..Pause::default()
                };
                physics.paused.insert(to_host, pause);
                let nic = physics.nics.entry(*port).or_default();
                *nic = Nic {
                    pcie_stalls: 4e5,
                    discards: 30.0,
                    ..*nic
                };
            }
            Effect::Degrade { link, share, told } => {
                // Training anew takes the link down for a moment.
                if *told && since_s < MOMENT_S {
                    return down(physics, *link);
                }
                for end in fabric.cable_of(*link) {
                    physics.capacity[end] *= share;
                    if *told {
                        let (bps, lanes) = physics.trained[end];
                        physics.trained[end] =
                            (bps * share, if *share < 0.3 { 1 } else { lanes / 2 });
                    }
                }
            }
            Effect::Storm { port } => {
                let to_host = fabric.ports[*port].peer;
                physics.capacity[to_host] *= 0.01;
                let pause = Pause {
                    busy: 0.99,
                    always: 0.99,
                    upstream_busy: 0.85,
                    upstream_always: 0.85,
                };
                physics.paused.insert(to_host, pause);
            }
            Effect::Late {
                job,
                ranks,
                seconds,
                network,
            } => {
                physics
                    .late
                    .extend(ranks.iter().map(|r| (*job, *r, *seconds, *network)));
            }
            Effect::Flap { link, .. } | Effect::Down { link } => down(physics, *link),
            Effect::Errors { link, blocks } => {
                physics.uncorrected.insert(*link, *blocks);
                // A block is a fraction of a packet; each damages one. Packets of a busy link: rate over 4 KB.
                let packets = fabric.ports[*link].bps / 8.0 / crate::load::PACKET;
                physics.loss[*link] = (blocks / packets).min(0.5);
            }
            Effect::Loss { links, share } => links.iter().for_each(|l| physics.loss[*l] = *share),
            Effect::QpErrors { port } => physics.nics.entry(*port).or_default().qp_errors = 6.0,
            Effect::Pcie { port, share } => {
                physics.capacity[*port] *= share;
                let to_host = fabric.ports[*port].peer;
                physics.capacity[to_host] *= share;
                let busy = (1.0 - share) * 0.6;
                physics.paused.insert(
                    to_host,
                    Pause {
                        busy,
                        upstream_busy: busy * 0.1,
                        ..Pause::default()
                    },
                );
                let nic = physics.nics.entry(*port).or_default();
                *nic = Nic {
                    pcie_stalls: 8e5,
                    pcie_errors: 2.0,
                    ..*nic
                };
            }
            Effect::Gpu { node, gpu, what } => {
                physics.gpus.insert((*node, *gpu), *what);
            }
            Effect::Outlier { node } => {
                physics.outliers.insert(*node);
            }
            // Plugging takes a moment.
            Effect::Swap { a, b } if since_s < MOMENT_S => {
                [a, b].iter().for_each(|l| down(physics, **l))
            }
            Effect::Swap { a, b } => physics.swapped.push((*a, *b)),
        }
    }
}

fn node(fabric: &Fabric, n: usize) -> NodeId {
    NodeId::new(&fabric.nodes[n].name)
}

/// Both directions of a cable.
pub fn cable(fabric: &Fabric, link: Link) -> BTreeSet<Subject> {
    let ends = fabric
        .cable_of(link)
        .map(|l| Subject::Link(fabric.port_id(l)));
    ends.into_iter()
        .chain(
            fabric
                .cable_of(link)
                .into_iter()
                .flat_map(|l| nic_names(fabric, l)),
        )
        .collect()
}

/// The names of the NIC of a host's port; nothing for a switch's.
pub fn nic_names(fabric: &Fabric, port: Link) -> Vec<Subject> {
    let owner = fabric.ports[port].node;
    if fabric.nodes[owner].tier != crate::fabric::Tier::Host {
        return Vec::new();
    }
    let n = fabric.nodes[owner]
        .ports
        .iter()
        .position(|p| *p == port)
        .unwrap_or(0);
    let name = |text: String| Subject::Nic(node(fabric, owner), Arc::from(text));
    vec![
        name(format!("eth{n}")),
        name(format!("mlx5_{n}/1")),
        name(format!("mlx5_{n}")),
        name(nic_address(n)),
        Subject::Link(fabric.port_id(port)),
    ]
}

/// A GPU.
#[must_use]
pub fn gpu(fabric: &Fabric, host: usize, n: usize) -> Subject {
    Subject::Gpu(node(fabric, host), GPU_ADDRESSES[n].into())
}

/// A host or switch.
#[must_use]
pub fn whole(fabric: &Fabric, n: usize) -> Subject {
    Subject::Node(node(fabric, n))
}
