//! `Future`: the outcome of one task, with the protocol of `concurrent.futures.Future`.
//!
//! Waiting happens in native code without the GIL, and nothing is made for it beforehand: the condition object, the list
//! of waiters and the list of callbacks exist only for a future that somebody asked them of.
//!
//! The stdlib's `wait` and `as_completed` reach into `_condition`, `_waiters` and `_state`. They hold the condition while
//! they look, and expect that nothing changes meanwhile. A native task does not ask, so once `_condition` was handed out,
//! `_state` says what was *published* under it, while `done()` and `result()` say what is.
//!
//! The result of a task is read by the first thread that asks for it. That may run code of the user (unpickling), which may take long, ask for
//! this very future, be interrupted by a signal handler, or panic: [`State::reading`] says who reads, the others wait for their turn as long as
//! they like, and what was interrupted is kept in [`State::unread`] for whoever asks next.

use crate::dispatch::{self, Item, Pending, Role};
use crate::error::{self, invalid, raise};
use crate::late;
use crate::process::{self, Reply};
use crate::value;
use crate::wait;
use offloop::error::{Error, ErrorKind};
use offloop::sys::{fork, futex};
use offloop::{Task, Value};
use pyo3::exceptions::{PyBaseException, PyException, PyRuntimeError, PyStopIteration};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyFunction, PyList, PyType};
use pyo3::{PyTraverseError, PyVisit};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What a callable returned or raised.
pub(crate) type Returned = Result<Py<PyAny>, Py<PyBaseException>>;

/// What a task came to, in the interpreter's terms.
pub(crate) enum Outcome {
    Value(Py<PyAny>),
    Error(Py<PyBaseException>),
    Cancelled(Py<PyBaseException>),
}

impl Outcome {
    pub(crate) fn of_error(py: Python<'_>, error: &Error) -> Outcome {
        let exception = raise(py, error).into_value(py);
        if error.kind() == ErrorKind::Cancelled { Outcome::Cancelled(exception) } else { Outcome::Error(exception) }
    }

    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Outcome::Value(v) => Ok(v.clone_ref(py)),
            Outcome::Error(e) | Outcome::Cancelled(e) => Err(PyErr::from_value(e.bind(py).clone().into_any())),
        }
    }

    /// What an `await` raises. A StopIteration would end the coroutine as if it had returned, so it is the cause of a RuntimeError,
    /// as in asyncio.
    pub(crate) fn for_await(self, py: Python<'_>) -> Outcome {
        match self {
            Outcome::Error(e) if e.bind(py).is_instance_of::<PyStopIteration>() => {
                let error = PyRuntimeError::new_err("the task raised StopIteration");
                error.set_cause(py, Some(PyErr::from_value(e.into_bound(py).into_any())));
                Outcome::Error(error.into_value(py))
            }
            other => other,
        }
    }

    /// The collector looks into it.
    fn is_collected(&self, py: Python<'_>) -> bool {
        match self {
            Outcome::Value(v) => {
                // SAFETY: the type of an object.
                let flags = unsafe { ffi::PyType_GetFlags(v.bind(py).get_type().as_type_ptr()) };
                flags & ffi::Py_TPFLAGS_HAVE_GC != 0
            }
            Outcome::Error(_) | Outcome::Cancelled(_) => true,
        }
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Outcome::Value(v) => visit.call(v),
            Outcome::Error(e) | Outcome::Cancelled(e) => visit.call(e),
        }
    }
}

/// What core says that a task came to, not read yet.
pub(crate) enum Unread {
    Value(Value),
    /// Of a worker process.
    Reply(Reply),
    Error(Error),
}

impl Unread {
    pub(crate) fn new(result: Result<Value, Error>, is_reply: bool) -> Unread {
        match result {
            Ok(reply) if is_reply => Unread::Reply(Reply::Raw(reply)),
            Ok(value) => Unread::Value(value),
            Err(e) => Unread::Error(e),
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Unread::Error(e) if e.kind() == ErrorKind::Cancelled)
    }

