//! Where JavaScript stands that does not come back to its event loop.
//!
//! Node-API has no way into a thread that runs JavaScript, V8 has: an interrupt, which is served at the next call or turn of a loop, in `Atomics.wait`, and in regular expressions. V8's functions are looked
//! up in the running program by their C++ names; where one is missing nothing is known of the stack.
//!
//! ```text
//!  the supervisor's hook: interrupt ──► V8 ──► JavaScript's thread: `interrupted` ── stack ──► the hook, if it still waits
//! ```

use crate::js::{Env, JsResult};
use napi::sys;
use offloop::supervisor::Stall;
use offloop::sys::{symbol, thread};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt::Write;
use std::mem::transmute_copy;
use std::ptr::{NonNull, null};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most frames of a stack.
const FRAMES: c_int = 64;
/// `kDetailed`, which newer releases do not look at.
const DETAILED: c_int = 0x7F;
/// `REPLACE_INVALID_UTF8`, which older releases do not look at.
const REPLACE: c_int = 8;

/// `v8::Isolate`, and what a `v8::Local` points to.
type Isolate = *mut c_void;
type Local = *mut c_void;

/// `v8::String::Utf8Value`: a pointer to a text that ends, and its length.
#[repr(C)]
struct Utf8Value {
    text: *const c_char,
    rest: [usize; 7],
}

/// `v8::Location`, from 0 on.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    line: c_int,
    column: c_int,
}

/// V8's functions, as a C++ compiler calls them: the object first.
struct V8 {
    current: unsafe extern "C" fn() -> Isolate,
    interrupt: unsafe extern "C" fn(Isolate, unsafe extern "C" fn(Isolate, *mut c_void), *mut c_void),
    trace: unsafe extern "C" fn(Isolate, c_int, c_int) -> Local,
    count: unsafe extern "C" fn(Local) -> c_int,
    frame: unsafe extern "C" fn(Local, Isolate, u32) -> Local,
    function: unsafe extern "C" fn(Local) -> Local,
    script: unsafe extern "C" fn(Local) -> Local,
    location: unsafe extern "C" fn(Local) -> Location,
    text: unsafe extern "C" fn(*mut Utf8Value, Isolate, Local, c_int),
    drop_text: unsafe extern "C" fn(*mut Utf8Value),
}

/// The first of these that the program has.
///
/// # Safety
/// `F` is a pointer to a function, of the signature that those names stand for.
unsafe fn find<F>(names: &[&CStr]) -> Option<F> {
    let found: NonNull<c_void> = names.iter().find_map(|name| symbol::find(name))?;
    // SAFETY: this function's contract; both are one pointer.
    Some(unsafe { transmute_copy(&found) })
}

impl V8 {
    fn get() -> Option<&'static V8> {
        static V8: OnceLock<Option<V8>> = OnceLock::new();
        // SAFETY: the names hold the types of the arguments; what is returned is that of the releases 20 to 26 of Node.js.
        let find = || unsafe {
            Some(V8 {
                current: find(&[c"_ZN2v87Isolate10GetCurrentEv"])?,
                interrupt: find(&[c"_ZN2v87Isolate16RequestInterruptEPFvPS0_PvES2_"])?,
                trace: find(&[c"_ZN2v810StackTrace17CurrentStackTraceEPNS_7IsolateEiNS0_17StackTraceOptionsE"])?,
                count: find(&[c"_ZNK2v810StackTrace13GetFrameCountEv"])?,
                frame: find(&[c"_ZNK2v810StackTrace8GetFrameEPNS_7IsolateEj"])?,
                function: find(&[c"_ZNK2v810StackFrame15GetFunctionNameEv"])?,
                script: find(&[c"_ZNK2v810StackFrame24GetScriptNameOrSourceURLEv"])?,
                location: find(&[c"_ZNK2v810StackFrame11GetLocationEv"])?,
                text: find(&[
                    c"_ZN2v86String9Utf8ValueC1EPNS_7IsolateENS_5LocalINS_5ValueEEE",
                    c"_ZN2v86String9Utf8ValueC1EPNS_7IsolateENS_5LocalINS_5ValueEEENS0_12WriteOptionsE",
                ])?,
                drop_text: find(&[c"_ZN2v86String9Utf8ValueD1Ev"])?,
            })
        };
        V8.get_or_init(find).as_ref()
    }

    /// Empty for what is no text.
    ///
    /// # Safety
    /// On the thread of `isolate`, with a handle of its own or null.
    unsafe fn text_of(&self, isolate: Isolate, text: Local) -> String {
        if text.is_null() {
            return String::new();
        }
        let mut value = Utf8Value { text: null(), rest: [0; 7] };
        // SAFETY: this function's contract; the memory is longer than what is constructed in it.
        unsafe { (self.text)(&raw mut value, isolate, text, REPLACE) };
        // SAFETY: V8's text ends with a 0, and lives until it is dropped.
        let out = if value.text.is_null() { String::new() } else { unsafe { CStr::from_ptr(value.text) }.to_string_lossy().into_owned() };
        // SAFETY: it was constructed above.
        unsafe { (self.drop_text)(&raw mut value) };
        out
    }

    /// The calls under way, the innermost first, as `Error.prototype.stack` has them.
    ///
    /// # Safety
    /// On the thread of `isolate`, with a scope for handles, as in an interrupt.
    unsafe fn stack(&self, isolate: Isolate) -> String {
        let mut out = String::new();
        // SAFETY: this function's contract.
        let trace = unsafe { (self.trace)(isolate, FRAMES, DETAILED) };
        // SAFETY: a live handle, if there is one.
        let count = if trace.is_null() { 0 } else { unsafe { (self.count)(trace) } };
        for at in 0..count.max(0) as u32 {
            // SAFETY: there are so many frames; the handle lives until the scope's end, as all of them do.
            let frame = unsafe { (self.frame)(trace, isolate, at) };
            if frame.is_null() {
                break;
            }
            // SAFETY: a live handle of this thread.
            let (name, script, place) = unsafe { ((self.function)(frame), (self.script)(frame), (self.location)(frame)) };
            // SAFETY: as above.
            let (name, script) = unsafe { (self.text_of(isolate, name), self.text_of(isolate, script)) };
            let script = if script.is_empty() { "<anonymous>" } else { &script };
            let (line, column) = (place.line.saturating_add(1), place.column.saturating_add(1));
            let _ = match name.is_empty() {
                true => writeln!(out, "at {script}:{line}:{column}"),
                false => writeln!(out, "at {name} ({script}:{line}:{column})"),
            };
        }
        out
    }
}

