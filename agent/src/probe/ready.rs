//! Which of many sockets have something, without asking each of them.

#![expect(unsafe_code, reason = "std has no epoll")]

use super::socket::Socket;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Sockets that are told of at once; the others are the next time.
const BATCH: usize = 64;
const BATCH_C: i32 = 64;
const _: () = assert!(BATCH_C as usize == BATCH);

/// A socket that has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// As it was added.
    pub index: usize,
    /// There is a packet.
    pub packet: bool,
    /// There is something on the error queue, or an error.
    pub error: bool,
}

/// The set of sockets; itself readable while one of them has something.
#[derive(Debug)]
pub struct Set(OwnedFd);

impl Set {
    /// Numbers the sockets from 0.
    ///
    /// # Errors
    /// No descriptor, or no watch (fs.epoll.max_user_watches), is left.
    pub fn of<'a>(sockets: impl Iterator<Item = &'a Socket>) -> io::Result<Set> {
        // SAFETY: makes a descriptor that is owned from here on.
        let set = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Set(OwnedFd::from_raw_fd(fd))
        };
        for (index, socket) in (0..).zip(sockets) {
            let mut event = libc::epoll_event {
                events: u32::try_from(libc::EPOLLIN).unwrap_or(0),
                u64: index,
            };
            let (own, fd) = (set.0.as_raw_fd(), socket.as_fd().as_raw_fd());
            // SAFETY: both are open; the event is read during the call.
            if unsafe { libc::epoll_ctl(own, libc::EPOLL_CTL_ADD, fd, &raw mut event) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(set)
    }

    /// Those that have something now; waits for nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self) -> io::Result<Vec<Ready>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: there is room for as many as are asked for.
        let count =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), BATCH_C, 0) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            let interrupted = error.kind() == io::ErrorKind::Interrupted;
            return if interrupted {
                Ok(Vec::new())
            } else {
                Err(error)
            };
        };
        let ready = events.iter().take(count).map(|event| {
            let (events, index) = (event.events, event.u64);
            let has = |flag: i32| u32::try_from(flag).is_ok_and(|flag| events & flag != 0);
            Ready {
                index: usize::try_from(index).unwrap_or(usize::MAX),
                packet: has(libc::EPOLLIN),
                error: has(libc::EPOLLERR),
            }
        });
        Ok(ready.collect())
    }
}

impl AsFd for Set {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::socket::{self, BUFFER_BYTES};
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    #[test]
    fn only_those_that_have_something_are_told_until_it_is_taken() {
        let bind = |errors| Socket::bind((Ipv4Addr::LOCALHOST, 0).into(), errors).unwrap();
        let sockets = [bind(false), bind(false), bind(true)];
        let set = Set::of(sockets.iter()).unwrap();
        assert_eq!(set.take().unwrap(), []);
        sockets[2].send(&[1; 64], sockets[1].local, None).unwrap();
        // The kernel begins to stamp a moment after the first socket asked for it, so there may be
        // no stamp on the error queue yet.
        let deadline = Instant::now() + Duration::from_secs(20);
        let packet = Ready {
            index: 1,
            packet: true,
            error: false,
        };
        while !set.take().unwrap().contains(&packet) {
            assert!(Instant::now() < deadline);
            socket::poll(&[set.as_fd()], Some(Duration::from_millis(50))).unwrap();
        }
        assert!(set.take().unwrap().contains(&packet), "it is still there");
        let mut buffer = [0; BUFFER_BYTES];
        assert!(sockets[1].receive(&mut buffer, false).unwrap().is_some());
        assert!(set.take().unwrap().iter().all(|ready| ready.index == 2));
        while let Ok(Some(_)) = sockets[2].receive(&mut buffer, true) {}
    }
}
