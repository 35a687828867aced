//! Python's own form of requests and replies: what follows the first byte `PYTHON`.
//!
//! ```text
//!  0 form u8 · 1 kind u8 · 2 flags u8 · 3 count u8 · 4 head u32 · 8 stream u64 · 16 buffers u32 · 20 zero u32
//!  24 (at u64, len u64) per buffer · head · stream · the buffers, each at a multiple of 64 from the start
//! ```
//!
//! A buffer of a request whose `at` has bit 63 lies in shared memory of the pool, where the other bits say, and not in the message.
//!
//! | Kind    | In a request: head is the pickled function | In a reply                                    |
//! |---------|--------------------------------------------|-----------------------------------------------|
//! | VALUES  | stream: `count` arguments as values         | stream: one value                             |
//! | PICKLED | stream: pickle of (args, kwargs)            | stream: pickle of the result                  |
//! | RAISED  | none                                        | head: pickle of (name, text, stack); stream: pickle of the exception, or nothing |
//!
//! A value is a tag and what it needs: none, false, true, int (i64), float (f64), str and bytes (u32 length, bytes), long bytes (the next buffer).
//! Numbers are little-endian.

use crate::copy;
use crate::error::raise;
use offloop::error::{Error, ErrorKind};
use offloop::pool::call::PYTHON;
use offloop::pool::{ProcessPool, SharedPart};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyMemoryView, PySlice, PyString};
use std::borrow::Cow;
use std::ops::Range;

pub(super) const VALUES: u8 = 0;
pub(super) const PICKLED: u8 = 1;
pub(super) const RAISED: u8 = 2;

/// The function was pickled by its name: what it is can be kept.
pub(super) const BY_NAME: u8 = 1;
/// What the function gives is sent one by one.
pub(super) const STREAM: u8 = 2;

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

const SHARED: u64 = 1 << 63;

static ZEROS: [u8; ALIGN] = [0; ALIGN];

/// Memory that a message is made of.
pub(super) enum Part {
    /// Kept where it is by an export, to be copied into the message.
    Here(PyUntypedBuffer),
    /// What the message refers to.
    Shared { part: SharedPart, at: u64, len: usize },
}

