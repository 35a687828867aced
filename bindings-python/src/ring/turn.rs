//! How long a task goes on before others of its event loop run.

use offloop::sys::clock::monotonic_ns;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Records per turn.
const RECORDS: u32 = 256;
/// Time per turn: what it adds to the loop's delay.
const SLICE_NS: u64 = 500_000;
/// The clock is read once in so many records.
const CLOCK_EVERY: u32 = 16;

/// Counts the records that one task took without giving way. Only a hint: it may be shared and torn.
pub(super) struct Turn {
    left: AtomicU32,
    since: AtomicU64,
}

impl Turn {
    pub(super) fn new() -> Turn {
        Turn { left: AtomicU32::new(RECORDS), since: AtomicU64::new(monotonic_ns()) }
    }

    /// A new turn begins: the task waited.
    pub(super) fn begin(&self) {
        self.left.store(RECORDS, Ordering::Relaxed);
        self.since.store(monotonic_ns(), Ordering::Relaxed);
    }

    /// Counts one record. True when the turn is over, and a new one begins.
    pub(super) fn spend(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        let late = || left.is_multiple_of(CLOCK_EVERY) && monotonic_ns().saturating_sub(self.since.load(Ordering::Relaxed)) > SLICE_NS;
        if left == 0 || late() {
            self.begin();
            return true;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        false
    }
}