    /// The outcome; `host`: what a callable returned or raised, if it was one. A panic is one, too.
    ///
    /// # Errors
    /// What is no `Exception` and came from the reading itself, as KeyboardInterrupt of a signal handler: not the task's. It can be read again.
    pub(crate) fn read(&mut self, py: Python<'_>, host: Option<Returned>) -> PyResult<Outcome> {
        let read = catch_unwind(AssertUnwindSafe(|| match (&mut *self, host) {
            (Unread::Error(e), Some(Err(raised))) if e.kind() == ErrorKind::TaskFailed => Ok(Outcome::Error(raised)),
            (Unread::Error(e), _) => Ok(Outcome::of_error(py, e)),
            (_, Some(Ok(v))) => Ok(Outcome::Value(v)),
            (_, Some(Err(raised))) => Ok(Outcome::Error(raised)),
            (Unread::Value(v), None) => {
                value::prepare(py, v)?;
                Ok(match value::to_python(py, std::mem::take(v)) {
                    Ok(v) => Outcome::Value(v.unbind()),
                    Err(e) => Outcome::Error(e.into_value(py)),
                })
            }
            (Unread::Reply(reply), None) => reply.read(py),
        }));
        match read {
            Ok(Err(e)) if e.is_instance_of::<PyException>(py) => Ok(Outcome::Error(e.into_value(py))),
            Ok(read) => read,
            Err(panic) => Ok(Outcome::of_error(py, &panicked(&*panic))),
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::new(ErrorKind::Panic, "reading the result panicked").with("panic", text.unwrap_or("?"))
}

/// What `_trace.Tracer` reads.
pub(crate) type Times = (f64, f64, f64, &'static str, Option<usize>);

pub(crate) fn times(task: &Task) -> Option<Times> {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let t = task.trace()?;
    Some((seconds(t.submitted_unix_ns), seconds(t.queue_ns), seconds(t.run_ns), t.outcome.name(), t.worker))
}

pub(crate) fn visit_returned(returned: &Option<Returned>, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
    match returned {
        Some(Ok(value)) => visit.call(value),
        Some(Err(raised)) => visit.call(raised),
        None => Ok(()),
    }
}

/// The outcome of one task. `submit` makes it.
///
/// It has the protocol of `concurrent.futures.Future` (and passes for one), can be awaited, and can be killed:
/// `cancel()` stops a queued task only, `kill()` a running one too. In a forked child a future of the parent that was not done is
/// done with ForkedError; its callbacks stay with the parent.
#[pyclass(name = "Future", module = "offloop", frozen, weakref)]
pub(crate) struct PyFuture {
    /// Set once, right after the task was accepted.
    task: OnceLock<Task>,
    /// Set by whoever has [`State::reading`].
    outcome: OnceLock<Outcome>,
    /// Times that a thread has ended reading for which others wait: what they sleep on.
    turns: AtomicU32,
    /// The result is the raw reply of a worker process.
    is_reply: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the callable returned or raised, until core says that it counts.
    host: Option<Returned>,
    reading: Option<Reading>,
    /// Taken from the task, and nobody reads it.
    unread: Option<Box<Unread>>,
    callbacks: Vec<Py<PyAny>>,
    /// Callbacks by which asyncio hears of the end: they only ring a loop.
    loops: Vec<Py<PyAny>>,
    /// Held while either wait: the exit of the interpreter waits for them.
    pending: Option<Pending>,
    /// A native callback will bring this future to a Python thread when it is done.
    watched: bool,
    stdlib: Option<Box<Stdlib>>,
}

/// A thread makes the outcome.
#[derive(Clone, Copy)]
struct Reading {
    thread: u64,
    epoch: u64,
    /// What it will come to.
    is_cancelled: bool,
    /// Somebody sleeps until it has ended.
    is_awaited: bool,
    /// Then the end of the task is to be announced.
    is_announced: bool,
}

/// The number of this thread, which it keeps in a forked child.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    if NUMBER.get() == 0 {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.get()
}

/// Where the outcome of a task is that is done.
enum Look<'a> {
    There(&'a Outcome),
    /// Another thread makes it: `turns` changes when that has ended.
    Elsewhere(u32),
    /// This thread does, further up its stack.
    Here,
}

/// What its thread has of a [`Reading`]: ends it, however that comes to be.
struct Turn<'a, 'py>(&'a Bound<'py, PyFuture>);

impl Drop for Turn<'_, '_> {
    fn drop(&mut self) {
        let this = self.0.get();
        let reading = this.lock().reading.take();
        if reading.is_some_and(|r| r.is_awaited) {
            this.turns.fetch_add(1, Ordering::SeqCst);
            futex::wake(&this.turns, u32::MAX);
        }
        if reading.is_some_and(|r| r.is_announced) {
            dispatch::push(Item::Done(self.0.clone().unbind()));
        }
    }
}

struct Stdlib {
    epoch: u64,
    condition: Py<PyAny>,
    waiters: Py<PyList>,
    published: bool,
}

impl State {
    /// A forked child does not touch what it inherited: threads that it does not have may hold the condition for ever. The task is
    /// done there, so nobody waits for the new one.
    fn stdlib(&self) -> Option<&Stdlib> {
        self.stdlib.as_deref().filter(|s| fork::is_current(s.epoch))
    }

    /// Who reads. A forked child has none of its parent's threads but the one that forked.
    fn reading(&mut self) -> Option<&mut Reading> {
        self.reading.as_mut().filter(|r| fork::is_current(r.epoch) || r.thread == this_thread())
    }
}

impl PyFuture {
    pub(crate) fn pending() -> PyFuture {
        PyFuture::new(OnceLock::new(), false)
    }

    pub(crate) fn of(task: Task) -> PyFuture {
        PyFuture::new(OnceLock::from(task), false)
    }

    /// Of a task of a process pool. Most of these never refer to anything that could refer to them, and there are many: the collector
    /// leaves them out until one does. (What has callbacks is held by its task, until they were called and are gone.)
    pub(crate) fn of_process(py: Python<'_>, task: Task) -> PyResult<Bound<'_, PyFuture>> {
        let future = Bound::new(py, PyFuture::new(OnceLock::from(task), true))?;
        // SAFETY: a new object, which the collector tracks; `track` comes before it gets a reference that could close a cycle.
        unsafe { ffi::PyObject_GC_UnTrack(future.as_ptr().cast()) };
        Ok(future)
    }

    /// The collector looks at this object from here on.
    fn track(slf: &Bound<'_, Self>) {
        // SAFETY: an object of a type that the collector knows.
        unsafe {
            if ffi::PyObject_GC_IsTracked(slf.as_ptr()) == 0 {
                ffi::PyObject_GC_Track(slf.as_ptr().cast());
            }
        }
    }

    fn new(task: OnceLock<Task>, is_reply: bool) -> PyFuture {
        PyFuture { task, outcome: OnceLock::new(), turns: AtomicU32::new(0), is_reply, state: Mutex::default() }
    }

    pub(crate) fn set_task(&self, task: Task) {
        // Set once per future, by whoever submitted it.
        let _ = self.task.set(task);
    }

    pub(crate) fn set_host(&self, outcome: Returned) {
        self.lock().host = Some(outcome);
    }

    // Held for a few instructions, never while Python code may run.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self) -> &Task {
        self.task.get().expect("a future is handed out after its task was accepted")
    }

    pub(crate) fn is_done(&self) -> bool {
        self.task.get().is_some_and(Task::is_done)
    }

    /// What a task that is done came to.
    pub(crate) fn outcome_of(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::wait(slf, None)?.get(slf.py())
    }

    /// The outcome was made, and stays.
    pub(crate) fn has_outcome(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// Cancels the task, started or not. Who hears of the end is told by another thread.
    pub(crate) fn cancel_task(&self) -> bool {
        self.task().cancel()
    }

    /// What core says, taken once.
    fn take_unread(&self, state: &mut State) -> Unread {
        match state.unread.take() {
            Some(unread) => *unread,
            None => {
                let result = self.task().try_take();
                // Taken and neither made an outcome nor put back.
                let lost = || Err(Error::new(ErrorKind::Panic, "reading the result panicked"));
                Unread::new(result.unwrap_or_else(lost), self.is_reply)
            }
        }
    }

    /// The outcome of a task that is done, made here unless somebody else does.
    ///
    /// # Errors
    /// As [`Unread::read`].
    fn look<'a>(slf: &'a Bound<'_, Self>) -> PyResult<Look<'a>> {
        let (py, this) = (slf.py(), slf.get());
        late::collect(py);
        if let Some(outcome) = this.outcome.get() {
            return Ok(Look::There(outcome));
        }
        let thread = this_thread();
        let (mut unread, host) = {
            let mut state = this.lock();
            if let Some(reading) = state.reading() {
                if reading.thread == thread {
                    return Ok(Look::Here);
                }
                reading.is_awaited = true;
                return Ok(Look::Elsewhere(this.turns.load(Ordering::SeqCst)));
            }
            let unread = this.take_unread(&mut state);
            let is_cancelled = unread.is_cancelled();
            state.reading = Some(Reading { thread, epoch: fork::epoch(), is_cancelled, is_awaited: false, is_announced: false });
            (unread, state.host.take())
        };
        let _turn = Turn(slf);
        match unread.read(py, host) {
            Ok(outcome) => Self::set_outcome(slf, outcome),
            Err(e) => {
                this.lock().unread = Some(Box::new(unread));
                return Err(e);
            }
        }
        Ok(Look::There(this.outcome.get().expect("set above")))
    }

    fn set_outcome(slf: &Bound<'_, Self>, outcome: Outcome) {
        if outcome.is_collected(slf.py()) {
            Self::track(slf);
        }
        // Set once: by whoever reads, of whom there is one at a time.
        let _ = slf.get().outcome.set(outcome);
    }

    /// Makes the outcome, for nobody that could be told of a KeyboardInterrupt: it is the outcome then. False if somebody else is about to make
    /// it, who has it announced.
    fn settle(slf: &Bound<'_, Self>) -> bool {
        loop {
            match Self::look(slf) {
                Ok(Look::There(_)) => return true,
                Ok(Look::Elsewhere(_) | Look::Here) => {
                    dispatch::ensure(slf.py(), Role::Results);
                    if let Some(reading) = slf.get().lock().reading() {
                        reading.is_announced = true;
                        return false;
                    }
                }
                Err(e) => {
                    let unread = slf.get().lock().unread.take();
                    Self::set_outcome(slf, Outcome::Error(e.into_value(slf.py())));
                    drop(unread);
                }
            }
        }
    }

    /// Whether a task that is done was cancelled. Reads nothing: what there is to read was not.
    fn was_cancelled(&self) -> bool {
        if let Some(outcome) = self.outcome.get() {
            return matches!(outcome, Outcome::Cancelled(_));
        }
        let mut state = self.lock();
        if let Some(reading) = state.reading() {
            return reading.is_cancelled;
        }
        let unread = self.take_unread(&mut state);
        let is_cancelled = unread.is_cancelled();
        state.unread = Some(Box::new(unread));
        is_cancelled
    }

    fn wait<'a>(slf: &'a Bound<'_, Self>, timeout: Option<Duration>) -> PyResult<&'a Outcome> {
        let (py, this) = (slf.py(), slf.get());
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        if !this.is_done() {
            let task = this.task();
            let _waits = if timeout.is_none() { task.begin_wait().map_err(|e| raise(py, &e))? } else { None };
            if !wait::until(py, timeout, |slice| Ok(task.wait_slice(slice)))? {
                return Err(wait::timed_out(py, "the task is not done yet", timeout));
            }
        }
        loop {
            let seen = match Self::look(slf)? {
                Look::There(outcome) => return Ok(outcome),
                Look::Elsewhere(seen) => seen,
                // Whatever time there is: it cannot end before this call has.
                Look::Here => return Err(raise(py, &Error::invalid("the result is being read by this very thread"))),
            };
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            let came = wait::until(py, left, |slice| {
                futex::wait(&this.turns, seen, Some(slice));
                Ok(this.turns.load(Ordering::SeqCst) != seen)
            })?;
            if !came {
                return Err(wait::timed_out(py, "the result is not read yet", timeout));
            }
        }
    }

    /// Makes sure that a Python thread hears of the end.
    fn watch(slf: &Bound<'_, Self>) {
        dispatch::ensure(slf.py(), Role::Results);
        let this = slf.clone().unbind();
        slf.get().task().on_done_inline(move |_| {
            // A worker that finishes a callable tells the future itself, on its own Python thread.
            if !dispatch::worker_tells() {
                dispatch::push(Item::Done(this));
            }
        });
    }

    /// Tells the stdlib's waiters and event loops. The task is done. Harmless when called twice. True if callbacks of the user are
    /// left; `told` gets the first KeyboardInterrupt or SystemExit.
    fn announce(slf: &Bound<'_, Self>, told: &mut PyResult<()>) -> bool {
        let py = slf.py();
        let is_asked = {
            let state = slf.get().lock();
            !state.loops.is_empty() || state.stdlib().is_some_and(|s| !s.published)
        };
        // The stdlib's waiters tell results from errors; and what is long is copied here, and not on the thread of a loop.
        if is_asked && !Self::settle(slf) {
            return false;
        }
        let (condition, loops) = {
            let mut state = slf.get().lock();
            let condition = state.stdlib().filter(|s| !s.published).map(|s| s.condition.clone_ref(py));
            (condition, std::mem::take(&mut state.loops))
        };
        if let Some(condition) = condition
            && let Err(e) = Self::publish(slf, condition.bind(py))
        {
            e.write_unraisable(py, Some(slf.as_any()));
        }
        call_all(slf, loops, told);
        let mut state = slf.get().lock();
        let left = !state.callbacks.is_empty();
        let pending = if left { None } else { state.pending.take() };
        drop(state);
        drop(pending);
        left
    }

    /// Announces the end and calls the callbacks. The task is done. Harmless when called twice.
    ///
    /// # Errors
    /// The first KeyboardInterrupt or SystemExit of a callback; the others were called nevertheless.
    pub(crate) fn tell(slf: &Bound<'_, Self>) -> PyResult<()> {
        let mut told = Ok(());
        if Self::announce(slf, &mut told) {
            let (callbacks, _pending) = {
                let mut state = slf.get().lock();
                (std::mem::take(&mut state.callbacks), state.pending.take())
            };
            call_all(slf, callbacks, &mut told);
        }
        told
    }

    fn publish(slf: &Bound<'_, Self>, condition: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        condition.call_method0("__enter__")?;
        let waiters = {
            let mut state = slf.get().lock();
            // Once, and not by whoever waited for the condition meanwhile: a waiter counts what it is told.
            state.stdlib.as_mut().and_then(|s| (!std::mem::replace(&mut s.published, true)).then(|| s.waiters.clone_ref(py)))
        };
        let method = match slf.get().outcome.get().expect("made before it is published") {
            Outcome::Value(_) => "add_result",
            Outcome::Error(_) => "add_exception",
            Outcome::Cancelled(_) => "add_cancelled",
        };
        let told = waiters.map_or(Ok(()), |w| w.bind(py).iter().try_for_each(|w| w.call_method1(method, (slf,)).map(drop)));
        let notified = condition.call_method0("notify_all").map(drop);
        condition.call_method1("__exit__", (py.None(), py.None(), py.None()))?;
        told.and(notified)
    }
}

/// Whether a callback is the one by which asyncio chains one of its futures to ours (`wrap_future`, and so `await future` and
/// `run_in_executor`). It calls `call_soon_threadsafe` and returns, so it need not wait behind callbacks of the user.
fn rings_a_loop(callback: &Bound<'_, PyAny>) -> bool {
    let py = callback.py();
    let module = callback.cast_exact::<PyFunction>().ok().and_then(|f| f.getattr(intern!(py, "__module__")).ok());
    module.is_some_and(|m| m.eq(intern!(py, "asyncio.futures")).unwrap_or(false))
}

/// Calls every one, whatever the others raise; `told` gets the first error that is the caller's.
fn call_all(future: &Bound<'_, PyFuture>, callbacks: Vec<Py<PyAny>>, told: &mut PyResult<()>) {
    for callback in callbacks {
        if let Err(e) = call_callback(future, callback.bind(future.py()))
            && told.is_ok()
        {
            *told = Err(e);
        }
    }
}

/// As the stdlib does: an `Exception` of a callback is logged and stops nobody; KeyboardInterrupt and SystemExit are the
/// caller's.
fn call_callback(future: &Bound<'_, PyFuture>, callback: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if let Err(e) = callback.call1((future,)) {
        if !e.is_instance_of::<PyException>(py) {
            return Err(e);
        }
        error::log(py, "error", "exception calling callback for %r", vec![future.clone().into_any()], &e);
    }
    Ok(())
}

/// Seconds of a Python call. Negative counts as zero, as in the stdlib.
pub(crate) fn seconds(py: Python<'_>, name: &'static str, value: Option<f64>) -> PyResult<Option<Duration>> {
    value
        .map(|s| {
            if s.is_nan() {
                return Err(invalid(py, "number of seconds is not a number", name, s));
            }
            // Longer than a Duration holds is for ever.
            Ok(Duration::try_from_secs_f64(s.max(0.0)).unwrap_or(Duration::MAX))
        })
        .transpose()
        .map(|d| d.filter(|d| *d != Duration::MAX))
}

#[pymethods]
impl PyFuture {
    /// The result, or raises what the task raised. Waits at most `timeout` seconds, then TimeoutError. Ctrl-C ends the wait, and the reading of
    /// a result that came: the next call reads it again. InvalidError inside code that reading this very result runs.
    #[pyo3(signature = (timeout = None))]
    fn result(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let timeout = seconds(slf.py(), "timeout", timeout)?;
        Self::wait(slf, timeout)?.get(slf.py())
    }

    /// What the task raised, or None. Raises CancelledError for a cancelled task.
    #[pyo3(signature = (timeout = None))]
    fn exception(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let timeout = seconds(py, "timeout", timeout)?;
        match Self::wait(slf, timeout)? {
            Outcome::Value(_) => Ok(None),
            Outcome::Error(e) => Ok(Some(e.clone_ref(py).into_any())),
            cancelled @ Outcome::Cancelled(_) => cancelled.get(py).map(Some),
        }
    }

    /// Cancels a task that was not started. True if it never will be.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.task().cancel_queued() {
            Self::tell(slf)?;
            return Ok(true);
        }
        Ok(this.is_done() && this.was_cancelled())
    }

