//! Memory that can be shared: memfds, allocated in full up front and sealed.

use super::cgroup::Cgroup;
use super::fork::ForkCell;
use super::probe::{self, Call};
use crate::error::{Error, ErrorKind, Result};
use memmap2::{MmapOptions, MmapRaw};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(super) const MFD_NOEXEC_SEAL: libc::c_uint = 0x0008;

pub(super) const MFD_BASE: libc::c_uint = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;

/// A new memfd that can be sealed and, where the kernel knows how to, never made executable.
///
/// # Errors
/// `Os`.
pub fn memfd(name: &std::ffi::CStr) -> Result<OwnedFd> {
    let flags = if probe::has(Call::MemfdNoexecSeal) { MFD_BASE | MFD_NOEXEC_SEAL } else { MFD_BASE };
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::last_os("memfd_create"));
    }
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    super::poll::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Requests below this are not checked against the limits of memory: asking for those costs more than they do.
const BUDGET_FROM: usize = 1 << 20;

/// Bytes that the kernel could hand out now without killing somebody: `MemAvailable`, bounded by the limits of this
/// process's control groups. `None` when `/proc` is not there and no limit is set.
#[must_use]
pub fn available_memory() -> Option<usize> {
    available_memory_in(&Cgroup::current())
}

fn available_memory_in(cgroup: &Cgroup) -> Option<usize> {
    let group = cgroup.memory_available().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    machine_memory().into_iter().chain(group).min()
}

/// `MemAvailable` of the whole machine.
fn machine_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Where the limits lie does not change while a process lives in its groups; only the numbers are read again.
static GROUPS: ForkCell<Cgroup> = ForkCell::new();

/// A memfd is not bound by the size of `/dev/shm`: reserving more than there is ends in the OOM killer, not in an error.
fn check_budget(len: usize) -> Result<()> {
    if len < BUDGET_FROM {
        return Ok(());
    }
    let groups = GROUPS.get(Cgroup::current);
    if machine_memory().is_none_or(|free| len <= free) && groups.has_room_for(len as u64) {
        return Ok(());
    }
    let error = Error::os("posix_fallocate", libc::ENOMEM).with("len", len);
    Err(match available_memory_in(groups) {
        Some(free) => error.with("available", free),
        None => error,
    })
}

/// The most memory that can be there for this process at any time: the machine's, with swap, and `RLIMIT_AS`.
fn most_memory() -> u64 {
    let mut info = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: `info` is a valid out pointer; all-zero is a valid value where the call does not fill it.
    let info = unsafe {
        libc::sysinfo(info.as_mut_ptr());
        info.assume_init()
    };
    let machine = (info.totalram + info.totalswap).saturating_mul(info.mem_unit.into());
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: 0 };
    // SAFETY: `limit` is a valid out pointer; a call that fails leaves no limit in it.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    if machine == 0 { limit.rlim_cur } else { machine.min(limit.rlim_cur) }
}

/// Refuses what can never be there in full, as a file with holes can claim. What is not refused may be missing now, and there later.
///
/// # Errors
/// `TooLarge`.
pub fn check_possible(len: usize) -> Result<()> {
    if len < BUDGET_FROM {
        return Ok(());
    }
    let most = most_memory();
    if len as u64 > most {
        return Err(Error::new(ErrorKind::TooLarge, "memory is longer than this machine or process can have")
            .with("len", len)
            .with("max", most));
    }
    Ok(())
}

/// Growing a file over `RLIMIT_FSIZE` sends SIGXFSZ, whose default action ends the process; an error is what a caller can handle.
pub(super) fn check_file_size(len: usize) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid out pointer.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } == 0;
    if known && limit.rlim_cur != libc::RLIM_INFINITY && len as u64 > limit.rlim_cur {
        return Err(Error::os("ftruncate", libc::EFBIG).with("len", len).with("limit", limit.rlim_cur));
    }
    Ok(())
}

/// The seals of a memfd; `None` for a file that can have none.
pub(super) fn seals(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    // SAFETY: a plain query.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    (seals >= 0).then_some(seals)
}

/// What `fstat` says.
///
/// # Errors
/// `Os`.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    // SAFETY: `libc::stat` is plain data, all-zero is a valid value.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is a valid out pointer.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut st) } != 0 {
        return Err(Error::last_os("fstat"));
    }
    Ok(st)
}

