//! What native threads leave for a thread that has the interpreter.
//!
//! Three daemon threads wait here without the GIL, each for what must not wait for the others:
//!
//! - `offloop-results` makes the end of a task known to whom the stdlib makes wait for it (`wait`, `as_completed`, event loops). It
//!   runs no callback of a user, so nobody can hold it up.
//! - `offloop-callbacks` calls done-callbacks, which may take their time and wait for other futures.
//! - `offloop-starter` starts threads that a pool asked for at an awkward moment. A callback may wait for a callable whose thread is
//!   not started yet.

use crate::future::{PyFuture, announce_guarded, tell_guarded};
use crate::hosted::Hosting;
use crate::port::{Bell, Port};
use crate::wait;
use offloop::sys::fork::ForkCell;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

pub(crate) enum Item {
    /// A future with callbacks or waiters is done.
    Done(Py<PyFuture>),
    /// It was announced, and has callbacks of the user.
    Call(Py<PyFuture>),
    /// A pool of callables wants threads.
    Start(Arc<Hosting>),
    /// A loop without `add_reader` has events.
    Ring(Bell),
}

#[derive(Default)]
struct Dispatch {
    queue: Mutex<VecDeque<Item>>,
    bell: Condvar,
    started: AtomicBool,
}

static RESULTS: ForkCell<Dispatch> = ForkCell::new();
static CALLBACKS: ForkCell<Dispatch> = ForkCell::new();
static STARTER: ForkCell<Dispatch> = ForkCell::new();
static PENDING: AtomicUsize = AtomicUsize::new(0);

/// Counts what the exit of the interpreter waits for: a future with callbacks that were not called yet, or a worker that
/// has no thread yet.
pub(crate) struct Pending(u64);

impl Pending {
    pub(crate) fn new() -> Pending {
        PENDING.fetch_add(1, Ordering::Relaxed);
        Pending(offloop::sys::fork::epoch())
    }

    /// It was made before this process was forked.
    pub(crate) fn is_of_parent(&self) -> bool {
        self.0 != offloop::sys::fork::epoch()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // One of the parent's does not count in a forked child, where the counter began anew.
        if !self.is_of_parent() {
            PENDING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One of the threads.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Results,
    Callbacks,
    Starter,
}

impl Role {
    fn dispatch(self) -> &'static Dispatch {
        match self {
            Role::Results => &RESULTS,
            Role::Callbacks => &CALLBACKS,
            Role::Starter => &STARTER,
        }
        .get(Dispatch::default)
    }

    fn thread(self) -> &'static str {
        match self {
            Role::Results => "offloop-results",
            Role::Callbacks => "offloop-callbacks",
            Role::Starter => "offloop-starter",
        }
    }
}

pub(crate) fn push(item: Item) {
    let role = match item {
        Item::Done(_) | Item::Ring(_) => Role::Results,
        Item::Call(_) => Role::Callbacks,
        Item::Start(_) => Role::Starter,
    };
    let d = role.dispatch();
    d.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
    d.bell.notify_one();
}

/// Starts the thread of that role, once per process.
pub(crate) fn ensure(py: Python<'_>, role: Role) {
    let d = role.dispatch();
    if d.started.load(Ordering::Relaxed) || d.started.swap(true, Ordering::Relaxed) {
        return;
    }
    let started = (|| {
        let body = PyCFunction::new_closure(py, None, None, move |args, _| serve(args.py(), d))?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("target", body)?;
        kwargs.set_item("name", role.thread())?;
        kwargs.set_item("daemon", true)?;
        py.import("threading")?.getattr("Thread")?.call((), Some(&kwargs))?.call_method0("start").map(drop)
    })();
    if let Err(e) = started {
        d.started.store(false, Ordering::Relaxed);
        e.write_unraisable(py, None);
    }
}

/// The body of each thread.
fn serve(py: Python<'_>, d: &Dispatch) {
    loop {
        let items = wait::detached(py, || {
            let queue = d.queue.lock().unwrap_or_else(PoisonError::into_inner);
            let (mut queue, _) =
                d.bell.wait_timeout_while(queue, Duration::from_secs(3600), |q| q.is_empty()).unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *queue)
        });
        for item in items {
            match item {
                Item::Done(future) => announce_guarded(py, future),
                Item::Call(future) => tell_guarded(py, &future),
                Item::Start(hosting) => hosting.start_wanted(py),
                Item::Ring(bell) => Port::ring(py, &bell),
            }
        }
    }
}

thread_local! {
    static WORKER_TELLS: Cell<bool> = const { Cell::new(false) };
}

/// This thread is a worker inside `finish`, and tells the future of its task itself.
pub(crate) fn worker_tells() -> bool {
    WORKER_TELLS.get()
}

pub(crate) fn while_worker_tells<T>(f: impl FnOnce() -> T) -> T {
    WORKER_TELLS.set(true);
    let out = f();
    WORKER_TELLS.set(false);
    out
}

/// Futures whose callbacks were not called yet, and workers whose threads were not started yet.
#[pyfunction]
fn _pending() -> usize {
    PENDING.load(Ordering::Relaxed)
}

#[pyfunction]
fn _after_fork_in_child() {
    PENDING.store(0, Ordering::Relaxed);
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_pending, m)?)?;
    m.add_function(wrap_pyfunction!(_after_fork_in_child, m)?)
}
