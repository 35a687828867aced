//! The context of a running C function: its input, options, token, progress and outcome.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle::{self, Handle, Kind, Object, Place};
use crate::abi::value::{self, Views};
use crate::abi::{offloop_buffer, offloop_task_ctx, offloop_value};
use crate::buffer::TransferBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::value::Value;
use std::ffi::{c_char, c_void};

/// A function that runs on a pool's thread. It returns OFFLOOP_OK with its result set (nil if it set none), an
/// OFFLOOP_ERR_… status, or any other number, which becomes OFFLOOP_ERR_TASK_FAILED. Result, error text, input, options,
/// progress and cancellation go through `ctx`, which is valid until the function returns, on any thread. The function must
/// not unwind (no C++ exception, no longjmp out of it).
///
/// The thread has a stack of 2 MiB and blocks every signal but those that a fault raises, so that the host's handlers run on
/// the host's threads. A child process inherits that mask: unblock (pthread_sigmask) before exec.
pub type offloop_fn = Option<unsafe extern "C" fn(ctx: *mut offloop_task_ctx, arg: *mut c_void) -> i32>;

/// The context of one call, in the handle table for as long as it runs.
pub struct CtxState {
    /// Valid while the table holds this state: [`run`] takes it out before the context ends. Used under the slot's lock.
    ctx: *mut OpCtx<'static>,
    result: Option<Value>,
    error: Option<String>,
    views: Views,
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<OpCtx<'static>>()
};

// SAFETY: the pointer is used under one lock, and what it points at may be used from any thread (asserted above).
unsafe impl Send for CtxState {}

impl CtxState {
    pub(crate) fn views(&mut self) -> &mut Views {
        &mut self.views
    }

    fn ctx(&mut self) -> &mut OpCtx<'static> {
        // SAFETY: see the field; `&mut self` comes from under the slot's lock, so this is the only reference.
        unsafe { &mut *self.ctx }
    }
}

/// A C function with its argument.
pub struct Function {
    function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32,
    arg: UserArg,
}

impl Function {
    /// A call to be made once, or never; the argument is freed either way.
    ///
    /// # Safety
    /// `function` follows the contract of [`offloop_fn`] and may be called with `arg` on any thread.
    pub unsafe fn new(function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32, arg: UserArg) -> Function {
        Function { function, arg }
    }

    pub(crate) fn run(self, ctx: &mut OpCtx<'_>) -> Result<Value> {
        // SAFETY: the contract of `new`.
        unsafe { run(ctx, self.function, self.arg.get()) }
    }
}

/// Runs a C function with `ctx`.
///
/// # Errors
/// The function's own.
///
/// # Safety
/// `function` follows the contract of [`offloop_fn`] and may be called with `arg` on this thread.
pub unsafe fn run(
    ctx: &mut OpCtx<'_>,
    function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32,
    arg: *mut c_void,
) -> Result<Value> {
    let ctx = std::ptr::from_mut(ctx).cast::<OpCtx<'static>>();
    let state = CtxState { ctx, result: None, error: None, views: Views::default() };
    let handle = handle::insert(Kind::Ctx, Object::Ctx(Box::new(state)))?;
    // SAFETY: this function's contract.
    let status = unsafe { function(handle.as_ptr(), arg) };
    // Whoever uses the context on another thread holds the slot's lock; after this line nobody can.
    let Object::Ctx(state) = handle::take(handle, Kind::Ctx)? else {
        return Err(Error::new(ErrorKind::Corrupt, "task context is gone"));
    };
    let CtxState { result, error, views, .. } = *state;
    value::end_views(views);
    outcome(status, result, error)
}

fn outcome(status: i32, result: Option<Value>, error: Option<String>) -> Result<Value> {
    if status == ffi::OK {
        return match result.unwrap_or_default() {
            // Every host reads bytes; which memory they lie in is no concern of the caller.
            Value::Buffer(b) => Ok(Value::Bytes(b.into_bytes()?)),
            other => Ok(other),
        };
    }
    let (kind, unknown) = match ErrorKind::from_status(status) {
        Some(kind) => (kind, false),
        None => (ErrorKind::TaskFailed, true),
    };
    let e = Error::new(kind, error.unwrap_or_else(|| "the function returned an error without a text".to_owned()));
    Err(if unknown { e.with("status", status) } else { e })
}

