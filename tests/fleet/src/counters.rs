//! What a node's NICs, switch ports and GPUs would show: counters and gauges, moved on by one interval.
//!
//! A host's interface counts what its kernel sends; what RDMA sends is counted by the verbs device alone, as mlx5 does.
//! A switch's port counts everything.

use crate::columns::{GPUS, Gpu, Layout, NVLINK_COLUMNS, NVLINKS, Of, Rdma};
use crate::fabric::{Link, Tier};
use crate::load::PACKET;
use crate::physics::GpuFault;
use crate::site::Site;
use crate::world::World;
use std::cell::RefCell;
use weir_sim::num::whole;
use weir_sim::rng::{Rng, mix};

const DAY_S: f64 = 86_400.0;
/// Bits of nvmlClocksEventReasons.
const IDLE: u64 = 0x1;
const SW_POWER_CAP: u64 = 0x4;
const HW_SLOWDOWN: u64 = 0x8;
const HW_THERMAL: u64 = 0x40;
/// Time that one pause frame asks for at most, in microseconds: 65,535 quanta of 512 bits at 400 Gb/s.
const PAUSE_FRAME_US: f64 = 84.0;
/// Bytes a second of a host's kernel: monitoring, ssh, storage of logs.
const MANAGEMENT_BPS: f64 = 60e3;

/// The columns of one node.
#[derive(Debug, Clone)]
pub struct Counters {
    pub layout: Layout,
    pub values: Vec<Option<u64>>,
    /// Columns that nobody at the site tells.
    lacking: Vec<bool>,
    /// Columns whose counter was reset since the last frame.
    pub resets: Vec<u32>,
    ports: Vec<Link>,
    is_host: bool,
    rng: RefCell<Rng>,
    was_up: Vec<bool>,
    /// Corrected blocks a second, of each port: links differ by orders of magnitude.
    fec_base: Vec<f64>,
    module_base: Vec<f64>,
    gpu_base: [f64; GPUS],
    heat: [f64; GPUS],
}

impl Counters {
    /// Counters of a node that has been up for a while; `fresh`: since a boot.
    #[must_use]
    pub fn new(world: &World, node: usize, gpus: usize, nvlinks: usize, seed: u64) -> Counters {
        let owner = &world.fabric.nodes[node];
        let is_host = owner.tier == Tier::Host;
        let layout = Layout {
            ports: owner.ports.len(),
            devices: if is_host { owner.ports.len() } else { 0 },
            gpus: if is_host { gpus } else { 0 },
            nvlinks: nvlinks.min(NVLINKS),
        };
        let mut rng = Rng::new(mix(seed ^ node as u64));
        let ports = owner.ports.len();
        let mut lacking = vec![false; layout.len()];
        for n in 0..layout.ports {
            for column in Of::COLUMNS {
                lacking[layout.port(n, *column)] = is_host && world.site.lacks_of_port(*column);
            }
        }
        for n in 0..layout.devices {
            for column in Rdma::COLUMNS {
                lacking[layout.device(n, *column)] = world.site.lacks_of_device(*column);
            }
        }
        for n in 0..layout.gpus {
            for column in Gpu::COLUMNS {
                lacking[layout.gpu(n, *column)] = world.site.lacks_of_gpu(*column);
            }
            if world.site == Site::Amd {
                let first = layout.nvlink(n, 0);
                lacking[first..first + layout.nvlinks * NVLINK_COLUMNS].fill(true);
            }
        }
        let mut counters = Counters {
            layout,
            lacking,
            values: vec![Some(0); layout.len()],
            resets: Vec::new(),
            ports: owner.ports.clone(),
            is_host,
            was_up: vec![true; ports],
            fec_base: (0..ports)
                .map(|_| 10f64.powf(1.0 + 4.5 * rng.unit()))
                .collect(),
            module_base: (0..ports).map(|_| 42.0 + 10.0 * rng.unit()).collect(),
            gpu_base: std::array::from_fn(|_| 30.0 + 6.0 * rng.unit()),
            heat: [45.0; GPUS],
            rng: RefCell::new(rng),
        };
        counters.boot(false);
        counters
    }

