//! Ends of channels and listeners. `offloop._channel` (Python) makes messages of what comes, and waits in event loops.

use crate::buffer::PyTransferBuffer;
use crate::error::{invalid, number, number_option, raise};
use crate::future::seconds;
use crate::{value, wait};
use offloop::TransferBuffer;
use offloop::channel::{Channel, Found, Incoming, Listener, Message, Options, Reply};
use offloop::error::{Error, ErrorKind, Result as CoreResult};
use offloop::value::Value;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::cell::RefCell;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A size as it was given.
type Size<'py> = Option<Bound<'py, PyAny>>;

fn options(capacity: Size<'_>, max_message: Size<'_>, max_queued: Size<'_>) -> PyResult<Options> {
    let size = |given: Size<'_>, name, default| given.map_or(Ok(default), |given| number_option(name, &given));
    let defaults = Options::default();
    Ok(Options {
        capacity: size(capacity, "capacity", defaults.capacity)?,
        max_message: size(max_message, "max_message", defaults.max_message)?,
        max_queued: size(max_queued, "max_queued", defaults.max_queued)?,
    })
}

/// File descriptors that belong to whoever takes them; those that nobody takes are closed.
#[pyclass(name = "_Fds", module = "offloop", frozen)]
pub(crate) struct PyFds {
    fds: Mutex<Vec<OwnedFd>>,
}

#[pymethods]
impl PyFds {
    fn take(&self) -> Vec<RawFd> {
        let fds = std::mem::take(&mut *self.fds.lock().unwrap_or_else(PoisonError::into_inner));
        fds.into_iter().map(IntoRawFd::into_raw_fd).collect()
    }
}

/// What is to be sent.
struct Parcel {
    value: Value,
    /// Owners of the buffers in it.
    owners: Vec<Py<PyTransferBuffer>>,
    fds: Vec<RawFd>,
}

impl Parcel {
    /// The value is read, and its buffers are taken, before anything is sent.
    fn new(object: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>) -> PyResult<Parcel> {
        Parcel::with(object, &[], fds)
    }

