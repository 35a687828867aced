//! The worker's side: `python -m offloop.worker` runs [`PyWorkerProcess::run`].

use super::form::{self, BY_NAME, MAX_VALUES, Memory, Message, PyPayload, Reader, STREAM};
use super::give::give_all;
use super::reply::helper;
use super::shared::PySharedView;
use crate::error::raise;
use crate::hosted::{self, PyHost};
use crate::{copy, late, value, wait};
use offloop::Value;
use offloop::error::{Error, ErrorKind};
use offloop::ops::Control;
use offloop::pool::call::{self, Call, FAILED, PYTHON};
use offloop::pool::{Job, ProcessPool, Woken, Worker};
use offloop::value::ErrorValue;
use pyo3::exceptions::{PyBaseException, PySystemExit};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Functions that a worker keeps by their pickles; with one more it begins anew.
const MAX_FUNCTIONS: usize = 1024;
/// Tasks after which other threads of the worker have their turn, however short these are.
const TASKS_PER_TURN: u32 = 32;

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running task, for `current_task()`. It may outlive the task, whose number another one has then.
struct Running {
    worker: Worker,
    index: usize,
    over: AtomicBool,
}

impl Control for Running {
    fn check(&self) -> Result<(), Error> {
        if self.over.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Cancelled, "the task is over"));
        }
        match self.worker.is_cancelled(self.index) {
            None => Ok(()),
            Some(ErrorKind::Timeout) => Err(Error::new(ErrorKind::Timeout, "the task ran too long")),
            Some(_) => Err(Error::new(ErrorKind::Cancelled, "the task was cancelled")),
        }
    }

    /// What is too long for a lane is not told: a function has no use for that error.
    fn progress(&self, value: Value) -> Option<Value> {
        if !self.over.load(Ordering::Acquire)
            && let Ok(bytes) = call::encode_reply(Ok(value))
        {
            let _ = self.worker.progress(self.index, &bytes);
        }
        None
    }
}

/// Functions by their pickles.
#[derive(Default)]
struct Functions {
    all: HashMap<Vec<u8>, Py<PyAny>>,
    /// The one that was called last: most calls come in a row.
    last: Option<(Vec<u8>, Py<PyAny>)>,
}

impl Functions {
    fn get<'py>(&mut self, py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
        if let Some((known, function)) = &self.last
            && known == pickle
        {
            return Some(function.bind(py).clone());
        }
        let function = self.all.get(pickle)?.clone_ref(py);
        // What was last is in `all` as well, so no object is freed here.
        self.last = Some((pickle.to_vec(), function.clone_ref(py)));
        Some(function.into_bound(py))
    }
}

/// This process as a worker of a ProcessPool.
#[pyclass(name = "_WorkerProcess", module = "offloop._native", frozen)]
pub(super) struct PyWorkerProcess {
    worker: Worker,
    functions: Mutex<Functions>,
    /// One thread waits at a time; the next one sees what it leaves.
    waits: Mutex<()>,
}

#[pymethods]
impl PyWorkerProcess {
    /// None when this process was not started by a pool.
    #[staticmethod]
    fn attach(py: Python<'_>) -> PyResult<Option<PyWorkerProcess>> {
        let worker = Worker::attach().map_err(|e| raise(py, &e))?;
        Ok(worker.map(|worker| PyWorkerProcess { worker, functions: Mutex::default(), waits: Mutex::new(()) }))
    }

    /// What the pool says to each of its workers.
    #[getter]
    fn setup<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.worker.setup())
    }

    /// Tasks at once.
    #[getter]
    fn concurrency(&self) -> usize {
        self.worker.concurrency()
    }

    /// Tasks come from now on.
    fn ready(&self) {
        self.worker.ready();
    }

    /// Why this worker cannot start; the process ends afterwards.
    fn fail(&self, text: &str) {
        self.worker.fail(text);
    }

    /// All tasks are finished; the process ends now.
    fn drained(&self) {
        self.worker.drained();
    }

    /// Runs tasks on this thread until the pool lets the worker go. `exports`: functions that are called by name. `context`: what
    /// `current_task().context` is.
    fn run(&self, py: Python<'_>, exports: &Bound<'_, PyDict>, context: Py<PyAny>) -> PyResult<()> {
        let host = Bound::new(py, PyHost::new(None, context))?;
        let mut in_a_row = 0;
        loop {
            let mut next = self.worker.try_take();
            while let Some(job) = next {
                self.run_one(py, job, exports, &host)?;
                in_a_row += 1;
                if in_a_row == TASKS_PER_TURN {
                    in_a_row = 0;
                    wait::detached(py, || ());
                    py.check_signals()?;
                    next = self.worker.try_take();
                } else {
                    next = self.worker.try_take_next();
                }
            }
            late::collect(py);
            let woken = wait::detached(py, || {
                let _alone = lock(&self.waits);
                self.worker.wait(None)
            });
            match woken {
                Woken::Work => {}
                Woken::Timeout => py.check_signals()?,
                Woken::Drain => return Ok(()),
            }
        }
    }
}

