//! Python's own form of requests and replies: what follows the first byte `PYTHON`.
//!
//! ```text
//!  0 form u8 · 1 kind u8 · 2 flags u8 · 3 count u8 · 4 head u32 · 8 stream u64 · 16 buffers u32 · 20 zero u32
//!  24 (at u64, len u64) per buffer · head · stream · the buffers, each at a multiple of 64 from the start
//! ```
//!
//! | Kind    | In a request: head is the pickled function | In a reply                                    |
//! |---------|--------------------------------------------|-----------------------------------------------|
//! | VALUES  | stream: `count` arguments as values         | stream: one value                             |
//! | PICKLED | stream: pickle of (args, kwargs)            | stream: pickle of the result                  |
//! | RAISED  | none                                        | head: pickle of (name, text, stack); stream: pickle of the exception, or nothing |
//!
//! A value is a tag and what it needs: none, false, true, int (i64), float (f64), str and bytes (u32 length, bytes), long bytes (the next buffer).
//! Numbers are little-endian.

use crate::buffer::PyTransferBuffer;
use crate::copy;
use crate::error::raise;
use offloop::error::{Error, ErrorKind};
use offloop::pool::call::PYTHON;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyMemoryView, PySlice, PyString};
use std::ops::Range;

pub(super) const VALUES: u8 = 0;
pub(super) const PICKLED: u8 = 1;
pub(super) const RAISED: u8 = 2;

/// The function was pickled by its name: what it is can be kept.
pub(super) const BY_NAME: u8 = 1;

const FIXED: usize = 24;
const ALIGN: usize = 64;
/// `bytes` of at least this many are a buffer of their own, so that they are copied once.
const LONG: usize = 4096;
/// Values of one request; more are pickled.
pub(super) const MAX_VALUES: usize = 255;

const NONE: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const LONG_BYTES: u8 = 7;

static ZEROS: [u8; ALIGN] = [0; ALIGN];

/// Memory that a message is made of, kept where it is by an export.
pub(super) struct Part(PyUntypedBuffer);

impl Part {
    /// # Errors
    /// Whatever the exporter raises; `InvalidError` for memory that does not lie together.
    pub(super) fn new(object: &Bound<'_, PyAny>) -> PyResult<Part> {
        let buffer = PyUntypedBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(raise(object.py(), &Error::invalid("an out-of-band buffer does not lie together")));
        }
        Ok(Part(buffer))
    }

    fn len(&self) -> usize {
        self.0.len_bytes()
    }

    fn as_slice(&self) -> &[u8] {
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: the export keeps the memory, which lies together. What another thread writes meanwhile is in the copy or not.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast(), self.len()) }
    }
}

/// A message that is being made.
#[derive(Default)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// Added to the form.
    pub(super) failed: u8,
    pub(super) count: u8,
    pub(super) stream: Vec<u8>,
    pub(super) buffers: Vec<Part>,
}

impl Message {
    /// Adds a value; false if it has no form but a pickle.
    pub(super) fn push(&mut self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let out = &mut self.stream;
        if value.is_none() {
            out.push(NONE);
        } else if let Ok(b) = value.cast_exact::<PyBool>() {
            out.push(if b.is_true() { TRUE } else { FALSE });
        } else if let Ok(i) = value.cast_exact::<PyInt>() {
            let Ok(i) = i.extract::<i64>() else { return Ok(false) };
            out.push(INT);
            out.extend_from_slice(&i.to_le_bytes());
        } else if let Ok(f) = value.cast_exact::<PyFloat>() {
            out.push(FLOAT);
            out.extend_from_slice(&f.value().to_le_bytes());
        } else if let Ok(s) = value.cast_exact::<PyString>() {
            // A lone surrogate has no UTF-8 form, but a pickle.
            let Ok(text) = s.to_str() else { return Ok(false) };
            let Ok(len) = u32::try_from(text.len()) else { return Ok(false) };
            out.push(STR);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        } else if let Ok(b) = value.cast_exact::<PyBytes>() {
            let bytes = b.as_bytes();
            if bytes.len() >= LONG {
                out.push(LONG_BYTES);
                self.buffers.push(Part::new(value)?);
            } else {
                out.push(BYTES);
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(bytes);
            }
        } else {
            return Ok(false);
        }
        self.count = self.count.wrapping_add(1);
        Ok(true)
    }

