//! `ThreadPool`: two core pools behind one executor. Ops run on native threads, Python callables on Python threads.

use crate::buffer::{self, Moved};
use crate::dispatch;
use crate::error::{duration, invalid, number, raise, shown, text};
use crate::future::{PyFuture, head};
use crate::hosted::{self, Call, Hosting, Target, looking};
use crate::late::{self, Late};
use crate::port::{self, Port, PyAwaitable};
use crate::{value, wait};
use offloop::error::{Error, ErrorKind};
use offloop::metrics::Histogram;
use offloop::ops::{self, Control, OpCtx, Params, Splitter};
use offloop::pool::{Deliver, OnFull, PoolOptions, PoolStats, SubmitError, SubmitOptions, Work, priority};
use offloop::sys::fork::{self, ForkCell};
use offloop::{Bytes, Task, ThreadPool, Value};
use pyo3::exceptions::{PyRuntimeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long one look at a full queue lasts before signals are looked at.
const FULL_SLICE: Duration = Duration::from_millis(50);

/// Inputs of an op that `run` may copy at once; above it the copy is cut so that no piece holds the loop.
const COPY_AT_ONCE: usize = 4 << 20;

/// Inputs that a waiting caller's own thread works on: up to some 50 µs of hashing, against 10 to 40 µs to wake a worker.
const INLINE_UP_TO: usize = 64 << 10;

/// The interpreter is on its way out: no pool takes work any more.
static EXITING: AtomicBool = AtomicBool::new(false);

/// The core pools of one ThreadPool. Dropping the last handle closes both; what is queued still runs.
struct Pools {
    ops: ThreadPool,
    calls: ThreadPool,
    hosting: Arc<Hosting>,
    wait_when_full: bool,
    /// Refuses new tasks. `ops` itself is closed when the last ticket was given back.
    closing: AtomicBool,
    /// Tickets in use. A forked child has none: what the parent's event loops were copying is not copied there.
    tickets: ForkCell<AtomicUsize>,
    /// How often the waiting tasks were cancelled: a ticket of before is cancelled too.
    cancels: AtomicU64,
}

/// What `options()` sets for every call of a view.
#[derive(Clone, Default)]
struct Defaults {
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    priority: i8,
    key: Option<String>,
}

impl Defaults {
    fn submit_options(&self, on_full: OnFull, deliver: Deliver) -> SubmitOptions {
        SubmitOptions {
            priority: self.priority,
            timeout: self.timeout,
            queue_timeout: self.queue_timeout,
            key: self.key.clone(),
            on_full,
            deliver,
        }
    }
}

/// The native half of `offloop.ThreadPool`.
#[pyclass(name = "_Pool", module = "offloop._native", frozen, subclass, weakref)]
pub(crate) struct PyPool {
    inner: OnceLock<(Arc<Pools>, Defaults)>,
}

/// The inputs of one call, and where they came from, so that a call that was not accepted loses nothing.
struct Inputs<'py> {
    bytes: Vec<Bytes>,
    moved: Vec<Moved<'py>>,
}

impl<'py> Inputs<'py> {
    fn take(objects: impl Iterator<Item = Bound<'py, PyAny>>) -> PyResult<Inputs<'py>> {
        Inputs::take_with(objects, buffer::input)
    }

    fn take_with(
        objects: impl Iterator<Item = Bound<'py, PyAny>>,
        convert: fn(&Bound<'py, PyAny>, &mut Vec<Moved<'py>>) -> PyResult<Bytes>,
    ) -> PyResult<Inputs<'py>> {
        let mut inputs = Inputs { bytes: Vec::new(), moved: Vec::new() };
        for object in objects {
            match convert(&object, &mut inputs.moved) {
                Ok(bytes) => inputs.bytes.push(bytes),
                Err(e) => {
                    let bytes = std::mem::take(&mut inputs.bytes);
                    inputs.restore(bytes);
                    return Err(e);
                }
            }
        }
        Ok(inputs)
    }

    /// Gives moved buffers back, now that no task has their bytes.
    fn restore(self, bytes: Vec<Bytes>) {
        drop(bytes);
        self.moved.into_iter().for_each(Moved::put_back);
    }
}

