//! Python face: the module `offloop._native`.
//!
//! Converts types, holds handles, and follows the host's protocols; what a second language would need is in core.
//!
//! ```text
//!   offloop (Python)   ThreadPool, ops, exit and fork hooks, worker and callback threads
//!   ─────────────────────────────────────────────────────────────────────────────
//!   pool     submit, options, shutdown       future   Future and its callbacks
//!   hosted   Python threads pull callables   port     one completion queue per event loop
//!   value buffer error copy (host memory)     late     references that native threads drop
//!   process  ProcessPool, and its workers    cluster  Cluster, and this process as a worker of one;  stack  where it stands
//!   ring     RingBuffer, Producer, Consumer   wait     without the GIL;  offloop._ring waits in event loops
//! ```
//!
//! No native thread ever takes the GIL: `Python::attach` from one aborts a process that is shutting down. Whatever needs
//! the interpreter is queued for a thread that has it.

mod buffer;
mod channel;
mod cluster;
mod copy;
mod dispatch;
mod error;
mod fast;
mod future;
mod hosted;
mod late;
mod pool;
mod port;
mod process;
mod ring;
mod shared;
mod stack;
mod table;
mod value;
mod wait;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::OsString;
use std::sync::atomic::{AtomicI64, Ordering};

/// The interpreter that loaded this module first; −1 before.
static INTERPRETER: AtomicI64 = AtomicI64::new(-1);

/// Refuses every interpreter but the first: a legacy sub-interpreter would share this module's statics with it.
fn guard_interpreter() -> PyResult<()> {
    // SAFETY: the calling thread holds the GIL of its interpreter.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match INTERPRETER.compare_exchange(-1, id, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != id => Err(PyImportError::new_err(format!(
            "offloop is loaded in another interpreter of this process (first={first}, this={id}); use one interpreter per process"
        ))),
        _ => Ok(()),
    }
}

/// The `offloop` command, which writes to this process's output itself; gives its exit status.
#[pyfunction]
fn _cli(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| offloop::cli::run(args, &mut std::io::stdout().lock(), &mut std::io::stderr()))
}

#[pymodule(gil_used = true)]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    guard_interpreter()?;
    offloop::pool::silence_panics();
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::install(m)?;
    buffer::install(m)?;
    copy::install(m)?;
    channel::install(m)?;
    cluster::install(m)?;
    dispatch::install(m)?;
    future::install(m)?;
    hosted::install(m)?;
    pool::install(m)?;
    port::install(m)?;
    process::install(m)?;
    ring::install(m)?;
    shared::install(m)?;
    table::install(m)?;
    value::install(m)?;
    wait::install(m)?;
    m.add_function(wrap_pyfunction!(_cli, m)?)
}
