//! A doorbell that a poll loop can wait for.

use crate::error::{Error, Result};
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
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// An eventfd that another process made. The fd is duplicated; the caller keeps its own.
    ///
    /// # Errors
    /// `Invalid` when `fd` is no eventfd, `Os` when `/proc` or an fd is missing.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<EventFd> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_err(|e| Error::os("readlink(/proc/self/fd)", e.raw_os_error().unwrap_or(0)).with("fd", fd.as_raw_fd()))?;
        if name.as_os_str() != "anon_inode:[eventfd]" {
            return Err(Error::invalid("fd is not an eventfd").with("fd", fd.as_raw_fd()).with("file", name.display()));
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

    /// Makes the fd unreadable until the next signal; true if it was readable.
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: `count` is 8 writable bytes.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) == 8 }
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

    #[test]
    fn does_not_survive_exec() {
        let e = EventFd::new().expect("eventfd");
        // SAFETY: a plain query.
        let flags = unsafe { libc::fcntl(e.fd().as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}
