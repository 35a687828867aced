//! Memory that the host and the workers of a pool write: what `ProcessPool.array` lies in.

use crate::error::raise;
use offloop::pool::SharedPart;
use pyo3::ffi;
use pyo3::prelude::*;

/// Shared memory in the process that has the pool. Its parts are sent by reference.
#[pyclass(name = "_SharedMemory", module = "offloop._native", frozen)]
pub(super) struct PySharedMemory {
    pub(super) part: SharedPart,
    /// What all shared memory of one pool has.
    #[pyo3(get)]
    pub(super) arena: Py<PyAny>,
}

/// The same memory in a worker, kept by the request that referred to it.
#[pyclass(name = "_SharedView", module = "offloop._native", frozen)]
pub(super) struct PySharedView {
    ptr: *mut u8,
    len: usize,
    _request: Py<PyAny>,
}

// SAFETY: plain memory that the request keeps; every process may write it at any time, so nobody has a reference into it.
unsafe impl Send for PySharedView {}
// SAFETY: as above.
unsafe impl Sync for PySharedView {}

impl PySharedView {
    pub(super) fn new(ptr: *mut u8, len: usize, request: Py<PyAny>) -> PySharedView {
        PySharedView { ptr, len, _request: request }
    }
}

#[pymethods]
impl PySharedMemory {
    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let part = &slf.get().part;
        part.check_fork().map_err(|e| raise(slf.py(), &e))?;
        // SAFETY: `view` is the interpreter's; the memory stays while `slf`, which the view refers to, lives.
        unsafe { fill(slf.as_any(), view, part.as_ptr(), part.len(), flags) }
    }
}

#[pymethods]
impl PySharedView {
    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let this = slf.get();
        // SAFETY: `view` is the interpreter's; the memory stays while `slf`, which the view refers to, lives.
        unsafe { fill(slf.as_any(), view, this.ptr, this.len, flags) }
    }
}

/// # Safety
/// `view` is to be filled; `len` bytes may be read and written at `ptr` while `owner` lives.
unsafe fn fill(owner: &Bound<'_, PyAny>, view: *mut ffi::Py_buffer, ptr: *mut u8, len: usize, flags: std::ffi::c_int) -> PyResult<()> {
    // SAFETY: by the contract.
    let failed = unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), ptr.cast(), len as ffi::Py_ssize_t, 0, flags) };
    if failed != 0 { Err(PyErr::fetch(owner.py())) } else { Ok(()) }
}

pub(super) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PySharedMemory>()
}
