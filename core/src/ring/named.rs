//! Rings with a name: a file of this user on tmpfs, with a FIFO per seat beside it.
//!
//! ```text
//!  <dir>/frames                      the ring (0600); made whole without a name, then linked
//!  <dir>/.frames.<id>.<seat>         doorbells, made by the first that misses them
//!
//!  locks on the file's bytes         0…64  the seats        PRESENT  shared: somebody is attached
//! ```
//!
//! A file that nobody is attached to is *stale*: its records wait for whoever attaches, and the next `create` of the name
//! replaces it. Whoever replaces holds `PRESENT` alone meanwhile, so nobody attaches to what is about to go, and two
//! cleaners take turns; the kernel drops the lock of a cleaner that dies. A ring whose name was removed lives on among those that are
//! attached; the last to leave takes the doorbells away.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fifo::Fifo;
use crate::sys::fork::PrivateFd;
use crate::sys::{mem, ofd};
use crate::wire::ring::{FIXED_LEN, Header, MAX_SEATS};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The byte whose shared lock says that a process is attached; beyond every seat.
pub(super) const PRESENT: u64 = 1 << 32;

/// Where a named ring lies.
#[derive(Clone, Debug)]
pub(super) struct Named {
    path: PathBuf,
    id: [u8; 16],
}

fn uid() -> u32 {
    // SAFETY: a plain query.
    unsafe { libc::geteuid() }
}

fn os(e: &std::io::Error, call: &'static str, path: &Path) -> Error {
    Error::os(call, e.raw_os_error().unwrap_or(0)).with("path", path.display())
}

/// An absolute path, so that it leads to the same file wherever this process goes. A name without a slash lies in `offloop/` below `XDG_RUNTIME_DIR`, or in `/dev/shm/offloop-<uid>/` without that; both are
/// made on demand, 0700.
pub(crate) fn resolve(path: &Path, make: bool) -> Result<PathBuf> {
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        return Err(Error::invalid("path has no file name").with("path", path.display()));
    }
    // No file has one, and the C library would not say so.
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::invalid("path has a zero byte").with("path", format!("{path:?}")));
    }
    if path.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(path).map_err(|e| os(&e, "getcwd", path));
    }
    let dir = match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("offloop"),
        None => PathBuf::from(format!("/dev/shm/offloop-{}", uid())),
    };
    if make
        && let Err(e) = std::fs::DirBuilder::new().mode(0o700).create(&dir)
        && e.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(os(&e, "mkdir", &dir));
    }
    // Somebody else may have made it first, in a directory that everybody may write.
    if let Ok(meta) = std::fs::symlink_metadata(&dir)
        && (!meta.is_dir() || meta.uid() != uid() || meta.mode() & 0o077 != 0)
    {
        return Err(Error::invalid("directory for rings and channels is not this user's alone")
            .with("dir", dir.display())
            .with("mode", format_args!("{:o}", meta.mode()))
            .with("uid", meta.uid()));
    }
    Ok(dir.join(path))
}

/// Refuses what is not a plain file of this user that nobody else may open.
fn check(file: &File, path: &Path) -> Result<()> {
    let meta = file.metadata().map_err(|e| os(&e, "fstat", path))?;
    if !meta.is_file() || meta.uid() != uid() || meta.mode() & 0o077 != 0 || meta.nlink() > 1 {
        return Err(Error::invalid("file is not a ring of this user alone")
            .with("path", path.display())
            .with("mode", format_args!("{:o}", meta.mode()))
            .with("uid", meta.uid())
            .with("links", meta.nlink()));
    }
    Ok(())
}

fn open_options(write: bool) -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// Opens an existing ring's file, checked.
pub(super) fn open(path: &Path, write: bool) -> Result<File> {
    let file = open_options(write).open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => Error::new(ErrorKind::NotFound, "no ring of that name").with("path", path.display()),
        Some(libc::ELOOP | libc::EISDIR | libc::ENXIO) => Error::invalid("path is not a plain file").with("path", path.display()),
        _ => os(&e, "open", path),
    })?;
    check(&file, path)?;
    Ok(file)
}

/// The name still leads to this file.
fn is_current(file: BorrowedFd<'_>, path: &Path) -> bool {
    let (Ok(a), Ok(b)) = (mem::stat(file), std::fs::symlink_metadata(path)) else { return false };
    (a.st_dev, a.st_ino) == (b.dev(), b.ino())
}

/// How long a cleaner, which holds [`PRESENT`] alone for a few system calls, is waited for: one that was stopped may hold it for ever.
const CLEANING: Duration = Duration::from_secs(1);

