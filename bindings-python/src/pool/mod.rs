//! `ThreadPool`: two core pools behind one executor. Ops run on native threads, Python callables on Python threads.
//!
//! ```text
//!   _Pool ───┐                            inputs  what an op reads, given back if it is refused
//!   _Ticket ─┴── Handle ──► Pools ──► core     submit  from a call of Python to a task of core
//!                   └─────► _Host (hosted)     ops     the default pool, without a `_Pool`
//! ```

mod inputs;
mod ops;
mod submit;
mod ticket;

use crate::buffer;
use crate::error::{invalid, number_option, raise, shown, text_option, wrong_type};
use crate::future::PyFuture;
use crate::hosted::{self, PyHost, Target, looking};
use crate::port::PyAwaitable;
use crate::{value, wait};
use inputs::Inputs;
use offloop::ThreadPool;
use offloop::error::Error;
use offloop::metrics::Histogram;
use offloop::pool::{Deliver, OnFull, PoolOptions, PoolStats, Work};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
pub(crate) use submit::{Defaults, is_exiting};
use submit::{Handle, Job, Pools, head, op_name};
use ticket::PyTicket;

/// Inputs that no budget counts: to copy them costs less than the call.
const COPY_FREE: usize = 64 << 10;

/// Whether a call for the running loop may copy its inputs at once, by what is left of the turn's budget.
fn may_copy<'py>(py: Python<'py>, inputs: impl Iterator<Item = Bound<'py, PyAny>>) -> PyResult<bool> {
    let cost = inputs.map(|i| buffer::copy_cost(&i)).fold(0, usize::saturating_add);
    if cost <= COPY_FREE {
        return Ok(true);
    }
    py.import("offloop._aio")?.call_method1("may_copy", (cost,))?.is_truthy()
}

/// The native half of `offloop.ThreadPool`.
#[pyclass(name = "_Pool", module = "offloop._native", frozen, subclass, weakref)]
pub(crate) struct PyPool {
    inner: OnceLock<Handle>,
}

