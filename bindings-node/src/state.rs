//! What one environment (the main thread or a `worker_thread`) holds. Statics would be shared by all of them.

use crate::buffer::Held;
use crate::js::{Call, Env, JsResult, Raw};
use crate::worker;
use napi::sys;
use offloop::pool::{Event, SharedPart};
use offloop::{CompletionQueue, Error, Task, Value};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// JavaScript functions that native code calls, in the order of `hooks(…)`.
#[derive(Clone, Copy)]
enum Hook {
    Wake,
    Error,
    Unwrap,
    WrapBuffer,
    WrapError,
    WrapMap,
    UnwrapError,
}
const HOOKS: usize = 7;

/// The way from any thread to the environment's loop, until the environment ends.
pub(crate) struct Wake(Mutex<Option<sys::napi_threadsafe_function>>);

// SAFETY: a threadsafe function may be called from any thread while it is not closed; the mutex holds it only that long.
unsafe impl Send for Wake {}
// SAFETY: as above.
unsafe impl Sync for Wake {}

impl Wake {
    /// Runs the wake hook on the loop's thread with `note` (0: results are waiting).
    pub(crate) fn notify(&self, note: usize) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = *open {
            // SAFETY: the cleanup hook empties the mutex before the runtime closes the function, and waits for it here.
            unsafe { sys::napi_call_threadsafe_function(function, note as *mut c_void, sys::ThreadsafeFunctionCallMode::nonblocking) };
        }
    }

    /// The environment has not begun to end.
    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What other threads have to say to the environment that made a pool or a cluster: events, each a list, until JavaScript takes them.
pub(crate) struct Told {
    wake: Arc<Wake>,
    note: usize,
    events: Mutex<Vec<Value>>,
}

impl Told {
    /// `note` is notified of when there are events again.
    pub(crate) fn new(state: &State, note: u32) -> Arc<Told> {
        Arc::new(Told { wake: state.wake.clone(), note: note as usize, events: Mutex::default() })
    }

    pub(crate) fn tell(&self, event: Vec<Value>) {
        let first = {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push(Value::Array(event));
            events.len() == 1
        };
        if first {
            self.wake.notify(self.note);
        }
    }

