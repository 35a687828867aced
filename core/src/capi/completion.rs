//! Completion queues for C, and the callbacks that outcomes are passed to.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::{offloop_value, value};
use crate::capi::offloop_cq;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{CompletionQueue, Event};
use crate::sync::lock;
use crate::value::{ErrorValue, Value};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Gets the outcome of a task: its status, and its result (NULL when it has none), or an error value (offloop_value_get_error) with
/// the text. The callee owns the value and frees it.
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
}

/// Status and value of an outcome. With no handle left the value is lost and the status says so.
fn for_c(result: Result<Value>) -> (offloop_status, *mut offloop_value) {
    let (status, value) = match result {
        Ok(Value::Nil) => return (ffi::OK, std::ptr::null_mut()),
        Ok(value) => (ffi::OK, value),
        Err(e) => {
            let name = e.kind().row().code.to_owned();
            (e.status(), ErrorValue::new(name, e.to_string()).into())
        }
    };
    match value::give(value) {
        Ok(value) => (status, value),
        Err(e) => (if status == ffi::OK { e.status() } else { status }, std::ptr::null_mut()),
    }
}

impl Callback {
    pub(crate) fn new(function: unsafe extern "C" fn(*mut c_void, offloop_status, *mut offloop_value), user: UserArg) -> Callback {
        Callback { function, user }
    }

    pub(crate) fn call(&self, result: Result<Value>) {
        let (status, value) = for_c(result);
        // SAFETY: the user's function with the user's pointer, which is freed when `self` goes.
        unsafe { (self.function)(self.user.get(), status, value) }
    }
}

/// Tags from here on name callbacks; users' tags are below.
const CALLBACK_TAG: u64 = 1 << 63;

#[derive(Default)]
struct Expected {
    next: u64,
    callbacks: HashMap<u64, Arc<Callback>>,
}

/// A completion queue with the callbacks that its drain will call.
pub(crate) struct Queue {
    queue: CompletionQueue,
    expected: Mutex<Expected>,
}

impl Queue {
    pub(crate) fn queue(&self) -> &CompletionQueue {
        &self.queue
    }

    pub(crate) fn check_tag(tag: u64) -> Result<()> {
        if tag < CALLBACK_TAG {
            return Ok(());
        }
        Err(Error::invalid("option is out of range").with("option", "tag").with("value", tag).with("max", CALLBACK_TAG - 1))
    }

    /// The tag under which the drain will find `callback`.
    pub(crate) fn expect(&self, callback: Arc<Callback>) -> Result<u64> {
        let mut expected = lock(&self.expected);
        let tag = CALLBACK_TAG | expected.next;
        expected.next = expected
            .next
            .checked_add(1)
            .filter(|n| *n < CALLBACK_TAG)
            .ok_or_else(|| Error::new(ErrorKind::Full, "completion queue has used up its tags"))?;
        expected.callbacks.insert(tag, callback);
        Ok(tag)
    }

    pub(crate) fn forget(&self, tag: u64) -> Option<Arc<Callback>> {
        lock(&self.expected).callbacks.remove(&tag)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A callback runs exactly once: nobody will drain, so it learns that here.
        let left = std::mem::take(&mut lock(&self.expected).callbacks);
        for callback in left.into_values() {
            callback.call(Err(Error::new(ErrorKind::Closed, "the completion queue was freed before the outcome")));
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
            let event = match event {
                Event::Done { tag, result } if tag & CALLBACK_TAG != 0 => {
                    callbacks.extend(queue.forget(tag).map(|callback| (callback, result)));
                    return;
                }
                // Progress of a task with a callback has nobody to go to. All progress since the last drain comes at once, even
                // beyond `max`; what does not fit is dropped, because progress is only ever the latest.
                Event::Progress { tag, .. } if tag & CALLBACK_TAG != 0 || written == max => return,
                Event::Done { tag, result } => {
                    let (status, value) = for_c(result);
                    offloop_event { tag, kind: OFFLOOP_EVENT_DONE, status, value }
                }
                Event::Progress { tag, value } => {
                    let (status, value) = for_c(Ok(value));
                    offloop_event { tag, kind: OFFLOOP_EVENT_PROGRESS, status, value }
                }
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
