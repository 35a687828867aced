//! Memory of buffers, and the cache that reuses it.
//!
//! A fresh mapping costs a page fault per 4 KiB, which makes it no faster than a pipe. So freed regions of 64 KiB and
//! more are kept by size class (a power of two) and handed out again, up to [`CACHE_BYTES`] and [`CACHE_FDS`] in all. Where memory
//! or fds run out the cache gives back what it has.
//!
//! Whoever asks for zeroes gets a kept region only up to [`CLEARED_AT_ONCE`]: clearing more in one step would hold an event loop. Beyond
//! that it is fresh pages of the kernel, which are zero already and cost nothing until they are touched. A region above [`CACHE_MAX`] is
//! never kept, so it has no class: it takes what was asked for.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::{self, fork::ForkCell};
use memmap2::{MmapOptions, MmapRaw};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::any::Any;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

/// Smallest size class that is cached.
const CACHE_MIN: usize = 64 << 10;
/// What the cache keeps at most, both kinds together.
const CACHE_BYTES: usize = 64 << 20;
/// Largest size that is cached.
const CACHE_MAX: usize = CACHE_BYTES / 2;
/// Shared regions that the cache keeps at most: each holds an fd, and a process may have no more than 1024.
const CACHE_FDS: usize = 32;
/// What is cleared in one step at most: about 0.5 ms.
const CLEARED_AT_ONCE: usize = 4 << 20;
/// Of heap regions: a cache line, and what vector loads like.
const ALIGN: usize = 64;

enum Memory {
    Heap {
        /// First byte that is used, in `base`.
        ptr: *mut u8,
        base: *mut u8,
        layout: Layout,
    },
    /// Pages of the kernel's own: an allocator may give large memory that it has to clear first.
    Mapped(MmapRaw),
    Shared {
        map: MmapRaw,
        fd: OwnedFd,
    },
    /// Somebody else's allocation, given back by dropping the guard.
    Foreign {
        ptr: *mut u8,
        _guard: Box<dyn Any + Send>,
    },
}

// SAFETY: plain memory; `Region` decides who may touch it.
unsafe impl Send for Memory {}
// SAFETY: as above; no method of `&Memory` reads or writes the bytes, and the guard is not reachable through it.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Heap { base, layout, .. } = *self {
            // SAFETY: allocated with this layout in `heap_memory`, freed once, here.
            unsafe { dealloc(base, layout) }
        }
    }
}

/// Bytes with a stable address: heap, or a sealed memfd that another process can map.
pub struct Region {
    memory: Option<Memory>,
    len: usize,
    epoch: u64,
    /// A peer may hold the fd: never reused, and copied before anybody here borrows it as a slice.
    exported: AtomicBool,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Region({} B, {})", self.len, if self.is_shared() { "shared" } else { "heap" })
    }
}

#[derive(Default)]
struct Cache {
    /// Oldest first: shared or not, size, memory.
    free: Vec<(bool, usize, Memory)>,
    bytes: usize,
    fds: usize,
}

impl Cache {
    fn put(&mut self, shared: bool, size: usize, memory: Memory) {
        self.bytes += size;
        self.fds += usize::from(shared);
        self.free.push((shared, size, memory));
    }

    fn take(&mut self, at: usize) -> Memory {
        let (shared, size, memory) = self.free.remove(at);
        self.bytes -= size;
        self.fds -= usize::from(shared);
        memory
    }

    /// The oldest entry of what there is too much of.
    fn surplus(&self) -> Option<usize> {
        if self.fds > CACHE_FDS {
            return self.free.iter().position(|(shared, ..)| *shared);
        }
        (self.bytes > CACHE_BYTES).then_some(0)
    }
}

static CACHE: ForkCell<Mutex<Cache>> = ForkCell::new();

fn cached(shared: bool, size: usize) -> Option<Memory> {
    let mut c = lock(CACHE.get(Mutex::default));
    let at = c.free.iter().rposition(|(s, n, _)| *s == shared && *n == size)?;
    Some(c.take(at))
}

