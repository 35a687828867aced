//! From what Python asks for to a task of core.

use super::inputs::Inputs;
use crate::buffer;
use crate::dispatch;
use crate::error::{duration, number_option, raise, text, text_option};
use crate::future::PyFuture;
use crate::hosted::{self, Call, Hosting, PyHost, Target, looking};
use crate::late::{self, Late};
use crate::port::{self, Port, PyAwaitable};
use crate::{value, wait};
use offloop::error::{Error, ErrorKind};
use offloop::pool::{Deliver, OnFull, SubmitError, SubmitOptions, Work};
use offloop::sys::fork::ForkCell;
use offloop::{Task, ThreadPool, Value};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The interpreter is on its way out: no pool takes work any more.
static EXITING: AtomicBool = AtomicBool::new(false);

/// The core pools of one ThreadPool. Dropping the last handle closes both; what is queued still runs.
pub(super) struct Pools {
    pub(super) ops: ThreadPool,
    pub(super) calls: ThreadPool,
    pub(super) hosting: Arc<Hosting>,
    wait_when_full: bool,
    /// Refuses new tasks. `ops` itself is closed when the last ticket was given back.
    pub(super) closing: AtomicBool,
    /// Tickets in use. A forked child has none: what the parent's event loops were copying is not copied there.
    tickets: ForkCell<AtomicUsize>,
    /// How often the waiting tasks were cancelled: a ticket of before is cancelled too.
    pub(super) cancels: AtomicU64,
}

/// What `options()` sets for every call of a view, and who is told of each.
#[derive(Default)]
pub(crate) struct Defaults {
    pub(super) timeout: Option<Duration>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) priority: i8,
    pub(crate) key: Option<String>,
    pub(crate) retries: u32,
    /// The pool's `_trace.Tracer`.
    tracer: Option<Py<PyAny>>,
}

impl Defaults {
    /// Those of a new pool.
    pub(crate) fn new(tracer: Option<Py<PyAny>>) -> Defaults {
        Defaults { tracer, ..Defaults::default() }
    }

    pub(super) fn clone_ref(&self, py: Python<'_>) -> Defaults {
        let tracer = self.tracer.as_ref().map(|t| t.clone_ref(py));
        Defaults { key: self.key.clone(), tracer, ..*self }
    }

    /// These with what was given.
    pub(crate) fn with(
        &self,
        py: Python<'_>,
        timeout: Option<Bound<'_, PyAny>>,
        queue_timeout: Option<Bound<'_, PyAny>>,
        priority: Option<Bound<'_, PyAny>>,
        key: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Defaults> {
        let mut defaults = self.clone_ref(py);
        for (name, given, slot) in
            [("timeout", timeout, &mut defaults.timeout), ("queue_timeout", queue_timeout, &mut defaults.queue_timeout)]
        {
            if let Some(given) = given {
                *slot = duration(name, &given)?;
            }
        }
        if let Some(p) = priority {
            defaults.priority = offloop::pool::priority(number_option("priority", &p)?).map_err(|e| raise(py, &e))?;
        }
        if let Some(key) = key {
            defaults.key = Some(text_option("key is not valid Unicode", "key", &key)?);
        }
        Ok(defaults)
    }

    pub(crate) fn submit_options(&self, on_full: OnFull, deliver: Deliver) -> SubmitOptions {
        SubmitOptions {
            priority: self.priority,
            timeout: self.timeout,
            queue_timeout: self.queue_timeout,
            key: self.key.clone(),
            retries: self.retries,
            trace: self.tracer.is_some(),
            on_full,
            deliver,
            ..SubmitOptions::default()
        }
    }
}

impl Defaults {
    /// For the collector, of each owner.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.tracer)
    }

    /// What is to be told of the end of a task that was submitted; `call` is an op's name or a callable.
    fn teller<'py>(&self, call: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let py = call.py();
        let told = self.tracer.as_ref()?.bind(py).call_method1(intern!(py, "begin"), (call,));
        // The caller has its task either way.
        told.map_err(|e| e.write_unraisable(py, Some(call))).ok()
    }

    /// Has the tracer told of the end of `future`, whose task was submitted: its caller has it, whatever becomes of that.
    pub(crate) fn follow(&self, call: &Bound<'_, PyAny>, future: &Bound<'_, PyFuture>) {
        if let Some(told) = self.teller(call)
            && let Err(e) = PyFuture::add_done_callback(future, told)
        {
            e.write_unraisable(call.py(), Some(call));
        }
    }

    /// As [`follow`](Self::follow), of what `run` awaits.
    pub(crate) fn follow_awaited(&self, call: &Bound<'_, PyAny>, awaitable: &Bound<'_, PyAwaitable>) {
        if let Some(told) = self.teller(call) {
            awaitable.get().set_teller(told.unbind());
        }
    }
}

/// An op or a callable, ready to be submitted.
pub(super) enum Job<'py> {
    Op(Work, Inputs<'py>),
    Call(Work),
}