/// What `fstat` says about the size of `fd`.
///
/// # Errors
/// `Os`.
pub fn file_len(fd: BorrowedFd<'_>) -> Result<usize> {
    Ok(usize::try_from(stat(fd)?.st_size).unwrap_or(0))
}

/// A memfd has as many bytes of memory, wherever in it; the rest of its size is holes.
pub(crate) fn has_memory(fd: &OwnedFd, len: usize) -> bool {
    // In units of 512 bytes, whatever the block size is (stat(2)).
    stat(fd.as_fd()).is_ok_and(|st| u64::try_from(st.st_blocks).unwrap_or(0).saturating_mul(512) >= len as u64)
}

/// Fixes the size of a memfd for good.
///
/// # Errors
/// `Os`.
pub(super) fn seal_size(fd: &OwnedFd) -> Result<()> {
    // SAFETY: a plain call on an fd that the caller owns.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL) } != 0 {
        return Err(Error::last_os("fcntl(F_ADD_SEALS)"));
    }
    Ok(())
}

/// `ftruncate` would succeed on a full tmpfs and fault later; `posix_fallocate` reserves.
fn fallocate(fd: BorrowedFd<'_>, at: libc::off_t, len: libc::off_t) -> Result<()> {
    loop {
        // SAFETY: a plain call on an fd that the caller owns.
        match unsafe { libc::posix_fallocate(fd.as_raw_fd(), at, len) } {
            0 => return Ok(()),
            // tmpfs gives up at any signal, also one that a handler restarts calls after.
            libc::EINTR => {}
            errno => return Err(Error::os("posix_fallocate", errno).with("len", len)),
        }
    }
}

/// Reserves `len` bytes of a file that has a name or will get one.
///
/// # Errors
/// `Os` with `ENOSPC`, `ENOMEM` or `EFBIG`.
pub fn reserve(fd: BorrowedFd<'_>, len: usize) -> Result<()> {
    check_budget(len)?;
    check_file_size(len)?;
    fallocate(fd, 0, libc::off_t::try_from(len).map_err(|_| Error::new(ErrorKind::TooLarge, "file does not fit memory").with("len", len))?)
}

/// Makes a memfd of `len` bytes (at least 1), reserves every page, seals its size and maps it read-write.
///
/// # Errors
/// `Os` with `ENOSPC`/`ENOMEM` when the memory is not there now (so that a later touch cannot be a SIGBUS), `EMFILE`.
pub fn create_sealed(name: &std::ffi::CStr, len: usize) -> Result<(OwnedFd, MmapRaw)> {
    let size =
        libc::off_t::try_from(len.max(1)).map_err(|_| Error::new(ErrorKind::TooLarge, "buffer does not fit memory").with("len", len))?;
    check_budget(len)?;
    check_file_size(len)?;
    let fd = memfd(name)?;
    fallocate(fd.as_fd(), 0, size)?;
    seal_size(&fd)?;
    let map = map(&fd, len.max(1))?;
    Ok((fd, map))
}

/// Makes a memfd of `len` bytes of which the first `reserved` are there, and no others until [`reserve_range`]; seals its size and maps it
/// read-write.
///
/// # Errors
/// As [`create_sealed`], for `reserved`; `Os` with `ENOMEM` when so many addresses are not to be had (`RLIMIT_AS`).
pub fn create_sparse(name: &std::ffi::CStr, reserved: usize, len: usize) -> Result<(OwnedFd, MmapRaw)> {
    let size =
        libc::off_t::try_from(len.max(1)).map_err(|_| Error::new(ErrorKind::TooLarge, "buffer does not fit memory").with("len", len))?;
    check_file_size(len)?;
    let fd = memfd(name)?;
    // SAFETY: a plain call on an fd that is owned here.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(Error::last_os("ftruncate").with("len", len));
    }
    reserve_range(fd.as_fd(), 0, reserved)?;
    seal_size(&fd)?;
    let map = map(&fd, len.max(1))?;
    Ok((fd, map))
}

