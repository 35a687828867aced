//! Processes that are not our children, seen by pidfd.

use super::poll;
use super::probe::{Call, has};
use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// What [`open`] found.
#[derive(Debug)]
pub enum Opened {
    /// The process, which may have ended: [`has_ended`].
    Process(OwnedFd),
    /// There is no process of that number.
    Gone,
    /// A policy or an old kernel denies pidfds.
    Denied,
}

/// Opens a process by its number in this pid namespace. The caller has to know, once it has the fd, that the number was not
/// another process's by then.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn open(pid: u32) -> Result<Opened> {
    if !has(Call::PidfdOpen) || pid == 0 || pid > i32::MAX as u32 {
        return Ok(Opened::Denied);
    }
    // SAFETY: a plain call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd >= 0 {
        // SAFETY: the kernel just gave us this fd, close-on-exec by definition.
        return Ok(Opened::Process(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }));
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(Error::last_os("pidfd_open").with("pid", pid)),
        Some(libc::ESRCH) => Ok(Opened::Gone),
        _ => Ok(Opened::Denied),
    }
}

/// The process behind a pidfd has ended, all its threads with it.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut entry = [poll::readable(pidfd.as_raw_fd())];
    poll::wait_readable(&mut entry, Some(Duration::ZERO));
    poll::is_ready(&entry[0])
}

/// The status of a process that was reaped, as `wait` gives it; `None` while it was not, and before Linux 6.15.
#[must_use]
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: plain data, all-zero is valid.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: `info` is as long as the request's number says; on another fd or kernel the call fails.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) } == 0;
    (done && info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0).then_some(info.exit_code)
}

/// The low half of this process's pid namespace's inode; 0 where `/proc` does not say.
#[must_use]
pub fn namespace() -> u32 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino() as u32)
}