    /// Begins as after a boot, or as after months without one.
    pub fn boot(&mut self, fresh: bool) {
        let layout = self.layout;
        self.resets.clear();
        (0..layout.len()).for_each(|c| self.put(c, Some(0)));
        let uptime = if fresh { 0 } else { 1 + self.below(1 << 40) };
        for n in 0..self.layout.ports {
            self.was_up[n] = !fresh;
            for column in [Of::TxBytes, Of::RxBytes] {
                self.put(layout.port(n, column), Some(uptime));
            }
            let absent = if self.is_host {
                // The queues of a NIC are in hardware; what marks is the switch.
                &[
                    Of::QueueBytes,
                    Of::QueueBytesMax,
                    Of::QueueDrops,
                    Of::EcnMarkedTx,
                ][..]
            } else {
                &[Of::PcieStalls, Of::PcieErrors, Of::KernelDrops]
            };
            absent
                .iter()
                .for_each(|c| self.put(layout.port(n, *c), None));
        }
        for n in 0..self.layout.devices {
            self.put(layout.device(n, Rdma::TxBytes), Some(uptime));
            self.put(layout.device(n, Rdma::RxBytes), Some(uptime / 2));
        }
        for n in 0..self.layout.gpus {
            for (column, value) in [
                (Gpu::GpuMemoryTotal, 80 << 30),
                (Gpu::PcieGeneration, 5),
                (Gpu::PcieWidth, 16),
                (Gpu::FabricState, 3),
                (Gpu::EccCorrectedLifetime, self.below(40)),
                (Gpu::RowsRemappedCorrected, u64::from(self.below(50) == 0)),
            ] {
                self.put(layout.gpu(n, column), Some(value));
            }
            (0..self.layout.nvlinks).for_each(|l| self.put(layout.nvlink(n, l), Some(1)));
        }
    }

    /// A driver was loaded anew: the counters of port and device `n` begin again. With `told` the agent marks them.
    pub fn reset(&mut self, n: usize, told: bool) {
        let ports =
            self.layout.port(n, Of::TxBytes)..self.layout.port(n, Of::TxBytes) + Of::ALL.len();
        let devices = (n < self.layout.devices).then(|| {
            self.layout.device(n, Rdma::TxBytes)
                ..self.layout.device(n, Rdma::TxBytes) + Rdma::ALL.len()
        });
        let counters = ports.map(|c| (c, Of::ALL[c - self.layout.port(n, Of::TxBytes)].0));
        let first = self.layout.device(n, Rdma::TxBytes);
        let counters = counters.chain(
            devices
                .into_iter()
                .flatten()
                .map(|c| (c, Rdma::ALL[c - first].0)),
        );
        for (column, signal) in counters.collect::<Vec<_>>() {
            if signal.kind() == weir_wire::signal::Kind::Counter && self.values[column].is_some() {
                self.values[column] = Some(0);
                if told {
                    self.resets.push(weir_sim::num::index(column));
                }
            }
        }
    }

    /// Uniform in 0.0..1.0.
    fn unit(&self) -> f64 {
        self.rng.borrow_mut().unit()
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().below(n)
    }

    fn put(&mut self, column: usize, value: Option<u64>) {
        self.values[column] = value.filter(|_| !self.lacking[column]);
    }

    /// Raises a counter; fractions come out right on average.
    fn add(&mut self, column: usize, amount: f64) {
        if amount > 0.0
            && let Some(value) = &mut self.values[column]
        {
            *value = value.wrapping_add(whole(amount + self.rng.get_mut().unit()));
        }
    }

    /// Whether something that happens `per_s` times a second happens now.
    fn chance(&self, per_s: f64, seconds: f64) -> bool {
        self.unit() < per_s * seconds
    }

    /// Goes on by one interval of the world.
    pub fn step(&mut self, world: &World, node: usize, seconds: f64) {
        let day = (world.now_s / DAY_S * std::f64::consts::TAU).sin();
        for n in 0..self.ports.len() {
            self.port(world, n, seconds, day);
        }
        for n in 0..self.layout.devices {
            self.device(world, n, seconds);
        }
        for n in 0..self.layout.gpus {
            self.gpu(world, node, n, seconds, day);
        }
    }