impl Part {
    /// `pool`: whose shared memory a message for its workers may refer to.
    ///
    /// # Errors
    /// Whatever the exporter raises; `InvalidError` for memory that does not lie together.
    pub(super) fn new(object: &Bound<'_, PyAny>, pool: Option<&ProcessPool>) -> PyResult<Part> {
        let py = object.py();
        let buffer = PyUntypedBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(raise(py, &Error::invalid("an out-of-band buffer does not lie together")));
        }
        if let Some(pool) = pool
            && buffer.len_bytes() > 0
            && let Some((part, at)) = pool.shared_at(buffer.buf_ptr().cast(), buffer.len_bytes()).map_err(|e| raise(py, &e))?
        {
            return Ok(Part::Shared { part, at, len: buffer.len_bytes() });
        }
        Ok(Part::Here(buffer))
    }

    /// Bytes in the message.
    fn len(&self) -> usize {
        match self {
            Part::Here(buffer) => buffer.len_bytes(),
            Part::Shared { .. } => 0,
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Part::Here(buffer) if buffer.len_bytes() > 0 => {
                // SAFETY: the export keeps the memory, which lies together. What another thread writes meanwhile is in the copy or not.
                unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) }
            }
            _ => &[],
        }
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
                self.buffers.push(Part::new(value, None)?);
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

    /// Calls `f` with all parts in order.
    pub(super) fn with_parts<R>(&self, head: &[u8], f: impl FnOnce(&[&[u8]]) -> R) -> R {
        let fixed = self.fixed(head);
        if self.buffers.is_empty() {
            return f(&[&fixed, head, &self.stream]);
        }
        let mut at = FIXED + 16 * self.buffers.len() + head.len() + self.stream.len();
        let mut table = Vec::with_capacity(16 * self.buffers.len());
        let mut long: Vec<&[u8]> = Vec::with_capacity(2 * self.buffers.len());
        for buffer in &self.buffers {
            let (place, len) = match buffer {
                Part::Here(_) => {
                    let begin = at.next_multiple_of(ALIGN);
                    long.extend([&ZEROS[..begin - at], buffer.as_slice()]);
                    at = begin + buffer.len();
                    (begin as u64, buffer.len())
                }
                Part::Shared { at, len, .. } => (at | SHARED, *len),
            };
            table.extend_from_slice(&place.to_le_bytes());
            table.extend_from_slice(&(len as u64).to_le_bytes());
        }
        let mut parts: Vec<&[u8]> = vec![&fixed, &table, head, &self.stream];
        parts.append(&mut long);
        f(&parts)
    }

    fn fixed(&self, head: &[u8]) -> [u8; FIXED] {
        let mut fixed = [0; FIXED];
        fixed[..4].copy_from_slice(&[PYTHON | self.failed, self.kind, self.flags, self.count]);
        fixed[4..8].copy_from_slice(&(head.len() as u32).to_le_bytes());
        fixed[8..16].copy_from_slice(&(self.stream.len() as u64).to_le_bytes());
        fixed[16..].copy_from_slice(&(self.buffers.len() as u64).to_le_bytes());
        fixed
    }

    /// What it refers to.
    pub(super) fn shared(&self) -> Vec<SharedPart> {
        let shared = self.buffers.iter().filter_map(|b| if let Part::Shared { part, .. } = b { Some(part.clone()) } else { None });
        shared.collect()
    }

    /// Bytes of the buffers.
    pub(super) fn long(&self) -> usize {
        self.buffers.iter().map(Part::len).sum()
    }
}

fn corrupt(py: Python<'_>, why: &'static str, len: usize) -> PyErr {
    raise(py, &Error::new(ErrorKind::Corrupt, why).with("len", len))
}

/// A message that came. What is read of it is private, or a copy: who wrote it may write on.
pub(super) struct Reader<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) count: u8,
    front: Cow<'a, [u8]>,
    head: Range<usize>,
    stream: Range<usize>,
    buffers: Vec<Place>,
}

/// Where a buffer of a message lies.
#[derive(Clone, Copy)]
enum Place {
    /// Inside of the message, as was checked.
    Here(usize, usize),
    /// In shared memory: where it says.
    Shared(u64, u64),
}

/// Copies bytes out of memory that a peer may write.
///
/// # Errors
/// MemoryError: the peer chose the length.
///
/// # Safety
/// `at..at + len` stay readable from `from` on during the call.
pub(super) unsafe fn take(from: *const u8, at: usize, len: usize) -> PyResult<Vec<u8>> {
    let mut out = copy::room(len)?;
    // SAFETY: readable by the contract, and `out` has room.
    unsafe {
        std::ptr::copy_nonoverlapping(from.add(at), out.as_mut_ptr(), len);
        out.set_len(len);
    }
    Ok(out)
}

