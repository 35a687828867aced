//! Words of a protocol that decides between "look" and "sleep": `std`'s, or `loom`'s where `make loom` runs the same code
//! through every interleaving. Loom knows no total order of SeqCst accesses, only SeqCst fences; so such a protocol uses fences.

#[cfg(not(loom))]
pub(crate) use {
    super::lock,
    std::sync::Mutex,
    std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};

/// As [`super::lock`], for a model's mutex.
#[cfg(loom)]
pub(crate) fn lock<T>(m: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
