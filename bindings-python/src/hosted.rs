//! Python callables: Python threads pull them from core's queue.
//!
//! Core says when it wants one more thread, at a moment when the interpreter cannot be asked (inside a call, or on a thread
//! of its own). So its worker is put aside, and the Python thread that called into core starts a thread for it on its way
//! out; where no such thread comes back soon, the thread `offloop-starter` does.
//!
//! ```text
//!   ThreadPool, its views, tickets ──► _Host ◄── callables that were submitted, `current_task()`
//!                                        ▲ weak
//!   core's queue, worker threads  ──► Hosting
//! ```
//!
//! Native code owns nothing that may refer to the pool, so the interpreter's collector sees every cycle; a pool whose threads are
//! idle is freed as if it had none.

use crate::dispatch::{self, Item, Pending, while_worker_tells};
use crate::error::{self, raise};
use crate::future::{PyFuture, Returned, tell_guarded};
use crate::late::{self, Late};
use crate::port::PyAwaitable;
use crate::{value, wait};
use offloop::Value;
use offloop::error::{Error, ErrorKind};
use offloop::ops::Control;
use offloop::pool::{HostedTask, HostedWorker, Next};
use offloop::sys::fork::ForkCell;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// C functions run no bytecode, which is where CPython lets other threads in: after so many tasks this does.
const TASKS_PER_TURN: u32 = 32;

/// What users gave a pool: it may refer to the pool.
#[derive(Default)]
struct Given {
    initializer: Option<(Py<PyAny>, Py<PyTuple>)>,
    context: Option<Py<PyAny>>,
}

/// The Python objects of one pool.
#[pyclass(name = "_Host", module = "offloop._native", frozen, weakref)]
pub(crate) struct PyHost {
    given: Mutex<Given>,
}

impl PyHost {
    pub(crate) fn new(initializer: Option<(Py<PyAny>, Py<PyTuple>)>, context: Py<PyAny>) -> PyHost {
        PyHost { given: Mutex::new(Given { initializer, context: Some(context) }) }
    }

    // Held for a few instructions, never while Python code may run.
    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyHost {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(given) = self.given.try_lock() else { return Ok(()) };
        if let Some((initializer, args)) = &given.initializer {
            visit.call(initializer)?;
            visit.call(args)?;
        }
        visit.call(&given.context)
    }

    fn __clear__(&self) {
        let old = std::mem::take(&mut *self.lock());
        drop(old);
    }
}

/// What the worker threads of one pool share.
pub(crate) struct Hosting {
    wanted: ForkCell<Mutex<Vec<(Pending, HostedWorker)>>>,
    has_wanted: AtomicBool,
    host: Late<Py<PyWeakrefReference>>,
    prefix: String,
    /// The initializer raised: no callable runs any more.
    broken: OnceLock<Error>,
}

thread_local! {
    /// This thread looks at `wanted` before it goes on.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
    /// The pool whose worker this thread is; compared, never dereferenced.
    static WORKER_OF: Cell<*const Hosting> = const { Cell::new(std::ptr::null()) };
}

/// This thread runs a callable of that pool.
pub(crate) fn is_worker_of(hosting: &Arc<Hosting>) -> bool {
    WORKER_OF.get() == Arc::as_ptr(hosting)
}

/// Calls into core from a thread that starts wanted threads right afterwards. Not for a call that may sleep after core
/// wanted one.
pub(crate) fn looking<T>(f: impl FnOnce() -> T) -> T {
    let outer = LOOKS.replace(true);
    let out = f();
    LOOKS.set(outer);
    out
}

impl Hosting {
    pub(crate) fn new(host: &Bound<'_, PyHost>, prefix: String) -> PyResult<Arc<Hosting>> {
        Ok(Arc::new(Hosting {
            wanted: ForkCell::new(),
            has_wanted: AtomicBool::new(false),
            host: Late::new(PyWeakrefReference::new(host)?.unbind()),
            prefix,
            broken: OnceLock::new(),
        }))
    }

    /// What this process's threads asked for. A forked child begins anew: the parent's lock may be held for ever there, and
    /// its workers belong to the parent's tasks.
    fn wanted(&self) -> MutexGuard<'_, Vec<(Pending, HostedWorker)>> {
        self.wanted.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn broken(&self) -> Option<&Error> {
        self.broken.get()
    }

