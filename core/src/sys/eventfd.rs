//! A doorbell that a poll loop can wait for.

use crate::error::{Error, Result};
use crate::sys::poll;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A counter behind an fd that is readable while the counter is not 0. Non-blocking and close-on-exec.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A counter of 0.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn new() -> Result<EventFd> {
        // SAFETY: a plain call.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::last_os("eventfd"));
        }
        // SAFETY: the kernel just gave us this fd, nobody else owns it.
        Ok(EventFd(poll::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })?))
    }

    /// An eventfd that another process made. The fd is duplicated; the caller keeps its own.
    ///
    /// # Errors
    /// `Invalid` when `fd` is no eventfd, or (where the kernel tells, from Linux 6.6 on) one with `EFD_SEMAPHORE`, which a single write makes
    /// readable any number of times; `Os` when `/proc` or an fd is missing.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<EventFd> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_err(|e| Error::os("readlink(/proc/self/fd)", e.raw_os_error().unwrap_or(0)).with("fd", fd.as_raw_fd()))?;
        if name.as_os_str() != "anon_inode:[eventfd]" {
            return Err(Error::invalid("fd is not an eventfd").with("fd", fd.as_raw_fd()).with("file", name.display()));
        }
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        if info.lines().any(|line| line.split_whitespace().eq(["eventfd-semaphore:", "1"])) {
            return Err(Error::invalid("eventfd is a semaphore").with("fd", fd.as_raw_fd()));
        }
        let own = fd.try_clone_to_owned().map_err(|e| Error::os("fcntl(F_DUPFD_CLOEXEC)", e.raw_os_error().unwrap_or(0)))?;
        Ok(EventFd(own))
    }

    /// The fd to poll for reading.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Makes the fd readable. Callable from any thread and from a signal handler.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` is 8 readable bytes. The only possible failure is EAGAIN at a counter of 2^64-2, where the fd is
        // readable already, or EINTR, which a non-blocking eventfd does not give.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), 8) };
    }

    /// As [`signal`](Self::signal), for an eventfd that other processes have: `O_NONBLOCK` belongs to the open file, so one of them may have
    /// cleared it, and a write to a full counter would wait.
    pub fn signal_shared(&self) {
        let mut room = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd; 0 does not wait.
        match unsafe { libc::poll(&raw mut room, 1, 0) } {
            0 => {} // full, so it is readable
            1 => self.signal(),
            // A limit of no fds at all (`RLIMIT_NOFILE`) forbids to poll one.
            _ => {
                // SAFETY: a plain query.
                if unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETFL) } & libc::O_NONBLOCK != 0 {
                    self.signal();
                }
            }
        }
    }

    /// Makes the fd unreadable until the next signal; true if it was readable. Never waits, though another process may have cleared
    /// `O_NONBLOCK` of the open file.
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: 8 };
        // SAFETY: one valid part of 8 writable bytes; -1 is the position of a file that has none.
        let n = unsafe { libc::preadv2(self.0.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
        if n >= 0 || !matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM)) {
            return n == 8;
        }
        // Before Linux 5.8, or below a filter of system calls.
        let mut some = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, 0 does not wait; `count` is 8 writable bytes.
        unsafe { libc::poll(&raw mut some, 1, 0) == 1 && libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) == 8 }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(e: &EventFd) -> bool {
        let mut p = libc::pollfd { fd: e.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut p, 1, 0) == 1 }
    }

    #[test]
    fn is_readable_from_signal_to_clear() {
        let e = EventFd::new().expect("eventfd");
        assert!(!readable(&e));
        assert!(!e.clear());
        e.signal();
        e.signal();
        assert!(readable(&e));
        assert!(readable(&e), "level-triggered");
        assert!(e.clear());
        assert!(!readable(&e));
    }

    fn made(flags: libc::c_int) -> OwnedFd {
        // SAFETY: a plain call; the kernel just gave us the fd, nobody else owns it.
        unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, flags)) }
    }

    #[test]
    fn neither_side_waits_when_another_process_made_the_file_blocking() {
        let peers = made(0);
        let e = EventFd::attach(peers.as_fd()).expect("an eventfd");
        assert!(!e.clear(), "it would wait for ever");
        let full = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: 8 readable bytes.
        assert_eq!(unsafe { libc::write(peers.as_raw_fd(), full.as_ptr().cast(), 8) }, 8);
        e.signal_shared();
        assert!(e.clear() && !e.clear());
    }

    #[test]
    fn a_semaphore_is_no_doorbell_where_the_kernel_tells() {
        let semaphore = made(libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", semaphore.as_raw_fd())).expect("fdinfo");
        let told = info.contains("eventfd-semaphore:");
        assert_eq!(EventFd::attach(semaphore.as_fd()).is_err(), told);
        EventFd::attach(made(libc::EFD_NONBLOCK).as_fd()).expect("a plain one");
    }

    #[test]
    fn does_not_survive_exec() {
        let e = EventFd::new().expect("eventfd");
        // SAFETY: a plain query.
        let flags = unsafe { libc::fcntl(e.fd().as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}