impl<'a> Reader<'a> {
    /// Of a message that nobody else writes.
    ///
    /// # Errors
    /// CorruptError for what is no message of this form.
    pub(super) fn of(py: Python<'_>, message: &'a [u8]) -> PyResult<Reader<'a>> {
        // SAFETY: the slice is borrowed during the call.
        unsafe { Reader::from_parts(py, message.as_ptr(), message.len(), |end| Ok(Cow::Borrowed(&message[..end]))) }
    }

    /// Of a message that its writer may write on.
    ///
    /// # Errors
    /// CorruptError for what is no message of this form.
    ///
    /// # Safety
    /// `len` bytes stay readable at `from` during the call.
    pub(super) unsafe fn new(py: Python<'_>, from: *const u8, len: usize) -> PyResult<Reader<'static>> {
        // SAFETY: by the contract; the front is at most as long.
        unsafe { Reader::from_parts(py, from, len, |end| take(from, 0, end).map(Cow::Owned)) }
    }

    /// `front(end)`: what the reader keeps of the first `end` bytes, of which there are as many.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    unsafe fn from_parts<'b>(
        py: Python<'_>,
        from: *const u8,
        len: usize,
        front: impl FnOnce(usize) -> PyResult<Cow<'b, [u8]>>,
    ) -> PyResult<Reader<'b>> {
        let short = || corrupt(py, "message of a worker is shorter than it says", len);
        if len < FIXED {
            return Err(short());
        }
        // SAFETY: inside of `len`, as checked; bytes have no alignment.
        let fixed = unsafe { from.cast::<[u8; FIXED]>().read_unaligned() };
        let u64_at = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let head = u32::from_le_bytes(fixed[4..8].try_into().expect("four bytes")) as usize;
        let stream = usize::try_from(u64_at(&fixed, 8)).unwrap_or(usize::MAX);
        let count = usize::try_from(u64_at(&fixed, 16)).unwrap_or(usize::MAX);
        let table = count.checked_mul(16).and_then(|n| n.checked_add(FIXED)).filter(|n| *n <= len).ok_or_else(short)?;
        let end = table.checked_add(head).and_then(|n| n.checked_add(stream)).filter(|n| *n <= len).ok_or_else(short)?;
        let front = front(end)?;
        let mut buffers = copy::room(count)?;
        for i in 0..count {
            let (at, size) = (u64_at(&front, FIXED + 16 * i), u64_at(&front, FIXED + 16 * i + 8));
            if at & SHARED != 0 {
                buffers.push(Place::Shared(at & !SHARED, size));
                continue;
            }
            let (at, size) = (usize::try_from(at).unwrap_or(usize::MAX), usize::try_from(size).unwrap_or(usize::MAX));
            if at > len || size > len - at {
                return Err(short());
            }
            buffers.push(Place::Here(at, size));
        }
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

    /// It has buffers in the message.
    pub(super) fn has_buffers(&self) -> bool {
        self.buffers.iter().any(|b| matches!(b, Place::Here(..)))
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
                        copy::to_str(py, text)?
                    } else {
                        copy::bytes_of(py, bytes)?
                    }
                }
                LONG_BYTES => {
                    let (Some(&Place::Here(at, len)), Some(memory)) = (buffers.next(), memory) else { return Err(short()) };
                    // SAFETY: inside of the message, as checked, which `memory` keeps.
                    unsafe { copy::to_bytes(py, memory.ptr.add(at), len)? }
                }
                _ => return Err(corrupt(py, "value of a worker has no known tag", usize::from(*tag))),
            });
        }
        Ok(values)
    }

    /// Views of the buffers, for the unpickler. `shared(at, len)`: what lies in shared memory.
    pub(super) fn views<'py>(
        &self,
        py: Python<'py>,
        memory: Option<&Memory<'_, 'py>>,
        shared: impl Fn(u64, u64) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        if self.buffers.is_empty() {
            return Ok(PyList::empty(py));
        }
        let whole = memory.map(|memory| PyMemoryView::from(memory.owner)).transpose()?;
        let view = |place: &Place| match (*place, &whole) {
            (Place::Here(at, len), Some(whole)) => whole.get_item(PySlice::new(py, at as isize, (at + len) as isize, 1)),
            (Place::Here(..), None) => Err(corrupt(py, "buffers of a worker's message lie nowhere", self.front.len())),
            (Place::Shared(at, len), _) => shared(at, len),
        };
        let mut views = copy::room(self.buffers.len())?;
        for place in &self.buffers {
            views.push(view(place)?);
        }
        copy::to_list(py, views)
    }
}

/// The memory of a whole message, and the Python object whose views keep it.
pub(super) struct Memory<'a, 'py> {
    pub(super) owner: &'a Bound<'py, PyAny>,
    pub(super) ptr: *const u8,
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