/// An op or a callable, ready to be submitted.
enum Job<'py> {
    Op(Work, Inputs<'py>),
    Call(Work),
}

impl Pools {
    /// The core pool that runs this kind.
    fn of(&self, job: &Job<'_>) -> &ThreadPool {
        match job {
            Job::Op(..) => &self.ops,
            Job::Call(_) => &self.calls,
        }
    }

    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if EXITING.load(Ordering::Relaxed) {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "cannot schedule new futures after interpreter shutdown")));
        }
        if self.closing.load(Ordering::SeqCst) {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "the pool is closed")));
        }
        Ok(())
    }

    fn tickets(&self) -> &AtomicUsize {
        self.tickets.get(AtomicUsize::default)
    }

    /// What stands for this pool in `_aio`, where calls of one key queue behind a copy.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Asks a function of `_aio` about the calls of this key for which the running loop is copying inputs.
    fn ask_line(&self, py: Python<'_>, defaults: &Defaults, function: &str) -> PyResult<bool> {
        let Some(key) = &defaults.key else { return Ok(false) };
        if self.tickets().load(Ordering::SeqCst) == 0 {
            return Ok(false);
        }
        py.import("offloop._aio")?.call_method1(function, (self.id(), key))?.is_truthy()
    }

    /// Refuses new tasks; what was taken in still runs.
    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        // An exit does not wait for event loops that will not run again. Otherwise either this sees a ticket, or the release
        // of the last one sees `closing`.
        if EXITING.load(Ordering::Relaxed) || self.tickets().load(Ordering::SeqCst) == 0 {
            self.ops.close();
        }
        self.calls.close();
    }

    fn op<'py>(&self, py: Python<'py>, name: &str, inputs: Inputs<'py>, params: &Value) -> PyResult<Job<'py>> {
        let mut inputs = inputs;
        let bytes = std::mem::take(&mut inputs.bytes);
        match self.ops.op(name, bytes, params) {
            Ok(work) => Ok(Job::Op(work, inputs)),
            Err((e, bytes)) => {
                inputs.restore(bytes);
                Err(raise(py, &e))
            }
        }
    }

    /// What `submit(*args, **kwargs)` asks for. `target` hears of a callable's outcome.
    fn job<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        target: impl FnOnce() -> Target,
    ) -> PyResult<Job<'py>> {
        let py = args.py();
        let first = head(args)?;
        if let Ok(name) = first.cast::<PyString>() {
            let name = op_name(&name)?;
            let params = value::options(kwargs)?;
            let inputs = Inputs::take(args.iter().skip(1))?;
            return self.op(py, &name, inputs, &params);
        }
        self.check_callable(&first)?;
        let call = Call {
            args: args.clone().unbind(),
            kwargs: kwargs.filter(|k| !k.is_empty()).map(|k| k.clone().unbind()),
            context: hosted::copy_context(py)?,
            target: target(),
        };
        Ok(Job::Call(Work::hosted(Box::new(Late::new(call)))))
    }

    fn check_callable(&self, f: &Bound<'_, PyAny>) -> PyResult<()> {
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
    fn place<T>(
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
        let on_full = if hosted::is_worker_of(&self.hosting) { OnFull::Admit } else { OnFull::Wait(Some(FULL_SLICE)) };
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

    /// Starts a task for the running event loop.
    fn start<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        defaults: &Defaults,
    ) -> PyResult<Bound<'py, PyAwaitable>> {
        let py = args.py();
        let (port, event_loop) = Port::current(py)?;
        let awaitable = Bound::new(py, PyAwaitable::new(event_loop.unbind()))?;
        let job = self.job(args, kwargs, || Target::Awaitable(awaitable.clone().unbind()))?;
        let tag = port.get().expect(&awaitable);
        let queue = port.get().queue();
        let deliver = || Deliver::Queue(queue.clone(), tag);
        match self.submit_one(py, job, defaults, Some(OnFull::Admit), &deliver) {
            Ok(task) => {
                awaitable.get().set_task(task);
                Ok(awaitable)
            }
            Err(e) => {
                port.get().forget(tag);
                Err(e)
            }
        }
    }

    fn submit_one(
        &self,
        py: Python<'_>,
        job: Job<'_>,
        defaults: &Defaults,
        on_full: Option<OnFull>,
        deliver: &(dyn Fn() -> Deliver + Sync),
    ) -> PyResult<Task> {
        late::collect(py);
        let pool = self.of(&job).clone();
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
            None => self.place(py, vec![work], &pool, submit),
        };
        match placed {
            Ok(task) => {
                if let Err(e) = self.hosting.try_start_wanted(py) {
                    // Without a thread the task would wait for ever; with one it runs there.
                    if self.calls.stats().workers == 0 {
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

fn op_name(name: &Bound<'_, PyString>) -> PyResult<String> {
    text("op name is not valid Unicode", "op", name)
}

impl PyPool {
    fn submit_with<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        on_full: Option<OnFull>,
    ) -> PyResult<Bound<'py, PyFuture>> {
        let py = args.py();
        let (pools, defaults) = self.inner()?;
        pools.check_open(py)?;
        let first = head(args)?;
        if first.is_instance_of::<PyString>() {
            pools.ask_line(py, defaults, "finish_line")?;
        }
        if first.is_exact_instance_of::<PyString>() {
            let job = pools.job(args, kwargs, || unreachable!("an op has no target"))?;
            let task = pools.submit_one(py, job, defaults, on_full, &|| Deliver::Wait)?;
            return Bound::new(py, PyFuture::of(task));
        }
        let future = Bound::new(py, PyFuture::pending())?;
        let job = pools.job(args, kwargs, || Target::Future(future.clone().unbind()))?;
        let task = pools.submit_one(py, job, defaults, on_full, &|| Deliver::Wait)?;
        future.get().set_task(task);
        Ok(future)
    }

    fn inner(&self) -> PyResult<(&Arc<Pools>, &Defaults)> {
        match self.inner.get() {
            Some((pools, defaults)) => Ok((pools, defaults)),
            None => Err(PyRuntimeError::new_err("ThreadPool.__init__() was not called")),
        }
    }
}

#[pymethods]
impl PyPool {
    /// `__init__` does the work, so that a subclass may have other parameters.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn py_new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyPool {
        PyPool { inner: OnceLock::new() }
    }

    #[pyo3(signature = (*, max_workers, max_queue, max_overdue, nice, name, on_full, initializer, initargs, context))]
    #[expect(clippy::too_many_arguments, reason = "called by keyword from one place")]
    fn _open(
        &self,
        py: Python<'_>,
        max_workers: Option<Bound<'_, PyAny>>,
        max_queue: Option<Bound<'_, PyAny>>,
        max_overdue: Option<Bound<'_, PyAny>>,
        nice: Bound<'_, PyAny>,
        name: &Bound<'_, PyString>,
        on_full: &Bound<'_, PyString>,
        initializer: Option<Py<PyAny>>,
        initargs: Py<PyTuple>,
        context: Py<PyAny>,
    ) -> PyResult<()> {
        let on_full = text("option is not valid Unicode", "on_full", on_full)?;
        let wait_when_full = match on_full.as_str() {
            "wait" => true,
            "reject" => false,
            other => {
                let e = Error::invalid("option is not one of its words")
                    .with("option", "on_full")
                    .with("value", other)
                    .with("want", "wait reject");
                return Err(raise(py, &e));
            }
        };
        let mut options = PoolOptions { nice: number("nice", &nice)?, ..PoolOptions::default() };
        options.max_workers = max_workers.map(|n| number("max_workers", &n)).transpose()?;
        options.max_overdue = max_overdue.map(|n| number("max_overdue", &n)).transpose()?;
        if let Some(n) = max_queue {
            options.max_queue = number("max_queue", &n)?;
        }
        let name = text("pool name is not valid Unicode", "name", name)?;
        let shown = if name.is_empty() { "pool".to_owned() } else { name.clone() };
        let prefix = if name.is_empty() { "offloop".to_owned() } else { name };
        options.name = shown;
        let ops = ThreadPool::builder().options(options.clone()).build().map_err(|e| raise(py, &e))?;
        options.name.push_str("-python");
        let pools = Pools::new(
            py,
            ops,
            ThreadPool::builder().options(options),
            prefix,
            initializer.map(|f| (f, initargs)),
            wait_when_full,
            context,
        )?;
        let _ = self.inner.set((Arc::new(pools), Defaults::default()));
        Ok(())
    }

    /// Makes this the process-wide pool behind `ops`.
    fn _open_default(&self, py: Python<'_>) -> PyResult<()> {
        let ops = ThreadPool::default_pool().map_err(|e| raise(py, &e))?;
        let builder = ThreadPool::builder().max_workers(ops.max_workers()).name("default-python");
        let pools = Pools::new(py, ops, builder, "offloop".to_owned(), None, true, py.None())?;
        let _ = self.inner.set((Arc::new(pools), Defaults::default()));
        Ok(())
    }

    /// Makes this a view of `other` with these defaults; None keeps what `other` has.
    #[pyo3(signature = (other, *, timeout, queue_timeout, priority, key))]
    fn _view(
        &self,
        py: Python<'_>,
        other: &PyPool,
        timeout: Option<Bound<'_, PyAny>>,
        queue_timeout: Option<Bound<'_, PyAny>>,
        priority: Option<Bound<'_, PyAny>>,
        key: Option<Bound<'_, PyString>>,
    ) -> PyResult<()> {
        let (pools, defaults) = other.inner()?;
        let mut defaults = defaults.clone();
        for (name, given, slot) in
            [("timeout", timeout, &mut defaults.timeout), ("queue_timeout", queue_timeout, &mut defaults.queue_timeout)]
        {
            if let Some(given) = given {
                *slot = duration(name, &given)?;
            }
        }
        if let Some(p) = priority {
            defaults.priority = self::priority(number("priority", &p)?).map_err(|e| raise(py, &e))?;
        }
        if let Some(key) = key {
            defaults.key = Some(text("key is not valid Unicode", "key", &key)?);
        }
        let _ = self.inner.set((pools.clone(), defaults));
        Ok(())
    }

    /// Submits an op by its name, with its inputs and its options by keyword, or a callable with its arguments.
    #[pyo3(signature = (*args, **kwargs), text_signature = "($self, op_or_fn, /, *args, **kwargs)")]
    fn submit<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyFuture>> {
        self.submit_with(args, kwargs, None)
    }

    /// Submits one task per item, all or none, in one crossing. An item is the one input of an op, or the one argument of a
    /// callable; keyword arguments go to every call.
    #[pyo3(signature = (op_or_fn, items, /, **kwargs))]
    fn submit_many<'py>(
        &self,
        op_or_fn: &Bound<'py, PyAny>,
        items: &Bound<'py, PyAny>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = items.py();
        let (pools, defaults) = self.inner()?;
        pools.check_open(py)?;
        let items = items.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        let many =
            |pool: &ThreadPool, work: Vec<Work>, on_full: OnFull| pool.submit_many(work, &defaults.submit_options(on_full, Deliver::Wait));
        if let Ok(name) = op_or_fn.cast::<PyString>() {
            pools.ask_line(py, defaults, "finish_line")?;
            let name = op_name(name)?;
            let params = value::options(kwargs)?;
            if items.is_empty() {
                pools.ops.check_op(&name, &params).map_err(|e| raise(py, &e))?;
            }
            let mut work = Vec::with_capacity(items.len());
            let mut sources: Vec<Inputs<'_>> = Vec::with_capacity(items.len());
            let restore = |sources: Vec<Inputs<'_>>, work: Vec<Work>| {
                for (source, work) in sources.into_iter().zip(work) {
                    source.restore(work.into_inputs());
                }
            };
            for item in items {
                match Inputs::take(std::iter::once(item)).and_then(|inputs| pools.op(py, &name, inputs, &params)) {
                    Ok(Job::Op(w, inputs)) => {
                        work.push(w);
                        sources.push(inputs);
                    }
                    Ok(Job::Call(_)) => unreachable!("a name makes an op"),
                    Err(e) => {
                        restore(sources, work);
                        return Err(e);
                    }
                }
            }
            return match pools.place(py, work, &pools.ops, many) {
                Ok(tasks) => PyList::new(py, tasks.into_iter().map(PyFuture::of).map(|f| Bound::new(py, f)).collect::<PyResult<Vec<_>>>()?),
                Err((e, work)) => {
                    restore(sources, work);
                    Err(e)
                }
            };
        }
        pools.check_callable(op_or_fn)?;
        let mut futures = Vec::with_capacity(items.len());
        let mut work = Vec::with_capacity(items.len());
        for item in items {
            let future = Bound::new(py, PyFuture::pending())?;
            let call = Call {
                args: PyTuple::new(py, [op_or_fn, &item])?.unbind(),
                kwargs: kwargs.filter(|k| !k.is_empty()).map(|k| k.clone().unbind()),
                context: hosted::copy_context(py)?,
                target: Target::Future(future.clone().unbind()),
            };
            work.push(Work::hosted(Box::new(Late::new(call))));
            futures.push(future);
        }
        let tasks = pools.place(py, work, &pools.calls, many).map_err(|(e, _)| e)?;
        for (future, task) in futures.iter().zip(tasks) {
            future.get().set_task(task);
        }
        pools.hosting.try_start_wanted(py)?;
        PyList::new(py, futures)
    }

    /// As `submit`, beyond `max_queue`: what `map` falls back to, so that it always has a task in flight.
    #[pyo3(signature = (*args, **kwargs))]
    fn _admit<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyFuture>> {
        self.submit_with(args, kwargs, Some(OnFull::Admit))
    }

    /// Starts a task for the running event loop and returns what `run` awaits, or None when an input is so long that it
    /// must be copied in pieces first, or the task is behind such a one of its key.
    #[pyo3(signature = (*args, **kwargs))]
    fn _start<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Option<Bound<'py, PyAwaitable>>> {
        let py = args.py();
        let (pools, defaults) = self.inner()?;
        pools.check_open(py)?;
        let long = || args.iter().skip(1).any(|a| buffer::copy_len(&a) > COPY_AT_ONCE);
        if head(args)?.is_instance_of::<PyString>() && (long() || pools.ask_line(py, defaults, "has_line")?) {
            return Ok(None);
        }
        pools.start(args, kwargs, defaults).map(Some)
    }

    fn _resize(&self, py: Python<'_>, min_workers: Option<Bound<'_, PyAny>>, max_workers: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let (pools, _) = self.inner()?;
        let min = min_workers.map(|n| number("min_workers", &n)).transpose()?;
        let max = max_workers.map(|n| number("max_workers", &n)).transpose()?;
        looking(|| pools.ops.resize(min, max).and_then(|()| pools.calls.resize(min, max))).map_err(|e| raise(py, &e))?;
        pools.hosting.try_start_wanted(py)
    }

    /// Counts of both kinds together, and their histograms as tuples.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (pools, _) = self.inner()?;
        let stats = pools.ops.stats_with(&pools.calls);
        let d = PyDict::new(py);
        for (name, of) in COUNTS {
            d.set_item(name, of(&stats))?;
        }
        // The share of `max_workers`, which bounds each kind.
        d.set_item("utilization", stats.utilization)?;
        d.set_item("wait", in_seconds(&stats.wait))?;
        d.set_item("run", in_seconds(&stats.run))?;
        Ok(d)
    }

    /// Loads a C plugin and returns the names of the ops it brought.
    fn _load(&self, path: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let py = path.py();
        let (pools, _) = self.inner()?;
        let path: PathBuf = path.extract().map_err(|e: PyErr| match path.cast::<PyString>() {
            // Bytes of the file system that are no UTF-8 have a form in `str`; this has none in the file system.
            Ok(path) if e.is_instance_of::<PyUnicodeEncodeError>(py) => invalid(py, "path is not valid Unicode", "path", shown(path)),
            _ => e,
        })?;
        // The plugin's own start may take its time, and it knows nothing of the GIL.
        wait::detached(py, || pools.ops.load(&path)).map_err(|e| raise(py, &e))
    }

    /// Names of every op that this pool can run.
    fn _op_names(&self) -> PyResult<Vec<String>> {
        Ok(self.inner()?.0.ops.op_names())
    }

    /// Refuses new tasks from now on.
    fn _close(&self, py: Python<'_>) -> PyResult<()> {
        let (pools, _) = self.inner()?;
        looking(|| pools.close());
        pools.hosting.start_wanted(py);
        Ok(())
    }

    /// Takes in a task whose inputs are yet to be copied.
    fn _accept(&self, py: Python<'_>) -> PyResult<PyTicket> {
        let (pools, defaults) = self.inner()?;
        pools.check_open(py)?;
        pools.tickets().fetch_add(1, Ordering::SeqCst);
        Ok(PyTicket {
            pools: pools.clone(),
            defaults: defaults.clone(),
            epoch: fork::epoch(),
            cancels: pools.cancels.load(Ordering::SeqCst),
            released: AtomicBool::new(false),
        })
    }

    /// Cancels what was not started.
    fn _cancel_queued(&self, py: Python<'_>) -> PyResult<()> {
        let (pools, _) = self.inner()?;
        wait::detached(py, || {
            looking(|| {
                pools.cancels.fetch_add(1, Ordering::SeqCst);
                pools.ops.cancel_queued();
                pools.calls.cancel_queued();
            });
        });
        pools.hosting.start_wanted(py);
        Ok(())
    }

    /// Cancels every op that has no outcome yet.
    fn _terminate_ops(&self, py: Python<'_>) -> PyResult<()> {
        let (pools, _) = self.inner()?;
        wait::detached(py, || looking(|| pools.ops.terminate()));
        pools.hosting.start_wanted(py);
        Ok(())
    }

    /// Waits until a closing pool has run what it took in. Ctrl-C ends the wait.
    fn _wait_closed(&self, py: Python<'_>) -> PyResult<()> {
        let (pools, _) = self.inner()?;
        if hosted::is_worker_of(&pools.hosting) {
            return Err(raise(py, &Error::invalid("a callable cannot wait for the end of the pool that runs it")));
        }
        for pool in [&pools.ops, &pools.calls] {
            wait::until(py, None, |slice| Ok(pool.wait_closed(Some(slice))))?;
        }
        Ok(())
    }

    /// The initializer raised.
    fn _is_broken(&self) -> PyResult<bool> {
        Ok(self.inner()?.0.hosting.broken().is_some())
    }

    #[getter]
    fn _closed(&self) -> PyResult<bool> {
        let (pools, _) = self.inner()?;
        Ok(pools.closing.load(Ordering::SeqCst) || pools.ops.is_closed())
    }

    #[getter]
    fn _max_workers(&self) -> PyResult<usize> {
        Ok(self.inner()?.0.ops.max_workers())
    }
}

