//! Copies of host memory: long ones without the GIL, or slice by slice for an event loop.
//!
//! While a long copy runs, other threads may write what is copied. An export keeps the memory where it is, each byte is read
//! once, and what was written meanwhile is in the copy or not, as it is for every function that takes a buffer without the GIL: who
//! wants one state of it does not write until the call returns.

use crate::buffer::PyTransferBuffer;
use crate::error::raise;
use crate::wait;
use offloop::error::Error;
use offloop::{Bytes, TransferBuffer};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyMemoryView, PyString};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is copied at a time where a loop or the GIL waits for it: about 0.1 ms, twice that into memory that was never touched.
pub(crate) const SLICE: usize = 1 << 20;

/// Bytes that cost as much as one element that lies alone.
const LINE: usize = 64;

/// Copies `len` bytes, without the GIL when they are many.
///
/// # Safety
/// `len` bytes stay readable at `from`, and at `to` writable and untouched by others, during the call.
pub(crate) unsafe fn copy(py: Python<'_>, from: *const u8, to: *mut u8, len: usize) {
    let (from, to) = (from as usize, to as usize);
    // SAFETY: the contract.
    wait::detached_if(py, len >= SLICE, || unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) });
}

/// What there is no memory for. Whoever sent it chose the length, in bytes.
#[cold]
pub(crate) fn no_memory(len: usize) -> PyErr {
    PyMemoryError::new_err(format!("no memory for a value (len={len})"))
}

/// An empty vector with room for `len` items.
///
/// # Errors
/// MemoryError.
pub(crate) fn room<T>(len: usize) -> PyResult<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| no_memory(len.saturating_mul(size_of::<T>())))?;
    Ok(out)
}

/// A new object of `len` bytes; a bare MemoryError of the interpreter gets the length.
///
/// # Safety
/// `object` is a new reference, or null with an exception set.
unsafe fn made(py: Python<'_>, object: *mut ffi::PyObject, len: usize) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: by the contract.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, object) };
    made.map_err(|e| if e.is_instance_of::<PyMemoryError>(py) { no_memory(len) } else { e })
}

/// A `str`. pyo3's own panics where there is no memory.
pub(crate) fn to_str<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: copies what `text` has.
    unsafe { made(py, ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), text.len() as ffi::Py_ssize_t), text.len()) }
}

/// A `bytearray`, as [`to_str`].
pub(crate) fn to_bytearray<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: copies what `bytes` has.
    unsafe { made(py, ffi::PyByteArray_FromStringAndSize(bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t), bytes.len()) }
}

/// A `list`, as [`to_str`].
pub(crate) fn to_list<'py>(py: Python<'py>, items: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyList>> {
    let len = items.len();
    // SAFETY: a new list.
    let list = unsafe { made(py, ffi::PyList_New(len as ffi::Py_ssize_t), len.saturating_mul(size_of::<*mut ffi::PyObject>()))? };
    for (i, item) in items.into_iter().enumerate() {
        // SAFETY: a list that nobody has seen, with a place of this number; it takes the reference.
        unsafe { ffi::PyList_SetItem(list.as_ptr(), i as ffi::Py_ssize_t, item.into_ptr()) };
    }
    Ok(list.cast_into()?)
}

/// New `bytes` that nobody has seen, and where to write their content.
fn unwritten(py: Python<'_>, len: usize) -> PyResult<(Bound<'_, PyAny>, *mut u8)> {
    // SAFETY: makes a new object of that size.
    let object = unsafe { made(py, ffi::PyBytes_FromStringAndSize(ptr::null(), len as ffi::Py_ssize_t), len)? };
    // SAFETY: `object` is bytes.
    let at = unsafe { ffi::PyBytes_AsString(object.as_ptr()) };
    Ok((object, at.cast()))
}

/// A new `bytes` of what lies at `from`.
///
/// # Safety
/// `len` bytes at `from` stay readable during the call. A peer may change them meanwhile.
#[inline]
pub(crate) unsafe fn to_bytes(py: Python<'_>, from: *const u8, len: usize) -> PyResult<Bound<'_, PyAny>> {
    if len < SLICE {
        // SAFETY: copies `len` readable bytes, by the contract.
        return unsafe { made(py, ffi::PyBytes_FromStringAndSize(from.cast(), len as ffi::Py_ssize_t), len) };
    }
    let (object, to) = unwritten(py, len)?;
    // SAFETY: readable by the contract; nobody else has the object yet.
    unsafe { copy(py, from, to, len) };
    Ok(object)
}

/// As [`to_bytes`], of memory that is borrowed.
pub(crate) fn bytes_of<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: borrowed during the call.
    unsafe { to_bytes(py, bytes.as_ptr(), bytes.len()) }
}

/// A `bytes` that an event loop makes of a long result, a slice at a time.
pub(crate) struct Growing {
    source: Bytes,
    done: usize,
    object: Py<PyAny>,
}

