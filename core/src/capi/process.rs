//! Pools of worker processes for C, and the worker's side: [`offloop_worker_main`].

use crate::abi::ctx::{self, offloop_fn};
use crate::abi::ffi::{self, Moved, Options, offloop_status};
use crate::abi::handle::{self, Place};
use crate::abi::{offloop_task_ctx, offloop_value, value};
use crate::capi::completion::Form;
use crate::capi::pool::{count, delivered, duration, give_task, offloop_stats, offloop_submit_options, refused, stats_for_c, task_place};
use crate::capi::{offloop_process_pool, offloop_task};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{OpCtx, Params};
use crate::pool::call::{self, Call};
use crate::pool::{PoolOptions, ProcessPool, Running, Task, Work, Worker, serve};
use crate::supervisor;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use crate::sys::process::{Spec, own_env};
use crate::value::{ErrorValue, Value};
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a process pool is made. 0 or NULL means the default everywhere but in command; start from OFFLOOP_PROCESS_POOL_OPTIONS_INIT. Texts
/// are copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_process_pool_options {
    /// sizeof(offloop_process_pool_options).
    pub struct_size: usize,
    /// What to start for each worker: a program (a path, or a name to look for in PATH), its arguments, NULL. It has to become a worker, by
    /// offloop_worker_main or another language's means.
    pub command: *const *const c_char,
    /// Texts "NAME=VALUE", NULL: added to the environment that this process has when the pool is made. Default: none.
    pub env: *const *const c_char,
    /// Working directory of the workers; a relative program is resolved in it. Default: this process's.
    pub cwd: *const c_char,
    /// Most worker processes, 1 to 1024. Default: usable cores (affinity and cgroup quota).
    pub max_workers: i64,
    /// Workers that stay when idle. Default 0.
    pub min_workers: i64,
    /// How long an idle worker above min_workers stays, in nanoseconds. Default 30 s.
    pub idle_timeout_ns: i64,
    /// Most queued calls, 1 to 2^24. Default 65,536.
    pub max_queue: i64,
    /// Calls that one worker has at once, 1 to 4096. Default 1, and what offloop_worker_main needs, which runs one after the other; more is for
    /// workers with an event loop.
    pub concurrency: i64,
    /// How long a call that nobody waits for any more (timeout, cancel) may go on before its worker is ended, in nanoseconds. Default 1 s.
    pub cancel_grace_ns: i64,
    /// Calls that a worker begins before another takes its place; the other is asked for up to 10 % earlier. Default: no limit.
    pub max_tasks_per_worker: i64,
    /// How long a worker lives before another takes its place, in nanoseconds, up to 10 % less. Default: no limit.
    pub max_worker_age_ns: i64,
    /// Bytes of memory of one worker (its proportional set size) beyond which another takes its place; looked at each second. Default: no limit.
    pub max_worker_memory: i64,
    /// Added to the niceness of the workers, -20 to 19. Below 0 needs privileges. Default 0.
    pub nice: i32,
    /// 0.
    pub reserved: u32,
    /// Name in metrics and messages. Default "pool".
    pub name: *const c_char,
    /// How long a worker may take until it is ready, in nanoseconds. Default 30 s.
    pub ready_timeout_ns: i64,
    /// What every worker can ask for when it starts: offloop_worker_context in C, `init(context)` in Node.js and Python. Copied, at most
    /// 256 MiB in its encoded form. NULL: nothing.
    pub context: *const offloop_value,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_process_pool_options {
    const MIN_SIZE: usize = size_of::<offloop_process_pool_options>();
    const NAME: &'static str = "offloop_process_pool_options";
}

/// A function that a worker process offers by its name.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_function {
    /// NUL-terminated UTF-8, not empty.
    pub name: *const c_char,
    /// The function; its arguments are offloop_ctx_params, an array.
    pub function: offloop_fn,
    /// Passed to it. May be NULL.
    pub arg: *mut c_void,
}

pub(super) fn lookup(pool: *const offloop_process_pool) -> Result<Arc<ProcessPool>> {
    handle::shared(pool)
}

