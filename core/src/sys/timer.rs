//! Time that a poll loop can wait for.

use super::clock::timespec;
use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A clock that makes an fd readable.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A clock that is not set.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn new() -> Result<Timer> {
        // SAFETY: a plain call.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::last_os("timerfd_create"));
        }
        // SAFETY: the kernel just gave us this fd, nobody else owns it.
        Ok(Timer(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Readable after `wait`, at once if that is over; `None`: not until it is set again.
    pub fn set(&self, wait: Option<Duration>) {
        // 0 would be "never".
        let value = timespec(wait.map_or(Duration::ZERO, |d| d.max(Duration::from_nanos(1))));
        let spec = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
        // SAFETY: `spec` is valid; fails only for what is no time.
        unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll;
    use super::*;

    #[test]
    fn a_timer_is_readable_when_it_is_over() {
        let timer = Timer::new().expect("timer");
        let ready = |wait| {
            let mut fds = [poll::readable(timer.0.as_raw_fd())];
            poll::wait_readable(&mut fds, wait);
            poll::is_ready(&fds[0])
        };
        timer.set(Some(Duration::ZERO));
        assert!(ready(None));
        timer.set(None);
        assert!(!ready(Some(Duration::ZERO)));
    }
}
