//! Faults of ranks, NICs and GPUs.

use super::{WIDE, at_nic, job_node, job_port, rank_names};
use crate::columns::{GPU_ADDRESSES, GPUS, nic_address};
use crate::fault::{Effect, Fault, gpu, nic_names, whole};
use crate::fleet::event;
use crate::physics::GpuFault;
use crate::site::Site;
use crate::world::World;
use std::collections::BTreeSet;
use weir_controller_core::verdict::Class;
use weir_sim::num::position;
use weir_sim::rng::Rng;
use weir_wire::v1;

pub fn straggler(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
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

fn critical(mut event: v1::Event) -> v1::Event {
    event.severity = v1::Severity::Critical.into();
    event
}

pub fn nic(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
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

pub fn sick_gpu(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
    let node = job_node(world, rng);
    let n = position(rng.below(GPUS as u64));
    let address = GPU_ADDRESSES[n];
    let xid =
        |code: u32, text: &str| critical(event("kmsg", "xid", address, Some(code), true, text));
    let is_amd = world.site == Site::Amd;
    let drawn = rng.below(5);
    // amdgpu knows no remapped rows and no NVLinks, and does not tell why it slows down.
    let drawn = if is_amd { drawn % 2 } else { drawn };
    let (what, text, mut told) = match drawn {
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
    if is_amd {
        told.retain(|event| event.name != "xid");
    }
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

pub fn outlier(world: &World, rng: &mut Rng, span: (f64, f64)) -> Fault {
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