    /// Everything before the buffers.
    pub(super) fn front(&self, head: &[u8]) -> Vec<u8> {
        let before = FIXED + 16 * self.buffers.len();
        let mut out = Vec::with_capacity(before + head.len() + self.stream.len());
        out.extend_from_slice(&[PYTHON | self.failed, self.kind, self.flags, self.count]);
        out.extend_from_slice(&(head.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.stream.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.buffers.len() as u64).to_le_bytes());
        let mut at = before + head.len() + self.stream.len();
        for buffer in &self.buffers {
            at = at.next_multiple_of(ALIGN);
            out.extend_from_slice(&(at as u64).to_le_bytes());
            out.extend_from_slice(&(buffer.len() as u64).to_le_bytes());
            at += buffer.len();
        }
        out.extend_from_slice(head);
        out.extend_from_slice(&self.stream);
        out
    }

    /// All parts in order, `front` first.
    pub(super) fn parts<'a>(&'a self, front: &'a [u8]) -> Vec<&'a [u8]> {
        let mut parts = Vec::with_capacity(1 + 2 * self.buffers.len());
        parts.push(front);
        let mut at = front.len();
        for buffer in &self.buffers {
            parts.push(&ZEROS[..at.next_multiple_of(ALIGN) - at]);
            parts.push(buffer.as_slice());
            at = at.next_multiple_of(ALIGN) + buffer.len();
        }
        parts
    }

    /// Bytes of the buffers.
    pub(super) fn long(&self) -> usize {
        self.buffers.iter().map(Part::len).sum()
    }
}

fn corrupt(py: Python<'_>, why: &'static str, len: usize) -> PyErr {
    raise(py, &Error::new(ErrorKind::Corrupt, why).with("len", len))
}

/// A message that came. What is read of it is a private copy: who wrote it may write on.
pub(super) struct Reader {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) count: u8,
    front: Vec<u8>,
    head: Range<usize>,
    stream: Range<usize>,
    buffers: Vec<(usize, usize)>,
}

/// Copies bytes out of memory that a peer may write.
///
/// # Safety
/// `at..at + len` stay readable from `from` on during the call.
unsafe fn take(from: *const u8, at: usize, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    // SAFETY: readable by the contract, and `out` has room.
    unsafe {
        std::ptr::copy_nonoverlapping(from.add(at), out.as_mut_ptr(), len);
        out.set_len(len);
    }
    out
}

impl Reader {
    /// # Errors
    /// CorruptError for what is no message of this form.
    ///
    /// # Safety
    /// `len` bytes stay readable at `from` during the call.
    pub(super) unsafe fn new(py: Python<'_>, from: *const u8, len: usize) -> PyResult<Reader> {
        let short = || corrupt(py, "message of a worker is shorter than it says", len);
        if len < FIXED {
            return Err(short());
        }
        // SAFETY: inside of `len`, as checked.
        let fixed = unsafe { take(from, 0, FIXED) };
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let head = u32::from_le_bytes(fixed[4..8].try_into().expect("four bytes")) as usize;
        let stream = usize::try_from(u64_at(&fixed, 8)).unwrap_or(usize::MAX);
        let count = usize::try_from(u64_at(&fixed, 16)).unwrap_or(usize::MAX);
        let table = count.checked_mul(16).and_then(|n| n.checked_add(FIXED)).filter(|n| *n <= len).ok_or_else(short)?;
        let end = table.checked_add(head).and_then(|n| n.checked_add(stream)).filter(|n| *n <= len).ok_or_else(short)?;
        // SAFETY: inside of `len`, as checked.
        let front = unsafe { take(from, 0, end) };
        let buffers = (0..count)
            .map(|i| {
                let at = usize::try_from(u64_at(&front, FIXED + 16 * i)).unwrap_or(usize::MAX);
                let size = usize::try_from(u64_at(&front, FIXED + 16 * i + 8)).unwrap_or(usize::MAX);
                if at > len || size > len - at { Err(short()) } else { Ok((at, size)) }
            })
            .collect::<PyResult<_>>()?;
        Ok(Reader {
            kind: fixed[1],
            flags: fixed[2],
            count: fixed[3],
            front,
            head: table..table + head,
            stream: table + head..end,
            buffers,
        })
    }

