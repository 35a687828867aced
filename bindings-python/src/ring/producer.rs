//! The handle that pushes.

use super::exclusive::{Exclusive, Guard, enter};
use super::record::Source;
use super::turn::Turn;
use super::view::{Lend, Lent, Lessor, View, release};
use crate::copy;
use crate::error::{number, raise};
use crate::future::seconds;
use crate::wait;
use offloop::error::{Error, ErrorKind};
use offloop::ring::{HeldRing, OnFull, Producer, ProducerOptions};
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};
use pyo3::{PyTraverseError, PyVisit, intern};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A producer of core, and the claim that a block of Python code writes. An open claim is core's to refuse.
type Pushing = Lent<Producer>;

impl Lend for Producer {
    const KEPT: &'static str = "a view of a claim is still alive, so its record was aborted; drop what was made from it";

    fn give_up(&mut self) {
        self.abort_claim();
    }
}

/// Pushes records into a ring. One caller at a time; any thread. Gives its seat back when it is closed or dropped.
#[pyclass(name = "Producer", module = "offloop", frozen, weakref)]
pub(crate) struct PyProducer {
    cell: Arc<Exclusive<Pushing>>,
    turn: Turn,
}

/// Waits for room for `len` bytes, which are then claimed: the first of them.
fn wait_claim(
    py: Python<'_>,
    cell: &Exclusive<Pushing>,
    producer: &mut Producer,
    len: usize,
    timeout: Option<Duration>,
) -> PyResult<*mut u8> {
    let mut at = 0;
    let found = wait::until(py, timeout, |slice| {
        if cell.is_closing() {
            return Err(cell.closed());
        }
        match producer.claim_ptr(len, Some(slice)) {
            Ok(room) => {
                at = room.as_ptr() as usize;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Timeout => Ok(false),
            Err(e) => Err(e),
        }
    })?;
    if !found {
        return Err(wait::timed_out(py, "no room in the ring", timeout));
    }
    Ok(at as *mut u8)
}

/// Pushes one record, which may wait. A long one is copied without the GIL.
fn push(
    py: Python<'_>,
    cell: &Exclusive<Pushing>,
    producer: &mut Producer,
    record: &Bound<'_, PyAny>,
    timeout: Option<Duration>,
) -> PyResult<()> {
    let source = Source::of(record)?;
    let len = source.len();
    if len < copy::SLICE && producer.try_push(source.as_slice()).map_err(|e| raise(py, &e))? {
        return Ok(());
    }
    let room = wait_claim(py, cell, producer, len, timeout)?;
    // SAFETY: `len` bytes were claimed, and the claim stays open until the next line.
    unsafe { source.copy_to(py, room) };
    producer.commit_claim(len).map_err(|e| raise(py, &e))
}

impl PyProducer {
    pub(super) fn open(ring: &Arc<HeldRing>, batch: bool) -> Result<PyProducer, Error> {
        let producer = ring.with(|ring| ring.producer(ProducerOptions { batch, ..ProducerOptions::default() }))?;
        let lent = Lent::new(producer);
        let window = Arc::clone(&lent.window);
        Ok(PyProducer { cell: Arc::new(Exclusive::new("producer", ring, &window, lent)), turn: Turn::new() })
    }

    fn try_push_source(py: Python<'_>, producer: &mut Producer, source: &Source<'_>) -> Result<bool, Error> {
        let len = source.len();
        if len < copy::SLICE {
            return producer.try_push(source.as_slice());
        }
        let Some(room) = producer.try_claim_ptr(len)? else { return Ok(false) };
        // SAFETY: `len` bytes were claimed, and the claim stays open until the next line.
        unsafe { source.copy_to(py, room.as_ptr()) };
        producer.commit_claim(len).map(|()| true)
    }
}

#[pymethods]
impl PyProducer {
    /// Pushes a copy of any contiguous buffer; False while the ring is full.
    fn try_push(&self, record: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = record.py();
        let source = Source::of(record)?;
        let mut pushing = enter(py, &self.cell)?;
        pushing.ready().and_then(|p| Self::try_push_source(py, p, &source)).map_err(|e| raise(py, &e))
    }

    /// Pushes a copy of any contiguous buffer; waits for room, without the GIL, at most `timeout` seconds (None: without end).
    ///
    /// Raises TimeoutError; Full where the ring rejects instead of waiting; PeerDiedError when the ring is full and its
    /// consumer dead.
    #[pyo3(signature = (record, timeout = None))]
    fn push(&self, record: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let py = record.py();
        let timeout = seconds(py, "timeout", timeout)?;
        let mut pushing = enter(py, &self.cell)?;
        let producer = pushing.ready().map_err(|e| raise(py, &e))?;
        push(py, &self.cell, producer, record, timeout)
    }

    /// Pushes all records of a list in order, published together; returns how many. Waits for room as `push` does.
    ///
    /// An exception has an attribute `pushed`: so many of the records went in.
    #[pyo3(signature = (records, timeout = None))]
    fn push_many(&self, records: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<usize> {
        let py = records.py();
        let timeout = seconds(py, "timeout", timeout)?;
        let mut pushing = enter(py, &self.cell)?;
        let producer = pushing.ready().map_err(|e| raise(py, &e))?;
        let mut pushed = 0;
        let was_batch = producer.is_batch();
        producer.set_batch(true).map_err(|e| raise(py, &e))?;
        let outcome = records.try_iter().and_then(|items| {
            for record in items {
                push(py, &self.cell, producer, &record?, timeout)?;
                pushed += 1;
            }
            Ok(())
        });
        let published = producer.set_batch(was_batch).map_err(|e| raise(py, &e));
        match outcome.and(published) {
            Ok(()) => Ok(pushed),
            Err(e) => {
                e.value(py).setattr(intern!(py, "pushed"), pushed)?;
                Err(e)
            }
        }
    }

    /// `with producer.claim(n) as view:` waits for room and gives `n` writable bytes of the ring itself. The end of the block
    /// makes them a record; an exception in it, or a view that is kept (InUseError), makes none. The end raises ClosedError as `flush` does.
    #[pyo3(signature = (n, timeout = None))]
    fn claim(slf: &Bound<'_, Self>, n: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<Claim> {
        let timeout = seconds(slf.py(), "timeout", timeout)?;
        Ok(Claim { producer: slf.clone().unbind(), len: number("n", n)?, timeout, view: Mutex::new(None) })
    }

    /// Publishes what `batch` holds back. ClosedError when the ring was closed meanwhile and its consumer may have ended without it.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let mut pushing = enter(py, &self.cell)?;
        pushing.handle.flush().map_err(|e| raise(py, &e))
    }

    /// `push` for a coroutine: others run while it waits. Cancelled, it has not pushed.
    fn apush<'py>(slf: &Bound<'py, Self>, record: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        super::in_loop(slf.py(), "push")?.call1((slf, record))
    }

    /// An fd that is readable when a full ring may have room again. From its first use on, a `try_push` that returns False arms it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let mut pushing = enter(py, &self.cell)?;
        pushing.handle.fd().map(|fd| fd.as_raw_fd()).map_err(|e| raise(py, &e))
    }

    /// Publishes, and gives the seat back; the ring stays open. Idempotent; ends a call of another thread with ClosedError.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.cell.close(py)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.cell.close(py)
    }

    /// As `try_push`, and Full where the ring rejects.
    fn _offer(&self, record: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = record.py();
        let source = Source::of(record)?;
        let mut pushing = enter(py, &self.cell)?;
        let offered = pushing.ready().and_then(|p| {
            let pushed = Self::try_push_source(py, p, &source)?;
            if !pushed && p.on_full() == OnFull::Reject {
                return Err(Error::new(ErrorKind::Full, "ring is full").with("record_len", source.len()));
            }
            Ok(pushed)
        });
        offered.map_err(|e| raise(py, &e))
    }

    fn _spend(&self) -> bool {
        self.turn.spend()
    }

    fn _park(&self, py: Python<'_>, event_loop: Py<PyAny>, waker: Py<PyAny>) -> PyResult<()> {
        self.cell.park(event_loop, waker).map_err(|e| raise(py, &e))
    }

    fn _unpark(&self, waker: &Bound<'_, PyAny>) {
        if self.cell.unpark(waker) {
            self.turn.begin();
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.cell.traverse(&visit)
    }

    fn __clear__(&self) {
        self.cell.clear();
    }
}

