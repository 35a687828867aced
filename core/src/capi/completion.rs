//! Completion queues for C, and the callbacks that outcomes are passed to.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::{offloop_value, value};
use crate::capi::offloop_cq;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{CompletionQueue, Event, call};
use crate::sync::lock;
use crate::value::{ErrorValue, Value};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Gets the outcome of a task: its status, and its result (NULL when it has none), or an error value (offloop_value_get_error) with
/// the text; that of a function in a worker process as it was there, with stack, cause and properties. The callee owns the value and
/// frees it.
pub type offloop_done_fn = Option<unsafe extern "C" fn(user: *mut c_void, status: offloop_status, value: *mut offloop_value)>;

/// A task has its outcome.
pub const OFFLOOP_EVENT_DONE: u32 = 0;
/// A running task said how far it is. Only the latest value between two drains is kept.
pub const OFFLOOP_EVENT_PROGRESS: u32 = 1;

/// What offloop_cq_drain gives.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_event {
    /// The tag given at submit.
    pub tag: u64,
    /// OFFLOOP_EVENT_DONE or OFFLOOP_EVENT_PROGRESS.
    pub kind: u32,
    /// The task's status.
    pub status: offloop_status,
    /// Result, progress, or an error value (offloop_value_get_error); NULL when there is none. The caller frees it.
    pub value: *mut offloop_value,
}

/// A user's callback, called at most once.
pub(crate) struct Callback {
    function: unsafe extern "C" fn(*mut c_void, offloop_status, *mut offloop_value),
    user: UserArg,
    form: Form,
}

/// What the result of a task is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// The result itself.
    Result,
    /// What a worker process replied. Whoever takes the outcome decodes it, on its own thread.
    Reply,
}

/// Why there is no result.
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The function's own error, where it came from another process.
    value: Option<Box<ErrorValue>>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, value: None }
    }
}

impl Form {
    /// The outcome in the caller's sense.
    pub(crate) fn read(self, result: Result<Value>) -> Result<Value, Failure> {
        let reply = match (self, result?) {
            (Form::Result, result) => return Ok(result),
            (Form::Reply, Value::Buffer(buffer)) => buffer.to_vec()?,
            (Form::Reply, other) => other.into_bytes()?.into_vec(),
        };
        call::decode_reply(&reply)?.map_err(|value| Failure { error: error_of(&value), value: Some(value) })
    }
}

/// A function's own error as one of offloop's: of its kind if it has one, else a failed task.
fn error_of(value: &ErrorValue) -> Error {
    match value.kind() {
        // The kind says its own text.
        Some(kind) => {
            let said = value.message.strip_prefix(kind.row().text).and_then(|rest| rest.strip_prefix(": "));
            Error::new(kind, said.unwrap_or(&value.message).to_owned())
        }
        None if value.name.is_empty() => Error::new(ErrorKind::TaskFailed, value.message.clone()),
        None => Error::new(ErrorKind::TaskFailed, format!("{}: {}", value.name, value.message)),
    }
}

/// Status and value of an outcome. With no handle left the value is lost and the status says so.
fn for_c(result: Result<Value, Failure>) -> (offloop_status, *mut offloop_value) {
    let (status, value) = match result {
        Ok(Value::Nil) => return (ffi::OK, std::ptr::null_mut()),
        Ok(value) => (ffi::OK, value),
        Err(Failure { error, value: Some(value) }) => (error.status(), Value::Error(value)),
        Err(Failure { error, value: None }) => {
            let name = error.kind().row().code.to_owned();
            (error.status(), ErrorValue::new(name, error.to_string()).into())
        }
    };
    match value::give(value) {
        Ok(value) => (status, value),
        Err(e) => (if status == ffi::OK { e.status() } else { status }, std::ptr::null_mut()),
    }
}

impl Callback {
    pub(crate) fn new(
        function: unsafe extern "C" fn(*mut c_void, offloop_status, *mut offloop_value),
        user: UserArg,
        form: Form,
    ) -> Callback {
        Callback { function, user, form }
    }

    pub(crate) fn call(&self, result: Result<Value>) {
        let (status, value) = for_c(self.form.read(result));
        // SAFETY: the user's function with the user's pointer, which is freed when `self` goes.
        unsafe { (self.function)(self.user.get(), status, value) }
    }
}

/// Tags from here on are the queue's own; users' tags are below.
const OWN_TAG: u64 = 1 << 63;

/// What the drain does with an outcome under a tag of the queue's own.
#[derive(Clone)]
pub(crate) enum Expect {
    /// Calls this.
    Callback(Arc<Callback>),
    /// Decodes it, and gives it out under the user's tag.
    Reply(u64),
}

/// A callback, and the outcome that it is to be called with.
type Due = (Arc<Callback>, Result<Value>);

#[derive(Default)]
struct Expected {
    next: u64,
    all: HashMap<u64, Expect>,
}

/// A completion queue with what its drain does with certain outcomes.
pub(crate) struct Queue {
    queue: CompletionQueue,
    expected: Mutex<Expected>,
}

impl Queue {
    pub(crate) fn queue(&self) -> &CompletionQueue {
        &self.queue
    }

