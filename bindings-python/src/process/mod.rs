//! `ProcessPool`: Python functions in worker processes, over core's lanes.
//!
//! ```text
//!   _ProcessPool ── submit ──► form (values, or pickle 5 with its buffers) ──► core ──► lane ──► _WorkerProcess.run    
//!        ▲                                                                                          │
//!     reply ◄── Future, _Awaitable ◄────────────────────────────────────────────────────────────────┘
//! ```
//!
//! * `stream`: what a generator yields, and `give`: how its worker sends it.
//! * `form`: the bytes of Python's own requests and replies; `reply`: what came back; `worker`: the other side; `zygote`: the process that workers are forks of.
//! * `shared`: memory that requests refer to; `dropped`: pools that nobody refers to any more.

mod dropped;
mod form;
mod give;
mod reply;
mod shared;
mod stream;
mod worker;
mod zygote;

pub(crate) use reply::{Reply, progress};

use crate::error::{duration, invalid, number_option, raise, text, text_option};
use crate::future::PyFuture;
use crate::pool::{Defaults, is_exiting, stats_dict};
use crate::port::{self, Port, PyAwaitable};
use crate::{late, value, wait};
use form::{BY_NAME, MAX_VALUES, Message, STREAM};
use offloop::error::{Error, ErrorKind};
use offloop::pool::call::Call;
use offloop::pool::{Deliver, OnFull, PoolOptions, ProcessPool, Request, SubmitError, SubmitOptions, Work};
use offloop::sys::process::Spec;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyFunction, PyList, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use shared::PySharedMemory;
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use stream::{Opening, PyStream};

/// Functions whose pickles a pool keeps; with one more it begins anew.
const MAX_FUNCTIONS: usize = 1024;

/// A function and its pickle. The function is kept, so that its address stays its own.
struct Known {
    function: Py<PyAny>,
    pickle: Py<PyBytes>,
}

struct Shared {
    pool: ProcessPool,
    known: Mutex<HashMap<usize, Known>>,
    wait_when_full: bool,
    /// Workers are called by the names of their exports.
    by_name: bool,
    closing: AtomicBool,
    /// What all shared memory of this pool has; there when there is some.
    arena: PyOnceLock<Py<PyAny>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        dropped::close(&self.pool);
    }
}

