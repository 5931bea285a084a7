//! Hosts: queue pairs take turns, paced by their reaction points; receivers acknowledge, report gaps and notify.

use crate::packet::{Kind, Packet};
use crate::port::SlowReceiver;
use crate::sim::{Event, Sim};
use crate::time::Time;

impl Sim {
    /// Hands a message to a queue pair. Its end is reported to the job.
    pub(crate) fn post(&mut self, qp: u32, bytes: u64, job: u32, op: u32) {
        let q = &mut self.qps[qp as usize];
        if q.acked == q.posted {
            q.progress_at = self.now;
        }
        q.posted += bytes;
        q.sending.push_back((q.posted, job, op));
        q.receiving.push_back((q.posted, job, op));
        self.offer(qp);
    }

    /// Puts a queue pair in the round, when it has something to send and its pacing lets it.
    pub(crate) fn offer(&mut self, qp: u32) {
        let window = self.config.transport.window;
        let q = &mut self.qps[qp as usize];
        if q.in_ready || q.timed || !q.may_send(window) {
            return;
        }
        let host = &mut self.hosts[q.src as usize];
        let p = host.port;
        if q.next_at <= self.now.max(self.ports[p as usize].busy_until) {
            q.in_ready = true;
            host.ready.insert(q.turn);
            self.nic_kick(p);
        } else {
            q.timed = true;
            self.wheel.push(q.next_at, Event::Ready { qp });
        }
    }

    #[inline]
    pub(crate) fn nic_kick(&mut self, p: u32) {
        let port = &mut self.ports[p as usize];
        if port.busy_until > self.now {
            self.wake_later(p);
            return;
        }
        if !port.up {
            return;
        }
        if let Some(packet) = port.high.pop(&self.slab) {
            self.start(p, packet);
        } else if port.paused_until > self.now {
            return;
        } else if let Some(packet) = port.low.pop(&self.slab) {
            self.start(p, packet);
        } else {
            let host = port.node as usize;
            let window = self.config.transport.window;
            let next = loop {
                let Some(turn) = self.hosts[host].ready.take() else {
                    return;
                };
                let qp = self.hosts[host].qps[turn as usize];
                let q = &mut self.qps[qp as usize];
                q.in_ready = false;
                if q.may_send(window) {
                    break qp;
                }
            };
            self.send_data(host, p, next);
        }
        self.wake_later(p);
    }

    fn send_data(&mut self, host: usize, p: u32, qp: u32) {
        let transport = &self.config.transport;
        let q = &mut self.qps[qp as usize];
        while q.sending[q.cursor].0 <= q.next {
            q.cursor += 1;
        }
        let len = u64::from(transport.mtu).min(q.sending[q.cursor].0 - q.next);
        let len = u16::try_from(len).unwrap_or(transport.mtu);
        let wire = len + transport.header;
        let packet = self
            .slab
            .insert(Packet::new(Kind::Data, qp, q.next, len, wire));
        let h = &mut self.hosts[host];
        h.count.tx_payload += u64::from(len);
        h.count.tx_packets += 1;
        h.count.retransmits += u64::from(q.next < q.highest);
        self.totals.made += 1;
        self.totals.data_made += 1;
        q.next += u64::from(len);
        q.highest = q.highest.max(q.next);
        let (wire, window) = (u64::from(wire), transport.window);
        q.rp.catch_up(self.now, &h.rp);
        q.rp.sent(wire, &h.rp);
        let gap = if q.rp.at_line() {
            self.ports[p as usize].wire.time(wire)
        } else {
            crate::num::whole(wire as f64 * 8e12 / q.rp.rate())
        };
        q.next_at = self.now + gap;
        let arm = !std::mem::replace(&mut q.rto_armed, true);
        self.start(p, packet);
        let q = &mut self.qps[qp as usize];
        if arm {
            self.wheel.push(self.now + self.rto, Event::Timeout { qp });
        }
        if q.may_send(window) {
            if q.next_at <= self.ports[p as usize].busy_until {
                q.in_ready = true;
                self.hosts[host].ready.insert(q.turn);
            } else {
                q.timed = true;
                self.wheel.push(q.next_at, Event::Ready { qp });
            }
        }
    }