    pub(crate) fn check_tag(tag: u64) -> Result<()> {
        if tag < OWN_TAG {
            return Ok(());
        }
        Err(Error::invalid("option is out of range").with("option", "tag").with("value", tag).with("max", OWN_TAG - 1))
    }

    /// The tag under which the drain will find `what`.
    pub(crate) fn expect(&self, what: Expect) -> Result<u64> {
        let mut expected = lock(&self.expected);
        let tag = OWN_TAG | expected.next;
        expected.next = expected
            .next
            .checked_add(1)
            .filter(|n| *n < OWN_TAG)
            .ok_or_else(|| Error::new(ErrorKind::Full, "completion queue has used up its tags"))?;
        expected.all.insert(tag, what);
        Ok(tag)
    }

    pub(crate) fn forget(&self, tag: u64) -> Option<Expect> {
        lock(&self.expected).all.remove(&tag)
    }

    /// The event under a user's tag, or the callback that is to be called instead. `None` for progress that has nobody to go to.
    fn event(&self, event: Event) -> Option<Result<offloop_event, Due>> {
        let (kind, tag, result) = match event {
            Event::Done { tag, result } => (OFFLOOP_EVENT_DONE, tag, result),
            Event::Progress { tag, value } => (OFFLOOP_EVENT_PROGRESS, tag, Ok(value)),
        };
        let expected = match (tag & OWN_TAG != 0, kind) {
            (false, _) => None,
            (true, OFFLOOP_EVENT_DONE) => Some(self.forget(tag)?),
            (true, _) => Some(lock(&self.expected).all.get(&tag)?.clone()),
        };
        let (tag, form) = match expected {
            None => (tag, Form::Result),
            Some(Expect::Reply(tag)) => (tag, Form::Reply),
            Some(Expect::Callback(callback)) => return (kind == OFFLOOP_EVENT_DONE).then_some(Err((callback, result))),
        };
        let (status, value) = for_c(form.read(result));
        Some(Ok(offloop_event { tag, kind, status, value }))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A callback runs exactly once: nobody will drain, so it learns that here.
        let left = std::mem::take(&mut lock(&self.expected).all);
        for expected in left.into_values() {
            if let Expect::Callback(callback) = expected {
                callback.call(Err(Error::new(ErrorKind::Closed, "the completion queue was freed before the outcome")));
            }
        }
    }
}

fn lookup(cq: *const offloop_cq) -> Result<Arc<Queue>> {
    handle::shared(cq)
}

/// Makes a completion queue. A process may have several, one per event loop.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cq_new(out: *mut *mut offloop_cq) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(Queue { queue: CompletionQueue::new()?, expected: Mutex::default() })));
        Ok(())
    })
}

/// Gives an fd to poll for reading, level-triggered: readable while anything may be left to drain. It is the queue's: never read
/// it, never close it.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cq_fd(cq: *mut offloop_cq, out: *mut i32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(lookup(cq)?.queue.fd()?);
        Ok(())
    })
}

/// Waits until something can be drained, at most `timeout_ns` (below 0: for ever). OFFLOOP_ERR_TIMEOUT otherwise. For a thread
/// without an event loop.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cq_wait(cq: *mut offloop_cq, timeout_ns: i64) -> offloop_status {
    ffi::call(|| {
        if lookup(cq)?.queue.wait(ffi::forever_or(timeout_ns)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, "nothing to drain yet").with("timeout_ns", timeout_ns))
    })
}

/// Takes at most `max` outcomes without waiting: writes `*count` events and calls the callbacks of tasks that were submitted with
/// one (those are no events). While anything is left the fd stays readable. One thread at a time.
///
/// # Safety
/// `events` has room for `max` events, `count` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cq_drain(
    cq: *mut offloop_cq,
    events: *mut offloop_event,
    max: usize,
    count: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let count = ffi::out(count, "count")?;
        // SAFETY: this function's contract; checked for NULL, alignment and length only.
        unsafe { ffi::slice(events.cast_const().cast::<std::mem::MaybeUninit<offloop_event>>(), max, "events") }?;
        let queue = lookup(cq)?;
        // Called after the drain, so that a callback may drain the same queue.
        let mut callbacks = Vec::new();
        let mut written = 0;
        queue.queue.drain(max, &mut |event| {
            // All progress since the last drain comes at once, even beyond `max`; what does not fit is dropped, because progress is
            // only ever the latest.
            if written == max && matches!(event, Event::Progress { .. }) {
                return;
            }
            let event = match queue.event(event) {
                None => return,
                Some(Err(callback)) => return callbacks.push(callback),
                Some(Ok(event)) => event,
            };
            // The queue delivers at most `max` outcomes, progress included.
            assert!(written < max, "the completion queue went over its budget");
            // SAFETY: `written` is below `max`, for which there is room by this function's contract.
            unsafe { events.add(written).write(event) };
            written += 1;
        });
        for (callback, result) in callbacks {
            callback.call(result);
        }
        count.set(written);
        Ok(())
    })
}

/// Frees a queue. Events that nobody drained are dropped; callbacks that it still owes are called with OFFLOOP_ERR_CLOSED before this
/// returns, or when the last call that uses the queue does. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cq_free(cq: *mut offloop_cq) {
    if !cq.is_null() {
        ffi::call(|| handle::free(cq));
    }
}