    pub(crate) fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Names of ops that a pool knew when it was asked, by number, so that the hot path passes no text.
#[derive(Default)]
pub(crate) struct OpNames {
    names: Vec<Rc<str>>,
    numbers: HashMap<Rc<str>, u32>,
}

impl OpNames {
    /// The number of `name`: the same one each time.
    pub(crate) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let name: Rc<str> = name.into();
        let number = self.names.len() as u32;
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    pub(crate) fn name(&self, number: u32) -> Result<&str, Error> {
        let name = self.names.get(number as usize).map(|name| &**name);
        name.ok_or_else(|| Error::invalid("op number was never interned").with("number", number))
    }
}

pub(crate) struct State {
    pub(crate) queue: CompletionQueue,
    pub(crate) wake: Arc<Wake>,
    function: sys::napi_threadsafe_function,
    hooks: Cell<[sys::napi_ref; HOOKS]>,
    pub(crate) names: RefCell<OpNames>,
    /// Tasks that JavaScript may cancel, by their entry number.
    pub(crate) tasks: RefCell<HashMap<u32, Vec<Task>>>,
    /// Tasks of workers, threads or processes, with options, by the slot of their promise.
    pub(crate) calls: RefCell<HashMap<u32, Task>>,
    /// Shared memory that those calls have moved to their workers, who may give it back with the reply.
    pub(crate) given: RefCell<HashMap<u32, Vec<SharedPart>>>,
    /// Events that a drain had no room for.
    pub(crate) spill: RefCell<VecDeque<Event>>,
    /// What the collector was told of; finalizers outlive this state, so they share it.
    pub(crate) held: Rc<Held>,
    external: Cell<bool>,
}

impl State {
    /// Makes the state of a new environment.
    pub(crate) fn install(env: Env) -> Result<(), Error> {
        let refused = |status: sys::napi_status| Error::invalid("the runtime refused to start offloop").with("status", status);
        let check = |status| if status == sys::Status::napi_ok { Ok(()) } else { Err(refused(status)) };
        let (mut name, mut function) = (null_mut(), null_mut());
        let text = "offloop";
        // SAFETY: module initialisation of a live environment; pointers are locals or static text.
        check(unsafe { sys::napi_create_string_utf8(env.0, text.as_ptr().cast(), text.len() as isize, &mut name) })?;
        // SAFETY: as above; no JavaScript function, `on_wake` does the call.
        check(unsafe {
            sys::napi_create_threadsafe_function(
                env.0,
                null_mut(),
                null_mut(),
                name,
                0,
                1,
                null_mut(),
                None,
                null_mut(),
                Some(on_wake),
                &mut function,
            )
        })?;
        // Weak: an idle pool does not keep the process alive. JavaScript refs it while something is pending.
        // SAFETY: the function was just made.
        check(unsafe { sys::napi_unref_threadsafe_function(env.0, function) })?;
        let wake = Arc::new(Wake(Mutex::new(Some(function))));
        let notifier = wake.clone();
        let state = Box::new(State {
            queue: CompletionQueue::with_notify(Box::new(move || notifier.notify(0))),
            wake,
            function,
            hooks: Cell::new([null_mut(); HOOKS]),
            names: RefCell::default(),
            tasks: RefCell::default(),
            calls: RefCell::default(),
            given: RefCell::default(),
            spill: RefCell::default(),
            held: Rc::default(),
            external: Cell::new(true),
        });
        let state = Box::into_raw(state);
        // SAFETY: the box lives until `drop_state`, which the runtime calls after the last callback.
        check(unsafe { sys::napi_set_instance_data(env.0, state.cast(), Some(drop_state), null_mut()) })?;
        // Hooks run last in, first out: this one runs before the runtime closes the threadsafe function made above.
        // SAFETY: instance data outlives cleanup hooks.
        check(unsafe { sys::napi_add_env_cleanup_hook(env.0, Some(on_exit), state.cast()) })
    }

    fn hook(&self, env: Env, hook: Hook) -> JsResult<Raw> {
        env.dereference(self.hooks.get()[hook as usize])
    }

    /// Turns a core error into an `OffloopError`.
    pub(crate) fn error(&self, env: Env, e: &Error) -> JsResult<Raw> {
        let status = env.number(f64::from(e.kind().status()))?;
        let message = env.string(&text_of(e))?;
        let (errno, syscall) = match e.errno() {
            Some((errno, syscall)) => (env.number(f64::from(errno))?, env.string(syscall)?),
            None => (env.undefined(), env.undefined()),
        };
        let said = |name| e.context().iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        let exit_code = said("exit_code").and_then(|code| code.parse().ok());
        let exit_code = exit_code.map_or_else(|| Ok(env.undefined()), |code: f64| env.number(code))?;
        let (oom, poison) = (env.boolean(said("oom").is_some())?, env.boolean(said("poison").is_some())?);
        let signal = said("signal").and_then(|signal| signal.parse().ok());
        let signal = signal.map_or_else(|| Ok(env.undefined()), |signal: f64| env.number(signal))?;
        env.call(self.hook(env, Hook::Error)?, &[status, message, errno, syscall, exit_code, oom, poison, signal])
    }

    pub(crate) fn unwrap(&self, env: Env) -> JsResult<Raw> {
        self.hook(env, Hook::Unwrap)
    }

    pub(crate) fn wrap_buffer(&self, env: Env) -> JsResult<Raw> {
        self.hook(env, Hook::WrapBuffer)
    }

    pub(crate) fn wrap_error(&self, env: Env) -> JsResult<Raw> {
        self.hook(env, Hook::WrapError)
    }

