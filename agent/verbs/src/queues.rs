//! Datagram queue pairs of one port, their completions and buffers.

#![expect(
    unsafe_code,
    reason = "libibverbs is C; its calls are in this file, completion.rs, device.rs and address.rs"
)]

use crate::address::{Address, Domain};
use crate::completion::{CompletionQueue, POLL_AT_ONCE, RECEIVE, Raw};
use crate::device::{Device, check, last_error, set_nonblocking};
use crate::memory::Memory;
use crate::packet::{GRH, SIZE};
use crate::prober::Clock;
use rdma_sys::*;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Buffers that wait for packets, for each queue pair: what the highest rate brings in ten milliseconds.
const RECEIVE_DEPTH: u32 = 128;
/// Packets that are on their way out at once, of all queue pairs together.
pub const SEND_DEPTH: usize = 128;
const RECEIVE_BYTES: usize = 128;
const _: () = assert!(GRH + SIZE < RECEIVE_BYTES);
/// What of a packet does not fit goes here, for all receives alike: nobody reads it. With it every
/// datagram fits that the largest MTU (4,096) lets through: one that does not would put the queue
/// pair into an error state (local length error).
const OVERFLOW_BYTES: usize = 4096;
const OVERFLOW_LENGTH: u32 = 4096;
const _: () = assert!(OVERFLOW_LENGTH as usize == OVERFLOW_BYTES);
// The same as the library's types have them.
const RECEIVE_LENGTH: u32 = 128;
const PACKET_LENGTH: u32 = 64;
const _: () = assert!(RECEIVE_LENGTH as usize == RECEIVE_BYTES && PACKET_LENGTH as usize == SIZE);

/// How queue pairs are to be made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub port: u8,
    pub queue_pairs: u16,
    pub qkey: u32,
    /// The clock of completions, if the device has one.
    pub clock: Clock,
}

/// A packet that left.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub slot: usize,
    pub ok: bool,
    /// By [`Queues::clock`]; 0 by the host's.
    pub at: u64,
}

/// A packet that came.
#[derive(Debug)]
pub struct Received {
    slot: usize,
    pub ok: bool,
    pub from_qpn: u32,
    pub at: u64,
    /// What the device put before it, and the packet.
    pub grh: [u8; GRH],
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub enum Completion {
    Sent(Sent),
    Received(Received),
}

/// All of it; taken down in the right order when dropped.
pub struct Queues {
    plan: Plan,
    pub clock: Clock,
    pairs: Vec<NonNull<ibv_qp>>,
    cq: Option<CompletionQueue>,
    mr: Option<NonNull<ibv_mr>>,
    domain: Arc<Domain>,
    channel: Option<NonNull<ibv_comp_channel>>,
    memory: Memory,
    /// Of the overflow, sent behind each packet.
    padding: u32,
    raw: Vec<Raw>,
}

// SAFETY: libibverbs lets any thread use its objects; this one is used by one thread at a time.
unsafe impl Send for Queues {}

impl Queues {
    /// Makes queue pairs that are ready to send and receive.
    ///
    /// # Errors
    /// What the device refuses, such as more locked memory than the limit allows.
    pub fn open(device: &Arc<Device>, plan: Plan) -> io::Result<Queues> {
        let receives = RECEIVE_DEPTH as usize * usize::from(plan.queue_pairs);
        let sends = receives * RECEIVE_BYTES + OVERFLOW_BYTES;
        let memory = Memory::new(sends + SEND_DEPTH * SIZE)?;
        // From here on a failure takes down what is there.
        let mut queues = Queues {
            plan,
            clock: plan.clock,
            pairs: Vec::new(),
            cq: None,
            mr: None,
            domain: Domain::new(device)?,
            channel: None,
            memory,
            padding: 0,
            raw: Vec::with_capacity(POLL_AT_ONCE),
        };
        queues.allocate()?;
        for _ in 0..plan.queue_pairs {
            queues.add_pair()?;
        }
        for slot in 0..receives {
            queues.post_receive(slot)?;
        }
        queues.arm()?;
        Ok(queues)
    }

