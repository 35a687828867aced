//! What happened, in memory that every process shares and that a kill leaves as it was.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Participants of a side at most.
pub(crate) const SIDE: usize = 4;
/// Where the bytes of the records begin.
const RECORDS_AT: usize = 4096;

/// It came without the mark.
pub(crate) const FRESH: u8 = 1;
/// It came with the mark.
pub(crate) const AGAIN: u8 = 2;
/// A consumer let go of it, or is about to acknowledge it.
pub(crate) const DEALT: u8 = 8;
/// It was acknowledged.
pub(crate) const ACKED: u8 = 16;
/// Its producer died before it could say whether it was pushed.
pub(crate) const UNSURE: u8 = 4;

/// Words of the participants, then a byte for each record of each producer.
pub(crate) struct Ledger {
    file: OwnedFd,
    base: *mut u8,
    per_producer: u64,
    len: usize,
}

impl Ledger {
    pub(crate) fn new(per_producer: u64, producers: usize) -> Result<Ledger, String> {
        // SAFETY: a plain call with a NUL-terminated name; the fd is new and ours.
        let file = unsafe {
            let fd = libc::memfd_create(c"history".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(format!("memfd_create: {}", std::io::Error::last_os_error()));
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(RECORDS_AT as u64 + per_producer * producers as u64).map_err(|e| format!("set_len: {e}"))?;
        Ledger::open(file.into(), per_producer)
    }

    pub(crate) fn open(file: OwnedFd, per_producer: u64) -> Result<Ledger, String> {
        let file = File::from(file);
        let len = file.metadata().map_err(|e| format!("ledger: {e}"))?.len() as usize;
        // SAFETY: a new shared mapping of the file, which has `len` bytes.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(format!("mmap: {}", std::io::Error::last_os_error()));
        }
        Ok(Ledger { file: file.into(), base: base.cast(), per_producer, len })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < RECORDS_AT / 8);
        // SAFETY: inside the mapping and aligned; everybody uses it as an atomic.
        unsafe { &*self.base.add(i * 8).cast() }
    }

    /// How many records a producer is known to have pushed: the number of its next one.
    pub(crate) fn pushed(&self, producer: usize) -> &AtomicU64 {
        self.word(producer)
    }

    /// How many records a consumer has seen.
    pub(crate) fn count(&self, consumer: usize) -> &AtomicU64 {
        self.word(SIDE + consumer)
    }

    /// How many of them were marked.
    pub(crate) fn again(&self, consumer: usize) -> &AtomicU64 {
        self.word(2 * SIDE + consumer)
    }

    /// The number behind the last one that a consumer has seen of a producer; 0 for none.
    pub(crate) fn next(&self, consumer: usize, producer: usize) -> &AtomicU64 {
        self.word(3 * SIDE + consumer * SIDE + producer)
    }

    /// The number that no producer's record may have yet.
    pub(crate) fn limit(&self) -> &AtomicU64 {
        self.word(3 * SIDE + SIDE * SIDE)
    }

    /// What became of a record.
    pub(crate) fn record(&self, producer: usize, number: u64) -> &AtomicU8 {
        let at = RECORDS_AT + (producer as u64 * self.per_producer + number) as usize;
        assert!(number < self.per_producer && at < self.len, "record {producer}:{number} is none that was to be pushed");
        // SAFETY: inside the mapping, checked above; everybody uses it as an atomic.
        unsafe { &*self.base.add(at).cast() }
    }

    pub(crate) fn seen(&self) -> u64 {
        (0..SIDE).map(|c| self.count(c).load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, which no reference points into any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