    /// As [`new`](Self::new); each of `named` has to be among the buffers that move.
    fn with(object: &Bound<'_, PyAny>, named: &[Bound<'_, PyTransferBuffer>], fds: Vec<Bound<'_, PyAny>>) -> PyResult<Parcel> {
        let py = object.py();
        let fds = fds.iter().map(|fd| number_option("fds", fd)).collect::<PyResult<Vec<RawFd>>>()?;
        if let Some(fd) = fds.iter().find(|fd| **fd < 0) {
            return Err(invalid(py, "file descriptor is negative", "fd", fd));
        }
        let owners = RefCell::default();
        let mut value = value::from_python_moving(object, &owners)?;
        let owners = owners.into_inner();
        if let Some(at) = named.iter().position(|named| !owners.iter().any(|owner| owner.is(named))) {
            return Err(invalid(py, "a buffer that was named is not in the value", "at", at));
        }
        let mut taken = Vec::with_capacity(owners.len());
        for owner in &owners {
            match owner.get().take() {
                Ok(buffer) => taken.push(buffer),
                Err(e) => {
                    give_back(&owners, taken);
                    return Err(raise(py, &e));
                }
            }
        }
        let mut taken = taken.into_iter();
        value.each_buffer_mut(&mut |place| *place = taken.next().expect("a buffer for each place"));
        Ok(Parcel { value, owners, fds })
    }

    /// Sends by `send`; what was not sent goes back to its owners.
    fn send<R>(mut self, send: impl FnOnce(&mut Value, &[BorrowedFd<'_>]) -> PyResult<R>) -> PyResult<R> {
        // SAFETY: none is -1; a number that is not open is refused by the first call on it.
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        let sent = send(&mut self.value, &fds);
        if sent.is_err() {
            let mut left = Vec::with_capacity(self.owners.len());
            self.value.each_buffer_mut(&mut |place| left.push(std::mem::take(place)));
            give_back(&self.owners, left);
        }
        sent
    }
}

fn give_back(owners: &[Py<PyTransferBuffer>], buffers: Vec<TransferBuffer>) {
    for (owner, buffer) in owners.iter().zip(buffers) {
        owner.get().put_back(buffer);
    }
}

/// Repeats what waits in slices: `Timeout` of a slice is not the caller's.
fn slice<T>(done: CoreResult<T>, out: &mut Option<T>) -> CoreResult<bool> {
    match done {
        Ok(value) => {
            *out = Some(value);
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::Timeout => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits without the GIL; Ctrl-C ends it.
fn waiting<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    what: &'static str,
    mut step: impl FnMut(Option<Duration>) -> CoreResult<T> + Send,
) -> PyResult<T> {
    let mut out = None;
    if wait::until(py, timeout, |left| slice(step(Some(left)), &mut out))? {
        return Ok(out.expect("set by the slice that was the last"));
    }
    let ms = timeout.map_or(0, |t| t.as_millis());
    Err(raise(py, &Error::new(ErrorKind::Timeout, what).with("timeout_ms", ms)))
}

/// `(kind, id, failed, value, fds)`: "message", "request", "reply", "lost" (a reply that will not come: the value is the error), "drained",
/// "unreadable" (a message without a Python form, or a request with its id: the value is the error). Without fds the last is None.
fn event<'py>(py: Python<'py>, incoming: Incoming) -> PyResult<Bound<'py, PyTuple>> {
    let of = |kind: &str, id: u64, failed: bool, message: Message| {
        let fds = if message.fds.is_empty() { None } else { Some(PyFds { fds: Mutex::new(message.fds) }) };
        match value::to_python(py, message.value) {
            Ok(value) => (kind, id, failed, value, fds).into_pyobject(py),
            // The fds are closed, and nothing else is lost by it.
            Err(e) => {
                let kind = if kind == "reply" { "lost" } else { "unreadable" };
                (kind, id, true, e.into_value(py), None::<PyFds>).into_pyobject(py)
            }
        }
    };
    match incoming {
        Incoming::Message(message) => of("message", 0, false, message),
        Incoming::Request(request) => of("request", request.id, false, request.message),
        Incoming::Reply { id, outcome: Ok(reply) } => of("reply", id, reply.failed, reply.message),
        Incoming::Reply { id, outcome: Err(e) } => ("lost", id, true, crate::error::exception(py, &e)?, None::<PyFds>).into_pyobject(py),
        Incoming::Drained => bare(py, "drained"),
    }
}

fn bare<'py>(py: Python<'py>, kind: &str) -> PyResult<Bound<'py, PyTuple>> {
    (kind, 0u64, false, py.None(), py.None()).into_pyobject(py)
}

/// One end of a channel.
#[pyclass(name = "_Channel", module = "offloop", frozen, weakref)]
pub(crate) struct PyChannel {
    pub(crate) channel: Channel,
}

#[pymethods]
impl PyChannel {
    #[staticmethod]
    fn pair(py: Python<'_>, capacity: Size<'_>, max_message: Size<'_>, max_queued: Size<'_>) -> PyResult<(PyChannel, PyChannel)> {
        let (a, b) = Channel::pair(options(capacity, max_message, max_queued)?).map_err(|e| raise(py, &e))?;
        Ok((PyChannel { channel: a }, PyChannel { channel: b }))
    }

    #[staticmethod]
    fn attach(fd: &Bound<'_, PyAny>, max_message: Size<'_>, max_queued: Size<'_>) -> PyResult<PyChannel> {
        let options = options(None, max_message, max_queued)?;
        let (py, fd) = (fd.py(), number::<RawFd>("fd", fd)?);
        if fd < 0 {
            return Err(invalid(py, "file descriptor is negative", "fd", fd));
        }
        // SAFETY: not -1; it is given back untouched unless it is an end of a channel, which the caller hands over.
        match Channel::attach(unsafe { OwnedFd::from_raw_fd(fd) }, options) {
            Ok(channel) => Ok(PyChannel { channel }),
            Err((e, fd)) => {
                let _ = fd.into_raw_fd();
                Err(raise(py, &e))
            }
        }
    }