impl PyWorkerProcess {
    fn run_one(&self, py: Python<'_>, mut job: Job, exports: &Bound<'_, PyDict>, host: &Bound<'_, PyHost>) -> PyResult<()> {
        let running = Arc::new(Running { worker: self.worker.clone(), index: job.index, over: AtomicBool::new(false) });
        hosted::enter(py, running.clone(), host)?;
        let reply = if job.request().first() == Some(&PYTHON) {
            let returned = self.call(py, &mut job);
            if self.worker.is_forked() {
                // The function has forked and come back twice. Here it is the child, which nobody waits for: it ends as a program would.
                return Err(returned.err().unwrap_or_else(|| PySystemExit::new_err(0)));
            }
            // Pickling a result may run code of the user, which may still say how far it is.
            encode(py, returned)
        } else {
            None
        };
        let sent = match reply {
            Some((message, head)) => self.send(py, &job, &message, &head),
            None => Err(None),
        };
        let sent = match sent {
            // A call of another language, or memory that there is not.
            Err(None) => self.common(py, &job, exports),
            Err(Some(error)) => self.finish_common(&job, Err(Box::new(call::error_value(&error)))),
            Ok(()) => Ok(()),
        };
        running.over.store(true, Ordering::Release);
        sent.map_err(|e| if e.kind() == ErrorKind::Forked { PySystemExit::new_err(0) } else { raise(py, &e) })
    }

    /// Runs a call in Python's own form.
    fn call<'py>(&self, py: Python<'py>, job: &mut Job) -> PyResult<Bound<'py, PyAny>> {
        static LOAD_CALL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let (reader, payload);
        let mut kept = None;
        let memory = match job.take_payload() {
            Some(long) => {
                let ptr: *const u8 = long.as_ptr();
                // SAFETY: the payload keeps its memory, and lives during the call.
                reader = unsafe { Reader::new(py, ptr, long.len())? };
                payload = Bound::new(py, PyPayload(long))?.into_any();
                kept = Some(&payload);
                Some(Memory { owner: &payload, ptr })
            }
            None => {
                let request = job.request();
                reader = Reader::of(py, request)?;
                if reader.has_buffers() {
                    payload = copy::to_bytearray(py, request)?;
                    // SAFETY: the object is a bytearray, which nobody resizes: only views of it are handed out.
                    let ptr = unsafe { pyo3::ffi::PyByteArray_AsString(payload.as_ptr()).cast_const().cast() };
                    Some(Memory { owner: &payload, ptr })
                } else {
                    None
                }
            }
        };
        let is_stream = reader.flags & STREAM != 0;
        if is_stream && !self.worker.is_streamed(job.index) {
            return Ok(py.None().into_bound(py));
        }
        let give = |returned| if is_stream { give_all(py, &self.worker, job.index, returned, false) } else { settled(returned) };
        let function = self.function(py, reader.head(), reader.flags)?;
        if reader.kind == form::VALUES {
            let returned =
                if reader.count == 0 { function.call0() } else { function.call1(PyTuple::new(py, reader.values(py, memory.as_ref())?)?) };
            return returned.and_then(give);
        }
        let shared = |at, len| self.shared(py, at, len, kept);
        let views = reader.views(py, memory.as_ref(), shared)?;
        let loaded = helper(py, &LOAD_CALL, "load_call")?.call1((copy::bytes_of(py, reader.stream())?, views))?;
        let (args, kwargs): (Bound<'py, PyTuple>, Bound<'py, PyDict>) = loaded.extract()?;
        function.call(args, Some(&kwargs)).and_then(give)
    }

    /// A view of memory that a request refers to. `request`: what keeps it; None for a copy of one that does not.
    fn shared<'py>(&self, py: Python<'py>, at: u64, len: u64, request: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let Some(request) = request else {
            let e = Error::new(ErrorKind::Full, "the worker keeps too many arguments to have another array that is shared");
            return Err(raise(py, &e.with("max", offloop::pool::MAX_KEPT)));
        };
        let ptr = self.worker.shared(at, len).map_err(|e| raise(py, &e))?;
        let view = PySharedView::new(ptr, len as usize, request.clone().unbind());
        Ok(Bound::new(py, view)?.into_any())
    }

    fn function<'py>(&self, py: Python<'py>, pickle: &[u8], flags: u8) -> PyResult<Bound<'py, PyAny>> {
        static LOAD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        if flags & BY_NAME != 0
            && let Some(function) = lock(&self.functions).get(py, pickle)
        {
            return Ok(function);
        }
        let function = helper(py, &LOAD, "load_function")?.call1((copy::bytes_of(py, pickle)?,))?;
        if flags & BY_NAME != 0 {
            let old = {
                let mut functions = lock(&self.functions);
                let old = if functions.all.len() >= MAX_FUNCTIONS { std::mem::take(&mut *functions) } else { Functions::default() };
                functions.all.insert(pickle.to_vec(), function.clone().unbind());
                old
            };
            drop(old);
        }
        Ok(function)
    }

    /// `Err(Some)`: there is no memory for this reply.
    fn send(&self, py: Python<'_>, job: &Job, message: &Message, head: &[u8]) -> Result<(), Option<Error>> {
        let long = message.long() >= copy::SLICE;
        message.with_parts(head, |parts| wait::detached_if(py, long, || self.worker.finish(job, message.failed != 0, parts))).map_err(Some)
    }

    /// Runs a call that any language can make.
    fn common(&self, py: Python<'_>, job: &Job, exports: &Bound<'_, PyDict>) -> Result<(), Error> {
        let result = Call::decode(job.request()).map_err(|e| raise(py, &e)).and_then(|call| {
            let Some(function) = exports.get_item(&call.name)? else {
                let e = Error::new(ErrorKind::NotFound, "the worker exports no such function").with("name", call.name);
                return Err(raise(py, &e));
            };
            let args = call.args.into_iter().map(|v| value::to_python(py, v)).collect::<PyResult<Vec<_>>>()?;
            let kwargs = PyDict::new(py);
            for (name, v) in call.named {
                kwargs.set_item(value::to_python(py, name)?, value::to_python(py, v)?)?;
            }
            let returned = function.call(PyTuple::new(py, args)?, Some(&kwargs))?;
            let returned = if self.worker.is_streamed(job.index) {
                give_all(py, &self.worker, job.index, returned, true)?
            } else {
                settled(returned)?
            };
            value::from_python(&returned)
        });
        let result = result.map_err(|e| {
            let text = e.to_string();
            match value::from_python(e.into_value(py).bind(py).as_any()) {
                Ok(Value::Error(error)) => error,
                _ => Box::new(ErrorValue::new("Error", text)),
            }
        });
        self.finish_common(job, result)
    }

    fn finish_common(&self, job: &Job, result: Result<Value, Box<ErrorValue>>) -> Result<(), Error> {
        let failed = result.is_err();
        let sent = call::encode_reply(result).and_then(|bytes| self.worker.finish(job, failed, &[&bytes]));
        sent.or_else(|error| {
            // The result cannot travel: that is what the caller is told.
            let bytes = call::encode_reply(Err(Box::new(call::error_value(&error))))?;
            self.worker.finish(job, true, &[&bytes])
        })
    }
}

