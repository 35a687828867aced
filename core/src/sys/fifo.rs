//! A doorbell with a name: a FIFO of this user, opened for both ends, so that it neither waits for nor misses a peer.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Readable from [`signal`](Self::signal) to [`clear`](Self::clear), by whoever opened the same name.
#[derive(Debug)]
pub struct Fifo(OwnedFd);

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("path contains a NUL byte").with("path", path.display()))
}

impl Fifo {
    /// Makes the FIFO if there is none, and opens it.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Os` when it cannot be made.
    pub fn make(path: &Path) -> Result<Fifo> {
        let name = c_path(path)?;
        // SAFETY: `name` is NUL-terminated.
        if unsafe { libc::mkfifo(name.as_ptr(), 0o600) } != 0 {
            let e = Error::last_os("mkfifo").with("path", path.display());
            if e.errno().map(|(n, _)| n) != Some(libc::EEXIST) {
                return Err(e);
            }
        }
        Fifo::open(path)
    }

    /// Opens a FIFO that its owner made.
    ///
    /// # Errors
    /// `Invalid` when the name is another user's or no FIFO, `Os`.
    pub fn open(path: &Path) -> Result<Fifo> {
        let name = c_path(path)?;
        // SAFETY: `name` is NUL-terminated.
        let fd = unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os("open").with("path", path.display()));
        }
        // SAFETY: the kernel just gave us this fd, nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let st = super::mem::stat(fd.as_fd())?;
        // SAFETY: a plain query.
        if st.st_mode & libc::S_IFMT != libc::S_IFIFO || st.st_uid != unsafe { libc::geteuid() } {
            return Err(Error::new(ErrorKind::Invalid, "doorbell is not a FIFO of this user")
                .with("path", path.display())
                .with("mode", format_args!("{:o}", st.st_mode))
                .with("uid", st.st_uid));
        }
        Ok(Fifo(fd))
    }

    /// Makes the fd readable. A full FIFO is readable already.
    pub fn signal(&self) {
        // SAFETY: one readable byte; the fd does not block.
        unsafe { libc::write(self.0.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    }

    /// Makes the fd unreadable until the next signal; true if it was readable.
    pub fn clear(&self) -> bool {
        let mut bytes = [0u8; 512];
        let mut any = false;
        loop {
            // SAFETY: `bytes` has this many writable bytes; the fd does not block.
            let n = unsafe { libc::read(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
            any |= n > 0;
            if n < bytes.len() as isize {
                return any;
            }
        }
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
