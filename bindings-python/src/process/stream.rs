//! The host's side of a stream: what a generator in a worker yields, for a thread that waits or an event loop.

use super::reply;
use crate::error::raise;
use crate::future::PyFuture;
use crate::wait;
use offloop::Value;
use offloop::error::Result;
use offloop::pool::{Stream, frame};
use offloop::sys::eventfd::EventFd;
use offloop::sys::{fork, futex};
use pyo3::exceptions::{PyException, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bumped by each frame and by the outcome.
#[derive(Default)]
struct News {
    count: AtomicU32,
    /// There once an event loop has asked for it.
    fd: OnceLock<EventFd>,
}

impl News {
    fn tell(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.count, u32::MAX);
        if let Some(fd) = self.fd.get() {
            fd.signal();
        }
    }
}

/// A stream whose task is yet to be submitted.
pub(super) struct Opening {
    pub(super) stream: Stream,
    news: Arc<News>,
}

impl Opening {
    pub(super) fn new() -> Opening {
        let news = Arc::<News>::default();
        let told = Arc::clone(&news);
        Opening { stream: Stream::new(Box::new(move || told.tell())), news }
    }

    pub(super) fn of(self, py: Python<'_>, task: offloop::Task) -> PyResult<Bound<'_, PyStream>> {
        let news = Arc::clone(&self.news);
        task.on_done_inline(move |_| news.tell());
        let future = PyFuture::of_process(py, task)?.unbind();
        let (stream, news) = (self.stream, self.news);
        let state = Mutex::new(State { frame: None, records: VecDeque::new(), again: Vec::new(), is_over: false });
        Bound::new(py, PyStream { stream, news, future, state, stopped: AtomicBool::new(false), epoch: fork::epoch() })
    }
}

/// The frame that is open, and what of it was not read.
struct State {
    frame: Option<Arc<Vec<u8>>>,
    records: VecDeque<Range<usize>>,
    /// Records whose reading was interrupted, the first one last: they come before the others.
    again: Vec<(Arc<Vec<u8>>, Range<usize>)>,
    /// The outcome was told.
    is_over: bool,
}

enum Step {
    Record(Arc<Vec<u8>>, Range<usize>),
    NotYet(u32),
    End,
}

/// The native half of `offloop.Stream`.
#[pyclass(name = "_Stream", module = "offloop._native", frozen, weakref)]
pub(crate) struct PyStream {
    stream: Stream,
    news: Arc<News>,
    pub(super) future: Py<PyFuture>,
    state: Mutex<State>,
    stopped: AtomicBool,
    epoch: u64,
}

impl PyStream {
    // Held for a few instructions, never while Python code may run.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) -> Result<Step> {
        // A forked child's locks may be held by threads that it does not have; its task is done there.
        if !fork::is_current(self.epoch) {
            return Ok(Step::End);
        }
        let mut state = self.lock();
        loop {
            if self.stopped.load(Ordering::Acquire) {
                (state.frame, state.records, state.again) = (None, VecDeque::new(), Vec::new());
                return Ok(Step::End);
            }
            if let Some((frame, range)) = state.again.pop() {
                return Ok(Step::Record(frame, range));
            }
            if let Some(range) = state.records.pop_front() {
                let frame = state.frame.clone().expect("records lie in a frame");
                return Ok(Step::Record(frame, range));
            }
            // Before the look: what comes after it changes this.
            let seen = self.news.count.load(Ordering::SeqCst);
            let is_done = self.future.get().is_done();
            state.frame = None;
            let Some(frame) = self.stream.take() else {
                return Ok(if is_done { Step::End } else { Step::NotYet(seen) });
            };
            // Its worker may still write it.
            let frame = match frame {
                Value::Buffer(buffer) => buffer.to_vec()?,
                other => other.into_bytes()?.into_vec(),
            };
            state.records = frame::records(&frame)?.into();
            state.frame = Some(Arc::new(frame));
        }
    }

    /// The next value; None at the end, `Err(count)` if there is nothing yet.
    fn advance<'py>(&self, py: Python<'py>) -> PyResult<std::result::Result<Option<Bound<'py, PyAny>>, u32>> {
        match self.step().map_err(|e| raise(py, &e))? {
            Step::Record(frame, range) => match reply::record(py, &frame[range.clone()]) {
                Err(e) if !e.is_instance_of::<PyException>(py) => {
                    // Not the task's, as KeyboardInterrupt of a signal handler. Who goes on gets the value.
                    if fork::is_current(self.epoch) {
                        self.lock().again.push((frame, range));
                    }
                    Err(e)
                }
                read => read.map(|value| Ok(Some(value))),
            },
            Step::NotYet(seen) => Ok(Err(seen)),
            Step::End => Ok(Ok(None)),
        }
    }

    /// What the end is: the error of the function once, and what it returned; nothing of a stream that was stopped.
    fn end<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.stopped.load(Ordering::Acquire) {
            return Ok(None);
        }
        if fork::is_current(self.epoch) && std::mem::replace(&mut self.lock().is_over, true) {
            return Ok(None);
        }
        let outcome = PyFuture::outcome_of(self.future.bind(py));
        if outcome.is_err() && !self.future.get().has_outcome() && fork::is_current(self.epoch) {
            // Interrupted, so that it was not told.
            self.lock().is_over = false;
        }
        outcome.map(|value| Some(value.into_bound(py)))
    }
}

#[pymethods]
impl PyStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Waits for the next value. Ctrl-C ends the wait.
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        loop {
            match self.advance(py)? {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {
                    let returned = self.end(py)?;
                    // In a tuple: a result that is one would be taken for all arguments.
                    let args = PyTuple::new(py, returned.filter(|value| !value.is_none()))?;
                    return Err(PyStopIteration::new_err(args.unbind()));
                }
                Err(mut seen) => {
                    wait::until(py, None, |slice| {
                        futex::wait(&self.news.count, seen, Some(slice));
                        let now = self.news.count.load(Ordering::SeqCst);
                        Ok(std::mem::replace(&mut seen, now) != now)
                    })?;
                }
            }
        }
    }

    /// `(value,)`; `()` at the end, and None if there is nothing yet.
    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        match self.advance(py)? {
            Ok(Some(value)) => PyTuple::new(py, [value]).map(Some),
            Ok(None) => {
                self.end(py)?;
                Ok(Some(PyTuple::empty(py)))
            }
            Err(_) => Ok(None),
        }
    }

    /// Becomes readable when there is something, after a `_clear` that came before a `_take` that found nothing.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        if self.news.fd.get().is_none() {
            let fd = EventFd::new().map_err(|e| raise(py, &e))?;
            // What was told before is there to be taken.
            fd.signal();
            let _ = self.news.fd.set(fd);
        }
        Ok(self.news.fd.get().expect("set above").fd().as_raw_fd())
    }

    fn _clear(&self) {
        if let Some(fd) = self.news.fd.get() {
            fd.clear();
        }
    }

    /// Nobody takes any more: the task is cancelled. A function that runs hears of it at its next value, and when it looks; the worker of one
    /// that runs on is ended after the pool's grace.
    fn _stop(&self) {
        if !fork::is_current(self.epoch) || self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        self.future.get().cancel_task();
        self.stream.stop();
        // Who waits for a value waits for nothing.
        self.news.tell();
    }

    /// The task: its outcome after the last value.
    #[getter]
    fn _future(&self, py: Python<'_>) -> Py<PyFuture> {
        self.future.clone_ref(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.future)
    }
}

impl Drop for PyStream {
    fn drop(&mut self) {
        if fork::is_current(self.epoch) && !self.future.get().is_done() {
            self._stop();
        }
    }
}
