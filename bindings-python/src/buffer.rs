//! `TransferBuffer`, and how host memory becomes the input of a task.

use crate::copy;
use crate::error::{invalid, number, raise, text};
use crate::late::Late;
use crate::wait;
use offloop::buffer::{self, Region, TransferToken};
use offloop::error::{Error, ErrorKind};
use offloop::{Bytes, TransferBuffer};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyType};
use std::ffi::c_int;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Immutable `bytes` up to here are copied: cheaper than keeping the object alive and releasing it later.
const BORROW_FROM: usize = 16 << 10;

/// Bytes with one owner, which move between threads and processes without a copy.
///
/// `TransferBuffer(size, *, shared=False)` makes zeroed bytes on the heap, or with `shared` in a memfd that another
/// process can map by its `fd`. It has the buffer protocol, writable: `memoryview(b)` and `numpy.frombuffer(b)` are
/// views of the same bytes. `transfer()` detaches it: it is empty from then on, and views are refused.
#[pyclass(name = "TransferBuffer", module = "offloop", frozen, weakref)]
pub(crate) struct PyTransferBuffer {
    state: Mutex<State>,
}

struct State {
    buffer: TransferBuffer,
    /// Live `Py_buffer` exports. While there is one, nothing may move the bytes.
    exports: usize,
}

impl PyTransferBuffer {
    pub(crate) fn new(buffer: TransferBuffer) -> PyTransferBuffer {
        PyTransferBuffer { state: Mutex::new(State { buffer, exports: 0 }) }
    }

    // The lock is held for a few instructions and never while Python code runs.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the buffer out. On error it is untouched.
    pub(crate) fn take(&self) -> Result<TransferBuffer, Error> {
        let mut state = self.lock();
        state.check_movable()?;
        state.buffer.view()?;
        Ok(std::mem::take(&mut state.buffer))
    }

    /// First byte and length; the region keeps them.
    pub(crate) fn view(&self) -> Result<(Arc<Region>, *mut u8, usize), Error> {
        self.lock().buffer.view()
    }

    /// Undoes [`take`](Self::take).
    pub(crate) fn put_back(&self, buffer: TransferBuffer) {
        self.lock().buffer = buffer;
    }
}

/// A buffer that a call moved: its bytes are lent to a task, which may yet be refused. Dropping this lets them go with the task.
pub(crate) struct Moved<'py> {
    owner: Bound<'py, PyTransferBuffer>,
    buffer: TransferBuffer,
}

impl Moved<'_> {
    /// Undoes the move for a task that was not accepted; the bytes that were lent are dropped before. The same memory, so
    /// that a shared buffer stays shared.
    pub(crate) fn put_back(self) {
        self.owner.get().put_back(self.buffer);
    }
}

impl State {
    fn check_movable(&self) -> Result<(), Error> {
        if self.exports > 0 {
            return Err(Error::new(ErrorKind::InUse, "buffer has live views").with("views", self.exports));
        }
        Ok(())
    }
}

#[pymethods]
impl PyTransferBuffer {
    #[new]
    #[pyo3(signature = (size, *, shared = false))]
    fn py_new(py: Python<'_>, size: &Bound<'_, PyAny>, shared: bool) -> PyResult<PyTransferBuffer> {
        let size = length(size)?;
        // Allocating shared memory touches every page, which is work: other threads run meanwhile.
        let made = wait::detached(py, || if shared { TransferBuffer::alloc_shared(size) } else { TransferBuffer::alloc(size) });
        made.map(PyTransferBuffer::new).map_err(|e| raise(py, &e))
    }

    /// A heap copy of any object with the buffer protocol. A long copy is made without the GIL: do not write the object meanwhile.
    #[classmethod]
    fn from_bytes(_cls: &Bound<'_, PyType>, data: &Bound<'_, PyAny>) -> PyResult<PyTransferBuffer> {
        let py = data.py();
        let made = match data.cast::<PyBytes>() {
            Ok(bytes) => {
                let slice = bytes.as_bytes();
                wait::detached_if(py, slice.len() >= copy::SLICE, || TransferBuffer::from_slice(slice))
            }
            Err(_) => TransferBuffer::from_bytes(copy::to_vec(data)?.into()),
        };
        made.map(PyTransferBuffer::new).map_err(|e| raise(py, &e))
    }

