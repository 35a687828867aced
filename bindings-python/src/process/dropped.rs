//! Pools that nobody refers to any more and whose functions have not returned: the interpreter waits for them at its exit.

use crate::error::raise;
use crate::wait;
use offloop::error::ErrorKind;
use offloop::pool::ProcessPool;
use offloop::sys::fork::ForkCell;
use pyo3::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A child made by fork has none of its parent's.
static DROPPED: ForkCell<Mutex<Vec<ProcessPool>>> = ForkCell::new();

fn lock() -> MutexGuard<'static, Vec<ProcessPool>> {
    DROPPED.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes a pool that is dropped. What it took in still runs.
pub(super) fn close(pool: &ProcessPool) {
    // A forked child's copy belongs to the parent.
    if pool.close_within(None, Box::new(|| {})).is_err() {
        return;
    }
    let stats = pool.pool().stats();
    let done = {
        let mut dropped = lock();
        let (busy, done) = std::mem::take(&mut *dropped).into_iter().partition(|p| !p.wait_closed(Some(Duration::ZERO)));
        *dropped = busy;
        if stats.queued + stats.running + stats.overdue > 0 {
            dropped.push(pool.clone());
        }
        done
    };
    drop::<Vec<ProcessPool>>(done);
}

/// Waits until all of them have run what they took in and their processes have ended. Ctrl-C ends the wait.
#[pyfunction]
fn _finish_dropped(py: Python<'_>) -> PyResult<()> {
    loop {
        let Some(pool) = lock().pop() else { return Ok(()) };
        wait_closed(py, &pool, false)?;
    }
}

/// Waits until a closing pool has run what it took in and its processes have ended. `cancels`: what waits, or comes back from a worker that was
/// lost, is not run.
pub(super) fn wait_closed(py: Python<'_>, pool: &ProcessPool, cancels: bool) -> PyResult<()> {
    wait::until(py, None, |slice| {
        if cancels {
            pool.pool().cancel_queued();
        }
        Ok(pool.wait_closed(Some(slice)))
    })?;
    match wait::detached(py, || pool.shutdown(None)) {
        Err(e) if e.kind() != ErrorKind::Forked => Err(raise(py, &e)),
        _ => Ok(()),
    }
}

pub(super) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_finish_dropped, m)?)
}
