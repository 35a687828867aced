//! Bytes of Python objects into a ring and out of it.

use crate::copy::{self, no_bytes};
use crate::error::invalid;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

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

    fn as_ptr(&self) -> *const u8 {
        match self {
            Source::Bytes(b) => b.as_ptr(),
            Source::Buffer(b) => b.0.buf.cast(),
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

    /// Copies all of it to `to`, without the GIL when it is long.
    ///
    /// # Safety
    /// `to` has room for `len` bytes that nobody else touches.
    pub(super) unsafe fn copy_to(&self, py: Python<'_>, to: *mut u8) {
        // SAFETY: an export, or immutable bytes, keep the source readable; `to` by the contract.
        unsafe { copy::copy(py, self.as_ptr(), to, self.len()) };
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