    /// Takes the bytes behind a token. A used token raises DetachedError, a foreign one InvalidError.
    #[classmethod]
    fn receive(_cls: &Bound<'_, PyType>, py: Python<'_>, token: &Bound<'_, PyString>) -> PyResult<PyTransferBuffer> {
        let token = text("token is not valid Unicode", "token", token)?;
        parse_token(&token).and_then(TransferBuffer::receive).map(PyTransferBuffer::new).map_err(|e| raise(py, &e))
    }

    /// Maps the memfd of another process's shared buffer. The fd is duplicated; the caller still closes its own.
    #[classmethod]
    fn attach(_cls: &Bound<'_, PyType>, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<PyTransferBuffer> {
        let fd: RawFd = number("fd", fd)?;
        if fd < 0 {
            return Err(invalid(py, "file descriptor is negative", "fd", fd));
        }
        // SAFETY: not -1; core checks with fstat what the number refers to before using it.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        TransferBuffer::attach(fd).map(PyTransferBuffer::new).map_err(|e| raise(py, &e))
    }

    /// Bytes; 0 when detached.
    #[getter]
    fn nbytes(&self) -> usize {
        self.lock().buffer.len()
    }

    /// Whether the bytes moved elsewhere.
    #[getter]
    fn detached(&self) -> bool {
        self.lock().buffer.is_detached()
    }

    /// The memfd of a shared buffer, else None. It is the buffer's own: duplicate it to keep it longer.
    #[getter]
    fn fd(&self) -> Option<RawFd> {
        self.lock().buffer.fd()
    }

    /// Moves the bytes out and returns a token that another thread of this process gives to `receive`, once.
    ///
    /// Raises InUseError (a BufferError) while views are alive, DetachedError when they moved before.
    fn transfer(&self, py: Python<'_>) -> PyResult<String> {
        let mut state = self.lock();
        let moved = state.check_movable().and_then(|()| state.buffer.transfer());
        drop(state);
        moved.map(|t| t.to_string()).map_err(|e| raise(py, &e))
    }

    /// Moves the bytes to a buffer that only the caller has: for a call that owns its inputs before it is submitted.
    fn _move_out(&self, py: Python<'_>) -> PyResult<PyTransferBuffer> {
        self.take().map(PyTransferBuffer::new).map_err(|e| raise(py, &e))
    }

    /// Undoes `_move_out` for a call that was not submitted.
    fn _move_back(&self, moved: &PyTransferBuffer) {
        let buffer = std::mem::take(&mut moved.lock().buffer);
        self.lock().buffer = buffer;
    }

    fn __len__(&self) -> usize {
        self.nbytes()
    }

    fn __repr__(&self) -> String {
        let state = self.lock();
        if state.buffer.is_detached() {
            "TransferBuffer(detached)".to_owned()
        } else {
            format!("TransferBuffer({} bytes)", state.buffer.len())
        }
    }

    /// Pickling copies or drops the one owner, so it is refused: pickle the token of `transfer()`.
    fn __reduce__(&self, py: Python<'_>) -> PyResult<()> {
        Err(raise(py, &Error::new(ErrorKind::Unserializable, "a TransferBuffer has one owner; pickle the token of transfer() instead")))
    }

    /// NumPy asks here only when the buffer protocol refused; without this it would make an object array of a detached buffer.
    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(slf: &Bound<'py, Self>, dtype: Option<Bound<'py, PyAny>>, copy: Option<bool>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        slf.get().lock().buffer.view().map_err(|e| raise(py, &e))?;
        let numpy = py.import("numpy")?;
        let array = numpy.call_method1("frombuffer", (slf, "u1"))?;
        let array = match dtype {
            Some(dtype) => array.call_method1("astype", (dtype,))?,
            None => array,
        };
        if copy == Some(true) { array.call_method0("copy") } else { Ok(array) }
    }

    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let py = slf.py();
        if view.is_null() {
            return Err(PyBufferError::new_err("no Py_buffer to fill"));
        }
        let mut state = slf.get().lock();
        let (_, pointer, len) = match state.buffer.view() {
            Ok(view) => view,
            Err(e) => {
                drop(state);
                return Err(raise(py, &e));
            }
        };
        // SAFETY: `view` is a Py_buffer of the caller; the exporter is kept alive by `obj`, and its bytes stay where they
        // are because `exports` forbids every move until the view is released.
        let failed = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), pointer.cast(), len as ffi::Py_ssize_t, 0, flags) };
        if failed != 0 {
            drop(state);
            return Err(PyErr::fetch(py));
        }
        state.exports += 1;
        Ok(())
    }

    /// # Safety
    /// Called by the interpreter once per filled view.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lock().exports -= 1;
    }
}

