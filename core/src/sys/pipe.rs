//! Pipes that a program prints to, and that a poll loop reads.

use super::poll;
use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The end to read, non-blocking, and the end to write, which blocks as programs expect. Both close-on-exec.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn open() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(Error::last_os("pipe2"));
    }
    // SAFETY: the kernel just gave us both, nobody else owns them.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let (read, write) = (poll::above_stdio(read)?, poll::above_stdio(write)?);
    // SAFETY: a plain call; each end is an open file of its own.
    unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    Ok((read, write))
}

/// Takes what is there: `Some(0)` at the end, `None` when there is nothing now.
#[must_use]
pub fn read(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Option<usize> {
    loop {
        // SAFETY: `bytes` is writable.
        let n = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        if let Ok(n) = usize::try_from(n) {
            return Some(n);
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return None,
            // Nothing more will come of it.
            _ => return Some(0),
        }
    }
}
