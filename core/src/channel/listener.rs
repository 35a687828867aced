//! Channels by a path.
//!
//! ```text
//!  <dir>/workers            the socket (0600 from its first moment)
//!  <dir>/.workers.lock      locked by whoever listens, for as long as it does
//! ```
//!
//! The lock says who listens: a socket whose lock is free is *stale*, and whoever takes the lock replaces it. The kernel drops the lock at
//! death, at the latest; its file is removed by a listener that ends in peace, under the lock, and who waited for it looks whether the
//! name still leads to what it locked.

use super::line::{self, Line};
use super::turns::Deadline;
use super::{Channel, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::ring::resolve_path;
use crate::sys::fork::{self, PrivateFd};
use crate::sys::{ofd, poll, socket};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Accepts channels at a path. Dropping it ends that; channels that were accepted go on.
#[derive(Debug)]
pub struct Listener {
    socket: PrivateFd,
    /// Held until the socket's name is gone.
    _lock: PrivateFd,
    path: PathBuf,
    /// Device and inode of the socket's name.
    named: Option<(u64, u64)>,
    lock_path: PathBuf,
    options: Options,
    epoch: u64,
}

fn os(e: &std::io::Error, call: &'static str, path: &Path) -> Error {
    Error::os(call, e.raw_os_error().unwrap_or(0)).with("path", path.display())
}

/// The lock of whoever listens at a path; `None` while somebody does.
fn take_lock(path: &Path) -> Result<Option<PrivateFd>> {
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut meta = None;
        let file = PrivateFd::open(|| {
            let file = options.open(path).map_err(|e| os(&e, "open", path))?;
            meta = Some(file.metadata().map_err(|e| os(&e, "fstat", path))?);
            Ok(file.into())
        })?;
        let meta = meta.expect("set by every open that succeeds");
        if !meta.is_file() || meta.uid() != socket::own_uid() {
            return Err(Error::invalid("lock of a listener is not a file of this user")
                .with("path", path.display())
                .with("uid", meta.uid()));
        }
        if !ofd::try_lock(file.as_fd(), 0)? {
            return Ok(None);
        }
        // Whoever had it may have removed it before it let go.
        if std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (meta.dev(), meta.ino())) {
            return Ok(Some(file));
        }
    }
}

/// Device and inode of what a name leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Takes away what a listener that died left. The caller has the lock.
fn remove_stale(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(os(&e, "lstat", path)),
    };
    if !meta.file_type().is_socket() || meta.uid() != socket::own_uid() {
        return Err(Error::new(ErrorKind::Exists, "a file of that name is not a socket of this user").with("path", path.display()));
    }
    // A socket that somebody else's program listens on has no lock.
    match socket::connect(socket::socket()?.as_fd(), path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        _ => return Err(Error::new(ErrorKind::Exists, "another program listens at that path").with("path", path.display())),
    }
    std::fs::remove_file(path).map_err(|e| os(&e, "unlink", path))
}

impl Listener {
    pub(super) fn bind(path: &Path, options: Options) -> Result<Listener> {
        let path = resolve_path(path, true)?;
        let mut name = OsString::from(".");
        name.push(path.file_name().expect("a resolved path has a file name"));
        name.push(".lock");
        let lock_path = path.with_file_name(name);
        let Some(lock) = take_lock(&lock_path)? else {
            return Err(Error::new(ErrorKind::Exists, "somebody listens at that path").with("path", path.display()));
        };
        // Guarded before it listens: in a child it would keep the path busy when nobody accepts there any more.
        let listening = || {
            let socket = PrivateFd::open(socket::socket)?;
            socket::listen(socket.as_fd(), &path)?;
            Ok(socket)
        };
        let socket = match remove_stale(&path).and_then(|()| listening()) {
            Ok(socket) => socket,
            Err(e) => {
                let _ = std::fs::remove_file(&lock_path);
                return Err(e);
            }
        };
        let named = identity(&path);
        Ok(Listener { socket, _lock: lock, path, named, lock_path, options, epoch: fork::epoch() })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An fd that is readable while somebody waits to be accepted.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// The next channel; `None` while nobody waits. Other users are turned away.
    ///
    /// # Errors
    /// `Os` when fds or memory are missing, `Forked`.
    pub fn try_accept(&self) -> Result<Option<Channel>> {
        if !fork::is_current(self.epoch) {
            return Err(Error::new(ErrorKind::Forked, "listener belongs to the parent of this forked process"));
        }
        while let Some(socket) = socket::accept(self.socket.as_fd())? {
            // A child that is forked between these two keeps a copy, which matters only if this process dies before its greeting: from then
            // on its seats tell.
            let socket = PrivateFd::new(socket);
            if line::check_user(socket.as_fd()).is_ok() {
                return Ok(Some(Channel::opened(self.options, Line::host(socket, &self.options)?)));
            }
        }
        Ok(None)
    }

    /// As [`try_accept`](Self::try_accept), and waits at most `timeout` (`None`: without end).
    ///
    /// # Errors
    /// `Timeout`, and those of [`try_accept`](Self::try_accept).
    pub fn accept(&self, timeout: Option<Duration>) -> Result<Channel> {
        let deadline = Deadline::new(timeout);
        loop {
            if let Some(channel) = self.try_accept()? {
                return Ok(channel);
            }
            let left = deadline.left("nobody connected")?;
            poll::wait_readable(&mut [poll::readable(self.fd())], left);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The names are the parent's.
        if fork::is_current(self.epoch) {
            // Somebody may have put something else there.
            if self.named.is_some() && identity(&self.path) == self.named {
                let _ = std::fs::remove_file(&self.path);
            }
            let _ = std::fs::remove_file(&self.lock_path);
        }
    }
}
