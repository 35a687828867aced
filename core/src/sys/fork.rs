//! The fork rule: a forked child is told apart from its parent without a lock.
//!
//! An atfork handler bumps an epoch and does nothing else. Every handle remembers the epoch that made it.

use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::ptr;

static EPOCH: AtomicU64 = AtomicU64::new(1);
static REGISTERED: std::sync::Once = std::sync::Once::new();

extern "C" fn in_child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

/// The number of this process in its line of forks. Changes in a forked child, and nowhere else.
///
/// A handle made before the first call of this function in a process would not see a fork, so every constructor calls it.
#[inline]
#[must_use]
pub fn epoch() -> u64 {
    if !REGISTERED.is_completed() {
        REGISTERED.call_once(|| {
            // SAFETY: `in_child` touches one atomic, which is async-signal-safe; null handlers are allowed.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
    }
    EPOCH.load(Ordering::Relaxed)
}

/// `epoch` is that of this process. For hot paths: whoever holds an epoch has registered the handler.
#[inline]
#[must_use]
pub fn is_current(epoch: u64) -> bool {
    EPOCH.load(Ordering::Relaxed) == epoch
}

/// A lazily made global that a forked child makes anew. The parent's copy is leaked in the child on purpose: its locks
/// may be held by threads that do not exist there.
#[derive(Debug)]
pub struct ForkCell<T> {
    current: AtomicPtr<(u64, T)>,
}

impl<T: Send + Sync> ForkCell<T> {
    /// An empty cell.
    #[must_use]
    pub const fn new() -> ForkCell<T> {
        ForkCell { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value of this process, made by `make` at first use. Two threads may both make one; one is dropped.
    pub fn get(&self, make: impl FnOnce() -> T) -> &T {
        let epoch = epoch();
        let seen = self.current.load(Ordering::Acquire);
        // SAFETY: a non-null pointer was made by `Box::into_raw` below, is fully initialised (Release below, Acquire
        // above) and is never freed while the cell may be read: only a loser of the race frees, and it never published.
        if let Some((made_in, value)) = unsafe { seen.as_ref() }
            && *made_in == epoch
        {
            return value;
        }
        let fresh = Box::into_raw(Box::new((epoch, make())));
        match self.current.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: `fresh` was just published by us and published values are never freed.
            Ok(_) => unsafe { &(*fresh).1 },
            Err(winner) => {
                // SAFETY: `fresh` lost the race, nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                // SAFETY: the winner was published with Release by a thread of this process, see above.
                unsafe { &(*winner).1 }
            }
        }
    }

    /// The value if this process has already made it.
    pub fn peek(&self) -> Option<&T> {
        // SAFETY: as in `get`.
        let (made_in, value) = unsafe { self.current.load(Ordering::Acquire).as_ref() }?;
        (*made_in == epoch()).then_some(value)
    }
}

impl<T> Drop for ForkCell<T> {
    fn drop(&mut self) {
        let last = *self.current.get_mut();
        // SAFETY: a non-null pointer was made by `Box::into_raw` in `get`, is freed nowhere else once it is published, and
        // `&mut self` says that nobody reads it.
        if let Some((made_in, _)) = unsafe { last.as_ref() } {
            if *made_in == epoch() {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(last) });
            }
        }
    }
}

impl<T: Send + Sync> Default for ForkCell<T> {
    fn default() -> Self {
        ForkCell::new()
    }
}
