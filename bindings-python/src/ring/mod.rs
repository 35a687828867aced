//! `RingBuffer` and its handles.
//!
//! ```text
//!   RingBuffer ──┬── Producer ── claim() ── _Claim ──► memoryview of _View     producer, view
//!                └── Consumer ── read() ─────────────► memoryview of _View     consumer, view
//!                        └────── pop() ──► Delivery, where records are acknowledged   delivery
//!
//!   exclusive  one caller at a time, closing from anywhere      record  bytes in and out
//!   turn       when a task lets its loop go on                  offloop._ring (Python) waits in event loops
//! ```

mod consumer;
mod delivery;
mod exclusive;
mod producer;
mod record;
mod turn;
mod view;

use crate::error::{invalid, number, raise};
use crate::value::to_python;
use consumer::PyConsumer;
use offloop::RingBuffer;
use offloop::error::{Error, ErrorKind};
use offloop::ring::{HeldRing, OnFull};
use producer::PyProducer;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple, PyType, PyWeakrefMethods, PyWeakrefReference};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A bounded queue of records in mapped memory, between threads, processes and languages, that survives kill -9.
///
/// `RingBuffer.create(kind)` makes one; another process gets it by `RingBuffer.attach(fds)`. `producer()` and `consumer()`
/// give the handles that push and pop. As a context manager it closes the ring, for everybody, at the end of the block.
#[pyclass(name = "RingBuffer", module = "offloop", frozen, weakref)]
pub(crate) struct PyRing {
    /// Its handles have it, too, and settle it when they are closed.
    held: Arc<HeldRing>,
    facts: Facts,
    /// The handle that `fileno` speaks for: a consumer before a producer, the last before others.
    polled: Mutex<Option<(bool, Py<PyWeakrefReference>)>>,
}

/// What never changes of a ring.
struct Facts {
    kind: &'static str,
    capacity: usize,
    slot_size: usize,
    max_record_len: usize,
    path: Option<PathBuf>,
}

/// Lets go of a ring that its object has closed, once nobody here can want it any more.
fn settle(held: &HeldRing) {
    held.settle(0, false, || true);
}

impl PyRing {
    fn new(ring: RingBuffer) -> PyRing {
        let facts = Facts {
            kind: ring.kind().as_str(),
            capacity: ring.capacity(),
            slot_size: ring.slot_size(),
            max_record_len: ring.max_record_len(),
            path: ring.path().map(Path::to_path_buf),
        };
        PyRing { held: Arc::new(HeldRing::new(ring)), facts, polled: Mutex::new(None) }
    }

    fn remember(&self, handle: &Bound<'_, PyAny>, is_consumer: bool) -> PyResult<()> {
        let weak = PyWeakrefReference::new(handle)?.unbind();
        let mut polled = self.polled.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match &*polled {
            Some((true, _)) if !is_consumer => None,
            _ => polled.replace((is_consumer, weak)),
        };
        // Not under the lock: dropping an object may run Python code.
        drop(polled);
        drop(old);
        Ok(())
    }
}

/// A size or a number of things: a non-negative integer.
fn count(name: &'static str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    value.map(|v| number(name, v)).transpose()
}

/// A function or class of `offloop._ring`, which waits in event loops.
fn in_loop<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("offloop._ring")?.getattr(name)
}

#[pymethods]
impl PyRing {
    /// A new ring. `kind`: "spsc", "mpsc", "broadcast" or "mpmc"; `capacity`: bytes, of which one record may take half;
    /// `slot_size`: bytes of a slot of "mpmc", a record and 16; `on_full`: what a push does when there is no room: "wait", "reject", or "overwrite" (broadcast).
    #[classmethod]
    #[pyo3(signature = (kind, *, capacity = None, slot_size = None, max_participants = None, path = None, on_full = "wait"))]
    #[allow(clippy::too_many_arguments, reason = "options of a Python function")]
    fn create(
        _cls: &Bound<'_, PyType>,
        py: Python<'_>,
        kind: &str,
        capacity: Option<Bound<'_, PyAny>>,
        slot_size: Option<Bound<'_, PyAny>>,
        max_participants: Option<Bound<'_, PyAny>>,
        path: Option<PathBuf>,
        on_full: &str,
    ) -> PyResult<PyRing> {
        let core = |e: Error| raise(py, &e);
        let mut builder = RingBuffer::builder(kind.parse().map_err(core)?).on_full(on_full.parse::<OnFull>().map_err(core)?);
        if let Some(bytes) = count("capacity", capacity.as_ref())? {
            builder = builder.capacity(bytes);
        }
        if let Some(n) = count("max_participants", max_participants.as_ref())? {
            builder = builder.max_participants(n);
        }
        if let Some(bytes) = count("slot_size", slot_size.as_ref())? {
            builder = builder.slot_size(bytes);
        }
        if let Some(path) = path {
            builder = builder.path(path);
        }
        // Reserving the memory touches every page.
        py.detach(|| builder.create()).map(PyRing::new).map_err(core)
    }

