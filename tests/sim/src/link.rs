//! Links and switches: arriving, finding the way, buffering, marking, pausing, sending.

use crate::num::index;
use crate::packet::{Kind, NONE, Packet};
use crate::route::ANSWERS;
use crate::sim::{Event, Sim};
use crate::time::Time;

/// A packet that passed so many switches goes in a circle, while routes are not computed anew.
const HOPS_MAX: usize = 16;

impl Sim {
    pub(crate) fn arrive(&mut self, p: u32, packet: u32) {
        let port = &mut self.ports[p as usize];
        if !port.up {
            self.totals.lost_link += 1;
            self.slab.remove(packet);
            return;
        }
        if port.loss > 0 && (self.rng.bits() >> 32) < port.loss {
            port.count.rx_errors += 1;
            self.totals.lost_error += 1;
            self.slab.remove(packet);
            return;
        }
        let wire = u64::from(self.slab[packet].wire);
        if self.slab[packet].kind == Kind::Pause {
            let duration = self.slab[packet].seq;
            self.slab.remove(packet);
            self.totals.delivered += 1;
            self.paused(p, duration);
            return;
        }
        port.count.rx_bytes += wire;
        port.count.rx_packets += 1;
        let node = port.node;
        if node < self.topology.hosts {
            self.nic_receive(node, p, packet);
        } else {
            self.forward(node, p, packet);
        }
    }

    #[inline]
    fn forward(&mut self, node: u32, in_port: u32, packet: u32) {
        let pk = &mut self.slab[packet];
        let hop = usize::from(pk.hop);
        pk.hop += 1;
        pk.in_port = in_port;
        let (qp, kind, wire) = (pk.qp, pk.kind, u64::from(pk.wire));
        let q = &self.qps[qp as usize];
        let path = if kind == Kind::Data {
            &q.there
        } else {
            &q.back
        };
        let known = if hop < usize::from(path.len) {
            path.ports[hop]
        } else {
            NONE
        };
        let out = if known != NONE && self.ports[known as usize].node == node {
            Some(known)
        } else if kind == Kind::Data {
            self.routes.egress(node, q.there_tuple(), qp)
        } else {
            self.routes.egress(node, q.back_tuple(), qp | ANSWERS)
        };
        let Some(out) = out.filter(|_| hop < HOPS_MAX) else {
            self.totals.lost_link += 1;
            self.ports[in_port as usize].count.rx_discards += 1;
            self.slab.remove(packet);
            return;
        };
        if !self.ports[out as usize].up {
            self.lose(out, packet);
            return;
        }
        let control = kind == Kind::Cnp || (self.ack_high && kind != Kind::Data);
        if !control {
            let (s, at) = self.ingress(in_port);
            let buffer = &mut self.buffers[s];
            if !buffer.admit(at, wire) {
                self.totals.lost_buffer += 1;
                self.ports[in_port as usize].count.rx_discards += 1;
                self.slab.remove(packet);
                return;
            }
            if buffer.wants_pause(at) {
                self.ask_to_pause(in_port);
            }
        }
        let port = &mut self.ports[out as usize];
        let waiting = port.high.bytes + port.low.bytes + wire;
        if waiting > port.count.queue_bytes_max {
            port.count.queue_bytes_max = waiting;
        }
        if control {
            port.high.push(&mut self.slab, packet);
        } else {
            port.low.push(&mut self.slab, packet);
        }
        self.kick(out);
    }

    /// Switch and position there of a port.
    fn ingress(&self, port: u32) -> (usize, usize) {
        let p = &self.ports[port as usize];
        ((p.node - self.topology.hosts) as usize, p.position as usize)
    }

    /// Sends what may be sent, if the port is not sending already.
    #[inline]
    pub(crate) fn kick(&mut self, p: u32) {
        let port = &mut self.ports[p as usize];
        if port.node < self.topology.hosts {
            self.nic_kick(p);
            return;
        }
        if port.busy_until > self.now {
            self.wake_later(p);
            return;
        }
        if !port.up {
            return;
        }
        if let Some(packet) = port.high.pop(&self.slab) {
            self.start(p, packet);
        } else if port.paused_until <= self.now {
            let Some(packet) = port.low.pop(&self.slab) else {
                return;
            };
            let chance = port.ecn.probability(port.low.bytes);
            if chance > 0.0
                && self.slab[packet].kind == Kind::Data
                && (chance >= 1.0 || self.rng.unit() < chance)
            {
                self.slab[packet].ce = true;
                self.ports[p as usize].count.ecn_marked_tx += 1;
            }
            self.let_go(packet);
            self.start(p, packet);
        } else {
            return;
        }
        self.wake_later(p);
    }

    /// Wakes a port that has more to send when it has sent its packet.
    #[inline]
    pub(crate) fn wake_later(&mut self, p: u32) {
        let port = &mut self.ports[p as usize];
        if port.waking {
            return;
        }
        let more = !port.high.is_empty()
            || !port.low.is_empty()
            || (port.node < self.topology.hosts
                && !self.hosts[port.node as usize].ready.is_empty());
        if more {
            port.waking = true;
            self.wheel.push(port.busy_until, Event::Wake { port: p });
        }
    }

    /// A packet leaves the buffer of its switch.
    fn let_go(&mut self, packet: u32) {
        let (in_port, wire) = (self.slab[packet].in_port, u64::from(self.slab[packet].wire));
        let (s, at) = self.ingress(in_port);
        let buffer = &mut self.buffers[s];
        buffer.release(at, wire);
        if buffer.pausing(at) && buffer.wants_resume(at) {
            buffer.set_pausing(at, false);
            let port = &mut self.ports[in_port as usize];
            port.count.pause_tx_ps += self.now - port.pausing_since;
            self.send_pause(in_port, 0);
        }
    }