/// Bytes of a C text; `None` for NULL.
///
/// # Safety
/// `text` is NULL or NUL-terminated.
pub(super) unsafe fn os(text: *const c_char) -> Option<OsString> {
    // SAFETY: not NULL, NUL-terminated by contract.
    (!text.is_null()).then(|| OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes()).to_owned())
}

/// The texts of an array up to its NULL; none for NULL.
///
/// # Safety
/// `list` is NULL, or an array of NUL-terminated texts that ends with NULL.
pub(super) unsafe fn texts(list: *const *const c_char, what: &'static str) -> Result<Vec<OsString>> {
    let mut all = Vec::new();
    if list.is_null() {
        return Ok(all);
    }
    let _ = ffi::out(list.cast_mut(), what)?; // for a misaligned one
    loop {
        // SAFETY: as many elements as were read were not NULL, so this one is part of the array.
        match unsafe { os(list.add(all.len()).read()) } {
            Some(text) => all.push(text),
            None => return Ok(all),
        }
    }
}

/// A parameter that may be left out, and is moved.
///
/// # Safety
/// `place` is NULL or points at a handle.
unsafe fn moved_opt(place: *mut *mut offloop_value, what: &'static str) -> Result<Option<Moved<offloop_value>>> {
    // SAFETY: not NULL, so it points at a handle by contract.
    (!place.is_null()).then(|| unsafe { ffi::moved(place, what) }).transpose()
}

/// Name and value of a text "NAME=VALUE".
pub(super) fn variable(text: &OsStr) -> Result<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|b| *b == b'=').filter(|at| *at > 0);
    let at = at.ok_or_else(|| Error::invalid("text is not NAME=VALUE").with("option", "env").with("text", text.display()))?;
    Ok((OsStr::from_bytes(&bytes[..at]).to_owned(), OsStr::from_bytes(&bytes[at + 1..]).to_owned()))
}

/// What is started for each worker.
///
/// # Safety
/// The texts of `o` are as its fields say.
unsafe fn spec(o: &offloop_process_pool_options) -> Result<Spec<'static>> {
    // SAFETY: this function's contract.
    let (command, added, cwd) = unsafe { (texts(o.command, "command")?, texts(o.env, "env")?, os(o.cwd)) };
    let mut command = command.into_iter();
    let program = command.next().ok_or_else(|| Error::invalid("process pool has no command").with("option", "command"))?;
    // Now, on the caller's thread: the program may change its environment while the supervisors' thread would read it.
    let mut env = own_env();
    for text in added {
        let (name, value) = variable(&text)?;
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    Ok(Spec { args: command.collect(), env: Some(env), cwd: cwd.map(PathBuf::from), ..Spec::new(program) })
}

/// Makes a process pool. No process and no thread starts before the first call. OFFLOOP_ERR_INVALID names the option, its value and its
/// limits; OFFLOOP_ERR_OS when there is no fd or memory for the pool.
///
/// # Safety
/// `options` is as long as it says, its texts as its fields say, `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_new(
    options: *const offloop_process_pool_options,
    out: *mut *mut offloop_process_pool,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        // SAFETY: this function's contract.
        let spec = unsafe { spec(&o) }?;
        let defaults = PoolOptions::default();
        let mut options = PoolOptions {
            max_workers: count("max_workers", o.max_workers)?,
            min_workers: count("min_workers", o.min_workers)?.unwrap_or(defaults.min_workers),
            idle_timeout: duration("idle_timeout_ns", o.idle_timeout_ns)?.unwrap_or(defaults.idle_timeout),
            max_queue: count("max_queue", o.max_queue)?.unwrap_or(defaults.max_queue),
            max_tasks_per_worker: count("max_tasks_per_worker", o.max_tasks_per_worker)?.map(|n| n as u64),
            max_worker_age: duration("max_worker_age_ns", o.max_worker_age_ns)?,
            max_worker_memory: count("max_worker_memory", o.max_worker_memory)?.map(|n| n as u64),
            nice: o.nice,
            ..defaults
        };
        if !o.name.is_null() {
            // SAFETY: NUL-terminated by this function's contract.
            unsafe { ffi::str(o.name, "name") }?.clone_into(&mut options.name);
        }
        let mut builder = ProcessPool::builder().options(options);
        if let Some(n) = count("concurrency", o.concurrency)? {
            builder = builder.concurrency(n);
        }
        if let Some(grace) = duration("cancel_grace_ns", o.cancel_grace_ns)? {
            builder = builder.cancel_grace(grace);
        }
        if let Some(boot_timeout) = duration("ready_timeout_ns", o.ready_timeout_ns)? {
            // As a pool has it by default: a worker whose loop stands still is not ended.
            let supervision = supervisor::Options { boot_timeout, hang_timeout: Duration::ZERO, workers: 0, ..Default::default() };
            builder = builder.supervision(supervision);
        }
        if !o.context.is_null() {
            builder = builder.setup(value::read(o.context, call::encode_parts)?);
        }
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(builder.build(move |_| Ok(spec.clone()))?)));
        Ok(())
    })
}

