//! How tasks reach an event loop: one completion queue per loop, drained by the loop when its eventfd is readable.
//!
//! What `run` awaits is not an `asyncio.Future` but an object with the same protocol (`_asyncio_future_blocking`), so
//! that a drain can step the waiting task at once, in the task's own context, instead of scheduling that with a handle
//! per task. A drain takes few events at a time from the queue and stops after [`SLICE`]: what it leaves stays in the queue,
//! whose fd is readable as long, so that timers and other readers of the loop have their turn.
//!
//! A step may run the loop from inside (nest_asyncio, debuggers) and wait there for another task. A handle of the loop that is
//! running cannot run again below itself, its context being entered, so no step runs inside the fd's reader: that one only asks for a
//! drain ([`Port::soon`]). And a drain that steps one task asks for the next drain beforehand, if there are tasks behind it.

use crate::copy::{self, Growing};
use crate::dispatch::{self, Item, Role};
use crate::fast;
use crate::future::{self, Outcome, Returned, Times, Unread, visit_returned};
use crate::late::{self, Late};
use offloop::error::{Error, ErrorKind};
use offloop::pool::{CompletionQueue, Deliver, Event};
use offloop::{Task, Value};
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyStopIteration, PySystemExit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Events that a drain takes at a time. Between two takes it looks at the clock.
const CHUNK: usize = 16;
/// Time per drain: what it adds to the loop's delay.
const SLICE: Duration = Duration::from_micros(500);

/// One event loop's completion queue.
#[pyclass(name = "_Port", module = "offloop._native", frozen, weakref)]
pub(crate) struct Port {
    queue: CompletionQueue,
    /// Weak: the loop's reader holds the port.
    event_loop: Py<PyAny>,
    state: Mutex<PortState>,
    ringer: Arc<Ringer>,
}

/// Who asked for a drain, and how a loop without `add_reader` hears of events.
#[derive(Default)]
struct Ringer {
    /// A weak reference to the port, for a loop without `add_reader`.
    port: OnceLock<Late<Py<PyAny>>>,
    /// A drain will come that has not begun. Set by whoever asks for one, cleared before that one looks into the queue.
    rung: AtomicBool,
}

/// A bell for the thread `offloop-results`.
pub(crate) struct Bell(Arc<Ringer>);

#[derive(Default)]
struct PortState {
    /// By tag. A tag is free again when its event was delivered.
    waiting: Vec<Option<Py<PyAwaitable>>>,
    free: Vec<usize>,
    /// Taken from the queue and not delivered yet; at most a chunk.
    ready: VecDeque<(Py<PyAwaitable>, Unread)>,
    /// A long result, of which each drain copies as much as fits its time. What is ready waits behind it, so that results come in order.
    growing: Option<(Py<PyAwaitable>, Growing)>,
}

impl PortState {
    /// Nothing waits for the next drain.
    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.growing.is_none()
    }

    fn take(&mut self, tag: u64) -> Option<Py<PyAwaitable>> {
        let at = usize::try_from(tag).ok()?;
        let entry = self.waiting.get_mut(at)?.take();
        if entry.is_some() {
            self.free.push(at);
        }
        entry
    }
}

thread_local! {
    /// The port of the loop that this thread used last. Weak: a loop that is closed takes its port along.
    static LAST: RefCell<Option<Late<Py<PyWeakrefReference>>>> = const { RefCell::new(None) };
}

/// The loop that runs on this thread, if there is one.
pub(crate) fn running_loop(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static GET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let found = GET.import(py, "asyncio", "_get_running_loop")?.call0()?;
    Ok(if found.is_none() { None } else { Some(found) })
}

impl Port {
    /// The port of the running loop; RuntimeError without one.
    fn current(py: Python<'_>) -> PyResult<(Bound<'_, Port>, Bound<'_, PyAny>)> {
        let Some(event_loop) = running_loop(py)? else {
            return Err(pyo3::exceptions::PyRuntimeError::new_err("no running event loop"));
        };
        let last = LAST.with_borrow(|l| l.as_ref().map(|p| p.clone_ref(py)));
        if let Some(last) = last
            && let Some(port) = last.bind(py).upgrade_as::<Port>()?
            && port.get().event_loop.bind(py).call0()?.is(&event_loop)
        {
            return Ok((port, event_loop));
        }
        let port = py.import("offloop._aio")?.call_method1("port_for", (&event_loop,))?.cast_into::<Port>()?;
        let previous = LAST.replace(Some(Late::new(PyWeakrefReference::new(&port)?.unbind())));
        drop(previous.map(|p| p.into_inner(py)));
        Ok((port, event_loop))
    }