fn parse_token(token: &str) -> Result<TransferToken, Error> {
    token.parse()
}

/// Frees the bytes behind a token that nobody will take.
#[pyfunction]
fn revoke_token(py: Python<'_>, token: &Bound<'_, PyString>) -> PyResult<()> {
    let token = text("token is not valid Unicode", "token", token)?;
    parse_token(&token).and_then(buffer::revoke_token).map_err(|e| raise(py, &e))
}

/// A size of memory: a non-negative integer.
fn length(size: &Bound<'_, PyAny>) -> PyResult<usize> {
    let py = size.py();
    // `__index__`, so that 3.0 and "3" are type errors as in `bytearray`.
    let index = py.import("operator")?.call_method1("index", (size,))?;
    if index.lt(0)? {
        return Err(invalid(py, "size is negative", "size", &index));
    }
    index.extract::<usize>().map_err(|_| {
        let e = Error::new(ErrorKind::TooLarge, "buffer is longer than the limit").with("len", &index).with("max_len", buffer::MAX_LEN);
        raise(py, &e)
    })
}

/// The input of a task. `TransferBuffer` is moved, long `bytes` are borrowed, everything else is copied now.
pub(crate) fn input<'py>(data: &Bound<'py, PyAny>, moved: &mut Vec<Moved<'py>>) -> PyResult<Bytes> {
    if let Ok(bytes) = data.cast_exact::<PyBytes>() {
        return Ok(of_bytes(bytes));
    }
    if let Ok(owner) = data.cast::<PyTransferBuffer>() {
        let buffer = owner.get().take().map_err(|e| raise(data.py(), &e))?;
        // SAFETY: nobody has the handle but `Moved`, which writes nothing, and there is no view of it.
        let bytes = unsafe { buffer.lend() };
        let one = Moved { owner: owner.clone(), buffer };
        return match bytes {
            Ok(bytes) => {
                moved.push(one);
                Ok(bytes)
            }
            Err(e) => {
                one.put_back();
                Err(raise(data.py(), &e))
            }
        };
    }
    Ok(copy::to_vec(data)?.into())
}

/// As [`input`], for a call that returns before its caller can drop the object: no `bytes` are copied.
pub(crate) fn borrowed_input<'py>(data: &Bound<'py, PyAny>, moved: &mut Vec<Moved<'py>>) -> PyResult<Bytes> {
    match data.cast_exact::<PyBytes>() {
        Ok(bytes) => Ok(borrow(bytes)),
        Err(_) => input(data, moved),
    }
}

/// Bytes of an input, 0 for what has none.
pub(crate) fn byte_len(data: &Bound<'_, PyAny>) -> usize {
    match data.cast::<PyBytes>() {
        Ok(bytes) => bytes.as_bytes().len(),
        Err(_) => PyUntypedBuffer::get(data).map_or(0, |b| b.len_bytes()),
    }
}

/// What [`input`] would spend on a copy; see [`copy::cost`].
pub(crate) fn copy_cost(data: &Bound<'_, PyAny>) -> usize {
    if data.is_exact_instance_of::<PyBytes>() || data.is_instance_of::<PyTransferBuffer>() { 0 } else { copy::cost(data) }
}

/// Immutable `bytes`: short ones are copied, long ones borrowed.
pub(crate) fn of_bytes(bytes: &Bound<'_, PyBytes>) -> Bytes {
    let slice = bytes.as_bytes();
    if slice.len() < BORROW_FROM { slice.into() } else { borrow(bytes) }
}

fn borrow(bytes: &Bound<'_, PyBytes>) -> Bytes {
    let slice = bytes.as_bytes();
    // SAFETY: `bytes` objects are immutable and do not move; `Late` owns a reference, and may be dropped on any thread.
    unsafe { Bytes::from_foreign(slice.as_ptr(), slice.len(), Box::new(Late::new(bytes.clone().unbind()))) }
}

/// Bytes of a result as a Python object.
pub(crate) fn to_pybytes<'py>(py: Python<'py>, bytes: &Bytes) -> PyResult<Bound<'py, PyAny>> {
    copy::bytes_of(py, bytes.as_slice())
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyTransferBuffer>()?;
    m.add_function(wrap_pyfunction!(revoke_token, m)?)
}
