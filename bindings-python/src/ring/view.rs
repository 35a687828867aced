//! What Python sees of a claim or a record: a `memoryview` that ends with its block or call.
//!
//! The interpreter counts the exports of a buffer, so a view that somebody kept is known. Its memory is then neither
//! written by others nor given back until it is gone.

use offloop::error::{Error, ErrorKind};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// In `state`: no new exports. The rest of it counts the live ones.
const SHUT: usize = 1 << (usize::BITS - 1);

/// A window into a ring's memory.
#[derive(Debug)]
pub(super) struct Window {
    at: AtomicPtr<u8>,
    len: AtomicUsize,
    state: AtomicUsize,
}

impl Window {
    /// Shows `len` bytes. Nobody looks through the window yet.
    pub(super) fn open(&self, at: *mut u8, len: usize) {
        self.at.store(at, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        // Pairs with the Acquire in `export`.
        self.state.store(0, Ordering::Release);
    }

    fn export(&self) -> Option<(*mut u8, usize)> {
        let one_more = |state| if state & SHUT != 0 { None } else { Some(state + 1) };
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).ok()?;
        Some((self.at.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed)))
    }

    /// Ends it for new views. False while one is alive.
    pub(super) fn shut(&self) -> bool {
        // SeqCst: see `Exclusive::end`.
        self.state.fetch_or(SHUT, Ordering::SeqCst) & !SHUT == 0
    }

    /// Nobody looks through it. What was written through it is seen after this.
    fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) & !SHUT == 0
    }
}

/// Who closes a handle of core, but not while its memory is looked at.
pub(super) trait Lessor: Send + Sync {
    /// The last view is gone.
    fn unviewed(&self);
}

/// A handle of core that has a claim or a record which Python code may look at.
pub(super) trait Lend {
    /// What the user hears who kept a view.
    const KEPT: &'static str;

    /// Lets go of the claim or the record.
    fn give_up(&mut self);
}

/// A handle, and the window on what it lent.
pub(super) struct Lent<H: Lend> {
    pub(super) handle: H,
    pub(super) window: Arc<Window>,
    /// The block or the call is over, and a view of it was alive.
    orphaned: bool,
}

impl<H: Lend> Lent<H> {
    pub(super) fn new(handle: H) -> Lent<H> {
        let window = Window { at: AtomicPtr::new(ptr::null_mut()), len: AtomicUsize::new(0), state: AtomicUsize::new(SHUT) };
        Lent { handle, window: Arc::new(window), orphaned: false }
    }

    /// The handle, once nobody looks at what it lent before; that is then given up.
    #[inline]
    pub(super) fn ready(&mut self) -> Result<&mut H, Error> {
        if self.orphaned {
            if !self.window.is_idle() {
                return Err(Lent::<H>::kept());
            }
            self.handle.give_up();
            self.orphaned = false;
        }
        Ok(&mut self.handle)
    }

    /// The block or the call is over: the handle, to finish what was lent, or None while a view of it lives on.
    pub(super) fn end(&mut self) -> Option<&mut H> {
        self.orphaned = !self.window.shut();
        if self.orphaned { None } else { Some(&mut self.handle) }
    }

    pub(super) fn kept() -> Error {
        Error::new(ErrorKind::InUse, H::KEPT)
    }
}

impl<H: Lend> Drop for Lent<H> {
    fn drop(&mut self) {
        // It was closed behind a view, so no later call has given up what was lent. Views keep the handle: there is none by now.
        if self.orphaned {
            self.handle.give_up();
        }
    }
}

/// What exports a window's bytes. It keeps the handle that they belong to, and with it the seat and the mapping.
#[pyclass(name = "_View", module = "offloop._native", frozen)]
pub(crate) struct View {
    window: Arc<Window>,
    writable: bool,
    handle: Arc<dyn Lessor>,
}

impl View {
    pub(super) fn new(window: &Arc<Window>, writable: bool, handle: Arc<dyn Lessor>) -> View {
        View { window: Arc::clone(window), writable, handle }
    }

    fn let_go(&self) {
        // SeqCst: see `Exclusive::end`. It releases what was written through the view, too.
        if self.window.state.fetch_sub(1, Ordering::SeqCst) & !SHUT == 1 {
            self.handle.unviewed();
        }
    }
}

#[pymethods]
impl View {
    /// # Safety
    /// Called by the interpreter with a `Py_buffer` to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        if view.is_null() {
            return Err(PyBufferError::new_err("no Py_buffer to fill"));
        }
        let Some((at, len)) = this.window.export() else {
            return Err(PyBufferError::new_err("the claim or record that this view showed is over"));
        };
        // SAFETY: `view` is a Py_buffer of the caller; the exporter is kept alive by `obj` and keeps the mapping.
        let failed =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at.cast(), len as ffi::Py_ssize_t, c_int::from(!this.writable), flags) };
        if failed != 0 {
            this.let_go();
            return Err(PyErr::fetch(slf.py()));
        }
        Ok(())
    }

    /// # Safety
    /// Called by the interpreter once per filled view.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.let_go();
    }
}

/// Releases what the user was given; what was made from it may live on, which the window then tells.
pub(super) fn release(view: &Bound<'_, PyMemoryView>) {
    let _ = view.call_method0(intern!(view.py(), "release"));
}
