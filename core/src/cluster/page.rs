//! The counters of a worker to which connections are passed, as each side sees them. The worker writes, its cluster reads.

use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::{AtomicU64, Ordering};
use crate::sys::mem;
use crate::wire::cluster::{PAGE_BEAT, PAGE_CLOSED, PAGE_LEN, PAGE_MAGIC};
use memmap2::MmapRaw;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The mapping.
#[derive(Debug)]
pub(super) struct Page(MmapRaw);

impl Page {
    /// A new page, and the fd that the worker inherits.
    pub(super) fn create() -> Result<(OwnedFd, Page)> {
        let (fd, map) = mem::create_sealed(c"offloop-pass", PAGE_LEN)?;
        let page = Page(map);
        // Nobody else has it yet.
        page.word(0).store(PAGE_MAGIC.to_le(), Ordering::Relaxed);
        Ok((fd, page))
    }

    /// The page that this process inherited.
    pub(super) fn attach(fd: BorrowedFd<'_>) -> Result<Page> {
        let (_, map, len) = mem::attach_sealed(fd)?;
        let corrupt = || Error::new(ErrorKind::Corrupt, "memfd is not a worker's counters").with("len", len).with("want", PAGE_LEN);
        if len != PAGE_LEN {
            return Err(corrupt());
        }
        let page = Page(map);
        if page.word(0).load(Ordering::Relaxed) == PAGE_MAGIC.to_le() { Ok(page) } else { Err(corrupt()) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at + 8 <= PAGE_LEN && at.is_multiple_of(8));
        // SAFETY: inside of the mapping, aligned, and accessed as an atomic by both sides.
        unsafe { &*self.0.as_mut_ptr().add(at).cast::<AtomicU64>() }
    }

    // All of them count, and publish nothing else: Relaxed.

    pub(super) fn beat(&self) {
        self.word(PAGE_BEAT).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_closed(&self) {
        self.word(PAGE_CLOSED).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn beats(&self) -> u64 {
        self.word(PAGE_BEAT).load(Ordering::Relaxed)
    }

    pub(super) fn closed(&self) -> u64 {
        self.word(PAGE_CLOSED).load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_worker_counts_and_its_cluster_sees_it() {
        let (fd, own) = Page::create().expect("page");
        let theirs = Page::attach(fd.as_fd()).expect("attach");
        assert_eq!((own.beats(), own.closed()), (0, 0));
        theirs.beat();
        theirs.count_closed();
        theirs.count_closed();
        assert_eq!((own.beats(), own.closed()), (1, 2));
        let (other, _map) = mem::create_sealed(c"other", PAGE_LEN).expect("memfd");
        assert_eq!(Page::attach(other.as_fd()).expect_err("no page").kind(), ErrorKind::Corrupt);
        let null = std::fs::File::open("/dev/null").expect("null");
        assert_eq!(Page::attach(null.as_fd()).expect_err("no memfd").kind(), ErrorKind::Invalid);
    }
}