impl Pools {
    pub(super) fn new(
        ops: ThreadPool,
        calls: offloop::pool::Builder,
        prefix: String,
        host: &Bound<'_, PyHost>,
        wait_when_full: bool,
    ) -> PyResult<Pools> {
        let hosting = Hosting::new(host, prefix)?;
        let wants = hosting.clone();
        let spawner = Arc::new(move |worker| {
            wants.want(worker);
            Ok(())
        });
        let calls = calls.hosted(spawner).build().map_err(|e| raise(host.py(), &e))?;
        Ok(Pools {
            ops,
            calls,
            hosting,
            wait_when_full,
            closing: AtomicBool::new(false),
            tickets: ForkCell::new(),
            cancels: AtomicU64::new(0),
        })
    }

    /// The core pool that runs this kind.
    fn of(&self, job: &Job<'_>) -> &ThreadPool {
        match job {
            Job::Op(..) => &self.ops,
            Job::Call(_) => &self.calls,
        }
    }

    pub(super) fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if EXITING.load(Ordering::Relaxed) {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "cannot schedule new futures after interpreter shutdown")));
        }
        if self.closing.load(Ordering::SeqCst) {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "the pool is closed")));
        }
        Ok(())
    }

    pub(super) fn tickets(&self) -> &AtomicUsize {
        self.tickets.get(AtomicUsize::default)
    }

    /// What stands for this pool in `_aio`, where calls of one key queue behind a copy.
    pub(super) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Asks a function of `_aio` about the calls of this key for which the running loop is copying inputs.
    pub(super) fn ask_line(&self, py: Python<'_>, defaults: &Defaults, function: &str) -> PyResult<bool> {
        let Some(key) = &defaults.key else { return Ok(false) };
        if self.tickets().load(Ordering::SeqCst) == 0 {
            return Ok(false);
        }
        py.import("offloop._aio")?.call_method1(function, (self.id(), key))?.is_truthy()
    }

    /// Refuses new tasks; what was taken in still runs.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        // An exit does not wait for event loops that will not run again. Otherwise either this sees a ticket, or the release
        // of the last one sees `closing`.
        if EXITING.load(Ordering::Relaxed) || self.tickets().load(Ordering::SeqCst) == 0 {
            self.ops.close();
        }
        self.calls.close();
    }

    /// The work of an op, and its inputs without their bytes.
    pub(super) fn op<'py>(&self, py: Python<'py>, name: &str, mut inputs: Inputs<'py>, params: &Value) -> PyResult<(Work, Inputs<'py>)> {
        let bytes = std::mem::take(&mut inputs.bytes);
        match self.ops.op(name, bytes, params) {
            Ok(work) => Ok((work, inputs)),
            Err((e, bytes)) => {
                inputs.restore(bytes);
                Err(raise(py, &e))
            }
        }
    }

    pub(super) fn check_callable(&self, f: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = f.py();
        if let Some(e) = self.hosting.broken() {
            return Err(raise(py, e));
        }
        if !f.is_callable() {
            let name = f.get_type().name()?;
            return Err(raise(py, &Error::invalid("task is neither an op's name nor a callable").with("type", name)));
        }
        // Core may want a thread long after this call, when no Python thread is about to look.
        dispatch::ensure(py, dispatch::Role::Starter);
        Ok(())
    }

    /// Submits, and waits for room where that is asked for and does not hold an event loop.
    pub(super) fn place<T>(
        &self,
        py: Python<'_>,
        work: Vec<Work>,
        pool: &ThreadPool,
        submit: impl Fn(&ThreadPool, Vec<Work>, OnFull) -> Result<T, SubmitError> + Sync,
    ) -> Result<T, (PyErr, Vec<Work>)>
    where
        T: Send,
    {
        let mut refused = match looking(|| submit(pool, work, OnFull::Reject)) {
            Ok(done) => return Ok(done),
            Err(e) => e,
        };
        let waits = self.wait_when_full && refused.error.kind() == ErrorKind::Full;
        if !waits {
            return Err((raise(py, &refused.error), refused.work));
        }
        match port::running_loop(py) {
            Ok(None) => {}
            Ok(Some(_)) => return Err((raise(py, &refused.error), refused.work)),
            Err(e) => return Err((e, refused.work)),
        }
        // A callable that submits to its own full pool holds one of the workers that would make room.
        let on_full = if hosted::is_worker_of(&self.hosting) { OnFull::Admit } else { OnFull::Wait(Some(wait::SLICE)) };
        loop {
            let work = refused.work;
            refused = match wait::detached(py, || looking(|| submit(pool, work, on_full))) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            if refused.error.kind() != ErrorKind::Full || refused.work.len() > pool.max_queue() {
                return Err((raise(py, &refused.error), refused.work));
            }
            if let Err(e) = py.check_signals() {
                return Err((e, refused.work));
            }
        }
    }
}

