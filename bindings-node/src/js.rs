//! Node-API, wrapped once: every `unsafe` call into the runtime that is not about memory of buffers lives here.
//!
//! A callback is a plain Rust function `fn(&Call) -> JsResult<Raw>`; [`Env::function`] hands its address to Node as the
//! callback's data, and [`trampoline`] calls it. That costs about 20 ns less per argument than generated glue.

use crate::state::State;
use napi::sys;
use offloop::{Error, ErrorKind};
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

pub(crate) type Raw = sys::napi_value;

/// Why a callback has no result.
#[derive(Debug)]
pub(crate) enum Fail {
    /// To be thrown as an `OffloopError`.
    Error(Error),
    /// A JavaScript exception is pending already.
    Pending,
}

impl From<Error> for Fail {
    fn from(e: Error) -> Fail {
        Fail::Error(e)
    }
}

pub(crate) type JsResult<T> = Result<T, Fail>;

/// The function behind a JavaScript function.
pub(crate) type Body = fn(&Call<'_>) -> JsResult<Raw>;

/// Most arguments any native function takes.
const MAX_ARGS: usize = 14;

/// Bytes of a text that are read without asking for their number first: names, mostly.
const FEW: usize = 128;

/// Calls a Node-API function whose last arguments are locals of the caller, and turns its status into a `JsResult`.
macro_rules! call {
    ($env:expr, $f:ident ( $($arg:expr),* $(,)? )) => {{
        // SAFETY: `Env` exists only inside a callback of its live environment and on its thread; every handle comes from
        // that environment, and out pointers are locals.
        let status = unsafe { sys::$f($env.0, $($arg),*) };
        $env.status(status, stringify!($f))
    }};
}

/// The environment (one JavaScript thread's view of this addon) of the running callback.
#[derive(Clone, Copy)]
pub(crate) struct Env(pub(crate) sys::napi_env);

impl Env {
    pub(crate) fn status(self, status: sys::napi_status, what: &'static str) -> JsResult<()> {
        match status {
            sys::Status::napi_ok => Ok(()),
            sys::Status::napi_pending_exception | sys::Status::napi_cannot_run_js => Err(Fail::Pending),
            sys::Status::napi_closing => Err(Error::new(ErrorKind::Closed, "environment is closing").into()),
            other => Err(Error::invalid("the runtime refused a call").with("call", what).with("status", other).into()),
        }
    }

    pub(crate) fn undefined(self) -> Raw {
        let mut out = null_mut();
        let _ = call!(self, napi_get_undefined(&mut out));
        out
    }

    pub(crate) fn null(self) -> Raw {
        let mut out = null_mut();
        let _ = call!(self, napi_get_null(&mut out));
        out
    }

    pub(crate) fn boolean(self, b: bool) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_get_boolean(b, &mut out))?;
        Ok(out)
    }

    pub(crate) fn number(self, n: f64) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_create_double(n, &mut out))?;
        Ok(out)
    }

    pub(crate) fn date(self, ms: f64) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_create_date(ms, &mut out))?;
        Ok(out)
    }

    pub(crate) fn string(self, s: &str) -> JsResult<Raw> {
        let mut out = null_mut();
        // SAFETY: pointer and length are those of `s`; the runtime copies.
        let status = unsafe { sys::napi_create_string_utf8(self.0, s.as_ptr().cast(), s.len() as isize, &mut out) };
        if status != sys::Status::napi_ok {
            self.take_exception();
            return Err(Error::new(ErrorKind::TooLarge, "text is longer than a JavaScript string").with("len", s.len()).into());
        }
        Ok(out)
    }

    pub(crate) fn bigint(self, negative: bool, words: &[u64]) -> JsResult<Raw> {
        let mut out = null_mut();
        // SAFETY: pointer and count are those of `words`; the runtime copies.
        let status = unsafe { sys::napi_create_bigint_words(self.0, i32::from(negative), words.len(), words.as_ptr(), &mut out) };
        if status != sys::Status::napi_ok {
            self.take_exception();
            return Err(Error::new(ErrorKind::TooLarge, "integer is longer than a BigInt").with("words", words.len()).into());
        }
        Ok(out)
    }

    pub(crate) fn object(self) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_create_object(&mut out))?;
        Ok(out)
    }

    pub(crate) fn array(self, len: usize) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_create_array_with_length(len, &mut out))?;
        Ok(out)
    }

    pub(crate) fn set_at(self, array: Raw, at: u32, value: Raw) -> JsResult<()> {
        call!(self, napi_set_element(array, at, value))
    }

    pub(crate) fn at(self, array: Raw, at: u32) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_get_element(array, at, &mut out))?;
        Ok(out)
    }

    pub(crate) fn len(self, array: Raw) -> JsResult<u32> {
        let mut out = 0;
        call!(self, napi_get_array_length(array, &mut out))?;
        Ok(out)
    }

    /// Sets an own data property, also for `__proto__`.
    pub(crate) fn set(self, object: Raw, name: Raw, value: Raw) -> JsResult<()> {
        let property = sys::napi_property_descriptor {
            utf8name: std::ptr::null(),
            name,
            method: None,
            getter: None,
            setter: None,
            value,
            attributes: sys::PropertyAttributes::writable | sys::PropertyAttributes::enumerable | sys::PropertyAttributes::configurable,
            data: null_mut(),
        };
        call!(self, napi_define_properties(object, 1, &property))
    }

    pub(crate) fn set_named(self, object: Raw, name: &CStr, value: Raw) -> JsResult<()> {
        call!(self, napi_set_named_property(object, name.as_ptr(), value))
    }

    pub(crate) fn get(self, object: Raw, name: Raw) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_get_property(object, name, &mut out))?;
        Ok(out)
    }

    /// Own enumerable string keys.
    pub(crate) fn keys(self, object: Raw) -> JsResult<Raw> {
        let mut out = null_mut();
        let filter = sys::KeyFilter::enumerable | sys::KeyFilter::skip_symbols;
        call!(
            self,
            napi_get_all_property_names(object, sys::KeyCollectionMode::own_only, filter, sys::KeyConversion::numbers_to_strings, &mut out)
        )?;
        Ok(out)
    }

    pub(crate) fn type_of(self, value: Raw) -> JsResult<sys::napi_valuetype> {
        let mut out = 0;
        call!(self, napi_typeof(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn is_nullish(self, value: Raw) -> bool {
        matches!(self.type_of(value), Ok(sys::ValueType::napi_undefined | sys::ValueType::napi_null))
    }

    pub(crate) fn is_array(self, value: Raw) -> JsResult<bool> {
        let mut out = false;
        call!(self, napi_is_array(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn is_date(self, value: Raw) -> JsResult<bool> {
        let mut out = false;
        call!(self, napi_is_date(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn is_error(self, value: Raw) -> JsResult<bool> {
        let mut out = false;
        call!(self, napi_is_error(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn is_typedarray(self, value: Raw) -> JsResult<bool> {
        let mut out = false;
        call!(self, napi_is_typedarray(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn f64(self, value: Raw) -> Option<f64> {
        let mut out = 0.0;
        call!(self, napi_get_value_double(value, &mut out)).ok().map(|()| out)
    }

    pub(crate) fn u32(self, value: Raw) -> JsResult<u32> {
        let mut out = 0;
        call!(self, napi_get_value_uint32(value, &mut out))?;
        Ok(out)
    }

    pub(crate) fn bool(self, value: Raw) -> Option<bool> {
        let mut out = false;
        call!(self, napi_get_value_bool(value, &mut out)).ok().map(|()| out)
    }

    pub(crate) fn date_value(self, value: Raw) -> JsResult<f64> {
        let mut out = 0.0;
        call!(self, napi_get_date_value(value, &mut out))?;
        Ok(out)
    }

    /// Sign and 64-bit words of a BigInt, least significant first.
    pub(crate) fn bigint_words(self, value: Raw) -> JsResult<(bool, Vec<u64>)> {
        let (mut negative, mut count) = (0, 0);
        call!(self, napi_get_value_bigint_words(value, null_mut(), &mut count, null_mut()))?;
        let mut words = vec![0; count];
        call!(self, napi_get_value_bigint_words(value, &mut negative, &mut count, words.as_mut_ptr()))?;
        Ok((negative != 0, words))
    }

    /// Text; `None` when it is no string. Lone surrogates become U+FFFD.
    pub(crate) fn text(self, value: Raw) -> Option<String> {
        let mut few = [0u8; FEW];
        let mut len = 0;
        call!(self, napi_get_value_string_utf8(value, few.as_mut_ptr().cast(), FEW, &mut len)).ok()?;
        // What does not fit ends with the last whole character that does, and a zero.
        if len + 4 < FEW {
            return Some(String::from_utf8_lossy(&few[..len]).into_owned());
        }
        call!(self, napi_get_value_string_utf8(value, null_mut(), 0, &mut len)).ok()?;
        let mut bytes = vec![0u8; len + 1];
        call!(self, napi_get_value_string_utf8(value, bytes.as_mut_ptr().cast(), bytes.len(), &mut len)).ok()?;
        bytes.truncate(len);
        Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    pub(crate) fn reference(self, value: Raw) -> JsResult<sys::napi_ref> {
        let mut out = null_mut();
        call!(self, napi_create_reference(value, 1, &mut out))?;
        Ok(out)
    }

    pub(crate) fn dereference(self, reference: sys::napi_ref) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_get_reference_value(reference, &mut out))?;
        Ok(out)
    }

    /// Calls a JavaScript function with `undefined` as `this`.
    pub(crate) fn call(self, function: Raw, args: &[Raw]) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_call_function(self.undefined(), function, args.len(), args.as_ptr(), &mut out))?;
        Ok(out)
    }

    /// Takes a pending exception away, if there is one.
    pub(crate) fn take_exception(self) -> Option<Raw> {
        let (mut pending, mut out) = (false, null_mut());
        call!(self, napi_is_exception_pending(&mut pending)).ok()?;
        if !pending {
            return None;
        }
        call!(self, napi_get_and_clear_last_exception(&mut out)).ok()?;
        Some(out)
    }

    pub(crate) fn throw(self, error: Raw) {
        let _ = call!(self, napi_throw(error));
    }

    /// A JavaScript function that runs `body`.
    pub(crate) fn function(self, name: &CStr, body: Body) -> JsResult<Raw> {
        let mut out = null_mut();
        call!(self, napi_create_function(name.as_ptr(), name.count_bytes() as isize, Some(trampoline), body as *mut c_void, &mut out))?;
        Ok(out)
    }

    /// What [`State::install`] stored for this environment.
    pub(crate) fn state<'a>(self) -> Option<&'a State> {
        let mut data = null_mut();
        call!(self, napi_get_instance_data(&mut data)).ok()?;
        // SAFETY: instance data is the boxed `State`, which lives until the environment has run its last callback; the
        // reference does not outlive the callback that asked.
        unsafe { data.cast::<State>().as_ref() }
    }
}

/// One call from JavaScript.
pub(crate) struct Call<'a> {
    pub(crate) env: Env,
    pub(crate) state: &'a State,
    args: [Raw; MAX_ARGS],
}

impl Call<'_> {
    /// The argument at `i`; the runtime fills missing ones with `undefined`.
    pub(crate) fn arg(&self, i: usize) -> Raw {
        self.args[i]
    }
}

/// What Node calls. A panic becomes an exception: it must not unwind into C.
unsafe extern "C" fn trampoline(env: sys::napi_env, info: sys::napi_callback_info) -> Raw {
    let mut args = [null_mut(); MAX_ARGS];
    let (mut argc, mut data) = (MAX_ARGS, null_mut());
    // SAFETY: called by Node with a live `env` and `info`; `args` has room for `argc` values.
    let status = unsafe { sys::napi_get_cb_info(env, info, &mut argc, args.as_mut_ptr(), null_mut(), &mut data) };
    let env = Env(env);
    let Some(state) = env.state().filter(|_| status == sys::Status::napi_ok) else {
        return null_mut();
    };
    // SAFETY: `Env::function` is the only one who registers this trampoline, and it stores a `Body` as data.
    let body = unsafe { std::mem::transmute::<*mut c_void, Body>(data) };
    let call = Call { env, state, args };
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&call))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::new(ErrorKind::Panic, "native code panicked").with("panic", text.unwrap_or("no text")).into())
    });
    match outcome {
        Ok(value) => value,
        Err(Fail::Pending) => null_mut(),
        Err(Fail::Error(e)) => {
            if let Ok(error) = state.error(env, &e) {
                env.throw(error);
            }
            null_mut()
        }
    }
}