    /// Puts the first bit on the wire.
    #[inline]
    pub(crate) fn start(&mut self, p: u32, packet: u32) {
        let port = &mut self.ports[p as usize];
        let wire = u64::from(self.slab[packet].wire);
        port.busy_until = self.now + port.wire.time(wire);
        port.count.tx_bytes += wire;
        port.count.tx_packets += 1;
        self.wheel.push(
            port.busy_until + port.delay,
            Event::Arrive {
                port: port.peer,
                packet,
            },
        );
    }

    fn ask_to_pause(&mut self, in_port: u32) {
        let (s, at) = self.ingress(in_port);
        let buffer = &mut self.buffers[s];
        let again = buffer.pausing(at);
        let per_packet = buffer.params().pause_per_packet;
        if again && !per_packet {
            return;
        }
        if !again {
            buffer.set_pausing(at, true);
            self.ports[in_port as usize].pausing_since = self.now;
            if !per_packet {
                self.wheel.push(
                    self.now + self.pause_time / 2,
                    Event::Repause { port: in_port },
                );
            }
        }
        self.send_pause(in_port, self.pause_time);
    }

    pub(crate) fn send_pause(&mut self, p: u32, duration: Time) {
        if !self.ports[p as usize].up {
            return;
        }
        let bytes = self.config.transport.pause_bytes;
        let packet = self
            .slab
            .insert(Packet::new(Kind::Pause, NONE, duration, 0, bytes));
        self.totals.made += 1;
        let port = &mut self.ports[p as usize];
        port.count.pause_tx += u64::from(duration > 0);
        port.high.push(&mut self.slab, packet);
        let waiting = port.high.bytes + port.low.bytes;
        port.count.queue_bytes_max = port.count.queue_bytes_max.max(waiting);
        self.kick(p);
    }

    pub(crate) fn repause(&mut self, p: u32) {
        let node = self.ports[p as usize].node;
        let pausing = if node < self.topology.hosts {
            self.hosts[node as usize].slow.is_some_and(|s| s.pausing)
        } else {
            let (s, at) = self.ingress(p);
            self.buffers[s].pausing(at)
        };
        if pausing {
            self.send_pause(p, self.pause_time);
            self.wheel
                .push(self.now + self.pause_time / 2, Event::Repause { port: p });
        }
    }

    /// The peer asks us to stop for a while, or to go on.
    fn paused(&mut self, p: u32, duration: Time) {
        let now = self.now;
        let port = &mut self.ports[p as usize];
        if port.paused_until != 0 && (port.paused_until <= now || duration == 0) {
            port.count.pause_rx_ps += port.paused_until.min(now) - port.paused_since;
            port.paused_until = 0;
        }
        if duration == 0 {
            self.kick(p);
            return;
        }
        port.count.pause_rx += 1;
        if port.paused_until == 0 {
            port.paused_since = now;
        }
        port.paused_until = now + duration;
        if !port.unpausing {
            port.unpausing = true;
            self.wheel.push(now + duration, Event::Unpause { port: p });
        }
    }

    pub(crate) fn unpause(&mut self, p: u32) {
        let port = &mut self.ports[p as usize];
        port.unpausing = false;
        if port.paused_until > self.now {
            port.unpausing = true;
            self.wheel
                .push(port.paused_until, Event::Unpause { port: p });
        } else if port.paused_until != 0 {
            port.count.pause_rx_ps += port.paused_until - port.paused_since;
            port.paused_until = 0;
            self.kick(p);
        }
    }

    /// Both ends of a link go up or down. What waits there is lost with the link.
    pub(crate) fn set_link(&mut self, p: u32, up: bool) {
        for p in [p, self.ports[p as usize].peer] {
            let port = &mut self.ports[p as usize];
            if port.up == up {
                continue;
            }
            port.up = up;
            if up {
                self.kick(p);
                continue;
            }
            port.count.link_downs += 1;
            if port.paused_until != 0 {
                port.count.pause_rx_ps += self.now.min(port.paused_until) - port.paused_since;
                port.paused_until = 0;
            }
            let switch = port.node >= self.topology.hosts;
            while let Some(packet) = self.ports[p as usize].high.pop(&self.slab) {
                self.lose(p, packet);
            }
            while let Some(packet) = self.ports[p as usize].low.pop(&self.slab) {
                if switch {
                    self.let_go(packet);
                }
                self.lose(p, packet);
            }
            if switch {
                let (s, at) = self.ingress(p);
                if self.buffers[s].pausing(at) {
                    self.buffers[s].set_pausing(at, false);
                    let port = &mut self.ports[p as usize];
                    port.count.pause_tx_ps += self.now - port.pausing_since;
                }
            }
        }
    }

    fn lose(&mut self, p: u32, packet: u32) {
        self.ports[p as usize].count.tx_discards += 1;
        self.totals.lost_link += 1;
        self.slab.remove(packet);
    }

    /// Bytes that the buffers of all switches hold.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        self.buffers.iter().map(crate::buffer::Buffer::used).sum()
    }

    /// Wire bytes that wait in the lossless class of all switch ports.
    #[must_use]
    pub fn queued(&self) -> u64 {
        (0..index(self.ports.len()))
            .map(|p| &self.ports[p as usize])
            .filter(|p| p.node >= self.topology.hosts)
            .map(|p| p.low.bytes)
            .sum()
    }
}