    fn allocate(&mut self) -> io::Result<()> {
        let context = self.domain.device.context();
        let pd = self.domain.pd;
        // SAFETY: the context is open, and stays so until self is dropped.
        let channel =
            NonNull::new(unsafe { ibv_create_comp_channel(context) }).ok_or_else(last_error)?;
        self.channel = Some(channel);
        set_nonblocking(self.channel_fd())?;
        let access =
            i32::try_from(ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0).map_err(io::Error::other)?;
        let (start, bytes) = (self.memory.start.as_ptr().cast(), self.memory.len());
        // SAFETY: the memory lives until after the region is taken down.
        let mr = unsafe { ibv_reg_mr(pd.as_ptr(), start, bytes, access) };
        self.mr = Some(NonNull::new(mr).ok_or_else(last_error)?);
        let pairs = u32::from(self.plan.queue_pairs);
        let entries = RECEIVE_DEPTH * pairs + u32::try_from(SEND_DEPTH).unwrap_or(u32::MAX);
        self.cq = Some(self.completion_queue(channel, entries)?);
        Ok(())
    }

    /// With the device's timestamps if it has them, else without.
    fn completion_queue(
        &mut self,
        channel: NonNull<ibv_comp_channel>,
        entries: u32,
    ) -> io::Result<CompletionQueue> {
        let context = self.domain.device.context();
        if self.clock != Clock::Host {
            let flags = ibv_create_cq_wc_flags::IBV_WC_EX_WITH_BYTE_LEN
                | ibv_create_cq_wc_flags::IBV_WC_EX_WITH_SRC_QP
                | ibv_create_cq_wc_flags::IBV_WC_EX_WITH_COMPLETION_TIMESTAMP;
            // SAFETY: zero is valid for every field of the struct.
            let mut attr: ibv_cq_init_attr_ex = unsafe { MaybeUninit::zeroed().assume_init() };
            attr.cqe = entries;
            attr.channel = channel.as_ptr();
            attr.wc_flags = u64::from(flags.0);
            // SAFETY: the context is open; the struct is only read during the call.
            let cq = unsafe { ibv_create_cq_ex(context, &raw mut attr) };
            if let Some(cq) = cq.and_then(NonNull::new) {
                return Ok(CompletionQueue::Stamped(cq));
            }
            self.clock = Clock::Host;
        }
        let entries = i32::try_from(entries).map_err(io::Error::other)?;
        // SAFETY: the context and the channel are open.
        let cq = unsafe { ibv_create_cq(context, entries, null_mut(), channel.as_ptr(), 0) };
        NonNull::new(cq)
            .map(CompletionQueue::Plain)
            .ok_or_else(last_error)
    }

    fn add_pair(&mut self) -> io::Result<()> {
        let Some(cq) = self.cq else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let pd = self.domain.pd;
        // SAFETY: zero is valid for every field of both structs.
        let (mut init, mut attr): (ibv_qp_init_attr, ibv_qp_attr) =
            unsafe { MaybeUninit::zeroed().assume_init() };
        init.send_cq = cq.plain();
        init.recv_cq = cq.plain();
        init.cap.max_send_wr = u32::try_from(SEND_DEPTH).unwrap_or(u32::MAX);
        init.cap.max_recv_wr = RECEIVE_DEPTH;
        init.cap.max_send_sge = 2;
        init.cap.max_recv_sge = 2;
        init.qp_type = ibv_qp_type::IBV_QPT_UD;
        init.sq_sig_all = 1;
        // SAFETY: the domain and the queue are of this context; the struct is read during the call.
        let pair = NonNull::new(unsafe { ibv_create_qp(pd.as_ptr(), &raw mut init) })
            .ok_or_else(last_error)?;
        self.pairs.push(pair);
        attr.qkey = self.plan.qkey;
        attr.port_num = self.plan.port;
        let state = ibv_qp_attr_mask::IBV_QP_STATE;
        let first = state
            | ibv_qp_attr_mask::IBV_QP_PKEY_INDEX
            | ibv_qp_attr_mask::IBV_QP_PORT
            | ibv_qp_attr_mask::IBV_QP_QKEY;
        for (next, mask) in [
            (ibv_qp_state::IBV_QPS_INIT, first),
            (ibv_qp_state::IBV_QPS_RTR, state),
            (
                ibv_qp_state::IBV_QPS_RTS,
                state | ibv_qp_attr_mask::IBV_QP_SQ_PSN,
            ),
        ] {
            attr.qp_state = next;
            let mask = i32::try_from(mask.0).map_err(io::Error::other)?;
            // SAFETY: the pair is ours; the struct is read during the call.
            check(unsafe { ibv_modify_qp(pair.as_ptr(), &raw mut attr, mask) })?;
        }
        Ok(())
    }

