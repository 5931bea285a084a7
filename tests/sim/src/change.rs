//! What may change while a run goes on: links, knobs, routes and who is slow. A tuner drives the fabric by these.

use crate::num::index;
use crate::port::{Ecn, EcnParams};
use crate::route::ANSWERS;
use crate::rp::{RpConstants, RpParams};
use crate::sim::Sim;
use crate::time::{Time, Wire, from_us};

/// A change of the fabric while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Both directions of the link of this port get a rate, bits per second.
    LinkRate { port: u32, bits_per_s: f64 },
    /// A share of the packets received at this port is damaged.
    Loss { port: u32, share: f64 },
    /// The link of this port goes down or comes back; routes follow after `reroute`.
    Link { port: u32, up: bool, reroute: Time },
    /// Routes are computed anew.
    Reroute,
    /// A host takes in only so many bits per second; infinite heals it.
    Receiver { host: u32, bits_per_s: f64 },
    /// Marking of one switch, or of all.
    Ecn { switch: Option<u32>, ecn: EcnParams },
    /// Reaction point of one host, or of all.
    Rp { host: Option<u32>, rp: RpParams },
    /// Least time between notifications, us, of one host or of all.
    CnpGap { host: Option<u32>, us: f64 },
    /// Alpha of a switch's buffer is 2 to this power, of one or of all.
    DynamicTh { switch: Option<u32>, th: i32 },
    /// Weight of a port in its groups; 0 takes it out.
    Weight { port: u32, weight: u32 },
    /// Everything for a host leaves the switch by one port; `None` ends that.
    Pin {
        switch: u32,
        dst: u32,
        port: Option<u32>,
    },
    /// The data of a queue pair leaves the switch by one port; with [`ANSWERS`] added, what comes back for it.
    PinFlow {
        switch: u32,
        qp: u32,
        port: Option<u32>,
    },
    /// A rank computes so much longer in each iteration, ps.
    Straggler { job: u32, rank: u32, delay: Time },
}

impl Sim {
    /// Makes a change now.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::LinkRate { port, bits_per_s } => {
                for p in [port, self.ports[port as usize].peer] {
                    let quantum = self.quantum;
                    let port = &mut self.ports[p as usize];
                    port.bits_per_s = bits_per_s;
                    port.wire = Wire::new(bits_per_s, quantum);
                    let node = port.node;
                    if node < self.topology.hosts {
                        for qp in self.hosts[node as usize].qps.clone() {
                            self.qps[qp as usize].rp.set_line(bits_per_s);
                        }
                    }
                }
            }
            Change::Loss { port, share } => {
                self.ports[port as usize].loss =
                    crate::num::whole(share.clamp(0.0, 1.0) * 4_294_967_296.0);
            }
            Change::Link { port, up, reroute } => {
                self.set_link(port, up);
                self.at(self.now + reroute, Change::Reroute);
            }
            Change::Reroute => {
                for p in 0..index(self.ports.len()) {
                    self.routes.set_up(p, self.ports[p as usize].up);
                }
                self.routes.rebuild(&self.topology);
                self.trace_all_paths();
            }
            Change::Receiver { host, bits_per_s } => self.set_receiver(host, bits_per_s),
            Change::Ecn { switch, ecn } => {
                let ecn = Ecn::from(&ecn);
                for port in &mut self.ports {
                    if switch.is_none_or(|s| s == port.node) {
                        port.ecn = ecn;
                    }
                }
            }
            Change::Rp { host, rp } => {
                let now = self.now;
                for h in self.selected_hosts(host) {
                    let old = self.hosts[h].rp;
                    for qp in self.hosts[h].qps.clone() {
                        self.qps[qp as usize].rp.catch_up(now, &old);
                    }
                    self.hosts[h].rp_params = rp;
                    self.hosts[h].rp = RpConstants::from(&rp);
                }
            }
            Change::CnpGap { host, us } => {
                for h in self.selected_hosts(host) {
                    self.hosts[h].cnp_gap = from_us(us);
                }
            }
            Change::DynamicTh { switch, th } => {
                for (s, buffer) in self.buffers.iter_mut().enumerate() {
                    if switch.is_none_or(|x| x == index(s) + self.topology.hosts) {
                        buffer.set_dynamic_th(th);
                    }
                }
            }
            Change::Weight { port, weight } => {
                self.routes.set_weight(port, weight);
                self.trace_all_paths();
            }
            Change::Pin { switch, dst, port } => {
                self.routes.pin(switch, dst, port);
                self.trace_all_paths();
            }
            Change::PinFlow { switch, qp, port } => {
                self.routes.pin_flow(switch, qp, port);
                self.trace_paths(qp & !ANSWERS);
            }
            Change::Straggler { job, rank, delay } => {
                self.jobs[job as usize].set_straggler(rank, delay)
            }
        }
    }

    fn selected_hosts(&self, host: Option<u32>) -> std::ops::Range<usize> {
        host.map_or(0..self.hosts.len(), |h| h as usize..h as usize + 1)
    }
}