/// The request of a call whose arguments stay the caller's.
pub(super) fn request(
    pool: &ProcessPool,
    name: &str,
    args: Option<&mut Moved<offloop_value>>,
    named: Option<&mut Moved<offloop_value>>,
) -> Result<crate::pool::Request> {
    let (mut no_args, mut no_names) = (Value::Array(Vec::new()), Value::Nil);
    let args = args.map_or(Ok(&mut no_args), |args| value::owned(args.object()))?;
    let named = named.map_or(Ok(&mut no_names), |named| value::owned(named.object()))?;
    if !matches!(args, Value::Array(_)) {
        return Err(Error::invalid("arguments are not an array").with("got", args.type_name()));
    }
    if !matches!(named, Value::Map(_) | Value::Nil) {
        return Err(Error::invalid("arguments by name are not a map").with("got", named.type_name()));
    }
    let tree = Value::Array(vec![Value::str(name.to_owned()), std::mem::take(args), std::mem::take(named)]);
    let encoded = call::encode_parts(&tree);
    if let Value::Array(mut parts) = tree {
        *named = parts.pop().unwrap_or_default();
        *args = parts.pop().unwrap_or_default();
    }
    pool.request(&[&encoded?])
}

/// Calls a function of the workers by its name. `args_io`: an array of its arguments, which is moved; NULL (not a pointer to NULL): none.
/// Arguments and result are written as messages (docs/values.md), so buffers are copied and become bytes. `out` may be NULL when nobody
/// waits for the task.
///
/// The outcome comes as that of offloop_pool_submit: by offloop_task_wait, cq or on_done, progress by cq. A function's own error is
/// OFFLOOP_ERR_TASK_FAILED with its class and message as text (the status that the function returned, where it is one of offloop's); cq and
/// on_done give the whole of it. OFFLOOP_ERR_NOT_FOUND, with the names that there are, for an unknown one. OFFLOOP_ERR_WORKER_LOST when the
/// process ended before the call did, with its exit_code or signal in the text; OFFLOOP_ERR_START_FAILED and OFFLOOP_ERR_DEGRADED when no
/// worker comes up. A call that passes timeout_ns, or is cancelled while it runs, has its outcome at once; a worker whose function has not
/// returned cancel_grace_ns later is ended.
///
/// The call itself fails with OFFLOOP_ERR_FULL when the queue is full, and, also with OFFLOOP_ON_FULL_WAIT, when the pool's memory for
/// long arguments is in use; with OFFLOOP_ERR_TOO_LARGE for arguments that are longer than that. Then nothing was taken.
///
/// # Safety
/// `name` is NUL-terminated, `args_io` is NULL or points at a handle, `options` is NULL or as long as it says; `out` is NULL or valid for
/// writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_call(
    pool: *mut offloop_process_pool,
    name: *const c_char,
    args_io: *mut *mut offloop_value,
    options: *const offloop_submit_options,
    out: *mut *mut offloop_task,
) -> offloop_status {
    // SAFETY: this function's contract.
    unsafe { offloop_process_pool_call_named(pool, name, args_io, std::ptr::null_mut(), options, out) }
}

