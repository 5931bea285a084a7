//! Counts of what could not be recorded: nothing is dropped silently.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use weir_ebpf_abi::lost;

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(lost::COUNT, 0);

/// Counts one record lost; `cause` is an index of [`lost`].
pub fn count(cause: u32) {
    if let Some(counter) = LOST.get_ptr_mut(cause) {
        // SAFETY: the pointer is this CPU's element of a live map.
        unsafe { *counter += 1 };
    }
}
