//! Zeroed memory seen as 64-bit atomics: what another process may read while this one writes.

use super::mem;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::AtomicU64;
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

/// Keeps the words alive.
enum Memory {
    Mapped { map: MmapRaw, fd: Option<OwnedFd> },
    Heap { _words: Box<[AtomicU64]> },
}

/// Words with a fixed address. Pages that nobody touched take no memory.
pub struct Words {
    first: NonNull<AtomicU64>,
    len: usize,
    memory: Memory,
}

// SAFETY: `first` points into `memory`, which moves with it and has a stable address; atomics may be shared.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Words({} B, fd {:?})", self.len * 8, self.fd())
    }
}

impl Words {
    fn mapped(map: MmapRaw, fd: Option<OwnedFd>) -> Words {
        let first = NonNull::new(map.as_mut_ptr().cast()).expect("a mapping is not at address 0");
        Words { first, len: map.len() / 8, memory: Memory::Mapped { map, fd } }
    }

    /// Words in a memfd that is sealed in size but not reserved.
    ///
    /// # Errors
    /// `Os`, for example with `EMFILE`.
    pub fn memfd(name: &CStr, bytes: usize) -> Result<Words> {
        mem::check_file_size(bytes)?;
        let fd = mem::memfd(name)?;
        let size =
            libc::off_t::try_from(bytes).map_err(|_| Error::new(ErrorKind::TooLarge, "region does not fit memory").with("len", bytes))?;
        // SAFETY: a plain call on an fd that we own.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
            return Err(Error::last_os("ftruncate").with("len", bytes));
        }
        mem::seal_size(&fd)?;
        let map = mem::map(&fd, bytes)?;
        Ok(Words::mapped(map, Some(fd)))
    }

    /// Words that no other process can see.
    ///
    /// # Errors
    /// `Os` when there is no room in the address space.
    pub fn private(bytes: usize) -> Result<Words> {
        let map = MmapMut::map_anon(bytes).map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", bytes))?;
        Ok(Words::mapped(map.into(), None))
    }

    /// Words on the heap.
    #[must_use]
    pub fn heap(bytes: usize) -> Words {
        let words: Box<[AtomicU64]> = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Words { first: NonNull::from(&*words).cast(), len: words.len(), memory: Memory::Heap { _words: words } }
    }

    /// Maps the memfd of another process read-only. Nothing may be stored into the result.
    ///
    /// # Errors
    /// `Invalid` when the file is not a memfd that is sealed in size (it could shrink under the reader), `Os`.
    pub(crate) fn attach(file: &File) -> Result<Words> {
        let need = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        if mem::seals(file.as_fd()).is_none_or(|s| s & need != need) {
            return Err(Error::invalid("file is not a memfd that is sealed against shrinking and growing"));
        }
        let bytes = mem::file_len(file.as_fd())?;
        if bytes < 8 {
            // An empty mapping is an error of `mmap` that would name no reason.
            return Err(Error::new(ErrorKind::Corrupt, "region is too short").with("len", bytes));
        }
        let map = MmapOptions::new()
            .len(bytes)
            .map_raw_read_only(file)
            .map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", bytes))?;
        Ok(Words::mapped(map, None))
    }

    /// The words.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `first` is aligned and has `len` words, which live as long as `self` and cannot shrink (they are heap,
        // anonymous or sealed). Other processes only ever access them as atomics or read them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    /// Bytes of the memory, also of a part that is no whole word.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match &self.memory {
            Memory::Mapped { map, .. } => map.len() as u64,
            Memory::Heap { .. } => self.len as u64 * 8,
        }
    }

    /// The memfd, if the words lie in one of this process.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        match &self.memory {
            Memory::Mapped { fd, .. } => fd.as_ref().map(AsRawFd::as_raw_fd),
            Memory::Heap { .. } => None,
        }
    }
}

/// Opens a file to read it, without waiting (a FIFO has no writer) and without handing it to children.
///
/// # Errors
/// `NotFound`, `Os`.
pub(crate) fn open_readonly(path: &Path) -> Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(|e| {
        let errno = e.raw_os_error().unwrap_or(0);
        let found = if errno == libc::ENOENT { Error::new(ErrorKind::NotFound, "no such file") } else { Error::os("open", errno) };
        found.with("path", path.display())
    })
}