/// As offloop_process_pool_call, with arguments by name, which functions in Python take: a map of texts, or nil, moved with `args_io`. NULL (not a
/// pointer to NULL): none. A function in another language fails with OFFLOOP_ERR_INVALID or OFFLOOP_ERR_UNSUPPORTED for them.
///
/// # Safety
/// As of offloop_process_pool_call; `named_io` is NULL or points at a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_call_named(
    pool: *mut offloop_process_pool,
    name: *const c_char,
    args_io: *mut *mut offloop_value,
    named_io: *mut *mut offloop_value,
    options: *const offloop_submit_options,
    out: *mut *mut offloop_task,
) -> offloop_status {
    ffi::call(|| {
        let (pool, place) = (lookup(pool)?, task_place(out)?);
        // SAFETY: this function's contract.
        let name = unsafe { ffi::str(name, "name") }?;
        // SAFETY: this function's contract.
        let (mut args, mut named) = unsafe { (moved_opt(args_io, "args_io")?, moved_opt(named_io, "named_io")?) };
        let request = request(&pool, name, args.as_mut(), named.as_mut())?;
        let submit = |options| {
            let commit = |task: &Task| {
                for moved in [args.take(), named.take()].into_iter().flatten() {
                    drop(value::into_value(moved.done()));
                }
                if let Some((out, place)) = place {
                    out.set(give_task(place, task, Form::Reply));
                }
            };
            let work = vec![Work::hosted(Box::new(request))];
            pool.submitting(work, |mut work| pool.pool().submit_with(work.remove(0), options, commit)).map_err(refused)
        };
        // SAFETY: this function's contract.
        unsafe { delivered(options, Form::Reply, submit) }
    })
}

/// Changes the bounds of the number of workers; below 0 leaves one as it is. A worker that is one too many finishes what it has begun.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_resize(
    pool: *mut offloop_process_pool,
    min_workers: i64,
    max_workers: i64,
) -> offloop_status {
    ffi::call(|| lookup(pool)?.pool().resize(usize::try_from(min_workers).ok(), usize::try_from(max_workers).ok()))
}

/// Closes the pool, waits until every accepted call has its outcome, at most `grace_ns` (below 0: for ever), then cancels the rest, and ends
/// the processes: none is left when it returns, but one in an uninterruptible call of the kernel. Later calls get OFFLOOP_ERR_CLOSED.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_shutdown(pool: *mut offloop_process_pool, grace_ns: i64) -> offloop_status {
    ffi::call(|| lookup(pool)?.shutdown(ffi::forever_or(grace_ns)))
}

/// Cancels every call that has no outcome yet, refuses new ones, and kills the processes, without waiting for their end.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_terminate(pool: *mut offloop_process_pool) -> offloop_status {
    ffi::call(|| lookup(pool)?.terminate())
}

/// Reads counters and times, as offloop_pool_stats does; a worker is a process here.
///
/// # Safety
/// `stats_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_stats(pool: *mut offloop_process_pool, stats_io: *mut offloop_stats) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let place = unsafe { ffi::filled(stats_io) }?;
        let stats = offloop_stats { struct_size: place.struct_size, ..stats_for_c(&lookup(pool)?.pool().stats()) };
        place.set(stats);
        Ok(())
    })
}

/// Frees the handle and closes the pool without waiting: accepted calls still run to their end, then the processes end. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_process_pool_free(pool: *mut offloop_process_pool) {
    if !pool.is_null() {
        ffi::call(|| handle::free(pool));
    }
}

/// A function of this worker, with its argument.
struct Offered {
    function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32,
    arg: *mut c_void,
}

/// # Safety
/// As of [`offloop_worker_main`].
unsafe fn offered(functions: &[offloop_function]) -> Result<BTreeMap<&str, Offered>> {
    let mut all = BTreeMap::new();
    for one in functions {
        // SAFETY: this function's contract.
        let name = unsafe { ffi::str(one.name, "name") }?;
        if name.is_empty() {
            return Err(Error::invalid("function has an empty name").with("functions", functions.len()));
        }
        let function = one.function.ok_or_else(|| Error::invalid("pointer is NULL").with("argument", "function").with("name", name))?;
        if all.insert(name, Offered { function, arg: one.arg }).is_some() {
            return Err(Error::new(ErrorKind::Exists, "two functions have one name").with("name", name));
        }
    }
    Ok(all)
}

