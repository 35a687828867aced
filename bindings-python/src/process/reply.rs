//! What a worker process replied, as an outcome.

use super::form::{self, Memory, Reader};
use crate::buffer::PyTransferBuffer;
use crate::copy;
use crate::error::raise;
use crate::future::Outcome;
use crate::value;
use offloop::error::{Error, ErrorKind};
use offloop::pool::call::{self, FAILED, PYTHON};
use offloop::{TransferBuffer, Value};
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// A function of `offloop._pickling`.
pub(super) fn helper<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyAny>>, name: &str) -> PyResult<&'py Bound<'py, PyAny>> {
    cell.import(py, "offloop._pickling", name)
}

/// The raw reply of a worker process. It stays until it is dropped, so that who was interrupted reads it again.
pub(crate) enum Reply {
    /// As the core gave it.
    Raw(Value),
    /// In memory that what is read of it may refer to.
    Exported(Py<PyTransferBuffer>),
}

impl Reply {
    /// What the task came to.
    ///
    /// # Errors
    /// Whatever reading raised.
    pub(crate) fn read(&mut self, py: Python<'_>) -> PyResult<Outcome> {
        loop {
            match self {
                Reply::Exported(owner) => {
                    let (_region, ptr, len) = owner.get().view().map_err(|e| raise(py, &e))?;
                    // SAFETY: `_region` keeps the memory during the call.
                    let reader = unsafe { Reader::new(py, ptr, len)? };
                    return python(py, &reader, Some(Memory { owner: owner.bind(py).as_any(), ptr }));
                }
                Reply::Raw(Value::Bytes(bytes)) => {
                    let slice = bytes.as_slice();
                    if slice.first().is_none_or(|form| form & !FAILED != PYTHON) {
                        return common(py, slice);
                    }
                    let reader = Reader::of(py, slice)?;
                    if !reader.has_buffers() {
                        return python(py, &reader, None);
                    }
                    let buffer = TransferBuffer::from_bytes(std::mem::take(bytes)).map_err(|e| raise(py, &e))?;
                    *self = Reply::Exported(Py::new(py, PyTransferBuffer::new(buffer))?);
                }
                Reply::Raw(Value::Buffer(buffer)) => {
                    let (_region, ptr, len) = buffer.view().map_err(|e| raise(py, &e))?;
                    // SAFETY: the buffer has at least a byte, as only long replies are buffers; the region keeps it.
                    if len == 0 || unsafe { ptr.read_volatile() } & !FAILED != PYTHON {
                        // SAFETY: as above.
                        return common(py, &unsafe { form::take(ptr, 0, len)? });
                    }
                    *self = Reply::Exported(Py::new(py, PyTransferBuffer::new(std::mem::take(buffer)))?);
                }
                Reply::Raw(_) => return Err(raise(py, &Error::new(ErrorKind::Corrupt, "a worker process replied nothing"))),
            }
        }
    }
}

/// A value that a running function gave: its bytes are copied.
pub(super) fn record<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let outcome = if bytes.first().is_none_or(|form| form & !FAILED != PYTHON) {
        common(py, bytes)?
    } else {
        let reader = Reader::of(py, bytes)?;
        if reader.has_buffers() {
            let owner = copy::to_bytearray(py, bytes)?;
            // SAFETY: the object is a bytearray, which nobody resizes: only views of it are handed out.
            let ptr = unsafe { pyo3::ffi::PyByteArray_AsString(owner.as_ptr()).cast_const().cast() };
            python(py, &reader, Some(Memory { owner: &owner, ptr }))?
        } else {
            python(py, &reader, None)?
        }
    };
    Ok(outcome.get(py)?.into_bound(py))
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
            let buffers = reader.views(py, memory.as_ref(), nowhere)?;
            let value = helper(py, &LOADS, "load_result")?.call1((copy::bytes_of(py, reader.stream())?, buffers))?;
            Ok(Outcome::Value(value.unbind()))
        }
        form::RAISED => {
            let (about, stream) = (copy::bytes_of(py, reader.head())?, copy::bytes_of(py, reader.stream())?);
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