    fn port(&mut self, world: &World, n: usize, seconds: f64, day: f64) {
        let link = self.ports[n];
        let peer = world.fabric.ports[link].peer;
        let layout = self.layout;
        let at = |c| layout.port(n, c);
        let (tx_bytes, rx_bytes, tx_packets) =
            (at(Of::TxBytes), at(Of::RxBytes), at(Of::TxPackets));
        let up = world.physics.up[link];
        let trained = world.physics.trained[link];
        self.put(at(Of::LinkUp), Some(u64::from(up)));
        let told = |v: u64| up.then_some(v);
        self.put(at(Of::RateBps), told(whole(trained.0)));
        self.put(at(Of::Lanes), told(u64::from(trained.1)));
        if !up && self.was_up[n] {
            self.add(at(Of::LinkDowns), 1.0 - 1e-9);
        }
        self.was_up[n] = up;
        let heat =
            whole(self.module_base[n] + 3.0 * day + if up { 4.0 } else { 0.0 } + self.unit());
        if self.chance(0.2, seconds) {
            self.put(at(Of::ModuleTemperature), Some(heat * 1000));
        }
        if !up {
            return;
        }
        let jitter = 0.997 + 0.006 * self.unit();
        if self.is_host {
            let own = MANAGEMENT_BPS * seconds * (0.5 + self.unit());
            self.add(tx_bytes, own);
            self.add(rx_bytes, own * 0.8);
            self.add(tx_packets, own / 600.0);
            self.add(at(Of::RxPackets), own / 700.0);
        } else {
            self.add(tx_bytes, world.tx[link] * jitter + 2e3 * seconds);
            self.add(rx_bytes, world.tx[peer] * jitter + 2e3 * seconds);
            self.add(tx_packets, world.tx[link] / PACKET + seconds);
            self.add(at(Of::RxPackets), world.tx[peer] / PACKET + seconds);
            self.queue(world, n, seconds);
        }
        for (at_link, frames, time) in [
            (link, Of::PauseRx, Of::PauseRxUs),
            (peer, Of::PauseTx, Of::PauseTxUs),
        ] {
            let state = world.load.links[at_link];
            let share = (state.paused * world.busy[at_link]).max(state.paused_always);
            let us = share * seconds * 1e6 * (0.97 + 0.03 * self.unit());
            self.add(at(time), us);
            self.add(at(frames), us / PAUSE_FRAME_US);
        }
        if world.load.links[peer].paused_always > 0.9 && self.is_host {
            self.add(at(Of::PauseStorms), 0.2 * seconds);
        }
        let drift = 1.0 + 0.4 * day;
        let bad = world.physics.uncorrected.get(&peer).copied().unwrap_or(0.0);
        let corrected = self.fec_base[n] * drift * seconds * (0.9 + 0.2 * self.unit());
        self.add(at(Of::FecCorrected), corrected + bad * 800.0 * seconds);
        self.add(
            at(Of::FecUncorrected),
            bad * seconds * (0.8 + 0.4 * self.unit()),
        );
        self.add(at(Of::RxErrors), bad * seconds);
        self.add(at(Of::SymbolErrors), bad * seconds * 0.6);
        // Within what the standard allows: one in a day or so.
        if self.chance(1.2e-5, seconds) {
            self.add(at(Of::SymbolErrors), 1.0 + self.unit());
        }
        if self.is_host {
            let nic = world.physics.nics.get(&link).copied().unwrap_or_default();
            let busy = world.busy[link].max(world.busy[peer]);
            self.add(
                at(Of::PcieStalls),
                nic.pcie_stalls * busy * seconds + 40.0 * busy * seconds * self.unit(),
            );
            self.add(
                at(Of::PcieErrors),
                nic.pcie_errors * seconds * self.unit() * 2.0,
            );
            self.add(
                at(Of::RxDiscards),
                nic.discards * busy * seconds * self.unit(),
            );
            if world
                .physics
                .outliers
                .contains(&world.fabric.ports[link].node)
            {
                self.add(at(Of::PcieStalls), 900.0 * seconds);
                self.add(at(Of::PauseTxUs), 4e3 * seconds);
                self.add(at(Of::PauseTx), 48.0 * seconds);
            }
        }
    }