    pub(crate) fn nic_receive(&mut self, host: u32, p: u32, packet: u32) {
        let pk = self.slab[packet];
        self.slab.remove(packet);
        self.totals.delivered += 1;
        match pk.kind {
            Kind::Data => {
                self.totals.data_delivered += 1;
                self.slow_take(host, p, u64::from(pk.wire));
                self.receive_data(host, p, &pk);
            }
            Kind::Ack | Kind::Nack => self.receive_ack(host, &pk),
            Kind::Cnp => self.notify(host, pk.qp),
            Kind::Pause => {}
        }
    }

    fn receive_data(&mut self, host: u32, p: u32, pk: &Packet) {
        let now = self.now;
        let transport = &self.config.transport;
        let h = &mut self.hosts[host as usize];
        let q = &mut self.qps[pk.qp as usize];
        h.count.rx_packets += 1;
        h.count.rx_bytes += u64::from(pk.wire);
        let mut cnp = false;
        if pk.ce {
            h.count.ecn_marked_rx += 1;
            if now >= q.cnp_again {
                q.cnp_again = now + h.cnp_gap;
                h.count.cnp_tx += 1;
                cnp = true;
            }
        }
        let mut answer = None;
        let end = pk.seq + u64::from(pk.len);
        if pk.seq == q.expected {
            q.expected = end;
            self.totals.goodput += u64::from(pk.len);
            q.unacked += 1;
            let ended = q.receiving.front().is_some_and(|m| m.0 <= end);
            if ended || q.unacked >= transport.ack_every || (cnp && transport.cnp_on_ack) {
                q.unacked = 0;
                answer = Some(Kind::Ack);
            }
        } else if pk.seq > q.expected {
            h.count.out_of_sequence += 1;
            if q.naked != q.expected || now >= q.nak_again {
                q.naked = q.expected;
                q.nak_again = now + self.nak_gap;
                h.count.nak_tx += 1;
                answer = Some(Kind::Nack);
            }
        } else {
            answer = Some(Kind::Ack);
        }
        let expected = q.expected;
        let ack_bytes = transport.ack_bytes;
        if cnp && (answer.is_none() || !transport.cnp_on_ack) {
            self.answer(p, Packet::new(Kind::Cnp, pk.qp, 0, 0, ack_bytes));
            cnp = false;
        }
        if let Some(kind) = answer {
            let mut ack = Packet::new(kind, pk.qp, expected, 0, ack_bytes);
            ack.cnp = cnp;
            self.answer(p, ack);
        }
        while let Some((end, job, op)) = self.qps[pk.qp as usize].receiving.front().copied() {
            if end > expected {
                break;
            }
            self.qps[pk.qp as usize].receiving.pop_front();
            self.delivered(job, op);
        }
    }

    fn answer(&mut self, p: u32, packet: Packet) {
        self.totals.made += 1;
        let high = packet.kind == Kind::Cnp || self.ack_high;
        let at = self.slab.insert(packet);
        let port = &mut self.ports[p as usize];
        if !port.up {
            self.totals.lost_link += 1;
            self.slab.remove(at);
            return;
        }
        if high {
            port.high.push(&mut self.slab, at);
        } else {
            port.low.push(&mut self.slab, at);
        }
        self.nic_kick(p);
    }

    fn receive_ack(&mut self, host: u32, pk: &Packet) {
        let q = &mut self.qps[pk.qp as usize];
        if pk.seq > q.acked {
            q.acked = pk.seq;
            // What a timeout sent again may have been acknowledged already.
            q.next = q.next.max(q.acked);
            q.progress_at = self.now;
        }
        while let Some((end, job, op)) = self.qps[pk.qp as usize].sending.front().copied() {
            let q = &mut self.qps[pk.qp as usize];
            if end > q.acked {
                break;
            }
            q.sending.pop_front();
            q.cursor = q.cursor.saturating_sub(1);
            self.acked(job, op);
        }
        if pk.kind == Kind::Nack {
            self.hosts[host as usize].count.sequence_naks += 1;
            let q = &mut self.qps[pk.qp as usize];
            if pk.seq >= q.acked {
                q.go_back();
            }
        }
        if pk.cnp || (pk.kind == Kind::Nack && self.config.transport.nak_slows) {
            self.notify(host, pk.qp);
        }
        self.offer(pk.qp);
    }