    /// Number of the queue pair that is announced.
    #[must_use]
    pub fn qpn(&self) -> u32 {
        // SAFETY: pairs live as long as self.
        self.pairs
            .first()
            .map_or(0, |pair| unsafe { pair.as_ref() }.qp_num)
    }

    /// Readable when a completion came since [`Queues::arm`].
    #[must_use]
    pub fn channel_fd(&self) -> RawFd {
        // SAFETY: the channel lives as long as self.
        self.channel
            .map_or(-1, |channel| unsafe { channel.as_ref() }.fd)
    }

    fn arm(&mut self) -> io::Result<()> {
        let Some(cq) = self.cq else {
            return Ok(());
        };
        // SAFETY: the queue is ours.
        check(unsafe { ibv_req_notify_cq(cq.plain(), 0) })
    }

    /// Takes all completions, and asks to be woken by the next.
    ///
    /// # Errors
    /// The queue has failed.
    pub fn drain(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.take_notices();
        while self.poll(out)? > 0 {}
        self.arm()?;
        // What came before it was asked wakes nobody.
        while self.poll(out)? > 0 {}
        Ok(())
    }

    fn take_notices(&mut self) {
        let Some(channel) = self.channel else { return };
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel does not block; each notice is acknowledged once.
        unsafe {
            while ibv_get_cq_event(channel.as_ptr(), &raw mut cq, &raw mut context) == 0 {
                ibv_ack_cq_events(cq, 1);
            }
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<usize> {
        let Some(cq) = self.cq else { return Ok(0) };
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        cq.poll(&mut raw)?;
        let count = raw.len();
        for raw in &raw {
            out.push(self.completion(raw));
        }
        self.raw = raw;
        Ok(count)
    }

    fn completion(&self, raw: &Raw) -> Completion {
        let slot = usize::try_from(raw.id & (RECEIVE - 1)).unwrap_or(usize::MAX);
        if raw.id & RECEIVE == 0 {
            return Completion::Sent(Sent {
                slot,
                ok: raw.ok,
                at: raw.at,
            });
        }
        let mut grh = [0; GRH];
        let length = (raw.bytes as usize).clamp(GRH, RECEIVE_BYTES) - GRH;
        let mut bytes = vec![0; length];
        if raw.ok {
            // SAFETY: the buffer of this completion is the host's until it is posted again, and
            // `slot` is one that was posted; GRH + length is at most RECEIVE_BYTES.
            unsafe {
                let start = self.memory.start.as_ptr().add(slot * RECEIVE_BYTES);
                start.copy_to_nonoverlapping(grh.as_mut_ptr(), GRH);
                start
                    .add(GRH)
                    .copy_to_nonoverlapping(bytes.as_mut_ptr(), length);
            }
        }
        Completion::Received(Received {
            slot,
            ok: raw.ok,
            from_qpn: raw.from_qpn,
            at: raw.at,
            grh,
            bytes,
        })
    }

    /// Gives the buffer of a packet back to the device.
    ///
    /// # Errors
    /// The queue pair has failed.
    pub fn recycle(&mut self, received: &Received) -> io::Result<()> {
        self.post_receive(received.slot)
    }

    /// Buffers for packets that come.
    fn receives(&self) -> usize {
        RECEIVE_DEPTH as usize * usize::from(self.plan.queue_pairs)
    }

    fn post_receive(&mut self, slot: usize) -> io::Result<()> {
        let (Some(mr), Some(pair)) = (self.mr, self.pairs.get(slot / RECEIVE_DEPTH as usize))
        else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        // SAFETY: the slot lies in the region (there are RECEIVE_DEPTH for each pair) and is not
        // posted, the overflow lies behind the slots and is never read; the structs are read during
        // the call; every driver with queue pairs has the function.
        check(unsafe {
            let start = self.memory.start.as_ptr();
            let mut pieces = [
                (slot * RECEIVE_BYTES, RECEIVE_LENGTH),
                (self.receives() * RECEIVE_BYTES, OVERFLOW_LENGTH),
            ]
            .map(|(at, length)| ibv_sge {
                addr: start.add(at) as u64,
                length,
                lkey: mr.as_ref().lkey,
            });
            let mut request = ibv_recv_wr {
                wr_id: RECEIVE | slot as u64,
                next: null_mut(),
                sg_list: pieces.as_mut_ptr(),
                num_sge: 2,
            };
            ibv_post_recv(pair.as_ptr(), &raw mut request, &mut null_mut())
        })
    }

    /// What addresses are to be made of.
    #[must_use]
    pub fn domain(&self) -> Arc<Domain> {
        Arc::clone(&self.domain)
    }

    /// So many bytes follow each packet from now on, [`OVERFLOW_BYTES`] at most.
    pub fn set_padding(&mut self, bytes: u16) {
        self.padding = u32::from(bytes).min(OVERFLOW_LENGTH);
    }

    /// Posts a packet from one of [`SEND_DEPTH`] buffers, which is the device's until it has left.
    ///
    /// # Errors
    /// The queue pair has failed, or there is no such buffer.
    pub fn send(
        &mut self,
        slot: usize,
        bytes: &[u8; SIZE],
        address: &Address,
        flow_label: u32,
        (qpn, qkey): (u32, u32),
    ) -> io::Result<()> {
        let pair = (flow_label as usize)
            .checked_rem(self.pairs.len())
            .and_then(|index| self.pairs.get(index));
        let (Some(mr), Some(pair)) = (self.mr, pair) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if slot >= SEND_DEPTH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let overflow = self.receives() * RECEIVE_BYTES;
        let own = overflow + OVERFLOW_BYTES + slot * SIZE;
        // SAFETY: the slot lies in the region behind the overflow, of which at most all is sent; the
        // structs are read during the call.
        check(unsafe {
            let start = self.memory.start.as_ptr();
            start
                .add(own)
                .copy_from_nonoverlapping(bytes.as_ptr(), SIZE);
            let mut pieces =
                [(own, PACKET_LENGTH), (overflow, self.padding)].map(|(at, length)| ibv_sge {
                    addr: start.add(at) as u64,
                    length,
                    lkey: mr.as_ref().lkey,
                });
            let mut request: ibv_send_wr = MaybeUninit::zeroed().assume_init();
            request.wr_id = slot as u64;
            request.sg_list = pieces.as_mut_ptr();
            request.num_sge = if self.padding == 0 { 1 } else { 2 };
            request.opcode = ibv_wr_opcode::IBV_WR_SEND;
            request.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.wr.ud = ud_t {
                ah: address.handle.as_ptr(),
                remote_qpn: qpn,
                remote_qkey: qkey,
            };
            ibv_post_send(pair.as_ptr(), &raw mut request, &mut null_mut())
        })
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // SAFETY: each was made by the library and is destroyed once, users before what they use.
        // What cannot be destroyed is the kernel's to clean up.
        unsafe {
            let mut reachable = false;
            for pair in self.pairs.drain(..) {
                reachable |= ibv_destroy_qp(pair.as_ptr()) != 0;
            }
            if let Some(cq) = self.cq.take() {
                ibv_destroy_cq(cq.plain());
            }
            if let Some(mr) = self.mr.take() {
                reachable |= ibv_dereg_mr(mr.as_ptr()) != 0;
            }
            self.memory.leak = reachable;
            if let Some(channel) = self.channel.take() {
                ibv_destroy_comp_channel(channel.as_ptr());
            }
        }
    }
}