    fn queue(&mut self, world: &World, n: usize, seconds: f64) {
        let link = self.ports[n];
        let (state, busy) = (world.load.links[link], world.busy[link]);
        let kmin = world.fabric.ports[link].bps / 8.0 * 32e-6;
        let mut deepest = if busy > 0.0 {
            kmin * 0.12 * self.unit()
        } else {
            0.0
        };
        let mut marks = world.marks[link];
        if busy > 0.0 && state.queue_bytes > 0.0 {
            deepest = state.queue_bytes * (0.8 + 0.4 * self.unit());
        } else if busy > 0.0 && self.chance(0.004, seconds) {
            // Bursts of several senders that happen to coincide: short, harmless, sometimes marked.
            deepest = kmin * 2.5 * self.unit();
            marks += if deepest > kmin {
                40.0 * self.unit()
            } else {
                0.0
            };
        }
        let packets = |bytes: f64| (bytes / PACKET).floor() * PACKET;
        let layout = self.layout;
        let at = |c| layout.port(n, c);
        let (max, now, marked) = (
            at(Of::QueueBytesMax),
            at(Of::QueueBytes),
            at(Of::EcnMarkedTx),
        );
        self.put(max, Some(whole(packets(deepest))));
        let standing = if self.unit() < busy {
            packets(deepest * 0.6)
        } else {
            0.0
        };
        self.put(now, Some(whole(standing)));
        self.add(marked, marks);
    }

    fn device(&mut self, world: &World, n: usize, seconds: f64) {
        let link = self.ports[n];
        let peer = world.fabric.ports[link].peer;
        let (sent, received) = (world.load.sent[link], world.load.received[link]);
        let layout = self.layout;
        let at = |c| layout.device(n, c);
        let up = world.physics.up[link];
        let trained = world.physics.trained[link];
        let told = |v: u64| up.then_some(v);
        let gauges = [
            (at(Rdma::LinkUp), Some(u64::from(up))),
            (at(Rdma::RateBps), told(whole(trained.0))),
            (at(Rdma::Lanes), told(u64::from(trained.1))),
        ];
        gauges.into_iter().for_each(|(c, v)| self.put(c, v));
        // The port of the same cable has seen the change already.
        let downs = self.values[self.layout.port(n, Of::LinkDowns)];
        self.put(at(Rdma::LinkDowns), downs.map(|d| d.min(255)));
        if !up {
            return;
        }
        let damaged = world.physics.uncorrected.get(&peer).copied().unwrap_or(0.0) * seconds;
        let jitter = 0.997 + 0.006 * self.unit();
        let nic = world.physics.nics.get(&link).copied().unwrap_or_default();
        for (column, amount) in [
            (Rdma::TxBytes, sent.bytes * jitter),
            (Rdma::RxBytes, received.bytes * jitter),
            // Ticks of waiting for credits: of congestion, where nothing pauses.
            (
                Rdma::TxWait,
                f64::from(u8::from(world.site == Site::Infiniband))
                    * world.load.links[link].paused
                    * world.busy[link]
                    * seconds
                    * 1e8,
            ),
            (Rdma::TxPackets, sent.bytes / PACKET),
            (Rdma::RxPackets, received.bytes / PACKET),
            (Rdma::EcnMarkedRx, received.marks),
            (Rdma::CnpTx, received.cnp),
            (Rdma::CnpRx, sent.cnp),
            (Rdma::OutOfSequence, received.lost * 8.0),
            (Rdma::SequenceNaks, sent.lost),
            (Rdma::AckTimeouts, sent.lost * 0.02),
            (Rdma::AdaptiveRetransmits, sent.lost * 0.1),
            (Rdma::RxErrors, damaged),
            (Rdma::IcrcErrors, damaged * 0.01),
            (Rdma::SymbolErrors, damaged * 0.6),
            (Rdma::QpErrors, nic.qp_errors * seconds),
            (Rdma::RxDiscards, nic.discards * world.busy[peer] * seconds),
        ] {
            self.add(layout.device(n, column), amount);
        }
    }

