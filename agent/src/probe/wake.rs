//! How the main loop wakes a thread that waits for packets, and how the thread learns of its end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The end that wakes; when it is dropped the thread ends.
#[derive(Debug)]
pub struct Waker(UnixStream);

/// The thread's end.
#[derive(Debug)]
pub struct Sleeper(UnixStream);

/// # Errors
/// No descriptors are left.
pub fn pair() -> std::io::Result<(Waker, Sleeper)> {
    let (waker, sleeper) = UnixStream::pair()?;
    waker.set_nonblocking(true)?;
    sleeper.set_nonblocking(true)?;
    Ok((Waker(waker), Sleeper(sleeper)))
}

impl Waker {
    /// A second one; the thread ends when both are dropped.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn again(&self) -> std::io::Result<Waker> {
        Ok(Waker(self.0.try_clone()?))
    }

    pub fn wake(&self) {
        // Full: it has been woken and has not looked yet.
        if let Err(error) = (&self.0).write(&[1]) {
            tracing::trace!("a thread is awake or gone: {error}");
        }
    }
}

impl Sleeper {
    /// Whether to go on.
    pub fn goes_on(&mut self) -> bool {
        let mut bytes = [0; 64];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
