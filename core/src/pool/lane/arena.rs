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
}

impl Space {
    fn new(len: usize) -> Space {
        Space { len, gaps: BTreeMap::new(), top: 0, reserved: 0 }
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
    space: Mutex<Space>,
    epoch: u64,
}

impl Arena {
    /// The bytes of `map` from `base` on, `len` of them, of which none is reserved.
    pub(super) fn new(map: Arc<MmapRaw>, fd: OwnedFd, base: usize, len: usize) -> Arena {
        Arena { map, fd, base, space: Mutex::new(Space::new(len)), epoch: fork::epoch() }
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
        if at + size > space.reserved {
            // Under the lock: whoever comes next needs it as well.
            let want = (at + size).next_multiple_of(STEP).min(space.len);
            let from = space.reserved;
            mem::reserve_range(self.fd.as_fd(), self.base + from, want - from)?;
            space.reserved = want;
        }
        space.take(at, size);
        Ok(Span { arena: Arc::clone(self), at, size, len })
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
            mem::punch(self.arena.fd.as_fd(), self.arena.base + at, len);
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