    /// Core wants one more thread. Called on any thread, with and without the GIL, so it only takes a note.
    pub(crate) fn want(self: &Arc<Hosting>, worker: HostedWorker) {
        self.wanted().push((Pending::new(), worker));
        self.has_wanted.store(true, Ordering::Release);
        if !LOOKS.get() {
            dispatch::push(Item::Start(self.clone()));
        }
    }

    /// Starts the threads that core asked for.
    ///
    /// # Errors
    /// What `Thread.start` raised; core then has the worker's place back.
    pub(crate) fn try_start_wanted(self: &Arc<Hosting>, py: Python<'_>) -> PyResult<()> {
        if !self.has_wanted.load(Ordering::Acquire) {
            return Ok(());
        }
        self.has_wanted.store(false, Ordering::Release);
        let wanted = std::mem::take(&mut *self.wanted());
        let mut failed = Ok(());
        for (_pending, worker) in wanted {
            let name = format!("{}_{}", self.prefix, worker.slot());
            // None: the pool is gone, and so is what the thread was wanted for.
            let host = self.host.bind(py).upgrade_as::<PyHost>()?.map(Bound::unbind);
            let worker = Bound::new(py, PyWorker { worker: Mutex::new(Some((worker, host))), hosting: self.clone() })?;
            let started = py.import("offloop._threads")?.call_method1("start_worker", (&worker, name));
            if let Err(e) = started {
                // Gives the place back, now and not when the object is collected.
                drop(worker.get().worker.lock().unwrap_or_else(PoisonError::into_inner).take());
                failed = Err(e);
            }
        }
        failed
    }

    pub(crate) fn start_wanted(self: &Arc<Hosting>, py: Python<'_>) {
        if let Err(e) = self.try_start_wanted(py) {
            e.write_unraisable(py, None);
        }
    }

    fn initialize(&self, py: Python<'_>, host: &PyHost) {
        let initializer = host.lock().initializer.as_ref().map(|(f, args)| (f.clone_ref(py), args.clone_ref(py)));
        let Some((initializer, args)) = initializer else { return };
        if let Err(e) = initializer.bind(py).call1(args.bind(py)) {
            let text = format!("{}: {}", e.get_type(py), e.value(py));
            let _ = self.broken.set(Error::new(ErrorKind::StartFailed, "the initializer raised").with("error", text));
            error::log(py, "critical", "Exception in initializer:", Vec::new(), &e);
        }
    }
}

/// Who gets the outcome of a callable.
pub(crate) enum Target {
    Future(Py<PyFuture>),
    Awaitable(Py<PyAwaitable>),
}

/// One submitted callable: the payload of a hosted task, as a `Late<Call>`.
pub(crate) struct Call {
    /// The callable and its arguments.
    pub(crate) args: Py<PyTuple>,
    pub(crate) kwargs: Option<Py<PyDict>>,
    /// A copy of the submitter's context variables.
    pub(crate) context: Py<PyAny>,
    pub(crate) host: Py<PyHost>,
    pub(crate) target: Target,
}

pub(crate) fn copy_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(COPY.import(py, "contextvars", "copy_context")?.call0()?.unbind())
}

