//! What a worker process replied, as an outcome.

use super::form::{self, Memory, Reader};
use crate::error::raise;
use crate::future::Outcome;
use crate::value;
use offloop::error::{Error, ErrorKind};
use offloop::pool::call::{self, FAILED, PYTHON};
use offloop::{TransferBuffer, Value};
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList};

/// A function of `offloop._pickling`.
pub(super) fn helper<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyAny>>, name: &str) -> PyResult<&'py Bound<'py, PyAny>> {
    cell.import(py, "offloop._pickling", name)
}

/// The outcome of a task whose raw reply is `reply`.
pub(crate) fn outcome(py: Python<'_>, reply: Value) -> Outcome {
    read(py, reply).unwrap_or_else(|e| Outcome::Error(e.into_value(py)))
}

fn read(py: Python<'_>, reply: Value) -> PyResult<Outcome> {
    match reply {
        Value::Bytes(bytes) => {
            let slice = bytes.as_slice();
            if slice.first().is_none_or(|form| form & !FAILED != PYTHON) {
                return common(py, slice);
            }
            let reader = Reader::of(py, slice)?;
            if !reader.has_buffers() {
                return python(py, &reader, None);
            }
            let buffer = TransferBuffer::from_bytes(bytes).map_err(|e| raise(py, &e))?;
            in_buffer(py, buffer)
        }
        Value::Buffer(buffer) => in_buffer(py, buffer),
        _ => Err(raise(py, &Error::new(ErrorKind::Corrupt, "a worker process replied nothing"))),
    }
}

/// A value that a running function gave: its bytes are copied.
pub(super) fn record<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let outcome = if bytes.first().is_none_or(|form| form & !FAILED != PYTHON) {
        common(py, bytes)?
    } else {
        let reader = Reader::of(py, bytes)?;
        if reader.has_buffers() {
            let owner = PyByteArray::new(py, bytes).into_any();
            // SAFETY: the object is a bytearray, which nobody resizes: only views of it are handed out.
            let ptr = unsafe { pyo3::ffi::PyByteArray_AsString(owner.as_ptr()).cast_const().cast() };
            python(py, &reader, Some(Memory { owner: &owner, ptr }))?
        } else {
            python(py, &reader, None)?
        }
    };
    Ok(outcome.get(py)?.into_bound(py))
}

fn in_buffer(py: Python<'_>, buffer: TransferBuffer) -> PyResult<Outcome> {
    let (_region, ptr, len) = buffer.view().map_err(|e| raise(py, &e))?;
    // SAFETY: the buffer has at least a byte, as only long replies are buffers; the region keeps it.
    if len == 0 || unsafe { ptr.read_volatile() } & !FAILED != PYTHON {
        let bytes = buffer.to_vec().map_err(|e| raise(py, &e))?;
        return common(py, &bytes);
    }
    // SAFETY: `_region` keeps the memory during the call.
    let reader = unsafe { Reader::new(py, ptr, len)? };
    let owner = form::owner_of(py, buffer)?;
    python(py, &reader, Some(Memory { owner: &owner, ptr }))
}

fn python<'py>(py: Python<'py>, reader: &Reader, memory: Option<Memory<'_, 'py>>) -> PyResult<Outcome> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static REBUILT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    match reader.kind {
        form::VALUES => {
            let value = reader.values(py, memory.as_ref())?.pop();
            let none = || raise(py, &Error::new(ErrorKind::Corrupt, "a worker process replied no value"));
            Ok(Outcome::Value(value.ok_or_else(none)?.unbind()))
        }
        form::PICKLED => {
            let nowhere = |_, _| Err(raise(py, &Error::new(ErrorKind::Corrupt, "a worker process refers to memory in its reply")));
            let buffers = PyList::new(py, reader.views(py, memory.as_ref(), nowhere)?)?;
            let value = helper(py, &LOADS, "load_result")?.call1((PyBytes::new(py, reader.stream()), buffers))?;
            Ok(Outcome::Value(value.unbind()))
        }
        form::RAISED => {
            let (about, stream) = (PyBytes::new(py, reader.head()), PyBytes::new(py, reader.stream()));
            let raised = helper(py, &REBUILT, "rebuilt")?.call1((about, stream))?;
            Ok(Outcome::Error(raised.cast_into::<PyBaseException>()?.unbind()))
        }
        other => Err(raise(py, &Error::new(ErrorKind::Corrupt, "a worker process replied in an unknown form").with("kind", other))),
    }
}

/// A reply that any language could have given.
fn common(py: Python<'_>, reply: &[u8]) -> PyResult<Outcome> {
    match call::decode_reply(reply).map_err(|e| raise(py, &e))? {
        Ok(value) => Ok(Outcome::Value(value::to_python(py, value)?.unbind())),
        Err(error) => Ok(Outcome::Error(value::exception(py, *error)?.cast_into::<PyBaseException>()?.unbind())),
    }
}

/// What a running task said last, as the value that it gave.
pub(crate) fn progress(py: Python<'_>, said: Value) -> PyResult<Py<PyAny>> {
    let bytes = said.into_bytes().map_err(|e| raise(py, &e))?;
    common(py, bytes.as_slice())?.get(py)
}
