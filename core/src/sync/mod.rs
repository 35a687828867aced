//! The only door to atomics and locks. What decides between "look" and "sleep" is `stack` and `pool::idle`, which `loom`
//! models (`make loom`); the rest is covered by the stress tests that `stack` and the pool's module name.

pub(crate) use std::sync::atomic;

/// Atomics that lie in mapped memory: always `std`, because a model's atomics have another size.
pub(crate) mod mapped {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

pub(crate) mod line;
pub(crate) mod modelled;
pub(crate) mod stack;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `m`. A lock is never left poisoned: every critical section of this crate leaves its data whole before it can
/// panic, and tasks never run under a lock.
pub(crate) fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
