//! Memory that a device reads and writes.

#![expect(
    unsafe_code,
    reason = "references must not reach what a device writes to"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;

/// Memory that the device reads and writes; only ever reached by pointer.
pub struct Memory {
    pub start: NonNull<u8>,
    layout: Layout,
    /// The device may still write to it.
    pub leak: bool,
}

impl Memory {
    /// Zeroed, from the start of a page.
    ///
    /// # Errors
    /// More bytes than there are addresses.
    pub fn new(bytes: usize) -> io::Result<Memory> {
        let layout = Layout::from_size_align(bytes.max(1), 4096).map_err(io::Error::other)?;
        // SAFETY: the layout is not empty.
        match NonNull::new(unsafe { alloc_zeroed(layout) }) {
            Some(start) => Ok(Memory {
                start,
                layout,
                leak: false,
            }),
            None => handle_alloc_error(layout),
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.leak {
            return;
        }
        // SAFETY: allocated with this layout; freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