/// Calls `make`, and once more without the cache when memory or fds ran out.
fn or_without_cache<T>(mut make: impl FnMut() -> Result<T>) -> Result<T> {
    let exhausted = |e: &Error| e.errno().is_some_and(|(errno, _)| matches!(errno, libc::ENOMEM | libc::EMFILE | libc::ENFILE));
    match make() {
        Err(e) if exhausted(&e) => {
            let all = std::mem::take(&mut *lock(CACHE.get(Mutex::default)));
            drop(all); // unmapped outside the lock
            make()
        }
        done => done,
    }
}

/// What is allocated for `len` bytes of heap.
fn size_class(len: usize) -> usize {
    if (CACHE_MIN..=CACHE_MAX).contains(&len) { len.next_power_of_two() } else { len.max(1) }
}

/// The class of `len`, in memory that no region had before: zero if `zero`, else whatever the allocator has.
fn heap_memory(len: usize, zero: bool) -> Result<Memory> {
    let size = size_class(len);
    // An allocator that is asked for zeroes and an alignment of its own gets no help from the kernel: it writes every byte. Without
    // the alignment it is `calloc`, which hands out untouched pages. Small regions stay exact, so that a checker sees the byte behind.
    let layout =
        if size < CACHE_MIN { Layout::from_size_align(size, ALIGN) } else { Layout::from_size_align(size.saturating_add(ALIGN - 1), 1) };
    let layout = layout.map_err(|_| Error::new(ErrorKind::TooLarge, "buffer does not fit memory").with("len", len))?;
    or_without_cache(|| {
        if size > CLEARED_AT_ONCE {
            let map = MmapOptions::new().len(size).map_anon();
            return map
                .map(|map| Memory::Mapped(map.into()))
                .map_err(|e| Error::os("mmap", e.raw_os_error().unwrap_or(0)).with("len", len));
        }
        // SAFETY: the layout's size is at least 1.
        let base = unsafe { if zero { alloc_zeroed(layout) } else { alloc(layout) } };
        if base.is_null() {
            return Err(Error::os("malloc", libc::ENOMEM).with("len", len));
        }
        // SAFETY: fewer than `ALIGN` bytes, which the layout has on top where `base` may be unaligned.
        let ptr = unsafe { base.add(base.align_offset(ALIGN)) };
        Ok(Memory::Heap { ptr, base, layout })
    })
}

impl Region {
    /// Zeroed heap bytes.
    ///
    /// # Errors
    /// `Os` with `ENOMEM`.
    pub fn heap(len: usize) -> Result<Arc<Region>> {
        Region::heap_inner(len, true)
    }

    /// Heap bytes that the caller writes before anybody reads them: they may be uninitialised, or old bytes of this process.
    pub(crate) fn heap_for_overwrite(len: usize) -> Result<Arc<Region>> {
        Region::heap_inner(len, false)
    }

    fn heap_inner(len: usize, zero: bool) -> Result<Arc<Region>> {
        let size = size_class(len);
        let most = if zero { CLEARED_AT_ONCE } else { CACHE_MAX };
        let memory = match (CACHE_MIN..=most).contains(&size).then(|| cached(false, size)).flatten() {
            Some(memory) => {
                if let (true, Memory::Heap { ptr, .. }) = (zero, &memory) {
                    // SAFETY: `ptr` owns at least `size >= len` bytes and nobody else has it.
                    unsafe { ptr.write_bytes(0, len) };
                }
                memory
            }
            None => heap_memory(len, zero)?,
        };
        Ok(Region::new(memory, len, false))
    }

    /// Zeroed bytes in a sealed memfd.
    ///
    /// # Errors
    /// `Os` when the memory or an fd is not there.
    pub fn shared(len: usize) -> Result<Arc<Region>> {
        // The file's size is what a peer sees, so a shared region is reused only for its exact length.
        let memory = match (len >= CACHE_MIN).then(|| cached(true, len)).flatten() {
            Some(m) => {
                if let Memory::Shared { map, .. } = &m {
                    // SAFETY: the mapping is ours alone (never exported) and has `len` bytes.
                    unsafe { map.as_mut_ptr().write_bytes(0, len) };
                }
                m
            }
            None => {
                let (fd, map) = or_without_cache(|| sys::mem::create_sealed(c"offloop-buffer", len))?;
                Memory::Shared { map, fd }
            }
        };
        Ok(Region::new(memory, len, false))
    }