    pub(super) fn head(&self) -> &[u8] {
        &self.front[self.head.clone()]
    }

    pub(super) fn stream(&self) -> &[u8] {
        &self.front[self.stream.clone()]
    }

    pub(super) fn has_buffers(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// The values of the stream. `memory`: the whole message, for long bytes.
    pub(super) fn values<'py>(&self, py: Python<'py>, memory: Option<&Memory<'_, 'py>>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut rest = self.stream();
        let mut buffers = self.buffers.iter();
        let short = || corrupt(py, "values of a worker's message are shorter than they say", self.front.len());
        let mut values = Vec::with_capacity(usize::from(self.count));
        for _ in 0..self.count {
            let (tag, after) = rest.split_first().ok_or_else(short)?;
            rest = after;
            values.push(match *tag {
                NONE => py.None().into_bound(py),
                FALSE | TRUE => PyBool::new(py, *tag == TRUE).to_owned().into_any(),
                INT | FLOAT => {
                    let (number, after) = rest.split_first_chunk::<8>().ok_or_else(short)?;
                    rest = after;
                    if *tag == INT {
                        i64::from_le_bytes(*number).into_pyobject(py)?.into_any()
                    } else {
                        PyFloat::new(py, f64::from_le_bytes(*number)).into_any()
                    }
                }
                STR | BYTES => {
                    let (len, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
                    let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(short)?;
                    rest = after;
                    if *tag == STR {
                        let text = std::str::from_utf8(bytes).map_err(|_| corrupt(py, "text of a worker is not UTF-8", bytes.len()))?;
                        PyString::new(py, text).into_any()
                    } else {
                        PyBytes::new(py, bytes).into_any()
                    }
                }
                LONG_BYTES => {
                    let (Some(&(at, len)), Some(memory)) = (buffers.next(), memory) else { return Err(short()) };
                    // SAFETY: inside of the message, as checked, which `memory` keeps.
                    unsafe { copy::to_bytes(py, memory.ptr.add(at), len)? }
                }
                _ => return Err(corrupt(py, "value of a worker has no known tag", usize::from(*tag))),
            });
        }
        Ok(values)
    }

    /// Views of the buffers, for the unpickler.
    pub(super) fn views<'py>(&self, py: Python<'py>, memory: Option<&Memory<'_, 'py>>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let Some(memory) = memory else { return Ok(Vec::new()) };
        if self.buffers.is_empty() {
            return Ok(Vec::new());
        }
        let whole = PyMemoryView::from(memory.owner)?;
        self.buffers.iter().map(|(at, len)| whole.get_item(PySlice::new(py, *at as isize, (at + len) as isize, 1))).collect()
    }
}

/// The memory of a whole message, and the Python object whose views keep it.
pub(super) struct Memory<'a, 'py> {
    pub(super) owner: &'a Bound<'py, PyAny>,
    pub(super) ptr: *const u8,
}

/// The object that exports a reply.
pub(super) fn owner_of<'py>(py: Python<'py>, buffer: offloop::TransferBuffer) -> PyResult<Bound<'py, PyAny>> {
    Ok(Bound::new(py, PyTransferBuffer::new(buffer))?.into_any())
}

/// A long request in the memory of its pool; whoever has a view of it keeps it there.
#[pyclass(name = "_Payload", module = "offloop._native", frozen)]
pub(super) struct PyPayload(pub(super) offloop::pool::Payload);

#[pymethods]
impl PyPayload {
    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: std::ffi::c_int) -> PyResult<()> {
        let payload = &slf.get().0;
        // SAFETY: `view` is the interpreter's; the memory stays while `slf`, which the view refers to, lives, and nobody else reads it.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), payload.as_ptr().cast(), payload.len() as ffi::Py_ssize_t, 0, flags) };
        if failed != 0 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}
