//! Packets on their way: a slab, and queues as lists through it, so that nothing is allocated per packet.

use crate::num::index;

/// No packet, or the end of a list.
pub const NONE: u32 = u32::MAX;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Payload; `seq` is its first byte.
    Data,
    /// Everything before `seq` has come.
    Ack,
    /// A gap: send again from `seq`.
    Nack,
    /// A congestion notification of its own.
    Cnp,
    /// Stop the lossless class for `seq` picoseconds; 0 is go on.
    Pause,
}

/// A packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// First byte of the payload, or what `kind` says.
    pub seq: u64,
    /// Queue pair, as the sender's number, also in what its receiver sends back.
    pub qp: u32,
    /// Port of the current switch that it came in by.
    pub in_port: u32,
    next: u32,
    /// Payload bytes.
    pub len: u16,
    /// Bytes on the wire.
    pub wire: u16,
    /// What it is.
    pub kind: Kind,
    /// Congestion Experienced.
    pub ce: bool,
    /// An acknowledgement that carries a congestion notification.
    pub cnp: bool,
    /// Switches passed.
    pub hop: u8,
}

impl Packet {
    /// A packet that has just been made.
    #[must_use]
    pub fn new(kind: Kind, qp: u32, seq: u64, len: u16, wire: u16) -> Self {
        Self {
            seq,
            qp,
            in_port: NONE,
            next: NONE,
            len,
            wire,
            kind,
            ce: false,
            cnp: false,
            hop: 0,
        }
    }
}

/// All packets that exist.
#[derive(Debug, Clone, Default)]
pub struct Slab {
    packets: Vec<Packet>,
    free: u32,
    live: u32,
}

impl Slab {
    /// An empty slab.
    #[must_use]
    pub fn new() -> Self {
        Self {
            packets: Vec::new(),
            free: NONE,
            live: 0,
        }
    }

    /// Packets that exist.
    #[must_use]
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Keeps a packet.
    #[inline]
    pub fn insert(&mut self, packet: Packet) -> u32 {
        self.live += 1;
        if self.free == NONE {
            self.packets.push(packet);
            return index(self.packets.len() - 1);
        }
        let at = self.free;
        let slot = &mut self.packets[at as usize];
        self.free = slot.next;
        *slot = packet;
        at
    }

    /// Forgets a packet.
    #[inline]
    pub fn remove(&mut self, at: u32) {
        self.live -= 1;
        self.packets[at as usize].next = self.free;
        self.free = at;
    }
}

impl std::ops::Index<u32> for Slab {
    type Output = Packet;
    #[inline]
    fn index(&self, at: u32) -> &Packet {
        &self.packets[at as usize]
    }
}

impl std::ops::IndexMut<u32> for Slab {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut Packet {
        &mut self.packets[at as usize]
    }
}

/// Packets in the order in which they came.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    head: u32,
    tail: u32,
    /// Bytes on the wire of all of them.
    pub bytes: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            bytes: 0,
        }
    }
}

impl Queue {
    /// True when there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// Adds one at the end.
    #[inline]
    pub fn push(&mut self, slab: &mut Slab, at: u32) {
        slab[at].next = NONE;
        self.bytes += u64::from(slab[at].wire);
        if self.tail == NONE {
            self.head = at;
        } else {
            slab[self.tail].next = at;
        }
        self.tail = at;
    }

    /// Takes the first one.
    #[inline]
    pub fn pop(&mut self, slab: &Slab) -> Option<u32> {
        let at = self.head;
        if at == NONE {
            return None;
        }
        self.head = slab[at].next;
        if self.head == NONE {
            self.tail = NONE;
        }
        self.bytes -= u64::from(slab[at].wire);
        Some(at)
    }
}
