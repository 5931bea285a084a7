//! Gives up what root may do and this program need not: a vendor's library runs in it.
//!
//! Devices are opened by their owner, user 0, whose files they are: that takes no capability. Pinned
//! memory is the one thing that did (CAP_IPC_LOCK), so its limit is raised first.

#![expect(unsafe_code, reason = "prctl, capset and setrlimit")]

use std::io;

/// Pinned memory of all ports: some 100 KiB each with the queues of its driver, of at most 64 devices.
const LOCKED_BYTES: libc::rlim_t = 64 << 20;
/// Version 3 of capset's header, _LINUX_CAPABILITY_VERSION_3.
const VERSION: u32 = 0x2008_0522;
/// Numbers of capabilities are below it.
const CAPABILITIES: libc::c_ulong = 64;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops every capability of this thread and of all that it will start, for good. To be called before
/// there is another thread.
///
/// # Errors
/// The kernel refuses: the program must not go on with rights that it should not have.
pub fn drop_all() -> io::Result<()> {
    raise_locked_memory();
    // SAFETY: takes numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    for capability in 0..CAPABILITIES {
        // Ends at the last one that the kernel knows. Who has no CAP_SETPCAP cannot gain by the
        // bounding set either: nothing that is started gets new privileges.
        // SAFETY: takes numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let none = [Data::default(), Data::default()];
    // Ambient capabilities go with the permitted ones.
    // SAFETY: the header and, for version 3, two structs of data, which are only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check(i32::try_from(result).unwrap_or(-1))
}

/// As far as this process may; what is not enough is said when a port is opened.
fn raise_locked_memory() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct is written by the first call and read by the others.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) != 0
            || limit.rlim_cur >= LOCKED_BYTES
        {
            return;
        }
        let hard = limit.rlim_max;
        limit.rlim_cur = LOCKED_BYTES;
        limit.rlim_max = hard.max(LOCKED_BYTES);
        if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) != 0 {
            limit.rlim_cur = hard;
            limit.rlim_max = hard;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