    /// Starts a task for the running event loop: `submit` gets what awaits it, and where its outcome goes.
    pub(crate) fn start<'py>(
        py: Python<'py>,
        submit: impl FnOnce(&Bound<'py, PyAwaitable>, &(dyn Fn() -> Deliver + Sync)) -> PyResult<Task>,
    ) -> PyResult<Bound<'py, PyAwaitable>> {
        Port::start_as(py, false, submit)
    }

    /// As [`start`](Self::start) of a task of a process pool.
    pub(crate) fn start_process<'py>(
        py: Python<'py>,
        submit: impl FnOnce(&(dyn Fn() -> Deliver + Sync)) -> PyResult<Task>,
    ) -> PyResult<Bound<'py, PyAwaitable>> {
        Port::start_as(py, true, |_, deliver| submit(deliver))
    }

    fn start_as<'py>(
        py: Python<'py>,
        is_reply: bool,
        submit: impl FnOnce(&Bound<'py, PyAwaitable>, &(dyn Fn() -> Deliver + Sync)) -> PyResult<Task>,
    ) -> PyResult<Bound<'py, PyAwaitable>> {
        let (port, event_loop) = Port::current(py)?;
        let awaitable = Bound::new(py, PyAwaitable::new(event_loop.unbind(), is_reply))?;
        let tag = port.get().expect(&awaitable);
        let queue = port.get().queue.clone();
        match submit(&awaitable, &|| Deliver::Queue(queue.clone(), tag)) {
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

    // Held for a few instructions, never while Python code may run.
    fn lock(&self) -> MutexGuard<'_, PortState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tag for an awaitable.
    fn expect(&self, awaitable: &Bound<'_, PyAwaitable>) -> u64 {
        let mut state = self.lock();
        let entry = Some(awaitable.clone().unbind());
        let tag = match state.free.pop() {
            Some(tag) => {
                state.waiting[tag] = entry;
                tag
            }
            None => {
                state.waiting.push(entry);
                state.waiting.len() - 1
            }
        };
        tag as u64
    }

    /// Takes a tag back: its task was not accepted.
    fn forget(&self, tag: u64) {
        let awaitable = self.lock().take(tag);
        drop(awaitable);
    }

    /// Rings a loop that has no `add_reader`. On the thread `offloop-results`.
    pub(crate) fn ring(py: Python<'_>, bell: &Bell) {
        let rung = (|| {
            let Some(weak) = bell.0.port.get() else { return Ok(()) };
            let port = weak.bind(py).call0()?;
            if !port.is_none() {
                let event_loop = port.cast::<Port>()?.get().event_loop.bind(py).call0()?;
                if !event_loop.is_none() {
                    event_loop.call_method1("call_soon_threadsafe", (port.getattr("drain")?,))?;
                }
            }
            PyResult::Ok(())
        })();
        // A loop that is closed has nobody left to tell.
        drop(rung);
    }

    fn deliver(slf: &Bound<'_, Port>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let started = Instant::now();
        loop {
            let growing = this.lock().growing.take();
            if let Some((awaitable, mut bytes)) = growing {
                let cancelled = awaitable.get().is_cancelled();
                while !cancelled && !bytes.advance(py) {
                    if started.elapsed() > SLICE {
                        this.lock().growing = Some((awaitable, bytes));
                        return Self::soon(slf);
                    }
                }
                if cancelled {
                    PyAwaitable::tell(awaitable.bind(py))?;
                } else {
                    Self::soon_unless_idle(slf)?;
                    PyAwaitable::finish(awaitable.bind(py), Outcome::Value(bytes.into_inner()))?;
                }
            }
            let ready = this.lock().ready.pop_front();
            let Some((awaitable, mut unread)) = ready else {
                if started.elapsed() > SLICE {
                    // The queue may hold events for which it has rung already.
                    return Self::soon(slf);
                }
                if !this.take() {
                    return Ok(());
                }
                continue;
            };
            Self::soon_unless_idle(slf)?;
            let host = awaitable.get().lock().host.take();
            if awaitable.get().is_cancelled() {
                PyAwaitable::tell(awaitable.bind(py))?;
                continue;
            }
            if let Unread::Value(Value::Bytes(bytes)) = &mut unread
                && bytes.len() > copy::SLICE
            {
                match Growing::new(py, std::mem::take(bytes)) {
                    Ok(bytes) => this.lock().growing = Some((awaitable, bytes)),
                    Err(e) => PyAwaitable::finish(awaitable.bind(py), Outcome::Error(e.into_value(py)))?,
                }
                continue;
            }
            let outcome = match unread.read(py, host) {
                Ok(outcome) => outcome,
                // They end the loop. One that runs on begins with what they interrupted.
                Err(e) if e.is_instance_of::<PyKeyboardInterrupt>(py) || e.is_instance_of::<PySystemExit>(py) => {
                    this.lock().ready.push_front((awaitable, unread));
                    Self::soon(slf)?;
                    return Err(e);
                }
                Err(e) => Outcome::Error(e.into_value(py)),
            };
            // Unpickling may have run code that cancelled it.
            if awaitable.get().is_cancelled() {
                PyAwaitable::tell(awaitable.bind(py))?;
            } else {
                PyAwaitable::finish(awaitable.bind(py), outcome)?;
            }
        }
    }

    /// What was taken from the queue rings nobody any more, wherever the next step goes.
    fn soon_unless_idle(slf: &Bound<'_, Port>) -> PyResult<()> {
        if slf.get().lock().is_idle() { Ok(()) } else { Self::soon(slf) }
    }

    /// Moves events from the queue to `ready`, at most a chunk; false if there were none. Whatever stays in the queue keeps the fd
    /// readable.
    fn take(&self) -> bool {
        let mut state = self.lock();
        self.queue.drain(CHUNK, &mut |event| {
            if let Event::Done { tag, result } = event
                && let Some(awaitable) = state.take(tag)
            {
                let unread = Unread::new(result, awaitable.get().is_reply);
                state.ready.push_back((awaitable, unread));
            }
        }) > 0
    }

    /// Has the loop drain from its own queue, once.
    fn soon(slf: &Bound<'_, Port>) -> PyResult<()> {
        let py = slf.py();
        if slf.get().ringer.rung.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let event_loop = slf.get().event_loop.bind(py).call0()?;
        if !event_loop.is_none() {
            event_loop.call_method1(intern!(py, "call_soon"), (slf.getattr(intern!(py, "drain"))?,))?;
        }
        Ok(())
    }
}

