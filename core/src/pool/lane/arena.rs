//! Memory for what is too long for a cell: spans of one long mapping that takes memory only as far as it was ever used.
//!
//! One side allocates and the other one gives back, so what is free is known to the allocating side alone: nothing in the mapping says so,
//! and a peer that scribbles cannot mislead it. Spans begin at multiples of 4 KiB; the first gap that is long enough is taken (first fit,
//! Knuth, The Art of Computer Programming, 2.5), neighbours that are free become one.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::{fork, mem};
use memmap2::MmapRaw;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Of all spans.
const PAGE: usize = 4096;
/// Memory that stays when nothing is in use.
const KEEP: usize = 64 << 20;
/// Memory is reserved in steps of this.
const STEP: usize = 1 << 20;
/// So much that was used is given back to the kernel instead of being overwritten with zeros.
const PUNCH: usize = 1 << 20;

/// What is free. Pure.
#[derive(Debug)]
struct Space {
    len: usize,
    /// Gaps below `top`: where, how long. No two touch, and none ends at `top`.
    gaps: BTreeMap<usize, usize>,
    /// Everything from here on is free.
    top: usize,
    /// Memory is reserved up to here.
    reserved: usize,
    /// What lies from here on is 0.
    used: usize,
}

impl Space {
    fn new(len: usize) -> Space {
        Space { len, gaps: BTreeMap::new(), top: 0, reserved: 0, used: 0 }
    }

    /// Where `len` bytes are free, and whether that is at the top.
    fn find(&self, len: usize) -> Option<usize> {
        let gap = self.gaps.iter().find(|(_, size)| **size >= len).map(|(at, _)| *at);
        gap.or_else(|| (len <= self.len - self.top).then_some(self.top))
    }

    fn take(&mut self, at: usize, len: usize) {
        if at == self.top {
            self.top += len;
            return;
        }
        let size = self.gaps.remove(&at).expect("a gap that was found");
        if size > len {
            self.gaps.insert(at + len, size - len);
        }
    }

    fn give_back(&mut self, mut at: usize, mut len: usize) {
        if let Some((before, size)) = self.gaps.range(..at).next_back().map(|(b, s)| (*b, *s))
            && before + size == at
        {
            self.gaps.remove(&before);
            (at, len) = (before, size + len);
        }
        if let Some(size) = self.gaps.remove(&(at + len)) {
            len += size;
        }
        if at + len == self.top {
            self.top = at;
        } else {
            self.gaps.insert(at, len);
        }
    }

    /// What is reserved and far from being used.
    fn surplus(&mut self) -> Option<(usize, usize)> {
        let from = self.top.max(KEEP).next_multiple_of(PAGE);
        (self.top < KEEP / 2 && self.reserved > from).then(|| {
            let part = (from, self.reserved - from);
            self.reserved = from;
            part
        })
    }
}

/// Spans of a part of a mapping.
#[derive(Debug)]
pub(super) struct Arena {
    map: Arc<MmapRaw>,
    fd: OwnedFd,
    /// Where the arena begins in the mapping.
    base: usize,
    /// Nothing is reserved: pages take memory when they are written.
    lazy: bool,
    space: Mutex<Space>,
    epoch: u64,
}

impl Arena {
    /// The bytes of `map` from `base` on, `len` of them, of which none is reserved.
    pub(super) fn new(map: Arc<MmapRaw>, fd: OwnedFd, base: usize, len: usize) -> Arena {
        Arena { map, fd, base, lazy: false, space: Mutex::new(Space::new(len)), epoch: fork::epoch() }
    }

    /// As [`new`](Self::new), for spans that are long and may never be written: a page takes memory when it is, and where there is none left
    /// by then, that ends the process.
    pub(super) fn lazy(map: Arc<MmapRaw>, fd: OwnedFd, base: usize, len: usize) -> Arena {
        Arena { lazy: true, ..Arena::new(map, fd, base, len) }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where a pointer of this process points to in the arena; `None` outside of it.
    pub(super) fn place_of(&self, ptr: *const u8) -> Option<usize> {
        let begin = self.map.as_mut_ptr() as usize + self.base;
        (ptr as usize).checked_sub(begin).filter(|at| *at < self.map.len() - self.base)
    }

    /// Bytes that a span can have at most.
    pub(super) fn len(&self) -> usize {
        lock(&self.space).len
    }

    /// # Errors
    /// `TooLarge` for more than the arena, `Full` when others have what would be needed, `Os` (`ENOMEM`, `ENOSPC`).
    pub(super) fn alloc(self: &Arc<Arena>, len: usize) -> Result<Span> {
        self.alloc_used(len).map(|(span, _)| span)
    }

    /// As [`alloc`](Self::alloc), of zeros: what was never used has no other bytes.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub(super) fn alloc_zeroed(self: &Arc<Arena>, len: usize) -> Result<Span> {
        let (span, used) = self.alloc_used(len)?;
        if used < PUNCH || !mem::punch(self.fd.as_fd(), self.base + span.at, used) {
            // SAFETY: the span has as many bytes, and nobody else has it.
            unsafe { span.as_ptr().write_bytes(0, used) };
        }
        Ok(span)
    }