impl Pools {
    fn new(
        py: Python<'_>,
        ops: ThreadPool,
        calls: offloop::pool::Builder,
        prefix: String,
        initializer: Option<(Py<PyAny>, Py<PyTuple>)>,
        wait_when_full: bool,
        context: Py<PyAny>,
    ) -> PyResult<Pools> {
        let hosting = Hosting::new(initializer, prefix, context);
        let wants = hosting.clone();
        let spawner = Arc::new(move |worker| {
            wants.want(worker);
            Ok(())
        });
        let calls = calls.hosted(spawner).build().map_err(|e| raise(py, &e))?;
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
}

/// A task that a pool took in before its inputs were copied: the pool ends after it.
#[pyclass(name = "_Ticket", module = "offloop._native", frozen)]
pub(crate) struct PyTicket {
    pools: Arc<Pools>,
    defaults: Defaults,
    epoch: u64,
    cancels: u64,
    released: AtomicBool,
}

impl PyTicket {
    fn give_back(&self) {
        if self.released.swap(true, Ordering::SeqCst) || self.epoch != fork::epoch() {
            return;
        }
        let last = self.pools.tickets().fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.pools.closing.load(Ordering::SeqCst) {
            self.pools.ops.close();
        }
    }
}

#[pymethods]
impl PyTicket {
    /// Starts the task for the running event loop, in a pool that is closing too.
    #[pyo3(signature = (*args, **kwargs))]
    fn start<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAwaitable>> {
        if self.pools.cancels.load(Ordering::SeqCst) != self.cancels {
            return Err(raise(args.py(), &Error::new(ErrorKind::Cancelled, "the pool's waiting tasks were cancelled")));
        }
        self.pools.start(args, kwargs, &self.defaults)
    }