    /// Stops a task, started or not. True if that decided its outcome, which is CancelledError.
    ///
    /// A running native op sees it within 1 MiB or 5 ms of work. A Python callable sees it by `current_task().cancelled()`;
    /// one that does not look runs on, unheard, and its thread counts as overdue until it returns.
    fn kill(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let killed = slf.get().task().cancel();
        if killed {
            Self::tell(slf)?;
        }
        Ok(killed)
    }

    /// Whether the task was cancelled or killed.
    fn cancelled(&self) -> bool {
        self.is_done() && self.was_cancelled()
    }

    /// Whether the task was started and has no outcome yet.
    fn running(&self) -> bool {
        self.task().is_running()
    }

    /// Whether there is an outcome.
    fn done(&self) -> bool {
        self.is_done()
    }

    /// Calls `fn(future)` when the task is done: at once if it is, else on the thread that ran a callable, or on the
    /// thread `offloop-callbacks`.
    pub(crate) fn add_done_callback(slf: &Bound<'_, Self>, r#fn: Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        let rings = rings_a_loop(&r#fn);
        if !rings && !this.is_done() {
            // Before the callback is there: the thread that announces cannot start another one while the interpreter exits.
            dispatch::ensure(slf.py(), Role::Callbacks);
        }
        let watch = {
            let mut state = this.lock();
            // Under the lock: whoever tells takes the list after the task is done.
            if this.is_done() {
                None
            } else {
                let list = if rings { &mut state.loops } else { &mut state.callbacks };
                list.push(r#fn.clone().unbind());
                state.pending.get_or_insert_with(Pending::new);
                Some(!std::mem::replace(&mut state.watched, true))
            }
        };
        match watch {
            None => return call_callback(slf, &r#fn),
            Some(true) => Self::watch(slf),
            Some(false) => {}
        }
        Ok(())
    }

    /// The latest value that the running task passed to `current_task().progress` or `ctx.progress`, once; else None.
    fn take_progress(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.task().take_progress() {
            Some(said) if self.is_reply => process::progress(py, said),
            Some(v) => Ok(value::to_python(py, v)?.unbind()),
            None => Ok(py.None()),
        }
    }

    /// Of a task that is traced and done: submit, waiting and running in seconds, outcome, place of the worker. Else None.
    fn _trace(&self) -> Option<Times> {
        times(self.task())
    }

    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("offloop._aio")?.call_method1("await_future", (slf,))?.call_method0("__await__")
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let this = slf.get();
        let what = if !this.is_done() {
            if this.task().is_running() { "running" } else { "pending" }.to_owned()
        } else {
            match Self::look(slf)? {
                Look::There(Outcome::Value(v)) => format!("finished returned {}", v.bind(py).get_type().name()?),
                Look::There(Outcome::Error(e)) => format!("finished raised {}", e.bind(py).get_type().name()?),
                Look::There(Outcome::Cancelled(_)) => "cancelled".to_owned(),
                Look::Elsewhere(_) | Look::Here => "finished".to_owned(),
            }
        };
        Ok(format!("<Future at {:#x} state={what}>", slf.as_ptr() as usize))
    }

    /// `isinstance(f, concurrent.futures.Future)` holds, and `Future` costs no Python-level `__init__`.
    #[getter]
    fn __class__(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        CLASS.import(py, "concurrent.futures", "Future").map(|c| c.clone().unbind())
    }

    #[classmethod]
    fn __class_getitem__<'py>(cls: &Bound<'py, PyType>, item: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        cls.py().import("types")?.call_method1("GenericAlias", (cls, item))
    }