/// Reserves a part of what [`create_sparse`] made: before that a touch could be a SIGBUS.
///
/// # Errors
/// `Os` with `ENOSPC` or `ENOMEM`.
pub fn reserve_range(fd: BorrowedFd<'_>, at: usize, len: usize) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    check_budget(len)?;
    fallocate(fd, at as libc::off_t, len as libc::off_t)
}

/// Gives the memory of a part back to the kernel; its bytes are zero afterwards, and not reserved. False where that is denied (by a filter of
/// system calls): it stays as it is.
pub fn punch(fd: BorrowedFd<'_>, at: usize, len: usize) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a plain call on an fd that the caller owns.
    unsafe { libc::fallocate(fd.as_raw_fd(), mode, at as libc::off_t, len as libc::off_t) == 0 }
}

/// Makes a memfd of `len` bytes that only this mapping can write: whoever else maps it may read it. Its size is sealed.
///
/// # Errors
/// As [`create_sealed`].
pub fn create_for_readers(name: &std::ffi::CStr, len: usize) -> Result<(OwnedFd, MmapRaw)> {
    let size =
        libc::off_t::try_from(len.max(1)).map_err(|_| Error::new(ErrorKind::TooLarge, "buffer does not fit memory").with("len", len))?;
    check_budget(len)?;
    check_file_size(len)?;
    let fd = memfd(name)?;
    fallocate(fd.as_fd(), 0, size)?;
    let map = map(&fd, len.max(1))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: a plain call on an fd that is owned here.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(Error::last_os("fcntl(F_ADD_SEALS)"));
    }
    Ok((fd, map))
}

/// What a mapping of [`attach_inherited`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look at.
    Read,
    /// To share what is written.
    Write,
    /// To write for this process alone: a page that is written is a copy from then on, until [`forget_private`].
    Private,
}

/// Maps a memfd that a parent made and this process inherited, whole. Its size must be sealed.
///
/// # Errors
/// `Invalid` when it is not such a memfd, `Os`.
pub fn attach_inherited(fd: &OwnedFd, access: Access) -> Result<(MmapRaw, usize)> {
    let seals = seals(fd.as_fd()).unwrap_or(0);
    let need = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    let len = file_len(fd.as_fd())?;
    if seals & need != need || len == 0 {
        let e = Error::invalid("fd is not a memfd that is sealed against shrinking and growing");
        return Err(e.with("fd", fd.as_raw_fd()).with("seals", seals).with("len", len));
    }
    let map = match access {
        Access::Read => map_to_read(fd, len)?,
        Access::Write => map(fd, len)?,
        Access::Private => {
            // Not more memory than is written, so no promise of as much as is mapped.
            // SAFETY: the size is sealed. What the owner writes meanwhile is looked at through raw pointers only.
            let private = unsafe { MmapOptions::new().len(len).no_reserve_swap().map_copy(fd) };
            private.map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", len))?.into()
        }
    };
    Ok((map, len))
}

/// Gives up what this process has written to whole pages of a private mapping, from the page's start at `ptr` on: they show the file again.
pub fn forget_private(ptr: *mut u8, len: usize) {
    // SAFETY: pages of a mapping of this process that the caller alone uses. What it does to another kind of mapping is nothing that shows.
    unsafe { libc::madvise(ptr.cast(), len, libc::MADV_DONTNEED) };
}

/// Maps the first `len` bytes of a file read-write.
///
/// # Errors
/// `Os`.
pub fn map(fd: &OwnedFd, len: usize) -> Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw(fd).map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", len))
}

/// Maps the first `len` bytes of a file to look at. Nothing may be stored into the result.
///
/// # Errors
/// `Os`.
pub fn map_to_read(fd: &OwnedFd, len: usize) -> Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw_read_only(fd).map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", len))
}