impl Growing {
    pub(crate) fn new(py: Python<'_>, source: Bytes) -> PyResult<Growing> {
        let (object, _) = unwritten(py, source.len())?;
        Ok(Growing { source, done: 0, object: object.unbind() })
    }

    /// Copies one slice. True when the object is whole.
    pub(crate) fn advance(&mut self, _: Python<'_>) -> bool {
        let rest = &self.source.as_slice()[self.done..];
        let n = rest.len().min(SLICE);
        // SAFETY: `object` is bytes of the source's length, and nobody else has it before it is whole.
        unsafe {
            let to = ffi::PyBytes_AsString(self.object.as_ptr()).cast::<u8>();
            ptr::copy_nonoverlapping(rest.as_ptr(), to.add(self.done), n);
        }
        self.done += n;
        n == rest.len()
    }

    pub(crate) fn into_inner(self) -> Py<PyAny> {
        self.object
    }
}

/// One dimension of an array whose elements do not lie together.
struct Dim {
    count: usize,
    stride: isize,
    /// Index of the run that is copied next.
    at: usize,
}

/// The bytes of an array in C order, being copied.
struct Strided {
    base: *const u8,
    len: usize,
    done: usize,
    /// Bytes that lie together.
    run: usize,
    /// How many of the current run were copied.
    in_run: usize,
    /// Where the current run lies, from `base`.
    offset: isize,
    /// Of runs, outermost first; none if all bytes lie together.
    dims: Vec<Dim>,
}

// SAFETY: `base` is only read, by whoever has the value; what it points into is kept by the export beside it.
unsafe impl Send for Strided {}

impl Strided {
    fn new(view: &PyUntypedBuffer) -> Strided {
        let mut run = view.item_size();
        let mut dims: Vec<Dim> = Vec::new();
        // From the innermost: what follows what is inside it without a gap, or in its steps, is one dimension with it.
        for (&count, &stride) in view.shape().iter().zip(view.strides()).rev() {
            match dims.last_mut() {
                _ if count == 1 => {}
                None if stride == run as isize => run *= count,
                Some(inner) if stride == inner.stride.wrapping_mul(inner.count as isize) => inner.count *= count,
                _ => dims.push(Dim { count, stride, at: 0 }),
            }
        }
        dims.reverse();
        Strided { base: view.buf_ptr().cast(), len: view.len_bytes(), done: 0, run, in_run: 0, offset: 0, dims }
    }

    fn cost(&self) -> usize {
        if self.dims.is_empty() { self.len } else { (self.len / self.run.max(1)).saturating_mul(self.run.max(LINE)) }
    }

    fn is_done(&self) -> bool {
        self.done == self.len
    }

    /// Copies on, for about as long as `budget` bytes that lie together take.
    ///
    /// # Safety
    /// `to` is where the first byte goes, the same in every call, with room for all; the exported memory is alive.
    unsafe fn advance(&mut self, to: *mut u8, mut budget: usize) {
        while budget > 0 && !self.is_done() {
            let from = self.base.wrapping_offset(self.offset).wrapping_add(self.in_run);
            // SAFETY: `done` is less than the bytes that `to` has room for.
            let to = unsafe { to.add(self.done) };
            match self.dims.last() {
                Some(inner) if self.in_run == 0 && self.run <= budget.max(LINE) => {
                    let cost = self.run.max(LINE);
                    let n = (budget / cost).max(1).min(inner.count - inner.at);
                    // SAFETY: the next `n` runs of this dimension lie inside the array, and have room behind `done`.
                    unsafe { copy_runs(from, inner.stride, to, self.run, n) };
                    self.done += n * self.run;
                    budget = budget.saturating_sub(n * cost);
                    self.step(n);
                }
                _ => {
                    let n = (self.run - self.in_run).min(budget);
                    // SAFETY: the rest of a run, which lies together.
                    unsafe { ptr::copy_nonoverlapping(from, to, n) };
                    self.done += n;
                    self.in_run += n;
                    budget -= n;
                    if self.in_run == self.run {
                        self.in_run = 0;
                        self.step(1);
                    }
                }
            }
        }
    }

    /// Goes on by `n` runs, not beyond the end of the innermost dimension.
    fn step(&mut self, mut n: usize) {
        for dim in self.dims.iter_mut().rev() {
            dim.at += n;
            self.offset = self.offset.wrapping_add(dim.stride.wrapping_mul(n as isize));
            if dim.at < dim.count {
                return;
            }
            self.offset = self.offset.wrapping_sub(dim.stride.wrapping_mul(dim.count as isize));
            dim.at = 0;
            n = 1;
        }
    }
}