fn with<R>(ctx: *const offloop_task_ctx, f: impl FnOnce(&mut CtxState, Handle) -> Result<R>) -> Result<R> {
    let handle = Handle::of(ctx);
    handle::with(handle, Some(Kind::Ctx), |object| match object {
        Object::Ctx(state) => f(state, handle),
        _ => Err(Error::invalid("handle is of another type").with("want", "task context")),
    })
}

fn input_index(index: usize, inputs: usize) -> Result<()> {
    if index < inputs {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "task has no such input").with("index", index).with("inputs", inputs))
}

/// Asks whether the result is still wanted: OFFLOOP_OK, or OFFLOOP_ERR_CANCELLED or OFFLOOP_ERR_TIMEOUT, which the function may
/// return as its own status. Ask at least every 5 ms of work.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub extern "C" fn offloop_ctx_cancelled(ctx: *mut offloop_task_ctx) -> offloop_status {
    ffi::call(|| with(ctx, |c, _| c.ctx().check()))
}

/// Tells the caller how far the task is. The value is moved. Only the latest is kept until it is read.
///
/// # Safety
/// `value_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_progress(ctx: *mut offloop_task_ctx, value_io: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let mut moved = unsafe { ffi::moved(value_io, "value_io") }?;
        value::owned(moved.object())?;
        // What it replaces may be a host's to free, so it is dropped without a lock.
        let replaced = with(ctx, |c, _| Ok(c.ctx().replace_progress(value::into_value(moved.done()))))?;
        drop(replaced);
        Ok(())
    })
}

/// Gives the caller a value while the task runs; the value is moved. The call waits while the caller is behind, and others with this context
/// wait for it. OFFLOOP_ERR_CLOSED when nobody takes any more, also where the call is no offloop_process_pool_stream: the function
/// is to return. OFFLOOP_ERR_UNSERIALIZABLE, OFFLOOP_ERR_TOO_LARGE for a value that cannot travel, which is the caller's as before.
///
/// # Safety
/// `value_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_give(ctx: *mut offloop_task_ctx, value_io: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let mut moved = unsafe { ffi::moved(value_io, "value_io") }?;
        let given = value::owned(moved.object())?;
        match with(ctx, |c, _| c.ctx().give(given))? {
            true => drop(value::into_value(moved.done())),
            false => return Err(Error::new(ErrorKind::Closed, "nobody takes the values of this call")),
        }
        Ok(())
    })
}

/// Borrows the options of an op's call: a map, or nil. It lives until the function returns. A C function that was submitted
/// by itself has nil; its `arg` holds what it needs.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_params(ctx: *mut offloop_task_ctx, out: *mut *const offloop_value) -> offloop_status {
    static NIL: Value = Value::Nil;
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(with(ctx, |c, handle| {
            let params: &Value = c.ctx().params().as_raw().unwrap_or(&NIL);
            value::view(params, c.views(), handle)
        })?);
        Ok(())
    })
}

/// Gives the number of inputs.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_input_count(ctx: *mut offloop_task_ctx, out: *mut usize) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(with(ctx, |c, _| Ok(c.ctx().inputs().len()))?);
        Ok(())
    })
}

/// Gives the bytes of an input, without a copy. Read only; they live until the function returns or takes the input.
/// OFFLOOP_ERR_NOT_FOUND beyond the last one.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_input(
    ctx: *mut offloop_task_ctx,
    index: usize,
    data: *mut *const u8,
    len: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let (data, len) = (ffi::out(data, "data")?, ffi::out(len, "len")?);
        let (p, n) = with(ctx, |c, _| {
            let inputs = c.ctx().inputs();
            input_index(index, inputs.len())?;
            Ok((inputs[index].as_ptr(), inputs[index].len()))
        })?;
        data.set(p);
        len.set(n);
        Ok(())
    })
}

/// Takes an input as a buffer of the function's own, to change it in place: without a copy if it came as a buffer, copied if
/// the host only lent it. The input is empty from then on.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_take_input(ctx: *mut offloop_task_ctx, index: usize, out: *mut *mut offloop_buffer) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        let bytes = with(ctx, |c, _| {
            input_index(index, c.ctx().inputs().len())?;
            Ok(c.ctx().take_input(index).unwrap_or_default())
        })?;
        let buffer = TransferBuffer::from_bytes(bytes)?;
        out.set(place.fill(Kind::Buffer, Object::Buffer(buffer)).as_ptr());
        Ok(())
    })
}