    fn notify(&mut self, host: u32, qp: u32) {
        let h = &mut self.hosts[host as usize];
        if h.rp.enabled {
            h.count.cnp_rx += 1;
        } else {
            h.count.cnp_ignored += 1;
        }
        self.qps[qp as usize].rp.notified(self.now, &h.rp);
    }

    pub(crate) fn timeout(&mut self, qp: u32) {
        let q = &mut self.qps[qp as usize];
        q.rto_armed = false;
        if q.acked == q.next && q.next == q.posted {
            return;
        }
        let due = q.progress_at + self.rto;
        q.rto_armed = true;
        if due > self.now {
            self.wheel.push(due, Event::Timeout { qp });
            return;
        }
        q.progress_at = self.now;
        self.wheel.push(self.now + self.rto, Event::Timeout { qp });
        if q.acked < q.highest {
            q.go_back();
            let src = q.src;
            self.hosts[src as usize].count.ack_timeouts += 1;
        }
        self.offer(qp);
    }

    /// Makes a host take in only so many bits per second; an infinite rate heals it.
    pub(crate) fn set_receiver(&mut self, host: u32, bits_per_s: f64) {
        let h = &mut self.hosts[host as usize];
        if bits_per_s.is_finite() {
            let pausing = h.slow.is_some_and(|s| s.pausing);
            h.slow = Some(SlowReceiver {
                bits_per_s: bits_per_s.max(0.0),
                xoff: 200_000,
                backlog: 0.0,
                at: self.now,
                pausing,
            });
        } else if h.slow.take().is_some_and(|s| s.pausing) {
            let p = h.port;
            self.send_pause(p, 0);
        }
    }

    /// What the NIC of a slow receiver still holds grows by a packet.
    fn slow_take(&mut self, host: u32, p: u32, wire: u64) {
        let now = self.now;
        let Some(slow) = &mut self.hosts[host as usize].slow else {
            return;
        };
        slow.drain(now);
        slow.backlog += wire as f64;
        if !slow.pausing && slow.backlog > slow.xoff as f64 {
            slow.pausing = true;
            let due = slow.empty_at();
            self.send_pause(p, self.pause_time);
            self.wheel
                .push(now + self.pause_time / 2, Event::Repause { port: p });
            if let Some(due) = due {
                self.wheel.push(due, Event::Drained { host });
            }
        }
    }

    pub(crate) fn drained(&mut self, host: u32) {
        let now = self.now;
        let Some(slow) = &mut self.hosts[host as usize].slow else {
            return;
        };
        slow.drain(now);
        if !slow.pausing {
            return;
        }
        if slow.backlog > slow.xoff as f64 / 2.0 {
            if let Some(due) = slow.empty_at() {
                self.wheel.push(due.max(now + 1), Event::Drained { host });
            }
            return;
        }
        slow.pausing = false;
        let p = self.hosts[host as usize].port;
        self.send_pause(p, 0);
    }
}

impl SlowReceiver {
    fn drain(&mut self, now: Time) {
        self.backlog = (self.backlog - (now - self.at) as f64 * self.bits_per_s / 8e12).max(0.0);
        self.at = now;
    }

    /// When the backlog is down to half of what stops the sender. `None`: never.
    fn empty_at(&self) -> Option<Time> {
        let over = self.backlog - self.xoff as f64 / 2.0;
        (self.bits_per_s > 0.0)
            .then(|| self.at + crate::num::whole((over.max(0.0) * 8e12 / self.bits_per_s).ceil()))
    }
}