    #[getter]
    fn _condition(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.get();
        if let Some(s) = this.lock().stdlib() {
            return Ok(s.condition.clone_ref(py));
        }
        Self::track(slf);
        let condition = py.import("threading")?.call_method0("Condition")?.unbind();
        let waiters = PyList::empty(py).unbind();
        let (watch, parents) = {
            let mut state = this.lock();
            let published = this.is_done();
            let parents = match state.stdlib() {
                Some(_) => None,
                None => state.stdlib.replace(Box::new(Stdlib { epoch: fork::epoch(), condition, waiters, published })),
            };
            (!published && !std::mem::replace(&mut state.watched, true), parents)
        };
        drop(parents);
        if watch {
            Self::watch(slf);
        }
        let state = this.lock();
        let stdlib = state.stdlib().expect("set above and never unset");
        Ok(stdlib.condition.clone_ref(py))
    }

    #[getter]
    fn _waiters(slf: &Bound<'_, Self>) -> PyResult<Py<PyList>> {
        Self::_condition(slf)?;
        let state = slf.get().lock();
        Ok(state.stdlib().expect("made by the line above").waiters.clone_ref(slf.py()))
    }

    #[getter]
    fn _state(slf: &Bound<'_, Self>) -> &'static str {
        let this = slf.get();
        let published = this.lock().stdlib().is_none_or(|s| s.published);
        if published && this.is_done() {
            return if this.was_cancelled() { "CANCELLED_AND_NOTIFIED" } else { "FINISHED" };
        }
        if this.task().is_running() { "RUNNING" } else { "PENDING" }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(outcome) = self.outcome.get() {
            outcome.traverse(&visit)?;
        }
        // Locked: another thread is inside a few instructions, and the object is reachable from it.
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        for callback in state.callbacks.iter().chain(&state.loops) {
            visit.call(callback)?;
        }
        visit_returned(&state.host, &visit)?;
        if let Some(s) = &state.stdlib {
            visit.call(&s.condition)?;
            visit.call(&s.waiters)?;
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

/// Announces the end of `future`, and leaves its callbacks to their thread.
pub(crate) fn announce_guarded(py: Python<'_>, future: Py<PyFuture>) {
    let mut told = Ok(());
    let left = PyFuture::announce(future.bind(py), &mut told);
    if let Err(e) = told {
        e.write_unraisable(py, Some(future.bind(py).as_any()));
    }
    if left {
        dispatch::push(Item::Call(future));
    }
}

/// Tells `future` on a Python thread, and survives whatever a callback does.
pub(crate) fn tell_guarded(py: Python<'_>, future: &Py<PyFuture>) {
    if let Err(e) = PyFuture::tell(future.bind(py)) {
        e.write_unraisable(py, Some(future.bind(py).as_any()));
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyFuture>()
}