    pub(crate) fn wrap_map(&self, env: Env) -> JsResult<Raw> {
        self.hook(env, Hook::WrapMap)
    }

    pub(crate) fn unwrap_error(&self, env: Env) -> JsResult<Raw> {
        self.hook(env, Hook::UnwrapError)
    }

    /// Whether external memory was not refused so far.
    pub(crate) fn external_allowed(&self) -> bool {
        self.external.get()
    }

    pub(crate) fn forbid_external(&self) {
        self.external.set(false);
    }
}

/// The text of an error, with options in the form that users of Node.js type: `maxWorkers` for the core's `max_workers`.
fn text_of(e: &Error) -> String {
    // An unknown option is shown as it was typed.
    let unknown = e.message() == "unknown option";
    let has_names = |name: &str| name == if unknown { "known" } else { "option" };
    if !e.context().iter().any(|(name, value)| has_names(name) && value.contains('_')) {
        return e.to_string();
    }
    let camel = |names: &str| {
        let mut up = false;
        names.chars().fold(String::new(), |mut out, c| {
            match c {
                '_' => up = true,
                c => out.push(if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c }),
            }
            out
        })
    };
    let bare = Error::new(e.kind(), e.message().to_owned());
    let all = e.context().iter().fold(bare, |error, (name, value)| match has_names(name) {
        true => error.with(name, camel(value)),
        false => error.with(name, value),
    });
    all.to_string()
}

/// `hooks(wake, error, unwrap, wrapBuffer, wrapError, wrapMap, unwrapError)`: called once, when the package loads.
pub(crate) fn hooks(call: &Call<'_>) -> JsResult<Raw> {
    let mut hooks = [null_mut(); HOOKS];
    for (i, hook) in hooks.iter_mut().enumerate() {
        *hook = call.env.reference(call.arg(i))?;
    }
    call.state.hooks.set(hooks);
    Ok(call.env.undefined())
}

/// `forbidExternal()`: as a runtime with a memory cage does; for tests.
pub(crate) fn forbid_external(call: &Call<'_>) -> JsResult<Raw> {
    call.state.forbid_external();
    Ok(call.env.undefined())
}

/// `keepAlive(on)`: whether the loop waits for results.
pub(crate) fn keep_alive(call: &Call<'_>) -> JsResult<Raw> {
    let on = call.env.bool(call.arg(0)) == Some(true);
    let (env, function) = (call.env.0, call.state.function);
    // SAFETY: the function lives as long as its environment runs callbacks.
    let status =
        unsafe { if on { sys::napi_ref_threadsafe_function(env, function) } else { sys::napi_unref_threadsafe_function(env, function) } };
    call.env.status(status, "napi_ref_threadsafe_function")?;
    Ok(call.env.undefined())
}

/// Runs on the loop's thread for each [`Wake::notify`].
unsafe extern "C" fn on_wake(env: sys::napi_env, _: Raw, _: *mut c_void, note: *mut c_void) {
    if env.is_null() {
        return; // the environment is closing; nobody waits any more
    }
    let env = Env(env);
    let Some(state) = env.state() else { return };
    let _ = (|| {
        let note = env.number(note as usize as f64)?;
        env.call(state.hook(env, Hook::Wake)?, &[note])
    })();
}

/// Before the environment closes its handles: no wake from now on, and nobody waits for what can be cancelled.
unsafe extern "C" fn on_exit(data: *mut c_void) {
    // SAFETY: the box of `install`, alive until `drop_state`.
    let state = unsafe { &*data.cast::<State>() };
    state.wake.close();
    worker::abandon(&state.wake);
    for task in state.tasks.take().into_values().flatten().chain(state.calls.take().into_values()) {
        task.cancel();
    }
}

unsafe extern "C" fn drop_state(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: the box of `install`, finalized once.
    drop(unsafe { Box::from_raw(data.cast::<State>()) });
}
