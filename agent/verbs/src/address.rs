//! Addresses: where datagrams go, and on which path.

#![expect(
    unsafe_code,
    reason = "libibverbs is C; its calls are in this file, completion.rs, device.rs and queues.rs"
)]

use crate::device::{Device, last_error};
use crate::ways::Route;
use rdma_sys::*;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

/// What addresses and queue pairs belong to.
#[derive(Debug)]
pub struct Domain {
    pub(crate) pd: NonNull<ibv_pd>,
    pub(crate) device: Arc<Device>,
}

// SAFETY: libibverbs lets any thread use a protection domain.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// # Errors
    /// The device has no more of them.
    pub fn new(device: &Arc<Device>) -> io::Result<Arc<Domain>> {
        // SAFETY: the context is open as long as the device is.
        let pd = NonNull::new(unsafe { ibv_alloc_pd(device.context()) }).ok_or_else(last_error)?;
        Ok(Arc::new(Domain {
            pd,
            device: Arc::clone(device),
        }))
    }

    /// The way to a port. May wait for a neighbour's address, up to some seconds.
    ///
    /// # Errors
    /// There is none.
    pub fn address(
        self: &Arc<Self>,
        port: u8,
        sgid_index: u8,
        route: Route,
    ) -> io::Result<Address> {
        // SAFETY: zero is valid for every field of the struct.
        let mut attr: ibv_ah_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attr.grh.dgid = ibv_gid {
            raw: route.gid.octets(),
        };
        attr.grh.flow_label = route.flow_label;
        attr.grh.sgid_index = sgid_index;
        attr.grh.hop_limit = route.hop_limit;
        attr.is_global = 1;
        attr.port_num = port;
        // SAFETY: the domain is ours; the struct is read during the call.
        let handle = unsafe { ibv_create_ah(self.pd.as_ptr(), &raw mut attr) };
        Ok(Address {
            handle: NonNull::new(handle).ok_or_else(last_error)?,
            _domain: Arc::clone(self),
        })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; all that was made of it holds an Arc of it.
        unsafe { ibv_dealloc_pd(self.pd.as_ptr()) };
    }
}

/// An address handle; destroyed when dropped, which is to be when no packet waits to leave by it.
#[derive(Debug)]
pub struct Address {
    pub(crate) handle: NonNull<ibv_ah>,
    _domain: Arc<Domain>,
}

// SAFETY: libibverbs lets any thread use an address handle.
unsafe impl Send for Address {}

impl Drop for Address {
    fn drop(&mut self) {
        // SAFETY: made by ibv_create_ah, destroyed once, before its domain.
        unsafe { ibv_destroy_ah(self.handle.as_ptr()) };
    }
}