    /// The ring of another process: by what its `fds` gave, which are duplicated, or by its path.
    #[classmethod]
    fn attach(_cls: &Bound<'_, PyType>, path_or_fds: &Bound<'_, PyAny>) -> PyResult<PyRing> {
        let py = path_or_fds.py();
        if path_or_fds.is_instance_of::<PyString>() || path_or_fds.hasattr(intern!(py, "__fspath__"))? {
            let path: PathBuf = path_or_fds.extract()?;
            return RingBuffer::attach_path(path).map(PyRing::new).map_err(|e| raise(py, &e));
        }
        let fds = path_or_fds
            .try_iter()
            .map_err(|_| PyTypeError::new_err("attach takes a path or the numbers of fds"))?
            .map(|fd| number::<RawFd>("fd", &fd?))
            .collect::<PyResult<Vec<_>>>()?;
        if let Some(fd) = fds.iter().find(|fd| **fd < 0) {
            return Err(invalid(py, "file descriptor is negative", "fd", fd));
        }
        // SAFETY: not -1; core checks what each number refers to before using it.
        let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
        RingBuffer::attach(&fds).map(PyRing::new).map_err(|e| raise(py, &e))
    }

    /// What another process needs to attach: pass them by `pass_fds` or SCM_RIGHTS. They are the ring's own, valid while it is.
    #[getter]
    fn fds(&self, py: Python<'_>) -> PyResult<Vec<RawFd>> {
        self.held.with(RingBuffer::fds).map_err(|e| raise(py, &e))
    }

    /// Header, participants and positions of a ring at a path, without attaching to it.
    #[classmethod]
    fn inspect<'py>(_cls: &Bound<'py, PyType>, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, RingBuffer::inspect(path).map_err(|e| raise(py, &e))?.to_value())
    }

    /// Removes a ring at a path that nobody is attached to; False if somebody is, or there is none.
    #[classmethod]
    fn remove_stale(_cls: &Bound<'_, PyType>, py: Python<'_>, path: PathBuf) -> PyResult<bool> {
        RingBuffer::remove_stale(path).map_err(|e| raise(py, &e))
    }

    /// As `inspect`, for this ring.
    fn stat<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, self.held.stat().map_err(|e| raise(py, &e))?.to_value())
    }

    /// Where a ring that was made with a path lies, else None.
    #[getter]
    fn path(&self) -> Option<&Path> {
        self.facts.path.as_deref()
    }

    /// Takes the ring's path away; who is attached stays so.
    fn remove(&self, py: Python<'_>) -> PyResult<()> {
        self.held.with(RingBuffer::remove).map_err(|e| raise(py, &e))?;
        settle(&self.held);
        Ok(())
    }

    /// The word that `create` was given.
    #[getter]
    fn kind(&self) -> &'static str {
        self.facts.kind
    }

    /// Bytes: what `create` was given, rounded up to a power of two.
    #[getter]
    fn capacity(&self) -> usize {
        self.facts.capacity
    }

    /// Bytes of a slot of an "mpmc" ring, else 0.
    #[getter]
    fn slot_size(&self) -> usize {
        self.facts.slot_size
    }

    /// Bytes of the longest record.
    #[getter]
    fn max_record_len(&self) -> usize {
        self.facts.max_record_len
    }

    /// Whether somebody closed the ring.
    #[getter]
    fn closed(&self) -> bool {
        self.held.is_closed()
    }

    /// The pollable fd of the consumer that this object gave last, or else of the producer.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let weak = self.polled.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, weak)| weak.clone_ref(py));
        match weak.and_then(|w| w.bind(py).upgrade()) {
            Some(handle) => handle.call_method0(intern!(py, "fileno"))?.extract(),
            None => Err(raise(py, &Error::invalid("ring has no producer or consumer here whose fd could be polled"))),
        }
    }

    /// A handle that pushes. `batch`: records become visible by `flush`, every 4 KiB, and when the consumer has nothing else to do.
    #[pyo3(signature = (batch = false))]
    fn producer<'py>(&self, py: Python<'py>, batch: bool) -> PyResult<Bound<'py, PyProducer>> {
        let handle = Bound::new(py, PyProducer::open(&self.held, batch).map_err(|e| raise(py, &e))?)?;
        self.remember(handle.as_any(), false)?;
        Ok(handle)
    }

    /// A handle that pops. `ack`: "auto" lets go of a record when it was popped; "manual", in "mpmc", gives Deliveries, which are in
    /// flight until they are acknowledged.
    #[pyo3(signature = (ack = "auto"))]
    fn consumer<'py>(&self, py: Python<'py>, ack: &str) -> PyResult<Bound<'py, PyConsumer>> {
        let opened = ack.parse().and_then(|ack| PyConsumer::open(&self.held, ack));
        let handle = Bound::new(py, opened.map_err(|e| raise(py, &e))?)?;
        self.remember(handle.as_any(), true)?;
        Ok(handle)
    }

    /// Nothing more is pushed, by anybody. Consumers get what is there, and ClosedError after it; in "mpmc" after what others have in
    /// flight is dealt with, too, unless they have something to acknowledge themselves.
    ///
    /// Fds and memory go when the last handle of this object is closed, if nothing waits in the ring; with the object otherwise.
    fn close(&self) {
        self.held.close();
        settle(&self.held);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, _exc: &Bound<'_, PyTuple>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        format!("RingBuffer(kind={:?}, capacity={})", self.kind(), self.capacity())
    }

    fn __reduce__(&self, py: Python<'_>) -> PyResult<()> {
        Err(raise(py, &Error::new(ErrorKind::Unserializable, "a RingBuffer is passed by its fds; see attach")))
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyRing>()?;
    m.add_class::<PyProducer>()?;
    m.add_class::<PyConsumer>()?;
    m.add_class::<delivery::Delivery>()?;
    m.add_class::<producer::Claim>()
}