    /// A span, and how many bytes from its begin on may have been used before.
    fn alloc_used(self: &Arc<Arena>, len: usize) -> Result<(Span, usize)> {
        let mut space = lock(&self.space);
        if len > space.len {
            return Err(Error::new(ErrorKind::TooLarge, "payload is longer than the pool's shared memory")
                .with("len", len)
                .with("max", space.len));
        }
        let size = len.max(1).next_multiple_of(PAGE);
        let Some(at) = space.find(size) else {
            return Err(Error::new(ErrorKind::Full, "the pool's shared memory is in use").with("len", len).with("max", space.len));
        };
        let used = space.used.saturating_sub(at).min(size);
        if at + size > space.reserved {
            // Under the lock: whoever comes next needs it as well.
            let want = (at + size).next_multiple_of(STEP).min(space.len);
            let from = space.reserved;
            if !self.lazy {
                mem::reserve_range(self.fd.as_fd(), self.base + from, want - from)?;
            }
            space.reserved = want;
        }
        space.used = space.used.max(at + size);
        space.take(at, size);
        Ok((Span { arena: Arc::clone(self), at, size, len }, used))
    }
}

/// A part of an arena that nobody else has. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Span {
    arena: Arc<Arena>,
    at: usize,
    size: usize,
    len: usize,
}

impl Span {
    /// Where it lies in the arena.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the arena lies inside its mapping, and the span inside the arena.
        unsafe { self.arena.map.as_mut_ptr().add(self.arena.base + self.at) }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // The memory is the parent's, and so is the lock.
        if !fork::is_current(self.arena.epoch) {
            return;
        }
        let mut space = lock(&self.arena.space);
        space.give_back(self.at, self.size);
        if let Some((at, len)) = space.surplus() {
            // Under the lock: nobody may reserve it meanwhile.
            if mem::punch(self.arena.fd.as_fd(), self.arena.base + at, len) {
                space.used = space.used.min(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(len: usize) -> Arc<Arena> {
        let (fd, map) = mem::create_sparse(c"arena", 0, len).expect("memfd");
        Arc::new(Arena::new(Arc::new(map), fd, 0, len))
    }

    #[test]
    fn spans_never_overlap_and_what_is_given_back_is_one_again() {
        let arena = arena(1 << 20);
        let mut random = 12345u64;
        let mut next = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        let mut live: Vec<Span> = Vec::new();
        for _ in 0..4000 {
            if next(2) == 0
                && let Ok(span) = arena.alloc(next(40_000))
            {
                let overlaps = live.iter().any(|s| span.at < s.at + s.size && s.at < span.at + span.size);
                assert!(!overlaps && span.at + span.size <= 1 << 20 && span.len <= span.size);
                live.push(span);
            } else if !live.is_empty() {
                live.swap_remove(next(live.len()));
            }
            let space = lock(&arena.space);
            let used: usize = live.iter().map(|s| s.size).sum();
            let free: usize = space.gaps.values().sum::<usize>() + (space.len - space.top);
            assert_eq!(used + free, 1 << 20);
            let ends: Vec<(usize, usize)> = space.gaps.iter().map(|(at, len)| (*at, at + len)).collect();
            assert!(ends.windows(2).all(|w| w[0].1 < w[1].0) && ends.iter().all(|e| e.1 < space.top), "gaps that touch: {ends:?}");
        }
        live.clear();
        let space = lock(&arena.space);
        assert!(space.gaps.is_empty() && space.top == 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_limit() {
        let arena = arena(1 << 20);
        let e = arena.alloc((1 << 20) + 1).expect_err("longer");
        assert_eq!((e.kind(), e.to_string().contains("max=1048576")), (ErrorKind::TooLarge, true), "{e}");
        let all = arena.alloc(1 << 20).expect("all of it");
        assert_eq!(arena.alloc(1).expect_err("in use").kind(), ErrorKind::Full);
        drop(all);
        arena.alloc(1 << 20).expect("again");
    }

    #[test]
    fn a_lazy_arena_takes_memory_only_for_what_is_written_and_gives_zeros() {
        let (fd, map) = mem::create_sparse(c"arena", 0, 1 << 30).expect("memfd");
        let arena = Arc::new(Arena::lazy(Arc::new(map), fd, 0, 1 << 30));
        let resident = || mem_blocks(arena.fd());
        // SAFETY: the place lies inside of the span, which is this test's own.
        let write = |span: &Span, at: usize| unsafe { span.as_ptr().add(at).write_volatile(7) };
        // SAFETY: as above.
        let read = |span: &Span, at: usize| unsafe { span.as_ptr().add(at).read_volatile() };
        let long = 100 << 20;
        for _ in 0..2 {
            let (first, last) = (arena.alloc_zeroed(long).expect("100 MiB"), arena.alloc_zeroed(3 * PAGE).expect("three pages"));
            assert!(resident() < STEP, "{}", resident());
            let places = [0, long / 2, long - 1];
            assert_eq!(places.map(|at| read(&first, at)), [0; 3]);
            places.iter().for_each(|at| write(&first, *at));
            write(&last, 0);
            // What was written is there again, below another span: as a long one, and as a short one.
            drop(first);
            let again = arena.alloc_zeroed(long).expect("the same");
            assert_eq!(places.map(|at| read(&again, at)), [0; 3]);
            assert!(resident() < STEP, "{}", resident());
            write(&again, 5);
            drop(again);
            assert_eq!(read(&arena.alloc_zeroed(10).expect("ten bytes"), 5), 0);
            assert_eq!(read(&last, 0), 7);
        }
    }

    #[test]
    fn memory_of_a_burst_goes_back() {
        let arena = arena(1 << 30);
        let resident = || mem_blocks(arena.fd());
        let long = arena.alloc(128 << 20).expect("128 MiB");
        assert!(resident() >= 128 << 20);
        drop(long);
        assert!(resident() <= KEEP, "{}", resident());
        drop(arena.alloc(128 << 20).expect("once more"));
    }

    fn mem_blocks(fd: BorrowedFd<'_>) -> usize {
        mem::stat(fd).expect("stat").st_blocks as usize * 512
    }
}
