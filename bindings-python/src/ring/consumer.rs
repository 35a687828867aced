//! The handle that pops.

use super::delivery::Delivery;
use super::exclusive::{Exclusive, Guard, enter};
use super::turn::Turn;
use super::view::{Lend, Lent, Lessor, View, release};
use crate::copy::to_bytes;
use crate::error::{error_class, number, raise};
use crate::future::seconds;
use crate::wait;
use offloop::error::{Error, ErrorKind};
use offloop::ring::{Ack, Acks, Consumer, ConsumerOptions, HeldRing};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyMemoryView, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

impl Lend for Consumer {
    const KEPT: &'static str = "a view of a record is still alive; copy what is kept, and drop what was made from it";

    fn give_up(&mut self) {
        self.release();
    }
}

/// A consumer of core, and the record that Python code looks at.
struct Popping {
    lent: Lent<Consumer>,
    /// Of the record that was taken last.
    redelivered: bool,
    /// Of a consumer whose records are acknowledged one by one.
    acks: Option<Acks>,
}

impl Popping {
    /// The oldest record as `bytes`, or as a `Delivery`.
    #[inline]
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(record) = self.lent.handle.peek().map_err(|e| raise(py, &e))? else { return Ok(None) };
        let (redelivered, delivery) = (record.is_redelivered(), record.delivery());
        // SAFETY: the record stays readable until it is let go of, two lines below.
        let bytes = unsafe { to_bytes(py, record.as_ptr(), record.len())? };
        self.redelivered = redelivered;
        self.lent.handle.release();
        Ok(Some(match &self.acks {
            Some(acks) => Delivery::object(py, bytes, redelivered, acks, delivery)?,
            None => bytes,
        }))
    }
}

fn is_closed(py: Python<'_>, e: &PyErr) -> bool {
    error_class(py, ErrorKind::Closed.status()).is_ok_and(|class| e.get_type(py).is(&class))
}

/// Pops records of a ring. One caller at a time; any thread. Gives its seat back when it is closed or dropped.
///
/// `for record in consumer` and `async for record in consumer` go on until the ring is closed and drained.
#[pyclass(name = "Consumer", module = "offloop", frozen, weakref)]
pub(crate) struct PyConsumer {
    cell: Arc<Exclusive<Popping>>,
    turn: Turn,
}

impl PyConsumer {
    pub(super) fn open(ring: &Arc<HeldRing>, ack: Ack) -> Result<PyConsumer, Error> {
        let consumer = ring.consumer(ConsumerOptions { ack })?;
        let acks = consumer.acks().ok();
        let lent = Lent::new(consumer);
        let window = Arc::clone(&lent.window);
        let cell = Exclusive::new("consumer", ring, &window, Popping { lent, redelivered: false, acks });
        Ok(PyConsumer { cell: Arc::new(cell), turn: Turn::new() })
    }

    #[inline]
    fn enter(&self, py: Python<'_>) -> PyResult<Guard<'_, Popping>> {
        let mut popping = enter(py, &self.cell)?;
        popping.lent.ready().map_err(|e| raise(py, &e))?;
        Ok(popping)
    }

    /// Waits for a record; `Timeout` after so long.
    fn wait_record(&self, py: Python<'_>, popping: &mut Popping, timeout: Option<Duration>) -> PyResult<()> {
        let consumer = &mut popping.lent.handle;
        let found = wait::until(py, timeout, |slice| {
            if self.cell.is_closing() {
                return Err(self.cell.closed());
            }
            match consumer.wait(Some(slice)) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == ErrorKind::Timeout => Ok(false),
                Err(e) => Err(e),
            }
        })?;
        if found {
            return Ok(());
        }
        Err(wait::timed_out(py, "no record in the ring", timeout))
    }

    /// The oldest record as `bytes`; waits for it.
    fn wait_take<'py>(&self, py: Python<'py>, popping: &mut Popping, timeout: Option<Duration>) -> PyResult<Bound<'py, PyAny>> {
        loop {
            if let Some(bytes) = popping.take(py)? {
                return Ok(bytes);
            }
            self.wait_record(py, popping, timeout)?;
        }
    }

    /// Shows one record to `fn`. It is taken, whatever `fn` does.
    fn show(
        py: Python<'_>,
        popping: &mut Popping,
        exporter: &Bound<'_, View>,
        call: &Bound<'_, PyAny>,
        at: (*mut u8, usize),
    ) -> PyResult<()> {
        popping.lent.window.open(at.0, at.1);
        let called = PyMemoryView::from(exporter.as_any()).and_then(|view| {
            let called = call.call1((&view,));
            release(&view);
            called
        });
        if let Some(consumer) = popping.lent.end() {
            consumer.release();
            called.map(drop)
        } else {
            // An exception of `fn` holds its frame, and with that the view, so it is the one to show.
            called.and_then(|_| Err(raise(py, &Lent::<Consumer>::kept())))
        }
    }
}