#[derive(Default)]
struct Asked {
    /// V8 has an interrupt of ours that it has not served.
    pending: bool,
    /// Somebody waits for the stack.
    wanted: bool,
    stack: Option<String>,
}

/// The JavaScript of one environment.
pub(crate) struct Watched {
    /// None once the environment ends.
    isolate: Mutex<Option<Isolate>>,
    asked: Mutex<Asked>,
    told: Condvar,
}

// SAFETY: the isolate is only given to the function of V8 that any thread may call, under a lock that the environment's end takes.
unsafe impl Send for Watched {}
// SAFETY: as above.
unsafe impl Sync for Watched {}

/// The environment of the running callback; `None` where V8 does not let itself be asked.
pub(crate) fn watch(env: Env) -> JsResult<Option<Arc<Watched>>> {
    let Some(v8) = V8::get() else { return Ok(None) };
    // SAFETY: on a thread that runs JavaScript.
    let isolate = unsafe { (v8.current)() };
    if isolate.is_null() {
        return Ok(None);
    }
    let watched = Arc::new(Watched { isolate: Mutex::new(Some(isolate)), asked: Mutex::default(), told: Condvar::new() });
    let own = Arc::into_raw(Arc::clone(&watched));
    // SAFETY: a live environment; `on_exit` takes the count back.
    let status = unsafe { sys::napi_add_env_cleanup_hook(env.0, Some(on_exit), own.cast_mut().cast()) };
    if status != sys::Status::napi_ok {
        // SAFETY: nobody else will.
        drop(unsafe { Arc::from_raw(own) });
    }
    env.status(status, "napi_add_env_cleanup_hook")?;
    Ok(Some(watched))
}

/// Before the isolate goes.
unsafe extern "C" fn on_exit(data: *mut c_void) {
    // SAFETY: the count that `watch` has left, once.
    let watched = unsafe { Arc::from_raw(data.cast_const().cast::<Watched>()) };
    *lock(&watched.isolate) = None;
}

/// Runs on JavaScript's thread, maybe long after it was asked for.
unsafe extern "C" fn interrupted(isolate: Isolate, data: *mut c_void) {
    // SAFETY: the count that `request` has left; V8 calls once.
    let watched = unsafe { Arc::from_raw(data.cast_const().cast::<Watched>()) };
    let mut asked = lock(&watched.asked);
    asked.pending = false;
    if asked.wanted
        && let Some(v8) = V8::get()
    {
        // SAFETY: an interrupt of this isolate, for which V8 has opened a scope.
        asked.stack = Some(unsafe { v8.stack(isolate) });
        watched.told.notify_all();
    }
}

impl Watched {
    /// What the supervisor is told: the stack; where JavaScript waits in the system, the number of that call.
    pub(crate) fn stack(self: &Arc<Self>, stall: &Stall) -> Option<String> {
        if !self.request() {
            return None;
        }
        let half = stall.patience / 2;
        // Served at once, where the machine has time for it.
        let stack = self.wait(half).or_else(|| {
            let call = thread::system_call(stall.thread).map(|call| format!("in system call {call}"));
            call.or_else(|| self.wait(half / 2))
        });
        lock(&self.asked).wanted = false;
        Some(stack.unwrap_or_else(|| "in native code".to_owned()))
    }

    /// False: the environment is at its end.
    fn request(self: &Arc<Self>) -> bool {
        let isolate = lock(&self.isolate);
        let (Some(isolate), Some(v8)) = (*isolate, V8::get()) else { return false };
        let was_pending = {
            let mut asked = lock(&self.asked);
            (asked.wanted, asked.stack) = (true, None);
            std::mem::replace(&mut asked.pending, true)
        };
        if !was_pending {
            let data = Arc::into_raw(Arc::clone(self)).cast_mut().cast();
            // SAFETY: any thread may, while the isolate lives: its end waits for the lock. `interrupted` takes the count back; one that is never called is lost with its isolate.
            unsafe { (v8.interrupt)(isolate, interrupted, data) };
        }
        true
    }

    fn wait(&self, timeout: Duration) -> Option<String> {
        let waited = self.told.wait_timeout_while(lock(&self.asked), timeout, |asked| asked.stack.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.stack.take()
    }
}