/// Opens an existing ring's file and says that somebody is attached, for as long as the second fd is open.
pub(super) fn attach(path: &Path) -> Result<(File, PrivateFd)> {
    let begun = Instant::now();
    loop {
        let file = open(path, true)?;
        let present = PrivateFd::open(|| ofd::reopen(file.as_fd()))?;
        // A cleaner holds it alone while it takes the name away; then there is nothing here to attach to.
        if !ofd::try_share(present.as_fd(), PRESENT)? {
            if begun.elapsed() >= CLEANING {
                return Err(Error::new(ErrorKind::InUse, "another process has been removing the ring and does not come to an end")
                    .with("path", path.display())
                    .with("waited_ms", CLEANING.as_millis()));
            }
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        if is_current(file.as_fd(), path) {
            return Ok((file, present));
        }
    }
}

/// A file without a name in the directory of `path`, reserved in full.
pub(super) fn nameless(path: &Path, len: usize) -> Result<OwnedFd> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = File::options()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(dir)
        .map_err(|e| os(&e, "open(O_TMPFILE)", dir))?;
    mem::reserve(file.as_fd(), len)?;
    Ok(file.into())
}

/// Gives a nameless file its name, in place of a stale ring.
pub(super) fn link(file: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("path contains a NUL byte"))?;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("digits");
    loop {
        // SAFETY: both paths are NUL-terminated.
        if unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, name.as_ptr(), libc::AT_SYMLINK_FOLLOW) } == 0 {
            return Ok(());
        }
        let e = Error::last_os("linkat").with("path", path.display());
        if e.errno().map(|(n, _)| n) != Some(libc::EEXIST) {
            return Err(e);
        }
        if !remove_stale(path)? {
            return Err(Error::new(ErrorKind::Exists, "a ring of that name is in use").with("path", path.display()));
        }
    }
}

/// Takes a ring's name and doorbells away if nobody is attached to it; false if somebody is.
pub(super) fn remove_stale(path: &Path) -> Result<bool> {
    let file = match open(path, true) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    // Only a ring is ever removed.
    let mut bytes = [0u8; FIXED_LEN];
    let len = file.metadata().map_err(|e| os(&e, "fstat", path))?.len();
    let header = file.read_exact_at(&mut bytes, 0).ok().and_then(|()| Header::decode(&bytes, len).ok());
    let Some(header) = header else {
        return Err(Error::new(ErrorKind::Exists, "a file of that name is not a ring").with("path", path.display()));
    };
    if !ofd::try_lock(file.as_fd(), PRESENT)? {
        return Ok(false);
    }
    // Another cleaner may have been here, and a creator after it.
    let named = Named::new(path.to_owned(), header.id);
    if is_current(file.as_fd(), path) {
        let _ = std::fs::remove_file(path);
        named.remove_bells(header.seats as usize);
    }
    Ok(true)
}

impl Named {
    pub(super) fn new(path: PathBuf, id: [u8; 16]) -> Named {
        Named { path, id }
    }

    fn bell_path(&self, seat: usize) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or(OsStr::new("ring")));
        name.push(format!(".{:016x}.{seat}", u64::from_le_bytes(std::array::from_fn(|i| self.id[i]))));
        self.path.with_file_name(name)
    }

    /// A seat's doorbell.
    pub(super) fn bell(&self, seat: usize) -> Result<Fifo> {
        Fifo::make(&self.bell_path(seat))
    }

    /// The ring still has its name.
    pub(super) fn leads_to(&self, file: BorrowedFd<'_>) -> bool {
        is_current(file, &self.path)
    }

    /// Takes the ring's name away, if it is still this ring's. Who is attached stays so, and is woken by the doorbells until the last of
    /// them has [left](Self::left).
    pub(super) fn remove(&self, file: BorrowedFd<'_>) -> Result<()> {
        if self.leads_to(file) {
            std::fs::remove_file(&self.path).map_err(|e| os(&e, "unlink", &self.path))?;
        }
        Ok(())
    }

    /// A process leaves, whose lock `present` is. The last one takes the doorbells away if the name has gone before: nobody can come any more.
    pub(super) fn left(&self, present: BorrowedFd<'_>, seats: usize) {
        // By the same fd: there may be no further one.
        let is_last = || ofd::unlock(present, PRESENT).is_ok() && matches!(ofd::try_lock(present, PRESENT), Ok(true));
        if !self.leads_to(present) && is_last() {
            self.remove_bells(seats);
        }
    }

    fn remove_bells(&self, seats: usize) {
        for seat in 0..seats.min(MAX_SEATS) {
            let _ = std::fs::remove_file(self.bell_path(seat));
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
