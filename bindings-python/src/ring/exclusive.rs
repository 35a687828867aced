//! A handle of core that one caller uses at a time, and that anybody may close.
//!
//! ```text
//!             enter                      park
//!   BUSY  ◄───────────  FREE  ───────────────►  PARKED
//!     │  ───────────►    │    ◄───────────────     │
//!     │      leave       │          leave          │
//!     │ close            │ close                   │ close
//!     ▼                  ▼                         ▼
//!   + CLOSING ────►   CLOSED   ◄──────────────  + CLOSING
//!             leave      ▲           leave
//!                        │ the last view is gone
//!                      KEPT   instead of CLOSED while a view of the handle's memory is alive
//! ```
//!
//! A call has the handle while it is BUSY; a task that waits in an event loop has it while it is PARKED, so that nobody
//! disarms the fd that the loop watches. Closing what somebody has is finished by whoever has it. A task whose loop was
//! closed never runs again, so the next caller takes the handle away from it.

use super::settle;
use super::view::{Lessor, Window};
use crate::error::raise;
use offloop::error::{Error, ErrorKind};
use offloop::ring::HeldRing;
use offloop::sys::fork;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const FREE: u32 = 0;
const BUSY: u32 = 1;
const PARKED: u32 = 2;
const CLOSED: u32 = 4;
/// Added to BUSY and PARKED.
const CLOSING: u32 = 8;
/// Closed, but the handle and its seat stay until the last view is gone.
const KEPT: u32 = 16;

/// A task that waits.
struct Sleeper {
    event_loop: Py<PyAny>,
    /// Wakes it, from any thread.
    waker: Py<PyAny>,
}

impl Sleeper {
    fn clone_ref(&self, py: Python<'_>) -> Sleeper {
        Sleeper { event_loop: self.event_loop.clone_ref(py), waker: self.waker.clone_ref(py) }
    }

    fn is_lost(&self, py: Python<'_>) -> PyResult<bool> {
        self.event_loop.bind(py).call_method0(intern!(py, "is_closed"))?.is_truthy()
    }
}

pub(super) struct Exclusive<T> {
    state: AtomicU32,
    epoch: u64,
    /// "producer" or "consumer".
    what: &'static str,
    /// The task that has the handle parked.
    sleeper: Mutex<Option<Sleeper>>,
    /// Who looks at the handle's memory.
    window: Arc<Window>,
    handle: UnsafeCell<Option<T>>,
    /// What the handle is of, which may go with it.
    ring: Arc<HeldRing>,
}