/// Copies `n` runs of `len` bytes, `stride` apart, to `to` without a gap.
///
/// # Safety
/// Each run is readable, and `to` has room for all.
unsafe fn copy_runs(from: *const u8, stride: isize, to: *mut u8, len: usize, n: usize) {
    /// # Safety
    /// As above, for runs of the size of a `T`.
    unsafe fn of<T>(from: *const u8, stride: isize, to: *mut u8, n: usize) {
        let mut from = from;
        for i in 0..n {
            // SAFETY: the contract; neither side need be aligned.
            unsafe { to.cast::<T>().add(i).write_unaligned(from.cast::<T>().read_unaligned()) };
            from = from.wrapping_offset(stride);
        }
    }
    // SAFETY: the contract, for every arm.
    unsafe {
        match len {
            1 => of::<u8>(from, stride, to, n),
            2 => of::<u16>(from, stride, to, n),
            4 => of::<u32>(from, stride, to, n),
            8 => of::<u64>(from, stride, to, n),
            16 => of::<u128>(from, stride, to, n),
            _ => (0..n).for_each(|i| ptr::copy_nonoverlapping(from.wrapping_offset(stride * i as isize), to.add(i * len), len)),
        }
    }
}

/// What an exporter holds. Dropped with the interpreter at hand.
struct Source {
    strided: Strided,
    _export: PyUntypedBuffer,
}

impl Source {
    fn of(data: &Bound<'_, PyAny>) -> PyResult<Source> {
        let mut export = PyUntypedBuffer::get(data).map_err(|e| no_bytes(data, e))?;
        // Memory behind pointers, which hardly anything exports: the interpreter knows how to follow them.
        if export.suboffsets().is_some_and(|s| s.iter().any(|o| *o >= 0)) {
            export = PyUntypedBuffer::get(&PyMemoryView::from(data)?.call_method0("tobytes")?)?;
        }
        Ok(Source { strided: Strided::new(&export), _export: export })
    }

    /// A copy, in C order.
    fn into_vec(mut self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let mut out = self.room(py)?;
        let (strided, to) = (&mut self.strided, out.as_mut_ptr() as usize);
        // SAFETY: `out` has room for all and is ours; the export is alive.
        wait::detached_if(py, strided.cost() >= SLICE, || unsafe { strided.advance(to as *mut u8, usize::MAX) });
        // SAFETY: all bytes were written.
        unsafe { out.set_len(self.strided.len) };
        Ok(out)
    }

    fn room(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let mut out = Vec::new();
        let len = self.strided.len;
        out.try_reserve_exact(len).map_err(|_| raise(py, &Error::os("malloc", libc::ENOMEM).with("len", len)))?;
        Ok(out)
    }
}

/// What a copy costs, in bytes that lie together; 0 for what has no bytes.
pub(crate) fn cost(data: &Bound<'_, PyAny>) -> usize {
    PyUntypedBuffer::get(data).map_or(0, |export| Strided::new(&export).cost())
}

/// A copy of what an exporter holds now, in C order.
pub(crate) fn to_vec(data: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    Source::of(data)?.into_vec(data.py())
}

pub(crate) fn no_bytes(data: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let py = data.py();
    if !error.is_instance_of::<PyTypeError>(py) {
        return error;
    }
    let name = data.get_type().name().map_or_else(|_| "object".to_owned(), |n| n.to_string());
    let hint = if data.is_instance_of::<PyString>() { "text has no bytes of its own; encode it" } else { "input has no bytes" };
    raise(py, &Error::invalid(hint).with("type", name))
}

/// A copy that an event loop makes slice by slice.
#[pyclass(name = "_Copy", module = "offloop._native", frozen)]
pub(crate) struct PyCopy {
    state: Mutex<Option<(Source, Vec<u8>)>>,
}

impl PyCopy {
    // Never held while Python code runs, which the end of an export may do.
    fn lock(&self) -> MutexGuard<'_, Option<(Source, Vec<u8>)>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyCopy {
    /// Bytes of one step.
    #[classattr]
    const SLICE: usize = SLICE;

    #[new]
    fn py_new(data: &Bound<'_, PyAny>) -> PyResult<PyCopy> {
        let source = Source::of(data)?;
        let room = source.room(data.py())?;
        Ok(PyCopy { state: Mutex::new(Some((source, room))) })
    }

    /// Copies one slice. The copy, once it is whole; then, and after `release`, it is over.
    fn advance(&self, py: Python<'_>) -> PyResult<Option<PyTransferBuffer>> {
        let mut state = self.lock();
        let Some((source, room)) = state.as_mut() else {
            drop(state);
            return Err(raise(py, &Error::invalid("copy is over")));
        };
        // SAFETY: `room` has room for all and is ours; the export is alive.
        unsafe { source.strided.advance(room.as_mut_ptr(), SLICE) };
        if !source.strided.is_done() {
            return Ok(None);
        }
        // SAFETY: all bytes were written.
        unsafe { room.set_len(source.strided.len) };
        let whole = state.take();
        drop(state);
        let (_, bytes) = whole.expect("looked at above");
        TransferBuffer::from_bytes(bytes.into()).map(|b| Some(PyTransferBuffer::new(b))).map_err(|e| raise(py, &e))
    }

    /// Ends the export.
    fn release(&self) {
        let old = self.lock().take();
        drop(old);
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyCopy>()
}
