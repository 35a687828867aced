//! Processes that are not our children, seen by pidfd.

use super::probe::{Call, has};
use crate::error::{Error, Result};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// Opens a process by its number in this pid namespace. `None` when there is no such process, or where a policy denies
/// pidfds. The caller has to know, once it has the fd, that the number was not another process's by then.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn open(pid: u32) -> Result<Option<OwnedFd>> {
    if !has(Call::PidfdOpen) || pid == 0 || pid > i32::MAX as u32 {
        return Ok(None);
    }
    // SAFETY: a plain call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd >= 0 {
        // SAFETY: the kernel just gave us this fd, close-on-exec by definition.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }));
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Err(Error::last_os("pidfd_open").with("pid", pid)),
        _ => Ok(None),
    }
}

/// The low half of this process's pid namespace's inode; 0 where `/proc` does not say.
#[must_use]
pub fn namespace() -> u32 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino() as u32)
}
