//! The process that workers are forks of: `offloop.worker` imports what `preload` names, then calls [`PyZygote::serve`].

use crate::error::raise;
use offloop::supervisor::zygote::{self, Served, Zygote};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// This process as a zygote.
#[pyclass(name = "_Zygote", module = "offloop._native", frozen)]
pub(super) struct PyZygote(Mutex<Option<Zygote>>);

impl PyZygote {
    fn lock(&self) -> MutexGuard<'_, Option<Zygote>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the pool is told of a fork that Python refused.
fn refused(py: Python<'_>, error: &PyErr) -> io::Error {
    let errno = error.is_instance_of::<PyOSError>(py).then(|| error.value(py).getattr("errno").ok()?.extract::<i32>().ok()).flatten();
    io::Error::from_raw_os_error(errno.unwrap_or(libc::EAGAIN))
}

#[pymethods]
impl PyZygote {
    /// None when this process was not started as one.
    #[staticmethod]
    fn attach(py: Python<'_>) -> PyResult<Option<PyZygote>> {
        let zygote = zygote::attach().map_err(|e| raise(py, &e))?;
        Ok(zygote.map(|zygote| PyZygote(Mutex::new(Some(zygote)))))
    }

    /// What the pool says to it.
    #[getter]
    fn setup<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.lock().as_ref().map_or(&[], Zygote::setup))
    }

    /// Why it cannot go on; the process ends afterwards.
    fn fail(&self, text: &str) {
        if let Some(zygote) = &*self.lock() {
            zygote.fail(text);
        }
    }

    /// Makes workers by `fork`, which is `os.fork`: true in each of them, false when this process is to end. The interpreter's lock is held
    /// all the time: there is no other thread.
    fn serve(&self, fork: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = fork.py();
        // Taken before the first fork, so that no child inherits a lock that is held.
        let zygote = self.lock().take().ok_or_else(|| PyRuntimeError::new_err("zygote has served"))?;
        let served = zygote.serve(|| fork.call0().and_then(|pid| pid.extract::<i32>()).map_err(|e| refused(py, &e)));
        match served {
            Ok(Served::Worker) => Ok(true),
            Ok(Served::Over) => Ok(false),
            Err(e) => Err(raise(py, &e)),
        }
    }
}