/// Sets the result; the last one counts. The value is moved. A buffer (offloop_value_new_buffer) reaches the caller as bytes,
/// without a copy.
///
/// # Safety
/// `value_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_set_result(ctx: *mut offloop_task_ctx, value_io: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let mut moved = unsafe { ffi::moved(value_io, "value_io") }?;
        value::owned(moved.object())?;
        let old = with(ctx, |c, _| Ok(c.result.replace(value::into_value(moved.done()))))?;
        drop(old); // outside the lock: it may hold a buffer with a user's free function
        Ok(())
    })
}

/// Sets the text of the error that the function is about to return: NUL-terminated, lower case, no full stop, without the
/// kind (the status says it). The last one counts.
///
/// # Safety
/// `text` is NUL-terminated.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_ctx_set_error(ctx: *mut offloop_task_ctx, text: *const c_char) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let text = unsafe { ffi::str(text, "text") }?.to_owned();
        with(ctx, |c, _| {
            c.error = Some(text);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Bytes;
    use crate::ops::Params;
    use std::sync::Mutex;

    fn call(function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32, arg: *mut c_void) -> Result<Value> {
        let params = Params::raw(Value::map([("times", Value::Int(2))]));
        let inputs = vec![Bytes::from(b"abc".to_vec())];
        // SAFETY: the functions of this test follow the contract.
        unsafe { run(&mut OpCtx::inline(inputs, &params), function, arg) }
    }

    unsafe extern "C" fn repeat(ctx: *mut offloop_task_ctx, keep: *mut c_void) -> i32 {
        let (mut params, mut times, mut n) = (std::ptr::null(), std::ptr::null(), 0i64);
        let (mut data, mut len, mut out) = (std::ptr::null(), 0usize, std::ptr::null_mut());
        // SAFETY: every pointer is a local of this function; `keep` is the test's mutex.
        unsafe {
            assert_eq!(offloop_ctx_cancelled(ctx), 0);
            assert_eq!(offloop_ctx_params(ctx, &raw mut params), 0);
            assert_eq!(value::offloop_value_map_get(params, c"times".as_ptr(), &raw mut times), 0);
            assert_eq!(value::offloop_value_get_int(times, &raw mut n), 0);
            assert_eq!(offloop_ctx_input(ctx, 0, &raw mut data, &raw mut len), 0);
            assert_eq!(offloop_ctx_input(ctx, 1, &raw mut data, &raw mut len), ErrorKind::NotFound.status());
            let text = std::slice::from_raw_parts(data, len).repeat(n as usize);
            assert_eq!(value::offloop_value_new_bytes(text.as_ptr().cast(), text.len(), &raw mut out), 0);
            assert_eq!(offloop_ctx_set_result(ctx, &raw mut out), 0);
            assert!(out.is_null());
            *(*keep.cast::<Mutex<(usize, usize)>>()).lock().expect("mutex") = (ctx.addr(), times.addr());
        }
        0
    }

    #[test]
    fn a_function_reads_its_call_and_sets_its_result() {
        let keep = Mutex::new((0usize, 0usize));
        let v = call(repeat, (&raw const keep).cast_mut().cast()).expect("ok");
        assert_eq!(&*v.into_bytes().expect("bytes"), b"abcabc");
        let mut n = 0;
        let (ctx, view) = *keep.lock().expect("mutex");
        // The context and what was borrowed from it end with the call.
        assert_eq!(offloop_ctx_cancelled(std::ptr::without_provenance_mut(ctx)), ErrorKind::Invalid.status());
        // SAFETY: a stale handle is refused.
        let status = unsafe { value::offloop_value_get_int(std::ptr::without_provenance(view), &raw mut n) };
        assert_eq!(status, ErrorKind::Invalid.status());
    }

    unsafe extern "C" fn fail(ctx: *mut offloop_task_ctx, status: *mut c_void) -> i32 {
        // SAFETY: a static text.
        unsafe { offloop_ctx_set_error(ctx, c"no such city".as_ptr()) };
        status.addr() as i32
    }

    #[test]
    fn a_status_becomes_a_kind_and_an_unknown_one_a_failed_task() {
        let e = call(fail, std::ptr::without_provenance_mut(ErrorKind::NotFound.status() as u32 as usize)).expect_err("error");
        assert_eq!(e.to_string(), "not found: no such city");
        let e = call(fail, std::ptr::without_provenance_mut(7)).expect_err("error");
        assert_eq!(e.to_string(), "task failed: no such city (status=7)");
    }
}