    /// Connected, and open when `wait_open` or `try_open` says so.
    #[staticmethod]
    fn connect(py: Python<'_>, path: PathBuf, max_message: Size<'_>, max_queued: Size<'_>) -> PyResult<PyChannel> {
        let channel = Channel::begin_connect(path, options(None, max_message, max_queued)?).map_err(|e| raise(py, &e))?;
        Ok(PyChannel { channel })
    }

    fn wait_open(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = seconds(py, "timeout", timeout)?;
        waiting(py, timeout, "listener did not accept", |left| self.channel.wait_open(left))
    }

    fn try_open(&self, py: Python<'_>) -> PyResult<bool> {
        self.channel.try_open().map_err(|e| raise(py, &e))
    }

    fn socket(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.channel.socket().map_err(|e| raise(py, &e))
    }

    fn send(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        buffers: Vec<Bound<'_, PyTransferBuffer>>,
        fds: Vec<Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let timeout = seconds(py, "timeout", timeout)?;
        Parcel::with(value, &buffers, fds)?
            .send(|value, fds| waiting(py, timeout, "no room in the channel", |left| self.channel.send(value, fds, left)))
    }

    /// False when it is queued.
    fn post(
        &self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
        buffers: Vec<Bound<'_, PyTransferBuffer>>,
        fds: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Parcel::with(value, &buffers, fds)?.send(|value, fds| self.channel.post(value, fds).map_err(|e| raise(py, &e)))
    }

    /// As `post`, for one of several who get the same: no buffer moves.
    fn post_copy(&self, py: Python<'_>, value: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>) -> PyResult<bool> {
        let parcel = Parcel::new(value, fds)?;
        let buffers = parcel.owners.len();
        parcel.send(|value, fds| {
            if buffers > 0 {
                return Err(invalid(py, "a buffer moves to one worker: a broadcast copies bytes only", "buffers", buffers));
            }
            self.channel.post(value, fds).map_err(|e| raise(py, &e))
        })
    }

    fn reply(
        &self,
        py: Python<'_>,
        id: u64,
        failed: bool,
        value: &Bound<'_, PyAny>,
        fds: Vec<Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let timeout = seconds(py, "timeout", timeout)?;
        Parcel::new(value, fds)?
            .send(|value, fds| waiting(py, timeout, "no room in the channel", |left| self.channel.reply(id, failed, value, fds, left)))
    }

    /// False when it is queued.
    fn post_reply(&self, py: Python<'_>, id: u64, failed: bool, value: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>) -> PyResult<bool> {
        Parcel::new(value, fds)?.send(|value, fds| self.channel.post_reply(id, failed, value, fds).map_err(|e| raise(py, &e)))
    }

