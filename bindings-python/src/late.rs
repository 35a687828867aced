//! References that a native thread may be the last to own.
//!
//! pyo3 notes such a reference in a list of its own, under a lock; a child that is forked at that moment inherits the lock
//! held by a thread that it does not have. This list has no lock: at every instant it is whole.

use pyo3::Python;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Node {
    next: *mut Node,
    /// Held for its drop.
    _value: Box<dyn Send>,
}

/// Dropped on some thread, to be freed by one with the interpreter.
static DROPPED: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// Python references that may be dropped on any thread. [`collect`] frees them.
pub(crate) struct Late<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> Late<T> {
    pub(crate) fn new(value: T) -> Late<T> {
        Late(ManuallyDrop::new(value))
    }

    /// The value, to be dropped by a thread with the interpreter.
    pub(crate) fn into_inner(self, _: Python<'_>) -> T {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the value is taken once.
        unsafe { ManuallyDrop::take(&mut this.0) }
    }
}

impl<T: Send + 'static> Deref for Late<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> Drop for Late<T> {
    fn drop(&mut self) {
        // SAFETY: taken here and not looked at again.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        let node = Box::into_raw(Box::new(Node { next: ptr::null_mut(), _value: Box::new(value) }));
        let mut head = DROPPED.load(Ordering::Relaxed);
        loop {
            // SAFETY: `node` is this thread's own until the exchange below succeeds.
            unsafe { (*node).next = head };
            // Release: pairs with the Acquire of `collect`, which reads the node.
            match DROPPED.compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => head = seen,
            }
        }
    }
}

/// Frees what native threads dropped. Finalizers may run, so no lock is held here.
pub(crate) fn collect(_: Python<'_>) {
    if DROPPED.load(Ordering::Relaxed).is_null() {
        return;
    }
    let mut at = DROPPED.swap(ptr::null_mut(), Ordering::Acquire);
    while !at.is_null() {
        // SAFETY: every node was made by `Box::into_raw`, and the swap made this thread the owner of the whole list.
        let node = unsafe { Box::from_raw(at) };
        at = node.next;
    }
}