#[pymethods]
impl Port {
    /// `event_loop`: a weak reference. `ring`: the loop cannot watch an fd.
    #[new]
    fn py_new(py: Python<'_>, event_loop: Py<PyAny>, ring: bool) -> PyResult<Py<Port>> {
        let ringer: Arc<Ringer> = Arc::default();
        let queue = if ring {
            dispatch::ensure(py, Role::Results);
            let bell = ringer.clone();
            // A drain that leaves events behind rings too, once per chunk.
            CompletionQueue::with_notify(Box::new(move || {
                if !bell.rung.swap(true, Ordering::AcqRel) {
                    dispatch::push(Item::Ring(Bell(bell.clone())));
                }
            }))
        } else {
            CompletionQueue::new().map_err(|e| crate::error::raise(py, &e))?
        };
        let port = Py::new(py, Port { queue, event_loop, state: Mutex::default(), ringer: ringer.clone() })?;
        if ring {
            let weak = py.import("weakref")?.call_method1("ref", (&port,))?;
            let _ = ringer.port.set(Late::new(weak.unbind()));
        }
        Ok(port)
    }

    /// The eventfd, for `add_reader`.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.queue.fd().map_err(|e| crate::error::raise(py, &e))
    }

    /// What the loop calls when the fd is readable. Taking the events here keeps the loop from calling it again before the drain.
    fn wake(slf: &Bound<'_, Port>) -> PyResult<()> {
        let this = slf.get();
        // Who drains looks into the queue itself.
        if this.ringer.rung.load(Ordering::Acquire) || !this.take() {
            return Ok(());
        }
        Self::soon(slf)
    }

    /// Delivers finished tasks to their awaiters.
    fn drain(slf: &Bound<'_, Port>) -> PyResult<()> {
        late::collect(slf.py());
        slf.get().ringer.rung.store(false, Ordering::Release);
        Self::deliver(slf)
    }

    /// Tasks that this loop awaits.
    fn __len__(&self) -> usize {
        let state = self.lock();
        state.waiting.len() - state.free.len() + state.ready.len() + usize::from(state.growing.is_some())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        for awaitable in state.waiting.iter().flatten() {
            visit.call(awaitable)?;
        }
        for awaitable in state.ready.iter().map(|r| &r.0).chain(state.growing.iter().map(|g| &g.0)) {
            visit.call(awaitable)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            let old = std::mem::take(&mut *state);
            drop(state);
            drop(old);
        }
    }
}

