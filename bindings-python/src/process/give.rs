//! The worker's side of a stream: sends what a function yields, one frame after the other.
//!
//! A frame is sent when the one before it was taken; until then what is yielded is kept, and the function waits when that is enough. What is
//! kept goes out while the function is busy with something else: a thread of the stream looks after it, each millisecond at most.

use super::form::{self, Message};
use super::reply::helper;
use super::worker::{lock, pickled};
use crate::error::raise;
use crate::{value, wait};
use offloop::error::{Error, ErrorKind};
use offloop::pool::frame::Records;
use offloop::pool::{Sent, Worker, call};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How often the thread looks whether a frame was taken.
const LOOK: Duration = Duration::from_millis(1);
/// How often a function that waits does, where another thread of the worker waits for its bell.
const LOOK_OFTEN: Duration = Duration::from_micros(100);

/// What a stream's function calls with each value.
#[pyclass(name = "_Give", module = "offloop._native", frozen)]
pub(super) struct PyGive {
    sending: Arc<Sending>,
    /// Of the job.
    index: usize,
    /// Set once the thread was started.
    thread: OnceLock<()>,
    /// This thread alone waits for the bell.
    has_bell: bool,
    /// The caller is of any language.
    common: bool,
}

struct Sending {
    worker: Worker,
    /// Held by who sends, who may wait for room as long as that takes: not locked with the GIL but where nobody has it.
    kept: Mutex<Kept>,
    changed: Condvar,
}

struct Kept {
    records: Records,
    /// Why something that was kept is lost.
    failed: Option<Error>,
    is_over: bool,
}

impl Sending {
    /// Sends what is kept while nobody else does.
    fn run(&self) {
        let mut kept = lock(&self.kept);
        loop {
            while kept.records.is_empty() && !kept.is_over {
                kept = self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner);
            }
            if kept.is_over {
                return;
            }
            kept.send(&self.worker);
            drop(kept);
            std::thread::sleep(LOOK);
            kept = lock(&self.kept);
        }
    }

    /// Waits until what is kept was sent; false if nobody takes it.
    fn flush(&self, has_bell: bool) -> Result<bool, Error> {
        if has_bell {
            let mut kept = lock(&self.kept);
            kept.failed.take().map_or(Ok(()), Err)?;
            return kept.records.flush(&self.worker);
        }
        loop {
            {
                let mut kept = lock(&self.kept);
                let sent = kept.send(&self.worker);
                kept.failed.take().map_or(Ok(()), Err)?;
                if sent != Sent::NotYet {
                    return Ok(sent == Sent::Sent);
                }
            }
            std::thread::sleep(LOOK_OFTEN);
        }
    }
}

impl Kept {
    fn send(&mut self, worker: &Worker) -> Sent {
        self.records.send(worker).unwrap_or_else(|e| {
            self.failed = Some(e);
            Sent::NotYet
        })
    }
}

impl PyGive {
    fn record(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        static DUMP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        if self.common {
            return call::encode_reply(Ok(value::from_python(value)?)).map_err(|e| raise(py, &e));
        }
        let mut message = Message { kind: form::VALUES, ..Message::default() };
        if !message.push(value)? {
            message = pickled(helper(py, &DUMP, "dump_result")?.call1((value,))?, None)?;
        }
        Ok(message.with_parts(&[], |parts| parts.concat()))
    }

    /// Keeps a record that cannot be sent now, without waiting for anything: whether the function is to wait then. Else gives it back.
    fn keep(&self, record: Vec<u8>) -> Result<bool, Vec<u8>> {
        let worker = &self.sending.worker;
        match self.sending.kept.try_lock() {
            Ok(mut kept) if kept.failed.is_none() && worker.is_streamed(self.index) && !worker.is_taken(self.index) => {
                kept.records.keep(record);
                Ok(kept.records.is_full())
            }
            _ => Err(record),
        }
    }

    /// Sends a record, or keeps it and says whether the function is to wait then.
    fn push(&self, record: Vec<u8>) -> Result<(Sent, bool), Error> {
        let mut kept = lock(&self.sending.kept);
        kept.failed.take().map_or(Ok(()), Err)?;
        let sent = kept.records.push(&self.sending.worker, record)?;
        Ok((sent, kept.records.is_full()))
    }

    fn keep_going(&self) -> Result<(), Error> {
        if self.thread.get().is_none() {
            let sending = Arc::clone(&self.sending);
            std::thread::Builder::new()
                .name("offloop-stream".to_owned())
                .spawn(move || sending.run())
                .map_err(|e| Error::new(ErrorKind::Os, "no thread for a stream").with("error", e))?;
            let _ = self.thread.set(());
        }
        self.sending.changed.notify_one();
        Ok(())
    }
}

#[pymethods]
impl PyGive {
    /// False if nobody takes any more.
    fn __call__(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let record = self.record(py, value)?;
        let (sent, is_full) = match self.keep(record) {
            Ok(is_full) => (Sent::NotYet, is_full),
            Err(record) => wait::detached(py, || self.push(record)).map_err(|e| raise(py, &e))?,
        };
        match sent {
            Sent::Sent => Ok(true),
            Sent::Stopped => Ok(false),
            Sent::NotYet if is_full => {
                let given = wait::detached(py, || self.sending.flush(self.has_bell));
                py.check_signals()?;
                given.map_err(|e| raise(py, &e))
            }
            Sent::NotYet => self.keep_going().map(|()| true).map_err(|e| raise(py, &e)),
        }
    }
}

/// Gives what a function of a stream returned, value by value, and returns what its generator does.
pub(super) fn give_all<'py>(
    py: Python<'py>,
    worker: &Worker,
    index: usize,
    values: Bound<'py, PyAny>,
    common: bool,
) -> PyResult<Bound<'py, PyAny>> {
    static GIVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let kept = Kept { records: Records::new(index), failed: None, is_over: false };
    let sending = Arc::new(Sending { worker: worker.clone(), kept: Mutex::new(kept), changed: Condvar::new() });
    let has_bell = worker.concurrency() == 1;
    let give = Bound::new(py, PyGive { sending: Arc::clone(&sending), index, thread: OnceLock::new(), has_bell, common })?;
    let returned = helper(py, &GIVE, "give_all").and_then(|f| f.call1((values, give)));
    // What it gave comes before its end, whichever that is.
    let given = wait::detached(py, || {
        let given = sending.flush(has_bell);
        lock(&sending.kept).is_over = true;
        sending.changed.notify_one();
        given
    });
    let returned = returned?;
    given.map_err(|e| raise(py, &e))?;
    Ok(returned)
}
