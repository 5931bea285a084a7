//! What a completion queue tells, with the device's times or without.

#![expect(
    unsafe_code,
    reason = "libibverbs is C; its calls are in this file, queues.rs, device.rs and address.rs"
)]

use crate::device::{check, last_error};
use rdma_sys::*;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Tells completions of receives from those of sends.
pub const RECEIVE: u64 = 1 << 32;
pub const POLL_AT_ONCE: usize = 32;
// The same as the library's types have it.
const POLL_AT_ONCE_C: i32 = 32;
const _: () = assert!(POLL_AT_ONCE_C as usize == POLL_AT_ONCE);

#[derive(Debug, Clone, Copy)]
pub enum CompletionQueue {
    Plain(NonNull<ibv_cq>),
    Stamped(NonNull<ibv_cq_ex>),
}

impl CompletionQueue {
    pub fn plain(self) -> *mut ibv_cq {
        match self {
            CompletionQueue::Plain(cq) => cq.as_ptr(),
            // The extended struct begins with the plain one.
            CompletionQueue::Stamped(cq) => cq.as_ptr().cast(),
        }
    }

    /// Adds up to [`POLL_AT_ONCE`] completions.
    ///
    /// # Errors
    /// The queue has failed.
    pub fn poll(self, out: &mut Vec<Raw>) -> io::Result<()> {
        match self {
            CompletionQueue::Plain(cq) => poll_plain(cq, out),
            CompletionQueue::Stamped(cq) => poll_stamped(cq, out),
        }
    }
}

/// One word of a completion, before its buffer is looked at.
pub struct Raw {
    pub id: u64,
    pub ok: bool,
    pub bytes: u32,
    pub from_qpn: u32,
    pub at: u64,
}

fn poll_plain(cq: NonNull<ibv_cq>, out: &mut Vec<Raw>) -> io::Result<()> {
    let mut completions: [MaybeUninit<ibv_wc>; POLL_AT_ONCE] =
        [const { MaybeUninit::uninit() }; POLL_AT_ONCE];
    // SAFETY: there is room for as many as are asked for.
    let count =
        unsafe { ibv_poll_cq(cq.as_ptr(), POLL_AT_ONCE_C, completions.as_mut_ptr().cast()) };
    let count = usize::try_from(count).map_err(|_| last_error())?;
    for completion in completions.iter().take(count) {
        // SAFETY: the library has written `count` of them.
        let completion = unsafe { completion.assume_init_ref() };
        out.push(Raw {
            id: completion.wr_id,
            ok: completion.status == ibv_wc_status::IBV_WC_SUCCESS,
            bytes: completion.byte_len,
            from_qpn: completion.src_qp,
            at: 0,
        });
    }
    Ok(())
}

fn poll_stamped(cq: NonNull<ibv_cq_ex>, out: &mut Vec<Raw>) -> io::Result<()> {
    let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
    let cq = cq.as_ptr();
    // SAFETY: the queue is ours, and was made with the fields that are read; they are read between
    // the start and the end of the poll, and those of receives only where it succeeded.
    unsafe {
        let mut result = ibv_start_poll(cq, &raw mut attr);
        if result == libc::ENOENT {
            return Ok(());
        }
        check(result)?;
        loop {
            let (id, ok) = ((*cq).wr_id, (*cq).status == ibv_wc_status::IBV_WC_SUCCESS);
            let received = ok && id & RECEIVE != 0;
            out.push(Raw {
                id,
                ok,
                bytes: if received {
                    ibv_wc_read_byte_len(cq)
                } else {
                    0
                },
                from_qpn: if received { ibv_wc_read_src_qp(cq) } else { 0 },
                at: if ok { ibv_wc_read_completion_ts(cq) } else { 0 },
            });
            if out.len() >= POLL_AT_ONCE {
                break;
            }
            result = ibv_next_poll(cq);
            if result != 0 {
                break;
            }
        }
        ibv_end_poll(cq);
        if result == libc::ENOENT {
            Ok(())
        } else {
            check(result)
        }
    }
}