/// What a coroutine of `run` awaits.
#[pyclass(name = "_Awaitable", module = "offloop._native", frozen)]
pub(crate) struct PyAwaitable {
    task: OnceLock<Task>,
    outcome: OnceLock<Outcome>,
    /// The result is the raw reply of a worker process.
    is_reply: bool,
    event_loop: Py<PyAny>,
    state: Mutex<AwaitState>,
}

#[derive(Default)]
struct AwaitState {
    host: Option<Returned>,
    /// Function and context.
    callbacks: Vec<(Py<PyAny>, Py<PyAny>)>,
    /// The awaiting task was told to wait: asyncio's own flag.
    blocking: bool,
    /// Told of the end of a task that is traced, once.
    teller: Option<Py<PyAny>>,
}

impl PyAwaitable {
    fn new(event_loop: Py<PyAny>, is_reply: bool) -> PyAwaitable {
        PyAwaitable { task: OnceLock::new(), outcome: OnceLock::new(), is_reply, event_loop, state: Mutex::default() }
    }

    fn set_task(&self, task: Task) {
        // Set once per awaitable, by whoever submitted it.
        let _ = self.task.set(task);
    }

    pub(crate) fn set_host(&self, outcome: Returned) {
        self.lock().host = Some(outcome);
    }

    pub(crate) fn set_teller(&self, teller: Py<PyAny>) {
        self.lock().teller = Some(teller);
    }

    /// Tells the tracer. The task is done.
    fn tell(slf: &Bound<'_, Self>) -> PyResult<()> {
        let teller = slf.get().lock().teller.take();
        teller.map_or(Ok(()), |teller| teller.bind(slf.py()).call1((slf,)).map(drop))
    }

    /// Nobody waits for it any more.
    fn is_cancelled(&self) -> bool {
        matches!(self.outcome.get(), Some(Outcome::Cancelled(_)))
    }

    fn lock(&self) -> MutexGuard<'_, AwaitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome came: steps whoever awaits it.
    fn finish(slf: &Bound<'_, Self>, outcome: Outcome) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        // Not cancelled: its caller has looked, and no Python code ran since.
        let _ = this.outcome.set(outcome.for_await(py));
        // What it raises is raised when everybody who waits was stepped.
        let told = Self::tell(slf);
        let callbacks = std::mem::take(&mut this.lock().callbacks);
        let run = intern!(py, "run");
        for (callback, context) in callbacks {
            if let Err(e) = fast::call_method(run, [context.bind(py), callback.bind(py), slf.as_any()]) {
                if !e.is_instance_of::<PyException>(py) {
                    return Err(e);
                }
                let about = PyDict::new(py);
                about.set_item("message", "exception in a callback of an offloop task")?;
                about.set_item("exception", e.value(py))?;
                this.event_loop.bind(py).call_method1("call_exception_handler", (about,))?;
            }
        }
        told
    }