/// This process as the worker of its pool.
#[derive(Default)]
struct Own {
    /// From the first question to the end of offloop_worker_main.
    worker: Mutex<Option<Worker>>,
    /// offloop_worker_main has been called.
    serves: AtomicBool,
}

static OWN: ForkCell<Own> = ForkCell::new();

impl Own {
    fn worker(&self) -> Result<Worker> {
        let mut worker = lock(&self.worker);
        if worker.is_none() {
            *worker = Worker::attach()?;
        }
        worker.clone().ok_or_else(|| Error::new(ErrorKind::Unsupported, "no process pool has started this process"))
    }
}

/// # Safety
/// The functions may be called on this thread.
unsafe fn run(functions: &BTreeMap<&str, Offered>, call: Call, running: &Running<'_>) -> Result<Value> {
    let Some(offered) = functions.get(call.name.as_str()) else {
        let names: Vec<&str> = functions.keys().copied().collect();
        return Err(Error::new(ErrorKind::NotFound, "worker has no function of that name")
            .with("name", call.name.chars().take(80).collect::<String>())
            .with("functions", names.join(" ")));
    };
    if !call.named.is_empty() {
        return Err(Error::invalid("C functions have no named arguments").with("name", call.name).with("named", call.named.len()));
    }
    let params = Params::raw(Value::Array(call.args));
    // SAFETY: this function's contract.
    unsafe { ctx::run(&mut OpCtx::alone(&params, running), offered.function, offered.arg) }
}

/// Makes this process the worker of the process pool that has started it, and runs the calls that come, one after the other on this
/// thread, until the pool lets it go: then OFFLOOP_OK, and main is to return. OFFLOOP_ERR_UNSUPPORTED, at once, when no pool has started this
/// process, so that a program can be both. `functions` are what callers may name, `function_count` of them; they live until this returns.
///
/// A function has its arguments as offloop_ctx_params (an array), and no inputs. What it sets and returns is what the caller gets.
/// Progress beyond 2,032 bytes is not told. Signals are the program's own business here, and the thread is the caller's.
///
/// OFFLOOP_ERR_INVALID and OFFLOOP_ERR_EXISTS for a table that is none: the pool's callers get the text. OFFLOOP_ERR_IN_USE at a second call.
///
/// # Safety
/// `functions` points at `function_count` of them, each as its fields say; the functions follow the contract of offloop_fn and may be called
/// with their arg on this thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_main(functions: *const offloop_function, function_count: usize) -> offloop_status {
    ffi::call(|| {
        let own = OWN.get(Own::default);
        if own.serves.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::InUse, "process is a worker already"));
        }
        let worker = own.worker()?;
        if own.serves.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::InUse, "process is a worker already"));
        }
        // SAFETY: this function's contract.
        let functions = unsafe { ffi::slice(functions, function_count, "functions").and_then(|all| offered(all)) };
        let functions = functions.inspect_err(|e| worker.fail(&e.to_string()))?;
        let served = serve(&worker, &mut |call: Call, running: &Running<'_>| -> Result<Value, Box<ErrorValue>> {
            // SAFETY: this function's contract.
            unsafe { run(&functions, call, running) }.map_err(|e| Box::new(call::error_value(&e)))
        });
        *lock(&own.worker) = None;
        served
    })
}

/// Gives what the pool that has started this process was made with as its context: a value of the caller's, or NULL when there is none. It may be
/// asked before offloop_worker_main, on the thread of main, to load what the functions need, and inside of them. OFFLOOP_ERR_UNSUPPORTED when no pool has started this
/// process, or its context is in another language's own form.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_worker_context(out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let setup = OWN.get(Own::default).worker()?.setup();
        let context = if setup.is_empty() { Value::Nil } else { call::decode_reply(&setup)?.unwrap_or_default() };
        out.set(match context {
            Value::Nil => std::ptr::null_mut(),
            context => value::give(context)?,
        });
        Ok(())
    })
}
