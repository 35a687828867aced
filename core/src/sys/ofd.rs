//! Locks on bytes of an open file: the kernel drops them when the last fd of the open file is closed, at the latest when
//! its process dies, so a lock that is held is a holder that lives. A stopped process keeps its locks.

use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens the file of `fd` once more: locks belong to an open file, not to an fd or a process.
///
/// # Errors
/// `Os`: `ENOENT` without `/proc`, `EACCES` when the file belongs to another user, `EMFILE`.
pub fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}\0", fd.as_raw_fd());
    // SAFETY: `path` is NUL-terminated.
    let new = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    if new < 0 {
        return Err(Error::last_os("open(/proc/self/fd)"));
    }
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

fn byte(kind: libc::c_int, at: u64) -> libc::flock {
    // SAFETY: `libc::flock` is plain data; all-zero is valid, and `l_pid` must be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = at as libc::off_t;
    lock.l_len = 1;
    lock
}

/// Locks one byte for `fd`'s open file alone; false when another open file has it.
///
/// # Errors
/// `Os`: `ENOLCK`, `EBADF` for a file that is not open for writing.
pub fn try_lock(fd: BorrowedFd<'_>, at: u64) -> Result<bool> {
    set(fd, libc::F_WRLCK, at)
}

/// Gives a byte back.
///
/// # Errors
/// `Os`.
pub fn unlock(fd: BorrowedFd<'_>, at: u64) -> Result<()> {
    set(fd, libc::F_UNLCK, at).map(|_| ())
}

/// Gives back whatever `fd`'s open file has locked. Closing does so too, but not before the last copy of the fd is closed, which a child that
/// is being started has until its `exec`. Does nothing for what cannot be locked.
pub fn unlock_all(fd: BorrowedFd<'_>) {
    let mut lock = byte(libc::F_UNLCK, 0);
    lock.l_len = 0; // to the end
    // SAFETY: `lock` is a valid flock.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
}

/// Locks one byte for `fd`'s open file and others who share it; false when another open file has it alone.
///
/// # Errors
/// `Os`: `ENOLCK`.
pub fn try_share(fd: BorrowedFd<'_>, at: u64) -> Result<bool> {
    set(fd, libc::F_RDLCK, at)
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, at: u64) -> Result<bool> {
    let mut lock = byte(kind, at);
    // SAFETY: `lock` is a valid flock.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } == 0 {
        return Ok(true);
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(Error::last_os("fcntl(F_OFD_SETLK)").with("byte", at)),
    }
}

/// Another open file than `fd`'s holds the lock on a byte.
///
/// # Errors
/// `Os`.
pub fn is_locked(fd: BorrowedFd<'_>, at: u64) -> Result<bool> {
    let mut lock = byte(libc::F_WRLCK, at);
    // SAFETY: `lock` is a valid flock, which the kernel overwrites with the conflicting one or `F_UNLCK`.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(Error::last_os("fcntl(F_OFD_GETLK)").with("byte", at));
    }
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mem;
    use std::os::fd::AsFd;

    #[test]
    fn a_byte_has_one_holder_until_its_file_is_closed() {
        let (memfd, _map) = mem::create_sealed(c"offloop-test", 4096).expect("memfd");
        let (a, b) = (reopen(memfd.as_fd()).expect("reopen"), reopen(memfd.as_fd()).expect("reopen"));
        assert!(!is_locked(memfd.as_fd(), 3).expect("query"));
        assert!(try_lock(a.as_fd(), 3).expect("lock"));
        assert!(try_lock(a.as_fd(), 3).expect("again"), "the holder has it");
        assert!(!try_lock(b.as_fd(), 3).expect("held"));
        assert!(try_lock(b.as_fd(), 4).expect("another byte"));
        assert!(is_locked(memfd.as_fd(), 3).expect("query"));
        unlock(b.as_fd(), 4).expect("unlock");
        assert!(!is_locked(memfd.as_fd(), 4).expect("query"));
        drop(a);
        assert!(!is_locked(memfd.as_fd(), 3).expect("query"));
        assert!(try_lock(b.as_fd(), 3).expect("lock"));
    }

    #[test]
    fn a_private_fd_gives_its_locks_back_at_once_though_a_child_still_has_a_copy() {
        let (memfd, _map) = mem::create_sealed(c"offloop-test", 4096).expect("memfd");
        let (a, b) = (reopen(memfd.as_fd()).expect("reopen"), reopen(memfd.as_fd()).expect("reopen"));
        let copy = a.try_clone().expect("what a child has between fork and exec");
        let a = super::super::fork::PrivateFd::new(a);
        assert!(try_lock(a.as_fd(), 3).expect("lock") && try_lock(a.as_fd(), 1 << 33).expect("lock"));
        drop(a);
        assert!(try_lock(b.as_fd(), 3).expect("free") && try_lock(b.as_fd(), 1 << 33).expect("free"));
        drop(copy);
    }

    /// Forks a child that does nothing until `alive` has no writer left.
    #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
    fn child(alive: &std::io::PipeReader, parent: &std::io::PipeWriter) -> libc::pid_t {
        // SAFETY: the child calls `close`, `read` and `_exit` only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: the child's own copies, and a byte to read into.
            unsafe {
                libc::close(parent.as_raw_fd());
                libc::read(alive.as_raw_fd(), (&raw mut byte).cast(), 1);
                libc::_exit(0);
            }
        }
        pid
    }

    #[test]
    fn a_child_that_is_forked_while_a_private_fd_is_opened_keeps_no_lock() {
        use super::super::fork::PrivateFd;
        use std::os::fd::IntoRawFd;
        let (memfd, _map) = mem::create_sealed(c"offloop-test", 4096).expect("memfd");
        let (alive, parent) = std::io::pipe().expect("pipe");
        let (mut opened, mut pid) = (0, 0);
        let private = PrivateFd::open(|| {
            opened += 1;
            let fd = reopen(memfd.as_fd())?;
            if opened == 1 {
                pid = child(&alive, &parent);
            }
            Ok(fd)
        })
        .expect("open");
        assert!(opened > 1);
        assert!(try_lock(private.as_fd(), 3).expect("lock"));
        // As at the death of this process, which unlocks nothing itself.
        let raw = private.as_fd().as_raw_fd();
        let null = std::fs::File::open("/dev/null").expect("open").into_raw_fd();
        // SAFETY: `private` owns the number, and from here on another file by it.
        unsafe { libc::dup3(null, raw, libc::O_CLOEXEC) };
        assert!(!is_locked(memfd.as_fd(), 3).expect("query"), "the child has no copy of what was locked");
        drop((private, parent));
        // SAFETY: this test's own.
        unsafe {
            libc::close(null);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }

    #[test]
    fn a_shared_byte_cannot_be_had_alone() {
        let (memfd, _map) = mem::create_sealed(c"offloop-test", 4096).expect("memfd");
        let [a, b, c] = [(); 3].map(|()| reopen(memfd.as_fd()).expect("reopen"));
        assert!(try_share(a.as_fd(), 1 << 32).expect("share") && try_share(b.as_fd(), 1 << 32).expect("share"));
        assert!(!try_lock(c.as_fd(), 1 << 32).expect("held"));
        drop(a);
        assert!(!try_lock(c.as_fd(), 1 << 32).expect("held"));
        drop(b);
        assert!(try_lock(c.as_fd(), 1 << 32).expect("free"));
    }
}