// SAFETY: `handle` is touched only by whoever moved `state` away from FREE or KEPT, which one caller can.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub(super) fn new(what: &'static str, ring: &Arc<HeldRing>, window: &Arc<Window>, handle: T) -> Exclusive<T> {
        Exclusive {
            state: AtomicU32::new(FREE),
            epoch: fork::epoch(),
            what,
            sleeper: Mutex::new(None),
            window: Arc::clone(window),
            handle: UnsafeCell::new(Some(handle)),
            ring: Arc::clone(ring),
        }
    }

    /// The handle, for one call.
    #[inline]
    pub(super) fn enter(&self) -> Result<Guard<'_, T>, Error> {
        // Acquire: what the last caller did is seen. Pairs with the Release in `leave`.
        match self.state.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Guard { cell: self }),
            Err(state) => Err(self.refusal(state)),
        }
    }

    #[cold]
    fn refusal(&self, state: u32) -> Error {
        if !fork::is_current(self.epoch) {
            // The thread that has it may not exist here.
            return Error::new(ErrorKind::Forked, "ring belongs to the parent of this forked process");
        }
        if state & (CLOSED | CLOSING | KEPT) != 0 {
            return self.closed();
        }
        let by = if state == PARKED { "a task that awaits it" } else { "another call" };
        Error::new(ErrorKind::InUse, "one caller uses a producer or consumer at a time").with("handle", self.what).with("used_by", by)
    }

    pub(super) fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "this handle was closed").with("handle", self.what)
    }

    /// Somebody wants the call that has the handle to end.
    pub(super) fn is_closing(&self) -> bool {
        self.state.load(Ordering::Relaxed) & CLOSING != 0
    }

    /// Gives the handle to a task that waits in `event_loop`; `waker` wakes it from any thread.
    pub(super) fn park(&self, event_loop: Py<PyAny>, waker: Py<PyAny>) -> Result<(), Error> {
        // Locked before it is PARKED, so that whoever finds that finds the sleeper, too.
        let mut sleeper = self.sleeper();
        self.state.compare_exchange(FREE, PARKED, Ordering::Acquire, Ordering::Relaxed).map_err(|state| self.refusal(state))?;
        // There was none: `unpark` takes it before the handle is FREE.
        *sleeper = Some(Sleeper { event_loop, waker });
        Ok(())
    }

    /// The task that parked the handle with `waker` is awake, or never will be. False if it was said before.
    pub(super) fn unpark(&self, waker: &Bound<'_, PyAny>) -> bool {
        // Dropped at the end, not under the lock: that may run Python code.
        let old = self.sleeper().take_if(|s| s.waker.is(waker));
        let unparked = old.is_some();
        if unparked {
            self.leave(PARKED);
        }
        unparked
    }

    /// Takes the handle away from a task whose loop was closed. False if there is none.
    #[cold]
    fn unpark_lost(&self, py: Python<'_>) -> PyResult<bool> {
        if !fork::is_current(self.epoch) {
            return Ok(false);
        }
        match self.asleep(py) {
            Some(sleeper) if sleeper.is_lost(py)? => Ok(self.unpark(sleeper.waker.bind(py))),
            _ => Ok(false),
        }
    }

    fn asleep(&self, py: Python<'_>) -> Option<Sleeper> {
        self.sleeper().as_ref().map(|s| s.clone_ref(py))
    }

    // HeldRing for a few instructions and never while Python code runs.
    fn sleeper(&self) -> MutexGuard<'_, Option<Sleeper>> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn leave(&self, had: u32) {
        // Release: pairs with the Acquire in `enter`.
        if self.state.compare_exchange(had, FREE, Ordering::Release, Ordering::Relaxed).is_err() {
            self.end();
        }
    }

    /// Drops the handle, or leaves that to the end of its last view. The caller has it.
    #[cold]
    fn end(&self) {
        while !self.window.shut() {
            // SeqCst, as in `shut`: either it finds the last view gone, or whoever let go of that finds KEPT in `unviewed`.
            self.state.store(KEPT, Ordering::SeqCst);
            if !self.window.shut() || !self.retake() {
                return;
            }
        }
        // SAFETY: `state` is neither FREE nor KEPT, and the caller is the one who has the handle.
        unsafe { *self.handle.get() = None };
        self.state.store(CLOSED, Ordering::Release);
        settle(&self.ring);
    }

    /// The handle of a closed cell, to drop it. False if there is none, or somebody else does.
    fn retake(&self) -> bool {
        // Acquire: pairs with the store of KEPT.
        self.state.compare_exchange(KEPT, BUSY | CLOSING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Closes the handle, now or when whoever has it is done. Does nothing in a forked child.
    pub(super) fn close(&self, py: Python<'_>) -> PyResult<()> {
        if !fork::is_current(self.epoch) {
            return Ok(());
        }
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let next = match state {
                FREE | KEPT => BUSY | CLOSING,
                BUSY | PARKED => state | CLOSING,
                // The loop of the task that was woken then may have been closed since.
                _ => return self.unpark_lost(py).map(drop),
            };
            match self.state.compare_exchange_weak(state, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(FREE | KEPT) => {
                    self.end();
                    return Ok(());
                }
                Ok(PARKED) => {
                    if let Some(sleeper) = self.asleep(py) {
                        sleeper.waker.call0(py)?;
                    }
                    return self.unpark_lost(py).map(drop);
                }
                Ok(_) => return Ok(()),
                Err(now) => state = now,
            }
        }
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(sleeper) = self.sleeper.try_lock()
            && let Some(sleeper) = &*sleeper
        {
            visit.call(&sleeper.event_loop)?;
            visit.call(&sleeper.waker)?;
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        let old = self.sleeper().take();
        drop(old);
    }
}

impl<T: Send> Lessor for Exclusive<T> {
    fn unviewed(&self) {
        if self.state.load(Ordering::SeqCst) == KEPT && fork::is_current(self.epoch) && self.retake() {
            self.end();
        }
    }
}

impl<T> Drop for Exclusive<T> {
    fn drop(&mut self) {
        // A call keeps its handle alive, so only a forked child gets here while one is under way: half-way through a change.
        let handle = self.handle.get_mut().take();
        if *self.state.get_mut() & BUSY != 0 {
            std::mem::forget(handle);
        } else if fork::is_current(self.epoch) {
            drop(handle);
            settle(&self.ring);
        }
    }
}

/// The handle during one call.
pub(super) struct Guard<'a, T> {
    cell: &'a Exclusive<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard's caller has the handle.
        unsafe { &*self.cell.handle.get() }.as_ref().expect("a handle that can be entered was not dropped")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.cell.handle.get() }.as_mut().expect("a handle that can be entered was not dropped")
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.cell.leave(BUSY);
    }
}

/// `enter`, as what a Python function raises.
#[inline]
pub(super) fn enter<'a, T>(py: Python<'_>, cell: &'a Exclusive<T>) -> PyResult<Guard<'a, T>> {
    match cell.enter() {
        Ok(guard) => Ok(guard),
        Err(refusal) => enter_again(py, cell, refusal),
    }
}

#[cold]
fn enter_again<'a, T>(py: Python<'_>, cell: &'a Exclusive<T>, refusal: Error) -> PyResult<Guard<'a, T>> {
    let entered = if cell.unpark_lost(py)? { cell.enter() } else { Err(refusal) };
    entered.map_err(|e| raise(py, &e))
}
