//! The shared buffer of a switch: dynamic thresholds per ingress port, headroom for what a pause cannot stop.
//!
//! A port may use `alpha * free` of the shared pool (Choudhury and Hahne 1998; SONiC writes alpha as 2^dynamic_th).
//! Above that it is paused, and what still arrives goes to its headroom; only when that is full too is a packet lost.

use serde::{Deserialize, Serialize};

/// Buffer and PFC of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferParams {
    /// Whole buffer, bytes.
    pub bytes: u64,
    /// Alpha is 2 to this power: what one ingress port may use of what is free.
    pub dynamic_th: i32,
    /// Headroom of each port, bytes; 0 computes it from rate and delay of the link.
    pub headroom: u64,
    /// Guaranteed to each port, bytes.
    pub reserved: u64,
    /// Resume when the port is so far below its threshold, bytes.
    pub xon_offset: u64,
    /// False drops instead of pausing.
    pub pfc: bool,
    /// Pause duration in one frame, us: 65535 quanta are 335 us at 100 Gb/s.
    pub pause_us: f64,
    /// Send another pause for each packet that arrives above the threshold, instead of one each half duration.
    pub pause_per_packet: bool,
}

impl Default for BufferParams {
    fn default() -> Self {
        Self {
            bytes: 16_000_000,
            dynamic_th: -3,
            headroom: 0,
            reserved: 4096,
            xon_offset: 3072,
            pfc: true,
            pause_us: 335.0,
            pause_per_packet: false,
        }
    }
}

/// What one ingress port holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ingress {
    /// Reserved and shared bytes.
    held: u64,
    headroom_used: u64,
    headroom: u64,
    /// We have told the peer to stop.
    pub pausing: bool,
}

/// Occupancy of a switch's buffer.
#[derive(Debug, Clone)]
pub struct Buffer {
    params: BufferParams,
    pool: u64,
    shared: u64,
    ports: Vec<Ingress>,
}

impl Buffer {
    /// A switch whose ports need so much headroom each.
    #[must_use]
    pub fn new(params: BufferParams, headrooms: &[u64]) -> Self {
        let ports: Vec<Ingress> = headrooms
            .iter()
            .map(|h| Ingress {
                headroom: *h,
                ..Ingress::default()
            })
            .collect();
        let set_aside = headrooms.iter().sum::<u64>() + params.reserved * ports.len() as u64;
        Self {
            params,
            pool: params.bytes.saturating_sub(set_aside),
            shared: 0,
            ports,
        }
    }

    /// What one port may take of the shared pool now.
    #[must_use]
    pub fn threshold(&self) -> u64 {
        let free = self.pool.saturating_sub(self.shared);
        let th = self.params.dynamic_th;
        if th >= 0 {
            free << th.min(8)
        } else {
            free >> (-th).min(32)
        }
    }

    /// Bytes that all ports share; 0 when their headrooms and reserves take the whole buffer.
    #[must_use]
    pub fn pool(&self) -> u64 {
        self.pool
    }

    /// Bytes held in all.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.ports.iter().map(|p| p.held + p.headroom_used).sum()
    }

    fn shared_of(&self, port: usize) -> u64 {
        self.ports[port].held.saturating_sub(self.params.reserved)
    }

    /// Takes a packet in. False: it finds no buffer and is lost.
    pub fn admit(&mut self, port: usize, bytes: u64) -> bool {
        let threshold = self.threshold();
        let p = &mut self.ports[port];
        let after = p.held + bytes;
        if after <= self.params.reserved {
            p.held = after;
        } else if after - self.params.reserved <= threshold {
            self.shared += bytes.min(after - self.params.reserved);
            p.held = after;
        } else if p.headroom_used + bytes <= p.headroom {
            p.headroom_used += bytes;
        } else {
            return false;
        }
        true
    }

    /// Lets a packet go.
    pub fn release(&mut self, port: usize, bytes: u64) {
        let over = self.shared_of(port);
        let p = &mut self.ports[port];
        let from_headroom = p.headroom_used.min(bytes);
        let rest = bytes - from_headroom;
        p.headroom_used -= from_headroom;
        p.held -= rest;
        self.shared -= rest.min(over);
    }

    /// The port is above its threshold: its peer must stop.
    #[must_use]
    pub fn wants_pause(&self, port: usize) -> bool {
        self.params.pfc
            && (self.ports[port].headroom_used > 0 || self.shared_of(port) >= self.threshold())
    }

    /// The port is far enough below for its peer to go on.
    #[must_use]
    pub fn wants_resume(&self, port: usize) -> bool {
        let shared = self.shared_of(port);
        self.ports[port].headroom_used == 0
            && (shared == 0 || shared + self.params.xon_offset <= self.threshold())
    }

    /// True while the peer of the port is told to stop.
    #[must_use]
    pub fn pausing(&self, port: usize) -> bool {
        self.ports[port].pausing
    }

    /// Remembers what the peer was told.
    pub fn set_pausing(&mut self, port: usize, pausing: bool) {
        self.ports[port].pausing = pausing;
    }

    /// The parameters in force.
    #[must_use]
    pub fn params(&self) -> &BufferParams {
        &self.params
    }

    /// Another alpha, from now on.
    pub fn set_dynamic_th(&mut self, th: i32) {
        self.params.dynamic_th = th;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_port_pauses_at_alpha_of_what_is_free_and_loses_only_beyond_its_headroom() {
        let params = BufferParams {
            bytes: 100_000,
            dynamic_th: 0,
            reserved: 0,
            ..BufferParams::default()
        };
        let mut b = Buffer::new(params, &[5_000, 5_000]);
        // 90 KB of pool, alpha 1: the port stops at half of it.
        let mut n = 0;
        while !b.wants_pause(0) {
            assert!(b.admit(0, 1000));
            n += 1;
        }
        assert_eq!(n, 45);
        let mut more = 0;
        while b.admit(0, 1000) {
            more += 1;
        }
        assert_eq!(more, 5);
        for _ in 0..5 {
            b.release(0, 1000);
            assert!(!b.wants_resume(0));
        }
        b.release(0, 1000);
        b.release(0, 1000);
        assert!(b.wants_resume(0));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(ops in proptest::collection::vec((0usize..4, 60u64..1100, any::<bool>()), 1..500)) {
            let params = BufferParams { bytes: 60_000, dynamic_th: -1, ..BufferParams::default() };
            let mut b = Buffer::new(params, &[3_000; 4]);
            let mut held: Vec<Vec<u64>> = vec![Vec::new(); 4];
            for (port, bytes, take) in ops {
                if take {
                    if b.admit(port, bytes) { held[port].push(bytes); }
                } else if let Some(bytes) = held[port].pop() {
                    b.release(port, bytes);
                }
                prop_assert_eq!(b.used(), held.iter().flatten().sum::<u64>());
                prop_assert!(b.used() <= 60_000);
            }
            for (port, held) in held.iter().enumerate() {
                for bytes in held { b.release(port, *bytes); }
            }
            prop_assert_eq!((b.used(), b.shared), (0, 0));
        }
    }
}