    /// Maps a sealed memfd of another process.
    ///
    /// # Errors
    /// `Invalid` for an fd that is no sealed memfd, `Os`.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<Arc<Region>> {
        let (fd, map, len) = or_without_cache(|| sys::mem::attach_sealed(fd))?;
        Ok(Region::new(Memory::Shared { map, fd }, len, true))
    }

    /// Memory of the host that belongs to the region until it is dropped, which drops `guard`.
    ///
    /// # Safety
    /// `ptr..ptr+len` stays valid and is touched by nobody else until `guard` is dropped; `guard` may be dropped on any thread.
    #[must_use]
    pub unsafe fn foreign(ptr: *mut u8, len: usize, guard: Box<dyn Any + Send>) -> Arc<Region> {
        let ptr = if ptr.is_null() { std::ptr::dangling_mut() } else { ptr };
        Region::new(Memory::Foreign { ptr, _guard: guard }, len, false)
    }

    /// As [`foreign`](Self::foreign), for memory that a peer may write.
    ///
    /// # Safety
    /// `ptr..ptr+len` stays mapped until `guard` is dropped; `guard` may be dropped on any thread.
    pub(crate) unsafe fn mapped(ptr: *mut u8, len: usize, guard: Box<dyn Any + Send>) -> Arc<Region> {
        Region::new(Memory::Foreign { ptr, _guard: guard }, len, true)
    }

    fn new(memory: Memory, len: usize, exported: bool) -> Arc<Region> {
        Arc::new(Region { memory: Some(memory), len, epoch: sys::fork::epoch(), exported: AtomicBool::new(exported) })
    }

    /// First byte. Whoever dereferences it owns the buffer or holds an export of it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match self.memory.as_ref() {
            Some(Memory::Heap { ptr, .. } | Memory::Foreign { ptr, .. }) => *ptr,
            Some(Memory::Mapped(map) | Memory::Shared { map, .. }) => map.as_mut_ptr(),
            None => std::ptr::null_mut(),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lies in a memfd.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.memory, Some(Memory::Shared { .. }))
    }

    /// Made in a parent of this process by fork.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.epoch != sys::fork::epoch()
    }

    /// A peer may write it.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.exported.load(Ordering::Relaxed)
    }

    /// The memfd; from now on a peer may hold it.
    #[must_use]
    pub fn export_fd(&self) -> Option<RawFd> {
        let Some(Memory::Shared { fd, .. }) = &self.memory else { return None };
        self.exported.store(true, Ordering::Relaxed);
        Some(fd.as_raw_fd())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let size = match &memory {
            Memory::Heap { .. } | Memory::Mapped(_) => size_class(self.len),
            Memory::Shared { .. } => self.len,
            // Never kept: the owner wants it back now.
            Memory::Foreign { .. } => return,
        };
        if !(CACHE_MIN..=CACHE_MAX).contains(&size) || self.is_exported() || self.is_forked() {
            return;
        }
        let shared = matches!(memory, Memory::Shared { .. });
        let mut evicted = Vec::new();
        {
            let mut c = lock(CACHE.get(Mutex::default));
            c.put(shared, size, memory);
            while let Some(oldest) = c.surplus() {
                evicted.push(c.take(oldest));
            }
        }
        drop(evicted); // unmapped outside the lock
    }
}