/// Maps a memfd that another process made. The fd is duplicated; the caller keeps its own.
///
/// # Errors
/// `Invalid` when `fd` is not a memfd, not sealed against shrinking and growing, or sealed against writing; `TooLarge` when it is longer than
/// this machine or process can have; `Os` when it cannot be mapped now.
pub fn attach_sealed(fd: BorrowedFd<'_>) -> Result<(OwnedFd, MmapRaw, usize)> {
    let seals = seals(fd).unwrap_or(-1);
    let need = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    if seals < 0 || seals & need != need {
        return Err(Error::invalid("fd is not a memfd that is sealed against shrinking and growing")
            .with("fd", fd.as_raw_fd())
            .with("seals", seals));
    }
    if seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
        return Err(Error::invalid("memfd is sealed against writing").with("fd", fd.as_raw_fd()).with("seals", seals));
    }
    let owned = fd.try_clone_to_owned().map_err(|e| Error::os("fcntl(F_DUPFD_CLOEXEC)", e.raw_os_error().unwrap_or(0)))?;
    let len = file_len(fd)?;
    if len == 0 {
        return Err(Error::invalid("memfd is empty").with("fd", fd.as_raw_fd()));
    }
    check_possible(len)?;
    let map = map(&owned, len)?;
    Ok((owned, map, len))
}

/// A private copy of a sealed memfd of `len` bytes that another process made, read without a mapping.
///
/// # Errors
/// `Invalid` when `fd` is not a sealed memfd of that length, `Os`: `ENOMEM`.
pub fn read_sealed(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>> {
    // A file with seals is memory: reading it neither waits nor calls into somebody's program.
    if seals(fd).is_none_or(|seals| seals & (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) == 0) || file_len(fd)? != len {
        return Err(Error::invalid("fd is not a sealed memfd of the length that was named").with("fd", fd.as_raw_fd()).with("len", len));
    }
    let mut bytes: Vec<u8> = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Error::os("malloc", libc::ENOMEM).with("len", len))?;
    while bytes.len() < len {
        // SAFETY: the room from the vector's end on is at least as long as is asked for.
        let n = unsafe {
            libc::pread(fd.as_raw_fd(), bytes.as_mut_ptr().add(bytes.len()).cast(), len - bytes.len(), bytes.len() as libc::off_t)
        };
        match usize::try_from(n) {
            Ok(0) => return Err(Error::invalid("memfd ends before its length").with("len", len)),
            // SAFETY: the kernel has written so many bytes behind the vector's end.
            Ok(n) => unsafe { bytes.set_len(bytes.len() + n) },
            Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            Err(_) => return Err(Error::last_os("pread").with("len", len)),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// It can never be mapped, and a peer that sends it may not be waited for.
    #[test]
    fn memory_that_is_sealed_against_writing_is_refused() {
        for seal in [libc::F_SEAL_WRITE, libc::F_SEAL_FUTURE_WRITE] {
            let file = sealed(libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | seal);
            let e = attach_sealed(file.as_fd()).map(|_| ()).expect_err("it cannot be written");
            assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        }
    }

    /// A peer that sends one may not be waited for either.
    #[test]
    fn memory_that_can_never_be_there_is_too_large() {
        let most = usize::try_from(most_memory()).expect("64 bits");
        assert!(machine_memory().is_none_or(|free| free <= most), "of the whole machine");
        for len in [most + 4096, 1 << 60] {
            let file = sealed_of(len, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
            let e = attach_sealed(file.as_fd()).map(|_| ()).expect_err("it has holes");
            let told = format!("too large: memory is longer than this machine or process can have (len={len}, max={most})");
            assert_eq!(e.to_string(), told);
        }
    }

    fn sealed(seals: libc::c_int) -> OwnedFd {
        sealed_of(4096, seals)
    }

    fn sealed_of(len: usize, seals: libc::c_int) -> OwnedFd {
        // SAFETY: the name is NUL-terminated; the kernel gives a new fd, which nobody else owns.
        let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC)) };
        // SAFETY: plain calls on an fd of this test.
        unsafe {
            assert_eq!(libc::ftruncate(file.as_raw_fd(), len as libc::off_t), 0);
            assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        }
        file
    }

    #[test]
    fn a_groups_limit_bounds_the_free_memory() {
        let root = std::env::temp_dir().join(format!("offloop-mem-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("mkdir");
        for (file, text) in [("proc", "0::/"), ("memory.max", "1000000"), ("memory.current", "400000")] {
            std::fs::write(root.join(file), text).expect("write");
        }
        assert_eq!(available_memory_in(&Cgroup::at(&root, &root.join("proc"))), Some(600_000));
        assert!(available_memory_in(&Cgroup::default()).is_none_or(|n| n > 600_000));
        std::fs::remove_dir_all(&root).expect("rm");
    }
}