impl PyPool {
    fn submit_with<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        on_full: Option<OnFull>,
    ) -> PyResult<Bound<'py, PyFuture>> {
        let py = args.py();
        let handle = self.inner()?;
        handle.pools.check_open(py)?;
        let first = head(args)?;
        if let Ok(name) = first.cast::<PyString>() {
            handle.pools.ask_line(py, &handle.defaults, "finish_line")?;
            let task = handle.submit_one(py, handle.op(&name, args, kwargs)?, on_full, &|| Deliver::Wait)?;
            let future = Bound::new(py, PyFuture::of(task))?;
            handle.defaults.follow(&first, &future);
            return Ok(future);
        }
        handle.pools.check_callable(&first)?;
        let future = Bound::new(py, PyFuture::pending())?;
        let work = handle.call(args.clone(), kwargs, Target::Future(future.clone().unbind()))?;
        future.get().set_task(handle.submit_one(py, Job::Call(work), on_full, &|| Deliver::Wait)?);
        handle.defaults.follow(&first, &future);
        Ok(future)
    }

    fn submit_ops<'py>(
        handle: &Handle,
        name: &Bound<'py, PyString>,
        items: Vec<Bound<'py, PyAny>>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = name.py();
        let pools = &*handle.pools;
        pools.ask_line(py, &handle.defaults, "finish_line")?;
        let called = name.as_any();
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
            match Inputs::take(std::iter::once(item), buffer::input).and_then(|inputs| pools.op(py, &name, inputs, &params)) {
                Ok((w, inputs)) => {
                    work.push(w);
                    sources.push(inputs);
                }
                Err(e) => {
                    restore(sources, work);
                    return Err(e);
                }
            }
        }
        match handle.place_many(py, work, &pools.ops) {
            Ok(tasks) => {
                let made = |task| {
                    let future = Bound::new(py, PyFuture::of(task))?;
                    handle.defaults.follow(called, &future);
                    Ok(future)
                };
                PyList::new(py, tasks.into_iter().map(made).collect::<PyResult<Vec<_>>>()?)
            }
            Err((e, work)) => {
                restore(sources, work);
                Err(e)
            }
        }
    }

    fn submit_calls<'py>(
        handle: &Handle,
        call: &Bound<'py, PyAny>,
        items: Vec<Bound<'py, PyAny>>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = call.py();
        handle.pools.check_callable(call)?;
        let mut futures = Vec::with_capacity(items.len());
        let mut work = Vec::with_capacity(items.len());
        for item in items {
            let future = Bound::new(py, PyFuture::pending())?;
            work.push(handle.call(PyTuple::new(py, [call, &item])?, kwargs, Target::Future(future.clone().unbind()))?);
            futures.push(future);
        }
        let tasks = handle.place_many(py, work, &handle.pools.calls).map_err(|(e, _)| e)?;
        for (future, task) in futures.iter().zip(tasks) {
            future.get().set_task(task);
            handle.defaults.follow(call, future);
        }
        handle.pools.hosting.try_start_wanted(py)?;
        PyList::new(py, futures)
    }

    fn inner(&self) -> PyResult<&Handle> {
        self.inner.get().ok_or_else(|| PyRuntimeError::new_err("ThreadPool.__init__() was not called"))
    }

    fn pools(&self) -> PyResult<&Pools> {
        Ok(&self.inner()?.pools)
    }

    fn open(
        &self,
        host: PyHost,
        defaults: Defaults,
        py: Python<'_>,
        make: impl FnOnce(&Bound<'_, PyHost>) -> PyResult<Pools>,
    ) -> PyResult<()> {
        let host = Bound::new(py, host)?;
        let pools = Arc::new(make(&host)?);
        let _ = self.inner.set(Handle { pools, host: host.unbind(), defaults });
        Ok(())
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

    #[pyo3(signature = (*, max_workers, max_queue, max_overdue, nice, name, on_full, initializer, initargs, context, tracer))]
    #[expect(clippy::too_many_arguments, reason = "called by keyword from one place")]
    fn _open(
        &self,
        py: Python<'_>,
        max_workers: Option<Bound<'_, PyAny>>,
        max_queue: Option<Bound<'_, PyAny>>,
        max_overdue: Option<Bound<'_, PyAny>>,
        nice: Bound<'_, PyAny>,
        name: &Bound<'_, PyAny>,
        on_full: &Bound<'_, PyAny>,
        initializer: Option<Py<PyAny>>,
        initargs: Py<PyTuple>,
        context: Py<PyAny>,
        tracer: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let on_full = text_option("option is not valid Unicode", "on_full", on_full)?;
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
        let mut options = PoolOptions { nice: number_option("nice", &nice)?, ..PoolOptions::default() };
        if let Some(given) = max_workers {
            let n: i64 = number_option("max_workers", &given)?;
            if n <= 0 {
                return Err(invalid(py, "max_workers must be greater than 0", "value", n));
            }
            options.max_workers = Some(number_option("max_workers", &given)?);
        }
        options.max_overdue = max_overdue.map(|n| number_option("max_overdue", &n)).transpose()?;
        if let Some(n) = max_queue {
            options.max_queue = number_option("max_queue", &n)?;
        }
        let name = text_option("pool name is not valid Unicode", "thread_name_prefix", name)?;
        let shown = if name.is_empty() { "pool".to_owned() } else { name.clone() };
        let prefix = if name.is_empty() { "offloop".to_owned() } else { name };
        options.name = shown;
        let ops = ThreadPool::builder().options(options.clone()).build().map_err(|e| raise(py, &e))?;
        options.name.push_str("-python");
        let defaults = Defaults::new(tracer);
        self.open(PyHost::new(initializer.map(|f| (f, initargs)), context), defaults, py, |host| {
            Pools::new(ops, ThreadPool::builder().options(options), prefix, host, wait_when_full)
        })
    }

    /// Makes this the process-wide pool behind `ops`.
    fn _open_default(&self, py: Python<'_>) -> PyResult<()> {
        let ops = ThreadPool::default_pool().map_err(|e| raise(py, &e))?;
        let builder = ThreadPool::builder().max_workers(ops.max_workers()).name("default-python");
        self.open(PyHost::new(None, py.None()), Defaults::default(), py, |host| Pools::new(ops, builder, "offloop".to_owned(), host, true))
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
        key: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let other = other.inner()?;
        let defaults = other.defaults.with(py, timeout, queue_timeout, priority, key)?;
        let _ = self.inner.set(other.with(py, defaults));
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
        let handle = self.inner()?;
        handle.pools.check_open(py)?;
        let items = items.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        match op_or_fn.cast::<PyString>() {
            Ok(name) => Self::submit_ops(handle, name, items, kwargs),
            Err(_) => Self::submit_calls(handle, op_or_fn, items, kwargs),
        }
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
        let handle = self.inner()?;
        let pools = &handle.pools;
        pools.check_open(py)?;
        if head(args)?.is_instance_of::<PyString>()
            && (!may_copy(py, args.iter().skip(1))? || pools.ask_line(py, &handle.defaults, "has_line")?)
        {
            return Ok(None);
        }
        handle.start(args, kwargs).map(Some)
    }

    fn _resize(&self, py: Python<'_>, min_workers: Option<Bound<'_, PyAny>>, max_workers: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let pools = self.pools()?;
        let min = min_workers.map(|n| number_option("min_workers", &n)).transpose()?;
        let max = max_workers.map(|n| number_option("max_workers", &n)).transpose()?;
        looking(|| pools.ops.resize(min, max).and_then(|()| pools.calls.resize(min, max))).map_err(|e| raise(py, &e))?;
        pools.hosting.try_start_wanted(py)
    }

    /// Counts of both kinds together, and their histograms as tuples.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let pools = self.pools()?;
        let stats = pools.ops.stats_with(&pools.calls);
        // The share of `max_workers`, which bounds each kind.
        stats_dict(py, &stats)
    }

    /// Loads a C plugin and returns the names of the ops it brought.
    fn _load(&self, path: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
        let py = path.py();
        let pools = self.pools()?;
        let path: PathBuf = path.extract().map_err(|e: PyErr| match path.cast::<PyString>() {
            Err(_) if e.is_instance_of::<PyTypeError>(py) => wrong_type("plugin", path, "a path of text"),
            // Bytes of the file system that are no UTF-8 have a form in `str`; this has none in the file system.
            Ok(path) if e.is_instance_of::<PyUnicodeEncodeError>(py) => invalid(py, "path is not valid Unicode", "path", shown(path)),
            _ => e,
        })?;
        // The plugin's own start may take its time, and it knows nothing of the GIL.
        wait::detached(py, || pools.ops.load(&path)).map_err(|e| raise(py, &e))
    }

    /// Names of every op that this pool can run.
    fn _op_names(&self) -> PyResult<Vec<String>> {
        Ok(self.pools()?.ops.op_names())
    }

    /// Refuses new tasks from now on.
    fn _close(&self, py: Python<'_>) -> PyResult<()> {
        let pools = self.pools()?;
        looking(|| pools.close());
        pools.hosting.start_wanted(py);
        Ok(())
    }

    /// Takes in a task whose inputs are yet to be copied.
    fn _accept(&self, py: Python<'_>) -> PyResult<PyTicket> {
        let handle = self.inner()?;
        handle.pools.check_open(py)?;
        Ok(PyTicket::new(handle.with(py, handle.defaults.clone_ref(py))))
    }

    /// Cancels what was not started.
    fn _cancel_queued(&self, py: Python<'_>) -> PyResult<()> {
        let pools = self.pools()?;
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
        let pools = self.pools()?;
        wait::detached(py, || looking(|| pools.ops.terminate()));
        pools.hosting.start_wanted(py);
        Ok(())
    }

    /// Waits until a closing pool has run what it took in. Ctrl-C ends the wait.
    fn _wait_closed(&self, py: Python<'_>) -> PyResult<()> {
        let pools = self.pools()?;
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
        Ok(self.pools()?.hosting.broken().is_some())
    }

    #[getter]
    fn _closed(&self) -> PyResult<bool> {
        let pools = self.pools()?;
        Ok(pools.closing.load(Ordering::SeqCst) || pools.ops.is_closed())
    }

    #[getter]
    fn _max_workers(&self) -> PyResult<usize> {
        Ok(self.pools()?.ops.max_workers())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.inner.get().map_or(Ok(()), |handle| handle.traverse(&visit))
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
    ("rejected", |s| s.rejected),
    ("retried", |s| s.retried),
    ("recycled", |s| s.recycled),
];

/// What `PoolStats` is made of.
pub(crate) fn stats_dict<'py>(py: Python<'py>, stats: &PoolStats) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    for (name, of) in COUNTS {
        d.set_item(name, of(stats))?;
    }
    d.set_item("utilization", stats.utilization)?;
    d.set_item("wait", in_seconds(&stats.wait))?;
    d.set_item("run", in_seconds(&stats.run))?;
    Ok(d)
}

/// `(count, mean, p50, p90, p99, max)`.
fn in_seconds(h: &Histogram) -> (u64, f64, f64, f64, f64, f64) {
    let s = |ns: u64| ns as f64 / 1e9;
    (h.count, h.mean_ns / 1e9, s(h.p50_ns), s(h.p90_ns), s(h.p99_ns), s(h.max_ns))
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyPool>()?;
    m.add_class::<PyTicket>()?;
    ops::install(m)?;
    submit::install(m)
}
