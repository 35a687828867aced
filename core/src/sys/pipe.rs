//! Pipes that a program prints to, and that a poll loop reads.

use super::poll;
use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Lets the output `fd` lead nowhere, if it is a pipe or a socket that nobody reads any more: who prints to it goes on, in place of being ended by it.
pub fn detach_broken(fd: RawFd) {
    let mut entry = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: one valid entry; it does not wait.
    if unsafe { libc::poll(&raw mut entry, 1, 0) } != 1 || entry.revents & (libc::POLLERR | libc::POLLHUP) == 0 {
        return;
    }
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        // SAFETY: both are open; the number stays the program's, as does what it is for.
        unsafe { libc::dup2(null.as_raw_fd(), fd) };
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn an_output_that_nobody_reads_leads_nowhere() {
        let (read, write) = open().expect("pipe");
        let mut write = File::from(write);
        detach_broken(write.as_raw_fd());
        write.write_all(b"heard").expect("it has a reader");
        drop(read);
        // Rust ignores SIGPIPE.
        assert!(write.write_all(b"x").is_err());
        detach_broken(write.as_raw_fd());
        write.write_all(b"x").expect("it goes nowhere");
        detach_broken(-1);
    }
}
