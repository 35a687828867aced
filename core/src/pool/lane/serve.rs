//! The loop of a worker whose functions block their thread: Rust's and C's.

use super::call::{self, Call};
use super::frame::Records;
use super::worker::{Job, Sent, Woken, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use crate::sync::lock;
use crate::value::{ErrorValue, Value};
use std::sync::Mutex;

/// A job that runs, for the function that runs it.
#[derive(Debug)]
pub struct Running<'a> {
    worker: &'a Worker,
    index: usize,
    records: Mutex<Records>,
}

impl Control for Running<'_> {
    fn check(&self) -> Result<()> {
        match self.worker.is_cancelled(self.index) {
            None => Ok(()),
            Some(ErrorKind::Timeout) => Err(Error::new(ErrorKind::Timeout, "the task ran too long")),
            Some(_) => Err(Error::new(ErrorKind::Cancelled, "the task was cancelled")),
        }
    }

    /// What is too long for a lane, or has no form, is not told: a function has no use for that error.
    fn progress(&self, value: Value) -> Option<Value> {
        if let Ok(bytes) = call::encode_reply(Ok(value)) {
            let _ = self.worker.progress(self.index, &bytes);
        }
        None
    }

    fn give(&self, value: &Value) -> Result<bool> {
        let bytes = call::encode_parts(value)?;
        let mut records = lock(&self.records);
        match records.push(self.worker, bytes)? {
            Sent::Sent => Ok(true),
            Sent::Stopped => Ok(false),
            // Not kept for the next one, which may come much later: this thread is the function's until then.
            Sent::NotYet => records.flush(self.worker),
        }
    }
}

impl Running<'_> {
    /// What was yielded and not sent.
    fn flush(&self) -> Result<bool> {
        lock(&self.records).flush(self.worker)
    }
}

/// What runs a call: its result, or the error that its function failed with.
pub type Function<'a> = dyn FnMut(Call, &Running<'_>) -> Result<Value, Box<ErrorValue>> + 'a;

/// Runs the calls that come with `function`, one after the other, until the pool lets this worker go.
///
/// # Errors
/// `Os` when there is no memory even for the message that there is none, `Forked` in a child that a function forked and came back in: the
/// process is to end.
pub fn serve(worker: &Worker, function: &mut Function<'_>) -> Result<()> {
    worker.ready();
    loop {
        while let Some(job) = worker.try_take() {
            let running = Running { worker, index: job.index, records: Mutex::new(Records::new(job.index)) };
            let result = Call::decode(job.request()).map_err(|e| Box::new(call::error_value(&e))).and_then(|call| function(call, &running));
            // What it gave comes before its end, whichever that is.
            let given = running.flush().map_err(|e| Box::new(call::error_value(&e)));
            reply(worker, &job, result.and_then(|value| given.map(|_| value)))?;
        }
        if worker.wait(None) == Woken::Drain {
            worker.drained();
            return Ok(());
        }
    }
}

fn reply(worker: &Worker, job: &Job, result: Result<Value, Box<ErrorValue>>) -> Result<()> {
    let failed = result.is_err();
    let sent = call::encode_reply(result).and_then(|bytes| worker.finish(job, failed, &[&bytes]));
    sent.or_else(|error| {
        // The result cannot travel: that is what the caller is told.
        let bytes = call::encode_reply(Err(Box::new(call::error_value(&error))))?;
        worker.finish(job, true, &[&bytes])
    })
}
