//! Ops of the default pool: what `offloop.ops` calls.

use super::inputs::Inputs;
use super::may_copy;
use crate::buffer;
use crate::error::raise;
use crate::port::{Port, PyAwaitable};
use crate::{value, wait};
use offloop::error::{Error, ErrorKind};
use offloop::ops::{self, Control, OpCtx, Params, Splitter};
use offloop::pool::{Deliver, OnFull, SubmitOptions, Work};
use offloop::{Task, ThreadPool, Value};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Inputs that a waiting caller's own thread works on: up to some 50 µs of hashing, against 10 to 40 µs to wake a worker.
const INLINE_UP_TO: usize = 64 << 10;

/// An op of the default pool, submitted without a bound: its caller waits for it.
fn submit_default<'py>(py: Python<'py>, name: &str, mut inputs: Inputs<'py>, params: &Value, deliver: Deliver) -> PyResult<Task> {
    let bytes = std::mem::take(&mut inputs.bytes);
    let submitted = ThreadPool::default_pool().map_err(|e| (e, Vec::new())).and_then(|pool| {
        let work = pool.op(name, bytes, params)?;
        let options = SubmitOptions { on_full: OnFull::Admit, deliver, ..SubmitOptions::default() };
        pool.submit(work, options).map_err(|e| (e.error, e.work.into_iter().flat_map(Work::into_inputs).collect()))
    });
    submitted.map_err(|(e, bytes)| {
        inputs.restore(bytes);
        raise(py, &e)
    })
}

/// Looks for Ctrl-C while an op runs on the main thread without the GIL.
struct Signals {
    last: Mutex<Instant>,
    raised: Mutex<Option<PyErr>>,
}

impl Control for Signals {
    fn check(&self) -> Result<(), Error> {
        let mut last = lock(&self.last);
        if last.elapsed() < wait::SLICE || !wait::is_main_thread() {
            return Ok(());
        }
        *last = Instant::now();
        // The main thread is the interpreter's own, so it may take the GIL.
        Python::attach(|py| py.check_signals()).map_err(|e| {
            *lock(&self.raised) = Some(e);
            Error::new(ErrorKind::Cancelled, "a signal handler raised")
        })
    }
}

/// No idle worker helps a small input.
struct Alone;

impl Splitter for Alone {
    fn width(&self) -> usize {
        1
    }
    fn join(&self, _: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        body(&|| false);
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a built-in op for a caller who waits. Short inputs are worked on here, without the GIL, because handing them to a
/// worker costs more than it brings; longer ones go to the default pool, where idle workers share them.
#[pyfunction]
fn _call(py: Python<'_>, name: &str, inputs: &Bound<'_, PyTuple>, params: &Bound<'_, PyDict>) -> PyResult<Py<PyAny>> {
    let params = value::options(Some(params))?;
    if inputs.iter().map(|i| buffer::byte_len(&i)).sum::<usize>() > INLINE_UP_TO {
        let task = submit_default(py, name, Inputs::take(inputs.iter(), buffer::input)?, &params, Deliver::Wait)?;
        if let Err(e) = wait::until(py, None, |slice| Ok(task.wait_slice(slice))) {
            task.cancel(); // Ctrl-C: nobody takes the result
            return Err(e);
        }
        let result = task.try_take().unwrap_or_else(|| Err(Error::invalid("result was already taken")));
        return Ok(value::to_python(py, result.map_err(|e| raise(py, &e))?)?.unbind());
    }
    let op = ops::find(name).map_err(|e| raise(py, &e))?;
    let params = Params::check(op.name, op.params, &params).map_err(|e| raise(py, &e))?;
    // `bytes` are borrowed: `inputs` outlives the call.
    let bytes = Inputs::take(inputs.iter(), buffer::borrowed_input)?.bytes;
    let signals = Signals { last: Mutex::new(Instant::now()), raised: Mutex::new(None) };
    let result = wait::detached(py, || {
        let run = AssertUnwindSafe(|| (op.run)(&mut OpCtx::new(bytes, &params, &signals, &Alone)));
        catch_unwind(run).unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "the op panicked").with("op", op.name)))
    });
    if let Some(e) = lock(&signals.raised).take() {
        return Err(e);
    }
    Ok(value::to_python(py, result.map_err(|e| raise(py, &e))?)?.unbind())
}

/// Starts a built-in op on the default pool for the running event loop, as `_Pool._start` does.
#[pyfunction]
fn _start<'py>(
    py: Python<'py>,
    name: &str,
    inputs: &Bound<'py, PyTuple>,
    params: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyAwaitable>>> {
    if !may_copy(py, inputs.iter())? {
        return Ok(None);
    }
    Port::start(py, |_, deliver| {
        let params = value::options(Some(params))?;
        submit_default(py, name, Inputs::take(inputs.iter(), buffer::input)?, &params, deliver())
    })
    .map(Some)
}

pub(super) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_call, m)?)?;
    m.add_function(wrap_pyfunction!(_start, m)?)
}
