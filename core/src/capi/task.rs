//! Tasks for C.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle;
use crate::abi::{buffer::offloop_free_fn, offloop_value, value};
use crate::capi::completion::{Callback, Form, offloop_done_fn};
use crate::capi::offloop_task;
use crate::error::{Error, Result};
use crate::pool::Task;
use crate::value::Value;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// What an `offloop_task *` stands for.
pub(crate) struct Submitted {
    pub(crate) task: Task,
    pub(crate) form: Form,
}

fn lookup(task: *const offloop_task) -> Result<Arc<Submitted>> {
    handle::shared(task)
}

/// Waits for the outcome and takes it, at most `timeout_ns` (below 0: for ever; 0: looks). Returns the task's own status: OFFLOOP_OK
/// with its result in `*out` (NULL when it has none), or its error, with the text in offloop_last_error. OFFLOOP_ERR_TIMEOUT
/// when it is not done in time; the task goes on. OFFLOOP_ERR_INVALID, without a limit, inside a function of the task's pool when no other
/// thread is left there to run the task. An outcome can be taken once. `out` may be NULL.
///
/// A task that passed a limit of its own (timeout_ns, queue_timeout_ns) ends with OFFLOOP_ERR_TIMEOUT as well. A further call with 0
/// tells: OFFLOOP_ERR_INVALID when that was the outcome, which has been taken by then, else OFFLOOP_ERR_TIMEOUT again or the outcome.
///
/// # Safety
/// `out` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_task_wait(task: *mut offloop_task, timeout_ns: i64, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out_opt(out, "out")?;
        let submitted = lookup(task)?;
        let result = submitted.form.read(submitted.task.wait(ffi::forever_or(timeout_ns))).map_err(|failure| failure.error)?;
        if let Some(out) = out {
            out.set(match result {
                Value::Nil => std::ptr::null_mut(),
                result => value::give(result)?,
            });
        }
        Ok(())
    })
}

/// Calls `on_done` once with the outcome, as a submit with on_done and without cq does; soon, if the task is done. It takes the outcome,
/// so that a later wait gets OFFLOOP_ERR_INVALID. `user_free(user)` is called after it. If this call fails, neither is called.
///
/// # Safety
/// `on_done` may be called with `user` on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_task_on_done(
    task: *mut offloop_task,
    on_done: offloop_done_fn,
    user: *mut c_void,
    user_free: offloop_free_fn,
) -> offloop_status {
    ffi::call(|| {
        let submitted = lookup(task)?;
        let on_done = on_done.ok_or_else(|| Error::invalid("pointer is NULL").with("argument", "on_done"))?;
        let callback = Callback::new(on_done, UserArg::new(user, user_free), submitted.form);
        submitted.task.on_done(move |task| callback.call(task.wait(Some(Duration::ZERO))));
        Ok(())
    })
}

/// Cancels. A queued task never starts; a running one has its token set, and its outcome is OFFLOOP_ERR_CANCELLED at once, while its
/// thread stays with the function until that returns. Nothing happens to a task that is done. OFFLOOP_OK in all cases.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_task_cancel(task: *mut offloop_task) -> offloop_status {
    ffi::call(|| {
        lookup(task)?.task.cancel();
        Ok(())
    })
}

/// Frees the handle; the task goes on. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_task_free(task: *mut offloop_task) {
    if !task.is_null() {
        ffi::call(|| handle::free(task));
    }
}