/// What a function returned; of an `async def` what its coroutine comes to.
fn settled(returned: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    static SETTLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = returned.py();
    // SAFETY: the object keeps its type; static types can be asked for their slots since Python 3.10.
    let awaits = unsafe { ffi::PyType_GetSlot(returned.get_type_ptr(), ffi::Py_am_await) };
    if awaits.is_null() { Ok(returned) } else { helper(py, &SETTLED, "settled")?.call1((returned,)) }
}

/// The reply to a call in Python's own form, and its head; None when not even the error has one.
fn encode(py: Python<'_>, returned: PyResult<Bound<'_, PyAny>>) -> Option<(Message, Vec<u8>)> {
    let sent = returned.and_then(|value| {
        let mut message = Message { kind: form::VALUES, ..Message::default() };
        if message.push(&value)? {
            return Ok(message);
        }
        static DUMP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        pickled(helper(py, &DUMP, "dump_result")?.call1((value,))?, None)
    });
    match sent {
        Ok(message) => Some((message, Vec::new())),
        Err(e) => {
            static RAISED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let raised: Bound<'_, PyBaseException> = e.into_value(py).into_bound(py);
            let told = helper(py, &RAISED, "dump_raised").and_then(|f| f.call1((raised,))?.extract::<(Vec<u8>, Vec<u8>)>());
            let (head, stream) = told.ok()?;
            Some((Message { kind: form::RAISED, failed: FAILED, stream, ..Message::default() }, head))
        }
    }
}

/// A message of a pickle and its out-of-band buffers. `pool`: whose workers it is for.
pub(super) fn pickled(parts: Bound<'_, PyAny>, pool: Option<&ProcessPool>) -> PyResult<Message> {
    let (stream, buffers): (Bound<'_, PyBytes>, Bound<'_, PyList>) = parts.extract()?;
    Ok(Message {
        kind: form::PICKLED,
        stream: stream.as_bytes().to_vec(),
        buffers: buffers.iter().map(|b| form::Part::new(&b, pool)).collect::<PyResult<_>>()?,
        ..Message::default()
    })
}

const _: () = assert!(MAX_VALUES <= u8::MAX as usize);
