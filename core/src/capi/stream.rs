//! Values of a call of a worker process while it runs, for C.

use crate::abi::ffi::{self, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::{offloop_value, value};
use crate::capi::completion::Form;
use crate::capi::pool::{delivered, offloop_submit_options, refused};
use crate::capi::process::{lookup, request};
use crate::capi::{offloop_process_pool, offloop_stream};
use crate::error::{Error, ErrorKind};
use crate::pool::call;
use crate::pool::{Deliver, Streamed, SubmitOptions};
use std::ffi::c_char;
use std::sync::Arc;

/// Calls a function that gives values while it runs (offloop_ctx_give, a generator in Node.js or Python): offloop_stream_next takes
/// them. Otherwise as offloop_process_pool_call; OFFLOOP_ERR_INVALID for options with cq or on_done.
///
/// # Safety
/// As of offloop_process_pool_call; `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_stream(
    pool: *mut offloop_process_pool,
    name: *const c_char,
    args_io: *mut *mut offloop_value,
    options: *const offloop_submit_options,
    out: *mut *mut offloop_stream,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let pool = lookup(pool)?;
        // SAFETY: this function's contract.
        let name = unsafe { ffi::str(name, "name") }?;
        let mut args = None;
        if !args_io.is_null() {
            // SAFETY: this function's contract.
            args = Some(unsafe { ffi::moved(args_io, "args_io") }?);
        }
        let request = request(&pool, name, args.as_mut(), None)?;
        let place = Place::new()?;
        let submit = |options: SubmitOptions| {
            if !matches!(options.deliver, Deliver::Wait) {
                return Err(Error::invalid("a stream has neither cq nor on_done").with("name", name));
            }
            pool.stream(request, options).map_err(refused)
        };
        // SAFETY: this function's contract.
        let streamed = unsafe { delivered(options, Form::Reply, submit) }?;
        if let Some(args) = args {
            drop(value::into_value(args.done()));
        }
        out.set(place.fill_shared(Arc::new(streamed)));
        Ok(())
    })
}

/// Waits for the next value of a stream and takes it, at most `timeout_ns` (below 0: for ever; 0: looks). NULL in `*out` at the end. When
/// the call ends with an error, the next call has it, after the values that came before it, and then NULL. OFFLOOP_ERR_TIMEOUT when there
/// is no value in time: the next call waits for the same one.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_stream_next(stream: *mut offloop_stream, timeout_ns: i64, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let streamed: Arc<Streamed> = handle::shared(stream)?;
        let next = match streamed.next(ffi::forever_or(timeout_ns), call::decode_reply)? {
            Some(record) => value::give(record?.map_err(|e| Error::new(ErrorKind::TaskFailed, e.message.clone()))?)?,
            None => {
                if let Some(outcome) = streamed.task().try_take() {
                    Form::Reply.read(outcome).map_err(|failure| failure.error)?;
                }
                std::ptr::null_mut()
            }
        };
        out.set(next);
        Ok(())
    })
}

/// Frees the handle. A call that has not ended is cancelled, and a wait for its next value with it. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_stream_free(stream: *mut offloop_stream) {
    if !stream.is_null() {
        ffi::call(|| {
            let streamed: Arc<Streamed> = handle::shared(stream.cast_const())?;
            streamed.cancel();
            handle::free(stream)
        });
    }
}
