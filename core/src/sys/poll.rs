//! Waiting for fds: `ppoll` for a thread that sleeps, `epoll` for a loop that wants one fd for many.

use super::clock::timespec;
use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// How long a thread sleeps that may not poll as many fds as it has to (`RLIMIT_NOFILE` was lowered).
const BLIND: Duration = Duration::from_millis(1);

/// Sleeps until one of `fds` is readable, or whatever else its entry asks for, at most for `timeout` (`None`: without end). A signal ends it early.
pub fn wait_readable(fds: &mut [libc::pollfd], timeout: Option<Duration>) {
    let ts = timeout.map(timespec);
    let ts: *const libc::timespec = ts.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `fds` are valid pollfds, `ts` is null or a live timespec; the signal mask is left as it is.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ts, ptr::null()) };
    if n < 0 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
        // The caller looks again; without a rest it would do nothing else.
        std::thread::sleep(timeout.map_or(BLIND, |timeout| timeout.min(BLIND)));
    }
}

/// An entry for [`wait_readable`].
#[must_use]
pub fn readable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// As [`readable`], for room to write.
#[must_use]
pub fn writable(fd: RawFd) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }
}

/// Something to read, or an error that a read would show.
#[must_use]
pub fn is_ready(entry: &libc::pollfd) -> bool {
    entry.revents != 0
}

/// A second fd for the same open file.
///
/// # Errors
/// `Os` with `EMFILE`.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|e| Error::os("fcntl(F_DUPFD_CLOEXEC)", e.raw_os_error().unwrap_or(0)))
}

/// The same file under a number above 2. A process that has closed its standard streams gets their numbers for the next files, and a child
/// would take such a file for its own output.
///
/// # Errors
/// `Os` with `EMFILE`.
pub(super) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    // `F_DUPFD_CLOEXEC` of std begins at 3.
    if fd.as_raw_fd() > 2 { Ok(fd) } else { duplicate(fd.as_fd()) }
}

/// An fd that is readable from some time on.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    /// It was set, and may be readable.
    runs: bool,
}

impl Timer {
    /// One that does not run.
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
        Ok(Timer { fd: above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })?, runs: false })
    }

    /// Readable after `delay`, and not before; `None`: not at all.
    pub fn set(&mut self, delay: Option<Duration>) {
        if delay.is_none() && !self.runs {
            return;
        }
        self.runs = delay.is_some();
        let zero = timespec(Duration::ZERO);
        // A delay of nothing would stop the timer.
        let it_value = delay.map_or(zero, |d| timespec(d.max(Duration::from_nanos(1))));
        let setting = libc::itimerspec { it_interval: zero, it_value };
        // SAFETY: the fd is a timer, `setting` is valid; the old one is not asked for. It cannot fail then.
        unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &raw const setting, ptr::null_mut()) };
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One fd that is readable while any of its members is. A member leaves when the last copy of its fd is closed, and a forked child has one:
/// what is closed while the epoll goes on is removed first.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Without members.
    ///
    /// # Errors
    /// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
    pub fn new() -> Result<Epoll> {
        // SAFETY: a plain call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("epoll_create1"));
        }
        // SAFETY: the kernel just gave us this fd, nobody else owns it.
        Ok(Epoll(above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })?))
    }

    /// Adds a member.
    ///
    /// # Errors
    /// `Os` with `ENOMEM` or `ENOSPC`.
    pub fn add(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, 0)
    }

    /// Adds a member that is told of as `token` whenever it is readable.
    ///
    /// # Errors
    /// `Os` with `ENOMEM` or `ENOSPC`.
    pub fn add_tagged(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, token)
    }

    /// Adds a member that tells when it has room to be written.
    ///
    /// # Errors
    /// `Os` with `ENOMEM` or `ENOSPC`.
    pub fn add_writable(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLOUT as u32, 0)
    }

    /// Adds a member that tells nothing but that its other end is gone.
    ///
    /// # Errors
    /// `Os` with `ENOMEM` or `ENOSPC`.
    pub fn add_hang_up(&self, fd: BorrowedFd<'_>) -> Result<()> {
        // The kernel tells EPOLLHUP and EPOLLERR unasked.
        self.control(libc::EPOLL_CTL_ADD, fd, 0, 0)
    }

    /// Adds a member that says nothing until [`rearm`](Self::rearm).
    ///
    /// # Errors
    /// `Os` with `ENOMEM` or `ENOSPC`.
    pub fn add_silent(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, 0, token)
    }

    /// The member is told of once more when it is readable.
    ///
    /// # Errors
    /// `Os` with `ENOMEM`.
    pub fn rearm(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN as u32 | libc::EPOLLONESHOT as u32, token)
    }

    /// Whether a member is told of when it has room to be written as well, and not only when it is readable.
    ///
    /// # Errors
    /// `Os` with `ENOMEM`.
    pub fn want_room(&self, fd: BorrowedFd<'_>, token: u64, room: bool) -> Result<()> {
        let room = if room { libc::EPOLLOUT as u32 } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN as u32 | room, token)
    }

    /// Whether a member is told of when it is readable, each time, or not at all.
    ///
    /// # Errors
    /// `Os` with `ENOMEM`.
    pub fn hear(&self, fd: BorrowedFd<'_>, token: u64, hear: bool) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, if hear { libc::EPOLLIN as u32 } else { 0 }, token)
    }

    /// Removes a member.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // Fails only for what is no member.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    fn control(&self, what: libc::c_int, fd: BorrowedFd<'_>, events: u32, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` is valid for the call.
        if unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, fd.as_raw_fd(), &raw mut event) } != 0 {
            return Err(Error::last_os("epoll_ctl"));
        }
        Ok(())
    }

    /// Sleeps until members are ready and appends their tokens, as many as `ready` has room for. A signal ends it early.
    pub fn wait(&self, ready: &mut Vec<u64>) {
        self.wait_for(ready, None);
    }

    /// As [`wait`](Self::wait), at most for `timeout`, rounded up to whole milliseconds (`None`: without end).
    pub fn wait_for(&self, ready: &mut Vec<u64>, timeout: Option<Duration>) {
        let ms = timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let room = events.len().min((ready.capacity() - ready.len()).max(1));
        // SAFETY: `events` has `room` entries.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room as libc::c_int, ms) };
        ready.extend(events.iter().take(usize::try_from(n).unwrap_or(0)).map(|event| event.u64));
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