/// A pool, or a view of it.
struct Handle {
    shared: Arc<Shared>,
    defaults: Defaults,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if is_exiting() {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "cannot schedule new futures after interpreter shutdown")));
        }
        if self.closing.load(Ordering::SeqCst) {
            return Err(raise(py, &Error::new(ErrorKind::Closed, "the pool is closed")));
        }
        Ok(())
    }

    /// The pickle of a function, and flags.
    fn function<'py>(&self, function: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyBytes>, u8)> {
        static DUMP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = function.py();
        // These are pickled by their names, so what they are does not change.
        let plain = function.is_exact_instance_of::<PyFunction>() || function.is_exact_instance_of::<PyCFunction>();
        let address = function.as_ptr() as usize;
        if plain && let Some(known) = self.lock().get(&address) {
            return Ok((known.pickle.bind(py).clone(), BY_NAME));
        }
        let (pickle, by_name): (Bound<'py, PyBytes>, bool) = reply::helper(py, &DUMP, "dump_function")?.call1((function,))?.extract()?;
        if !plain || !by_name {
            return Ok((pickle, 0));
        }
        let known = Known { function: function.clone().unbind(), pickle: pickle.clone().unbind() };
        let old = {
            let mut all = self.lock();
            let old = if all.len() >= MAX_FUNCTIONS { std::mem::take(&mut *all) } else { HashMap::new() };
            all.insert(address, known);
            old
        };
        drop(old);
        Ok((pickle, BY_NAME))
    }

    /// The request of `function(*args, **kwargs)`.
    fn request<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &[Bound<'py, PyAny>],
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Request> {
        self.request_as(function, args, kwargs, 0)
    }

    /// `more`: flags.
    fn request_as<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &[Bound<'py, PyAny>],
        kwargs: Option<&Bound<'py, PyDict>>,
        more: u8,
    ) -> PyResult<Request> {
        let py = function.py();
        let kwargs = kwargs.filter(|k| !k.is_empty());
        if self.by_name {
            return self.common(function, args, kwargs);
        }
        if !function.is_callable() {
            let name = function.get_type().name()?;
            return Err(raise(py, &Error::invalid("task is not a callable").with("type", name)));
        }
        let (pickle, flags) = self.function(function)?;
        let mut message = Message { kind: form::VALUES, ..Message::default() };
        let mut plain = kwargs.is_none() && args.len() <= MAX_VALUES;
        for arg in args {
            plain = plain && message.push(arg)?;
        }
        if !plain {
            static DUMP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let args = PyTuple::new(py, args)?;
            let parts = reply::helper(py, &DUMP, "dump_call")?.call1((args, kwargs, self.arena.get(py)))?;
            message = worker::pickled(parts, Some(&self.pool))?;
        }
        message.flags = flags | more;
        let long = message.long() >= crate::copy::SLICE;
        let shared = message.shared();
        let request = message.with_parts(pickle.as_bytes(), |parts| wait::detached_if(py, long, || self.pool.request_with(parts, shared)));
        request.map_err(|e| raise(py, &e))
    }

    /// The request of a call that any language understands.
    fn common<'py>(&self, name: &Bound<'py, PyAny>, args: &[Bound<'py, PyAny>], kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Request> {
        let py = name.py();
        let Ok(name) = name.cast::<PyString>() else {
            let e = Error::invalid("workers of another program are called by the name of an export");
            return Err(raise(py, &e.with("type", name.get_type().name()?)));
        };
        let mut call = Call { name: text("export is not valid Unicode", "name", name)?, args: Vec::new(), named: Vec::new() };
        for arg in args {
            call.args.push(value::from_python(arg)?);
        }
        for (name, v) in kwargs.into_iter().flat_map(|k| k.iter()) {
            call.named.push((value::from_python(&name)?, value::from_python(&v)?));
        }
        let bytes = call.encode().map_err(|e| raise(py, &e))?;
        self.pool.request(&[&bytes]).map_err(|e| raise(py, &e))
    }

    /// Submits, and waits for room where that is asked for and does not hold an event loop.
    fn place<T: Send>(
        &self,
        py: Python<'_>,
        work: Vec<Work>,
        on_full: Option<OnFull>,
        submit: impl Fn(Vec<Work>, OnFull) -> Result<T, SubmitError> + Sync,
    ) -> PyResult<T> {
        late::collect(py);
        let submit = |work, on_full| self.pool.submitting(work, |work| submit(work, on_full));
        let mut refused = match submit(work, on_full.unwrap_or(OnFull::Reject)) {
            Ok(done) => return Ok(done),
            Err(e) => e,
        };
        let waits = on_full.is_none() && self.wait_when_full && refused.error.kind() == ErrorKind::Full;
        if !waits || port::running_loop(py)?.is_some() {
            return Err(raise(py, &refused.error));
        }
        loop {
            let work = refused.work;
            refused = match wait::detached(py, || submit(work, OnFull::Wait(Some(wait::SLICE)))) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            if refused.error.kind() != ErrorKind::Full || refused.work.len() > self.pool.pool().max_queue() {
                return Err(raise(py, &refused.error));
            }
            py.check_signals()?;
        }
    }
}

fn work_of(request: Request) -> Work {
    Work::hosted(Box::new(request))
}

fn split<'py>(args: &Bound<'py, PyTuple>) -> PyResult<(Bound<'py, PyAny>, Vec<Bound<'py, PyAny>>)> {
    let mut all = args.iter();
    let function = all.next().ok_or_else(|| PyTypeError::new_err("submit expected at least 1 argument, got 0"))?;
    Ok((function, all.collect()))
}

/// The native half of `offloop.ProcessPool`.
#[pyclass(name = "_ProcessPool", module = "offloop._native", frozen, subclass, weakref)]
pub(crate) struct PyProcessPool {
    inner: OnceLock<Handle>,
}

impl PyProcessPool {
    fn inner(&self) -> PyResult<&Handle> {
        self.inner.get().ok_or_else(|| PyRuntimeError::new_err("ProcessPool.__init__() was not called"))
    }

    fn shared(&self) -> PyResult<&Shared> {
        Ok(&self.inner()?.shared)
    }

    fn submit_with<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        on_full: Option<OnFull>,
    ) -> PyResult<Bound<'py, PyFuture>> {
        let py = args.py();
        let Handle { shared, defaults } = self.inner()?;
        shared.check_open(py)?;
        let (function, args) = split(args)?;
        let request = shared.request(&function, &args, kwargs)?;
        let task = shared.place(py, vec![work_of(request)], on_full, |mut work, on_full| {
            let one = work.pop().expect("one task is submitted");
            shared.pool.pool().submit(one, defaults.submit_options(on_full, Deliver::Wait))
        })?;
        let future = PyFuture::of_process(py, task)?;
        defaults.follow(&function, &future);
        Ok(future)
    }
}

