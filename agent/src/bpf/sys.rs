//! The few system calls that neither std nor aya wraps.
#![expect(unsafe_code, reason = "direct calls of libc, each with its proof")]

use std::{io, os::fd::AsRawFd as _, os::unix::fs::MetadataExt as _, time::Duration};

/// Reads the clock that the programs stamp records with (`bpf_ktime_get_ns`).
pub fn monotonic_ns() -> u64 {
    let time = clock(libc::CLOCK_MONOTONIC);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since the machine booted, sleep included: the clock of a process's start time.
pub fn boot_time() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

/// Reads a clock that always exists: monotonic, since boot, CPU time of the thread.
pub fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing; these clocks always exist.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// Returns the inode number of the calling thread's network namespace.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn netns_inum() -> io::Result<u32> {
    let inode = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    // The kernel numbers namespaces with 32 bits.
    u32::try_from(inode).map_err(io::Error::other)
}

/// Returns the kernel's cookie of the calling thread's network namespace.
///
/// # Errors
///
/// The kernel is older than 5.14, or no socket can be made.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| {
        // A namespace whose loopback is down still binds the wildcard.
        std::net::UdpSocket::bind("0.0.0.0:0")
    })?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the socket is open, `cookie` has room for `length` bytes.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives freed heap back to the system.
///
/// Reading the kernel's BTF takes some 50 MB for a moment, once; without this
/// they would count as the agent's for as long as it runs.
pub fn release_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, touches only the allocator's free lists.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Reads a record out of bytes that a map or ring buffer gave; `None` if there are too few.
pub fn read_record<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: any bytes are a `T` (that is what Pod says), there are enough
    // of them, and no alignment is assumed.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