    /// The pool and the key whose calls are submitted in order.
    #[getter]
    fn line(&self) -> Option<(usize, &str)> {
        self.defaults.key.as_deref().map(|key| (self.pools.id(), key))
    }

    /// Gives the ticket back: the task was submitted, or will never be.
    fn release(&self) {
        self.give_back();
    }
}

impl Drop for PyTicket {
    fn drop(&mut self) {
        self.give_back();
    }
}

type Count = (&'static str, fn(&PoolStats) -> u64);
const COUNTS: &[Count] = &[
    ("queued", |s| s.queued as u64),
    ("running", |s| s.running as u64),
    ("workers", |s| s.workers as u64),
    ("overdue", |s| s.overdue as u64),
    ("submitted", |s| s.submitted),
    ("completed", |s| s.completed),
    ("failed", |s| s.failed),
    ("timed_out", |s| s.timed_out),
    ("cancelled", |s| s.cancelled),
    ("lost", |s| s.lost),
];

/// `(count, mean, p50, p90, p99, max)`.
fn in_seconds(h: &Histogram) -> (u64, f64, f64, f64, f64, f64) {
    let s = |ns: u64| ns as f64 / 1e9;
    (h.count, h.mean_ns / 1e9, s(h.p50_ns), s(h.p90_ns), s(h.p99_ns), s(h.max_ns))
}

/// An op of the default pool, submitted without a bound: its caller waits for it.
fn submit_default<'py>(py: Python<'py>, name: &str, inputs: Inputs<'py>, params: &Value, deliver: Deliver) -> PyResult<Task> {
    let mut inputs = inputs;
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
        if last.elapsed() < FULL_SLICE || !wait::is_main_thread() {
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

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a built-in op for a caller who waits. Short inputs are worked on here, without the GIL, because handing them to a
/// worker costs more than it brings; longer ones go to the default pool, where idle workers share them.
#[pyfunction]
fn _call(py: Python<'_>, name: &str, inputs: &Bound<'_, PyTuple>, params: &Bound<'_, PyDict>) -> PyResult<Py<PyAny>> {
    let params = value::options(Some(params))?;
    if inputs.iter().map(|i| buffer::byte_len(&i)).sum::<usize>() > INLINE_UP_TO {
        let task = submit_default(py, name, Inputs::take(inputs.iter())?, &params, Deliver::Wait)?;
        if let Err(e) = wait::until(py, None, |slice| task.wait_slice(slice)) {
            task.cancel(); // Ctrl-C: nobody takes the result
            return Err(e);
        }
        let result = task.try_take().unwrap_or_else(|| Err(Error::invalid("result was already taken")));
        return Ok(value::to_python(py, result.map_err(|e| raise(py, &e))?)?.unbind());
    }
    let op = ops::find(name).map_err(|e| raise(py, &e))?;
    let params = Params::check(op.name, op.params, &params).map_err(|e| raise(py, &e))?;
    // `bytes` are borrowed: `inputs` outlives the call.
    let Inputs { bytes, moved } = Inputs::take_with(inputs.iter(), buffer::borrowed_input)?;
    drop(moved);
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
    if inputs.iter().any(|i| buffer::copy_len(&i) > COPY_AT_ONCE) {
        return Ok(None);
    }
    let (port, event_loop) = Port::current(py)?;
    let params = value::options(Some(params))?;
    let inputs = Inputs::take(inputs.iter())?;
    let awaitable = Bound::new(py, PyAwaitable::new(event_loop.unbind()))?;
    let tag = port.get().expect(&awaitable);
    match submit_default(py, name, inputs, &params, Deliver::Queue(port.get().queue(), tag)) {
        Ok(task) => {
            awaitable.get().set_task(task);
            Ok(Some(awaitable))
        }
        Err(e) => {
            port.get().forget(tag);
            Err(e)
        }
    }
}

/// No pool takes work any more.
#[pyfunction]
fn _exiting() {
    EXITING.store(true, Ordering::Relaxed);
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyPool>()?;
    m.add_class::<PyTicket>()?;
    m.add_function(wrap_pyfunction!(_call, m)?)?;
    m.add_function(wrap_pyfunction!(_start, m)?)?;
    m.add_function(wrap_pyfunction!(_exiting, m)?)
}
