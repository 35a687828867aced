//! A number that processes count up and down together.

use super::{no_memory_of_ours, word};
use crate::error::Result;
use crate::sync::mapped::{AtomicU64, Ordering};
use crate::sys::mem;
use crate::wire::shared::{COUNTER_MAGIC, HEAD_LEN, VALUE};
use memmap2::MmapRaw;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A signed number of 64 bits, which wraps. Copies of the handle are the same counter.
#[derive(Clone, Debug)]
pub struct Counter(Arc<MmapRaw>);

impl Counter {
    pub(super) fn create() -> Result<OwnedFd> {
        let (fd, map) = mem::create_sealed(c"offloop-counter", HEAD_LEN)?;
        // Nobody else has it yet.
        word(&map, 0).store(COUNTER_MAGIC.to_le(), Ordering::Relaxed);
        Ok(fd)
    }

    /// That of a memfd which a ledger gave.
    pub(crate) fn attach(fd: BorrowedFd<'_>) -> Result<Counter> {
        let (_, map, len) = mem::attach_sealed(fd)?;
        if len != HEAD_LEN || word(&map, 0).load(Ordering::Relaxed) != COUNTER_MAGIC.to_le() {
            return Err(no_memory_of_ours("memfd is not a counter", len));
        }
        Ok(Counter(Arc::new(map)))
    }

    // It counts, and publishes nothing else: Relaxed.
    fn value(&self) -> &AtomicU64 {
        word(&self.0, VALUE)
    }

    /// Adds `n`, which may be negative; what it is then.
    #[expect(clippy::must_use_candidate, reason = "most who count do not look")]
    pub fn add(&self, n: i64) -> i64 {
        (self.value().fetch_add(n as u64, Ordering::Relaxed) as i64).wrapping_add(n)
    }

    /// What it is.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.value().load(Ordering::Relaxed) as i64
    }

    /// Makes it `value`; what it was.
    #[expect(clippy::must_use_candidate, reason = "who sets need not look")]
    pub fn set(&self, value: i64) -> i64 {
        self.value().swap(value as u64, Ordering::Relaxed) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::os::fd::AsFd;

    #[test]
    fn all_who_have_it_count_together() {
        let fd = Counter::create().expect("counter");
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    let counter = Counter::attach(fd.as_fd()).expect("attach");
                    for _ in 0..10_000 {
                        counter.add(3);
                    }
                });
            }
        });
        let counter = Counter::attach(fd.as_fd()).expect("attach");
        assert_eq!(counter.get(), 120_000);
        assert_eq!((counter.add(-120_001), counter.set(i64::MAX), counter.add(1)), (-1, -1, i64::MIN));
    }

    #[test]
    fn what_is_no_counter_is_refused() {
        let (other, _map) = mem::create_sealed(c"other", HEAD_LEN).expect("memfd");
        assert_eq!(Counter::attach(other.as_fd()).expect_err("no counter").kind(), ErrorKind::Corrupt);
    }
}