    fn gpu(&mut self, world: &World, node: usize, n: usize, seconds: f64, day: f64) {
        let fault = world.physics.gpus.get(&(node, n)).copied();
        let first = self.layout.gpu(n, Gpu::GpuTemperature);
        if fault == Some(GpuFault::Lost) {
            let columns = Gpu::ALL.len() + self.layout.nvlinks * NVLINK_COLUMNS;
            self.values[first..first + columns].fill(None);
            return;
        }
        let job = world.job_of[node].map(|j| &world.jobs[j]);
        let outlier = world.physics.outliers.contains(&node);
        let hot = fault == Some(GpuFault::Thermal);
        // Waiting in a collective costs less power than computing.
        let mut watts = job.map_or(78.0, |j| 620.0 - 230.0 * j.busy) + 24.0 * (self.unit() - 0.5);
        if hot {
            watts *= 0.6;
        } else if outlier {
            watts *= 0.86;
        }
        let ambient = self.gpu_base[n] + 2.5 * day + if outlier { 10.0 } else { 0.0 };
        let target = if hot { 91.0 } else { ambient + watts * 0.055 };
        self.heat[n] += (target - self.heat[n]) * (seconds / 15.0).min(1.0);
        let degrees = whole(self.heat[n] + 0.3 * self.unit());
        let reasons = match (hot, job.is_some()) {
            (true, _) => HW_SLOWDOWN | HW_THERMAL,
            (false, false) => IDLE,
            (false, true) => SW_POWER_CAP * u64::from(self.unit() < 0.4),
        };
        let used = job.map_or(0.6, |_| 62.0) * f64::from(1 << 30);
        let layout = self.layout;
        for (column, value) in [
            (Gpu::GpuTemperature, degrees * 1000),
            (Gpu::GpuMemoryTemperature, (degrees + 8) * 1000),
            (Gpu::GpuPower, whole(watts) * 1000),
            (
                Gpu::GpuUtilisation,
                if job.is_some() {
                    100 - self.below(3)
                } else {
                    0
                },
            ),
            (Gpu::GpuMemoryUsed, whole(used)),
            (Gpu::ClockReasons, reasons),
        ] {
            self.put(layout.gpu(n, column), Some(value));
        }
        if let Some(job) = job {
            let bytes = 18e9 * seconds * (1.0 - job.busy) * (0.9 + 0.2 * self.unit());
            self.add(layout.gpu(n, Gpu::NvlinkTxBytes), bytes);
            self.add(layout.gpu(n, Gpu::NvlinkRxBytes), bytes);
        }
        // Memory has single errors now and then, and repairs them.
        if self.chance(2e-6, seconds) {
            for column in [Gpu::EccCorrected, Gpu::EccCorrectedLifetime] {
                self.add(layout.gpu(n, column), 1.0 - 1e-9);
            }
        }
        if self.chance(if outlier { 0.02 } else { 3e-5 }, seconds) {
            self.add(layout.gpu(n, Gpu::PcieReplays), 1.0 + 2.0 * self.unit());
        }
        self.gpu_fault(n, fault);
    }

    fn gpu_fault(&mut self, n: usize, fault: Option<GpuFault>) {
        let layout = self.layout;
        match fault {
            Some(GpuFault::EccUncorrected) => {
                for column in [Gpu::EccUncorrected, Gpu::EccUncorrectedLifetime] {
                    if self.values[layout.gpu(n, column)].is_some_and(|v| v < 3)
                        || self.below(10) == 0
                    {
                        self.add(layout.gpu(n, column), 1.0 - 1e-9);
                    }
                }
                self.put(layout.gpu(n, Gpu::RowRemapPending), Some(1));
            }
            Some(GpuFault::RemapFailure) => {
                self.put(layout.gpu(n, Gpu::RowRemapFailure), Some(1));
            }
            Some(GpuFault::NvlinkDown) if layout.nvlinks > 0 => {
                self.put(layout.nvlink(n, 1), Some(0));
                self.add(layout.nvlink(n, 1) + 1, 20.0 * self.unit());
            }
            Some(_) | None => {
                for column in [Gpu::RowRemapPending, Gpu::RowRemapFailure] {
                    self.put(layout.gpu(n, column), Some(0));
                }
                (0..layout.nvlinks).for_each(|l| self.put(layout.nvlink(n, l), Some(1)));
                if self.values[layout.gpu(n, Gpu::PcieWidth)].is_none() {
                    // It is back after a reset.
                    self.restore(n);
                }
            }
        }
    }

    fn restore(&mut self, n: usize) {
        let layout = self.layout;
        let first = self.layout.gpu(n, Gpu::GpuTemperature);
        let columns = Gpu::ALL.len() + self.layout.nvlinks * NVLINK_COLUMNS;
        (first..first + columns).for_each(|c| self.put(c, Some(0)));
        for (column, value) in [
            (Gpu::GpuMemoryTotal, 80u64 << 30),
            (Gpu::PcieGeneration, 5),
            (Gpu::PcieWidth, 16),
            (Gpu::FabricState, 3),
        ] {
            self.put(layout.gpu(n, column), Some(value));
        }
    }
}
