//! The only door to atomics and locks. What decides between "look" and "sleep" (`stack`, `pool::idle`, `ring`) is modelled by `loom`
//! (`make loom`); the rest is covered by the stress tests that `stack` and the pool's module name.

pub(crate) use std::sync::atomic;

/// Atomics that lie in mapped memory: always `std`, because a model's atomics have another size.
pub(crate) mod mapped {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

pub(crate) mod line;
pub(crate) mod modelled;
pub(crate) mod stack;

/// An atomic of a protocol that runs over mapped memory and, unchanged, under `loom`.
pub(crate) trait Word<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
    fn swap(&self, value: T, order: Ordering) -> T;
    /// `Err` with what is there instead, which was loaded with Acquire.
    fn compare_exchange(&self, old: T, new: T, order: Ordering) -> Result<T, T>;
    fn fetch_add(&self, value: T, order: Ordering) -> T;
}

/// A word of such a protocol whose bits belong to different participants.
pub(crate) trait Bits: Word<u64> {
    fn fetch_or(&self, bits: u64, order: Ordering);
    fn fetch_and(&self, bits: u64, order: Ordering);
}

macro_rules! word {
    ($atomic:ty, $value:ty) => {
        impl Word<$value> for $atomic {
            #[inline(always)]
            fn load(&self, order: Ordering) -> $value {
                <$atomic>::load(self, order)
            }
            #[inline(always)]
            fn store(&self, value: $value, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
            #[inline(always)]
            fn swap(&self, value: $value, order: Ordering) -> $value {
                <$atomic>::swap(self, value, order)
            }
            #[inline(always)]
            fn compare_exchange(&self, old: $value, new: $value, order: Ordering) -> Result<$value, $value> {
                <$atomic>::compare_exchange(self, old, new, order, Ordering::Acquire)
            }
            #[inline(always)]
            fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                <$atomic>::fetch_add(self, value, order)
            }
        }
    };
}

word!(mapped::AtomicU32, u32);
word!(mapped::AtomicU64, u64);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU32, u32);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU64, u64);

macro_rules! bits {
    ($atomic:ty) => {
        impl Bits for $atomic {
            #[inline(always)]
            fn fetch_or(&self, bits: u64, order: Ordering) {
                <$atomic>::fetch_or(self, bits, order);
            }
            #[inline(always)]
            fn fetch_and(&self, bits: u64, order: Ordering) {
                <$atomic>::fetch_and(self, bits, order);
            }
        }
    };
}

bits!(mapped::AtomicU64);
#[cfg(loom)]
bits!(loom::sync::atomic::AtomicU64);

use atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `m`. A lock is never left poisoned: every critical section of this crate leaves its data whole before it can
/// panic, and tasks never run under a lock.
pub(crate) fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