/// Bytes that the cache holds now; for leak tests.
#[cfg(test)]
pub(crate) fn cache_bytes() -> usize {
    lock(CACHE.get(Mutex::default)).bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_freed_memory_and_zeroes_it() {
        let r = Region::heap(1 << 20).expect("heap");
        // SAFETY: the test owns the region.
        unsafe { r.as_ptr().write_bytes(0xAA, 1 << 20) };
        drop(r);
        assert!(cache_bytes() > 0);
        let again = Region::heap(1 << 20).expect("heap");
        // SAFETY: the test owns the region.
        assert!(unsafe { std::slice::from_raw_parts(again.as_ptr(), 1 << 20) }.iter().all(|b| *b == 0));
    }

    /// Bytes of memory that this process has touched and not given back.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: usize = statm.split(' ').nth(1).expect("second field").parse().expect("a number");
        pages * 4096
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_region_takes_memory_as_it_is_touched() {
        const LEN: usize = (256 << 20) + 1;
        for make in [Region::heap, Region::heap_for_overwrite] {
            // Other tests of this process allocate meanwhile: one quiet round in a few is enough.
            let cost = || {
                let before = resident();
                let region = make(LEN).expect("heap");
                (resident().saturating_sub(before), region)
            };
            let (cost, region) = (0..5).map(|_| cost()).find(|c| c.0 < 8 << 20).unwrap_or_else(cost);
            assert!(cost < 8 << 20, "{cost} bytes for a region that nobody touched");
            // Each page once, both ends, and nothing behind the end.
            // SAFETY: the test owns the region.
            unsafe {
                (0..LEN).step_by(4096).chain([LEN - 1]).for_each(|at| region.as_ptr().add(at).write(1));
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_region_that_was_used_is_not_cleared_in_one_large_step() {
        const LEN: usize = CACHE_MAX;
        // Other tests of this process allocate meanwhile: one quiet round in a few is enough.
        let cost = || {
            let used = Region::heap_for_overwrite(LEN).expect("heap");
            // SAFETY: the test owns the region.
            unsafe { used.as_ptr().write_bytes(0xAA, LEN) };
            drop(used);
            let before = resident();
            let region = Region::heap(LEN).expect("heap");
            let cost = resident().saturating_sub(before);
            // SAFETY: as above.
            assert!(unsafe { std::slice::from_raw_parts(region.as_ptr(), LEN) }.iter().step_by(511).all(|b| *b == 0));
            // The kept memory is still there for who writes it all.
            (cost, cached(false, LEN).is_some())
        };
        let quiet = (0..20).map(|_| cost()).find(|(cost, kept)| *cost < 1 << 20 && *kept);
        assert!(quiet.is_some(), "every page was touched");
    }

    #[test]
    fn heap_regions_are_zero_and_aligned_at_every_size() {
        for len in [
            0,
            1,
            63,
            4096,
            CACHE_MIN - 1,
            CACHE_MIN,
            CACHE_MIN + 1,
            (1 << 20) + 5,
            CLEARED_AT_ONCE,
            CLEARED_AT_ONCE + 1,
            CACHE_MAX,
            CACHE_MAX + 1,
            70 << 20,
        ] {
            for round in 0..2 {
                let region = Region::heap(len).expect("heap");
                assert_eq!(region.as_ptr().align_offset(ALIGN), 0, "{len}");
                // SAFETY: the test owns the region.
                let bytes = unsafe { std::slice::from_raw_parts_mut(region.as_ptr(), len) };
                assert!(bytes.iter().all(|b| *b == 0), "{len} bytes, round {round}");
                bytes.fill(0xAA);
                let again = Region::heap_for_overwrite(len).expect("heap");
                assert_eq!(again.as_ptr().align_offset(ALIGN), 0, "{len}");
                // SAFETY: as above.
                unsafe { again.as_ptr().write_bytes(0xAA, len) };
            }
        }
    }

    #[test]
    fn a_size_that_does_not_fit_memory_is_an_error() {
        assert_eq!(Region::heap(isize::MAX as usize - 8).expect_err("too large").kind(), ErrorKind::TooLarge);
        assert_eq!(Region::heap(usize::MAX).expect_err("too large").kind(), ErrorKind::TooLarge);
        assert_eq!(Region::heap(1 << 60).expect_err("no memory").errno().map(|e| e.0), Some(libc::ENOMEM));
    }

    #[test]
    fn the_cache_keeps_few_fds() {
        for extra in 0..3 * CACHE_FDS {
            drop(Region::shared(CACHE_MIN + extra).expect("shared"));
            assert!(lock(CACHE.get(Mutex::default)).fds <= CACHE_FDS);
        }
    }

    #[test]
    fn memory_and_fds_that_run_out_are_tried_again_without_the_cache() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let mut calls = 0;
            let made = or_without_cache(|| {
                calls += 1;
                if calls == 1 { Err(Error::os("memfd_create", errno)) } else { Ok(()) }
            });
            assert_eq!((made.is_ok(), calls), (true, 2), "{errno}");
        }
        let mut calls = 0;
        let refused = or_without_cache(|| {
            calls += 1;
            Err::<(), _>(Error::os("memfd_create", libc::EPERM))
        });
        assert_eq!((refused.is_err(), calls), (true, 1));
    }

    #[test]
    fn attach_refuses_what_is_not_a_sealed_memfd() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let e = Region::attach(std::os::fd::AsFd::as_fd(&null)).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::Invalid);
    }
}