/// `set` of the context variable that holds the current task.
fn current(py: Python<'_>) -> PyResult<&'static (Py<PyAny>, Py<PyAny>)> {
    static CURRENT: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    CURRENT.get_or_try_init(py, || {
        let kwargs = PyDict::new(py);
        kwargs.set_item("default", py.None())?;
        let var = py.import("contextvars")?.getattr("ContextVar")?.call(("offloop_current_task",), Some(&kwargs))?;
        Ok((var.getattr("get")?.unbind(), var.getattr("set")?.unbind()))
    })
}

/// Makes `control` the current task of this thread's context, until the next one.
pub(crate) fn enter(py: Python<'_>, control: Arc<dyn Control + Send>, host: &Bound<'_, PyHost>) -> PyResult<()> {
    current(py)?.1.bind(py).call1((PyTask { control, host: host.clone().unbind() },)).map(drop)
}

/// The running task: what a callable sees of its caller. `current_task()` returns it.
#[pyclass(name = "Task", module = "offloop", frozen)]
pub(crate) struct PyTask {
    control: Arc<dyn Control + Send>,
    host: Py<PyHost>,
}

#[pymethods]
impl PyTask {
    /// Whether nobody waits for the outcome any more: cancelled, killed or past its timeout.
    fn cancelled(&self) -> bool {
        self.control.check().is_err()
    }

    /// Tells the caller how far the task is; `Future.take_progress()` sees the latest value.
    fn progress(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.control.progress(value::from_python(value)?);
        Ok(())
    }

    /// The pool's `context`.
    #[getter]
    fn context(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.host.get().lock().context.as_ref().map(|c| c.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.host)
    }
}

/// The task that this code runs in, or None outside of a pool's callable.
#[pyfunction]
fn current_task(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(current(py)?.0.bind(py).call0()?.unbind())
}

/// One worker thread's loop.
#[pyclass(name = "_Worker", module = "offloop._native", frozen)]
pub(crate) struct PyWorker {
    /// Until `run` begins; it keeps no more of the pool than a thread that is idle needs.
    worker: Mutex<Option<(HostedWorker, Option<Py<PyHost>>)>>,
    hosting: Arc<Hosting>,
}

#[pymethods]
impl PyWorker {
    /// Runs callables until the pool has no use for this thread. The body of a worker thread.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let Some((mut worker, host)) = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        WORKER_OF.set(Arc::as_ptr(&self.hosting));
        if let Some(host) = host {
            self.hosting.initialize(py, host.get());
        }
        let mut in_a_row = 0;
        loop {
            late::collect(py);
            let ready = if in_a_row < TASKS_PER_TURN { looking(|| worker.try_next()) } else { None };
            self.hosting.start_wanted(py);
            let task = match ready {
                Some(task) => {
                    in_a_row += 1;
                    task
                }
                None => {
                    in_a_row = 0;
                    // A thread that is wanted in here cannot wait until this one has slept.
                    let next = wait::detached(py, || worker.next());
                    self.hosting.start_wanted(py);
                    match next {
                        Next::Task(task) => task,
                        Next::Interrupted => {
                            py.check_signals()?;
                            continue;
                        }
                        Next::Exit => return Ok(()),
                    }
                }
            };
            run_one(py, &self.hosting, &mut worker, task);
        }
    }
}

fn run_one(py: Python<'_>, hosting: &Hosting, worker: &mut HostedWorker, mut task: HostedTask) {
    let call = task.take_payload().and_then(|p| p.downcast::<Late<Call>>().ok()).expect("a callable's task carries a Call").into_inner(py);
    let outcome: Returned = match hosting.broken() {
        Some(error) => Err(raise(py, error)),
        None => call_in_context(py, &task, &call),
    }
    .map_err(|e| e.into_value(py));
    let Call { args, kwargs, context, host, target } = call;
    // The callable and its arguments go before anybody hears of the end.
    drop((args, kwargs, context, host));
    let result = match (&outcome, hosting.broken()) {
        (Ok(_), _) => Ok(Value::Nil),
        (Err(_), Some(error)) => Err(error.clone()),
        (Err(_), None) => Err(Error::new(ErrorKind::TaskFailed, "the callable raised")),
    };
    match target {
        Target::Future(future) => {
            future.get().set_host(outcome);
            while_worker_tells(|| worker.finish(task, result));
            tell_guarded(py, &future);
        }
        Target::Awaitable(awaitable) => {
            awaitable.get().set_host(outcome);
            worker.finish(task, result);
        }
    }
}

fn call_in_context(py: Python<'_>, task: &HostedTask, call: &Call) -> PyResult<Py<PyAny>> {
    let context = call.context.bind(py);
    let current_task = PyTask { control: task.control(), host: call.host.clone_ref(py) };
    context.call_method1("run", (&current(py)?.1, current_task))?;
    let kwargs = call.kwargs.as_ref().map(|k| k.bind(py));
    Ok(context.call_method("run", call.args.bind(py), kwargs)?.unbind())
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyHost>()?;
    m.add_class::<PyTask>()?;
    m.add_class::<PyWorker>()?;
    m.add_function(wrap_pyfunction!(current_task, m)?)
}