    fn request<'py>(
        &self,
        py: Python<'py>,
        value: &Bound<'py, PyAny>,
        fds: Vec<Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let timeout = seconds(py, "timeout", timeout)?;
        let until = timeout.and_then(|t| std::time::Instant::now().checked_add(t));
        let id = Parcel::new(value, fds)?
            .send(|value, fds| waiting(py, timeout, "no room in the channel", |left| self.channel.begin_request(value, fds, left)))?;
        let left = until.map(|until| until.saturating_duration_since(std::time::Instant::now()));
        let reply: PyResult<Reply> = waiting(py, left, "no reply in time", |left| self.channel.end_request(id, left));
        if reply.is_err() {
            self.channel.abandon(id);
        }
        event(py, Incoming::Reply { id, outcome: Ok(reply?) })
    }

    /// The request's number.
    fn post_request(&self, py: Python<'_>, value: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>, timeout: Option<f64>) -> PyResult<u64> {
        let timeout = seconds(py, "timeout", timeout)?;
        Parcel::new(value, fds)?.send(|value, fds| self.channel.post_request(value, fds, timeout).map_err(|e| raise(py, &e)))
    }

    fn abandon(&self, id: u64) -> bool {
        self.channel.abandon(id)
    }

    fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyTuple>> {
        let timeout = seconds(py, "timeout", timeout)?;
        event(py, waiting(py, timeout, "no message on the channel", |left| self.channel.recv_message(left))?)
    }

    /// As `recv` without waiting.
    fn message<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.channel.try_message().map_err(|e| raise(py, &e))?.map(|incoming| event(py, incoming)).transpose()
    }

    /// What a loop asked for; "more" when something else was read, and messages wait for `message`.
    fn outcome<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        match self.channel.try_outcome().map_err(|e| raise(py, &e))? {
            Found::Incoming(incoming) => event(py, incoming).map(Some),
            Found::More => bare(py, "more").map(Some),
            Found::Nothing => Ok(None),
        }
    }

    /// Messages that wait for `recv`.
    #[getter]
    fn unread(&self) -> usize {
        self.channel.unread()
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.channel.fd().map_err(|e| raise(py, &e))
    }

    /// False while what was queued is sent first, for which there is `grace`.
    fn close(&self, py: Python<'_>, grace: Option<f64>) -> PyResult<bool> {
        seconds(py, "grace", grace)?;
        self.channel.close();
        Ok(!self.channel.wait_closed(Some(Duration::ZERO)).is_err_and(|e| e.kind() == ErrorKind::Timeout))
    }

    /// Waits until what was queued is sent, and drops what is not by then.
    fn wait_closed(&self, py: Python<'_>, grace: Option<f64>) -> PyResult<()> {
        let grace = seconds(py, "grace", grace)?;
        wait::until(py, grace, |left| slice(self.channel.wait_closed(Some(left)), &mut None))?;
        self.channel.close_now();
        Ok(())
    }

    fn close_now(&self) {
        self.channel.close_now();
    }

    /// As `close_now`: the process at the other end is no more.
    fn close_dead(&self) {
        self.channel.close_dead();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.channel.ended().is_some()
    }

    #[getter]
    fn peer_pid(&self) -> Option<u32> {
        self.channel.peer_pid()
    }

    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.channel.stats();
        let out = PyDict::new(py);
        out.set_item("sent", stats.sent)?;
        out.set_item("received", stats.received)?;
        out.set_item("pending", stats.pending)?;
        out.set_item("late_replies", stats.late_replies)?;
        out.set_item("queued", stats.queued)?;
        Ok(out)
    }
}

/// Accepts channels at a path.
#[pyclass(name = "_Listener", module = "offloop", frozen, weakref)]
pub(crate) struct PyListener {
    listener: Mutex<Option<Arc<Listener>>>,
    path: PathBuf,
}

impl PyListener {
    fn get(&self, py: Python<'_>) -> PyResult<Arc<Listener>> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listener.ok_or_else(|| raise(py, &Error::new(ErrorKind::Closed, "listener was closed")))
    }
}

#[pymethods]
impl PyListener {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, capacity: Size<'_>, max_message: Size<'_>, max_queued: Size<'_>) -> PyResult<PyListener> {
        let listener = Channel::listen(path, options(capacity, max_message, max_queued)?).map_err(|e| raise(py, &e))?;
        let path = listener.path().to_path_buf();
        Ok(PyListener { listener: Mutex::new(Some(Arc::new(listener))), path })
    }

    /// A wait in slices: one that is closed meanwhile ends it.
    fn accept(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<PyChannel> {
        let timeout = seconds(py, "timeout", timeout)?;
        let closed = || Error::new(ErrorKind::Closed, "listener was closed");
        let channel = waiting(py, timeout, "nobody connected", |left| {
            let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
            listener.ok_or_else(closed)?.accept(left)
        })?;
        Ok(PyChannel { channel })
    }

    fn try_accept(&self, py: Python<'_>) -> PyResult<Option<PyChannel>> {
        Ok(self.get(py)?.try_accept().map_err(|e| raise(py, &e))?.map(|channel| PyChannel { channel }))
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.get(py)?.fd())
    }

    #[getter]
    fn path(&self) -> &Path {
        &self.path
    }

    fn close(&self) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(listener);
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyFds>()?;
    m.add_class::<PyChannel>()?;
    m.add_class::<PyListener>()
}
