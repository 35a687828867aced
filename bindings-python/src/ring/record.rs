//! Bytes of Python objects into a ring and out of it.

use crate::buffer::no_bytes;
use crate::error::invalid;
use crate::wait;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ptr;

/// Copies from here on let other threads run, about every 0.1 ms.
pub(super) const LONG: usize = 1 << 20;

/// A record that Python gave: any contiguous buffer.
pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    Buffer(Export),
}

impl<'a> Source<'a> {
    #[inline]
    pub(super) fn of(record: &'a Bound<'_, PyAny>) -> PyResult<Source<'a>> {
        match record.cast::<PyBytes>() {
            Ok(bytes) => Ok(Source::Bytes(bytes.as_bytes())),
            Err(_) => Source::of_buffer(record),
        }
    }

    fn of_buffer(record: &Bound<'_, PyAny>) -> PyResult<Source<'static>> {
        Export::of(record).map(Source::Buffer)
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Bytes(b) => b.len(),
            Source::Buffer(b) => b.len(),
        }
    }

    /// The bytes, for a copy that is made before any other Python code runs.
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Source::Bytes(b) => b,
            // SAFETY: the export keeps `len` bytes readable; their writers need the interpreter, which this thread does not
            // give away while it holds the slice. An empty buffer may have no address.
            Source::Buffer(b) if b.len() > 0 => unsafe { std::slice::from_raw_parts(b.0.buf.cast(), b.len()) },
            Source::Buffer(_) => &[],
        }
    }

    /// Copies all of it to `to`, in slices between which other threads run when it is long.
    ///
    /// # Safety
    /// `to` has room for `len` bytes that nobody else touches.
    pub(super) unsafe fn copy_to(&self, py: Python<'_>, to: *mut u8) {
        let from = self.as_slice().as_ptr();
        let mut at = 0;
        while at < self.len() {
            let n = LONG.min(self.len() - at);
            // SAFETY: `at + n <= len` bytes are readable by `as_slice`, and writable by the contract.
            unsafe { ptr::copy_nonoverlapping(from.add(at), to.add(at), n) };
            at += n;
            if at < self.len() {
                wait::detached(py, || {});
            }
        }
    }
}

/// Contiguous bytes of an exporter. Dropped with the interpreter at hand.
pub(super) struct Export(Box<ffi::Py_buffer>);

impl Export {
    fn of(record: &Bound<'_, PyAny>) -> PyResult<Export> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: the interpreter is at hand, and `view` stays where it is until it is released.
        let failed = unsafe { ffi::PyObject_GetBuffer(record.as_ptr(), &raw mut *view, ffi::PyBUF_SIMPLE) };
        if failed == 0 {
            return Ok(Export(view));
        }
        let py = record.py();
        let e = PyErr::fetch(py);
        // Exporters that are not contiguous say so with either.
        let refused = e.is_instance_of::<PyBufferError>(py) || e.is_instance_of::<PyValueError>(py);
        if refused && e.value(py).getattr(intern!(py, "status")).is_err() {
            let name = record.get_type().name().map_or_else(|_| "object".to_owned(), |n| n.to_string());
            let refusal = invalid(py, "record is not contiguous in memory; copy it first", "type", name);
            refusal.set_cause(py, Some(e));
            return Err(refusal);
        }
        Err(no_bytes(record, e))
    }

    #[inline]
    fn len(&self) -> usize {
        self.0.len as usize
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // SAFETY: filled by `of`, released once.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}

/// A new `bytes` of what lies at `from`.
///
/// # Safety
/// `len` bytes at `from` stay readable during the call. A peer may change them meanwhile.
#[inline]
pub(super) unsafe fn to_bytes(py: Python<'_>, from: *const u8, len: usize) -> PyResult<Bound<'_, PyAny>> {
    let size = len as ffi::Py_ssize_t;
    if len < LONG {
        // SAFETY: copies `len` readable bytes, by the contract; a null pointer is a raised MemoryError.
        return unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(from.cast(), size)) };
    }
    // SAFETY: as above; the bytes of the new object are not written yet.
    let object = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(ptr::null(), size))? };
    // SAFETY: `object` is bytes.
    let to = unsafe { ffi::PyBytes_AsString(object.as_ptr()) } as usize;
    let from = from as usize;
    // SAFETY: nobody else has the object yet, so its `len` bytes can be written without the interpreter.
    wait::detached(py, || unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) });
    Ok(object)
}
