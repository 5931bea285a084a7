//! The few system calls that the standard library lacks.

#![expect(unsafe_code, reason = "libc")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// CLOCK_MONOTONIC_RAW: NTP does not bend it.
#[must_use]
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the struct; the clock is there since Linux 2.6.28.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Waits until one of them is readable, or for `timeout`; says which are, or have failed.
///
/// # Errors
/// The kernel refuses. An interruption is none.
pub fn wait(fds: &[RawFd], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let time = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    // SAFETY: the kernel writes `revents` of that many entries.
    let ready = unsafe {
        libc::ppoll(
            polled.as_mut_ptr(),
            count,
            &raw const time,
            std::ptr::null(),
        )
    };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.iter().map(|entry| entry.revents != 0).collect())
}

/// Wakes a thread that waits in [`wait`].
#[derive(Debug, Clone)]
pub struct Bell(Arc<File>);

impl Bell {
    /// # Errors
    /// No descriptor can be had.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: makes a descriptor that is owned from here on.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Bell(Arc::new(File::from_raw_fd(fd))))
        }
    }

    /// Readable once it rang.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn ring(&self) {
        // Full only if nobody has listened 2^64 times.
        drop((&*self.0).write(&1_u64.to_ne_bytes()));
    }

    /// Not readable any more, until it rings again.
    pub fn silence(&self) {
        drop((&*self.0).read(&mut [0; 8]));
    }
}

/// Ends the process now: a vendor's library that hangs must not keep it at its exit.
pub fn end(code: i32) -> ! {
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(code) }
}