/// A block that writes one record in place.
#[pyclass(name = "_Claim", module = "offloop._native", frozen)]
pub(crate) struct Claim {
    producer: Py<PyProducer>,
    len: usize,
    timeout: Option<Duration>,
    view: Mutex<Option<Py<PyMemoryView>>>,
}

impl Claim {
    fn take_view(&self) -> Option<Py<PyMemoryView>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the claim that is open: a record of `len` bytes, or none. False when a view of it lives on.
    fn end(pushing: &mut Guard<'_, Pushing>, commit: Option<usize>) -> Result<bool, Error> {
        let Some(producer) = pushing.end() else { return Ok(false) };
        match commit {
            Some(len) => producer.commit_claim(len).map(|()| true),
            None => {
                producer.abort_claim();
                Ok(true)
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A block that was entered and never left: its claim is given up with its view.
        if self.take_view().is_some()
            && let Ok(mut pushing) = self.producer.get().cell.enter()
        {
            let _ = Claim::end(&mut pushing, None);
        }
    }
}

#[pymethods]
impl Claim {
    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let this = self.producer.get();
        let mut pushing = enter(py, &this.cell)?;
        let producer = pushing.ready().map_err(|e| raise(py, &e))?;
        let room = match producer.try_claim_ptr(self.len).map_err(|e| raise(py, &e))? {
            Some(room) => room.as_ptr(),
            None => wait_claim(py, &this.cell, producer, self.len, self.timeout)?,
        };
        pushing.window.open(room, self.len);
        let keep: Arc<dyn Lessor> = this.cell.clone();
        let made = Bound::new(py, View::new(&pushing.window, true, keep)).and_then(|v| PyMemoryView::from(v.as_any()));
        match made {
            Ok(view) => {
                let old = self.view.lock().unwrap_or_else(PoisonError::into_inner).replace(view.clone().unbind());
                drop(old);
                Ok(view)
            }
            Err(e) => {
                Claim::end(&mut pushing, None).map_err(|e| raise(py, &e))?;
                Err(e)
            }
        }
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        exc_type: &Bound<'_, PyAny>,
        _exc: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let Some(view) = self.take_view() else {
            return Err(raise(py, &Error::invalid("this claim is not open")));
        };
        release(view.bind(py));
        let failed = !exc_type.is_none();
        let mut pushing = match self.producer.get().cell.enter() {
            Ok(pushing) => pushing,
            // The block's own exception says more.
            Err(_) if failed => return Ok(()),
            Err(e) => return Err(raise(py, &e)),
        };
        match Claim::end(&mut pushing, (!failed).then_some(self.len)) {
            Ok(true) => Ok(()),
            _ if failed => Ok(()),
            Ok(false) => Err(raise(py, &Pushing::kept())),
            Err(e) => Err(raise(py, &e)),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.producer)?;
        if let Ok(view) = self.view.try_lock()
            && let Some(view) = &*view
        {
            visit.call(view)?;
        }
        Ok(())
    }
}
