//! Calls that were taken in before their inputs were copied.

use super::submit::Handle;
use crate::error::raise;
use crate::port::PyAwaitable;
use offloop::error::{Error, ErrorKind};
use offloop::sys::fork;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::atomic::{AtomicBool, Ordering};

/// A task that a pool took in before its inputs were copied: the pool ends after it.
#[pyclass(name = "_Ticket", module = "offloop._native", frozen)]
pub(crate) struct PyTicket {
    handle: Handle,
    epoch: u64,
    cancels: u64,
    released: AtomicBool,
}

impl PyTicket {
    pub(super) fn new(handle: Handle) -> PyTicket {
        handle.pools.tickets().fetch_add(1, Ordering::SeqCst);
        let cancels = handle.pools.cancels.load(Ordering::SeqCst);
        PyTicket { handle, epoch: fork::epoch(), cancels, released: AtomicBool::new(false) }
    }

    fn give_back(&self) {
        if self.released.swap(true, Ordering::SeqCst) || self.epoch != fork::epoch() {
            return;
        }
        let last = self.handle.pools.tickets().fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.handle.pools.closing.load(Ordering::SeqCst) {
            self.handle.pools.ops.close();
        }
    }
}

#[pymethods]
impl PyTicket {
    /// Starts the task for the running event loop, in a pool that is closing too.
    #[pyo3(signature = (*args, **kwargs))]
    fn start<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAwaitable>> {
        if self.handle.pools.cancels.load(Ordering::SeqCst) != self.cancels {
            return Err(raise(args.py(), &Error::new(ErrorKind::Cancelled, "the pool's waiting tasks were cancelled")));
        }
        self.handle.start(args, kwargs)
    }

    /// The pool and the key whose calls are submitted in order.
    #[getter]
    fn line(&self) -> Option<(usize, &str)> {
        self.handle.defaults.key.as_deref().map(|key| (self.handle.pools.id(), key))
    }

    /// Gives the ticket back: the task was submitted, or will never be.
    fn release(&self) {
        self.give_back();
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.handle.traverse(&visit)
    }
}

impl Drop for PyTicket {
    fn drop(&mut self) {
        self.give_back();
    }
}