    fn call_soon(slf: &Bound<'_, Self>, callback: &Bound<'_, PyAny>, context: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let kwargs = PyDict::new(py);
        kwargs.set_item("context", context)?;
        slf.get().event_loop.bind(py).call_method("call_soon", (callback, slf), Some(&kwargs)).map(drop)
    }
}

#[pymethods]
impl PyAwaitable {
    #[getter(_asyncio_future_blocking)]
    fn blocking(&self) -> bool {
        self.lock().blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, value: bool) {
        self.lock().blocking = value;
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    #[pyo3(signature = (r#fn, *, context = None))]
    fn add_done_callback(slf: &Bound<'_, Self>, r#fn: Bound<'_, PyAny>, context: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let py = slf.py();
        let context = match context {
            Some(context) => context,
            None => crate::hosted::copy_context(py)?.into_bound(py),
        };
        if slf.get().outcome.get().is_some() {
            return Self::call_soon(slf, &r#fn, &context);
        }
        slf.get().lock().callbacks.push((r#fn.unbind(), context.unbind()));
        Ok(())
    }

    fn remove_done_callback(slf: &Bound<'_, Self>, r#fn: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = slf.py();
        let callbacks = std::mem::take(&mut slf.get().lock().callbacks);
        let before = callbacks.len();
        let mut kept = Vec::with_capacity(before);
        for (callback, context) in callbacks {
            if !callback.bind(py).eq(r#fn)? {
                kept.push((callback, context));
            }
        }
        let removed = before - kept.len();
        slf.get().lock().callbacks.extend(kept);
        Ok(removed)
    }

    /// Stops the task, started or not, and wakes the awaiter with asyncio's CancelledError.
    #[pyo3(signature = (msg = None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        let this = slf.get();
        if this.outcome.get().is_some() {
            return Ok(false);
        }
        let decided = this.task.get().is_some_and(Task::cancel);
        let class = py.import("asyncio")?.getattr("CancelledError")?;
        let args = msg.map_or_else(|| Ok(PyTuple::empty(py)), |m| PyTuple::new(py, [m]))?;
        let exception = class.call1(args)?.cast_into()?.unbind();
        let _ = this.outcome.set(Outcome::Cancelled(exception));
        // The loop may end before it hears of that.
        let told = if decided { Self::tell(slf) } else { Ok(()) };
        let callbacks = std::mem::take(&mut this.lock().callbacks);
        for (callback, context) in callbacks {
            Self::call_soon(slf, callback.bind(py), context.bind(py))?;
        }
        told.map(|()| true)
    }

    fn cancelled(&self) -> bool {
        self.is_cancelled()
    }

    fn done(&self) -> bool {
        self.outcome.get().is_some()
    }

    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.outcome.get() {
            Some(outcome) => outcome.get(py),
            None => Err(crate::error::raise(py, &Error::new(ErrorKind::Empty, "the task is not done yet"))),
        }
    }

    fn exception(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.outcome.get() {
            Some(Outcome::Error(e)) => Ok(Some(e.clone_ref(py).into_any())),
            Some(Outcome::Value(_)) => Ok(None),
            _ => self.result(py).map(Some),
        }
    }

    /// As of a Future.
    fn _trace(&self) -> Option<Times> {
        future::times(self.task.get()?)
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let Some(outcome) = slf.get().outcome.get() else {
            slf.get().lock().blocking = true;
            return Ok(slf.clone().into_any().unbind());
        };
        let value = outcome.get(py)?;
        // A tuple or an exception as the value would be taken apart.
        Err(match value.bind(py).is_instance_of::<PyTuple>() || value.bind(py).is_instance_of::<pyo3::exceptions::PyBaseException>() {
            true => PyStopIteration::new_err((value,)),
            false => PyStopIteration::new_err(value),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Some(outcome) = self.outcome.get() {
            outcome.traverse(&visit)?;
        }
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        for (callback, context) in &state.callbacks {
            visit.call(callback)?;
            visit.call(context)?;
        }
        visit.call(&state.teller)?;
        visit_returned(&state.host, &visit)
    }

    fn __clear__(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            let old = std::mem::take(&mut *state);
            drop(state);
            drop(old);
        }
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Port>()?;
    m.add_class::<PyAwaitable>()
}