#[pymethods]
impl PyProcessPool {
    /// `__init__` does the work, so that a subclass may have other parameters.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn py_new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyProcessPool {
        PyProcessPool { inner: OnceLock::new() }
    }

    /// `options`: as `ProcessPool.__init__` has them, checked here. `command`: program and arguments. `by_name`: workers do not take pickles.
    /// `zygote`: what the process reads that workers are forked from, None for none.
    #[expect(clippy::too_many_arguments, reason = "called from one place")]
    fn _open(
        &self,
        py: Python<'_>,
        command: Vec<OsString>,
        env: Option<Vec<(OsString, OsString)>>,
        setup: Vec<u8>,
        zygote: Option<Vec<u8>>,
        by_name: bool,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let given = |name: &str| -> PyResult<Option<Bound<'_, PyAny>>> { Ok(options.get_item(name)?.filter(|v| !v.is_none())) };
        let mut o = PoolOptions::default();
        if let Some(n) = given("max_workers")? {
            let workers: i64 = number_option("max_workers", &n)?;
            if workers <= 0 {
                return Err(invalid(py, "max_workers must be greater than 0", "value", workers));
            }
            o.max_workers = Some(number_option("max_workers", &n)?);
        }
        if let Some(n) = given("min_workers")? {
            o.min_workers = number_option("min_workers", &n)?;
        }
        if let Some(n) = given("max_queue")? {
            o.max_queue = number_option("max_queue", &n)?;
        }
        if let Some(n) = given("max_tasks_per_child")? {
            let tasks: i64 = number_option("max_tasks_per_child", &n)?;
            if tasks <= 0 {
                return Err(invalid(py, "max_tasks_per_child must be >= 1", "value", tasks));
            }
            o.max_tasks_per_worker = Some(tasks as u64);
        }
        if let Some(n) = given("nice")? {
            o.nice = number_option("nice", &n)?;
        }
        if let Some(t) = given("max_worker_age")? {
            o.max_worker_age = duration("max_worker_age", &t)?;
        }
        if let Some(n) = given("max_worker_memory")? {
            let bytes: i64 = number_option("max_worker_memory", &n)?;
            if bytes <= 0 {
                return Err(invalid(py, "max_worker_memory must be at least 1", "value", bytes));
            }
            o.max_worker_memory = Some(bytes as u64);
        }
        if let Some(t) = given("idle_timeout")? {
            o.idle_timeout = duration("idle_timeout", &t)?.unwrap_or(offloop::pool::MAX_DURATION);
        }
        if let Some(name) = given("name")? {
            o.name = text_option("pool name is not valid Unicode", "name", &name)?;
        }
        if o.name.is_empty() {
            o.name = "processes".to_owned();
        }
        let defaults = Defaults::new(given("tracer")?.map(Bound::unbind));
        let concurrency = given("concurrency")?.map_or(Ok(1), |n| number_option("concurrency", &n))?;
        let grace = match given("cancel_grace")? {
            Some(t) => duration("cancel_grace", &t)?.unwrap_or(offloop::pool::MAX_DURATION),
            None => Duration::from_secs(1),
        };
        let wait_when_full = match given("on_full")? {
            None => true,
            Some(word) => match text_option("option is not valid Unicode", "on_full", &word)?.as_str() {
                "wait" => true,
                "reject" => false,
                other => {
                    let e = Error::invalid("option is not one of its words").with("option", "on_full");
                    return Err(raise(py, &e.with("value", other).with("want", "wait reject")));
                }
            },
        };
        let mut command = command.into_iter();
        let program = command.next().ok_or_else(|| raise(py, &Error::invalid("command is empty").with("option", "command")))?;
        let args: Vec<OsString> = command.collect();
        let spec = move || {
            let mut spec = Spec::new(program.clone());
            spec.args.clone_from(&args);
            spec.env.clone_from(&env);
            Ok(spec)
        };
        let mut builder = ProcessPool::builder().options(o).concurrency(concurrency).cancel_grace(grace).setup(setup);
        if let Some(zygote) = zygote {
            builder = builder.zygote(zygote, spec.clone());
        }
        let built = builder.build(move |_| spec());
        let pool = built.map_err(|e| raise(py, &e))?;
        let shared =
            Shared { pool, known: Mutex::default(), wait_when_full, by_name, closing: AtomicBool::new(false), arena: PyOnceLock::new() };
        let _ = self.inner.set(Handle { shared: Arc::new(shared), defaults });
        Ok(())
    }

    /// Makes this a view of `other` with these defaults; None keeps what `other` has.
    #[pyo3(signature = (other, *, timeout, queue_timeout, priority, key, retries))]
    #[expect(clippy::too_many_arguments, reason = "called by keyword from one place")]
    fn _view(
        &self,
        py: Python<'_>,
        other: &PyProcessPool,
        timeout: Option<Bound<'_, PyAny>>,
        queue_timeout: Option<Bound<'_, PyAny>>,
        priority: Option<Bound<'_, PyAny>>,
        key: Option<Bound<'_, PyAny>>,
        retries: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let other = other.inner()?;
        let mut defaults = other.defaults.with(py, timeout, queue_timeout, priority, key)?;
        if let Some(n) = retries {
            defaults.retries = number_option("retries", &n)?;
        }
        let _ = self.inner.set(Handle { shared: other.shared.clone(), defaults });
        Ok(())
    }

    /// Submits `fn(*args, **kwargs)`; the name of an export where workers are another program.
    #[pyo3(signature = (*args, **kwargs), text_signature = "($self, fn, /, *args, **kwargs)")]
    fn submit<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyFuture>> {
        self.submit_with(args, kwargs, None)
    }

    /// As `submit`, beyond `max_queue`: what `map` falls back to, so that it always has a task in flight.
    #[pyo3(signature = (*args, **kwargs))]
    fn _admit<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyFuture>> {
        self.submit_with(args, kwargs, Some(OnFull::Admit))
    }

    /// Submits one task per item, all or none, in one crossing. An item is the one argument; keyword arguments go to every call.
    #[pyo3(signature = (r#fn, items, /, **kwargs))]
    fn submit_many<'py>(
        &self,
        r#fn: &Bound<'py, PyAny>,
        items: &Bound<'py, PyAny>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = items.py();
        let Handle { shared, defaults } = self.inner()?;
        shared.check_open(py)?;
        let requests = items.try_iter()?.map(|item| shared.request(r#fn, &[item?], kwargs)).collect::<PyResult<Vec<_>>>()?;
        let tasks = shared.place(py, requests.into_iter().map(work_of).collect(), None, |work, on_full| {
            shared.pool.pool().submit_many(work, &defaults.submit_options(on_full, Deliver::Wait))
        })?;
        let made = |task| {
            let future = PyFuture::of_process(py, task)?;
            defaults.follow(r#fn, &future);
            Ok(future)
        };
        PyList::new(py, tasks.into_iter().map(made).collect::<PyResult<Vec<_>>>()?)
    }

    /// Submits a call whose function gives one value after the other.
    #[pyo3(signature = (*args, **kwargs))]
    fn _stream<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyStream>> {
        let py = args.py();
        let Handle { shared, defaults } = self.inner()?;
        shared.check_open(py)?;
        let (function, args) = split(args)?;
        let opening = Opening::new();
        let request = shared.request_as(&function, &args, kwargs, STREAM)?.streaming(&opening.stream);
        let task = shared.place(py, vec![work_of(request)], None, |mut work, on_full| {
            let one = work.pop().expect("one task is submitted");
            shared.pool.pool().submit(one, defaults.submit_options(on_full, Deliver::Wait))
        })?;
        let stream = opening.of(py, task)?;
        defaults.follow(&function, stream.get().future.bind(py));
        Ok(stream)
    }

    /// Starts a task for the running event loop and returns what `run` awaits.
    #[pyo3(signature = (*args, **kwargs))]
    fn _start<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAwaitable>> {
        let py = args.py();
        let Handle { shared, defaults } = self.inner()?;
        shared.check_open(py)?;
        let (function, args) = split(args)?;
        let request = shared.request(&function, &args, kwargs)?;
        let awaitable = Port::start_process(py, |deliver| {
            shared.place(py, vec![work_of(request)], Some(OnFull::Admit), |mut work, on_full| {
                let one = work.pop().expect("one task is submitted");
                shared.pool.pool().submit(one, defaults.submit_options(on_full, deliver()))
            })
        })?;
        defaults.follow_awaited(&function, &awaitable);
        Ok(awaitable)
    }

    /// Submits `fn(*args, **kwargs)` once for each live worker, at least for one, beyond `max_queue`.
    #[pyo3(signature = (*args, **kwargs))]
    fn _submit_to_each<'py>(&self, args: &Bound<'py, PyTuple>, kwargs: Option<&Bound<'py, PyDict>>) -> PyResult<Vec<Bound<'py, PyFuture>>> {
        let py = args.py();
        let Handle { shared, defaults } = self.inner()?;
        shared.check_open(py)?;
        if defaults.key.is_some() {
            return Err(raise(py, &Error::invalid("a call for every worker has no key").with("option", "key")));
        }
        let (function, args) = split(args)?;
        let places = match shared.pool.pool().live_workers() {
            none if none.is_empty() => vec![None],
            places => places.into_iter().map(Some).collect(),
        };
        let requests = places.iter().map(|_| shared.request(&function, &args, kwargs)).collect::<PyResult<Vec<_>>>()?;
        let mut futures = Vec::with_capacity(places.len());
        for (place, request) in places.into_iter().zip(requests) {
            let task = shared.place(py, vec![work_of(request)], Some(OnFull::Admit), |mut work, on_full| {
                let one = work.pop().expect("one task is submitted");
                let options = SubmitOptions { worker: place, ..defaults.submit_options(on_full, Deliver::Wait) };
                shared.pool.pool().submit(one, options)
            })?;
            let future = PyFuture::of_process(py, task)?;
            defaults.follow(&function, &future);
            futures.push(future);
        }
        Ok(futures)
    }

    /// `len` bytes, all 0, that this process and the workers write.
    fn _share<'py>(&self, py: Python<'py>, len: usize) -> PyResult<Bound<'py, PySharedMemory>> {
        let shared = self.shared()?;
        shared.check_open(py)?;
        if shared.by_name {
            return Err(raise(py, &Error::invalid("workers of another program get copies of arrays: shared ones are for functions")));
        }
        let arena = shared.arena.get_or_try_init(py, || -> PyResult<_> { Ok(py.get_type::<PyAny>().call0()?.unbind()) })?.clone_ref(py);
        let part = wait::detached_if(py, len >= crate::copy::SLICE, || shared.pool.share(len)).map_err(|e| raise(py, &e))?;
        Bound::new(py, PySharedMemory { part, arena })
    }

    fn _resize(&self, py: Python<'_>, min_workers: Option<Bound<'_, PyAny>>, max_workers: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let min = min_workers.map(|n| number_option("min_workers", &n)).transpose()?;
        let max = max_workers.map(|n| number_option("max_workers", &n)).transpose()?;
        self.shared()?.pool.pool().resize(min, max).map_err(|e| raise(py, &e))
    }

    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, &self.shared()?.pool.pool().stats())
    }

    /// Refuses new tasks from now on; the processes end after what was taken in.
    fn _close(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.shared()?;
        if shared.closing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        match wait::detached(py, || shared.pool.close_within(None, Box::new(|| {}))) {
            // Those of the parent are the parent's.
            Err(e) if e.kind() != ErrorKind::Forked => Err(raise(py, &e)),
            _ => Ok(()),
        }
    }

    /// Cancels everything that was not started.
    fn _cancel_queued(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.shared()?;
        wait::detached(py, || shared.pool.pool().cancel_queued());
        Ok(())
    }

    /// Waits until a closing pool has run what it took in and its processes have ended. Ctrl-C ends the wait. `cancels`: nothing is started
    /// any more.
    #[pyo3(signature = (*, cancels = false))]
    fn _wait_closed(&self, py: Python<'_>, cancels: bool) -> PyResult<()> {
        dropped::wait_closed(py, &self.shared()?.pool, cancels)
    }

    /// Ends every task and every process now.
    fn _terminate(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.shared()?;
        shared.closing.store(true, Ordering::SeqCst);
        wait::detached(py, || shared.pool.terminate()).map_err(|e| raise(py, &e))
    }

    #[getter]
    fn _closed(&self) -> PyResult<bool> {
        Ok(self.shared()?.closing.load(Ordering::SeqCst))
    }

    #[getter]
    fn _max_workers(&self) -> PyResult<usize> {
        Ok(self.shared()?.pool.pool().max_workers())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(handle) = self.inner.get() else { return Ok(()) };
        handle.defaults.traverse(&visit)?;
        let Ok(known) = handle.shared.known.try_lock() else { return Ok(()) };
        if Arc::strong_count(&handle.shared) > 1 {
            return Ok(()); // what views share is not this object's alone
        }
        known.values().try_for_each(|k| visit.call(&k.function))
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    dropped::install(m)?;
    shared::install(m)?;
    m.add_class::<PyProcessPool>()?;
    m.add_class::<PyStream>()?;
    m.add_class::<worker::PyWorkerProcess>()?;
    m.add_class::<zygote::PyZygote>()
}
