//! File descriptors that a child process gets under numbers of the caller's choice.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Numbers from here on are nobody's target, so that one fd is not written over another that is still to be passed.
const ABOVE: RawFd = 256;

/// Makes `fds` the numbers `first`, `first + 1`, … of the child. The command keeps duplicates of its own.
///
/// # Errors
/// When a duplicate cannot be made.
pub fn inherit(command: &mut Command, fds: &[BorrowedFd<'_>], first: RawFd) -> std::io::Result<()> {
    let mut kept = Vec::new();
    for fd in fds {
        // SAFETY: a plain call on an fd that the caller holds.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) };
        if copy < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: new and ours.
        kept.push(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    let place = move || {
        for (fd, number) in kept.iter().zip(first..) {
            // SAFETY: a plain call; the number is the child's to overwrite.
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `place` only makes system calls.
    unsafe { command.pre_exec(place) };
    Ok(())
}