#[pymethods]
impl PyConsumer {
    /// The oldest record, as bytes or as a Delivery, or None while the ring is empty. Drained, it raises ClosedError or PeerDiedError.
    fn try_pop<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.enter(py)?.take(py)
    }

    /// The oldest record; waits, without the GIL, at most `timeout` seconds (None: without end). TimeoutError after that.
    #[pyo3(signature = (timeout = None))]
    fn pop<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let timeout = seconds(py, "timeout", timeout)?;
        let mut popping = self.enter(py)?;
        self.wait_take(py, &mut popping, timeout)
    }

    /// Waits until there is a record, for `read`; it stays where it is. TimeoutError after `timeout` seconds.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = seconds(py, "timeout", timeout)?;
        let mut popping = self.enter(py)?;
        self.wait_record(py, &mut popping, timeout)
    }

    /// Waits for a record as `pop` does, and returns it with those behind it, at most `max`.
    #[pyo3(signature = (max, timeout = None))]
    fn pop_many<'py>(&self, py: Python<'py>, max: &Bound<'py, PyAny>, timeout: Option<f64>) -> PyResult<Bound<'py, PyList>> {
        let timeout = seconds(py, "timeout", timeout)?;
        let max: usize = number("max", max)?;
        let records = PyList::empty(py);
        if max == 0 {
            return Ok(records);
        }
        let mut popping = self.enter(py)?;
        records.append(self.wait_take(py, &mut popping, timeout)?)?;
        for _ in 1..max {
            match popping.take(py) {
                Ok(Some(record)) => records.append(record)?,
                Ok(None) => break,
                // Told again by the next call, which then has nothing else to tell.
                Err(_) => break,
            }
        }
        Ok(records)
    }

    /// Passes up to `max` records to `fn`, oldest first, as memoryviews of the ring itself; returns how many. Does not wait.
    ///
    /// A view ends when `fn` returns; one that is kept raises InUseError. A record that `fn` was called with is taken, even if
    /// it raises. With ack="manual" `fn` gets Deliveries instead, with copies.
    fn read(&self, py: Python<'_>, max: &Bound<'_, PyAny>, r#fn: &Bound<'_, PyAny>) -> PyResult<usize> {
        let max: usize = number("max", max)?;
        let mut popping = self.enter(py)?;
        let keep: Arc<dyn Lessor> = self.cell.clone();
        let exporter = Bound::new(py, View::new(&popping.lent.window, false, keep))?;
        let mut n = 0;
        while n < max && popping.acks.is_some() {
            match popping.take(py) {
                Ok(Some(delivery)) => r#fn.call1((delivery,))?,
                Ok(None) => break,
                Err(_) if n > 0 => break,
                Err(e) => return Err(e),
            };
            n += 1;
            if self.cell.is_closing() {
                return Ok(n);
            }
        }
        while n < max && popping.acks.is_none() {
            let (at, redelivered) = match popping.lent.handle.peek() {
                Ok(Some(record)) => ((record.as_ptr().cast_mut(), record.len()), record.is_redelivered()),
                Ok(None) => break,
                // Told again by the next call, which then has nothing else to tell.
                Err(_) if n > 0 => break,
                Err(e) => return Err(raise(py, &e)),
            };
            popping.redelivered = redelivered;
            Self::show(py, &mut popping, &exporter, r#fn, at)?;
            n += 1;
            if self.cell.is_closing() {
                break;
            }
        }
        Ok(n)
    }

    /// Whether a consumer that died may have seen the record that was taken last.
    #[getter]
    fn redelivered(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(enter(py, &self.cell)?.redelivered)
    }

    /// Records of an overwriting ring that were overwritten before this consumer came to them.
    #[getter]
    fn lost(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(enter(py, &self.cell)?.lent.handle.lost())
    }

    /// `pop` for a coroutine: others run while it waits. Cancelled, it has taken nothing.
    fn apop<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        super::in_loop(slf.py(), "pop")?.call1((slf,))
    }

    /// An fd that is readable when there may be a record, or a peer died. From its first use on, a `try_pop` that returns None
    /// arms it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let mut popping = self.enter(py)?;
        popping.lent.handle.fd().map(|fd| fd.as_raw_fd()).map_err(|e| raise(py, &e))
    }

    /// Gives the seat back; the ring stays open. Idempotent; ends a call of another thread with ClosedError.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.cell.close(py)
    }

    /// `Consumer[bytes]` and `Consumer[Delivery]` are types for checkers.
    #[classmethod]
    fn __class_getitem__(cls: &Bound<'_, PyType>, _item: &Bound<'_, PyAny>) -> Py<PyType> {
        cls.clone().unbind()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.cell.close(py)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let next = self.enter(py).and_then(|mut popping| self.wait_take(py, &mut popping, None));
        match next {
            Ok(record) => Ok(Some(record)),
            Err(e) if is_closed(py, &e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        super::in_loop(slf.py(), "Records")?.call1((slf,))
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
