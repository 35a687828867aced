//! Waiting without the GIL, and coming back from it.

use crate::error::raise;
use offloop::error::{Error, ErrorKind};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Signals wake the main thread's wait; one that the kernel gave to another thread is seen this much later.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// The interpreter is about to finalize: only the main thread and daemon threads are left.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Waits by `slice(at most)` until it returns true or `timeout` passes. Ctrl-C ends it.
pub(crate) fn until(
    py: Python<'_>,
    timeout: Option<Duration>,
    mut slice: impl FnMut(Duration) -> Result<bool, Error> + Send,
) -> PyResult<bool> {
    let end = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = end.map_or(SLICE, |e| e.saturating_duration_since(Instant::now()).min(SLICE));
        if detached(py, || slice(left)).map_err(|e| raise(py, &e))? {
            return Ok(true);
        }
        py.check_signals()?;
        if end.is_some_and(|e| e <= Instant::now()) {
            return Ok(false);
        }
    }
}

/// What a wait that was too short raises.
pub(crate) fn timed_out(py: Python<'_>, message: &'static str, timeout: Option<Duration>) -> PyErr {
    let waited_ms = timeout.unwrap_or_default().as_secs_f64() * 1e3;
    raise(py, &Error::new(ErrorKind::Timeout, message).with("waited_ms", waited_ms))
}

/// Runs `f` without the GIL.
///
/// A daemon thread that comes back while the interpreter finalizes is ended by CPython with a forced unwind, which
/// aborts the process when it meets native frames. So it does not come back: it sleeps until the process is gone.
pub(crate) fn detached<T: Send>(py: Python<'_>, f: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        let out = f();
        if is_leaving() && !is_main_thread() {
            loop {
                std::thread::park();
            }
        }
        out
    })
}

/// As [`detached`] where the work is worth the way.
pub(crate) fn detached_if<T: Send>(py: Python<'_>, long: bool, f: impl FnOnce() -> T + Send) -> T {
    if long { detached(py, f) } else { f() }
}

/// The interpreter is about to finalize, or does.
pub(crate) fn is_leaving() -> bool {
    LEAVING.load(Ordering::Acquire)
}

pub(crate) fn is_main_thread() -> bool {
    // SAFETY: both calls take nothing and cannot fail.
    unsafe { libc::gettid() == libc::getpid() }
}

/// Called once by `atexit`, after every other thread was joined.
#[pyfunction]
fn _leaving() {
    LEAVING.store(true, Ordering::Release);
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_leaving, m)?)
}