/// No pool takes work any more.
pub(crate) fn is_exiting() -> bool {
    EXITING.load(Ordering::Relaxed)
}

/// What a pool, a view of it or a ticket has.
pub(super) struct Handle {
    pub(super) pools: Arc<Pools>,
    pub(super) host: Py<PyHost>,
    pub(super) defaults: Defaults,
}

impl Handle {
    pub(super) fn with(&self, py: Python<'_>, defaults: Defaults) -> Handle {
        Handle { pools: self.pools.clone(), host: self.host.clone_ref(py), defaults }
    }

    /// An op with `args[1:]` as its inputs.
    pub(super) fn op<'py>(
        &self,
        name: &Bound<'py, PyString>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Job<'py>> {
        let name = op_name(name)?;
        let params = value::options(kwargs)?;
        let inputs = Inputs::take(args.iter().skip(1), buffer::input)?;
        self.pools.op(args.py(), &name, inputs, &params).map(|(work, inputs)| Job::Op(work, inputs))
    }

    /// `args[0](*args[1:], **kwargs)`, whose outcome `target` gets.
    pub(super) fn call(&self, args: Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>, target: Target) -> PyResult<Work> {
        let py = args.py();
        let call = Call {
            args: args.unbind(),
            kwargs: kwargs.filter(|k| !k.is_empty()).map(|k| k.clone().unbind()),
            context: hosted::copy_context(py)?,
            host: self.host.clone_ref(py),
            target,
        };
        Ok(Work::hosted(Box::new(Late::new(call))))
    }

    /// Submits all or none; waits for room as [`Pools::place`] does.
    pub(super) fn place_many(&self, py: Python<'_>, work: Vec<Work>, pool: &ThreadPool) -> Result<Vec<Task>, (PyErr, Vec<Work>)> {
        self.pools
            .place(py, work, pool, |pool, work, on_full| pool.submit_many(work, &self.defaults.submit_options(on_full, Deliver::Wait)))
    }

    /// Starts a task for the running event loop.
    pub(super) fn start<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAwaitable>> {
        let py = args.py();
        let first = head(args)?;
        let awaitable = Port::start(py, |awaitable, deliver| {
            let job = match first.cast::<PyString>() {
                Ok(name) => self.op(&name, args, kwargs)?,
                Err(_) => {
                    self.pools.check_callable(&first)?;
                    Job::Call(self.call(args.clone(), kwargs, Target::Awaitable(awaitable.clone().unbind()))?)
                }
            };
            self.submit_one(py, job, Some(OnFull::Admit), deliver)
        })?;
        self.defaults.follow_awaited(&first, &awaitable);
        Ok(awaitable)
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.host)?;
        self.defaults.traverse(visit)
    }

    pub(super) fn submit_one(
        &self,
        py: Python<'_>,
        job: Job<'_>,
        on_full: Option<OnFull>,
        deliver: &(dyn Fn() -> Deliver + Sync),
    ) -> PyResult<Task> {
        late::collect(py);
        let (pools, defaults) = (&self.pools, &self.defaults);
        let pool = pools.of(&job).clone();
        let (work, inputs) = match job {
            Job::Op(work, inputs) => (work, Some(inputs)),
            Job::Call(work) => (work, None),
        };
        let submit = |pool: &ThreadPool, mut work: Vec<Work>, on_full: OnFull| {
            let one = work.pop().expect("one task is submitted");
            pool.submit(one, defaults.submit_options(on_full, deliver()))
        };
        let placed = match on_full {
            Some(on_full) => looking(|| submit(&pool, vec![work], on_full)).map_err(|e| (raise(py, &e.error), e.work)),
            None => pools.place(py, vec![work], &pool, submit),
        };
        match placed {
            Ok(task) => {
                if let Err(e) = pools.hosting.try_start_wanted(py) {
                    // Without a thread the task would wait for ever; with one it runs there.
                    if pools.calls.stats().workers == 0 {
                        task.cancel();
                        return Err(e);
                    }
                }
                Ok(task)
            }
            Err((e, work)) => {
                if let (Some(inputs), Some(work)) = (inputs, work.into_iter().next()) {
                    inputs.restore(work.into_inputs());
                }
                Err(e)
            }
        }
    }
}

/// The first of a call's arguments: an op's name, or a callable.
pub(super) fn head<'a, 'py>(args: &'a Bound<'py, PyTuple>) -> PyResult<Borrowed<'a, 'py, PyAny>> {
    args.get_borrowed_item(0).map_err(|_| PyTypeError::new_err("submit expected at least 1 argument, got 0"))
}

pub(super) fn op_name(name: &Bound<'_, PyString>) -> PyResult<String> {
    text("op name is not valid Unicode", "op", name)
}

/// No pool takes work any more.
#[pyfunction]
fn _exiting() {
    EXITING.store(true, Ordering::Relaxed);
}

pub(super) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_exiting, m)?)
}
